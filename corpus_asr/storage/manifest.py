"""Manifests: one set of columns for recordings, their parts, texts, languages and speakers.

Jobs list recordings from them, `evaluate` and `label` read references from them. A row is a
recording, or a segment of one:

    uri | path | audio_filepath     URI; relative to the manifest's folder
    text                            transcript or reference
    start_s | offset | start        seconds from the recording's start; default 0
    end_s | end                     or duration_s | duration; default: the recording's end
    language | lang                 a name or a code
    speaker | speaker_id
    segments                        segments of the recording: objects with these columns
    size_bytes | size               file size; with a duration, the expected size
    hotwords                        phrases to favor in the recording
    num_speakers                    number of speakers; or min_speakers, max_speakers

Names on one line are synonyms. Readers interpret other columns.
"""

import csv
import datetime
import difflib
import gzip
import io
import itertools
import json
import math
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from corpus_asr.config.decoding import Hotword, hotwords_from
from corpus_asr.errors import AlignmentError, ConfigError, FetchError, ItemError, encodable
from corpus_asr.failure_kinds import UNSUPPORTED_SCHEME
from corpus_asr.storage.parquet import UnfoldedError, bounded_rows, parquet_metadata
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions, open_binary
from corpus_asr.storage.stores.host_allowlist import may_name
from corpus_asr.storage.stores.members import plain_member
from corpus_asr.storage.stores.uri import (
    LOCAL,
    member_address,
    normalize,
    parent,
    redact_uri,
    resolve,
    scheme_of,
    told_bytes,
)
from corpus_asr.units import MEBIBYTE

if TYPE_CHECKING:  # imports pydantic
    from corpus_asr.config.extraction import SpeakerSettings

LOCATION = ("uri", "path", "audio_filepath")
TEXT = ("text",)
START = ("start_s", "offset", "start")
END = ("end_s", "end")
DURATION = ("duration_s", "duration")
LANGUAGE = ("language", "lang")
SPEAKER = ("speaker", "speaker_id")
SIZE = ("size_bytes", "size")
HOTWORDS = "hotwords"
_OF_ALL_PARTS = (*LANGUAGE, *SPEAKER, "set")
# Common names of the text column; suggested like a misspelling.
_TEXT_ELSEWHERE = ("transcript", "transcription", "sentence", "normalized_text", "utterance")
# Far above practical lengths; an untrusted manifest must not fill memory.
MAX_LINE_BYTES = 4 * MEBIBYTE
MAX_URI_CHARACTERS = 8_192
MAX_METADATA_CHARACTERS = 65_536
# For values of unbounded length and depth.
_REPR = reprlib.Repr()
_REPR.maxstring = 200
_MOST_S = 1e9  # thirty years
MAX_TOLD_BYTES = 1 << 50
# The end and the duration of a row may be rounded differently.
_SAME_END_S = 0.1
# For a recording of known duration but unknown size: 128 kbit/s.
EXPECTED_BYTES_PER_S = 16_000
_COMPRESSED = ".gz"
_BROKEN_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a manifest; columns are validated on access."""

    manifest: "_Manifest"
    place: str
    """Line number, or row number in a Parquet file."""
    uri: str
    """Normalized URI."""
    columns: Mapping[str, Any]
    """All columns but the URI."""

    def wrong(self, found: str, expected: str, advice: str = "correct the manifest") -> ConfigError:
        """Return the error for this row."""
        return self.manifest.wrong(self.place, found, expected, advice)

    def text(self) -> str | None:
        """Return the text; None if the row has none."""
        value = self._first(TEXT)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"text {_REPR.repr(value)}", "the spoken text, as a string")
        return value

    def needed_text(self) -> str:
        """Return the text, which may be empty; raise a `ConfigError` if it is missing."""
        text = self.text()
        if text is not None:
            return text
        expected = 'a column text with the transcript, "" for silence'
        if "text" in self.columns:
            raise self.wrong("no text", expected)
        column = _nearest(("text", *_TEXT_ELSEWHERE), self.columns)
        advice = f"rename {column} to text if that is it, or correct the manifest"
        problem = f"columns {', '.join(self.columns)}" if self.columns else "no other columns"
        raise self.wrong(problem, expected, advice if column else "correct the manifest")

    def start_s(self) -> float:
        """Return the start of the segment in seconds."""
        return self._seconds(START) or 0.0

    def end_s(self) -> float | None:
        """Return the end of the segment in seconds; None: the recording's end."""
        end_s, duration_s = self._seconds(END), self._seconds(DURATION)
        if duration_s is None:
            return end_s
        by_duration_s = self.start_s() + duration_s
        if end_s is not None and abs(end_s - by_duration_s) > _SAME_END_S:
            raise self.wrong(
                f"an end at {end_s:g} s and a duration that ends at {by_duration_s:g} s",
                "the same of both",
                "leave one of them out",
            )
        return by_duration_s if end_s is None else end_s

    def span(self) -> tuple[float, float | None]:
        """Return the segment's start and end in seconds."""
        start_s, end_s = self.start_s(), self.end_s()
        if end_s is not None and not start_s < end_s:
            raise self.wrong(f"the times {start_s:g} to {end_s:g} s", "an end after the start")
        return start_s, end_s

    def language(self) -> str | None:
        """Return the language, a name or code as written in the row."""
        value = self._first(LANGUAGE)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"language {_REPR.repr(value)}", "its name or code")
        return value or None

    def speaker(self) -> str | None:
        """Return the speaker; numbers are converted to text."""
        value = self._first(SPEAKER)
        if value is not None and not isinstance(value, str | int):
            raise self.wrong(f"speaker {_REPR.repr(value)}", "a name or a number")
        return None if value in (None, "") else str(value)

    def check_speakers(self, settings: "SpeakerSettings") -> None:
        """Raise an error if the row's numbers of speakers do not fit a job."""
        try:
            settings.of_recording(self.columns)
        except ValueError as error:
            expected = "whole numbers from 1 to 50, exact or bounds that fit together"
            raise self.wrong(str(error), expected) from error

    def parts(self) -> "list[Row]":
        """Return the row itself, or its `segments` as rows."""
        segments = self.nested("segments")
        if segments is None:
            return [self]
        common = {name: value for name, value in self.columns.items() if name in _OF_ALL_PARTS}
        return [replace(part, columns={**common, **part.columns}) for part in segments]

    def nested(self, column: str) -> "list[Row] | None":
        """Return the objects in a column as rows of the same recording; None without the column."""
        value = self.columns.get(column)
        if isinstance(value, str):  # in CSV
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise self.wrong(f"{column} that are not JSON ({error})", "a list") from error
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.wrong(f"{column} of type {type(value).__name__}", "a list of objects")
        return [
            Row(self.manifest, f"{self.place}, {number} of {column}", self.uri, entry)
            for number, entry in enumerate(value, 1)
        ]

    def metadata(self) -> str | None:
        """Return all columns but the URI as JSON text; None if there are none."""
        if not self.columns:
            return None
        try:
            text = metadata_text(self.columns)
        except RecursionError as error:
            advice = "remove unneeded columns"
            raise self.wrong("columns nested too deeply", "flat ones", advice) from error
        self.check_length("further columns", text, MAX_METADATA_CHARACTERS)
        return text

    def check_length(self, what: str, text: str, most: int) -> None:
        """Raise an error if a text is too long for a table or memory."""
        if len(text) > most:
            problem, advice = (
                f"{what} of {len(text)} characters",
                "remove unneeded columns",
            )
            raise self.wrong(problem, f"at most {most}", advice)

    def _first(self, names: Sequence[str]) -> Any:
        return self.manifest.value_of(self.columns, names, self.place)[1]

    def _seconds(self, names: Sequence[str]) -> float | None:
        name, value = self.manifest.value_of(self.columns, names, self.place)
        if value in (None, ""):
            return None
        try:
            seconds = math.inf if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            seconds = math.inf
        if not 0 <= seconds < _MOST_S:
            raise self.wrong(f"{name} {_REPR.repr(value)}", "seconds, 0 or more")
        return seconds


class NoRowsError(ConfigError):
    """A manifest has no rows."""


def read_manifest(
    uri: str,
    options: StoreOptions = DEFAULT_STORE,
    *,
    allow_local_files: bool = False,
) -> Iterator[Row]:
    """Yield the rows of a manifest in their order.

    Args:
        uri: of the manifest.
        options: how to access it.
        allow_local_files: whether a manifest in a remote store may name local files.

    Raises:
        NoRowsError: the manifest has no rows.
        ConfigError: unknown format, or a row without a URI.
        FetchError: the manifest cannot be read.
    """
    return _Manifest(normalize(uri), allow_local_files).rows(options)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedText:
    """The text to align with a recording."""

    text: str
    start_s: float = 0.0
    """Start of the text in the recording, in seconds."""
    end_s: float = math.inf
    """End of the text in seconds; infinite: the recording's end."""


def aligned_text(uri: str, metadata: str | None) -> AlignedText:
    """Return the text of a recording from its metadata, as stored in tables.

    Raises:
        AlignmentError: the text is missing or its times are invalid; fails this recording only.
    """
    columns = json.loads(metadata) if metadata else {}
    shown = redact_uri(uri)
    text = columns.get(TEXT[0])
    if not isinstance(text, str) or not text.strip():
        problem = f"text {_REPR.repr(text)}" if TEXT[0] in columns else "no column text"
        column = _nearest(("text", *_TEXT_ELSEWHERE), columns)
        hint = (
            f"rename {column} to text if that is it, or " if column and column not in TEXT else ""
        )
        archive = "" if member_address(uri) is None else ", or in .txt or .json of its name there"
        raise AlignmentError(
            f"aligning the text of {shown}: found {problem} in its manifest row{archive}, expected "
            f"its transcript; {hint}add it, or exclude the recording",
            kind="no_text",
            uri=shown,
        )
    try:
        start_s, end_s = Row(_Manifest("entry", False), shown, uri, columns).span()
    except ConfigError as error:
        raise AlignmentError(str(error), kind="no_text", uri=shown) from error
    end = math.inf if end_s is None else end_s
    return AlignedText(text=text, start_s=start_s, end_s=end)


def hotwords_of(uri: str, metadata: str | None) -> tuple[Hotword, ...]:
    """Return the hotwords of a recording from its metadata, as stored in tables.

    Raises:
        ItemError: they are invalid; fails this recording only.
    """
    if not metadata or HOTWORDS not in metadata:
        return ()
    try:
        return hotwords_from(json.loads(metadata).get(HOTWORDS))
    except ValueError as error:
        shown = redact_uri(uri)
        raise ItemError(
            f"reading the column {HOTWORDS} of {shown}: {error}; correct its manifest row",
            kind="bad_hotwords",
            uri=shown,
        ) from error


def expected_bytes(size_bytes: int | None, etag: str | None, metadata: str | None) -> int | None:
    """Return the size of a recording in bytes, estimated from its metadata if unknown; else None.

    Estimates order the work and predict its duration; they do not identify a version.
    """
    size_bytes = told_bytes(etag) if size_bytes is None else size_bytes
    if size_bytes is not None or not metadata:
        return size_bytes
    columns = json.loads(metadata)
    told = (_number(columns.get(name)) for name in SIZE)
    size = next((number for number in told if number is not None and number < MAX_TOLD_BYTES), None)
    if size is not None:
        return int(size)
    lengths_s = (_number(columns.get(name)) for name in DURATION)
    length_s = next(
        (seconds for seconds in lengths_s if seconds is not None and seconds < _MOST_S), None
    )
    return None if length_s is None else int(length_s * EXPECTED_BYTES_PER_S)


def _number(value: Any) -> float | None:
    # Another program's column of this name may hold anything.
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number > 0 else None


def metadata_text(columns: Mapping[str, Any]) -> str:
    """Return columns as the JSON text stored in tables."""
    return json.dumps(_json_safe(dict(columns)), ensure_ascii=False)


def is_manifest(uri: str) -> bool:
    """Return whether a name has the suffix of a format supported by `read_manifest`."""
    return uri.lower().endswith(tuple(_FORMATS))


_Raw = tuple[str, dict[str, Any]]  # position in the manifest, and columns


@dataclass(frozen=True, slots=True)
class _Manifest:
    uri: str
    allow_local_files: bool

    def unusable(self, place: str, found: str, expected: str, advice: str) -> ConfigError:
        at = f"{redact_uri(self.uri)}, {place}" if place else redact_uri(self.uri)
        return ConfigError(f"reading the manifest {at}: {found}, expected {expected}; {advice}")

    def wrong(self, place: str, found: str, expected: str, advice: str) -> ConfigError:
        return self.unusable(place, f"found {found}", expected, advice)

    def rows(self, options: StoreOptions) -> Iterator[Row]:
        reader = next((read for end, read in _FORMATS.items() if self._ends_in(end)), None)
        if reader is None:
            suffixes = f"a name that ends in {', '.join(_FORMATS)}"
            raise self.unusable("", "unknown format", suffixes, "rename or convert it")
        folder = parent(self.uri)
        empty = True
        with _open(self.uri, options) as file, self._unpacked(file) as content:
            for place, columns in reader(self, content):
                empty = False
                yield self._row(place, columns, folder)
        if empty:
            raise NoRowsError(
                f"reading the manifest {redact_uri(self.uri)}: found no rows, expected one per "
                "recording; check that it is complete"
            )

    @contextmanager
    def _unpacked(self, file: io.BufferedReader) -> Iterator[io.BufferedReader]:
        if not self._ends_in(_COMPRESSED):
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast("io.BufferedReader", unpacked)
        except _BROKEN_GZIP as error:
            problem = f"broken gzip ({error})"
            advice = "compress or copy it again"
            raise self.unusable("", f"found {problem}", "a whole .gz file", advice) from error

    def value_of(
        self, columns: Mapping[str, Any], names: Sequence[str], place: str
    ) -> tuple[str, Any]:
        """Return the name and value of the first present synonym; None without one."""
        present = [(name, columns[name]) for name in names if name in columns]
        # pandas writes missing values as NaN, which differs from itself.
        pairs = [pair for pair in present if pair[1] not in (None, "") and pair[1] == pair[1]]
        if any(value != pairs[0][1] for _, value in pairs):
            both = " and ".join(f"{name} {_REPR.repr(value)}" for name, value in pairs)
            expected = f"one of {', '.join(names)}"
            raise self.unusable(place, f"found {both}", expected, "remove the others")
        if pairs:
            return pairs[0]
        name, value = next(iter(present), (names[0], None))
        return name, value if value == "" else None  # an empty text is valid

    def _ends_in(self, suffix: str) -> bool:
        return self.uri.lower().endswith(suffix)

    def _row(self, place: str, columns: dict[str, Any], folder: str) -> Row:
        name, uri = self.value_of(columns, LOCATION, place)
        if not isinstance(uri, str) or not uri.strip() or "\0" in uri:
            raise self._no_uri(columns, name, place)
        extra_columns = {column: columns[column] for column in columns if column != name}
        row = Row(self, place, plain_member(resolve(uri, folder=folder)), extra_columns)
        row.check_length("a uri", uri, MAX_URI_CHARACTERS)
        self._check_trust(row)
        return row

    def _no_uri(self, columns: Mapping[str, Any], name: str, place: str) -> ConfigError:
        expected = f"a recording's URI in a column {', '.join(LOCATION[:-1])} or {LOCATION[-1]}"
        if name in columns:
            problem = f"found {name} {_REPR.repr(columns[name])}"
            return self.unusable(place, problem, expected, "correct the manifest")
        column = _nearest(LOCATION, columns)
        hint = f"rename {column} to uri if that is it, or " if column else ""
        problem = f"found columns {', '.join(map(str, columns))}"
        return self.unusable(place, problem, expected, f"{hint}correct the manifest")

    def check_columns(self, names: Iterable[str], place: str) -> None:
        columns = dict.fromkeys(names)
        if columns.keys().isdisjoint(LOCATION):
            raise self._no_uri(columns, LOCATION[0], place)

    def _check_trust(self, row: Row) -> None:
        if may_name(self.uri, row.uri, allow_local_files=self.allow_local_files):
            return
        if scheme_of(row.uri) == LOCAL:
            kind = "a file of this machine"
            advice = (
                "set source.allow_local_files to true if that is meant, or correct the manifest"
            )
        else:
            kind = "a store of another kind"
            advice = "keep a local copy of the manifest if that is meant, or correct it"
        expected = "URIs of its own store, of object stores or of http servers"
        raise row.wrong(f"{redact_uri(row.uri)}, {kind}", expected, advice)

    def broken(self, line: int, found: str, expected: str) -> ConfigError:
        return self.unusable(f"line {line}", f"found {found}", expected, "correct the line")


def _jsonl(manifest: _Manifest, file: io.BufferedReader) -> Iterator[_Raw]:
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise manifest.broken(number, "a longer line", f"at most {MAX_LINE_BYTES} bytes")
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            problem = "JSON nested too deep" if deep else f"no valid JSON ({error})"
            raise manifest.broken(number, problem, "a JSON object") from error
        if not isinstance(row, dict):
            problem = f"JSON of type {type(row).__name__}"
            raise manifest.broken(number, problem, "a JSON object, one a line")
        yield f"line {number}", row


def _csv(manifest: _Manifest, file: io.BufferedReader) -> Iterator[_Raw]:
    return _lines(manifest, file, strict=True)


def _tsv(manifest: _Manifest, file: io.BufferedReader) -> Iterator[_Raw]:
    # Quotes are ordinary characters there: https://www.iana.org/assignments/media-types/.
    return _lines(manifest, file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _lines(manifest: _Manifest, file: io.BufferedReader, **dialect: Any) -> Iterator[_Raw]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    size = [0]  # of the current row's lines
    lines = csv.reader(_bounded_lines(manifest, text, size), **dialect)
    try:
        header = next(lines, [])
        if header:
            manifest.check_columns(header, "header")
        for row in lines:
            size[0] = 0
            if not row:
                continue
            if len(row) != len(header):
                expected = f"{len(header)} as in the header"
                raise manifest.broken(lines.line_num, f"{len(row)} fields", expected)
            # An empty field is a missing value, but an empty text is valid.
            named = zip(header, row, strict=True)
            values = {name: value if value or name in TEXT else None for name, value in named}
            yield f"line {lines.line_num}", values
    except (csv.Error, UnicodeDecodeError) as error:
        raise manifest.broken(lines.line_num + 1, f"{error}", "a table in UTF-8") from error
    finally:
        text.detach()


def _bounded_lines(manifest: _Manifest, text: io.TextIOWrapper, size: list[int]) -> Iterator[str]:
    # A few kilobytes of gzip may hold a line, or quoted lines of one row, of gigabytes.
    for number in itertools.count(1):
        line = text.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        size[0] += len(line)
        if size[0] > MAX_LINE_BYTES:
            raise manifest.broken(number, "a longer line", f"at most {MAX_LINE_BYTES} characters")
        yield line


def _parquet(manifest: _Manifest, file: io.BufferedReader) -> Iterator[_Raw]:
    try:
        manifest.check_columns(parquet_metadata(file).schema.to_arrow_schema().names, "schema")
        for number, row in enumerate(bounded_rows(file, row_bytes=MAX_LINE_BYTES), 1):
            yield f"row {number}", row
    except UnfoldedError as error:
        advice = "remove unneeded columns"
        raise manifest.wrong(error.place, error.problem, error.expected, advice) from error
    except pa.ArrowException as error:
        problem = f"no readable Parquet ({error})"
        raise manifest.unusable("", problem, "a Parquet file", "write it again") from error


# NeMo's manifests are JSON lines although their names end in .json.
_FORMATS: dict[str, Callable[[_Manifest, io.BufferedReader], Iterator[_Raw]]] = {
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
}
_FORMATS |= {f"{suffix}{_COMPRESSED}": read for suffix, read in _FORMATS.items()}
_FORMATS[".parquet"] = _parquet


def _nearest(names: Sequence[str], columns: Iterable[str]) -> str | None:
    matches = (
        column
        for column in columns
        if difflib.get_close_matches(str(column).lower(), names, n=1, cutoff=0.6)
    )
    return next(matches, None)


def _open(manifest: str, options: StoreOptions) -> io.BufferedReader:
    try:
        return open_binary(manifest, options)
    except FetchError as error:
        if error.kind == UNSUPPORTED_SCHEME:  # fails the whole job, not one recording
            raise ConfigError(str(error)) from error
        raise


def _json_safe(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {encodable(str(name)): _json_safe(value[name]) for name in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date, too
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)
