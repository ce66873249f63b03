"""Speech2Text's networks by themselves: rows of unequal length, positions, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.speech_to_text import modeling_speech_to_text as reference

from corpus_asr.families.past import DecoderCache
from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.families.speech2text.encoder import shortened, shorter
from corpus_asr.families.speech2text.model import Speech2TextModel
from corpus_asr.families.speech2text.positions import Speech2TextPositions
from corpus_asr.models.speech2text.model import Speech2TextForConditionalGeneration
from tests.support.checkpoints import tiny_network

# Products of float32 in another order.
TOLERANCE = 1e-5
FEATURES = torch.randn(2, 21, 80, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[2, 5, 6], [2, 7, 8]])
SOME = {"input_features": FEATURES, "decoder_input_ids": TOKENS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Speech2TextForConditionalGeneration:
    folder = tiny_network(tmp_path_factory.mktemp("checkpoint"))
    return Speech2TextForConditionalGeneration.from_pretrained(folder)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_row_gives_what_it_gives_alone(model: Speech2TextForConditionalGeneration) -> None:
    encoder = model.get_encoder()
    lengths = [1, 2, 3, 4, 5, 17, 30, 31]
    rows = torch.randn(len(lengths), 31, 80)  # what comes after a row's frames is not heard
    with torch.no_grad():
        found = encoder.encode(rows, num_frames=lengths)
        for row, length, states in zip(rows, lengths, found, strict=True):
            alone = encoder.encode(row[None, :length])[0]
            assert len(alone) == shorter(length, 2) == shortened(torch.tensor([length]), 2)[0]
            close(states[: len(alone)], alone)
            assert not states[len(alone) :].any()
        close(encoder.encode(rows), encoder(rows).last_hidden_state)


@pytest.mark.parametrize("width", [4, 7, 256])
@pytest.mark.parametrize("padding", [0, 1, 5])
def test_positions_are_those_of_transformers(width: int, padding: int) -> None:
    ours = Speech2TextPositions(width, padding)
    for length, start in ((3, 0), (5, 4), (40, 0), (1, 60)):
        theirs = reference.Speech2TextSinusoidalPositionalEmbedding(start + 10, width, padding)
        ids = torch.randint(0, 7, (3, length))
        found = ours(ids != padding, start=start, like=torch.empty(0))
        assert torch.equal(found, theirs(ids, past_key_values_length=start))
        assert not found[ids == padding].any()
    assert ours.rows(3, like=torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_positions_are_no_weights(model: Speech2TextForConditionalGeneration) -> None:
    assert not [name for name in model.state_dict() if "positions" in name]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"decoder_input_ids": TOKENS}, "found neither of input_features and encoder_out"),
    "both": (
        {**SOME, "encoder_outputs": torch.zeros(2, 6, 24)},
        "found both of input_features and encoder_outputs",
    ),
    "no encoding": ({"decoder_input_ids": TOKENS, "encoder_outputs": 5}, "found a int without hid"),
    "an empty batch": ({**SOME, "input_features": FEATURES[:0]}, r"found none.*leave the call out"),
    "no frames": ({**SOME, "input_features": FEATURES[:, :0]}, r"found none, .*\(2, 0, 80\)"),
    "mel bins first": (
        {**SOME, "input_features": FEATURES.transpose(1, 2)},
        r"found shape \(2, 80, 21\), expected \(batch, frame, 80\)",
    ),
    "no batch": ({**SOME, "input_features": FEATURES[0]}, r"found shape \(21, 80\), expected"),
    "another type": ({**SOME, "input_features": FEATURES.double()}, "expected torch.float32 as t"),
    "NaN": ({**SOME, "input_features": FEATURES * torch.nan}, r"NaN or infinity.*rows \[0, 1\]"),
    "a mask of positions": (
        {**SOME, "attention_mask": torch.ones(2, 6)},
        r"attention_mask of shape \(2, 6\), expected \(batch, frame\) for 6 positions",
    ),
    "a mask of one row": (
        {**SOME, "attention_mask": torch.ones(21)},
        r"attention_mask of shape \(21,\), expected \(batch, frame\)",
    ),
    "a row without frames": (
        {**SOME, "attention_mask": torch.tensor([[1] * 21, [0] * 21])},
        r"without any frame in rows \[1\].*leave these rows out",
    ),
    "no tokens": ({"input_features": FEATURES}, "found neither of decoder_input_ids and"),
    "tokens twice": (
        {**SOME, "decoder_inputs_embeds": torch.zeros(2, 3, 24)},
        "found both of decoder_input_ids and decoder_inputs_embeds",
    ),
    "an empty prompt": (
        {**SOME, "decoder_input_ids": TOKENS[:, :0]},
        r"found no token ids, their shape is \(2, 0\)",
    ),
    "unknown tokens": (
        {**SOME, "decoder_input_ids": TOKENS + 118},
        r"found token ids \[120, 123, 124, 120, 125\], expected 0 to 119",
    ),
    "tokens as fractions": (
        {**SOME, "decoder_input_ids": TOKENS.float()},
        "expected integers",
    ),
    "one text for two sounds": (
        {**SOME, "decoder_input_ids": TOKENS[:1]},
        r"encoder hidden states of shape \(2, 6, 24\), expected \(1, pos, 24\)",
    ),
    "a mask of other tokens": (
        {**SOME, "decoder_attention_mask": torch.ones(2, 2)},
        r"decoder_attention_mask of shape \(2, 2\), expected \(2, 3\)",
    ),
    "embeddings of another width": (
        {"input_features": FEATURES, "decoder_inputs_embeds": torch.zeros(2, 3, 9)},
        r"shape \(2, 3, 9\), expected \(batch, token, 24\)",
    ),
    "a mask of other heads": (
        {**SOME, "head_mask": torch.ones(2, 3)},
        "expected 2 layers x 2 head",
    ),
    "a cache of another model": (
        {**SOME, "past_key_values": DecoderCache(7)},
        "a DecoderCache of 7 layers, expected what a model of 2 decoder layers returned",
    ),
    "no labels": (
        {"input_features": FEATURES, "labels": TOKENS[:, :0]},
        r"found no labels, their shape is \(2, 0\)",
    ),
    "unknown labels": (
        {"input_features": FEATURES, "labels": TOKENS - 50},
        r"found labels \[-48, -45, -44, -48, -43\], expected 0 to 119",
    ),
    "other labels than tokens": (
        {**SOME, "labels": TOKENS[:, :2]},
        r"found labels of shape \(2, 2\), expected \(2, 3\), one for each decoder token",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_clear_error(
    model: Speech2TextForConditionalGeneration, name: str
) -> None:
    given, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        model(**given)


@pytest.mark.parametrize("lengths", [[21], [21, 22], [0, 21], [3, 4, 5]])
def test_parts_of_rows_that_are_not_there_are_refused(
    model: Speech2TextForConditionalGeneration, lengths: list[int]
) -> None:
    with pytest.raises(ValueError, match="expected for each row 1 to 21; correct num_frames"):
        model.get_encoder().encode(FEATURES, num_frames=lengths)


def test_a_mask_of_an_encoding_is_one_of_its_frames(
    model: Speech2TextForConditionalGeneration,
) -> None:
    encoded = model.get_encoder()(FEATURES)
    given: dict[str, Any] = {"encoder_outputs": encoded, "decoder_input_ids": TOKENS}
    assert model(**given, attention_mask=torch.ones(2, 21)).logits.isfinite().all()
    with pytest.raises(ValueError, match="for 6 positions: one value for each frame"):
        model(**given, attention_mask=torch.ones(2, 30))
    with pytest.raises(ValueError, match=r"encoder_attention_mask of shape \(2, 5\)"):
        model.get_decoder()(
            TOKENS,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=torch.ones(2, 5),
        )


@pytest.mark.parametrize("cls", [Speech2TextModel, Speech2TextForConditionalGeneration])
@pytest.mark.parametrize("padding", [None, -1])
def test_positions_need_a_padding_token(cls: Any, padding: int | None) -> None:
    with pytest.raises(ValueError, match=r"pad_token_id is (None|-1), expected 0 or more"):
        cls(Speech2TextConfig(pad_token_id=padding))


def test_training_learns(model: Speech2TextForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    learner = Speech2TextForConditionalGeneration.from_pretrained(tmp_path, dtype="bfloat16")
    optimiser = torch.optim.AdamW(learner.train().parameters(), lr=1e-2)
    losses: list[float] = []
    features: Tensor = FEATURES.to(torch.bfloat16)
    for _ in range(8):
        loss = learner(features, labels=TOKENS).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
