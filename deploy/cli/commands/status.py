"""`eachprompt status`: what every service of a run does and waits for, the lag of the readers, the newest step."""

import argparse
import time
from typing import Any, Final

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import RunConfig, load
from schemas.services import SERVICES

_FIGURES: Final = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_config_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the state of the services that should be there, and of the log."""
    from deploy.cli.printing import print_json, print_table
    from deploy.local.stalls import stalls
    from deploy.local.standing import answers, states_of

    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    services = answers(config)
    states = states_of(config, services)
    log = _log(config)
    ages_s: dict[str, float] = log.pop("ages_s")
    status = {"run": config.run.id, "directory": str(config.directory), "services": services, "states": states, **log}
    status["stalls"] = stalls(states, log["lags"], ages_s)
    if arguments.json:
        print_json(status)
        return 0
    rows = []
    for name, answer in services.items():
        rows.append((name, states[name], (answer or {}).get("pid", ""), _figures((answer or {}).get("gauges", {}))))
    print(f"run {config.run.id} in {config.directory}: {status['steps']} steps, broker at {status['broker']}")
    print_table(("service", "state", "pid", "figures"), rows)
    for topic, by_reader in status["lags"].items():
        print(f"lag of {topic}: {', '.join(f'{records} ({reader})' for reader, records in by_reader.items())}")
    for stall in status["stalls"]:
        print(stall)
    for name, answer in services.items():
        for wait in (answer or {}).get("waits", []):
            print(f"{name}: {wait}")
    return 0


def _figures(gauges: dict[str, float]) -> str:
    """The first few gauges; --json has all."""
    shown = ", ".join(f"{name} {value:g}" for name, value in list(gauges.items())[:_FIGURES])
    return f"{shown}, … ({len(gauges)} in all)" if len(gauges) > _FIGURES else shown


def _log(config: RunConfig) -> dict[str, Any]:
    """Lags, number of steps and ages of the outputs; the run's broker is started if it is not up."""
    from analysis.history.run_log import backlog, main_lag
    from deploy.local.open_log import run_log
    from schemas import StepCompleted
    from streams.log.admin import Admin

    with run_log(config) as log:
        with Admin(log.bootstrap) as admin:
            lags = backlog(admin, config.run.id)
            outputs = [service.output for service in SERVICES.values()]
            newest_s = admin.newest_s([log.full(topic) for topic in outputs])
        now_s = time.time()
        ages_s = {t: max(0.0, now_s - newest_s[log.full(t)]) for t in outputs if log.full(t) in newest_s}
        steps = {event.step for event, _ in log.events("steps") if isinstance(event, StepCompleted)}
        return {"broker": log.bootstrap, "lag": main_lag(lags), "lags": lags, "steps": len(steps), "ages_s": ages_s}
