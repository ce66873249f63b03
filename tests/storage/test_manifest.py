"""One set of columns for recordings, parts, texts, languages and speakers, in all formats."""

import csv
import datetime
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.measure import find_recordings
from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.report.scoring import read_references
from corpus_asr.storage import listing
from corpus_asr.storage import manifest as manifest_module
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.manifest import Row, expected_bytes, is_manifest, read_manifest
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import recording_id
from tests.support.audio import tone, wav_bytes
from tests.support.stores import S3Server

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
URIS = ["clip 1.mp3", "sub/#2.mp3", "/absolute/3.mp3", "s3://bucket/4%20.mp3"]


def written(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows in the format of the suffix; those of tables have the columns of all rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    elif path.suffix in (".csv", ".tsv"):
        dialect: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        with path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, names, **(dialect if path.suffix == ".tsv" else {}))
            lines.writeheader()
            lines.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def manifest(path: Path | str, endpoint_url: str | None = None) -> list[tuple[str, object]]:
    rows = read_manifest(str(path), StoreOptions(endpoint_url=endpoint_url))
    metadata = [(row.uri, row.metadata()) for row in rows]
    return [(uri, None if text is None else json.loads(text)) for uri, text in metadata]


def resolved(folder: Path) -> list[str]:
    return [f"{folder}/clip 1.mp3", f"{folder}/sub/#2.mp3", *URIS[2:]]


def said(row: Row) -> tuple[Any, ...]:
    return row.needed_text(), *row.span(), row.language(), row.speaker()


# Made in their tests: each takes hundreds of megabytes.
REPEATS: dict[str, Callable[[], pa.Array]] = {
    "text": lambda: repeated("x" * 60_000),
    "long": lambda: repeated("x" * 5_000_000),
    "texts": lambda: pa.array([["x" * 60_000] * 5_000]),
    "zeros": lambda: pa.array([np.zeros(20_000_000, np.int8)]),
    "plain": lambda: pa.array(["x" * 60_000] * 5_000),
    "prefixes": lambda: pa.array(["x" * 60_000 + str(number) for number in range(5_000)]),
}
PLAIN = {"use_dictionary": False}
WRITTEN: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "prefixes": PLAIN | {"column_encoding": {"uri": "PLAIN", "note": "DELTA_BYTE_ARRAY"}},
}


def repeated(text: str) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), [text])


@pytest.mark.parametrize("kind", REPEATS)
def test_what_a_small_parquet_file_stands_for_never_fills_the_memory(
    tmp_path: Path, kind: str
) -> None:
    notes = REPEATS[kind]()
    table = pa.table({"uri": [f"s3://b/{number}" for number in range(len(notes))], "note": notes})
    path = tmp_path / "m.parquet"
    pq.write_table(
        table, path, compression="zstd", row_group_size=len(notes), **WRITTEN.get(kind, {})
    )
    assert path.stat().st_size < 200_000
    script = (
        "import itertools, resource, sys\n"
        "from corpus_asr.config.run import SourceSettings\n"
        "from corpus_asr.storage.listing import FileListing\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try:\n"
        "    listing = FileListing(SourceSettings(manifest=(sys.argv[1],)))\n"
        "    rows = sum(batch.num_rows for batch in itertools.islice(listing, 2))\n"
        "except Exception as error:\n"
        "    rows = f'{type(error).__name__}: {error}'\n"
        "print((peak() - before) // 1024, rows)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    peak_mib, _, rows = done.stdout.strip().partition(" ")
    assert int(peak_mib) < 200
    if kind in ("text", "prefixes"):
        assert int(rows) >= 500
    else:
        assert "ConfigError: reading the manifest" in rows


@pytest.mark.parametrize(
    ("suffix", "location"),
    [*zip(FORMATS, ("uri", "audio_filepath", "path", "uri", "path"), strict=True)],
)
def test_one_file_serves_a_source_an_evaluation_a_training_and_a_benchmark(
    tmp_path: Path, suffix: str, location: str
) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(4), rate_hz=16_000))
    rows = (
        {location: "a.wav", "text": "Hi.", "start_s": 0.5, "end_s": 1, "language": "German"},
        {location: "a.wav", "text": "", "start_s": 2, "end_s": 3.5, "language": "de"},
    )
    path = str(written(tmp_path / f"m.{suffix}", *rows))
    uri = str(tmp_path / "a.wav")
    identity = recording_id(uri)
    found = FileListing(SourceSettings(manifest=(path,)))
    ((recording,),) = ([row for row in batch.to_pylist()] for batch in found)
    assert (recording["uri"], recording["recording_id"]) == (uri, identity)
    assert json.loads(recording["metadata"])["text"] == "Hi."
    assert found.num_duplicates == 1
    (reference,) = read_references(path).items()
    assert reference[0] == identity
    assert (reference[1].text, reference[1].spans) == ("Hi.", ((0.5, 1.0), (2.0, 3.5)))
    assert [each.text for each in find_recordings([], Path(path))] == ["Hi.", None]
    assert is_manifest(path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "named",
    [
        {"uri": "a.wav", "start_s": 2.5, "end_s": 4, "language": "de", "speaker": "anna"},
        {"path": "a.wav", "start": 2.5, "duration_s": 1.5, "lang": "de", "speaker_id": "anna"},
        {"audio_filepath": "a.wav", "offset": 2.5, "duration": 1.5, "lang": "de",
         "speaker": "anna"},
        {"uri": "a.wav", "start_s": 2.5, "offset": 2.5, "end": 4, "duration": 1.45,
         "language": "de", "speaker": "anna"},
        {"uri": "a.wav", "path": None, "start_s": 2.5, "end_s": 4, "language": "de",
         "speaker": "anna"},
    ],
)  # fmt: skip
def test_names_of_one_column_mean_the_same(
    tmp_path: Path, suffix: str, named: dict[str, Any]
) -> None:
    (row,) = read_manifest(str(written(tmp_path / f"m.{suffix}", {"text": "So.", **named})))
    assert row.uri == str(tmp_path / "a.wav")
    text, start_s, end_s, *rest = said(row)
    assert (text, start_s, rest) == ("So.", 2.5, ["de", "anna"])
    assert end_s == pytest.approx(4.0)


def test_what_a_row_does_not_say_has_a_meaning(tmp_path: Path) -> None:
    bare, silent, numbered = read_manifest(
        str(written(tmp_path / "m.csv", {"uri": "a", "text": "x"}, {"uri": "b", "text": "",
                    "duration": 2, "speaker": ""}, {"uri": "c", "text": "y", "speaker": 7}))
    )  # fmt: skip
    assert said(bare) == ("x", 0.0, None, None, None)
    assert said(silent) == ("", 0.0, 2.0, None, None)
    assert numbered.speaker() == "7"
    nothing = {"uri": "a", "end_s": float("nan")}
    (row,) = read_manifest(str(written(tmp_path / "m.parquet", nothing)))
    assert (row.text(), row.end_s()) == (None, None)


def test_segments_are_parts_with_the_columns_of_a_row(tmp_path: Path) -> None:
    segments = [
        {"start_s": 0, "end_s": 1.5, "text": "one", "speaker": "bob"},
        {"offset": 2, "duration": 1, "text": "", "language": "fr"},
    ]
    row = {"uri": "d.wav", "language": "en", "speaker": "anna", "segments": segments}
    for path in (
        written(tmp_path / "m.jsonl", row),
        written(tmp_path / "m.csv", {**row, "segments": json.dumps(segments)}),
    ):
        (whole,) = read_manifest(str(path))
        assert [said(part) for part in whole.parts()] == [
            ("one", 0.0, 1.5, "en", "bob"),
            ("", 2.0, 3.0, "fr", "anna"),
        ]
        (reference,) = read_references(str(path)).values()
        assert (reference.text, reference.spans) == ("one", ((0.0, 1.5), (2.0, 3.0)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"path": "b.wav"}, "found uri 'a.wav' and path 'b.wav', expected one of uri, path"),
        ({"transcript": "x"}, "found columns transcript, .*; rename transcript to text if"),
        ({"text": None}, "found no text, expected a column text with the transcript"),
        ({"text": 3}, "found text 3, expected the spoken text"),
        ({"text": ["x" * 9_000]}, r"found text \['x{90,}\.\.\.x{90,}'\], expected the spoken text"),
        ({"text": "x", "start_s": -1}, "found start_s -1, expected seconds, 0 or more"),
        ({"text": "x", "offset": "soon"}, "found offset 'soon', expected seconds"),
        ({"text": "x", "duration": True}, "found duration True, expected seconds"),
        ({"text": "x", "end_s": 1e12}, "found end_s 1.*, expected seconds"),
        ({"text": "x", "start_s": 3, "end_s": 2}, "the times 3 to 2 s, expected an end after"),
        ({"text": "x", "end_s": 9, "duration_s": 2}, "an end at 9 s and a duration that ends at 2"),
        ({"text": "x", "start_s": 1, "offset": 2}, "found start_s 1 and offset 2, expected one of"),
        ({"text": "x", "language": 4}, "found language 4, expected its name or code"),
        ({"segments": 3}, "found segments of type int, expected a list of objects"),
        ({"segments": "[{"}, "found segments that are not JSON"),
        ({"segments": [{"text": "x", "end_s": 1}, {"start_s": 1, "end_s": 2}]},
         ", 2 of segments: found columns start_s, end_s, expected a column text"),
    ],
)  # fmt: skip
def test_a_wrong_column_is_named_with_its_line_by_all_that_read_it(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    right = {"uri": "z.wav", "text": "right"}
    path = written(tmp_path / "m.jsonl", right, {"uri": "a.wav", **row})
    with pytest.raises(ConfigError, match=rf"m\.jsonl, line 2.*{message}") as caught:
        read_references(str(path))
    assert "; " in str(caught.value)  # what to do


def test_a_language_that_whisper_lacks_is_one_for_references_alone(tmp_path: Path) -> None:
    path = str(written(tmp_path / "m.csv", {"uri": "a", "text": "x", "language": "Klingon"}))
    (reference,) = read_references(path).values()
    assert reference.language == "klingon"


def test_rows_of_one_recording_are_parts_or_an_error(tmp_path: Path) -> None:
    def references(*rows: dict[str, Any]) -> Any:
        (found,) = read_references(
            str(written(tmp_path / "m.jsonl", *({"uri": "/a", **row} for row in rows)))
        ).values()
        return found

    later = {"text": "two ", "start_s": 5, "end_s": 9, "language": "de"}
    found = references(later, {"text": "one", "end_s": 3}, {"text": "", "start_s": 9})
    assert found.text == "one two"
    assert found.spans == ((0, 3), (5, 9), (9, float("inf")))
    assert found.language == "de"
    assert references({"text": "all of it"}).spans is None
    for rows in ([{"text": "x"}, {"text": "y"}], [{"text": "x"}, later], [later, later]):
        with pytest.raises(ConfigError, match="found /a twice, expected each recording once, or"):
            references(*rows)


def test_jsonl_with_metadata_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [json.dumps({"z": [1, None], "uri": uri, "a": "\u00fc"}) for uri in URIS]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    assert manifest(path) == [(uri, {"a": "\u00fc", "z": [1, None]}) for uri in resolved(tmp_path)]
    assert (
        next(read_manifest(str(path))).metadata() == '{"a": "\u00fc", "z": [1, null]}'
    )  # stable order


def test_csv_with_quotes_and_empty_fields(tmp_path: Path) -> None:
    path = tmp_path / "m.CSV"
    path.write_text('uri,speaker\n"a,\nb.mp3",\nc.mp3,"Ann ""A"""\n', encoding="utf-8")
    assert manifest(path) == [
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
    assert manifest(tmp_path / "m.parquet") == [(uri, expected) for uri in resolved(tmp_path)]


def test_a_manifest_in_s3_is_the_base_of_relative_addresses(s3: S3Server, bucket: str) -> None:
    lines = b'{"uri": "a.mp3"}\n{"uri": "../b #.mp3"}\n{"uri": "./x/../c"}\n'
    uri = s3.put(bucket, "lists/today/m.jsonl", lines)
    assert [found for found, _ in manifest(uri, s3.endpoint_url)] == [
        f"s3://{bucket}/lists/today/a.mp3",
        f"s3://{bucket}/lists/b #.mp3",
        f"s3://{bucket}/lists/today/x/../c",  # a key is not a path
    ]


def test_a_broken_manifest_says_where(tmp_path: Path) -> None:
    for name, text, message in (
        ("m.jsonl", '{"uri": "a"}\n{"uri": \n', "line 2: found no valid JSON"),
        ("m.jsonl", "[1]\n", "line 1: found JSON of type list"),
        ("m.jsonl", '{"uri": "a"}\n{"url": "b"}\n', "line 2: found columns url.*rename url"),
        ("m.jsonl", '{"uri": 3}\n', "line 1: found uri 3"),
        ("m.jsonl", '{"uri": " "}\n', "line 1: found uri ' '"),
        ("m.jsonl", "\n", "found no rows"),
        ("m.csv", "URI,b\na,b\n", "header: found columns URI, b"),
        ("m.csv", "uri,b\na\n", "line 2: found 1 fields, expected 2"),
        ("m.csv", 'uri\n"a\n', "line"),
        ("m.csv", "uri\n", "found no rows"),
        (
            "m.csv",
            "uri" + ",b" * 5 + "\n" + 'x,"' + "x" * 100_000 + ('\n","' + "x" * 100_000) * 50,
            "a longer line",
        ),
        ("m.parquet", "nonsense", "no readable Parquet"),
        ("m.txt", "a\n", "unknown format"),
        (
            "m.json",
            '[{"uri": "a"}]',
            "found JSON of type list, expected a JSON object, one a line",
        ),
        ("m.tsv", 'uri\ttext\na\t"x\tb\n', "line 2: found 3 fields, expected 2"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            manifest(tmp_path / name)


def test_a_parquet_without_uri_names_its_columns_and_a_missing_one_is_not_found(
    tmp_path: Path,
) -> None:
    pq.write_table(pa.table({"audio": ["a"], "Uri": ["b"]}), tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match="found columns audio, Uri"):
        manifest(tmp_path / "m.parquet")
    with pytest.raises(FetchError, match="not found"):
        manifest(tmp_path / "none.jsonl")


def test_manifests_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CHUNK_ROWS", 3)
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"{i}\n" for i in range(7)))
    chunks = list(FileListing(SourceSettings(manifest=(str(tmp_path / "m.csv"),))))
    assert [chunk.num_rows for chunk in chunks] == [3, 3, 1]
    (last,) = chunks[2].to_pylist()
    assert last["uri"] == f"{tmp_path}/6"
    assert last["metadata"] is None  # where there is only a uri column


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.GZ"])
def test_a_compressed_manifest_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    tab = "," if "csv" in suffix else "\t"
    text = '{"uri": "a.mp3", "set": "x"}\n' if "json" in suffix else f"uri{tab}set\na.mp3{tab}x\n"
    path = tmp_path / f"m{suffix}"
    path.write_bytes(gzip.compress(text.encode()))
    assert manifest(path) == [(str(tmp_path / "a.mp3"), {"set": "x"})]


def test_what_is_no_whole_gzip_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(random.Random(1).randbytes(4000).hex().encode())
    bomb = gzip.compress(b"uri\n" + b"x" * (manifest_module.MAX_LINE_BYTES + 1))
    for name, data, found in (
        ("cut.jsonl.gz", whole[:-100], "found broken gzip"),
        ("none.csv.gz", b"uri\na.mp3\n", "found broken gzip"),
        ("bomb.csv.gz", bomb, "found a longer line"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=f"{name}.*{found}"):
            list(read_manifest(str(tmp_path / name)))


def test_several_manifests_are_one_source(tmp_path: Path) -> None:
    for name in ("lists/a.jsonl", "lists/b.jsonl", "more/c[1].csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        rows = "uri\n1.mp3\n" if name.endswith("csv") else '{"uri": "1.mp3"}\n{"uri": "/x.mp3"}\n'
        path.write_text(rows)
    names = (f"{tmp_path}/lists/*.jsonl", f"{tmp_path}/more/c[1].csv")
    listing = FileListing(SourceSettings(manifest=names))
    found = [uri for batch in listing for uri in batch["uri"].to_pylist()]
    assert found == [f"{tmp_path}/lists/1.mp3", "/x.mp3", f"{tmp_path}/more/1.mp3"]
    assert listing.num_duplicates == 2
    with pytest.raises(ConfigError, match="expected manifests that match the glob"):
        list(FileListing(SourceSettings(manifest=(f"{tmp_path}/lists/*.csv",))))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"duration": 10.0}, 160_000),
        ({"duration_s": "10"}, 160_000),
        ({"duration": 10.0, "size": 70_000}, 70_000),
        ({"size_bytes": "70000"}, 70_000),
        ({"size": "large", "duration": -1}, None),
        ({"size": True, "duration": None}, None),
        ({"size": 1e300, "duration": 1e12}, None),
        ({"text": "x"}, None),
    ],
)
def test_size_and_duration_say_what_to_expect(
    columns: dict[str, Any], expected: int | None
) -> None:
    assert expected_bytes(None, None, json.dumps(columns)) == expected
    assert expected_bytes(5, None, json.dumps(columns)) == 5
    assert expected_bytes(None, "v", None) is None
    assert expected_bytes(None, "v@1.2~300", None) == 300
