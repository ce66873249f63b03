"""OpenAI's files: its .pt checkpoints, their tensors' names, alignment heads, and vocabularies.

Nothing in a file is executed.

Sources: openai-whisper `model.py` and `__init__.py`;
transformers/models/whisper/modeling_whisper.py.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import read_saved_bytes, write_json_object
from corpus_asr.families.tokenizer import (
    ADDED_NAME,
    MERGES_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    VOCAB_NAME,
)
from corpus_asr.families.weights import check_archive, check_extent
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.vocabulary import bytes_by_letter
from corpus_asr.languages import LANGUAGES
from corpus_asr.units import TIMESTAMP_STEP_S

# OpenAI's networks have these built in: the file cannot say otherwise.
_HIDDEN_PER_WIDTH = 4
_ACTIVATION = "gelu"

_CONFIG_NAMES = {
    "n_mels": "num_mel_bins", "n_vocab": "vocab_size",
    "n_audio_ctx": "max_source_positions", "n_text_ctx": "max_target_positions",
    "n_audio_state": "d_model", "n_text_state": "d_model",
    "n_audio_head": "encoder_attention_heads", "n_text_head": "decoder_attention_heads",
    "n_audio_layer": "encoder_layers", "n_text_layer": "decoder_layers",
}  # fmt: skip


Dimensions = dict[str, int]
"""The sizes an OpenAI checkpoint records, by its own names: the keys of `_CONFIG_NAMES`."""


def dimensions_of(config: WhisperConfig, *, where: str) -> Dimensions:
    """Read the sizes off a configuration; raises CheckpointError for one of other networks."""
    values = {openai: getattr(config, name) for openai, name in _CONFIG_NAMES.items()}
    for name, expected in config_values(values).items():
        value = getattr(config, name)
        if value != expected:
            raise CheckpointError(
                f"converting {where} for openai-whisper: found {name} {value!r}, expected "
                f"{expected!r}, which that code has built in; keep this model in Hugging Face "
                "layout"
            )
    return values


def config_values(dimensions: Dimensions) -> dict[str, Any]:
    """Return the fields of `WhisperConfig` that follow from the sizes."""
    return {
        **{name: dimensions[openai] for openai, name in _CONFIG_NAMES.items()},
        "encoder_ffn_dim": _HIDDEN_PER_WIDTH * dimensions["n_audio_state"],
        "decoder_ffn_dim": _HIDDEN_PER_WIDTH * dimensions["n_text_state"],
        "activation_function": _ACTIVATION,
    }


def read_openai(path: Path) -> tuple[Dimensions, dict[str, Tensor]]:
    """Read a .pt file without running its code."""
    try:
        check_archive(path)
        # Mapped: a large model is 6 GB, and is copied tensor by tensor as it is written.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # an unpickler fed garbage raises nearly anything
        raise CheckpointError(
            f"reading {path}: found no readable PyTorch file ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}); expected "
            "OpenAI's .pt checkpoint, saved as a zip archive: download it again"
        ) from error
    if not isinstance(content, dict) or {"dims", "model_state_dict"} - content.keys():
        keys = ", ".join(sorted(map(str, content))) if isinstance(content, dict) else "no dict"
        raise CheckpointError(
            f"reading {path}: found {keys[:200]}, expected `dims` and `model_state_dict` as in "
            "OpenAI's checkpoints"
        )
    tensors = content["model_state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"reading {path}: `model_state_dict` holds more than tensors")
    check_extent(path, tensors.values())
    return _dimensions(content["dims"], path), tensors


def write_openai(path: Path, dimensions: Dimensions, tensors: Mapping[str, Tensor]) -> None:
    """Write a .pt file that openai-whisper loads; complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole, so that a full disk leaves no file that looks like a checkpoint.
    unfinished = path.with_name(f".{path.name}.unfinished")
    torch.save({"dims": dimensions, "model_state_dict": dict(tensors)}, unfinished)
    unfinished.replace(path)


def _dimensions(dims: Any, path: Path) -> Dimensions:
    good = isinstance(dims, dict) and all(type(dims.get(name)) is int for name in _CONFIG_NAMES)
    if not good or dims["n_audio_state"] != dims["n_text_state"]:
        raise CheckpointError(
            f"reading {path}: found dimensions {str(dims)[:300]}, expected whole numbers "
            f"{', '.join(_CONFIG_NAMES)} with one width for encoder and decoder"
        )
    dimensions = {name: dims[name] for name in _CONFIG_NAMES}
    try:
        WhisperConfig(**config_values(dimensions))
    except ValueError as error:
        raise CheckpointError(f"reading {path}: {error}; the file is broken") from error
    return dimensions


# Names of tensors

_BLOCK = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn.query": "encoder_attn.q_proj",
    "cross_attn.key": "encoder_attn.k_proj",
    "cross_attn.value": "encoder_attn.v_proj",
    "cross_attn.out": "encoder_attn.out_proj",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
_WHOLE = {
    "encoder.conv1.weight": "model.encoder.conv1.weight",
    "encoder.conv1.bias": "model.encoder.conv1.bias",
    "encoder.conv2.weight": "model.encoder.conv2.weight",
    "encoder.conv2.bias": "model.encoder.conv2.bias",
    "encoder.positional_embedding": "model.encoder.embed_positions.weight",
    "encoder.ln_post.weight": "model.encoder.layer_norm.weight",
    "encoder.ln_post.bias": "model.encoder.layer_norm.bias",
    "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
    "decoder.positional_embedding": "model.decoder.embed_positions.weight",
    "decoder.ln.weight": "model.decoder.layer_norm.weight",
    "decoder.ln.bias": "model.decoder.layer_norm.bias",
}


def tensor_names(dimensions: Dimensions) -> dict[str, str]:
    """Return what Hugging Face calls each tensor that OpenAI's network of these sizes may have."""
    names = dict(_WHOLE)
    # Of every block the same names: keys without biases and encoders without `cross_attn` are
    # the network's affair, which checks shapes afterwards.
    for stack, size in (("encoder", "n_audio_layer"), ("decoder", "n_text_layer")):
        for layer, kind in product(range(dimensions[size]), ("weight", "bias")):
            for openai, name in _BLOCK.items():
                key = f"{stack}.blocks.{layer}.{openai}.{kind}"
                names[key] = f"model.{stack}.layers.{layer}.{name}.{kind}"
    return names


# Heads whose cross-attention follows the words in time
# Source: openai-whisper `__init__.py`, `_ALIGNMENT_HEADS`, written out as (layer, head).

Heads = tuple[tuple[int, int], ...]


def _heads(text: str) -> Heads:
    pairs = (pair.split(".") for pair in text.split())
    return tuple((int(layer), int(head)) for layer, head in pairs)


ALIGNMENT_HEADS: dict[str, Heads] = {
    "tiny.en": _heads("1.0 2.0 2.5 3.0 3.1 3.2 3.3 3.4"),
    "tiny": _heads("2.2 3.0 3.2 3.3 3.4 3.5"),
    "base.en": _heads("3.3 4.7 5.1 5.5 5.7"),
    "base": _heads("3.1 4.2 4.3 4.7 5.1 5.2 5.4 5.6"),
    "small.en": _heads(
        "6.6 7.0 7.3 7.8 8.2 8.5 8.7 9.0 9.4 9.8 9.10 10.0 10.1 10.2 10.3 10.6 10.11 11.2 11.4"
    ),
    "small": _heads("5.3 5.9 8.0 8.4 8.7 8.8 9.0 9.7 9.9 10.5"),
    "medium.en": _heads(
        "11.4 14.1 14.12 14.14 15.4 16.0 16.4 16.9 17.12 17.14 18.7 18.10 18.15 20.0 20.3 20.9 "
        "20.14 21.12"
    ),
    "medium": _heads("13.15 15.4 15.15 16.1 20.0 23.4"),
    "large-v1": _heads("9.19 11.2 11.4 11.17 22.7 22.11 22.17 23.2 23.15"),
    "large-v2": _heads(
        "10.12 13.17 16.11 16.12 16.13 17.15 17.16 18.4 18.11 18.19 19.11 21.2 21.3 22.3 22.9 "
        "22.12 23.5 23.7 23.13 25.5 26.1 26.12 27.15"
    ),
    "large-v3": _heads("7.0 10.17 12.18 13.12 16.1 17.14 19.11 21.4 24.1 25.6"),
    "large-v3-turbo": _heads("2.4 2.11 3.3 3.6 3.11 3.14"),
}
_SIZES = {(4, 6): "tiny", (6, 8): "base", (12, 12): "small", (24, 16): "medium"}
_ENGLISH_VOCABULARY = 51_864
_V3_VOCABULARY = 51_866


def alignment_heads(file_name: str, dimensions: Dimensions) -> Heads | None:
    """Return the heads of the published model of these sizes; None if there is none.

    A fine-tuned model keeps its parent's heads.
    """
    layers, heads = dimensions["n_text_layer"], dimensions["n_text_head"]
    vocabulary = dimensions["n_vocab"]
    if vocabulary == _V3_VOCABULARY:
        name = {(32, 20): "large-v3", (4, 20): "large-v3-turbo"}.get((layers, heads))
    elif (layers, heads) == (32, 20):
        # large-v1 and large-v2 are alike in every size, so the file's name decides.
        match = re.search(r"large-v[12]", file_name)
        name = match[0] if match else None
    else:
        # A distilled model has fewer decoder layers than encoder layers, and other heads.
        name = _SIZES.get((layers, heads)) if dimensions["n_audio_layer"] == layers else None
        name = f"{name}.en" if name and vocabulary == _ENGLISH_VOCABULARY else name
    return ALIGNMENT_HEADS[name] if name else None


# Vocabularies: .tiktoken files have the base64 of a token's bytes and its rank per line

_END = "<|endoftext|>"
TIMESTAMPS = 1501  # 0.00 to 30.00 s in steps of 0.02 s, both ends included
_FIXED_CONTROLS = 8  # all but languages and timestamps, the end token included


def write_tokenizer_files(ranks_path: Path, folder: Path, *, vocab_size: int) -> None:
    """Write the tokenizer of a model with `vocab_size` tokens into `folder`."""
    ranks = _read_ranks(ranks_path)
    num_languages = vocab_size - len(ranks) - _FIXED_CONTROLS - TIMESTAMPS
    if not 0 < num_languages <= len(LANGUAGES):
        raise CheckpointError(
            f"reading {ranks_path}: {len(ranks)} tokens leave room for {num_languages} languages "
            f"in a vocabulary of {vocab_size}, expected 1 to {len(LANGUAGES)}; English-only models "
            "need gpt2.tiktoken, all others multilingual.tiktoken"
        )
    spelled = {_spell(token): rank for token, rank in ranks.items()}
    vocab = {**spelled, _END: len(ranks)}
    controls = _controls(num_languages)
    timestamps = [f"<|{step * TIMESTAMP_STEP_S:.2f}|>" for step in range(TIMESTAMPS)]
    added = {token: len(ranks) + 1 + at for at, token in enumerate([*controls, *timestamps])}
    write_json_object(folder / VOCAB_NAME, vocab)
    merges = "\n".join(" ".join(map(_spell, pair)) for pair in _merges(ranks))
    (folder / MERGES_NAME).write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    write_json_object(folder / ADDED_NAME, added)
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _END)
    special = {**roles, "additional_special_tokens": [_END, *controls]}
    write_json_object(folder / SPECIAL_NAME, special)
    settings = {
        **roles,
        "add_prefix_space": False,
        "errors": "replace",
        "model_max_length": 1024,
        "tokenizer_class": "WhisperTokenizer",
    }
    write_json_object(folder / SETTINGS_NAME, settings)


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in read_saved_bytes(path).decode("ascii").splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token)] = int(rank)
    except (OSError, UnicodeDecodeError, ValueError, binascii.Error) as error:
        raise CheckpointError(
            f"reading {path}: found no vocabulary ({error}), expected lines of base64 and rank; "
            "openai-whisper's are called multilingual.tiktoken and gpt2.tiktoken"
        ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise CheckpointError(
            f"reading {path}: found {len(ranks)} tokens whose ranks have holes, expected 0, 1, 2 "
            "and so on; copy the file again"
        )
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _controls(num_languages: int) -> list[str]:
    # In the order of their ids, which follow the end token's without a gap.
    # LANGUAGES is in openai-whisper's order; older vocabularies lack only the last, Cantonese.
    languages = [f"<|{code}|>" for code in list(LANGUAGES)[:num_languages]]
    names = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    return ["<|startoftranscript|>", *languages, *(f"<|{name}|>" for name in names)]


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    # .tiktoken files rank tokens but name no merges: a token's last merge joins the two parts that
    # merging by lower ranks alone leaves of it.
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = _merge_up_to(token, ranks, limit=rank)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


def _merge_up_to(token: bytes, ranks: dict[bytes, int], *, limit: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(parts[at] + parts[at + 1], limit) for at in range(len(parts) - 1)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= limit:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


_LETTERS = {byte: letter for letter, byte in bytes_by_letter().items()}


def _spell(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
