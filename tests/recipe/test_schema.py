"""What a recipe may say about what stands on what, and how often an arm is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from quilate.config import validate
from quilate.engine.interrupts import StopRequest
from quilate.errors import ConfigError, GateError
from quilate.recipe.graph import Graph, build_graph, is_deterministic, phase_and_method, seeds_of
from quilate.recipe.run import run_recipe
from quilate.recipe.schema import Recipe, needs


def recipe(**arms: Any) -> Recipe:
    value = {
        "recipe": "r",
        "base": "here",
        "data": {"all": {"path": "a.csv"}},
        "task": {"name": "t", "text": "texto", "label": "etiqueta"},
        "corpora": {"c": {"path": "c.txt"}},
        "stages": {"tapt": {"kind": "adapt", "corpora": {"task": 1.0}}},
        "arms": arms,
        "seeds": [0, 1],
    }
    return validate(Recipe, value, source="t")


def tuned(method: str, **keys: Any) -> dict[str, Any]:
    return {"kind": "finetune", "method": method} | keys


def test_a_head_is_run_once_unless_what_it_stands_on_is_random() -> None:
    one = recipe(plain=tuned("head"), adapted=tuned("head", on="tapt"), lora=tuned("lora"))
    assert [len(seeds_of(one, one.arms[name])) for name in ("plain", "adapted", "lora")] == [1, 2, 2]
    words = {"kind": "baseline", "method": "tfidf"}
    few = recipe(all=words, some=words | {"train_rows": 50}, head=tuned("head", train_rows=50))
    assert [len(seeds_of(few, arm)) for arm in few.arms.values()] == [1, 2, 2]
    assert phase_and_method(one, one.arms["plain"]) == ("fine-tuning", "head")
    assert phase_and_method(one, one.arms["adapted"]) == ("fine-tuning", "tapt then head")


def test_a_part_of_a_recipe_is_what_it_names_and_what_that_stands_on() -> None:
    graph = Graph(recipe(lora=tuned("lora", on="tapt")))
    for name, inputs in {"base": [], "tapt-s0": ["base"], "lora-s0": ["tapt-s0"], "lora-s1": ["base"],
                         "lora-s0-evaluate": ["lora-s0"], "lora-s1-evaluate": ["lora-s1"]}.items():  # fmt: skip
        graph.add(name, "finetune", {}, {source: source for source in inputs})
    assert [node.name for node in graph.part("lora-s0")] == ["base", "tapt-s0", "lora-s0"]
    assert [node.name for node in graph.part("lora")] == list(graph.nodes)
    assert [node.name for node in graph.part("tapt")] == ["base", "tapt-s0"]
    with pytest.raises(ConfigError, match="no stage or arm 'lorra'") as wrong:
        graph.part("lorra")
    assert wrong.value.hint == "did you mean 'lora'?"


def test_a_model_made_once_serves_every_seed() -> None:
    arms = {"zero": {"kind": "icl", "on": "tapt"}, "frozen": tuned("head", on="tapt"), "lora": tuned("lora", on="tapt")}
    value = recipe(**arms).as_json()
    assert [len(seeds_of(validate(Recipe, value, source="t"), arm)) for arm in recipe(**arms).arms.values()] == [
        2,
        2,
        2,
    ]
    value["stages"]["tapt"]["once"] = True
    once = validate(Recipe, value, source="t")
    assert [len(seeds_of(once, arm)) for arm in once.arms.values()] == [1, 1, 2]
    assert not any(is_deterministic(once, arm) for arm in once.arms.values())


def test_nothing_stands_on_a_head() -> None:
    with pytest.raises(ConfigError, match="makes no model"):
        recipe(first=tuned("head"), second=tuned("lora", on="first"))


@pytest.mark.parametrize("method", ["full", "lora", "adapter", "last_layers"])
def test_no_weights_train_on_top_of_a_bottleneck(method: str) -> None:
    with pytest.raises(ConfigError, match="cannot be merged"):
        recipe(first=tuned("adapter"), second=tuned(method, on="first"))


def test_a_head_and_a_prompt_may_stand_on_a_bottleneck() -> None:
    one = recipe(first=tuned("adapter"), second=tuned("head", on="first"), third={"kind": "icl", "on": "first"})
    assert [phase_and_method(one, one.arms[name])[1] for name in ("second", "third")] == [
        "first then head",
        "first then zero-shot",
    ]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"method": "full", "adapter": {"size": 8}}, "`adapter` settings"),
        ({"method": "head", "last_layers": 1}, "`last_layers` settings"),
        ({"method": "head", "lr": 1e-3}, "`lr`"),
    ],
)
def test_settings_go_with_their_method(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        recipe(arm={"kind": "finetune"} | keys)


def test_what_is_only_measured_is_not_trained_on() -> None:
    value = recipe(arm=tuned("head", on="tapt")).as_json()
    value["corpora"]["c"]["held_out"] = 1
    validate(Recipe, value, source="t")
    value["stages"]["tapt"]["corpora"]["c"] = 0.5
    with pytest.raises(ConfigError, match="all of which is held out"):
        validate(Recipe, value, source="t")


def test_a_recipe_may_only_make_models() -> None:
    made = {
        "recipe": "r",
        "corpora": {"c": {"path": "c.txt"}},
        "stages": {"new": {"kind": "pretrain", "corpora": {"c": 1.0}}},
    }
    validate(Recipe, made, source="t")
    with pytest.raises(ConfigError, match="`data` is missing"):
        validate(Recipe, made | {"arms": {"a": {"kind": "baseline", "method": "tfidf"}}}, source="t")
    with pytest.raises(ConfigError, match="names 'task', which is not in `corpora`"):
        validate(Recipe, made | {"stages": {"new": {"kind": "pretrain", "corpora": {"task": 1.0}}}}, source="t")
    with pytest.raises(ConfigError, match="nothing to do"):
        validate(Recipe, {"recipe": "r"}, source="t")


def test_an_arm_without_a_kind_is_told_so() -> None:
    with pytest.raises(ConfigError, match=r"arms\.lora: `kind` is missing"):
        recipe(lora={"lr": 1e-4})


def aligned(**stages: Any) -> Recipe:
    sets = {"juicios": {"path": "j.jsonl"}, "ajenos": {"path": "k.jsonl", "held_out": 1}}
    return validate(Recipe, {"recipe": "r", "base": "here", "preferences": sets, "stages": stages}, source="t")


def test_judgements_are_named_and_some_of_them_are_trained_on() -> None:
    judge = {"kind": "reward", "preferences": ["juicios"]}
    polite = {"kind": "dpo", "preferences": ["juicios"]}
    aligned(judge=judge, polite=polite, further=polite | {"on": "polite", "loss": "kto"})
    with pytest.raises(ConfigError, match="'otros', which is not in `preferences`; known: juicios, ajenos"):
        aligned(judge=judge | {"preferences": ["otros"]})
    with pytest.raises(ConfigError, match="trains on 'ajenos', all of which is held out"):
        aligned(polite=polite | {"preferences": ["ajenos"]})
    with pytest.raises(ConfigError, match="makes no model"):
        aligned(judge=judge, polite=polite | {"on": "judge"})


def test_prompting_an_aligned_model_is_alignment() -> None:
    value = recipe(zero={"kind": "icl", "on": "tapt"}).as_json()
    value["preferences"] = {"juicios": {"path": "j.jsonl"}}
    value["stages"]["polite"] = {"kind": "dpo", "preferences": ["juicios"]}
    value["arms"]["zero"]["on"] = "polite"
    one = validate(Recipe, value, source="t")
    assert phase_and_method(one, one.arms["zero"]) == ("alignment", "polite then zero-shot")


def test_rewards_come_from_reward_stages_wherever_they_stand_in_the_file() -> None:
    judged = {"judge": {"kind": "stage", "on": "judge"}}
    online = {"kind": "ppo", "preferences": ["juicios"], "rewards": judged}
    judge = {"kind": "reward", "preferences": ["juicios"]}
    one = aligned(online=online, further={**online, "kind": "grpo", "on": "online"}, judge=judge)
    assert needs(one.stages["online"]) == ["judge", "juicios"]  # a set of judgements may be a stage's
    assert needs(one.stages["further"]) == ["online", "judge", "juicios"]
    with pytest.raises(ConfigError, match="rewarded by 'online', which is no `reward` stage; known: judge"):
        aligned(judge=judge, online={**online, "rewards": {"judge": {"kind": "stage", "on": "online"}}})
    with pytest.raises(ConfigError, match="in a circle: judge -> online -> judge"):
        aligned(judge={**judge, "on": "online"}, online=online)
    with pytest.raises(ConfigError, match="'otros', which is not in `conversations`"):
        aligned(judge=judge, online={**online, "conversations": ["otros"]})
    with pytest.raises(ConfigError, match="'textos', which is not in `corpora`"):
        aligned(judge=judge, online={**online, "text": {"corpora": ["textos"]}})


def test_a_changed_rule_is_another_stage(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text("{}\n")
    rewarded = {
        "kind": "grpo",
        "preferences": ["j"],
        "rewards": {"r": {"kind": "rules", "path": "r.yaml"}},
        "on": "new",
    }
    new = {"kind": "pretrain", "size": "tiny", "corpora": {"c": 1.0}}
    (tmp_path / "c.txt").write_text("Un texto.\n", encoding="utf-8")
    value = {
        "recipe": "r", "corpora": {"c": {"path": "c.txt"}}, "preferences": {"j": {"path": "j.jsonl"}},
        "stages": {"rewarded": rewarded, "new": new}, "seeds": [0],
    }  # fmt: skip
    ids = []
    for score in (1.0, 2.0):
        (tmp_path / "r.yaml").write_text(f"rules:\n  - {{name: a, pattern: a, score: {score}}}\n")
        ids.append(build_graph(validate(Recipe, value, source="t"), tmp_path).nodes["rewarded-s0"].id)
    assert ids[0] != ids[1]


def rewarded(**stages: Any) -> dict[str, Any]:
    sets = {"p": {"path": "p.jsonl"}}
    return {"recipe": "r", "base": "here", "preferences": sets, "stages": stages}


def test_a_recipe_does_not_run_code_unless_it_is_allowed_to(tmp_path: Path) -> None:
    source = {"kind": "function", "path": "premio.py:f"}
    for name in ("premio.py", "p.jsonl", "here.gguf"):
        (tmp_path / name).write_bytes(b"")
    value = rewarded(policy={"kind": "grpo", "preferences": ["p"], "rewards": {"mía": source}})
    judged = rewarded(policy={"kind": "dpo", "preferences": ["p"]})
    judged["alignment"] = {"preferences": ["p"], "judges": {"mía": source}}
    for recipe, who in ((value, "stage 'policy-s0'"), (judged, "stage '[a-z0-9-]+-assay'")):
        with pytest.raises(GateError, match=rf"{who} would run Python code, premio\.py:f"):
            run_recipe(
                validate(Recipe, recipe, source="t"), base_folder=tmp_path, out=tmp_path / "run",
                listener=Mock(), stop=StopRequest(),
            )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["cloning", "ilql"])
def test_stages_on_a_reward_labelled_set_name_one(kind: str) -> None:
    one = validate(Recipe, rewarded(first={"kind": kind, "preferences": ["p"]}), source="t")
    assert needs(one.stages["first"]) == ["p"] and seeds_of(one, one.stages["first"]) == one.seeds
    with pytest.raises(ConfigError, match="'first' names 'q'"):
        validate(Recipe, rewarded(first={"kind": kind, "preferences": ["q"]}), source="t")
    judge = {"kind": "stage", "on": "j"}
    with pytest.raises(ConfigError, match="rewards"):
        validate(Recipe, rewarded(first={"kind": kind, "preferences": ["p"], "rewards": {"j": judge}}), source="t")
