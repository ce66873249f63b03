"""A recipe of fine-tuning written for transformers, with only its imports changed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import transformers

from corpus_asr.models import speech2text, whisper
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings(
        "ignore:.*pin_memory:UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
    ),
]
TEXTS = ("ask not what your country can do", "the north wind and the sun", "for you", "my fellow")
STEPS = 20
# Losses of about 7: rounding of float32, which 20 steps of AdamW carry on.
LOSS_TOLERANCE = 2e-5
SHORT: dict[str, Any] = {
    "max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
}  # fmt: skip


def library(kind: str, name: str) -> Any:
    """Return the names that a script imports, from here or from transformers."""
    if kind == "theirs":
        return SimpleNamespace(
            Model=getattr(transformers, f"{name}ForConditionalGeneration"),
            Processor=getattr(transformers, f"{name}Processor"),
        )
    package = whisper if name == "Whisper" else speech2text
    return SimpleNamespace(
        Model=getattr(package, f"{name}ForConditionalGeneration"),
        Processor=getattr(package, f"{name}Processor"),
    )


# What follows is the recipe.


@dataclass
class DataCollator:
    """Pads features and labels of a batch, and hides the padding of labels from the loss."""

    processor: Any
    decoder_start_token_id: int

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        features = [{"input_features": one["input_features"]} for one in examples]
        batch = self.processor.feature_extractor.pad(features, return_tensors="pt")
        labels = self.processor.tokenizer.pad(
            [{"input_ids": one["labels"]} for one in examples], return_tensors="pt"
        )
        ids = labels["input_ids"].masked_fill(labels.attention_mask.ne(1), -100)
        if (ids[:, 0] == self.decoder_start_token_id).all().cpu().item():
            ids = ids[:, 1:]
        batch["labels"] = ids
        return batch


def word_errors(processor: Any) -> Callable[[Any], dict[str, float]]:
    tokenizer = processor.tokenizer

    def compute_metrics(found: Any) -> dict[str, float]:
        ids, labels = found.predictions, found.label_ids
        labels[labels == -100] = tokenizer.pad_token_id
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        references = tokenizer.batch_decode(labels, skip_special_tokens=True)
        return {"wer": 100 * jiwer.wer(references, texts)}

    return compute_metrics


def fine_tune(
    names: Any, folder: Path, output: Path, dataset: list[dict[str, Any]], **settings: Any
) -> Any:
    processor = names.Processor.from_pretrained(folder)
    model = names.Model.from_pretrained(folder)
    model.config.use_cache = False
    # Sinusoids: fixed here always, in transformers 5.23 only until a checkpoint is loaded.
    model.model.encoder.embed_positions.requires_grad_(False)
    usual: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_checkpointing": True,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "max_steps": STEPS,
        "eval_strategy": "steps",
        "eval_steps": STEPS // 2,
        "save_steps": STEPS // 2,
        "logging_steps": 1,
        "predict_with_generate": True,
        "generation_max_length": 12,
        "load_best_model_at_end": True,
        "metric_for_best_model": "wer",
        "greater_is_better": False,
        "remove_unused_columns": False,
        "push_to_hub": False,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(output), **{**usual, **settings}
    )
    return transformers.Seq2SeqTrainer(
        args=arguments,
        model=model,
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=DataCollator(processor, model.config.decoder_start_token_id),
        compute_metrics=word_errors(processor),
        processing_class=processor.feature_extractor,
    )


# Here it ends.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    tiny_tokenizer(folder)
    return tiny_whisper(
        folder, tokenizer=folder, d_model=16, heads=2, layers=1, max_source_positions=50
    )


@pytest.fixture(scope="module")
def dataset(folder: Path) -> list[dict[str, Any]]:
    tokenizer = whisper.WhisperTokenizer.from_pretrained(folder)
    draw = np.random.default_rng(0)
    return [
        {
            "input_features": draw.standard_normal((80, 100)).astype(np.float32),
            "labels": tokenizer(text).input_ids,
        }
        for text in TEXTS
    ]


@pytest.fixture(scope="module")
def trained(
    folder: Path, dataset: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    found = {}
    for kind in ("ours", "theirs"):
        output = tmp_path_factory.mktemp(kind)
        found[kind] = fine_tune(library(kind, "Whisper"), folder, output, dataset)
        found[kind].train()
    return found


def history(done: Any, key: str) -> list[float]:
    return [entry[key] for entry in done.state.log_history if key in entry]


def losses(done: Any) -> list[float]:
    return history(done, "loss")


def test_losses_and_word_errors_are_those_of_transformers(trained: dict[str, Any]) -> None:
    ours, theirs = trained["ours"], trained["theirs"]
    assert len(losses(ours)) == STEPS
    assert losses(ours)[-1] < losses(ours)[0] - 0.2
    assert losses(ours) == pytest.approx(losses(theirs), abs=LOSS_TOLERANCE)
    assert history(ours, "eval_loss") == pytest.approx(
        history(theirs, "eval_loss"), abs=LOSS_TOLERANCE
    )
    assert history(ours, "eval_wer") == history(theirs, "eval_wer")


def test_accumulated_gradients_count_every_label_the_same(
    folder: Path, dataset: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = []
    for batch, steps in ((4, 1), (1, 4)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        names = library("ours", "Whisper")
        done = fine_tune(names, folder, tmp_path / str(batch), dataset, **{**SHORT, **settings})
        done.train()
        found.append(losses(done))
    # transformers 5.23 adds up the means: its loss and gradients are four times as large.
    assert found[1] == pytest.approx(found[0], abs=LOSS_TOLERANCE)
