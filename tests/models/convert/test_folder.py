"""Conversion both ways: openai-whisper and transformers load the result and compute the same."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import whisper
from safetensors.torch import load_file

from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.auto import AutoProcessor
from corpus_asr.models.convert import convert
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.tokenizers import real_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the real vocabulary, which openai-whisper has built in."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    real_tokenizer(tokenizer)
    return tiny_whisper(
        tmp_path_factory.mktemp("checkpoint"), tokenizer=tokenizer, d_model=32, heads=2
    )


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(1, 80, 3000, generator=generator),
        torch.randint(0, 51865, (1, 7), generator=generator),
    )


def test_openai_whisper_loads_our_file_and_computes_the_same(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    assert "million weights" in convert(folder, target)
    theirs = whisper.load_model(str(target), device="cpu")
    ours = WhisperForConditionalGeneration.from_pretrained(folder)
    features, tokens = inputs()
    with torch.inference_mode():
        expected = ours(features, decoder_input_ids=tokens).logits
        torch.testing.assert_close(theirs(features, tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.long
def test_there_and_back_is_the_same_to_the_bit(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "model.pt")
    back = tmp_path / "back"
    convert(tmp_path / "model.pt", back, tokenizer=folder)
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # transformers finds everything it needs.
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(back)
    processor = transformers.WhisperProcessor.from_pretrained(back)
    assert theirs.config.decoder_start_token_id == 50258
    assert processor.tokenizer("hello").input_ids[:2] == [50258, 50363]
    assert vars(theirs.generation_config)["no_timestamps_token_id"] == 50363


@pytest.mark.long
def test_a_file_of_openai_becomes_a_folder(folder: Path, tmp_path: Path) -> None:
    dimensions = whisper.model.ModelDimensions(
        n_mels=80, n_audio_ctx=1500, n_audio_state=16, n_audio_head=2, n_audio_layer=1,
        n_vocab=51865, n_text_ctx=448, n_text_state=16, n_text_head=2, n_text_layer=1,
    )  # fmt: skip
    theirs = whisper.model.Whisper(dimensions).eval()
    for parameter in theirs.parameters():  # some are left as the memory was
        torch.nn.init.normal_(parameter, std=0.1)
    source = tmp_path / "theirs.pt"
    torch.save({"dims": dimensions.__dict__, "model_state_dict": theirs.state_dict()}, source)
    base, target = shutil.copytree(folder, tmp_path / "base"), tmp_path / "folder"
    settings = json.loads((base / "generation_config.json").read_text())
    with_heads = json.dumps({**settings, "alignment_heads": [[1, 0]]})
    (base / "generation_config.json").write_text(with_heads)
    convert(source, target, tokenizer=base)
    ours = WhisperForConditionalGeneration.from_pretrained(target)
    features, tokens = inputs()
    with torch.inference_mode():
        found = ours(features, decoder_input_ids=tokens).logits
        torch.testing.assert_close(found, theirs(features, tokens), atol=1e-5, rtol=1e-4)
    # All settings but the heads of a decoder of other sizes.
    assert json.loads((target / "generation_config.json").read_text()) == settings
    dimensions.n_vocab = 51866
    torch.save({"dims": dimensions.__dict__, "model_state_dict": {}}, source)
    with pytest.raises(CheckpointError, match=r"of 51866 tokens: .* has 51865; pass a check"):
        convert(source, tmp_path / "x", tokenizer=folder)


def test_weights_of_other_frameworks_are_refused_with_the_cure(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"flax_model.msgpack, expected .* transformers 4"):
        WhisperForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.long
def test_a_folder_of_a_trainer_gets_its_tokenizer_by_the_line_of_the_message(
    folder: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "checkpoint-500"
    shutil.copytree(folder, trained)
    saved = {"config.json", "generation_config.json", "model.safetensors"}
    for path in trained.iterdir():
        if path.name not in saved:
            path.unlink()
    with pytest.raises(CheckpointError, match="save those of the base checkpoint") as error:
        WhisperTokenizer.from_pretrained(trained)
    line = "AutoProcessor" + str(error.value).partition("AutoProcessor")[2]
    assert "from_pretrained('openai/whisper-tiny')" in line  # of as many tokens
    line = line.replace("openai/whisper-tiny", str(folder))
    exec(line, {"AutoProcessor": AutoProcessor})
    text = WhisperTokenizer.from_pretrained(trained).encode("Hello")
    assert text == WhisperTokenizer.from_pretrained(folder).encode("Hello")
    with pytest.raises(ConfigError, match=r"--tokenizer: found a folder"):
        convert(trained, tmp_path / "x", tokenizer=folder)


def test_what_cannot_be_converted_says_why(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="found it, expected none"):
        convert(folder, tmp_path / "there")
    with pytest.raises(ConfigError, match="expected one of float32, float16, bfloat16, int8"):
        convert(folder, tmp_path / "x", dtype="int4")
    small = tiny_whisper(tmp_path / "small")
    with pytest.raises(CheckpointError, match="found 1000 tokens, expected 51864, 51865, 51866"):
        convert(small, tmp_path / "x.pt")
    wide = tiny_whisper(tmp_path / "wide", encoder_ffn_dim=40)
    with pytest.raises(CheckpointError, match="encoder_ffn_dim 40, expected 256"):
        convert(wide, tmp_path / "x.pt")
    convert(folder, tmp_path / "good.pt")
    with pytest.raises(ConfigError, match="found no --tokenizer"):
        convert(tmp_path / "good.pt", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.pt", "small", "there", "wide"]


def test_folders_of_speech2text_become_folders_alone(tmp_path: Path) -> None:
    source = tiny_speech2text(tmp_path / "source")
    said = convert(source, tmp_path / "half", dtype="bfloat16")
    assert "million weights" in said
    found = Speech2TextForConditionalGeneration.from_pretrained(tmp_path / "half").state_dict()
    expected = Speech2TextForConditionalGeneration.from_pretrained(source).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.bfloat16().to(found[name])), name
    theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(tmp_path / "half")
    assert theirs.config.model_type == "speech_to_text"
    with pytest.raises(CheckpointError, match="found a checkpoint of speech_to_text, expected one"):
        convert(source, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "found no readable PyTorch file"),
        (100_000, "found no readable PyTorch file"),
        ({"weights": torch.zeros(1)}, "found weights, expected `dims`"),
        ({"dims": {"n_mels": 80}, "model_state_dict": {}}, "found dimensions"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_told_by_name(
    folder: Path, tmp_path: Path, content: object, message: str
) -> None:
    source = tmp_path / "odd.pt"
    if isinstance(content, int):  # a file cut short
        convert(folder, source)
        os.truncate(source, content)
    elif isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save(content, source)
    with pytest.raises(CheckpointError, match=rf"odd\.pt: {message}"):
        convert(source, tmp_path / "x", tokenizer=folder)
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "parakeet.nemo"
    source.touch()
    with pytest.raises(ConfigError, match=r"found a file, expected OpenAI's \.pt or"):
        convert(source, tmp_path / "out")
