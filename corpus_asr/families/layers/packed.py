"""Encoders optimized for inference: packed for CPUs, one window per thread, and fused for GPUs.

Threads that each compute a whole window need no synchronization, whereas threads that share every
product of one window synchronize thousands of times: on busy machines the difference is large.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float
from corpus_asr.decoding.device import return_freed_memory
from corpus_asr.families.layers.blocks import (
    NOTHING,
    EncoderBlock,
    Record,
    bounded,
    merge_heads,
)
from corpus_asr.families.layers.projection import (
    Fused,
    NormedProjection,
    Projection,
    fused_activation,
    stacked_bias,
)
from corpus_asr.families.layers.stack import FeatureEncoder

# Frames or positions of a window below which several threads round differently from one (seen with
# three and more on AVX2, up to 50), and are not faster.
WORTH_SEVERAL_THREADS = 400

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_per_sample(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    size: Callable[[Item], int] | None = None,
) -> list[Result]:
    """Apply `function` to each of `items`, on torch's number of threads; return results in order.

    If fewer items than threads remain, each gets several threads, if these are useful. The
    largest by `size` (frames or positions) start first, so that threads end together.

    Raises:
        Exception: that of the first item that failed, once all threads have ended.
    """
    threads = torch.get_num_threads()
    numbers = list(range(len(items)))
    if size is not None:
        numbers.sort(key=lambda number: -size(items[number]))
    alone = len(items) // threads * threads
    results: dict[int, Result] = {}

    def compute(number: int) -> None:
        results[number] = function(items[number])

    for group, workers in ((numbers[:alone], threads), (numbers[alone:], len(numbers) - alone)):
        if group:
            small = size is not None and size(items[group[-1]]) < WORTH_SEVERAL_THREADS
            threads_each = 1 if small else threads // workers
            _run_in_threads(compute, group, workers, threads_each)
    return [results[number] for number in range(len(items))]


def _run_in_threads(
    compute: Callable[[int], None], numbers: Sequence[int], workers: int, threads_each: int
) -> None:
    # A shared list, not a task each: a task costs 20 us, and a window has hundreds.
    queue, lock = iter(numbers), threading.Lock()
    errors: dict[int, Exception] = {}
    started = threading.Semaphore(0)

    def work() -> None:
        # Inference mode and number of threads are per thread.
        with torch.inference_mode():
            while not errors:
                with lock:
                    number = next(queue, None)
                if number is None:
                    return
                try:
                    compute(number)
                except Exception as error:  # raised in the caller's thread
                    errors[number] = error

    def begin() -> None:
        # Initialized here, before the thread's own setting, as the first product would do.
        torch.get_num_threads()
        torch.set_num_threads(threads_each)
        started.release()
        work()

    threads = torch.get_num_threads()
    if workers == 1 and threads_each == threads:
        work()
    else:
        with ThreadPoolExecutor(workers, thread_name_prefix="window") as pool:
            for _ in range(workers):
                pool.submit(begin)
            for _ in range(workers):
                started.acquire()
            # Threads started by others inherit the last setting: it must not be a fraction.
            torch.set_num_threads(threads)
        torch.set_num_threads(threads)  # an item may have started parallel ones
    if errors:
        raise errors[min(errors)]


# Rows whose inner states fit a core's own cache. They share a scale in 8 bits, so the number
# affects results.
_BLOCK_ROWS = 125
# Queries per block, of one head. Measured with 1,500 keys on two Zen 4 cores, bfloat16, two windows
# in parallel: 290 ms for the 6 layers of whisper-base, 355 with blocks of 100 queries.
_ATTENTION_ROWS = 500

Heads = Float[Tensor, "head pos head_dim"]


class PackedEncoderBlock:
    """An `EncoderBlock` for one window at a time, equal to it within rounding.

    Hidden states between the layers are float32; products are in the weights' type, with `int8` in
    8-bit integers except attention.
    """

    def __init__(self, block: EncoderBlock, *, int8: bool) -> None:
        attention = block.self_attn
        self._heads = attention.heads
        # With AMX's tiles the 8 heads of whisper-base take 13 ms fused and 21 by head (one core).
        low = attention.q_proj.weight.dtype == torch.bfloat16
        self._by_head = low and not torch.cpu._is_amx_tile_supported()
        self._activate = block.activate
        self._after = fused_activation(block.activate)
        self._qkv = NormedProjection(
            block.self_attn_layer_norm,
            [attention.q_proj, attention.k_proj, attention.v_proj],
            scales=[attention.head_dim**-0.5],
            int8=int8,
            wide=True,
        )
        self._out = Projection([attention.out_proj], int8=int8)
        self._fc1 = NormedProjection(block.final_layer_norm, [block.fc1], int8=int8, wide=True)
        self._fc2 = Projection([block.fc2], int8=int8)

    def __call__(self, hidden: Float[Tensor, "pos width"], *, valid: int | None = None) -> None:
        """Attend to the first `valid` positions; modifies `hidden`, which is float32."""
        attended = self._attend(hidden, len(hidden) if valid is None else valid)
        # Each thread takes blocks of rows: threads that share a product may round differently.
        blocks = list(zip(blocks_of(hidden), blocks_of(attended), strict=True))
        run_per_sample(self._finish, blocks, size=lambda block: len(block[0]))

    def _finish(self, block: tuple[Float[Tensor, "row width"], Float[Tensor, "row width"]]) -> None:
        rows, attended = block
        self._out.add_to(rows, attended)
        inner = self._fc1.by_block(rows, after=self._after)
        self._fc2.add_to(rows, inner if self._after != "none" else self._activate(inner))

    def _attend(self, hidden: Float[Tensor, "pos width"], valid: int) -> Float[Tensor, "pos width"]:
        positions, width = hidden.shape
        qkv = torch.cat(run_per_sample(self._qkv.by_block, blocks_of(hidden), size=len))
        # (3, head, pos, head_dim)
        query, key, value = qkv.view(positions, 3, self._heads, -1).permute(1, 2, 0, 3).contiguous()
        if self._by_head:
            attended = _attend_by_head(query, key, value, valid)
        else:
            # As a batch of one: otherwise the fused kernel is not used, 3 times slower.
            batch = query[None], key[None, :, :valid], value[None, :, :valid]
            attended = F.scaled_dot_product_attention(*batch, scale=1.0)[0]
        return attended.transpose(0, 1).reshape(positions, width)


def _attend_by_head(query: Heads, key: Heads, value: Heads, valid: int) -> Heads:
    attended = torch.empty_like(query)

    def attend(head: int) -> None:
        keys, values = key[head].t(), value[head]
        for first in range(0, len(keys[0]), _ATTENTION_ROWS):
            rows = slice(first, first + _ATTENTION_ROWS)
            scores = torch.mm(query[head, rows], keys)
            if valid < scores.shape[1]:
                # Masked, not sliced: oneDNN compiles a product for every shape.
                scores[:, valid:] = -torch.inf
            torch.mm(scores.softmax(dim=1), values, out=attended[head, rows])

    run_per_sample(attend, range(len(query)), size=lambda head: 1)
    return attended


def copied_layers(layers: nn.ModuleList, *, consume: bool) -> Iterator[nn.Module]:
    """Yield the layers of a network to be copied; with `consume` each is deleted after that.

    Otherwise all originals and copies are in memory at the peak of loading.
    """
    if not consume:
        yield from layers
        return
    while len(layers):
        yield layers.pop(0)
        return_freed_memory()


def blocks_of(rows: Float[Tensor, "pos width"]) -> tuple[Tensor, ...]:
    """Return the positions of a window in blocks that are multiplied together."""
    return torch.split(rows, _BLOCK_ROWS)


class PackedConvolution:
    """An `nn.Conv1d` of odd size with same padding, followed by `after`, as products of rows."""

    # With AMX the two of whisper-base take 5 ms instead of 22 by oneDNN's convolutions (one core);
    # without, they were not measured. Never in 8 bits.

    def __init__(self, conv: nn.Conv1d, *, after: Fused = "none") -> None:
        channels, self._inputs, self._size = conv.weight.shape
        self._stride = conv.stride[0]
        self._after = after
        assert conv.bias is not None
        # Without random initialization, which would affect later sampling.
        linear = nn.Linear(1, 1, device="meta")
        weight = conv.weight.detach().transpose(1, 2).reshape(channels, -1)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
        self._map = Projection([linear])

    def __call__(self, frames: Float[Tensor, "frame channel"]) -> Float[Tensor, "pos out"]:
        """Apply the convolution to the frames of a window, zero-padded at both ends."""
        around = self._size // 2
        padded = F.pad(frames, (0, 0, around, around)).contiguous()
        # Each row of the product reads `size` frames, `stride` after those of the previous row.
        positions = -(-len(frames) // self._stride)
        seen = padded.as_strided(
            (positions, self._size * self._inputs), (self._stride * self._inputs, 1)
        )
        return torch.cat(run_per_sample(self._multiply, blocks_of(seen), size=len))

    def _multiply(self, rows: Float[Tensor, "row seen"]) -> Float[Tensor, "row out"]:
        return self._map.by_block(rows.contiguous(), after=self._after)


Encoder = TypeVar("Encoder", bound=FeatureEncoder)


class FusedEncoderBlock(nn.Module):
    """An `EncoderBlock` for inference on a GPU, equal to it within rounding; shares all modules.

    Queries, keys and values are one product without copies: a block needs three products less per
    batch, and no additional memory for weights. Training the block further requires a new one.
    """

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        attention = block.self_attn
        linears = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._heads = attention.heads
        self._weight = stack_in_place(linears)
        with torch.inference_mode():
            self._bias = stacked_bias(linears, [1.0] * len(linears))
        self._activate = block.activate
        self.self_attn_layer_norm, self.out_proj = block.self_attn_layer_norm, attention.out_proj
        self.final_layer_norm, self.fc1, self.fc2 = block.final_layer_norm, block.fc1, block.fc2

    def forward(
        self,
        hidden: Float[Tensor, "batch pos width"],
        *,
        mask: Float[Tensor, "#batch 1 1 pos"] | None = None,
        head_mask: Tensor | None = None,
        record: Record = NOTHING,
    ) -> Float[Tensor, "batch pos width"]:
        """Attend to every position that `mask` allows; modifies `hidden`."""
        assert head_mask is None, "fused attention has no weights to mask"
        assert record.own is None, "fused attention has no weights to record"
        qkv = F.linear(self.self_attn_layer_norm(hidden), self._weight, self._bias)
        # Strided views: fused kernels read them without a copy.
        apart = qkv.view(*hidden.shape[:2], 3, self._heads, -1)
        query, key, value = apart.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden += self.out_proj(merge_heads(attended))
        hidden += self.fc2(self._activate(self.fc1(self.final_layer_norm(hidden))))
        return bounded(hidden)


def fused_encoder(encoder: Encoder) -> Encoder:
    """Return an encoder of fused blocks that shares everything else with `encoder`.

    The fused modules keep their names and values, as views of the fused weights.
    """
    fused = copy.copy(encoder)
    blocks = [
        FusedEncoderBlock(layer) for layer in encoder.layers if isinstance(layer, EncoderBlock)
    ]
    fused._modules = {**encoder._modules, "layers": nn.ModuleList(blocks)}
    return fused


def stack_in_place(linears: Sequence[nn.Linear]) -> Float[Tensor, "out width"]:
    """Stack the weights of maps with one input, which become views of the stack."""
    weights = [linear.weight for linear in linears]
    sizes = [len(weight) for weight in weights]
    whole = weights[0].detach()
    if not _lie_together(weights):
        with torch.inference_mode(False):  # they may be trained further
            whole = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, torch.split(whole, sizes), strict=True):
            weight.data = part
        return whole
    return whole.as_strided((sum(sizes), whole.shape[1]), whole.stride())


def _lie_together(weights: Sequence[Tensor]) -> bool:
    # Weights that are already stacked are not stacked again.
    offset = weights[0].storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
        if not same or weight.storage_offset() != offset or not weight.is_contiguous():
            return False
        offset += weight.numel()
    return True
