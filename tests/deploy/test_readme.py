"""What the README shows works: its TOML loads and passes the checks that come before a start."""

import re
from pathlib import Path

from deploy.config.preflight import check
from deploy.config.run import load
from schemas import TOPICS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_toml_of_the_readme_is_a_run_of_twenty_lines(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) <= 20
    file = tmp_path / "run.toml"
    file.write_text(blocks[0].replace('path = "', f'path = "{ROOT}/'))
    config = load(file, directory=tmp_path / "run", overrides=[])
    assert check(config) > 0


def test_the_readme_shows_the_two_commands_first_and_every_topic() -> None:
    block = README.split("```")[1]
    assert [line.split()[1] for line in block.strip().splitlines()] == ["demo", "test"]
    assert all(f"`{name}`" in README for name in TOPICS)
