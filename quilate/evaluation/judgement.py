"""From outcomes to a recommendation: pure, and the same for every phase.

The rule: recommend the cheapest eligible arm for which *every* other eligible arm's advantage, `other - arm`, has an
upper bound below the margin. The rule asks about every other arm and not only about the nominally best one, because
which arm is best is itself uncertain: the winner of an underpowered comparison has an advantage of 0 over itself, and
would always win. If no arm passes, the verdict is "undecided" with the number of items that would decide.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from quilate.errors import GateError, QuilateError
from quilate.evaluation.measures import AnswerMeasure, CountMeasure, LabelMeasure, Measure
from quilate.evaluation.outcomes import ArmOutcome, Rules
from quilate.evaluation.schema import (
    ArmCost,
    ArmEvidence,
    Comparison,
    Notice,
    Recommendation,
)
from quilate.evaluation.spans import GOLD
from quilate.evaluation.statistics import (
    MIN_SEEDS_FOR_INTERVAL,
    Bootstrap,
    Interval,
    holm,
    items_to_bound,
    mcnemar,
    resample,
)
from quilate.evaluation.wording import say

FEW_GROUPS = 20  # guess, after Cameron & Miller 2015: below about 20-50 clusters cluster-based inference gets rough
CURVE_POINTS = 200  # a learning curve is thinned to about this many points: more cannot be seen in the report
UNTRAINED = ("baseline", "in-context")

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Judgement:
    """What `judge` found. `groups` is the number of groups in the test items, None if they are independent."""

    arms: list[ArmEvidence]
    comparisons: list[Comparison]
    recommendation: Recommendation
    notices: list[Notice]
    labels: list[str]
    items: int
    groups: int | None
    rules: Rules


def judge(
    outcomes: Sequence[ArmOutcome],
    gold: Ints | None,
    labels: Sequence[str],
    groups: Sequence[str] | None,
    rules: Rules,
) -> Judgement:
    """Compare arms on the same items and say which to use.

    Args:
        outcomes: one an arm, at least one.
        gold: (items,) indices into `labels`; None where answers are sets, whose counts hold what was to be
            found, or texts, which are scored already.
        labels: all labels of the task.
        groups: (items,) the cluster of each item (a patient, say), or None.
        rules: margin, metric, budget, ...

    Raises:
        GateError: an arm's training text overlaps the test items and `rules.allow_leak` is false.
        QuilateError: the outcomes are not about the same items, or hold impossible numbers.
    """
    _refuse_leaks(outcomes, rules)
    if not outcomes or len({o.name for o in outcomes}) < len(outcomes):
        raise QuilateError(f"arms need distinct names, and at least one; seen: {[o.name for o in outcomes]}")
    measure = _measure_of(outcomes, gold, labels, rules)
    outcomes = [_checked(outcome, measure) for outcome in outcomes]
    draws = resample(
        [measure.features(outcome) for outcome in outcomes],
        measure.score,
        groups=groups,
        seed_independent=[outcome.seed_independent for outcome in outcomes],
        resamples=rules.resamples,
        seed=rules.seed,
    )
    try:
        arms = [_judge_arm(index, outcomes, measure, draws, rules) for index in range(len(outcomes))]
    except ValidationError as error:
        raise QuilateError(f"an arm's outcome holds impossible values: {error}") from error
    between = _differences(draws, rules)
    return Judgement(
        arms=arms,
        comparisons=_compare(outcomes, measure, between, groups is not None, rules),
        recommendation=_recommend(arms, between, draws, groups is not None, rules),
        notices=_warn(arms, measure.warnings(), groups, rules),
        labels=list(labels),
        items=measure.items,
        groups=None if groups is None else draws.units,
        rules=rules,
    )


def _refuse_leaks(outcomes: Sequence[ArmOutcome], rules: Rules) -> None:
    leaked = [outcome.name for outcome in outcomes if outcome.leaked]
    if leaked and not rules.allow_leak:
        raise GateError(
            f"the training text of {', '.join(leaked)} overlaps the test items: their scores would mean nothing",
            hint="remove the overlapping rows or split by group; or allow the leak: the report will say so",
        )


def _measure_of(outcomes: Sequence[ArmOutcome], gold: Ints | None, labels: Sequence[str], rules: Rules) -> Measure:
    if rules.metric == "exact_match" or rules.metric == "token_f1":
        return AnswerMeasure(rules.metric, len(outcomes[0].scored[0]))
    if gold is None:
        return CountMeasure(rules.metric, outcomes[0].found[0][..., GOLD], labels)
    if rules.metric == "accuracy" or rules.metric == "macro_f1":
        return LabelMeasure(rules.metric, gold, labels)
    raise QuilateError(f"{rules.metric} is no metric of answers that are labels")


def _checked(outcome: ArmOutcome, measure: Measure) -> ArmOutcome:
    runs = 1 if outcome.seed_independent else len(outcome.seeds)
    if runs < 1 or outcome.runs != runs:
        raise QuilateError(f"arm {outcome.name}: {outcome.runs} arrays of answers for {runs} runs")
    return measure.checked(outcome)


# ---------------------------------------------------------------------------------------------------- each arm alone


def _judge_arm(
    index: int, outcomes: Sequence[ArmOutcome], measure: Measure, draws: Bootstrap, rules: Rules
) -> ArmEvidence:
    outcome = outcomes[index]
    interval = draws.score(index, rules.confidence)
    by_run = measure.scores(outcome)
    chosen = by_run[rules.metric]
    return ArmEvidence(
        name=outcome.name,
        phase=outcome.phase,
        method=outcome.method,
        score=interval.estimate,
        ci95=(interval.low, interval.high),
        interval_over=interval.over,
        scores_by_seed={"any": chosen[0]}
        if outcome.seed_independent
        else {str(seed): score for seed, score in zip(outcome.seeds, chosen, strict=True)},
        seeds=0 if outcome.seed_independent else len(outcome.seeds),
        seed_independent=outcome.seed_independent,
        train_rows=outcome.train_rows,
        cost=ArmCost(**dataclasses.asdict(outcome.cost)),
        cost_per_1000=outcome.cost_per_1000,
        within_budget=not _over_budget(outcome.cost.seconds, outcome.cost.train_tokens, rules),
        on_pareto_front=_on_pareto_front(index, [o.cost.seconds for o in outcomes], draws.scores),
        leaked=outcome.leaked,
        scores={metric: float(np.mean(scores)) for metric, scores in by_run.items()},
        per_class=measure.per_class(outcome),
        confusion=measure.confusion(outcome),
        calibration=measure.calibration(outcome),
        learning_curves=[thinned(curve) for curve in outcome.learning_curves],
        shots_curve=outcome.shots_curve,
        search=outcome.search,
        counts=outcome.counts,
        stages=outcome.stages,
    )


def _over_budget(seconds: float, tokens: int, rules: Rules) -> list[Notice]:
    """One notice for each budget that is exceeded, without the arm's name."""
    limits = [("over_seconds", seconds, rules.budget_seconds), ("over_tokens", tokens, rules.budget_tokens)]
    return [
        Notice(code=code, values={"spent": spent, "budget": budget})
        for code, spent, budget in limits
        if budget is not None and spent > budget
    ]


def _on_pareto_front(index: int, seconds: list[float], scores: NDArray[np.float64]) -> bool:
    """Nothing is at least as good and as cheap, and better in one of the two."""
    return not any(
        other_seconds <= seconds[index]
        and other_score >= scores[index]
        and (other_seconds < seconds[index] or other_score > scores[index])
        for other_seconds, other_score in zip(seconds, scores, strict=True)
    )


def thinned(curve: list[dict[str, object]]) -> list[dict[str, object]]:
    """At most about 200 points, evenly spaced, the last one always among them."""
    stride = math.ceil(len(curve) / CURVE_POINTS) or 1
    kept = curve[::stride]
    return kept if not curve or kept[-1] is curve[-1] else [*kept, curve[-1]]


# -------------------------------------------------------------------------------------------------------- each pair


def _differences(draws: Bootstrap, rules: Rules) -> dict[tuple[int, int], Interval]:
    """For every ordered pair (a, b): score(a) - score(b)."""
    between = {}
    for a, b in itertools.combinations(range(len(draws.scores)), 2):
        forward = draws.difference(a, b, rules.confidence)
        between[a, b] = forward
        between[b, a] = dataclasses.replace(forward, estimate=-forward.estimate, low=-forward.high, high=-forward.low)
    return between


def _compare(
    outcomes: Sequence[ArmOutcome],
    measure: Measure,
    between: dict[tuple[int, int], Interval],
    clustered: bool,
    rules: Rules,
) -> list[Comparison]:
    """Every pair once, the nominally better arm first; the best arm's pairs lead, its closest rival at the top."""
    pairs = [(a, b) for a, b in between if (between[a, b].estimate, b) > (between[b, a].estimate, a)]
    wins = Counter(a for a, _ in pairs)
    pairs.sort(key=lambda pair: (-wins[pair[0]], between[pair].estimate))
    tests = []
    for a, b in pairs:
        single = outcomes[a].runs == outcomes[b].runs == 1
        right = [measure.right(outcomes[arm]) for arm in (a, b)] if single and not clustered else [None]
        if right[0] is not None and right[-1] is not None:
            found = mcnemar(right[0], right[-1])
            tests.append(("McNemar exact" if found.exact else "McNemar chi-square", found.p))
        else:  # McNemar needs one answer an item, and items that are independent of one another
            tests.append(("bootstrap", between[a, b].p))
    adjusted = holm([p for _, p in tests])
    return [
        Comparison(
            a=outcomes[a].name,
            b=outcomes[b].name,
            difference=between[a, b].estimate,
            ci95=(between[a, b].low, between[a, b].high),
            interval_over=between[a, b].over,
            p=p,
            p_holm=p_holm,
            test=test,
            n=measure.items,
        )
        for (a, b), (test, p), p_holm in zip(pairs, tests, adjusted, strict=True)
    ]


# -------------------------------------------------------------------------------------------------------- the verdict


def _recommend(
    arms: list[ArmEvidence],
    between: dict[tuple[int, int], Interval],
    draws: Bootstrap,
    clustered: bool,
    rules: Rules,
) -> Recommendation:
    eligible = sorted(
        (i for i, arm in enumerate(arms) if arm.within_budget), key=lambda i: (arms[i].cost.seconds, arms[i].name)
    )
    if not eligible:
        return _recommendation(None, "undecided", Notice(code="undecided_budget"), [Notice(code="all_over_budget")])
    out = [i for i in eligible if any(between[o, i].low >= rules.margin for o in eligible if o != i)]
    for arm in eligible:
        if all(between[other, arm].high < rules.margin for other in eligible if other != arm):
            verdict, headline = _verdict(arms[arm])
            reasons = _reasons_for(arm, eligible, arms, between, draws.items, rules)
            break
    else:
        return _undecided(eligible, out, arms, between, draws, clustered, rules)
    return _recommendation(
        arms[arm].name,
        verdict,
        headline,
        reasons,
        [arms[i].name for i in eligible if i not in out],
        [arms[i].name for i in out],
    )


def _recommendation(
    arm: str | None,
    verdict: str,
    headline: Notice,
    reasons: list[Notice],
    contenders: Sequence[str] = (),
    ruled_out: Sequence[str] = (),
    more_items: int | None = None,
) -> Recommendation:
    return Recommendation(
        arm=arm,
        verdict=verdict,
        headline=say(headline, "en"),
        why=" ".join(say(reason, "en") for reason in reasons),
        more_items=more_items,
        contenders=list(contenders),
        ruled_out=list(ruled_out),
        headline_notice=headline,
        reasons=reasons,
    )


def _verdict(arm: ArmEvidence) -> tuple[str, Notice]:
    if arm.method == "majority":
        verdict, code = "no model", "no_model"
    elif arm.phase == "baseline":
        verdict, code = "no LLM", "no_llm"
    elif arm.phase == "in-context":
        verdict, code = "don't train", "dont_train"
    else:
        verdict, code = "train", "train"
    return verdict, Notice(code=code, values={"arm": arm.name})


def _reasons_for(
    arm: int,
    eligible: list[int],
    arms: list[ArmEvidence],
    between: dict[tuple[int, int], Interval],
    items: int,
    rules: Rules,
) -> list[Notice]:
    """Why the recommended arm: its score, its rivals, what is cheaper, what is better, what training bought."""
    this = arms[arm]
    reasons = [
        Notice(
            code=f"scored_{rules.metric}",
            values={"arm": this.name, "score": this.score, "low": this.ci95[0], "high": this.ci95[1], "items": items,
                    "seeds": this.seeds},
        )
    ]  # fmt: skip
    others = [i for i in eligible if i != arm]
    if not others:
        return reasons
    rival = max(others, key=lambda i: between[i, arm].high)
    lead = between[arm, rival]
    if lead.low > 0:
        values = {"other": arms[rival].name, "difference": lead.estimate, "low": lead.low, "high": lead.high}
        reasons.append(Notice(code="clearly_best", values=values))
    else:
        values = {"other": arms[rival].name, "bound": max(-lead.low, 0.0), "margin": rules.margin}
        reasons.append(Notice(code="within_margin", values=values))
    cheaper = eligible[: eligible.index(arm)]
    if not cheaper:
        reasons.append(Notice(code="cheapest"))
    elif lead.low <= 0:
        closest = min(cheaper, key=lambda i: max(between[o, i].high for o in eligible if o != i))
        bound = max(between[o, closest].high for o in eligible if o != closest)
        reasons.append(Notice(code="cheaper_fails", values={"cheaper": arms[closest].name, "bound": bound}))
    best = max(eligible, key=lambda i: (arms[i].score, -arms[i].cost.seconds))
    if arms[best].score > this.score and arms[best].cost.seconds > 1.5 * this.cost.seconds > 0:
        reasons.append(
            Notice(
                code="costs_less",
                values={"best": arms[best].name, "score": arms[best].score, "seconds": this.cost.seconds,
                        "best_seconds": arms[best].cost.seconds, "factor": arms[best].cost.seconds / this.cost.seconds},
            )
        )  # fmt: skip
    untrained = [i for i in eligible if arms[i].phase in UNTRAINED]
    if this.phase not in UNTRAINED and untrained:
        reference = max(untrained, key=lambda i: arms[i].score)
        gain = between[arm, reference]
        values = {"other": arms[reference].name, "difference": gain.estimate, "low": gain.low, "high": gain.high,
                  "seconds": this.cost.seconds}  # fmt: skip
        reasons.append(Notice(code="training_bought", values=values))
    return reasons


def _undecided(
    eligible: list[int],
    out: list[int],
    arms: list[ArmEvidence],
    between: dict[tuple[int, int], Interval],
    draws: Bootstrap,
    clustered: bool,
    rules: Rules,
) -> Recommendation:
    """No arm passes: between which, how far from a decision, and what would decide."""
    contenders = [i for i in eligible if i not in out] or eligible

    def needed(arm: int) -> float:
        rivals = [o for o in eligible if o != arm and between[o, arm].high >= rules.margin]
        return max(
            items_to_bound(between[o, arm], draws.items, draws.units, rules.margin, confidence=rules.confidence)
            for o in rivals
        )

    nearest = min(contenders, key=needed)
    total = needed(nearest)
    rival = max((o for o in eligible if o != nearest), key=lambda o: between[o, nearest].high)
    if len(contenders) > 1:
        values = {"arms": [arms[i].name for i in contenders], "items": draws.items, "margin": rules.margin}
        reasons = [Notice(code="undecided_between", values=values)]
    else:
        reasons = [Notice(code="undecided_one", values={"arm": arms[nearest].name, "items": draws.items})]
    values = {"arm": arms[nearest].name, "other": arms[rival].name, "bound": between[rival, nearest].high}
    reasons.append(Notice(code="still_possible", values=values))
    more = None
    if math.isfinite(total):
        more = _round_up(max(total - draws.items, 1))
        headline = Notice(code="undecided", values={"more": more})
        reasons.append(Notice(code="items_needed", values={"total": draws.items + more, "more": more}))
        if clustered:
            groups = _round_up(more * draws.units / draws.items)
            reasons.append(Notice(code="groups_needed", values={"groups": groups}))
    else:
        headline = Notice(code="undecided_seeds")
        reasons.append(Notice(code="seeds_needed"))
    if out:
        values = {"arms": [arms[i].name for i in out], "margin": rules.margin}
        reasons.append(Notice(code="ruled_out", values=values))
    return _recommendation(
        None, "undecided", headline, reasons, [arms[i].name for i in contenders], [arms[i].name for i in out], more
    )


def _round_up(value: float) -> int:
    """Upwards to two significant digits: the variance behind it is known no better."""
    step: int = 10 ** max(math.floor(math.log10(max(value, 1))) - 1, 0)
    return math.ceil(value / step) * step


# ---------------------------------------------------------------------------------------------------------- warnings


def _warn(arms: list[ArmEvidence], of_labels: list[Notice], groups: Sequence[str] | None, rules: Rules) -> list[Notice]:
    """Everything that a reader must know before believing the numbers."""
    found = []
    leaked = [arm.name for arm in arms if arm.leaked]
    if leaked:
        found.append(Notice(code="leaked", values={"arms": leaked}))
    for arm in arms:
        for notice in _over_budget(arm.cost.seconds, arm.cost.train_tokens, rules):
            found.append(Notice(code=notice.code, values={"arm": arm.name, **notice.values}))
    if sum(arm.within_budget for arm in arms) == 1:
        found.append(Notice(code="single_arm"))
    few = [arm.name for arm in arms if 0 < arm.seeds < MIN_SEEDS_FOR_INTERVAL]
    if few:
        found.append(Notice(code="items_only", values={"arms": few}))
    for arm in arms:
        spread = max(arm.scores_by_seed.values()) - min(arm.scores_by_seed.values())
        if spread > rules.margin:
            values = {"arm": arm.name, "spread": spread, "seeds": arm.seeds, "margin": rules.margin}
            found.append(Notice(code="seed_spread", values=values))
    found += of_labels
    if groups is not None and len(set(groups)) < FEW_GROUPS:
        found.append(Notice(code="few_groups", values={"groups": len(set(groups))}))
    return found
