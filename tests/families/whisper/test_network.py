"""What making, loading, saving and calling a network take and refuse. Numbers: tests/parity."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.layers.kv_cache import DecoderCache
from corpus_asr.families.whisper.classifier import WhisperForAudioClassification
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.model import WhisperForCausalLM, WhisperModel
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor, WhisperProcessor
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

SIZES: dict[str, Any] = {
    "d_model": 24,
    "layers": 1,
    "heads": 2,
    "vocab_size": 50,
    "max_source_positions": 20,
    "max_target_positions": 16,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("checkpoint"), dtype=torch.float16, **SIZES)


def test_the_type_may_be_named(folder: Path) -> None:
    calls: list[tuple[dict[str, Any], torch.dtype]] = [
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "float32"}, torch.float32),
        ({"dtype": "torch.float64"}, torch.float64),
        ({"dtype": "auto"}, torch.float16),
        ({"torch_dtype": torch.float32}, torch.float32),
        ({"torch_dtype": "auto"}, torch.float16),
    ]
    for given, expected in calls:
        assert WhisperModel.from_pretrained(folder, **given).dtype == expected, given


def test_keywords_replace_what_the_configuration_says_and_choose_files(
    folder: Path, tmp_path: Path
) -> None:
    model = WhisperModel.from_pretrained(folder, apply_spec_augment=True, dropout=0.2)
    assert (model.config.apply_spec_augment, model.config.dropout) == (True, 0.2)
    model = WhisperModel.from_pretrained(folder, config=model.config, dropout=0.3)
    assert (model.config.apply_spec_augment, model.config.dropout) == (True, 0.3)
    tiny_whisper(tmp_path, weights="bin", **SIZES)
    WhisperModel.from_pretrained(tmp_path, use_safetensors=False)
    message = r"expected model\.safetensors, model\.int8\.safetensors or"
    with pytest.raises(CheckpointError, match=message):  # no pickle is read
        WhisperModel.from_pretrained(tmp_path, use_safetensors=True)


def test_weights_that_are_no_numbers_or_become_none_are_named(tmp_path: Path) -> None:
    path = tiny_whisper(tmp_path, **SIZES) / "model.safetensors"
    state = load_file(path)
    state["model.decoder.layer_norm.bias"][0] = 1e6
    save_file(state, path)
    WhisperModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"layer_norm\.bias as torch\.float16, .*wider type"):
        WhisperModel.from_pretrained(tmp_path, dtype="float16")
    state["model.decoder.layers.0.fc1.weight"][3, 2] = float("nan")
    save_file(state, path)
    message = r"NaN or infinity in decoder\.layers\.0\.fc1\.weight as torch\.float32"
    for cls in (WhisperForConditionalGeneration, WhisperForCausalLM):
        with pytest.raises(CheckpointError, match=message):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_tables_of_tokens_grow_and_shrink_together(tmp_path: Path, tied: bool) -> None:
    whole = WhisperForConditionalGeneration(config(tie_word_embeddings=tied))
    for model in (whole, WhisperModel(config()), WhisperForCausalLM(config())):
        before = model.get_input_embeddings().weight.detach().clone()
        for size in (57, 49):
            table = model.resize_token_embeddings(size)
            assert table is model.get_input_embeddings()
            assert tuple(table.weight.shape) == (size, 24)
            assert model.config.vocab_size == table.num_embeddings == size
            assert torch.equal(table.weight[:49], before[:49])
            if size > VOCAB:
                torch.testing.assert_close(table.weight[VOCAB].detach(), before.mean(dim=0))
    assert (whole.proj_out.weight is whole.get_input_embeddings().weight) == tied
    assert whole.proj_out.weight.shape[0] == whole.proj_out.out_features == 49
    whole.save_pretrained(tmp_path)
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.proj_out.weight, whole.proj_out.weight)
    assert torch.equal(again.proj_out.weight, again.get_input_embeddings().weight) == tied
    with pytest.raises(ValueError, match="found 0 tokens, expected at least 1"):
        whole.resize_token_embeddings(0)


def test_whatever_is_saved_can_be_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        "corpus_asr.families.saved_files.upload_files",
        lambda folder, names, **options: sent.append((set(names), options)),
    )
    tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer = WhisperTokenizer.from_pretrained(tmp_path / "tokenizer")
    extractor = WhisperFeatureExtractor()
    model = WhisperForConditionalGeneration(config())
    parts: list[Any] = [model, model.config, model.generation_config, tokenizer, extractor]
    processor = WhisperProcessor(extractor, tokenizer)
    for number, part in enumerate([*parts, processor]):
        part.push_to_hub("lab/x", private=True, commit_message="Try")
        part.save_pretrained(tmp_path / str(number))
        names, options = sent.pop()
        assert names == {path.name for path in (tmp_path / str(number)).iterdir()}
        assert (options["repo_id"], options["private"]) == ("lab/x", True)
        assert options["commit_message"] == "Try"
    # While it is saved, too: all its shards, and to a repository named like the folder.
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, max_shard_size=20_000)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(tmp_path / "mine", push_to_hub=True)
    model.config.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="lab/x", private=True)
    names, _ = sent[0]
    assert names == {path.name for path in (tmp_path / "mine").iterdir()}
    assert "model.safetensors.index.json" in names
    assert [options for _, options in sent[:2]] == [{"repo_id": "mine"}] * 2
    assert sent[2] == ({"config.json"}, {"repo_id": "lab/x", "private": True})
    processor.save_pretrained(tmp_path / "yours", push_to_hub=True, private=True)
    assert sent[3] == (
        {path.name for path in (tmp_path / "yours").iterdir()},
        {"repo_id": "yours", "private": True},
    )
    extractor.save_pretrained(tmp_path / "yours", push_to_hub=True, repo_id="lab/x")
    assert sent[4] == ({"preprocessor_config.json"}, {"repo_id": "lab/x"})


def test_what_generation_needs_comes_from_the_checkpoint_or_the_configuration(folder: Path) -> None:
    loaded = WhisperForConditionalGeneration.from_pretrained(folder).generation_config
    assert loaded is not None
    assert loaded.max_length == 448
    fresh = WhisperForConditionalGeneration(config(decoder_start_token_id=49)).generation_config
    assert fresh is not None
    assert (fresh.decoder_start_token_id, fresh.pad_token_id) == (49, 48)
    assert WhisperModel.from_pretrained(folder).generation_config is None


VOCAB, BINS, FRAMES, WIDTH, POSITIONS = 50, 80, 40, 24, 16


def config(**settings: Any) -> WhisperConfig:
    sizes = {"d_model": WIDTH, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    counts = {"encoder_layers": 1, "decoder_layers": 2, "vocab_size": VOCAB, "pad_token_id": 48}
    lengths = {"max_source_positions": FRAMES // 2, "max_target_positions": POSITIONS}
    ids = {"decoder_start_token_id": 49}
    return WhisperConfig(**{**sizes, **counts, **lengths, **ids, **settings})


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(config()).eval()


def window(batch: int = 2) -> Tensor:
    return torch.randn(batch, BINS, FRAMES)


def tokens(batch: int = 2, length: int = 5) -> Tensor:
    return torch.arange(batch * length).view(batch, length) % VOCAB


def poisoned(value: float) -> Tensor:
    features = window()
    features[1, 3, 7] = value
    return features


ENCODED = torch.randn(2, FRAMES // 2, WIDTH)

# What is changed of a right call, and what its error names.
WRONG_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"input_features": None}, "neither of input_features"),
    ({"encoder_outputs": ENCODED}, "both of input_features"),
    ({"decoder_input_ids": None}, "neither of decoder_input_ids"),
    ({"decoder_inputs_embeds": torch.zeros(2, 5, WIDTH)}, "both of decoder_input_ids"),
    ({"input_features": poisoned(float("-inf"))}, r"NaN or infinity.*rows \[1\]"),
    ({"input_features": window()[:0]}, "empty batch"),
    ({"input_features": window()[:, :, :9]}, "80 mel bins x 9"),
    ({"input_features": window().half()}, r"features of torch\.float16"),
    ({"input_features": window()[0]}, r"\(80, 40\)"),
    ({"input_features": window(3)}, r"\(3, 20, 24\)"),
    ({"input_features": None, "encoder_outputs": torch.zeros(2, 20, 30)}, r"\(2, 20, 30\)"),
    ({"decoder_input_ids": tokens()[:, :0]}, r"\(2, 0\)"),
    ({"decoder_input_ids": tokens() + VOCAB}, "found token ids"),
    ({"decoder_input_ids": tokens() - 1}, r"found token ids \[-1\]"),
    ({"decoder_input_ids": tokens().float()}, r"torch\.float32"),
    ({"decoder_input_ids": tokens()[0]}, r"token ids of shape \(5,\)"),
    ({"decoder_attention_mask": torch.ones(2, 4)}, "decoder_attention_mask"),
    ({"decoder_position_ids": tokens(1) + POSITIONS}, "decoder_position_ids"),
    ({"decoder_position_ids": tokens(1, 4)}, "decoder_position_ids"),
    ({"cache_position": torch.arange(1, 6)}, "cache_position"),
    ({"past_key_values": DecoderCache(7)}, "DecoderCache of 7 layers"),
    ({"decoder_head_mask": torch.ones(2, 3)}, "decoder_head_mask"),
    ({"labels": tokens() + VOCAB}, "found labels"),
    ({"labels": tokens().float()}, "labels of shape"),
    ({"labels": tokens(2, POSITIONS + 1)}, "labels of 17 tokens"),
    ({"decoder_input_ids": tokens(2, 4), "labels": tokens()}, r"labels of shape \(2, 5\)"),
]


def test_wrong_input_is_a_value_error(model: WhisperForConditionalGeneration) -> None:
    right = {"input_features": window(), "decoder_input_ids": tokens()}
    for changes, message in WRONG_INPUTS:
        with pytest.raises(ValueError, match=message):
            model(**{**right, **changes})
    with pytest.raises(TypeError, match="decoder_ids"):
        model(window(), decoder_ids=tokens())


def test_a_cache_fits_its_batch_and_does_not_outgrow_the_positions(
    model: WhisperForConditionalGeneration,
) -> None:
    past = model(window(1), decoder_input_ids=tokens(1, POSITIONS)).past_key_values
    with pytest.raises(ValueError, match="decoding 17 tokens: the model has 16 positions"):
        model(window(1), decoder_input_ids=tokens(1, 1), past_key_values=past)
    past = model(window(1), decoder_input_ids=tokens(1)).past_key_values
    with pytest.raises(ValueError, match="found keys of batch 1"):
        model(window(), decoder_input_ids=tokens(2, 1), past_key_values=past)


def test_a_decoder_alone_leaves_the_callers_configuration_and_generates_nothing() -> None:
    given = config()
    decoder = WhisperForCausalLM(given)
    assert not decoder.config.is_encoder_decoder
    assert given.is_encoder_decoder
    with pytest.raises(ValueError, match=r"call WhisperForConditionalGeneration\.generate"):
        decoder.generate(window())


def test_one_class_is_a_regression_and_several_may_be_right_at_once() -> None:
    model = WhisperForAudioClassification(config(num_labels=1)).eval()
    labels = torch.tensor([0.5, -2.0])
    for shape in ((2,), (2, 1)):
        output = model(window(), labels=labels.view(shape))
        expected = (output.logits.flatten() - labels).square().mean()
        torch.testing.assert_close(output.loss, expected)
    several = {"num_labels": 3, "problem_type": "multi_label_classification"}
    model = WhisperForAudioClassification(config(**several)).eval()
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]])
    output = model(window(), labels=labels)
    probability = output.logits.sigmoid()
    expected = -torch.where(labels == 1, probability, 1 - probability).log().mean()
    torch.testing.assert_close(output.loss, expected)
