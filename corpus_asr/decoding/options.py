"""What the searches in the slots ask for beyond the likeliest token.

In: a batch's scores, as it decodes. Out: the same, under the options of those slots that have any,
and what their results are to carry. Every method returns at once where no slot has options.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corpus_asr.decoding.processors import apply_after_rules, apply_before_rules, should_stop
from corpus_asr.decoding.protocols import Search
from corpus_asr.decoding.samplers import keep_likeliest


@dataclass(frozen=True, slots=True)
class _Options:
    """One slot's search, and what has been kept for its result."""

    search: Search
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Texts:
    """What the slots of a batch have said; the batch's own tensors."""

    tokens: Int[Tensor, "slot token"]
    """Prompt and text."""
    lengths: Int[Tensor, " slot"]
    """Tokens in each."""
    ended: Bool[Tensor, " slot"]


class SlotOptions:
    """The options of the slots that have any."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._slots: dict[int, _Options] = {}

    @property
    def any(self) -> bool:
        """Whether any slot has options, which the host has a part in."""
        return bool(self._slots)

    def admit(self, slots: Sequence[int], searches: Sequence[Search]) -> None:
        """Give `slots` new searches."""
        for slot, search in zip(slots, searches, strict=True):
            self._slots.pop(slot, None)
            if has_options(search):
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
        """Apply, in place, what comes before the token rules.

        Args:
            scores: of `slots`, as yet unchanged.
            slots: the slot of each row.
            logits: as the model gave them; left out where the scores are just that.
        """
        for row in self._rows(slots, lambda search: search.keep_logits):
            kept = scores if logits is None else logits
            self._slots[slots[row]].logits.append(kept[row].clone())
        self._apply(apply_before_rules, scores, slots, self._rows(slots, _changes_before_rules))

    def after_rules(self, scores: Float[Tensor, "batch vocab"], slots: Sequence[int]) -> None:
        """Apply, in place, what comes after the token rules.

        Raises:
            ValueError: these and what came before them forbid every token.
        """
        for row in self._rows(slots, lambda search: bool(search.early_processors)):
            if bool(scores[row].isneginf().all()):
                length = int(self._texts.lengths[slots[row]])
                raise ValueError(
                    f"choosing what follows {length} tokens: found all {scores.shape[1]} "
                    "forbidden, by processors that come before the token rules and by these, "
                    "expected one that both allow; let the processors allow it (the first token "
                    "under the timestamp grammar, for one, is a timestamp)"
                )
        rows = self._rows(slots, lambda search: bool(search.processors))
        self._apply(apply_after_rules, scores, slots, rows)

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
        # Rows of one `top_k` at a time: how many are sorted must not depend on a neighbour's.
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
            text = self._texts.tokens[slot, : int(self._texts.lengths[slot])]
            if should_stop(options.search.stopping, text, past):
                found.append(slot)
        return found

    def kept(self, slot: int) -> tuple[Tensor | None, Tensor | None]:
        """Hand over the scores and logits kept of the slot's tokens, on the CPU.

        The slot has no options afterwards: at 200 kB a token, what was kept must not stay in a
        slot that nobody needs for now.
        """
        options = self._slots.pop(slot, None)
        if options is None:
            return None, None
        kept = (options.scores, options.logits)
        scores, logits = (torch.stack(steps).cpu() if steps else None for steps in kept)
        return scores, logits

    def _rows(self, slots: Sequence[int], wanted: Callable[[Search], bool]) -> list[int]:
        """The rows whose search is `wanted`."""
        if not self._slots:
            return []
        return [
            row
            for row, slot in enumerate(slots)
            if slot in self._slots
            and wanted(self._slots[slot].search)
            # Nothing is kept of, and no caller's function sees, what follows a text's end.
            and not (_is_exact(self._slots[slot].search) and bool(self._texts.ended[slot]))
        ]

    def _apply(
        self,
        change: Callable[..., Tensor],
        scores: Float[Tensor, "batch vocab"],
        slots: Sequence[int],
        rows: list[int],
    ) -> None:
        if not rows:
            return
        at = torch.tensor(rows, device=scores.device)
        index = torch.tensor([slots[row] for row in rows], device=scores.device)
        searches = [self._slots[slots[row]].search for row in rows]
        texts, lengths = self._texts.tokens[index], self._texts.lengths[index]
        scores[at] = change(scores[at], searches, texts, lengths)


def has_options(search: Search) -> bool:
    """Whether a search asks for more than tokens under the rules, at a temperature."""
    return _changes_before_rules(search) or _narrows(search) or _is_exact(search)


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
    """Whether each step counts: the caller's functions are called, or scores are kept."""
    calls = search.early_processors or search.processors or search.stopping
    return bool(calls) or search.keep_scores or search.keep_logits
