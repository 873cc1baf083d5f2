"""What several stages of alignment ask of their settings and sets, and measure on text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.errors import ConfigError
from quilate.evaluation.bits_per_byte import TextLoss, text_loss
from quilate.models.load import context_length, load_tokenizer
from quilate.models.tuning.lora import TAKEN_FROM_THE_BASE, LoraConfig
from quilate.phases.corpus import corpus_documents
from quilate.phases.stage import StageContext
from quilate.tasks.leaks import normalize
from quilate.tokenization.chat import ChatTemplate

T = TypeVar("T")

TEXT_WINDOW = 512  # tokens of a piece of a held-out document (guess)


def check_adapter(method: str, lora: LoraConfig | None, *, is_its_own_reference: bool) -> None:
    """Whether settings of an adapter go with the method; and, where the model without its adapter is the reference,
    with that.

    Raises:
        ValueError: they do not.
    """
    if lora is None:
        return
    if method != "lora":
        raise ValueError("`lora` settings go with `method: lora`")
    if is_its_own_reference and lora.dropout:
        raise ValueError("`lora.dropout` must be 0 here: the model is compared with itself")
    if is_its_own_reference and lora.init in TAKEN_FROM_THE_BASE:
        raise ValueError(
            f"`lora.init: {lora.init}` is not possible here: the reference is the model without its adapter"
        )


def room_for_prompts(context: int, max_new_tokens: int) -> int:
    """The tokens that a model's context leaves for a prompt.

    Raises:
        ConfigError: none.
    """
    if context <= max_new_tokens:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens} and the model's context {context} tokens",
            hint="lower max_new_tokens, so that a prompt fits before the completion",
        )
    return context - max_new_tokens


def check_vocabulary(name: str, model: Path, template: ChatTemplate) -> None:
    """A reward model reads the policy's tokens as they are.

    Raises:
        ConfigError: it has others.
    """
    theirs = load_tokenizer(model).get_vocab()
    if any(theirs.get(token) != index for token, index in template.tokenizer.get_vocab().items()):
        raise ConfigError(
            f"the reward model '{name}' was trained with another tokenizer than the policy's",
            hint="train the reward model on a model of the same family",
        )


def apart_from_held_out(train: Sequence[T], held_out: Iterable[T], question: Callable[[T], str]) -> list[T]:
    """What asks nothing that is held out. Of one set they are apart already; two sets may share questions."""
    measured = {normalize(question(one)) for one in held_out}
    return [one for one in train if normalize(question(one)) not in measured]


def held_out_text(
    context: StageContext[Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, TextLoss]:
    """The loss on the held-out text of every corpus that the stage was given: what alignment costs in general ability
    (the alignment tax)."""
    folders = {role.partition(":")[2]: folder for role, folder in context.inputs.items() if role.startswith("corpus:")}
    window = min(TEXT_WINDOW, context_length(model))
    return {
        name: text_loss(
            model, tokenizer, corpus_documents(folder, "held_out"), window=window,
            check_stop=context.stop.raise_if_set,
        )
        for name, folder in folders.items()
    }  # fmt: skip
