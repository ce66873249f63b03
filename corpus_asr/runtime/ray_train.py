"""Training by several processes, on one machine or many, by Ray Train.

If a worker dies, all are replaced, and they continue from the last checkpoint.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray.train.v2.api.exceptions import TrainingFailedError

from corpus_asr.errors import CorpusAsrError, EngineError
from corpus_asr.logs import event

_NEW_STARTS = 3
# One worker may decode or evaluate for hours while the others wait; dead ones are noticed by Ray.
_PATIENCE_S = 7 * 24 * 3600

_LOG = logging.getLogger(__name__)


def train_together(
    work: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    *,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
) -> None:
    """Run a function of an installed module in processes joined by `torch.distributed`.

    It runs in this process's folder where the machine has it, so that relative paths mean the same.

    Raises:
        CorpusAsrError: a process raised it; they are not started anew then.
        EngineError: they died, and so they did when they were started anew.
    """
    for starts_left in reversed(range(_NEW_STARTS + 1)):
        try:
            with tempfile.TemporaryDirectory(prefix="corpus-asr-train-") as folder:
                _trainer(work, settings, folder, workers, gpus_per_worker, cpus_per_worker).fit()
            return
        except TrainingFailedError as error:
            raised = _raised_on_purpose(error)
            if raised is not None:
                raise raised from error
            if not starts_left:
                raise EngineError(
                    f"training on Ray: {error}; correct what its workers say, and run again to go "
                    "on from the last checkpoint"
                ) from error
            event(_LOG, logging.WARNING, "training_restarts", starts_left=starts_left)


@dataclass(frozen=True, slots=True)
class _InFolder:
    """Work to be done in a folder; Ray Train starts it in one of its own."""

    work: Callable[[dict[str, Any]], None]
    folder: Path

    def __call__(self, settings: dict[str, Any]) -> None:
        with suppress(OSError):  # another machine need not have it
            os.chdir(self.folder)
        self.work(settings)


def _trainer(
    work: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    folder: str,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
) -> ray.train.torch.TorchTrainer:
    resources = {"CPU": cpus_per_worker}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    return ray.train.torch.TorchTrainer(
        _InFolder(work, Path.cwd()),
        train_loop_config=settings,
        torch_config=ray.train.torch.TorchConfig(timeout_s=_PATIENCE_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(storage_path=folder),
    )


def _raised_on_purpose(error: TrainingFailedError) -> CorpusAsrError | None:
    """Return what a worker raised with words for people."""
    for failure in getattr(error, "worker_failures", {}).values():
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, CorpusAsrError):
                return seen
            # Ray Train wraps what a worker raises; there is no public way to it.
            seen = getattr(seen, "_base_exc", None) or getattr(seen, "cause", None)
    return None
