"""Greedy search of transducers (RNN-T and TDT), for all rows of a batch in one loop.

Each row has a current encoder position. A round scores several positions from there, given the
tokens so far, follows blanks to the first token, and runs the prediction network once for every row
with a token. Rows are independent except in matrix products, whose rows are independent too. On a
GPU rounds are replayed as CUDA graphs without device reads: the host checks for the end only a few
times per batch, while more rounds are queued.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding.device import CudaRecorder, Download, StepGraphs, upload
from corpus_asr.decoding.emissions import Emissions, gathered, positions_of

State = tuple[Tensor, ...]
"""State of the prediction network after a row's tokens; rows are the second axis of each tensor."""

# Positions scored per round, a power of two. On a GPU, and on a CPU in half precision, a product of
# eight times as many rows takes hardly longer; in float32 one of twice as many.
_AHEAD, _AHEAD_IN_FLOAT32_ON_CPU = 8, 2
# Rounds per recording.
_ROUNDS = 8


class Transducer(Protocol):
    """Components of a network that greedy search calls."""

    blank: int
    vocab_size: int
    """Number of tokens including blank; the scores after these are for durations."""
    durations: tuple[int, ...]
    """Possible durations; empty for RNN-T, where only blanks advance, by one position."""
    max_symbols: int
    """Maximum number of tokens at one position."""

    def predict(
        self, tokens: Int[Tensor, " batch"], state: State | None
    ) -> tuple[Float[Tensor, "batch width"], State]:
        """Run one token of each row, continuing from `state`."""

    def join(
        self, encoded: Float[Tensor, "*_ width"], predicted: Float[Tensor, "*_ width"]
    ) -> Float[Tensor, "*_ score"]:
        """Return scores of tokens, then of durations; input shapes are broadcast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """All decisions of a search including blanks, padded with zeros."""

    tokens: Int[Tensor, "batch step"]
    durations: Int[Tensor, "batch step"]
    """Positions by which the row advanced."""
    logprobs: Float[Tensor, "batch step"]
    counts: Int[Tensor, " batch"]

    def emissions(self, *, blank: int) -> Emissions:
        """Remove the blanks; a token starts at the sum of the durations before it."""
        kept = (self.tokens != blank) & (positions_of(self.tokens) < self.counts[:, None])
        return gathered(
            kept,
            tokens=self.tokens,
            frames=self.durations.cumsum(dim=1) - self.durations,
            durations=self.durations,
            logprobs=self.logprobs,
        )


class GreedySearch:
    """Searches batches of one network; with a `recorder`, by recorded CUDA graphs.

    Recordings contain the addresses of weights: the network must stay on its device.
    """

    def __init__(self, network: Transducer, *, recorder: CudaRecorder | None = None) -> None:
        self._network, self._recorder = network, recorder
        self._kept: _CachedSearch | None = None

    @torch.inference_mode()
    def __call__(
        self, encoded: Float[Tensor, "batch pos width"], lengths: Int[Tensor, " batch"]
    ) -> Steps:
        """Search the first `lengths` positions of each row, until each has passed its last.

        A token with duration 0 may be followed by others, up to `max_symbols` at one position;
        after the last of them the row advances by one.

        Source: Graves 2012, section 2; Xu et al. 2023, section 3.3, for durations; Bataev et al.
        2024 for rounds by label. Equal to transformers' `generate`, which does not limit TDT's
        tokens at one position.
        """
        rows, positions = len(encoded), encoded.shape[1] * len(encoded)
        if self._recorder is None:
            room = _SearchBuffers(encoded, positions, self._network.max_symbols)
            return _SearchRows(self._network, room, rows).search(encoded, lengths)
        # Rounded to few sizes, as rounds are recorded for each.
        rows = 1 << (rows - 1).bit_length()
        if self._kept is None or self._kept.room.positions < positions:
            self._kept = None  # released before its replacement is allocated
            size = 1 << (positions - 1).bit_length()
            room = _SearchBuffers(encoded, size, self._network.max_symbols)
            self._kept = _CachedSearch(room=room, graphs=StepGraphs(rows, self._recorder))
        kept = self._kept
        if rows not in kept.by_rows:
            kept.by_rows[rows] = _SearchRows(self._network, kept.room, rows)
        return kept.by_rows[rows].search(encoded, lengths, kept.graphs)


class _SearchBuffers:
    """Buffers for the positions of a batch and for all decisions of its search."""

    def __init__(
        self, like: Float[Tensor, "batch pos width"], positions: int, max_symbols: int
    ) -> None:
        self.positions, self.max_symbols = positions, max_symbols
        self.encoded = like.new_empty(positions, like.shape[2])
        # The last column takes the steps of inactive rows.
        steps = positions * max_symbols + 1
        self.tokens, self.durations = (
            torch.zeros(steps, dtype=torch.long, device=like.device) for _ in range(2)
        )
        self.logprobs = torch.zeros(steps, device=like.device)


class _SearchRows:
    """Search state of a number of rows, at fixed memory addresses for recorded rounds."""

    def __init__(self, network: Transducer, room: _SearchBuffers, rows: int) -> None:
        self._network, self._room = network, room
        device = room.encoded.device
        self._on_host = device.type == "cpu"
        exact = self._on_host and room.encoded.dtype == torch.float32
        ahead = _AHEAD_IN_FLOAT32_ON_CPU if exact else _AHEAD
        self._places = torch.arange(ahead, device=device)
        self._stays = torch.eye(ahead, dtype=torch.bool, device=device)
        (self._values,) = upload(device, network.durations)
        # Maximum advance of a round in positions.
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
        """Search a batch of at most this number of rows."""
        rows, positions, _ = encoded.shape
        self._begin(encoded, lengths)
        positions_left = positions
        longest = 0
        while positions_left > 0:
            if self._on_host:
                self._round()
                positions_left, longest = self._progress().tolist()
                continue
            # The minimum number of rounds, which needs no check for the end.
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
        """Follow each row's blanks to the next token, and run the tokens."""
        network, room = self._network, self._room
        frames = self.frame[:, None] + self._places  # (row, ahead)
        inside = frames < self.lengths[:, None]
        where = (self._first[:, None] + frames).clamp(max=room.positions - 1)
        scores = network.join(room.encoded[where], self._predicted[:, None]).float()
        tokens, logprobs = best_of(scores[..., : network.vocab_size])
        blanks = tokens == network.blank
        # There may already be tokens at the row's position.
        symbols = torch.where(self._places == 0, self._symbols[:, None], 0) + 1
        if network.durations:
            durations = self._values[scores[..., network.vocab_size :].argmax(dim=-1)]
            # A second blank at one position would be followed by blanks forever.
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
        """Return which positions a row can reach from its own by blanks alone."""
        leads = blanks[:, :, None] & ((self._places + durations)[:, :, None] == self._places)
        ways = (leads | self._stays).float()  # (row, from, to)
        # Each product doubles the number of consecutive blanks.
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
        # Without asynchronous execution the host can check for the end at no cost.
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
class _CachedSearch:
    room: _SearchBuffers
    graphs: StepGraphs
    by_rows: dict[int, _SearchRows] = field(default_factory=dict)


def best_of(
    scores: Float[Tensor, "row ahead vocab"],
) -> tuple[Int[Tensor, "row ahead"], Float[Tensor, "row ahead"]]:
    """Return the most likely tokens and their log-probabilities."""
    best, tokens = scores.max(dim=-1)
    return tokens, best - scores.logsumexp(dim=-1)
