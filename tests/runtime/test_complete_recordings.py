"""Words of known texts that two parts claim, and speakers, whatever happened on the way."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.config.extraction import SpeakerSettings
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.export.recordings import Selection
from corpus_asr.export.speakers import (
    SPOKEN_SEGMENTS,
    name_speaker,
    read_segments,
    refuse_speakers,
    speakers_of,
)
from corpus_asr.export.write import MissingWords, missing_words_of
from corpus_asr.report.run import load_report, render
from corpus_asr.runtime import complete_recordings
from corpus_asr.runtime.complete_recordings import place_words_once
from corpus_asr.runtime.ray_cluster import Cluster
from corpus_asr.runtime.ray_workers import on_workers
from corpus_asr.schemas import RECORDINGS, SPEAKERS
from corpus_asr.speakers import clustering
from corpus_asr.speakers.voices import find_voices
from corpus_asr.stages.measures import measured_columns
from corpus_asr.storage.run_state import recording_rows, speaker_turns
from corpus_asr.storage.run_state.finish import merge_parts
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.speaker_turns import read_turns, read_voices
from corpus_asr.storage.run_state.table_names import SPEAKERS_FOLDER, VOICES_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.transcription.joined_text import text_columns
from tests.support.extractors import scripted_part, scripted_voices
from tests.support.tables import (
    commit,
    complete,
    part,
    record,
    results,
    rows_of,
    stored_segments,
)

pytestmark = pytest.mark.long

# A refrain of three words is said twice in the text, numbers 2 to 4 and 6 to 8.
WORDS = [" so", " we", " row", " the", " boat", " and", " row", " the", " boat", " home"]
TEXT = "".join(WORDS).strip()
ALL = pa.array([recording_id("/a"), recording_id("/b")])


def find_speakers_of_run(store: OutputStore, *arguments: Any) -> int:
    record(store)
    return complete_recordings.find_speakers_of_run(store, *arguments)


def saying(
    name: str, index: int, *indices: int, probability: float, **values: Any
) -> dict[str, Any]:
    """A row of a part that says these words, a second each, in segments of two."""
    start_s = 10.0 * index
    words: list[dict[str, Any]] = [
        {"word": WORDS[at], "start_s": start_s + place, "end_s": start_s + place + 0.5,
         "probability": probability}
        for place, at in enumerate(indices)
    ]  # fmt: skip
    pairs = [words[at : at + 2] for at in range(0, len(words), 2)]
    row = part(name, index, texts=["".join(w["word"] for w in pair) for pair in pairs], **values)
    for segment, pair in zip(row["segments"], pairs, strict=True):
        segment |= {"words": pair, "start_s": pair[0]["start_s"], "end_s": pair[-1]["end_s"]}
    found = zip(indices, (word["end_s"] for word in words), strict=True)
    metadata = json.dumps({"text": TEXT})
    return row | text_columns(list(map(len, WORDS)), found) | {"metadata": metadata}


@pytest.fixture(autouse=True)
def brief_speakers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted parts last a second, which is too little for a speaker."""
    monkeypatch.setattr(clustering, "SMALL_MERGE_S", 0.1)


@pytest.fixture
def contested(store: OutputStore) -> OutputStore:
    """Of `/a` both parts claim the refrain, each in a commit; `/b` is as it should be."""
    store.write_json(CONFIG_NAME, {"decoding": {"align": True}})
    commit(store, results(saying("a", 0, 0, 1, 2, 3, 4, probability=0.4, last=False),
                          saying("b", 0, 0, 1, 2, 3, 4, probability=0.9, last=False)))  # fmt: skip
    commit(store, results(saying("b", 1, 6, 7, 8, 9, probability=0.9),
                          saying("a", 1, 2, 3, 4, 9, probability=0.8)))  # fmt: skip
    return store


def said(store: OutputStore) -> dict[tuple[str, int], list[str]]:
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows_of(stored_segments(store)):
        found.setdefault((row["uri"], row["part"]), []).append(row["text"])
    return found


SAID = {
    ("/a", 0): [" so we"],
    ("/a", 1): [" row the", " boat home"],
    ("/b", 0): [" so we", " row the", " boat"],
    ("/b", 1): [" row the", " boat home"],
}


def missing_words(store: OutputStore) -> MissingWords | None:
    with RunTables(store) as tables:
        whole = tables.table("select recording_id from recordings where complete and not failed")
    return missing_words_of(store, whole)


def words_found(row: dict[str, Any]) -> int:
    return sum(span["stop"] - span["first"] for span in row["text_spans"])


def check(store: OutputStore) -> None:
    assert said(store) == SAID
    rows = {(row["uri"], row["part"]): row for row in rows_of(store.outcomes())}
    assert len(rows) == 4
    assert {key: words_found(row) for key, row in rows.items()} == {
        ("/a", 0): 2, ("/a", 1): 4, ("/b", 0): 5, ("/b", 1): 4,
    }  # fmt: skip
    assert rows["/a", 0]["segments_written"] == 1
    assert rows["/a", 0]["text_spans"] == [{"first": 0, "stop": 2, "end_s": 1.5}]
    recordings = complete(store)
    missing = {row["uri"]: (row["missing_words"], row["text_words"]) for row in recordings}
    assert missing == {"/a": (4, 10), "/b": (1, 10)}
    words = missing_words(store) or {}
    assert [(w.word, w.index, w.after_s) for w in words[recording_id("/a")]] == [
        (" and", 5, 12.5), (" row", 6, 12.5), (" the", 7, 12.5), (" boat", 8, 12.5),
    ]  # fmt: skip
    assert [w.index for w in words[recording_id("/b")]] == [5]


def place_all(store: OutputStore) -> int:
    """Place the words of all recordings as a finish does; return how many parts lost some."""
    with RunTables(store) as tables:
        num_parts = place_words_once(store, tables)
        if num_parts:
            tables.reread(store)
        store.replace(*merge_parts(store, tables, None))
    return num_parts


def test_the_part_that_fits_better_has_the_words(contested: OutputStore) -> None:
    assert place_all(contested) == 1
    check(contested)
    names = contested.commit_names()
    assert place_all(contested) == 0  # nothing is left to do
    assert contested.commit_names() == names
    with RunTables(contested) as tables:
        contested.replace(*merge_parts(contested, tables, 1e9))
    check(contested)


def test_incomplete_recordings_are_left_alone(
    contested: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = said(contested)
    monkeypatch.setattr(RunTables, "ids", lambda *_: ALL[1:])
    assert place_all(contested) == 0
    assert said(contested) == before


def test_killed_before_the_first_commit_is_replaced_it_is_done_by_the_next(
    contested: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(OutputStore, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            place_all(contested)
    assert len(rows_of(contested.outcomes())) > 4
    assert place_all(contested) == 1
    check(contested)


def test_a_recording_of_which_a_part_failed_has_no_missing_words(contested: OutputStore) -> None:
    commit(contested, results(saying("c", 0, 0, 1, probability=0.9, last=False),
                          part("c", 1, texts=None, status="failed", error_kind="x")))  # fmt: skip
    table = complete(contested)
    of = {row["uri"]: row for row in table}
    assert (of["/c"]["text_words"], of["/c"]["missing_words"]) == (10, None)
    words = missing_words(contested) or {}
    assert recording_id("/c") not in words
    contested.write_json(CONFIG_NAME, {"decoding": {}})
    assert missing_words(contested) is None


AUTO = SpeakerSettings(mode="auto")
A, B = recording_id("/a"), recording_id("/b")


def spoken(name: str, index: int, **values: Any) -> dict[str, Any]:
    """A row of a part with one of two voices, by turns of parts; its text has a word per second."""
    measured = scripted_voices(scripted_part(index))
    voices = measured_columns(measured, (), (), start_s=float(index))
    usual: dict[str, Any] = {"texts": [f" Part {index}."], **voices}
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


def test_other_bounds_leave_labels_with_whom_they_were_of(store: OutputStore):
    rows = (spoken("a", 0, last=False), spoken("a", 1, last=False), spoken("a", 3, part=2))
    commit(store, results(*rows))
    find_speakers_of_run(store, SpeakerSettings(mode="auto", num_speakers=1))
    assert find_speakers_of_run(store, AUTO) == 1
    # The one who speaks first is new, and takes no name that somebody has.
    assert names_of(store) == [(0.0, 1.0, "S2"), (1.0, 2.0, "S1"), (3.0, 4.0, "S1")]


def test_who_is_new_gets_no_name_of_somebody_who_was_not_found_for_a_time(store: OutputStore):
    commit(store, results(*(spoken("a", at, last=at == 2) for at in range(3))))
    find_speakers_of_run(store, AUTO)
    name_speaker(store, "/a", "S2", "Ben", seen="")
    find_speakers_of_run(store, SpeakerSettings(mode="auto", num_speakers=1))
    find_speakers_of_run(store, AUTO)
    assert names_of(store) == [(0.0, 1.0, "S1"), (1.0, 2.0, "S3"), (2.0, 3.0, "S1")]


def test_a_row_of_the_manifest_says_how_many_speak_in_its_recording(store: OutputStore):
    rows = (spoken("a", at, last=at == 2) for at in range(3))
    commit(store, results(*rows, spoken("b", 0, last=False), spoken("b", 1)))

    def list_with(columns: dict[str, Any]) -> None:
        [name] = store.names("recordings")
        rows = store.read_table(name, RECORDINGS).to_pylist()
        of_a = {"metadata": json.dumps(columns)}
        rows = [row | (of_a if row["recording_id"] == A else {}) for row in rows]
        store.write_table(name, pa.Table.from_pylist(rows, RECORDINGS))

    record(store)
    find_speakers_of_run = complete_recordings.find_speakers_of_run
    list_with({"title": "x"})
    assert find_speakers_of_run(store, AUTO) == 2
    # Another column makes no other turns; a number does, of this recording alone.
    list_with({"title": "y", "num_speakers": None})
    assert find_speakers_of_run(store, AUTO) == 0
    list_with({"title": "y", "num_speakers": "1"})
    assert find_speakers_of_run(store, AUTO) == 1
    assert {speaker for *_, speaker in names_of(store)} == {"S1"}
    assert names_of(store, B) == ALTERNATING[:2]
    assert find_speakers_of_run(store, AUTO) == 0
    list_with({"title": "y", "max_speakers": 2})
    assert find_speakers_of_run(store, SpeakerSettings(mode="auto", num_speakers=1)) == 2
    assert names_of(store) == ALTERNATING
    assert {speaker for *_, speaker in names_of(store, B)} == {"S1"}


def test_two_have_a_turn_where_parts_say_that_two_speak(store: OutputStore):
    at_once = {0: [{"start_s": 0.75, "end_s": 1.0}], 1: [{"start_s": 1.0, "end_s": 1.25}]}
    rows = [spoken("a", at, last=at == 1, overlap_spans=at_once[at]) for at in range(2)]
    commit(store, results(*rows))
    assert find_speakers_of_run(store, AUTO) == 1
    assert names_of(store) == [(0.0, 1.25, "S1"), (0.75, 2.0, "S2")]


def test_a_recording_that_was_replaced_has_the_speakers_of_the_new_one(store: OutputStore):
    commit(store, results(spoken("a", 0), spoken("b", 0)))
    find_speakers_of_run(store, AUTO)
    store.remove_all(store.commit_names())
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

        patched.setattr(complete_recordings, "tidy", killed)
        for settings in (AUTO, SpeakerSettings(mode="auto", num_speakers=1), AUTO):
            with pytest.raises(KeyboardInterrupt):
                find_speakers_of_run(store, settings)
    assert len(store.names(SPEAKERS_FOLDER)) == 3
    assert names_of(store) == ALTERNATING[:1]
    assert find_speakers_of_run(store, AUTO) == 0
    (name,) = store.names(SPEAKERS_FOLDER)
    assert store.read_table(name, SPEAKERS).num_rows == 2


def test_large_objects_are_not_rewritten_and_hold_whole_recordings(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
):
    for module in (recording_rows, speaker_turns):
        monkeypatch.setattr(module, "ROWS_PER_OBJECT", 8)
    monkeypatch.setattr(recording_rows, "MAX_OBJECTS", 2)
    large: set[str] = set()
    for number in range(7):
        commit(store, results(*(spoken(f"r{number}", at, last=at == 2) for at in range(3))))
        find_speakers_of_run(store, AUTO)
        rows = {name: len(store.read_table(name, SPEAKERS))
                for name in store.names(SPEAKERS_FOLDER)}  # fmt: skip
        assert large <= rows.keys()
        large = {name for name, count in rows.items() if count >= 8}
        assert len(rows) - len(large) <= 2
    assert len(large) == 2
    objects = [store.read_table(name, SPEAKERS)["recording_id"].unique().to_pylist()
               for name in store.names(SPEAKERS_FOLDER)]  # fmt: skip
    assert sum(map(len, objects)) == len({each for own in objects for each in own}) == 7


@pytest.mark.ray
def test_speakers_found_on_workers_are_those_of_one_process(
    ray_session: Cluster, store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(complete_recordings, "MANY_RECORDINGS", 2)
    monkeypatch.setattr(recording_rows, "RECORDINGS_PER_PORTION", 2)
    other = OutputStore(str(tmp_path / "other"))
    for each in (store, other):
        for at in range(6):
            rows = (spoken(f"r{number}", at, last=at == 5) for number in range(5))
            commit(each, results(*rows))
    spread = partial(on_workers, at_once=2)
    assert find_speakers_of_run(store, AUTO, spread) == find_speakers_of_run(other, AUTO) == 5
    assert read_turns(store) == read_turns(other)
    assert len(store.names(SPEAKERS_FOLDER)) == 3

    def refused(portion: object) -> int:
        raise EngineError("another run took over")

    with pytest.raises(EngineError, match="another run took over"):
        list(on_workers(refused, [1], at_once=2))


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
    assert set(read_segments(store.uri)["speaker"].to_pylist()) == {None}
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


def test_a_night_compares_new_speakers_with_the_voices_that_are_known(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def looked(centroids: Any, recordings: Any, *, same_above: float, known: Any) -> Any:
        seen.append(known.tolist())
        return find_voices(centroids, recordings, same_above=same_above, known=known)

    monkeypatch.setattr(complete_recordings, "find_voices", looked)
    commit(store, results(spoken("a", 0), spoken("b", 1, part=0)))
    find_speakers_of_run(store, CORPUS)
    commit(store, results(spoken("c", 0)))
    find_speakers_of_run(store, CORPUS)
    find_speakers_of_run(store, CORPUS)
    assert seen == [[-1, -1], [1, 2, -1]]
    assert voices_of(store) == {"a S1": "V1", "b S1": "V2", "c S1": "V1"}
    # Somebody who is gone may have been what held a voice together.
    store.remove_all(store.commit_names())
    commit(store, results(spoken("b", 1, part=0), spoken("c", 0)))
    find_speakers_of_run(store, CORPUS)
    assert seen[-1] == [2, -1]


def test_of_too_many_speakers_new_ones_stay_without_voices(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    commit(store, results(spoken("a", 0)))
    find_speakers_of_run(store, CORPUS)
    monkeypatch.setattr(speaker_turns, "MAX_COMPARED_SPEAKERS", 1)
    commit(store, results(spoken("c", 0)))
    assert find_speakers_of_run(store, CORPUS) == 1
    assert voices_of(store) == {"a S1": "V1"}
    assert "voices_not_compared speakers=2 expected='at most 1' without_voice=1" in caplog.text
    monkeypatch.setattr(speaker_turns, "MAX_COMPARED_SPEAKERS", 2)
    find_speakers_of_run(store, CORPUS)
    assert voices_of(store) == {"a S1": "V1", "c S1": "V1"}


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
    record(store)
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
    find_speakers_of_run(store, AUTO)
    report = load_report(store)
    groups = [
        (each.number, each.recordings, round(each.speech_s, 3), round(each.most_s, 3))
        for each in report.speakers
    ]
    assert groups == [(0, 1, 0.0, 0.0), (1, 2, 2.0, 2.0), (2, 1, 3.0, 2.0)]
    assert report.num_speakers == 4
    assert report.most_share == pytest.approx(2 / 3)
    shown = " ".join(render(report).split())
    assert (
        "speakers 0 in 1 recording, 1 in 2 recordings, 2 in 1 recording; where several speak, "
        "67% by the one who speaks most"
    ) in shown
