"""One writer among many wins, on stores of every ability, and knows it."""

import errno
import fcntl
import os
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import fsspec
import pytest
from botocore import exceptions
from fsspec import AbstractFileSystem

from corpus_asr.errors import ConfigError, FetchError, LockedError
from corpus_asr.storage.run_state import lock as lock_module
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem, s3
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    exists,
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


# Alibaba's store answers with 400.
@pytest.mark.parametrize(
    "answer",
    [(501, "NotImplemented"), (400, "NotImplemented"), (400, "400"), (400, ""), (405, "405")],
)
def test_a_store_that_knows_no_conditions_is_refused_by_a_sentence(
    s3_place: tuple[str, StoreOptions], monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str]
) -> None:
    monkeypatch.setattr(s3.S3Store, "_put", refusing(s3.S3Store._put, iter([answer])))
    with pytest.raises(FetchError, match=r"for a write with IfNoneMatch, .*; choose another out"):
        filesystem.create(s3_place[0], b"a", s3_place[1])


def test_a_store_that_ignores_conditions_or_lists_late_is_no_output(
    s3_place: tuple[str, StoreOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, options = s3_place
    store = OutputStore(uri.removesuffix("/object") + "/out", options=options)
    with monkeypatch.context() as ignoring:
        ignoring.setattr(s3.S3Store, "create", lambda self, uri, data: self._put(uri, data) is None)
        with (
            pytest.raises(ConfigError, match=r"writes over what it was to create.*the source may"),
            lock_module.Lock(store, "first"),
        ):
            raise AssertionError
    with monkeypatch.context() as lagging:
        lagging.setattr(filesystem, "list_objects", lambda *_: iter(()))
        with (
            pytest.raises(ConfigError, match="does not show what was just written"),
            lock_module.Lock(store, "second"),
        ):
            raise AssertionError
    with lock_module.Lock(store, "third"):
        pass


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
    ):
        with pytest.raises(FetchError, match="read-only"):
            change()
    assert store.read_range(web.url("object"), 0, 9)[0] == b"a"


# Folders of real stores, or of their emulators, with the libraries and credentials they need.
CLOUDS = os.environ.get("CORPUS_ASR_TEST_CLOUDS", "").split()


@pytest.mark.parametrize("folder", CLOUDS)
def test_the_rules_hold_in_folders_that_the_environment_names(folder: str) -> None:
    base, options = f"{folder}/{uuid.uuid4().hex}", StoreOptions(policy=QUICK)
    check_rules(f"{base}/object", options)
    test_of_many_swaps_one_wins((f"{base}/swapped", options))
    with ThreadPoolExecutor(8) as pool:
        won = list(
            pool.map(
                lambda number: filesystem.create(f"{base}/created", b"%d" % number, options),
                range(8),
            )
        )
    assert won.count(True) == 1


# gs:// and az://, against filesystems scripted after gcsfs and adlfs.
CLOUD_OPTIONS = StoreOptions(policy=RetryPolicy(attempts=2, first_wait_s=0.001))


class Cloud(AbstractFileSystem):  # type: ignore[misc]
    """Objects with versions; `before_put` is called when everybody has looked."""

    objects: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012 - one cloud, cleared by its fixture
    before_put: Callable[[], object] = staticmethod(lambda: None)
    alone = threading.Lock()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path not in self.objects:
            raise FileNotFoundError(path)
        version, data = self.objects[path]
        return {"name": path, "size": len(data), "type": "file", **self.named(version)}

    def named(self, version: int) -> dict[str, str]:
        raise NotImplementedError

    def cat_file(self, path: str, start: int = 0, end: int | None = None, **_: Any) -> bytes:
        return self.objects[path][1][start:end]

    def put_if(self, path: str, data: bytes, holds: Callable[[int], bool]) -> bool:
        self.before_put()
        with self.alone:
            version = self.objects.get(path, (0, b""))[0]
            if holds(version):
                self.objects[path] = version + 1, bytes(data)
                return True
        return False


class Google(Cloud):
    """gcsfs: `call` sends a request, and a precondition that fails is a FileExistsError."""

    protocol = ("gs", "gcs")
    _location = "https://storage.example"

    def named(self, version: int) -> dict[str, str]:
        return {"etag": f"e{version}", "generation": str(version)}

    def call(self, method: str, path: str, **request: Any) -> dict[str, str]:
        assert (method, request["uploadType"]) == ("POST", "media")
        bucket = path.removeprefix(f"{self._location}/upload/storage/v1/b/").removesuffix("/o")
        expected = int(request["ifGenerationMatch"])
        if not self.put_if(f"{bucket}/{request['name']}", request["data"], expected.__eq__):
            raise FileExistsError(path)
        return {}


class MatchConditions(Enum):
    IfNotModified = 2


class ResourceModifiedError(Exception):
    status_code = 412


class Azure(Cloud):
    """adlfs: options of `pipe_file` go to Azure's client, whose errors carry a status."""

    protocol = ("az", "abfs", "abfss")

    def named(self, version: int) -> dict[str, str]:
        return {"etag": f'"e{version}"'}

    def pipe_file(self, path: str, value: bytes, mode: str = "", **conditions: Any) -> None:
        if not conditions["overwrite"]:
            if not self.put_if(path, value, (0).__eq__):
                raise FileExistsError(path)
            return
        assert conditions["match_condition"] is MatchConditions.IfNotModified
        if not self.put_if(path, value, lambda version: conditions["etag"] == f'"e{version}"'):
            raise ResourceModifiedError("ConditionNotMet")


@pytest.fixture(params=[Google, Azure], ids=["gs", "az"])
def cloud_uri(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    azure_core = types.ModuleType("azure.core")
    azure_core.MatchConditions = MatchConditions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "azure.core", azure_core)
    monkeypatch.setattr(fsspec, "get_filesystem_class", {"gs": Google, "az": Azure}.__getitem__)
    monkeypatch.setattr(Cloud, "objects", {})
    filesystem._connected.cache_clear()
    yield f"{request.param.protocol[0]}://bucket/run/lock.json"
    filesystem._connected.cache_clear()


@pytest.mark.parametrize("there", [None, b"old"])
def test_of_two_writers_that_saw_the_same_one_wins(
    cloud_uri: str, there: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there is not None:
        assert filesystem.create(cloud_uri, there, CLOUD_OPTIONS)
    both_have_looked = threading.Barrier(2)
    monkeypatch.setattr(Cloud, "before_put", staticmethod(lambda: both_have_looked.wait(60)))

    def write(data: bytes) -> bool:
        if there is None:
            return filesystem.create(cloud_uri, data, CLOUD_OPTIONS)
        return filesystem.swap(cloud_uri, data, there, CLOUD_OPTIONS)

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(write, [b"first", b"second"]))
    assert sorted(won) == [False, True]
    assert filesystem.peek(cloud_uri, CLOUD_OPTIONS) == [b"first", b"second"][won.index(True)]


def test_an_object_replaced_between_look_and_put_by_the_same_content_is_not_taken(
    cloud_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert filesystem.create(cloud_uri, b"a", CLOUD_OPTIONS)

    def replace() -> None:
        for path, (version, data) in Cloud.objects.items():
            Cloud.objects[path] = version + 1, data

    monkeypatch.setattr(Cloud, "before_put", staticmethod(replace))
    assert not filesystem.swap(cloud_uri, b"b", b"a", CLOUD_OPTIONS)
    assert filesystem.peek(cloud_uri, CLOUD_OPTIONS) == b"a"


def test_a_run_locks_its_output_folder_there(cloud_uri: str) -> None:
    store = OutputStore(cloud_uri.removesuffix("/run/lock.json"))
    timing = lock_module.Timing(heartbeat_s=60.0)
    # Not released: the scripted filesystems remove nothing.
    first = lock_module.Lock(store, "first", timing=timing)
    first._acquire()
    with pytest.raises(LockedError, match="run first"):
        lock_module.Lock(store, "second", timing=timing).__enter__()


def test_a_library_that_tells_no_version_is_refused_with_what_to_do(
    cloud_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert filesystem.create(cloud_uri, b"a", CLOUD_OPTIONS)
    for kind in (Google, Azure):
        monkeypatch.setattr(kind, "named", lambda self, version: {})
    library = "gcsfs" if cloud_uri.startswith("gs:") else "adlfs"
    with pytest.raises(
        FetchError, match=f"replacing .*{library} returned no object version"
    ) as caught:
        filesystem.swap(cloud_uri, b"b", b"a", CLOUD_OPTIONS)
    assert f"pip install --upgrade {library}" in str(caught.value)
    assert filesystem.peek(cloud_uri, CLOUD_OPTIONS) == b"a"
