"""One transcriber for many threads, iterators and forks: each call has its own results, or ends."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import ClosedError, DecodeError
from corpus_asr.formats.transcript import Transcript
from corpus_asr.runtime import in_flight
from corpus_asr.runtime.transcriber import Transcriber
from tests.support.audio import noise, tone, write_wavs
from tests.support.corpora import CLIPS, tiny_model
from tests.support.forks import in_fork

pytestmark = pytest.mark.long

GREEDY: dict[str, Any] = {
    "beam_size": 1,
    "language": "en",
    "temperature": 0.0,
    "no_speech_threshold": None,
    "logprob_threshold": None,
    "compression_ratio_threshold": None,
    "vad_filter": False,
    "part_s": 30.0,
}
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def transcriber(model: str) -> Iterator[Transcriber]:
    with Transcriber(model, slots=2, num_threads=1, **GREEDY) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    return write_wavs(folder, noise=noise(3.0), tone=tone(2.0), short=noise(1.0, seed=1))


@pytest.fixture(scope="module")
def alone(transcriber: Transcriber, files: list[str]) -> dict[str, Transcript]:
    return {file: transcriber.transcribe(file) for file in files}


def test_many_threads_get_each_their_own_transcripts(
    transcriber: Transcriber, files: list[str], alone: dict[str, Transcript]
) -> None:
    wanted = files * 3
    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(transcriber.transcribe, wanted))
        streams = list(pool.map(lambda file: [*transcriber.stream(file)], wanted))
        batches = list(pool.map(lambda _: [*transcriber.transcribe_many(files)], range(3)))
    assert found == [alone[file] for file in wanted]
    assert streams == [[*alone[file].segments] for file in wanted]
    for batch in batches:
        assert {each.uri: each for each in batch} == alone


def test_a_call_that_fails_in_one_thread_leaves_the_others_alone(
    transcriber: Transcriber, files: list[str], alone: dict[str, Transcript], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")

    def call(number: int) -> object:
        if number % 3 == 0:
            with pytest.raises(DecodeError, match=r"broken\.wav"):
                transcriber.transcribe(str(broken))
            return None
        if number % 3 == 1:
            with pytest.raises(ZeroDivisionError):
                transcriber.transcribe(files[0], on_progress=lambda _: 1 / 0)  # type: ignore[arg-type]
            return None
        return transcriber.transcribe(files[number % 2])

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(call, range(18)))
    assert [each for each in found if each] == [alone[files[n % 2]] for n in range(18) if n % 3 > 1]


def test_iterators_of_one_thread_may_be_begun_before_others_end(
    transcriber: Transcriber, files: list[str], alone: dict[str, Transcript]
) -> None:
    longer = str(CLIPS / "longer.mp3")
    expected = transcriber.transcribe(longer)
    outer = transcriber.stream(longer)
    many = transcriber.transcribe_many([longer, *files])
    first, other = next(outer), next(many)
    streams = [transcriber.stream(file) for file in files for _ in range(3)]
    begun = [next(stream) for stream in streams]  # more than there are children
    nested: list[Transcript] = []
    list(
        transcriber.transcribe_many(
            [files[0]], on_segment=lambda *_: nested.append(transcriber.transcribe(files[1]))
        )
    )
    assert nested
    assert all(each == alone[files[1]] for each in nested)
    for number, stream in reversed([*enumerate(streams)]):
        assert (begun[number], *stream) == alone[files[number // 3]].segments
    assert {other.uri, *(each.uri for each in many)} == {longer, *files}
    assert (first, *outer) == expected.segments


def test_iterators_that_nobody_finishes_hold_nobody_up(
    transcriber: Transcriber, files: list[str], alone: dict[str, Transcript]
) -> None:
    longer = str(CLIPS / "longer.mp3")

    def leave(number: int) -> object:
        stream = transcriber.stream(longer, on_progress=(lambda _: None))
        next(stream)
        if number % 3 == 0:
            return stream  # kept, and never taken from again
        if number % 3 == 1:
            circle: list[object] = [stream]
            circle.append(circle)  # collected some time, in any thread
        return None

    with ThreadPoolExecutor(6) as pool:
        kept = list(pool.map(leave, range(6)))
        assert list(pool.map(transcriber.transcribe, files * 2)) == [alone[f] for f in files * 2]
        gc.collect()
        assert list(pool.map(transcriber.transcribe, files)) == [alone[f] for f in files]
    del kept
    assert transcriber.transcribe(files[0]) == alone[files[0]]
    assert not transcriber._pool._calls


def test_a_long_recording_does_not_keep_others_from_being_decoded(
    transcriber: Transcriber, files: list[str], alone: dict[str, Transcript]
) -> None:
    """A second child starts; those that were started are kept and lent again."""
    held = transcriber._pool.take(lambda: True)
    assert held is not None
    try:
        assert transcriber.transcribe(files[0]) == alone[files[0]]
    finally:
        transcriber._pool.give_back(held)
    idle = [*transcriber._pool._idle]
    assert 2 <= len(idle) <= in_flight.MAX_CHILDREN
    assert transcriber.transcribe(files[1]) == alone[files[1]]
    assert set(transcriber._pool._idle) == set(idle)


def test_closing_ends_the_calls_of_other_threads_with_a_clear_error(model: str) -> None:
    """Wherever they are: waiting for a child, decoding, reading from a pipe, transcribing."""
    longer = str(CLIPS / "longer.mp3")
    reader, writer = os.pipe()
    passed_on: list[Exception] = []
    begun = threading.Barrier(7)
    transcriber = Transcriber(model, slots=1, num_threads=1, **GREEDY)

    def call(number: int) -> object:
        begun.wait(LIMIT_S)
        if number == 0:
            return transcriber.transcribe(pipe)
        return [
            *transcriber.transcribe_many(
                [longer] * 20, on_error=lambda _, error: passed_on.append(error)
            )
        ]

    suspended = transcriber.stream(longer)
    next(suspended)
    with open(reader, "rb") as pipe, open(writer, "wb"), ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(call, number) for number in range(6)]
        begun.wait(LIMIT_S)
        time.sleep(0.5)
        transcriber.close()
        for each in calls:
            with pytest.raises(ClosedError, match=r"this Transcriber is closed.*make a new one"):
                each.result(LIMIT_S)
    with pytest.raises(ClosedError):
        list(suspended)
    assert passed_on == []
    for use in (transcriber.transcribe, transcriber.stream):
        with pytest.raises(ClosedError, match="make a new one"):
            use(longer)
    transcriber.close()


def test_a_fork_is_refused_at_once_and_leaves_the_parent_alone(
    transcriber: Transcriber, files: list[str], alone: dict[str, Transcript], model: str
) -> None:
    longer = str(CLIPS / "longer.mp3")
    begun = transcriber.stream(longer)
    next(begun)
    many = transcriber.transcribe_many([longer, *files])
    kept: list[Any] = [transcriber.stream(longer)]
    next(kept[0])
    unused = Transcriber(model, slots=1, num_threads=1, **GREEDY)
    process = os.getpid()
    uses: list[Any] = [
        lambda: transcriber.transcribe(files[0]),
        lambda: transcriber.stream(files[0]),
        lambda: transcriber.transcribe_many(files),
        lambda: transcriber.align(files[0], "a b"),
        lambda: list(begun),
        lambda: list(many),
        lambda: unused.transcribe(files[0]),
    ]
    for use in uses:
        said = in_fork(use)
        assert f"ForkedError: transcribing: this Transcriber was made in process {process}," in said
        assert "make the Transcriber after the fork, in this process" in said

    def end() -> str:
        kept.clear()  # an iterator is collected
        begun.close()  # type: ignore[attr-defined]
        with transcriber:
            unused.close()
        transcriber.close()
        return "ended"

    assert in_fork(end) == "ended"
    assert [transcriber.transcribe(file) for file in files] == [*alone.values()]
    assert unused.transcribe(files[0]).segments == alone[files[0]].segments
    assert {each.uri for each in many} == {longer, *files}
    assert [*begun]
    unused.close()
