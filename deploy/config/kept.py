"""A run's configurations, in order: `run.toml` is the present one, `configurations/` has all that there were.

`adopt` is the only writer. It compares identities first, so that no command can put another run's settings into a run
directory, and it keeps a copy of every configuration that differs from the one before it: what a run was trained with
is never lost. `StepCompleted.config_digest` on the log says which of them a step was trained with.
"""

import logging
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from deploy.config.digest import config_digest, flattened, trained_settings
from deploy.config.error_text import shown
from deploy.config.identity import check_identity, differences, identity_of
from deploy.config.run import RunConfig, load
from deploy.errors import ConfigError

logger = logging.getLogger(__name__)

_SHOWN: Final = 8
_SINCE: Final = re.compile(r"^# In use since (\S+)$", re.MULTILINE)


class Kept(msgspec.Struct, frozen=True):
    """One configuration: its file, when it was taken into use (Unix seconds), its digest, what it changed."""

    number: int
    file: str
    since_s: float
    digest: str
    changes: dict[str, tuple[Any, Any]]
    """`section.key` → (before, after); of the first one nothing."""


def adopt(config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Make `config` the run directory's; what it changes, by `section.key`. Call it with the run's lock held.

    ConfigError: the directory holds another run, or a setting differs that may not change; nothing is written then.
    """
    check_identity(config)
    layout = config.layout
    layout.root.mkdir(parents=True, exist_ok=True)
    changes: dict[str, tuple[Any, Any]] = {}
    if layout.config.is_file():
        if not _files(layout.configurations):
            _keep(layout.configurations, layout.config.read_text(encoding="utf-8"), layout.config.stat().st_mtime)
        changes = differences(flattened(_newest(config).tables()), flattened(config.tables()))
    if changes or not _files(layout.configurations):
        _keep(layout.configurations, config.resolved(), time.time())
    if not layout.identity.exists():
        _replace(layout.identity, msgspec.json.format(msgspec.json.encode(identity_of(config)), indent=2).decode())
    _replace(layout.config, config.resolved())
    return changes


def kept_configurations(directory: Path) -> list[Kept]:
    """Every configuration that the run had, in order; one that cannot be read is named in the log and passed over."""
    found: list[Kept] = []
    before: dict[str, Any] | None = None
    for path in _files(directory / "configurations"):
        try:
            config, since_s = load(path, directory=directory), _since_s(path)
        except (ConfigError, OSError, ValueError) as error:
            logger.warning("%s cannot be read and is passed over: %s", path, error)
            continue
        flat = flattened(config.tables())
        found.append(
            Kept(
                number=int(path.stem),
                file=str(path.relative_to(directory)),
                since_s=since_s,
                digest=config_digest(trained_settings(config)),
                changes={} if before is None else differences(before, flat),
            )
        )
        before = flat
    return found


def in_words(changes: dict[str, tuple[Any, Any]], limit: int = _SHOWN) -> str:
    """`run.ranks 2 → 1, run.group_size 8 → 4`; of many the first `limit`."""
    words = [f"{key} {_value(old)} → {_value(new)}" for key, (old, new) in list(changes.items())[:limit]]
    more = len(changes) - limit
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _value(value: Any) -> str:
    return "(not set)" if value is None else shown(value)


def _newest(config: RunConfig) -> RunConfig:
    """What the run was last started with; `run.toml` where that was not kept, or is not readable any more.

    Not `run.toml` itself: a person may have edited it since, and a start that was killed has not written it yet.
    """
    try:
        return load(_files(config.layout.configurations)[-1], directory=config.directory)
    except (ConfigError, OSError, ValueError):
        return load(None, directory=config.directory)


def _since_s(path: Path) -> float:
    """When it was taken into use; the file's own time only where it does not say, for copying changes that."""
    found = _SINCE.search(path.read_text(encoding="utf-8"))
    return datetime.fromisoformat(found[1]).timestamp() if found else path.stat().st_mtime


def _files(directory: Path) -> Sequence[Path]:
    return sorted(path for path in directory.glob("*.toml") if path.stem.isdigit())


def _keep(directory: Path, text: str, since_s: float) -> None:
    directory.mkdir(exist_ok=True)
    last = max((int(path.stem) for path in _files(directory)), default=0)
    path = directory / f"{last + 1:04}.toml"
    since = datetime.fromtimestamp(since_s, UTC).isoformat(timespec="milliseconds")
    _replace(path, f"# In use since {since}\n{text}")


def _replace(path: Path, text: str) -> None:
    """Write beside and move, so that there is never half a file. ConfigError: it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; allowed: a directory with room") from None
