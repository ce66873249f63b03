"""Steps without a cache, what the cache holds at the end, and decoders without windows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.errors import CheckpointError, WeightsError
from corpus_asr.models import speech2text, whisper
from tests.support.checkpoints import tiny_families

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
SIZES: dict[str, Any] = {"d_model": 16, "heads": 2, "layers": 1}
ASKED: dict[str, Any] = {
    "max_new_tokens": 4,
    "return_dict_in_generate": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "do_sample": False,
}
STATES = ("decoder_attentions", "cross_attentions", "decoder_hidden_states")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families(tmp_path_factory.mktemp("checkpoints"), **SIZES)


def both(name: str, folders: dict[str, Path]) -> tuple[Any, Any, Tensor]:
    package = whisper if name == "Whisper" else speech2text
    kind = f"{name}ForConditionalGeneration"
    shape = (2, 80, 100) if name == "Whisper" else (2, 100, 80)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Eager attention, which alone returns weights there.
    theirs = getattr(transformers, kind).from_pretrained(folders[name], attn_implementation="eager")
    return getattr(package, kind).from_pretrained(folders[name]), theirs, features


def close(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(ours, tuple):
            close(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["Whisper", "Speech2Text"])
def test_states_of_each_step_are_those_of_transformers(
    folders: dict[str, Path], name: str, beams: int, use_cache: bool
) -> None:
    if (name, beams) == ("Whisper", 3):
        pytest.skip("of Whisper's beams the states of the best are returned")
    ours, theirs, features = both(name, folders)
    options = ASKED | {"use_cache": use_cache, "num_beams": beams, "eos_token_id": None}
    more = {"force_unique_generate_call": True} if name == "Whisper" else {}
    found = ours.generate(features, **options, **more)
    expected = theirs.generate(features, **options, **more)
    assert torch.equal(found.sequences, expected.sequences)
    for key in STATES:
        close(found[key], expected[key])
    if not use_cache:
        assert "past_key_values" not in found
        return
    cache = found.past_key_values
    assert cache.get_seq_length() == found.sequences.shape[1] - 1
    if beams == 1:
        kept = expected.past_key_values
        for number, layer in enumerate(cache.layers):
            for part in ("self_attention_cache", "cross_attention_cache"):
                own = getattr(cache, part).layers[number]
                other = getattr(kept, part).layers[number]
                close((own.keys, own.values), (other.keys, other.values))
            assert layer.keys is layer.own.keys


@pytest.mark.parametrize("beams", [1, 2])
def test_a_decoder_alone_continues_texts_without_windows(
    folders: dict[str, Path], beams: int
) -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    ours: Any = whisper.WhisperForCausalLM.from_pretrained(folders["Whisper"])
    theirs: Any = transformers.WhisperForCausalLM.from_pretrained(
        folders["Whisper"], attn_implementation="eager"
    )
    options = ASKED | {"num_beams": beams, "eos_token_id": -1, "suppress_tokens": None}
    found = ours.generate(ids, **options)
    expected = theirs.generate(ids, **options, begin_suppress_tokens=None)
    assert torch.equal(found.sequences, expected.sequences)
    close(found.attentions, expected.attentions)
    close(found.hidden_states, expected.hidden_states)
    assert "cross_attentions" not in found


def test_the_encoder_has_states_once_for_each_window(folders: dict[str, Path]) -> None:
    ours, _, features = both("Whisper", folders)
    found = ours.generate(
        features,
        **ASKED | {"do_sample": True, "num_return_sequences": 2},
        force_unique_generate_call=True,
        temperature=1.0,
    )
    assert len(found.sequences) == 4
    assert {len(layer) for layer in found.encoder_hidden_states} == {2}


def test_weights_of_another_shape_are_a_runtime_error(folders: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="do not fit") as caught:
        whisper.WhisperModel.from_pretrained(folders["Whisper"], encoder_ffn_dim=24)
    assert isinstance(caught.value, CheckpointError | WeightsError | OSError)


def test_features_that_are_not_padded_are_an_array_of_rows() -> None:
    extractor = speech2text.Speech2TextFeatureExtractor()
    audio = [np.ones(800, dtype=np.float32), np.ones(1600, dtype=np.float32)]
    features = extractor(audio, sampling_rate=16_000, return_tensors="np").input_features
    assert features.dtype == object
    assert [row.shape for row in features] == [(3, 80), (8, 80)]
