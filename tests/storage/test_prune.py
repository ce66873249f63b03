"""`remove --gone`: results of what is gone go, those that people corrected when it is told."""

import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.report.run import load_report
from corpus_asr.storage.run_state.corrections import read_saved
from tests.support.runs import ManualRun, correct_segment
from tests.support.tables import rows_of

pytestmark = pytest.mark.long


@pytest.fixture
def job(tmp_path: Path) -> ManualRun:
    """A folder with a text of each of three recordings; that of `ada.wav` is corrected."""
    job = ManualRun(tmp_path, ["ada.wav", "b.wav", "c.wav", "broken.wav"])
    job.begin()
    for name in ("ada.wav", "b.wav", "c.wav"):
        text = f"Words of {name}"
        job.commit(name, segments=[{"segment": 0, "start_s": 0.0, "end_s": 1.0, "text": text}])
    job.fail("broken.wav")
    job.finish()
    correct_segment(job.store, "Words of ada.wav", "Corrected")
    return job


def command(job: ManualRun, *words: str) -> Result:
    name, *options = words
    return CliRunner().invoke(cli.app, [name, job.store.uri, *options])


def test_prune_removes_what_is_gone_for_long_enough(job: ManualRun) -> None:
    (job.source / "b.wav").unlink()
    job.begin()
    job.finish()
    nothing = command(job, "remove", "--gone", "--older-than", "30d", "--yes")
    assert nothing.exit_code == 0, nothing.output
    assert "nothing to remove" in nothing.stdout
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    shown = command(job, "remove", "--gone")
    assert shown.stdout == (
        f"{job.source}/b.wav: 1 segment, last listed {today}\n"
        f"{job.store.uri}: 1 recording of 4 is gone; "
        "nothing was changed: --yes removes the results\n"
    )
    assert len(rows_of(job.store.segments())) == 3
    done = command(job, "remove", "--gone", "--yes")
    assert done.stdout.endswith("removed 1 recording\n"), done.output
    assert {Path(row["uri"]).name for row in rows_of(job.store.segments())} == {"ada.wav", "c.wav"}
    assert load_report(job.store).accounting.problems == ()
    assert command(job, "remove", "--gone", "--older-than", "soon").exit_code == 2


def test_prune_keeps_what_people_corrected_unless_it_is_told(job: ManualRun) -> None:
    """Before: corrections went without a word."""
    (job.source / "ada.wav").unlink()
    job.begin()
    job.finish()
    assert (
        "/ada.wav: 1 segment, 1 correction, last listed" in command(job, "remove", "--gone").stdout
    )
    kept = command(job, "remove", "--gone", "--yes")
    assert kept.exit_code == 0, kept.output
    assert kept.stdout.endswith(
        "1 recording of 4 is gone, 1 with corrections, which only --with-corrections removes; "
        "nothing was changed\n"
    )
    assert len(read_saved(job.store)) == 1
    done = command(job, "remove", "--gone", "--yes", "--with-corrections")
    assert done.stdout.endswith("removed 1 recording\n"), done.output
    assert read_saved(job.store) == {}
