"""What can go wrong in the rollout engine."""

from schemas import EachpromptError


class EngineError(EachpromptError):
    """Base of every error of the rollout engine."""


class EngineSettingsError(EngineError, ValueError):
    """The user's settings are wrong, or this machine cannot do what they ask."""


class EngineStartError(EngineError):
    """The engine did not come up: it died, or its deadline passed."""


def in_one_line(error: BaseException) -> str:
    """What vLLM said, without the form that pydantic gives it: services are asked for their last line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("For further information visit"))


class EngineDied(EngineError):
    """The engine's processes are gone or no longer answer: stop it and start another; its requests are lost."""


class PromptRefused(EngineError, ValueError):
    """This request can never run on this engine (too long, a token outside the vocabulary); the engine continues."""


class WeightsRefused(EngineError, ValueError):
    """These weights are not what was announced or do not fit the model; the engine keeps the version it has."""
