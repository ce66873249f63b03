"""Every kind of failure that a recording can have: its title, what to do, whether to try again."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Of the stores; the other kinds are named where they are raised.
NOT_FOUND = "not_found"
NO_BUCKET = "no_bucket"
ACCESS_DENIED = "access_denied"
TIMEOUT = "timeout"
CHANGED = "changed"
FETCH = "fetch"
UNSUPPORTED_SCHEME = "unsupported_scheme"
REFUSED_FILE = "refused_file"
REFUSED_HOST = "refused_host"
NO_SPACE = "no_space"

_RETRY = "trying again may help: run again with --retry-failed"
_NO_RETRY = "running again will not help: replace or exclude them of the source"
_CONVERT = "convert them (ffmpeg -i IN OUT.flac) and list those instead"
_REPLACE = "they are damaged or of another format than their name: replace or exclude them"


@dataclass(frozen=True, slots=True)
class FailureKind:
    """One kind of failure: its name, the heading of its recordings, what to do about them all."""

    name: str
    title: str
    advice: str
    retryable: bool = False
    """Whether another try may succeed, unless the error itself says otherwise."""
    read_advice: str = ""
    """What to do about one object that a store did not give; "" for kinds of no store."""
    write_advice: str = ""
    """The same for one that it did not take; "" for `read_advice`."""


_KINDS = (
    FailureKind(
        ACCESS_DENIED, "The store did not let them be read",
        "check the credentials and their permissions for these URIs, then run again with "
        "--retry-failed",
        read_advice="check the credentials and that they may read and list here",
        write_advice="check the credentials and that they may read, list, write and delete here, "
        "or choose another output",
    ),
    FailureKind("bad_samples", "Samples that are not finite", _NO_RETRY),
    FailureKind("bad_stream", "Their sound cannot be decoded", _REPLACE),
    FailureKind(
        CHANGED, "Replaced while they were read",
        "these were replaced while being read: run again with --retry-failed when nothing writes "
        "there",
        retryable=True,
        read_advice="try again once nothing writes to it any more",
    ),
    FailureKind(
        "cut_short", "They end before the segment to be cut",
        "these end before the segment to be cut: transcribe them again",
    ),
    FailureKind(
        "damaged", "Damaged on the way", f"what was good of them is transcribed; {_REPLACE}"
    ),
    FailureKind("decode", "Their sound cannot be decoded", _REPLACE),
    FailureKind(
        "decoder_crashed", "The decoder crashed on them", f"their decoder crashed: {_CONVERT}"
    ),
    FailureKind(
        "decoder_killed", "The decoder was killed from outside",
        "their decoder was killed, perhaps for lack of memory: give extraction more of it (fewer "
        "extract.workers), then run again with --retry-failed",
        retryable=True,
    ),
    FailureKind(
        "decoder_timeout", "Decoding took too long",
        f"raise extract.item_timeout_s, or {_CONVERT}",
    ),
    FailureKind("empty_audio", "No audio in them", _NO_RETRY),
    FailureKind("empty_file", "Empty files", _NO_RETRY),
    FailureKind(
        FETCH, "Could not be read from the store",
        "check the store, then run again with --retry-failed",
        retryable=True,
        read_advice="check the store, then try again",
    ),
    FailureKind(
        "internal", "A failure of this program or its host",
        "this program or its host failed, not the recording: read the log, report it, and "
        "run again with --retry-failed",
        retryable=True,
    ),
    FailureKind("item", "Could not be processed", _NO_RETRY),
    FailureKind(
        "long_header", "No length in what was read of their headers",
        "their length is known once they are decoded: nothing needs to be done",
    ),
    FailureKind(
        "no_audio_stream", "No sound track in them",
        "these contain no audio: exclude them (source.exclude)",
    ),
    FailureKind(
        NO_BUCKET, "The bucket does not exist",
        "these name a bucket that is not there: correct its name or the endpoint_url, then run "
        "again with --retry-all-failed",
        read_advice="correct the bucket's name, or endpoint_url if it is of another store",
    ),
    FailureKind(
        NO_SPACE, "No room for temporary files",
        "make room where this program keeps its files, or give it another TMPDIR, then run again "
        "with --retry-failed",
        retryable=True,
        read_advice="free some, or raise the quota, then run the same command again to continue",
    ),
    FailureKind(
        "no_such_channel", "Without the requested channel",
        "set extract.channels to mix, or to a channel that they have",
    ),
    FailureKind(
        "no_text", "No usable text to align",
        "give each a text in the manifest, as plain words, or leave them out",
    ),
    FailureKind(
        "not_a_number", "The model gave no numbers for them",
        "the data type of the weights cannot hold what the model computes: set "
        "model.compute_type to bfloat16 or float32, then run again with --retry-all-failed",
    ),
    FailureKind(
        "not_audio", "Not audio",
        "these are no audio, or damaged at their beginning: leave them out (source.exclude)",
    ),
    FailureKind(
        NOT_FOUND, "Gone when they were to be read",
        "these were gone when they were read: the next run lists again",
        read_advice="check the URI, or remove it from the source",
        write_advice="choose another output",
    ),
    FailureKind(
        "poison", "They brought model workers down",
        "they brought a model worker down twice: look for lack of memory in its log, try them one "
        "by one with `corpus-asr transcribe`",
        retryable=True,
    ),
    FailureKind(
        "refused_format", "Texts, pictures or playlists",
        "these are texts, pictures or playlists: list the recordings themselves",
    ),
    FailureKind(
        REFUSED_FILE, "On this machine, outside the folders that may be read",
        "add their folder to source.uri to allow reading them",
        read_advice="to allow it, name its folder: with --audio-folder of corpus-asr view, in "
        "source.uri for corpus-asr label",
    ),
    FailureKind(
        REFUSED_HOST, "On a host that is not allowed",
        "name the host in source.allow_hosts to allow requests to it",
        read_advice="list the host in source.allow_hosts to allow requests to it",
    ),
    FailureKind(
        "source_changed", "Replaced since they were transcribed",
        "these were replaced since they were transcribed: transcribe them again",
    ),
    FailureKind(
        "text_not_found", "Their text is not what is said in them",
        "check that these recordings and texts belong together, and decoding.language",
    ),
    FailureKind(
        TIMEOUT, "The store did not answer in time",
        "the store did not answer in time: run again with --retry-failed",
        retryable=True,
        read_advice="check the network, then try again",
    ),
    FailureKind(
        "too_large", "Larger than allowed",
        "raise extract.max_file_gb if these are recordings, then run again with "
        "--retry-all-failed",
    ),
    FailureKind(
        "too_long", "Longer than allowed",
        "their first hours are transcribed; if they really are that long, raise "
        "extract.max_duration_h and run again with --retry-all-failed",
    ),
    FailureKind(
        "too_many_channels", "More channels than can be transcribed separately",
        "set extract.channels to mix or to one channel's number",
    ),
    FailureKind("unsupported_codec", "A codec that cannot be decoded", _CONVERT),
    FailureKind(
        UNSUPPORTED_SCHEME, "URIs of an unknown scheme",
        "correct these URIs, or install what fsspec needs for them",
    ),
)  # fmt: skip
FAILURE_KINDS: Mapping[str, FailureKind] = MappingProxyType({kind.name: kind for kind in _KINDS})


def failure_kind(name: str, *, retryable: bool = False) -> FailureKind:
    """Return a kind by its name; one of another version of this program is made up."""
    kind = FAILURE_KINDS.get(name)
    if kind is not None:
        return kind
    title = name.replace("_", " ").capitalize()[:60]
    return FailureKind(name, title, _RETRY if retryable else _NO_RETRY, retryable)
