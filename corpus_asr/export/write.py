"""From the tables of a run to files: one of each format per recording, or one for all.

In: an output folder, formats and a folder anywhere. Out: files in it, each put whole, and counts.
Memory is bounded by one recording, see `load.py`. Knows which function writes which format, and
nothing of how they look.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from corpus_asr.errors import ConfigError
from corpus_asr.export import transcripts
from corpus_asr.export.cues import CueRules, cues_of
from corpus_asr.export.index import read_index
from corpus_asr.export.load import (
    SCORE_COLUMNS,
    TEXT_COLUMNS,
    WORD_COLUMNS,
    Selection,
    chosen,
    recordings,
)
from corpus_asr.export.names import Names
from corpus_asr.export.recording import Recording
from corpus_asr.export.subtitles import WordStyle, srt_text, vtt_text
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import normalise, redact_uri, scheme_of, within

WRITERS = 8  # files are small: writing them is waiting for the store
SINGLE_NAME = "transcripts"


class ExportFormat(StrEnum):
    """What a recording becomes."""

    srt = "srt"
    vtt = "vtt"
    txt = "txt"
    tsv = "tsv"
    json = "json"
    whisperx = "whisperx"
    nemo = "nemo"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How recordings are written.

    Raises:
        ConfigError: what is asked for does not go together.
    """

    formats: tuple[ExportFormat, ...]
    single: bool = False
    """One file for all recordings, where the format has a form for that."""
    rules: CueRules = field(default_factory=CueRules)
    words: WordStyle = WordStyle.plain

    def __post_init__(self) -> None:
        subtitles = [name for name in self.formats if name in _SUBTITLES]
        if self.single and subtitles:
            raise ConfigError(
                f"exporting all recordings to one file: found the format {subtitles[0]}, expected "
                f"one of {', '.join(_SINGLE)}: subtitles belong to one recording; leave out "
                "--single, or the format"
            )
        if self.words is WordStyle.karaoke and ExportFormat.srt in self.formats:
            raise ConfigError(
                "exporting srt: found --words karaoke, expected plain or highlight: times within "
                "a line are vtt's; choose one of them, or the format"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What was exported, and what was not."""

    to: str
    recordings: int
    segments: int
    files: int
    partly_failed: int
    """Of those exported: recordings of which a part failed."""
    failed: int
    """Not exported: recordings of which every part failed."""
    unfinished: int
    """Not exported: recordings that are not done yet, unless asked for."""


_Writer = Callable[[Recording], str]


@dataclass(frozen=True, slots=True)
class _Single:
    header: str
    writer: _Writer
    suffix: str


_SUFFIXES = {
    ExportFormat.srt: ".srt",
    ExportFormat.vtt: ".vtt",
    ExportFormat.txt: ".txt",
    ExportFormat.tsv: ".tsv",
    ExportFormat.json: ".json",
    ExportFormat.whisperx: ".whisperx.json",
    ExportFormat.nemo: ".nemo.jsonl",
}
_SUBTITLES = (ExportFormat.srt, ExportFormat.vtt)
_PLAIN: Mapping[ExportFormat, _Writer] = {
    ExportFormat.txt: transcripts.txt_text,
    ExportFormat.tsv: transcripts.tsv_text,
    ExportFormat.json: transcripts.json_text,
    ExportFormat.whisperx: transcripts.whisperx_text,
    ExportFormat.nemo: transcripts.nemo_text,
}
_SINGLE = {
    ExportFormat.txt: _Single("", transcripts.txt_text, ".txt"),
    ExportFormat.tsv: _Single(transcripts.SINGLE_TSV_HEADER, transcripts.tsv_rows, ".tsv"),
    ExportFormat.json: _Single("", transcripts.json_row, ".jsonl"),
    ExportFormat.whisperx: _Single("", transcripts.whisperx_row, ".whisperx.jsonl"),
    ExportFormat.nemo: _Single("", transcripts.nemo_text, ".nemo.jsonl"),
}


def export(
    store: OutputStore, to: str, options: ExportOptions, selection: Selection
) -> ExportSummary:
    """Write the recordings of a run's output folder to another folder.

    Args:
        store: the output folder, of a run that is done or not.
        to: address of the folder for the files; those there already are replaced.
        options: how they are written.
        selection: which of them.

    Raises:
        ConfigError: there is no such output, or files cannot be written to such an address.
        CorpusAsrError: the tables do not hold what they say.
        FetchError: a store failed beyond its retries; what was written stays.
    """
    to = _writable(normalise(to).rstrip("/"))
    index = read_index(store)
    wanted = chosen(index, selection)
    found = (
        pair
        for pair in recordings(store, index, wanted, selection, columns=_columns(options.formats))
    )
    counts = _Counts()
    if options.single:
        files = _write_single(map(counts.seen, found), to, options, store.options)
    else:
        names = Names(index.recordings, [_SUFFIXES[each] for each in options.formats])
        files = _write_each(map(counts.seen, found), names, to, options, store.options)
    heard, complete = (index.recordings[name].to_numpy() for name in ("heard", "complete"))
    return ExportSummary(
        to=redact_uri(to),
        recordings=counts.recordings,
        segments=counts.segments,
        files=files,
        partly_failed=counts.partly_failed,
        failed=int((~heard & complete).sum()),
        unfinished=0 if selection.partial else int((~complete).sum()),
    )


@dataclass(slots=True)
class _Counts:
    recordings: int = 0
    segments: int = 0
    partly_failed: int = 0

    def seen(self, pair: tuple[int, Recording]) -> tuple[int, Recording]:
        self.recordings += 1
        self.segments += len(pair[1].segments)
        self.partly_failed += pair[1].failed
        return pair


def _writable(uri: str) -> str:
    if scheme_of(uri) in ("http", "https"):
        raise ConfigError(
            f"exporting to {redact_uri(uri)}: found a web address, expected a folder or an object "
            "store that can be written to; choose another --to"
        )
    return uri


def _columns(formats: Sequence[ExportFormat]) -> Sequence[str]:
    """Return what has to be read; tokens and words are most of the bytes."""
    if ExportFormat.json in formats:
        return SCORE_COLUMNS
    timed = {ExportFormat.whisperx, *_SUBTITLES}
    return WORD_COLUMNS if timed & set(formats) else TEXT_COLUMNS


def _texts(recording: Recording, options: ExportOptions) -> Iterator[tuple[str, str]]:
    """Yield suffix and text of each of a recording's files."""
    cues = None
    for each in options.formats:
        if each in _PLAIN:
            yield _SUFFIXES[each], _PLAIN[each](recording)
            continue
        cues = cues_of(recording, options.rules) if cues is None else cues
        write = srt_text if each is ExportFormat.srt else vtt_text
        yield _SUFFIXES[each], write(cues, options.words)


def _write_each(
    found: Iterator[tuple[int, Recording]],
    names: Names,
    to: str,
    options: ExportOptions,
    store_options: StoreOptions,
) -> int:
    files = 0
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="export") as pool:
        try:
            for position, recording in found:
                for suffix, text in _texts(recording, options):
                    address = within(to, names[position] + suffix)
                    data = text.encode("utf-8", "replace")
                    waiting.append(
                        pool.submit(filesystem.write_atomic, address, data, store_options)
                    )
                    files += 1
                    if len(waiting) > 2 * WRITERS:
                        waiting.popleft().result()
            for written in waiting:
                written.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return files


def _write_single(
    found: Iterator[tuple[int, Recording]],
    to: str,
    options: ExportOptions,
    store_options: StoreOptions,
) -> int:
    """Write a file per format, here first: stores take objects whole."""
    with tempfile.TemporaryDirectory(prefix="corpus-asr-export-") as folder, ExitStack() as opened:
        files: dict[ExportFormat, TextIO] = {}
        for each in options.formats:
            path = Path(folder) / each
            files[each] = opened.enter_context(path.open("w", encoding="utf-8", newline=""))
            files[each].write(_SINGLE[each].header)
        for _, recording in found:
            for each, file in files.items():
                file.write(_SINGLE[each].writer(recording))
        for each, file in files.items():
            file.close()
            address = within(to, SINGLE_NAME + _SINGLE[each].suffix)
            filesystem.upload(str(Path(folder) / each), address, store_options)
    return len(files)
