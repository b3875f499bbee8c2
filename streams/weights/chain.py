"""Which publications make up a version: the newest anchor and the deltas since, or the deltas on what is held."""

from collections.abc import Mapping

from schemas import WeightsPublished


def chain_to(
    target: int, known: Mapping[int, WeightsPublished], held: tuple[int, str | None] | None = None
) -> list[WeightsPublished]:
    """The publications to apply in order, the last one `target`.

    It begins with a full one, or with a delta on `held` (version, digest), or is empty where `held` is the target
    itself. KeyError, with the version that is missing: neither can be had.
    """
    chain: list[WeightsPublished] = []
    event = known[target]
    while True:
        if held is not None and held[1] is not None and held == (event.version, event.digest):
            break
        chain.append(event)
        if event.kind == "full":
            break
        assert event.base_version is not None
        if held is not None and held == (event.base_version, event.base_digest):
            break
        base = known.get(event.base_version)
        # A learner that resumed from an older checkpoint publishes its versions again; only equal ones are this base.
        if base is None or base.digest != event.base_digest:
            raise KeyError(event.base_version)
        event = base
    chain.reverse()
    return chain
