"""Noticing that a window has entered a repetition loop."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from corpus_asr.decoding.device import upload
from corpus_asr.decoding.protocols import WindowJob

LONGEST_PHRASE = 64
"""Tokens; a fifth of a window's text could hold no longer one five times."""
MIN_REPEATS = 4
"""How often a phrase is said again before it counts."""
MIN_REPEATED_TOKENS = 48
"""A short phrase must go on for so long: people do say "no, no, no, no", but not for 50 tokens."""


class RepetitionDetector:
    """Counts, for every slot and every phrase length, how long the text has repeated itself.

    A slot is caught in a loop when its last tokens are one phrase of at most `LONGEST_PHRASE`
    tokens, said once and then at least `MIN_REPEATS` times again, over at least
    `MIN_REPEATED_TOKENS` tokens. All timestamps count as the same token: they grow from one repeat
    to the next. Such a text compresses far better than the 2.4 times above which Whisper's own
    rules decode a window again, so nothing is lost that would have been kept.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._period = torch.arange(1, LONGEST_PHRASE + 1, device=device)
        self._needed = (MIN_REPEATS * self._period).clamp(min=MIN_REPEATED_TOKENS)
        self._repeated = torch.zeros(slots, LONGEST_PHRASE, dtype=torch.long, device=device)
        self._start = torch.zeros(slots, dtype=torch.long, device=device)
        self._alike_from = torch.full((slots,), vocab_size, dtype=torch.long, device=device)
        self._watched = torch.zeros(slots, dtype=torch.bool, device=device)
        self._watches = [False] * slots

    def admit(self, slots: Sequence[int], jobs: Sequence[WindowJob]) -> None:
        """Watch the slots whose jobs ask for it, from the end of their prompts on."""
        for slot, job in zip(slots, jobs, strict=True):
            self._watches[slot] = job.search.stop_loops
        begins = [job.rules.timestamp_begin for job in jobs]
        index, watched, alike_from, start = upload(
            self._device,
            list(slots),
            [int(job.search.stop_loops) for job in jobs],
            [self._vocab_size if begin is None else begin for begin in begins],
            [len(job.prompt) for job in jobs],
        )
        self._watched.index_copy_(0, index, watched.bool())
        self._alike_from.index_copy_(0, index, alike_from)
        self._start.index_copy_(0, index, start)
        self._repeated.index_fill_(0, index, 0)

    def watches(self, slots: Sequence[int]) -> bool:
        """Tell whether any of `slots` is watched; if none is, `update` can be left out."""
        return any(self._watches[slot] for slot in slots)

    def update(
        self,
        tokens: Int[Tensor, " batch"],
        slots: Int[Tensor, " batch"],
        texts: Int[Tensor, "slot token"],
        lengths: Int[Tensor, " batch"],
        going: Bool[Tensor, " batch"],
    ) -> Bool[Tensor, " batch"]:
        """Note what `slots` say, and tell which of them are caught in a loop."""
        before = lengths.unsqueeze(1) - self._period  # (batch, period)
        earlier = texts[slots.unsqueeze(1), before.clamp(min=0)]
        alike_from = self._alike_from[slots].unsqueeze(1)
        same = earlier.minimum(alike_from) == tokens.unsqueeze(1).minimum(alike_from)
        same &= before >= self._start[slots].unsqueeze(1)
        before_now = self._repeated[slots]
        repeated = torch.where(going.unsqueeze(1), (before_now + 1) * same, before_now)
        self._repeated[slots] = repeated
        return (repeated >= self._needed).any(dim=1) & self._watched[slots] & going

    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is."""
        for tensor in (self._repeated, self._start, self._alike_from, self._watched):
            tensor[target] = tensor[source]
        self._watches[target] = self._watches[source]


def repeats_itself(
    texts: Int[Tensor, "batch token"],
    lengths: Int[Tensor, " batch"],
    *,
    starts: Int[Tensor, " batch"],
    alike_from: Int[Tensor, " batch"],
) -> Bool[Tensor, " batch"]:
    """Tell which texts end in a loop, as `loops.RepetitionDetector` defines it.

    Looks at the texts alone, where beams that take each other's place could keep no count.
    """
    device = texts.device
    period = torch.arange(1, LONGEST_PHRASE + 1, device=device).unsqueeze(1)
    needed = (MIN_REPEATS * period).clamp(min=MIN_REPEATED_TOKENS)
    back = torch.arange(1, int(needed.max()) + 1, device=device)  # from the end of the text
    alike = texts.minimum(alike_from.unsqueeze(1))
    now = lengths.view(-1, 1, 1) - back  # (batch, 1, back)
    before = now - period  # (batch, period, back)
    rows = torch.arange(len(texts), device=device).view(-1, 1, 1)
    same = alike[rows, now.clamp(min=0)] == alike[rows, before.clamp(min=0)]
    same &= before >= starts.view(-1, 1, 1)
    return (same | (back > needed)).all(dim=2).any(dim=1)
