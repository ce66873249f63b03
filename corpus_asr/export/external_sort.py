"""An external sort: rows of many recordings, grouped by recording through files on local disk.

Rows come in any order, each with its owner's number; they leave owner by owner, by number. Memory
holds the rows that wait to be written, and then one bucket: as many owners as have `bucket_rows`
rows together, or one that has more.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from corpus_asr.units import MEBIBYTE

BUCKET_ROWS = 50_000
WAITING_BYTES = 64 * MEBIBYTE
OWNER = "owner"


class ExternalSort:
    """Buckets of rows on disk; a context manager that removes them.

    Args:
        rows_of_owner: how many rows each owner has.
        order: the columns by which an owner's rows are sorted.
        bucket_rows: rows of a bucket, beyond those of one owner.
        waiting_bytes: rows that wait in memory to be written together.
    """

    def __init__(
        self,
        rows_of_owner: np.ndarray,
        *,
        order: Sequence[str],
        bucket_rows: int = BUCKET_ROWS,
        waiting_bytes: int = WAITING_BYTES,
    ) -> None:
        before = np.cumsum(rows_of_owner) - rows_of_owner
        # By number, so that buckets in their order hold owners in theirs.
        self._bucket_of_owner = before // bucket_rows
        self._order = [(OWNER, "ascending"), *((name, "ascending") for name in order)]
        self._waiting_limit = waiting_bytes
        self._waiting: dict[int, list[pa.Table]] = {}
        self._waiting_bytes = 0
        self._folder = tempfile.TemporaryDirectory(prefix="corpus-asr-export-")

    def __enter__(self) -> "ExternalSort":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def add(self, rows: pa.Table, owners: np.ndarray) -> None:
        """Take rows, each with its owner's number."""
        rows = rows.append_column(OWNER, pa.array(owners, pa.int64()))
        buckets = self._bucket_of_owner[owners]
        order = np.argsort(buckets, kind="stable")
        for positions in np.split(order, np.flatnonzero(np.diff(buckets[order])) + 1):
            if len(positions):
                some = rows.take(pa.array(positions))
                self._waiting.setdefault(int(buckets[positions[0]]), []).append(some)
                self._waiting_bytes += some.nbytes
        if self._waiting_bytes > self._waiting_limit:
            self._write_waiting()

    def by_owner(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows of each owner that has some, by number, in order."""
        self._write_waiting()
        for bucket in range(int(self._bucket_of_owner.max(initial=-1)) + 1):
            if not self._path(bucket).exists():
                continue
            # All at once: Arrow takes as long to sort a few rows as thousands.
            rows = self._read(bucket).sort_by(self._order).combine_chunks()
            owners = rows[OWNER].to_numpy()
            rows = rows.drop_columns([OWNER])
            starts = np.flatnonzero(np.diff(owners, prepend=-1))
            stops = np.append(starts[1:], len(owners))
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                yield int(owners[start]), rows.slice(start, stop - start)

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket}.arrows"

    def _write_waiting(self) -> None:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        for bucket, tables in self._waiting.items():
            rows = pa.concat_tables(tables).combine_chunks()
            # One stream after the other in a file that is not kept open: there may be thousands.
            with (
                self._path(bucket).open("ab") as file,
                pa.ipc.new_stream(file, rows.schema, options=options) as stream,
            ):
                stream.write_table(rows)
        self._waiting, self._waiting_bytes = {}, 0

    def _read(self, bucket: int) -> pa.Table:
        tables, path = [], self._path(bucket)
        with path.open("rb") as file:
            while file.tell() < path.stat().st_size:
                with pa.ipc.open_stream(file) as stream:
                    tables.append(stream.read_all())
        return pa.concat_tables(tables)
