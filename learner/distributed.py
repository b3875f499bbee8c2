"""The group of ranks: how they meet, what they tell one another, how a dead one is noticed.

Tensors of the model travel through FSDP's own collectives (gloo on CPU, NCCL on CUDA). Everything else the ranks say to
one another is a few bytes: `Ranks.exchange` gathers them through a gloo group, in rank order and without pickle.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from learner.errors import RankError
from learner.lifeline import Lifeline

RENDEZVOUS_FILE: Final = "learner-rendezvous.json"
_POLL_S: Final = 0.05
_CONNECT_S: Final = 5.0


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks. `control`, `watch` and `background` are gloo groups, so that the training thread,
    the heartbeat and a checkpoint being written never wait for one another's collectives."""

    rank: int
    world: int
    mesh: DeviceMesh
    control: dist.ProcessGroup
    watch: dist.ProcessGroup
    background: dist.ProcessGroup

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        if self.mesh.device_type == "cpu":
            return torch.device("cpu")
        return torch.device(self.mesh.device_type, torch.cuda.current_device())

    def exchange(self, data: bytes, group: dist.ProcessGroup | None = None) -> list[bytes]:
        """Every rank's bytes, in rank order; all ranks must call it. RankError: another rank is gone."""
        return exchange(data, self.world, self.control if group is None else group)

    def beat(self, flag: bool) -> bool:
        """One sign of life of every rank: whether any raised its flag.

        Rank 0 hears each of the others and answers, so that it knows which one is silent; RankError names it.
        """
        raised = torch.tensor([int(flag)])
        peers = range(1, self.world) if self.rank == 0 else (0,)
        peer = 0
        try:
            if self.rank != 0:
                dist.send(raised, 0, self.watch)
            for peer in peers:
                said = torch.zeros_like(raised)
                dist.recv(said, peer, self.watch)
                raised = torch.maximum(raised, said)
            if self.rank == 0:
                for peer in peers:
                    dist.send(raised, peer, self.watch)
        except RuntimeError as error:
            raise RankError(
                f"learner rank {peer} is gone or stopped answering (seen by rank {self.rank}): {_first_line(error)}"
            ) from error
        return bool(raised.item())


def exchange(data: bytes, world: int, group: dist.ProcessGroup) -> list[bytes]:
    """See `Ranks.exchange`."""
    try:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=group)
        longest = max(1, max(int(size) for size in sizes))
        padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(world)]
        dist.all_gather(parts, padded, group=group)
    except RuntimeError as error:
        raise RankError(f"a learner rank is gone: {error}") from error
    return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def join(
    rank: int,
    world: int,
    directory: Path,
    port: int,
    rendezvous_timeout_s: float,
    collective_timeout_s: float,
    lifeline: Lifeline | None = None,
) -> Ranks:
    """Meet the other ranks: at MASTER_ADDR:MASTER_PORT where torchrun or a pod sets them, else at `port` of this
    machine, or, with port 0, at a free port that rank 0 writes into `directory`. `lifeline` tells of a rank that ends
    from then on, while they still meet included.

    Blocks up to `rendezvous_timeout_s`. RankError: the ranks did not meet.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())))
    timeout = timedelta(seconds=collective_timeout_s)
    try:
        store = _meet(rank, world, directory, port, rendezvous_timeout_s, lifeline)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout, store=store, rank=rank, world_size=world
        )
        mesh = init_device_mesh("cuda" if cuda else "cpu", (world,))
        control, watch, background = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(3))
    except (RuntimeError, OSError) as error:
        raise RankError(
            f"learner rank {rank} did not meet the other {world - 1} within {rendezvous_timeout_s:g} s: {error}"
        ) from error
    return Ranks(rank, world, mesh, control, watch, background)


def leave() -> None:
    """Close the connections, so that the others see at once that this rank is gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _meet(rank: int, world: int, directory: Path, port: int, timeout_s: float, lifeline: Lifeline | None) -> Store:
    host, listen = "127.0.0.1", "127.0.0.1"
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        host, listen, port = os.environ["MASTER_ADDR"], "", int(os.environ["MASTER_PORT"])
    path = directory / RENDEZVOUS_FILE
    if rank != 0 and not port:
        return _follow_rank_zero(rank, world, path, timeout_s, lifeline)
    store = TCPStore(host, port, world, rank == 0, timedelta(seconds=timeout_s), wait_for_workers=False)
    if rank != 0:
        if lifeline:
            lifeline.hold(store, host, rank)
        return store
    if lifeline:
        lifeline.serve(store, listen, world)
    if not port:
        _write_whole(path, json.dumps({"port": store.port}))
    return store


def _follow_rank_zero(rank: int, world: int, path: Path, timeout_s: float, lifeline: Lifeline | None) -> Store:
    """Connect to the store that `path` names; one of an earlier incarnation is dead, or has seen this rank before."""
    deadline = time.monotonic() + timeout_s
    spent: int | None = None
    while time.monotonic() < deadline:
        port = _read_port(path)
        if port is not None and port != spent and _listens(port):
            try:
                store = TCPStore("127.0.0.1", port, world, False, timedelta(seconds=_CONNECT_S), wait_for_workers=False)
                # Before it is counted: from then on rank 0 must notice its end.
                if lifeline:
                    lifeline.hold(store, "127.0.0.1", rank)
                if store.add(f"joined/{rank}", 1) == 1:
                    store.set_timeout(timedelta(seconds=timeout_s))
                    return store
                spent = port
            except (RuntimeError, OSError):
                # Whoever listens there is no rank 0 any more, or not yet.
                pass
            if lifeline:
                lifeline.release()
        # A file is all that two processes without a common parent share; nothing can be awaited on it.
        time.sleep(_POLL_S)
    raise RankError(f"learner rank {rank} waited {timeout_s:g} s for rank 0 to write {path}")


def _read_port(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_bytes())["port"])
    except FileNotFoundError:
        return None


def _listens(port: int) -> bool:
    """Whether anything does: torch's own client logs pages about a port of a rank 0 that has ended."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0][:300]
