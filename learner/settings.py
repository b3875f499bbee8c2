"""The learner's settings: each field documented where it is defined. No torch, so that every command can read them."""

import math
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from learner.objective_settings import Correction, EspoSettings, NoCorrection, Objective, kind_of

Precision = Literal["f32", "bf16", "fp8"]
ReplayMode = Literal["rollout", "old", "off"]


SUPPORTED: Final = ("qwen3_moe", "mixtral", "olmoe", "deepseek_v3")
"""`model_type` of the families that the learner trains and that router replay has an adapter for."""


def require_finite(settings: msgspec.Struct, *names: str) -> None:
    """ValueError: one of them is TOML's `inf` or `nan`: weights become NaN, and torch's timeouts are whole numbers."""
    for name in names:
        if not math.isfinite(getattr(settings, name)):
            raise ValueError(f"{name} is {getattr(settings, name)}, allowed is a finite number")


class PublishSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How published weights travel, and how closely producers are watched."""

    every: Annotated[int, Meta(ge=1, description="steps between published weights")] = 1
    kind: Annotated[
        Literal["full", "delta"],
        Meta(description="full: every tensor of every version; delta: what changed since the version before"),
    ] = "full"
    anchor_every: Annotated[
        int, Meta(ge=1, description="with kind delta, every so many published versions one is full")
    ] = 10
    wire: Annotated[
        Literal["bf16", "fp8"], Meta(description="fp8: projections in 128x128 e4m3 blocks with float32 scales")
    ] = "bf16"
    max_file_bytes: Annotated[int, Meta(ge=1, description="size at which published weights are split into files")] = (
        4 * 1024**3
    )
    canary: Annotated[bool, Meta(description="score a fixed set at each publication and compare producers with it")] = (
        True
    )
    canary_bound: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="mean |Δ log p| to a producer that is an alarm; left out: 6 times its engine's own rounding"),
    ] = None

    def __post_init__(self) -> None:
        if self.kind == "delta" and self.anchor_every == 1:
            raise ValueError(
                "anchor_every is 1; allowed with kind 'delta': at least 2, for with 1 it would publish anchors alone, "
                "which is kind 'full'"
            )


class OptimizerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """AdamW."""

    learning_rate: Annotated[float, Meta(gt=0, description="peak learning rate of AdamW")] = 3e-4
    beta1: Annotated[float, Meta(ge=0, lt=1, description="decay of AdamW's first moment")] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1, description="decay of AdamW's second moment")] = 0.99
    weight_decay: Annotated[float, Meta(ge=0, description="decoupled weight decay")] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0, description="global gradient norm is clipped to this")] = 1.0
    cpu_offload: Annotated[
        bool,
        Meta(description="keep master weights, gradients and optimizer state in host memory and update them there"),
    ] = False

    def __post_init__(self) -> None:
        require_finite(self, "learning_rate", "weight_decay")


class ScheduleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The course of the learning rate, in batches. ValueError: it would end before its warm-up."""

    kind: Annotated[
        Literal["constant", "linear", "cosine"], Meta(description="course of the rate after the warm-up")
    ] = "linear"
    warmup_steps: Annotated[int, Meta(ge=0, description="batches over which the rate rises linearly")] = 3
    decay_steps: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="batches until the rate is at its final share; left out: run.steps, else never"),
    ] = None
    final_ratio: Annotated[float, Meta(ge=0, le=1, description="final rate as a share of the peak")] = 0.1

    def __post_init__(self) -> None:
        if self.kind != "constant" and self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps {self.decay_steps} is not above warmup_steps {self.warmup_steps}, as schedule "
                f"{self.kind!r} needs"
            )


class PrecisionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """In which numbers is computed."""

    compute: Annotated[Precision, Meta(description="compute precision; master weights and reductions are float32")] = (
        "f32"
    )
    fp8_recipe: Annotated[
        Literal["block", "delayed"],
        Meta(description="scales under precision fp8: by block, or by tensor from past steps (not in checkpoints)"),
    ] = "block"


class ParallelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the ranks hold the model together, and how long they wait for one another."""

    dp_replicate: Annotated[
        int,
        Meta(ge=1, description="times the model is held; each replica is sharded over ranks / dp_replicate neighbours"),
    ] = 1
    master_port: Annotated[
        int,
        Meta(ge=0, le=65535, description="rendezvous port; 0: free port, published in the run directory (one machine)"),
    ] = 0
    rendezvous_timeout_s: Annotated[float, Meta(gt=0, description="seconds for all ranks to meet")] = 180.0
    collective_timeout_s: Annotated[float, Meta(gt=0, description="seconds a rank waits for the others")] = 120.0
    heartbeat_s: Annotated[float, Meta(gt=0, description="seconds between the ranks' signs of life")] = 0.5

    def __post_init__(self) -> None:
        require_finite(self, "rendezvous_timeout_s", "collective_timeout_s", "heartbeat_s")


class CheckpointSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When checkpoints are written, and which are kept."""

    every: Annotated[int, Meta(ge=1, description="steps between checkpoints")] = 10
    keep: Annotated[int, Meta(ge=1, description="newest checkpoints that are kept")] = 2
    keep_every: Annotated[
        int, Meta(ge=0, description="checkpoints whose step this divides are kept for good; 0: none")
    ] = 0


class LearnerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one `BatchPlanned` becomes the next weights. Raises ValueError, one sentence, where fields do not fit."""

    model: Annotated[str, Meta(min_length=1, description="Hugging Face MoE directory that training starts from")]
    objective: Annotated[Objective, Meta(description="policy objective, by kind, with its settings")] = EspoSettings()
    correction: Annotated[
        Correction, Meta(description="weight for engine-trainer mismatch, by kind, with its settings")
    ] = NoCorrection()
    old_policy: Annotated[
        Literal["proximal", "rollout"],
        Meta(description="old policy: the learner's own proximal pass, or the engine's recorded log-probabilities"),
    ] = "proximal"
    kl_coefficient: Annotated[
        float,
        Meta(
            ge=0, description="weight of the KL term to the frozen initial model; 0: none, and no second model is held"
        ),
    ] = 0.0
    zero_variance_alpha: Annotated[
        float,
        Meta(gt=0, description="scale of the entropy-shaped advantages in groups of zero reward variance (RL-ZVP)"),
    ] = 0.1
    router_replay: Annotated[
        ReplayMode,
        Meta(description="experts used in training: recorded by the engine, by the proximal pass, or routed anew"),
    ] = "rollout"

    optimizer: Annotated[OptimizerSettings, Meta(description="AdamW")] = OptimizerSettings()
    schedule: Annotated[ScheduleSettings, Meta(description="course of the learning rate")] = ScheduleSettings()
    precision: Annotated[PrecisionSettings, Meta(description="in which numbers is computed")] = PrecisionSettings()
    parallel: Annotated[ParallelSettings, Meta(description="how the ranks work together")] = ParallelSettings()
    checkpoint: Annotated[CheckpointSettings, Meta(description="when checkpoints are written")] = CheckpointSettings()
    updates_per_batch: Annotated[int, Meta(ge=1, description="optimizer steps on each batch")] = 1

    attention: Annotated[
        Literal["packed", "sdpa", "eager", "flash_attention_2", "flex_attention"],
        Meta(description="attention: packed costs the sequences' squares; sdpa and eager the whole row's"),
    ] = "packed"
    experts: Annotated[Literal["eager", "grouped_mm"], Meta(description="implementation of the expert layers")] = (
        "eager"
    )
    activation_checkpointing: Annotated[bool, Meta(description="recompute activations in backward to save memory")] = (
        False
    )
    chunk_tokens: Annotated[
        int, Meta(ge=1, description="tokens whose logits over the vocabulary are held at a time")
    ] = 2048
    max_sequence_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="longer sequences are rejected; default: the model's own limit"),
    ] = None
    measure_replay_every: Annotated[
        int, Meta(ge=0, description="steps between native passes that measure what replay changes; 0: never")
    ] = 1

    publish: Annotated[PublishSettings, Meta(description="how published weights travel")] = PublishSettings()
    max_steps: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="publish, checkpoint and idle after this many steps; default: never"),
    ] = None

    ranks: Annotated[int, Meta(ge=1, description="processes that the model is sharded over")] = 2
    threads: Annotated[int, Meta(ge=1, description="CPU threads of torch in each rank")] = 1
    fetch_timeout_s: Annotated[float, Meta(gt=0, description="seconds to read a batch's rollouts")] = 30.0

    def __post_init__(self) -> None:
        require_finite(self, "kl_coefficient", "zero_variance_alpha", "fetch_timeout_s")
        if self.old_policy == "rollout" and isinstance(self.objective, EspoSettings):
            raise ValueError(
                "learner old_policy 'rollout' has no proximal entropies, and objective 'espo' needs them: use "
                "old_policy 'proximal' or objective grpo, dapo, gspo, cispo or gmpo"
            )
        if self.old_policy == "rollout" and not isinstance(self.correction, NoCorrection):
            raise ValueError(
                f"learner correction {kind_of(self.correction)!r} weighs by old policy against rollout policy, and "
                f"with old_policy 'rollout' they are one: use correction 'none' or old_policy 'proximal'"
            )
        if self.old_policy == "rollout" and self.router_replay == "old":
            raise ValueError(
                "learner router_replay 'old' replays the proximal pass, which old_policy 'rollout' leaves out"
            )
        if self.ranks % self.parallel.dp_replicate:
            raise ValueError(
                f"learner parallel.dp_replicate is {self.parallel.dp_replicate}, which does not divide ranks "
                f"{self.ranks}: every copy "
                f"of the model is sharded over the same number of ranks"
            )
        if self.precision.compute == "fp8" and self.precision.fp8_recipe == "delayed" and self.activation_checkpointing:
            raise ValueError(
                "learner precision.fp8_recipe 'delayed' would count the maxima of recomputed layers twice: use "
                "fp8_recipe "
                "'block' or activation_checkpointing false"
            )
        if self.parallel.collective_timeout_s < 3 * self.fetch_timeout_s:
            raise ValueError(
                f"learner parallel.collective_timeout_s {self.parallel.collective_timeout_s:g} is not at least three "
                f"times "
                f"fetch_timeout_s {self.fetch_timeout_s:g}: ranks wait for the one whose rollouts are slow to read"
            )
