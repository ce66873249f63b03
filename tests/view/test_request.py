"""Who may change something, and by which names the server is asked: other sites, and proxies."""

import json

import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.request import PublicUrl, parse_request
from corpus_asr.view.server import ViewServer
from tests.support.pages import fetch, sent
from tests.view.conftest import serving

PUBLIC = PublicUrl.parse("https://Transcripts.example.org")


def test_requests_that_are_nonsense_are_refused_in_words(server: ViewServer) -> None:
    for headers in ({"Origin": "http://[bad"}, {"Content_Type": "application/json; charset=no"}):
        refused = sent(server.url, "api/correct", {}, **headers)
        assert refused.status == 400, headers
        assert json.loads(refused.body)["error"]
    usual = {"Content_Type": "application/json", "X_Corpus_ASR": "1"}
    deep = fetch(server.url + "api/correct", method="POST", body=b"[" * 60_000, **usual)
    assert deep.status == 400
    assert b"nested deeper than 50 levels" in deep.body
    for what, body in (
        ("correct", b'{"id": "\\ud800"}'), ("undo", b'{"id": "\\udfff", "key": "x"}'),
        ("name", b'{"id": "x", "speaker": "S1", "name": "\\uD800"}'),
        ("correct", b'{"id": "x", "other": [{"\\ud800": 1}]}'),
    ):  # fmt: skip
        half = fetch(f"{server.url}api/{what}", method="POST", body=body, **usual)
        assert half.status == 400, body
        assert b"half of a surrogate pair" in half.body


@pytest.mark.parametrize("name", ["q", "id", "name", "language", "format", "from"])
def test_no_parameter_of_a_request_is_half_a_character(name: str) -> None:
    # Such as a server that reads URLs as UTF-8 makes of other bytes.
    with pytest.raises(ConfigError, match=r"found '\\udcff', expected"):
        parse_request({name: "\udcff"})


@pytest.mark.parametrize("what", ["api/correct", "api/name"])
def test_only_pages_of_this_server_may_change_something(server: ViewServer, what: str) -> None:
    host = server.url.split("/")[2]
    body = {"id": "nobody"}
    for headers in (
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost"},
        {"Origin": f"http://{host}1"}, {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"}, {"X_Corpus_ASR": "0"}, {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ):  # fmt: skip
        refused = sent(server.url, what, body, **headers)
        assert refused.status == 403, headers
    for headers in ({}, {"Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}):
        asked = sent(server.url, what, body, **headers)
        assert (asked.status, b"has no recording" in asked.body) == (404, True)
    assert sent(server.url, what, body, Host="evil.example").status == 403
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert fetch(server.url + what, method=method).status == 405
    assert sent(server.url, "api/run", body).status == 405
    for data in (b"", b"{", b"[]", b"1"):
        found = fetch(server.url + what, method="POST", body=data,
                      Content_Type="application/json", X_Corpus_ASR="1")  # fmt: skip
        assert (found.status, b"no JSON object" in found.body) == (400, True), data
    huge = sent(server.url, what, {"id": "x", "text": "a" * 100_000})
    assert huge.status == 413


def test_behind_a_proxy_its_name_is_known(run: OutputStore) -> None:
    with serving(run, public=PUBLIC) as server:
        token = server.access.prefix
        assert server.url == f"https://Transcripts.example.org{token}/"
        here = "http://{}:{}{}/".format(*server._socket.getsockname()[:2], token)
        theirs = {"Host": "transcripts.example.org", "Origin": "https://transcripts.example.org"}
        # Also a proxy that passes on where it found the server in place of the name.
        for headers in (theirs, theirs | {"Host": "127.0.0.1"}):
            changed = sent(here, "api/correct", {"id": "nobody"}, **headers)
            assert (changed.status, b"has no recording" in changed.body) == (404, True)
        assert fetch(here, Host="other.example.org").status == 403
        assert fetch(here.replace(token, ""), Host="transcripts.example.org").status == 404
    for url in ("transcripts.example.org", "ftp://a", "https://", "https://a/b", "https://a?b",
                "https://u@a", "http://a:x", "https://[::1"):  # fmt: skip
        with pytest.raises(ConfigError, match="expected http:// or https:// and a host"):
            PublicUrl.parse(url)
