"""Losses, equal to transformers'; learning rates, frozen parts, and moments that can be kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from corpus_asr.config.finetune import DistillationSettings, TrainingSettings
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.training.examples import Batch, Example, TokenRow, collate
from corpus_asr.training.trainer import NamedAdamW, Objective, freeze, learning_rate
from tests.support.checkpoints import tiny_whisper

END = 998
DISTILLATION = DistillationSettings(kl_weight=0.8)


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


def test_parts_are_frozen_by_patterns_of_names() -> None:
    part = network()
    trained = freeze(part, ["0.*"])
    assert set(trained) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert [p.requires_grad for p in part[0].parameters()] == [False, False]
    for pattern, message in (("encoder.*", "no parameter of that name"), ("*", "nothing left")):
        with pytest.raises(ConfigError, match=message):
            freeze(network(), [pattern])


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # windows of 1 s are enough here
    return tiny_whisper(tmp_path_factory.mktemp("model"), max_source_positions=50)


def student(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def batch() -> Batch:
    draw = np.random.default_rng(0)
    rows = [(999, 950, 3, 4, 5, END), (960, 7, 999, 950, 8, 9, 10, END)]
    examples = [
        Example(
            features=draw.standard_normal((80, 100)).astype(np.float32),
            tokens=TokenRow(ids=ids, loss_from=first),
        )
        for ids, first in zip(rows, (1, 3), strict=True)
    ]
    return collate(examples, padding=END)


def test_rows_are_joined_and_only_what_is_to_be_learnt_counts(batch: Batch) -> None:
    assert batch.inputs.tolist() == [
        [999, 950, 3, 4, 5, END, END],
        [960, 7, 999, 950, 8, 9, 10],
    ]
    assert batch.labels.tolist() == [
        [950, 3, 4, 5, END, -100, -100],
        [-100, -100, 950, 8, 9, 10, END],
    ]
    assert batch.num_labels == 10


def test_the_loss_is_that_of_transformers(folder: Path, batch: Batch) -> None:
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    expected = theirs(batch.features, decoder_input_ids=batch.inputs, labels=batch.labels)
    ours = student(folder)
    found = Objective(ours, distillation=DISTILLATION, teacher=None)(ours, batch)
    loss = found.parts["labels"] / batch.num_labels
    assert loss == pytest.approx(expected.loss.item(), abs=1e-4)
    assert found.total.item() == pytest.approx(found.parts["labels"])


def test_smoothing_is_pytorchs(folder: Path, batch: Batch) -> None:
    ours = student(folder)
    objective = Objective(ours, label_smoothing=0.1, distillation=DISTILLATION, teacher=None)
    logits = ours(batch.features, decoder_input_ids=batch.inputs).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), label_smoothing=0.1
    )
    assert objective(ours, batch).total.item() == pytest.approx(
        expected.item() * batch.num_labels, rel=1e-5
    )


def test_a_teacher_that_agrees_or_is_not_asked_has_nothing_to_teach(
    folder: Path, batch: Batch
) -> None:
    ours = student(folder)
    objective = Objective(ours, distillation=DISTILLATION, teacher=student(folder))
    found = objective(ours, batch)
    assert found.parts["teacher"] == pytest.approx(0.0, abs=1e-3)
    plain = Objective(ours, distillation=DISTILLATION, teacher=None)(ours, batch)
    assert found.parts["labels"] == pytest.approx(0.2 * plain.parts["labels"], rel=1e-4)
    assert objective(ours, batch, distill=False).parts == plain.parts


def test_a_teacher_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"max_source_positions": 50}
    for name, value in (("vocab_size", 1100), ("num_mel_bins", 128)):
        other = tiny_whisper(tmp_path / name, **sizes | {name: value})
        with pytest.raises(ConfigError, match=f"{name} {value}"):
            Objective(student(folder), distillation=DISTILLATION, teacher=student(other))
