"""Which recordings a source names: URIs, folders, globs or a manifest, as FILES batches."""

import csv
import datetime
import difflib
import fnmatch
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError, FetchError, encodable
from corpus_asr.failure_kinds import ACCESS_DENIED, NOT_FOUND, UNSUPPORTED_SCHEME
from corpus_asr.schemas import FILES
from corpus_asr.storage.run_state.tables import parquet_batches, parquet_columns
from corpus_asr.storage.stores.filesystem import (
    DEFAULT_STORE,
    StoreOptions,
    describe,
    list_pages,
    open_binary,
)
from corpus_asr.storage.stores.host_allowlist import may_name
from corpus_asr.storage.stores.store import Page
from corpus_asr.storage.stores.uri import (
    LOCAL,
    normalize,
    parent,
    recording_id,
    redact_uri,
    resolve,
    scheme_of,
)
from corpus_asr.units import MEBIBYTE


class FileListing:
    """FILES batches of a page or a chunk each; the counts are final once it is exhausted."""

    def __init__(self, source: SourceSettings) -> None:
        self.num_excluded = 0
        """Left out because their name matches `source.exclude`."""
        self.num_duplicates = 0
        """Named again by another address or line."""
        self._source = source
        self._store = StoreOptions(endpoint_url=source.endpoint_url)
        self._excluded = _excluder(source.exclude)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        seen = _Seen()
        for rows in self._named():
            ids = rows.column("recording_id").to_pylist()
            fresh = seen.add(np.array([int(name, 16) for name in ids], dtype=np.uint64))
            self.num_duplicates += len(fresh) - int(fresh.sum())
            if fresh.any():
                yield rows.filter(pa.array(fresh))

    def _named(self) -> Iterator[pa.RecordBatch]:
        source = self._source
        if source.manifest is not None:
            local = source.allow_local_files
            for uris, texts in manifest_rows(source.manifest, self._store, allow_local_files=local):
                yield _rows(Page(uris, [None] * len(uris), [None] * len(uris)), texts)
            return
        for uri in source.uri:
            for page in self._expand(uri):
                yield _rows(page, [None] * len(page.uris))

    def _expand(self, uri: str) -> Iterator[Page]:
        # What one address names: an object, else what is in a folder, else a glob's matches.
        uri = normalize(uri)
        denied: FetchError | None = None
        if not uri.endswith("/"):
            try:
                info = describe(uri, self._store)
            except FetchError as error:
                # Stores hide missing names from those who may not list: the listing decides.
                if error.kind not in (NOT_FOUND, ACCESS_DENIED):
                    raise
                denied = error if error.kind == ACCESS_DENIED else None
            else:
                yield Page([uri], [info.size_bytes], [info.etag])
                return
        excluded_before = self.num_excluded
        found = False
        for pattern in _patterns(uri):
            for page in self._matches(pattern):
                found = found or bool(page.uris)
                yield page
            if found:
                return
        if denied is not None:
            raise denied
        raise self._nothing(uri, self.num_excluded - excluded_before)

    def _matches(self, pattern: "Pattern") -> Iterator[Page]:
        pages = list_pages(pattern.prefix, self._store, depth=pattern.depth)
        for page in pages:
            kept = []
            for index, uri in enumerate(page.uris):
                if pattern.regex is not None and not pattern.regex.fullmatch(uri):
                    continue
                if self._excluded is not None and self._excluded.match(uri.rpartition("/")[2]):
                    self.num_excluded += 1
                else:
                    kept.append(index)
            whole = len(kept) == len(page.uris)
            yield page if whole else Page._make([column[at] for at in kept] for column in page)

    def _nothing(self, uri: str, num_excluded: int) -> ConfigError:
        if scheme_of(uri) in ("http", "https"):
            looked_for = "a file (the web has no folders or globs)"
        elif _first_magic(uri) is not None:
            looked_for = "a file, a folder with files below it, or files that match the glob"
        else:
            looked_for = "a file, or a folder with files below it"
        excluded = f", and {num_excluded} excluded by source.exclude" if num_excluded else ""
        return ConfigError(
            f"listing {redact_uri(uri)}: found nothing{excluded}, expected {looked_for}; correct "
            "source.uri" + (" or source.exclude" if num_excluded else _meant(uri))
        )


def _meant(uri: str) -> str:
    if scheme_of(uri) != LOCAL:
        return ""
    # A slash too few makes the address of a store a path below the current folder.
    store = re.search(r"/([a-z0-9]+):/([^/].*)", uri)
    if store:
        return f": did you mean {store[1]}://{store[2]}?"
    path = uri.rstrip("/")
    while not os.path.isdir(os.path.dirname(path)):
        path = os.path.dirname(path)
    folder, name = os.path.split(path)
    others = [other for other in os.listdir(folder) if other != name]
    near = difflib.get_close_matches(name, others, n=1)
    return f": did you mean {os.path.join(folder, near[0])}?" if near else ""


class Pattern(NamedTuple):
    """What to list, and which of it to keep."""

    prefix: str
    depth: int | None
    regex: re.Pattern[str] | None


def _patterns(uri: str) -> Iterator[Pattern]:
    # The literal reading first: a folder's name may hold what else makes a glob.
    if scheme_of(uri) in ("http", "https"):
        return
    yield Pattern(uri.rstrip("/") + "/", None, None)
    first = _first_magic(uri)
    if first is None:
        return
    rest = uri[uri.rfind("/", 0, first) + 1 :]
    depth = None if "**" in rest.split("/") else rest.count("/") + 1
    yield Pattern(uri[:first], depth, re.compile(glob_regex(uri), re.DOTALL))


def _first_magic(uri: str) -> int | None:
    start = 0 if scheme_of(uri) == LOCAL else uri.index("://") + 3
    match = re.compile(r"[*?\[]").search(uri, start)
    return match.start() if match else None


def glob_regex(pattern: str) -> str:
    """Translate a glob: `*`, `?` and `[..]` stay within a folder, a step `**` crosses them."""
    steps = pattern.split("/")
    out = ""
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        if step == "**":
            out += ".+" if last else "(?:[^/]+/)*"
        else:
            out += _step_regex(step) + ("" if last else "/")
    return out


def _step_regex(step: str) -> str:
    out, position = "", 0
    while position < len(step):
        character = step[position]
        end = step.find("]", position + 2) if character == "[" else -1
        if character == "*":
            out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif end > 0:
            inner = step[position + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            inner = inner.replace("&&", "&\\&").replace("||", "|\\|").replace("~~", "~\\~")
            out += "[" + ("^/" + inner[1:] if inner.startswith(("!", "^")) else inner) + "]"
            position = end
        else:
            out += re.escape(character)
        position += 1
    return out


def _excluder(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    if not patterns:
        return None
    return re.compile("|".join(map(fnmatch.translate, patterns)), re.IGNORECASE)


class _Seen:
    # Sorted arrays of doubling size, eight bytes an identity; a Python set takes ten times as many.

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Remember identities; return which of them are new."""
        unique, first = np.unique(ids, return_index=True)
        fresh = np.zeros(len(ids), dtype=bool)
        fresh[first] = True
        known = np.zeros(len(unique), dtype=bool)
        for block in self._sorted:
            places = np.minimum(np.searchsorted(block, unique), len(block) - 1)
            known |= block[places] == unique
        fresh[first[known]] = False
        added = unique[~known]
        while self._sorted and len(self._sorted[-1]) <= len(added):
            added = np.union1d(self._sorted.pop(), added)
        if len(added):
            self._sorted.append(added)
        return fresh


def _rows(page: Page, metadata: list[str | None]) -> pa.RecordBatch:
    columns = [[recording_id(uri) for uri in page.uris], *page, metadata]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, FILES, strict=True)]
    return pa.record_batch(arrays, schema=FILES)


# Whether the files of a manifest exist is not asked here: a million requests would precede the
# first transcript, and a missing file is that recording's failure.
CHUNK_ROWS = 5_000
# Far above what is in use; a manifest may come from elsewhere and must not fill the memory.
MAX_LINE_BYTES = 4 * MEBIBYTE
MAX_URI_CHARACTERS = 8_192
MAX_METADATA_CHARACTERS = 65_536
URI_COLUMN = "uri"
Chunk = tuple[list[str], list[str | None]]


def manifest_rows(
    manifest: str,
    options: StoreOptions = DEFAULT_STORE,
    *,
    allow_local_files: bool = False,
    uri_names: Sequence[str] = (URI_COLUMN,),
    max_metadata_characters: int = MAX_METADATA_CHARACTERS,
) -> Iterator[Chunk]:
    """Yield URIs in normal form, and metadata (JSON text or None), chunk by chunk.

    The column of URIs is the first of `uri_names` that is there. With `allow_local_files`, a
    manifest in a remote store may name files of this machine.
    """
    reading = _Manifest(normalize(manifest), allow_local_files, uri_names, max_metadata_characters)
    return reading.chunks(options)


Row = tuple[str, dict[str, Any]]
"""Where it stands in the manifest, and its columns."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    uri: str
    allow_local_files: bool
    uri_names: Sequence[str]
    max_metadata_characters: int

    def unusable(self, place: str, found: str, expected: str, advice: str) -> ConfigError:
        at = f"{redact_uri(self.uri)}, {place}" if place else redact_uri(self.uri)
        return ConfigError(f"reading the manifest {at}: {found}, expected {expected}; {advice}")

    def chunks(self, options: StoreOptions) -> Iterator[Chunk]:
        readers = {".jsonl": self._jsonl, ".csv": self._csv, ".parquet": self._parquet}
        reader = next((readers[end] for end in readers if self.uri.lower().endswith(end)), None)
        if reader is None:
            suffixes = f"a name that ends in {', '.join(readers)}"
            raise self.unusable("", "unknown format", suffixes, "rename or convert it")
        folder = parent(self.uri)
        empty = True
        with _open(self.uri, options) as file:
            entries = (self._entry(row, place, folder) for place, row in reader(file))
            while chunk := list(itertools.islice(entries, CHUNK_ROWS)):
                empty = False
                yield [uri for uri, _ in chunk], [metadata for _, metadata in chunk]
        if empty:
            raise self.unusable(
                "", "found no rows", "one per recording", "check that it was written completely"
            )

    def _entry(self, row: dict[str, Any], place: str, folder: str) -> tuple[str, str | None]:
        column = next((name for name in self.uri_names if name in row), URI_COLUMN)
        uri = row.get(column)
        if not isinstance(uri, str) or not uri.strip() or "\0" in uri:
            raise self._no_uri(row, column, place)
        metadata = self._metadata({name: row[name] for name in row if name != column}, place)
        for what, text, most in (
            ("a uri", uri, MAX_URI_CHARACTERS),
            ("further columns", metadata or "", self.max_metadata_characters),
        ):
            if len(text) > most:
                found = f"found {what} of {len(text)} characters"
                advice = "leave out what is not needed"
                raise self.unusable(place, found, f"at most {most}", advice)
        uri = resolve(uri, folder=folder)
        self._check_trust(uri, place)
        return uri, metadata

    def _no_uri(self, row: Mapping[str, Any], column: str, place: str) -> ConfigError:
        expected = "a column uri with the URI of a recording"
        if column in row:
            return self.unusable(
                place, f"found uri {row[column]!r}", expected, "correct the manifest"
            )
        near = difflib.get_close_matches(URI_COLUMN, [str(name).lower() for name in row], n=1)
        hint = f"rename {near[0]} to uri if that is it, or " if near else ""
        found = f"found columns {', '.join(row)}"
        return self.unusable(place, found, expected, f"{hint}correct the manifest")

    def _check_columns(self, names: Iterable[str], place: str) -> None:
        columns = dict.fromkeys(names)
        if not columns.keys() & set(self.uri_names):
            raise self._no_uri(columns, URI_COLUMN, place)

    def _metadata(self, row: dict[str, Any], place: str) -> str | None:
        try:
            return json.dumps(_json_safe(row), ensure_ascii=False) if row else None
        except RecursionError as error:
            found, advice = "found columns nested too deep", "leave out what is not needed"
            raise self.unusable(place, found, "plain ones", advice) from error

    def _check_trust(self, uri: str, place: str) -> None:
        if may_name(self.uri, uri, allow_local_files=self.allow_local_files):
            return
        if scheme_of(uri) == LOCAL:
            what = "a file of this machine"
            advice = (
                "set source.allow_local_files to true if that is meant, or correct the manifest"
            )
        else:
            what = "a store of another kind"
            advice = "keep a local copy of the manifest if that is meant, or correct it"
        expected = "URIs of its own store, of object stores or of http servers"
        raise self.unusable(place, f"found {redact_uri(uri)}, {what}", expected, advice)

    def _broken(self, line: int, found: str, expected: str) -> ConfigError:
        return self.unusable(f"line {line}", f"found {found}", expected, "correct the line")

    def _jsonl(self, file: io.BufferedReader) -> Iterator[Row]:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise self._broken(number, "a longer line", f"at most {MAX_LINE_BYTES} bytes")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                deep = isinstance(error, RecursionError)
                found = "JSON nested too deep" if deep else f"no valid JSON ({error})"
                raise self._broken(number, found, "a JSON object") from error
            if not isinstance(row, dict):
                raise self._broken(number, f"JSON of type {type(row).__name__}", "a JSON object")
            yield f"line {number}", row

    def _csv(self, file: io.BufferedReader) -> Iterator[Row]:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        lines = csv.reader(text, strict=True)
        try:
            header = next(lines, [])
            if header:
                self._check_columns(header, "header")
            for row in lines:
                if not row:
                    continue
                if len(row) != len(header):
                    expected = f"{len(header)} as in the header"
                    raise self._broken(lines.line_num, f"{len(row)} fields", expected)
                # An empty field is how CSV writes "unknown".
                named = zip(header, row, strict=True)
                yield f"line {lines.line_num}", {name: value or None for name, value in named}
        except (csv.Error, UnicodeDecodeError) as error:
            raise self._broken(lines.line_num + 1, f"{error}", "UTF-8 CSV") from error
        finally:
            text.detach()

    def _parquet(self, file: io.BufferedReader) -> Iterator[Row]:
        try:
            self._check_columns(parquet_columns(file), "schema")
            batches = parquet_batches(file, batch_rows=CHUNK_ROWS)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"row {number}", row
        except pa.ArrowException as error:
            found = f"no readable Parquet ({error})"
            raise self.unusable("", found, "a Parquet file", "write it again") from error


def _open(manifest: str, options: StoreOptions) -> io.BufferedReader:
    try:
        return open_binary(manifest, options)
    except FetchError as error:
        if error.kind == UNSUPPORTED_SCHEME:  # of the job as a whole, not of one recording
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
