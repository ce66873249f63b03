"""Audio of a run's recordings for playback: their own bytes, or decoded samples.

What browsers play is passed on as it is; the rest is decoded in a child process into a WAV that
never exists as a whole: at a constant rate each of its bytes has a time.

Clips, to be saved and to be drawn, are decoded in the same way, of at most `LONGEST_S`: ten hours
are never decoded for a picture.
"""

import functools
import io
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions
from corpus_asr.errors import FetchError
from corpus_asr.failure_kinds import CHANGED
from corpus_asr.segments import place_of
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.storage.run_state.own_sources import source_options
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import RangeFile
from corpus_asr.storage.stores.store import RetryPolicy, may_be_same
from corpus_asr.storage.stores.uri import located
from corpus_asr.units import SAMPLE_RATE_HZ

# By name, so that native decoders are imported in the child process alone.
EXCERPTS = "corpus_asr.view.excerpts:Excerpts"
# Somebody waits: a store that does not answer is reported sooner than in a run.
PATIENCE = RetryPolicy(attempts=4, patience_s=15.0, request_timeout_s=20.0)
# The longest silence of a decoder; while it decodes up to a start it sends empty pieces.
DECODER_TIMEOUT_S = 60.0
PIECE_BYTES = 256 * 1024
# Enough for the recordings that one person has open at a time.
OPEN_FILES = 8

_WAV_HEADER_BYTES = 44
_SAMPLE_BYTES = 2
# A WAV's sizes have 32 bits: 37 hours.
MAX_SAMPLES = (2**32 - 1 - _WAV_HEADER_BYTES) // _SAMPLE_BYTES
LONGEST_S = 600.0  # of a clip
# Lengths decoded at a time: the first is short, since a person waits for it.
_EXCERPTS_S = (2, 4, 8, 16)

# By suffix: media type, and the codecs in it that browsers play.
_PCM = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le")
# Video types are those of containers that may hold pictures: the player shows them if they do.
_PLAYED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    ".mp3": ("audio/mpeg", ("mp3",)),
    ".m4a": ("audio/mp4", ("aac",)),
    ".m4b": ("audio/mp4", ("aac",)),
    ".mp4": ("video/mp4", ("aac", "mp3")),
    ".m4v": ("video/mp4", ("aac",)),
    ".mov": ("video/mp4", ("aac",)),
    ".aac": ("audio/aac", ("aac",)),
    ".ogg": ("audio/ogg", ("opus", "vorbis", "flac")),
    ".oga": ("audio/ogg", ("opus", "vorbis", "flac")),
    ".opus": ("audio/ogg", ("opus",)),
    ".ogv": ("video/ogg", ("opus", "vorbis", "flac")),
    ".webm": ("video/webm", ("opus", "vorbis")),
    ".flac": ("audio/flac", ("flac",)),
    ".wav": ("audio/wav", _PCM),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcerptRequest:
    """A time span of a recording, to be decoded by the child process."""

    uri: str
    channel: int | None
    """None for a mix of all."""
    track: int | None
    """Number of the audio track, from 1; None where there is one."""
    # Times of damaged recordings are those of what could be decoded, which a seek does not know.
    exact: bool
    """Whether to decode everything before it."""
    start_sample: int
    num_samples: int
    is_clip: bool = False
    """Whether it is of a clip, which is elsewhere than what is played: each has a decoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """A recording's audio, as the tables describe it."""

    uri: str
    """Its present one."""
    etag: str | None
    """ETag of the transcribed content, as is the size."""
    size_bytes: int | None
    duration_s: float
    codec: str | None
    decode_errors: int
    clock_restarts: int = 0
    audio_track: int | None = None
    audio_tracks: tuple[str, ...] = ()
    """As in the recordings table."""

    @property
    def needs_decoding(self) -> bool:
        """Whether times are exact only if it is decoded from the start: a seek would be off."""
        return bool(self.decode_errors or self.clock_restarts)

    def place_of(self, channel: int | None) -> dict[str, int | None]:
        """Return the channel and track to decode for a channel of the transcript."""
        channel, track = place_of(channel, self.audio_track, self.audio_tracks)
        return {"channel": channel, "track": track}

    @property
    def browser_type(self) -> str | None:
        """Media type if browsers play the file unchanged; else None."""
        suffix = os.path.splitext(self.uri.partition("?")[0])[1].lower()
        kind, codecs = _PLAYED.get(suffix, ("", ()))
        codec = (self.codec or "").removeprefix("lib").removesuffix("float").removesuffix("_fixed")
        # After skipped packets, a browser's clock differs from the transcript's; with several
        # tracks it may play another one.
        is_same = not self.needs_decoding and not self.audio_tracks
        return kind if codec in codecs and is_same else None


_SAME = ("etag", "size_bytes", "duration_s", "codec", "audio_track")


class _OpenFile:
    # Several requests read from it at a time.
    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.size_bytes = self._file.seek(0, os.SEEK_END)

    def read(self, start: int, count: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(count)


class Sounds:
    """Opens recordings for playback. Thread-safe.

    `moved` are prefixes of URIs with their replacements, `storage` what the run did not record of
    their store's options. Of this machine, only what this user's own runs read, replacements, and
    objects in `folders` are opened.
    """

    def __init__(
        self,
        store: OutputStore,
        *,
        moved: Sequence[tuple[str, str]] = (),
        storage: StorageOptions = NO_OPTIONS,
        folders: Sequence[str] = (),
    ) -> None:
        self._moved = tuple(moved)
        allowed = (*folders, *(new_prefix for _, new_prefix in self._moved))
        options = source_options(store, allowed=allowed, storage=storage)
        self._store = replace(options, policy=PATIENCE)
        # A player requests consecutive ranges. Files evicted from the cache are closed after their
        # last read.
        self._file = functools.lru_cache(OPEN_FILES)(self._opened_audio)
        self._decoding = threading.Lock()
        self._decoder = IsolatedGenerator(
            EXCERPTS, init_kwargs={"store": self._store}, timeout_s=DECODER_TIMEOUT_S
        )

    def close(self) -> None:
        """Stop the decoder."""
        with self._decoding:
            self._decoder.close()

    def of(self, row: Mapping[str, Any]) -> Sound:
        """Return the sound of a catalogue row."""
        uri = row["uri"]
        for old_prefix, new_prefix in self._moved:
            if uri.startswith(old_prefix):
                uri = new_prefix + uri.removeprefix(old_prefix)
                break
        same = {name: row[name] for name in _SAME}
        uri = located(uri, row["etag"])
        tracks = tuple(row["audio_tracks"] or ())
        restarts = row["clock_restarts"] or 0
        return Sound(
            uri=uri,
            decode_errors=row["decode_errors"] or 0,
            clock_restarts=restarts,
            audio_tracks=tracks,
            **same,
        )

    def changed(self, sound: Sound) -> bool:
        """Return whether a recording has changed since it was transcribed.

        Raises `FetchError` if it no longer exists, or its store is unavailable.
        """
        # Stores without ETags, and tables of older runs, have less data: unknown is unchanged.
        try:
            with self._open(sound.uri) as file:
                info = cast(RangeFile, file.raw).info
        except FetchError as error:
            if error.kind == CHANGED:  # the archive of a member
                return True
            raise
        sizes = {sound.size_bytes, info.size_bytes} - {None}
        return len(sizes) > 1 or not may_be_same(sound.etag, info.etag)

    def as_it_is(self, sound: Sound) -> "Playable":
        """Return a recording's original bytes.

        Raises:
            ItemError: it cannot be read, or contains no audio.
        """
        kind = sound.browser_type or "application/octet-stream"  # browsers detect the type
        read = functools.partial(self._source_bytes, sound.uri)
        return Playable(kind, self._file(sound.uri).size_bytes, read)

    def decoded(self, sound: Sound, *, channel: int | None = None) -> "Playable":
        """Return a recording as a WAV of 16-bit mono at 16 kHz, of one channel or all mixed."""
        num_samples = min(MAX_SAMPLES, round(sound.duration_s * SAMPLE_RATE_HZ))
        return self._wav(sound, channel, range(num_samples))

    def clip(
        self, sound: Sound, start_s: float, end_s: float, *, channel: int | None = None
    ) -> "Playable":
        """Return a time span of a recording as `decoded` returns the whole."""
        samples = range(round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ))
        return self._wav(sound, channel, samples, is_clip=True)

    def _wav(
        self, sound: Sound, channel: int | None, samples: range, *, is_clip: bool = False
    ) -> "Playable":
        read = functools.partial(self._wav_bytes, sound, channel, samples, is_clip)
        return Playable("audio/wav", _WAV_HEADER_BYTES + _SAMPLE_BYTES * len(samples), read)

    def _opened_audio(self, uri: str) -> _OpenFile:
        # Tables may name any file: its bytes are served only if it can be decoded.
        first = ExcerptRequest(
            uri=uri, channel=None, track=None, exact=True, start_sample=0, num_samples=1
        )
        with self._decoding:
            for _ in self._decoder.run(first):
                pass
        return _OpenFile(self._open(uri))

    def _source_bytes(self, uri: str, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            try:
                piece = self._file(uri).read(start, min(PIECE_BYTES, stop - start))
            except Exception:
                self._file.cache_clear()  # it may have changed: the next request reopens it
                raise
            if not piece:
                return
            start += len(piece)
            yield piece

    def _wav_bytes(
        self,
        sound: Sound,
        channel: int | None,
        samples: range,
        is_clip: bool,
        start: int,
        stop: int,
    ) -> Iterator[bytes]:
        header = _wav_header(len(samples))[start:stop]
        start = max(start, _WAV_HEADER_BYTES)
        lengths = iter(_EXCERPTS_S)
        length_s = 0
        while start < stop:
            length_s = next(lengths, length_s)
            first, odd = divmod(start - _WAV_HEADER_BYTES, _SAMPLE_BYTES)
            remaining_samples = -(-(stop - _WAV_HEADER_BYTES) // _SAMPLE_BYTES) - first
            request = ExcerptRequest(
                uri=sound.uri,
                **sound.place_of(channel),
                exact=sound.needs_decoding,
                start_sample=samples.start + first,
                num_samples=min(remaining_samples, length_s * SAMPLE_RATE_HZ),
                is_clip=is_clip,
            )
            # One child process decodes for all listeners, a few seconds at a time.
            with self._decoding:
                decoded = b"".join(self._decoder.run(request))
            piece = decoded[odd : odd + stop - start]
            start += len(piece)
            # Sent with the first samples: a non-empty response shows that decoding works.
            yield header + piece
            header = b""
        if header:
            yield header

    def _open(self, uri: str) -> io.BufferedReader:
        return filesystem.open_binary(uri, self._store)


@dataclass(frozen=True, slots=True)
class Playable:
    """Audio that is read by ranges."""

    type: str
    size_bytes: int
    read: Callable[[int, int], Iterator[bytes]]
    """Yields the bytes from a start to a stop, in pieces."""


def _wav_header(num_samples: int) -> bytes:
    # Microsoft and IBM, Multimedia Programming Interface and Data Specifications 1.0.
    num_bytes = _SAMPLE_BYTES * num_samples
    rate = (SAMPLE_RATE_HZ, SAMPLE_RATE_HZ * _SAMPLE_BYTES, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", _WAV_HEADER_BYTES - 8 + num_bytes, b"WAVE", b"fmt ", 16, 1, 1, *rate,
        b"data", num_bytes,
    )  # fmt: skip
