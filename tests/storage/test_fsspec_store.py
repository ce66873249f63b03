"""Conditional writes on gs:// and az://, against filesystems scripted after gcsfs and adlfs."""

import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from threading import Barrier, Lock
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem

from corpus_asr.errors import FetchError, LockedError
from corpus_asr.storage.run_state import lock as lock_module
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.store import RetryPolicy

OPTIONS = StoreOptions(policy=RetryPolicy(attempts=2, first_wait_s=0.001))


class Cloud(AbstractFileSystem):  # type: ignore[misc]
    """Objects with versions; `before_put` is called when everybody has looked."""

    objects: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012 - one cloud, cleared by its fixture
    before_put: Callable[[], object] = staticmethod(lambda: None)
    alone = Lock()

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
def uri(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    azure_core = types.ModuleType("azure.core")
    azure_core.MatchConditions = MatchConditions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "azure.core", azure_core)
    monkeypatch.setattr(fsspec, "get_filesystem_class", {"gs": Google, "az": Azure}.__getitem__)
    monkeypatch.setattr(Cloud, "objects", {})
    filesystem._connected.cache_clear()
    yield f"{request.param.protocol[0]}://bucket/run/lock.json"
    filesystem._connected.cache_clear()


def test_an_object_is_created_once_and_replaced_only_as_it_was_seen(uri: str) -> None:
    assert filesystem.peek(uri, OPTIONS) is None
    assert not filesystem.swap(uri, b"b", b"a", OPTIONS)
    assert filesystem.create(uri, b"a", OPTIONS)
    assert not filesystem.create(uri, b"b", OPTIONS)
    assert not filesystem.swap(uri, b"c", b"aa", OPTIONS)
    assert filesystem.swap(uri, b"b", b"a", OPTIONS)
    assert filesystem.peek(uri, OPTIONS) == b"b"


@pytest.mark.parametrize("there", [None, b"old"])
def test_of_two_writers_that_saw_the_same_one_wins(
    uri: str, there: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there is not None:
        assert filesystem.create(uri, there, OPTIONS)
    both_have_looked = Barrier(2)
    monkeypatch.setattr(Cloud, "before_put", staticmethod(lambda: both_have_looked.wait(60)))

    def write(data: bytes) -> bool:
        if there is None:
            return filesystem.create(uri, data, OPTIONS)
        return filesystem.swap(uri, data, there, OPTIONS)

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(write, [b"first", b"second"]))
    assert sorted(won) == [False, True]
    assert filesystem.peek(uri, OPTIONS) == [b"first", b"second"][won.index(True)]


def test_an_object_replaced_between_look_and_put_by_the_same_content_is_not_taken(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert filesystem.create(uri, b"a", OPTIONS)

    def replace() -> None:
        for path, (version, data) in Cloud.objects.items():
            Cloud.objects[path] = version + 1, data

    monkeypatch.setattr(Cloud, "before_put", staticmethod(replace))
    assert not filesystem.swap(uri, b"b", b"a", OPTIONS)
    assert filesystem.peek(uri, OPTIONS) == b"a"


def test_a_run_locks_its_output_folder_there(uri: str) -> None:
    store = OutputStore(uri.removesuffix("/run/lock.json"))
    timing = lock_module.Timing(heartbeat_s=60.0, settle_s=0.0)
    # Not released: the scripted filesystems remove nothing.
    first = lock_module.Lock(store, "first", timing=timing)
    first._acquire()
    with pytest.raises(LockedError, match="run first"):
        lock_module.Lock(store, "second", timing=timing).__enter__()


def test_a_library_that_tells_no_version_is_refused_with_what_to_do(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert filesystem.create(uri, b"a", OPTIONS)
    for kind in (Google, Azure):
        monkeypatch.setattr(kind, "named", lambda self, version: {})
    library = "gcsfs" if uri.startswith("gs:") else "adlfs"
    with pytest.raises(FetchError, match=f"replacing .*{library} tells no version") as caught:
        filesystem.swap(uri, b"b", b"a", OPTIONS)
    assert f"pip install --upgrade {library}" in str(caught.value)
    assert filesystem.peek(uri, OPTIONS) == b"a"
