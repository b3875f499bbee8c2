import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.rollouts.engine.generation import SpanLog
from producers.rollouts.engine.routes import route_dtype, rows, sentinel
from schemas import WeightSpan


@given(
    tokens=st.integers(1, 40),
    missing=st.integers(0, 40),
    layers=st.sets(st.integers(0, 5), min_size=1),
    experts=st.integers(2, 300),
)
def test_one_row_a_token_in_the_order_of_layers(tokens: int, missing: int, layers: set[int], experts: int) -> None:
    recorded = np.random.default_rng(0).integers(0, experts, (max(0, tokens - missing), 6, 2)).astype(np.uint16)
    result = rows(recorded, tokens=tokens, layers=sorted(layers), experts=experts, top_k=2)
    assert result.shape == (tokens, len(layers), 2)
    assert result.dtype == (np.uint8 if experts <= 256 else np.uint16)
    assert np.array_equal(result[: len(recorded)], recorded[:, sorted(layers)])
    assert np.all(result[len(recorded) :] == sentinel(result.dtype))


def test_without_a_record_every_row_is_the_sentinel() -> None:
    assert (rows(None, tokens=3, layers=[0, 1], experts=8, top_k=2) == 255).all()


@pytest.mark.parametrize(
    ("experts", "top_k", "dtype"), [(8, 2, "u1"), (256, 2, "u1"), (257, 2, "u2"), (255, 1, "u1"), (256, 1, "u2")]
)
def test_dtype_leaves_the_sentinel_unambiguous(experts: int, top_k: int, dtype: str) -> None:
    assert route_dtype(experts, top_k) == np.dtype(dtype)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 5), (4, 0), (65_536, 2)])
def test_dtype_refuses(experts: int, top_k: int) -> None:
    with pytest.raises(ValueError, match=f"{top_k} of {experts} experts"):
        route_dtype(experts, top_k)


@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 1, 2), (6, 2, 2), (3, 4)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="recorded routes"):
        rows(np.zeros(shape, np.uint8), tokens=5, layers=[0, 1], experts=4, top_k=2)


def test_an_expert_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="expert 4 of 4"):
        rows(np.full((2, 1, 2), 4, np.uint8), tokens=3, layers=[0], experts=4, top_k=2)


def test_spans_follow_the_updates() -> None:
    log = SpanLog(3)
    log.update(0, 4)
    assert log.close(9) == (WeightSpan(0, 4),)
    log.update(5, 5)
    log.update(5, 6)
    log.update(9, 7)
    assert log.close(12) == (WeightSpan(0, 4), WeightSpan(5, 6), WeightSpan(9, 7))


def test_a_span_without_tokens_is_left_out() -> None:
    log = SpanLog(1)
    log.update(5, 2)
    assert log.close(5) == (WeightSpan(0, 1),)


def test_tokens_cannot_be_lost() -> None:
    log = SpanLog(1)
    log.update(5, 2)
    with pytest.raises(ValueError, match="4 response tokens at version 3 are fewer"):
        log.update(4, 3)


def test_routes_of_sixteen_megabytes_are_made_in_less_than_a_loop_may_stand_still() -> None:
    recorded = np.random.default_rng(0).integers(0, 128, (32_767, 60, 8)).astype(np.int16)
    spent_s = []
    for _ in range(3):
        before_s = time.thread_time()
        made = rows(recorded, tokens=32_768, layers=range(60), experts=128, top_k=8)
        spent_s.append(time.thread_time() - before_s)
    assert np.array_equal(made[:-1], recorded) and (made[-1] == 255).all()
    assert min(spent_s) < 0.02, spent_s
