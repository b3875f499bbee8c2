"""Published files are the model directory again, with other numbers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from learner.errors import ModelError
from learner.model.policy import load_model, stored_tensors
from learner.settings import LearnerSettings
from learner.training.build import check_settings
from learner.weights import refuse_unpublishable, stored_form
from streams.context import RunContext


def published(directory: Path, world: int) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted((directory / f"published-{world}").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_untrained_weights_are_published_as_they_lie_in_the_directory(
    learner_directory: Path, two_ranks: list[dict[str, Any]]
) -> None:
    assert two_ranks[0]["publish"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert two_ranks[1]["publish"] == []
    files = published(learner_directory, 2)
    original = load_file(learner_directory / "model" / "model.safetensors")
    assert files.keys() == original.keys()
    assert any(".experts.3.down_proj.weight" in name for name in files)
    for name, tensor in files.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, original[name]), name


def test_any_number_of_ranks_publishes_the_same(learner_directory: Path, one_rank: dict[str, Any]) -> None:
    one, two = published(learner_directory, 1), published(learner_directory, 2)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_transformers_loads_trained_weights_as_they_are(
    learner_directory: Path, two_ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = LearnerSettings(model="m")
    trained = load_file(learner_directory / "weights-2.safetensors")
    model = load_model(learner_directory / "model", settings)
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in trained.items()}
    from safetensors.torch import save_file

    stored = stored_form(model, rounded, stored_tensors(learner_directory / "model"))
    (tmp_path / "config.json").write_bytes((learner_directory / "model" / "config.json").read_bytes())
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = dict(load_model(tmp_path, settings).named_parameters())
    assert loaded.keys() == rounded.keys()
    for name, parameter in loaded.items():
        assert torch.equal(parameter.detach(), rounded[name].float()), name


def test_a_tensor_that_the_directory_has_not_is_named(learner_directory: Path) -> None:
    model = load_model(learner_directory / "model", LearnerSettings(model="m"))
    stored = stored_tensors(learner_directory / "model")
    whole = {name: parameter.detach() for name, parameter in model.named_parameters()}
    del stored["model.layers.1.mlp.experts.2.up_proj.weight"]
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.2\.up_proj\.weight .* no such tensor"):
        stored_form(model, whole, stored)


def test_a_tensor_of_the_directory_that_the_network_has_not_is_named_unless_it_is_a_prediction_head(
    learner_directory: Path,
) -> None:
    """Engines refuse a publication that lacks a tensor of their directory: nothing would ever be applied."""
    model: Any = load_model(learner_directory / "model", LearnerSettings(model="m"))
    stored = stored_tensors(learner_directory / "model")
    whole = {name: parameter.detach() for name, parameter in model.named_parameters()}
    head = f"model.layers.{model.config.num_hidden_layers}.eh_proj.weight"
    with pytest.raises(ModelError, match=rf"holds 1 tensors that the network has not, first {head}; allowed"):
        stored_form(model, whole, {**stored, head: (4, 8)})
    model.config.num_nextn_predict_layers = 1
    assert stored_form(model, whole, {**stored, head: (4, 8)}).keys() == stored.keys()


def test_a_directory_that_no_publication_would_fit_is_refused_before_training(
    learner_directory: Path, tmp_path: Path
) -> None:
    """Told from config.json and names alone: transformers makes up what the directory lacks, with a warning."""
    model = learner_directory / "model"
    stored = stored_tensors(model)
    refuse_unpublishable(model, stored)
    with pytest.raises(ModelError, match=r"network has not, first model\.layers\.0\.extra; allowed"):
        refuse_unpublishable(model, {**stored, "model.layers.0.extra": (2,)})
    context = RunContext("run", tmp_path, "nowhere:9", 1, (tmp_path / "blobs").as_uri())
    check_settings(LearnerSettings(model=str(model)), context)
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"tensor model\.norm\.weight has shape .* no such tensor"):
        check_settings(LearnerSettings(model=str(broken)), context)
