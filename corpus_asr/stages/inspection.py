"""Reads headers and sounds of files in parallel, in a child process that a broken file may end.

A header is read in small ranges without decoding, so that a sample of headers gives the hours of a
corpus before a run. A plan reads first bytes and digests before any recording has a row.
"""

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, as_completed, wait
from contextlib import closing
from typing import Any, NamedTuple

from corpus_asr.audio.probe import listed, read_header
from corpus_asr.config.decoding import ALL_TRACKS
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.errors import DecodeError, FetchError, ItemError
from corpus_asr.logs import event
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import Header
from corpus_asr.storage.stores.filesystem import (
    DEFAULT_STORE,
    READERS,
    File,
    StoreOptions,
    inspect_file,
    open_binary,
)
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import MEBIBYTE

_LOG = logging.getLogger(__name__)

INSPECTOR = "corpus_asr.stages.inspection:FileInspector"
# Of files that the child reads at a time, those without an answer are read alone after its death.
_FILES_AT_ONCE = 64
_SIGN_OF_LIFE_S = 1.0
# Demuxers go back to an index: this often the bytes of a file.
_MOST_PASSES = 4
# A header is a few kilobytes, at the start or at the end ...
_BLOCK_BYTES = 256 * 1024
# ... or an index of some megabytes; libav probes up to five of them.
_MOST_BYTES = 16 * MEBIBYTE


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
                    _LimitedFile(file, _MOST_BYTES),
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


class InspectionRequest(NamedTuple):
    """Arguments of `inspect_files`, with a number for each file."""

    function: str
    options: StoreOptions
    block_bytes: int | None
    files: Mapping[int, File]

    @property
    def uri(self) -> str:
        """URI of the first file, for messages."""
        return next(iter(self.files.values()))[0]


class IsolatedInspection:
    """Does as `inspect_files` in a child process; a file that ends or stalls it has no answer."""

    def __init__(self, *, timeout_s: float, inspector: str = INSPECTOR) -> None:
        self._child = IsolatedGenerator(inspector, init_kwargs={}, timeout_s=timeout_s)

    def __call__(
        self,
        function: str,
        files: Sequence[File],
        options: StoreOptions,
        block_bytes: int | None = None,
    ) -> list[Any]:
        """Return what `module:function` returns of each open file; None without an answer.

        Raises:
            EngineError: no child can be started.
        """
        answers: dict[int, Any] = {}
        numbered = list(enumerate(files))
        for start in range(0, len(files), _FILES_AT_ONCE):
            suspects = dict(numbered[start : start + _FILES_AT_ONCE])
            answers |= self._ask(InspectionRequest(function, options, block_bytes, suspects))
            left = suspects.keys() - answers.keys()
            for number in sorted(left) if len(left) > 1 else ():
                alone = {number: files[number]}
                answers |= self._ask(InspectionRequest(function, options, block_bytes, alone))
        return [answers.get(number) for number in range(len(files))]

    def _ask(self, request: InspectionRequest) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        try:
            with closing(self._child.run(request)) as messages:
                answers.update(messages)
        except (DecodeError, MemoryError) as error:
            event(_LOG, logging.WARNING, "files_not_read", error=str(error))
        return answers

    def close(self) -> None:
        """End the child process."""
        self._child.close()


class FileInspector:
    """Reads files in threads, in the child process of an `IsolatedInspection`."""

    def __init__(self) -> None:
        self._watched_files: list[_LimitedFile] = []

    def __call__(self, request: InspectionRequest) -> Iterator[tuple[int, Any]]:
        """Yield numbers with answers, and as long as bytes are read, a number of no file."""
        function, options, block_bytes, files = request
        num_bytes = 0
        self._watched_files.clear()
        with ThreadPoolExecutor(READERS, thread_name_prefix="inspect-files") as pool:
            waiting = {
                pool.submit(inspect_file, function, options, block_bytes, file, self._watch): number
                for number, file in files.items()
            }
            while waiting:
                done, _ = wait(waiting, _SIGN_OF_LIFE_S, FIRST_COMPLETED)
                yield from ((waiting.pop(future), future.result()) for future in done)
                before, num_bytes = num_bytes, sum(each.num_bytes for each in self._watched_files)
                if num_bytes > before:
                    yield -1, None

    def _watch(self, opened: io.BufferedReader) -> "_LimitedFile":
        most_bytes = _MOST_PASSES * opened.seek(0, os.SEEK_END) + _MOST_BYTES
        opened.seek(0)
        self._watched_files.append(watched := _LimitedFile(opened, most_bytes))
        return watched


class _LimitedFile:
    """A file that counts the bytes read, and limits them."""

    def __init__(self, file: io.BufferedReader, most_bytes: int) -> None:
        self._file, self._most_bytes = file, most_bytes
        self.num_bytes = 0

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._most_bytes - self.num_bytes))
        self.num_bytes += len(data)
        if not data and size and self.num_bytes == self._most_bytes:
            raise FetchError(
                f"reading a header: found none in {self._most_bytes:,} bytes; the recording's "
                "duration is known after decoding",
                kind="long_header",
            )
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)
