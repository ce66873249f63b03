"""Token times of windows: cross-attention while tokens are read, and the cheapest path through it.

On a CPU windows are aligned one by one, in NumPy. On a GPU the windows of an admission are aligned
in a batch on the device, and the host does not wait until results are collected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.device import upload
from corpus_asr.decoding.jobs import AlignJob, AlignResult, TokenTiming, no_numbers
from corpus_asr.decoding.kernels import Checked, sum_diagonals
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.errors import ItemError

# Windows aligned in parallel on a GPU: attention of 10 heads to 1,500 positions for 200 tokens
# takes 12 MB a window, and several copies of it exist.
_AT_ONCE = 16

# Steps of a path, as encoded in the trace.
_BOTH, _TEXT, _TIME = 0, 1, 2

# Values filtered at once: their working copies fit into a core's cache.
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Alignments:
    """Windows aligned in parallel, on the device until they are collected."""

    jobs: Sequence[AlignJob]
    logprobs: Float[Tensor, "batch token"]
    """Log-probabilities of the tokens after each row's first."""
    found: Tensor
    """Weights (batch, head, token, pos); if the jobs have a timing, the input of `_begins_in`."""

    def result(
        self, row: int, logprobs: Tensor, found: Tensor, model: SlotModel
    ) -> AlignResult | ItemError:
        """Return the result of a row from host copies of `logprobs` and `found`."""
        job = self.jobs[row]
        row_logprobs: list[float] = logprobs[row, : len(job.tokens) - 1].tolist()
        if (error := no_numbers(row_logprobs, model)) is not None:
            return error
        if job.timing is None:
            weights = found[row, :, : len(job.tokens)].numpy()
            return AlignResult(logprobs=tuple(row_logprobs), weights=weights)
        timing = job.timing
        begins = _begins_in(found[row].numpy(), count=timing.count, end=timing.positions)
        return AlignResult(logprobs=tuple(row_logprobs), begins=tuple(begins))


@torch.inference_mode()
def align_windows(
    model: SlotModel, state: Any, slots: Sequence[int], jobs: Sequence[AlignJob]
) -> dict[int, tuple[Alignments, int]]:
    """Read the jobs' tokens with the windows in `slots`; return each slot's row."""
    alignments: dict[int, tuple[Alignments, int]] = {}

    def alike(at: int) -> tuple[Any, ...]:
        timing = jobs[at].timing
        return jobs[at].heads, jobs[at].choices or 0, timing.filter_width if timing else 0

    for _, numbers in groupby(sorted(range(len(jobs)), key=alike), key=alike):
        same = list(numbers)
        # One by one on a CPU: the result of a window must not depend on others.
        most = 1 if model.device.type == "cpu" else _AT_ONCE
        for chunk in (same[at : at + most] for at in range(0, len(same), most)):
            aligned = _align(model, state, [slots[at] for at in chunk], [jobs[at] for at in chunk])
            alignments |= {slots[at]: (aligned, row) for row, at in enumerate(chunk)}
    return alignments


def _align(
    model: SlotModel, state: Any, slots: Sequence[int], jobs: Sequence[AlignJob]
) -> Alignments:
    lengths = [len(job.tokens) for job in jobs]
    padded = pad_sequence([torch.tensor(job.tokens) for job in jobs], batch_first=True)
    (tokens,) = upload(model.device, padded)
    weights, hidden = model.align(state, slots, tokens, lengths, jobs[0].heads)
    logprobs = torch.zeros(tokens.shape[0], tokens.shape[1] - 1, device=model.device)
    for row, job in enumerate(jobs):  # one by one, as all logits would take gigabytes
        last = lengths[row] - 1
        scores = model.logits(hidden[row, : lengths[row]])[:-1, : job.choices].log_softmax(dim=1)
        # A token outside of the choices has no column: another is read and its value replaced.
        wanted = tokens[row, 1 : last + 1]
        column = wanted.clamp(max=scores.shape[1] - 1)
        token_logprobs = scores.gather(1, column.unsqueeze(1)).squeeze(1)
        logprobs[row, :last] = token_logprobs.masked_fill(column != wanted, -torch.inf)
    timings = [job.timing for job in jobs if job.timing is not None]
    if not timings:
        return Alignments(jobs, logprobs, weights.float())
    if model.device.type == "cpu":
        steps = path_steps(weights[0].float().numpy(), timings[0])
        return Alignments(jobs, logprobs, torch.from_numpy(steps).unsqueeze(0))
    return Alignments(jobs, logprobs, _steps_on_device(weights, lengths, timings))


def token_begins(
    weights: Float[np.ndarray, "head token pos"], timing: TokenTiming
) -> tuple[int, ...]:
    """Return the position at which each of the timed tokens begins."""
    steps = path_steps(weights, timing)
    return tuple(_begins_in(steps, count=timing.count, end=timing.positions))


def path_steps(
    weights: Float[np.ndarray, "head token pos"], timing: TokenTiming
) -> Int[np.ndarray, "_ _"]:
    """Return the step by which a path reaches each timed token and position.

    Attention to padding is excluded. Each position is normalized over the tokens, prompt included,
    to measure attention relative to other tokens.
    """
    weights = weights[:, :, : timing.positions].astype(np.float32)
    weights /= _not_zero(weights.sum(axis=-1, keepdims=True))
    spread = weights.std(axis=-2, keepdims=True)
    weights -= weights.mean(axis=-2, keepdims=True)
    weights /= _not_zero(spread)
    rows = slice(timing.first, timing.first + timing.count)
    matrix = median_filter(weights, timing.filter_width).mean(axis=0)[rows]
    return _last_steps(-matrix)


def begins_on_path(cost: Float[np.ndarray, "token pos"]) -> list[int]:
    """Return where each token begins on the cheapest path from the first to the last corner.

    A path advances by one token, one position or both. On ties it advances along `pos`. Sums are
    float32, as in the references, so that paths are equal to theirs even for close sums.

    Source: Sakoe and Chiba 1978; the path is that of `_dynamic_time_warping` in transformers'
    generation_whisper.py and of `dtw_cpu` in openai-whisper's timing.py, which go cell by cell.
    Here a whole anti-diagonal is computed at a time: its cells are independent.
    """
    if cost.size == 0:
        raise ValueError(
            f"aligning tokens and positions: found a matrix of shape {cost.shape}, expected at "
            "least one of each"
        )
    return _begins_in(_last_steps(cost), count=len(cost), end=cost.shape[1])


def _last_steps(cost: Float[np.ndarray, "timed pos"]) -> Int[np.ndarray, "timed pos"]:
    # For each row and position, backward along the row: the last position that is not reached along
    # it, counted from 1 and doubled, plus one if both indices advance there.
    trace = _trace(np.ascontiguousarray(cost, dtype=np.float64))[1:, 1:]
    position = 2 * np.arange(1, trace.shape[1] + 1, dtype=np.int16)
    steps = np.where(trace == _TIME, 0, position + (trace == _BOTH)).astype(np.int16)
    return np.maximum.accumulate(steps, axis=1)


def _begins_in(steps: Int[np.ndarray, "_ _"], *, count: int, end: int) -> list[int]:
    # Backtrace from the last token and position: a token begins where its row is entered; -1 if
    # costs are NaN.
    position, begins = min(end, steps.shape[1]), []
    for token in range(count - 1, -1, -1):
        step = int(steps[token, position - 1]) if position else 0
        position = step >> 1
        begins.append(position - 1)
        position = max(0, position - (step & 1))
    return begins[::-1]


def _not_zero(divisors: Float[np.ndarray, "*_"]) -> Float[np.ndarray, "*_"]:
    # A sum is 0 only if all its terms are 0, which stay 0.
    return np.where(divisors == 0, np.float32(1), divisors)


def _steps_on_device(
    weights: Float[Tensor, "batch head token pos"],
    lengths: Sequence[int],
    timings: Sequence[TokenTiming],
) -> Int[Tensor, "batch _ _"]:
    """Compute `path_steps` for several windows on a GPU."""
    ends = [min(timing.positions, weights.shape[3]) for timing in timings]
    longest = max(ends)
    weights = weights[:, :, :, :longest].float()
    positions, tokens, first = upload(
        weights.device,
        ends,
        list(lengths),
        [timing.first for timing in timings],
    )
    heard = torch.arange(longest, device=weights.device) < positions.unsqueeze(1)  # (batch, pos)
    read = torch.arange(weights.shape[2], device=weights.device) < tokens.unsqueeze(1)
    is_inside = (heard.unsqueeze(1) & read.unsqueeze(2)).unsqueeze(1)  # (batch, 1, token, pos)
    weights = weights.masked_fill(~is_inside, 0.0)
    weights = weights / _one_if_zero(weights.sum(dim=3, keepdim=True))
    count = tokens.view(-1, 1, 1, 1)
    mean = weights.sum(dim=2, keepdim=True) / count
    apart = (weights - mean).masked_fill(~is_inside, 0.0)
    spread = (apart.square().sum(dim=2, keepdim=True) / count).sqrt()
    smooth = _median_on_device(apart / _one_if_zero(spread), positions, timings[0].filter_width)
    # Rows after a window's last token, and positions after its audio, do not affect its path.
    rows = torch.arange(max(timing.count for timing in timings), device=weights.device)
    at = (first.unsqueeze(1) + rows).clamp(max=weights.shape[2] - 1)
    matrix = smooth.mean(dim=1).gather(1, at.unsqueeze(2).expand(-1, -1, longest))
    return _warp_on_device(-matrix)


def _one_if_zero(divisors: Tensor) -> Tensor:
    return divisors.masked_fill(divisors == 0, 1.0)


def _median_on_device(
    values: Float[Tensor, "batch head token pos"], positions: Int[Tensor, " batch"], width: int
) -> Float[Tensor, "batch head token pos"]:
    """Compute `median_filter`, for each window as if it had only its own positions."""
    half = width // 2
    if half == 0:
        return values
    longest = values.shape[3]
    last = (positions - 1).unsqueeze(1)
    at = torch.arange(-half, longest + half, device=values.device).abs()
    at = torch.minimum(at, 2 * last - at).clamp(min=0)  # (batch, pos), mirrored at both ends
    index = at[:, None, None, :].expand(*values.shape[:3], -1)
    around = values.gather(3, index.clamp(max=longest - 1))
    neighbors = [around[..., shift : shift + longest].clone() for shift in range(width)]
    for rank in range(half + 1):
        for later_rank in range(rank + 1, width):
            low, high = neighbors[rank], neighbors[later_rank]
            neighbors[rank], neighbors[later_rank] = (
                torch.minimum(low, high),
                torch.maximum(low, high),
            )
    too_short = (positions <= half).view(-1, 1, 1, 1)
    return torch.where(too_short, values, neighbors[half])


def _warp_on_device(cost: Float[Tensor, "batch token pos"]) -> Int[Tensor, "batch token pos"]:
    """Compute `_trace` and `_last_steps`, one anti-diagonal of all windows at a time."""
    batch, tokens, longest = cost.shape
    width = tokens + 1
    # Row d has the cells whose token and position, counted from 1, add up to d; by token.
    shape = (tokens + longest + 1, batch, width)
    strides = (width, batch * width + 1, batch * width)  # of (batch, token, pos) in it
    costs = torch.full(shape, torch.inf, device=cost.device)
    costs.as_strided(cost.shape, strides, 2 * batch * width + 1).copy_(cost)
    sums: Tensor = _SUM_DIAGONALS(costs)

    def cells(diagonal: int, token: int) -> Float[Tensor, "batch token pos"]:
        return sums.as_strided(cost.shape, strides, diagonal * batch * width + token)

    both, text, along = cells(0, 0), cells(1, 0), cells(1, 1)
    by_both = (both < text) & (both < along)
    by_text = (text < both) & (text < along)
    position = 2 * torch.arange(1, longest + 1, device=cost.device)
    steps = (position + by_both).masked_fill(~(by_both | by_text), 0)
    return steps.cummax(dim=2).values.short()


def _sum_diagonals(
    costs: Float[Tensor, "diagonal batch token_1"],
) -> Float[Tensor, "diagonal batch token_1"]:
    """Add up the cheapest paths."""
    sums = torch.full(costs.shape, torch.inf, device=costs.device)
    sums[0, :, 0].fill_(0.0)
    # Views are created once: creating them would take longer than the sums.
    whole, sums_left, sums_right = (
        t.unbind(0) for t in (costs[:, :, 1:], sums[:, :, :-1], sums[:, :, 1:])
    )
    cheapest = torch.empty_like(sums_right[0])
    equal = torch.empty_like(cheapest, dtype=torch.bool)
    for diagonal in range(2, len(costs)):
        both, text, along = (
            sums_left[diagonal - 2],
            sums_left[diagonal - 1],
            sums_right[diagonal - 1],
        )
        # On ties neither is taken: the path advances along the positions.
        torch.eq(both, text, out=equal)
        torch.minimum(both, text, out=cheapest).masked_fill_(equal, torch.inf)
        torch.minimum(cheapest, along, out=cheapest)
        torch.add(cheapest, whole[diagonal], out=sums_right[diagonal])
    return sums


# In torch this takes five launches per anti-diagonal, of which a window has 1,600.
_SUM_DIAGONALS = Checked(sum_diagonals, _sum_diagonals)


def median_filter(
    weights: Float[np.ndarray, "*rows pos"], width: int
) -> Float[np.ndarray, "*rows pos"]:
    """Replace every value by the median of the `width` values around it along the last axis.

    The ends are reflected, without their outermost value. A last axis too short to reflect (at
    most half the width) is returned unchanged. NaN counts as larger than any number.

    Source: openai-whisper `timing.py`, `median_filter`.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"filtering weights by a median: found width {width}, expected an odd one")
    half = width // 2
    length = weights.shape[-1]
    if length <= half or half == 0:
        return weights
    rows = weights.reshape(-1, length)
    filtered = np.empty_like(rows)
    per_block = max(1, _BLOCK // length)
    for first in range(0, len(rows), per_block):
        block = np.pad(rows[first : first + per_block], ((0, 0), (half, half)), mode="reflect")
        filtered[first : first + per_block] = _medians(block, width, length)
    return filtered.reshape(weights.shape)


def _medians(padded: Float[np.ndarray, "row _"], width: int, length: int) -> np.ndarray:
    """Return the median of `width` neighbors by selection: few passes, each over whole rows.

    Sorting every window of 7 takes five times as long.
    """
    neighbors = [padded[:, at : at + length].copy() for at in range(width)]
    for rank in range(width // 2 + 1):
        smallest = neighbors[rank]
        for neighbor in neighbors[rank + 1 :]:
            larger = np.maximum(smallest, neighbor)
            np.fmin(smallest, neighbor, out=smallest)
            neighbor[...] = larger
    return neighbors[width // 2]


def _trace(cost: Float[np.ndarray, "token pos"]) -> Int[np.ndarray, "_ _"]:
    """Return for every cell (1-based) the step by which the cheapest path reaches it."""
    tokens, positions = cost.shape
    trace = np.full((tokens + 1, positions + 1), _TIME, dtype=np.int8)
    trace[1:, 0] = _TEXT
    costs, steps = cost.reshape(-1), trace.reshape(-1)
    # Sums along the last two anti-diagonals and this one, by token; infinite outside the matrix.
    second_last, last, current = (np.full(tokens + 1, np.inf, dtype=np.float32) for _ in range(3))
    second_last[0] = 0.0
    for diagonal in range(2, tokens + positions + 1):  # token + position, both from 1
        low, high = max(1, diagonal - positions), min(tokens, diagonal - 1)
        both, text, time = second_last[low - 1 : high], last[low - 1 : high], last[low : high + 1]
        by_both = (both < text) & (both < time)
        by_text = (text < both) & (text < time)
        best = np.where(by_both, both, np.where(by_text, text, time))
        first = (low - 1) * positions + diagonal - low - 1
        diagonal_costs = costs[first :: max(1, positions - 1)][: high - low + 1]
        current[low : high + 1] = diagonal_costs + best
        cells = steps[low * positions + diagonal :: positions][: high - low + 1]
        cells[by_both] = _BOTH
        cells[by_text] = _TEXT
        second_last, last, current = last, current, second_last
        current[0] = np.inf
    return trace
