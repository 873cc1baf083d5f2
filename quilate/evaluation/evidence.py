"""`evidence.json`: put the judgement together with what was run, on what, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

import quilate
from quilate.errors import DataError, QuilateError
from quilate.evaluation.judgement import Judgement
from quilate.evaluation.schema import SCHEMA, Alignment, Evidence, Notice, RulesEvidence, TaskEffect, TaskScore
from quilate.evaluation.wording import say

BUSY_LOAD = 1.25  # guess: with a quarter more processes than cores, times are no longer this run's own


def assemble(
    judgement: Judgement,
    *,
    recipe: str,
    base: Mapping[str, Any],
    task: Mapping[str, Any],
    machine: Mapping[str, Any],
    lineage: Sequence[Mapping[str, Any]],
    language_modelling: Sequence[Mapping[str, Any]] = (),
    domains: Mapping[str, Any] | None = None,
    privacy: Sequence[Mapping[str, Any]] = (),
    alignment: Alignment | None = None,
    task_scores: Sequence[TaskScore] = (),
    task_effects: Sequence[TaskEffect] = (),
    warnings: Sequence[str | Notice] = (),
) -> dict[str, Any]:
    """The complete, validated content of `evidence.json`.

    Args:
        judgement: from `judge`.
        recipe: the recipe's name.
        base, task, machine, lineage, language_modelling, domains, privacy: plain maps with the keys of `Base`, `Task`,
            `Machine`, `Link`, `LanguageModelling`, `DomainsEvidence` and `PrivacyEvidence` in
            quilate.evaluation.schema.
        alignment: of recipes that align models.
        task_scores, task_effects: of several tasks, from `transfer_evidence`.
        warnings: what the caller wants said besides: finished English sentences, or notices.

    Raises:
        QuilateError: a key is missing or unknown, or a number is not finite.
    """
    rules = judgement.rules
    notices = [
        *(w if isinstance(w, Notice) else Notice(code="text", values={"text": w}) for w in warnings),
        *judgement.notices,
        *_warn_about_setting(task, machine),
    ]
    base_name = str(base.get("name", ""))
    scope = Notice(code="holds_for", values={"base": base_name}) if base.get("source") else Notice(code="holds_here")
    reasons = [*judgement.recommendation.reasons, scope]
    recommendation = judgement.recommendation.model_copy(
        update={"base": base_name, "reasons": reasons, "why": " ".join(say(reason, "en") for reason in reasons)}
    )
    value = {
        "schema": SCHEMA,
        "version": quilate.__version__,
        "recipe": recipe,
        "base": dict(base),
        "task": dict(task),
        "metric": rules.metric,
        "items": judgement.items,
        "groups": judgement.groups,
        "labels": judgement.labels,
        "rules": RulesEvidence(
            margin=rules.margin,
            confidence=rules.confidence,
            resamples=rules.resamples,
            budget_seconds=rules.budget_seconds,
            budget_tokens=rules.budget_tokens,
            seed=rules.seed,
        ),
        "arms": judgement.arms,
        "comparisons": judgement.comparisons,
        "language_modelling": [dict(row) for row in language_modelling],
        "domains": None if domains is None else dict(domains),
        "privacy": [dict(one) for one in privacy],
        "alignment": None if alignment is None else alignment.model_dump(by_alias=True),
        "task_scores": list(task_scores),
        "task_effects": list(task_effects),
        "lineage": [dict(link) for link in lineage],
        "machine": dict(machine),
        "warnings": [say(notice, "en") for notice in notices],
        "notices": notices,
        "recommendation": recommendation,
    }
    try:
        return Evidence.model_validate(value).model_dump(mode="json", by_alias=True)
    except ValidationError as error:
        raise QuilateError(f"the evidence is not well formed: {_first_problems(error)}") from error


def parse(value: Any) -> Evidence:
    """Read the content of an `evidence.json`.

    Raises:
        DataError: it is not evidence of this version.
    """
    try:
        return Evidence.model_validate(value)
    except ValidationError as error:
        raise DataError(
            f"this is not evidence that quilate {quilate.__version__} can read: {_first_problems(error)}",
            hint="run `quilate run` again with this version; finished stages are reused",
        ) from error


def _first_problems(error: ValidationError, most: int = 5) -> str:
    problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:most]]
    return "; ".join(problems)


def _warn_about_setting(task: Mapping[str, Any], machine: Mapping[str, Any]) -> list[Notice]:
    found = []
    if task.get("leak_check") == "not run":
        found.append(Notice(code="leak_not_run"))
    load, cores = machine.get("load_average"), machine.get("cores")
    if load is not None and cores and load > BUSY_LOAD * cores:
        found.append(Notice(code="busy_machine", values={"load": load, "cores": cores}))
    return found
