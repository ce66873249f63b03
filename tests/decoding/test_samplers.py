import math

import torch

from corpus_asr.decoding.samplers import choose, gumbel_noise


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
