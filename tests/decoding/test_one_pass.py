"""Windows of many tasks in batches of similar length, whatever becomes of single ones."""

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.decoding.one_pass import (
    LoadedRecognizer,
    OnePassScheduler,
    Recognition,
    WindowToRead,
)
from corpus_asr.decoding.recognizer import Recognized, RecognizedWord
from corpus_asr.errors import ItemError
from corpus_asr.units import HOP_SAMPLES
from tests.support.recognizers import Counting, Scripted, timed


def scheduler_of(
    act: Callable[[Sequence[np.ndarray]], Any], *, batch_s: float = 10.0
) -> tuple[OnePassScheduler, Scripted]:
    kind = type("Now", (Scripted,), {"act": staticmethod(act), "batch_s": batch_s})
    model = kind(None)
    return OnePassScheduler(LoadedRecognizer(recognizer=model, device=torch.device("cpu"))), model


def echo(windows: Sequence[np.ndarray]) -> list[Recognized]:
    return [Recognized(text=f"{len(window)}", logprob=-0.1) for window in windows]


def asked(
    lengths_s: Sequence[float], told: list[int] | None = None
) -> Generator[Recognition, list[Recognized], list[str]]:
    windows = [
        WindowToRead(
            num_frames=round(100 * length_s),
            read=partial(np.zeros, round(100 * length_s) * HOP_SAMPLES),
        )
        for length_s in lengths_s
    ]
    say = None if told is None else (lambda number, _: told.append(number))
    results = yield Recognition(windows=windows, language=None, told=say)
    return [result.text for result in results]


def note(found: dict[Any, Any], name: Any, result: Any, error: Exception | None) -> None:
    found[name] = error or result


def outcomes(scheduler: OnePassScheduler, *tasks: Generator[Any, Any, Any]) -> list[Any]:
    found: dict[int, Any] = {}
    for number, task in enumerate(tasks):
        scheduler.add(task, partial(note, found, number))
    while scheduler.pending:
        scheduler.advance()
    return [found[number] for number in range(len(tasks))]


def text(length_s: float) -> str:
    return str(round(100 * length_s) * HOP_SAMPLES)


def test_windows_of_similar_length_are_read_together_and_each_task_gets_its_own() -> None:
    scheduler, model = scheduler_of(echo)
    told: list[int] = []
    found = outcomes(scheduler, asked([1, 5, 1.5], told), asked([5, 1.2]), asked([]))
    assert found == [[text(1), text(5), text(1.5)], [text(5), text(1.2)], []]
    # The first window waits longest; with it go those nearest in length, up to 10 s in all.
    assert [sorted(call) for call in model.calls] == [
        [int(text(length)) for length in batch] for batch in ([1, 1.2, 1.5], [5, 5])
    ]
    assert sorted(told) == [0, 1, 2]
    assert scheduler.statistics.windows == 5
    assert scheduler.statistics.encoder_batches == 2


def test_a_window_longer_than_a_batch_is_read_alone() -> None:
    scheduler, model = scheduler_of(echo, batch_s=3)
    assert outcomes(scheduler, asked([20, 1])) == [[text(20), text(1)]]
    assert len(model.calls) == 2


def test_batches_are_halved_where_memory_does_not_suffice() -> None:
    def act(windows: Sequence[np.ndarray]) -> list[Recognized]:
        if len(windows) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return echo(windows)

    scheduler, _ = scheduler_of(act)
    assert outcomes(scheduler, asked([1] * 9)) == [[text(1)] * 9]
    assert scheduler.statistics.halvings == 2

    def never(_: Sequence[np.ndarray]) -> list[Recognized]:
        raise torch.OutOfMemoryError("none left")

    scheduler, _ = scheduler_of(never)
    scheduler.add(asked([1, 1]), lambda *_: None)
    scheduler.advance()  # halves the batch
    with pytest.raises(torch.OutOfMemoryError):
        scheduler.advance()


def test_one_window_that_raises_fails_its_task_and_no_other() -> None:
    def act(windows: Sequence[np.ndarray]) -> list[Recognized]:
        if any(len(window) == int(text(2)) for window in windows):
            raise ZeroDivisionError("that one")
        return echo(windows)

    scheduler, _ = scheduler_of(act)
    good, bad, other = outcomes(scheduler, asked([1, 1]), asked([1, 2, 1]), asked([3]))
    assert (good, other) == ([text(1)] * 2, [text(3)])
    assert isinstance(bad, ItemError)
    assert bad.kind == "recognizer"
    assert "raised ZeroDivisionError: that one" in str(bad)


NAN = math.nan
WRONG: dict[str, tuple[Callable[[float], Any], str]] = {
    "no result": (lambda _: None, "found|returned a NoneType"),
    "a text": (lambda _: "text", "returned a str"),
    "bytes": (lambda _: Recognized(text=b"x", logprob=0.0), "a text of type bytes"),  # type: ignore[arg-type]
    "no score": (lambda _: Recognized(text="x", logprob=NAN), "are not numbers"),
    "words of another text": (
        lambda s: Recognized(text="other", logprob=0.0, words=timed(["x"], s).words),
        "words that do not make up the text",
    ),
    "times of nothing": (lambda s: timed(["x", "y"], s, probability=NAN), "are not numbers"),
    "times past the end": (lambda s: timed(["x", "y"], 3 * s), "words from 0.00 to"),
    "times back": (
        lambda _: Recognized(text="a b", logprob=0.0, words=tuple(
            RecognizedWord(word=word, start_s=at, end_s=at, probability=1.0)
            for word, at in ((" a", 0.5), (" b", 0.2))
        )),
        "ascending times",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_result_fails_its_task_and_no_other(what: str) -> None:
    make, message = WRONG[what]

    def act(windows: Sequence[np.ndarray]) -> list[Any]:
        seconds = [len(window) / 16_000 for window in windows]
        return [make(s) if s == 2 else timed(["x", "y"], s) for s in seconds]

    scheduler, _ = scheduler_of(act)
    good, bad = outcomes(scheduler, asked([1, 1]), asked([2]))
    assert good == [" x y"] * 2
    with pytest.raises(ItemError, match=message) as raised:
        raise bad
    assert raised.value.kind == ("not_a_number" if "numbers" in message else "recognizer")


@pytest.mark.parametrize("found", [[], None, 7, [None] * 9])
def test_another_number_of_results_fails_all_of_a_call(found: Any) -> None:
    scheduler, _ = scheduler_of(lambda _: found)
    first, second = outcomes(scheduler, asked([1]), asked([1, 1]))
    for error in (first, second):
        with pytest.raises(ItemError, match=r"recogniz.* windows?"):
            raise error


def test_what_is_cancelled_or_given_up_is_not_read() -> None:
    scheduler, model = scheduler_of(echo, batch_s=1)
    ended: dict[str, Any] = {}
    for name in ("kept", "left"):
        scheduler.add(asked([1, 1]), partial(note, ended, name), owner=name)
    scheduler.cancel("left", ItemError("nobody waits"))
    assert str(ended["left"]) == "nobody waits"
    while scheduler.pending:
        scheduler.advance()
    assert ended["kept"] == [text(1)] * 2
    assert len(model.calls) == 2
    scheduler.add(asked([1]), lambda r, e: ended.update(last=e or r))
    scheduler.fail(ItemError("closed"))
    assert str(ended["last"]) == "closed"
    assert scheduler.pending == 0


def test_languages_are_not_mixed_in_a_call() -> None:
    calls: list[tuple[str | None, int]] = []

    class Noting(Counting):
        def transcribe(
            self, windows: Sequence[np.ndarray], *, language: str | None
        ) -> Sequence[Recognized]:
            calls.append((language, len(windows)))
            return super().transcribe(windows, language=language)

    scheduler = OnePassScheduler(
        LoadedRecognizer(recognizer=Noting(None), device=torch.device("cpu"))
    )

    def said_in(language: str) -> Generator[Recognition, list[Recognized], int]:
        window = WindowToRead(num_frames=100, read=lambda: np.zeros(16_000))
        return len((yield Recognition(windows=[window], language=language)))

    assert outcomes(scheduler, said_in("en"), said_in("de"), said_in("en")) == [1, 1, 1]
    assert sorted(calls) == [("de", 1), ("en", 2)]
