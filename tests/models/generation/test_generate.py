"""What the inputs of `generate` become, where comparing whole calls would hide it; its types."""

import copy
import gc
import logging
import pickle
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.families.loading import resolve_dtype
from corpus_asr.families.whisper.config import GenerationConfig
from corpus_asr.models.generation import call as calls
from corpus_asr.models.generation import slots
from corpus_asr.models.generation.inputs import Row, lengths_of
from corpus_asr.models.generation.long_form import starts
from corpus_asr.models.generation.slots import run, slot_model
from corpus_asr.models.whisper import WhisperForConditionalGeneration, pipeline
from tests.support.checkpoints import tiny_whisper
from tests.support.device import pretended_gpu
from tests.support.tokenizers import tiny_tokenizer


def test_another_type_is_named() -> None:
    config: Any = GenerationConfig(decoder_start_token_id=1, lang_to_id={"<|en|>": 2})
    config.language = ["en", None]
    for call, message in (
        (lambda: starts(config, None, 2, timestamps=False), "with None in it"),
        (lambda: calls.temperatures_of((0.0, "1")), "temperature '1'"),
        (lambda: lengths_of("1100", 2), "found a str as attention_mask"),
        (lambda: calls.temperatures_of("0.5"), "temperature '0.5', expected"),
        (lambda: calls.functions_of(max, what="those"), "method as those, .*correct it"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_a_seed_names_sound_window_and_temperature() -> None:
    def seed(
        value: float = 1.0,
        base: int = 5,
        seek: int = 0,
        temperature: float = 0.2,
        index: int = 0,
        later: float = 0.0,
    ) -> int:
        window = np.full((2, 3), value, dtype=np.float32)
        features = np.concatenate([window, np.full((2, 4), later, dtype=np.float32)], axis=1)
        row = Row(index=index, features=features, encoded=None, frames=7)
        return row.seed(base, seek, temperature, window)

    assert seed(index=4) == seed()
    # What is said of a window does not hang on what comes after it.
    assert seed(later=3.0) == seed()
    others = {seed(2.0), seed(base=6), seed(seek=1), seed(temperature=0.4)}
    assert len(others | {seed()}) == 5


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
    assert set(model.state_dict()) == set(twin.state_dict())
    again = pickle.loads(pickle.dumps(model))
    assert slot_model(again) is not mine
    # Of a network that is gone nothing is kept.
    known = len(slots._slots)
    del twin
    gc.collect()
    assert len(slots._slots) == known - 1


def test_a_task_that_fails_ends_the_run(model: WhisperForConditionalGeneration) -> None:
    def failing() -> Generator[Any, Any, None]:
        yield from (_ for _ in [1 // 0])

    with pytest.raises(ZeroDivisionError):
        run(model, [failing(), failing()])
    assert run(model, []) == []


def test_a_gpu_keeps_what_it_recorded_for_the_next_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaRecorder, "warm_ups", 2)
    # A pretended GPU's tensors are of a class of their own, whose modules would be called.
    monkeypatch.setattr(slots, "first_changed", lambda network: None)
    features = torch.randn(3, 80, 40, generator=torch.Generator().manual_seed(0))
    asked: dict[str, Any] = {"max_new_tokens": 12, "decoder_input_ids": torch.tensor([[999]] * 3)}
    expected = WhisperForConditionalGeneration.from_pretrained(folder).generate(features, **asked)
    with pretended_gpu() as gpu:
        model = WhisperForConditionalGeneration.from_pretrained(folder, device="cuda")
        asked["decoder_input_ids"] = asked["decoder_input_ids"].to("cuda")
        captured = []
        for _ in range(2):
            found = model.generate(features.to("cuda"), **asked)
            assert torch.equal(found.cpu(), expected)
            captured.append(gpu.captures)
        assert captured[1] == captured[0] > 0


BEST = resolve_dtype("auto", torch.device("cpu"))


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halved")
    tiny_tokenizer(folder / "tokenizer")
    sizes: dict[str, Any] = {"d_model": 16, "layers": 1, "heads": 2, "max_source_positions": 20}
    tokens = folder / "tokenizer"
    return tiny_whisper(folder / "model", tokenizer=tokens, dtype=torch.float16, **sizes)


@pytest.fixture(autouse=True)
def silent_before() -> Iterator[None]:
    slots._tell_once.cache_clear()
    yield
    slots._tell_once.cache_clear()


def text(model: Any) -> list[list[int]]:
    features = torch.randn(2, 80, 40, generator=torch.Generator().manual_seed(1))
    found: list[list[int]] = model.generate(features, language="en", max_new_tokens=9).tolist()
    return found


@pytest.mark.long
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
        f"weights are float16, which is slow on this CPU: a copy in {BEST}".replace("torch.", "")
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
