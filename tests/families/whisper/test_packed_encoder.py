"""The packed encoder against the encoder it is made of, and what stays in memory beside it."""

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from corpus_asr.families.layers.projection import can_use_int8
from corpus_asr.families.whisper.encoder import WhisperEncoder
from corpus_asr.families.whisper.slots import PackedWhisperEncoder
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.slots import begin, load, needs_int8, sequences, windows

# float32: other order of sums. bfloat16 and 8 bits: what two blocks lose.
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE, INT8_TOLERANCE = 1e-4, 0.03, 0.06

KINDS = [
    pytest.param(torch.bfloat16, False, id="bfloat16"),
    pytest.param(torch.bfloat16, True, id="int8", marks=needs_int8),
    pytest.param(torch.float32, True, id="int8 beside float32", marks=needs_int8),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> WhisperForConditionalGeneration:
    return load(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def encoder(network: WhisperForConditionalGeneration) -> WhisperEncoder:
    return network.model.encoder


def packed(encoder: WhisperEncoder, dtype: torch.dtype, *, int8: bool) -> PackedWhisperEncoder:
    return PackedWhisperEncoder(copy.deepcopy(encoder).to(dtype), int8=int8)


@torch.inference_mode()
def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.float() - expected).norm() / expected.norm())


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
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_window_is_the_same_alone_and_in_any_company(
    encoder: WhisperEncoder, dtype: torch.dtype, int8: bool, threads: int
) -> None:
    """With several threads a window alone is computed by all of them, one among many by one."""
    encode = packed(encoder, dtype, int8=int8).encode
    features = windows(5).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = encode(features)
        for first in range(5):
            assert torch.equal(encode(features[first : first + 1])[0], together[first])
        louder = torch.cat([features[4:] * 100, features.flip(0)])
        assert torch.equal(encode(louder)[1:].flip(0), together)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 80, 199), "found 80 mel bins x 199 frames, expected 80 x 200"),
        ((1, 128, 200), "found 128 mel bins x 200 frames"),
        ((0, 80, 200), "found an empty batch"),
    ],
)
def test_what_is_no_window_is_refused(
    encoder: WhisperEncoder, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PackedWhisperEncoder(encoder, int8=False).encode(torch.zeros(shape))


def test_making_it_leaves_the_encoder_as_it_was_and_trainable(encoder: WhisperEncoder) -> None:
    ours = copy.deepcopy(encoder)
    PackedWhisperEncoder(ours, int8=can_use_int8())
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, encoder.state_dict()[name]), name
    ours(windows(1)).last_hidden_state.sum().backward()
    assert all(weight.grad is not None for weight in ours.layers.parameters())


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
