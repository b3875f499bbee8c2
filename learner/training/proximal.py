"""The passes before the update: log π_old under the routing that trains, and the other routing for comparison.

proximal = Proximal(policy, settings, frozen)
reference = proximal.reference(row, measure=True)
with routed(policy, reference.routes): ...          # router replay: the update uses the same experts
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.losses.metrics import peak, total
from learner.losses.ratios import LOG_RATIO_LIMIT, k3
from learner.model.packed_row import PackedRow
from learner.model.policy import Policy
from learner.router_replay import RouterReplay, recorded, replayed
from learner.settings import LearnerSettings

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """What the updates on one micro-batch are compared with; R is its number of sampled tokens, T of all tokens.

    Attributes:
        row: the micro-batch.
        logp_old: float32 `[R]`, log π_old of the sampled tokens; the engine's own log-probs without a proximal pass.
        entropy_old: float32 `[R]`, the policy's entropies in the proximal pass; None without one.
        routes: integers `[T, moe_layers, top_k]`, which the updates replay; None: native routing.
        metrics: sums of the router replay comparison, merged over micro-batches and ranks later.
        logp_ref: float32 `[R]`, log-probs of the frozen reference under the same routes; None without a KL term.
    """

    row: PackedRow
    logp_old: Tensor
    entropy_old: Tensor | None
    routes: Tensor | None
    metrics: Metrics
    logp_ref: Tensor | None = None


class Proximal:
    """Computes the references of rows. `frozen`: the reference policy of the KL term, None without one."""

    def __init__(self, policy: Policy, settings: LearnerSettings, frozen: Policy | None) -> None:
        self._policy = policy
        self._mode = settings.router_replay
        self._proximal = settings.old_policy == "proximal"
        self._frozen = frozen

    @torch.no_grad()
    def reference(self, row: PackedRow, measure: bool) -> Reference:
        """The proximal pass of one micro-batch and, if `measure`, a pass under the other routing for comparison."""
        mode, proximal = self._mode, self._proximal
        metrics: Metrics = {}
        logp_old, entropy_old, routes = row.logp_rollout, None, row.routes if mode == "rollout" else None
        if proximal and mode == "rollout":
            logp_old, entropy_old = self._router_replay_pass(row, metrics)
        elif proximal and mode == "old":
            with recorded(self._policy.model) as recording:
                logp_old, entropy_old = self._native_pass(row, metrics)
            routes = recording.routes
        elif proximal:
            logp_old, entropy_old = self._native_pass(row, metrics)
        if measure:
            if not (proximal and mode == "rollout"):
                self._router_replay_pass(row, metrics)
            if not (proximal and mode != "rollout"):
                self._native_pass(row, metrics)
        return Reference(row, logp_old, entropy_old, routes, metrics, self._logp_ref(row, routes))

    def _logp_ref(self, row: PackedRow, routes: Tensor | None) -> Tensor | None:
        if self._frozen is None:
            return None
        with routed(self._frozen, routes):
            logp: Tensor = self._frozen(row)[0]
        # FSDP keeps the root's weights gathered for a backward pass, which never runs on the reference.
        self._frozen.reshard()  # type: ignore[operator]
        return logp

    def _router_replay_pass(self, row: PackedRow, metrics: Metrics) -> tuple[Tensor, Tensor]:
        with routed(self._policy, row.routes) as replay:
            logp, entropy = self._policy(row)
        if replay is not None:
            metrics |= _mismatch("on", logp, row)
            flips = replay.flips()
            metrics["replay/flip_share"] = torch.stack([flips.flipped.sum(), flips.decisions.sum()]).double()
            for layer, counts in enumerate(torch.stack([flips.flipped, flips.decisions], 1).double()):
                metrics[f"replay/flip_share/{layer}"] = counts
            rows = flips.native.sum() + flips.decisions.sum()
            metrics["replay/native_share"] = torch.stack([flips.native.sum(), rows]).double()
        return logp, entropy

    def _native_pass(self, row: PackedRow, metrics: Metrics) -> tuple[Tensor, Tensor]:
        logp, entropy = self._policy(row)
        metrics |= _mismatch("off", logp, row)
        return logp, entropy


@contextmanager
def routed(policy: Policy, routes: Tensor | None) -> Iterator[RouterReplay | None]:
    """Router replay of `routes` `[T, moe_layers, top_k]` inside the context; native routing where they are None."""
    if routes is None:
        yield None
    else:
        with replayed(policy.model, routes) as replay:
            yield replay


def _mismatch(name: str, logp: Tensor, row: PackedRow) -> Metrics:
    """Trainer against the engine that sampled: k3 of KL(π_rollout‖π_trainer), sum and maximum of |Δ log p|."""
    delta = (logp - row.logp_rollout).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return {
        f"replay/k3_{name}": total(k3(delta.double())),
        f"replay/delta_{name}": total(delta.abs()),
        f"replay/delta_{name}_max": peak(delta.abs()),
    }
