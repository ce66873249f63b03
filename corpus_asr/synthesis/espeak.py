"""espeak-ng's library as a program: a text in, a WAV file and when each sound begins out.

    python espeak.py VOICE WORDS_PER_MINUTE PITCH FILE <text

Speaks what `espeak-ng -v VOICE -s WORDS_PER_MINUTE -p PITCH -w FILE --stdin` does, and prints a
line for each sound: the sample at which it begins, and espeak-ng's name for it. One text per
process, as the library's state leaks into the next one's samples and times. Needs nothing but
Python and the library, so that it starts as fast.
"""

import ctypes
import sys
import wave
from typing import Any

_LIBRARIES = ("libespeak-ng.so.1", "libespeak-ng.1.dylib", "libespeak-ng.dll")

# espeak-ng/speak_lib.h of version 1.51
SYNCHRONOUS, PHONEME_EVENTS = 2, 1
UTF8, END_PAUSE = 1, 0x1000
RATE, PITCH = 1, 3
LIST_END, WORD, PHONEME = 0, 1, 7


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


Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def _library() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise SystemExit(f"found none of {', '.join(_LIBRARIES)}; install espeak-ng")


def main(voice: str, words_per_minute: str, pitch: str, path: str) -> None:
    """Speak the text of standard input."""
    library = _library()
    pieces: list[bytes] = []
    sounds: list[tuple[int, str]] = []

    def hear(samples: Any, num_samples: int, events: Any) -> int:
        if num_samples:
            pieces.append(ctypes.string_at(samples, 2 * num_samples))
        for event in events:
            if event.type == LIST_END:
                return 0
            if event.type == PHONEME:
                sounds.append((event.sample, event.id.string.decode("utf-8", "replace")))
        return 0

    rate_hz = library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS)
    callback = Callback(hear)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()):
        raise SystemExit(f"found no voice {voice}")
    library.espeak_SetParameter(RATE, int(words_per_minute), 0)
    library.espeak_SetParameter(PITCH, int(pitch), 0)
    text = sys.stdin.buffer.read()
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8 | END_PAUSE, None, None)
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(b"".join(pieces))
    sys.stdout.write("".join(f"{sample} {name or '_'}\n" for sample, name in sounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
