"""The reward stage: it learns a planted preference, and what it saves scores the same in plain transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from judged import BAD, GOOD, Folder, planted
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from quilate.data.preference_batches import PreferenceBatches, encode_prompts
from quilate.engine.interrupts import StopRequest
from quilate.engine.loop import optimizer_step
from quilate.errors import ConfigError, DataError, Interrupted
from quilate.models.load import load_causal, load_tokenizer
from quilate.models.reward import RewardModel, load_reward_model
from quilate.optim.adamw import AdamW
from quilate.phases.align.preferences import stored_preferences
from quilate.phases.align.reward import BradleyTerryLoss
from quilate.tokenization.chat import ChatTemplate


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_planted_preference_is_learned_and_length_alone_is_shown_beside_it(folder: Folder, method: str) -> None:
    lr = 3e-3 if method == "full" else 1e-2
    report = folder.stage("reward", "premio", method=method, lr=lr, epochs=4)
    held_out = report.facts["held_out"]["gustos"]
    assert held_out["accuracy"]["estimate"] >= 0.9
    assert held_out["length_only"]["estimate"] < 0.7
    assert report.facts["after"] == {"gustos": held_out["accuracy"]["estimate"]}
    assert any("by length alone" in note for note in folder.notes)
    assert (folder.root / "premio" / "adapter").exists() == (method == "lora")
    assert 0 < report.trainable_parameters <= report.facts["parameters"]


def test_the_saved_model_in_transformers(folder: Folder) -> None:
    report = folder.stage("reward", "premio", method="lora")
    place = folder.root / "premio" / "model"
    tokenizer = AutoTokenizer.from_pretrained(place)
    plain = AutoModelForSequenceClassification.from_pretrained(place).eval()
    ours = load_reward_model(place, dtype=torch.float32)
    prompts, _ = encode_prompts(
        stored_preferences(folder.root / "gustos", "train"), ChatTemplate(tokenizer, name="premio"), limit=128
    )
    better = []
    for prompt in prompts:
        texts = [
            tokenizer.apply_chat_template(
                [*judged.prompt, {"role": "assistant", "content": completion}], tokenize=False
            ).rstrip("\n")
            for judged in stored_preferences(folder.root / "gustos", "train")
            if judged.id == prompt.id
            for completion in judged.completions
        ]
        padded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            theirs = plain(**padded).logits[:, 0] + plain.config.reward_bias
            mine = [
                float(ours(torch.from_numpy(c.tokens)[None], torch.arange(len(c.tokens))[None], [len(c.tokens)]))
                for c in prompt.completions
            ]
        assert theirs.tolist() == pytest.approx(mine, abs=1e-4)
        better += [mine[pair.better] for pair in prompt.pairs]
    # No demonstration is among them: the preferred completions stand for demonstrations, and average 0.
    assert report.facts["bias_from"] == f"{len(better)} preferred completions"
    assert sum(better) / len(better) == pytest.approx(0, abs=1e-4)


def test_demonstrations_average_zero(folder: Folder) -> None:
    rows = [{"prompt": r["prompt"], "output": BAD, "correction": f"{GOOD} {n}"} for n, r in enumerate(planted(12))]
    folder.judgements("corregidos", rows)
    report = folder.stage("reward", "premio", preferences=["corregidos"], epochs=1)
    assert report.facts["bias_from"] == f"{report.facts['train_rows']} demonstrations"


def test_rankings_are_one_batch_element_each_and_weigh_the_same(folder: Folder) -> None:
    """The loss of a step is eq. 1 of InstructGPT over its prompts, however it is divided into micro-batches."""
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"Ordena {n}",
            "completions": [f"{n} {'muy ' * k}bien" for k in range(2 + n)],
            "ranks": [*range(2 + n)],
        }
        for n in range(4)
    ]
    folder.judgements("orden", rows)
    base = next(iter((folder.root / "base").glob("model.json")))
    assert base.exists()
    from quilate.phases.stage import model_of

    directory = model_of(folder.root / "base")
    prompts, _ = encode_prompts(
        [p for part in ("train", "held_out") for p in stored_preferences(folder.root / "orden", part)],  # type: ignore[arg-type]
        ChatTemplate(load_tokenizer(directory), name="t"),
        limit=200,
    )
    results = []
    for micro_batch_tokens in (10_000, 1):
        model = RewardModel.on(load_causal(directory, dtype=torch.float32), torch.Generator().manual_seed(1))
        optimizer = AdamW(model.named_parameters())
        batches = PreferenceBatches(prompts, batch_size=4, epochs=1, seed=0, micro_batch_tokens=micro_batch_tokens)
        with torch.no_grad():
            scores = {
                c.id: float(model(torch.from_numpy(c.tokens)[None], torch.arange(len(c.tokens))[None], [len(c.tokens)]))
                for p in prompts
                for c in p.completions
            }
        result = optimizer_step(batches[0], BradleyTerryLoss(model), optimizer, learning_rate=0.0, clip_norm=1.0)
        results.append((result.loss, result.gradient_norm))
        by_prompt = [
            [
                -torch.nn.functional.logsigmoid(
                    torch.tensor(scores[p.completions[pair.better].id] - scores[p.completions[pair.worse].id])
                ).item()
                for pair in p.pairs
            ]
            for p in prompts
        ]
        assert sorted(map(len, by_prompt)) == [1, 3, 6, 10]
        assert result.loss == pytest.approx(sum(sum(losses) / len(losses) for losses in by_prompt) / 4, abs=1e-5)
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_stopped_stage_continues_to_the_same_files(folder: Folder) -> None:
    settings = {"method": "lora", "epochs": 1}
    whole = folder.stage("reward", "entero", **settings)
    stop = StopRequest()
    stop.signal = "SIGTERM"
    for _ in range(2):
        with pytest.raises(Interrupted):
            folder.stage("reward", "parado", stop=stop, **settings)
    resumed = folder.stage("reward", "parado", **settings)
    assert resumed == whole
    for name in ("model/model.safetensors", "model/config.json", "metrics.jsonl"):
        assert (folder.root / "parado" / name).read_bytes() == (folder.root / "entero" / name).read_bytes()


def test_what_one_set_holds_out_is_not_learned_from_another(folder: Folder) -> None:
    folder.judgements("ajenos", planted()[:10], held_out=1)
    both = {"preferences:ajenos": folder.root / "ajenos"}
    alone = folder.stage("reward", "solo", epochs=1)
    report = folder.stage("reward", "premio", epochs=1, inputs=both)
    left_out = report.counts["prompts that another set holds out"]
    assert left_out > 0 and report.facts["train_rows"] == alone.facts["train_rows"] - left_out
    assert set(report.facts["held_out"]) == {"gustos", "ajenos"}


def test_labels_alone_cannot_train_a_reward_model(folder: Folder) -> None:
    rows = [{"prompt": f"Pregunta {n}", "completion": "sí", "label": True} for n in range(9)]
    folder.judgements("etiquetas", rows)
    with pytest.raises(DataError, match="no judgement of the kind"):
        folder.stage("reward", "premio", preferences=["etiquetas"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "full", "lora": {"rank": 4}}, "`lora` settings go with"),
        ({"lora": {"dropout": 0.1}}, "must be 0 here"),
        ({"preferences": []}, "at least 1 item"),
    ],
)
def test_settings_that_cannot_work(folder: Folder, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folder.stage("reward", "premio", **keys)
