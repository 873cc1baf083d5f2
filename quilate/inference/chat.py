"""Conversation with a causal model through its own chat template, streamed."""

from __future__ import annotations

import secrets
from collections.abc import Generator as PieceGenerator
from contextlib import closing, suppress
from copy import copy
from pathlib import Path

from quilate.errors import ModelError
from quilate.inference.generation import Generator
from quilate.inference.sampling import Sampling
from quilate.models.load import load_causal, load_tokenizer
from quilate.models.precision import compute_dtype
from quilate.tokenization.chat import ChatTemplate, Message, template_of


class ChatSession:
    """A model, its template and the turns so far.

    Args:
        model: a model directory; adapter: a PEFT directory on that model, or None.
        system: the system prompt, if any.

    Raises:
        ModelError: the model has no chat template.
        ConfigError: its template tries to leave the sandbox.
    """

    def __init__(self, model: Path, *, adapter: Path | None = None, system: str | None = None) -> None:
        self.tokenizer = load_tokenizer(adapter or model)
        source = template_of(self.tokenizer) or template_of(load_tokenizer(model))
        self.template = ChatTemplate(self.tokenizer, source, name=model.name)
        self.model = load_causal(adapter or model, dtype=compute_dtype())
        self._generator = Generator(self.model, stop=self.stop_tokens(), batch=1)
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []

    def fresh(self, system: str | None) -> ChatSession:
        """The same model, no turns."""
        other = copy(self)
        other.messages = [{"role": "system", "content": system}] if system else []
        return other

    def prompt(self) -> str:
        """The conversation as the model sees it, ending where its answer begins."""
        return self.template.render(self.messages, add_generation_prompt=True)

    def stop_tokens(self) -> list[int]:
        """Every token that ends an answer: the tokenizer's end, the model's, and what the template ends a turn with."""
        configured = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
        with suppress(ModelError):  # not every template shows where a turn ends; those that do not are for asking only
            ends.add(self.template.end_of_turn())
        return sorted(int(end) for end in ends if end is not None)

    def answer(
        self, text: str, *, max_new_tokens: int = 512, temperature: float = 0.7
    ) -> PieceGenerator[str, None, None]:
        """Add the user's turn and yield the answer in pieces; the finished answer becomes a turn.

        `temperature` 0 is greedy. Closing the iterator early keeps what was said so far.

        Raises:
            ModelError: the conversation fills the model's context; it is as if the turn had not been.
        """
        self.messages.append({"role": "user", "content": text})
        ids = self.tokenizer(self.prompt(), add_special_tokens=False).input_ids
        if len(ids) >= self._generator.context:
            self.messages.pop()
            raise ModelError("the conversation fills the model's context", hint="start a new one with /new")
        tokens: list[int] = []
        said = ""
        stream = self._generator.stream(
            [ids], max_new_tokens=max_new_tokens, sampling=Sampling(temperature), seed=secrets.randbits(32)
        )
        try:
            with closing(stream):
                for _, token in stream:
                    tokens += [] if token is None else [token]
                    whole = self.tokenizer.decode(tokens, skip_special_tokens=True)
                    # The last bytes of a character may still be to come; until they are, it decodes to U+FFFD.
                    if token is None or not whole.endswith("\N{REPLACEMENT CHARACTER}"):
                        piece, said = whole[len(said) :], whole
                        yield piece
        finally:
            self.messages.append({"role": "assistant", "content": said.strip()})
