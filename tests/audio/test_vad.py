"""The detector and its spans against the silero-vad package; quiet and awkward real speech."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from silero_vad import load_silero_vad
from silero_vad.utils_vad import get_speech_timestamps_from_probs

from corpus_asr.audio.vad import (
    BLOCK_SAMPLES,
    DEFAULT_CRITERIA,
    LEVEL_TARGET,
    STEP_SAMPLES,
    SileroDetector,
    SpeechCriteria,
    even_level,
    score_again,
    speech_runs,
    speech_spans,
    true_runs,
)
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import made_sounds, read_clip, read_manifest

# Products are summed in another order than in ONNX Runtime: 2.2e-5 was the most in 264 recordings.
ROUNDING = 1e-4

PROBABILITIES = st.lists(
    st.sampled_from([0.0, 0.2, 0.34, 0.35, 0.4, 0.49, 0.5, 0.7, 1.0]), min_size=0, max_size=120
)


@pytest.fixture(scope="module")
def detector() -> SileroDetector:
    return SileroDetector()


def sound(seconds: float) -> np.ndarray:
    """Noise whose loudness changes like syllables: probabilities that are not all alike."""
    num_samples = int(seconds * SAMPLE_RATE_HZ)
    noise = np.random.default_rng(3).standard_normal(num_samples)
    beat = 1 + np.sin(2 * np.pi * 4 * np.arange(num_samples) / SAMPLE_RATE_HZ)
    return (0.05 * noise * beat).astype(np.float32)


def oracle_probabilities(samples: np.ndarray) -> np.ndarray:
    return load_silero_vad(sequence=True).audio_forward(samples)


def listened(detector: SileroDetector, samples: np.ndarray) -> np.ndarray:
    return score_again(detector, samples, detector.score(samples), DEFAULT_CRITERIA)


def found(detector: SileroDetector, samples: np.ndarray) -> list[tuple[int, int]]:
    return speech_spans(listened(detector, samples), DEFAULT_CRITERIA, num_samples=samples.size)


@pytest.mark.parametrize("num_samples", [0, 1, 511, 512, 513, BLOCK_SAMPLES, 500_001])
def test_probabilities_equal_the_packages_own(detector: SileroDetector, num_samples: int) -> None:
    samples = sound(32)[:num_samples]
    expected = oracle_probabilities(samples)
    np.testing.assert_allclose(detector.score(samples), expected, rtol=0, atol=ROUNDING)


def test_probabilities_of_real_speech_equal_the_packages_own(
    detector: SileroDetector, speech: Path
) -> None:
    folder = speech / "english_short"
    for item in read_manifest(folder)[::12]:
        samples = read_clip(folder / item["path"])
        scores, expected = detector.score(samples), oracle_probabilities(samples)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=ROUNDING)
        spans = [
            speech_spans(found, DEFAULT_CRITERIA, num_samples=samples.size)
            for found in (scores, expected)
        ]
        assert spans[0] == spans[1]


@pytest.mark.parametrize(("num_steps", "is_speech"), [(5, False), (6, True)])
def test_the_shortest_words_are_longer_than_the_onset_of_a_tone(
    num_steps: int, is_speech: bool
) -> None:
    probabilities = np.zeros(100, dtype=np.float32)
    probabilities[40 : 40 + num_steps] = 1.0
    num_samples = 100 * STEP_SAMPLES
    spans = speech_spans(probabilities, DEFAULT_CRITERIA, num_samples=num_samples)
    assert bool(spans) == is_speech


@given(sizes=st.lists(st.integers(0, 3 * BLOCK_SAMPLES), max_size=6))
def test_chunks_of_any_size_give_the_same_probabilities(
    detector: SileroDetector, sizes: list[int]
) -> None:
    samples = sound(40)[: sum(sizes)]
    chunks = np.split(samples, np.cumsum(sizes)[:-1]) if sizes else []
    detector.feed(sound(1))
    detector.reset()  # forgets a recording, as `finish` does in each example
    streamed = [detector.feed(chunk) for chunk in chunks]
    streamed.append(detector.finish())
    assert np.array_equal(np.concatenate(streamed), detector.score(samples))


@given(
    probabilities=PROBABILITIES,
    missing=st.integers(0, STEP_SAMPLES - 1),
    pad_ms=st.sampled_from([0, 30, 400]),
    min_speech_ms=st.sampled_from([0, 100, 250]),
    min_silence_ms=st.sampled_from([100, 500, 2000]),
    threshold=st.sampled_from([0.1, 0.5, 0.7]),
)
@settings(max_examples=50)
def test_spans_equal_the_packages_state_machine(
    probabilities: list[float], missing: int, pad_ms: int, min_speech_ms: int, min_silence_ms: int,
    threshold: float,
) -> None:  # fmt: skip
    values = np.array(probabilities, dtype=np.float32)
    num_samples = max(0, len(values) * STEP_SAMPLES - missing)
    expected: list[tuple[int, int]] = []
    for span in get_speech_timestamps_from_probs(
        values.tolist(),
        threshold=threshold,
        min_speech_duration_ms=min_speech_ms,
        min_silence_duration_ms=min_silence_ms,
        speech_pad_ms=pad_ms,
        audio_length_samples=num_samples,
    ):
        # Where padded spans meet the package shares the gap between the two; here they are one.
        if expected and span["start"] <= expected[-1][1] + 1:
            expected[-1] = (expected[-1][0], span["end"])
        else:
            expected.append((span["start"], span["end"]))
    criteria = SpeechCriteria(
        threshold=threshold,
        pad_s=pad_ms / 1000,
        min_speech_s=min_speech_ms / 1000,
        min_speech_at_end_s=min_speech_ms / 1000,
        min_silence_s=min_silence_ms / 1000,
    )
    assert speech_spans(values, criteria, num_samples=num_samples) == expected


@given(probabilities=PROBABILITIES, cut=st.integers(0, 120))
@settings(max_examples=50)
def test_runs_of_two_halves_are_the_runs_of_the_whole(probabilities: list[float], cut: int) -> None:
    values = np.array(probabilities, dtype=np.float32)
    cut = min(cut, len(values))
    criteria = SpeechCriteria(min_silence_s=0.0)
    whole, _ = speech_runs(values, criteria)
    first, running = speech_runs(values[:cut], criteria)
    second, _ = speech_runs(values[cut:], criteria, running=running)
    steps = np.zeros(len(values), dtype=bool)
    for start, end in first + [(a + cut, b + cut) for a, b in second]:
        steps[start:end] = True
    assert true_runs(steps) == [run for run in whole if run[0] < run[1]]


def test_speech_that_is_cut_is_kept_on_both_sides_however_short() -> None:
    before = np.array([0.0] * 40 + [0.9] * 2, dtype=np.float32)
    length = 42 * STEP_SAMPLES
    unpadded = SpeechCriteria(pad_s=0.0)
    for values, cut, span in (
        (before, {"goes_on": True}, (40 * STEP_SAMPLES, length)),
        (before[::-1], {"running": True}, (0, 2 * STEP_SAMPLES)),
    ):
        assert speech_spans(values, unpadded, num_samples=length) == []
        assert speech_spans(values, unpadded, num_samples=length, **cut) == [span]


@given(
    levels_db=st.lists(st.integers(-60, 20), min_size=1, max_size=8),
    num_samples=st.integers(1, 9 * SAMPLE_RATE_HZ),
)
def test_an_even_level_is_never_above_the_target(levels_db: list[int], num_samples: int) -> None:
    samples = sound(9)[:num_samples]
    for stretch, level_db in zip(np.array_split(samples, len(levels_db)), levels_db, strict=True):
        stretch *= 10 ** (level_db / 20)
    even = even_level(samples)
    assert even.dtype == np.float32
    assert even.shape == samples.shape
    assert np.abs(even).max() <= LEVEL_TARGET * (1 + 1e-6)
    assert np.array_equal(np.sign(even), np.sign(samples))


def test_what_nobody_says_is_no_speech(detector: SileroDetector) -> None:
    for name, samples in made_sounds(4 * SAMPLE_RATE_HZ).items():
        assert found(detector, samples) == [], name


@pytest.mark.parametrize("level_db", [0, -30, -60])
def test_every_spoken_word_is_in_a_span_at_any_level(
    detector: SileroDetector, speech: Path, level_db: int
) -> None:
    folder = speech / "timings"
    lost = []
    for item in [item for item in read_manifest(folder) if item["words"]][::3]:
        samples = read_clip(folder / item["path"])
        samples *= np.float32(0.5 / np.abs(samples).max() * 10 ** (level_db / 20))
        transcribed = np.zeros(samples.size, dtype=bool)
        for start, end in found(detector, samples):
            transcribed[start:end] = True
        for word in item["words"]:
            stretch = transcribed[int(word["start"] * 16_000) : int(word["end"] * 16_000)]
            if not stretch.all():
                lost.append((item["id"], word["word"], stretch.mean()))
    assert lost == []


def test_quiet_speech_after_loud_speech_is_found(detector: SileroDetector, speech: Path) -> None:
    samples = read_clip(speech / "awkward" / "fmt_pcm16_16k.wav")
    quiet = samples * np.float32(10 ** (-50 / 20))
    both = np.concatenate([samples, np.zeros(24_000, dtype=np.float32), quiet])
    spans = found(detector, both)
    assert spans[-1][1] > both.size - 0.1 * quiet.size
    assert sum(end - start for start, end in spans) > 0.9 * 2 * samples.size


def test_short_words_that_fill_their_file_are_found(
    detector: SileroDetector, large_speech: Path
) -> None:
    folder = large_speech / "train" / "fsdd"
    paths = sorted(folder.glob("*.opus"))[::60]
    assert len(paths) >= 40
    assert [path.name for path in paths if not found(detector, read_clip(path))] == []


def present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the files of these names that a folder has; the committed one has some."""
    found = [folder / name for name in names if (folder / name).exists()]
    assert len(found) > 3
    return found


AWKWARD_SPEECH = (
    "fmt_gsm_8k.wav", "fmt_opus_6k.opus", "gap_25s.flac", "lead_silence_20s.flac",
    "trail_silence_40s.flac", "lvl_clipped.wav", "lvl_dc_offset.wav", "lvl_float_over_1.wav",
    "lvl_minus60db.wav", "lvl_minus60db_float.wav", "repo_ami_headset.wav", "repo_lid_ko.wav",
    "repo_reverb.wav", "snr_5db.flac", "speed_1_8.flac",
)  # fmt: skip
AWKWARD_SILENCE = (
    "dtmf_3s.wav", "len_10ms.wav", "len_1_sample.wav", "len_50ms.flac", "len_99ms.wav",
    "noise_white_10s.flac", "sil_1s.wav", "sil_35s.flac", "tone_440_5s.wav",
)  # fmt: skip


def test_awkward_speech_is_found_and_awkward_silence_is_none(
    detector: SileroDetector, speech: Path
) -> None:
    for path in present(speech / "awkward", AWKWARD_SPEECH):
        spans = found(detector, read_clip(path))
        assert sum(end - start for start, end in spans) > 0.5 * 3 * SAMPLE_RATE_HZ, path.name
    for path in present(speech / "awkward", AWKWARD_SILENCE):
        assert found(detector, read_clip(path)) == [], path.name
