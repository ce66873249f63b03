"""Options of a store by name: each applies to every request, or is refused; none is printed."""

import pickle
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fsspec
import fsspec.config
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem

from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions, parsed
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.storage.stores import filesystem, fsspec_store
from corpus_asr.storage.stores import s3 as s3_module
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    create,
    describe,
    list_objects,
    read_bytes,
    remove,
    store_for,
    swap,
    upload,
    write_atomic,
)
from corpus_asr.storage.stores.store import RetryPolicy
from corpus_asr.units import MEBIBYTE
from tests.support.stores import FaultyStore, S3Server, faulty_store

QUICK = RetryPolicy(attempts=2, first_wait_s=0.001, request_timeout_s=30)
SECRET = "pl4nted-s3cret"
LONG = b"parts " * 1_200_000
KEYS = {"key": "ours", "secret": SECRET}


def with_options(store: FaultyStore, **values: Any) -> StoreOptions:
    return replace(store.options, policy=QUICK, storage=parsed(values).bound(["s3://bucket"]))


def use_everything(uri: str, options: StoreOptions, folder: Path) -> None:
    """Make each kind of request of a run, and check what came of it."""
    write_atomic(f"{uri}/written", b"data", options)
    assert create(f"{uri}/created", b"a", options)
    assert swap(f"{uri}/created", b"b", b"a", options)
    source = folder / "source"
    for content in (b"few", LONG):
        source.write_bytes(content)
        upload(str(source), f"{uri}/uploaded", options)
        assert read_bytes(f"{uri}/uploaded", options) == content
    assert read_bytes(f"{uri}/created", options) == b"b"
    assert describe(f"{uri}/written", options).size_bytes == 4
    names = [name.rpartition("/")[2] for name, _, _ in list_objects(uri, options)]
    assert names == ["created", "uploaded", "written"]
    remove(f"{uri}/written", options)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 * MEBIBYTE)  # the least that stores take


@pytest.fixture
def place(bucket: str) -> str:
    return f"s3://{bucket}/{uuid.uuid4().hex}"


ENCRYPTED = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "arn:aws:kms:x:1:key/ours"}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        (ENCRYPTED, {"x-amz-server-side-encryption": "aws:kms",
                     "x-amz-server-side-encryption-aws-kms-key-id": ENCRYPTED["SSEKMSKeyId"]}),
        ({"ACL": "bucket-owner-full-control"}, {"x-amz-acl": "bucket-owner-full-control"}),
        ({"StorageClass": "STANDARD_IA"}, {"x-amz-storage-class": "STANDARD_IA"}),
    ],
)  # fmt: skip
def test_a_policy_gets_the_headers_that_it_wants(
    s3: S3Server, place: str, tmp_path: Path, parameters: dict[str, str], wanted: dict[str, str]
) -> None:
    with faulty_store(s3.endpoint_url, {}, seed=1) as store:
        store.wanted, store.object_lock = wanted, True
        with pytest.raises(FetchError, match="explicit deny in a resource-based") as caught:
            write_atomic(place, b"x", with_options(store))
        assert "set them in storage_options.s3_additional_kwargs" in str(caught.value)
        store.injected.clear()
        use_everything(place, with_options(store, s3_additional_kwargs=parameters), tmp_path)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("GetObject", "without permission to list, missing objects are denied too"),
        ("DeleteObject", "an output needs s3:DeleteObject"),
    ],
)
def test_who_is_refused_reads_what_may_be_the_cause(operation: str, words: str) -> None:
    answer = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    failure = s3_module.S3Store(None, RetryPolicy()).translate(ClientError(answer, operation))
    assert words in str(failure.advice)


@pytest.mark.usefixtures("small_parts")
def test_who_asks_pays_for_every_request(s3: S3Server, place: str, tmp_path: Path) -> None:
    with faulty_store(s3.endpoint_url, {}, seed=1) as store:
        store.requester_pays = True
        with pytest.raises(FetchError, match=r"Access Denied.*set storage_options.requester_pays"):
            read_bytes(place, with_options(store))
        options = with_options(store, requester_pays=True)
        store.seen.clear()
        use_everything(place, options, tmp_path)
        methods = {method for method, _, _ in store.seen}
        assert methods == {"PUT", "GET", "HEAD", "DELETE", "POST"}
        assert all(said["x-amz-request-payer"] == "requester" for _, _, said in store.seen)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256"])
def test_a_named_checksum_goes_with_all_that_is_put(
    s3: S3Server, place: str, tmp_path: Path, algorithm: str
) -> None:
    header = f"x-amz-checksum-{algorithm.lower()}"
    with faulty_store(s3.endpoint_url, {}, seed=1) as store:
        store.object_lock = True
        options = with_options(store, s3_additional_kwargs={"ChecksumAlgorithm": algorithm})
        use_everything(place, options, tmp_path)
        put = [said for method, _, said in store.seen if method == "PUT"]
        assert all(header in said for said in put)
        assert not any("content-md5" in said for said in put)


@pytest.mark.usefixtures("small_parts")
def test_an_upload_of_parts_survives_faults(s3: S3Server, place: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(LONG)
    with faulty_store(s3.endpoint_url, {"internal": 0.5}, seed=1, max_in_a_row=1) as store:
        options = replace(with_options(store), policy=replace(QUICK, attempts=8))
        upload(str(tmp_path / "source"), place, options)
        assert read_bytes(place, options) == LONG
        assert store.injected["internal"]


@pytest.mark.usefixtures("small_parts")
def test_parts_of_an_upload_that_failed_are_not_kept(
    s3: S3Server, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(LONG)
    monkeypatch.setattr(s3_module, "_add_checksum", lambda params, **_: None)
    with faulty_store(s3.endpoint_url, {}, seed=1) as store:
        store.object_lock = True
        with pytest.raises(FetchError, match="HTTP header is required"):
            upload(str(tmp_path / "source"), place, with_options(store))
        assert any(method == "DELETE" and "uploadId" in path for method, path, _ in store.seen)


def test_two_vendors_in_one_process_share_nothing(s3: S3Server, bucket: str) -> None:
    uri = f"s3://{bucket}/{uuid.uuid4().hex}"
    with (
        faulty_store(s3.endpoint_url, {}, seed=1) as ours,
        faulty_store(s3.endpoint_url, {}, seed=1) as theirs,
    ):
        ours.accounts, theirs.accounts = {"ours"}, {"theirs"}
        here = with_options(ours, **KEYS)
        there = with_options(theirs, key="theirs", secret=SECRET)
        write_atomic(uri, b"x", here)
        assert read_bytes(uri, there) == b"x"
        assert read_bytes(uri, here) == b"x"
        assert store_for(uri, here) is not store_for(uri, there)
        with pytest.raises(FetchError, match=r"does not exist in our.*storage_options.key"):
            read_bytes(uri, replace(here, endpoint_url=theirs.endpoint_url))


def test_keys_of_one_account_are_not_mixed_with_those_of_the_environment(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"token": "usual", "client_kwargs": {"aws_session_token": "x"}}
    )
    monkeypatch.setenv("AWS_SESSION_TOKEN", "usual")
    uri = f"s3://{bucket}/key"
    with faulty_store(s3.endpoint_url, {}, seed=1) as store:
        public = with_options(store, **KEYS, s3_additional_kwargs={"ACL": "public-read"})
        write_atomic(uri, b"x", public)
        assert read_bytes(uri, with_options(store, **KEYS)) == b"x"
        assert "x-amz-security-token" not in store.seen[-1][2]
        assert read_bytes(uri, with_options(store, **KEYS, token="own")) == b"x"
        assert store.seen[-1][2]["x-amz-security-token"] == "own"
        assert read_bytes(uri, with_options(store, anon=True)) == b"x"
        assert "authorization" not in store.seen[-1][2]
        with pytest.raises(FetchError, match="in place of anon"):
            read_bytes(s3.put(bucket, "closed", b"x"), with_options(store, anon=True))


def test_fsspec_variables_are_the_defaults_of_both_sides(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put(bucket, "key", b"x")
    with faulty_store(s3.endpoint_url, {}, seed=1) as store:
        usual: dict[str, Any] = {}
        fsspec.config.set_conf_env(usual, {
            "FSSPEC_S3_REQUESTER_PAYS": "true", "FSSPEC_S3_ENDPOINT_URL": store.endpoint_url,
            "FSSPEC_S3": '{"config_kwargs": {"user_agent_extra": "night"}}',
        })  # fmt: skip
        monkeypatch.setitem(fsspec.config.conf, "s3", usual["s3"])
        filesystem._connected.cache_clear()
        assert read_bytes(uri, StoreOptions(policy=QUICK)) == b"x"
        filesystem._connected.cache_clear()
        headers = store.seen[-1][2]
        assert headers["x-amz-request-payer"] == "requester"
        assert "night" in headers["user-agent"]


def test_a_profile_has_its_own_keys(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put(bucket, "key", b"x")
    (tmp_path / "keys").write_text(
        f"[archive]\naws_access_key_id=archived\naws_secret_access_key={SECRET}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with faulty_store(s3.endpoint_url, {}, seed=1) as store:
        store.accounts = {"archived"}
        assert read_bytes(uri, with_options(store, profile="archive")) == b"x"
        with pytest.raises(FetchError, match=r"nobody.*storage_options.profile"):
            read_bytes(uri, with_options(store, profile="nobody"))


def test_a_customers_key_is_sent_wherever_it_is_needed(s3: S3Server, bucket: str) -> None:
    parameters = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    sent: list[tuple[str, set[str]]] = []

    with faulty_store(s3.endpoint_url, {}, seed=1) as store:
        options = with_options(store, use_ssl=False, s3_additional_kwargs=parameters)
        connected = store_for(f"s3://{bucket}/a", options)
        assert isinstance(connected, s3_module.S3Store)

        class Recorder:
            def __init__(self, meta: Any) -> None:
                self.meta = meta

            def __getattr__(self, method: str) -> Any:
                return lambda **given: sent.append((method, set(given)))

        def recorded(client: Any) -> None:
            for method in ("put_object", "get_object", "head_object", "upload_part",
                           "delete_object", "list_objects_v2"):  # fmt: skip
                connected._ask(Recorder(client.meta), method, Bucket=bucket)

        async def call(client: Any) -> None:
            recorded(client)

        connected._run(call)
    pair = {"Bucket", *parameters}
    assert dict(sent) == {
        "put_object": pair, "get_object": pair, "head_object": pair,
        "upload_part": pair, "delete_object": {"Bucket"}, "list_objects_v2": {"Bucket"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"secrt": SECRET}, "unexpected keyword argument 'secrt'"),
        ({"session": SECRET}, "has no attribute"),
        ({"client_kwargs": {"aws_token": SECRET}}, "unexpected keyword argument 'aws_token'"),
        ({"config_kwargs": {"quux": 1}}, "unexpected keyword argument 'quux'"),
        ({"s3_additional_kwargs": SECRET}, "unsupported operand"),
        # It would be left out of each request, and what is written not be encrypted.
        ({"s3_additional_kwargs": {"ServerSideEncrypton": "AES256"}},
         "no S3 request takes ServerSideEncrypton"),
        ({"key": "a", "username": "a"}, "either key or username, not both"),
    ],
)  # fmt: skip
def test_what_its_library_does_not_take_is_refused(values: dict[str, Any], expected: str) -> None:
    storage = parsed(values).bound(["s3://bucket"])
    options = StoreOptions(endpoint_url="http://127.0.0.1:9", policy=QUICK, storage=storage)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_bytes("s3://bucket/x", options)
    assert "correct the URI or storage_options" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_credentials_that_yaml_reads_as_numbers_are_refused() -> None:
    problems = parsed({"key": 12345, "secret": SECRET, "anon": 1}).problems(["s3://bucket/x"])
    assert problems == ["anon: expected true or false", "key: expected text; quote it"]


def test_switches_may_come_as_text() -> None:
    values = {"requester_pays": "false", "client_kwargs": {"verify": "true"}, "key": "k"}
    options = parsed(values)
    assert not options.problems(["s3a://bucket/x", "https://example.org/a.mp3"])
    assert options.values() == {
        "requester_pays": False, "client_kwargs": {"verify": True}, "key": "k",
    }  # fmt: skip


def test_options_are_of_one_kind_of_store() -> None:
    options = parsed({"anon": True})
    assert "s3:// and gs://" in options.problems(["s3://a", "gs://b"])[0]
    assert "expected the URI of a store" in options.problems(["/srv/audio"])[0]
    assert not options.problems(["/srv/list.csv"], lists_others=True)
    bound = options.bound(["s3://a", "https://b"])
    assert bound.for_scheme("s3")
    assert not any(bound.for_scheme(scheme) for scheme in ("file", "http", "https", "gs"))
    assert options.bound(["/srv/list.csv"]).for_scheme("gs")


def test_values_are_hidden_wherever_options_are_printed() -> None:
    options = parsed(
        {**KEYS, "s3_additional_kwargs": {"SSECustomerKey": SECRET, "ACL": "private"},
         "config_kwargs": {"proxies": {"http": f"http://u:{SECRET}@p"}}, "anon": False}
    )  # fmt: skip
    around = StoreOptions(storage=options)
    shown = [repr(options), str(options), f"{options}", repr(around), repr([options])]
    for text in (*shown, str(asdict(around))):  # the last is how Ray exports what workers are given
        assert SECRET not in text
        assert "private" in text
    assert options.hide(f"denied to {SECRET}!") == "denied to ***!"
    assert options.public().values() == {"anon": False, "s3_additional_kwargs": {"ACL": "private"}}


def test_equal_options_are_one_key_and_travel() -> None:
    one, other = StorageOptions.of({"a": 1, "b": 2}), StorageOptions.of({"b": 2, "a": 1, "c": None})
    assert one == other
    assert len({one, other, NO_OPTIONS}) == 2
    assert pickle.loads(pickle.dumps(one)).values() == {"a": 1, "b": 2}


class _Vault(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    protocol = "vault"
    cachable = False

    def __init__(self, project: str = "", credential: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        if credential != SECRET:
            raise ValueError(f"wrong credential {credential}")


@pytest.fixture
def vault() -> str:
    fsspec.register_implementation("vault", _Vault, clobber=True)
    return f"vault://{uuid.uuid4().hex}/x"


def of_vault(**values: Any) -> StoreOptions:
    return StoreOptions(policy=QUICK, storage=parsed(values).bound(["vault://x"]))


def test_other_stores_take_what_their_library_takes(vault: str) -> None:
    write_atomic(vault, b"x", of_vault(credential=SECRET))
    assert read_bytes(vault, of_vault(credential=SECRET)) == b"x"
    with pytest.raises(ConfigError, match=r"wrong credential \*\*\*.*correct the URI or storage_"):
        write_atomic(vault, b"x", of_vault(credential=f"{SECRET}-2"))


def test_names_that_a_library_would_leave_out_are_refused(
    vault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_store, "_GOOGLE", {"vault"})
    with pytest.raises(ConfigError, match=r"has no option projekt.*did you mean project\?"):
        write_atomic(vault, b"x", of_vault(projekt="p", credential=SECRET))


def test_unsuitable_names_of_a_listed_object_are_its_failure() -> None:
    options = StoreOptions(storage=parsed({"secrt": SECRET}).bound(["/srv/list.csv"]))
    with pytest.raises(FetchError, match="argument 'secrt'") as caught:
        filesystem.open_binary("s3://bucket/a.mp3", options)
    assert SECRET not in str(caught.value)
