"""A run's log for the command's tools. Its broker, where it is not up, is started for as long as they need it."""

from collections.abc import Iterator
from contextlib import contextmanager

from analysis.history.run_log import RunLog
from deploy.config.run import RunConfig
from deploy.errors import ConfigError
from streams.broker import running_broker


@contextmanager
def run_log(config: RunConfig, *, fresh: bool = False) -> Iterator[RunLog]:
    """The log of a run; with `fresh` there may be none yet.

    ConfigError: the run directory has no log. BrokerError: its broker does not start.
    """
    if not fresh and config.broker.kind != "external" and not (config.directory / "broker").is_dir():
        raise ConfigError(f"--dir is {config.directory}, but no run was started there; allowed: a run directory")
    with running_broker(config.broker.build(), config.directory, config.supervisor.broker_s) as bootstrap:
        yield RunLog(bootstrap, config.run.id)
