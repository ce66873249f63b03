"""Recordings of one window: `generate` says what `transformers` says, token for token."""

from pathlib import Path

import pytest
import torch

from tests.support.references import WINDOW, Pair, pair, same, sound

FEATURES = sound(3, WINDOW, seed=1)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("pair"), seed=1)


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("english"), multilingual=False, seed=3)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"return_timestamps": True},
        {"language": "german"},
        {"language": ["<|en|>", "DE", "castilian"], "task": "translate"},
        {"task": "transcribe", "return_timestamps": True},
        {"max_new_tokens": 5},
        {"max_length": 11},
        {"suppress_tokens": list(range(0, 400, 3)), "begin_suppress_tokens": [1, 4]},
        {"suppress_tokens": None, "begin_suppress_tokens": None},
        {"prompt_ids": torch.tensor([7, 8, 9])},
        {"prompt_ids": torch.tensor([7, 8, 9]), "condition_on_prev_tokens": True},
        {"is_multilingual": True, "language": "fr"},
        {"force_unique_generate_call": True},
        {"force_unique_generate_call": True, "return_timestamps": True, "return_segments": True},
        {"return_segments": True},
        {"return_segments": True, "return_timestamps": True},
        {"return_dict_in_generate": True},
        {"return_dict_in_generate": True, "return_timestamps": True},
        {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 4},
        {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": [5, 6]},
        {"return_segments": True, "return_dict_in_generate": True, "output_logits": True},
        {"output_logits": True, "max_new_tokens": 4},
        {"cache_implementation": "static", "max_new_tokens": 6},
        {"use_cache": False, "max_new_tokens": 6},
        {"decoder_input_ids": torch.tensor([[5, 6], [7, 8], [9, 10]]), "max_new_tokens": 6},
        {"time_precision": 0.04, "time_precision_features": 0.02, "return_segments": True},
    ],
    ids=lambda arguments: ",".join(arguments) or "default",
)
def test_the_same_tokens(both: Pair, arguments: dict[str, object]) -> None:
    same(*both.both(FEATURES, **arguments))


@pytest.mark.parametrize("arguments", [{}, {"return_timestamps": True}])
def test_the_same_tokens_of_an_english_only_checkpoint(
    english: Pair, arguments: dict[str, object]
) -> None:
    same(*english.both(FEATURES, **arguments))


def test_languages_are_detected_row_by_row(both: Pair) -> None:
    features = sound(8, WINDOW + 50, seed=5) * torch.arange(1, 9).reshape(8, 1, 1)
    with torch.no_grad():
        theirs = both.theirs.detect_language(features, num_segment_frames=WINDOW)
    ours = both.detect(features, num_segment_frames=WINDOW)
    assert len(set(theirs.tolist())) > 1
    same(ours, theirs)


def test_no_language_can_be_told_of_nothing_or_by_an_english_only_checkpoint(
    both: Pair, english: Pair
) -> None:
    with pytest.raises(ValueError, match="one of the two"):
        both.detect(None)
    with pytest.raises(ValueError, match="no languages in lang_to_id"):
        english.detect(FEATURES)


def test_encoder_outputs_stand_for_features(both: Pair) -> None:
    with torch.no_grad():
        encoded = both.theirs.get_encoder()(FEATURES)
        theirs = both.theirs.generate(encoder_outputs=encoded, max_new_tokens=6)
    same(both.say(None, encoder_outputs=encoded, max_new_tokens=6), theirs)
    same(both.say(None, encoder_outputs=(encoded[0],), max_new_tokens=6), theirs)


def test_a_row_does_not_depend_on_its_neighbors(both: Pair) -> None:
    arguments = {"return_timestamps": True, "max_new_tokens": 12}
    together = both.say(FEATURES, **arguments)
    for row, tokens in enumerate(together):
        alone = both.say(FEATURES[row : row + 1], **arguments)[0]
        assert tokens[: len(alone)].tolist() == alone.tolist()
        assert set(tokens[len(alone) :].tolist()) <= {both.settings.pad_token_id}


def test_forced_tokens_of_old_files(both: Pair) -> None:
    ids = both.settings
    forced = [[1, ids.lang_to_id["<|fr|>"]], [2, ids.task_to_id["translate"]]]
    wanted = {"return_dict_in_generate": True, "max_new_tokens": 5}
    for language in (ids.lang_to_id["<|fr|>"], None):
        forced[0][1] = language
        with both.having(forced_decoder_ids=forced):
            same(*both.both(FEATURES, **wanted))
            same(*both.both(FEATURES, task="transcribe", **wanted))
    with both.having(forced_decoder_ids=[[1, 5], [3, 6]]):
        for generate in (both.say, both.said):
            with pytest.raises(ValueError, match="forced_decoder_ids"):
                generate(FEATURES)


def test_settings_of_the_call_come_before_the_models(both: Pair) -> None:
    config = type(both.settings)(max_new_tokens=3)
    assert both.say(FEATURES, generation_config=config).shape[1] == 3
    assert both.say(FEATURES, generation_config=config, max_new_tokens=2).shape[1] == 2
    theirs = type(both.theirs.generation_config)(max_new_tokens=3)
    same(
        both.say(FEATURES, generation_config=theirs), both.said(FEATURES, generation_config=theirs)
    )


def test_training_on_is_heard_at_once(tmp_path: Path) -> None:
    both = pair(tmp_path, seed=7)
    before = both.say(FEATURES)
    generator = torch.Generator().manual_seed(0)
    changes = {
        name: torch.randn(p.shape, generator=generator) * 0.1
        for name, p in both.theirs.named_parameters()
    }
    for model in (both.ours, both.theirs):
        for name, parameter in model.named_parameters():
            parameter.data.add_(changes[name])  # not counted by torch, unlike an optimiser's step
    after = both.both(FEATURES)
    same(*after)
    assert after[0].shape != before.shape or not torch.equal(after[0], before)
