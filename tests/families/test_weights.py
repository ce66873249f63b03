"""Weights are read strictly and safely, also in INT8; damage is named."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families import weights
from corpus_asr.families.layers.stack import sinusoids
from corpus_asr.families.weights import dequantized, quantized, stored_tensors
from corpus_asr.families.whisper.model import WhisperModel
from corpus_asr.models.auto import AutoModelForSpeechSeq2Seq
from corpus_asr.models.convert import convert
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.storage.model_files import PACKAGED_FOLDER
from tests.support.checkpoints import Weights, tiny_speech2text, tiny_whisper

State = dict[str, Tensor]
INT8_NAME = "model.int8.safetensors"
EMBEDDING = "model.decoder.embed_tokens.weight"


def edit(folder: Path, change: Callable[[State], object]) -> Path:
    """Write a tiny checkpoint whose tensors `change` has changed in place."""
    tiny_whisper(folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


def load(folder: Path, **kwargs: Any) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder, **kwargs)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    return str(caught.value)


def test_files_from_before_pytorch_1_6_are_read(tmp_path: Path) -> None:
    expected = load(tiny_whisper(tmp_path)).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(expected, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path).state_dict()[EMBEDDING], expected[EMBEDDING])


def test_the_output_projection_is_the_token_embedding_unless_one_is_stored(tmp_path: Path) -> None:
    model = load(tiny_whisper(tmp_path / "both", weights="bin"))
    table = model.model.decoder.embed_tokens.weight
    assert model.proj_out.weight is table
    one = edit(tmp_path / "one", lambda s: s.update({"proj_out.weight": s.pop(EMBEDDING)}))
    assert torch.equal(load(one).model.decoder.embed_tokens.weight, table)
    two = edit(tmp_path / "two", lambda s: s.update({"proj_out.weight": s[EMBEDDING] + 1}))
    assert torch.equal(load(two).proj_out.weight, table + 1)


def test_missing_encoder_positions_are_computed(tmp_path: Path) -> None:
    edit(tmp_path, lambda state: state.pop("model.encoder.embed_positions.weight"))
    assert torch.equal(load(tmp_path).model.encoder.embed_positions.weight, sinusoids(1500, 64))


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def spoil(state: State) -> None:
        state["model.decoder.layers.0.fc1.bias"] = torch.zeros(3)
        name = "model.encoder.layers.0.fc1.weight"
        state[name] = state[name].int()

    message = refused(edit(tmp_path, spoil))
    assert "decoder.layers.0.fc1.bias is (3,) in model.safetensors, not (256,)" in message
    assert "encoder.layers.0.fc1.weight in model.safetensors is not of a float type" in message

    def swap(state: State) -> None:
        state["model.decoder.layers.1.fc1.width"] = state.pop("model.decoder.layers.1.fc1.weight")

    message = refused(edit(tmp_path, swap))
    assert f"loading {tmp_path} (model.safetensors)" in message
    assert "1 missing: decoder.layers.1.fc1.weight" in message
    assert "1 unexpected: decoder.layers.1.fc1.width" in message


def test_a_checkpoint_of_another_size_lists_some_of_its_problems(tmp_path: Path) -> None:
    tiny_whisper(tmp_path / "large", d_model=128)
    tiny_whisper(tmp_path / "small")
    os.replace(tmp_path / "small" / "config.json", tmp_path / "large" / "config.json")
    message = refused(tmp_path / "large")
    assert "tensors do not fit config.json" in message
    assert message.count(" is (") == 8
    assert " more" in message


@pytest.mark.parametrize("weights", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_a_truncated_file_is_named(tmp_path: Path, weights: Weights) -> None:
    tiny_whisper(tmp_path, weights=weights)
    path = max(tmp_path.glob("*model*"), key=lambda path: path.stat().st_size)
    for keep in (0.999, 0.5, 0.0):
        os.truncate(path, int(path.stat().st_size * keep))
        message = refused(tmp_path)
        assert str(path) in message, keep
        assert "download it again" in message, keep


# No chance: torch warns of a first byte 0x80, which is that of a pickle of some protocol.
NOISE = random.Random(0).randbytes(999)


def test_files_that_hold_no_weights_are_named(tmp_path: Path) -> None:
    tiny_whisper(tmp_path)
    plain, pickled = tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin"
    plain.rename(tmp_path / "model.onnx")
    message = refused(tmp_path)
    assert "model.onnx" in message
    assert "expected model.safetensors" in message
    for path in (pickled, plain):
        for content in (b"\x00" * 64, b"\xff" * 64, b"not weights", NOISE):
            path.write_bytes(content)
            message = refused(tmp_path)
            assert str(path) in message, content
            assert "weights_only" not in message, content  # torch's advice to load it all the same
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 290403936\n"
    plain.write_text(pointer)
    assert "git lfs pull" in refused(tmp_path)
    plain.unlink()
    for values in ([1, 2], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(3)):
        torch.save(values, pickled)
        assert "expected tensors by name" in refused(tmp_path), values


class Trap:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.witness),))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, form: str) -> None:
    state = load(tiny_whisper(tmp_path)).state_dict()
    (tmp_path / "model.safetensors").unlink()
    content = {**state, "trap": Trap(tmp_path / "ran")}
    path = tmp_path / "pytorch_model.bin"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"trap": Trap(tmp_path / "ran")}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(tmp_path)
    assert str(path) in message
    assert (
        "found a call of posix.mkdir, expected only tensors, since loading it could run any code"
        in message
    )
    assert not (tmp_path / "ran").exists()


def test_an_index_must_not_point_outside_its_folder(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "checkpoint", weights="sharded safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for name in ("../outside.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "C:\\x"):
        content["weight_map"][EMBEDDING] = name
        index.write_text(json.dumps(content))
        message = refused(folder)
        assert str(index) in message, name
        assert "expected names of files in its folder only" in message, name


def test_a_broken_index_and_shards_that_are_not_its_own_are_named(tmp_path: Path) -> None:
    tiny_whisper(tmp_path, weights="sharded safetensors")
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.unlink()
    assert f"found no shard {shard.name}" in refused(tmp_path)
    save_file({"x": torch.zeros(1)}, shard)
    assert "files of one checkpoint" in refused(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content in ("", "{", "[]", "{}", '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        assert str(index) in refused(tmp_path), content


def test_weights_keep_their_widest_type_or_get_the_one_asked_for(tmp_path: Path) -> None:
    def mix(state: State) -> None:
        for name in list(state):
            if "layer_norm" not in name:
                state[name] = state[name].half()

    half = tiny_whisper(tmp_path / "half", dtype=torch.float16)
    mixed = edit(tmp_path / "mixed", mix)
    for folder, asked, expected in (
        (half, None, torch.float16),
        (half, torch.bfloat16, torch.bfloat16),
        (mixed, None, torch.float32),
    ):
        model = load(folder, dtype=asked) if asked else load(folder)
        assert {t.dtype for t in model.state_dict().values()} == {model.dtype} == {expected}


def test_weights_do_not_change_with_their_file(tmp_path: Path) -> None:
    model = load(tiny_whisper(tmp_path))
    before = model.model.decoder.embed_tokens.weight.clone()
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (path.stat().st_size // 4))
    assert torch.equal(model.model.decoder.embed_tokens.weight, before)


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


def test_networks_load_close_to_the_original(original: Path, folder: Path, tmp_path: Path) -> None:
    speech2text = tiny_speech2text(tmp_path / "float")
    convert(speech2text, tmp_path / "rounded", dtype="int8")
    whisper, auto = (original, folder), AutoModelForSpeechSeq2Seq.from_pretrained
    for read, pair in (
        (load, whisper),
        (auto, whisper),
        (WhisperModel.from_pretrained, whisper),
        (auto, (speech2text, tmp_path / "rounded")),
    ):
        exact, rounded = (read(path, dtype=torch.float32).state_dict() for path in pair)
        assert exact.keys() == rounded.keys()
        for name, tensor in exact.items():
            assert (rounded[name] - tensor).norm() <= 0.01 * tensor.norm() + 1e-6, name


def test_transformers_loads_what_is_saved_after_loading_and_never_integers(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="no file named"):
        transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    model = load(folder)
    assert model.dtype == torch.float16  # the scales' own
    model.save_pretrained(tmp_path / "saved")
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    ours = dict(model.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in theirs.named_parameters())


def test_it_converts_back_to_floats_but_not_to_openais_layout(
    original: Path, folder: Path, tmp_path: Path
) -> None:
    convert(folder, tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    exact = load_file(original / "model.safetensors")[MATRIX]
    assert (stored[MATRIX] - exact).norm() <= 0.01 * exact.norm()
    with pytest.raises(ConfigError, match="float weights"):
        convert(original, tmp_path / "model.pt", dtype="int8")


SCALE = f"{MATRIX}_scale"
BIAS = "model.decoder.layer_norm.bias"


def test_damage_is_named(folder: Path) -> None:
    whole = load_file(folder / INT8_NAME)
    scale = whole[SCALE]
    vector: dict[str, Tensor | None] = {
        BIAS: torch.zeros(64).char(),
        f"{BIAS}_scale": torch.ones(64).half(),
    }
    divisor = r"not \(256, a divisor of 64\)"
    damages: list[tuple[dict[str, Tensor | None], str]] = [
        ({SCALE: None}, f"{MATRIX} in INT8 without {SCALE}"),
        ({MATRIX: None}, "1 missing: .*layers.1.fc1.weight.*1 unexpected: .*fc1.weight_scale"),
        ({SCALE: scale.repeat(1, 3)}, rf"of shape \(256, 3\), {divisor}"),
        ({SCALE: scale[:-1].clone()}, rf"of shape \(255, 1\), {divisor}"),
        ({SCALE: scale.to(torch.int8)}, f"{SCALE} that is not of a float type"),
        ({SCALE: -scale}, f"{SCALE} with values that are not above zero"),
        ({SCALE: scale / 0}, f"{SCALE} with values that are not above zero"),
        ({MATRIX: whole[MATRIX].t().contiguous()}, r"\(64, 256\) in INT8, but .* \(256, 1\)"),
        (vector, "only matrices are INT8"),
    ]
    for damage, message in damages:
        tensors = {name: tensor for name, tensor in (whole | damage).items() if tensor is not None}
        save_file(tensors, folder / INT8_NAME, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            load(folder)


def test_the_packaged_model_is_int8_small_and_comes_with_licence_and_card() -> None:
    folder = PACKAGED_FOLDER / "whisper-tiny.en"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 41_000_000
    stored = load_file(folder / INT8_NAME)
    assert sum(tensor.dtype == torch.int8 for tensor in stored.values()) == 67
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    assert model.num_parameters() == 37_760_256
    assert (folder / "LICENSE").read_text().startswith("MIT License")
    assert "SHA-256" in (folder / "README.md").read_text()


def test_a_file_is_mapped_again_after_some_reading_and_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_whisper(tmp_path)
    opened: list[Path] = []

    def counted(path: Path, **options: Any) -> Any:
        opened.append(path)
        return safe_open(path, **options)

    monkeypatch.setattr(weights, "safe_open", counted)
    expected = {name: tensor.read().clone() for name, tensor in stored_tensors(tmp_path).items()}
    assert len(opened) == 1
    total_bytes = sum(tensor.nbytes for tensor in expected.values())
    monkeypatch.setattr(weights, "_MAX_MAPPED_BYTES", total_bytes // 4)
    for name, tensor in stored_tensors(tmp_path).items():
        assert torch.equal(tensor.read(), expected[name])
    assert 3 <= len(opened) - 1 <= 5
