"""Names from the command line become cases, and wrong ones one clear message."""

import pytest

from corpus_asr.benchmark import orders
from corpus_asr.benchmark.orders import (
    ENGINES,
    PEERS,
    Case,
    missing_modules,
    our_cases,
    peer_cases,
)
from corpus_asr.errors import ConfigError
from corpus_asr.families.registry import resolve


def labels(cases: list[Case]) -> list[str]:
    return [case.label for case in cases]


def test_without_names_every_peer_is_measured_in_its_usual_types():
    assert labels(peer_cases(None, cuda=False, shapes=False)) == [
        "faster-whisper-batched int8",
        "faster-whisper int8",
        "transformers float32",
        "transformers bfloat16",
        "openai-whisper float32",
    ]
    assert labels(peer_cases(None, cuda=True, shapes=True)) == [
        "faster-whisper float16",
        "transformers float16",
        "transformers bfloat16",
        "openai-whisper float16",
    ]


def test_a_type_may_be_named_and_nothing_is_measured_twice():
    wanted = ["transformers:bfloat16", "transformers", "faster-whisper:float32"]
    assert labels(peer_cases(wanted, cuda=False, shapes=False)) == [
        "transformers bfloat16",
        "transformers float32",
        "faster-whisper float32",
    ]
    assert peer_cases([], cuda=False, shapes=False) == []


def test_our_types_are_passed_on_as_they_are():
    assert labels(our_cases([], cuda=False)) == ["corpus-asr auto"]
    assert labels(our_cases(["int8", "float32", "int8"], cuda=False)) == [
        "corpus-asr int8",
        "corpus-asr float32",
    ]


def test_an_unknown_peer_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"found 'faster-wisper'.*did you mean faster-whisper\?"):
        peer_cases(["faster-wisper"], cuda=False, shapes=False)


def test_a_peer_that_differs_only_in_cutting_audio_is_refused_without_audio():
    with pytest.raises(ConfigError, match=r"faster-whisper-batched.*no audio"):
        peer_cases(["faster-whisper-batched"], cuda=False, shapes=True)


def test_a_missing_library_is_found_without_loading_any(monkeypatch):
    installed = {"ctranslate2", "transformers"}
    monkeypatch.setattr(orders, "find_spec", lambda name: name if name in installed else None)
    assert missing_modules(Case(engine="faster-whisper", dtype="int8")) == ["faster_whisper"]
    assert missing_modules(Case(engine="transformers", dtype="float32")) == []


def test_every_runner_named_exists():
    for entry in ENGINES.values():
        assert callable(resolve(entry.transcribing))
        assert entry.decoding is None or callable(resolve(entry.decoding))
    assert "corpus-asr" not in PEERS
