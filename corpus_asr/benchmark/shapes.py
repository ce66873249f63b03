"""Whisper's published sizes with random weights, so that any can be timed without a download.

In: a size. Out: a checkpoint folder in Hugging Face layout, without a tokenizer. How long a network
takes depends on its sizes and types, not on what its weights say.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from corpus_asr.errors import ConfigError
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.languages import LANGUAGES
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration

# Weights are stored as half-precision floats, which every engine reads and which halve the disk.
_STORED = torch.float16
_SEED = 0

# Text tokens of the multilingual vocabulary, the end token not among them.
_NUM_TEXT_TOKENS = 50_257
# Control tokens after the languages: translate, transcribe, startoflm, startofprev, nospeech,
# notimestamps; then 1,501 times.
_AFTER_LANGUAGES = (
    "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
)  # fmt: skip
_NUM_TIMES = 1_501


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a network; those not named follow as in all of Whisper."""

    name: str
    width: int
    encoder_layers: int
    decoder_layers: int
    num_mel_bins: int = 80
    num_languages: int = len(LANGUAGES) - 1

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token but the times, with the published control tokens at their ids."""
        codes = tuple(LANGUAGES)[: self.num_languages]
        return (
            *(f"text{number}" for number in range(_NUM_TEXT_TOKENS)),
            "<|endoftext|>",
            "<|startoftranscript|>",
            *(f"<|{code}|>" for code in codes),
            *_AFTER_LANGUAGES,
        )

    def config(self) -> WhisperConfig:
        """Describe the network as config.json does."""
        heads = self.width // 64
        end = _NUM_TEXT_TOKENS
        return WhisperConfig(
            vocab_size=end + 2 + self.num_languages + len(_AFTER_LANGUAGES) + _NUM_TIMES,
            num_mel_bins=self.num_mel_bins,
            d_model=self.width,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * self.width,
            decoder_ffn_dim=4 * self.width,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=end + 1,
        )


# Source: Radford et al. 2022, table 1; the config.json of openai/whisper-large-v3 and -turbo.
_V3 = {"num_mel_bins": 128, "num_languages": len(LANGUAGES)}
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            Shape(name="tiny", width=384, encoder_layers=4, decoder_layers=4),
            Shape(name="base", width=512, encoder_layers=6, decoder_layers=6),
            Shape(name="small", width=768, encoder_layers=12, decoder_layers=12),
            Shape(name="medium", width=1024, encoder_layers=24, decoder_layers=24),
            Shape(name="large-v3", width=1280, encoder_layers=32, decoder_layers=32, **_V3),
            Shape(name="large-v3-turbo", width=1280, encoder_layers=32, decoder_layers=4, **_V3),
        )
    }
)


def find_shapes(names: Sequence[str]) -> list[Shape]:
    """Return the sizes of these names.

    Raises:
        ConfigError: one is not known.
    """
    for name in names:
        if name not in SHAPES:
            near = difflib.get_close_matches(name, SHAPES, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"choosing a shape: found {name!r}, expected some of {', '.join(SHAPES)}{hint}"
            )
    return [SHAPES[name] for name in dict.fromkeys(names)]


def network_without_weights(shape: Shape) -> WhisperForConditionalGeneration:
    """Build the network on the meta device, which takes no memory."""
    with torch.device("meta"):
        return WhisperForConditionalGeneration(shape.config())


def write_checkpoint(shape: Shape, folder: Path) -> Path:
    """Write config.json, generation_config.json and random weights; the same on every machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = WhisperForConditionalGeneration(shape.config())
    model.to(_STORED).save_pretrained(folder)
    (folder / "vocabulary.txt").write_text("\n".join(shape.vocabulary), encoding="utf-8")
    return folder
