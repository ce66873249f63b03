"""WAV files whose header tells another length than they have, as recorders leave them.

A header is written when recording begins, and again when it ends: of one that was killed it claims
an early length, none, or what 32 bits hold of it; of one that takes its room beforehand, also the
zeros that were never recorded over.

Source: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF).
"""

import struct
from typing import NamedTuple, Protocol

_HEAD_BYTES = 4096
_MAX_CHUNKS = 64  # before the samples; there are three or four
_BLOCK_BYTES = 1 << 20
_LOOK_BYTES = 4096  # most files end with sound: nothing more of them is read
# Less of zeros is decoded in a second; it may be silence at the end of a recording.
_LEAST_ZEROS = 64 << 20
_TO_THE_END = 0xFFFF_FFFF


class _File(Protocol):
    num_bytes: int

    def span(self, start: int, num_bytes: int) -> bytes: ...


class Correction(NamedTuple):
    """What is to be read of a file whose header is wrong."""

    at: int
    """Where the length of its samples stands."""
    length: bytes
    """What should stand there."""
    end: int
    """Where its samples end: zeros behind, libav would look through for chunks."""


def corrected_length(file: _File) -> Correction | None:
    """Return what is right for a WAV file whose header is wrong, and None for all others."""
    head = file.span(0, _HEAD_BYTES)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at = 12
    for _ in range(_MAX_CHUNKS):
        header = head[at : at + 8] if at + 8 <= len(head) else file.span(at, 8)
        if len(header) < 8:
            return None
        name, length = struct.unpack("<4sI", header)
        if name == b"data":
            return _corrected(file, at + 4, length)
        at += 8 + length + length % 2
    return None


def _corrected(file: _File, field: int, length: int) -> Correction | None:
    start, file_end = field + 4, file.num_bytes
    # What libav takes for unknown lasts to the end.
    claimed = start + length if 0 < length < _TO_THE_END else file_end
    is_whole = claimed >= file_end or any(_is_chunk(file, claimed + pad) for pad in (0, 1))
    end = _without_zeros(file, start, min(claimed, file_end) if is_whole else file_end)
    if not is_whole:
        end = max(end, claimed)  # what lies behind may be zeros alone
    if end == start or (is_whole and end == min(claimed, file_end)):
        return None
    samples = end - start if end - start < _TO_THE_END else 0
    return Correction(at=field, length=struct.pack("<I", samples), end=end)


def _is_chunk(file: _File, at: int) -> bool:
    if at >= file.num_bytes:
        return True
    header = file.span(at, 8)
    if len(header) < 8:
        return True  # the rest of a chunk that was cut off
    name, length = struct.unpack("<4sI", header)
    return all(0x20 <= byte < 0x7F for byte in name) and at + 8 + length <= file.num_bytes + 1


def _without_zeros(file: _File, start: int, end: int) -> int:
    """Return where samples end behind which there are many zeros and nothing else."""
    if end - start < _LEAST_ZEROS or any(file.span(end - _LOOK_BYTES, _LOOK_BYTES)):
        return end
    at = end
    while at > start:
        first = max(start, at - _BLOCK_BYTES)
        block = file.span(first, at - first)
        if block.count(0) != len(block):
            last = first + len(block.rstrip(b"\0"))
            break
        at = first
    else:
        last = start
    # Whole frames of samples, whatever their size.
    last = min(end, start + -(-(last - start) // 64) * 64)
    return last if end - last >= _LEAST_ZEROS else end
