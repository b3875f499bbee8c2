"""Prompts that are not asked for any more, and why not for ever.

A refusal belongs to the settings that caused it: a minute with a `max_model_len` of 5 refused 29 of 30 prompts, and the
run then trained on the one that was left for good. It counts while the configuration's digest is that of the refusal,
and until its dead letter is put back. Without a digest (records of earlier versions) only the latter lifts it.
"""

from collections.abc import Sequence
from typing import Final

from schemas.parts import Ref

_FEW: Final = 0.5
"""Less than this share of the prompts is few; said again each time that half of them are left."""


class Refusals:
    """By the refused record. The facts of different topics come in any order, and each of them may come twice."""

    def __init__(self, prompt_ids: Sequence[str], config_digest: str | None) -> None:
        self._prompts = frozenset(prompt_ids)
        self._digest = config_digest or ""
        self._refused: dict[Ref, str] = {}
        self._lifted: set[Ref] = set()
        self._warn_at = _FEW * len(self._prompts)

    @property
    def count(self) -> int:
        """Training prompts that are refused."""
        return len(self._prompts.intersection(self._refused.values()))

    @property
    def none_left(self) -> bool:
        """Whether there is nothing to ask for."""
        return self.count == len(self._prompts)

    def add(self, source: Ref, prompt_id: str, config_digest: str) -> bool:
        """The request at `source` was refused with those settings; whether its prompt is out."""
        if source in self._lifted or (config_digest and self._digest and config_digest != self._digest):
            return False
        self._refused[source] = prompt_id
        return True

    def lift(self, source: Ref) -> str | None:
        """The request at `source` was put back; its prompt, where nothing else refuses it."""
        self._lifted.add(source)
        prompt_id = self._refused.pop(source, None)
        return None if prompt_id in self._refused.values() else prompt_id

    def warnings(self) -> list[str]:
        """Sentences, where few prompts are left and fewer than at the last one."""
        left = len(self._prompts) - self.count
        if left > self._warn_at:
            return []
        self._warn_at = left / 2
        return [
            f"{self.count} of {len(self._prompts)} prompts were refused, {left} are left to train on: see `eachprompt "
            "dlq list`; changed settings or `eachprompt dlq replay` let them in again"
        ]
