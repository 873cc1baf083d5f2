"""A plan's counts against what the same recipe then did; a probe; what the command line says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from support import SENTENCES, tiny_llama

from quilate.config import validate
from quilate.files import read_json, write_jsonl
from quilate.plan.estimate import plan_recipe, read_inputs
from quilate.plan.models import Model
from quilate.plan.probe import ProbeSpec, Rate, _Probe, measured
from quilate.plan.workloads import _largest_first
from quilate.recipe.executors.subprocess import stage_environment
from quilate.recipe.graph import build_graph
from quilate.recipe.schema import Recipe


def test_dimensions_are_those_of_the_loaded_model(llama_directory: Path) -> None:
    model = tiny_llama()
    dimensions, trainable = Model(llama_directory).dimensions(None)
    assert dimensions.parameters == trainable == sum(p.numel() for p in model.parameters())
    assert (dimensions.hidden, dimensions.layers, dimensions.vocabulary) == (32, 2, 384)
    with_lora, of_lora = Model(llama_directory).dimensions({"method": "lora", "lora": {"rank": 4}})
    linear = [m for m in model.model.layers.modules() if isinstance(m, type(model.lm_head))]
    assert of_lora == sum(4 * (m.in_features + m.out_features) for m in linear)
    assert with_lora.parameters == dimensions.parameters + of_lora


def test_a_probe_is_run_once(llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it comes from the cache, also for another directory of the same shape; not for other sizes."""
    monkeypatch.setenv("QUILATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QUILATE_KERNELS", "off")  # they would be compiled again, for the new cache
    spec = ProbeSpec(
        str(llama_directory), "train", "fp32", [[[(12, 3), (9, 2)], [(7, 1)]], [[(12, 3)]]], {"method": "full"}
    )
    said: list[str] = []
    rate = measured(spec, stage_environment(offline=True), note=said.append)
    assert min(rate.token.seconds, rate.token.cpu_seconds) > 0 and rate.peak_bytes > 50e6
    assert rate.trainable == rate.parameters == sum(p.numel() for p in tiny_llama().parameters())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((llama_directory / "config.json").read_bytes())
    assert measured(replace(spec, model=str(other)), {}, note=said.append) == rate
    assert len(said) == 1
    kept = list((tmp_path / "cache" / "probes").iterdir())
    assert [Rate.from_json(read_json(path)) for path in kept] == [rate]
    assert replace(spec, activity="loss").key() != spec.key()


@pytest.mark.parametrize(("enough", "steps"), [(0.0, 5), (1e9, 8)])
def test_a_probe_stops_where_steps_take_long(
    llama_directory: Path, monkeypatch: pytest.MonkeyPatch, enough: float, steps: int
) -> None:
    monkeypatch.setattr("quilate.plan.probe.ENOUGH_SECONDS", enough)
    run: list[int] = []
    monkeypatch.setattr("quilate.engine.loop.optimizer_step", lambda batches, *_, **__: run.append(batches[0].tokens))
    spec = ProbeSpec(str(llama_directory), "train", "fp32", [[[(9, 1)]], *([[(4, 1)]] for _ in range(7))])
    tokens, _, _ = _Probe(spec)._train()
    assert run == [9] + [4] * (steps - 1)
    assert tokens == 4 * (steps - 1)  # the first warms up


def test_the_largest_step_comes_first_and_none_is_lost() -> None:
    steps = [[[(n, 1)], [(2, 1)]] for n in (3, 5, 9, 4)]
    ordered = _largest_first(steps)
    assert ordered[0] == steps[2]
    assert sorted(ordered) == sorted(steps)


def test_what_cannot_be_known_before_is_named_with_its_reason(llama_directory: Path, tmp_path: Path) -> None:
    """A search is all of its trials, labels alone are planned for `loss: kto`, and a plan runs nobody's code."""
    texts = [f"{sentence[:40]} {n}" for n, sentence in enumerate(SENTENCES * 2)][:30]
    write_jsonl(tmp_path / "notas.jsonl", [{"t": text, "e": "rd"[n % 2]} for n, text in enumerate(texts)])
    asked = [f"Pregunta {n}: ¿{word} o no?" for n, word in enumerate(["sol", "mar", "pan", "luz", "año", "voz"] * 3)]
    judged = [{"prompt": text, "completion": "Sí, señora.", "label": n % 2 == 0} for n, text in enumerate(asked)]
    write_jsonl(tmp_path / "juicios.jsonl", judged)
    (tmp_path / "premio.py").write_text("raise SystemExit('run')", encoding="utf-8")
    split = {"train": 12, "dev": 6, "test": 6}
    arm = {"kind": "finetune", "method": "lora", "epochs": 1, "max_item_tokens": 48}
    preferred = {"preferences": ["p"], "epochs": 1}
    recipe = validate(Recipe, {
        "recipe": "r", "base": str(llama_directory), "data": {"all": {"path": "notas.jsonl"}},
        "task": {"name": "n", "text": "t", "label": "e", "labels": {"r": "uno", "d": "dos"}, "split": split},
        "preferences": {"p": {"path": "juicios.jsonl", "held_out": 0.2}},
        "stages": {
            "kto": {"kind": "dpo", "loss": "kto", **preferred},
            "policy": {"kind": "grpo", "rewards": {"f": {"kind": "function", "path": "premio.py:f"}}, **preferred},
        },
        "arms": {"searched": arm | {"search": {"lr": [1e-3, 1e-4, 1e-5]}}}, "seeds": [0],
    }, source="t")  # fmt: skip
    graph, out = build_graph(recipe, tmp_path), tmp_path / "run"
    read_inputs(recipe, graph, tmp_path, out, Mock())
    found = {e.name: e for e in plan_recipe(graph, lambda n: graph.nodes[n].folder(out), tmp_path, probe=False)}
    assert found["kto-s0"].train_tokens > 0 and found["kto-s0"].read_tokens > 0
    searched = found["searched-s0"]
    assert searched.train_tokens > 3 * 12 * 10 and searched.train_tokens % 3 == 0  # 12 items of over 10 tokens
    assert searched.read_tokens > 0 and searched.notes == ("3 trials",)
    assert not found["policy-s0"].estimated and "write" in found["policy-s0"].notes[0]


def test_a_second_seed_costs_as_much_as_the_first(llama_directory: Path, tmp_path: Path) -> None:
    """Also where the models of one task are asked another, whose nodes carry the seed in the middle of their names."""
    for name in ("a", "b"):
        rows = [{"t": f"{name} {sentence[:40]} {n}", "e": "rd"[n % 2]} for n, sentence in enumerate(SENTENCES * 2)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows[:30])
    task = {"name": "n", "text": "t", "label": "e", "split": {"train": 12, "dev": 6, "test": 6}}
    tuned = {"kind": "finetune", "method": "full", "lr": 1e-3, "epochs": 1, "max_item_tokens": 48}
    recipe = validate(Recipe, {
        "recipe": "r", "base": str(llama_directory), "data": {"all": {"path": "a.jsonl"}}, "task": task,
        "tasks": {"other": {"data": {"all": {"path": "b.jsonl"}}, "task": task}},
        "stages": {"first": tuned | {"task": "other"}}, "arms": {"then": tuned | {"on": "first"}}, "seeds": [3, 4],
    }, source="t")  # fmt: skip
    graph, out = build_graph(recipe, tmp_path), tmp_path / "run"
    read_inputs(recipe, graph, tmp_path, out, Mock())
    found = {e.name: e for e in plan_recipe(graph, lambda n: graph.nodes[n].folder(out), tmp_path, probe=False)}
    for name in ("first", "then"):
        assert found[f"{name}-s3"].estimated
        assert found[f"{name}-s4"] == replace(found[f"{name}-s3"], name=f"{name}-s4")
    assert not found["first-s4-on-task"].estimated
