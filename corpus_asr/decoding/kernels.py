"""Triton kernels for a GPU, each with an equivalent torch function as its fallback.

A kernel is compared with its fallback at its first use in a process: one that fails to compile, or
returns other values, is not used again. Triton's interpreter runs the kernels in tests.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int, Num

logger = logging.getLogger(__name__)

# CUDA builds of torch include Triton; other builds cannot import it.
_IS_OF_USE = torch.version.cuda is not None or os.environ.get("TRITON_INTERPRET") == "1"
_HAS_TRITON = _IS_OF_USE and importlib.util.find_spec("triton") is not None
# A block has the token indices of one window; the decoder's maximum length fits.
_MOST_TOKENS = 1024
# Positions per program, three programs per window whatever the number of rows, since results must
# not depend on it; positions per read; warps; pipelined reads. On an H200 this takes 121 us for 64
# rows of 20 heads and 1,500 positions in float16, 4.05 TB/s where a copy has 4.19. With a common
# maximum of all positions in each round, four warps wait for each other and it takes 212 us.
_PART, _AT_ONCE, _WARPS, _STAGES = 512, 32, 2, 3
# From compute capability 8.9 (Ada, Hopper), GPUs read 8-bit floats natively: 72 instead of 108 us.
_READS_FLOAT8 = (8, 9)
_VOCAB_AT_ONCE = 1024

Close = Callable[[Any, Any, tuple[Any, ...]], bool]


def _equal(found: Tensor, expected: Tensor, arguments: tuple[Any, ...]) -> bool:
    return torch.equal(found, expected)


class Checked:
    """A kernel with its equivalent function, which may modify its arguments.

    They are compared for each combination of argument types by `close(found, expected, arguments)`;
    by default results must be equal.
    """

    def __init__(
        self, kernel: Callable[..., Any], plain: Callable[..., Any], *, close: Close = _equal
    ) -> None:
        self._kernel, self._plain, self._close = kernel, plain, close
        self._right: dict[Hashable, bool] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Return the result of the kernel, or of the equivalent function."""
        if not _HAS_TRITON:
            return self._plain(*arguments)
        kind = tuple(
            argument.dtype if isinstance(argument, Tensor) else argument for argument in arguments
        )
        if kind in self._right:
            return (self._kernel if self._right[kind] else self._plain)(*arguments)
        output, why = self._tried(arguments)
        expected = self._plain(*arguments)
        self._right[kind] = output is not None and self._close(output, expected, arguments)
        if not self._right[kind]:
            why = why or "its result differs"
            name = self._kernel.__name__
            logger.warning("trying the Triton kernel %s: %s; continuing without", name, why)
        return expected

    def _tried(self, arguments: tuple[Any, ...]) -> tuple[Any, str]:
        try:
            return self._kernel(*arguments), ""
        except torch.OutOfMemoryError:
            raise  # not a kernel error: it may fit with fewer slots
        except Exception as error:  # compilers and drivers raise many types
            return None, repr(error)


if _HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _diagonals(  # type: ignore[no-untyped-def]
        costs,
        sums,
        diagonals,
        stride,
        width,
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        # One program per window, as windows are independent.
        token = tl.program_id(0) * width + tl.arange(0, BLOCK) + 1
        inside = tl.arange(0, BLOCK) + 1 < width
        infinite = float("inf")
        for diagonal in range(2, diagonals):
            second_last = sums + (diagonal - 2) * stride + token
            last = sums + (diagonal - 1) * stride + token
            both = tl.load(second_last - 1, mask=inside, other=infinite)
            text = tl.load(last - 1, mask=inside, other=infinite)
            along = tl.load(last, mask=inside, other=infinite)
            cost = tl.load(costs + diagonal * stride + token, mask=inside, other=infinite)
            cheapest = tl.where(both == text, infinite, tl.minimum(both, text))
            cheapest = tl.minimum(cheapest, along) + cost
            tl.store(sums + diagonal * stride + token, cheapest, mask=inside)
            # Other threads of the block read it in the next round.
            tl.debug_barrier()

    @triton.jit  # type: ignore[untyped-decorator]
    def _read(where, seen, FLOAT8: tl.constexpr, NATIVE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
        values = tl.load(where, mask=seen, other=0)
        if FLOAT8:
            if NATIVE:
                values = values.to(tl.float8e4nv, bitcast=True).to(tl.float16)
            else:
                # Sign, exponent and fraction in the bits of float16, whose exponent bias is larger
                # by 8: the values are 256 times too small, which the scales correct.
                bits = values.to(tl.uint16)
                half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
                values = half.to(tl.float16, bitcast=True)
        return values.to(tl.float32)

    @triton.jit  # type: ignore[untyped-decorator]
    def _attend_part(  # type: ignore[no-untyped-def]
        queries, keys, values, scales, unseen, attended, sums,
        query_row, query_head, key_row, key_head, key_pos, value_row, value_head, value_pos,
        unseen_row, unseen_pos, scale_side, positions, heads, width,
        MASKED: tl.constexpr, FLOAT8: tl.constexpr, NATIVE: tl.constexpr,  # noqa: N803
        PART: tl.constexpr, AT_ONCE: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        # One program per row, head and range of positions; partial results are added up later.
        row = (tl.program_id(0) // heads).to(tl.int64)
        head = tl.program_id(0) % heads
        first = tl.program_id(1) * PART
        channel = tl.arange(0, WIDTH)
        in_width = channel < width
        query = queries + row * query_row + head * query_head + channel
        query = tl.load(query, mask=in_width, other=0).to(tl.float32)
        too_little: tl.constexpr = 256.0 if FLOAT8 and not NATIVE else 1.0
        if FLOAT8:
            query *= tl.load(scales + row * heads + head) * too_little
        keys += row * key_row + head * key_head
        values += row * value_row + head * value_head
        # One accumulator per place in a round, so that rounds need no reduction.
        most = tl.full([AT_ONCE], float("-inf"), dtype=tl.float32)
        total = tl.full([AT_ONCE], 0, dtype=tl.float32)
        mean = tl.full([AT_ONCE, WIDTH], 0, dtype=tl.float32)
        last = tl.minimum(first + PART, positions)
        for start in tl.range(first, last, AT_ONCE, num_stages=STAGES):
            pos = start + tl.arange(0, AT_ONCE)
            seen = pos < positions
            if MASKED:
                hidden = tl.load(unseen + row * unseen_row + pos * unseen_pos, mask=seen, other=1)
                seen = seen & (hidden == 0)
            # Masked positions may contain anything and are not read.
            both = seen[:, None] & in_width[None, :]
            key = _read(keys + pos[:, None] * key_pos + channel[None, :], both, FLOAT8, NATIVE)
            value = values + pos[:, None] * value_pos + channel[None, :]
            value = _read(value, both, FLOAT8, NATIVE)
            score = tl.where(seen, tl.sum(query[None, :] * key, axis=1), float("-inf"))
            highest = tl.maximum(most, score)
            # If all values are minus infinity, subtract 0 instead of the maximum.
            finite = tl.where(highest == float("-inf"), 0.0, highest)
            weight = tl.exp(score - finite)
            shrunk = tl.exp(most - finite)
            total = total * shrunk + weight
            mean = mean * shrunk[:, None] + weight[:, None] * value
            most = highest
        highest = tl.max(most, axis=0)
        share = tl.exp(most - tl.where(highest == float("-inf"), 0.0, highest))
        mean = tl.sum(mean * share[:, None], axis=0)
        if FLOAT8:
            mean *= tl.load(scales + scale_side + row * heads + head) * too_little
        part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(attended + part * width + channel, mean, mask=in_width)
        tl.store(sums + 2 * part, highest)
        tl.store(sums + 2 * part + 1, tl.sum(total * share, axis=0))

    @triton.jit  # type: ignore[untyped-decorator]
    def _attend_whole(  # type: ignore[no-untyped-def]
        attended, sums, result, parts, width,
        PARTS: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        number = tl.arange(0, PARTS)
        inside = number < parts
        channel = tl.arange(0, WIDTH)
        in_width = channel < width
        part = tl.program_id(0).to(tl.int64) * parts + number
        most = tl.load(sums + 2 * part, mask=inside, other=float("-inf"))
        total = tl.load(sums + 2 * part + 1, mask=inside, other=0.0)
        mean = attended + part[:, None] * width + channel[None, :]
        mean = tl.load(mean, mask=inside[:, None] & in_width[None, :], other=0.0)
        weight = tl.exp(most - tl.max(most, axis=0))
        mean = tl.sum(weight[:, None] * mean, axis=0) / tl.sum(weight * total, axis=0)
        result += tl.program_id(0).to(tl.int64) * width + channel
        tl.store(result, mean.to(result.dtype.element_ty), mask=in_width)

    @triton.jit  # type: ignore[untyped-decorator]
    def _mix(values: tl.tensor):  # type: ignore[no-untyped-def]
        # As in `options.gumbel_noise`.
        values = values * -7046029254386353131
        values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
        values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
        return values ^ ((values >> 31) & 0x1FFFFFFFF)

    @triton.jit  # type: ignore[untyped-decorator]
    def _exp_from(value: tl.tensor, highest: tl.tensor):  # type: ignore[no-untyped-def]
        # 0 for minus infinity, also if that is the maximum.
        return tl.where(value == float("-inf"), 0.0, tl.exp(value - highest))

    @triton.jit  # type: ignore[untyped-decorator]
    def _choose(  # type: ignore[no-untyped-def]
        logits, bias, grammar, last_is_timestamp, before_is_timestamp, last_timestamp,
        temperatures, seeds, lengths, tokens, logprobs,
        logits_row, bias_row, vocab, begin, end,
        SAMPLED: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        # One program per row, which reads it once. Text and timestamps are kept separate until all
        # are read: the timestamps together may be more likely than any text token.
        row = tl.program_id(0).to(tl.int64)
        rules = tl.load(grammar + row) != 0
        last = tl.load(last_is_timestamp + row) != 0
        one_before = tl.load(before_is_timestamp + row) != 0
        complete, is_open = rules & last & one_before, rules & last & (one_before == 0)
        lowest = tl.load(last_timestamp + row) + tl.where(is_open, 0, 1)
        if SAMPLED:
            temperature = tl.load(temperatures + row)
            stream = _mix(tl.load(seeds + row) + _mix(tl.load(lengths + row)))
        infinite = float("-inf")
        nothing = tl.full([BLOCK], infinite, dtype=tl.float32)
        # For text and timestamps each: the highest noisy value, its token and its score; the
        # highest score and the sum of exponentials relative to it.
        text_best, text_token, text_score = nothing, tl.full([BLOCK], 0, dtype=tl.int32), nothing
        time_best, time_token, time_score = nothing, tl.full([BLOCK], 0, dtype=tl.int32), nothing
        text_most, text_sum = nothing, tl.full([BLOCK], 0, dtype=tl.float32)
        time_most, time_sum = nothing, tl.full([BLOCK], 0, dtype=tl.float32)
        for start in range(0, vocab, BLOCK):
            token = start + tl.arange(0, BLOCK)
            inside = token < vocab
            score = tl.load(logits + row * logits_row + token, mask=inside, other=infinite)
            score += tl.load(bias + row * bias_row + token, mask=inside, other=0.0)
            is_time = token >= begin
            too_early = complete | (rules & (token - begin < lowest))
            forbidden = (is_time & too_early) | (is_open & (token < end))
            score = tl.where(forbidden, infinite, score)
            value = score
            if SAMPLED:  # noqa: SIM102
                # Skipped for other rows: it takes longer than everything else.
                if temperature > 0:
                    bits = _mix(stream + token)
                    uniform = (((bits >> 41) & 0x7FFFFF).to(tl.float32) + 0.5) / 8388608.0
                    value = score + temperature * -tl.log(-tl.log(uniform))
            text = tl.where(is_time, infinite, score)
            highest = tl.maximum(text_most, text)
            text_sum = text_sum * _exp_from(text_most, highest) + _exp_from(text, highest)
            text_most = highest
            better = (value > text_best) & (is_time == 0)
            text_best = tl.where(better, value, text_best)
            text_token = tl.where(better, token, text_token)
            text_score = tl.where(better, score, text_score)
            time = tl.where(is_time, score, infinite)
            highest = tl.maximum(time_most, time)
            time_sum = time_sum * _exp_from(time_most, highest) + _exp_from(time, highest)
            time_most = highest
            better = (value > time_best) & is_time
            time_best = tl.where(better, value, time_best)
            time_token = tl.where(better, token, time_token)
            time_score = tl.where(better, score, time_score)
        most_text, most_time = tl.max(text_most, axis=0), tl.max(time_most, axis=0)
        all_text = tl.sum(text_sum * _exp_from(text_most, most_text), axis=0)
        all_time = tl.sum(time_sum * _exp_from(time_most, most_time), axis=0)
        prefer_time = rules & (most_time + tl.log(all_time) > most_text)
        most = tl.where(prefer_time, most_time, tl.maximum(most_text, most_time))
        total = tl.where(prefer_time, 0.0, all_text * _exp_from(most_text, most))
        total += all_time * _exp_from(most_time, most)
        # The first of equal values, as in torch.
        text_best = tl.where(prefer_time, infinite, text_best)
        best = tl.maximum(tl.max(text_best, axis=0), tl.max(time_best, axis=0))
        text_token = tl.where(text_best == best, text_token, vocab)
        time_token = tl.where(time_best == best, time_token, vocab)
        chosen = tl.minimum(tl.min(text_token, axis=0), tl.min(time_token, axis=0))
        score = tl.maximum(
            tl.max(tl.where(text_token == chosen, text_score, infinite), axis=0),
            tl.max(tl.where(time_token == chosen, time_score, infinite), axis=0),
        )
        # For NaN scores any token will do: its probability shows the error.
        tl.store(tokens + row, tl.minimum(chosen, vocab - 1))
        tl.store(logprobs + row, score - most - tl.log(total))


def sum_diagonals(
    costs: Float[Tensor, "diagonal batch token_1"],
) -> Float[Tensor, "diagonal batch token_1"]:
    """Add up the cheapest paths in one launch; see `alignment`."""
    diagonals, batch, width = costs.shape
    if width > _MOST_TOKENS:
        raise ValueError(
            f"aligning {width - 1} tokens: expected at most {_MOST_TOKENS}; align fewer"
        )
    sums = torch.full_like(costs, torch.inf)
    sums[0, :, 0].fill_(0.0)
    launch: Any = _diagonals[(batch,)]
    launch(costs, sums, diagonals, batch * width, width, BLOCK=triton.next_power_of_2(width))
    return sums


def attend_one(
    query: Float[Tensor, "batch head 1 head_dim"],
    key: Num[Tensor, "batch head pos head_dim"],
    value: Num[Tensor, "batch head pos head_dim"],
    unseen: Bool[Tensor, "batch 1 1 pos"] | None,
    scales: Float[Tensor, "2 batch head"] | None = None,
) -> Float[Tensor, "batch head 1 head_dim"]:
    """Compute attention for one query per row, reading keys and values once, in float32.

    With `scales`, keys and values are bytes that represent `torch.float8_e4m3fn`.
    """
    batch, heads, _, width = query.shape
    positions = key.shape[2]
    parts = triton.cdiv(positions, _PART)
    programs = batch * heads
    attended = torch.empty(programs, parts, width, dtype=torch.float32, device=query.device)
    sums = torch.empty(programs, parts, 2, dtype=torch.float32, device=query.device)
    result = torch.empty(batch, heads, 1, width, dtype=query.dtype, device=query.device)
    wide = triton.next_power_of_2(width)
    launch: Any = _attend_part[(programs, parts)]
    launch(
        query, key, value, scales, unseen, attended, sums,
        *query.stride()[:2], *key.stride()[:3], *value.stride()[:3],
        *((0, 0) if unseen is None else (unseen.stride(0), unseen.stride(3))),
        0 if scales is None else scales.stride(0), positions, heads, width,
        MASKED=unseen is not None, FLOAT8=scales is not None, NATIVE=reads_float8(query.device),
        PART=_PART, AT_ONCE=_AT_ONCE, WIDTH=wide, STAGES=_STAGES, num_warps=_WARPS,
    )  # fmt: skip
    launch = _attend_whole[(programs,)]
    launch(
        attended, sums, result, parts, width,
        PARTS=triton.next_power_of_2(parts), WIDTH=wide, num_warps=1,
    )  # fmt: skip
    return result


@cache
def reads_float8(device: torch.device) -> bool:
    """Whether a GPU converts 8-bit floats in hardware."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _READS_FLOAT8


def choose_next(
    logits: Float[Tensor, "slot vocab"],
    bias: Float[Tensor, "slot vocab"],
    grammar: Bool[Tensor, " slot"],
    last_is_timestamp: Bool[Tensor, " slot"],
    before_is_timestamp: Bool[Tensor, " slot"],
    last_timestamp: Int[Tensor, " slot"],
    temperatures: Float[Tensor, " slot"],
    seeds: Int[Tensor, " slot"],
    lengths: Int[Tensor, " slot"],
    begin: int,
    end: int,
    sampled: bool,
) -> tuple[Int[Tensor, " slot"], Float[Tensor, " slot"]]:
    """Apply rules and noise; return tokens and their log-probabilities (see `options`).

    Reads the logits once; per-slot tensors are contiguous.
    """
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    launch: Any = _choose[(rows,)]
    launch(
        logits, bias, grammar, last_is_timestamp, before_is_timestamp, last_timestamp,
        temperatures, seeds, lengths, tokens, logprobs,
        logits.stride(0), bias.stride(0), vocab, begin, end,
        SAMPLED=sampled, BLOCK=min(_VOCAB_AT_ONCE, triton.next_power_of_2(vocab)),
    )  # fmt: skip
    return tokens, logprobs
