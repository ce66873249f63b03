"""Packed convolutions against those they are made of."""

import pytest
import torch
from torch import Tensor, nn

from corpus_asr.families.layers.packed import PackedConvolution

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 0.002}


def convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Conv1d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv1d(inputs, outputs, size, stride=stride, padding=size // 2)


def frames(number: int, channels: int) -> Tensor:
    return torch.randn(number, channels, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("number", [1, 2, 7, 260, 501])
@torch.inference_mode()
def test_it_gives_what_the_convolution_gives(
    number: int, size: int, stride: int, dtype: torch.dtype
) -> None:
    conv, seen = convolution(20, 24, size=size, stride=stride), frames(number, 20)
    expected = conv(seen.t()[None])[0].t()
    found = PackedConvolution(conv.to(dtype))(seen.to(dtype))
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert (found.float() - expected).norm() < TOLERANCES[dtype] * expected.norm()


@torch.inference_mode()
def test_frames_may_lie_across_and_an_activation_follows() -> None:
    conv, seen = convolution(20, 24), frames(20, 130)
    found = PackedConvolution(conv, after="gelu")(seen.t())
    torch.testing.assert_close(found, nn.functional.gelu(conv(seen[None])[0].t()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "stride"), [(80, 1), (768, 2)])
@torch.inference_mode()
def test_the_number_of_threads_changes_no_bit(inputs: int, stride: int, dtype: torch.dtype) -> None:
    """With AMX, a product of that many inputs adds up in another order where threads share it."""
    packed = PackedConvolution(convolution(inputs, 384, stride=stride).to(dtype))
    seen = frames(1000, inputs).to(dtype)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(packed(seen))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found[1:])


def test_making_it_draws_no_numbers() -> None:
    conv, before = convolution(4, 4), torch.get_rng_state()
    PackedConvolution(conv)
    assert torch.equal(torch.get_rng_state(), before)
