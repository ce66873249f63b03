"""A model's slot model is made once for each state of its weights."""

import copy
import pickle
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus_asr.models.generation.slots import run, slot_model
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(
        tmp_path_factory.mktemp("model"), d_model=16, layers=1, heads=2, max_source_positions=20
    )


@pytest.fixture
def model(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder)


def step(model: WhisperForConditionalGeneration) -> None:
    model.model.decoder.layer_norm.weight.grad = torch.ones(16)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def first_weight(model: WhisperForConditionalGeneration) -> torch.Tensor:
    return dict(model.named_parameters())["model.decoder.layers.0.fc1.weight"]


CHANGES: dict[str, Callable[[WhisperForConditionalGeneration], object]] = {
    "a step of an optimiser": step,
    "values in place": lambda model: first_weight(model).data.mul_(2.0),
    "other data": lambda model: setattr(first_weight(model), "data", torch.zeros(64, 16)),
    "loaded weights": lambda model: model.load_state_dict(
        {name: value + 1 for name, value in model.state_dict().items()}
    ),
    "another type": lambda model: model.to(torch.float64),
}


def test_it_is_made_once_until_the_weights_change(model: WhisperForConditionalGeneration) -> None:
    before = slot_model(model)
    for name, change in CHANGES.items():
        assert slot_model(model) is before, name
        change(model)
        assert slot_model(model) is not before, name
        before = slot_model(model)
    assert before.dtype == torch.float64


def test_copies_and_pickles_leave_it_behind(model: WhisperForConditionalGeneration) -> None:
    mine = slot_model(model)
    twin = copy.deepcopy(model)
    assert slot_model(twin) is not mine
    again = pickle.loads(pickle.dumps(model))
    assert slot_model(again) is not mine
    assert set(model.state_dict()) == set(twin.state_dict())


def test_a_task_that_fails_ends_the_run(model: WhisperForConditionalGeneration) -> None:
    def failing() -> Generator[Any, Any, None]:
        yield from (_ for _ in [1 // 0])

    with pytest.raises(ZeroDivisionError):
        run(slot_model(model), [failing(), failing()])
    assert run(slot_model(model), []) == []
