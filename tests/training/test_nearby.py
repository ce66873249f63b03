"""Where attention looks before anything is learnt."""

from typing import Any

import pytest
import torch

from corpus_asr.models.whisper.encoder import WhisperEncoder
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.training.fresh import Sizes, make_checkpoint

AT = 700
SIZES = Sizes(
    text_tokens=300, width=192, feed_forward=64, heads=4, encoder_layers=2, decoder_layers=1
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> WhisperEncoder:
    folder = make_checkpoint(["One two."], tmp_path_factory.mktemp("fresh"), SIZES, seed=0)
    return WhisperForConditionalGeneration.from_pretrained(folder).model.encoder


def looks(encoder: WhisperEncoder, layer: int) -> torch.Tensor:
    """How much each head looks where from one position, by positions alone: (head, position)."""
    block: Any = encoder.layers[layer]
    with torch.no_grad():
        states = block.self_attn_layer_norm(encoder.embed_positions.weight)
        asked = block.self_attn.q_proj(states)[AT].view(4, 48)
        told = block.self_attn.k_proj(states).view(-1, 4, 48)
        return torch.einsum("hd,phd->hp", asked, told).div(48**0.5).softmax(-1)


@pytest.mark.parametrize(("layer", "offsets"), [(0, [0, -2, 2]), (1, [0, -4, 4])])
def test_heads_look_at_places_around_their_own(
    encoder: WhisperEncoder, layer: int, offsets: list[int]
) -> None:
    shares = looks(encoder, layer)
    for head, offset in enumerate(offsets):
        assert abs(int(shares[head].argmax()) - AT - offset) <= 1
        assert shares[head, AT + offset - 12 : AT + offset + 13].sum() > 0.9


def test_one_head_of_each_layer_finds_its_own_use(encoder: WhisperEncoder) -> None:
    assert looks(encoder, 0)[3].max() < 0.05
