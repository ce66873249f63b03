"""Keys and values of many sequences side by side, allocated once.

In: keys and values as the layers compute them, and the slots they belong to. Out: views of what
each slot holds. Knows nothing of what the sequences mean; nothing grows, and no slot's content
depends on another's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corpus_asr.decoding.device import to_device
from corpus_asr.families.layers.slot_texts import SlotTexts

# oneDNN compiles a bfloat16 product for every shape it meets and keeps a thousand of them: with a
# length of its own for every step these came to a gigabyte.
_LENGTH_STEP = 32


@dataclass(frozen=True, slots=True)
class StepView:
    """What one decoding step may see of the slots 0, 1, ...: the same for every layer."""

    rows: Int[Tensor, " slot"]
    positions: Int[Tensor, " slot"]
    """Where each slot's new token goes; it sees the tokens up to and including this one."""
    length: int
    """Cached positions looked at."""
    unseen: Bool[Tensor, "slot 1 1 token"]
    """The looked-at positions a slot's new token must not see."""

    @classmethod
    def at(cls, positions: Int[Tensor, " slot"], *, max_positions: int) -> "StepView":
        """Look a little past the furthest slot on a CPU, and at the whole cache elsewhere.

        A GPU keeps one shape for every step: so the step can be captured in a CUDA graph, and the
        host never waits to learn a length. For the same reason positions are checked on CPUs only.

        Raises:
            ValueError: on a CPU, a position lies outside the cache.
        """
        length = _looked_at(positions, max_positions=max_positions)
        cached = torch.arange(length, device=positions.device)
        unseen = cached > positions.unsqueeze(1)  # (slot, token)
        rows = torch.arange(len(positions), device=positions.device)
        return cls(rows, positions, length, unseen[:, None, None, :])


@dataclass(frozen=True, slots=True)
class SpanView:
    """What several new tokens of each of some slots may see: the same for every layer."""

    slots: Sequence[int]
    rows: slice | Tensor
    """The slots; a slice, whose reading copies nothing, where they are adjacent."""
    slot: Int[Tensor, "batch 1"]
    positions: Int[Tensor, "batch token"]
    """Where the new tokens go; each sees the tokens up to and including its own."""
    length: int
    """Cached positions looked at."""
    unseen: Bool[Tensor, "batch 1 token pos"]
    """The looked-at positions a new token must not see."""

    @classmethod
    def at(
        cls,
        slots: Sequence[int],
        positions: Int[Tensor, " batch"],
        *,
        num_tokens: int,
        max_positions: int,
    ) -> "SpanView":
        """Let `num_tokens` tokens of each slot follow one another from its position on.

        Raises:
            ValueError: on a CPU, a position lies outside the cache.
        """
        span = positions.unsqueeze(1) + torch.arange(num_tokens, device=positions.device)
        length = _looked_at(span, max_positions=max_positions)
        cached = torch.arange(length, device=positions.device)
        unseen = cached > span.unsqueeze(2)  # (batch, token, pos)
        slot = to_device(torch.tensor(slots), positions.device).unsqueeze(1)
        rows = _rows(slots, device=positions.device)
        return cls(slots, rows, slot, span, length, unseen.unsqueeze(1))


@dataclass(frozen=True, slots=True)
class WindowView:
    """What some slots may see of their windows, where one may be short: the same for every layer.

    On a CPU each window is looked at by itself, up to its end. A GPU keeps one shape for all.
    """

    ends: Sequence[int] = ()
    """On a CPU, the positions that each slot's window has."""
    unseen: Bool[Tensor, "window 1 1 pos"] | None = None
    """Elsewhere, the positions past each window's end."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's part of a `SlotCache`."""

    text: Float[Tensor, "2 slot head token head_dim"]
    """Keys, then values of self-attention: written in one go, as every step writes both."""
    cross_keys: Float[Tensor, "window head pos head_dim"]
    cross_values: Float[Tensor, "window head pos head_dim"]
    beams: int = 1
    """Adjacent slots that share a window."""

    @property
    def self_keys(self) -> Float[Tensor, "slot head token head_dim"]:
        """Of the tokens."""
        return self.text[0]

    @property
    def self_values(self) -> Float[Tensor, "slot head token head_dim"]:
        """Of the tokens."""
        return self.text[1]

    def write_window(
        self,
        slots: Sequence[int],
        keys: Float[Tensor, "batch head pos head_dim"],
        values: Float[Tensor, "batch head pos head_dim"],
    ) -> None:
        """Replace the cross-attention keys and values of `slots`."""
        rows = self._windows(slots)
        self.cross_keys[rows] = keys
        self.cross_values[rows] = values

    def read_window(
        self, slots: Sequence[int]
    ) -> tuple[Float[Tensor, "batch head pos head_dim"], Float[Tensor, "batch head pos head_dim"]]:
        """Return the cross-attention keys and values of `slots`; a view if they are adjacent."""
        rows = self._windows(slots)
        return self.cross_keys[rows], self.cross_values[rows]

    def packed_window(
        self, slot: int, end: int
    ) -> tuple[Float[Tensor, "1 head pos head_dim"], Float[Tensor, "1 head pos head_dim"]]:
        """Views of a slot's window of `end` positions, for writing and reading it.

        Its heads follow one another without gaps: bfloat16 products would copy it otherwise, which
        takes several times as long as they do.
        """
        heads, _, head_dim = self.cross_keys.shape[1:]
        shape = 1, heads, end, head_dim
        keys, values = (
            held[slot // self.beams].view(-1)[: heads * end * head_dim].view(shape)
            for held in (self.cross_keys, self.cross_values)
        )
        return keys, values

    def _windows(self, slots: Sequence[int]) -> slice | Tensor:
        return _rows([slot // self.beams for slot in slots], device=self.cross_keys.device)

    def write_prompts(
        self,
        slots: Sequence[int],
        keys: Float[Tensor, "batch head token head_dim"],
        values: Float[Tensor, "batch head token head_dim"],
    ) -> None:
        """Start `slots` anew with what their prompts give."""
        rows = _rows(slots, device=keys.device)
        length = keys.shape[2]
        self.self_keys[rows, :, :length] = keys
        self.self_values[rows, :, :length] = values
        # Values at unseen positions are multiplied by 0: a nan left by the slot's last sequence
        # would get through.
        self.self_values[rows, :, length:] = 0

    def write_step(
        self, view: StepView, keys_and_values: Float[Tensor, "slot 2 head head_dim"]
    ) -> None:
        """Add one token to each of the slots 0, 1, ..."""
        self.text[:, view.rows, :, view.positions] = keys_and_values

    def write_span(
        self,
        view: SpanView,
        keys: Float[Tensor, "batch head token head_dim"],
        values: Float[Tensor, "batch head token head_dim"],
    ) -> None:
        """Add several tokens to each of the view's slots."""
        self.self_keys[view.slot, :, view.positions] = keys.transpose(1, 2)
        self.self_values[view.slot, :, view.positions] = values.transpose(1, 2)

    def read_span(
        self, view: SpanView
    ) -> tuple[Float[Tensor, "batch head pos head_dim"], Float[Tensor, "batch head pos head_dim"]]:
        """Return the self-attention keys and values the view's slots look at."""
        length = view.length
        return self.self_keys[view.rows, :, :length], self.self_values[view.rows, :, :length]


class SlotCache:
    """The caches of all layers.

    Args:
        layers: decoder layers.
        slots: sequences side by side.
        beams: slots 0 to `beams` - 1 share a window, and so do the next ones, and so on.
        heads: attention heads.
        head_dim: width of a head.
        tokens: longest sequence a slot can hold.
        positions: encoder positions of a window.
        dtype: of keys and values.
        device: where they are.

    Raises:
        ValueError: the slots cannot share windows evenly.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        beams: int = 1,
        heads: int,
        head_dim: int,
        tokens: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if beams < 1 or slots % beams:
            raise ValueError(
                f"allocating {slots} slots of which {beams} share a window: expected a number "
                "that divides them; allocate a multiple of the beams"
            )
        # One tensor over all layers each, so that moving a slot is three copies.
        text = (layers, 2, slots, heads, tokens, head_dim)
        self._text = torch.zeros(text, dtype=dtype, device=device)
        window = (layers, slots // beams, heads, positions, head_dim)
        self._windows = tuple(
            torch.zeros(window, dtype=dtype, device=device) for _ in ("keys", "values")
        )
        self.beams = beams
        self.slots = slots
        self.on_cpu = device.type == "cpu"
        # Of no use off the CPU: there a captured step advances without this being told.
        self._texts = SlotTexts(slots, tokens) if self.on_cpu else None
        self._positions = positions
        # How many each window has: on a CPU, and elsewhere.
        self._ends = [positions] * (slots // beams)
        self._ends_there = torch.full((slots // beams,), positions, device=device)
        self._any_short = False
        tensors = zip(self._text, *self._windows, strict=True)  # layer by layer
        self.layers = tuple(LayerCache(text, keys, values, beams) for text, keys, values in tensors)

    def move(self, source: int, target: int) -> None:
        """Copy everything slot `source` holds into slot `target`."""
        self._text[:, :, target].copy_(self._text[:, :, source])
        for tensor in self._windows:
            tensor[:, target // self.beams].copy_(tensor[:, source // self.beams])
        self._copy_end(source // self.beams, target // self.beams)
        if self._texts is not None:
            self._texts.copy([target], [source])

    def note_prompts(self, slots: Sequence[int], length: int) -> None:
        """Note that `slots` hold new prompts of so many tokens, and nothing else."""
        if self._texts is not None:
            self._texts.start(slots, length)

    def note_tokens(self, slots: Int[Tensor, "*#shape"], positions: Int[Tensor, "*shape"]) -> None:
        """Note that `slots` hold new tokens at these positions."""
        if self._texts is not None:
            self._texts.write(slots, positions)

    def note_windows(self, slots: Sequence[int], num_positions: Sequence[int] | None) -> None:
        """Note how many positions the windows of `slots` have; None means that they are whole.

        Once numbers were given, windows off the CPU are masked for good: steps that were captured
        before do not.
        """
        if num_positions is None:
            if not self._any_short:
                return
            num_positions = [self._positions] * len(slots)
        self._any_short = True
        windows = [slot // self.beams for slot in slots]
        for window, number in zip(windows, num_positions, strict=True):
            self._ends[window] = number
        device = self._ends_there.device
        numbers = to_device(torch.tensor(num_positions), device)
        self._ends_there[_rows(windows, device=device)] = numbers

    def view_windows(self, slots: Sequence[int]) -> WindowView | None:
        """Tell what `slots` may see of their windows; None where these are whole."""
        if not self._any_short:
            return None
        windows = [slot // self.beams for slot in slots]
        if self.on_cpu:
            ends = [self._ends[window] for window in windows]
            return WindowView(ends=ends) if min(ends) < self._positions else None
        device = self._ends_there.device
        ends_there = self._ends_there[_rows(windows, device=device)].unsqueeze(1)
        unseen = torch.arange(self._positions, device=device) >= ends_there  # (window, pos)
        return WindowView(unseen=unseen[:, None, None, :])

    def _copy_end(self, source: int, target: int) -> None:
        self._ends[target] = self._ends[source]
        self._ends_there[target] = self._ends_there[source]

    def reorder(self, slots: Sequence[int], sources: Int[Tensor, " slot"]) -> None:
        """Give `slots` the self-attention keys and values of `sources`, all at once.

        Raises:
            ValueError: there are not as many sources as slots.
        """
        if len(slots) != len(sources):
            raise ValueError(
                f"reordering {len(slots)} slots: found {len(sources)} sources; give one per slot"
            )
        if self._texts is None:
            rows = _rows(slots, device=sources.device)
            self._text[:, :, rows] = self._text[:, :, sources]
            return
        pairs = zip(slots, sources.tolist(), strict=True)
        changed = [(slot, source) for slot, source in pairs if slot != source]
        # Window by window where that is possible: beams of one differ in their last tokens alone.
        apart = all(slot // self.beams == source // self.beams for slot, source in changed)
        for _, some in groupby(changed, key=lambda pair: apart and pair[0] // self.beams):
            targets, givers = (list(numbers) for numbers in zip(*some, strict=True))
            span = self._texts.copy(targets, givers)
            self._text[:, :, targets, :, span] = self._text[:, :, givers, :, span]

    def share(self, source: int, targets: Sequence[int]) -> None:
        """Give `targets`, which may be none, everything slot `source` holds."""
        if not targets:
            return
        rows = _rows(targets, device=self._text.device)
        self._text[:, :, rows] = self._text[:, :, source : source + 1]
        window = source // self.beams
        for other in {target // self.beams for target in targets} - {window}:
            for tensor in self._windows:
                tensor[:, other].copy_(tensor[:, window])
            self._copy_end(window, other)
        if self._texts is not None:
            self._texts.copy(targets, [source] * len(targets))


def _looked_at(positions: Int[Tensor, "*batch"], *, max_positions: int) -> int:
    """Look a little past the furthest position on a CPU, and at the whole cache elsewhere."""
    if positions.device.type != "cpu":
        return max_positions
    first, last = int(positions.min()), int(positions.max())
    if first < 0 or last >= max_positions:
        raise ValueError(
            f"decoding at positions {first} to {last}: the cache holds 0 to "
            f"{max_positions - 1}; end or cut the sequence before"
        )
    return min(max_positions, (last // _LENGTH_STEP + 1) * _LENGTH_STEP)


def _rows(slots: Sequence[int], *, device: torch.device) -> slice | Tensor:
    """Index `slots` by a slice, which copies nothing, where they are adjacent and ascending."""
    first = slots[0]
    if list(slots) == list(range(first, first + len(slots))):
        return slice(first, first + len(slots))
    return to_device(torch.tensor(slots), device)
