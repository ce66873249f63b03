"""Report, night and last runs say what the queries of the guides give on the tables."""

import random
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from corpus_asr.report.nightly import findings_of
from corpus_asr.report.numbers import RunNumbers
from corpus_asr.report.run import Report, load_report, output_numbers
from corpus_asr.storage.run_state.table_names import RUN_NAME
from tests.support.runs import ManualRun

pytestmark = pytest.mark.long

DOCS = Path(__file__).parents[2] / "docs"
QUERIES = {
    name: query
    for guide in ("how-to/alignment", "reference/definitions", "how-to/report", "how-to/watching")
    for name, query in re.findall(
        r"^```sql\n-- (.*?)\n(.*?)^```$", (DOCS / f"{guide}.md").read_text(), re.M | re.S
    )
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ManualRun:
    """A folder of two runs: parts in several languages, channels, versions, failures."""
    chance = random.Random(7)
    job = ManualRun(tmp_path_factory.mktemp("job"), [f"{n:02}.wav" for n in range(30)])
    job.begin()
    for number in range(27):
        commit(job, f"{number:02}.wav", chance)
    job.commit("27.wav", status="no_speech", segments=None, language=None)
    job.commit("28.wav", last_part=False, segments=[segment(0, 0.05)])
    job.finish()
    (job.source / "00.wav").unlink()
    for name in ("01.wav", "02.wav"):
        (job.source / name).write_bytes(b"of other content")
    job.begin()
    job.fail("01.wav")
    job.commit("02.wav", language="fr")
    job.commit("28.wav", part=1, segments=[segment(0, 0.9)])
    commit(job, "29.wav", chance)
    job.finish()
    return job


def segment(number: int, confidence: float, **values: Any) -> dict[str, Any]:
    start_s = 2.0 * number
    usual = {"segment": number, "start_s": start_s, "end_s": start_s + 1.0, "text": " Hi."}
    return usual | {"confidence": confidence} | values


def commit(job: ManualRun, name: str, chance: random.Random) -> None:
    num_parts, apart = chance.randint(1, 4), chance.random() < 0.3
    for part in range(num_parts):
        common: dict[str, Any] = {
            "part": part, "last_part": part == num_parts - 1, "channel": part if apart else None,
        }  # fmt: skip
        if chance.random() < 0.05:
            job.fail(name, **common)
            continue
        duration_s = chance.choice([7.5, 30.0, 61.25])
        common |= {"duration_s": duration_s, "speech_s": duration_s * chance.choice([0.25, 0.75])}
        if chance.random() < 0.2:
            job.commit(name, status="no_speech", segments=None, language=None, **common)
            continue
        sure = chance.choice([0.4, 0.6, 0.9])
        segments = [
            segment(at, sure + chance.uniform(-0.1, 0.1), end_s=2.0 * at + chance.choice([0, 1.5]))
            for at in range(chance.randint(1, 4))
        ]
        job.commit(name, segments=segments, language=chance.choice(["en", "de", "es"]), **common)


Told = tuple[Report, RunNumbers]


@pytest.fixture(scope="module")
def told(job: ManualRun) -> Told:
    """What the report and the night of the last run say."""
    return load_report(job.store), findings_of(job.store, job.run.run_id)


def ask(job: ManualRun, name: str, *, where: str | None = None) -> list[tuple[Any, ...]]:
    """Run a query of the guide; `where` narrows the recordings."""
    query, folder = QUERIES[name], job.store.uri
    if where is not None:
        for table in ("recordings", "outcomes"):
            mine = f"(SELECT recording_id FROM '{folder}/recordings/*.parquet' WHERE {where})"
            query = query.replace(
                f"'output/demo/{table}/*.parquet'",
                f"(SELECT * FROM '{folder}/{table}/*.parquet' WHERE recording_id IN {mine})",
            )
    with duckdb.connect() as db:
        return db.execute(query.replace("output/demo", folder)).fetchall()


@pytest.mark.long
def test_complete(job: ManualRun, told: Told) -> None:
    report, findings = told
    by_status = dict(ask(job, "complete"))
    counts = report.statistics
    assert by_status == {"ok": counts.ok, "no_speech": counts.no_speech, "failed": counts.failed}
    assert min(by_status.values()) > 0
    mine = dict(ask(job, "complete", where=f"run_id = '{job.run.run_id}'"))
    # That of a newer version than the one that counts is none of the recordings table.
    assert (findings.done, findings.failed) == (mine["ok"], mine.get("failed", 0) + 1)


def test_the_language_of_a_recording(job: ManualRun) -> None:
    assert {language for language, _ in ask(job, "language")} == {"en", "de", "es", "fr"}


def test_hours_of_a_language(job: ManualRun, told: Told) -> None:
    report, findings = told
    expected = ask(job, "hours")
    shares = report.statistics.languages
    assert [(each.name, each.recordings) for each in shares] == [row[:2] for row in expected]
    hours = {language: pytest.approx(hours) for language, _, hours in expected}
    assert {each.name: each.audio_s / 3600 for each in shares} == hours
    mine = ask(job, "hours", where=f"run_id = '{job.run.run_id}'")
    assert [(each.name, each.recordings) for each in findings.languages] == [r[:2] for r in mine]
    assert [each.audio_s / 3600 for each in findings.languages] == pytest.approx(
        [hours for *_, hours in mine]
    )


def test_low_confidence(job: ManualRun, told: Told) -> None:
    report, findings = told
    low = dict(ask(job, "low confidence"))
    numbers = output_numbers(report)
    assert numbers is not None
    assert 0 < len(low) < report.statistics.ok
    assert report.statistics.low_confidence == len(low)
    assert numbers.low_confidence == len(low) / report.statistics.ok
    mine = ask(job, "low confidence", where=f"run_id = '{job.run.run_id}'")
    assert findings.low_confidence == len(mine) > 0


def test_listed_done_and_gone(job: ManualRun, told: Told) -> None:
    report, *_ = told
    [(listed, gone, done)] = ask(job, "listed")
    counts, accounting = report.statistics, report.accounting
    assert (listed, gone) == (29, 1)
    assert (accounting.listed, accounting.unlisted) == (listed, gone)
    assert counts.ok + counts.no_speech == done + gone
    found = job.store.read_json(RUN_NAME)["counts"]
    of_listed_version = found["ok"] + found["no_speech"]
    assert (of_listed_version + found["earlier"], found["gone"]) == (done, gone)
    assert accounting.problems == ()


def test_lengths(job: ManualRun, told: Told) -> None:
    report, *_ = told
    lengths = dict(ask(job, "recordings by length in minutes"))
    assert sum(lengths.values()) == report.statistics.done + report.statistics.failed
    assert len(lengths) > 1


def test_lists_of_recordings(job: ManualRun, told: Told) -> None:
    times_s = [time_s for _, time_s in ask(job, "slowest")]
    assert len(times_s) == 30
    assert times_s == sorted(times_s, reverse=True)
    # Nobody aligned a text here, and all speech has text.
    assert ask(job, "speech without text") == []
    num_segments = sum(share.segments for share in told[0].statistics.languages)
    assert sum(words for _, words in ask(job, "words")) == num_segments  # each says "Hi."
    assert {missing for _, missing, _ in ask(job, "missing words")} == {None}


def test_segments_of_a_run_that_works(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ["a.wav", "b.wav", "c.wav"])
    job.begin()
    job.commit("a.wav", segments=[segment(0, 0.5), segment(1, 0.75, text=" And you?")])
    job.commit("b.wav", segments=[segment(0, 0.25)])
    job.fail("c.wav")
    with duckdb.connect() as db:
        query = QUERIES["segments of a run that works"].replace("output/demo", job.store.uri)
        working = db.sql(query).to_arrow_table().to_pylist()
        job.finish()
        finished = db.sql(f"FROM '{job.store.uri}/segments/*.parquet'").to_arrow_table()
    columns = ("recording_id", "part", "segment", "text", "start_s", "end_s", "confidence")
    rows, expected = (
        sorted(tuple(row[name] for name in columns) for row in table)
        for table in (working, finished.to_pylist())
    )
    assert rows == expected
    assert len(rows) == 3
