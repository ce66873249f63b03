"""A Transcriber used from coroutines, as services do."""

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import numpy as np
import pytest

from corpus_asr import Transcriber
from corpus_asr.errors import ConfigError, ItemError
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


def test_a_call_that_waits_for_its_turn_ends_at_once(transcriber: Transcriber) -> None:
    """Others have all slots and all children, and its pipe says nothing."""
    read, write = os.pipe()

    async def cancelled() -> float:
        hog = asyncio.create_task(transcriber.atranscribe(sound(600.0), **SOUND))
        with open(read, "rb") as pipe:
            calls = [
                asyncio.create_task(transcriber.atranscribe(sound(60.0), **SOUND)),
                asyncio.create_task(transcriber.atranscribe(pipe)),
            ]
            await asyncio.sleep(0.3)
            began_s = time.monotonic()
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            taken_s = time.monotonic() - began_s
            os.close(write)
        assert not hog.done()
        hog.cancel()
        await asyncio.wait([hog])
        return taken_s

    assert asyncio.run(cancelled()) < 3.0


def test_slots_decode_nothing_for_a_call_that_is_left(transcriber: Transcriber) -> None:
    async def left() -> None:
        for _ in range(2):
            found = transcriber.astream(sound(600.0), part_s=600.0, **SOUND)
            async with contextlib.aclosing(found):
                async for _ in found:
                    break

    asyncio.run(left())
    before = transcriber._engine.statistics().windows
    deadline_s = time.monotonic() + 30.0
    while transcriber._engine._scheduler.pending:  # type: ignore[union-attr]
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    # Of 40 windows in all: what was in slots or being encoded.
    assert transcriber._engine.statistics().windows - before < 8


def test_a_scope_that_cancels_at_each_await_ends_its_call(
    transcriber: Transcriber, caplog: pytest.LogCaptureFixture
) -> None:
    """As frameworks for services do, with anyio."""

    async def scoped() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(transcriber.atranscribe, sound(600.0), **SOUND))
            await anyio.sleep(0.2)
            group.cancel_scope.cancel()
        while transcriber._pool._calls:
            await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(scoped())
    assert caplog.text == ""
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
