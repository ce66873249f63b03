"""Sources without recordings: an answer, with tables that every reader opens."""

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.schemas import LABELS, OUTCOMES, RECORDINGS, SEGMENTS
from tests.support.corpora import tiny_model
from tests.support.tables import same_schema

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


class Job:
    """An inbox, and a job over it by the command line."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.inbox, self.output, self.yaml = folder / "in", folder / "out", folder / "job.yaml"
        self.inbox.mkdir()
        self.source = f"uri: {self.inbox}"
        self.model = model

    def command(self, *words: str, source: str | None = None) -> Result:
        self.yaml.write_text(
            f"source: {{{source or self.source}}}\nmodel: {{checkpoint: {self.model}}}\n"
            f"output: {{uri: {self.output}}}\n"
        )
        name, *options = words
        return CliRunner().invoke(cli.app, [name, str(self.yaml), *options])


@pytest.fixture
def empty(tmp_path: Path, model: Path) -> Job:
    return Job(tmp_path, model)


def test_an_empty_inbox_is_complete_with_typed_tables(empty: Job) -> None:
    for name in (".DS_Store", "._talk.wav", "notes.pdf", "MD5SUMS"):
        (empty.inbox / name).write_bytes(b"x")
    done = empty.command("run", "--local")
    assert done.exit_code == 0, done.output
    found = f"found no recordings: {empty.inbox}\n3 other files ignored (source.ignore)\n"
    assert f"{found}1 other without sound (first bytes)\n" in done.stderr
    assert f"{empty.output}: 0 recordings, 0 done" in done.stdout
    for name, schema in (
        ("segments", SEGMENTS), ("outcomes", OUTCOMES), ("recordings", RECORDINGS),
    ):  # fmt: skip
        table = pq.read_table(empty.output / name)
        assert table.num_rows == 0
        assert same_schema(table.schema, schema)
        query = f"select count(*) from read_parquet('{empty.output}/{name}/*.parquet')"
        assert duckdb.execute(query).fetchall() == [(0,)]
    assert (empty.output / "_SUCCESS").exists()
    plan = empty.command("plan")
    skipped = "# skipped    3 other files ignored, 0 excluded, 1 other without sound, 0 named"
    assert f"{skipped} twice\n# empty      {empty.inbox}\n" in plan.stdout
    for name, *arguments in (
        ("show",),
        ("report",),
        ("export", "--format", "txt", "--to", str(empty.inbox / "texts")),
    ):
        shown = CliRunner().invoke(cli.app, [name, str(empty.output), *arguments])
        assert shown.exit_code == 0, (name, shown.output)


def test_an_empty_place_stops_no_other_unless_files_are_required(empty: Job) -> None:
    other = empty.inbox / "other"
    other.mkdir()
    (other / "broken.wav").write_bytes(b"no sound")
    source = f"uri: ['{empty.inbox}/*.wav', {other}]"
    plan = empty.command("plan", source=source)
    assert "# listed     1 file" in plan.stdout
    assert f"# empty      {empty.inbox}/*.wav" in plan.stdout
    required = empty.command("run", "--local", "--set", "source.require_files=true", source=source)
    assert required.exit_code == 2
    assert f"listing {empty.inbox}/*.wav: found nothing, expected a file" in required.stderr
    missing = empty.command("run", "--local", source=f"uri: {empty.inbox}/none")
    assert missing.exit_code == 2
    manifest = empty.inbox / "list.jsonl"
    manifest.write_text("")
    nothing = empty.command("run", "--local", source=f"manifest: {manifest}")
    assert nothing.exit_code == 0, nothing.output


def test_what_is_probably_not_meant_of_a_source_is_told(empty: Job) -> None:
    manifest = empty.inbox.parent / "list.jsonl"
    manifest.write_text('{"uri": "in/a.wav"}\n{"uri": "C:\\\\talks\\\\b.wav"}\n')
    (empty.inbox / "a.wav").write_bytes(b"no sound")
    (empty.inbox / "gone.wav").symlink_to("nowhere.wav")
    source = f"manifest: {manifest}"
    odd = "1 row of manifests with blanks, ~ or backslashes in URIs, such as "
    plan = empty.command("plan", source=source)
    assert f"# warning    {odd}{empty.inbox.parent}/C:\\talks\\b.wav; correct" in plan.stdout
    done = empty.command("run", "--local", source=source)
    assert f"WARNING: {odd}" in done.stderr
    manifest.write_text("")
    for name, *options in (("plan",), ("run", "--local")):
        done = empty.command(name, *options, source=source)
        assert "nothing is listed, expected recordings of before" in done.output
    plan = empty.command("plan")
    assert "# listed     1 file" in plan.stdout
    assert "# warning    1 link of the source excluded: their targets are missing" in plan.stdout


@pytest.mark.parametrize(
    ("source", "output", "advice"),
    [
        ("in/a/b", "in", "in/transcripts"),
        ("in/a/b", "in/a/b/", "in/a/b/transcripts"),
        ("in/a/*/*.wav", "./in/a", "./in/a/transcripts"),
        ("in/**", "in", "in/transcripts"),
        ("in/transcripts", "in", "in-transcripts"),
    ],
)
def test_an_output_that_holds_the_source_is_refused_before_anything_is_written(
    empty: Job, monkeypatch: pytest.MonkeyPatch, source: str, output: str, advice: str
) -> None:
    """Before: none was listed, code 0, nothing counted."""
    monkeypatch.chdir(empty.inbox.parent)
    for folder in ("a/b", "transcripts"):
        (empty.inbox / folder).mkdir(parents=True)
        (empty.inbox / folder / "talk.wav").write_bytes(b"no sound")
    before = sorted(empty.inbox.rglob("*"))
    uris = f"uri: '{source}'"
    for name, *options in (("plan",), ("run", "--local"), ("nightly", "--local")):
        refused = empty.command(name, *options, "--set", f"output.uri={output}", source=uris)
        words = " ".join(refused.stderr.split())
        assert refused.exit_code == 2, refused.output
        assert f"found {output}, which contains source.uri" in words
        assert f"set output.uri={advice}" in words
    assert sorted(empty.inbox.rglob("*")) == before
    followed = empty.command("plan", "--set", f"output.uri={advice}", source=uris)
    assert "# listed     1 file" in followed.stdout or "# listed     2 files" in followed.stdout
    # A file that is named in full is listed wherever it is.
    named = empty.command("plan", "--set", "output.uri=in", source="uri: in/a/b/talk.wav")
    assert "# listed     1 file" in named.stdout


def test_what_a_glob_finds_in_the_output_is_counted(empty: Job) -> None:
    (empty.inbox / "a.wav").write_bytes(b"no sound")
    output = empty.inbox / "out"
    output.mkdir()
    (output / "b.wav").write_bytes(b"no sound")
    for name, *options in (("plan",), ("run", "--local")):
        done = empty.command(
            name, *options, "--set", f"output.uri={output}", "--set", "source.exclude=c*",
            source=f"uri: {empty.inbox}/**",
        )  # fmt: skip
        assert "1 in the output folder" in done.output


def test_after_an_empty_run_settings_may_change_and_recordings_come(empty: Job) -> None:
    assert empty.command("run", "--local").exit_code == 0
    clip = Path("tests/data/clips/silence.flac")
    (empty.inbox / clip.name).write_bytes(clip.read_bytes())
    done = empty.command("run", "--local", "--set", "decoding.language=en")
    assert done.exit_code == 0, done.output
    assert "1 recording, 1 done (1 without speech)" in done.stdout
    assert pq.read_table(empty.output / "segments").num_rows == 0
    assert pq.read_table(empty.output / "recordings")["status"].to_pylist() == ["no_speech"]
    again = empty.command("run", "--local", "--set", "decoding.language=en")
    assert again.exit_code == 0, again.output


def test_classes_without_recordings_have_their_table(empty: Job) -> None:
    done = empty.command("run", "--local", "--set", "pipeline=classify_audio")
    assert done.exit_code == 0, done.output
    assert same_schema(pq.read_table(empty.output / "labels").schema, LABELS)
