"""Reading, writing and failing, on every kind of store."""

import errno
import functools
import io
import multiprocessing
import os
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from botocore import exceptions
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import infer_storage_options

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.stores import filesystem, local
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    exists,
    list_objects,
    open_binary,
    open_store,
    read_bytes,
    remove,
    upload,
    write_atomic,
)
from corpus_asr.storage.stores.s3 import from_exception
from corpus_asr.storage.stores.store import RetryPolicy, with_retries
from tests.support.stores import REFUSALS, S3Server, WebServer, faulty_store

HOSTILE_NAMES = (
    "two words.mp3", "a#b.mp3", "a?b.mp3", "a%20b.mp3", "line\nbreak.mp3", "\N{GRINNING FACE}.mp3",
    "-dash.mp3", "[brackets].mp3", "star*.mp3", "plus+and&.mp3", "quote'\".mp3", "back\\slash.mp3",
    "a::b.mp3", "caf\u00e9.mp3", "cafe\u0301.mp3", "~tilde.mp3", " lead.mp3", "x?versionId=1",
)  # fmt: skip
QUICK = RetryPolicy(attempts=3, first_wait_s=0.001, longest_wait_s=0.002, request_timeout_s=0.5)


def test_hostile_names_are_taken_literally(place: tuple[str, StoreOptions]) -> None:
    base, options = place
    for name in HOSTILE_NAMES:
        if base.startswith("memory:") and "::" in name:
            continue  # fsspec's memory store does not know such names
        uri = f"{base}/{name}"
        for content in (b"", b"sound"):
            write_atomic(uri, content, options)
            assert exists(uri, options)
            assert read_bytes(uri, options) == content
        assert [found[0] for found in list_objects(base, options)] == [uri]
        remove(uri, options)
        assert not exists(uri, options)
        remove(uri, options)


def test_random_seeks_and_reads_equal_those_of_a_file(
    place: tuple[str, StoreOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(filesystem, "READ_BUFFER_BYTES", 64)
    random.seed(1)
    data = random.randbytes(10_500)
    uri = f"{place[0]}/data"
    write_atomic(uri, data, place[1])
    expected = io.BytesIO(data)
    with open_binary(uri, place[1]) as file:
        for _ in range(300):
            offset, size = random.randrange(11_000), random.choice([1, 10, 700, 2500])
            if random.random() < 0.5:
                assert file.seek(offset) == expected.seek(offset)
            assert file.read(size) == expected.read(size)
            assert file.tell() == expected.tell()
        assert file.seek(-5, io.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]


def digest(uri: str, options: StoreOptions = StoreOptions(), **more: Any) -> str | None:  # noqa: B008
    with open_binary(uri, options, **more) as file:
        file.read(7)
        found: str | None = file.raw.content_digest  # type: ignore[attr-defined]
        return found


def test_memory_is_bounded_by_a_few_blocks(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "BLOCK_BYTES", 1000)
    web.files["long"] = bytes(100_000)
    store = filesystem.store_for(web.url("long"), StoreOptions(policy=QUICK))
    raw = filesystem.RangeFile(store, web.url("long"), policy=QUICK)
    with io.BufferedReader(raw) as file:
        while file.read(3000):
            assert len(raw._blocks) <= filesystem.KEPT_BLOCKS
    asked = [asked for _, _, asked in web.requests]
    assert len(asked) == len(set(asked)) == 100  # each block once, read ahead or not


def test_a_missing_object_says_so(place: tuple[str, StoreOptions]) -> None:
    with pytest.raises(FetchError, match=r"^reading .*missing: not found") as caught:
        open_binary(f"{place[0]}/missing", place[1])
    assert caught.value.kind == "not_found"
    assert not caught.value.retryable
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.args, copy.kind, copy.uri) == (caught.value.args, "not_found", caught.value.uri)


def test_a_folder_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="found a folder") as caught:
        open_binary(str(tmp_path))
    assert caught.value.kind == "not_found"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FetchError, match=r"a pipe, .* regular file; save what comes from it"):
        open_binary(str(tmp_path / "pipe"))


def test_a_missing_bucket_is_no_empty_one(s3: S3Server) -> None:
    with pytest.raises(FetchError, match="no such bucket") as caught:
        open_binary("s3://no-such-bucket-here/key", s3.options)
    assert (caught.value.kind, caught.value.retryable) == ("no_bucket", False)
    with pytest.raises(FetchError, match="correct the bucket's name"):
        list(list_objects("s3://no-such-bucket-here", s3.options))


@pytest.mark.usefixtures("s3")  # whose credentials are in the environment
@pytest.mark.parametrize("fault", ["503", "500", "429", "reset", "short", "stall"])
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_passing_failures_are_retried(web: WebServer, scheme: str, fault: str) -> None:
    data = bytes(range(256)) * 10
    web.files["b/key"] = data
    web.stall_s = 0.8
    web.faults.append(fault)
    uri = web.url("b/key") if scheme == "http" else "s3://b/key"
    assert read_bytes(uri, StoreOptions(endpoint_url=web.endpoint_url, policy=QUICK)) == data
    assert len(web.requests) == 2


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("503", "fetch"), ("403", "access_denied"), ("404", "not_found"), ("stall", "timeout")],
)
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_lasting_failures_have_their_kind(
    web: WebServer, scheme: str, fault: str, kind: str
) -> None:
    web.files["b/key"] = b"data"
    web.stall_s = 0.8
    web.faults.extend([fault] * QUICK.attempts)
    uri = web.url("b/key") + "?X-Amz-Signature=s3cr3t" if scheme == "http" else "s3://b/key"
    with pytest.raises(FetchError) as caught:
        open_binary(uri, StoreOptions(endpoint_url=web.endpoint_url, policy=QUICK))
    assert caught.value.kind == kind
    lasting = kind in ("access_denied", "not_found")
    assert caught.value.retryable is not lasting
    assert len(web.requests) == (1 if lasting else QUICK.attempts)
    assert "s3cr3t" not in str(caught.value)


def test_expired_credentials_may_be_renewed() -> None:
    def fail(code: str, status: int, message: str) -> None:
        answer = {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }
        raise from_exception(exceptions.ClientError(answer, "GetObject"))

    codes = ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired")
    answers: list[tuple[str, int, str, bool]] = [
        *((code, 400, "", True) for code in codes),
        ("Unauthorized", 401, "The token has expired", True),
        ("AccessDenied", 403, "Request has expired", True),
        ("Unauthorized", 401, "Who are you?", False),
        ("AccessDenied", 403, "Access Denied", False),
    ]
    for code, status, message, retryable in answers:
        operation = functools.partial(fail, code, status, message)
        with pytest.raises(FetchError) as caught:
            with_retries("reading", "s3://b/key", operation, policy=QUICK)
        assert (caught.value.kind, caught.value.retryable) == ("access_denied", retryable), code
        assert ("renew them" in str(caught.value)) is retryable
        assert ("expired" in str(caught.value)) is retryable


def test_no_secret_is_told_or_logged(web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FetchError, match="attempts") as caught:
        open_binary("http://127.0.0.1:9/x.mp3?token=s3cr3t", StoreOptions(policy=QUICK))
    assert caught.value.kind == "fetch"
    assert "s3cr3t" not in str(caught.value)
    web.files["a"] = b"data"
    web.faults.append("503")
    with caplog.at_level("INFO", logger="corpus_asr"):
        read_bytes(web.url("a") + "?X-Amz-Signature=s3cr3t", StoreOptions(policy=QUICK))
    assert "retry" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "BLOCK_BYTES", 100)
    monkeypatch.setattr(filesystem, "READ_BUFFER_BYTES", 10)


@pytest.mark.usefixtures("s3", "small_blocks")
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_an_object_that_changes_while_read_fails(web: WebServer, scheme: str) -> None:
    web.files["b/key"], web.etags["b/key"] = bytes(1000), "one"
    uri = web.url("b/key") if scheme == "http" else "s3://b/key"
    with open_binary(uri, StoreOptions(endpoint_url=web.endpoint_url, policy=QUICK)) as file:
        assert file.read(50) == bytes(50)
        web.etags["b/key"] = "two"
        with pytest.raises(FetchError, match="changed") as caught:
            file.read(900)
    assert caught.value.kind == "changed"


@pytest.mark.usefixtures("small_blocks")
def test_a_local_file_that_grows_while_read_fails(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(bytes(1000))
    with open_binary(str(path)) as file:
        file.read(10)
        with path.open("ab") as more:
            more.write(b"more")
        with pytest.raises(FetchError, match="changed"):
            file.read()


def test_a_server_without_ranges_is_read_whole(web: WebServer) -> None:
    web.supports_ranges = False
    web.files["a"] = bytes(range(256)) * 100
    web.faults.append("503")
    with open_binary(web.url("a"), StoreOptions(policy=QUICK)) as file:
        file.seek(25_000)
        assert file.read() == web.files["a"][25_000:]


def test_what_a_server_compressed_is_refused(web: WebServer) -> None:
    web.files["a"], web.codings["a"] = b"1234", "gzip"
    with pytest.raises(FetchError, match="found content encoding gzip, expected none"):
        open_binary(web.url("a"), StoreOptions(policy=QUICK))


def test_a_presigned_address_for_get_only_can_be_looked_up(web: WebServer) -> None:
    assert not exists(web.url("a"), StoreOptions(policy=QUICK))
    web.files["a"] = b"12345"
    web.refused_methods.add("HEAD")
    assert filesystem.describe(web.url("a"), StoreOptions(policy=QUICK)).size_bytes == 5


class Hosts(MemoryFileSystem):  # type: ignore[misc]
    """A store of several hosts, each with files of its own, that keeps listings."""

    protocol = "hosts"
    stores: ClassVar[dict[str, dict]] = {}

    def __init__(self, host: str, port: int = 21, **options: Any) -> None:
        super().__init__(**options)
        self.store = self.stores.setdefault(f"{host}:{port}", {})
        self.pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + infer_storage_options(path)["path"].strip("/")

    @staticmethod
    def _get_kwargs_from_urls(urlpath: str) -> dict[str, Any]:
        options = infer_storage_options(urlpath)
        return {name: options[name] for name in ("host", "port") if options.get(name)}


@pytest.fixture
def hosts() -> Iterator[None]:
    fsspec.register_implementation("hosts", Hosts, clobber=True)
    yield
    Hosts.stores.clear()
    Hosts.clear_instance_cache()


def test_the_host_of_an_address_is_honoured(hosts: None) -> None:
    for host in ("one", "two:99"):
        write_atomic(f"hosts://{host}/in/a.mp3", host.encode())
    assert set(Hosts.stores) == {"one:21", "two:99"}
    assert read_bytes("hosts://two:99/in/a.mp3") == b"two:99"
    assert [found[0] for found in list_objects("hosts://one/in")] == ["hosts://one/in/a.mp3"]
    assert not open_store("hosts://one/in")[0].dircache.use_listings_cache


@pytest.mark.parametrize("uri", ["quux://x/y", "hosts:///no-host", "ftp://h:port/x"])
def test_an_unusable_address_is_one_failed_recording_and_no_listing(hosts: None, uri: str) -> None:
    with pytest.raises(FetchError, match="correct the URI") as caught:
        open_binary(uri, StoreOptions(policy=QUICK))
    assert (caught.value.kind, caught.value.retryable) == ("unsupported_scheme", False)
    assert caught.value.uri == uri
    with pytest.raises(ConfigError, match=r"^opening .*correct the URI"):
        list(list_objects(uri))
    with pytest.raises(ConfigError):
        read_bytes(uri)
    for source in ({"uri": (uri,)}, {"manifest": f"{uri}.jsonl"}):
        with pytest.raises(ConfigError):
            list(FileListing(SourceSettings(**source)))


@pytest.mark.long
def test_a_spawned_process_opens_its_own_connections(s3: S3Server, bucket: str) -> None:
    uri = s3.put(bucket, "key", b"data")
    assert read_bytes(uri, s3.options) == b"data"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_bytes, (uri, s3.options)) == b"data"


def test_open_store_serves_libraries_that_want_fsspec_in_any_process(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "a b").write_bytes(b"x")
    for uri in (f"{tmp_path}/a b", f"file://{tmp_path}/a b", s3.put(bucket, "a", b"x")):
        store, path = pickle.loads(pickle.dumps(open_store(uri, s3.options)))
        assert store.cat_file(path) == b"x", uri


def test_a_local_file_is_uploaded_whole(place: tuple[str, StoreOptions], tmp_path: Path) -> None:
    uri, options = f"{place[0]}/new/file.txt", place[1]
    source = tmp_path / "source"
    for content in (b"first", b"second " * 1_000_000):
        source.write_bytes(content)
        upload(str(source), uri, options)
        assert read_bytes(uri, options) == content
    names = [name for name, _, _ in list_objects(f"{place[0]}/new", options)]
    assert names == [uri]


def test_an_upload_that_fails_says_where(s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for uri in ("s3://no-such-bucket-here/key", str(tmp_path / "file" / "below")):
        with pytest.raises(FetchError, match=r"writing .*(no-such-bucket-here/key|file/below)"):
            upload(str(tmp_path / "source"), uri, s3.options)


@pytest.mark.long
@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("fault", ["no_checksum", "no_encryption"])
def test_what_a_store_says_of_a_refusal_is_passed_on(s3: S3Server, bucket: str, fault: str) -> None:
    status, code, words = REFUSALS[fault]
    with faulty_store(s3.endpoint_url, {fault: 1.0}, seed=1) as store:
        options = replace(store.options, policy=replace(QUICK, request_timeout_s=30))
        for refused in (
            lambda: write_atomic(f"s3://{bucket}/key", b"x", options),
            lambda: read_bytes(f"s3://{bucket}/key", options),
            lambda: read_bytes(f"{store.endpoint_url}/{bucket}/key", options),
        ):
            requests = store.requests
            with pytest.raises(FetchError) as caught:
                refused()
            assert words in str(caught.value)
            assert str(status) in str(caught.value) or code in str(caught.value)
            assert not caught.value.retryable, "the same command would be refused again"
            assert store.requests - requests <= 2, "a refusal is no reason to ask again"


def full_after(num_bytes: int) -> Callable[..., Any]:
    """Return an `open` whose files take no more bytes than that."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(bytes(data)[:num_bytes])
            raise OSError(errno.ENOSPC, "No space left on device")

    return lambda path, mode, **_: Full(path, mode.replace("b", ""))


def test_a_full_disk_leaves_what_was_there_and_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "object"
    filesystem.write_atomic(str(target), b"before")
    for num_bytes in (0, 1, 999):
        monkeypatch.setattr(local, "open", full_after(num_bytes), raising=False)
        with pytest.raises(FetchError) as caught:
            filesystem.write_atomic(str(target), b"x" * 1000)
        assert caught.value.kind == "no_space"
        for words in (str(target), f"bytes free in {tmp_path}", "room for 1,000", "free some"):
            assert words in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["object"]
        assert target.read_bytes() == b"before"


def test_an_object_in_an_archive_is_no_question_of_credentials() -> None:
    answer = {
        "Error": {"Code": "InvalidObjectState", "Message": "not valid for the storage class"},
        "ResponseMetadata": {"HTTPStatusCode": 403},
    }

    def archived() -> None:
        raise from_exception(exceptions.ClientError(answer, "GetObject"))

    with pytest.raises(FetchError, match="restore the object") as failure:
        with_retries("reading", "s3://pod/a.mp3", archived)
    assert failure.value.kind == "archived"
    assert "not valid for the storage class" in str(failure.value)
