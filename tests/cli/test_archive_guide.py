"""Every command of the guides to an archive runs, in their order, on a folder that a run made."""

import contextlib
import datetime
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.schemas import RECORDINGS
from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.runs import correct_segment
from tests.support.tables import held_by, rows_of, stored_segments

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
SPEECH = REPOSITORY / "tests" / "data" / "speech" / "english_short"
PAGES = ("archive.md", "removing.md", "forgetting.md")  # in docs/how-to
GUIDE = "\n".join((REPOSITORY / "docs" / "how-to" / name).read_text() for name in PAGES)
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"^```console\n(.*?)^```$", GUIDE, re.M | re.S)
    for line in block.splitlines()
]
# What each answers, in what happens to the archive below.
ANSWERS = {
    "run archive.yaml": r"this run: 1 recording, .*, 1 moved\n",
    'plan archive.yaml --redo "confidence < 0.8"': r"redo +1 recording to process again",
    'run archive.yaml --redo "confidence < 0.8" --set decoding.beam_size=2': (
        r"3 recordings, 3 done .*this run: 1 recording,"
    ),
    "remove s3://transcripts --gone --older-than 30d": r"deleted\.mp3: .*1 recording of 4 is gone",
    "remove s3://transcripts --gone --older-than 30d --yes": r"removed 1 recording\n",
    "remove s3://transcripts --uri '*/interview-0417.wav'": (
        r"1 recording, \d segment.*nothing was changed"
    ),
    "remove s3://transcripts --uri '*/interview-0417.wav' --yes": r"erased 1 recording",
    "remove s3://transcripts --speaker 'Ada Lovelace' --yes": (
        r"erased name and voice of Ada Lovelace, in 1 recording"
    ),
}


def test_every_command_of_the_guide_is_executed_below() -> None:
    assert [f"corpus-asr {command}" for command in ANSWERS] == COMMANDS
    table = re.findall(r"^\| (?!What|---)", GUIDE, re.M)
    assert 10 <= len(table) <= 15


class Living:
    """An archive, and its output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.output = folder / "recordings", folder / "transcripts"
        self.store = OutputStore(str(self.output))
        self.source.mkdir()
        for name, of in {
            "interview-0417.wav": "cheetah_en.wav", "deleted.mp3": "cv6_common_voice_en_46854.mp3",
            "old/ada.mp3": "cv6_common_voice_en_17254709.mp3",
        }.items():  # fmt: skip
            self.add(name, of)
        [settings] = re.findall(r"^```yaml\n# archive.yaml\n(.*?)^```$", GUIDE, re.M | re.S)
        quick = "decoding: {beam_size: 1}\n"
        (folder / "archive.yaml").write_text(self.local(settings) + quick)

    def add(self, name: str, of: str) -> None:
        path = self.source / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(SPEECH / of, path)

    def local(self, text: str) -> str:
        return text.replace("s3://", f"{self.folder}/")

    def do(self, command: str, *, code: int = 0) -> str:
        """Execute a command of the guide; return what it says."""
        words = shlex.split(self.local(command))
        if words[0] in ("run", "nightly"):  # without Ray
            words.append("--local")
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == code, done.output
        return done.output

    def segments(self, name: str) -> list[dict[str, Any]]:
        return [
            row for row in rows_of(stored_segments(self.store)) if row["uri"].endswith(f"/{name}")
        ]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Living:
    monkeypatch.chdir(tmp_path)
    living = Living(tmp_path)
    living.do("run archive.yaml")
    return living


def test_the_commands_answer_as_the_guide_says(archive: Living) -> None:
    store = archive.store
    (archive.source / "deleted.mp3").unlink()
    (archive.source / "old").rename(archive.source / "renamed")
    archive.add("late.mp3", "cv6_common_voice_en_685023.mp3")
    [segment] = archive.segments("ada.mp3")
    correct_segment(store, segment["text"].strip(), "What a person hears.")
    (archive.output / "speakers.csv").write_text(
        f"uri,speaker,name\n{archive.source}/old/ada.mp3,S1,Ada Lovelace\n"
    )
    moved = f"#            {archive.source}/old/ada.mp3 -> {archive.source}/renamed/ada.mp3\n"
    assert moved in archive.do("plan archive.yaml")
    for command, answer in ANSWERS.items():
        said = archive.do(command)
        assert re.search(answer, said, re.DOTALL), said
        if command == "run archive.yaml":
            backdate(store, datetime.timedelta(days=31))
            shown = archive.do("show s3://transcripts --uri '*/renamed/ada.mp3'")
            assert "What a person hears." in shown
            changed = archive.do("run archive.yaml --set decoding.beam_size=2", code=2)
            assert re.search(r"decoding\.beam_size: was .*, now 2\).*--redo all", changed)
            queries = re.findall(r"^```sql\n(.*?)^```$", GUIDE, re.M | re.S)
            gone, named = (
                duckdb.connect().sql(archive.local(query)).to_arrow_table()["uri"].to_pylist()
                for query in queries
            )
            assert [Path(uri).name for uri in gone] == ["deleted.mp3"]
            assert named == [], "no manifest names a guest"
            [code] = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(archive.local(code), {})
            assert printed.getvalue() == f"--uri '{archive.source}/renamed/ada.mp3'\n"
            with Lock(store, "another"):
                assert "in use by run another" in archive.do("run archive.yaml", code=2)
    assert "forgotten  1 file" in archive.do("plan archive.yaml --set decoding.beam_size=2")
    assert not archive.segments("interview-0417.wav")
    assert len(archive.segments("ada.mp3")) == 1
    assert "Ada" not in (archive.output / "speakers.csv").read_text()


def backdate(store: OutputStore, age: datetime.timedelta) -> None:
    """Let recordings have been gone for so much longer."""
    for name in store.names("recordings"):
        rows = store.read_table(name, RECORDINGS)
        at = rows.schema.get_field_index("gone_since")
        before = pc.subtract(rows["gone_since"], pa.scalar(age, pa.duration("ms")))
        store.write_table(name, rows.set_column(at, rows.schema.field(at), before))


EVERYTHING = """
pipeline: pseudo_label
source: {{manifest: {folder}/list.jsonl, allow_local_files: true}}
model: {{checkpoint: whisper-tiny.en}}
speakers: corpus
decoding: {{word_timestamps: true}}
output:
  uri: {folder}/transcripts
  max_failed_fraction: 1
selection: {{min_avg_logprob: null}}
dataset: {{uri: {folder}/set, workers: 1, validation_fraction: 0}}
"""


@pytest.mark.slow
def test_no_byte_is_left_of_a_folder_with_every_feature_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of pseudo-labels over a manifest, by speakers; and what follows it."""
    monkeypatch.chdir(tmp_path)
    living = Living(tmp_path)
    living.add("quillfeather.mp3", "cv6_common_voice_en_685023.mp3")
    (living.source / "broken-quillfeather.mp3").write_bytes(b"no sound" * 100)
    quill = sorted(str(path) for path in living.source.glob("*quillfeather.mp3"))
    lines = [
        {"audio_filepath": str(path), "text": f"{path.stem} said so", "show": f"of {path.stem}"}
        for path in living.source.rglob("*.*")
    ]
    Path("list.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    Path("archive.yaml").write_text(EVERYTHING.format(folder=tmp_path))
    night = EVERYTHING.replace("pipeline: pseudo_label", "").partition("selection:")[0]
    Path("night.yaml").write_text(night.format(folder=tmp_path))
    for command in (
        "nightly night.yaml",
        "run archive.yaml --redo all --set decoding.beam_size=2",
        "evaluate s3://transcripts --references list.jsonl",
        "report s3://transcripts --json",
    ):
        living.do(command)
    [segment, *_] = living.segments("quillfeather.mp3")
    correct_segment(living.store, segment["text"].strip(), "Zanzibar.")
    said = f"{quill[1]},S1,Adalovelace\n{living.source}/old/ada.mp3,S1,Bo\n"
    (living.output / "speakers.csv").write_text(f"uri,speaker,name\n{said}")
    living.do("label archive.yaml --set decoding.beam_size=2 --set dataset.uri=s3://second")
    needles = ["quillfeather", "Zanzibar", "Adalovelace", segment["text"].strip(),
               *map(recording_id, quill)]  # fmt: skip

    def saying() -> list[tuple[str, str]]:
        files = held_by(str(living.output)).items()
        return [(name, needle) for name, data in files for needle in needles
                if needle.encode() in data]  # fmt: skip

    before = saying()
    for name in (
        "nights/",
        "evaluation.json",
        "report.html",
        "report.failures.csv",
        "_run/plan/",
        "corrections/",
        "speakers",
        "voices/",
    ):
        assert any(each.startswith(name) for each, _ in before), name
    told = living.do("remove s3://transcripts --uri '*quillfeather.mp3' --yes")
    for name in ("set", "second"):
        assert f"dataset of this folder: {tmp_path}/{name}; remove it" in told
    assert saying() == []
    living.do("run night.yaml --set decoding.beam_size=2")
    assert saying() == []
    needles[:] = ["Bo\n", "'Bo'"]
    living.do("remove s3://transcripts --speaker Bo --yes")
    assert saying() == []
