"""Small Speech2Text tokenizers: SentencePiece models trained in the test, on made-up words.

In: a folder and a layout. Out: vocab.json, the SentencePiece model and tokenizer_config.json, as
published checkpoints have them: the ids of vocab.json are those of the model.
"""

import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import transformers

LANGUAGES = ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")
_SYLLABLES = ("ba", "der", "fi", "gra", "hou", "ka", "lo", "min", "no", "pré", "sta", "tü", "vo")


def made_words(count: int, seed: int = 0) -> list[str]:
    """Return words of two or three syllables."""
    draw = random.Random(seed)
    return ["".join(draw.choices(_SYLLABLES, k=draw.choice((2, 3)))) for _ in range(count)]


@cache
def trained_model(kind: str = "unigram", languages: tuple[str, ...] = LANGUAGES) -> bytes:
    """Train a model of about a hundred pieces in a twentieth of a second.

    Args:
        kind: `unigram` or `bpe`.
        languages: those that have a token `<lang:code>`.
    """
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
    """Write a tokenizer's files and return the folder.

    Args:
        folder: made if needed.
        kind: `unigram` or `bpe`.
        languages: target languages; with all eight, `lang_codes="mustc"` may be given.
        saved: whether transformers writes its own files too, or there are but the two.
        settings: of the tokenizer.
    """
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
