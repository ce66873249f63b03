"""Speaking programs as voices: a text in, samples of it being spoken and its sounds out.

espeak-ng, flite, festival, RHVoice and pico2wave are programs of their own, installed by the
system's packages; what is not there is not used. Knows no corpus and no files but those it removes.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Float32

from corpus_asr.audio.bands import band_limited
from corpus_asr.audio.resample import resample
from corpus_asr.errors import ConfigError, DecodeError
from corpus_asr.synthesis import espeak
from corpus_asr.synthesis.sounds import sounds_of_espeak, sounds_of_flite
from corpus_asr.units import SAMPLE_RATE_HZ

Program = Literal["espeak-ng", "flite", "festival", "rhvoice", "pico2wave"]

# British English by the name of its file: as en-gb, all speakers sound alike.
_ESPEAK_ACCENTS = (
    "en-us", "gmw/en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
)  # fmt: skip
_ESPEAK_SPEAKERS = (
    "", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5",
    "Annie", "Andy", "Denis", "Gene", "Jacky", "Lee", "Mario", "Michael", "Mike", "Steph", "adam",
    "anika", "belinda", "caleb", "ed", "iven", "john", "kaukovalta", "linda", "marcelo", "max",
    "norbert", "pablo", "paul", "quincy", "rob", "robert", "steph2", "zac",
)  # fmt: skip
_FLITE_SPEAKERS = ("awb", "kal16", "rms", "slt")
_FESTIVAL_SPEAKERS = ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")
# Its other English voices are licensed for no changed versions and no commerce.
_RHVOICE_SPEAKERS = ("alan", "bdl", "clb", "slt")
_PICO_SPEAKERS = ("en-GB", "en-US")

# What is run, and where voices that come apart from it lie.
_COMMANDS: dict[Program, str] = {"festival": "text2wave", "rhvoice": "RHVoice-test"}
_VOICES: dict[Program, tuple[str, str]] = {
    "festival": ("/usr/share/festival/voices", "*/{}"),
    "rhvoice": ("/usr/share/RHVoice/voices", "{}"),
}

_TIMEOUT_S = 60.0
_QUIET_DB = 40.0  # under the loudest value: below, nobody speaks
_KEPT_S = 0.05  # around what is spoken
_CUT_DB = (18.0, _QUIET_DB)
_TELEPHONE_HZ = 3_900.0
_FULL_SCALE = 32768.0


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker of a program."""

    program: Program
    speaker: str

    @property
    def name(self) -> str:
        """What manifests call it."""
        return f"{self.program}:{self.speaker}"


@dataclass(frozen=True, slots=True)
class Manner:
    """How a voice speaks, and is recorded."""

    speed: float = 1.0
    pitch: float = 1.0
    quiet_db: float = _QUIET_DB
    """Where it is fainter than the loudest value by this, at either end, it is left out."""
    kept_s: float = _KEPT_S
    """Silence kept around the rest."""
    highest_hz: float | None = None
    """Frequencies above are taken away; None keeps all."""


@dataclass(frozen=True, slots=True)
class Speech:
    """A text being spoken."""

    samples: Float32[np.ndarray, " sample"]
    """At 16 kHz, without silence around."""
    sounds: tuple[tuple[str, float], ...]
    """ARPABET names with the seconds at which they end; none where the program does not tell."""


def installed_voices(patterns: Sequence[str] = ("*",)) -> list[Voice]:
    """Return the voices of this machine, sorted.

    Args:
        patterns: of their names, as of files.

    Raises:
        ConfigError: there are none, or none that a pattern names.
    """
    found = [voice for voice in _known_voices() if _is_there(voice)]
    if not found:
        raise ConfigError(
            "looking for voices: found none of espeak-ng, flite, festival, RHVoice and pico2wave, "
            "expected one at least; install them, as by apt-get install espeak-ng flite festival"
        )
    for pattern in patterns:
        if not any(fnmatchcase(voice.name, pattern) for voice in found):
            raise ConfigError(
                f"looking for voices: found none of this machine's {len(found)} called {pattern}, "
                f"expected one as {found[0].name}; install it, or take it out of speech.voices"
            )
    named = [voice for voice in found if any(fnmatchcase(voice.name, p) for p in patterns)]
    return sorted(named, key=lambda voice: voice.name)


def drawn_manner(draw: random.Random) -> Manner:
    """Draw how fast and how high is spoken, as people differ."""
    return Manner(speed=draw.uniform(0.8, 1.25), pitch=draw.uniform(0.8, 1.25))


def telephone_manner(draw: random.Random) -> Manner:
    """Draw how a few words are recorded: cut close, ends lost with it, as over a telephone."""
    return replace(
        drawn_manner(draw), quiet_db=draw.uniform(*_CUT_DB), kept_s=0.0, highest_hz=_TELEPHONE_HZ
    )


def speak(voice: Voice, text: str, manner: Manner) -> Speech:
    """Return a text spoken.

    Raises:
        DecodeError: the program fails, or says nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        argv, given = _command(voice, text, manner, path)
        try:
            done = subprocess.run(
                argv, input=given.encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _mute(voice, text, str(error)) from error
        if done.returncode or not path.is_file():
            raise _mute(voice, text, done.stderr.decode(errors="replace").strip()[-200:])
        samples, rate_hz = _read(path)
    whole = resample(samples, rate_hz=rate_hz)
    if manner.highest_hz is not None and whole.size:
        whole = band_limited(whole, 0.0, manner.highest_hz)
    spoken = _spoken(whole, manner)
    if spoken.start == spoken.stop:
        raise _mute(voice, text, "silence")
    printed = done.stdout.decode(errors="replace")
    sounds: list[tuple[str, float]] = []
    if voice.program == "espeak-ng":
        sounds = sounds_of_espeak(printed, rate_hz=rate_hz, num_samples=samples.size)
    elif voice.program == "flite":
        sounds = sounds_of_flite(printed)
    cut_s, length_s = spoken.start / SAMPLE_RATE_HZ, (spoken.stop - spoken.start) / SAMPLE_RATE_HZ
    return Speech(
        whole[spoken],
        tuple((name, min(end_s - cut_s, length_s)) for name, end_s in sounds if end_s > cut_s),
    )


def _known_voices() -> Iterator[Voice]:
    for accent in _ESPEAK_ACCENTS:
        for speaker in _ESPEAK_SPEAKERS:
            yield Voice("espeak-ng", f"{accent}+{speaker}" if speaker else accent)
    for speaker in _FLITE_SPEAKERS:
        yield Voice("flite", speaker)
    for speaker in _FESTIVAL_SPEAKERS:
        yield Voice("festival", speaker)
    for speaker in _RHVOICE_SPEAKERS:
        yield Voice("rhvoice", speaker)
    for speaker in _PICO_SPEAKERS:
        yield Voice("pico2wave", speaker)


def _is_there(voice: Voice) -> bool:
    if shutil.which(_COMMANDS.get(voice.program, voice.program)) is None:
        return False
    if voice.program not in _VOICES:
        return True
    folder, pattern = _VOICES[voice.program]
    return any(found.is_dir() for found in Path(folder).glob(pattern.format(voice.speaker)))


def _command(voice: Voice, text: str, manner: Manner, path: Path) -> tuple[Sequence[str], str]:
    """Return what to run, and what to say to it."""
    if voice.program == "espeak-ng":
        words_per_minute, pitch = round(165 * manner.speed), min(99, round(50 * manner.pitch))
        argv = (voice.speaker, str(words_per_minute), str(pitch), str(path))
        return (sys.executable, "-I", "-S", espeak.__file__, *argv), text
    if voice.program == "flite":
        settings = (
            f"duration_stretch={1 / manner.speed:.3f}",
            f"int_f0_target_mean={105 * manner.pitch:.0f}",
        )
        options = tuple(part for each in settings for part in ("--setf", each))
        spoken = ("-voice", voice.speaker, *options, "-t", text, "-o", str(path))
        return ("flite", "-psdur", *spoken), ""
    speed, pitch = round(100 * manner.speed), round(100 * manner.pitch)
    if voice.program == "rhvoice":
        percents = ("-r", str(speed), "-t", str(pitch))
        return (_COMMANDS["rhvoice"], "-p", voice.speaker, *percents, "-o", str(path)), text
    if voice.program == "pico2wave":
        levels = f'<speed level="{speed}"><pitch level="{pitch}">'
        said = f"{levels}{escape(text)}</pitch></speed>"
        return ("pico2wave", "-l", voice.speaker, "-w", str(path), said), ""
    # Its voices take no other pitch than their own, and the one of HTS no other speed either.
    said = f"(voice_{voice.speaker}) (Parameter.set 'Duration_Stretch {1 / manner.speed:.3f})"
    return (_COMMANDS["festival"], "-eval", f"(begin {said})", "-o", str(path)), text


def _read(path: Path) -> tuple[Float32[np.ndarray, " sample"], int]:
    with wave.open(str(path)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return values.astype(np.float32) / np.float32(_FULL_SCALE), file.getframerate()


def _spoken(samples: Float32[np.ndarray, " sample"], manner: Manner) -> slice:
    """Find where it is not silent, so that the times of a text are those of its words."""
    loudest = np.abs(samples).max(initial=0.0)
    loud = np.flatnonzero(np.abs(samples) > 10 ** (-manner.quiet_db / 20) * loudest)
    if not loud.size:
        return slice(0, 0)
    kept = round(manner.kept_s * SAMPLE_RATE_HZ)
    return slice(max(0, int(loud[0]) - kept), min(len(samples), int(loud[-1]) + max(kept, 1)))


def _mute(voice: Voice, text: str, found: str) -> DecodeError:
    return DecodeError(
        f"speaking {text[:60]!r} as {voice.name}: found {found or 'nothing'}, expected audio; "
        "install the voice, or leave it out",
        kind="no_voice",
    )
