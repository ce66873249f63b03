"""Loading and saving Speech2Text: every file format, every way of saying what is wanted."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.tensorflow_file import TENSORFLOW_NAME, read_tensorflow
from corpus_asr.models.auto import AutoModelForSpeechSeq2Seq
from corpus_asr.models.speech2text import (
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
)
from tests.support.checkpoints import tiny_network
from tests.support.weight_formats import SPEECH2TEXT, SPEECH2TEXT_MODEL, write_tensorflow

Ours = Speech2TextForConditionalGeneration
BOTH = (Speech2TextModel, Speech2TextForConditionalGeneration)
LM_HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_network(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_network(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_names_and_weights_are_those_of_transformers(
    request: pytest.FixtureRequest, which: str
) -> None:
    folder = request.getfixturevalue(which)
    theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(folder)
    ours = Ours.from_pretrained(folder)
    same(ours.state_dict(), theirs.state_dict())
    shared = ours.lm_head.weight is ours.get_input_embeddings().weight
    assert shared == (which == "tied")
    assert isinstance(AutoModelForSpeechSeq2Seq.from_pretrained(folder), Ours)


@pytest.mark.parametrize("which", ["tied", "untied"])
@pytest.mark.parametrize("safe", [True, False])
def test_what_is_saved_loads_in_transformers_and_here(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, safe: bool
) -> None:
    model = Ours.from_pretrained(request.getfixturevalue(which))
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size="60KB")
    assert len([p for p in tmp_path.iterdir() if p.suffix in (".safetensors", ".bin")]) > 1
    same(Ours.from_pretrained(tmp_path).state_dict(), model.state_dict())
    theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(
        tmp_path, use_safetensors=safe
    )
    same(dict(theirs.state_dict()), model.state_dict())


def test_the_base_model_and_the_whole_one_load_each_others_files(
    tied: Path, untied: Path, tmp_path: Path
) -> None:
    base = Speech2TextModel.from_pretrained(untied)
    base.save_pretrained(tmp_path)
    assert all(not name.startswith("model.") for name in load_file(tmp_path / "model.safetensors"))
    again = Speech2TextModel.from_pretrained(tmp_path)
    same(again.state_dict(), base.state_dict())
    Speech2TextModel.from_pretrained(tied).save_pretrained(tmp_path / "tied")
    whole = Ours.from_pretrained(tmp_path / "tied")
    same(whole.state_dict(), Ours.from_pretrained(tied).state_dict())


def test_what_old_files_store_of_positions_is_passed_over(tied: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tied, tmp_path / "old")
    state = Ours.from_pretrained(tied).state_dict()
    (folder / "model.safetensors").unlink()
    for tower in ("encoder", "decoder"):
        state[f"model.{tower}.embed_positions.weights"] = torch.zeros(9, 24)
        state[f"model.{tower}.version"] = torch.zeros(1)
    torch.save(state, folder / "pytorch_model.bin")
    for cls in BOTH:
        found = cls.from_pretrained(folder).state_dict()
        same(found, cls.from_pretrained(tied).state_dict())


@pytest.mark.parametrize("which", ["tied", "untied"])
@pytest.mark.parametrize("cls", BOTH)
def test_a_file_of_tensorflow_gives_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, cls: Any
) -> None:
    folder = request.getfixturevalue(which)
    model = cls.from_pretrained(folder)
    shutil.copy(folder / "config.json", tmp_path)
    if cls is Ours:
        write_tensorflow(tmp_path / TENSORFLOW_NAME, model.state_dict(), layout=SPEECH2TEXT)
    else:
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        write_tensorflow(tmp_path / TENSORFLOW_NAME, state, layout=SPEECH2TEXT_MODEL)
    same(cls.from_pretrained(tmp_path).state_dict(), model.state_dict())
    assert (LM_HEAD in read_tensorflow(tmp_path / TENSORFLOW_NAME)) == (cls is Ours)


def test_a_file_of_tensorflow_without_the_projection_ties_it(tied: Path, tmp_path: Path) -> None:
    state = Speech2TextModel.from_pretrained(tied).state_dict()
    shutil.copy(tied / "config.json", tmp_path)
    state = {f"model.{name}": tensor for name, tensor in state.items()}
    write_tensorflow(tmp_path / TENSORFLOW_NAME, state, layout=SPEECH2TEXT_MODEL)
    same(Ours.from_pretrained(tmp_path).state_dict(), Ours.from_pretrained(tied).state_dict())


def test_a_pickle_that_would_run_code_is_refused(tied: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "run",))

    shutil.copy(tied / "config.json", tmp_path)
    torch.save({"model.encoder.layer_norm.weight": Attack()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Refused: loading it could run any code"):
        Ours.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Attack()}))
    with pytest.raises(CheckpointError, match="pytorch_model"):
        Ours.from_pretrained(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_broken_weights_are_one_clear_error(
    tied: Path, tmp_path: Path, weights: str, kept: float
) -> None:
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[weights]
    model = Ours.from_pretrained(tied)
    model.save_pretrained(tmp_path, safe_serialization=weights == "safetensors")
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match=rf"reading \S*{name}: found .* again"):
        Ours.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"d_model": 48}, r"is \(20,\) in model.safetensors|not \(48"),
        ({"conv_kernel_sizes": (3, 5)}, r"conv_layers.0.weight is .* not \(20, 80, 3\)"),
        ({"decoder_layers": 3}, r"missing: decoder.layers.2"),
        ({"encoder_layers": 1}, r"unexpected: encoder.layers.1"),
        ({"num_mel_bins": 40}, "unknown keyword num_mel_bins"),
        ({"pad_token_id": None}, "pad_token_id is None, expected 0 or more"),
        ({"pad_token_id": 500}, "pad_token_id is 500, but vocab_size is 120"),
    ],
)
def test_a_configuration_of_another_model_is_named(
    tied: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises((CheckpointError, TypeError), match=message):
        Ours.from_pretrained(tied, **changed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_and_place_are_as_asked(tied: Path, dtype: torch.dtype) -> None:
    model = Ours.from_pretrained(tied, dtype=dtype, device="cpu")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert (model.dtype, model.device.type) == (dtype, "cpu")
    assert not model.training


@pytest.mark.parametrize("tied_too", [True, False])
def test_tables_of_tokens_grow_and_shrink_together(
    tied: Path, untied: Path, tied_too: bool
) -> None:
    model = Ours.from_pretrained(tied if tied_too else untied)
    before = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(130)
    assert model.config.vocab_size == 130
    assert model.lm_head.weight.shape == (130, 24)
    assert torch.equal(model.get_input_embeddings().weight[:120], before)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied_too
    tokens = torch.tensor([[2, 129]])
    logits = model(torch.zeros(1, 9, 80), decoder_input_ids=tokens).logits
    assert logits.shape == (1, 2, 130)


def test_fresh_weights_are_drawn_like_those_of_transformers() -> None:
    config = Speech2TextConfig(encoder_layers=1, decoder_layers=1)
    theirs = transformers.Speech2TextForConditionalGeneration(
        transformers.Speech2TextConfig(encoder_layers=1, decoder_layers=1)
    )
    ours = Ours(config).state_dict()
    for name, expected in theirs.state_dict().items():
        assert ours[name].std(correction=0).item() == pytest.approx(
            expected.std(correction=0).item(), rel=0.1
        ), name
        assert ours[name].mean().item() == pytest.approx(expected.mean().item(), abs=0.01), name
    assert not ours["model.decoder.embed_tokens.weight"][config.pad_token_id].any()


def test_a_frozen_encoder_learns_nothing(tied: Path) -> None:
    model = Ours.from_pretrained(tied)
    model.freeze_encoder()
    labels = torch.tensor([[5, 6, 2]])
    model(torch.ones(1, 20, 80), labels=labels).loss.backward()
    assert all(p.grad is None for p in model.get_encoder().parameters())
    assert all(p.grad is not None for p in model.get_decoder().parameters())
