import math

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from corpus_asr.decoding.samplers import choose, gumbel_noise, keep_likeliest


def test_noise_depends_on_seed_position_and_token_alone() -> None:
    seeds, positions = torch.tensor([7, 2**55, 7]), torch.tensor([3, 3, 4])
    together = gumbel_noise(seeds, positions, 500)
    for row in range(3):
        alone = gumbel_noise(seeds[row : row + 1], positions[row : row + 1], 500)
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together[0], together[2])


def test_noise_is_finite_and_gumbel_distributed() -> None:
    noise = gumbel_noise(torch.arange(40), torch.arange(40), 51865)
    assert noise.isfinite().all()
    euler = 0.57722
    assert abs(noise.mean().item() - euler) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.02


def test_sampling_follows_the_softmax_at_the_temperature() -> None:
    count = 40_000
    logits = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]]).repeat(count, 1)
    chosen = choose(
        logits,
        temperatures=torch.full((count,), 0.5),
        seeds=torch.arange(count),
        positions=torch.zeros(count, dtype=torch.long),
    )
    found = torch.bincount(chosen, minlength=4) / count
    torch.testing.assert_close(found, (logits[0] / 0.5).softmax(0), atol=0.01, rtol=0)
    assert found[3] == 0


def test_temperature_zero_is_greedy_beside_sampled_rows() -> None:
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    temperatures = torch.tensor([0.0, 1.0] * 25)
    chosen = choose(
        logits, temperatures=temperatures, seeds=torch.arange(50), positions=torch.arange(50)
    )
    assert torch.equal(chosen[::2], logits[::2].argmax(dim=1))
    assert not torch.equal(chosen[1::2], logits[1::2].argmax(dim=1))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("top_k", [None, 1, 7, 60, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
def test_the_likeliest_are_those_transformers_keeps(
    seed: int, top_k: int | None, top_p: float
) -> None:
    logits = 3 * torch.randn(5, 60, generator=torch.Generator().manual_seed(seed))
    logits[:, 10:20] = float("-inf")
    temperatures = torch.tensor([0.2, 0.5, 1.0, 1.7, 3.0])
    expected = logits / temperatures.unsqueeze(1)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = keep_likeliest(
        logits, temperatures=temperatures, top_k=top_k, top_p=torch.full((5,), top_p)
    )
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert torch.equal(found[found.isfinite()], logits[found.isfinite()])


def test_as_likely_as_the_last_one_kept_is_kept() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0]])
    one = torch.ones(1)
    assert keep_likeliest(logits, temperatures=one, top_k=3, top_p=one).isfinite().all()
    kept = keep_likeliest(logits, temperatures=one, top_k=2, top_p=one)
    assert kept.isfinite().tolist() == [[False, True, False, True]]
