"""Manifests from elsewhere and redirects lead neither to this machine nor into its network."""

import ipaddress
import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError, CorpusAsrError, FetchError
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.manifest import read_manifest
from corpus_asr.storage.run_state.finish import merge_parts
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import TABLES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary, write_atomic
from corpus_asr.storage.stores.host_allowlist import (
    ANY_NAMED_HOST,
    HostRules,
    Verdict,
    is_public,
    may_name,
)
from corpus_asr.storage.stores.store import RetryPolicy
from corpus_asr.storage.stores.uri import resolve
from tests.support.stores import WebServer, web_server
from tests.support.tables import commit, part, results

QUICK = RetryPolicy(attempts=2, first_wait_s=0.001, request_timeout_s=5.0)
FROM_ELSEWHERE = HostRules(trusted_names=False)
INNER = [
    "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fd00::1",
    "fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    "ff02::1", "fec0::1", "64:ff9b:1::7f00:1", "64:ff9b:1::808:808", "::127.0.0.1", "::8.8.8.8",
    "::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8", "5f00::1", "4000::1", "3fff::1", "192.88.99.1",
    "64:ff9b::a9fe:a9fe", "100::1", "2001:db8::1", "2001::a9fe:a9fe", "2001:0:808:808::",
    "2001:1::1", "2001:20::1", "192.0.0.1", "192.0.0.9", "192.0.0.192", "::ffff:192.0.0.192",
    "2002:c000:c0::", "64:ff9b::192.0.0.192", "::192.0.0.192", "168.63.129.16",
    "::ffff:168.63.129.16", "2002:a83f:8110::", "64:ff9b::168.63.129.16", "::168.63.129.16",
    "100.100.100.200", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "240.0.0.1",
]  # fmt: skip


@pytest.fixture
def other() -> Iterator[WebServer]:
    """A second server, on the name `localhost`, where the first one is on 127.0.0.1."""
    with web_server() as server:
        server.endpoint_url = server.endpoint_url.replace("127.0.0.1", "localhost")
        yield server


def read(uri: str, hosts: HostRules) -> bytes:
    with open_binary(uri, StoreOptions(policy=QUICK, hosts=hosts)) as file:
        return file.read()


def refusal(uri: str, hosts: HostRules) -> str:
    with pytest.raises(FetchError) as caught:
        read(uri, hosts)
    assert (caught.value.kind, caught.value.retryable) == ("refused_host", False)
    return str(caught.value)


def test_addresses_of_the_internet_are_public_and_inner_ones_are_not() -> None:
    public = [
        "8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "2002:808:808::", "64:ff9b::808:808",
        "192.0.1.1", "168.63.129.17", "2001:200::1", "2001:4860:4860::8888",
    ]  # fmt: skip
    assert [text for text in INNER + public if is_public(ipaddress.ip_address(text))] == public


def test_the_user_may_name_this_machine_and_a_manifest_from_elsewhere_not(web: WebServer) -> None:
    web.files["a"] = b"secret"
    for host in ("127.0.0.1", "localhost", "2130706433", "127.1", "0x7f.0.0.1"):
        uri = web.url("a").replace("127.0.0.1", host)
        assert "list the host in source.allow_hosts" in refusal(uri, FROM_ELSEWHERE)
    assert web.requests == []
    assert read(web.url("a"), HostRules()) == b"secret"


def test_a_redirect_into_this_network_or_to_a_file_is_refused(
    web: WebServer, other: WebServer
) -> None:
    other.files["b"] = b"secret"
    inner = ("http://169.254.169.254/latest", "http://[::1]:9/x", "file:///etc/passwd")
    for target in (other.url("b"), *inner):
        web.redirects["a"] = target
        refusal(web.url("a"), HostRules())
    assert other.requests == []


def test_redirects_within_a_host_and_to_listed_ones_are_followed(
    web: WebServer, other: WebServer
) -> None:
    other.files["c"] = b"data"
    web.redirects |= {"a": "/b", "b": other.url("c")}
    own = HostRules(own_hosts=("127.0.0.1", "localhost"))
    listed = HostRules(listed=("127.0.0.0/8", "LOCALHOST"))
    assert read(web.url("a"), own) == read(web.url("a"), listed) == b"data"
    other.redirects["c"] = other.url("c")
    with pytest.raises(FetchError, match="redirects"):
        read(web.url("a"), own)


def test_who_may_be_asked_may_redirect_to_itself(web: WebServer, other: WebServer) -> None:
    # To https, to another port, or to a signed address of the same host.
    other.files["c"] = b"data"
    same = other.url("c").replace("localhost", "127.0.0.1")
    web.redirects |= {"a": "/b?signed=1", "b": same, "d": other.url("c")}
    for rules in (ANY_NAMED_HOST, HostRules(), HostRules(listed=("127.0.0.1",))):
        assert read(web.url("a"), rules) == b"data"
    assert web.requests
    # Whether it may be asked at all is another question.
    refusal(web.url("a"), FROM_ELSEWHERE)
    refusal(web.url("a"), HostRules(listed=("example.org",)))
    # What a call was given is asked in any case; where it leads, its list says.
    assert read(web.url("a"), HostRules.of_call("example.org")) == b"data"
    message = refusal(web.url("d"), HostRules.of_call(None))
    assert "transcribe --set allow_hosts=HOST" in message
    assert read(web.url("d"), HostRules.of_call(["local*"])) == b"data"
    for wrong in (5, [5], {"localhost": 1}):
        with pytest.raises(ConfigError, match="reading allow_hosts: found"):
            HostRules.of_call(wrong)


def test_a_name_is_judged_by_the_addresses_it_leads_to(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = socket.getaddrinfo

    def lie(host: str, *arguments: Any, **options: Any) -> Any:
        return found("127.0.0.1" if host == "innocent.example.org" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lie)
    web.files["a"] = b"secret"
    uri = web.url("a").replace("127.0.0.1", "innocent.example.org")
    assert "innocent.example.org, which is 127.0.0.1" in refusal(uri, FROM_ELSEWHERE)
    # Connections made on the user's word are not lent to others.
    assert read(uri, HostRules()) == b"secret"
    refusal(uri, FROM_ELSEWHERE)


def test_a_list_of_hosts_admits_nothing_else() -> None:
    rules = HostRules(listed=("a.example.org", "*.cdn.example.org", "10.1.0.0/16", "fd00::/8"))
    for host in ("a.example.org", "A.Example.org.", "x.cdn.example.org", "10.1.2.3", "fd00::1"):
        assert rules.verdict(host, redirected=True) is Verdict.ADMITTED
    for host in ("b.example.org", "cdn.example.org", "10.2.0.1", "8.8.8.8", "xa.example.org"):
        assert rules.verdict(host, redirected=False) is Verdict.REFUSED


def test_the_rules_of_a_source() -> None:
    own = HostRules.of(SourceSettings(uri=("https://Media.example.org:8443/a.mp3", "s3://b/c")))
    assert own == HostRules(own_hosts=("media.example.org",))
    local = HostRules.of(SourceSettings(manifest=("/lists/m.csv",)))
    assert local.verdict("intranet", redirected=False) is Verdict.ADMITTED
    assert local.verdict("intranet", redirected=True) is Verdict.IF_PUBLIC
    remote = HostRules.of(SourceSettings(manifest=("https://intranet/m.csv",), allow_hosts=None))
    assert remote.verdict("intranet", redirected=False) is Verdict.ADMITTED
    assert remote.verdict("other", redirected=False) is Verdict.IF_PUBLIC
    assert remote.verdict("10.0.0.1", redirected=False) is Verdict.REFUSED
    assert not HostRules.of(SourceSettings(manifest=("s3://b/m.csv",))).trusted_names


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "/etc/passwd", "FILE://localhost/etc/passwd", "local:///etc/x"]
)
def test_a_manifest_from_elsewhere_cannot_name_files_here(memory: str, uri: str) -> None:
    manifest = f"{memory}/m.jsonl"
    write_atomic(manifest, b'{"uri": "a.mp3"}\n' + json.dumps({"uri": uri}).encode())
    with pytest.raises(ConfigError, match=r"m\.jsonl, line 2: found .*source|local copy"):
        list(FileListing(SourceSettings(manifest=(manifest,))))
    if not uri.startswith("local"):
        [batch] = FileListing(SourceSettings(manifest=(manifest,), allow_local_files=True))
        assert batch["uri"].to_pylist()[1] in ("/etc/passwd", "/etc/x")


def test_which_stores_a_manifest_from_elsewhere_may_name() -> None:
    fine = ("s3://other/a", "https://example.org/a", "sftp://host/other")
    refused = (
        "sftp://elsewhere/a", "ftp://host/a", "memory://a", "zip://a.zip", "git://a",
        "reference://a",
    )  # fmt: skip
    for uri in fine + refused:
        allowed = may_name("sftp://host/m.csv", uri, allow_local_files=False)
        assert allowed is (uri in fine), uri
        assert may_name("/lists/m.csv", uri, allow_local_files=False)


def test_a_relative_address_cannot_leave_its_store() -> None:
    for steps in (1, 2, 3, 9):
        with pytest.raises(ConfigError, match="a path out of the store"):
            resolve("../" * (steps + 1) + "x/../../../../etc/passwd", folder="s3://bucket/lists")
    assert resolve("../a", folder="s3://bucket/lists") == "s3://bucket/a"


def test_what_is_far_too_large_for_a_manifest_is_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("m.jsonl", '{"uri": "' + "a" * 10_000 + '"}', "uri of 10000 characters"),
        ("m.jsonl", '{"uri": "a", "b": "' + "x" * 70_000 + '"}', "further columns of"),
        ("m.jsonl", '{"uri": "a", "b": ' + "[" * 100_000, "line 1: found JSON nested too deep"),
        ("m.jsonl", '{"uri": "a", "b": ' + "[" * 900 + "]" * 900 + "}", "nested too deep"),
        ("m.jsonl", " " * (5 << 20), "line 1: found a longer line"),
        ("m.csv", "uri\n" + "a" * 200_000, "field larger than|a uri of 200000 characters"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match=message):
            [row.metadata() for row in read_manifest(str(tmp_path / name))]


def test_the_note_of_tables_leads_to_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim.parquet"
    victim.write_bytes(b"mine")
    store = OutputStore(str(tmp_path / "out"))
    commit(store, results(part("a", 0, texts=["x"])))
    for name in ("../victim.parquet", "outcomes/../../victim.parquet", "/victim.parquet"):
        noted = {"tables": {name: {}}, "merged": [name], "closed_runs": {}, "settled": [name]}
        store.write_json(TABLES_NAME, noted)
        with suppress(CorpusAsrError):  # which says that it leads out of the folder
            with RunTables(store, opened="false") as tables:
                store.replace(*merge_parts(store, tables, None))
            store.remove_leftovers()
    assert victim.read_bytes() == b"mine"


def test_no_link_leads_out_of_the_output_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "names.csv").write_text("secret")
    folder = tmp_path / "real"
    (folder / "inside").mkdir(parents=True)
    (folder / "corrections").symlink_to(elsewhere)
    (folder / "speakers.csv").symlink_to(elsewhere / "names.csv")
    (folder / "dangling.json").symlink_to(elsewhere / "none.json")
    (folder / "up").symlink_to("..")
    (folder / "kept").symlink_to("inside")
    (tmp_path / "output").symlink_to(folder)
    store = OutputStore(str(tmp_path / "output"))
    for name in (
        "corrections/a.json", "corrections/deep/a.json", "speakers.csv", "dangling.json",
        "up/elsewhere/a.json", "up/a.json",
    ):  # fmt: skip
        for use in (
            lambda name: store.write_bytes(name, b"x"), store.read_json, store.exists, store.remove
        ):  # fmt: skip
            with pytest.raises(CorpusAsrError, match="a symbolic link leads out of the folder"):
                use(name)
    with pytest.raises(CorpusAsrError, match="a symbolic link leads out of the folder"):
        list(store.all_names("corrections"))
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["deep", "names.csv"]
    assert (elsewhere / "names.csv").read_text() == "secret"
    # The folder may be a link, and links within it stay in it.
    store.write_json("kept/a.json", {})
    assert (folder / "inside" / "a.json").exists()
    assert store.read_json("kept/a.json") == {}


def test_no_name_leads_out_of_the_output_folder(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path / "out"))
    uses = (store.remove, store.exists, store.read_json, lambda name: store.write_bytes(name, b""))
    for use, name in itertools.product(uses, ("../x", "a/../../x", "/x", "file:///x", "a/\0")):
        with pytest.raises(CorpusAsrError, match="leads out of the folder"):
            use(name)
    assert store.address("a..b/..c") == f"{tmp_path}/out/a..b/..c"
