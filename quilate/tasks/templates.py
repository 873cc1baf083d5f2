"""How an item is shown to a language model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quilate.tokenization.sandbox import SandboxedTemplate


class PromptTemplate:
    """How an item is shown to a language model.

    A prompt is `instruction` once, then demonstrations, then the item: each the rendered template, and for
    demonstrations a space and the label's verbalizer. Items are separated by `SEPARATOR`.
    """

    SEPARATOR = "\n\n"  # one blank line, as in Brown et al. 2020, appendix G

    def __init__(
        self,
        template: str,
        *,
        instruction: str = "",
        verbalizers: Sequence[str] = (),
        names: Sequence[str] = ("text", "labels"),
    ) -> None:
        """
        Args:
            template: Jinja text with `{{ text }}` and optionally `{{ labels }}` (the verbalizers, comma-separated).
            names: what it may use; for multiple choice `text` and `options`, a list that differs from item to item; for
                question answering `text` and `context`.

        Raises:
            ConfigError: see `SandboxedTemplate`.
        """
        self.source = template
        self.instruction = instruction
        self._labels, self._names = list(verbalizers), list(names)
        self._template = SandboxedTemplate(template, name="template", names=names)

    def with_source(self, template: str, *, instruction: str) -> PromptTemplate:
        """Another template, and instruction, of the same task.

        Raises:
            ConfigError: see `SandboxedTemplate`.
        """
        return PromptTemplate(template, instruction=instruction, verbalizers=self._labels, names=self._names)

    def prompt(self, text: str, options: Sequence[str] = (), *, context: str = "") -> str:
        """The part that ends where the label is to be written; no space at its end."""
        return self._template.render(text=text, labels=self._labels, options=list(options), context=context)

    @staticmethod
    def answer(verbalizer: str) -> str:
        """What follows `prompt`: a space and the verbalizer."""
        return f" {verbalizer}"

    def demonstration(self, text: str, verbalizer: str, options: Sequence[str] = (), *, context: str = "") -> str:
        """A solved item with the separator after it."""
        return self.prompt(text, options, context=context) + self.answer(verbalizer) + self.SEPARATOR

    def prefix(self, demonstrations: Iterable[tuple[str, str]] = ()) -> str:
        """What all test items share: the instruction and the (text, verbalizer) demonstrations."""
        head = self.instruction + self.SEPARATOR if self.instruction else ""
        return head + "".join(self.demonstration(text, verbalizer) for text, verbalizer in demonstrations)
