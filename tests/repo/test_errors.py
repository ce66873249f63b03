"""Errors cross process borders, and the table of failure kinds has every kind of the code."""

import ast
import pickle

import pytest

from corpus_asr import errors
from corpus_asr.failure_kinds import FAILURE_KINDS, failure_kind
from tests.repo.sources import PACKAGE, parsed, python_files, relative


def test_a_kind_of_another_version_is_advised_by_whether_a_retry_may_help() -> None:
    assert failure_kind("timeout") is FAILURE_KINDS["timeout"]
    assert failure_kind("of_tomorrow").title == "Of tomorrow"
    assert "--retry-failed" in failure_kind("of_tomorrow", retryable=True).advice
    assert "will not help" in failure_kind("of_tomorrow").advice


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


# A message is one sentence on at most two lines, and quotes no other message of ours.

# Literal text of a message, without its values: two lines of 80 columns.
MAX_LITERAL_CHARACTERS = 160
# They name the place of an error that may concern one of several models or workers.
NAME_THE_PLACE = {"runtime/checkpoints.py", "runtime/workers.py", "transcription/routing.py"}


def own_classes() -> set[str]:
    """Return the names of the package's exceptions, those defined outside `errors` included."""
    names = {kind.__name__ for kind in exception_classes()}
    for path in python_files("corpus_asr"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and {*map(ast.unparse, node.bases)} & names:
                names.add(node.name)
    return names | {"StoreError"}


def literal_characters(message: ast.expr) -> int:
    if isinstance(message, ast.IfExp):
        return max(literal_characters(message.body), literal_characters(message.orelse))
    if isinstance(message, ast.BinOp):
        return literal_characters(message.left) + literal_characters(message.right)
    pieces = message.values if isinstance(message, ast.JoinedStr) else [message]
    texts = (piece.value for piece in pieces if isinstance(piece, ast.Constant))
    return sum(len(text) for text in texts if isinstance(text, str))


def test_a_message_fits_on_two_lines() -> None:
    names = own_classes() | {"ValueError", "TypeError", "refuse_if"}
    long = [
        f"{relative(path)}:{node.lineno}: {literal_characters(argument)} characters"
        for path in python_files("corpus_asr")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
        for argument in node.args
        if literal_characters(argument) > MAX_LITERAL_CHARACTERS
    ]
    assert long == []


def test_no_message_quotes_another() -> None:
    names = own_classes()
    quoting = [
        f"{relative(path)}:{node.lineno}"
        for path in python_files("corpus_asr")
        if path.relative_to(PACKAGE).as_posix() not in NAME_THE_PLACE
        for handler in ast.walk(parsed(path))
        if isinstance(handler, ast.ExceptHandler) and handler.type is not None
        if {*map(ast.unparse, getattr(handler.type, "elts", [handler.type]))} & names
        for node in ast.walk(handler)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
        for part in ast.walk(node)
        if isinstance(part, ast.FormattedValue)
        if ast.unparse(part.value) in (handler.name, f"str({handler.name})")
    ]
    assert quoting == []


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
