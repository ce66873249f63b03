"""The seek loop goes where openai-whisper's goes, whatever its windows say.

No network: windows say invented tokens and words, the same ones to both. Compared are the windows
that are asked for, with their prompts, and the segments and words that are kept.
"""

import math
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import whisper
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from whisper.decoding import DecodingResult
from whisper.tokenizer import get_tokenizer

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.jobs import WindowJob, WindowResult
from corpus_asr.segments import Segment, Word
from corpus_asr.transcription import fallback
from corpus_asr.transcription import whisper as transcription
from corpus_asr.transcription.whisper import WhisperLongForm
from corpus_asr.transcription.windows import Language, PartRequest, Window, clip_ranges
from corpus_asr.transcription.words import DraftSegment
from corpus_asr.units import HOP_SAMPLES, WINDOW_FRAMES
from tests.support.prompt_formats import prompt_format

END, BEGIN, START, PREVIOUS = 50257, 50364, 50258, 50361
LOGPROB = -0.25


def test_the_layout_is_theirs() -> None:
    tokenizer = get_tokenizer(multilingual=True, num_languages=99, language="en")
    assert (tokenizer.eot, tokenizer.timestamp_begin) == (END, BEGIN)
    assert (tokenizer.sot, tokenizer.sot_prev) == (START, PREVIOUS)


class Script:
    """What each window says, drawn from a seed and the window's first frame."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _random(self, *names: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, *names))

    def tokens(self, seek: int, content: int) -> list[int]:
        """Say nothing in the padding, where the two differ on purpose."""
        last = content // 2
        random = self._random(seek)
        tokens: list[int] = []
        at = min(last, int(random.integers(0, 300)))
        for _ in range(int(random.integers(0, 5))):
            words = random.integers(256, 5000, int(random.integers(0, 12))).tolist()
            stop = min(last, at + int(random.integers(0, 500)))
            tokens += [BEGIN + at, *words, BEGIN + stop]
            at = min(last, stop + int(random.choice([0, 0, 50, 300])))
        ending = random.choice(["closed", "open", "bare"])
        if ending == "open":
            tokens += [BEGIN + at, *random.integers(256, 5000, 3).tolist()]
        elif ending == "bare":
            tokens = tokens[1:-1] if len(tokens) == 2 else tokens[:-1]
        return tokens

    def no_speech(self, seek: int) -> float:
        return float(self._random(seek, 1).choice([0.1, 0.1, 0.1, 0.9]))

    def temperature_fails(self, seek: int) -> bool:
        return bool(self._random(seek, 2).random() < 0.2)

    def words(self, seek: int, content: int, number: int, tokens: Sequence[int]) -> list[Word]:
        """Words of a segment, anomalous ones often, in recording time."""
        if not tokens:
            return []
        random = self._random(seek, 3, number)
        anomalous = random.random() < 0.5
        at_s = seek / 100 + float(random.choice([0.5, 4.0, 10.0])) + 6 * number
        end_s = (seek + content) / 100
        words = []
        for token in tokens:
            length_s = float(random.choice([0.02, 3.0] if anomalous else [0.2, 0.3]))
            low, high = (0.0, 0.3) if anomalous else (0.5, 1.0)
            words.append(
                Word(
                    word=f" {token}",
                    start_s=round(min(at_s, end_s), 2),
                    end_s=round(min(at_s + length_s, end_s), 2),
                    probability=float(random.uniform(low, high)),
                )
            )
            at_s += length_s
        return words


Visit = tuple[int, float, tuple[int, ...]]


def theirs(
    script: Script, frames: int, options: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[Visit]]:
    visits: list[Visit] = []
    contents: dict[int, int] = {}
    module = sys.modules["whisper.transcribe"]
    mel = torch.arange(1, frames + WINDOW_FRAMES + 1, dtype=torch.float32).unsqueeze(0)

    def decode(segment: torch.Tensor, asked: Any) -> DecodingResult:
        seek = round(float(segment[0, 0])) - 1
        contents[seek] = int((segment != 0).sum())
        if any(seek == before for before, *_ in visits[:-1]):
            reject()  # its loop never ends where text ends at the start of its window
        visits.append((seek, asked.temperature, tuple((asked.prompt or [])[-223:])))
        failed = script.temperature_fails(seek) and asked.temperature == 0
        return DecodingResult(
            audio_features=segment,
            language="en",
            tokens=script.tokens(seek, contents[seek]),
            avg_logprob=-2.0 if failed else LOGPROB,
            no_speech_prob=script.no_speech(seek),
            temperature=asked.temperature,
            compression_ratio=1.0,
        )

    def add_words(*, segments: list[dict[str, Any]], **_: Any) -> None:
        for number, segment in enumerate(segments):
            text = [token for token in segment["tokens"] if token < END]
            words = script.words(segment["seek"], contents[segment["seek"]], number, text)
            segment["words"] = [
                {"word": w.word, "start": w.start_s, "end": w.end_s, "probability": w.probability}
                for w in words
            ]
            if words:
                segment["start"], segment["end"] = words[0].start_s, words[-1].end_s

    model = SimpleNamespace(
        device=torch.device("cpu"), is_multilingual=True, num_languages=99, decode=decode,
        dims=SimpleNamespace(n_mels=1, n_audio_ctx=1500, n_text_ctx=448),
    )  # fmt: skip
    with (
        mock.patch.object(module, "log_mel_spectrogram", return_value=mel),
        mock.patch.object(module, "add_word_timestamps", add_words),
    ):
        found = whisper.transcribe(
            model, np.zeros(1, np.float32), language="en", fp16=False, verbose=None, **options
        )
    return [one for one in found["segments"] if one["text"].strip()], visits


@contextmanager
def invented_words(script: Script) -> Any:
    def time_words(drafts: Sequence[DraftSegment], window: Window, **_: Any) -> Any:
        settled = []
        for number, draft in enumerate(drafts):
            words = script.words(window.seek, window.content_frames, number, draft.tokens)
            if words:
                draft = replace(
                    draft, start_s=words[0].start_s, end_s=words[-1].end_s, words=tuple(words)
                )
            settled.append(draft)
        yield from ()  # a generator that asks for nothing
        return settled

    with (
        mock.patch.object(transcription, "time_words", time_words),
        # Scripted texts of a hundredth of a second, which only the other keeps.
        mock.patch.object(fallback, "_MOST_LETTERS_PER_S", math.inf),
    ):
        yield


def ours(
    script: Script, frames: int, chosen: DecodingSettings
) -> tuple[list[Segment], list[Visit]]:
    tokenizer = get_tokenizer(multilingual=True, num_languages=99, language="en")
    part = PartRequest(
        recording_id="r",
        part=0,
        features=np.zeros((frames, 1), np.float16),
        num_samples=frames * HOP_SAMPLES,
        pad_value=0.0,
        start_s=0.0,
        speech=None,
    )
    loop = WhisperLongForm(
        part,
        chosen,
        prompt_format(
            text=lambda ids: tokenizer.decode([token for token in ids if token < END]),
            encode=lambda text: tuple(tokenizer.encode(" " + text.strip())),
            request=lambda *_: (START, 50259, 50359),
            end=END,
            start=START,
            start_of_previous=PREVIOUS,
            no_speech=50362,
            no_timestamps=50363,
            timestamp_begin=BEGIN,
            max_target_positions=448,
        ),
        language=Language(code="en", probability=None),
        is_theirs=True,
    )
    visits: list[Visit] = []
    with invented_words(script):
        steps = loop.run(clip_ranges(part, chosen.clip_timestamps))
        result = None
        while True:
            try:
                job = steps.send(result)
            except StopIteration as stop:
                return stop.value, visits
            assert isinstance(job, WindowJob)
            assert (job.score_token, job.prompt[job.score_position]) == (50362, START)
            seek, temperature = job.window[0], job.search.temperature
            visits.append((seek, temperature, job.prompt[1:-3]))
            tokens = script.tokens(seek, min(WINDOW_FRAMES, job.window[1] - seek))
            logprob = -2.0 if script.temperature_fails(seek) and temperature == 0 else LOGPROB
            result = WindowResult(
                tokens=tuple(tokens), logprobs=(logprob,) * len(tokens), end_logprob=logprob,
                score=script.no_speech(seek),
            )  # fmt: skip


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    frames=st.integers(1, 14_000),
    words=st.booleans(),
    silence_s=st.sampled_from([None, 0.5, 2.0, 5.0]),
    conditioned=st.booleans(),
    prompt=st.sampled_from([None, "A prompt"]),
    clips=st.lists(st.integers(0, 13_000), max_size=5, unique=True).map(sorted),
)
@example(seed=1, frames=12_000, words=True, silence_s=2.0, conditioned=True, prompt=None, clips=[])
@example(seed=794, frames=4305, words=True, silence_s=5.0, conditioned=True, prompt=None, clips=[])
def test_windows_prompts_and_segments_are_theirs(
    seed: int,
    frames: int,
    words: bool,
    silence_s: float | None,
    conditioned: bool,
    prompt: str | None,
    clips: list[int],
) -> None:
    script = Script(seed)
    times = [min(clip, frames - frames % 2) / 100 for clip in clips]
    times = sorted(set(times))
    silence_s = silence_s if words else None
    wanted, their_visits = theirs(
        script,
        frames,
        {
            "temperature": (0.0, 0.8),
            "compression_ratio_threshold": None,
            "condition_on_previous_text": conditioned,
            "initial_prompt": prompt,
            "word_timestamps": words,
            "hallucination_silence_threshold": silence_s,
            "clip_timestamps": times,
        },
    )
    found, our_visits = ours(
        script,
        frames,
        DecodingSettings(
            language="en",
            strategy="sequential",
            temperature=(0.0, 0.8),
            beam_size=1,
            compression_ratio_threshold=None,
            condition_on_prev_tokens=conditioned,
            initial_prompt=prompt,
            word_timestamps=words,
            hallucination_silence_threshold=silence_s,
            clip_timestamps=tuple(times),
        ),
    )
    assert our_visits == their_visits
    assert [one.text for one in found] == [one["text"] for one in wanted]
    for segment, one in zip(found, wanted, strict=True):
        assert segment.start_s == pytest.approx(one["start"])
        assert segment.end_s == pytest.approx(one["end"])
        if words:
            assert [word.start_s for word in segment.words or ()] == [
                word["start"] for word in one["words"]
            ]
