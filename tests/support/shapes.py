"""The run-time check of shapes that is put on functions of the package in tests.

A function or dataclass initialiser that names axes goes in; the same comes out, checking shapes,
dtypes and types at each call. Knows nothing of what it does, and production never sees it.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import jaxtyping
from beartype import BeartypeConf, beartype

from corpus_asr import array_types

F = TypeVar("F", bound=Callable[..., Any])

# An int will do wherever a float is asked for, as mypy has it (PEP 484, "the numeric tower").
_CONF = BeartypeConf(is_pep484_tower=True)

# Of a function's calls in each test, so many are checked at first, and one in so many after them: a
# shape goes wrong at the first call of its kind, and a search of one window makes thousands.
_FIRST_CALLS = 4
_ONE_IN = 256

_jaxtyped: Any = jaxtyping.jaxtyped
_test = 0


def check_shapes(package: str) -> None:
    """Check the annotations of functions that name axes, of all that is imported from now on.

    jaxtyping compares the sizes of a call's axes at the cost of some 7 microseconds: a function is
    checked at its first calls in each test and now and then after these. Types alone are mypy's.
    """
    for name in array_types.__all__:
        setattr(array_types, name, getattr(jaxtyping, name))
    jaxtyping.jaxtyped = _checked  # type: ignore[assignment]
    # The hook compiles modules anew in each process: no others than those with such functions.
    root = Path(array_types.__file__).parent
    modules = [
        ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path in root.rglob("*.py")
        if "array_types" in path.read_text(encoding="utf-8")
    ]
    jaxtyping.install_import_hook(modules, f"{__name__}.{check.__name__}")


def begin_test() -> None:
    """Check the first calls of each function again, as another test makes others."""
    global _test
    _test += 1


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


def _checked(decorated: Any = None, *, typechecker: Any) -> Any:
    """Stand in for `jaxtyping.jaxtyped` as its import hook calls it."""
    if decorated is None:
        return lambda later: _checked(later, typechecker=typechecker)
    if isinstance(decorated, FunctionType) and not _names_axes(decorated):
        return decorated
    if isinstance(decorated, type) and dataclasses.is_dataclass(decorated):
        initialiser = vars(decorated).get("__init__")
        if isinstance(initialiser, FunctionType) and not _names_axes(initialiser):
            return decorated
    checked = _jaxtyped(decorated, typechecker=typechecker)
    return _at_first(decorated, checked) if isinstance(decorated, FunctionType) else checked


def _at_first(function: FunctionType, checked: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks its first calls in each test, and few after them."""
    calls = 0
    test = 0

    @functools.wraps(function)
    def some_checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, test
        calls, test = (calls if test == _test else 0) + 1, _test
        often = calls > _FIRST_CALLS and calls % _ONE_IN
        return (function if often else checked)(*args, **kwargs)

    return some_checked


def _names_axes(function: FunctionType) -> bool:
    """Tell whether a shape is in the annotations, or may be in one that is not known yet."""
    return any(map(_has_axes, function.__annotations__.values()))


def _has_axes(annotation: object) -> bool:
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    inner: Iterable[object] = annotation if isinstance(annotation, list) else ()
    return any(map(_has_axes, (*typing.get_args(annotation), *inner)))


def _make_protocols_checkable(annotation: object) -> None:
    # `typing.is_protocol` is public from Python 3.13.
    if isinstance(annotation, type) and getattr(annotation, "_is_protocol", False):
        typing.runtime_checkable(annotation)
    for argument in typing.get_args(annotation):
        _make_protocols_checkable(argument)
