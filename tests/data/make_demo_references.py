"""Write what is said in the clips of tests/data/demo, and when: demo-references.jsonl.

    python -m tests.data.make_demo_references

In: the texts of `make_demo_clips.py` and espeak-ng's library, which tells the sample at which each
word and sound begins. Out: a manifest for `corpus-asr evaluate`. The times are the speech's own,
not an aligner's; a word ends where the next begins, or where a pause does. Run again only to change
the clips.
"""

import ctypes
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.data.make_demo_clips import ENGLISH, ENGLISH_LONG, FOLDER, GERMAN, PAUSE_S, speak

REFERENCES = FOLDER.parent / "demo-references.jsonl"

# espeak-ng/speak_lib.h of version 1.51.
_SYNCHRONOUS, _PHONEME_EVENTS = 2, 1
_UTF8, _END_PAUSE = 1, 0x1000
_RATE = 1
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
class Speech:
    """What espeak-ng tells while it speaks a text."""

    text: str
    num_samples: int = 0
    rate_hz: int = 0
    starts: list[tuple[int, str]] = field(default_factory=list)
    """Sample and word."""
    pauses: list[int] = field(default_factory=list)

    def hear(self, _samples: Any, num_samples: int, events: Any) -> int:
        """Take what the library has just spoken."""
        self.num_samples += num_samples
        for event in events:
            if event.type == _LIST_END:
                return 0
            if event.type == _WORD:
                first = event.text_position - 1
                self.starts.append((event.sample, self.text[first : first + event.length]))
            elif event.type == _PHONEME and event.id.string.rstrip(b":") in _PAUSES:
                self.pauses.append(event.sample)
        return 0

    def words(self, offset_s: float) -> Iterator[dict[str, Any]]:
        """Yield the words with their times, the text beginning at `offset_s`."""
        starts = [(sample, word) for sample, word in self.starts if word.strip()]
        later = [sample for sample, _ in starts[1:]] + [self.num_samples]
        for (start, word), following in zip(starts, later, strict=True):
            end = min([at for at in self.pauses if start < at <= following], default=following)
            times_s = [round(offset_s + at / self.rate_hz, 3) for at in (start, end)]
            yield {"word": word, "start_s": times_s[0], "end_s": times_s[1]}


def spoken(text: str, voice: str) -> Speech:
    """Speak with the settings of `make_demo_clips.speak`; once per process, or states leak."""
    library = ctypes.CDLL("libespeak-ng.so.1")
    speech = Speech(text)
    speech.rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
    callback = _Callback(speech.hear)
    library.espeak_SetSynthCallback(callback)
    assert library.espeak_SetVoiceByName(voice.encode()) == 0, f"no voice {voice}"
    library.espeak_SetParameter(_RATE, 150, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8 | _END_PAUSE, None, None)
    return speech


def reference(
    name: str, language: str, texts: tuple[str, ...], voice: str, library_voice: str
) -> dict[str, Any]:
    """Return the manifest's row of a clip that says these texts, a pause after each."""
    words: list[dict[str, Any]] = []
    offset_s = 0.0
    for text in texts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            speech = pool.apply(spoken, (text, library_voice))
        assert speech.num_samples == len(speak(text, voice, speech.rate_hz)), (
            "not the clip's speech"
        )
        words += speech.words(offset_s)
        offset_s += speech.num_samples / speech.rate_hz + PAUSE_S
    path = f"{FOLDER.name}/{name}"
    return {"path": path, "language": language, "text": " ".join(texts), "words": words}


def main() -> None:
    rows = [
        reference("english.wav", "en", (ENGLISH,), "en-us", "en-us"),
        reference("german.opus", "de", (GERMAN,), "de", "de"),
        reference("longer.mp3", "en", ENGLISH_LONG, "en-gb", "gmw/en"),
    ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    REFERENCES.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
