"""Webhooks take a message, or what they do instead is told without their address."""

import logging
import time
from collections.abc import Iterator

import pytest

from corpus_asr.errors import FetchError
from corpus_asr.storage.stores.http import post_json
from corpus_asr.storage.stores.store import RetryPolicy
from tests.support.stores import SECRET, Webhook, webhook

QUICK = RetryPolicy(attempts=3, first_wait_s=0.01, longest_wait_s=0.01, request_timeout_s=0.5)
HERE = ["127.0.0.1"]


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


def refused(url: str, *, allow_hosts: list[str] | None = None) -> FetchError:
    """Post in vain; neither the error nor what led to it tells the address."""
    with pytest.raises(FetchError) as caught:
        post_json(url, {"text": "done"}, allow_hosts=allow_hosts, policy=QUICK)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error!r} {vars(error)}"
        error = None if error.__suppress_context__ else error.__context__
    return caught.value


def test_a_message_is_taken_also_when_a_server_cannot_at_first(hook: Webhook) -> None:
    hook.answers += ["503", "reset"]
    message = {"text": "Grüße \ud800", "night": [1, None]}
    post_json(hook.url, message, allow_hosts=HERE, policy=QUICK)
    assert hook.posted == [{"text": "Grüße ?", "night": [1, None]}] * 3


@pytest.mark.parametrize(
    ("answers", "asked", "message"),
    [
        (["404"], 1, "the server answered 404 Not Found"),
        (["403"], 1, "the server answered 403 Forbidden"),
        (["400"], 1, "the server answered 400 Bad Request"),
        (["500"] * 9, 3, "the server answered 500 Internal Server Error"),
        (["hang"] * 9, 3, "no answer within the time limit"),
        (["reset"] * 9, 3, "the connection failed (ServerDisconnectedError)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_a_server_does_instead_is_told(
    hook: Webhook, answers: list[str], asked: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    hook.answers += answers
    started = time.monotonic()
    with caplog.at_level(logging.DEBUG):
        error = refused(hook.url, allow_hosts=HERE)
    assert str(error).startswith(f"telling the webhook at 127.0.0.1: {message}")
    assert len(hook.posted) == asked
    assert time.monotonic() - started < 10
    assert SECRET not in caplog.text


def test_a_redirect_is_not_followed(hook: Webhook) -> None:
    with webhook() as elsewhere:
        hook.answers.append(elsewhere.url)
        error = refused(hook.url, allow_hosts=HERE)
    assert "answered 307, a redirect, which is not followed" in str(error)
    assert elsewhere.posted == []


def test_a_secret_goes_over_http_only_where_that_is_allowed(hook: Webhook) -> None:
    for allow_hosts in (None, [], ["example.org"]):
        error = refused(hook.url, allow_hosts=allow_hosts)
        assert error.kind == "refused_host"
        assert "over http: expected https, or a host that source.allow_hosts admits" in str(error)
    error = refused(hook.url.replace("http:", "https:"))
    assert "no trusted connection" in str(error) or "connection failed" in str(error)
    assert hook.posted == []


def test_what_is_no_address_is_told() -> None:
    for url in ("", SECRET, f"ftp://host/{SECRET}", f"https:///{SECRET}", f"https://[{SECRET}"):
        assert "found no https URL with a host" in str(refused(url)), url
