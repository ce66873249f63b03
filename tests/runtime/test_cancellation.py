"""Calls of a Transcriber that another thread cancels, as services do."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from corpus_asr import Cancellation, Transcriber
from corpus_asr.runtime.in_flight import CallCancelledError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise
from tests.support.corpora import tiny_model

pytestmark = pytest.mark.long

SOUND: Any = {"sampling_rate": SAMPLE_RATE_HZ}


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with Transcriber(
        str(model), slots=2, part_s=30.0, vad_filter=False, temperature=0, language="en"
    ) as loaded:
        yield loaded


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return noise(seconds, seed=seed)


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_call_ends(transcriber: Transcriber, stream: bool) -> None:
    cancellation = Cancellation()
    seen: list[float] = []

    def progress(at: Any) -> None:
        seen.append(at.transcribed_s)
        cancellation.cancel()
        time.sleep(3.0)  # what was begun ends: a text of that alone would look whole

    options = {"on_progress": progress, "cancellation": cancellation, **SOUND}
    call: Callable[[], Any] = (
        (lambda: list(transcriber.stream(sound(600.0), **options)))
        if stream
        else (lambda: transcriber.transcribe(sound(600.0), **options))
    )
    with pytest.raises(CallCancelledError):
        call()
    assert seen[-1] < 600.0
    with pytest.raises(CallCancelledError):  # as soon as it begins
        call()
    assert transcriber.transcribe(sound(1.0), **SOUND).duration_s == 1.0


def test_a_call_that_waits_for_its_turn_ends_at_once(transcriber: Transcriber) -> None:
    """Others have all slots and all children, and its pipe says nothing."""
    read, write = os.pipe()
    cancellations = [Cancellation() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads, open(read, "rb") as pipe:
        sounds: list[Any] = [sound(600.0), sound(60.0), pipe]
        hog, *calls = [
            threads.submit(transcriber.transcribe, audio, cancellation=cancellation, **options)
            for audio, cancellation, options in zip(
                sounds, cancellations, (SOUND, SOUND, {}), strict=True
            )
        ]
        time.sleep(0.3)
        began_s = time.monotonic()
        for cancellation in cancellations[1:]:
            cancellation.cancel()
        for call in calls:
            with pytest.raises(CallCancelledError):
                call.result()
        assert time.monotonic() - began_s < 15  # a file of ten minutes takes longer
        os.close(write)
        assert not hog.done()
        cancellations[0].cancel()


def test_slots_decode_nothing_for_a_call_that_is_left(transcriber: Transcriber) -> None:
    for _ in range(2):
        segments: Any = transcriber.stream(sound(600.0), part_s=600.0, **SOUND)
        next(segments, None)
        segments.close()
    before = transcriber._engine.statistics().windows
    deadline_s = time.monotonic() + 30.0
    while transcriber._engine._scheduler.pending:  # type: ignore[union-attr]
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    # Of 40 windows in all: what was in slots or being encoded.
    assert transcriber._engine.statistics().windows - before < 8
