"""Recordings that are done again: which ones, by a condition, and what counts until they are."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.finish import OutcomeCounts
from corpus_asr.storage.run_state.plan import Plan, make_plan
from corpus_asr.storage.run_state.redo import ALL, chosen
from corpus_asr.storage.run_state.run_tables import REDO_NAME, RunTables
from corpus_asr.storage.run_state.table_names import LABEL_ROWS
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.runs import REVISION, complete_run, planned_files
from tests.support.stores import life
from tests.support.tables import commit, part, results, rows_of, run_config, stored_segments

pytestmark = pytest.mark.long

NAMES = ("a", "b", "c")
CONFIDENCES = {"a": 0.9, "b": 0.3, "c": 0.6}


class Folder:
    """An output folder and the source of its recordings, run by committing rows."""

    def __init__(self, path: Path) -> None:
        self.source, self.store = path / "in", OutputStore(str(path / "out"))
        self.source.mkdir(exist_ok=True)
        for name in NAMES:
            (self.source / f"{name}.wav").write_bytes(b"x" * 100)
        self.run_number, self.version = 0, "etag"

    def config(self, language: str = "en") -> RunConfig:
        source = {"uri": str(self.source), "version": self.version}
        return run_config("", self.store.uri, source=source, decoding={"language": language})

    def plan(self, language: str = "en", *, redo: str | None = None) -> Plan:
        options = RunOptions(redo=redo)
        config = self.config(language)
        return make_plan(config, self.store, model_revision=REVISION, options=options)

    def todo(self, plan: Plan) -> set[str]:
        return {Path(file["uri"]).stem for file in planned_files(self.store, plan)}

    def run(
        self, language: str = "en", *, redo: str | None = None, reach: Sequence[str] = NAMES,
        failing: Sequence[str] = (), killed: int | None = None,
    ) -> OutcomeCounts:  # fmt: skip
        """Do what is left of some recordings, in the language of the settings."""
        self.run_number += 1

        def rows_of_file(file: dict[str, Any]) -> list[dict[str, Any]]:
            name = Path(file["uri"]).stem
            return [row_of(name, file, language, name in failing)] if name in reach else []

        with life(10**6 if killed is None else killed):
            return complete_run(
                self.store, self.config(language), rows_of_file, options=RunOptions(redo=redo),
                run_id=f"run-{self.run_number:03d}",
            )[1]  # fmt: skip
        raise AssertionError("killed")

    def texts(self) -> list[str]:
        return sorted(row["text"] for row in rows_of(stored_segments(self.store, ["text"])))


def row_of(name: str, file: dict[str, Any], language: str, fails: bool) -> dict[str, Any]:
    same = {key: file[key] for key in ("recording_id", "uri", "size_bytes", "etag", "begun_by")}
    if fails:
        return part(name, 0, texts=None, status="failed", error_kind="timeout",
                    error_stage="extract", error_message="late") | same  # fmt: skip
    row = part(name, 0, texts=[f"{name} {language}"], language=language)
    row["segments"][0]["confidence"] = CONFIDENCES[name]
    return row | same


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder in which everything is done, for plans, which change nothing of it."""
    folder = Folder(tmp_path_factory.mktemp("finished"))
    folder.run()
    return folder


ENGLISH = ["a en", "b en", "c en"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (ALL, "abc"),
        (" ALL ", "abc"),
        ("confidence < 0.5", "b"),
        ("confidence between 0.5 and 0.7 or uri like '%/a.wav'", "ac"),
        ("status = 'ok' and model = 'model' and model_revision is not null", "abc"),
        ("language = 'en' and duration_s = 10 and 'en' in languages", "abc"),
        ("metadata->>'show' = 'news'", ""),
        ("run_id < 'run-001' -- nothing", ""),
    ],
)
def test_a_condition_chooses_what_is_done_again(
    finished: Folder, where: str, expected: str
) -> None:
    plan = finished.plan(redo=where)
    assert plan.num_matched == plan.num_redone == plan.num_remaining == len(expected)
    assert finished.todo(plan) == set(expected)
    assert sum(sums.audio_s for sums in plan.known.values()) == 10 * len(expected)
    assert not finished.store.exists(REDO_NAME), "a plan asks for nothing"
    if not expected:
        assert plan.notes() == ["--redo: no recording matches; nothing is redone"]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("confidnce < 0.5", r"\"confidnce\" not found.*did you mean confidence\?"),
        ('uri = "a"', r"'single quotes', and columns are run_id, .*confidence"),
        ("confidence <", "syntax error at"),
        ("", "SELECT clause without selection list"),
        ("true; drop table outcomes", "more than one statement|a single SELECT statement"),
        ("true); drop table outcomes; select (1", "syntax error"),
        ("confidence", "a value of type FLOAT|a value of type DOUBLE"),
        ("uri like 'a', true", "single expression"),
        ("avg(confidence) > 1", "[Aa]ggregates"),
        ("confidence > 'abc'", "Could not convert string"),
        ("uri = '\udcff'", "half of a surrogate pair"),
        ("(select count(*) from read_text('/etc/passwd')) > 0", "disabled by configuration"),
    ],
)
def test_what_is_no_condition_is_refused(finished: Folder, where: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){words}") as caught:
        finished.plan(redo=where)
    said = str(caught.value)
    assert said.startswith("reading --redo ")
    assert "expected a condition in SQL on recordings, such as" in said
    assert finished.texts() == ENGLISH


def test_results_count_until_new_ones_are_there(folder: Folder) -> None:
    folder.run()
    counts = folder.run("de", redo="confidence < 0.7", reach="b")
    assert folder.texts() == ["a en", "b de", "c en"]
    assert (counts.ok, counts.remaining, counts.earlier) == (2, 1, 1)
    plan = folder.plan("de")
    assert (plan.num_redone, plan.num_done, folder.todo(plan)) == (1, 2, {"c"})
    failed = folder.run("de", failing="c")
    assert folder.texts() == ["a en", "b de", "c en"]
    assert (failed.ok, failed.failed, failed.earlier) == (2, 1, 1)
    assert folder.run("de").ok == 3
    assert folder.texts() == ["a en", "b de", "c de"]
    assert not folder.store.exists(REDO_NAME)
    assert folder.plan("de").num_remaining == 0


def test_labels_are_chosen_by_their_likeliest(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    window = {"window": 0, "start_s": 0.0, "end_s": 9.0, "weight_s": 9.0}
    for name, probability in (("a", 0.9), ("b", 0.4)):
        labels = [window | {"rank": rank, "label": label, "probability": value}
                  for rank, label, value in ((1, "en", probability), (2, "de", 0.1))]  # fmt: skip
        commit(store, results(part(name, 0, texts=None, labels=labels)))
    with RunTables(store) as tables:
        where = "confidence < 0.5 and model is not null"
        ids = chosen(store, tables, where, LABEL_ROWS, other_settings=False)
    assert ids.to_pylist() == [recording_id("/b")]


def test_failures_are_done_again_by_their_kind(folder: Folder) -> None:
    folder.run(failing="a")
    folder.run(redo=ALL, failing="b")
    assert folder.texts() == ["a en", "b en", "c en"]
    plan = folder.plan(redo="error_kind = 'timeout' and status = 'ok'")
    assert folder.todo(plan) == {"b"}, "its newer version failed"


def test_other_settings_are_mixed_in_no_recording(folder: Folder) -> None:
    folder.run(reach="ab", failing="b")
    with pytest.raises(ConfigError, match=r"--redo all, or choose another"):
        folder.plan("de")
    plan = folder.plan("de", redo="uri like '%/x%'")
    assert folder.todo(plan) == {"b", "c"}, "what failed comes in addition"
    folder.run("de", redo="uri like '%/x%'")
    assert folder.texts() == ["a en", "b de", "c de"]
    with pytest.raises(ConfigError, match=r"decoding\.language"):
        folder.plan("en")


def test_the_same_command_again_does_not_begin_what_waits_anew(folder: Folder) -> None:
    folder.run()
    folder.run(redo="uri not like '%/a.wav'", reach="b")
    plan = folder.plan(redo="uri like '%/c.wav'")
    assert plan.num_matched == 0
    assert folder.todo(plan) == {"c"}


GUIDE = (Path(__file__).parents[2] / "docs" / "how-to" / "redo.md").read_text()


def test_the_newest_of_two_folders_wins(tmp_path: Path) -> None:
    [query] = re.findall(r"```sql\n-- newest wins\n(.*?)```", GUIDE, re.DOTALL)
    for name, language, reach, failing in (("older", "en", "abc", ""), ("newer", "de", "bc", "c")):
        folder = Folder(tmp_path)
        folder.store = OutputStore(str(tmp_path / name))
        folder.run(language, reach=reach, failing=failing)
    query = query.replace("'output/", f"'{tmp_path}/")
    texts = duckdb.connect().execute(f"select text from ({query}) order by text").fetchall()
    assert texts == [("a en",), ("b de",), ("c en",)]


# Writes after which a redo is killed: each with one of the conditions, in a soak with both.
MOMENTS = (1, 3, 4, 6, 8, 10, 13, 17, 22)


@pytest.mark.parametrize(
    ("redo", "moments"),
    [
        ("confidence < 0.7", MOMENTS[1::4]),
        (ALL, MOMENTS[2::4]),
        pytest.param("confidence < 0.7", MOMENTS, marks=pytest.mark.slow),
        pytest.param(ALL, MOMENTS, marks=pytest.mark.slow),
    ],
)
def test_a_redo_killed_anywhere_loses_nothing_and_goes_on(
    folder: Folder, tmp_path: Path, redo: str, moments: Sequence[int]
) -> None:
    folder.run()
    whole = folder.store.uri
    for moment in moments:
        folder.store = OutputStore(str(shutil.copytree(whole, tmp_path / str(moment))))
        try:
            folder.run("de", redo=redo, killed=moment)
        except AssertionError:
            assert {text[0] for text in folder.texts()} == {"a", "b", "c"}
        try:
            folder.run("de")
        except ConfigError:  # the settings were not written yet
            folder.run("de", redo=redo)
        expected = ["a de", "b de", "c de"] if redo == ALL else ["a en", "b de", "c de"]
        assert folder.texts() == expected
        assert folder.plan("de").num_remaining == 0
        assert not folder.store.exists(REDO_NAME)
