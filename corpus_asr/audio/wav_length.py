"""WAV files whose header tells another length than they have, as recorders leave them.

A header is written when recording begins, and again when it ends: of one that was killed it claims
an early length, none, or what 32 bits hold of it; of one that takes its room beforehand, also the
zeros that were never recorded over.

Source: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF).
"""

import struct
from typing import NamedTuple, Protocol

import numpy as np

_HEAD_BYTES = 4096
_MAX_CHUNKS = 64  # before the samples; there are three or four
_BLOCK_BYTES = 1 << 20
_LOOK_BYTES = 4096  # most files end with sound: nothing more of them is read
# Less of zeros is decoded in a second; it may be silence at the end of a recording.
_LEAST_ZEROS = 64 << 20
_TO_THE_END = 0xFFFF_FFFF
_FORM_BYTES = 16
_LOOKED_AT_BYTES = 256 << 10  # at the beginning and the end of what may be sound
_LEAST_LIKENESS = 0.1  # of 65,000 values by chance 0.004


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
    head, form = file.span(0, _HEAD_BYTES), b""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at = 12
    for _ in range(_MAX_CHUNKS):
        header = head[at : at + 8] if at + 8 <= len(head) else file.span(at, 8)
        if len(header) < 8:
            return None
        name, length = struct.unpack("<4sI", header)
        if name == b"fmt ":
            form = file.span(at + 8, _FORM_BYTES)
        if name == b"data":
            return _corrected(file, at + 4, length, form)
        at += 8 + length + length % 2
    return None


def _corrected(file: _File, field: int, length: int, form: bytes) -> Correction | None:
    start, file_end = field + 4, file.num_bytes
    # What libav takes for unknown lasts to the end.
    claimed = start + length if 0 < length < _TO_THE_END else file_end
    is_whole = (
        claimed >= file_end
        or any(_is_chunk(file, claimed + pad) for pad in (0, 1))
        or not _goes_on(file, start, claimed, form)
    )
    end = min(claimed, file_end) if is_whole else file_end
    sound_end = _without_zeros(file, start, end)
    if sound_end == end < file_end and _without_zeros(file, end, file_end) == file_end:
        return None  # chunks, or what is no sound: libav stops before it
    if sound_end == start or (is_whole and sound_end == file_end):
        return None
    end = sound_end
    samples = end - start if end - start < _TO_THE_END else 0
    return Correction(at=field, length=struct.pack("<I", samples), end=end)


def _goes_on(file: _File, start: int, claimed: int, form: bytes) -> bool:
    """Whether samples follow those that a header claims: not text, nor bytes by chance."""
    length = file.num_bytes - start
    if length >> 32 and length % 2**32 == claimed - start:
        return True  # all that 32 bits hold of it
    if len(form) < _FORM_BYTES:
        return False
    tag, channels, _, _, frame_bytes, bits = struct.unpack("<HHIIHH", form)
    if tag not in (1, 3, 0xFFFE) or bits not in (16, 24, 32) or frame_bytes != channels * bits // 8:
        return False
    behind = (file.num_bytes - claimed) // frame_bytes * frame_bytes
    size = min(behind, _LOOKED_AT_BYTES // frame_bytes * frame_bytes)
    # As far from the first sample as whole frames are.
    first = start + -(-(claimed - start) // frame_bytes) * frame_bytes
    last = start + (file.num_bytes - size - start) // frame_bytes * frame_bytes
    is_float = tag == 3
    return any(_is_sound(file.span(at, size), frame_bytes, bits, is_float) for at in (first, last))


def _is_sound(data: bytes, frame_bytes: int, bits: int, is_float: bool) -> bool:
    if sum(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in data[:4096]) > 0.9 * 4096:
        return False  # text
    frames = np.frombuffer(data[: len(data) // frame_bytes * frame_bytes], np.uint8)
    own = frames.reshape(-1, frame_bytes)[:, : bits // 8]  # of the first channel
    own = np.ascontiguousarray(own if is_float else own[:, -2:])
    values = own.view("<f4" if is_float else "<i2").astype(np.float64).ravel()
    if len(values) < 2 or not np.isfinite(values).all() or np.abs(values).max() > 1e6:
        return False
    values -= values.mean()
    power = float(values @ values)
    # Neighbors in sound are alike, or in whispered sounds opposite; of bytes by chance, neither.
    return power > 0 and abs(float(values[1:] @ values[:-1])) > _LEAST_LIKENESS * power


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
