"""`eachprompt schema`: a JSON Schema of the TOML, with which an editor completes and checks it."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: the schema is the same for every run."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the schema."""
    from deploy.cli.printing import print_json
    from deploy.config.json_schema import json_schema

    print_json(json_schema())
    return 0
