"""The learning rate as a pure function of the step, so that checkpoints hold no scheduler state."""

import math

from learner.settings import LearnerSettings


def learning_rate(step: int, settings: LearnerSettings) -> float:
    """Learning rate of the updates in step `step` (from 0): linear warm-up, then constant, linear or cosine decay.

    The warm-up's first rate is 1/warmup_steps of the peak; from `decay_steps` on the rate is `final_ratio` of it.
    `decay_steps` is the run's length unless it is set; a run without an end stays at the peak.
    """
    peak, schedule = settings.optimizer.learning_rate, settings.schedule
    decay_steps = schedule.decay_steps or settings.max_steps
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant" or decay_steps is None:
        return peak
    progress = min(1.0, (step - schedule.warmup_steps) / max(1, decay_steps - schedule.warmup_steps))
    remaining = 1.0 - progress if schedule.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (schedule.final_ratio + (1.0 - schedule.final_ratio) * remaining)
