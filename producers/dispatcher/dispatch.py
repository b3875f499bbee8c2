"""The dispatcher's whole state: facts of the log go in, requests come out. No I/O, and time only as an argument."""

from collections.abc import Iterable, Sequence

from producers.dispatcher.admission import Admission
from producers.dispatcher.curriculum import Curriculum, UniformCurriculum
from producers.dispatcher.evaluations import Evaluations, WeightVersions
from producers.dispatcher.length_estimator import LengthEstimate
from producers.dispatcher.refusals import Refusals
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import Prompt
from schemas.codec import decode
from schemas.errors import UndecodableError
from schemas.events import (
    BatchPlanned,
    CanaryScored,
    DeadLetter,
    DeadLetterPurged,
    DeadLetterReplayed,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    StepCompleted,
    WeightsApplied,
    WeightsPublished,
    WeightsRefused,
    application_in,
)
from schemas.identity import group_id
from schemas.parts import Purpose, Ref
from schemas.services import SERVICES
from streams.stages.numbering import Numbering

TOPICS = SERVICES["dispatcher"].follows
"""What the state is rebuilt from and kept up with; the facts of different topics may arrive in any order."""


class Dispatch:
    """What was asked for, what became of it, and so what to ask for next.

    Feed everything on the log to `on_event`, then call `rebuilt` once, then `due` whenever something happened or
    `next_time_s` has passed. What `due` returns counts as written: a caller that cannot write it must end.
    """

    def __init__(
        self,
        settings: DispatcherSettings,
        prompts: Sequence[Prompt],
        held_back: Sequence[Prompt],
        run_seed: int,
        curriculum: Curriculum | None = None,
        config_digest: str | None = None,
    ) -> None:
        """`config_digest`: of the present settings; what was refused with others is tried again."""
        self._settings = settings
        self._prompts = {prompt.prompt_id: prompt for prompt in (*held_back, *prompts)}
        self._curriculum = curriculum or UniformCurriculum([prompt.prompt_id for prompt in prompts], run_seed)
        self._lengths = LengthEstimate()
        self._evaluations = Evaluations(
            [prompt.prompt_id for prompt in held_back] if settings.evaluate_samples else [],
            settings.evaluate_every,
            settings.max_steps,
        )
        self._refusals = Refusals([prompt.prompt_id for prompt in prompts], config_digest)
        self._versions = WeightVersions()
        self._rebuilding = True
        self._sequence = 0
        self._notes: list[str] = []
        self._final_since_s: float | None = None
        self._final_late = False
        self.admission = Admission(settings.window_groups, settings.outcome_grace_s)
        # Held-back groups take no slot of training; they are counted the same way, so that a lost one is noticed.
        self.evaluating = Admission(len(held_back), settings.outcome_grace_s)
        self.steps = 0
        self._numbering: Numbering[None] = Numbering()

    @property
    def requested(self) -> int:
        """Groups asked for in this run, held-back ones included."""
        return self._sequence

    @property
    def refused_prompts(self) -> int:
        """Training prompts that are not asked for any more."""
        return self._refusals.count

    def finished(self) -> bool:
        """Whether the last step is done, its weights published and the last held-back round measured.

        Nothing will be asked for any more, and nothing that the run makes is still on its way: a step is on the log
        before its weights are, so the step alone would end a run without what it trained.
        """
        last = self._settings.max_steps
        if last is None or self.steps < last or self._versions.published < last:
            return False
        return not self._evaluations.final_due(self.steps) and self.evaluating.outstanding == 0

    def on_event(self, event: Event) -> None:
        """Take in one fact; facts that do not concern the dispatcher are passed over."""
        match event:
            case GroupRequested():
                # Its own requests come back from the log too: they were noted when they were made.
                if self._rebuilding:
                    self._note(event)
            case GroupReady():
                self._lengths.observe(event)
                self._curriculum.outcome(event)
                self.admission.ready(event.group_id)
            case GroupDropped():
                self._lengths.observe(event)
                self._curriculum.outcome(event)
                self.admission.ended(event.group_id)
            case GroupEvaluated():
                self.evaluating.ended(event.group_id)
            case BatchPlanned():
                self._numbering.add(event.batch, None)
                self.admission.planned(event.batch, event.groups)
            case StepCompleted():
                self.steps = max(self.steps, event.version)
                self.admission.trained(event.batch)
            case WeightsPublished():
                self._versions.publish(event.version)
            case WeightsApplied() | CanaryScored() | WeightsRefused():
                if (applied := application_in(event)) is not None:
                    self._versions.apply(applied.producer_id, applied.version)
            case DeadLetter():
                self._refuse(event)
            case DeadLetterReplayed():
                self._lift(event.source)
            case DeadLetterPurged():
                self._refuse_purged(event)
            case _:
                pass

    def rebuilt(self) -> None:
        """The log was read to the end that it had when this process had fenced its predecessor."""
        self._rebuilding = False
        self._notes += self._refusals.warnings()
        self.admission.rebuilt()
        self.evaluating.rebuilt()

    def due(self, now_s: float) -> list[GroupRequested]:
        """Every request that may be written now, in the order in which it should be."""
        return [*self._evaluation_due(now_s), *self._training_due(now_s)]

    def give_up(self, now_s: float) -> None:
        """Free the slots of groups that nothing was heard of; `notes` names them."""
        for lost in (*self.admission.give_up(now_s), *self.evaluating.give_up(now_s)):
            self._notes.append(
                f"group {lost} has no outcome {self._settings.outcome_grace_s:g} s after its deadline: "
                "its slot is free again"
            )

    def notes(self) -> list[str]:
        """What should be logged since the last call, as sentences."""
        notes, self._notes = self._notes, []
        return notes

    def next_time_s(self) -> float | None:
        """When time alone changes something."""
        times_s = [self.admission.next_time_s(), self.evaluating.next_time_s(), self._final_deadline_s()]
        return min((time_s for time_s in times_s if time_s is not None), default=None)

    def waiting(self) -> list[str]:
        """What it waits for, as sentences."""
        if self._final_since_s is not None and not self._final_late:
            return [f"for weights {self.steps} to be applied{self._laggards()} before the last held-back round"]
        if self._finished_training():
            if left := self.evaluating.outstanding:
                return [f"for {left} held-back groups to be measured"]
            last = self._settings.max_steps or 0
            late = self.steps >= last > self._versions.published
            return [f"for weights {last} to be published"] if late else []
        if self._refusals.none_left:
            return ["for a prompt: every one of the source was refused (eachprompt dlq list; dlq replay lifts it)"]
        if self._free() == 0:
            complete = self.admission.waiting_for_batch
            return [
                f"for one of {self.admission.outstanding} groups to end, {complete} of them complete and not trained on"
            ]
        return []

    def _training_due(self, now_s: float) -> list[GroupRequested]:
        if self._finished_training():
            return []
        visits = self._curriculum.choose(self._free(), self._settings.samples)
        predicted = [
            (self._lengths.predict(prompt_id, self._prompts[prompt_id].task), prompt_id, visit, samples)
            for prompt_id, visit, samples in visits
        ]
        # The longest response decides when a window is done, so it starts first; the sort keeps the order of equals.
        predicted.sort(key=lambda item: -(item[0] or 0))
        return [
            self._request(prompt_id, visit, samples, now_s, "train", None, tokens)
            for tokens, prompt_id, visit, samples in predicted
        ]

    def _free(self) -> int:
        return self.admission.free(self._settings.held_groups(self._versions.unapplied(self.steps)))

    def _evaluation_due(self, now_s: float) -> Iterable[GroupRequested]:
        round_due = self._evaluations.due(self.steps, self._final_weights_applied(now_s))
        if round_due is None:
            return []
        evaluation, visits = round_due
        samples = self._settings.evaluate_samples
        return [self._request(i, visit, samples, now_s, "evaluate", evaluation, None) for i, visit in visits]

    def _finished_training(self) -> bool:
        # A planned batch will be trained on, so that nothing beyond the last planned one is of any use.
        last = self._settings.max_steps
        return last is not None and max(self.steps, self._numbering.next) >= last

    def _final_weights_applied(self, now_s: float) -> bool:
        if not self._evaluations.final_due(self.steps):
            self._final_since_s = None
            return False
        if self._final_since_s is None:
            self._final_since_s = now_s
        if self._versions.published >= self.steps and not self._versions.behind(self.steps):
            return True
        deadline_s = self._final_since_s + self._settings.final_evaluation_wait_s
        if now_s >= deadline_s and not self._final_late:
            self._final_late = True
            self._notes.append(
                f"weights {self.steps} are not applied{self._laggards()} after "
                f"{self._settings.final_evaluation_wait_s:g} s: the last held-back round measures what is there"
            )
        return self._final_late

    def _final_deadline_s(self) -> float | None:
        if self._final_since_s is None or self._final_late:
            return None
        return self._final_since_s + self._settings.final_evaluation_wait_s

    def _laggards(self) -> str:
        if self._versions.published < self.steps:
            return f" (the newest published are {self._versions.published})"
        behind = self._versions.behind(self.steps)
        return f" by {', '.join(behind)}" if behind else ""

    def _request(
        self,
        prompt_id: str,
        visit: int,
        samples: int,
        now_s: float,
        purpose: Purpose,
        evaluation: int | None,
        predicted_tokens: int | None,
    ) -> GroupRequested:
        prompt = self._prompts[prompt_id]
        request = GroupRequested(
            group_id=group_id(prompt_id, visit),
            prompt_id=prompt_id,
            visit=visit,
            sequence=self._sequence,
            task=prompt.task,
            samples=samples,
            sampling=self._settings.sampling.on_wire(),
            verifier=prompt.verifier,
            reference=prompt.reference,
            time_s=now_s,
            deadline_s=now_s + self._settings.group_timeout_s,
            prompt=prompt.text,
            messages=prompt.messages,
            purpose=purpose,
            evaluation=evaluation,
            version=self._versions.published,
            predicted_tokens=predicted_tokens,
            metadata=prompt.metadata,
        )
        self._note(request)
        return request

    def _note(self, request: GroupRequested) -> None:
        self._sequence = max(self._sequence, request.sequence + 1)
        self._curriculum.visited(request.prompt_id, request.visit)
        self._evaluations.visited(request.prompt_id, request.visit)
        match request.purpose:
            case "train":
                self.admission.requested(request.group_id, request.deadline_s)
            case "evaluate":
                self.evaluating.requested(request.group_id, request.deadline_s)
                if request.evaluation is not None:
                    self._evaluations.requested(request.evaluation, request.prompt_id)

    def _refuse(self, dead: DeadLetter) -> None:
        """A request that its producer could not take ends its group, and its prompt is not asked for again."""
        if dead.source.topic != "prompts":
            return
        try:
            request = decode(dead.data)
        except UndecodableError:
            return
        if isinstance(request, GroupRequested):
            (self.evaluating if request.purpose == "evaluate" else self.admission).ended(request.group_id)
            if self._refusals.add(dead.source, request.prompt_id, dead.config_digest):
                self._curriculum.refused(request.prompt_id)
                if not self._rebuilding:
                    self._notes.append(f"prompt {request.prompt_id} is not asked for again: {dead.error}")
                    self._notes += self._refusals.warnings()

    def _lift(self, source: Ref) -> None:
        """Its operator has put the request back: what refused it was mended."""
        if source.topic == "prompts" and (prompt_id := self._refusals.lift(source)) is not None:
            self._curriculum.allowed(prompt_id)

    def _refuse_purged(self, purged: DeadLetterPurged) -> None:
        """The request's bytes are gone; its record's key, which the note of the purge has kept, is its group."""
        if purged.source.topic != "prompts":
            return
        group = (purged.key or b"").decode(errors="replace")
        prompt_id, _, visit = group.rpartition(".")
        if prompt_id in self._prompts and visit.isdigit():
            if purged.replayed is not None:
                self._lift(purged.source)
            elif self._refusals.add(purged.source, prompt_id, purged.config_digest):
                self._curriculum.refused(prompt_id)
            self.admission.ended(group)
            self.evaluating.ended(group)
