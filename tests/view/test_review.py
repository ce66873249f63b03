"""The review queue and clips: what nobody has checked comes first, and only real spans are cut."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.pages import asked, fetch, sent
from tests.support.runs import correct_segment, passage, run_of, spoken
from tests.view.conftest import SECONDS, Shown, get, serving


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    said = [passage(at, f"one{at}", confidence=sure) for at, sure in enumerate((0.9, 0.2, 0.6))]
    other = [passage(0, "two0", confidence=0.4), passage(1, "two1", channel=None, confidence=0.3)]
    return run_of(tmp_path / "output", spoken("/a.wav", *said), spoken("/b.wav", *other))


@pytest.fixture
def url(store: OutputStore) -> Iterator[str]:
    with serving(store) as server:
        yield server.url


def test_what_nobody_checked_comes_least_confident_first_with_progress(store: OutputStore) -> None:
    correct_segment(store, "one1", "one1")  # checked, and right as it was
    correct_segment(store, "two1", "mended", checked=False)
    with serving(store) as server:
        found = get(server.url, "api/review")
        assert [hit["text"] for hit in found["hits"]] == ["two0", "one2", "one0", "mended"]
        assert (found["checked"], found["of_all"], found["total"]) == (1, 5, 4)
        # Filters narrow both what comes and what is counted.
        own = get(server.url, "api/review", id=recording_id("/a.wav"))
        assert (own["checked"], own["of_all"], len(own["hits"])) == (1, 3, 2)
        # Also that of confidence, which is the model's: what was checked counts as done.
        doubtful = get(server.url, "api/review", max_confidence=0.5)
        assert [hit["text"] for hit in doubtful["hits"]] == ["two0", "mended"]
        assert (doubtful["checked"], doubtful["of_all"], doubtful["total"]) == (1, 3, 2)
        # In a search, too; recordings have nothing of it.
        assert get(server.url, "api/search", unchecked=1)["total"] == 4
        assert get(server.url, "api/recordings", unchecked=1)["total"] == 2


def test_a_segment_comes_with_those_around_it(url: str) -> None:
    own = recording_id("/a.wav")
    for at_s, texts, at in ((0.0, ["one0", "one1", "one2"], 0), (2.01, ["one0", "one1", "one2"], 1),
                            (99.0, ["one0", "one1", "one2"], 2)):  # fmt: skip
        found = get(url, "api/around", **{"id": own, "from": at_s})
        assert [each["text"] for each in found["segments"]] == texts
        assert (found["at"], found["editable"]) == (at, True)
    # Others speak at the same moment: the key tells which is meant, also once it is corrected.
    for checked in (False, True):
        for hit in get(url, "api/search", q="two", whole_words=False)["hits"]:
            asking = {"id": hit["id"], "from": 0.0, "key": hit["key"]}
            found = get(url, "api/around", **asking)
            shown = found["segments"][found["at"]]
            assert (shown["text"], shown["key"]) == (hit["text"], hit["key"])
            body = {"id": hit["id"], "keys": [hit["key"]], "checked": checked}
            assert sent(url, "api/correct", body).status == 200
    refused = fetch(asked(url, "api/around", id="../x"))
    assert (refused.status, b"has no recording" in refused.body) == (404, True)


def test_a_clip_is_a_wav_of_its_span(shown: Shown) -> None:
    expected = (shown.folder / "plain.wav").read_bytes()
    for name in ("plain.wav", "odd.aiff"):
        parameters = {"id": shown.id(name), "from": 1.5, "to": 3.25}
        found = fetch(asked(shown.url, "api/clip", **parameters))
        assert (found.status, len(found.body)) == (200, 44 + round(2 * 16_000 * 1.75))
        assert found.headers["Content-Type"] == "audio/wav"
        stem = name.partition(".")[0]
        assert f'filename="{stem}-1.50-3.25.wav"' in found.headers["Content-Disposition"]
        ours, theirs = (np.frombuffer(data, "<i2").astype(int) for data in
                        (found.body[44:], expected[44 + 48_000 : 44 + 104_000]))  # fmt: skip
        assert abs(ours - theirs).max() <= 2
    head = fetch(asked(shown.url, "api/clip", **parameters), method="HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "56044")
    # As pages round it.
    rounded = {"id": shown.id("plain.wav"), "from": 59, "to": SECONDS + 0.005}
    assert fetch(asked(shown.url, "api/clip", **rounded)).status == 200


@pytest.mark.parametrize(
    ("name", "start", "end", "status", "words"),
    [
        ("plain.wav", 3, 1, 400, "expected a span within the 60 s"),
        ("plain.wav", 3, 3, 400, "cutting 3 to 3 s"),
        ("plain.wav", -1, 1, 400, "cutting -1 to 1 s"),
        ("plain.wav", 0, 61, 400, "cutting 0 to 61 s"),
        ("plain.wav", 0, 1e300, 400, "at most 600 s"),
        ("plain.wav", "nan", 1, 400, "expected a number"),
        ("plain.wav", 5, "", 400, "cutting 5 to 0 s"),
        ("bad.wav", 0, 1, 404, "nothing of this recording could be decoded"),
        ("gone.wav", 0, 1, 404, "has no recording"),
    ],
)
def test_a_clip_of_no_span_is_refused_in_words(
    shown: Shown, name: str, start: object, end: object, status: int, words: str
) -> None:
    found = fetch(asked(shown.url, "api/clip", **{"id": shown.id(name), "from": start, "to": end}))
    assert (found.status, words in json.loads(found.body)["error"]) == (status, True), found.body


def test_a_clip_is_not_longer_than_a_person_listens(tmp_path: Path) -> None:
    long = spoken("/a.wav", passage(0, "one"), part_end_s=7200.0, duration_s=7200.0)
    with serving(run_of(tmp_path / "output", long)) as server:
        asking = {"id": recording_id("/a.wav"), "from": 0, "to": 600.5}
        found = fetch(asked(server.url, "api/clip", **asking))
        assert (found.status, b"of at most 600 s" in found.body) == (400, True)
