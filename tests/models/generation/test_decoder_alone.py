"""`WhisperForCausalLM.generate` says what transformers' says over windows that are encoded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.models.whisper import WhisperForCausalLM
from tests.support.references import WINDOW, Streamer, pair, same, sound

IDS = torch.tensor([[457, 5, 6], [457, 8, 9], [457, 7, 7]])


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Tensor]:
    """A decoder here and in transformers, and three windows that were encoded."""
    folder: Path = tmp_path_factory.mktemp("whisper")
    both = pair(folder, seed=5)
    with torch.no_grad():
        encoded = both.theirs.get_encoder()(sound(3, WINDOW, seed=1)).last_hidden_state
    ours = WhisperForCausalLM.from_pretrained(folder / "model")
    theirs = transformers.WhisperForCausalLM.from_pretrained(folder / "model")
    return ours, theirs.eval(), encoded


ASKED: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"repetition_penalty": 1.5, "return_dict_in_generate": True, "output_scores": True},
    {"eos_token_id": [456, 33], "suppress_tokens": [1389]},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: ",".join(asked) or "greedy")
def test_a_decoder_alone_generates(
    decoders: tuple[Any, Any, Tensor], asked: dict[str, Any]
) -> None:
    ours, theirs, encoded = decoders
    # The reference repeats no encoding of a decoder alone for its beams.
    repeated = encoded.repeat_interleave(asked.get("num_beams", 1), dim=0)
    with torch.no_grad():
        expected = theirs.generate(IDS, encoder_outputs=(repeated,), max_new_tokens=12, **asked)
    for outputs in ((encoded,), encoded):
        same(ours.generate(IDS, encoder_outputs=outputs, max_new_tokens=12, **asked), expected)
    named = ours.generate(input_ids=IDS, encoder_outputs=(encoded,), max_new_tokens=12, **asked)
    same(named, expected)


def test_its_start_samples_and_stream(decoders: tuple[Any, Any, Tensor]) -> None:
    ours, _, encoded = decoders
    found = ours.generate(encoder_outputs=encoded, max_new_tokens=4)
    assert (found[:, 0] == ours.generation_config.bos_token_id).all()
    torch.manual_seed(1)
    sampled = ours.generate(
        IDS, encoder_outputs=encoded, do_sample=True, num_return_sequences=2, max_new_tokens=6
    )
    assert len(sampled) == 6
    streamer = Streamer()
    one = {"encoder_outputs": encoded[:1], "streamer": streamer}
    tokens = ours.generate(IDS[:1], max_new_tokens=6, **one)
    assert [one for part in streamer.tokens[:-1] for one in part] == tokens[0].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder_outputs": torch.zeros(3, 7, 32)}, r"expected \(batch, 100, 32\)"),
        ({"encoder_outputs": torch.zeros(2, 100, 32)}, r"expected whole numbers \(2, token\)"),
        ({"attention_mask": torch.zeros(3, 3)}, "hides tokens of the prompts"),
        ({"input_ids": IDS}, "inputs and input_ids, which mean the same"),
        ({"assistant_model": object()}, "assistant_model is not offered"),
    ],
)
def test_what_it_cannot_do_is_said(
    decoders: tuple[Any, Any, Tensor], given: dict[str, Any], message: str
) -> None:
    ours, _, encoded = decoders
    with pytest.raises(ValueError, match=message):
        ours.generate(IDS, **{"encoder_outputs": encoded, **given})
