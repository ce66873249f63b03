"""Several workers on a Ray of this machine: they learn what one learns, die, and tell errors."""

import os
import threading
import time
from pathlib import Path

import pytest

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.errors import ConfigError
from corpus_asr.pipelines import finetune
from corpus_asr.runtime.ray_cluster import Cluster
from corpus_asr.training.job import TrainingStore
from tests.support.cluster import ray_session
from tests.support.killing import kill_below
from tests.support.training import assert_same_weights, tiny_student, training, write_sets

__all__ = ["ray_session"]

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

# Sums over two workers are added in another order.
WEIGHT_TOLERANCE = 1e-5
KILL_LIMIT_S = 900.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    write_sets(folder)
    tiny_student(folder)
    return folder


def job(
    place: Path, output: str, *, workers: int, steps: int = 4, **more: object
) -> FinetuneConfig:
    # Adam turns rounding of gradients near zero into whole steps, unless those are small.
    changes = {
        "learning_rate": 1e-5,
        "max_steps": steps,
        "gradient_accumulation_steps": 4 // workers,
        **more,
    }
    return training(
        place,
        place / "model",
        output,
        data={"validation": [str(place / "validation" / "manifest.jsonl")]},
        training=changes,
        evaluation={"eval_steps": 4, "max_windows": 2, "keep": "last"},
        cluster={"workers": workers},
    )


def losses(folder: Path) -> list[float]:
    store = TrainingStore(str(folder), endpoint_url=None, keep=1)
    return [row["loss"] for row in store.log() if "loss" in row]


def test_two_workers_learn_what_one_learns(
    ray_session: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune.run(job(place, "alone", workers=1), progress=None)
    monkeypatch.chdir(place)  # relative paths are those of whoever starts the training
    done = finetune.run(job(Path(), "both", workers=2), progress=None)
    folders = [place / name / "model" for name in ("alone", "both")]
    assert_same_weights(*folders, tolerance=WEIGHT_TOLERANCE)
    assert losses(place / "both") == pytest.approx(losses(place / "alone"), rel=1e-4)
    assert [steps for steps, _ in done.error_rates] == [0, 4]


def kill_a_worker(output: Path) -> None:
    """Kill one of this test's training workers once there is a checkpoint."""
    limit = time.monotonic() + KILL_LIMIT_S
    while not list(output.glob("checkpoints/*/state.json")):
        if time.monotonic() > limit:
            return
        time.sleep(0.05)
    kill_below(os.getpid(), "training")


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    ray_session: Cluster, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finetune.run(job(place, "quiet", workers=1, steps=12), progress=None)
    killer = threading.Thread(target=kill_a_worker, args=(place / "killed",))
    killer.start()
    finetune.run(job(place, "killed", workers=2, steps=12), progress=None)
    killer.join()
    assert "training_restarts" in caplog.text
    folders = [place / name / "model" for name in ("quiet", "killed")]
    assert_same_weights(*folders, tolerance=WEIGHT_TOLERANCE)
    assert len(losses(place / "killed")) == 12


def test_what_a_worker_refuses_reaches_the_user(
    ray_session: Cluster, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = training(
        place, place / "model", "refused", model={"freeze": ["encoder.*"]}, cluster={"workers": 2}
    )
    with pytest.raises(ConfigError, match=r"no parameter of that name.*model\.freeze"):
        finetune.run(config, progress=None)
    assert "training_restarts" not in caplog.text
