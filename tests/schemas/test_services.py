"""The one declaration of who reads and writes what."""

from pathlib import Path

from schemas.services import SERVICES, readers, table, writers
from schemas.topics import TOPICS

README = Path(__file__).parents[2] / "README.md"


def test_every_topic_is_written_and_every_topic_named_is_in_the_catalogue() -> None:
    assert all(writers(name) for name in TOPICS)
    for service in SERVICES.values():
        assert {*service.commits, *service.follows, *service.writes, *service.fetches} <= TOPICS.keys()
    assert writers("groups") == ("groups",)
    assert writers("dead-letters") == tuple(SERVICES)


def test_the_first_reader_of_a_topic_is_the_one_whose_input_it_is() -> None:
    assert readers("prompts") == ("producer", "groups")
    assert readers("scores") == ("groups",)
    assert readers("weights") == ()


def test_the_readme_prints_the_declaration() -> None:
    assert table() in README.read_text(encoding="utf-8")
