"""Old blobs go, and never the weights that a producer needs to start."""

import os
import time
from pathlib import Path
from typing import Any, Literal

from producers.dispatcher.blob_gc import NeededBlobs
from producers.dispatcher.service import main
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import JsonlSource
from schemas import BlobRef, WeightsPublished
from streams.blobs.store import BlobStore
from streams.record import Output
from tests.builders import weights_published

HOUR_S = 3600


def published(version: int, kind: Literal["full", "delta"] = "full") -> WeightsPublished:
    base: dict[str, Any] = {} if kind == "full" else {"base_version": version - 1, "base_digest": "b", "digest": "d"}
    return weights_published(version, kind=kind, **base)


def going(needed: NeededBlobs, versions: int = 12) -> list[int]:
    return [version for version in range(versions) if needed.may_go(f"weights/v{version}/model.ab")]


def test_the_last_two_anchors_and_all_after_them_stay() -> None:
    needed = NeededBlobs()
    assert going(needed) == []
    for event in (published(1), published(2, "delta"), published(3, "delta")):
        needed.on_event(event)
    assert going(needed) == []
    for event in (published(4), published(5, "delta"), published(8), published(8), published(9, "delta")):
        needed.on_event(event)
    assert going(needed) == [0, 1, 2, 3], "a version that is published in full again is one anchor"
    needed.on_event(published(2))
    assert going(needed) == [0, 1], "a learner that went back to an older checkpoint"


def test_only_what_is_known_goes() -> None:
    needed = NeededBlobs()
    assert needed.may_go("routes/p.0.1.ab")
    assert not needed.may_go("notes/routes/a")
    assert not needed.may_go("weights/latest/a")


async def test_the_dispatcher_collects_by_age(run: Any, tmp_path: Path) -> None:
    def blob(name: str, age_h: float) -> Path:
        ref: BlobRef = store.put(name, b"x")
        path, then_s = Path(ref.uri.removeprefix("file://")), time.time() - age_h * HOUR_S
        os.utime(path, (then_s, then_s))
        return path

    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1=", "verifier": "exact_match", "reference": "2"}\n')
    store = BlobStore(run.context.blob_uri)
    expired, within_the_margin, weights = blob("routes/a", 27), blob("routes/b", 25), blob("weights/v1/a", 1000)
    await run.write(Output("weights", published(1), key="1"))
    settings = DispatcherSettings(source=JsonlSource(path=str(tmp_path / "train.jsonl")), retention_h=2)
    async with run.service("dispatcher") as service:
        service.spawn(main(service, settings), "dispatcher")
        end_s = time.monotonic() + 60
        while expired.exists():
            assert time.monotonic() < end_s
            await service.until_stopped(0.05)
    assert within_the_margin.exists() and weights.exists()
