"""Arrow's stream format read batch by batch in any order, which caches of Hugging Face are in.

In comes an open file. A stream has no index: the heads of its messages are read for one, the bodies
are passed over. Independent of stores and of what the rows mean.

Source: Arrow, "Encapsulated message format"; `Message.fbs` for the places within a head.
"""

import io
import struct
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

FILE_MAGIC, STREAM_MAGIC = b"ARROW1", b"\xff\xff\xff\xff"
_PREFIX = struct.Struct("<4si")  # that it goes on, and how long the head is
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # kinds of heads
_KIND, _HEAD, _BODY_BYTES = 1, 2, 3  # fields of a message
_NUM_ROWS = 0  # field of the head of a batch
_MOST_HEAD_BYTES = 64 * 2**20


class _Message(NamedTuple):
    start: int
    stop: int
    kind: int
    num_rows: int


class ArrowStream:
    """An open file in Arrow's stream format.

    Reads raise `pa.ArrowException` where it is broken.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        """Find the batches; those before a break are there, `check_whole` tells of it."""
        self._file = file
        self._size_bytes = file.seek(0, io.SEEK_END)
        self._broken: str | None = None
        self._first: list[_Message] = []  # what each batch needs to be read: schema, dictionaries
        self._batches: list[_Message] = []
        position = 0
        try:
            while (message := self._message(position)) is not None:
                of_kind = self._batches if message.kind == _BATCH else self._first
                of_kind.append(message)
                position = message.stop
        except (struct.error, pa.ArrowInvalid) as error:
            self._broken = f"it is cut off or damaged at byte {position}: {error}"
        if not self._first or self._first[0].kind != _SCHEMA:
            raise pa.ArrowInvalid(self._broken or "a stream without a schema")
        self.schema = self._open([]).schema

    @property
    def num_batches(self) -> int:
        """How many batches are whole."""
        return len(self._batches)

    def num_rows(self, batch: int) -> int:
        """Return how many rows a batch has."""
        return self._batches[batch].num_rows

    def num_bytes(self, batch: int) -> int:
        """Return how many bytes a batch has in the file."""
        return self._batches[batch].stop - self._batches[batch].start

    def read(self, batch: int, fields: Sequence[int]) -> pa.RecordBatch:
        """Return columns of a batch by their places in the schema."""
        return self._open([self._batches[batch]], fields).read_next_batch()

    def check_whole(self) -> None:
        """Raise `pa.ArrowInvalid` if more is broken than the batches that were found."""
        if self._broken is not None:
            raise pa.ArrowInvalid(self._broken)

    def _open(
        self, batches: Sequence[_Message], fields: Sequence[int] = ()
    ) -> pa.RecordBatchStreamReader:
        # A stream of its own, so that the library resolves dictionaries and compression.
        pieces = [self._bytes(each.start, each.stop) for each in (*self._first, *batches)]
        options = pa.ipc.IpcReadOptions(included_fields=list(fields))
        return pa.ipc.open_stream(pa.py_buffer(b"".join(pieces)), options=options)

    def _message(self, start: int) -> _Message | None:
        if start >= self._size_bytes:
            return None  # an end mark may be missing
        magic, length = _PREFIX.unpack(self._bytes(start, start + _PREFIX.size))
        if magic != STREAM_MAGIC or not 0 <= length <= _MOST_HEAD_BYTES:
            raise pa.ArrowInvalid(f"no message, but {magic!r}")
        if length == 0:
            return None
        body = start + _PREFIX.size + length
        head = _Flatbuffer(self._bytes(start + _PREFIX.size, body))
        message = head.table(0)
        kind, body_bytes = head.value(message, _KIND, "<B"), head.value(message, _BODY_BYTES, "<q")
        num_rows = 0
        if kind == _BATCH:
            num_rows = head.value(head.table(head.place(message, _HEAD)), _NUM_ROWS, "<q")
        if kind not in (_SCHEMA, _DICTIONARY, _BATCH) or min(body_bytes, num_rows) < 0:
            raise pa.ArrowInvalid(f"a message of kind {kind}")
        if body + body_bytes > self._size_bytes:
            raise pa.ArrowInvalid(f"{body_bytes} bytes of a message that ends sooner")
        return _Message(start, body + body_bytes, kind, num_rows)

    def _bytes(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(stop - start)
        if len(data) < stop - start:
            raise pa.ArrowInvalid(f"{len(data)} of {stop - start} bytes")
        return data


class _Flatbuffer:
    # The few places of a head that are needed; what lies outside of it is a `struct.error`.

    def __init__(self, data: bytes) -> None:
        self._data = data

    def table(self, reference: int) -> int:
        """Return where the table lies that a reference leads to."""
        return reference + self._at("<I", reference)

    def place(self, table: int, field: int) -> int:
        """Return where a field of a table lies; 0 if it has its default."""
        fields = table - self._at("<i", table)
        at = 4 + 2 * field
        offset = self._at("<H", fields + at) if at < self._at("<H", fields) else 0
        return table + offset if offset else 0

    def value(self, table: int, field: int, kind: str) -> int:
        """Return a number of a table."""
        place = self.place(table, field)
        return self._at(kind, place) if place else 0

    def _at(self, kind: str, place: int) -> int:
        if place < 0:
            raise struct.error(f"a place {place} before the head")
        found: int = struct.unpack_from(kind, self._data, place)[0]
        return found
