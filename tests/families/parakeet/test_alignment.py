"""Words placed by a random CTC checkpoint, against the alignment of a whole part at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.decoding.emissions import WILDCARD, align_tokens
from corpus_asr.decoding.recognizer import RecognizedWord
from corpus_asr.errors import AlignmentError, ItemError
from corpus_asr.families.parakeet import alignment
from corpus_asr.families.parakeet.alignment import Speller, WordAligner, part_logprobs
from corpus_asr.families.parakeet.features import ParakeetPartFeatures
from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip
from tests.support.parakeet import Pair, parakeet_checkpoint

SPEECH = read_clip(Path(__file__).parents[2] / "data" / "clips" / "english.wav")
WORDS = [" staka", " noba,", " 1984", " -", " Volo", "tü", " €5", " kafi."]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return parakeet_checkpoint("CTC", tmp_path_factory.mktemp("ctc"))


@pytest.fixture(scope="module")
def tokenizer(pair: Pair) -> ParakeetTokenizer:
    return ParakeetTokenizer(pair.folder)


@pytest.fixture(scope="module")
def features(pair: Pair) -> ParakeetPartFeatures:
    return ParakeetPartFeatures.from_folder(pair.folder)


def align_words(
    pair: Pair,
    tokenizer: ParakeetTokenizer,
    features: ParakeetPartFeatures,
    part: np.ndarray,
    words: list[str],
    **options: Any,
) -> list[RecognizedWord]:
    aligner = WordAligner(pair.ours, tokenizer, features)
    return aligner.place(aligner.scores(part, **options), words)


def whole_logprobs(pair: Pair, window: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits = pair.theirs(torch.from_numpy(window)[None]).logits[0]
    found: np.ndarray = logits.log_softmax(1).numpy()
    return found


@pytest.mark.parametrize("seconds", [3.0, 5.035])
def test_words_are_where_the_whole_part_has_them(
    pair: Pair, tokenizer: ParakeetTokenizer, features: ParakeetPartFeatures, seconds: float
) -> None:
    part = features(SPEECH[: round(seconds * SAMPLE_RATE_HZ)]).values
    words = align_words(pair, tokenizer, features, part, WORDS)
    logprobs = whole_logprobs(pair, features.window(part, 0, len(part)))
    spelled = Speller(tokenizer).spell(WORDS)
    row = align_tokens(
        logprobs, [token for tokens in spelled for token in tokens], blank=pair.ours.blank
    )
    assert [word.word for word in words] == WORDS
    first = 0
    for word, tokens in zip(words, spelled, strict=True):
        if not tokens:
            continue
        last = first + len(tokens) - 1
        assert word.start_s == pytest.approx(row.frames[first] * 0.08)
        end_s = (row.frames[last] + row.durations[last]) * 0.08
        assert word.end_s == pytest.approx(end_s)
        mean = np.exp(row.logprobs[first : last + 1]).mean()
        assert word.probability == pytest.approx(mean, rel=1e-3)
        first = last + 1
    dash = words[3]
    assert (dash.start_s, dash.end_s, dash.probability) == (words[2].end_s, words[2].end_s, 1.0)


def test_what_the_network_says_is_where_it_says_it(
    pair: Pair, features: ParakeetPartFeatures
) -> None:
    part = features(SPEECH).values
    window = torch.from_numpy(features.window(part, 0, len(part)))[None]
    (said,) = pair.ours.transcribe(window, num_frames=[len(part)]).rows()
    assert len(said.tokens) > 5
    found = align_tokens(
        part_logprobs(pair.ours, features, part), said.tokens, blank=pair.ours.blank
    )
    assert (found.frames, found.durations) == (said.frames, said.durations)
    assert found.logprobs == pytest.approx(said.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("window_s", "expected"),
    [
        # Starts and ends of windows in positions, of 300 in all: each has its quarter at both
        # ends from its neighbors, and the last ends with the part.
        (8.0, [(0, 100), (50, 150), (100, 200), (150, 250), (200, 300)]),
        (16.0, [(0, 200), (100, 300)]),
        (24.0, [(0, 300)]),
    ],
)
def test_inner_positions_of_windows_make_up_a_long_part(
    pair: Pair,
    features: ParakeetPartFeatures,
    window_s: float,
    expected: list[tuple[int, int]],
) -> None:
    part = features(np.resize(SPEECH, 24 * SAMPLE_RATE_HZ)).values
    assert len(part) == 2400
    found = part_logprobs(pair.ours, features, part, window_s=window_s)
    assert found.shape == (300, pair.ours.config.vocab_size)
    done = 0
    for start, end in expected:
        own = whole_logprobs(pair, features.window(part, start * 8, end * 8))
        stop = end if end == 300 else end - min(62, (end - start) // 4)
        np.testing.assert_allclose(found[done:stop], own[done - start : stop - start], atol=2e-3)
        done = stop
    assert done == 300


def test_no_window_has_more_positions_than_the_checkpoint(
    pair: Pair, features: ParakeetPartFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = features(SPEECH[: 4 * SAMPLE_RATE_HZ]).values
    monkeypatch.setattr(pair.ours.config.encoder_config, "max_position_embeddings", 20)
    assert part_logprobs(pair.ours, features, part).shape[0] == 50


def test_words_are_spelled_as_the_vocabulary_can(tokenizer: ParakeetTokenizer) -> None:
    def spelled(*words: str) -> list[list[str]]:
        return [
            ["*" if one == WILDCARD else str(tokenizer.token(one)) for one in tokens]
            for tokens in Speller(tokenizer).spell(words)
        ]

    def plain(text: str) -> list[str]:
        return [str(tokenizer.token(one)) for one in tokenizer.encode(text)]

    assert spelled(" staka", " noba") == [plain("staka"), plain("noba")]
    # Capitals, accents and punctuation that it lacks.
    assert spelled(" STAKA,", ' "nóba"', " —", " volo!") == [
        plain("staka"), plain("noba"), [], plain("volo")
    ]  # fmt: skip
    assert spelled(" sta\u2019ka", " staka-noba") == [plain("staka"), plain("staka noba")]
    # One wildcard for a run, without a token for the blank before it.
    assert spelled(" 1984", " 10%", " staka", " 5-6", " 中文") == [
        ["*"], ["*"], plain("staka"), ["*", "*"], ["*"]
    ]  # fmt: skip
    # Words of one run of characters, where tokens without a blank are known.
    assert [*map("".join, spelled("sta", "ka", " €5", "f", "volo"))] == [
        "▁sta", "ka", "*", "f", "▁volo"
    ]  # fmt: skip
    assert spelled(" - ", "noba") == [[], plain("noba")]
    # Control tokens in a text are no tokens of it.
    blank = tokenizer.vocabulary["<pad>"]
    assert all(blank not in tokens for tokens in Speller(tokenizer).spell([" <pad>", " noba"]))
    assert spelled() == []
    assert spelled(" ...", "") == [[], []]


def test_bad_input_is_refused(
    pair: Pair,
    tokenizer: ParakeetTokenizer,
    features: ParakeetPartFeatures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = features(SPEECH[:SAMPLE_RATE_HZ]).values
    with pytest.raises(AlignmentError, match=r"found 13 positions of audio, expected at least"):
        align_words(pair, tokenizer, features, part, WORDS * 9)
    (dash,) = align_words(pair, tokenizer, features, part, [" -"])
    assert (dash.start_s, dash.end_s) == (0.0, 0.0)
    with pytest.raises(AlignmentError, match="found 0 positions"):
        align_words(pair, tokenizer, features, part[:0], WORDS)

    def no_numbers(*_: Any, **__: Any) -> np.ndarray:
        return np.full((90, pair.ours.config.vocab_size), np.nan, dtype=np.float32)

    monkeypatch.setattr(alignment, "part_logprobs", no_numbers)
    with pytest.raises(ItemError, match="not numbers"):
        align_words(pair, tokenizer, features, part, WORDS)
