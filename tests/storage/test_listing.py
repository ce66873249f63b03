"""Which files a source names, in which order, and what it says of them."""

import errno
import fnmatch
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.extraction import SpeakerSettings
from corpus_asr.config.run import SourceSettings
from corpus_asr.config.storage_options import parsed
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.schemas import FILES
from corpus_asr.storage.listing import FileListing, glob_regex
from corpus_asr.storage.stores import filesystem, fsspec_store
from corpus_asr.storage.stores import s3 as s3_module
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    list_objects,
    open_binary,
    read_bytes,
    write_atomic,
)
from corpus_asr.storage.stores.store import TIMED, RetryPolicy, may_be_same
from corpus_asr.storage.stores.uri import normalize, recording_id
from tests.support.audio import wav_of
from tests.support.stores import S3Server, WebServer

TREE = (
    "a.mp3", "b.WAV", ".hidden.mp3", "notes.TXT", "sub/c.mp3", "sub/deep/d.mp3", "sub/x [1].mp3",
)  # fmt: skip


def names(source: SourceSettings, base: str) -> list[str]:
    return [row["uri"].removeprefix(base + "/") for row in rows(source)]


def rows(source: SourceSettings) -> list[dict]:
    batches = list(FileListing(source))
    assert all(batch.schema.equals(FILES, check_metadata=True) for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture
def tree(place: tuple[str, StoreOptions]) -> Callable[..., SourceSettings]:
    """`TREE` in each kind of store; makes sources of what is appended to its address."""
    base, options = place
    for name in TREE:
        write_atomic(f"{base}/{name}", name.encode(), options)

    def source(*below: str, **settings: Any) -> SourceSettings:
        uris = tuple(base + path for path in below)
        storage = parsed({"endpoint_url": options.endpoint_url})
        return SourceSettings(uri=uris, storage_options=storage, **settings)

    return source


Tree = Callable[..., SourceSettings]


def test_files_folders_and_globs(tree: Tree) -> None:
    [base] = tree("").uri
    below = {"sub/c.mp3", "sub/deep/d.mp3", "sub/x [1].mp3"}
    for pattern, expected in {
        "": {"a.mp3", "b.WAV", *below},
        "/": {"a.mp3", "b.WAV", *below},
        "/sub": below,
        "/*.mp3": {"a.mp3"},
        "/**/*.mp3": {"a.mp3", *below},
        "/.hidden.mp3": {".hidden.mp3"},
        "/sub/**": below,
        "/*/*.mp3": {"sub/c.mp3", "sub/x [1].mp3"},
        "/s*/deep/?.mp3": {"sub/deep/d.mp3"},
        "/[!a].WAV": {"b.WAV"},
        "/sub/x [1].mp3": {"sub/x [1].mp3"},  # exists: no glob
        "/sub/x [[]?].mp3": {"sub/x [1].mp3"},
        "/notes.TXT": {"notes.TXT"},  # named in full: not filtered
    }.items():
        found = names(tree(pattern), base)
        assert sorted(found) == sorted(expected), pattern
        assert names(tree(pattern), base) == found  # stable


def test_rows_say_size_version_and_identity(tree: Tree) -> None:
    row = rows(tree("/sub/*.mp3"))[0]
    assert (row["uri"],) == tree("/sub/c.mp3").uri
    assert row["recording_id"] == recording_id(row["uri"])
    assert row["size_bytes"] == len("sub/c.mp3")
    assert row["etag"]
    assert '"' not in row["etag"]
    assert row["metadata"] is None
    assert rows(tree("/sub/c.mp3")) == [row]  # found the other way, it is the same


def test_local_versions_follow_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(b"123")
    status = path.stat()
    [row] = rows(SourceSettings(uri=(f"file://{path}",)))
    assert row["etag"] == f"3-{status.st_mtime_ns}"
    assert row["uri"] == str(path)
    for scheme in ("local", "LOCAL", "file"):
        assert rows(SourceSettings(uri=(f"{scheme}://{path}",))) == [row]


def test_what_is_left_out_is_counted(tree: Tree) -> None:
    found = FileListing(tree("", exclude=("*.MP3",)))
    assert sum(batch.num_rows for batch in found) == 1
    assert (found.num_excluded, found.num_ignored, len(found.silent)) == (4, 2, 0)
    found = FileListing(tree("", ignore=()))
    assert sum(batch.num_rows for batch in found) == len(TREE) - 1
    assert (found.num_excluded, found.num_ignored, len(found.silent)) == (0, 0, 1)


def test_what_is_no_recording_is_ignored_unless_it_is_named(
    place: tuple[str, StoreOptions],
) -> None:
    base, options = place
    ignored = (
        "._a.mp3", ".DS_Store", "Thumbs.db", "desktop.ini", "_SUCCESS", "2024_$folder$", ".gitkeep",
        "b.mp3.part", "c.mp3.crdownload", "all.m3u", "ALL.M3U8", "list.pls", "notes.docx",
        "cover.webp", ".git/objects/ab", "__MACOSX/a.mp3", ".trash/old.mp3",
        "deep/_temporary/0/a.mp3", "notes.ODT", "~$notes.docx", ".~lock.notes.odt#", "old.zip",
        "set.tar.gz", "set.TGZ", "x.rar", "x.7z", "x.iso", "x.tmp", "x.wav~", "x.wav.bak",
        "x.opdownload", "x.mp3.!ut", "x.aria2", "x.sqlite", "talk.reapeaks", "talk.aup3",
        "README", "Makefile", "Icon\r", "slides.pptm", "talk.ssa", "lost+found/1",
        "System Volume Information/x.mp3", "$RECYCLE.BIN/$I1.wav", "@eaDir/a.mp3@SynoEAStream",
        "@eaDir/a.mp3/x.mp3", "a.m4a.part-Frag12", "a.m4a.part-Frag12.part", "a.m4a.icloud",
        "a.m4a.download/a.m4a", "a.mp3.partial", "a.mp3.aria2__temp", "~syncthing~a.mp3.tmp",
        "a.mp3.lftp-pget-status", "a.mp3_.gstmp", "a.mp3.bc!", "a.mp3.xltd", "a.mp3.fdmdownload",
        "INCOMPLETE~a.mp3", ".a.mp3.Xa1b2C", ".dropbox.cache/a.mp3", "a.mp3.cloudf", "a.mp3.mega",
        "MD5SUMS", "a.peak", "a.gpk", "a.mp3.gpg", "a.edl", "a.mp3.meta", "_metadata", "empty",
        "a.mp3.uploading", "x.temp.m4a", "a.mp3-Frag3", "GX010042.LRV", "a.mp3.converting",
    )  # fmt: skip
    recordings = (
        "a.mp3", "_b.mp3", "deep/part.of/c.mp3", "d", "hidden.m4b", "e.tar.wav", "readme/a.mp3",
        "old/a.mp3", "icloud.m4a", "part-Frag12.mp3", "a (conflicted copy).mp3", "x.ts",
        "zip.mp3", "1.mod", "voice.bin", "a~b.wav", "System Volume/x.mp3", "good.wav.old",
        "z.wav~", "rec.0", "README.1",
    )  # fmt: skip
    for name in ignored:
        # What is known by name may well be sound.
        is_named = re.search(r"part|mp3$|temp|Frag|LRV|\.\w*load|!ut|converting|^\._|xltd", name)
        content = b"" if name == "empty" else wav_of("x") if is_named else b"x\0\x80\xff" * 99
        write_atomic(f"{base}/in/{name}", content, options)
    for name in recordings:
        write_atomic(f"{base}/in/{name}", b"x" if name.endswith("mp3") else wav_of("x"), options)

    def listed(below: str) -> tuple[list[str], int]:
        uri = f"{base}/in{below}"
        storage = parsed({"endpoint_url": options.endpoint_url})
        listing = FileListing(SourceSettings(uri=(uri,), storage_options=storage))
        uris = [uri for batch in listing for uri in batch["uri"].to_pylist()]
        num_others = listing.num_ignored + len(listing.silent)
        return sorted(uri.removeprefix(f"{base}/in/") for uri in uris), num_others

    assert listed("") == (sorted(recordings), len(ignored))
    assert listed("/**") == (sorted(recordings), len(ignored))
    assert listed("/.trash/") == ([".trash/old.mp3"], 0)
    assert listed("/.trash/*.mp3") == ([".trash/old.mp3"], 0)
    assert listed("/._a.mp3") == (["._a.mp3"], 0)
    assert listed("/MD5SUMS") == (["MD5SUMS"], 0)


def test_what_has_no_media_name_is_read_once_unless_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def note(uri: str, *rest: Any, **options: Any) -> Any:
        opened.append(uri)
        return open_binary(uri, *rest, **options)

    monkeypatch.setattr(filesystem, "open_binary", note)
    for name, content in {"a": b"junk", "b": wav_of("x"), "c": wav_of("x"), "d.wav": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    known = recording_id(f"{tmp_path}/c")
    listing = FileListing(SourceSettings(uri=(str(tmp_path),)), known=lambda ids: {known} & {*ids})
    uris = [uri for batch in listing for uri in batch["uri"].to_pylist()]
    assert [uri[-1] for uri in uris] == ["b", "c", "v"]
    assert sorted(uri[-1] for uri in opened) == ["a", "b"]
    # What cannot be read is a failure of its own later.
    monkeypatch.setattr(filesystem, "open_binary", fail_to_open)
    assert len(rows(SourceSettings(uri=(str(tmp_path),)))) == 4


def fail_to_open(uri: str, *_: Any, **__: Any) -> Any:
    raise FetchError("reading: denied", uri=uri)


@pytest.mark.parametrize(
    ("pattern", "left"),
    [("*/in2/*", "01"), ("in2/*", "01"), ("in2/", "01"), ("IN2/C.*", "013"), ("*2*", "0123"),
     ("{base}/a/*", ""), ("a", "0123"), ("a/x/*", "0123"), ("?.mp3", "")],
)  # fmt: skip
def test_an_exclusion_with_a_slash_is_of_addresses(tree: Tree, pattern: str, left: str) -> None:
    """Before: it matched nothing ever, without a word."""
    [base] = tree("").uri
    names_of = ["a/0.mp3", "a/1.mp3", "a/in2/c.mp3", "a/in2/deep/d.mp3"]
    storage = StoreOptions(storage=tree("").bound_options)
    for name in names_of:
        write_atomic(f"{base}/y/{name}", b"x", storage)
    base = f"{base}/y"
    expected = [names_of[int(number)] for number in left]
    source = tree("/y", exclude=(pattern.replace("{base}", base),))
    assert sorted(names(source, base)) == expected


def test_places_without_recordings_stop_nothing(tree: Tree) -> None:
    base = tree("").uri[0]
    for pattern in ("/*.flac", "/sub/deep/*.TXT", "/*.TXT"):
        found = FileListing(tree(pattern, ""))
        assert sum(batch.num_rows for batch in found) == 5
        assert found.empty == [base + pattern]
    with pytest.raises(ConfigError, match=r"files that match the glob; correct source\.uri or"):
        rows(tree("/*.TXT", require_files=True))
    if "://" in base:  # stores do not tell an empty folder from one that is not there
        found = FileListing(tree("/nothing", "/nothing/"))
        assert (list(found), found.empty) == ([], [f"{base}/nothing", f"{base}/nothing/"])


def test_a_place_that_is_not_there_is_a_configuration_error(tree: Tree) -> None:
    base = tree("").uri[0]
    patterns = ["/nothing.mp3"]
    if "://" not in base:
        patterns += ["/nothing", "/nothing/", "/nothing/*.mp3"]
    for pattern in patterns:
        source = tree("", pattern)
        with pytest.raises(ConfigError, match="found nothing, expected a file") as caught:
            rows(source)
        assert source.uri[1].rstrip("/") in str(caught.value)


def test_files_named_by_several_addresses_are_listed_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(wav_of("x"))
    found = FileListing(
        SourceSettings(uri=(f"{tmp_path}/b", str(tmp_path), f"file://{tmp_path}/", f"{tmp_path}/?"))
    )
    uris = [uri for batch in found for uri in batch["uri"].to_pylist()]
    assert [Path(uri).name for uri in uris] == ["b", "a", "c"]
    assert found.num_duplicates == 7


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "real.mp3").write_bytes(b"x")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.mp3").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    listing = FileListing(SourceSettings(uri=(str(linked),)))
    [row] = pa.Table.from_batches(listing).to_pylist()
    assert (Path(row["uri"]).name, row["size_bytes"]) == ("real.mp3", 1)
    assert (listing.num_dangling, listing.num_ignored) == (1, 0)


def test_rows_of_manifests_that_are_written_as_for_another_place_are_counted(
    tmp_path: Path,
) -> None:
    for name in (r"a\b.wav", "c .wav", r"\xff.wav", "d.wav"):
        (tmp_path / name).write_bytes(b"x")
    odd = [r"a\c.wav", r"C:\talks\a.wav", "~/a.wav", " a.wav", "a.wav ", " s3://bucket/a.wav"]
    fine = [r"a\b.wav", "c .wav", r"\xff.wav", "d.wav", "a~b.wav", "s3://bucket/a b.wav"]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in [*odd, *fine]))
    listing = FileListing(SourceSettings(manifest=(str(manifest),)))
    assert sum(batch.num_rows for batch in listing) == len(odd) + len(fine)
    assert listing.num_odd == len(odd)
    assert listing.odd == [f"{tmp_path}/{uri}" for uri in odd[:3]]


def fail_to_scan(monkeypatch: pytest.MonkeyPatch, name: str, error: OSError) -> None:
    scandir = os.scandir

    def scan(folder: str) -> Any:
        if folder.endswith(name):
            raise error
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)


def test_an_entry_that_cannot_be_looked_at_does_not_end_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp3").write_bytes(b"x")
    (tmp_path / "self.mp3").symlink_to("self.mp3")
    (tmp_path / "to").symlink_to("fro")
    (tmp_path / "fro").symlink_to("to")
    (tmp_path / "closed").mkdir()
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "z.mp3").write_bytes(b"x")
    # The superuser is refused nothing.
    fail_to_scan(monkeypatch, "closed", PermissionError(errno.EACCES, "Permission denied"))
    listing = FileListing(SourceSettings(uri=(str(tmp_path),), exclude=()))
    found = pa.Table.from_batches(listing).to_pylist()
    sizes = {row["uri"].removeprefix(f"{tmp_path}/"): row["size_bytes"] for row in found}
    assert sizes == {"a.mp3": 1, "closed/*": None, "z/z.mp3": 1}
    assert listing.num_dangling == 3
    with pytest.raises(FetchError):
        open_binary(str(tmp_path / "self.mp3"))


def test_a_folder_that_cannot_be_listed_stands_where_the_glob_leads_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open", "closed"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "a.mp3").write_bytes(b"x")
        (tmp_path / name / "list.csv").write_text("uri\na.mp3\n")
    fail_to_scan(monkeypatch, "closed", PermissionError(errno.EACCES, "Permission denied"))
    base, file = str(tmp_path), "open/deep/a.mp3"
    for glob, expected in {
        "*/*/*.mp3": ["closed/*", file], "**/a.mp3": ["closed/*", file],
        "c*/d*/**": ["closed/*"], "o*/*/*.mp3": [file],
    }.items():  # fmt: skip
        assert names(SourceSettings(uri=(f"{base}/{glob}",)), base) == expected, glob
    # Recordings of a manifest that may be there are not told from those that are gone.
    with pytest.raises(FetchError, match=r"closed/\*"):
        rows(SourceSettings(manifest=(f"{base}/*/*.csv",)))


@pytest.mark.parametrize("error", [PermissionError("denied"), FileNotFoundError("hidden")])
def test_a_folder_of_another_store_that_cannot_be_listed_is_not_empty(
    memory: str, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    for name in ("a/1.mp3", "b/2.mp3", "c/d/3.mp3"):
        write_atomic(f"{memory}/{name}", b"x")
    listed, raised = MemoryFileSystem.ls, iter([error])

    def ls(self: MemoryFileSystem, path: str, detail: bool = True, **options: Any) -> Any:
        if path.endswith("/b") and (failure := next(raised, None)):
            raise failure
        return listed(self, path, detail=detail, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    assert names(SourceSettings(uri=(memory,)), memory) == ["a/1.mp3", "b/*", "c/d/3.mp3"]
    # One that fails for the moment is asked again.
    options = StoreOptions(policy=RetryPolicy(attempts=2, first_wait_s=0.001))
    raised = iter([OSError(errno.EIO, "broken")])
    assert len(list(list_objects(memory, options))) == 3
    raised = iter([OSError(errno.EIO, "broken")] * 2)
    with pytest.raises(FetchError, match="broken"):
        list(list_objects(memory, options))


@pytest.mark.parametrize("place", ["folder on S3", "named on S3", "named on the web", "memory"])
def test_an_etag_of_several_objects_is_none_and_their_times_tell_of_changes(
    s3: S3Server,
    bucket: str,
    web: WebServer,
    memory: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a gateway whose operator set one ETag: an overwritten object was seen as unchanged."""
    monkeypatch.setattr(fsspec_store, "_VERSION_KEYS", ("type",))  # of each the same
    ask = s3_module.S3Store._ask

    async def with_one_etag(self: Any, client: Any, method: str, **parameters: Any) -> Any:
        answer = await ask(self, client, method, **parameters)
        for entry in (answer, *answer.get("Contents", ())):
            entry["ETag"] = '"constant"'
        return answer

    monkeypatch.setattr(s3_module.S3Store, "_ask", with_one_etag)
    base = {"memory": memory, "named on the web": web.endpoint_url}.get(place, f"s3://{bucket}/in")

    def put(name: str, content: bytes, time: int) -> None:
        if place == "named on the web":
            web.files[name], web.etags[name], web.times[name] = content, "constant", f"at {time}"
        else:
            write_atomic(f"{base}/{name}", content, s3.options)

    def listed(*names: str) -> dict[str, str | None]:
        uris = tuple(f"{base}/{name}" for name in names) if "named" in place else (f"{base}/",)
        storage = parsed({"endpoint_url": s3.endpoint_url} if "S3" in place else {})
        found = rows(SourceSettings(uri=uris, storage_options=storage))
        return {row["uri"].removeprefix(f"{base}/"): row["etag"] for row in found}

    put("a.mp3", b"content", 1)
    assert TIMED not in str(listed("a.mp3")["a.mp3"]), "of one object nothing can be said"
    put("b.mp3", b"content", 1)
    before = listed("a.mp3", "b.mp3")
    time.sleep(1.1)  # some times are of whole seconds
    put("b.mp3", b"another", 2)
    after = listed("a.mp3", "b.mp3")
    assert [name for name in after if after[name] != before[name]] == ["b.mp3"]
    # To a process that takes it for one the object is the same.
    assert may_be_same(str(before["a.mp3"]).partition(TIMED)[0], before["a.mp3"])
    assert not may_be_same(before["b.mp3"], after["b.mp3"])


def test_a_folder_that_fails_for_the_moment_ends_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stale").mkdir()
    fail_to_scan(monkeypatch, "stale", OSError(errno.ESTALE, "Stale file handle"))
    with pytest.raises(FetchError, match="Stale file handle"):
        rows(SourceSettings(uri=(str(tmp_path),)))


def test_a_name_that_is_no_utf8_is_listed_by_an_escape_and_found_again(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xf6\xff")
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.mp3")).write_bytes(b"latin")
    (tmp_path / r"caf\xe9.mp3").write_bytes(b"literal")
    names = (r"caf\xe9.mp3", r"f\xf6\xff/caf\xe9.mp3")
    listed = rows(SourceSettings(uri=(str(tmp_path),)))
    assert [row["uri"] for row in listed] == [f"{tmp_path}/{name}" for name in names]
    for row, content in zip(listed, (b"literal", b"latin"), strict=True):
        assert read_bytes(row["uri"]) == content
        again = rows(SourceSettings(uri=(row["uri"],)))
        assert again == [row]
    assert rows(SourceSettings(uri=(normalize(str(folder)),))) == listed[1:]
    assert rows(SourceSettings(uri=(normalize(str(folder / "*.mp3")),))) == listed[1:]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"num_speakers": 0}, "num_speakers 0"),
        ({"max_speakers": 51}, "max_speakers 51"),
        ({"num_speakers": "two"}, "num_speakers 'two'"),
        ({"min_speakers": 2.5}, "min_speakers 2.5"),
        ({"num_speakers": True}, "num_speakers True"),
        ({"num_speakers": 2, "max_speakers": 3}, "num_speakers 2 and max_speakers 3"),
        ({"min_speakers": 3, "max_speakers": 2}, "min_speakers 3 and max_speakers 2"),
        ({"min_speakers": 5}, "min_speakers 5 and max_speakers 4"),  # with the job's
    ],
)
def test_a_row_with_a_wrong_number_of_speakers_is_named(tmp_path: Path, columns, found) -> None:
    manifest = tmp_path / "list.jsonl"
    rows = [{"uri": "a.wav", "num_speakers": 2.0}, {"uri": "b.wav", **columns}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceSettings(manifest=(str(manifest),))
    speakers = SpeakerSettings(mode="auto", max_speakers=4)
    with pytest.raises(ConfigError, match=re.escape(f"line 2: found {found}, expected whole")):
        list(FileListing(source, speakers=speakers))
    # Jobs that look for no speakers do not read the column.
    [batch] = FileListing(source, speakers=SpeakerSettings())
    assert batch.num_rows == 2


def test_what_a_manifest_holds_is_encodable(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    row = {"uri": "/a\ud800.mp3", "title": "\udcff\0", "list": [{"\ud801": "x"}]}
    manifest.write_text(json.dumps(row))
    [listed] = rows(SourceSettings(manifest=(str(manifest),)))
    assert listed["uri"] == r"/a\ud800.mp3"
    metadata = {"title": "\\udcff\0", "list": [{r"\ud801": "x"}]}
    assert json.loads(listed["metadata"]) == metadata


def test_web_files_are_named_in_full_and_keep_their_identity(web: WebServer) -> None:
    web.files["a b.mp3"], web.etags["a b.mp3"] = b"123", "v1"
    url = web.url("a b.mp3")
    uris = tuple(f"{url}?X-Amz-Signature={signature}" for signature in ("one", "two"))
    [row] = rows(SourceSettings(uri=uris))
    assert (row["uri"], row["recording_id"]) == (uris[0], recording_id(url))
    assert (row["size_bytes"], row["etag"]) == (3, "v1")
    with pytest.raises(ConfigError, match="no folders or globs"):
        rows(SourceSettings(uri=(web.url("missing*"),)))


def test_refused_listings_are_no_empty_ones(web: WebServer, s3: S3Server) -> None:
    del s3
    web.refused_methods |= {"HEAD", "GET"}
    storage = parsed({"endpoint_url": web.endpoint_url})
    source = SourceSettings(uri=("s3://bucket/prefix",), storage_options=storage)
    with pytest.raises(FetchError) as caught:
        rows(source)
    assert caught.value.kind == "access_denied"


def test_long_listings_come_in_pages(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PAGE_KEYS", 10)
    expected = [s3.put(bucket, f"many/{index:04d}.mp3", b"") for index in range(35)]
    s3.put(bucket, "many/", b"")  # a folder's placeholder
    storage = parsed({"endpoint_url": s3.endpoint_url})
    found = rows(SourceSettings(uri=(f"s3://{bucket}/many",), storage_options=storage))
    assert [row["uri"] for row in found] == expected


@given(st.text(alphabet="ab*?[]!^-|&.\\", max_size=8), st.text(alphabet="ab-!^|&.\\]", max_size=6))
def test_one_step_globs_agree_with_fnmatch(pattern: str, name: str) -> None:
    if "**" in pattern or "[^" in pattern:
        return  # fnmatch knows neither
    ours = re.fullmatch(glob_regex(pattern), name, re.DOTALL) is not None
    assert ours == fnmatch.fnmatchcase(name, pattern)


def test_missing_files_are_listed_and_repeated_ones_once(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"uri": "gone.mp3", "n": 1}\n{"uri": "./gone.mp3"}\n')
    found = FileListing(SourceSettings(manifest=(str(tmp_path / "m.jsonl"),)))
    [batch] = list(found)
    assert batch.to_pylist() == [
        {
            "recording_id": recording_id(f"{tmp_path}/gone.mp3"),
            "uri": f"{tmp_path}/gone.mp3",
            "size_bytes": None,
            "etag": None,
            "metadata": '{"n": 1}',
        }
    ]
    assert found.num_duplicates == 1
