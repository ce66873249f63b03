"""Who spoke, measured on conversations built from real speakers.

    CORPUS_ASR_TEST_DATA=FOLDER python -m benchmarks.speakers long10=50 phone=15 --json FILE

Builds conversations of each kind from clips of LibriSpeech and Common Voice, finds speakers as jobs
do, and prints DER with a collar of 0.25 s, how often the number of speakers is right, and CPU
seconds. Constants are fitted with `--speakers fitted`, on the other half of the speakers; those of
docs/background/speaker_accuracy.md are of `reported`.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import markdown
from corpus_asr.audio.vad import DEFAULT_CRITERIA, SileroDetector, SpeechCriteria, speech_spans
from corpus_asr.config.extraction import PACKAGED_ENCODER, PACKAGED_SEGMENTATION
from corpus_asr.report.scoring import SpokenSpan, TurnErrors, turn_errors
from corpus_asr.speakers.clustering import SpeakerBounds
from corpus_asr.speakers.turns import SpeechWindows, diarize
from corpus_asr.stages.measures import Voices
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import at_level, chords_and_drums, read_clip, read_manifest

CORPORA = ("librispeech-dev-clean", "commonvoice13-delta-en", "commonvoice-en-small")
LEAST_SPEAKER_S = 20.0
# Tight around speech: silence is nobody's turn.
CRITERIA = SpeechCriteria(pad_s=0.05, min_silence_s=0.3)
LEVELS_DBFS, LEVEL_CHANGE_DB, HISS_DBFS = (-28.0, -22.0), 3.0, -65.0
PAUSES_S, OVERLAPS_S, INTERRUPTIONS_S = (0.1, 1.2), (0.4, 1.6), (0.3, 0.8)
TELEPHONE_HZ = (300, 3400)
Placed = tuple[int, float, str, "Clip"]  # first sample, level, speaker


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of conversations; `speakers` are the numbers of speakers in turn."""

    seconds: tuple[int, int]
    speakers: Sequence[int]
    overlap: float
    condition: str = ""
    most_clips: int = 25


_LONG: dict[str, Any] = {"seconds": (90, 240), "speakers": (2, 3, 4, 5, 6)}
_SHORT: dict[str, Any] = {"seconds": (20, 60), "speakers": (2, 1, 2, 3)}
_HARD: dict[str, Any] = {"seconds": (60, 180), "speakers": (2, 3, 4)}
KINDS = {
    **{f"long{share}": Kind(**_LONG, overlap=share / 100) for share in (0, 10, 20)},
    **{f"short{share}": Kind(**_SHORT, overlap=share / 100) for share in (0, 10, 20)},
    "talk10": Kind(seconds=(300, 660), speakers=(2, 3, 4, 5, 6), overlap=0.1, most_clips=60),
    "one": Kind(seconds=(20, 240), speakers=(1,), overlap=0.0),
    "many": Kind(seconds=(120, 300), speakers=(7, 8, 9, 10), overlap=0.05),
    **{
        name: Kind(**_HARD, overlap=0.1, condition=name)
        for name in ("room", "levels", "music", "interrupt")
    },
    "phone": Kind(seconds=(60, 180), speakers=(2, 2, 3), overlap=0.1, condition="phone"),
    "back": Kind(**_HARD, overlap=0.05, condition="back"),
}


@dataclass(frozen=True, slots=True)
class Clip:
    """A sentence without the silence around it, and its spans of speech in samples."""

    samples: np.ndarray
    speech: tuple[tuple[int, int], ...]

    def until(self, stop: int) -> "Clip":
        """Return the beginning."""
        spans = tuple((start, min(end, stop)) for start, end in self.speech if start < stop)
        return Clip(self.samples[:stop], spans)


@dataclass
class Speakers:
    """Clips of one half of the speakers."""

    folder: Path
    half: str
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _clips: dict[str, Clip] = field(default_factory=dict)
    _detector: SileroDetector = field(default_factory=SileroDetector)

    def __post_init__(self) -> None:
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in read_manifest(self.folder):
            if row["corpus"] in CORPORA:
                rows.setdefault(row["speaker"], []).append(row)
        rows = {
            name: rows[name] for name in sorted(rows) if _seconds(rows[name]) >= LEAST_SPEAKER_S
        }
        order = np.random.default_rng(0).permutation(len(rows))
        names = [[*rows][at] for at in order[self.half == "reported" :: 2]]
        self.rows = {name: rows[name] for name in sorted(names)}

    def clip(self, row: Mapping[str, Any]) -> Clip:
        """Return a clip of the manifest, trimmed to its speech."""
        if row["id"] not in self._clips:
            samples = read_clip(self.folder / row["path"])
            scores = self._detector.score(samples)
            spans = speech_spans(scores, CRITERIA, num_samples=len(samples))
            spans = spans or [(0, len(samples))]
            first, last = spans[0][0], spans[-1][1]
            speech = tuple((start - first, end - first) for start, end in spans)
            self._clips[row["id"]] = Clip(samples[first:last], speech)
        return self._clips[row["id"]]

    def of(self, kind: Kind, seed: int) -> tuple[dict[str, list[Clip]], float]:
        """Return the clips of those who take part, and the length."""
        draw = np.random.default_rng(seed + 1000)
        number = kind.speakers[seed % len(kind.speakers)]
        names = [[*self.rows][at] for at in draw.permutation(len(self.rows))]
        seconds = draw.uniform(*kind.seconds)
        if kind.most_clips > 25:  # those who have enough to say first
            least_s = 1.2 * seconds / number
            names.sort(key=lambda name: _seconds(self.rows[name]) < least_s)
        clips = {}
        for name in sorted(names[:number]):
            chosen = draw.permutation(len(self.rows[name]))[: kind.most_clips]
            clips[name] = [self.clip(self.rows[name][at]) for at in chosen]
        return clips, seconds


def _seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(row["duration_s"] for row in rows))


def conversation(
    clips: Mapping[str, Sequence[Clip]], kind: Kind, *, seconds: float, seed: int
) -> tuple[np.ndarray, list[SpokenSpan]]:
    """Return the samples of a conversation and who speaks when."""
    draw = np.random.default_rng(seed)
    waiting = {name: [own[at] for at in draw.permutation(len(own))] for name, own in clips.items()}
    levels = {name: draw.uniform(*LEVELS_DBFS) for name in clips}
    if kind.condition == "levels":
        levels = {name: -20.0 - 20.0 * (at % 2) for at, name in enumerate(sorted(clips))}
    echoes: dict[str, np.ndarray] = {}
    if kind.condition == "room":
        decay_s = draw.uniform(0.3, 0.7)
        echoes = {name: _room(draw, decay_s) for name in clips}
    placed: list[Placed] = []
    at, overlapped, last = SAMPLE_RATE_HZ // 2, 0, ""
    while at < seconds * SAMPLE_RATE_HZ:
        # Everybody speaks before anybody does for the second time.
        silent = [name for name in clips if all(name != speaker for _, _, speaker, _ in placed)]
        able = [n for n in silent or clips if waiting[n] and (n != last or len(clips) == 1)]
        if not able:
            break
        last = able[int(draw.integers(len(able)))]
        clip = waiting[last].pop()
        start = at + round(draw.uniform(*PAUSES_S) * SAMPLE_RATE_HZ)
        if placed and overlapped < kind.overlap * at:
            shared = round(draw.uniform(*OVERLAPS_S) * SAMPLE_RATE_HZ)
            if kind.condition == "interrupt":  # the sentence before breaks off
                first, level, name, before = placed[-1]
                stop = max(int(len(before.samples) * draw.uniform(0.5, 0.9)), SAMPLE_RATE_HZ)
                placed[-1] = (first, level, name, before.until(stop))
                at = first + len(placed[-1][3].samples)
                shared = round(draw.uniform(*INTERRUPTIONS_S) * SAMPLE_RATE_HZ)
            shared = min(shared, len(placed[-1][3].samples) // 2, len(clip.samples) // 2)
            start, overlapped = at - shared, overlapped + shared
        placed.append((start, levels[last] + LEVEL_CHANGE_DB * draw.standard_normal(), last, clip))
        at = max(at, start + len(clip.samples))
    if kind.condition == "back":
        placed += _back_channels(placed, clips, levels, draw)
    mixed = at_level(draw.standard_normal(at + SAMPLE_RATE_HZ // 2), HISS_DBFS).astype(np.float64)
    turns = []
    for start, level, name, clip in placed:
        samples = at_level(clip.samples, level)
        if name in echoes:
            samples = at_level(_filtered(samples, echoes[name]), level)
        mixed[start : start + len(samples)] += samples
        turns += [
            SpokenSpan((start + first) / SAMPLE_RATE_HZ, (start + stop) / SAMPLE_RATE_HZ, name)
            for first, stop in clip.speech
            if stop > first
        ]
    if kind.condition == "phone":
        mixed = _telephone(mixed)
    if kind.condition == "music":
        mixed += at_level(chords_and_drums(len(mixed)), -25 - draw.uniform(10, 18))
    turns.sort(key=lambda turn: (turn.start_s, turn.end_s))
    return np.clip(mixed, -1.0, 1.0).astype(np.float32), turns


def _back_channels(
    placed: Sequence[Placed], clips: Mapping[str, Sequence[Clip]], levels: Mapping[str, float],
    draw: np.random.Generator,
) -> list[Placed]:  # fmt: skip
    """Return 0.3 to 0.8 s of somebody else within most longer sentences."""
    added: list[Placed] = []
    for start, _, speaker, clip in placed:
        if len(clip.samples) > 4 * SAMPLE_RATE_HZ and len(clips) > 1 and draw.random() < 0.6:
            names = [name for name in clips if name != speaker]
            name = names[int(draw.integers(len(names)))]
            other = clips[name][int(draw.integers(len(clips[name])))]
            first, stop = other.speech[0]
            size = min(round(draw.uniform(0.3, 0.8) * SAMPLE_RATE_HZ), stop - first)
            latest_s = len(clip.samples) / SAMPLE_RATE_HZ - 2.0
            at = start + round(draw.uniform(1.0, latest_s) * SAMPLE_RATE_HZ)
            word = Clip(other.samples[first : first + size], ((0, size),))
            added.append((at, levels[name] - 3, name, word))
    return added


def _room(draw: np.random.Generator, decay_s: float) -> np.ndarray:
    """Return an impulse response: the direct sound, and noise that decays by 60 dB."""
    size = int(decay_s * SAMPLE_RATE_HZ)
    response = draw.standard_normal(size) * np.exp(-6.9 * np.arange(size) / size)
    response *= 10 ** (-draw.uniform(3, 9) / 20)
    response /= np.sqrt(np.square(response).sum()) + 1e-9
    response *= 10 ** (-draw.uniform(2, 8) / 20)
    response[0] = 1.0
    return response


def _filtered(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    size = 1 << (len(samples) + len(response) - 2).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: len(samples)]


def _telephone(samples: np.ndarray) -> np.ndarray:
    """Return samples in the band of telephones, through mu-law of 8 bits."""
    hz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)

    def within(values: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
        spectrum = np.fft.rfft(values)
        spectrum[(hz < low_hz) | (hz > high_hz)] = 0
        return np.fft.irfft(spectrum, len(values))

    band = within(samples, *TELEPHONE_HZ)
    coded = np.sign(band) * np.log1p(255 * np.minimum(1, np.abs(band))) / np.log(256)
    coded = np.round(coded * 127) / 127
    return within(np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255, 0, 3600)


@dataclass
class Result:
    """Errors of one kind."""

    errors: TurnErrors = field(default_factory=TurnErrors)
    conversations: int = 0
    number_right: int = 0
    audio_s: float = 0.0
    cpu_s: float = 0.0

    def row(self) -> dict[str, Any]:
        """Return the figures in percent, and CPU seconds an hour."""
        speech_s = self.errors.speech_s
        return {
            "conversations": self.conversations,
            "der": round(100 * (self.errors.rate or 0.0), 2),
            **{
                name: round(100 * getattr(self.errors, f"{name}_s") / speech_s, 2)
                for name in ("missed", "false", "confused")
            },
            "number_right": self.number_right,
            "cpu_s_per_hour": round(3600 * self.cpu_s / self.audio_s),
        }


def main() -> None:
    """Measure the kinds of conversations that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="+", help=f"KIND=COUNT; kinds: {', '.join(KINDS)}")
    parser.add_argument("--speakers", choices=("reported", "fitted"), default="reported")
    parser.add_argument("--model", default=PACKAGED_ENCODER)
    parser.add_argument("--segmentation", default=PACKAGED_SEGMENTATION)
    parser.add_argument("--given", action="store_true", help="say how many speakers there are")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    speakers = Speakers(Path(os.environ["CORPUS_ASR_TEST_DATA"]) / "train", options.speakers)
    detector, pad_s = SileroDetector(), DEFAULT_CRITERIA.pad_s
    voices = Voices(model=options.model, segmentation=options.segmentation, pad_s=pad_s)
    results = {}
    for name, _, count in (asked.partition("=") for asked in options.kinds):
        result = results[name] = Result()
        for seed in range(int(count)):
            clips, seconds = speakers.of(KINDS[name], seed)
            samples, truth = conversation(clips, KINDS[name], seconds=seconds, seed=seed)
            num_speakers = len({turn.speaker for turn in truth})
            scores = detector.score(samples)
            spans = speech_spans(scores, DEFAULT_CRITERIA, num_samples=len(samples))
            began_s = time.process_time()
            columns = voices.over(voices.measure(samples, spans), (), start_s=0.0)
            bounds = SpeakerBounds.of(num_speakers if options.given else None, None, None)
            diarization = diarize({None: SpeechWindows.of_columns(columns)}, bounds)
            result.cpu_s += time.process_time() - began_s
            turns = [SpokenSpan(t.start_s, t.end_s, t.speaker) for t in diarization.turns]
            result.errors += turn_errors(truth, turns)
            result.conversations += 1
            result.number_right += len(diarization.voices) == num_speakers
            result.audio_s += len(samples) / SAMPLE_RATE_HZ
    rows = {name: result.row() for name, result in results.items()}
    titles = ("kind", *next(iter(rows.values())))
    print("\n".join(markdown(titles, [(name, *row.values()) for name, row in rows.items()])))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
