"""Cuts and encodes clips of a recording, in a child process.

The recording is decoded as a stream from its start, as for transcription, unless seeking is
requested: seeking is slightly less precise in many formats. Memory holds the longest clip and about
ten seconds.
"""

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.audio.decode import AudioDecoder, AudioFormat, encode_audio, open_audio
from corpus_asr.audio.frames import Channels
from corpus_asr.config.decoding import AUTO_TRACK
from corpus_asr.errors import DecodeError
from corpus_asr.stages.messages import CHANGED, CUT_SHORT, Clip, ClipRange, CutRequest
from corpus_asr.storage.stores.filesystem import RangeFile, StoreOptions, open_binary
from corpus_asr.storage.stores.store import may_be_same
from corpus_asr.storage.stores.uri import located, redact_uri
from corpus_asr.units import SAMPLE_RATE_HZ

# Timestamps are in steps of 20 ms and may lie slightly after the end.
_MAX_MISSING_SAMPLES = SAMPLE_RATE_HZ // 2
# A decoder needs some packets before its output is valid, and a resampler some samples.
_LEAD_S = 2.0
# Shorter distances are decoded and skipped, which takes 0.1 s; longer ones are seeked.
_SKIP_S = 60.0


class ClipCutter:
    """Cuts clips out of recordings; `bit_rate` is that of Opus, in bits per second."""

    def __init__(
        self,
        *,
        store: StoreOptions,
        channels: Channels,
        audio_format: AudioFormat,
        bit_rate: int | None = None,
    ) -> None:
        self._store = store
        self._channels: Channels = channels
        self._audio_format: AudioFormat = audio_format
        self._bit_rate = bit_rate

    def __call__(self, request: CutRequest) -> Iterator[Clip]:
        """Yield the clips in the order in which they are completely decoded.

        Raises:
            FetchError: the store failed.
            DecodeError: kind `source_changed`, the file differs from the transcribed one; kind
                `cut_short`, it ends before a range does; or it has no usable audio.
        """
        numbered = sorted(enumerate(request.ranges), key=_by_track)
        for track, of_track in groupby(numbered, key=lambda item: item[1].track):
            yield from self._of_track(request, track, list(of_track))

    def _of_track(
        self, request: CutRequest, track: int | None, waiting: list[tuple[int, ClipRange]]
    ) -> Iterator[Clip]:
        # By start: samples before the next incomplete range can be released.
        first = waiting[0][1].start_sample / SAMPLE_RATE_HZ - _LEAD_S
        with (
            self._open(request) as file,
            self._started(file, request, track, first) as (decoder, held),
        ):
            for chunk in decoder:  # (row, sample)
                held.append(
                    chunk, wanted_from=min(clip_range.start_sample for _, clip_range in waiting)
                )
                ready = [item for item in waiting if item[1].end_sample <= held.end]
                waiting = [item for item in waiting if item[1].end_sample > held.end]
                for number, clip_range in ready:
                    yield self._clip(number, clip_range, held)
                if not waiting:
                    return
        for number, clip_range in waiting:
            # At the end of the recording, clips that exceed it slightly are shortened.
            missing = clip_range.end_sample - held.end
            if missing > _MAX_MISSING_SAMPLES or clip_range.start_sample >= held.end:
                uri = redact_uri(request.uri)
                raise DecodeError(
                    f"cutting {uri}: it ends after {held.end / SAMPLE_RATE_HZ:.2f} s, expected "
                    f"{clip_range.end_sample / SAMPLE_RATE_HZ:.2f} s at least, as when it was "
                    "transcribed; transcribe it again",
                    uri=uri,
                    kind=CUT_SHORT,
                )
            yield self._clip(number, clip_range, held)

    @contextmanager
    def _started(
        self, file: io.BufferedReader, request: CutRequest, track: int | None, first: float
    ) -> Iterator[tuple[AudioDecoder, "_Buffer"]]:
        """Open a recording and seek or start decoding before the first range."""
        opened = functools.partial(
            open_audio,
            file,
            uri=redact_uri(request.uri),
            channels=self._channels,
            track=track or AUTO_TRACK,
        )
        if request.seek and first > _SKIP_S:
            with opened() as decoder:
                reached_s = decoder.seek(first)
                if reached_s is not None:
                    yield decoder, _Buffer(decoder.num_channels, round(reached_s * SAMPLE_RATE_HZ))
                    return
        with opened() as decoder:
            yield decoder, _Buffer(decoder.num_channels, 0)

    def _open(self, request: CutRequest) -> io.BufferedReader:
        file = open_binary(located(request.uri, request.etag), self._store)
        assert isinstance(file.raw, RangeFile)
        info = file.raw.info
        # A store may report neither; unknown values are not compared.
        sizes = (request.size_bytes, info.size_bytes)
        other_size = None not in sizes and sizes[0] != sizes[1]
        for expected, actual, same in (
            (*sizes, not other_size),
            (request.etag, info.etag, may_be_same(request.etag, info.etag)),
        ):
            if not same:
                file.close()
                raise DecodeError(
                    f"cutting {redact_uri(request.uri)}: found version {actual}, expected "
                    f"{expected}, which was transcribed; transcribe it again",
                    uri=redact_uri(request.uri),
                    kind=CHANGED,
                )
        return file

    def _clip(self, number: int, clip_range: ClipRange, held: "_Buffer") -> Clip:
        # A mixed recording has one row.
        row = clip_range.channel if self._channels == "each" and clip_range.channel else 0
        samples = held.between(row, clip_range.start_sample, clip_range.end_sample)
        data = encode_audio(samples, self._audio_format, bit_rate=self._bit_rate)
        return Clip(number=number, data=data, num_samples=len(samples))


def _by_track(item: tuple[int, ClipRange]) -> tuple[int, int, int]:
    number, clip_range = item
    return clip_range.track or 0, clip_range.start_sample, number


class _Buffer:
    """The most recent samples, from the earliest one that a range still needs."""

    def __init__(self, num_rows: int, start: int) -> None:
        self._samples: Float32[np.ndarray, "row sample"] = np.zeros((num_rows, 0), np.float32)
        self.end = start
        """Decoding position in the recording, in samples."""

    def append(self, chunk: Float32[np.ndarray, "row sample"], *, wanted_from: int) -> None:
        samples = np.concatenate([self._samples, chunk], axis=1)
        self.end += chunk.shape[1]
        forgotten = min(wanted_from, self.end) - (self.end - samples.shape[1])
        self._samples = samples[:, max(0, forgotten) :]

    def between(self, row: int, start: int, end: int) -> Float32[np.ndarray, " sample"]:
        begins = self.end - self._samples.shape[1]
        return self._samples[row, start - begins : end - begins]
