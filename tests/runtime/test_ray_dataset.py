import math
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from corpus_asr.activity import Activity, Tally
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import EngineError, FetchError
from corpus_asr.runtime import ray_dataset
from corpus_asr.runtime.commit import IDS, Committed, Committer, digest_parts, tally_of
from corpus_asr.runtime.coordinator import CoordinatorClient, start_coordinator
from corpus_asr.runtime.progress import ENOUGH_ALIKE, Progress
from corpus_asr.runtime.ray_cluster import Cluster
from corpus_asr.runtime.ray_dataset import run_on_ray
from corpus_asr.runtime.ray_workers import Commits, own_error
from corpus_asr.runtime.resources import resolve_resources
from corpus_asr.runtime.shutdown import RunStoppedError
from corpus_asr.stages.transcribe import EngineSpec
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import (
    EXTRACTOR,
    ScriptedEngine,
    broken_engine,
    committer_of,
    outcomes_by_part,
    scripted_engine,
    scripted_job,
)
from tests.support.killing import SlowEngine, slow_engine
from tests.support.tables import packs_of, part, plan_of, results

MANY = 40  # recordings that nothing happens to


def run(
    cluster: Cluster,
    config: RunConfig,
    *packs: pa.Table,
    engine=scripted_engine,
    extractor: str = EXTRACTOR,
    files: int = 1,
    committer: Committer | None = None,
) -> Tally:
    """Write a plan of `packs` and work it off on the session's Ray."""
    folder = Path(config.output.uri) / "_run" / "plan" / "packs"
    folder.mkdir(parents=True)
    pq.write_table(plan_of(*packs), folder / "00000.rows")
    progress = Progress(total_files=files, stream=None)
    run_on_ray(
        config,
        [str(folder / "00000.rows")],
        committer or committer_of(config),
        resources=resolve_resources(
            config, cluster.nodes, num_packs=len(packs), store_bytes=cluster.store_bytes
        ),
        progress=progress,
        engine_factory=engine,
        extractor=extractor,
    )
    return progress.tally


@pytest.mark.long
@pytest.mark.ray
def test_crashes_on_either_side_cost_one_part_and_nothing_is_lost_or_doubled(
    ray_session: Cluster, tmp_path: Path
):
    config = scripted_job(tmp_path)
    began_s = time.monotonic()
    tally = run(
        ray_session,
        config,
        packs_of("a/parts=3/silent=1", "crashing/parts=3/crash=1"),
        packs_of("kill/parts=1", "item-error/parts=1"),
        *(packs_of(f"{number}/parts=2") for number in range(MANY)),
    )
    outcomes = outcomes_by_part(config, may_repeat=True)
    found = {
        key: (row["status"], row["error_kind"])
        for key, row in outcomes.items()
        if not key[0][0].isdigit()
    }
    assert found == {
        ("a/parts=3/silent=1", 0): ("ok", None),
        ("a/parts=3/silent=1", 1): ("no_speech", None),
        ("a/parts=3/silent=1", 2): ("ok", None),
        ("crashing/parts=3/crash=1", 0): ("ok", None),
        ("crashing/parts=3/crash=1", 1): ("failed", "decoder_crashed"),
        # The extract process died with its parts; a worker died of it among others, and two alone.
        ("kill/parts=1", 0): ("failed", "poison"),
        ("item-error/parts=1", 0): ("failed", "scripted"),
    }
    assert outcomes["kill/parts=1", 0]["attempts"] == 3
    assert all(
        outcomes[f"{n}/parts=2", part]["status"] == "ok" for n in range(MANY) for part in (0, 1)
    )
    assert (tally.parts, tally.files, tally.failed) == (7 + 2 * MANY, 4 + MANY, 3)
    # Results of many tasks are committed together: the first at once, others after 1, 2, 4 ...
    # seconds and the rest at the end, in each of two passes.
    most = 2 * (3 + math.log2(1 + time.monotonic() - began_s))
    assert 1 < len(OutputStore(config.output.uri).commit_names()) <= most


def unhurried_engine(_: EngineSpec) -> ScriptedEngine:
    return SlowEngine(pause_s=2.0)


@pytest.mark.long
@pytest.mark.ray
def test_a_part_is_committed_while_others_of_its_block_are_transcribed(
    ray_session: Cluster, tmp_path: Path
):
    config = scripted_job(tmp_path)
    tally = run(ray_session, config, packs_of("a/parts=4"), engine=unhurried_engine)
    assert tally.parts == 4
    # Workers report every 2 s, and all but the first two are done 6 s after the first.
    assert len(OutputStore(config.output.uri).commit_names()) > 1


@pytest.mark.long
@pytest.mark.ray
def test_a_store_that_is_gone_for_good_ends_the_run_in_its_words(
    ray_session: Cluster, tmp_path: Path
):
    # Nor does it matter that there are more workers than blocks.
    config = scripted_job(tmp_path, transcribe={"workers": 2, "cpus_per_worker": 0.5})
    (tmp_path / "in the way").write_text("a file where the output folder should be")
    blocked = replace(committer_of(config), store=OutputStore(str(tmp_path / "in the way")))
    with pytest.raises(FetchError, match="in the way"):
        run(ray_session, config, packs_of("a/parts=1"), committer=blocked)


@pytest.mark.slow
@pytest.mark.ray
def test_a_signal_lets_workers_end_what_they_began(ray_session: Cluster, tmp_path: Path):
    config = scripted_job(tmp_path, extract={"workers": 1})
    before = signal.getsignal(signal.SIGTERM)

    def interrupt() -> None:
        while not list(Path(config.output.uri).glob("_run/commits/*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    packs = [packs_of(f"{number}/parts=20") for number in range(50)]
    with pytest.raises(RunStoppedError) as caught:
        run(ray_session, config, *packs, engine=slow_engine, files=50)
    assert caught.value.exit_code == 143
    outcomes = outcomes_by_part(config)
    assert 0 < len(outcomes) < 1000
    assert {row["status"] for row in outcomes.values()} == {"ok"}
    assert signal.getsignal(signal.SIGTERM) is before


def ask_until_dead(coordinator: Any) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # one that was killed answers for a moment yet
        ray.get(coordinator.poll.remote(()), timeout=60)


@pytest.mark.ray
def test_workers_go_on_without_a_coordinator(ray_session: Cluster):
    coordinator = start_coordinator()
    client = CoordinatorClient(coordinator, "transcribe", Activity)
    client.report()
    assert not client.is_stopping
    ray.kill(coordinator)
    with pytest.raises(ray.exceptions.RayActorError):
        ask_until_dead(coordinator)
    client.report()
    assert not client.is_stopping


@pytest.mark.slow
@pytest.mark.ray
def test_the_extract_actor_has_no_torch(ray_session: Cluster, tmp_path: Path):
    config = scripted_job(tmp_path)
    run(ray_session, config, packs_of("modules"), extractor="tests.support.extractors:make_telling")
    (row,) = outcomes_by_part(config).values()
    assert row["codec"] == "arrow raylet"


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_in_which_all_fails_alike_starts_nothing_more(
    ray_session: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_dataset, "FUTILE_POLLS", 2)
    config = scripted_job(tmp_path)
    packs = [packs_of(f"a{number}/denied=0") for number in range(2000)]
    tally = run(ray_session, config, *packs, files=2000)
    assert ENOUGH_ALIKE <= tally.files < 2000
    assert len(outcomes_by_part(config)) >= ENOUGH_ALIKE
    assert tally.alike is not None


@pytest.mark.slow
@pytest.mark.ray
def test_an_engine_that_gives_up_ends_the_run_with_its_own_words(
    ray_session: Cluster, tmp_path: Path
):
    config = scripted_job(tmp_path)
    with pytest.raises(EngineError) as caught:
        run(ray_session, config, packs_of("a"), engine=broken_engine)
    assert str(caught.value).startswith("no transcribe worker can work, expected at least one: CPU")
    assert f"loading {config.model.checkpoint}: no device (scripted)" in str(caught.value)


def test_own_errors_are_found_below_rays_and_others_say_what_is_kept():
    own = FetchError("writing: no space", kind="fetch")
    full = ray.exceptions.OutOfDiskError("Local disk is full")
    below, store = (ray.exceptions.RayTaskError("f", "traceback", error) for error in (own, full))
    for raised, kind, words in (
        (below, FetchError, ["writing: no space"]),
        (store, EngineError, ["OutOfDiskError", "/dev/shm", "bytes in", "RAY_TMPDIR"]),
        (TimeoutError("it hung\nfor an hour"), EngineError, ["Error: for an hour", "last commit"]),
    ):
        error = own_error(raised)
        assert type(error) is kind
        assert all(word in str(error) for word in words)


PARTS = [("a", 0, False), ("a", 1, True), ("b", 0, True), ("c", 0, True)]


@pytest.mark.parametrize(
    ("handed_over", "committed", "is_complete"),
    [
        (PARTS, [2, 0, 1, 3], True),
        (PARTS[1:], [1, 2, 3], False),
        ([PARTS[0], *PARTS[2:]], [0, 2, 3], False),
        (PARTS[:3], [0, 1, 2], False),
        # What a worker that ended had handed over, and what it had not.
        (PARTS, [0, 1, 2], False),
        (PARTS, [0, 1, 2, 3, 3], False),
        (PARTS, [0, 1, 2, 2], False),
    ],
)
def test_what_the_plan_has_and_the_commits_have_not_is_noticed_without_reading_either(
    handed_over: list[tuple[str, int, bool]], committed: list[int], is_complete: bool
) -> None:
    commits = object.__new__(Commits)
    commits.tally, commits.activity, commits._uncommitted = Tally(), Activity(), 0
    for name, number, is_last in handed_over:
        commits.expect(results(part(name, number, texts=["x"], last=is_last)).select(IDS))
    for name, number, is_last in map(PARTS.__getitem__, committed):
        rows = results(part(name, number, texts=["x"], last=is_last))
        commits.add_up([Committed(tally_of(rows), Activity(commits=1), digest_parts(rows))])
    assert commits.has_all_of(3) is is_complete
    assert commits.activity.commits == commits.tally.parts == len(committed)
