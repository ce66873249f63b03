"""Names sort by the time they were made: a clock that jumps turns nothing around."""

from pathlib import Path

import pytest

from corpus_asr.pipelines import driver
from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.plan import PLANS_FOLDER, make_plan, retire_plans
from corpus_asr.storage.run_state.run_files import RUN_NAME, speed_of
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_run_tables import done
from tests.support.clocks import DAY_S, wrong_clock
from tests.support.engines import script, scripted_engine
from tests.support.killing import killable_job
from tests.support.tables import commit, files, part, results, rows_of, run_config


@pytest.mark.long
def test_of_a_recording_no_longer_listed_the_last_version_stays(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    for ahead_s, version in ((DAY_S, "v1"), (-DAY_S, "v2"), (0.0, "v3")):
        with wrong_clock() as clock, Lock(store, version) as lock:
            clock.ahead_s = ahead_s
            rows = results(part("a", 0, texts=[version], etag=version))
            commit(lock.store, rows, run_id=version)
            commit(lock.store, results(part("b", 0, texts=["b"], etag=version)), run_id=version)
            done(lock.store, files("b", etag=version))
        assert [row["text"] for row in rows_of(store.segments(["text"]))] == [version, "b"]


def test_plans_of_a_clock_that_was_ahead_are_retired_as_well(tmp_path: Path) -> None:
    """They hold addresses with signatures."""
    (tmp_path / "m.jsonl").write_text('{"uri": "https://host/a.mp3?signature=secret"}\n')
    config = run_config("", tmp_path / "out", source={"manifest": str(tmp_path / "m.jsonl")})
    store = OutputStore.of(config.output)
    with wrong_clock() as clock:
        clock.ahead_s = DAY_S
        make_plan(config, store)  # of a run that died
        clock.ahead_s = -DAY_S
        plan = make_plan(config, store)
    retire_plans(store, plan.name)
    assert {"/".join(name.split("/")[:3]) for name in store.all_names(PLANS_FOLDER)} == {plan.name}
    left = b"".join(path.read_bytes() for path in tmp_path.glob("out/**/*.parquet"))
    assert b"secret" not in left


@pytest.mark.slow
def test_a_run_whose_clock_jumps_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch.setattr, engine=scripted_engine)
    config = killable_job(tmp_path, files=8).config
    with wrong_clock(seed=1) as clock:
        summary = driver.run(config, local=True, progress=None)
        assert clock.asked >= 10
        again = driver.run(config, local=True, progress=None)
    assert (summary.files, summary.remaining, summary.failed) == (8, 0, 2)
    assert (again.planned_files, again.remaining) == (0, 0)
    assert summary.wall_s >= 0
    assert summary.rtfx >= 0
    assert speed_of(OutputStore.of(config.output).read_json(RUN_NAME)).wall_s >= 0
