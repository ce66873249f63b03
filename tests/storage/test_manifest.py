"""Manifests of all formats, well and badly written."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.config.stages import SourceSettings
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.storage import manifest as manifest_module
from corpus_asr.storage.listing import list_files
from corpus_asr.storage.manifest import manifest_rows
from corpus_asr.storage.stores.uri import recording_id, resolve
from tests.support.stores import S3Server

URIS = ["clip 1.mp3", "sub/#2.mp3", "/absolute/3.mp3", "s3://bucket/4%20.mp3"]


def rows(path: Path | str, endpoint_url: str | None = None) -> list[tuple[str, object]]:
    found = []
    for uris, metadata in manifest_rows(str(path), endpoint_url=endpoint_url):
        parsed = [None if text is None else json.loads(text) for text in metadata]
        found += list(zip(uris, parsed, strict=True))
    return found


def resolved(folder: Path) -> list[str]:
    return [f"{folder}/clip 1.mp3", f"{folder}/sub/#2.mp3", *URIS[2:]]


def test_jsonl_with_metadata_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [json.dumps({"z": [1, None], "uri": uri, "a": "\u00fc"}) for uri in URIS]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    assert rows(path) == [(uri, {"a": "\u00fc", "z": [1, None]}) for uri in resolved(tmp_path)]
    [(_, texts)] = list(manifest_rows(str(path)))
    assert texts[0] == '{"a": "\u00fc", "z": [1, null]}'  # stable order


def test_csv_with_quotes_and_empty_fields(tmp_path: Path) -> None:
    path = tmp_path / "m.CSV"
    path.write_text('uri,speaker\n"a,\nb.mp3",\nc.mp3,"Ann ""A"""\n', encoding="utf-8")
    assert rows(path) == [
        (f"{tmp_path}/a,\nb.mp3", {"speaker": None}),
        (f"{tmp_path}/c.mp3", {"speaker": 'Ann "A"'}),
    ]


def test_parquet_with_types_json_lacks(tmp_path: Path) -> None:
    table = pa.table(
        {
            "day": [datetime.date(2026, 1, 2)] * 4,
            "nan": [float("nan")] * 4,
            "raw": [b"\xffx"] * 4,
            "nested": [{"b": 1, "a": datetime.datetime(2026, 1, 2, 3, 4)}] * 4,
            "uri": URIS,
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    expected = {
        "day": "2026-01-02",
        "nan": None,
        "nested": {"a": "2026-01-02T03:04:00", "b": 1},
        "raw": "\ufffdx",
    }
    assert rows(tmp_path / "m.parquet") == [(uri, expected) for uri in resolved(tmp_path)]


def test_only_a_uri_column_means_no_metadata(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri\na\n")
    assert rows(tmp_path / "m.csv") == [(f"{tmp_path}/a", None)]


def test_a_manifest_in_s3_is_the_base_of_relative_addresses(s3: S3Server, bucket: str) -> None:
    lines = b'{"uri": "a.mp3"}\n{"uri": "../b #.mp3"}\n{"uri": "./x/../c"}\n'
    uri = s3.put(bucket, "lists/today/m.jsonl", lines)
    assert [found for found, _ in rows(uri, s3.endpoint_url)] == [
        f"s3://{bucket}/lists/today/a.mp3",
        f"s3://{bucket}/lists/b #.mp3",
        f"s3://{bucket}/lists/today/x/../c",  # a key is not a path
    ]


def test_missing_files_are_listed_and_repeated_ones_once(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"uri": "gone.mp3", "n": 1}\n{"uri": "./gone.mp3"}\n')
    found = list_files(SourceSettings(manifest=str(tmp_path / "m.jsonl")))
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


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", '{"uri": "a"}\n{"uri": \n', "line 2: found no valid JSON"),
        ("m.jsonl", "[1]\n", "line 1: found JSON of type list"),
        (
            "m.jsonl",
            '{"uri": "a"}\n{"url": "b"}\n',
            "line 2: found columns url.*rename url",
        ),
        ("m.jsonl", '{"uri": 3}\n', "line 1: found uri 3"),
        ("m.jsonl", '{"uri": " "}\n', "line 1: found uri ' '"),
        ("m.jsonl", "\n", "found no rows"),
        ("m.csv", "URI,b\na,b\n", "header: found columns URI, b"),
        ("m.csv", "uri,b\na\n", "line 2: found 1 fields, expected 2"),
        ("m.csv", 'uri\n"a\n', "line"),
        ("m.csv", "uri\n", "found no rows"),
        ("m.parquet", "nonsense", "no readable Parquet"),
        ("m.txt", "a\n", "unknown format"),
    ],
)
def test_a_broken_manifest_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        rows(tmp_path / name)


def test_a_parquet_without_uri_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"audio": ["a"], "Uri": ["b"]}), tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match="found columns audio, Uri"):
        rows(tmp_path / "m.parquet")


def test_a_missing_manifest_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not found"):
        rows(tmp_path / "none.jsonl")


def test_manifests_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "CHUNK_ROWS", 3)
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"{i}\n" for i in range(7)))
    chunks = [uris for uris, _ in manifest_rows(str(tmp_path / "m.csv"))]
    assert [len(uris) for uris in chunks] == [3, 3, 1]


def test_resolving_is_literal() -> None:
    assert resolve("a%20b", folder="/f") == "/f/a%20b"
    assert resolve("~x", folder="/f") == "/f/~x"
    assert resolve("a", folder="http://h/d") == "http://h/d/a"
    assert resolve("file:///x/y", folder="s3://b") == "/x/y"
