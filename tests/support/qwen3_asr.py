"""Tiny random Qwen3-ASR checkpoints with tokenizer and processor, written by transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from corpus_asr.families.qwen3_asr.model import Qwen3ASRSeq2SeqLM

END, OTHER_END, PLACEHOLDER, MARKER = "<|im_end|>", "<|endoftext|>", "<|audio_pad|>", "<asr_text>"
_SPECIAL = (OTHER_END, "<|im_start|>", END, "<|audio_start|>", "<|audio_end|>", PLACEHOLDER)
_LINES = (
    "language English The north wind and the sun were disputing which was the stronger.",
    "language German Der Nordwind und die Sonne stritten sich, wer von ihnen der Stärkere wäre.",
    "system user assistant",
    "北風と太陽が、どちらが強いかを言い争っていました。",
)
# As published: a system message, empty if there is none, then audio alone.
TEMPLATE = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for m in messages if m.role == 'system' -%}"
    "{%- set ns.system = m.content[0].text -%}{%- endfor -%}"
    "<|im_start|>system\n{{ ns.system }}<|im_end|>\n"
    "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
    "<|im_start|>assistant\n"
    "{% for m in messages if m.role == 'assistant' -%}{{ m.content[0].text }}{%- endfor -%}"
)
AUDIO = {
    "num_mel_bins": 128, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "d_model": 32, "downsample_hidden_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """The same weights here and in transformers."""

    ours: Any
    theirs: Any
    folder: Path

    @property
    def slots(self) -> Any:
        """The form for decoding."""
        return self.ours.slot_model()


def tiny_tokenizer(folder: Path) -> dict[str, int]:
    """Write a byte-level tokenizer with the control tokens; return the ID of every token."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + 100, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    roles = {
        "audio_token": PLACEHOLDER, "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }  # fmt: skip
    theirs = transformers.Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token=END,
        pad_token=OTHER_END,
        extra_special_tokens=roles,
    )
    theirs.add_tokens(list(_SPECIAL), special_tokens=True)
    theirs.add_tokens([MARKER, "<timestamp>"])
    theirs.save_pretrained(folder)
    return dict(theirs.get_vocab())


def _config(folder: Path, text: dict[str, Any], audio: dict[str, Any], **more: Any) -> Any:
    if not hasattr(transformers, "Qwen3ASRForConditionalGeneration"):
        pytest.skip(f"transformers {transformers.__version__} has no Qwen3-ASR")
    ids = tiny_tokenizer(folder)
    text_config = {"model_type": "qwen3", **TEXT, **text, "vocab_size": max(ids.values()) + 9}
    audio_config = {"model_type": "qwen3_asr_encoder", **AUDIO, **audio}
    audio_config["output_dim"] = text_config["hidden_size"]
    config = transformers.Qwen3ASRConfig(
        audio_config=audio_config,
        text_config=text_config,
        audio_token_id=ids[PLACEHOLDER],
        timestamp_token_id=ids["<timestamp>"],
        eos_token_id=[ids[OTHER_END], ids[END]],
        pad_token_id=ids[OTHER_END],
        **more,
    )
    return config, ids


def _save(theirs: Any, folder: Path) -> None:
    theirs.save_pretrained(folder)
    transformers.Qwen3ASRProcessor(
        transformers.Qwen3ASRFeatureExtractor(feature_size=theirs.config.audio_config.num_mel_bins),
        transformers.AutoTokenizer.from_pretrained(folder),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def qwen3_asr_pair(
    folder: Path,
    *,
    seed: int = 0,
    ends: float = 2.0,
    text: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
    tied: bool = False,
) -> Pair:
    """Write a random checkpoint and load it by both; more `ends` make the end of texts likelier."""
    config, ids = _config(folder, text or {}, audio or {}, tie_word_embeddings=tied)
    theirs = transformers.Qwen3ASRForConditionalGeneration(config).eval()
    _randomize(theirs, seed=seed)
    with torch.no_grad():
        theirs.lm_head.weight[[ids[OTHER_END], ids[END]]] *= 1.0 if tied else ends
    _save(theirs, folder)
    return Pair(ours=Qwen3ASRSeq2SeqLM.from_pretrained(folder), theirs=theirs, folder=folder)


def qwen3_asr_aligner(folder: Path, *, seed: int = 0) -> tuple[Any, dict[str, int]]:
    """Write a random checkpoint of an aligner of 100 times; return it and the IDs of tokens."""
    config, ids = _config(folder, {}, {}, num_labels=100, tie_word_embeddings=False)
    theirs = transformers.Qwen3ASRForTokenClassification(config).eval()
    _randomize(theirs, seed=seed)
    _save(theirs, folder)
    return theirs, ids


def _randomize(network: Any, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)
            else:  # norms and biases
                parameter.add_(noise * 0.1)
