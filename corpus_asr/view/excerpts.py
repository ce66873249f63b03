"""Decodes time spans of recordings to 16-bit mono at 16 kHz; runs in a child process.

Native decoders may crash or hang; the server never imports this module.
"""

import io
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.audio.decode import AudioDecoder, open_audio
from corpus_asr.audio.frames import Channels
from corpus_asr.config.decoding import AUTO_TRACK
from corpus_asr.errors import DecodeError
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import SAMPLE_RATE_HZ
from corpus_asr.view.sound import ExcerptRequest

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
        self._open: OrderedDict[tuple[Any, ...], _ForwardDecoder] = OrderedDict()

    def __call__(self, request: ExcerptRequest) -> Iterator[bytes]:
        """Yield the requested audio, padded with silence, and empty pieces as heartbeats."""
        key = (request.is_clip, request.uri, request.channel, request.track, request.exact)
        tape = self._open.pop(key, None)
        if tape is None or not tape.reaches(request.start_sample, exact=request.exact):
            if tape is not None:
                tape.close()
            tape = self._tape(request)
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
        # Empty pieces while decoding up to `start` are heartbeats; silence comes after the end.
        while self.position < start and len(self._next(start - self.position)):
            yield b""
        while count > 0 and len(samples := self._next(count)):
            count -= len(samples)
            yield (np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
        yield bytes(2 * count)

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
