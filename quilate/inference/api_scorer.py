"""A model behind an OpenAI-compatible endpoint as a scorer: the same prompts, sent away."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from quilate.errors import QuilateError
from quilate.files import make_folder, write_json
from quilate.inference.api_answers import LabelAnswer, from_first_token, from_text, likelihood
from quilate.inference.api_client import LIMITS, ApiClient, Endpoint, Prices, Request, Response, is_loopback
from quilate.inference.demonstrations import Pool
from quilate.inference.prompts import Demonstration, PlainLayout, chat_messages
from quilate.inference.scores import LabelScores, Normalization
from quilate.tasks.templates import PromptTemplate

Path_ = Literal["chat", "completions"]
Answers = Literal["likelihood", "first_token", "text"]

TOP_TOKENS = {"chat": 20, "completions": 5}  # the most that OpenAI's API lists


@dataclass(frozen=True)
class Asking:
    """How a model is asked: `endpoint` chat or completions; `answers` read from the likelihood of every label (echoed
    prompts), the first token's log-probabilities, or the text; at most `max_tokens` written. `request` holds further
    keys of a request's body, or others in place of ours; None takes one out."""

    model: str
    endpoint: Path_
    answers: Answers
    normalization: Normalization
    max_tokens: int
    request: Mapping[str, Any] = field(default_factory=dict)

    def asks(self, path: str, body: dict[str, Any]) -> Request:
        """A request with what the endpoint wants otherwise."""
        return Request(path, {key: value for key, value in (body | dict(self.request)).items() if value is not None})


class ApiScorer:
    """Scores labels by asking an endpoint.

    Where it gives no log-probabilities, for all answers or for some, the label that the text names counts; `counts` of
    the scores says for how many, and how many name none (all labels then score the same).

    Args:
        labels, verbalizers, template, instruction, demonstrations, pool: see `PromptScorer`.
        cache: folder of the answers.
    """

    def __init__(
        self,
        labels: list[str],
        verbalizers: list[str],
        *,
        template: str,
        instruction: str,
        asking: Asking,
        endpoint: Endpoint,
        prices: Prices,
        cache: Path,
        demonstrations: Sequence[Demonstration] = (),
        pool: Pool | None = None,
    ) -> None:
        self.labels, self.verbalizers = labels, verbalizers
        self.template = PromptTemplate(template, instruction=instruction, verbalizers=verbalizers)
        self.demonstrations, self.pool = [(t, v) for t, v in demonstrations], pool
        self.asking, self.endpoint, self.prices, self.cache = asking, endpoint, prices, cache
        self._client: ApiClient | None = None

    def with_prompt(
        self, *, template: str, demonstrations: Sequence[Demonstration], pool: Pool | None = None
    ) -> ApiScorer:
        """The same endpoint, asked with another prompt."""
        other = copy(self)
        instruction = self.template.instruction
        other.template = PromptTemplate(template, instruction=instruction, verbalizers=self.verbalizers)
        other.demonstrations, other.pool = list(demonstrations), pool
        return other

    @property
    def remote_host(self) -> str | None:
        """Where the texts go; None if they stay on this machine."""
        return None if is_loopback(self.endpoint.url) else urlsplit(self.endpoint.url).netloc

    def client(self) -> ApiClient:
        if self._client is None:
            self._client = ApiClient(self.endpoint, self.prices, self.cache)
        return self._client

    def score(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> LabelScores:
        if not texts:
            return LabelScores(np.empty((0, len(self.labels))), truncated=0, tokens=0)
        shown = self._shown(texts)
        answers: list[LabelAnswer | None] = [None] * len(texts)
        responses: list[Response] = []
        if self.asking.answers == "likelihood":
            responses += self._by_likelihood(shown, texts, answers, on_progress)
        rest = [row for row, answer in enumerate(answers) if answer is None]
        asked = self.client().send(
            [self._question(shown[row], texts[row]) for row in rest],
            lambda done, total: on_progress(len(texts) - total + done, len(texts)),
        )
        read = from_first_token if self.asking.answers == "first_token" else from_text
        for row, response in zip(rest, asked, strict=True):
            answers[row] = read(response.value, self.verbalizers)
        found = [answer for answer in answers if answer is not None]
        responses += asked
        wanted = self.asking.answers != "text"
        counts = {
            "answers without log-probabilities": sum(not a.from_logprobs for a in found) if wanted else 0,
            "answers that name no label": sum(not a.named for a in found),
            "answers from the cache": sum(r.cached for r in responses),
        }
        tokens = sum(r.read + r.written for r in responses)
        return LabelScores(np.stack([a.scores for a in found]), 0, tokens, counts, sum(r.cost for r in responses))

    def _shown(self, texts: Sequence[str]) -> list[list[Demonstration]]:
        if self.pool is None:
            return [self.demonstrations] * len(texts)
        ranking = self.pool.rank(texts, _no_hidden_states)[:, : self.pool.shots]
        return [self.pool.arranged(ranked, text) for ranked, text in zip(ranking.tolist(), texts, strict=True)]

    def _by_likelihood(
        self,
        shown: list[list[Demonstration]],
        texts: Sequence[str],
        answers: list[LabelAnswer | None],
        on_progress: Callable[[int, int], None],
    ) -> list[Response]:
        """Fill in the answers of the texts whose labels the server gives the likelihood of. The first text is tried
        alone: a server that cannot do it is not asked a thousand times."""
        layout = PlainLayout(self.template)
        prompts = [str(layout.prompt(demonstrations, t)) for demonstrations, t in zip(shown, texts, strict=True)]
        written = [self.template.answer(verbalizer) for verbalizer in self.verbalizers]
        responses: list[Response] = []

        def ask(rows: Sequence[int], listen: Callable[[int, int], None]) -> None:
            found = self.client().send([self._echo(prompts[row] + w) for row in rows for w in written], listen)
            responses.extend(found)
            for place, row in enumerate(rows):
                mine = found[place * len(written) : (place + 1) * len(written)]
                scores = [
                    _likelihood(r, prompts[row], w, self.asking.normalization)
                    for r, w in zip(mine, written, strict=True)
                ]
                if None not in scores:
                    answers[row] = LabelAnswer(np.array(scores, dtype=np.float64), True, True)

        ask([0], lambda done, total: None)
        if answers[0] is not None and len(texts) > 1:
            ask(range(1, len(texts)), lambda done, total: on_progress(done // len(written), len(texts)))
        return responses

    def _echo(self, prompt: str) -> Request:
        body = {"model": self.asking.model, "prompt": prompt, "temperature": 0}
        asked = self.asking.asks("/completions", body)
        # Whatever limit the endpoint wants for answers, an echo needs one token.
        own = {key: value for key, value in asked.body.items() if key not in LIMITS}
        return Request(asked.path, own | {"max_tokens": 1, "echo": True, "logprobs": 1})

    def _question(self, shown: Sequence[Demonstration], text: str) -> Request:
        asking = self.asking
        body: dict[str, Any] = {"model": asking.model, "max_tokens": asking.max_tokens, "temperature": 0}
        listed = asking.answers == "first_token"
        if asking.endpoint == "chat":
            body["messages"] = chat_messages(self.template, shown, text)
            body |= {"logprobs": True, "top_logprobs": TOP_TOKENS["chat"]} if listed else {}
            return asking.asks("/chat/completions", body)
        body["prompt"] = str(PlainLayout(self.template).prompt(shown, text))
        body |= {"logprobs": TOP_TOKENS["completions"]} if listed else {}
        return asking.asks("/completions", body)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved: dict[str, Any] = {
            "kind": "api",
            "labels": self.labels,
            "verbalizers": self.verbalizers,
            "template": self.template.source,
            "instruction": self.template.instruction,
            "demonstrations": [list(d) for d in self.demonstrations],
            "asking": asdict(self.asking),
            "endpoint": asdict(self.endpoint),
            "prices": asdict(self.prices),
            "cache": os.path.relpath(self.cache, folder),  # a run directory may be moved as a whole
        }
        if self.pool is not None:
            saved["pool"] = {k: v for k, v in vars(self.pool).items() if k != "vectors"}
        write_json(folder / "scorer.json", saved)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> ApiScorer:
        pool = None
        if "pool" in saved:
            pool = Pool(**(saved["pool"] | {"examples": [(t, v) for t, v in saved["pool"]["examples"]]}))
        return cls(
            saved["labels"],
            saved["verbalizers"],
            template=saved["template"],
            instruction=saved["instruction"],
            asking=Asking(**saved["asking"]),
            endpoint=Endpoint(**saved["endpoint"]),
            prices=Prices(**saved["prices"]),
            cache=folder / saved["cache"],
            demonstrations=[(t, v) for t, v in saved["demonstrations"]],
            pool=pool,
        )


def _likelihood(response: Response, prompt: str, answer: str, normalization: Normalization) -> float | None:
    try:
        return likelihood(response.value, prompt, answer, normalization)
    except ValueError:  # malformed, which is as good as absent: the item is asked again in words, and counted
        return None


def _no_hidden_states(texts: Sequence[str]) -> Any:
    raise QuilateError("an endpoint gives no hidden states")  # the config refuses `similarity: embedding`
