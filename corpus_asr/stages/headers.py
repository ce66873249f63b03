"""Reads durations of recordings from their headers, in parallel, in a child process.

A header is read in small ranges without decoding, so that a sample of headers gives the hours of a
corpus before a run.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from corpus_asr.audio.probe import listed, read_header
from corpus_asr.config.decoding import ALL_TRACKS
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.errors import FetchError, ItemError
from corpus_asr.stages.inspection import HEADER_BYTES, LimitedFile
from corpus_asr.stages.messages import Header
from corpus_asr.storage.stores.filesystem import (
    DEFAULT_STORE,
    READERS,
    StoreOptions,
    open_binary,
)
from corpus_asr.storage.stores.uri import redact_uri

# A header is a few kilobytes, at the start or at the end.
_BLOCK_BYTES = 256 * 1024


class HeaderReader:
    """Reads headers of recordings in threads."""

    def __init__(
        self,
        *,
        settings: ExtractSettings,
        store: StoreOptions = DEFAULT_STORE,
        languages: Sequence[str] = (),
    ) -> None:
        self._settings, self._store, self._languages = settings, store, languages

    def __call__(self, uris: Sequence[str]) -> Iterator[Header]:
        """Yield headers as they are read, in any order."""
        pool = ThreadPoolExecutor(READERS, thread_name_prefix="header")
        try:
            for future in as_completed(
                [pool.submit(self._read, *numbered_uri) for numbered_uri in enumerate(uris)]
            ):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, index: int, uri: str) -> Header:
        try:
            with open_binary(uri, self._store, block_bytes=_BLOCK_BYTES) as file:
                header = read_header(
                    LimitedFile(file, HEADER_BYTES),
                    uri=redact_uri(uri),
                    track=self._settings.track,
                    languages=self._languages,
                )
        except FetchError as error:
            return Header(index=index, failure=error.kind, is_known=False)
        except ItemError as error:
            return Header(index=index, failure=error.kind)
        audio_s, settings = header.duration_s, self._settings
        if audio_s is not None:
            audio_s *= header.channels if settings.channels == "each" else 1
            audio_s *= len(header.tracks) if settings.track == ALL_TRACKS else 1
            audio_s = min(audio_s, settings.max_duration_h * 3600)
        tracks = None
        if len(header.tracks) > 1:
            tracks = listed(header.tracks)
            if settings.track != ALL_TRACKS:
                tracks += f"; takes {header.wanted[0].number}"
        return Header(index=index, audio_s=audio_s, tracks=tracks)
