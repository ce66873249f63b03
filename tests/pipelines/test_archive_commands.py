"""Commands on an archive, as they are typed: done again, at once, and wrong ones."""

import datetime
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.errors import EngineError
from corpus_asr.pipelines import driver
from corpus_asr.report.numbers import balance_problems
from corpus_asr.report.page import write_page
from corpus_asr.report.run import load_report
from corpus_asr.runtime import checkpoints
from corpus_asr.stages.inspection import IsolatedInspection
from corpus_asr.storage.run_state.forget import FORGET_VOICES
from corpus_asr.storage.run_state.lock import CHANGE_NAME, LOCK_NAME, USUAL
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.prune import find_gone
from corpus_asr.storage.run_state.run_tables import REDO_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import File, inspect_files
from tests.support.audio import wav_of
from tests.support.nightly import Archive
from tests.support.pages import parsed
from tests.support.tables import held_by, rows_of, stored_segments

pytestmark = pytest.mark.long


SOUND = wav_of("x")


class Typed(Archive):
    """An archive that is worked on by the command line."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, patch)
        patch.setattr(driver, "prepare", lambda config: self.prepared)
        patch.setattr(checkpoints, "fetch_checkpoints", lambda *_, **__: self.prepared)
        self.yaml = folder / "job.yaml"
        config = self.config
        self.yaml.write_text(
            f"source: {{uri: {self.source}}}\nmodel: {{checkpoint: {config.model.checkpoint}}}\n"
            f"output: {{uri: {self.output}}}\n"
        )
        self.store = OutputStore(str(self.output))

    def add(self, *names: str, content: bytes = SOUND) -> None:
        super().add(*names, content=content)

    def type(self, name: str, *options: str) -> Result:
        jobs = name in ("run", "nightly", "plan")
        local = ["--local"] if name != "plan" else []
        words = [name, *([str(self.yaml), *local] if jobs else [str(self.output)]), *options]
        return CliRunner().invoke(cli.app, words)

    def made_by(self) -> dict[str, str]:
        """Return which run made the text of each recording."""
        rows = rows_of(stored_segments(self.store, ["uri", "run_id"]))
        return {Path(row["uri"]).stem: row["run_id"] for row in rows}

    def gone(self) -> str:
        """Return the names of what is gone, in order."""
        return "".join(sorted(Path(row["uri"]).stem for row in self.read("recordings")
                              if row["gone_since"]))  # fmt: skip

    def other_source(self, *names: str) -> Path:
        """Return another folder of recordings."""
        folder = self.source.with_name("other")
        folder.mkdir()
        for name in names:
            (folder / f"{name}.wav").write_bytes(b"of the other source")
        return folder


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    archive = Typed(tmp_path, monkeypatch)
    archive.add("a", "b", "c")
    done = archive.type("run")
    assert done.exit_code == 0, done.output
    return archive


def stopped_after(number: int, work: Callable[..., None]) -> Callable[..., None]:
    """Return the work on packs with a device that is lost after so many recordings."""

    def call(config: Any, packs: Iterable[pa.Table], *rest: Any, **options: Any) -> None:
        for pack in packs:
            files = pack["files"].combine_chunks()
            values = pack.set_column(
                pack.schema.get_field_index("files"),
                "files",
                pa.array([files.to_pylist()[0][:number]], files.type),
            )
            work(config, [values], *rest, **options)
            raise EngineError("the device is lost (scripted)")

    return call


@pytest.mark.parametrize("later", ["nightly", pytest.param("run", marks=pytest.mark.slow)])
def test_a_redo_is_continued_by_what_comes_next(
    archive: Typed, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    [first] = set(archive.made_by().values())
    with monkeypatch.context() as patches:
        patches.setattr(driver, "run_local", stopped_after(1, archive._work))
        stopped = archive.type("run", "--redo", "uri not like '%/c.wav'")
    assert stopped.exit_code == 3, stopped.output
    assert "--redo: 2 recordings to process again" in stopped.stderr
    assert archive.store.exists(REDO_NAME)
    assert set(archive.made_by()) == {"a", "b", "c"}, "old results count"
    done = archive.type(later)
    assert done.exit_code == 0, done.output
    made = archive.made_by()
    assert made["c"] == first
    assert first not in (made["a"], made["b"])
    assert made["a"] != made["b"], "each is done again once"
    assert not archive.store.exists(REDO_NAME)
    assert "nothing to do" in archive.type("run").stdout


def test_an_erased_file_in_the_source_is_counted_and_read_once(
    archive: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_files: list[str] = []

    def inspect(_: object, function: str, files: Sequence[File], *rest: Any) -> list[Any]:
        read_files.extend(uri for uri, _ in files)
        return inspect_files(function, files, *rest)

    monkeypatch.setattr(IsolatedInspection, "__call__", inspect)
    archive.add("d", content=wav_of("of d alone"))
    assert archive.type("run").exit_code == 0
    path = archive.source / "d.wav"
    assert archive.type("remove", "--uri", str(path), "--yes").exit_code == 0
    for _ in range(3):
        assert "1 erased and skipped" in archive.type("run").stdout
    assert read_files == [str(path)]
    assert "1 erased and skipped" in archive.type("status").stdout
    assert "1 recording in the source again and skipped" in archive.type("report").stdout
    write_page(archive.store, page := str(archive.source.parent / "page.html"))
    shown = parsed(Path(page).read_text()).text
    assert "1 erased recording in the source again and skipped" in shown
    os.utime(path, (1, 1))
    assert "1 erased and skipped" in archive.type("run").stdout
    assert read_files == [str(path)] * 2
    assert archive.type("remove", "--uri", str(path), "--allow-again").exit_code == 0
    assert "erased and skipped" not in archive.type("run").stdout
    assert set(archive.made_by()) == {"a", "b", "c", "d"}


@pytest.fixture
def quick_locks() -> Iterator[None]:
    usual = {name: getattr(USUAL, name) for name in ("heartbeat_s", "looks")}
    for name, value in {"heartbeat_s": 0.05, "looks": 20}.items():
        object.__setattr__(USUAL, name, value)
    yield
    for name, value in usual.items():
        object.__setattr__(USUAL, name, value)


COMMANDS = {
    "erase": ("remove", "--uri", "*/b.wav", "--yes"),
    "gone": ("remove", "--gone", "--yes"),
    "run": ("run",),
    "nightly": ("nightly",),
}
CODES = {"erase": 2, "gone": 2, "run": 2, "nightly": 75}


@pytest.mark.usefixtures("quick_locks")
@pytest.mark.parametrize(
    "first",
    [
        "erase",
        "run",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gone", "nightly")),
    ],
)
def test_of_two_commands_at_once_the_second_is_refused(
    archive: Typed, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    archive.remove("c")
    archive.type("run")
    archive.add("d")
    others: dict[str, Result] = {}
    begun: list[str] = []
    write = filesystem.write_atomic

    def meanwhile(uri: str, *rest: Any, **options: Any) -> None:
        write(uri, *rest, **options)
        if not begun and archive.store.exists(LOCK_NAME) and not uri.endswith(LOCK_NAME):
            begun.append(uri)
            for name, words in COMMANDS.items():
                others[name] = archive.type(*words)

    with monkeypatch.context() as patches:
        patches.setattr(filesystem, "write_atomic", meanwhile)
        done = archive.type(*COMMANDS[first])
    assert done.exit_code == 0, done.output
    assert {name: result.exit_code for name, result in others.items()} == CODES
    for result in others.values():
        assert "found it in use by run" in result.stderr
        assert "expected no other run; wait for it to end" in result.stderr
    # "d" has the content of "c": it is that recording, whose rows say where it was transcribed.
    left = {"erase": "ac", "gone": "ab", "run": "abc", "nightly": "abc"}[first]
    assert set(archive.made_by()) == set(left)
    assert not archive.store.exists(LOCK_NAME)


def test_the_next_run_continues_what_remove_began(archive: Typed) -> None:
    arguments = {"names": ["Ada"], "speakers": [["0" * 16, "S1"]]}
    note = {"command": FORGET_VOICES, "finished": True, "arguments": arguments}
    for command in ("run", "nightly"):
        archive.store.write_json(CHANGE_NAME, note)
        assert archive.type(command).exit_code == 0
        assert not archive.store.exists(CHANGE_NAME)


def test_two_jobs_of_one_folder_leave_what_the_other_one_lists(archive: Typed) -> None:
    """Before: each night marked the other job's recordings as gone, and `prune` removed them."""
    other = archive.other_source("d", "e", "f")
    second = ("--set", f"source.uri={other}/")
    words = f"the source was {archive.source}, is {other}; 3 recordings of before not listed"
    assert words in archive.type("plan", *second).stdout
    assert words in archive.type("run", *second).stderr
    (other / "d.wav").unlink()
    archive.remove("a")
    for options, gone in ((second, "d"), ((), "ad"), (second, "ad"), ((), "ad")):
        assert archive.type("nightly", *options).exit_code == 0
        assert archive.gone() == gone
        accounting = load_report(archive.store).accounting
        assert accounting.unlisted == len(gone)
        assert balance_problems(accounting, finished=True) == []
    assert archive.type("remove", "--gone", "--yes").stdout.endswith("removed 2 recordings\n")
    assert set(archive.made_by()) == {*"bcef"}
    assert (
        "the source was"
        not in archive.type("run", "--set", f"source.uri={archive.source}/.").stderr
    )


@pytest.mark.parametrize(
    "narrower",
    ["source.uri={}/[ab].wav", "source.exclude=c.wav", "source.manifest={}/../some.jsonl"],
)
def test_what_a_narrower_source_leaves_out_is_not_gone(archive: Typed, narrower: str) -> None:
    lines = "".join(f'{{"uri": "{archive.source}/{name}.wav"}}\n' for name in "ab")
    (archive.source.parent / "some.jsonl").write_text(lines)
    options = ["--set", narrower.format(archive.source)]
    if "manifest" in narrower:
        options += ["--set", "source.uri=[]"]
    assert archive.type("run", *options).exit_code == 0
    assert archive.gone() == ""
    assert (
        "nothing to remove" in archive.type("remove", "--gone", "--yes", "--more-than-half").stdout
    )
    # Once no run has listed it for so long, it is.
    gone = find_gone(archive.store, older_than=datetime.timedelta(microseconds=1)).gone
    assert [Path(each.uri).stem for each in gone] == ["c"]
    archive.remove("c")
    archive.type("run")
    assert archive.gone() == "c"


def test_one_of_two_folders_that_is_empty_is_not_pruned(archive: Typed) -> None:
    """Before: exactly half of all recordings was not more than half."""
    other = archive.other_source("d", "e", "f")
    both = ("--set", f"source.uri=[{archive.source}, {other}]")
    archive.type("run", *both)
    shutil.rmtree(other)
    other.mkdir()
    archive.type("run", *both)
    assert archive.gone() == "def"
    refused = archive.type("remove", "--gone", "--yes")
    assert refused.exit_code == 2
    assert f"3 recordings of 3 below {other} are gone, expected at most half" in refused.stderr
    assert archive.type("remove", "--gone", "--yes", "--more-than-half").exit_code == 0
    assert set(archive.made_by()) == {*"abc"}


@pytest.mark.parametrize("trouble", ["no permission", "no target", "a loop"])
def test_recordings_in_a_folder_that_cannot_be_read_are_not_gone(
    archive: Typed, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Before: the folder was a failed recording, and `remove --gone` removed those in it."""
    share, away = archive.source.with_name("share"), archive.source.with_name("away")
    folder = archive.source / "d.1"
    (share / "e").mkdir(parents=True)
    (share / "e" / "d.wav").write_bytes(SOUND)
    folder.symlink_to(share / "e")
    archive.type("run")
    assert set(archive.made_by()) == {*"abcd"}
    archive.down("*", kind="access_denied")
    with monkeypatch.context() as patch:
        if trouble == "no permission":
            scandir = os.scandir

            def refuse(path: str) -> Any:
                if path == str(folder):
                    raise PermissionError(errno.EACCES, "Permission denied")
                return scandir(path)

            patch.setattr(os, "scandir", refuse)
        else:
            share.rename(away)
        if trouble == "a loop":
            share.symlink_to(share)
        result = archive.type("run")
        assert (result.exit_code, archive.gone()) == (1, ""), result.output
        assert f"1 access_denied, such as {folder}/*" in " ".join(result.output.split())
        assert "nothing to remove" in archive.type("remove", "--gone", "--yes").output
    if trouble != "no permission":
        share.unlink(missing_ok=True)
        away.rename(share)
    assert archive.type("run").exit_code == 0
    assert (set(archive.made_by()), archive.gone()) == ({*"abcd"}, "")
    for table in ("outcomes", "recordings"):  # what stood for them is closed
        assert {Path(row["uri"]).stem for row in archive.read(table)} == {*"abcd"}
    folder.unlink()
    assert archive.type("run").exit_code == 0
    assert archive.gone() == "d"


def test_a_plan_of_a_run_that_was_killed_is_not_what_a_finished_one_listed(
    archive: Typed,
) -> None:
    archive.add("d")
    make_plan(archive.config, archive.store)
    report = load_report(archive.store)
    assert (report.accounting.listed, report.accounting.waiting) == (3, 0)
    assert balance_problems(report.accounting, finished=report.finished) == []


def test_reading_commands_write_nothing_into_the_folder(
    archive: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: `plan` wrote its plan there, by which a report of a finished run did not add up."""
    archive.add("d")
    (archive.source / "c.wav").rename(archive.source / "moved.wav")
    before = held_by(str(archive.output))
    written: list[str] = []
    write = filesystem.write_atomic

    def note(uri: str, *rest: Any, **options: Any) -> None:
        written.append(uri)
        write(uri, *rest, **options)

    monkeypatch.setattr(filesystem, "write_atomic", note)
    for words in (("plan",), ("report",), ("status",), ("show",), ("remove", "--gone"),
                  ("remove", "--uri", "*/a.wav")):  # fmt: skip
        done = archive.type(*words)
        assert done.exit_code == 0, done.output
    assert not [uri for uri in written if uri.startswith(str(archive.output))]
    assert any("/_run/plan/" in uri for uri in written)
    assert held_by(str(archive.output)) == before
