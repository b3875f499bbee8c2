"""The same shape over plain Redis streams: no transactions, no deduplication, no recovery, nothing on disk.

The same hops (rewards, groups, batches, feed, each a process), the same recorded rollouts with the same bytes, decoded
by the same code on both sides that read them, the same detokeniser and verifier. What differs in its favour: scores,
groups and batches carry ids and rewards alone and no events, nothing records what became of a rollout, nobody keeps
positions. Not written for speed beyond the obvious: whole reads of many entries, pipelined writes of what was read.

    apt-get install redis-server; .venv/bin/uv pip install --python .venv/bin/python redis
"""

import importlib
import importlib.util
import multiprocessing
import shutil
import socket
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.delivery.played import Played
from benchmarks.delivery.shape import Shape
from consumers.groups.advantages import group_advantages
from consumers.rewards.detokenise import Detokeniser
from consumers.rewards.verifiers import Sample, load
from schemas import RolloutCompleted, decode, encode
from streams.broker.ports import HOST, free_port
from streams.processes.child import Child

_BLOCK_MS = 200
_COUNT = 500
_READY = "ready"
_WRITTEN_AT_ONCE = 8


@dataclass(frozen=True)
class Measured:
    """Rollouts a second, and CPU ms a rollout by process."""

    rate: float
    cpu_ms: dict[str, float]


def measure(directory: Path, shape: Shape) -> Measured | None:
    """None, and printed why, where Redis is not installed."""
    server = shutil.which("redis-server")
    if server is None or importlib.util.find_spec("redis") is None:
        print("redis: not measured, redis-server or the Python package redis is not installed")
        return None
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    options = ["--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no"]
    child = Child.start([server, *options], log=directory / "redis.log", name="redis", cwd=directory)
    try:
        _wait(port)
        return _pipeline(port, child.pid, shape)
    finally:
        child.stop(5)


def _pipeline(port: int, server_pid: int, shape: Shape) -> Measured:
    context = multiprocessing.get_context("spawn")
    client = _client(port)
    stages = {
        name: context.Process(target=stage, args=(port, shape))
        for name, stage in (("rewards", _rewards), ("groups", _groups), ("batches", _batches), ("load", _load))
    }
    for process in stages.values():
        process.start()
    try:
        before_s = time.process_time()
        first_s, last_s = _feed(port, shape)
        cpu_s = {"feed": time.process_time() - before_s, "broker": _cpu_s(server_pid)}
        for name in stages:
            cpu_s[name] = float(client.blpop([f"cpu.{name}"], timeout=30)[1])
    finally:
        for process in stages.values():
            process.join(10)
            process.kill()
    return Measured(
        shape.rollouts / (last_s - first_s),
        {name: 1e3 * seconds / shape.rollouts for name, seconds in sorted(cpu_s.items())},
    )


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _load(port: int, shape: Shape) -> None:
    client = _client(port)
    pipe, pending = client.pipeline(transaction=False), 0
    played = Played(shape)
    for _ in (_rewards, _groups, _batches):
        client.blpop([_READY], timeout=60)
    began_s, started_s = time.process_time(), time.monotonic()
    for written, (due_s, due) in enumerate(played):
        if written % shape.samples == 0:
            while written - int(client.get("trained") or 0) >= shape.outstanding:
                time.sleep(0.002)
        if (early_s := started_s + due_s - time.monotonic()) > 0:
            time.sleep(early_s)
        pipe.xadd("rollouts", {"e": encode(due.event(time.time()))})
        pending += 1
        if pending == _WRITTEN_AT_ONCE:
            pipe.execute()
            pending = 0
    pipe.execute()
    client.rpush("cpu.load", time.process_time() - began_s)


def _rewards(port: int, shape: Shape) -> None:
    client, detokeniser, verifier = _client(port), Detokeniser(Path(shape.model)), load("exact_match")
    client.rpush(_READY, "")
    began_s = time.process_time()
    for entries in _entries(client, "rollouts", shape.rollouts):
        pipe = client.pipeline(transaction=False)
        for entry, fields in entries:
            event = decode(fields[b"e"])
            assert isinstance(event, RolloutCompleted)
            text = detokeniser.text(event.response_ids)
            reward = verifier.check(Sample(text, event.reference))
            pipe.xadd("scores", {"g": event.group_id, "e": entry, "r": reward})
        pipe.execute()
    client.rpush("cpu.rewards", time.process_time() - began_s)


def _groups(port: int, shape: Shape) -> None:
    client = _client(port)
    client.rpush(_READY, "")
    began_s = time.process_time()
    groups: defaultdict[bytes, list[tuple[bytes, float]]] = defaultdict(list)
    for entries in _entries(client, "scores", shape.rollouts):
        pipe = client.pipeline(transaction=False)
        for _, fields in entries:
            group = groups[fields[b"g"]]
            group.append((fields[b"e"], float(fields[b"r"])))
            if len(group) == shape.samples:
                advantages = group_advantages([reward for _, reward in group], [True] * len(group))
                members = [(entry, advantage) for (entry, _), advantage in zip(group, advantages or (), strict=True)]
                pipe.xadd("groups", {"m": msgspec.msgpack.encode(members)})
                del groups[fields[b"g"]]
        pipe.execute()
    client.rpush("cpu.groups", time.process_time() - began_s)


def _batches(port: int, shape: Shape) -> None:
    client = _client(port)
    client.rpush(_READY, "")
    began_s = time.process_time()
    batch: list[bytes] = []
    for entries in _entries(client, "groups", shape.rollouts // shape.samples):
        for _, fields in entries:
            batch += [entry for entry, _ in msgspec.msgpack.decode(fields[b"m"])]
            if len(batch) == shape.batch:
                client.xadd("batches", {"entries": msgspec.msgpack.encode(batch)})
                batch = []
    client.rpush("cpu.batches", time.process_time() - began_s)


def _feed(port: int, shape: Shape) -> tuple[float, float]:
    client, received, first_s = _client(port), 0, float("inf")
    for entries in _entries(client, "batches", shape.rollouts // shape.batch):
        for _, fields in entries:
            pipe = client.pipeline(transaction=False)
            wanted = msgspec.msgpack.decode(fields[b"entries"])
            for entry in wanted:
                pipe.xrange("rollouts", entry, entry)
            for found in pipe.execute():
                event = decode(found[0][1][b"e"])
                assert isinstance(event, RolloutCompleted)
                event.response_ids.numpy()
                event.logprobs.numpy()
                first_s = min(first_s, event.time_s)
            received += len(wanted)
            client.set("trained", received)
    return first_s, time.time()


def _entries(client: Any, stream: str, total: int) -> Any:
    seen, last = 0, b"0"
    while seen < total:
        for _, entries in client.xread({stream: last}, count=_COUNT, block=_BLOCK_MS) or ():
            yield entries
            seen += len(entries)
            last = entries[-1][0]


def _client(port: int) -> Any:
    return importlib.import_module("redis").Redis(host=HOST, port=port)


def _wait(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((HOST, port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
