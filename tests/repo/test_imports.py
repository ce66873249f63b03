"""The layers, the library doors, and what a process must not pay for when it starts."""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.repo.sources import PACKAGE, REPOSITORY, module_name, parsed, python_files, relative

STANDARD = sys.stdlib_module_names
BINARIES = Path(sys.executable).parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]

# Typing a command should feel immediate; torch alone takes more than a second to import.
HELP_LIMIT_S = 0.5


def python(code: str) -> str:
    """Run `code` in a fresh interpreter, free of the import hook, and return what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    """Return the names of the top-level modules that `statement` loads."""
    code = f"import sys, json\n{statement}\nprint(json.dumps([m for m in sys.modules]))"
    return {name.partition(".")[0] for name in json.loads(python(code).splitlines()[-1])}


def modules_below(name: str) -> list[str]:
    path = name.replace(".", "/")
    if "*" in name:
        return [module_name(each) for each in sorted(REPOSITORY.glob(f"{path}.py"))]
    below = (each for each in python_files(path) if each.name != "__init__.py")
    return [name, *map(module_name, below)]


def test_the_import_contracts_hold():
    command = [str(BINARIES / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_by_others_also_in_functions_and_for_types():
    trees = {module_name(path): parsed(path) for path in python_files("corpus_asr")}
    imports = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    graph: dict[str, set[str]] = {name: set() for name in trees}
    for name, node in imports:
        if isinstance(node, ast.ImportFrom) and node.module in trees:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & {*trees}
            graph[name] |= below or {node.module}
        elif isinstance(node, ast.Import):
            graph[name] |= {alias.name for alias in node.names} & {*trees}
    assert sum(map(len, graph.values())) > len(trees)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


@pytest.mark.long
def test_modules_of_the_torch_free_half_load_neither_torch_nor_ray():
    contract = next(c for c in CONTRACTS if c["name"].startswith("CPU workers"))
    names = [name for source in contract["source_modules"] for name in modules_below(source)]
    assert len(names) > len(contract["source_modules"])
    loaded = loaded_by("import " + ", ".join(names))
    assert not loaded & {"torch", "ray"}


def test_importing_the_package_costs_nothing():
    assert loaded_by("import corpus_asr") - loaded_by("pass") - STANDARD == {"corpus_asr"}


COMMAND = """
from corpus_asr.cli.main import main
sys.argv = ['corpus-asr', *{}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
# sympy comes with torch's compiler, which takes as long to load as torch.
LOAD = """
from corpus_asr.families.loading import load_slot_model
from corpus_asr.storage.model_files import PACKAGED_FOLDER
load_slot_model(PACKAGED_FOLDER / 'whisper-tiny.en', device='cpu', dtype='auto')
"""
HEAVY = {"torch", "ray", "numpy", "pyarrow", "av", "transformers"}
LIGHT = {
    "import corpus_asr.stages.isolation": {"email", "numpy"},  # `importlib.metadata` loads email
    "import corpus_asr.stages.cutting": {"fsspec", "pydantic"},
    "import corpus_asr.stages.extraction": {"fsspec", "torch", "ray"},
    "import corpus_asr.pipelines.driver": {"ray", "torch", "av", "onnxruntime", "fsspec"},
    "from corpus_asr.models.whisper import WhisperTokenizer": {"torch"},
    "import corpus_asr.models.speech2text, corpus_asr.models.whisper": {
        "numpy",
        "tokenizers",
        "torch",
    },
    "from corpus_asr.audio.vad import SileroDetector; SileroDetector()": {
        "onnxruntime",
        "torch",
    },
    LOAD: {"ray", "av", "sympy"},
    COMMAND.format(["--help"]): {*HEAVY, "pydantic"},
    COMMAND.format(["--version"]): {*HEAVY, "pydantic"},
    COMMAND.format(["transcribe", "--help"]): HEAVY,  # Typer itself loads pydantic for options
}


@pytest.mark.parametrize("statement", LIGHT)
def test_what_must_be_quick_loads_nothing_heavy(statement):
    assert not loaded_by(statement) & LIGHT[statement]


def test_only_a_training_loads_the_settings_of_one():
    code = "import sys; from corpus_asr.config import load; print('{0}' in sys.modules, end='')"
    assert python(code.format("corpus_asr.config.finetune")) == "False"


def test_files_are_transcribed_without_what_only_jobs_keep():
    # Their tables take a tenth of a second to import.
    needed = "cli.display, corpus_asr.cli.output_files, corpus_asr.runtime.transcriber"
    code = f"import sys, corpus_asr.{needed}; print(*sys.modules, end='')"
    loaded = python(code).split()
    assert not [name for name in loaded if name.startswith("corpus_asr.storage.run_state.")]


def test_a_run_loads_nothing_that_only_some_jobs_ask_for():
    code = "import sys, corpus_asr.pipelines.driver; print(*sys.modules, end='')"
    some = ("runtime.hooks", "runtime.complete_recordings", "storage.run_state.duplicates",
            "storage.run_state.forget", "storage.run_state.rewriting", "edits")  # fmt: skip
    assert not {f"corpus_asr.{name}" for name in some} & {*python(code).split()}


def test_help_answers_at_once():
    command = [str(BINARIES / "corpus-asr"), "--help"]
    spent_s = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        # CPU time, since a busy machine would make any wall-clock limit a matter of luck.
        used = after.children_user + after.children_system
        spent_s.append(used - before.children_user - before.children_system)
    assert min(spent_s) < HELP_LIMIT_S


def test_parquet_is_read_and_written_in_one_module_only():
    # import-linter does not look inside external packages.
    paths = python_files("corpus_asr")
    users = {relative(path) for path in paths if "pyarrow.parquet" in imported_names(path)}
    assert users == {"corpus_asr/storage/parquet.py"}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_package_inits_are_empty_so_that_classes_pickle_by_reference():
    # Those that are not offer names lazily, and load nothing when imported (tested above).
    families = {f"corpus_asr/models/{name}/__init__.py" for name in ("speech2text", "whisper")}
    lazy = {"corpus_asr/__init__.py", "corpus_asr/models/__init__.py", *families}
    assert {relative(path) for path in PACKAGE.rglob("__init__.py") if path.stat().st_size} <= lazy


def test_every_library_imported_is_a_declared_dependency_and_the_other_way_round():
    declared = {re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["dependencies"]}  # type: ignore[index]
    imported = set()
    for path in python_files("corpus_asr"):
        imported |= {name.partition(".")[0] for name in imported_names(path)}
    used = {DISTRIBUTIONS.get(name, name) for name in imported - STANDARD}
    assert used - {"corpus_asr"} - set(OPTIONAL) <= declared
    assert declared <= used


DISTRIBUTIONS = {"yaml": "pyyaml"}
OPTIONAL = {
    "icu4py": "the extra lines; without it, lines of scripts without spaces divide words",
    **dict.fromkeys(("datasets", "peft", "transformers"), "of the extra finetune"),
    "triton": "torch's builds for CUDA bring it, and without it its kernels are plain torch",
}
