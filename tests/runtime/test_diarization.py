"""Speakers of a run: made of what its parts carry, once, whatever happened on the way."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.speakers import SpeakerSettings
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import Selection
from corpus_asr.export.speaker_names import name_speaker
from corpus_asr.export.speakers import SPOKEN_SEGMENTS, read_segments, refuse_speakers, speakers_of
from corpus_asr.report.html.page import write_page
from corpus_asr.report.run import as_data, load_report, render
from corpus_asr.runtime import diarization
from corpus_asr.runtime.diarization import find_speakers_of_run
from corpus_asr.schemas import SPEAKERS
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.speaker_turns import MAX_OBJECTS, read_turns
from corpus_asr.storage.run_state.tables import SPEAKERS_FOLDER, VOICES_FOLDER, OutputStore
from corpus_asr.storage.run_state.voices import read_voices
from corpus_asr.storage.stores.uri import recording_id
from tests.support.extractors import scripted_part, scripted_voices
from tests.support.pages import parsed
from tests.support.tables import commit, part, results

AUTO = SpeakerSettings(mode="auto")
A, B = recording_id("/a"), recording_id("/b")


def spoken(name: str, index: int, **values: Any) -> dict[str, Any]:
    """A row of a part with one of two voices, by turns of parts; its text has a word per second."""
    voices = scripted_voices(scripted_part(index))
    spans = [
        {"start_s": start_s, "end_s": end_s}
        for start_s, end_s in zip(voices.start_s.tolist(), voices.end_s.tolist(), strict=True)
    ]
    data = voices.embeddings.astype("<f2").tobytes()
    usual: dict[str, Any] = {"texts": [f" Part {index}."], "voice_spans": spans, "voices": data}
    row = part(name, index, **usual | values)
    for segment in row["segments"] or ():
        segment |= {"start_s": index, "end_s": index + 1.0}
    return row


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(str(tmp_path))


def names_of(store: OutputStore, name: str = A) -> list[tuple[float, float, str]]:
    turns = (read_turns(store) or {})[name]
    return [(round(turn.start_s, 3), round(turn.end_s, 3), turn.speaker) for turn in turns]


ALTERNATING = [(0.0, 1.0, "S1"), (1.0, 2.0, "S2"), (2.0, 3.0, "S1")]


def test_a_recording_has_speakers_once_all_its_parts_are_committed(store: OutputStore):
    # In another order than they are in the recording, and in other objects.
    commit(store, results(spoken("a", 2), spoken("b", 0, last=False)))
    commit(store, results(spoken("a", 0, last=False)))
    assert find_speakers_of_run(store, AUTO) == 0
    assert read_turns(store) is None
    commit(store, results(spoken("a", 1, last=False)))
    assert find_speakers_of_run(store, AUTO) == 1
    assert names_of(store) == ALTERNATING
    # Nothing is made twice.
    objects = store.names(SPEAKERS_FOLDER)
    assert find_speakers_of_run(store, AUTO) == 0
    assert store.names(SPEAKERS_FOLDER) == objects
    commit(store, results(spoken("b", 1)))
    assert find_speakers_of_run(store, AUTO) == 1
    assert names_of(store) == ALTERNATING
    assert names_of(store, B) == ALTERNATING[:2]


def test_other_bounds_make_other_turns_of_the_same_voices(store: OutputStore):
    commit(store, results(*(spoken("a", at, last=at == 2) for at in range(3))))
    find_speakers_of_run(store, AUTO)
    one = SpeakerSettings(mode="auto", num_speakers=1)
    assert find_speakers_of_run(store, one) == 1
    assert {speaker for *_, speaker in names_of(store)} == {"S1"}
    assert len(store.names(SPEAKERS_FOLDER)) == 1
    assert find_speakers_of_run(store, AUTO) == 1
    assert names_of(store) == ALTERNATING


def test_a_recording_that_was_replaced_has_the_speakers_of_the_new_one(store: OutputStore):
    commit(store, results(spoken("a", 0), spoken("b", 0)))
    find_speakers_of_run(store, AUTO)
    store.remove_all(store.names("outcomes"))
    commit(store, results(spoken("a", 1, part=0, etag="v2")), run_id="second")
    assert find_speakers_of_run(store, AUTO) == 1
    assert names_of(store) == [(1.0, 2.0, "S1")]
    assert [*(read_turns(store) or {})] == [A]  # /b is no recording of the run any more


def test_a_finish_killed_between_its_steps_leaves_nothing_twice(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
):
    commit(store, results(spoken("a", 0), spoken("b", 0)))
    with monkeypatch.context() as patched:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(diarization, "tidy_turns", killed)
        for settings in (AUTO, SpeakerSettings(mode="auto", num_speakers=1), AUTO):
            with pytest.raises(KeyboardInterrupt):
                find_speakers_of_run(store, settings)
    assert len(store.names(SPEAKERS_FOLDER)) == 3
    assert names_of(store) == ALTERNATING[:1]
    assert find_speakers_of_run(store, AUTO) == 0
    (name,) = store.names(SPEAKERS_FOLDER)
    assert store.read_table(name, SPEAKERS).num_rows == 2


def test_many_small_objects_become_one(store: OutputStore):
    for number in range(MAX_OBJECTS + 1):
        commit(store, results(spoken(f"r{number}", 0)))
        find_speakers_of_run(store, AUTO)
    assert len(store.names(SPEAKERS_FOLDER)) == 1
    assert len(read_turns(store) or {}) == MAX_OBJECTS + 1


def test_one_bad_recording_costs_its_own_speakers(
    store: OutputStore, caplog: pytest.LogCaptureFixture
):
    broken = spoken("a", 0) | {"voices": b"xyz"}
    silent = part("silent", 0, texts=None, status="no_speech", voice_spans=[], voices=b"")
    failed = part("failed", 0, texts=None, status="failed")
    commit(store, results(broken, spoken("b", 0), silent, failed))
    assert find_speakers_of_run(store, AUTO) == 4
    turns = read_turns(store) or {}
    assert {name: len(own) for name, own in turns.items()} == {
        A: 0, B: 1, recording_id("/silent"): 0, recording_id("/failed"): 0,
    }  # fmt: skip
    assert "speakers_not_found" in caplog.text
    assert find_speakers_of_run(store, AUTO) == 0


def test_segments_are_read_with_speakers_and_the_names_that_people_gave(store: OutputStore):
    commit(store, results(*(spoken("a", at, last=at == 2) for at in range(3))))
    assert "speaker" not in read_segments(store.uri).schema.names
    with pytest.raises(ConfigError, match="found no table speakers/"):
        read_segments(store.uri, speakers=True)
    find_speakers_of_run(store, AUTO)
    store.write_bytes("speakers.csv", b"uri,speaker,name\n/a,S2,Anna\n/a,S1,\n/b,S1,Bob\n")
    table = read_segments(store.uri, speakers=True)
    assert table.schema.equals(SPOKEN_SEGMENTS)
    assert table.select(["text", "speaker"]).to_pylist() == [
        {"text": " Part 0.", "speaker": "S1"},
        {"text": " Part 1.", "speaker": "Anna"},
        {"text": " Part 2.", "speaker": "S1"},
    ]
    turns = speakers_of(store)
    refuse_speakers(store, Selection(speakers=("Anna",)), turns)
    with pytest.raises(ConfigError, match=r"found 2 others, expected S2; correct --speaker"):
        refuse_speakers(store, Selection(speakers=("S2",)), turns)
    store.write_bytes("speakers.csv", b"file,who\n")
    with pytest.raises(ConfigError, match="found the columns file, who, expected uri, speaker"):
        speakers_of(store)


CORPUS = SpeakerSettings(mode="corpus")


def voices_of(store: OutputStore) -> dict[str, str]:
    return {
        f"{BY_ID[each]} {speaker}": voice for (each, speaker), voice in read_voices(store).items()
    }


BY_ID = {recording_id(f"/{name}"): name for name in "abc"}


def test_voices_are_the_same_across_recordings_whatever_the_order_of_commits(tmp_path: Path):
    # The two voices of parts with even and odd numbers; /b begins with the second.
    rows = [*(spoken("a", at, last=at == 2) for at in range(3)), spoken("c", 0)]
    rows += [spoken("b", 1, part=0, last=False), spoken("b", 2, part=1)]
    expected = {"a S1": "V1", "a S2": "V2", "b S1": "V2", "b S2": "V1", "c S1": "V1"}
    for name, order in (("one", rows), ("other", rows[::-1])):
        store = OutputStore(str(tmp_path / name))
        for row in order:  # after each commit the run is stopped and resumed
            commit(store, results(row))
            find_speakers_of_run(store, CORPUS)
        assert voices_of(store) == expected
        assert len(store.names(VOICES_FOLDER)) == 1
        objects = store.names(VOICES_FOLDER)
        find_speakers_of_run(store, CORPUS)
        assert store.names(VOICES_FOLDER) == objects


def test_another_mode_makes_no_turns_again_and_leaves_no_voices(store: OutputStore):
    commit(store, results(spoken("a", 0), spoken("b", 0)))
    find_speakers_of_run(store, AUTO)
    turns = store.names(SPEAKERS_FOLDER)
    assert read_voices(store) == {}
    assert find_speakers_of_run(store, CORPUS) == 0
    assert (store.names(SPEAKERS_FOLDER), len(read_voices(store))) == (turns, 2)
    find_speakers_of_run(store, AUTO)
    assert (store.names(SPEAKERS_FOLDER), read_voices(store)) == (turns, {})


def test_voices_of_a_finish_that_was_killed_are_those_of_the_next(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
):
    commit(store, results(spoken("a", 0)))
    find_speakers_of_run(store, CORPUS)
    commit(store, results(spoken("b", 0), spoken("c", 1, part=0)))
    with monkeypatch.context() as patched:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(OutputStore, "remove_all", killed)
        with pytest.raises(KeyboardInterrupt):
            find_speakers_of_run(store, CORPUS)
    expected = {"a S1": "V1", "b S1": "V1", "c S1": "V2"}
    assert len(store.names(VOICES_FOLDER)) == 2
    assert voices_of(store) == expected
    find_speakers_of_run(store, CORPUS)
    assert len(store.names(VOICES_FOLDER)) == 1
    assert voices_of(store) == expected


def test_a_name_is_that_of_the_voice_in_all_recordings(store: OutputStore):
    commit(store, results(*(spoken("a", at, last=at == 2) for at in range(3)), spoken("b", 0)))
    commit(store, results(spoken("c", 1, part=0)))
    find_speakers_of_run(store, CORPUS)

    def said() -> dict[str, list[str]]:
        rows = read_segments(store.uri, speakers=True).to_pylist()
        return {
            name: [row["speaker"] for row in rows if row["uri"] == f"/{name}"] for name in "abc"
        }

    assert said() == {"a": ["V1", "V2", "V1"], "b": ["V1"], "c": ["V2"]}
    name_speaker(store, "/c", "S1", "Anna", seen="")
    assert said() == {"a": ["V1", "Anna", "V1"], "b": ["V1"], "c": ["Anna"]}
    # Somebody says that it is another person in /a: then it is not known who the voice is.
    name_speaker(store, "/a", "S2", "Ben", seen="")
    name_speaker(store, "/b", "S1", "Cem", seen="")
    assert said() == {"a": ["Cem", "Ben", "Cem"], "b": ["Cem"], "c": ["Anna"]}


def test_reports_count_recordings_by_number_of_speakers(store: OutputStore):
    commit(store, results(*(spoken("a", at, last=at == 2) for at in range(3)), spoken("b", 0)))
    silent = part("silent", 0, texts=None, status="no_speech", voice_spans=[], voices=b"")
    commit(store, results(silent, spoken("c", 0)))
    store.write_json(CONFIG_NAME, {})
    assert load_report(store).speakers == ()
    find_speakers_of_run(store, AUTO)
    report = load_report(store)
    groups = [
        (each.number, each.recordings, round(each.speech_s, 3), round(each.most_s, 3))
        for each in report.speakers
    ]
    assert groups == [(0, 1, 0.0, 0.0), (1, 2, 2.0, 2.0), (2, 1, 3.0, 2.0)]
    assert report.num_speakers == 4
    assert report.most_share == pytest.approx(2 / 3)
    assert as_data(report)["speakers"][2] == asdict(report.speakers[2])
    shown = " ".join(render(report).split())
    assert (
        "speakers 0 in 1 recording, 1 in 2 recordings, 2 in 1 recording; where several speak, "
        "67% by the one who speaks most"
    ) in shown
    write_page(store, f"{store.uri}/page.html")
    page = parsed(Path(store.uri, "page.html").read_text())
    assert "1.0 per recording" in page.text
    assert "the one who speaks most has 67% of the speech" in page.text
    (table,) = page.all("table", id="recordings-table")
    heads = [each.text for each in table.all("th", scope="col")]
    places = [heads.index("speakers"), heads.index("most by one")]
    cells = {
        row.children[0].text: [row.children[at].text for at in places] for row in table.all("tr")
    }
    assert cells["/a"] == ["2", "67%"]
    assert (cells["/b"], cells["/silent"]) == (["1", "100%"], ["0", "-"])
    # Of what two objects hold, after a finish that was killed, the newest counts.
    (name,) = store.names(SPEAKERS_FOLDER)
    older = store.read_table(name, SPEAKERS)
    find_speakers_of_run(store, SpeakerSettings(mode="auto", num_speakers=1))
    store.write_table(f"{SPEAKERS_FOLDER}/0000000000000000001-x.parquet", older)
    assert [each.number for each in load_report(store).speakers] == [0, 1]
