"""When espeak-ng says which word: its library speaks a text and tells where each word begins.

In: a text and a voice of the library. Out: samples and words with their times, which are the
speech's own, not an aligner's; a word ends where the next begins, or where a pause does.
"""

import ctypes
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from corpus_asr.synthesis import espeak
from tests.data.word_times import SpokenText, Word

_PAUSES = (b"_", b"")


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
            if event.type == espeak.LIST_END:
                return 0
            if event.type == espeak.WORD:
                self.starts.append((event.sample, event.text_position - 1, event.length))
            elif event.type == espeak.PHONEME and event.id.string.rstrip(b":") in _PAUSES:
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
    rate_hz = library.espeak_Initialize(espeak.SYNCHRONOUS, 0, None, espeak.PHONEME_EVENTS)
    callback = espeak.Callback(heard.hear)
    library.espeak_SetSynthCallback(callback)
    assert library.espeak_SetVoiceByName(voice.encode()) == 0, f"no voice {voice}"
    library.espeak_SetParameter(espeak.RATE, words_per_minute, 0)
    library.espeak_SetParameter(espeak.PITCH, pitch, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, espeak.UTF8 | espeak.END_PAUSE, None, None)
    return heard.spoken(rate_hz)
