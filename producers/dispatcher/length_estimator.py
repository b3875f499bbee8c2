"""How long a prompt's responses will be, from how long they were."""

from schemas.events import GroupDropped, GroupReady

_WEIGHT = 0.3
"""Of the newest group in the running mean: lengths move with the policy, so old ones fade within about ten visits."""


class LengthEstimate:
    """Running mean response length in tokens of each prompt, and of each task for prompts not seen yet."""

    def __init__(self) -> None:
        self._prompts: dict[str, float] = {}
        self._tasks: dict[str, float] = {}

    def observe(self, event: GroupReady | GroupDropped) -> None:
        """Take in the lengths of a finished group; members without a response say nothing."""
        lengths = [member.response_tokens for member in event.members if member.response_tokens > 0]
        if lengths:
            mean = sum(lengths) / len(lengths)
            _fade(self._prompts, event.prompt_id, mean)
            _fade(self._tasks, event.task, mean)

    def predict(self, prompt_id: str, task: str) -> int | None:
        """Expected response tokens; None where neither the prompt nor its task was ever seen."""
        mean = self._prompts.get(prompt_id, self._tasks.get(task))
        return None if mean is None else max(1, round(mean))


def _fade(means: dict[str, float], key: str, value: float) -> None:
    old = means.get(key, value)
    means[key] = old + _WEIGHT * (value - old)
