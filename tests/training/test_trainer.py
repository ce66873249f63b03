"""Learning rates, frozen parts, and moments that can be kept."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from corpus_asr.config.finetune import TrainingSettings
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.training.trainer import NamedAdamW, freeze, learning_rate


def rates(steps: Sequence[int], **settings: Any) -> list[float]:
    given = TrainingSettings(learning_rate=0.5, **settings)
    return [round(learning_rate(given, step) / 0.5, 2) for step in steps]


def test_the_rate_rises_and_falls() -> None:
    linear = {"warmup_steps": 4, "max_steps": 14, "lr_scheduler_type": "linear"}
    assert rates([*range(6), 13], **linear) == [0.2, 0.4, 0.6, 0.8, 1.0, 0.9, 0.1]
    cosine = {"warmup_steps": 0, "max_steps": 10, "lr_scheduler_type": "cosine"}
    assert rates([0, 5], **cosine) == [1.0, 0.5]
    constant = {"warmup_steps": 2, "max_steps": 10, "lr_scheduler_type": "constant"}
    assert rates([2, 9], **constant) == [1.0, 1.0]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_frozen_parts_stay_as_they_are() -> None:
    part = network()
    trained = freeze(part, ["0.*"])
    assert set(trained) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert [p.requires_grad for p in part[0].parameters()] == [False, False]


@pytest.mark.parametrize(
    ("patterns", "told"), [(["encoder.*"], "no parameter of that name"), (["*"], "nothing left")]
)
def test_freezing_what_is_not_there_or_everything_is_refused(
    patterns: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        freeze(network(), patterns)


def steps(part: nn.Module, optimizer: NamedAdamW, count: int, *, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        part(torch.randn(5, 3, generator=draw)).square().sum().backward()
        optimizer.step(0.01)


def test_moments_carry_on_where_they_were_left() -> None:
    def made() -> tuple[nn.Module, NamedAdamW]:
        part = network()
        return part, NamedAdamW(dict(part.named_parameters()), TrainingSettings(weight_decay=0.1))

    part, optimizer = made()
    steps(part, optimizer, 3, seed=1)
    weights, state = {n: p.clone() for n, p in part.named_parameters()}, optimizer.state()
    state = {name: tensor.clone() for name, tensor in state.items()}
    steps(part, optimizer, 3, seed=2)
    other, resumed = made()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(weights[name])
    resumed.restore(state)
    steps(other, resumed, 3, seed=2)
    for name, parameter in part.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name]), name


def test_moments_of_other_parameters_are_refused() -> None:
    part = network()
    optimizer = NamedAdamW(dict(part.named_parameters()), TrainingSettings())
    steps(part, optimizer, 1, seed=0)
    trained = freeze(network(), ["0.*"])
    with pytest.raises(CheckpointError, match=r"same model\.freeze"):
        NamedAdamW(trained, TrainingSettings()).restore(optimizer.state())


def test_norms_and_biases_do_not_decay() -> None:
    part = network()
    before = {name: p.clone() for name, p in part.named_parameters()}
    optimizer = NamedAdamW(dict(part.named_parameters()), TrainingSettings(weight_decay=0.5))
    (part(torch.zeros(1, 3)).sum() * 0.0).backward()
    optimizer.step(0.1)
    changed = {n for n, p in part.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"0.weight", "2.weight"}
