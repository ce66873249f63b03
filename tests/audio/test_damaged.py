"""Recordings that can be decoded up to a point and no further."""

import io

import numpy as np
import pytest

from corpus_asr.audio import decode as decode_module
from corpus_asr.audio.decode import open_audio
from corpus_asr.audio.probe import open_container
from corpus_asr.errors import DecodeError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import DamagedContainer, decode, encode, tone

MP3 = encode(
    tone(20, rate_hz=44100, num_channels=2), rate_hz=44100, container="mp3", codec="libmp3lame"
)


@pytest.mark.parametrize("packets", [1, 100, 400])
def test_a_file_that_cannot_be_read_on_ends_with_an_error_after_what_was_good(packets, monkeypatch):
    whole = decode(MP3)
    monkeypatch.setattr(
        decode_module,
        "open_container",
        lambda *args, **names: DamagedContainer(open_container(*args, **names), packets=packets),
    )
    chunks: list[np.ndarray] = []
    with open_audio(io.BytesIO(MP3), uri="s3://b/a.mp3") as decoder:
        with pytest.raises(DecodeError) as caught:
            chunks.extend(decoder)
        assert decoder.decode_errors == 100
    found = np.concatenate(chunks, axis=1)
    assert found.shape[1] / SAMPLE_RATE_HZ == pytest.approx(packets * 1152 / 44100, abs=0.1)
    intact = max(0, found.shape[1] - 2000)
    np.testing.assert_array_equal(found[:, :intact], whole[:, :intact])
    assert caught.value.kind == "damaged"
    assert f"after {found.shape[1] / SAMPLE_RATE_HZ:.1f} s" in str(caught.value)
    assert "the header's 20.0 s" in str(caught.value)


def test_a_file_without_one_good_packet_is_empty(monkeypatch):
    monkeypatch.setattr(
        decode_module,
        "open_container",
        lambda *args, **names: DamagedContainer(open_container(*args, **names), packets=0),
    )
    with pytest.raises(DecodeError) as caught:
        decode(MP3)
    assert caught.value.kind == "empty_audio"


def test_a_stream_that_begins_in_mid_file_costs_nothing_of_the_first():
    """A video tag after the sound of a Flash file whose header announces sound only."""
    data = encode(tone(120), rate_hz=16000, container="flv", codec="aac")
    whole = decode(data)
    # An empty AVC frame: type 9, 5 bytes, time 0, stream 0; then the length of the tag.
    video = (
        b"\x09\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00" + b"\x17\x01\x00\x00\x00" + b"\0\0\0\x10"
    )
    tags, position = [], 13
    while position < len(data):
        size = int.from_bytes(data[position + 1 : position + 4], "big") + 15
        tags.append(data[position : position + size])
        position += size
    middle = len(tags) * 9 // 10  # behind what libav looks at to find the streams
    mixed = data[:13] + b"".join(tags[:middle]) + 3 * video + b"".join(tags[middle:])
    np.testing.assert_array_equal(decode(mixed, uri="a.flv"), whole)
