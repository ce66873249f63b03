"""The sound of a run's recordings: their own bytes by ranges, or samples decoded elsewhere.

In: a recording of the catalogue. Out: something with a size and a type of which any range can be
read, like a file. What browsers play is handed on as it is; the rest is decoded in a child process
into a WAV that is never there as a whole, since at a constant rate each of its bytes has a moment.
Only what the run's own tables name is read. Knows nothing of HTTP.
"""

import dataclasses
import io
import json
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from corpus_asr.config.stages import SourceSettings
from corpus_asr.errors import ConfigError
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.storage.run_state.start import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import RangeFile, StoreOptions
from corpus_asr.storage.stores.host_allowlist import HostRules
from corpus_asr.units import SAMPLE_RATE_HZ
from corpus_asr.view.excerpt_request import PATIENCE, ExcerptRequest

EXCERPTS = "corpus_asr.view.excerpts:Excerpts"
# The longest silence of a decoder; on the way to a moment it gives signs of life.
DECODER_TIMEOUT_S = 60.0
PIECE_BYTES = 256 * 1024
OPEN_FILES = 8

_WAV_HEADER_BYTES = 44
_SAMPLE_BYTES = 2
# A WAV's sizes have 32 bits: 37 hours.
MAX_SAMPLES = (2**32 - 1 - _WAV_HEADER_BYTES) // _SAMPLE_BYTES
# Stretches that are decoded at a time: the first is short, for somebody waits for it.
_STRETCH_S = (2, 4, 8, 16)

_PCM = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le")
_PLAYED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    ".mp3": ("audio/mpeg", ("mp3",)),
    ".m4a": ("audio/mp4", ("aac",)),
    ".m4b": ("audio/mp4", ("aac",)),
    ".mp4": ("audio/mp4", ("aac",)),
    ".aac": ("audio/aac", ("aac",)),
    ".ogg": ("audio/ogg", ("opus", "vorbis", "flac")),
    ".oga": ("audio/ogg", ("opus", "vorbis", "flac")),
    ".opus": ("audio/ogg", ("opus",)),
    ".webm": ("audio/webm", ("opus", "vorbis")),
    ".flac": ("audio/flac", ("flac",)),
    ".wav": ("audio/wav", _PCM),
}


class Readable(Protocol):
    """What can be read by ranges."""

    @property
    def size_bytes(self) -> int:
        """How large it is as a whole."""

    @property
    def type(self) -> str:
        """What browsers take it for."""

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes `start` to `stop`, in pieces.

        Raises:
            ItemError: it cannot be read or decoded.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A recording, as far as its sound goes."""

    uri: str
    """Where its sound lies now."""
    etag: str | None
    size_bytes: int | None
    """What it was when it was transcribed."""
    duration_s: float
    codec: str | None
    decode_errors: int

    @property
    def browser_type(self) -> str | None:
        """The type by which browsers play the file as it is; None if they do not."""
        suffix = os.path.splitext(self.uri.partition("?")[0])[1].lower()
        kind, codecs = _PLAYED.get(suffix, ("", ()))
        codec = (self.codec or "").removeprefix("lib").removesuffix("float").removesuffix("_fixed")
        # Where packets had to be skipped, a browser's clock and that of the transcript differ.
        return kind if codec in codecs and not self.decode_errors else None


def heard(row: Mapping[str, Any], moved: Sequence[tuple[str, str]] = ()) -> Heard:
    """Return the sound of a row of the catalogue.

    Args:
        row: of the recordings.
        moved: beginnings of addresses, and what stands in their place by now.
    """
    uri = row["uri"]
    for before, after in moved:
        if uri.startswith(before):
            uri = after + uri.removeprefix(before)
            break
    return Heard(
        uri=uri,
        etag=row["etag"],
        size_bytes=row["size_bytes"],
        duration_s=row["duration_s"],
        codec=row["codec"],
        decode_errors=row["decode_errors"] or 0,
    )


class _OpenFile:
    """A recording's file that several requests read from."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.size_bytes = self._file.seek(0, os.SEEK_END)

    def read(self, start: int, count: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(count)


class Sounds:
    """Opens recordings for listening. Safe to use by threads.

    Args:
        store: the output folder; its run tells where recordings are read from.
        moved: beginnings of addresses, and what stands in their place by now.
        endpoint_url: the store of the recordings, where it is not the run's.

    Raises:
        ConfigError: the run's settings are not those of this program.
    """

    def __init__(
        self,
        store: OutputStore,
        *,
        moved: Sequence[tuple[str, str]] = (),
        endpoint_url: str | None = None,
    ) -> None:
        self._moved = tuple(moved)
        source = _source(store)
        endpoint_url = endpoint_url or source.endpoint_url
        hosts = HostRules.of(source)
        self._store = StoreOptions(endpoint_url=endpoint_url, policy=PATIENCE, hosts=hosts)
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._files_lock = threading.Lock()
        self._decoding = threading.Lock()
        self._decoder = IsolatedGenerator(
            EXCERPTS,
            init_kwargs={"endpoint_url": endpoint_url, "hosts": hosts},
            timeout_s=DECODER_TIMEOUT_S,
        )

    def close(self) -> None:
        """End the decoder."""
        with self._decoding:
            self._decoder.close()

    def of(self, row: Mapping[str, Any]) -> Heard:
        """Return the sound of a row of the catalogue."""
        return heard(row, self._moved)

    def changed(self, sound: Heard) -> bool:
        """Tell whether a recording is another one than was transcribed, as far as can be told.

        Raises:
            FetchError: it is gone, or its store does not answer.
        """
        with self._open(sound.uri) as file:
            now = cast(RangeFile, file.raw).info
        pairs = ((sound.etag, now.etag), (sound.size_bytes, now.size_bytes))
        return any(a is not None and b is not None and a != b for a, b in pairs)

    def as_it_is(self, sound: Heard) -> "SourceBytes":
        """Return a recording's own bytes.

        Raises:
            FetchError: it cannot be read.
        """
        return SourceBytes(self, sound, self._opened(sound.uri).size_bytes)

    def decoded(self, sound: Heard, *, channel: int | None = None) -> "DecodedWav":
        """Return a recording as a WAV, of one channel or of all together."""
        return DecodedWav(self, sound, channel)

    def bytes_of(self, uri: str, start: int, count: int) -> bytes:
        """Read some bytes of a recording.

        Raises:
            FetchError: it cannot be read.
        """
        file = self._opened(uri)
        try:
            return file.read(start, count)
        except Exception:
            with self._files_lock:
                self._files.pop(uri, None)  # it may have changed: the next one opens it anew
            raise

    def excerpt(self, request: ExcerptRequest) -> bytes:
        """Have a stretch decoded.

        Raises:
            ItemError: it cannot be read or decoded.
            EngineError: no process can be started here.
        """
        with self._decoding:
            return b"".join(self._decoder.run(request))

    def _open(self, uri: str) -> io.BufferedReader:
        return filesystem.open_binary(uri, self._store)

    def _opened(self, uri: str) -> _OpenFile:
        with self._files_lock:
            file = self._files.get(uri)
            if file is not None:
                self._files.move_to_end(uri)
                return file
        file = _OpenFile(self._open(uri))
        with self._files_lock:
            self._files[uri] = file
            while len(self._files) > OPEN_FILES:
                # Not closed here: another thread may be reading. It is when that is done.
                self._files.popitem(last=False)
        return file


def _source(store: OutputStore) -> SourceSettings:
    config = store.read_json(CONFIG_NAME)
    if config is None:  # somebody took the tables along without it
        return SourceSettings()
    try:
        return SourceSettings.model_validate_json(json.dumps(config["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reading {CONFIG_NAME} of a run: found no usable settings of its source ({error}), "
            "expected those that this version of the program writes; view it with the version "
            "that made it"
        ) from error


@dataclass(frozen=True, slots=True)
class SourceBytes:
    """A recording's own bytes."""

    sounds: Sounds
    sound: Heard
    size_bytes: int

    @property
    def type(self) -> str:
        """What browsers take it for; they look into it themselves."""
        return self.sound.browser_type or "application/octet-stream"

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes `start` to `stop`.

        Raises:
            FetchError: it cannot be read, or is no longer the same.
        """
        while start < stop:
            piece = self.sounds.bytes_of(self.sound.uri, start, min(PIECE_BYTES, stop - start))
            if not piece:
                return
            start += len(piece)
            yield piece


class DecodedWav:
    """A recording as 16-bit mono at 16 kHz; decoded where it is read."""

    type = "audio/wav"

    def __init__(self, sounds: Sounds, sound: Heard, channel: int | None) -> None:
        self._sounds = sounds
        self._num_samples = min(MAX_SAMPLES, round(sound.duration_s * SAMPLE_RATE_HZ))
        self._request = ExcerptRequest(
            uri=sound.uri,
            channel=channel,
            exact=bool(sound.decode_errors),
            start_sample=0,
            num_samples=0,
        )
        self.size_bytes = _WAV_HEADER_BYTES + _SAMPLE_BYTES * self._num_samples

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes `start` to `stop`.

        Raises:
            ItemError: it cannot be read or decoded.
            EngineError: no process can be started here.
        """
        if start < _WAV_HEADER_BYTES:
            yield wav_header(self._num_samples)[start:stop]
            start = _WAV_HEADER_BYTES
        stretches = iter(_STRETCH_S)
        length_s = 0
        while start < stop:
            length_s = next(stretches, length_s)
            first, odd = divmod(start - _WAV_HEADER_BYTES, _SAMPLE_BYTES)
            left = -(-(stop - _WAV_HEADER_BYTES) // _SAMPLE_BYTES) - first
            request = dataclasses.replace(
                self._request,
                start_sample=first,
                num_samples=min(left, length_s * SAMPLE_RATE_HZ),
            )
            piece = self._sounds.excerpt(request)[odd : odd + stop - start]
            start += len(piece)
            yield piece


def wav_header(num_samples: int) -> bytes:
    """Return what stands before 16-bit mono samples at 16 kHz.

    Source: Microsoft and IBM, Multimedia Programming Interface and Data Specifications 1.0.
    """
    num_bytes = _SAMPLE_BYTES * num_samples
    rate = (SAMPLE_RATE_HZ, SAMPLE_RATE_HZ * _SAMPLE_BYTES, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", _WAV_HEADER_BYTES - 8 + num_bytes, b"WAVE", b"fmt ", 16, 1, 1, *rate,
        b"data", num_bytes,
    )  # fmt: skip
