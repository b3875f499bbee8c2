"""What the canary sees: healthy engines and faulty ones, against the bound that the engine itself sets.

    python -m benchmarks.canary [--model models/tiny-moe] [--kinds bf16,kv8,fp8] [--seed 0]
    python examples/first-hour/make_model.py --out runs/chat && python -m benchmarks.canary --model runs/chat \
        --max-model-len 768

For each kind of precision a real vLLM engine samples rollouts to prompts of the model (chat messages of the directory's
train.jsonl where there are any, else running sums). The learner's own code chooses the set from them, takes the
rounding from the engine's recorded log-probs and scores the set with the float32 weights; then the engine scores it
under the same weights (healthy: the least and the largest of `--sets` sets) and under faulty ones. `seen` is what the
run would say: an alarm is a mean |Δ log p| above the bound.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from streams.processes.amx import apply_environment

apply_environment()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from learner.model.packed_row import Rollout  # noqa: E402
from learner.model.policy import Policy, load_model  # noqa: E402
from learner.settings import LearnerSettings  # noqa: E402
from learner.weights.canary import CanarySet, bound_of, canary_row, compare  # noqa: E402
from producers.rollouts.engine.engine import RolloutEngine  # noqa: E402
from producers.rollouts.engine.settings import EngineSettings  # noqa: E402
from producers.rollouts.engine.weight_files import WeightFile  # noqa: E402
from producers.rollouts.prompt_encoder import PromptEncoder  # noqa: E402
from producers.rollouts.weights.canary import scores  # noqa: E402
from schemas import Canary, Sampling  # noqa: E402
from schemas.parts import Message  # noqa: E402

KINDS: Final[dict[str, dict[str, Any]]] = {
    "bf16": {"precision": "bf16", "kv_cache_dtype": "auto"},
    "kv8": {"precision": "bf16", "kv_cache_dtype": "fp8"},
    "fp8": {"precision": "fp8", "kv_cache_dtype": "fp8"},
}
Tensors = dict[str, torch.Tensor]


class Alone:
    """One rank."""

    device = torch.device("cpu")

    def exchange(self, data: bytes) -> list[bytes]:
        """What every rank says: what this one does."""
        return [data]


def prompts_of(model: Path, count: int) -> list[list[int]]:
    """Token ids of `count` different prompts."""
    encoder = PromptEncoder(model)
    data = model / "train.jsonl"
    if not data.is_file():
        sums = (f"{1 + n % 9}+{1 + n // 9 % 9}+{1 + n // 3 % 9}+4=" for n in range(count))
        return [encoder.encode(text, None).tolist() for text in sums]
    rows = [json.loads(line)["messages"] for line in data.read_text().splitlines()[:count]]
    return [
        encoder.encode(None, [Message(role=turn["role"], content=turn["content"]) for turn in row]).tolist()
        for row in rows
    ]


def one_layer_negated(tensors: Tensors, layer: int) -> Tensors:
    """The sign of one attention matrix."""
    name = f"model.layers.{layer}.self_attn.o_proj.weight"
    return tensors | {name: -tensors[name]}


def the_next_layers_weights(tensors: Tensors, layer: int) -> Tensors:
    """Everything of one layer from the one before it."""
    own = f"model.layers.{layer}."
    return tensors | {name: tensors[name.replace(own, f"model.layers.{layer - 1}.")] for name in tensors if own in name}


def experts_in_another_order(tensors: Tensors, layer: int) -> Tensors:
    """The experts of one layer, each in the place of its neighbour."""
    names = [name for name in tensors if f"model.layers.{layer}." in name and re.search(r"\.experts\.\d+\.", name)]
    count = 1 + max(int(found[1]) for name in names if (found := re.search(r"\.experts\.(\d+)\.", name)))

    def neighbour(name: str) -> str:
        return re.sub(r"\.experts\.(\d+)\.", lambda found: f".experts.{(int(found[1]) + 1) % count}.", name)

    return tensors | {name: tensors[neighbour(name)] for name in names}


FAULTS: Final[dict[str, Callable[[Tensors, int], Tensors]]] = {
    "one attention matrix negated": one_layer_negated,
    "a layer with the weights of another": the_next_layers_weights,
    "the experts of a layer in another order": experts_in_another_order,
}


def stepped(policy: Policy, rows: Sequence[Sequence[int]], tensors: Tensors, rate: float) -> Tensors:
    """The weights after one step of Adam, whose first moves every weight by the rate, that makes the rows likelier."""
    policy.zero_grad()
    logp, _ = policy(canary_row(rows))
    (-logp.mean()).backward()
    moved = {name: tensor.float() for name, tensor in tensors.items()}
    for name, parameter in policy.named_parameters():
        own = given_name(name, moved)
        if own is not None and parameter.grad is not None and moved[own].shape == parameter.shape:
            moved[own] = moved[own] - rate * parameter.grad.sign()
    policy.zero_grad()
    return {name: moved[name].to(tensor.dtype) for name, tensor in tensors.items()}


async def rollouts_of(engine: RolloutEngine, prompts: Sequence[Sequence[int]], tokens: int) -> list[Rollout]:
    """One rollout to each prompt, with what the engine recorded."""
    sampling = Sampling(max_tokens=tokens)
    made = await asyncio.gather(*(engine.generate(ids, sampling, f"r{n}", seed=n) for n, ids in enumerate(prompts)))
    return [
        Rollout(
            rollout_id=str(number),
            tokens=torch.tensor([*ids, *generation.response_ids.tolist()], dtype=torch.int64),
            prompt_tokens=len(ids),
            logp_rollout=torch.tensor(generation.logprobs),
            routes=None,
            advantage=0.0,
            reward=0.0,
        )
        for number, (ids, generation) in enumerate(zip(prompts, made, strict=True))
    ]


async def measured(
    args: argparse.Namespace, kind: str, policy: Policy, tensors: Tensors, files: Path
) -> dict[str, Any]:
    """Every condition of one kind of precision."""
    settings = EngineSettings(
        model=str(args.model),
        max_model_len=args.max_model_len,
        max_num_seqs=16,
        extra={"worker_extension_cls": "tests.producers.rollouts.faulty_reload.FaultyReloadExtension"},
        **KINDS[kind],
    )
    engine = RolloutEngine(settings)
    await engine.start()
    ranks: Any = Alone()
    version = 0

    async def drift(canary: Canary, weights: Tensors | None) -> tuple[float, float]:
        nonlocal version
        if weights is not None:
            version += 1
            path = files / f"{kind}-{version}.safetensors"
            save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, path, {"format": "pt"})
            await engine.update_weights(version, [WeightFile(path)])
            path.unlink()
        found = compare(canary, await scores(engine, canary, f"c{version}-{np.random.bytes(4).hex()}"), version, "p")
        return found.mean, found.max

    try:
        rollouts = await rollouts_of(engine, prompts_of(args.model, 16 * args.sets), args.tokens)
        sets = []
        for number in range(args.sets):
            held = CanarySet(policy, ranks, None)
            held.prepare([rollouts[number :: args.sets]])
            if (found := held.score()) is not None:
                sets.append(found)
        canary = sets[0]
        rows: dict[str, tuple[float, float]] = {}
        healthy = [await drift(each, None) for each in sets]
        rows["healthy, least of the sets"], rows["healthy, largest of the sets"] = min(healthy), max(healthy)
        rows["healthy after an update"] = await drift(canary, tensors)
        for rate in args.rates:
            moved = stepped(policy, canary.rows(), tensors, rate)
            rows[f"one version old, learning rate {rate:g}"] = await drift(canary, moved)
        layer = args.layer
        for name, fault in FAULTS.items():
            rows[name] = await drift(canary, fault(tensors, layer))
        rpc: Any = engine._llm.collective_rpc
        await rpc("break_reload")
        rows["reload without the fix of the experts' prepacking"] = await drift(canary, tensors)
        await rpc("repair_reload")
        rows["healthy after all of it"] = await drift(canary, tensors)
    finally:
        await engine.stop()
    compared = [int(each.compared().sum()) for each in sets]
    bounds = [bound_of(each, None) for each in sets]
    return {"kind": kind, "rounding": canary.rounding, "bound": bounds[0], "bounds": bounds, "compared": compared,
            "rows": rows}  # fmt: skip


def given_name(name: str, tensors: Tensors) -> str | None:
    """A parameter's name in the checkpoint."""
    return next((given for given in tensors if name.endswith(given)), None)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/tiny-moe"))
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=48, help="of a response at most")
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--layer", type=int, default=1, help="the one that is faulty")
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-6, 3e-4], help="of the step that is missing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    settings = LearnerSettings(model=str(args.model))
    policy = Policy(load_model(args.model, settings), settings.chunk_tokens)
    tensors = load_file(args.model / "model.safetensors")
    with tempfile.TemporaryDirectory() as files:
        found = [asyncio.run(measured(args, kind, policy, tensors, Path(files))) for kind in args.kinds]
    if args.json:
        print(json.dumps(found))
        return 0
    for each in found:
        print(
            f"\n{each['kind']}: rounding {each['rounding']:.4f}, bound {each['bound']:.3f} "
            f"({min(each['bounds']):.3f} to {max(each['bounds']):.3f} over the sets), "
            f"tokens compared {min(each['compared'])} to {max(each['compared'])}"
        )
        print(f"{'':<52}{'mean':>9}{'max':>9}  seen")
        for name, (mean, largest) in each["rows"].items():
            print(f"{name:<52}{mean:>9.4f}{largest:>9.3f}  {'alarm' if not mean <= each['bound'] else '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
