"""Arrays, batches of rows and outputs, against the obvious constructors and transformers."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate.utils import convert_to_fp32
from torch.utils import _pytree as pytree
from transformers import modeling_outputs
from transformers.modeling_outputs import Seq2SeqLMOutput as Reference

from corpus_asr.families import outputs
from corpus_asr.families.outputs import Seq2SeqLMOutput, as_encoder_output
from corpus_asr.families.tensors import BatchEncoding, BatchFeature, as_tensors

ROWS = [
    [1, 2, 3],
    [[1, 2], [3, 4]],
    [[0.5, 1.5]],
    [True, False],
    7,
    [np.float32(1.5), np.float32(2)],
    [np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)],
    [np.ones(2, np.float16)],
    np.arange(6).reshape(2, 3).T,
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_become_what_the_libraries_make_of_them(rows):
    found = as_tensors(rows, "np")
    expected = np.array(rows)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    tensor = as_tensors(rows, "pt")
    plain = isinstance(rows, (int, list)) and not isinstance(np.ravel(rows)[0], np.float32)
    expected_type = torch.tensor(rows).dtype if plain and found.dtype != np.float16 else None
    assert tensor.dtype == (expected_type or torch.from_numpy(expected).dtype)
    assert tensor.tolist() == expected.tolist()
    assert tensor.shape == expected.shape
    assert as_tensors(rows, None) is rows


def test_tensors_become_one_tensor_or_one_array():
    rows = [torch.ones(3), torch.zeros(3)]
    assert as_tensors(rows, "pt").shape == (2, 3)
    assert as_tensors(rows[0], "pt") is rows[0]
    np.testing.assert_array_equal(as_tensors(rows[0], "np"), np.ones(3))
    with pytest.raises(ValueError, match="lengths from 3 to 4"):
        as_tensors([torch.ones(3), torch.ones(4)], "pt")
    # No ids are still ids.
    assert as_tensors([[]], "np").dtype == np.int64
    assert as_tensors([], "pt").dtype == torch.int64
    assert as_tensors([np.zeros(0, np.float32)], "np").dtype == np.float32


def test_uneven_rows_what_is_no_number_and_other_kinds_are_refused():
    for kind in ("np", "pt"):
        with pytest.raises(ValueError, match=r"2 rows: found lengths from 1 to 3.*padding=True"):
            as_tensors([[1], [1, 2, 3]], kind)
        with pytest.raises(ValueError, match="2 rows"):
            as_tensors([1, [2]], kind)
    for rows in ([None], [[1, None]], [object()]):
        with pytest.raises(ValueError, match="expected numbers only"):
            as_tensors(rows, "np")
    for kind in ("tf", "jax", "PT", ""):
        with pytest.raises(ValueError, match="expected 'np', 'pt' or None"):
            as_tensors([1], kind)


def values():
    features = np.ones((2, 3), np.float32)
    return {"input_features": features, "attention_mask": np.ones((2, 3), np.int64)}


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


def test_tensors_move_and_only_floats_change_their_type():
    calls: list[tuple[Any, Any]] = [
        (("cpu",), {}),
        (("cpu", torch.float16), {}),
        ((torch.float16,), {}),
        ((), {"dtype": torch.bfloat16}),
        (("cpu",), {"dtype": torch.float64, "non_blocking": True}),
        (("meta",), {}),
    ]
    for args, kwargs in calls:
        ours = BatchFeature({**values(), "name": "x"}, None)
        for key in values():
            ours[key] = torch.tensor(values()[key])
        theirs = transformers.BatchFeature(dict(ours)).to(*args, **kwargs)
        assert ours.to(*args, **kwargs) is ours
        for key in values():
            assert (ours[key].dtype, ours[key].device) == (theirs[key].dtype, theirs[key].device)
        assert ours.name == "x"


def test_a_batch_survives_copies():
    batch = BatchEncoding({"input_ids": [[1, 2]]})
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


LOGITS = torch.zeros(1, 2, 3)
ENCODED = torch.ones(1, 4, 5)


def test_values_are_found_as_in_the_reference() -> None:
    given: dict[str, Any] = {"encoder_last_hidden_state": ENCODED, "logits": LOGITS}
    ours, theirs = Seq2SeqLMOutput(**given), Reference(**given)
    assert list(ours) == list(theirs) == list(ours.keys()) == ["logits", *list(given)[:1]]
    assert len(ours) == len(theirs) == 2
    for output in (ours, theirs):
        assert output.logits is output["logits"] is output[0] is output[:1][0]
        assert output[-1] is output.to_tuple()[1] is ENCODED
        assert output.loss is None
        assert output.get("loss") is None
        assert "loss" not in output
        assert dict(**output).keys() == given.keys()
        with pytest.raises(KeyError, match="loss"):
            _ = output["loss"]
        with pytest.raises(IndexError):
            _ = output[2]
        output["loss"] = torch.tensor(1.0)
        output.loss = torch.tensor(2.0)
        assert float(output["loss"]) == 2.0


def test_an_output_is_a_dictionary_that_can_be_made_of_one() -> None:
    output: Any = Seq2SeqLMOutput(logits=ENCODED)
    again: Any = Seq2SeqLMOutput
    assert issubclass(Seq2SeqLMOutput, dict)
    output.loss = torch.tensor(1.0)
    assert list(output) == ["loss", "logits"]
    pairs = ((name, value) for name, value in output.items())
    # As `accelerate` makes them again, and as DataParallel gathers them.
    for made in (again(dict(output)), again(pairs)):
        assert type(made) is Seq2SeqLMOutput
        assert (made.loss, made.logits) == (output.loss, output.logits)
    for copied in (copy.copy(output), pickle.loads(pickle.dumps(output))):
        assert list(copied) == ["loss", "logits"]
        assert torch.equal(copied.logits, ENCODED)
    output.loss = None
    assert list(output) == ["logits"]
    with pytest.raises(TypeError, match="a key of a Seq2SeqLMOutput"):
        output.pop("logits")
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        again({"x": ENCODED})


def test_accelerate_and_torch_make_outputs_again() -> None:
    output: Any = Seq2SeqLMOutput(loss=torch.tensor(1.0).half(), logits=ENCODED.half())
    wide: Any = convert_to_fp32(output)
    assert (type(wide), wide.logits.dtype) == (Seq2SeqLMOutput, torch.float32)
    assert [id(leaf) for leaf in pytree.tree_leaves(output)] == [id(v) for v in output.values()]
    assert list(pytree.tree_map(lambda tensor: tensor.float(), output)) == ["loss", "logits"]


def test_every_output_has_the_fields_of_the_reference_in_order() -> None:
    own: list[Any] = [
        c for c in outputs.ModelOutput.__subclasses__() if c.__module__ == outputs.__name__
    ]
    for ours in own:
        theirs = getattr(modeling_outputs, ours.__name__)
        assert list(ours.__dataclass_fields__) == list(theirs.__dataclass_fields__)


def test_what_is_no_encoding_is_an_error() -> None:
    for wrong in (None, (), (None,), ("x",), (ENCODED,) * 4, 3, {"x": ENCODED}):
        with pytest.raises(ValueError, match="reading encoder_outputs: found a "):
            as_encoder_output(wrong)
