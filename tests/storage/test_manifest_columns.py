"""Columns of a manifest that change after their recordings were done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.export.speakers import read_segments
from corpus_asr.storage.run_state.plan import Plan, make_plan
from corpus_asr.storage.run_state.run_tables import REDO_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_members import tar_bytes
from tests.support.audio import wav_of
from tests.support.runs import REVISION, complete_run
from tests.support.stores import life
from tests.support.tables import digest_of, part, rows_of, run_config, stored_segments

pytestmark = pytest.mark.long

GUIDE = (Path(__file__).parents[2] / "docs" / "how-to" / "manifests.md").read_text()


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
        return make_plan(self.config, self.store, model_revision=REVISION)

    def run(
        self,
        *,
        killed: float = float("inf"),
        reach: str = "ab",
        name_of: Callable[[str], str] = lambda uri: Path(uri).stem,
    ) -> Plan | None:
        def rows_of_file(file: dict[str, Any]) -> list[dict[str, Any]]:
            name = name_of(file["uri"])
            said = json.loads(file["metadata"] or "{}").get("text", "nothing")
            same = {key: value for key, value in file.items() if key != "done_parts"}
            same["content_digest"] = digest_of(file["uri"])
            return [part(name, 0, texts=[f"{name} {said}"]) | same] if name in reach else []

        plan = None
        with life(killed):
            plan, _ = complete_run(self.store, self.config, rows_of_file)
        return plan

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the recordings as readers find them."""
        found: dict[str, list[Any]] = {}
        segments = read_segments(self.store.uri).to_pylist()
        for row in (*rows_of(self.store.recordings()), *segments):
            said = row["metadata"] and json.loads(row["metadata"])
            found.setdefault(Path(row["uri"]).stem, []).append(said)
        return found

    def texts(self) -> list[str]:
        return sorted(row["text"] for row in rows_of(stored_segments(self.store, ["text"])))


def test_texts_beside_audio_follow_the_sounds_whose_files_are_renamed(tmp_path: Path) -> None:
    folder = Folder(tmp_path, align=True)
    source = {"uri": str(tmp_path / "*.tar")}
    folder.config = run_config("", folder.store.uri, source=source, decoding={"align": True})
    found: dict[str, str] = {}
    # Sounds by name, and the texts beside them. One is renamed; two change names; a ring and a new
    # one; then the archive is renamed.
    steps: tuple[dict[str, str], ...] = (
        {"a": "one", "b": "two"}, {"c": "one", "b": "two"}, {"b": "one", "c": "two"},
        {"c": "one", "d": "two", "b": "three"}, {"c": "one", "d": "two", "b": "three"},
    )  # fmt: skip
    for number, sounds in enumerate(steps):
        new = {name: sound for name, sound in sounds.items() if sound not in found}
        files = [
            (f"{name}.{ending}", content)
            for name, sound in sounds.items()
            for ending, content in (("wav", wav_of(sound)), ("txt", f"of {sound}".encode()))
        ]
        (tmp_path / "0.tar").unlink(missing_ok=True)
        (tmp_path / f"{number // 4}.tar").write_bytes(tar_bytes(files))
        plan = folder.run(reach="".join(new), name_of=lambda uri: uri.partition("#")[2][0])
        assert plan is not None
        assert (plan.num_remaining, plan.num_realigned) == (len(new), 0), sounds
        found |= {sound: f"{name} of {sound}" for name, sound in new.items()}
        texts = {row["uri"].partition("#")[2]: row["text"] for row in
                 read_segments(folder.store.uri).to_pylist()}  # fmt: skip
        assert texts == {f"{name}.wav": found[sound] for name, sound in sounds.items()}
    files = [("c.wav", wav_of("one")), ("c.txt", b"another text")]
    (tmp_path / "1.tar").write_bytes(tar_bytes(files))
    assert folder.plan().num_realigned == 1, "another text beside the same sound"


A, B, CORRECTED = {"show": "one"}, {"show": "two"}, {"show": "uno", "day": 3}


def test_readers_find_other_columns_and_no_result_is_rewritten(tmp_path: Path) -> None:
    folder = Folder(tmp_path, align=False)
    folder.say(a=A, b=B)
    folder.run()
    results_of_a_run = [*folder.store.commit_names(), *folder.store.names("segments")]
    for columns in (CORRECTED, {"show": ["other", "kind"]}, {}):
        folder.say(a=columns, b=B)
        plan = folder.run()
        assert plan is not None
        assert (plan.num_remaining, plan.notes()) == (0, [])
        assert folder.columns() == {"a": [columns or None] * 2, "b": [B] * 2}
    folder.say(a=CORRECTED)
    folder.run()
    assert folder.columns() == {"a": [CORRECTED] * 2, "b": [B] * 2}, "what is not listed keeps its"
    assert [*folder.store.commit_names(), *folder.store.names("segments")] == results_of_a_run
    query = GUIDE.split("-- columns of the manifest\n")[1].partition("```")[0]
    with duckdb.connect() as database:
        joined = database.sql(query.replace("output/demo", folder.store.uri)).fetchall()
    assert sorted(row[0] for row in joined) == ["two", "uno"]
    options = RunOptions(redo="metadata->>'show' = 'uno'")
    plan = make_plan(folder.config, folder.store, model_revision=REVISION, options=options)
    assert plan.num_matched == 1


def test_another_text_is_aligned_again_and_the_old_one_stays_until_then(tmp_path: Path) -> None:
    folder = Folder(tmp_path, align=True)
    first, other = {"text": "lobsters and oysters", "show": "x"}, {"text": "lobsters", "show": "x"}
    folder.say(a=first, b=first)
    folder.run()
    folder.say(a=other, b=first | {"show": "y"})
    for killed, new, redone in ((5, 1, 0), (float("inf"), 0, 1)):
        plan = folder.plan()
        folder.run(reach="", killed=killed)
        assert (plan.num_realigned, plan.num_redone, plan.num_remaining) == (new, new + redone, 1)
        assert folder.texts() == ["a lobsters and oysters", "b lobsters and oysters"]
    assert folder.columns() == {"a": [other] * 2, "b": [first | {"show": "y"}] * 2}
    done = folder.run()
    assert done is not None
    assert (done.num_realigned, done.num_redone) == (0, 1), "it waits, and is not asked for again"
    assert folder.texts() == ["a lobsters", "b lobsters and oysters"]
    assert folder.columns()["a"] == [other] * 2
    assert not folder.store.exists(REDO_NAME)
    folder.say(a=other | {"end_s": 2.0}, b=first)
    assert folder.plan().num_realigned == 1, "other times"
