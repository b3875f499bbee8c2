"""A recorded generation load: which rollouts a demo's engine finished when, how long they were and how they ended.

    python -m benchmarks.delivery.recording RUN_DIRECTORY      # rewrites benchmarks/delivery/recording.msgpack

takes the rollouts that were to be trained on from the `rollouts` topic of a run (`eachprompt demo --dir …`), in the
order in which the producer finished them. Tokens, log-probs and routes themselves are not kept: nothing between the
producer and the learner looks at more of them than their sizes, the response's last tokens aside.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.config.run import load
from deploy.local.open_log import run_log
from schemas import NDArray, RolloutCompleted

PATH: Final = Path(__file__).with_name("recording.msgpack")


class Recording(msgspec.Struct, frozen=True):
    """Columns with one entry a rollout, by arrival; groups are numbered by their first arrival.

    `arrival_ms` u4 since the first; `group` u2, `index` u1; tokens u2; `stopped` u1: it ended by itself and not at its
    limit; `record_bytes` u2, of the event on the log; `routes` is layers and top-k of the model it was recorded with.
    """

    samples: int
    routes: tuple[int, int]
    arrival_ms: NDArray
    group: NDArray
    index: NDArray
    prompt_tokens: NDArray
    response_tokens: NDArray
    stopped: NDArray
    record_bytes: NDArray

    @property
    def rollouts(self) -> int:
        """How many."""
        return int(self.index.shape[0])

    @property
    def duration_s(self) -> float:
        """From the first arrival until as long after the last as two are apart in the mean."""
        return float(self.arrival_ms.numpy()[-1]) / 1e3 * self.rollouts / (self.rollouts - 1)


def read(path: Path = PATH) -> Recording:
    """The recording that is committed here."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Recording)


def record(directory: Path, limit: int) -> Recording:
    """The first `limit` rollouts of the whole groups of a run, read from its log."""
    with run_log(load(None, directory=directory, overrides=[])) as log:
        found = [
            (event, len(record.value))
            for event, record in log.events("rollouts")
            if isinstance(event, RolloutCompleted) and event.purpose == "train" and event.attempt == 0
        ]
    found.sort(key=lambda entry: entry[0].time_s)
    samples = found[0][0].samples
    members: dict[str, int] = {}
    for event, _ in found:
        members[event.group_id] = members.get(event.group_id, 0) + 1
    kept: list[tuple[RolloutCompleted, int]] = []
    numbers: dict[str, int] = {}
    for event, size in found:
        new = event.group_id not in numbers
        if members[event.group_id] != samples or (new and (len(numbers) + 1) * samples > limit):
            continue
        numbers.setdefault(event.group_id, len(numbers))
        kept.append((event, size))
    return _columns(kept, numbers, samples)


def _columns(kept: list[tuple[RolloutCompleted, int]], numbers: dict[str, int], samples: int) -> Recording:
    def column(dtype: str, values: list[Any]) -> NDArray:
        whole: npt.NDArray[Any] = np.array(values)
        assert whole.min() >= 0 and whole.max() <= np.iinfo(dtype).max, f"{whole.max()} does not fit {dtype}"
        return NDArray.of(whole.astype(dtype))

    events = [event for event, _ in kept]
    routes = events[0].routes
    assert routes is not None, "the run recorded no routes"
    return Recording(
        samples=samples,
        routes=(routes.shape[1], routes.shape[2]),
        arrival_ms=column("u4", [round(1e3 * (event.time_s - events[0].time_s)) for event in events]),
        group=column("u2", [numbers[event.group_id] for event in events]),
        index=column("u1", [event.index for event in events]),
        prompt_tokens=column("u2", [event.prompt_ids.shape[0] for event in events]),
        response_tokens=column("u2", [event.response_ids.shape[0] for event in events]),
        stopped=column("u1", [event.finish_reason == "stop" for event in events]),
        record_bytes=column("u2", [size for _, size in kept]),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="of a run with its log")
    parser.add_argument("--rollouts", type=int, default=8192)
    arguments = parser.parse_args()
    recording = record(arguments.directory, arguments.rollouts)
    PATH.write_bytes(msgspec.msgpack.encode(recording))
    lengths = recording.response_tokens.numpy()
    print(
        f"{PATH.name}: {recording.rollouts} rollouts in {recording.duration_s:.0f} s, {lengths.min()} to "
        f"{lengths.max()} tokens (mean {lengths.mean():.1f}), {recording.stopped.numpy().mean():.1%} stopped, "
        f"records of {recording.record_bytes.numpy().mean():.0f} bytes; {PATH.stat().st_size} bytes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
