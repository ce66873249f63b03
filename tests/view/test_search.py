"""Search over a run: equal to reading every text."""

import random
import unicodedata
from typing import Any

import duckdb
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.catalogue import Library
from corpus_asr.view.search import (
    PAGE_ROWS,
    Filters,
    Order,
    Query,
    RecordingOrder,
    State,
    folded,
    folded_lines,
    parse_query,
    places,
    recordings_page,
)
from tests.support.runs import passage, spoken
from tests.support.tables import part
from tests.view.conftest import add, said, search

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
    with_language = recordings_page(tables, Filters(language="de"))
    assert (with_language.total, with_language.recordings) == (1, 1)
    assert listed(name="TALKS/o") == ["/talks/One.wav"]
    assert listed(name="t*o[1]") == ["/talks/two[1].wav"]
    assert listed(name="two.1") == []
    assert listed(state=State.failed) == ["/bad.wav"]
    assert listed(state=State.unfinished) == ["/half.wav"]
    assert listed(language="de") == ["/talks/One.wav"]
    assert listed(RecordingOrder.longest, name="talks")[0] == "/talks/One.wav"
    assert listed(RecordingOrder.shortest, name="talks")[0] == "/talks/two[1].wav"
    assert said(search(library.wait(), "a", name="two")) == ["a"]


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
