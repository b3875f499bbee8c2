"""The models of the regimes: the demo's recipe with other experts, and a router whose logits lie far from zero."""

import importlib.util
import itertools
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from benchmarks.replay.regimes import Regime

RECIPE: Final = Path("scripts/build_tiny_model.py")
SEQUENCES = 256
RIDGE = 1e-3


def model_of(regime: Regime, directory: Path) -> Path | None:
    """The directory of the regime's model, made below `directory` where it is not there; None: the demo's own."""
    if (regime.experts, regime.top_k) == (8, 2) and not regime.router_offset:
        return None
    built = directory / f"model-{regime.experts}-top{regime.top_k}"
    if not (built / "config.json").exists():
        command = [sys.executable, str(RECIPE), "--out", str(built), "--prompts", str(directory / "prompts")]
        command += ["--experts", str(regime.experts), "--top-k", str(regime.top_k)]
        command += ["--steps", str(regime.warm_start_steps), "--threads", "1"]
        subprocess.run(command, stdout=sys.stderr, timeout=1800, check=True)
    if not regime.router_offset:
        return built.resolve()
    moved = built.with_name(f"{built.name}-offset{regime.router_offset:g}")
    if not (moved / "config.json").exists():
        offset_router_logits(built, moved, regime.router_offset)
    return moved.resolve()


def offset_router_logits(source: Path, target: Path, offset: float) -> None:
    """The model in `source` with about `offset` added to all of a token's router logits alike, written to `target`.

    Softmax and top-k do not see what is common to a token's logits, so in exact arithmetic it is the same model; bf16
    has 8 bits for logits of this size, and neighbours become equal. A router trained without a penalty on large logits
    drifts to such a place (router z-loss, arXiv 2202.08906, section 3). Each router row gets one and the same vector
    u, the ridge regression of the constant `offset` on the router's inputs over demonstrations.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    recipe = _recipe()
    _, held_back = recipe.draw_prompts(random.Random("prompts 0"))
    pairs = recipe.demonstrations(held_back, 0.3, random.Random("shift"))
    input_ids, mask, _ = recipe.collate(tokenizer, list(itertools.islice(pairs, SEQUENCES)))
    inputs: dict[int, torch.Tensor] = {}
    routers = [layer.mlp.gate for layer in model.model.layers]
    for number, router in enumerate(routers):
        router.register_forward_hook(lambda _m, args, _o, number=number: inputs.update({number: args[0]}))
    with torch.no_grad():
        model(input_ids=input_ids, attention_mask=mask)
        for number, router in enumerate(routers):
            hidden = inputs[number].reshape(mask.numel(), -1)[mask.reshape(-1).bool()].double()
            square = hidden.T @ hidden / len(hidden)
            ridge = RIDGE * torch.eye(len(square), dtype=square.dtype)
            router.weight += torch.linalg.solve(square + ridge, offset * hidden.mean(0)).float()
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _recipe() -> ModuleType:
    """`scripts/build_tiny_model.py`, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(RECIPE.stem, RECIPE)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{RECIPE} is not there; allowed: the repository's root as working directory")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
