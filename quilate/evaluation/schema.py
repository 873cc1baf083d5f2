"""`evidence.json`, typed: what a report may rely on. Unknown keys and non-finite numbers are refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from quilate.evaluation.outcomes import Phase
from quilate.evaluation.statistics import Over
from quilate.tasks.task import Metric

SCHEMA: Literal["quilate.evidence/1"] = "quilate.evidence/1"
ALIGNMENT_SCHEMA: Literal["quilate.alignment/1"] = "quilate.alignment/1"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Scalar = bool | int | float | str | None
Amount = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """Base of all parts of the evidence."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, revalidate_instances="always")


class Notice(Part):
    """A sentence as data: `code` picks the wording (quilate.evaluation.wording), `values` fill it in any language."""

    code: str
    values: dict[str, Scalar | list[Scalar]] = {}


class ArmCost(Part):
    seconds: Amount
    train_tokens: Count
    flops: Amount
    peak_memory_bytes: Count
    trainable_parameters: Count


class ClassEvidence(Part):
    """Means over the arm's runs; `items` are the label's gold items."""

    label: str
    precision: Share
    recall: Share
    f1: Share
    items: Count


class BinEvidence(Part):
    confidence: Share
    accuracy: Share
    items: Count


class CalibrationEvidence(Part):
    """ECE, Brier (0..2) and log loss (nats): means over the arm's runs; bins: of all runs pooled."""

    ece: Share
    brier: Annotated[float, Field(ge=0, le=2)]
    log_loss: Amount
    bins: list[BinEvidence]


class ShotsEvidence(Part):
    """What a number of solved examples scored on the development items: the mean over the ways it was tried (`runs`:
    seeds, templates, orders), with its interval, and the lowest and highest of them."""

    shots: Count | Literal["fit"]
    score: Share
    ci95: tuple[Share, Share]
    interval_over: Over
    lowest: Share
    highest: Share
    runs: Count
    items: Count


TaskKind = Literal["classification", "multi_label", "multiple_choice", "extraction", "question_answering"]


class SearchedValue(Part):
    """A value of a searched setting: what it scored on the development items, the mean over `runs` seeds, with its
    interval, and the lowest and highest of them. `trainable_parameters` are those of a model trained with it."""

    value: bool | int | float | str
    score: Share
    ci95: tuple[Share, Share]
    interval_over: Over
    lowest: Share
    highest: Share
    runs: Count
    items: Count
    trainable_parameters: Count


class SearchEvidence(Part):
    """A setting that was searched, `key` by its dotted name; numbers in order. `enough` is the least of them from which
    more is not worth the margin, if they are numbers."""

    key: str
    points: list[SearchedValue]
    enough: int | float | None


class ArmEvidence(Part):
    """One arm, judged. `scores` has the mean over runs of every metric of the task's kind; `confusion` sums the runs:
    rows gold, columns predicted, in the order of `labels`. Where answers are sets there is neither confusion nor
    calibration."""

    name: str
    phase: Phase
    method: str
    score: Share
    ci95: tuple[Share, Share]
    interval_over: Over
    scores_by_seed: dict[str, Share]
    seeds: Count
    seed_independent: bool
    train_rows: Count
    cost: ArmCost
    cost_per_1000: Amount
    within_budget: bool
    on_pareto_front: bool
    leaked: bool
    scores: dict[Metric, Share]
    per_class: list[ClassEvidence]
    confusion: list[list[Count]] | None
    calibration: CalibrationEvidence | None
    learning_curves: list[list[dict[str, Scalar]]]
    shots_curve: list[ShotsEvidence] = []
    search: list[SearchEvidence] = []
    counts: dict[str, Count]
    stages: list[str]


class Comparison(Part):
    """score(a) - score(b), paired on the same items; `p` is from `test`, `p_holm` allows for all pairs."""

    a: str
    b: str
    difference: float
    ci95: tuple[float, float]
    interval_over: Over
    p: Share
    p_holm: Share
    test: Literal["bootstrap", "McNemar exact", "McNemar chi-square"]
    n: Count


class Recommendation(Part):
    """`arm` is None when undecided; `headline` and `why` are the English wording of the notices beside them."""

    arm: str | None
    verdict: Literal["train", "don't train", "no LLM", "no model", "undecided"]
    headline: str
    why: str
    base: str | None = None
    more_items: Count | None = None
    contenders: list[str]
    ruled_out: list[str]
    headline_notice: Notice
    reasons: list[Notice]


class Base(Part):
    """The base model that the recommendation holds for."""

    name: str
    source: str
    parameters: Count
    sha256: str


class Task(Part):
    """What was to be solved, on how many rows, and what was done to them.

    `dropped` counts rows that were read but not used, by reason. `group` is the column that keeps siblings together.
    """

    name: str
    kind: TaskKind = "classification"
    language: str | None = None
    train: Count
    dev: Count
    test: Count
    dropped: dict[str, Count] = {}
    quarantined: Count = 0
    truncated: Count = 0
    group: str | None = None
    groups_in_test: Count | None = None
    leak_check: Literal["clean", "leaked, allowed", "not run"]
    leaked_items: Count = 0


class LanguageModelling(Part):
    model: str
    corpus: str
    bits_per_byte: Amount


class EstimateEvidence(Part):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class ExposureEvidence(Part):
    """Canaries that stood in the corpus so many times: their mean exposure in bits (Carlini et al. 2019), that of the
    reference, and how many of their secrets either writes when asked."""

    repeats: Count
    canaries: Count
    bits: EstimateEvidence
    bits_reference: EstimateEvidence
    written: Count
    written_reference: Count


class AttackEvidence(Part):
    """How well a score tells members from others; `true_positives` at 1 % false positives."""

    name: Literal["loss", "reference", "zlib", "min_k"]
    auc: EstimateEvidence
    true_positives: EstimateEvidence


class ExtractionEvidence(Part):
    """Documents that were long enough to be asked for, and those continued word for word: by the model, by the
    reference, by the model `alone` (its `share` of those asked), and of `held_out_asked` documents held out."""

    asked: Count
    model: Count
    reference: Count
    alone: Count
    share: EstimateEvidence | None
    held_out_asked: Count
    held_out: Count


class GateEvidence(Part):
    """A limit of the recipe, and the upper end of what was found."""

    name: Literal["exposure", "extracted", "auc", "true_positives"]
    limit: float
    seen: float
    passed: bool


class PrivacyEvidence(Part):
    """What a model kept of a corpus that it read `epochs` times, judged on documents of it (`members`) and held out of
    it (`others`); `controls` canaries give the ranks."""

    stage: str
    model: str
    reference: str
    corpus: str
    epochs: Amount
    members: Count
    others: Count
    controls: Count
    exposure: list[ExposureEvidence]
    attacks: list[AttackEvidence]
    extraction: ExtractionEvidence
    gates: list[GateEvidence]


class DomainsEvidence(Part):
    """How many of their most frequent words the recipe's texts share; `words` were found in each, function words left
    out, `overlap` is symmetric."""

    names: list[str]
    words: list[Count]
    overlap: list[list[Share]]


class TaskScore(Part):
    """What a model scored on the test items of one of several tasks; `on` is the model it was trained from, if it was,
    and `trained_on` the tasks of that step. `runs` has a score for every seed."""

    model: str
    on: str | None
    task: str
    metric: Metric
    score: Share
    ci95: tuple[Share, Share]
    interval_over: Over
    runs: list[Share]
    items: Count
    trained_on: list[str]


class TaskEffect(Part):
    """score(model) - score(against) on the same test items of a task; see `evaluation.transfer` for the kinds."""

    kind: Literal["step", "transfer", "interference"]
    model: str
    against: str
    task: str
    difference: float
    ci95: tuple[float, float]
    interval_over: Over
    items: Count


class Link(Part):
    """One stage (or source file) of the lineage; `inputs` are ids of other links."""

    stage: str
    kind: str
    id: str
    inputs: list[str]
    seconds: Amount = 0.0
    reused: bool = False
    path: str | None = None


class Machine(Part):
    """Where the times were taken; `load_average` is the one-minute load while timing, `cores` to set it against."""

    cpu: str
    cores: Count
    memory_bytes: Count
    load_average: Amount | None = None
    gpu: str | None = None
    torch: str
    dtype: str
    platform: str | None = None


class RulesEvidence(Part):
    margin: Share
    confidence: Share
    resamples: Count
    budget_seconds: Amount | None
    budget_tokens: Count | None
    seed: int


class Range(Part):
    """A value with its 95 % interval; None where nothing is known of how far it may be off."""

    estimate: float
    low: float | None
    high: float | None


class PairAccuracy(Part):
    """How often something prefers what people preferred, on held-out pairs, beside preferring by length alone.

    Attributes:
        by: "reward" model; a policy's "implied reward" (Rafailov et al. 2023); a model's "log-probability".
        groups: prompts, conversations or posts, which are resampled whole.
        derived: of the pairs' set follow from a rule; nobody judged them.
        prefers: which length the baseline prefers, learned from training pairs; where there are none, the better one.
        difference: accuracy less that of length alone, on the same pairs.
    """

    stage: str
    by: Literal["reward", "implied reward", "log-probability"]
    set: str
    derived: bool
    pairs: Count
    groups: Count
    accuracy: Range
    length_only: Range
    difference: Range
    prefers: Literal["longer", "shorter"]


class BitsPerByte(Part):
    bits: Amount
    bytes: Count


class Policy(Part):
    """One model that writes.

    Attributes:
        start: the model that it was aligned from; None for such a model itself, which stands for "no alignment".
        family: what it shares with policies that differ from it in `beta` alone.
        rewards: mean score by judge over the held-out prompts; `rewards_by_seed` of each run.
        win_rates: against `start`, by judge.
        strengths: log-odds to beat the first policy of the list, by judge (Bradley-Terry).
        kl: KL(policy || start) in nats a completion, the policy's own.
        ended, tokens: of its completions, the share that ended and the mean length.
        pairs: by set, accuracy by log-probability a token on held-out pairs and items.
        seconds: of making it, all that it stands on included.
    """

    name: str
    kind: str
    start: str | None
    family: str | None
    beta: float | None
    seeds: list[int]
    rewards: dict[str, Range]
    rewards_by_seed: dict[str, dict[str, float]]
    win_rates: dict[str, Range]
    strengths: dict[str, Range]
    kl: float | None
    ended: Share
    tokens: Amount
    bits_per_byte: dict[str, BitsPerByte]
    pairs: dict[str, Range]
    seconds: Amount


class WinRate(Part):
    """How often `a` beats `b`, ties half; `tied` of the prompts were ties."""

    judge: str
    a: str
    b: str
    rate: Range
    tied: Share


class Tax(Part):
    """A measure before and after alignment: "bits per byte" of a corpus, or an arm's score on the task against the arm
    that differs from it only in standing on no alignment. `difference` is after less before; its interval is None where
    the measure is of one whole text."""

    policy: str
    start: str
    measure: str
    of: str
    before: float
    after: float
    difference: Range
    higher_is_better: bool


class RolloutHealth(Part):
    """An iteration of online training: means over what was written in it.

    Attributes:
        kl: from the reference, in nats a completion; entropy: in nats a token.
        without_spread: share of prompts whose completions all got one score; None where each has one completion.
        explained_variance: of the returns, by the value model; None without one.
        clipped: share of tokens whose gradient its steps stopped.
    """

    score: float
    kl: float
    entropy: float
    tokens: Amount
    ended: Share
    without_spread: Share | None
    explained_variance: float | None
    clipped: Share | None


class OnlineHealth(Part):
    """A stage's first iteration and its last."""

    stage: str
    iterations: Count
    first: RolloutHealth
    last: RolloutHealth


class RuleFound(Part):
    """The share of held-out completions in which a rule of a stage's rewards is found, and its change, prompt by
    prompt."""

    stage: str
    set: str
    rule: str
    before: Range
    after: Range
    change: Range


class Alignment(Part):
    """What is known of the aligned models of a recipe and of the models that judge them.

    Attributes:
        prompts, groups: held-out prompts that every policy answered; 0 where none was asked.
        sets: where the prompts come from; those in `derived` hold judgements that follow from a rule.
    """

    schema_: Annotated[Literal["quilate.alignment/1"], Field(alias="schema")] = ALIGNMENT_SCHEMA
    version: str
    recipe: str
    language: str = "en"
    prompts: Count
    groups: Count
    sets: list[str]
    derived: list[str]
    judges: list[str]
    resamples: Count
    policies: list[Policy]
    contests: list[WinRate]
    pair_accuracy: list[PairAccuracy]
    tax: list[Tax]
    training: list[OnlineHealth] = []
    rules: list[RuleFound] = []
    notices: list[Notice]


class Evidence(Part):
    """All of `evidence.json`."""

    schema_: Annotated[Literal["quilate.evidence/1"], Field(alias="schema")] = SCHEMA
    version: str
    recipe: str
    base: Base
    task: Task
    metric: Metric
    items: Count
    groups: Count | None
    labels: list[str]
    rules: RulesEvidence
    arms: list[ArmEvidence]
    comparisons: list[Comparison]
    language_modelling: list[LanguageModelling]
    domains: DomainsEvidence | None = None
    privacy: list[PrivacyEvidence] = []
    alignment: Alignment | None = None
    task_scores: list[TaskScore] = []
    task_effects: list[TaskEffect] = []
    lineage: list[Link]
    machine: Machine
    warnings: list[str]
    notices: list[Notice]
    recommendation: Recommendation
