"""Prompts judged as the services will take them: encoded by the producer's own code, references read by the verifiers.

Without this, what cannot work is found one record at a time, while the run is up and every service says that it is
ready: a chat data set and a model without a template made every prompt a dead letter.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from consumers.rewards.references import unreadable
from deploy.config.error_text import shown
from deploy.config.run import RunConfig
from deploy.errors import ConfigError
from producers.dispatcher.sources import Prompt
from producers.dispatcher.sources.reasoning import ReasoningGymSource
from producers.rollouts.prompt_encoder import PromptEncoder
from streams.errors import ConfigurationError, Poison

logger = logging.getLogger(__name__)

_MANY: Final = 2000
_SHOWN_CHARACTERS: Final = 200


def check_prompts(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """ConfigError: the model does not take a prompt, or its verifier a reference; with file and line, and how many."""
    check_lengths(config, prompts)
    check_references(prompts, config.service("rewards").timeout_s)


def check_lengths(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """ConfigError: a prompt has no tokens, no template takes its messages, or it leaves no room for a response."""
    try:
        encoder = PromptEncoder(Path(config.model.path))
    except ConfigurationError as error:
        raise ConfigError(str(error)) from None
    room = config.service("producer").max_model_len
    longest, too_long = 0, []
    for prompt in prompts:
        try:
            tokens = len(encoder.encode(prompt.text, prompt.messages))
        except Poison as error:
            raise ConfigError(f"{prompt.origin}: {error}") from None
        except ConfigurationError as error:
            raise ConfigError(str(error)) from None
        longest = max(longest, tokens)
        if tokens >= room:
            too_long.append((prompt, tokens))
    if too_long:
        prompt, tokens = too_long[0]
        raise ConfigError(
            f"{prompt.origin}: the prompt has {tokens} tokens; allowed: fewer than producer.max_model_len, which is "
            f"{room} for prompt and response together{_more(too_long)}, the longest has {longest}"
        )


def check_references(prompts: Sequence[Prompt], timeout_s: float) -> None:
    """ConfigError: a verifier cannot use a reference, or does not come to an end with it within `timeout_s` seconds."""
    own = [prompt for prompt in prompts if not prompt.origin.startswith(ReasoningGymSource.ORIGIN)]
    if len(own) > _MANY:
        logger.warning("judging %d references before the start: some milliseconds for each formula", len(own))
    found = list(unreadable([(prompt.verifier, prompt.reference) for prompt in own], timeout_s))
    if found:
        index, why = found[0]
        prompt = own[index]
        raise ConfigError(
            f"{prompt.origin}: verifier {prompt.verifier} cannot use the reference: {_short(why)}{_more(found)}"
        )


def _more(found: Sequence[object]) -> str:
    more = len(found) - 1
    return "" if not more else f" ({more} more prompt{'s' if more > 1 else ''} too)"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else shown(text[:_SHOWN_CHARACTERS]) + "…"
