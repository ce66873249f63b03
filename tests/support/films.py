"""Containers with several audio tracks, as films and broadcasts have them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from corpus_asr.units import SAMPLE_RATE_HZ

# The encoders that each container is usually written with.
_CODECS = {"matroska": ("flac", "s16"), "mov": ("aac", "fltp"), "mp4": ("aac", "fltp"),
           "mpegts": ("aac", "fltp"), "ogg": ("flac", "s16")}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Track:
    """Mono samples at 16 kHz, and what the header says of them."""

    samples: np.ndarray
    language: str | None = None
    title: str | None = None
    disposition: Disposition = field(default=Disposition(0))


def film(tracks: Sequence[Track], container: str = "matroska") -> bytes:
    """Write the tracks into one container, interleaved by time."""
    codec, sample_format = _CODECS[container]
    file = io.BytesIO()
    packets: list[Any] = []
    with av.open(file, "w", format=container) as output:
        streams: list[Any] = [
            output.add_stream(codec, rate=SAMPLE_RATE_HZ, layout="mono") for _ in tracks
        ]
        for stream, track in zip(streams, tracks, strict=True):
            stream.disposition = track.disposition
            named = {"language": track.language, "title": track.title}
            stream.metadata.update({key: value for key, value in named.items() if value})
            stream.codec_context.format = sample_format
            stream.codec_context.open()
            size = stream.codec_context.frame_size or 4096
            values = track.samples.astype(np.float32)
            if sample_format == "s16":
                values = np.rint(np.clip(values, -1, 1) * 32_767).astype(np.int16)
            for first in range(0, len(values), size):
                frame = av.AudioFrame.from_ndarray(
                    values[np.newaxis, first : first + size], format=sample_format, layout="mono"
                )
                frame.sample_rate, frame.time_base = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ)
                frame.pts = first
                packets += stream.encode(frame)
            packets += stream.encode(None)
        output.mux(sorted(packets, key=stored_s))
    return file.getvalue()


def stored_s(packet: Any) -> Fraction:
    stored: Fraction = packet.dts * packet.time_base
    return stored
