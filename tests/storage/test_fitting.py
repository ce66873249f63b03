"""Rows in exactly a table's schema, and nothing in them that gives access."""

import pyarrow as pa
import pytest

from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.fitting import conform, without_credentials


def test_conforming_fills_what_older_writers_lack() -> None:
    old = pa.table({"part": pa.array([1], pa.int64())})
    assert conform(old, OUTCOMES).schema.equals(OUTCOMES, check_metadata=True)
    assert conform(old, OUTCOMES)["part"].to_pylist() == [1]
    with pytest.raises(ValueError, match="unknown columns"):
        conform(pa.table({"parts": [1]}), OUTCOMES)
    with pytest.raises(ValueError, match="column part is string"):
        conform(pa.table({"part": ["x"]}), OUTCOMES)


def test_addresses_lose_what_gives_access_and_other_rows_are_the_same() -> None:
    kept = pa.table({"uri": ["s3://bucket/a b?.mp3", "/in/a.mp3", None]})
    assert without_credentials(kept)["uri"].to_pylist() == kept["uri"].to_pylist()
    plain = pa.table({"uri": ["s3://bucket/a.mp3", None], "part": [0, 1]})
    assert without_credentials(plain) is plain
    signed = "https://user:s3cr3t@host/a.mp3?X-Amz-Signature=s3cr3t"
    rows = pa.table({"uri": [signed], "error_message": [f"reading {signed}: 403"], "part": [0]})
    safe = without_credentials(rows).to_pylist()
    assert "s3cr3t" not in str(safe)
    assert safe[0]["uri"].startswith("https://host/a.mp3")
