"""What the Whisper networks with a vocabulary share.

In: a network with a decoder. Out: its decoder and its projection to the vocabulary. Knows no text
and not what is decoded.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from corpus_asr.families.layers.lm_head import TokenTables, Vocabulary
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.decoder import WhisperDecoder
from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.families.whisper.pretrained import WhisperPreTrainedModel


class WhisperWithTokens(WhisperPreTrainedModel, TokenTables):
    """A decoder with its table of token embeddings."""

    def get_decoder(self) -> WhisperDecoder:
        """Return the decoder."""
        decoder = super().get_decoder()
        assert isinstance(decoder, WhisperDecoder)
        return decoder


class WhisperWithVocabulary(WhisperWithTokens, Vocabulary):
    """A decoder, and the projection to the vocabulary, tied to the token embedding."""

    proj_out: nn.Linear

    _tied: ClassVar[dict[str, str]] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
    _generation: ClassVar[Any] = GenerationConfig
    _decoder: ClassVar[str] = "model.decoder"
    _projection: ClassVar[str] = "proj_out"

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.max_target_positions = config.max_target_positions

    def _check_labels(self, labels: Tensor) -> None:
        super()._check_labels(labels)
        if labels.shape[1] > self.max_target_positions:
            raise ValueError(
                f"training: found labels of {labels.shape[1]} tokens, expected at most the "
                f"model's {self.max_target_positions} positions; cut or drop the example"
            )
