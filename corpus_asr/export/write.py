"""From the tables of a run to files: one of each format per recording, or one for all.

Of a run that aligned known texts files name the words that are not in the audio. Outcomes hold such
a text among the manifest's columns, the lengths of its words, and which of them each part says.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, TextIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.edits.corrected_segments import SeenSegments
from corpus_asr.edits.corrections import Corrections
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import (
    SCORE_COLUMNS,
    TEXT_COLUMNS,
    WORD_COLUMNS,
    Recording,
    Selection,
    open_selection,
    recordings,
)
from corpus_asr.export.speakers import refuse_speakers, speakers_of
from corpus_asr.formats.options import CueRules, ExportFormat, WordStyle
from corpus_asr.formats.subtitles import SUBTITLES, check_words
from corpus_asr.formats.writers import (
    SINGLE_FORMATS,
    TRANSCRIPTS,
    file_contents,
    file_suffix,
)
from corpus_asr.scratch import scratch_folder
from corpus_asr.segments import MissingWord
from corpus_asr.storage.manifest import aligned_text
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import normalize_writable, redact_uri, scheme_of, within
from corpus_asr.transcription.joined_text import missing_words, words_of_lengths

MAX_NAME_BYTES = 240  # file systems allow 255; the local store's temporary names add to it
_HASH_DIGITS = 16
# A tilde begins what is added here, so that no recording has a name that another is given.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|%~\u2028\u2029\ufeff\u202a-\u202e\u2066-\u2069]')
_AUDIO_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}")


def distinct_names(
    recordings: pa.Table, suffixes: Sequence[str], bases: Sequence[str] | None = None
) -> list[str]:
    """Return a distinct name for each recording's files, safe on any file system.

    Folders below the common one are kept. The name is the recording's without its suffix; with it
    if another recording has the same; with the recording's ID if necessary. `suffixes` are those of
    the exported files. With `bases`, a folder of each recording with a trailing slash, folders
    above these are kept only if names would collide.
    """
    uris, ids = (recordings[name].to_pylist() for name in ("uri", "recording_id"))
    room = MAX_NAME_BYTES - max(map(len, suffixes)) - _HASH_DIGITS - 1
    prefix = common_folder(recordings["uri"])

    def name_at(position: int) -> str:
        stage, uri = stages[position], uris[position]
        *folders, name = _steps(uri, prefix if stage or bases is None else bases[position])
        root, suffix = os.path.splitext(name)
        if stage < 2 and root and _AUDIO_SUFFIX.fullmatch(suffix):
            name = root
        mark = f"~{ids[position]}" if stage == 3 else ""
        return "/".join(
            [*(_safe(step, MAX_NAME_BYTES) for step in folders), _safe(name, room) + mark]
        )

    stages = [1 if bases is None else 0] * len(uris)
    names = list(map(name_at, range(len(uris))))
    # All colliding names are extended, so that names do not depend on the order of recordings.
    while True:
        files = Counter(_key(name + suffix) for name in names for suffix in suffixes)
        folders = {
            _key(name[: slash.start()]) for name in names for slash in re.finditer("/", name)
        }
        equal = folders | {key for key, count in files.items() if count > 1}
        longer = [
            position
            for position, name in enumerate(names)
            if stages[position] < 3 and any(_key(name + suffix) in equal for suffix in suffixes)
        ]
        if not longer:
            return names
        for position in longer:
            stages[position] += 1
            names[position] = name_at(position)


def common_folder(uris: pa.ChunkedArray) -> str:
    """Return the common prefix of all URIs up to a slash."""
    bounds = pc.min_max(uris).as_py()
    if bounds["min"] is None:
        return ""
    # The common prefix of the first and the last in order is common to all.
    same: str = os.path.commonprefix([bounds["min"], bounds["max"]])  # noqa: RUF071 - by character
    return same[: same.rfind("/") + 1]


def _steps(uri: str, prefix: str) -> list[str]:
    if scheme_of(uri) in ("http", "https"):
        # A query is not part of a file's name; the common folder may end within it.
        path = uri.partition("?")[0].rstrip("/")
        prefix = prefix if path.startswith(prefix) else prefix[: path.rfind("/") + 1]
        uri = path if path.startswith(prefix) else uri
    return uri.removeprefix(prefix).replace("://", "/").lstrip("/").split("/")


def _safe(step: str, max_bytes: int) -> str:
    safe = _UNSAFE.sub(lambda match: quote(match[0], safe="").replace("~", "%7E"), step)
    if not safe.strip(". ") or safe.startswith(".tmp-"):
        safe = safe.replace(".", "%2E").replace(" ", "%20") or "%"
    encoded = safe.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode("utf-8")
    mark = "~" + hashlib.blake2b(encoded, digest_size=_HASH_DIGITS // 2).hexdigest()
    return encoded[: max_bytes - len(mark)].decode("utf-8", "ignore") + mark


def _key(name: str) -> int:
    # Some file systems ignore case and Unicode normalization. A hash, as there may be millions.
    return hash(unicodedata.normalize("NFKC", name.casefold()).encode("utf-8", "replace"))


WRITERS = 8  # files are small: writing them is waiting for the store
SINGLE_NAME = "transcripts"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options for writing recordings."""

    formats: tuple[ExportFormat, ...]
    single: bool = False
    """One file for all recordings."""
    rules: CueRules = field(default_factory=CueRules)
    words: WordStyle = WordStyle.plain
    corrections: bool = True
    """Whether to write what people corrected in place of the model's text."""

    def __post_init__(self) -> None:
        other_formats = [name for name in self.formats if name not in SINGLE_FORMATS]
        if self.single and other_formats:
            raise ConfigError(
                f"exporting all recordings to one file: found the format {other_formats[0]}, "
                f"expected one of {', '.join(SINGLE_FORMATS)}; remove --single, or the format"
            )
        check_words(self.formats, self.words)


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
    """Recordings that failed as a whole; not exported."""
    unfinished: int = 0
    """Not exported."""
    corrected: int = 0
    """Exported segments that a person corrected or checked."""
    stale_corrections: int = 0
    """Corrections of exported recordings that do not fit the transcript and are not applied."""


def export(
    store: OutputStore, to: str, options: ExportOptions, selection: Selection
) -> ExportSummary:
    """Write recordings of a run, finished or not, to a folder, whose files are replaced."""
    to = normalize_writable(to, doing="exporting to", choose="--to").rstrip("/")
    with open_selection(store, selection) as tables:
        [(failed, unfinished)] = tables.rows(_OMITTED)
        summary = ExportSummary(
            to=redact_uri(to), failed=failed, unfinished=0 if selection.partial else unfinished
        )
        turns = speakers_of(store)
        corrections = Corrections.load(store) if options.corrections else None
        refuse_speakers(store, selection, turns, corrections)
        seen = SeenSegments(store, tables, corrections)
        rows = recordings(
            seen,
            tables,
            selection,
            columns=(*_columns(options.formats, spoken=turns is not None), "task", "model"),
            turns=turns,
            missing=missing_words_of(store, tables.table(_WHOLE)),
        )
        counted = _counted(rows, summary)
        if options.single:
            summary.files = _write_single(counted, to, options, store.options)
        else:
            # All recordings, so that names do not depend on the selection.
            named = tables.table(
                "select recording_id, uri from recordings order by uri, recording_id"
            )
            names = dict(
                zip(
                    named["recording_id"].to_pylist(),
                    distinct_names(named, [file_suffix(name) for name in options.formats]),
                    strict=True,
                )
            )
            summary.files = _write_each(counted, names, to, options, store.options)
        summary.stale_corrections = len(seen.unplaced)
    return summary


_OMITTED = """
select count(*) filter (complete and not succeeded), count(*) filter (not complete)
from recordings semi join meant using (recording_id)
"""
_WHOLE = "select recording_id from wanted where complete and not failed"


def _counted(rows: Iterator[Recording], summary: ExportSummary) -> Iterator[Recording]:
    for recording in rows:
        summary.recordings += 1
        summary.segments += len(recording.segments)
        summary.corrected += sum(segment.corrected for segment in recording.segments)
        summary.partly_failed += recording.failed
        yield recording


def _columns(formats: Sequence[ExportFormat], *, spoken: bool) -> Sequence[str]:
    # Tokens and words are most of the bytes of a segment.
    if ExportFormat.json in formats:
        return SCORE_COLUMNS
    timed = {ExportFormat.whisperx, ExportFormat.ctm, ExportFormat.eaf, *SUBTITLES}
    # Segments are split between speakers at word times.
    return WORD_COLUMNS if spoken or not timed.isdisjoint(formats) else TEXT_COLUMNS


def _write_each(
    rows: Iterator[Recording],
    names: Mapping[str, str],
    to: str,
    options: ExportOptions,
    store_options: StoreOptions,
) -> int:
    files = 0
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="export") as pool:
        try:
            for recording in rows:
                name = names[recording.recording_id]
                for suffix, data in file_contents(
                    recording, options.formats, rules=options.rules, words=options.words
                ):
                    address = within(to, name + suffix)
                    waiting.append(
                        pool.submit(filesystem.write_atomic, address, data, store_options)
                    )
                    files += 1
                    # Reading is faster than stores write: limits those held in memory.
                    if len(waiting) > 2 * WRITERS:
                        waiting.popleft().result()
            for written in waiting:
                written.result()
        # After an error, pending files are not written.
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return files


def _write_single(
    rows: Iterator[Recording],
    to: str,
    options: ExportOptions,
    store_options: StoreOptions,
) -> int:
    kinds = {name: TRANSCRIPTS[name] for name in options.formats}
    # Written locally first: stores take whole objects.
    with scratch_folder() as folder, ExitStack() as opened:
        files: dict[ExportFormat, TextIO] = {}
        for name, kind in kinds.items():
            path = folder / name
            files[name] = opened.enter_context(path.open("w", encoding="utf-8", newline=""))
            files[name].write(kind.single_header)
        for recording in rows:
            for name, kind in kinds.items():
                files[name].write(kind.single_text(recording))
        for name, kind in kinds.items():
            files[name].close()
            address = within(to, SINGLE_NAME + kind.single_suffix)
            filesystem.upload(str(folder / name), address, store_options)
    return len(files)


MissingWords = Mapping[str, tuple[MissingWord, ...]]
"""Words that are not in the audio, by `recording_id`."""

_Row = dict[str, Any]
_COLUMNS = ("uri", "metadata", "text_lengths", "text_spans")
_PARTS = f"""
select recording_id, {", ".join(_COLUMNS)} from parts semi join wanted using (recording_id)
order by recording_id, part
"""


def missing_words_of(store: OutputStore, ids: pa.Table) -> MissingWords | None:
    """Return the missing words of recordings; None if the run aligned no texts.

    Unknown for recordings without speech. Memory: only the missing words.

    Args:
        ids: recording_id of recordings with all parts committed and none failed.
    """
    config = store.read_json(CONFIG_NAME) or {}
    if not config.get("decoding", {}).get("align"):
        return None
    words_by_id: dict[str, tuple[MissingWord, ...]] = {}
    with RunTables(store, columns=(*VERSION_COLUMNS, *_COLUMNS)) as tables:
        tables.add("wanted", ids)
        rows = (row for batch in tables.batches(_PARTS) for row in batch.to_pylist())
        for recording_id, part_rows in groupby(rows, key=itemgetter("recording_id")):
            parts = list(part_rows)
            lengths = next((row["text_lengths"] for row in parts if row["text_lengths"]), None)
            if lengths is None:
                continue
            text = aligned_text(parts[0]["uri"], parts[0]["metadata"]).text
            ends_s = {
                at: span["end_s"]
                for part in parts
                for span in part["text_spans"] or ()
                for at in range(span["first"], span["stop"])
            }
            words_by_id[recording_id] = missing_words(words_of_lengths(text, lengths), ends_s)
    return words_by_id
