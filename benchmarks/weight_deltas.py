"""Bytes of published weights: deltas between real AdamW steps of the tiny model against full anchors and the entropy.

    python benchmarks/weight_deltas.py
    python benchmarks/weight_deltas.py --rates 1e-6 1e-5 3e-4 --steps 8 --copies 50 --json

Each step is a policy gradient with signed advantages over the demo's prompts, on float32 master weights; what is
published is their bf16 rounding, or its FP8 blocks. Per learning rate and wire, of the last step: the share of elements
that changed, bytes of an anchor and of the delta, the entropy of changed positions and values
(`streams.weights.entropy`) and the ratio. `ulp` is the entropy if values were differences in units of the
last place, which are fewer bits but no longer idempotent. `--copies` repeats the tensors for the times, for which a
tiny model is too small.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from learner.model.policy import load_model, stored_tensors
from learner.settings import LearnerSettings
from learner.weights import as_stored, stored_form
from streams.weights import StoredTensor, state_digest, tensor_digest
from streams.weights.blocks import to_fp8
from streams.weights.delta import Delta, Patch, applied, decode, difference, encode, layout_of
from streams.weights.entropy import entropy_bits

ROOT = Path(__file__).parents[1]
SEQUENCES = 64
State = dict[str, StoredTensor]
T = TypeVar("T")


def versions(model_directory: Path, rate: float, steps: int) -> tuple[State, State]:
    """The published tensors before and after the last of `steps` AdamW steps."""
    settings = LearnerSettings(model=str(model_directory), attention="sdpa")
    adamw = settings.optimizer
    torch.manual_seed(0)
    model: Any = load_model(model_directory, settings)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=rate,
        betas=(adamw.beta1, adamw.beta2),
        weight_decay=adamw.weight_decay,
    )
    rows = _rows(model_directory)
    last: list[State] = []
    for step in range(steps):
        tokens = rows[torch.randint(len(rows), (SEQUENCES,))]
        advantages = torch.randn(SEQUENCES, 1)
        logp = torch.log_softmax(model(input_ids=tokens[:, :-1]).logits.float(), -1)
        taken = logp.gather(-1, tokens[:, 1:, None])[..., 0]
        loss = -(advantages * taken * (tokens[:, 1:] != 0)).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), adamw.max_grad_norm)
        if step == steps - 1:
            last.append(_published(model, model_directory))
        optimizer.step()
        optimizer.zero_grad()
    last.append(_published(model, model_directory))
    return last[0], last[1]


def _rows(model_directory: Path) -> torch.Tensor:
    """Prompts with their answers, `[prompts, 24]`, padded with 0."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    rows = torch.zeros(512, 24, dtype=torch.int64)
    lines = (ROOT / "models" / "running-sums" / "train.jsonl").read_text().splitlines()[: len(rows)]
    for row, line in zip(rows, lines, strict=True):
        prompt = json.loads(line)
        ids = tokenizer.encode(prompt["prompt"] + prompt["reference"]["answer"])[:24]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def _published(model: Any, directory: Path) -> State:
    whole = {name: parameter.detach().to(torch.bfloat16) for name, parameter in model.named_parameters()}
    return as_stored(stored_form(model, whole, stored_tensors(directory)))


def measure(base: State, new: State, wire: str, copies: int) -> dict[str, float]:
    """One delta's figures."""
    if wire == "fp8":
        base, new = to_fp8(base), to_fp8(new)
    patches = difference(base, new)
    assert patches is not None
    header = Delta(2, 1, _digest(base), patches)
    data = encode(header, layout_of(base))
    positions, values = entropy_bits(patches)
    changed = sum(len(patch.positions) for patch in patches.values())
    elements = sum(len(tensor.bits) for tensor in new.values())
    entropy_bytes = (positions + values) / 8
    many_base, many_new = _repeated(base, copies), _repeated(new, copies)
    found, difference_s = _timed(lambda: difference(many_base, many_new))
    assert found is not None
    layout = layout_of(many_base)
    coded, encode_s = _timed(lambda: encode(Delta(2, 1, "", found), layout))
    decoded, decode_s = _timed(lambda: decode(coded, layout))
    _, apply_s = _timed(lambda: {name: applied(many_base[name], patch) for name, patch in decoded.patches.items()})
    _, digest_s = _timed(lambda: _digest(many_new))
    size = sum(tensor.nbytes for tensor in many_new.values())
    return {
        "changed_share": changed / elements,
        "anchor_bytes": sum(tensor.nbytes for tensor in new.values()),
        "delta_bytes": len(data),
        "position_bytes": positions / 8,
        "value_bytes": values / 8,
        "ratio": len(data) / entropy_bytes,
        "ulp_bytes": (positions + _ulp_bits(base, patches)) / 8,
        "timed_bytes": size,
        "difference_s": difference_s,
        "encode_s": encode_s,
        "decode_s": decode_s,
        "apply_s": apply_s,
        "digest_s": digest_s,
    }


def _ulp_bits(base: Mapping[str, StoredTensor], patches: Mapping[str, Patch]) -> float:
    steps = np.concatenate(
        [patch.values.astype(np.int64) - base[name].bits[patch.positions] for name, patch in patches.items()]
    )
    _, counts = np.unique(steps, return_counts=True)
    return -float((counts * np.log2(counts / len(steps))).sum())


def _repeated(state: State, copies: int) -> State:
    return {f"{copy}.{name}": tensor for copy in range(copies) for name, tensor in state.items()}


def _digest(state: State) -> str:
    return state_digest({name: tensor_digest(tensor) for name, tensor in state.items()})


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "tiny-moe")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-6, 1e-5, 1e-4, 3e-4])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for rate in args.rates:
        base, new = versions(args.model, rate, args.steps)
        for wire in ("bf16", "fp8"):
            found[f"{rate:g}/{wire}"] = measure(base, new, wire, args.copies)
    if args.json:
        print(json.dumps(found))
        return
    print("rate     wire  changed     anchor      delta   entropy (positions + values)  ratio   ulp entropy")
    for name, row in found.items():
        rate, wire = name.split("/")
        entropy = row["position_bytes"] + row["value_bytes"]
        print(
            f"{rate:8} {wire:5} {row['changed_share']:7.2%} {row['anchor_bytes']:10,.0f} {row['delta_bytes']:10,.0f} "
            f"{entropy:9,.0f} ({row['position_bytes']:,.0f} + {row['value_bytes']:,.0f})  {row['ratio']:5.3f} "
            f"{row['ulp_bytes']:9,.0f}"
        )
    row = next(iter(found.values()))
    size = row["timed_bytes"]
    print(f"times, {size / 1e6:.0f} MB of tensors, one thread, {next(iter(found))}:", end=" ")
    names = ("difference_s", "encode_s", "decode_s", "apply_s", "digest_s")
    print(
        ", ".join(f"{n.removesuffix('_s')} {row[n]:.2f} s ({size / max(row[n], 1e-9) / 1e6:,.0f} MB/s)" for n in names)
    )
    worst = max(row["ratio"] for row in found.values())
    print(f"worst ratio of delta to entropy {worst:.3f}, bound 1.5: {'kept' if worst <= 1.5 else 'BROKEN'}")
    raise SystemExit(0 if math.isfinite(worst) and worst <= 1.5 else 1)


if __name__ == "__main__":
    main()
