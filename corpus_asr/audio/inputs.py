"""Audio arguments of the Python API: a URI, or data that is first written to a file.

Samples are written as WAV, so that they are decoded, cut and transcribed like a file of these
samples. Does not import torch: tensors are converted to arrays here.
"""

import errno
import io
import numbers
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from corpus_asr.audio.probe import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ
from corpus_asr.errors import DecodeError, FetchError
from corpus_asr.failure_kinds import FETCH, NO_SPACE
from corpus_asr.scratch import scratch_folder

AudioInput = Any
"""A path, URL or URI; the bytes of a file, or a file opened for reading in binary mode; an array or
tensor of samples; a dictionary of Hugging Face datasets; or an object with `get_all_samples`, like
decoders of torchcodec."""

_ARRAY_KEYS = ("array", "raw")  # of datasets, and of transformers' pipelines
# Maximum channels, as in `stages.extraction`; more rows mean swapped axes.
_MAX_CHANNELS = 64
# Float samples are in -1 to 1. Loud mixes reach 10; from 100 on they are unscaled integers.
_MAX_PEAK = 100.0
_FORMATS = {"f": 3, "i": 1}  # WAVE_FORMAT_IEEE_FLOAT, WAVE_FORMAT_PCM
# RIFF has 32-bit lengths; with the maximum, libav reads to the end of the file.
_LARGEST_SIZE = 2**32 - 1
_COPY_BYTES = 1 << 20
_WRITE_SAMPLES = 1 << 18

_EXPECTED = (
    "a path, a URL, bytes, a file opened with 'rb', an array or tensor with sampling_rate, or a "
    "dictionary with array and sampling_rate, with bytes, or with path"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenAudio:
    """One recording given by a caller."""

    name: str
    """Name in results and messages: the URI, if it has one."""
    write: Callable[[BinaryIO], object] | None = None
    """Writes it as a file; None for a URI."""

    @contextmanager
    def address(self) -> Iterator[str]:
        """Yield its URI or path; a temporary file is deleted afterwards.

        Raises:
            FetchError: it cannot be read, or its file cannot be written.
        """
        if self.write is None:
            # The process that opens it may have another working directory.
            is_relative = "://" not in self.name and not self.name.startswith("~")
            yield os.path.abspath(self.name) if is_relative else self.name
            return
        with scratch_folder() as folder:
            path = folder / "audio"
            with path.open("wb") as file:
                self._write(file)
            yield str(path)

    def _write(self, file: Any) -> None:
        assert self.write is not None, "a URI needs no file"
        try:
            self.write(file)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            cure = "set TMPDIR to a folder with room for it" if full else "pass its path instead"
            raise FetchError(
                f"copying {self.name} to {file.name} to decode it: {error.strerror or error}; "
                f"{cure}",
                uri=self.name,
                kind=NO_SPACE if full else FETCH,
            ) from error


def given_audio(audio: AudioInput, *, sampling_rate: float | None, number: int = 0) -> GivenAudio:
    """Convert a caller's audio argument.

    Arrays and tensors are float, in -1 to 1, or int16; of shape (sample,) or (channel, sample),
    with at most 64 channels and no fewer samples than channels. Unnamed audio is called
    `input-N` by its `number`.

    Raises:
        ValueError: it is not audio, or its sampling rate is missing or contradictory.
        DecodeError: kind `bad_samples`; samples are not finite.
    """
    return _AudioReader(sampling_rate, f"input-{number}").read(audio)


def several(audios: Iterable[AudioInput]) -> Iterable[AudioInput]:
    """Return recordings unchanged; reject a single one.

    Raises:
        ValueError: it is a single recording, whose items are characters, bytes or samples.
    """
    single = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, np.ndarray)
    if isinstance(audios, single) or hasattr(audios, "detach") or hasattr(audios, "read"):
        shown = f" ({audios})" if isinstance(audios, str | os.PathLike) else ""
        raise ValueError(
            f"reading recordings: found a single {type(audios).__name__}{shown}, expected "
            "several; use transcribe for one, or pass a list"
        )
    return audios


@dataclass(frozen=True, slots=True)
class _AudioReader:
    rate: float | None
    """Sampling rate given separately."""
    name: str
    """Name for audio without its own."""

    def read(self, audio: AudioInput) -> GivenAudio:
        if isinstance(audio, str | os.PathLike):
            self._refuse_rate("a path or URL")
            return GivenAudio(name=str(os.fspath(audio)))
        if isinstance(audio, bytes | bytearray | memoryview):
            self._refuse_rate("the bytes of a file")
            return GivenAudio(name=self.name, write=lambda file: file.write(audio))
        if isinstance(audio, Mapping):
            return self._from_mapping(audio)
        if hasattr(audio, "get_all_samples"):
            self._refuse_rate("a decoder")
            decoded = audio.get_all_samples()
            return _AudioReader(decoded.sample_rate, self.name)._from_samples(decoded.data)
        if hasattr(audio, "read"):
            return self._from_file(audio)
        return self._from_samples(audio)

    def _refuse_rate(self, what: str) -> None:
        if self.rate is not None:
            raise ValueError(
                f"reading {self.name}: found sampling_rate={self.rate!r} with {what}, expected it "
                "with an array only; remove it (raw samples: np.frombuffer(data, np.int16))"
            )

    def _from_mapping(self, given: Mapping[str, Any]) -> GivenAudio:
        path, data = given.get("path"), given.get("bytes")
        name = self.name if path is None else str(path)
        samples = next((given[key] for key in _ARRAY_KEYS if given.get(key) is not None), None)
        if samples is not None:
            rate = given.get("sampling_rate")
            if None not in (rate, self.rate) and rate != self.rate:
                raise ValueError(
                    f"reading {name}: found sampling_rate={self.rate} and a dictionary with "
                    f"{rate}, expected one of them; leave the argument out"
                )
            return _AudioReader(self.rate if rate is None else rate, name)._from_samples(samples)
        if data is None and path is None:
            raise ValueError(
                f"reading {self.name}: found a dictionary with {', '.join(map(str, given))}"
                f"{'' if given else 'nothing'}, expected array and sampling_rate, bytes, or path"
            )
        return _AudioReader(self.rate, name).read(path if data is None else data)

    def _from_file(self, file: Any) -> GivenAudio:
        if isinstance(file, io.TextIOBase):
            raise ValueError(
                f"reading {self.name}: found a file opened for text, expected binary mode; open "
                "it with 'rb', or pass its path"
            )
        self._refuse_rate("an open file")
        file_name = getattr(file, "name", None)  # a number for descriptors
        name = file_name if isinstance(file_name, str) else self.name
        return GivenAudio(name=name, write=lambda copy: shutil.copyfileobj(file, copy, _COPY_BYTES))

    def _from_samples(self, given: Any) -> GivenAudio:
        samples = _array(given)
        if samples is None:
            raise ValueError(
                f"reading {self.name}: found a {type(given).__name__}, expected {_EXPECTED}"
            )
        kind = f"an array of {samples.dtype} and shape {samples.shape}"
        rows = self._rows(samples, kind)  # (channel, sample)
        rate_hz = self._rate_hz(kind)
        return GivenAudio(name=self.name, write=lambda file: _write_wav(file, rows, rate_hz))

    def _rate_hz(self, kind: str) -> int:
        rate: Any = self.rate
        if rate is None:
            raise ValueError(
                f"reading {self.name}: found {kind} without a sampling rate, expected one in Hz; "
                "pass that of the recording, such as sampling_rate=16000"
            )
        is_number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
        # In this order, as NaN and infinity cannot be converted to integers.
        if (
            not is_number
            or not MIN_SAMPLE_RATE_HZ <= rate <= MAX_SAMPLE_RATE_HZ
            or rate != int(rate)
        ):
            kind_of_rate = "" if is_number else f", a {type(rate).__name__}"
            raise ValueError(
                f"reading {self.name}: found sampling_rate={rate!r}{kind_of_rate}, expected a "
                f"number, whole Hz from {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ}, such as "
                "16000; correct it"
            )
        return int(rate)

    def _rows(self, samples: np.ndarray, kind: str) -> np.ndarray:
        rows = samples[np.newaxis] if samples.ndim == 1 else samples
        if rows.ndim != 2 or not 1 <= len(rows) <= _MAX_CHANNELS or len(rows) > rows.shape[1] > 0:
            turn = "; transpose it" if samples.ndim == 2 else "; pass one recording at a time"
            raise ValueError(
                f"reading {self.name}: found {kind}, expected (sample,) or (channel, sample) with "
                f"at most {_MAX_CHANNELS} channels{turn}"
            )
        if not rows.size:
            # An empty file is an error; an empty array is silence.
            return np.zeros((len(rows), 1), dtype=np.float32)
        if samples.dtype.kind == "i" and samples.dtype.itemsize == 2:
            return rows
        if samples.dtype.kind != "f":
            raise ValueError(
                f"reading {self.name}: found {kind}, expected float in -1 to 1, or int16; divide "
                "integers by their full scale (int32: 2**31)"
            )
        rows = rows.astype(np.float32, copy=False)
        peak = float(np.abs(rows).max(initial=0.0))
        if not np.isfinite(peak):
            broken = int((~np.isfinite(rows)).sum())
            raise DecodeError(
                f"reading {self.name}: found {broken} of {rows.size} samples that are NaN or "
                "infinite, expected numbers; replace them (np.nan_to_num)",
                uri=self.name,
                kind="bad_samples",
            )
        if peak > _MAX_PEAK:
            raise ValueError(
                f"reading {self.name}: found float samples up to {peak:g}, expected -1 to 1; pass "
                "integers as int16, or divide by their full scale (int16: 32768)"
            )
        return rows


def _array(samples: Any) -> np.ndarray | None:
    if isinstance(samples, np.ma.MaskedArray):
        if np.ma.is_masked(samples):
            count = int(np.ma.getmaskarray(samples).sum())
            raise ValueError(
                f"reading samples: found {count} masked ones, expected none; fill them, such as "
                "with samples.filled(0)"
            )
        samples = samples.data
    if hasattr(samples, "detach") and hasattr(samples, "cpu"):  # a tensor on any device
        samples = samples.detach().cpu()
        # numpy has no bfloat16.
        samples = (samples.float() if "bfloat16" in str(samples.dtype) else samples).numpy()
    return samples if isinstance(samples, np.ndarray) else None


def _write_wav(file: BinaryIO, rows: np.ndarray, rate_hz: int) -> None:
    channels, num_samples = rows.shape
    kind = np.dtype("<i2" if rows.dtype.kind == "i" else "<f4")
    frame_bytes = channels * kind.itemsize
    size = min(num_samples * frame_bytes, _LARGEST_SIZE)
    layout = struct.pack(
        "<HHIIHH", _FORMATS[kind.kind], channels, rate_hz, rate_hz * frame_bytes, frame_bytes,
        8 * kind.itemsize,
    )  # fmt: skip
    head = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", size)
    file.write(b"RIFF" + struct.pack("<I", min(len(head) + size, _LARGEST_SIZE)) + head)
    # In chunks, to avoid a copy of hours of audio.
    for start in range(0, num_samples, _WRITE_SAMPLES):
        piece = rows[:, start : start + _WRITE_SAMPLES].T
        file.write(np.ascontiguousarray(piece, dtype=kind).tobytes())
