"""Views of runs in progress, and transcripts of any length: block by block, sorted by time."""

from contextlib import closing
from pathlib import Path

import pytest

from corpus_asr.storage import parquet
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.view.catalogue import BLOCK_ROWS, Library, Transcript, Transcripts
from tests.support.runs import finished, passage, run_of, spoken
from tests.support.tables import part
from tests.view.conftest import add, said, search


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


def test_windows_of_a_classification_are_told_by_their_likeliest_labels(tmp_path: Path) -> None:
    labels = [
        {"window": window, "start_s": 30.0 * window, "end_s": 30.0 * window + 30, "weight_s": 1.0,
         "rank": rank, "label": label, "probability": probability}
        for window in (1, 0)
        for rank, label, probability in ((2, "nl", 0.2), (1, "de", 0.75), (3, "en", 0.04),
                                         (4, "fr", 0.01))
    ]  # fmt: skip
    row = part("a.wav", 0, texts=None, labels=labels)
    found = transcript_of(run_of(tmp_path, row, pipeline="classify_audio"))
    rows = [(row["start_s"], row["text"], row["confidence"]) for row in found.block(0)]
    text = "de 75% · nl 20% · en 4%"
    assert rows == [(0.0, text, 0.75), (30.0, text, 0.75)]
    assert found.low_confidence(0.0, below=0.8) == 30.0


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


def test_a_broken_object_is_told_and_the_last_view_stays(
    store: OutputStore, library: Library
) -> None:
    add(store, spoken("/a.wav", passage(0, "one")))
    assert library.wait().problem is None
    written = add(store, spoken("/b.wav", passage(0, "two")))
    assert written.segments_name is not None
    whole = Path(store.address(written.segments_name)).read_bytes()
    store.write_bytes(written.segments_name, b"no parquet")
    view = library.wait()
    assert view.problem is not None
    assert "no readable Parquet" in view.problem
    assert said(search(view)) == ["one"]
    store.write_bytes(written.segments_name, whole)
    assert said(search(library.wait())) == ["one", "two"]
    assert library.wait().problem is None
