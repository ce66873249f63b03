"""Checksums as AWS's settings ask for them, and a store's words without secrets."""

from pathlib import Path

import pytest

from corpus_asr.errors import FetchError
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions, write_atomic
from corpus_asr.storage.stores.store import RetryPolicy, answer_of
from tests.support.stores import Handler, S3Server, environment, serving

CHOSEN = "AWS_REQUEST_CHECKSUM_CALCULATION"
QUICK = RetryPolicy(attempts=3, first_wait_s=0.001, longest_wait_s=0.002)


class _Taker(Handler):
    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent, answers = self.server.state
        sent.append({name.lower() for name in self.headers})
        code = answers.pop(0) if answers else ""
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode() if code else b""
        self.send_response(400 if code else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def put(answers: list[str], **variables: str) -> list[set[str]]:
    """Put an object; return the names of the headers of each attempt."""
    sent: list[set[str]] = []
    urls: list[str] = []

    def state(url: str) -> tuple[list[set[str]], list[str]]:
        urls.append(url)
        return sent, answers

    with serving(_Taker, state), environment(variables):
        filesystem._connected.cache_clear()
        options = StoreOptions(endpoint_url=urls[0], policy=QUICK)
        write_atomic("s3://bucket/key", b"data", options)
    return sent


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("chosen", "config", "expected"),
    [
        ({}, "", "content-md5"),
        ({CHOSEN: "when_required"}, "", "content-md5"),
        ({CHOSEN: "when_supported"}, "", "x-amz-checksum-crc32"),
        ({}, "request_checksum_calculation = when_supported", "x-amz-checksum-crc32"),
    ],
)
def test_one_checksum_goes_with_a_write_as_aws_settings_ask(
    tmp_path: Path, chosen: dict[str, str], config: str, expected: str
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{config}\n")
    (headers,) = put([], AWS_CONFIG_FILE=str(tmp_path / "config"), **chosen)
    assert {"content-md5", "x-amz-checksum-crc32"} & headers == {expected}


def test_a_profile_that_is_not_there_is_still_said(s3: S3Server) -> None:
    with pytest.raises(FetchError, match="correct AWS_PROFILE"):
        put([], AWS_PROFILE="none")


@pytest.mark.usefixtures("s3")
def test_what_arrived_damaged_is_sent_again() -> None:
    assert len(put(["BadDigest", "IncompleteBody"])) == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("/k?X-Amz-Credential=AK%2F1&X-Amz-Signature=abc no",
         "/k?X-Amz-Credential=[hidden]&X-Amz-Signature=[hidden] no"),
        ("bad Authorization: s3cret", "bad Authorization: [hidden]"),
        ("bad Bearer s3cret, retry", "bad Bearer [hidden], retry"),
        ("at https://u:s3cret@h/k?x=1", "at https://h/k?[hidden]"),
        ("token " + "aB3/" * 30, "token [hidden]"),
        ("User: arn:aws:iam::123:user/ann may not s3:PutObject on arn:aws:s3:::bucket/key",
         "User: arn:aws:iam::123:user/ann may not s3:PutObject on arn:aws:s3:::bucket/key"),
    ],
)  # fmt: skip
def test_words_of_a_store_hold_no_secrets(words: str, expected: str) -> None:
    assert answer_of("Code", words) == f"Code: {expected}"
