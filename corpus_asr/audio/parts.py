"""Splits a streamed recording into parts, and chooses windows of these to detect a language in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from corpus_asr.audio.vad import (
    BLOCK_SAMPLES,
    DEFAULT_CRITERIA,
    STEP_SAMPLES,
    Probabilities,
    Samples,
    SileroDetector,
    SpeechCriteria,
    score_again,
    speech_runs,
    speech_spans,
    true_runs,
)
from corpus_asr.units import LONG_SILENCE_S, SAMPLE_RATE_HZ, WINDOW_S

# Fraction of a part's end in which the cut is searched.
MAX_SEARCH_S = 60.0
SEARCH_FRACTION = 0.25

# Without a detector, silence is where power is within 3 dB of the minimum, over about 0.3 s.
POWER_STEPS = 9
QUIET_POWER_RATIO = 2.0

# Above any PCM sample in any scale: larger values are broken floats, which would overflow.
MAX_MAGNITUDE = np.float32(2**31)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AudioPart:
    """A span of one recording."""

    start_sample: int
    """Start of the part in the recording, in samples."""
    samples: Samples
    speech: tuple[tuple[int, int], ...] | None
    """Spans of speech, padding included, as sample positions in the recording; in order, disjoint,
    inside the part. None without detection."""


class PartCutter:
    """Collects one recording's samples and yields parts of at most `part_s` when they are complete.

    Cut positions depend only on the samples, not on chunk boundaries. Samples that are NaN,
    infinite or extremely large count as zeros. Padding of speech ends at a cut. The detector is
    reset here, and must not be shared until `finish` has ended.
    """

    def __init__(
        self,
        *,
        part_s: float,
        detector: SileroDetector | None,
        criteria: SpeechCriteria = DEFAULT_CRITERIA,
    ) -> None:
        self._part_samples = int(part_s * SAMPLE_RATE_HZ)
        if self._part_samples < BLOCK_SAMPLES:
            least_s = BLOCK_SAMPLES / SAMPLE_RATE_HZ
            raise ValueError(f"cutting parts: found part_s {part_s}, expected at least {least_s}")
        self._criteria = criteria
        self._detector = detector
        if detector is not None:
            detector.reset()
        self._start_sample = 0
        self._chunks: list[Samples] = []
        self._num_buffered = 0
        self._probabilities = np.zeros(0, dtype=np.float32)
        self._running = False  # speech at the end of the last part

    def feed(self, samples: Samples) -> Iterator[AudioPart]:
        """Add the next samples immediately; the iterator yields the parts they complete."""
        if samples.size and not max(-samples.min(), samples.max()) <= MAX_MAGNITUDE:
            samples = np.where(np.abs(samples) <= MAX_MAGNITUDE, samples, np.float32(0.0))
        self._chunks.append(samples)
        self._num_buffered += samples.size
        if self._detector is not None:
            added = self._detector.feed(self._chunks[-1])
            self._probabilities = np.concatenate([self._probabilities, added])
        return self._complete_parts()

    def finish(self) -> Iterator[AudioPart]:
        """End the recording; the iterator yields the remaining parts, none if it was empty."""
        if self._detector is not None:
            added = self._detector.finish()
            self._probabilities = np.concatenate([self._probabilities, added])
        return self._last_parts()

    def _last_parts(self) -> Iterator[AudioPart]:
        yield from self._complete_parts()
        if self._num_buffered:
            yield self._take(self._num_buffered, self._heard_well(self._num_buffered), last=True)

    def _complete_parts(self) -> Iterator[AudioPart]:
        num_steps = self._part_samples // STEP_SAMPLES
        while self._num_buffered > self._part_samples and (
            self._detector is None or len(self._probabilities) >= num_steps
        ):
            probabilities = self._heard_well(num_steps * STEP_SAMPLES)
            cut = self._find_cut(num_steps, probabilities)
            before_cut = None if probabilities is None else probabilities[:cut]
            yield self._take(cut * STEP_SAMPLES, before_cut, last=False)

    def _buffer(self) -> Samples:
        if len(self._chunks) != 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0]

    def _heard_well(self, num_samples: int) -> Probabilities | None:
        if self._detector is None:
            return None
        return score_again(
            self._detector,
            self._buffer()[:num_samples],
            self._probabilities[: -(-num_samples // STEP_SAMPLES)],
            self._criteria,
            running=self._running,
            goes_on=num_samples < self._num_buffered,
        )

    def _find_cut(self, num_steps: int, probabilities: Probabilities | None) -> int:
        search_s = min(MAX_SEARCH_S, SEARCH_FRACTION * self._part_samples / SAMPLE_RATE_HZ)
        first = num_steps - int(search_s * SAMPLE_RATE_HZ) // STEP_SAMPLES
        if probabilities is not None:
            quiet_below = self._criteria.negative_threshold
            return first + quietest_border(probabilities[first:], quiet_below=quiet_below)
        power = _step_power(self._buffer()[first * STEP_SAMPLES : num_steps * STEP_SAMPLES])
        quiet_below = QUIET_POWER_RATIO * float(power.min()) + float(np.finfo(np.float32).tiny)
        return first + quietest_border(power, quiet_below=quiet_below)

    def _take(
        self, num_samples: int, probabilities: Probabilities | None, *, last: bool
    ) -> AudioPart:
        buffer, first = self._buffer(), self._start_sample
        speech = None
        if probabilities is not None:
            spans = speech_spans(
                probabilities,
                self._criteria,
                num_samples=num_samples,
                running=self._running,
                goes_on=not last,
            )
            speech = tuple((first + start, first + end) for start, end in spans)
            _, self._running = speech_runs(probabilities, self._criteria, running=self._running)
        # Copies, so that neither the part nor the rest references the whole buffer.
        part = AudioPart(start_sample=first, samples=buffer[:num_samples].copy(), speech=speech)
        self._chunks = [buffer[num_samples:].copy()]
        self._num_buffered -= num_samples
        self._start_sample += num_samples
        self._probabilities = self._probabilities[-(-num_samples // STEP_SAMPLES) :]
        return part


def quietest_border(scores: Probabilities, *, quiet_below: float) -> int:
    """Return the step border to cut at: 1 to `len(scores)`, where 1 is after step 0.

    It is the middle of the longest run of steps below `quiet_below`; without any, the border before
    the minimum. The last one wins a tie, which makes parts as long as possible.
    """
    runs = true_runs(scores < quiet_below)
    if not runs:
        lowest = scores.size - 1 - int(scores[::-1].argmin())
        return max(1, lowest)
    start, end = max(runs, key=lambda run: (run[1] - run[0], run[0]))
    return (start + end + 1) // 2


def _step_power(samples: Samples) -> Probabilities:
    power = np.square(samples.reshape(-1, STEP_SAMPLES)).mean(axis=1)
    padded = np.pad(power, POWER_STEPS // 2, mode="edge")
    return np.convolve(padded, np.full(POWER_STEPS, 1 / POWER_STEPS, np.float32), mode="valid")


# One window may contain a jingle, an advertisement or a quotation; with three, the majority
# language is chosen.
_MOST_WINDOWS = 3
# In a short span the first window covers most of it.
_S_PER_WINDOW = 90.0


def language_window_starts(
    speech: Sequence[tuple[float, float]] | None, *, start_s: float, end_s: float
) -> list[float]:
    """Return up to three window starts in a span, the first where its decoding starts.

    All but the first window lie inside the span; none overlap. Features are cut and decoded there.
    """
    first_s = _next_speech(speech, start_s)
    starts = [start_s if first_s is None else first_s]
    count = min(_MOST_WINDOWS, 1 + int((end_s - starts[0]) // _S_PER_WINDOW))
    apart_s = (end_s - starts[0]) / count
    for number in range(1, count):
        wanted_s = max(starts[0] + number * apart_s, starts[-1] + WINDOW_S)
        found_s = _next_speech(speech, wanted_s)
        if found_s is None or found_s + WINDOW_S > end_s:
            break
        starts.append(found_s)
    return starts


def _next_speech(speech: Sequence[tuple[float, float]] | None, time_s: float) -> float | None:
    # A short silence is not skipped, as in the seek loop.
    if speech is None:
        return time_s
    for span_start_s, span_end_s in speech:
        if span_end_s > time_s:
            return time_s if span_start_s - time_s <= LONG_SILENCE_S else span_start_s
    return None
