"""When espeak-ng says which word: its library speaks a text and tells where each word begins.

In: a text and a voice of the library. Out: samples and words with their times, which are the
speech's own, not an aligner's; a word ends where the next begins, or where a pause does.
"""

import ctypes
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.data.word_times import SpokenText, Word

# espeak-ng/speak_lib.h of version 1.51.
_SYNCHRONOUS, _PHONEME_EVENTS = 2, 1
_UTF8, _END_PAUSE = 1, 0x1000
_RATE, _PITCH = 1, 3
_LIST_END, _WORD, _PHONEME = 0, 1, 7
_PAUSES = (b"_", b"")


class _Id(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass
class _Heard:
    """What espeak-ng tells while it speaks a text."""

    text: str
    pieces: list[np.ndarray] = field(default_factory=list)
    starts: list[tuple[int, int, int]] = field(default_factory=list)
    """Of words: the sample, the first character and how many there are."""
    pauses: list[int] = field(default_factory=list)

    def hear(self, samples: Any, num_samples: int, events: Any) -> int:
        """Take what the library has just spoken."""
        if num_samples:
            self.pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        for event in events:
            if event.type == _LIST_END:
                return 0
            if event.type == _WORD:
                self.starts.append((event.sample, event.text_position - 1, event.length))
            elif event.type == _PHONEME and event.id.string.rstrip(b":") in _PAUSES:
                self.pauses.append(event.sample)
        return 0

    def spoken(self, rate_hz: int) -> SpokenText:
        """Return what is known; of words run together, as in `have been`, no times are."""
        samples = np.concatenate(self.pieces)
        numbers = {word.span(): at for at, word in enumerate(re.finditer(r"[\w']+", self.text))}
        starts = [
            (sample, numbers.get((first, first + length)))
            for sample, first, length in self.starts
            if self.text[first : first + length].strip()
        ]
        later = [*starts[1:], (len(samples), len(numbers))]
        spans = [
            (at, start, self._end(start, following))
            for (start, at), (following, after) in zip(starts, later, strict=True)
            if at is not None and after == at + 1
        ]
        texts = [self.text[slice(*span)] for span in numbers]
        words = [Word(texts[at], start / rate_hz, end / rate_hz) for at, start, end in spans]
        end = self._end(starts[-1][0], len(samples))
        return SpokenText(samples, rate_hz, starts[0][0] / rate_hz, end / rate_hz, tuple(words))

    def _end(self, start: int, following: int) -> int:
        return min([at for at in self.pauses if start < at <= following], default=following)


def speak_by_espeak(
    text: str, voice: str, words_per_minute: int = 150, pitch: int = 50
) -> SpokenText:
    """Speak as the program does with these settings; once per process, or states leak.

    Args:
        text: one utterance.
        voice: as the library names it, such as gmw/en+Lee where the program says en-gb+Lee.
        words_per_minute: of the program's option -s.
        pitch: of its option -p, 0 to 99.
    """
    library = ctypes.CDLL("libespeak-ng.so.1")
    heard = _Heard(text)
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
    callback = _Callback(heard.hear)
    library.espeak_SetSynthCallback(callback)
    assert library.espeak_SetVoiceByName(voice.encode()) == 0, f"no voice {voice}"
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8 | _END_PAUSE, None, None)
    return heard.spoken(rate_hz)
