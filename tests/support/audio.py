"""Recordings made on the spot: tones, noise, sounds without words, files that fail on purpose.

Imports no torch: parts of it run in the child processes of tests.
"""

import io
import json
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane

from corpus_asr.array_types import Float32, Float64
from corpus_asr.audio.decode import open_audio
from corpus_asr.audio.frames import Channels
from corpus_asr.stages.cutting import ClipCutter
from corpus_asr.stages.messages import Clip, CutRequest
from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, "channel sample"]
MonoSamples = Float32[np.ndarray, " sample"]

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


def write_wavs(folder: Path, **sounds: Samples) -> list[str]:
    """Write sounds by the names of their files; return these."""
    folder.mkdir(exist_ok=True)
    for name, samples in sounds.items():
        (folder / f"{name}.wav").write_bytes(wav_bytes(samples, rate_hz=SAMPLE_RATE_HZ))
    return [str(folder / f"{name}.wav") for name in sounds]


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


def remux(data: bytes, container: str, **tags: str) -> bytes:
    """The same packets of the audio track in a container, with tags of the file."""
    out = io.BytesIO()
    with (
        av.open(io.BytesIO(data), mode="r") as source,
        av.open(out, mode="w", format=container) as file,
    ):
        file.metadata.update(tags)
        stream = file.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    return out.getvalue()


def video_bytes(seconds: int, *, rate_hz: int = 48_000) -> bytes:
    """A WebM of a tone with pictures of 64 by 48, one per second."""
    out = io.BytesIO()
    with av.open(out, mode="w", format="webm") as file:
        pictures = file.add_stream("libvpx", rate=1, width=64, height=48, pix_fmt="yuv420p")
        sound = file.add_stream("libopus", rate=rate_hz, layout="mono")
        assert isinstance(sound, av.AudioStream)
        assert isinstance(pictures, av.VideoStream)
        for at in range(seconds):
            picture = np.full((48, 64, 3), 255 * at // seconds, np.uint8)
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(picture)))
        frame = frame_of(tone(float(seconds), rate_hz=rate_hz), rate_hz=rate_hz, layout="mono")
        to_encoder = av.AudioResampler(format="s16", layout="mono", rate=rate_hz, frame_size=960)
        for piece in [*to_encoder.resample(frame), *to_encoder.resample(None), None]:
            file.mux(sound.encode(piece))
        file.mux(pictures.encode(None))
    return out.getvalue()


def decode(data: bytes, *, uri: str = "memory", channels: Channels = "mix") -> Samples:
    """All samples of a recording at 16 kHz, by the product."""
    with open_audio(io.BytesIO(data), uri=uri, channels=channels) as decoder:
        return np.concatenate(list(decoder), axis=1)


def level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def share_of_tone(samples: np.ndarray, hz: float) -> float:
    """How much of the energy lies within 20 Hz of `hz`: near 1 for the tone itself, intact."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)
    return float(spectrum[np.abs(frequencies - hz) < 20].sum() / spectrum.sum())


class BreakingFile(io.BytesIO):
    """A store that answers until a byte offset is asked for, and then raises or ends early."""

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

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._size = 44 + 2 * round(seconds * SAMPLE_RATE_HZ)
        empty = np.zeros((1, 0), dtype=np.float32)
        self._header = wav_bytes(empty, rate_hz=SAMPLE_RATE_HZ, data_size=self._size - 44)
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


def make_measuring_decoder() -> Any:
    """For a child process: a function from a path to (samples, sum of squares) of each chunk."""

    def measure(path: str) -> Iterator[tuple[int, float]]:
        with (
            Path(path).open("rb") as file,
            open_audio(file, uri=path) as decoder,
        ):
            for chunk in decoder:
                assert np.isfinite(chunk).all()
                yield chunk.shape[1], float(np.square(chunk, dtype=np.float64).sum())

    return measure


def read_clip(path: Path) -> MonoSamples:
    """Decode a well-formed file to 16 kHz mono, plainly: an oracle's input, no product code."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.float32)


def read_manifest(folder: Path) -> list[dict]:
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def made_sounds(num_samples: int) -> dict[str, MonoSamples]:
    """Tones, noises and silence by name, of one length."""
    noise = np.random.default_rng(0).standard_normal(num_samples)
    seconds = np.arange(num_samples) / SAMPLE_RATE_HZ
    sounds = {
        "silence": np.zeros(num_samples),
        "noise": 0.1 * noise,
        "quiet noise": 1e-4 * noise,
        "brown noise": 1e-3 * np.cumsum(noise),
        "tone": 0.9 * np.sin(2 * np.pi * 440 * seconds),
        "two tones": 0.3 * np.sin(2 * np.pi * 697 * seconds)
        + 0.3 * np.sin(2 * np.pi * 1209 * seconds),
        "hum": 0.01 * np.sin(2 * np.pi * 50 * seconds) + 1e-4 * noise,
        "click": np.eye(1, num_samples, num_samples // 2)[0],
        "offset": np.full(num_samples, 0.5),
    }
    return {name: sound.astype(np.float32) for name, sound in sounds.items()}


NOISE_DBFS = -30.0
MUSIC_DBFS = -20.0
MURMUR_DBFS = -40.0
SPEECH_DBFS = -20.0
AROUND_SPEECH_DBFS = -45.0

_VOICES = 24
_REVERBERATION_S = 1.2  # as in a large hall
_NOTE_S = 0.5
_TONE_S = 2.0


def wordless_sounds(seconds: float) -> dict[str, MonoSamples]:
    """Return seven sounds without speech by name; `murmur`, the eighth, needs speech."""
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    sounds = {
        "white noise": (colored_noise(num_samples, slope=0.0), NOISE_DBFS),
        "pink noise": (colored_noise(num_samples, slope=0.5), NOISE_DBFS),
        "brown noise": (colored_noise(num_samples, slope=1.0), NOISE_DBFS),
        "hum": (_hum(num_samples), NOISE_DBFS),
        "tones": (_tones(num_samples), MUSIC_DBFS),
        "chords and drums": (chords_and_drums(num_samples), MUSIC_DBFS),
    }
    silence = {"silence": np.zeros(num_samples, dtype=np.float32)}
    return silence | {name: at_level(sound, dbfs) for name, (sound, dbfs) in sounds.items()}


def at_level(samples: np.ndarray, dbfs: float) -> MonoSamples:
    """Scale to a level, unless it is silence; peaks above full scale are clipped."""
    scaled = samples * (10 ** (dbfs / 20) / (level(samples) or 1.0))
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)


def colored_noise(
    num_samples: int, *, slope: float, seed: int = 0
) -> Float64[np.ndarray, " sample"]:
    """Return Gaussian noise whose amplitude falls with frequency to the power of `slope`."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(num_samples))
    frequencies_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(spectrum / np.maximum(frequencies_hz, 20.0) ** slope, num_samples)


def murmur(clips: Sequence[MonoSamples], seconds: float) -> MonoSamples:
    """Return a crowd whose words nobody can make out.

    24 voices speak at a time, each backwards, at its own level and pace of pauses, in a large hall.
    Every voice goes through all clips in an order of its own.
    """
    draw = np.random.default_rng(2)
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    crowd = np.zeros(num_samples)
    backwards = [at_level(clip[::-1], SPEECH_DBFS) for clip in clips]
    for _ in range(_VOICES):
        at = -round(draw.uniform(0, 10) * SAMPLE_RATE_HZ)
        gain = draw.uniform(0.3, 1.0)
        while at < num_samples:
            clip = backwards[draw.integers(len(backwards))]
            start, end = max(at, 0), min(at + len(clip), num_samples)
            if end > start:
                crowd[start:end] += gain * clip[start - at : end - at]
            at += len(clip) + round(draw.uniform(0, 1) * SAMPLE_RATE_HZ)
    decay_s = np.arange(round(_REVERBERATION_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    hall = draw.standard_normal(len(decay_s)) * 10 ** (-3 * decay_s / _REVERBERATION_S)
    size = num_samples + len(hall)
    return at_level(
        np.fft.irfft(np.fft.rfft(crowd, size) * np.fft.rfft(hall, size), size)[:num_samples],
        MURMUR_DBFS,
    )


def speech_in_noise(clip: MonoSamples, seconds: float) -> MonoSamples:
    """Return pink noise with a clip, 25 dB louder, in its middle."""
    around = colored_noise(round(seconds * SAMPLE_RATE_HZ), slope=0.5, seed=3)
    mixed = at_level(around, AROUND_SPEECH_DBFS)
    start = (len(mixed) - len(clip)) // 2
    mixed[start : start + len(clip)] += at_level(clip, SPEECH_DBFS)
    return mixed


def _hum(num_samples: int) -> Float64[np.ndarray, " sample"]:
    """Mains at 50 Hz with its harmonics, and the hiss of an amplifier."""
    seconds = np.arange(num_samples) / SAMPLE_RATE_HZ
    hum = sum(np.sin(2 * np.pi * 50 * number * seconds) / number for number in range(1, 8))
    hiss = np.random.default_rng(4).standard_normal(num_samples)
    return np.asarray(hum + 0.01 * hiss)


def _tones(num_samples: int) -> Float64[np.ndarray, " sample"]:
    """Single tones of 100 Hz to 4 kHz and the dual tones of telephones, 2 s each."""
    draw = np.random.default_rng(5)
    step = round(_TONE_S * SAMPLE_RATE_HZ)
    seconds = np.arange(step) / SAMPLE_RATE_HZ
    played = np.zeros(num_samples)
    for number, start in enumerate(range(0, num_samples, step)):
        single = (100 * 40 ** draw.uniform(),)
        dual = (draw.choice([697, 770, 852, 941]), draw.choice([1209, 1336, 1477]))
        tone = sum(
            np.sin(2 * np.pi * hertz * seconds) for hertz in (dual if number % 2 else single)
        )
        played[start : start + step] = np.asarray(tone)[: num_samples - start]
    return played


def chords_and_drums(num_samples: int) -> Float64[np.ndarray, " sample"]:
    """A decaying triad every half second over a bass drum and a snare."""
    draw = np.random.default_rng(6)
    step = round(_NOTE_S * SAMPLE_RATE_HZ)
    seconds = np.arange(step) / SAMPLE_RATE_HZ
    bass_drum = 3 * np.exp(-12 * seconds) * np.sin(2 * np.pi * 60 * seconds)
    played = np.zeros(num_samples)
    for number, start in enumerate(range(0, num_samples, step)):
        root_hz = 110 * 2 ** (draw.integers(0, 24) / 12)
        notes_hz = root_hz * 2 ** (np.array([0, 4 if number % 4 else 3, 7]) / 12)
        chord = sum(
            np.sin(2 * np.pi * note_hz * harmonic * seconds) / harmonic**2
            for note_hz in notes_hz
            for harmonic in range(1, 5)
        )
        snare = 2 * np.exp(-25 * seconds) * draw.standard_normal(step)
        beat = np.exp(-3 * seconds) * chord + (snare if number % 2 else bass_drum)
        played[start : start + step] = beat[: num_samples - start]
    return played


class CrashingCutter(ClipCutter):
    """Cuts clips, and crashes at recordings whose name says so."""

    def __call__(self, request: CutRequest) -> Iterator[Clip]:
        if request.uri.endswith("crash.wav"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__call__(request)


def wav_of(text: str) -> bytes:
    """A WAV file whose samples are the characters of a text."""
    codes = np.frombuffer(text.encode("utf-16-le"), np.int16)
    return wav_bytes(codes[None].astype(np.float32) / 32768, rate_hz=16_000)
