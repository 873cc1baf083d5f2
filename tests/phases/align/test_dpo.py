"""The dpo stage with each of its losses: what it learns, what its reference is, what it reports."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from judged import Folder, planted
from transformers import AutoModelForCausalLM

from quilate.config import validate
from quilate.data.packing import Example
from quilate.data.preference_batches import EncodedPrompt, PreferenceBatches, encode_prompts, with_mismatches
from quilate.engine.completions import CompletionLogProbs, by_document
from quilate.engine.interrupts import StopRequest
from quilate.engine.loop import optimizer_step
from quilate.errors import ConfigError, DataError, Interrupted
from quilate.files import read_json
from quilate.models.load import load_causal, load_tokenizer
from quilate.optim.adamw import AdamW
from quilate.phases.align.dpo import DpoConfig, PreferenceLoss
from quilate.phases.align.preferences import stored_preferences
from quilate.phases.align.training import measured_batches
from quilate.phases.stage import model_of
from quilate.tokenization.chat import ChatTemplate

REFERENCE = 1.4  # of another model as the reference: sharper, and so less likely to write these completions


def log_prob(model: torch.nn.Module, example: Example) -> tuple[float, int]:
    """log p(completion | prompt) by transformers alone, and the completion's tokens."""
    tokens = torch.from_numpy(example.tokens)
    with torch.no_grad():
        log_probs = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    wanted = torch.from_numpy(example.supervised[1:])
    return float(log_probs[wanted].sum()), int(wanted.sum())


def held_out(folder: Folder, name: str = "gustos") -> list[EncodedPrompt]:
    template = ChatTemplate(load_tokenizer(model_of(folder.root / "base")), name="t")
    prompts, _ = encode_prompts(stored_preferences(folder.root / name, "held_out"), template, limit=128)
    return prompts


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo"])
def test_every_loss_learns_a_planted_preference(folder: Folder, loss: str, method: str) -> None:
    report = folder.stage("dpo", "alineado", loss=loss, method=method, lr=1e-3 if method == "full" else 5e-3)
    measured = report.facts["held_out"]["gustos"]
    assert measured["implied_reward"]["accuracy"]["estimate"] >= 0.9
    assert measured["reward_margin"] > 0
    assert report.facts["kl_per_token"] > 0
    before, after = measured["log_prob"], report.facts
    assert before["better_before"] != before["better_after"] and set(after["before"]) == {"gustos"}


def test_what_is_reported_equals_transformers_on_the_saved_model(folder: Folder) -> None:
    report = folder.stage("dpo", "alineado", method="lora", lr=5e-3, epochs=1)
    base = AutoModelForCausalLM.from_pretrained(model_of(folder.root / "base")).eval()
    policy = peft.AutoPeftModelForCausalLM.from_pretrained(folder.root / "alineado" / "model").eval()
    margins, kl, tokens = [], 0.0, 0
    for prompt in held_out(folder):
        ratios = [log_prob(policy, c)[0] - log_prob(base, c)[0] for c in prompt.completions]
        margins += [0.1 * (ratios[pair.better] - ratios[pair.worse]) for pair in prompt.pairs]
        for c in prompt.completions:
            ids, wanted = torch.from_numpy(c.tokens)[None], torch.from_numpy(c.supervised[1:])
            with torch.no_grad():
                p, q = (m(input_ids=ids).logits[0, :-1][wanted].double().log_softmax(-1) for m in (policy, base))
            kl += float((p.exp() * (p - q)).sum())
            tokens += int(wanted.sum())
    measured = report.facts["held_out"]["gustos"]
    assert measured["reward_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)
    assert report.facts["kl_per_token"] == pytest.approx(kl / tokens, rel=1e-3)
    share = sum(margin > 0 for margin in margins) / len(margins)
    assert measured["implied_reward"]["accuracy"]["estimate"] == pytest.approx(share, abs=1e-4)


def test_with_lora_the_reference_is_the_base_with_the_adapter_off(folder: Folder) -> None:
    """One base in memory: what was asked before training is what the switched-off adapter still answers."""
    folder.stage("dpo", "alineado", method="lora", lr=5e-3, epochs=1)
    cached = read_json(folder.root / "alineado" / "reference.json")
    policy = peft.AutoPeftModelForCausalLM.from_pretrained(folder.root / "alineado" / "model").eval()
    for prompt in held_out(folder):
        for completion in prompt.completions:
            with policy.disable_adapter():
                assert cached[f"gustos:{completion.id}"] == pytest.approx(log_prob(policy, completion)[0], abs=1e-3)
            assert cached[f"gustos:{completion.id}"] != pytest.approx(log_prob(policy, completion)[0], abs=1e-3)


def test_a_stage_may_stand_on_an_adapter_which_is_then_part_of_its_reference(folder: Folder) -> None:
    folder.stage("dpo", "primero", method="lora", lr=5e-3, epochs=1)
    folder.stage("dpo", "segundo", on="primero", method="lora", lr=5e-3, epochs=1)
    first = peft.AutoPeftModelForCausalLM.from_pretrained(folder.root / "primero" / "model").eval()
    second = peft.AutoPeftModelForCausalLM.from_pretrained(folder.root / "segundo" / "model").eval()
    cached = read_json(folder.root / "segundo" / "reference.json")
    for completion in held_out(folder)[0].completions:
        wanted = log_prob(first, completion)[0]
        assert cached[f"gustos:{completion.id}"] == pytest.approx(wanted, abs=1e-3)
        with second.disable_adapter():
            assert log_prob(second, completion)[0] == pytest.approx(wanted, abs=1e-3)


def losses_of(folder: Folder, loss: str, micro_batch_tokens: int) -> tuple[float, float, PreferenceBatches]:
    """Loss and gradient norm of a first step against a reference that is another model."""
    directory = model_of(folder.root / "base")
    template = ChatTemplate(load_tokenizer(directory), name="t")
    judged = stored_preferences(folder.root / "gustos", "held_out")
    prompts, _ = encode_prompts(judged, template, limit=128)
    if loss == "kto":
        prompts = with_mismatches(judged, prompts, limit=128)
    value = {"kind": "dpo", "preferences": ["gustos"], "loss": loss, "beta": 0.2}
    policy, reference = (load_causal(directory, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(REFERENCE)
    everything = [
        *prompts,
        *(EncodedPrompt(p.mismatched.id, "", (p.mismatched,), (), (None,), ()) for p in prompts if p.mismatched),
    ]
    cached = by_document(CompletionLogProbs(reference), reference, measured_batches(everything, 500))
    batches = PreferenceBatches(prompts, batch_size=99, epochs=1, seed=0, micro_batch_tokens=micro_batch_tokens)
    function = PreferenceLoss(validate(DpoConfig, value, source="t"), CompletionLogProbs(policy), cached)
    step = optimizer_step(batches[0], function, AdamW(policy.named_parameters()), learning_rate=0.0, clip_norm=1.0)
    return step.loss, step.gradient_norm, batches


def test_the_token_budget_counts_mismatched_completions(folder: Folder) -> None:
    template = ChatTemplate(load_tokenizer(model_of(folder.root / "base")), name="t")
    judged = stored_preferences(folder.root / "gustos", "train")
    prompts = with_mismatches(judged, encode_prompts(judged, template, limit=128)[0], limit=128)
    batches = PreferenceBatches(prompts, batch_size=4, epochs=1, seed=0, micro_batch_tokens=500, max_tokens=1500)
    read = sum(part.tokens for step in range(len(batches)) for part in batches[step])
    assert batches.examples_left_out > 0 and 1000 < read <= 1500


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo"])
def test_a_steps_loss_is_the_formula_on_transformers_own_log_probabilities(folder: Folder, loss: str) -> None:
    """TRL's formulas by hand: DPO and KTO on sums, IPO and ORPO on means over the completion's tokens."""
    found, norm, batches = losses_of(folder, loss, 10_000)
    divided, divided_norm, again = losses_of(folder, loss, 200)
    assert len(again[0]) > 2
    assert (divided, divided_norm) == pytest.approx((found, norm), rel=1e-4)

    directory = model_of(folder.root / "base")
    policy, reference = (AutoModelForCausalLM.from_pretrained(directory).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(REFERENCE)

    def sums(example: Example) -> tuple[torch.Tensor, torch.Tensor, int]:
        (ours, count), (theirs, _) = log_prob(policy, example), log_prob(reference, example)
        return torch.tensor(ours).double(), torch.tensor(theirs).double(), count

    losses = []
    if loss == "kto":
        kl = (
            torch.stack([torch.sub(*sums(p.mismatched)[:2]) for p in batches.prompts if p.mismatched])
            .mean()
            .clamp(min=0)
        )
        assert kl > 0
        for prompt in batches.prompts:
            ratio = torch.sub(*sums(prompt.completions[0])[:2])
            losses.append(1 - torch.sigmoid(0.2 * (ratio - kl if prompt.desirable[0] else kl - ratio)))
    else:
        for prompt in batches.prompts:
            (b, rb, nb), (w, rw, nw) = (sums(prompt.completions[i]) for i in prompt.pairs[0][:2])
            if loss == "dpo":
                losses.append(-torch.nn.functional.logsigmoid(0.2 * ((b - rb) - (w - rw))))
            elif loss == "ipo":
                losses.append(((b - rb) / nb - (w - rw) / nw - 1 / 0.4) ** 2)
            else:
                b, w = b / nb, w / nw
                odds = (b - w) - (torch.log1p(-b.exp()) - torch.log1p(-w.exp()))
                losses.append(-b - 0.2 * torch.nn.functional.logsigmoid(odds))
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_a_stopped_stage_continues_to_the_same_files(folder: Folder) -> None:
    settings: dict[str, Any] = {"method": "lora", "epochs": 1, "loss": "kto", "batch_size": 20}
    whole = folder.stage("dpo", "entero", **settings)
    stop = StopRequest()
    stop.signal = "SIGTERM"
    for _ in range(3):
        with pytest.raises(Interrupted):
            folder.stage("dpo", "parado", stop=stop, **settings)
        stop.signal = None if (folder.root / "parado" / "reference.json").exists() else stop.signal
        if stop.signal is None:
            break
    resumed = folder.stage("dpo", "parado", **settings)
    assert resumed == whole
    for name in ("model/adapter_model.safetensors", "metrics.jsonl", "reference.json"):
        assert (folder.root / "parado" / name).read_bytes() == (folder.root / "entero" / name).read_bytes()


def test_labels_alone_train_kto_and_nothing_else(folder: Folder) -> None:
    rows = [
        {"prompt": r["prompt"], "completion": r[which], "label": which == "chosen"}
        for n, r in enumerate(planted(16))
        for which in [("chosen", "rejected")[n % 2]]
    ]
    folder.judgements("etiquetas", rows)
    report = folder.stage("dpo", "alineado", preferences=["etiquetas"], loss="kto", epochs=1)
    assert report.facts["train_rows"] > 0 and report.facts["held_out"] == {} and report.facts["kl_per_token"] is None
    with pytest.raises(DataError, match="no judgement of the kind"):
        folder.stage("dpo", "otro", preferences=["etiquetas"], loss="dpo")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "`label_smoothing` goes with"),
        ({"desirable_weight": 2.0}, "go with `loss: kto`"),
        ({"loss": "kto", "batch_size": 1}, "must be 2 or more"),
        ({"loss": "simpo"}, "Input should be 'dpo', 'ipo', 'kto' or 'orpo'"),
    ],
)
def test_settings_that_cannot_work(folder: Folder, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folder.stage("dpo", "alineado", **keys)
