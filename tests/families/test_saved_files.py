"""Typed values out of JSON files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import (
    plain_values,
    read_json_object,
    typed_values,
    write_json_object,
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
    return typed_values(Sample, content, path=PATH)[0]


def test_values_of_the_right_types_are_taken_and_lists_become_tuples():
    content = {"count": 3, "share": 1, "switch": True, "name": None, "ids": [1, 2]}
    known = values(**content, pairs=[[1, None], [2, 3]], by_name={"a": 1})
    assert known == {
        "count": 3,
        "share": 1.0,
        "switch": True,
        "name": None,
        "ids": (1, 2),
        "pairs": ((1, None), (2, 3)),
        "by_name": {"a": 1},
    }
    assert type(known["share"]) is float


def test_unknown_keys_come_back_as_they_were():
    known, unknown = typed_values(Sample, {"count": 1, "other": [1], "aside": 2}, path=PATH)
    assert known == {"count": 1}
    assert unknown == {"other": [1], "aside": 2}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
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
    ],
)
def test_another_type_is_a_checkpoint_error_with_file_key_found_and_expected(key, value, expected):
    with pytest.raises(CheckpointError, match=expected) as caught:
        values(**{key: value})
    assert f"reading {PATH}: {key} is " in str(caught.value)


def test_a_long_value_is_shown_in_part():
    with pytest.raises(CheckpointError) as caught:
        values(count=list(range(1000)))
    assert len(str(caught.value)) < 250


def test_written_objects_read_back(tmp_path):
    content = {"b": plain_values(((1, 2), {"x": (3,)})), "a": "ü"}
    write_json_object(tmp_path / "new" / "file.json", content)
    assert read_json_object(tmp_path / "new" / "file.json") == {"a": "ü", "b": [[1, 2], {"x": [3]}]}
    assert (tmp_path / "new" / "file.json").read_text().startswith('{\n  "a"')


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[1]", "expected an object"), (b"{", "no readable JSON"), (b"\xff", "no readable JSON")],
)
def test_a_file_that_is_no_object_is_a_checkpoint_error(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_json_object(tmp_path / "config.json")


def test_a_missing_file_and_a_folder_in_its_place_are_checkpoint_errors(tmp_path):
    with pytest.raises(CheckpointError, match="found no such file"):
        read_json_object(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="no readable JSON"):
        read_json_object(tmp_path)
