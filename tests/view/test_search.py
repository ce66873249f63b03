"""Search over a run: equal to reading every text, by page or as a file; facets are counts."""

import csv
import io
import json
import random
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.schemas import DUPLICATES
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.view import search as search_module
from corpus_asr.view.catalogue import Library, View
from corpus_asr.view.query import Query, folded, folded_lines, parse_query, places
from corpus_asr.view.search import (
    PAGE_ROWS,
    Facet,
    Filters,
    Order,
    RecordingOrder,
    State,
    recordings_page,
)
from corpus_asr.view.server import ViewServer
from corpus_asr.view.sound import Sounds
from tests.support.pages import asked, fetch
from tests.support.runs import correct_segment, passage, run_of, spoken
from tests.support.tables import commit, part, results
from tests.view.conftest import add, answers_of, said, search, served, serving

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
        add(store, *rows)
    view = library.wait()
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
            hits = [hit for page in pages for hit in page.rows]
            assert [(h.uri, h.start_s, h.text.strip()) for h in hits] == expected
            assert {page.total for page in pages} == {len(expected)}
            assert pages[0].recordings == len({uri for uri, _, _ in expected})


def plain(text: str) -> str:
    """What is searched, found out in another way."""
    table = {"É": "e", "é": "e", "ß": "ss", ",": " ", "-": " ", "\u2019": " "}
    return " ".join("".join(table.get(letter, letter.lower()) for letter in text).split())


def test_orders_and_pages_show_everything_once(store: OutputStore, library: Library) -> None:
    count = 2 * PAGE_ROWS + 20
    sure = [((at * 37) % count) / count for at in range(count)]
    messages = [passage(at, f"word{at}", confidence=sure[at]) for at in range(count - 1)]
    add(store, spoken("/a.wav", *messages, passage(count - 1, "last", confidence=None)))
    view = library.wait()
    for order in Order:
        pages = [search(view, order=order, page=page) for page in range(4)]
        assert [len(page.rows) for page in pages] == [PAGE_ROWS, PAGE_ROWS, 20, 0]
        hits = [hit for page in pages for hit in page.rows]
        assert len({hit.text for hit in hits}) == count
        if order is Order.recording:
            assert hits == sorted(hits, key=lambda hit: hit.start_s)
            continue
        assert hits[-1].confidence is None  # not known is neither sure nor unsure
        known = [hit.confidence for hit in hits if hit.confidence is not None]
        assert known == sorted(known, reverse=order is Order.most_sure)


def test_a_hit_has_its_neighbors_of_the_same_channel(store: OutputStore, library: Library) -> None:
    row = spoken("/a.wav", passage(0, "one"), passage(1, "two"), passage(2, "three", channel=1))
    row["segments"] = row["segments"][:2]
    other = spoken("/a.wav", passage(2, "three"), part=1, channel=1)
    add(store, {**row, "channel": 0, "last_part": False}, other)
    (hit,) = search(library.wait(), "two").rows
    assert (hit.before, hit.after, hit.channel) == (" one", "", 0)


def test_recordings_are_filtered_by_name_state_and_language(
    store: OutputStore, library: Library
) -> None:
    add(
        store,
        spoken("/talks/One.wav", passage(0, "a"), passage(1, "a"), language="de"),
        spoken("/talks/two[1].wav", passage(0, "a")),
        part("bad.wav", 0, texts=None, status="failed", error_kind="not_audio"),
        part("quiet.wav", 0, texts=None, status="no_speech"),
        part("half.wav", 0, texts=["a"], last=False),
    )
    tables = library.wait().catalogue.tables

    def listed(order: RecordingOrder = RecordingOrder.name, **values: Any) -> list[str]:
        page = recordings_page(tables, Filters(**values), order=order)
        assert page.total == len(page.rows)
        return [row["uri"] for row in page.rows]

    found = [row["state"] for row in recordings_page(tables, Filters()).rows]
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
    add(store, row)
    with closing(Library(store)) as library:
        view = library.wait()
        assert said(search(view, "de")) == ["de", "de"]
        assert search(view, "nl").total == 0  # only the likeliest label of a window
        assert search(view, label="de").total == 2
        assert search(view, label="nl").total == 0


def test_case_accents_and_punctuation_make_no_difference() -> None:
    for text, expected in (
        ("Hello,  World!", "hello world"),
        (" Ça va? ÉTÉ ", "ca va ete"),
        ("E\u0301te\u0301", "ete"),
        ("Straße, Œuvre, smørrebrød, Łódź", "strasse oeuvre smorrebrod lodz"),
        ("ΟΔΟΣ οδός", "οδοσ οδοσ"),
        ("İstanbul \u0131s\u0131", "istanbul isi"),
        ("don\u2019t don't", "don t don t"),
        ("\ufb01ne \uff57ide", "fine wide"),
        ("C++ costs $3", "c++ costs $3"),
        ("שָׁלוֹם شَهْر", "שלום شهر"),
        ("Ёлка й", "елка и"),
        ("two\nlines", "two lines"),
        ("... \u2013 !", ""),
        ("an accent alone\u00b4 here", "an accent alone here"),
    ):
        assert folded(text) == expected
    # Signs without which a word is another one are kept.
    for text, other in (("की", "का"), ("が", "か"), ("ボ", "ホ"), ("각", "가"), ("ไป", "ปี")):
        assert folded(text) != folded(other)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1))
def test_folding_is_the_same_twice_in_any_spelling_and_number_and_keeps_places(
    texts: list[str],
) -> None:
    assert folded_lines(texts) == [folded(text) for text in texts]
    for text in texts:
        composed, parted = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        assert folded(parted) == folded(composed)
        plain, sources = places(text)
        assert plain == folded(text) == folded(folded(text))
        assert len(sources) == len(plain) + 1
        assert sources == sorted(sources)
        assert sources[-1] == len(text)


def matches(query: Query, *texts: str) -> list[bool]:
    condition, terms = query.condition()
    lines = [f" {folded(text)} " for text in texts]
    (found,) = zip(
        *duckdb.execute(
            f"select {condition} from (select unnest($lines) as folded)", {"lines": lines, **terms}
        ).fetchall(),
        strict=True,
    )
    return list(found)


def test_a_line_is_parsed_as_people_mean_it() -> None:
    for typed, wanted, excluded in (
        ("Été déjà", ("ete", "deja"), ()),
        ('"fellow, Americans" ask', ("fellow americans", "ask"), ()),
        ('peace -war -"cold war"', ("peace",), ("war", "cold war")),
        ("well-known", ("well known",), ()),
        ('"not closed', ("not closed",), ()),
        ("", (), ()),
    ):
        query = parse_query(typed)
        assert (query.wanted, query.excluded) == (wanted, excluded)


def test_words_are_found_anywhere_and_phrases_together() -> None:
    texts = ("Ask not what", "what not to ask", "Masked, knot!")
    assert matches(parse_query("ask not"), *texts) == [True, True, True]
    assert matches(parse_query('"ask not"'), *texts) == [True, False, False]
    assert matches(parse_query("ask not", whole_words=True), *texts) == [True, True, False]
    assert matches(parse_query("not -what"), *texts) == [False, False, True]
    assert matches(parse_query("not -not"), *texts) == [False, False, False]


def test_what_was_searched_for_is_marked_in_the_text_itself() -> None:
    for typed, whole, text, expected in (
        ("fellow", False, "My Fellow, Americans", "My [Fellow], Americans"),
        ('"fellow americans"', False, "My Fellow, Americans!", "My [Fellow, Americans]!"),
        ("ete", False, "étés e\u0301te\u0301.", "[été]s [e\u0301te\u0301]."),
        ("ete", True, "étés été", "étés [été]"),
        ("str", False, "Straße", "[Str]aße"),
        ("가", False, "가 나", "[가] 나"),
    ):
        pieces = parse_query(typed, whole_words=whole).pieces(text)
        assert "".join(f"[{piece}]" if found else piece for piece, found in pieces) == expected


@given(st.text(max_size=30), st.text(max_size=6), st.booleans())
def test_pieces_are_the_text_and_something_is_marked_if_it_matches(
    text: str, typed: str, whole: bool
) -> None:
    query = Query(wanted=(folded(typed),) if folded(typed) else (), whole_words=whole)
    pieces = query.pieces(text)
    assert "".join(piece for piece, _ in pieces) == text
    marked = any(found for _, found in pieces)
    assert marked == (bool(query.wanted) and matches(query, text)[0])


FORMULAS = ("=1+1", "+49 30 12345", "-2", "@SUM(A1)")
PLAIN = ("five = five", "“=1”", 'a,b "c"', "1")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The first page of a run of several hundred segments."""
    texts = [*FORMULAS, *PLAIN, *(f"word {at}" for at in range(5 * PAGE_ROWS))]
    store = run_of(
        tmp_path,
        spoken("/c/b.wav", *[passage(at, text) for at, text in enumerate(texts)]),
        spoken("https://h/a.wav?token=geheim", passage(0, "word", confidence=None, language="de")),
    )
    correct_segment(store, "word 7", "=cmd()", name="Anna")
    with serving(store) as server:
        yield server.url


def rows_of(url: str, kind: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = fetch(asked(url, f"hits.{kind}", **parameters))
    assert answer.status == 200
    assert answer.headers["Content-Disposition"] == f'attachment; filename="hits.{kind}"'
    if kind == "json":
        found: list[dict[str, Any]] = json.loads(answer.body)
        return found
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    text = answer.body.decode("utf-8-sig")
    assert text != answer.body.decode()  # Excel knows UTF-8 by its mark
    return list(csv.DictReader(io.StringIO(text)))


def test_every_hit_of_a_query_is_there_once_in_order(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_HITS_AT_A_TIME", 60)
    for kind in ("csv", "json"):
        rows = rows_of(url, kind, q="word")
        assert [row["text"] for row in rows] == [
            *(f"word {at}" for at in range(5 * PAGE_ROWS) if at != 7), "word"
        ]  # fmt: skip
        assert list(rows[0]) == [
            "recording_id", "uri", "start_s", "end_s", "channel", "language", "confidence", "text",
            "corrected", "original",
        ]  # fmt: skip
        assert rows_of(url, kind, q="nowhere") == []
        # The filters and the order of the page hold.
        (row,) = rows_of(url, kind, q="word", language="de")
        assert row["uri"] == "https://h/a.wav"
        assert rows_of(url, kind, q="word", order="least_sure")[-1]["uri"] == row["uri"]
    (row,) = rows_of(url, "json", q="cmd")
    assert row | {"recording_id": ""} == {
        "recording_id": "", "uri": "/c/b.wav", "start_s": 30.0, "end_s": 32.0, "channel": None,
        "language": "en", "confidence": 1.0, "text": "=cmd()", "corrected": True,
        "original": "word 7",
    }  # fmt: skip
    head = fetch(asked(url, "hits.csv", q="word"), method="HEAD")
    assert (head.status, head.body) == (200, b"")


def test_no_cell_is_taken_for_a_formula(url: str) -> None:
    rows = rows_of(url, "csv", name="b.wav")
    assert [row["text"] for row in rows[:8]] == [*(f"'{text}" for text in FORMULAS), *PLAIN]
    assert "'=cmd()" in {row["text"] for row in rows}
    # Programs get the text as it is.
    assert [row["text"] for row in rows_of(url, "json", name="b.wav")[:8]] == [*FORMULAS, *PLAIN]


def test_what_cannot_be_downloaded_is_refused(url: str, tmp_path: Path) -> None:
    for what, status in (("hits.xlsx", 404), ("hits.csv?q=%3F", 400), ("hits.json?order=x", 400)):
        assert fetch(url + what).status == status, what
    library = Library(OutputStore(str(tmp_path)), refresh_s=float("inf"))
    library._checked_s = 0.0  # as if it had just looked, so that no texts are read
    with (
        closing(library),
        closing(Sounds(library.store)) as sounds,
        closing(ViewServer(answers_of(library, sounds))) as server,
        served(server),
    ):
        early = fetch(server.url + "hits.csv")
    assert early.status == 409
    assert b"still being read" in early.body


MONTHS_NS = {"2024-12": 1_734_000_000, "2025-01": 1_736_000_000, "2025-02": 1_739_000_000}


def found(facet: Facet) -> dict[str, int]:
    return {value.name: value.count for value in facet.values}


def modified(month: str) -> dict[str, Any]:
    return {"etag": f"100-{MONTHS_NS[month]}000000000", "size_bytes": 100}


def test_counts_are_those_of_counting_by_hand(store: OutputStore, library: Library) -> None:
    draw = random.Random(1)
    everything, recordings = [], []
    for number in range(40):
        folder = draw.choice(("", "radio/", "radio/news/", "tv/", "radiology/"))
        month = draw.choice(tuple(MONTHS_NS))
        said = [(draw.choice(("en", "de")), draw.choice(("war", "peace"))) for _ in range(6)]
        passages = [passage(at, word, language=code) for at, (code, word) in enumerate(said)]
        recordings.append(spoken(f"/c/{folder}{number}.wav", *passages, **modified(month)))
        everything += [(number, folder.rstrip("/"), month, *each) for each in said]
    add(store, *recordings)
    view = library.wait()
    assert view.catalogue.dates_are == "modified"
    choices: tuple[dict[str, Any], ...] = (
        {}, {"folder": "radio"}, {"language": "de"}, {"date": "2025"}, {"date": "2025-02"},
        {"folder": "radio", "date": "2025", "language": "en"},
    )  # fmt: skip
    for chosen in choices:
        hits = search(view, "war", **chosen)
        counts = {name: found(facet) for name, facet in hits.facets.items()}
        for name in ("folder", "language", "date"):
            # A language can be exchanged for another; of trees what is below is counted.
            others = {k: v for k, v in chosen.items() if k != "language" or name != "language"}
            expected: dict[str, int] = {}
            for row in everything:
                value = below(name, row, chosen.get(name, ""))
                if row[4] == "war" and is_chosen(row, **others) and value:
                    expected[value] = expected.get(value, 0) + 1
            assert counts[name] == expected, (chosen, name)
        ours = [row for row in everything if row[4] == "war" and is_chosen(row, **chosen)]
        assert (hits.total, hits.recordings) == (len(ours), len({row[0] for row in ours}))
    assert [value.name for value in search(view).facets["date"].values] == ["2025", "2024"]


def is_chosen(row: tuple[Any, ...], folder: str = "", language: str = "", date: str = "") -> bool:
    inside = not folder or row[1] == folder or row[1].startswith(folder + "/")
    return inside and row[2].startswith(date) and language in ("", row[3])


def below(name: str, row: tuple[Any, ...], chosen: str) -> str:
    if name == "language":
        return str(row[3])
    path, separator = (row[1], "/") if name == "folder" else (row[2], "-")
    rest = path.removeprefix(chosen).removeprefix(separator).partition(separator)[0]
    return f"{chosen}{separator}{rest}" if chosen and rest else str(rest)


def test_recordings_are_counted_where_recordings_are_listed(
    store: OutputStore, library: Library
) -> None:
    add(
        store,
        spoken("/c/a/1.wav", passage(0, "x"), passage(1, "y"), **modified("2025-01")),
        spoken("/c/a/2.wav", passage(0, "x"), language="de", **modified("2025-01")),
        part("", 0, uri="/c/b/bad.wav", texts=None, status="failed", **modified("2025-02")),
    )
    tables = library.wait().catalogue.tables
    page = recordings_page(tables, Filters())
    assert found(page.facets["folder"]) == {"a": 2, "b": 1}
    assert found(page.facets["language"]) == {"en": 1, "de": 1}
    # Of a single year its months at once.
    assert found(page.facets["date"]) == {"2025-02": 1, "2025-01": 2}
    page = recordings_page(tables, Filters(folder="a", date="2025"))
    assert (page.total, found(page.facets["date"])) == (2, {"2025-01": 2})
    assert recordings_page(tables, Filters(folder="a/../b")).total == 0
    assert recordings_page(tables, Filters(date="20")).total == 0


def test_where_no_file_tells_when_it_was_modified_the_run_counts(tmp_path: Path) -> None:
    store = run_of(tmp_path)
    row = spoken("s3://b/a/1.wav", passage(0, "x"), etag="d41d8cd98f00b204e9800998ecf8427e-2")
    others = [spoken(f"s3://b/{at}.wav", passage(0, "x")) for at in (2, 3)]
    run_ids = ("20260131T235959Z-ab", "20260201T000000Z-ab", "by-hand")
    for each, run_id in zip((row, *others), run_ids, strict=True):
        commit(store, results(each), run_id=run_id)
    with closing(Library(store)) as library:
        view = library.wait()
        assert view.catalogue.dates_are == "transcribed"
        assert found(search(view).facets["date"]) == {"2026-02": 1, "2026-01": 1}
        assert search(view, date="2026").total == 2


def test_many_values_are_cut_and_counted(
    store: OutputStore, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "MAX_VALUES", 3)
    rows = [spoken(f"/c/{at}/1.wav", *[passage(n, "x") for n in range(at)]) for at in range(1, 6)]
    add(store, *rows)
    view: View = library.wait()
    facet = search(view).facets["folder"]
    assert ([value.name for value in facet.values], facet.others) == (["5", "4", "3"], 2)


def test_a_hit_says_in_how_many_other_recordings_it_is(
    store: OutputStore, library: Library
) -> None:
    for name in "abc":
        add(store, spoken(f"/{name}.wav", passage(0, "jingle"), passage(30, f"only {name}")))
    rows = [
        {"recording_id": recording_id(f"/{copy}.wav"), "uri": f"/{copy}.wav", "start_s": 0.0,
         "end_s": 6.0, "other_recording_id": recording_id(f"/{other}.wav"),
         "other_uri": f"/{other}.wav", "other_start_s": 0.0, "other_end_s": 6.0}
        for copy, other in ("ba", "ca", "cb")
    ]  # fmt: skip
    store.write_table("duplicates/1.parquet", pa.Table.from_pylist(rows, DUPLICATES))
    found = search(library.wait(), "")
    copies = {(hit.uri, hit.text.strip()): hit.copies for hit in found.rows}
    assert copies == {
        **{(f"/{name}.wav", "jingle"): 2 for name in "abc"},
        **{(f"/{name}.wav", f"only {name}"): 0 for name in "abc"},
    }
