"""Commits, and what readers see of them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.schemas import LABELS, OUTCOMES, RESULTS, SEGMENTS
from corpus_asr.storage.parquet import conform
from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.part_rows import part_rows, without_credentials
from corpus_asr.storage.run_state.table_names import LABEL_ROWS, SEGMENT_ROWS, TABLES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import without_secrets
from tests.storage.test_run_tables import done
from tests.support.tables import (
    commit,
    complete,
    files,
    orphan,
    part,
    results,
    rows_of,
    same_schema,
    stored_segments,
)


@pytest.fixture
def store(memory: str) -> OutputStore:
    return OutputStore(memory)


def test_a_commit_is_read_back_exactly_in_each_kind_of_store(
    place: tuple[str, StoreOptions],
) -> None:
    store = OutputStore(place[0], endpoint_url=place[1].endpoint_url)
    table = results(
        part("a", 0, texts=["one", "two"], last=False, channel=1, metadata='{"k": 1}'),
        part("a", 1, texts=[], status="no_speech"),
        part("b", 0, texts=None, status="failed", error_kind="timeout", retryable=True),
        part("c", 0, texts=["three"]),
    )
    written = commit(store, table)
    assert list(store.all_names("")) == [written], "one object"
    outcomes = rows_of(store.outcomes())
    keys = [(row["uri"], row["part"], row["segments_written"]) for row in outcomes]
    assert keys == [("/a", 0, 2), ("/a", 1, 0), ("/b", 0, 0), ("/c", 0, 1)]
    assert outcomes[0]["run_id"] == "run"
    assert outcomes[2]["error_kind"] == "timeout"
    segments = rows_of(stored_segments(store))
    assert [(row["uri"], row["part"], row["segment"], row["text"]) for row in segments] == [
        ("/a", 0, 0, "one"),
        ("/a", 0, 1, "two"),
        ("/c", 0, 0, "three"),
    ]
    assert segments[0]["channel"] == 1
    assert outcomes[0]["metadata"] == '{"k": 1}'
    assert segments[0]["tokens"] == [1, 2]
    assert (segments[0]["model"], segments[0]["model_revision"]) == ("model", "revision")


def test_words_are_read_back_exactly_and_null_where_older_objects_have_no_such_column(
    store: OutputStore,
) -> None:
    words = [
        {"word": " one", "start_s": 0.5, "end_s": 0.75, "probability": 0.5},
        {"word": " two.", "start_s": 0.75, "end_s": 1.0, "probability": 0.25},
    ]
    row = part("a", 0, texts=["one two.", "", "three"])
    row["segments"][0]["words"] = words
    row["segments"][1]["words"] = []
    written = commit(store, results(row))
    assert [row["words"] for row in rows_of(stored_segments(store))] == [words, [], None]
    (batch,) = stored_segments(store)
    older = pa.Table.from_batches([batch]).drop_columns(["words"])
    store.write_table("outcomes/1.parquet", store.read_table(written, OUTCOMES))
    store.write_table("segments/1.parquet", older)
    store.remove(written)
    assert [row["words"] for row in rows_of(stored_segments(store))] == [None] * 3


def test_objects_hold_the_exact_schemas(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    commit(store, results(part("a", 0, texts=["one"])))
    done(store, files("a"))
    for folder, schema in (("outcomes", OUTCOMES), ("segments", SEGMENTS)):
        [name] = store.names(folder)
        assert same_schema(pq.read_schema(tmp_path / str(name)), schema)
        metadata = pq.ParquetFile(tmp_path / str(name)).metadata
        assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_results_without_segments_are_outcomes_only(store: OutputStore) -> None:
    commit(store, results(part("a", 0, texts=[], status="no_speech")))
    commit(store, RESULTS.empty_table())
    assert rows_of(store.outcomes(["uri"])) == [{"uri": "/a"}]
    assert rows_of(stored_segments(store)) == []


def test_a_slice_of_results_commits_only_its_rows(store: OutputStore) -> None:
    table = results(*(part(name, 0, texts=[name]) for name in "abcd"))
    orphan(store, part("b", 0, texts=["orphan"]))  # which no outcomes have
    commit(store, pa.concat_tables([table.slice(1, 1), table.slice(3, 1)]))
    assert [row["text"] for row in rows_of(stored_segments(store))] == ["b", "d"]


def test_no_column_keeps_credentials(store: OutputStore) -> None:
    secret = "https://u:s3cr3t@host/a.mp3?v=1&X-Amz-Signature=s3cr3t"
    message = f"reading {secret}: no; see '{secret}', (ftp://u:s3cr3t@h/b c) or s3://b/k?x=1."
    metadata = json.dumps({"link": secret, "name": 'a "b" https://h/x?sig=s3cr3t"', "n": 1})
    commit(
        store,
        results(
            part("a", 0, texts=["x"], uri="sftp://u:s3cr3t@h/a.mp3", metadata=metadata),
            part("b", 0, texts=None, status="failed", error_message=message, metadata=metadata),
        ),
    )
    assert "s3cr3t" not in str(rows_of(stored_segments(store)))
    for row in rows_of(store.outcomes()):
        assert "s3cr3t" not in str(row)
        assert json.loads(row["metadata"]) == {
            "link": "https://host/a.mp3?v=1", "name": 'a "b" https://h/x"', "n": 1
        }  # fmt: skip
    sound, failed = rows_of(store.outcomes(["uri", "error_message"]))
    assert sound["uri"] == "sftp://h/a.mp3"
    assert failed["error_message"] == (
        "reading https://host/a.mp3?v=1: no; see 'https://host/a.mp3?v=1', (ftp://h/b c) or "
        "s3://b/k?x=1."
    )


def test_names_that_only_look_like_credentials_are_kept(store: OutputStore) -> None:
    uris = ["s3://b/u:p@h?x=1", "abfs://container@account.host/a?b", "/u:p@h/a?sig=1", "gs://b/a#b"]
    commit(store, results(*(part(uri, 0, texts=["x"], uri=uri) for uri in uris)))
    assert [row["uri"] for row in rows_of(store.outcomes(["uri"]))] == uris


def test_rows_that_cannot_be_accounted_for_are_refused(store: OutputStore) -> None:
    for change, message in (
        ({"status": "done"}, "unknown status"),
        ({"part": None}, "without part"),
        ({"recording_id": None}, "without recording_id"),
    ):
        row = part("a", 0, texts=["x"]) | change
        with pytest.raises(ValueError, match=message):
            commit(store, results(row))


def test_json_is_kept_and_missing_json_is_none(store: OutputStore) -> None:
    assert store.read_json("_run/x.json") is None
    store.write_json("_run/x.json", {"a": [1, "\u00fc"]})
    assert store.read_json("_run/x.json") == {"a": [1, "\u00fc"]}
    store.write_bytes("_run/x.json", b"{")
    with pytest.raises(CorpusAsrError, match="no valid JSON"):
        store.read_json("_run/x.json")


@pytest.mark.parametrize("name", ["outcomes/broken.parquet", "_run/commits/broken.rows"])
def test_a_broken_object_is_named(store: OutputStore, name: str) -> None:
    whole = filesystem.read_bytes(store.address(commit(store, results(part("a", 0, texts=["x"])))))
    for data in (b"not parquet", whole[:-1], whole[: len(whole) // 2], b""):
        store.write_bytes(name, data)
        with pytest.raises(
            CorpusAsrError, match=rf"{name}: found no readable Parquet.*; restore it, or"
        ):
            rows_of(store.outcomes())


def test_what_a_finish_wrote_counts_once_it_is_named_and_in_one_step(store: OutputStore) -> None:
    made = [commit(store, results(part(name, 0, texts=[name]))) for name in "ab"]
    [(_, rows, _), *_] = part_rows(store, made[:1], SEGMENT_ROWS)
    store.note_tables()
    written = store.write_tables(store.read_table(made[0], OUTCOMES), [rows])
    assert store.commit_names() == made
    kept = filesystem.read_bytes(store.address(made[0]))
    store.replace(made[:1], written)
    assert sorted(row["text"] for row in rows_of(stored_segments(store))) == ["a", "b"]
    store.write_bytes(made[0], kept)  # killed before it removed this
    assert store.commit_names() == [made[1], written[0]]
    assert store.leftovers() == made[:1]
    store.replace(written[:1], ())
    assert store.commit_names() == made[1:]
    assert store.names("segments") == []


@pytest.mark.parametrize(
    "noted",
    [
        b"{", b"1", b'{"tables": 1, "merged": [], "closed_runs": {}, "settled": null}',
        b'{"tables": {"outcomes/x.parquet": {}}, "merged": [], "closed_runs": {}, "settled": 1}',
        b'{"tables": {"outcomes/x.parquet": {}}, "merged": [], "closed_runs": {}, "settled": null}',
    ],
)  # fmt: skip
def test_a_note_of_tables_that_is_damaged_or_of_another_folder_is_named(
    store: OutputStore, noted: bytes
) -> None:
    commit(store, results(part("a", 0, texts=["x"])))
    done(store, files("a"))
    store.write_bytes(TABLES_NAME, noted)
    with (
        pytest.raises(CorpusAsrError, match=r"found .*; restore it, or remove"),
        Lock(store, "next"),
    ):
        raise AssertionError
    store.remove(TABLES_NAME)
    assert [row["text"] for row in rows_of(stored_segments(store))] == ["x"]
    commit(store, results(part("b", 0, texts=["y"])))
    assert done(store, files("a", "b")).remaining == 0
    assert sorted(row["text"] for row in rows_of(stored_segments(store))) == ["x", "y"]


@pytest.mark.parametrize("noted", [b'["outcomes/x.parquet"]', b'{"tables": [], "merged": []}'])
def test_a_folder_of_another_version_is_not_called_damaged(
    store: OutputStore, noted: bytes
) -> None:
    commit(store, results(part("a", 0, texts=["x"])))
    done(store, files("a"))
    store.write_bytes(TABLES_NAME, noted)
    with pytest.raises(ConfigError, match="found results of another version of corpus-asr"):
        store.commit_names()


def test_leftovers_of_killed_writes_are_no_tables(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    store.write_bytes(f"outcomes/.tmp-{0:032x}", b"half")
    store.write_bytes("outcomes/notes.txt", b"hello")
    assert store.names("outcomes") == []


def labelled(
    name: str, index: int, *means: tuple[str, float], weight_s: float = 1.0, **values: Any
) -> dict[str, Any]:
    """Return a RESULTS row of a part whose one window has these labels, as has the part."""
    rows = [
        {"window": 0, "start_s": 10.0 * index, "end_s": 10.0 * index + 9, "weight_s": weight_s,
         "rank": rank, "label": label, "probability": probability}
        for rank, (label, probability) in enumerate(means, start=1)
    ]  # fmt: skip
    return part(
        name, index, texts=None, labels=rows,
        label_means=[{"label": label, "probability": share} for label, share in means],
        label_weight_s=weight_s, **values,
    )  # fmt: skip


def test_many_small_commits_of_labels_become_one(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    names = "dacb"
    for index in (1, 0):
        for name in names:
            found = labelled(name, index, ("en", 0.75), ("de", 0.25), last=index == 1)
            commit(store, results(found))
    commit(store, results(labelled("a", 0, ("fr", 1.0), last=False)))  # a second one, which loses
    orphan(store, labelled("z", 0, ("fr", 1.0)), kind=LABEL_ROWS)
    assert len(rows_of(stored_segments(store, rows=LABEL_ROWS))) == 17
    assert rows_of(stored_segments(store)) == []
    counts = done(store, files(*names), pipeline="classify_audio")
    assert (counts.remaining, counts.ok, counts.segments) == (0, 4, 16)
    (name,) = store.names("labels")
    assert store.names("segments") == []
    assert same_schema(store.read_table(name, LABELS).schema, LABELS)
    messages = [
        (row["uri"], row["part"], row["rank"], row["label"])
        for row in rows_of(stored_segments(store, rows=LABEL_ROWS))
    ]
    assert messages == [
        (f"/{name}", index, rank, label)
        for name in sorted(names)
        for index in (0, 1)
        for rank, label in ((1, "en"), (2, "de"))
    ]
    assert {row["label"] for row in rows_of(store.recordings())} == {"en"}


def test_a_recordings_label_is_the_mean_of_its_parts_by_their_weights(store: OutputStore) -> None:
    found = [
        labelled("a", 0, ("en", 0.6), ("de", 0.4), weight_s=10.0, last=False),
        labelled("a", 1, ("de", 0.9), ("en", 0.1), weight_s=30.0),
        labelled("b", 0, ("sv", 0.5), ("da", 0.5)),
        labelled("c", 0),
        part("d", 0, texts=None, status="no_speech"),
    ]
    commit(store, results(*found))
    messages = {row["uri"]: row for row in complete(store)}
    assert messages["/a"]["label"] == "de"
    assert messages["/a"]["label_probability"] == pytest.approx((0.4 * 10 + 0.9 * 30) / 40)
    assert messages["/b"]["label"] == "da"  # of two as likely, the first by name
    for name in ("/c", "/d"):
        assert (messages[name]["label"], messages[name]["label_probability"]) == (None, None)


def test_a_part_has_segments_or_labels(tmp_path: Path) -> None:
    both = results(labelled("a", 0, ("en", 1.0)), part("b", 0, texts=["text"]))
    with pytest.raises(ValueError, match="found segments and labels, expected one of them"):
        commit(OutputStore(str(tmp_path)), both)


def test_rows_name_the_model_for_their_language(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    spoken = [("a", "de"), ("b", "en"), ("c", None), ("d", "fr")]
    table = results(*(part(name, 0, texts=["x"], language=code) for name, code in spoken))
    others = {"de": ("german", "1"), "fr": ("https://user:secret@host/french", "2")}
    commit(store, table, run_id="run", model="main", model_revision="0", by_language=others)
    named = {
        row["uri"]: (row["model"], row["model_revision"]) for row in rows_of(stored_segments(store))
    }
    main, french = ("main", "0"), ("https://host/french", "2")
    assert named == {"/a": ("german", "1"), "/b": main, "/c": main, "/d": french}


def test_conforming_fills_what_older_writers_lack() -> None:
    old = pa.table({"part": pa.array([1], pa.int64())})
    assert conform(old, OUTCOMES).schema.equals(OUTCOMES, check_metadata=True)
    assert conform(old, OUTCOMES)["part"].to_pylist() == [1]
    with pytest.raises(ValueError, match="unknown columns"):
        conform(pa.table({"parts": [1]}), OUTCOMES)
    with pytest.raises(ValueError, match="column part is string"):
        conform(pa.table({"part": ["x"]}), OUTCOMES)


def test_rows_without_credentials_are_the_same_table() -> None:
    kept = pa.table({"uri": ["s3://bucket/a b?.mp3", "/in/a.mp3", None]})
    assert without_credentials(kept)["uri"].to_pylist() == kept["uri"].to_pylist()
    plain = pa.table({"uri": ["s3://bucket/a.mp3", None], "part": [0, 1]})
    assert without_credentials(plain) is plain


SECRET = "s3cr3tVALUE99"


@pytest.mark.parametrize(
    "text",
    [
        f"Max retries exceeded with url: /v1/x?a=1&key={SECRET}", f"POST https://h/x?key={SECRET}",
        f"Authorization: Bearer {SECRET}", f"{{'Authorization': 'Basic {SECRET}'}}",
        repr(f"{{'X-API-Key': '{SECRET}\"'}}"), f"OPENAI_API_KEY={SECRET}", f"password='{SECRET}'",
        f'{{"token": "{SECRET}"}}', f"Cookie: session={SECRET}", f"postgres://u:{SECRET}@h/db",
        f"no such key: sk-{SECRET * 2}", f"AWS_SECRET_ACCESS_KEY={SECRET}", f"bearer {SECRET}",
    ],
)  # fmt: skip
def test_secrets_in_messages_of_libraries_are_hidden(store: OutputStore, text: str) -> None:
    assert SECRET not in without_secrets(text)
    commit(store, results(part("a", 0, texts=None, status="failed", error_message=text)))
    (row,) = rows_of(store.outcomes(["error_message"]))
    assert "[hidden]" in row["error_message"] or "postgres://h" in row["error_message"]
    assert SECRET not in row["error_message"]


def test_messages_without_secrets_stay_as_they_are() -> None:
    for text in (
        "reading s3://b/key=2024/a.mp3: not found", "key=lambda row: 1", "max_tokens=448",
        "expected Authorization: Basic", "bearer of bad news", "s3://b/api_key=1/a.mp3",
    ):  # fmt: skip
        assert without_secrets(text) == text
