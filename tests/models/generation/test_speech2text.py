"""`generate` of Speech2Text: sampling, streams, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.models.speech2text.model import Speech2TextForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text

MELS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Speech2TextForConditionalGeneration:
    folder = tiny_speech2text(
        tmp_path_factory.mktemp("checkpoint"),
        vocab_size=90,
        spread=0.25,
        input_feat_per_channel=MELS,
        max_source_positions=400,
    )
    return Speech2TextForConditionalGeneration.from_pretrained(folder).eval()


def sound(rows: int = 3, frames: int = 80) -> Tensor:
    return torch.randn(rows, frames, MELS, generator=torch.Generator().manual_seed(0))


def sampled(model: Speech2TextForConditionalGeneration, features: Tensor, **more: Any) -> Tensor:
    torch.manual_seed(7)
    found: Tensor = model.generate(
        features, do_sample=True, suppress_tokens=[2], max_new_tokens=8, **more
    )
    return found


def test_what_is_sampled_depends_on_no_neighbour(
    model: Speech2TextForConditionalGeneration,
) -> None:
    features = sound()
    together = sampled(model, features)
    assert torch.equal(sampled(model, features[[2, 0]]), together[[2, 0]])
    assert not torch.equal(sampled(model, features, temperature=3.0), together)
    assert torch.equal(
        sampled(model, features, top_k=1),
        model.generate(features, suppress_tokens=[2], max_new_tokens=8),
    )


def test_several_samples_of_each_row(model: Speech2TextForConditionalGeneration) -> None:
    features = sound()
    found = sampled(model, features, num_return_sequences=4, temperature=2.0)
    assert found.shape == (12, 9)
    assert torch.equal(found[::4], sampled(model, features, temperature=2.0))
    assert len({tuple(row.tolist()) for row in found[:4]}) == 4


def test_tokens_come_as_they_are_found(model: Speech2TextForConditionalGeneration) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.put_tokens: list[int] = []
            self.ended = False

        def put(self, tokens: Tensor) -> None:
            self.put_tokens += tokens.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    found = model.generate(sound(1), streamer=streamer, max_new_tokens=9)
    assert (streamer.put_tokens, streamer.ended) == (found[0].tolist(), True)


def test_the_models_and_the_calls_settings(model: Speech2TextForConditionalGeneration) -> None:
    own = model.generation_config
    settings = type(own)(max_new_tokens=3)
    assert model.generate(sound(), generation_config=settings).shape[1] <= 4
    assert model.generate(sound(), settings, max_new_tokens=2).shape[1] <= 3
    assert own.max_new_tokens is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither `inputs`"),
        ({"inputs": sound(), "input_features": sound()}, "inputs and input_features"),
        ({"inputs": sound().transpose(1, 2)}, r"expected \(batch, frames, 16\)"),
        ({"inputs": sound() / 0}, "NaN or infinity"),
        ({"inputs": sound(frames=401)}, "401 frames, expected at most max_source_positions"),
        ({"inputs": sound(), "attention_mask": torch.ones(2, 80)}, "attention_mask has shape"),
        ({"inputs": sound(), "attention_mask": torch.zeros(3, 80)}, "0 frames in row 0"),
        ({"inputs": sound(), "attention_mask": torch.ones(3, 90)}, "90 frames in row 0"),
        ({"encoder_outputs": (torch.zeros(1, 9, 7),)}, "encoder_outputs have shape"),
        ({"inputs": sound(), "max_new_tokens": 64}, "64 new tokens .* max_target_positions"),
        ({"inputs": sound(), "max_length": 1}, "max_length is 1"),
        ({"inputs": sound(), "assistant_model": object()}, "assistant_model is not offered"),
        ({"inputs": sound(), "do_sample": True, "num_beams": 2}, "beams are not sampled"),
        ({"inputs": sound(), "do_sample": True, "temperature": 0.0}, "a number above 0"),
        ({"inputs": sound(), "num_return_sequences": 2}, "greedy search finds one sequence"),
        ({"inputs": sound(), "output_attentions": True}, "output_attentions is not offered"),
        ({"inputs": sound(), "stop_strings": "x"}, "no tokenizer"),
        ({"inputs": sound(), "streamer": object()}, "a streamer takes one recording"),
        ({"inputs": sound(), "languge": "de"}, "not used by the model: .*languge"),
        ({"inputs": sound(), "decoder_start_token_id": [2, 3]}, "names 2 tokens"),
        ({"inputs": sound(), "decoder_input_ids": torch.ones(2, 3).long()}, "decoder_input_ids"),
        ({"inputs": sound(), "decoder_input_ids": torch.full((3, 1), 90)}, "found token 90"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: Speech2TextForConditionalGeneration, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)
