"""One training on the stream, in its own process: the learner's Trainer, and the held-back pass rate on the way."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.objectives.stream import Stream, batches_of
from learner.model.policy import Policy, build_policy, load_model, model_shape
from learner.objective_settings import Objective, TisSettings
from learner.ranks.group import join_group, leave_group
from learner.ranks.lifeline import rendezvous
from learner.settings import LearnerSettings, ScheduleSettings
from learner.training.step import Trainer
from learner.weights import gather
from scripts.build_tiny_model import evaluate

KEPT = ("entropy", "clip_fraction", "grad_norm", "replay/k3_on", "reward")


def main() -> None:
    """Prints a JSON object at every evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stream", type=Path, required=True)
    parser.add_argument("--objective", required=True)
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    stream = msgspec.msgpack.decode(args.stream.read_bytes(), type=Stream)
    steps = len(stream.batches)
    settings = LearnerSettings(
        model=stream.model,
        objective=msgspec.convert({"kind": args.objective, **json.loads(args.settings)}, Objective),
        correction=TisSettings(),
        ranks=1,
        updates_per_batch=args.updates,
        schedule=ScheduleSettings(decay_steps=max(steps, 4)),
        measure_replay_every=0,
    )
    model = Path(stream.model)
    with tempfile.TemporaryDirectory() as scratch:
        ranks = join_group(rendezvous(0, 1, Path(scratch), 60), 60)
        policy = build_policy(model, settings, ranks.mesh)
        shape = model_shape(policy.model, None)
        trainer = Trainer(policy, shape, settings, ranks)
        held_back = _Examiner(model, settings, args.samples, args.seed)
        _say(0, held_back(policy), {})
        for step, batch in enumerate(batches_of(stream, shape, args.seed, 64)):
            metrics = trainer.train(batch, step).metrics
            if (step + 1) % args.every == 0 or step + 1 == steps:
                _say(step + 1, held_back(policy), metrics)
        leave_group()


class _Examiner:
    """Samples answers to the held-back prompts at temperature 1 with a plain copy of the model."""

    def __init__(self, model: Path, settings: LearnerSettings, samples: int, seed: int) -> None:
        from transformers import AutoTokenizer

        self._model: Any = load_model(model, msgspec.structs.replace(settings, attention="sdpa"))
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        rows = (model.parent / "running-sums" / "held_back.jsonl").read_text().splitlines()
        self._prompts = [tuple(int(n) for n in json.loads(row)["prompt"].rstrip("=").split("+")) for row in rows]
        self._samples, self._seed = samples, seed

    def __call__(self, policy: Policy) -> float:
        self._model.load_state_dict(gather(policy, 0))
        rate, _ = evaluate(
            self._model, self._tokenizer, self._prompts, self._samples, greedy=False, seed=1000 + self._seed
        )
        return rate


def _say(step: int, pass_rate: float, metrics: dict[str, float]) -> None:
    kept = {name: value for name, value in metrics.items() if name.startswith(KEPT) or "clip" in name}
    print(json.dumps({"step": step, "pass_rate": pass_rate, **kept}), flush=True)


if __name__ == "__main__":
    main()
