"""Which recordings there are: addresses, folders, globs or a manifest in, FILES batches out.

The order is stable and nothing is held but the present page and eight bytes per file (to list a
file once). Knows nothing of audio; what a name means is for later stages.
"""

import difflib
import fnmatch
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from corpus_asr.config.stages import SourceSettings
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.schemas import FILES
from corpus_asr.storage.manifest import manifest_rows
from corpus_asr.storage.stores.filesystem import describe, list_pages
from corpus_asr.storage.stores.local import Page
from corpus_asr.storage.stores.retry import ACCESS_DENIED, NOT_FOUND
from corpus_asr.storage.stores.uri import LOCAL, normalise, recording_id, scheme_of, shown

BATCH_ROWS = 10_000


def list_files(source: SourceSettings) -> "FileListing":
    """List the recordings of a source.

    Returns:
        An iterator of FILES batches, of at most `BATCH_ROWS` rows, that counts as it goes.

    Raises:
        ConfigError: (while iterating) an address names nothing, or the manifest is unusable.
        FetchError: (while iterating) a store does not answer.
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
        self._seen = _Seen()
        self._excluded = _excluder(source.exclude)
        self._batches = self._generate()

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def _generate(self) -> Iterator[pa.RecordBatch]:
        waiting = _Rows()
        for rows in self._found():
            waiting.extend(self._first_seen(rows))
            while len(waiting) >= BATCH_ROWS:
                yield self._batch(waiting.pop(BATCH_ROWS))
        if len(waiting):
            yield self._batch(waiting.pop(BATCH_ROWS))

    def _batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.num_files += batch.num_rows
        return batch

    def _found(self) -> Iterator["_Rows"]:
        if self._source.manifest is not None:
            for uris, metadata in manifest_rows(
                self._source.manifest,
                endpoint_url=self._source.endpoint_url,
                allow_local_files=self._source.allow_local_files,
            ):
                yield _Rows.of(uris, [None] * len(uris), [None] * len(uris), metadata)
            return
        for uri in self._source.uri:
            for page in self._expand(uri):
                yield _Rows.of(page.uris, page.sizes, page.etags, [None] * len(page.uris))

    def _first_seen(self, rows: "_Rows") -> "_Rows":
        fresh = self._seen.add(np.array([int(i, 16) for i in rows.ids], dtype=np.uint64))
        self.num_duplicates += len(fresh) - int(fresh.sum())
        return rows if fresh.all() else rows.keep(fresh)

    def _expand(self, uri: str) -> Iterator[Page]:
        """Yield what one address names: an object, else a folder, else a glob's matches."""
        uri = normalise(uri)
        denied: FetchError | None = None
        if not uri.endswith("/"):
            try:
                info = describe(uri, endpoint_url=self._source.endpoint_url)
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
        pages = list_pages(
            pattern.prefix, depth=pattern.depth, endpoint_url=self._source.endpoint_url
        )
        for page in pages:
            kept = []
            for index, uri in enumerate(page.uris):
                if pattern.regex is not None and not pattern.regex.fullmatch(uri):
                    continue
                if self._excluded is not None and self._excluded.match(uri.rpartition("/")[2]):
                    self.num_excluded += 1
                else:
                    kept.append(index)
            yield (
                page
                if len(kept) == len(page.uris)
                else Page(
                    [page.uris[i] for i in kept],
                    [page.sizes[i] for i in kept],
                    [page.etags[i] for i in kept],
                )
            )

    def _nothing(self, uri: str, num_excluded: int) -> ConfigError:
        if scheme_of(uri) in ("http", "https"):
            looked_for = "a file (the web has no folders or globs)"
        elif _first_magic(uri) is not None:
            looked_for = "a file, a folder with files below it, or files that match the glob"
        else:
            looked_for = "a file, or a folder with files below it"
        excluded = f", beside {num_excluded} left out by source.exclude" if num_excluded else ""
        return ConfigError(
            f"listing {shown(uri)}: found nothing{excluded}, expected {looked_for}; correct "
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


class _Rows:
    """Rows of FILES on their way into a batch, column by column."""

    def __init__(self) -> None:
        self._columns: list[list[Any]] = [[] for _ in FILES]

    @classmethod
    def of(
        cls,
        uris: list[str],
        sizes: list[int | None],
        etags: list[str | None],
        metadata: list[str | None],
    ) -> "_Rows":
        rows = cls()
        rows._columns = [[recording_id(uri) for uri in uris], uris, sizes, etags, metadata]
        return rows

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> list[str]:
        return self._columns[0]

    def extend(self, other: "_Rows") -> None:
        for mine, theirs in zip(self._columns, other._columns, strict=True):
            mine.extend(theirs)

    def keep(self, mask: np.ndarray) -> "_Rows":
        rows = _Rows()
        chosen = np.flatnonzero(mask).tolist()
        rows._columns = [[column[i] for i in chosen] for column in self._columns]
        return rows

    def pop(self, count: int) -> pa.RecordBatch:
        """Take the first rows away as a FILES batch.

        Raises:
            ConfigError: a name is not text, so no table can hold it.
        """
        arrays = []
        for column, field in zip(self._columns, FILES, strict=True):
            try:
                arrays.append(pa.array(column[:count], field.type))
            except UnicodeEncodeError as error:
                raise ConfigError(
                    f"listing {error.object!r}: the name is not valid UTF-8, expected text; rename "
                    "the file or leave it out with source.exclude"
                ) from error
            del column[:count]
        return pa.record_batch(arrays, schema=FILES)
