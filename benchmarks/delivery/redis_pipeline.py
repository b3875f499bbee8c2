"""The same shape over plain Redis streams: no transactions, no deduplication, no recovery, nothing on disk.

Not written for speed beyond the obvious: whole reads of many entries, and pipelined writes of the batch that was read.
"""

import importlib
import importlib.util
import multiprocessing
import shutil
import socket
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.delivery.load import template
from benchmarks.delivery.shape import Shape
from consumers.rewards.detokenise import Detokeniser
from consumers.rewards.verifiers import Sample, load
from schemas import RolloutCompleted, decode, encode
from streams.broker.ports import HOST, free_port
from streams.child import Child

_BLOCK_MS = 200
_COUNT = 500


def measure(directory: Path, shape: Shape) -> float | None:
    """Rollouts a second, printed; None (and why) where Redis is not installed."""
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
        rate = _pipeline(port, shape)
    finally:
        child.stop(5)
    print(f"redis: {shape.rollouts} rollouts, {rate:.0f} a second, without guarantees")
    return rate


def _pipeline(port: int, shape: Shape) -> float:
    context = multiprocessing.get_context("spawn")
    stages = [context.Process(target=stage, args=(port, shape)) for stage in (_rewards, _groups, _load)]
    for process in stages:
        process.start()
    try:
        first_s, last_s = _feed(port, shape)
    finally:
        for process in stages:
            process.join(10)
            process.kill()
    return shape.rollouts / (last_s - first_s)


def _load(port: int, shape: Shape) -> None:
    client = _client(port)
    templates = (template(False, shape), template(True, shape))
    written = 0
    for group in range(shape.rollouts // shape.samples):
        while written - int(client.get("trained") or 0) >= shape.outstanding:
            time.sleep(0.002)
        pipe = client.pipeline(transaction=False)
        for index in range(shape.samples):
            name = f"{group:016x}.0"
            event = msgspec.structs.replace(
                templates[index % 2], rollout_id=f"{name}.{index}", group_id=name, index=index, time_s=time.time()
            )
            pipe.xadd("rollouts", {"e": encode(event)})
        pipe.execute()
        written += shape.samples


def _rewards(port: int, shape: Shape) -> None:
    client, detokeniser, verifier = _client(port), Detokeniser(Path(shape.model)), load("exact_match")
    for entries in _entries(client, "rollouts", shape.rollouts):
        pipe = client.pipeline(transaction=False)
        for entry, fields in entries:
            event = decode(fields[b"e"])
            assert isinstance(event, RolloutCompleted)
            text = detokeniser.text(event.response_ids)
            reward = verifier.check(Sample(text, event.finish_reason, event.reference))
            pipe.xadd("scores", {"g": event.group_id, "e": entry, "r": reward})
        pipe.execute()


def _groups(port: int, shape: Shape) -> None:
    """Groups and batches in one, which favours this side."""
    client = _client(port)
    groups: defaultdict[bytes, list[bytes]] = defaultdict(list)
    batch: list[bytes] = []
    for entries in _entries(client, "scores", shape.rollouts):
        for _, fields in entries:
            group = groups[fields[b"g"]]
            group.append(fields[b"e"])
            if len(group) == shape.samples:
                batch += groups.pop(fields[b"g"])
            if len(batch) == shape.batch:
                client.xadd("batches", {"entries": msgspec.msgpack.encode(batch)})
                batch = []


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
