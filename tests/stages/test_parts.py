import numpy as np
import pyarrow as pa

from corpus_asr.errors import FetchError
from corpus_asr.families.registry import PartFeatures
from corpus_asr.schemas import PARTS
from corpus_asr.stages.parts import failure_fields, further_rows, one_row, part_rows


def test_features_go_into_a_row_without_a_copy_and_come_back_as_views():
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    further = further_rows({"other": PartFeatures(values=values, pad_value=-2.0)})
    first = one_row(PARTS, {"features": values, "further": further})
    other = one_row(PARTS, {"language_features": np.empty((0, 4), np.float16), "part": 7})
    row, empty = part_rows(pa.concat_tables([first, other]).slice(0, 2))
    assert np.shares_memory(row["features"], values)
    np.testing.assert_array_equal(row["features"].reshape(3, 4), values)
    assert (row["part"], row["language_features"]) == (None, None)
    [kind] = row["further"]
    np.testing.assert_array_equal(kind.pop("features").reshape(3, 4), values)
    assert kind == {"kind": "other", "num_mel_bins": 4, "pad_value": -2.0}
    assert (empty["part"], empty["features"], empty["further"]) == (7, None, None)
    assert empty["language_features"].size == 0


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
