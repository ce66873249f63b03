"""The encoder of GPUs gives what the network's own does, from the same memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from corpus_asr.families.layers.packed import FusedEncoderBlock, fused_encoder
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text
from tests.support.device import pretended_gpu
from tests.support.searches import small_whisper

# One product sums in another order than three do.
TOLERANCE = 1e-5


@pytest.fixture(params=["whisper", "speech2text"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "whisper":
        return small_whisper(tmp_path)
    tiny_speech2text(tmp_path, d_model=16, heads=2)
    return Speech2TextForConditionalGeneration.from_pretrained(tmp_path)


def encode(encoder: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 80, 40, generator=generator)
    with torch.inference_mode():
        if hasattr(encoder, "num_frames"):
            return encoder.encode(features)
        # The second row is padded, which no position may attend to.
        return encoder.encode(features.transpose(1, 2), num_frames=[40, 24])


def test_a_fused_encoder_gives_what_the_network_s_gives(network: Any) -> None:
    encoder = network.model.encoder
    expected = encode(encoder)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    fused = fused_encoder(encoder)
    assert all(isinstance(block, FusedEncoderBlock) for block in fused.layers)
    for found in (encode(fused), encode(encoder)):
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_network_s_weights_are_the_fused_ones_and_can_be_trained_and_saved(
    network: Any, tmp_path: Path
) -> None:
    encoder = network.model.encoder
    with torch.inference_mode():  # in which a caller may be
        first, second = fused_encoder(encoder), fused_encoder(encoder)
    for block, ours, again in zip(encoder.layers, first.layers, second.layers, strict=True):
        attention = block.self_attn
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        whole = ours._weight.untyped_storage().data_ptr()
        assert again._weight.data_ptr() == ours._weight.data_ptr()
        assert {one.weight.untyped_storage().data_ptr() for one in maps} == {whole}
    network.save_pretrained(tmp_path / "saved")
    copied = type(network).from_pretrained(tmp_path / "saved").model.encoder
    assert torch.equal(encode(copied), encode(encoder))
    network.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    hidden = torch.randn(1, 5, 16, requires_grad=True)
    encoder.layers[0](hidden).square().sum().backward()
    optimizer.step()
    assert torch.equal(first.layers[0]._weight[:16], encoder.layers[0].self_attn.q_proj.weight)
    assert not torch.equal(
        encoder.layers[0].self_attn.q_proj.weight, copied.layers[0].self_attn.q_proj.weight
    )


def test_hidden_states_lie_in_one_piece_from_block_to_block(network: Any) -> None:
    seen: list[bool] = []
    encoder = fused_encoder(network.model.encoder)
    for block in encoder.layers:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    encode(encoder)
    assert seen == [True, True]


def test_fusing_takes_no_memory_beside_the_weights(tmp_path: Path) -> None:
    small_whisper(tmp_path)
    with pretended_gpu() as gpu:
        network = WhisperForConditionalGeneration.from_pretrained(tmp_path, device="cuda")
        before = gpu.memory.live
        fused: Any = fused_encoder(network.model.encoder)
        # Its biases, with zeros for the keys.
        assert gpu.memory.live - before == sum(b._bias.on_host.nbytes for b in fused.layers)
