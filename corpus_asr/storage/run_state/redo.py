"""Which recordings are done again, by a condition in SQL on what they came to, and their notes.

What is asked for is noted in `REDO_NAME` before anything else is done; which rows then count is
`run_tables`'s to say. A note goes once no row is left of what its recording came to before.
"""

import difflib
import re

import pyarrow as pa

from corpus_asr.errors import ConfigError
from corpus_asr.schemas import RECORDINGS
from corpus_asr.storage.run_state.confidences import read_confidences
from corpus_asr.storage.run_state.manifest_columns import join_columns
from corpus_asr.storage.run_state.result_rows import PartRows
from corpus_asr.storage.run_state.run_tables import REDO, REDO_NAME, RunTables, read_redo
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import shortened

ALL = "all"
# What a listing says is not known before there is one.
_RECORDINGS = tuple(name for name in RECORDINGS.names if name not in ("listed_at", "gone"))
_MODEL_COLUMNS = ("model", "model_revision")
# Of a recording whose newer version failed, the text is of an earlier one and the error of this.
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
"""What a condition may name."""
_WAITING = """
select recording_id from generations anti join versions using (recording_id, generation)
"""
# Continuing these with other settings would mix both in one recording.
_UNFINISHED = f"""
select recording_id from recordings
where status = 'failed' or not complete or failed_since
   or recording_id in (select recording_id from failing)
   or recording_id in ({_WAITING})
   or recording_id in (
     select recording_id from standing join live using (id) where place = 2)
"""


def chosen(
    store: OutputStore, tables: RunTables, where: str, rows: PartRows, *, other_settings: bool
) -> pa.Array:
    """Return the IDs of recordings that a condition is true of, or of `all` of them.

    Those that wait to be done again already are left out, since they are done anyway. With
    `other_settings` than those of the folder, they are not, and all that is unfinished or failed
    comes in addition.

    Raises:
        ConfigError: it is no condition on the columns of `COLUMNS`.
    """
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
    # Segments are read where they are asked about alone: there may be a billion.
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
            raise _wrong(where, f"a value of type {kind}", "compare it with something")
        found: pa.Table = relation.filter(condition).select("recording_id").to_arrow_table()
    except duckdb.Error as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise _wrong(where, lines[0], _hint(str(error))) from error
    return found


def _hint(message: str) -> str:
    """Return what to do about an error of the database."""
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
    """Replace the REDO rows of a folder."""
    if redo.num_rows:
        store.write_table(REDO_NAME, redo)
    elif store.exists(REDO_NAME):
        store.remove(REDO_NAME)


# Rows that a finish keeps, by where they lie afterwards.
_OPEN = """
select redo.* from redo semi join (
  select recording_id, run_id from outcomes join standing using (id) where place != 0) kept
on redo.recording_id = kept.recording_id and list_contains(redo.earlier_runs, kept.run_id)
"""


def forget_done(store: OutputStore, tables: RunTables) -> None:
    """Remove the notes of recordings of which nothing earlier is left, after a finish."""
    before = read_redo(store)
    if before.num_rows:
        left = tables.table(_OPEN).cast(REDO)
        if left.num_rows < before.num_rows:
            note_redo(store, left)
