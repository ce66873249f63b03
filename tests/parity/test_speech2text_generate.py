"""Speech2Text: `generate` says what `transformers` says, token for token."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from tests.support import references
from tests.support.checkpoints import tiny_speech2text
from tests.support.references import same

# transformers warns wherever nobody says how long a text may be, which is one of the cases.
pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")

MELS, VOCAB = 16, 90
START = END = 2
LENGTHS = [100, 63, 7]


class Pair(references.Pair):
    def same(self, lengths: list[int], **arguments: Any) -> Any:
        """Check that both say the same of a batch, and return it."""
        features, mask = batch(lengths)
        ours, theirs = self.both(features, attention_mask=mask, **arguments)
        same(ours, theirs)
        return ours


def pair(folder: Path, *, seed: int = 0, **config: Any) -> Pair:
    # With one matrix for both, a random network says one token over and over.
    settings = {"max_source_positions": 6000, "tie_word_embeddings": False, **config}
    sizes: dict[str, Any] = {"d_model": 32, "vocab_size": VOCAB, "input_feat_per_channel": MELS}
    tiny_speech2text(folder, seed=seed, spread=0.25, **sizes, **settings)
    ours: Any = Speech2TextForConditionalGeneration.from_pretrained(folder).eval()
    theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(folder)
    return Pair(ours, theirs.eval())


def batch(lengths: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), max(lengths), MELS, generator=generator)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return features * mask[:, :, None], mask


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("pair"), seed=1)


SEARCHES: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 40},
    {"max_length": 11},
    {"suppress_tokens": [END, 7, 8], "begin_suppress_tokens": [5, 6]},
    {"forced_bos_token_id": 7, "begin_suppress_tokens": [7, END]},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "max_new_tokens": 30},
    {"num_beams": 5, "max_new_tokens": 30},
    {"num_beams": 5, "forced_bos_token_id": 7, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": 0.3, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "early_stopping": "never", "max_new_tokens": 9},
    {"return_dict_in_generate": True},
    {"decoder_input_ids": torch.tensor([[5, 1, 6], [7, 8, 1], [9, 9, 9]])},
    {"decoder_input_ids": torch.tensor([[START, 5], [START, 8], [START, 9]]), "num_beams": 2},
    {"decoder_start_token_id": [5, 6, 7]},
    {"eos_token_id": 42, "pad_token_id": 0, "max_new_tokens": 40},
    {"eos_token_id": 42, "num_beams": 5, "max_new_tokens": 40},
    {"eos_token_id": None, "max_new_tokens": 15},
    {"eos_token_id": -1, "max_new_tokens": 15, "num_beams": 2},
]


@pytest.mark.parametrize("arguments", SEARCHES, ids=lambda given: ",".join(given) or "default")
def test_the_same_tokens(both: Pair, arguments: dict[str, Any]) -> None:
    both.same(LENGTHS, **arguments)


def test_texts_differ_and_end_at_different_places_but_not_at_their_start(both: Pair) -> None:
    found = both.same(LENGTHS, eos_token_id=42, pad_token_id=0, max_new_tokens=40)
    assert len({tuple(row.tolist()) for row in found}) == 3
    assert len(set((found != 0).sum(dim=1).tolist())) > 1
    for num_beams in (1, 5):
        found = both.same([80, 80], num_beams=num_beams)
        assert (found[:, 0] == START).all()
        assert found.shape[1] > 4


def test_the_last_token_of_a_text_needs_no_position(tmp_path: Path) -> None:
    small = pair(tmp_path, seed=1, max_target_positions=20)
    for arguments in ({}, {"max_length": 21, "eos_token_id": None}, {"num_beams": 3}):
        assert small.same(LENGTHS, **arguments).shape[1] <= 21
    with pytest.raises(ValueError, match="expected at most 21, max_target_positions"):
        small.ours.generate(batch(LENGTHS)[0], max_new_tokens=21)


def test_very_short_and_very_long_inputs(both: Pair) -> None:
    both.same([1], num_beams=2)
    both.same([6000, 4801], max_new_tokens=6, num_beams=3)


def test_without_a_mask_all_is_heard(both: Pair) -> None:
    features, _ = batch(LENGTHS)
    same(*both.both(features))
    by_name = both.ours.generate(input_features=features)
    same(by_name, both.theirs.generate(input_features=features))


def test_what_the_encoder_gave_may_be_passed(both: Pair) -> None:
    features, mask = batch(LENGTHS)
    with torch.no_grad():
        encoded = both.theirs.model.encoder(features, attention_mask=mask)
    cases: list[dict[str, Any]] = [{"attention_mask": mask}, {}]
    for arguments in cases:
        ours = both.ours.generate(encoder_outputs=encoded, **arguments)
        same(ours, both.theirs.generate(encoder_outputs=encoded, **arguments))


def test_the_callers_functions_are_asked(both: Pair) -> None:
    def even(row: int, tokens: Tensor) -> list[int]:
        return [END, *range(4 + 2 * (row % 2), VOCAB, 4)]

    def louder(tokens: Tensor, scores: Tensor) -> Tensor:
        scores[:, 20 + tokens.shape[1]] += 3.0
        return scores

    def enough(tokens: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(tokens),), tokens.shape[1] > 6, dtype=torch.bool)

    processors = transformers.LogitsProcessorList([louder])
    criteria = transformers.StoppingCriteriaList([enough])
    for arguments in (
        {"prefix_allowed_tokens_fn": even},
        {"logits_processor": processors, "num_beams": 2},
        {"stopping_criteria": criteria},
    ):
        both.same(LENGTHS, **arguments)
