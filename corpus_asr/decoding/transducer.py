"""Greedy search of transducers (RNN-T and TDT), for all rows of a batch in one loop.

A row stands at a position of the encoder. A round scores some positions from there on after the
tokens so far, follows the blanks among them to the first token, and runs the prediction network
once for every row that found one. Rows meet nowhere but in matrices, so that none depends on the
others. On a GPU rounds are replayed as CUDA graphs, and read nothing back: the host waits a few
times in a batch, while more rounds are queued, to know the end.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding.device import CudaRecorder, Download, StepGraphs, upload
from corpus_asr.decoding.emissions import Emissions, gathered, positions_of

State = tuple[Tensor, ...]
"""What the prediction network keeps of a row's tokens; rows are the second axis of each."""

# Positions that a round looks at from where a row stands: a power of two. A GPU, and a CPU in half
# precision, take hardly longer for eight times as many rows of a product; in float32 for twice.
_AHEAD, _AHEAD_IN_FLOAT32_ON_CPU = 8, 2
# Rounds in a recording.
_ROUNDS = 8


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
        self, encoded: Float[Tensor, "*_ width"], predicted: Float[Tensor, "*_ width"]
    ) -> Float[Tensor, "*_ score"]:
        """Score tokens, and durations after them; shapes are broadcast."""


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


class GreedySearch:
    """Searches batches of one network; with a `recorder`, by recordings that it keeps.

    These look for weights where they were: the network must stay on its device.
    """

    def __init__(self, network: Transducer, *, recorder: CudaRecorder | None = None) -> None:
        self._network, self._recorder = network, recorder
        self._kept: _Kept | None = None

    @torch.inference_mode()
    def __call__(
        self, encoded: Float[Tensor, "batch pos width"], lengths: Int[Tensor, " batch"]
    ) -> Steps:
        """Search the first `lengths` positions of each row, until each has moved past its last.

        A token that moves nowhere may be followed by others, `max_symbols` in all at one position;
        after the last of them the row moves on by one.

        Source: Graves 2012, section 2; Xu et al. 2023, section 3.3, for durations; Bataev et al.
        2024 for rounds by label. Equal to transformers' `generate`, which does not bound TDT's
        tokens at one position.
        """
        rows, positions = len(encoded), encoded.shape[1] * len(encoded)
        if self._recorder is None:
            room = _Room(encoded, positions, self._network.max_symbols)
            return _Rows(self._network, room, rows).search(encoded, lengths)
        # Few sizes, as rounds are recorded for each.
        rows = 1 << (rows - 1).bit_length()
        if self._kept is None or self._kept.room.positions < positions:
            self._kept = None  # before what takes its place
            size = 1 << (positions - 1).bit_length()
            room = _Room(encoded, size, self._network.max_symbols)
            self._kept = _Kept(room=room, graphs=StepGraphs(rows, self._recorder))
        kept = self._kept
        if rows not in kept.by_rows:
            kept.by_rows[rows] = _Rows(self._network, kept.room, rows)
        return kept.by_rows[rows].search(encoded, lengths, kept.graphs)


class _Room:
    """Memory for the positions of a batch, and for all that may be decided there."""

    def __init__(
        self, like: Float[Tensor, "batch pos width"], positions: int, max_symbols: int
    ) -> None:
        self.positions, self.max_symbols = positions, max_symbols
        self.encoded = like.new_empty(positions, like.shape[2])
        # The last place is for what no row does.
        steps = positions * max_symbols + 1
        self.tokens, self.durations = (
            torch.zeros(steps, dtype=torch.long, device=like.device) for _ in range(2)
        )
        self.logprobs = torch.zeros(steps, device=like.device)


class _Rows:
    """So many rows under way: what a round reads and writes stays where it is in memory."""

    def __init__(self, network: Transducer, room: _Room, rows: int) -> None:
        self._network, self._room = network, room
        device = room.encoded.device
        self._on_host = device.type == "cpu"
        exact = self._on_host and room.encoded.dtype == torch.float32
        ahead = _AHEAD_IN_FLOAT32_ON_CPU if exact else _AHEAD
        self._places = torch.arange(ahead, device=device)
        self._stays = torch.eye(ahead, dtype=torch.bool, device=device)
        (self._values,) = upload(device, network.durations)
        # Positions that a round moves on by at most.
        self._most = ahead - 1 + max((1, *network.durations))
        self.lengths, self.frame, self._first, self._symbols, self._count = (
            torch.zeros(rows, dtype=torch.long, device=device) for _ in range(5)
        )
        self._start = torch.full_like(self.frame, network.blank)
        self._predicted, self._state = network.predict(self._start, None)

    def search(
        self,
        encoded: Float[Tensor, "batch pos width"],
        lengths: Int[Tensor, " batch"],
        graphs: StepGraphs | None = None,
    ) -> Steps:
        """Search a batch of so many rows or fewer."""
        rows, positions, _ = encoded.shape
        self._begin(encoded, lengths)
        positions_left = positions
        longest = 0
        while positions_left > 0:
            if self._on_host:
                self._round()
                positions_left, longest = self._progress().tolist()
                continue
            # As often as there is no need to ask.
            for turn in range(max(1, positions_left // (_ROUNDS * self._most)), 0, -1):
                if turn == 1:
                    progress = Download(self._progress())
                if graphs is None:
                    self._rounds()
                else:
                    graphs.run(len(self.frame), self._rounds)
            positions_left, longest = progress.wait()[0].tolist()
        return self._steps(rows, positions * self._room.max_symbols, longest)

    def _begin(
        self, encoded: Float[Tensor, "batch pos width"], lengths: Int[Tensor, " batch"]
    ) -> None:
        rows, positions, width = encoded.shape
        self._room.encoded[: rows * positions].copy_(encoded.reshape(-1, width))
        for zeroed in (self.lengths, self.frame, self._symbols, self._count):
            zeroed.zero_()
        self.lengths[:rows].copy_(lengths)
        self._first[:rows].copy_(torch.arange(rows, device=lengths.device) * positions)
        predicted, state = self._network.predict(self._start, None)
        for kept, new in zip((self._predicted, *self._state), (predicted, *state), strict=True):
            kept.copy_(new)

    def _progress(self) -> Int[Tensor, "2"]:
        return torch.stack([(self.lengths - self.frame).max(), self._count.max()])

    def _rounds(self) -> None:
        for _ in range(_ROUNDS):
            self._round()

    def _round(self) -> None:
        """Follow each row's blanks to the next token, and run those that were found."""
        network, room = self._network, self._room
        frames = self.frame[:, None] + self._places  # (row, ahead)
        inside = frames < self.lengths[:, None]
        where = (self._first[:, None] + frames).clamp(max=room.positions - 1)
        scores = network.join(room.encoded[where], self._predicted[:, None]).float()
        tokens, logprobs = best_of(scores[..., : network.vocab_size])
        blanks = tokens == network.blank
        # Where the row stands, tokens may have been said before.
        symbols = torch.where(self._places == 0, self._symbols[:, None], 0) + 1
        if network.durations:
            durations = self._values[scores[..., network.vocab_size :].argmax(dim=-1)]
            # Two blanks at one position would be followed by blanks for ever.
            durations = torch.where(blanks, durations.clamp(min=1), durations)
        else:
            durations = blanks.long()
        stays = durations == 0
        durations = torch.where(stays & (symbols >= network.max_symbols), 1, durations)
        seen = inside & self._reached(blanks, durations)
        is_token = seen & ~blanks
        numbers = seen.cumsum(dim=1)
        self._note(seen, numbers, tokens, durations, logprobs)
        self._count += numbers[:, -1]
        self.frame += (durations * seen).sum(dim=1)
        self._symbols.copy_((symbols * (seen & (durations == 0))).sum(dim=1))
        self._predict((tokens * is_token).sum(dim=1), is_token.any(dim=1))

    def _reached(
        self, blanks: Bool[Tensor, "row ahead"], durations: Int[Tensor, "row ahead"]
    ) -> Bool[Tensor, "row ahead"]:
        """Tell which positions a row gets to from its own by blanks alone."""
        leads = blanks[:, :, None] & ((self._places + durations)[:, :, None] == self._places)
        ways = (leads | self._stays).float()  # (row, from, to)
        # Each product doubles how many blanks may follow one another.
        for _ in range(len(self._places).bit_length() - 1):
            ways = ways @ ways
        return ways[:, 0] > 0

    def _note(
        self,
        seen: Bool[Tensor, "row ahead"],
        numbers: Int[Tensor, "row ahead"],
        *found: Tensor,
    ) -> None:
        room = self._room
        begins = self._first * room.max_symbols + self._count - 1
        places = torch.where(seen, begins[:, None] + numbers, len(room.tokens) - 1).flatten()
        for kept, values in zip((room.tokens, room.durations, room.logprobs), found, strict=True):
            kept.scatter_(0, places, values.flatten())

    def _predict(self, tokens: Int[Tensor, " row"], found: Bool[Tensor, " row"]) -> None:
        # A host that waits for nothing knows when there is nothing to do.
        if self._on_host and not bool(found.any()):
            return
        predicted, state = self._network.predict(tokens, self._state)
        for kept, new in zip((self._predicted, *self._state), (predicted, *state), strict=True):
            kept.copy_(torch.where(found[:, None], new, kept))

    def _steps(self, rows: int, most: int, longest: int) -> Steps:
        room = self._room
        tokens, durations, logprobs = (
            kept[: rows * most].view(rows, most)[:, :longest]
            for kept in (room.tokens, room.durations, room.logprobs)
        )
        counts = self._count[:rows].clone()
        inside = positions_of(tokens) < counts[:, None]
        return Steps(
            tokens=tokens * inside,
            durations=durations * inside,
            logprobs=logprobs * inside,
            counts=counts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    room: _Room
    graphs: StepGraphs
    by_rows: dict[int, _Rows] = field(default_factory=dict)


def best_of(
    scores: Float[Tensor, "row ahead vocab"],
) -> tuple[Int[Tensor, "row ahead"], Float[Tensor, "row ahead"]]:
    """Return the likeliest tokens and their log-probabilities."""
    best, tokens = scores.max(dim=-1)
    return tokens, best - scores.logsumexp(dim=-1)
