"""Losses: equal to transformers', to PyTorch's, and zero where there is nothing to learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.config.finetune import DistillationSettings
from corpus_asr.errors import ConfigError
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.training.examples import Batch, Collate, Example, TokenRow
from corpus_asr.training.trainer import Objective
from tests.support.checkpoints import tiny_whisper

END = 998
DISTILLATION = DistillationSettings(kl_weight=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # windows of 1 s are enough here
    return tiny_whisper(tmp_path_factory.mktemp("model"), max_source_positions=50)


def network(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def batch() -> Batch:
    draw = np.random.default_rng(0)
    rows = [(999, 950, 3, 4, 5, END), (960, 7, 999, 950, 8, 9, 10, END)]
    return Collate(END)(
        [
            Example(
                features=draw.standard_normal((80, 100)).astype(np.float32),
                tokens=TokenRow(ids=ids, loss_from=first),
            )
            for ids, first in zip(rows, (1, 3), strict=True)
        ]
    )


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
    ours = network(folder)
    found = Objective(ours, distillation=DISTILLATION, teacher=None)(ours, batch)
    loss = found.parts["labels"] / batch.num_labels
    assert loss == pytest.approx(expected.loss.item(), abs=1e-4)
    assert found.total.item() == pytest.approx(found.parts["labels"])


def test_smoothing_is_pytorchs(folder: Path, batch: Batch) -> None:
    ours = network(folder)
    objective = Objective(ours, label_smoothing=0.1, distillation=DISTILLATION, teacher=None)
    logits = ours(batch.features, decoder_input_ids=batch.inputs).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), label_smoothing=0.1
    )
    assert objective(ours, batch).total.item() == pytest.approx(
        expected.item() * batch.num_labels, rel=1e-5
    )


def test_a_teacher_that_agrees_has_nothing_to_teach(folder: Path, batch: Batch) -> None:
    ours = network(folder)
    objective = Objective(ours, distillation=DISTILLATION, teacher=network(folder))
    found = objective(ours, batch)
    assert found.parts["teacher"] == pytest.approx(0.0, abs=1e-3)
    plain = Objective(ours, distillation=DISTILLATION, teacher=None)(ours, batch)
    assert found.parts["labels"] == pytest.approx(0.2 * plain.parts["labels"], rel=1e-4)


def test_a_teacher_that_is_not_asked_changes_nothing(folder: Path, batch: Batch) -> None:
    ours = network(folder)
    objective = Objective(ours, distillation=DISTILLATION, teacher=network(folder))
    plain = Objective(ours, distillation=DISTILLATION, teacher=None)(ours, batch)
    assert objective(ours, batch, distill=False).parts == plain.parts


def test_a_teacher_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"max_source_positions": 50}
    for name, value in (("vocab_size", 1100), ("num_mel_bins", 128)):
        other = tiny_whisper(tmp_path / name, **sizes | {name: value})
        with pytest.raises(ConfigError, match=f"{name} {value}"):
            Objective(network(folder), distillation=DISTILLATION, teacher=network(other))
