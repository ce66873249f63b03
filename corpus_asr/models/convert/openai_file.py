"""OpenAI's checkpoint: one .pt file with the model's dimensions and its weights.

In: a file, or dimensions and tensors. Out: the other. Runs no code from a file. Knows nothing of
folders and tokenizers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.config import WhisperConfig

# OpenAI's networks have these built in: the file cannot say otherwise.
_HIDDEN_PER_WIDTH = 4
_ACTIVATION = "gelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """The sizes an OpenAI checkpoint records, by its own names."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    @classmethod
    def of(cls, config: WhisperConfig, *, where: str) -> Self:
        """Read them off a configuration.

        Raises:
            CheckpointError: OpenAI's networks cannot be like this.
        """
        odd = {
            "encoder_ffn_dim": (config.encoder_ffn_dim, _HIDDEN_PER_WIDTH * config.d_model),
            "decoder_ffn_dim": (config.decoder_ffn_dim, _HIDDEN_PER_WIDTH * config.d_model),
            "activation_function": (config.activation_function, _ACTIVATION),
        }
        for name, (found, expected) in odd.items():
            if found != expected:
                raise CheckpointError(
                    f"converting {where} for openai-whisper: found {name} {found!r}, expected "
                    f"{expected!r}, which that code has built in; keep this model in Hugging Face "
                    "layout"
                )
        return cls(
            n_mels=config.num_mel_bins,
            n_audio_ctx=config.max_source_positions,
            n_audio_state=config.d_model,
            n_audio_head=config.encoder_attention_heads,
            n_audio_layer=config.encoder_layers,
            n_vocab=config.vocab_size,
            n_text_ctx=config.max_target_positions,
            n_text_state=config.d_model,
            n_text_head=config.decoder_attention_heads,
            n_text_layer=config.decoder_layers,
        )

    def config_values(self) -> dict[str, Any]:
        """The fields of `WhisperConfig` that follow from them."""
        return {
            "num_mel_bins": self.n_mels,
            "max_source_positions": self.n_audio_ctx,
            "d_model": self.n_audio_state,
            "encoder_attention_heads": self.n_audio_head,
            "encoder_layers": self.n_audio_layer,
            "encoder_ffn_dim": _HIDDEN_PER_WIDTH * self.n_audio_state,
            "vocab_size": self.n_vocab,
            "max_target_positions": self.n_text_ctx,
            "decoder_attention_heads": self.n_text_head,
            "decoder_layers": self.n_text_layer,
            "decoder_ffn_dim": _HIDDEN_PER_WIDTH * self.n_text_state,
            "activation_function": _ACTIVATION,
        }


def read_openai(path: Path) -> tuple[Dimensions, dict[str, Tensor]]:
    """Read a .pt file; its tensors stay mapped to the file.

    Raises:
        CheckpointError: it is missing, broken, would run code, or is no Whisper checkpoint.
    """
    try:
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
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"reading {path}: `model_state_dict` holds more than tensors")
    return _dimensions(content["dims"], path), tensors


def write_openai(path: Path, dimensions: Dimensions, tensors: Mapping[str, Tensor]) -> None:
    """Write a .pt file that openai-whisper loads; complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    torch.save({"dims": asdict(dimensions), "model_state_dict": dict(tensors)}, unfinished)
    unfinished.replace(path)


def _dimensions(found: Any, path: Path) -> Dimensions:
    names = [field.name for field in fields(Dimensions)]
    good = isinstance(found, dict) and all(type(found.get(name)) is int for name in names)
    if not good or found["n_audio_state"] != found["n_text_state"]:
        raise CheckpointError(
            f"reading {path}: found dimensions {str(found)[:300]}, expected whole numbers "
            f"{', '.join(names)} with one width for encoder and decoder"
        )
    return Dimensions(**{name: found[name] for name in names})
