"""Prompts from reasoning-gym: procedurally generated tasks with their own scorers."""

import warnings
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import msgspec

from producers.dispatcher.sources.prompt import Prompt, SourceError


class ReasoningGymSource(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="reasoning_gym"
):
    """One reasoning-gym data set: `size` entries of `dataset`, drawn with `seed` and its own `config`."""

    ORIGIN: ClassVar[str] = "reasoning-gym data set"
    """Begins the origin of its prompts: entries that are scored as they are made need no further check."""

    dataset: Annotated[str, msgspec.Meta(min_length=1, description="the data set's name, e.g. chain_sum")]
    size: Annotated[int, msgspec.Meta(ge=1, description="entries to generate")] = 1000
    seed: Annotated[int, msgspec.Meta(ge=0, description="seed of the entries; another seed gives held-back ones")] = 0
    config: Annotated[dict[str, Any], msgspec.Meta(description="settings of the data set, by its own names")] = {}

    def load(self) -> list[Prompt]:
        """Every entry once. SourceError: a name, setting or entry that is not allowed."""
        # Imported here: it takes seconds and as much memory as the whole rest of the service.
        with warnings.catch_warnings():
            # Compiling one of its dependencies for the first time prints eight lines about the dependency's own code.
            warnings.filterwarnings("ignore", category=SyntaxWarning, module=".*cellpylib.*")
            from reasoning_gym.factory import DATASETS, create_dataset

        if self.dataset not in DATASETS:
            raise SourceError(
                f"reasoning-gym has no data set {self.dataset!r}; its data sets are {', '.join(sorted(DATASETS))}"
            )
        for name in ("size", "seed"):
            if name in self.config:
                raise SourceError(f"{name} of reasoning-gym data set {self.dataset} belongs beside config, not in it")
        try:
            dataset = create_dataset(self.dataset, size=self.size, seed=self.seed, **self.config)
        except (TypeError, ValueError, AssertionError) as error:
            raise SourceError(f"reasoning-gym data set {self.dataset} does not take {self.config}: {error}") from error
        first_of: dict[str, Prompt] = {}
        for prompt in self._prompts(dataset):
            # Generated tasks repeat questions; their scorers judge by the entry, so that the first one serves.
            first_of.setdefault(prompt.prompt_id, prompt)
        return list(first_of.values())

    def _prompts(self, dataset: Any) -> Iterator[Prompt]:
        for index in range(self.size):
            origin = f"{self.ORIGIN} {self.dataset} (seed {self.seed}), entry {index}"
            generated = dataset[index]
            entry = _plain(generated, origin)
            if index == 0 and not _scored_alike(dataset, generated, entry):
                raise SourceError(
                    f"reasoning-gym data set {self.dataset} cannot be used: its scorer judges an entry differently "
                    "once tuples have become lists on the log"
                )
            yield Prompt.of(
                task=self.dataset,
                verifier="reasoning_gym",
                reference={"dataset": self.dataset, "entry": entry},
                text=entry["question"],
                origin=origin,
            )


def _scored_alike(dataset: Any, generated: Any, plain: dict[str, Any]) -> bool:
    """Whether the right answer gets the same score for the entry as generated and as it arrives at its scorer."""
    answer = generated["answer"]
    if answer is None:
        return True
    return bool(dataset.score_answer(answer, generated) == dataset.score_answer(answer, plain))


def _plain(entry: Any, origin: str) -> dict[str, Any]:
    """The entry as maps, lists, numbers and text: what a record can carry. NumPy scalars become Python's."""

    def scalar(value: Any) -> Any:
        if hasattr(value, "item"):
            return value.item()
        raise TypeError(f"it holds a {type(value).__name__}")

    try:
        plain: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(entry, enc_hook=scalar))
    except (TypeError, ValueError) as error:
        raise SourceError(f"{origin} is nothing that a record can carry: {error}") from error
    return plain
