"""Where passages are in the encoding of their windows, and the tokens that say them.

In: a batch, and what is read off its encoding. Out: places, positions of the encoding. Knows no
network and no losses.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corpus_asr.models.vocabulary import IGNORED_LABEL
from corpus_asr.training.alignment import letter_positions
from corpus_asr.training.examples import AROUND, Batch, Written

BLANK = 256  # after all bytes


def passage_lengths(batch: Batch) -> Tensor:
    """Return the positions of each passage."""
    return batch.spans[:, 2] - batch.spans[:, 1] + 1


def by_passage(logits: Tensor, batch: Batch) -> Tensor:
    """Return what is read off the stretch of each passage: (pos, passage, symbol)."""
    row, first, last, _ = batch.spans.unbind(1)
    steps = torch.arange(int(passage_lengths(batch).max()), device=logits.device)
    places = torch.minimum(first + steps[:, None], last)
    return F.log_softmax(logits.float(), dim=-1)[row, places]


def unpadded_rows(written: Written, places: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield rows of tokens without what fills them up, as `Heard` names them."""
    for row, labels in enumerate(written.labels):
        end = int((labels != IGNORED_LABEL).nonzero().max()) + 1
        yield {
            "inputs": written.inputs[row, :end].clone(),
            "labels": labels[:end].clone(),
            "places": places[row, :end].clone(),
        }


def stretches(batch: Batch, positions: int) -> tuple[Tensor, Tensor]:
    """Return where each passage and what is around it begins in its window, and where it ends."""
    begin = (batch.spans[:, 1] - AROUND).clamp(min=0)
    return begin, (batch.spans[:, 2] + AROUND + 1).clamp(max=positions)


def token_places(logits: Tensor, batch: Batch, written: Written, *, alone: bool) -> Tensor:
    """Return the first and the last position of what each token writes: (row, token, 2).

    The encoding itself tells, by what is read off it; -1 where it does not.
    """
    passage, first, end = written.letters.unbind(-1)
    unknown = torch.full((*passage.shape, 2), -1, device=logits.device)
    if not len(batch.spans):
        return unknown
    starts, letters = batch.spans[:, 1].tolist(), batch.spans[:, 3].tolist()
    if alone:
        starts = (batch.spans[:, 1] - stretches(batch, logits.shape[1])[0]).tolist()
    aligned = letter_positions(
        by_passage(logits, batch).cpu().numpy(),
        passage_lengths(batch).tolist(),
        [one.tolist() for one in torch.split(batch.spoken, letters)],
        blank=BLANK,
    )
    heard = [
        np.full(count, -1) if at is None else start + at
        for start, at, count in zip(starts, aligned, letters, strict=True)
    ]
    every = torch.from_numpy(np.concatenate(heard)).to(logits.device)
    begin = F.pad(batch.spans[:, 3].cumsum(0), (1, 0))[passage.clamp(min=0)]
    found = torch.stack(
        [every[begin + first.clamp(min=0)], every[begin + end.clamp(min=1) - 1]], -1
    )
    return torch.where((passage >= 0)[..., None], found, unknown)
