"""`eachprompt up -c run.toml`: every service of a configuration, until stopped."""

import argparse
import asyncio
import logging
import sys

from deploy.cli.main import add_config_arguments
from deploy.config.run import RunConfig, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The configuration."""
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Checks, starts and supervises; ends with SIGINT or SIGTERM."""
    from deploy.config.kept import adopt, in_words
    from deploy.config.preflight import check
    from deploy.errors import StoppedError
    from deploy.local.run_lock import run_lock
    from deploy.local.session import quiet_clients

    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    check(config)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    quiet_clients()
    with run_lock(config.layout.lock):
        if changes := adopt(config):
            _say(f"changed since the last start: {in_words(changes)}")
        try:
            asyncio.run(_serve(config))
        except StoppedError as stopped:
            # Stopping is how `up` ends.
            _say(str(stopped))
    return 0


async def _serve(config: RunConfig) -> None:
    from deploy.local.session import Session

    async with Session(config, note=_say) as session:
        _say(f"run {config.run.id} in {config.directory}: {session.broker_kind} broker at {session.bootstrap}")
        await session.serve()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
