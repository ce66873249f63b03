"""Filesystems scripted after gcsfs and adlfs, of so many objects that nobody makes: they list."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import get_loop

from corpus_asr.storage.stores import filesystem


class Listed(AbstractFileSystem):  # type: ignore[misc]
    """Objects `bucket/audio/NUMBER.mp3`, listed page by page alone."""

    count = 0
    requests = 0

    def ls(self, path: str, **_: Any) -> list[Any]:
        raise AssertionError("a folder as a whole is too much for memory")

    @classmethod
    def page(cls, prefix: str, start: int, most: int) -> tuple[list[dict[str, Any]], str | None]:
        Listed.requests += 1
        stop = min(cls.count, start + most)
        # A folder's own key comes first, as consoles make it.
        folder = [{"name": "audio/", "size": "0", "etag": "E"}] if start == 0 else []
        items = folder + [
            {"name": f"audio/{number:09d}.mp3", "size": str(number), "etag": f"e{number}"}
            for number in range(start, stop)
        ]
        found = [item for item in items if item["name"].startswith(prefix)]
        return found, str(stop) if stop < cls.count else None


class ListedGoogle(Listed):
    """gcsfs, whose `call` is a request of the JSON API."""

    protocol = ("gs", "gcs")

    def call(self, method: str, path: str, bucket: str, **asked: Any) -> dict[str, Any]:
        assert (method, path, bucket, asked["json_out"]) == ("GET", "b/{}/o", "bucket", True)
        start, most = int(asked.get("pageToken", 0)), asked["maxResults"]
        items, following = self.page(asked["prefix"], start, most)
        # As the service does, where there is nothing: no entry.
        answer = {"items": items, "nextPageToken": following}
        return {name: value for name, value in answer.items() if value}


class ListedAzure(Listed):
    """adlfs, whose `service_client` is that of azure-storage-blob."""

    protocol = ("az", "abfs", "abfss")

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return get_loop()

    @property
    def service_client(self) -> "ListedAzure":
        return self

    @contextlib.asynccontextmanager
    async def get_container_client(self, container: str) -> AsyncIterator[Any]:
        assert container == "bucket"
        yield self

    def list_blobs(self, **asked: Any) -> "Blobs":
        return Blobs(asked)

    walk_blobs = list_blobs

    async def _details(self, blobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            blob | {"name": f"bucket/{blob['name']}".rstrip("/"), "size": int(blob["size"]),
                    "type": "directory" if blob["name"].endswith("/") else "file"}
            for blob in blobs
        ]  # fmt: skip


class Blobs:
    """A listing of azure-storage-blob, and its pages."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self.continuation_token: str | None = None

    def by_page(self, continuation_token: str | None) -> "Blobs":
        self.continuation_token = continuation_token
        return self

    async def __anext__(self) -> AsyncIterator[dict[str, Any]]:
        blobs, self.continuation_token = Listed.page(
            self._asked["name_starts_with"], int(self.continuation_token or 0),
            self._asked["results_per_page"],
        )  # fmt: skip

        async def page() -> AsyncIterator[dict[str, Any]]:
            for blob in blobs:
                yield blob

        return page()


@contextlib.contextmanager
def listed(kind: type[Listed], count: int) -> Iterator[str]:
    """Let the addresses of a kind lead to so many objects; give that of their folder."""
    with (
        mock.patch.object(fsspec, "get_filesystem_class", return_value=kind),
        mock.patch.object(Listed, "count", count),
        mock.patch.object(Listed, "requests", 0),
    ):
        filesystem._connected.cache_clear()
        yield f"{kind.protocol[0]}://bucket/audio/"
        filesystem._connected.cache_clear()
