"""Views of runs in progress, and transcripts of any length: block by block, sorted by time."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from corpus_asr.edits.corrections import EditedSegment, correct
from corpus_asr.errors import ConfigError
from corpus_asr.storage import parquet
from corpus_asr.storage.run_state import part_rows
from corpus_asr.storage.run_state.finish import merge
from corpus_asr.storage.run_state.lock import SUCCESS_NAME
from corpus_asr.storage.run_state.table_names import LABEL_ROWS
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.view.catalogue import BLOCK_ROWS, Library, Transcript, Transcripts
from tests.support.runs import correct_segment, finished, passage, run_of, says, spoken
from tests.support.tables import part
from tests.view.conftest import add, said, search

REPOSITORY = Path(__file__).resolve().parents[2]


def transcript_of(store: OutputStore) -> Transcript:
    with closing(Library(store)) as library:
        view = library.current()
        row = view.catalogue.recording(recording_id("/a.wav"))
        assert row is not None
        return Transcripts(store).read(view, row)


def test_parts_in_many_objects_and_row_groups_are_one_transcript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 70)
    store = run_of(tmp_path)
    others = [spoken(f"/{name}.wav", passage(0, name)) for name in "bcd"]
    texts = [f"p{at}" for at in range(2 * BLOCK_ROWS + 30)]
    messages = [passage(at, text) for at, text in enumerate(texts)]
    late, early = messages[BLOCK_ROWS - 5 :], messages[: BLOCK_ROWS - 5]
    add(store, others[0], spoken("/a.wav", *late, part=1), others[1])
    add(store, others[2], spoken("/a.wav", *early, last_part=False))
    found = transcript_of(store)
    blocks = [found.block(number) for number in range(4)]
    assert [len(block) for block in blocks] == [BLOCK_ROWS, BLOCK_ROWS, 30, 0]
    assert [row["text"].strip() for block in blocks for row in block] == texts
    assert found.block_starts_s == [0.0, 200.0, 400.0]
    assert not found.has_words


def test_doubtful_words_are_found_in_both_directions(tmp_path: Path) -> None:
    rows = [
        passage(0, "a b", probabilities=(0.9, 0.2)),
        passage(1, "c d", probabilities=(0.4, 0.9)),
        passage(2, "e f", probabilities=(0.5, 0.1)),
    ]
    found = transcript_of(run_of(tmp_path / "words", spoken("/a.wav", *rows)))
    after = [found.low_confidence(at, below=0.5) for at in (0.0, 1.0, 2.0, 5.0)]
    assert after == [1.0, 2.0, 5.0, None]
    before = [found.low_confidence(at, below=0.5, forward=False) for at in (5.0, 1.0)]
    assert before == [2.0, None]
    # Without words, whole segments are doubtful.
    rows = [passage(at, "a", confidence=sure) for at, sure in enumerate((0.9, 0.2, None))]
    found = transcript_of(run_of(tmp_path / "segments", spoken("/a.wav", *rows)))
    assert [found.low_confidence(at, below=0.5) for at in (0.0, 2.0)] == [2.0, None]


def test_channels_apart_are_named_and_in_the_order_of_time(tmp_path: Path) -> None:
    store = run_of(
        tmp_path,
        spoken("/a.wav", passage(0, "left"), passage(2, "again"), channel=0, last_part=False),
        spoken("/a.wav", passage(0, "right"), passage(1, "too"), channel=1, part=1),
    )
    found = transcript_of(store)
    assert [row["text"] for row in found.block(0)] == [" left", " right", " too", " again"]
    assert found.channels == [0, 1]


def test_a_classification_is_refused_and_its_windows_are_a_query(tmp_path: Path) -> None:
    labels = [
        {"window": window, "start_s": 30.0 * window, "end_s": 30.0 * window + 30, "weight_s": 1.0,
         "rank": rank, "label": label, "probability": probability - 0.1 * window}
        for window in (1, 0)
        for rank, label, probability in ((2, "nl", 0.2), (1, "de", 0.75), (3, "en", 0.14),
                                         (4, "fr", 0.11))
    ]  # fmt: skip
    row = part("a.wav", 0, texts=None, labels=labels)
    store = run_of(tmp_path, row, pipeline="classify_audio")
    with pytest.raises(ConfigError, match=r"found labels/ of a classification, expected segments"):
        Library(store)
    names = store.commit_names()
    store.replace(names, merge(store, names, {}, LABEL_ROWS))
    guide = (REPOSITORY / "docs/how-to/models.md").read_text(encoding="utf-8")
    query = guide.partition("-- windows of a classification\n")[2].partition("```")[0]
    windows = duckdb.execute(query.replace("output/", f"{store.uri}/")).fetchall()
    assert [(start_s, labels) for _, start_s, _, labels, _ in windows] == [
        (30.0, ["de", "nl", "en"]), (0.0, ["de", "nl", "en"])
    ]  # fmt: skip


@pytest.mark.long
def test_a_run_that_goes_on_is_followed(store: OutputStore, library: Library) -> None:
    assert search(library.wait()).total == 0
    add(store, spoken("/b.wav", passage(0, "one")))
    first = library.wait()
    add(store, spoken("/a.wav", passage(0, "two")))
    second = library.wait()
    assert second.version > first.version
    assert (said(search(first)), said(search(second))) == (["one"], ["two", "one"])
    finished(store, "a.wav", "b.wav")
    last = library.wait()
    assert last.catalogue.finished
    assert said(search(last)) == ["two", "one"]
    # What was rewritten into larger files was read again; nothing is held twice.
    assert last.catalogue.tables.rows("select count(*) from texts") == [(2,)]
    # What does not count is not found: a part committed twice, and content replaced since.
    add(store, spoken("/a.wav", passage(0, "again")))
    add(store, spoken("/b.wav", passage(0, "newer"), etag="v2"))
    assert said(search(library.wait())) == ["two", "newer"]


def test_of_a_run_in_progress_only_new_commits_are_read(
    store: OutputStore, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = spoken("/b.wav", passage(0, "one"), passage(1, "two"), last_part=False)
    add(store, first, spoken("/c.wav", passage(0, "three")))
    library.wait()
    correct_segment(store, "two", "2")
    names: list[str] = []
    read = part_rows.part_rows

    def noted(store: OutputStore, wanted: Iterable[str], *kind: Any) -> Any:
        names.extend(wanted := list(wanted))
        return read(store, wanted, *kind)

    monkeypatch.setattr("corpus_asr.storage.run_state.current_rows.part_rows", noted)
    written = add(store, spoken("/a.wav", passage(0, "zero")), spoken("/c.wav", passage(0, "new"),
                                                                      etag="v2"))  # fmt: skip
    view = library.wait()
    assert names == [written]
    assert said(search(view)) == ["zero", "one", "2", "new"]
    assert [hit.before.strip() for hit in search(view).rows] == ["", "", "one", ""]
    # As a new viewer has it.
    with closing(Library(store)) as other:
        assert search(other.wait()) == search(view)


def test_who_speaks_is_known_after_a_finish_without_a_commit(
    store: OutputStore, library: Library
) -> None:
    add(store, spoken("/a.wav", passage(0, "one")))
    transcripts, named = Transcripts(store), recording_id("/a.wav")
    assert transcripts.turns(library.wait(), named) == ()
    says(store, "/a.wav", (0.0, 1.0, "S1"))
    store.write_json(SUCCESS_NAME, {})
    assert [turn.speaker for turn in transcripts.turns(library.wait(), named)] == ["S1"]


@pytest.mark.long
def test_many_search_while_a_run_goes_on_and_people_correct(
    store: OutputStore, library: Library
) -> None:
    add(store, *[spoken(f"/{at}.wav", passage(0, "war"), passage(1, "peace")) for at in range(9)])
    library.wait()
    stop = threading.Event()

    def seen() -> list[tuple[int, int]]:
        found = []
        while not stop.is_set():
            view = library.current()
            total = search(view, "war").total
            [(recordings,)] = view.catalogue.tables.rows("select count(*) from shown")
            found.append((recordings, total - recordings))
        return found

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(seen) for _ in range(2)]
        for at in range(3):
            add(store, spoken(f"/new{at}.wav", passage(0, "war")))
            library.wait()
            view = library.current()
            hit = search(view, "peace").rows[0]
            row = view.catalogue.recording(hit.recording_id)
            assert row is not None
            (segment,) = [
                each for each in Transcripts(store).read(view, row).block(0)
                if each["text"] == hit.text
            ]  # fmt: skip
            times = {side: segment[side] for side in ("start_s", "end_s")}
            again = EditedSegment(**times, text="war again")
            said = correct(hit.recording_id, [segment], [again])
            library.save(row, lambda _, said=said: said)  # type: ignore[misc]
        stop.set()
        found = [each.result() for each in running]
    for own in found:
        # Commits come after a look, corrections at once; neither goes away in between.
        assert [recordings for recordings, _ in own] == sorted(count for count, _ in own)
        assert [corrected for _, corrected in own] == sorted(count for _, count in own)
        assert {recordings for recordings, _ in own} <= set(range(9, 13))
    assert search(library.wait(), "war").total == 9 + 3 + 3


def test_a_broken_object_is_told_and_the_last_view_stays(
    store: OutputStore, library: Library
) -> None:
    add(store, spoken("/a.wav", passage(0, "one")))
    assert library.wait().problem is None
    written = add(store, spoken("/b.wav", passage(0, "two")))
    whole = Path(store.address(written)).read_bytes()
    store.write_bytes(written, b"no parquet")
    view = library.wait()
    assert view.problem is not None
    assert "no readable Parquet" in view.problem
    assert said(search(view)) == ["one"]
    store.write_bytes(written, whole)
    assert said(search(library.wait())) == ["one", "two"]
    assert library.wait().problem is None
