"""Digest of a recording's sound: of the packets of its audio tracks, as they are read.

Name, address, time, tags, pictures and chunks around samples make no difference; any changed packet
does. Nothing is decoded. Packets are hashed as one sequence of bytes, since their borders depend on
the container, without the headers that ADTS has before each of AAC; gaps and what is not to be
played are hashed, too, since they change what is heard.
"""

import hashlib
from typing import Any, Final

import av

from corpus_asr.audio.guarded_file import BinarySource, GuardedFile
from corpus_asr.audio.probe import open_container, select_audio
from corpus_asr.errors import DecodeError, FetchError

_DIGEST_BYTES: Final = 16
_GAP_S: Final = 0.05  # beyond what containers round
_LACE: Final = 255
# Their packets say what a decoder needs: a header of the codec is the container's.
_WITHOUT_HEADER: Final = ("aac", "mp3", "pcm_")


def sound_digest(file: BinarySource, *, uri: str) -> str | None:
    """Return the digest of a recording's sound, read to the end; None if that is not possible."""
    try:
        guarded = GuardedFile(file, uri=uri)
        with open_container(guarded, uri=uri) as container:
            select_audio(container)
            digest = SoundDigest(container)
            for packet in container.demux(list(container.streams.audio)):
                digest.add(packet)
        guarded.check()
    except (DecodeError, FetchError, av.error.FFmpegError, IndexError, ValueError):
        # Without a digest nothing follows by content: extraction says what is wrong with the file.
        return None
    return digest.value()


class SoundDigest:
    """Collects the packets of a container's audio tracks as they are read."""

    def __init__(self, container: av.container.InputContainer) -> None:
        self._tracks = {stream.index: _Track(stream) for stream in container.streams.audio}

    def add(self, packet: "av.Packet[Any]") -> None:
        """Add the next packet of an audio track."""
        if packet.size:
            self._tracks[packet.stream_index].add(packet)

    def value(self) -> str | None:
        """Return the digest of all packets so far; None if there were none."""
        if not any(track.num_bytes for track in self._tracks.values()):
            return None
        whole = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for track in self._tracks.values():
            whole.update(track.digest())
        return whole.hexdigest()


class _Track:
    """The bytes of one track, and where they are not played one after the other."""

    def __init__(self, stream: av.AudioStream) -> None:
        context = stream.codec_context
        self._format: tuple[str, int, int] | None = None
        self._extradata, self._is_aac = b"", False
        if context is not None:  # libav has a decoder
            self._format = (context.name, context.sample_rate, context.layout.nb_channels)
            self._extradata = _without_comments(context.name, context.extradata or b"")
            self._is_aac = context.name == "aac"
        self._bytes, self._jumps = hashlib.blake2b(), hashlib.blake2b()
        self._expected_s: float | None = None
        self._discarded_s = 0.0
        self.num_bytes = 0

    def add(self, packet: "av.Packet[Any]") -> None:
        """Add the next packet."""
        base = packet.time_base
        if packet.pts is not None and base is not None:
            start_s = float(packet.pts * base)
            jump_s = 0.0 if self._expected_s is None else start_s - self._expected_s
            if abs(jump_s) > _GAP_S:
                self._jumps.update(b"%d %.1f\n" % (self.num_bytes, jump_s))
            self._expected_s = start_s + float((packet.duration or 0) * base)
        # Not each container has the first milliseconds of an encoder for what is not to be played.
        discarded_s = float((packet.duration or 0) * base) if packet.is_discard and base else 0.0
        self._discarded_s = self._discarded_s + discarded_s if packet.is_discard else 0.0
        if self._discarded_s > _GAP_S:
            self._jumps.update(b"%d -\n" % self.num_bytes)
        data = memoryview(packet)
        data = data[_adts_bytes(data) :] if self._is_aac else data
        self._bytes.update(data)
        self.num_bytes += len(data)

    def digest(self) -> bytes:
        """Return the digest of what was added."""
        what = hashlib.blake2b(repr(self._format).encode())
        for part in (self._extradata, self._bytes.digest(), self._jumps.digest()):
            what.update(b"%d\n" % len(part) + part)
        return what.digest()


def _adts_bytes(data: memoryview) -> int:
    """Return the length of an ADTS header, with or without a checksum; 0 if there is none.

    Source: ISO/IEC 13818-7, 6.2: twelve bits of ones, the layer 0, and the length of the frame.
    """
    if len(data) < 7 or data[0] != 0xFF or data[1] & 0xF6 != 0xF0:
        return 0
    if (data[3] & 3) << 11 | data[4] << 3 | data[5] >> 5 != len(data):
        return 0
    return 7 if data[1] & 1 else 9


def _without_comments(codec: str, extradata: bytes) -> bytes:
    """Return a codec's header without tags: that of Vorbis has them in the second of three."""
    if codec.startswith(_WITHOUT_HEADER):
        return b""
    if codec != "vorbis" or extradata[:1] != b"\2":
        return extradata
    sizes, at = [0, 0], 1
    for number in range(len(sizes)):
        while at < len(extradata) and extradata[at] == _LACE:
            sizes[number], at = sizes[number] + _LACE, at + 1
        sizes[number], at = sizes[number] + extradata[at], at + 1
    return extradata[at : at + sizes[0]] + extradata[at + sum(sizes) :]
