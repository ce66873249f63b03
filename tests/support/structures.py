"""Ogg and FLAC files whose structure lies, every checksum that of what they say.

A checksum over a page, a header or a frame keeps random damage (fuzzing.py) from a decoder; of
these lies none does:

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
def encoded(container: str, codec: str, sample_format: str) -> bytes:
    sound = tone(1.5, rate_hz=RATE_HZ) + 0.3 * noise(1.5, rate_hz=RATE_HZ)
    return encode(
        sound, rate_hz=RATE_HZ, container=container, codec=codec, sample_format=sample_format
    )


def one(random: Random, values: tuple[T, ...]) -> T:
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
    kind = one(random, (("libopus", "flt"), ("libopus", "flt"), ("flac", "s16")))
    return _split(_pages(encoded("ogg", *kind)))


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


def ogg_sequence(random: Random) -> bytes:
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


def ogg_times(random: Random) -> bytes:
    granules = (-1, -2, 0, 1, 1 << 40, 1 << 62, -(1 << 63), (1 << 63) - 1)
    pages = _ogg(random)
    chosen = int(random.integers(2, len(pages)))
    every = bool(random.integers(2))
    return b"".join(
        replace(page, granule=one(random, granules)).packed()
        if at == chosen or (every and at >= 2)
        else page.packed()
        for at, page in enumerate(pages)
    )


def ogg_lacing(random: Random) -> bytes:
    pages = _ogg(random)
    at = int(random.integers(2, len(pages)))
    page = pages[at]
    endless = Page(page.flags | 1, page.granule, page.serial, page.sequence, b"\xff" * 255,
                   bytes(255 * 255))  # fmt: skip
    pages[at : at + 1] = one(
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


def opus_head(random: Random) -> bytes:
    pages = _split(_pages(encoded("ogg", "libopus", "flt")))
    channels, family = one(random, CHANNELS), one(random, (0, 1, 2, 3, 255))
    skipped, rate_hz = one(random, (0, 312, 65_535)), one(random, RATES_HZ)
    head = struct.pack("<8sBBHIhB", b"OpusHead", one(random, (0, 1, 15, 255)), channels, skipped,
                       rate_hz, one(random, (0, -32_768, 32_767)), family)  # fmt: skip
    if family:
        streams = one(random, (0, 1, channels, 255))
        mapping = bytes(min(each, 254) for each in range(channels))
        head += bytes([streams, one(random, (0, streams, 255))]) + mapping
    lacing, body = _laced([head])
    pages[0] = replace(pages[0], lacing=lacing, body=body)
    return b"".join(page.packed() for page in pages)


def opus_tags(random: Random) -> bytes:
    pages = _split(_pages(encoded("ogg", "libopus", "flt")))
    comment = b"METADATA_BLOCK_PICTURE=" + b"A" * PICTURE_BYTES
    vendor = struct.pack("<I", 4) + b"test"
    tags = b"OpusTags" + one(
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


def opus_silence(random: Random) -> bytes:
    """Hours in some hundred kilobytes: packets that are but their first byte, 60 ms of nothing."""
    pages = _split(_pages(encoded("ogg", "libopus", "flt")))[:2]
    hours = one(random, (0.1, 0.25, SILENT_HOURS))
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


def flac_blocks(random: Random) -> bytes:
    blocks, frames = _blocks(encoded("flac", "flac", "s16"))
    info, huge = blocks[0], bytes(PICTURE_BYTES)
    which = random.integers(10)
    if which == 0:
        return _flac(blocks, frames, (int(random.integers(len(blocks))), one(random, SIZES_32)))
    extra: dict[int, list[tuple[int, bytes]]] = {
        1: [(6, _picture(huge))],
        2: [(6, _picture(huge, size=one(random, SIZES_32)))],
        3: [(6, _picture(b"", mime=one(random, SIZES_32)))],
        4: [(1, bytes(100))] * 3000,
        5: [(1, bytes(0xFFFFFF))],
        6: [info, info],
        7: [(3, struct.pack(">QQH", 1 << 63, 1 << 63, 65_535) * 10_000)],
        8: [(4, struct.pack("<I", 0xFFFFFFFF)), (5, bytes(40)), (126, b"x")],
    }
    if which == 9:
        return _flac(blocks[1:] or [(1, b"")], frames)
    return _flac([info, *extra[int(which)]], frames)


def flac_info(random: Random) -> bytes:
    blocks, frames = _blocks(encoded("flac", "flac", "s16"))
    info = bytearray(blocks[0][1])
    smallest, largest = one(random, ((0, 0), (16, 65_535), (65_535, 16), (1, 1)))
    info[:4] = struct.pack(">HH", smallest, largest)
    rate_hz, channels = min(one(random, RATES_HZ), 0xFFFFF), int(random.integers(1, 9))
    bits, total = int(random.integers(1, 33)), one(random, (0, 1, (1 << 36) - 1))
    packed = rate_hz << 44 | (channels - 1) << 41 | (bits - 1) << 36 | total
    info[10:18] = packed.to_bytes(8)
    return _flac([(0, bytes(info)), *blocks[1:]], frames)


def flac_silence(random: Random) -> bytes:
    """Hours in some ten kilobytes: each frame says one value for 65,535 samples."""
    blocks, _ = _blocks(encoded("flac", "flac", "s16"))
    hours = one(random, (0.1, 0.25, SILENT_HOURS))
    rate_hz = one(random, (RATE_HZ, RATE_HZ, 8_000))
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


LIES: tuple[tuple[str, Callable[[Random], bytes]], ...] = (
    ("opus", ogg_sequence), ("flac", flac_blocks), ("ogg", ogg_times), ("flac", flac_info),
    ("ogg", ogg_lacing), ("opus", opus_head), ("opus", opus_tags), ("flac", flac_silence),
    ("opus", opus_silence),
)  # fmt: skip
# These take a decoder minutes, however well it does: quick tests leave them out.
LONG = (flac_silence, opus_silence)


def structured(count: int, *, seed: int, long: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of files, each lie in turn; with `long`, hours of silence, too."""
    random = np.random.default_rng(seed)
    lies = [(suffix, lie) for suffix, lie in LIES if long or lie not in LONG]
    for index in range(count):
        suffix, lie = lies[index % len(lies)]
        yield f"{index:04d}_{lie.__name__}.{suffix}", lie(random)
