import numpy as np
import pyarrow as pa
import pytest

from corpus_asr.errors import FetchError
from corpus_asr.schemas import PARTS
from corpus_asr.stages.parts import failure_fields, half_list, half_views, one_row


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


def test_a_row_has_every_column_and_unnamed_ones_are_null():
    table = one_row(PARTS, {"part": 3, "features": np.zeros((2, 80), np.float16)})
    assert table.schema.equals(PARTS, check_metadata=True)
    assert table.column("part").to_pylist() == [3]
    assert table.column("features")[0].as_py() == [0.0] * 160
    assert table.column("uri").null_count == 1


def test_a_row_with_an_unknown_column_is_refused():
    with pytest.raises(ValueError, match="colour"):
        one_row(PARTS, {"colour": "red"})


def test_an_item_error_is_recorded_with_its_kind():
    fields = failure_fields(FetchError("reading a: timeout", kind="timeout"), stage="extract")
    assert fields == {
        "status": "failed",
        "error_stage": "extract",
        "error_kind": "timeout",
        "error_message": "reading a: timeout",
        "retryable": True,
    }


def test_a_row_holds_no_secrets():
    error = OSError("connecting to https://user:pass@host/a.mp3?X-Amz-Signature=secret failed")
    message = failure_fields(error, stage="extract")["error_message"]
    assert message == "OSError: connecting to https://host/a.mp3?[hidden] failed"


@pytest.mark.parametrize(("error", "retryable"), [(MemoryError("m"), True), (KeyError("k"), False)])
def test_an_unexpected_error_is_internal(error: Exception, retryable: bool):
    fields = failure_fields(error, stage="transcribe")
    assert fields["error_kind"] == "internal"
    assert fields["error_message"].startswith(type(error).__name__)
    assert fields["retryable"] is retryable
