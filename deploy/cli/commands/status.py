"""`eachprompt status`: what every service of a run does and waits for, the lag of the readers, the newest step."""

import argparse
import re
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import RunConfig, load
from schemas.services import SERVICES

_FIGURES: Final[Mapping[str, tuple[str, ...]]] = {
    "dispatcher": ("outstanding_groups", "groups_waiting_for_batch", "refused_prompts"),
    "producer": ("tokens_per_s", "rollouts_in_flight", "engine_restarts"),
    "rewards": ("scored", "without_verdict", "in_flight"),
    "groups": (),
    "batches": (),
    "learner": ("reward", "grad_norm", "staleness"),
}
"""Gauges by service, as many as fit into 80 columns."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_config_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the state of the services that should be there, and of the log."""
    from analysis.views.learning import Learning, as_line
    from deploy.cli.printing import print_json
    from deploy.local.stalls import stalls
    from deploy.local.standing import answers, finished, states_of

    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    services = answers(config)
    states = states_of(config, services)
    up = any(state != "not running" for state in states.values())
    log = _log(config, up)
    ages_s: dict[str, float] = log.pop("ages_s")
    status = {"run": config.run.id, "directory": str(config.directory), "services": services, "states": states, **log}
    status["up"] = up
    # The dispatcher knows of the last held-back round too; without it the log says whether there was a last step.
    status["finished"] = finished(services) if services["dispatcher"] else 0 < config.run.steps <= log["steps"]
    # A finished run has records that nobody needs any more: only a process that is not there is a stall then; and of a
    # run that is not up every process is not there.
    lags = {} if status["finished"] else log["lags"]
    status["stalls"] = stalls(states, lags, ages_s) if status["up"] else []
    if arguments.json:
        print_json(status)
        return 0
    print(f"run {config.run.id} in {config.directory}, broker at {status['broker']}")
    print(as_line(msgspec.convert(status["learning"], Learning)))
    if not status["up"]:
        goes_on = f"eachprompt up --dir {config.directory} continues it"
        print(f"not up; {'finished: the last step is done' if status['finished'] else goes_on}")
    else:
        if status["finished"]:
            print("finished: the last step and its held-back round are done; every service idles")
        _print_services(services, states)
    held = [
        f"{topic} {', '.join(f'{records:,} ({reader})' for reader, records in by_reader.items() if records)}"
        for topic, by_reader in status["lags"].items()
        if any(by_reader.values())
    ]
    print(f"not finished yet: {'; '.join(held) or 'nothing'}")
    if refused := int(((services["dispatcher"] or {}).get("gauges") or {}).get("refused_prompts", 0)):
        print(
            f"refused prompts: {refused}, not asked for again (changed settings or eachprompt dlq replay let them in)"
        )
    if status["dead_letters"]:
        print(f"dead letters: {status['dead_letters']} (eachprompt dlq list --dir {config.directory})")
    for stall in status["stalls"]:
        print(f"stalled: {stall}")
    for line in _waits(services):
        print(line)
    return 0


def _print_services(services: Mapping[str, Mapping[str, Any] | None], states: Mapping[str, str]) -> None:
    from deploy.cli.printing import print_table

    rows = [
        (name, states[name], (answer or {}).get("pid", ""), _figures(name, (answer or {}).get("gauges", {})))
        for name, answer in services.items()
    ]
    print_table(("service", "state", "pid", "figures"), rows)


def _waits(services: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """One line a process: its first wait, with times as a person says them, and how many more it names."""
    lines = []
    for name, answer in services.items():
        waits = [_in_words(wait) for wait in (answer or {}).get("waits", [])]
        if waits:
            more = f" (and {len(waits) - 1} more: --json)" if len(waits) > 1 else ""
            lines.append(f"{name}: {waits[0]}{more}")
    return lines


def _in_words(sentence: str) -> str:
    from analysis.views.durations import in_words

    return re.sub(r"\b(\d+(?:\.\d+)?) s\b", lambda found: in_words(float(found[1])), sentence)


def _figures(process: str, gauges: Mapping[str, float]) -> str:
    """The gauges that say most of a service; --json has all."""
    names = _FIGURES[process.partition("-")[0]]
    return ", ".join(f"{name.replace('_', ' ')} {gauges[name]:.4g}" for name in names if name in gauges)


def _log(config: RunConfig, up: bool) -> dict[str, Any]:
    """Lags, number of steps and ages of the outputs; the run's broker is started if it is not up."""
    from analysis.history.run_log import backlog, main_lag
    from analysis.views.learning import learning
    from deploy.local.open_log import run_log
    from schemas import DeadLetter
    from streams.log.admin import Admin

    with run_log(config) as log:
        with Admin(log.bootstrap) as admin:
            lags = backlog(admin, config.run.id)
            outputs = [service.output for service in SERVICES.values()]
            newest_s = admin.newest_s([log.full(topic) for topic in outputs])
        now_s = time.time()
        ages_s = {t: max(0.0, now_s - newest_s[log.full(t)]) for t in outputs if log.full(t) in newest_s}
        learned = learning(log, steps=config.run.steps, now_s=now_s if up else None)
        dead_letters = sum(isinstance(event, DeadLetter) for event, _ in log.events("dead-letters"))
        return {
            "broker": log.bootstrap,
            "lag": main_lag(lags),
            "lags": lags,
            "steps": learned.step,
            "learning": msgspec.to_builtins(learned),
            "dead_letters": dead_letters,
            "ages_s": ages_s,
        }
