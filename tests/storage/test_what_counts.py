"""What counts of random folders, held to the rules as a person would follow them, row by row."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.config.run import Retry
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.schemas import FILES, OUTCOMES, SEGMENTS
from corpus_asr.storage.run_state import run_tables
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.run_tables import REDO, RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import put_nested

Row = dict[str, Any]
Key = tuple[str | None, int | None, str | None]
KINDS = ("decode", "access_denied", "internal")


def key_of(row: Row) -> Key:
    return row["etag"], row["size_bytes"], row.get("content_digest")


def fits(one: Key, other: Key) -> bool:
    # Of a listing no sound is known.
    return all(a is None or b is None or a == b for a, b in zip(one[:2], other[:2], strict=True))


@dataclass
class Version:
    """One version of a recording, with the rows that count if it does."""

    key: Key
    generation: int
    newest: int
    parts: dict[int, Row]
    included: bool

    @property
    def whole(self) -> bool:
        ends = [part for part, row in self.parts.items() if row["last_part"]]
        return bool(ends) and all(part in self.parts for part in range(min(ends)))

    @property
    def rank(self) -> int:
        failed = any(row["status"] == "failed" for row in self.parts.values())
        text = any(row["segments_written"] for row in self.parts.values())
        if self.whole and not failed:
            return 2
        return int(self.whole and text and not self.included)


def generation_of(row: Row, redo: Iterable[Row]) -> int:
    """Return how often its recording was asked to be done again before the row was made."""
    mine = [each for each in redo if each["recording_id"] == row["recording_id"]]
    return sum(row["run_id"] not in each["earlier_runs"] for each in mine)


def versions_of(rows: list[Row]) -> list[Version]:
    ages = sorted(rows, key=lambda row: (row["generation"], row["run_id"], row["id"]))
    found = []
    keys = {(*key_of(row), row["generation"]) for row in rows}
    for etag, size_bytes, digest, generation in keys:
        key = (etag, size_bytes, digest)
        own = [
            row for row in rows
            if row["generation"] == generation
            and all(a is None or a == b for a, b in zip(key_of(row), key, strict=True))
        ]  # fmt: skip
        parts: dict[int, Row] = {}
        # The oldest that did not fail, else the newest; those of a known ETag first.
        for failed, has_etag in itertools.product((True, False), (False, True)):
            alike = [row for row in own if (row["status"] == "failed") is failed
                     and (row["etag"] is not None) is has_etag]  # fmt: skip
            for row in alike if failed else reversed(alike):
                parts[row["part"]] = row
        others = [each[:3] for each in keys if each[3] == generation and each[:3] != key]
        included = any(
            all(a is None or a == b for a, b in zip(key, each, strict=True)) for each in others
        )
        newest = max(
            at for at, row in enumerate(ages)
            if key_of(row) == key and row["generation"] == generation
        )  # fmt: skip
        found.append(Version(key, generation, newest, parts, included))
    return found


def best(versions: Iterable[Version], fresh: Iterable[Version] = ()) -> Version:
    chosen = [(each.key, each.generation) for each in fresh]
    return max(versions, key=lambda v: (
        v.rank, (v.key, v.generation) in chosen, not v.included, v.newest))  # fmt: skip


def random_redo(names: list[str], chance: random.Random) -> list[Row]:
    """Return REDO rows: which recordings were asked to be done again, after how many runs."""
    return [
        {"recording_id": chance.choice(names),
         "earlier_runs": [f"run-{number}" for number in range(chance.randint(1, 4))]}
        for _ in range(chance.choice([0, 0, 1, 2, 4]))
    ]  # fmt: skip


def random_folder(
    store: OutputStore, chance: random.Random
) -> tuple[list[Row], list[Row], list[Row]]:
    """Commit rows of a few recordings in any order.

    Returns those that are there, a listing, and what was asked to be done again.
    """
    names = [f"r{number}" for number in range(chance.randint(1, 5))]
    listing = [
        {"recording_id": name, "uri": f"/{name}", "size_bytes": chance.choice([None, 1]),
         "etag": chance.choice([None, "a", "b"])}
        for name in names if chance.random() < 0.8
    ]  # fmt: skip
    there: list[Row] = []
    redo = random_redo(names, chance)
    note_redo(store, pa.Table.from_pylist(redo, REDO))
    ids = itertools.count()
    for number in range(chance.randint(0, 7)):
        rows: list[Row] = []
        for _ in range(chance.randint(1, 8)):
            failed = chance.random() < 0.3
            name, part, written = chance.choice(names), chance.randint(0, 2), chance.randint(0, 2)
            rows.append({
                "run_id": f"run-{number // 2}", "recording_id": name, "uri": f"/{name}",
                "size_bytes": chance.choice([None, 1, 1]),
                "etag": chance.choice([None, "a", "a", "b"]), "part": part,
                "last_part": chance.random() < 0.5, "duration_s": 5.0,
                "status": "failed" if failed else "ok" if written else "no_speech",
                "error_kind": chance.choice(KINDS) if failed else None,
                "segments_written": 0 if failed else written,
                "content_digest": None if failed else chance.choice([None, "x", "x", "y"]),
            })  # fmt: skip
        segments = [
            {"run_id": "run", "recording_id": row["recording_id"], "part": row["part"]}
            for row in rows for _ in range(row["segments_written"])
        ]  # fmt: skip
        outcomes, texts = (
            pa.Table.from_pylist(rows, OUTCOMES),
            pa.Table.from_pylist(segments, SEGMENTS),
        )
        if chance.random() < 0.5:
            put_nested(store, outcomes, texts)
        else:
            store.replace((), store.write_tables(outcomes, [texts]))
        numbered = [row | {"id": next(ids), "generation": generation_of(row, redo)} for row in rows]
        there += numbered
    return there, listing, redo


# `--hypothesis-profile many` takes some thousand folders.
@pytest.mark.long
@settings(max_examples=settings().max_examples, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_what_counts_and_what_remains(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    store, chance = OutputStore(str(tmp_path_factory.mktemp("folder"))), random.Random(seed)
    there, listing, redo = random_folder(store, chance)
    asked = Counter(row["recording_id"] for row in redo)
    table = pa.Table.from_pylist(listing, FILES).combine_chunks()
    batches = table.to_batches() or [pa.RecordBatch.from_pylist([], FILES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_tables, "_PARTS_AT_ONCE", 5)
        tables = RunTables(store, listing=batches)
    listed = {row["recording_id"]: row for row in listing}
    counting: list[int] = []
    failing: list[int] = []
    states: dict[str, dict[str, bool]] = {}
    for name in {row["recording_id"] for row in there}:
        versions = versions_of([row for row in there if row["recording_id"] == name])
        newest = max(versions, key=lambda version: version.newest)
        present = key_of(listed[name]) if name in listed else newest.key
        fresh = [version for version in versions
                 if fits(version.key, present) and not version.included
                 and version.generation == asked[name]]  # fmt: skip
        counts = best(versions, fresh)
        now = best(fresh) if fresh else None
        counting += [row["id"] for row in counts.parts.values()]
        failing += [row["id"] for row in (now.parts.values() if now else ())
                    if row["status"] == "failed" and row not in counts.parts.values()]  # fmt: skip
        states[name] = {
            "complete": counts.whole, "current": counts.whole and counts is now,
            "listed": name in listed,
            "failed_since": name in listed and now is not None and now.whole and now is not counts,
            "earlier": name in listed and now is not counts and counts.rank > 0,
        }  # fmt: skip
        assert_rest(tables, name, counts)
    numbered = "(select id, row_number() over (order by id) - 1 as number from outcomes)"
    for of, expected in (("parts", counting), ("failing", failing)):
        query = f"select number from {numbered} semi join {of} using (id) order by number"
        assert tables.rows(query) == [(number,) for number in sorted(expected)]
    columns = ("complete", "current", "listed", "failed_since", "earlier")
    found = tables.rows(f"select recording_id, {', '.join(columns)} from recordings")
    assert {name: dict(zip(columns, rest, strict=True)) for name, *rest in found} == states
    for retry in Retry:
        left = {row["recording_id"]: row["done_parts"]
                for row in tables.remaining(batches[0], retry).to_pylist()}  # fmt: skip
        assert left == {
            name: parts for name, row in listed.items()
            if (parts := left_of([each for each in there if each["recording_id"] == name
                                  and each["generation"] == asked[name]],
                                 key_of(row), retry)) is not None
        }  # fmt: skip
    tables.close()


def assert_rest(tables: RunTables, name: str, counts: Version) -> None:
    """Compare what a recording came to."""
    query = "select status, parts, segments, duration_s from recordings where recording_id = $name"
    rows = list(counts.parts.values())
    written = sum(row["segments_written"] for row in rows)
    failed = any(row["status"] == "failed" for row in rows)
    status = "failed" if failed else "ok" if written else "no_speech"
    assert tables.rows(query, name=name) == [(status, len(rows), written, 5.0 * len(rows))]


def left_of(rows: list[Row], present: Key, retry: Retry) -> list[int] | None:
    """Return the parts that are done of a recording that is to be done; None: it is done."""
    fresh = [version for version in versions_of(rows)
             if fits(version.key, present) and not version.included]  # fmt: skip
    if not fresh:
        return []
    now = best(fresh)
    again = {
        part for part, row in now.parts.items()
        if row["status"] == "failed" and retry.includes(failure_kind(row["error_kind"]).origin)
    }  # fmt: skip
    kept = {part: row for part, row in now.parts.items() if part not in again}
    whole = Version(now.key, 0, 0, kept, included=False).whole
    if whole and not again:
        return None
    ended = [part for part, row in kept.items() if row["status"] == "failed" and row["last_part"]]
    return sorted(kept.keys() - set(ended))
