"""Recordings that this program fails on: how many nights tried each of them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.tables import OutputStore

FAILING_NAME = "_run/failing.parquet"
_FAILING = pa.schema([
    ("recording_id", pa.string()), ("uri", pa.string()), ("etag", pa.string()),
    ("size_bytes", pa.int64()), ("run_id", pa.string()), ("tries", pa.int32()),
])  # fmt: skip
# Identities of runs sort by the time that they began.
_LATEST = """
select recording_id, uri, outcomes.etag, outcomes.size_bytes, run_id
from outcomes join standing using (id) join live using (id, recording_id)
where live.origin = 'program' and failed and (counts or failing)
qualify row_number() over (partition by recording_id order by run_id desc, id desc) = 1
order by uri
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A recording that this program failed on, so that nights try it again a few times."""

    recording_id: str
    uri: str
    etag: str | None
    size_bytes: int | None
    run_id: str  # the run that failed on it last
    tries: int = 1  # runs that failed on this content

    def after(self, before: "Failing | None") -> "Failing":
        """Return it with the tries that were noted before."""
        if before is None or (before.etag, before.size_bytes) != (self.etag, self.size_bytes):
            return self
        return replace(self, tries=before.tries + (before.run_id != self.run_id))


def count_tries(store: OutputStore) -> list[Failing]:
    """Return the recordings that are failing now, by address."""
    noted: dict[str, Failing] = {}
    if store.exists(FAILING_NAME):
        for row in store.read_table(FAILING_NAME, _FAILING).to_pylist():
            noted[row["recording_id"]] = Failing(**row)
    with RunTables(store, columns=(*VERSION_COLUMNS, "uri")) as tables:
        latest = tables.table(_LATEST).to_pylist()
    found = (Failing(**row) for row in latest)
    return [failing.after(noted.get(failing.recording_id)) for failing in found]


def note_tries(store: OutputStore, failing: Iterable[Failing]) -> None:
    """Keep what was counted for the next night."""
    rows = [asdict(recording) for recording in failing]
    store.write_table(FAILING_NAME, pa.Table.from_pylist(rows, schema=_FAILING))
