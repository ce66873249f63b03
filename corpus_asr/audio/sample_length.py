"""Files of plain samples whose header tells another length than they have, as recorders leave them.

A header is written when recording begins, and again when it ends: of one that was killed it claims
an early length, none, or what 32 bits hold of it; of one that takes its room beforehand, also the
zeros that were never recorded over.

Sources: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF);
EBU Tech 3306 (RF64); Sony, "Sony Wave64".
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

_HEAD_BYTES = 4096
_MAX_CHUNKS = 64  # before the samples; there are three or four
_BLOCK_BYTES = 1 << 20
_LOOK_BYTES = 4096  # most files end with sound: nothing more of them is read
# Less of zeros is decoded in a second; it may be silence at the end of a recording.
_LEAST_ZEROS = 64 << 20
_LOOKED_AT_BYTES = 256 << 10  # at the beginning and the end of what may be sound
_LEAST_LIKENESS = 0.1  # of 65,000 values by chance 0.004
# Chunks that programs write behind the samples.
_LATER_CHUNKS = (b"LIST", b"bext", b"iXML", b"cue ", b"smpl", b"inst", b"plst", b"id3 ", b"ID3 ",
                 b"_PMX", b"JUNK", b"PAD ")  # fmt: skip
_TAIL_BYTES = 1 << 20
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of the names of its chunks


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


class _Chunks(NamedTuple):
    """How a container writes its chunks."""

    first: int
    """Where they begin."""
    header: str
    """Name and length, as `struct` has them."""
    counted: int
    """Bytes of the header that the length counts."""
    rounded: int
    """Each begins at a multiple of it."""

    @property
    def size(self) -> int:
        return struct.calcsize(self.header)

    def at(self, file: _File, at: int) -> tuple[bytes, int] | None:
        """Return name and length of a chunk; None where no whole header is left."""
        header = file.span(at, self.size)
        if len(header) < self.size:
            return None
        name, length = struct.unpack(self.header, header)
        return name, max(0, length - self.counted)

    def all(self, file: _File, at: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield name, start and length of the chunks from a place on."""
        for _ in range(_MAX_CHUNKS):
            chunk = self.at(file, at)
            if chunk is None:
                return
            name, length = chunk
            yield name, at + self.size, length
            at += self.size + length + -length % self.rounded

    def is_chunk(self, file: _File, at: int) -> bool:
        """Tell whether a chunk begins there, or the file ends."""
        chunk = self.at(file, at) if at < file.num_bytes else None
        if chunk is None:
            return True  # the end, or the rest of a chunk that was cut off
        name, length = chunk
        if len(name) == 16:
            return name.endswith(_W64_TAIL[-8:])
        is_name = all(0x20 <= byte < 0x7F for byte in name)
        return is_name and at + self.size + length <= file.num_bytes + 1


_RIFF = _Chunks(12, "<4sI", 0, 2)
_W64 = _Chunks(40, "<16sQ", 24, 8)


class _Form(NamedTuple):
    """How samples are written."""

    frame_bytes: int
    """Of all channels."""
    bits: int
    is_float: bool = False


class _Samples(NamedTuple):
    """The samples of a file, as its header describes them."""

    chunks: _Chunks
    start: int
    length: int
    """In bytes; 0 where the header does not know."""
    field: int
    """Where the length stands."""
    written: str
    """As `struct` has it."""
    counted: int
    """What it counts beyond the samples."""
    form: _Form | None
    """None of codecs, and of what nobody records in."""

    @property
    def most(self) -> int:
        """The largest length that is no other word for unknown."""
        return 2**63 - 2 if self.written == "<Q" else 2**32 - 2


def corrected_length(file: _File) -> Correction | None:
    """Return what is right for a file whose header is wrong, and None for all others."""
    samples = _samples_of(file)
    return None if samples is None else _corrected(file, samples)


def _samples_of(file: _File) -> _Samples | None:
    head = file.span(0, _HEAD_BYTES)
    kind, form = head[:4], head[8:12]
    if kind == b"RIFF" and form == b"WAVE":
        return _of_riff(file)
    if kind in (b"RF64", b"BW64") and form == b"WAVE":
        return _of_riff(file, is_long=True)
    if kind == b"riff" and head[24:28] == b"wave":
        return _of_riff(file, chunks=_W64)
    return None


def _of_riff(file: _File, *, chunks: _Chunks = _RIFF, is_long: bool = False) -> _Samples | None:
    form, long_at, long_length = None, None, 0
    for name, start, length in chunks.all(file, chunks.first):
        if name[:4] == b"ds64" and is_long:
            long_at = start + 8
            (long_length,) = struct.unpack("<Q", file.span(long_at, 8).ljust(8, b"\0"))
        elif name[:4] == b"fmt ":
            form = _riff_form(file.span(start, 16))
        elif name[:4] == b"data":
            if long_at is not None:
                return _Samples(chunks, start, long_length, long_at, "<Q", 0, form)
            if chunks is _W64:
                return _Samples(chunks, start, length, start - 8, "<Q", chunks.counted, form)
            return _Samples(chunks, start, length, start - 4, "<I", 0, form)
    return None


def _riff_form(data: bytes) -> _Form | None:
    if len(data) < 16:
        return None
    tag, channels, _, _, frame_bytes, bits = struct.unpack("<HHIIHH", data)
    if tag not in (1, 3, 0xFFFE) or frame_bytes != channels * bits // 8:
        return None
    return _known(_Form(frame_bytes, bits, tag == 3))


def _known(form: _Form) -> _Form | None:
    return form if form.bits in (16, 24, 32) and form.frame_bytes else None


def _corrected(file: _File, samples: _Samples) -> Correction | None:
    start, length, file_end = samples.start, samples.length, file.num_bytes
    is_known = 0 < length <= samples.most
    claimed = start + length if is_known else file_end
    is_whole = (
        is_known
        and claimed <= file_end
        and (
            claimed == file_end
            or any(
                samples.chunks.is_chunk(file, claimed + pad) for pad in {0, length % 2, -length % 8}
            )
            or not _goes_on(file, samples, claimed)
        )
    )
    end = min(claimed, file_end) if is_whole else _before_chunks(file, samples)
    sound_end = _without_zeros(file, start, end)
    if is_whole and sound_end == end < file_end and _without_zeros(file, end, file_end) == file_end:
        return None  # chunks, or what is no sound: libav stops before it
    # Of one that claims too much libav takes what there is; of zero or no length not always.
    reads_on = is_known or samples.written == "<I"
    if sound_end == start or (sound_end == file_end and reads_on and claimed >= file_end):
        return None
    num_bytes = sound_end - start + samples.counted
    if num_bytes > samples.most:
        num_bytes = 0 if samples.written == "<I" else samples.most
    return Correction(
        at=samples.field, length=struct.pack(samples.written, num_bytes), end=sound_end
    )


def _goes_on(file: _File, samples: _Samples, claimed: int) -> bool:
    """Whether samples follow those that a header claims: not text, nor bytes by chance."""
    start, form = samples.start, samples.form
    length = file.num_bytes - start
    if length >> 32 and length % 2**32 == claimed - start:
        return True  # all that 32 bits hold of it
    if form is None:
        return False
    frame_bytes = form.frame_bytes
    behind = (file.num_bytes - claimed) // frame_bytes * frame_bytes
    size = min(behind, _LOOKED_AT_BYTES // frame_bytes * frame_bytes)
    # As far from the first sample as whole frames are.
    first = start + -(-(claimed - start) // frame_bytes) * frame_bytes
    last = start + (file.num_bytes - size - start) // frame_bytes * frame_bytes
    return any(_is_sound(file.span(at, size), form) for at in (first, last))


def _is_sound(data: bytes, form: _Form) -> bool:
    if sum(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in data[:4096]) > 0.9 * 4096:
        return False  # text
    frames = np.frombuffer(data[: len(data) // form.frame_bytes * form.frame_bytes], np.uint8)
    sample_bytes = frames.reshape(-1, form.frame_bytes)[:, : form.bits // 8]  # of the first channel
    if not form.is_float:  # its two highest bytes
        sample_bytes = sample_bytes[:, -2:]
    kind = f"<f{form.bits // 8}" if form.is_float else "<i2"
    values = np.ascontiguousarray(sample_bytes).view(kind).astype(np.float64).ravel()
    if len(values) < 2 or not np.isfinite(values).all() or np.abs(values).max() > 1e6:
        return False
    values -= values.mean()
    power = float(values @ values)
    # Neighbors in sound are alike, or in whispered sounds opposite; of bytes by chance, neither.
    return power > 0 and abs(float(values[1:] @ values[:-1])) > _LEAST_LIKENESS * power


def _before_chunks(file: _File, samples: _Samples) -> int:
    """Return where samples end whose length is unknown: before chunks that fill up the file."""
    chunks, end = samples.chunks, file.num_bytes
    first = max(samples.start, end - _TAIL_BYTES)
    tail = file.span(first, end - first)
    places = sorted(
        first + at for name in _LATER_CHUNKS for at in _places(tail, name) if first + at < end
    )
    for place in places:
        stop = place
        for _, start, length in chunks.all(file, place):
            stop = start + length + -length % chunks.rounded
        if end <= stop <= end + 1:
            return place
    return end


def _places(data: bytes, name: bytes) -> Iterator[int]:
    at = data.find(name)
    while at >= 0:
        yield at
        at = data.find(name, at + 1)


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
