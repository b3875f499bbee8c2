"""Events survive the wire; anything else is one clear error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import schemas
from schemas.arrays import DTYPES


@given(
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda dtype: hnp.arrays(DTYPES[dtype], hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
    )
)
def test_arrays_of_every_dtype_and_shape_survive(array: np.ndarray) -> None:
    wrapped = schemas.NDArray.of(array)
    event = schemas.CanaryScored(producer_id="p", version=1, time_s=0.0, logprobs=wrapped)
    back = schemas.decode(schemas.encode(event))
    assert isinstance(back, schemas.CanaryScored)
    np.testing.assert_array_equal(back.logprobs.numpy(), array)
    assert back.logprobs.numpy().shape == array.shape


def test_decoding_an_array_copies_nothing() -> None:
    data = schemas.encode(
        schemas.CanaryScored(producer_id="p", version=1, time_s=0.0, logprobs=schemas.NDArray.of(np.ones(1000, "f4")))
    )
    event = schemas.decode(data)
    assert isinstance(event, schemas.CanaryScored)
    assert event.logprobs.data.obj is data
    assert not event.logprobs.numpy().flags.writeable


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (("f2", (1,), b"ab"), "array dtype 'f2' is not one of u1, u2"),
        (("u4", (3,), b"abcd"), r"array u4\[3\] needs 12 bytes and has 4"),
        (("u1", (-1,), b""), "is not up to 4 dimensions of at least 0"),
        (("u1", (1, 1, 1, 1, 1), b"a"), "is not up to 4 dimensions"),
        (("u8", (2**62, 2**62), b""), "array dtype 'u8'"),
        (("u4", (2**62, 2**62), b""), "needs .* bytes and has 0"),
    ],
)
def test_arrays_that_do_not_fit_their_bytes_are_refused(
    array: tuple[str, tuple[int, ...], bytes], sentence: str
) -> None:
    import msgspec

    data = msgspec.msgpack.encode(
        {"type": "WeightsApplied", "producer_id": "p", "version": 1, "time_s": 0.0, "canary_logprobs": array}
    )
    with pytest.raises(schemas.UndecodableError, match=sentence):
        schemas.decode(data)


def test_an_array_of_another_dtype_is_not_wrapped() -> None:
    with pytest.raises(TypeError, match="complex128 is not one of"):
        schemas.NDArray.of(np.zeros(2, "c16"))


def test_big_endian_and_strided_arrays_are_made_dense() -> None:
    array = np.arange(24, dtype=">u4").reshape(4, 6)[::2, ::3]
    np.testing.assert_array_equal(schemas.NDArray.of(array).numpy(), array)


@given(st.binary(max_size=300))
def test_junk_is_undecodable_and_nothing_else(data: bytes) -> None:
    with pytest.raises(schemas.UndecodableError):
        schemas.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 200_000,
        b"\x82\xa4type\xadStepCompleted\xa1x" + b"\x91" * 200_000 + b"\x01",
        b"\x81\xa4type\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa4type\xa2\xff\xff",
        bytes(65 * 1024 * 1024),
    ],
    ids=["deep", "deep unknown field", "giant string", "giant map", "not utf-8", "over the limit"],
)
def test_hostile_bytes_are_undecodable(data: bytes) -> None:
    with pytest.raises(schemas.UndecodableError):
        schemas.decode(data)


@pytest.mark.parametrize(
    "header",
    [b"", b"RolloutScored/1", b"RolloutScored/1.7", b"X/0.9", b"/", b"X/", b"X/-2", b"X/two", b"\xff/\xff", b"2"],
)
def test_a_newer_minor_version_and_a_header_without_sense_are_taken(header: bytes) -> None:
    schemas.check_schema(header)


@pytest.mark.parametrize("header", [b"RolloutScored/3", b"RolloutScored/3.1", b"\xff/10", b"/999999999"])
def test_a_newer_major_version_is_refused(header: bytes) -> None:
    with pytest.raises(schemas.UndecodableError, match="newer than 2, which this reader knows: upgrade it"):
        schemas.check_schema(header)
