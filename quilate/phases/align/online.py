"""What methods have in common that learn from rewards for what the policy itself writes: PPO, GRPO, RLOO.

An iteration writes completions with the policy as it is, scores them, and takes some optimizer steps on them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from quilate import faults
from quilate.data.packing import Example
from quilate.engine.completions import WithoutDropout
from quilate.engine.runlog import read_metrics
from quilate.errors import DataError
from quilate.files import read_jsonl, write_jsonl
from quilate.models.load import context_length, trainable_parameters
from quilate.models.tuning.lora import LoraConfig
from quilate.objectives.policy_gradient import masked_mean, penalize_missing_end, ppo_policy_loss, token_kl
from quilate.phases.align.common import apart_from_held_out, check_adapter, check_vocabulary, room_for_prompts
from quilate.phases.align.experience import (
    Experience,
    Iteration,
    OnlineBatches,
    OnlinePart,
    PolicyPart,
    TextPart,
    ValuePart,
    plan_iterations,
    stacked_tokens,
)
from quilate.phases.align.outcomes import changes, describe_outcome, describe_rules, outcome_report, outcome_rows
from quilate.phases.align.preferences import stored_preferences
from quilate.phases.align.roles import Roles, make_roles
from quilate.phases.align.rollouts import (
    Format,
    Prompt,
    Rollouts,
    Writer,
    assess,
    prompts_of_conversations,
    prompts_of_judgements,
    stop_tokens,
)
from quilate.phases.align.scoring import AnyReward, Scorer, Scores, StageReward
from quilate.phases.align.training import load_policy
from quilate.phases.conversations import stored_conversations
from quilate.phases.example_training import ExampleTraining, train, training_flops
from quilate.phases.sft import save_chat_model
from quilate.phases.stage import StageContext, StageReport, once
from quilate.rng import Streams, derive_seed
from quilate.tokenization.chat import ChatTemplate

ADAM_EPS = 1e-5  # Huang et al. 2024; Adam's own 1e-8 makes the first steps of PPO larger
KL_ALARM = 50.0  # nats a completion: Huang et al. (2024) see over-optimized policies, which win no more, from there on
GAP_ALARM = 0.2  # nats a token (guess); rounding to bf16 makes about 0.05 with SmolLM2-135M
HEALTH = ("score", "kl", "entropy", "tokens", "ended", "without_spread", "explained_variance")
LENGTH_ALARM = 2.0  # times the first iteration's mean length (guess)
ENDED_ALARM = 0.5  # share of completions that end: below it most of what is learned from was cut (guess)


class OnlineTraining(ExampleTraining):
    """What every stage that learns from rewards can be told."""

    on: str = "base"
    """The stage whose model is trained, and whose model is the reference: one tuned on conversations, as a rule."""
    conversations: list[str] = Field(default_factory=list)
    """Sets of conversations whose questions are the prompts; what the assistant says last is the right answer, for
    rewards of kind `answer`."""
    preferences: list[str] = Field(default_factory=list)
    """Sets of judgements whose prompts are used, without their completions."""
    rewards: dict[str, AnyReward] = Field(min_length=1)
    """What is rewarded, by name; all are added with their weights, and each is shown by itself."""
    format: Format = "chat"
    """`chat` asks through the model's chat template, `text` with the bare text."""
    method: Literal["lora", "full"] = "lora"
    """`lora` trains a low-rank adapter on every linear layer, and the base is in memory once for all models that take
    part; `full` trains every weight, beside copies of the model."""
    lora: LoraConfig | None = None
    """Settings of the low-rank adapter, for `method: lora`. Dropout must stay 0: a policy that drops at random
    differs from its own reference."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the prompts."""
    prompts_per_iteration: int = Field(default=64, ge=1)
    """Prompts per iteration, that is between two states of the policy that writes."""
    completions_per_prompt: int = Field(default=1, ge=1)
    """Completions of each prompt."""
    batch_size: int = Field(default=64, ge=1)
    """Completions per optimizer step."""
    passes: int = Field(default=1, ge=1)
    """How often an iteration's completions are learned from before new ones are written."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest completion; one that has not ended by then is cut."""
    prompt_tokens: int = Field(default=384, ge=1)
    """Longest prompt; longer ones are left out and counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of every log-probability."""
    missing_end: float | None = -1.0
    """What a completion that did not end gets instead of its score; `null` leaves the score."""
    missing_end_subtracts: bool = False
    """Add `missing_end` to the score instead of replacing it."""
    beta: float = Field(default=0.05, ge=0)
    """Weight of the KL penalty that holds the model near its reference; higher stays closer."""
    measure_training: int = Field(default=0, ge=0)
    """Completions of each training prompt to measure with besides the held-out ones: what the policy has learned to
    earn there, not what it earns elsewhere."""
    clip: float = Field(default=0.2, gt=0)
    """Furthest that a token's probability ratio is pushed from 1 by one iteration."""
    once: bool = False
    """Make the model once, with the recipe's first seed, for all seeds of what stands on it."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> OnlineTraining:
        if not self.conversations and not self.preferences:
            raise ValueError("there are no prompts: name sets of `conversations` or of `preferences`")
        check_adapter(self.method, self.lora, is_its_own_reference=True)
        if self.missing_end is None and self.missing_end_subtracts:
            raise ValueError("`missing_end_subtracts` needs a `missing_end`")
        return self

    def reward_stages(self) -> dict[str, str]:
        """Name of a reward -> the stage it comes from."""
        return {name: source.on for name, source in self.rewards.items() if isinstance(source, StageReward)}


@dataclass(frozen=True)
class Method:
    """What one method adds to the common part.

    Attributes:
        advantages: of rollouts, their scores and beta: (advantages, returns), both [B, T]; returns are empty without a
            value model.
        next_beta: from the logs of the iterations so far.
        kl_in_loss: the weight of the differentiable KL (k3); 0 where it stands in the rewards.
        value_loss: of a `ValuePart` and the values [S] now: losses and whether each was clipped.
        texts: for PPO-ptx, a step's examples and what their mean loss weighs.
        text_tokens: most that a step's texts have.
    """

    rate: float
    advantages: Callable[[Rollouts, Scores, float], tuple[Tensor, Tensor]]
    next_beta: Callable[[list[dict[str, Any]]], float]
    kl_in_loss: float = 0.0
    value_loss: Callable[[ValuePart, Tensor], tuple[Tensor, Tensor]] | None = None
    texts: Callable[[int], tuple[list[Example], float]] | None = None
    text_tokens: int = 0


class OnlineLoss:
    """Callable `(part) -> sum of losses`; `measured` gives what was seen since it was last asked."""

    def __init__(self, roles: Roles, method: Method, config: OnlineTraining) -> None:
        self.roles, self.method, self.config = roles, method, config
        self._sums: defaultdict[str, float] = defaultdict(float)

    def __call__(self, part: OnlinePart) -> Tensor:
        match part:
            case PolicyPart():
                return self._policy(part)
            case ValuePart():
                return self._value(part)
            case TextPart():
                loss = -self.roles.policy.log_probs(part.packed, 1.0).sum() * part.share
                self._add("text_loss", loss)
                return loss

    def _policy(self, part: PolicyPart) -> Tensor:
        log_probs = self.roles.policy.log_probs(part.packed, self.config.temperature)
        reference, advantages = part.reference.to(log_probs), part.advantages.to(log_probs)
        old = log_probs.detach() if part.old_log_probs is None else part.old_log_probs.to(log_probs)
        everywhere = torch.ones_like(old, dtype=torch.bool)
        losses, clipped = ppo_policy_loss(
            log_probs, old, advantages, everywhere, clip_low=self.config.clip, clip_high=self.config.clip
        )
        loss = losses.sum()
        if self.method.kl_in_loss:
            loss = loss + self.method.kl_in_loss * token_kl(log_probs, reference, "k3").sum()
        self._add("policy_tokens", part.weight)
        self._add("policy_loss", loss)
        self._add("clipped", clipped.sum())
        self._add("moved", token_kl(old, log_probs, "k3").sum())
        return loss

    def _value(self, part: ValuePart) -> Tensor:
        assert self.roles.value is not None and self.method.value_loss is not None
        losses, clipped = self.method.value_loss(part, self.roles.value(part.packed))
        loss = losses.sum()
        self._add("value_loss", loss)
        self._add("value_clipped", clipped.sum())
        return loss

    def _add(self, name: str, value: Tensor | float) -> None:
        self._sums[name] += float(value.detach()) if isinstance(value, Tensor) else value

    def measured(self) -> dict[str, float]:
        """Of the last step, each a mean over its tokens: the losses; `clipped` and `value_clipped`, the shares of
        tokens whose gradient was stopped; `moved`, an estimate (k3) of the KL from the policy that wrote them."""
        sums, self._sums = self._sums, defaultdict(float)
        tokens = sums.pop("policy_tokens", 0.0)
        return {name: value / tokens for name, value in sums.items()}


@dataclass
class Online:
    """A stage under way: prompts, models and rewards.

    Attributes:
        measured: prompts by set; those of sets called "NAME (training)" are trained on too, the others never.
        counts: what was left out.
        health: of the last iteration's completions, in a few words.
    """

    context: StageContext[Any]
    template: ChatTemplate
    roles: Roles
    writer: Writer
    scorer: Scorer
    prompts: list[Prompt]
    measured: dict[str, list[Prompt]]
    counts: Counter[str]
    parameters: int
    streams: Streams
    health: str = ""

    @property
    def config(self) -> OnlineTraining:
        config: OnlineTraining = self.context.config
        return config

    def rollouts(
        self,
        prompts: list[Prompt],
        *seed: str | int,
        ask_policy: bool = True,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Rollouts:
        """A completion of each prompt by the policy as it is, and what every model says of it (see `assess`)."""
        faults.at("rollouts.write")
        written = self.writer.write(self.roles.model, prompts, seed=derive_seed(self.context.seed, *seed))
        return assess(
            self.roles, written, self.config.temperature, self.config.micro_batch_tokens, ask_policy=ask_policy,
            check_stop=check_stop,
        )  # fmt: skip

    def scores(self, rollouts: Rollouts) -> Scores:
        """What the completions are worth, the price of a missing end included."""
        written, config = rollouts.completions, self.config
        scores = self.scorer(written, rollouts.rewards)
        if config.missing_end is None:
            return scores
        ended, replaces = torch.tensor(written.ended), not config.missing_end_subtracts
        total = penalize_missing_end(scores.total, ended, penalty=config.missing_end, replace=replaces)
        by_token = scores.by_token
        if by_token is not None and replaces:
            by_token = torch.where(ended[:, None], by_token, 0.0)
        return replace(scores, total=total, by_token=by_token)


def start(
    context: StageContext[Any],
    *,
    value: bool,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Online:
    """Load the policy (an adapter is merged first), everything that stands beside it, and the prompts.

    Args:
        functions: see `Scorer`.

    Raises:
        DataError: no prompt can be used.
        ConfigError: the model's context does not hold a prompt and a completion, or a reward cannot be used.
        ModelError: a model cannot be loaded.
    """
    config: OnlineTraining = context.config
    streams = Streams(context.seed)
    template, model, base = load_policy(context)
    room = room_for_prompts(context_length(model), config.max_new_tokens)
    prompts, measured, counts = _prompts(context, template, min(config.prompt_tokens, room))
    writer = Writer(template, stop_tokens(model, template, config.format), config.temperature, config.max_new_tokens)
    folders = {name: context.inputs[f"reward:{stage}"] for name, stage in config.reward_stages().items()}
    for name, folder in folders.items():
        check_vocabulary(name, folder / "model", template)
    lora = (config.lora or LoraConfig()) if config.method == "lora" else None
    parameters = sum(p.numel() for p in model.parameters())
    weights = {name: config.rewards[name].weight for name in folders}
    roles = make_roles(model, base, lora=lora, rewards=folders, weights=weights, value=value)
    for name in folders:
        if lora is not None and name not in roles.shared:
            context.note(f"reward {name}: a model of its own beside the policy's base, for it was made on another")
    scorer = Scorer(
        config.rewards, base=context.base_folder, folder=context.folder, functions=functions,
        tokenizer=template.tokenizer,
    )  # fmt: skip
    return Online(context, template, roles, writer, scorer, prompts, measured, counts, parameters, streams)


def _prompts(
    context: StageContext[Any], template: ChatTemplate, limit: int
) -> tuple[list[Prompt], dict[str, list[Prompt]], Counter[str]]:
    """The prompts to train on, those to measure with by set, and what was left out."""
    config: OnlineTraining = context.config
    held_out: dict[str, list[Prompt]] = {}
    found: list[Prompt] = []
    counts = Counter[str]()
    for part in ("held_out", "train"):
        for kind, names in (("conversations", config.conversations), ("preferences", config.preferences)):
            for name in names:
                prompts, lost = _read(context.inputs[f"{kind}:{name}"], kind, part, template, config.format, limit)
                named = [replace(prompt, id=f"{name}:{prompt.id}") for prompt in prompts]
                counts += Counter({f"held out, {k}" if part == "held_out" else k: n for k, n in lost.items()})
                if part == "held_out":
                    held_out[name] = held_out.get(name, []) + named
                else:
                    found += named
    kept = apart_from_held_out(found, chain.from_iterable(held_out.values()), attrgetter("asked"))
    counts["prompts that another set holds out"] = len(found) - len(kept)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        raise DataError(
            f"no prompt is left to learn from: {reasons or 'the sets are empty'}",
            hint="raise `prompt_tokens`, or hold out less",
        )
    measured = {name: prompts for name, prompts in held_out.items() if prompts}
    if config.measure_training:
        for prompt in kept:
            name = f"{prompt.id.partition(':')[0]} (training)"
            measured.setdefault(name, []).extend([prompt] * config.measure_training)
    return kept, measured, Counter({reason: count for reason, count in counts.items() if count})


def _read(
    folder: Path, kind: str, part: Any, template: ChatTemplate, form: Format, limit: int
) -> tuple[list[Prompt], Counter[str]]:
    if kind == "conversations":
        return prompts_of_conversations(stored_conversations(folder, part), template, form, limit=limit)
    return prompts_of_judgements(stored_preferences(folder, part), template, form, limit=limit)


def plan(online: Online, text_tokens: int) -> tuple[list[Iteration], int]:
    """Every iteration, as far as the token budget certainly lasts, and how many prompts' visits that leaves out.

    Args:
        text_tokens: most that a step learns beside its completions.

    Raises:
        DataError: it does not last for one iteration.
    """
    config = online.config
    iterations = plan_iterations(
        len(online.prompts), epochs=config.epochs, per_iteration=config.prompts_per_iteration,
        per_prompt=config.completions_per_prompt, batch_size=config.batch_size, passes=config.passes,
        seed=online.context.seed,
    )  # fmt: skip
    used, kept = 0, []
    for iteration in iterations:
        longest = sum(len(online.prompts[i].tokens) + config.max_new_tokens for i in iteration.prompts)
        used += longest * config.passes * (1 if online.roles.value is None else 2) + text_tokens * len(iteration.steps)
        if config.max_train_tokens is not None and used > config.max_train_tokens:
            break
        kept.append(iteration)
    if not kept:
        raise DataError("there is not one training step", hint="raise `max_train_tokens` or `epochs`")
    left_out = sum(len(i.prompts) for i in iterations) - sum(len(i.prompts) for i in kept)
    return kept, left_out // config.completions_per_prompt


def explorer(online: Online, method: Method) -> Callable[[Iteration, list[dict[str, Any]]], Experience]:
    """What makes an iteration's experience with the policy as it is. A request to stop waits for the step after it,
    which is saved."""

    def explore(iteration: Iteration, earlier: list[dict[str, Any]]) -> Experience:
        prompts = [online.prompts[i] for i in iteration.prompts]
        rollouts = online.rollouts(prompts, "rollouts", iteration.number, ask_policy=len(iteration.steps) > 1)
        scores = online.scores(rollouts)
        beta = method.next_beta(earlier)
        advantages, returns = method.advantages(rollouts, scores, beta)
        log: dict[str, Any] = {"iteration": iteration.number, "step": iteration.first_step, "beta": beta}
        log |= summary(rollouts, scores, per_prompt=online.config.completions_per_prompt)
        if rollouts.values is not None:
            log["explained_variance"] = _explained_variance(rollouts.values, returns, rollouts.mask)
        alarm(online.context, log, earlier)
        online.health = health(log)
        written = rollouts.completions
        log["sample"] = {"prompt": written.prompts[0].text, "completion": written.texts[0],
                         "score": float(scores.total[0])}  # fmt: skip
        return Experience(
            torch.tensor(iteration.prompts), stacked_tokens(rollouts.completions.tokens, rollouts.mask), rollouts.mask,
            rollouts.log_probs, rollouts.reference, advantages,
            torch.empty(0) if rollouts.values is None else rollouts.values, returns, log,
        )  # fmt: skip

    return explore


def with_health(online: Online) -> StageContext[Any]:
    """The stage's context, whose progress also says how the last iteration's completions were."""
    listener = online.context.listener
    return replace(online.context, listener=lambda progress: listener(replace(progress, health=online.health)))


def health(log: Mapping[str, Any]) -> str:
    """An iteration in a few words."""
    ended = f"{log['ended']:.0%} end, {log['tokens']:.0f} tokens each"
    return f"reward {log['score']:.2f}, KL {log['kl']:.1f} nats, {ended}"


def summary(rollouts: Rollouts, scores: Scores, *, per_prompt: int) -> dict[str, Any]:
    """The health of some rollouts: means over completions, JSON-able.

    `kl` is summed over each completion's tokens (k1, from the reference); `entropy` is the mean of -log p of the
    sampled tokens; `gap` how far log-probabilities kept from sampling are from those asked for again, if they were;
    `without_spread` the share of prompts all of whose completions got one score.
    """
    total = scores.total
    groups = total.view(-1, per_prompt)
    kl = token_kl(rollouts.log_probs, rollouts.reference, "k1")
    return {
        "completions": len(total),
        "score": float(total.mean()),
        "score_deviation": float(total.std(correction=0)),
        "rewards": {name: float(values.mean()) for name, values in scores.parts.items()},
        "kl": float(torch.where(rollouts.mask, kl, 0.0).sum(1).mean()),
        "entropy": -float(masked_mean(rollouts.log_probs, rollouts.mask)),
        "tokens": float(rollouts.mask.sum(1).float().mean()),
        "ended": float(np.mean(rollouts.completions.ended)),
        "gap": rollouts.gap,
        "without_spread": float((groups.amax(1) == groups.amin(1)).float().mean()) if per_prompt > 1 else None,
    }


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """1 - Var(returns - values) / Var(returns) over completion tokens: 1 is a perfect value model, below 0 one that is
    worse than a constant; None where the returns do not vary."""
    spread = returns[mask].var(correction=0)
    return float(1 - (returns - values)[mask].var(correction=0) / spread) if spread > 0 else None


def alarm(context: StageContext[Any], log: Mapping[str, Any], earlier: list[dict[str, Any]]) -> None:
    """Say it once when the policy runs off."""
    before: Mapping[str, Any] = earlier[-1] if earlier else {"kl": 0.0, "ended": 1.0, "gap": None}
    where = f"iteration {log['iteration'] + 1}"
    if log["kl"] > KL_ALARM >= before["kl"]:
        context.note(f"{where}: KL {log['kl']:.0f} nats a completion: the reward is being gamed; raise `beta`")
    if (log["gap"] or 0.0) > GAP_ALARM >= (before["gap"] or 0.0):
        _say_gap(context, where, log["gap"])
    first = earlier[0] if earlier else log
    longest = LENGTH_ALARM * first["tokens"]
    if log["tokens"] > longest >= (earlier[-1]["tokens"] if earlier else 0):
        context.note(
            f"{where}: completions have grown from {first['tokens']:.0f} to {log['tokens']:.0f} tokens: the reward may "
            "pay for length; let a `function` take some off for it, or lower `max_new_tokens`"
        )
    if log["ended"] < ENDED_ALARM <= before["ended"]:
        context.note(
            f"{where}: only {log['ended']:.0%} of the completions end; raise `max_new_tokens`, or `epochs` of sft"
        )


def _say_gap(context: StageContext[Any], where: str, gap: float) -> None:
    context.note(
        f"{where}: the policy that learns gives its tokens other probabilities than it wrote them with, by {gap:.2f} "
        "nats; use `precision: fp32`"
    )


def learn(online: Online, method: Method) -> StageReport:
    """Measure, train, measure, save.

    Raises:
        Interrupted, CheckpointError, QuilateError: as `fit`.
    """
    context, config = online.context, online.config
    iterations, left_out = plan(online, method.text_tokens)
    before = once(context.folder / "before.json", lambda: measure(online, "before"))
    batches = OnlineBatches(
        context.folder, online.prompts, iterations, explorer(online, method),
        micro_batch_tokens=config.micro_batch_tokens, texts=method.texts, settings=config.as_json(),
    )  # fmt: skip
    loss = OnlineLoss(online.roles, method, config)
    model = WithoutDropout(online.roles.trained)
    fitted = train(
        with_health(online), model, batches, loss, online.streams, rate=method.rate, eps=ADAM_EPS,
        measured=loss.measured,
    )  # fmt: skip
    after = measure(online, "after")
    was, now = (read_jsonl(context.folder / f"held-out-{name}.jsonl") for name in ("before", "after"))
    changed = changes(was, now, online.scorer.rules)
    trainable = trainable_parameters(online.roles.trained)
    save_chat_model(context.folder, online.roles.finished_model(), online.template)
    log = batches.log()
    for name, found in after.items():
        describe_outcome(context, name, before[name], found)
        describe_rules(context, name, changed[name]["rules"])
    return StageReport(
        train_tokens=fitted.tokens,
        flops=_flops(online, method, iterations, fitted.tokens, trainable),
        trainable_parameters=trainable,
        counts={
            **online.counts,
            **fitted.incidents(),
            "prompts over the token budget": left_out,
            "completions cut for length": sum(round((1 - row["ended"]) * row["completions"]) for row in log),
        },
        facts={
            "train_prompts": len(online.prompts),
            "iterations": len(iterations),
            "completions": sum(row["completions"] for row in log),
            "steps": fitted.steps,
            "parameters": online.parameters,
            "training": _first_and_last(log, read_metrics(context.folder / "metrics.jsonl")),
            "measure": "reward",
            "before": {name: found["score"]["mean"] for name, found in before.items()},
            "after": {name: found["score"]["mean"] for name, found in after.items()},
            "held_out": {name: {"before": before[name], "after": after[name]} | changed[name] for name in after},
            "rewards_on_the_policys_base": list(online.roles.shared),
            "dtype": str(online.roles.model.dtype).removeprefix("torch."),
        },
    )


def _first_and_last(log: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The health of the first iteration and of the last, for the report; `clipped` is of an iteration's own steps."""
    ends = [*(row["step"] for row in log[1:]), len(steps)]
    found = []
    for row, end in zip(log, ends, strict=True):
        own = [
            step["clipped"] for step in steps if row["step"] < step["step"] <= end and step.get("clipped") is not None
        ]
        health = {key: row.get(key) for key in HEALTH} | {"clipped": sum(own) / len(own) if own else None}
        found.append({key: None if value is None else round(value, 4) for key, value in health.items()})
    return {"iterations": len(log), "first": found[0], "last": found[-1]}


def _flops(online: Online, method: Method, iterations: Sequence[Iteration], tokens: int, trainable: int) -> float:
    """Training, writing, and asking each model once about what was written: 2N a token read."""
    critic = online.roles.value is not None
    steps = sum(len(iteration.steps) for iteration in iterations)
    texts = sum(len(e.tokens) for step in range(steps) for e in method.texts(step)[0]) if method.texts else 0
    written = (tokens - texts) / online.config.passes / (2 if critic else 1)
    # The writer and the reference, the policy again where it learns in several steps, and who judges.
    readers = 2 + (max(len(i.steps) for i in iterations) > 1) + critic + len(online.roles.rewards)
    return training_flops(tokens, online.parameters, trainable) + 2.0 * online.parameters * readers * written


def measure(online: Online, name: str) -> dict[str, Any]:
    """What the policy earns by set of prompts, sampled with the same random numbers every time; what it wrote is left
    in `held-out-{name}.jsonl`."""
    report: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for set_name, prompts in online.measured.items():
        rollouts = online.rollouts(prompts, "held out", set_name, check_stop=online.context.stop.raise_if_set)
        scores = online.scores(rollouts)
        log = summary(rollouts, scores, per_prompt=1)
        report[set_name] = outcome_report(rollouts.completions, scores)
        report[set_name] |= {k: round(log[k], 4) for k in ("kl", "entropy", "gap") if log[k] is not None}
        if (log["gap"] or 0.0) > GAP_ALARM:
            _say_gap(online.context, set_name, log["gap"])
        rows += outcome_rows(set_name, rollouts.completions, scores)
    write_jsonl(online.context.folder / f"held-out-{name}.jsonl", rows)
    return report


def default_rate(config: OnlineTraining, rates: Mapping[str, float]) -> float:
    return config.lr or rates[config.method]
