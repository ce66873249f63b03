"""Names sort by the time they were made: a clock that jumps turns nothing around."""

from pathlib import Path

import pytest

from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.plan import make_plan, retire_plans
from corpus_asr.storage.run_state.table_names import PLANS_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_run_tables import done
from tests.support.clocks import DAY_S, wrong_clock
from tests.support.tables import commit, files, part, results, rows_of, run_config, stored_segments


@pytest.mark.long
@pytest.mark.parametrize("seed", [None, 1])
def test_of_a_recording_no_longer_listed_the_last_version_stays(
    tmp_path: Path, seed: int | None
) -> None:
    """Also with a clock that jumps by itself, all the time."""
    store = OutputStore(str(tmp_path))
    for ahead_s, version in ((DAY_S, "v1"), (-DAY_S, "v2"), (0.0, "v3")):
        with wrong_clock(seed=seed) as clock, Lock(store, version) as lock:
            clock.ahead_s = ahead_s
            rows = results(part("a", 0, texts=[version], etag=version))
            commit(lock.store, rows, run_id=version)
            commit(lock.store, results(part("b", 0, texts=["b"], etag=version)), run_id=version)
            done(lock.store, files("b", etag=version))
        assert [row["text"] for row in rows_of(stored_segments(store, ["text"]))] == [version, "b"]


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
    left = b"".join(path.read_bytes() for path in tmp_path.glob("out/**/*.rows"))
    assert b"secret" not in left
