"""The engine around a scripted network: threads, failures, closing."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.transcription.engine import Engine, PartTranscript
from corpus_asr.transcription.whisper import WhisperTranscriber
from corpus_asr.transcription.windows import PartRequest
from tests.support.prompt_formats import BEGIN, END, GERMAN, prompt_format
from tests.support.prompt_formats import part as noise
from tests.support.slots import ScriptedModel

GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


class Network(ScriptedModel):
    """Says the script of its window; asked with the start token alone, says a language."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().logits(hidden)
        logits[..., GERMAN] += 1.0  # the likeliest language
        return logits


def part(script: int, *, speech: bool = True) -> PartRequest:
    return noise(
        3.0,
        [(100.0, 103.0)] if speech else [],
        recording_id=f"r{script}",
        features=np.full((300, 2), script, dtype=np.float16),
        start_s=100.0,
    )


def transcriber() -> WhisperTranscriber:
    return WhisperTranscriber(prompt_format())


@pytest.fixture
def engine() -> Iterator[Engine]:
    scripts = [
        [BEGIN, 1, 2, BEGIN + 10, END],
        [BEGIN, 3, BEGIN + 5, BEGIN + 6, 4, BEGIN + 12, END],
    ]
    settings = DecodingSettings(**GREEDY)
    with Engine(Network(scripts), transcriber(), decoding=settings, slots=2) as engine:
        yield engine


def test_parts_become_segments_in_recording_time(engine: Engine) -> None:
    futures = [engine.submit(part(number % 2)) for number in range(6)]
    for number, future in enumerate(futures):
        found = future.result(timeout=30)
        texts = [segment.text for segment in found.segments]
        assert texts == ([" w1 w2"] if number % 2 == 0 else [" w3", " w4"])
        assert found.segments[0].start_s == 100.0
        assert found.segments[-1].end_s == pytest.approx(100.2 if number % 2 == 0 else 100.24)
        assert found.language == "de"
        assert found.language_probability is not None
        assert 0.5 < found.language_probability <= 1.0


def test_settings_of_one_part_override_the_engine_s(engine: Engine) -> None:
    given = DecodingSettings(language="en", **GREEDY)
    found = engine.submit(part(0), decoding=given).result(timeout=30)
    assert (found.language, found.language_probability) == ("en", None)
    chosen = DecodingSettings(language=("en",), strategy="chunked", **GREEDY)
    assert engine.submit(part(1), decoding=chosen).result(timeout=30).language == "en"
    assert engine.submit(part(0, speech=False)).result(timeout=30).segments == ()


def test_what_the_checkpoint_cannot_do_is_refused_before_any_work(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"does not know xx; it knows de, en"):
        engine.submit(part(0), decoding=DecodingSettings(language="xx"))


def test_closing_does_not_wait_for_work() -> None:
    model = Network([[BEGIN] + [1] * 20])
    engine = Engine(model, transcriber(), decoding=DecodingSettings(**GREEDY), slots=1)
    futures = [engine.submit(part(0)) for _ in range(500)]
    engine.close()
    assert sum(future.exception() is not None for future in futures) > 0
    with pytest.raises(EngineError, match="closed"):
        engine.submit(part(0))


def test_a_cancelled_part_harms_nobody(engine: Engine) -> None:
    futures = [engine.submit(part(0)) for _ in range(60)]
    cancelled = [future for future in futures[20::7] if future.cancel()]
    for future in futures:
        if future not in cancelled:
            assert future.result(timeout=30).segments
    assert engine.submit(part(1)).result(timeout=30).segments


class Small(Network):
    """Has memory for so many windows at a time."""

    def __init__(self, scripts: Sequence[Sequence[int]], *, most: int) -> None:
        super().__init__(scripts)
        self.most = most

    def step(
        self, state: dict[str, torch.Tensor], tokens: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        if len(tokens) > self.most:
            raise torch.OutOfMemoryError("out of memory (scripted)")
        return super().step(state, tokens, positions)


def test_too_little_memory_costs_slots_and_no_words() -> None:
    scripts = [[BEGIN, *[1 + n % 9 for n in range(number)], BEGIN + 10, END] for number in range(9)]
    settings = DecodingSettings(**GREEDY)
    texts: list[list[str]] = []
    for most in (8, 2):
        with Engine(Small(scripts, most=most), transcriber(), decoding=settings, slots=8) as engine:
            futures = [engine.submit(part(number % 9)) for number in range(30)]
            found = [future.result(timeout=60) for future in futures]
            texts.append([segment.text for one in found for segment in one.segments])
            assert engine.slots == engine.statistics().slots == most
    assert texts[0] == texts[1]


class Lost(Network):
    def encode(self, features: torch.Tensor, **options: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: device lost")


class Overflowing(Network):
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden) * float("nan")


SCRIPT = [[BEGIN, 1, BEGIN + 5, END]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Lost(SCRIPT), "device lost"),
        (Overflowing(SCRIPT), r"set model\.dtype to bfloat16 or float32"),
        (Small(SCRIPT, most=0), "out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_fails_breaks_the_engine_and_nobody_waits_for_ever(
    model: Network, message: str
) -> None:
    decoding = DecodingSettings(**GREEDY)
    with Engine(model, transcriber(), decoding=decoding, slots=4) as engine:
        futures: list[Future[PartTranscript]] = []
        with contextlib.suppress(EngineError):  # it may have broken down before they reach it
            futures.append(engine.submit(part(0)))
            futures.append(engine.submit(part(0)))
        assert futures
        for future in futures:
            with pytest.raises(EngineError, match=message):
                future.result(timeout=30)
        with pytest.raises(EngineError, match=message):
            engine.submit(part(0))


def test_statistics_can_be_read_while_the_engine_works(engine: Engine) -> None:
    futures = [engine.submit(part(number % 2)) for number in range(12)]
    seen = [engine.statistics()]
    for future in futures:
        future.result(timeout=30)
        seen.append(engine.statistics())
    assert [one.steps for one in seen] == sorted(one.steps for one in seen)
    assert seen[-1].windows >= 12
    assert seen[-1].tokens >= 12 + 6 * 4 + 6 * 6  # a language each, and the text
    assert 0.5 < (seen[-1].body_occupancy or 0.0) <= 1.0
    assert seen[-1] is not engine.statistics()
