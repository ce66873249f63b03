"""Methods of the reference's classes, held against the installed transformers.

Whatever both classes of a name have is compared. What theirs take and ours do not is listed.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import transformers

from corpus_asr.models import speech2text, whisper

Parameters = Mapping[str, inspect.Parameter]
BY_POSITION = inspect.Parameter.POSITIONAL_OR_KEYWORD
_SPREAD = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
# Version 4 called vocab and merges so, as here.
_RENAMED = ("vocab_file", "merges_file")
_TOKENIZER = {
    "__init__": {"vocab", "merges"},
    "__call__": {"tokenizer_kwargs"},
    "clean_up_tokenization": {"text"},  # ours is the setting, theirs a function
}
# By the end of a class's name and by method: parameters of theirs that have no meaning here.
MISSING: dict[str, dict[str, set[str]]] = {
    "Config": {
        "to_json_string": {"use_diff", "ignore_metadata", "keys_to_pop"},
        "validate": {"user_set_attributes"},
    },
    "Tokenizer": _TOKENIZER,
    "TokenizerFast": _TOKENIZER,
    "": {
        "get_encoder": {"modality"},
        "tie_weights": {"missing_keys", "recompute_mapping"},
    },
}
PAIRS = {
    name: (getattr(package, name), getattr(transformers, name))
    for package in (whisper, speech2text)
    for name in package.__all__
    if name != "pipeline"
}


def parameters(method: Any) -> Parameters:
    """Those of a method without the object itself."""
    found = dict(inspect.signature(method).parameters)
    if inspect.isfunction(method):
        found.pop(next(iter(found)))
    return found


def by_position(found: Parameters, other: Parameters) -> list[str]:
    return [
        name
        for name, one in found.items()
        if name in other and one.kind == other[name].kind == BY_POSITION
    ]


def first_positions(found: Parameters, number: int) -> list[str]:
    """As many names by position, but for those that theirs have under other names."""
    names = [name for name, one in found.items() if one.kind == BY_POSITION]
    return [name for name in names if name not in _RENAMED][:number]


def common(name: str) -> list[str]:
    """Name the public methods that both classes have."""
    ours, theirs = PAIRS[name]
    public = {"__init__", "__call__"} | {one for one in dir(ours) if one[0] != "_"}
    both = sorted(public & {*dir(theirs)})
    return [one for one in both if all(inspect.isroutine(getattr(k, one)) for k in PAIRS[name])]


@pytest.mark.parametrize("name", PAIRS)
def test_parameters_have_their_names_order_and_defaults(name: str) -> None:
    kinds = PAIRS[name]
    allowed = next(gone for end, gone in MISSING.items() if name.endswith(end))
    methods = common(name)
    assert name.startswith("Auto") or len(methods) > 6
    for method in methods:
        ours, theirs = (parameters(getattr(kind, method)) for kind in kinds)
        taken = {one.kind for one in ours.values()}
        for key, one in theirs.items():
            if one.kind in _SPREAD:
                continue
            if key in ours:
                assert ours[key].default == one.default, (method, key)
            elif inspect.Parameter.VAR_KEYWORD not in taken:
                assert key in allowed.get(method, ()), (method, key)
        shared = [name for name in by_position(theirs, ours) if name not in _RENAMED]
        assert first_positions(ours, len(shared)) == shared, method
