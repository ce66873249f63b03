"""One process among several that train together: plain settings in, a training that is done out.

Knows nothing of what started it, but that `torch.distributed` and LOCAL_RANK are set up.
"""

import os
from typing import Any

import torch

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.errors import EngineError
from corpus_asr.training.group import Group
from corpus_asr.training.job import Finetune


def train(settings: dict[str, Any]) -> None:
    """Train as one of a group.

    Raises:
        CorpusAsrError: as `Finetune` has it.
    """
    config = FinetuneConfig.model_validate(settings)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if config.model.device in ("auto", "cuda"):
        # Without GPUs of their own, all of them would compute on the first one.
        device = _gpu(local_rank) if config.cluster.gpus_per_worker else "cpu"
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"device": device})}
        )
    for _ in Finetune(config, group=Group.current(), local_rank=local_rank).run():
        pass


def _gpu(local_rank: int) -> str:
    """Choose a worker's GPU: its own, where the workers of a machine see all of theirs."""
    if not torch.cuda.is_available():
        raise EngineError(
            "training on Ray: found no CUDA device in a worker that has a GPU, expected one; "
            "install a torch with CUDA on that machine, or set cluster.gpus_per_worker to 0"
        )
    number = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return f"cuda:{number}"
