"""What a search asks for beyond the likeliest token: processors, sampling, kept scores.

Keeps no state but the texts, and noise is a pure function of (seed, position, token): so no choice
depends on a slot's neighbors, the batch size or the device.

Source of order and meaning: `transformers`' logits processors; equal to them
(tests/decoding/test_options.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding.protocols import LogitsProcessor, Search, StoppingCriterion
from corpus_asr.decoding.rules import FORBIDDEN

_NOISE_BITS = 23  # plus one half stays exact in float32, so that 1.0 is never reached


@dataclass(frozen=True, slots=True)
class _Options:
    search: Search
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


class SlotOptions:
    """The options of the slots that have any; looks at the batch's own tensors."""

    def __init__(
        self,
        tokens: Int[Tensor, "slot token"],
        lengths: Int[Tensor, " slot"],
        ended: Bool[Tensor, " slot"],
    ) -> None:
        self._tokens, self._lengths, self._ended = tokens, lengths, ended
        self._slots: dict[int, _Options] = {}

    @property
    def any(self) -> bool:
        """Whether any slot has options, which the host has a part in."""
        return bool(self._slots)

    def admit(self, slots: Sequence[int], searches: Sequence[Search]) -> None:
        """Give `slots` new searches."""
        for slot, search in zip(slots, searches, strict=True):
            self._slots.pop(slot, None)
            if _changes_before_rules(search) or _narrows(search) or _is_exact(search):
                self._slots[slot] = _Options(search)

    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is; `source` is free afterwards."""
        self._slots.pop(target, None)
        if source in self._slots:
            self._slots[target] = self._slots.pop(source)

    def before_rules(
        self,
        scores: Float[Tensor, "batch vocab"],
        slots: Sequence[int],
        *,
        logits: Float[Tensor, "batch vocab"] | None = None,
    ) -> None:
        """Apply, in place, what comes before the token rules."""
        for row in self._rows(slots, lambda search: search.keep_logits):
            kept = scores if logits is None else logits
            self._slots[slots[row]].logits.append(kept[row].clone())
        rows = self._rows(slots, _changes_before_rules)
        if not rows:
            return
        at = torch.tensor(rows, device=scores.device)
        index = torch.tensor([slots[row] for row in rows], device=scores.device)
        searches = [self._slots[slots[row]].search for row in rows]
        texts, lengths = self._tokens[index], self._lengths[index]
        scores[at] = _apply_before_rules(scores[at], searches, texts, lengths)

    def after_rules(self, scores: Float[Tensor, "batch vocab"], slots: Sequence[int]) -> None:
        """Apply, in place, what comes after the token rules."""
        for row in self._rows(slots, lambda search: bool(search.early_processors)):
            if bool(scores[row].isneginf().all()):
                length = int(self._lengths[slots[row]])
                raise ValueError(
                    f"choosing what follows {length} tokens: found all {scores.shape[1]} "
                    "forbidden, by processors that come before the token rules and by these, "
                    "expected one that both allow; let the processors allow it (the first token "
                    "under the timestamp grammar, for one, is a timestamp)"
                )
        for row in self._rows(slots, lambda search: bool(search.processors)):
            processors = self._slots[slots[row]].search.processors
            scores[row] = run_processors(processors, self._text(slots[row]), scores[row])

    def narrow(
        self,
        scores: Float[Tensor, "batch vocab"],
        slots: Sequence[int],
        temperatures: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch vocab"]:
        """Forbid what `top_k` and `top_p` rule out; gives a copy where they do."""
        rows = self._rows(slots, _narrows)
        if not rows:
            return scores
        narrowed = scores.clone()
        searches = {row: self._slots[slots[row]].search for row in rows}
        # Rows of one `top_k` at a time: how many are sorted must not depend on a neighbor's.
        for top_k in dict.fromkeys(search.top_k for search in searches.values()):
            same = [row for row in rows if searches[row].top_k == top_k]
            index = torch.tensor(same, device=scores.device)
            top_p = [1.0 if (p := searches[row].top_p) is None else p for row in same]
            narrowed[index] = keep_likeliest(
                scores[index],
                temperatures=temperatures[index],
                top_k=top_k,
                top_p=torch.tensor(top_p, device=scores.device),
            )
        return narrowed

    def keep(self, scores: Float[Tensor, "batch vocab"], slots: Sequence[int]) -> None:
        """Keep, where asked for, what the next tokens are chosen from."""
        for row in self._rows(slots, lambda search: search.keep_scores):
            options = self._slots[slots[row]]
            options.scores.append(scores[row] / (options.search.temperature or 1.0))

    def stopped(self, slots: Sequence[int]) -> list[int]:
        """The slots that a criterion of their job ends."""
        found = []
        for row in self._rows(slots, lambda search: bool(search.stopping)):
            slot, options = slots[row], self._slots[slots[row]]
            past = options.scores if options.search.keep_scores else None
            if should_stop(options.search.stopping, self._text(slot), past):
                found.append(slot)
        return found

    def kept(self, slot: int) -> tuple[Tensor | None, Tensor | None]:
        """Hand over the scores and logits kept of the slot's tokens, on the CPU."""
        # At 200 kB a token, nothing must stay in a slot that nobody needs for now.
        options = self._slots.pop(slot, None)
        if options is None:
            return None, None
        kept = (options.scores, options.logits)
        scores, logits = (torch.stack(steps).cpu() if steps else None for steps in kept)
        return scores, logits

    def _rows(self, slots: Sequence[int], wanted: Callable[[Search], bool]) -> list[int]:
        if not self._slots:
            return []
        return [
            row
            for row, slot in enumerate(slots)
            if slot in self._slots
            and wanted(self._slots[slot].search)
            # Nothing is kept of, and no caller's function sees, what follows a text's end.
            and not (_is_exact(self._slots[slot].search) and bool(self._ended[slot]))
        ]

    def _text(self, slot: int) -> Int[Tensor, " token"]:
        return self._tokens[slot, : int(self._lengths[slot])]


def _changes_before_rules(search: Search) -> bool:
    return (
        search.repetition_penalty != 1.0
        or search.no_repeat_ngram_size > 0
        or bool(search.early_processors)
    )


def _narrows(search: Search) -> bool:
    narrows = search.top_k is not None or (search.top_p is not None and search.top_p < 1)
    return narrows and search.temperature > 0


def _is_exact(search: Search) -> bool:
    # Whether each step counts: the caller's functions are called, or scores are kept.
    calls = search.early_processors or search.processors or search.stopping
    return bool(calls) or search.keep_scores or search.keep_logits


def _apply_before_rules(
    scores: Float[Tensor, "slot vocab"],
    searches: Sequence[Search],
    texts: Int[Tensor, "slot token"],
    lengths: Int[Tensor, " slot"],
) -> Float[Tensor, "slot vocab"]:
    # The penalty for repeats, the rule against repeated n-grams, the caller's early processors: in
    # the order of transformers.
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
    """Let processors change the scores of one row, one after the other."""
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
    """Ask the criteria whether a text is long enough; each is asked, as it may keep count."""
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


def choose(
    logits: Float[Tensor, "slot vocab"],
    *,
    temperatures: Float[Tensor, " slot"],
    seeds: Int[Tensor, " slot"],
    positions: Int[Tensor, " slot"],
) -> Int[Tensor, " slot"]:
    """Take the likeliest token, or sample from softmax(logits / temperature) where it is above 0.

    Sampling is the maximum of logits plus Gumbel noise, which needs no normalized distribution.

    Source: Maddison et al. 2014, "A* Sampling", section 2.
    """
    noise = gumbel_noise(seeds, positions, logits.shape[1])
    # At temperature 0 the noise is multiplied away; forbidden tokens stay at minus infinity.
    return (logits + temperatures.unsqueeze(1) * noise).argmax(dim=1)


def keep_likeliest(
    logits: Float[Tensor, "slot vocab"],
    *,
    temperatures: Float[Tensor, " slot"],
    top_k: int | None,
    top_p: Float[Tensor, " slot"],
) -> Float[Tensor, "slot vocab"]:
    """Forbid all but the likeliest tokens; those as likely as the last one kept are kept too.

    Source: Fan et al. 2018, section 5.1; Holtzman et al. 2020, section 3.1. Equal to
    `transformers`' TopKLogitsWarper, then TopPLogitsWarper (tests/decoding/test_options.py).
    """
    scaled = logits / temperatures.unsqueeze(1)
    if top_k is None or top_k >= scaled.shape[1]:
        rising = scaled.sort(dim=1).values
    else:
        rising = scaled.topk(top_k, dim=1).values.flip(1)
    # What lies at or below a token, with it, is what would be lost by leaving it out.
    lost = rising.softmax(dim=1).cumsum(dim=1)
    kept = (lost > 1 - top_p.unsqueeze(1)) | (top_p == 1).unsqueeze(1)
    kept[:, -1] = True
    lowest = rising.masked_fill(~kept, float("inf")).amin(dim=1, keepdim=True)
    return logits.masked_fill(scaled < lowest, FORBIDDEN)


def gumbel_noise(
    seeds: Int[Tensor, " slot"], positions: Int[Tensor, " slot"], vocab_size: int
) -> Float[Tensor, "slot vocab"]:
    """Standard Gumbel noise, equal for equal (seed, position, token) everywhere."""
    stream = _mix(seeds + _mix(positions + 1)).unsqueeze(1)
    bits = _mix(stream + torch.arange(vocab_size, device=seeds.device))  # (slot, vocab)
    uniform = (_shift(bits, 64 - _NOISE_BITS).float() + 0.5) / (1 << _NOISE_BITS)
    return -torch.log(-torch.log(uniform))


def _mix(values: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    # The finalizer of SplitMix64 (Steele et al. 2014): scrambles 64-bit integers.
    values = values * -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
    values = (values ^ _shift(values, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    values = (values ^ _shift(values, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return values ^ _shift(values, 31)


def _shift(values: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    # Fills with zeros, which torch's signed shift does not.
    return (values >> bits) & ((1 << (64 - bits)) - 1)
