"""The tables explain themselves: readers find a doc, and a unit, in each column's metadata."""

import pyarrow as pa

from corpus_asr import schemas

TABLES = {name: value for name, value in vars(schemas).items() if isinstance(value, pa.Schema)}
UNITS = {
    "_s": b"second",
    "_db": b"decibel",
    "_dbfs": b"decibel",
    "_hz": b"hertz",
    "_bytes": b"byte",
}


def test_every_table_names_itself_and_its_version():
    tables = {"FILES", "PACKS", "PARTS", "RESULTS", "SEGMENTS", "OUTCOMES", "RECORDINGS"}
    assert set(TABLES) >= tables
    for name, table in TABLES.items():
        assert table.metadata == {
            b"corpus_asr.table": name.lower().encode(),
            b"corpus_asr.schema_version": schemas.SCHEMA_VERSION.encode(),
        }


def test_every_column_has_a_doc_and_the_unit_its_name_says():
    for name, table in TABLES.items():
        assert len(set(table.names)) == len(table.names), name
        for field in table:
            where = f"{name}.{field.name}"
            assert field.metadata[b"doc"].strip(), where
            expected = [unit for suffix, unit in UNITS.items() if field.name.endswith(suffix)]
            found = [field.metadata[b"unit"]] if b"unit" in field.metadata else []
            assert found == expected, where


def test_a_column_means_the_same_in_every_table():
    kinds: dict[str, set[pa.DataType]] = {}
    for table in TABLES.values():
        for field in table:
            kinds.setdefault(field.name, set()).add(field.type)
    # `segments` is the rows themselves between stages, and their number in the recordings table.
    assert {name for name, found in kinds.items() if len(found) > 1} <= {"segments"}
