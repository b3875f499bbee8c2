"""A run's configuration: one strict TOML file, overrides, and the fully resolved `run.toml` of the run directory.

    config = load(Path("sums.toml"), overrides=["run.steps=100"])
    config.directory                    # runs/sums
    config.service("batches")           # BatchSettings, with the shared facts in their places

Relative paths in the file are relative to the file. Every error is one line with the key, the value and what is
allowed (`ConfigError`, exit code 2).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import tomli_w

from deploy.config.error_text import convert, shown, suggestion
from deploy.config.layout import RunDirectory
from deploy.config.magnitudes import check_magnitudes
from deploy.config.old_keys import SHORT, current, current_key
from deploy.config.settings import (
    BlobSettings,
    BrokerSection,
    ModelSettings,
    ReplicaSettings,
    RunSettings,
    SupervisorSettings,
    TracingSettings,
)
from deploy.config.shared import HANDED_ON, handed_to, with_shared
from deploy.errors import ConfigError
from deploy.services import settings_class
from schemas.services import SERVICES

OWN: Final[Mapping[str, type[Any]]] = {
    "run": RunSettings,
    "model": ModelSettings,
    "broker": BrokerSection,
    "blobs": BlobSettings,
    "tracing": TracingSettings,
    "replicas": ReplicaSettings,
    "supervisor": SupervisorSettings,
}
SOURCES: Final = ("prompts", "held_back")
SECTIONS: Final = (*OWN, *SOURCES, *SERVICES)
PATHS: Final = (
    "model.path",
    "prompts.path",
    "held_back.path",
    "broker.jars",
    "learner.objective.path",
    "learner.correction.path",
)
"""Keys that hold a path: made absolute where they are read."""


@dataclass(frozen=True)
class RunConfig:
    """A configuration whose own sections are checked; a service's section is checked when `service` is asked for it."""

    directory: Path
    run: RunSettings
    model: ModelSettings
    broker: BrokerSection
    blobs: BlobSettings
    tracing: TracingSettings
    replicas: ReplicaSettings
    supervisor: SupervisorSettings
    prompts: Mapping[str, Any]
    held_back: Mapping[str, Any] | None
    services: Mapping[str, Mapping[str, Any]]

    @property
    def layout(self) -> RunDirectory:
        """The places in the run directory."""
        return RunDirectory(self.directory)

    def service(self, name: str) -> Any:
        """The settings of one service, with the shared facts in their places. ConfigError: its section is wrong."""
        given = with_shared(name, self.services[name], self._facts())
        return convert(given, settings_class(name), within=name)

    def replicas_of(self, service: str) -> int:
        """The number of processes of a service: replicas, or the learner's ranks."""
        if service == "learner":
            return self.run.ranks
        return int(getattr(self.replicas, service, 1))

    def tables(self) -> dict[str, Any]:
        """Every section as plain values, every default written out; what a service is handed is where it was given."""
        tables: dict[str, Any] = {name: msgspec.to_builtins(getattr(self, name)) for name in OWN}
        for name in SOURCES:
            tables[name] = getattr(self, name)
        for name in SERVICES:
            whole = msgspec.to_builtins(self.service(name))
            tables[name] = {key: value for key, value in whole.items() if key not in handed_to(name)}
        return tables

    def resolved(self) -> str:
        """The whole configuration as TOML, every default written out; reads back as the same configuration."""
        shares = "\n".join(f"  {source} -> {', '.join(targets)}" for source, targets in HANDED_ON.items())
        comment = f"The resolved configuration of run {self.run.id}. Facts that are given once and handed on:\n{shares}"
        return toml_text(self.tables(), comment)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "prompts": dict(self.prompts),
            "held_back": self.held_back,
            "model.path": self.model.path,
        }
        facts |= {f"run.{key}": value for key, value in msgspec.to_builtins(self.run).items()}
        facts["run.steps"] = self.run.steps or None
        return facts


def load(path: Path | None, *, directory: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in `path`, or that of a run directory where `path` is None.

    The run directory is `directory`, else `runs/<run id>` below the working directory. ConfigError: anything wrong.
    """
    if path is None:
        if directory is None:
            raise ConfigError(
                "neither a configuration nor a run directory is given; allowed: -c FILE.toml or --dir DIR"
            )
        path = RunDirectory(directory).config
        if not path.is_file():
            raise ConfigError(
                f"--dir is {directory}, but it holds no run.toml; allowed: a run directory, or -c FILE.toml"
            )
    tables = read(path)
    tables = current(tables)
    for override in overrides:
        _override(tables, override)
        tables = current(tables)
    return resolve(tables, name=path.stem, directory=directory)


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, its paths made absolute."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not valid TOML: {error}") from None
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"{section} is {shown(table)}, but stands outside every section; allowed: [section] first"
            )
    for key in PATHS:
        *sections, name = key.split(".")
        holder: Any = tables
        for section in sections:
            holder = holder.get(section, {}) if isinstance(holder, dict) else {}
        value = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(value, str) and value:
            holder[name] = str((path.resolve().parent / Path(value).expanduser()).resolve())
    return tables


def resolve(tables: Mapping[str, Any], *, name: str, directory: Path | None) -> RunConfig:
    """Tables as a configuration; `name` is the run's id where the tables give none."""
    tables = current(tables)
    for section in tables:
        if section not in SECTIONS:
            close = suggestion(section, list(SECTIONS))
            fix = f"did you mean [{close}]?" if close else f"allowed are {', '.join(SECTIONS)}"
            raise ConfigError(f"section [{section}] is given, but there is no such section; {fix}")
    check_magnitudes(tables)
    run = dict(tables.get("run", {}))
    run["id"] = run.get("id") or name
    own: dict[str, Any] = {
        section: convert({**tables, "run": run}.get(section, {}), kind, within=section) for section, kind in OWN.items()
    }
    if "prompts" not in tables:
        raise ConfigError(
            "section [prompts] is not given; it is needed: what to train on, such as path of a JSONL file"
        )
    return RunConfig(
        directory=(directory or Path("runs") / own["run"].id).absolute(),
        prompts=_source(tables["prompts"], "prompts"),
        held_back=_source(tables["held_back"], "held_back") if "held_back" in tables else None,
        services={service: tables.get(service, {}) for service in SERVICES},
        **own,
    )


def _source(table: Mapping[str, Any], within: str) -> dict[str, Any]:
    """A source of prompts, checked; one that gives a path and no kind is a JSONL file."""
    from producers.dispatcher.sources import SourceSettings

    given = {"kind": "jsonl", **table} if "path" in table else table
    plain: dict[str, Any] = msgspec.to_builtins(convert(given, SourceSettings, within=within))
    return plain


def _override(tables: dict[str, Any], override: str) -> None:
    """`section.key=value` with a value as TOML has it; a bare word is a string."""
    key, equals, text = override.partition("=")
    key = current_key(key.strip())
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise ConfigError(f"--set is {shown(override)}; allowed: section.key=value")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        if any(character in text for character in "\"'[]{}\n"):
            raise ConfigError(
                f"--set {key} is {text.strip()}, which is not a TOML value; allowed: a value as TOML has it"
            ) from None
        value = text.strip()
    if isinstance(value, str) and key.startswith("learner.") and names[-1] in SHORT and len(names) == 2:
        names.append(SHORT[names[-1]])
    table = tables
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {key} is {text.strip()}, but {name} is not a section")
    if key.strip() in PATHS and isinstance(value, str) and value:
        value = str(Path(value).expanduser().resolve())
    table[names[-1]] = value


def toml_text(tables: Mapping[str, Any], comment: str = "") -> str:
    """TOML below a comment; what is None is left out, since TOML has no null."""
    lines = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return lines + "\n" * bool(lines) + tomli_w.dumps(_without_none(tables))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value
