"""Tiny random classifiers of audio in Hugging Face layout, written by transformers."""

from pathlib import Path
from typing import Any

import torch
import transformers

CLASSES = ("speech", "music", "noise")


def tiny_classifier(folder: Path, *, labels: tuple[str, ...] = CLASSES, **config: Any) -> Path:
    """Write a random `WhisperForAudioClassification` and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "vocab_size": 100, "classifier_proj_size": 16, "init_std": 0.3, "pad_token_id": 1,
        "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
        "id2label": dict(enumerate(labels)), "label2id": {b: a for a, b in enumerate(labels)},
        **config,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.WhisperForAudioClassification(transformers.WhisperConfig(**settings))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += torch.randn_like(parameter) * settings["init_std"]
    model.eval().save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder
