"""What each kind of failure is called above its recordings, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class FailureKind:
    """A kind of failure, for a whole corpus; a recording's message says what is wrong with it."""

    name: str
    title: str
    advice: str
    """The end of a sentence: in small letters, without its stop."""


_RETRY = "trying again may help: run again with --retry-failed"
_NO_RETRY = "running again will not help: replace them or leave them out of the source"
_CONVERT = "convert them (ffmpeg -i IN OUT.flac) and list those instead"
_REPLACE = "they are damaged or not what their name says: replace them or leave them out"

FAILURE_KINDS: Mapping[str, FailureKind] = MappingProxyType({kind.name: kind for kind in (
    FailureKind("access_denied", "The store did not let them be read",
        "check the credentials and their rights on these addresses, then run again with "
        "--retry-failed"),
    FailureKind("bad_stream", "Their sound cannot be decoded", _REPLACE),
    FailureKind("changed", "Replaced while they were read",
        "these were replaced while being read: run again with --retry-failed when nothing writes "
        "there"),
    FailureKind("cut_short", "They end before what was to be cut from them",
        "these end before what was to be cut from them: transcribe them again"),
    FailureKind("damaged", "Damaged on the way",
        f"what was good of them is transcribed; {_REPLACE}"),
    FailureKind("decode", "Their sound cannot be decoded", _REPLACE),
    FailureKind("decoder_crashed", "The decoder crashed on them",
        f"their decoder crashed: {_CONVERT}"),
    FailureKind("decoder_killed", "The decoder was killed from outside",
        "their decoder was killed, perhaps for lack of memory: give extraction more of it (fewer "
        "extract.workers), then run again with --retry-failed"),
    FailureKind("decoder_timeout", "Decoding took too long",
        f"raise extract.item_timeout_s, or {_CONVERT}"),
    FailureKind("empty_audio", "No audio in them", _NO_RETRY),
    FailureKind("empty_file", "Empty files", _NO_RETRY),
    FailureKind("fetch", "Could not be read from the store",
        "check the store, then run again with --retry-failed"),
    FailureKind("internal", "A failure of this program or its machine",
        "this program or its machine failed, not the recording: look into the log, report it, and "
        "run again with --retry-failed"),
    FailureKind("item", "Could not be processed", _NO_RETRY),
    FailureKind("no_audio_stream", "No sound track in them",
        "these hold no sound: leave them out (source.exclude)"),
    FailureKind("no_bucket", "The bucket does not exist",
        "these name a bucket that is not there: correct its name or the endpoint_url, then run "
        "again with --retry-all-failed"),
    FailureKind("no_space", "No room for temporary files",
        "make room where this program keeps its files, or give it another TMPDIR, then run again "
        "with --retry-failed"),
    FailureKind("no_such_channel", "Without the channel that was asked for",
        "set extract.channels to mix, or to a channel that they have"),
    FailureKind("not_audio", "Not audio",
        "these are no audio, or damaged at their beginning: leave them out (source.exclude)"),
    FailureKind("not_found", "Gone when they were to be read",
        "these were gone when they were read: the next run lists again"),
    FailureKind("poison", "They brought model workers down",
        "they brought a model worker down twice: look for lack of memory in its log, try them one "
        "by one with `corpus-asr transcribe`"),
    FailureKind("refused_format", "Texts, pictures or playlists",
        "these are texts, pictures or playlists: list the recordings themselves"),
    FailureKind("refused_host", "On a host that may not be asked",
        "name the host in source.allow_hosts if it is to be asked"),
    FailureKind("timeout", "The store did not answer in time",
        "the store did not answer in time: run again with --retry-failed"),
    FailureKind("too_large", "Larger than allowed",
        "raise extract.max_file_gb if these are recordings, then run again with "
        "--retry-all-failed"),
    FailureKind("too_long", "Longer than allowed",
        "their first hours are transcribed; if they really are that long, raise "
        "extract.max_duration_h and run again with --retry-all-failed"),
    FailureKind("too_many_channels", "More channels than can be transcribed apart",
        "set extract.channels to mix or to one channel's number"),
    FailureKind("unsupported_codec", "A codec that cannot be decoded", _CONVERT),
    FailureKind("unsupported_scheme", "Addresses of an unknown kind",
        "correct these addresses, or install what fsspec needs for them"),
)})  # fmt: skip


def failure_kind(name: str, *, retryable: bool) -> FailureKind:
    """Return a kind of failure, also one of another version of this program."""
    known = FAILURE_KINDS.get(name)
    if known is not None:
        return known
    title = name.replace("_", " ").capitalize()[:60]
    return FailureKind(name, title, _RETRY if retryable else _NO_RETRY)


def advice(name: str, *, retryable: bool) -> str:
    """Say what to do about failures of a kind."""
    return failure_kind(name, retryable=retryable).advice
