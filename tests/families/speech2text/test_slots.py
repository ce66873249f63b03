"""Speech2Text in slots against its network: rows of any length, side by side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.families.speech2text.model import Speech2TextSlotModel
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text
from tests.support.slots import needs_int8

FRAMES, MELS, TOKENS = 320, 16, 20
LENGTHS = [320, 203, 5]
PADDING = 1

# Sums in another order.
TOLERANCE = 1e-4
# The packed encoder rounds less often than the network; relative to the spread of what it gives.
BFLOAT16_TOLERANCE = 0.05
INT8_TOLERANCE = 0.1


def load(folder: Path) -> Speech2TextForConditionalGeneration:
    tiny_speech2text(folder, input_feat_per_channel=MELS, spread=0.15, max_source_positions=600)
    return Speech2TextForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Speech2TextForConditionalGeneration:
    return load(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(network: Speech2TextForConditionalGeneration) -> Speech2TextSlotModel:
    found: Speech2TextSlotModel = network.slot_model().for_windows(FRAMES)
    return found


def features(*, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(LENGTHS), FRAMES, MELS, generator=generator)


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(3, 1000, (len(LENGTHS), TOKENS), generator=generator)
    found[1, 7] = PADDING  # may be said, and has no position
    return found


def mask() -> Tensor:
    return (torch.arange(FRAMES)[None] < torch.tensor(LENGTHS)[:, None]).long()


def without_packing(model: Speech2TextSlotModel) -> Speech2TextSlotModel:
    """As on a GPU, where rows of similar lengths are encoded in one masked batch."""
    other = model.for_windows(model.window_frames)
    other._packed = None
    return other


@pytest.mark.parametrize("encoding", ["packed", "masked"])
@torch.inference_mode()
def test_a_row_is_encoded_as_if_it_were_alone_or_in_a_padded_batch(
    network: Speech2TextForConditionalGeneration, model: Speech2TextSlotModel, encoding: str
) -> None:
    own: SlotModel = model  # checked by mypy
    found: Any = {
        "packed": own,
        "masked": without_packing(model),
    }[encoding]
    rows, encoder = features().transpose(1, 2), network.model.encoder
    encoded = found.encode(rows, num_frames=LENGTHS)
    assert tuple(encoded.shape) == (3, *model.window_shape) == (3, 80, 64)
    padded = found.encode_padded(rows, num_frames=LENGTHS)
    in_batch = encoder(features(), mask()).last_hidden_state
    for row, length in enumerate(LENGTHS):
        alone = encoder(features()[row : row + 1, :length]).last_hidden_state[0]
        end = -(-length // 4)
        for states, expected in ((encoded[row], alone), (padded[row], in_batch[row, :end])):
            torch.testing.assert_close(states[:end], expected, atol=1e-5, rtol=1e-4)
        assert not encoded[row, end:].any()
        assert not padded[row, end:].any()
    assert torch.equal(found.encode(rows), found.encode(rows, num_frames=[FRAMES] * 3))


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=needs_int8)])
def test_low_precision_comes_near(tmp_path: Path, int8: bool) -> None:
    network = load(tmp_path)
    expected = network.slot_model().for_windows(FRAMES).encode(features().transpose(1, 2))
    low = network.to(torch.bfloat16).slot_model(int8=int8).for_windows(FRAMES)
    found = low.encode(features().transpose(1, 2))
    assert found.dtype == torch.bfloat16
    error = (found.float() - expected).norm() / expected.norm()
    assert error < (INT8_TOLERANCE if int8 else BFLOAT16_TOLERANCE)


def test_steps_equal_the_whole_sequence(
    network: Speech2TextForConditionalGeneration, model: Speech2TextSlotModel
) -> None:
    encoded = model.encode_padded(features().transpose(1, 2), num_frames=LENGTHS)
    with torch.inference_mode():
        past, expected = None, []
        for token in tokens().unbind(dim=1):
            output = network(
                encoder_outputs=(encoded,),
                attention_mask=mask(),
                decoder_input_ids=token[:, None],
                past_key_values=past,
                use_cache=True,
            )
            past = output.past_key_values
            expected.append(output.logits[:, 0])
        whole = network(
            encoder_outputs=(encoded,), attention_mask=mask(), decoder_input_ids=tokens()
        ).logits
    state = model.new_state(4)
    for slots in ([0, 1, 2], [1, 3, 0]):
        model.fill(state, slots, encoded, num_frames=LENGTHS)
        hidden = model.prefill(state, slots, tokens(), [TOKENS] * 3)
        torch.testing.assert_close(model.logits(hidden), whole, atol=TOLERANCE, rtol=TOLERANCE)
    model.fill(state, [0, 1, 2], encoded, num_frames=LENGTHS)
    model.prefill(state, [0, 1, 2], tokens()[:, :1], [1, 1, 1])
    for place in range(1, TOKENS):
        found = model.step(state, tokens()[:, place], torch.full((3,), place))
        torch.testing.assert_close(found, expected[place], atol=TOLERANCE, rtol=TOLERANCE)
    spans = model.extend(state, [2, 0], tokens()[[2, 0], 4:9], torch.tensor([4, 4]))
    for row, source in enumerate([2, 0]):
        wanted = torch.stack([step[source] for step in expected[4:9]])
        torch.testing.assert_close(spans[row], wanted, atol=TOLERANCE, rtol=TOLERANCE)


def test_alignment_is_cross_attention_up_to_the_end_of_the_row(
    network: Speech2TextForConditionalGeneration, model: Speech2TextSlotModel
) -> None:
    encoded = model.encode_padded(features().transpose(1, 2), num_frames=LENGTHS)
    state = model.new_state(3)
    model.fill(state, [0, 1, 2], encoded, num_frames=LENGTHS)
    with torch.inference_mode():
        output = network(
            encoder_outputs=(encoded[1:2],),
            attention_mask=mask()[1:2],
            decoder_input_ids=tokens()[1:2],
            output_attentions=True,
        )
    (weights,), (hidden,) = model.align(
        state, [1], tokens()[1:2], [tokens().shape[1]], [(1, 2), (0, 3)]
    )
    logits = model.logits(hidden)
    torch.testing.assert_close(logits, output.logits[0], atol=TOLERANCE, rtol=TOLERANCE)
    for found, (layer, head) in zip(weights, [(1, 2), (0, 3)], strict=True):
        expected = output.cross_attentions[layer][0, head]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not weights[:, :, -(-LENGTHS[1] // 4) :].any()
