"""The last stage of every recipe: judge the arms and write `evidence.json` and `evidence.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file

from quilate.config import Config, validate
from quilate.engine.runlog import read_metrics
from quilate.errors import DataError
from quilate.evaluation.outcomes import ArmOutcome, Cost, Phase, Rules
from quilate.evaluation.schema import Alignment, Notice, SearchEvidence, ShotsEvidence, TaskEffect, TaskScore
from quilate.files import read_json, write_json, write_text
from quilate.phases.corpus import WARN_SHARE, corpus_documents
from quilate.phases.evaluate import (
    answers_are_sets,
    features_of,
    gold_of,
    read_answer_scores,
    read_counts,
    read_probabilities,
)
from quilate.phases.language_modelling import TASK_CORPUS
from quilate.phases.prompting import trial_answers
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.recipe.manifest import SHARED_KINDS, finished_manifest, stages_behind
from quilate.recipe.spec import StageSpec
from quilate.tasks.kinds import load_task
from quilate.tasks.question_answering import QuestionTask
from quilate.tasks.task import Task

if TYPE_CHECKING:  # scipy takes seconds to import
    from quilate.evaluation.judgement import Judgement

Manifest = dict[str, Any]

# Stages that read one file or folder each, named in their facts.
READ_KINDS = ("curate", "corpus", "conversations", "preferences", "derive")

# Of `Task.report`: rows that were read and then not used.
DROPPED = (
    "filtered", "empty_text", "missing_label", "unusable_options", "unusable_answer", "unseen_label", "dropped_leaks",
    "unused",
)  # fmt: skip


class JudgedArm(Config):
    name: str
    phase: Phase
    method: str
    deterministic: bool
    evaluations: list[str]
    """The evaluate stages, one a seed."""


class AskedRow(Config):
    """See `graph._ask_every_task`."""

    model: str
    on: str | None
    method: str | None
    task: str
    trained_on: list[str]
    evaluations: list[str]


class ReportConfig(Config):
    recipe: str
    arms: list[JudgedArm]
    unaligned: dict[str, str]
    """Arms that stand on aligned models, and of each the one that differs only in standing on no alignment."""
    asked: list[AskedRow]
    """Every model that was fine-tuned, asked every task, where there are several."""
    made_once: list[str]
    margin: float
    resamples: int
    budget_seconds: float | None
    budget_tokens: int | None


def _run(context: StageContext[ReportConfig]) -> StageReport:
    # Here, not above: scipy and matplotlib take seconds to import, and every other stage would wait for them.
    from quilate.evaluation.evidence import assemble
    from quilate.evaluation.judgement import judge
    from quilate.evaluation.shots import spread_notice
    from quilate.report.html import render_html

    config = context.config
    manifests = {role: finished_manifest(folder) for role, folder in context.inputs.items()}
    task = load_task(context.inputs["task"] / "task")
    outcomes = _outcomes(config, context.inputs, manifests, task)
    rules = Rules(
        metric=task.config.metric,
        margin=config.margin,
        resamples=config.resamples,
        budget_seconds=config.budget_seconds,
        budget_tokens=config.budget_tokens,
        allow_leak=task.config.allow_leak,
    )
    groups = [item.group for item in task.test] if task.config.group else None
    once = [Notice(code="made_once", values={"names": list(config.made_once)})] if config.made_once else []
    judgement = judge(outcomes, gold_of(task), task.labels, groups, rules)
    alignment = _alignment(config, context.inputs, judgement, task)
    task_scores, task_effects = _asked(config, context.inputs, manifests)
    evidence = assemble(
        judgement,
        recipe=config.recipe,
        base=_describe_base(manifests),
        task=_describe_task(task, outcomes),
        machine=_describe_machine(manifests),
        lineage=[*_sources(task, manifests), *(_link(m) for m in manifests.values())],
        alignment=alignment,
        language_modelling=[row for m in manifests.values() for row in _bits_per_byte(m)],
        domains=_domains(context.inputs, manifests, task),
        privacy=[kept(m) for m in manifests.values() if m["kind"] == "privacy"],
        task_scores=task_scores,
        task_effects=task_effects,
        warnings=[
            *(_kept_too_much(m) for m in manifests.values() if m["kind"] == "privacy" and _refused(m)),
            *(Notice(**warning) for warning in task.report["warnings"]),
            *_corpus_warnings(manifests),
            *once,
            *(notice for arm in config.arms for notice in _endpoint_notices(arm, manifests, task)),
            *(spread_notice(o.name, o.shots_curve) for o in outcomes if o.shots_curve),
        ],
    )
    write_json(context.folder / "evidence.json", evidence)
    write_text(
        context.folder / "evidence.html",
        render_html(evidence, task.config.language if task.config.language == "es" else "en"),
    )
    return StageReport()


def _alignment(config: ReportConfig, folders: dict[str, Path], judgement: Judgement, task: Task) -> Alignment | None:
    """What the alignment stage found, and what alignment did to this task's score."""
    from quilate.evaluation.alignment import parse_alignment, task_tax

    if "alignment" not in folders:
        return None
    found = parse_alignment(read_json(folders["alignment"] / "alignment.json"))
    metric = task.config.metric
    rows = task_tax(judgement.arms, judgement.comparisons, config.unaligned, metric=metric, task=task.name)
    return found.model_copy(update={"tax": [*found.tax, *rows]})


def _asked(
    config: ReportConfig, folders: dict[str, Path], manifests: dict[str, Manifest]
) -> tuple[list[TaskScore], list[TaskEffect]]:
    """What the models know of every task; nothing where there is one task."""
    if not config.asked:
        return [], []
    from quilate.evaluation.transfer import AskedModel, AskedTask, transfer_evidence

    tasks, asked = {}, []
    for row in config.asked:
        task = load_task(folders[manifests[row.evaluations[0]]["inputs"]["task"]["stage"]] / "task")
        kept = {"extraction": "counts", "question_answering": "answers"}.get(task.config.kind, "scores")
        answers = [load_file(folders[name] / f"{kept}.safetensors")["test"] for name in row.evaluations]
        features, scores = zip(*(features_of(task, task.test, answer) for answer in answers), strict=True)
        groups = [item.group for item in task.test] if task.config.group else None
        tasks[row.task] = AskedTask(task.config.metric, scores[0], groups)
        asked.append(AskedModel(row.model, row.on, row.method, row.task, row.trained_on, list(features)))
    return transfer_evidence(asked, tasks, resamples=config.resamples)


def outcomes_of_run(out: Path) -> tuple[Task, list[ArmOutcome]]:
    """The task and every arm's outcome of a finished run."""
    config, inputs = _judged_in(out)
    task = load_task(inputs["task"] / "task")
    return task, _outcomes(config, inputs, {role: finished_manifest(folder) for role, folder in inputs.items()}, task)


def evaluations_of_run(out: Path) -> dict[str, list[Path]]:
    """The folders of every arm's evaluate stages, one a seed, of a finished run."""
    config, inputs = _judged_in(out)
    return {arm.name: [inputs[name] for name in arm.evaluations] for arm in config.arms}


def _judged_in(out: Path) -> tuple[ReportConfig, dict[str, Path]]:
    """What a finished run's report stage was told, and the folders of its inputs."""
    spec = StageSpec.read(out / run_plan(out)["stages"]["report"]["folder"])
    inputs = {role: Path(folder) for role, folder in spec.inputs.items()}
    return validate(ReportConfig, spec.config, source="report"), inputs


def _outcomes(
    config: ReportConfig, folders: dict[str, Path], manifests: dict[str, Manifest], task: Task
) -> list[ArmOutcome]:
    return [_outcome(arm, folders, manifests, task, config) for arm in config.arms]


def _outcome(
    arm: JudgedArm, folders: dict[str, Path], manifests: dict[str, Manifest], task: Task, config: ReportConfig
) -> ArmOutcome:
    """An arm's runs; what they cost is summed over the stages each stands on and averaged over seeds."""
    runs = [stages_behind(name, manifests) for name in arm.evaluations]
    costs = [sum((Cost(**m["cost"]) for m in run[1:]), start=Cost(**run[0]["cost"])) for run in runs]
    trained = [next((m for m in reversed(run) if m["cost"]["trainable_parameters"]), None) for run in runs]
    counts: dict[str, int] = {}
    for manifest in (m for run in runs for m in run):
        for name, count in manifest["counts"].items():
            if count:
                counts[name] = max(counts.get(name, 0), count)  # of one run, like the cost
    solved_by = [manifests[m["inputs"]["arm"]["stage"]] for m in (manifests[name] for name in arm.evaluations)]
    sets, texts = answers_are_sets(task), isinstance(task, QuestionTask)
    return ArmOutcome(
        name=arm.name,
        phase=arm.phase,
        method=arm.method,
        seeds=[manifest["seed"] for manifest in solved_by],
        probabilities=[] if sets or texts else [read_probabilities(folders[name]) for name in arm.evaluations],
        found=[read_counts(folders[name]) for name in arm.evaluations] if sets else [],
        scored=[read_answer_scores(folders[name]) for name in arm.evaluations] if texts else [],
        cost=_mean_cost(costs, trained),
        cost_per_1000=_mean([manifests[name]["facts"]["seconds_per_1000"] for name in arm.evaluations]),
        seed_independent=arm.deterministic,
        train_rows=solved_by[0]["facts"].get("train_rows", 0),
        counts=counts,
        learning_curves=[read_metrics(folders[m["stage"]] / "metrics.jsonl") for m in trained if m is not None],
        shots_curve=_shots_curve([(folders[m["stage"]], m) for m in solved_by], task, config.resamples),
        search=_searched([(folders[m["stage"]], m) for m in solved_by], task, config),
        stages=[m["stage"] for m in runs[0]],
        leaked=bool(task.report["allowed_leak"]),
    )


def _shots_curve(solved_by: list[tuple[Path, Manifest]], task: Task, resamples: int) -> list[ShotsEvidence]:
    """Of a prompted arm that had a choice; empty for any other."""
    from quilate.evaluation.shots import TriedPrompt, shots_curve

    tried = [
        (entry["trial"]["shots"], features_of(task, task.dev, load_file(trial_answers(folder, number))["dev"]))
        for folder, manifest in solved_by
        for number, entry in enumerate(manifest["facts"].get("trials", []))
    ]
    if not tried:
        return []
    prompts = [TriedPrompt(shots, features) for shots, (features, _) in tried]
    groups = [item.group for item in task.dev] if task.config.group else None
    return shots_curve(prompts, tried[0][1][1], groups, resamples=resamples)


def _searched(solved_by: list[tuple[Path, Manifest]], task: Task, config: ReportConfig) -> list[SearchEvidence]:
    """What an arm tried on the development items; empty for one without a search."""
    tried = [
        (folder, manifest["seed"], number, entry)
        for folder, manifest in solved_by
        for number, entry in enumerate(manifest["facts"].get("tried", []))
    ]
    if not tried:
        return []
    from quilate.evaluation.search import Tried, search_evidence
    from quilate.phases.search import dev_answers

    trials = [
        Tried(
            seed,
            entry["values"],
            features_of(task, task.dev, dev_answers(folder, number))[0],
            entry["trainable_parameters"],
        )
        for folder, seed, number, entry in tried
    ]
    score = features_of(task, task.dev, dev_answers(tried[0][0], 0))[1]
    groups = [item.group for item in task.dev] if task.config.group else None
    return search_evidence(trials, score, groups, margin=config.margin, resamples=config.resamples)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _mean_cost(costs: list[Cost], trained: list[Manifest | None]) -> Cost:
    last_trained = trained[0]
    return Cost(
        seconds=_mean([c.seconds for c in costs]),
        train_tokens=round(_mean([c.train_tokens for c in costs])),
        flops=_mean([c.flops for c in costs]),
        peak_memory_bytes=max(c.peak_memory_bytes for c in costs),
        trainable_parameters=0 if last_trained is None else last_trained["cost"]["trainable_parameters"],
    )


def _describe_base(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The base model; without one, the first model pretrained in the recipe."""
    manifest = manifests.get("base")
    own = next((m for m in manifests.values() if m["kind"] == "pretrain"), None)
    if manifest is None and own is not None:
        source, parameters = "pretrained in this recipe", own["facts"]["parameters"]
        return {"name": own["stage"], "source": source, "parameters": parameters, "sha256": own["id"]}
    asked = next((m["facts"]["endpoint"] for m in manifests.values() if m["kind"] == "api"), None)
    if manifest is None and asked is not None:
        return {"name": asked["model"], "source": asked["host"], "parameters": 0, "sha256": ""}
    if manifest is None:
        return {"name": "no language model", "source": "", "parameters": 0, "sha256": ""}
    facts = manifest["facts"]
    return {
        "name": facts["name"],
        "source": facts["source"],
        "parameters": facts["parameters"],
        "sha256": facts["sha256"],
    }


def _describe_task(task: Task, outcomes: list[ArmOutcome]) -> dict[str, Any]:
    report = task.report
    leaks = sum(part["items"] for part in report["leaks"].values())
    quarantined = sum(sum(notes.get("quarantined", {}).values()) for notes in report["sources"].values())
    return {
        "name": task.name,
        "kind": task.config.kind,
        "language": task.config.language,
        "train": len(task.train),
        "dev": len(task.dev),
        "test": len(task.test),
        "dropped": {name: count for name in DROPPED if (count := _total(report[name]))},
        "quarantined": quarantined,
        "truncated": max(sum(n for name, n in o.counts.items() if name.endswith(" cut")) for o in outcomes),
        "group": task.config.group,
        "groups_in_test": len({item.group for item in task.test}) if task.config.group else None,
        "leak_check": "leaked, allowed" if report["allowed_leak"] else "clean",
        "leaked_items": leaks,
    }


def _total(count: int | dict[str, int]) -> int:
    return sum(count.values()) if isinstance(count, dict) else count


def _describe_machine(manifests: dict[str, Manifest]) -> dict[str, Any]:
    timed = [m for m in manifests.values() if m["kind"] not in SHARED_KINDS]
    dtypes = {m["facts"]["dtype"] for m in timed if "dtype" in m["facts"]}
    busiest = max(timed, key=lambda m: float(m["measured"]["load_average"]))
    return {
        **busiest["machine"],
        "load_average": busiest["measured"]["load_average"],
        "dtype": ", ".join(sorted(dtypes)) or "float64",
    }


def _endpoint_notices(arm: JudgedArm, manifests: dict[str, Manifest], task: Task) -> list[Notice]:
    """Where an arm's texts went, and what that cost, each seed's choice on dev included."""
    evaluated = [manifests[name] for name in arm.evaluations]
    solved = [manifests[m["inputs"]["arm"]["stage"]] for m in evaluated]
    endpoint = solved[0]["facts"].get("endpoint")
    if endpoint is None:
        return []
    values: dict[str, Any] = {"arm": arm.name, "host": endpoint["host"], "items": len(task.dev) + len(task.test)}
    notices = [Notice(code="sent_away", values=values)] if endpoint["remote"] else []
    money = sum(m["facts"]["money"] for m in [*solved, *evaluated])
    if money > 0:
        per_1000 = _mean([m["facts"]["money_per_1000"] for m in evaluated])
        notices.append(Notice(code="paid", values={"arm": arm.name, "money": money, "per_1000": per_1000}))
    return notices


def _corpus_warnings(manifests: dict[str, Manifest]) -> list[Notice]:
    """Corpora that are not in the language they should be in."""
    found = [(m["stage"].removeprefix("corpus-"), m["facts"]["language"]) for m in manifests.values()
             if m["kind"] == "corpus"]  # fmt: skip
    return [
        Notice(
            code="other_language", values={"corpus": name, "share": facts["other_share"], "language": facts["declared"]}
        )
        for name, facts in found
        if facts.get("other_share", 0) > WARN_SHARE
    ]


def _bits_per_byte(manifest: Manifest) -> list[dict[str, Any]]:
    """What a stage measured on held-out text, before and after: one that trained on text, or an aligned model."""
    facts = manifest["facts"].get("text", manifest["facts"])
    if facts.get("measure") != "bits per byte":
        return []
    measured = {f"before {manifest['stage']}": facts["before"] or {}, f"after {manifest['stage']}": facts["after"]}
    return [
        {"model": model, "corpus": corpus, "bits_per_byte": bits}
        for model, by_corpus in measured.items()
        for corpus, bits in by_corpus.items()
    ]


def kept(manifest: Manifest) -> dict[str, Any]:
    """What an examination found, with the names of the two models."""
    names = {role: manifest["inputs"][role]["stage"] for role in ("model", "reference")}
    found: dict[str, Any] = {"stage": manifest["stage"]} | names | manifest["facts"]
    return found


def _refused(manifest: Manifest) -> bool:
    return not all(gate["passed"] for gate in manifest["facts"]["gates"])


def _kept_too_much(manifest: Manifest) -> Notice:
    found = kept(manifest)
    return Notice(code="kept_too_much", values={name: found[name] for name in ("stage", "model", "corpus")})


def _domains(folders: dict[str, Path], manifests: dict[str, Manifest], task: Task) -> dict[str, Any] | None:
    """How many frequent words the corpora and the task's training texts share; None where there is no corpus."""
    from quilate.data.similarity import frequent_words, vocabulary_overlap

    words = {}
    for name, manifest in manifests.items():
        if manifest["kind"] == "corpus":
            texts = corpus_documents(folders[name], "train") or corpus_documents(folders[name], "held_out")
            words[name.removeprefix("corpus-")] = frequent_words(texts, manifest["facts"]["language"]["declared"])
    if not words:
        return None
    words[TASK_CORPUS] = frequent_words((item.content for item in task.train), task.config.language)
    return {
        "names": list(words),
        "words": [len(found) for found in words.values()],
        "overlap": [[vocabulary_overlap(a, b) for b in words.values()] for a in words.values()],
    }


def _sources(task: Task, manifests: dict[str, Manifest]) -> list[dict[str, Any]]:
    """The files that everything starts from: labelled rows, raw text, conversations, judgements."""
    named = {f"{name} file": notes for name, notes in task.report["sources"].items()}
    for m in manifests.values():
        if m["kind"] == "task" and m["stage"] != "task":
            named |= {f"{m['stage']} {n} file": notes for n, notes in m["facts"]["report"]["sources"].items()}
    named |= {f"{m['stage']} file": m["facts"]["source"] for m in manifests.values() if m["kind"] in READ_KINDS}
    return [
        {"stage": name, "kind": "source", "id": notes["sha256"], "inputs": [], "path": notes["path"]}
        for name, notes in named.items()
    ]


def _link(manifest: Manifest) -> dict[str, Any]:
    inputs = [source["id"] for source in manifest["inputs"].values()]
    if manifest["kind"] == "task":
        inputs += [notes["sha256"] for notes in manifest["facts"]["report"]["sources"].values()]
    if manifest["kind"] in READ_KINDS:
        inputs = [manifest["facts"]["source"]["sha256"], *inputs]
    return {
        "stage": manifest["stage"],
        "kind": manifest["kind"],
        "id": manifest["id"],
        "inputs": inputs,
        "seconds": manifest["cost"]["seconds"],
    }


def run_plan(out: Path) -> dict[str, Any]:
    """The `run.json` of a run directory.

    Raises:
        DataError: `out` is not a run directory.
    """
    if not (out / "run.json").exists():
        raise DataError(
            f"{out} is not a run directory: it has no run.json", hint="name the folder that `quilate run` wrote"
        )
    plan: dict[str, Any] = read_json(out / "run.json")
    return plan


def read_evidence(out: Path) -> dict[str, Any]:
    """The evidence of a finished run."""
    evidence: dict[str, Any] = read_json(out / "evidence.json")
    return evidence


REPORT = StageKind("report", 5, ReportConfig, _run)
