"""Linear maps in 8-bit integers, against the same maps in float32."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.families.layers.projection import (
    Int8Weights,
    NormedProjection,
    Projection,
    can_use_int8,
    smoothed,
)

pytestmark = pytest.mark.skipif(
    not can_use_int8(), reason="this processor or this torch has no fast 8-bit products"
)

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


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(7, 24), (1, 1), (100, 64), (64, 515)])
def test_by_row_is_as_near_as_8_bits_for_each_row_allow(
    dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    weight, bias, found_by = maps(outputs, inputs)
    hidden = rows(33, inputs, dtype=dtype)
    found = found_by.by_row(hidden)
    assert found.dtype == dtype
    expected = hidden.double() @ weight.double().T + bias
    step = hidden.double().abs().amax(dim=1, keepdim=True) / ROW_STEPS
    allowed = largest_error(weight, hidden, step) * 1.001 + ROUNDING[dtype] * expected.abs() + 1e-6
    assert ((found.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_by_block_is_as_near_as_8_bits_for_all_rows_allow(dtype: torch.dtype, shift: float) -> None:
    weight, bias, found_by = maps(100, 64)
    hidden = (torch.randn(33, 64) + shift).to(dtype)
    found = found_by.by_block(hidden)
    assert found.dtype == dtype
    expected = hidden.double() @ weight.double().T + bias
    low, high = hidden.double().min().clamp(max=0.0), hidden.double().max().clamp(min=0.0)
    # The zero point is rounded too: up to another half step for every input.
    allowed = largest_error(weight, hidden, 2 * (high - low) / BLOCK_STEPS)
    assert ((found.double() - expected).abs() <= allowed + ROUNDING[dtype] * expected.abs()).all()


@pytest.mark.parametrize(
    ("outputs", "inputs", "kind"),
    [(384, 384, "by_row"), (1536, 384, "by_block"), (384, 1536, "by_row")],
)
def test_on_what_networks_have_about_one_percent_is_lost(
    outputs: int, inputs: int, kind: str
) -> None:
    weight, bias, found_by = maps(outputs, inputs)
    hidden = torch.randn(40, inputs)
    expected = hidden @ weight.T + bias
    error = getattr(found_by, kind)(hidden) - expected
    assert error.norm() < 0.015 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inputs", [24, 512])
def test_a_row_is_the_same_alone_and_in_any_company(dtype: torch.dtype, inputs: int) -> None:
    _, _, found_by = maps(40, inputs)
    hidden = rows(50, inputs, dtype=dtype)
    together = found_by.by_row(hidden)
    added = torch.zeros(50, 40)
    found_by.add_by_row(hidden, added)
    for count in (1, 2, 3, 16, 17, 49):
        some = hidden[-count:]
        assert torch.equal(found_by.by_row(some), together[-count:])
        target = torch.zeros(count, 40)
        found_by.add_by_row(some, target)
        assert torch.equal(target, added[-count:])
    others = torch.cat([torch.full((3, inputs), 1e4, dtype=dtype), hidden.flip(0)])
    assert torch.equal(found_by.by_row(others)[3:].flip(0), together)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_nor_does_a_row_depend_on_how_threads_share_the_work(threads: int) -> None:
    _, _, found_by = maps(5187, 64)
    hidden = rows(16, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = found_by.by_row(hidden)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat([found_by.by_row(row) for row in hidden.split(1)]), together)


@pytest.mark.parametrize("bias", [True, False])
def test_adding_is_adding_in_float32(bias: bool) -> None:
    weight, offsets, _ = maps(40, 64)
    found_by = Int8Weights(weight, offsets if bias else None)
    hidden = rows(9, 64)
    target = torch.randn(9, 40)
    expected = target + found_by.by_row(hidden)
    found_by.add_by_row(hidden, target)
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)
    target = torch.zeros(9, 40)
    found_by.add_by_row(hidden.bfloat16(), target)
    wide = found_by.by_row(hidden.bfloat16().float())
    torch.testing.assert_close(target, wide, rtol=1e-5, atol=1e-5)  # no rounding to bfloat16


def test_gelu_is_the_exact_one() -> None:
    _, _, found_by = maps(100, 64)
    hidden = torch.randn(20, 64)
    expected = F.gelu(found_by.by_block(hidden))
    torch.testing.assert_close(found_by.by_block(hidden, after="gelu"), expected)


def test_a_map_without_bias_takes_zeros_to_zeros() -> None:
    weight, _, _ = maps(40, 64)
    found_by = Int8Weights(weight, None)
    zeros = torch.zeros(3, 64)
    assert not found_by.by_row(zeros).any()
    assert not found_by.by_block(zeros).any()


def test_zeros_give_the_bias_and_a_zero_row_of_weights_its_bias() -> None:
    weight, bias, _ = maps(40, 64)
    weight[3] = 0.0
    found_by = Int8Weights(weight, bias)
    zeros, hidden = torch.zeros(3, 64), torch.randn(5, 64)
    for kind in (found_by.by_row, found_by.by_block):
        assert torch.equal(kind(zeros), bias.expand(3, 40))
        torch.testing.assert_close(kind(hidden)[:, 3], bias[3].expand(5))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_of_one_sign_and_constants_keep_their_size(dtype: torch.dtype, sign: float) -> None:
    found_by = Int8Weights(torch.eye(8), None)
    hidden = sign * (torch.rand(4, 8) + 10.0)
    for kind in (found_by.by_row, found_by.by_block):
        torch.testing.assert_close(
            kind(hidden.to(dtype)).float(), hidden, rtol=0.01 + ROUNDING[dtype], atol=0.0
        )
    tall = torch.full((2, 8), sign * 1e30, dtype=dtype)
    torch.testing.assert_close(found_by.by_block(tall), tall, rtol=0.01, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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
    target = torch.zeros(5, 40)
    found_by.add_by_row(hidden, target)
    assert not target[2].isfinite().any()
    assert target[others].isfinite().all()
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


@torch.inference_mode()
def test_evening_out_changes_nothing_but_for_rounding() -> None:
    norm, linear = normed(64, outliers=3)
    before = norm.weight.clone(), norm.bias.clone()
    even, factors = smoothed(norm, [linear])
    hidden = torch.randn(20, 64)
    found = F.linear(even(hidden), linear.weight * factors, linear.bias)
    torch.testing.assert_close(found, linear(norm(hidden)), rtol=1e-4, atol=1e-4)
    assert torch.equal(norm.weight, before[0])  # the model's own norm stays as it was
    assert torch.equal(norm.bias, before[1])


@torch.inference_mode()
def test_evening_out_makes_the_channels_alike() -> None:
    norm, linear = normed(64, outliers=3)
    even, _ = smoothed(norm, [linear])
    hidden = torch.randn(500, 64)
    spread, was = (n(hidden).abs().amax(dim=0) for n in (even, norm))
    assert spread.max() / spread.median() < 0.2 * was.max() / was.median()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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


@torch.inference_mode()
def test_dead_channels_and_dead_weights_are_no_trouble() -> None:
    norm, linear = normed(64, outliers=0)
    norm.weight[:2] = 0.0
    norm.bias[:2] = 0.0
    linear.weight[:, 1:3] = 0.0
    hidden = torch.randn(20, 64)
    expected = linear(norm(hidden))
    found = NormedProjection(norm, [linear], int8=True)(hidden)
    assert (found - expected).norm() < 0.02 * expected.norm()
