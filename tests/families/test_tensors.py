"""Arrays, batches of rows and outputs, against the obvious constructors and transformers."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import modeling_outputs

from corpus_asr.families import outputs
from corpus_asr.families.outputs import Seq2SeqLMOutput
from corpus_asr.families.tensors import BatchFeature, as_tensors

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


def test_uneven_rows_what_is_no_number_and_other_kinds_are_refused():
    for kind in ("np", "pt"):
        with pytest.raises(ValueError, match=r"2 rows: found lengths from 1 to 3.*padding=True"):
            as_tensors([[1], [1, 2, 3]], kind)
        with pytest.raises(ValueError, match="2 rows"):
            as_tensors([1, [2]], kind)
    for rows in ([None], [[1, None]], [object()]):
        with pytest.raises(ValueError, match="expected numbers"):
            as_tensors(rows, "np")
    for kind in ("tf", "jax", "PT", ""):
        with pytest.raises(ValueError, match="expected 'np', 'pt' or None"):
            as_tensors([1], kind)


def values():
    features = np.ones((2, 3), np.float32)
    return {"input_features": features, "attention_mask": np.ones((2, 3), np.int64)}


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


ENCODED = torch.ones(1, 4, 5)


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


def test_every_output_has_the_fields_of_the_reference_in_order() -> None:
    own: list[Any] = [
        c for c in outputs.ModelOutput.__subclasses__() if c.__module__ == outputs.__name__
    ]
    for ours in own:
        theirs = getattr(modeling_outputs, ours.__name__)
        assert list(ours.__dataclass_fields__) == list(theirs.__dataclass_fields__)
