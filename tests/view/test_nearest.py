"""Segments that are similar to one, by the vectors of a hook."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.hooks import HookSettings
from corpus_asr.runtime.hooks import run_hook
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.view.server import ViewServer
from tests.support.pages import Chromium, asked, fetch
from tests.support.runs import finished, passage, run_of, spoken
from tests.view.conftest import serving

LENGTHS = HookSettings(
    name="loaded", function="tests.support.hooks:Loaded", columns={"vector": "list<float32>"},
    options={"factor": 1},
)  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ViewServer]:
    """Three segments, whose vectors are of the lengths of their texts."""
    store = run_of(
        tmp_path / "out", spoken("/a.wav", passage(0, "abc"), passage(1, "a" * 300)),
        spoken("/b.wav", passage(0, "xyzw"), channel=0),
    )  # fmt: skip
    finished(store, "/a.wav", "/b.wav")
    run_hook(store, LENGTHS)
    with serving(store) as server:
        yield server


def answer(server: ViewServer, what: str, status: int = 200, **parameters: Any) -> Any:
    found = fetch(asked(server.url, f"api/{what}", **parameters))
    assert found.status == status
    return json.loads(found.body)


def test_the_most_similar_come_first(server: ViewServer) -> None:
    assert answer(server, "run")["vectors"]
    found = answer(server, "nearest", id=recording_id("/a.wav"), **{"from": 0})
    assert found["of"]["text"] == "abc"
    assert [(hit["name"], hit["text"][:4]) for hit in found["hits"]] == [
        ("b.wav", "xyzw"), ("a.wav", "aaaa")
    ]  # fmt: skip
    assert found["hits"][0]["likeness"] > found["hits"][1]["likeness"] > 0
    assert found["by"] == "loaded.vector"
    back = answer(server, "nearest", id=recording_id("/b.wav"), channel=0, **{"from": 0})
    assert [hit["text"][:4] for hit in back["hits"]] == ["abc", "aaaa"]


def test_a_segment_without_a_vector_is_not_found(server: ViewServer) -> None:
    found = answer(server, "nearest", 404, id=recording_id("/a.wav"), **{"from": 1})
    assert "has no vector" in str(found)


def test_a_link_at_each_segment_leads_to_similar_ones(
    browser: Chromium, server: ViewServer
) -> None:
    page = browser.open(f"{server.url}?q=abc")
    page.wait_for("document.querySelectorAll('#results li').length === 1")
    page.click("#results a[href*='near=']")
    page.wait_for("document.querySelectorAll('#results li').length === 2")
    assert page.value("document.getElementById('told').textContent") == (
        "The most similar segments to “abc”, by loaded.vector"
    )
    assert "similarity 1.00" in page.value("document.querySelector('#results li').textContent")
    assert page.complaints() == []
    page.value("history.back()")
    page.wait_for("document.querySelectorAll('#results li').length === 1")
    page.close()
