"""Recordings selected for reprocessing by an SQL condition on their results, and their notes.

The selection is saved in `REDO_NAME` before any work; `run_tables` decides which rows are current.
A note is removed once no row of the attempt is left.
"""

import difflib
import re

import pyarrow as pa

from corpus_asr.errors import ConfigError, encodable
from corpus_asr.schemas import RECORDINGS
from corpus_asr.storage.run_state.current_rows import read_confidences
from corpus_asr.storage.run_state.manifest_columns import join_columns
from corpus_asr.storage.run_state.run_tables import REDO, REDO_NAME, RunTables, read_redo
from corpus_asr.storage.run_state.table_names import PartRows
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import shortened

ALL = "all"
# That column is unknown before there is a listing.
_RECORDINGS = tuple(name for name in RECORDINGS.names if name != "gone_since")
_MODEL_COLUMNS = ("model", "model_revision")
# If a recording's newer version failed, the text is of an earlier one, the error of the newer.
_ERROR = ("error_stage", "error_kind", "error_message", "retryable")
_ASKED = f"""
create or replace table asked as
with failed as (
  select recording_id, {", ".join(f"arg_min({name}, part) as {name}" for name in _ERROR)}
  from failing group by all)
select {
    ", ".join(
        f"coalesce(recordings.{name}, failed.{name}) as {name}"
        if name in _ERROR
        else f"recordings.{name}"
        for name in _RECORDINGS
    )
}, complete, languages[1] as language, confidence, named.model, named.model_revision
from recordings left join failed using (recording_id)
left join confidences using (recording_id)
left join (select recording_id, any_value(model) as model,
                  any_value(model_revision) as model_revision
           from scored where counts group by all) named using (recording_id)
"""
COLUMNS = (*_RECORDINGS, "complete", "language", "confidence", *_MODEL_COLUMNS)
"""Columns available to a condition."""
_WAITING = """
select recording_id from redo anti join (from attempts where not redone) using (recording_id)
"""
# Continuing these with other settings would mix both in one recording.
_UNFINISHED = f"""
select recording_id from recordings
where status = 'failed' or not complete or failed_since
   or recording_id in (select recording_id from failing)
   or recording_id in ({_WAITING})
   or recording_id in (
     select recording_id from row_states join part_rows using (id) where waits)
"""


def chosen(
    store: OutputStore, tables: RunTables, where: str, rows: PartRows, *, other_settings: bool
) -> pa.Array:
    """Return the IDs of recordings that match a condition, or of `all` of them.

    Recordings already waiting to be reprocessed are excluded. With `other_settings` than the
    folder's they are included, as are all incomplete or failed recordings.

    Raises:
        ConfigError: it is not a valid condition on `COLUMNS`.
    """
    if encodable(where) != where:
        raise _wrong(encodable(where), "half of a surrogate pair", "write it in UTF-8")
    if where.strip().lower() == ALL:
        ids = "select recording_id from recordings"
    else:
        _make_asked(store, tables, where, rows)
        tables.add("found", _matching(tables, where))
        ids = "select recording_id from found"
    if other_settings:
        ids = f"{ids} union {_UNFINISHED}"
    else:
        ids = f"select recording_id from ({ids}) where recording_id not in ({_WAITING})"
    return tables.table(f"{ids} order by recording_id")["recording_id"].combine_chunks()


def _make_asked(store: OutputStore, tables: RunTables, where: str, rows: PartRows) -> None:
    # Segments are read only if the condition needs them: there may be a billion.
    named = any(name in where.lower() for name in ("confidence", "model"))
    read_confidences(store, tables, rows, which="counts" if named else "false")
    if "metadata" in where.lower():
        join_columns(store, tables)
    tables.execute(_ASKED)


def _matching(tables: RunTables, where: str) -> pa.Table:
    import duckdb  # as in `run_tables`

    try:
        condition = duckdb.SQLExpression(where)
        relation = tables.relation("asked")
        [kind] = relation.select(condition).types
        if str(kind) != "BOOLEAN":
            raise _wrong(where, f"a value of type {kind}", "compare it with a value")
        rows: pa.Table = relation.filter(condition).select("recording_id").to_arrow_table()
    except duckdb.Error as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise _wrong(where, lines[0], _hint(str(error))) from error
    return rows


def _hint(message: str) -> str:
    """Return advice about a database error."""
    match = re.search(r'Referenced (?:column|table) "([^"]+)"', message)
    if match is None:
        return "correct it"
    name = match[1].lower()
    near = difflib.get_close_matches(name, COLUMNS, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"text stands in 'single quotes', and columns are {', '.join(COLUMNS)}"


def _wrong(where: str, found: str, advice: str) -> ConfigError:
    return ConfigError(
        f"reading --redo {shortened(where, 200)!r}: found {found}, expected a condition in SQL on "
        f'recordings, such as "confidence < 0.5" or "error_kind = \'timeout\'", or {ALL}; '
        f"{advice}"
    )


def note_redo(store: OutputStore, redo: pa.Table) -> None:
    """Write the REDO rows of a folder."""
    if redo.num_rows:
        store.write_table(REDO_NAME, redo)
    elif store.exists(REDO_NAME):
        store.remove(REDO_NAME)


# Attempts of which a finish keeps rows.
_OPEN = """
select redo.* from redo semi join (
  select recording_id, begun_by from row_states join part_rows using (id) where enters or waits
  union all select recording_id, begun_by from unopened) kept using (recording_id, begun_by)
"""


def forget_done(store: OutputStore, tables: RunTables) -> None:
    """After a finish, remove the notes of recordings without earlier results."""
    notes = read_redo(store)
    if notes.num_rows:
        open_notes = tables.table(_OPEN).cast(REDO)
        if open_notes.num_rows < notes.num_rows:
            note_redo(store, open_notes)
