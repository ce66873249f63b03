"""Manifests that name members of tar files: NeMo's tarred ones, whole files, and single members."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.manifest import read_manifest
from corpus_asr.storage.run_state.own_sources import source_folders
from corpus_asr.storage.shards import MemberPlaces
from corpus_asr.storage.stores.filesystem import describe, read_bytes, write_atomic
from corpus_asr.storage.stores.host_allowlist import FileRules, HostRules, Verdict
from corpus_asr.storage.stores.members import located
from tests.storage.test_members import tar_bytes
from tests.support.stores import web_server


def shards(folder: Path, pattern: str = "audio_{}.tar", count: int = 3) -> None:
    """Write shards of two files each, as NeMo flattens their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        files = [(f"_data_{number}_{each}.wav", f"{number}{each}".encode()) for each in "ab"]
        (folder / pattern.format(number)).write_bytes(tar_bytes(files))


def rows_of(count: int = 3, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"audio_filepath": f"_data_{number}_{each}.wav", "shard_id": number, "duration": 1.5,
         "text": "said"} | columns
        for number in range(count) for each in "ab"
    ]  # fmt: skip


def manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source_of(**settings: Any) -> SourceSettings:
    return SourceSettings.model_validate(settings)


def listed(source: SourceSettings) -> list[dict[str, Any]]:
    return [row for batch in FileListing(source) for row in batch.to_pylist()]


def expected(folder: Path, pattern: str = "audio_{}.tar") -> list[str]:
    return [f"{folder}/{pattern.format(n)}#_data_{n}_{each}.wav" for n in range(3) for each in "ab"]


def check(rows: list[dict[str, Any]]) -> None:
    """See that each row is what its name says, and lies where the listing says."""
    for row in rows:
        found = describe(row["uri"])
        assert (found.etag, found.size_bytes) == (row["etag"], row["size_bytes"])
        content = row["uri"].rpartition("_data_")[2].removesuffix(".wav").replace("_", "")
        assert read_bytes(located(row["uri"], row["etag"])).decode() == content
        assert json.loads(row["metadata"])["text"] == "said"


@pytest.mark.parametrize("where", ["tarred_audio_manifest.json", "sharded_manifests/manifest_{}"])
def test_what_nemo_writes_is_read_as_it_lies(tmp_path: Path, where: str) -> None:
    shards(tmp_path)
    if "{}" in where:
        for number in range(3):
            rows = [row for row in rows_of() if row["shard_id"] == number]
            manifest(tmp_path / f"{where.format(number)}.json", rows)
        named = [f"{tmp_path}/{where.format('_OP_0..2_CL_')}.json"]
    else:
        named = [str(manifest(tmp_path / where, rows_of()))]
    rows = listed(source_of(manifest=named))
    assert [row["uri"] for row in rows] == expected(tmp_path)
    check(rows)
    # References and training data are read alike.
    for path in tmp_path.rglob("*.json"):
        assert {row.uri for row in read_manifest(str(path))} <= set(expected(tmp_path))


@pytest.mark.parametrize(
    "tarred", ["{0}/x/shard_{{0..2}}.tar", "{0}/x/shard__OP_0..2_CL_.tar", "{0}/x/*.tar"]
)
@pytest.mark.parametrize("columns", [{}, {"shard_id": "{}"}, {"shard_id": None}])
def test_tar_files_lie_where_a_setting_says(
    tmp_path: Path, tarred: str, columns: dict[str, Any]
) -> None:
    shards(tmp_path / "x", "shard_{}.tar")
    named = []
    for number in range(3):
        mine = [row for row in rows_of() if row["shard_id"] == number]
        if "shard_id" in columns:  # as text, or by the manifest's own number
            given = columns["shard_id"] and columns["shard_id"].format(number)
            mine = [row | {"shard_id": given} for row in mine]
        named.append(str(manifest(tmp_path / "m" / f"manifest_{number}.json", mine)))
    source = source_of(manifest=named, tarred=tarred.format(tmp_path))
    rows = listed(source)
    assert [row["uri"] for row in rows] == expected(tmp_path / "x", "shard_{}.tar")
    check(rows)


def test_a_rewritten_tar_file_keeps_members_by_their_own_version(tmp_path: Path) -> None:
    shards(tmp_path, count=1)
    source = source_of(
        manifest=str(manifest(tmp_path / "m.json", rows_of(1))),
        tarred=f"{tmp_path}/audio_0.tar", version="checksum",
    )  # fmt: skip
    before = listed(source)
    assert before[0]["etag"].startswith("sha256:")
    shards(tmp_path, count=1)
    assert [row["etag"][:71] for row in listed(source)] == [row["etag"][:71] for row in before]


def test_buckets_have_tar_files_of_their_own(tmp_path: Path) -> None:
    named = []
    for bucket in ("bucket1", "bucket2"):
        shards(tmp_path / bucket)
        named.append(str(manifest(tmp_path / bucket / "tarred_audio_manifest.json", rows_of())))
    tarred = f"{tmp_path}/bucket{{1..2}}/audio_{{0..2}}.tar"
    rows = listed(source_of(manifest=named, tarred=tarred))
    both = expected(tmp_path / "bucket1") + expected(tmp_path / "bucket2")
    assert [row["uri"] for row in rows] == both
    elsewhere = str(manifest(tmp_path / "m.json", rows_of()))
    with pytest.raises(
        ConfigError, match=r"m.json, line 1: found shard_id 0 of .*bucket2.*one job"
    ):
        listed(source_of(manifest=elsewhere, tarred=tarred))


def test_parts_of_one_file_are_one_recording(tmp_path: Path) -> None:
    # Source: NeMo, convert_to_tarred_audio_dataset.py: later parts of a file are called -sub1, ...
    shards(tmp_path, count=1)
    parts = [{"audio_filepath": f"_data_0_a{end}.wav", "shard_id": 0, "offset": at, "duration": 1.0,
              "text": "said"} for at, end in enumerate(["", "-sub1", "-sub2"])]  # fmt: skip
    path = manifest(tmp_path / "m.json", parts)
    assert len(listed(source_of(manifest=str(path)))) == 1
    rows = list(read_manifest(str(path)))
    assert {row.uri for row in rows} == {f"{tmp_path}/audio_0.tar#_data_0_a.wav"}
    assert [row.span() for row in rows] == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"shard_id": 7}, {}, "found shard_id 7 without audio_7.tar.*source.tarred"),
        ({"shard_id": 7}, {"tarred": "audio_{0..2}.tar"}, "shard_id 7.*one of source.tarred, 0 to"),
        ({"shard_id": "x"}, {"tarred": "audio_{0..2}.tar"}, "found shard_id 'x'"),
        ({"shard_id": None}, {"tarred": "audio_{0..2}.tar"}, "found no column shard_id"),
        (
            {},
            {"tarred": "audio_*.wav"},
            "found nothing, expected .tar files.*correct source.tarred",
        ),
        ({}, {"tarred": "m.json"}, r"found .*m.json, expected .tar files"),
        ({}, {"tarred": "pipe:cat audio_{0..2}.tar"}, "found a command"),
    ],
)
def test_what_does_not_fit_is_told_with_what_to_write(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, str], message: str
) -> None:
    shards(tmp_path)
    path = str(manifest(tmp_path / "m.json", rows_of(**columns)))
    settings = {name: f"{tmp_path}/{value}" if "pipe" not in value else value
                for name, value in settings.items()}  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        listed(source_of(manifest=path, **settings))


def test_a_column_of_this_name_may_mean_something_else(tmp_path: Path) -> None:
    (tmp_path / "plain.wav").touch()
    names = ["plain.wav", "/in/deep/x.wav", "deep/y.wav", "s3://b/z.wav"]
    path = manifest(tmp_path / "m.json", [{"path": each, "shard_id": 4} for each in names])
    uris = [row.uri for row in read_manifest(str(path))]
    places = [f"{tmp_path}/plain.wav", "/in/deep/x.wav", f"{tmp_path}/deep/y.wav", "s3://b/z.wav"]
    assert uris == places


def test_tar_files_without_a_manifest_are_refused() -> None:
    with pytest.raises(ValueError, match="found no source"):
        source_of(uri=("x",), tarred=("y.tar",))


def test_a_row_that_names_a_tar_file_stands_for_the_recordings_in_it(tmp_path: Path) -> None:
    files = [("a.wav", b"a"), ("a.json", b'{"text": "own"}'), ("b.wav", b"b"), ("note.txt", b"-")]
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    whole = tar_bytes([("c.wav", b"c" * 600), ("d.wav", b"d")])
    (tmp_path / "cut.tar").write_bytes(whole[:1600])
    rows = [{"uri": name, "text": "row", "show": "news"}
            for name in ("s.tar", "cut.tar", "none.tar", "plain.wav")]  # fmt: skip
    found = listed(source_of(manifest=str(manifest(tmp_path / "m.jsonl", rows))))
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
    path = manifest(tmp_path / "m.jsonl", [{"uri": each, "text": "said"} for each in names])
    first, second, *rest = listed(source_of(manifest=str(path)))
    check([first, second])
    assert [row["etag"] for row in rest] == [None, None]  # their failures say why


def test_headers_are_read_once_and_what_is_kept_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corpus_asr.storage.shards._MOST_KEPT", 2)
    shards(tmp_path)
    read: list[str] = []
    lister = FileListing(source_of(uri=("x",)))._shards
    plain = type(lister).rows

    def counted(self: Any, uris: Sequence[str]) -> Any:
        read.extend(uris)
        return plain(self, uris)

    monkeypatch.setattr(type(lister), "rows", counted)
    places = MemberPlaces(lister)
    uris = expected(tmp_path)
    assert None not in places.of(uris).sizes
    sizes = places.of(uris).sizes
    assert [size is None for size in sizes] == [True] * 4 + [False] * 2
    assert read == [f"{tmp_path}/audio_{number}.tar" for number in range(3)]


def test_manifests_from_elsewhere_name_tar_files_under_the_same_rules(tmp_path: Path) -> None:
    shards(tmp_path)
    lines = "".join(json.dumps(row) + "\n" for row in rows_of())
    write_atomic("memory://tarred/m.json", lines.encode())
    tarred = f"{tmp_path}/audio_{{0..2}}.tar"
    rows = listed(source_of(manifest="memory://tarred/m.json", tarred=tarred))
    check(rows)  # the setting names them, not the manifest
    line = json.dumps({"uri": f"{tmp_path}/audio_0.tar#_data_0_a.wav"})
    write_atomic("memory://tarred/n.json", line.encode())
    with pytest.raises(ConfigError, match="a file of this machine"):
        listed(source_of(manifest="memory://tarred/n.json"))
    with web_server() as web:
        web.files["s.tar"] = tar_bytes([("a.wav", b"a")])
        line = json.dumps({"uri": web.url("s.tar")})
        write_atomic("memory://tarred/o.json", line.encode())
        [row] = listed(source_of(manifest="memory://tarred/o.json"))
        assert row["uri"] == f"{web.url('s.tar')}#*", "no public host, and not named by settings"
        [row] = listed(source_of(manifest="memory://tarred/o.json", allow_hosts=("127.0.0.1",)))
        assert row["uri"] == f"{web.url('s.tar')}#a.wav"


def test_tar_files_are_reached_as_what_the_settings_name() -> None:
    source = source_of(
        manifest="s3://lists/m.json", tarred=["s3://tars/a_{0..1}.tar", "http://10.0.0.1/a_2.tar"],
        storage_options={"key": "k", "secret": "s"},
    )  # fmt: skip
    assert source.bound_options == source.storage_options.bound(
        ("s3://lists/m.json", *source.tarred)
    )
    assert HostRules.of(source).verdict("10.0.0.1", redirected=False) is Verdict.ADMITTED


def test_recordings_in_ranges_and_members_may_be_played(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(tar_bytes([("deep/a.wav", b"a")]))
    source = source_of(uri=(f"{tmp_path}/{{0..1}}.tar",))
    for named in (
        source,
        source_of(uri=(f"{tmp_path}/0.tar#deep/a.wav",)),
        source_of(manifest=str(manifest(tmp_path / "m.jsonl", [{"uri": "0.tar"}]))),
    ):
        rules = FileRules(folders=tuple(source_folders(named, FileListing(named))))
        assert rules.admits(f"{tmp_path}/0.tar")
    assert [row["uri"][-17:] for row in listed(source)] == [
        "/0.tar#deep/a.wav",
        "/1.tar#deep/a.wav",
    ]
