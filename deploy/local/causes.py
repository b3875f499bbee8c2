"""Why a service process ended, as one sentence from its log, its exit and the kernel's count.

A service names its cause itself, in the last line of its own (`streams.runtime.service`); what the interpreter or an
engine prints after that on the way out is noise, and often the last line of the log.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 65_536
_CHARACTERS: Final = 400
_OWN: Final = re.compile(r"^\S+ \S+ (?:ERROR|CRITICAL) streams\.runtime\.(?:service|loop_watchdog): (?:[a-z]+: )?(.+)$")
_ANY: Final = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z]+ \S+: (.+)$")

LOWER: Final[Mapping[str, str]] = {
    "producer": "producer.kv_cache_bytes, producer.max_num_batched_tokens, producer.max_num_seqs",
    "learner": "batches.token_budget, learner.chunk_tokens, or set learner.activation_checkpointing",
    "rewards": "rewards.pool_size, rewards.max_in_flight",
    "groups": "groups.remember_groups",
    "batches": "run.groups_per_batch",
    "dispatcher": "the size of the prompt file",
    "broker": "broker.heap_mib",
}
"""Service → what to lower where it was killed for memory."""


def cause_of(log: Path, since: int = 0) -> str:
    """What the process said of its end in the part of `log` from byte `since` on, without the line's time and level."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "it wrote no log"
    if not lines:
        return "it logged nothing"
    own = next((found[1] for line in reversed(lines) if (found := _OWN.match(line))), None)
    if own is not None:
        return own[:_CHARACTERS]
    plain = _ANY.match(lines[-1])
    return (plain[1] if plain else lines[-1])[:_CHARACTERS]


def killed_for_memory(service: str) -> str:
    """The sentence for a process that the kernel killed for want of memory."""
    return (
        f"the kernel killed it for want of memory; lower {LOWER.get(service, 'its settings')}, or give it more memory"
    )
