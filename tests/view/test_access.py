"""Who gets in, and who may change something: passwords, sessions, guessers, and other sites."""

import base64
import hmac
import json
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view import access
from corpus_asr.view.access import (
    ALL_WRONG_TRIES,
    WRONG_TRIES,
    PublicUrl,
    RefusedError,
    Tries,
    read_password,
)
from corpus_asr.view.server import ViewServer
from tests.support.pages import Response, fetch, sent
from tests.support.runs import passage, run_of, spoken
from tests.view.conftest import serving

PASSWORD = "correct horse bätte"
PUBLIC = PublicUrl.parse("https://Transcripts.example.org")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OutputStore:
    return run_of(tmp_path_factory.mktemp("run"), spoken("/c/a.wav", passage(0, "secret words")))


@pytest.fixture
def server(run: OutputStore) -> Iterator[ViewServer]:
    with serving(run, password=PASSWORD) as started:
        yield started


def log_in(server: ViewServer, password: Any = PASSWORD, **headers: str) -> Response:
    return sent(server.url, "login", {"password": password}, **headers)


def cookie_of(answer: Response) -> str:
    return answer.headers["Set-Cookie"].partition(";")[0]


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


def test_before_the_password_there_is_a_form_and_nothing_of_the_run(server: ViewServer) -> None:
    assert server.url.count("/") == 3  # no secret in it: the same at each start
    for page in ("", "recording?id=x"):
        form = fetch(server.url + page)
        assert form.status == 200
        assert b'type="password"' in form.body
        assert form.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for what in ("api/run", "api/search?q=secret", "hits.csv", "audio?id=x", "saved?id=x",
                 "search.js", "nowhere"):  # fmt: skip
        refused = fetch(server.url + what)
        assert refused.status == 401, what
        assert b"secret" not in refused.body
    assert sent(server.url, "api/correct", {"id": "x"}).status == 401
    for open_to_all in ("style.css", "view.css", "login.js", "page.js"):
        assert fetch(server.url + open_to_all).status == 200
    assert json.loads(fetch(server.url + "session").body) == {"is_open": False}


def test_a_session_lasts_until_it_is_ended(
    server: ViewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = log_in(server)
    (cookie,) = SimpleCookie(answer.headers["Set-Cookie"]).values()
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
    assert not cookie["secure"]  # there is no https here
    session = cookie_of(answer)
    assert json.loads(fetch(server.url + "api/run", Cookie=session).body)["asks_for_password"]
    assert b"search.js" in fetch(server.url, Cookie=session).body
    other = session[:-1] + ("A" if session[-1] != "A" else "B")
    assert fetch(server.url + "api/run", Cookie=other).status == 401
    # Another window, which logs out alone.
    second = cookie_of(log_in(server))
    assert sent(server.url, "logout", {}, Cookie=session).status == 200
    assert fetch(server.url + "api/run", Cookie=session).status == 401
    assert fetch(server.url + "api/run", Cookie=second).status == 200
    monkeypatch.setattr(access, "MAX_SESSIONS", 2)
    sessions = [cookie_of(log_in(server)) for _ in range(2)]
    assert [fetch(server.url + "api/run", Cookie=each).status for each in (second, *sessions)] == [
        401, 200, 200
    ]  # fmt: skip
    now = time.monotonic() + access.SESSION_S
    monkeypatch.setattr("corpus_asr.view.access.monotonic", lambda: now)
    assert fetch(server.url + "api/run", Cookie=sessions[1]).status == 401


def test_wrong_passwords_are_compared_in_equal_time_and_slowed_down(
    server: ViewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def noting(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("corpus_asr.view.access.compare_digest", noting)
    for wrong in ("", "x", PASSWORD + " ", "y" * 900):
        assert log_in(server, wrong).status == 401
    assert log_in(server, 7).status == 400
    assert fetch(server.url + "api/run", Authorization=basic("wrong")).status == 401
    assert set(compared) == {(32, 32)}
    assert len(compared) == WRONG_TRIES
    late = log_in(server, "wrong")
    assert late.status == 429
    assert 0 < int(late.headers["Retry-After"]) <= 60
    assert b"try again in" in late.body
    # Behind a proxy a guesser has the address of all others, who are let in.
    assert log_in(server).status == 200
    assert fetch(server.url + "api/run", Authorization=basic(PASSWORD)).status == 200
    now = time.monotonic() + 61
    monkeypatch.setattr("corpus_asr.view.access.monotonic", lambda: now)
    assert log_in(server, "wrong").status == 401


def test_requests_that_are_nonsense_are_refused_in_words(server: ViewServer) -> None:
    for headers in ({"Origin": "http://[bad"}, {"Content_Type": "application/json; charset=no"}):
        refused = log_in(server, "x", **headers)
        assert refused.status == 400, headers
        assert json.loads(refused.body)["error"]
    usual = {"Content_Type": "application/json", "X_Corpus_ASR": "1"}
    deep = fetch(server.url + "login", method="POST", body=b"[" * 60_000, **usual)
    assert deep.status == 400
    assert b"found no JSON object" in deep.body


def test_guessers_at_many_addresses_share_a_limit() -> None:
    tries = Tries()
    for number in range(ALL_WRONG_TRIES):
        tries.check(f"10.0.0.{number}")
        tries.failed(f"10.0.0.{number}")
    with pytest.raises(RefusedError, match="too many wrong passwords"):
        tries.check("10.0.1.1")


def test_scripts_send_the_password_with_each_request(server: ViewServer) -> None:
    found = fetch(server.url + "api/search?q=secret", Authorization=basic(PASSWORD))
    assert json.loads(found.body)["total"] == 1
    for header in ("Basic", "Bearer abc", "Basic !!!"):
        assert fetch(server.url + "api/run", Authorization=header).status == 401


@pytest.mark.parametrize("what", ["api/correct", "api/name"])
@pytest.mark.parametrize("password", [None, PASSWORD], ids=["token", "password"])
def test_only_pages_of_this_server_may_change_something(
    run: OutputStore, password: str | None, what: str
) -> None:
    with serving(run, password=password) as server:
        session: dict[str, Any] = {"Cookie": cookie_of(log_in(server))} if password else {}
        host = server.url.split("/")[2]
        body = {"id": "nobody"}
        for headers in (
            {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost"},
            {"Origin": f"http://{host}1"}, {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"}, {"X_Corpus_ASR": "0"}, {"Content_Type": "text/plain"},
            {"Content_Type": "application/x-www-form-urlencoded"},
        ):  # fmt: skip
            refused = sent(server.url, what, body, **session, **headers)
            assert refused.status == 403, headers
        for headers in ({}, {"Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}):
            asked = sent(server.url, what, body, **session, **headers)
            assert (asked.status, b"has no recording" in asked.body) == (404, True)
        assert sent(server.url, what, body, **session, Host="evil.example").status == 403
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            assert fetch(server.url + what, method=method, **session).status == 405
        assert sent(server.url, "api/run", body, **session).status == 405
        for data in (b"", b"{", b"[]", b"1"):
            found = fetch(server.url + what, method="POST", body=data, **session,
                          Content_Type="application/json", X_Corpus_ASR="1")  # fmt: skip
            assert (found.status, b"no JSON object" in found.body) == (400, True), data
        huge = sent(server.url, what, {"id": "x", "text": "a" * 100_000}, **session)
        assert huge.status == 413


def test_behind_a_proxy_its_name_is_known_and_cookies_want_https(run: OutputStore) -> None:
    with serving(run, password=PASSWORD, public=PUBLIC) as server:
        assert server.url == "https://Transcripts.example.org/"
        here = "http://{}:{}/".format(*server._socket.getsockname()[:2])
        theirs = {"Host": "transcripts.example.org", "Origin": "https://transcripts.example.org"}
        answer = sent(here, "login", {"password": PASSWORD}, **theirs)
        assert answer.status == 200
        assert "; Secure" in answer.headers["Set-Cookie"]
        # A proxy that passes on where it found the server in place of the name.
        theirs |= {"Host": "127.0.0.1"}
        assert sent(here, "login", {"password": PASSWORD}, **theirs).status == 200
        assert fetch(here, Host="other.example.org").status == 403
    for url in ("transcripts.example.org", "ftp://a", "https://", "https://a/b", "https://a?b",
                "https://u@a", "http://a:x", "https://[::1"):  # fmt: skip
        with pytest.raises(ConfigError, match="expected http:// or https:// and a host"):
            PublicUrl.parse(url)


def test_a_password_file_is_one_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n# the archive's\n")
    for mode in (0o600, 0o400, 0o640):
        path.chmod(mode)
        assert read_password(str(path)) == PASSWORD
    for mode in (0o644, 0o602, 0o604, 0o601):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=rf"found mode {mode:04o}.*run chmod 600"):
            read_password(str(path))
    for data, words in ((b"", "found 0 characters"), (b"short\n", "at least 8"),
                        (b"\xff" * 9, "found no UTF-8")):  # fmt: skip
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=words):
            read_password(str(path))
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigError, match="expected a file with the password"):
            read_password(str(missing))
