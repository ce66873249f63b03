from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from corpus_asr.errors import FetchError
from corpus_asr.families.registry import PartFeatures
from corpus_asr.schemas import PARTS
from corpus_asr.stages.parts import (
    failure_fields,
    further_columns,
    further_features,
    half_list,
    half_views,
    one_row,
)
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.tables import extracted


def test_halves_go_into_a_list_column_without_a_copy_and_come_back_as_views():
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    column = half_list([values])
    assert column.type == pa.list_(pa.float16())
    (view,) = half_views(pa.chunked_array([column]))
    assert view is not None
    assert np.shares_memory(view, values)
    np.testing.assert_array_equal(view.reshape(3, 4), values)


def test_views_respect_slices_chunks_and_nulls():
    rows = [np.full(n, n, np.float16) for n in (2, 0, 3)]
    first = half_list(rows).slice(1)
    column = pa.chunked_array([first, pa.nulls(1, pa.list_(pa.float16()))])
    empty, three, missing = half_views(column)
    assert empty is not None
    assert empty.size == 0
    np.testing.assert_array_equal(three, rows[2])
    assert missing is None


def test_a_row_has_every_column_and_unnamed_ones_are_null_and_unknown_ones_are_refused():
    table = one_row(PARTS, {"part": 3, "features": np.zeros((2, 80), np.float16)})
    assert table.schema.equals(PARTS, check_metadata=True)
    assert table.column("part").to_pylist() == [3]
    assert table.column("features")[0].as_py() == [0.0] * 160
    assert table.column("uri").null_count == 1
    with pytest.raises(ValueError, match="colour"):
        one_row(PARTS, {"colour": "red"})


def test_features_of_further_kinds_come_back_as_views():
    frames = np.arange(4003, dtype=np.float16).reshape(-1, 1)
    further = {
        # One has fewer rows, as filter banks have.
        "wide": PartFeatures(values=np.repeat(frames[:-3], 6, axis=1), pad_value=-2.0),
        "narrow": PartFeatures(values=np.repeat(frames, 2, axis=1), pad_value=0.5),
    }
    columns = further_columns(further)
    row: dict[str, Any] = {
        "part_end_s": 40.0, "num_samples": 40 * SAMPLE_RATE_HZ, "speech_spans": None,
        "features": np.repeat(frames, 4, axis=1), **columns,
    }  # fmt: skip
    whole = extracted("a", **row)
    [column] = half_views(whole["further_features"])
    found = further_features(whole["further_kinds"][0].as_py(), column)
    assert list(found) == ["wide", "narrow"]
    for kind, each in found.items():
        assert np.shares_memory(each.values, column)
        np.testing.assert_array_equal(each.values, further[kind].values)
        assert each.pad_value == further[kind].pad_value
    assert further_columns({}) == {}
    assert further_features(None, None) == {}


def test_a_failure_is_recorded_with_its_kind_and_without_secrets():
    fields = failure_fields(FetchError("reading a: timeout", kind="timeout"), stage="extract")
    assert fields == {
        "status": "failed",
        "error_stage": "extract",
        "error_kind": "timeout",
        "error_message": "reading a: timeout",
        "retryable": True,
    }
    signed = OSError("connecting to https://user:pass@host/a.mp3?X-Amz-Signature=secret failed")
    for error, message in (
        (signed, "OSError: connecting to https://host/a.mp3?[hidden] failed"),
        (MemoryError("m"), "MemoryError: m"),
        (KeyError("k"), "KeyError: 'k'"),
    ):
        fields = failure_fields(error, stage="transcribe")
        assert (fields["error_kind"], fields["error_message"]) == ("internal", message)
        assert fields["retryable"], "another version of this program may do better"
