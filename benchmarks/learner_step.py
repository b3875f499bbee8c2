"""Time one learner step on short rollouts: proximal, native and update passes, gathering, publishing, checkpointing.

    python benchmarks/learner_step.py --ranks 2 --steps 10
    python benchmarks/learner_step.py --model models/tiny-moe --precision bf16 --json

Every rank is its own process with one torch thread over gloo, as in a run. Prints medians in milliseconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.checkpoint.manager import CheckpointManager
from learner.checkpoint.manifest import Position
from learner.checkpoint.retention import Retention
from learner.model.packed_row import Rollout
from learner.model.policy import build_policy, model_shape, stored_tensors
from learner.ranks.group import join_group, leave_group
from learner.ranks.lifeline import rendezvous
from learner.settings import LearnerSettings, PrecisionSettings
from learner.training.step import Trainer
from learner.weights import gather, stored_form, write_files


def build_tiny(directory: Path) -> None:
    """The demo's architecture with random weights."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        max_position_embeddings=256,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def rollouts(
    count: int, rank: int, world: int, size: int, layers: int, experts: int, vocabulary: int
) -> list[list[Rollout]]:
    """This rank's share in micro-batches of `size`: prompts of 4-10 tokens, responses of 4-40, mean 18."""
    generator = torch.Generator().manual_seed(7)
    drawn = []
    for index in range(count):
        prompt = int(torch.randint(4, 11, (), generator=generator))
        response = int(torch.randn((), generator=generator).mul(9).add(18).clamp(4, 40))
        tokens = torch.randint(3, vocabulary, (prompt + response,), generator=generator)
        routes = torch.rand(prompt + response, layers, experts, generator=generator).topk(2).indices.to(torch.int16)
        logp = torch.full((response,), -4.0)
        drawn.append(Rollout(f"r{index}", tokens, prompt, logp, routes, 1.0 if index % 2 else -1.0, float(index % 2)))
    own = drawn[rank::world]
    return [own[start : start + size] for start in range(0, len(own), size)]


def write(model: Any, whole: Mapping[str, Tensor], stored: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """What publication does before the upload."""
    write_files(stored_form(model, whole, stored), directory, 2**32)


def measure(rank: int, args: argparse.Namespace, model: Path, directory: Path) -> dict[str, float]:
    """One rank: the medians over all steps but the first two."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    settings = LearnerSettings(
        model=str(model),
        ranks=args.ranks,
        precision=PrecisionSettings(compute=args.precision),
        updates_per_batch=args.updates,
        attention=args.attention,
    )
    ranks = join_group(rendezvous(rank, args.ranks, directory, 60), 60)
    policy = build_policy(model, settings, ranks.mesh)
    shape = model_shape(policy.model, None)
    trainer = Trainer(policy, shape, settings, ranks)
    checkpoints = CheckpointManager(directory / "checkpoints", str(model), Retention(2), ranks)
    micro_batches = rollouts(
        args.rollouts, rank, args.ranks, args.micro_batch, shape.moe_layers, shape.experts, shape.vocabulary
    )
    stored = stored_tensors(model)
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        times.setdefault(name, []).append(1000 * (time.perf_counter() - started))
        return result

    for step in range(args.steps):
        report = timed("step", partial(trainer.train, micro_batches, step))
        for phase in ("proximal", "update"):
            times.setdefault(phase, []).append(1000 * report.metrics[f"time/{phase}_s"])
        whole = timed("gather", partial(gather, policy, rank))
        if rank == 0:
            timed("write", partial(write, policy.model, whole, stored, directory))
        staged = timed("checkpoint: copy", partial(checkpoints.stage, trainer.state()))
        timed("checkpoint: write", partial(checkpoints.save, Position(step=step), staged))
    leave_group()
    return {name: round(statistics.median(values[2:] or values), 1) for name, values in times.items()}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=64, help="sequences of a batch, over all ranks")
    parser.add_argument("--attention", choices=("packed", "sdpa", "eager"), default="packed")
    parser.add_argument("--updates", type=int, default=1, help="optimizer updates a batch")
    parser.add_argument("--micro-batch", type=int, default=16, help="sequences packed into one row")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--model", type=Path, help="model directory; default: the demo's architecture, random")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> int:
    args = arguments(None)
    if args.rank is not None:
        result = measure(args.rank, args, args.model, args.directory)
        if args.rank == 0:
            print(json.dumps(result))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        model = args.model or directory / "model"
        if args.model is None:
            build_tiny(model)
        command = [sys.executable, __file__, *sys.argv[1:], "--model", str(model), "--directory", scratch, "--rank"]
        children = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(args.ranks)
        ]
        outputs = [child.communicate(timeout=600)[0] for child in children]
    if any(child.returncode for child in children):
        return 1
    medians = json.loads(outputs[0].splitlines()[-1])
    if args.json:
        print(json.dumps(medians))
    else:
        for name, value in medians.items():
            print(f"{name:18} {value:8.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
