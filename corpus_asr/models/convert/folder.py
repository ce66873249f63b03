"""Checkpoints from one layout into another: the work of `corpus-asr convert`.

What is written appears complete or not at all, and loads in openai-whisper and in transformers.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.layers.stack import sinusoids
from corpus_asr.families.registry import family_of
from corpus_asr.families.weights import (
    quantized,
    save_weights,
    stored_tensors,
    without_weights,
)
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.generation_config import GenerationConfig, tokens_to_decode
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.convert.openai_files import (
    TIMESTAMPS,
    Dimensions,
    alignment_heads,
    config_values,
    dimensions_of,
    read_openai,
    tensor_names,
    write_openai,
    write_tokenizer_files,
)
from corpus_asr.models.lora import merge_adapter
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor

OPENAI_SUFFIX = ".pt"
INT8 = "int8"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Everything else of a folder is copied as it is.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".msgpack", ".h5", ".index.json")
_OPENAI_VOCABULARIES = (51_864, 51_865, 51_866)
_TIED = "proj_out.weight"
_EMBEDDING = "model.decoder.embed_tokens.weight"
_FIXED = "encoder.embed_positions.weight"
_OPENAI_FIXED = "encoder.positional_embedding"
# The files that OpenAI publishes are in float16, positions included.
_HALF_ROUNDING = 2.0**-10  # twice what rounding to float16 changes numbers up to 1

# Signs that mark speakers, music and noises in subtitles, and are never spoken.
# Source: openai-whisper `tokenizer.py`, `non_speech_tokens`.
_MARKS = [
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))"),
    *("[[", "]]", "{{", "}}", "♪♪", "♪♪♪"),
]
_MUSIC = "♩♪♫♬♭♮♯"
# Allowed within words, not in front of one.
_JOINERS = ("-", "'")


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    tokenizer: Path | None = None,
    adapter: Path | None = None,
) -> str:
    """Convert a checkpoint and return what was written, in words.

    The suffixes select the direction: `.pt` is OpenAI's, all else a folder. A `dtype` of None keeps
    the stored one, and makes float16 of INT8 weights; a .pt source needs a `tokenizer`, a folder of
    Whisper's or OpenAI's .tiktoken file; an `adapter` in PEFT's layout is merged into a folder's.
    """
    if target.exists():
        raise ConfigError(f"converting to {target}: it exists already; give another name")
    if dtype is not None and dtype not in (*DTYPES, INT8):
        known = ", ".join((*DTYPES, INT8))
        raise ConfigError(f"converting to dtype {dtype}: expected one of {known}; correct --dtype")
    if dtype == INT8 and target.suffix == OPENAI_SUFFIX:
        raise ConfigError(
            f"converting to {target} in int8: OpenAI's layout holds float weights only; give a "
            "folder's name as the target, or another --dtype"
        )
    if source.suffix == OPENAI_SUFFIX:
        if adapter is not None:
            raise ConfigError(
                "--adapter is for checkpoint folders: convert the .pt file to a folder first"
            )
        if target.suffix == OPENAI_SUFFIX:
            dimensions, tensors = read_openai(source)
            write_openai(target, dimensions, _typed(tensors, dtype))
            return _words(tensors, target)
        return _openai_to_folder(source, target, dtype, max_shard_size, tokenizer)
    if tokenizer is not None:
        raise ConfigError("--tokenizer is for .pt files: a folder brings its own")
    if target.suffix == OPENAI_SUFFIX:
        return _folder_to_openai(source, target, dtype, adapter)
    return _folder_to_folder(source, target, dtype, max_shard_size, adapter)


def _openai_to_folder(
    source: Path,
    target: Path,
    dtype: str | None,
    max_shard_size: str,
    tokenizer: Path | None,
) -> str:
    if tokenizer is None:
        raise ConfigError(
            f"converting {source}: an OpenAI checkpoint holds no tokenizer; give --tokenizer, a "
            "folder of a Whisper checkpoint with the same vocabulary, or the .tiktoken file of "
            "openai-whisper (multilingual.tiktoken, gpt2.tiktoken for English-only models)"
        )
    dimensions, tensors = read_openai(source)
    names = tensor_names(dimensions)
    if unknown := [name for name in tensors if name not in names]:
        raise CheckpointError(
            f"converting {source}: found tensors that are not Whisper's: "
            f"{', '.join(unknown[:8])}; give an OpenAI Whisper checkpoint"
        )
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    with _appearing(target) as folder:
        if tokenizer.is_dir():
            WhisperTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
        else:
            write_tokenizer_files(tokenizer, folder, vocab_size=dimensions["n_vocab"])
        loaded = WhisperTokenizer.from_pretrained(folder)
        config = _config_for(dimensions, loaded)
        _check_shapes(renamed, config, source)
        config.save_pretrained(folder)
        _generation_for(dimensions, loaded, file_name=source.name).save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=dimensions["n_mels"]).save_pretrained(folder)
        save_weights(folder, _typed(renamed, dtype), max_shard_size=max_shard_size)
    return _words(tensors, target)


def _folder_to_openai(source: Path, target: Path, dtype: str | None, adapter: Path | None) -> str:
    model_type = family_of(source).model_type
    if model_type != WhisperConfig.model_type:
        raise CheckpointError(
            f"converting {source} for openai-whisper: found a checkpoint of {model_type}, expected "
            f"one of {WhisperConfig.model_type}: OpenAI's layout holds no other; give a folder's "
            "name as the target"
        )
    config = WhisperConfig.from_pretrained(source)
    dimensions = dimensions_of(config, where=str(source))
    if config.vocab_size not in _OPENAI_VOCABULARIES:
        raise CheckpointError(
            f"converting {source} for openai-whisper: found {config.vocab_size} tokens, expected "
            f"{', '.join(map(str, _OPENAI_VOCABULARIES))}: its tokenizers are built in; keep this "
            "model in Hugging Face layout"
        )
    # A bare WhisperModel saves its tensors without the prefix `model.`.
    bare = ("encoder.", "decoder.")
    stored = {
        f"model.{name}" if name.startswith(bare) else name: tensor
        for name, tensor in _read_folder(source, dtype, adapter).items()
    }
    if _TIED in stored:
        if not torch.equal(stored[_TIED], stored[_EMBEDDING]):
            raise CheckpointError(
                f"converting {source} for openai-whisper: its output projection differs from its "
                "token embedding, and OpenAI's networks share the two; keep this model in Hugging "
                "Face layout"
            )
        del stored[_TIED]
    names = {name: openai for openai, name in tensor_names(dimensions).items()}
    unknown = next((name for name in stored if name not in names), None)
    if unknown is not None:
        raise CheckpointError(
            f"converting {source} for openai-whisper: it has no place for {unknown}; only models "
            "for transcription can be converted"
        )
    tensors = {names[name]: tensor for name, tensor in stored.items()}
    if _OPENAI_FIXED not in tensors:
        # INT8 checkpoints, and what is made of them, leave out what can be computed.
        sizes = dimensions["n_audio_ctx"], dimensions["n_audio_state"]
        tensors[_OPENAI_FIXED] = sinusoids(*sizes)
    write_openai(target, dimensions, _typed(tensors, dtype))
    return _words(tensors, target)


def _folder_to_folder(
    source: Path,
    target: Path,
    dtype: str | None,
    max_shard_size: str,
    adapter: Path | None,
) -> str:
    tensors = _read_folder(source, dtype, adapter)
    with _appearing(target) as folder:
        for path in source.iterdir():
            if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
                shutil.copyfile(path, folder / path.name)
        save_weights(folder, _typed(tensors, dtype), max_shard_size=max_shard_size)
    return _words(tensors, target)


# The folder takes the target's name once it is whole, so that no run loads half a checkpoint.
@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes folders that others cannot read
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _read_folder(source: Path, dtype: str | None, adapter: Path | None) -> dict[str, Tensor]:
    stored = {name: tensor.read() for name, tensor in stored_tensors(source).items()}
    if adapter is None:
        return stored
    merged = merge_adapter(stored, adapter)
    # Merging computes in float32; without a dtype the folder keeps its own.
    return {name: t if dtype else t.to(stored[name].dtype) for name, t in merged.items()}


def _check_shapes(tensors: Mapping[str, Tensor], config: WhisperConfig, source: Path) -> None:
    with without_weights():
        expected = WhisperForConditionalGeneration(config).state_dict()
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
            f"{', '.join(wrong[:8])}; the file is broken: download it again"
        )


def _typed(tensors: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    if dtype == INT8:
        # The encoder's fixed positions are computed when absent, and 8 bits would round them.
        return quantized({n: t for n, t in tensors.items() if not _is_sinusoids(n, t)})
    wanted = DTYPES[dtype] if dtype else None
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


def _config_for(dimensions: Dimensions, tokenizer: WhisperTokenizer) -> WhisperConfig:
    needed = tokenizer.timestamp_begin + TIMESTAMPS
    if dimensions["n_vocab"] < needed:
        raise CheckpointError(
            f"converting a model of {dimensions['n_vocab']} tokens: its tokenizer has {needed}; "
            "give the one that belongs to it with --tokenizer"
        )
    return WhisperConfig(
        **config_values(dimensions),
        decoder_start_token_id=tokenizer.sot,
        bos_token_id=tokenizer.eot,
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        begin_suppress_tokens=_begin_suppressed(tokenizer),
        suppress_tokens=_suppressed(tokenizer),
    )


def _generation_for(
    dimensions: Dimensions, tokenizer: WhisperTokenizer, *, file_name: str
) -> GenerationConfig:
    return GenerationConfig(
        **tokens_to_decode(tokenizer),
        bos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        suppress_tokens=_suppressed(tokenizer),
        begin_suppress_tokens=_begin_suppressed(tokenizer),
        alignment_heads=alignment_heads(file_name, dimensions),
        max_length=dimensions["n_text_ctx"],
    )


def _begin_suppressed(tokenizer: WhisperTokenizer) -> tuple[int, ...]:
    # No text begins with a space or ends before it began.
    return (*tokenizer.encode(" ", add_special_tokens=False), tokenizer.eot)


def _suppressed(tokenizer: WhisperTokenizer) -> tuple[int, ...]:
    encode = partial(tokenizer.encode, add_special_tokens=False)
    tokens = {encode(f" {joiner}")[0] for joiner in _JOINERS}
    for mark in (*_MARKS, *_MUSIC):
        for ids in (encode(mark), encode(f" {mark}")):
            # The musical signs share their first bytes with nothing but other signs.
            if len(ids) == 1 or mark in _MUSIC:
                tokens.add(ids[0])
    start_of_lm = tokenizer.start_of_prev - 1
    tokens |= {tokenizer.translate, tokenizer.transcribe, tokenizer.no_speech}
    tokens |= {tokenizer.sot, tokenizer.start_of_prev, start_of_lm}
    return tuple(sorted(tokens))
