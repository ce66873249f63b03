"""One process among several that train together: plain settings in, a training that is done out.

Knows nothing of what started it, but that `torch.distributed` and LOCAL_RANK are set up.
"""

import os
from typing import Any

import torch

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.training.group import Group
from corpus_asr.training.job import Finetune


def train(settings: dict[str, Any]) -> None:
    """Train as one of a group.

    Raises:
        CorpusAsrError: as `Finetune` has it.
    """
    config = FinetuneConfig.model_validate(settings)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if (
        config.model.device == "auto"
        and config.cluster.gpus_per_worker
        and torch.cuda.is_available()
    ):
        device = f"cuda:{local_rank % torch.cuda.device_count()}"
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"device": device})}
        )
    for _ in Finetune(config, group=Group.current(), local_rank=local_rank).run():
        pass
