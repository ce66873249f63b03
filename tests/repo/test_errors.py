"""Exceptions cross process borders, so each must come back from a pickle as it went in."""

import pickle

import pytest

from corpus_asr import errors


def exception_classes(base: type = errors.CorpusAsrError) -> list[type]:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    return [value for value in classes if issubclass(value, base)]


@pytest.mark.parametrize("kind", exception_classes())
def test_every_exception_survives_a_pickle_with_its_message(kind):
    back = pickle.loads(pickle.dumps(kind("decoding a.mp3: no audio stream")))
    assert type(back) is kind
    assert str(back) == "decoding a.mp3: no audio stream"


@pytest.mark.parametrize("kind", exception_classes(errors.ItemError))
def test_attributes_of_item_errors_survive_a_pickle(kind):
    error = kind("message", uri="s3://pod/a.mp3", kind="timeout", retryable=not kind().retryable)
    back = pickle.loads(pickle.dumps(error))
    assert vars(back) == vars(error)
    assert back.uri == "s3://pod/a.mp3"
    assert back.kind == "timeout"


@pytest.mark.parametrize("kind", exception_classes())
def test_every_exception_can_be_rebuilt_from_its_args_alone(kind):
    # What Ray does with a class it cannot pickle otherwise.
    error = kind("message")
    assert str(type(error)(*error.args)) == "message"


def test_only_fetch_errors_may_succeed_when_tried_again():
    retryable = {kind for kind in exception_classes(errors.ItemError) if kind().retryable}
    assert retryable == {errors.FetchError}
