"""Router replay on tiny stock transformers models, against the native pass and against layers written out by hand."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from learner.router_replay import moe_routers, recorded, replayed
from tests.learner.router_replay.tiny_families import (
    EXPERTS,
    FAMILIES,
    SHAPE,
    TOP_K,
    assert_same,
    build,
    gradients,
    random_routes,
    scalar,
    tokens,
)

# --- native and replayed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "experts"), list(product(FAMILIES, ["eager", "grouped_mm"])))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replaying_its_own_routes_is_bitwise_the_native_pass(family: str, experts: str, dtype: torch.dtype) -> None:
    model = build(family, experts).to(dtype)
    with recorded(model) as record:
        native = model(tokens()).logits
    routers = moe_routers(model)
    assert record.routes.shape == (14, len(routers), TOP_K)
    assert record.routes.dtype == torch.int64
    with replayed(model, record.routes.to(torch.uint8)) as replay:
        again = model(tokens()).logits
    assert torch.equal(native, again)
    assert_same(gradients(model, scalar(native)), gradients(model, scalar(again)))
    flips = replay.flips()
    assert flips.decisions.tolist() == [14] * len(routers)
    assert flips.flipped.tolist() == flips.native.tolist() == [0] * len(routers)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_eager_and_grouped_experts_agree_under_replay(family: str) -> None:
    eager, grouped = build(family, "eager"), build(family, "grouped_mm")
    routes = random_routes(14, len(moe_routers(eager)))
    grads = []
    for model in (eager, grouped):
        with replayed(model, routes):
            grads.append(gradients(model, scalar(model(tokens()).logits)))
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-6)


def weights_by_hand(family: str, config: Any, logits: Tensor, routes: Tensor) -> Tensor:
    """Gate weights written from the models' definitions, another way round than the adapters."""
    chosen = torch.stack([logits[t, routes[t]] for t in range(len(routes))])
    if family in ("DeepseekV3", "Glm4Moe"):
        scores = 1 / (1 + torch.exp(-chosen))
        return float(config.routed_scaling_factor) * scores / scores.sum(-1, keepdim=True)
    if family == "Mixtral" or config.norm_topk_prob:
        return torch.softmax(chosen, -1)  # renormalised softmax = softmax over the chosen alone
    return torch.exp(chosen - torch.logsumexp(logits, -1, keepdim=True))


def moe_by_hand(family: str, config: Any, block: Any, routes: Tensor) -> Callable[[Tensor], Tensor]:
    """The MoE block's forward as a loop over tokens and experts, routed by `routes` `[T, k]`."""
    gate: Any = block.gate
    experts: Any = block.experts

    def forward(hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        weights = weights_by_hand(family, config, flat @ gate.weight.t().to(flat.dtype), routes)
        rows = []
        for t, x in enumerate(flat):
            total = torch.zeros_like(x)
            for k in range(TOP_K):
                expert = int(routes[t, k])
                up, value = (experts.gate_up_proj[expert] @ x).chunk(2)
                total = total + weights[t, k] * (experts.down_proj[expert] @ (nn.functional.silu(up) * value))
            rows.append(total)
        out = torch.stack(rows)
        if hasattr(block, "shared_experts"):
            out = out + block.shared_experts(flat)
        if hasattr(block, "shared_expert"):
            out = out + torch.sigmoid(block.shared_expert_gate(flat)) * block.shared_expert(flat)
        return out.reshape(hidden.shape)

    return forward


@pytest.mark.parametrize("family", list(FAMILIES))
def test_output_and_gradients_are_those_of_a_model_written_by_hand(family: str) -> None:
    model, by_hand = build(family).double(), build(family).double()
    routers = moe_routers(model)
    routes = random_routes(8, len(routers))
    blocks = [m for m in by_hand.modules() if hasattr(m, "gate") and hasattr(m, "experts")]
    for layer, block in enumerate(blocks):
        block.forward = moe_by_hand(family, by_hand.config, block, routes[:, layer])
    inputs = tokens(2, 4)
    with replayed(model, routes):
        logits = model(inputs).logits
    expected = by_hand(inputs).logits
    # the families' softmax runs in float32 whatever the model's precision
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    got, reference = gradients(model, scalar(logits)), gradients(by_hand, scalar(expected))
    for name, grad in reference.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-4, atol=1e-7)
    router_grads = [p.grad for n, p in model.named_parameters() if n.endswith(".gate.weight") and "shared" not in n]
    assert len(router_grads) == len(routers)
    assert all(grad is not None and grad.abs().max() > 1e-7 for grad in router_grads)


def test_router_gradient_is_the_finite_difference() -> None:
    model = build("DeepseekV3").double()  # sigmoid scores keep float64 router weights nearly exact
    routes = random_routes(8, 2)
    gate: Any = moe_routers(model)[0].module

    def loss() -> Tensor:
        with replayed(model, routes):
            return scalar(model(tokens(2, 4)).logits.double())

    grad = gradients(model, loss())["model.layers.1.mlp.gate.weight"]
    expert = int(routes[0, 0, 0])
    index = int(grad[expert].abs().argmax())
    with torch.no_grad():
        gate.weight[expert, index] += 1e-2
        up = loss()
        gate.weight[expert, index] -= 2e-2
        down = loss()
    assert (up - down).item() / 2e-2 == pytest.approx(grad[expert, index].item(), rel=2e-2)


def test_tokens_without_a_route_are_routed_natively_and_counted() -> None:
    model = build("Qwen3Moe")
    routes = random_routes(14, 3)
    with recorded(model) as record, torch.no_grad():
        model(tokens())
    routes[4:] = -1
    routes[9, 1] = record.routes[9, 1].flip(-1)  # same set, other order: no flip
    with replayed(model, routes) as replay, recorded(model) as inner, torch.no_grad():
        model(tokens())
    flips = replay.flips()
    assert flips.native.tolist() == [10, 9, 10]
    assert flips.decisions.tolist() == [4, 5, 4]
    native = inner.routes
    expected = [
        sum(
            set(native[t, layer].tolist()) != set(routes[t, layer].tolist())
            for t in range(14)
            if routes[t, layer, 0] >= 0
        )
        for layer in range(3)
    ]
    assert flips.flipped.tolist() == expected
    assert sum(expected) > 6
    assert flips.share == pytest.approx(sum(expected) / 13)
    assert flips.share_by_layer == pytest.approx([e / d for e, d in zip(expected, [4, 5, 4], strict=True)])
    assert (flips + flips).decisions.tolist() == [8, 10, 8]


def test_all_native_is_bitwise_the_native_pass() -> None:
    model = build("Mixtral")
    with torch.no_grad():
        native = model(tokens()).logits
        with replayed(model, torch.full((14, 3, TOP_K), -1)) as replay:
            assert torch.equal(model(tokens()).logits, native)
    assert replay.flips().share == 0.0


def test_routes_follow_the_flattened_input() -> None:
    model = build("Qwen3Moe").double()
    routes = random_routes(14, 3)
    with torch.no_grad():
        with replayed(model, routes):
            together = model(tokens()).logits
        for row in range(2):
            with replayed(model, routes[row * 7 : row * 7 + 7]):
                alone = model(tokens()[row : row + 1]).logits[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-9, atol=1e-9)


def test_a_pack_routes_each_sequence_by_its_own_tokens() -> None:
    model = build("Qwen3Moe").double()
    routes = random_routes(14, 3)
    pack = tokens().reshape(1, 14)
    sequence = torch.arange(14) // 7
    same = (sequence[:, None] == sequence).tril()
    with torch.no_grad(), replayed(model, routes):
        packed = model(
            pack, attention_mask=same[None, None], position_ids=torch.arange(7).repeat(2)[None], use_cache=False
        ).logits
        unpacked = model(tokens()).logits
    torch.testing.assert_close(packed.reshape(2, 7, -1), unpacked, rtol=1e-9, atol=1e-9)


def test_the_innermost_context_routes_and_nothing_is_left_behind() -> None:
    model = build("Qwen3Moe")
    outer, inner = random_routes(14, 3, seed=3), random_routes(14, 3, seed=4)
    with torch.no_grad():
        native = model(tokens()).logits
        with replayed(model, inner):
            expected = model(tokens()).logits
        with replayed(model, outer), replayed(model, inner):
            assert torch.equal(model(tokens()).logits, expected)
        with pytest.raises(ValueError, match="15 tokens"), replayed(model, random_routes(15, 3)):
            model(tokens())
        assert torch.equal(model(tokens()).logits, native)
    assert not any(module._forward_hooks for module in model.modules())


# --- refusals ---------------------------------------------------------------------------------------------------------


def corrupt(value: int) -> Tensor:
    routes = random_routes(14, 3)
    routes[3, 1, 0] = value
    return routes


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        (random_routes(14, 2), r"\[14, 2, 2\].*\[tokens, 3, 2\]"),
        (random_routes(14, 3)[..., :1], r"\[14, 3, 1\].*\[tokens, 3, 2\]"),
        (random_routes(14, 3)[0], r"\[3, 2\]"),
        (random_routes(14, 3).float(), r"dtype torch.float32"),
        (corrupt(EXPERTS), r"to 8, allowed is -1 to 7"),
        (corrupt(-2), r"from -2"),
        (corrupt(-1), r"some experts recorded and some −1"),
        (random_routes(14, 3)[..., :1].expand(14, 3, 2), r"same expert twice"),
    ],
)
def test_routes_that_do_not_fit_are_refused(routes: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words), replayed(build("Qwen3Moe"), routes):
        pass


def test_models_without_an_adapter_are_refused_by_name() -> None:
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, "head_dim": 16}))
    other = transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**{**SHAPE, "head_dim": 16, "num_local_experts": EXPERTS})
    )
    for model, name in ((dense, "LlamaForCausalLM"), (other, "GptOssForCausalLM")):
        with pytest.raises(ValueError, match=name), recorded(model):
            pass
        with pytest.raises(ValueError, match=name), replayed(model, random_routes(1, 3)):
            pass


def test_a_recording_without_a_forward_pass_says_so() -> None:
    with recorded(build("Qwen3Moe")) as record, pytest.raises(ValueError, match="no forward pass"):
        _ = record.routes
