"""A corpus of spoken sentences: a seed and hours in, recordings and manifests out.

Voices and written sentences of the validation set are in no other. The same seed gives the same
files. Knows no models.
"""

import hashlib
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from corpus_asr.audio.encode import encode_audio
from corpus_asr.errors import ConfigError, DecodeError
from corpus_asr.synthesis.imitation import Imitation, commonest_words, words_of
from corpus_asr.synthesis.sentences import drawn_sentences, few_digits, written_sentences
from corpus_asr.synthesis.voices import (
    Manner,
    Program,
    Speech,
    Voice,
    drawn_manner,
    speak,
    telephone_manner,
)
from corpus_asr.text.phones import write_phones
from corpus_asr.units import SAMPLE_RATE_HZ

SETS = ("train", "validation")

# How often each speaks, beside the others: espeak-ng has the most voices, the others' were people's
# and are harder to learn to hear; festival takes the longest.
_SHARES: dict[Program, float] = {
    "espeak-ng": 0.4,
    "flite": 0.45,
    "festival": 0.15,
    "rhvoice": 0.6,
    "pico2wave": 0.2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What is said."""

    files: Sequence[Path] = ()
    """With sentences that people wrote; each is used once at most."""
    common_words: int | None = None
    """Written sentences of others than so many, the commonest of the files, are left out."""
    written_share: float = 0.0
    """Of lines that are written sentences, while these last."""
    imitated_share: float = 0.0
    """Of the other lines, those drawn after the written sentences; the rest are of templates."""
    digits_share: float = 0.0
    """Of all lines, those of one to three digits that are cut close, as over a telephone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One sentence to be spoken."""

    number: int
    set: str
    voice: Voice
    manner: Manner
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What came of a corpus."""

    hours: dict[str, float]
    failed: int
    """Lines that a voice could not speak."""


def split_voices(voices: Sequence[Voice], share: float) -> dict[str, list[Voice]]:
    """Return the voices of each set; those of validation are chosen by their names alone."""
    held_out = [voice for voice in voices if _fraction(voice.name) < share]
    held_out = held_out or [voices[-1]]
    return {"train": [v for v in voices if v not in held_out], "validation": held_out}


def drawn_lines(
    voices: Sequence[Voice],
    texts: Texts,
    *,
    seed: int,
    held_out_share: float,
    set: str,
) -> Iterator[Line]:
    """Yield lines of one set without end.

    Args:
        voices: of this machine.
        texts: what is said.
        seed: of all that is drawn.
        held_out_share: of voices and of written sentences that are for validation.
        set: `train` or `validation`.

    Raises:
        OSError: a file cannot be read.
    """
    draw = random.Random(f"{seed} {set}")
    speakers = split_voices(voices, held_out_share)[set]
    programs = sorted({voice.program for voice in speakers})
    shares = [_SHARES[program] for program in programs]
    said = _drawn_texts(texts, draw, held_out_share=held_out_share, set=set)
    for number in itertools.count():
        few = texts.digits_share > 0 and draw.random() < texts.digits_share
        text = few_digits(draw) if few else next(said)
        [program] = draw.choices(programs, shares)
        voice = draw.choice([voice for voice in speakers if voice.program == program])
        manner = telephone_manner(draw) if few else drawn_manner(draw)
        yield Line(number=number, set=set, voice=voice, manner=manner, text=text)


def _drawn_texts(
    texts: Texts, draw: random.Random, *, held_out_share: float, set: str
) -> Iterator[str]:
    """Yield what is said in one set, without end."""
    found = list(dict.fromkeys(s for path in texts.files for s in written_sentences(path)))
    parts: dict[str, list[str]] = {name: [] for name in SETS}
    for sentence in found:
        parts[SETS[_fraction(sentence) < held_out_share]].append(sentence)
    words = commonest_words(found, texts.common_words or sys.maxsize)
    drawn = drawn_sentences(draw)
    # After those to learn from, whatever the set: what is held out teaches no turn.
    imitated = Imitation(parts["train"], words).sentences(draw)
    written = [sentence for sentence in parts[set] if words.issuperset(words_of(sentence))]
    draw.shuffle(written)
    while True:
        if written and draw.random() < texts.written_share:
            yield written.pop()
        elif draw.random() < texts.imitated_share:
            yield next(imitated, None) or next(drawn)
        else:
            yield next(drawn)


def write_corpus(
    folder: Path, lines: dict[str, Iterator[Line]], hours: dict[str, float], *, workers: int
) -> Spoken:
    """Speak lines until there are so many hours of each set, and write a manifest of each.

    Args:
        folder: made if needed.
        lines: by set, without end.
        hours: by set.
        workers: programs that speak at a time.

    Raises:
        ConfigError: no voice can speak.
        OSError: the folder cannot be written.
    """
    failed = 0
    found: dict[str, float] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="speak") as pool:
        for name, theirs in lines.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            rows: list[dict[str, object]] = []
            seconds = 0.0
            while seconds < hours[name] * 3600:
                batch = [next(theirs) for _ in range(8 * workers)]
                found_speech = pool.map(lambda line: _write(folder, line), batch)
                for line, speech in zip(batch, found_speech, strict=True):
                    if speech is None:
                        failed += 1
                        continue
                    seconds += len(speech.samples) / SAMPLE_RATE_HZ
                    rows.append(_row(line, speech))
                if not rows:
                    raise ConfigError(
                        f"speaking {name} sentences: none of the first {failed} could be spoken, "
                        f"expected audio; try {batch[0].voice.name} by hand"
                    )
            manifest = folder / f"{name}.jsonl"
            manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            found[name] = seconds / 3600
    return Spoken(hours=found, failed=failed)


def _write(folder: Path, line: Line) -> Speech | None:
    """Speak one line; returns its speech, None where the voice cannot."""
    try:
        speech = speak(line.voice, line.text, line.manner)
    except DecodeError:
        return None
    (folder / _name(line)).write_bytes(encode_audio(speech.samples, "flac"))
    return speech


def _row(line: Line, speech: Speech) -> dict[str, object]:
    row: dict[str, object] = {
        "uri": _name(line),
        "text": line.text,
        "language": "en",
        "speaker": line.voice.name,
        "duration_s": round(len(speech.samples) / SAMPLE_RATE_HZ, 3),
    }
    return row | {"phones": write_phones(list(speech.sounds))} if speech.sounds else row


def _name(line: Line) -> str:
    return f"{line.set}/{line.number:06}.flac"


def _fraction(text: str) -> float:
    """Return a number from 0 to 1 that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
