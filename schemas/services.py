"""The services and what each reads and writes: declared here, and derived everywhere else.

`python -m schemas.services` prints the table of the README.
"""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Service:
    """One service of a run. Topics are named shortly (`schemas.topics`).

    `commits`: the topics whose offsets it commits as it finishes their records, its input first. `follows`: read from a
    position of its own and never committed. `fetches`: read by reference alone. `writes`: its output first; the dead
    letters, which every service may write, are left out.

    `scaling`: `one` process; replicas by `partition`, each with the partitions of its ordinal; `elastic` replicas,
    which deal the partitions among themselves and may come and go; `ranks`, which only work together.
    """

    name: str
    commits: tuple[str, ...]
    follows: tuple[str, ...]
    writes: tuple[str, ...]
    scaling: Literal["one", "partition", "elastic", "ranks"]
    delivery: Literal["at least once", "exactly once"]
    guarantee: str
    uses_torch: bool = False
    fetches: tuple[str, ...] = ()

    @property
    def input(self) -> str:
        """The topic whose records it works on. ValueError: it commits none."""
        if not self.commits:
            raise ValueError(f"service {self.name} commits no topic")
        return self.commits[0]

    @property
    def extra_inputs(self) -> tuple[str, ...]:
        """Further topics that it commits."""
        return self.commits[1:]

    @property
    def output(self) -> str:
        """The topic by which it is seen to work."""
        return self.writes[0]


SERVICES: Final[dict[str, Service]] = {
    service.name: service
    for service in (
        Service(
            "dispatcher",
            commits=(),
            follows=("prompts", "groups", "batches", "steps", "weights", "applied", "dead-letters"),
            writes=("prompts",),
            scaling="one",
            delivery="exactly once",
            guarantee="each group requested once: transactional, state rebuilt from the log",
        ),
        Service(
            "producer",
            commits=("prompts",),
            follows=("weights",),
            writes=("rollouts", "applied"),
            scaling="partition",
            delivery="at least once",
            guarantee="at least once, deterministic ids, first one counts",
            uses_torch=True,
        ),
        Service(
            "rewards",
            commits=("rollouts",),
            follows=(),
            writes=("scores",),
            scaling="elastic",
            delivery="at least once",
            guarantee="at least once, first one counts",
        ),
        Service(
            "groups",
            commits=("scores", "prompts"),
            follows=(),
            writes=("groups",),
            scaling="partition",
            delivery="exactly once",
            guarantee="exactly once: outputs and offsets in one transaction",
        ),
        Service(
            "batches",
            commits=("groups",),
            follows=("steps",),
            writes=("batches",),
            scaling="one",
            delivery="exactly once",
            guarantee="exactly once: outputs and offsets in one transaction",
        ),
        Service(
            "learner",
            commits=(),
            follows=("batches", "weights", "applied"),
            writes=("steps", "weights"),
            scaling="ranks",
            delivery="exactly once",
            guarantee="the position in the log is inside the checkpoint",
            uses_torch=True,
            fetches=("rollouts",),
        ),
    )
}
"""By name, in the order in which they stop: first what makes work, last what ends it."""


def readers(topic: str) -> tuple[str, ...]:
    """The services that commit `topic`: first the one whose input it is."""
    found = [service for service in SERVICES.values() if topic in service.commits]
    return tuple(service.name for service in sorted(found, key=lambda service: service.input != topic))


def writers(topic: str) -> tuple[str, ...]:
    """The services that write `topic`; any of them may write a dead letter."""
    return tuple(name for name, service in SERVICES.items() if topic in service.writes or topic == "dead-letters")


def table() -> str:
    """The services as a Markdown table."""
    lines = ["| service | works on | also reads | writes | processes | delivery |", "|---|---|---|---|---|---|"]
    for service in SERVICES.values():
        also = [_topics(service.follows), *(f"{_topics((topic,))} by reference" for topic in service.fetches)]
        cells = (
            service.name,
            _topics(service.commits),
            ", ".join(cell for cell in also if cell),
            _topics(service.writes),
            _PROCESSES[service.scaling],
            service.guarantee,
        )
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines)


_PROCESSES: Final = {
    "one": "one",
    "partition": "a share of the partitions each",
    "elastic": "may come and go",
    "ranks": "ranks",
}


def _topics(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(table())
