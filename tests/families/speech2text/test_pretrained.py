"""Loading and saving Speech2Text: every file format, every way of saying what is wanted."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.foreign_weights import TENSORFLOW_NAME, read_tensorflow
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
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose projection is tied to the tokens' table, and not."""
    return {
        name: tiny_network(tmp_path_factory.mktemp(name), tie_word_embeddings=name == "tied")
        for name in ("tied", "untied")
    }


@pytest.fixture(params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture(scope="module")
def tied(folders: dict[str, Path]) -> Path:
    return folders["tied"]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_what_is_saved_loads_in_transformers_and_here(folder: Path, tmp_path: Path) -> None:
    Theirs = transformers.Speech2TextForConditionalGeneration  # noqa: N806
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    assert isinstance(model, Ours)
    same(model.state_dict(), dict(Theirs.from_pretrained(folder).state_dict()))
    shared = model.lm_head.weight is model.get_input_embeddings().weight
    assert shared == model.config.tie_word_embeddings
    for safe, saved in ((True, tmp_path / "safe"), (False, tmp_path / "pickled")):
        model.save_pretrained(saved, safe_serialization=safe, max_shard_size="60KB")
        assert len([p for p in saved.iterdir() if p.suffix in (".safetensors", ".bin")]) > 1
        same(Ours.from_pretrained(saved).state_dict(), model.state_dict())
        theirs = Theirs.from_pretrained(saved, use_safetensors=safe)
        same(dict(theirs.state_dict()), model.state_dict())


def test_the_base_model_and_the_whole_one_load_each_others_files(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = Speech2TextModel.from_pretrained(folders["untied"])
    base.save_pretrained(tmp_path)
    assert all(not name.startswith("model.") for name in load_file(tmp_path / "model.safetensors"))
    same(Speech2TextModel.from_pretrained(tmp_path).state_dict(), base.state_dict())
    Speech2TextModel.from_pretrained(folders["tied"]).save_pretrained(tmp_path / "tied")
    whole = Ours.from_pretrained(tmp_path / "tied")
    same(whole.state_dict(), Ours.from_pretrained(folders["tied"]).state_dict())


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


@pytest.mark.parametrize("cls", BOTH)
def test_a_file_of_tensorflow_gives_the_same(folder: Path, tmp_path: Path, cls: Any) -> None:
    model = cls.from_pretrained(folder)
    shutil.copy(folder / "config.json", tmp_path)
    file = tmp_path / TENSORFLOW_NAME
    if cls is Ours:
        write_tensorflow(file, model.state_dict(), layout=SPEECH2TEXT)
    else:
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        write_tensorflow(file, state, layout=SPEECH2TEXT_MODEL)
    same(cls.from_pretrained(tmp_path).state_dict(), model.state_dict())
    assert (LM_HEAD in read_tensorflow(file)) == (cls is Ours)
    if cls is not Ours and model.config.tie_word_embeddings:  # without the projection it is tied
        same(Ours.from_pretrained(tmp_path).state_dict(), Ours.from_pretrained(folder).state_dict())


def test_a_configuration_of_another_model_is_named(tied: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"d_model": 48}, r"is \(20,\) in model.safetensors|not \(48"),
        ({"conv_kernel_sizes": (3, 5)}, r"conv_layers.0.weight is .* not \(20, 80, 3\)"),
        ({"decoder_layers": 3}, r"missing: decoder.layers.2"),
        ({"encoder_layers": 1}, r"unexpected: encoder.layers.1"),
        ({"num_mel_bins": 40}, "unknown keyword num_mel_bins"),
        ({"pad_token_id": None}, "pad_token_id is None, expected 0 or more"),
        ({"pad_token_id": 500}, "pad_token_id is 500, but vocab_size is 120"),
    ]
    for changed, message in changes:
        with pytest.raises((CheckpointError, TypeError), match=message):
            Ours.from_pretrained(tied, **changed)


def test_fresh_weights_are_drawn_like_those_of_transformers() -> None:
    config = Speech2TextConfig(encoder_layers=1, decoder_layers=1)
    theirs = transformers.Speech2TextForConditionalGeneration(
        transformers.Speech2TextConfig(encoder_layers=1, decoder_layers=1)
    )
    ours = Ours(config).state_dict()
    for name, expected in theirs.state_dict().items():
        spread = ours[name].std(correction=0).item()
        assert spread == pytest.approx(expected.std(correction=0).item(), rel=0.1), name
        assert ours[name].mean().item() == pytest.approx(expected.mean().item(), abs=0.01), name
    assert not ours["model.decoder.embed_tokens.weight"][config.pad_token_id].any()
