"""Any model behind an OpenAI-compatible endpoint as an arm: asked with the same prompts as a local one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from quilate.errors import ConfigError
from quilate.files import make_folder
from quilate.inference.api_client import LIMITS, Endpoint, Prices, check_address, is_loopback
from quilate.inference.api_kinds import ApiAnswerWriter, ApiChoiceScorer, ApiTagger
from quilate.inference.api_model import Answers, ApiModel, Asking
from quilate.inference.api_scorer import ApiScorer
from quilate.inference.scores import Normalization
from quilate.phases.prompting import (
    PromptingConfig,
    Shown,
    Trial,
    choose_on_dev,
    nearest_of,
    pool_of,
    report_of,
    show,
    solved_choices,
    solved_documents,
    solved_labels,
    solved_questions,
    task_template,
    template_of,
    trials_of,
)
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import ExtractionTask
from quilate.tasks.kinds import load_task
from quilate.tasks.multiple_choice import AnswerForm, ChoiceTask
from quilate.tasks.question_answering import QuestionTask
from quilate.tasks.task import Task
from quilate.tasks.templates import PromptTemplate

LABEL_TOKENS, ANSWER_TOKENS = 16, 512  # guess: a label or letter with a word before it; a list of entities

LABELS = "<LABELS>"  # where an instruction names the task's

# The form of an answer, said after the task's own instruction: nothing else holds an endpoint to it.
FORMS = {
    "text": {
        "es": "Responde solo con el texto de la opción correcta.",
        "en": "Answer with the text of the right option only.",
    },
    "letter": {
        "es": "Responde solo con la letra de la opción correcta.",
        "en": "Answer with the letter of the right option only.",
    },
    "records": {
        "es": "Responde solo con una lista JSON de las entidades del texto, copiadas tal como están escritas y en su "
        f'orden: [{{"label": "...", "text": "..."}}]. Etiquetas: {LABELS}. Si no hay ninguna: [].',
        "en": "Answer only with a JSON list of the text's entities, copied as they are written and in their order: "
        f'[{{"label": "...", "text": "..."}}]. Labels: {LABELS}. If there are none: [].',
    },
    "stretch": {
        "es": "Responde solo con palabras copiadas del texto, sin explicación.",
        "en": "Answer only with words copied from the text, without explanation.",
    },
    "line": {
        "es": "Responde en una sola línea, lo más corta posible, sin explicación.",
        "en": "Answer in a single line, as short as possible, without explanation.",
    },
}


class ApiConfig(PromptingConfig):
    kind: Literal["api"]
    """A model behind an OpenAI-compatible endpoint, prompted; the texts are sent to it."""
    url: str
    """Base URL, such as `http://localhost:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key. The key itself is never written anywhere."""
    allow_remote: bool = False
    """Send texts, test items among them, to a host that is not this machine. Without it such an address is refused."""
    endpoint: Literal["chat", "completions"] = "chat"
    """`chat` sends the turns of a conversation, `completions` one plain text."""
    answers: Answers | None = None
    """From what a label's score is read: the `likelihood` of every label (completions that can echo the prompt, one
    request a label), the `first_token`'s log-probabilities, or the `text`. What the server does not give is replaced
    by the text, and counted. By default `likelihood` for completions and `first_token` for chat."""
    normalization: Normalization = "mean"
    """Of a likelihood: `mean` over the label's tokens, their `sum`, the `first` alone, or the sum over its
    `characters`."""
    answer: Literal["text", "letter", "records"] | None = None
    """For multiple choice: ask for an option's `letter`, which is the default, after a prompt that lists all of them,
    or for its `text`. Entities are asked for as `records` in any case."""
    max_answer_tokens: int | None = Field(default=None, ge=1)
    """The most tokens that an answer may have. By default 16, and 512 where entities are asked for or an answer in
    words."""
    request: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Keys of every request's body that this endpoint wants otherwise; null leaves one out. For example
    `{max_tokens: null, max_completion_tokens: 16, temperature: null}`, or `{top_logprobs: 5}`."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Requests under way at a time."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    retries: int = Field(default=6, ge=0)
    """Further tries after a refusal for the moment (429, 5xx), a broken answer or none, each after a longer wait."""
    price_in: float | None = Field(default=None, ge=0)
    """Price of a million tokens read. To be stated for a remote host, be it 0."""
    price_out: float | None = Field(default=None, ge=0)
    """Price of a million tokens written."""
    max_cost: float | None = Field(default=None, gt=0)
    """The most that each seed of this arm may cost, evaluation and later predictions included. No request is sent that
    might exceed it: the run stops before, and continues when the cap is raised."""

    @model_validator(mode="after")
    def _consistent_endpoint(self) -> ApiConfig:
        try:
            check_address(self.url)
        except ConfigError as error:
            raise ValueError(f"url: {error.message}") from error
        if self.answers == "likelihood" and self.endpoint == "chat":
            raise ValueError("answers: `likelihood` needs `endpoint: completions`, which can echo a prompt")
        if "fit" in self.numbers():
            raise ValueError("shots: give a number; what fits into the endpoint's context is not known here")
        if self.similarity == "embedding":
            raise ValueError("similarity: `embedding` needs a local model's hidden states")
        self._check_request()
        if (self.price_in or self.price_out) and self.max_cost is None:
            raise ValueError("max_cost: what costs money needs a cap")
        return self if is_loopback(self.url) else self._checked_remote()

    def _checked_remote(self) -> ApiConfig:
        host = urlsplit(self.url).netloc
        if not self.allow_remote:
            raise ValueError(
                f"{host} is not this machine: the texts of training examples, dev and test items would leave it. Say "
                "`allow_remote: true` if they may"
            )
        if self.price_in is None or self.price_out is None:
            raise ValueError(f"price_in, price_out: state what {host} charges for a million tokens, be it 0")
        if self.key_env is not None and not self.url.startswith("https:"):
            raise ValueError(f"url: a key must not go to {host} unencrypted; use https")
        return self

    def asking(self, *, of_labels: bool) -> Asking:
        """How the model is asked for labels, or for answers in words."""
        default: Answers = "likelihood" if self.endpoint == "completions" else "first_token"
        answers = (self.answers or default) if of_labels else "text"
        most = self.max_answer_tokens or (LABEL_TOKENS if of_labels else ANSWER_TOKENS)
        return Asking(self.model, self.endpoint, answers, self.normalization, most, self.request)

    def _check_request(self) -> None:
        taken = sorted({"model", "prompt", "messages", "stream", "n", "echo"} & self.request.keys())
        if taken:
            raise ValueError(f"request: `{taken[0]}` is not yours to set here")
        limits = [({"max_tokens": self.max_answer_tokens or 1} | self.request).get(limit) for limit in LIMITS]
        if any(type(limit) is not int or limit < 1 for limit in limits if limit is not None):
            raise ValueError(
                f"request: {' and '.join(f'`{limit}`' for limit in LIMITS)} are numbers of tokens, or null"
            )
        if limits == [None, None] and self.max_cost is not None:
            raise ValueError("request: where no answer has a limit, no cap on the cost can be kept")


def _run(context: StageContext[ApiConfig]) -> StageReport:
    config = context.config
    task = load_task(context.inputs["task"] / "task")
    model = ApiModel(
        config.asking(of_labels=isinstance(task, ClassificationTask | ChoiceTask)),
        Endpoint(config.url, config.key_env, config.concurrency, config.timeout, config.retries),
        Prices(config.price_in or 0.0, config.price_out or 0.0, config.max_cost),
        ledger_of(context.folder),
    )
    model.endpoint.key()  # a missing key stops the run here, not after the other arms
    if model.remote_host is not None:
        context.note(
            f"warning: texts leave this machine: {len(task.dev)} dev and {len(task.test)} test items, and the training "
            f"examples in their prompts, are sent to {model.remote_host}"
        )
    where = {"model": config.model, "host": urlsplit(config.url).netloc, "remote": model.remote_host is not None}
    trials = trials_of(config)
    given = task_template(task, _form(config))
    shown = {
        trial: show(config, task.train, trial, seed=context.seed, embed=_no_hidden_states, fitting=len)
        for trial in trials
    }

    def scorer_of(trial: Trial) -> AskedEndpoint:
        return _scorer_of(config, task, template_of(config, given, trial), shown[trial], trial, context.seed, model)

    chosen, tried = choose_on_dev(context, task, trials, scorer_of)
    scorer_of(chosen).save(context.folder / "scorer")
    return report_of(chosen, shown[chosen], tried, endpoint=where, money=sum(entry.cost for entry in tried))


def _no_hidden_states(texts: object) -> object:
    raise AssertionError("the config refuses `similarity: embedding`")


def _form(config: ApiConfig) -> AnswerForm:
    return "text" if config.answer == "text" else "letter"


AskedEndpoint = ApiScorer | ApiChoiceScorer | ApiTagger | ApiAnswerWriter


def _scorer_of(
    config: ApiConfig, task: Task, template: PromptTemplate, shown: Shown, trial: Trial, seed: int, model: ApiModel
) -> AskedEndpoint:
    """Asks the endpoint with one prompt; but for labels, the form of an answer is said after the instruction."""

    def said(form: str) -> dict[str, Any]:
        wanted = FORMS[form].get(task.config.language, FORMS[form]["en"])
        instruction = "\n".join(filter(None, [template.instruction, wanted]))
        return {"template": template.source, "instruction": instruction, "model": model}

    near = nearest_of(shown, trial)
    match task:
        case ClassificationTask():
            pool = pool_of(config, task, shown, trial, seed=seed, embed=_no_hidden_states)
            return ApiScorer(
                list(task.labels),
                list(task.verbalizers),
                template=template.source,
                instruction=template.instruction,
                demonstrations=[] if pool is not None else solved_labels(task, shown.items),
                pool=pool,
                model=model,
            )
        case ChoiceTask():
            form = _form(config)
            return ApiChoiceScorer(form=form, demonstrations=solved_choices(shown.items), nearest=near, **said(form))
        case ExtractionTask():
            labels, asked = task.trained_labels, said("records")
            asked["instruction"] = asked["instruction"].replace(LABELS, ", ".join(labels))
            return ApiTagger(labels, demonstrations=solved_documents(shown.items), nearest=near, **asked)
        case QuestionTask():
            extractive = task.config.extractive
            asked = said("stretch" if extractive else "line")
            solved = solved_questions(shown.items)
            return ApiAnswerWriter(extractive=extractive, demonstrations=solved, nearest=near, **asked)
    raise AssertionError(f"no such kind of task: {task.config.kind}")


def ledger_of(folder: Path) -> Path:
    """Where a stage's answers are kept: beside the stages, under its name alone. Its folder's name holds its identity,
    which a raised cap changes; what was paid for must be found all the same."""
    return make_folder(folder.parent.parent / "responses") / (folder.name.rpartition("-")[0] or folder.name)


API = StageKind("api", 4, ApiConfig, _run)
