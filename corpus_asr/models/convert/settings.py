"""The settings files of a Hugging Face folder, for weights that came without any.

In: an OpenAI checkpoint's dimensions and the tokenizer that belongs to it. Out: config.json and
generation_config.json as values. Knows no weights.
"""

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.convert.known_models import alignment_heads
from corpus_asr.models.convert.openai_file import Dimensions
from corpus_asr.models.convert.tiktoken_ranks import TIMESTAMPS

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
_BLANK = " "


def config_for(dimensions: Dimensions, tokenizer: WhisperTokenizer) -> WhisperConfig:
    """Make config.json.

    Raises:
        CheckpointError: the tokenizer is another model's.
    """
    needed = tokenizer.timestamp_begin + TIMESTAMPS
    if dimensions.n_vocab < needed:
        raise CheckpointError(
            f"converting a model of {dimensions.n_vocab} tokens: its tokenizer has {needed}; give "
            "the one that belongs to it with --tokenizer"
        )
    return WhisperConfig(
        **dimensions.config_values(),
        decoder_start_token_id=tokenizer.sot,
        bos_token_id=tokenizer.eot,
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        begin_suppress_tokens=begin_suppressed(tokenizer),
        suppress_tokens=suppressed(tokenizer),
    )


def generation_for(
    dimensions: Dimensions, tokenizer: WhisperTokenizer, *, file_name: str
) -> GenerationConfig:
    """Make generation_config.json; word times use the published heads of a known model."""
    languages = {f"<|{code}|>": token for code, token in tokenizer.language_ids.items()}
    tasks = {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate}
    return GenerationConfig(
        decoder_start_token_id=tokenizer.sot,
        bos_token_id=tokenizer.eot,
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        no_timestamps_token_id=tokenizer.no_timestamps,
        prev_sot_token_id=tokenizer.start_of_prev,
        is_multilingual=tokenizer.is_multilingual,
        lang_to_id=languages if tokenizer.is_multilingual else None,
        task_to_id=tasks if tokenizer.is_multilingual else None,
        suppress_tokens=suppressed(tokenizer),
        begin_suppress_tokens=begin_suppressed(tokenizer),
        alignment_heads=alignment_heads(file_name, dimensions),
        max_length=dimensions.n_text_ctx,
    )


def begin_suppressed(tokenizer: WhisperTokenizer) -> tuple[int, ...]:
    """Tokens no text begins with: the blank and the end."""
    return (*tokenizer.encode(_BLANK, add_special_tokens=False), tokenizer.eot)


def suppressed(tokenizer: WhisperTokenizer) -> tuple[int, ...]:
    """Tokens never said: marks that are not spoken, and control tokens out of place."""
    tokens = {_ids(tokenizer, f" {joiner}")[0] for joiner in _JOINERS}
    for mark in (*_MARKS, *_MUSIC):
        for ids in (_ids(tokenizer, mark), _ids(tokenizer, f" {mark}")):
            # The musical signs share their first bytes with nothing but other signs.
            if len(ids) == 1 or mark in _MUSIC:
                tokens.add(ids[0])
    start_of_lm = tokenizer.start_of_prev - 1
    controls = {
        tokenizer.translate,
        tokenizer.transcribe,
        tokenizer.sot,
        tokenizer.start_of_prev,
        start_of_lm,
        tokenizer.no_speech,
    }
    return tuple(sorted(tokens | controls))


def _ids(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
