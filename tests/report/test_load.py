"""The report of an output folder is right while it is written, after a crash and when finished."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.report.load import load_report
from corpus_asr.schemas import OUTCOMES, SEGMENTS
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, SEGMENTS_FOLDER, OutputStore
from tests.support.handwritten import NAMES, REVISION, Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found neither outcomes nor _run/"):
        load_report(OutputStore(str(tmp_path)))


def test_a_run_that_has_only_begun(job: Job) -> None:
    job.begin()
    found = load_report(job.store)
    assert (found.finished, found.model, found.model_revision) == (False, "some/model", REVISION)
    assert (found.run_id, found.wall_s, found.speed) == (None, None, None)
    assert (found.statistics.balance.listed, found.statistics.balance.waiting) == (3, 3)


def test_a_recording_in_whose_speech_nothing_was_found_counts_as_without(job: Job) -> None:
    job.begin()
    job.commit("a.wav", segments=[])
    job.commit("b.wav")
    job.commit("c.wav")
    job.finish()
    found = load_report(job.store).statistics
    assert found.balance.problems == ()
    assert (found.ok, found.no_speech, found.failed) == (2, 1, 0)


def test_a_run_under_way(job: Job) -> None:
    job.begin()
    job.commit("a.wav")
    job.commit("b.wav", last_part=False)
    found = load_report(job.store)
    balance = found.statistics.balance
    assert (balance.ended, balance.unfinished, balance.waiting) == (1, 1, 1)
    assert balance.problems == ()
    assert found.run_id == job.run.run_id
    assert found.wall_s is not None
    assert 0 < found.wall_s < 60
    assert found.speed is not None
    assert found.speed == pytest.approx(120.0 / found.wall_s)


def test_a_finished_run_accounts_for_every_file(job: Job) -> None:
    job.begin()
    job.commit("a.wav")
    job.commit("b.wav", status="no_speech", segments=None, language=None)
    job.fail("c.wav")
    job.finish()
    found = load_report(job.store)
    statistics = found.statistics
    assert found.finished
    assert (statistics.ok, statistics.no_speech, statistics.failed) == (1, 1, 1)
    assert (statistics.segments, statistics.confidence[-1]) == (1, 1)
    assert statistics.failures[0].examples[0].message == "decoding c.wav: not audio"
    assert statistics.balance.ended == statistics.balance.listed == 3
    assert statistics.balance.problems == ()


def test_what_a_crash_left_twice_counts_once_and_is_no_contradiction(job: Job) -> None:
    job.begin()
    for _ in range(2):
        job.commit("a.wav")
    found = load_report(job.store).statistics
    assert (found.audio_s, found.segments, found.balance.superseded_parts) == (60.0, 1, 1)
    assert found.balance.problems == ()
    job.commit("b.wav")
    job.commit("c.wav")
    job.finish()
    balance = load_report(job.store).statistics.balance
    assert (balance.ended, balance.superseded_parts, balance.problems) == (3, 0, ())


def test_an_object_replaced_since_waits_again(job: Job) -> None:
    job.begin()
    for name in NAMES:
        job.commit(name)
    job.finish()
    (job.source / "a.wav").write_bytes(b"something longer")
    job.begin()
    found = load_report(job.store)
    assert not found.finished
    balance = found.statistics.balance
    assert (balance.ended, balance.waiting, balance.superseded_parts) == (2, 1, 1)
    job.commit("a.wav", duration_s=90.0)
    assert load_report(job.store).statistics.audio_s == 210.0


def test_a_recording_taken_out_of_the_source_is_kept_apart(job: Job) -> None:
    job.begin()
    for name in NAMES:
        job.commit(name)
    (job.source / "a.wav").unlink()
    job.begin()
    job.finish()
    found = load_report(job.store).statistics
    assert (found.ok, found.balance.listed, found.balance.unlisted) == (3, 2, 1)
    assert found.balance.problems == ()


def test_segments_that_went_missing_are_told(job: Job) -> None:
    job.begin()
    for name in NAMES:
        job.commit(name)
    job.finish()
    (outcomes,) = job.store.names(OUTCOMES_FOLDER)
    (segments,) = job.store.names(SEGMENTS_FOLDER)
    # As if somebody had taken one recording's text for another's.
    rows = job.store.read_table(segments, SEGMENTS).to_pylist()
    first, *others = sorted({row["recording_id"] for row in rows})
    for row in rows:
        if row["recording_id"] == first:
            row["recording_id"] = others[0]
    job.store.write_table(segments, pa.Table.from_pylist(rows, SEGMENTS))
    (problem,) = load_report(job.store).statistics.balance.problems
    assert problem.startswith("other segments than their outcomes claim: 2 recordings")
    table = job.store.read_table(outcomes, OUTCOMES)
    job.store.write_table(outcomes, table.filter(pc.field("recording_id") != others[1]))
    problems = load_report(job.store).statistics.balance.problems
    assert any("recordings table and outcomes differ on 1 recording" in told for told in problems)
