"""Policy objectives as pure functions of flat tokens; each equation is one function.

    terms = objective("espo", correction=correction("tis"))(TokenBatch(logp, logp_old, advantage, seq, num_seqs, ...))
    (terms.numerator.sum() / denominator_of_the_whole_step).backward()

An objective returns what each sequence adds to the numerator and the denominator of the mean, so that micro-batching,
packing and the number of ranks never change the loss. To write another one: its settings in
`learner.objective_settings` (judged before anything starts, so without torch), and a subclass of them with a
`__call__(TokenBatch) -> Surrogate` in `objectives.OBJECTIVES`; or, without touching this package,
`learner.losses.custom`.
"""

from learner.losses.batch import LossTerms, TokenBatch
from learner.losses.corrections import Correction, bypass, correction
from learner.losses.metrics import merge_metrics, metric_values
from learner.losses.objectives import OBJECTIVES, Objective, objective
from learner.losses.shaping import shaped_advantage, zero_variance_advantage
from learner.losses.surrogate import PolicyObjective, Surrogate

__all__ = [
    "OBJECTIVES",
    "Correction",
    "LossTerms",
    "Objective",
    "PolicyObjective",
    "Surrogate",
    "TokenBatch",
    "bypass",
    "correction",
    "merge_metrics",
    "metric_values",
    "objective",
    "shaped_advantage",
    "zero_variance_advantage",
]
