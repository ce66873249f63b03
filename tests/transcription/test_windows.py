"""Windows of a part, their padding, and the chunks that parts are cut into."""

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
from corpus_asr.decoding.jobs import AlignJob, Gather, Job, Task, WindowJob
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.segments import Segment
from corpus_asr.transcription.chunks import SpansInOrder
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.whisper import WhisperTranscriber
from corpus_asr.transcription.whisper_prompt import find_language
from corpus_asr.transcription.windows import (
    PartRequest,
    chunk_ranges,
    frames_to_encode,
)
from corpus_asr.units import FRAMES_PER_SECOND, TAIL_FRAMES, WINDOW_FRAMES
from tests.support.corpora import tiny_model
from tests.support.prompt_formats import part, prompt_format
from tests.support.slots import Listening, outcomes
from tests.support.tables import segment


def test_a_window_holds_the_features_and_then_silence() -> None:
    own = part(10)
    window = own.window(300, own.num_frames)
    assert window.shape == (4, WINDOW_FRAMES)
    assert np.array_equal(window[:, : 700 + TAIL_FRAMES], own.features[300:].T)
    assert (window[:, 700 + TAIL_FRAMES :] == np.float16(-1.5)).all()


def test_a_window_ends_with_its_range() -> None:
    window = part(20).window(0, 500)
    assert (window[:, 500 + TAIL_FRAMES :] == np.float16(-1.5)).all()
    window = part(60).window_in_silence(0, 500)
    assert (window[:, 500 + TAIL_FRAMES :] == np.float16(-1.5)).all()


@pytest.mark.parametrize(
    ("seconds", "start_s", "fits"), [(30, 0, True), (30.01, 0, False), (10, 600, False)]
)
def test_the_last_window_of_a_longer_recording_is_cut_at_its_frame_and_filled_with_zeros(
    seconds: float, start_s: float, fits: bool
) -> None:
    own = part(seconds, start_s=start_s)
    assert own.fits_one_window is fits
    window = own.window(500, own.num_frames)
    content = own.num_frames - 500
    assert np.array_equal(window[:, :content], own.features[500 : 500 + content].T)
    if fits:
        assert (window[:, content + TAIL_FRAMES :] == np.float16(-1.5)).all()
        assert np.array_equal(window, own.window_in_silence(500, own.num_frames))
    else:
        assert not window[:, content:].any()


def test_decoding_goes_on_where_speech_is() -> None:
    own = part(100, [(12.0, 15.0), (40.0, 41.0)])
    for frame, end, expected in [
        (0, 10_000, 1200),  # more than five seconds of silence are skipped
        (800, 10_000, 800),  # less is decoded along
        (1400, 10_000, 1400),
        (1500, 10_000, 4000),
        (4100, 10_000, None),
        (1500, 3000, None),
    ]:
        assert own.next_speech(frame, end) == expected, frame
    # A span that reaches into the last incomplete frame ends the loop.
    assert part(5.85, [(0.0, 5.855)]).next_speech(585, 585) is None
    assert part(20.0, [(0.0, 1.0), (19.998, 20.005)]).next_speech(200, 2000) is None
    # Without detection everything is decoded.
    assert [part(20).next_speech(frame, 2000) for frame in (700, 2000)] == [700, None]


def test_times_are_the_recording_s() -> None:
    own = part(20, [(605.0, 610.0)], start_s=600.0)
    assert own.next_speech(0, own.num_frames) == 0
    assert own.frame(605.0) == 500
    assert own.seconds(500) == pytest.approx(605.0)
    assert own.end_s == pytest.approx(620.0)


def test_speech_fraction_is_the_share_of_overlap() -> None:
    own = part(20, [(1.0, 2.0), (4.0, 8.0)])
    assert own.speech_fraction(0.0, 10.0) == pytest.approx(0.5)
    assert own.speech_fraction(9.0, 10.0) == 0.0
    assert part(20).speech_fraction(0, 5) is None


spans = st.lists(st.integers(0, 3000), min_size=0, max_size=24, unique=True).map(
    lambda points: [
        (start / 10, end / 10)
        for start, end in zip(sorted(points)[::2], sorted(points)[1::2], strict=False)
    ]
)


@given(speech=spans, silence_frames=st.integers(0, 500))
def test_chunks_fit_windows_keep_all_speech_and_never_overlap(
    speech: list[tuple[float, float]], silence_frames: int
) -> None:
    own = part(300, speech)
    chunks = chunk_ranges(own, [(0, own.num_frames)], silence_frames=silence_frames)
    assert all(start >= 0 and end <= own.num_frames for start, end in chunks)
    assert all(0 < end - start <= WINDOW_FRAMES for start, end in chunks)
    assert all(left[1] <= right[0] for left, right in pairwise(chunks))
    covered = np.zeros(own.num_frames, dtype=bool)
    for start, end in chunks:
        covered[start:end] = True
    for start_s, end_s in speech:
        assert covered[own.frame(start_s) : own.frame(end_s)].all()


def test_without_detection_chunks_cover_everything_and_cut_at_quiet_moments() -> None:
    own = part(70)
    own.features[2700] = -90.0  # shorter than a pause
    own.features[2300:2340] = -9.0
    chunks = chunk_ranges(own, [(0, own.num_frames)])
    assert chunks[0][0] == 0
    assert 2310 <= chunks[0][1] <= 2330
    assert chunks[-1][1] == own.num_frames
    assert all(left[1] == right[0] for left, right in pairwise(chunks))


def test_windows_are_full_and_cut_at_pauses_or_where_it_is_quiet() -> None:
    thirds = part(60, [(0.0, 20.0), (21.0, 35.0), (36.0, 50.0)])
    assert chunk_ranges(thirds, [(0, thirds.num_frames)]) == [(0, 2000), (2100, 5000)]
    # As few windows as the next, without a cut in speech, though the first one is half empty.
    halves = part(60, [(0.0, 12.0), (13.0, 40.0)])
    assert chunk_ranges(halves, [(0, halves.num_frames)]) == [(0, 1200), (1300, 4000)]
    # Two windows need a cut in speech that grows loud: three have none, until there is a dip.
    rising = part(60, [(0.0, 16.0), (17.0, 33.0), (34.0, 50.0)])
    rising.features[:] = np.linspace(-1.0, 0.0, len(rising.features))[:, None]
    assert chunk_ranges(rising, [(0, rising.num_frames)]) == [
        (0, 1600), (1700, 3300), (3400, 5000)
    ]  # fmt: skip
    rising.features[2500:2540] = -9.0
    (first, second) = chunk_ranges(rising, [(0, rising.num_frames)])
    assert (first[0], second[1]) == (0, 5000)
    assert 2510 <= first[1] == second[0] <= 2530
    # Long pauses are left out all the same.
    ranges = chunk_ranges(halves, [(0, halves.num_frames)], pause_frames=50)
    assert ranges == [(0, 1200), (1300, 4000)]


def test_speech_without_a_pause_is_cut_into_full_windows() -> None:
    speech = part(600, [(0.0, 600.0)])
    noise = np.random.default_rng(0).normal(size=(len(speech.features), 1))
    speech.features[:] = noise
    ranges = chunk_ranges(speech, [(0, speech.num_frames)])
    assert all(earlier[1] == later[0] for earlier, later in pairwise(ranges))
    assert (ranges[0][0], ranges[-1][1]) == (0, speech.num_frames)
    assert len(ranges) <= 22  # 20 that are full to the frame


def test_chunks_of_clips_stay_inside_them() -> None:
    own = part(300, [(5.0, 20.0), (30.0, 100.0)])
    chunks = chunk_ranges(own, [(1000, 4000), (9000, 30_000)])
    assert chunks == [(1000, 4000), (9000, 10_000)]
    assert chunk_ranges(part(300), [(100, 200), (500, 700)]) == [(100, 200), (500, 700)]
    assert chunk_ranges(part(0), [(0, 0)]) == []  # shorter than a frame


PADDING_S = 1.0
GREEDY: dict[str, Any] = {
    "beam_size": 1,
    "temperature": (0.0,),
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


@given(st.integers(1, WINDOW_FRAMES), st.sampled_from([0.0, 1.0, 1e9]) | st.floats(0, 40))
def test_whole_seconds_that_hold_the_audio_and_the_padding(content: int, padding_s: float) -> None:
    frames = frames_to_encode(content, padding_s)
    wanted_s = content / FRAMES_PER_SECOND + padding_s
    if frames is None:
        assert wanted_s > 29
        return
    assert frames % FRAMES_PER_SECOND == 0
    assert frames_to_encode(content, None) is None
    assert wanted_s <= frames / FRAMES_PER_SECOND < wanted_s + 1
    assert frames < WINDOW_FRAMES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"d_model": 16, "heads": 2, "layers": 1, "spread": 0.3}
    return tiny_model(tmp_path_factory.mktemp("model"), max_target_positions=28, **sizes)


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)


def noted(task: Task, jobs: list[Job]) -> Task:
    """A task that also appends what it asks for to `jobs`."""
    answer: Any = None
    while True:
        try:
            request = task.send(answer)
        except StopIteration as stop:
            return stop.value
        if isinstance(request, Gather):
            request = Gather(noted(one, jobs) for one in request.tasks)
        else:
            jobs.append(request)
        answer = yield request


def transcribe(
    network: WhisperForConditionalGeneration,
    checkpoint: Path,
    parts: Sequence[PartRequest],
    settings: DecodingSettings,
    *,
    slots: int,
) -> tuple[list[tuple[Segment, ...]], int]:
    """What each part says, which its listener hears, and how many windows were encoded for it."""
    read = WhisperTranscriber.from_folder(checkpoint)
    listeners = [Listening() for _ in parts]
    with Engine(network.slot_model(), read, decoding=settings, slots=slots) as engine:
        futures = [
            engine.submit(replace(own, listener=listener))
            for own, listener in zip(parts, listeners, strict=True)
        ]
        found = [future.result(timeout=120).segments for future in futures]
        for own, listener, segments in zip(parts, listeners, found, strict=True):
            listener.check(own, segments)
        return found, engine.statistics().windows


PARTS = [part(seconds, mels=80, seed=n) for n, seconds in enumerate((5.0, 2.4, 9.99, 31.5))]
OPTIONS: dict[str, dict[str, Any]] = {
    "sequential": {"strategy": "sequential"},
    "words": {"word_timestamps": True},
    "a language per window": {"strategy": "sequential", "language_mode": "window"},
    "beams": {"beam_size": 2},
}


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS)
def test_all_that_is_asked_of_a_window_hears_its_content_and_the_padding(
    network: WhisperForConditionalGeneration, checkpoint: Path, name: str
) -> None:
    """What is said of so much of a window is tested in tests/decoding/test_short_windows.py."""
    settings = DecodingSettings(padding_s=PADDING_S, **(GREEDY | OPTIONS[name]))
    by_part: list[list[Any]] = [[] for _ in PARTS]
    own = WhisperTranscriber.from_folder(checkpoint)
    tasks = [
        noted(own.transcribe(each, settings), jobs)
        for each, jobs in zip(PARTS, by_part, strict=True)
    ]
    transcripts = outcomes(SlotScheduler(network.slot_model(), 6), tasks)
    expected = [list(transcript.segments) for transcript in transcripts]
    jobs = [job for each in by_part for job in each]
    assert {job.num_frames for job in jobs} > {None, 600}
    for job in jobs:
        assert job.num_frames == frames_to_encode(job.window[1] - job.window[0], PADDING_S)
    assert {type(job) for job in jobs} == {WindowJob} | ({AlignJob} if name == "words" else set())
    found, windows = transcribe(network, checkpoint, PARTS, settings, slots=3)
    # Asking for the language, decoding and timing words share an encoding.
    assert windows == sum(len({job.window for job in each}) for each in by_part)
    assert [[s.tokens for s in segments] for segments in found] == [
        [s.tokens for s in segments] for segments in expected
    ]
    for each, segments in zip(PARTS, found, strict=True):
        for one in segments:
            assert one.end_s <= each.end_s
            assert all(word.end_s <= each.end_s for word in one.words or ())
    assert sum(len(segments) for segments in expected) >= 3


def test_windows_that_parts_must_agree_on_are_heard_whole() -> None:
    settings = DecodingSettings(padding_s=1.0)
    alone = next(find_language(part(5.0, mels=80), prompt_format(), settings))
    assert (alone.window, alone.num_frames) == ((0, 500), 600)
    later = part(5.0, mels=80, start_s=600.0)
    assert next(find_language(later, prompt_format(), settings)).num_frames is None
    carried = replace(later, language_features=np.zeros((WINDOW_FRAMES, 80), np.float16))
    assert next(find_language(carried, prompt_format(), settings)).num_frames is None
    for settings, frames in (
        (DecodingSettings(), 1000),
        (DecodingSettings(padding_s=None), None),
        (DecodingSettings(strategy="sequential"), None),
        (DecodingSettings(beam_size=5), None),
    ):
        spoken = part(5.0, [(1.0, 4.0)], mels=80)
        assert next(find_language(spoken, prompt_format(), settings)).num_frames == frames
    silent = next(find_language(part(5.0, mels=80), prompt_format(), DecodingSettings()))
    assert silent.num_frames is None


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6), order=st.randoms())
def test_what_spans_say_is_passed_on_in_their_order_whenever_they_are_done(
    lengths: list[int], order: Any
) -> None:
    listener = Listening()
    spans = [(1000 * at, 1000 * at + 100 * length) for at, length in enumerate(lengths)]
    passed = SpansInOrder(listener, spans)
    said = {
        at: [segment(f"{at} {window}", 0.0, 1.0) for window in range(length)]
        for at, length in enumerate(lengths)
    }
    left = [at for at, length in enumerate(lengths) for _ in range(length)]
    order.shuffle(left)
    windows = dict.fromkeys(said, 0)
    for number, at in enumerate(left, 1):
        window = windows[at]
        windows[at] += 1
        passed.add(at, said[at][window : window + 1], frame=spans[at][0] + 100 * windows[at])
        if windows[at] == lengths[at]:
            passed.end(at)
        assert listener.seconds[-1] == number  # all that is transcribed, not the first spans alone
    assert listener.said == [one for segments in said.values() for one in segments]
