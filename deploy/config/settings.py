"""The sections of a run's TOML other than the services' own; each field is documented where it is defined.

Settings that several services must agree on are here, once; `deploy.config.shared` hands them to the services.
"""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from streams.broker.base import BrokerError
from streams.broker.settings import MIB, BrokerSettings


class RunSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[run]: what the run is, and what its services share."""

    id: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$",
            description="prefix of its topics; empty: file name",
            extra={"fixed": "its topics are named by it"},
        ),
    ] = ""
    seed: Annotated[int, Meta(ge=0, lt=2**31, description="seed of prompts, sampling and initialisation")] = 0
    steps: Annotated[int, Meta(ge=0, description="training steps; 0: until stopped")] = 0
    groups_per_batch: Annotated[int, Meta(ge=1, description="groups that one step trains on")] = 16
    group_size: Annotated[int, Meta(ge=1, description="rollouts of each prompt")] = 8
    max_staleness: Annotated[int, Meta(ge=0, description="versions a rollout may be behind when trained")] = 1
    ranks: Annotated[int, Meta(ge=1, description="learner processes that the model is sharded over")] = 2
    partitions: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="partitions of the topics that are sharded",
            extra={"fixed": "a group's records are found by it"},
        ),
    ] = 4
    replication: Annotated[int, Meta(ge=1, le=7, description="replicas of every topic; 1 for local brokers")] = 1
    retention_h: Annotated[float, Meta(ge=0, description="hours that records stay on the log; 0: indefinitely")] = 168.0
    drain_s: Annotated[float, Meta(ge=0, description="seconds a stopped service may take to finish its work")] = 5.0


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[model]: what is trained."""

    path: Annotated[str, Meta(min_length=1, description="Hugging Face MoE directory of a supported family")]


class BrokerSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[broker]: where the log is. ValueError where the values do not fit together."""

    kind: Annotated[
        Literal["auto", "kafka", "embedded", "external"],
        Meta(
            description="auto: Kafka where Java and its jars are there, else embedded",
            extra={"fixed": "the log of the run is there"},
        ),
    ] = "auto"
    bootstrap_servers: Annotated[str, Meta(description="host:port[,host:port...] of an external cluster")] = ""
    ephemeral: Annotated[bool, Meta(description="the topics may be lost; the embedded broker needs it")] = False
    port: Annotated[int, Meta(ge=0, le=65535, description="port of a local broker; 0: a free one")] = 0
    heap_mib: Annotated[int, Meta(ge=128, description="Java heap of a local Kafka in MiB")] = 512
    message_max_bytes: Annotated[int, Meta(ge=MIB, le=1024 * MIB, description="largest record batch")] = 64 * MIB
    java: Annotated[str, Meta(min_length=1, description="Java program, by name or path")] = "java"
    jars: Annotated[str, Meta(description="directory of Kafka's jars; empty: where `make setup` puts them")] = ""

    def __post_init__(self) -> None:
        try:
            self.build()
        except BrokerError as error:
            raise ValueError(str(error)) from None

    def build(self) -> BrokerSettings:
        """The same settings as `streams.broker` takes them."""
        return BrokerSettings(
            kind=self.kind,
            bootstrap_servers=self.bootstrap_servers,
            ephemeral=self.ephemeral,
            port=self.port,
            heap_mib=self.heap_mib,
            message_max_bytes=self.message_max_bytes,
            java=self.java,
            jars=Path(self.jars) if self.jars else None,
        )


class BlobSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[blobs]: where weights and large arrays are kept."""

    uri: Annotated[
        str,
        Meta(
            description="fsspec URI such as s3://bucket/run; empty: blobs/ of the run directory",
            extra={"fixed": "weights and routes that the log refers to are there"},
        ),
    ] = ""
    inline_max_bytes: Annotated[int, Meta(ge=0, description="larger arrays go to the blob store, not the log")] = MIB


class TracingSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[tracing]: where spans go."""

    otlp_endpoint: Annotated[str, Meta(description="OTLP/HTTP traces URL; empty: traces/ of the run directory")] = ""


class ReplicaSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[replicas]: processes of each service that may have several."""

    producer: Annotated[int, Meta(ge=1, description="vLLM engines")] = 1
    rewards: Annotated[int, Meta(ge=1, description="reward consumers")] = 1
    groups: Annotated[int, Meta(ge=1, description="group aggregators")] = 1


class SupervisorSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[supervisor]: how the local supervisor treats a service that ends."""

    backoff_first_s: Annotated[float, Meta(gt=0, description="seconds after a quick failure; doubles")] = 0.5
    backoff_max_s: Annotated[float, Meta(gt=0, description="longest time before a restart")] = 15.0
    quick_failure_s: Annotated[float, Meta(gt=0, description="a service that was ready longer starts afresh")] = 5.0
    quick_failures: Annotated[int, Meta(ge=1, description="quick failures in a row after which it gives up")] = 5
    broker_s: Annotated[float, Meta(gt=0, description="seconds for the broker to be ready")] = 60.0
    stop_s: Annotated[float, Meta(gt=0, description="seconds for everything to stop, before it is killed")] = 20.0

    def __post_init__(self) -> None:
        if self.backoff_max_s < self.backoff_first_s:
            raise ValueError(
                f"backoff_max_s is {self.backoff_max_s:g}; allowed: at least backoff_first_s, {self.backoff_first_s:g}"
            )
