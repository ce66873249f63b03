"""Runs are compared with references, whatever state they are in, and a bar is held."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.errors import FetchError
from corpus_asr.export.speakers import register_segments
from corpus_asr.storage.run_state.run_files import EVALUATION_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.runs import correct_segment
from tests.support.tables import commit, part, results

pytestmark = pytest.mark.long
REPOSITORY = Path(__file__).resolve().parents[2]

TEXTS = {"/a.wav": "red green blue white", "/b.wav": "tall small", "/failed.wav": "old new",
         "/absent.wav": "no", "/half.wav": "yes"}  # fmt: skip


@pytest.fixture
def references(tmp_path: Path) -> str:
    path = tmp_path / "references.jsonl"
    rows = [{"uri": uri, "text": text, "language": "en"} for uri, text in TEXTS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def output(folder: Path, *, transcribed: str) -> str:
    store = OutputStore(str(folder))
    commit(
        store,
        results(
            part("a.wav", 0, texts=["Red green", transcribed], last=False, language="en"),
            part("b.wav", 0, texts=[" tall, small."], language="de"),
            part("failed.wav", 0, texts=None, status="failed"),
            part("half.wav", 0, texts=[" yes"], last=False),
            part("unasked.wav", 0, texts=[" eleven"]),
        ),
    )
    last = {"segment": 0, "text": " white", "start_s": 10.0, "end_s": 11.0, "confidence": 0.5}
    commit(store, results(part("a.wav", 1, texts=None, segments=[last], language="en")))
    return store.uri


def evaluate(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["evaluate", *arguments])


def test_parts_failures_and_gaps_are_counted(tmp_path: Path, references: str) -> None:
    uri = output(tmp_path / "output", transcribed="blew")
    done = evaluate(uri, "--references", references, "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert (data["recordings"], data["missing"], data["failed"]) == (3, 2, 1)
    # One word of eight is wrong, and the two of the failed recording are left out.
    assert (data["words"], data["substitutions"], data["deletions"]) == (8, 1, 2)
    assert data["wer"] == 0.375
    assert data["languages"] == {"en": {"en": 1, "de": 1}}
    assert data["worst"][0]["uri"] == "/failed.wav"
    kept = OutputStore(uri).read_json(EVALUATION_NAME)
    assert data.items() <= kept.items()


def test_an_evaluation_of_a_run_that_is_read_only_is_no_failure(
    tmp_path: Path, references: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = output(tmp_path / "output", transcribed="blew")

    def refuse(self: OutputStore, name: str, value: Any) -> None:
        raise FetchError(f"writing {name}: read only", uri=name)

    monkeypatch.setattr(OutputStore, "write_json", refuse)
    done = evaluate(uri, "--references", references)
    assert done.exit_code == 0, done.output
    assert "evaluation_not_kept" in done.stderr
    assert "37.50%" in done.stdout


def test_references_of_parts_are_compared_with_these_parts_alone(tmp_path: Path) -> None:
    uri, path = output(tmp_path / "output", transcribed="blew"), tmp_path / "parts.jsonl"
    timed = [
        {"word": word, "start_s": at, "end_s": at + 0.5, "probability": 1.0}
        for at, word in enumerate((" Old", " wine", " new"), 20)
    ]
    segment = {"segment": 0, "text": " Old wine new", "start_s": 20.0, "end_s": 23.0}
    long = part("c.wav", 0, texts=None, segments=[{**segment, "words": timed}])
    commit(OutputStore(uri), results(long))
    for rows, counted in (
        # "white" at 10 s, and neither what comes before nor the end after it.
        ([{"path": "/a.wav", "text": "white", "offset": 9, "duration": 3}], (1, 0, 0, 0)),
        # By words, where there are times of words.
        ([{"path": "/c.wav", "text": "wine", "start_s": 20.9, "end_s": 21.6}], (1, 0, 0, 0)),
        ([{"path": "/c.wav", "text": "old", "end_s": 20.6},
          {"path": "/c.wav", "text": "knew sir", "start_s": 21.9}], (3, 1, 1, 0)),
        ([{"path": "/c.wav", "text": "", "start_s": 21.9, "end_s": 22.6}], (0, 0, 0, 1)),
    ):  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = json.loads(evaluate(uri, "--references", str(path), "--json").stdout)
        names = ("words", "substitutions", "deletions", "insertions")
        assert tuple(data[name] for name in names) == counted, rows


def test_the_bar_is_held(tmp_path: Path, references: str) -> None:
    uri = output(tmp_path / "output", transcribed="blew")
    assert evaluate(uri, "--references", references, "--max-wer", "0.375").exit_code == 0
    done = evaluate(uri, "--references", references, "--max-wer", "0.37")
    assert done.exit_code == 1
    assert "the word error rate is 37.50%, more than --max-wer allows (37.00%)" in done.stderr
    assert "in all" in done.stdout
    assert evaluate(uri, "--references", references, "--max-cer", "0.5").exit_code == 0
    done = evaluate(uri, "--references", references, "--max-wer", "0.1", "--max-cer", "0.1")
    assert done.exit_code == 1
    assert done.stderr.count("than --max-") == 2
    # Of percents, a bar that nothing exceeds.
    assert evaluate(uri, "--references", references, "--max-wer", "12").exit_code == 2


def test_a_run_may_be_held_to_another_one(tmp_path: Path) -> None:
    names = [f"{number}.wav" for number in range(40)]
    path = tmp_path / "r.jsonl"
    rows = [{"uri": f"/{name}", "text": "red green blue"} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def transcribed(folder: str, text: str) -> str:
        store = OutputStore(str(tmp_path / folder))
        commit(store, results(*(part(name, 0, texts=[text]) for name in names)))
        return store.uri

    good, bad = transcribed("good", "red green blue"), transcribed("bad", "red blue")
    arguments = ("--references", str(path), "--not-worse", "--against")
    assert evaluate(bad, *arguments, bad).exit_code == 0
    assert evaluate(good, *arguments, bad).exit_code == 0
    done = evaluate(bad, *arguments, good)
    assert done.exit_code == 1
    assert f"is 33.33%, clearly worse than that of {good} (0.00%)" in done.stderr
    alone = evaluate(good, "--references", str(path), "--not-worse")
    assert alone.exit_code == 2
    assert "--not-worse needs --against" in alone.stderr


def test_checked_segments_are_references_for_the_models_own_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = OutputStore(str(tmp_path / "one"))
    texts = ["Red green", "blew white", "tall small", "old"]
    row = part("a.wav", 0, texts=texts, language="en")
    commit(one, results(row, part("b.wav", 0, texts=["no yes"], language="en")))
    correct_segment(one, "Red green", "red green")
    correct_segment(one, "blew white", "blue white")
    correct_segment(one, "tall small", "tell smell", checked=False)  # corrected by the way
    guide = (REPOSITORY / "docs/how-to/evaluating.md").read_text(encoding="utf-8")
    with duckdb.connect() as database:
        register_segments(one.uri, database)
        database.sql(guide.partition("-- references of checked segments")[2].partition("```")[0])
    arguments = (one.uri, "--references", "checked.jsonl")
    data = json.loads(evaluate(*arguments, "--json").stdout)
    # What nobody compared with the audio counts neither way.
    assert (data["recordings"], data["words"], data["wer"]) == (1, 4, 0.25)
    assert data["worst"][0]["hyp"] == "Red green blew white"
    # Another run divides a recording otherwise: parts are compared by their times.
    two = OutputStore(str(tmp_path / "two"))
    commit(two, results(part("a.wav", 0, texts=["Red", "white", "tall"], language="en")))
    against = json.loads(evaluate(*arguments, "--against", two.uri, "--json").stdout)["against"]
    assert (against["recordings"], against["other_wer"]) == (1, 0.5)


def test_references_of_other_recordings_are_refused(tmp_path: Path) -> None:
    uri = output(tmp_path / "output", transcribed="blue")
    path = tmp_path / "r.csv"
    path.write_text("uri,text\nother.wav,hello\n")
    done = evaluate(uri, "--references", str(path))
    assert done.exit_code == 2
    assert "found none of its 1 recordings" in done.stderr
    assert "/a.wav" in done.stderr
    done = evaluate(str(tmp_path / "nothing"), "--references", str(path))
    assert done.exit_code == 2
    assert "found neither outcomes nor _run/" in done.stderr
