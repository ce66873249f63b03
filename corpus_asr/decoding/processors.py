"""Changing the scores of the next token by what was said before it.

In: scores as the model gave them or as the rules left them, the texts so far (prompt included), and
the search of each row. Out: the scores, changed. Keeps no state: a row's text is all that matters,
so slots, beams and drafts can use it alike, and no row's result depends on another's.

Source of order and meaning: `transformers`' logits processors; equal to them
(tests/decoding/test_processors.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.decoding.protocols import LogitsProcessor, Search, StoppingCriterion

FORBIDDEN = float("-inf")


def apply_before_rules(
    scores: Float[Tensor, "slot vocab"],
    searches: Sequence[Search],
    texts: Int[Tensor, "slot token"],
    lengths: Int[Tensor, " slot"],
) -> Float[Tensor, "slot vocab"]:
    """Apply, in place, what comes before the `TokenRules`.

    First the penalty for repeats, then the rule against repeated n-grams, then the caller's early
    processors.

    Args:
        scores: of the next token of each row.
        searches: one per row.
        texts: prompt and text of each row; what lies behind its length is not read.
        lengths: tokens in each row.
    """
    penalised = [row for row, search in enumerate(searches) if search.repetition_penalty != 1.0]
    if penalised:
        rows = torch.tensor(penalised, device=scores.device)
        penalties = [searches[row].repetition_penalty for row in penalised]
        scores[rows] = penalise_repeats(
            scores[rows],
            texts[rows],
            lengths[rows],
            torch.tensor(penalties, dtype=scores.dtype, device=scores.device),
        )
    for size in sorted({search.no_repeat_ngram_size for search in searches} - {0}):
        same = [row for row, search in enumerate(searches) if search.no_repeat_ngram_size == size]
        rows = torch.tensor(same, device=scores.device)
        scores[rows] = forbid_repeated_ngrams(scores[rows], texts[rows], lengths[rows], size)
    for row, search in enumerate(searches):
        if search.early_processors:
            text = texts[row, : int(lengths[row])]
            scores[row] = run_processors(search.early_processors, text, scores[row])
    return scores


def apply_after_rules(
    scores: Float[Tensor, "slot vocab"],
    searches: Sequence[Search],
    texts: Int[Tensor, "slot token"],
    lengths: Int[Tensor, " slot"],
) -> Float[Tensor, "slot vocab"]:
    """Apply, in place, the processors that come after the `TokenRules`; arguments as above."""
    for row, search in enumerate(searches):
        if search.processors:
            text = texts[row, : int(lengths[row])]
            scores[row] = run_processors(search.processors, text, scores[row])
    return scores


def penalise_repeats(
    scores: Float[Tensor, "slot vocab"],
    texts: Int[Tensor, "slot token"],
    lengths: Int[Tensor, " slot"],
    penalties: Float[Tensor, " slot"],
) -> Float[Tensor, "slot vocab"]:
    """Make tokens that occurred less likely, whatever the sign of their score.

    Source: Keskar et al. 2019, section 4.1; `transformers` RepetitionPenaltyLogitsProcessor.
    """
    vocab = scores.shape[1]
    # A column to spare takes what lies behind the texts.
    occurred = torch.zeros(len(scores), vocab + 1, dtype=torch.bool, device=scores.device)
    columns = torch.arange(texts.shape[1], device=scores.device)
    occurred.scatter_(1, torch.where(columns < lengths.unsqueeze(1), texts, vocab), True)
    penalty = penalties.unsqueeze(1)
    penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(occurred[:, :vocab], penalised, scores)


def forbid_repeated_ngrams(
    scores: Float[Tensor, "slot vocab"],
    texts: Int[Tensor, "slot token"],
    lengths: Int[Tensor, " slot"],
    size: int,
) -> Float[Tensor, "slot vocab"]:
    """Forbid tokens that would end a sequence of `size` tokens that the text has already.

    Source: `transformers` NoRepeatNGramLogitsProcessor.
    """
    if size > texts.shape[1]:
        return scores
    vocab, device = scores.shape[1], scores.device
    length = lengths.unsqueeze(1)
    ngrams = texts.unfold(1, size, 1)  # (slot, start, size)
    complete = torch.arange(ngrams.shape[1], device=device) + size <= length  # (slot, start)
    at = length - (size - 1) + torch.arange(size - 1, device=device)
    last = texts.gather(1, at.clamp(min=0))  # (slot, size - 1)
    begins = (ngrams[:, :, :-1] == last.unsqueeze(1)).all(dim=2)
    forbidden = torch.zeros(len(scores), vocab + 1, dtype=torch.bool, device=device)
    forbidden.scatter_(1, torch.where(begins & complete, ngrams[:, :, -1], vocab), True)
    return scores.masked_fill(forbidden[:, :vocab], FORBIDDEN)


def run_processors(
    processors: Sequence[LogitsProcessor],
    text: Int[Tensor, " token"],
    scores: Float[Tensor, " vocab"],
) -> Float[Tensor, " vocab"]:
    """Let processors change the scores of one row, one after the other.

    Raises:
        ValueError: one gives something else than scores of the same shape, or forbids every token.
    """
    row = scores.unsqueeze(0)
    for processor in processors:
        given: Any = processor(text.unsqueeze(0).clone(), row.clone())
        if not isinstance(given, Tensor) or given.shape != row.shape:
            raise ValueError(
                f"applying the logits processor {_name(processor)}: it gave {_found(given)}, "
                f"expected scores of shape {tuple(row.shape)}; return the scores it was given, "
                "changed"
            )
        row = given.to(scores)
        if bool(row.isneginf().all()):
            raise ValueError(
                f"applying the logits processor {_name(processor)}: it leaves none of "
                f"{row.shape[1]} tokens after {len(text)}, expected at least one; let it allow "
                "the end token"
            )
    return row.squeeze(0)


def should_stop(
    criteria: Sequence[StoppingCriterion],
    text: Int[Tensor, " token"],
    scores: Sequence[Float[Tensor, " vocab"]] | None,
) -> bool:
    """Ask the criteria whether a text is long enough; each is asked, as it may keep count.

    Args:
        criteria: from the caller.
        text: prompt and text so far.
        scores: of each token so far, where the search keeps them.

    Raises:
        ValueError: one gives neither a bool nor one truth value.
    """
    past = None if scores is None else tuple(step.unsqueeze(0) for step in scores)
    answers: list[Any] = [criterion(text.unsqueeze(0).clone(), past) for criterion in criteria]
    for criterion, answer in zip(criteria, answers, strict=True):
        one_tensor = isinstance(answer, Tensor) and answer.numel() == 1
        if not one_tensor and not isinstance(answer, bool):
            raise ValueError(
                f"asking the stopping criterion {_name(criterion)}: it gave {_found(answer)}, "
                "expected a bool or a tensor of one; return one per text"
            )
    return any(bool(answer) for answer in answers)


def _name(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _found(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
