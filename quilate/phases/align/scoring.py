"""Where rewards come from: trained reward models, right answers, a user's rules or functions. Several are added with
weights.

Shapes: B completions, T the longest one's tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from scipy.special import softmax
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quilate.config import Config, load
from quilate.errors import ConfigError, DataError
from quilate.files import read_json, sha256_of_file, write_jsonl
from quilate.inference.scorer import content_of_arm, folder_of_arm, load_scorer
from quilate.phases.align.functions import (
    SECONDS,
    BadRewardError,
    Score,
    UserFunction,
    function_of_file,
    is_finite,
    split_place,
)
from quilate.phases.align.patterns import compiled, extracted, pattern_limit, same_answer, with_one_group
from quilate.phases.align.rollouts import Completions


class RewardSource(Config):
    weight: float = 1.0
    """What its score is multiplied by before all are added; below 0 it punishes."""


class StageReward(RewardSource):
    kind: Literal["stage"]
    """The score of a trained reward model."""
    on: str
    """The `reward` stage that made it."""


class AnswerReward(RewardSource):
    kind: Literal["answer"]
    """1 where the completion is the right answer, else 0. The right one is what the assistant says last in the
    conversation: `completion` of a table."""
    extract: str | None = None
    """A regular expression with one group, which holds the answer in a completion (the last match counts), such as
    `Respuesta: (\\w+)`; by default the whole completion is the answer. Where it finds something in the right answer,
    which may be an explanation that ends in it, that is the right one."""

    @field_validator("extract")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        return None if pattern is None else with_one_group(pattern)


class RulesReward(RewardSource):
    kind: Literal["rules"]
    """The sum of the scores of the rules that a completion matches."""
    path: str
    """A YAML file with `rules`, relative to the recipe's folder."""


class FunctionReward(RewardSource):
    kind: Literal["function"]
    """What a Python function of yours gives: `(prompts, completions) -> scores`, a number for each completion. See
    [alignment](alignment.md)."""
    path: str
    """`FILE.py:FUNCTION`, relative to the recipe's folder. The file is run, so `quilate run` asks for
    `--allow-code`."""
    timeout: float = Field(default=SECONDS, gt=0)
    """Seconds for one call, with all completions of an iteration; a function that takes longer stops the stage."""

    @field_validator("path")
    @classmethod
    def _names_a_function(cls, place: str) -> str:
        try:
            split_place(place)
        except ConfigError as error:
            raise ValueError(f"{error.message}: {error.hint}") from error
        return place


class Rule(Config):
    name: str = Field(pattern=r"^[\w .-]+$")
    """What its share is called in logs."""
    pattern: str | None = None
    """A regular expression, found anywhere in a completion; `(?i)` at its beginning ignores case."""
    classifier: str | None = None
    """Instead of a pattern: the folder of a finished arm that learned to label texts, as in
    `runs/tono/stages/tfidf-s0-1a2b3c4d5e`, relative to the recipe's folder."""
    label: str | None = None
    """Of a classifier: the label that is looked for."""
    over: float = Field(default=0.5, ge=0, lt=1)
    """Of a classifier: the label is found where its probability is above this."""
    score: float
    """Added once where the pattern, or the label, is found; below 0 it forbids."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return None if pattern is None else compiled(pattern).pattern

    @model_validator(mode="after")
    def _one_of_two(self) -> Rule:
        if (self.pattern is None) == (self.classifier is None):
            raise ValueError(f"rule '{self.name}' has a `pattern`, or a `classifier` and its `label`")
        if (self.classifier is None) != (self.label is None):
            raise ValueError(f"rule '{self.name}': `label` is what a `classifier` looks for: give both or neither")
        return self


class Rules(Config):
    """A user's file of rules."""

    rules: list[Rule] = Field(min_length=1)
    """Every rule counts for itself."""

    @model_validator(mode="after")
    def _names_differ(self) -> Rules:
        twice = [name for name, count in Counter(rule.name for rule in self.rules).items() if count > 1]
        if twice:
            raise ValueError(f"two rules are called '{twice[0]}': give each a name of its own")
        return self


TextReward = AnswerReward | RulesReward | FunctionReward  # what needs no model
AnyReward = Annotated[StageReward | TextReward, Field(discriminator="kind")]

# Completions -> name of a part -> a score for each, or for each token of each. The parts are added.
Reward = Callable[[Completions], Mapping[str, Sequence[Score]]]


@dataclass(frozen=True)
class Scores:
    """What completions are worth.

    Attributes:
        total: [B] the weighted sum of all rewards, those of single tokens included.
        parts: source, or source/part -> [B], unweighted.
        by_token: [B, T] the share of `total` that belongs to single tokens; None if no reward tells it.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    by_token: Tensor | None = None


class Scorer:
    """All of a stage's rewards.

    Args:
        sources: by name, as configured.
        base: what paths are relative to.
        folder: where offending completions are left when a reward is no number.
        functions: what sources of kind `function` are, by name; the others are loaded from their files.
        tokenizer: for functions that want to see tokens.
    """

    def __init__(
        self,
        sources: Mapping[str, RewardSource],
        *,
        base: Path,
        folder: Path,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.folder = folder
        self.weights = {name: source.weight for name, source in sources.items()}
        self.functions: dict[str, Reward] = {}
        self.rules: dict[str, float] = {}
        """Source/rule -> what it adds where it is found."""
        for name, source in sources.items():
            match source:
                case AnswerReward():
                    self.functions[name] = exact_match(source.extract)
                case RulesReward():
                    rules = load(Rules, base / source.path)
                    self.functions[name] = matched_rules(rules, base)
                    self.rules |= {f"{name}/{rule.name}": rule.score for rule in rules.rules}
                case FunctionReward():
                    known = (functions or {}).get(name)
                    user = UserFunction(known or function_of_file(source.path, base), source.timeout)
                    self.functions[name] = partial(user, tokenizer=tokenizer)

    def __call__(self, written: Completions, judged: Mapping[str, Tensor] | None = None) -> Scores:
        """Score completions.

        Args:
            judged: what reward models gave, by name: [B].

        Raises:
            DataError: a reward raised, hung, is not finite, or there are not as many as completions (or as its
                tokens); the completions are in `bad-reward.jsonl` of the stage's folder.
        """
        parts: dict[str, Tensor] = dict(judged or {})
        by_token = torch.zeros(len(written.texts), max(map(len, written.tokens)))
        total = torch.zeros(len(written.texts))
        for name, scores in parts.items():
            self._check(name, scores.tolist(), written)
            total += self.weights[name] * scores
        for name, function in self.functions.items():
            try:
                given = function(written)
            except BadRewardError as error:
                raise self._refusal(name, str(error), error.rows, written) from error
            for part, given_scores in given.items():
                self._check(name, given_scores, written)
                weight = self.weights[name]
                for row, score in enumerate(given_scores):
                    if isinstance(score, list):
                        by_token[row, : len(score)] += weight * torch.tensor(score)
                sums = [sum(score) if isinstance(score, list) else score for score in given_scores]
                values = torch.tensor(sums, dtype=torch.float32)
                parts[f"{name}/{part}" if part else name] = values
                total += weight * values
                self._check_sums(name, sums, total, written)
        return Scores(total, parts, by_token if by_token.any() else None)

    def _check(self, name: str, scores: Sequence[Score], written: Completions) -> None:
        if len(scores) != len(written.texts):
            seen = f"gave {len(scores)} scores for {len(written.texts)} completions"
            raise self._refusal(name, seen, None, written)
        infinite = [row for row, score in enumerate(scores) if not is_finite(score)]
        if infinite:
            raise self._refusal(name, f"gave {scores[infinite[0]]} as a score", infinite, written)
        for row, score in enumerate(scores):
            if isinstance(score, list) and len(score) != len(written.tokens[row]):
                seen = f"gave {len(score)} scores for the {len(written.tokens[row])} tokens of a completion"
                raise self._refusal(name, seen, [row], written)

    def _check_sums(self, name: str, sums: Sequence[float], total: Tensor, written: Completions) -> None:
        """A score may be finite and too large for float32, by itself or once it is weighted and added."""
        infinite = (~torch.isfinite(total)).nonzero().flatten().tolist()
        if infinite:
            raise self._refusal(
                name, f"gave {sums[infinite[0]]:g}, which is too large to learn from", infinite, written
            )

    def _refusal(self, name: str, seen: str, rows: Sequence[int] | None, written: Completions) -> DataError:
        path = self.folder / "bad-reward.jsonl"
        chosen = range(len(written.texts)) if rows is None else rows
        prompts = written.prompts
        write_jsonl(
            path,
            [{"id": prompts[i].id, "prompt": prompts[i].text, "completion": written.texts[i]} for i in chosen],
        )
        return DataError(f"the reward '{name}' {seen}", hint=f"the completions are in {path}; what was saved is intact")


def content_of_rewards(rewards: Mapping[str, RewardSource], base: Path) -> dict[str, str] | None:
    """The digest of every file of rules or functions, by the reward's name; None if there is none.

    Raises:
        DataError: one is missing.
    """
    found = {}
    for name, source in rewards.items():
        if isinstance(source, RulesReward):
            found[name] = sha256_of_file(base / source.path)
            for rule in load(Rules, base / source.path).rules:
                if rule.classifier is not None:
                    found[f"{name}/{rule.name}"] = content_of_arm(folder_of_arm(rule.classifier, base))
        elif isinstance(source, FunctionReward):
            found[name] = sha256_of_file(base / split_place(source.path)[0])
    return found or None


def exact_match(extract: str | None = None) -> Reward:
    """1 where a completion is its prompt's answer, or what `extract` finds in the one what it finds in the other, but
    for case and white space."""

    def score(written: Completions) -> Mapping[str, Sequence[Score]]:
        given: Sequence[str | None] = written.texts
        right = [prompt.answer for prompt in written.prompts]
        if extract is not None:
            given = extracted(extract, written.texts)
            found = extracted(extract, [answer or "" for answer in right])
            right = [answer if inside is None else inside for answer, inside in zip(right, found, strict=True)]
        return {"": [float(same_answer(one, answer)) for one, answer in zip(given, right, strict=True)]}

    return score


def matched_rules(rules: Rules, base: Path) -> Reward:
    """Each rule's score where its pattern or label is found, 0 elsewhere.

    Args:
        base: what the classifiers' folders are relative to.

    Raises:
        ConfigError: a classifier has no such label.
        DataError: a folder holds no classifier.
    """
    found_by = {rule.name: _finder(rule, base) for rule in rules.rules}

    def score(written: Completions) -> Mapping[str, Sequence[Score]]:
        return {
            rule.name: [rule.score if found else 0.0 for found in found_by[rule.name](written.texts)]
            for rule in rules.rules
        }

    return score


def _finder(rule: Rule, base: Path) -> Callable[[Sequence[str]], list[bool]]:
    """Whether texts hold what a rule looks for."""
    if rule.classifier is not None:
        return _label_finder(rule, folder_of_arm(rule.classifier, base))
    pattern = str(rule.pattern)

    def matches(texts: Sequence[str]) -> list[bool]:
        with pattern_limit(pattern):
            return [re.search(pattern, text) is not None for text in texts]

    return matches


def _label_finder(rule: Rule, folder: Path) -> Callable[[Sequence[str]], list[bool]]:
    scorer, saved = load_scorer(folder / "scorer"), read_json(folder / "scorer" / "scorer.json")
    labels = getattr(scorer, "labels", None)
    several = saved.get("link") == "sigmoid" or saved["kind"] == "label sets"
    if saved["kind"].startswith("api"):
        raise DataError(
            f"rule '{rule.name}': {rule.classifier} sends what it reads to an endpoint, and would be asked about every "
            "completion",
            hint="name an arm with a model of its own",
        )
    if labels is None or not hasattr(scorer, "score") or several:
        raise DataError(
            f"rule '{rule.name}': {rule.classifier} does not give texts one label each",
            hint="name an arm of a `classification` task",
        )
    if rule.label not in labels:
        raise ConfigError(
            f"rule '{rule.name}': {rule.classifier} has no label '{rule.label}'", hint=f"it has {', '.join(labels)}"
        )
    column = labels.index(rule.label)

    def labelled(texts: Sequence[str]) -> list[bool]:
        probabilities = softmax(scorer.score(list(texts)).scores, axis=1)[:, column]
        return [bool(probability > rule.over) for probability in probabilities]

    return labelled
