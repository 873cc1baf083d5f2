"""Chat templates: a conversation as the tokens a model reads, and which of them are the assistant's to learn.

Shapes: T tokens of a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2.exceptions import SecurityError
from transformers import PreTrainedTokenizerBase

from quilate.errors import ConfigError, ModelError
from quilate.tokenization.sandbox import SandboxedTemplate
from quilate.tokenization.segments import opening_tokens

Message = dict[str, str]  # "role" (system, user or assistant) and "content"

# Of Tülu (Wang et al. 2023, "How Far Can Camels Go?"): the marks are plain text, so no embedding has to be added; what
# ends a turn is the end of sequence that the base knows already.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


class UnrenderableError(Exception):
    """One conversation cannot be rendered. `reason` is for counting and holds no source text; `detail` may."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class EncodedChat:
    """A rendered conversation.

    Attributes:
        text: what the template makes of it.
        tokens: [T], those that `apply_chat_template` gives.
        learned: [T], True for what the assistant says, the token that ends its turn included.
        turn_ends: the index in `tokens` after each assistant turn; cut there, what remains is a whole conversation.
        moved_borders: turns whose first token holds also the end of the header before it; that token is not learned,
            for in generation it would be another.
    """

    text: str
    tokens: list[int]
    learned: list[bool]
    turn_ends: list[int]
    moved_borders: int

    def cut(self, length: int) -> EncodedChat | None:
        """As many whole turns as fit into `length` tokens; None if no learned token is among them."""
        if len(self.tokens) <= length:
            return self
        ends = [end for end in self.turn_ends if end <= length]
        if not ends or not any(self.learned[: ends[-1]]):
            return None
        return EncodedChat(self.text, self.tokens[: ends[-1]], self.learned[: ends[-1]], ends, self.moved_borders)


class ChatTemplate:
    """A tokenizer's chat template, in our sandbox.

    Args:
        source: Jinja text; by default the tokenizer's own.
        name: the model's, for messages.

    Raises:
        ModelError: there is no template.
        ConfigError: it is not one, or tries to leave the sandbox.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str | None = None, *, name: str) -> None:
        source = source or template_of(tokenizer)
        if source is None:
            raise ModelError(
                f"{name} has no chat template: it was not made for conversation",
                hint="use an instruct model, or make one with `quilate sft`",
            )
        self.source, self.tokenizer, self.name = source, tokenizer, name
        self._template = SandboxedTemplate(source, name=f"the chat template of {name}", chat=True)
        self._special = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self._special_tokens: dict[int, str] = added | named

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as text, as transformers renders it; with a generation prompt, ending where an answer
        begins.

        Raises:
            ConfigError: the template refuses it, or tries to leave the sandbox.
        """
        return self._template.render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, tools=None, **self._special
        )

    def encode(self, messages: Sequence[Message], *, context: int = 0) -> EncodedChat:
        """The conversation as tokens.

        Args:
            context: of this many messages at the beginning nothing is learned.

        Raises:
            UnrenderableError: the template refuses this conversation, or its text imitates a special token.
            ModelError: the template cannot tell which tokens are the assistant's, or ends its turns with no token.
        """
        if any(token in message["content"] for message in messages for token in self._special_tokens.values()):
            raise UnrenderableError("a turn holds the text of a special token")
        try:
            text, spans = self._marked(messages) if self._template.marks_generation else self._incremental(messages)
        except ConfigError as error:
            if isinstance(error.__cause__, SecurityError):
                raise
            raise UnrenderableError("refused by the model's template", error.message) from error
        tokens = self._tokens(text)
        learned = [False] * len(tokens)
        speakers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        ends, moved_borders = [], 0
        for index, (first, last) in zip(speakers, spans, strict=True):
            start, moved = self._border(tokens, text, first)
            end = self._turn_end(tokens, start, self._border(tokens, text, last)[0])
            ends.append(end)
            moved_borders += moved
            if index >= context:
                learned[start:end] = [True] * (end - start)
        return EncodedChat(text, tokens, learned, ends, moved_borders)

    def end_of_turn(self) -> int:
        """The token that ends an assistant's turn.

        Raises:
            ModelError, ConfigError: as `encode`.
        """
        try:
            probe = self.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        except UnrenderableError as error:
            raise ModelError(
                f"the chat template of {self.name} cannot show a question and its answer: {error}",
                hint="give the model another template",
            ) from error
        return probe.tokens[probe.turn_ends[-1] - 1]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The spans that the template itself marks with `{% generation %}`."""
        text, spans = self._template.render_marked(
            messages=list(messages), add_generation_prompt=False, tools=None, **self._special
        )
        turns = sum(message["role"] == "assistant" for message in messages)
        if len(spans) != turns:
            raise ModelError(
                f"the chat template of {self.name} marks {len(spans)} spans as generated in a conversation with "
                f"{turns} assistant turns",
                hint="give a template that marks every one of them, or none",
            )
        return text, spans

    def _incremental(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """What each assistant turn adds to the rendering of all before it.

        Valid only where a longer conversation's text begins with a shorter one's, which is checked.
        """
        text = self.render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.render(messages[:index], add_generation_prompt=True)
                through = self.render(messages[: index + 1])
                if not (through.startswith(before) and text.startswith(through)):
                    raise ModelError(
                        f"the chat template of {self.name} cannot tell what the assistant says: it renders message "
                        f"{index + 1} of {len(messages)} differently when the conversation goes on, or not after the "
                        "header it asks an answer with",
                        hint="give a template that marks the assistant's turns with {% generation %} (sft: `template`)",
                    )
                spans.append((len(before), len(through)))
        return text, spans

    def _border(self, tokens: list[int], text: str, place: int) -> tuple[int, bool]:
        """The first token after the text's first `place` characters, and whether one stands across that border."""
        before = self._tokens(text[:place])
        if tokens[: len(before)] == before:
            return len(before), False
        encoding = self.tokenizer(text, add_special_tokens=False)
        for index in range(len(tokens)):
            span = encoding.token_to_chars(index)
            if span is not None and span.start >= place:
                return index, True
        return len(tokens), True

    def _turn_end(self, tokens: list[int], start: int, end: int) -> int:
        """The index after the special token that ends a turn: the last of the turn, but for white space after it."""
        for index in range(end - 1, start - 1, -1):
            if tokens[index] in self._special_tokens:
                return index + 1
            if self.tokenizer.decode(tokens[index]).strip():
                break
        if self._template.marks_generation and end < len(tokens) and tokens[end] in self._special_tokens:
            return end + 1  # the template leaves it out of its marks; unlearned, the model would never stop
        raise ModelError(
            f"the chat template of {self.name} ends the assistant's turn with no special token: a model trained on it "
            "would never stop",
            hint="give a template that writes {{ eos_token }} after what the assistant says (sft: `template`)",
        )


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's own template; of several, the one called "default"."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A template for a base that has none; it opens as the tokenizer opens any text (BOS, for Llama).

    Raises:
        ModelError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer has no end-of-sequence token to end a turn with", hint="give a `template`")
    opened = tokenizer.bos_token_id is not None and opening_tokens(tokenizer) == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if opened else "") + DEFAULT_TEMPLATE
