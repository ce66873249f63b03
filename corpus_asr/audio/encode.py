"""Samples to the bytes of an audio file."""

import io
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from jaxtyping import Float32

from corpus_asr.units import SAMPLE_RATE_HZ

AudioFormat = Literal["flac", "opus", "wav"]

_CONTAINERS = {"flac": "flac", "opus": "ogg", "wav": "wav"}
_CODECS = {"flac": "flac", "opus": "libopus", "wav": "pcm_s16le"}
_BIT_EXACT = {"fflags": "+bitexact"}  # no serial numbers or versions, which differ each time
_FRAME_SAMPLES = 4096  # where the codec takes any number
_FULL_SCALE = 32_767


def encode_audio(samples: Float32[np.ndarray, " sample"], audio_format: AudioFormat) -> bytes:
    """Return a clip as an audio file of 16 kHz, mono; FLAC and WAV with 16 bits.

    Samples lie in [-1, 1]; what is louder is clipped.
    """
    if not len(samples):
        raise ValueError("found no samples, expected those of a clip")
    values = np.rint(np.clip(samples, -1.0, 1.0) * _FULL_SCALE).astype(np.int16)
    file = io.BytesIO()
    with av.open(
        file, "w", format=_CONTAINERS[audio_format], container_options=_BIT_EXACT
    ) as container:
        stream = container.add_stream(_CODECS[audio_format], rate=SAMPLE_RATE_HZ, layout="mono")
        context = stream.codec_context
        assert isinstance(context, AudioCodecContext)
        context.format = "s16"
        context.open()
        step = context.frame_size or _FRAME_SAMPLES
        for start in range(0, len(values), step):
            frame = AudioFrame.from_ndarray(
                values[np.newaxis, start : start + step], format="s16", layout="mono"
            )
            frame.sample_rate = SAMPLE_RATE_HZ
            frame.pts, frame.time_base = start, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(context.encode(frame))
        container.mux(context.encode(None))
    return file.getvalue()
