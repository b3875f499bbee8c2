"""What makes a run directory the run that it is: it may not change between two starts, everything else may.

A setting is fixed where its declaration says so (`Meta(extra={"fixed": reason})` in `deploy.config.settings`); the
model is known by what its config.json says, since runs and models are moved. `identity.json` is written with the first
start. Directories of earlier versions have none, and are known by their run.toml.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from deploy.config.error_text import shown
from deploy.config.run import OWN, RunConfig, load
from deploy.errors import ConfigError

MODEL: Final = "model"
_IRRELEVANT: Final = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})
"""Keys of config.json that say nothing of the network."""


def fixed() -> dict[str, str]:
    """`section.key` of every fixed setting → why it is."""
    return dict(_fixed())


def _fixed() -> Iterator[tuple[str, str]]:
    for section, kind in OWN.items():
        described = inspect.type_info(kind)
        assert isinstance(described, inspect.StructType)
        for field in described.fields:
            extra = field.type.extra if isinstance(field.type, inspect.Metadata) else None
            if extra and "fixed" in extra:
                yield f"{section}.{field.encode_name}", str(extra["fixed"])


def identity_of(config: RunConfig) -> dict[str, Any]:
    """The fixed settings by key, and `model`: its config.json's digest, if it is there. ConfigError: it is no JSON."""
    found: dict[str, Any] = {}
    for key in fixed():
        section, _, name = key.partition(".")
        found[key] = getattr(getattr(config, section), name)
    # Which local broker it is, the directory's data decides; a cluster's log is another log.
    found["broker.kind"] = "external" if config.broker.kind == "external" else "local"
    # A service that needs no model may run where there is none; whoever starts a run has checked that there is.
    present = (Path(config.model.path) / "config.json").is_file()
    return found | ({MODEL: model_digest(Path(config.model.path))} if present else {})


def model_digest(directory: Path) -> str:
    """`sha256:` and the digest of what config.json says of the network. ConfigError: it cannot be read."""
    path = directory / "config.json"
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path is {shown(str(directory))}, whose config.json cannot be read: {error}") from None
    relevant = {key: value for key, value in read.items() if key not in _IRRELEVANT} if isinstance(read, dict) else read
    return "sha256:" + hashlib.sha256(msgspec.json.encode(relevant, order="deterministic")).hexdigest()


def recorded_identity(config: RunConfig) -> dict[str, Any] | None:
    """What the run directory was begun as; None where it is no run's. ConfigError: its files cannot be read."""
    layout = config.layout
    try:
        read = msgspec.json.decode(layout.identity.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        pass
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{layout.identity} cannot be read: {error}; allowed: the file as it was written") from None
    else:
        return read
    if not layout.config.is_file():
        return None
    try:
        return identity_of(load(None, directory=config.directory))
    except ConfigError as error:
        raise ConfigError(f"--dir is {config.directory}, whose run cannot be told from its run.toml: {error}") from None


def check_identity(config: RunConfig) -> None:
    """ConfigError: the run directory holds another run, or this one with a setting that may not change."""
    recorded = recorded_identity(config)
    if recorded is None:
        return
    own = identity_of(config)
    if "run.id" in recorded and recorded["run.id"] != own["run.id"]:
        raise ConfigError(
            f"--dir is {config.directory}, which holds run {recorded['run.id']} and not {own['run.id']}; "
            "allowed: that run's configuration, or another directory"
        )
    if MODEL in recorded and recorded[MODEL] != own.get(MODEL, recorded[MODEL]):
        raise ConfigError(
            f"model.path is {shown(config.model.path)}, whose config.json is not that of the model that run "
            f"{own['run.id']} began with; allowed: the same model, or another directory"
        )
    why = fixed()
    for key in why:
        value = own[key]
        if key in recorded and recorded[key] != value:
            raise ConfigError(
                f"{key} is {shown(value)}; allowed: {shown(recorded[key])}, with which run {own['run.id']} began, "
                f"or another directory: {why[key]}"
            )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """`section.key` → (before, after) of what differs between two flat configurations; None: not given."""
    return {
        key: (before.get(key), after.get(key)) for key in sorted({*before, *after}) if before.get(key) != after.get(key)
    }
