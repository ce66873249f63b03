"""Scores of what beams and samples were chosen from, in the layout of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.protocols import BeamTrace


def compute_transition_scores(
    self: Any,
    sequences: Int[Tensor, "batch token"],
    scores: Sequence[Float[Tensor, "row vocab"]],
    beam_indices: Int[Tensor, "batch step"] | None = None,
    normalize_logits: bool = False,
) -> Float[Tensor, "batch step"]:
    """Return the score of each generated token; 0 after the end of a beam.

    Args:
        sequences, scores, beam_indices: what `generate` returned by name.
        normalize_logits: whether scores become log-probabilities first.
    """
    return _scores_of(sequences, scores, beam_indices, beam_indices, normalize=normalize_logits)


def compute_window_scores(
    self: Any,
    sequences: Int[Tensor, "batch token"],
    scores: Sequence[Float[Tensor, "batch vocab"]],
    beam_indices: Int[Tensor, "batch step"] | None = None,
    normalize_logits: bool = False,
) -> Float[Tensor, "batch step"]:
    """Return the score of each generated token; 0 after the end of a beam.

    Args:
        sequences, scores, beam_indices: what `generate` returned by name. Scores of beams are each
            text's own, so that of `beam_indices` only counts where texts end.
        normalize_logits: whether scores become log-probabilities first.
    """
    return _scores_of(sequences, scores, beam_indices, None, normalize=normalize_logits)


def _scores_of(
    sequences: Int[Tensor, "batch token"],
    scores: Sequence[Float[Tensor, "row vocab"]],
    beam_indices: Int[Tensor, "batch step"] | None,
    rows: Int[Tensor, "batch step"] | None,
    *,
    normalize: bool,
) -> Float[Tensor, "batch step"]:
    steps = torch.stack(tuple(scores))  # (step, row, vocab)
    if normalize:
        steps = steps.log_softmax(dim=2)
    count, device = len(steps), steps.device
    over = None
    if beam_indices is not None:
        over = beam_indices.to(device) < 0
        count = int((~over).sum(dim=1).max())
        over = over[:, :count]
    if rows is None:
        rows = torch.arange(len(sequences), device=device).unsqueeze(1).expand(-1, count)
    tokens = sequences[:, sequences.shape[1] - count :].to(device)
    row = rows[:, :count].to(device, torch.long).clamp(min=0)
    found = steps[torch.arange(count, device=device), row, tokens]
    return found if over is None else found.masked_fill(over, 0.0)


def of_all_beams(
    traces: Sequence[BeamTrace], name: str, pad: int
) -> tuple[Float[Tensor, "row vocab"], ...] | None:
    """Return the scores or logits of all beams of all texts at each step.

    Texts that have ended are certain of padding.
    """
    kept = [getattr(trace, name) for trace in traces]
    if any(steps is None for steps in kept):
        return None
    longest = max(len(steps) for steps in kept)
    rows = []
    for steps in kept:
        over = torch.full_like(steps[:1], float("-inf"))
        over[..., pad] = 0.0
        rows.append(torch.cat([steps, over.expand(longest - len(steps), -1, -1)]))
    return tuple(torch.cat(rows, dim=1))
