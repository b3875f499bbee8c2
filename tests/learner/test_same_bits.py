"""The same seed and the same log give the same weights, bit for bit: two independent services, on a log each.

The comparison is sharp enough: the same rollouts summed in another order give weights that differ by rounding, which it
detects.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from schemas import WeightsPublished
from tests.learner.service_run import Run, end, write_batches

STEPS = 4
Ranks = tuple[tuple[tuple[int, ...], ...], ...]

IN_ORDER: Ranks = (((0,), (1,), (2,), (3,)), ((4,), (5,), (6,), (7,)))
"""Four micro-batches a rank: the order of two would not show, for a + b is b + a to the last bit."""
TURNED: Ranks = (((3,), (1,), (0,), (2,)), ((4,), (7,), (6,), (5,)))


async def train_run(run: Run, name: str, ranks: Ranks = IN_ORDER) -> tuple[Run, list[str]]:
    """A separate run on the same batches; digests of what it published, and of its checkpoint's weights, moments and
    generators in float32."""
    other = await run.another(name, max_steps=STEPS, checkpoint_every=STEPS)
    await write_batches(other, 0, STEPS, ranks=ranks)
    with other.ranks() as children:
        await other.published(STEPS, children)
        assert await end(children) == [0, 0], other.complaint(0) + other.complaint(1)
    published = [event.digest for event in await other.events("weights") if isinstance(event, WeightsPublished)]
    assert len(published) == STEPS and None not in published
    manifest = json.loads((checkpoint(other) / "manifest.json").read_text())
    return other, [*map(str, published), *(file["digest"] for file in manifest["checkpoint"]["files"])]


def checkpoint(run: Run) -> Path:
    return run.context.directory / "checkpoints" / f"step-{STEPS}"


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """All ranks' tensors, by file and name."""
    return {
        f"{path.name} {name}": tensor
        for path in sorted(checkpoint(run).glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


async def test_the_same_log_gives_the_same_bits_and_another_order_does_not(run: Run) -> None:
    first, digests = await train_run(run, "a")
    _, again = await train_run(run, "b")
    assert again == digests
    turned, otherwise = await train_run(run, "c", TURNED)
    assert otherwise != digests
    mine, theirs = tensors(first), tensors(turned)
    assert mine.keys() == theirs.keys() and len(mine) > 0
    weights = [name for name in mine if " model." in name]
    assert weights and any(not torch.equal(mine[name], theirs[name]) for name in weights)
    for name in weights:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-3, rtol=1e-2)
