"""Outputs by name, key and position, as `transformers.utils.ModelOutput` has them."""

from typing import Any

import pytest
import torch
from transformers import modeling_outputs
from transformers.modeling_outputs import Seq2SeqLMOutput as Reference

from corpus_asr.families import outputs
from corpus_asr.families.outputs import Seq2SeqLMOutput, as_encoder_output

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
