"""What is measured of a policy: judges' scores, the distance from its start, its agreement with held-out pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from judged import Folder
from support import tiny_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from quilate.data.sampling import draw
from quilate.files import read_json, read_jsonl, write_text
from quilate.models.heads import divide
from quilate.models.load import load_causal, load_tokenizer
from quilate.models.reward import load_reward_model
from quilate.models.token_values import TokenValues
from quilate.phases.align.assay import ASSAY, completion_kl, model_rewards
from quilate.phases.align.preferences import stored_preferences
from quilate.phases.align.rollouts import Completions, prompts_of_judgements
from quilate.phases.stage import StageReport, write_model_note
from quilate.tokenization.chat import ChatTemplate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Folder:
    """With a judge, and a policy that was aligned and now has everything measured."""
    made = Folder(tmp_path_factory.mktemp("ensayo"), llama_directory)
    made.stage("reward", "juez", epochs=2)
    made.stage("dpo", "alineado", lr=5e-3)
    write_text(made.root / "reglas.yaml", "rules:\n  - {name: vocal, pattern: '[aeiou]', score: 1.0}\n"
               "  - {name: siempre, pattern: '', score: 0.5}\n")  # fmt: skip
    return made


def assayed(
    folder: Folder, name: str, *, on: str, start: str | None, **keys: Any
) -> tuple[StageReport, list[dict[str, Any]]]:
    judges = {"juez": {"kind": "stage", "on": "juez"}, "reglas": {"kind": "rules", "path": "reglas.yaml"}}
    value = {
        "preferences": ["gustos"], "judges": judges, "precision": "fp32", "max_new_tokens": 8, "max_prompts": 6,
        "micro_batch_tokens": 400, "length": 128,
    } | keys  # fmt: skip
    inputs = {
        "model": folder.root / on,
        "preferences:gustos": folder.root / "gustos",
        "reward:juez": folder.root / "juez",
    }
    report = folder.run(ASSAY, name, value, inputs | ({"start": folder.root / start} if start else {}))
    return report, read_jsonl(folder.root / name / "completions.jsonl")


def test_an_aligned_model_and_its_start_answer_the_same_prompts(folder: Folder) -> None:
    aligned, rows = assayed(folder, "ensayo", on="alineado", start="base")
    plain, plain_rows = assayed(folder, "ensayo-base", on="base", start=None)
    assert [row["id"] for row in rows] == [row["id"] for row in plain_rows] and len(rows) == 6
    assert plain.facts["kl"] is None and aligned.facts["kl"] > 0
    assert aligned.facts["pairs"]["gustos"]["accuracy"]["estimate"] >= 0.9  # what it learned
    assert aligned.counts["prompts beyond max_prompts"] > 0
    for row in rows:
        vowel = any(letter in row["completion"] for letter in "aeiou")
        assert row["scores"]["reglas"] == 0.5 + vowel
    mean = sum(row["scores"]["juez"] for row in rows) / len(rows)
    assert aligned.facts["judges"]["juez"] == pytest.approx(mean, abs=1e-4)


def test_which_prompts_are_asked_does_not_depend_on_a_models_template(folder: Folder, llama_directory: Path) -> None:
    """Each model asks in its own words, and all must be asked the same."""
    template = ChatTemplate(load_tokenizer(llama_directory), name="t")
    stored = stored_preferences(folder.root / "gustos", "held_out")
    chat, text = (prompts_of_judgements(stored, template, form, limit=384)[0] for form in ("chat", "text"))
    assert [p.tokens for p in chat] != [p.tokens for p in text]
    drawn = [{p.id for p in draw(prompts, 6, lambda prompt: prompt.asked)} for prompts in (chat, text)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 6 < len(chat)


def test_an_ilql_policy_writes_by_its_values(folder: Folder, llama_directory: Path) -> None:
    """One token is worth far more than all others: it is written again and again, unless the values do not count."""
    place = folder.root / "valores"
    place.mkdir()
    write_model_note(place, llama_directory)
    model = load_causal(llama_directory, dtype=torch.float32)
    head = divide(model).head
    values = TokenValues(head.weight.shape[1], head.weight.shape[0])
    [token] = load_tokenizer(llama_directory)("a", add_special_tokens=False).input_ids
    for q in values.q:
        q[2].bias.data[token] += 40.0
    values.save(place / "values")
    report, rows = assayed(folder, "ensayo-valores", on="valores", start="base")
    assert {row["completion"] for row in rows} == {"a" * 8}
    _, free = assayed(folder, "ensayo-sin", on="valores", start="base", ilql_beta=0.0)
    _, plain = assayed(folder, "ensayo-sin-nada", on="base", start=None)
    assert free == plain
    # 40 nats above all others the token is certain, so the KL is minus its log-probability without the values.
    template = ChatTemplate(load_tokenizer(llama_directory), name="t")
    prompts, _ = prompts_of_judgements(
        stored_preferences(folder.root / "gustos", "held_out"), template, "chat", limit=384
    )
    theirs = AutoModelForCausalLM.from_pretrained(llama_directory).double().eval()
    total = 0.0
    for prompt in draw(prompts, 6, lambda prompt: prompt.asked):
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([[*prompt.tokens, *[token] * 8]])).logits[0]
        total -= float(logits.log_softmax(-1)[len(prompt.tokens) - 1 : -1, token].sum())
    assert report.facts["kl"] == pytest.approx(total / 6, rel=1e-3)


def hand_written(llama: Path, folder: Folder) -> Completions:
    template = ChatTemplate(load_tokenizer(llama), name="t")
    prompts, _ = prompts_of_judgements(
        stored_preferences(folder.root / "gustos", "held_out"), template, "chat", limit=200
    )
    tokens = [template.tokenizer(text, add_special_tokens=False).input_ids for text in ("Sí.", "No lo sé aún", "a")]
    return Completions(prompts[:3], tokens, [True] * 3, ["Sí.", "No lo sé aún", "a"])


def test_the_distance_is_the_exact_kl_at_the_policys_own_states(folder: Folder, llama_directory: Path) -> None:
    """Against transformers alone, a row at a time, in float64."""
    written = hand_written(llama_directory, folder)
    other = tiny_llama(seed=9).eval()
    base = load_causal(llama_directory, dtype=torch.float32)
    measured = completion_kl(other, base, written, micro_batch_tokens=60)
    plain = AutoModelForCausalLM.from_pretrained(llama_directory).double().eval()
    theirs = tiny_llama(seed=9).double().eval()  # fresh: the other's attention was exchanged
    total = 0.0
    for prompt, tokens in zip(written.prompts, written.tokens, strict=True):
        ids = torch.tensor([[*prompt.tokens, *tokens]])
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0, len(prompt.tokens) - 1 : -1].log_softmax(-1) for m in (theirs, plain))
        total += float((p.exp() * (p - q)).sum())
    assert measured == pytest.approx(total / 3, rel=1e-3)


def test_a_judges_scores_are_what_transformers_reads_from_the_saved_model(
    folder: Folder, llama_directory: Path
) -> None:
    written = hand_written(llama_directory, folder)
    place = folder.root / "juez" / "model"
    ours = model_rewards(load_reward_model(place, dtype=torch.float32), written, micro_batch_tokens=60)
    judge = AutoModelForSequenceClassification.from_pretrained(place).eval()
    bias = read_json(place / "config.json")["reward_bias"]
    for row, (prompt, tokens) in enumerate(zip(written.prompts, written.tokens, strict=True)):
        with torch.no_grad():
            score = judge(input_ids=torch.tensor([[*prompt.tokens, *tokens]])).logits[0, 0]
        assert float(ours[row]) == pytest.approx(float(score) + bias, abs=1e-4)
