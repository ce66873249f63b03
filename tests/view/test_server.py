"""The server: authorized requests, what is answered, and what nobody gets."""

import http.client
import json
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.confidence import (
    HIGH_CONFIDENCE,
    LOW_CONFIDENCE,
    LOW_WORD_CONFIDENCE,
    WHISPER_WORDS,
    WordEvidence,
)
from corpus_asr.errors import FetchError
from corpus_asr.view.search import MAX_QUERY_CHARS
from corpus_asr.view.server import _PAGES
from corpus_asr.view.sound import Sounds
from tests.support.pages import asked, fetch
from tests.view.conftest import PASSAGES, SECONDS, Shown


def answer(shown: Shown, what: str, /, **parameters: Any) -> Any:
    found = fetch(asked(shown.url, f"api/{what}", **parameters))
    assert found.status == 200, found.body
    return json.loads(found.body)


def token_of(shown: Shown) -> str:
    return shown.server.access.prefix.removeprefix("/")


def connection(shown: Shown) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urllib.parse.urlsplit(shown.url).netloc, timeout=30)


def test_pages_may_do_nothing_but_ask_this_server(shown: Shown) -> None:
    for page in ("", "recording", "style.css", "view.css", "player.js", "nowhere", "api/run"):
        found = fetch(shown.url + page)
        assert found.status == (404 if page == "nowhere" else 200)
        policy = found.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        expected = {
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store", "Server": "corpus-asr",
        }  # fmt: skip
        assert expected.items() <= dict(found.headers).items()


def test_pages_hold_no_script_and_style_but_in_files_and_lead_nowhere(shown: Shown) -> None:
    for page in ("", "recording"):
        text = fetch(shown.url + page).body.decode()
        for dangerous in ("://", " style=", " onclick="):
            assert dangerous not in text
        assert text.count("<script") == text.count('<script type="module" src="')
    for script in (each for each in _PAGES if each.endswith(".js")):
        text = fetch(shown.url + script).body.decode()
        for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write",
                          "eval("):  # fmt: skip
            assert dangerous not in text


def test_without_the_token_there_is_nothing(shown: Shown) -> None:
    token = token_of(shown)
    base = shown.url.removesuffix(f"{token}/")
    for path in ("", "api/run", "wrong/", f"{token[:-1]}/", token):
        found = fetch(base + path)
        assert found.status == 404
        assert b"open the complete URL" in found.body


def test_a_foreign_name_that_points_here_and_other_methods_are_refused(shown: Shown) -> None:
    for host in ("evil.example", "localhost.evil.example:80", "", "[", "127.0.0.1.evil.example"):
        assert fetch(shown.url, Host=host).status == 403, host
    for host in ("localhost:1", "127.0.0.1", "[::1]:9"):
        assert fetch(shown.url, Host=host).status == 200, host
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert fetch(asked(shown.url, "api/run"), method=method).status == 405


def test_no_path_leads_to_a_file_or_to_what_is_no_answer(shown: Shown) -> None:
    for path in (
        "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "static/../server.py", "%2e%2e/server.py",
        "server.py", "api/close", "api/__init__", "api/_named", "audio/etc/passwd", "api/library",
        "api/correct", "api/hits", "hits.csv",
    ):  # fmt: skip
        with closing(connection(shown)) as asking:
            asking.request("GET", f"/{token_of(shown)}/{path}")
            response = asking.getresponse()
            assert response.status == 404, path
            assert b"root:" not in response.read()


def test_only_what_the_tables_name_is_read(shown: Shown) -> None:
    for what in ("audio", "api/sound", "api/recording", "api/segments", "saved", "api/clip"):
        for name in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/", "0" * 16):
            found = fetch(asked(shown.url, what, id=name, format="srt"))
            assert found.status == 404
            assert "has no recording" in json.loads(found.body)["error"]


def test_a_channel_that_is_not_there_is_not_found(shown: Shown) -> None:
    here = {"id": shown.id("plain.wav"), "from": 0, "to": 1}
    assert fetch(asked(shown.url, "api/clip", **here, channel=0)).status == 200
    for what in ("api/clip", "audio"):
        found = fetch(asked(shown.url, what, **here, channel=99, decode=1))
        assert found.status == 404, what
        assert "no channel or track 99" in json.loads(found.body)["error"]


def test_what_cannot_be_answered_is_refused_in_words(shown: Shown) -> None:
    for what, parameters, words in (
        ("search", {"q": "?!"}, "no letter or digit"),
        ("search", {"q": "a" * (MAX_QUERY_CHARS + 1)}, "search for fewer words"),
        ("search", {"page": "-1"}, "expected a whole number from 0"),
        ("search", {"page": "1.5"}, "found '1.5', expected a whole number"),
        ("search", {"page": "300"}, "one of the first"),
        ("search", {"min_confidence": "nan"}, "expected a number"),
        ("search", {"max_confidence": "2"}, "between 0 and 1"),
        ("search", {"order": "sideways"}, "expected recording, least_sure, most_sure"),
        ("recordings", {"state": "gone"}, "expected done"),
        ("recordings", {"name": "x" * 3000}, "expected fewer"),
        ("recordings", {"name": "x" * 10_000}, ""),
    ):
        found = fetch(asked(shown.url, f"api/{what}", **parameters))
        assert found.status == 400, parameters
        assert not words or words in json.loads(found.body)["error"]


def test_a_recording_is_told_with_its_segments_and_words(shown: Shown) -> None:
    messages = answer(shown, "recording", id=shown.id("plain.wav"))
    assert (messages["segments"], messages["has_words"], messages["state"]) == (
        PASSAGES,
        True,
        "done",
    )
    assert messages["name"] == "plain.wav"
    # The page marks words and segments by these.
    bounds = [messages[f"{name}_confidence"] for name in ("low_word", "low", "high")]
    assert bounds == [LOW_WORD_CONFIDENCE, LOW_CONFIDENCE, HIGH_CONFIDENCE]
    segments = answer(shown, "segments", id=messages["id"], block=0, q="passage7 peace")["segments"]
    assert len(segments) == PASSAGES
    words = segments[7]["words"]
    assert [word[0] for word in words] == [" This", " is", " passage7", " peace"]
    assert [word[4] for word in words] == [False, False, True, True]
    assert [word[1] for word in words] == [14.0, 14.5, 15.0, 15.5]
    for word, probability in zip(words, (0.9, 0.95, 0.3, 1.0), strict=True):
        evidence = WordEvidence(probability=probability, segment_confidence=0.9)
        assert word[3] == pytest.approx(WHISPER_WORDS.confidence(evidence))
    assert answer(shown, "segments", id=messages["id"], block=9)["segments"] == []
    assert answer(shown, "unsure", id=messages["id"])["at_s"] == 15.0
    assert answer(shown, "unsure", id=messages["id"], **{"from": 15.0})["at_s"] is None
    assert answer(shown, "unsure", id=messages["id"], back=1, **{"from": 59})["at_s"] == 15.0


def test_a_failure_comes_with_what_to_do(shown: Shown) -> None:
    messages = answer(shown, "recording", id=shown.id("bad.wav"))
    assert messages["error"]["kind"] == "not_audio"
    assert "exclude them" in messages["error"]["advice"]
    assert messages["error"]["message"] == "not recognized <b>as audio</b>"
    assert answer(shown, "sound", id=messages["id"])["state"] == "nothing"


def test_a_transcript_is_saved_under_a_name_that_is_one_anywhere(shown: Shown) -> None:
    hits = answer(shown, "search", q="bold")["hits"]
    found = fetch(asked(shown.url, "saved", id=hits[0]["id"], format="srt"))
    disposition = found.headers["Content-Disposition"]
    assert disposition.startswith('attachment; filename="')
    quoted = disposition.partition("filename*=UTF-8''")[2]
    assert not set(urllib.parse.unquote(quoted)) & set('/\\<>"\u202e')
    assert found.headers["Content-Type"].startswith("text/plain")
    assert found.body.startswith(b"1\n00:00:00,000 --> 00:00:02,000\n")
    plain = {kind: fetch(asked(shown.url, "saved", id=shown.id("plain.wav"), format=kind)).body
             for kind in ("srt", "vtt", "txt", "tsv", "json")}  # fmt: skip
    assert plain["vtt"].startswith(b"WEBVTT")
    assert plain["txt"].splitlines()[3] == b"This is passage3 peace"
    assert len(json.loads(plain["json"])["segments"]) == PASSAGES
    assert fetch(asked(shown.url, "saved", id=shown.id("plain.wav"), format="exe")).status == 404


def test_sound_is_served_by_ranges(shown: Shown) -> None:
    whole = Path(shown.folder / "plain.wav").read_bytes()
    url = asked(shown.url, "audio", id=shown.id("plain.wav"))
    found = fetch(url)
    assert (found.status, found.body) == (200, whole)
    assert found.headers["Content-Type"] == "audio/wav"
    assert found.headers["Accept-Ranges"] == "bytes"
    for header, start, stop in (
        ("bytes=100000-100999", 100_000, 101_000),
        (f"bytes={len(whole) - 10}-", len(whole) - 10, len(whole)),
        (f"bytes={len(whole) - 10}-{2 * len(whole)}", len(whole) - 10, len(whole)),
        ("bytes=-10", len(whole) - 10, len(whole)),
    ):
        found = fetch(url, Range=header)
        assert (found.status, found.body) == (206, whole[start:stop]), header
        assert found.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
    for ignored in ("bytes=9-0", "bytes=0-1,5-6", "lines=0-1", "bytes=-", "bytes=a-b"):
        assert fetch(url, method="HEAD", Range=ignored).status == 200, ignored
    head = fetch(url, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole))
    beyond = fetch(url, Range=f"bytes={len(whole)}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(whole)}")


def test_decoded_sound_is_a_wav_of_which_any_range_can_be_had(shown: Shown) -> None:
    url = asked(shown.url, "audio", id=shown.id("odd.aiff"), decode=1)
    size = 44 + 2 * round(SECONDS * 16_000)
    head = fetch(url, method="HEAD")
    assert head.headers["Content-Type"] == "audio/wav"
    assert head.headers["Content-Length"] == str(size)
    expected = (shown.folder / "plain.wav").read_bytes()
    for start, stop in ((0, 1000), (44, 64_045), (1_000_001, 1_000_100), (size - 50, size)):
        found = fetch(url, Range=f"bytes={start}-{stop - 1}")
        assert found.status == 206
        assert len(found.body) == stop - start
        if start % 2 == 0 and start >= 44:
            ours, theirs = (np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(int)
                            for data in (found.body, expected[start:stop]))  # fmt: skip
            assert abs(ours - theirs).max() <= 2
    # A listener who leaves harms nobody.
    with closing(connection(shown)) as asking:
        asking.request("GET", url)
        asking.getresponse().read(100)
    assert answer(shown, "run")["recordings"] == 4


def test_sound_that_ends_early_ends_its_connection(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Sounds, uri: str, start: int, stop: int) -> Iterator[bytes]:
        yield b"x"
        raise FetchError("the store has gone away")

    monkeypatch.setattr(Sounds, "_source_bytes", broken)
    with pytest.raises(http.client.IncompleteRead):
        fetch(asked(shown.url, "audio", id=shown.id("plain.wav")))
