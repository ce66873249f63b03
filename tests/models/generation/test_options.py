"""Options of `generate` beyond the usual ones: what is sampled from, biases, ends, and scores."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.generation import logits_process as theirs

from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from tests.support import references
from tests.support.checkpoints import tiny_speech2text
from tests.support.references import WINDOW, Pair, same, sound

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")

MELS, VOCAB = 16, 90


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    found = references.pair(tmp_path_factory.mktemp("whisper"), seed=5)
    found.set(max_new_tokens=12)
    return found


@pytest.fixture(scope="module")
def speech2text(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("speech2text")
    sizes: dict[str, Any] = {"d_model": 32, "vocab_size": VOCAB, "input_feat_per_channel": MELS}
    tiny_speech2text(
        folder, seed=1, spread=0.25, max_source_positions=400, tie_word_embeddings=False, **sizes
    )
    ours: Any = Speech2TextForConditionalGeneration.from_pretrained(folder)
    reference = transformers.Speech2TextForConditionalGeneration.from_pretrained(folder)
    return Pair(ours.eval(), reference.eval())


@pytest.fixture(params=["whisper", "whisper with times", "speech2text"])
def case(request: pytest.FixtureRequest) -> tuple[Pair, Tensor, dict[str, Any]]:
    """A pair, three rows of sound, and arguments."""
    family, _, times = request.param.partition(" ")
    both: Pair = request.getfixturevalue(family)
    if family == "whisper":
        return both, sound(3, WINDOW, seed=1), {"return_timestamps": bool(times)}
    return both, spoken(3), {}


def spoken(rows: int) -> Tensor:
    return torch.randn(rows, 80, MELS, generator=torch.Generator().manual_seed(0))


BIASES: list[dict[str, Any]] = [
    {"sequence_bias": [[[5], 3.0], [[6, 7], 2.0], [[8, 9, 10], -1.0]]},
    {"sequence_bias": {(5,): 3.0, (6, 7): 2.0}, "num_beams": 3},
    {"sequence_bias": [[[5], 3.0]], "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"exponential_decay_length_penalty": (3, 1.4)},
    {"exponential_decay_length_penalty": (2, 1.2), "num_beams": 3, "repetition_penalty": 1.2},
    {"eos_token_id": None, "max_new_tokens": 15},
    {"eos_token_id": None, "max_new_tokens": 15, "num_beams": 2},
    {"prompt_lookup_num_tokens": 3},
]


@pytest.mark.parametrize("arguments", BIASES, ids=",".join)
def test_biases_urges_and_texts_without_an_end(
    case: tuple[Pair, Tensor, dict[str, Any]], arguments: dict[str, Any]
) -> None:
    both, features, more = case
    if "prompt_lookup_num_tokens" in arguments:  # there for one row alone
        same(both.say(features, **more, **arguments), both.say(features, **more))
        return
    same(*both.both(features, **more, **arguments))


ENDS: list[dict[str, Any]] = [
    {},
    {"pad_token_id": 0},
    {"min_new_tokens": 5, "bad_words_ids": [[17], [5]]},
    {"num_beams": 4},
    {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True, "length_penalty": 0.5},
]


@pytest.mark.parametrize("arguments", ENDS, ids=lambda given: ",".join(given) or "default")
@pytest.mark.parametrize("family", ["whisper", "speech2text"])
def test_several_tokens_end_a_text(
    request: pytest.FixtureRequest, family: str, arguments: dict[str, Any]
) -> None:
    both: Pair = request.getfixturevalue(family)
    features = sound(3, WINDOW, seed=1) if family == "whisper" else spoken(3)
    plain = both.say(features, max_new_tokens=20, min_new_tokens=20)
    # Tokens that are said soon, in one row and in another.
    ends = [both.settings.eos_token_id, int(plain[0, 4]), int(plain[1, 7])]
    ours, theirs = both.both(features, eos_token_id=ends, max_new_tokens=20, **arguments)
    same(ours, theirs)
    assert ours.shape != plain.shape or not torch.equal(ours, plain)


def test_ends_are_token_ids(whisper: Pair) -> None:
    for wrong in ("2", [2, "3"]):
        with pytest.raises(ValueError, match=r"eos_token_id is .*, expected a token id, several"):
            whisper.say(sound(1, WINDOW), eos_token_id=wrong)


def test_a_negative_end_is_none(speech2text: Pair) -> None:
    same(*speech2text.both(spoken(2), eos_token_id=-1, max_new_tokens=15))


# What is sampled from

WARPED: list[tuple[dict[str, Any], list[Any]]] = [
    ({"min_p": 0.1}, [theirs.MinPLogitsWarper(0.1)]),
    ({"top_h": 0.4}, [theirs.TopHLogitsWarper(0.4)]),
    (
        {"top_h": 0.7, "top_k": 9, "top_p": 0.8},
        [
            theirs.TopHLogitsWarper(0.7),
            theirs.TopKLogitsWarper(9),
            theirs.TopPLogitsWarper(0.8),
        ],
    ),
    ({"typical_p": 0.3}, [theirs.TypicalLogitsWarper(0.3)]),
    ({"epsilon_cutoff": 0.03}, [theirs.EpsilonLogitsWarper(0.03)]),
    ({"epsilon_cutoff": 0.99}, [theirs.EpsilonLogitsWarper(0.99)]),
    ({"eta_cutoff": 0.05}, [theirs.EtaLogitsWarper(0.05)]),
    (
        {"top_k": 20, "min_p": 0.05, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
        [
            theirs.TopKLogitsWarper(20),
            theirs.MinPLogitsWarper(0.05),
            theirs.TypicalLogitsWarper(0.9),
            theirs.EpsilonLogitsWarper(0.01),
            theirs.EtaLogitsWarper(0.02),
        ],
    ),
]


@pytest.mark.parametrize(("arguments", "warpers"), WARPED, ids=[",".join(w[0]) for w in WARPED])
def test_what_is_sampled_from_is_that_of_transformers(
    case: tuple[Pair, Tensor, dict[str, Any]], arguments: dict[str, Any], warpers: list[Any]
) -> None:
    both, features, more = case
    asked: dict[str, Any] = {
        "do_sample": True, "temperature": 0.8, "top_k": 0, "max_new_tokens": 6, **more,
        "return_dict_in_generate": True, "output_scores": True,
    }  # fmt: skip
    if more:  # of Whisper the first window alone
        asked["force_unique_generate_call"] = True
    free = both.say(features, **asked)
    found = both.say(features, **{**asked, **arguments})
    # The first token is chosen from the same scores, before the texts part.
    expected = free.scores[0]
    for warper in warpers:
        expected = warper(found.sequences[:, :1], expected)
    torch.testing.assert_close(found.scores[0], expected, atol=1e-4, rtol=1e-4)
    assert found.scores[0].isneginf().sum() > free.scores[0].isneginf().sum()
    begin = found.sequences.shape[1] - len(found.scores)
    for step, scores in enumerate(found.scores):
        chosen = scores.gather(1, found.sequences[:, begin + step : begin + step + 1])
        assert not chosen.isneginf().any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_p": 1.5}, {"top_h": -0.1}, {"top_h": 0.0}, {"typical_p": 0.0}, {"typical_p": "x"},
        {"epsilon_cutoff": 2.0}, {"sequence_bias": []}, {"sequence_bias": [[[VOCAB], 1.0]]},
        {"sequence_bias": {(): 1.0}}, {"sequence_bias": 3},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_cannot_be_meant(speech2text: Pair, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} is .*, expected"):
        speech2text.say(spoken(1), do_sample=True, **arguments)


# Scores

NAMED: dict[str, Any] = {
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
    "max_new_tokens": 8,
}  # fmt: skip


@pytest.mark.parametrize("returned", [1, 3])
def test_beams_are_named_with_all_their_scores(speech2text: Pair, returned: int) -> None:
    asked = {**NAMED, "num_beams": 3, "num_return_sequences": returned}
    # Of one row all steps are the same; other rows go round after their end.
    same(*speech2text.both(spoken(1), **asked))
    ours, theirs = speech2text.both(spoken(3), eos_token_id=42, **asked)
    same(ours.sequences, theirs.sequences)
    assert torch.equal(ours.beam_indices, theirs.beam_indices)
    for normalize in (False, True):
        same(*transitions(speech2text, ours, theirs, normalize_logits=normalize))


def transitions(both: Pair, ours: Any, theirs: Any, **more: Any) -> tuple[Tensor, Tensor]:
    found = both.ours.compute_transition_scores(
        ours.sequences, ours.scores, ours.beam_indices, **more
    )
    expected = both.theirs.compute_transition_scores(
        theirs.sequences, theirs.scores, theirs.get("beam_indices"), **more
    )
    return found, expected


@pytest.mark.parametrize(
    ("arguments", "warpers"),
    [
        ({}, []),
        ({"top_k": 1}, [theirs.TopKLogitsWarper(1, min_tokens_to_keep=2)]),
        ({"top_p": 0.05}, [theirs.TopPLogitsWarper(0.05, min_tokens_to_keep=2)]),
        (
            {"min_p": 0.9, "typical_p": 0.01, "epsilon_cutoff": 0.9, "eta_cutoff": 0.9},
            [
                theirs.MinPLogitsWarper(0.9, min_tokens_to_keep=2),
                theirs.TypicalLogitsWarper(0.01, min_tokens_to_keep=2),
                theirs.EpsilonLogitsWarper(0.9, min_tokens_to_keep=2),
                theirs.EtaLogitsWarper(0.9, min_tokens_to_keep=2),
            ],
        ),
    ],
    ids=["all", "top_k", "top_p", "others"],
)
def test_beams_are_sampled(
    speech2text: Pair, arguments: dict[str, Any], warpers: list[Any]
) -> None:
    asked = {**NAMED, "num_beams": 3, "num_return_sequences": 3, "do_sample": True}
    asked |= {"temperature": 1.7, "top_k": 0, **arguments}
    torch.manual_seed(5)
    found = speech2text.say(spoken(2), **asked)
    torch.manual_seed(5)
    same(speech2text.say(spoken(2), **asked).sequences, found.sequences)
    expected = found.logits[0].log_softmax(dim=1) / 1.7
    for warper in warpers:
        expected = warper(found.sequences[:, :1], expected)
    torch.testing.assert_close(found.scores[0], expected, atol=1e-4, rtol=1e-4)
    scores = speech2text.ours.compute_transition_scores(
        found.sequences, found.scores, found.beam_indices
    )
    lengths = (found.beam_indices >= 0).sum(dim=1)
    torch.testing.assert_close(scores.sum(dim=1) / lengths, found.sequences_scores)
    if not warpers:
        torch.manual_seed(6)
        assert not torch.equal(speech2text.say(spoken(2), **asked).sequences, found.sequences)


def test_transition_scores_add_up_to_those_of_the_beams(speech2text: Pair) -> None:
    found = speech2text.say(spoken(2), num_beams=4, length_penalty=0.7, **NAMED)
    scores = speech2text.ours.compute_transition_scores(
        found.sequences, found.scores, found.beam_indices
    )
    lengths = (found.beam_indices >= 0).sum(dim=1)
    torch.testing.assert_close(scores.sum(dim=1) / lengths**0.7, found.sequences_scores)


def test_transition_scores_of_the_likeliest_tokens(
    case: tuple[Pair, Tensor, dict[str, Any]],
) -> None:
    both, features, more = case
    asked = {**NAMED, **more, **({"force_unique_generate_call": True} if more else {})}
    ours, theirs = both.both(features[:1], **asked)
    for normalize in (False, True):
        same(*transitions(both, ours, theirs, normalize_logits=normalize))


def test_beams_of_a_window_are_named(whisper: Pair) -> None:
    asked = {**NAMED, "num_beams": 3, "force_unique_generate_call": True}
    ours, theirs = whisper.both(sound(3, WINDOW, seed=1), **asked)
    same(ours.sequences, theirs.sequences)
    assert torch.equal(ours.beam_indices, theirs.beam_indices)
    # Each text's own scores are returned, so that they add up without its beams.
    scores = whisper.ours.compute_transition_scores(ours.sequences, ours.scores, ours.beam_indices)
    lengths = (ours.beam_indices >= 0).sum(dim=1)
    torch.testing.assert_close(scores.sum(dim=1) / lengths, ours.sequences_scores)
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores)


def test_settings_are_saved_and_read_by_both(tmp_path: Path, speech2text: Pair) -> None:
    settings = type(speech2text.settings)(
        min_p=0.1, typical_p=0.5, sequence_bias={(5, 6): 2.0},
        exponential_decay_length_penalty=(3, 1.4), eos_token_id=[2, 7],
    )  # fmt: skip
    settings.save_pretrained(tmp_path)
    here = type(settings).from_pretrained(tmp_path)
    there = transformers.GenerationConfig.from_pretrained(tmp_path)
    for name in ("min_p", "typical_p"):
        assert getattr(here, name) == getattr(there, name) == getattr(settings, name)
    assert there.sequence_bias == [[[5, 6], 2.0]]
    features = spoken(2)
    same(
        speech2text.say(features, generation_config=here, max_new_tokens=9),
        speech2text.said(features, generation_config=there, max_new_tokens=9),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beam_groups": 2, "num_beams": 4}, "transformers 5 has no longer"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "transformers 5 has no longer"),
        ({"guidance_scale": 1.5}, "made for models of text"),
        ({"custom_generate": "a/b"}, "code of others is not run"),
    ],
)
def test_what_is_not_offered_says_why(
    speech2text: Pair, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        speech2text.say(spoken(1), **arguments)


def test_penalties_on_written_input_are_warned_of(speech2text: Pair) -> None:
    plain = speech2text.say(spoken(1))
    for name, value in (("encoder_repetition_penalty", 1.4), ("encoder_no_repeat_ngram_size", 2)):
        with pytest.warns(UserWarning, match=f"{name} has no effect"):
            same(speech2text.say(spoken(1), **{name: value}), plain)


def test_streamers_of_transformers_get_the_text(
    speech2text: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    class Words:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(f"<{token}>\n" for token in ids)

    words: Any = Words()
    queued = transformers.TextIteratorStreamer(words, skip_prompt=True)
    said = speech2text.say(spoken(1), streamer=queued, max_new_tokens=6)[0].tolist()
    assert "".join(queued) == words.decode(said[1:])
    speech2text.say(spoken(1), streamer=transformers.TextStreamer(words), max_new_tokens=6)
    assert capsys.readouterr().out.strip() == words.decode(said).strip()
    for refused in ({"num_beams": 2}, {"features": spoken(2)}):
        given = {"features": spoken(1), "streamer": queued, **refused}
        with pytest.raises(ValueError, match="a streamer takes one recording and one beam"):
            speech2text.say(**given)


def test_a_cache_changes_nothing_but_must_be_shorter_than_the_prompt(speech2text: Pair) -> None:
    features, prompt = spoken(2), torch.tensor([[2, 5, 6], [2, 7, 8]])
    plain = speech2text.say(features, decoder_input_ids=prompt, max_new_tokens=6)
    for cache in (
        transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache()),
        filled(speech2text, features, prompt[:, :2]),
    ):
        asked = {"past_key_values": cache, "decoder_input_ids": prompt, "max_new_tokens": 6}
        same(speech2text.say(features, **asked), plain)
    cache = filled(speech2text, features, prompt)
    with pytest.raises(ValueError, match=r"past_key_values hold 3 tokens .* pass all tokens so"):
        speech2text.say(features, past_key_values=cache, decoder_input_ids=prompt)


def filled(both: Pair, features: Tensor, prompt: Tensor) -> Any:
    with torch.no_grad():
        output = both.ours(features, decoder_input_ids=prompt, use_cache=True)
    return output.past_key_values


def test_the_checkpoints_settings_can_be_left_out(speech2text: Pair) -> None:
    config = type(speech2text.settings)(max_new_tokens=5)
    with speech2text.having(suppress_tokens=[int(speech2text.say(spoken(1))[0, 1])]):
        found = speech2text.say(spoken(1), generation_config=config)
        plain = speech2text.say(spoken(1), generation_config=config, use_model_defaults=False)
    assert not torch.equal(found, plain)
    same(plain, speech2text.say(spoken(1), max_new_tokens=5))
