import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.dispatcher.dispatch import Dispatch
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import JsonlSource, Prompt, ReasoningGymSource, SourceError, distinct, without
from schemas import decode, encode, prompt_id
from schemas.parts import Message
from tests.producers.dispatcher.world import configured, started


def nested(depth: int) -> dict[str, Any]:
    reference: dict[str, Any] = {}
    for _ in range(depth):
        reference = {"deeper": reference}
    return reference


ROW = {"prompt": "1+2=", "verifier": "exact_match", "reference": {"answer": "3", "after": "="}, "task": "sums"}


def jsonl(tmp_path: Path, *lines: str) -> JsonlSource:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return JsonlSource(path=str(path))


def prompt(text: str, reference: str = "r", task: str = "t") -> Prompt:
    return Prompt.of(task=task, verifier="exact_match", reference=reference, text=text, origin="here")


def test_jsonl_rows_become_prompts(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "1+1?"}], "verifier": "math_verify", "reference": "2"}
    first, second = jsonl(tmp_path, json.dumps(ROW), "", json.dumps(chat)).load()
    assert first.text == "1+2=" and first.messages is None
    assert (first.task, first.verifier, first.reference) == ("sums", "exact_match", ROW["reference"])
    assert first.prompt_id == prompt_id("sums", "1+2=")
    assert second.messages == (Message(role="user", content="1+1?"),) and second.text is None
    assert second.task == "prompts", "a row without task is of the file's task"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "truncated"),
        ('"text"', "object"),
        ("{}", "missing required field"),
        (json.dumps(ROW | {"id": 2**64}), "the row has metadata 'id' with 18446744073709551616 of type int; allowed"),
        (json.dumps(ROW | {"image": "x" * 70_000}), "the row has metadata of 70012 bytes; allowed are 65536"),
        (json.dumps({"promt": "x", "verifier": "exact_match", "reference": "1"}), "neither of prompt and messages"),
        (json.dumps(ROW | {"prompt": 3}), "$.prompt"),
        (json.dumps(ROW | {"reference": None}), "$.reference"),
        (json.dumps(ROW | {"reference": {"n": 2**64}}), "cannot be written to the log: "),
        (json.dumps(ROW | {"reference": nested(900)}), "a reference that nests deeper than"),
        ('{"prompt": "1", "verifier": "exact_match", "reference": {"a": ' + "[" * 5000 + "]" * 5000 + "}}", "deeper"),
        (json.dumps(ROW | {"prompt": " \n"}), "prompt is blank"),
        (json.dumps({k: v for k, v in ROW.items() if k != "prompt"} | {"messages": []}), "messages is empty"),
        (
            json.dumps(
                {k: v for k, v in ROW.items() if k != "prompt"} | {"messages": [{"role": "user", "content": ""}]}
            ),
            "messages are blank",
        ),
        (json.dumps(ROW | {"verifier": "magic"}), "exact_match, math_verify, reasoning_gym"),
        (json.dumps(ROW | {"messages": [{"role": "user", "content": "x"}]}), "both of prompt and messages"),
        (json.dumps({"verifier": "exact_match", "reference": "1"}), "neither of prompt and messages"),
        (json.dumps(ROW | {"prompt": ""}), "prompt is empty"),
        (json.dumps({k: v for k, v in ROW.items() if k != "prompt"} | {"messages": [{"role": "user"}]}), "content"),
        ('{"prompt": "\\ud800", "verifier": "exact_match", "reference": "1"}', "line 2"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_number(tmp_path: Path, line: str, says: str) -> None:
    source = jsonl(tmp_path, json.dumps(ROW), line)
    with pytest.raises(SourceError) as raised:
        source.load()
    message = str(raised.value)
    assert message.startswith(f"{source.path}, line 2: ") and says in message and "\n" not in message


def test_bytes_that_are_not_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "\xff\xfe", "verifier": "exact_match", "reference": "1"}\n')
    with pytest.raises(SourceError, match="line 1"):
        JsonlSource(path=str(path)).load()


def test_other_columns_are_metadata(tmp_path: Path) -> None:
    extra = {"level": 5, "source": {"set": "MATH", "ids": [1, None]}}
    first, second = jsonl(tmp_path, json.dumps(ROW | extra), json.dumps(ROW | {"prompt": "2+2="})).load()
    assert first.metadata == extra and second.metadata == {}
    assert first.prompt_id == prompt_id("sums", "1+2="), "it is no part of a prompt's identity"
    dispatch = started(Dispatch(configured(), [first], [second], run_seed=0))
    asked = {request.prompt: decode(encode(request)) for request in dispatch.due(0.0)}
    assert asked["1+2="].metadata == extra and asked["2+2="].metadata == {}  # type: ignore[union-attr]
    again = jsonl(tmp_path, json.dumps(ROW | extra), json.dumps(ROW | {"level": 6})).load()
    assert [each.metadata for each in again] == [extra], "the first of two equal rows counts"


def test_numbers_are_references_and_text_parts_are_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "1+1"}, {"type": "text", "text": "=?"}]
    chat = {"messages": [{"role": "user", "content": parts}], "verifier": "math_verify", "reference": 2}
    first, second = jsonl(tmp_path, json.dumps(ROW | {"reference": 2.5}), json.dumps(chat)).load()
    assert (first.reference, second.reference) == ("2.5", "2")
    assert second.messages == (Message(role="user", content="1+1=?"),)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PAR1\x15\x04", "is a Parquet file; allowed: JSON Lines"),
        (b"\x1f\x8b\x08", "is a gzip archive; allowed: JSON Lines"),
        (b'[{"prompt": "x"}]', "is one JSON list; allowed: JSON Lines"),
        (b"\xef\xbb\xbf" + json.dumps(ROW).encode(), "line 1: the file begins with a byte-order mark"),
    ],
)
def test_a_file_of_another_kind_is_said_to_be_one(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=says):
        JsonlSource(path=str(path)).load()


def test_a_file_that_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.jsonl: No such file"):
        JsonlSource(path=str(tmp_path / "nothing.jsonl")).load()
    with pytest.raises(SourceError, match="has no prompts"):
        jsonl(tmp_path).load()


def test_a_repeated_row_counts_once_and_a_contradicting_one_is_refused(tmp_path: Path) -> None:
    assert len(jsonl(tmp_path, json.dumps(ROW), json.dumps(ROW)).load()) == 1
    with pytest.raises(SourceError, match=r"line 2 has the prompt of .*line 1 with another verifier or reference"):
        jsonl(tmp_path, json.dumps(ROW), json.dumps(ROW | {"reference": "4"})).load()


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=4))
def test_prompts_are_distinct_and_never_held_back(train: list[str], held_back: list[str]) -> None:
    prompts = distinct(prompt(text) for text in train)
    assert [p.text for p in prompts] == list(dict.fromkeys(train))
    kept = without(prompts, [prompt(text, task="other") for text in held_back])
    assert {p.text for p in kept} == set(train) - set(held_back)


def test_settings_pick_a_source_by_kind_and_refuse_what_they_do_not_know() -> None:
    settings = msgspec.convert({"source": {"kind": "jsonl", "path": "x.jsonl"}}, DispatcherSettings)
    assert settings.source == JsonlSource(path="x.jsonl") and settings.held_back is None
    wrong: list[dict[str, Any]] = [
        {"source": {"kind": "csv", "path": "x"}},
        {"source": {"kind": "jsonl", "path": "x", "seed": 1}},
        {"source": {"kind": "jsonl", "path": "x"}, "samples": 0},
        {"source": {"kind": "jsonl", "path": "x"}, "sample": 8},
    ]
    for table in wrong:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(table, DispatcherSettings)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning", "ignore:unclosed:ResourceWarning")
class TestReasoningGym:
    def test_entries_carry_what_their_scorer_needs(self) -> None:
        import reasoning_gym

        prompts = ReasoningGymSource(dataset="chain_sum", size=6, seed=7, config={"max_terms": 3}).load()
        again = ReasoningGymSource(dataset="chain_sum", size=6, seed=7, config={"max_terms": 3}).load()
        assert prompts == again and 1 <= len(prompts) <= 6
        scorer = reasoning_gym.get_score_answer_fn("chain_sum")
        for each in prompts:
            assert isinstance(each.reference, dict) and each.reference["dataset"] == "chain_sum"
            entry = each.reference["entry"]
            assert each.text == entry["question"] and each.verifier == "reasoning_gym"
            assert scorer(answer=entry["answer"], entry=entry) == 1.0
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(each.reference)) == each.reference

    def test_numpy_scalars_in_entries_become_plain(self) -> None:
        (first, *_) = ReasoningGymSource(dataset="knights_knaves", size=2, seed=1).load()
        msgspec.msgpack.encode(first.reference)

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            (ReasoningGymSource(dataset="chian_sum"), "has no data set 'chian_sum'; its data sets are"),
            (ReasoningGymSource(dataset="chain_sum", config={"max_term": 3}), "max_term"),
            (ReasoningGymSource(dataset="chain_sum", config={"min_terms": -3}), "min_terms must be positive"),
            (ReasoningGymSource(dataset="chain_sum", config={"seed": 3}), "belongs beside config"),
            (ReasoningGymSource(dataset="arc_agi", size=1), "arc_agi cannot be used"),
        ],
    )
    def test_what_is_wrong_is_named(self, source: ReasoningGymSource, says: str) -> None:
        with pytest.raises(SourceError, match=says):
            source.load()
