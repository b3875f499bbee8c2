"""The conclusion of a run: audit, summary and report, from its log alone."""

import msgspec

from analysis.history.history import History
from analysis.history.read import audit_of, history_of
from analysis.history.run_log import RunLog
from analysis.views.summary import Summary, summarise
from deploy.config.run import RunConfig


def conclude(config: RunConfig, log: RunLog, *, broker: str, restarts: dict[str, int]) -> Summary:
    """Reads the log and writes `summary.json` and `report.png` of the run directory."""
    history = History()
    audit = audit_of(log, history=history)
    history_of(log, ("prompts", "weights", "applied"), history)
    summary = summarise(history, audit, run=config.run.id, seed=config.run.seed, broker=broker, restarts=restarts)
    config.layout.summary.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")

    from analysis.views.report import write_report

    write_report(history, summary, config.layout.report)
    return summary


def as_text(summary: Summary) -> str:
    """The summary as aligned text."""
    audit = summary.audit
    ends = ", ".join(f"{name} {n}" for name, n in audit.dispositions.items() if n)
    dropped = ", ".join(f"{name} {n}" for name, n in summary.groups_dropped_by_reason.items()) or "none"
    rows = [
        ("steps", f"{summary.steps} in {summary.wall_s:.0f} s, {_seconds(summary.step_p50_s)} between two (median)"),
        ("pass rate, held back", f"{_rate(summary.pass_rate_first)} before, {_rate(summary.pass_rate_last)} after"),
        ("groups", f"{summary.groups_ready} ready, {summary.groups_dropped} dropped ({dropped})"),
        ("tokens", f"{summary.tokens_generated:,} generated, {summary.tokens_trained:,} trained on"),
        ("staleness", f"at most {summary.max_staleness} versions"),
        ("learner idle", "-" if summary.learner_idle_share is None else f"{summary.learner_idle_share:.0%}"),
        ("router replay", _replay(summary)),
        ("broker", summary.broker),
        ("rollouts", f"{audit.produced} produced: {ends}; left over {audit.in_flight}"),
        ("audit", f"unaccounted {audit.unaccounted}, trained twice {audit.trained_twice}"),
    ]
    return "\n".join(f"{name:>22}  {value}" for name, value in rows)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _replay(summary: Summary) -> str:
    replay = summary.replay
    if replay.k3_on is None or replay.k3_off is None:
        return "not measured"
    times = f" ({replay.k3_off / replay.k3_on:.2f} times lower)" if replay.k3_on > 0 else ""
    flips = "" if replay.flip_share is None else f"; {replay.flip_share:.2%} of decisions would differ"
    return f"k3 {replay.k3_off:.2e} without, {replay.k3_on:.2e} with{times}{flips}"
