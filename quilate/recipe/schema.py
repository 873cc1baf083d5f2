"""What a recipe file may say."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from quilate.config import Config
from quilate.curation.config import CurateConfig
from quilate.phases.adapt import AdaptConfig
from quilate.phases.align.assay import AssayConfig
from quilate.phases.align.cloning import CloningConfig
from quilate.phases.align.derive import DeriveConfig
from quilate.phases.align.distill import DistillConfig
from quilate.phases.align.dpo import DpoConfig
from quilate.phases.align.grpo import GrpoConfig
from quilate.phases.align.ilql import IlqlConfig
from quilate.phases.align.offline import OfflineTraining
from quilate.phases.align.online import OnlineTraining
from quilate.phases.align.ppo import PpoConfig
from quilate.phases.align.preferences import PreferencesConfig
from quilate.phases.align.reward import RewardConfig
from quilate.phases.api import ApiConfig
from quilate.phases.baselines import BaselineConfig
from quilate.phases.conversations import ConversationsConfig
from quilate.phases.corpus import CorpusConfig
from quilate.phases.finetune import FinetuneConfig, TuningConfig
from quilate.phases.icl import IclConfig
from quilate.phases.inputs import LabelledSources
from quilate.phases.language_modelling import TASK_CORPUS
from quilate.phases.multitask import MultitaskConfig
from quilate.phases.pretrain import PretrainConfig
from quilate.phases.privacy import PrivacyConfig
from quilate.phases.sft import SftConfig
from quilate.tasks.kinds import TaskConfig

ArmConfig = Annotated[BaselineConfig | IclConfig | ApiConfig | FinetuneConfig, Field(discriminator="kind")]


class FinetuneStageConfig(FinetuneConfig):
    """Fine-tuning that is a step on the way: what stands on it is trained further, or asked."""

    task: str = "task"
    """The task to train on: the recipe's own `task`, or a name of its `tasks`."""
    once: bool = False
    """Make the model once, with the recipe's first seed, for all seeds of what stands on it."""


StageConfig = Annotated[
    PretrainConfig
    | AdaptConfig
    | FinetuneStageConfig
    | MultitaskConfig
    | SftConfig
    | RewardConfig
    | DpoConfig
    | PpoConfig
    | GrpoConfig
    | CloningConfig
    | IlqlConfig
    | DistillConfig
    | DeriveConfig
    | PrivacyConfig,
    Field(discriminator="kind"),
]

# What cannot become part of a weight, so that nothing can be trained on top of it.
UNMERGEABLE = {
    "adapter": "bottleneck adapters cannot be merged",
    "prefix": "learned tokens cannot be merged",
    "prompt": "learned tokens cannot be merged",
}

BASE = "base"  # the name by which `on:` refers to the base model


RESERVED = (BASE, "task", "report")


# What each kind of task can be solved by, beside fine-tuning by any method but those in NOT_TUNED_BY.
BASELINES = {
    "classification": ("majority", "tfidf"),
    "multi_label": ("majority", "tfidf"),
    "multiple_choice": ("majority", "tfidf", "longest"),
    "extraction": ("gazetteer",),
    "question_answering": (),
}
ANSWERS = {"text": "multiple_choice", "letter": "multiple_choice", "records": "extraction"}
NOT_TUNED_BY: dict[str, tuple[str, ...]] = {
    "multi_label": ("prefix", "prompt"),
    "multiple_choice": ("head",),
    "extraction": ("prefix", "prompt"),
    "question_answering": ("head",),
}


def misfit(kind: str, arm: ArmConfig) -> str | None:
    """Why an arm cannot solve tasks of a kind as it is configured; None if it can."""
    match arm:
        case BaselineConfig() if arm.method not in BASELINES[kind]:
            known = f"these do: {', '.join(BASELINES[kind])}" if BASELINES[kind] else "no baseline does"
            return f"`method: {arm.method}` does not solve {kind}; {known}"
        case ApiConfig() | IclConfig() if kind == "multi_label":
            return "a prompt does not solve multi_label yet: use `finetune` or `baseline`"
        case ApiConfig(answers="likelihood" | "first_token") if kind in ("extraction", "question_answering"):
            return f"`answers: {arm.answers}` is for labels: entities and answers in words are read from the text"
        case IclConfig() if kind == "extraction" and arm.answer != "records":
            return "a prompt solves extraction with `answer: records` only"
        case ApiConfig() | IclConfig() if kind != "classification" and _for_classes_only(arm, kind):
            return f"`{_for_classes_only(arm, kind)[0]}` does not go with {kind}, as it is set here"
        case FinetuneConfig() if arm.method in NOT_TUNED_BY.get(kind, ()):
            return f"`method: {arm.method}` does not solve {kind}: use `full`, `lora`, `adapter` or `last_layers`"
        case FinetuneConfig(quantize=str()) if kind in ("extraction", "multi_label") and arm.answer != "records":
            return "`quantize` is for models that write their answers: for extraction with `answer: records`"
        case FinetuneConfig(method="head") if kind in ("classification", "multi_label") and arm.lr is not None:
            return "`lr` does not go with `method: head`: its classifier has a solver that needs none"
        case FinetuneConfig(method="head") if kind == "extraction" and arm.head is not None:
            return "`head` settings are for whole texts: for extraction the classifier is trained by steps"
        case FinetuneConfig(method="head", answer="records"):
            return "`answer: records` needs a model that learns to write, and `method: head` leaves it as it is"
        case ApiConfig() | IclConfig() | FinetuneConfig() if arm.answer is not None and ANSWERS[arm.answer] != kind:
            return f"`answer: {arm.answer}` goes with {ANSWERS[arm.answer]}"
    return None


def _for_classes_only(arm: ApiConfig | IclConfig, kind: str) -> list[str]:
    """The settings of a prompted arm that do not go with a task of this kind, which has no labels of its own."""
    near = arm.demonstrations == "nearest"
    used = {
        "per_class": arm.per_class,
        "shots": near and "fit" in arm.numbers(),
        "similarity": arm.similarity == "embedding",
        "order": near and arm.reading_order() != "nearest_last",
        "calibration": kind != "multiple_choice" and isinstance(arm, IclConfig) and arm.calibration != "none",
    }
    return [key for key, value in used.items() if value]


def stands_on(node: StageConfig | ArmConfig) -> str | None:
    """The name of the model a stage or arm starts from; None if it starts from nothing."""
    return None if isinstance(node, (PretrainConfig, BaselineConfig, ApiConfig)) else node.on


def needs(node: StageConfig | ArmConfig) -> list[str]:
    """The names of every stage or arm that a stage or arm uses, the one it stands on first; the base is none. Among
    them are sets of judgements: those that were derived are stages."""
    judges = node.reward_stages().values() if isinstance(node, OnlineTraining) else []
    sets = node.preferences if isinstance(node, (RewardConfig, DpoConfig, OnlineTraining, OfflineTraining)) else []
    return list(dict.fromkeys(name for name in (*models_given_to(node), *judges, *sets) if name != BASE))


def models_given_to(node: StageConfig | ArmConfig) -> list[str]:
    """The model that a stage or arm stands on, if any, and the one it is compared with; `base` among them."""
    on = stands_on(node)
    return [*([] if on is None else [on]), *([node.reference] if isinstance(node, PrivacyConfig) else [])]


def is_aligned(node: StageConfig | ArmConfig | None) -> bool:
    """Whether a stage aligns the model it stands on."""
    return isinstance(node, (DpoConfig, OnlineTraining, OfflineTraining, DistillConfig))


class AlignmentConfig(AssayConfig):
    """How the models that were aligned are compared with one another and with no alignment."""

    policies: list[str] = Field(default_factory=list)
    """The models to compare, by the names of their stages; by default every one that was aligned. What each was aligned
    from is compared in any case: it is "no alignment"."""


class Budget(Config):
    """The same maximum for every arm, upstream stages included."""

    seconds: float | None = Field(default=None, gt=0)
    """An arm that takes longer is shown, and not eligible for the recommendation."""
    train_tokens: int | None = Field(default=None, ge=1)
    """Training stops at this many tokens; the learning-rate schedule is planned for it."""


class OtherTask(Config):
    """A task beside the recipe's own, to learn from on the way to it."""

    data: LabelledSources
    """Where its labelled rows are."""
    task: TaskConfig
    """What is to be solved."""


class Recipe(Config):
    recipe: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """The recipe's name; its results go to `runs/NAME` by default."""
    base: str | None = None
    """The base model: a model directory, a .gguf file, `package:NAME` or a hub name. Arms that use a model need it."""
    data: LabelledSources | None = None
    """Where the labelled rows are. A recipe that only makes models needs none, and no `task` and `arms`."""
    task: TaskConfig | None = None
    """What is to be solved."""
    tasks: dict[str, OtherTask] = Field(default_factory=dict)
    """Further tasks, by name, for `finetune` and `multitask` stages to train on. Every model that is fine-tuned in the
    recipe is then asked all of them and the recipe's own: what a step gained on one task and lost on another."""
    curated: dict[str, CurateConfig] = Field(default_factory=dict)
    """Raw sources to be made into clean text, by name, for corpora to be taken from."""
    corpora: dict[str, CorpusConfig] = Field(default_factory=dict)
    """Raw text, by name, for the stages to train on and to measure with."""
    conversations: dict[str, ConversationsConfig] = Field(default_factory=dict)
    """Sets of conversations, by name, for `sft` stages to train on and to measure with, and to ask from in `ppo` and
    `grpo` stages."""
    preferences: dict[str, PreferencesConfig] = Field(default_factory=dict)
    """Sets of human judgements, by name, for `reward` and `dpo` stages to train on and to measure with, and to ask from
    in `ppo` and `grpo` stages; those with rewards also for `cloning` and `ilql`."""
    stages: dict[str, StageConfig] = Field(default_factory=dict)
    """Models made before any arm, by name: `pretrain`, `adapt`, `finetune`, `multitask`, `sft`, `reward`, `dpo`, `ppo`,
    `grpo`, `cloning`, `ilql` and `distill`; and `derive`, which makes a set of judgements. Those trained on raw text
    are measured on every corpus, those trained on conversations or human judgements on every set of them. `privacy`
    makes none: it looks for what one of them kept of its text."""
    alignment: AlignmentConfig | None = None
    """What aligned models are asked and who judges them; the report then has win rates, strengths and what alignment
    cost in other abilities."""
    arms: dict[str, ArmConfig] = Field(default_factory=dict)
    """The ways of solving the task, by name."""
    seeds: list[int] = Field(default=[0, 1], min_length=1)
    """One run of every arm a seed. Two show that an arm works, three are for studies, five for a claim."""
    budget: Budget = Budget()
    """The most that any arm may cost."""
    trials: int | None = Field(default=None, ge=2)
    """How often every trained arm is tried. One without a `search` of its own tries so many learning rates (a `head`:
    strengths of its penalty) around its default, and keeps the best on the development items."""
    margin: float = Field(default=0.02, gt=0, lt=1)
    """A difference in score that is too small to pay for."""
    resamples: int = Field(default=10_000, ge=1000)
    """Bootstrap resamples behind every interval."""
    strict: bool = False
    """Stop at the first broken record instead of setting it aside and counting it."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be distinct and not negative")
        return seeds

    @field_validator("arms", "stages", "tasks", "curated", "corpora", "conversations", "preferences")
    @classmethod
    def _names_fit_folders(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if not re.fullmatch(r"[\w.-]+", name) or name in RESERVED:
                raise ValueError(
                    f"'{name}' cannot be a name: use letters, digits, - and _, and none of {', '.join(RESERVED)}"
                )
        return named

    @model_validator(mode="after")
    def _a_task_to_solve_or_models_to_make(self) -> Recipe:
        given = [key for key in ("data", "task", "arms") if getattr(self, key)]
        missing = [key for key in ("data", "task", "arms") if key not in given]
        if given and missing:
            raise ValueError(f"`{missing[0]}` is missing: {', '.join(f'`{key}`' for key in given)} need it")
        if not given and not self.stages and not self.curated and self.alignment is None:
            raise ValueError(
                "there is nothing to do: give `data`, `task` and `arms`, or `stages`, or `curated`, or `alignment`"
            )
        return self

    @model_validator(mode="after")
    def _arms_solve_the_task(self) -> Recipe:
        for name, arm in self.arms.items():
            problem = misfit(self.task.kind, arm) if self.task is not None else None
            if problem is not None:
                raise ValueError(f"arm '{name}': {problem}")
        return self

    @model_validator(mode="after")
    def _trained_arms_are_tried_equally_often(self) -> Recipe:
        tuned = {name: arm for name, arm in self.arms.items() if isinstance(arm, FinetuneConfig)}
        times = {name: len(arm.trials()) or self.trials or 1 for name, arm in tuned.items()}
        if len(set(times.values())) > 1:
            most, least = max(times, key=times.__getitem__), min(times, key=times.__getitem__)
            raise ValueError(
                f"arm '{most}' is tried {times[most]} times and '{least}' {times[least]}: the one tried more often "
                f"has the better chance; set `trials: {times[most]}`, or give every trained arm as many"
            )
        return self

    @model_validator(mode="after")
    def _everything_stands_on_something(self) -> Recipe:
        twice = sorted(set(self.arms) & set(self.stages))
        if twice:
            raise ValueError(f"'{twice[0]}' names both a stage and an arm")
        tuned = {name: arm for name, arm in self.arms.items() if isinstance(arm, FinetuneConfig)}
        classifiers = self.task is not None and self.task.kind in ("extraction", "multi_label")
        writers = [name for name, arm in tuned.items() if arm.method != "head" and not classifiers]
        silent = RewardConfig | DeriveConfig | PrivacyConfig
        written = [name for name, stage in self.stages.items() if not isinstance(stage, silent)]
        models = [BASE, *written, *writers]
        for name, node in (self.stages | self.arms).items():
            on = stands_on(node)
            for model in models_given_to(node):
                if model == BASE and self.base is None:
                    raise ValueError(f"'{name}' needs a model: give the recipe a `base`")
                if model not in models:
                    raise ValueError(f"'{name}' stands on '{model}', which makes no model; known: {', '.join(models)}")
                if name in self.stages and model in self.arms:
                    raise ValueError(f"stage '{name}' stands on arm '{model}': stages come before arms")
            below = self._trained_with(on)
            if below in UNMERGEABLE and self._trained_with(name) not in (None, "head"):
                raise ValueError(f"'{name}' trains on top of '{on}', whose {UNMERGEABLE[below]}")
            self._refuse_unknown_judges(name, node)
        for name in self.stages | self.arms:
            self._refuse_cycle(name)
        self._refuse_unknown_corpora()
        self._refuse_unknown_tasks()
        return self

    def _trained_with(self, name: str | None) -> str | None:
        """The method by which a stage or arm trains a model; None if it trains none."""
        node = (self.stages | self.arms).get(name or "")
        if node is None or isinstance(node, BaselineConfig | IclConfig | ApiConfig):
            return None
        return node.method if isinstance(node, TuningConfig) else node.kind

    def _refuse_unknown_tasks(self) -> None:
        if self.tasks and self.task is None:
            raise ValueError("`tasks` are further tasks, and the recipe has no `task` of its own")
        known = ({"task": self.task} if self.task else {}) | {name: other.task for name, other in self.tasks.items()}
        trained_on = {
            name: stage.tasks if isinstance(stage, MultitaskConfig) else [stage.task]
            for name, stage in self.stages.items()
            if isinstance(stage, FinetuneStageConfig | MultitaskConfig)
        }
        for name, tasks in trained_on.items():
            for task in tasks:
                if task not in known:
                    raise ValueError(
                        f"stage '{name}' trains on '{task}', which is no task here; known: {', '.join(known) or 'none'}"
                    )
            if self._trained_with(name) == "head":
                raise ValueError(f"stage '{name}': `method: head` makes no model to stand on; make it an arm")
        several = [name for name, task in known.items() if self.tasks and task.kind == "multi_label"]
        if several:
            raise ValueError(
                f"'{several[0]}' has several labels a text, which a model that writes does not answer: it cannot stand "
                "beside other `tasks`"
            )
        if self.tasks and self.task is not None and self.task.kind == "extraction":
            raise ValueError(
                "the recipe's own task cannot be extraction where there are further `tasks`: its arms are token "
                "classifiers, which answer no other task; make it one of the `tasks`"
            )
        for name, stage in self.stages.items():
            problem = misfit(known[stage.task].kind, stage) if isinstance(stage, FinetuneStageConfig) else None
            if isinstance(stage, FinetuneStageConfig) and known[stage.task].kind in ("extraction", "multi_label"):
                problem = "a classifier is nothing to stand on: use `kind: multitask`, also for one task"
            if problem is not None:
                raise ValueError(f"stage '{name}': {problem}")

    def _refuse_cycle(self, name: str, below: tuple[str, ...] = ()) -> None:
        if name in below:
            raise ValueError(
                f"these stand on one another in a circle: {' -> '.join([*below[below.index(name) :], name])}"
            )
        for needed in needs((self.stages | self.arms)[name]):
            if needed in self.stages or needed in self.arms:
                self._refuse_cycle(needed, (*below, name))

    def _refuse_unknown_judges(self, name: str, node: StageConfig | ArmConfig) -> None:
        if isinstance(node, OnlineTraining):
            self._require_rewards(f"stage '{name}' is rewarded", list(node.reward_stages().values()))

    def _require_rewards(self, who: str, wanted: list[str]) -> None:
        judges = [judge for judge, stage in self.stages.items() if isinstance(stage, RewardConfig)]
        for one in wanted:
            if one not in judges:
                known = ", ".join(judges) or "there are none"
                raise ValueError(f"{who} by '{one}', which is no `reward` stage; known: {known}")

    @model_validator(mode="after")
    def _aligned_models_can_be_compared(self) -> Recipe:
        shared = sorted(set(self.preferences) & set(self.stages))
        if shared:
            raise ValueError(f"'{shared[0]}' names both a stage and a set of judgements")
        if self.alignment is None:
            return self
        writers = [n for n, s in self.stages.items() if not isinstance(s, RewardConfig | DeriveConfig | PrivacyConfig)]
        for name in self.alignment.policies:
            if name not in (BASE, *writers):
                raise ValueError(f"`alignment` compares '{name}', which writes nothing; known: {', '.join(writers)}")
        if BASE in self.alignment.policies and self.base is None:
            raise ValueError(f"`alignment` compares '{BASE}': give the recipe a `base`")
        if not self.alignment.policies and not any(map(is_aligned, self.stages.values())):
            raise ValueError("`alignment` compares aligned models, and no stage aligns one")
        self._require_rewards("`alignment` is judged", list(self.alignment.judging_stages().values()))
        self._require_sets("`alignment`", "conversations", self.alignment.conversations)
        self._require_sets("`alignment`", "preferences", self.alignment.preferences)
        return self

    def _refuse_unknown_curated(self) -> None:
        for name, corpus in self.corpora.items():
            if corpus.curated is not None and corpus.curated not in self.curated:
                known = ", ".join(self.curated) or "there are none"
                raise ValueError(
                    f"corpus '{name}' is taken from '{corpus.curated}', which is not in `curated`; known: {known}"
                )

    def _refuse_unknown_corpora(self) -> None:
        self._refuse_unknown_curated()
        known = [*self.corpora, *([TASK_CORPUS] if self.task else [])]
        for name, corpus in self.corpora.items():
            if corpus.neighbours is not None and self.task is None:
                raise ValueError(f"the corpus '{name}' is to have `neighbours` of the task: give `data` and `task`")
        for name, stage in self.stages.items():
            if isinstance(stage, DeriveConfig | TuningConfig):
                continue
            if isinstance(stage, SftConfig | DistillConfig):
                self._refuse_unknown_sets(name, "conversations", stage.conversations)
                continue
            if isinstance(stage, RewardConfig | DpoConfig | OfflineTraining):
                self._refuse_unknown_sets(name, "preferences", stage.preferences)
                continue
            if isinstance(stage, OnlineTraining):
                self._refuse_unknown_sets(name, "conversations", stage.conversations)
                self._refuse_unknown_sets(name, "preferences", stage.preferences)
            if isinstance(stage, PrivacyConfig):
                self._refuse_unfit_examination(name, stage)
                continue
            wanted = _corpora_of(stage)
            unknown = [corpus for corpus in wanted if corpus not in known]
            if unknown:
                raise ValueError(
                    f"stage '{name}' names '{unknown[0]}', which is not in `corpora`; known: {', '.join(known)}"
                )
            measured = [c for c in wanted if c != TASK_CORPUS and self.corpora[c].held_out == 1]
            if measured:
                raise ValueError(f"stage '{name}' trains on '{measured[0]}', all of which is held out")

    def _refuse_unfit_examination(self, name: str, stage: PrivacyConfig) -> None:
        """What is examined must have been trained on the corpus, and the reference not."""
        examined = self.stages.get(stage.on)
        if not isinstance(examined, PretrainConfig | AdaptConfig) or stage.corpus not in examined.corpora:
            raise ValueError(f"stage '{name}' examines '{stage.on}', which does not itself train on '{stage.corpus}'")
        if stage.corpus not in self.corpora:
            raise ValueError(f"stage '{name}' needs one of the `corpora`, which '{stage.corpus}' is not")
        if stage.limits.exposure is not None and self.corpora[stage.corpus].canaries is None:
            raise ValueError(f"stage '{name}' limits exposure, but '{stage.corpus}' has no `canaries`")
        below: str | None = stage.reference
        while below is not None and below != BASE:
            trained = self.stages[below]
            if stage.corpus in getattr(trained, "corpora", {}):
                raise ValueError(f"stage '{name}' compares with '{below}', which was trained on '{stage.corpus}' too")
            below = stands_on(trained)

    def _refuse_unknown_sets(self, name: str, key: Literal["conversations", "preferences"], wanted: list[str]) -> None:
        sets = self._require_sets(f"stage '{name}'", key, wanted)
        for one in wanted:
            if sets[one].held_out == 1:
                raise ValueError(f"stage '{name}' trains on '{one}', all of which is held out")

    def _require_sets(
        self, who: str, key: Literal["conversations", "preferences"], wanted: list[str]
    ) -> dict[str, ConversationsConfig | PreferencesConfig | DeriveConfig]:
        """The sets that may be named, all of which `wanted` must be."""
        sets: dict[str, ConversationsConfig | PreferencesConfig | DeriveConfig] = dict(getattr(self, key))
        if key == "preferences":
            sets |= {name: stage for name, stage in self.stages.items() if isinstance(stage, DeriveConfig)}
        for one in wanted:
            if one not in sets:
                known = ", ".join(sets) or "there are none"
                raise ValueError(f"{who} names '{one}', which is not in `{key}`; known: {known}")
        return sets


def _corpora_of(stage: PretrainConfig | AdaptConfig | PpoConfig | GrpoConfig) -> list[str]:
    """The corpora that a stage trains on."""
    if isinstance(stage, PretrainConfig | AdaptConfig):
        return list(stage.corpora)
    return stage.text.corpora if isinstance(stage, PpoConfig) and stage.text is not None else []
