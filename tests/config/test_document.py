"""YAML is read strictly: one value per key, no surprises of YAML 1.1, the environment filled in."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.document import Document, hide_secrets, override_value, read_document
from corpus_asr.errors import ConfigError


def read(tmp_path: Path, text: str, *overrides: str) -> Document:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return read_document(path, overrides)


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (b"", "found an empty file"),
        (b"# nothing\n", "found an empty file"),
        (b"- a\n", "line 1: found a list, expected keys"),
        (b"hello", "found the single value 'hello'"),
        (b"a: 1\nb: [1\nc: 2\n", "line 3, column 2"),
        (b"a:\n\tb: 1\n", "indent with spaces, not tabs"),
        (b"a: \xff\n", "found byte 3 that is not UTF-8"),
        (b"a: 1\n---\nb: 2\n", "line 2"),
        (b"a: !!python/object:os.system x\n", "could not determine a constructor"),
        (b"a: &x [*x]\n", "nesting without end"),
        (b"a: \x00\n", "not YAML"),
    ],
)
def test_what_is_not_a_mapping_is_refused_with_its_line(
    content: bytes, messages: str, tmp_path: Path
) -> None:
    assert messages in refusal(tmp_path, content)


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "podcasts.yaml").touch()
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*podcasts\.yaml\?"):
        read_document(tmp_path / "podcast.yaml")
    with pytest.raises(ConfigError, match="nor a folder"):
        read_document(tmp_path / "nowhere" / "podcast.yaml")
    with pytest.raises(ConfigError, match="found a folder"):
        read_document(tmp_path)


def test_a_key_written_twice_is_a_problem_and_an_alias_is_not(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "a:\n  b: 1\n  b: 2\n").problems
    assert problem.dotted == "a.b"
    assert "lines 2 and 3" in problem.message
    document = read(tmp_path, "a: &a {x: 1, y: 2}\nb: *a\nc:\n  <<: *a\n  x: 3\n")
    both = {"x": 1, "y": 2}
    assert document.values == {"a": both, "b": both, "c": {"x": 3, "y": 2}}
    assert not document.problems


def test_scalars_mean_what_yaml_1_2_says_and_keys_are_text(tmp_path: Path) -> None:
    assert read(tmp_path, "1: {2: a}\n").values == {"1": {"2": "a"}}
    for written, meant in (
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("2026-01-31", "2026-01-31"),
        ("1:30", "1:30"),
        ("1e-3", 0.001),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("007", "007"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("1_000", "1_000"),
    ):
        assert read(tmp_path, f"a: {written}\n").values == {"a": meant}, written


def test_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "pod")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    document = read(
        tmp_path,
        "a: s3://${env:BUCKET}/x\n"
        "b: ['${env:BUCKET}', 1]\n"
        "c: ${env:UNSET:-fallback}\n"
        "d: ${env:EMPTY:-fallback}\n"
        "e: ${env:UNSET:-}\n"
        "f: $${env:BUCKET} costs $5\n",
    )
    assert document.values == {
        "a": "s3://pod/x",
        "b": ["pod", 1],
        "c": "fallback",
        "d": "fallback",
        "e": None,
        "f": "${env:BUCKET} costs $5",
    }
    assert not document.problems


def test_an_unset_variable_is_told_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    document = read(tmp_path, "a: {b: '${env:UNSET}'}\nc: ${oc.env:HOME}\n")
    messages = str(document.error(document.problems))
    assert "line 1: a.b: the environment variable UNSET is not set" in messages
    assert "line 2: c: ${oc.env:HOME} is unknown, expected ${NAME}, ${env:NAME}" in messages


def test_overrides_make_the_sections_they_need(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb:\n", "b.c=2", "d.e.f=[x]")
    assert document.values == {"a": 1, "b": {"c": 2}, "d": {"e": {"f": ["x"]}}}
    assert document.origins[("b", "c")] == "--set b.c=2"


@pytest.mark.long
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc"])))
def test_any_unquoted_text_is_an_override_value(text: str) -> None:
    if text.strip().startswith(("'", '"', "[", "{")):
        return
    value = override_value(text, "--set key")
    assert value == text.strip() or isinstance(value, int | float | None)


def bomb(level: str, levels: int = 9, *, merge: str = "") -> str:
    """Nine levels, each nine times the one above: a list of it, or a mapping that merges it."""
    lines = ["a0: &a0 " + level]
    for number in range(1, levels):
        aliases = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {merge}[{aliases}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (bomb("lol"), "aliases included"),
        (bomb("{x: 1}"), "aliases included"),
        (bomb("{x: 1}", merge="\n  <<: "), "aliases included"),
        ("a: [" + "1, " * 20_000 + "1]", "aliases included"),
        ("a: " + "[" * 100_000, "nesting without end"),
        ("a: " + "9" * 5000, "found an invalid value"),
        ("# " + "x" * 1_000_001, "found more than 1000000 bytes"),
        (bomb("x", 5) + "\n? *a4\n: 1", "unhashable key"),
    ],
    ids=["lists", "mappings", "merges", "many", "unclosed", "digits", "bytes", "key of lists"],
)  # fmt: skip
def test_what_would_fill_memory_or_stack_is_refused(
    tmp_path: Path, text: str, messages: str
) -> None:
    assert messages in refusal(tmp_path, text.encode())


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
