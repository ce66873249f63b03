"""All kinds of recording failures, with titles, origins and advice."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

# Raised by stores; the other kinds are named where they are raised.
NOT_FOUND = "not_found"
NO_BUCKET = "no_bucket"
ACCESS_DENIED = "access_denied"
ARCHIVED = "archived"
TIMEOUT = "timeout"
CHANGED = "changed"
FETCH = "fetch"
UNSUPPORTED_SCHEME = "unsupported_scheme"
REFUSED = "refused"
REFUSED_FILE = "refused_file"
REFUSED_HOST = "refused_host"
NO_SPACE = "no_space"
BAD_ARCHIVE = "bad_archive"
# Raised by engines.
NOT_A_NUMBER = "not_a_number"
RECOGNIZER = "recognizer"


class Origin(StrEnum):
    """Origin of a failure, which determines its advice and which runs retry it."""

    file = "file"
    """The file itself: final until it is replaced."""
    environment = "environment"
    """Store, permissions, network, machine or manifest: retried by each later run."""
    settings = "settings"
    """A setting of the job: retried with --retry-failed."""
    program = "program"
    """This program or its host: retried with --retry-failed, and in a few nightly runs."""


_EACH_RUN = "then run again: each run retries these"
_RETRY = "then run again with --retry-failed"
_NO_RETRY = "a retry will not help: replace them, or exclude them from the source"
_CONVERT = "convert them (ffmpeg -i IN OUT.flac) and list those instead"
_REPLACE = "they are damaged, or their format differs from their name: replace or exclude them"
# These settings change results, so that a folder with other results is refused.
_AGAIN = "and transcribe all again with --redo all, or these alone into another output.uri"


@dataclass(frozen=True, slots=True)
class FailureKind:
    """A kind of failure: its name, heading and advice."""

    name: str
    title: str
    origin: Origin
    advice: str
    transient: bool = False
    """Default for whether it may resolve without changes; the error itself takes precedence."""
    read_advice: str = ""
    """Advice for a single object that a store failed to read; "" for kinds not from stores."""
    write_advice: str = ""
    """The same for writing; "": use `read_advice`."""

    @property
    def retryable(self) -> bool:
        """Whether a later run may succeed with the same file."""
        return self.origin is not Origin.file


_KINDS = (
    FailureKind(
        ACCESS_DENIED, "Access denied by the store", Origin.environment,
        "check the credentials and their permissions for these URIs, and that the objects exist "
        f"(some stores deny access to missing ones), {_EACH_RUN}",
        read_advice="check the credentials and that they may read and list here",
        write_advice="check the credentials and that they may read, list, write and delete here, "
        "or choose another output",
    ),
    FailureKind(
        ARCHIVED, "In an archive of the store, such as Glacier", Origin.environment,
        f"restore these objects (aws s3api restore-object), {_EACH_RUN}",
        read_advice="restore the object (aws s3api restore-object), or exclude it",
    ),
    FailureKind(
        BAD_ARCHIVE, "In archives that cannot be read", Origin.file,
        "their archives are truncated, compressed or sparse, or rows of their tables lack audio: "
        "write them again, archives as plain .tar",
        read_advice="write the archive again as plain .tar, or the table with audio",
    ),
    FailureKind("bad_samples", "Samples that are not finite", Origin.file, _NO_RETRY),
    FailureKind("bad_stream", "Their sound cannot be decoded", Origin.file, _REPLACE),
    FailureKind(
        CHANGED, "Replaced while they were read", Origin.environment,
        f"wait until nothing writes to them, {_EACH_RUN}",
        transient=True,
        read_advice="retry when nothing writes to it",
    ),
    FailureKind(
        "cut_short", "They end before the segment to be cut", Origin.file,
        "these end before the segment to be cut: transcribe them again",
    ),
    FailureKind(
        "damaged", "Damaged in part", Origin.file,
        f"their readable part is transcribed; {_REPLACE}",
    ),
    FailureKind("decode", "Their sound cannot be decoded", Origin.file, _REPLACE),
    FailureKind(
        "decoder_crashed", "The decoder crashed on them", Origin.file,
        f"the decoder crashed: {_CONVERT}",
    ),
    FailureKind(
        "decoder_killed", "The decoder was killed from outside", Origin.environment,
        "the decoder was killed, perhaps for lack of memory: set fewer extract.workers, "
        f"{_EACH_RUN}",
        transient=True,
    ),
    FailureKind(
        "decoder_timeout", "Decoding took too long", Origin.environment,
        f"check the store, or raise extract.item_timeout_s, {_EACH_RUN}; else {_CONVERT}",
    ),
    FailureKind("empty_audio", "No audio in them", Origin.file, _NO_RETRY),
    FailureKind("empty_file", "Empty files", Origin.file, _NO_RETRY),
    FailureKind(
        FETCH, "Could not be read from the store", Origin.environment,
        f"check the store, {_EACH_RUN}",
        transient=True,
        read_advice="check the store, then retry",
    ),
    FailureKind(
        "internal", "A failure of this program or its host", Origin.program,
        f"this program or its host failed, not the recording: read the log, report it, {_RETRY}",
        transient=True,
    ),
    FailureKind("item", "Could not be processed", Origin.file, _NO_RETRY),
    FailureKind(
        "long_header", "No duration in their headers", Origin.file,
        "their duration is known after decoding: nothing needs to be done",
    ),
    FailureKind(
        "no_audio_stream", "No sound track in them", Origin.file,
        "these contain no audio: exclude them (source.exclude)",
    ),
    FailureKind(
        NO_BUCKET, "The bucket does not exist", Origin.environment,
        f"create the bucket, or correct its name or the endpoint_url, {_EACH_RUN}",
        read_advice="correct the bucket's name, or the endpoint_url",
    ),
    FailureKind(
        NO_SPACE, "No room for temporary files", Origin.environment,
        f"free disk space, or set TMPDIR to another folder, {_EACH_RUN}",
        transient=True,
        read_advice="free some, or raise the quota, then run the same command again to continue",
    ),
    FailureKind(
        "no_such_channel", "Without the requested channel", Origin.settings,
        f"set extract.channels to mix, or to a channel that they have, {_AGAIN}",
    ),
    FailureKind(
        "no_such_track", "Without the requested audio track", Origin.settings,
        f"set extract.track to auto, or to a track or language that they have, {_AGAIN}",
    ),
    FailureKind(
        "bad_hotwords", "Hotwords that cannot be used", Origin.environment,
        f"correct the column hotwords of the manifest, {_EACH_RUN}",
    ),
    FailureKind(
        "no_text", "No usable text to align", Origin.environment,
        f"add a text of plain words to their manifest rows, or exclude them, {_EACH_RUN}",
    ),
    FailureKind(
        NOT_A_NUMBER, "Model output that is not a number", Origin.settings,
        "the values overflow the data type: set model.compute_type to bfloat16 or float32, "
        f"{_AGAIN}",
    ),
    FailureKind(
        "not_audio", "Not audio", Origin.file,
        "these are not audio, or damaged at their start: exclude them (source.exclude)",
    ),
    FailureKind(
        NOT_FOUND, "Not found when they were read", Origin.environment,
        f"restore them, or remove them from the source, {_EACH_RUN}",
        read_advice="check its URI, or exclude it",
        write_advice="choose another output",
    ),
    FailureKind(
        "pointer", "Pointers of Git LFS or git-annex", Origin.environment,
        f"fetch what they stand for by git lfs pull or git annex get, {_EACH_RUN}",
    ),
    FailureKind(
        "poison", "Crashed their workers", Origin.program,
        "each crashed workers that processed nothing else: look for lack of memory in their logs, "
        f"test them with `corpus-asr transcribe`, {_RETRY}",
        transient=True,
    ),
    FailureKind(
        RECOGNIZER, "The recognizer failed on them", Origin.settings,
        "the class named in model.recognizer raised, or returned an invalid result: correct it, "
        f"{_RETRY}",
    ),
    FailureKind(
        "refused_format", "Texts, pictures or playlists", Origin.file,
        "these are texts, pictures or playlists: list the recordings themselves",
    ),
    FailureKind(
        REFUSED, "The store refuses the request", Origin.environment,
        f"change the store's settings or permissions as its message says, {_EACH_RUN}",
        read_advice="change the store's settings or permissions as its message says",
        write_advice="change the store's settings as its message says, or choose another output",
    ),
    FailureKind(
        REFUSED_FILE, "Local files outside the folders that may be read",
        Origin.environment,
        f"add their folder to source.uri to allow reading them, {_EACH_RUN}",
        read_advice="to allow it, name its folder with --audio-folder of corpus-asr view, or in "
        "source.uri for corpus-asr label",
    ),
    FailureKind(
        REFUSED_HOST, "On a host that is not allowed", Origin.environment,
        f"name the host in source.allow_hosts to allow requests to it, {_EACH_RUN}",
        read_advice="list the host in source.allow_hosts (`transcribe --set allow_hosts=HOST`, "
        "allow_hosts of Transcriber) to allow requests to it",
    ),
    FailureKind(
        "source_changed", "Replaced since they were transcribed", Origin.file,
        "transcribe them again",
    ),
    FailureKind(
        "text_not_found", "Text that does not match the audio", Origin.settings,
        f"check decoding.language and the texts of these recordings in the manifest, {_RETRY}",
    ),
    FailureKind(
        TIMEOUT, "The store did not answer in time", Origin.environment,
        f"check the network, {_EACH_RUN}",
        transient=True,
        read_advice="check the network, then retry",
    ),
    FailureKind(
        "too_large", "Larger than allowed", Origin.settings,
        f"raise extract.max_file_gb if these are recordings, {_RETRY}",
    ),
    FailureKind(
        "too_long", "Longer than allowed", Origin.settings,
        "their first hours are transcribed; raise extract.max_duration_h if they are that long, "
        f"{_RETRY}",
    ),
    FailureKind(
        "too_many_channels", "More channels than can be transcribed separately", Origin.settings,
        f"set extract.channels to mix or to one channel's number, {_AGAIN}",
    ),
    FailureKind(
        "unsupported_codec", "A codec that cannot be decoded", Origin.file, _CONVERT
    ),
    FailureKind(
        UNSUPPORTED_SCHEME, "URIs of an unknown scheme", Origin.environment,
        f"correct these URIs, or install what fsspec needs for them, {_EACH_RUN}",
    ),
)  # fmt: skip
FAILURE_KINDS: Mapping[str, FailureKind] = MappingProxyType({kind.name: kind for kind in _KINDS})


def failure_kind(name: str, *, retryable: bool = False) -> FailureKind:
    """Return a kind by its name; an unknown one, of another version, gets default texts."""
    kind = FAILURE_KINDS.get(name)
    if kind is not None:
        return kind
    title = name.replace("_", " ").capitalize()[:60]
    if retryable:
        advice = "a retry may help: run again with --retry-failed"
        return FailureKind(name, title, Origin.program, advice)
    return FailureKind(name, title, Origin.file, _NO_RETRY)
