"""Conversation with a causal model through its own chat template, streamed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from copy import copy
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from quilate.errors import ModelError
from quilate.models.load import context_length, load_causal, load_tokenizer
from quilate.models.precision import compute_dtype
from quilate.tokenization.chat import ChatTemplate, Message, template_of


class _StopFlag(StoppingCriteria):  # type: ignore[misc]  # transformers is not followed
    """Lets the reader of a stream end the generation (Ctrl-C ends an answer, not the chat)."""

    def __init__(self) -> None:
        self.set = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.set, device=input_ids.device)


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

    def answer(self, text: str, *, max_new_tokens: int = 512, temperature: float = 0.7) -> Generator[str, None, None]:
        """Add the user's turn and yield the answer in pieces; the finished answer becomes a turn.

        `temperature` 0 is greedy. Closing the iterator early keeps what was said so far.
        """
        self.messages.append({"role": "user", "content": text})
        ids = self.tokenizer(self.prompt(), return_tensors="pt", add_special_tokens=False).input_ids.to(
            self.model.device
        )
        room = context_length(self.model) - ids.shape[1]
        if room < 1:
            self.messages.pop()
            raise ModelError("the conversation fills the model's context", hint="start a new one with /new")
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = _StopFlag()
        settings = GenerationConfig(
            max_new_tokens=min(max_new_tokens, room),
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else None,
            eos_token_id=self.stop_tokens(),
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            use_cache=True,
        )
        failure: list[BaseException] = []

        def generate(**options: Any) -> None:
            try:
                self.model.generate(**options)
            except BaseException as error:  # raised again where the answer is read, which would else wait forever
                failure.append(error)
                streamer.end()

        job = Thread(
            target=generate,
            kwargs={
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "generation_config": settings,
                "streamer": streamer,
                "stopping_criteria": StoppingCriteriaList([stop]),
            },
            daemon=True,
        )
        job.start()
        said: list[str] = []
        try:
            for piece in streamer:
                said.append(piece)
                yield piece
            if failure:
                raise failure[0]
        finally:
            stop.set = True
            job.join()
            self.messages.append({"role": "assistant", "content": "".join(said).strip()})
