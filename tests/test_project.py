"""What holds of the code as a whole: the levels, the sizes, what `--help` loads; no stage kind untried."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from quilate.cli.main import VERBS
from quilate.config import load
from quilate.recipe.graph import build_graph
from quilate.recipe.kinds import KINDS
from quilate.recipe.schema import Recipe

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "quilate").rglob("*.py"))

MAX_FUNCTION_LINES = 100
MAX_FILE_LINES = 600


def test_imports_only_go_down(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True, no_logo=True) == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_help_loads_nothing_heavy() -> None:
    """The time it takes depends on the machine; what it imports does not."""
    code = (
        "import json, sys\n"
        "from quilate.cli.main import run_command_line\n"
        "codes = [run_command_line(arguments) for arguments in json.loads(sys.argv[1])]\n"
        "print(json.dumps([codes, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    calls = [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(calls)], capture_output=True, text=True, check=True)
    codes, loaded = json.loads(done.stdout.splitlines()[-1])
    assert set(codes) == {0}
    heavy = {"torch", "transformers", "peft", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "pydantic"}
    assert heavy & set(loaded) == set()


def test_every_stage_kind_occurs_in_a_tiny_recipe(llama_directory: Path) -> None:
    """Both recipes are run by a test in tests/e2e; several tasks would make the first twice as long."""
    kinds = set()
    for name in ("tiny", "tiny-tasks"):
        recipe = load(Recipe, ROOT / "recipes" / f"{name}.yaml", [f"base={llama_directory}"])
        kinds |= {node.kind for node in build_graph(recipe, ROOT / "recipes").nodes.values()}
    elsewhere = {"api"}  # needs a server: tests/phases/test_api.py runs a recipe against one
    assert kinds == set(KINDS) - elsewhere
