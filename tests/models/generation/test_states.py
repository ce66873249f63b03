"""Attentions and hidden states of `generate` are those of transformers, step by step."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from tests.support import references
from tests.support.checkpoints import tiny_speech2text
from tests.support.references import WINDOW, Pair, same, sound

MELS = 16
NAMED: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_attentions": True,
    "output_hidden_states": True,
}
STATES = (
    "encoder_attentions", "encoder_hidden_states", "decoder_attentions", "cross_attentions",
    "decoder_hidden_states",
)  # fmt: skip
LENGTHS = [90, 41, 7]
pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    found = references.pair(tmp_path_factory.mktemp("whisper"), seed=5)
    found.set(max_new_tokens=9)
    # Its fused kernels keep no weights to return.
    found.theirs.set_attn_implementation("eager")
    return found


@pytest.fixture(scope="module")
def speech2text(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("speech2text")
    sizes: dict[str, Any] = {"d_model": 32, "vocab_size": 90, "input_feat_per_channel": MELS}
    tiny_speech2text(
        folder, seed=1, spread=0.25, max_source_positions=400, tie_word_embeddings=False, **sizes
    )
    ours: Any = Speech2TextForConditionalGeneration.from_pretrained(folder)
    theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(folder)
    theirs.set_attn_implementation("eager")
    return Pair(ours.eval(), theirs.eval())


def spoken(lengths: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(lengths), max(lengths), MELS, generator=generator)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return {"features": features * mask[:, :, None], "attention_mask": mask}


@pytest.mark.parametrize(
    ("lengths", "arguments"),
    [
        (LENGTHS, {}),
        (LENGTHS, {"eos_token_id": 42, "pad_token_id": 0, "max_new_tokens": 20}),
        (LENGTHS, {"decoder_input_ids": torch.tensor([[2, 5, 6], [2, 7, 8], [2, 9, 9]])}),
        ([90], {"num_beams": 3}),
        (LENGTHS, {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}),
    ],
    ids=["greedy", "ends", "prompts", "beams of one", "beams"],
)
def test_states_of_a_padded_batch(
    speech2text: Pair, lengths: list[int], arguments: dict[str, Any]
) -> None:
    asked = {"max_new_tokens": 8, **spoken(lengths), **NAMED, **arguments}
    ours, theirs = speech2text.both(**asked)
    assert set(STATES) <= theirs.keys()
    same(ours, theirs)


def test_states_of_several_samples(speech2text: Pair) -> None:
    asked: dict[str, Any] = {**spoken([90, 41]), **NAMED, "max_new_tokens": 5, "do_sample": True}
    found = speech2text.say(**asked, num_return_sequences=3)
    given = spoken([90, 41])
    with torch.no_grad():
        whole = speech2text.theirs(
            input_features=given["features"].repeat_interleave(3, dim=0),
            attention_mask=given["attention_mask"].repeat_interleave(3, dim=0),
            decoder_input_ids=found.sequences[:, :-1],
            output_attentions=True,
            output_hidden_states=True,
        )
    last = found.cross_attentions[-1]
    for layer, expected in zip(last, whole.cross_attentions, strict=True):
        torch.testing.assert_close(layer, expected[:, :, -1:], atol=1e-5, rtol=1e-4)
    assert len(found.encoder_hidden_states[0]) == 2


WINDOWS: list[tuple[Tensor, dict[str, Any]]] = [
    (sound(3, WINDOW, seed=1), {}),
    (sound(3, WINDOW, seed=1), {"force_unique_generate_call": True, "return_timestamps": True}),
    (sound(2, WINDOW, seed=1), {"return_segments": True, "return_timestamps": True}),
    (
        sound(1, 2 * WINDOW + 36, seed=4),
        {"return_segments": True, "return_timestamps": True, "condition_on_prev_tokens": True},
    ),
    (
        sound(2, 2 * WINDOW + 36, seed=4),
        {
            "return_segments": True,
            "return_timestamps": True,
            "condition_on_prev_tokens": True,
            "attention_mask": torch.ones(2, 2 * WINDOW + 36).long(),
        },
    ),
]


@pytest.mark.parametrize(
    ("features", "arguments"), WINDOWS, ids=["rows", "once", "segments", "windows", "prompts"]
)
def test_states_of_windows(whisper: Pair, features: Tensor, arguments: dict[str, Any]) -> None:
    ours, theirs = whisper.both(features, **NAMED, **arguments)
    if "segments" not in theirs:
        assert set(STATES) <= theirs.keys()
        same(ours, theirs)
        return
    same(ours["sequences"], theirs["sequences"])
    for row, expected in zip(ours["segments"], theirs["segments"], strict=True):
        for one, other in zip(row, expected, strict=True):
            assert set(STATES) <= other["result"].keys()
            for name in STATES[:2]:
                same(one["result"][name], other["result"][name], where=name)
            for name in STATES[2:]:
                mine, expected_states = one["result"][name], other["result"][name]
                if "attention_mask" in arguments:  # prompts are padded, and padding sees anything
                    mine, expected_states = (
                        [step[0].shape for step in steps] for steps in (mine, expected_states)
                    )
                same(mine, expected_states, where=name)


def test_states_of_beams_are_those_of_the_text(whisper: Pair) -> None:
    features = sound(2, WINDOW, seed=1)
    found = whisper.say(features, num_beams=3, **NAMED)
    assert found.sequences.shape[1] - found.beam_indices.shape[1] == 3
    with torch.no_grad():
        whole = whisper.theirs(
            features, decoder_input_ids=found.sequences[:, :-1], output_attentions=True,
            output_hidden_states=True,
        )  # fmt: skip
    for step, layers in enumerate(found.decoder_hidden_states):
        for layer, expected in zip(layers, whole.decoder_hidden_states, strict=True):
            at = slice(0, 3) if step == 0 else slice(step + 2, step + 3)
            torch.testing.assert_close(layer, expected[:, at], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_one_of_both(whisper: Pair, speech2text: Pair, name: str) -> None:
    asked: dict[str, Any] = {"return_dict_in_generate": True, name: True}
    cases: list[tuple[Pair, dict[str, Any]]] = [
        (whisper, {"features": sound(1, WINDOW)}),
        (speech2text, spoken([30])),
    ]
    for both, given in cases:
        ours, theirs = both.both(**given, **asked)
        assert {key for key in STATES if key in ours} == {key for key in STATES if key in theirs}
        # Without a result by name nothing is computed.
        only: dict[str, Any] = {name: True}
        plain = both.say(**given, **only)
        assert isinstance(plain, Tensor)


def test_states_of_an_encoding_that_is_given(speech2text: Pair, whisper: Pair) -> None:
    with torch.no_grad():
        encoded = speech2text.theirs.get_encoder()(
            spoken([90])["features"], output_attentions=True, output_hidden_states=True
        )
    asked: dict[str, Any] = {"encoder_outputs": encoded, "max_new_tokens": 4, **NAMED}
    same(speech2text.say(None, **asked), speech2text.theirs.generate(**asked))
    with torch.no_grad():
        encoded = whisper.theirs.get_encoder()(sound(1, WINDOW))
    found = whisper.say(None, encoder_outputs=encoded, **NAMED)
    assert "encoder_attentions" not in found
    same(
        found.cross_attentions,
        whisper.say(sound(1, WINDOW), **NAMED).cross_attentions,
    )


def test_a_training_model_has_the_states_of_evaluation(speech2text: Pair) -> None:
    given = spoken([60])
    expected = speech2text.say(**given, max_new_tokens=4, **NAMED)
    speech2text.ours.train()
    try:
        same(speech2text.say(**given, max_new_tokens=4, **NAMED), expected)
        assert speech2text.ours.training
    finally:
        speech2text.ours.eval()
