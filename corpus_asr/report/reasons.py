"""What each kind of failure means, in a few plain words: the title above its recordings."""

from collections.abc import Mapping
from types import MappingProxyType

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "access_denied": "The store did not let them be read",
        "bad_stream": "Their sound cannot be decoded",
        "changed": "Replaced while they were read",
        "cut_short": "They end before what was to be cut from them",
        "damaged": "Damaged on the way",
        "decode": "Their sound cannot be decoded",
        "decoder_crashed": "The decoder crashed on them",
        "decoder_killed": "The decoder was killed from outside",
        "decoder_timeout": "Decoding took too long",
        "empty_audio": "No audio in them",
        "empty_file": "Empty files",
        "fetch": "Could not be read from the store",
        "internal": "A failure of this program or its machine",
        "item": "Could not be processed",
        "no_audio_stream": "No sound track in them",
        "no_bucket": "The bucket does not exist",
        "no_space": "No room for temporary files",
        "no_such_channel": "Without the channel that was asked for",
        "not_audio": "Not audio",
        "not_found": "Gone when they were to be read",
        "poison": "They brought model workers down",
        "refused_format": "Texts, pictures or playlists",
        "refused_host": "On a host that may not be asked",
        "timeout": "The store did not answer in time",
        "too_large": "Larger than allowed",
        "too_long": "Longer than allowed",
        "too_many_channels": "More channels than can be transcribed apart",
        "unsupported_codec": "A codec that cannot be decoded",
        "unsupported_scheme": "Addresses of an unknown kind",
    }
)


def reason(kind: str) -> str:
    """Say what a kind of failure is, also one of another version of this program."""
    return REASONS.get(kind, kind.replace("_", " ").capitalize()[:60])
