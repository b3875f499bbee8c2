"""A made-up history of published versions on a blob store, with everything a reader may meet."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas import WeightFile, WeightsPublished
from streams.blobs.store import BlobStore
from streams.weights import StoredTensor, state_digest, tensor_digest, write_file
from streams.weights.delta import Delta, difference, encode, layout_of
from streams.weights.tensors import parts
from tests.builders import weights_published

State = dict[str, StoredTensor]


def digest_of_state(state: State) -> str:
    return state_digest({name: tensor_digest(each) for name, each in state.items()})


@dataclass
class History:
    """`states[v]` are the tensors of version v; `events[v]` what was published of it."""

    blobs: BlobStore
    states: dict[int, State] = field(default_factory=dict)
    events: dict[int, WeightsPublished] = field(default_factory=dict)

    def train(self, versions: Sequence[int], anchors: Sequence[int], share: float = 0.1) -> None:
        rng = np.random.default_rng(7)
        state: State = {
            f"layer.{n}.weight": StoredTensor("BF16", (20, 30), rng.integers(0, 2**16, 600).astype(np.uint16))
            for n in range(4)
        }
        for version in versions:
            changed = dict(state)
            # One tensor stays as it is in every step.
            for n in {0, 1, 2, 3} - {version % 4}:
                bits = state[f"layer.{n}.weight"].bits.copy()
                bits[rng.random(600) < share] ^= 3
                changed[f"layer.{n}.weight"] = StoredTensor("BF16", (20, 30), bits)
            state = self.states[version] = changed
            self.events[version] = self.full(version) if version in anchors else self.delta(version, version - 1)

    def full(self, version: int) -> WeightsPublished:
        return self._event(version, [self._file(part) for part in parts(self.states[version], 2500)], "full")

    def delta(self, version: int, base: int) -> WeightsPublished:
        patches = difference(self.states[base], self.states[version])
        assert patches is not None
        digest = digest_of_state(self.states[base])
        layout = layout_of(self.states[base])
        files = [
            encode(Delta(version, base, digest, {name: patches[name] for name in part if name in patches}), layout)
            for part in parts(self.states[version], 2500)
        ]
        return self._event(version, files, "delta", base, digest)

    def _file(self, part: State) -> bytes:
        from pathlib import Path
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as directory:
            write_file(Path(directory) / "f", part)
            return (Path(directory) / "f").read_bytes()

    def _event(
        self, version: int, files: Sequence[bytes], kind: str, base: int | None = None, base_digest: str | None = None
    ) -> WeightsPublished:
        stored = tuple(
            WeightFile(name=f"{n}-{kind}", blob=self.blobs.put(f"v{version}/{n}-{kind}", data))
            for n, data in enumerate(files)
        )
        return weights_published(
            version,
            kind=kind,
            files=stored,
            tensors=4,
            time_s=float(version),
            base_version=base,
            base_digest=base_digest,
            digest=digest_of_state(self.states[version]),
        )
