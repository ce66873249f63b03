"""A decoder-only family of a few lines: what another one after Qwen3-ASR would write.

Its encoder is one linear map of eight frames, its text model has no norms of heads, its tokens are
bytes, and its prompt is the window between two tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from corpus_asr.families.audio_prompts import Answer, AudioPrompts
from corpus_asr.families.layers.gated import TextNetwork
from corpus_asr.families.layers.prefix_slots import PrefixSlots
from corpus_asr.families.layers.stack import heard_frames
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.pretrained import PreTrainedModel
from corpus_asr.families.qwen3_asr.features import Qwen3ASRPartFeatures
from corpus_asr.families.registry import Family
from corpus_asr.families.text_config import TextConfig

BINS, STEP = 16, 8
BEGIN, STOP, END, PLACEHOLDER = 256, 257, 258, 259


@dataclass(kw_only=True, init=False)
class LlamaConfig(TextConfig):
    model_type: ClassVar[str] = "llama"


@dataclass(kw_only=True, init=False)
class SecondConfig(ModelConfig):
    model_type: ClassVar[str] = "second"

    text_config: LlamaConfig = field(default_factory=LlamaConfig)


class SecondSeq2SeqLM(PreTrainedModel):
    config_class: ClassVar[type[ModelConfig]] = SecondConfig

    def __init__(self, config: SecondConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.encoder = nn.Linear(BINS * STEP, text.hidden_size)
        self.model = TextNetwork(text, head_norms=False)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size)

    def slot_model(self, *, int8: bool = False, consume: bool = False) -> "SecondSlots":
        return SecondSlots(self, int8=int8, consume=consume)


class SecondSlots(PrefixSlots):
    def __init__(self, network: SecondSeq2SeqLM, *, int8: bool, consume: bool) -> None:
        self._weight_bytes = sum(weight.nbytes for weight in network.parameters())
        self._encoder = network.encoder
        super().__init__(
            network.model, network.lm_head, placeholder=PLACEHOLDER, ends=[END],
            window_frames=3000, int8=int8, consume=consume,
        )  # fmt: skip

    def positions(self, num_frames: int) -> int:
        return -(-num_frames // STEP)

    @property
    def encoder_values(self) -> int:
        return BINS * self.window_frames

    @torch.inference_mode()
    def encode(self, features: Tensor, *, num_frames: Sequence[int] | None = None) -> Tensor:
        heard_frames(features, num_frames, whole=(BINS, self.window_frames))
        frames = features.transpose(1, 2).reshape(len(features), -1, BINS * STEP)
        encoded: Tensor = self._encoder(frames)
        return encoded


class SecondFeatures(Qwen3ASRPartFeatures):
    @classmethod
    def from_folder(cls, folder: Path) -> "SecondFeatures":
        return cls(num_mel_bins=BINS)


class SecondPrompts(AudioPrompts):
    languages: Mapping[str, str] = {"en": "English", "de": "Deutsch"}
    end = END

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        return cls()

    def positions(self, num_frames: int) -> int:
        return -(-num_frames // STEP)

    def prompt(self, positions: int, *, language: str | None, context: str) -> tuple[int, ...]:
        window = (PLACEHOLDER,) * positions
        return (*self.encode(context), BEGIN, *window, STOP, *self.encode(language or ""))

    def answer(self, tokens: Sequence[int], *, language: str | None) -> Answer:
        text = (at for at, token in enumerate(tokens) if token < BEGIN)
        return Answer(language=language, text=tuple(text))

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < BEGIN).decode(errors="replace")


SECOND = Family(
    model_type="second",
    class_prefix="Second",
    config=f"{__name__}:SecondConfig",
    part_features=f"{__name__}:SecondFeatures",
    slot_model=f"{__name__}:SecondSeq2SeqLM",
    prompts=f"{__name__}:SecondPrompts",
)


def second_checkpoint(folder: Path, *, seed: int = 0, end: float = 0.5) -> Path:
    """Write random weights; more `end` ends texts earlier."""
    text = {
        "model_type": "llama", "vocab_size": 260, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        network = SecondSeq2SeqLM(SecondConfig(text_config=text, tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(noise * scale if parameter.dim() > 1 else 1 + noise * 0.1)
        network.lm_head.bias.fill_(0.0)
        network.lm_head.bias[END] = end
    network.save_pretrained(folder)
    return folder
