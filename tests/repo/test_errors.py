"""Exceptions cross process borders, so each must come back from a pickle as it went in."""

import pickle

from corpus_asr import errors


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
