"""Packed encoder blocks against the blocks they are made of."""

import pytest
import torch
from torch import Tensor

from corpus_asr.families.layers import packed as packed_block
from corpus_asr.families.layers.blocks import BlockSettings, EncoderBlock
from corpus_asr.families.layers.packed import PackedEncoderBlock, blocks_of
from corpus_asr.families.layers.projection import can_use_int8

WIDTH, HEADS, INNER = 64, 4, 256
# Positions that are fewer than a block of rows, one block, one and a bit, and several of both
# kinds of block, with rests.
POSITIONS = [1, 99, 100, 125, 126, 333]

# float32: other order of sums. bfloat16: the block itself rounds its states to 8 bits after every
# part, the packed one only what goes into products. Relative to what the block adds.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02}
# Four products, of which each loses about one part in a hundred; see test_int8.py.
INT8_TOLERANCE = 0.04

needs_int8 = pytest.mark.skipif(
    not can_use_int8(), reason="this processor or this torch has no fast 8-bit products"
)


@pytest.fixture(autouse=True, params=[False, True], ids=["by head", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in bfloat16 as on processors without AMX, and with it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: request.param)


def random_block(
    activation: str = "gelu", *, key_bias: bool = False, seed: int = 0, inner: int = INNER
) -> EncoderBlock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = EncoderBlock(
            BlockSettings(
                width=WIDTH, heads=HEADS, ffn_dim=inner, activation=activation, key_bias=key_bias
            )
        )
        # Sharp attention, and norms that do something.
        with torch.no_grad():
            block.self_attn.q_proj.weight *= 6.0
            for norm in (block.self_attn_layer_norm, block.final_layer_norm):
                norm.weight.add_(torch.randn(WIDTH), alpha=0.3)
                norm.bias.add_(torch.randn(WIDTH), alpha=0.3)
    return block.eval()


def states(positions: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, WIDTH, generator=generator)


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


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("positions", POSITIONS)
def test_it_adds_what_the_block_adds(dtype: torch.dtype, positions: int) -> None:
    block, hidden = random_block(), states(positions)
    found = added(packed(block, dtype), hidden)
    assert relative_error(found, added(block, hidden)) < TOLERANCES[dtype]


@needs_int8
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("positions", POSITIONS)
def test_in_8_bits_it_stays_near(dtype: torch.dtype, positions: int) -> None:
    """Also in float32 beside them, as on processors without bfloat16."""
    block, hidden = random_block(), states(positions)
    found = added(packed(block, dtype, int8=True), hidden)
    assert relative_error(found, added(block, hidden)) < INT8_TOLERANCE


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=needs_int8)])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu", "relu", "silu"])
def test_any_activation_is_the_block_s_own(name: str, int8: bool) -> None:
    block, hidden = random_block(name), states(130)
    found = added(packed(block, torch.float32, int8=int8), hidden)
    tolerance = INT8_TOLERANCE if int8 else TOLERANCES[torch.float32]
    assert relative_error(found, added(block, hidden)) < tolerance


def test_keys_may_have_biases() -> None:
    block, hidden = random_block(key_bias=True), states(40)
    found = added(PackedEncoderBlock(block, int8=False), hidden)
    assert relative_error(found, added(block, hidden)) < TOLERANCES[torch.float32]


def test_bfloat16_loses_no_more_than_the_block_does_in_it() -> None:
    block, hidden = random_block(), states(300)
    expected = added(block, hidden)
    found = relative_error(added(packed(block, torch.bfloat16), hidden), expected)
    low = random_block().bfloat16()
    theirs = relative_error(added(low, hidden.bfloat16()).float(), expected)
    assert found < theirs


@pytest.mark.parametrize("positions", [1, 100, 101, 250])
@torch.inference_mode()
def test_attention_by_head_is_attention(positions: int) -> None:
    query, key, value = (
        states(positions * HEADS, seed=seed).view(HEADS, positions, WIDTH) for seed in range(3)
    )
    found = packed_block._attend_by_head(query, key, value, positions)
    expected = (query @ key.transpose(1, 2)).softmax(dim=2) @ value
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    low = packed_block._attend_by_head(
        query.bfloat16() * 0.1, key.bfloat16(), value.bfloat16(), positions
    )
    expected = (query * 0.1 @ key.transpose(1, 2)).softmax(dim=2) @ value
    assert low.dtype == torch.bfloat16
    assert relative_error(low.float(), expected) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_positions_that_are_not_heard_change_nothing(activation: str, dtype: torch.dtype) -> None:
    block = PackedEncoderBlock(random_block(activation).to(dtype), int8=False)
    hidden, alone = states(150), states(150)[:110].clone()
    hidden[110:] *= 100.0
    with torch.inference_mode():
        block(hidden, heard=110)
        block(alone)
    assert relative_error(hidden[:110], alone) < TOLERANCES[dtype]


def test_every_position_hears_the_last_one() -> None:
    """Also across blocks of rows."""
    block, hidden = PackedEncoderBlock(random_block(), int8=False), states(260)
    other = hidden.clone()
    other[-1] *= -1.0  # a constant added would be normed away
    changed = (added(block, hidden) - added(block, other)).abs().amax(dim=1)
    assert (changed > 1e-6).all()


@pytest.mark.parametrize(
    ("dtype", "int8"),
    [
        (torch.float32, False),
        (torch.bfloat16, False),
        pytest.param(torch.bfloat16, True, marks=needs_int8),
    ],
)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype, int8: bool) -> None:
    """A window alone has all threads, one among others has one: it must not tell.

    With AMX, a product of thousands of inputs adds up in another order where threads share it.
    """
    wide = random_block(inner=3072).to(dtype)
    block, hidden = PackedEncoderBlock(wide, int8=int8), states(1000)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(added(block, hidden))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found[1:])


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=needs_int8)])
def test_states_that_are_no_numbers_stay_so(int8: bool) -> None:
    block, hidden = packed(random_block(), torch.bfloat16, int8=int8), states(130)
    hidden[7, 3] = torch.nan
    assert added(block, hidden).isnan().all()  # every position attends to the seventh


@pytest.mark.parametrize("positions", POSITIONS)
def test_blocks_cover_a_window_in_order(positions: int) -> None:
    rows = states(positions)
    assert torch.equal(torch.cat(blocks_of(rows)), rows)
