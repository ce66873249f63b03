"""Power spectra of overlapping frames, a block at a time.

In: 16 kHz samples. Out: blocks of squared magnitudes, `FFT_SAMPLES // 2 + 1` bins per frame, 10 ms
apart. Knows nothing of mel bins, logarithms, windows of 30 s or models.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from corpus_asr.units import FFT_SAMPLES, HOP_SAMPLES

FFT_BINS = FFT_SAMPLES // 2 + 1  # 201, from 0 Hz to 8 kHz
REACH_SAMPLES = FFT_SAMPLES // 2  # a frame sees this far on both sides of its centre

# Frames per block: the work arrays (about 1 MB) then stay in a core's second-level cache.
BLOCK_FRAMES = 256

# Periodic Hann: one full period in FFT_SAMPLES points, as torch.hann_window and transformers use.
# The formula is needed in float64; rounding the result once costs 6e-8.
HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)).astype(np.float32)


def num_frames(num_samples: int) -> int:
    """Count the frames of an array: one per whole hop, the last centred frame left out."""
    return num_samples // HOP_SAMPLES


def power_spectra(
    samples: Float32[np.ndarray, " sample"],
) -> Iterator[Float32[np.ndarray, "frame bin"]]:
    """Yield squared STFT magnitudes in blocks of at most `BLOCK_FRAMES` frames.

    Frame k is centred on sample `k * HOP_SAMPLES`; the array is mirrored at both ends. Memory
    beyond `samples` does not depend on their number.

    Raises:
        ValueError: `samples` is shorter than one hop, so that there is no frame.

    Source: `whisper/audio.py` log_mel_spectrogram (torch.stft with center=True, last frame
    dropped).
    """
    frames = num_frames(samples.size)
    if frames == 0:
        raise ValueError(
            f"computing power spectra: found {samples.size} samples, expected at least one hop of "
            f"{HOP_SAMPLES}; pad the array with zeros"
        )
    for first in range(0, frames, BLOCK_FRAMES):
        stretch = _stretch(samples, first, min(first + BLOCK_FRAMES, frames))
        windows = np.lib.stride_tricks.sliding_window_view(stretch, FFT_SAMPLES)[::HOP_SAMPLES]
        # rfft keeps float32 (numpy >= 2): half the time of float64, and 1e-7 is precise enough.
        spectra = np.fft.rfft(windows * HANN, axis=-1)  # (frame, bin)
        yield spectra.real**2 + spectra.imag**2


def _stretch(
    samples: Float32[np.ndarray, " sample"], first: int, end: int
) -> Float32[np.ndarray, " seen"]:
    """Return the samples that frames `first` to `end - 1` see, mirrored past the array's ends."""
    start = first * HOP_SAMPLES - REACH_SAMPLES
    stop = (end - 1) * HOP_SAMPLES + REACH_SAMPLES
    before, after = max(0, -start), max(0, stop - samples.size)
    if before == after == 0:
        return samples[start:stop]
    # A mirror image needs what lies just inside the end: take that much more, then drop it again.
    inside_start = max(0, min(start, samples.size - after - 1))
    inside = samples[inside_start : max(stop, before + 1)]
    padded = np.pad(inside, (before, after), mode="reflect")
    offset = start + before - inside_start
    return padded[offset : offset + stop - start]
