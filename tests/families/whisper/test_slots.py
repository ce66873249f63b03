"""Whisper in slots: as whole sequences, whatever other slots hold and however short windows are."""

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from corpus_asr.config.decoding import PACKAGED_CHECKPOINT
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.families.loading import load_slot_model
from corpus_asr.families.whisper.encoder import WhisperEncoder
from corpus_asr.families.whisper.model import (
    PackedWhisperEncoder,
    WhisperForCausalLM,
    WhisperSlotModel,
)
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.storage.model_files import PACKAGED_FOLDER
from tests.support.slots import (
    POSITIONS,
    SOURCE_POSITIONS,
    STEP_TOLERANCE,
    begin,
    cut_network,
    load,
    needs_int8,
    sequences,
    whole,
    windows,
)

# Only BLAS's choice of kernel may differ with the number of slots.
NEIGHBOUR_TOLERANCE = 1e-5
# bfloat16 keeps 8 bits: logits of about 10 are rounded to multiples of 1/16, many times over.
STEP_BFLOAT16_TOLERANCE = 0.3


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> WhisperForConditionalGeneration:
    return load(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(network: WhisperForConditionalGeneration) -> WhisperSlotModel:
    return network.slot_model()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, STEP_TOLERANCE), (torch.bfloat16, STEP_BFLOAT16_TOLERANCE)],
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
    # Rounding does not add up from step to step: fewer of them do where each is slow.
    for position in range(4, POSITIONS if dtype == torch.float32 else 16):
        found = model.step(state, tokens[:, position], torch.full((3,), position))
        assert found.dtype == torch.float32
        assert (found - expected[:, position]).abs().max() < tolerance, position


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)])
def test_a_step_gives_the_same_whatever_the_number_of_threads(dtype: str) -> None:
    # A CPU decodes on fewer threads while others encode: when that is depends on the time.
    folder = PACKAGED_FOLDER / PACKAGED_CHECKPOINT
    model: SlotModel = load_slot_model(folder, device="cpu", dtype=dtype)
    encoded = torch.randn(3, *model.window_shape, generator=torch.Generator().manual_seed(0)).to(
        model.dtype
    )
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            state = model.new_state(3)
            model.fill(state, [0, 1, 2], encoded)
            said = [model.prefill(state, [0, 1, 2], torch.full((3, 3), 50), [3, 3, 3])]
            for position in range(3, 5):
                tokens = torch.arange(3) + position
                said.append(model.step(state, tokens, torch.full((3,), position), reach=16))
            found.append(said)
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)


def decode_alone(model: WhisperSlotModel, feature: Tensor, prompt: Tensor, steps: int) -> Tensor:
    """Decode greedily in a state of one slot; returns the logits of every step."""
    state = model.new_state(1)
    length = prompt.shape[1]
    logits = [begin(model, state, [0], feature, prompt, [length])[:, -1]]
    for i in range(steps):
        token = logits[-1].argmax(-1)
        logits.append(model.step(state, token, torch.tensor([length + i])))
    return torch.cat(logits)


def test_nan_in_a_slot_reaches_neither_its_neighbors_nor_the_next_window(
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
    (weights,), (hidden,) = model.align(state, [1], tokens, [length], heads)
    logits = model.logits(hidden)
    attended = torch.stack([expected.cross_attentions[layer][0, head] for layer, head in heads])
    assert weights.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(weights, attended, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, expected.logits[0], atol=STEP_TOLERANCE, rtol=0)
    assert all(torch.equal(a, b.text) for a, b in zip(before, state.layers, strict=True))


def test_a_decoder_alone_reads_what_the_whole_model_encodes(tmp_path: Path) -> None:
    network = load(tmp_path)
    model = network.slot_model()
    alone = WhisperForCausalLM.from_pretrained(tmp_path).slot_model()
    found: SlotModel = alone  # checked by mypy
    assert (found.vocab_size, found.max_target_positions) == (500, POSITIONS)
    assert (alone.has_encoder, model.has_encoder) == (False, True)
    assert alone.window_shape == model.window_shape == (SOURCE_POSITIONS, 64)
    features, tokens = windows(2), sequences(2, 12)
    state = alone.new_state(2)
    alone.fill(state, [0, 1], model.encode(features))
    logits = alone.logits(alone.prefill(state, [0, 1], tokens, [12, 12]))
    assert (logits - whole(network, features, tokens)).abs().max() < STEP_TOLERANCE
    with pytest.raises(ValueError, match="encoding 2 windows with a decoder alone"):
        alone.encode(windows(2))


# The packed encoder, and windows of which only the front is heard: as a network of the same weights
# hears that has no room for more.

FRAMES = 2 * SOURCE_POSITIONS
LENGTHS = [100, 200, 60, 100, 2]
# What two blocks lose.
BFLOAT16_TOLERANCE, INT8_TOLERANCE = 0.03, 0.06

KINDS = [
    pytest.param(torch.bfloat16, False, id="bfloat16"),
    pytest.param(torch.bfloat16, True, id="int8", marks=needs_int8),
    pytest.param(torch.float32, True, id="int8 beside float32", marks=needs_int8),
]


@pytest.fixture(scope="module")
def encoder(network: WhisperForConditionalGeneration) -> WhisperEncoder:
    return network.model.encoder


def packed(encoder: WhisperEncoder, dtype: torch.dtype, *, int8: bool) -> PackedWhisperEncoder:
    return PackedWhisperEncoder(copy.deepcopy(encoder).to(dtype), int8=int8)


@torch.inference_mode()
def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.float() - expected).norm() / expected.norm())


Cut = dict[int, WhisperForConditionalGeneration]


@pytest.fixture(scope="module")
def cut(network: WhisperForConditionalGeneration) -> dict[int, WhisperForConditionalGeneration]:
    """The oracles, by the frames of their windows."""
    return {frames: cut_network(network, frames=frames) for frames in set(LENGTHS)}


@pytest.mark.parametrize(("dtype", "int8"), KINDS)
@torch.inference_mode()
def test_in_few_bits_it_stays_near(encoder: WhisperEncoder, dtype: torch.dtype, int8: bool) -> None:
    features = windows(3)
    found = packed(encoder, dtype, int8=int8).encode(features.to(dtype))
    assert found.dtype == dtype
    tolerance = INT8_TOLERANCE if int8 else BFLOAT16_TOLERANCE
    for one, expected in zip(found, encoder.encode(features), strict=True):
        assert relative_error(one, expected) < tolerance


@pytest.mark.parametrize(("dtype", "int8"), KINDS)
def test_a_window_is_the_same_alone_and_in_any_company(
    encoder: WhisperEncoder, dtype: torch.dtype, int8: bool
) -> None:
    """With several threads a window alone is computed by all of them, one among many by one."""
    encode = packed(encoder, dtype, int8=int8).encode
    features = windows(5).to(dtype)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            together = encode(features)
            for first in range(5):
                assert torch.equal(encode(features[first : first + 1])[0], together[first])
            louder = torch.cat([features[4:] * 100, features.flip(0)])
            assert torch.equal(encode(louder)[1:].flip(0), together)
    finally:
        torch.set_num_threads(before)


def test_what_is_no_window_is_refused(encoder: WhisperEncoder) -> None:
    for shape, message in (
        ((1, 80, 199), "found 80 mel bins x 199 frames, expected 80 x 200"),
        ((0, 80, 200), "found an empty batch"),
    ):
        with pytest.raises(ValueError, match=message):
            PackedWhisperEncoder(encoder, int8=False).encode(torch.zeros(shape))


@pytest.mark.parametrize(("dtype", "int8"), KINDS)
def test_the_linear_maps_are_freed_with_the_model(
    tmp_path: Path, dtype: torch.dtype, int8: bool
) -> None:
    """Only their packed copies stay; embeddings and the last norms are shared."""
    network = load(tmp_path, dtype)
    blocks = [
        weakref.ref(weight)
        for tower in (network.model.encoder, network.model.decoder)
        for module in tower.modules()
        if isinstance(module, (nn.Linear, nn.Conv1d))
        for weight in module.parameters()
    ]
    shared = weakref.ref(network.model.decoder.embed_tokens.weight)
    model = network.slot_model(int8=int8)
    del network
    gc.collect()
    assert len(blocks) > 40
    assert not [weight() for weight in blocks if weight() is not None]
    assert shared() is not None
    state = model.new_state(2)
    logits = begin(model, state, [0, 1], windows(2), sequences(2, 4), [4, 4])
    assert logits.isfinite().all()


@pytest.mark.parametrize(("dtype", "int8"), [(torch.float32, None), (torch.float32, False), *KINDS])
@torch.inference_mode()
def test_the_encoder_is_one_that_has_no_room_for_more(
    network: WhisperForConditionalGeneration, cut: Cut, dtype: torch.dtype, int8: bool | None
) -> None:
    """Also the packed one, for which `int8` is told; that to the bit."""
    features = windows(len(LENGTHS)).to(dtype)

    def encoder(of: WhisperForConditionalGeneration) -> WhisperEncoder | PackedWhisperEncoder:
        return of.model.encoder if int8 is None else packed(of.model.encoder, dtype, int8=int8)

    found = encoder(network).encode(features, num_frames=LENGTHS)
    assert found.shape == (len(LENGTHS), FRAMES // 2, 64)
    tolerance = 1e-5 if int8 is None else 0.0
    for one, window, frames in zip(found, features, LENGTHS, strict=True):
        expected = encoder(cut[frames]).encode(window[None, :, :frames])[0]
        torch.testing.assert_close(one[: frames // 2], expected, atol=tolerance, rtol=tolerance)
        assert not one[frames // 2 :].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_that_cannot_be_heard_are_an_error(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load(tmp_path, dtype).slot_model()
    encoded = model.encode(windows(2))
    message = r"parts of 2 windows: found \[.*\] frames, expected .* a multiple of 2, 2 to 200"
    for transcribed in ([100], [100, 0], [100, 202], [100, 99], [-2, 100]):
        with pytest.raises(ValueError, match=message):
            model.encode(windows(2), num_frames=transcribed)
        with pytest.raises(ValueError, match=message):
            model.fill(model.new_state(2), [0, 1], encoded, num_frames=transcribed)
