"""Every constant of time and size, derived once; numbers of things in words."""

from collections.abc import Iterable

SAMPLE_RATE_HZ = 16_000

# Whisper's log-mel front end (Radford et al. 2022, section 2.2).
FFT_SAMPLES = 400  # 25 ms analysis window
HOP_SAMPLES = 160  # 10 ms between frames
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_SAMPLES  # 100

# Models use 80 or 128; a checkpoint that asks for more than this asks for all memory.
MOST_MEL_BINS = 1_000

# One Whisper window.
WINDOW_S = 30
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE_HZ  # 480,000
WINDOW_FRAMES = WINDOW_SAMPLES // HOP_SAMPLES  # 3,000

# The encoder's second convolution halves the frame rate; one timestamp token is one position.
FRAMES_PER_POSITION = 2
WINDOW_POSITIONS = WINDOW_FRAMES // FRAMES_PER_POSITION  # 1,500
TIMESTAMP_STEP_S = FRAMES_PER_POSITION / FRAMES_PER_SECOND  # 0.02

# A frame still touches content while its 400-sample window reaches past the last sample. Frames
# are centred on whole hops: with n samples, frame n // HOP_SAMPLES and two more may do so.
TAIL_FRAMES = 1 + -(-(FFT_SAMPLES // 2) // HOP_SAMPLES)  # 3

MEBIBYTE = 1 << 20

# Silence longer than this is skipped by the seek loop; shorter is decoded with what follows,
# since a window that starts a little before the speech is what the models were trained on.
LONG_SILENCE_S = 5.0


def shortened(text: str, most: int) -> str:
    """Return at most so many characters of a text; dots stand for the rest."""
    return text if len(text) <= most else f"{text[:most]}..."


def counted(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def joined_names(names: Iterable[str | None]) -> str | None:
    """Return distinct names joined by commas, in the order in which they come; None without any."""
    return ", ".join(dict.fromkeys(name for name in names if name)) or None


FINGERPRINT_WORDS_PER_SECOND = 8
FINGERPRINT_SPAN_S = 1.78275
"""Audio that a word of a fingerprint is made of."""
