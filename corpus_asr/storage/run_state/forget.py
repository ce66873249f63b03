"""All that an output folder holds of some recordings, removed; and these are kept away.

In come patterns of addresses. Each table is written anew without the rows; what is made of tables,
such as the page, is removed, to be made again; other files lose what names a recording. What people
put into the folder is left, and told. Noted first, so that a run or the same command goes on with
what was killed; the note goes last.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.schemas import FILES, PACKS
from corpus_asr.storage.run_state.corrections import CORRECTIONS_FOLDER
from corpus_asr.storage.run_state.finish import remove_leftovers
from corpus_asr.storage.run_state.forgotten import FORGOTTEN_NAME, Forgotten
from corpus_asr.storage.run_state.lock import LOCK_NAME
from corpus_asr.storage.run_state.own_sources import OWN_SOURCES_FOLDER, forget_sources
from corpus_asr.storage.run_state.plan import PLANS_FOLDER
from corpus_asr.storage.run_state.prune import recount
from corpus_asr.storage.run_state.rewriting import Changes, rewrite
from corpus_asr.storage.run_state.run_files import (
    CONFIG_NAME,
    EARLIER_FOLDER,
    PAGE_NAME,
    failures_name,
)
from corpus_asr.storage.run_state.tables import (
    ALL_PART_ROWS_FOLDERS,
    SUFFIX,
    TABLES_OF_RUNS,
    OutputStore,
)
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.local import TEMPORARY_PREFIX
from corpus_asr.storage.stores.uri import normalize, redact_uri

FORGETTING_NAME: Final = "_run/forgetting.json"
"""Recordings that are being removed: address by `recording_id`."""
DATASETS_FOLDER: Final = "_run/datasets"
"""Data sets that were made of this folder, an object of each."""
# Made of the tables, and made again of what they have then.
_MADE_AGAIN = (PAGE_NAME, failures_name(PAGE_NAME))
_GONE_WITH_RUNS = "_run/deaths/"  # of a run that is over: whoever forgets has the lock
_KEPT = (LOCK_NAME, FORGETTING_NAME, FORGOTTEN_NAME)
_PLACEHOLDER = "(forgotten)"
_IDENTITY = ("recording_id", "uri")
_MOST_COMPARED = 100_000  # addresses, for the nearest to one that is not there
_MOST_BYTES = 64 * 2**20  # of a file of others that is looked through


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What an output folder holds of recordings that are to be forgotten."""

    recordings: Mapping[str, str]
    """Address by `recording_id`."""
    segments: int
    corrections: int
    datasets: Sequence[str]
    """Addresses of data sets that were made of the folder."""


def find_recordings(store: OutputStore, patterns: Sequence[str]) -> Found:
    """Return the recordings whose addresses match a pattern, listed or with results.

    Raises:
        ConfigError: there is none; the nearest are named.
    """
    exact = {normalize(pattern) for pattern in patterns if pattern}
    found: dict[str, str] = {}
    seen: dict[str, None] = {}
    for each, uri in _addresses(store):
        if uri in exact or any(fnmatchcase(uri, pattern) for pattern in patterns):
            found[each] = uri
        elif len(seen) < _MOST_COMPARED:
            seen[uri] = None
    if not found:
        raise ConfigError(
            f"looking in {redact_uri(store.uri)} for recordings to forget: found none of "
            f"{', '.join(map(redact_uri, patterns))}, expected an address or a glob of whole "
            f"addresses, such as '*/talk.mp3'{_nearest(patterns, list(seen))}"
        )
    ids = pa.array(found, pa.string())
    segments = 0
    for folder in folders_of(store):
        for rows in folder.outcomes(["recording_id", "segments_written"]):
            mine = rows.filter(pc.is_in(rows["recording_id"], value_set=ids))
            segments += pc.sum(mine["segments_written"]).as_py() or 0
    corrections = [
        name for name in store.all_names(CORRECTIONS_FOLDER) if name.split("/")[1] in found
    ]
    return Found(
        recordings=found,
        segments=segments,
        corrections=len(corrections),
        datasets=[store.read_json(name)["uri"] for name in store.all_names(DATASETS_FOLDER)],
    )


def _nearest(patterns: Sequence[str], uris: Sequence[str]) -> str:
    names = {uri.rpartition("/")[2]: uri for uri in uris}
    wanted = [pattern.rstrip("/").rpartition("/")[2].strip("*") for pattern in patterns]
    near = [each for name in wanted for each in difflib.get_close_matches(name, names, n=3)]
    if not near:
        return f"; it has {len(uris):,} others"
    return f"; did you mean {' or '.join(redact_uri(names[each]) for each in near[:3])}?"


def _addresses(store: OutputStore) -> Iterator[tuple[str, str]]:
    for folder in folders_of(store):
        for batch in folder.committed(_IDENTITY, folder.commit_names()):
            yield from _pairs_of(batch.rows)
        for rows in folder.recordings(_IDENTITY):
            yield from _pairs_of(rows)
    for name in store.names(PLANS_FOLDER):
        if "/listing/" in name:
            for rows in store.batches(name, columns=_IDENTITY):
                yield from _pairs_of(rows)


def _pairs_of(rows: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    return zip(*(rows.column(name).to_pylist() for name in _IDENTITY), strict=True)


def folders_of(store: OutputStore) -> Iterator[OutputStore]:
    """Yield an output folder, and those of earlier results within it."""
    yield store
    names = {name.split("/")[1] for name in store.all_names(EARLIER_FOLDER)}
    yield from (store.below(f"{EARLIER_FOLDER}/{name}") for name in sorted(names))


def going_on(store: OutputStore) -> Mapping[str, str]:
    """Return the recordings that a command began to forget, and was killed."""
    return store.read_json(FORGETTING_NAME) or {}


def forget(store: OutputStore, recordings: Mapping[str, str]) -> list[str]:
    """Remove all that the folder holds of recordings, and let them stay away.

    The folder is locked by the caller.

    Args:
        recordings: address by `recording_id`.

    Returns:
        Files of others in the folder that name one of them, which are left as they are.
    """
    if not recordings:
        return []
    store.write_json(FORGETTING_NAME, dict(recordings))
    forgotten = Forgotten.read(store)
    for each, versions in _versions(store, recordings).items():
        forgotten.add(recordings[each], versions)
    forgotten.write(store)
    names = _Names(recordings, (uri for _, uri in _addresses(store)))
    left: list[str] = []
    for folder in folders_of(store):
        rewrite(folder, Changes(dict.fromkeys(recordings)))
        remove_leftovers(folder)
        _rewrite_plans(folder, recordings)
        forget_sources(folder, names.in_text)
        left += _rewrite_files(folder, names, others=folder is store)
    summaries = ((store.read_json(CONFIG_NAME) or {}).get("nightly") or {}).get("summaries")
    if summaries is not None:
        elsewhere = OutputStore(summaries, options=store.options)
        _rewrite_files(elsewhere, names, others=False)
    recount(store)
    store.remove(FORGETTING_NAME)
    return left


def allow_again(store: OutputStore, uris: Iterable[str]) -> int:
    """Let later runs do recordings again; return how many were to stay away."""
    forgotten = Forgotten.read(store)
    allowed = sum(forgotten.allow(normalize(uri)) for uri in uris)
    if allowed:
        forgotten.write(store)
    return allowed


_Version = tuple[str | None, int | None]


def _versions(store: OutputStore, recordings: Mapping[str, str]) -> dict[str, list[_Version]]:
    """Return the versions of recordings that no other recording has."""
    columns = ("recording_id", "etag", "size_bytes")
    found: dict[str, set[_Version]] = {each: set() for each in recordings}
    others: set[_Version] = set()
    for _ in range(2):  # which versions there are of them; who else has one
        wanted = set().union(*found.values())
        listed = (store.batches(name, columns=columns) for name in store.names(PLANS_FOLDER)
                  if "/listing/" in name)  # fmt: skip
        committed = (batch.rows for batch in store.committed(columns, store.commit_names()))
        for rows in itertools.chain(committed, itertools.chain.from_iterable(listed)):
            values = (rows.column(name).to_pylist() for name in columns)
            for each, *version in zip(*values, strict=True):
                if each in found:
                    found[each].add((version[0], version[1]))
                elif (version[0], version[1]) in wanted:
                    others.add((version[0], version[1]))
    return {each: sorted(versions - others, key=str) for each, versions in found.items()}


class _Names:
    """What recordings are known by: address, identity, and a name that no other one has."""

    def __init__(self, recordings: Mapping[str, str], all_uris: Iterable[str]) -> None:
        mine = set(recordings.values())
        bases = {uri.rpartition("/")[2] for uri in mine}
        bases -= {uri.rpartition("/")[2] for uri in all_uris if uri not in mine}
        names = sorted({*mine, *recordings, *filter(None, bases)}, key=len, reverse=True)
        whole = "|".join(map(re.escape, names))
        self._pattern = re.compile(rf"(?<![\w.-])(?:{whole})(?![\w-]|\.\w)")

    def in_text(self, text: str) -> bool:
        """Tell whether a text names one of them."""
        return self._pattern.search(text) is not None

    def without(self, value: Any) -> Any:
        """Return a value of JSON without what names one of them."""
        if isinstance(value, str):
            return _PLACEHOLDER if self.in_text(value) else value
        if isinstance(value, list):
            left = [self.without(each) for each in value if not self._is_of(each)]
            # A list of addresses that has none would be another setting.
            return [_PLACEHOLDER] if value and not left and isinstance(value[0], str) else left
        if isinstance(value, dict):
            return {key: self.without(each) for key, each in value.items() if not self.in_text(key)}
        return value

    def _is_of(self, value: Any) -> bool:
        named = value.get("uri") if isinstance(value, dict) else value
        return isinstance(named, str) and self.in_text(named)


def _rewrite_plans(store: OutputStore, recordings: Mapping[str, str]) -> None:
    ids = pa.array(recordings, pa.string())
    for name in store.names(PLANS_FOLDER):
        if "/packs/" in name:  # of a run that is over
            store.write_table(name, PACKS.empty_table())
            continue
        files = store.read_table(name, FILES)
        left = files.filter(pc.invert(pc.is_in(files["recording_id"], value_set=ids)))
        if left.num_rows < files.num_rows:
            store.write_table(name, left)


def _rewrite_files(store: OutputStore, names: _Names, *, others: bool) -> list[str]:
    """Rewrite or remove what is no table; return the files of others that name a recording."""
    tables = tuple(f"{folder}/" for folder in (*TABLES_OF_RUNS, *ALL_PART_ROWS_FOLDERS))
    passed_over = (f"{EARLIER_FOLDER}/", f"{CORRECTIONS_FOLDER}/", f"{PLANS_FOLDER}/",
                   f"{OWN_SOURCES_FOLDER}/", f"{DATASETS_FOLDER}/", *tables)  # fmt: skip
    left = []
    for name in list(store.all_names("")):
        base = name.rpartition("/")[2]
        if (
            base.startswith(TEMPORARY_PREFIX)
            or name.startswith(_GONE_WITH_RUNS)
            or name in _MADE_AGAIN
        ):
            store.remove(name)
        elif name.startswith(passed_over) or name in _KEPT or name.endswith(SUFFIX):
            continue
        elif base.endswith(".json"):
            before = store.read_json(name)
            after = names.without(before)
            if after != before:
                store.write_json(name, after)
        elif base.endswith(".md"):
            _rewrite_lines(store, name, names)
        elif others and names.in_text(_text(store, name)):
            left.append(name)
    return left


def _rewrite_lines(store: OutputStore, name: str, names: _Names) -> None:
    lines = _text(store, name).splitlines(keepends=True)
    # Markdown escapes signs of its own by a backslash.
    left = [line for line in lines if not names.in_text(line.replace("\\", ""))]
    if len(left) < len(lines):
        store.write_bytes(name, "".join(left).encode(errors="surrogateescape"))


def _text(store: OutputStore, name: str) -> str:
    with filesystem.open_binary(store.address(name), store.options) as file:
        return file.read(_MOST_BYTES).decode(errors="surrogateescape")


def note_dataset(store: OutputStore, uri: str) -> None:
    """Note in an output folder that a data set was made of it."""
    stem = re.sub(r"\W+", "-", uri).strip("-")[-100:]
    store.write_json(f"{DATASETS_FOLDER}/{stem}.json", {"uri": uri})
