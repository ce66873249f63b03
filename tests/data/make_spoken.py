"""Speak, encode and write the recordings of tests/data/spoken, and what is said in them and when.

    python -m tests.data.make_spoken

In: texts written for this, and the programs espeak-ng and flite with their libraries. Out: three
recordings of one to two minutes, and a manifest for `corpus-asr evaluate` and the tests. The voices
are none that configs/demo_model.yaml trains with, and the texts are nowhere else, in words that are
common there. Run again only to change the recordings, which are committed.
"""

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.audio.resample import resample
from corpus_asr.synthesis.corpus import split_voices
from corpus_asr.synthesis.voices import Manner, Voice, installed_voices, speak
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.data.espeak_words import speak_by_espeak
from tests.data.flite_words import speak_by_flite
from tests.data.make_demo_clips import write
from tests.data.word_times import SpokenText, timed

FOLDER = Path(__file__).parent / "spoken"
REFERENCES = FOLDER.parent / "spoken-references.jsonl"

ANN = Voice("espeak-ng", "en-gb-x-rp+f3")
BEN = Voice("flite", "rms")
EVE = Voice("espeak-ng", "en-us+Mike")
IAN = Voice("espeak-ng", "en-gb-x-rp+pablo")
TOM = Voice("espeak-ng", "en-us+adam")
SAM = Voice("espeak-ng", "en-gb-x-rp+rob")

HELD_OUT_SHARE = 0.1  # as configs/demo_model.yaml
_FULL_SCALE = 32_768
_LEAD_S = 0.4  # of silence before the first word


@dataclass(frozen=True, slots=True)
class Recording:
    """Who says what."""

    name: str
    codec: str
    bit_rate: int | None
    sentences: Sequence[tuple[Voice, str, float]]
    """A voice, its sentence, and how long nobody speaks after it, in seconds."""
    noise: float = 0.0
    """Of the loudest value, all through the recording."""


STORY = Recording(
    "story.mp3",
    "libmp3lame",
    40_000,
    (
        (ANN, "The mother of my father lived in a small house near the sea.", 0.6),
        (ANN, "Every summer we took the train and were with her for three weeks.", 0.9),
        (ANN, "She had a garden full of apple trees, and a grey cat who sat on the table.", 1.2),
        (ANN, "One morning she gave me an old key and a cup of hot tea.", 0.5),
        (ANN, "She said that it opened something in the house, but she had forgotten what.", 0.8),
        (ANN, "I tried every door, every box and every window.", 0.4),
        (ANN, "Nothing happened, and I began to think that it was only a game.", 9.0),
        (BEN, "Then the rain came, and I had to stay inside all day.", 0.7),
        (BEN, "Under the stairs I found a small wooden box that I had never seen before.", 0.5),
        (BEN, "My hands were cold, but the key turned at once.", 1.5),
        (BEN, "Inside was a letter from a soldier, and a picture of a young woman.", 2.2),
        (BEN, "Dear Mary, the letter said, I will wait for you at the station on Sunday.", 0.6),
        (BEN, "If you do not come, I will understand.", 3.0),
        (ANN, "The old woman read it twice, and then she began to smile.", 0.8),
        (ANN, "Of course I went, but I was late, and he had given all the cake to a dog.", 1.0),
    ),
)  # fmt: skip
REPORT = Recording(
    "report.opus",
    "libopus",
    24_000,
    (
        (EVE, "Good morning, and welcome to the news on Sunday, the fourth of March.", 0.8),
        (EVE, "The new bridge over the river was opened yesterday at half past ten.", 0.4),
        (EVE, "It took six years to build, and it cost about forty million dollars.", 0.6),
        (EVE, "More than two thousand people came to walk across it in the sun.", 0.5),
        (EVE, "The old bridge was built in nineteen twenty four, and it was no longer safe.", 0.7),
        (EVE, "One of us was there and spoke to some of the people.", 2.5),
        (IAN, "I am standing in the middle of the new bridge, and there is a strong wind.", 0.9),
        (IAN, "A teacher told me that they had asked for a safe way to school for years.", 0.3),
        (IAN, "Two hundred and fifty children will use it every day.", 1.1),
        (IAN, "Not everyone is happy, because the small road behind the market is closed.", 0.5),
        (IAN, "One shop has lost a third of its business since January.", 3.0),
        (EVE, "And now the weather.", 0.4),
        (EVE, "It will be cold and dry in the north, with some snow on the hills.", 0.6),
        (EVE, "In the south we expect rain in the afternoon, and about six hours of sun.", 0.8),
        (EVE, "The next news is at seven this evening.", 0.7),
    ),
    noise=0.003,
)  # fmt: skip
DIALOGUE = Recording(
    "dialogue.flac",
    "flac",
    None,
    (
        (TOM, "Good evening, is this seat free?", 0.3),
        (SAM, "Yes, please sit down.", 0.5),
        (TOM, "You are kind, I have been on my feet all day.", 0.7),
        (SAM, "Are you going to the city as well?", 0.4),
        (TOM, "No, I get off at the next stop, to see my brother.", 0.5),
        (SAM, "What does he do?", 0.3),
        (TOM, "He is a doctor, but he wants to open a restaurant.", 0.6),
        (SAM, "That sounds like a lot of work.", 0.4),
        (TOM, "It is, and he cannot even make a cup of tea.", 2.8),
        (SAM, "Would you like some bread and meat?", 0.4),
        (TOM, "No, but I had something before I left.", 0.6),
        (SAM, "Then have an apple, they are from my garden.", 1.4),
        (TOM, "They are very good, and so sweet.", 3.0),
        (SAM, "Look, the train has stopped.", 0.8),
        (TOM, "I hope that it is not a problem with the engine.", 0.4),
        (SAM, "Last winter I sat here for five hours.", 0.3),
        (TOM, "What did you do all that time?", 0.5),
        (SAM, "I read a whole book, and then I talked to the man beside me.", 0.7),
        (TOM, "And was it interesting?", 0.4),
        (SAM, "Very much, and we got married in the spring.", 0.9),
        (TOM, "Now that is a better story than mine.", 0.5),
    ),
)
RECORDINGS = (STORY, REPORT, DIALOGUE)


@dataclass(slots=True)
class _Tape:
    """A recording as it grows."""

    pieces: list[np.ndarray] = field(default_factory=list)
    words: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)

    @property
    def end_s(self) -> float:
        return sum(map(len, self.pieces)) / SAMPLE_RATE_HZ

    def wait(self, seconds: float) -> None:
        self.pieces.append(np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32))

    def say(self, voice: Voice, text: str) -> None:
        samples, told = spoken(voice, text)
        begun_s = self.end_s
        self.segments.append(
            {
                "start_s": round(begun_s + told.start_s, 3),
                "end_s": round(begun_s + told.end_s, 3),
                "text": text,
                "voice": voice.name,
            }
        )
        self.words += timed(told.words, begun_s)
        self.pieces.append(samples)


def spoken(voice: Voice, text: str) -> tuple[np.ndarray, SpokenText]:
    """Return a sentence as `speak` gives it, and when its words are said in that."""
    samples = speak(voice, text, Manner()).samples
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # espeak-ng keeps its state
        told = pool.apply(_told, (voice, text))
    whole = resample(told.samples.astype(np.float32) / _FULL_SCALE, rate_hz=told.rate_hz)
    # Silence is cut off there; by so much the words come sooner.
    cut = whole.tobytes().find(samples.tobytes())
    assert cut >= 0, f"{voice.name}: the library speaks otherwise than the program"
    return samples, told.sooner(cut / whole.itemsize / SAMPLE_RATE_HZ)


def _told(voice: Voice, text: str) -> SpokenText:
    """Speak with the settings of `speak` in its usual manner."""
    if voice.program == "flite":
        return speak_by_flite(text, voice.speaker, duration_stretch=1.0, int_f0_target_mean=105.0)
    return speak_by_espeak(text, voice.speaker, words_per_minute=165, pitch=50)


def made(recording: Recording) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a recording's samples, in 16 bits, and its row of the manifest."""
    tape = _Tape()
    tape.wait(_LEAD_S)
    for voice, text, pause_s in recording.sentences:
        tape.say(voice, text)
        tape.wait(pause_s)
    samples = np.concatenate(tape.pieces)
    noise = np.random.default_rng(0).standard_normal(len(samples))
    samples = samples + recording.noise * np.abs(samples).max() * noise
    row = {
        "path": f"{FOLDER.name}/{recording.name}",
        "language": "en",
        "text": " ".join(text for _, text, _ in recording.sentences),
        "duration_s": round(tape.end_s, 3),
        "segments": tape.segments,
        "words": tape.words,
    }
    return np.rint(samples.clip(-1, 1) * (_FULL_SCALE - 1)).astype(np.int16), row


def main() -> None:
    held_out = split_voices(installed_voices(), HELD_OUT_SHARE)["validation"]
    FOLDER.mkdir(exist_ok=True)
    rows = []
    for recording in RECORDINGS:
        known = {voice for voice, _, _ in recording.sentences} - set(held_out)
        assert not known, f"the model in the box has learnt {known}"
        samples, row = made(recording)
        write(FOLDER / recording.name, samples, recording.codec, SAMPLE_RATE_HZ, recording.bit_rate)
        rows.append(row)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    REFERENCES.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
