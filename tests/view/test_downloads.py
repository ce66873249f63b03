"""All hits as a file: every one, in order, under names that stay, harmless in spreadsheets."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view import search as search_module
from corpus_asr.view.catalogue import Library
from corpus_asr.view.search import PAGE_ROWS
from corpus_asr.view.server import ViewServer
from corpus_asr.view.sound import Sounds
from tests.support.pages import asked, fetch
from tests.support.runs import correct_segment, passage, run_of, spoken
from tests.view.conftest import answers_of, served, serving

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
