"""A manifest in (.jsonl, .csv or .parquet with a `uri` column), addresses and metadata out.

Relative addresses start at the manifest's folder; all other columns become one JSON object per
row. Read as a stream. Whether the files exist is not asked here: a million requests would precede
the first transcript, and a missing file is that recording's failure.
"""

import csv
import datetime
import difflib
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.storage.run_state.tables import parquet_batches, parquet_columns
from corpus_asr.storage.stores.filesystem import open_binary
from corpus_asr.storage.stores.host_allowlist import may_name
from corpus_asr.storage.stores.retry import UNSUPPORTED_SCHEME
from corpus_asr.storage.stores.uri import LOCAL, normalise, parent, resolve, scheme_of, shown
from corpus_asr.units import MEBIBYTE

CHUNK_ROWS = 5_000
# Far above what is in use; a manifest may come from elsewhere and must not fill the memory.
MAX_LINE_BYTES = 4 * MEBIBYTE
MAX_URI_CHARACTERS = 8_192
MAX_METADATA_CHARACTERS = 65_536
URI_COLUMN = "uri"
Chunk = tuple[list[str], list[str | None]]


def manifest_rows(
    manifest: str,
    *,
    endpoint_url: str | None = None,
    allow_local_files: bool = False,
    uri_names: Sequence[str] = (URI_COLUMN,),
    max_metadata_characters: int = MAX_METADATA_CHARACTERS,
) -> Iterator[Chunk]:
    """Yield addresses in normal form, and metadata (JSON text or None), chunk by chunk.

    Args:
        manifest: its address.
        endpoint_url: the S3 endpoint, where it is not Amazon's.
        allow_local_files: whether a manifest in a remote store may name files of this machine.
        uri_names: names of the column of addresses; the first that is there is taken.
        max_metadata_characters: what the other columns of a row may come to.

    Raises:
        ConfigError: unknown format, no `uri` column, a broken line, a line that is too large or
            names what a manifest from elsewhere must not (`trust.may_name`), or no rows at all.
        FetchError: the manifest cannot be read.
    """
    manifest = normalise(manifest)
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = next((r for suffix, r in readers.items() if manifest.lower().endswith(suffix)), None)
    if reader is None:
        raise ConfigError(
            f"reading the manifest {shown(manifest)}: unknown format, expected a name that ends "
            f"in {', '.join(readers)}; rename or convert it"
        )
    folder = parent(manifest)
    empty = True
    with _open(manifest, endpoint_url) as file:
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
                f"reading the manifest {shown(manifest)}: found no rows, expected one per "
                "recording; check that it was written completely"
            )


def _open(manifest: str, endpoint_url: str | None) -> io.BufferedReader:
    try:
        return open_binary(manifest, endpoint_url=endpoint_url)
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
            f"reading the manifest {shown(manifest)}, {place}: found {found}, expected a column "
            f"uri with the address of a recording; {hint}correct the manifest"
        )
    metadata = _metadata(row, place, manifest)
    for what, text, most in (
        ("a uri", uri, MAX_URI_CHARACTERS),
        ("further columns", metadata or "", max_metadata_characters),
    ):
        if len(text) > most:
            raise ConfigError(
                f"reading the manifest {shown(manifest)}, {place}: found {what} of {len(text)} "
                f"characters, expected at most {most}; leave out what is not needed"
            )
    return resolve(uri, folder=folder), metadata


def _metadata(row: dict[str, Any], place: str, manifest: str) -> str | None:
    names = [name for name in sorted(row, key=str) if name != URI_COLUMN]
    try:
        rest = {str(name): _json_safe(row[name]) for name in names}
        return json.dumps(rest, ensure_ascii=False) if rest else None
    except RecursionError as error:
        raise ConfigError(
            f"reading the manifest {shown(manifest)}, {place}: found columns nested too deep, "
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
        f"reading the manifest {shown(manifest)}, {place}: found {shown(uri)}, {what}, expected "
        f"addresses of its own store, of object stores or of the web; {advice}"
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
            f"reading the manifest {shown(manifest)}: no readable Parquet ({error}), expected a "
            "Parquet file; write it again"
        ) from error


def _broken(manifest: str, number: int, found: str, expected: str) -> ConfigError:
    return ConfigError(
        f"reading the manifest {shown(manifest)}, line {number}: found {found}, expected "
        f"{expected}; correct the line"
    )
