"""A checkpoint that knows nothing yet: texts and sizes in, a Hugging Face folder out.

For training from nothing; whoever has a checkpoint to start from needs none of this.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from corpus_asr.models.whisper.config import WhisperConfig
from corpus_asr.models.whisper.feature_extractor import WhisperFeatureExtractor
from corpus_asr.models.whisper.generation_config import GenerationConfig
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.models.whisper.processor import WhisperProcessor
from corpus_asr.models.whisper.tokenizer import WhisperTokenizer
from corpus_asr.text.bpe_training import END, NO_TIMESTAMPS, PREVIOUS, START, train_tokenizer
from corpus_asr.training.nearby import look_nearby

_FIRST_TIMESTAMPS = 50  # a transcript starts in the first second, as Whisper's do


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a network of one language."""

    text_tokens: int
    width: int
    feed_forward: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    dropout: float = 0.0


def make_checkpoint(texts: Iterable[str], folder: Path, sizes: Sizes, *, seed: int) -> Path:
    """Write a random network with a vocabulary learnt from texts; returns the folder.

    Args:
        texts: as they are to be written.
        folder: made if needed.
        sizes: of the network.
        seed: of its weights.

    Raises:
        OSError: the folder cannot be written.
        ValueError: no network can have these sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = train_tokenizer(texts, folder, text_tokens=sizes.text_tokens)
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    shared: dict[str, Any] = {
        "bos_token_id": ids[END],
        "eos_token_id": ids[END],
        "pad_token_id": ids[END],
        "decoder_start_token_id": ids[START],
        "begin_suppress_tokens": (ids[END],),
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=sizes.width,
        encoder_layers=sizes.encoder_layers,
        decoder_layers=sizes.decoder_layers,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=sizes.feed_forward,
        decoder_ffn_dim=sizes.feed_forward,
        dropout=sizes.dropout,
        **shared,
    )
    torch.manual_seed(seed)
    network = WhisperForConditionalGeneration(config)
    _spread(network)
    look_nearby(network.model.encoder)
    network.generation_config = GenerationConfig(
        **shared,
        max_length=config.max_target_positions,
        alignment_heads=tuple(
            (sizes.decoder_layers - 1, head) for head in range((sizes.heads + 1) // 2)
        ),
        max_initial_timestamp_index=_FIRST_TIMESTAMPS,
        return_timestamps=False,
        is_multilingual=False,
        no_timestamps_token_id=ids[NO_TIMESTAMPS],
        prev_sot_token_id=ids[PREVIOUS],
    )
    network.save_pretrained(folder)
    return folder


def _spread(network: nn.Module) -> None:
    """Give products weights that keep the spread of what goes through them.

    With Whisper's own, of 0.02 everywhere, what is heard is a thirtieth of what the encoder's
    positions say, and narrow networks first learn to hear nothing (He et al. 2015; Glorot and
    Bengio 2010).
    """
    for part in network.modules():
        if isinstance(part, nn.Conv1d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        elif isinstance(part, nn.Linear) and part is not network.proj_out:  # which is the embedding
            nn.init.xavier_normal_(part.weight)
