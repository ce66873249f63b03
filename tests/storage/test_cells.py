"""Recordings in columns of Parquet files."""

import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import FetchError
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.manifest import expected_bytes
from corpus_asr.storage.stores import cells
from corpus_asr.storage.stores.filesystem import StoreOptions, describe, open_binary, read_bytes
from corpus_asr.storage.stores.uri import located
from tests.support.stores import S3Server

COLUMN = StoreOptions(audio_column="audio")


def table(rows: int, size: int = 10) -> pa.Table:
    audio = [{"bytes": bytes([n]) * size, "path": f"{n}.wav"} for n in range(rows)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"audio": pa.array(audio, kind), "speaker": list(range(rows))})


def listed(uri: Path | str, **settings: Any) -> list[dict[str, Any]]:
    listing = FileListing(SourceSettings(uri=(str(uri),), audio_column="audio", **settings))
    return [row for batch in listing for row in batch.to_pylist()]


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    cells._GROUPS.clear()


@pytest.mark.parametrize("most", [0, 1 << 27])
def test_rows_are_recordings(tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_MOST_GROUP_BYTES", most)
    path = tmp_path / "clips.parquet"
    pq.write_table(table(7), path, row_group_size=3)
    rows = listed(tmp_path)  # in a folder as well
    assert [row["uri"] for row in rows] == [f"{path}#{n}" for n in range(7)]
    assert json.loads(rows[4]["metadata"])["speaker"] == 4
    for number, row in enumerate(rows):
        assert row["size_bytes"] is None
        assert expected_bytes(None, row["etag"], row["metadata"])
        for uri in (row["uri"], located(row["uri"], row["etag"])):
            assert read_bytes(uri, COLUMN) == bytes([number]) * 10
        assert describe(row["uri"]).etag == row["etag"]
    for name in ("7", "x", "-1", "1" * 30):
        with pytest.raises(FetchError, match="expected the number of a row"):
            open_binary(f"{path}#{name}", COLUMN)


@pytest.mark.long
def test_files_of_arrow_are_written_as_parquet_by_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "sources.md").read_text()
    [recipe] = re.findall(r"`(datasets[.]Dataset[.]from_file.*)`", guide)
    monkeypatch.chdir(tmp_path)
    with pa.ipc.new_stream(tmp_path / "clips.arrow", table(7).schema) as file:
        file.write_table(table(7), max_chunksize=3)
    eval(recipe, {"datasets": importlib.import_module("datasets")})
    assert len(listed(tmp_path / "clips.parquet")) == 7


def test_a_parquet_says_its_path_and_folders_ignore_it_without_the_setting(tmp_path: Path) -> None:
    pq.write_table(table(2), tmp_path / "clips.parquet")
    assert json.loads(listed(tmp_path)[1]["metadata"]) == {"path": "1.wav", "speaker": 1}
    listing = FileListing(SourceSettings(uri=(str(tmp_path),)))
    assert list(listing) == []
    assert listing.num_ignored == 1


def test_columns_of_bytes_and_only_ones_are_found(tmp_path: Path) -> None:
    rows = pa.table({"mp3": [b"a", None], "n": [1, 2]})
    pq.write_table(rows, tmp_path / "c.parquet")
    assert read_bytes(f"{tmp_path}/c.parquet#0") == b"a"
    with pytest.raises(FetchError, match="no bytes in column mp3 of this row") as raised:
        open_binary(f"{tmp_path}/c.parquet#1")
    assert raised.value.kind == "bad_archive"
    assert len(listed(tmp_path / "c.parquet")) == 1  # whose failure says why


def test_what_is_no_such_table_is_one_failure(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sound": [b"a"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 is not enough")
    whole = tmp_path / "whole.bin"
    pq.write_table(table(50, 1000), whole)
    (tmp_path / "c.parquet").write_bytes(whole.read_bytes()[:-300])
    (tmp_path / "d.parquet").write_bytes(b"no table at all")
    for name, found in (
        ("a.parquet", "found columns sound, n, expected audio in audio.*source.audio_column"),
        ("b.parquet", "no readable table"),
        ("c.parquet", "no readable table"),
        ("d.parquet", "no readable table .*expected Parquet.*to_parquet"),
    ):
        [row] = listed(tmp_path / name)
        assert row["uri"] == f"{tmp_path}/{name}#*"
        with pytest.raises(FetchError, match=found) as raised:
            open_binary(row["uri"], COLUMN)
        assert raised.value.kind == "bad_archive"


def test_a_damaged_column_is_one_failure_for_the_rows_from_there_on(tmp_path: Path) -> None:
    rows = table(9, 3_000).set_column(1, "speaker", pa.array([f"name {n} " * 99 for n in range(9)]))
    path = tmp_path / "a.parquet"
    pq.write_table(rows, path, row_group_size=3, compression="snappy")
    column = pq.ParquetFile(path).metadata.row_group(1).column(2)
    assert column.path_in_schema == "speaker"
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    found = listed(path)
    assert [row["uri"].rpartition("#")[2] for row in found] == [*"012", "*"]
    assert read_bytes(f"{path}#8", COLUMN) == bytes([8]) * 3_000, "its audio is whole"
    with pytest.raises(FetchError, match="no readable table") as raised:
        open_binary(found[3]["uri"], COLUMN)
    assert raised.value.kind == "bad_archive"


def test_a_replaced_table_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(3), path)
    row = listed(path)[2]
    pq.write_table(table(4, 30), path)
    with pytest.raises(FetchError, match="the table was replaced") as raised:
        open_binary(located(row["uri"], row["etag"]), COLUMN)
    assert raised.value.kind == "changed"
    assert read_bytes(row["uri"], COLUMN) == bytes([2]) * 30


def test_only_a_group_is_read_from_a_store(s3: S3Server, tmp_path: Path) -> None:
    from corpus_asr.storage.stores.s3 import S3Store

    s3.make_bucket("tables")
    rows = table(120, 100_000)
    audio = [{"bytes": bytes(n.to_bytes(2) * 50_000)} for n in range(120)]
    rows = rows.set_column(0, "audio", pa.array(audio))
    path = tmp_path / "big.parquet"
    pq.write_table(rows, path, row_group_size=10, compression="none", use_dictionary=False)
    uri = s3.put("tables", "big.parquet", path.read_bytes())
    read: Counter[str] = Counter()
    plain = S3Store.read_range

    def counted(store: S3Store, uri: str, start: int, end: int) -> Any:
        data, info = plain(store, uri, start, end)
        read["bytes"] += len(data)
        return data, info

    options = StoreOptions(endpoint_url=s3.endpoint_url, audio_column="audio")
    with mock.patch.object(S3Store, "read_range", counted):
        found = listed(uri, storage_options={"endpoint_url": s3.endpoint_url})
        read.clear()
        for row in found[70:80]:
            with open_binary(located(row["uri"], row["etag"]), options) as file:
                assert len(file.read()) == 100_000
    # A group of 1 MB, once, and the footer: of 12 MB, in blocks of 1 MiB.
    assert read["bytes"] < 5_000_000
