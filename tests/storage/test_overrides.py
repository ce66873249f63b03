"""What people set in place of a manifest's columns: saved, planned, followed, forgotten."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.report.status import as_data, load_status, render
from corpus_asr.storage.run_state.finish import finish
from corpus_asr.storage.run_state.forget import forget
from corpus_asr.storage.run_state.overrides import (
    OVERRIDDEN,
    OVERRIDES_FOLDER,
    Applied,
    Override,
    Overrides,
    override,
    read_override,
    save_override,
)
from corpus_asr.storage.run_state.plan import Plan, make_plan, read_listing, read_packs
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.run_files import begin_run, fingerprint
from corpus_asr.storage.run_state.run_tables import REDO_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.runs import ManualRun
from tests.support.stores import life
from tests.support.tables import commit, part, results, rows_of, run_config


def save(
    store: OutputStore, own: str, *, num: int | None = None, hotwords: str = ""
) -> Override | None:
    """Save as somebody who has seen what stands."""
    made = override(own, num_speakers=num, hotwords=hotwords, name="Anna")
    return save_override(store, made, seen=read_override(store, own).number)


def test_the_second_of_two_who_saw_the_same_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    assert read_override(store, "a") == Override(recording_id="a")
    first = override("a", num_speakers=2, hotwords="Ada, Babbage\nAda", name=" Anna  B ")
    second = override("a", num_speakers=3, hotwords="", name="")
    stands = save_override(store, first, seen=0)
    assert save_override(store, second, seen=0) is None
    assert read_override(store, "a") == stands
    assert stands is not None
    assert (stands.hotwords, stands.name, stands.number) == (("Ada", "Babbage"), "Anna B", 1)
    assert save_override(store, second, seen=1) is not None
    assert read_override(store, "a").num_speakers == 3
    assert [*store.all_names(OVERRIDES_FOLDER)] == [
        "overrides/a/000001.json", "overrides/a/000002.json"
    ]  # fmt: skip
    assert len(Overrides.load(store)) == 1


def test_of_two_servers_at_once_one_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = OutputStore(str(tmp_path))
    stale = read_override(store, "a")
    assert save(store, "a", num=2) is not None
    # Its look was before the other's save.
    monkeypatch.setattr("corpus_asr.storage.run_state.overrides.read_override", lambda *_: stale)
    late = override("a", num_speakers=5, hotwords="", name="")
    assert save_override(store, late, seen=0) is None
    assert read_override(store, "a").num_speakers == 2


@pytest.mark.parametrize(
    ("num", "hotwords", "name", "why"),
    [(0, "", "", "found 0 speakers"), (51, "", "", "expected 1 to 50"),
     (None, "x" * 201, "", "a phrase of 201 characters"), (None, "a\x00b", "", r"U\+0000"),
     (None, "ab, " * 6_000, "", "hotwords of 24,000 characters"), (2, "", "n" * 101, "101")],
)  # fmt: skip
def test_what_no_run_can_use_is_refused(num: Any, hotwords: str, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        override("a", num_speakers=num, hotwords=hotwords, name=name)


@pytest.mark.parametrize("said", [{}, {"num_speakers": "2"}, {"hotwords": 7}, {"name": None}, []])
def test_what_is_no_save_is_named(tmp_path: Path, said: Any) -> None:
    store = OutputStore(str(tmp_path))
    whole = {"recording_id": "a", "num_speakers": 2, "hotwords": [], "name": "", "saved_at": ""}
    store.write_json("overrides/a/000001.json", whole | said if isinstance(said, dict) and said
                     else said)  # fmt: skip
    with pytest.raises(CorpusAsrError, match=r"a/000001.json: found nothing that was set"):
        Overrides.load(store)


def test_columns_keep_what_the_manifest_says() -> None:
    two = Override(recording_id="a", num_speakers=2)
    text = two.of_columns('{"max_speakers": 4, "show": "x"}')
    assert json.loads(text or "") == {
        "num_speakers": 2, "show": "x",
        OVERRIDDEN: {"max_speakers": 4, "num_speakers": None},
    }  # fmt: skip
    applied = Applied.of(text)
    assert (applied.num_speakers, applied.hotwords, applied.manifest["max_speakers"]) == (2, (), 4)
    assert applied.manifest["num_speakers"] is None
    assert Override(recording_id="a").of_columns('{"a": 1}') == '{"a": 1}'
    theirs = Applied.of(json.dumps({OVERRIDDEN: "a column of theirs", "num_speakers": 4}))
    assert (theirs.num_speakers, theirs.manifest) == (None, {"num_speakers": 4})


class Folder:
    """An output folder of a manifest's or a folder's recordings, run by committing rows."""

    def __init__(self, path: Path, *, manifest: bool = True) -> None:
        self.path, self.store = path, OutputStore(str(path / "out"))
        for name in "abc":
            (path / f"{name}.wav").write_bytes(name.encode())
        source = {"manifest": str(path / "list.jsonl")} if manifest else {"uri": str(path)}
        self.config: RunConfig = run_config("", self.store.uri, source=source)
        self.deaf_to: tuple[str | None, ...] = ()
        """Languages whose model takes no hotwords."""

    def takes_hotwords(self, language: str | None) -> bool:
        return language not in self.deaf_to

    def say(self, **recordings: Mapping[str, Any]) -> None:
        lines = [{"uri": f"{name}.wav", **columns} for name, columns in recordings.items()]
        (self.path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def id(self, name: str) -> str:
        return recording_id(str(self.path / f"{name}.wav"))

    def set(self, name: str, **values: Any) -> None:
        assert save(self.store, self.id(name), **values) is not None

    def run(self, *, killed: float = float("inf"), reach: str = "abc") -> Plan:
        with life(killed):
            self.plan = make_plan(
                self.config, self.store, model_revision="w", takes_hotwords=self.takes_hotwords
            )
            if self.plan.redo is not None:
                note_redo(self.store, self.plan.redo)
            run = begin_run(self.store, self.config, fingerprint(self.config, "w"))
            files = (file for pack in read_packs(self.store, self.plan)
                     for row in pack.to_pylist() for file in row["files"])  # fmt: skip
            for file in files:
                name = Path(file["uri"]).stem
                columns = json.loads(file["metadata"] or "{}")
                said = [f"{name} by {columns.get('hotwords')}"]
                own = {key: file[key] for key in ("recording_id", "uri", "size_bytes", "etag",
                                                  "metadata")}  # fmt: skip
                spoken = part(name, 0, texts=said, language=columns.get("language"), last=False)
                silent = part(name, 1, texts=None, status="no_speech")
                if name in reach:
                    commit(self.store, results(spoken | own, silent | own), run_id=run.run_id)
            finish(
                self.store, run, self.config, model_revision="w",
                listing=read_listing(self.store, self.plan), num_listed=self.plan.num_files,
                plan_name=self.plan.name, takes_hotwords=self.takes_hotwords,
            )  # fmt: skip
        return self.plan

    def texts(self) -> list[str]:
        return sorted(row["text"] for row in rows_of(self.store.segments(["text"])))

    def columns(self, name: str) -> Any:
        rows = rows_of(self.store.recordings())
        [metadata] = [row["metadata"] for row in rows if Path(row["uri"]).stem == name]
        return json.loads(metadata or "null")


PLAIN = ["a by None", "b by None", "c by None"]


@pytest.mark.long
def test_a_number_of_speakers_changes_columns_alone_and_stands_over_the_manifest(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path)
    first, bach = {"show": "x", "max_speakers": 4}, {"hotwords": "Bach"}
    folder.say(a=first, b=bach, c={})
    folder.run()
    texts = folder.texts()
    folder.set("a", num=2)
    folder.set("b", hotwords="Bach")  # as in the manifest: the text would be the same
    plan = folder.run()
    assert (plan.num_set_speakers, plan.num_set_hotwords, plan.num_remaining) == (1, 0, 0)
    assert plan.num_new_columns == 1
    assert plan.set_words() == "1 recording with another number of speakers"
    kept = {"num_speakers": None, "max_speakers": 4}
    assert folder.columns("a") == {"num_speakers": 2, OVERRIDDEN: kept, "show": "x"}
    # Another manifest changes nothing of what is set, and counts once that is taken back.
    folder.say(a={"num_speakers": 5}, b=bach, c={})
    plan = folder.run()
    assert (plan.num_set_speakers, plan.num_new_columns) == (0, 1)
    assert folder.columns("a") == {"num_speakers": 2, OVERRIDDEN: {"num_speakers": 5}}
    folder.set("a")
    assert folder.run().num_set_speakers == 1
    assert folder.columns("a") == {"num_speakers": 5}
    assert folder.texts() == texts


@pytest.mark.long
def test_hotwords_that_no_model_takes_change_columns_alone(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.deaf_to = ("de",)
    folder.say(a={"language": "de"}, b={"language": "en"}, c={})
    folder.run()
    for name in "abc":
        folder.set(name, hotwords="Ada")
    plan = folder.run()
    assert (plan.num_set_hotwords, plan.num_remaining, plan.num_new_columns) == (2, 2, 0)
    assert folder.texts() == ["a by None", "b by ['Ada']", "c by ['Ada']"]
    assert folder.columns("a")["hotwords"] == ["Ada"]
    plan = folder.run()
    assert (plan.num_set_hotwords, plan.num_remaining) == (0, 0)
    folder.set("a")
    assert folder.run().num_remaining == 0
    assert folder.columns("a") == {"language": "de"}


def test_what_waits_for_the_next_run_is_named_until_then(tmp_path: Path) -> None:
    folder = Folder(tmp_path, manifest=False)
    folder.run()

    def shown() -> str:
        done = CliRunner().invoke(main.app, ["show", folder.store.uri])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "next run" not in shown()
    folder.set("a", num=1)
    folder.set("b", hotwords="Ada, Babbage", num=3)
    assert "a.wav (for the next run: 1 speaker):" in shown()
    assert "b.wav (for the next run: 3 speakers, 2 hotwords):" in shown()
    folder.run()
    assert "next run" not in shown()
    folder.set("a")
    assert "a.wav (for the next run: nothing set any more):" in shown()


def test_a_status_counts_what_was_set_since_the_last_plan(tmp_path: Path) -> None:
    folder = Folder(tmp_path, manifest=False)
    folder.run()
    for name, year in (("a", 2000), ("b", 2999)):
        made = override(folder.id(name), num_speakers=2, hotwords="", name="")
        late = replace(made, saved_at=f"{year}-01-01T00:00:00+00:00")
        assert save_override(folder.store, late, seen=0) is not None
    found = load_status(folder.store)
    assert (found.num_set, as_data(found)["set_for_next_run"]) == (1, 1)
    assert re.search("set in view +1 recording, for the next run", render(found))


@pytest.mark.long
def test_other_hotwords_transcribe_that_recording_again_and_the_old_text_stays_until_then(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path, manifest=False)
    folder.run()
    folder.set("b", hotwords="Babbage", num=3)
    plan = folder.run(reach="")
    assert (plan.num_set_hotwords, plan.num_remaining, plan.num_redone) == (1, 1, 1)
    words = "1 recording to be transcribed again by other hotwords"
    assert plan.notes()[0] == f"set in view: {words}"
    assert folder.texts() == PLAIN
    plan = folder.run()
    assert (plan.num_set_hotwords, plan.num_redone) == (0, 1), "it waits, and is asked for once"
    assert folder.texts() == [PLAIN[0], "b by ['Babbage']", PLAIN[2]]
    assert folder.columns("b")["num_speakers"] == 3
    assert not folder.store.exists(REDO_NAME)
    folder.set("b")
    assert folder.run().num_remaining == 1
    assert (folder.texts(), folder.columns("b")) == (PLAIN, None)


@pytest.mark.slow
@pytest.mark.parametrize("killed", range(1, 10))
def test_a_run_that_is_killed_loses_nothing_of_it(tmp_path: Path, killed: int) -> None:
    folder = Folder(tmp_path, manifest=False)
    folder.run()
    folder.set("a", num=2)
    folder.set("b", hotwords="Babbage")
    folder.run(killed=killed)
    assert len({text[0] for text in folder.texts()}) == 3
    folder.run()
    assert folder.texts() == [PLAIN[0], "b by ['Babbage']", PLAIN[2]]
    assert folder.columns("a")["num_speakers"] == 2
    assert folder.run().set_words() == ""


def test_it_follows_a_recording_that_moves_and_counts_there(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ["a.wav", "b.wav"])
    job.begin()
    for name in ("a.wav", "b.wav"):
        job.commit(name)
    job.finish()
    old, new = (recording_id(str(job.source / name)) for name in ("a.wav", "new.wav"))
    assert save(job.store, old, num=2, hotwords="Ada") is not None
    (job.source / "a.wav").rename(job.source / "new.wav")
    job.begin()
    assert (job.plan.num_moved, job.plan.num_set_hotwords) == (1, 1)
    [listed] = [row["metadata"] for row in rows_of(read_listing(job.store, job.plan))
                if row["recording_id"] == new]  # fmt: skip
    assert Applied.of(listed).hotwords == ("Ada",)
    assert read_override(job.store, old).number == 0
    assert read_override(job.store, new).num_speakers == 2
    assert not (tmp_path / "output" / OVERRIDES_FOLDER / old).exists()


def test_what_is_forgotten_has_none_left(tmp_path: Path) -> None:
    folder = Folder(tmp_path, manifest=False)
    folder.run()
    for name in "ab":
        folder.set(name, hotwords="Babbage")
    assert forget(folder.store, {folder.id(name): f"{tmp_path}/{name}.wav" for name in "ab"}) == []
    assert [*folder.store.all_names(OVERRIDES_FOLDER)] == []
    assert not [path for path in Path(folder.store.uri).rglob("*")
                if path.is_file() and b"Babbage" in path.read_bytes()]  # fmt: skip
