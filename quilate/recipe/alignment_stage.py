"""After the stages that align: compare what was measured of each policy and write `alignment.json` and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import quilate
from quilate.config import Config
from quilate.evaluation.alignment import pair_accuracy
from quilate.evaluation.schema import (
    Alignment,
    BitsPerByte,
    Notice,
    OnlineHealth,
    PairAccuracy,
    Policy,
    Range,
    RuleFound,
    Tax,
    WinRate,
)
from quilate.files import read_jsonl, write_json, write_text
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.recipe.manifest import finished_manifest, stages_behind

Manifest = dict[str, Any]


class ComparedPolicy(Config):
    """One model that writes; see `quilate.evaluation.alignment.Policy`."""

    name: str
    kind: str
    start: str | None
    family: str | None
    beta: float | None
    seeds: list[int]
    made: list[str]
    """The stages that made it, one a seed."""
    assays: list[str]
    """The stages that measured it, one a seed; none if the recipe does not say how."""
    rewarded_by: list[str]
    """The reward stages that it was trained against."""


class AlignmentStageConfig(Config):
    recipe: str
    language: str
    policies: list[ComparedPolicy]
    added: list[str]
    """Policies that the recipe does not name, and arms that it does not have: each is "no alignment" to another."""
    judges: dict[str, str | None]
    """Name of a judge -> the reward stage it comes from."""
    sets: list[str]
    resamples: int


def _run(context: StageContext[AlignmentStageConfig]) -> StageReport:
    # Here, not above: matplotlib takes seconds to import, and the graph needs only this module's config.
    from quilate.report.alignment import render_alignment

    manifests = {role: finished_manifest(folder) for role, folder in context.inputs.items()}
    found = assemble_alignment(context.config, manifests, context.inputs)
    write_json(context.folder / "alignment.json", found.model_dump(mode="json", by_alias=True))
    write_text(context.folder / "alignment.html", render_alignment(found, context.config.language))
    for policy in found.policies:
        for judge, rate in policy.win_rates.items():
            context.note(f"{policy.name} beats {policy.start} in {rate.estimate:.0%} of {found.prompts} by {judge}")
    return StageReport()


def assemble_alignment(
    config: AlignmentStageConfig, manifests: Mapping[str, Manifest], folders: Mapping[str, Path]
) -> Alignment:
    """Everything that the finished stages measured, compared.

    Args:
        manifests, folders: of every stage so far, by name.
    """
    derived = [
        name
        for name, m in ((_set_name(m), m) for m in manifests.values() if m["kind"] in ("preferences", "derive"))
        if m["facts"]["derived_prompts"]
    ]
    policies = [policy for policy in config.policies if policy.assays]
    answers = _Answers.of(policies, folders)
    contests, compared = _contests(config, policies, answers)
    measured = [_policy(policy, manifests, compared, answers) for policy in policies]
    pairs = [*_pair_accuracy(manifests, derived), *_assayed_pairs(policies, manifests, derived)]
    return Alignment(
        version=quilate.__version__,
        recipe=config.recipe,
        language=config.language,
        prompts=len(answers.ids),
        groups=len(set(answers.groups)),
        sets=config.sets,
        derived=derived,
        judges=list(config.judges),
        resamples=config.resamples,
        policies=measured,
        contests=contests,
        pair_accuracy=pairs,
        tax=_tax(measured) if measured else _tax_of_stages(config.policies, manifests),
        training=[
            OnlineHealth(stage=m["stage"], **m["facts"]["training"])
            for m in manifests.values()
            if "training" in m["facts"]
        ],
        rules=[row for m in manifests.values() for row in _rules_found(m)],
        notices=_notices(config, measured, pairs, derived, answers),
    )


def _set_name(manifest: Manifest) -> str:
    """A set's name in the recipe: of the stage `preferences-trato`, or of the derived `casos-s0`."""
    stage: str = manifest["stage"]
    return stage.removeprefix("preferences-") if manifest["kind"] == "preferences" else stage.rpartition("-s")[0]


class _Answers:
    """What every policy wrote on the prompts that all of them were asked.

    Attributes:
        scores: policy -> judge -> [runs, N]; ids, groups: [N]; unshared: prompts that some model could not be asked.
    """

    def __init__(self, rows: dict[str, list[list[dict[str, Any]]]]) -> None:
        by_id = {name: [{row["id"]: row for row in run} for run in runs] for name, runs in rows.items()}
        asked = [set(run) for runs in by_id.values() for run in runs]
        shared = set.intersection(*asked) if asked else set()
        first = next(iter(rows.values()))[0] if rows else []
        self.ids = [row["id"] for row in first if row["id"] in shared]
        self.groups = [row["group"] for row in first if row["id"] in shared]
        self.unshared = len(set().union(*asked)) - len(shared)
        self.scores: dict[str, dict[str, np.ndarray]] = {
            name: {
                judge: np.array([[run[id]["scores"][judge] for id in self.ids] for run in runs], dtype=np.float64)
                for judge in (first[0]["scores"] if first else ())
            }
            for name, runs in by_id.items()
        }

    @classmethod
    def of(cls, policies: Sequence[ComparedPolicy], folders: Mapping[str, Path]) -> _Answers:
        return cls({p.name: [read_jsonl(folders[assay] / "completions.jsonl") for assay in p.assays] for p in policies})


def _contests(
    config: AlignmentStageConfig, policies: Sequence[ComparedPolicy], answers: _Answers
) -> tuple[list[WinRate], dict[str, dict[str, Any]]]:
    """Every pair by every judge; and of each policy its win rate over its start and its strength, by judge."""
    from quilate.evaluation.win_rates import contest

    rows: list[WinRate] = []
    compared: dict[str, dict[str, Any]] = {policy.name: {"win_rates": {}, "strengths": {}} for policy in policies}
    if len(policies) < 2 or not answers.ids:
        return rows, compared
    names = [policy.name for policy in policies]
    for judge in config.judges:
        found = contest([answers.scores[n][judge] for n in names], answers.groups, resamples=config.resamples)
        for i, policy in enumerate(policies):
            compared[policy.name]["strengths"][judge] = Range(**asdict(found.strengths[i]))
            if policy.start in names:
                rate = found.rates[i][names.index(policy.start)]
                compared[policy.name]["win_rates"][judge] = Range(**asdict(rate))
            rows += [
                WinRate(judge=judge, a=names[i], b=names[j], rate=Range(**asdict(found.rates[i][j])),
                        tied=found.ties[i, j])
                for j in range(i)
            ]  # fmt: skip
    return rows, compared


def _policy(
    policy: ComparedPolicy, manifests: Mapping[str, Manifest], compared: Mapping[str, dict[str, Any]], answers: _Answers
) -> Policy:
    from quilate.evaluation.win_rates import mean_with_interval

    facts = [manifests[assay]["facts"] for assay in policy.assays]
    scores = answers.scores[policy.name]
    rewards = {judge: mean_with_interval(values.mean(0), answers.groups) for judge, values in scores.items()}
    chains = [stages_behind(stage, manifests) for stage in policy.made]
    corpora = facts[0]["text"]
    return Policy(
        name=policy.name,
        kind=policy.kind,
        start=policy.start,
        family=policy.family,
        beta=policy.beta,
        seeds=policy.seeds,
        rewards={judge: Range(**asdict(mean)) for judge, mean in rewards.items()},
        rewards_by_seed={
            judge: {str(seed): float(run.mean()) for seed, run in zip(policy.seeds, values, strict=True)}
            for judge, values in scores.items()
        },
        **compared[policy.name],
        kl=None if facts[0]["kl"] is None else _mean([f["kl"] for f in facts]),
        ended=_mean([f["ended"] for f in facts]),
        tokens=_mean([f["tokens"] for f in facts]),
        bits_per_byte={
            corpus: BitsPerByte(bits=_mean([f["text"][corpus]["bits"] for f in facts]), bytes=corpora[corpus]["bytes"])
            for corpus in corpora
        },
        pairs={name: Range(**report["accuracy"]) for name, report in facts[0]["pairs"].items()},
        seconds=_mean([sum(m["cost"]["seconds"] for m in chain) for chain in chains]),
    )


def _rules_found(manifest: Manifest) -> list[RuleFound]:
    """What the rules of a stage's rewards found in held-out completions, before and after it."""
    if "training" not in manifest["facts"]:
        return []
    return [
        RuleFound(
            stage=manifest["stage"], set=name, rule=rule,
            **{
                when: Range(estimate=numbers["mean"], low=numbers["low"], high=numbers["high"])
                for when, numbers in found.items()
            },
        )
        for name, report in manifest["facts"]["held_out"].items()
        for rule, found in report.get("rules", {}).items()
    ]  # fmt: skip


def _pair_accuracy(manifests: Mapping[str, Manifest], derived: Sequence[str]) -> list[PairAccuracy]:
    """Of every reward model, and of the reward that a policy trained on pairs implies."""
    rows = []
    for m in manifests.values():
        if m["kind"] == "reward":
            reports = m["facts"]["held_out"]
            rows += [
                pair_accuracy(report, stage=m["stage"], by="reward", set=name, derived=name in derived)
                for name, report in reports.items()
            ]
        elif m["kind"] == "dpo":
            rows += [
                pair_accuracy(
                    found["implied_reward"], stage=m["stage"], by="implied reward", set=name, derived=name in derived
                )
                for name, found in m["facts"]["held_out"].items()
            ]
    return rows


def _assayed_pairs(
    policies: Sequence[ComparedPolicy], manifests: Mapping[str, Manifest], derived: Sequence[str]
) -> list[PairAccuracy]:
    return [
        pair_accuracy(
            report, stage=assay.removesuffix("-assay"), by="log-probability", set=name, derived=name in derived
        )
        for policy in policies
        for assay in policy.assays
        for name, report in manifests[assay]["facts"]["pairs"].items()
    ]


def _tax(policies: Sequence[Policy]) -> list[Tax]:
    """Bits per byte of each aligned policy's start and of itself."""
    by_name = {policy.name: policy for policy in policies}
    return [
        _text_tax(policy.name, policy.start, corpus, by_name[policy.start].bits_per_byte[corpus].bits, after.bits)
        for policy in policies
        if policy.start in by_name
        for corpus, after in policy.bits_per_byte.items()
    ]


def _tax_of_stages(policies: Sequence[ComparedPolicy], manifests: Mapping[str, Manifest]) -> list[Tax]:
    """The same from what `dpo` stages measured themselves, before and after, where the recipe asks for no assays."""
    rows = []
    for policy in policies:
        texts = [text for stage in policy.made if (text := manifests[stage]["facts"].get("text")) is not None]
        for corpus in texts[0]["after"] if texts and policy.start is not None else ():
            before, after = (_mean([text[when][corpus] for text in texts]) for when in ("before", "after"))
            rows.append(_text_tax(policy.name, policy.start, corpus, before, after))
    return rows


def _text_tax(policy: str, start: str | None, corpus: str, before: float, after: float) -> Tax:
    assert start is not None
    difference = Range(estimate=round(after - before, 4), low=None, high=None)
    return Tax(
        policy=policy, start=start, measure="bits per byte", of=corpus, before=before, after=after,
        difference=difference, higher_is_better=False,
    )  # fmt: skip


def _notices(
    config: AlignmentStageConfig, policies: Sequence[Policy], pairs: Sequence[PairAccuracy], derived: Sequence[str],
    answers: _Answers,
) -> list[Notice]:  # fmt: skip
    found = [_verdict(policy, judge, rate, len(answers.ids))
             for policy in policies for judge, rate in policy.win_rates.items()]  # fmt: skip
    if config.added:
        found.append(Notice(code="unaligned_added", values={"names": list(config.added)}))
    if not policies and any(policy.start for policy in config.policies):
        found.append(Notice(code="not_compared"))
    for policy in config.policies:
        own = [judge for judge, stage in config.judges.items() if stage in policy.rewarded_by]
        if own and policy.assays:
            found.append(Notice(code="judged_by_its_reward", values={"policy": policy.name, "names": list(own)}))
    stages = {stage for stage in config.judges.values() if stage is not None}
    for row in pairs:
        blind = row.difference.low is not None and row.difference.low <= 0
        if row.by == "reward" and row.stage.rpartition("-s")[0] in stages and blind:
            found.append(
                Notice(
                    code="judge_no_better_than_length",
                    values={"judge": row.stage, "set": row.set, "pairs": row.pairs},
                )
            )
    if derived:
        found.append(Notice(code="derived_sets", values={"names": list(derived)}))
    if answers.unshared:
        found.append(Notice(code="prompts_not_shared", values={"count": answers.unshared}))
    return found


def _verdict(policy: Policy, judge: str, rate: Range, prompts: int) -> Notice:
    low, high = rate.low or 0.0, rate.high or 1.0
    code = "policy_better" if low > 0.5 else "policy_worse" if high < 0.5 else "policy_undecided"
    return Notice(
        code=code,
        values={"policy": policy.name, "start": policy.start, "judge": judge, "prompts": prompts,
                "rate": rate.estimate, "low": low, "high": high},
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 6)


ALIGNMENT = StageKind("alignment", 1, AlignmentStageConfig, _run)
