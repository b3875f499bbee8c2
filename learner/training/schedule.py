"""The learning rate as a pure function of the step, so that checkpoints hold no scheduler state."""

import math

from learner.settings import LearnerSettings


def learning_rate(step: int, settings: LearnerSettings) -> float:
    """Learning rate of the updates in step `step` (from 0): linear warm-up, then constant, linear or cosine decay.

    The warm-up's first rate is 1/warmup_steps of the peak; from `decay_steps` on the rate is `final_lr_ratio` of it.
    """
    peak = settings.learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return peak
    progress = min(1.0, (step - settings.warmup_steps) / (settings.decay_steps - settings.warmup_steps))
    remaining = 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (settings.final_lr_ratio + (1.0 - settings.final_lr_ratio) * remaining)
