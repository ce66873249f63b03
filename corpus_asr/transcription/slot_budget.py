"""How many slots fit into a GPU's memory, and what a process on a CPU takes.

In: a model's size and the bytes that are free. Out: a number of slots, and the bytes of each part
by name. Knows no device but by its free memory; what a formula leaves out is the reserve's.
"""

from dataclasses import dataclass, fields

import torch

from corpus_asr.decoding.protocols import ModelSize, SlotModel, TellsSize
from corpus_asr.decoding.rules import LONGEST_PHRASE

_CPU_SLOTS = 8
_MAX_CUDA_SLOTS = 64
# Of free memory: workspaces of cuBLAS and cuDNN, fragments, beams and drafts beside the slots.
_RESERVED_SHARE = 0.2

# The interpreter, torch and the other libraries. Measured with Python 3.11 and torch 2.13.
_PROCESS_BYTES = 430_000_000

_FLOAT, _LONG = 4, 8
# At the peak of a sampled step, beside the logits: integers that the noise is mixed of, three or
# four at a time.
_STEP_BYTES_PER_TOKEN = _FLOAT + 4 * _LONG
# Recorded steps keep a pool of their own beside that of admissions.
_STEP_POOLS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Bytes by what they are for."""

    weights: int
    fused_copies: int
    """The decoder's linear maps once more, as `CachedDecoderBlock` stacks and scales them.

    Both are there while loading; later only the copies are.
    """
    self_cache: int
    cross_cache: int
    slot_rows: int
    """Rules, texts and counts of `SlotBatch`."""
    step_buffers: int
    """What a step works with at its peak."""
    kept_encodings: int
    """Of the windows in the slots, and of a batch encoded ahead."""
    encoder_activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


def predicted_bytes(size: ModelSize, *, slots: int, encode_batch: int) -> MemoryParts:
    """Bytes that decoding in `slots` takes on a GPU, with `encode_batch` windows encoded at once.

    The caches and rows are what is allocated; the encoder's and the step's are peaks, reckoned
    from the order in which their tensors come and go (tests/transcription/test_slot_budget.py).
    """
    layer_row = 2 * size.layers * size.width * size.element_bytes  # a key and a value
    encoding = size.positions * size.width * size.element_bytes
    # Queries, keys and values; the window's queries; the window's keys and values. With biases.
    fused = size.layers * 6 * size.width * (size.width + 1) * size.element_bytes
    scalars = 9 * _LONG + 2 * _FLOAT + 6  # of a slot; flags are bytes
    row = size.vocab_size * _FLOAT + (size.tokens + 1) * (_LONG + _FLOAT)
    # In a block: hidden states before and after attention, the same normed, and the wide ones
    # before and after activation.
    block = size.positions * (3 * size.width + 2 * size.inner_width) * size.element_bytes
    return MemoryParts(
        weights=size.weight_bytes,
        fused_copies=fused,
        self_cache=slots * layer_row * size.tokens,
        cross_cache=slots * layer_row * size.positions,
        slot_rows=slots * (row + LONGEST_PHRASE * _LONG + scalars),
        step_buffers=slots * _STEP_POOLS * size.vocab_size * _STEP_BYTES_PER_TOKEN,
        kept_encodings=(slots + encode_batch) * encoding,
        encoder_activations=encode_batch * (block + size.window_values * size.element_bytes),
    )


def predicted_cpu_bytes(size: ModelSize, *, slots: int, encode_batch: int) -> int:
    """Bytes that a process takes at its peak that decodes in `slots` on a CPU.

    All weights are copied there, not the decoder's alone; of those that were let go for it, the
    memory stays with the process.
    """
    parts = predicted_bytes(size, slots=slots, encode_batch=encode_batch)
    return _PROCESS_BYTES + size.weight_bytes + parts.total


def fitting_slots(size: ModelSize, *, free_bytes: int, encode_batch: int) -> int:
    """As many slots as `free_bytes` hold beside weights that are there already; 1 at least.

    Where not even one fits, the engine finds out, and halves what it encodes at once.
    """
    none, one = (predicted_bytes(size, slots=n, encode_batch=encode_batch).total for n in (0, 1))
    there_already = size.weight_bytes + predicted_bytes(size, slots=0, encode_batch=0).fused_copies
    usable = int(free_bytes * (1 - _RESERVED_SHARE)) - (none - there_already)
    return max(1, min(_MAX_CUDA_SLOTS, usable // (one - none)))


def auto_slots(model: SlotModel, *, encode_batch: int, sharers: int = 1) -> int:
    """As many slots as are useful on the model's device and fit into its share of free memory."""
    if model.device.type != "cuda" or not isinstance(model, TellsSize):
        return _CPU_SLOTS
    free_bytes, _ = torch.cuda.mem_get_info(model.device)
    return fitting_slots(model.size, free_bytes=free_bytes // sharers, encode_batch=encode_batch)
