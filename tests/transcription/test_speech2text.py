"""Speech2Text's windows around a scripted network: what is asked for, and what becomes of it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.jobs import Gather
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.errors import ConfigError
from corpus_asr.families.speech2text.features import OFFSET, Speech2TextPartFeatures
from corpus_asr.segments import Segment
from corpus_asr.transcription.chunks import WINDOWS_AT_ONCE, window_ranges
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.speech2text import (
    DEFAULT_WINDOW_S,
    Speech2TextPromptFormat,
    Speech2TextTranscriber,
)
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.transcription.words import split_words
from corpus_asr.units import WINDOW_FRAMES
from tests.support.prompt_formats import part as noise
from tests.support.prompt_formats import speech2text_prompt_format
from tests.support.slots import Listening, ScriptedModel, outcomes
from tests.support.tokenizers import TARGETS, made_words, tiny_speech2text_tokenizer

CERTAIN: dict[str, Any] = {
    "temperature": (0.0,),
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
}


class Network(ScriptedModel):
    """Hears windows of any length, and remembers which."""

    frame_step = 1

    def __init__(self, scripts: Sequence[Sequence[int]]) -> None:
        super().__init__(scripts)
        self.transcribed: list[int] = []

    def encode(self, features: Any, *, num_frames: Sequence[int] | None = None) -> Any:
        assert features.shape[1:] == (2, 3000)
        assert num_frames is not None
        for window, frames in zip(features, num_frames, strict=True):
            assert not window[:, frames:].any()
        self.transcribed.extend(num_frames)
        return super().encode(features, num_frames=num_frames)

    def align(self, state: Any, slots: Any, tokens: Any, lengths: Any, heads: Any) -> Any:
        """Token number n listens at positions 10n to 10n + 9."""
        _, hidden = super().align(state, slots, tokens, lengths, heads)
        weights = torch.eye(tokens.shape[1]).repeat_interleave(10, dim=1)
        weights = torch.nn.functional.pad(weights, (0, 100))
        return weights.expand(len(slots), len(heads), -1, -1).clone(), hidden


def part(
    seconds: float,
    spans: Sequence[tuple[float, float]] | None = None,
    *,
    start_s: float = 0.0,
    scripts: Sequence[int] | None = None,
) -> PartRequest:
    """A part whose features name a script: that of its span, in turn."""
    features = np.zeros((round(seconds * 100) - 2, 2), dtype=np.float32)
    for number, (begin, end) in enumerate(spans or [(0.0, seconds)]):
        script = number if scripts is None else scripts[number]
        features[round(begin * 100) : round(end * 100)] = script
    return noise(
        seconds,
        spans and [(start_s + begin, start_s + end) for begin, end in spans],
        features=(features - OFFSET).astype(np.float16),
        pad_value=-28.0,
        start_s=start_s,
    )


def transcriber(**changes: Any) -> Speech2TextTranscriber:
    # Not normalized, so that a window's first value still names its script.
    features = Speech2TextPartFeatures(num_mel_bins=2, means=False, variances=False)
    return Speech2TextTranscriber(speech2text_prompt_format(**changes), features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": ("de", "en")}, r"found a choice of 2, but speech_to_text does not choose"),
        ({"window_s": 31.0}, r"window_s: found 31, but windows of speech_to_text are at most 30 s"),
    ],
)
def test_languages_and_windows_that_it_has_not_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        transcriber().check(DecodingSettings(**settings))


def transcribe(
    model: Network, own: PartRequest, *, slots: int = 2, fields: dict[str, Any] | None = None,
    **settings: Any,
) -> list[Segment]:  # fmt: skip
    decoding = DecodingSettings(**CERTAIN | settings)
    listener = Listening()
    with Engine(model, transcriber(**fields or {}), decoding=decoding, slots=slots) as engine:
        future = engine.submit(replace(own, listener=listener))
        segments = future.result(timeout=30).segments
    listener.check(own, segments)
    return list(segments)


SPANS = [(1.0, 8.0), (12.0, 20.0), (30.0, 34.5)]


def test_each_window_of_speech_becomes_one_segment_with_its_times() -> None:
    model = Network([[3, 4], [5], [6, 30, 7]])
    found = transcribe(model, part(40.0, SPANS, start_s=100.0), language="en")
    assert [(one.text, one.start_s, one.end_s) for one in found] == [
        (" w3 w4", 101.0, 108.0),
        (" w5", 112.0, 120.0),
        (" w6x w7", 130.0, 134.5),
    ]
    assert sorted(model.transcribed, reverse=True) == model.transcribed  # the longest first
    assert model.transcribed == [798, 698, 448]
    failing = Network([[3, 4], [5], [6, 30, 7]])
    transcribe(failing, part(40.0, SPANS), language="en", logprob_threshold=0.5)
    assert {*failing.transcribed} == {798, 698, 448}
    for one in found:
        assert (one.language, one.language_probability, one.task) == ("en", None, "transcribe")
        assert one.no_speech_prob is None
        assert one.words is None
        assert one.speech_fraction == 1.0
        assert one.avg_logprob == pytest.approx(0.0, abs=0.01)
        assert one.confidence > 0.8
        assert one.temperature == 0.0


def test_of_many_windows_some_wait_without_their_features_and_none_is_lost() -> None:
    count = WINDOWS_AT_ONCE + 9
    spans = [(at * 5.0, at * 5.0 + 1 + at % 3) for at in range(count)]
    scripts = [at % 20 for at in range(count)]
    own = part(count * 5.0, spans, scripts=scripts)
    task = transcriber().transcribe(own, DecodingSettings(**CERTAIN))
    gathered = next(task)
    assert isinstance(gathered, Gather)
    waiting = list(gathered.tasks)
    assert len(waiting) == WINDOWS_AT_ONCE
    results = outcomes(SlotScheduler(Network([[3 + script] for script in range(20)]), 3), waiting)
    with pytest.raises(StopIteration) as stop:
        task.send(results)
    assert [(one.start_s, one.text) for one in stop.value.value.segments] == [
        (start_s, f" w{3 + script}") for (start_s, _), script in zip(spans, scripts, strict=True)
    ]


@pytest.mark.parametrize("slots", [1, 3])
def test_words_lie_within_their_window_and_join_to_its_text(slots: int) -> None:
    model = Network([[3, 4, 30], [30, 5], [6]])
    own = part(40.0, SPANS, start_s=100.0)
    found = transcribe(model, own, slots=slots, word_timestamps=True)
    assert [[word.word for word in one.words or ()] for one in found] == [
        [" w3", " w4x"], [" x", " w5"], [" w6"],
    ]  # fmt: skip
    for one in found:
        assert "".join(word.word for word in one.words or ()) == one.text
        for word in one.words or ():
            assert one.start_s <= word.start_s <= word.end_s <= one.end_s
            assert 0 <= word.probability <= 1
    assert found[0].words is not None  # the second one's token is foretold at 10 times 40 ms
    assert found[0].words[1].start_s == pytest.approx(101.4, abs=0.081)
    assert all(heads == ((0, 0), (0, 1)) for _, heads in model.aligned)


def test_a_target_language_is_asked_for_and_makes_it_a_translation() -> None:
    class Asked(Network):
        def prefill(self, state: Any, slots: Any, tokens: Any, lengths: Any) -> Any:
            assert tokens.tolist() == [[0, 41]] * len(tokens)
            return super().prefill(state, slots, tokens, lengths)

    targets = {"targets": {"de": 40, "fr": 41}}
    found = transcribe(
        Asked([[3], [4], [5]]), part(40.0, SPANS), fields=targets, target_language="fr",
        language="en",
    )  # fmt: skip
    assert [(one.text, one.task, one.language) for one in found] == [
        (" w3", "translate", "en"), (" w4", "translate", "en"), (" w5", "translate", "en"),
    ]  # fmt: skip
    forced = transcribe(Asked([[3]]), part(5.0), fields={**targets, "forced": 41}, task="translate")
    assert [one.task for one in forced] == ["translate"]


ranges_of = partial(window_ranges, default_s=DEFAULT_WINDOW_S, longest_frames=WINDOW_FRAMES)


def test_windows_follow_speech_and_clips() -> None:
    own = part(40.0, SPANS)
    assert ranges_of(own, DecodingSettings()) == [(100, 800), (1200, 2000), (3000, 3450)]
    clips = DecodingSettings(clip_timestamps=(2, 14, 31, 32))
    assert ranges_of(own, clips) == [(200, 800), (1200, 1400), (3100, 3200)]
    # Short pauses are bridged and long ones are not; of those within, the longest is cut at.
    own = part(60.0, [(0.0, 4.0), (4.5, 9.0), (9.9, 14.0), (14.2, 17.0), (18.5, 20.0)])
    assert ranges_of(own, DecodingSettings()) == [(0, 900), (990, 1700), (1850, 2000)]


@pytest.mark.parametrize(
    ("spans", "window_s", "longest", "total"),
    [(None, None, 1500, 4000), (None, 30, 3000, 4000), (None, 1, 100, 4000),
     (SPANS, 5, 500, 700 + 800 + 450)],
)  # fmt: skip
def test_windows_cover_everything_or_all_speech_and_are_no_longer_than_asked_for(
    spans: Any, window_s: float | None, longest: int, total: int
) -> None:
    ranges = ranges_of(part(40.0, spans), DecodingSettings(window_s=window_s))
    assert all(0 < end - start <= longest for start, end in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert sum(end - start for start, end in ranges) == total


def checkpoint(folder: Path, *, languages: tuple[str, ...] = (), **config: Any) -> Path:
    """Write all of a checkpoint but its weights and features."""
    more: dict[str, Any] = {"lang_codes": "mustc"} if languages else {}
    tiny_speech2text_tokenizer(folder, languages=languages, **more)
    given = {"model_type": "speech_to_text", "vocab_size": 200} | config
    (folder / "config.json").write_text(json.dumps(given))
    return folder


def test_text_is_that_of_transformers_after_a_blank_and_its_parts_add_up(tmp_path: Path) -> None:
    own = Speech2TextPromptFormat.from_folder(checkpoint(tmp_path, languages=TARGETS))
    theirs = transformers.Speech2TextTokenizer.from_pretrained(tmp_path)
    ids = theirs(" ".join(made_words(8, seed=3)), add_special_tokens=False).input_ids
    said = [own.targets["fr"], *ids[:5], 3, *ids[5:], own.end, 1]  # unknown, end, padding
    text = own.text(said)
    assert text == " " + theirs.decode(said, skip_special_tokens=True)
    for cut in range(len(said)):
        assert own.text(said[:cut]) + own.text(said[cut:]) == text
    words = split_words(ids, own.text, None)
    assert [word for word, _ in words] == [f" {word}" for word in made_words(8, seed=3)]
    assert [token for _, tokens in words for token in tokens] == ids
    assert own.text([]) == own.text([own.end]) == ""


def test_the_target_language_is_the_last_of_the_prompt(tmp_path: Path) -> None:
    own = Speech2TextPromptFormat.from_folder(checkpoint(tmp_path, languages=TARGETS))
    theirs = transformers.Speech2TextTokenizer.from_pretrained(tmp_path)
    assert own.targets == theirs.lang_code_to_id
    assert own.prompt("fr") == (2, theirs.lang_code_to_id["fr"])
    assert own.alignment("fr").prompt == own.prompt("fr")
    assert own.task(DecodingSettings(target_language="fr")) == "translate"
    one = Speech2TextPromptFormat.from_folder(checkpoint(tmp_path / "one"))
    assert (one.prompt(None), one.targets) == ((2,), {})
    assert one.task(DecodingSettings()) == "transcribe"


def test_limits_and_heads_are_the_checkpoint_s(tmp_path: Path) -> None:
    own = Speech2TextPromptFormat.from_folder(
        checkpoint(
            tmp_path,
            decoder_layers=3,
            decoder_attention_heads=2,
            max_target_positions=77,
            max_source_positions=900,
            forced_bos_token_id=9,
            suppress_tokens=[5],
        )
    )
    assert own.alignment_heads == ((1, 0), (1, 1), (2, 0), (2, 1))
    assert (own.max_target_positions, own.window_frames) == (77, 900)
    assert own.prompt(None) == (2, 9)
    assert (own.rules.end, own.rules.suppress) == (2, (5,))
