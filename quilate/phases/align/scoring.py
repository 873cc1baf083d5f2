"""Where rewards come from: trained reward models, right answers, a user's rules. Several are added with weights."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from quilate.config import Config, load
from quilate.errors import DataError
from quilate.files import write_jsonl
from quilate.phases.align.rollouts import Prompt, Rollouts

# A rule that takes longer for a batch of completions backtracks without end (guess: real ones take milliseconds).
RULE_SECONDS = 20.0


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
    `Respuesta: (\\w+)`; by default the whole completion is the answer."""

    @field_validator("extract")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None and _compiled(pattern).groups != 1:
            raise ValueError(f"'{pattern}' must have exactly one group, which holds the answer")
        return pattern


class RulesReward(RewardSource):
    kind: Literal["rules"]
    """The sum of the scores of the rules that a completion matches."""
    path: str
    """A YAML file with `rules`, relative to the recipe's folder."""


class Rule(Config):
    name: str = Field(pattern=r"^[\w .-]+$")
    """What its share is called in logs."""
    pattern: str
    """A regular expression, found anywhere in a completion; `(?i)` at its beginning ignores case."""
    score: float
    """Added once where the pattern is found; below 0 it forbids."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        _compiled(pattern)
        return pattern


class Rules(Config):
    """A user's file of rules."""

    rules: list[Rule] = Field(min_length=1)
    """Every rule counts for itself."""


AnyReward = Annotated[StageReward | AnswerReward | RulesReward, Field(discriminator="kind")]

# (prompts, completions as text) -> name of a part -> a score for each completion. The parts are added.
TextReward = Callable[[Sequence[Prompt], Sequence[str]], Mapping[str, Sequence[float]]]


class Scorer:
    """All of a stage's rewards.

    Args:
        sources: by name, as configured.
        base: what paths are relative to.
        folder: where offending completions are left when a reward is no number.
        functions: further rewards, of weight 1: what a Python caller brings.
    """

    def __init__(
        self,
        sources: Mapping[str, RewardSource],
        *,
        base: Path,
        folder: Path,
        functions: Mapping[str, TextReward] | None = None,
    ) -> None:
        self.folder = folder
        self.weights = {name: source.weight for name, source in sources.items()}
        self.functions: dict[str, TextReward] = dict(functions or {})
        for name, source in sources.items():
            if isinstance(source, AnswerReward):
                self.functions[name] = exact_match(source.extract)
            elif isinstance(source, RulesReward):
                self.functions[name] = matched_rules(load(Rules, base / source.path))

    def __call__(self, rollouts: Rollouts) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum [B], and every part by itself, unweighted: source or source/part -> [B].

        Raises:
            DataError: a reward is not finite, or there are not as many as completions; the completions are in
                `bad-reward.jsonl` of the stage's folder.
        """
        written = rollouts.completions
        total, parts = torch.zeros(len(written.texts)), dict(rollouts.rewards)
        for name, scores in rollouts.rewards.items():
            self._check(name, scores.tolist(), rollouts)
            total += self.weights[name] * scores
        for name, function in self.functions.items():
            for part, given in function(written.prompts, written.texts).items():
                self._check(name, given, rollouts)
                values = torch.tensor(given, dtype=torch.float32)
                parts[f"{name}/{part}" if part else name] = values
                total += self.weights.get(name, 1.0) * values
        return total, parts

    def _check(self, name: str, scores: Sequence[float], rollouts: Rollouts) -> None:
        texts = rollouts.completions.texts
        wrong = [i for i, score in enumerate(scores) if not math.isfinite(score)]
        if len(scores) == len(texts) and not wrong:
            return
        prompts = rollouts.completions.prompts
        rows = [
            {"id": prompts[i].id, "prompt": prompts[i].text, "completion": texts[i]} for i in wrong or range(len(texts))
        ]
        write_jsonl(self.folder / "bad-reward.jsonl", rows)
        seen = f"{len(scores)} scores for {len(texts)} completions" if not wrong else f"{scores[wrong[0]]} as a score"
        raise DataError(
            f"the reward '{name}' gave {seen}", hint=f"the completions are in {self.folder / 'bad-reward.jsonl'}"
        )


def exact_match(extract: str | None = None) -> TextReward:
    """1 where a completion (or what `extract` finds in it) is its prompt's answer, but for case and white space."""
    pattern = None if extract is None else _compiled(extract)

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        with _time_limit(extract or ""):
            given = [text if pattern is None else next(iter(pattern.findall(text)[-1:]), None) for text in texts]
        return {"": [float(_same(one, prompt.answer)) for one, prompt in zip(given, prompts, strict=True)]}

    return score


def _same(given: str | None, answer: str | None) -> bool:
    if given is None or answer is None:
        return False
    return given.casefold().split() == answer.casefold().split()


def matched_rules(rules: Rules) -> TextReward:
    """Each rule's score where its pattern is found, 0 elsewhere."""
    compiled = {rule.name: (_compiled(rule.pattern), rule.score) for rule in rules.rules}

    def score(_: Sequence[Prompt], texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        found = {}
        for name, (pattern, points) in compiled.items():
            with _time_limit(pattern.pattern):
                found[name] = [points if pattern.search(text) else 0.0 for text in texts]
        return found

    return score


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}") from error


@contextmanager
def _time_limit(pattern: str) -> Iterator[None]:
    """Python's own matching can take exponential time; it looks at signals meanwhile (main thread only)."""

    def too_long(*_: object) -> None:
        raise DataError(
            f"the pattern '{pattern}' did not finish within {RULE_SECONDS:.0f} s",
            hint="nested repetitions such as (a+)+ backtrack without end: rewrite it",
        )

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, RULE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
