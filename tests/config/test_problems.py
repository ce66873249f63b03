"""Types and mistakes are described in words a reader of YAML knows."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveInt, ValidationError

from corpus_asr.config.decoding import Settings
from corpus_asr.config.load import expected, problems_in


class Inner(Settings):
    size_mb: Annotated[float, Field(gt=0)] = 1.0
    names: tuple[str, ...] = ()
    count: PositiveInt | Literal["auto"] = "auto"


class Outer(Settings):
    inner: Inner = Field(default_factory=Inner)
    title: str
    quiet: bool = False


def told(values: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    problems = problems_in(caught.value, model=Outer, values=values)
    return {problem.dotted: problem.message for problem in problems}


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, "text"),
        (str | None, "text or null"),
        (bool, "true or false"),
        (PositiveInt | Literal["auto"], "a whole number above 0 or auto"),
        (Annotated[float, Field(ge=0, le=2)], "a number at least 0 and at most 2"),
        (tuple[str, ...], "text or a list of text"),
        (tuple[Annotated[int, Field(ge=1)], ...], "a whole number at least 1, or a list of such"),
        (Literal["mix", "each"], "mix or each"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert expected(annotation) == words


def test_one_problem_per_key_though_a_union_complains_twice() -> None:
    assert told({"title": "x", "inner": {"count": "many"}}) == {
        "inner.count": 'found the text "many", expected a whole number above 0 or auto'
    }


def test_what_was_found_is_named_by_its_kind() -> None:
    problems = told({"title": ["x"], "inner": {"size_mb": {"a": 1}, "names": [1]}})
    assert problems["title"] == "found a list, expected text"
    assert problems["inner.size_mb"] == "found keys below it (a), expected a number above 0"
    assert problems["inner.names"].startswith("item 1: found 1, expected text or a list of text")


def test_a_long_or_secret_value_is_not_repeated_whole() -> None:
    problems = told({"title": "x", "inner": {"size_mb": "s3://a:secret@b/" + "x" * 500}})
    assert "secret" not in problems["inner.size_mb"]
    assert len(problems["inner.size_mb"]) < 200
