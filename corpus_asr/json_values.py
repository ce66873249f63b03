"""Parses JSON into typed values: checkpoints, corrections, requests, and run files.

Input: bytes, or a value from `json.loads`, and a type: a dataclass, or a field annotation. A
ValueError names the key, the found and the expected value; the caller adds the file and advice.
Nothing is coerced: `"80"` or `80.0` is not a valid count.

pydantic would add 0.3 s to every start, and engines run without it.
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from corpus_asr.units import shortened

# tokenizer.json has 6. Recursive functions call themselves once per level.
MAX_LEVELS = 50


class Bounds(NamedTuple):
    """Limits of a number, in its annotation."""

    least: float
    most: float
    words: str = ""
    """Description used instead of the type and limits."""

    def __str__(self) -> str:
        return f"within {self.least} and {self.most:,}"


Seconds = Annotated[float, Bounds(-sys.float_info.max, sys.float_info.max, "seconds")]
"""Neither infinite nor NaN."""


def load(data: bytes) -> Any:
    """Parse JSON; raises ValueError, also for excessive nesting or lone surrogates."""
    text = data.decode("utf-8")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_LEVELS} levels") from error
    _check_depth(content)
    if "\\ud" in text.lower():  # a lone surrogate cannot be stored in tables
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("it has half of a surrogate pair, which is no character") from error
    return content


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_LEVELS):
        level = [
            inner
            for value in level
            # Not a union type, which would be rebuilt for each of a tokenizer's 150,000 values.
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(f"it is nested deeper than {MAX_LEVELS} levels")


def parsed(hint: Any, value: Any, name: str = "") -> Any:
    """Return a value converted to its type: lists become tuples, objects dataclasses.

    Keys without a field in a dataclass are ignored: newer versions may have more.

    `name` is the key of the value; empty at the top level. Raises ValueError.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    # bool is a subclass of int, so types are compared exactly.
    if hint is Any or (origin is None and type(value) is hint):
        return value
    if origin is Annotated:
        with contextlib.suppress(ValueError):
            number = parsed(arguments[0], value, name)
            if all(bounds.least <= number <= bounds.most for bounds in arguments[1:]):
                return number
    elif origin in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        if value is None and len(kinds) < len(arguments):
            return None
        if len(kinds) == 1:  # its message is more specific
            return parsed(kinds[0], value, name)
        for kind in kinds:
            with contextlib.suppress(ValueError):
                return parsed(kind, value, name)
    elif is_dataclass(hint) and isinstance(value, dict):
        return _object(hint, value, name)
    elif origin in (tuple, list) and isinstance(value, list | tuple):
        if origin is list or arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(value) == len(arguments):
            pairs = enumerate(zip(value, arguments, strict=True))
            return origin(parsed(kind, item, f"{name}[{at}]") for at, (item, kind) in pairs)
    elif origin in (dict, Mapping) and isinstance(value, dict):
        named = ((key, item, f"{name}[{shortened(repr(key), 60)}]") for key, item in value.items())
        return {
            parsed(arguments[0], key, place): parsed(arguments[1], item, place)
            for key, item, place in named
        }
    elif hint is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            return float(value)
    subject = f"{name} is" if name else "found"
    shown = f"{shortened(repr(value), 60)} ({type(value).__name__})"
    raise ValueError(f"{subject} {shown}, expected {_type_name(hint)}")


_hints = cache(get_type_hints)


def _object(kind: Any, content: dict[str, Any], name: str) -> Any:
    hints, values = _hints(kind, include_extras=True), {}
    for field in fields(kind):
        place = f"{name}.{field.name}" if name else field.name
        if field.name in content:
            values[field.name] = parsed(hints[field.name], content[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"found no {place}, expected {_type_name(hints[field.name])}")
    return kind(**values)


def _type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = arguments[1]
        return bounds.words or f"{_type_name(arguments[0])} {bounds}"
    if origin in (Union, UnionType):
        return " or ".join(map(_type_name, arguments))
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"a list of {_type_name(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type_name, arguments))}]"
    if origin in (dict, Mapping) or is_dataclass(hint):
        return f"an object of {_type_name(arguments[1])}" if arguments else "an object"
    return _NAMES.get(hint) or str(hint.__name__)


_NAMES = {type(None): "null", Any: "values", dict: "an object"}
