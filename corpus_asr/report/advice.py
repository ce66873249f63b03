"""What to do about each kind of failure, for a whole corpus: the one place that says it.

In: a kind. Out: advice in words. A recording's own message says what is wrong with that recording.
"""

from collections.abc import Mapping
from types import MappingProxyType

_RETRY = "trying again may help: run again with --retry-failed"
_NO_RETRY = "running again will not help: replace them or leave them out of the source"
_CONVERT = "convert them (ffmpeg -i IN OUT.flac) and list those instead"
_REPLACE = "they are damaged or not what their name says: replace them or leave them out"

ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "access_denied": "check the credentials and their rights on these addresses, then run "
        "again with --retry-failed",
        "bad_stream": _REPLACE,
        "changed": "these were replaced while being read: run again with --retry-failed when "
        "nothing writes there",
        "cut_short": "these end before what was to be cut from them: transcribe them again",
        "damaged": f"what was good of them is transcribed; {_REPLACE}",
        "decode": _REPLACE,
        "decoder_crashed": f"their decoder crashed: {_CONVERT}",
        "decoder_killed": "their decoder was killed, perhaps for lack of memory: give extraction "
        "more of it (fewer extract.workers), then run again with --retry-failed",
        "decoder_timeout": f"raise extract.item_timeout_s, or {_CONVERT}",
        "empty_audio": _NO_RETRY,
        "empty_file": _NO_RETRY,
        "fetch": "check the store, then run again with --retry-failed",
        "internal": "this program or its machine failed, not the recording: look into the log, "
        "report it, and run again with --retry-failed",
        "item": _NO_RETRY,
        "no_bucket": "these name a bucket that is not there: correct its name or the endpoint_url, "
        "then run again with --retry-all-failed",
        "no_audio_stream": "these hold no sound: leave them out (source.exclude)",
        "no_space": "make room where this program keeps its files, or give it another TMPDIR, then "
        "run again with --retry-failed",
        "no_such_channel": "set extract.channels to mix, or to a channel that they have",
        "not_audio": "these are no audio, or damaged at their beginning: leave them out "
        "(source.exclude)",
        "not_found": "these were gone when they were read: the next run lists again",
        "poison": "they brought a model worker down twice: look for lack of memory in its log, try "
        "them one by one with `corpus-asr transcribe`",
        "refused_format": "these are texts, pictures or playlists: list the recordings themselves",
        "refused_host": "name the host in source.allow_hosts if it is to be asked",
        "timeout": "the store did not answer in time: run again with --retry-failed",
        "too_large": "raise extract.max_file_gb if these are recordings, then run again with "
        "--retry-all-failed",
        "too_long": "their first hours are transcribed; if they really are that long, raise "
        "extract.max_duration_h and run again with --retry-all-failed",
        "too_many_channels": "set extract.channels to mix or to one channel's number",
        "unsupported_codec": _CONVERT,
        "unsupported_scheme": "correct these addresses, or install what fsspec needs for them",
    }
)


def advice(kind: str, *, retryable: bool) -> str:
    """Say what to do about failures of a kind, also one of another version of this program."""
    return ADVICE.get(kind, _RETRY if retryable else _NO_RETRY)
