"""Which training groups are outstanding, and how many more may be: the bound on staleness, without I/O or clock."""

import math


class Admission:
    """Slots of outstanding training groups: one is taken by a request and freed by the group's end.

    A group ends by being dropped, or by the step that trained on the batch that holds it. The facts of different topics
    reach a reader in any order, at start even an outcome before its request; the count comes out the same. A group
    without any outcome `grace_s` after its deadline is given up, so that one lost group never wedges training; one that
    is complete and waits for its batch has no deadline any more.
    """

    def __init__(self, window_groups: int, grace_s: float) -> None:
        self._window = window_groups
        self._grace_s = grace_s
        self._outcome_due_s: dict[str, float] = {}
        self._batches: dict[int, tuple[str, ...]] = {}
        self._trained_unplanned: set[int] = set()
        self._rebuilding = True
        self._ended_early: set[str] = set()
        self._ready_early: set[str] = set()

    @property
    def outstanding(self) -> int:
        """Groups that hold a slot."""
        return len(self._outcome_due_s)

    @property
    def waiting_for_batch(self) -> int:
        """Outstanding groups that are complete."""
        return sum(due_s == math.inf for due_s in self._outcome_due_s.values())

    def free(self, held_groups: int = 0) -> int:
        """Slots that may be filled now, `held_groups` of the window left empty. Never negative."""
        return max(0, self._window - held_groups - self.outstanding)

    def requested(self, group_id: str, deadline_s: float) -> None:
        """A slot is taken."""
        if group_id in self._ended_early:
            self._ended_early.discard(group_id)
        elif group_id in self._ready_early:
            self._outcome_due_s[group_id] = math.inf
        else:
            self._outcome_due_s[group_id] = deadline_s + self._grace_s

    def ready(self, group_id: str) -> None:
        """The group is complete and will be trained on."""
        if group_id in self._outcome_due_s:
            self._outcome_due_s[group_id] = math.inf
        elif self._rebuilding:
            self._ready_early.add(group_id)

    def ended(self, group_id: str) -> None:
        """The group's slot is free."""
        if self._outcome_due_s.pop(group_id, None) is None and self._rebuilding:
            self._ended_early.add(group_id)

    def planned(self, batch: int, groups: tuple[str, ...]) -> None:
        """`batch` holds `groups`."""
        if batch in self._trained_unplanned:
            self._trained_unplanned.discard(batch)
            self._end_all(groups)
            return
        self._batches[batch] = groups
        for group_id in groups:
            self.ready(group_id)

    def trained(self, batch: int) -> None:
        """The learner is done with `batch`. A repeated record of the same step changes nothing that matters."""
        groups = self._batches.pop(batch, None)
        if groups is None:
            self._trained_unplanned.add(batch)
        else:
            self._end_all(groups)

    def rebuilt(self) -> None:
        """Every earlier request has been seen: facts about any other group are about groups that ended.

        Steps without a plan are kept: a step newer than this process may have been read before its batch.
        """
        self._rebuilding = False
        self._ended_early.clear()
        self._ready_early.clear()

    def give_up(self, now_s: float) -> list[str]:
        """Free the slots of groups without outcome past deadline and grace; their ids."""
        lost = [group_id for group_id, due_s in self._outcome_due_s.items() if due_s <= now_s]
        for group_id in lost:
            del self._outcome_due_s[group_id]
        return lost

    def next_time_s(self) -> float | None:
        """When the next group may have to be given up."""
        due_s = min(self._outcome_due_s.values(), default=math.inf)
        return None if due_s == math.inf else due_s

    def _end_all(self, groups: tuple[str, ...]) -> None:
        for group_id in groups:
            self.ended(group_id)
