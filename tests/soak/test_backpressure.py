"""Features never pile up: extraction that is far ahead of the engine waits for it.

Both ways of running are bounded in bytes, by `Resources.ahead_bytes`; neither starves the engine
for it, nor does Ray spill anything to disk.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from corpus_asr.config.run import RunConfig
from corpus_asr.config.settings import Auto
from corpus_asr.runtime.ray_cluster import Cluster
from corpus_asr.stages.parts import ExtractRequest, PartRow
from corpus_asr.stages.transcribe import EngineSpec
from corpus_asr.units import MEBIBYTE
from tests.runtime import test_ray_dataset
from tests.support.engines import ScriptedEngine, outcomes_by_part, run_scripted, scripted_job
from tests.support.extractors import scripted_part
from tests.support.tables import packs_of

pytestmark = pytest.mark.slow

FRAMES, MEL = 60_000, 80
PART_BYTES = FRAMES * MEL * 2  # 10 minutes: 9.6 MB
FILES, PARTS = 6, 8
WORKERS = 2
PAUSE_S = 0.1  # of the engine for each part
# Beside what is counted, a worker has a part on its way from its child, one held back until the
# next is known, and one waiting to be counted; with Ray one more that it has read too much.
PARTS_PER_WORKER = 4
EXTRACTOR = "tests.soak.test_backpressure:make_large"


def make_large(**_: Any) -> Callable[[ExtractRequest], Iterator[PartRow]]:
    """Return an extractor of large parts that takes no time, and notes each in a file."""

    def extract(request: ExtractRequest) -> Iterator[PartRow]:
        for part in range(PARTS):
            _note(request.uri, "+")
            features = np.full((FRAMES, MEL), part, np.float16)
            changes = {"features": features, "num_mel_bins": MEL, "language_features": None}
            yield scripted_part(part) | changes

    return extract


class NotingEngine(ScriptedEngine):
    """Takes its time for one part after the other, and notes when it is done with one."""

    def __init__(self) -> None:
        super().__init__()
        self._one = threading.Lock()

    def submit(self, request: Any) -> "Future[Any]":
        with self._one:
            time.sleep(PAUSE_S)
            future = super().submit(request)
            self.requests.clear()  # what it holds on to would stay in the object store
        _note(request.recording_id, "-")
        return future


def noting_engine(spec: EngineSpec) -> NotingEngine:
    """Meet `EngineFactory`."""
    return NotingEngine()


def _note(uri: str, what: str) -> None:
    # One byte at the end of a file is never torn by another process's.
    with open(Path(uri).with_name("notes"), "a") as notes:
        notes.write(what)


def job(folder: Path, max_buffered_features_mb: float | Auto) -> RunConfig:
    extract = {"workers": WORKERS, "max_buffered_features_mb": max_buffered_features_mb}
    return scripted_job(folder, transcribe={"slots": 2}, extract=extract)


def most_waiting_bytes(config: RunConfig, folder: Path) -> int:
    """Return what was extracted and not transcribed yet, when that was most."""
    assert len(outcomes_by_part(config)) == FILES * PARTS
    notes = (folder / "notes").read_text()
    assert notes.count("+") == notes.count("-") == FILES * PARTS
    return PART_BYTES * max(accumulate(1 if note == "+" else -1 for note in notes))


def spills() -> int:
    """Return how often Ray said that it moved objects to disk."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]
    return (logs / "raylet.out").read_text().count("Spilled ")


@pytest.mark.ray
@pytest.mark.parametrize("max_buffered_features_mb", ["auto", 60.0])
def test_what_waits_on_ray_is_bounded(
    max_buffered_features_mb: float | Auto, ray_session: Cluster, tmp_path: Path
):
    config = job(tmp_path, max_buffered_features_mb)
    packs = [packs_of(f"{tmp_path}/{number}") for number in range(FILES)]
    before = spills()
    test_ray_dataset.run(ray_session, config, *packs, engine=noting_engine, extractor=EXTRACTOR)
    bound = (
        ray_session.store_bytes / 2
        if max_buffered_features_mb == "auto"
        else max_buffered_features_mb * MEBIBYTE
    )
    waiting = most_waiting_bytes(config, tmp_path)
    assert waiting <= bound + WORKERS * PARTS_PER_WORKER * PART_BYTES
    assert spills() == before


def test_what_waits_without_ray_is_bounded(tmp_path: Path):
    config = job(tmp_path, 60.0)
    packs = [packs_of(f"{tmp_path}/{number}") for number in range(FILES)]
    run_scripted(config, packs, engine=noting_engine, workers=WORKERS, extractor=EXTRACTOR)
    waiting = most_waiting_bytes(config, tmp_path)
    assert waiting > 50 * MEBIBYTE  # it did wait
    assert waiting <= 60 * MEBIBYTE + WORKERS * PARTS_PER_WORKER * PART_BYTES
