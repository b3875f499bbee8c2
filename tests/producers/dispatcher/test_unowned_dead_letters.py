"""Dead letters of the topics that no stage commits: exactly one each, whatever order their facts are read in."""

from producers.dispatcher.unowned_dead_letters import UnownedDeadLetters
from schemas import DeadLetter
from streams.log.dead_letters import dead_letter
from streams.record import Record


def junk(topic: str, offset: int) -> Record:
    return Record(topic, 0, offset, b"k", b"junk", {}, 1.0)


def dead_letter_of(record: Record) -> DeadLetter:
    event = dead_letter(record, "dispatcher", "no event", 2.0).event
    assert isinstance(event, DeadLetter)
    return event


def test_a_record_has_one_dead_letter_that_holds_its_bytes() -> None:
    unreadable = UnownedDeadLetters()
    unreadable.refuse(junk("steps", 3), "no event")
    (output,) = unreadable.dead_letters(5.0)
    assert output.topic == "dead-letters" and output.key == "steps/0@3"
    assert isinstance(output.event, DeadLetter) and output.event.data == b"junk"
    unreadable.refuse(junk("steps", 3), "no event")
    assert unreadable.dead_letters(6.0) == []


def test_a_restart_finds_the_dead_letter_before_or_after_the_record() -> None:
    before, after = junk("batches", 1), junk("dead-letters", 2)
    unreadable = UnownedDeadLetters()
    unreadable.on_event(dead_letter_of(before))
    unreadable.refuse(before, "no event")
    unreadable.refuse(after, "no event")
    unreadable.on_event(dead_letter_of(after))
    assert unreadable.dead_letters(5.0) == []


def test_topics_with_a_stage_of_their_own_are_left_to_it() -> None:
    unreadable = UnownedDeadLetters()
    for topic in ("prompts", "rollouts", "scores", "groups"):
        unreadable.refuse(junk(topic, 0), "no event")
    assert unreadable.dead_letters(5.0) == []
