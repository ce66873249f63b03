"""Values of types, read from JSON: nothing is coerced, and errors name the key."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from corpus_asr.json_values import MAX_LEVELS, Bounds, Seconds, load, parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    start_s: Seconds
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    id: str
    count: Annotated[int, Bounds(1, 9)] = 1
    items: tuple[Item, ...] | None = None
    by_name: dict[str, Item] | list[str] | None = None


def test_objects_become_dataclasses_and_unknown_keys_are_left_out() -> None:
    items = [{"start_s": 1, "newer": []}]
    found = parsed(Whole, {"id": "a", "items": items, "by_name": {"b": {"start_s": 0.5}}})
    assert found == Whole(id="a", items=(Item(start_s=1.0),), by_name={"b": Item(start_s=0.5)})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], r"^found \[\] \(list\), expected an object$"),
        ({}, "^found no id, expected str$"),
        ({"id": 1}, r"^id is 1 \(int\), expected str$"),
        ({"id": "a", "count": 0}, "^count is 0 .*expected int within 1 and 9$"),
        ({"id": "a", "count": True}, "^count is True"),
        ({"id": "a", "items": [{}]}, r"^found no items\[0\]\.start_s, expected seconds$"),
        ({"id": "a", "items": [{"start_s": math.nan}]}, r"items\[0\]\.start_s is nan"),
        ({"id": "a", "items": [{"start_s": 10**400}]}, r"items\[0\]\.start_s is 1000"),
        ({"id": "a", "by_name": {"b": 1}}, "^by_name is .* object of an object or a list of str"),
    ],
)
def test_another_type_is_told_with_its_key(content: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(Whole, content)


DEEP = b"[" * MAX_LEVELS + b"[]" + b"]" * MAX_LEVELS


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000, DEEP, b'"\\ud800"'])
def test_what_is_no_json_or_too_deep_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"levels|codec|half of|Expecting|delimiter|double quotes"):
        load(data)
