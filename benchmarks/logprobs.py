"""Time and memory of log-probabilities and entropy in tiles, against the dense computation.

    python benchmarks/logprobs.py
    python benchmarks/logprobs.py --tokens 32768 --dense-tokens 1024 --hidden 1024 --dtype bf16 --json

Forward and backward of both outputs. Times are medians over pairs that run one after the other, so that what else the
machine does hits both ways; the ratio of processor times leaves it out, best with `--threads 1`. Memory is the peak
above weights and hidden states, the gradients of both included, each in a process of its own: VmHWM of the pass, set
back before it (on CUDA: the allocator's peak), over VmRSS before the pass.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from streams.processes.amx import apply_environment

apply_environment()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from learner.model.logprobs import token_logprobs_and_entropy  # noqa: E402

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
Way = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def dense(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The whole matrix at once."""
    logp = torch.log_softmax((hidden @ weight.t()).float(), dim=-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(dim=-1)


def ways(chunk_tokens: int) -> dict[str, Way]:
    """Both, by name."""
    return {"dense": dense, "tiled": lambda h, w, y: token_logprobs_and_entropy(h, w, y, chunk_tokens)}


def inputs(tokens: int, args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head that makes a peaked policy of them, and targets."""
    torch.manual_seed(0)
    kind = {"dtype": DTYPES[args.dtype], "device": args.device}
    hidden = torch.randn(tokens, args.hidden, **kind)
    weight = torch.randn(args.vocabulary, args.hidden, **kind).mul_(2 * args.hidden**-0.5)
    targets = torch.randint(0, args.vocabulary, (tokens,), device=args.device)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def both_passes(way: Way, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[float, float]:
    """Seconds of forward and backward: on the clock, and of the processor."""
    hidden.grad = weight.grad = None
    started, worked = time.perf_counter(), time.process_time()
    logp, entropy = way(hidden, weight, targets)
    torch.autograd.backward(logp.sum() + 0.1 * entropy.sum())
    if hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - worked


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM. Not ru_maxrss: a child starts with its parent's."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def measure_memory(way: Way, tokens: int, args: argparse.Namespace) -> float:
    """MiB above the inputs."""
    hidden, weight, targets = inputs(tokens, args)
    both_passes(way, hidden[:1].detach().requires_grad_(), weight, targets[:1])
    weight.grad = None
    if hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
    both_passes(way, hidden, weight, targets)
    peak = torch.cuda.max_memory_allocated() if hidden.is_cuda else resident_bytes("VmHWM")
    return (peak - before) / 2**20


def measure_times(tokens: int, args: argparse.Namespace) -> dict[str, float]:
    """Medians in seconds, and of the pairs' ratio."""
    given = inputs(tokens, args)
    chosen = ways(args.chunk_tokens)
    pairs = [{name: both_passes(way, *given) for name, way in chosen.items()} for _ in range(args.repeats + 1)][1:]
    medians = {f"{name}_s": statistics.median(pair[name][0] for pair in pairs) for name in chosen}
    wall, cpu = ([pair["tiled"][clock] / pair["dense"][clock] for pair in pairs] for clock in (0, 1))
    return {**medians, "time_ratio": statistics.median(wall), "cpu_time_ratio": statistics.median(cpu)}


def in_child(what: str, tokens: int, arguments: list[str]) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, *arguments, "--child", what, "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} at {tokens} tokens ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def child(args: argparse.Namespace) -> dict[str, float]:
    """What `in_child` asked for."""
    torch.set_num_threads(args.threads)
    if args.child == "times":
        return measure_times(args.tokens, args)
    way = ways(args.chunk_tokens)[args.child]
    if args.device == "cpu" or torch.cuda.is_available():
        return {"peak_mib": measure_memory(way, args.tokens, args)}
    raise SystemExit(f"device {args.device!r} is not here")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Log-probs and entropy: tiles against the dense computation.")
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of the memory measurement")
    parser.add_argument("--dense-tokens", type=int, default=1024, help="tokens at which the dense way fits")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=64, help="width of the hidden states")
    parser.add_argument("--chunk-tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=list(DTYPES), default="f32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--child", choices=["times", "dense", "tiled"], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(json.dumps(child(args)))
        return
    result = {
        "tokens": args.tokens,
        "vocabulary": args.vocabulary,
        "hidden": args.hidden,
        "tiled_peak_mib": in_child("tiled", args.tokens, arguments)["peak_mib"],
        "dense_tokens": args.dense_tokens,
        **in_child("times", args.dense_tokens, arguments),
        "tiled_peak_mib_at_dense_tokens": in_child("tiled", args.dense_tokens, arguments)["peak_mib"],
        "dense_peak_mib_at_dense_tokens": in_child("dense", args.dense_tokens, arguments)["peak_mib"],
    }
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:32s} {value:,.2f}" if isinstance(value, float) else f"{name:32s} {value:,}")


if __name__ == "__main__":
    main(sys.argv[1:])
