"""What is wrong with the values of a settings model, in plain words.

In: the model, the values as read, and pydantic's complaint. Out: one problem per key, saying what
was found against what was expected, with the nearest known key where a key is unknown. Knows
nothing of files: the caller adds the place.
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from corpus_asr.config.base import Settings, hide_secrets
from corpus_asr.config.document import KeyPath, Problem

_LONGEST_VALUE = 80


def problems_in(
    error: ValidationError, *, model: type[Settings], values: Mapping[str, Any]
) -> list[Problem]:
    """Say what pydantic found, once per key (a union is one key with several complaints)."""
    problems: dict[KeyPath, Problem] = {}
    for detail in error.errors(include_url=False):
        key, field = _locate(model, detail["loc"])
        if key in problems:
            continue
        kind = detail["type"]
        if kind == "extra_forbidden":
            message = unknown_key(model, key)
        elif kind == "missing":
            message = f"missing; {_description(field)}"
        elif kind == "value_error":
            message = str(detail["ctx"]["error"])
        else:
            message = _mismatch(_value_at(values, key), field, detail["loc"])
        problems[key] = Problem(key=key, message=message)
    return list(problems.values())


def booleans_in_the_wrong_place(
    values: Mapping[str, Any], *, model: type[Settings], above: KeyPath = ()
) -> Iterator[Problem]:
    """Find true and false where a number is expected: pydantic would read them as 1 and 0."""
    for name, value in values.items():
        field = model.model_fields.get(name)
        if field is None:
            continue
        key = (*above, name)
        section = _section(field)
        if section is not None and isinstance(value, Mapping):
            yield from booleans_in_the_wrong_place(value, model=section, above=key)
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) for item in items) and not _admits_bool(field.annotation):
            yield Problem(key=key, message=_mismatch(value, field, key))


def unknown_key(model: type[Settings], key: KeyPath) -> str:
    """Name the known key nearest to an unknown one, or all that are known there.

    Args:
        model: the model of the whole document.
        key: the path of the unknown key; the keys before the last are known.
    """
    level = _model_at(model, key[:-1])
    wanted = key[-1].lower().replace("-", "_")
    elsewhere = [path for path in _all_keys(model) if path[-1] == wanted and path[:-1] != key[:-1]]
    near = difflib.get_close_matches(wanted, level.model_fields, n=1, cutoff=0.6)
    if elsewhere:
        return f"unknown key; did you mean {'.'.join(elsewhere[0])}?"
    if near:
        return f"unknown key; did you mean {'.'.join((*key[:-1], near[0]))}?"
    return f"unknown key; known here: {', '.join(level.model_fields)}"


def expected(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Say in plain words which values a type admits."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *extra = arguments
        return expected(base, (*metadata, *_constraints(extra)))
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(expected(argument, metadata) for argument in arguments)
    if origin is tuple:
        # Every list in the settings also takes a single value.
        item = expected(arguments[0])
        return (
            f"{item}, or a list of such"
            if not item.startswith("text")
            else "text or a list of text"
        )
    if origin is dict:
        return f"keys below it, each with {expected(arguments[1])}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if annotation is type(None):
        return "null"
    return words.get(annotation, "a value") + _bounds(annotation, metadata)


def _constraints(metadata: list[Any]) -> tuple[Any, ...]:
    """Unwrap the Field() of an annotated type into the bounds it holds."""
    found: list[Any] = []
    for item in metadata:
        found.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return tuple(found)


def _bounds(annotation: Any, metadata: tuple[Any, ...]) -> str:
    if annotation not in (int, float):
        return ""
    words = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    found = [
        f"{word} {getattr(item, name):g}"
        for item in metadata
        for name, word in words
        if getattr(item, name, None) is not None
    ]
    return f" {' and '.join(found)}" if found else ""


def _locate(
    model: type[Settings], location: tuple[int | str, ...]
) -> tuple[KeyPath, FieldInfo | None]:
    """Turn pydantic's location, which also holds union branches and indices, into a key."""
    key: KeyPath = ()
    level: type[Settings] | None = model
    field: FieldInfo | None = None
    for item in location:
        if level is None:
            break
        key = (*key, str(item))
        field = level.model_fields.get(str(item))
        level = _section(field) if field is not None else None
    return key, field


def _section(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _model_at(model: type[Settings], key: KeyPath) -> type[Settings]:
    for name in key:
        section = _section(model.model_fields[name])
        assert section is not None, f"{name} has no keys below it"
        model = section
    return model


def _all_keys(model: type[Settings], above: KeyPath = ()) -> Iterator[KeyPath]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        section = _section(field)
        if section is not None:
            yield from _all_keys(section, (*above, name))


def _value_at(values: Mapping[str, Any], key: KeyPath) -> Any:
    value: Any = values
    for name in key:
        value = value[name]
    return value


def _admits_bool(annotation: Any) -> bool:
    return annotation is bool or any(_admits_bool(part) for part in get_args(annotation))


def _description(field: FieldInfo | None) -> str:
    if field is None:
        return "expected here"
    section = _section(field)
    if section is not None:
        return f"a section with {', '.join(section.model_fields)}"
    return field.description or expected(field.annotation, tuple(field.metadata))


def _mismatch(value: Any, field: FieldInfo | None, location: tuple[int | str, ...]) -> str:
    if field is None:
        return f"found {_found(value)}, expected keys such as source and model"
    index = location[-1] if location and isinstance(location[-1], int) else None
    which = ""
    if index is not None and isinstance(value, list):
        which, value = f"item {index + 1}: ", value[index]
    section = _section(field)
    if section is not None:
        wanted = f"keys below it: {', '.join(section.model_fields)}"
    elif any(getattr(item, "pattern", None) for item in field.metadata):
        wanted = f"text such as: {field.description}"
    else:
        wanted = expected(field.annotation, tuple(field.metadata))
    return f"{which}found {_found(value)}, expected {wanted}{_advice(value, field)}"


def _advice(value: Any, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal and isinstance(value, str):
        known = [str(argument) for argument in get_args(field.annotation)]
        near = difflib.get_close_matches(value.lower(), known, n=1, cutoff=0.5)
        return f"; did you mean {near[0]}?" if near else ""
    if value is None and not field.is_required():
        default = field.get_default(call_default_factory=True, validated_data={})
        if not isinstance(default, Settings):
            return f"; leave the key out for its default, {default}"
    takes_text = "text" in expected(field.annotation)
    if takes_text and isinstance(value, bool | int | float):
        return "; put it in quotes if it is text"
    return ""


def _found(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"keys below it ({', '.join(map(str, value))})" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, int | float):
        return str(value)
    text = hide_secrets(str(value))
    short = text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
    return f'the text "{short}"'
