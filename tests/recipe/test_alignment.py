"""How a recipe compares aligned models, and that no alignment is always among them; planted truth in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quilate.config import validate
from quilate.errors import ConfigError
from quilate.evaluation.alignment import task_tax
from quilate.evaluation.schema import Alignment, ArmEvidence, Comparison
from quilate.files import write_json, write_jsonl
from quilate.recipe.alignment import family_of, policies_of, start_of, twins, unnamed_starts, with_unaligned_arms
from quilate.recipe.alignment_stage import AlignmentStageConfig, assemble_alignment
from quilate.recipe.graph import build_graph
from quilate.recipe.schema import Recipe
from quilate.report.alignment import render_alignment, write_alignment_markdown

RULES = {"cortés": {"kind": "rules", "path": "reglas.yaml"}}


def recipe(alignment: dict[str, Any] | None = None, arms: dict[str, Any] | None = None, **stages: Any) -> Recipe:
    dpo = {"kind": "dpo", "on": "chat", "preferences": ["trato"]}
    value = {
        "recipe": "r",
        "base": "here",
        "conversations": {"c": {"path": "c.jsonl"}},
        "preferences": {"trato": {"path": "p.jsonl"}},
        "stages": {
            "chat": {"kind": "sft", "conversations": ["c"]},
            "judge": {"kind": "reward", "on": "chat", "preferences": ["trato"]},
            "polite": dpo,
            "bold": dpo | {"beta": 0.01},
            "again": dpo | {"on": "polite", "lr": 1e-4},
        }
        | stages,
    }
    if alignment is not None:
        value["alignment"] = {"preferences": ["trato"], "judges": RULES} | alignment
    if arms is not None:
        value |= {"data": {"all": {"path": "a.csv"}}, "task": {"name": "t", "text": "x", "label": "y"}, "arms": arms}
    return validate(Recipe, value, source="t")


def test_no_alignment_is_compared_whether_named_or_not() -> None:
    assert policies_of(recipe()) == ["chat", "polite", "bold", "again"]
    named = recipe({"policies": ["again"]})
    assert policies_of(named) == ["chat", "again"] and unnamed_starts(named) == ["chat"]
    assert start_of(named, "again") == "chat" and start_of(named, "chat") == "chat"
    alone = recipe({"policies": ["ahí"]}, ahí={"kind": "dpo", "preferences": ["trato"]})
    assert policies_of(alone) == ["base", "ahí"]


@pytest.mark.parametrize("kind", ["cloning", "ilql"])
def test_learning_from_a_data_set_of_rewards_is_alignment_too(kind: str) -> None:
    offline = {"kind": kind, "on": "chat", "preferences": ["trato"]}
    arms = {"tuned": {"kind": "finetune", "method": "lora", "on": "copia"}}
    whole = recipe({"policies": ["copia"]}, arms, copia=offline)
    assert policies_of(whole) == ["chat", "copia"] and start_of(whole, "copia") == "chat"
    assert with_unaligned_arms(whole)[1] == ["tuned-unaligned"]
    later = recipe(copia=offline, ppo={"kind": "ppo", "on": "copia", "preferences": ["trato"], "rewards": RULES})
    assert start_of(later, "ppo") == "chat"


def test_an_arm_is_not_replaced_by_one_that_is_added() -> None:
    tuned = {"kind": "finetune", "method": "lora", "on": "bold"}
    own = {"kind": "finetune", "method": "full", "on": "chat"}
    with pytest.raises(ConfigError, match="tuned-unaligned has the name of the arm that is added beside tuned"):
        with_unaligned_arms(recipe(arms={"tuned": tuned, "tuned-unaligned": own}))
    same = recipe(arms={"tuned": tuned, "tuned-unaligned": tuned | {"on": "chat"}})
    assert with_unaligned_arms(same) == (same, [])


def test_a_base_can_be_asked_alone(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [{"prompt": "¿Qué?", "completion": "Eso."}])
    value = {
        "recipe": "r", "base": str(tmp_path), "conversations": {"c": {"path": "c.jsonl", "held_out": 1.0}},
        "alignment": {"policies": ["base"], "conversations": ["c"], "judges": {"bien": {"kind": "answer"}}},
    }  # fmt: skip
    write_json(tmp_path / "config.json", {})
    graph = build_graph(validate(Recipe, value, source="t"), tmp_path)
    assert list(graph.nodes) == ["base", "conversations-c", "base-assay", "alignment"]
    del value["base"]
    with pytest.raises(ConfigError, match="give the recipe a `base`"):
        validate(Recipe, value, source="t")


def test_stages_that_differ_in_beta_alone_are_one_family() -> None:
    stages = recipe().stages
    assert family_of(stages["polite"]) == family_of(stages["bold"]) != family_of(stages["again"])
    assert family_of(stages["chat"]) is None


def test_an_arm_on_an_aligned_model_gets_one_on_no_alignment_beside_it() -> None:
    arms = {"zero": {"kind": "icl", "on": "polite"}, "tuned": {"kind": "finetune", "method": "lora", "on": "bold"},
            "plain": {"kind": "icl", "on": "chat"}}  # fmt: skip
    whole, added = with_unaligned_arms(recipe(arms=arms))
    assert added == ["tuned-unaligned"]  # `plain` is what `zero` is without alignment
    assert whole.arms["tuned-unaligned"] == whole.arms["tuned"].model_copy(update={"on": "chat"})
    assert twins(whole) == {"zero": "plain", "tuned": "tuned-unaligned"}
    assert with_unaligned_arms(whole) == (whole, [])


@pytest.mark.parametrize(
    ("alignment", "problem"),
    [
        ({"policies": ["judge"]}, "compares 'judge', which writes nothing"),
        ({"judges": {"j": {"kind": "stage", "on": "polite"}}}, "judged by 'polite', which is no `reward` stage"),
        ({"preferences": ["otro"]}, "names 'otro', which is not in `preferences`; known: trato"),
        ({"preferences": []}, "there are no prompts"),
    ],
)
def test_what_cannot_be_compared_is_said_at_once(alignment: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        recipe(alignment)


def test_derived_judgements_are_named_like_any_set_and_may_not_depend_on_themselves() -> None:
    derive = {"kind": "derive", "on": "chat", "path": "c.jsonl", "prompt": "p", "explanation": "e", "correct": "c",
              "extract": "(.)$"}  # fmt: skip
    on_pairs = {"kind": "dpo", "on": "chat", "preferences": ["casos"]}
    assert recipe(casos=derive, tuned=on_pairs).stages["tuned"]
    with pytest.raises(ConfigError, match="in a circle"):
        recipe(casos=derive | {"on": "tuned"}, tuned=on_pairs)
    with pytest.raises(ConfigError, match="makes no model"):
        recipe(casos=derive, tuned=on_pairs | {"on": "casos"})
    with pytest.raises(ConfigError, match="all of which is held out"):
        recipe(casos=derive | {"held_out": 1.0}, tuned=on_pairs)
    with pytest.raises(ConfigError, match="names both a stage and a set"):
        recipe(trato=derive)


PROMPTS = 80
HEALTHY = {"score": 0.25, "kl": 0.0, "entropy": 2.5, "tokens": 40.0, "ended": 0.875, "without_spread": None,
           "explained_variance": -1.5, "clipped": 0.0}  # fmt: skip
TRAINING = {"iterations": 12, "first": HEALTHY, "last": HEALTHY | {"score": 0.75, "kl": 3.25, "clipped": 0.125}}
SHARES = {when: {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "items": 9, "groups": 9}
          for when, mean in (("before", 0.4375), ("after", 0.0625), ("change", -0.375))}  # fmt: skip
KEPT_TO = {"trato": {"rules": {"reglas/jerga": SHARES}}}
RANGE = {"estimate": 0.6, "low": 0.5, "high": 0.7}


def pairs(difference: float = 0.1) -> dict[str, Any]:
    low = {"estimate": difference, "low": difference - 0.05, "high": difference + 0.05}
    return {"pairs": 40, "groups": 30, "accuracy": RANGE, "length_only": RANGE, "difference": low, "prefers": "longer"}


def manifest(stage: str, kind: str, seconds: float, *inputs: str, **facts: Any) -> dict[str, Any]:
    sources = {name: {"stage": name, "id": ""} for name in inputs}
    return {"stage": stage, "kind": kind, "inputs": sources, "cost": {"seconds": seconds}, "facts": facts}


def assayed(root: Path, name: str, scores: list[float], *, kl: float | None, bits: float) -> dict[str, Any]:
    """The folder of a finished assay: the planted scores, two prompts a group."""
    folder = root / f"{name}-assay"
    folder.mkdir()
    rows = [{"id": f"trato:{i}", "group": f"g{i // 2}", "scores": {"juez": s}} for i, s in enumerate(scores)]
    write_jsonl(folder / "completions.jsonl", rows)
    text = {"pueblo": {"bits": bits, "bytes": 900}}
    return manifest(f"{name}-assay", "assay", 1.0, name, kl=kl, ended=0.9, tokens=20.0, text=text,
                    pairs={"trato": pairs()})  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Alignment:
    """`fino` beats its start on three prompts of four, `tosco` on one of four; the judge is no better than length."""
    root = tmp_path_factory.mktemp("alineamiento")
    better = [1.0 if i // 2 % 4 else -1.0 for i in range(PROMPTS)]
    manifests = {
        m["stage"]: m
        for m in (
            manifest("preferences-trato", "preferences", 1.0, derived_prompts=3),
            manifest("chat-s0", "sft", 10.0),
            manifest("juez-s0", "reward", 5.0, "chat-s0", held_out={"trato": pairs(0.0)}),
            manifest("fino-s0", "dpo", 7.0, "chat-s0", held_out={"trato": {"implied_reward": pairs()}}),
            manifest("tosco-s0", "ppo", 8.0, "chat-s0", "juez-s0", training=TRAINING, held_out=KEPT_TO),
            assayed(root, "chat-s0", [0.0] * PROMPTS, kl=None, bits=1.5),
            assayed(root, "fino-s0", better, kl=2.0, bits=1.6),
            assayed(root, "tosco-s0", [-s for s in better], kl=5.0, bits=1.9),
        )
    }
    kinds = (("chat", "sft", None, None), ("fino", "dpo", "f", 0.1), ("tosco", "ppo", "f", 0.05))
    policies = [
        {"name": name, "kind": kind, "start": None if name == "chat" else "chat", "family": family, "beta": beta,
         "seeds": [0], "made": [f"{name}-s0"], "assays": [f"{name}-s0-assay"],
         "rewarded_by": ["juez"] if kind == "ppo" else []}
        for name, kind, family, beta in kinds
    ]  # fmt: skip
    value = {"recipe": "r", "language": "es", "policies": policies, "added": ["chat"], "judges": {"juez": "juez"},
             "sets": ["trato"], "resamples": 1000}  # fmt: skip
    config = validate(AlignmentStageConfig, value, source="t")
    return assemble_alignment(config, manifests, {name: root / name for name in manifests})


def test_planted_wins_are_found_with_the_verdict_on_each_model(found: Alignment) -> None:
    start, better, worse = found.policies
    assert (found.prompts, found.groups) == (PROMPTS, PROMPTS // 2)
    assert better.win_rates["juez"].estimate == 0.75 and worse.win_rates["juez"].estimate == 0.25
    assert start.win_rates == {} and start.strengths["juez"].estimate == 0
    assert better.strengths["juez"].estimate > 0 > worse.strengths["juez"].estimate
    assert {(c.a, c.b): c.rate.estimate for c in found.contests} == {
        ("fino", "chat"): 0.75, ("tosco", "chat"): 0.25, ("tosco", "fino"): 0.25
    }  # fmt: skip
    codes = [(notice.code, notice.values.get("policy")) for notice in found.notices]
    assert ("policy_better", "fino") in codes and ("policy_worse", "tosco") in codes


def test_what_makes_numbers_doubtful_is_said(found: Alignment) -> None:
    said = {notice.code: notice.values for notice in found.notices}
    assert said["judged_by_its_reward"] == {"policy": "tosco", "names": ["juez"]}
    assert said["judge_no_better_than_length"]["judge"] == "juez-s0"
    assert said["derived_sets"]["names"] == ["trato"] and said["unaligned_added"]["names"] == ["chat"]
    assert all(row.derived for row in found.pair_accuracy)
    by = {(row.stage, row.by) for row in found.pair_accuracy}
    assert {("juez-s0", "reward"), ("fino-s0", "implied reward"), ("tosco-s0", "log-probability")} <= by


def test_the_tax_is_after_less_before_and_cost_includes_what_a_model_stands_on(found: Alignment) -> None:
    assert {row.policy: row.difference.estimate for row in found.tax} == pytest.approx({"fino": 0.1, "tosco": 0.4})
    assert [policy.seconds for policy in found.policies] == [10.0, 17.0, 23.0]


def spanish(number: str) -> str:
    return number.replace(".", ",").replace("%", "\u00a0%")


@pytest.mark.parametrize(
    ("lang", "words"), [("en", "Alignment tax|alignment tax"), ("es", "impuesto del alineamiento")]
)
def test_the_page_shows_every_number_and_asks_nobody(found: Alignment, lang: str, words: str) -> None:
    page = render_alignment(found, lang)
    assert any(word in page for word in words.split("|"))
    shown = ("75.0%", "25.0%") if lang == "en" else ("75,0\u00a0%", "25,0\u00a0%")
    assert all(number in page for number in shown)
    trained = ("0.25 → 0.75", "43.8%", "−37.5", "0.0% → 12.5%")
    assert all((number if lang == "en" else spanish(number)) in page for number in trained) and "reglas/jerga" in page
    assert page.count("<svg") == 2 and "β = " in page and "://" not in page


def test_the_page_for_a_repository_has_its_figure_beside_it(found: Alignment, tmp_path: Path) -> None:
    written = write_alignment_markdown(found, tmp_path / "estudio.md", "en")
    assert [path.name for path in written] == ["estudio.md", "estudio-frontier.svg"]
    text = written[0].read_text(encoding="utf-8")
    assert "| tosco-s0 | 12 | 0.25 → 0.75 |" in text and "| tosco-s0 | trato | reglas/jerga | 43.8%" in text
    assert "| fino (dpo, from chat) |" in text and "](estudio-frontier.svg)" in text


def test_the_tax_on_a_task_has_the_interval_of_its_comparison_whichever_way_it_stands() -> None:
    arms = [ArmEvidence.model_construct(name=name, score=score) for name, score in (("con", 0.5), ("sin", 0.6))]
    between = Comparison.model_construct(a="sin", b="con", difference=0.1, ci95=(0.02, 0.18))
    [row] = task_tax(arms, [between], {"con": "sin"}, metric="accuracy", task="t")
    assert (row.before, row.after) == (0.6, 0.5)
    assert (row.difference.estimate, row.difference.low, row.difference.high) == (-0.1, -0.18, -0.02)
