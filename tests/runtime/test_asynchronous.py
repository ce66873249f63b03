"""A Transcriber used from coroutines, as services do."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from corpus_asr import Transcriber
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise
from tests.support.corpora import tiny_model

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


def test_calls_that_are_awaited_together_say_what_they_say_alone(transcriber: Transcriber) -> None:
    sounds = [sound(2.0 + seed, seed) for seed in range(5)]
    alone = [transcriber.transcribe(each, **SOUND) for each in sounds]

    async def together() -> list[Any]:
        calls = [transcriber.atranscribe(each, **SOUND) for each in sounds]
        return list(await asyncio.gather(*calls))

    assert asyncio.run(together()) == alone


def test_segments_come_one_by_one(transcriber: Transcriber) -> None:
    whole = sound(70.0)

    async def streamed() -> list[Any]:
        return [segment async for segment in transcriber.astream(whole, **SOUND)]

    assert asyncio.run(streamed()) == list(transcriber.stream(whole, **SOUND))


def test_the_loop_goes_on(transcriber: Transcriber) -> None:
    async def both() -> int:
        task = asyncio.create_task(transcriber.atranscribe(sound(30.0), **SOUND))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        await task
        return turns

    assert asyncio.run(both()) > 3


def test_a_task_that_is_cancelled_ends_its_call(transcriber: Transcriber) -> None:
    seen: list[float] = []

    async def cancelled() -> None:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def progress(at: Any) -> None:
            seen.append(at.transcribed_s)
            loop.call_soon_threadsafe(began.set)

        call = transcriber.atranscribe(sound(600.0), on_progress=progress, **SOUND)
        task = asyncio.create_task(call)
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert seen[-1] < 600.0
    assert transcriber.transcribe(sound(1.0), **SOUND).duration_s == 1.0


def test_a_stream_that_is_left_ends_its_call(transcriber: Transcriber) -> None:
    async def left() -> None:
        found = transcriber.astream(sound(600.0), **SOUND)
        async with contextlib.aclosing(found):
            async for _ in found:
                break

    asyncio.run(left())
    assert transcriber.transcribe(sound(1.0), **SOUND).duration_s == 1.0


def test_errors_are_those_of_the_call(transcriber: Transcriber) -> None:
    with pytest.raises(ItemError):
        asyncio.run(transcriber.atranscribe(b"no audio"))
    with pytest.raises(ConfigError, match="beam_size"):
        asyncio.run(transcriber.atranscribe(sound(1.0), beam_size=0, **SOUND))


def test_no_thread_is_left(transcriber: Transcriber) -> None:
    transcriber.transcribe(sound(1.0), **SOUND)
    asyncio.run(transcriber.atranscribe(sound(1.0), **SOUND))
    for thread in threading.enumerate():
        if thread.name.startswith("transcribe_"):
            thread.join(10)
            assert not thread.is_alive()
