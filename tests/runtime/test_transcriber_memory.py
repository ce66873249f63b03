"""What a Transcriber holds: no more after a thousand calls, and nothing after `close`."""

import atexit
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from corpus_asr import Cancellation, Transcriber
from corpus_asr.errors import DecodeError
from corpus_asr.runtime.in_flight import CallCancelledError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, wav_bytes
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.long

OPTIONS: dict[str, Any] = {
    "slots": 2, "num_threads": 1, "vad_filter": False, "temperature": 0, "language": "en",
    "part_s": 30.0, "padding_s": 0.5,
}  # fmt: skip
MIB = 1 << 20
ALONE = "CORPUS_ASR_TEST_ALONE"
# What other tests of a long process hold and free would be counted, too.
measured_alone = pytest.mark.skipif(
    ALONE not in os.environ, reason="measured by a test that starts a process of its own"
)
GROWTH_BYTES = 8 << 10  # of a call
CALLS_OF_A_SPAN = 250
SOUND = noise(0.2)
LONG = wav_bytes(noise(30.0), rate_hz=SAMPLE_RATE_HZ)  # no call ends before it is cancelled


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    tiny_tokenizer(folder / "tokenizer")
    return [
        str(
            tiny_whisper(
                folder / f"model-{seed}", tokenizer=folder / "tokenizer", seed=seed,
                max_target_positions=8,
            )
        )
        for seed in range(2)
    ]  # fmt: skip


@dataclass(frozen=True)
class Held:
    """What this process and its children hold."""

    bytes: int
    child_bytes: int
    threads: int
    files: int
    exit_functions: int
    objects: int

    @classmethod
    def now(cls) -> "Held":
        gc.collect()
        for thread in threading.enumerate():
            if thread.name.startswith("extraction"):
                thread.join(10)
        own = psutil.Process()
        children = own.children(recursive=True)
        return cls(
            bytes=own.memory_info().rss,
            child_bytes=sum(child.memory_info().rss for child in children),
            threads=threading.active_count(),
            files=own.num_fds(),
            exit_functions=atexit._ncallbacks(),
            objects=len(gc.get_objects()),
        )


def ways(transcriber: Transcriber, file: str) -> list[Callable[[], object]]:
    """Return calls of every kind, and such as fail or are left."""
    data = Path(file).read_bytes()

    def left() -> None:
        next(transcriber.stream(file), None)

    def failed() -> None:
        with pytest.raises(DecodeError):
            transcriber.transcribe(b"no sound")

    return [
        lambda: transcriber.transcribe(file),
        lambda: transcriber.transcribe(data),
        lambda: transcriber.transcribe(SOUND, sampling_rate=SAMPLE_RATE_HZ),
        lambda: transcriber.transcribe(file, word_timestamps=True).to_dict(),
        lambda: list(transcriber.stream(file)),
        lambda: list(transcriber.transcribe_many([file, data])),
        left,
        failed,
    ]


def cancelled(transcriber: Transcriber) -> None:
    """Leave a call while its recording is extracted, whose child is then replaced."""
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(transcriber.transcribe, LONG, cancellation=cancellation)
        cancellation.cancel()
        with pytest.raises(CallCancelledError):
            call.result()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(SOUND, rate_hz=SAMPLE_RATE_HZ))
    return str(path)


@pytest.mark.slow
def test_what_a_process_of_its_own_measures() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-m",
               "slow", "-k", "leave_nothing or gives_back"]  # fmt: skip
    environment = os.environ | {ALONE: "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.slow
@measured_alone
def test_calls_leave_nothing_behind(models: list[str], file: str) -> None:
    """Four spans of calls. What leaks grows in each; what allocators keep, not in all."""
    with Transcriber(models[0], **OPTIONS) as transcriber:
        calls = ways(transcriber, file)

        def span() -> Held:
            for number in range(CALLS_OF_A_SPAN):
                calls[number % len(calls)]()
            cancelled(transcriber)
            transcriber.transcribe(file)  # starts the child that takes its place
            return Held.now()

        span()
        held = [span() for _ in range(5)]
    assert least_growth(held, "bytes") < GROWTH_BYTES * CALLS_OF_A_SPAN
    assert least_growth(held, "child_bytes") < GROWTH_BYTES * CALLS_OF_A_SPAN
    assert least_growth(held, "objects") < CALLS_OF_A_SPAN / 4
    for name in ("threads", "files", "exit_functions"):
        assert least_growth(held, name) == 0, name
        assert getattr(held[-1], name) <= getattr(held[0], name), name


def least_growth(held: list[Held], name: str) -> int:
    values = [getattr(each, name) for each in held]
    return min(after - before for before, after in pairwise(values))


@pytest.mark.slow
@measured_alone
def test_a_closed_transcriber_gives_back_its_model(tmp_path: Path, file: str) -> None:
    tiny_tokenizer(tmp_path / "tokenizer")
    large = tiny_whisper(
        tmp_path / "model", tokenizer=tmp_path / "tokenizer", d_model=512, layers=4, heads=8,
        max_target_positions=16,
    )  # fmt: skip
    with Transcriber(str(large), **OPTIONS) as first:
        first.transcribe(file)  # imports and warms up what stays
    del first
    before = Held.now()
    others = set(psutil.Process().children())  # what other tests started
    transcriber = Transcriber(str(large), **OPTIONS)
    transcriber.transcribe(file)
    during = Held.now()
    (child,) = set(psutil.Process().children()) - others
    transcriber.close()
    after = Held.now()
    assert during.bytes - before.bytes > 40 * MIB
    # Not all of it where a long process has broken its memory into pieces.
    assert after.bytes - before.bytes < (during.bytes - before.bytes) / 2
    assert not child.is_running()
    assert (after.threads, after.files) == (before.threads, before.files)
    assert after.exit_functions <= before.exit_functions + 1


def test_two_models_in_one_process_say_each_their_own(models: list[str]) -> None:
    sounds = [noise(2.0, seed=seed) for seed in range(4)]

    def said(transcriber: Transcriber, number: int) -> str:
        return transcriber.transcribe(sounds[number], sampling_rate=SAMPLE_RATE_HZ).text

    alone = []
    for model in models:
        with Transcriber(model, **OPTIONS) as transcriber:
            alone.append([said(transcriber, number) for number in range(4)])
    assert alone[0] != alone[1]
    with Transcriber(models[0], **OPTIONS) as one, Transcriber(models[1], **OPTIONS) as two:
        both = (one, two)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda at: said(both[at % 2], at // 2 % 4), range(32)))
        assert found == [alone[at % 2][at // 2 % 4] for at in range(32)]
        engine: Any = one._engine
        held = [weakref.ref(each) for each in (engine._scheduler, engine._scheduler._model)]
        del engine
        one.close()
        one.close()
        gc.collect()
        assert [each() for each in held] == [None, None], "also while somebody holds what is closed"
        assert said(two, 0) == alone[1][0]
