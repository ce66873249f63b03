"""What the server asks its decoding child for; apart, so that it need not import a decoder."""

from dataclasses import dataclass

from corpus_asr.storage.stores.retry import RetryPolicy

# Somebody waits: a store that does not answer is told of sooner than in a run.
PATIENCE = RetryPolicy(attempts=4, patience_s=15.0, request_timeout_s=20.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcerptRequest:
    """A stretch of a recording."""

    uri: str
    channel: int | None
    """Only this one; None for all of them mixed."""
    exact: bool
    """Whether the stretch is found by decoding all before it: in damaged recordings times are
    those of what could be decoded, which a jump does not know."""
    start_sample: int
    num_samples: int
