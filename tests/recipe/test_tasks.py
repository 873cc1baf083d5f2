"""Recipes of several tasks: what they may say, and which stages they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quilate.config import validate
from quilate.errors import ConfigError
from quilate.recipe.graph import build_graph
from quilate.recipe.schema import Recipe

ROWS = "texto,etiqueta\nuno,a\ndos,b\n"


def recipe(**keys: Any) -> Recipe:
    task = {"text": "texto", "label": "etiqueta"}
    value: dict[str, Any] = {
        "recipe": "r",
        "base": "base",
        "data": {"all": {"path": "meta.csv"}},
        "task": {"name": "meta"} | task,
        "tasks": {"tono": {"data": {"all": {"path": "tono.csv"}}, "task": {"name": "tono"} | task}},
        "stages": {
            "first": {"kind": "finetune", "task": "tono", "method": "full"},
            "both": {"kind": "multitask", "tasks": ["task", "tono"], "method": "lora", "once": True},
        },
        "arms": {
            "direct": {"kind": "finetune", "method": "full"},
            "after": {"kind": "finetune", "method": "full", "on": "first"},
            "frozen": {"kind": "finetune", "method": "head"},
        },
    }
    return validate(Recipe, value | keys, source="recipe")


def test_the_stages_of_several_tasks(tmp_path: Path, llama_directory: Path) -> None:
    for name in ("meta.csv", "tono.csv"):
        (tmp_path / name).write_text(ROWS, encoding="utf-8")
    graph = build_graph(recipe(base=str(llama_directory), seeds=[0, 1]), tmp_path)
    nodes = graph.nodes
    assert nodes["task-tono"].inputs == {"task:task": "task"}  # checked for leaks against it
    assert nodes["first-s1"].inputs == {"task": "task-tono", "model": "base"}
    assert nodes["both-s0"].inputs == {"task:task": "task", "task:tono": "task-tono", "model": "base"}
    assert "both-s1" not in nodes
    assert nodes["after-s1"].inputs == {"task": "task", "model": "first-s1"}
    assert not {"task", "once"} & set(nodes["first-s0"].config)
    asked = {name for name, node in nodes.items() if node.kind == "ask"}
    expected = {f"{m}-s{s}-on-{t}" for m in ("first", "direct", "after") for s in (0, 1) for t in ("task", "tono")}
    assert asked == expected | {f"{m}-on-{t}" for m in ("base", "both-s0") for t in ("task", "tono")}
    rows = {(row["model"], row["task"]): row for row in nodes["report"].config["asked"]}
    assert len(rows) == 5 * 2
    assert rows["after", "tono"]["evaluations"] == [f"after-s{s}-on-tono-evaluate" for s in (0, 1)]
    assert (rows["after", "tono"]["on"], rows["after", "tono"]["trained_on"]) == ("first", ["task"])
    assert (rows["both", "task"]["on"], rows["both", "task"]["trained_on"]) == ("base", ["task", "tono"])
    assert (rows["base", "task"]["on"], rows["base", "task"]["trained_on"]) == (None, [])
    # What arms cost is what stands behind their own evaluations: none of this.
    assert not any("-on-" in node.name for node in graph.upstream("after-s0-evaluate"))


def test_text_is_kept_clean_of_every_task(tmp_path: Path, llama_directory: Path) -> None:
    for name in ("meta.csv", "tono.csv", "texto.txt"):
        (tmp_path / name).write_text(ROWS, encoding="utf-8")
    keys = {"corpora": {"c": {"path": "texto.txt"}}, "curated": {"k": {"sources": {"a": {"path": "texto.txt"}}}}}
    nodes = build_graph(recipe(base=str(llama_directory), **keys), tmp_path).nodes
    both = {"task": "task", "task:tono": "task-tono"}
    assert nodes["corpus-c"].inputs == nodes["curated-k"].inputs == both


def test_a_recipe_of_one_task_asks_nothing_more(tmp_path: Path, llama_directory: Path) -> None:
    (tmp_path / "meta.csv").write_text(ROWS, encoding="utf-8")
    stages = {"step": {"kind": "finetune", "method": "full", "once": True}}
    arms = {"a": {"kind": "finetune", "method": "full"}, "b": {"kind": "finetune", "method": "lora", "on": "step"}}
    graph = build_graph(recipe(base=str(llama_directory), tasks={}, stages=stages, arms=arms, seeds=[0]), tmp_path)
    assert {node.kind for node in graph.nodes.values()} == {"task", "base", "finetune", "evaluate", "report"}
    assert graph.nodes["step-s0"].id == graph.nodes["a-s0"].id  # one config on one task and base is one model


ALONE = {"arms": {"a": {"kind": "finetune", "method": "full"}}}
LISTED = {"kind": "extraction", "name": "notas", "text": "texto", "spans": "entidades"}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (
            {"stages": {"s": {"kind": "finetune", "task": "otra", "method": "full"}}} | ALONE,
            "'otra', which is no task",
        ),
        ({"stages": {"s": {"kind": "multitask", "tasks": ["task", "task"], "method": "full"}}}, "named twice"),
        ({"stages": {"s": {"kind": "finetune", "method": "head"}}} | ALONE, "makes no model to stand on"),
        ({"stages": {"s": {"kind": "multitask", "tasks": ["task", "tono"], "method": "head"}}}, "trains no model"),
        ({"task": LISTED, "arms": {}}, "`arms` is missing"),
        ({"task": LISTED, "arms": {"a": {"kind": "finetune", "method": "full"}}}, "own task cannot be extraction"),
        (
            {
                "tasks": {"notas": {"data": {"all": {"path": "n.jsonl"}}, "task": LISTED}},
                "stages": {"s": {"kind": "finetune", "task": "notas", "method": "full"}},
                **ALONE,
            },
            "use `kind: multitask`, also for one task",
        ),
        (
            {
                "stages": {"s": {"kind": "finetune", "method": "prompt"}},
                "arms": {"a": {"kind": "finetune", "method": "full", "on": "s"}},
            },
            "learned tokens cannot be merged",
        ),
    ],
)
def test_what_is_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        recipe(**keys)
