"""The group of ranks: its process groups, the exchange of bytes between ranks, and the heartbeat.

Tensors of the model travel through FSDP's own collectives (gloo on CPU, NCCL on CUDA). Everything else is a few bytes a
rank: `RankGroup.exchange` gathers them through a gloo group, in rank order and without pickle.
"""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from learner.errors import RankError
from learner.ranks.lifeline import RendezvousInfo


@dataclass(frozen=True)
class RankGroup:
    """This process as `rank` of `world`. `control`, `watch` and `background` are separate gloo groups: the training
    thread, the heartbeat and a checkpoint being written never wait for one another's collectives.

    `mesh` is `[shards]`, or `[replicas, shards]` with HSDP: parameters are gathered within one replica of the model;
    only gradients are reduced between replicas.
    """

    rank: int
    world: int
    mesh: DeviceMesh
    control: dist.ProcessGroup
    watch: dist.ProcessGroup
    background: dist.ProcessGroup

    @property
    def device(self) -> torch.device:
        """The device that this rank computes on."""
        if self.mesh.device_type == "cpu":
            return torch.device("cpu")
        return torch.device(self.mesh.device_type, torch.cuda.current_device())

    @property
    def replicas(self) -> int:
        """How many ranks or groups of ranks hold the whole model (HSDP's replicas); 1 without HSDP."""
        return self.mesh.size(0) if self.mesh.ndim == 2 else 1

    def exchange(self, data: bytes, group: dist.ProcessGroup | None = None) -> list[bytes]:
        """All-gather of `data`: every rank's bytes, in rank order, over `group` (default `control`).

        Blocking and collective: all ranks must call it. RankError: another rank is gone.
        """
        return exchange(data, self.world, self.control if group is None else group)

    def heartbeat(self, flag: bool) -> bool:
        """One heartbeat of every rank: whether any of them raised its flag. Blocking and collective.

        Rank 0 receives from each peer and answers all of them, so it knows which one is silent: RankError names it.
        """
        raised = torch.tensor([int(flag)])
        peers = range(1, self.world) if self.rank == 0 else (0,)
        peer = 0
        try:
            if self.rank != 0:
                dist.send(raised, 0, self.watch)
            for peer in peers:
                received = torch.zeros_like(raised)
                dist.recv(received, peer, self.watch)
                raised = torch.maximum(raised, received)
            if self.rank == 0:
                for peer in peers:
                    dist.send(raised, peer, self.watch)
        except RuntimeError as error:
            raise RankError(
                f"learner rank {peer} is gone or stopped answering (seen by rank {self.rank}): {_first_line(error)}"
            ) from error
        return bool(raised.item())


def exchange(data: bytes, world: int, group: dist.ProcessGroup) -> list[bytes]:
    """See `RankGroup.exchange`."""
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


def join_group(info: RendezvousInfo, timeout_s: float, replicas: int = 1) -> RankGroup:
    """Form the process groups after a rendezvous. Blocking; RankError: another rank ended meanwhile.

    `timeout_s` bounds every collective from then on. `replicas` must divide the number of ranks; adjacent ranks
    share one copy of the model.
    """
    cuda = torch.cuda.is_available()
    rank, world = info.rank, info.world
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())))
    timeout = timedelta(seconds=timeout_s)
    try:
        store = _store(info, timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout, store=store, rank=rank, world_size=world
        )
        sizes, dimensions = (
            ((world,), ("shard",)) if replicas == 1 else ((replicas, world // replicas), ("replica", "shard"))
        )
        mesh = init_device_mesh("cuda" if cuda else "cpu", sizes, mesh_dim_names=dimensions)
        control, watch, background = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(3))
    except (RuntimeError, OSError) as error:
        raise RankError(
            f"learner rank {rank} could not form process groups with the other {world - 1}: {_first_line(error)}"
        ) from error
    return RankGroup(rank, world, mesh, control, watch, background)


def leave_group() -> None:
    """Destroy the process groups. Their connections close, so the peers see at once that this rank is gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _store(info: RendezvousInfo, timeout: timedelta) -> TCPStore:
    """The TCP store of the group; rank 0 serves it on the socket whose port the rendezvous reported."""
    descriptor = None if info.listening is None else info.listening.detach()
    return TCPStore(
        info.host,
        info.port,
        info.world,
        descriptor is not None,
        timeout,
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
