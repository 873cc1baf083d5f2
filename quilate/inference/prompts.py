"""Prompts as the model reads them: plain text, or turns of a conversation through the model's own chat template.

A prompt has a head (instruction, solved examples) and an item. Only the item is ever cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from quilate.errors import ConfigError
from quilate.tasks.templates import PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from quilate.tokenization.chat import ChatTemplate

Format = Literal["plain", "chat"]
Demonstration = tuple[str, str]  # a text and the verbalizer of its label
Message = dict[str, str]

_PROBE = "quilate-probe"


@dataclass(frozen=True)
class Prompt:
    """`head` is the instruction and the demonstrations, `item` what follows; together they are what the model sees."""

    head: str
    item: str

    def __str__(self) -> str:
        return self.head + self.item


class Layout(Protocol):
    """How prompts are written; `answer_start` is what stands between a prompt and its answer."""

    answer_start: str

    def write(self, solved: Sequence[tuple[str, str]], question: str) -> Prompt:
        """A prompt of (question, answer) examples and a question, each rendered by the template already."""
        ...

    def prompt(self, demonstrations: Sequence[Demonstration], text: str) -> Prompt:
        """A prompt of texts, which the template renders."""
        ...

    def premise(self, words: str) -> Prompt:
        """A prompt of these words alone, without instruction, demonstrations and template."""
        ...

    def tokens(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
        """Whole prompts, or their ends, as tokens."""
        ...


class PlainLayout:
    """One text: the instruction, the demonstrations and the item, with blank lines between."""

    answer_start = " "

    def __init__(self, template: PromptTemplate) -> None:
        self.template = template

    def write(self, solved: Sequence[tuple[str, str]], question: str) -> Prompt:
        shown = "".join(asked + self.template.answer(answer) + self.template.SEPARATOR for asked, answer in solved)
        return Prompt(self.template.prefix() + shown, question)

    def prompt(self, demonstrations: Sequence[Demonstration], text: str) -> Prompt:
        return self.write([(self.template.prompt(t), v) for t, v in demonstrations], self.template.prompt(text))

    def premise(self, words: str) -> Prompt:
        return Prompt("", words)

    def tokens(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
        from quilate.tokenization.segments import prompt_tokens

        return prompt_tokens(tokenizer, texts)


class ChatLayout:
    """A conversation: the instruction as the system's turn, each demonstration a question and its answer, the item the
    last question. The model's answer begins where its template says.

    Args:
        template: how an item is shown within a turn.
        chat: the model's chat template.
        control: texts that the tokenizer reads as control tokens. Within a user's text they are broken by a zero-width
            space, or the text could end its own turn.
    """

    answer_start = ""

    def __init__(self, template: PromptTemplate, chat: ChatTemplate, *, control: Sequence[str]) -> None:
        self.template, self._chat, self._control = template, chat, list(control)
        self._has_system = not template.instruction or self._knows_system()

    def write(self, solved: Sequence[tuple[str, str]], question: str) -> Prompt:
        harmless = [(self._harmless(asked), self._harmless(answer)) for asked, answer in solved]
        messages = chat_messages(
            self.template.instruction, harmless, self._harmless(question), system=self._has_system
        )  # fmt: skip
        whole = self._render(messages, answering=True)
        head = self._render(messages[:-1], answering=False) if len(messages) > 1 else ""
        return Prompt(head, whole.removeprefix(head)) if whole.startswith(head) else Prompt("", whole)

    def prompt(self, demonstrations: Sequence[Demonstration], text: str) -> Prompt:
        return self.write([(self.template.prompt(t), v) for t, v in demonstrations], self.template.prompt(text))

    def premise(self, words: str) -> Prompt:
        return Prompt("", self._render([{"role": "user", "content": self._harmless(words)}], answering=True))

    def tokens(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
        """The template has written the control tokens, the opening one included; nothing is added to them."""
        if not texts:
            return []
        encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=False).input_ids
        return [list(tokens) for tokens in encoded]

    def _knows_system(self) -> bool:
        """Whether the template shows a system's turn; some refuse one, and some drop it without a word."""
        try:
            return _PROBE in self._render(
                [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}], answering=True
            )
        except ConfigError:
            return False

    def _render(self, messages: list[Message], *, answering: bool) -> str:
        return self._chat.render(messages, add_generation_prompt=answering)

    def _harmless(self, text: str) -> str:
        for token in self._control:
            text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
        return text


def chat_messages(
    instruction: str, solved: Iterable[tuple[str, str]], question: str, *, system: bool = True
) -> list[Message]:
    """A question, after (question, answer) examples, as the turns of a conversation; without `system` the instruction
    opens the first question."""
    turns: list[Message] = []
    for asked, answer in solved:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": question})
    if not instruction:
        return turns
    if system:
        return [{"role": "system", "content": instruction}, *turns]
    first = instruction + PromptTemplate.SEPARATOR + turns[0]["content"]
    return [{"role": "user", "content": first}, *turns[1:]]


def layout_of(
    template: PromptTemplate, style: Format, tokenizer: PreTrainedTokenizerBase | None = None, *, model: str = ""
) -> Layout:
    """The layout of that format; `chat` needs the model's tokenizer.

    Raises:
        ModelError: the model has no chat template.
        ConfigError: its template is broken or tries to leave the sandbox.
    """
    if style == "plain":
        return PlainLayout(template)
    from quilate.tokenization.chat import ChatTemplate

    assert tokenizer is not None  # a conversation is written by the model's own template
    control = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
    chat = ChatTemplate(tokenizer, name=model or "the model")
    return ChatLayout(template, chat, control=[token for token in control if token.strip()])


def closing_words(template: PromptTemplate) -> str:
    """The template's words right before the label ("Etiqueta:"), which any item of the domain has.

    Raises:
        ConfigError: there are none.
    """
    words = template.prompt("").rstrip().rpartition("\n")[2].strip()
    if not words:
        raise ConfigError("the template has no words before the label", hint="give `domain_prompt`")
    return words
