"""Who spoke, measured on conversations built from real speakers.

    CORPUS_ASR_TEST_DATA=FOLDER python -m benchmarks.diarization

Fifty conversations with two to six speakers, without overlap and with a tenth and a fifth of the
time overlapped: error rate, how often the number of speakers is right, and seconds of one core; in
addition plain spectral clustering of the same embeddings. With `--short`, of 20 to 60 s with one to
three speakers. With `--segmentation FILE`, also with two turns where two speak at once, as this
network says (`benchmarks.convert_segmentation` makes one). What is fitted is fitted with
`--speakers fitted`, on the other half of the speakers; the figures of the guide are those of
`reported`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.tables import markdown
from corpus_asr.audio.parts import PartCutter
from corpus_asr.audio.silero import SileroDetector
from corpus_asr.audio.vad import DEFAULT_CRITERIA
from corpus_asr.speakers.clustering import Likeness, SpeakerBounds, find_speakers
from corpus_asr.speakers.embeddings import SpeakerEmbedder
from corpus_asr.speakers.turns import SpeechWindows, likeness_of, turns_of, with_overlaps
from corpus_asr.speakers.voices import find_voices
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import wav_bytes
from tests.support.conversations import Clip, ClipReader, Conversation, conversation, speakers_of
from tests.support.diarization import (
    NO_ERRORS,
    DiarizationErrors,
    diarization_errors,
    plain_spectral,
)

CORPORA = ("librispeech-dev-clean", "commonvoice13-delta-en", "commonvoice-en-small")
OVERLAPS = (0.0, 0.1, 0.2)
_MAX_CLIPS = 25
_SECONDS = (90.0, 240.0)
_SHORT_SECONDS = (20.0, 60.0)
_SHORT_SPEAKERS = (2, 1, 2, 3)
Labeller = Callable[[SpeechWindows, Conversation], np.ndarray]


class Conversations:
    """Conversations of one half of the speakers, by seed."""

    def __init__(self, folder: Path, half: str, *, short: bool = False) -> None:
        self._short = short
        speakers = speakers_of(folder, CORPORA)
        order = np.random.default_rng(0).permutation(len(speakers))
        names = [list(speakers)[at] for at in order[half == "reported" :: 2]]
        self._rows = {name: speakers[name] for name in sorted(names)}
        self._reader = ClipReader(folder)

    def __call__(self, seed: int, *, overlap: float, half: int | None = None) -> Conversation:
        """Return the conversation of a seed: two to six speakers, 90 to 240 s, or a short one.

        With a half, 0 or 1, of that half of each speaker's clips.
        """
        draw = np.random.default_rng(seed + 1000)
        number = _SHORT_SPEAKERS[seed % 4] if self._short else 2 + seed % 5
        names = [list(self._rows)[at] for at in draw.permutation(len(self._rows))[:number]]
        clips: dict[str, Sequence[Clip]] = {}
        for name in sorted(names):
            rows = self._rows[name] if half is None else self._rows[name][half::2]
            chosen = draw.permutation(len(rows))[:_MAX_CLIPS]
            clips[name] = [self._reader(rows[at]) for at in chosen]
        seconds = draw.uniform(*(_SHORT_SECONDS if self._short else _SECONDS))
        return conversation(clips, seconds=seconds, overlap=overlap, seed=seed)


def windows_of(
    samples: np.ndarray, detector: SileroDetector, embedder: SpeakerEmbedder
) -> SpeechWindows:
    """Return a recording's windows as the extract stage makes them."""
    cutter = PartCutter(part_s=600.0, detector=detector)
    parts = [*cutter.feed(samples), *cutter.finish()]
    found = []
    for part in parts:
        spans = [(a - part.start_sample, b - part.start_sample) for a, b in part.speech or ()]
        pad_s, start_s = DEFAULT_CRITERIA.pad_s, part.start_sample / SAMPLE_RATE_HZ
        found.append(embedder(part.samples, spans, pad_s=pad_s, start_s=start_s))
    return SpeechWindows.joined(found)


def measure_voices(
    conversations: Conversations, number: int, detector: SileroDetector, embedder: SpeakerEmbedder,
    likeness: Likeness, thresholds: Sequence[float],
) -> None:  # fmt: skip
    """Print how many pairs of speakers of two conversations are rightly and wrongly one voice.

    Every second conversation is of other clips of the same people, and only pairs of one of each
    count: no sentence is in both. Who a found speaker is, most of their time says.
    """
    centroids, recordings, persons = [], [], []
    for seed in range(number):
        talk = conversations(seed, overlap=0.0, half=seed % 2)
        windows = windows_of(talk.samples, detector, embedder)
        found = find_speakers(windows.embeddings.astype(np.float32), likeness)
        turns = turns_of(windows, found.labels, found.confidences)
        for speaker, centroid in enumerate(found.voices):
            said: dict[str, float] = dict.fromkeys(talk.speakers, 0.0)
            for turn in turns:
                if turn.speaker == str(speaker):
                    for true in talk.turns:
                        shared_s = min(turn.end_s, true.end_s) - max(turn.start_s, true.start_s)
                        said[true.speaker] += max(0.0, shared_s)
            persons.append(max(said, key=lambda name: said[name]))
            recordings.append(seed)
            centroids.append(centroid)
    vectors = np.stack(centroids).astype(np.float16).astype(np.float32)  # as they are stored
    seeds, who = np.array(recordings), np.array(persons)
    apart = np.triu(seeds[:, None] % 2 != seeds % 2)
    same = apart & (who[:, None] == who)
    print(f"{len(who)} speakers, {len({*persons})} persons, {same.sum()} pairs of one person,")
    print(f"{(apart & ~same).sum()} of two")
    rows = []
    for above in thresholds:
        voices = find_voices(vectors, seeds, same_above=above)
        joined = apart & (voices[:, None] == voices)
        right, wrong = (joined & same).sum(), (joined & ~same).sum()
        rows.append((f"{above:.2f}", voices.max() + 1, right, wrong))
    titles = ("above", "voices", "pairs joined rightly", "wrongly")
    print("\n".join(markdown(titles, rows, left=())))


def write(conversations: Conversations, folder: Path, number: int) -> None:
    """Write conversations, with and without overlap, and who says what when in them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for overlap in OVERLAPS:
        for seed in range(number):
            talk = conversations(seed, overlap=overlap)
            name = f"{seed:02d}-{overlap:.0%}.wav".replace("%", "")
            data = wav_bytes(talk.samples[None], rate_hz=SAMPLE_RATE_HZ)
            (folder / name).write_bytes(data)
            segments = [
                {"start_s": start_s, "end_s": end_s, "speaker": speaker, "text": text}
                for start_s, end_s, speaker, text in talk.texts
            ]
            row = {"path": name, "language": "en", "set": f"overlap {overlap:.0%}"}
            lines.append(json.dumps(row | {"segments": segments}) + "\n")
    (folder / "references.jsonl").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speakers", choices=("reported", "fitted"), default="reported")
    parser.add_argument("--conversations", type=int, default=50)
    parser.add_argument("--short", action="store_true", help="conversations of 20 to 60 s")
    parser.add_argument("--voices", action="store_true", help="measure voices across recordings")
    parser.add_argument("--model", help="an ONNX network; default: the packaged one")
    parser.add_argument("--segmentation", help="an ONNX network that tells where two speak at once")
    parser.add_argument("--first", type=int, default=0, help="seed of the first conversation")
    parser.add_argument(
        "--write", type=Path, help="write WAV files and references for `corpus-asr evaluate` here"
    )
    options = parser.parse_args()
    conversations = Conversations(
        Path(os.environ["CORPUS_ASR_TEST_DATA"]) / "train", options.speakers, short=options.short
    )
    likeness = likeness_of(options.model)
    if options.voices:
        thresholds = [likeness.same_above]
        if options.speakers == "fitted":
            thresholds = np.arange(likeness.same_above - 0.1, 1.0, 0.01).tolist()
        detector, embedder = SileroDetector(), SpeakerEmbedder(options.model)
        measure_voices(
            conversations, options.conversations, detector, embedder, likeness, thresholds
        )
        return
    if options.write is not None:
        write(conversations, options.write, options.conversations)
        return
    detector = SileroDetector()
    embedder = SpeakerEmbedder(options.model, options.segmentation)

    def found(windows: SpeechWindows, _: Conversation) -> np.ndarray:
        return find_speakers(windows.embeddings.astype(np.float32), likeness).labels

    def given(windows: SpeechWindows, talk: Conversation) -> np.ndarray:
        bounds = SpeakerBounds.of(len(talk.speakers), None, None)
        return find_speakers(windows.embeddings.astype(np.float32), likeness, bounds).labels

    def plain(windows: SpeechWindows, _: Conversation) -> np.ndarray:
        return plain_spectral(windows.embeddings.astype(np.float32))

    ways: dict[str, Labeller] = {"found": found, "number given": given, "plain spectral": plain}
    if options.segmentation is not None:
        ways |= {"found, two at once": found, "number given, two at once": given}
    rows = []
    audio_s = embed_s = 0.0
    cluster_s = dict.fromkeys(ways, 0.0)
    for overlap in OVERLAPS:
        errors = dict.fromkeys(ways, NO_ERRORS)
        exact = dict.fromkeys(ways, NO_ERRORS)
        right = dict.fromkeys(ways, 0)
        for seed in range(options.first, options.first + options.conversations):
            talk = conversations(seed, overlap=overlap)
            began_s = time.process_time()
            windows = windows_of(talk.samples, detector, embedder)
            embed_s += time.process_time() - began_s
            audio_s += len(talk.samples) / SAMPLE_RATE_HZ
            truth = [(turn.start_s, turn.end_s, turn.speaker) for turn in talk.turns]
            for name, label in ways.items():
                began_s = time.process_time()
                labels = label(windows, talk)
                cluster_s[name] += time.process_time() - began_s
                turns = turns_of(windows, labels, np.ones(len(labels)))
                if name.endswith("two at once"):
                    turns = with_overlaps(turns, windows.overlaps)
                spans = [(turn.start_s, turn.end_s, turn.speaker) for turn in turns]
                errors[name] = errors[name].plus(diarization_errors(truth, spans))
                exact[name] = exact[name].plus(diarization_errors(truth, spans, collar_s=0.0))
                right[name] += len({speaker for _, _, speaker in spans}) == len(talk.speakers)
        rows += [_row(overlap, name, errors[name], exact[name], right[name]) for name in ways]
    titles = ("overlap", "speakers", "DER", "missed", "false", "confused", "DER, no collar")
    print("\n".join(markdown((*titles, "number right"), rows, left=(1,))))
    speed = audio_s / embed_s
    print(f"{audio_s / 3600:.2f} h; speech and embeddings {speed:.0f} times real time; clustering")
    print(", ".join(f"{name} {audio_s / spent_s:.0f}" for name, spent_s in cluster_s.items()))


def _row(
    overlap: float, name: str, errors: DiarizationErrors, exact: DiarizationErrors, right: int
) -> list[object]:
    parts = (errors.missed_s, errors.false_s, errors.confused_s)
    shares = [f"{100 * part / errors.speech_s:.2f} %" for part in parts]
    return [f"{overlap:.0%}", name, f"{errors.rate:.2%}", *shares, f"{exact.rate:.2%}", right]


if __name__ == "__main__":
    main()
