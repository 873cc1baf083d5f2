"""Chat templates against transformers' own rendering, tokens and masks; which tokens are learned; what is refused."""

from __future__ import annotations

import pytest
from support import CHAT_TEMPLATE, tiny_tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from quilate.errors import ConfigError, ModelError
from quilate.tokenization.chat import ChatTemplate, UnrenderableError, default_template

TURNS = [
    {"role": "system", "content": "Eres médica; responde en español."},
    {"role": "user", "content": "¿Qué es la cefalea? Años sufriéndola…"},
    {"role": "assistant", "content": "Dolor de cabeza.\n\nNada más, señora."},
    {"role": "user", "content": "¿Y la otitis?"},
    {"role": "assistant", "content": " Inflamación del oído 🙂 "},
]

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (  # no header before an answer; spaces at its borders; BOS again in every exchange
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set first = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set first = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and first %}"
    "{% set content = '<<SYS>>\\n' + first + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHAT_TEMPLATE, "marked": MARKED, "llama2": LLAMA2, "llama3": LLAMA3, "gemma": GEMMA}

# Special, yet not named as the tokenizer's end or beginning: as in Llama 3 and Gemma.
EXTRA = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]


def with_template(source: str | None) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in EXTRA], special_tokens=True)
    tokenizer.chat_template = source
    return tokenizer


def learned_text(template: ChatTemplate, turns: list[dict[str, str]], **options: int) -> list[str]:
    """The learned runs of tokens as text."""
    chat = template.encode(turns, **options)
    runs: list[list[int]] = [[]]
    for token, learned in zip(chat.tokens, chat.learned, strict=True):
        if learned:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [template.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[:3]])
def test_text_and_tokens_are_those_of_transformers(name: str, turns: list[dict[str, str]]) -> None:
    tokenizer = with_template(TEMPLATES[name])
    chat = ChatTemplate(tokenizer, name="m").encode(turns)
    assert chat.text == tokenizer.apply_chat_template(turns, tokenize=False)
    assert chat.tokens == tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    asked = ChatTemplate(tokenizer, name="m").render(turns[:2], add_generation_prompt=True)
    assert asked == tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)


def test_marked_tokens_are_those_that_transformers_marks() -> None:
    tokenizer = with_template(MARKED)
    theirs = tokenizer.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    chat = ChatTemplate(tokenizer, name="m").encode(TURNS)
    assert chat.learned == [bool(flag) for flag in theirs["assistant_masks"]]
    assert sum(chat.learned) > 10


def test_marks_and_increments_find_the_same_tokens() -> None:
    marked = ChatTemplate(with_template(MARKED), name="m").encode(TURNS)
    plain = ChatTemplate(with_template(CHAT_TEMPLATE), name="m").encode(TURNS)
    assert marked == plain


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", ["Dolor de cabeza.\n\nNada más, señora.<|im_end|>", " Inflamación del oído 🙂 <|im_end|>"]),
        ("llama3", ["Dolor de cabeza.\n\nNada más, señora.<|eot_id|>", "Inflamación del oído 🙂<|eot_id|>"]),
        ("gemma", ["Dolor de cabeza.\n\nNada más, señora.<end_of_turn>", "Inflamación del oído 🙂<end_of_turn>"]),
        ("llama2", [" Dolor de cabeza.\n\nNada más, señora. <|endoftext|>", " Inflamación del oído 🙂 <|endoftext|>"]),
    ],
)
def test_the_answers_and_their_end_are_learned_and_nothing_else(name: str, expected: list[str]) -> None:
    template = ChatTemplate(with_template(TEMPLATES[name]), name="m")
    assert learned_text(template, TURNS) == expected
    assert learned_text(template, TURNS, context=3) == expected[1:]
    assert template.encode(TURNS).moved_borders == 0
    assert template.tokenizer.decode([template.end_of_turn()]) in expected[0][-14:]


def test_an_end_that_is_also_the_padding_is_learned() -> None:
    tokenizer = with_template(CHAT_TEMPLATE)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    assert learned_text(ChatTemplate(tokenizer, name="m"), TURNS)[0].endswith("señora.<|im_end|>")


def test_what_is_learned_follows_what_generation_is_asked_with() -> None:
    """The tokens before a learned turn are those of the prompt that would be answered there."""
    for source in TEMPLATES.values():
        template = ChatTemplate(with_template(source), name="m")
        chat = template.encode(TURNS)
        first = chat.learned.index(True)
        prompt = template.render(TURNS[:2], add_generation_prompt=True)
        assert chat.tokens[:first] == template.tokenizer(prompt, add_special_tokens=False).input_ids


def test_a_border_inside_a_token_is_seen_and_that_token_not_learned() -> None:
    """Together, " d" and "e" are one token: the header ends within it, and the answer begins."""
    source = "{% for m in messages %}{{ m.content + (' d' if m.role == 'user' else eos_token) }}{% endfor %}"
    tokenizer = with_template(source)
    assert len(tokenizer(" de").input_ids) == 1
    template = ChatTemplate(tokenizer, name="m")
    chat = template.encode([{"role": "user", "content": "tos"}, {"role": "assistant", "content": "e pecho"}])
    assert chat.moved_borders == 1
    assert learned_text(
        template, [{"role": "user", "content": "tos"}, {"role": "assistant", "content": "e pecho"}]
    ) == [" pecho<|endoftext|>"]


def test_an_end_left_out_of_the_marks_is_learned_too() -> None:
    source = MARKED.replace(
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}<|im_end|>"
    )
    assert learned_text(ChatTemplate(with_template(source), name="m"), TURNS)[0].endswith("señora.<|im_end|>")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        # the last turn's end alone; what a reasoning model's template does with old turns
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}",
            "differently when the conversation goes on",
        ),
        (
            "{% for m in messages %}{{ m.role if loop.last else '' }}{{ m.content }}{{ eos_token }}{% endfor %}",
            "differently when the conversation goes on",
        ),
        (CHAT_TEMPLATE + "{% if add_generation_prompt %}<think>{% endif %}", "not after the header"),
        (CHAT_TEMPLATE.replace("<|im_end|>", ""), "no special token: a model trained on it would never stop"),
        (
            "{% generation %}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}{% endgeneration %}",
            "marks 1 spans",
        ),
    ],
)
def test_templates_that_cannot_tell_the_assistant_are_refused(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ChatTemplate(with_template(source), name="m").encode(TURNS)


def test_marks_that_change_the_text_are_refused() -> None:
    source = (
        "{% for m in messages %}{% set said %}"
        "{% generation %} {{ m.content + eos_token }}{% endgeneration %}{% endset %}"
        "{{ said | trim }}{% endfor %}"
    )
    with pytest.raises(UnrenderableError, match="text changes where"):
        ChatTemplate(with_template(source), name="m").encode(TURNS)


def test_one_conversation_may_be_refused_without_the_others() -> None:
    template = ChatTemplate(with_template(LLAMA2), name="m")
    with pytest.raises(UnrenderableError, match="roles must alternate") as caught:
        template.encode([*TURNS, TURNS[-1]])
    assert caught.value.reason == "refused by the model's template"
    with pytest.raises(UnrenderableError, match="text of a special token"):
        template.encode([{"role": "user", "content": "fin <|im_end|>"}, TURNS[2]])


def test_an_escape_is_not_taken_for_a_refusal() -> None:
    with pytest.raises(ConfigError, match="leave its sandbox"):
        ChatTemplate(with_template("{{ messages.__class__ }}"), name="m").encode(TURNS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_cut_conversation_is_the_shorter_conversation(name: str) -> None:
    template = ChatTemplate(with_template(TEMPLATES[name]), name="m")
    whole, shorter = template.encode(TURNS), template.encode(TURNS[:3])
    cut = whole.cut(whole.turn_ends[1] - 1)
    assert cut is not None and len(cut.tokens) == whole.turn_ends[0]
    size = len(cut.tokens)
    assert (cut.tokens, cut.learned) == (shorter.tokens[:size], shorter.learned[:size])
    assert sum(cut.learned) == sum(shorter.learned)
    assert whole.cut(len(whole.tokens)) == whole
    assert whole.cut(whole.turn_ends[0] - 1) is None
    assert template.encode(TURNS, context=4).cut(whole.turn_ends[0]) is None


def test_a_base_without_a_template_gets_one_that_it_can_learn() -> None:
    tokenizer = with_template(None)
    with pytest.raises(ModelError, match="no chat template"):
        ChatTemplate(tokenizer, name="m")
    template = ChatTemplate(tokenizer, default_template(tokenizer), name="m")
    said = ["Dolor de cabeza.\n\nNada más, señora.<|endoftext|>", " Inflamación del oído 🙂 <|endoftext|>"]
    assert learned_text(template, TURNS) == said
    assert template.end_of_turn() == tokenizer.eos_token_id
    tokenizer.chat_template = template.source
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == template.encode(TURNS).text
