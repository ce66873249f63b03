"""What the networks refuse to run, each with one clear error. Their numbers: tests/parity."""

from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.families.layers.kv_cache import DecoderCache
from corpus_asr.families.whisper.classifier import WhisperForAudioClassification
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.model import WhisperForCausalLM, WhisperModel
from corpus_asr.models.whisper import WhisperForConditionalGeneration

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

# What is changed of a right call, and what is then said of it.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input_features": None}, "neither of input_features and encoder_outputs"),
    ({"encoder_outputs": ENCODED}, "both of input_features and encoder_outputs"),
    ({"decoder_input_ids": None}, "neither of decoder_input_ids and decoder_inputs"),
    (
        {"decoder_inputs_embeds": torch.zeros(2, 5, WIDTH)},
        "both of decoder_input_ids and decoder_inputs_embeds",
    ),
    ({"input_features": poisoned(float("-inf"))}, "NaN or infinity in the features"),
    ({"input_features": window().half()}, r"features of torch\.float16, expected torch\.float32"),
    ({"input_features": window()[0]}, r"found \(80, 40\), expected 80 x 40 after the batch"),
    (
        {"input_features": window(3)},
        r"encoder hidden states of shape \(3, 20, 24\), expected \(2, pos, 24\)",
    ),
    (
        {"input_features": None, "encoder_outputs": torch.zeros(2, 20, 30)},
        r"encoder hidden states of shape \(2, 20, 30\)",
    ),
    ({"decoder_input_ids": tokens() + VOCAB}, "found token ids .*, expected 0 to 49"),
    ({"decoder_input_ids": tokens() - 1}, r"found token ids \[-1\], expected 0 to 49"),
    (
        {"decoder_input_ids": tokens().float()},
        r"token ids of shape \(2, 5\) and torch\.float32, expected integers",
    ),
    ({"decoder_input_ids": tokens()[0]}, r"token ids of shape \(5,\)"),
    (
        {"decoder_input_ids": None, "decoder_inputs_embeds": torch.zeros(2, 5, 9)},
        r"decoder_inputs_embeds of shape \(2, 5, 9\), expected \(batch, token, 24\)",
    ),
    (
        {"decoder_attention_mask": torch.ones(2, 4)},
        r"decoder_attention_mask of shape \(2, 4\), expected \(2, 5\)",
    ),
    (
        {"decoder_position_ids": tokens(1) + POSITIONS},
        r"found decoder_position_ids \[16.*, expected 0 to 15",
    ),
    (
        {"decoder_position_ids": tokens(1, 4)},
        r"decoder_position_ids of shape \(1, 4\), expected \(batch, 5\)",
    ),
    (
        {"decoder_input_ids": tokens(2, 2), "cache_position": torch.tensor([1, 2])},
        r"cache_position \[1, 2\], expected \[0, 1\]",
    ),
    (
        {"past_key_values": DecoderCache(7)},
        "a DecoderCache of 7 layers, expected what a model of 2 decoder layers returned",
    ),
    (
        {"decoder_head_mask": torch.ones(2, 3)},
        r"decoder_head_mask: found shape \(2, 3\), expected 2 layers x 2 heads",
    ),
    ({"labels": tokens() + VOCAB}, "found labels .*, expected 0 to 49"),
    (
        {"labels": tokens().float()},
        r"labels of shape \(2, 5\) and torch\.float32, expected integers",
    ),
    (
        {"labels": tokens(2, POSITIONS + 1)},
        "labels of 17 tokens, expected at most the model's 16 positions",
    ),
    (
        {"decoder_input_ids": tokens(2, 4), "labels": tokens()},
        r"labels of shape \(2, 5\), expected \(2, 4\)",
    ),
]


def test_wrong_input_is_a_value_error(model: WhisperForConditionalGeneration) -> None:
    right = {"input_features": window(), "decoder_input_ids": tokens()}
    for changes, message in WRONG:
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


def test_labels_need_a_padding_token() -> None:
    model = WhisperForConditionalGeneration(config(pad_token_id=None))
    with pytest.raises(ValueError, match=r"config\.pad_token_id is None"):
        model(window(), labels=tokens())
    assert model(window(), decoder_input_ids=tokens(), labels=tokens()).loss.isfinite()


def test_ignored_labels_do_not_matter(model: WhisperForConditionalGeneration) -> None:
    features = window()
    labels = tokens()
    labels[:, 3:] = -100
    found = model(features, labels=labels).loss
    torch.testing.assert_close(found, model(features, labels=labels[:, :3]).loss)


def test_features_of_another_type_are_taken_under_autocast() -> None:
    model = WhisperModel(config()).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(window().bfloat16(), decoder_input_ids=tokens())
    assert output.last_hidden_state.isfinite().all()


def test_a_decoder_alone_leaves_the_callers_configuration_and_generates_nothing() -> None:
    given = config()
    decoder = WhisperForCausalLM(given)
    assert not decoder.config.is_encoder_decoder
    assert given.is_encoder_decoder
    with pytest.raises(ValueError, match=r"call WhisperForConditionalGeneration\.generate"):
        decoder.generate(window())


CLASSES: list[tuple[dict[str, Any], Tensor, str]] = [
    ({"num_labels": 3}, torch.tensor([0, 3]), r"found labels \[3\], expected 0 to 2"),
    ({"num_labels": 3}, torch.tensor([0.0, 1.0]), r"labels of torch\.float32, expected class"),
    ({"num_labels": 3}, torch.tensor([[0, 1]]), r"labels of shape \(1, 2\), expected \(2,\)"),
    ({"num_labels": 1}, torch.zeros(3), r"\(regression\): found labels of shape \(3,\)"),
    (
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        torch.tensor([0, 1]),
        r"labels of shape \(2,\), expected \(2, 3\)",
    ),
]


def test_labels_that_are_no_classes_are_an_error() -> None:
    for settings, labels, message in CLASSES:
        model = WhisperForAudioClassification(config(**settings))
        with pytest.raises(ValueError, match=message):
            model(window(), labels=labels)


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


def test_a_classifier_needs_a_window_and_all_layers_it_averages() -> None:
    model = WhisperForAudioClassification(config(use_weighted_layer_sum=True))
    for given, message in (
        ({}, "neither of input_features and encoder_outputs"),
        ({"input_features": window(), "encoder_outputs": ENCODED}, "both of input_features"),
        ({"encoder_outputs": ENCODED}, "found 0 hidden states in encoder_outputs, expected 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**given)
