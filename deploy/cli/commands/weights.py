"""`eachprompt weights list | show --version V | export --version V --out DIR`: published weights, and exporting them.

An exported directory is a Hugging Face checkpoint: transformers and vLLM load it as it is.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import RunConfig, load
from deploy.errors import ConfigError, DeployError

if TYPE_CHECKING:
    from analysis.history.weight_versions import WeightVersions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the run."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every published version in one line")
    show = actions.add_parser("show", help="one version: files, digests, what it is made of, who generates with it")
    export = actions.add_parser("export", help="one version as a directory that transformers and vLLM load")
    for action in (show, export):
        action.add_argument("--version", metavar="V", required=True, help="a number, or newest")
    export.add_argument("--out", metavar="DIR", required=True, type=Path, help="a directory that is not there yet")
    for action in (listing, show, export):
        add_config_arguments(action)
        add_json_argument(action)


def run(arguments: argparse.Namespace) -> int:
    """Runs the action. ConfigError: a version that is not a number; DeployError: one that was not published."""
    from analysis.history.weight_versions import read_weight_versions
    from deploy.local.open_log import run_log

    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    with run_log(config) as log:
        published = read_weight_versions(log)
    return _ACTIONS[arguments.action](arguments, config, published)


def _list(arguments: argparse.Namespace, config: RunConfig, published: "WeightVersions") -> int:
    from deploy.cli.printing import print_json, print_table

    versions = [published.report_row(version) for version in sorted(published.events)]
    if arguments.json:
        print_json({"run": config.run.id, "weights": versions})
        return 0
    keys = ("version", "kind", "base_version", "precision", "bytes", "tensors", "published", "canary_drift")
    if versions:
        rows = [
            (*("" if row[key] is None else row[key] for key in keys), " ".join(row["applied_by"])) for row in versions
        ]
        print_table(
            ("version", "kind", "base", "precision", "bytes", "tensors", "published", "drift", "applied by"), rows
        )
    print(f"{len(versions)} versions of weights in run {config.run.id}")
    return 0


def _show(arguments: argparse.Namespace, config: RunConfig, published: "WeightVersions") -> int:
    from analysis.history.records import as_text
    from deploy.cli.printing import print_json

    version = _version(arguments.version, published, config)
    event = published.events[version]
    shown: dict[str, Any] = published.report_row(version) | {
        "digest": event.digest,
        "made_of": published.made_of(version),
        "files": [
            {"name": file.name, "bytes": file.blob.size, "digest": file.blob.digest, "uri": file.blob.uri}
            for file in event.files
        ],
    }
    if arguments.json:
        print_json(shown)
    else:
        print(as_text(shown))
    return 0


def _export(arguments: argparse.Namespace, config: RunConfig, published: "WeightVersions") -> int:
    from analysis.history.export import export
    from deploy.cli.printing import print_json
    from streams.blobs.store import BlobStore

    version = _version(arguments.version, published, config)
    blobs = BlobStore(config.blobs.uri or config.layout.blob_uri)
    files = export(published, version, Path(config.model.path), blobs, arguments.out)
    made_of = published.made_of(version)
    if arguments.json:
        print_json({"version": version, "out": str(arguments.out), "files": files, "made_of": made_of})
    else:
        print(f"weights {version} of run {config.run.id}, made of {made_of}, are in {arguments.out}")
    return 0


def _version(given: str, published: "WeightVersions", config: RunConfig) -> int:
    if not published.events:
        raise DeployError(f"no weights are published in run {config.run.id}")
    if given == "newest":
        return max(published.events)
    if not given.isdigit():
        raise ConfigError(f"--version is {given!r}; allowed: a number, or newest")
    if int(given) not in published.events:
        raise DeployError(f"weights {given} are not published in run {config.run.id}; there are {published.ranges()}")
    return int(given)


_ACTIONS = {"list": _list, "show": _show, "export": _export}
