"""The tables explain themselves: readers find a doc, and a unit, in each column's metadata."""

import pyarrow as pa
import pytest

from corpus_asr import schemas

TABLES = {name: value for name, value in vars(schemas).items() if isinstance(value, pa.Schema)}
FIELDS = [
    pytest.param(field, id=f"{name}.{field.name}")
    for name, table in TABLES.items()
    for field in table
]
UNITS = {"_s": b"second", "_hz": b"hertz", "_bytes": b"byte"}


def test_every_table_names_itself_and_its_version():
    assert set(TABLES) >= {
        "FILES",
        "PACKS",
        "PARTS",
        "RESULTS",
        "SEGMENTS",
        "OUTCOMES",
        "RECORDINGS",
    }
    for name, table in TABLES.items():
        assert table.metadata == {
            b"corpus_asr.table": name.lower().encode(),
            b"corpus_asr.schema_version": schemas.SCHEMA_VERSION.encode(),
        }


@pytest.mark.parametrize("field", FIELDS)
def test_every_column_has_a_doc(field):
    assert field.metadata[b"doc"].strip()


@pytest.mark.parametrize("field", FIELDS)
def test_every_quantity_has_the_unit_its_name_says(field):
    expected = [unit for suffix, unit in UNITS.items() if field.name.endswith(suffix)]
    assert ([field.metadata[b"unit"]] if b"unit" in field.metadata else []) == expected


@pytest.mark.parametrize("name", [*TABLES])
def test_column_names_are_unique_within_a_table(name):
    names = TABLES[name].names
    assert sorted(names) == sorted(set(names))


def test_a_column_means_the_same_in_every_table():
    kinds: dict[str, set[pa.DataType]] = {}
    for table in TABLES.values():
        for field in table:
            kinds.setdefault(field.name, set()).add(field.type)
    # `segments` is the rows themselves between stages, and their number in the recordings table.
    assert {name for name, found in kinds.items() if len(found) > 1} <= {"segments"}
