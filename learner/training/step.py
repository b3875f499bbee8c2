"""One step on one batch: proximal pass, updates with exact global means, metrics.

    loss = Σ numerator / Σ denominator over every micro-batch of every rank

The sum of denominators is known only after the last micro-batch of the slowest rank, so backward runs on the numerators
alone and the gradient is divided afterwards, in the same multiplication that clips it. FSDP reduces once, in the last
micro-batch; ranks with fewer micro-batches take part with fillers.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from learner.errors import ModelError
from learner.losses import (
    PolicyObjective,
    TokenBatch,
    merge_metrics,
    metric_values,
    objective,
    shaped_advantage,
)
from learner.losses.corrections import Correction, Weigher
from learner.losses.custom import custom_correction, custom_objective
from learner.losses.metrics import peak, total
from learner.losses.objectives import Objective
from learner.model.packed_row import Rollout, filler_row, pack_rollouts
from learner.model.policy import ModelShape, Policy
from learner.objective_settings import CustomCorrection, CustomObjective, NoCorrection, kind_of
from learner.ranks.group import RankGroup
from learner.settings import LearnerSettings
from learner.training.proximal import Metrics, Proximal, Reference, routed
from learner.training.schedule import learning_rate
from streams.faults import reach

logger = logging.getLogger(__name__)

_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class StepReport:
    """The result of a step: means over all ranks, equal on every rank, and the seconds of this rank's own phases."""

    metrics: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    sequences: int = 0


class Trainer:
    """The policy's optimizer. All ranks call `train` with the same `step`, each with its own micro-batches.

    `reference` is the frozen policy of the KL term: required where `kl_coefficient` is above 0, refused elsewhere.
    """

    def __init__(
        self,
        policy: Policy,
        shape: ModelShape,
        settings: LearnerSettings,
        ranks: RankGroup,
        reference: Policy | None = None,
    ) -> None:
        if (reference is None) == (settings.kl_coefficient > 0):
            raise ValueError(f"kl_coefficient {settings.kl_coefficient:g} goes with a reference policy, 0 with none")
        self.policy = policy
        self._proximal = Proximal(policy, settings, reference)
        self.updates = 0
        self._shape = shape
        self._settings = settings
        self._ranks = ranks
        self._objective = build_objective(settings)
        self._optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=settings.optimizer.learning_rate,
            betas=(settings.optimizer.beta1, settings.optimizer.beta2),
            weight_decay=settings.optimizer.weight_decay,
            foreach=True,
        )

    def train(self, micro_batches: Sequence[Sequence[Rollout]], step: int) -> StepReport:
        """Do step `step` on this rank's `micro_batches`. Blocking and collective; RankError: another rank is gone.

        A batch without any usable token, or a gradient that is not finite, leaves the weights as they are (metric
        `skipped_updates`): all ranks decide alike, since they judge global figures.
        """
        rows = [pack_rollouts(micro).to(self._ranks.device) for micro in micro_batches if micro]
        counts = [int(count) for count in self._ranks.exchange(str(len(rows)).encode())]
        rounds = max(counts)
        rows += [filler_row().to(self._ranks.device) for _ in range(rounds - len(rows))]
        every = self._settings.measure_replay_every
        started = time.perf_counter()
        references = [self._proximal.reference(row, bool(every) and step % every == 0) for row in rows]
        proximal_done = time.perf_counter()
        rate = learning_rate(step, self._settings)
        parts = [_batch_metrics(micro_batches), *(reference.metrics for reference in references)]
        skipped = 0
        for _ in range(self._settings.updates_per_batch):
            metrics, updated = self._update(references, rate)
            parts.append(metrics)
            skipped += not updated
        report = self._report(merge_metrics(parts))
        report.metrics |= {
            "learning_rate": rate,
            "skipped_updates": float(skipped),
            # Rows hold no padding: the only idle work is that of ranks that have run out of micro-batches.
            "packing/filler_share": 1.0 - sum(counts) / max(rounds * len(counts), 1),
            "time/proximal_s": proximal_done - started,
            "time/update_s": time.perf_counter() - proximal_done,
        }
        return report

    def state(self) -> dict[str, Tensor]:
        """Every parameter and its two moments, for a checkpoint: live float32 DTensors, this rank's shards."""
        whole: dict[str, Tensor] = {}
        for name, parameter in self.policy.named_shards():
            state = self._optimizer.state[parameter]
            for moment in _ADAM_MOMENTS:
                if moment not in state:
                    state[moment] = torch.zeros_like(parameter)
            state.setdefault("step", torch.tensor(float(self.updates)))
            tensors = {"model": parameter, **{moment: state[moment] for moment in _ADAM_MOMENTS}}
            whole |= {f"{kind}.{name}": tensor.detach() for kind, tensor in tensors.items()}
        return whole

    def restored(self, updates: int) -> None:
        """Call this once `state` was filled from a checkpoint that was made after `updates` optimizer updates."""
        self.updates = updates
        for state in self._optimizer.state.values():
            state["step"].fill_(float(updates))
        for module in self.policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _update(self, references: Sequence[Reference], rate: float) -> tuple[Metrics, bool]:
        """One optimizer step over all micro-batches: its metrics, and whether the weights changed."""
        parts: list[Metrics] = []
        denominator = 0.0
        for index, reference in enumerate(references):
            last = index == len(references) - 1
            self.policy.set_requires_gradient_sync(last)  # type: ignore[operator]
            self.policy.set_is_last_backward(last)  # type: ignore[operator]
            with routed(self.policy, reference.routes):
                logp, entropy = self.policy(reference.row)
            terms = self._objective(self._tokens(reference, logp, entropy.detach()))
            torch.autograd.backward(terms.numerator.sum())
            denominator += float(terms.denominator.double().sum())
            parts.append(terms.metrics)
        gradients = [p.grad.to_local() for p in self.policy.parameters() if isinstance(p.grad, DTensor)]
        square = sum(float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) ** 2 for gradient in gradients)
        sums = [msgspec.json.decode(part) for part in self._ranks.exchange(msgspec.json.encode([denominator, square]))]
        # FSDP's reduction is a mean over ranks of gradients of sums: this divisor makes it the mean over the batch.
        divisor = sum(part[0] for part in sums) / self._ranks.world
        # Each copy of the model holds the whole gradient, so the sum counts it once per copy.
        square = sum(part[1] or 0.0 for part in sums) / self._ranks.replicas
        norm = square**0.5 / divisor if divisor else 0.0
        updated = divisor > 0 and norm < float("inf") and all(part[1] is not None for part in sums)
        if not updated and self._ranks.rank == 0:
            why = f"the gradient's norm is {norm}" if divisor else "none of its tokens can be trained on"
            logger.warning("a batch leaves the weights as they are: %s", why)
        if updated:
            scale = min(1.0, self._settings.optimizer.max_grad_norm / (norm + 1e-6)) / divisor
            torch._foreach_mul_(gradients, scale)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            reach("learner.training")
            self._optimizer.step()
            self.updates += 1
        self._optimizer.zero_grad(set_to_none=True)
        # Reported by rank 0 alone: the norm is global already.
        if self._ranks.rank == 0 and updated:
            parts.append({"grad_norm": torch.tensor([norm, 1.0], dtype=torch.float64)})
        return merge_metrics(parts), updated

    def _tokens(self, reference: Reference, logp: Tensor, entropy: Tensor) -> TokenBatch:
        row = reference.row
        advantage = row.advantage
        if row.unanimous is not None:
            # Without a proximal pass, use the entropies of the update itself.
            entropies = entropy if reference.entropy_old is None else reference.entropy_old
            alpha = self._settings.zero_variance_alpha
            advantage = shaped_advantage(advantage, row.unanimous, entropies, row.seq, alpha=alpha)
        return TokenBatch(
            logp=logp,
            logp_old=reference.logp_old,
            advantage=advantage,
            seq=row.seq,
            num_seqs=row.num_seqs,
            entropy_old=reference.entropy_old,
            logp_rollout=row.logp_rollout,
            vocab_size=self._shape.vocabulary,
            logp_ref=reference.logp_ref,
        )

    def _report(self, metrics: Metrics) -> StepReport:
        """The metrics of all ranks, merged in rank order."""
        plain = {name: value.tolist() for name, value in metrics.items()}
        gathered = self._ranks.exchange(msgspec.msgpack.encode(plain))
        merged = merge_metrics(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in msgspec.msgpack.decode(part).items()}
            for part in gathered
        )
        tokens, sequences = merged["response_tokens"].tolist()
        return StepReport(metric_values(merged), int(tokens), int(sequences))


def build_objective(settings: LearnerSettings) -> Objective:
    """The objective with its correction. ModelError: a function of the user's own that cannot be imported or called."""
    try:
        return Objective(_policy(settings), _weigher(settings), settings.old_policy, settings.kl_coefficient)
    except ValueError as error:
        raise ModelError(f"learner objective {kind_of(settings.objective)!r}: {error}") from error


def _policy(settings: LearnerSettings) -> PolicyObjective:
    given = settings.objective
    if isinstance(given, CustomObjective):
        return custom_objective(given)
    return objective(kind_of(given), **msgspec.structs.asdict(given)).policy


def _weigher(settings: LearnerSettings) -> Weigher | None:
    given = settings.correction
    if isinstance(given, NoCorrection):
        return None
    return custom_correction(given) if isinstance(given, CustomCorrection) else Correction(given)


def _batch_metrics(micro_batches: Sequence[Sequence[Rollout]]) -> Metrics:
    rollouts = [rollout for micro in micro_batches for rollout in micro]
    tokens = torch.tensor([float(rollout.sampled_tokens) for rollout in rollouts])
    staleness = torch.tensor([float(rollout.staleness) for rollout in rollouts])
    return {
        "reward": total(torch.tensor([rollout.reward for rollout in rollouts])),
        "advantage_abs": total(torch.tensor([abs(rollout.advantage) for rollout in rollouts])),
        "shaped": total(torch.tensor([float(rollout.unanimous is not None) for rollout in rollouts])),
        "staleness": total(staleness),
        "staleness_max": peak(staleness),
        "response_tokens": total(tokens),
        "response_tokens_max": peak(tokens),
    }
