"""Speech2Text's networks by themselves: rows of unequal length, positions, and what is refused."""

from typing import Any

import pytest
import torch
from transformers.models.speech_to_text import modeling_speech_to_text as reference

from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.families.speech2text.encoder import Speech2TextPositions, shorter
from corpus_asr.families.speech2text.model import Speech2TextModel
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
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
            assert len(alone) == shorter(length, 2) == shorter(torch.tensor([length]), 2)[0]
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


# What decoders of all families refuse is in Whisper's test.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({**SOME, "input_features": FEATURES[:0]}, r"found none.*leave the call out"),
    ({**SOME, "input_features": FEATURES[:, :0]}, r"found none, .*\(2, 0, 80\)"),
    (
        {**SOME, "input_features": FEATURES.transpose(1, 2)},
        r"found shape \(2, 80, 21\), expected \(batch, frame, 80\)",
    ),
    ({**SOME, "input_features": FEATURES[0]}, r"found shape \(21, 80\), expected"),
    ({**SOME, "input_features": FEATURES.double()}, "expected torch.float32 as t"),
    ({**SOME, "input_features": FEATURES * torch.nan}, r"NaN or infinity.*rows \[0, 1\]"),
    (
        {**SOME, "attention_mask": torch.ones(2, 6)},
        r"attention_mask of shape \(2, 6\), expected \(batch, frame\) for 6 positions",
    ),
    (
        {**SOME, "attention_mask": torch.ones(21)},
        r"attention_mask of shape \(21,\), expected \(batch, frame\)",
    ),
    (
        {**SOME, "attention_mask": torch.tensor([[1] * 21, [0] * 21])},
        r"without any frame in rows \[1\].*leave these rows out",
    ),
    ({**SOME, "decoder_input_ids": TOKENS[:, :0]}, r"found no token ids, their shape is \(2, 0\)"),
    (
        {"input_features": FEATURES, "labels": TOKENS[:, :0]},
        r"found no labels, their shape is \(2, 0\)",
    ),
]


def test_each_mistake_is_one_clear_error(model: Speech2TextForConditionalGeneration) -> None:
    for given, message in MISTAKES:
        with pytest.raises(ValueError, match=message):
            model(**given)


def test_parts_of_rows_that_are_not_there_are_refused(
    model: Speech2TextForConditionalGeneration,
) -> None:
    for lengths in ([21], [21, 22], [0, 21], [3, 4, 5]):
        with pytest.raises(ValueError, match="multiple of 1, 1 to 21; correct num_frames"):
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


def test_positions_need_a_padding_token() -> None:
    for cls in (Speech2TextModel, Speech2TextForConditionalGeneration):
        for padding in (None, -1):
            with pytest.raises(ValueError, match=rf"pad_token_id is {padding}, expected 0 or more"):
                cls(Speech2TextConfig(pad_token_id=padding))
