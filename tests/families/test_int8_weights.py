"""INT8 checkpoints: what `convert --dtype int8` writes, every loader reads; damage is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.weights import INT8_NAME, dequantized, quantized
from corpus_asr.families.whisper.classifier import WhisperForAudioClassification
from corpus_asr.families.whisper.model import WhisperModel
from corpus_asr.models.auto import AutoModelForSpeechSeq2Seq
from corpus_asr.models.convert.folder import convert
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.storage.model_files import PACKAGED_FOLDER
from tests.support.checkpoints import tiny_speech2text, tiny_whisper

MATRIX = "model.decoder.layers.1.fc1.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("float"), d_model=64)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    convert(original, tmp_path / "int8", dtype="int8")
    return tmp_path / "int8"


@given(st.integers(1, 5), st.sampled_from([1, 7, 16, 60, 64, 127, 240, 384]), st.floats(1e-6, 1e3))
def test_no_weight_moves_by_more_than_half_a_step(rows: int, width: int, spread: float) -> None:
    weights = torch.randn(rows, width, generator=torch.Generator().manual_seed(width)) * spread
    stored = quantized({"w": weights})
    values, scales = stored["w"], stored["w_scale"]
    assert values.dtype == torch.int8
    assert scales.dtype == torch.float16
    steps = scales.float().repeat_interleave(width // scales.shape[1], dim=1)
    # Beside rounding to steps: the scale was rounded to float16, and so is the product.
    slack = weights.abs() * 2.0**-10 + 1e-7
    assert bool(((dequantized(values, scales) - weights).abs() <= steps / 2 + slack).all())


def test_zeros_stay_zeros() -> None:
    stored = quantized({"w": torch.zeros(2, 64)})
    assert not dequantized(stored["w"], stored["w_scale"]).any()


def test_matrices_are_int8_and_the_file_is_half_as_large(original: Path, folder: Path) -> None:
    stored = load_file(folder / INT8_NAME)
    ints = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    assert MATRIX in ints
    assert "model.encoder.conv1.weight" in ints
    assert {f"{name}_scale" for name in ints} <= stored.keys()
    assert "model.decoder.embed_positions.weight" not in ints
    assert all(t.dtype == torch.float16 for name, t in stored.items() if name not in ints)
    convert(original, folder.parent / "half", dtype="float16")
    half = (folder.parent / "half" / "model.safetensors").stat().st_size
    assert (folder / INT8_NAME).stat().st_size < 0.6 * half


@pytest.mark.parametrize(
    "load",
    [
        WhisperForConditionalGeneration.from_pretrained,
        AutoModelForSpeechSeq2Seq.from_pretrained,
        WhisperModel.from_pretrained,
    ],
)
def test_networks_load_close_to_the_original(
    load: Callable[..., torch.nn.Module], original: Path, folder: Path
) -> None:
    exact, rounded = (load(path, dtype=torch.float32).state_dict() for path in (original, folder))
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        assert (rounded[name] - tensor).norm() <= 0.01 * tensor.norm() + 1e-6, name


def test_the_stored_type_is_that_of_the_scales(folder: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    assert model.dtype == torch.float16
    with pytest.warns(UserWarning, match="drawn"):
        WhisperForAudioClassification.from_pretrained(folder)


def test_what_is_saved_after_loading_is_a_float_checkpoint(folder: Path, tmp_path: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    ours = dict(model.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in theirs.named_parameters())


def test_transformers_finds_no_weights_instead_of_computing_with_integers(folder: Path) -> None:
    with pytest.raises(OSError, match="no file named"):
        transformers.WhisperForConditionalGeneration.from_pretrained(folder)


def test_it_converts_back_to_floats(original: Path, folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    exact = load_file(original / "model.safetensors")[MATRIX]
    assert (stored[MATRIX] - exact).norm() <= 0.01 * exact.norm()


def test_speech2text_is_stored_and_loaded_likewise(tmp_path: Path) -> None:
    source = tiny_speech2text(tmp_path / "float")
    convert(source, tmp_path / "int8", dtype="int8")
    exact, rounded = (
        AutoModelForSpeechSeq2Seq.from_pretrained(path, dtype=torch.float32).state_dict()
        for path in (source, tmp_path / "int8")
    )
    for name, tensor in exact.items():
        assert (rounded[name] - tensor).norm() <= 0.01 * tensor.norm() + 1e-6, name


def test_int8_survives_shards(original: Path, tmp_path: Path) -> None:
    convert(original, tmp_path / "int8", dtype="int8", max_shard_size="40KB")
    assert (tmp_path / f"int8/{INT8_NAME}.index.json").is_file()
    assert WhisperForConditionalGeneration.from_pretrained(tmp_path / "int8").dtype == torch.float16


def test_the_packaged_model_is_converted_by_its_name(tmp_path: Path) -> None:
    command = ["convert", "whisper-tiny.en", str(tmp_path / "half"), "--dtype", "float16"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "half" / "model.safetensors").stat().st_size > 70_000_000


def test_openais_layout_holds_no_int8(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float weights only"):
        convert(original, tmp_path / "model.pt", dtype="int8")


def _without_scale(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{MATRIX}_scale"]


def _without_values(tensors: dict[str, Tensor]) -> None:
    del tensors[MATRIX]


def _other_groups(tensors: dict[str, Tensor]) -> None:
    tensors[f"{MATRIX}_scale"] = tensors[f"{MATRIX}_scale"].repeat(1, 3)


def _other_rows(tensors: dict[str, Tensor]) -> None:
    tensors[f"{MATRIX}_scale"] = tensors[f"{MATRIX}_scale"][:-1].clone()


def _whole_number_scales(tensors: dict[str, Tensor]) -> None:
    tensors[f"{MATRIX}_scale"] = torch.ones_like(tensors[f"{MATRIX}_scale"], dtype=torch.int8)


def _negative_scale(tensors: dict[str, Tensor]) -> None:
    tensors[f"{MATRIX}_scale"][0, 0] = -1.0


def _infinite_scale(tensors: dict[str, Tensor]) -> None:
    tensors[f"{MATRIX}_scale"][0, 0] = torch.inf


def _other_shape(tensors: dict[str, Tensor]) -> None:
    tensors[MATRIX] = tensors[MATRIX].t().contiguous()


def _int8_vector(tensors: dict[str, Tensor]) -> None:
    tensors["model.decoder.layer_norm.bias"] = torch.zeros(64, dtype=torch.int8)
    tensors["model.decoder.layer_norm.bias_scale"] = torch.ones(64, dtype=torch.float16)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (_without_scale, f"{MATRIX} in INT8 without {MATRIX}_scale"),
        (_without_values, "1 missing: .*layers.1.fc1.weight.*1 unexpected: .*fc1.weight_scale"),
        (_other_groups, r"its scales are of shape \(256, 3\), not \(256, a divisor of 64\)"),
        (_other_rows, r"its scales are of shape \(255, 1\), not \(256, a divisor of 64\)"),
        (_whole_number_scales, f"{MATRIX}_scale that is not of a float type"),
        (_negative_scale, f"{MATRIX}_scale with values that are not above zero"),
        (_infinite_scale, f"{MATRIX}_scale with values that are not above zero"),
        (_other_shape, r"of shape \(64, 256\) in INT8, but its scales are of shape \(256, 1\)"),
        (_int8_vector, "only matrices are INT8"),
    ],
)
def test_damage_is_named(
    damage: Callable[[dict[str, Tensor]], None], found: str, folder: Path
) -> None:
    tensors = load_file(folder / INT8_NAME)
    damage(tensors)
    save_file(tensors, folder / INT8_NAME, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=found):
        WhisperForConditionalGeneration.from_pretrained(folder)


def test_a_file_that_was_cut_is_named(folder: Path) -> None:
    path = folder / INT8_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"int8\.safetensors: found \d+ bytes that cannot"):
        WhisperForConditionalGeneration.from_pretrained(folder)


def test_the_packaged_model_is_int8_small_and_comes_with_licence_and_card() -> None:
    folder = PACKAGED_FOLDER / "whisper-tiny.en"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 41_000_000
    stored = load_file(folder / INT8_NAME)
    assert sum(tensor.dtype == torch.int8 for tensor in stored.values()) == 67
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    assert model.num_parameters() == 37_760_256
    assert (folder / "LICENSE").read_text().startswith("MIT License")
    assert "SHA-256" in (folder / "README.md").read_text()
