"""Records of earlier versions whose type said several things, and the events that they are read as."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

import schemas
from schemas import Event, application_in
from schemas.events.earlier_forms import AnyDeadLetter, AnyWeightsApplied

EARLIER = Path(__file__).parent / "golden-earlier.json"
"""Hexadecimal bytes of notes on dead letters as versions 1 and 2 wrote them."""

SOURCE, BACK = schemas.Ref("scores", 0, 1), schemas.Ref("scores", 0, 9)
ROLLOUT = schemas.Ref("rollouts", 0, 1)
SCORED = schemas.NDArray.of(np.array([[-1.5, -0.25]], "f4"))


def golden(version: str, name: str) -> bytes:
    return bytes.fromhex(json.loads((Path(__file__).parent / f"golden-{version}.json").read_text())[name])


def applied(version: int, **more: float) -> schemas.WeightsApplied:
    return schemas.WeightsApplied(producer_id="producer-0", version=version, time_s=10.0, **more)  # type: ignore[arg-type]


def purged(**more: object) -> schemas.DeadLetterPurged:
    return schemas.DeadLetterPurged(
        source=SOURCE, stage="groups", error="no event", refused_s=11.0, time_s=11.0, key=b"k", attempts=2,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


CASES: dict[tuple[str, str], Event] = {
    ("1", "WeightsApplied"): schemas.CanaryScored(
        producer_id="producer-0", version=4, time_s=10.0, logprobs=schemas.NDArray.of(np.array([-1.5], "f4")),
        application=applied(4, pause_s=0.03),
    ),
    ("2", "scored"): schemas.CanaryScored(
        producer_id="producer-0", version=5, time_s=10.0, logprobs=SCORED,
        application=applied(5, published_s=9.5, fetch_s=0.1, pause_s=0.03, in_flight=7),
    ),
    ("2", "refused"): schemas.WeightsRefused(
        producer_id="producer-0", version=5, time_s=10.0, application=applied(4)
    ),
    ("earlier", "replayed"): schemas.DeadLetterReplayed(source=SOURCE, stage="groups", replayed=BACK, time_s=11.0),
    ("earlier", "purged"): purged(ends=(ROLLOUT,)),
    ("earlier", "replayed and purged"): purged(replayed=BACK),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_record_of_an_earlier_form_is_the_event_that_it_meant(case: tuple[str, str]) -> None:
    assert schemas.decode(golden(*case)) == CASES[case]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_nobody_writes_an_earlier_form(case: tuple[str, str]) -> None:
    again = schemas.encode(CASES[case])
    assert again != golden(*case)
    assert schemas.decode(again) == CASES[case]


def test_the_plain_forms_are_the_same_bytes_as_ever() -> None:
    fields = {"producer_id": "p", "version": 3, "time_s": 1.0, "pause_s": 0.5}
    assert schemas.encode(schemas.WeightsApplied(**fields)) == msgspec.msgpack.encode(AnyWeightsApplied(**fields))  # type: ignore[arg-type]
    dead = {"source": SOURCE, "stage": "groups", "error": "e", "data": b"d", "time_s": 1.0, "headers": {"run": b"r"}}
    assert schemas.encode(schemas.DeadLetter(**dead)) == msgspec.msgpack.encode(AnyDeadLetter(**dead))  # type: ignore[arg-type]


def test_the_application_is_kept_where_an_earlier_record_said_it_besides() -> None:
    """Compaction keeps the last record of a key, which may be a refusal or scores of the earlier form."""
    for case, version in ((("2", "scored"), 5), (("2", "refused"), 4)):
        found = application_in(schemas.decode(golden(*case)))
        assert found is not None and (found.producer_id, found.version) == ("producer-0", version)
    assert application_in(applied(7)) == applied(7)
    assert application_in(schemas.WeightsRefused(producer_id="p", version=3, time_s=1.0)) is None


def test_no_report_displaces_the_application_on_the_compacted_topic() -> None:
    reports = [
        applied(4),
        schemas.CanaryScored(producer_id="producer-0", version=4, logprobs=SCORED, time_s=1.0),
        schemas.WeightsRefused(producer_id="producer-0", version=5, time_s=1.0),
    ]
    assert len({schemas.report_key(report) for report in reports}) == 3  # type: ignore[arg-type]
    assert schemas.report_key(applied(4)) == "producer-0", "the key that earlier versions gave it"
