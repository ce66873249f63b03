"""One writer among many wins, on stores of every ability, and knows it."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from botocore import exceptions

from corpus_asr.errors import FetchError
from corpus_asr.storage.stores import filesystem, s3
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    exists,
    move,
    read_bytes,
    remove,
    store_for,
    write_atomic,
)
from corpus_asr.storage.stores.store import RetryPolicy
from tests.support.stores import WebServer

QUICK = RetryPolicy(attempts=3, first_wait_s=0.001, longest_wait_s=0.002)


@pytest.fixture(name="place")
def object_place(place: tuple[str, StoreOptions]) -> tuple[str, StoreOptions]:
    return f"{place[0]}/object", replace(place[1], policy=QUICK)


def check_rules(uri: str, options: StoreOptions) -> None:
    """Go through what create, swap and peek promise."""
    assert filesystem.peek(uri, options) is None
    assert not filesystem.swap(uri, b"b", b"a", options)
    assert not exists(uri, options)
    assert filesystem.create(uri, b"a", options)
    assert not filesystem.create(uri, b"b", options)
    assert filesystem.create(uri, b"a", options), "it holds what was to be put"
    assert filesystem.peek(uri, options) == b"a"
    for almost in (b"", b"x", b"ab"):
        assert not filesystem.swap(uri, b"c", almost, options)
    assert filesystem.swap(uri, b"longer", b"a", options)
    assert not filesystem.swap(uri, b"c", b"a", options)
    assert filesystem.swap(uri, b"longer", b"a", options), "it holds what was to be put"
    assert read_bytes(uri, options) == b"longer"
    remove(uri, options)
    assert filesystem.create(uri, b"", options)
    assert filesystem.peek(uri, options) == b""
    assert filesystem.swap(uri, b"c", b"", options)


def test_what_is_there_decides(place: tuple[str, StoreOptions]) -> None:
    uri, options = place
    check_rules(uri, options)
    if uri.startswith("/"):
        assert os.listdir(Path(uri).parent) == ["object"]


def test_of_many_swaps_one_wins(place: tuple[str, StoreOptions]) -> None:
    uri, options = place
    if uri.startswith("memory:"):
        pytest.skip("fsspec's memory store has no conditions: its lock reads back who was last")
    for number in range(5):
        write_atomic(uri, f"{number}".encode(), options)

        def one(index: int, number: int = number) -> bool:
            return filesystem.swap(uri, f"won {index}".encode(), f"{number}".encode(), options)

        with ThreadPoolExecutor(8) as pool:
            won = [index for index, wins in enumerate(pool.map(one, range(8))) if wins]
        assert [f"won {index}".encode() for index in won] == [read_bytes(uri, options)]


def test_moving_keeps_content_and_may_be_repeated(place: tuple[str, StoreOptions]) -> None:
    uri, options = place
    target = uri.replace("object", "deep/er #1?/object")
    write_atomic(uri, b"content", options)
    for _ in range(2):
        move(uri, target, options)
        assert not exists(uri, options)
        assert read_bytes(target, options) == b"content"
    with pytest.raises(FetchError, match="moving"):
        move(uri + "-never", target + "-never", options)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_mount_without_links_and_locks_follows_the_same_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def unable(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", unable)
    if error != errno.EPERM:
        monkeypatch.setattr(fcntl, "flock", unable)
    check_rules(str(tmp_path / "object"), StoreOptions())
    assert os.listdir(tmp_path) == ["object"]


def test_a_full_disk_is_no_missing_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(FetchError, match="No space left"):
        filesystem.create(str(tmp_path / "object"), b"x")
    assert os.listdir(tmp_path) == []


def refusing(
    put: Callable[..., None], answers: Iterator[tuple[int, str] | None], *, after: bool = False
) -> Callable[..., None]:
    """Return `put` that answers conditional puts with errors as long as there are some."""

    def call(store: s3.S3Store, uri: str, data: bytes, **conditions: str) -> None:
        answer = next(answers, None) if conditions else None
        if after or answer is None:
            put(store, uri, data, **conditions)
        if answer is not None:
            status, code = answer
            cause = exceptions.ClientError(
                {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Put"
            )
            raise cause

    return call


@pytest.fixture
def s3_place(request: pytest.FixtureRequest) -> tuple[str, StoreOptions]:
    options = replace(request.getfixturevalue("s3").options, policy=QUICK)
    return f"s3://{request.getfixturevalue('bucket')}/object", options


def test_a_store_that_knows_no_conditions_is_looked_at_first(
    s3_place: tuple[str, StoreOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = refusing(s3.S3Store._put, iter(lambda: (501, "NotImplemented"), None))
    monkeypatch.setattr(s3.S3Store, "_put", never)
    check_rules(*s3_place)


def test_a_conflict_is_tried_again(
    s3_place: tuple[str, StoreOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, options = s3_place
    answers = iter([(409, "ConditionalRequestConflict")] * 2)
    monkeypatch.setattr(s3.S3Store, "_put", refusing(s3.S3Store._put, answers))
    assert filesystem.create(uri, b"a", options)
    assert read_bytes(uri, options) == b"a"


def test_a_lost_answer_does_not_lose_the_race(
    s3_place: tuple[str, StoreOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, options = s3_place
    answers: Iterator[tuple[int, str] | None] = iter([(503, "SlowDown"), None, (503, "SlowDown")])
    monkeypatch.setattr(s3.S3Store, "_put", refusing(s3.S3Store._put, answers, after=True))
    assert filesystem.create(uri, b"a", options)
    assert filesystem.swap(uri, b"b", b"a", options)


def test_a_bucket_that_is_missing_is_told(s3_place: tuple[str, StoreOptions]) -> None:
    _, options = s3_place
    with pytest.raises(FetchError, match=r"creating .*no such bucket"):
        filesystem.create("s3://no-such-bucket/object", b"a", options)


def test_the_web_is_read_only(web: WebServer) -> None:
    web.files["object"] = b"a"
    store = store_for(web.url("object"))
    for change in (
        lambda: filesystem.create(web.url("object"), b"x"),
        lambda: filesystem.swap(web.url("object"), b"x", b"a"),
        lambda: move(web.url("object"), web.url("other")),
    ):
        with pytest.raises(FetchError, match="read only"):
            change()
    assert store.read_range(web.url("object"), 0, 9)[0] == b"a"
