"""`padding_s`: windows are heard no further than their audio and so many seconds more."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import Job, Result
from corpus_asr.decoding.slots import Gather, SlotScheduler, Task
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.segments import Segment
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.language import find_language
from corpus_asr.transcription.whisper import WhisperTranscriber
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import PartRequest, frames_to_hear
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_FRAMES
from tests.support.checkpoints import tiny_whisper
from tests.support.prompt_formats import part, prompt_format
from tests.support.slots import cut_network, run_jobs
from tests.support.tokenizers import tiny_tokenizer

PADDING_S = 1.0
GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


@given(st.integers(1, WINDOW_FRAMES), st.sampled_from([0.0, 1.0, 1e9]) | st.floats(0, 40))
def test_whole_seconds_that_hold_the_audio_and_the_padding(content: int, padding_s: float) -> None:
    frames = frames_to_hear(content, padding_s)
    wanted_s = content / FRAMES_PER_SECOND + padding_s
    if frames is None:
        assert wanted_s > 29
        return
    assert frames % FRAMES_PER_SECOND == 0
    assert frames_to_hear(content, None) is None
    assert wanted_s <= frames / FRAMES_PER_SECOND < wanted_s + 1
    assert frames < WINDOW_FRAMES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(tokenizer)
    return tiny_whisper(
        tmp_path_factory.mktemp("checkpoint"),
        tokenizer=tokenizer,
        d_model=16,
        heads=2,
        layers=1,
        max_target_positions=28,
        spread=0.3,
    )


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)


class ByLength:
    """Transcribes part by part, each window by a network made for what is heard of it."""

    def __init__(self, network: WhisperForConditionalGeneration, checkpoint: Path) -> None:
        self._network = network
        self._prompt_format = PromptFormat.from_folder(checkpoint)
        self._schedulers: dict[int, SlotScheduler] = {}
        self.heard: list[tuple[tuple[int, ...], int | None]] = []

    def __call__(self, own: PartRequest, settings: DecodingSettings) -> list[Segment]:
        task = WhisperTranscriber(self._prompt_format).transcribe(own, settings)
        return list(self._result_of(task).segments)

    def _result_of(self, task: Task) -> Any:
        answer: Any = None
        while True:
            try:
                request = task.send(answer)
            except StopIteration as stop:
                return stop.value
            if isinstance(request, Gather):
                answer = [self._result_of(one) for one in request.tasks]
            else:
                answer = self._run(request)

    def _run(self, job: Job) -> Result:
        self.heard.append((job.window, job.num_frames))
        frames = job.num_frames or WINDOW_FRAMES
        if frames not in self._schedulers:
            model = cut_network(self._network, frames=frames).slot_model()
            self._schedulers[frames] = SlotScheduler(model, 1)
        features = np.ascontiguousarray(job.features[:, :frames])
        own = replace(job, features=features, num_frames=None)
        ((result,),) = run_jobs(self._schedulers[frames], [[own]])
        return result


def near(found: Sequence[Segment], expected: Sequence[Segment]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.tokens, ours.text, ours.language) == (
            theirs.tokens, theirs.text, theirs.language
        )  # fmt: skip
        assert (ours.start_s, ours.end_s) == (theirs.start_s, theirs.end_s)
        assert ours.language_probability == pytest.approx(theirs.language_probability, abs=1e-4)
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-4)
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=1e-4)
        times = [(word.word, word.start_s, word.end_s) for word in theirs.words or ()]
        assert [(word.word, word.start_s, word.end_s) for word in ours.words or ()] == times


def transcribe(
    network: WhisperForConditionalGeneration,
    checkpoint: Path,
    parts: Sequence[PartRequest],
    settings: DecodingSettings,
    *,
    slots: int,
) -> tuple[list[tuple[Segment, ...]], int]:
    """What each part says, and how many windows were encoded for it."""
    read = WhisperTranscriber.from_folder(checkpoint)
    with Engine(network.slot_model(), read, decoding=settings, slots=slots) as engine:
        futures = [engine.submit(own) for own in parts]
        found = [future.result(timeout=120).segments for future in futures]
        return found, engine.statistics().windows


PARTS = [part(seconds, mels=80, seed=n) for n, seconds in enumerate((5.0, 2.4, 9.99, 31.5))]
OPTIONS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "words": {"word_timestamps": True},
    "a language per window": {"language_mode": "window"},
    "chunked beams": {"strategy": "chunked", "num_beams": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_parts_say_what_networks_say_that_were_made_for_their_lengths(
    network: WhisperForConditionalGeneration, checkpoint: Path, name: str
) -> None:
    settings = DecodingSettings(padding_s=PADDING_S, **(GREEDY | OPTIONS[name]))
    oracle = ByLength(network, checkpoint)
    expected = [oracle(own, settings) for own in PARTS]
    heard = {frames for _, frames in oracle.heard}
    assert None in heard
    assert 600 in heard
    assert len(dict(oracle.heard)) == len(set(oracle.heard))  # a window has one length
    for slots in (1, 3, 8) if name == "sequential" else (3,):
        found, windows = transcribe(network, checkpoint, PARTS, settings, slots=slots)
        # Asking for the language, decoding and timing words share an encoding.
        repeats = sum(one == before for before, one in pairwise(oracle.heard))
        assert windows == len(oracle.heard) - repeats
        for own, ours, theirs in zip(PARTS, found, expected, strict=True):
            near(ours, theirs)
            for segment in ours:
                assert segment.end_s <= own.end_s
                assert all(word.end_s <= own.end_s for word in segment.words or ())
    assert sum(len(segments) for segments in expected) >= 3


def test_padding_to_the_whole_window_is_no_padding_setting_at_all(
    network: WhisperForConditionalGeneration, checkpoint: Path
) -> None:
    found = [
        transcribe(
            network,
            checkpoint,
            PARTS[:3],
            DecodingSettings(padding_s=padding_s, word_timestamps=True, **GREEDY),
            slots=2,
        )
        for padding_s in (None, 30.0)
    ]
    assert found[0] == found[1]


def test_windows_that_parts_must_agree_on_are_heard_whole() -> None:
    settings = DecodingSettings(padding_s=1.0)
    alone = next(find_language(part(5.0, mels=80), prompt_format(), settings))
    assert (alone.window, alone.num_frames) == ((0, 500), 600)
    later = part(5.0, mels=80, start_s=600.0)
    assert next(find_language(later, prompt_format(), settings)).num_frames is None
    carried = replace(later, language_features=np.zeros((WINDOW_FRAMES, 80), np.float16))
    assert next(find_language(carried, prompt_format(), settings)).num_frames is None
    unset = next(find_language(part(5.0, mels=80), prompt_format(), DecodingSettings()))
    assert unset.num_frames is None
