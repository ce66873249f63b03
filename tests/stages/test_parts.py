import numpy as np
import pyarrow as pa

from corpus_asr.errors import FetchError
from corpus_asr.stages.parts import (
    failure_fields,
    half_list,
    half_views,
)


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
