"""A JSON Schema of a run's TOML, for editors: every section and key with its description, bounds and default.

Made from the structs that read the file, so the two cannot disagree. Values that services share are
left out of their sections, where giving them is an error.
"""

from typing import Any, Final

import msgspec

from deploy.config.old_keys import KINDS, SHORT
from deploy.config.run import OWN, SOURCES
from deploy.config.shared import handed_to
from deploy.services import settings_class
from producers.dispatcher.sources import SourceSettings
from schemas.services import SERVICES

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_PATH_ALONE: Final = {
    "type": "object",
    "properties": {"path": {"type": "string", "minLength": 1}},
    "required": ["path"],
    "additionalProperties": False,
}
"""A source of prompts that gives a path and no kind is a JSON Lines file."""


def json_schema() -> dict[str, Any]:
    """The schema of a whole file."""
    kinds = {**OWN, **{name: settings_class(name) for name in SERVICES}}
    sources = {name: SourceSettings for name in SOURCES}
    roots, definitions = msgspec.json.schema_components(
        [*kinds.values(), SourceSettings], ref_template="#/$defs/{name}"
    )
    named = dict(zip(kinds, roots, strict=False))
    sections: dict[str, Any] = {name: _section(name, _resolved(root, definitions)) for name, root in named.items()}
    for name in sources:
        sections[name] = {"anyOf": [roots[-1], _PATH_ALONE]}
    return {
        "$schema": _DIALECT,
        "title": "eachprompt run",
        "type": "object",
        "properties": sections,
        "required": ["model", "prompts"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _resolved(root: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    name = root["$ref"].rpartition("/")[2]
    found: dict[str, Any] = definitions[name]
    return found


def _section(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A section as a file gives it: without what is handed on to it, and with kinds that may stand for their tables."""
    handed = handed_to(name) if name in SERVICES else {}
    properties = {key: value for key, value in schema["properties"].items() if key not in handed}
    for key in (*KINDS, *SHORT) if name == "learner" else ():
        table = properties[key]
        options = table["anyOf"] if "anyOf" in table else [{"$ref": table["$ref"]}]
        rest = {word: value for word, value in table.items() if word not in ("anyOf", "$ref")}
        properties[key] = {**rest, "anyOf": [*options, {"type": "string"}]}
    required = [key for key in schema.get("required", ()) if key not in handed]
    return {**schema, "properties": properties, "required": required}
