import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

import corpus_asr
from corpus_asr.config.hooks import HookSettings
from corpus_asr.errors import ConfigError
from corpus_asr.runtime.hooks import run_hook
from tests.repo.sources import REPOSITORY
from tests.support.runs import finished, passage, run_of, spoken


def test_a_table_leaves_out_what_tells_nothing(tmp_path: Path):
    store = run_of(tmp_path / "out", spoken("/a", passage(0, "one 1")), spoken("/b"))
    finished(store, "/a", "/b")
    hook = HookSettings(
        name="redact", function="tests.support.hooks:redact",
        columns={"redacted": "string", "digits": "int64"},
    )  # fmt: skip
    run_hook(store, hook)
    table = corpus_asr.read_hook(store.uri, "redact")
    assert table.num_rows == 1
    assert table.schema.names[-2:] == ["digits", "redacted"]
    with pytest.raises(ConfigError, match="found the tables of redact"):
        corpus_asr.read_hook(store.uri, "other")


def test_the_examples_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wordllama")
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs/examples"))
    texts = ["the train to London", "a railway journey at 5", "my cat sleeps"]
    store = run_of(
        tmp_path / "out", *(spoken(f"/{at}", passage(0, text)) for at, text in enumerate(texts))
    )
    finished(store, "/0", "/1", "/2")
    examples: dict[str, dict[str, Any]] = {
        "redact": {"function": "hooks:redact_numbers",
                   "columns": {"redacted": "string", "digits": "int64"}},
        "meaning": {"function": "hooks:Embeddings", "columns": {"vector": "list<float32>"}},
    }  # fmt: skip
    for name, values in examples.items():
        assert run_hook(store, HookSettings(name=name, **values)).recordings == 3
    redacted = corpus_asr.read_hook(store.uri, "redact").sort_by("uri")["redacted"].to_pylist()
    assert redacted == [f" {text.replace('5', '#')}" for text in texts]
    guide = (REPOSITORY / "docs/how-to/hooks.md").read_text()
    query = re.findall(r"```sql\n(.*?)```", guide, re.DOTALL)[-1]
    query = query.replace("output/podcasts", store.uri).replace("talks/opening.mp3", "/0")
    with duckdb.connect() as database:
        near = database.execute(query).fetchall()
    assert [uri for uri, _, _ in near] == ["/0", "/1", "/2"]
    assert [similarity > 0.4 for _, _, similarity in near] == [True, True, False]
