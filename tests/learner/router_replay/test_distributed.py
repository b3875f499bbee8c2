"""Router replay under FSDP2 on two real gloo ranks, with activation checkpointing and late backward passes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from learner.router_replay import moe_routers, recorded, replayed
from tests.learner.router_replay.tiny_families import build, random_routes, scalar, tokens

RANKS = 2
TRAINED = ("Qwen3Moe", "Mixtral", "Olmoe", "DeepseekV3")


def sharded(model: Any, **policy: Any) -> Any:
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=MixedPrecisionPolicy(**policy))
    return fully_shard(model, mp_policy=MixedPrecisionPolicy(**policy))


def check_gradients(family: str, rank: int) -> None:
    """Two micro-batches a rank, each rank its own routes; the gradient is the mean over ranks of the plain model's."""
    plain, model = build(family), build(family)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    sharded(model)
    layers = len(moe_routers(plain))

    def share(of_rank: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
        seed = 10 * of_rank + part
        return tokens(seed=seed), random_routes(14, layers, seed=seed)

    flips = []
    for of_rank in range(RANKS):
        for part in range(2):
            ids, routes = share(of_rank, part)
            with replayed(plain, routes) as replay:
                loss = scalar(plain(ids).logits) / RANKS
            torch.autograd.backward(loss)
            if of_rank == rank:
                flips.append(replay.flips())
    losses = []
    for part in range(2):
        ids, routes = share(rank, part)
        with replayed(model, routes) as replay:
            losses.append(scalar(model(ids).logits))
        assert replay.flips().flipped.tolist() == flips[part].flipped.tolist()
        assert replay.flips().share > 0.2
    for loss in losses:
        torch.autograd.backward(loss)
    for (name, expected), got in zip(plain.named_parameters(), model.parameters(), strict=True):
        if expected.grad is None:
            assert got.grad is None, name
            continue
        assert isinstance(got.grad, DTensor)
        torch.testing.assert_close(got.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-7, msg=name)


def check_own_routes(family: str, experts: str, precision: str) -> None:
    """Replay of the routes that the sharded model itself has chosen: logits and gradients to the last bit."""
    policy = {} if precision == "f32" else {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    model = sharded(build(family, experts), **policy)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()

    def gradients(logits: torch.Tensor) -> list[torch.Tensor | None]:
        torch.autograd.backward(scalar(logits))
        found = [None if p.grad is None else p.grad.full_tensor().clone() for p in model.parameters()]
        # Now, and not before the next backward pass: between a forward pass and that FSDP2 shows the whole parameters.
        model.zero_grad()
        return found

    with recorded(model) as record:
        native = model(tokens()).logits
    expected = gradients(native)
    with replayed(model, record.routes) as replay:
        again = model(tokens()).logits
    case = f"{family}, {experts}, {precision}"
    assert native.dtype == (torch.float32 if precision == "f32" else torch.bfloat16)
    assert torch.equal(native, again), case
    assert replay.flips().share == 0.0 and int(replay.flips().decisions.sum()) > 0, case
    for one, other in zip(expected, gradients(again), strict=True):
        assert (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other)), (
            case
        )
    # What was compared depends on the routes: another token's give other logits.
    with replayed(model, record.routes.roll(1, 0)):
        assert not torch.equal(model(tokens()).logits, native), case


def worker() -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING_POINT"], rank=rank, world_size=RANKS)

    for family in TRAINED:
        check_gradients(family, rank)
        for experts in ("eager", "grouped_mm"):
            for precision in ("f32", "bf16"):
                check_own_routes(family, experts, precision)
    dist.destroy_process_group()


def test_replay_under_fsdp2(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, __file__],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(RANKS),
                "MEETING_POINT": f"file://{tmp_path / 'store'}",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[3]),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    worker()
