"""What is published next, and that a reader who follows ends with the bits that the learner had."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.errors import ModelError
from learner.settings import LearnerSettings, PublishSettings
from learner.weights import Publication, Wire, as_stored
from streams.blobs.store import BlobStore
from streams.weights import Held, apply_deltas, fetch_anchor, read_file, state_digest, tensor_digest
from streams.weights.blocks import to_fp8
from tests.builders import publication_of

Weights = dict[str, Tensor]


def start() -> Weights:
    torch.manual_seed(0)
    return {
        "layers.0.q_proj.weight": torch.randn(130, 140).bfloat16(),
        "layers.1.q_proj.weight": torch.randn(130, 140).bfloat16(),
        "norm.weight": torch.ones(140).bfloat16(),
        "gate.e_score_correction_bias": torch.zeros(8),
    }


def trained(weights: Weights, step: float = 1e-3) -> Weights:
    return {
        name: (weight.float() + step * torch.randn(weight.shape)).to(weight.dtype) for name, weight in weights.items()
    }


class Reader:
    """Takes every publication as it comes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = BlobStore((directory / "blobs").as_uri())
        self.held: Held | None = None

    def take(self, published: Publication) -> None:
        event = publication_of(published, self.blobs)
        place = self.directory / f"held-{published.version}"
        if published.kind == "full":
            self.held = fetch_anchor(self.blobs, event, place)
        else:
            assert self.held is not None
            self.held = apply_deltas(self.blobs, self.held, [event], place)

    def digest(self) -> str:
        assert self.held is not None
        tensors = {name: t for file in self.held.files for name, t in read_file(file.path).items()}
        return state_digest({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def wire(**settings: Any) -> Wire:
    return Wire(PublishSettings(**{"kind": "delta", "anchor_every": 4, **settings}), 50_000)


def out(directory: Path, version: int) -> Path:
    place = directory / f"out-{version}"
    place.mkdir(exist_ok=True)
    return place


@pytest.mark.parametrize("fp8", [False, True])
def test_anchors_in_their_turn_and_deltas_between_lead_to_the_same_bits(tmp_path: Path, fp8: bool) -> None:
    publisher, reader, weights = wire(wire="fp8" if fp8 else "bf16"), Reader(tmp_path), start()
    kinds = []
    for version in range(1, 10):
        weights = trained(weights)
        published = publisher.write(weights, version, out(tmp_path, version))
        kinds.append(published.kind)
        reader.take(published)
        state = to_fp8(as_stored(weights)) if fp8 else as_stored(weights)
        wanted = state_digest({name: tensor_digest(tensor) for name, tensor in state.items()})
        assert reader.digest() == published.digest == wanted
    assert kinds == ["full", "delta", "delta", "delta", "full", "delta", "delta", "delta", "full"]


def test_a_new_life_begins_with_an_anchor_and_its_deltas_fit_what_came_before(tmp_path: Path) -> None:
    weights = start()
    later = trained(weights)
    first, second = wire(), wire()
    before = first.write(weights, 3, out(tmp_path, 1))
    again = second.write(weights, 3, out(tmp_path, 2))
    assert again.kind == "full" and again.digest == before.digest
    delta = second.write(later, 4, out(tmp_path, 3))
    assert delta.kind == "delta" and delta.base_digest == before.digest


def test_the_same_version_in_full_for_who_cannot_use_the_delta(tmp_path: Path) -> None:
    publisher, weights = wire(), start()
    publisher.write(weights, 1, out(tmp_path, 1))
    weights = trained(weights)
    delta = publisher.write(weights, 2, out(tmp_path, 2))
    anchor = publisher.anchor(out(tmp_path, 3))
    assert (delta.kind, anchor.kind, anchor.version) == ("delta", "full", 2) and anchor.digest == delta.digest
    assert publisher.write(trained(weights), 3, out(tmp_path, 4)).base_digest == anchor.digest


def test_a_delta_that_would_not_be_smaller_and_other_tensors_are_published_in_full(tmp_path: Path) -> None:
    publisher, weights = wire(), start()
    publisher.write(weights, 1, out(tmp_path, 1))
    other = {name: torch.randn(weight.shape).to(weight.dtype) * 17 for name, weight in weights.items()}
    # Every bit is another: there is nothing to leave out.
    noise = {
        n: torch.randint(0, 2**16, w.shape).to(torch.uint16).view(torch.bfloat16) for n, w in list(other.items())[:3]
    }
    assert publisher.write(other | noise, 2, out(tmp_path, 2)).kind == "full"
    assert publisher.write((other | noise) | {"new.weight": torch.ones(3)}, 3, out(tmp_path, 3)).kind == "full"


def test_nothing_changed_is_a_delta_without_files(tmp_path: Path) -> None:
    publisher, reader, weights = wire(), Reader(tmp_path), start()
    reader.take(publisher.write(weights, 1, out(tmp_path, 1)))
    same = publisher.write(weights, 2, out(tmp_path, 2))
    reader.take(same)
    assert same.kind == "delta" and same.paths == () and reader.digest() == same.digest


def test_kind_full_publishes_every_version_whole(tmp_path: Path) -> None:
    publisher = wire(kind="full")
    assert [publisher.write(start(), v, out(tmp_path, v)).kind for v in (1, 2, 3)] == ["full"] * 3


def test_what_cannot_be_published_is_named(tmp_path: Path) -> None:
    weights = start()
    weights["layers.0.q_proj.weight"][0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"weights 7 cannot be published in fp8: weight 'layers\.0\.q_proj"):
        wire(wire="fp8").write(weights, 7, out(tmp_path, 1))
    with pytest.raises(ModelError, match=r"tensor n is torch\.int64, and weights are published as"):
        wire().write({"n": torch.zeros(1, dtype=torch.int64)}, 7, out(tmp_path, 1))


def test_settings_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match=r"anchor_every is 1; allowed with kind 'delta': at least 2"):
        LearnerSettings(model="m", publish=PublishSettings(kind="delta", anchor_every=1))
