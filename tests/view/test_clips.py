"""What nobody has checked is found, and clips are cut of real spans alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.pages import asked, fetch
from tests.support.runs import correct_segment, passage, run_of, spoken
from tests.view.conftest import SECONDS, Shown, get, serving


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    said = [passage(at, f"one{at}", confidence=sure) for at, sure in enumerate((0.9, 0.2, 0.6))]
    other = [passage(0, "two0", confidence=0.4), passage(1, "two1", channel=None, confidence=0.3)]
    return run_of(tmp_path / "output", spoken("/a.wav", *said), spoken("/b.wav", *other))


def test_what_nobody_checked_is_a_filter_and_the_next_of_it_is_found(store: OutputStore) -> None:
    correct_segment(store, "one1", "one1")  # checked, and right as it was
    correct_segment(store, "two1", "mended", checked=False)
    own = recording_id("/a.wav")
    with serving(store) as server:
        found = get(server.url, "api/search", unchecked=1, order="least_sure")
        assert [hit["text"] for hit in found["hits"]] == ["two0", "one2", "one0", "mended"]
        assert get(server.url, "api/search", unchecked=1, id=own)["total"] == 2
        # Recordings have nothing of it.
        assert get(server.url, "api/recordings", unchecked=1)["total"] == 2
        for from_s, at_s in ((-1, 0.0), (0, 4.0), (4, None)):
            asking = {"id": own, "from": from_s, "unchecked": 1}
            assert get(server.url, "api/unsure", **asking)["at_s"] == at_s


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
        ("bad.wav", 0, 1, 404, "this recording has no decodable audio"),
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
