"""Rows of recordings that get another address, or go: whatever has some of them is written anew.

In come recordings and what becomes of each; why, this does not know. Safe to be killed anywhere and
to be repeated: a replacement is put before what it replaces is removed, under a name that says of
what it is one. So for a while some rows are there twice, and a repetition removes the older ones.
"""

import csv
import hashlib
import io
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.schemas import DUPLICATES, HOOKS, OUTCOMES, RECORDINGS, SPEAKERS, VOICES
from corpus_asr.storage.run_state.corrections import (
    CORRECTIONS_FOLDER,
    SPEAKER_LABEL,
    move_correction,
    read_saved,
)
from corpus_asr.storage.run_state.duplicates import without_losers
from corpus_asr.storage.run_state.finish import (
    claimed_segments,
    remove_commits,
    write_empty_tables,
)
from corpus_asr.storage.run_state.moved import MOVING_NAME, Move, Moves
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, EARLIER_FOLDER
from corpus_asr.storage.run_state.run_tables import REDO_NAME
from corpus_asr.storage.run_state.tables import (
    DUPLICATES_FOLDER,
    HOOKS_FOLDER,
    PENDING,
    RECORDINGS_FOLDER,
    SPEAKERS_FOLDER,
    SUFFIX,
    VOICES_FOLDER,
    OutputStore,
    part_rows_named,
    projected,
    time_ns_of,
)
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import public, recording_id, redact_uri

logger = logging.getLogger(__name__)

NAMES_NAME: Final = "speakers.csv"
"""File of an output folder in which people name speakers."""
FAILING_NAME: Final = "_run/failing.parquet"
"""Recordings that nights have tried, with the number of tries."""
ADDRESSES_NAME: Final = "_run/addresses.json"
"""Addresses that recordings had before they moved, by the `recording_id` that they have now."""
_TABLES = {RECORDINGS_FOLDER: RECORDINGS, SPEAKERS_FOLDER: SPEAKERS, VOICES_FOLDER: VOICES,
           DUPLICATES_FOLDER: DUPLICATES, HOOKS_FOLDER: HOOKS}  # fmt: skip
_IDS = ("recording_id", "other_recording_id")
# People save names meanwhile; more often than this in a row they do not.
_ATTEMPTS = 8


class Changes:
    """What becomes of recordings: by `recording_id` the new address, or None where they go."""

    def __init__(self, to: Mapping[str, str | Move | None]) -> None:
        """With a `Move`, rows of its content get its version, too."""
        moves = [move if isinstance(move, Move) else Move("", move or "") for move in to.values()]
        uris = [public(move.uri) or None for move in moves]
        self.to = dict(zip(to, uris, strict=True))
        self._ids = pa.array(self.to, pa.string())
        self._digests = pa.array([move.content_digest for move in moves], pa.string())
        self._new = {
            "uri": pa.array(uris, pa.string()),
            "recording_id": pa.array(
                [None if uri is None else recording_id(uri) for uri in uris], pa.string()
            ),
            "etag": pa.array([move.etag for move in moves], pa.string()),
        }

    @property
    def ids(self) -> pa.Array:
        """Recordings that change."""
        return self._ids

    def apply(self, rows: pa.Table) -> pa.Table:
        """Return the rows that are left, with their new identity."""
        if _IDS[1] in rows.schema.names:
            names = rows.schema.names
            places = pc.index_in(rows[_IDS[1]], value_set=self._ids)
            left = pc.or_(pc.is_null(places), pc.is_valid(self._new["uri"].take(places)))
            rows = without_losers(rows, left)
            rows = self._apply(rows.rename_columns(_swapped(names))).rename_columns(names)
            return _by_order(self._apply(rows))
        return self._apply(rows)

    def _apply(self, rows: pa.Table) -> pa.Table:
        places = pc.index_in(rows["recording_id"], value_set=self._ids)
        left = pc.or_(pc.is_null(places), pc.is_valid(self._new["uri"].take(places)))
        rows, places = rows.filter(left), places.filter(left)
        for name, values in self._new.items():
            at, new = rows.schema.get_field_index(name), values.take(places)
            if name == "etag":
                if "content_digest" not in rows.schema.names:
                    continue  # made again of rows that have it
                same = pc.equal(rows["content_digest"], self._digests.take(places))
                new = pc.if_else(same, new, pa.scalar(None, pa.string()))
            if at >= 0:
                rows = rows.set_column(at, rows.schema.field(at), pc.coalesce(new, rows[name]))
        return rows


def _swapped(names: Sequence[str]) -> list[str]:
    """Return names of columns such that those of a pair's recordings change places."""
    swapped = {name.removeprefix("other_"): name for name in names if name.startswith("other_")}
    return [swapped.get(name, name.removeprefix("other_")) for name in names]


def _by_order(pairs: pa.Table) -> pa.Table:
    """Let the other recording of each pair be that of which the URI sorts first."""
    names = pairs.schema.names
    turned = pc.fill_null(pc.less(pairs["uri"], pairs["other_uri"]), False)
    swapped = pairs.filter(turned).rename_columns(_swapped(names)).select(names)
    return pa.concat_tables([pairs.filter(pc.invert(turned)), swapped.cast(pairs.schema)])


def folders_of(store: OutputStore) -> Iterator[OutputStore]:
    """Yield an output folder, and those of earlier results within it."""
    yield store
    names = {name.split("/")[1] for name in store.all_names(EARLIER_FOLDER)}
    yield from (store.below(f"{EARLIER_FOLDER}/{name}") for name in sorted(names))


def rewrite(store: OutputStore, changes: Changes) -> None:
    """Change the rows of recordings in every table, what people saved, and speakers' names."""
    if not changes.to:
        return
    for folder in _TABLES:
        rewrite_table(store, folder, changes.ids, changes.apply)
    for name in (FAILING_NAME, REDO_NAME):
        if store.exists(name):
            _rewrite_notes(store, name, changes)
    rewrite_corrections(store, changes)
    rewrite_names(store, lambda uri, _: changes.to.get(recording_id(uri), uri))
    rewrite_commits(store, changes.ids, changes.apply)
    write_empty_tables(store, (store.read_json(CONFIG_NAME) or {}).get("pipeline"))


def holding(store: OutputStore, ids: pa.Array) -> list[str]:
    """Return the objects that hold rows of recordings, or what people saved of them."""
    wanted, found = set(ids.to_pylist()), list[str]()
    for folder in folders_of(store):
        own = _concerned(folder, folder.commit_names(), OUTCOMES, ids)
        for name, schema in _TABLES.items():
            own += _concerned(folder, folder.names(name), schema, ids)
        saves = folder.all_names(CORRECTIONS_FOLDER)
        own += [name for name in saves if name.split("/")[1] in wanted]
        found += [folder.address(name).removeprefix(store.address("")) for name in own]
    return found


def follow(store: OutputStore, moves: Moves) -> None:
    """Let the rows of recordings follow their files."""
    if not moves:
        return
    # Noted before the first row follows, and the note goes last: killed in between, the next run
    # goes on with it.
    store.write_json(MOVING_NAME, {own: move._asdict() for own, move in moves.items()})
    _note_addresses(store, moves)
    rewrite(store, Changes(moves))
    store.remove(MOVING_NAME)
    logger.info("moved recordings=%d", len(moves))


def _note_addresses(store: OutputStore, moves: Moves) -> None:
    before = earlier_addresses(store)
    known = {each: uris for each, uris in before.items() if each not in moves}
    for old, move in moves.items():
        uris = {*known.get(move.recording_id, ()), *before.get(old, ()), move.old_uri}
        known[move.recording_id] = sorted(uris - {""})
    if known != before:
        store.write_json(ADDRESSES_NAME, known)


def earlier_addresses(store: OutputStore) -> dict[str, list[str]]:
    """Return the addresses that recordings had before they moved."""
    return store.read_json(ADDRESSES_NAME) or {}


def drop_addresses(store: OutputStore, ids: Collection[str]) -> None:
    """Forget the addresses that recordings had before."""
    known = earlier_addresses(store)
    left = {each: uris for each, uris in known.items() if each not in ids}
    if left != known:
        store.write_json(ADDRESSES_NAME, left)


def rewrite_commits(
    store: OutputStore, ids: pa.Array, change: Callable[[pa.Table], pa.Table]
) -> None:
    """Write the commits anew that have parts of recordings.

    `change` is given rows of outcomes, and those of segments or labels, which go along.
    """
    names = store.commit_names()
    replaced = _replaced(names)
    for name in _concerned(store, names, OUTCOMES, ids):
        outcomes = store.read_table(name, OUTCOMES)
        named = outcomes["segments_object"].unique().drop_null().to_pylist()
        left = change(outcomes)
        # Where segments are gone, what they were of is to be transcribed again.
        if left.num_rows and name not in replaced and not store.missing(named):
            store.write_commit(
                left,
                map(change, claimed_segments(store, outcomes)),
                rows=part_rows_named(named),
                stem=store.stem(time_ns_of(name), mark=_mark_of(name)),  # in its place among them
                under=PENDING if name.startswith(PENDING) else "",
            )
        remove_commits(store, [name], named)
        logger.info("rewritten object=%s rows=%d left=%d", name, outcomes.num_rows, left.num_rows)


def rewrite_table(
    store: OutputStore, folder: str, ids: pa.Array, change: Callable[[pa.Table], pa.Table]
) -> None:
    """Write the objects anew of recordings, speakers or voices that have rows of recordings."""
    schema = _TABLES[folder]
    names = store.names(folder)
    replaced = _replaced(names)
    for name in _concerned(store, names, schema, ids):
        if name not in replaced:
            # Tables of hooks have columns of their own.
            found = pa.Table.from_batches(store.batches(name)) if folder == HOOKS_FOLDER else (
                store.read_table(name, schema)
            )  # fmt: skip
            stem = store.stem(time_ns_of(name), mark=_mark_of(name))
            store.write_table(f"{name.rpartition('/')[0]}/{stem}{SUFFIX}", change(found))
        store.remove(name)


def _mark_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _replaced(names: Collection[str]) -> set[str]:
    """Return the objects whose replacement is there: a command was killed in between."""
    marks = {name.removesuffix(SUFFIX).rpartition("-")[2] for name in names}
    return {name for name in names if _mark_of(name) in marks}


def _concerned(
    store: OutputStore, names: Iterable[str], schema: pa.Schema, ids: pa.Array
) -> list[str]:
    named = tuple(name for name in _IDS if name in schema.names)
    found = store.read_tables(names, projected(schema, named))
    return list(dict.fromkeys(name for name, rows in found if _any_of(rows, ids)))


def _any_of(rows: pa.Table, ids: pa.Array) -> bool:
    return any(
        pc.any(pc.is_in(rows[name], value_set=ids)).as_py()
        for name in _IDS
        if name in rows.schema.names
    )


def _rewrite_notes(store: OutputStore, name: str, changes: Changes) -> None:
    batches = list(store.batches(name))
    if batches:
        rows = pa.Table.from_batches(batches)
        if _any_of(rows, changes.ids):
            store.write_table(name, changes.apply(rows))


def rewrite_corrections(store: OutputStore, changes: Changes) -> None:
    """Let what people saved of recordings follow them, or go with them."""
    for name in list(store.all_names(CORRECTIONS_FOLDER)):
        old = name.split("/")[1]
        if old not in changes.to:
            continue
        uri = changes.to[old]
        if uri is not None:
            move_correction(store, name, recording_id(uri))
        else:
            store.remove(name)
        filesystem.remove_folder(store.address(f"{CORRECTIONS_FOLDER}/{old}"))


def rewrite_said_speakers(store: OutputStore, speakers: Collection[tuple[str, str]]) -> None:
    """Take names, each of a recording, out of corrections; who speaks is then as turns say."""
    for name, saved in read_saved(store).items():
        if any((saved.recording_id, each.speaker) in speakers for each in saved.segments):
            said = store.read_json(name)
            for each in said["segments"]:
                if (saved.recording_id, each["speaker"]) in speakers:
                    each["speaker"] = None
            store.write_json(name, said)


def named_numbers(store: OutputStore) -> dict[str, int]:
    """Return the highest number of a speaker S1, S2 ... in names and corrections, by recording."""
    said = [(each.recording_id, one.speaker or "")
            for each in read_saved(store).values() for one in each.segments]  # fmt: skip
    if store.exists(NAMES_NAME):
        data = filesystem.read_bytes(store.address(NAMES_NAME), store.options)
        lines, at, who = _named_lines(data)
        said += [(recording_id(line[at]), line[who].strip())
                 for line in lines[1:] if len(line) > max(at, who)]  # fmt: skip
    highest: dict[str, int] = {}
    for own, label in said:
        if SPEAKER_LABEL.fullmatch(label):
            highest[own] = max(highest.get(own, 0), int(label[1:]))
    return highest


def _named_lines(data: bytes) -> tuple[list[list[str]], int, int]:
    """Return the lines of a file of names, and the places of address and speaker in them."""
    text = data.decode("utf-8-sig", "surrogateescape")
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    if not lines or not {"uri", "speaker"} <= {*lines[0]}:
        return [], 0, 0  # not a file that names anybody
    return lines, lines[0].index("uri"), lines[0].index("speaker")


def rewrite_names(store: OutputStore, change: Callable[[str, str], str | None]) -> None:
    """Change rows of the file of speakers' names.

    `change` is given address and speaker of a row, and returns the address that it is to have, or
    None where it is to go.
    """
    address = store.address(NAMES_NAME)
    for _ in range(_ATTEMPTS):
        if not store.exists(NAMES_NAME):
            return
        data = filesystem.read_bytes(address, store.options)
        lines, at, who = _named_lines(data)
        if not lines:
            return
        changed = [lines[0]]
        for line in lines[1:]:
            if len(line) > max(at, who):  # else it names nobody
                uri = change(line[at], line[who].strip())
                line = [] if uri is None else [*line[:at], uri, *line[at + 1 :]]
            if line:
                changed.append(line)
        if changed == lines:
            return
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerows(changed)
        store.check()
        written = file.getvalue().encode(errors="surrogateescape")
        if filesystem.swap(address, written, data, store.options):
            return
    raise ConfigError(
        f"changing the names in {redact_uri(address)}: found it changed by others {_ATTEMPTS} "
        "times in a row; close what writes it, and run the same command again"
    )
