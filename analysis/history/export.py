"""A published version as a Hugging Face checkpoint directory, assembled from anchor and deltas, without torch."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Final

from analysis.errors import AnalysisError, RequestError
from analysis.history.records import clock
from analysis.history.weight_versions import WeightVersions
from streams.blobs.store import BlobStore
from streams.weights import StoredTensor, apply_deltas, chain_to, fetch_anchor, read_file, write_file
from streams.weights.blocks import to_bf16
from streams.weights.untrained import head_count, prediction_heads, read_model_config

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
"""Name endings of the model directory's own weights; all its other files are copied into the export."""


def export(published: WeightVersions, version: int, model: Path, blobs: BlobStore, out: Path) -> list[str]:
    """Write `version` to `out`, all of it or nothing, with the configuration and tokenizer of `model`.

    Returns the files' names. FP8 blocks become bfloat16. Multi-token prediction heads, which are not trained, are
    copied from the model directory, so that the export agrees with its configuration. RequestError: `out` exists.
    AnalysisError: a publication that it is assembled from is gone. BlobError, WeightsError: a file or tensor does not
    match its digest.
    """
    if out.exists():
        raise RequestError(f"--out is {out}, which is there already; allowed: a directory that is not there yet")
    try:
        chain = chain_to(version, published.events)
    except KeyError as missing:
        raise AnalysisError(
            f"weights {version} are a delta, and weights {missing} that they are made of are not on the log; there are "
            f"{published.ranges()}"
        ) from missing
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        held = fetch_anchor(blobs, chain[0], scratch / "anchor")
        if chain[1:]:
            held = apply_deltas(blobs, held, chain[1:], scratch / "applied")
        whole = scratch / "whole"
        whole.mkdir(mode=0o755)
        names = _write_weights([*(read_file(file.path) for file in held.files), *_heads(model)], whole)
        names += _copy_rest(model, whole)
        (whole / "README.md").write_text(_readme(published, version, model), encoding="utf-8")
        names = sorted({*names, "README.md"})
        whole.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(names)


def _heads(model: Path) -> list[dict[str, StoredTensor]]:
    """The model directory's prediction heads by file, memory-mapped; none where its configuration names none."""
    config = read_model_config(model)
    if not head_count(config):
        return []
    found = []
    for path in sorted(model.glob("*.safetensors")):
        tensors = read_file(path)
        if heads := prediction_heads(tensors, config):
            found.append({name: tensors[name] for name in heads})
    return found


def _write_weights(files: list[dict[str, StoredTensor]], out: Path) -> list[str]:
    """The files in bfloat16 under the names that loaders look for, with an index where there are several."""
    names: list[str] = []
    weight_map: dict[str, str] = {}
    total = 0
    for number, stored in enumerate(files, start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = to_bf16(stored)
        write_file(out / name, tensors)
        names.append(name)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        names.append("model.safetensors.index.json")
    return names


def _readme(published: WeightVersions, version: int, model: Path) -> str:
    """The export's own: the model directory's describes what the run began with."""
    event = published.events[version]
    began = "" if not (model / "README.md").is_file() else " Its README describes the model before that."
    return f"""# {model.name}, weights {version}

Trained by eachprompt for {event.parent_step} steps from the model {model.name}.{began}

| | |
|---|---|
| weights | version {version}, digest `{event.digest or "none"}` |
| published | {clock(event.time_s)} |
| made of | versions {", ".join(map(str, published.made_of(version) or [version]))} |
| precision | bfloat16 (published as {event.precision}) |

`transformers` and vLLM load this directory as it is:

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("THIS_DIRECTORY", dtype="bfloat16")
"""


def _copy_rest(model: Path, out: Path) -> list[str]:
    names = []
    for path in sorted(model.iterdir()):
        if path.name == "README.md":
            continue
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, out / path.name)
            names.append(path.name)
    # The model directory may hold weights of another type than those that are published.
    config = json.loads((out / "config.json").read_bytes())
    config["dtype"] = "bfloat16"
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return names
