"""Decodes time spans of recordings to 16-bit mono at 16 kHz, or peaks; runs in a child process.

Native decoders may crash or hang; the server never imports this module.
"""

import io
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.audio.decode import AudioDecoder, open_audio
from corpus_asr.audio.resample import Channels
from corpus_asr.config.decoding import AUTO_TRACK
from corpus_asr.errors import DecodeError
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import SAMPLE_RATE_HZ
from corpus_asr.view.sound import FULL_PEAK, ExcerptRequest, PeaksRequest

# A player soon requests the next span: open decoders keep their positions.
OPEN_DECODERS = 4
# Decoders need some packets, and resamplers some samples, before their output is correct.
_LEAD_S = 2.0
# Shorter gaps are skipped by decoding; longer ones by seeking.
_SKIP_S = 60.0


class Excerpts:
    """Answers requests; a generator function for `IsolatedGenerator`."""

    def __init__(self, *, store: StoreOptions) -> None:
        self._store = store
        self._open: OrderedDict[tuple[type, str, int | None, int | None, bool], _ForwardDecoder] = (
            OrderedDict()
        )

    def __call__(self, request: ExcerptRequest) -> Iterator[bytes]:
        """Yield the requested audio, padded with silence, and empty pieces as heartbeats.

        For a `PeaksRequest`, yields nothing if its start cannot be reached without decoding more
        than allowed.
        """
        # Peaks and playback are at different positions, with separate decoders.
        key = (type(request), request.uri, request.channel, request.track, request.exact)
        tape = self._open.pop(key, None)
        if tape is None or not tape.reaches(request.start_sample, exact=request.exact):
            if tape is not None:
                tape.close()
            tape = self._tape(request)
        if isinstance(request, PeaksRequest):
            if request.start_sample - tape.position <= request.max_skipped_samples:
                yield from _peaks(tape, request)
        else:
            yield from tape.read(request.start_sample, request.num_samples)
        self._open[key] = tape
        while len(self._open) > OPEN_DECODERS:
            self._open.popitem(last=False)[1].close()

    def _tape(self, request: ExcerptRequest) -> "_ForwardDecoder":
        lead_s = request.start_sample / SAMPLE_RATE_HZ - _LEAD_S
        tape = self._opened(request)
        if not request.exact and lead_s > _SKIP_S:
            reached_s = tape.decoder.seek(lead_s)
            if reached_s is None:
                tape.close()
                return self._opened(request)
            tape.position = round(reached_s * SAMPLE_RATE_HZ)
        return tape

    def _opened(self, request: ExcerptRequest) -> "_ForwardDecoder":
        file = open_binary(request.uri, self._store)
        try:
            channels: Channels = "mix" if request.channel is None else request.channel
            uri, track = redact_uri(request.uri), request.track or AUTO_TRACK
            return _ForwardDecoder(file, open_audio(file, uri=uri, channels=channels, track=track))
        except BaseException:
            file.close()
            raise


class _ForwardDecoder:
    # An open recording that can only be decoded forward.
    def __init__(self, file: io.BufferedReader, decoder: AudioDecoder) -> None:
        self.decoder = decoder
        self.position = 0  # of the next sample
        self._file = file
        self._chunks: Iterator[Float32[np.ndarray, "row sample"]] | None = None
        self._rest: Float32[np.ndarray, " sample"] = np.zeros(0, dtype=np.float32)

    def close(self) -> None:
        self.decoder.close()
        self._file.close()

    def reaches(self, sample: int, *, exact: bool) -> bool:
        ahead = sample - self.position
        return ahead >= 0 and (exact or ahead <= _SKIP_S * SAMPLE_RATE_HZ)

    def read(self, start: int, count: int) -> Iterator[bytes]:
        for samples in self.samples(start, count):
            count -= len(samples)
            # An empty piece is a heartbeat.
            yield (np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
        yield bytes(2 * count)

    def samples(self, start: int, count: int) -> Iterator[Float32[np.ndarray, " sample"]]:
        # Yields nothing while decoding up to `start`, then up to `count` samples, fewer at the end.
        while self.position < start:
            skipped = self._next(start - self.position)
            if not len(skipped):
                break
            yield skipped[:0]
        while count > 0:
            samples = self._next(count)
            if not len(samples):
                return
            count -= len(samples)
            yield samples

    def _next(self, most: int) -> Float32[np.ndarray, " sample"]:
        if self._chunks is None:
            self._chunks = iter(self.decoder)
        if not len(self._rest):
            try:
                chunk = next(self._chunks, None)
            except DecodeError:
                if self.position == 0:
                    raise
                chunk = None  # damaged from here on: the transcript ends here, too
            if chunk is None:
                return self._rest
            self._rest = chunk[0]
        samples, self._rest = self._rest[:most], self._rest[most:]
        self.position += len(samples)
        return samples


def _peaks(tape: _ForwardDecoder, request: PeaksRequest) -> Iterator[bytes]:
    loudest = np.zeros(request.num_samples, dtype=np.float32)
    filled = 0
    for samples in tape.samples(request.start_sample, request.num_samples):
        loudest[filled : filled + len(samples)] = np.abs(samples)
        filled += len(samples)
        yield b""
    peaks = loudest.reshape(-1, request.samples_per_peak).max(axis=1)
    yield np.rint(np.clip(peaks, 0.0, 1.0) * FULL_PEAK).astype(np.uint8).tobytes()
