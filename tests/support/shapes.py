"""The run-time check of annotations that jaxtyping's import hook puts on every function in tests.

A function or dataclass initialiser of the package goes in; the same comes out, checking shapes,
dtypes and types at each call. Knows nothing of what it does, and production never sees it.
"""

import typing
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype

F = TypeVar("F", bound=Callable[..., Any])

# An int will do wherever a float is asked for, as mypy has it (PEP 484, "the numeric tower").
_CONF = BeartypeConf(is_pep484_tower=True)


def check(function: F) -> F:
    """Make `function` check its arguments and result against its annotations.

    Protocols in the annotations are made checkable on the way, so that the package need not
    decorate them with `runtime_checkable` for the tests' sake.
    """
    annotations = getattr(function, "__annotations__", {})
    for name, annotation in annotations.items():
        _make_protocols_checkable(annotation)
        if annotation is typing.Self:  # the class is not known yet where the method is decorated
            annotations[name] = Any
    return beartype(conf=_CONF)(function)


def _make_protocols_checkable(annotation: object) -> None:
    # `typing.is_protocol` is public from Python 3.13.
    if isinstance(annotation, type) and getattr(annotation, "_is_protocol", False):
        typing.runtime_checkable(annotation)
    for argument in typing.get_args(annotation):
        _make_protocols_checkable(argument)
