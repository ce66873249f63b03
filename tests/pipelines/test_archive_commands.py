"""Commands on an archive, as they are typed: done again, at once, and wrong ones."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.errors import EngineError
from corpus_asr.pipelines import driver
from corpus_asr.storage.run_state.forget_voices import FORGETTING_VOICES_NAME
from corpus_asr.storage.run_state.lock import LOCK_NAME, USUAL
from corpus_asr.storage.run_state.run_tables import REDO_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from tests.support.nightly import Archive
from tests.support.tables import rows_of

pytestmark = pytest.mark.long


class Typed(Archive):
    """An archive that is worked on by the command line."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, patch)
        patch.setattr(driver, "prepare", lambda config: self.prepared)
        self.yaml = folder / "job.yaml"
        config = self.config
        self.yaml.write_text(
            f"source: {{uri: {self.source}}}\nmodel: {{checkpoint: {config.model.checkpoint}}}\n"
            f"output: {{uri: {self.output}}}\n"
        )
        self.store = OutputStore(str(self.output))

    def type(self, name: str, *options: str) -> Result:
        jobs = name in ("run", "nightly")
        words = [name, *([str(self.yaml), "--local"] if jobs else [str(self.output)]), *options]
        return CliRunner().invoke(cli.app, words)

    def made_by(self) -> dict[str, str]:
        """Return which run made the text of each recording."""
        rows = rows_of(self.store.segments(["uri", "run_id"]))
        return {Path(row["uri"]).stem: row["run_id"] for row in rows}


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
    assert "--redo: 2 recordings to be done again" in stopped.stderr
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


def test_a_wrong_condition_changes_nothing(archive: Typed) -> None:
    before = archive.made_by()
    for where, words in {
        "confidnce < 0.5": "did you mean confidence?",
        "confidence <": "expected a condition in SQL",
        "confidence": "compare it with something",
        "": "expected a condition in SQL",
    }.items():
        refused = archive.type("run", "--redo", where)
        assert refused.exit_code == 2, refused.output
        assert "reading --redo" in refused.stderr
        assert words in refused.stderr
    assert archive.made_by() == before
    assert not archive.store.exists(REDO_NAME)
    assert not archive.store.exists(LOCK_NAME)


@pytest.fixture
def quick_locks() -> Iterator[None]:
    usual = {name: getattr(USUAL, name) for name in ("heartbeat_s", "looks")}
    for name, value in {"heartbeat_s": 0.05, "looks": 20}.items():
        object.__setattr__(USUAL, name, value)
    yield
    for name, value in usual.items():
        object.__setattr__(USUAL, name, value)


COMMANDS = {
    "forget": ("forget", "--uri", "*/b.wav", "--yes"),
    "prune": ("prune", "--yes"),
    "run": ("run",),
    "nightly": ("nightly",),
}
CODES = {"forget": 2, "prune": 2, "run": 2, "nightly": 75}


@pytest.mark.usefixtures("quick_locks")
@pytest.mark.parametrize(
    "first",
    [
        "forget",
        "run",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("prune", "nightly")),
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
    left = {"forget": "ac", "prune": "ab", "run": "abcd", "nightly": "abcd"}[first]
    assert set(archive.made_by()) == set(left)
    assert not archive.store.exists(LOCK_NAME)


def test_the_next_run_continues_what_forget_began(archive: Typed) -> None:
    note = {"names": ["Ada"], "speakers": [["0" * 16, "S1"]]}
    for command in ("run", "nightly"):
        archive.store.write_json(FORGETTING_VOICES_NAME, note)
        assert archive.type(command).exit_code == 0
        assert not archive.store.exists(FORGETTING_VOICES_NAME)
