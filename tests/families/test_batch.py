"""Batches of named values, against those of transformers."""

import copy
import pickle

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.families.tensors import BatchEncoding, BatchFeature


def values():
    return {
        "input_features": np.ones((2, 3), np.float32),
        "attention_mask": np.ones((2, 3), np.int64),
    }


@pytest.mark.parametrize("kind", ["np", "pt", None])
def test_values_are_those_of_transformers(kind):
    ours = BatchFeature(values(), kind)
    theirs = transformers.BatchFeature(values(), kind)
    assert list(ours.keys()) == list(theirs.keys())
    for key in theirs:
        assert type(ours[key]) is type(theirs[key])
        assert ours[key].dtype == theirs[key].dtype
        assert ours[key].tolist() == theirs[key].tolist()
        assert getattr(ours, key) is ours[key] is ours.data[key]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("cpu",), {}),
        (("cpu", torch.float16), {}),
        ((torch.float16,), {}),
        ((), {"dtype": torch.bfloat16}),
        (("cpu",), {"dtype": torch.float64, "non_blocking": True}),
        (("meta",), {}),
    ],
)
def test_tensors_move_and_only_floats_change_their_type(args, kwargs):
    ours = BatchFeature({**values(), "name": "x"}, None)
    for key in values():
        ours[key] = torch.tensor(values()[key])
    theirs = transformers.BatchFeature(dict(ours)).to(*args, **kwargs)
    assert ours.to(*args, **kwargs) is ours
    for key in values():
        assert (ours[key].dtype, ours[key].device) == (theirs[key].dtype, theirs[key].device)
    assert ours.name == "x"


def test_a_batch_is_a_mapping_for_calls_and_survives_copies():
    batch = BatchEncoding({"input_ids": [[1, 2]]})
    assert dict(**batch) == {"input_ids": [[1, 2]]}
    batch["labels"] = [3]
    assert batch.labels == [3]
    for again in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
        assert type(again) is BatchEncoding
        assert again == batch


def test_wrong_use_is_named():
    batch = BatchFeature({"input_features": [1.0]})
    with pytest.raises(AttributeError, match="'input_ids' of a BatchFeature: found input_features"):
        _ = batch.input_ids
    with pytest.raises(ValueError, match=r"converting 'input_ids'.*lengths from 1 to 2"):
        BatchEncoding({"input_ids": [[1], [1, 2]]}, "np")
    with pytest.raises(TypeError, match="found \\['copy'\\]"):
        batch.to("cpu", copy=True)
    with pytest.raises(TypeError, match="two values for the device"):
        batch.to("cpu", "cpu")
