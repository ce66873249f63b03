"""Media files whose structure lies: sizes, counts, lacing, page sequence, huge headers, rates.

Bytes that are broken at random (fuzzing.py) rarely get past a checksum or a magic number. These are
taken apart and put together again around one lie, checksums included:

    for name, data in structured(500, seed=1):
        (folder / name).write_bytes(data)
"""

import functools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from tests.support.audio import encode, noise, tone

Random = np.random.Generator
T = TypeVar("T")
RATE_HZ = 16_000
RATES_HZ = (0, 1, 2, 7, 999, 1_000, 8_000, 11_025, 44_100, 96_000, 192_000, 384_000, 768_000)
CHANNELS = (0, 1, 2, 3, 5, 6, 8, 16, 63, 64, 65, 128, 254, 255)
SIZES_32 = (0, 1, 7, 8, 9, 0xFFFF, 0x00FFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
PICTURE_BYTES = 6_000_000
SILENT_HOURS = 2.5


@functools.cache
def _encoded(container: str, codec: str, sample_format: str) -> bytes:
    sound = tone(1.5, rate_hz=RATE_HZ) + 0.3 * noise(1.5, rate_hz=RATE_HZ)
    return encode(
        sound, rate_hz=RATE_HZ, container=container, codec=codec, sample_format=sample_format
    )


def _one(random: Random, values: tuple[T, ...]) -> T:
    return values[int(random.integers(len(values)))]


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_crc(data: bytes) -> int:
    """Return the checksum of a page: zlib's, but bits the other way round, and from 0 to 0."""
    mirrored = zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


def _flac_crc(polynomial: int, bits: int, data: bytes) -> int:
    """Return a checksum, highest bit first, from 0."""
    value, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = ((value << 1) ^ (polynomial if value & top else 0)) & mask
    return value


# WAV: chunks.


def _chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body


def _format(
    *, tag: int = 1, channels: int = 1, rate_hz: int = RATE_HZ, bits: int = 16, block: int = 2
) -> bytes:
    per_second = rate_hz * block & 0xFFFFFFFF
    return struct.pack("<HHIIHH", tag, channels, rate_hz, per_second, block, bits)


def _riff(*chunks: bytes, size: int | None = None, magic: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


def _pcm(seconds: float = 1.5) -> bytes:
    return (tone(seconds)[0] * 30_000).astype("<i2").tobytes()


def _wav_sizes(random: Random) -> bytes:
    which, size = random.integers(3), _one(random, SIZES_32)
    sizes = [size if which == each else None for each in range(3)]
    return _riff(
        _chunk(b"fmt ", _format(), sizes[1]), _chunk(b"data", _pcm(), sizes[2]), size=sizes[0]
    )


def _wav_rates(random: Random) -> bytes:
    tag = _one(random, (1, 1, 1, 2, 3, 6, 7, 0x11, 0x55, 0xFFFE, 0xFFFF, 0))
    channels, bits = _one(random, CHANNELS), _one(random, (0, 1, 4, 8, 16, 24, 32, 64, 255))
    block = _one(random, (0, 1, channels * bits // 8 & 0xFFFF, channels * bits // 8 & 0xFFFF))
    said = _format(
        tag=tag, channels=channels, rate_hz=_one(random, RATES_HZ), bits=bits, block=block
    )
    return _riff(_chunk(b"fmt ", said), _chunk(b"data", _pcm()))


def _wav_chunks(random: Random) -> bytes:
    said, data = _chunk(b"fmt ", _format()), _chunk(b"data", _pcm())
    text = b"INFO" + _chunk(b"ICMT", b"x" * PICTURE_BYTES)
    picture = _chunk(b"id3 ", _id3(_frame(b"APIC", b"\0image/png\0\x03\0" + bytes(PICTURE_BYTES))))
    return _one(
        random,
        (
            _riff(said, *([_chunk(b"LIST", b"")] * 20_000), data),
            _riff(said, _chunk(b"LIST", text), data),
            _riff(picture, said, data),
            _riff(data, said),
            _riff(said, _chunk(b"fmt ", _format(channels=7, block=14)), data),
            _riff(said, data, data, said, data),
            _riff(said, _chunk(b"junk", b"odd"), data),
            _riff(said),
            _riff(data),
            _riff(said, _chunk(b"smpl", struct.pack("<9I", *[0xFFFFFFFF] * 9)), data),
            _riff(said, _chunk(b"cue ", struct.pack("<I", 0x7FFFFFFF)), data),
        ),
    )


def _wav_64(random: Random) -> bytes:
    sizes = [_one(random, (0, 1, 1 << 31, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)) for _ in "123"]
    lengths = struct.pack("<QQQI", *sizes, _one(random, (0, 0x7FFFFFFF)))
    said, data = _chunk(b"fmt ", _format()), _chunk(b"data", _pcm(), 0xFFFFFFFF)
    return _riff(_chunk(b"ds64", lengths), said, data, size=0xFFFFFFFF, magic=b"RF64")


# Ogg: pages of laced packets, each with a checksum over all of it.


@dataclass(frozen=True)
class Page:
    flags: int
    granule: int
    serial: int
    sequence: int
    lacing: bytes
    body: bytes

    def packed(self, *, checksum: bool = True) -> bytes:
        head = struct.pack("<4sBBqII", b"OggS", 0, self.flags, self.granule, self.serial,
                           self.sequence & 0xFFFFFFFF)  # fmt: skip
        rest = bytes([len(self.lacing)]) + self.lacing + self.body
        whole = head + bytes(4) + rest
        return head + struct.pack("<I", _ogg_crc(whole) if checksum else 1) + rest


def _pages(data: bytes) -> list[Page]:
    pages, at = [], 0
    while at < len(data):
        _, _, flags, granule, serial, sequence, _, count = struct.unpack_from(
            "<4sBBqIIIB", data, at
        )
        lacing = data[at + 27 : at + 27 + count]
        body = data[at + 27 + count : at + 27 + count + sum(lacing)]
        pages.append(Page(flags, granule, serial, sequence, lacing, body))
        at += 27 + count + sum(lacing)
    return pages


def _laced(packets: list[bytes]) -> tuple[bytes, bytes]:
    lacing = b"".join(bytes([255] * (len(each) // 255) + [len(each) % 255]) for each in packets)
    return lacing, b"".join(packets)


def _ogg(random: Random) -> list[Page]:
    kind = _one(random, (("libopus", "flt"), ("libopus", "flt"), ("flac", "s16")))
    return _split(_pages(_encoded("ogg", *kind)))


def _split(pages: list[Page]) -> list[Page]:
    """Spread what was one page of many packets over pages of a few."""
    made: list[Page] = []
    for page in pages:
        at, rest = 0, page.lacing
        while rest:
            count = next((n + 1 for n in range(9, len(rest)) if rest[n] < 255), len(rest))
            size = sum(rest[:count])
            body = page.body[at : at + size]
            granule = page.granule if count == len(rest) else page.granule * at // len(page.body)
            flags = page.flags if count == len(rest) else page.flags & ~4
            made.append(Page(flags, granule, page.serial, len(made), rest[:count], body))
            at, rest = at + size, rest[count:]
    return made


def _ogg_sequence(random: Random) -> bytes:
    pages = _ogg(random)
    head, rest = pages[:2], pages[2:]
    which = random.integers(7)
    if which == 0:
        rest = [replace(page, sequence=page.sequence * 1000) for page in rest]
    elif which == 1:
        rest = [page for page in rest for _ in range(3)]
    elif which == 2:
        rest = rest[::-1]
    elif which == 3:
        rest = [replace(page, sequence=0) for page in rest]
    elif which == 4:
        rest = [replace(page, sequence=0xFFFFFFFF - at) for at, page in enumerate(rest)]
    elif which == 5:  # another stream among it, of which nothing was said
        rest = [replace(page, serial=page.serial + at % 2) for at, page in enumerate(rest)]
    else:  # streams one after the other, with one number or each with its own
        chained = [replace(each, serial=each.serial + 7 * (at % 3)) for at in range(40)
                   for each in pages]  # fmt: skip
        head, rest = [], chained
    return b"".join(page.packed() for page in head + rest)


def _ogg_times(random: Random) -> bytes:
    granules = (-1, -2, 0, 1, 1 << 40, 1 << 62, -(1 << 63), (1 << 63) - 1)
    pages = _ogg(random)
    chosen = int(random.integers(2, len(pages)))
    every = bool(random.integers(2))
    return b"".join(
        replace(page, granule=_one(random, granules)).packed()
        if at == chosen or (every and at >= 2)
        else page.packed()
        for at, page in enumerate(pages)
    )


def _ogg_lacing(random: Random) -> bytes:
    pages = _ogg(random)
    at = int(random.integers(2, len(pages)))
    page = pages[at]
    endless = Page(page.flags | 1, page.granule, page.serial, page.sequence, b"\xff" * 255,
                   bytes(255 * 255))  # fmt: skip
    pages[at : at + 1] = _one(
        random,
        (
            [replace(page, lacing=b"\xff" * len(page.lacing))],
            [replace(page, lacing=b"")] * 3000,
            [replace(page, lacing=bytes(255), body=b"")] * 500,
            [endless] * 200,  # one packet of 13 MB
            [replace(page, lacing=b"\xff" * 255)],
            [replace(page, flags=page.flags | 1)],
            [replace(page, flags=2)],
            [replace(page, flags=4)],
            [replace(page, body=page.body[: len(page.body) // 2])],
        ),
    )
    return b"".join(each.packed(checksum=bool(random.integers(8))) for each in pages)


def _opus_head(random: Random) -> bytes:
    pages = _split(_pages(_encoded("ogg", "libopus", "flt")))
    channels, family = _one(random, CHANNELS), _one(random, (0, 1, 2, 3, 255))
    skipped, rate_hz = _one(random, (0, 312, 65_535)), _one(random, RATES_HZ)
    head = struct.pack("<8sBBHIhB", b"OpusHead", _one(random, (0, 1, 15, 255)), channels, skipped,
                       rate_hz, _one(random, (0, -32_768, 32_767)), family)  # fmt: skip
    if family:
        streams = _one(random, (0, 1, channels, 255))
        mapping = bytes(min(each, 254) for each in range(channels))
        head += bytes([streams, _one(random, (0, streams, 255))]) + mapping
    lacing, body = _laced([head])
    pages[0] = replace(pages[0], lacing=lacing, body=body)
    return b"".join(page.packed() for page in pages)


def _opus_tags(random: Random) -> bytes:
    pages = _split(_pages(_encoded("ogg", "libopus", "flt")))
    comment = b"METADATA_BLOCK_PICTURE=" + b"A" * PICTURE_BYTES
    vendor = struct.pack("<I", 4) + b"test"
    tags = b"OpusTags" + _one(
        random,
        (
            struct.pack("<I", 0xFFFFFFFF),
            vendor + struct.pack("<I", 0xFFFFFFFF),
            vendor + struct.pack("<II", 1, 0xFFFFFFFF) + b"TITLE=x",
            vendor + struct.pack("<II", 1, len(comment)) + comment,
            vendor + struct.pack("<I", 100_000) + (struct.pack("<I", 3) + b"A=b") * 100_000,
        ),
    )
    lacing, body = _laced([tags])
    made: list[Page] = []
    for at in range(0, len(lacing), 255):
        some = lacing[at : at + 255]
        start = sum(lacing[:at])
        made.append(Page(1 if at else 0, 0, pages[0].serial, len(made) + 1, some,
                         body[start : start + sum(some)]))  # fmt: skip
    rest = [replace(page, sequence=len(made) + 1 + at) for at, page in enumerate(pages[2:])]
    return b"".join(page.packed() for page in [pages[0], *made, *rest])


def _opus_silence(random: Random) -> bytes:
    """Hours in some hundred kilobytes: packets that are but their first byte, 60 ms of nothing."""
    pages = _split(_pages(_encoded("ogg", "libopus", "flt")))[:2]
    hours = _one(random, (0.1, 0.25, SILENT_HOURS))
    per_page, granule = 255, 0
    for _ in range(int(hours * 3600 / 0.06 / per_page)):
        granule += per_page * 2880
        pages.append(Page(0, granule, pages[0].serial, len(pages), b"\1" * per_page,
                          b"\x18" * per_page))  # fmt: skip
    return b"".join(page.packed() for page in pages)


# FLAC: metadata blocks, then frames with two checksums.


def _blocks(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    blocks, at, last = [], 4, 0
    while not last:
        last, kind = data[at] >> 7, data[at] & 127
        size = int.from_bytes(data[at + 1 : at + 4])
        blocks.append((kind, data[at + 4 : at + 4 + size]))
        at += 4 + size
    return blocks, data[at:]


def _flac(blocks: list[tuple[int, bytes]], frames: bytes, lie: tuple[int, int] | None = None):
    data = b"fLaC"
    for at, (kind, body) in enumerate(blocks):
        size = lie[1] if lie is not None and lie[0] == at else len(body)
        last = 128 if at == len(blocks) - 1 else 0
        data += bytes([last | kind]) + (size & 0xFFFFFF).to_bytes(3) + body
    return data + frames


def _picture(data: bytes, *, size: int | None = None, mime: int | None = None) -> bytes:
    numbers = struct.pack(">4II", 10_000, 10_000, 24, 0, len(data) if size is None else size)
    name = b"image/png"
    return (
        struct.pack(">II", 3, len(name) if mime is None else mime) + name + bytes(4) + numbers
        + data
    )  # fmt: skip


def _flac_blocks(random: Random) -> bytes:
    blocks, frames = _blocks(_encoded("flac", "flac", "s16"))
    info, huge = blocks[0], bytes(PICTURE_BYTES)
    which = random.integers(10)
    if which == 0:
        return _flac(blocks, frames, (int(random.integers(len(blocks))), _one(random, SIZES_32)))
    extra: dict[int, list[tuple[int, bytes]]] = {
        1: [(6, _picture(huge))],
        2: [(6, _picture(huge, size=_one(random, SIZES_32)))],
        3: [(6, _picture(b"", mime=_one(random, SIZES_32)))],
        4: [(1, bytes(100))] * 3000,
        5: [(1, bytes(0xFFFFFF))],
        6: [info, info],
        7: [(3, struct.pack(">QQH", 1 << 63, 1 << 63, 65_535) * 10_000)],
        8: [(4, struct.pack("<I", 0xFFFFFFFF)), (5, bytes(40)), (126, b"x")],
    }
    if which == 9:
        return _flac(blocks[1:] or [(1, b"")], frames)
    return _flac([info, *extra[int(which)]], frames)


def _flac_info(random: Random) -> bytes:
    blocks, frames = _blocks(_encoded("flac", "flac", "s16"))
    info = bytearray(blocks[0][1])
    smallest, largest = _one(random, ((0, 0), (16, 65_535), (65_535, 16), (1, 1)))
    info[:4] = struct.pack(">HH", smallest, largest)
    rate_hz, channels = min(_one(random, RATES_HZ), 0xFFFFF), int(random.integers(1, 9))
    bits, total = int(random.integers(1, 33)), _one(random, (0, 1, (1 << 36) - 1))
    packed = rate_hz << 44 | (channels - 1) << 41 | (bits - 1) << 36 | total
    info[10:18] = packed.to_bytes(8)
    return _flac([(0, bytes(info)), *blocks[1:]], frames)


def _flac_silence(random: Random) -> bytes:
    """Hours in some ten kilobytes: each frame says one value for 65,535 samples."""
    blocks, _ = _blocks(_encoded("flac", "flac", "s16"))
    hours = _one(random, (0.1, 0.25, SILENT_HOURS))
    rate_hz = _one(random, (RATE_HZ, RATE_HZ, 8_000))
    code = {RATE_HZ: 5, 8_000: 4}[rate_hz]
    info = bytearray(blocks[0][1])
    info[:4] = struct.pack(">HH", 65_535, 65_535)
    info[10:18] = (rate_hz << 44 | 15 << 36).to_bytes(8)
    frames = b""
    for number in range(int(hours * 3600 * rate_hz / 65_535)):
        head = bytes([0xFF, 0xF8, 0x70 | code, 0x08]) + chr(number).encode() + b"\xff\xfe"
        head += bytes([_flac_crc(0x07, 8, head)])
        frame = head + bytes([0, 0, 0])  # one constant
        frames += frame + struct.pack(">H", _flac_crc(0x8005, 16, frame))
    return _flac([(0, bytes(info))], frames)


# MP4 and MOV: atoms within atoms.

_HOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"udta", b"edts", b"dinf"}


def _atoms(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield place and name of each atom, those inside others too."""
    at = start
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, at)
        yield at, name
        if name in _HOLDERS:
            yield from _atoms(data, at + 8, at + size)
        at += max(8, size)


def _mp4(random: Random) -> bytearray:
    kind = _one(random, (("mov", "pcm_s16le", "s16"), ("ipod", "aac", "fltp"),
                         ("mov", "alac", "s16p"), ("mp4", "aac", "fltp")))  # fmt: skip
    return bytearray(_encoded(*kind))


def _mp4_sizes(random: Random) -> bytes:
    data = _mp4(random)
    places = [at for at, _ in _atoms(bytes(data), 0, len(data))]
    for at in random.choice(places, min(len(places), int(random.integers(1, 4))), replace=False):
        struct.pack_into(">I", data, int(at), _one(random, SIZES_32))
    return bytes(data)


def _mp4_numbers(random: Random) -> bytes:
    """Lie in the fields of the tables that say where samples are and how long."""
    data = _mp4(random)
    tables = {b"stts", b"stsz", b"stsc", b"stco", b"mdhd", b"mvhd", b"tkhd", b"stsd", b"elst",
              b"mp4a", b"esds"}  # fmt: skip
    places = [at for at, name in _atoms(bytes(data), 0, len(data)) if name in tables]
    at = int(random.choice(places))
    size = min(struct.unpack_from(">I", data, at)[0], len(data) - at)
    for _ in range(int(random.integers(1, 4))):
        field = 8 + 4 * int(random.integers(0, max(1, (size - 8) // 4)))
        struct.pack_into(">I", data, min(at + field, len(data) - 4), _one(random, SIZES_32))
    return bytes(data)


def _mp4_nested(random: Random) -> bytes:
    data = bytes(_mp4(random))
    (moov,) = (at for at, name in _atoms(data, 0, len(data)) if name == b"moov")
    head, inner = data[:moov], data[moov + 8 : moov + struct.unpack_from(">I", data, moov)[0]]

    def atom(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), name) + body

    which = random.integers(7)
    if which == 0:
        for _ in range(_one(random, (10, 200, 3000))):
            inner = atom(_one(random, (b"moov", b"trak", b"udta")), inner)
    elif which == 1:
        cover = atom(b"covr", atom(b"data", struct.pack(">II", 14, 0) + bytes(PICTURE_BYTES)))
        inner += atom(b"udta", atom(b"meta", bytes(4) + atom(b"ilst", cover)))
    elif which == 2:
        inner += atom(b"trak", b"") * 5000
    elif which == 3:
        return head + atom(b"moov", inner) * 3
    elif which == 4:
        return atom(b"free", bytes(PICTURE_BYTES)) + data
    elif which == 5:
        return head
    else:
        return data[moov:] + data[:moov]
    return head + atom(b"moov", inner)


# Matroska and WebM: elements with sizes of variable length.

_MASTERS = {0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xE1, 0x1549A966, 0x1A45DFA3, 0x1254C367}
_SIMPLE_BLOCK, _RATE, _CHANNELS, _BITS, _SCALE = 0xA3, 0xB5, 0x9F, 0x6264, 0x2AD7B1
_CODEC_PRIVATE, _TRACK = 0x63A2, 0xD7


def _width(first: int) -> int:
    return 9 - first.bit_length() if first else 8


def _elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, place of the size, place of the content and its length, of each element."""
    at = start
    while at < end:
        wide = _width(data[at])
        number, sized = int.from_bytes(data[at : at + wide]), at + wide
        long = _width(data[sized])
        size = int.from_bytes(data[sized : sized + long]) & ((1 << 7 * long) - 1)
        if size == (1 << 7 * long) - 1:
            size = end - sized - long
        yield number, sized, sized + long, size
        if number in _MASTERS:
            yield from _elements(data, sized + long, min(end, sized + long + size))
        at = sized + long + size


def _mkv(random: Random) -> bytearray:
    kind = _one(random, (("webm", "libopus", "flt"), ("matroska", "pcm_s16le", "s16"),
                         ("matroska", "libmp3lame", "fltp")))  # fmt: skip
    return bytearray(_encoded(*kind))


def _mkv_sizes(random: Random) -> bytes:
    data = _mkv(random)
    places = [(sized, content) for _, sized, content, _ in _elements(bytes(data), 0, len(data))]
    for at in random.integers(len(places), size=int(random.integers(1, 4))):
        sized, content = places[int(at)]
        wide = content - sized
        value = _one(random, (0, 1, 127, (1 << 7 * wide) - 2, (1 << 7 * wide) - 1))
        data[sized:content] = (value % (1 << 7 * wide) | 1 << 7 * wide).to_bytes(wide)
    return bytes(data)


def _mkv_values(random: Random) -> bytes:
    data = _mkv(random)
    wanted = {_RATE, _CHANNELS, _BITS, _SCALE, _CODEC_PRIVATE, _TRACK}
    found = [each for each in _elements(bytes(data), 0, len(data)) if each[0] in wanted]
    number, _, at, size = found[int(random.integers(len(found)))]
    if number == _RATE:
        value = _one(random, (*map(float, RATES_HZ), -1.0, 1e300, float("nan"), float("inf")))
        data[at : at + size] = struct.pack(">d" if size == 8 else ">f", min(value, 3e38))
    elif number == _CODEC_PRIVATE:
        data[at : at + size] = random.bytes(size)
    else:
        value = _one(random, (0, *CHANNELS, 1 << 8 * size - 1, (1 << 8 * size) - 1))
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size)
    return bytes(data)


def _mkv_lacing(random: Random) -> bytes:
    """Claim each kind of lacing, with counts and sizes that are not there."""
    data = _mkv(random)
    blocks = [each for each in _elements(bytes(data), 0, len(data)) if each[0] == _SIMPLE_BLOCK]
    for _, _, at, size in blocks[int(random.integers(len(blocks))) :][
        :: int(random.integers(1, 4))
    ]:
        if size > 8:
            data[at + 3] = data[at + 3] & ~6 | int(random.integers(1, 4)) << 1
            data[at + 4] = _one(random, (0, 1, 8, 127, 255))
            data[at + 5] = _one(random, (0, 1, 0x40, 0x80, 255))
    return bytes(data)


def _mkv_big(random: Random) -> bytes:
    """Insert a huge or a deep element into the segment, whose size is then unknown."""
    data = bytes(_mkv(random))
    ((_, sized, content, _), *_) = (
        each for each in _elements(data, 0, len(data)) if each[0] == 0x18538067
    )

    def element(number: bytes, body: bytes) -> bytes:
        return number + (len(body) | 1 << 56).to_bytes(8) + body

    attached = element(b"\x46\x5c", bytes(PICTURE_BYTES)) + element(b"\x46\x60", b"image/png")
    deep = b""
    for _ in range(_one(random, (20, 500))):
        deep = element(b"\x67\xc8", deep)  # a tag in a tag
    more = _one(
        random,
        (
            element(b"\x19\x41\xa4\x69", element(b"\x61\xa7", attached)),
            element(b"\x12\x54\xc3\x67", element(b"\x73\x73", deep)),
            element(b"\xec", bytes(PICTURE_BYTES)),
            element(b"\x16\x54\xae\x6b", element(b"\xae", b"") * 3000),
            element(b"\x1f\x43\xb6\x75", b"") * 20_000,
        ),
    )
    unknown = ((1 << 7 * (content - sized)) - 1 | 1 << 7 * (content - sized)).to_bytes(
        content - sized
    )
    return data[:sized] + unknown + more + data[content:]


# MP3: tags with sizes of seven bits a byte, then frames.


def _syncsafe(size: int) -> bytes:
    return bytes(size >> shift & 127 for shift in (21, 14, 7, 0))


def _frame(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack(">I", len(body) if size is None else size) + bytes(2) + body


def _id3(body: bytes, *, size: int | None = None, version: int = 3, flags: int = 0) -> bytes:
    said = _syncsafe(len(body) if size is None else size)
    return b"ID3" + bytes([version, 0, flags]) + said + body


def _mp3_tags(random: Random) -> bytes:
    sound = _encoded("mp3", "libmp3lame", "fltp")
    title = _frame(b"TIT2", b"\0title")
    picture = _frame(b"APIC", b"\0image/png\0\x03\0" + bytes(PICTURE_BYTES))
    return _one(
        random,
        (
            _id3(title, size=_one(random, (0, 1, 1000, (1 << 28) - 1))) + sound,
            _id3(_frame(b"TIT2", b"\0x", _one(random, SIZES_32))) + sound,
            _id3(picture) + sound,
            _id3(_frame(b"APIC", b"\0x", _one(random, SIZES_32)) + bytes(50_000)) + sound,
            _id3(title) * 2000 + sound,
            _id3(title, flags=255) + sound,
            _id3(title, version=_one(random, (0, 1, 2, 4, 255))) + sound,
            _id3(title) + _id3(title) + b"\0" * 100_000 + sound,
            b"ID3\3\0\0\xff\xff\xff\xff" + sound,
            sound + b"TAG" + bytes(125) + b"APETAGEX" + struct.pack("<4I", 2000, *SIZES_32[-3:]),
            _id3(title),
        ),
    )


def _mp3_frames(random: Random) -> bytes:
    """Have headers change their mind on rate, channels, layer and bit rate, frame by frame."""
    data = bytearray(_encoded("mp3", "libmp3lame", "fltp"))
    at = data.find(b"\xff\xf3")
    places = []
    while 0 <= at < len(data) - 4:
        places.append(at)
        at = data.find(b"\xff\xf3", at + 24)
    for place in places[:: int(random.integers(1, 4))]:
        byte, bits = _one(random, ((1, 0x18), (1, 0x06), (2, 0xF0), (2, 0x0C), (3, 0xC0)))
        data[place + byte] = data[place + byte] & ~bits | int(random.integers(256)) & bits
    if random.integers(2):  # a first frame that claims how many there are
        head = bytes(data[places[0] : places[0] + 4])
        claims = b"Xing" + struct.pack(">III", 3, _one(random, SIZES_32), _one(random, SIZES_32))
        data[places[0] : places[0]] = head + bytes(9) + claims + bytes(300)
    return bytes(data)


LIES: tuple[tuple[str, Callable[[Random], bytes]], ...] = (
    ("wav", _wav_sizes), ("opus", _ogg_sequence), ("flac", _flac_blocks), ("m4a", _mp4_sizes),
    ("mkv", _mkv_sizes), ("mp3", _mp3_tags), ("wav", _wav_rates), ("ogg", _ogg_times),
    ("flac", _flac_info), ("mp4", _mp4_numbers), ("mkv", _mkv_values), ("mp3", _mp3_frames),
    ("wav", _wav_chunks), ("ogg", _ogg_lacing), ("mov", _mp4_nested), ("mkv", _mkv_lacing),
    ("wav", _wav_64), ("opus", _opus_head), ("opus", _opus_tags), ("webm", _mkv_big),
    ("wav", _wav_rates), ("flac", _flac_silence), ("opus", _opus_silence),
)  # fmt: skip
# These take a decoder minutes, however well it does: quick tests leave them out.
LONG = (_flac_silence, _opus_silence)


def structured(count: int, *, seed: int, long: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of files, each lie in turn; with `long`, hours of silence, too."""
    random = np.random.default_rng(seed)
    lies = [(suffix, lie) for suffix, lie in LIES if long or lie not in LONG]
    for index in range(count):
        suffix, lie = lies[index % len(lies)]
        yield f"{index:04d}{lie.__name__}.{suffix}", lie(random)
