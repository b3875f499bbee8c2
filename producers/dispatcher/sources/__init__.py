"""Where prompts come from: one module each, all of them read and checked completely before the first request."""

from producers.dispatcher.sources.jsonl import JsonlSource
from producers.dispatcher.sources.prompt import Prompt, SourceError, distinct, without
from producers.dispatcher.sources.reasoning import ReasoningGymSource

SourceSettings = JsonlSource | ReasoningGymSource
"""One of the sources; `kind` in the configuration says which."""

__all__ = ["JsonlSource", "Prompt", "ReasoningGymSource", "SourceError", "SourceSettings", "distinct", "without"]
