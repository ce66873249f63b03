"""Parts of recordings with several audio tracks: of the one where somebody speaks, or of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.audio.decode import open_audio
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.errors import DecodeError
from corpus_asr.stages import extraction
from corpus_asr.stages.extraction import PartExtractor
from corpus_asr.stages.parts import DONE, ExtractRequest, PartRow
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, read_clip
from tests.support.corpora import CLIPS, tiny_model
from tests.support.films import Track, film

pytestmark = pytest.mark.long

SPEECH = read_clip(CLIPS / "english.wav")
OTHER = read_clip(CLIPS / "german.opus")
LONG = np.tile(SPEECH, -(-40 * SAMPLE_RATE_HZ // len(SPEECH)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


def write(folder: Path, *tracks: Track) -> str:
    path = folder / "film.mkv"
    path.write_bytes(film(tracks))
    return str(path)


def messages(model: Path, uri: str, *, done: tuple[int, ...] = (), **changes: Any):
    settings = ExtractSettings.model_construct(**({"part_s": 30.0} | changes))
    extractor = PartExtractor(folder=str(model), settings=settings)
    return extractor(ExtractRequest(uri=uri, done_parts=frozenset(done)))


def extract(model: Path, uri: str, **options: Any) -> list[PartRow]:
    found = messages(model, uri, **options)
    return [each for each in found if isinstance(each, dict)]


def same(found: list[PartRow], expected: list[PartRow]) -> None:
    """Compare what was extracted, but for the times it took and the names of tracks."""
    for name in ("part", "part_start_s", "num_samples", "speech_spans"):
        assert [each[name] for each in found] == [each[name] for each in expected]
    for one, other in zip(found, expected, strict=True):
        for name in ("features", "language_features"):
            before, after = other[name], one[name]
            assert (before is None) == (after is None)
            if before is not None:
                np.testing.assert_array_equal(before, after)


def test_where_nobody_speaks_the_track_with_speech_is_taken(model: Path, tmp_path: Path):
    alone = extract(model, write(tmp_path, Track(samples=LONG)))
    assert alone[0]["audio_tracks"] is None
    assert alone[0]["audio_track"] is None
    uri = write(tmp_path, Track(samples=silence(95)), Track(samples=LONG, language="deu"))
    found = extract(model, uri)
    same(found, alone)
    assert {each["audio_track"] for each in found} == {2}
    assert {each["audio_tracks"] for each in found} == {("", "deu")}
    assert {each["silent_tracks"] for each in found} == {(1,)}
    # Asked for by its number, it stays the silent one.
    assert not any(each["speech_spans"] != [] for each in extract(model, uri, track=1))


def test_a_track_that_begins_with_silence_is_no_silent_one(model: Path, tmp_path: Path):
    late = np.concatenate([silence(65), SPEECH])
    alone = extract(model, write(tmp_path, Track(samples=late)))
    assert [each["speech_spans"] != [] for each in alone][:2] == [False, False]
    found = extract(model, write(tmp_path, Track(samples=late), Track(samples=LONG)))
    same(found, alone)
    assert {(each["audio_track"], each["silent_tracks"]) for each in found} == {(1, ())}


def test_where_nobody_speaks_at_all_the_best_track_is_what_was_searched(
    model: Path, tmp_path: Path
):
    tracks = [Track(samples=silence(40)), Track(samples=silence(95)), Track(samples=silence(10))]
    found = extract(model, write(tmp_path, *tracks))
    assert sum(each["num_samples"] for each in found) == 40 * SAMPLE_RATE_HZ
    assert [each["part"] for each in found] == list(range(len(found)))
    assert {(each["audio_track"], each["speech_spans"] != []) for each in found} == {(1, False)}


def test_done_parts_of_the_other_track_are_not_done_again(model: Path, tmp_path: Path):
    uri = write(tmp_path, Track(samples=silence(5)), Track(samples=LONG))
    whole, rest = extract(model, uri), extract(model, uri, done=(0,))
    assert [each["status"] for each in rest] == [DONE] + [each["status"] for each in whole[1:]]
    same(rest[1:], whole[1:])


def test_each_track_has_parts_of_its_own_and_its_own_language_window(model: Path, tmp_path: Path):
    alone = [extract(model, write(tmp_path, Track(samples=samples))) for samples in (LONG, OTHER)]
    uri = write(tmp_path, Track(samples=LONG, language="eng"), Track(samples=OTHER, language="deu"))
    found = extract(model, uri, track="all")
    assert [each["part"] for each in found] == list(range(len(found)))
    assert {each["audio_track"] for each in found} == {None}
    for number, expected in zip((1, 2), alone, strict=True):
        own = [each for each in found if each["channel"] == number]
        assert [each["speech_spans"] for each in own] == [each["speech_spans"] for each in expected]
        # The window lies in the first part of each: the other track's is not carried over.
        assert own[0]["language_features"] is None
        assert own[0]["language_window_start_s"] == expected[0]["language_window_start_s"]
        for one, other in zip(own, expected, strict=True):
            np.testing.assert_array_equal(one["features"], other["features"])
    # A recording with one track has one transcript, without a number.
    only = extract(model, write(tmp_path, Track(samples=OTHER)), track="all")
    assert {(each["channel"], each["audio_tracks"]) for each in only} == {(None, None)}


def test_a_damaged_track_costs_no_other(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uri = write(tmp_path, Track(samples=SPEECH), Track(samples=noise(5)[0]), Track(samples=OTHER))

    def opened(*args: Any, track: int | str, **options: Any):
        if track in (1, 2):
            raise DecodeError("its codec is unknown", kind="unsupported_codec")
        return open_audio(*args, track=track, **options)

    monkeypatch.setattr(extraction, "open_audio", opened)
    found: list[Any] = []
    with pytest.raises(DecodeError, match="its codec is unknown"):
        found.extend(each for each in messages(model, uri, track="all"))
    # A list is extended as it goes on: what came before the failure is there.
    assert {each["channel"] for each in found if isinstance(each, dict)} == {3}


def test_a_track_that_is_not_there_fails_the_recording_alone(model: Path, tmp_path: Path):
    uri = write(tmp_path, Track(samples=SPEECH, language="eng"))
    with pytest.raises(DecodeError, match="found audio tracks 1 eng, expected 2") as found:
        extract(model, uri, track=2)
    assert found.value.kind == "no_such_track"
