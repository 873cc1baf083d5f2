"""Supervised fine-tuning: which loss, on which tokens; what is saved and can be talked to; resuming; refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SENTENCES, gradients_of, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from quilate.config import validate
from quilate.data.conversations import Conversation
from quilate.data.packing import pack
from quilate.engine.interrupts import StopRequest
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.errors import ConfigError, DataError, Interrupted, ModelError
from quilate.files import read_json
from quilate.inference.chat import ChatSession
from quilate.phases.adapt import ADAPT, AdaptConfig
from quilate.phases.conversations import CONVERSATIONS, ConversationsConfig, ConversationsStageConfig
from quilate.phases.sft import SFT, SftConfig, chat_examples
from quilate.phases.stage import StageContext, StageReport, write_model_note
from quilate.recipe.schema import Recipe
from quilate.tokenization.chat import ChatTemplate

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def dialogue(number: int, exchanges: int) -> list[dict[str, str]]:
    turns = []
    for n in range(exchanges):
        sentence = SENTENCES[(number + n) % len(SENTENCES)]
        turns += [
            {"role": "user", "content": f"¿Caso {number}, duda {n}?"},
            {"role": "assistant", "content": f"{sentence[:24]} {n}."},
        ]
    return turns


DIALOGUES = [Conversation(str(i), dialogue(i, 1 + i % 3)) for i in range(9)]


@pytest.mark.parametrize("template", [None, MARKED], ids=["incremental", "marked"])
def test_loss_and_gradients_are_those_of_transformers_on_the_assistant_turns(template: str | None) -> None:
    """The oracle: each conversation by itself, tokens and mask by `apply_chat_template`, labels -100 elsewhere."""
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    oracle = tiny_tokenizer()
    oracle.chat_template = MARKED
    total, count = torch.zeros(()), 0
    for conversation in DIALOGUES:
        rendered = oracle.apply_chat_template(
            conversation.messages, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        mask = torch.as_tensor(rendered["assistant_masks"]).bool().view(1, -1)
        labels = rendered["input_ids"].masked_fill(~mask, -100)
        total = total + model(input_ids=rendered["input_ids"], labels=labels, use_cache=False).loss * int(mask.sum())
        count += int(mask.sum())
    (total / count).backward()
    theirs = gradients_of(model)
    model.zero_grad()
    found = chat_examples(DIALOGUES, ChatTemplate(tokenizer, template, name="m"), 250)
    batch = pack(found.examples)
    assert batch.supervised_tokens == found.learned_tokens == count
    ours = LanguageModellingLoss(model)(batch)
    assert float(ours) == pytest.approx(float(total), rel=1e-5)
    (ours / count).backward()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6, msg=name)


def test_packed_conversations_do_not_see_one_another() -> None:
    model = tiny_llama()
    loss = LanguageModellingLoss(model)
    examples = chat_examples(DIALOGUES, ChatTemplate(tiny_tokenizer(), name="m"), 250).examples
    with torch.no_grad():
        alone = sum(float(loss(pack([example]))) for example in examples)
        assert float(loss(pack(examples))) == pytest.approx(alone, rel=1e-5)


def test_long_conversations_are_cut_at_a_turns_end_and_counted() -> None:
    template = ChatTemplate(tiny_tokenizer(), name="m")
    whole = chat_examples(DIALOGUES, template, 250)
    assert not whole.counts
    one = max(
        len(e.tokens) for e in chat_examples([d for d in DIALOGUES if len(d.messages) == 2], template, 250).examples
    )
    cut = chat_examples(DIALOGUES, template, one)
    assert cut.counts == {"conversations cut at a turn's end": 6}
    assert all(len(example.tokens) <= one for example in cut.examples)
    shortened = [example for example in cut.examples if len(DIALOGUES[int(example.id)].messages) > 2]
    assert len(shortened) == 6 and all(example.supervised[-1] for example in shortened)
    none = chat_examples(DIALOGUES, template, 12)
    assert none.counts == {"conversations with no whole answer within the length": 9} and not none.examples


class Folder:
    """The folders that a recipe would have made."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        rows = [{"messages": c.messages} for c in DIALOGUES]
        self.conversations("dudas", rows, held_out=0.3)
        self.note("base", base)

    def note(self, name: str, model: Path) -> None:
        (self.root / name).mkdir()
        write_model_note(self.root / name, model)

    def context(
        self, name: str, config: Any, inputs: dict[str, Path], stop: StopRequest | None = None
    ) -> StageContext[Any]:
        (self.root / name).mkdir(exist_ok=True)
        return StageContext(
            config, inputs, self.root / name, 3, self.root, lambda _: None, lambda _: None, stop or StopRequest()
        )

    def conversations(self, name: str, rows: list[dict[str, Any]], **keys: Any) -> StageReport:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.root / f"{name}.jsonl").write_text(text, encoding="utf-8")
        settings = ConversationsStageConfig(conversations=ConversationsConfig(path=f"{name}.jsonl", **keys))
        return CONVERSATIONS.run(self.context(name, settings, {}))

    def run(self, name: str, *, on: str = "base", stop: StopRequest | None = None, **config: Any) -> StageReport:
        value = {
            "kind": "sft",
            "conversations": ["dudas"],
            "batch_size": 3,
            "epochs": 1,
            "precision": "fp32",
            "lr": 1e-2,
        }
        settings = validate(SftConfig, value | config, source="t")
        inputs = {"conversations:dudas": self.root / "dudas", "model": self.root / on}
        return SFT.run(self.context(name, settings, inputs, stop))


@pytest.fixture
def folder(tmp_path: Path, llama_directory: Path) -> Folder:
    return Folder(tmp_path, llama_directory)


@pytest.mark.parametrize(
    "settings",
    [{"method": "full"}, {"method": "lora"}, {"method": "lora", "merge": True}],
    ids=["full", "lora", "merged"],
)
def test_a_model_learns_the_answers_and_stops_after_them(folder: Folder, settings: dict[str, Any]) -> None:
    report = folder.run("chat", epochs=60, **settings)
    assert report.facts["after"]["dudas"] < report.facts["before"]["dudas"]
    assert report.facts["measure"] == "nats per assistant token"
    assert report.counts == {"refused updates": 0, "visits over the token budget": 0}
    model = folder.root / "chat" / "model"
    assert (model / "adapter_config.json").exists() == (settings == {"method": "lora"})
    rows = (folder.root / "dudas" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    session = ChatSession(model)
    for row in rows[:3]:
        asked, said = (message["content"] for message in json.loads(row)["messages"][:2])
        assert "".join(session.fresh(None).answer(asked, max_new_tokens=100, temperature=0)) == said


def test_the_saved_directory_is_whole_for_plain_transformers(folder: Folder) -> None:
    """The template comes with it, and generation stops at the token that ends a turn, not at the base's end alone."""
    folder.run("chat", method="full", epochs=60)
    place = folder.root / "chat" / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == [end, tokenizer.eos_token_id]
    row = json.loads((folder.root / "dudas" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    asked = tokenizer.apply_chat_template(
        row["messages"][:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**asked, max_new_tokens=100, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(out) == row["messages"][1]["content"] + "<|im_end|>"


def test_what_is_measured_is_the_held_out_loss_per_assistant_token(folder: Folder, llama_directory: Path) -> None:
    report = folder.run("chat", method="full")
    held_out = [json.loads(line) for line in (folder.root / "dudas" / "held_out.jsonl").read_text("utf-8").splitlines()]
    oracle, model = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(llama_directory)
    oracle.chat_template = MARKED
    nats, tokens = 0.0, 0
    for row in held_out:
        found = oracle.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        mask = torch.tensor(found["assistant_masks"], dtype=torch.bool).view(-1)
        ids = torch.tensor(found["input_ids"]).view(1, -1)
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        nats -= float(log_p[mask[1:]].sum())
        tokens += int(mask.sum())
    assert report.facts["before"] == {"dudas": pytest.approx(nats / tokens, abs=2e-4)}
    assert report.facts["held_out_tokens"] == {"dudas": tokens}


def test_a_stopped_stage_continues_to_the_same_files(folder: Folder) -> None:
    folder.run("undisturbed", epochs=2, lora={"dropout": 0.2})
    stop = StopRequest()
    stop.signal = "SIGTERM"
    for _ in range(2):
        with pytest.raises(Interrupted):
            folder.run("stopped", epochs=2, lora={"dropout": 0.2}, stop=stop)
    folder.run("stopped", epochs=2, lora={"dropout": 0.2})
    for name in ("model/adapter_model.safetensors", "metrics.jsonl", "before.json"):
        assert (folder.root / "stopped" / name).read_bytes() == (folder.root / "undisturbed" / name).read_bytes()


def test_stages_stand_on_an_adapter(folder: Folder) -> None:
    """It is merged first, by sft and by adapt."""
    from quilate.phases.corpus import CORPUS, CorpusConfig, CorpusStageConfig

    folder.run("first", method="lora")
    second = folder.run("second", on="first", method="full")
    plain = AutoModelForCausalLM.from_pretrained(folder.root / "second" / "model")
    assert second.trainable_parameters == sum(p.numel() for p in plain.parameters())
    assert second.facts["before"] == pytest.approx(read_json(folder.root / "second" / "before.json"))
    (folder.root / "t.txt").write_text("\n".join(SENTENCES * 2), encoding="utf-8")
    corpus = CorpusConfig(path="t.txt", documents="line", held_out=0.3, language="any")
    CORPUS.run(folder.context("t", CorpusStageConfig(corpus=corpus), {}))
    settings = AdaptConfig(kind="adapt", corpora={"t": 1.0}, tokens=400, batch_tokens=200, length=64, precision="fp32")
    inputs = {"corpus:t": folder.root / "t", "model": folder.root / "first"}
    adapted = ADAPT.run(folder.context("adapted", settings, inputs))
    assert adapted.trainable_parameters == second.trainable_parameters
    assert AutoTokenizer.from_pretrained(folder.root / "adapted" / "model").chat_template


def test_a_base_without_a_template_gets_one_and_another_may_be_given(folder: Folder, tmp_path: Path) -> None:
    base = Path(
        shutil.copytree(folder.root / read_json(folder.root / "base" / "model.json")["path"], tmp_path / "plain")
    )
    (base / "chat_template.jinja").unlink()
    folder.note("bare", base)
    folder.run("chat", on="bare", method="full")
    saved = AutoTokenizer.from_pretrained(folder.root / "chat" / "model")
    turn = [{"role": "user", "content": "¿Sí?"}]
    expected = "<|user|>\n¿Sí?\n<|assistant|>\n"
    assert saved.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) == expected
    folder.run("other", on="bare", method="full", template=MARKED)
    assert AutoTokenizer.from_pretrained(folder.root / "other" / "model").chat_template == MARKED


def test_what_one_set_holds_out_is_not_learned_from_another(folder: Folder) -> None:
    held_out = [json.loads(line) for line in (folder.root / "dudas" / "held_out.jsonl").read_text("utf-8").splitlines()]
    other = [{"role": "user", "content": "¿Otra cosa?"}, {"role": "assistant", "content": "No."}]
    shared = [{"messages": row["messages"]} for row in held_out]
    folder.conversations("otras", [*shared, {"messages": other}, {"messages": [*other, *DIALOGUES[0].messages]}])
    trained = (folder.root / "otras" / "train.jsonl").read_text("utf-8")
    twice = sum(json.dumps(row["messages"], ensure_ascii=False) in trained for row in held_out)
    assert twice >= 2
    settings = SftConfig(kind="sft", conversations=["dudas", "otras"], epochs=1.0, precision="fp32")
    inputs = {f"conversations:{name}": folder.root / name for name in ("dudas", "otras")}
    report = SFT.run(folder.context("chat", settings, inputs | {"model": folder.root / "base"}))
    assert report.counts["conversations that another set holds out"] == twice
    assert set(report.facts["after"]) == {"dudas", "otras"}


def test_a_template_that_never_ends_a_turn_is_refused(folder: Folder) -> None:
    with pytest.raises(ModelError, match="would never stop"):
        folder.run("chat", template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")


def test_nothing_to_learn_is_a_data_error_with_the_reasons(folder: Folder) -> None:
    with pytest.raises(DataError, match=r"of training can be used: . conversations with no whole answer"):
        folder.run("chat", length=12)
    picky = "{% for m in messages %}{{ raise_exception('no, gracias') if m.content|length > 1 }}"
    with pytest.raises(DataError, match=r"refused by the model's template; the first: .*no, gracias"):
        folder.run("chat", template=picky + "{{ m.content + eos_token }}{% endfor %}")


@pytest.mark.parametrize(
    ("stage", "sets", "message"),
    [
        ({}, {"otras": {"path": "o.jsonl"}}, "names 'dudas', which is not in `conversations`; known: otras"),
        ({}, {"dudas": {"path": "d.jsonl", "held_out": 1}}, "all of which is held out"),
        ({"method": "full", "merge": True}, {"dudas": {"path": "d.jsonl"}}, "go with `method: lora`"),
        ({}, {"dudas": {"path": "d.jsonl", "prompt": "a"}}, "`prompt` and `completion` go together"),
        ({}, {"dudas": {"path": "d.jsonl", "system": "a"}}, "`system` goes with"),
    ],
)
def test_impossible_recipes_are_refused(stage: dict[str, Any], sets: dict[str, Any], message: str) -> None:
    stages = {"chat": {"kind": "sft", "conversations": ["dudas"]} | stage}
    with pytest.raises(ConfigError, match=message):
        validate(Recipe, {"recipe": "r", "base": "b", "conversations": sets, "stages": stages}, source="t")
