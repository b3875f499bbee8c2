"""What the ranks agree on before a batch, whatever part of it each of them holds."""

import pytest

from learner.errors import LearnerError
from learner.ranks.agreement import Agreement, Intent, merge_intents
from schemas import Ref, Rejected
from schemas.digests import step_digest

DIGESTS = {index: bytes([index]) * 32 for index in (0, 1, 3)}
REFUSED = Rejected(rollout_id="p.0.2", rollout=Ref("rollouts", 0, 2), reason="NaN")


@pytest.mark.parametrize("dealt", [[(0, 1, 3)], [(3,), (0, 1)], [(1,), (), (3,), (0,)]])
def test_the_digest_does_not_depend_on_how_a_batch_is_dealt(dealt: list[tuple[int, ...]]) -> None:
    intents = [Intent(7, (), {index: DIGESTS[index] for index in part}) for part in dealt]
    intents[-1] = Intent(7, (REFUSED,), intents[-1].digests)
    expected = Agreement((REFUSED,), step_digest([DIGESTS[0], DIGESTS[1], DIGESTS[3]]))
    assert merge_intents([intent.encode() for intent in intents]) == expected


def test_one_that_stops_stops_all_and_different_batches_are_an_error() -> None:
    assert merge_intents([Intent(7, (), DIGESTS).encode(), Intent(None).encode()]) is None
    with pytest.raises(LearnerError, match=r"different batches: \['7', '8'\]"):
        merge_intents([Intent(7).encode(), Intent(8).encode()])
