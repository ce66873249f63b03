"""Losses of CTC and of transducers: minus the log-probability of labels, over all alignments."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int

_NEVER = -1e30  # an infinite logarithm would make NaN of gradients


def ctc_loss(
    logits: Float[Tensor, "batch pos vocab"],
    labels: Int[Tensor, "batch token"],
    counted: Bool[Tensor, "batch token"],
    lengths: Int[Tensor, " batch"],
    *,
    blank: int,
    reduction: str,
    zero_infinity: bool,
) -> Float[Tensor, "*_"]:
    """Return the loss of the `counted` labels in the first `lengths` positions of each row.

    Source: Graves et al. 2006; `torch.nn.functional.ctc_loss`, in float32 without cuDNN.
    """
    logprobs = logits.log_softmax(dim=2, dtype=torch.float32).transpose(0, 1)
    # cuDNN takes integers of another type, and blanks of 0 only.
    with torch.backends.cudnn.flags(enabled=False):
        return F.ctc_loss(
            logprobs,
            labels[counted],
            lengths,
            counted.sum(dim=1),
            blank=blank,
            reduction=reduction,
            zero_infinity=zero_infinity,
        )


def transducer_losses(
    logits: Float[Tensor, "batch pos token score"],
    labels: Int[Tensor, "batch label"],
    lengths: Int[Tensor, " batch"],
    label_lengths: Int[Tensor, " batch"],
    *,
    blank: int,
    vocab_size: int,
    durations: Sequence[int],
) -> Float[Tensor, " batch"]:
    """Return the loss of each row's first `label_lengths` labels.

    `logits` are those of each position after each number of labels, 0 to all. Scores from
    `vocab_size` on are of `durations`; without any, as in RNN-T, a label lasts 0 positions and a
    blank 1.

    Source: Graves 2012, section 2.4; Xu et al. 2023, section 3.2. Equal to transformers' TDT loss
    within 1e-5.
    """
    tokens = logits[..., :vocab_size].log_softmax(dim=-1, dtype=torch.float32)
    blanks = tokens[..., blank]  # (batch, pos, token)
    # One row of labels, for every position.
    index = labels[:, None, :, None].expand(-1, tokens.shape[1], -1, 1)
    spoken = F.pad(tokens[:, :, :-1].gather(3, index)[..., 0], (0, 1), value=_NEVER)
    if durations:
        lasting = logits[..., vocab_size:].log_softmax(dim=-1, dtype=torch.float32)
        by_duration = [
            (duration, blanks + lasting[..., i], spoken + lasting[..., i])
            for i, duration in enumerate(durations)
        ]
    else:
        by_duration = [(0, torch.full_like(blanks, _NEVER), spoken)]
        by_duration += [(1, blanks, torch.full_like(spoken, _NEVER))]
    # A blank of no duration would lead nowhere.
    blank_arcs = [(lasts, _skewed(arc)) for lasts, arc, _ in by_duration if lasts > 0]
    label_arcs = [(lasts, _skewed(arc)) for lasts, _, arc in by_duration]
    reached = _reached(blank_arcs, label_arcs, rows=len(logits))  # (batch, diagonal, token)
    # From where a blank leaves the last position, with all labels said.
    row = torch.arange(len(logits), device=logits.device)
    ways = []
    for lasts, arc in blank_arcs:
        start = lengths - lasts
        diagonal = start.clamp(min=0) + label_lengths
        way = (reached + arc)[row, diagonal, label_lengths]
        ways.append(way.masked_fill(start < 0, _NEVER))
    return -torch.stack(ways).logsumexp(dim=0)


Arcs = list[tuple[int, Float[Tensor, "batch diagonal token"]]]
"""Log-probabilities by how many positions an arc leads on."""


def _reached(
    blank_arcs: Arcs, label_arcs: Arcs, *, rows: int
) -> Float[Tensor, "batch diagonal token"]:
    """Sum over all ways to each place of the lattice, a diagonal at a time.

    Places of one diagonal have the same sum of position and labels, and no arc between them.
    """
    _, diagonals, width = label_arcs[0][1].shape
    start = label_arcs[0][1].new_full((rows, width), _NEVER)
    start[:, 0] = 0.0
    sums = [start]
    for number in range(1, diagonals):
        ways = [
            sums[number - lasts] + arc[:, number - lasts]
            for lasts, arc in blank_arcs
            if number >= lasts
        ]
        for lasts, arc in label_arcs:
            if number > lasts:
                before = sums[number - lasts - 1] + arc[:, number - lasts - 1]
                ways.append(F.pad(before[:, :-1], (1, 0), value=_NEVER))
        sums.append(torch.stack(ways).logsumexp(dim=0) if ways else torch.full_like(start, _NEVER))
    return torch.stack(sums, dim=1)


def _skewed(
    values: Float[Tensor, "batch pos token"],
) -> Float[Tensor, "batch diagonal token"]:
    """Move each column down by its number, so that a diagonal lies in one row."""
    rows, positions, width = values.shape
    longer = F.pad(values, (0, 0, 0, width), value=_NEVER)  # (batch, pos + token, token)
    place = torch.arange(positions + width, device=values.device)[:, None]
    index = (place - torch.arange(width, device=values.device)) % (positions + width)
    return longer.gather(1, index.expand(rows, -1, -1))


def reduced(
    losses: Float[Tensor, " batch"], label_lengths: Int[Tensor, " batch"], *, by_row: bool
) -> Float[Tensor, ""]:
    """Return the mean loss of a label: of each row first and then of the rows, or of all at once.

    Source: transformers' `mean` and `mean_volume`, which its TDT and RNN-T take.
    """
    if by_row:
        return (losses / label_lengths).mean()
    return losses.sum() / label_lengths.sum()
