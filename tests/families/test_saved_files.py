"""Typed values out of JSON files."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import (
    read_json_object,
    typed_values,
)

PATH = Path("folder/config.json")


@dataclass(frozen=True)
class Sample:
    count: int = 0
    share: float = 0.0
    switch: bool = False
    name: str | None = None
    ids: tuple[int, ...] | None = None
    pairs: tuple[tuple[int, int | None], ...] = ()
    by_name: dict[str, int] | None = None
    aside: dict[str, Any] = field(default_factory=dict, metadata={"in_file": False})


def values(**content: object) -> dict[str, Any]:
    known, unknown = typed_values(Sample, {**content, "other": [1], "aside": 2}, path=PATH)
    assert unknown == {"other": [1], "aside": 2}
    return known


def test_values_of_the_right_types_are_taken_and_lists_become_tuples():
    content = {"count": 3, "share": 1, "switch": True, "name": None, "ids": [1, 2]}
    known = values(**content, pairs=[[1, None], [2, 3]], by_name={"a": 1})
    tuples = {"ids": (1, 2), "pairs": ((1, None), (2, 3))}
    assert known == content | tuples | {"share": 1.0, "by_name": {"a": 1}}
    assert type(known["share"]) is float


def test_another_type_is_a_checkpoint_error_with_file_key_found_and_expected():
    for key, value, expected in (
        ("count", "80", r"count is '80' \(str\), expected int"),
        ("count", 80.0, "expected int"),
        ("count", True, r"count is True \(bool\), expected int"),
        ("count", None, "expected int"),
        ("share", "0.1", "expected float"),
        ("share", False, "expected float"),
        ("switch", 1, "expected bool"),
        ("name", 1, "expected str or null"),
        ("ids", 1, "expected a list of int or null"),
        ("ids", [1, "2"], "expected a list of int or null"),
        ("pairs", [[1]], r"expected a list of \[int, int or null\]"),
        ("pairs", [[1, 2, 3]], "expected a list of"),
        ("by_name", {"a": "1"}, "expected an object of int or null"),
        ("by_name", [1], "expected an object of int or null"),
        ("count", list(range(1000)), "expected int"),  # shown in part
    ):
        with pytest.raises(CheckpointError, match=rf"reading {PATH}: {key} is .*") as caught:
            values(**{key: value})
        assert re.search(expected, str(caught.value)), (key, value)
        assert len(str(caught.value)) < 250, (key, value)


def test_a_file_that_is_no_object_is_a_checkpoint_error(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="found no such file"):
        read_json_object(path)
    with pytest.raises(CheckpointError, match="no readable JSON"):
        read_json_object(tmp_path)
    for content, message in ((b"[1]", "expected an object"), (b"\xff", "no readable JSON")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_json_object(path)
