"""How often recordings that fail for a passing reason were tried, over all nights.

In: committed outcomes, and what was noted before. Out: recordings with the number of runs that
failed on them. A run is counted by its identity in the outcomes, so one that was killed counts as
well, and one that did not get so far does not. New content is counted anew.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.storage.run_state.tables import OutputStore

FAILING_NAME = "_run/failing.parquet"
_COLUMNS = ("recording_id", "uri", "etag", "size_bytes", "run_id", "status", "retryable")
_SCHEMA = pa.schema(
    [
        ("recording_id", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("run_id", pa.string()),
        ("tries", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A recording that failed, and of which another try may come out otherwise."""

    recording_id: str
    uri: str
    etag: str | None
    size_bytes: int | None
    run_id: str
    """The run that failed on it last."""
    tries: int = 1
    """Runs that failed on this content."""

    def after(self, before: "Failing | None") -> "Failing":
        """Return it with the tries that were noted before."""
        if before is None or (before.etag, before.size_bytes) != (self.etag, self.size_bytes):
            return self
        tries = before.tries + (before.run_id != self.run_id)
        return replace(self, tries=tries)


def count_tries(store: OutputStore) -> list[Failing]:
    """Return the recordings that are failing now, by address.

    Raises:
        FetchError: the store does not answer.
    """
    noted = {one.recording_id: one for one in _noted(store)}
    found: dict[str, Failing] = {}
    for batch in store.outcomes(_COLUMNS):
        retryable = pc.fill_null(batch["retryable"], False)
        failed = pc.and_(pc.equal(batch["status"], "failed"), retryable)
        for row in batch.filter(failed).select(_SCHEMA.names[:-1]).to_pylist():
            latest = found.get(row["recording_id"])
            # Identities of runs sort by the time that they began.
            if latest is None or latest.run_id < row["run_id"]:
                found[row["recording_id"]] = Failing(**row)
    counted = (one.after(noted.get(one.recording_id)) for one in found.values())
    return sorted(counted, key=lambda one: one.uri)


def note_tries(store: OutputStore, failing: Iterable[Failing]) -> None:
    """Keep what was counted for the next night.

    Raises:
        FetchError: the store failed beyond its retries.
    """
    rows = [asdict(one) for one in failing]
    store.write_table(FAILING_NAME, pa.Table.from_pylist(rows, schema=_SCHEMA))


def _noted(store: OutputStore) -> Iterable[Failing]:
    if not store.exists(FAILING_NAME):
        return []
    return [Failing(**row) for row in store.read_table(FAILING_NAME, _SCHEMA).to_pylist()]
