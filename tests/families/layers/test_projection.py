"""Fused and packed products against the linear maps they are made of."""

import pytest
import torch
from torch import nn

from corpus_asr.families.layers.projection import Projection

# float32: other order of sums; bfloat16: one rounding of outputs of about 1.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("rows", [(1,), (8,), (3, 5), (300,)], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 256), (24, 7), (1, 1), (512, 1000)])
@torch.inference_mode()
def test_one_map_is_that_map(
    dtype: torch.dtype, rows: tuple[int, ...], inputs: int, outputs: int
) -> None:
    linear = nn.Linear(inputs, outputs, dtype=dtype)
    hidden = torch.randn(*rows, inputs, dtype=dtype)
    found = Projection([linear])(hidden)
    assert found.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found, linear(hidden), atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def test_several_maps_are_concatenated_scaled_and_may_lack_biases() -> None:
    query, key, value = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 8)
    hidden = torch.randn(2, 3, 16)
    found = Projection([query, key, value], scales=[0.25])(hidden)
    expected = torch.cat([query(hidden) * 0.25, key(hidden), value(hidden)], dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_maps_without_biases_stay_without() -> None:
    linear = nn.Linear(16, 16, bias=False)
    assert not Projection([linear, linear])(torch.zeros(1, 16)).any()


@torch.inference_mode()
def test_inputs_need_not_be_contiguous() -> None:
    linear = nn.Linear(16, 16)
    hidden = torch.randn(5, 32)[:, ::2]
    torch.testing.assert_close(Projection([linear])(hidden), linear(hidden))


def test_fusing_leaves_the_maps_trainable() -> None:
    linear = nn.Linear(4, 4)
    Projection([linear])
    linear(torch.randn(2, 4)).sum().backward()
    assert linear.weight.grad is not None


def test_what_a_row_gives_does_not_depend_on_how_many_there_are() -> None:
    linear = nn.Linear(2048, 512).to(torch.bfloat16)
    projection = Projection([linear])
    rows = torch.randn(20, 8, 2048, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.inference_mode():
        for batch in rows:
            together = projection(batch)
            for number in range(1, 8):
                assert torch.equal(projection(batch[:number]), together[:number])
