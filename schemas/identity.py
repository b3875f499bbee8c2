"""Deterministic identities: a prompt, visit or sample has the same name in every process and after every restart."""

import hashlib

import msgspec

_DIGEST_BYTES = 8


def prompt_id(task: str, content: object) -> str:
    """Digest of task and content; `content` is anything msgspec turns into canonical JSON (text, messages)."""
    canonical = msgspec.json.encode([task, content], order="deterministic")
    return hashlib.blake2b(canonical, digest_size=_DIGEST_BYTES).hexdigest()


def group_id(prompt: str, visit: int) -> str:
    """`<prompt_id>.<visit>`."""
    return f"{prompt}.{visit}"


def rollout_id(group: str, index: int) -> str:
    """`<group_id>.<index>`."""
    return f"{group}.{index}"


def sampling_seed(rollout: str, attempt: int, run_seed: int) -> int:
    """The sampling seed of one attempt, 63 bits: another attempt is a new sample, a repeated call gives the same."""
    digest = hashlib.blake2b(f"{run_seed}/{rollout}/{attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
