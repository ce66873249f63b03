"""Columns of a manifest that change after their recordings were done."""

import json
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.storage.run_state.finish import finish
from corpus_asr.storage.run_state.plan import Plan, make_plan, read_listing, read_packs
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.run_files import begin_run, fingerprint
from corpus_asr.storage.run_state.run_tables import REDO_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.stores import life
from tests.support.tables import commit, part, results, rows_of, run_config

pytestmark = pytest.mark.long


class Folder:
    """An output folder of a manifest's recordings, run by committing rows."""

    def __init__(self, path: Path, *, align: bool) -> None:
        self.path, self.store = path, OutputStore(str(path / "out"))
        source = {"manifest": str(path / "list.jsonl")}
        self.config: RunConfig = run_config(
            "", self.store.uri, source=source, decoding={"align": align, "language": "en"}
        )

    def say(self, **recordings: dict[str, Any]) -> None:
        lines = [{"uri": f"{name}.wav"} | columns for name, columns in recordings.items()]
        (self.path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def plan(self) -> Plan:
        return make_plan(self.config, self.store, model_revision="w")

    def run(self, *, killed: float = float("inf"), reach: str = "ab") -> Plan | None:
        plan = None
        with life(killed) as process:
            plan = self.plan()
            if plan.redo is not None:
                note_redo(self.store, plan.redo)
            run = begin_run(self.store, self.config, fingerprint(self.config, "w"))
            files = (file for pack in read_packs(self.store, plan)
                     for row in pack.to_pylist() for file in row["files"])  # fmt: skip
            for file in files:
                name = Path(file["uri"]).stem
                said = json.loads(file["metadata"] or "{}").get("text", "nothing")
                same = {key: file[key] for key in ("recording_id", "uri", "size_bytes", "etag",
                                                   "metadata")}  # fmt: skip
                if name in reach:
                    row = part(name, 0, texts=[f"{name} {said}"]) | same
                    commit(self.store, results(row), run_id=run.run_id)
            finish(
                self.store, run, self.config, model_revision="w",
                listing=read_listing(self.store, plan), num_listed=plan.num_files,
                plan_name=plan.name,
            )  # fmt: skip
        return None if process.killed else plan

    def columns(self) -> dict[str, list[Any]]:
        """Return what all tables say of the recordings' columns."""
        found: dict[str, list[Any]] = {}
        store = self.store
        for rows in (store.segments(), store.outcomes(), store.recordings()):
            for row in rows_of(rows):
                said = row["metadata"] and json.loads(row["metadata"])
                found.setdefault(Path(row["uri"]).stem, []).append(said)
        return found

    def texts(self) -> list[str]:
        return sorted(row["text"] for row in rows_of(self.store.segments(["text"])))


A, B, CORRECTED = {"show": "one"}, {"show": "two"}, {"show": "uno", "day": 3}


def test_other_columns_are_written_without_transcription(tmp_path: Path) -> None:
    folder = Folder(tmp_path, align=False)
    folder.say(a=A, b=B)
    folder.run()
    objects = folder.store.names("outcomes")
    assert folder.plan().num_new_columns == 0
    folder.say(a=CORRECTED, b=B)
    plan = folder.run()
    assert plan is not None
    assert (plan.num_new_columns, plan.num_remaining) == (1, 0)
    assert plan.notes()[0].startswith("1 recording with other columns in the manifest: written")
    assert folder.columns() == {"a": [CORRECTED] * 3, "b": [B] * 3}
    assert folder.store.names("outcomes") != objects
    folder.say(a={}, b=B)
    folder.run()
    assert folder.columns() == {"a": [None] * 3, "b": [B] * 3}


def test_columns_are_written_in_a_run_that_replaces_other_rows_of_the_object(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path, align=True)
    folder.say(a={"text": "one"}, b={"text": "two", "show": "x"})
    folder.run()
    folder.say(a={"text": "uno"}, b={"text": "two", "show": "y"})
    plan = folder.run()
    assert plan is not None
    assert (plan.num_new_columns, plan.num_realigned) == (1, 1)
    assert folder.columns() == {"a": [{"text": "uno"}] * 3, "b": [{"text": "two", "show": "y"}] * 3}
    assert folder.texts() == ["a uno", "b two"]


@pytest.mark.parametrize(
    "killed", [2, 5, 7, *(pytest.param(at, marks=pytest.mark.slow) for at in (4, 6, 9))]
)
def test_columns_that_are_being_written_are_never_lost(tmp_path: Path, killed: int) -> None:
    folder = Folder(tmp_path, align=False)
    folder.say(a=A, b=B)
    folder.run()
    folder.say(a=CORRECTED, b=A)
    folder.run(killed=killed)
    assert set(folder.texts()) == {"a nothing", "b nothing"}
    folder.run()
    assert folder.columns() == {"a": [CORRECTED] * 3, "b": [A] * 3}
    assert folder.texts() == ["a nothing", "b nothing"]


def test_another_text_is_aligned_again_and_the_old_one_stays_until_then(tmp_path: Path) -> None:
    folder = Folder(tmp_path, align=True)
    first, other = {"text": "lobsters and oysters", "show": "x"}, {"text": "lobsters", "show": "x"}
    folder.say(a=first, b=first)
    folder.run()
    folder.say(a=other, b=first | {"show": "y"})
    plan = folder.run(reach="")
    assert plan is not None
    assert (plan.num_realigned, plan.num_new_columns, plan.num_remaining) == (1, 1, 1)
    assert folder.texts() == ["a lobsters and oysters", "b lobsters and oysters"]
    assert folder.columns() == {"a": [first] * 3, "b": [first | {"show": "y"}] * 3}
    plan = folder.run()
    assert plan is not None
    assert (plan.num_realigned, plan.num_redone) == (0, 1), "it waits, and is not asked for again"
    assert folder.texts() == ["a lobsters", "b lobsters and oysters"]
    assert folder.columns()["a"] == [other] * 3
    assert not folder.store.exists(REDO_NAME)
    folder.say(a=other | {"end_s": 2.0}, b=first)
    assert folder.plan().num_realigned == 1, "other times"
