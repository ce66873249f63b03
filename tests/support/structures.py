"""Media files whose structure lies: sizes, counts, lacing, page sequence, huge headers, rates.

Bytes that are broken at random (fuzzing.py) rarely get past a checksum or a magic number. These are
taken apart and put together again around one lie, checksums included:

    for name, data in structured(500, seed=1):
        (folder / name).write_bytes(data)
"""

import struct
from collections.abc import Callable, Iterator

import numpy as np

from tests.support.audio import tone
from tests.support.checksummed_structures import (
    CHANNELS,
    PICTURE_BYTES,
    RATE_HZ,
    RATES_HZ,
    SIZES_32,
    Random,
    encoded,
    flac_blocks,
    flac_info,
    flac_silence,
    ogg_lacing,
    ogg_sequence,
    ogg_times,
    one,
    opus_head,
    opus_silence,
    opus_tags,
)

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
    which, size = random.integers(3), one(random, SIZES_32)
    sizes = [size if which == each else None for each in range(3)]
    return _riff(
        _chunk(b"fmt ", _format(), sizes[1]), _chunk(b"data", _pcm(), sizes[2]), size=sizes[0]
    )


def _wav_rates(random: Random) -> bytes:
    tag = one(random, (1, 1, 1, 2, 3, 6, 7, 0x11, 0x55, 0xFFFE, 0xFFFF, 0))
    channels, bits = one(random, CHANNELS), one(random, (0, 1, 4, 8, 16, 24, 32, 64, 255))
    block = one(random, (0, 1, channels * bits // 8 & 0xFFFF, channels * bits // 8 & 0xFFFF))
    said = _format(
        tag=tag, channels=channels, rate_hz=one(random, RATES_HZ), bits=bits, block=block
    )
    return _riff(_chunk(b"fmt ", said), _chunk(b"data", _pcm()))


def _wav_chunks(random: Random) -> bytes:
    said, data = _chunk(b"fmt ", _format()), _chunk(b"data", _pcm())
    text = b"INFO" + _chunk(b"ICMT", b"x" * PICTURE_BYTES)
    picture = _chunk(b"id3 ", _id3(_frame(b"APIC", b"\0image/png\0\x03\0" + bytes(PICTURE_BYTES))))
    return one(
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
    sizes = [one(random, (0, 1, 1 << 31, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)) for _ in "123"]
    lengths = struct.pack("<QQQI", *sizes, one(random, (0, 0x7FFFFFFF)))
    said, data = _chunk(b"fmt ", _format()), _chunk(b"data", _pcm(), 0xFFFFFFFF)
    return _riff(_chunk(b"ds64", lengths), said, data, size=0xFFFFFFFF, magic=b"RF64")


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
    kind = one(random, (("mov", "pcm_s16le", "s16"), ("ipod", "aac", "fltp"),
                         ("mov", "alac", "s16p"), ("mp4", "aac", "fltp")))  # fmt: skip
    return bytearray(encoded(*kind))


def _mp4_sizes(random: Random) -> bytes:
    data = _mp4(random)
    places = [at for at, _ in _atoms(bytes(data), 0, len(data))]
    for at in random.choice(places, min(len(places), int(random.integers(1, 4))), replace=False):
        struct.pack_into(">I", data, int(at), one(random, SIZES_32))
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
        struct.pack_into(">I", data, min(at + field, len(data) - 4), one(random, SIZES_32))
    return bytes(data)


def _mp4_nested(random: Random) -> bytes:
    data = bytes(_mp4(random))
    (moov,) = (at for at, name in _atoms(data, 0, len(data)) if name == b"moov")
    head, inner = data[:moov], data[moov + 8 : moov + struct.unpack_from(">I", data, moov)[0]]

    def atom(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), name) + body

    which = random.integers(7)
    if which == 0:
        for _ in range(one(random, (10, 200, 3000))):
            inner = atom(one(random, (b"moov", b"trak", b"udta")), inner)
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
    kind = one(random, (("webm", "libopus", "flt"), ("matroska", "pcm_s16le", "s16"),
                         ("matroska", "libmp3lame", "fltp")))  # fmt: skip
    return bytearray(encoded(*kind))


def _mkv_sizes(random: Random) -> bytes:
    data = _mkv(random)
    places = [(sized, content) for _, sized, content, _ in _elements(bytes(data), 0, len(data))]
    for at in random.integers(len(places), size=int(random.integers(1, 4))):
        sized, content = places[int(at)]
        wide = content - sized
        value = one(random, (0, 1, 127, (1 << 7 * wide) - 2, (1 << 7 * wide) - 1))
        data[sized:content] = (value % (1 << 7 * wide) | 1 << 7 * wide).to_bytes(wide)
    return bytes(data)


def _mkv_values(random: Random) -> bytes:
    data = _mkv(random)
    wanted = {_RATE, _CHANNELS, _BITS, _SCALE, _CODEC_PRIVATE, _TRACK}
    found = [each for each in _elements(bytes(data), 0, len(data)) if each[0] in wanted]
    number, _, at, size = found[int(random.integers(len(found)))]
    if number == _RATE:
        value = one(random, (*map(float, RATES_HZ), -1.0, 1e300, float("nan"), float("inf")))
        data[at : at + size] = struct.pack(">d" if size == 8 else ">f", min(value, 3e38))
    elif number == _CODEC_PRIVATE:
        data[at : at + size] = random.bytes(size)
    else:
        value = one(random, (0, *CHANNELS, 1 << 8 * size - 1, (1 << 8 * size) - 1))
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
            data[at + 4] = one(random, (0, 1, 8, 127, 255))
            data[at + 5] = one(random, (0, 1, 0x40, 0x80, 255))
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
    for _ in range(one(random, (20, 500))):
        deep = element(b"\x67\xc8", deep)  # a tag in a tag
    more = one(
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
    sound = encoded("mp3", "libmp3lame", "fltp")
    title = _frame(b"TIT2", b"\0title")
    picture = _frame(b"APIC", b"\0image/png\0\x03\0" + bytes(PICTURE_BYTES))
    return one(
        random,
        (
            _id3(title, size=one(random, (0, 1, 1000, (1 << 28) - 1))) + sound,
            _id3(_frame(b"TIT2", b"\0x", one(random, SIZES_32))) + sound,
            _id3(picture) + sound,
            _id3(_frame(b"APIC", b"\0x", one(random, SIZES_32)) + bytes(50_000)) + sound,
            _id3(title) * 2000 + sound,
            _id3(title, flags=255) + sound,
            _id3(title, version=one(random, (0, 1, 2, 4, 255))) + sound,
            _id3(title) + _id3(title) + b"\0" * 100_000 + sound,
            b"ID3\3\0\0\xff\xff\xff\xff" + sound,
            sound + b"TAG" + bytes(125) + b"APETAGEX" + struct.pack("<4I", 2000, *SIZES_32[-3:]),
            _id3(title),
        ),
    )


def _mp3_frames(random: Random) -> bytes:
    """Have headers change their mind on rate, channels, layer and bit rate, frame by frame."""
    data = bytearray(encoded("mp3", "libmp3lame", "fltp"))
    at = data.find(b"\xff\xf3")
    places = []
    while 0 <= at < len(data) - 4:
        places.append(at)
        at = data.find(b"\xff\xf3", at + 24)
    for place in places[:: int(random.integers(1, 4))]:
        byte, bits = one(random, ((1, 0x18), (1, 0x06), (2, 0xF0), (2, 0x0C), (3, 0xC0)))
        data[place + byte] = data[place + byte] & ~bits | int(random.integers(256)) & bits
    if random.integers(2):  # a first frame that claims how many there are
        head = bytes(data[places[0] : places[0] + 4])
        claims = b"Xing" + struct.pack(">III", 3, one(random, SIZES_32), one(random, SIZES_32))
        data[places[0] : places[0]] = head + bytes(9) + claims + bytes(300)
    return bytes(data)


LIES: tuple[tuple[str, Callable[[Random], bytes]], ...] = (
    ("wav", _wav_sizes), ("opus", ogg_sequence), ("flac", flac_blocks), ("m4a", _mp4_sizes),
    ("mkv", _mkv_sizes), ("mp3", _mp3_tags), ("wav", _wav_rates), ("ogg", ogg_times),
    ("flac", flac_info), ("mp4", _mp4_numbers), ("mkv", _mkv_values), ("mp3", _mp3_frames),
    ("wav", _wav_chunks), ("ogg", ogg_lacing), ("mov", _mp4_nested), ("mkv", _mkv_lacing),
    ("wav", _wav_64), ("opus", opus_head), ("opus", opus_tags), ("webm", _mkv_big),
    ("wav", _wav_rates), ("flac", flac_silence), ("opus", opus_silence),
)  # fmt: skip
# These take a decoder minutes, however well it does: quick tests leave them out.
LONG = (flac_silence, opus_silence)


def structured(count: int, *, seed: int, long: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of files, each lie in turn; with `long`, hours of silence, too."""
    random = np.random.default_rng(seed)
    lies = [(suffix, lie) for suffix, lie in LIES if long or lie not in LONG]
    for index in range(count):
        suffix, lie = lies[index % len(lies)]
        yield f"{index:04d}_{lie.__name__.lstrip('_')}.{suffix}", lie(random)
