"""Key and value caches: growing ones for whole-sequence calls, fixed slots for decoding."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int, Num, UInt8
from corpus_asr.decoding.device import to_device
from corpus_asr.decoding.protocols import Slots

Heads = Float[Tensor, "batch head token head_dim"]
Keys = Float[Tensor, "batch head pos head_dim"]
KeysAndValues = tuple[Keys, Keys]
Held = Num[Tensor, "batch head pos head_dim"]
Scales = Float[Tensor, "2 batch head"]
Window = tuple[Held, Held, Scales | None]

_FLOAT8 = torch.float8_e4m3fn
_MOST = torch.finfo(_FLOAT8).max
_TINY = torch.finfo(torch.float32).tiny


def to_float8(
    given: Keys,
) -> tuple[UInt8[Tensor, "batch head pos head_dim"], Float[Tensor, "batch head"]]:
    """Round to 8 bits; return the bytes and the scale of each head."""
    # Stored as bytes: torch neither indexes nor assigns values of this type.
    scales = (given.abs().amax(dim=(2, 3)).float() / _MOST).clamp(min=_TINY)
    return (given / scales[:, :, None, None]).to(_FLOAT8).view(torch.uint8), scales


def from_float8(
    held: UInt8[Tensor, "batch head pos head_dim"],
    scales: Float[Tensor, "batch head"],
    dtype: torch.dtype,
) -> Keys:
    """Invert `to_float8`, up to rounding."""
    return (held.view(_FLOAT8).to(torch.float32) * scales[:, :, None, None]).to(dtype)


class KeyValues:
    """Keys and values of one attention for all tokens so far; initially empty."""

    def __init__(self) -> None:
        self.keys: Keys | None = None
        self.values: Keys | None = None

    @property
    def pair(self) -> KeysAndValues | None:
        """Keys and values, if there are any."""
        return None if self.keys is None or self.values is None else (self.keys, self.values)

    @property
    def length(self) -> int:
        """Number of tokens so far."""
        return 0 if self.keys is None else self.keys.shape[2]

    def append(self, keys: Heads, values: Heads) -> KeysAndValues:
        """Append the keys and values of further tokens; return all."""
        if (pair := self.pair) is not None:
            kept, new = pair[0].shape, keys.shape
            if (*kept[:2], kept[3]) != (*new[:2], new[3]):
                raise ValueError(
                    f"continuing with past_key_values: found keys of batch {kept[0]}, {kept[1]} "
                    f"heads and head_dim {kept[3]}, expected {new[0]}, {new[1]} and {new[3]}; "
                    "pass the cache of the same model and batch"
                )
            keys, values = torch.cat([pair[0], keys], dim=2), torch.cat([pair[1], values], dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by the result of `function`."""
        if (pair := self.pair) is not None:
            self.keys, self.values = map(function, pair)


class LayerPast(KeyValues):
    """Keys and values of the tokens in one decoder block, and of its window."""

    def __init__(self) -> None:
        super().__init__()
        self.cross = KeyValues()
        """Keys and values of the window, computed once."""


class Cache:
    """Keys and values of one kind of attention by layer, with transformers' interface."""

    def __init__(self, layers: Sequence[KeyValues]) -> None:
        self.layers = layers

    def __len__(self) -> int:
        return len(self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens or positions, the same in layers that have any."""
        return max((layer.length for layer in self.layers), default=0)


class TokenCache(Cache):
    """Keys and values of every layer of a decoder, here of one without an encoder.

    `cache[i]` are the keys and values of the tokens and, with an encoder, those of the window, each
    (batch, head, token or pos, head_dim).
    """

    layers: list[LayerPast]

    def __init__(self, num_layers: int) -> None:
        super().__init__([LayerPast() for _ in range(num_layers)])

    def __getitem__(self, layer: int) -> tuple[Tensor, ...]:
        return (*(self.layers[layer].pair or ()), *(self.layers[layer].cross.pair or ()))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[i] for i in range(len(self)))

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Replace row i by row `beam_idx[i]`."""
        self._change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select these rows."""
        self._change(lambda tensor: tensor[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def _change(self, function: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            layer.change(function)
            layer.cross.change(function)

    def crop(self, max_length: int) -> None:
        """Drop all tokens from `max_length`; if negative, that many last ones."""
        length = self.get_seq_length()
        keep = max(0, length + max_length) if max_length < 0 else min(max_length, length)
        for layer in self.layers:
            layer.change(lambda tensor: tensor[:, :, :keep])


class DecoderCache(TokenCache):
    """Keys and values of the tokens and of the windows, for every decoder layer."""

    @property
    def self_attention_cache(self) -> Cache:
        """Keys and values of the tokens."""
        return Cache(self.layers)

    @property
    def cross_attention_cache(self) -> Cache:
        """Keys and values of the windows."""
        return Cache([layer.cross for layer in self.layers])

    @property
    def is_updated(self) -> dict[int, bool]:
        """Whether each layer has keys and values of the windows."""
        return {number: layer.cross.length > 0 for number, layer in enumerate(self.layers)}


def as_decoder_cache(past_key_values: Any, *, num_layers: int) -> TokenCache | None:
    """Convert a caller's `past_key_values`; None stays None.

    Keys and values of transformers' DynamicCache and EncoderDecoderCache are reused; only the
    returned cache grows.
    """
    if past_key_values is None:
        return None
    self_cache = getattr(past_key_values, "self_attention_cache", past_key_values)
    if type(self_cache).__name__ == "DynamicCache":
        cross_cache = getattr(past_key_values, "cross_attention_cache", None)
        return _converted(self_cache, cross_cache, num_layers=num_layers)
    if isinstance(past_key_values, TokenCache) and len(past_key_values) == num_layers:
        return past_key_values
    description = f"a {type(past_key_values).__name__}"
    if isinstance(past_key_values, TokenCache):
        description += f" of {len(past_key_values)} layers"
    raise ValueError(
        f"continuing with past_key_values: found {description}, expected the cache of a model of "
        f"{num_layers} decoder layers"
    )


def _converted(own: Any, cross: Any, *, num_layers: int) -> TokenCache:
    cache = TokenCache(num_layers) if cross is None else DecoderCache(num_layers)
    for source, targets in (
        (own, cache.layers),
        (cross, [layer.cross for layer in cache.layers]),
    ):
        # Before its first use it has fewer layers, or layers without tensors.
        for layer, target in zip(() if source is None else source.layers, targets, strict=False):
            keys = getattr(layer, "keys", None)
            if keys is not None and keys.numel():
                target.keys, target.values = keys, layer.values
    return cache


# oneDNN compiles a bfloat16 product for every shape and caches a thousand of them: with a separate
# length for every step these took a gigabyte.
_LENGTH_STEP = 32


def rounded_length(length: int, *, most: int) -> int:
    """Return a length of at least `length`, of few, up to `most`."""
    return min(most, -(-length // _LENGTH_STEP) * _LENGTH_STEP)


@dataclass(frozen=True, slots=True)
class TokenView:
    """The cache entries visible to the next tokens of some slots, equal for all layers."""

    slots: Sequence[int]
    rows: slice | Tensor
    """Slot indices; a slice if they are adjacent."""
    slot: Int[Tensor, "batch 1"]
    positions: Int[Tensor, "batch token"]
    """Positions of the new tokens; each sees the tokens up to and including its own."""
    length: int
    """Number of cached positions that are read."""
    unseen: Bool[Tensor, "batch 1 token pos"]
    """Positions that are read but masked for a new token."""
    not_ours: Bool[Tensor, "window beam beam pos"] | None = None
    """For beams off the CPU: the mask of each beam over all slots of its window."""

    @classmethod
    def at(
        cls,
        slots: Sequence[int],
        positions: Int[Tensor, "batch token"],
        *,
        max_positions: int,
        reach: int | None = None,
    ) -> "TokenView":
        """Read up to the furthest position, rounded up, on a CPU, and up to `reach` elsewhere.

        A reach of None is the whole cache.
        """
        device = positions.device
        rows = rows_of(slots, device=device)
        if isinstance(rows, slice):
            # Created on the device: a captured step cannot copy from the host.
            slot = torch.arange(rows.start, rows.stop, device=device)
        else:
            slot = rows
        length = _looked_at(positions, max_positions=max_positions)
        if reach is not None and device.type != "cpu":
            length = min(length, reach)
        unseen = torch.arange(length, device=device) > positions.unsqueeze(2)  # (batch, token, pos)
        return cls(slots, rows, slot.unsqueeze(1), positions, length, unseen.unsqueeze(1))


@dataclass(frozen=True, slots=True)
class WindowView:
    """The window positions visible to some slots, equal for all layers; windows may be short.

    On a CPU each short window is read separately, up to its end. A GPU uses one shape for all.
    """

    slots: Slots
    """Slots; one is enough for adjacent slots that share a window."""
    rows: slice | Tensor
    """Indices of their windows; a slice if they are adjacent."""
    ends: Sequence[int] = ()
    """On a CPU, the number of positions of each slot's window; empty if all are whole."""
    unseen: Bool[Tensor, "window 1 1 pos"] | None = None
    """On other devices, the mask of positions after each window's end."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The caches of one layer in a `SlotCache`."""

    text: Float[Tensor, "2 slot head token head_dim"]
    """Keys and values of self-attention in one tensor, as every step writes both."""
    cross_keys: Num[Tensor, "window head pos head_dim"]
    """With scales, bytes that represent `torch.float8_e4m3fn`."""
    cross_values: Num[Tensor, "window head pos head_dim"]
    """On a CPU contiguous along `pos`, for products that read memory in order."""
    cross_scales: Float[Tensor, "2 window head"] | None = None
    """Factors of keys and values."""
    beams: int = 1
    """Number of adjacent slots that share a window."""

    def window(self, rows: slice | Tensor) -> Window:
        """Return the cross-attention keys and values of windows; views if they are adjacent."""
        scales = None if self.cross_scales is None else self.cross_scales[:, rows]
        return self.cross_keys[rows], self.cross_values[rows], scales

    def write_window(self, rows: slice | Tensor, keys: Keys, values: Keys) -> None:
        """Replace the cross-attention keys and values of windows."""
        for number, (held, tensor) in enumerate(
            ((self.cross_keys, keys), (self.cross_values, values))
        ):
            if self.cross_scales is None:
                held[rows] = tensor
            else:
                held[rows], self.cross_scales[number, rows] = to_float8(tensor)

    def packed_window(self, slot: int, end: int) -> KeysAndValues:
        """Return views of a slot's window of `end` positions, for writing and reading."""
        # Heads are contiguous: bfloat16 products would copy them otherwise, which takes several
        # times as long as the products.
        heads, _, head_dim = self.cross_keys.shape[1:]
        size = heads * end * head_dim
        held_keys, held_values = self.cross_keys, self.cross_values.mT
        keys = held_keys[slot // self.beams].view(-1)[:size].view(1, heads, end, head_dim)
        values = held_values[slot // self.beams].view(-1)[:size].view(1, heads, head_dim, end)
        return keys, values.mT

    def write_prompts(self, rows: slice | Tensor, keys: Heads, values: Heads, *, used: int) -> None:
        """Restart slots with the keys and values of their prompts.

        Before, the slots had tokens at the first `used` positions.
        """
        length = keys.shape[2]
        own_keys, own_values = self.text
        # Values at masked positions are multiplied by 0, which a NaN of the slot's last sequence
        # would survive.
        if isinstance(rows, slice):
            own_values[rows, :, length:used] = 0
        else:
            # Assignment of a number by index would synchronize with the device.
            own_values.index_fill_(0, rows, 0)
        own_keys[rows, :, :length] = keys
        own_values[rows, :, :length] = values

    def write(
        self, view: TokenView, keys_and_values: Float[Tensor, "batch token 2 head head_dim"]
    ) -> None:
        """Append the next tokens of the view's slots."""
        self.text[:, view.slot, :, view.positions] = keys_and_values

    def read(self, view: TokenView) -> KeysAndValues:
        """Return the self-attention keys and values visible to the view's slots."""
        rows, seen = view.rows, slice(view.length)
        return self.text[0, rows, :, seen], self.text[1, rows, :, seen]


class SlotCache:
    """The caches of all layers.

    `tokens` is the longest sequence of a slot, `positions` the encoder positions of a window. Slots
    0 to `beams` - 1 share a window, and so do the next ones, and so on.
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
        float8_windows: bool = False,
    ) -> None:
        if beams < 1 or slots % beams:
            raise ValueError(
                f"allocating {slots} slots of which {beams} share a window: expected a number "
                "that divides them; allocate a multiple of the beams"
            )
        # One tensor over all layers each, so that moving a slot takes three copies.
        text = (layers, 2, slots, heads, tokens, head_dim)
        self._text = _zeros(text, dtype=dtype, device=device)
        windows = (layers, slots // beams, heads)
        held = torch.uint8 if float8_windows else dtype
        keys = _zeros((*windows, positions, head_dim), dtype=held, device=device)
        self.on_cpu = device.type == "cpu"
        values = (
            _zeros((*windows, head_dim, positions), dtype=held, device=device).mT
            if self.on_cpu
            else torch.zeros_like(keys)
        )
        self._windows = keys, values
        # Empty windows are zero, and remain so with any scale.
        scales = torch.ones(layers, 2, slots // beams, heads, device=device)
        self._scales = scales if float8_windows else None
        self.beams = beams
        self.slots = slots
        # A number for every token of every slot; equal numbers mean equal keys and values. Beams of
        # a window mostly differ in their last few tokens: only these are then copied. Unused off
        # the CPU, where a captured step does not change it.
        self._written = torch.zeros(slots, tokens, dtype=torch.long) if self.on_cpu else None
        self._next = 1
        # On other devices nothing is copied: the slot of its window that has each position of a
        # beam. Beams advance in lockstep, so entries stay until the place is assigned to another
        # window. Source: the cache indirection of TensorRT-LLM.
        shared = beams > 1 and not self.on_cpu
        self._holder = (
            torch.zeros(slots, tokens, dtype=torch.long, device=device) if shared else None
        )
        self._positions = positions
        self._ends = torch.full((slots // beams,), positions, device=device)
        self._any_short = False
        all_scales = [None] * layers if self._scales is None else self._scales
        tensors = zip(self._text, *self._windows, all_scales, strict=True)
        self.layers = tuple(
            LayerCache(text, keys, values, scales, beams) for text, keys, values, scales in tensors
        )

    def used(self, slots: Slots) -> int:
        """Return the number of positions up to the last that has a token of one of `slots`."""
        if self._written is None:
            return self._text.shape[4]
        seen = self._written[list(slots)].any(dim=0).nonzero()
        return int(seen[-1]) + 1 if len(seen) else 0

    def note_prompts(self, slots: Slots, length: int) -> None:
        """Record that `slots` have only new prompts of this many tokens."""
        if self._holder is not None:
            beam_indices = torch.tensor([slot % self.beams for slot in slots]).unsqueeze(1)
            self._holder[self.rows(slots)] = to_device(beam_indices, self._holder.device)
            # As in `write_prompts`: these slots' values are read by the next step.
            firsts = sorted({slot // self.beams * self.beams for slot in slots})
            all_slots = [slot for first in firsts for slot in range(first, first + self.beams)]
            if other_slots := sorted(set(all_slots) - set(slots)):
                index = to_device(torch.tensor(other_slots), self._holder.device)
                self._text[:, 1].index_fill_(1, index, 0)
        if self._written is not None:
            self._written[list(slots)] = 0
            self._written[list(slots), :length] = self._new((len(slots), length))

    def view_tokens(
        self,
        slots: Sequence[int],
        positions: Int[Tensor, "batch token"],
        *,
        reach: int | None = None,
    ) -> TokenView:
        """Return the view for the next tokens of `slots`, at `positions` before `reach`."""
        view = TokenView.at(slots, positions, max_positions=self._text.shape[4], reach=reach)
        if self._holder is None:
            return view
        beam = torch.arange(self.beams, device=positions.device)
        self._holder[view.slot, view.positions] = view.slot % self.beams
        holder = self._holder[view.rows, : view.length].view(-1, self.beams, view.length)
        late = view.unseen.view(*holder.shape[:2], 1, view.length)
        return replace(view, not_ours=(holder.unsqueeze(2) != beam.view(-1, 1)) | late)

    def note_tokens(self, view: TokenView) -> None:
        """Record that the view's slots have its new tokens."""
        if self._written is not None:
            self._written[view.slot, view.positions] = self._new(view.positions.shape)

    def _new(self, shape: Sequence[int]) -> Int[Tensor, "slot token"]:
        first = self._next
        self._next += math.prod(shape)
        return torch.arange(first, self._next).view(*shape)

    def note_windows(self, slots: Slots, num_positions: Sequence[int] | None) -> None:
        """Record the number of positions of the windows of `slots`; None means whole windows.

        Once numbers were given, windows off the CPU are always masked; steps captured before are
        not.
        """
        if num_positions is None:
            if not self._any_short:
                return
            num_positions = [self._positions] * len(slots)
        self._any_short = True
        self._ends[self.windows(slots)] = to_device(torch.tensor(num_positions), self._ends.device)

    def rows(self, slots: Slots) -> slice | Tensor:
        """Return an index of `slots`: a slice, which copies nothing, if they are adjacent."""
        return rows_of(slots, device=self._ends.device)

    def windows(self, slots: Slots) -> slice | Tensor:
        """Return an index of the windows of `slots`; a slice if they are adjacent."""
        return self.rows(slots if self.beams == 1 else [slot // self.beams for slot in slots])

    def view_windows(self, slots: Slots) -> WindowView:
        """Return the view of `slots` on their windows."""
        rows = self.windows(slots)
        if not self._any_short:
            return WindowView(slots, rows)
        ends = self._ends[rows]
        if self.on_cpu:
            numbers = ends.tolist()
            return WindowView(slots, rows, numbers if min(numbers) < self._positions else ())
        positions = torch.arange(self._positions, device=ends.device)
        unseen = positions >= ends.unsqueeze(1)  # (window, pos)
        return WindowView(slots, rows, unseen=unseen[:, None, None, :])

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target`."""
        self._text[:, :, target].copy_(self._text[:, :, source])
        for tensor in (*self._windows, self._ends.unsqueeze(0)):
            tensor[:, target // self.beams].copy_(tensor[:, source // self.beams])
        if self._scales is not None:
            self._scales[:, :, target // self.beams].copy_(self._scales[:, :, source // self.beams])
        for held in (self._written, self._holder):
            if held is not None:
                held[target] = held[source]

    def reorder(self, slots: Sequence[int], sources: Int[Tensor, " slot"]) -> None:
        """Copy the self-attention keys and values of `sources` to `slots` simultaneously.

        Off the CPU, if slots share windows, source and slot must have the same window.
        """
        if len(slots) != len(sources):
            raise ValueError(
                f"reordering {len(slots)} slots: found {len(sources)} sources; give one per slot"
            )
        if self._holder is not None:
            self._holder[self.rows(slots)] = self._holder[sources]
            return
        if self._written is None:
            rows = rows_of(slots, device=sources.device)
            self._text[:, :, rows] = self._text[:, :, sources]
            return
        pairs = zip(slots, sources.tolist(), strict=True)
        changed = [(slot, source) for slot, source in pairs if slot != source]
        # Per window if possible: beams of one differ only in their last tokens.
        apart = all(slot // self.beams == source // self.beams for slot, source in changed)
        for _, window_pairs in groupby(changed, key=lambda pair: apart and pair[0] // self.beams):
            targets, givers = (list(numbers) for numbers in zip(*window_pairs, strict=True))
            held = self._written[givers]
            differs = (self._written[targets] != held).any(dim=0).nonzero()
            if len(differs):
                span = slice(int(differs[0]), int(differs[-1]) + 1)
                self._text[:, :, targets, :, span] = self._text[:, :, givers, :, span]
                self._written[targets] = held


def _zeros(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    # Of numpy, whose zeros take memory only once they are written: most places for beams, and the
    # positions after a text's end, never are.
    held = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(held).view(dtype).view(*shape)


def _looked_at(positions: Int[Tensor, "*batch"], *, max_positions: int) -> int:
    # A GPU uses one shape for every step, so that the step can be captured in a CUDA graph and no
    # length must be read. Positions are therefore checked on CPUs only.
    if positions.device.type != "cpu":
        return max_positions
    first, last = int(positions.min()), int(positions.max())
    if first < 0 or last >= max_positions:
        raise ValueError(
            f"decoding at positions {first} to {last}: the cache holds 0 to {max_positions - 1}; "
            "shorten the sequence"
        )
    return rounded_length(last + 1, most=max_positions)


def rows_of(slots: Slots, *, device: torch.device) -> slice | Tensor:
    """Return an index of `slots`: a slice, which copies nothing, if adjacent and ascending."""
    if isinstance(slots, Tensor):
        return slots
    first = slots[0]
    if list(slots) == list(range(first, first + len(slots))):
        return slice(first, first + len(slots))
    return to_device(torch.tensor(slots), device)
