"""Where prompts come from: a module a kind of source. Every prompt is read and checked before the first request.

A further kind is a tagged struct with `load() -> list[Prompt]`, beside `jsonl`, and a member of `SourceSettings`.
"""

from producers.dispatcher.sources.jsonl import JsonlSource
from producers.dispatcher.sources.prompt import Prompt, SourceError, distinct, without
from producers.dispatcher.sources.reasoning import ReasoningGymSource

SourceSettings = JsonlSource | ReasoningGymSource
"""One of the sources; `kind` in the configuration says which."""

__all__ = ["JsonlSource", "Prompt", "ReasoningGymSource", "SourceError", "SourceSettings", "distinct", "without"]
