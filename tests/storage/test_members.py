"""Recordings in tar archives: listed by headers, opened by ranges, told apart when damaged."""

import gzip
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import AlignmentError, ConfigError, FetchError
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.manifest import aligned_text, read_manifest
from corpus_asr.storage.run_state.own_sources import source_folders
from corpus_asr.storage.shards import MemberPlaces
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    describe,
    exists,
    open_binary,
    read_bytes,
    write_atomic,
)
from corpus_asr.storage.stores.host_allowlist import FileRules
from corpus_asr.storage.stores.uri import located, member_address, public, recording_id
from tests.support.audio import wav_of
from tests.support.stores import S3Server, web_server

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "manifests.md"
LONG = f"{'n' * 150}/clip.wav"
BIG = 300_000


def tar_bytes(files: Iterable[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tar_format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def archived(*members: tuple[str, bytes | str, bytes], end: int = 1024) -> bytes:
    """Return a tar file of members, whose types are a file's or a link's, with an end mark."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
            info.size = 0 if isinstance(content, str) else len(content)
            tar.addfile(info, io.BytesIO(b"" if isinstance(content, str) else content))
        length = data.tell()
    return data.getvalue()[:length] + bytes(end)


def listed(uri: str, **settings: Any) -> list[dict[str, Any]]:
    listing = FileListing(SourceSettings(uri=(uri,), **settings))
    return [row for batch in listing for row in batch.to_pylist()]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_recordings_with_an_address_a_size_and_a_version(
    tmp_path: Path, tar_format: int
) -> None:
    files = [("a/1.wav", b"x" * BIG), ("./2.flac", b"two"), ("größe ü.mp3", b"3"), (LONG, b"4")]
    shard = tmp_path / "in" / "shard-0.tar"
    shard.parent.mkdir()
    shard.write_bytes(tar_bytes(files, tar_format))
    names = ["a/1.wav", "2.flac", "größe ü.mp3", LONG]
    for uri in (str(shard), str(shard.parent), f"{shard.parent}/*.tar", f"file://{shard}"):
        rows = listed(uri)
        assert [row["uri"] for row in rows] == [f"{shard}#{name}" for name in names]
    for row, (_, content) in zip(rows, files, strict=True):
        assert row["size_bytes"] == len(content)
        assert row["recording_id"] == recording_id(row["uri"])
        assert row["etag"].startswith(describe(str(shard)).etag)
        # By its address alone, and at once where the listing says it lies.
        assert read_bytes(row["uri"]) == content
        assert read_bytes(located(row["uri"], row["etag"])) == content
        found = describe(row["uri"])
        assert (found.size_bytes, found.etag) == (row["size_bytes"], row["etag"])
        [again] = listed(row["uri"])
        assert again == row


def test_siblings_of_a_sample_are_its_metadata(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(
        tar_bytes(
            [
                ("k/1.flac", b"1"),
                ("k/1.json", json.dumps({"speaker": "a", "text": "said"}).encode()),
                ("k/1.cls", b"7\n"),
                ("k/2.txt", "gesagt ä\n".encode()),
                ("k/2.left.wav", b"l"),
                ("k/2.right.wav", b"r"),
                ("k/3.wav", b"3"),
                ("k/3.json", b"{broken"),
                ("k/4.json", b"{}"),
                ("k/._5.wav", b"x"),
                ("k/6.jpg", b"x"),
                ("k/trailer_7.wav", b"x"),
            ]
        )
    )
    listing = FileListing(
        SourceSettings(uri=(str(tmp_path),), exclude=("trailer_*",), require_files=True)
    )
    rows = [row for batch in listing for row in batch.to_pylist()]
    found = {row["uri"].partition("#k/")[2]: row["metadata"] for row in rows}
    assert {name: text and json.loads(text) for name, text in found.items()} == {
        "1.flac": {"speaker": "a", "text": "said", "cls": "7"},
        "2.left.wav": {"text": "gesagt ä"},
        "2.right.wav": {"text": "gesagt ä"},
        "3.wav": None,
    }
    assert (listing.num_ignored, listing.num_excluded) == (3, 1)


def test_a_text_of_its_own_comes_before_one_among_others(tmp_path: Path) -> None:
    # Source: webdataset, `autodecode`: which endings are texts, JSON, and neither.
    inner = b'{"text": "inner", "n": 1}'
    orders = [("txt", "json"), ("json", "txt"), ("jsn", "text"), ("transcript", "json")]
    files = [(f"{at}.wav", b"x") for at in range(len(orders))]
    for at, endings in enumerate(orders):
        files += [(f"{at}.{end}", inner if end[0] == "j" else b"own") for end in endings]
        files += [(f"{at}.{end}", b"x") for end in ("npy", "cls2", "pyd", "pth")]
    files.sort(key=lambda each: each[0][0])
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    rows = listed(str(tmp_path / "s.tar"))
    assert [json.loads(row["metadata"]) for row in rows] == [{"text": "own", "n": 1}] * 4
    for row in rows:
        assert aligned_text(row["uri"], row["metadata"]).text == "own"
    with pytest.raises(AlignmentError, match=r"rename sentence to text.*") as raised:
        aligned_text(rows[0]["uri"], '{"sentence": "said"}')
    assert "or in .txt or .json of its name there" in str(raised.value)


def test_a_name_in_an_archive_is_a_name_and_never_a_path(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("../../up.wav", "/etc/abs.wav", "a/../b.wav", "b.wav", "a/b.wav", "a/b.wav"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(name[:1].encode()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"link{kind!r}.wav")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    (tmp_path / "b.wav").write_bytes(b"outside")
    (tmp_path / "s.tar").write_bytes(data.getvalue())
    rows = listed(str(tmp_path / "s.tar"))
    names = ["up.wav", "etc/abs.wav", "a/b.wav", "b.wav", "a/b~2.wav", "a/b~3.wav"]
    assert [row["uri"] for row in rows] == [f"{tmp_path}/s.tar#{name}" for name in names]
    for row, first in zip(rows, b"./abaa", strict=True):
        assert read_bytes(row["uri"]) == bytes([first])
        assert read_bytes(located(row["uri"], row["etag"])) == bytes([first])


def test_an_object_of_the_full_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_bytes([("a.wav", b"member"), ("b.wav", b"b")]))
    (tmp_path / "s.tar#a.wav").write_bytes(b"object")
    assert read_bytes(f"{tmp_path}/s.tar#a.wav") == b"object"
    assert read_bytes(f"{tmp_path}/s.tar#b.wav") == b"b"
    assert not exists(f"{tmp_path}/s.tar#c.wav")
    assert not exists(f"{tmp_path}/none.tar#c.wav")


def test_a_broken_archive_gives_what_is_whole_and_one_failure(tmp_path: Path) -> None:
    whole = tar_bytes([("a.wav", b"a" * BIG), ("b.wav", b"b" * BIG)])
    for name, data, kept, found in (
        ("cut.tar", whole[: BIG + 2048 + 1000], ["a.wav"], "it ends within b.wav"),
        ("header.tar", whole[: BIG + 1000], ["a.wav"], "no header at byte 300544"),
        ("odd.tar", whole[: BIG + 544] + b"x" * 600, ["a.wav"], "no header at byte 300544"),
        ("none.tar", b"no tar " * 200, [], "broken tar archive"),
        ("empty.tar", b"", [], "broken tar archive"),
        ("shard.tar.gz", gzip.compress(whole), [], "compressed tar archive"),
        ("named.tar", gzip.compress(whole), [], "broken tar archive"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        rows = listed(str(path))
        assert [row["uri"] for row in rows] == [f"{path}#{each}" for each in (*kept, "*")]
        assert rows[-1]["etag"] == describe(str(path)).etag  # tried again once it is replaced
        with pytest.raises(FetchError, match=found) as raised:
            open_binary(located(rows[-1]["uri"], rows[-1]["etag"]))
        assert (raised.value.kind, raised.value.retryable) == ("bad_archive", False)


def test_headers_that_claim_gigabytes_are_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5_000_000_000
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(FetchError, match="a header of 5000000"):
        open_binary(f"{tmp_path}/s.tar#a.wav")


@pytest.mark.parametrize("end", [512, 1024, 10_240, 3 << 20])
def test_what_is_behind_an_end_mark_is_read(tmp_path: Path, end: int) -> None:
    file = tarfile.REGTYPE
    parts = [archived(("a.wav", b"a" * 700, file), end=end), archived(end=end),
             archived(("b.wav", b"b", file), ("a.wav", b"again", file), end=end)]  # fmt: skip
    path = tmp_path / "s.tar"
    path.write_bytes(b"".join(parts))
    rows = listed(str(path))
    assert [row["uri"].partition("#")[2] for row in rows] == ["a.wav", "b.wav", "a~2.wav"]
    assert [read_bytes(row["uri"])[:5] for row in rows] == [b"aaaaa", b"b", b"again"]
    # What is no archive there is a failure, and so is what is cut off.
    for rest in (b"signature" * 90, parts[2][:900]):
        path.write_bytes(parts[0] + rest)
        assert listed(str(path))[-1]["uri"] == f"{path}#*"


def test_hard_links_in_an_archive_are_what_they_lead_to(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(archived(
        ("./x/a.wav", b"a" * 700, tarfile.REGTYPE), ("x/b.wav", "./x/a.wav", tarfile.LNKTYPE),
        ("c.wav", "x/b.wav", tarfile.LNKTYPE), ("d.wav", "none.wav", tarfile.LNKTYPE),
        ("e.wav", "x/a.wav", tarfile.SYMTYPE), ("pipe", b"", tarfile.FIFOTYPE),
    ))  # fmt: skip
    listing = FileListing(SourceSettings(uri=(str(path),)))
    rows = [row for batch in listing for row in batch.to_pylist()]
    assert [row["uri"].partition("#")[2] for row in rows] == ["x/a.wav", "x/b.wav", "c.wav"]
    assert {row["size_bytes"] for row in rows} == {700}
    for row in rows:
        assert read_bytes(row["uri"]) == read_bytes(located(row["uri"], row["etag"])) == b"a" * 700
    assert listing.num_dangling == 2
    with pytest.raises(FetchError, match="not found"):
        read_bytes(f"{path}#d.wav")


def test_members_without_a_media_name_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes([("MD5SUMS", b"junk"), ("rec.0", wav_of("x")), ("b.wav", b"b")]))
    listing = FileListing(SourceSettings(uri=(str(path),)))
    rows = [row for batch in listing for row in batch.to_pylist()]
    assert [row["uri"].partition("#")[2] for row in rows] == ["rec.0", "b.wav"]
    assert len(listing.silent) == 1


def test_what_follows_a_sparse_member_is_one_failure(tmp_path: Path) -> None:
    # As GNU tar 1.x writes it in its own format: a map of the pieces in the header.
    info = tarfile.TarInfo("a.wav")
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000001000\0"
    header[483:495] = b"00000100000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "s.tar").write_bytes(tar_bytes([("b.wav", b"b")])[:1024] + header + bytes(1536))
    b, rest = listed(str(tmp_path / "s.tar"))
    assert (b["uri"][-6:], rest["uri"][-2:]) == ("#b.wav", "#*")
    assert read_bytes(located(b["uri"], b["etag"])) == b"b"
    with pytest.raises(FetchError, match=r"a\.wav is stored as a sparse file") as raised:
        open_binary(located(rest["uri"], rest["etag"]))
    assert raised.value.kind == "bad_archive"


def test_a_replaced_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes([("a.wav", b"one"), ("b.wav", b"two")]))
    [one, two] = listed(str(path))
    assert read_bytes(two["uri"]) == b"two"
    path.write_bytes(tar_bytes([("b.wav", b"three"), ("c.wav", b"four")]))
    with pytest.raises(FetchError, match="the archive was replaced since it was listed") as raised:
        open_binary(located(one["uri"], one["etag"]))
    assert raised.value.kind == "changed"
    assert raised.value.retryable
    # By its name it is what is there now, wherever it was before.
    assert read_bytes(two["uri"]) == b"three"
    with pytest.raises(FetchError, match="expected a member of this name") as raised:
        open_binary(one["uri"])
    assert raised.value.kind == "not_found"


def test_an_archive_without_recordings_is_an_answer_unless_files_are_required(
    tmp_path: Path,
) -> None:
    (tmp_path / "s.tar").write_bytes(tar_bytes([("a.json", b"{}")]))
    listing = FileListing(SourceSettings(uri=(str(tmp_path),)))
    assert list(listing) == []
    assert (listing.empty, listing.num_ignored) == ([f"{tmp_path}/s.tar"], 1)
    with pytest.raises(ConfigError, match="found nothing, and 1 file"):
        listed(str(tmp_path), require_files=True)


def test_many_archives_are_listed_in_order(tmp_path: Path) -> None:
    with mock.patch("corpus_asr.storage.shards._CHUNK_ROWS", 3):
        for shard in range(30):
            files = [(f"{shard}-{n}.wav", b"x") for n in range(20)]
            (tmp_path / f"{shard:02d}.tar").write_bytes(tar_bytes(files))
        found = [row["uri"].partition("#")[2] for row in listed(str(tmp_path))]
    assert found == [f"{shard}-{n}.wav" for shard in range(30) for n in range(20)]


def test_memory_store_and_web_addresses_have_members() -> None:
    data = tar_bytes([("a.wav", b"a"), ("b.wav", b"bb")])
    write_atomic("memory://members/s.tar", data)
    rows = listed("memory://members")
    assert [row["uri"] for row in rows] == [f"memory://members/s.tar#{n}.wav" for n in "ab"]
    assert read_bytes(located(rows[1]["uri"], rows[1]["etag"])) == b"bb"
    with web_server() as web:
        web.files["s.tar"] = data
        signed = f"{web.url('s.tar')}?sig=secret"
        rows = listed(signed)
        assert [row["uri"] for row in rows] == [f"{signed}#{n}.wav" for n in "ab"]
        assert len({row["recording_id"] for row in rows}) == 2
        assert public(rows[0]["uri"]) == f"{web.url('s.tar')}#a.wav"
        assert read_bytes(rows[1]["uri"]) == b"bb"
        web.supports_ranges = False
        with pytest.raises(FetchError, match="without range requests"):
            read_bytes(rows[1]["uri"])


def test_folders_that_may_be_read_bound_members_too(tmp_path: Path) -> None:
    for folder in ("mine", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.tar").write_bytes(tar_bytes([("a.wav", b"a")]))
    options = StoreOptions(files=FileRules(folders=(f"{tmp_path}/mine",)))
    assert read_bytes(f"{tmp_path}/mine/s.tar#a.wav", options) == b"a"
    for uri in (f"{tmp_path}/other/s.tar#a.wav", f"{tmp_path}/other/s.tar#!0+10!00#a.wav"):
        with pytest.raises(FetchError, match="refused to read it"):
            open_binary(uri, options)


def test_only_ranges_are_read_from_a_store(s3: S3Server) -> None:
    s3.make_bucket("shards")
    files = [(f"{n}.wav", bytes([n]) * 1_000_000) for n in range(8)]
    uri = s3.put("shards", "s.tar", tar_bytes(files))
    read: Counter[str] = Counter()
    from corpus_asr.storage.stores.s3 import S3Store

    plain = S3Store.read_range

    def counted(store: S3Store, uri: str, start: int, end: int) -> Any:
        data, info = plain(store, uri, start, end)
        read["bytes"] += len(data)
        read["requests"] += 1
        return data, info

    with mock.patch.object(S3Store, "read_range", counted):
        rows = listed(uri, storage_options={"endpoint_url": s3.endpoint_url})
        assert len(rows) == 8
        assert read["bytes"] < 1_000_000  # headers alone, of 8 MB
        read.clear()
        with open_binary(located(rows[5]["uri"], rows[5]["etag"]), s3.options) as file:
            assert file.read() == files[5][1]
        assert (read["requests"], read["bytes"]) == (1, 1_000_000)


def test_addresses_of_other_things_are_left_alone() -> None:
    for uri in ("/in/a.wav", "/in/a#b.wav", "s3://b/s.tar", "/in/s.tar#", "/in/x.tarball#a.wav"):
        assert member_address(uri) is None
        assert located(uri, "etag@12+3") == uri
    assert located("/in/s.tar#a.wav", "etag") == "/in/s.tar#a.wav"
    assert located("/in/s.tar#a.wav", None) == "/in/s.tar#a.wav"
    at_once = located("/in/s.tar#a#1.wav", "etag@12+3")
    assert located(at_once, "etag@12+3") == at_once
    found = member_address(at_once)
    assert found is not None
    assert (found.uri, found.place) == ("/in/s.tar#a#1.wav", "12+3")


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def listed_in(manifest: str, **settings: Any) -> list[dict[str, Any]]:
    listing = FileListing(SourceSettings.model_validate({"manifest": manifest, **settings}))
    return [row for batch in listing for row in batch.to_pylist()]


def shards(folder: Path) -> None:
    for shard in range(3):
        files = [(f"_data_{shard}_{name}.wav", f"{shard}{name}".encode()) for name in "ab"]
        (folder / f"audio_{shard}.tar").write_bytes(tar_bytes(files))


def test_tarred_manifests_of_nemo_name_members_after_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Source: NeMo, convert_to_tarred_audio_dataset.py: later parts of a file are called -sub1, ...
    (tmp_path / "tarred").mkdir()
    shards(tmp_path / "tarred")
    rows = [
        {"audio_filepath": f"_data_{shard}_{name}.wav", "shard_id": shard, "offset": start_s,
         "duration": 1.0, "text": "said"}
        for shard in range(3) for start_s, name in enumerate(("a", "a-sub1", "b"))
    ]  # fmt: skip
    written(tmp_path / "tarred" / "tarred_audio_manifest.json", rows)
    [recipe] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})
    manifest = f"{tmp_path}/tarred/members.jsonl"
    for row in listed_in(manifest):
        shard, name = row["uri"].removesuffix(".wav").split("_")[-2:]
        assert read_bytes(located(row["uri"], row["etag"])).decode() == f"{shard}{name}"
    assert len(listed_in(manifest)) == 6
    assert [row.span() for row in read_manifest(manifest)] == [(0, 1), (1, 2), (2, 3)] * 3


def test_a_row_that_names_a_tar_file_stands_for_the_recordings_in_it(tmp_path: Path) -> None:
    files = [("a.wav", b"a"), ("a.json", b'{"text": "own"}'), ("b.wav", b"b"), ("note.txt", b"-")]
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    whole = tar_bytes([("c.wav", b"c" * 600), ("d.wav", b"d")])
    (tmp_path / "cut.tar").write_bytes(whole[:1600])
    rows = [{"uri": name, "text": "row", "show": "news"}
            for name in ("s.tar", "cut.tar", "none.tar", "plain.wav")]  # fmt: skip
    found = listed_in(written(tmp_path / "m.jsonl", rows))
    told = {Path(row["uri"]).name: json.loads(row["metadata"]) for row in found}
    both = {"text": "row", "show": "news"}
    assert told == {
        "plain.wav": both, "s.tar#a.wav": {"text": "own", "show": "news"}, "s.tar#b.wav": both,
        "cut.tar#c.wav": both, "cut.tar#*": both, "none.tar#*": both,
    }  # fmt: skip


def test_a_row_that_names_a_member_has_its_size_and_version(tmp_path: Path) -> None:
    shards(tmp_path)
    names = ["audio_1.tar#_data_1_b.wav", "audio_1.tar#./_data_1_a.wav", "audio_1.tar#none.wav",
             "none.tar#x.wav"]  # fmt: skip
    rows = listed_in(written(tmp_path / "m.jsonl", [{"uri": name} for name in names]))
    for row in rows[:2]:
        found = describe(row["uri"])
        assert (found.etag, found.size_bytes) == (row["etag"], row["size_bytes"])
    assert [row["etag"] for row in rows[2:]] == [None, None]  # their failures say why


def test_headers_are_read_once_and_what_is_kept_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corpus_asr.storage.shards._MOST_KEPT", 2)
    shards(tmp_path)
    read: list[str] = []
    lister = FileListing(SourceSettings(uri=("x",)))._shards
    plain = type(lister).rows

    def counted(self: Any, uris: Sequence[str]) -> Any:
        read.extend(uris)
        return plain(self, uris)

    monkeypatch.setattr(type(lister), "rows", counted)
    places = MemberPlaces(lister)
    uris = [f"{tmp_path}/audio_{n}.tar#_data_{n}_{name}.wav" for n in range(3) for name in "ab"]
    assert None not in places.of(uris).sizes
    sizes = places.of(uris).sizes
    assert [size is None for size in sizes] == [True] * 4 + [False] * 2
    assert read == [f"{tmp_path}/audio_{number}.tar" for number in range(3)]


def test_manifests_from_elsewhere_name_tar_files_under_the_same_rules(tmp_path: Path) -> None:
    shards(tmp_path)
    line = json.dumps({"uri": f"{tmp_path}/audio_0.tar#_data_0_a.wav"})
    write_atomic("memory://tarred/n.json", line.encode())
    with pytest.raises(ConfigError, match="a file of this machine"):
        listed_in("memory://tarred/n.json")
    with web_server() as web:
        web.files["s.tar"] = tar_bytes([("a.wav", b"a")])
        write_atomic("memory://tarred/o.json", json.dumps({"uri": web.url("s.tar")}).encode())
        [row] = listed_in("memory://tarred/o.json")
        assert row["uri"] == f"{web.url('s.tar')}#*", "no public host, and not named by settings"
        [row] = listed_in("memory://tarred/o.json", allow_hosts=("127.0.0.1",))
        assert row["uri"] == f"{web.url('s.tar')}#a.wav"


def test_recordings_in_ranges_and_members_may_be_played(tmp_path: Path) -> None:
    shards(tmp_path)
    manifest = written(tmp_path / "m.jsonl", [{"uri": "audio_0.tar"}])
    uris = (f"{tmp_path}/audio_{{0..1}}.tar",), (f"{tmp_path}/audio_0.tar#_data_0_a.wav",)
    for source in (
        *(SourceSettings(uri=uri) for uri in uris),
        SourceSettings(manifest=(manifest,)),
    ):
        rules = FileRules(folders=tuple(source_folders(source, FileListing(source))))
        assert rules.admits(f"{tmp_path}/audio_0.tar")
