"""What README and docs show is there: the TOML loads and passes the checks before a start, and every file, module and
function that a page names exists.
"""

import ast
import re
from pathlib import Path

import pytest

from deploy.config.preflight import check
from deploy.config.run import load
from schemas import TOPICS, services

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "running-sums" / "run.toml"

PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "models/*/README.md", "examples/**/README.md")
    for page in ROOT.glob(pattern)
)
PACKAGES = ("schemas", "streams", "producers", "consumers", "learner", "analysis", "deploy", "tests", "benchmarks")
FOLDERS = (*PACKAGES, "docs", "models", "examples", "scripts", "requirements")

# `a/b.py`, `a/b.py:Class.method`, docs/x.md, `a/b/`; not the middle of an address or of a longer path.
_PATH = re.compile(
    rf"(?<![\w/.:-])((?:{'|'.join(FOLDERS)})/[\w./-]*?(?:\.(?:py|md|toml|jsonl|json|png|txt|msgpack)\b|/(?![\w*{{<])))"
    r"(?::([A-Za-z_][\w.]*))?"
)
# `a.b.c` and `a.b.c.Name` in backticks, `python -m a.b` anywhere.
_MODULE = re.compile(rf"(?:`|python -m )((?:{'|'.join(PACKAGES)})(?:\.\w+)+)")
_TEST = re.compile(r"(?<![\w/])test_\w+\.py")
_LINK = re.compile(r"\]\(([^)#\s]+)")


def test_the_toml_of_the_readme_is_the_example_a_run_of_twenty_lines(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert blocks == [EXAMPLE.read_text(encoding="utf-8")]
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) <= 20
    config = load(EXAMPLE, directory=tmp_path / "run", overrides=[])
    assert check(config) > 0


def test_the_readme_shows_the_two_commands_first_and_every_topic() -> None:
    block = README.split("```")[1]
    assert [line.split()[1] for line in block.strip().splitlines()] == ["demo", "test"]
    assert all(f"`{name}`" in README for name in TOPICS)


def test_the_table_of_services_is_the_one_that_the_declaration_prints() -> None:
    assert services.table() in README


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_function_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [
        f"{path}{':' if name else ''}{name}"
        for path, name in _PATH.findall(text)
        if not (ROOT / path).exists() or (name and not _defines(ROOT / path, name))
    ]
    missing += [name for name in _MODULE.findall(text) if not (_is_importable(name) or _is_key(name))]
    missing += [name for name in _TEST.findall(text) if not any((ROOT / "tests").rglob(name))]
    missing += [
        link for link in _LINK.findall(text) if "://" not in link and not ((ROOT / page).parent / link).exists()
    ]
    assert missing == []


def _is_importable(dotted: str) -> bool:
    """Whether `dotted` is a module, or a name that a module or package defines or re-exports; nothing is imported."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:length])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                return length == len(parts) or _defines(file, ".".join(parts[length:]))
        if stem.is_dir():
            return length == len(parts)
    return False


def _is_key(dotted: str) -> bool:
    """Whether `dotted` is a key of the TOML, say `learner.decay_steps`, or a fault point, say `learner.trained`."""
    package, *_, last = dotted.split(".")
    settings = [*(ROOT / package).rglob("*settings*.py"), *(ROOT / package).glob("settings/*.py")]
    keys = any(re.search(rf"^    {last}: ", file.read_text(encoding="utf-8"), re.MULTILINE) for file in settings)
    return keys or any(
        f'reach("{dotted}")' in file.read_text(encoding="utf-8") for file in (ROOT / package).rglob("*.py")
    )


def _defines(file: Path, name: str) -> bool:
    """Whether `name`, say `Class.method`, is defined, assigned or imported at the top of `file`."""
    body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = next((statement for statement in body if part in _names(statement)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _names(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name for alias in statement.names}
        case ast.Assign():
            return {target.id for target in statement.targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()
