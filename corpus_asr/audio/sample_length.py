"""Repairs wrong lengths in headers of uncompressed audio files, as recorders leave them.

A header is written when recording starts, and again when it ends: if the recorder was killed, it
has an early length, none, or one truncated to 32 bits.

Sources: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF);
EBU Tech 3306 (RF64).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

_HEAD_BYTES = 4096
_MAX_CHUNKS = 64  # before the samples; usually three or four
# Chunks that programs write after the samples.
_LATER_CHUNKS = (b"LIST", b"bext", b"iXML", b"cue ", b"smpl", b"inst", b"plst", b"id3 ", b"ID3 ",
                 b"_PMX", b"JUNK", b"PAD ")  # fmt: skip
_TAIL_BYTES = 1 << 20
_FIRST_CHUNK = 12
_CHUNK = struct.Struct("<4sI")  # name and length


class _File(Protocol):
    num_bytes: int

    def span(self, start: int, num_bytes: int) -> bytes: ...


class Correction(NamedTuple):
    """Correction of a file with a wrong header."""

    at: int
    """Position of the length field."""
    length: bytes
    """Corrected content of the length field."""
    end: int
    """End of the samples."""


def _chunks(file: _File, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length of the chunks from a position."""
    for _ in range(_MAX_CHUNKS):
        header = file.span(at, _CHUNK.size)
        if len(header) < _CHUNK.size:
            return
        name, length = _CHUNK.unpack(header)
        yield name, at + _CHUNK.size, length
        at += _CHUNK.size + length + length % 2


def _is_chunk(file: _File, at: int) -> bool:
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


def corrected_length(file: _File) -> Correction | None:
    """Return the correction of a file with a wrong header, else None."""
    samples = _samples_of(file)
    return None if samples is None else _corrected(file, samples)


def _samples_of(file: _File) -> _PcmData | None:
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


def _corrected(file: _File, samples: _PcmData) -> Correction | None:
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
    return Correction(at=samples.field, length=struct.pack(samples.written, num_bytes), end=end)


def _before_chunks(file: _File, samples: _PcmData) -> int:
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
