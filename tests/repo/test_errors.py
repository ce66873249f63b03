"""Errors cross process borders, and the table of failure kinds has every kind of the code."""

import ast
import pickle

import pytest

from corpus_asr import errors
from corpus_asr.failure_kinds import FAILURE_KINDS, failure_kind
from tests.repo.sources import REPOSITORY, parsed, python_files

GUIDE = REPOSITORY / "docs" / "reference" / "messages.md"
# What the guide repeats of the table, by kind.
QUOTED = {
    "access_denied": (
        "check the credentials and that they may read and list here",
        "that they may read, list, write and delete here",
    ),
    "not_audio": ("these are no audio",),
    "not_found": ("choose another output",),
}
NAMED = ("decoder_killed", "not_audio", "unsupported_codec")


def test_titles_are_headings_and_advice_ends_a_sentence() -> None:
    for name, kind in FAILURE_KINDS.items():
        assert kind.name == name
        assert kind.title[0].isupper(), name
        for text in filter(None, (kind.advice, kind.read_advice, kind.write_advice)):
            assert text[0].islower(), name
            assert not text.endswith("."), name


def test_a_kind_of_another_version_is_advised_by_whether_a_retry_may_help() -> None:
    assert failure_kind("timeout") is FAILURE_KINDS["timeout"]
    assert failure_kind("of_tomorrow").title == "Of tomorrow"
    assert "--retry-failed" in failure_kind("of_tomorrow", retryable=True).advice
    assert "will not help" in failure_kind("of_tomorrow").advice


def test_the_guide_quotes_the_table() -> None:
    guide = GUIDE.read_text()
    for name, quotes in QUOTED.items():
        kind = FAILURE_KINDS[name]
        for quote in quotes:
            assert quote in guide, name
            assert quote in " ".join((kind.advice, kind.read_advice, kind.write_advice)), name
    for name in NAMED:
        assert name in guide
        assert name in FAILURE_KINDS


# What makes an item's error; `StoreError` becomes a `FetchError` of the same kind.
MAKERS = {"ItemError", "AlignmentError", "DecodeError", "FetchError", "StoreError"}


def kinds_in_code() -> set[str]:
    """Return what is passed as kind wherever an item's error is made, and the classes' own."""
    nodes = [node for path in python_files("corpus_asr") for node in ast.walk(parsed(path))]
    constants = {
        node.targets[0].id: str(node.value.value)
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        if isinstance(node.targets[0], ast.Name)
    }
    used = {error.default_kind for error in exception_classes(errors.ItemError)}  # type: ignore[attr-defined]
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) in MAKERS:
            kinds = [word.value for word in node.keywords if word.arg == "kind"]
            kinds += node.args[:1] if ast.unparse(node.func) == "StoreError" else []
            parts = [part for kind in kinds for part in ast.walk(kind)]
            used |= {str(part.value) for part in parts if isinstance(part, ast.Constant)}
            used |= {
                constants.get(part.id, "")
                for part in parts
                if isinstance(part, ast.Name) and part.id.isupper()
            }
    return used - {""}


@pytest.mark.long
def test_every_kind_used_in_the_code_is_known_and_no_other() -> None:
    used = kinds_in_code()
    assert {"not_audio", "damaged", "not_found", "decoder_timeout"} <= used
    assert used | {"internal", "poison"} == set(FAILURE_KINDS)


# Exceptions come back from a pickle as they went in.


def exception_classes(base: type = errors.CorpusAsrError) -> list[type]:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    return [value for value in classes if issubclass(value, base)]


def test_every_exception_survives_a_pickle_with_its_message():
    for kind in exception_classes():
        error = kind("decoding a.mp3: no audio stream")
        # The second is what Ray does with a class that it cannot pickle otherwise.
        for back in (pickle.loads(pickle.dumps(error)), kind(*error.args)):
            assert type(back) is kind
            assert str(back) == "decoding a.mp3: no audio stream", kind


def test_attributes_of_item_errors_survive_a_pickle():
    for kind in exception_classes(errors.ItemError):
        retryable = not kind().retryable
        error = kind("message", uri="s3://pod/a.mp3", kind="timeout", retryable=retryable)
        back = pickle.loads(pickle.dumps(error))
        assert vars(back) == vars(error)
        assert (back.uri, back.kind) == ("s3://pod/a.mp3", "timeout")


def test_only_fetch_errors_may_succeed_when_tried_again():
    retryable = {kind for kind in exception_classes(errors.ItemError) if kind().retryable}
    assert retryable == {errors.FetchError}
