"""What decoding is predicted to take is what it takes, part by part."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from corpus_asr.decoding.batch import SlotBatch
from corpus_asr.decoding.options import choose
from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.families.whisper.slots import WhisperSlotModel
from corpus_asr.models.speech2text.model import Speech2TextForConditionalGeneration
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.transcription.engine import auto_slots, fitting_slots, predicted_bytes
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.markov import MarkovModel
from tests.support.slots import held_bytes, peak_bytes

SLOTS, BATCH = 8, 4
GIB = 1 << 30

LARGE = ModelSize(
    layers=32,
    width=1280,
    inner_width=5120,
    vocab_size=51_866,
    tokens=448,
    positions=1500,
    window_values=128 * 3000,
    element_bytes=2,
    weight_bytes=3_086_981_120,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """With more, CPUs with AMX take more than predicted in float16; nobody uses it there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[torch.float32, torch.float16], ids=str)
def network(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> WhisperForConditionalGeneration:
    folder = tiny_whisper(
        tmp_path_factory.mktemp("checkpoint"),
        d_model=128,
        layers=2,
        heads=2,
        vocab_size=2000,
        max_source_positions=300,
        encoder_ffn_dim=600,
    )
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=request.param)


@pytest.fixture
def model(network: WhisperForConditionalGeneration) -> WhisperSlotModel:
    return network.slot_model()


def test_caches_and_rows_take_what_is_predicted(model: WhisperSlotModel) -> None:
    predicted = predicted_bytes(model.size, slots=SLOTS, encode_batch=BATCH)
    caches = held_bytes(model.new_state(SLOTS))
    assert predicted.self_cache + predicted.cross_cache == pytest.approx(caches, rel=0.01)
    batch = SlotBatch(model, SLOTS)
    rows = held_bytes(batch) - caches - held_bytes(model)
    assert predicted.slot_rows == pytest.approx(rows, rel=0.02)  # a thousand bytes for all slots


def test_weights_and_their_copies_take_what_is_predicted(
    network: WhisperForConditionalGeneration, model: WhisperSlotModel
) -> None:
    predicted = predicted_bytes(model.size, slots=SLOTS, encode_batch=BATCH)
    weights = sum(weight.nbytes for weight in network.parameters())
    assert predicted.weights == weights
    if model.dtype == torch.float16:  # elsewhere CPUs pack copies of all maps
        held = held_bytes(model, *network.parameters())
        assert predicted.fused_copies == held - weights


def test_the_encoder_s_peak_is_what_is_predicted(model: WhisperSlotModel) -> None:
    features = torch.zeros(BATCH, 80, 600, dtype=model.dtype)
    found = features.nbytes + peak_bytes(lambda: model.encode(features))
    # What checks types in tests holds what the blocks were given; nobody else does.
    held = BATCH * 300 * 128 * model.dtype.itemsize
    predicted = predicted_bytes(model.size, slots=0, encode_batch=BATCH)
    assert predicted.encoder_activations == pytest.approx(found - held, rel=0.02)


def test_a_sampled_step_s_peak_is_what_is_predicted(model: WhisperSlotModel) -> None:
    state = model.new_state(SLOTS)
    tokens = torch.full((SLOTS,), 5)

    def step() -> torch.Tensor:
        logits = model.step(state, tokens, tokens)
        ones = torch.ones(SLOTS)
        return choose(logits, temperatures=ones, seeds=tokens, positions=tokens)

    predicted = predicted_bytes(model.size, slots=SLOTS, encode_batch=0)
    pools = 2
    # A checked function holds its arguments longer than the same unchecked.
    assert 0.75 < peak_bytes(step) / (predicted.step_buffers / pools) < 1.01


def test_speech2text_takes_what_is_predicted(tmp_path: Path) -> None:
    # In the proportions of s2t-small: the convolutions' peak stays below that of the blocks.
    folder = tiny_speech2text(
        tmp_path, d_model=64, encoder_ffn_dim=512, conv_channels=256, heads=2, vocab_size=2000
    )
    network = Speech2TextForConditionalGeneration.from_pretrained(folder)
    model = network.slot_model().for_windows(600)
    predicted = predicted_bytes(model.size, slots=SLOTS, encode_batch=BATCH)
    assert predicted.weights == sum(weight.nbytes for weight in network.parameters())
    caches = held_bytes(model.new_state(SLOTS))
    assert predicted.self_cache + predicted.cross_cache == pytest.approx(caches, rel=0.01)
    windows = torch.zeros(BATCH, 600, 80)

    def encode() -> torch.Tensor:
        with torch.inference_mode():
            encoded: torch.Tensor = network.model.encoder.encode(windows, num_frames=[600] * BATCH)
        return encoded

    peak = windows.nbytes + peak_bytes(encode)
    # The mask, and what the blocks began with, are beside; the reserve is twice as much.
    assert 0.8 < peak / predicted.encoder_activations < 1.1


def test_the_parts_add_up_and_grow_with_the_slots() -> None:
    one = predicted_bytes(LARGE, slots=1, encode_batch=16)
    two = predicted_bytes(LARGE, slots=2, encode_batch=16)
    assert one.total == sum(dataclasses.astuple(one))
    assert one.weights == LARGE.weight_bytes
    # Keys and values of 32 layers in 1,280 columns of two bytes: 164 kB a position.
    assert two.cross_cache - one.cross_cache == 163_840 * 1500
    assert two.self_cache - one.self_cache == 163_840 * 448


@pytest.mark.parametrize(
    ("free_gib", "expected"), [(0.0, 1), (0.5, 1), (8.0, range(8, 20)), (70.0, 64)]
)
def test_as_many_slots_as_fit(free_gib: float, expected: int | range) -> None:
    found = fitting_slots(LARGE, free_bytes=int(free_gib * GIB), encode_batch=16)
    assert found in expected if isinstance(expected, range) else found == expected


def test_what_fits_leaves_the_reserve() -> None:
    free = 12 * GIB
    slots = fitting_slots(LARGE, free_bytes=free, encode_batch=16)

    def needed(slots: int) -> int:
        parts = predicted_bytes(LARGE, slots=slots, encode_batch=16)
        return parts.total - parts.weights - parts.fused_copies

    assert needed(slots) <= 0.8 * free < needed(slots + 1)


def test_a_cpu_and_a_model_that_does_not_tell_its_size_get_a_fixed_number(
    model: WhisperSlotModel,
) -> None:
    assert auto_slots(model, encode_batch=BATCH) == auto_slots(MarkovModel(), encode_batch=2) == 8
