"""Read a checkpoint's JSON files into typed values.

In: a JSON file and a frozen dataclass whose field names are the file's keys. Out: the values that
the dataclass wants, checked and converted, and the keys it does not know. Nothing is coerced: a
count that reads `"80"` or `80.0` is a broken file. Knows no particular model.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from corpus_asr.errors import CheckpointError


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"reading {path}: found no such file; give a folder in Hugging Face layout"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"reading {path}: found no readable JSON ({error}); fetch the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"reading {path}: found {_describe(content)}, expected an object of keys and values; "
            f"fetch the checkpoint again"
        )
    return content


def write_json_object(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, keys sorted, as Hugging Face does; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def typed_values(
    cls: type, content: dict[str, Any], *, path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a JSON object into checked values for the fields of `cls`, and all other keys.

    Args:
        cls: a dataclass; fields with metadata `{"in_file": False}` are no keys of the file.
        path: the file that `content` came from, for messages.

    Returns:
        The values by field name, lists turned into tuples; and the unknown keys as they were.

    Raises:
        CheckpointError: a known key holds a value of another type.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.metadata.get("in_file", True)]
    known = {}
    for name in names:
        if name not in content:
            continue
        try:
            known[name] = _convert(content[name], hints[name])
        except TypeError as error:
            raise CheckpointError(
                f"reading {path}: {name} is {_describe(content[name])}, "
                f"expected {_type_name(hints[name])}; fetch the checkpoint again or correct the key"
            ) from error
    unknown = {key: value for key, value in content.items() if key not in names}
    return known, unknown


def plain_values(value: object) -> Any:
    """Turn tuples and mappings back into the lists and objects that JSON has."""
    if isinstance(value, tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    return value


def _convert(value: Any, hint: Any) -> Any:
    """Check `value` against `hint`; TypeError when it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments)
    if origin is tuple and isinstance(value, list | tuple):
        return _convert_tuple(value, arguments)
    if origin is dict and isinstance(value, dict):
        return {_convert(k, arguments[0]): _convert(v, arguments[1]) for k, v in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int, so types are compared exactly.
    if origin is None and type(value) is hint:
        return value
    raise TypeError(value)


def _convert_union(value: Any, alternatives: tuple[Any, ...]) -> Any:
    for alternative in alternatives:
        try:
            return _convert(value, alternative)
        except TypeError:
            continue
    raise TypeError(value)


def _convert_tuple(value: list[Any] | tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(item, arguments[0]) for item in value)
    if len(value) != len(arguments):
        raise TypeError(value)
    return tuple(_convert(item, hint) for item, hint in zip(value, arguments, strict=True))


def _describe(value: object) -> str:
    text = repr(value)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return f"{shown} ({type(value).__name__})"


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(alternative) for alternative in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list of {_type_name(arguments[0])}"
        return f"[{', '.join(_type_name(item) for item in arguments)}]"
    if origin is dict:
        return f"an object of {_type_name(arguments[1])}"
    return "null" if hint is type(None) else str(hint.__name__)
