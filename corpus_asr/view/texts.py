"""Tables of a run that is shown: its recordings, its searchable texts, what people corrected.

They lie beside those of `RunTables`:

- `shown`: one row for each recording; `number` is its place by URI;
- `described`: the same with all else that is known of them;
- `texts`: segments that count, by `place`: as their objects hold them;
- `edits`: all texts of recordings of which people corrected or checked some, by places of their
  own, with the `edition` of what they said;
- `said`: texts as people see them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.edits.corrected_segments import EditedRow, apply_corrections
from corpus_asr.edits.corrections import Corrections
from corpus_asr.export.recordings import WORD_COLUMNS
from corpus_asr.report.formatting import visible
from corpus_asr.storage.run_state.current_rows import counting_rows, gathered
from corpus_asr.storage.run_state.part_rows import part_rows_at
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import SEGMENT_ROWS
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.view.search import folded_lines

_SEGMENT_COLUMNS = ("start_s", "end_s", "channel", "language", "confidence", "text")
_SHOWN = """
create table shown as
select row_number() over (order by uri, recording_id) as number, recording_id, uri,
  coalesce(end_s, 0.0) as duration_s, languages[1] as language,
  case when status = 'failed' then status when not complete then 'unfinished'
       when status = 'ok' then 'done' else status end as state
from recordings
"""
_DESCRIBED = """
create view described as
select shown.*, recordings.* exclude (recording_id, uri, duration_s)
                    replace (segments::bigint as segments)
from shown join recordings using (recording_id)
"""
_OWNERS = """
create or replace table owners as
select id, number, name, row from parts join objects using (object) join shown using (recording_id)
"""
_TEXTS = """
create or replace table texts (
  place bigint, id bigint, number bigint, start_s double, end_s double, channel integer,
  language varchar, confidence float, text varchar, folded varchar)
"""
# Objects never change: of an outcome that counted before, the texts are known.
_TAKEN = """
create or replace table taken as
select owners.id, owners.number, earlier.id as before from owners join earlier using (name, row)
"""
_TAKE = """
insert into texts
select arriving.* replace (taken.id as id, taken.number as number)
from arriving join taken on arriving.id = taken.before
"""
_UNREAD = "(select * from parts anti join taken using (id))"
_READ = """
insert into texts
select place, id, number, start_s, end_s, channel, language, confidence, coalesce(text, ''), folded
from arriving join owners using (id)
"""
_EDITS = pa.schema([
    ("place", pa.int64()), ("id", pa.int64()), ("number", pa.int64()), ("start_s", pa.float64()),
    ("end_s", pa.float64()), ("channel", pa.int32()), ("language", pa.string()),
    ("confidence", pa.float32()), ("text", pa.string()), ("folded", pa.string()),
    ("correction", pa.string()), ("edition", pa.string()),
])  # fmt: skip
_SAID = """
create or replace view said as
select *, null::varchar as correction
from texts anti join (select number from edits) using (number)
union all by name select * exclude (edition) from edits where place is not null
"""
# One statement: whoever searches meanwhile has the ones before or these.
_EDIT = """
create or replace table edits as
select * from edits where number in (select unnest($kept::bigint[]))
union all by name from arriving
"""
# Places of edited texts are beyond those of all others.
_FIRST_EDIT = 1 << 60

Places = tuple[tuple[str, int, int], ...]
"""Positions of a recording's rows: object, first segment, and the one after the last."""
_BY_TIME = [(name, "ascending") for name in ("start_s", "channel", "part", "segment")]


def segments_at(store: OutputStore, places: Places) -> pa.Table:
    """Return the segments of a recording, as the model has them, in order of time."""
    columns = (*WORD_COLUMNS, "no_speech_prob", "model")
    spans: dict[str, list[tuple[int, int]]] = {}
    for name, start, stop in places:
        held = spans.setdefault(name, [])
        # Parts one after the other are one span, whose rows are read once.
        held.append((held.pop()[0] if held and held[-1][1] == start else start, stop))
    read = (part_rows_at(store, name, SEGMENT_ROWS, columns, held) for name, held in spans.items())
    empty = projected(SEGMENT_ROWS.schema, columns).empty_table()
    return pa.concat_tables([empty, *chain.from_iterable(read)]).sort_by(_BY_TIME)


def add_shown(tables: RunTables) -> None:
    """Make the tables of recordings."""
    for statement in (_SHOWN, _DESCRIBED):
        tables.execute(statement)
    tables.execute("checkpoint")  # what is compressed takes a third of the memory


def add_texts(
    store: OutputStore,
    tables: RunTables,
    *,
    known: RunTables | None,
    on_rows: Callable[[int], None],
) -> None:
    """Make the table of texts, reading those that are not in the tables of an earlier state.

    `on_rows` is called with the number of rows just read.
    """
    for statement in (_OWNERS, _TEXTS):
        tables.execute(statement)
    tables.add("edits", _EDITS.empty_table())
    tables.execute(_SAID)
    counted = "select name, row, id from owners"
    tables.add("earlier", (known or tables).table(f"{counted} where {known is not None}"))
    tables.execute(_TAKEN)
    for batch in () if known is None else known.batches("from texts"):
        tables.execute(_TAKE, pa.Table.from_batches([batch]))
        on_rows(0)
    [(first,)] = tables.rows("select coalesce(max(place) + 2, 0) from texts")

    def placed() -> Iterator[pa.Table]:
        place = first
        for rows, ids in counting_rows(store, tables, SEGMENT_ROWS, _SEGMENT_COLUMNS, of=_UNREAD):
            folded = _folded(pc.fill_null(rows["text"], "").to_pylist())
            places = pa.array(np.arange(place, place + rows.num_rows))
            place += rows.num_rows
            rows = rows.append_column("id", ids).append_column("place", places)
            yield rows.append_column("folded", folded)
            on_rows(rows.num_rows)

    for rows in gathered(placed()):
        tables.execute(_READ, rows)
    for statement in ("drop table earlier", "drop table taken", "force checkpoint"):
        tables.execute(statement)


def _folded(texts: list[str]) -> pa.Array:
    lines = folded_lines(texts) if texts else []
    return pa.array([f" {line} " for line in lines], pa.string())


@dataclass(frozen=True, slots=True)
class Edits:
    """Corrections to apply to the texts, in place of all earlier ones but those of `kept`."""

    rows: pa.Table
    kept: Sequence[int]
    """Numbers of recordings."""

    def put(self, tables: RunTables) -> None:
        """Make the edits visible to searches."""
        tables.execute(_EDIT, self.rows, kept=self.kept)


def read_edits(
    store: OutputStore,
    tables: RunTables,
    places_of: Callable[[str], Places],
    corrections: Corrections,
) -> Edits | None:
    """Read the texts changed by these corrections; None if they are up to date.

    Only recordings with new corrections are read.
    """
    numbers = dict(
        tables.rows(
            "select recording_id, number from shown "
            "where recording_id in (select unnest($ids::varchar[]))",
            ids=corrections.recording_ids,
        )
    )
    edition_of = dict(tables.rows("select distinct number, edition from edits"))
    editions = corrections.editions
    fresh = [
        recording_id
        for recording_id, at in numbers.items()
        if edition_of.get(at) != editions[recording_id]
    ]
    kept = [at for recording_id, at in numbers.items() if recording_id not in fresh]
    if not fresh and len(kept) == len(edition_of):
        return None
    [(first,)] = tables.rows(f"select coalesce(max(place) + 2, {_FIRST_EDIT}) from edits")
    edits = [_EDITS.empty_table()]
    for recording_id in fresh:
        corrected = apply_corrections(
            segments_at(store, places_of(recording_id)), corrections.of(recording_id)
        )
        rows = corrected.rows
        texts = pc.fill_null(rows["text"], "")
        json_texts: list[str | None] = [None] * rows.num_rows
        for at, edit in corrected.edits.items():
            json_texts[at] = json.dumps(said_of(edit))
        same = {"number": numbers[recording_id], "edition": editions[recording_id]}
        columns = {name: rows[name] for name in _SEGMENT_COLUMNS} | {
            "place": pa.array(np.arange(first, first + rows.num_rows)),
            "id": pa.nulls(rows.num_rows, pa.int64()),
            "text": texts,
            "folded": _folded(texts.to_pylist()),
            "correction": pa.array(json_texts, pa.string()),
            **{
                name: pa.array([value] * rows.num_rows, _EDITS.field(name).type)
                for name, value in same.items()
            },
        }
        first += rows.num_rows + 1
        edits.append(pa.table(columns).select(_EDITS.names).cast(_EDITS))
        if not rows.num_rows:  # recorded as read
            edits.append(pa.Table.from_pylist([same], schema=_EDITS))
    return Edits(pa.concat_tables(edits), kept)


def said_of(edit: EditedRow) -> dict[str, Any]:
    """Return the correction that made a segment, as JSON values."""
    correction, segment = edit.correction, edit.segment
    return {
        "id": correction.id,
        "key": edit.key,
        "text": segment.text,
        "original": visible(edit.original.strip()),
        "changed": edit.is_changed,
        "checked": segment.checked,
        "name": visible(correction.name),
        "saved_at": correction.saved_at,
        "start_s": segment.start_s,
    }
