"""Runs made in this process, and their certificates, for the tests of `quilate verify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from quilate.cli.main import run_command_line
from quilate.cli.verify import _examined
from quilate.engine.interrupts import StopRequest
from quilate.files import read_json, write_json, write_jsonl
from quilate.recipe.evidence_stage import run_plan
from quilate.recipe.graph import build_graph
from quilate.recipe.run import _write_plan, spec_of
from quilate.recipe.schema import Recipe
from quilate.recipe.worker import run_stage
from quilate.verify.stage import Examined


def made(folder: Path, wanted: Recipe, stages: Sequence[str]) -> Path:
    """A run directory in which these stages are finished, made in this process."""
    run = folder / "run"
    graph = build_graph(wanted, folder)
    _write_plan(graph, wanted, folder, run)
    for name in stages:
        place = graph.nodes[name].folder(run)
        place.mkdir(parents=True)
        spec_of(graph.nodes[name], graph, run, folder).write(place)
        run_stage(place, StopRequest())
    return run


def folder_of(run: Path, stage: str) -> Path:
    return run / run_plan(run)["stages"][stage]["folder"]


def alter(path: Path, rows: list[dict[str, Any]], stage: Path) -> None:
    """Write other rows behind the back of a finished stage: its manifest has their sizes."""
    write_jsonl(path, rows)
    manifest = read_json(stage / "manifest.json")
    manifest["outputs"][str(path.relative_to(stage))]["bytes"] = path.stat().st_size
    write_json(stage / "manifest.json", manifest)


def examined(run: Path, stage: str) -> Examined:
    return _examined(run, run_plan(run), stage, StopRequest())


def certificate(run: Path, stage: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run_command_line(["verify", str(run), stage, "--json"])
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[0])
    return code, value


def failed(value: dict[str, Any]) -> list[str]:
    return [check["name"] for check in value["checks"] if check["outcome"] == "fail"]
