"""Runs on Ray whose workers fail, die, or lose their coordinator."""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from corpus_asr.activity import Activity
from corpus_asr.config.run import RunOptions
from corpus_asr.errors import EngineError
from corpus_asr.runtime import coordinator as coordinating
from corpus_asr.runtime import ray_dataset, ray_workers
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.ray_cluster import Cluster, connected, start_ray
from corpus_asr.runtime.ray_dataset import run_on_ray
from corpus_asr.runtime.resources import resolve_resources
from corpus_asr.runtime.workers import LOADS
from corpus_asr.schemas import PACKS
from corpus_asr.storage.parquet import encode_parquet
from tests.support.bad_workers import (
    KILLING_EXTRACTOR,
    DyingBetween,
    failing_engine,
    failing_gpu_engine,
    first_failing_engine,
    late_engine,
    notes,
    usual_engine,
)
from tests.support.cluster import OBJECT_STORE_BYTES
from tests.support.engines import EXTRACTOR, committer_of, outcomes_by_part, scripted_job
from tests.support.tables import packs_of, plan_of

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(600)]

# What Ray keeps for a moment is gone by then.
LATER_S = 6.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray that has two GPUs, as far as it knows."""
    ray.shutdown()
    start_ray(cpus=6, gpus=2, store_bytes=OBJECT_STORE_BYTES)
    with connected("local", store_bytes=0) as found:
        yield found
    ray.shutdown()


@dataclass
class Done:
    """What a run left."""

    folder: Path
    outcomes: dict[tuple[str, int], dict[str, Any]]
    progress: Progress

    @property
    def failed(self) -> dict[tuple[str, int], dict[str, Any]]:
        return {key: row for key, row in self.outcomes.items() if row["status"] == "failed"}


def work(
    cluster: Cluster,
    folder: Path,
    *packs: pa.Table,
    engine: Any = usual_engine,
    extractor: str = EXTRACTOR,
    stop_at: float | None = None,
    **transcribe: Any,
) -> Done:
    usual = {"workers": 1, "gpus_per_worker": 0.0, "cpus_per_worker": 1}
    config = scripted_job(folder, extract={"workers": 1}, transcribe=usual | transcribe)
    plan = folder / "packs.rows"
    plan.write_bytes(encode_parquet(PACKS, [plan_of(*packs).cast(PACKS)]))
    resources = resolve_resources(
        config, cluster.nodes, num_packs=len(packs), store_bytes=cluster.store_bytes
    )
    progress = Progress(total_files=sum(map(num_files, packs)), stream=None)
    run_on_ray(
        config,
        [str(plan)],
        committer_of(config),
        resources=dataclasses.replace(resources, device="cpu"),
        progress=progress,
        engine_factory=engine,
        extractor=extractor,
        options=RunOptions(stop_at=stop_at),
    )
    return Done(folder, outcomes_by_part(config, may_repeat=True), progress)


def num_files(pack: pa.Table) -> int:
    return sum(map(len, pack["files"].to_pylist()))


def numbered(count: int, *, parts: int = 1) -> list[pa.Table]:
    return [packs_of(f"{number}/parts={parts}") for number in range(count)]


def strike_coordinator(monkeypatch: pytest.MonkeyPatch, strike: Callable[[Any], None]) -> None:
    """Do something to the coordinator once what it was started with could be gone."""
    start = coordinating.start_coordinator

    def started() -> Any:
        coordinator = start()
        ray.get(coordinator.poll.remote(()))

        def later() -> None:
            time.sleep(LATER_S)
            strike(coordinator)

        threading.Thread(target=later, daemon=True).start()
        return coordinator

    monkeypatch.setattr(ray_dataset, "start_coordinator", started)


STRIKES: dict[str, Callable[[Any], None]] = {
    "alive": lambda _: None,
    "restarted": lambda coordinator: ray.kill(coordinator, no_restart=False),
    "dead": lambda coordinator: ray.kill(coordinator, no_restart=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("coordinator", STRIKES)
def test_a_recording_that_kills_model_workers_is_one_failure_and_costs_no_other(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coordinator: str
) -> None:
    strike_coordinator(monkeypatch, STRIKES[coordinator])
    shared = packs_of("a/parts=2", "kill-me/parts=3", "b/parts=2")
    done = work(cluster, tmp_path, *numbered(4), shared, *numbered(8)[4:])
    ((key, row),) = done.failed.items()
    assert (key, row["error_kind"]) == (("kill-me/parts=3", 0), "poison")
    assert len(done.outcomes) == 8 + 4 + 1
    assert row["attempts"] == 3
    # The first, two that follow it, and two alone, of which one more may have been started.
    assert len(notes(tmp_path)) <= 6
    assert done.progress.tally.files == 11
    assert "its process was killed, or ran out of memory" in row["error_message"]


@pytest.mark.slow
def test_a_recording_that_kills_extract_workers_is_one_failure_and_costs_no_other(
    cluster: Cluster, tmp_path: Path
) -> None:
    shared = packs_of("a/parts=2", "killparent/parts=3", "b/parts=2")
    done = work(cluster, tmp_path, *numbered(4), shared, extractor=KILLING_EXTRACTOR)
    (((recording, _), row),) = done.failed.items()
    assert (recording, row["error_kind"]) == ("killparent/parts=3", "poison")
    assert row["retryable"]
    # Twice among others, and twice alone.
    assert notes(tmp_path).count("extract worker killed") == 4
    assert row["attempts"] == 3
    assert {("a/parts=2", 0), ("a/parts=2", 1), ("b/parts=2", 0), ("b/parts=2", 1)} < {
        key for key, each in done.outcomes.items() if each["status"] == "ok"
    }
    assert done.progress.tally.files == 7


@pytest.mark.slow
def test_recordings_that_are_tried_again_get_the_gpus_of_the_workers_before(
    cluster: Cluster, tmp_path: Path
) -> None:
    deadly = [packs_of(f"kill-{number}/parts=1") for number in range(2)]
    gpu: dict[str, Any] = {"workers": 2, "gpus_per_worker": 1.0, "cpus_per_worker": "auto"}
    done = work(cluster, tmp_path, *numbered(3), *deadly, **gpu)
    assert {row["error_kind"] for row in done.failed.values()} == {"poison"}
    assert (len(done.failed), len(done.outcomes)) == (2, 5)


def test_an_extract_worker_that_dies_between_two_recordings_costs_none(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_dataset, "ExtractWorker", DyingBetween)
    first = "dies/parts=2"
    done = work(cluster, tmp_path, *numbered(3), packs_of(first, "b/parts=1", "c/parts=1"))
    assert notes(tmp_path).count("extract worker killed") == 1
    assert Counter(row["status"] for row in done.outcomes.values()) == {"ok": 7}
    assert done.progress.tally.files == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "transcribe", "device", "loads"),
    [
        # Without a GPU it is tested once it has failed.
        (first_failing_engine, {}, "CPUs of ", 1 + LOADS),
        (
            failing_gpu_engine,
            {"gpus_per_worker": 1.0, "cpus_per_worker": "auto"},
            "GPU 0 of ",
            LOADS,
        ),
    ],
)
def test_a_worker_that_fails_alone_is_taken_out_and_blames_nobody(
    cluster: Cluster,
    tmp_path: Path,
    engine: Any,
    transcribe: dict[str, Any],
    device: str,
    loads: int,
) -> None:
    # So many that the other worker has work until this one has failed three times.
    done = work(cluster, tmp_path, *numbered(300), engine=engine, workers=2, **transcribe)
    assert Counter(row["status"] for row in done.outcomes.values()) == {"ok": 300}
    assert done.progress.tally.files == 300
    (out,) = done.progress.taken_out
    assert out.startswith(device)
    assert out.endswith("an illegal memory access (scripted)")
    assert notes(tmp_path).count("bad load") == loads


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_a_run_without_a_worker_that_can_work_ends_and_names_each(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    # For the third one there is no GPU.
    monkeypatch.setattr(ray_workers, "NEWCOMER_S", 20.0)
    with pytest.raises(EngineError, match="no transcribe worker can work") as caught:
        work(
            cluster, tmp_path, *numbered(8),
            engine=failing_engine, workers=workers, gpus_per_worker=1.0, cpus_per_worker="auto",
        )  # fmt: skip
    for number in (0, 1):
        assert f"GPU {number} of " in str(caught.value)
    assert "an illegal memory access (scripted)" in str(caught.value)


def test_a_run_whose_model_works_long_after_its_extraction_ends_well(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data ends extract workers that have nothing to do; nobody misses them."""
    monkeypatch.setattr(coordinating, "SILENT_S", 7.0)  # reports come every 5 s
    monkeypatch.setattr(ray_workers, "NEWCOMER_S", 3.0)
    begun_s = time.monotonic()
    done = work(cluster, tmp_path, *numbered(4), engine=late_engine)
    assert time.monotonic() - begun_s > 16.0
    assert Counter(row["status"] for row in done.outcomes.values()) == {"ok": 4}
    assert done.progress.tally.files == 4
    assert done.progress.taken_out == ()


def test_a_coordinator_is_started_again_long_after_it_was_made(cluster: Cluster) -> None:
    coordinator = coordinating.start_coordinator()
    client = coordinating.CoordinatorClient(coordinator, "alone", lambda: Activity(tokens=3))
    client.report()
    assert ray.get(coordinator.poll.remote(["alone"])).activity.tokens == 3
    time.sleep(LATER_S)
    ray.kill(coordinator, no_restart=False)
    deadline = time.monotonic() + 60
    # The driver says so each time that it looks.
    while ray.get(coordinator.poll.remote(["alone"]), timeout=60).activity.tokens:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while not client.is_stopping:
        client.report()
        assert time.monotonic() < deadline
        time.sleep(0.1)
