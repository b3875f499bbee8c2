"""Router replay under activation checkpointing: the recomputed forward pass must use the routes of the first one.

Backward usually runs after the router replay's context was left, and with several micro-batches in flight another one
may be active by then. So, while a context is open, each checkpointing layer's function is bound to that context's
routes: autograd keeps the bound function and calls it again for the recomputation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Bind = Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]
"""`(layer, function) -> function` that runs with router replay installed on the layer's routers."""

# transformers' GradientCheckpointingLayer, and torch's CheckpointWrapper: each keeps its checkpoint in an attribute.
_CHECKPOINT_ATTRIBUTES = ("_gradient_checkpointing_func", "checkpoint_fn")


def is_recomputing() -> bool:
    """Whether this thread is inside a backward pass, where a forward pass can only be a recomputation.

    torch has no public function for it; FSDP2 uses the same private one.
    """
    return bool(torch._C._current_graph_task_id() != -1)


@contextmanager
def bound_checkpoints(model: nn.Module, bind: Bind) -> Iterator[None]:
    """Inside the context, `bind` wraps the functions that the model's layers pass to their checkpoint function."""
    replaced: list[tuple[nn.Module, str, Callable[..., Any]]] = []
    try:
        for module in model.modules():
            for attribute in _CHECKPOINT_ATTRIBUTES:
                # transformers sets it on whole models too, which never call it, so wrapping it there is harmless.
                checkpoint = vars(module).get(attribute)
                if callable(checkpoint):
                    replaced.append((module, attribute, checkpoint))
                    setattr(module, attribute, _binding(checkpoint, module, bind))
        yield
    finally:
        for module, attribute, checkpoint in replaced:
            setattr(module, attribute, checkpoint)


def _binding(checkpoint: Callable[..., Any], module: nn.Module, bind: Bind) -> Callable[..., Any]:
    def checkpoint_bound(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return checkpoint(bind(module, function), *args, **kwargs)

    return checkpoint_bound
