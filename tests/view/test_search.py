"""Search over a run: equal to reading every text, in any order, page by page, whatever goes on."""

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.catalogue import Library
from corpus_asr.view.search import (
    MAX_PAGE,
    PAGE_ROWS,
    Filters,
    Order,
    RecordingOrder,
    State,
    recordings_page,
    states,
)
from tests.support.runs import passage, run_of, spoken
from tests.support.tables import commit, part, results
from tests.view.conftest import said, search

VOCABULARY = ("Ask", "not", "what", "Été", "straße,", "war", "peace", "Well-known", "日本",
              "don\u2019t")  # fmt: skip


def test_it_finds_what_reading_every_text_finds(store: OutputStore, library: Library) -> None:
    draw = random.Random(0)
    everything = []
    for group in range(3):
        rows = []
        for number in range(6):
            uri = f"/{group}{number}.wav"
            segments = []
            for at in range(20):
                text = " ".join(draw.choices(VOCABULARY, k=4))
                language, sure = draw.choice(("en", "de")), draw.random()
                segments.append(passage(at, text, language=language, confidence=sure))
                everything.append((uri, 2.0 * at, text, language, sure))
            rows.append(spoken(uri, *segments))
        commit(store, results(*rows))
    view = library.wait()
    uris = view.catalogue.recordings["uri"].to_pylist()
    for words in (("ete",), ("strasse", "war"), ("日",), ("don t", "ask")):
        for bound in (0.0, 0.6):
            expected = [
                (uri, start_s, text)
                for uri, start_s, text, language, sure in sorted(everything)
                if language == "de" and sure >= bound and all(word in plain(text) for word in words)
            ]
            typed = " ".join(f'"{word}"' for word in words)
            values: dict[str, Any] = {"language": "de", "min_confidence": bound}
            pages = [search(view, typed, page=page, **values) for page in range(3)]
            hits = [hit for page in pages for hit in page.hits]
            assert [(uris[h.position], h.start_s, h.text.strip()) for h in hits] == expected
            assert {page.total for page in pages} == {len(expected)}
            assert pages[0].recordings == len({uri for uri, _, _ in expected})


def plain(text: str) -> str:
    """What is searched, found out in another way."""
    table = {"É": "e", "é": "e", "ß": "ss", ",": " ", "-": " ", "\u2019": " "}
    return " ".join("".join(table.get(letter, letter.lower()) for letter in text).split())


def test_orders_and_pages_show_everything_once(store: OutputStore, library: Library) -> None:
    count = 2 * PAGE_ROWS + 20
    sure = [((at * 37) % count) / count for at in range(count)]
    told = [passage(at, f"word{at}", confidence=sure[at]) for at in range(count - 1)]
    commit(store, results(spoken("/a.wav", *told, passage(count - 1, "last", confidence=None))))
    view = library.wait()
    for order in Order:
        pages = [search(view, order=order, page=page) for page in range(4)]
        assert [len(page.hits) for page in pages] == [PAGE_ROWS, PAGE_ROWS, 20, 0]
        hits = [hit for page in pages for hit in page.hits]
        assert len({hit.text for hit in hits}) == count
        if order is Order.recording:
            assert hits == sorted(hits, key=lambda hit: hit.start_s)
            continue
        assert hits[-1].confidence is None  # not known is neither sure nor unsure
        known = [hit.confidence for hit in hits if hit.confidence is not None]
        assert known == sorted(known, reverse=order is Order.most_sure)
    with pytest.raises(ConfigError, match=f"first {MAX_PAGE}"):
        search(view, page=MAX_PAGE)


def test_a_hit_has_its_neighbours_of_the_same_channel(store: OutputStore, library: Library) -> None:
    row = spoken("/a.wav", passage(0, "one"), passage(1, "two"), passage(2, "three", channel=1))
    row["segments"] = row["segments"][:2]
    other = spoken("/a.wav", passage(2, "three"), part=1, channel=1)
    commit(store, results({**row, "channel": 0, "last_part": False}, other))
    (hit,) = search(library.wait(), "two").hits
    assert (hit.before, hit.after, hit.channel) == (" one", "", 0)


def test_recordings_are_filtered_by_name_state_and_language(
    store: OutputStore, library: Library
) -> None:
    commit(
        store,
        results(
            spoken("/talks/One.wav", passage(0, "a"), passage(1, "a"), language="de"),
            spoken("/talks/two[1].wav", passage(0, "a")),
            part("bad.wav", 0, texts=None, status="failed", error_kind="not_audio"),
            part("quiet.wav", 0, texts=None, status="no_speech"),
            part("half.wav", 0, texts=["a"], last=False),
        ),
    )
    table = library.wait().catalogue.recordings
    uris = table["uri"].to_pylist()

    def listed(order: RecordingOrder = RecordingOrder.name, **values: Any) -> list[str]:
        total, positions = recordings_page(table, Filters(**values), order=order)
        assert total == len(positions)
        return [uris[position] for position in positions]

    found = states(table).to_pylist()
    assert found == ["failed", "unfinished", "no_speech", "done", "done"]
    assert listed(name="TALKS/o") == ["/talks/One.wav"]
    assert listed(name="t*o[1]") == ["/talks/two[1].wav"]
    assert listed(name="two.1") == []
    assert listed(state=State.failed) == ["/bad.wav"]
    assert listed(state=State.unfinished) == ["/half.wav"]
    assert listed(language="de") == ["/talks/One.wav"]
    assert listed(RecordingOrder.longest, name="talks")[0] == "/talks/One.wav"
    assert listed(RecordingOrder.shortest, name="talks")[0] == "/talks/two[1].wav"
    assert said(search(library.wait(), "a", name="two")) == ["a"]


def test_what_does_not_count_is_not_found(store: OutputStore, library: Library) -> None:
    commit(store, results(spoken("/a.wav", passage(0, "first")), spoken("/b.wav", passage(0, "b"))))
    commit(store, results(spoken("/a.wav", passage(0, "again"))))
    commit(store, results(spoken("/b.wav", passage(0, "newer"), etag="v2")))
    assert said(search(library.wait())) == ["first", "newer"]


def test_labels_are_searched_like_texts(tmp_path: Path) -> None:
    store = run_of(tmp_path / "labels", pipeline="classify_audio")
    windows = [
        {"window": at, "start_s": 30.0 * at, "end_s": 30.0 * at + 30, "weight_s": 30.0,
         "rank": rank, "label": label, "probability": sure}
        for at in range(2) for rank, label, sure in ((1, "de", 0.75), (2, "nl", 0.25))
    ]  # fmt: skip
    means = [{"label": "de", "probability": 0.75}, {"label": "nl", "probability": 0.25}]
    row = part("a.wav", 0, texts=None, labels=windows, label="de", label_probability=0.75,
               label_means=means, label_weight_s=60.0)  # fmt: skip
    commit(store, results(row))
    with closing(Library(store)) as library:
        view = library.wait()
        assert said(search(view, "de")) == ["de", "de"]
        assert search(view, "nl").total == 0  # only the likeliest label of a window
        assert search(view, label="de").total == 2
        assert search(view, label="nl").total == 0
