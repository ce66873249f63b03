"""Features never pile up: extraction that is far ahead of the engine waits for it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.runtime.cluster import Cluster
from corpus_asr.stages.messages import ExtractedPart, ExtractRequest
from tests.runtime.test_dataset import run
from tests.support.extractors import scripted_part
from tests.support.killing import SlowEngine
from tests.support.scripted import outcomes_by_part, scripted_job
from tests.support.tables import packs_of

FRAMES, MEL = 60_000, 80
PART_BYTES = FRAMES * MEL * 2  # 10 minutes: 9.6 MB
FILES, PARTS = 12, 10


def make_large(**_: Any) -> Callable[[ExtractRequest], Iterator[ExtractedPart]]:
    """Return an extractor of large parts that takes no time, and notes each in a file."""

    def extract(request: ExtractRequest) -> Iterator[ExtractedPart]:
        for part in range(PARTS):
            _note(request.uri, "+")
            features = np.full((FRAMES, MEL), part, np.float16)
            yield replace(scripted_part(part), features=features, num_mel_bins=MEL,
                          language_features=None)  # fmt: skip

    return extract


class NotingEngine(SlowEngine):
    """Notes when it is done with a part."""

    def submit(self, request: Any) -> Any:
        future = super().submit(request)
        future.add_done_callback(lambda _: _note(request.recording_id, "-"))
        return future


def noting_engine(checkpoint: str, **options: Any) -> NotingEngine:
    """Meet `EngineFactory`."""
    return NotingEngine(pause_s=0.3)


def _note(uri: str, what: str) -> None:
    # One byte at the end of a file is never torn by another process's.
    with open(Path(uri).with_name("notes"), "a") as notes:
        notes.write(what)


@pytest.mark.slow
@pytest.mark.ray
def test_what_waits_fits_into_the_object_store(ray_session: Cluster, tmp_path: Path):
    config = scripted_job(tmp_path, transcribe={"slots": 2}, extract={"workers": 2})
    packs = [packs_of(f"{tmp_path}/{number}") for number in range(FILES)]
    run(
        ray_session,
        config,
        *packs,
        engine=noting_engine,
        extractor="tests.soak.test_backpressure:make_large",
    )
    assert len(outcomes_by_part(config)) == FILES * PARTS
    notes = (tmp_path / "notes").read_text()
    assert notes.count("+") == notes.count("-") == FILES * PARTS
    waiting = max(accumulate(1 if note == "+" else -1 for note in notes))
    # Two extractors hold two parts each beside what is on its way.
    assert waiting * PART_BYTES <= ray_session.store_bytes + 4 * PART_BYTES
