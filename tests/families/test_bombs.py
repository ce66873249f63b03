"""Small files that claim to be huge: each is a checkpoint error at once, in little memory."""

import io
import json
import os
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus_asr.errors import CheckpointError
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.families.saved_files import MAX_SAVED_BYTES
from corpus_asr.models.convert import read_openai
from corpus_asr.models.speech2text import Speech2TextFeatureExtractor
from corpus_asr.models.whisper import WhisperFeatureExtractor
from corpus_asr.units import MEBIBYTE
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.tokenizers import tiny_speech2text_tokenizer, tiny_tokenizer

MOST_SECONDS = 5.0  # of the processor: on a busy machine others take their share of the clock
MOST_BYTES = 400 * MEBIBYTE
DEEP = "[" * 100_000 + "]" * 100_000
SPM = "sentencepiece.bpe.model"
DIMENSIONS = (
    "n_mels", "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer",
    "n_text_ctx", "n_text_state", "n_text_head", "n_text_layer",
)  # fmt: skip

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    tiny_tokenizer(root / "tokens", multilingual=True)
    sizes: dict[str, Any] = {"d_model": 16, "layers": 1, "heads": 2, "tokenizer": root / "tokens"}
    tiny_whisper(root / "whisper", **sizes)
    tiny_whisper(root / "pickled", weights="bin", **sizes)
    tiny_speech2text_tokenizer(root / "pieces")
    tiny_speech2text(root / "speech2text", **sizes | {"tokenizer": root / "pieces"})
    return root


def load(folder: Path) -> None:
    """Read everything that a run reads of a checkpoint."""
    family = family_of(folder)
    resolve(family.part_features).from_folder(folder)
    resolve(family.tokenizer).from_pretrained(folder)
    resolve(family.generation).from_pretrained(folder)
    resolve(family.slot_model).from_pretrained(folder)


def says(name: str = "config.json", **values: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return change


def deep(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(f'{{"a": {DEEP}}}')

    return change


def large(name: str) -> Change:
    return lambda folder: os.truncate(folder / name, MAX_SAVED_BYTES + 1)


def header(content: bytes, *, length: int | None = None) -> Change:
    size = struct.pack("<Q", len(content) if length is None else length)
    return lambda folder: (folder / "model.safetensors").write_bytes(size + content)


def claimed(shape: list[int]) -> Change:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
    return header(json.dumps({"a": entry}).encode())


def elsewhere(target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = json.dumps({"weight_map": {"a": target}})
        (folder / "model.safetensors.index.json").write_text(index)

    return change


def linked(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def a_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def compressed(folder: Path) -> None:
    # The pickle begins with bytes that are dropped again: a thousand times what they are in it.
    path, packed = folder / "pytorch_model.bin", io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                size = 64 * MEBIBYTE
                data = data[:2] + b"\x8e" + struct.pack("<Q", size) + bytes(size) + b"0" + data[2:]
            new.writestr(name, data)
    path.write_bytes(packed.getvalue())


def expanded(folder: Path) -> None:
    # One number that stands for a matrix of any size, and a config that asks for just that.
    wide: dict[str, Any] = {"d_model": 4096, "vocab_size": 10**6}
    says(**wide, encoder_ffn_dim=64, decoder_ffn_dim=64)(folder)
    network = resolve(family_of(folder).slot_model)
    with torch.device("meta"):
        state = network(network.config_class.from_pretrained(folder)).state_dict()
    one = torch.zeros(1)
    views = {name: one.expand(tensor.shape) for name, tensor in state.items()}
    torch.save(views, folder / "pytorch_model.bin")


def old_vocabulary(vocab: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(vocab)
        (folder / "merges.txt").write_text("")

    return change


CONFIG: dict[str, dict[str, Any]] = {
    "whisper": {
        "d_model": 10**9, "vocab_size": 10**12, "encoder_layers": 10**9, "decoder_layers": 10**9,
        "encoder_ffn_dim": 10**12, "max_source_positions": 10**10, "max_target_positions": 10**12,
        "num_mel_bins": 10**9, "encoder_attention_heads": 10**9, "num_labels": 10**9,
        "classifier_proj_size": 2**70, "median_filter_width": 10**9 + 1,
        "id2label": {str(number): "x" for number in range(100_001)},
    },
    "speech2text": {
        "num_conv_layers": 10**9, "conv_kernel_sizes": [5] * 100_000, "conv_channels": 10**12,
        "input_channels": 10**9, "input_feat_per_channel": 10**9, "max_source_positions": 10**10,
    },
}  # fmt: skip

BOMBS: dict[str, tuple[str, Change]] = {
    **{
        f"{family} {key}": (family, says(**{key: value}))
        for family, values in CONFIG.items()
        for key, value in values.items()
    },
    **{
        f"{what.__name__} {name}": (family, what(name))
        for what in (deep, large)
        for family, names in {
            "whisper": (
                "config.json",
                "tokenizer.json",
                "generation_config.json",
                "tokenizer_config.json",
                "preprocessor_config.json",
            ),
            "speech2text": ("vocab.json", SPM),
        }.items()
        for name in names
    },
    "a device": ("whisper", linked("config.json", "/dev/zero")),
    "a pipe": ("whisper", a_pipe),
    "a header of terabytes": ("whisper", header(b"{}", length=10**12)),
    "the longest header": ("whisper", header(b"{}", length=2**64 - 1)),
    "a deep header": ("whisper", header(f'{{"a": {DEEP}}}'.encode())),
    "a header of many names": ("whisper", header(b" " * (17 * MEBIBYTE))),
    "a tensor of terabytes": ("whisper", claimed([10**6, 10**6])),
    "a tensor beyond 64 bits": ("whisper", claimed([2**62, 4])),
    "shards elsewhere": ("whisper", elsewhere("../../etc/passwd")),
    "shards of the root": ("whisper", elsewhere("/etc/passwd")),
    "a compressed pickle": ("pickled", compressed),
    "views of one number": ("pickled", expanded),
    "half a pair in a token": ("whisper", old_vocabulary('{"\\ud800": 0}')),
    "an id beyond 32 bits": ("whisper", old_vocabulary(f'{{"a": {2**40}}}')),
    "half a pair in a piece": ("speech2text", says("vocab.json", **{"\udcff": 9_999})),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_claims_to_be_huge_is_refused_before_it_is_believed(
    checkpoints: Path, tmp_path: Path, name: str
) -> None:
    base, change = BOMBS[name]
    folder = shutil.copytree(checkpoints / base, tmp_path / "checkpoint")
    change(folder)
    refused(lambda: load(folder), match="reading|loading|building")


def refused(call: Callable[[], object], *, match: str) -> None:
    began_s, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=match) as caught:
        call()
    assert time.process_time() - began_s < MOST_SECONDS
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MOST_BYTES
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("key", ["feature_size", "n_fft", "chunk_length"])
def test_an_extractor_does_not_pad_to_years(checkpoints: Path, tmp_path: Path, key: str) -> None:
    folder = shutil.copytree(checkpoints / "whisper", tmp_path / "checkpoint")
    says("preprocessor_config.json", **{key: 10**10})(folder)
    refused(lambda: WhisperFeatureExtractor.from_pretrained(folder), match=f"found {key} 10")


def test_other_files_are_held_to_the_same(checkpoints: Path, tmp_path: Path) -> None:
    bins = tmp_path / "preprocessor_config.json"
    bins.write_text('{"num_mel_bins": 1000000000}')
    refused(lambda: Speech2TextFeatureExtractor.from_pretrained(tmp_path), match="1 to 1000 bins")
    published = tmp_path / "tiny.pt"
    tiny = {name: 8 for name in DIMENSIONS}
    for name, value in {"n_audio_layer": 10**9, "n_vocab": 10**12}.items():
        torch.save({"dims": tiny | {name: value}, "model_state_dict": {}}, published)
        refused(lambda: read_openai(published), match="expected within")
