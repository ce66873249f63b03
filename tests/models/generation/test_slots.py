"""In which type `generate` computes: the caller's, or the best one where nobody chose."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus_asr.families.loading import resolve_dtype
from corpus_asr.models.generation import slots
from corpus_asr.models.generation.slots import slot_model
from corpus_asr.models.whisper import WhisperForConditionalGeneration, pipeline
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

BEST = resolve_dtype("auto", torch.device("cpu"))


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halved")
    tiny_tokenizer(folder / "tokenizer")
    return tiny_whisper(folder / "model", tokenizer=folder / "tokenizer", dtype=torch.float16)


@pytest.fixture(autouse=True)
def silent_before() -> Iterator[None]:
    slots._tell_once.cache_clear()
    yield
    slots._tell_once.cache_clear()


def text(model: Any) -> list[list[int]]:
    features = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))
    found: list[list[int]] = model.generate(features, language="en", max_new_tokens=9).tolist()
    return found


def test_a_float16_checkpoint_computes_in_the_best_type_and_says_so_once(
    halved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = WhisperForConditionalGeneration.from_pretrained(halved, dtype=BEST)
    expected = text(chosen)
    assert not caplog.records
    for dtype in (None, "auto"):
        model: Any = WhisperForConditionalGeneration.from_pretrained(halved, dtype=dtype)
        assert model.dtype == torch.float16  # as stored, for a GPU and for saving
        assert text(model) == text(model) == expected
        assert slot_model(model).dtype == BEST
        assert model.dtype == torch.float16
    made = pipeline(model=str(halved), device="cpu")
    assert slot_model(made.model).dtype == BEST
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        f"weights are float16, in which this CPU is slow: text is generated in {BEST}".replace(
            "torch.", ""
        )
        in record.getMessage()
    )


def test_who_chose_a_type_has_it(halved: Path, caplog: pytest.LogCaptureFixture) -> None:
    load = WhisperForConditionalGeneration.from_pretrained
    for model in (
        load(halved, dtype=torch.float16),
        load(halved, torch_dtype="float16"),
        load(halved, dtype=torch.float32).half(),
        pipeline(model=str(halved), device="cpu", dtype="float16").model,
    ):
        assert slot_model(model).dtype == torch.float16
    assert slot_model(load(halved).double()).dtype == torch.float64
    fresh = WhisperForConditionalGeneration(load(halved).config)
    assert slot_model(fresh.half()).dtype == torch.float16
    assert not caplog.records


def test_an_assistant_computes_in_the_type_of_its_model(halved: Path) -> None:
    made = pipeline(model=str(halved), device="cpu", assistant_model=str(halved))
    assert slot_model(made.defaults["assistant_model"]).dtype == BEST
