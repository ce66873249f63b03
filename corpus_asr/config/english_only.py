"""What an English-only checkpoint cannot do, refused with the models that can.

In: the `decoding` section. Out: nothing, or a `ConfigError`. Which checkpoints are English-only is
for the caller to know.
"""

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import ConfigError

ADVICE = "name a multilingual model, such as --model base (model.checkpoint: base)"


def check_english_only(decoding: DecodingSettings, *, checkpoint: str = "this checkpoint") -> None:
    """Refuse other languages than English, translation, and detection of languages.

    Args:
        decoding: what is asked of the checkpoint.
        checkpoint: its name, for the message.

    Raises:
        ConfigError: names the key, the checkpoint, and models that can do this.
    """
    wanted = (decoding.language,) if isinstance(decoding.language, str) else decoding.language
    others = [code for code in wanted if code not in ("auto", "en")]
    if others:
        raise ConfigError(
            f"decoding.language: found {', '.join(others)}, but {checkpoint} is English-only; "
            f"{ADVICE}"
        )
    if decoding.task == "translate":
        raise ConfigError(
            f"decoding.task: found translate, but {checkpoint} is English-only and has nothing to "
            f"translate; {ADVICE}"
        )
    if decoding.language_mode != "recording":
        raise ConfigError(
            f"decoding.language_mode: found {decoding.language_mode}, but {checkpoint} is "
            f"English-only; leave it out, or {ADVICE}"
        )
