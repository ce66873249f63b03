"""Greedy search of transducers (RNN-T and TDT), for all rows of a batch in one loop.

A row stands at a position of the encoder. The joint network says its next token there; a blank
moves it on, a token runs the prediction network first. Rows meet nowhere but in matrices, so that
none depends on the others. What a round does has one shape and place in memory, and reads nothing
back: it can be captured as a CUDA graph. The host waits once in some rounds, to know the end.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.emissions import Emissions, gathered, positions_of

State = tuple[Tensor, ...]
"""What the prediction network keeps of a row's tokens; rows are the second axis of each."""

# Positions that a row may look at before all rows' tokens are run: rows that found one wait.
_LOOKS = 3
# Rounds between two looks of the host at a GPU.
_ROUNDS = 16


class Transducer(Protocol):
    """The parts of a network that greedy search calls."""

    blank: int
    vocab_size: int
    """Tokens, blank among them: scores after these are of durations."""
    durations: tuple[int, ...]
    """What a token or blank may last; empty for RNN-T, where only blanks move on, by one."""
    max_symbols: int
    """Most tokens from one position."""

    def predict(
        self, tokens: Int[Tensor, " batch"], state: State | None
    ) -> tuple[Float[Tensor, "batch width"], State]:
        """Run one token of each row after what `state` keeps."""

    def join(
        self, encoded: Float[Tensor, "batch width"], predicted: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch score"]:
        """Score tokens, and durations after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """All that a search decided, blanks included; places from a row's count on hold zeros."""

    tokens: Int[Tensor, "batch step"]
    durations: Int[Tensor, "batch step"]
    """Positions that the row moved on by."""
    logprobs: Float[Tensor, "batch step"]
    counts: Int[Tensor, " batch"]

    def emissions(self, *, blank: int) -> Emissions:
        """Leave out the blanks; a token begins where the durations before it end."""
        kept = (self.tokens != blank) & (positions_of(self.tokens) < self.counts[:, None])
        return gathered(
            kept,
            tokens=self.tokens,
            frames=self.durations.cumsum(dim=1) - self.durations,
            durations=self.durations,
            logprobs=self.logprobs,
        )


@torch.inference_mode()
def greedy_steps(
    network: Transducer,
    encoded: Float[Tensor, "batch pos width"],
    lengths: Int[Tensor, " batch"],
) -> Steps:
    """Search the first `lengths` positions of each row, until each has moved past its last.

    A token that moves nowhere may be followed by others, `max_symbols` in all at one position;
    after the last of them the row moves on by one.

    Source: Graves 2012, section 2; Xu et al. 2023, section 3.3, for durations; Bataev et al. 2024
    for rounds by label. Equal to transformers' `generate`, which does not bound TDT's tokens at
    one position.
    """
    search = _Search(network, encoded, lengths)
    while bool((search.frame < search.lengths).any()):
        for _ in range(1 if search.on_host else _ROUNDS):
            search.round()
    return search.steps()


class _Search:
    def __init__(
        self,
        network: Transducer,
        encoded: Float[Tensor, "batch pos width"],
        lengths: Int[Tensor, " batch"],
    ) -> None:
        self._network, self._encoded, self.lengths = network, encoded, lengths
        rows, positions, _ = encoded.shape
        device = encoded.device
        self.on_host = device.type == "cpu"
        self._row = torch.arange(rows, device=device)
        self._values = torch.tensor(network.durations, device=device, dtype=torch.long)
        self.frame, self._symbols, self._count, self._token = (
            torch.zeros(rows, dtype=torch.long, device=device) for _ in range(4)
        )
        # Whether a row found a token, and waits for the prediction network.
        self._found = torch.zeros(rows, dtype=torch.bool, device=device)
        # Room for as many steps as there may be, and a place for rows that take none.
        room = rows, positions * network.max_symbols + 1
        self._tokens, self._durations = (
            torch.zeros(room, dtype=torch.int32, device=device) for _ in range(2)
        )
        self._logprobs = torch.zeros(room, device=device)
        start = torch.full_like(self._token, network.blank)
        self._predicted, self.state = network.predict(start, None)

    def round(self) -> None:
        """Look at some positions of each row, then run the tokens that were found."""
        for _ in range(_LOOKS):
            # A host that waits for nothing stops early.
            if self.on_host and not bool(self._going().any()):
                break
            self._look()
        if self.on_host and not bool(self._found.any()):
            return
        predicted, state = self._network.predict(self._token, self.state)
        found = self._found[:, None]
        # In place: a captured round reads and writes the same memory.
        self._predicted.copy_(torch.where(found, predicted, self._predicted))
        for kept, new in zip(self.state, state, strict=True):
            kept.copy_(torch.where(found, new, kept))
        self._found.zero_()

    def _going(self) -> Tensor:
        return (self.frame < self.lengths) & ~self._found

    def _look(self) -> None:
        network = self._network
        going = self._going()
        seen = self._encoded[self._row, self.frame.clamp(max=self._encoded.shape[1] - 1)]
        scores = network.join(seen, self._predicted).float()
        of_tokens = scores[:, : network.vocab_size]
        best, token = of_tokens.max(dim=1)
        is_blank = token == network.blank
        if network.durations:
            duration = self._values[scores[:, network.vocab_size :].argmax(dim=1)]
            # Two blanks at one position would be followed by blanks for ever.
            duration = torch.where(is_blank, duration.clamp(min=1), duration)
        else:
            duration = is_blank.long()
        symbols = self._symbols + 1
        duration = torch.where((duration == 0) & (symbols >= network.max_symbols), 1, duration)
        # Rows that wait or have ended write where nobody reads.
        place = torch.where(going, self._count, self._tokens.shape[1] - 1)[:, None]
        self._tokens.scatter_(1, place, token[:, None].int())
        self._durations.scatter_(1, place, duration[:, None].int())
        self._logprobs.scatter_(1, place, (best - of_tokens.logsumexp(dim=1))[:, None])
        self._count += going
        self.frame += torch.where(going, duration, 0)
        moved = torch.where(duration > 0, 0, symbols)
        self._symbols.copy_(torch.where(going, moved, self._symbols))
        self._token.copy_(torch.where(going, token, self._token))
        self._found |= going & ~is_blank

    def steps(self) -> Steps:
        longest = int(self._count.max())
        inside = positions_of(self._tokens[:, :longest]) < self._count[:, None]
        return Steps(
            tokens=self._tokens[:, :longest].long() * inside,
            durations=self._durations[:, :longest].long() * inside,
            logprobs=self._logprobs[:, :longest] * inside,
            counts=self._count,
        )
