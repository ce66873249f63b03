"""How the tokens of a window lie in time, as the decoder's cross-attention has it.

In: a job and the slot that holds its window. Out: attention weights and log-probabilities. Knows
nothing of words, and leaves what the slot decodes as it is.
"""

from typing import Any

import torch

from corpus_asr.decoding.checks import check_numbers
from corpus_asr.decoding.protocols import AlignJob, AlignResult, SlotModel


@torch.inference_mode()
def align_window(model: SlotModel, state: Any, slot: int, job: AlignJob) -> AlignResult:
    """Read the job's tokens over the window in `slot`.

    Raises:
        EngineError: the model gave no finite number.
    """
    tokens = torch.tensor(job.tokens, device=model.device)
    weights, logits = model.align(state, slot, tokens, job.heads)
    among = logits[:-1, : job.choices].log_softmax(dim=1)
    said = tokens[1:]
    chosen = said.clamp(max=among.shape[1] - 1)
    told = among.gather(1, chosen.unsqueeze(1)).squeeze(1)
    logprobs: list[float] = told.masked_fill(chosen != said, -torch.inf).tolist()
    check_numbers(logprobs, model)
    return AlignResult(weights=weights.float().cpu().numpy(), logprobs=tuple(logprobs))
