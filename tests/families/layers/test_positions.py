"""Sinusoidal positions against both references."""

import pytest
import torch
import whisper.model
from transformers.models.whisper import modeling_whisper

from corpus_asr.families.layers.stack import sinusoids


@pytest.mark.parametrize(("length", "width"), [(1500, 384), (7, 4), (1, 64)])
def test_they_equal_both_references(length: int, width: int) -> None:
    found = sinusoids(length, width)
    assert torch.equal(found, modeling_whisper.sinusoids(length, width))
    torch.testing.assert_close(found, whisper.model.sinusoids(length, width))


@pytest.mark.parametrize("width", [2, 5])
def test_a_width_without_two_halves_is_an_error(width: int) -> None:
    with pytest.raises(ValueError, match="expected an even number above 2"):
        sinusoids(3, width)
