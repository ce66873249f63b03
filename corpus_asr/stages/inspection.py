"""Inspects files that have no row yet, in parallel, in a child process that one of them may end.

A plan asks whether first bytes are of a sound, and for digests of sounds, before any file is a
recording that could fail; an estimate asks for durations, which a sample of headers gives without
decoding. What is asked is a function, named by a string.
"""

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, NamedTuple

from corpus_asr.config.decoding import ALL_TRACKS
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.errors import DecodeError, FetchError
from corpus_asr.logs import event
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import Header
from corpus_asr.storage.stores.filesystem import (
    READERS,
    File,
    StoreOptions,
    inspect_file,
    known_answers,
)
from corpus_asr.units import MEBIBYTE

_LOG = logging.getLogger(__name__)

INSPECTOR = "corpus_asr.stages.inspection:FileInspector"
# Of files that the child reads at a time, those without an answer are read alone after its death.
_FILES_AT_ONCE = 64
_SIGN_OF_LIFE_S = 1.0
# Demuxers go back to an index: this often the bytes of a file.
_MOST_PASSES = 4
READ_DURATION = "corpus_asr.stages.inspection:read_duration"
# A header is mostly a few kilobytes, at the start or at the end.
HEADER_BLOCK_BYTES = 256 * 1024
# It may be an index of some megabytes; libav probes up to five of them.
_HEADER_BYTES = 16 * MEBIBYTE


class InspectionRequest(NamedTuple):
    """Arguments of `inspect_files`, with a number for each file, and those of the function."""

    function: str
    options: StoreOptions
    block_bytes: int | None
    files: Mapping[int, File]
    arguments: Mapping[str, Any] | None = None

    @property
    def uri(self) -> str:
        """URI of the first file, for messages."""
        return next((uri for uri, _ in self.files.values()), "")


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
            unanswered = suspects.keys() - answers.keys()
            for number in sorted(unanswered) if len(unanswered) > 1 else ():
                alone = {number: files[number]}
                answers |= self._ask(InspectionRequest(function, options, block_bytes, alone))
        return known_answers(answers.get(number) for number in range(len(files)))

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
        self._watched_files: list[LimitedFile] = []

    def __call__(self, request: InspectionRequest) -> Iterator[tuple[int, Any]]:
        """Yield numbers with answers, and as long as bytes are read, a number of no file."""
        files = request.files
        num_bytes = 0
        self._watched_files.clear()
        with ThreadPoolExecutor(READERS, thread_name_prefix="inspect-files") as pool:
            waiting = {
                pool.submit(
                    inspect_file, request.function, request.options, request.block_bytes, file,
                    self._watch, **(request.arguments or {}),
                ): number
                for number, file in files.items()
            }  # fmt: skip
            while waiting:
                done, _ = wait(waiting, _SIGN_OF_LIFE_S, FIRST_COMPLETED)
                yield from ((waiting.pop(future), future.result()) for future in done)
                last_bytes = num_bytes
                num_bytes = sum(file.num_bytes for file in self._watched_files)
                if num_bytes > last_bytes:
                    yield -1, None

    def _watch(self, opened: io.BufferedReader) -> "LimitedFile":
        most_bytes = _MOST_PASSES * opened.seek(0, os.SEEK_END) + _HEADER_BYTES
        opened.seek(0)
        self._watched_files.append(watched := LimitedFile(opened, most_bytes))
        return watched


class LimitedFile:
    """A file that counts the bytes read, and limits them."""

    def __init__(self, file: io.BufferedReader, most_bytes: int) -> None:
        self._file, self._most_bytes = file, most_bytes
        self.num_bytes = 0

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes; raise a FetchError at the limit."""
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
        """Set the position, which costs nothing."""
        return self._file.seek(offset, whence)


def read_duration(
    file: io.BufferedReader, *, uri: str, settings: ExtractSettings, languages: Sequence[str]
) -> Header:
    """Return what the header says of a recording with these settings."""
    # With decoders, which a parent does without.
    from corpus_asr.audio.probe import listed, read_header

    try:
        header = read_header(
            LimitedFile(file, _HEADER_BYTES), uri=uri, track=settings.track, languages=languages
        )
    except DecodeError as error:
        return Header(failure=error.kind)
    audio_s = header.duration_s
    if audio_s is not None:
        audio_s *= header.channels if settings.channels == "each" else 1
        audio_s *= len(header.tracks) if settings.track == ALL_TRACKS else 1
        audio_s = min(audio_s, settings.max_duration_h * 3600)
    tracks = None
    if len(header.tracks) > 1:
        tracks = listed(header.tracks)
        if settings.track != ALL_TRACKS:
            tracks += f"; takes {header.wanted[0].number}"
    return Header(audio_s=audio_s, tracks=tracks)
