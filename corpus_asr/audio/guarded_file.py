"""The bytes of a recording as libav reads them: errors kept, wrong lengths in headers corrected.

A header of uncompressed audio is written when recording starts, and again when it ends: if the
recorder was killed, it has an early length, none, or one truncated to 32 bits.

Sources: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF);
EBU Tech 3306 (RF64).
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from corpus_asr.errors import FetchError

_HEAD_BYTES = 4096
_MAX_CHUNKS = 64  # before the samples; usually three or four
# Chunks that programs write after the samples.
_LATER_CHUNKS = (b"LIST", b"bext", b"iXML", b"cue ", b"smpl", b"inst", b"plst", b"id3 ", b"ID3 ",
                 b"_PMX", b"JUNK", b"PAD ")  # fmt: skip
_TAIL_BYTES = 1 << 20
_FIRST_CHUNK = 12
_CHUNK = struct.Struct("<4sI")  # name and length


class BinarySource(Protocol):
    """Interface of a binary file object for decoding."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes; empty at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Seek and return the position from the start."""


class GuardedFile:
    """A file object for libav that stores read errors, which libav would treat as end of file.

    libav calls `read` from C, where exceptions cannot propagate: the recording would end early, and
    a failing store would look like a short recording. The error is stored, libav sees the end of
    the file, and `check` raises the error.
    """

    def __init__(self, file: BinarySource, *, uri: str) -> None:
        self._file = file
        self._uri = uri
        self._position = 0  # position assumed by libav
        self._file_position = 0  # updated only by reads: damaged headers seek anywhere
        self._failure: BaseException | None = None
        self._mended: tuple[int, bytes] | None = None
        try:
            self.num_bytes = file.seek(0, 2)
            file.seek(0)
        except OSError as error:
            raise self._fetch_error(f"found no size ({error})") from error
        # Headerless formats (g722, sbc, ...) are recognized by suffix. libav does not need the rest
        # of the name, which may be malicious. A query may follow it.
        suffix = re.search(r"(\.[A-Za-z0-9]{1,8})(\?\S*)?$", uri)
        self.name = f"recording{suffix.group(1) if suffix else ''}"

    def check(self) -> None:
        """Raise a stored read error; FetchError for an `OSError` or a premature end."""
        if self._failure is not None:
            raise self._failure

    def span(self, start: int, num_bytes: int) -> bytes:
        """Read bytes at any position; the current position is unchanged."""
        position = self._position
        self.seek(start)
        pieces = []
        while num_bytes and (data := self.read(num_bytes)):
            pieces.append(data)
            num_bytes -= len(data)
        self.seek(position)
        return b"".join(pieces)

    @property
    def is_mended(self) -> bool:
        """Whether its header was corrected."""
        return self._mended is not None

    def mend(self, correction: "_Correction") -> None:
        """Correct the length of the samples in all later reads."""
        self._mended, self.num_bytes = (correction.at, correction.length), correction.end

    def read(self, num_bytes: int) -> bytes:
        """Read up to `num_bytes`; empty at the end and after an error."""
        if self._failure is not None or self._position >= self.num_bytes:
            return b""
        try:
            if self._file_position != self._position:
                self._file.seek(self._position)
            data = self._file.read(num_bytes)
            if not 0 < len(data) <= num_bytes:  # more would overrun libav's buffer
                description = f"{len(data)} bytes came at {self._position} of {self.num_bytes}"
                raise self._fetch_error(f"{description}, expected 1 to {num_bytes}")
        except BaseException as error:  # stored, not swallowed: `check` raises it
            self._failure = error
            if isinstance(error, OSError):
                self._failure = self._fetch_error(f"{type(error).__name__}: {error}")
                self._failure.__cause__ = error
            return b""
        data = self._with_mended(bytes(data))
        self._position += len(data)
        self._file_position = self._position
        return data

    def _with_mended(self, data: bytes) -> bytes:
        if self._mended is None:
            return data
        at, mended = self._mended
        first, stop = max(at, self._position), min(at + len(mended), self._position + len(data))
        if first >= stop:
            return data
        patch = mended[first - at : stop - at]
        return data[: first - self._position] + patch + data[stop - self._position :]

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek to `offset` from the start (0), here (1) or the end (2); -1 before the start."""
        target = (0, self._position, self.num_bytes)[whence] + offset
        if target < 0:
            return -1
        self._position = target
        return target

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seekable(self) -> bool:
        """Return true: long files need range reads."""
        return True

    def _fetch_error(self, found: str) -> FetchError:
        return FetchError(
            f"reading {self._uri}: {found}; run again when the store responds", uri=self._uri
        )


def _chunks(file: GuardedFile, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length of the chunks from a position."""
    for _ in range(_MAX_CHUNKS):
        header = file.span(at, _CHUNK.size)
        if len(header) < _CHUNK.size:
            return
        name, length = _CHUNK.unpack(header)
        yield name, at + _CHUNK.size, length
        at += _CHUNK.size + length + length % 2


def _is_chunk(file: GuardedFile, at: int) -> bool:
    """Whether a chunk starts at a position, or the file ends."""
    header = file.span(at, _CHUNK.size)
    if len(header) < _CHUNK.size:
        return True  # the end, or an incomplete chunk
    name, length = _CHUNK.unpack(header)
    is_name = all(0x20 <= byte < 0x7F for byte in name)
    return is_name and at + _CHUNK.size + length <= file.num_bytes + 1


class _PcmData(NamedTuple):
    """The samples of a file according to its header."""

    start: int
    length: int
    """Length in bytes; 0 if unknown."""
    field: int
    """Position of the length field."""
    written: str
    """Length field as a `struct` format."""

    @property
    def most(self) -> int:
        """Maximum length that does not mean unknown."""
        return 2**63 - 2 if self.written == "<Q" else 2**32 - 2


class _Correction(NamedTuple):
    at: int
    """Position of the length field."""
    length: bytes
    """Corrected content of the length field."""
    end: int
    """End of the samples."""


def correct_length(file: GuardedFile) -> None:
    """Correct a wrong length of the samples in a file's header."""
    samples = _samples_of(file)
    correction = None if samples is None else _corrected(file, samples)
    file.check()
    if correction is not None:
        file.mend(correction)


def _samples_of(file: GuardedFile) -> _PcmData | None:
    head = file.span(0, _HEAD_BYTES)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:12] != b"WAVE":
        return None
    long_at, long_length = None, 0
    for name, start, length in _chunks(file, _FIRST_CHUNK):
        if name == b"ds64" and head[:4] != b"RIFF":
            long_at = start + 8
            (long_length,) = struct.unpack("<Q", file.span(long_at, 8).ljust(8, b"\0"))
        elif name == b"data":
            if long_at is not None:
                return _PcmData(start, long_length, long_at, "<Q")
            return _PcmData(start, length, start - 4, "<I")
    return None


def _corrected(file: GuardedFile, samples: _PcmData) -> _Correction | None:
    start, length, file_end = samples.start, samples.length, file.num_bytes
    is_known = 0 < length <= samples.most
    claimed = start + length if is_known else file_end
    behind = file_end - claimed
    # Other data behind the samples is short: more are samples that were not counted.
    is_whole = (
        is_known
        and behind >= 0
        and (
            behind <= min(length, _TAIL_BYTES)
            or any(_is_chunk(file, claimed + pad) for pad in {0, length % 2})
        )
    )
    end = file_end if is_whole else _before_chunks(file, samples)
    # libav handles lengths that are too large, but not always a length of zero or none.
    reads_on = (is_known or samples.written == "<I") and behind <= 0
    if is_whole or end == start or (end == file_end and reads_on):
        return None
    num_bytes = end - start
    if num_bytes > samples.most:
        num_bytes = 0 if samples.written == "<I" else samples.most
    return _Correction(at=samples.field, length=struct.pack(samples.written, num_bytes), end=end)


def _before_chunks(file: GuardedFile, samples: _PcmData) -> int:
    """Return the end of samples of unknown length: before chunks that extend to the file's end."""
    end = file.num_bytes
    first = max(samples.start, end - _TAIL_BYTES)
    tail = file.span(first, end - first)
    places = sorted(
        first + at for name in _LATER_CHUNKS for at in _places(tail, name) if first + at < end
    )
    for place in places:
        stop = place
        for _, start, length in _chunks(file, place):
            stop = start + length + length % 2
        if end <= stop <= end + 1:
            return place
    return end


def _places(data: bytes, name: bytes) -> Iterator[int]:
    at = data.find(name)
    while at >= 0:
        yield at
        at = data.find(name, at + 1)
