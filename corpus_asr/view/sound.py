"""Audio of a run's recordings for playback: their own bytes, or decoded samples.

What browsers play is passed on as it is; the rest is decoded in a child process into a WAV that
never exists as a whole: at a constant rate each of its bytes has a time.

The picture of the sound is peaks, decoded on demand for the span that is looked at, at most
`LONGEST_S`, in tiles that are kept; and the pauses between words, which the tables tell: ten hours
are never decoded for an overview.
"""

import functools
import io
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions
from corpus_asr.errors import FetchError
from corpus_asr.failure_kinds import CHANGED
from corpus_asr.segments import place_of
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.storage.run_state.own_sources import source_options
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import RangeFile
from corpus_asr.storage.stores.members import located
from corpus_asr.storage.stores.store import RetryPolicy, may_be_same
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
PEAKS_PER_S = 50
# Without seeking, the waveform ends here, since decoding hours would take too long.
_MAX_SKIPPED_S = 600
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


FULL_PEAK = 255
"""Value of full scale: peaks are single bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeaksRequest(ExcerptRequest):
    """A time span whose loudest samples are asked for, one of each so many."""

    samples_per_peak: int
    """Divides `num_samples`."""
    max_skipped_samples: int
    """Audio before the span that may be decoded to get there."""


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
        return self._wav(sound, channel, samples)

    def _wav(self, sound: Sound, channel: int | None, samples: range) -> "Playable":
        read = functools.partial(self._wav_bytes, sound, channel, samples)
        return Playable("audio/wav", _WAV_HEADER_BYTES + _SAMPLE_BYTES * len(samples), read)

    def peaks(
        self, sound: Sound, start_s: float, num_peaks: int, *, channel: int | None
    ) -> bytes | None:
        """Return the peak of each `1 / PEAKS_PER_S`, as bytes, from `start_s` on.

        None if the start cannot be reached without decoding everything before it.

        Raises:
            ItemError: it cannot be read or decoded.
        """
        samples_per_peak = SAMPLE_RATE_HZ // PEAKS_PER_S
        request = PeaksRequest(
            uri=sound.uri,
            **sound.place_of(channel),
            exact=sound.needs_decoding,
            start_sample=round(start_s * SAMPLE_RATE_HZ),
            num_samples=num_peaks * samples_per_peak,
            samples_per_peak=samples_per_peak,
            max_skipped_samples=_MAX_SKIPPED_S * SAMPLE_RATE_HZ,
        )
        with self._decoding:
            return b"".join(self._decoder.run(request)) or None

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
        self, sound: Sound, channel: int | None, samples: range, start: int, stop: int
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


LONGEST_S = 600.0
MAX_PEAKS = 2_000
TILE_S = 30
# At 1.5 kB each: a day of audio.
KEPT_TILES = 3_000
# Shorter ones are within words and sentences.
MIN_PAUSE_S = 0.3


class Waveforms:
    """Decodes peaks and keeps them, up to 5 MB. Thread-safe."""

    def __init__(self, sounds: Sounds) -> None:
        self._sounds = sounds
        self._tile = functools.lru_cache(KEPT_TILES)(self._decoded_tile)

    def peaks(
        self, sound: Sound, start_s: float, end_s: float, count: int, *, channel: int | None = None
    ) -> list[int] | None:
        """Return the peak in each of `count` equal parts of a span, 0 to 255.

        None for a span longer than `LONGEST_S`, or one that requires decoding hours to reach.

        Raises:
            ItemError: the recording cannot be read or decoded.
        """
        if end_s - start_s > LONGEST_S:
            return None
        first, last = math.floor(start_s / TILE_S), math.ceil(end_s / TILE_S)
        tiles = []
        for number in range(first, last):
            tile = self._tile(sound, channel, number)
            if tile is None:
                return None
            tiles.append(tile)
        values = np.concatenate(tiles)
        edges_s = np.linspace(start_s, end_s, count + 1)[:-1] - first * TILE_S
        edges = np.floor(edges_s * PEAKS_PER_S).astype(np.int64)
        last_edge = max(edges[-1] + 1, math.ceil((end_s - first * TILE_S) * PEAKS_PER_S))
        # If parts are shorter than a peak, several share one.
        peaks: list[int] = np.maximum.reduceat(values[:last_edge], edges).tolist()
        return peaks

    def _decoded_tile(self, sound: Sound, channel: int | None, number: int) -> np.ndarray | None:
        # One at a time, so that what is played is decoded in between.
        data = self._sounds.peaks(sound, number * TILE_S, TILE_S * PEAKS_PER_S, channel=channel)
        return None if data is None else np.frombuffer(data, dtype=np.uint8)


class Pauses:
    """The spans of a recording in which no word is.

    `starts_s` and `ends_s` are those of words, or of segments, ascending by start.
    """

    def __init__(self, starts_s: np.ndarray, ends_s: np.ndarray, *, duration_s: float) -> None:
        silent_from = np.concatenate([[0.0], np.maximum.accumulate(ends_s)])
        silent_to = np.concatenate([starts_s, [duration_s]])
        are_pauses = silent_to - silent_from >= MIN_PAUSE_S
        self._starts, self._ends = silent_from[are_pauses], silent_to[are_pauses]

    def speech(self, start_s: float, end_s: float, count: int) -> list[int]:
        """Return the fraction of speech in each of `count` equal parts of a span, 0 to 255."""
        bounds = np.stack([self._starts, self._ends], axis=1).ravel()
        lengths = self._ends - self._starts
        silent = np.stack([np.cumsum(lengths) - lengths, np.cumsum(lengths)], axis=1).ravel()
        edges = np.linspace(start_s, end_s, count + 1)
        # Cumulative silence is linear between the bounds of pauses.
        passed = np.interp(edges, bounds, silent) if len(bounds) else np.zeros(count + 1)
        share = 1.0 - np.diff(passed) / ((end_s - start_s) / count)
        shares: list[int] = np.rint(FULL_PEAK * np.clip(share, 0.0, 1.0)).astype(int).tolist()
        return shares

    def within(self, start_s: float, end_s: float, *, at_least_s: float) -> list[list[float]]:
        """Return start and end of pauses of at least `at_least_s`, clipped to a span."""
        starts, ends = np.maximum(self._starts, start_s), np.minimum(self._ends, end_s)
        long = ends - starts >= max(at_least_s, 1e-9)
        pairs = np.stack([starts[long], ends[long]], axis=1)
        pauses: list[list[float]] = np.round(pairs, 3).tolist()
        return pauses
