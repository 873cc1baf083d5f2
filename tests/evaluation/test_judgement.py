"""Planted truth: synthetic arms for which the right verdict is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from quilate.errors import GateError, QuilateError
from quilate.evaluation.judgement import Judgement, judge, thinned
from quilate.evaluation.outcomes import ArmOutcome, Cost, Rules
from quilate.evaluation.wording import SENTENCES, say

LABELS = ["Infecciosas", "Tumores", "Endocrinas", "Mentales", "Ojo y oído", "Corazón", "Piel", "Riñón"]
RULES = Rules(resamples=2000)
Gold = NDArray[np.int64]
MakeArm = Callable[..., ArmOutcome]


def rights(
    rng: np.random.Generator, items: int, accuracies: list[float], shared: float = 0.8
) -> list[NDArray[np.bool_]]:
    """Right or wrong for arms that mostly err on the same items."""
    item = rng.random(items)
    return [np.where(rng.random(items) < shared, item, rng.random(items)) < a for a in accuracies]


def codes(found: Judgement) -> list[str]:
    return [notice.code for notice in found.notices]


def test_one_best_is_recommended_whatever_it_costs(gold: Gold, make_arm: MakeArm) -> None:
    low, best, middle = rights(np.random.default_rng(0), 1000, [0.3, 0.8, 0.5])
    found = judge(
        [
            make_arm("TF-IDF", gold, [low], seconds=1, phase="baseline", method="tfidf", seed_independent=True),
            make_arm("completo", gold, [best, best], seconds=900, method="full"),
            make_arm("5 ejemplos", gold, [middle], seconds=60, phase="in-context", method="few-shot"),
        ],
        gold,
        LABELS,
        None,
        RULES,
    )
    verdict = found.recommendation
    assert (verdict.arm, verdict.verdict) == ("completo", "train")
    assert verdict.ruled_out == ["TF-IDF", "5 ejemplos"]
    assert [r.code for r in verdict.reasons] == ["scored_accuracy", "clearly_best", "training_bought"]
    bought = verdict.reasons[-1].values
    assert bought["other"] == "5 ejemplos"
    assert bought["difference"] == pytest.approx(best.mean() - middle.mean())
    assert bought["low"] < 0.3 < bought["high"]


@pytest.mark.parametrize(
    ("phase", "method", "verdict"),
    [
        ("baseline", "majority", "no model"),
        ("baseline", "tfidf", "no LLM"),
        ("in-context", "zero-shot", "don't train"),
        ("fine-tuning", "lora", "train"),
    ],
)
def test_all_equal_recommends_the_cheapest(
    gold: Gold, make_arm: MakeArm, phase: str, method: str, verdict: str
) -> None:
    same = rights(np.random.default_rng(1), 1000, [0.6] * 4, shared=0.99)
    arms = [make_arm(f"caro {k}", gold, [same[k]], seconds=100 * k) for k in (3, 1, 2)]
    arms.append(make_arm("barato", gold, [same[0]], seconds=5, phase=phase, method=method))
    found = judge(arms, gold, LABELS, None, RULES).recommendation
    assert (found.arm, found.verdict) == ("barato", verdict)


def test_equal_cost_goes_by_name(gold: Gold, make_arm: MakeArm) -> None:
    right = rights(np.random.default_rng(2), 1000, [0.6])[0]
    arms = [make_arm(name, gold, [right]) for name in ("b", "a", "c")]
    assert judge(arms, gold, LABELS, None, RULES).recommendation.arm == "a"


def test_underpowered_is_undecided_and_says_how_many_items(gold: Gold, make_arm: MakeArm) -> None:
    gold = gold[:60]
    a, b, bad = rights(np.random.default_rng(3), 60, [0.62, 0.6, 0.1], shared=0.5)
    arms = [
        make_arm("LoRA", gold, [a], seconds=60),
        make_arm("completo", gold, [b], seconds=600),
        make_arm("al azar", gold, [bad], seconds=1, phase="baseline"),
    ]
    found = judge(arms, gold, LABELS, None, RULES).recommendation
    assert (found.arm, found.verdict) == (None, "undecided")
    assert found.contenders == ["LoRA", "completo"]
    assert found.ruled_out == ["al azar"]
    assert found.more_items is not None
    assert found.more_items > 500
    assert f"{found.more_items:,}" in found.headline
    assert f"{found.more_items:,} more" in found.why


def test_undecided_with_the_said_number_of_items_gets_decided(make_arm: MakeArm) -> None:
    def study(items: int, seed: int) -> Judgement:
        rng = np.random.default_rng(seed)
        gold = rng.integers(0, len(LABELS), items)
        a, b = rights(rng, items, [0.6, 0.6], shared=0.6)
        arms = [make_arm("LoRA", gold, [a], seconds=60), make_arm("completo", gold, [b], seconds=600)]
        return judge(arms, gold, LABELS, None, dataclasses.replace(RULES, margin=0.04))

    small = [study(150, seed).recommendation for seed in range(10)]
    assert sum(s.verdict == "undecided" for s in small) >= 5
    total = 150 + int(np.median([s.more_items for s in small if s.more_items]))
    decided = [study(total, seed).recommendation.arm for seed in range(100, 120)]
    assert sum(arm is not None for arm in decided) >= 16
    assert decided.count("LoRA") > decided.count("completo")


def test_total_agreement_on_twenty_items_decides_nothing(gold: Gold, make_arm: MakeArm) -> None:
    right = np.ones(20, dtype=bool)
    arms = [make_arm("a", gold[:20], [right], seconds=1), make_arm("b", gold[:20], [right], seconds=2)]
    assert judge(arms, gold[:20], LABELS, None, RULES).recommendation.verdict == "undecided"


def test_groups_make_the_same_answers_less_certain(gold: Gold, make_arm: MakeArm) -> None:
    item = np.random.default_rng(4).random(50).repeat(20)
    arms = [make_arm("a", gold, [item < 0.6], seconds=1), make_arm("b", gold, [item < 0.3], seconds=2)]
    patients = [f"paciente {k // 20}" for k in range(1000)]
    alone = judge(arms, gold, LABELS, None, RULES)
    grouped = judge(arms, gold, LABELS, patients, RULES)
    width = [j.comparisons[0].ci95[1] - j.comparisons[0].ci95[0] for j in (alone, grouped)]
    assert width[1] > 3 * width[0]
    assert (alone.groups, grouped.groups) == (None, 50)
    assert (alone.comparisons[0].test, grouped.comparisons[0].test) == ("McNemar chi-square", "bootstrap")


def test_a_leaked_arm_stops_everything_unless_allowed(gold: Gold, make_arm: MakeArm) -> None:
    a, b = rights(np.random.default_rng(5), 1000, [0.5, 0.99])
    arms = [make_arm("limpio", gold, [a]), make_arm("tramposo", gold, [b], leaked=True)]
    with pytest.raises(GateError, match="tramposo") as caught:
        judge(arms, gold, LABELS, None, RULES)
    assert caught.value.exit_code == 5
    allowed = judge(arms, gold, LABELS, None, dataclasses.replace(RULES, allow_leak=True))
    assert "leaked" in codes(allowed)
    assert "tramposo" in say(allowed.notices[0], "es")


def test_over_budget_is_shown_but_not_eligible(gold: Gold, make_arm: MakeArm) -> None:
    a, b = rights(np.random.default_rng(6), 1000, [0.5, 0.9])
    arms = [
        make_arm("barato", gold, [a], seconds=10),
        make_arm("caro", gold, [b], cost=Cost(seconds=11, train_tokens=2_000_000)),
    ]
    for rules in ({"budget_seconds": 10.0}, {"budget_tokens": 1_000_000}):
        found = judge(arms, gold, LABELS, None, dataclasses.replace(RULES, **rules))
        assert found.recommendation.arm == "barato"
        assert [arm.within_budget for arm in found.arms] == [True, False]
        assert found.notices[0].code in ("over_seconds", "over_tokens")
        assert "single_arm" in codes(found)
    nothing = judge(arms, gold, LABELS, None, dataclasses.replace(RULES, budget_seconds=1.0)).recommendation
    assert (nothing.arm, nothing.verdict) == (None, "undecided")


def test_seeds_are_shown_and_their_spread_is_warned_of(gold: Gold, make_arm: MakeArm) -> None:
    a, b = rights(np.random.default_rng(7), 1000, [0.5, 0.6])
    found = judge([make_arm("inestable", gold, [a, b])], gold, LABELS, None, RULES)
    arm = found.arms[0]
    assert arm.scores_by_seed == {"1": pytest.approx(a.mean()), "2": pytest.approx(b.mean())}
    assert arm.score == pytest.approx((a.mean() + b.mean()) / 2)
    assert arm.interval_over == "items"
    assert {"items_only", "seed_spread", "single_arm"} <= set(codes(found))


def test_labels_without_test_items_are_named(gold: Gold, make_arm: MakeArm) -> None:
    gold = np.where(gold == 7, 0, gold)
    found = judge([make_arm("a", gold, [gold >= 0])], gold, LABELS, None, RULES)
    notice = next(n for n in found.notices if n.code == "absent_labels")
    assert "Riñón" in say(notice, "es")


def test_pareto_front_is_what_nothing_beats_on_both_counts(gold: Gold, make_arm: MakeArm) -> None:
    r = rights(np.random.default_rng(8), 1000, [0.3, 0.7, 0.6, 0.8])
    arms = [
        make_arm(str(k), gold, [right], seconds=s) for k, (right, s) in enumerate(zip(r, (1, 10, 20, 30), strict=True))
    ]
    assert [a.on_pareto_front for a in judge(arms, gold, LABELS, None, RULES).arms] == [True, True, False, True]


def test_comparisons_hold_every_pair_better_arm_first(gold: Gold, make_arm: MakeArm) -> None:
    r = rights(np.random.default_rng(9), 1000, [0.3, 0.7, 0.6])
    arms = [make_arm(name, gold, [right, right]) for name, right in zip("abc", r, strict=True)]
    found = judge(arms, gold, LABELS, None, dataclasses.replace(RULES, metric="macro_f1")).comparisons
    assert [(c.a, c.b) for c in found] == [("b", "c"), ("b", "a"), ("c", "a")]
    for c in found:
        assert c.ci95[0] < c.difference < c.ci95[1]
        assert c.p <= c.p_holm
        assert (c.n, c.test) == (1000, "bootstrap")


def test_impossible_outcomes_are_refused(gold: Gold, make_arm: MakeArm) -> None:
    right = gold >= 0
    arm = make_arm("a", gold, [right])
    with pytest.raises(QuilateError, match="distinct names"):
        judge([arm, arm], gold, LABELS, None, RULES)
    with pytest.raises(QuilateError, match="arrays of answers"):
        judge([dataclasses.replace(arm, seeds=[1, 2])], gold, LABELS, None, RULES)
    with pytest.raises(QuilateError, match="seconds"):
        judge([dataclasses.replace(arm, cost=Cost(float("nan")))], gold, LABELS, None, RULES)
    with pytest.raises(QuilateError, match="shape"):
        judge([arm], gold[:-1], LABELS, None, RULES)
    with pytest.raises(QuilateError, match="index into"):
        judge([arm], gold + 1, LABELS, None, RULES)


def test_costs_add_up_along_the_lineage() -> None:
    total = Cost(10, 100, 1e9, 500, 7) + Cost(5, 50, 1e8, 400, 3)
    assert total == Cost(15, 150, 1.1e9, 500, 3)


def test_long_learning_curves_keep_their_end() -> None:
    curve = [{"step": k} for k in range(1001)]
    short = thinned(curve)
    assert len(short) <= 202
    assert (short[0], short[-1]) == (curve[0], curve[-1])
    assert thinned(curve[:10]) == curve[:10]


def test_every_sentence_exists_in_both_languages_with_the_same_values() -> None:
    import string

    def fields(template: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name}

    assert SENTENCES["en"].keys() == SENTENCES["es"].keys()
    for code in SENTENCES["en"]:
        assert fields(SENTENCES["en"][code]) == fields(SENTENCES["es"][code]), code
