"""Which attempts count over random histories, held to the rules as a person would follow them."""

import random
from dataclasses import dataclass, field
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
from corpus_asr.storage.run_state.run_tables import FAILED, RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_run_tables import done
from tests.support.tables import put_nested, rows_of

Row = dict[str, Any]
KINDS = ("decode", "access_denied", "internal")


def fits(one: Row, other: Row) -> bool:
    """Return whether two may be of one version: what is unknown fits anything."""
    return all(
        one[name] is None or other[name] is None or one[name] == other[name]
        for name in ("etag", "size_bytes")
    )


def is_whole(parts: dict[int, Row]) -> bool:
    ends = [part for part, row in parts.items() if row["last_part"]]
    return bool(ends) and all(part in parts for part in range(min(ends)))


@dataclass
class Attempt:
    """The rows of one attempt at a recording, in the order of their commits."""

    begun_by: str
    rows: list[Row] = field(default_factory=list)
    tabled: dict[int, Row] = field(default_factory=dict)
    """Those that are in the tables."""
    is_redone: bool = False

    @property
    def version(self) -> Row:
        known: Row = {"etag": None, "size_bytes": None}
        for row in [*self.tabled.values(), *self.rows]:
            known |= {name: row[name] for name in known if row[name] is not None}
        return known

    @property
    def parts(self) -> dict[int, Row]:
        """Return its first success of each part, else its last failure."""
        parts = dict(self.tabled)
        for row in self.rows:
            if parts.get(row["part"], {"status": "failed"})["status"] == "failed":
                parts[row["part"]] = row
        return parts

    @property
    def counting(self) -> dict[int, Row]:
        """Return the rows that count if it does: what is in the tables stays until all is there."""
        return self.tabled if self.tabled and not is_whole(self.parts) else self.parts

    @property
    def rank(self) -> tuple[int, bool]:
        rows = self.counting.values()
        failed = any(row["status"] == "failed" for row in rows)
        text, whole = any(row["segments_written"] for row in rows), is_whole(self.counting)
        return (2 if whole and not failed else int(whole and text)), whole


@dataclass
class Recording:
    """The attempts at a recording, the oldest first."""

    attempts: list[Attempt] = field(default_factory=list)

    @property
    def counting(self) -> Attempt | None:
        best = None
        for attempt in sorted(self.attempts, key=lambda attempt: not attempt.tabled):
            if best is None or attempt.rank >= best.rank:
                best = attempt
        return best

    def present(self, file: Row | None) -> Attempt | None:
        """Return the attempt that a run goes on with."""
        if file is None:
            return next((each for each in self.attempts[-1:] if not each.is_redone), None)
        fresh = [each for each in self.attempts
                 if not each.is_redone and fits(each.version, file)]  # fmt: skip
        return self.counting if self.counting in fresh else next(reversed(fresh), None)

    def left(self, file: Row, retry: Retry) -> tuple[str | None, list[int]] | None:
        """Return the attempt to go on with and its parts that are done; None: nothing is left."""
        attempt = self.present(file)
        if attempt is None:
            return None, []
        parts = attempt.parts
        again = {part for part, row in parts.items() if row["status"] == "failed"
                 and retry.includes(failure_kind(row["error_kind"]).origin)}  # fmt: skip
        kept = {part: row for part, row in parts.items() if part not in again}
        if is_whole(kept) and not again:
            return None
        ended = {part for part, row in kept.items()
                 if row["status"] == "failed" and row["last_part"]}  # fmt: skip
        return attempt.begun_by, sorted(kept.keys() - ended)

    def finish(self, file: Row | None) -> None:
        """Leave one attempt in the tables, if it is whole, and one that waits."""
        counting, present = self.counting, self.present(file)
        self.attempts = [each for each in self.attempts if each in (counting, present)]
        if counting is not None and is_whole(counting.parts):
            counting.tabled, counting.rows = counting.parts, []
        elif counting is not None and counting.tabled and counting is not present:
            counting.rows = []


class History:
    """A folder as runs write it, and the recordings that should come of it."""

    def __init__(self, store: OutputStore, chance: random.Random) -> None:
        self.store, self.chance = store, chance
        self.files = {f"r{number}": self.new_file() for number in range(chance.randint(1, 4))}
        self.recordings = {name: Recording() for name in self.files}
        self.redo: list[Row] = []

    def new_file(self) -> Row:
        chance = self.chance
        etag = chance.choice([None, f"e{chance.randint(0, 10**6)}"])
        return {"etag": etag, "size_bytes": chance.randint(1, 3), "parts": chance.randint(1, 3)}

    def run(self, number: int) -> None:
        """Change files, do what a plan finds left, perhaps not to the end, and perhaps finish."""
        chance = self.chance
        for name in self.files:
            if chance.random() < 0.25:
                self.files[name] = self.new_file()
            elif chance.random() < 0.1:  # as another listing says it
                self.files[name]["etag"] = None
        listed = {name: {"recording_id": name, "uri": f"/{name}", **self.files[name]}
                  for name in self.files if chance.random() < 0.9}  # fmt: skip
        if chance.random() < 0.3:
            self.ask_again(chance.choice([*self.files]))
        rows = [{key: row[key] for key in row if key != "parts"} for row in listed.values()]
        listing = pa.RecordBatch.from_pylist(rows, FILES)
        retry = chance.choice([*Retry])
        self.check(listing, listed)
        left = self.left(listing, listed, retry)
        self.commit(f"run-{number:02}", left, listed)
        self.check(listing, listed)
        if chance.random() < 0.6:
            done(self.store, listing)
            for name, recording in self.recordings.items():
                recording.finish(listed.get(name))
            whole = {name for name, recording in self.recordings.items()
                     if recording.counting and is_whole(recording.counting.counting)}  # fmt: skip
            written = rows_of(self.store.recordings(("recording_id",)))
            assert sorted(row["recording_id"] for row in written) == sorted(whole)
            tabled = {name for name in self.store.commit_names() if name.startswith("outcomes")}
            kept = [row["recording_id"] for name in tabled
                    for row in self.store.read_table(name, OUTCOMES).to_pylist()]  # fmt: skip
            assert sorted(kept) == sorted(
                name for name, recording in self.recordings.items() if recording.counting
                for _ in recording.counting.tabled
            )  # fmt: skip
            self.check(listing, listed)

    def ask_again(self, name: str) -> None:
        fresh = [each for each in self.recordings[name].attempts if not each.is_redone]
        for attempt in fresh:
            attempt.is_redone = True
            self.redo.append({"recording_id": name, "begun_by": attempt.begun_by})
        note_redo(self.store, pa.Table.from_pylist(self.redo, run_tables.REDO))

    def left(self, listing: pa.RecordBatch, listed: dict[str, Row], retry: Retry) -> dict[str, Any]:
        expected = {name: left for name, file in listed.items()
                    if (left := self.recordings[name].left(file, retry)) is not None}  # fmt: skip
        for opened in (None, FAILED):
            with RunTables(self.store, opened=opened) as tables:
                rows = tables.remaining(listing, retry).to_pylist()
            assert expected == {
                row["recording_id"]: (row["begun_by"], sorted(row["done_parts"])) for row in rows
            }
        return expected

    def commit(self, run_id: str, left: dict[str, Any], listed: dict[str, Row]) -> None:
        made: list[Row] = []
        chance = self.chance
        for name, (begun_by, done_parts) in left.items():
            file = listed[name]
            for number in range(file["parts"]):
                if number in done_parts:
                    continue
                failed = chance.random() < 0.25
                ends = failed and chance.random() < 0.5
                written = 0 if failed else chance.randint(0, 2)
                made.append({
                    "run_id": run_id, "begun_by": begun_by or run_id, "recording_id": name,
                    "uri": f"/{name}", "etag": file["etag"], "size_bytes": file["size_bytes"],
                    "part": number, "last_part": ends or number == file["parts"] - 1,
                    "duration_s": 5.0, "segments_written": written,
                    "status": "failed" if failed else "ok" if written else "no_speech",
                    "error_kind": chance.choice(KINDS) if failed else None,
                })  # fmt: skip
                if ends:
                    break
        if chance.random() < 0.5:  # killed
            chance.shuffle(made)
            made = made[: chance.randint(0, len(made))]
        for rows in (made[at : at + 3] for at in range(0, len(made), 3)):
            segments = [{"run_id": run_id, "recording_id": row["recording_id"], "part": row["part"]}
                        for row in rows for _ in range(row["segments_written"])]  # fmt: skip
            put_nested(self.store, pa.Table.from_pylist(rows, OUTCOMES),
                       pa.Table.from_pylist(segments, SEGMENTS))  # fmt: skip
            for row in rows:
                attempts = self.recordings[row["recording_id"]].attempts
                own = [each for each in attempts if each.begun_by == row["begun_by"]]
                if not own:
                    own = [Attempt(row["begun_by"])]
                    attempts += own
                own[0].rows.append(row)

    def check(self, listing: pa.RecordBatch, listed: dict[str, Row]) -> None:
        keys = ("recording_id", "begun_by", "part", "run_id", "status")
        attempts = [each.counting for each in self.recordings.values()]
        rows = [row for attempt in attempts if attempt for row in attempt.counting.values()]
        expected = [tuple(row[key] for key in keys) for row in rows]
        with RunTables(self.store, listing=[listing]) as tables:
            assert sorted(expected) == tables.rows(
                f"select {', '.join(keys)} from parts order by all"
            )
        states = {}
        for name, recording in self.recordings.items():
            counting, present = recording.counting, recording.present(listed.get(name))
            if counting is not None:
                whole = is_whole(counting.counting)
                states[name] = (
                    whole, whole and counting is present,
                    name in listed and present is not None and present is not counting
                    and is_whole(present.parts),
                )  # fmt: skip
        for opened in ("false", "true"):
            with RunTables(self.store, listing=[listing], opened=opened) as tables:
                query = "select recording_id, complete, current, failed_since from counted"
                assert states == {name: tuple(rest) for name, *rest in tables.rows(query)}


# `--hypothesis-profile many` takes some thousand histories.
@pytest.mark.long
@settings(max_examples=max(5, settings().max_examples // 4), deadline=None)
@given(seed=st.integers(0, 10**9))
def test_one_attempt_counts_and_one_waits(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    history = History(OutputStore(str(tmp_path_factory.mktemp("folder"))), random.Random(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_tables, "_PARTS_AT_ONCE", 5)
        for number in range(history.chance.randint(2, 5)):
            history.run(number)
