"""Tiny random Speech2Text checkpoints in Hugging Face layout, so that no test needs a download.

A folder goes in; config.json and weights are written there by transformers, and with a tokenizer
folder its files too. The text such a model gives is noise, but the same noise for the same seed.
"""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

Weights = Literal["safetensors", "bin"]


def tiny_speech2text(
    folder: Path,
    *,
    seed: int = 0,
    d_model: int = 24,
    layers: int = 2,
    heads: int = 2,
    vocab_size: int = 120,
    tokenizer: Path | None = None,
    weights: Weights = "safetensors",
    dtype: torch.dtype = torch.float32,
    spread: float = 0.2,
    **config: Any,
) -> Path:
    """Write a random checkpoint and return its folder.

    Args:
        folder: made if needed.
        seed: of the weights.
        d_model: width of both towers.
        layers: of encoder and decoder each; `config` may set `encoder_layers` alone.
        heads: likewise.
        vocab_size: of the tokenizer where one is given: at least its own.
        tokenizer: folder written by `tests.support.pieces`; its files are copied.
        weights: how they are stored.
        dtype: type they are stored in.
        spread: standard deviation of the weights; at the usual 0.02 a tiny network hardly tells
            inputs apart.
        config: further keys of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        **{f"{tower}_layers": layers for tower in ("encoder", "decoder")},
        **{f"{tower}_attention_heads": heads for tower in ("encoder", "decoder")},
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 56,
        "conv_channels": 20,
        "max_target_positions": 64,
        "init_std": spread,
        "dropout": 0.0,
        **config,
    }
    model = _random_model(settings, seed=seed).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder)
    if weights == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    extractor = transformers.Speech2TextFeatureExtractor(
        feature_size=model.config.input_feat_per_channel,
        num_mel_bins=model.config.input_feat_per_channel,
    )
    extractor.save_pretrained(folder)
    if tokenizer is not None:
        for path in tokenizer.iterdir():
            if path.resolve() != (folder / path.name).resolve():
                shutil.copy(path, folder)
    return folder


def _random_model(settings: dict[str, Any], *, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.Speech2TextConfig(**settings)
        model = transformers.Speech2TextForConditionalGeneration(config)
        # Biases and norms too: zeros and ones would hide a mistake in their use.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data += torch.randn_like(parameter) * settings["init_std"]
            elif name.endswith("decoder.embed_tokens.weight"):
                # No zero row for padding, which transformers makes and training would not.
                parameter.data.normal_(std=settings["init_std"])
    return model.eval()
