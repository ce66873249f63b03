"""Small recordings made on the spot, files that fail on purpose, and what decoding them gives.

Imports no torch: parts of it run in the child processes of tests.
"""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane
from jaxtyping import Float32

from corpus_asr.audio.decode import open_audio
from corpus_asr.audio.resample import Channels
from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, "channel sample"]

_WAV_TYPES: dict[str, tuple[int, str, float]] = {  # format tag, numpy type, full scale
    "u8": (1, "u1", 127.0),
    "s16": (1, "<i2", 32767.0),
    "s32": (1, "<i4", 2147483000.0),
    "flt": (3, "<f4", 1.0),
    "dbl": (3, "<f8", 1.0),
}


def tone(
    seconds: float,
    *,
    hz: float = 440.0,
    rate_hz: int = SAMPLE_RATE_HZ,
    amplitude: float = 0.3,
    num_channels: int = 1,
) -> Samples:
    """A sine, the same in every channel."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    row = (amplitude * np.sin(2 * np.pi * hz * times)).astype(np.float32)
    return np.tile(row, (num_channels, 1))


def noise(
    seconds: float, *, rate_hz: int = SAMPLE_RATE_HZ, num_channels: int = 1, seed: int = 0
) -> Samples:
    """White noise, unrelated between channels."""
    shape = (num_channels, round(seconds * rate_hz))
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def wav_bytes(samples: Samples, *, rate_hz: int, sample_type: str = "s16", **claims: int) -> bytes:
    """A WAV file; `claims` (rate_hz_claimed, channels, bits, tag, data_size) may lie."""
    tag, numpy_type, full_scale = _WAV_TYPES[sample_type]
    values = samples.T.astype(np.float64) * full_scale + (128 if sample_type == "u8" else 0)
    data = values.astype(numpy_type).tobytes()
    size = np.dtype(numpy_type).itemsize
    channels = claims.get("channels", len(samples))
    rate = claims.get("rate_hz_claimed", rate_hz)
    block = (size * channels) & 0xFFFF
    fields = (claims.get("tag", tag), channels, rate, (rate * block) & 0xFFFFFFFF, block)
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, *fields, claims.get("bits", 8 * size))
    header += struct.pack("<4sI", b"data", claims.get("data_size", len(data)))
    return struct.pack("<4sI4s", b"RIFF", 4 + len(header) + len(data), b"WAVE") + header + data


def frame_of(
    samples: Samples, *, rate_hz: int, layout: str, sample_format: str = "flt"
) -> av.AudioFrame:
    """A libav frame; made by hand, since `from_ndarray` fails for 8 planar channels."""
    frame = av.AudioFrame(format="flt", layout=layout, samples=samples.shape[1])
    AudioPlane(frame, 0).update(np.ascontiguousarray(samples.T).tobytes())
    frame.sample_rate = rate_hz
    return av.AudioResampler(format=sample_format).resample(frame)[0]


def encode(
    samples: Samples,
    *,
    rate_hz: int,
    container: str,
    codec: str,
    sample_format: str = "fltp",
    layout: str | None = None,
    **options: str,
) -> bytes:
    """A file as FFmpeg's muxers and encoders write it."""
    layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(samples)]
    out = io.BytesIO()
    with av.open(out, mode="w", format=container) as file:
        stream = file.add_stream(codec, rate=rate_hz, layout=layout, options=options)
        assert isinstance(stream, av.AudioStream)
        stream.format = sample_format
        frame = frame_of(samples, rate_hz=rate_hz, layout=layout)
        to_encoder = av.AudioResampler(
            format=sample_format, layout=layout, rate=rate_hz, frame_size=stream.frame_size or 1024
        )
        for piece in [*to_encoder.resample(frame), *to_encoder.resample(None), None]:
            packets = stream.encode(piece)
            # FLAC's encoder ends with an empty packet, which the ogg muxer refuses.
            file.mux([packet for packet in packets if packet.size or container != "ogg"])
    return out.getvalue()


def decode(data: bytes, *, uri: str = "memory", channels: Channels = "mix") -> Samples:
    """All samples of a recording at 16 kHz, by the product."""
    with open_audio(io.BytesIO(data), uri=uri, channels=channels) as decoder:
        return np.concatenate(list(decoder), axis=1)


def level(samples: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def share_of_tone(samples: np.ndarray, hz: float) -> float:
    """How much of the energy lies within 20 Hz of `hz`: near 1 for the tone itself, intact."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)
    return float(spectrum[np.abs(frequencies - hz) < 20].sum() / spectrum.sum())


class BreakingFile(io.BytesIO):
    """A store that answers until a byte offset is asked for, and then raises or ends early.

    Args:
        data: what the store holds.
        error: raised by `read` from `offset` on; None to give no more bytes instead.
        offset: the first byte that cannot be read.
    """

    def __init__(self, data: bytes, *, error: Exception | None, offset: int) -> None:
        super().__init__(data)
        self._error = error
        self._offset = offset

    def read(self, size: int | None = -1) -> bytes:
        wanted = len(self.getvalue()) if size is None or size < 0 else self.tell() + size
        if wanted <= self._offset:
            return super().read(size)
        if self._error is not None:
            raise self._error
        return super().read(max(0, self._offset - self.tell()))


class DamagedContainer:
    """A container that opens and gives some packets, and from then on only errors."""

    # PyAV's own can neither be made nor derived from; type checks at run time look here.
    __class__ = av.container.InputContainer  # type: ignore[assignment]

    def __init__(self, container: Any, *, packets: int) -> None:
        self._container = container
        self._left = packets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        for packet in self._container.demux(stream):
            if not self._left:
                break
            self._left -= 1
            yield packet
        raise av.error.InvalidDataError(1, "scripted damage")


class EndlessNoise(io.RawIOBase):
    """A WAV file of any length that exists only as it is read."""

    def __init__(self, seconds: float, *, rate_hz: int = SAMPLE_RATE_HZ) -> None:
        super().__init__()
        self._size = 44 + 2 * round(seconds * rate_hz)
        empty = np.zeros((1, 0), dtype=np.float32)
        self._header = wav_bytes(empty, rate_hz=rate_hz, data_size=self._size - 44)
        self._block = noise(10.0).astype(np.float16).tobytes()
        self.position = 0
        self.furthest = 0

    def read(self, size: int = -1) -> bytes:
        size = min(size, self._size - self.position)
        start = self.position % len(self._block)
        data = (self._block * 2)[start : start + size]
        if self.position < len(self._header):
            data = (self._header[self.position :] + data)[:size]
        self.position += len(data)
        self.furthest = max(self.furthest, self.position)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self._size)[whence]
        return self.position

    def tell(self) -> int:
        return self.position


def make_measuring_decoder(*, channels: Channels = "mix") -> Any:
    """For a child process: a function from a path to (samples, sum of squares) of each chunk."""

    def measure(path: str) -> Iterator[tuple[int, float]]:
        with (
            Path(path).open("rb") as file,
            open_audio(file, uri=path, channels=channels) as decoder,
        ):
            for chunk in decoder:
                assert np.isfinite(chunk).all()
                yield chunk.shape[1], float(np.square(chunk, dtype=np.float64).sum())

    return measure
