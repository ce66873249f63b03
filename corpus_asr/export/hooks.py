"""What users' functions made of transcripts, as a table.

In: the table of a hook. Out: its rows that tell something.
"""

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.hooks import STATE
from corpus_asr.schemas import HOOKS
from corpus_asr.storage.run_state.hook_rows import read_rows
from corpus_asr.storage.run_state.run_files import open_run


def read_hook(uri: str, name: str, *, endpoint_url: str | None = None) -> pa.Table:
    """Return what a hook of a run made of its recordings, as an Arrow table.

    Rows are known by `recording_id`, and by `part` and `segment` if the hook is one per segment:
    those of `read_segments`. Recordings for which the function failed or had nothing have none.

    Raises:
        ConfigError: there is no such table.
    """
    store = open_run(uri, endpoint_url=endpoint_url)
    tables = [*read_rows(store, name)] or [HOOKS.empty_table()]
    return with_values(pa.concat_tables(tables)).drop_columns([*STATE])


def with_values(rows: pa.Table) -> pa.Table:
    """Return the rows of a hook's table that tell something."""
    told = pa.array([False] * rows.num_rows, pa.bool_())
    for column in rows.schema.names:
        if column not in ("recording_id", "uri", *STATE):
            told = pc.or_(told, pc.is_valid(rows[column]))
    return rows.filter(told)
