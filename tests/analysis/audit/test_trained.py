"""What steps were trained on, computed again from the log."""

from typing import Any

import msgspec
import numpy as np
import pytest

from analysis.audit.ledger import READING_ORDER
from analysis.audit.trained import TrainedDigests
from schemas import BatchPlanned, NDArray, Ref, Rejected, RolloutCompleted, StepCompleted, decode
from tests.analysis.audit.audited_run import Records, audited, replaced
from tests.simulated_run import simulate


def judged(records: Records, leave_out: frozenset[Ref] = frozenset()) -> tuple[int, list[str]]:
    """Steps that agree with the log, and what is said of the others."""
    trained = TrainedDigests()
    for topic in READING_ORDER:
        for ref, value in records:
            if ref.topic == topic and ref not in leave_out:
                trained.add(decode(value), ref)
    verified, altered = trained.judge()
    assert all(finding.kind == "altered" for finding in altered)
    return verified, [f"{finding.rollout} {finding.what}" for finding in altered]


def trained_rollout(records: Records) -> Ref:
    """A rollout of the last batch."""
    return Ref(*batches(records)[-1].sequences[0].rollout)


def batches(records: Records) -> list[BatchPlanned]:
    return [event for _, value in records if isinstance(event := decode(value), BatchPlanned)]


def test_every_step_agrees_with_the_log() -> None:
    assert judged(simulate(5).records) == (5, [])


def changed(records: Records, place: Ref, **fields: Any) -> Records:
    def change(event: Any) -> Any:
        return msgspec.structs.replace(event, **fields)

    return [(ref, msgspec.msgpack.encode(change(decode(value))) if ref == place else value) for ref, value in records]


def test_another_token_on_the_log_is_found() -> None:
    records = simulate(5).records
    place = trained_rollout(records)
    event = decode(dict(records)[place])
    assert isinstance(event, RolloutCompleted)
    ids = event.response_ids.numpy().copy()
    ids[-1] += 1
    verified, altered = judged(changed(records, place, response_ids=NDArray.of(ids)))
    assert verified == 4 and len(altered) == 1
    assert altered[0].startswith("step 5 was trained on sha256:") and ", and the log holds sha256:" in altered[0]
    mask = np.ones(len(ids), np.uint8)
    mask[0] = 0
    logprobs = event.logprobs.numpy() * mask
    given = changed(records, place, loss_mask=NDArray.of(mask), logprobs=NDArray.of(logprobs.astype(np.float32)))
    assert judged(given)[0] == 4


def test_another_advantage_is_found() -> None:
    def change(event: Any) -> Any:
        first, *others = event.sequences
        return msgspec.structs.replace(
            event, sequences=(msgspec.structs.replace(first, advantage=first.advantage + 1e-9), *others)
        )

    assert judged(replaced(simulate(3).records, "batches", change))[0] == 2


def test_a_rejected_sequence_is_no_part_of_it() -> None:
    records = simulate(3).records
    out = batches(records)[0].sequences[2]

    def reject(event: Any) -> Any:
        rejected = Rejected(rollout_id=out.rollout_id, rollout=out.rollout, reason="NaN")
        return msgspec.structs.replace(event, rejected=(rejected,))

    verified, altered = judged(replaced(records, "steps", reject))
    assert verified == 2 and altered[0].startswith("step 1 "), "the simulated learner had trained on it"


def test_what_is_not_on_the_log_any_more_is_not_judged() -> None:
    records = simulate(3).records
    assert judged(records, leave_out=frozenset({trained_rollout(records)})) == (2, [])
    batch = next(ref for ref, _ in records if ref.topic == "batches")
    assert judged(records, leave_out=frozenset({batch})) == (2, [])

    def of_an_earlier_version(event: Any) -> Any:
        return msgspec.structs.replace(event, trained_digest=None)

    assert judged(replaced(records, "steps", of_an_earlier_version)) == (2, [])


@pytest.mark.parametrize(("digest", "clean"), [("same", True), ("sha256:ff", False), (None, True)])
def test_a_repeated_step_was_trained_on_the_same(digest: str | None, clean: bool) -> None:
    run = simulate(3)
    again = next(event for ref, value in run.records if isinstance(event := decode(value), StepCompleted))
    run.write("steps", again if digest == "same" else msgspec.structs.replace(again, trained_digest=digest))
    audit = audited(run.records)
    assert audit.clean is clean and audit.altered == (not clean)
    if not clean:
        assert audit.findings[0].rollout == "step 1" and "sha256:ff trained on, after sha256:" in audit.findings[0].what
