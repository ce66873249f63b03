"""Windows of which only the front is heard: as a network of the same weights hears that has no
room for more."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corpus_asr.families.whisper.slots import PackedWhisperEncoder, WhisperSlotModel
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.slots import STEP_TOLERANCE, cut_network, load, needs_int8, sequences, windows

FRAMES = 200
LENGTHS = [100, 200, 60, 100, 2]
HEADS = [(1, 3), (0, 0)]

KINDS = [
    pytest.param(torch.float32, False, id="float32"),
    pytest.param(torch.bfloat16, False, id="bfloat16"),
    pytest.param(torch.bfloat16, True, id="int8", marks=needs_int8),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> WhisperForConditionalGeneration:
    return load(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(network: WhisperForConditionalGeneration) -> WhisperSlotModel:
    return network.slot_model()


@pytest.fixture(scope="module")
def cut(network: WhisperForConditionalGeneration) -> dict[int, WhisperForConditionalGeneration]:
    """The oracles, by the frames of their windows."""
    return {frames: cut_network(network, frames=frames) for frames in set(LENGTHS)}


Cut = dict[int, WhisperForConditionalGeneration]


def expect(cut: Cut, features: Tensor, tokens: Tensor, lengths: list[int]) -> Tensor:
    """Logits (batch, token, vocab) of whole sequences, each by the network of its length."""
    with torch.inference_mode():
        rows = [
            cut[frames](window[None, :, :frames], decoder_input_ids=row[None]).logits
            for window, row, frames in zip(features, tokens, lengths, strict=True)
        ]
    return torch.cat(rows).float()


@torch.inference_mode()
def test_the_encoder_is_one_that_has_no_room_for_more(
    network: WhisperForConditionalGeneration, cut: Cut
) -> None:
    features = windows(len(LENGTHS))
    found = network.model.encoder.encode(features, num_frames=LENGTHS)
    assert found.shape == (len(LENGTHS), FRAMES // 2, 64)
    for one, window, frames in zip(found, features, LENGTHS, strict=True):
        expected = cut[frames].model.encoder.encode(window[None, :, :frames])[0]
        torch.testing.assert_close(one[: frames // 2], expected, atol=1e-5, rtol=1e-5)
        assert not one[frames // 2 :].any()


@pytest.mark.parametrize(("dtype", "int8"), KINDS)
@torch.inference_mode()
def test_so_is_the_packed_encoder(
    network: WhisperForConditionalGeneration, cut: Cut, dtype: torch.dtype, int8: bool
) -> None:
    features = windows(len(LENGTHS)).to(dtype)

    def packed(of: WhisperForConditionalGeneration) -> PackedWhisperEncoder:
        return PackedWhisperEncoder(copy.deepcopy(of.model.encoder).to(dtype), int8=int8)

    found = packed(network).encode(features, num_frames=LENGTHS)
    assert found.shape == (len(LENGTHS), FRAMES // 2, 64)
    for one, window, frames in zip(found, features, LENGTHS, strict=True):
        expected = packed(cut[frames]).encode(window[None, :, :frames])[0]
        assert torch.equal(one[: frames // 2], expected)
        assert not one[frames // 2 :].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_windows_heard_to_their_end_are_whole_windows(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load(tmp_path, dtype).slot_model()
    features, tokens = windows(3), sequences(3, 30)
    found: list[list[Tensor]] = []
    for heard in (None, [FRAMES] * 3):
        state = model.new_state(4)
        encoded = model.encode(features, num_frames=heard)
        model.fill(state, [2, 0, 1], encoded, num_frames=heard)
        own = [encoded, model.prefill(state, [2, 0, 1], tokens[:, :20], [20, 3, 7])]
        own.append(model.step(state, tokens[:, 20], torch.full((3,), 20)))
        own.append(model.extend(state, [0, 2], tokens[:2, 21:24], torch.tensor([21, 21])))
        found.append([*own, *model.align(state, 1, tokens[0], HEADS)])
    for whole, to_the_end in zip(*found, strict=True):
        assert torch.equal(whole, to_the_end)


@pytest.mark.parametrize("first", [1, 5, 24], ids=lambda count: f"prompts of {count}")
@pytest.mark.parametrize(
    ("slots", "lengths"),
    [([0, 1, 2], [100, 200, 60]), ([2, 0, 1], [100, 100, 100]), ([1, 2, 0], [2, 60, 2])],
    ids=["one is whole", "alike", "all short"],
)
def test_windows_of_all_lengths_side_by_side(
    model: WhisperSlotModel, cut: Cut, slots: list[int], lengths: list[int], first: int
) -> None:
    features, tokens = windows(3), sequences(3, 40)
    expected = expect(cut, features, tokens, lengths)
    state = model.new_state(4)
    # What is left of others must not be heard.
    spoilt = torch.full((4, FRAMES // 2, 64), torch.nan)
    model.fill(state, [0, 1, 2, 3], spoilt)
    model.fill(state, slots, model.encode(features, num_frames=lengths), num_frames=lengths)
    hidden = model.prefill(state, slots, tokens[:, :first], [first] * 3)
    found = [model.logits(hidden)]
    by_slot = torch.tensor(slots).argsort()
    for position in range(first, first + 6):
        token = tokens[by_slot, position]
        logits = model.step(state, token, torch.full((3,), position))
        found.append(logits[slots].unsqueeze(1))
    position = first + 6
    found.append(
        model.extend(state, slots, tokens[:, position : position + 5], torch.full((3,), position))
    )
    seen = torch.cat(found, dim=1)
    torch.testing.assert_close(seen, expected[:, : position + 5], atol=STEP_TOLERANCE, rtol=0)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_alignment_knows_nothing_past_what_was_heard(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel, cut: Cut, slot: int
) -> None:
    features, tokens, lengths = windows(3), sequences(1, 24)[0], [100, 200, 60]
    state = model.new_state(3)
    model.fill(state, [0, 1, 2], model.encode(features, num_frames=lengths), num_frames=lengths)
    weights, logits = model.align(state, slot, tokens, HEADS)
    frames = lengths[slot]
    alone = cut[frames].slot_model()
    there = alone.new_state(1)
    alone.fill(there, [0], alone.encode(features[slot : slot + 1, :, :frames]))
    expected, expected_logits = alone.align(there, 0, tokens, HEADS)
    assert weights.shape == (2, 24, FRAMES // 2)
    torch.testing.assert_close(weights[:, :, : frames // 2], expected, atol=1e-5, rtol=1e-4)
    assert not weights[:, :, frames // 2 :].any()
    torch.testing.assert_close(logits, expected_logits, atol=STEP_TOLERANCE, rtol=0)


def test_the_length_goes_where_the_window_goes(model: WhisperSlotModel, cut: Cut) -> None:
    features, tokens = windows(2), sequences(3, 12)
    tokens[:] = tokens[0]
    lengths = [60, 200]
    state = model.new_state(3)
    model.fill(state, [0, 2], model.encode(features, num_frames=lengths), num_frames=lengths)
    model.prefill(state, [0, 2], tokens[:2, :5], [5, 5])
    model.move(state, 2, 1)
    model.share(state, 0, [2])
    now = [0, 1, 0]
    expected = expect(cut, features[now], tokens, [lengths[row] for row in now])
    for position in (5, 6):
        found = model.step(state, tokens[:, position], torch.full((3,), position))
        torch.testing.assert_close(found, expected[:, position], atol=STEP_TOLERANCE, rtol=0)
    # A slot's text may change; its window, short or not, stays.
    model.reorder(state, [0, 1, 2], torch.tensor([1, 0, 1]))
    found = model.step(state, tokens[:, 5], torch.full((3,), 0))
    same = expect(cut, features[now], tokens[:, 5:6], [lengths[row] for row in now])
    torch.testing.assert_close(found, same[:, 0], atol=STEP_TOLERANCE, rtol=0)


def test_a_whole_window_after_a_short_one_is_heard_whole(model: WhisperSlotModel, cut: Cut) -> None:
    features, tokens = windows(2), sequences(1, 5)
    state = model.new_state(2)
    model.fill(state, [0], model.encode(features[:1], num_frames=[60]), num_frames=[60])
    model.prefill(state, [0], tokens, [5])
    for slots in ([0], [0, 1]):
        some = features[: len(slots)]
        model.fill(state, slots, model.encode(some))
        rows = tokens.expand(len(slots), -1)
        found = model.logits(model.prefill(state, slots, rows, [5] * len(slots)))
        expected = expect(cut, some, rows, [FRAMES] * len(slots))
        torch.testing.assert_close(found, expected, atol=STEP_TOLERANCE, rtol=0)


def test_slots_that_share_a_window_share_its_length(model: WhisperSlotModel, cut: Cut) -> None:
    features, tokens, lengths = windows(2), sequences(6, 12), [60, 100]
    tokens[:3, :5], tokens[3:, :5] = tokens[0, :5].clone(), tokens[3, :5].clone()
    each = [frames for frames in lengths for _ in range(3)]
    expected = expect(cut, features.repeat_interleave(3, dim=0), tokens, each)
    state = model.new_state(6, beams=3)
    model.fill(state, [0, 3], model.encode(features, num_frames=lengths), num_frames=lengths)
    model.prefill(state, [0, 3], tokens[[0, 3], :5], [5, 5])
    model.share(state, 0, [1, 2])
    model.share(state, 3, [4, 5])
    for position in range(5, 9):
        found = model.step(state, tokens[:, position], torch.full((6,), position))
        torch.testing.assert_close(found, expected[:, position], atol=STEP_TOLERANCE, rtol=0)
    found = model.extend(state, [4, 1], tokens[[4, 1], 9:12], torch.tensor([9, 9]))
    torch.testing.assert_close(found, expected[[4, 1], 9:12], atol=STEP_TOLERANCE, rtol=0)
    for source, target in zip([3, 4, 5], [0, 1, 2], strict=True):
        model.move(state, source, target)
    found = model.step(state, tokens[3:, 9], torch.full((3,), 9))
    torch.testing.assert_close(found, expected[3:, 9], atol=STEP_TOLERANCE, rtol=0)


@pytest.mark.parametrize("heard", [[100], [100, 0], [100, 202], [100, 99], [-2, 100]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_that_cannot_be_heard_are_an_error(
    tmp_path: Path, dtype: torch.dtype, heard: list[int]
) -> None:
    model = load(tmp_path, dtype).slot_model()
    message = r"parts of 2 windows: found \[.*\] frames, expected .* a multiple of 2, 2 to 200"
    with pytest.raises(ValueError, match=message):
        model.encode(windows(2), num_frames=heard)
    with pytest.raises(ValueError, match=message):
        model.fill(model.new_state(2), [0, 1], model.encode(windows(2)), num_frames=heard)


def test_off_the_cpu_a_step_keeps_its_shape_and_never_reads_a_value(
    network: WhisperForConditionalGeneration,
) -> None:
    # On the meta device there are no values: whatever would make a GPU's host wait fails.
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(network.config).slot_model()
        state = model.new_state(4)
        features = torch.zeros(3, 80, FRAMES)
        heard = [100, 60, 100]
        model.fill(state, [0, 1, 2], model.encode(features, num_frames=heard), num_frames=heard)
        view = state.view_windows(range(3))
        tokens = torch.zeros(3, dtype=torch.long)
        assert model.step(state, tokens, tokens).shape == (3, 500)
    assert view is not None
    assert view.unseen is not None
    assert view.unseen.shape == (3, 1, 1, FRAMES // 2)
