"""A model behind an OpenAI-compatible endpoint: how it is asked, where its answers are kept, what it may cost. What its
answers mean is said by the scorers that hold one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from quilate.inference.api_client import LIMITS, ApiClient, Endpoint, Prices, Request, Response, is_loopback
from quilate.inference.prompts import Message, PlainLayout, chat_messages
from quilate.inference.scores import Normalization
from quilate.tasks.templates import PromptTemplate

Form = Literal["chat", "completions"]
Answers = Literal["likelihood", "first_token", "text"]

TOP_TOKENS = {"chat": 20, "completions": 5}  # the most that OpenAI's API lists


@dataclass(frozen=True)
class Asking:
    """How a model is asked: `endpoint` chat or completions; labels are read from `answers`, the likelihood of every
    label (echoed prompts), the first token's log-probabilities, or the text; at most `max_tokens` written. `request`
    holds further keys of a request's body, or others in place of ours; None takes one out."""

    model: str
    endpoint: Form
    answers: Answers
    normalization: Normalization
    max_tokens: int
    request: Mapping[str, Any] = field(default_factory=dict)

    def asks(self, path: str, body: dict[str, Any]) -> Request:
        """A request with what the endpoint wants otherwise."""
        return Request(path, {key: value for key, value in (body | dict(self.request)).items() if value is not None})


@dataclass(frozen=True)
class Posed:
    """A question after its solved examples: as one text, and as the turns of a conversation."""

    text: str
    messages: list[Message]

    @classmethod
    def of(cls, template: PromptTemplate, solved: Sequence[tuple[str, str]], question: str) -> Posed:
        """Of (question, answer) examples and a question, each rendered by the template already."""
        text = str(PlainLayout(template).write(solved, question))
        return cls(text, chat_messages(template.instruction, solved, question))


class ApiModel:
    """A model behind an endpoint.

    Args:
        cache: folder of the answers.
    """

    def __init__(self, asking: Asking, endpoint: Endpoint, prices: Prices, cache: Path) -> None:
        self.asking, self.endpoint, self.prices, self.cache = asking, endpoint, prices, cache
        self._client: ApiClient | None = None

    @property
    def remote_host(self) -> str | None:
        """Where the texts go; None if they stay on this machine."""
        return None if is_loopback(self.endpoint.url) else urlsplit(self.endpoint.url).netloc

    def client(self) -> ApiClient:
        """The one ledger of all that is asked; opened when first used."""
        if self._client is None:
            self._client = ApiClient(self.endpoint, self.prices, self.cache)
        return self._client

    def ask(
        self,
        posed: Sequence[Posed],
        on_progress: Callable[[int, int], None],
        *,
        listed: bool = False,
        stops: bool = False,
    ) -> list[Response]:
        """The answers in order; `listed` asks for the likeliest tokens' log-probabilities too, `stops` for no more than
        a paragraph.

        Raises:
            MachineError, GateError, UsageError: see `ApiClient.send`.
        """
        return self.client().send([self.request(one, listed=listed, stops=stops) for one in posed], on_progress)

    def request(self, posed: Posed, *, listed: bool = False, stops: bool = False) -> Request:
        """What asks one question. A completion in words ends with its paragraph: a base model would go on with another
        question, and be paid for it."""
        asking = self.asking
        body: dict[str, Any] = {"model": asking.model, "max_tokens": asking.max_tokens, "temperature": 0}
        if asking.endpoint == "chat":
            body["messages"] = posed.messages
            body |= {"logprobs": True, "top_logprobs": TOP_TOKENS["chat"]} if listed else {}
            return asking.asks("/chat/completions", body)
        body["prompt"] = posed.text
        body |= {"logprobs": TOP_TOKENS["completions"]} if listed else {}
        body |= {"stop": [PromptTemplate.SEPARATOR]} if stops else {}
        return asking.asks("/completions", body)

    def echo(self, text: str) -> Request:
        """What asks for the log-probabilities of a text's own tokens."""
        asked = self.asking.asks("/completions", {"model": self.asking.model, "prompt": text, "temperature": 0})
        # Whatever limit the endpoint wants for answers, an echo needs one token.
        own = {key: value for key, value in asked.body.items() if key not in LIMITS}
        return Request(asked.path, own | {"max_tokens": 1, "echo": True, "logprobs": 1})

    def saved(self, folder: Path) -> dict[str, Any]:
        """What brings it back from `folder`; the cache relative to it, for a run directory may be moved as a whole."""
        return {
            "asking": asdict(self.asking),
            "endpoint": asdict(self.endpoint),
            "prices": asdict(self.prices),
            "cache": os.path.relpath(self.cache, folder),
        }

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> ApiModel:
        """From what `saved` gave."""
        asking, endpoint, prices = Asking(**saved["asking"]), Endpoint(**saved["endpoint"]), Prices(**saved["prices"])
        return cls(asking, endpoint, prices, folder / saved["cache"])


def tokens_of(responses: Sequence[Response]) -> int:
    """Read and written."""
    return sum(response.read + response.written for response in responses)


def cost_of(responses: Sequence[Response]) -> float:
    """In the currency of the prices."""
    return sum(response.cost for response in responses)


def cached_among(responses: Sequence[Response]) -> int:
    """How many were there already."""
    return sum(response.cached for response in responses)
