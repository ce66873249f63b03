"""Token rules of each slot, on the device: suppression, timestamp grammar, repetition detection."""

from collections.abc import Sequence

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding.device import to_device, upload
from corpus_asr.decoding.jobs import TokenRules, WindowJob

FORBIDDEN = float("-inf")

LONGEST_PHRASE = 64
"""Maximum phrase length in tokens; a longer one could not occur five times in a window's text."""
MIN_REPEATS = 4
"""Minimum number of consecutive repetitions of a phrase."""
MIN_REPEATED_TOKENS = 48
"""Minimum length of a repetition in tokens: people do say "no, no, no, no", but not for 50."""


class SlotRules:
    """Token rules and grammar state of every slot.

    The grammar: timestamps come in pairs, except directly before the end; they never decrease, and
    a segment is never empty; the first token is a timestamp; and when the timestamps together are
    more likely than any single text token, a timestamp is sampled.

    Source: Radford et al. 2022, section 2.3; openai-whisper `ApplyTimestampRules`. Equal to it
    token for token (tests/decoding/test_rules.py).
    """

    def __init__(
        self, slots: int, vocab_size: int, device: torch.device, *, by_row: bool = False
    ) -> None:
        """Allocate rules for `slots`; `by_row` is as in `apply_rules`."""
        self._vocab_size = vocab_size
        self._device = device
        self._by_row = by_row
        self._timestamp_begin = vocab_size  # no grammar yet: an empty range of timestamps
        self._end = 0
        self._masks: dict[TokenRules, tuple[Tensor, Tensor, Tensor]] = {}
        self._bias = torch.zeros(slots, vocab_size, device=device)
        self._first_bias = torch.zeros(slots, vocab_size, device=device)
        self._grammar = torch.zeros(slots, dtype=torch.bool, device=device)
        self._last_is_timestamp = torch.zeros(slots, dtype=torch.bool, device=device)
        self._one_before_is_timestamp = torch.zeros(slots, dtype=torch.bool, device=device)
        self._last_timestamp = torch.zeros(slots, dtype=torch.long, device=device)

    @property
    def layout(self) -> tuple[int, int]:
        """Values besides tensors that `apply` and `update` depend on; only `admit` changes them."""
        return self._timestamp_begin, self._end

    def admit(
        self,
        slots: Int[Tensor, " batch"],
        rules: Sequence[TokenRules],
        prefixes: Sequence[Sequence[int]] = (),
    ) -> None:
        """Set new rules for `slots` and clear their state; their texts begin with `prefixes`."""
        for rule in rules:
            self._note_layout(rule)
        always, first, grammar = zip(*map(self._mask, rules), strict=True)
        if any(prefixes):
            rows = zip(rules, prefixes, always, first, strict=True)
            first = tuple(
                bias if prefix and not rule.resumes else begin for rule, prefix, bias, begin in rows
            )
        for held, values in (
            (self._bias, always), (self._first_bias, first), (self._grammar, grammar),
        ):  # fmt: skip
            held.index_copy_(0, slots, torch.stack(values))
        # Before the first token, the grammar treats both preceding tokens as timestamps.
        self._last_is_timestamp.index_fill_(0, slots, True)
        self._one_before_is_timestamp.index_fill_(0, slots, True)
        self._last_timestamp.index_fill_(0, slots, -1)
        for row, prefix in enumerate(prefixes):
            for token in prefix:
                (tokens,) = upload(self._device, [token])
                self.update(tokens, slots[row : row + 1])

    def apply_first(
        self,
        logits: Float[Tensor, "batch vocab"],
        slots: Int[Tensor, " batch"],
        prefixes: Sequence[Sequence[int]] = (),
    ) -> Float[Tensor, "batch vocab"]:
        """Mask, in place, tokens that may not follow the prompt or a prefix."""
        bias, grammar = self._first_bias[slots], self._grammar[slots]
        if not any(prefixes):
            logits += bias
            return _prefer_timestamps(logits, grammar, self._timestamp_begin)
        (goes_on,) = upload(self._device, [int(bool(prefix)) for prefix in prefixes])
        last, one_before, latest = (held[slots] for held in self._said())
        logits = apply_rules(
            logits, bias, grammar & goes_on.bool(), last, one_before, latest, *self.layout
        )
        return _prefer_timestamps(logits, grammar, self._timestamp_begin)

    def apply(self, logits: Float[Tensor, "slot vocab"]) -> Float[Tensor, "slot vocab"]:
        """Mask, in place, tokens that the first `len(logits)` slots may not choose next."""
        return apply_rules(logits, *self.of_first(len(logits)), *self.layout, by_row=self._by_row)

    def of_first(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the `apply_rules` arguments of the first `count` slots."""
        last, one_before = self._last_is_timestamp[:count], self._one_before_is_timestamp[:count]
        bias, grammar = self._bias[:count], self._grammar[:count]
        return bias, grammar, last, one_before, self._last_timestamp[:count]

    def update(
        self,
        tokens: Int[Tensor, " batch"],
        slots: Int[Tensor, " batch"],
        *,
        sources: Int[Tensor, " batch"] | None = None,
    ) -> None:
        """Record the tokens of `slots`, whose earlier tokens are those of `sources` if given."""
        previous_slots = slots if sources is None else sources
        step = tokens - self._timestamp_begin
        is_timestamp = step >= 0
        self._one_before_is_timestamp[slots] = self._last_is_timestamp[previous_slots]
        self._last_is_timestamp[slots] = is_timestamp
        self._last_timestamp[slots] = torch.where(
            is_timestamp, step, self._last_timestamp[previous_slots]
        )

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target`."""
        for tensor in (self._bias, self._grammar, *self._said()):
            tensor[target] = tensor[source]

    def snapshot(self) -> tuple[Tensor, ...]:
        """Copy the grammar state of every slot, for `restore`."""
        return tuple(tensor.clone() for tensor in self._said())

    def restore(self, snapshot: tuple[Tensor, ...]) -> None:
        """Reset the grammar state of every slot to a `snapshot`."""
        for tensor, values in zip(self._said(), snapshot, strict=True):
            tensor.copy_(values)

    def _said(self) -> tuple[Tensor, ...]:
        return self._last_is_timestamp, self._one_before_is_timestamp, self._last_timestamp

    def _note_layout(self, rules: TokenRules) -> None:
        if rules.timestamp_begin is not None:
            if self._timestamp_begin not in (self._vocab_size, rules.timestamp_begin):
                raise ValueError(
                    f"admitting rules with timestamps from {rules.timestamp_begin}: expected them "
                    f"from {self._timestamp_begin}, as in other slots; use one decoder per "
                    "vocabulary"
                )
            self._timestamp_begin = rules.timestamp_begin
        self._end = rules.end

    def _mask(
        self, rules: TokenRules
    ) -> tuple[Float[Tensor, " vocab"], Float[Tensor, " vocab"], Bool[Tensor, ""]]:
        # Bias of the logits at any position and at the first one, and whether a grammar applies.
        # Cached: masks are as wide as the vocabulary, and most jobs have the same rules.
        if rules not in self._masks:
            always = torch.zeros(self._vocab_size)
            if rules.only:
                always.fill_(FORBIDDEN)[list(rules.only)] = 0.0
            always[list(rules.suppress)] = FORBIDDEN
            if rules.timestamp_begin is not None and rules.no_timestamps is not None:
                always[rules.no_timestamps] = FORBIDDEN
            first = always.clone()
            if rules.resumes:
                first[rules.end] = FORBIDDEN
            else:
                first[list(rules.suppress_first)] = FORBIDDEN
            if rules.timestamp_begin is not None and not rules.resumes:
                first[: rules.timestamp_begin] = FORBIDDEN
                if rules.max_initial_timestamp is not None:
                    first[rules.timestamp_begin + rules.max_initial_timestamp + 1 :] = FORBIDDEN
            grammar = torch.tensor(rules.timestamp_begin is not None)
            self._masks[rules] = (
                to_device(always, self._device),
                to_device(first, self._device),
                to_device(grammar, self._device),
            )
        return self._masks[rules]


def apply_rules(
    logits: Float[Tensor, "slot vocab"],
    bias: Float[Tensor, "slot vocab"],
    grammar: Bool[Tensor, " slot"],
    last_is_timestamp: Bool[Tensor, " slot"],
    before_is_timestamp: Bool[Tensor, " slot"],
    last_timestamp: Int[Tensor, " slot"],
    begin: int,
    end: int,
    *,
    by_row: bool = False,
) -> Float[Tensor, "slot vocab"]:
    """Mask, in place, tokens that slots with these rules and grammar states may not choose next.

    Timestamps are the tokens from `begin`; `last_timestamp` is relative to it. With `by_row` the
    host reads which slots are affected: faster on a CPU, but the step cannot be recorded.
    """
    logits += bias
    pair_complete = (grammar & last_is_timestamp & before_is_timestamp).unsqueeze(1)
    pair_open = grammar & last_is_timestamp & ~before_is_timestamp
    steps = torch.arange(logits.shape[1] - begin, device=logits.device)
    lowest = last_timestamp + (~pair_open).long()
    too_early = grammar.unsqueeze(1) & (steps < lowest.unsqueeze(1))  # (slot, timestamp)
    logits[:, begin:].masked_fill_(pair_complete | too_early, FORBIDDEN)
    _forbid(logits[:, :end], pair_open, by_row)
    return _prefer_timestamps(logits, grammar, begin, by_row)


def _prefer_timestamps(
    logits: Float[Tensor, "slot vocab"],
    grammar: Bool[Tensor, " slot"],
    begin: int,
    by_row: bool = False,
) -> Float[Tensor, "slot vocab"]:
    if begin < logits.shape[1]:
        # The softmax's denominator is the same on both sides, so raw logits compare alike.
        together = logits[:, begin:].logsumexp(dim=1)
        likelier = together > logits[:, :begin].amax(dim=1)
        _forbid(logits[:, :begin], grammar & likelier, by_row)
    return logits


def _forbid(
    tokens: Float[Tensor, "slot token"], slots: Bool[Tensor, " slot"], by_row: bool
) -> None:
    if not by_row:
        tokens.masked_fill_(slots.unsqueeze(1), FORBIDDEN)
        return
    # A masked fill traverses the whole vocabulary even without masked values: twice 0.3 ms of a
    # step's 29 (8 slots of whisper-base, one thread).
    for slot in slots.nonzero().flatten().tolist():
        tokens[slot].fill_(FORBIDDEN)


_NEVER = 1 << 40  # tokens


class RepetitionDetector:
    """Counts, for every slot and every phrase length, how long the text has repeated itself.

    A slot is in a loop when its last tokens are one phrase of at most `LONGEST_PHRASE` tokens,
    followed by at least `MIN_REPEATS` repetitions, over at least `MIN_REPEATED_TOKENS` tokens. All
    timestamps count as the same token. Jobs that stop at a repeat need one repetition, and half
    of the tokens.
    """

    # Such a text compresses far better than 2.4, the ratio above which Whisper's own rules decode a
    # window again, so no text is lost that would have been kept.

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._period = torch.arange(1, LONGEST_PHRASE + 1, device=device)
        self._needed = (MIN_REPEATS * self._period).clamp(min=MIN_REPEATED_TOKENS)
        # For loops, and for repeats.
        needed_once = self._period.clamp(min=MIN_REPEATED_TOKENS // 2)
        self._needed_of_kind = torch.stack([self._needed, needed_once])
        self._repeated = torch.zeros(slots, LONGEST_PHRASE, dtype=torch.long, device=device)
        # First token that may repeat; in slots without detection no token does.
        self._start = torch.full((slots,), _NEVER, dtype=torch.long, device=device)
        self._alike_from = torch.full((slots,), vocab_size, dtype=torch.long, device=device)
        self._kind = torch.zeros(slots, dtype=torch.long, device=device)
        self._watches = [False] * slots

    def admit(self, slots: Sequence[int], jobs: Sequence[WindowJob]) -> None:
        """Start detection in slots whose jobs request it, after their prompts."""
        for slot, job in zip(slots, jobs, strict=True):
            self._watches[slot] = job.search.stop_loops
        begins = [job.rules.timestamp_begin for job in jobs]
        numbers = [
            list(slots),
            [int(job.search.stops_at_repeat) for job in jobs],
            [self._vocab_size if begin is None else begin for begin in begins],
            [len(job.prompt) - job.num_prefix if job.search.stop_loops else _NEVER for job in jobs],
        ]
        index, kind, alike_from, start = to_device(torch.tensor(numbers), self._device)
        self._kind.index_copy_(0, index, kind)
        self._alike_from.index_copy_(0, index, alike_from)
        self._start.index_copy_(0, index, start)
        self._repeated.index_fill_(0, index, 0)

    def watches(self, slots: Sequence[int]) -> bool:
        """Whether detection is active in any of `slots`; if not, `update` can be skipped."""
        return any(self._watches[slot] for slot in slots)

    def update(
        self,
        tokens: Int[Tensor, " batch"],
        slots: Int[Tensor, " batch"],
        texts: Int[Tensor, "slot token"],
        lengths: Int[Tensor, " batch"],
        going: Bool[Tensor, " batch"],
    ) -> Bool[Tensor, " batch"]:
        """Record the tokens of `slots`; return which of them are in a loop."""
        positions = lengths.unsqueeze(1) - self._period  # (batch, period)
        earlier = texts[slots.unsqueeze(1), positions.clamp(min=0)]
        alike_from = self._alike_from[slots].unsqueeze(1)
        same = earlier.minimum(alike_from) == tokens.unsqueeze(1).minimum(alike_from)
        same &= positions >= self._start[slots].unsqueeze(1)
        before_now = self._repeated[slots]
        repeated = torch.where(going.unsqueeze(1), (before_now + 1) * same, before_now)
        self._repeated[slots] = repeated
        return (repeated >= self._needed_of_kind[self._kind[slots]]).any(dim=1) & going

    def found_in(
        self,
        texts: Int[Tensor, "batch choice token"],
        lengths: Int[Tensor, " batch"],
        slots: slice | Int[Tensor, " batch"],
    ) -> Bool[Tensor, "batch choice"]:
        """Return which of several texts of each slot, all of one length, end in a loop.

        Stateless, since beams replace each other and could keep no count.
        """
        longest = MIN_REPEATS * LONGEST_PHRASE
        back = torch.arange(longest + LONGEST_PHRASE, 0, -1, device=texts.device)
        at = lengths.unsqueeze(1) - back  # (batch, back)
        tail = texts.gather(2, at.clamp(min=0).unsqueeze(1).expand(-1, texts.shape[1], -1))
        tail = tail.minimum(self._alike_from[slots].view(-1, 1, 1))
        early = at < self._start[slots].unsqueeze(1)
        # The length of the longest loop, compared with each shift by a period, longest first.
        periods = tail.masked_fill(early.unsqueeze(1), -1).unfold(2, longest, 1)[:, :, :-1]
        same = periods == tail[:, :, LONGEST_PHRASE:].unsqueeze(2)  # (batch, choice, period, back)
        same |= back[LONGEST_PHRASE:] > self._needed.flip(0).unsqueeze(1)
        return same.all(dim=3).any(dim=2)

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target`."""
        for tensor in (self._repeated, self._start, self._alike_from, self._kind):
            tensor[target] = tensor[source]
        self._watches[target] = self._watches[source]
