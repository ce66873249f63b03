"""Fused, packed and 8-bit products against the linear maps they are made of."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.families.layers.projection import (
    Int8Weights,
    NormedProjection,
    Projection,
    smoothed,
)
from tests.support.slots import needs_int8

# float32: other order of sums; bfloat16: one rounding of outputs of about 1.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@torch.inference_mode()
def test_one_map_is_that_map() -> None:
    for (dtype, tolerance), shape, (inputs, outputs) in itertools.product(
        TOLERANCES.items(),
        [(1,), (8,), (3, 5), (300,)],
        [(64, 256), (24, 7), (1, 1), (512, 1000)],
    ):
        linear = nn.Linear(inputs, outputs, dtype=dtype)
        hidden = torch.randn(*shape, inputs, dtype=dtype)
        found, expected = Projection([linear])(hidden), linear(hidden)
        assert found.dtype == dtype
        close = torch.allclose(found, expected, atol=tolerance, rtol=tolerance)
        assert close, (dtype, shape, inputs, outputs)


def test_several_maps_are_concatenated_scaled_and_may_lack_biases() -> None:
    query, key, value = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 8)
    hidden = torch.randn(2, 3, 32)[..., ::2]  # inputs need not be contiguous
    with torch.inference_mode():
        found = Projection([query, key, value], scales=[0.25])(hidden)
    expected = torch.cat([query(hidden) * 0.25, key(hidden), value(hidden)], dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    expected.sum().backward()
    assert all(linear.weight.grad is not None for linear in (query, key, value))


def test_what_a_row_gives_does_not_depend_on_how_many_there_are() -> None:
    linear = nn.Linear(2048, 512).to(torch.bfloat16)
    projection = Projection([linear])
    rows = torch.randn(20, 8, 2048, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.inference_mode():
        for batch in rows:
            together = projection(batch)
            for number in range(1, 8):
                assert torch.equal(projection(batch[:number]), together[:number])


# Weights and inputs are each off by up to half a step: of 127 steps to the largest number where a
# row has its own scale, of 254 from the lowest to the highest where a block shares one.
ROW_STEPS, BLOCK_STEPS, WEIGHT_STEPS = 127, 254, 127
# Of the outputs' own type, once.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def maps(outputs: int, inputs: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Int8Weights]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    return weight, bias, Int8Weights(weight, bias)


def rows(count: int, width: int, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.linspace(-3, 2, count).unsqueeze(1)
    return (torch.randn(count, width, generator=generator) * sizes).to(dtype)


def largest_error(weight: Tensor, hidden: Tensor, input_step: Tensor) -> Tensor:
    """How far off a sum of products of rounded numbers can be, at the very worst."""
    hidden, off = hidden.double(), input_step.double() / 2
    weight_off = weight.double().abs().amax(dim=1) / WEIGHT_STEPS / 2  # of each output
    of_inputs = off * weight.double().abs().sum(dim=1)
    of_weights = hidden.abs().sum(dim=1, keepdim=True) * weight_off
    return of_inputs + of_weights + weight.shape[1] * off * weight_off


@needs_int8
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_products_are_as_near_as_8_bits_allow(dtype: torch.dtype) -> None:
    for outputs, inputs in ((7, 24), (1, 1), (100, 64), (64, 515)):
        weight, bias, found_by = maps(outputs, inputs)
        hidden = rows(33, inputs, dtype=dtype)
        step = hidden.double().abs().amax(dim=1, keepdim=True) / ROW_STEPS
        allowed = largest_error(weight, hidden, step) * 1.001 + 1e-6
        assert_near(found_by.by_row(hidden), hidden, weight, bias, allowed)
    weight, bias, found_by = maps(100, 64)
    for shift in (0.0, 5.0, -5.0):
        hidden = (torch.randn(33, 64) + shift).to(dtype)
        low, high = hidden.double().min().clamp(max=0.0), hidden.double().max().clamp(min=0.0)
        # The zero point is rounded too: up to another half step for every input.
        allowed = largest_error(weight, hidden, 2 * (high - low) / BLOCK_STEPS)
        assert_near(found_by.by_block(hidden), hidden, weight, bias, allowed)


def assert_near(
    found: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, allowed: Tensor
) -> None:
    assert found.dtype == hidden.dtype
    expected = hidden.double() @ weight.double().T + bias
    error = (found.double() - expected).abs()
    assert (error <= allowed + ROUNDING[hidden.dtype] * expected.abs()).all(), weight.shape


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@needs_int8
@DTYPES
@pytest.mark.parametrize("inputs", [24, 512])
def test_a_row_is_the_same_alone_and_in_any_company(dtype: torch.dtype, inputs: int) -> None:
    _, _, found_by = maps(40, inputs)
    hidden = rows(50, inputs, dtype=dtype)
    together = found_by.by_row(hidden)
    for count in (1, 2, 3, 16, 17, 49):
        assert torch.equal(found_by.by_row(hidden[-count:]), together[-count:])
    others = torch.cat([torch.full((3, inputs), 1e4, dtype=dtype), hidden.flip(0)])
    assert torch.equal(found_by.by_row(others)[3:].flip(0), together)


@needs_int8
def test_adding_is_adding_in_float32() -> None:
    weight, bias, _ = maps(40, 64)
    for offsets in (bias, None):
        found_by = Int8Weights(weight, offsets)
        for hidden in (rows(9, 64), rows(9, 64, dtype=torch.bfloat16)):
            target = torch.randn(9, 40)
            expected = target + found_by.by_row(hidden.float())  # no rounding to bfloat16
            found_by.add_by_row(hidden, target)
            torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)


@needs_int8
@DTYPES
def test_constants_keep_their_size(dtype: torch.dtype) -> None:
    for size in (1e30, -1e30):
        tall = torch.full((2, 8), size, dtype=dtype)
        product = Int8Weights(torch.eye(8), None).by_block(tall)
        torch.testing.assert_close(product, tall, rtol=0.01, atol=0.0)


@needs_int8
@DTYPES
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_does_not_become_one(dtype: torch.dtype, bad: float) -> None:
    weight, bias, _ = maps(40, 64)
    weight[3] = 0.0
    found_by = Int8Weights(weight, bias)
    hidden = torch.randn(5, 64).to(dtype)
    expected = found_by.by_row(hidden)
    hidden[2, 7] = bad
    found = found_by.by_row(hidden)
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(found[others], expected[others])  # nobody else's row
    assert not found[2].isfinite().any()
    assert found_by.by_block(hidden).isnan().all()
    assert found_by.by_block(hidden, after="gelu").isnan().all()


def normed(width: int, *, outliers: int, seed: int = 0) -> tuple[nn.LayerNorm, nn.Linear]:
    """A norm of which a few channels are 40 times as large as the others, and a map after it."""
    generator = torch.Generator().manual_seed(seed)
    norm, linear = nn.LayerNorm(width), nn.Linear(width, 96)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.2 * torch.randn(width, generator=generator))
        norm.bias.copy_(0.3 * torch.randn(width, generator=generator))
        norm.weight[:outliers] *= 40.0
        linear.weight.copy_(torch.randn(96, width, generator=generator))
        linear.weight[:, :outliers] /= 10.0
    return norm, linear


@needs_int8
@DTYPES
@pytest.mark.parametrize("wide", [True, False])
@torch.inference_mode()
def test_with_channels_that_stand_out_evening_out_loses_far_less(
    dtype: torch.dtype, wide: bool
) -> None:
    norm, linear = normed(256, outliers=4)
    hidden = torch.randn(40, 256)
    expected = linear(norm(hidden))
    norm, linear = norm.to(dtype), linear.to(dtype)
    given = hidden if wide else hidden.to(dtype)
    evened = NormedProjection(norm, [linear], int8=True, wide=wide)
    plain = Projection([linear], int8=True)
    states = norm(hidden.to(dtype))
    for found, without in (
        (evened(given), plain(states)),
        (evened.by_block(given), plain.by_block(states)),
    ):
        assert found.dtype == dtype
        error = (found.float() - expected).norm() / expected.norm()
        assert error < 0.4 * (without.float() - expected).norm() / expected.norm()
        assert error < 0.02


@needs_int8
@torch.inference_mode()
def test_evening_out_changes_nothing_but_for_rounding_even_where_channels_are_dead() -> None:
    norm, linear = normed(64, outliers=3)
    before = norm.weight.clone(), norm.bias.clone()
    even, factors = smoothed(norm, [linear])
    hidden = torch.randn(20, 64)
    found = F.linear(even(hidden), linear.weight * factors, linear.bias)
    torch.testing.assert_close(found, linear(norm(hidden)), rtol=1e-4, atol=1e-4)
    assert torch.equal(norm.weight, before[0])  # the model's own norm stays as it was
    assert torch.equal(norm.bias, before[1])
    norm, linear = normed(64, outliers=0)
    norm.weight[:2] = norm.bias[:2] = 0.0
    linear.weight[:, 1:3] = 0.0
    expected = linear(norm(hidden))
    found = NormedProjection(norm, [linear], int8=True)(hidden)
    assert (found - expected).norm() < 0.02 * expected.norm()
