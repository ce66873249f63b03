"""Films in an archive: the tables name the track, and whatever reads the sound again takes it."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines.driver import run
from corpus_asr.report.samples import CUTTER
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import ClipRange, CutRequest
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE
from corpus_asr.units import SAMPLE_RATE_HZ
from corpus_asr.view.sound import Sounds
from tests.support.audio import read_clip
from tests.support.corpora import CLIPS, job, tiny_model
from tests.support.films import Track, film
from tests.support.tables import rows_of, stored_segments

pytestmark = pytest.mark.long

ENGLISH, GERMAN = read_clip(CLIPS / "english.wav"), read_clip(CLIPS / "german.opus")
SILENCE = np.zeros(3 * SAMPLE_RATE_HZ, np.float32)
EN, DE = Track(samples=ENGLISH, language="eng"), Track(samples=GERMAN, language="deu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    alone = {"english.mkv": [EN], "german.mkv": [DE]}
    several = {"silent.mkv": [Track(samples=SILENCE), EN], "two.mkv": [EN, DE]}
    for name, tracks in (alone | several).items():
        (folder / name).write_bytes(film(tracks))
    return folder


def done(films: Path, model: Path, output: Path, **extract: Any) -> RunConfig:
    config = job(films, model, output, extract={"part_s": 30} | extract)
    run(config, local=True, progress=None)
    return config


@pytest.fixture(scope="module")
def usual(films: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> OutputStore:
    return OutputStore(done(films, model, tmp_path_factory.mktemp("usual") / "out").output.uri)


@pytest.fixture(scope="module")
def each(films: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> OutputStore:
    output = tmp_path_factory.mktemp("each") / "out"
    return OutputStore(done(films, model, output, track="all").output.uri)


def recordings(store: OutputStore) -> dict[str, dict[str, Any]]:
    return {Path(row["uri"]).stem: row for row in rows_of(store.recordings())}


def texts(store: OutputStore) -> dict[tuple[str, int | None], list[str]]:
    found: dict[tuple[str, int | None], list[str]] = {}
    rows = sorted(rows_of(stored_segments(store)), key=lambda row: (row["part"], row["segment"]))
    for row in rows:
        found.setdefault((Path(row["uri"]).stem, row["channel"]), []).append(row["text"])
    return found


def test_the_tables_name_the_track_that_was_taken_and_all_others(usual: OutputStore):
    rows = recordings(usual)
    named = {name: (row["audio_track"], row["audio_tracks"]) for name, row in rows.items()}
    assert named == {
        "english": (None, None), "german": (None, None),
        "silent": (2, ["", "eng"]), "two": (1, ["eng", "deu"]),
    }  # fmt: skip
    said = texts(usual)
    assert said["silent", None] == said["two", None] == said["english", None]
    assert rows["silent"]["duration_s"] == rows["english"]["duration_s"]


def test_of_all_tracks_each_says_what_it_says_alone(usual: OutputStore, each: OutputStore):
    alone, said = texts(usual), texts(each)
    assert said["english", None] == alone["english", None]
    assert said["two", 1] == alone["english", None]
    assert said["two", 2] == alone["german", None]
    assert said["silent", 2] == alone["english", None]
    assert ("silent", 1) not in said
    row = recordings(each)["two"]
    assert (row["audio_track"], row["audio_tracks"], row["status"]) == (None, ["eng", "deu"], "ok")
    mean_s = (len(ENGLISH) + len(GERMAN)) / 2 / SAMPLE_RATE_HZ
    assert row["duration_s"] == pytest.approx(mean_s, abs=0.01)


def near(found: bytes | np.ndarray, expected: np.ndarray) -> None:
    values = np.frombuffer(found, "<i2") / 32768 if isinstance(found, bytes) else found
    length = min(len(values), len(expected))
    assert length > SAMPLE_RATE_HZ
    assert np.abs(values[:length] - expected[:length]).max() < 0.01


def test_the_viewer_plays_the_track_of_the_text(usual: OutputStore, each: OutputStore):
    def played(store: OutputStore, name: str, channel: int | None) -> bytes:
        with closing(Sounds(store)) as sounds:
            sound = sounds.of(recordings(store)[name])
            assert (sound.browser_type is None) == bool(sound.audio_tracks)
            playable = sounds.decoded(sound, channel=channel)
            return b"".join(playable.read(44, playable.size_bytes))

    near(played(usual, "silent", None), ENGLISH)
    near(played(each, "two", 1), ENGLISH)
    near(played(each, "two", 2), GERMAN)


def test_clips_are_cut_from_their_track(films: Path):
    spans = [(2, 1.0, 3.0), (1, 0.0, 2.0), (2, 0.0, 1.5)]
    ranges = tuple(
        ClipRange(channel=track, track=track, start_sample=round(start_s * SAMPLE_RATE_HZ),
                  end_sample=round(end_s * SAMPLE_RATE_HZ))
        for track, start_s, end_s in spans
    )  # fmt: skip
    request = CutRequest(uri=str(films / "two.mkv"), size_bytes=None, etag=None, ranges=ranges)
    options = {"store": DEFAULT_STORE, "channels": "mix", "audio_format": "wav"}
    with closing(IsolatedGenerator(CUTTER, init_kwargs=options, timeout_s=60.0)) as cutter:
        clips = {clip.number: clip.data for clip in cutter.run(request)}
    for number, (track, start_s, end_s) in enumerate(spans):
        source = ENGLISH if track == 1 else GERMAN
        first, last = round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)
        near(clips[number][44:], source[first:last])


def test_a_transcript_of_each_track_and_a_note_of_the_one_that_was_passed_over(
    films: Path, model: Path
):
    with Transcriber(str(model), temperature=0.0, slots=1) as transcriber:
        alone = transcriber.transcribe(films / "german.mkv")
        assert (alone.audio_track, alone.audio_tracks) == (None, ())
        asked = transcriber.transcribe(films / "two.mkv", track="German")
        assert (asked.text, asked.audio_track) == (alone.text, 2)
        spoken = transcriber.transcribe(films / "silent.mkv")
        assert (spoken.audio_track, spoken.silent_tracks) == (2, (1,))
        both = transcriber.transcribe(films / "two.mkv", track="all")
        assert [one.channel for one in both.channels] == [1, 2]
        assert both.channels[1].text == alone.text
        assert "track 1 eng" in both.to_txt()
        seconds = [one.duration_s for one in both.channels]
        assert seconds == pytest.approx([len(ENGLISH) / 16_000, len(GERMAN) / 16_000], abs=0.01)


def test_the_language_of_the_job_chooses_the_track(films: Path, model: Path, tmp_path: Path):
    decoding = {"language": "de", "temperature": 0.0}
    config = job(films / "two.mkv", model, tmp_path / "out", decoding=decoding)
    run(config, local=True, progress=None)
    assert recordings(OutputStore(config.output.uri))["two"]["audio_track"] == 2
