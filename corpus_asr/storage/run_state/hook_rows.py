"""Hook tables, `hooks/NAME/`: results of user functions on committed transcripts.

Rows are keyed by recording, or by recording and segment, and have the columns that the function
returns; objects are as in `recording_rows`. A recording without results has one row of nulls. One
for which the function failed has one row with the error; its earlier rows are kept instead if there
are any. The next run passes failed recordings to the function again.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.hooks import KEYS, STATE, HookSettings
from corpus_asr.errors import ConfigError
from corpus_asr.schemas import HOOKS, SEGMENTS
from corpus_asr.storage.run_state.recording_rows import (
    NO_IDS,
    ROWS_PER_OBJECT,
    Portion,
    made_so_far,
    newest_of,
    portions_of,
    rows_at,
    wanted,
)
from corpus_asr.storage.run_state.run_files import open_run
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.table_names import HOOKS_FOLDER, SPEAKERS_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

# Recordings per task, repeated if its machine is lost: seconds of work for most functions.
RECORDINGS_PER_PORTION = 200
# Maximum rows per object; lists, such as vectors of 1,024 numbers, take some 80 MB.
ROWS_OF_LISTS = 20_000


def folder_of(name: str) -> str:
    """Return the folder of a hook's table."""
    return f"{HOOKS_FOLDER}/{name}"


def schema_of(hook: HookSettings) -> pa.Schema:
    """Return the schema of a hook's table: its keys, the function's columns, and the state."""
    keys = [SEGMENTS.field(name) for name in KEYS[hook.per]]
    result_fields = [
        pa.field(name, column_type(kind)) for name, kind in sorted(hook.columns.items())
    ]
    state = [field for field in HOOKS if field.name not in KEYS[hook.per]]
    return pa.schema([*keys, *result_fields, *state], metadata=HOOKS.metadata)


def rows_per_object(hook: HookSettings) -> int:
    """Return the maximum number of rows per object of a hook's table."""
    has_lists = any(kind.startswith("list<") for kind in hook.columns.values())
    return ROWS_OF_LISTS if has_lists else ROWS_PER_OBJECT


def column_type(kind: str) -> pa.DataType:
    """Return the Arrow type of a type name in a job's settings."""
    of_list = kind.removeprefix("list<").removesuffix(">")
    value_type = pa.type_for_alias(of_list)
    return value_type if of_list == kind else pa.list_(value_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class HookPortion:
    """Recordings passed to a hook in one task."""

    portion: Portion
    turns: Sequence[str]
    """Objects that hold their speakers' turns."""
    known: frozenset[str]
    """IDs of recordings with existing rows other than a failure."""

    def recordings(self) -> Iterator["HookPortion"]:
        """Yield each recording as its own portion."""
        for recording_id, made in self.portion.recordings.items():
            yield replace(self, portion=replace(self.portion, recordings={recording_id: made}))

    def is_among(self, ids: Collection[str]) -> bool:
        """Return whether `ids` contain all of its recordings."""
        return all(recording_id in ids for recording_id in self.portion.recordings)

    def uris(self, store: OutputStore) -> dict[str, str]:
        """Return the URI of each recording by ID."""
        columns, addresses = ("recording_id", "uri"), dict[str, str]()
        for name, rows in self.portion.rows.items():
            for row in rows_at(store, name, rows, columns):
                addresses[row["recording_id"]] = row["uri"]
        return {recording_id: addresses[recording_id] for recording_id in self.portion.recordings}


# Newest turns and corrections of each recording.
_EDITIONS = """
create or replace table editions as
select recording_id, string_agg(edition, '/' order by edition) as edition
from (select recording_id, arg_max(made_of, number) as edition from turns group by all
      union all select recording_id, edition from corrected)
group by recording_id
"""
_CORRECTED = pa.schema([("recording_id", pa.string()), ("edition", pa.string())])
_EDITION = "coalesce('/' || edition, '')"


@contextmanager
def left_of(
    store: OutputStore, hook: HookSettings, editions: Mapping[str, str]
) -> Iterator[tuple[int, Iterator[HookPortion]]]:
    """Yield the number of complete recordings with missing or outdated rows, and their portions.

    `editions` has a text for each corrected recording that changes with its corrections.
    """
    corrected = {"recording_id": [*editions], "edition": [*editions.values()]}
    turns = store.names(SPEAKERS_FOLDER)
    with RunTables(store, columns=VERSION_COLUMNS, opened="false") as tables:
        tables.add("made", made_so_far(store, store.names(folder_of(hook.name))))
        tables.add("turns", made_so_far(store, turns))
        tables.add("corrected", pa.table(corrected, _CORRECTED))
        tables.execute(_EDITIONS)
        query = wanted(also=_EDITION, joined="left join editions using (recording_id)")
        keys = tables.table(query, settings=hook.fingerprint)
        tables.add("wanted", keys)
        tables.open(keys["recording_id"])
        yield len(keys), _portions(tables, turns)


def _portions(tables: RunTables, turns: Sequence[str]) -> Iterator[HookPortion]:
    for portion in portions_of(tables, "wanted", at_once=RECORDINGS_PER_PORTION):
        ids = [*portion.recordings]
        where = "where recording_id in (select unnest($ids))"
        numbers = tables.rows(
            f"select distinct last_value from (select max(number) as last_value from turns {where} "
            "group by recording_id) order by all", ids=ids,
        )  # fmt: skip
        made_rows = tables.rows(
            f"select distinct recording_id from made {where} and made_of is not null", ids=ids
        )
        yield HookPortion(
            portion=portion,
            turns=[turns[number] for (number,) in numbers],
            known=frozenset(recording_id for (recording_id,) in made_rows),
        )


def remove_other_columns(store: OutputStore, hook: HookSettings) -> None:
    """Remove a hook's table with other columns, since no rows can be added to it."""
    schema = schema_of(hook)
    for name in store.names(folder_of(hook.name)):
        for batch in store.batches(name, batch_rows=1):
            if not batch.schema.equals(schema):
                store.remove(name)
            break


def hooks_of(store: OutputStore) -> list[str]:
    """Return the names of hooks with a table."""
    return sorted({name.split("/")[1] for name in store.names(HOOKS_FOLDER)})


def read_rows(
    store: OutputStore, name: str, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield a hook's rows, each recording once, including failure rows.

    Memory: some rows, and about 50 bytes per recording.

    Raises:
        ConfigError: the table does not exist.
    """
    names = store.names(folder_of(name))
    if not names:
        hook_names = ", ".join(hooks_of(store)) or "none"
        raise ConfigError(
            f"reading the hook {name!r} of {redact_uri(store.uri)}: found the tables of "
            f"{hook_names}, expected one of that name; correct it, or run a job with such a hook"
        )
    newest = newest_of(made_so_far(store, names))
    for number, object_name in enumerate(names):
        for batch in store.batches(object_name, columns=columns):
            counts = pc.is_in(batch["recording_id"], value_set=newest.get(number, NO_IDS))
            rows = pa.table(batch)
            yield rows if pc.all(counts).as_py() else rows.filter(counts)  # vectors are large


def read_hook(uri: str, name: str, *, endpoint_url: str | None = None) -> pa.Table:
    """Return a hook's results of a run as an Arrow table.

    Rows are keyed by `recording_id`, for a hook per segment also by `part` and `segment` of
    `read_segments`. Recordings with a failure or without results have no rows.

    Raises:
        ConfigError: the table does not exist.
    """
    store = open_run(uri, endpoint_url=endpoint_url)
    rows = pa.concat_tables([*read_rows(store, name)] or [HOOKS.empty_table()])
    told = pa.array([False] * rows.num_rows, pa.bool_())
    for column in rows.schema.names:
        if column not in ("recording_id", "uri", *STATE):
            told = pc.or_(told, pc.is_valid(rows[column]))
    return rows.filter(told).drop_columns([*STATE])
