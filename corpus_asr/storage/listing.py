"""Which recordings a source names: addresses, folders, globs or a manifest, as FILES batches."""

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
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError, FetchError
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
from corpus_asr.storage.stores.local import Page
from corpus_asr.storage.stores.uri import (
    LOCAL,
    normalise,
    parent,
    recording_id,
    redact_uri,
    resolve,
    scheme_of,
)
from corpus_asr.units import MEBIBYTE

BATCH_ROWS = 10_000


def list_files(source: SourceSettings) -> "FileListing":
    """List the recordings of a source.

    Returns:
        An iterator of FILES batches, of at most `BATCH_ROWS` rows, that counts as it goes.

    Raises:
        ConfigError: (while iterating) an address names nothing, or the manifest is unusable.
    """
    return FileListing(source)


class FileListing(Iterator[pa.RecordBatch]):
    """A listing in progress; the counts are final once it is exhausted."""

    def __init__(self, source: SourceSettings) -> None:
        self.num_files = 0
        self.num_excluded = 0
        """Left out because their name matches `source.exclude`."""
        self.num_duplicates = 0
        """Named again by another address or line."""
        self._source = source
        self._store = StoreOptions(endpoint_url=source.endpoint_url)
        self._seen = _Seen()
        self._excluded = _excluder(source.exclude)
        self._batches = self._generate()

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def _generate(self) -> Iterator[pa.RecordBatch]:
        waiting: list[pa.RecordBatch] = []
        num_waiting = 0
        for rows in self._found():
            ids = rows.column("recording_id").to_pylist()
            fresh = self._seen.add(np.array([int(name, 16) for name in ids], dtype=np.uint64))
            self.num_duplicates += len(fresh) - int(fresh.sum())
            waiting.append(rows.filter(pa.array(fresh)))
            num_waiting += waiting[-1].num_rows
            if num_waiting >= BATCH_ROWS:
                *full, rest = _merged(waiting)
                waiting, num_waiting = [rest], rest.num_rows
                yield from map(self._counted, full)
        yield from map(self._counted, _merged(waiting))

    def _counted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.num_files += batch.num_rows
        return batch

    def _found(self) -> Iterator[pa.RecordBatch]:
        source = self._source
        if source.manifest is not None:
            for uris, metadata in manifest_rows(
                source.manifest, self._store, allow_local_files=source.allow_local_files
            ):
                yield _rows(Page(uris, [None] * len(uris), [None] * len(uris)), metadata)
            return
        for uri in source.uri:
            for page in self._expand(uri):
                yield _rows(page, [None] * len(page.uris))

    def _expand(self, uri: str) -> Iterator[Page]:
        """Yield what one address names: an object, else a folder, else a glob's matches."""
        uri = normalise(uri)
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
        excluded = f", beside {num_excluded} left out by source.exclude" if num_excluded else ""
        return ConfigError(
            f"listing {redact_uri(uri)}: found nothing{excluded}, expected {looked_for}; correct "
            "source.uri" + (" or source.exclude" if num_excluded else _meant(uri))
        )


def _meant(uri: str) -> str:
    """Guess which address a wrong one was to be; empty without a guess."""
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
    """Yield the readings of an address that names no object, the literal one first."""
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
    """The identities listed so far: sorted arrays of doubling size, eight bytes each."""

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
    try:
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, FILES, strict=True)
        ]
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"listing {error.object!r}: the name is not valid UTF-8, expected text; rename the "
            "file or leave it out with source.exclude"
        ) from error
    return pa.record_batch(arrays, schema=FILES)


def _merged(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    table = pa.Table.from_batches(batches, FILES).combine_chunks()
    merged: list[pa.RecordBatch] = table.to_batches(BATCH_ROWS)
    return merged


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
    """Yield addresses in normal form, and metadata (JSON text or None), chunk by chunk.

    Args:
        manifest: its address.
        options: how its store is reached.
        allow_local_files: whether a manifest in a remote store may name files of this machine.
        uri_names: names of the column of addresses; the first that is there is taken.
        max_metadata_characters: what the other columns of a row may come to.

    Raises:
        ConfigError: unknown format, no `uri` column, a broken line, a line that is too large or
            names what a manifest from elsewhere must not (`trust.may_name`), or no rows at all.
    """
    manifest = normalise(manifest)
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = next((r for suffix, r in readers.items() if manifest.lower().endswith(suffix)), None)
    if reader is None:
        raise ConfigError(
            f"reading the manifest {redact_uri(manifest)}: unknown format, expected a name that "
            f"ends in {', '.join(readers)}; rename or convert it"
        )
    folder = parent(manifest)
    empty = True
    with _open(manifest, options) as file:
        chunk: Chunk = ([], [])
        for place, row in reader(file, manifest, uri_names):
            row = _with_uri(row, uri_names)
            uri, metadata = _entry(row, place, manifest, folder, max_metadata_characters)
            _check_trust(uri, place, manifest, allow_local_files)
            chunk[0].append(uri)
            chunk[1].append(metadata)
            if len(chunk[0]) == CHUNK_ROWS:
                empty = False
                yield chunk
                chunk = ([], [])
        if chunk[0]:
            yield chunk
        elif empty:
            raise ConfigError(
                f"reading the manifest {redact_uri(manifest)}: found no rows, expected one per "
                "recording; check that it was written completely"
            )


def _open(manifest: str, options: StoreOptions) -> io.BufferedReader:
    try:
        return open_binary(manifest, options)
    except FetchError as error:
        if error.kind == UNSUPPORTED_SCHEME:  # of the job as a whole, not of one recording
            raise ConfigError(str(error)) from error
        raise


def _with_uri(row: dict[str, Any], uri_names: Sequence[str]) -> dict[str, Any]:
    """Return a row with its address under the usual name."""
    name = next((name for name in uri_names if name in row), URI_COLUMN)
    if name == URI_COLUMN:
        return row
    return {URI_COLUMN if key == name else key: value for key, value in row.items()}


def _entry(
    row: dict[str, Any],
    place: str,
    manifest: str,
    folder: str,
    max_metadata_characters: int = MAX_METADATA_CHARACTERS,
) -> tuple[str, str | None]:
    uri = row.get(URI_COLUMN)
    if not isinstance(uri, str) or not uri.strip() or "\0" in uri:
        found = f"columns {', '.join(row)}" if URI_COLUMN not in row else f"uri {uri!r}"
        near = difflib.get_close_matches(URI_COLUMN, [str(name).lower() for name in row], n=1)
        hint = (
            f"rename {near[0]} to uri if that is it, or " if near and URI_COLUMN not in row else ""
        )
        raise ConfigError(
            f"reading the manifest {redact_uri(manifest)}, {place}: found {found}, expected a "
            f"column uri with the address of a recording; {hint}correct the manifest"
        )
    metadata = _metadata(row, place, manifest)
    for what, text, most in (
        ("a uri", uri, MAX_URI_CHARACTERS),
        ("further columns", metadata or "", max_metadata_characters),
    ):
        if len(text) > most:
            raise ConfigError(
                f"reading the manifest {redact_uri(manifest)}, {place}: found {what} of "
                f"{len(text)} characters, expected at most {most}; leave out what is not needed"
            )
    return resolve(uri, folder=folder), metadata


def _metadata(row: dict[str, Any], place: str, manifest: str) -> str | None:
    names = [name for name in sorted(row, key=str) if name != URI_COLUMN]
    try:
        rest = {str(name): _json_safe(row[name]) for name in names}
        return json.dumps(rest, ensure_ascii=False) if rest else None
    except RecursionError as error:
        raise ConfigError(
            f"reading the manifest {redact_uri(manifest)}, {place}: found columns nested too deep, "
            "expected plain ones; leave out what is not needed"
        ) from error


def _check_trust(uri: str, place: str, manifest: str, allow_local_files: bool) -> None:
    if may_name(manifest, uri, allow_local_files=allow_local_files):
        return
    if scheme_of(uri) == LOCAL:
        what = "a file of this machine"
        advice = "set source.allow_local_files to true if that is meant, or correct the manifest"
    else:
        what = "a store of another kind"
        advice = "keep a local copy of the manifest if that is meant, or correct it"
    raise ConfigError(
        f"reading the manifest {redact_uri(manifest)}, {place}: found {redact_uri(uri)}, {what}, "
        f"expected addresses of its own store, of object stores or of the web; {advice}"
    )


def _json_safe(value: Any) -> Any:
    """Return a value JSON can hold; what it has no form for becomes text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _json_safe(value[name]) for name in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date, too
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def _jsonl(
    file: io.BufferedReader, manifest: str, _: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise _broken(manifest, number, "a longer line", f"at most {MAX_LINE_BYTES} bytes")
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise _broken(manifest, number, f"no valid JSON ({error})", "a JSON object") from error
        except RecursionError as error:
            raise _broken(manifest, number, "JSON nested too deep", "a JSON object") from error
        if not isinstance(row, dict):
            raise _broken(manifest, number, f"JSON of type {type(row).__name__}", "a JSON object")
        yield f"line {number}", row


def _csv(
    file: io.BufferedReader, manifest: str, uri_names: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    lines = csv.reader(text, strict=True)
    try:
        header = next(lines, [])
        if header and not {*uri_names} & {*header}:
            _entry(dict.fromkeys(header), "header", manifest, "")  # raises, naming the columns
        for row in lines:
            if not row:
                continue
            if len(row) != len(header):
                found, expected = f"{len(row)} fields", f"{len(header)} as in the header"
                raise _broken(manifest, lines.line_num, found, expected)
            # An empty field is how CSV writes "unknown".
            named = zip(header, row, strict=True)
            yield f"line {lines.line_num}", {name: value or None for name, value in named}
    except (csv.Error, UnicodeDecodeError) as error:
        raise _broken(manifest, lines.line_num + 1, f"{error}", "UTF-8 CSV") from error
    finally:
        text.detach()


def _parquet(
    file: io.BufferedReader, manifest: str, uri_names: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        columns = parquet_columns(file)
        if not {*uri_names} & {*columns}:
            _entry(dict.fromkeys(columns), "schema", manifest, "")  # raises, naming the columns
        number = 0
        for batch in parquet_batches(file, batch_rows=CHUNK_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pa.ArrowException as error:
        raise ConfigError(
            f"reading the manifest {redact_uri(manifest)}: no readable Parquet ({error}), expected "
            "a Parquet file; write it again"
        ) from error


def _broken(manifest: str, number: int, found: str, expected: str) -> ConfigError:
    return ConfigError(
        f"reading the manifest {redact_uri(manifest)}, line {number}: found {found}, expected "
        f"{expected}; correct the line"
    )
