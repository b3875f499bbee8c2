"""Recomputed forward passes see the routes of their own forward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from learner.router_replay import moe_routers, recorded, replayed
from tests.learner.router_replay.tiny_families import assert_same, build, gradients, random_routes, scalar, tokens

# --- activation checkpointing -----------------------------------------------------------------------------------------


def checkpointed(how: str, model: Any) -> None:
    if how == "wrapper":
        for index, layer in enumerate(model.model.layers):
            model.model.layers[index] = checkpoint_wrapper(layer)
    elif how != "none":
        model.activation_checkpointing_enable({"use_reentrant": how == "reentrant"})
    model.train()


def plain_names(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in grads.items()}


@pytest.mark.parametrize("how", ["non-reentrant", "reentrant", "wrapper"])
@pytest.mark.parametrize("family", ["Qwen3Moe", "Mixtral", "Olmoe", "DeepseekV3"])
def test_recomputation_sees_the_routes_of_its_own_forward_pass(how: str, family: str) -> None:
    """Two micro-batches; both backward passes run late, one inside a third replay of yet another length."""
    plain, model = build(family), build(family)
    checkpointed("none", plain)
    checkpointed(how, model)
    layers = len(moe_routers(model))
    first, second, other = (random_routes(14, layers, seed=s) for s in (5, 6, 7))
    expected: dict[str, Any] = {}
    for routes in (first, second):
        with replayed(plain, routes):
            for name, grad in gradients(plain, scalar(plain(tokens()).logits)).items():
                expected[name] = expected.get(name, 0) + grad
    losses = []
    for routes in (first, second):
        with replayed(model, routes) as replay:
            losses.append(scalar(model(tokens()).logits))
    model.zero_grad()
    with replayed(model, other[:9]) as busy:
        torch.autograd.backward(losses[0])
    torch.autograd.backward(losses[1])
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(plain_names(grads), expected)
    assert busy.flips().decisions.sum() == 0
    assert replay.flips().decisions.tolist() == [14] * layers


def test_a_checkpoint_of_ones_own_is_bound_by_hand() -> None:
    plain, model = build("Qwen3Moe"), build("Qwen3Moe")
    routes = random_routes(14, 3)
    with replayed(plain, routes):
        expected = gradients(plain, scalar(plain(tokens()).logits))
    with replayed(model, routes) as replay:
        whole = replay.bind(model, lambda ids: model(ids, use_cache=False).logits)
        loss = scalar(checkpoint(whole, tokens(), use_reentrant=False))
    assert_same(gradients(model, loss), expected)


def test_a_recording_is_of_the_forward_pass_alone() -> None:
    model = build("Qwen3Moe")
    checkpointed("non-reentrant", model)
    with recorded(model) as record:
        first = scalar(model(tokens(seed=8)).logits)
        scalar(model(tokens(seed=9)).logits)
        routes = record.routes.clone()
        torch.autograd.backward(first)
        assert torch.equal(record.routes, routes)
