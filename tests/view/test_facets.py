"""Facets: the same counts as counting by hand, whatever is chosen, in one pass with the search."""

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view import search as search_module
from corpus_asr.view.catalogue import Library, View
from corpus_asr.view.search import Facet, Filters, recordings_page
from tests.support.runs import passage, run_of, spoken
from tests.support.tables import commit, part, results
from tests.view.conftest import add, search

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
                if row[4] == "war" and matches(row, **others) and value:
                    expected[value] = expected.get(value, 0) + 1
            assert counts[name] == expected, (chosen, name)
        ours = [row for row in everything if row[4] == "war" and matches(row, **chosen)]
        assert (hits.total, hits.recordings) == (len(ours), len({row[0] for row in ours}))
    assert [value.name for value in search(view).facets["date"].values] == ["2025", "2024"]


def matches(row: tuple[Any, ...], folder: str = "", language: str = "", date: str = "") -> bool:
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
