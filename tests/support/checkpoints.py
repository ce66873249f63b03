"""Tiny random checkpoints in Hugging Face layout, so that no test needs a download.

The text such a model gives is noise, but the same noise for the same seed.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import save_file

Weights = Literal["safetensors", "sharded safetensors", "bin", "sharded bin"]

_DEFAULT_VOCAB_SIZE = 1000


def tiny_whisper(
    folder: Path,
    *,
    seed: int = 0,
    d_model: int = 64,
    layers: int = 2,
    heads: int = 4,
    num_mel_bins: int = 80,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    weights: Weights = "safetensors",
    dtype: torch.dtype = torch.float32,
    spread: float = 0.1,
    **config: Any,
) -> Path:
    """Write a random checkpoint and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = _token_ids(tokenizer)
    size = vocab_size or (_vocab_size(tokenizer) if tokenizer else _DEFAULT_VOCAB_SIZE)
    end = ids.get("<|endoftext|>", size - 2)
    start = ids.get("<|startoftranscript|>", size - 1)
    settings: dict[str, Any] = {
        "vocab_size": size,
        "d_model": d_model,
        "num_mel_bins": num_mel_bins,
        **{f"{tower}_layers": layers for tower in ("encoder", "decoder")},
        **{f"{tower}_attention_heads": heads for tower in ("encoder", "decoder")},
        **{f"{tower}_ffn_dim": 4 * d_model for tower in ("encoder", "decoder")},
        "init_std": spread,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "begin_suppress_tokens": [end],
        **config,
    }
    model = _random_model(settings, seed=seed).to(dtype)
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    _write_weights(model.state_dict(), folder, weights)
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mel_bins)
    extractor.save_pretrained(folder)
    _write_generation_config(folder, ids, end=end, start=start)
    if tokenizer is not None:
        for path in tokenizer.iterdir():
            if path.resolve() != (folder / path.name).resolve():
                shutil.copy(path, folder)
    return folder


def tiny_speech2text(
    folder: Path,
    *,
    seed: int = 0,
    d_model: int = 64,
    layers: int = 2,
    heads: int = 4,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    spread: float = 0.1,
    features: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a random Speech2Text checkpoint and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        vocab_size = vocab_size or len(json.loads((tokenizer / "vocab.json").read_text()))
        for path in tokenizer.iterdir():
            shutil.copy(path, folder)
    settings: dict[str, Any] = {
        "vocab_size": vocab_size or _DEFAULT_VOCAB_SIZE,
        "d_model": d_model,
        **{f"{tower}_layers": layers for tower in ("encoder", "decoder")},
        **{f"{tower}_attention_heads": heads for tower in ("encoder", "decoder")},
        **{f"{tower}_ffn_dim": 2 * d_model for tower in ("encoder", "decoder")},
        "conv_channels": 2 * d_model,
        "init_std": spread,
        "max_source_positions": 3000,
        "max_target_positions": 64,
        **config,
    }
    model = _random_model(settings, seed=seed, family="Speech2Text")
    model.save_pretrained(folder)
    transformers.Speech2TextFeatureExtractor(**features or {}).save_pretrained(folder)
    return folder


def _random_model(settings: dict[str, Any], *, seed: int, family: str = "Whisper") -> Any:
    make_config = getattr(transformers, f"{family}Config")
    make_model = getattr(transformers, f"{family}ForConditionalGeneration")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(make_config(**settings))
        # Biases and norms too: zeros and ones would hide a mistake in their use.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                noise = torch.randn_like(parameter) * settings["init_std"]
                parameter.data += noise
            elif name.endswith("decoder.embed_tokens.weight"):
                # No zero row for padding, which transformers makes and training would not.
                parameter.data.normal_(std=settings["init_std"])
    return model.eval()


def _write_weights(state: dict[str, torch.Tensor], folder: Path, weights: Weights) -> None:
    if weights in ("safetensors", "sharded safetensors"):
        # proj_out is left out as transformers does: it is the token embedding.
        state = {name: t.contiguous() for name, t in state.items() if name != "proj_out.weight"}
    if weights == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif weights == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif weights == "sharded safetensors":
        for name, shard in _shards(state, folder, "model", "safetensors").items():
            save_file(shard, folder / name, metadata={"format": "pt"})
    else:
        for name, shard in _shards(state, folder, "pytorch_model", "bin").items():
            torch.save(shard, folder / name)


def _shards(
    state: dict[str, torch.Tensor], folder: Path, stem: str, suffix: str
) -> dict[str, dict[str, torch.Tensor]]:
    """Deal the tensors out to three shards and write the index."""
    names = [f"{stem}-{i:05}-of-00003.{suffix}" for i in (1, 2, 3)]
    shards: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for i, (key, tensor) in enumerate(state.items()):
        shards[names[i % 3]][key] = tensor
    file_of = {key: name for name, shard in shards.items() for key in shard}
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": file_of}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2))
    return shards


def _write_generation_config(folder: Path, ids: dict[str, int], *, end: int, start: int) -> None:
    content: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "begin_suppress_tokens": [end],
        "suppress_tokens": [],
        "max_length": 448,
        "max_initial_timestamp_index": 50,
        "return_timestamps": False,
    }
    if ids:
        tasks = ("transcribe", "translate")
        first, last = ids["<|startoftranscript|>"], ids["<|translate|>"]
        languages = {token: i for token, i in ids.items() if first < i < last}
        content |= {
            "is_multilingual": bool(languages),
            "no_timestamps_token_id": ids["<|notimestamps|>"],
            "prev_sot_token_id": ids["<|startofprev|>"],
        }
        if languages:
            content |= {
                "lang_to_id": languages,
                "task_to_id": {task: ids[f"<|{task}|>"] for task in tasks},
            }
    (folder / "generation_config.json").write_text(json.dumps(content, indent=1))


def _token_ids(tokenizer: Path | None) -> dict[str, int]:
    """Ids of all tokens added after the text vocabulary, and of the end token."""
    if tokenizer is None:
        return {}
    added: dict[str, int] = json.loads((tokenizer / "added_tokens.json").read_text())
    vocab: dict[str, int] = json.loads((tokenizer / "vocab.json").read_text())
    return {"<|endoftext|>": vocab["<|endoftext|>"], **added}


def _vocab_size(tokenizer: Path) -> int:
    return max(_token_ids(tokenizer).values()) + 1


SIZES: dict[str, Any] = {
    "d_model": 24,
    "heads": 2,
    "vocab_size": 120,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "conv_channels": 20,
    "dropout": 0.0,
    "spread": 0.2,
}


def tiny_families(folder: Path, **sizes: Any) -> dict[str, Path]:
    """Write a random checkpoint of each family with its tokenizer; returns their folders."""
    # tests/gpu runs where no sentencepiece is installed.
    from tests.support.tokenizers import tiny_speech2text_tokenizer, tiny_tokenizer

    tiny_tokenizer(folder / "Whisper")
    tiny_whisper(folder / "Whisper", tokenizer=folder / "Whisper", max_source_positions=50, **sizes)
    pieces = tiny_speech2text_tokenizer(folder / "pieces")
    tiny_speech2text(folder / "Speech2Text", tokenizer=pieces, conv_channels=16, **sizes)
    return {name: folder / name for name in ("Whisper", "Speech2Text")}


def tiny_network(folder: Path, **settings: Any) -> Path:
    """Write a random checkpoint, without a tokenizer, and return its folder."""
    return tiny_speech2text(folder, **SIZES | settings)


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
