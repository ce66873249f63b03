"""Slots for networks with modified modules: the network itself is called for each slot.

Inputs and outputs are as in `DecoderSlots`, equal within rounding for unmodified modules; slower,
since slots are not batched. Hooks, adapters and overridden methods are effective.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.protocols import Slots
from corpus_asr.families.layers.kv_cache import DecoderCache
from corpus_asr.families.layers.stack import check_heads
from corpus_asr.families.outputs import as_encoder_output

Window = Float[Tensor, "pos width"]


@dataclass(slots=True)
class _Slot:
    cache: DecoderCache
    tokens: list[int] = field(default_factory=list)
    """Tokens read so far; the cache has their keys and values, or is unused."""

    def copy(self) -> "_Slot":
        cache = DecoderCache(len(self.cache))
        for target, source in zip(cache.layers, self.cache.layers, strict=True):
            # Pairs are replaced as they grow, never modified.
            target.own.pair, target.cross.pair = source.own.pair, source.cross.pair
        return _Slot(cache, list(self.tokens))


@dataclass(slots=True)
class ModuleState:
    """The content of the slots; each `beams` adjacent ones share a window."""

    slots: list[_Slot]
    windows: list[Window | None]
    beams: int


class ModuleSlots(ABC):
    """A `decoding.protocols.SlotModel` that calls `network`; each family adds its encoder.

    Its hidden states are already logits: the network's `forward` returns nothing earlier.
    """

    has_encoder = True

    def __init__(self, network: Any, *, max_source_positions: int) -> None:
        self._network = network
        self._max_source_positions = max_source_positions
        self._config = network.config
        self._layers = len(getattr(network.get_decoder(), "layers", ()))
        self._keeps = self._layers > 0
        self.vocab_size: int = network.config.vocab_size
        self.max_target_positions: int = network.config.max_target_positions

    @property
    def device(self) -> torch.device:
        """Device of inputs: hooks load weights that were moved elsewhere."""
        devices = (weight.device for weight in self._network.parameters())
        return next((device for device in devices if device.type != "meta"), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._network.dtype
        return dtype

    @property
    def window_shape(self) -> tuple[int, int]:
        return self._max_source_positions, self._config.d_model

    @abstractmethod
    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        """Return the number of encoder positions for `num_frames` of each window."""

    @torch.inference_mode()
    def _encoded(self, *features: Tensor) -> Float[Tensor, "batch pos width"]:
        encoder = self._network.get_encoder()
        with evaluating(encoder):
            output = as_encoder_output(encoder(*features, return_dict=True))
        assert output.last_hidden_state is not None, "checked by as_encoder_output"
        return output.last_hidden_state

    def new_state(self, slots: int, *, beams: int = 1) -> ModuleState:
        empty = [_Slot(DecoderCache(self._layers)) for _ in range(slots)]
        return ModuleState(empty, [None] * (slots // beams), beams)

    def fill(
        self,
        state: ModuleState,
        slots: Slots,
        encoded: Float[Tensor, "batch pos width"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        ends = [encoded.shape[1]] * len(slots)
        if num_frames is not None:
            ends = self.positions_heard(num_frames, windows=len(encoded))
        for slot, window, end in zip(map(int, slots), encoded, ends, strict=True):
            state.windows[slot // state.beams] = window[:end]

    @torch.inference_mode()
    def prefill(
        self,
        state: ModuleState,
        slots: Slots,
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "batch token vocab"]:
        rows = zip(map(int, slots), tokens.tolist(), lengths, strict=True)
        scored: list[Tensor] = []
        for slot, prompt, length in rows:
            state.slots[slot] = _Slot(DecoderCache(self._layers))
            logits = self._read(state, slot, prompt[:length], 0)
            scored.append(F.pad(logits, (0, 0, 0, len(prompt) - length)))
        return torch.stack(scored)

    def step(
        self,
        state: ModuleState,
        tokens: Int[Tensor, " slot"],
        positions: Int[Tensor, " slot"],
        *,
        reach: int | None = None,
    ) -> Float[Tensor, "slot vocab"]:
        return self.extend(state, range(len(tokens)), tokens.unsqueeze(1), positions).squeeze(1)

    @torch.inference_mode()
    def extend(
        self,
        state: ModuleState,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch token vocab"]:
        rows = zip(slots, tokens.tolist(), positions.tolist(), strict=True)
        return torch.stack(
            [self._read(state, slot, token_ids, start) for slot, token_ids, start in rows]
        )

    def logits(self, hidden: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        return hidden

    @torch.inference_mode()
    def align(
        self,
        state: ModuleState,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Float[Tensor, "batch head token pos"], Float[Tensor, "batch token vocab"]]:
        longest, positions = tokens.shape[1], self._max_source_positions
        weights: list[Tensor] = []
        scored: list[Tensor] = []
        for slot, text, length in zip(slots, tokens.tolist(), lengths, strict=True):
            window = state.windows[slot // state.beams]
            assert window is not None, "aligned in an empty slot"
            output = self._called(window, text[:length], None, output_attentions=True)
            slot_weights = self._weights(output.cross_attentions, heads)
            rest = longest - length
            weights.append(F.pad(slot_weights, (0, positions - slot_weights.shape[2], 0, rest)))
            scored.append(F.pad(output.logits[0].float(), (0, 0, 0, rest)))
        return torch.stack(weights), torch.stack(scored)

    def _weights(
        self, by_layer: Sequence[Tensor] | None, heads: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "head token pos"]:
        num_layers = len(by_layer or ())
        if by_layer is None or num_layers != self._layers:
            raise ValueError(
                f"aligning tokens: found the cross-attention weights of {num_layers} decoder "
                f"layers, expected those of {self._layers}; append them to `record.cross`, or "
                "omit token times"
            )
        check_heads(heads, layers=num_layers, num_heads=self._config.decoder_attention_heads)
        return torch.stack([by_layer[layer][0, head].float() for layer, head in heads])

    def move(self, state: ModuleState, source: int, target: int) -> None:
        state.slots[target] = state.slots[source].copy()
        state.windows[target // state.beams] = state.windows[source // state.beams]

    def reorder(
        self, state: ModuleState, slots: Sequence[int], sources: Int[Tensor, " slot"]
    ) -> None:
        copies = [state.slots[source].copy() for source in sources.tolist()]
        for slot, copied in zip(slots, copies, strict=True):
            state.slots[slot] = copied

    def _read(
        self, state: ModuleState, number: int, tokens: list[int], start: int
    ) -> Float[Tensor, "token vocab"]:
        slot, window = state.slots[number], state.windows[number // state.beams]
        if window is None or start > len(slot.tokens):
            # A free slot included in the step: its result is ignored.
            return torch.zeros(len(tokens), self.vocab_size, device=self.device)
        slot.tokens = slot.tokens[:start] + tokens
        output = self._next(window, slot, start)
        logits: Tensor = output.logits[0, -len(tokens) :].float()
        return logits

    def _next(self, window: Window, slot: _Slot, start: int) -> Any:
        if self._keeps:
            slot.cache.crop(start)
            output = self._called(window, slot.tokens, slot.cache)
            kept = {layer.own.length for layer in slot.cache.layers}
            if kept == {len(slot.tokens)}:
                return output
            # A replaced layer without cache would only see the newest tokens.
            self._keeps = False
        return self._called(window, slot.tokens, None)

    def _called(
        self, window: Window, tokens: list[int], past: DecoderCache | None, **options: Any
    ) -> Any:
        network = self._network
        inputs = network.prepare_inputs_for_generation(
            torch.tensor([tokens], device=self.device),
            past_key_values=past,
            use_cache=past is not None,
            encoder_outputs=as_encoder_output((window.unsqueeze(0),)),
        )
        with evaluating(network):
            return network(**inputs, **options, return_dict=True)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Run modules in evaluation mode, without dropout, and restore their modes."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
