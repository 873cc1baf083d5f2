"""A user's own Python function as a reward: `(prompts, completions) -> scores`."""

from __future__ import annotations

import importlib.util
import inspect
import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from quilate.errors import ConfigError, DataError
from quilate.phases.align.rollouts import Completions

Score = float | list[float]  # of a whole completion, or of each of its tokens

SECONDS = 60.0  # for one call, a batch of completions (guess: a function that asks a server for each takes some)


class BadRewardError(Exception):
    """What a reward did instead of scoring; `rows` are the completions to blame, None for all."""

    def __init__(self, message: str, rows: Sequence[int] | None = None) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class UserFunction:
    """Callable `(completions, tokenizer) -> name of a part -> scores`.

    The function is called with the prompts and the completions, two lists of texts. If it has parameters of these
    names, it also gets `answers`, the right ones where the source has any, and `tokens`, each completion's as texts,
    the end included. It returns a score for each completion, or for each token of each; or a mapping from names to
    such lists, which are added and shown apart.

    Attributes:
        seconds: a call that takes longer is stopped.
    """

    function: Callable[..., Any]
    seconds: float = SECONDS

    def __call__(
        self, completions: Completions, tokenizer: PreTrainedTokenizerBase | None
    ) -> Mapping[str, list[Score]]:
        """Raises:
        BadRewardError: it raised, took too long, or gave something else than scores.
        """
        prompts = [prompt.text for prompt in completions.prompts]
        try:
            with time_limit(self.seconds):
                given = self.function(prompts, list(completions.texts), **self._more(completions, tokenizer))
        except OutOfTimeError as error:
            raise BadRewardError(f"did not finish within {self.seconds:g} s for {len(prompts)} completions") from error
        except (Exception, SystemExit) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}, line {where.lineno}"
            raise BadRewardError(f"raised {type(error).__name__}: {error} ({place})") from error
        parts = given if isinstance(given, Mapping) else {"": given}
        if not parts:
            raise BadRewardError("gave a mapping without any scores")
        return {str(name): _scores(part) for name, part in parts.items()}

    def _more(self, completions: Completions, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
        wanted = inspect.signature(self.function).parameters
        more: dict[str, Any] = {}
        if "answers" in wanted:
            more["answers"] = [prompt.answer for prompt in completions.prompts]
        if "tokens" in wanted:
            assert tokenizer is not None  # only what scores texts alone goes without
            more["tokens"] = [tokenizer.batch_decode([[token] for token in row]) for row in completions.tokens]
        return more


def _scores(given: Any) -> list[Score]:
    """Lists, tuples, arrays and tensors alike, as lists of floats."""
    values = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, list | tuple):
        raise BadRewardError(f"gave {_shown(given)} instead of a list of scores")
    return [_score(value, row) for row, value in enumerate(values)]


def _score(given: Any, row: int) -> Score:
    value = given.tolist() if hasattr(given, "tolist") else given
    try:
        return [float(one) for one in value] if isinstance(value, list | tuple) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRewardError(f"gave {_shown(given)} as a score", [row]) from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def is_finite(score: Score) -> bool:
    return all(map(math.isfinite, score)) if isinstance(score, list) else math.isfinite(score)


def function_of_file(place: str, base: Path) -> Callable[..., Any]:
    """The function that `FILE.py:FUNCTION` names. The file is run: its author is trusted.

    Raises:
        ConfigError: the place is not of this form, or the file has no such function.
        DataError: the file is missing, or fails when it is run.
    """
    path, name = split_place(place)
    file = base / path
    if not file.is_file():
        raise DataError(f"no file at {file}", hint="give the reward as FILE.py:FUNCTION, relative to the recipe")
    spec = importlib.util.spec_from_file_location(f"quilate_user_reward_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{file} fails: {type(error).__name__}: {error}", hint="run it by itself to see why") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{file} has no function '{name}'", hint=f"define `def {name}(prompts, completions)` in it")
    found: Callable[..., Any] = function
    return found


def split_place(place: str) -> tuple[str, str]:
    """`rewards.py:score` as path and name.

    Raises:
        ConfigError: it is not of this form.
    """
    path, colon, name = place.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"'{place}' names no function", hint="give it as FILE.py:FUNCTION")
    return path, name


class OutOfTimeError(Exception):
    """A limit of ours has passed; a TimeoutError is a socket's, for instance, and somebody else's."""


class _TimeUp(BaseException):
    """No `Exception`: a function that catches those must end too."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what takes longer. Only the main thread can be interrupted: elsewhere nothing is limited.

    Raises:
        OutOfTimeError: it took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeUp

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and again: the first may be swallowed by a bare except
    try:
        yield
    except _TimeUp:
        raise OutOfTimeError from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
