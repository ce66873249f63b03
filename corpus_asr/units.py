"""Constants of time and size, each derived once; formatting of counts and names."""

from collections.abc import Iterable

SAMPLE_RATE_HZ = 16_000

# Whisper's log-mel front end (Radford et al. 2022, section 2.2).
FFT_SAMPLES = 400  # 25 ms analysis window
HOP_SAMPLES = 160  # 10 ms between frames
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_SAMPLES  # 100

# Models use 80 or 128; a checkpoint with more would take all memory.
MOST_MEL_BINS = 1_000

# One Whisper window.
WINDOW_S = 30
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE_HZ  # 480,000
WINDOW_FRAMES = WINDOW_SAMPLES // HOP_SAMPLES  # 3,000

# The encoder's second convolution halves the frame rate; one timestamp token is one position.
FRAMES_PER_POSITION = 2
WINDOW_POSITIONS = WINDOW_FRAMES // FRAMES_PER_POSITION  # 1,500
TIMESTAMP_STEP_S = FRAMES_PER_POSITION / FRAMES_PER_SECOND  # 0.02

# A frame still overlaps the content while its 400-sample window extends past the last sample. With
# frames centered on whole hops and n samples, these are frame n // HOP_SAMPLES and up to two more.
TAIL_FRAMES = 1 + -(-(FFT_SAMPLES // 2) // HOP_SAMPLES)  # 3

MEBIBYTE = 1 << 20

# Longer silence is skipped by the seek loop; shorter is decoded with the following speech, since
# models were trained on windows that start slightly before speech.
LONG_SILENCE_S = 5.0


def shortened(text: str, most: int) -> str:
    """Return a text truncated to `most` characters, with dots for the rest."""
    return text if len(text) <= most else f"{text[:most]}..."


def counted(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def joined_names(names: Iterable[str | None]) -> str | None:
    """Return distinct names joined by commas, in order of occurrence; None without any."""
    return ", ".join(dict.fromkeys(name for name in names if name)) or None


FINGERPRINT_WORDS_PER_SECOND = 8
FINGERPRINT_SPAN_S = 1.78275
"""Seconds of audio per fingerprint word."""
