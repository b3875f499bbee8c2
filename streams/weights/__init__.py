"""Weights on the wire: tensors as bits, deltas between versions, FP8 blocks, and what a reader assembles of them.

learner ──anchor (safetensors) every so often, deltas between──▶ blob store ──▶ producers, `eachprompt weights export`

No torch: what a version holds is decided on bits, so that both ends and the tools agree to the last one.
"""

from streams.weights.assemble import Held, apply_deltas, fetch_anchor
from streams.weights.chain import chain_to
from streams.weights.errors import WeightsError
from streams.weights.tensors import StoredTensor, read_file, state_digest, tensor_digest, write_file

__all__ = [
    "Held",
    "StoredTensor",
    "WeightsError",
    "apply_deltas",
    "chain_to",
    "fetch_anchor",
    "read_file",
    "state_digest",
    "tensor_digest",
    "write_file",
]
