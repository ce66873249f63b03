"""Nothing that opens a store is printed or saved."""

import pytest

from corpus_asr.config.base import hide_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/key", "s3://bucket/key"),
        ("s3://id:secret@bucket/key", "s3://***@bucket/key"),
        ("https://token@host/a", "https://***@host/a"),
        ("ftp://user:p@ss@host/a@b.mp3", "ftp://***@host/a@b.mp3"),
        ("zip://a.wav::https://u:p@host/x.zip", "zip://a.wav::https://***@host/x.zip"),
        ("https://h/a?sv=1&sig=abc%3D&se=2", "https://h/a?sv=1&sig=***&se=2"),
        ("https://h/a?X-Amz-Credential=a/b&X-Amz-Date=1", "https://h/a?X-Amz-Credential=***&X-Amz-Date=1"),
        ("https://h/a?AWSAccessKeyId=a&Signature=b", "https://h/a?AWSAccessKeyId=***&Signature=***"),
        ("found s3://a:b@c, expected d@e", "found s3://***@c, expected d@e"),
        ("s3://bucket/who@where/100%.wav", "s3://bucket/who@where/100%.wav"),
        ("file:///tmp/a@b", "file:///tmp/a@b"),
    ],
)  # fmt: skip
def test_credentials_are_masked_and_all_else_stays(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
