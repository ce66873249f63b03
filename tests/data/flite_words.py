"""When flite says which word: its library speaks a text and keeps where each sound ends.

In: a text and a voice. Out: samples and words with their times, which are the speech's own, not an
aligner's: a word begins where the sound before its first one ends.
"""

import ctypes
from typing import Any

import numpy as np

from tests.data.word_times import SpokenText, Word

_SPEAKER = "cmu_us_{}"
# flite 2.2, the words of an utterance and the sounds below them: cst_utt_utils.h, cst_synth.h.
_START = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
_END = b"R:SylStructure.daughtern.daughtern.R:Segment.end"


class _Voice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


def speak_by_flite(text: str, voice: str, **features: float) -> SpokenText:
    """Speak as the program does with these settings.

    Args:
        text: one utterance, without numbers in digits, which flite would take apart.
        voice: such as rms.
        **features: of its option --setf.
    """
    flite = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
    for name in ("libflite_cmulex.so.1", "libflite_usenglish.so.1"):
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    speaker = _SPEAKER.format(voice)
    register = getattr(ctypes.CDLL(f"libflite_{speaker}.so.1"), f"register_{speaker}")
    register.restype = ctypes.POINTER(_Voice)
    flite.flite_init()
    speaking = register(None)
    for name, value in features.items():
        flite.feat_set_float(
            ctypes.c_void_p(speaking.contents.features), name.encode(), ctypes.c_float(value)
        )
    flite.flite_synth_text.restype = ctypes.c_void_p
    flite.utt_wave.restype = ctypes.POINTER(_Wave)
    utterance = ctypes.c_void_p(flite.flite_synth_text(text.encode(), speaking))
    wave = flite.utt_wave(utterance).contents
    samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).copy()
    words = _words(flite, utterance, text)
    return SpokenText(samples, wave.sample_rate, words[0].start_s, words[-1].end_s, tuple(words))


def _words(flite: Any, utterance: ctypes.c_void_p, text: str) -> list[Word]:
    for function in (flite.utt_relation, flite.relation_head, flite.item_next):
        function.restype = ctypes.c_void_p
    flite.ffeature_float.restype = ctypes.c_float
    item = flite.relation_head(ctypes.c_void_p(flite.utt_relation(utterance, b"Word")))
    times = []
    while item:
        at = ctypes.c_void_p(item)
        times.append((flite.ffeature_float(at, _START), flite.ffeature_float(at, _END)))
        item = flite.item_next(at)
    said = [word.strip(".,;:!?") for word in text.split()]
    return [Word(word, *seconds) for word, seconds in zip(said, times, strict=True)]
