"""Sizes are the published ones, and their checkpoints of noise load elsewhere."""

import pytest
import transformers

from corpus_asr.benchmark.measuring import SHAPES, Shape, find_shapes

# Millions of parameters, tied ones and fixed encoder positions counted once each.
PUBLISHED = {
    "tiny": 37.8, "base": 72.6, "small": 241.7, "medium": 763.9, "large-v3": 1543.5,
    "large-v3-turbo": 808.9,
}  # fmt: skip


def test_each_size_has_as_many_parameters_as_the_published_one():
    assert list(SHAPES) == list(PUBLISHED)
    for name, millions in PUBLISHED.items():
        network = SHAPES[name].network()
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        assert network.num_parameters() / 1e6 == pytest.approx(millions, abs=0.05), name


@pytest.mark.parametrize(("name", "size"), [("tiny", 51_865), ("large-v3", 51_866)])
def test_control_tokens_are_at_the_published_ids(name, size):
    shape = SHAPES[name]
    words = shape.vocabulary
    config = shape.config()
    assert config.vocab_size == size
    assert len(words) + 1501 == size
    assert words.index("<|endoftext|>") == config.eos_token_id
    assert words.index("<|startoftranscript|>") == config.decoder_start_token_id
    assert words.index("<|en|>") == 50_259
    assert words.index("<|notimestamps|>") == size - 1502
    assert len(set(words)) == len(words)


def test_a_checkpoint_of_noise_loads_in_transformers_and_is_the_same_again(tmp_path):
    shape = Shape(name="nano", width=64, encoder_layers=1, decoder_layers=1)
    folders = [shape.write(tmp_path / name) for name in ("one", "two")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    model, report = transformers.WhisperForConditionalGeneration.from_pretrained(
        folders[0], output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.num_parameters() == shape.network().num_parameters()


def test_shapes_are_measured_once_each_in_the_order_given():
    assert [shape.name for shape in find_shapes(["small", "tiny", "small"])] == ["small", "tiny"]
