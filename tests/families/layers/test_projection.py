"""Packed and 8-bit products, blocks and convolutions against those that they are made of."""

import itertools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from corpus_asr.families.layers import projection
from corpus_asr.families.layers.blocks import EncoderBlock
from corpus_asr.families.layers.packed import (
    PackedConvolution,
    PackedEncoderBlock,
    run_per_sample,
)
from corpus_asr.families.layers.projection import (
    Int8Weights,
    NormedProjection,
    PairedInt8Weights,
    Projection,
    has_fbgemm,
    has_vnni,
)
from corpus_asr.families.whisper.config import WhisperConfig
from tests.support.slots import needs_int8


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
ROW_STEPS, BLOCK_STEPS = 127, 254
WEIGHT_STEPS = {Int8Weights: 127, PairedInt8Weights: 63}

Kernel = type[Int8Weights]
KERNELS_HERE = [
    pytest.param(Int8Weights, marks=pytest.mark.skipif(not has_vnni(), reason="no VNNI")),
    pytest.param(PairedInt8Weights, marks=pytest.mark.skipif(not has_fbgemm(), reason="no FBGEMM")),
]
KERNELS = pytest.mark.parametrize("kernel", KERNELS_HERE)
# Of the outputs' own type, once.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def maps(
    kernel: Kernel, outputs: int, inputs: int, *, seed: int = 0
) -> tuple[Tensor, Tensor, Int8Weights]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    return weight, bias, kernel(weight, bias)


def rows(count: int, width: int, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.linspace(-3, 2, count).unsqueeze(1)
    return (torch.randn(count, width, generator=generator) * sizes).to(dtype)


def largest_error(
    weight: Tensor, hidden: Tensor, input_step: Tensor, *, weight_steps: int
) -> Tensor:
    """How far off a sum of products of rounded numbers can be, at the very worst."""
    hidden, off = hidden.double(), input_step.double() / 2
    weight_off = weight.double().abs().amax(dim=1) / weight_steps / 2  # of each output
    of_inputs = off * weight.double().abs().sum(dim=1)
    of_weights = hidden.abs().sum(dim=1, keepdim=True) * weight_off
    return of_inputs + of_weights + weight.shape[1] * off * weight_off


@KERNELS
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_products_are_as_near_as_8_bits_allow(kernel: Kernel, dtype: torch.dtype) -> None:
    steps = WEIGHT_STEPS[kernel]
    for outputs, inputs in ((7, 24), (1, 1), (100, 64), (64, 515)):
        weight, bias, found_by = maps(kernel, outputs, inputs)
        hidden = rows(33, inputs, dtype=dtype)
        step = hidden.double().abs().amax(dim=1, keepdim=True) / ROW_STEPS
        allowed = largest_error(weight, hidden, step, weight_steps=steps) * 1.001 + 1e-6
        assert_near(found_by.by_row(hidden), hidden, weight, bias, allowed)
    weight, bias, found_by = maps(kernel, 100, 64)
    for shift in (0.0, 5.0, -5.0):
        hidden = (torch.randn(33, 64) + shift).to(dtype)
        low, high = hidden.double().min().clamp(max=0.0), hidden.double().max().clamp(min=0.0)
        # The zero point is rounded too: up to another half step for every input.
        step = 2 * (high - low) / BLOCK_STEPS
        allowed = largest_error(weight, hidden, step, weight_steps=steps)
        assert_near(found_by.by_block(hidden), hidden, weight, bias, allowed)


def assert_near(
    found: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, allowed: Tensor
) -> None:
    assert found.dtype == hidden.dtype
    expected = hidden.double() @ weight.double().T + bias
    error = (found.double() - expected).abs()
    assert (error <= allowed + ROUNDING[hidden.dtype] * expected.abs()).all(), weight.shape


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@KERNELS
@DTYPES
@pytest.mark.parametrize("inputs", [24, 512])
def test_a_row_is_the_same_alone_and_in_any_company(
    kernel: Kernel, dtype: torch.dtype, inputs: int
) -> None:
    _, _, found_by = maps(kernel, 40, inputs)
    hidden = rows(50, inputs, dtype=dtype)
    together = found_by.by_row(hidden)
    for count in (1, 2, 3, 16, 17, 49):
        assert torch.equal(found_by.by_row(hidden[-count:]), together[-count:])
    others = torch.cat([torch.full((3, inputs), 1e4, dtype=dtype), hidden.flip(0)])
    assert torch.equal(found_by.by_row(others)[3:].flip(0), together)


@KERNELS
def test_pairs_of_the_largest_products_are_not_cut_off(kernel: Kernel) -> None:
    for sign in (1.0, -1.0):
        found = kernel(torch.full((40, 512), sign), None).by_row(torch.ones(9, 512))
        # Within half a step of 63.5; sums that are cut off at 16 bits would be half as large.
        torch.testing.assert_close(found, torch.full((9, 40), sign * 512), rtol=0.01, atol=0.0)


@KERNELS
@DTYPES
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_does_not_become_one(
    kernel: Kernel, dtype: torch.dtype, bad: float
) -> None:
    weight, bias, _ = maps(kernel, 40, 64)
    weight[3] = 0.0
    found_by = kernel(weight, bias)
    hidden = torch.randn(5, 64).to(dtype)
    expected = found_by.by_row(hidden)
    hidden[2, 7] = bad
    found = found_by.by_row(hidden)
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(found[others], expected[others])  # nobody else's row
    assert not found[2].isfinite().any()
    for found in (found_by.by_block(hidden), found_by.by_block(hidden, after="gelu")):
        # One scale for all rows is one that is no number.
        assert not (found if kernel is Int8Weights else found[2]).isfinite().any()


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


# A barrier that is never reached must fail a test, not hang it.
PATIENCE_S = 20.0


@contextmanager
def threads_set_to(count: int) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with threads_set_to(request.param) as count:
        yield count


@pytest.fixture
def four_threads() -> Iterator[None]:
    with threads_set_to(4):
        yield


def threads_of_a_new_thread() -> int:
    """What a thread started now computes on."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_results_come_in_the_order_of_the_items_and_threads_are_as_before(threads: int) -> None:
    for count in (0, 1, 2, 3, 7, 8, 9):
        items = [torch.full((2,), float(number)) for number in range(count)]
        found = run_per_sample(lambda item: item.sum() * 2, items)
        assert [int(value) for value in found] == [4 * number for number in range(count)], count
        assert torch.get_num_threads() == threads_of_a_new_thread() == threads, count


@pytest.mark.usefixtures("four_threads")
def test_each_item_gets_its_share_of_the_threads() -> None:
    shares = [[4], [2, 2], [1] * 3, [1] * 4, [1] * 4 + [4], [1] * 4 + [2, 2], [1] * 8 + [4]]
    for expected in shares:
        assert run_per_sample(lambda _: torch.get_num_threads(), range(len(expected))) == expected


@pytest.mark.usefixtures("four_threads")
def test_items_are_begun_by_their_size_and_a_thread_that_is_done_takes_the_next() -> None:
    others = threading.Semaphore(0)

    def work(number: int) -> int:
        if number == 9:
            for _ in range(7):
                assert others.acquire(timeout=PATIENCE_S), "the others waited for the longest"
        else:
            others.release()
        return number

    items = [3, 2, 8, 4, 1, 7, 6, 9]
    assert run_per_sample(work, items, size=lambda number: number) == items
    begun: list[int] = []
    with threads_set_to(1):
        run_per_sample(begun.append, [3, 9, 2, 8], size=lambda number: number)
    assert begun == [9, 8, 3, 2]


def test_an_exception_arrives_as_it_is_and_leaves_nothing_behind(threads: int) -> None:
    def fail(number: int) -> int:
        raise KeyError(f"window {number}")

    for count in (1, 2, 5):
        with pytest.raises(KeyError, match="window 0"):
            run_per_sample(fail, range(count))
        assert torch.get_num_threads() == threads_of_a_new_thread() == threads, count
    # Of several at once the first item's, when all are done.
    done: list[int] = []
    together = threading.Barrier(threads, timeout=PATIENCE_S)

    def fail_together(number: int) -> None:
        together.wait()
        done.append(number)
        fail(number)

    with pytest.raises(KeyError, match="window 0"):
        run_per_sample(fail_together, range(threads))
    assert sorted(done) == list(range(threads))
    assert not [t for t in threading.enumerate() if t.name.startswith("window")]
    assert not torch.is_inference_mode_enabled()


WIDTH, HEADS, INNER = 64, 4, 256
# Positions that are fewer than a block of rows, one block, one and a bit, and several of both
# kinds of block, with rests.
POSITIONS = [1, 99, 100, 125, 126, 333]

# float32: other order of sums. bfloat16: the block itself rounds its states to 8 bits after every
# part, the packed one only what goes into products. Relative to what the block adds.
BLOCK_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02}
# Four products, of which each loses about one part in a hundred; see test_projection.py.
INT8_TOLERANCE = 0.04


@pytest.fixture(params=[False, True], ids=["by head", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in bfloat16 as on processors without AMX, and with it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: request.param)


def random_block(activation: str = "gelu", *, inner: int = INNER) -> EncoderBlock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = WhisperConfig(
            d_model=WIDTH,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=inner,
            activation_function=activation,
        )
        block = EncoderBlock(config, key_bias=False)
        # Sharp attention, and norms that do something.
        with torch.no_grad():
            block.self_attn.q_proj.weight *= 6.0
            for norm in (block.self_attn_layer_norm, block.final_layer_norm):
                norm.weight.add_(torch.randn(WIDTH), alpha=0.3)
                norm.bias.add_(torch.randn(WIDTH), alpha=0.3)
    return block.eval()


def states(positions: int, width: int = WIDTH) -> Tensor:
    return torch.randn(positions, width, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def added(block: EncoderBlock | PackedEncoderBlock, hidden: Tensor) -> Tensor:
    """What a block adds to the states."""
    if isinstance(block, EncoderBlock):
        return (block(hidden.unsqueeze(0)) - hidden)[0]
    after = hidden.clone()
    block(after)
    return after - hidden


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def packed(block: EncoderBlock, dtype: torch.dtype, *, int8: bool = False) -> PackedEncoderBlock:
    """The packed form of `block` in another type; `block` stays in float32."""
    copy = random_block()
    copy.load_state_dict(block.state_dict())
    copy.activate = block.activate
    return PackedEncoderBlock(copy.to(dtype), int8=int8)


@pytest.mark.parametrize("kernel", [None, *KERNELS_HERE])
@pytest.mark.parametrize("dtype", BLOCK_TOLERANCES, ids=str)
def test_it_adds_what_the_block_adds(
    tiles: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kernel: Kernel | None
) -> None:
    int8 = kernel is not None
    monkeypatch.setattr(projection, "has_vnni", lambda: kernel is Int8Weights)
    tolerance = INT8_TOLERANCE if int8 else BLOCK_TOLERANCES[dtype]
    cases = [("gelu", positions) for positions in POSITIONS]
    cases += [(name, 130) for name in ("gelu_new", "quick_gelu", "relu", "silu")]
    for activation, positions in cases:
        block, hidden = random_block(activation), states(positions)
        expected = added(block, hidden)
        error = relative_error(added(packed(block, dtype, int8=int8), hidden), expected)
        assert error < tolerance, (activation, positions)
        if dtype == torch.bfloat16 and positions > 300 and not int8:
            low = added(random_block(activation).bfloat16(), hidden.bfloat16()).float()
            assert error < relative_error(low, expected)


def test_positions_that_are_not_heard_change_nothing(tiles: None) -> None:
    for dtype, tolerance in BLOCK_TOLERANCES.items():
        block = PackedEncoderBlock(random_block().to(dtype), int8=False)
        hidden, alone = states(150), states(150)[:110].clone()
        hidden[110:] *= 100.0
        with torch.inference_mode():
            block(hidden, valid=110)
            block(alone)
        assert relative_error(hidden[:110], alone) < tolerance, dtype


CONVOLUTION_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 0.002}


def convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Conv1d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv1d(inputs, outputs, size, stride=stride, padding=size // 2)


@torch.inference_mode()
def test_it_gives_what_the_convolution_gives() -> None:
    for (size, stride), number, (dtype, tolerance) in itertools.product(
        [(3, 1), (3, 2), (5, 2)], [1, 2, 7, 260, 501], CONVOLUTION_TOLERANCES.items()
    ):
        conv, seen = convolution(20, 24, size=size, stride=stride), states(number, 20)
        expected = conv(seen.t()[None])[0].t()
        found = PackedConvolution(conv.to(dtype))(seen.to(dtype))
        assert (found.dtype, found.shape) == (dtype, expected.shape)
        error = (found.float() - expected).norm() / expected.norm()
        assert error < tolerance, (size, stride, number, dtype)
    conv, seen = convolution(20, 24), states(20, 130)
    before = torch.get_rng_state()
    across = PackedConvolution(conv, after="gelu")(seen.t())
    torch.testing.assert_close(across, nn.functional.gelu(conv(seen[None])[0].t()))
    assert torch.equal(torch.get_rng_state(), before)  # making it draws no numbers
