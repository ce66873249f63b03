"""Training by several processes at once, on one machine or many, by Ray Train.

In: a function by its name, its settings, and how many run it. Out: nothing; what they make, they
write. A worker that dies is replaced with all others, and they go on from the last checkpoint.
Knows nothing of what is trained.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.torch

from corpus_asr.errors import CorpusAsrError, EngineError

_NEW_STARTS = 3


def train_together(
    work: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    *,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
) -> None:
    """Run a function in several processes that can add tensors up by `torch.distributed`.

    Args:
        work: pickled by reference, so a function of an installed module.
        settings: what each is called with; plain data.
        workers: how many processes.
        gpus_per_worker: of each.
        cpus_per_worker: of each.

    Raises:
        CorpusAsrError: a process raised it.
        EngineError: they cannot go on, however often they are started anew.
    """
    with tempfile.TemporaryDirectory(prefix="corpus-asr-train-") as folder:
        trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config=settings,
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=gpus_per_worker > 0,
                resources_per_worker={"CPU": cpus_per_worker, "GPU": gpus_per_worker},
            ),
            run_config=ray.train.RunConfig(
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=_NEW_STARTS),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _failure(error) from error


def _failure(error: Exception) -> CorpusAsrError:
    """Return what a worker raised on purpose; anything else by its words."""
    for each in (*getattr(error, "worker_failures", {}).values(), error.__cause__, error):
        cause = getattr(each, "cause", each)
        if isinstance(cause, CorpusAsrError):
            return cause
    return EngineError(
        f"training on Ray: {type(error).__name__}: {error}; correct what its workers say, and run "
        "again to go on from the last checkpoint"
    )
