"""A store that throttles, resets, cuts short and forgets: what comes through is exact."""

from collections.abc import Iterator

import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.config.storage_options import parsed
from corpus_asr.errors import FetchError
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores import s3 as s3_module
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    list_objects,
    open_binary,
    read_bytes,
    write_atomic,
)
from corpus_asr.storage.stores.store import RetryPolicy
from tests.support.stores import FaultyStore, S3Server, faulty_store


@pytest.fixture
def faulty(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A store without faults yet, and a client that hardly waits between attempts."""
    monkeypatch.setattr(RetryPolicy, "wait_s", lambda *args, **options: 0.002)
    with faulty_store(s3.endpoint_url, {}, seed=7, max_in_a_row=2) as store:
        store.slow_s = 0.01
        yield store


@pytest.mark.long
@pytest.mark.parametrize("fault", ["slow_down", "lost_answer", "done_500", "truncated", "no_xml"])
def test_lists_reads_and_writes_survive_each_fault(
    faulty: FaultyStore, s3: S3Server, bucket: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PAGE_KEYS", 1)
    monkeypatch.setattr(filesystem, "BLOCK_BYTES", 2000)
    data = bytes(range(250)) * 20
    faulty.rates = {fault: 0.7}
    uris = [f"s3://{bucket}/folder/{number}.mp3" for number in range(2)]
    write_atomic(uris[0], data, faulty.options)
    assert read_bytes(uris[0], faulty.options) == data
    write_atomic(uris[1], data, s3.options)
    options = parsed({"endpoint_url": faulty.endpoint_url})
    source = SourceSettings(uri=(f"s3://{bucket}/folder",), storage_options=options)
    assert [u for batch in FileListing(source) for u in batch["uri"].to_pylist()] == uris
    filesystem.remove(uris[0], faulty.options)
    found = list_objects(f"s3://{bucket}/folder", s3.options)
    assert [place[0] for place in found] == uris[1:]
    assert faulty.injected[fault]


def test_few_attempts_are_made_when_patience_is_over(faulty: FaultyStore, bucket: str) -> None:
    faulty.rates, faulty.max_in_a_row = {"slow_down": 1.0}, None
    policy = RetryPolicy(attempts=50, patience_s=0.0)
    with pytest.raises(FetchError, match=r"503 SlowDown \(3 attempts\)"):
        open_binary(
            f"s3://{bucket}/a", StoreOptions(endpoint_url=faulty.endpoint_url, policy=policy)
        )
    assert faulty.requests == 3


@pytest.mark.parametrize("token", [{}, {"NextContinuationToken": "x"}])
def test_a_listing_that_leads_nowhere_ends(
    token: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = {"Contents": [{"Key": "a.mp3", "Size": 1}], "IsTruncated": True, **token}
    monkeypatch.setattr(s3_module.S3Store, "_run", lambda *_, **options: page)
    with pytest.raises(FetchError, match="has no next one"):
        list(list_objects("s3://bucket", StoreOptions(endpoint_url="http://127.0.0.1:9")))


def test_a_replica_that_lags_behind_for_one_answer_does_no_harm(
    faulty: FaultyStore, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "BLOCK_BYTES", 1000)
    data = bytes(range(250)) * 20
    uri = s3.put(bucket, "a.mp3", data)
    with open_binary(uri, faulty.options) as file:
        faulty.rates = {"changed": 0.5}
        assert file.read() == data
    assert faulty.injected["changed"]


def test_expired_credentials_are_read_anew(
    faulty: FaultyStore, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put(bucket, "a.mp3", b"sound")
    store = filesystem.store_for(uri, faulty.options)
    assert isinstance(store, s3_module.S3Store)
    read_bytes(uri, faulty.options)
    before = store.filesystem.session
    faulty.rates, faulty.max_in_a_row = {"expired": 1.0}, 1
    assert read_bytes(uri, faulty.options) == b"sound"
    assert store.filesystem.session is not before
