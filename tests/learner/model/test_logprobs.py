"""Chunked log-probabilities and entropy against the dense computation."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.model import logprobs
from learner.model.logprobs import token_logprobs_and_entropy
from tests.learner.conftest import run_ranks


def dense(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logp = torch.log_softmax((hidden @ weight.t()).to(wide) / temperature, dim=-1)
    return logp[torch.arange(len(targets)), targets], -(logp.exp() * logp).sum(-1)


def case(tokens: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(tokens)
    hidden = (torch.randn(tokens, 16, generator=g, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    weight = torch.randn(37, 16, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, 37, (tokens,), generator=g)


@pytest.fixture(params=[2048, 8, 1], ids=["one block", "many blocks", "one token of the vocabulary a block"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of so many tokens of the vocabulary; that of these tests fits into the first."""
    monkeypatch.setitem(logprobs._TILE, "cpu", (1024, request.param))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("tokens", [1, 7, 24])
@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("read", ["logp", "entropy", "both"])
def test_equals_dense_in_value_and_gradient(tokens: int, chunk: int, temperature: float, read: str) -> None:
    hidden, weight, targets = case(tokens)
    got = token_logprobs_and_entropy(hidden, weight, targets, chunk, temperature=temperature)
    expected = dense(hidden, weight, targets, temperature)
    w = torch.linspace(-1, 2, tokens, dtype=torch.float64)

    def scalar(pair: tuple[Tensor, Tensor]) -> Tensor:
        return {"logp": pair[0] @ w, "entropy": pair[1] @ w, "both": pair[0] @ w + pair[1].square().sum()}[read]

    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(scalar(got), (hidden, weight)),
        torch.autograd.grad(scalar(expected), (hidden, weight)),
        rtol=1e-10,
        atol=1e-12,
    )


def test_blocks_of_the_real_tile_equal_dense() -> None:
    """Many blocks of the vocabulary, two of the tokens. The dense way in float32 is off here: 6e-5, gradients 5e-4."""
    g = torch.Generator().manual_seed(1)
    hidden = (2 * torch.randn(80, 8, generator=g)).requires_grad_()
    weight = torch.randn(150_001, 8, generator=g).requires_grad_()
    targets = torch.randint(0, 150_001, (80,), generator=g)
    targets[:2] = torch.tensor([0, 150_000])
    wide = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    got, expected = token_logprobs_and_entropy(hidden, weight, targets, 50), dense(*wide, targets)
    slopes = torch.autograd.grad(got[0].sum() + got[1].sum(), (hidden, weight))
    slopes_expected = torch.autograd.grad(expected[0].sum() + expected[1].sum(), wide)
    for mine, exact in zip((*got, *slopes), (*expected, *slopes_expected), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_narrow_dtypes_match_the_dense_computation_in_the_same_dtype(dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets = case(24, dtype)
    got, expected = token_logprobs_and_entropy(hidden, weight, targets, 7), dense(hidden, weight, targets)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(
        torch.autograd.grad(got[0].sum(), (hidden, weight)),
        torch.autograd.grad(expected[0].sum(), (hidden, weight)),
        strict=True,
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)


def test_gradcheck() -> None:
    hidden, weight, targets = case(5)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs_and_entropy(h, w, targets, 2), (hidden, weight))


def test_no_tokens() -> None:
    hidden, weight, targets = case(0)
    logp, entropy = token_logprobs_and_entropy(hidden, weight, targets, 4)
    assert logp.shape == entropy.shape == (0,)
    torch.autograd.backward(logp.sum() + entropy.sum())
    assert weight.grad is not None and weight.grad.abs().sum().item() == 0.0


@pytest.mark.usefixtures("tiles")
def test_a_certain_policy_has_entropy_zero_and_finite_gradients() -> None:
    hidden, weight, targets = case(6, torch.float32, scale=1e4)
    logp, entropy = token_logprobs_and_entropy(hidden, weight, targets, 4)
    assert logp.isfinite().all() and (entropy >= 0).all() and (entropy < 1e-3).all()
    grads = torch.autograd.grad(logp.sum() + entropy.sum(), (hidden, weight))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.usefixtures("tiles")
def test_a_token_of_probability_zero_is_no_nan() -> None:
    hidden, weight, targets = case(6, torch.float32)
    with torch.no_grad():
        hidden.abs_()
        weight[3] = -torch.inf
    targets[targets == 3] = 4
    logp, entropy = token_logprobs_and_entropy(hidden, weight, targets, 4)
    assert logp.isfinite().all() and entropy.isfinite().all()
    expected = dense(hidden.detach(), weight.detach()[[v for v in range(37) if v != 3]], targets - (targets > 3).long())
    torch.testing.assert_close((logp, entropy), expected, rtol=1e-5, atol=1e-5)


def test_gradient_only_where_it_is_asked_for() -> None:
    hidden, weight, targets = case(6)
    logp, _ = token_logprobs_and_entropy(hidden.detach(), weight, targets, 4)
    torch.autograd.backward(logp.sum())
    assert hidden.grad is None and weight.grad is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"targets": torch.full((6,), 37)}, "from 37 to 37.*0 to 36"),
        ({"targets": torch.full((6,), -100)}, "from -100"),
        ({"targets": torch.zeros(5, dtype=torch.int64)}, r"\[5\].*int64 \[6\]"),
        ({"hidden": torch.zeros(6, 3)}, r"\[6, 3\]"),
        ({"hidden": torch.zeros(6, 16)}, "float32.*float64"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], words: str) -> None:
    hidden, weight, targets = case(6)
    with pytest.raises(ValueError, match=words):
        token_logprobs_and_entropy(
            **{"hidden": hidden, "weight": weight, "targets": targets, "chunk_tokens": 4, **change}
        )


MEMORY = """
import re, torch
from pathlib import Path
from learner.model.logprobs import token_logprobs_and_entropy
torch.set_num_threads(1)
T, V, H = 2048, 32768, 16
hidden, weight = torch.randn(T, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
targets = torch.randint(0, V, (T,))
def run(tokens, chunk):
    logp, entropy = token_logprobs_and_entropy(hidden[:tokens], weight, targets[:tokens], chunk)
    (logp.sum() + entropy.sum()).backward()
    weight.grad = hidden.grad = None
def kib(field):
    # Not ru_maxrss: a child starts with its parent's, and then nothing here could exceed it.
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
run(1, 1)
for chunk in (2048, 128):
    Path("/proc/self/clear_refs").write_text("5")
    before = kib("VmRSS")
    run(T, chunk)
    print((kib("VmHWM") - before) / 1024)
"""


def test_memory_is_bounded_by_the_tile_whatever_the_chunk() -> None:
    """Dense holds 256 MiB of float32 logits per copy. Two tiles are 16 MiB, the gradients of both inputs 2.1 MiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=True)
    risen_mib = [float(line) for line in done.stdout.split()]
    assert len(risen_mib) == 2 and risen_mib[0] >= 8 and max(risen_mib) < 80, f"{risen_mib} MiB above the start"


def test_a_sharded_head_under_fsdp2(zygote: Any, tmp_path: Path) -> None:
    """Two real ranks: the head's rows are dealt out unevenly, and gradients are the mean over ranks."""
    for results in run_ranks(zygote, 2, tmp_path, ["sharded_head"]):
        found = results["sharded_head"]
        assert len(found) == 3
        for name, errors in found.items():
            assert errors["rows"] in (18, 19), name
            # bf16 weights: the gradient is rounded once more on its way, two to the minus eight of its size.
            bound = 1e-5 if name.startswith("f32") else 1e-2
            assert errors["value"] < 1e-5 and errors["head"] < bound and errors["body"] < bound, (name, errors)
