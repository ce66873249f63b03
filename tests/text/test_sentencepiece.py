"""The door to sentencepiece: what cannot be read or is not meant is one clear error."""

from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.text.sentencepiece import SentencePieces
from tests.support.tokenizers import trained_model


@pytest.mark.parametrize("content", [b"", b"no model", trained_model()[:500], None])
def test_a_file_that_is_no_model_is_a_checkpoint_error(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"reading .*x\.model: found no SentencePiece model"):
        SentencePieces.from_file(path)


def test_options_that_are_none_are_a_type_error() -> None:
    options: tuple[dict[str, Any], ...] = (
        {"foo": 1}, {"alpha": "much"}, {"model_file": "x"}, {"nbest_size": 1.5}
    )  # fmt: skip
    for each in options:
        with pytest.raises(TypeError, match="correct sp_model_kwargs"):
            SentencePieces(trained_model(), each)


def test_half_a_surrogate_pair_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no valid Unicode"):
        SentencePieces(trained_model()).pieces("a\ud800")
