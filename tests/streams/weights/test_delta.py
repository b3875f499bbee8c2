"""What is encoded comes back, whatever changed; its size is near the entropy; hostile bytes are one error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.weights import StoredTensor, WeightsError, tensor_digest
from streams.weights.delta import (
    CHECK_BYTES,
    Delta,
    Patch,
    applied,
    decode,
    difference,
    encode,
    layout_of,
)
from streams.weights.entropy import entropy_bits
from streams.weights.tensors import DTYPES

State = dict[str, StoredTensor]


def tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    kind = DTYPES[dtype]
    bits = rng.integers(0, 1 << 8 * kind.itemsize, int(np.prod(shape)), dtype=np.uint64).astype(kind)
    return StoredTensor(dtype, shape, bits)


def changed(rng: np.random.Generator, state: State, share: float) -> State:
    result = {}
    for name, each in state.items():
        bits = each.bits.copy()
        chosen = rng.random(len(bits)) < share
        bits[chosen] ^= 1
        result[name] = StoredTensor(each.dtype, each.shape, bits)
    return result


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and np.array_equal(one[name].bits, other[name].bits) for name in one
    )


def put(state: State, delta: Delta) -> State:
    return state | {name: applied(state[name], patch) for name, patch in delta.patches.items()}


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.001, 0.02, 0.5, 0.97, 1.0]),
    kinds=st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=4),
    size=st.sampled_from([1, 7, 300, 70_000]),
)
def test_a_delta_turns_the_base_into_the_new_and_twice_is_once(
    seed: int, share: float, kinds: list[str], size: int
) -> None:
    rng = np.random.default_rng(seed)
    base = {f"t{n}": tensor(rng, kind, (size,) if n % 2 else (1, size)) for n, kind in enumerate(kinds)}
    new = changed(rng, base, share)
    patches = difference(base, new)
    assert patches is not None
    layout = layout_of(base)
    delta = decode(encode(Delta(5, 4, "d", patches), layout), layout)
    assert (delta.version, delta.base_version, delta.base_digest) == (5, 4, "d")
    once = put(base, delta)
    assert same(once, new) and same(put(once, delta), new)
    assert all(tensor_digest(once[name])[:CHECK_BYTES] == patch.check for name, patch in delta.patches.items())
    assert encode(delta, layout) == encode(Delta(5, 4, "d", patches), layout)


def test_another_set_of_tensors_has_no_difference() -> None:
    rng = np.random.default_rng(0)
    base = {"a": tensor(rng, "BF16", (4,))}
    assert difference(base, base) == {}
    assert difference(base, base | {"b": base["a"]}) is None
    assert difference(base, {"a": tensor(rng, "BF16", (2, 2))}) is None
    assert difference(base, {"a": tensor(rng, "F16", (4,))}) is None


def test_a_patch_for_another_shape_is_refused() -> None:
    rng = np.random.default_rng(0)
    patch = Patch("BF16", (4,), np.array([1]), np.array([7], np.uint16), b"")
    with pytest.raises(WeightsError, match=r"a delta for BF16\[4\] does not fit BF16\[5\]"):
        applied(tensor(rng, "BF16", (5,)), patch)


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05, 0.2, 0.6, 0.95])
def test_the_bytes_are_within_half_again_of_the_entropy(share: float) -> None:
    """Weights as a trained network has them, one in `share` of them moved by one unit in the last place."""
    rng = np.random.default_rng(1)
    base = {}
    for n in range(20):
        values = (rng.standard_normal(40_000) * 0.02).astype(np.float32)
        base[f"model.layers.{n}.weight"] = StoredTensor(
            "BF16", (200, 200), (values.view(np.uint32) >> 16).astype(np.uint16)
        )
    patches = difference(base, changed(rng, base, share))
    assert patches is not None
    size = len(encode(Delta(2, 1, "0" * 64, patches), layout_of(base)))
    assert size * 8 <= 1.5 * sum(entropy_bits(patches))


def test_entropy_of_a_known_case() -> None:
    patch = Patch("BF16", (8,), np.array([0, 1, 2, 3]), np.array([1, 1, 2, 2], np.uint16), b"")
    assert entropy_bits({"t": patch}) == (8.0, 4.0)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_damaged_bytes_are_one_error_or_stay_inside_the_tensor(data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    base = {"a": tensor(rng, "BF16", (50, 6)), "b": tensor(rng, "F8_E4M3", (400,))}
    patches = difference(base, changed(rng, base, 0.1))
    assert patches is not None
    good = encode(Delta(2, 1, "x", patches), layout_of(base))
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(bad)))
    try:
        delta = decode(bytes(bad[:cut]) if data.draw(st.booleans()) else bytes(bad), layout_of(base))
    except WeightsError:
        return
    for patch in delta.patches.values():
        assert patch.positions.min() >= 0 and patch.positions.max() < np.prod(patch.shape)


@pytest.mark.parametrize("junk", [b"", b"EPDELTA1", b"EPDELTA2" + bytes(40), b"EPDELTA1" + b"\xff" * 40])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(WeightsError, match="does not decode"):
        decode(junk, {})


def test_a_layout_with_fewer_tensors_or_smaller_ones_is_refused() -> None:
    rng = np.random.default_rng(0)
    base = {name: tensor(rng, "BF16", (30,)) for name in "abc"}
    patches = difference(base, changed(rng, base, 0.9))
    assert patches is not None
    data = encode(Delta(2, 1, "x", patches), layout_of(base))
    for other in ({"a": base["a"]}, base | {"b": tensor(rng, "BF16", (3,))}):
        with pytest.raises(WeightsError, match="does not decode"):
            decode(data, layout_of(other))
