"""Decoding in slots: the same as whole sequences, whatever other slots hold."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.families.whisper.model import WhisperForCausalLM
from corpus_asr.families.whisper.slots import (
    WhisperDecoderSlots,
    WhisperSlotModel,
)
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.slots import (
    POSITIONS,
    SOURCE_POSITIONS,
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
    with pytest.raises(ValueError, match=r"positions 58 to 60: the cache holds 0 to 59"):
        model.extend(state, [0], sequences(1, 3), torch.tensor([58]))


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
    assert state.layers[0].text.shape[3] == POSITIONS


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


@pytest.mark.parametrize("slots", [[0, 1, 2], [3, 0, 2]], ids=["adjacent", "scattered"])
def test_several_tokens_at_once_equal_the_whole_sequence(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel, slots: list[int]
) -> None:
    features, tokens = windows(3), sequences(3, 40)
    expected = whole(network, features, tokens)
    state = model.new_state(4)
    begin(model, state, slots, features, tokens[:, :9], [9, 4, 7])
    positions = torch.tensor([9, 4, 7])
    for count in (1, 6, 20):  # 20 queries would take the fused kernel, were nothing masked
        span = positions.unsqueeze(1) + torch.arange(count)
        found = model.extend(state, slots, tokens.gather(1, span), positions)
        for row in range(3):
            assert (found[row] - expected[row, span[row]]).abs().max() < STEP_TOLERANCE
        positions = positions + count


def test_what_lies_after_an_earlier_start_is_overwritten_before_it_is_seen(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    features, tokens = windows(1), sequences(1, 20)
    expected = whole(network, features, tokens)[0]
    state = model.new_state(1)
    begin(model, state, [0], features, tokens[:, :5], [5])
    model.extend(state, [0], sequences(1, 12, seed=9), torch.tensor([5]))
    found = model.extend(state, [0], tokens[:, 5:8], torch.tensor([5]))
    assert (found[0] - expected[5:8]).abs().max() < STEP_TOLERANCE
    found = model.step(state, tokens[:, 8], torch.tensor([8]))
    assert (found[0] - expected[8]).abs().max() < STEP_TOLERANCE


@pytest.mark.parametrize("length", [1, 24], ids=["one", "many"])
def test_alignment_equals_the_attention_of_transformers(tmp_path: Path, length: int) -> None:
    model = load(tmp_path).slot_model()
    oracle = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    features, tokens = windows(3), sequences(1, length)
    with torch.inference_mode():
        expected = oracle(
            features[1:2], decoder_input_ids=tokens, output_attentions=True, use_cache=False
        )
    heads = [(1, 3), (0, 0), (1, 1)]
    state = model.new_state(3)
    begin(model, state, [0, 1, 2], features, sequences(3, 3, seed=5), [3, 3, 3])
    before = [layer.text.clone() for layer in state.layers]
    weights, logits = model.align(state, 1, tokens[0], heads)
    attended = torch.stack([expected.cross_attentions[layer][0, head] for layer, head in heads])
    assert weights.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(weights, attended, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, expected.logits[0], atol=STEP_TOLERANCE, rtol=0)
    assert all(torch.equal(a, b.text) for a, b in zip(before, state.layers, strict=True))


def test_reordered_slots_go_on_with_the_texts_of_others(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    features = windows(1).expand(3, -1, -1)
    tokens = sequences(3, 40)
    state = model.new_state(3)
    begin(model, state, [0, 1, 2], features, tokens[:, :4], [4] * 3)
    for position in range(4, 39):
        model.step(state, tokens[:, position], torch.full((3,), position))
    sources = torch.tensor([2, 0, 2])
    model.reorder(state, [0, 1, 2], sources)
    tokens = torch.cat([tokens[sources, :39], torch.tensor([[1], [2], [3]])], dim=1)
    found = model.step(state, tokens[:, 39], torch.full((3,), 39))
    expected = whole(network, features, tokens)[:, 39]
    assert (found - expected).abs().max() < STEP_TOLERANCE


def test_slots_may_share_a_window(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    features, tokens = windows(2), sequences(6, 14)
    tokens[:3, :5], tokens[3:, :5] = tokens[0, :5].clone(), tokens[3, :5].clone()
    expected = whole(network, features.repeat_interleave(3, dim=0), tokens)
    state = model.new_state(6, beams=3)
    assert state.layers[0].cross_keys.shape[0] == 2
    begin(model, state, [0, 3], features, tokens[[0, 3], :5], [5, 5])
    model.share(state, 0, [1, 2])
    model.share(state, 3, [4, 5])
    for position in range(5, 9):
        found = model.step(state, tokens[:, position], torch.full((6,), position))
        assert (found - expected[:, position]).abs().max() < STEP_TOLERANCE
    found = model.extend(state, [4, 1], tokens[[4, 1], 9:12], torch.tensor([9, 9]))
    assert (found - expected[[4, 1], 9:12]).abs().max() < STEP_TOLERANCE


def test_a_decoder_alone_reads_what_the_whole_model_encodes(tmp_path: Path) -> None:
    network = load(tmp_path)
    model, alone = (
        network.slot_model(),
        WhisperForCausalLM.from_pretrained(tmp_path).slot_model(),
    )
    found: SlotModel = alone  # checked by mypy
    assert (found.vocab_size, found.max_target_positions) == (500, POSITIONS)
    assert (alone.has_encoder, model.has_encoder) == (False, True)
    assert alone.window_shape == model.window_shape == (SOURCE_POSITIONS, 64)
    features, tokens = windows(2), sequences(2, 12)
    state = alone.new_state(2)
    alone.fill(state, [0, 1], model.encode(features))
    logits = alone.logits(alone.prefill(state, [0, 1], tokens, [12, 12]))
    assert (logits - whole(network, features, tokens)).abs().max() < STEP_TOLERANCE


def test_a_decoder_alone_cannot_encode(network: WhisperForConditionalGeneration) -> None:
    alone = WhisperDecoderSlots(network.model.decoder, network.proj_out)
    with pytest.raises(ValueError, match="encoding 2 windows with a decoder alone"):
        alone.encode(windows(2))


def test_wrong_use_is_named(model: WhisperSlotModel) -> None:
    ones = torch.ones(3).long()
    with pytest.raises(ValueError, match=r"found windows of \(100, 32\).*expected \(100, 64\)"):
        model.fill(model.new_state(1), [0], torch.zeros(1, SOURCE_POSITIONS, 32))
    with pytest.raises(ValueError, match=r"61 tokens: the model has 60 positions"):
        model.prefill(model.new_state(1), [0], sequences(1, POSITIONS + 1), [POSITIONS + 1])
    with pytest.raises(ValueError, match=r"lengths \[2, 4\], expected 1 to 3"):
        model.prefill(model.new_state(2), [0, 1], sequences(2, 3), [2, 4])
    with pytest.raises(ValueError, match="expected at least 1"):
        model.new_state(0)
    with pytest.raises(ValueError, match="4 slots of which 3 share a window"):
        model.new_state(4, beams=3)
    with pytest.raises(ValueError, match="advancing 3 slots: each 2 of them share a window"):
        model.step(model.new_state(4, beams=2), ones, ones)
    for head in ((2, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match="the model has 2 layers of 4 heads"):
            model.align(model.new_state(1), 0, torch.tensor([1]), [head])
