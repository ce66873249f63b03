"""Methods and attributes by which programs for transformers know a network or a tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.speech_to_text import modeling_speech_to_text
from transformers.models.whisper import modeling_whisper

from corpus_asr.families.speech2text.encoder import Speech2TextEncoder
from corpus_asr.families.speech2text.model import Speech2TextDecoder
from corpus_asr.families.whisper.encoder import WhisperEncoder
from corpus_asr.families.whisper.model import WhisperDecoder
from corpus_asr.models import speech2text, whisper
from tests.support.checkpoints import tiny_families

SIZES: dict[str, Any] = {"d_model": 16, "heads": 2, "layers": 1}
IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families(tmp_path_factory.mktemp("checkpoints"), **SIZES)


@pytest.fixture(params=["Whisper", "Speech2Text"])
def network(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    package = whisper if request.param == "Whisper" else speech2text
    kind = getattr(package, f"{request.param}ForConditionalGeneration")
    return kind.from_pretrained(folders[request.param])


def features_of(network: Any) -> Tensor:
    shape = (2, 80, 100) if type(network).__name__.startswith("Whisper") else (2, 100, 80)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


PARTS = {
    WhisperEncoder: modeling_whisper.WhisperEncoder,
    WhisperDecoder: modeling_whisper.WhisperDecoder,
    Speech2TextEncoder: modeling_speech_to_text.Speech2TextEncoder,
    Speech2TextDecoder: modeling_speech_to_text.Speech2TextDecoder,
}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_encoder_or_a_decoder_is_saved_and_loaded_by_itself(
    network: Any, part: str, tmp_path: Path
) -> None:
    held = network.get_encoder() if part == "encoder" else network.get_decoder()
    held.save_pretrained(tmp_path)
    inputs = features_of(network) if part == "encoder" else IDS
    expected = held(inputs).last_hidden_state
    loaded = type(held).from_pretrained(tmp_path)
    assert torch.equal(loaded(inputs).last_hidden_state, expected)
    theirs = PARTS[type(held)].from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(inputs).last_hidden_state, expected)
    assert (held.dtype, held.device) == (torch.float32, torch.device("cpu"))
    assert not held.can_generate()
    assert held.main_input_name == ("input_features" if part == "encoder" else "input_ids")


def test_weights_that_were_lost_are_drawn(network: Any) -> None:
    config = network.config
    with torch.device("meta"):
        empty = type(network)(config)
    empty.to_empty(device="cpu")
    empty.init_weights()
    assert empty.get_output_embeddings().weight is empty.get_input_embeddings().weight
    logits = empty.eval()(features_of(network), decoder_input_ids=IDS).logits
    assert bool(logits.isfinite().all())
    weight = network.get_output_embeddings().weight
    before = weight.clone()
    network.post_init()
    assert torch.equal(weight, before)


def test_a_cache_shows_what_each_attention_keeps(network: Any) -> None:
    output = network(features_of(network), decoder_input_ids=IDS, use_cache=True)
    cache = output.past_key_values
    own, cross = cache.self_attention_cache, cache.cross_attention_cache
    assert len(own) == len(cross) == 1
    heads, width = network.config.decoder_attention_heads, network.config.d_model
    assert own.layers[0].keys.shape == (2, heads, 3, width // heads)
    positions = output.encoder_last_hidden_state.shape[1]
    assert cross.layers[0].values.shape == (2, heads, positions, width // heads)
    assert (own.get_seq_length(), cross.get_seq_length()) == (3, positions)
    assert cache.is_updated == {0: True}
    first = own.layers[0].keys
    assert cache.layers[0].keys is first
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.self_attention_cache.layers[0].keys, first.repeat_interleave(2, dim=0))
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert torch.equal(cache.self_attention_cache.layers[0].keys, first.flip(0))
