"""Checkpoints from one layout into another: the work of `corpus-asr convert`.

What is written appears complete or not at all, and loads in openai-whisper and in transformers.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.layers.stack import sinusoids
from corpus_asr.families.loading import COMPUTE_DTYPES
from corpus_asr.families.registry import family_of
from corpus_asr.families.weights import (
    check_archive,
    check_extent,
    quantized,
    save_weights,
    stored_tensors,
    without_weights,
)
from corpus_asr.families.whisper.config import GenerationConfig, WhisperConfig
from corpus_asr.families.whisper.model import WhisperSeq2SeqLM
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor

OPENAI_SUFFIX = ".pt"
INT8 = "int8"

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

# Everything else of a folder is copied as it is.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".msgpack", ".h5", ".index.json")
_OPENAI_VOCABULARIES = (51_864, 51_865, 51_866)
_TIED = "proj_out.weight"
_EMBEDDING = "model.decoder.embed_tokens.weight"
_FIXED = "encoder.embed_positions.weight"
_OPENAI_FIXED = "encoder.positional_embedding"
# The files that OpenAI publishes are in float16, positions included.
_HALF_ROUNDING = 2.0**-10  # twice what rounding to float16 changes numbers up to 1


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    tokenizer: Path | None = None,
) -> str:
    """Convert a checkpoint and return what was written, in words.

    The suffixes select the direction: `.pt` is OpenAI's, all else a folder. A `dtype` of None keeps
    the stored one, and makes float16 of INT8 weights. A .pt source alone has a `tokenizer`: the
    folder of a checkpoint of the same size, whose settings it gets as well.
    """
    if target.exists():
        raise ConfigError(f"converting to {target}: found it, expected none; choose another name")
    if dtype is not None and dtype not in (*COMPUTE_DTYPES, INT8):
        dtypes = ", ".join((*COMPUTE_DTYPES, INT8))
        raise ConfigError(f"converting to dtype {dtype}: expected one of {dtypes}; correct --dtype")
    if dtype == INT8 and target.suffix == OPENAI_SUFFIX:
        raise ConfigError(
            f"converting to {target} in int8: expected float weights for OpenAI's layout; name a "
            "folder as the target, or change --dtype"
        )
    if source.suffix == OPENAI_SUFFIX:
        if target.suffix == OPENAI_SUFFIX:
            dimensions, tensors = read_openai(source)
            write_openai(target, dimensions, _typed(tensors, dtype))
            return _words(tensors, target)
        return _openai_to_folder(source, target, dtype, tokenizer)
    if source.is_file():
        raise ConfigError(
            f"converting {source}: found a file, expected OpenAI's .pt or the folder of a "
            "checkpoint; name a folder in the layout of transformers"
        )
    if tokenizer is not None:
        raise ConfigError("--tokenizer: found a folder, expected a .pt source; remove it")
    if target.suffix == OPENAI_SUFFIX:
        return _folder_to_openai(source, target, dtype)
    return _folder_to_folder(source, target, dtype)


def _openai_to_folder(
    source: Path,
    target: Path,
    dtype: str | None,
    tokenizer: Path | None,
) -> str:
    if tokenizer is None:
        raise ConfigError(
            f"converting {source}: found no --tokenizer, expected a Whisper checkpoint of the same "
            "size, such as openai/whisper-tiny (English-only: openai/whisper-tiny.en); add it"
        )
    dimensions, tensors = read_openai(source)
    names = tensor_names(dimensions)
    if unknown := [name for name in tensors if name not in names]:
        raise CheckpointError(
            f"converting {source}: found tensors that are not Whisper's: "
            f"{', '.join(unknown[:8])}; use an OpenAI Whisper checkpoint"
        )
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    with _appearing(target) as folder:
        WhisperTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
        config, generation = _settings_for(dimensions, tokenizer)
        _check_shapes(renamed, config, source)
        config.save_pretrained(folder)
        generation.save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=dimensions["n_mels"]).save_pretrained(folder)
        save_weights(folder, _typed(renamed, dtype))
    return _words(tensors, target)


def _folder_to_openai(source: Path, target: Path, dtype: str | None) -> str:
    model_type = family_of(source).model_type
    if model_type != WhisperConfig.model_type:
        raise CheckpointError(
            f"converting {source} for openai-whisper: found a checkpoint of {model_type}, "
            f"expected one of {WhisperConfig.model_type}; name a folder as the target"
        )
    config = WhisperConfig.from_pretrained(source)
    dimensions = dimensions_of(config, where=str(source))
    if config.vocab_size not in _OPENAI_VOCABULARIES:
        raise CheckpointError(
            f"converting {source} for openai-whisper: found {config.vocab_size} tokens, expected "
            f"{', '.join(map(str, _OPENAI_VOCABULARIES))} of its built-in tokenizers; keep the "
            "Hugging Face layout"
        )
    # A bare WhisperModel saves its tensors without the prefix `model.`.
    bare = ("encoder.", "decoder.")
    stored = {
        f"model.{name}" if name.startswith(bare) else name: tensor
        for name, tensor in _read_folder(source).items()
    }
    if _TIED in stored:
        if not torch.equal(stored[_TIED], stored[_EMBEDDING]):
            raise CheckpointError(
                f"converting {source} for openai-whisper: found an output projection other than "
                "the token embedding, expected equal ones; keep the Hugging Face layout"
            )
        del stored[_TIED]
    names = {name: openai for openai, name in tensor_names(dimensions).items()}
    unknown = next((name for name in stored if name not in names), None)
    if unknown is not None:
        raise CheckpointError(
            f"converting {source} for openai-whisper: found {unknown}, expected a model for "
            "transcription; convert such a model"
        )
    tensors = {names[name]: tensor for name, tensor in stored.items()}
    if _OPENAI_FIXED not in tensors:
        # INT8 checkpoints, and what is made of them, leave out what can be computed.
        sizes = dimensions["n_audio_ctx"], dimensions["n_audio_state"]
        tensors[_OPENAI_FIXED] = sinusoids(*sizes)
    write_openai(target, dimensions, _typed(tensors, dtype))
    return _words(tensors, target)


def _folder_to_folder(source: Path, target: Path, dtype: str | None) -> str:
    tensors = _read_folder(source)
    with _appearing(target) as folder:
        for path in source.iterdir():
            if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
                shutil.copyfile(path, folder / path.name)
        save_weights(folder, _typed(tensors, dtype))
    return _words(tensors, target)


# The folder takes the target's name once it is whole, so that no run loads half a checkpoint.
@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp creates folders that are private
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _read_folder(source: Path) -> dict[str, Tensor]:
    return {name: tensor.read() for name, tensor in stored_tensors(source).items()}


def _check_shapes(tensors: Mapping[str, Tensor], config: WhisperConfig, source: Path) -> None:
    with without_weights():
        expected = WhisperSeq2SeqLM(config).state_dict()
    expected.pop(_TIED, None)
    wrong = [
        name
        for name in sorted(expected.keys() | tensors.keys())
        if name not in expected or name not in tensors
        or expected[name].shape != tensors[name].shape
    ]  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"converting {source}: {len(wrong)} tensors do not fit its dimensions: "
            f"{', '.join(wrong[:8])}; download the file again"
        )


def _typed(tensors: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    if dtype == INT8:
        # The encoder's fixed positions are computed if absent, and 8 bits would round them.
        return quantized({n: t for n, t in tensors.items() if not _is_sinusoids(n, t)})
    wanted = COMPUTE_DTYPES[dtype] if dtype else None
    return {
        name: tensor.to(wanted) if wanted is not None and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _is_sinusoids(name: str, tensor: Tensor) -> bool:
    return name.endswith(_FIXED) and torch.allclose(
        tensor.float(), sinusoids(*tensor.shape), rtol=0, atol=_HALF_ROUNDING
    )


def _words(tensors: Mapping[str, Tensor], target: Path) -> str:
    count = sum(tensor.numel() for tensor in tensors.values())
    return f"{target}: {len(tensors)} tensors, {count / 1e6:,.1f} million weights"


# Settings files for weights that came without any


def _settings_for(dimensions: Dimensions, base: Path) -> tuple[WhisperConfig, GenerationConfig]:
    config = WhisperConfig.from_pretrained(base)
    if config.vocab_size != dimensions["n_vocab"]:
        raise CheckpointError(
            f"converting a model of {dimensions['n_vocab']} tokens: {base} has "
            f"{config.vocab_size}; pass a checkpoint of the same size with --tokenizer"
        )
    generation = GenerationConfig.from_pretrained(base)
    generation.max_length = dimensions["n_text_ctx"]
    sizes = config_values(dimensions)
    decoder = ("decoder_layers", "decoder_attention_heads")
    if any(getattr(config, name) != sizes[name] for name in decoder):
        generation.alignment_heads = None  # those of another network
    return WhisperConfig.from_dict({**config.to_dict(), **sizes, "dtype": None}), generation


# OpenAI's .pt files, of which nothing is executed. Sources: openai-whisper `model.py` and
# `__init__.py`; transformers/models/whisper/modeling_whisper.py


def dimensions_of(config: WhisperConfig, *, where: str) -> Dimensions:
    """Return the sizes in a configuration; raises CheckpointError for other networks."""
    values = {openai: getattr(config, name) for openai, name in _CONFIG_NAMES.items()}
    for name, expected in config_values(values).items():
        value = getattr(config, name)
        if value != expected:
            raise CheckpointError(
                f"converting {where} for openai-whisper: found {name} {value!r}, expected "
                f"{expected!r} as in that code; keep the Hugging Face layout"
            )
    return values


def config_values(dimensions: Dimensions) -> dict[str, Any]:
    """Return the fields of `WhisperConfig` implied by the sizes."""
    return {
        **{name: dimensions[openai] for openai, name in _CONFIG_NAMES.items()},
        "encoder_ffn_dim": _HIDDEN_PER_WIDTH * dimensions["n_audio_state"],
        "decoder_ffn_dim": _HIDDEN_PER_WIDTH * dimensions["n_text_state"],
        "activation_function": _ACTIVATION,
    }


def read_openai(path: Path) -> tuple[Dimensions, dict[str, Tensor]]:
    """Read a .pt file without executing its code."""
    try:
        check_archive(path)
        # Mapped: a large model is 6 GB, and is copied tensor by tensor.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling invalid data may raise any exception
        raise CheckpointError(
            f"reading {path}: found no readable PyTorch file ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}), expected "
            "OpenAI's .pt checkpoint, a zip archive; download it again"
        ) from error
    if not isinstance(content, dict) or {"dims", "model_state_dict"} - content.keys():
        keys = ", ".join(sorted(map(str, content))) if isinstance(content, dict) else "no dict"
        raise CheckpointError(
            f"reading {path}: found {keys[:200]}, expected `dims` and `model_state_dict` as in "
            "OpenAI's checkpoints"
        )
    tensors = content["model_state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(
            f"reading {path}: found more than tensors in `model_state_dict`, expected tensors; "
            "download it again"
        )
    check_extent(path, tensors.values())
    return _dimensions(content["dims"], path), tensors


def write_openai(path: Path, dimensions: Dimensions, tensors: Mapping[str, Tensor]) -> None:
    """Write a .pt file that openai-whisper loads, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so that a full disk leaves no incomplete checkpoint.
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
        raise CheckpointError(f"reading {path}: {error}; download it again") from error
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
    """Return Hugging Face's name of each tensor of OpenAI's network of these sizes."""
    names = dict(_WHOLE)
    # The same names for every block: the network checks later that keys have no biases and encoders
    # no `cross_attn`.
    for stack, size in (("encoder", "n_audio_layer"), ("decoder", "n_text_layer")):
        for layer, kind in product(range(dimensions[size]), ("weight", "bias")):
            for openai, name in _BLOCK.items():
                key = f"{stack}.blocks.{layer}.{openai}.{kind}"
                names[key] = f"model.{stack}.layers.{layer}.{name}.{kind}"
    return names
