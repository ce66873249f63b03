"""Containers with several audio tracks: the one that is decoded, and how it is asked for."""

import io
from typing import Any

import numpy as np
import pytest
from av.stream import Disposition

from corpus_asr.audio.decode import AudioDecoder, open_audio
from corpus_asr.audio.probe import read_header
from corpus_asr.audio.tracks import AudioTrack, in_order, listed
from corpus_asr.errors import DecodeError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import share_of_tone, tone
from tests.support.films import Track, film

DEFAULT, COMMENT = Disposition.default, Disposition.comment
BLIND = Disposition.visual_impaired
PITCHES_HZ = (440.0, 1_000.0, 2_500.0)


def tones(*said: dict[str, Any]) -> list[Track]:
    """Make a track of each, told by its pitch."""
    return [
        Track(samples=tone(1.0, hz=hz, rate_hz=SAMPLE_RATE_HZ)[0], **each)
        for hz, each in zip(PITCHES_HZ, said, strict=False)
    ]


def decoder(data: bytes, **asked: Any) -> AudioDecoder:
    return open_audio(io.BytesIO(data), uri="film.mkv", **asked)


def sounding(data: bytes, **asked: Any) -> int:
    """Return the number of the track that is decoded, by its sound."""
    with decoder(data, **asked) as opened:
        samples = np.concatenate(list(opened), axis=1)[0]
    shares = [share_of_tone(samples, hz) for hz in PITCHES_HZ]
    assert max(shares) > 0.5
    return int(np.argmax(shares)) + 1


@pytest.mark.parametrize("container", ["matroska", "mov", "mp4", "mpegts"])
def test_a_track_is_found_by_its_number_in_every_container(container: str):
    data = film(tones({"language": "eng"}, {"language": "ger"}, {"language": "fra"}), container)
    assert [sounding(data, track=number) for number in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
@pytest.mark.parametrize("asked", ["de", "deu", "ger", "German", "Deutsch", "de-AT"])
def test_a_track_is_found_by_its_language_however_it_is_written(container: str, asked: str):
    data = film(tones({"language": "eng"}, {"language": "ger"}), container)
    assert sounding(data, track=asked) == 2


def test_by_default_it_is_the_one_that_players_take():
    plain = tones({"language": "eng"}, {"language": "ger"})
    assert sounding(film(plain)) == 1
    marked = tones({"language": "eng"}, {"language": "ger", "disposition": DEFAULT})
    assert sounding(film(marked)) == 2
    # More channels, a higher rate or more packets are no reason.
    both = tones({"disposition": DEFAULT}, {"disposition": DEFAULT})
    assert sounding(film(both)) == 1
    # Nor are commentaries and descriptions, unless there is nothing else.
    described = tones({"disposition": DEFAULT | BLIND}, {"disposition": COMMENT}, {})
    assert sounding(film(described)) == 3
    assert sounding(film(described[:2])) == 1


def test_the_language_that_is_spoken_counts_before_the_default():
    data = film(tones({"language": "eng", "disposition": DEFAULT}, {"language": "ger"}))
    assert sounding(data, languages=("de",)) == 2
    assert sounding(data, languages=("fr", "de")) == 2
    assert sounding(data, languages=("fr",)) == 1
    # One that tells no language may hold any: better than one that tells another.
    data = film(tones({"language": "eng", "disposition": DEFAULT}, {}, {}), "mp4")
    assert sounding(data, languages=("de",)) == 2


@pytest.mark.parametrize("asked", [3, 99, "fr", "qtx"])
def test_a_track_that_is_not_there_is_refused_with_those_that_are(asked: str | int):
    data = film(tones({"language": "eng"}, {"language": "ger", "title": "Kommentar"}))
    with pytest.raises(
        DecodeError, match=r"found audio tracks 1 eng, 2 ger: Kommentar.*--audio-track"
    ) as found:
        decoder(data, track=asked)
    assert found.value.kind == "no_such_track"
    assert f"expected {asked}; set" in str(found.value)


def test_titles_cannot_upset_a_terminal_or_a_line():
    title = "\x1b[31mred\n\x07" + "long " * 100
    with decoder(film(tones({"title": title}, {}))) as opened:
        words = listed(opened.tracks)
    assert words.isprintable()
    assert len(words) < 100


def test_a_header_names_the_tracks_and_their_order():
    data = film(tones({"language": "eng"}, {"language": "ger", "disposition": DEFAULT}))
    found = read_header(io.BytesIO(data), uri="film.mkv")
    assert [each.language for each in found.tracks] == ["eng", "ger"]
    assert [each.number for each in found.wanted] == [2, 1]
    assert found.duration_s == pytest.approx(1.0, abs=0.1)


def test_a_track_that_cannot_be_decoded_comes_last():
    def track(number: int, *, is_readable: bool) -> AudioTrack:
        return AudioTrack(number=number, language=None, title=None, is_default=number == 1,
                          is_special=False, is_readable=is_readable)  # fmt: skip

    tracks = [track(1, is_readable=False), track(2, is_readable=True)]
    found = in_order(tracks, track="auto", languages=(), uri="film.mkv")
    assert [each.number for each in found] == [2, 1]
    assert in_order(tracks, track=1, languages=(), uri="film.mkv") == tracks[:1]


def test_recordings_of_one_track_are_as_they_were():
    data = film(tones({"language": "eng"}))
    for track in ("auto", "all", 1, "en"):
        with decoder(data, track=track) as opened:
            assert [each.number for each in opened.tracks] == [1]
            assert np.concatenate(list(opened), axis=1).shape == (1, SAMPLE_RATE_HZ)
