"""Facets: how many hits lie in each folder, language and month, counted along with a search.

Folders and dates are trees: a facet shows what is below the chosen place. A language can be
exchanged for another, so its counts are those of all languages under the other filters.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.export.write import common_folder

# More values are a list that nobody reads; choosing a folder shows those below it.
MAX_VALUES = 40
# Size and modification time in nanoseconds, the version of a local file.
_LOCAL_VERSION = r"^(?P<size>\d{1,18})-(?P<ns>\d{1,18}|[1-8]\d{18})$"
_RUN_MONTH = r"^(?P<year>\d{4})(?P<month>\d{2})\d{2}T"


class Tree:
    """A path for each recording, or null, and what is below any of them. Thread-safe."""

    def __init__(self, paths: pa.Array, separator: str) -> None:
        self._paths = paths
        self._separator = separator
        self._below: dict[str, tuple[np.ndarray, list[str]]] = {}

    def mask(self, path: str) -> np.ndarray:
        """Return which recordings lie at a path or below it; all for an empty one."""
        if not path:
            return np.ones(len(self._paths), dtype=bool)
        below = pc.starts_with(self._paths, path + self._separator)
        found = pc.or_(below, pc.equal(self._paths, path))
        mask: np.ndarray = pc.fill_null(found, False).to_numpy(zero_copy_only=False)
        return mask

    def below(self, path: str) -> tuple[np.ndarray, list[str]]:
        """Return for each recording the number of the path a level down, or -1, and these paths."""
        if path not in self._below:
            self._below[path] = self._read_below(path)
        return self._below[path]

    def _read_below(self, path: str) -> tuple[np.ndarray, list[str]]:
        start = path + self._separator if path else ""
        inside = pc.starts_with(self._paths, start) if start else pc.not_equal(self._paths, "")
        rest = pc.utf8_slice_codeunits(self._paths, len(start))
        steps = pc.list_element(pc.split_pattern(rest, self._separator, max_splits=1), 0)
        named = pc.if_else(inside, steps, None).dictionary_encode()
        codes = pc.fill_null(named.indices, -1).to_numpy().astype(np.int32)
        return codes, [start + step for step in named.dictionary.to_pylist()]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a facet."""

    name: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """The values of one facet, most frequent first; of dates latest first."""

    values: tuple[Value, ...]
    others: int = 0
    """Values beyond `MAX_VALUES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """The folders and months of all recordings."""

    folders: Tree
    months: Tree
    dates_are: str
    """`modified`, when the file was last modified; `transcribed`, when its run began."""

    @classmethod
    def of(cls, recordings: pa.Table) -> "Trees":
        """Return those of a table with uri, etag and run_id."""
        uris = recordings["uri"].combine_chunks()
        inner = pc.utf8_slice_codeunits(uris, len(common_folder(recordings["uri"])))
        # What is before the last slash; a file in the common folder itself is in none.
        folders = pc.if_else(
            pc.match_substring(inner, "/"), pc.replace_substring_regex(inner, r"/[^/]*$", ""), ""
        )
        months, kind = _months(recordings)
        return cls(folders=Tree(folders, "/"), months=Tree(months, "-"), dates_are=kind)


def _months(recordings: pa.Table) -> tuple[pa.Array, str]:
    etags = recordings["etag"].combine_chunks()
    parts = pc.extract_regex(etags, _LOCAL_VERSION)
    # One meaning for all: only local files tell when they were modified.
    if parts.null_count == 0 and len(parts):
        nanoseconds = pc.struct_field(parts, "ns").cast(pa.int64())
        return pc.strftime(nanoseconds.cast(pa.timestamp("ns")), "%Y-%m"), "modified"
    found = pc.extract_regex(recordings["run_id"].combine_chunks(), _RUN_MONTH)
    year, month = (pc.struct_field(found, name) for name in ("year", "month"))
    return pc.binary_join_element_wise(year, month, "-"), "transcribed"


class Counts:
    """Counts hits per recording and language as they are found."""

    def __init__(self, trees: Trees, *, folder: str, date: str) -> None:
        self._trees = trees
        self._folder, self._date = folder, date
        self._in_folder, self._in_date = trees.folders.mask(folder), trees.months.mask(date)
        self.inside = self._in_folder & self._in_date
        """Which recordings lie in the chosen folder, and year or month."""
        self._by_recording = np.zeros(len(self.inside), dtype=np.int64)
        self._by_language: Counter[str] = Counter()

    def add(self, owners: np.ndarray) -> None:
        """Count hits in the chosen language, wherever they lie, by their recordings."""
        self._by_recording += np.bincount(owners, minlength=len(self._by_recording))

    def add_languages(self, codes: np.ndarray, languages: Sequence[str]) -> None:
        """Count hits inside by language, whichever is chosen; codes are places, or -1."""
        counts = np.bincount(codes + 1, minlength=len(languages) + 1)[1:]
        self._by_language.update(
            {name: count for name, count in zip(languages, counts.tolist(), strict=True) if count}
        )

    @property
    def total(self) -> int:
        """Hits in the chosen folder, date and language."""
        return int(self._by_recording[self.inside].sum())

    @property
    def recordings(self) -> int:
        """Recordings with such hits."""
        return int(np.count_nonzero(self._by_recording[self.inside]))

    def facets(self) -> dict[str, Facet]:
        """Return the facets by name."""
        languages = [Value(*each) for each in self._by_language.items()]
        return {
            "folder": _facet(self._values(self._trees.folders, self._folder, self._in_date)),
            "language": _facet(languages),
            "date": self._of_months(),
        }

    def _of_months(self) -> Facet:
        path = self._date
        values = self._values(self._trees.months, path, self._in_folder)
        if not path and len(values) == 1:  # of a single year its months at once
            values = self._values(self._trees.months, values[0].name, self._in_folder)
        values.sort(key=lambda value: value.name, reverse=True)
        return Facet(values=tuple(values[:MAX_VALUES]), others=max(0, len(values) - MAX_VALUES))

    def _values(self, tree: Tree, path: str, elsewhere: np.ndarray) -> list[Value]:
        codes, names = tree.below(path)
        counted = elsewhere & (codes >= 0)
        counts = np.bincount(
            codes[counted], weights=self._by_recording[counted], minlength=len(names)
        ).astype(np.int64)
        pairs = zip(names, counts.tolist(), strict=True)
        return [Value(name, count) for name, count in pairs if count]


def _facet(values: list[Value]) -> Facet:
    values.sort(key=lambda value: (-value.count, value.name))
    return Facet(values=tuple(values[:MAX_VALUES]), others=max(0, len(values) - MAX_VALUES))
