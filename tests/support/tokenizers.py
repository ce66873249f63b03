"""Tokenizers in the layouts of both families made on the spot, so that no test needs a download."""

import io
import json
import random
import warnings
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.languages import LANGUAGES

KINDS = ["tiny", "tiny-english", "v2", "v3", "english"]  # layouts of files
END = "<|endoftext|>"
CODES_V3 = tuple(LANGUAGES)
CODES_V2 = CODES_V3[:-1]  # Cantonese came with large-v3
TIMESTAMPS = tuple(f"<|{step * 0.02:.2f}|>" for step in range(1501))

_LINES = (
    "And so my fellow Americans, ask not what your country can do for you,",
    "ask what you can do for your country.",
    "The north wind and the sun were disputing which was the stronger.",
    "Der Nordwind und die Sonne stritten sich, wer von ihnen beiden der Stärkere wäre.",
    "北風と太陽が、どちらが強いかを言い争っていました。",
    "Однажды северный ветер и солнце заспорили, кто из них сильнее.",
)
_TINY_MERGES = 200


def tiny_tokenizer(folder: Path, multilingual: bool = True) -> int:
    """Write a small tokenizer of about 450 text tokens; returns the size of the vocabulary.

    English-only ones have no language tokens: the real ones are told apart by their sizes.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + _TINY_MERGES, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    codes: Sequence[str] = CODES_V2 if multilingual else ()
    return write_tokenizer(folder, model["vocab"], merges, codes)


def real_tokenizer(folder: Path, *, multilingual: bool = True, cantonese: bool = False) -> int:
    """Write openai-whisper's vocabulary in Hugging Face layout; returns its size.

    51,864 English-only, 51,865 multilingual, 51,866 with Cantonese.
    """
    vocab, merges = _openai_vocabulary(multilingual)
    codes = CODES_V3 if cantonese else CODES_V2
    return write_tokenizer(folder, vocab, merges, codes, no_speech="<|nocaptions|>")


@cache
def _openai_vocabulary(multilingual: bool) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    import whisper.tokenizer

    assets = Path(whisper.tokenizer.__file__).parent / "assets"
    path = assets / ("multilingual.tiktoken" if multilingual else "gpt2.tiktoken")
    ranks = {
        b64decode(line.split()[0]) if len(line.split()) == 2 else b"": int(line.split()[-1])
        for line in path.read_text().splitlines()
    }
    letters = _byte_letters()
    spelled = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = [
        tuple(spelled[part] for part in _parts(token, ranks)) for token in ranks if len(token) > 1
    ]
    return {spelled[token]: rank for token, rank in ranks.items()}, merges


def write_tokenizer(
    folder: Path,
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, ...]],
    codes: Sequence[str],
    *,
    no_speech: str = "<|nospeech|>",
) -> int:
    """Write all files of a tokenizer with Whisper's control tokens after `vocab`."""
    folder.mkdir(parents=True, exist_ok=True)
    special = [END, "<|startoftranscript|>", *(f"<|{code}|>" for code in codes)]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    special += [no_speech, "<|notimestamps|>"]
    vocab = {**vocab, END: len(vocab)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[(left, right) for left, right in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=True) for t in TIMESTAMPS])
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {t: tokenizer.token_to_id(t) for t in [*special[1:], *TIMESTAMPS]}
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END)
    names = {**roles, "additional_special_tokens": special}
    settings = {**names, "add_prefix_space": False, "errors": "replace"}
    settings |= {"model_max_length": 1024, "tokenizer_class": "WhisperTokenizer"}
    _write_json(folder / "vocab.json", vocab)
    _write_json(folder / "added_tokens.json", added)
    _write_json(folder / "special_tokens_map.json", names)
    _write_json(folder / "tokenizer_config.json", settings)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return tokenizer.get_vocab_size(with_added_tokens=True)


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Merge bytes by rank until two parts are left: the pair that makes `token`."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        i = pairs.index(min(pairs))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _byte_letters() -> dict[int, str]:
    """The printable letter of each byte. Source: openai/gpt-2, encoder.py, bytes_to_unicode."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += [*range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


TARGETS = ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")
_SYLLABLES = ("ba", "der", "fi", "gra", "hou", "ka", "lo", "min", "no", "pré", "sta", "tü", "vo")


def made_words(count: int, seed: int = 0) -> list[str]:
    """Return words of two or three syllables."""
    draw = random.Random(seed)
    return ["".join(draw.choices(_SYLLABLES, k=draw.choice((2, 3)))) for _ in range(count)]


@cache
def trained_model(kind: str = "unigram", languages: tuple[str, ...] = TARGETS) -> bytes:
    """Train a model of about a hundred pieces in a twentieth of a second."""
    words = made_words(300)
    lines = (" ".join(words[i : i + 6]) for i in range(0, 300, 6))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type=kind,
        vocab_size=110,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        user_defined_symbols=[f"<lang:{code}>" for code in languages],
        minloglevel=2,
    )
    return model.getvalue()


def tiny_speech2text_tokenizer(
    folder: Path,
    *,
    kind: str = "unigram",
    languages: tuple[str, ...] = (),
    saved: bool = True,
    **settings: Any,
) -> Path:
    """Write a tokenizer's files and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = trained_model(kind, languages)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.IdToPiece(i): i for i in range(len(pieces))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    if saved:
        files = (str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
        transformers.Speech2TextTokenizer(*files, **settings).save_pretrained(folder)
    return folder


def tiny_parakeet_tokenizer(folder: Path, kind: str = "TDT") -> int:
    """Write a tokenizer.json as transformers makes it of NeMo's model; return its size.

    Bytes stand for characters that no piece has; a transducer's blank is the last token, and CTC's
    the padding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    first = ["<unk>"] if kind == "CTC" else ["<unk>", "<|nospeech|>", "<pad>"]
    names = [*first, *(f"<0x{value:02X}>" for value in range(256))]
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=names, show_progress=False, initial_alphabet=list(".,?")
    )
    tokenizer.train_from_iterator([" ".join(made_words(300))], trainer)
    # Bytes are pieces like others; the trainer takes only special ones.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] in first]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    last = ["<pad>"] if kind == "CTC" else ["<blank>"]
    tokenizer.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in last])
    padding = "<blank>" if kind == "RNNT" else "<pad>"
    # transformers 4 has the same tokenizer under another name.
    (getattr(transformers, "ParakeetTokenizer", None) or transformers.ParakeetTokenizerFast)(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=padding,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size(with_added_tokens=True)


class TokenizerPair:
    """A tokenizer of the package and that of transformers, loaded from one folder."""

    def __init__(self, folder: Path, own: Any = WhisperTokenizer, **options: Any) -> None:
        reference = getattr(transformers, own.__name__)
        self.ours: Any = own.from_pretrained(folder, **options)
        self.theirs: Any = reference.from_pretrained(folder, **options)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.ours, self.theirs))

    def agree(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of both, and return what both return."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both warn of lengths without effect
            ours, theirs = (getattr(one, method)(*args, **options) for one in self)
        assert same_values(ours, theirs), (method, args, options, ours, theirs)
        return ours


def same_values(ours: Any, theirs: Any) -> bool:
    """Whether two results are equal, also in the types of their arrays."""
    if hasattr(theirs, "keys"):
        return ours.keys() == theirs.keys() and all(same_values(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, np.ndarray | torch.Tensor):
        alike = type(ours) is type(theirs) and ours.dtype == theirs.dtype
        return alike and ours.shape == theirs.shape and bool((ours == theirs).all())
    return bool(ours == theirs)
