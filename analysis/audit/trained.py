"""Every step's digest computed again from the batches and rollouts of the log: what was trained on is what is there.

    trained = TrainedDigests()
    for topic in ("steps", "batches", "rollouts"):
        for event, ref in ...:
            trained.add(event, ref)
    verified, altered = trained.judge()

Pure. Memory: what the steps with a digest were planned with, and 32 bytes a rollout. A step that lacks a rollout, which
retention deleted or which is outside what was read, is not judged.
"""

from collections import defaultdict

from analysis.audit.result import Finding
from schemas import BatchPlanned, Event, PlannedSequence, Ref, RolloutCompleted, StepCompleted
from schemas.digests import sequence_digest, step_digest


class TrainedDigests:
    """Takes steps, then batches, then rollouts; the first record of a step counts."""

    def __init__(self) -> None:
        self._steps: dict[int, tuple[Ref, StepCompleted]] = {}
        self._batches: dict[Ref, tuple[PlannedSequence, ...] | None] = {}
        self._planned: dict[Ref, list[PlannedSequence]] = defaultdict(list)
        self._digests: dict[tuple[Ref, float, str | None], bytes] = {}

    def add(self, event: Event, ref: Ref) -> None:
        """Add one event; `ref` is the place of its record."""
        match event:
            case StepCompleted() if event.trained_digest is not None:
                self._steps.setdefault(event.step, (ref, event))
                self._batches.setdefault(Ref(*event.batch_ref))
            case BatchPlanned() if ref in self._batches:
                self._batches[ref] = event.sequences
                for sequence in event.sequences:
                    self._planned[Ref(*sequence.rollout)].append(sequence)
            case RolloutCompleted():
                for sequence in self._planned.get(ref, ()):
                    self._digests[_key(sequence)] = sequence_digest(sequence, event)
            case _:
                pass

    def wants(self, ref: Ref) -> bool:
        """Whether the rollout at `ref` belongs to a batch that is judged, so that it has to be decoded."""
        return ref in self._planned

    def judge(self) -> tuple[int, list[Finding]]:
        """How many steps agree with the log, and those that do not."""
        verified, altered = 0, []
        for number, (ref, step) in sorted(self._steps.items()):
            sequences = self._batches[Ref(*step.batch_ref)]
            if sequences is None:
                continue
            rejected = {Ref(*each.rollout) for each in step.rejected}
            kept = [each for each in sequences if Ref(*each.rollout) not in rejected]
            digests = [digest for each in kept if (digest := self._digests.get(_key(each))) is not None]
            if len(digests) < len(kept):
                continue
            if (found := step_digest(digests)) == step.trained_digest:
                verified += 1
            else:
                what = f"was trained on {step.trained_digest}, and the log holds {found} for it"
                altered.append(Finding(f"step {number}", ref, what, "altered"))
        return verified, altered


def _key(sequence: PlannedSequence) -> tuple[Ref, float, str | None]:
    return Ref(*sequence.rollout), sequence.advantage, sequence.unanimous
