"""Voice activity detection: probabilities to spans of speech."""

import math
from dataclasses import dataclass

import numpy as np

from corpus_asr.array_types import Bool
from corpus_asr.audio.silero import (
    BLOCK_STEPS,
    STEP_SAMPLES,
    Probabilities,
    Samples,
    SileroDetector,
    in_steps,
)
from corpus_asr.config.decoding import AudioSettings
from corpus_asr.units import SAMPLE_RATE_HZ

# Difference between start and end thresholds; the latter is above 0, which no probability is below
# (`silero_vad/utils_vad.py` get_speech_timestamps).
HYSTERESIS = 0.15
LEAST_NEGATIVE_THRESHOLD = 0.01
# A run truncated by the recording's end would have been longer: with 250 ms here, one in ten spoken
# digits that fill their file would be lost. Runs below 100 ms contain no word.
MIN_SPEECH_AT_END_S = 0.1

# Scored again: pauses of at least this length, and audio with a lower peak.
PAUSE_S = 1.0
QUIET_PEAK = 0.06
LEVEL_REACH_S = 3.0  # range in which a click reduces the gain
LEVEL_TARGET = 0.5  # peak
# Minimum peak of speech: a third of the smallest 16-bit step.
QUIETEST_PEAK = 1e-5
PIECE_STEPS = 15 * BLOCK_STEPS  # 30.72 s at a time; bounds memory
# Silence around a piece: without it, a word that fills its file is missed.
LEAD_STEPS = 16  # 0.5 s
# Not used within longer audio, where an onset of noise or hum looks like speech for a third of a
# second. The preceding audio is scored instead, or the reversed beginning of the piece.
LONG_STEPS = 5 * SAMPLE_RATE_HZ // STEP_SAMPLES
WARM_UP_STEPS = 32  # 1 s
# Minimum probability of runs found only at an even level: crowd noise reaches 0.74.
SURE_AT_EVEN_LEVEL = 0.8

StepRun = tuple[int, int]
SampleSpan = tuple[int, int]

_DEFAULTS = AudioSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechCriteria:
    """Criteria for speech, applied to the probabilities of steps: `extract.vad_...`."""

    threshold: float = _DEFAULTS.vad_threshold
    """Probability at which speech starts; it may end below `negative_threshold`."""
    min_speech_s: float = _DEFAULTS.vad_min_speech_s
    """Maximum length of dropped runs: a tone's onset may look like speech for 160 ms."""
    min_silence_s: float = _DEFAULTS.vad_min_silence_s
    """Maximum gap between merged runs. In quiet speech, probabilities fluctuate, and with 0.4 s of
    padding on both sides such runs would become one span anyway."""
    pad_s: float = _DEFAULTS.vad_pad_s
    """Seconds of audio kept before and after a run."""
    min_speech_at_end_s: float = MIN_SPEECH_AT_END_S
    """`min_speech_s` for a run that reaches the recording's end; the smaller one applies."""

    @property
    def negative_threshold(self) -> float:
        """Probability below which speech may have ended."""
        return max(self.threshold - HYSTERESIS, LEAST_NEGATIVE_THRESHOLD)


DEFAULT_CRITERIA = SpeechCriteria()


def speech_runs(
    probabilities: Probabilities, criteria: SpeechCriteria, *, running: bool = False
) -> tuple[list[StepRun], bool]:
    """Return runs of speech, in steps, and whether speech continues after the last step.

    Speech starts at a step that reaches the threshold, and ends with the last step before
    `min_silence_s` without reaching it, counted from the first step below the negative threshold.

    Source: the state machine of `silero_vad/utils_vad.py` get_speech_timestamps_from_probs.
    """
    threshold, negative_threshold = criteria.threshold, criteria.negative_threshold
    min_silence_steps = criteria.min_silence_s * SAMPLE_RATE_HZ / STEP_SAMPLES
    runs: list[StepRun] = []
    start: int | None = 0 if running else None
    silent_from: int | None = None
    for step, probability in enumerate(probabilities.tolist()):
        if probability >= threshold:
            silent_from = None
            if start is None:
                start = step
        elif probability < negative_threshold and start is not None:
            silent_from = step if silent_from is None else silent_from
            if step - silent_from >= min_silence_steps:
                runs.append((start, silent_from))
                start = silent_from = None
    if start is None:
        return runs, False
    return [*runs, (start, len(probabilities))], True


def speech_spans(
    probabilities: Probabilities,
    criteria: SpeechCriteria,
    *,
    num_samples: int,
    running: bool = False,
    goes_on: bool = False,
) -> list[SampleSpan]:
    """Convert probabilities to padded, disjoint spans of speech, in samples.

    Each run is padded by `pad_s` on both sides; overlapping spans are merged. Runs no longer than
    `min_speech_s` are dropped (`min_speech_at_end_s` for one that reaches the end), unless samples
    follow it (`goes_on`) or speech was running before the first step. See also `speech_runs`.
    """
    runs, still_running = speech_runs(probabilities, criteria, running=running)
    pad_samples = round(criteria.pad_s * SAMPLE_RATE_HZ)
    min_at_end_s = min(criteria.min_speech_at_end_s, criteria.min_speech_s)
    spans: list[SampleSpan] = []
    for index, (first, last) in enumerate(runs):
        start, end = first * STEP_SAMPLES, min(last * STEP_SAMPLES, num_samples)
        at_end = still_running and index == len(runs) - 1
        if (running and first == 0) or (goes_on and at_end):
            min_s = 0.0  # a fragment of a run
        else:
            min_s = min_at_end_s if at_end else criteria.min_speech_s
        if end - start <= min_s * SAMPLE_RATE_HZ:
            continue
        start, end = max(0, start - pad_samples), min(num_samples, end + pad_samples)
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def score_again(
    detector: SileroDetector,
    samples: Samples,
    probabilities: Probabilities,
    criteria: SpeechCriteria,
    *,
    running: bool = False,
    goes_on: bool = False,
) -> Probabilities:
    """Raise the probabilities of quiet speech.

    The network requires speech within about 20 dB of full scale. Quieter audio, and pauses without
    a span (everything, if there is no span), are scored again at an even level; the maximum
    probability counts. In recordings of ordinary level this is a few percent of the audio.
    """
    spans = speech_spans(
        probabilities, criteria, num_samples=samples.size, running=running, goes_on=goes_on
    )
    pause_samples = PAUSE_S * SAMPLE_RATE_HZ if spans else 0
    doubtful = _loudest_near(samples) < QUIET_PEAK  # (step,)
    for start, end in _between(spans, samples.size):
        if end - start >= pause_samples:
            doubtful[math.ceil(start / STEP_SAMPLES) : math.ceil(end / STEP_SAMPLES)] = True
    raised = probabilities.copy()
    for first, last in true_runs(doubtful):
        for start in range(first, last, PIECE_STEPS):
            steps = slice(start, min(start + PIECE_STEPS, last))
            num_before = min(WARM_UP_STEPS, start - first)
            piece = samples[(start - num_before) * STEP_SAMPLES : steps.stop * STEP_SAMPLES]
            mirrored = WARM_UP_STEPS if num_before == 0 and last - first >= LONG_STEPS else 0
            scores = _score_raised(detector, piece, mirrored_steps=mirrored)
            raised[steps] = np.maximum(raised[steps], _sure(scores, criteria)[num_before:])
    return raised


def _sure(probabilities: Probabilities, criteria: SpeechCriteria) -> Probabilities:
    kept = probabilities.copy()
    for first, last in speech_runs(probabilities, criteria)[0]:
        if probabilities[first:last].max() < SURE_AT_EVEN_LEVEL:
            kept[first:last] = 0.0
    return kept


def true_runs(mask: Bool[np.ndarray, " step"]) -> list[StepRun]:
    """Return the true runs of a mask, as half-open intervals."""
    bounded = np.concatenate([[False], mask, [False]])
    borders = np.flatnonzero(bounded[1:] != bounded[:-1]).tolist()  # start, end, next start...
    return list(zip(borders[::2], borders[1::2], strict=True))


def _between(spans: list[SampleSpan], num_samples: int) -> list[SampleSpan]:
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), num_samples]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if end > start]


def _score_raised(
    detector: SileroDetector, samples: Samples, *, mirrored_steps: int
) -> Probabilities:
    num_steps = -(-samples.size // STEP_SAMPLES)
    centred = samples - samples.mean()
    if np.abs(centred).max() < QUIETEST_PEAK:
        return np.zeros(num_steps, dtype=np.float32)
    even = even_level(centred)
    silence = np.zeros(LEAD_STEPS * STEP_SAMPLES, dtype=np.float32)
    lead = even[: mirrored_steps * STEP_SAMPLES][::-1] if mirrored_steps else silence
    scores = detector.score(np.concatenate([lead, even, silence]))
    lead_steps = lead.size // STEP_SAMPLES
    return scores[lead_steps : lead_steps + num_steps]


def _loudest_near(samples: Samples) -> Probabilities:
    starts = np.arange(0, samples.size, STEP_SAMPLES)
    peaks = np.maximum(np.maximum.reduceat(samples, starts), -np.minimum.reduceat(samples, starts))
    reach = round(LEVEL_REACH_S * SAMPLE_RATE_HZ / STEP_SAMPLES)
    near = np.lib.stride_tricks.sliding_window_view(np.pad(peaks, reach), 2 * reach + 1)
    loudest: Probabilities = near.max(axis=1)
    return loudest


def even_level(samples: Samples) -> Samples:
    """Scale so that the peak within `LEVEL_REACH_S` of any step is `LEVEL_TARGET`.

    The gain is limited by `QUIETEST_PEAK`, and no sample exceeds `LEVEL_TARGET`.
    """
    gains = np.float32(LEVEL_TARGET) / np.maximum(_loudest_near(samples), np.float32(QUIETEST_PEAK))
    # Gains are interpolated between step borders, which have the smaller neighboring gain.
    borders = np.minimum(np.append(gains, gains[-1:]), np.append(gains[:1], gains))
    ramp = np.linspace(0.0, 1.0, STEP_SAMPLES, endpoint=False, dtype=np.float32)
    steps = in_steps(samples)
    steps *= borders[:-1, None] * (1 - ramp) + borders[1:, None] * ramp
    return steps.reshape(-1)[: samples.size]
