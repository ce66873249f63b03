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


_EACH_RUN = "then run again: each run tries these again"
_RETRY = "then run again with --retry-failed"
_NO_RETRY = "running again will not help: replace or exclude them of the source"
_CONVERT = "convert them (ffmpeg -i IN OUT.flac) and list those instead"
_REPLACE = "they are damaged or of another format than their name: replace or exclude them"
# These settings change results, so that a folder with other results is refused.
_NEW_RUN = "and transcribe all again with --new-run, or these alone into another output.uri"


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
        ACCESS_DENIED, "The store did not let them be read", Origin.environment,
        "check the credentials and their permissions for these URIs, and that they are there (some "
        f"stores refuse what is not), {_EACH_RUN}",
        read_advice="check the credentials and that they may read and list here",
        write_advice="check the credentials and that they may read, list, write and delete here, "
        "or choose another output",
    ),
    FailureKind(
        ARCHIVED, "In an archive of the store, such as Glacier", Origin.environment,
        f"restore these objects (aws s3api restore-object), {_EACH_RUN}",
        read_advice="restore the object (aws s3api restore-object), or leave it out",
    ),
    FailureKind(
        BAD_ARCHIVE, "In archives that cannot be read", Origin.file,
        "their archives are cut off, compressed or sparse: pack them again as plain .tar; or rows "
        "of their tables lack audio: write these again",
        read_advice="pack the archive again as plain .tar, or write the table again",
    ),
    FailureKind("bad_samples", "Samples that are not finite", Origin.file, _NO_RETRY),
    FailureKind("bad_stream", "Their sound cannot be decoded", Origin.file, _REPLACE),
    FailureKind(
        CHANGED, "Replaced while they were read", Origin.environment,
        f"these were replaced while being read: wait until nothing writes there, {_EACH_RUN}",
        transient=True,
        read_advice="try again once nothing writes to it any more",
    ),
    FailureKind(
        "cut_short", "They end before the segment to be cut", Origin.file,
        "these end before the segment to be cut: transcribe them again",
    ),
    FailureKind(
        "damaged", "Damaged on the way", Origin.file,
        f"what was good of them is transcribed; {_REPLACE}",
    ),
    FailureKind("decode", "Their sound cannot be decoded", Origin.file, _REPLACE),
    FailureKind(
        "decoder_crashed", "The decoder crashed on them", Origin.file,
        f"their decoder crashed: {_CONVERT}",
    ),
    FailureKind(
        "decoder_killed", "The decoder was killed from outside", Origin.environment,
        "their decoder was killed, perhaps for lack of memory: give extraction more of it (fewer "
        f"extract.workers), {_EACH_RUN}",
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
        read_advice="check the store, then try again",
    ),
    FailureKind(
        "internal", "A failure of this program or its host", Origin.program,
        f"this program or its host failed, not the recording: read the log, report it, {_RETRY}",
        transient=True,
    ),
    FailureKind("item", "Could not be processed", Origin.file, _NO_RETRY),
    FailureKind(
        "long_header", "No length in what was read of their headers", Origin.file,
        "their length is known once they are decoded: nothing needs to be done",
    ),
    FailureKind(
        "no_audio_stream", "No sound track in them", Origin.file,
        "these contain no audio: exclude them (source.exclude)",
    ),
    FailureKind(
        NO_BUCKET, "The bucket does not exist", Origin.environment,
        "these name a bucket that is not there: create it, or correct its name or the "
        f"endpoint_url, {_EACH_RUN}",
        read_advice="correct the bucket's name, or endpoint_url if it is of another store",
    ),
    FailureKind(
        NO_SPACE, "No room for temporary files", Origin.environment,
        "make room where this program keeps its files, or give it another TMPDIR, "
        f"{_EACH_RUN}",
        transient=True,
        read_advice="free some, or raise the quota, then run the same command again to continue",
    ),
    FailureKind(
        "no_such_channel", "Without the requested channel", Origin.settings,
        f"set extract.channels to mix, or to a channel that they have, {_NEW_RUN}",
    ),
    FailureKind(
        "no_such_track", "Without the requested audio track", Origin.settings,
        f"set extract.track to auto, or to a track or language that they have, {_NEW_RUN}",
    ),
    FailureKind(
        "bad_hotwords", "Hotwords that cannot be used", Origin.environment,
        f"correct the column hotwords of the manifest, {_EACH_RUN}",
    ),
    FailureKind(
        "no_text", "No usable text to align", Origin.environment,
        f"give each a text in the manifest, as plain words, or leave them out, {_EACH_RUN}",
    ),
    FailureKind(
        NOT_A_NUMBER, "The model gave no numbers for them", Origin.settings,
        "the data type of the weights cannot hold what the model computes: set "
        f"model.compute_type to bfloat16 or float32, {_NEW_RUN}",
    ),
    FailureKind(
        "not_audio", "Not audio", Origin.file,
        "these are no audio, or damaged at their beginning: leave them out (source.exclude)",
    ),
    FailureKind(
        NOT_FOUND, "Gone when they were to be read", Origin.environment,
        f"these were gone when they were read: put them there, or unlist them, {_EACH_RUN}",
        read_advice="check its address, or leave it out",
        write_advice="choose another output",
    ),
    FailureKind(
        "poison", "They brought workers down", Origin.program,
        "they brought down each worker that they were alone with: look for lack of memory in its "
        f"log, try them one by one with `corpus-asr transcribe`, {_RETRY}",
        transient=True,
    ),
    FailureKind(
        RECOGNIZER, "The recognizer failed on them", Origin.settings,
        "the class named in model.recognizer raised, or returned what is no result: correct it, "
        f"{_RETRY}",
    ),
    FailureKind(
        "refused_format", "Texts, pictures or playlists", Origin.file,
        "these are texts, pictures or playlists: list the recordings themselves",
    ),
    FailureKind(
        REFUSED, "The store refuses the request", Origin.environment,
        f"change the store's settings or permissions as it says, {_EACH_RUN}",
        read_advice="change the store's settings or permissions as it says",
        write_advice="change the settings of the store as it says, or choose another output",
    ),
    FailureKind(
        REFUSED_FILE, "On this machine, outside the folders that may be read",
        Origin.environment,
        f"add their folder to source.uri to allow reading them, {_EACH_RUN}",
        read_advice="to allow it, name its folder: with --audio-folder of corpus-asr view, in "
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
        "these were replaced since they were transcribed: transcribe them again",
    ),
    FailureKind(
        "text_not_found", "Their text is not what is said in them", Origin.settings,
        "check that these recordings and texts belong together, and decoding.language: correct "
        f"their text in the manifest, {_RETRY}",
    ),
    FailureKind(
        TIMEOUT, "The store did not answer in time", Origin.environment,
        f"the store did not answer in time: check the network, {_EACH_RUN}",
        transient=True,
        read_advice="check the network, then try again",
    ),
    FailureKind(
        "too_large", "Larger than allowed", Origin.settings,
        f"raise extract.max_file_gb if these are recordings, {_RETRY}",
    ),
    FailureKind(
        "too_long", "Longer than allowed", Origin.settings,
        "their first hours are transcribed; if they really are that long, raise "
        f"extract.max_duration_h, {_RETRY}",
    ),
    FailureKind(
        "too_many_channels", "More channels than can be transcribed separately", Origin.settings,
        f"set extract.channels to mix or to one channel's number, {_NEW_RUN}",
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
        advice = "trying again may help: run again with --retry-failed"
        return FailureKind(name, title, Origin.program, advice)
    return FailureKind(name, title, Origin.file, _NO_RETRY)
