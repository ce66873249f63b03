"""From the tables of a run to files: one of each format per recording, or one for all.

Each file is written whole, and memory is bounded by one recording.
"""

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from corpus_asr.errors import ConfigError
from corpus_asr.export.cues import CueRules
from corpus_asr.export.formats import (
    SUBTITLES,
    TRANSCRIPTS,
    ExportFormat,
    WordStyle,
    file_suffix,
    file_texts,
)
from corpus_asr.export.names import Names
from corpus_asr.export.recordings import (
    SCORE_COLUMNS,
    TEXT_COLUMNS,
    WORD_COLUMNS,
    Recording,
    Selection,
    chosen,
    read_index,
    recordings,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import normalise, redact_uri, scheme_of, within

WRITERS = 8  # files are small: writing them is waiting for the store
SINGLE_NAME = "transcripts"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How recordings are written."""

    formats: tuple[ExportFormat, ...]
    single: bool = False
    """One file for all recordings, where the format has a form for that."""
    rules: CueRules = field(default_factory=CueRules)
    words: WordStyle = WordStyle.plain

    def __post_init__(self) -> None:
        subtitles = [name for name in self.formats if name in SUBTITLES]
        if self.single and subtitles:
            raise ConfigError(
                f"exporting all recordings to one file: found the format {subtitles[0]}, expected "
                f"one of {', '.join(TRANSCRIPTS)}: subtitles belong to one recording; leave out "
                "--single, or the format"
            )
        if self.words is WordStyle.karaoke and ExportFormat.srt in self.formats:
            raise ConfigError(
                "exporting srt: found --words karaoke, expected plain or highlight: times within "
                "a line are vtt's; choose one of them, or the format"
            )


@dataclass(slots=True, kw_only=True)
class ExportSummary:
    """Counts of an export."""

    to: str
    recordings: int = 0
    segments: int = 0
    files: int = 0
    partly_failed: int = 0
    """Exported recordings of which a part failed."""
    failed: int = 0
    """Recordings of which every part failed; not exported."""
    unfinished: int = 0
    """Unfinished recordings that were not exported."""


def export(
    store: OutputStore, to: str, options: ExportOptions, selection: Selection
) -> ExportSummary:
    """Write recordings of a run, finished or not, to files in a folder, replacing those there."""
    to = normalise(to).rstrip("/")
    if scheme_of(to) in ("http", "https"):
        raise ConfigError(
            f"exporting to {redact_uri(to)}: found a web address, expected a folder or an "
            "object store that can be written to; choose another --to"
        )
    index = read_index(store)
    table = index.recordings
    heard, complete = (table[name].to_numpy() for name in ("heard", "complete"))
    summary = ExportSummary(
        to=redact_uri(to),
        failed=int((~heard & complete).sum()),
        unfinished=0 if selection.partial else int((~complete).sum()),
    )
    columns = _columns(options.formats)
    rows = recordings(store, index, chosen(index, selection), selection, columns=columns)
    counted = _counted(rows, summary)
    if options.single:
        summary.files = _write_single(counted, to, options, store.options)
    else:
        names = Names(table, [file_suffix(each) for each in options.formats])
        summary.files = _write_each(counted, names, to, options, store.options)
    return summary


def _counted(
    rows: Iterator[tuple[int, Recording]], summary: ExportSummary
) -> Iterator[tuple[int, Recording]]:
    for position, recording in rows:
        summary.recordings += 1
        summary.segments += len(recording.segments)
        summary.partly_failed += recording.failed
        yield position, recording


def _columns(formats: Sequence[ExportFormat]) -> Sequence[str]:
    # Tokens and words are most of the bytes of a segment.
    if ExportFormat.json in formats:
        return SCORE_COLUMNS
    timed = {ExportFormat.whisperx, *SUBTITLES}
    return TEXT_COLUMNS if timed.isdisjoint(formats) else WORD_COLUMNS


def _write_each(
    rows: Iterator[tuple[int, Recording]],
    names: Names,
    to: str,
    options: ExportOptions,
    store_options: StoreOptions,
) -> int:
    files = 0
    waiting: deque[Future[None]] = deque()
    write = filesystem.write_atomic
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="export") as pool:
        try:
            for position, recording in rows:
                for suffix, text in file_texts(
                    recording, options.formats, rules=options.rules, words=options.words
                ):
                    address = within(to, names[position] + suffix)
                    data = text.encode("utf-8", "replace")
                    waiting.append(pool.submit(write, address, data, store_options))
                    files += 1
                    if len(waiting) > 2 * WRITERS:
                        waiting.popleft().result()
            for written in waiting:
                written.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return files


def _write_single(
    rows: Iterator[tuple[int, Recording]],
    to: str,
    options: ExportOptions,
    store_options: StoreOptions,
) -> int:
    kinds = {name: TRANSCRIPTS[name] for name in options.formats}
    # On this machine first: stores take objects whole.
    with tempfile.TemporaryDirectory(prefix="corpus-asr-export-") as folder, ExitStack() as opened:
        files: dict[ExportFormat, TextIO] = {}
        for name, kind in kinds.items():
            path = Path(folder) / name
            files[name] = opened.enter_context(path.open("w", encoding="utf-8", newline=""))
            files[name].write(kind.single_header)
        for _, recording in rows:
            for name, kind in kinds.items():
                files[name].write(kind.single_text(recording))
        for name, kind in kinds.items():
            files[name].close()
            address = within(to, SINGLE_NAME + kind.single_suffix)
            filesystem.upload(str(Path(folder) / name), address, store_options)
    return len(files)
