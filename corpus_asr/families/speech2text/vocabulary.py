"""Reading of a SentencePiece model as a `tokenizers.Tokenizer` with the IDs of vocab.json."""

import struct
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import read_json_object

BLANK = "▁"
"""SentencePiece's symbol for a space."""

# Fields and values of `ModelProto`. Source: sentencepiece 0.2.1, sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_NORMAL, _USER_DEFINED = 1, 4
_MODEL_TYPE, _UNIGRAM, _BPE, _CHARACTERS = 3, 1, 2, 4
_CHARACTER_MAP, _DUMMY_PREFIX, _ONE_SPACE = 2, 3, 4


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read vocab.json; raises CheckpointError."""
    content = read_json_object(path)
    # Not `isinstance`: true is an int in Python, but no ID.
    if not all(type(i) is int for i in content.values()) or (
        sorted(content.values()) != [*range(len(content))]
    ):
        raise CheckpointError(
            f"reading {path}: found no vocabulary, expected tokens and their ids, each once, from "
            f"0 without gaps; fetch the checkpoint again"
        )
    return dict(sorted(content.items(), key=lambda pair: pair[1]))


def piece_tokenizer(
    model: bytes, vocabulary: dict[str, int], *, unknown: str, lower: bool
) -> Tokenizer:
    """Make a tokenizer from the content of a SentencePiece model.

    The pieces of a text are SentencePiece's, save where two ways to split it have one probability.

    Raises:
        ValueError: the content is no model, one of another kind, or of another vocabulary.
    """
    try:
        content = _read_message(model)
        trainer, normalizer = (_read_message(content[i][0]) for i in (_TRAINER, _NORMALIZER))
        scores = _read_scores(content[_PIECES])
    except (IndexError, OverflowError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"no message of its kind: {error}") from error
    spaces = [normalizer.get(name, [1])[0] for name in (_DUMMY_PREFIX, _ONE_SPACE)]
    kind = trainer.get(_MODEL_TYPE, [_UNIGRAM])[0]
    if kind not in (_UNIGRAM, _BPE, _CHARACTERS) or not all(spaces):
        raise ValueError(f"type {kind} and spaces {spaces}, expected 1, 2 or 4, and [1, 1]")
    if foreign := scores.keys() - vocabulary.keys():
        raise ValueError(f"{len(foreign)} pieces such as {min(foreign)!r} that vocab.json lacks")
    if kind == _BPE:
        halves = (
            (piece[:i], piece[i:])
            for piece in sorted(scores, key=lambda piece: -scores[piece])
            for i in range(1, len(piece))
        )
        merges = [pair for pair in halves if scores.keys() >= {*pair}]
        tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True))
    else:
        # Tokens that no text has, such as control tokens, are only found where nothing else is.
        least = min(scores.values())
        pieces = [(token, scores.get(token, least)) for token in vocabulary]
        tokenizer = Tokenizer(Unigram(pieces, unk_id=vocabulary[unknown]))
    steps: list[Any] = [normalizers.Lowercase()] if lower else []
    if any(normalizer.get(_CHARACTER_MAP, ())):
        steps.append(normalizers.Precompiled(normalizer[_CHARACTER_MAP][0]))
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    # Texts between added tokens are stripped as well, which a normalizer would not do.
    strip = pre_tokenizers.Split(Regex("^ +| +$"), behavior="removed")
    mark = pre_tokenizers.Metaspace(replacement=BLANK, split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([strip, mark])
    return tokenizer


def _read_scores(pieces: list[bytes]) -> dict[str, float]:
    """Return the score of each piece that texts are split into."""
    scores, user_defined = {}, []
    for fields in map(_read_message, pieces):
        piece = fields[_PIECE][0].decode()
        kind = fields.get(_TYPE, [_NORMAL])[0]
        if kind == _NORMAL:
            (scores[piece],) = struct.unpack("<f", fields[_SCORE][0])
        elif kind == _USER_DEFINED:
            user_defined.append(piece)
    # Always preferred. Source: sentencepiece 0.2.1, unigram_model.cc, EncodeOptimized.
    most = max(scores.values())
    return scores | {piece: len(piece.encode()) * most - 0.1 for piece in user_defined}


def _read_message(message: bytes) -> dict[int, list[Any]]:
    """Return the values of a message of Protocol Buffers, by the number of their field."""
    stream, fields = BytesIO(message), defaultdict[int, list[Any]](list)
    while stream.tell() < len(message):
        number, kind = divmod(_read_number(stream), 8)
        if kind == 0:
            fields[number].append(_read_number(stream))
            continue
        size = {1: 8, 5: 4}.get(kind) or _read_number(stream)
        value = stream.read(size)
        if kind not in (1, 2, 5) or len(value) < size:
            raise ValueError(f"field {number} of kind {kind} ends after {len(value)} bytes")
        fields[number].append(value)
    return fields


def _read_number(stream: BytesIO) -> int:
    # Seven bits a byte, the lowest first; the eighth says that more follow.
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number has more than 64 bits")
