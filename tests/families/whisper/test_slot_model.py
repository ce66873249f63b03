"""Decoding in slots: the same as whole sequences, and nobody's business but the slot's own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.families.whisper.slots import WhisperSlotModel
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.slots import (
    POSITIONS,
    STEP_TOLERANCE,
    begin,
    load,
    sequences,
    whole,
    windows,
)

# Only BLAS's choice of kernel may differ with the number of slots.
NEIGHBOUR_TOLERANCE = 1e-5
# bfloat16 keeps 8 bits: logits of about 10 are rounded to multiples of 1/16, many times over.
BFLOAT16_TOLERANCE = 0.3


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> WhisperForConditionalGeneration:
    return load(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(network: WhisperForConditionalGeneration) -> WhisperSlotModel:
    return network.slot_model()


def test_it_is_what_search_asks_for(model: WhisperSlotModel) -> None:
    found: SlotModel = model  # checked by mypy
    assert found.vocab_size == 500
    assert found.max_target_positions == POSITIONS
    assert found.device == torch.device("cpu")
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, STEP_TOLERANCE), (torch.bfloat16, BFLOAT16_TOLERANCE)],
    ids=["float32", "bfloat16"],
)
def test_steps_equal_the_whole_sequence_at_every_position(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    network = load(tmp_path, dtype)
    model = network.slot_model()
    features, tokens = windows(3).to(dtype), sequences(3, POSITIONS)
    expected = whole(network, features, tokens)
    state = model.new_state(3)
    found = begin(model, state, [0, 1, 2], features, tokens[:, :4], [4, 4, 4])
    assert (found - expected[:, :4]).abs().max() < tolerance
    for position in range(4, POSITIONS):
        found = model.step(state, tokens[:, position], torch.full((3,), position))
        assert found.dtype == torch.float32
        assert (found - expected[:, position]).abs().max() < tolerance, position


def test_slots_stand_at_positions_of_their_own(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    features, tokens = windows(3), sequences(3, 30)
    expected = whole(network, features, tokens)
    lengths = [2, 9, 5]
    padded = tokens[:, :9].clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 7
    state = model.new_state(3)
    found = begin(model, state, [0, 1, 2], features, padded, lengths)
    for row, length in enumerate(lengths):
        assert (found[row, :length] - expected[row, :length]).abs().max() < STEP_TOLERANCE
    for i in range(20):
        positions = torch.tensor(lengths) + i
        found = model.step(state, tokens[range(3), positions], positions)
        assert (found - expected[range(3), positions]).abs().max() < STEP_TOLERANCE


def decode_alone(model: WhisperSlotModel, feature: Tensor, prompt: Tensor, steps: int) -> Tensor:
    """Decode greedily in a state of one slot; returns the logits of every step."""
    state = model.new_state(1)
    length = prompt.shape[1]
    logits = [begin(model, state, [0], feature, prompt, [length])[:, -1]]
    for i in range(steps):
        token = logits[-1].argmax(-1)
        logits.append(model.step(state, token, torch.tensor([length + i])))
    return torch.cat(logits)


def test_neighbours_do_not_matter(model: WhisperSlotModel) -> None:
    features, prompts = windows(5), sequences(5, 3)
    alone = decode_alone(model, features[3:4], prompts[3:4], steps=20)
    state = model.new_state(6)
    among = [begin(model, state, [0, 1, 2, 3, 4], features, prompts, [3] * 5)[:, -1]]
    for i in range(20):
        token = among[-1].argmax(-1)
        # The others run ahead of slot 3, so that it sees caches longer than its own.
        positions = torch.tensor([3 + 2 * i, 3 + i, 3, 3 + i, 3 + i])
        among.append(model.step(state, token, positions))
    found = torch.stack(among)[:, 3]
    assert torch.equal(found.argmax(-1), alone.argmax(-1))
    torch.testing.assert_close(found, alone, atol=NEIGHBOUR_TOLERANCE, rtol=NEIGHBOUR_TOLERANCE)


def test_a_spoilt_slot_spoils_neither_its_neighbours_nor_whoever_comes_next(
    model: WhisperSlotModel,
) -> None:
    features, prompts = windows(2), sequences(2, 3)
    alone = decode_alone(model, features[:1], prompts[:1], steps=10)
    state = model.new_state(2)
    spoilt = torch.full_like(features, torch.nan)
    assert begin(model, state, [0, 1], spoilt, sequences(2, 40), [40, 40]).isnan().any()
    logits = [begin(model, state, [0], features[:1], prompts[:1], [3])[:, -1]]
    for i in range(10):
        token = torch.cat([logits[-1].argmax(-1), torch.tensor([1])])
        both = model.step(state, token, torch.tensor([3 + i, 40 + i]))
        assert both[1].isnan().all()
        logits.append(both[:1])
    torch.testing.assert_close(
        torch.cat(logits), alone, atol=NEIGHBOUR_TOLERANCE, rtol=NEIGHBOUR_TOLERANCE
    )


def test_a_refilled_slot_forgets_what_it_held(model: WhisperSlotModel) -> None:
    features, prompts = windows(4), sequences(4, 3)
    alone = decode_alone(model, features[3:], prompts[3:], steps=6)
    state = model.new_state(3)
    begin(model, state, [0, 1, 2], features[:3], prompts[:3], [3, 3, 3])
    for i in range(10):
        model.step(state, torch.tensor([1, 2, 3]), torch.full((3,), 3 + i))
    logits = [begin(model, state, [1], features[3:], prompts[3:], [3])[:, -1]]
    for i in range(6):
        token = torch.cat([torch.tensor([1]), logits[-1].argmax(-1), torch.tensor([3])])
        logits.append(model.step(state, token, torch.tensor([13 + i, 3 + i, 13 + i]))[1:2])
    torch.testing.assert_close(
        torch.cat(logits), alone, atol=NEIGHBOUR_TOLERANCE, rtol=NEIGHBOUR_TOLERANCE
    )


def test_scattered_slots_are_filled_in_the_order_given(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    features, tokens = windows(3), sequences(3, 6)
    expected = whole(network, features, tokens)
    state = model.new_state(4)
    found = begin(model, state, [3, 0, 1], features, tokens[:, :5], [5, 5, 5])
    assert (found - expected[:, :5]).abs().max() < STEP_TOLERANCE
    token = torch.stack([tokens[1, 5], tokens[2, 5], torch.tensor(0), tokens[0, 5]])
    stepped = model.step(state, token, torch.tensor([5, 5, 0, 5]))
    assert (stepped[[3, 0, 1]] - expected[:, 5]).abs().max() < STEP_TOLERANCE


def test_a_moved_slot_goes_on_where_it_was(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    features, tokens = windows(2), sequences(2, 10)
    expected = whole(network, features, tokens)
    state = model.new_state(2)
    begin(model, state, [0, 1], features, tokens[:, :6], [6, 6])
    model.step(state, tokens[:, 6], torch.tensor([6, 6]))
    model.move(state, 1, 0)
    for position in range(7, 10):
        found = model.step(state, tokens[1:, position], torch.tensor([position]))
        assert (found[0] - expected[1, position]).abs().max() < STEP_TOLERANCE


def test_the_same_window_can_be_decoded_again_from_another_prompt(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    features, tokens = windows(1), sequences(2, 8)
    expected = whole(network, features.expand(2, -1, -1), tokens)
    state = model.new_state(1)
    begin(model, state, [0], features, tokens[:1], [8])
    again = model.logits(model.prefill(state, [0], tokens[1:], [8]))
    assert (again[0] - expected[1]).abs().max() < STEP_TOLERANCE


def test_features_of_another_type_are_converted(model: WhisperSlotModel) -> None:
    features = windows(1).to(torch.float16)
    assert torch.equal(model.encode(features), model.encode(features.float()))


def test_a_position_past_the_last_is_an_error(model: WhisperSlotModel) -> None:
    state = model.new_state(2)
    begin(model, state, [0, 1], windows(2), sequences(2, 3), [3, 3])
    with pytest.raises(ValueError, match=r"positions 5 to 60: the cache holds 0 to 59"):
        model.step(state, torch.tensor([1, 1]), torch.tensor([5, POSITIONS]))
    with pytest.raises(ValueError, match=r"positions -1 to 3"):
        model.step(state, torch.tensor([1, 1]), torch.tensor([-1, 3]))


def test_a_prompt_longer_than_the_positions_is_an_error(model: WhisperSlotModel) -> None:
    tokens = sequences(1, POSITIONS + 1)
    with pytest.raises(ValueError, match=r"61 tokens: the model has 60 positions"):
        model.prefill(model.new_state(1), [0], tokens, [POSITIONS + 1])


def test_a_length_outside_its_row_is_an_error(model: WhisperSlotModel) -> None:
    with pytest.raises(ValueError, match=r"lengths \[2, 4\], expected 1 to 3"):
        model.prefill(model.new_state(2), [0, 1], sequences(2, 3), [2, 4])


def test_no_slots_are_an_error(model: WhisperSlotModel) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        model.new_state(0)


def test_the_state_dict_is_untouched_by_the_fused_weights(
    network: WhisperForConditionalGeneration,
) -> None:
    before = list(network.state_dict())
    network.slot_model()
    assert list(network.state_dict()) == before


def test_off_the_cpu_a_step_never_reads_a_value_and_keeps_its_shape(
    network: WhisperForConditionalGeneration,
) -> None:
    # On the meta device there are no values: whatever would make a GPU's host wait fails.
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(network.config).slot_model()
        state = model.new_state(4)
        tokens = torch.zeros(3, dtype=torch.long)
        logits = model.step(state, tokens, tokens)
    assert logits.shape == (3, 500)
    assert state.layers[0].self_keys.shape[2] == POSITIONS


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives_also_from_a_captured_graph(tmp_path: Path) -> None:
    features, prompts = windows(2), sequences(2, 3)
    expected = decode_alone(load(tmp_path).slot_model(), features[:1], prompts[:1], steps=5)
    network = WhisperForConditionalGeneration.from_pretrained(tmp_path, device="cuda")
    model = network.slot_model()
    state = model.new_state(1)
    logits = begin(model, state, [0], features[:1].cuda(), prompts[:1].cuda(), [3])[:, -1]
    token, position = logits.argmax(-1), torch.tensor([3], device="cuda")
    model.step(state, token, position)  # warms up; the graph writes the same again
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stepped = model.step(state, token, position)
    for i in range(5):
        graph.replay()
        assert (stepped[0].cpu() - expected[1 + i]).abs().max() < 1e-3  # TF32 is off by default
        token.copy_(stepped.argmax(-1))
        position.add_(1)
