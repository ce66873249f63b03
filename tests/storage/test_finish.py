"""Small commits become few large ones, and nothing is lost or doubled wherever that is killed."""

import random
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import OUTCOMES, SEGMENTS
from corpus_asr.storage.parquet import conform
from corpus_asr.storage.run_state import finish as finish_module
from corpus_asr.storage.run_state.finish import (
    compact,
    groups_to_merge,
    merge,
    merge_parts,
)
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.units import MEBIBYTE
from tests.storage.test_run_tables import done
from tests.support.stores import S3Server, life
from tests.support.tables import (
    commit,
    files,
    orphan,
    part,
    remaining,
    results,
    rows_of,
    same_schema,
    stored_segments,
)

pytestmark = pytest.mark.long


def tables_of(store: OutputStore) -> dict[str, list[Any]]:
    """Read the tables of a finished folder as any Parquet reader would, in any order."""
    found = {}
    for folder in ("segments", "outcomes", "recordings"):
        rows = []
        for name in store.all_names(folder):
            data = filesystem.read_bytes(store.address(name), store.options)
            rows += pq.read_table(pa.BufferReader(data)).to_pylist()
        found[folder] = sorted(map(repr, rows))
    return found


def test_a_complete_finish_merges_what_was_written_in_small_pieces(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    names = "dacbhgfezyxwvutsrqponmlkji"  # many: what Arrow groups has no order of its own
    for index in (1, 0):
        for name in names:
            commit(store, results(part(name, index, texts=["one", "two"], last=index == 1)))
    before, first = committed(store), store.commit_names()[0]
    assert done(store, files(*names)).remaining == 0
    after = tables_of(store)
    assert (after["segments"], after["outcomes"]) == before
    [outcomes], [segments] = store.names("outcomes"), store.names("segments")
    assert not list(store.all_names("_run/commits"))
    assert Path(outcomes).name < Path(first).name, "so that it wins over what it was made of"
    assert same_schema(pq.read_schema(tmp_path / outcomes), OUTCOMES)
    assert same_schema(pq.read_schema(tmp_path / segments), SEGMENTS)
    rows = pq.read_table(tmp_path / segments).to_pylist()
    keys = [(row["uri"], row["part"], row["start_s"]) for row in rows]
    assert keys == sorted(keys)
    assert Path(outcomes).name == Path(segments).name


def committed(store: OutputStore) -> tuple[list[str], list[str]]:
    """Return segments and outcomes as readers of this program see them."""
    rows = (rows_of(stored_segments(store)), rows_of(store.outcomes()))
    segments, outcomes = (sorted(map(repr, some)) for some in rows)
    return segments, outcomes


def test_nothing_is_merged_where_that_is_off(memory: str) -> None:
    store = OutputStore(memory)
    for name in "ab":
        commit(store, results(part(name, 0, texts=["x"])))
    assert done(store, files(*"ab"), target_mb=None).remaining == 0
    names = store.names("outcomes")
    assert len(names) == 2
    assert done(store, files(*"ab"), target_mb=None).remaining == 0
    assert store.names("outcomes") == names


def test_what_a_night_reads_depends_on_the_night_though_something_is_always_left(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, names = OutputStore(memory), [f"r{index:03d}" for index in range(81)]
    opened: list[str] = []
    open_binary = filesystem.open_binary

    def watched(uri: str, *arguments: Any) -> Any:
        opened.append(uri)
        return open_binary(uri, *arguments)

    monkeypatch.setattr(filesystem, "open_binary", watched)
    reads = []
    for night in range(8):
        for name in names[10 * night : 10 * night + 10]:
            commit(store, results(part(name, 0, texts=["x"])))
        opened.clear()
        assert not remaining(store, files(*names[:10]))
        assert done(store, files(*names)).remaining == 81 - 10 * (night + 1)
        reads.append(len(opened))
        assert len(store.names("outcomes")) <= 4
    assert max(reads[1:]) <= reads[0] + 3 * 4  # of which each may be read three times


def test_a_second_finish_has_nothing_to_merge(memory: str) -> None:
    store = OutputStore(memory)
    names = [f"r{index:02d}" for index in range(15)]
    for seed, name in enumerate(names):
        commit(store, results(part(name, 0, texts=[random.Random(seed).randbytes(150_000).hex()])))
    done(store, files(*names), target_mb=1.0)
    merged = store.sizes("segments")
    assert 2 <= len(merged) <= 6
    assert all(0.5 * MEBIBYTE < (size.bytes or 0) <= MEBIBYTE for size in merged.values())
    done(store, files(*names), target_mb=1.0)
    assert store.sizes("segments") == merged


@pytest.mark.parametrize("kept", [[0, 1], [2, 0, 1], [0, 1, 2, 2]])
def test_segments_that_are_not_what_the_outcomes_say_are_not_merged(
    memory: str, kept: list[int]
) -> None:
    store = OutputStore(memory)
    commit(store, results(part("a", 0, texts=["x", "y"]), part("c", 0, texts=["z"])))
    done(store, files("a", "c"))
    [name] = store.names("segments")
    store.write_table(name, store.read_table(name, SEGMENTS).take(kept))
    for other in "bde":
        commit(store, results(part(other, 0, texts=["x"])))
    with RunTables(store) as tables:
        store.replace(*merge_parts(store, tables, MEBIBYTE))
    with pytest.raises(CorpusAsrError, match="found other rows, expected the 3"):
        compact(store, MEBIBYTE)
    assert name in store.names("segments")


@given(
    commits=st.lists(
        st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 4)), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    sorted_rows=st.integers(1, 9),
    chunk_bytes=st.integers(1, 4000),
)
def test_any_rows_come_out_sorted_and_complete(
    commits: list[list[tuple[str, int]]], sorted_rows: int, chunk_bytes: int
) -> None:
    store = OutputStore(f"memory://{uuid.uuid4().hex}")
    for number, parts in enumerate(commits):
        rows = [
            part(name, 10 * number + position, texts=[f"{number} {position}"] * count)
            for position, (name, count) in enumerate(parts)
        ]
        commit(store, results(*rows))
    before, names = committed(store), store.commit_names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish_module, "SORTED_ROWS", sorted_rows)
        patch.setattr(finish_module, "CHUNK_BYTES", chunk_bytes)
        store.replace(names, merge(store, names, {}))
    assert committed(store) == before
    after = tables_of(store)
    assert (after["segments"], after["outcomes"]) == before
    outcomes = rows_of(store.outcomes())
    keys = [(row["uri"], row["part"]) for row in outcomes]
    assert len(names) == 1 or keys == sorted(keys)
    segments = rows_of(stored_segments(store))
    assert [(row["uri"], row["part"], row["segment"]) for row in segments] == [
        (row["uri"], row["part"], index)
        for row in outcomes
        for index in range(row["segments_written"])
    ]


@given(
    st.dictionaries(st.text("0123456789", min_size=1), st.integers(0, 2000), max_size=60),
    st.integers(1, 1000),
    st.data(),
)
def test_groups_are_of_small_neighbors_and_fit(
    weights: dict[str, int], target: int, data: st.DataObject
) -> None:
    stale = data.draw(st.sets(st.sampled_from(sorted(weights)))) if weights else set()
    with_stale = groups_to_merge(weights, target, stale)
    assert stale <= {name for names in with_stale for name in names}
    for names in with_stale:
        assert len(names) == 1 or sum(weights[name] for name in names) <= target
        assert len(names) > 1 or {*names} <= stale
        assert all(2 * weights[name] < target for name in {*names} - stale)
    groups = groups_to_merge(weights, target)
    chosen = [name for names in groups for name in names]
    assert chosen == sorted(set(chosen))
    for names in groups:
        assert len(names) > 1
        assert sum(weights[name] for name in names) <= target
        assert all(2 * weights[name] < target for name in names)


def test_a_year_of_nights_is_not_rewritten_every_night() -> None:
    target, night, written = 128.0, 3.0, 0.0
    weights: dict[str, float] = {}
    most = 0
    for number in range(365):
        for index in range(30):
            weights[f"{number:04d}-{index:04d}"] = night / 30
        while groups := groups_to_merge(weights, target):
            for names in groups:
                size = sum(weights.pop(name) for name in names)
                weights[names[0] + "!"] = size
                written += size
        most = max(most, sum(2 * weight < target for weight in weights.values()))
    total = 365 * night
    assert sum(weights.values()) == pytest.approx(total)
    assert most <= 6
    assert written < 5 * total
    assert sum(2 * weight >= target for weight in weights.values()) >= total / target


def history(store: OutputStore) -> pa.RecordBatch:
    """Leave what nights leave: commits of half a recording, doubled, replaced, and a leftover."""
    commit(store, results(part("a", 0, texts=["a0", "x"], last=False), part("b", 0, texts=["b"])))
    commit(store, results(part("a", 1, texts=["a1"]), part("c", 0, texts=["old"], etag="v0")))
    commit(store, results(part("c", 0, texts=[], status="no_speech")))
    for attempt in range(2):
        bad = part("bad", 0, texts=None, status="failed", error_kind=f"attempt {attempt}")
        commit(store, results(bad))
    commit(store, results(part("b", 0, texts=["again"]), part("unlisted", 0, texts=["u"])))
    orphan(store, part("d", 0, texts=["orphan"]))
    return files("a", "b", "c", "bad")


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("local", 4),
        ("s3", 25),  # each operation is a request: all of them are killed in the slow test
        pytest.param("local", 1, marks=pytest.mark.slow),
        pytest.param("s3", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_after_any_operation_the_next_finish_ends_the_same(
    kind: str, step: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base, endpoint_url = str(tmp_path), None
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3")
        base = f"s3://{request.getfixturevalue('bucket')}"
        endpoint_url = server.endpoint_url

    def folder(name: str) -> OutputStore:
        return OutputStore(f"{base}/{name}", endpoint_url=endpoint_url)

    undisturbed = folder("undisturbed")
    listing = history(undisturbed)
    with life() as undying:
        counts = done(undisturbed, listing)
    expected = tables_of(undisturbed)
    assert len(undisturbed.names("outcomes")) == 1
    assert counts.remaining == 0
    assert undying.changes > 10
    for operations in range(0, undying.changes, step):
        store = folder(f"after-{operations}")
        history(store)
        with life(operations) as process:
            done(store, listing)
        assert process.killed
        assert not store.exists("_SUCCESS")
        # What a run that continues here would do, and what a report would count, at this instant.
        assert not remaining(store, listing)
        assert _counting(store, listing) == expected["outcomes"]
        assert {repr(row) for row in rows_of(stored_segments(store))} >= {*expected["segments"]}
        assert done(store, listing) == counts
        assert tables_of(store) == expected, operations
        assert store.exists("_SUCCESS")


def _counting(store: OutputStore, listing: pa.RecordBatch) -> list[str]:
    with RunTables(store, columns=OUTCOMES.names, listing=[listing]) as run:
        found = run.table(f"select {', '.join(OUTCOMES.names)} from parts")
    return sorted(repr(row) for row in conform(found, OUTCOMES).to_pylist())


def test_a_reader_misses_no_recording_while_the_table_is_replaced(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OutputStore(memory)
    commit(store, results(part("a", 0, texts=["x"])))
    done(store, files("a"))
    seen: list[set[str]] = []
    remove_all = OutputStore.remove_all

    def watched(store: OutputStore, names: Iterable[str]) -> None:
        remove_all(store, names)
        seen.append({row["uri"] for row in rows_of(store.recordings(["uri"]))})

    monkeypatch.setattr(OutputStore, "remove_all", watched)
    commit(store, results(part("b", 0, texts=["x"])))
    done(store, files("a", "b"))
    assert all("/a" in each for each in seen), seen
    assert seen[-1] == {"/a", "/b"}
