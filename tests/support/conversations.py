"""Conversations built from the clips of real speakers, with the turns that are the truth.

Every clip is said once, trimmed to its speech; who speaks next is drawn, and so are the pauses,
levels and, where asked for, overlaps, all from one seed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpus_asr.audio.silero import SileroDetector
from corpus_asr.audio.vad import SpeechCriteria, speech_spans
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import at_level, read_clip, read_manifest

# Tight around speech: what is silence is nobody's turn.
_CRITERIA = SpeechCriteria(pad_s=0.05, min_silence_s=0.3)
_LEVELS_DBFS = (-28.0, -22.0)
# Nobody keeps a level: what a speaker is known by must not be how loud the microphone was.
_LEVEL_CHANGE_DB = 3.0
_PAUSES_S = (0.1, 1.2)
_MIN_SPEAKER_S = 20.0
_OVERLAP_S = (0.4, 1.6)
_HISS_DBFS = -65.0


@dataclass(frozen=True, slots=True)
class Turn:
    """Somebody speaks."""

    start_s: float
    end_s: float
    speaker: str


@dataclass(frozen=True, slots=True)
class Clip:
    """What one speaker says, and where in it is speech, in samples."""

    speaker: str
    samples: np.ndarray
    speech: tuple[tuple[int, int], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Audio, and who speaks when in it."""

    samples: np.ndarray
    turns: tuple[Turn, ...]
    """Sorted by start; where two overlap, both speak."""
    texts: tuple[tuple[float, float, str, str], ...]
    """Start, end, speaker and text of each clip."""

    @property
    def speakers(self) -> set[str]:
        """Who takes part."""
        return {turn.speaker for turn in self.turns}


def speakers_of(folder: Path, corpora: Iterable[str]) -> dict[str, list[dict]]:
    """Return the manifest rows of each speaker with 20 s or more, sorted by name."""
    rows: dict[str, list[dict]] = {}
    wanted = set(corpora)
    for row in read_manifest(folder):
        if row["corpus"] in wanted:
            rows.setdefault(row["speaker"], []).append(row)
    long = {
        name: said
        for name, said in rows.items()
        if sum(row["duration_s"] for row in said) >= _MIN_SPEAKER_S
    }
    return dict(sorted(long.items()))


class ClipReader:
    """Reads clips and finds the speech in them, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._detector = SileroDetector()
        self._clips: dict[str, Clip] = {}

    def __call__(self, row: dict) -> Clip:
        """Return a clip of the manifest, trimmed to its speech."""
        if row["id"] not in self._clips:
            samples = read_clip(self._folder / row["path"])
            self._clips[row["id"]] = trimmed(samples, row["speaker"], row["text"], self._detector)
        return self._clips[row["id"]]


def trimmed(samples: np.ndarray, speaker: str, text: str, detector: SileroDetector) -> Clip:
    """Return a clip without the silence around its speech."""
    scores = detector.score(samples)
    spans = speech_spans(scores, _CRITERIA, num_samples=len(samples)) or [(0, len(samples))]
    first, last = spans[0][0], spans[-1][1]
    speech = tuple((start - first, end - first) for start, end in spans)
    return Clip(speaker, samples[first:last], speech, text)


def conversation(
    clips: dict[str, Sequence[Clip]], *, seconds: float, overlap: float, seed: int
) -> Conversation:
    """Let the speakers of `clips` talk for about `seconds`.

    `overlap` is the share of the audio in which two speak. Each clip has a level of its own, around
    its speaker's.
    """
    draw = np.random.default_rng(seed)
    waiting = {name: [said[i] for i in draw.permutation(len(said))] for name, said in clips.items()}
    levels = {name: draw.uniform(*_LEVELS_DBFS) for name in clips}
    placed: list[tuple[int, float, Clip]] = []
    at, overlapped, last = SAMPLE_RATE_HZ // 2, 0, None
    while at < seconds * SAMPLE_RATE_HZ:
        # Everybody is heard before anybody is for the second time.
        unheard = [name for name in clips if all(clip.speaker != name for *_, clip in placed)]
        able = [
            name for name in unheard or clips if waiting[name] and (name != last or len(clips) == 1)
        ]
        if not able:
            break
        last = able[int(draw.integers(len(able)))]
        clip = waiting[last].pop()
        start = at + round(draw.uniform(*_PAUSES_S) * SAMPLE_RATE_HZ)
        if placed and overlapped < overlap * at:
            before = placed[-1][2]
            shared = round(draw.uniform(*_OVERLAP_S) * SAMPLE_RATE_HZ)
            shared = min(shared, len(before.samples) // 2, len(clip.samples) // 2)
            start, overlapped = at - shared, overlapped + shared
        placed.append((start, levels[last] + _LEVEL_CHANGE_DB * draw.standard_normal(), clip))
        at = max(at, start + len(clip.samples))
    mixed = at_level(draw.standard_normal(at + SAMPLE_RATE_HZ // 2), _HISS_DBFS)
    turns, texts = [], []
    for start, level_dbfs, clip in placed:
        mixed[start : start + len(clip.samples)] += at_level(clip.samples, level_dbfs)
        turns += [
            Turn((start + a) / SAMPLE_RATE_HZ, (start + b) / SAMPLE_RATE_HZ, clip.speaker)
            for a, b in clip.speech
        ]
        end = start + len(clip.samples)
        texts.append((start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, clip.speaker, clip.text))
    return Conversation(
        np.clip(mixed, -1.0, 1.0).astype(np.float32),
        tuple(sorted(turns, key=lambda turn: (turn.start_s, turn.end_s))),
        tuple(texts),
    )
