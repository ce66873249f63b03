"""NeMo's archives of Parakeet read for transformers' layout: a part of `convert`.

Names and files are those that transformers 5.23 makes of the same archive
(`models/parakeet/convert_nemo_to_hf.py`). Nothing of an archive is run, and no member's name is
used as a path.
"""

import base64
import gzip
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.parakeet.config import (
    ParakeetConfig,
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
)
from corpus_asr.families.parakeet.model import ParakeetCTC, ParakeetRNNT, ParakeetTDT
from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
from corpus_asr.families.registry import unlike
from corpus_asr.families.saved_files import MAX_SAVED_BYTES, shortened, write_json_object
from corpus_asr.families.tokenizer import TOKENIZER_NAME
from corpus_asr.families.weights import read_pickled
from corpus_asr.models.parakeet.processor import ParakeetFeatureExtractor, ParakeetProcessor

NEMO_SUFFIX = ".nemo"
_SETTINGS, _WEIGHTS = "model_config.yaml", "model_weights.ckpt"
# Of settings, a vocabulary that is listed twice makes most.
_MOST_YAML_BYTES = MAX_SAVED_BYTES // 4
# Weights hardly get smaller; settings and vocabularies do, and are small.
_MOST_UNFOLDED = 4
_MOST_MEMBERS = 100

_HYBRID = "EncDecHybridRNNTCTCBPEModel"
_HEADS_OF = {
    "EncDecCTCModelBPE": ("ctc",),
    "EncDecRNNTBPEModel": ("transducer",),
    _HYBRID: ("transducer", "ctc"),
}

# In NeMo's settings by ours, and the values that are NeMo's where a file has none.
_ENCODER = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "feat_in": "num_mel_bins",
    "conv_kernel_size": "conv_kernel_size",
    "subsampling_factor": "subsampling_factor",
    "subsampling_conv_channels": "subsampling_conv_channels",
    "pos_emb_max_len": "max_position_embeddings",
    "dropout": "dropout",
    "dropout_emb": "dropout_positions",
    "dropout_att": "attention_dropout",
    "xscaling": "scale_input",
    "use_bias": "attention_bias",
    "stochastic_depth_drop_prob": "layerdrop",
}
_ENCODER_DEFAULTS = {
    "n_heads": 4, "conv_kernel_size": 31, "subsampling_factor": 4, "pos_emb_max_len": 5000,
    "dropout": 0.1, "dropout_emb": 0.1, "dropout_att": 0.0, "xscaling": True, "use_bias": True,
    "stochastic_depth_drop_prob": 0.0,
}  # fmt: skip
# The network and the features that are computed here. Files before an option have none of it.
_NETWORK = {
    "subsampling": "dw_striding", "self_attention_model": "rel_pos", "conv_norm_type": "batch_norm",
    "untie_biases": True, "causal_downsampling": False, "reduction": None,
    "att_context_style": "regular", "conv_context_size": None,
}  # fmt: skip
# The same network, which computes a limited context in less time.
_LOCAL = "rel_pos_local_attn"
_FEATURES = {
    "sample_rate": 16_000, "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01,
    "window": "hann", "n_fft": 512, "log": True, "frame_splicing": 1, "mag_power": 2.0,
}  # fmt: skip

_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^encoder\.pre_encode\.conv\.", "encoder.subsampling.layers."),
        (r"^encoder\.pre_encode\.out\.", "encoder.subsampling.linear."),
        (r"\.conv\.batch_norm\.", ".conv.norm."),
        (r"\.linear_([qkv])\.", r".\1_proj."),
        (r"\.linear_out\.", ".o_proj."),
        (r"\.linear_pos\.", ".relative_k_proj."),
        (r"\.pos_bias_([uv])$", r".bias_\1"),
        (r"^(ctc_)?decoder\.decoder_layers\.0\.", "ctc_head."),
        (r"^decoder\.prediction\.embed\.", "decoder.embedding."),
        (r"^decoder\.prediction\.dec_rnn\.lstm\.", "decoder.lstm."),
        (r"^joint\.enc\.", "encoder_projector."),
        (r"^joint\.pred\.", "decoder.decoder_projector."),
        # Dropout is a layer between the activation and this one, if there is any.
        (r"^joint\.joint_net\.[12]\.", "joint.head."),
    )
)
# Computed here: filters, the window and the encodings of positions.
_COMPUTED = ("preprocessor.", "encoder.pos_enc.")
_OTHER_HEAD = {"ctc": ("decoder.prediction.", "joint."), "transducer": ("ctc_decoder.",)}

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # SentencePiece's kinds of pieces
_NORMAL, _UNKNOWN = 1, 2
_LONGEST_PIECE = 256
_SPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoModel:
    """What an archive holds, named as in transformers."""

    network: type[Any]
    config: ParakeetConfig
    tensors: Mapping[str, Tensor]
    tokenizer: dict[str, Any]
    """The content of tokenizer.json."""
    roles: dict[str, Any]
    preemphasis: float

    def save_settings(self, folder: Path) -> None:
        """Write every file but the weights."""
        self.config.save_pretrained(folder)
        if isinstance(self.config, ParakeetRNNTConfig):
            # transformers begins with the blank, and would take scores of durations for tokens.
            size, durations = self.config.vocab_size, getattr(self.config, "durations", ())
            generation: dict[str, Any] = {"decoder_start_token_id": self.config.blank_token_id}
            if durations:
                generation["suppress_tokens"] = list(range(size, size + len(durations)))
            write_json_object(folder / "generation_config.json", generation)
        write_json_object(folder / TOKENIZER_NAME, self.tokenizer)
        ParakeetProcessor(
            ParakeetFeatureExtractor(
                feature_size=self.config.encoder_config.num_mel_bins, preemphasis=self.preemphasis
            ),
            ParakeetTokenizer(folder / TOKENIZER_NAME, **self.roles),
            decoder_type=self.config.model_type.removeprefix("parakeet_"),
        ).save_pretrained(folder)


def read_nemo(source: Path, place: Path, *, head: str | None) -> NemoModel:
    """Read an archive, whose weights are unpacked into `place` and stay there.

    A `head` of None is the transducer of a hybrid.

    Raises:
        CheckpointError: the archive is broken, or of a model that is not computed here.
        ConfigError: it has no such head.
    """
    files = _unpacked(source, place)
    try:
        settings = _loaded(files[_SETTINGS])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _broken(source, f"no readable {_SETTINGS} ({_line(error)})") from error
    kind = str(settings.get("target")) if isinstance(settings, dict) else "no settings"
    heads = _HEADS_OF.get(kind.rpartition(".")[2])
    if heads is None:
        raise CheckpointError(
            f"converting {source}: found {shortened(kind.rpartition('.')[2])}, expected one of "
            f"{', '.join(_HEADS_OF)}: other models of NeMo, such as Canary, are not computed "
            "here; give a Parakeet checkpoint"
        )
    if head not in (None, *heads):
        raise ConfigError(
            f"converting {source}: found --head {head}, expected {' or '.join(heads)}, which this "
            "model has; correct or leave out --head"
        )
    head = head or heads[0]
    try:
        stored = read_pickled(place / _WEIGHTS)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(place), str(source))) from error
    left_out = (*_COMPUTED, *(_OTHER_HEAD[head] if len(heads) > 1 else ()))
    tensors = {
        _renamed(name): tensor.read()
        for name, tensor in stored.items()
        if not name.startswith(left_out)
    }
    try:
        pieces = _pieces(files[_vocabulary_name(settings, files)])
        config = _config(settings, head, len(pieces.pieces))
        tokenizer, roles = _tokenizer(pieces, config)
        preemphasis = _preemphasis(settings, config.encoder_config.num_mel_bins)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"converting {source}: {_line(error)}; give a Parakeet checkpoint, or download it again"
        ) from error
    _check_vocabulary(source, tensors, config)
    networks = {ParakeetCTCConfig: ParakeetCTC, ParakeetRNNTConfig: ParakeetRNNT}
    return NemoModel(
        network=networks.get(type(config), ParakeetTDT),
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        roles=roles,
        preemphasis=preemphasis,
    )


# The archive


class _Bounded:
    """A file that ends in an error after so many bytes."""

    def __init__(self, file: BinaryIO | gzip.GzipFile, left: int) -> None:
        self._file, self._left = file, left

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it unfolds to more than {_MOST_UNFOLDED} times its size")
        return data


def _unpacked(source: Path, place: Path) -> dict[str, bytes]:
    """Write the weights into `place`; return settings and vocabularies by name."""
    files: dict[str, bytes] = {}
    try:
        with source.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        limit = _MOST_UNFOLDED * source.stat().st_size + MAX_SAVED_BYTES
        with gzip.open(source) if packed else source.open("rb") as file:
            # As a stream: every byte is counted, those of members that are passed over, too.
            bounded: Any = _Bounded(file, limit)
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                for member in archive:
                    _take(archive, member, files, place)
        if lacks := {_SETTINGS, _WEIGHTS} - {*files, *(path.name for path in place.iterdir())}:
            raise ValueError(f"it lacks {' and '.join(sorted(lacks))}")
    except Exception as error:  # a reader fed garbage raises nearly anything
        raise _broken(source, f"no readable NeMo archive ({_line(error)})") from error
    return files


def _take(
    archive: tarfile.TarFile, member: tarfile.TarInfo, files: dict[str, bytes], place: Path
) -> None:
    name = member.name.removeprefix("./")
    # A sparse file is as large as it says, whatever is stored of it.
    content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None or len(files) > _MOST_MEMBERS:
        return
    if name == _WEIGHTS:
        with (place / _WEIGHTS).open("wb") as weights:
            shutil.copyfileobj(content, weights)
    elif name == _SETTINGS or name.endswith(".model"):
        most = _MOST_YAML_BYTES if name == _SETTINGS else MAX_SAVED_BYTES
        if member.size > most:
            raise ValueError(f"{shortened(name)} has {member.size:,} bytes, more than {most:,}")
        files[name] = content.read()


def _loaded(text: bytes) -> Any:
    """Read YAML, which can repeat itself by aliases to any length."""
    content = yaml.safe_load(text)
    left, waiting = _MOST_UNFOLDED * len(text), [content]
    while waiting:
        value = waiting.pop()
        left -= len(value) if isinstance(value, str | list | dict) else 0
        if left < 0:
            raise ValueError(f"it unfolds to more than {_MOST_UNFOLDED} times its size")
        if isinstance(value, list | dict):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return content


def _broken(source: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"reading {source}: found {found}, expected a tar file with {_SETTINGS}, {_WEIGHTS} and a "
        "SentencePiece model; download it again"
    )


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


# Settings


def _section(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    found: Any = settings
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"found no settings {'.'.join(names)} in {_SETTINGS}")
    return found


def _config(settings: Mapping[str, Any], head: str, num_pieces: int) -> ParakeetConfig:
    encoder = _encoder_config(_section(settings, "encoder"))
    blank = num_pieces
    common: dict[str, Any] = {"encoder_config": encoder, "vocab_size": num_pieces + 1}
    if head == "ctc":
        return ParakeetCTCConfig(**common, architectures=["ParakeetForCTC"], pad_token_id=blank)
    prediction, joint = _section(settings, "decoder", "prednet"), _section(settings, "joint")
    common |= {
        "blank_token_id": blank,
        "pad_token_id": blank,
        "decoder_hidden_size": prediction.get("pred_hidden"),
        "num_decoder_layers": prediction.get("pred_rnn_layers"),
        "hidden_act": _section(joint, "jointnet").get("activation"),
    }
    if not joint.get("num_extra_outputs"):
        return ParakeetRNNTConfig(**common, architectures=["ParakeetForRNNT"])
    durations = _section(settings, "decoding").get("durations")
    if not isinstance(durations, list):
        durations = _section(settings, "model_defaults").get("tdt_durations")
    if not isinstance(durations, list) or len(durations) != joint["num_extra_outputs"]:
        raise ValueError(
            f"found {shortened(durations)} as decoding.durations in {_SETTINGS}, expected "
            f"{shortened(joint['num_extra_outputs'])} durations"
        )
    common |= {"durations": tuple(durations), "architectures": ["ParakeetForTDT"]}
    return ParakeetTDTConfig(**common)


def _encoder_config(encoder: dict[str, Any]) -> ParakeetEncoderConfig:
    context = encoder.get("att_context_size")
    if isinstance(context, list) and len(context) == 1:
        context = context[0]  # the only one of several
    if context == [-1, -1]:
        context = None  # the whole recording
    if context is not None and encoder.get("self_attention_model") == _LOCAL:
        encoder = encoder | {"self_attention_model": _NETWORK["self_attention_model"]}
    if wrong := unlike({"subsampling": "striding"} | encoder, _NETWORK):
        raise ValueError(f"found an encoder with {', '.join(wrong)} in {_SETTINGS}")
    given = _ENCODER_DEFAULTS | {n: v for n, v in encoder.items() if n in _ENCODER}
    values = {_ENCODER[name]: value for name, value in given.items()}
    if missing := sorted(set(_ENCODER.values()) - values.keys()):
        raise ValueError(f"found no {', '.join(missing)} of the encoder in {_SETTINGS}")
    values["intermediate_size"] = encoder.get("ff_expansion_factor", 4) * values["hidden_size"]
    return ParakeetEncoderConfig(
        **values,
        att_context_size=tuple(context) if isinstance(context, list) else context,
        convolution_bias=values["attention_bias"],
        activation_dropout=values["dropout"],
    )


def _preemphasis(settings: Mapping[str, Any], num_mel_bins: int) -> float:
    features = {"window_size": 0.02, "features": 64} | _section(settings, "preprocessor")
    wanted = _FEATURES | {"features": num_mel_bins}
    # NeMo takes the next power of two.
    given = {n: v for n, v in features.items() if (n, v) != ("n_fft", None)}
    value = features.get("preemph", 0.97) or 0.0
    if wrong := unlike(given, wanted):
        raise ValueError(f"found a preprocessor with {', '.join(wrong)} in {_SETTINGS}")
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"found preemph {shortened(value)} in {_SETTINGS}, expected 0 to 1")
    return float(value)


# Tensors


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return name


def _check_vocabulary(source: Path, tensors: Mapping[str, Tensor], config: ParakeetConfig) -> None:
    extra = len(getattr(config, "durations", ()))
    name = "ctc_head.weight" if isinstance(config, ParakeetCTCConfig) else "joint.head.weight"
    if name in tensors and len(tensors[name]) != config.vocab_size + extra:
        raise CheckpointError(
            f"converting {source}: found a vocabulary of {config.vocab_size - 1} pieces and a head "
            f"of {len(tensors[name])} scores, expected {config.vocab_size + extra}; the files are "
            "of different models: download it again"
        )


# The vocabulary


def _vocabulary_name(settings: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    tokenizer = _section(settings, "tokenizer")
    if tokenizer.get("type") != "bpe":
        kind = shortened(tokenizer.get("type"))
        raise ValueError(f"found a tokenizer of type {kind} in {_SETTINGS}, expected 'bpe'")
    # In archives paths begin with a mark of NeMo's.
    named = str(tokenizer.get("model_path")).removeprefix("nemo:").removeprefix("./")
    models = sorted(name for name in files if name != _SETTINGS)
    if named not in models and len(models) != 1:
        raise ValueError(
            f"found {len(models)} SentencePiece models, expected {shortened(named)}, which "
            f"{_SETTINGS} names, or one"
        )
    return named if named in models else models[0]


def _pieces(data: bytes) -> Any:
    try:
        found: Any = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
    except Exception as error:  # of a library that is not otherwise used here
        raise ValueError(f"found no readable SentencePiece model ({_line(error)})") from error
    names = [piece.piece for piece in found.pieces]
    if not names or len(set(names)) != len(names) or max(map(len, names)) > _LONGEST_PIECE:
        raise ValueError(
            f"found {len(names)} pieces in the SentencePiece model, expected some, each once and "
            f"of at most {_LONGEST_PIECE} characters"
        )
    return found


def _tokenizer(model: Any, config: ParakeetConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of tokenizer.json and the names of the unknown and the padding token."""
    kinds = {piece.piece: piece.type for piece in model.pieces}
    unknown = model.trainer_spec.unk_piece
    # A transducer's blank; of CTC, the padding is the blank.
    last = "<pad>" if config.model_type == "parakeet_ctc" and "<pad>" not in kinds else "<blank>"
    if last in kinds or unknown not in kinds:
        raise ValueError(f"found a vocabulary with {last}, or without {shortened(unknown)}")
    padding = last if config.model_type != "parakeet_tdt" or "<pad>" not in kinds else "<pad>"
    ids = {name: number for number, name in enumerate([*kinds, last])}
    config.pad_token_id = ids[padding]
    special = {padding, unknown, last} | {n for n, kind in kinds.items() if kind == _CONTROL}
    added = special | {name for name, kind in kinds.items() if kind == _USER_DEFINED}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    decoders = [{"type": "ByteFallback"}] if _BYTE in kinds.values() else []
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[name], "content": name, "special": name in special, **flags}
            for name in sorted(added, key=ids.__getitem__)
        ],
        "normalizer": _normalizer(model.normalizer_spec.precompiled_charsmap),
        "pre_tokenizer": _SPACE,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*decoders, _SPACE]} if decoders else _SPACE,
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {name: ids[name] for name in kinds},
            "merges": _merges(model, kinds),
        },
    }
    return content, {"unk_token": unknown, "pad_token": padding}


def _normalizer(charsmap: bytes) -> dict[str, Any]:
    mapped = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    steps: list[dict[str, Any]] = [
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    ]
    return {"type": "Sequence", "normalizers": [mapped, *steps] if charsmap else steps}


def _merges(model: Any, kinds: Mapping[str, int]) -> list[list[str]]:
    """Return which pieces join to another, the likeliest first: SentencePiece does not store it."""
    scored = []
    for number, piece in enumerate(model.pieces):
        name = piece.piece
        for at in range(1, len(name) if piece.type == _NORMAL else 0):
            left, right = name[:at], name[at:]
            if left in kinds and right in kinds:
                scored.append((-piece.score, -len(left), number, [left, right]))
    return [pair for *_, pair in sorted(scored, key=lambda entry: entry[:3])]
