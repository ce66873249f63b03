"""Search options beyond greedy decoding: logits processors, sampling and kept scores.

Stateless except for the texts; noise is a pure function of (seed, position, token), so that choices
do not depend on a slot's neighbors, the batch size or the device.

Order and semantics are those of `transformers`' logits processors; equal to them
(tests/decoding/test_options.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding import kernels
from corpus_asr.decoding.device import upload
from corpus_asr.decoding.jobs import LogitsProcessor, Search, StoppingCriterion
from corpus_asr.decoding.kernels import Checked
from corpus_asr.decoding.rules import FORBIDDEN, apply_rules

_NOISE_BITS = 23  # plus one half is exact in float32, so 1.0 is never reached


@dataclass(frozen=True, slots=True)
class _SlotSearch:
    search: Search
    scores: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Layout:
    """Option parameters of the slots besides tensors; a recorded step has fixed ones."""

    penalised: bool = False
    longest_ngram: int = 0
    """Largest size of n-grams that may not repeat; 0 for no such rule."""
    top_k: tuple[int, ...] = ()
    """Distinct `top_k` values of the slots; `_ALL` for `top_p` only."""


_ALL, _NOTHING = 0, -1  # `top_k` of a slot: `top_p` over all tokens; no narrowing


class SlotOptions:
    """The options of slots that have any; reads the batch's own tensors.

    Options without a caller's function are tensors on the device, so that steps can be recorded.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "slot token"],
        lengths: Int[Tensor, " slot"],
        ended: Bool[Tensor, " slot"],
    ) -> None:
        self._tokens, self._lengths, self._ended = tokens, lengths, ended
        self._slots: dict[int, _SlotSearch] = {}
        self._penalty = torch.ones_like(lengths, dtype=torch.float)
        self._ngram = torch.zeros_like(lengths)
        self._top_k = torch.full_like(lengths, _NOTHING)
        self._top_p = torch.ones_like(lengths, dtype=torch.float)
        self._changed: set[int] = set()  # slots whose tensors may be outdated

    @property
    def exact(self) -> bool:
        """Whether the host takes part in the steps of any slot."""
        return any(is_exact(options.search) for options in self._slots.values())

    def layout(self, slots: Sequence[int]) -> Layout:
        """Return the parameters for `slots`."""
        if not self._slots:
            return Layout()
        searches = [self._slots[slot].search for slot in slots if slot in self._slots]
        return Layout(
            penalised=any(search.repetition_penalty != 1.0 for search in searches),
            longest_ngram=max((s.no_repeat_ngram_size for s in searches), default=0),
            top_k=tuple(sorted({s.top_k or _ALL for s in searches if _narrows(s)})),
        )

    def admit(
        self, slots: Sequence[int], index: Int[Tensor, " batch"], searches: Sequence[Search]
    ) -> None:
        """Set new searches for `slots`, with `index` on the device."""
        for slot, search in zip(slots, searches, strict=True):
            self._slots.pop(slot, None)
            if _changes_before_rules(search) or _narrows(search) or is_exact(search):
                self._slots[slot] = _SlotSearch(search)
        slots_with_options = {slot for slot in slots if slot in self._slots}
        if not slots_with_options and self._changed.isdisjoint(slots):
            return
        self._changed = self._changed.difference(slots) | slots_with_options
        penalty, ngram, top_k, top_p = upload(
            self._lengths.device,
            [float(search.repetition_penalty) for search in searches],
            [search.no_repeat_ngram_size for search in searches],
            [(search.top_k or _ALL) if _narrows(search) else _NOTHING for search in searches],
            [1.0 if search.top_p is None else float(search.top_p) for search in searches],
        )
        for held, values in (
            (self._penalty, penalty.float()), (self._ngram, ngram), (self._top_k, top_k),
            (self._top_p, top_p.float()),
        ):  # fmt: skip
            held.index_copy_(0, index, values)

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target` and free `source`."""
        self._slots.pop(target, None)
        if source in self._slots:
            self._slots[target] = self._slots.pop(source)
        if self._changed.isdisjoint((source, target)):
            return
        self._changed.add(target)
        for held in (self._penalty, self._ngram, self._top_k, self._top_p):
            held[target] = held[source]

    def before_rules(
        self,
        scores: Float[Tensor, "batch vocab"],
        slots: Sequence[int],
        index: Int[Tensor, " batch"],
        layout: Layout,
    ) -> Float[Tensor, "batch vocab"]:
        """Apply the options before the token rules, in the order of transformers."""
        if layout.penalised or layout.longest_ngram:
            texts, lengths = self._tokens[index], self._lengths[index]
            if layout.penalised:
                scores = penalise_repeats(scores, texts, lengths, self._penalty[index])
            if layout.longest_ngram:
                sizes = self._ngram[index]
                longest = layout.longest_ngram
                scores = forbid_repeated_ngrams(scores, texts, lengths, sizes, longest=longest)
        for row in self._rows(slots, lambda search: bool(search.early_processors)):
            processors = self._slots[slots[row]].search.early_processors
            scores[row] = run_processors(processors, self._text(slots[row]), scores[row])
        return scores

    def after_rules(self, scores: Float[Tensor, "batch vocab"], slots: Sequence[int]) -> None:
        """Apply, in place, the options after the token rules."""
        for row in self._rows(slots, lambda search: bool(search.early_processors)):
            if bool(scores[row].isneginf().all()):
                length = int(self._lengths[slots[row]])
                raise ValueError(
                    f"choosing what follows {length} tokens: found all {scores.shape[1]} "
                    "forbidden by processors or token rules, expected one that both allow; allow "
                    "a timestamp at the start"
                )
        for row in self._rows(slots, lambda search: bool(search.processors)):
            processors = self._slots[slots[row]].search.processors
            scores[row] = run_processors(processors, self._text(slots[row]), scores[row])

    def narrow(
        self,
        scores: Float[Tensor, "batch vocab"],
        index: Int[Tensor, " batch"],
        layout: Layout,
        temperatures: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch vocab"]:
        """Mask tokens excluded by `top_k` and `top_p`, in a copy if any are."""
        narrowed, top_ks = scores, self._top_k[index].unsqueeze(1)
        # Separately for each `top_k`: the number of sorted tokens must not depend on neighbors.
        for top_k in layout.top_k:
            kept = keep_likeliest(
                scores,
                temperatures=temperatures,
                top_k=None if top_k == _ALL else top_k,
                top_p=self._top_p[index],
            )
            narrowed = torch.where(top_ks == top_k, kept, narrowed)
        return narrowed

    def keep(self, scores: Float[Tensor, "batch vocab"], slots: Sequence[int]) -> None:
        """Keep the scores that the next tokens are chosen from, if requested."""
        for row in self._rows(slots, lambda search: search.keep_scores):
            options = self._slots[slots[row]]
            options.scores.append(scores[row] / (options.search.temperature or 1.0))

    def stopped(self, slots: Sequence[int]) -> list[int]:
        """Return the slots that a stopping criterion of their job ends."""
        stopped_slots = []
        for row in self._rows(slots, lambda search: bool(search.stopping)):
            slot, options = slots[row], self._slots[slots[row]]
            if should_stop(options.search.stopping, self._text(slot)):
                stopped_slots.append(slot)
        return stopped_slots

    def kept(self, slot: int) -> Tensor | None:
        """Move the kept scores of the slot's tokens to the caller, on the CPU."""
        # At 200 kB a token, a slot must not keep scores that are no longer needed.
        options = self._slots.pop(slot, None)
        return torch.stack(options.scores).cpu() if options and options.scores else None

    def _rows(self, slots: Sequence[int], wanted: Callable[[Search], bool]) -> list[int]:
        if not self._slots:
            return []
        return [
            row
            for row, slot in enumerate(slots)
            if slot in self._slots
            and wanted(self._slots[slot].search)
            # Steps after the end of a text are not kept or passed to a caller's function.
            and not (is_exact(self._slots[slot].search) and bool(self._ended[slot]))
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


def is_exact(search: Search) -> bool:
    """Whether every step requires the host: for a caller's functions or kept scores."""
    calls = search.early_processors or search.processors or search.stopping
    return bool(calls) or search.keep_scores


def penalise_repeats(
    scores: Float[Tensor, "slot vocab"],
    texts: Int[Tensor, "slot token"],
    lengths: Int[Tensor, " slot"],
    penalties: Float[Tensor, " slot"],
) -> Float[Tensor, "slot vocab"]:
    """Lower the scores of tokens that occurred, whatever their sign.

    Source: Keskar et al. 2019, section 4.1; `transformers` RepetitionPenaltyLogitsProcessor.
    """
    vocab = scores.shape[1]
    # A spare column takes positions after the end of texts.
    occurred = torch.zeros(len(scores), vocab + 1, dtype=torch.bool, device=scores.device)
    columns = torch.arange(texts.shape[1], device=scores.device)
    occurred.scatter_(1, texts.masked_fill(columns >= lengths.unsqueeze(1), vocab), True)
    penalty = penalties.unsqueeze(1)
    penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(occurred[:, :vocab], penalised, scores)


def forbid_repeated_ngrams(
    scores: Float[Tensor, "slot vocab"],
    texts: Int[Tensor, "slot token"],
    lengths: Int[Tensor, " slot"],
    sizes: Int[Tensor, " slot"],
    *,
    longest: int,
) -> Float[Tensor, "slot vocab"]:
    """Mask tokens that would complete an n-gram that the text already contains.

    Each slot has its own size n, 0 for no rule and `longest` at most.

    Source: `transformers` NoRepeatNGramLogitsProcessor.
    """
    vocab, device = scores.shape[1], scores.device
    at = torch.arange(texts.shape[1], device=device)
    size, length = sizes.unsqueeze(1), lengths.unsqueeze(1)
    # Whether the text's last n - 1 tokens also precede each position.
    repeats = (at < length) & (at >= size - 1) & (size > 0)
    for back in range(1, longest):
        last = texts.gather(1, (length - back).clamp(min=0))
        repeats &= (texts.roll(back, dims=1) == last) | (size <= back)
    forbidden = torch.zeros(len(scores), vocab + 1, dtype=torch.bool, device=device)
    forbidden.scatter_(1, texts.masked_fill(~repeats, vocab), True)
    return scores.masked_fill(forbidden[:, :vocab], FORBIDDEN)


def run_processors(
    processors: Sequence[LogitsProcessor],
    text: Int[Tensor, " token"],
    scores: Float[Tensor, " vocab"],
) -> Float[Tensor, " vocab"]:
    """Apply processors to the scores of one row, in order."""
    row = scores.unsqueeze(0)
    for processor in processors:
        new_scores: Any = processor(text.unsqueeze(0).clone(), row.clone())
        if not isinstance(new_scores, Tensor) or new_scores.shape != row.shape:
            raise ValueError(
                f"applying the logits processor {_name(processor)}: it gave {_found(new_scores)}, "
                f"expected scores of shape {tuple(row.shape)}; return scores of that shape"
            )
        row = new_scores.to(scores)
        if bool(row.isneginf().all()):
            raise ValueError(
                f"applying the logits processor {_name(processor)}: it leaves none of "
                f"{row.shape[1]} tokens after {len(text)}, expected at least one; let it allow "
                "the end token"
            )
    return row.squeeze(0)


def should_stop(criteria: Sequence[StoppingCriterion], text: Int[Tensor, " token"]) -> bool:
    """Whether a criterion ends the text; each one is called, as it may be stateful."""
    answers: list[Any] = [criterion(text.unsqueeze(0).clone(), None) for criterion in criteria]
    for criterion, answer in zip(criteria, answers, strict=True):
        one_tensor = isinstance(answer, Tensor) and answer.numel() == 1
        if not one_tensor and not isinstance(answer, bool):
            raise ValueError(
                f"calling the stopping criterion {_name(criterion)}: it gave {_found(answer)}, "
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
    """Return the most likely token, or sample from softmax(logits / temperature) if above 0.

    Sampling is the maximum of logits plus Gumbel noise, which needs no normalized distribution.

    Source: Maddison et al. 2014, "A* Sampling", section 2.
    """
    noise = gumbel_noise(seeds, positions, logits.shape[1])
    # At temperature 0 the noise is multiplied by 0; masked tokens stay at minus infinity.
    return (logits + temperatures.unsqueeze(1) * noise).argmax(dim=1)


def log_probability(
    allowed: Float[Tensor, "slot vocab"], tokens: Int[Tensor, " slot"]
) -> Float[Tensor, " slot"]:
    """Return the log-probability of each slot's token among the allowed ones."""
    # `log_softmax`, as `logsumexp` takes three times as long on CPUs.
    return allowed.log_softmax(dim=1).gather(1, tokens.unsqueeze(1)).squeeze(1)


def choose_next(
    logits: Float[Tensor, "slot vocab"],
    bias: Float[Tensor, "slot vocab"],
    grammar: Bool[Tensor, " slot"],
    last_is_timestamp: Bool[Tensor, " slot"],
    before_is_timestamp: Bool[Tensor, " slot"],
    last_timestamp: Int[Tensor, " slot"],
    temperatures: Float[Tensor, " slot"],
    seeds: Int[Tensor, " slot"],
    lengths: Int[Tensor, " slot"],
    begin: int,
    end: int,
    sampled: bool,
) -> tuple[Int[Tensor, " slot"], Float[Tensor, " slot"]]:
    """Apply `apply_rules` and `choose`; return tokens and their log-probabilities.

    May modify the logits.
    """
    rule_state = grammar, last_is_timestamp, before_is_timestamp, last_timestamp
    allowed = apply_rules(logits, bias, *rule_state, begin, end)
    if sampled:
        tokens = choose(allowed, temperatures=temperatures, seeds=seeds, positions=lengths - 1)
    else:
        tokens = allowed.max(dim=1).indices
    return tokens, log_probability(allowed, tokens)


# Tolerance for another summation order; a violated rule gives minus infinity.
_LOGPROB_TOLERANCE = 1e-4


def _is_same_choice(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], arguments: tuple[Any, ...]
) -> bool:
    # Slots with NaN scores may choose any token.
    counts = ~expected[1].isnan()
    return torch.equal(found[0][counts], expected[0][counts]) and torch.allclose(
        found[1], expected[1], rtol=0, atol=_LOGPROB_TOLERANCE, equal_nan=True
    )


CHOOSE_NEXT = Checked(kernels.choose_next, choose_next, close=_is_same_choice)
"""`choose_next`; on a GPU one kernel that reads the logits once."""


def keep_likeliest(
    logits: Float[Tensor, "slot vocab"],
    *,
    temperatures: Float[Tensor, " slot"],
    top_k: int | None,
    top_p: Float[Tensor, " slot"],
) -> Float[Tensor, "slot vocab"]:
    """Mask all but the most likely tokens; ties with the last one kept are kept too.

    Source: Fan et al. 2018, section 5.1; Holtzman et al. 2020, section 3.1. Equal to
    `transformers`' TopKLogitsWarper, then TopPLogitsWarper (tests/decoding/test_options.py).
    """
    scaled = logits / temperatures.unsqueeze(1)
    if top_k is None or top_k >= scaled.shape[1]:
        rising = scaled.sort(dim=1).values
    else:
        rising = scaled.topk(top_k, dim=1).values.flip(1)
    # Probability mass up to and including a token, lost if it is masked.
    lost = rising.softmax(dim=1).cumsum(dim=1)
    kept = (lost > 1 - top_p.unsqueeze(1)) | (top_p == 1).unsqueeze(1)
    kept[:, -1].fill_(True)
    lowest = rising.masked_fill(~kept, float("inf")).amin(dim=1, keepdim=True)
    return logits.masked_fill(scaled < lowest, FORBIDDEN)


def gumbel_noise(
    seeds: Int[Tensor, " slot"], positions: Int[Tensor, " slot"], vocab_size: int
) -> Float[Tensor, "slot vocab"]:
    """Return standard Gumbel noise, equal for equal (seed, position, token) on all devices."""
    stream = _mix(seeds + _mix(positions + 1)).unsqueeze(1)
    bits = _mix(stream + torch.arange(vocab_size, device=seeds.device))  # (slot, vocab)
    uniform = (_shift(bits, 64 - _NOISE_BITS).float() + 0.5) / (1 << _NOISE_BITS)
    return -torch.log(-torch.log(uniform))


def _mix(values: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    # The finalizer of SplitMix64 (Steele et al. 2014), which scrambles 64-bit integers.
    values = values * -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
    values = (values ^ _shift(values, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    values = (values ^ _shift(values, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return values ^ _shift(values, 31)


def _shift(values: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    # Logical shift; torch's shift of signed integers is arithmetic.
    return (values >> bits) & ((1 << (64 - bits)) - 1)
