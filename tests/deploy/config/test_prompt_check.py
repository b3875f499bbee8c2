"""What the model or a verifier cannot take is refused before the start, with file and line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.commands.demo import DEMO
from deploy.config.preflight import check
from deploy.config.run import RunConfig, load
from deploy.errors import ConfigError

TEMPLATE = "{% for m in messages %}{{ m['role'][:0] }}{{ m['content'] }}{% endfor %}"


def written(path: Path, *rows: dict[str, Any]) -> Path:
    row = {"prompt": "1+0=", "verifier": "exact_match", "reference": "3"}
    path.write_text("".join(json.dumps({**row, "prompt": f"{n}+0=", **other}) + "\n" for n, other in enumerate(rows)))
    return path


def configured(tmp_path: Path, *rows: dict[str, Any], overrides: tuple[str, ...] = ()) -> RunConfig:
    path = written(tmp_path / "prompts.jsonl", *rows)
    return load(DEMO, directory=tmp_path / "run", overrides=[f"prompts.path={path}", *overrides])


def refused(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as raised:
        check(config)
    return str(raised.value)


def chat(content: str) -> dict[str, Any]:
    return {"prompt": None, "messages": [{"role": "user", "content": content}]}


def test_messages_for_a_model_without_a_template(tmp_path: Path) -> None:
    said = refused(configured(tmp_path, {}, chat("1+2=")))
    assert f"{tmp_path / 'prompts.jsonl'}, line 2: model directory" in said
    assert "has no chat template: give prompts as text" in said


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (TEMPLATE, None),
        ("{{ raise_exception('roles must alternate') }}", "does not take the messages: roles must alternate"),
        ("", "the prompt has no tokens"),
    ],
)
def test_messages_are_rendered_by_the_models_template(tmp_path: Path, template: str, said: str | None) -> None:
    model = tmp_path / "model"
    shutil.copytree(load(DEMO).model.path, model)
    (model / "chat_template.jinja").write_text(template or "{#- nothing -#}")
    config = configured(tmp_path, {}, chat("1+2="), overrides=(f"model.path={model}",))
    if said is None:
        check(config)
    else:
        assert f"line 2: {said}" in refused(config) or said in refused(config)


def test_a_prompt_that_leaves_no_room_is_named_with_its_line_and_the_longest(tmp_path: Path) -> None:
    rows = [{}, {"prompt": "1+" * 64}, {"prompt": "2+" * 80}, {"prompt": "3+" * 63 + "1"}]
    said = refused(configured(tmp_path, *rows, overrides=("producer.max_model_len=128",)))
    assert "line 2: the prompt has 128 tokens; allowed: fewer than producer.max_model_len, which is 128" in said
    assert said.endswith("(1 more prompt too), the longest has 160")


def test_more_tokens_than_the_model_has_room_for(tmp_path: Path) -> None:
    wrong = ("producer.max_model_len=128", "dispatcher.sampling.max_tokens=128")
    said = refused(configured(tmp_path, {}, overrides=wrong))
    assert said.startswith(
        "dispatcher.sampling.max_tokens is 128; allowed: fewer than producer.max_model_len, which is"
    )
    # The default, which may be more, means as many as there is room for.
    check(configured(tmp_path, {}, overrides=("producer.max_model_len=128", "dispatcher.sampling.max_tokens=1024")))


def test_a_reference_that_its_verifier_cannot_use_is_named_with_file_and_line(tmp_path: Path) -> None:
    math = {"verifier": "math_verify", "reference": "\\frac{1}{2}"}
    said = refused(configured(tmp_path, math, math | {"reference": "\\foo{"}, math | {"reference": " "}))
    assert f"{tmp_path / 'prompts.jsonl'}, line 2: verifier math_verify cannot use the reference: " in said
    assert said.endswith("that can be read (1 more prompt too)")
    check(configured(tmp_path, math, math))


def test_held_back_prompts_are_judged_as_well(tmp_path: Path) -> None:
    held_back = written(tmp_path / "held_back.jsonl", {"verifier": "math_verify", "reference": "\\foo{"})
    said = refused(configured(tmp_path, {}, {"prompt": "7+7="}, overrides=(f"held_back.path={held_back}",)))
    assert f"{held_back}, line 1: verifier math_verify cannot use the reference" in said
