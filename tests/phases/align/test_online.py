"""PPO, GRPO and RLOO: that they learn, and the places where implementations go wrong without a word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from judged import Folder
from online_support import ALWAYS, SYLLABLES, asked, context, online, run

from quilate.cli.display import describe
from quilate.config import validate
from quilate.engine.interrupts import StopRequest
from quilate.engine.loop import optimizer_step
from quilate.engine.runlog import Progress, read_metrics
from quilate.errors import ConfigError, DataError, Interrupted
from quilate.files import read_jsonl
from quilate.optim.adamw import AdamW
from quilate.phases.align.experience import Experience, OnlineBatches, PolicyPart, TextPart, ValuePart, plan_iterations
from quilate.phases.align.grpo import GrpoConfig, grpo
from quilate.phases.align.online import OnlineLoss, alarm, explorer, health, learn, plan, start
from quilate.phases.align.outcomes import changes
from quilate.phases.align.ppo import PpoConfig, TextMix, TextPieces, ppo
from quilate.phases.align.rollouts import Completions, Rollouts, assess, mask_of
from quilate.phases.align.scoring import Scores
from quilate.recipe.kinds import stage_kind

BANDITS = [
    ("ppo", {"value_weight": 1.0}),
    ("grpo", {"scale": False}),
    ("grpo", {"advantage": "rloo"}),
]


def of_its_half(prompts: list[str], texts: list[str]) -> list[float]:
    """1 for a letter of the alphabet's first half after "a", of its second after "o"."""
    halves = {"a": "abcdefghijklm", "o": "nopqrstuvwxyz"}
    return [float(text[:1] in tuple(halves[prompt])) for prompt, text in zip(prompts, texts, strict=True)]


@pytest.mark.parametrize(("kind", "keys"), BANDITS)
def test_a_contextual_bandit_is_solved(folder: Folder, kind: str, keys: dict[str, Any]) -> None:
    """One token is written; which ones earn 1, and not 0, depends on the prompt. The optimum is 1.

    Every weight is trained: an adapter alone cannot make a random model sure of anything, its head is too small.
    """
    folder.judgements("gustos", [{"prompt": "a"}, {"prompt": "o"}], held_out=0.0)
    source = {"kind": "function", "path": "mitades.py:of_its_half"}
    bandit = {
        "max_new_tokens": 1, "missing_end": None, "rewards": {"mitad": source}, "beta": 0.0, "lr": 1e-2,
        "method": "full", "epochs": 30, "prompts_per_iteration": 2, "completions_per_prompt": 40, "batch_size": 80,
    }  # fmt: skip
    place = context(folder, kind, "bandido", **bandit | keys)
    part = start(place, value=kind == "ppo", functions={"mitad": of_its_half})
    learn(part, ppo(place.config) if kind == "ppo" else grpo(place.config))
    rows = read_jsonl(place.folder / "rollouts.jsonl")
    assert rows[0]["rewards"]["mitad"] < 0.5 and rows[0]["kl"] == 0
    assert sum(row["rewards"]["mitad"] for row in rows[-3:]) / 3 > 0.95


def test_a_question_asked_of_something_else_is_another_one(folder: Folder) -> None:
    """ "Why?" is held out behind one question and learned behind others; only what is asked alike is left out."""

    def asked_why(about: str) -> dict[str, Any]:
        turns = [("user", about), ("assistant", "si"), ("user", "why")]
        prompt = [{"role": role, "content": text} for role, text in turns]
        return {"prompt": prompt, "chosen": "no", "rejected": "ni"}

    folder.judgements("gustos", [asked_why(about) for about in ("al", "em", "on")], held_out=0.0)
    folder.judgements("ajenos", [asked_why(about) for about in ("al", "ur")], held_out=1)
    both = {"preferences:ajenos": folder.root / "ajenos"}
    part = online(folder, "grpo", preferences=["gustos", "ajenos"], inputs=both)
    assert sorted(prompt.asked.split()[0] for prompt in part.prompts) == ["em", "on"]
    assert part.counts["prompts that another set holds out"] == 1


def parts_of_first_step(folder: Folder, kind: str, **keys: Any) -> tuple[OnlineLoss, list[Any], Any]:
    part = online(asked(folder), kind, **keys)
    method = ppo(part.config) if isinstance(part.config, PpoConfig) else grpo(part.config)  # type: ignore[arg-type]
    iterations, _ = plan(part, 0)
    batches = OnlineBatches(
        part.context.folder, part.prompts, iterations, explorer(part, method), micro_batch_tokens=25, settings={}
    )
    return OnlineLoss(part.roles, method, part.config), batches[0], part


def test_the_first_ratio_is_one_at_any_temperature(folder: Folder) -> None:
    """Else something was on that is now off: dropout, an adapter, a temperature (Huang et al. 2024)."""
    loss, batch, part = parts_of_first_step(folder, "ppo", temperature=0.6)
    assert sum(isinstance(p, PolicyPart) for p in batch) > 1 and any(isinstance(p, ValuePart) for p in batch)
    trained = AdamW(part.roles.trained.named_parameters())
    result = optimizer_step(batch, loss, trained, learning_rate=0.0, clip_norm=1.0)
    seen = loss.measured()
    assert result.gradient_norm > 0 and seen["clipped"] == 0 and abs(seen["moved"]) < 1e-6
    # Ratios of 1 make the policy's loss the mean advantage, negated.
    advantages = torch.cat([p.advantages for p in batch if isinstance(p, PolicyPart)])
    assert seen["policy_loss"] == pytest.approx(-float(advantages.mean()), abs=1e-5)
    assert loss.measured() == {}


def made_up(lengths: list[int], *, padding: int = 0, values: bool = True) -> Rollouts:
    """Rollouts whose numbers do not depend on the padding; NaN stands in it."""
    mask = torch.nn.functional.pad(mask_of([[0] * n for n in lengths]), (0, padding))

    def numbers(seed: int) -> torch.Tensor:
        whole = torch.randn(len(lengths), 50, generator=torch.Generator().manual_seed(seed))
        return torch.where(mask, whole[:, : mask.shape[1]], torch.nan)

    written = Completions([], [[0] * n for n in lengths], [True] * len(lengths), [""] * len(lengths))
    return Rollouts(written, numbers(1), numbers(2), numbers(3) if values else None, mask, {})


def settings(kind: Any, **keys: Any) -> Any:
    value = {"kind": kind.model_fields["kind"].annotation.__args__[0], "preferences": ["x"], "rewards": ALWAYS}
    return validate(kind, value | keys, source="t")


def test_padding_counts_for_nothing() -> None:
    """trlX whitens over padding too."""
    method = ppo(settings(PpoConfig))
    scores = Scores(torch.tensor([1.0, -2.0, 0.5]))
    narrow, wide = made_up([4, 7, 1]), made_up([4, 7, 1], padding=9)
    advantages, returns = method.advantages(narrow, scores, 0.1)
    for ours, padded in zip((advantages, returns), method.advantages(wide, scores, 0.1), strict=True):
        torch.testing.assert_close(padded[:, :7], ours)
        assert not padded[:, 7:].any()
    inside = advantages[narrow.mask]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-6)
    assert float(inside.var(correction=0)) == pytest.approx(1, abs=1e-4)


def test_without_discount_or_bootstrap_returns_are_what_is_still_to_come() -> None:
    """The score at the last token, the KL's price at every one: with gamma = lambda = 1 a closed form."""
    method = ppo(settings(PpoConfig, lam=1.0))
    rollouts, scores, beta = made_up([3, 5]), torch.tensor([2.0, -1.0]), 0.3
    _, returns = method.advantages(rollouts, Scores(scores), beta)
    for row, length in enumerate([3, 5]):
        kl = (rollouts.log_probs - rollouts.reference)[row, :length].double()
        expected = [float(scores[row]) - beta * float(kl[t:].sum()) for t in range(length)]
        assert returns[row, :length].tolist() == pytest.approx(expected, abs=1e-5)


def test_scores_of_single_tokens_stand_where_they_were_given() -> None:
    """Of what a completion is worth, the share of its tokens goes to them and the rest to the last."""
    method = ppo(settings(PpoConfig, lam=1.0))
    rollouts, by_token = made_up([2, 3]), torch.tensor([[0.5, 0.25, 0.0], [0.0, 0.0, 0.0]])
    _, returns = method.advantages(rollouts, Scores(torch.tensor([1.75, 2.0]), by_token=by_token), 0.0)
    assert returns[0, :2].tolist() == pytest.approx([1.75, 1.25], abs=1e-6)
    assert returns[1].tolist() == pytest.approx([2, 2, 2], abs=1e-6)


def test_groups_are_compared_within_a_prompt() -> None:
    rollouts = made_up([2, 3, 1, 2], values=False)
    scores = torch.tensor([1.0, 3.0, 5.0, 5.0])
    advantages, returns = grpo(settings(GrpoConfig, completions_per_prompt=2)).advantages(rollouts, Scores(scores), 9.0)
    assert returns.numel() == 0
    deviation = 2**0.5 + 1e-4
    assert advantages[:, 0].tolist() == pytest.approx([-1 / deviation, 1 / deviation, 0, 0], abs=1e-5)
    assert torch.equal(advantages != 0, rollouts.mask & (advantages[:, :1] != 0))
    beta = 0.5
    kl = torch.where(rollouts.mask, rollouts.log_probs - rollouts.reference, 0.0).sum(1)
    priced = scores - beta * kl
    each, _ = grpo(settings(GrpoConfig, completions_per_prompt=2, advantage="rloo")).advantages(
        rollouts, Scores(scores), beta
    )
    assert float(each[0, 0]) == pytest.approx(float(priced[0] - priced[1]), abs=1e-5)


def test_a_missing_end_replaces_the_score_or_is_subtracted(folder: Folder) -> None:
    part = online(asked(folder), "grpo")
    rollouts = part.rollouts(part.prompts[:3], "a")
    written = replace(rollouts.completions, ended=[True, False, True])
    rollouts = replace(rollouts, completions=written)
    scores = part.scores(rollouts)
    assert scores.total.tolist() == [1, -1, 1]
    assert scores.parts["todo/todo"].tolist() == [1, 1, 1]  # shown as it was given
    subtracting = online(folder, "grpo", "resta", missing_end=-0.5, missing_end_subtracts=True)
    assert subtracting.scores(rollouts).total.tolist() == [1, 0.5, 1]
    leaving = online(folder, "grpo", "deja", missing_end=None)
    assert leaving.scores(rollouts).total.tolist() == [1, 1, 1]


def test_a_completion_ends_at_its_stop_token_or_its_length(folder: Folder) -> None:
    part = online(asked(folder), "grpo", max_new_tokens=3)
    prompts = part.prompts[:8]
    free = part.rollouts(prompts, "a").completions
    common = free.tokens[0][0]
    part.writer = replace(part.writer, stop=frozenset({common}))
    stopped = part.rollouts(prompts, "a")
    for before, tokens, ended in zip(free.tokens, stopped.completions.tokens, stopped.completions.ended, strict=True):
        expected = before[: before.index(common) + 1] if common in before else before
        assert tokens == expected and ended == (common in before)  # the end itself is a token to learn
    assert stopped.mask.sum(1).tolist() == [len(tokens) for tokens in stopped.completions.tokens]
    assert stopped.completions.ended[0] and len(stopped.completions.tokens[0]) == 1


def test_one_step_an_iteration_learns_the_same_without_asking_the_policy_again(folder: Folder) -> None:
    """The policy that learns is the one that wrote: its ratio is 1, and what sampling kept serves everything else."""
    keys = {"passes": 1, "batch_size": 20, "max_new_tokens": 5, "advantage": "rloo", "beta": 0.3, "temperature": 0.7}
    loss, batch, part = parts_of_first_step(folder, "grpo", **keys)
    assert {p.old_log_probs for p in batch} == {None} and len(batch) > 1
    rollouts = part.rollouts([part.prompts[i] for i in (0, 0, 3)], "x", ask_policy=False)
    again = assess(part.roles, rollouts.completions, 0.7, 2000)
    torch.testing.assert_close(rollouts.log_probs, again.log_probs, rtol=1e-4, atol=1e-4)
    assert rollouts.gap is None and again.gap is not None and 0 < again.gap < 1e-4
    (row,) = [r for r in read_jsonl(part.context.folder / "rollouts.jsonl") if r["iteration"] == 0]
    assert row["gap"] is None and abs(row["kl"]) < 1e-3
    gradients = []
    for old in (None, [part.roles.policy.log_probs(p.packed, 0.7).detach() for p in batch]):
        parts = batch if old is None else [replace(p, old_log_probs=o) for p, o in zip(batch, old, strict=True)]
        part.roles.trained.zero_grad()
        for one in parts:
            loss(one).backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad.clone() for p in part.roles.trained.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_adaptive_controller_follows_the_last_iteration() -> None:
    method = ppo(settings(PpoConfig, kl_target=6.0, kl_horizon=100, beta=0.1))
    assert method.next_beta([]) == 0.1
    row = {"beta": 0.2, "kl": 60.0, "completions": 10}
    assert method.next_beta([row]) == pytest.approx(0.2 * 1.02)
    assert method.next_beta([row, row | {"kl": 0.0}]) == pytest.approx(0.2 * 0.98)
    assert ppo(settings(PpoConfig, beta=0.1)).next_beta([row]) == 0.1


def test_every_completion_is_learned_from_once_a_pass() -> None:
    iterations = plan_iterations(7, epochs=2, per_iteration=3, per_prompt=4, batch_size=5, passes=2, seed=1)
    assert [len(i.prompts) for i in iterations] == [12, 12, 12, 12, 8]
    assert [i.first_step for i in iterations] == [0, 6, 12, 18, 24]
    visits = [prompt for i in iterations for prompt in i.prompts[::4]]
    assert sorted(visits[:7]) == sorted(visits[7:]) == list(range(7))
    for iteration in iterations:
        seen = sorted(row for step in iteration.steps for row in step)
        assert seen == sorted(2 * list(range(len(iteration.prompts))))
        assert all(iteration.prompts[k] == iteration.prompts[k - k % 4] for k in range(len(iteration.prompts)))


def test_rollouts_come_back_from_disk_as_they_were(folder: Folder) -> None:
    _, first, part = parts_of_first_step(folder, "ppo")
    kept = Experience.read(part.context.folder / "rollouts" / "000000.safetensors")
    assert kept.log["completions"] == len(kept.prompts) and "explained_variance" in kept.log
    old = torch.cat([p.old_log_probs for p in first if isinstance(p, PolicyPart)])
    assert set(old.tolist()) <= set(kept.log_probs[kept.mask].tolist())


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_run_stopped_within_an_iteration_ends_with_the_same_bits(folder: Folder, kind: str) -> None:
    keys: dict[str, Any] = {"kl_target": 1.0, "kl_horizon": 50} if kind == "ppo" else {}
    whole = run(asked(folder), kind, "entero", **keys)
    stop = StopRequest()

    def interrupt(progress: Progress) -> None:
        stop.signal = "SIGTERM" if progress.done == 3 else None  # the second step of four of the first rollouts

    with pytest.raises(Interrupted):
        run(folder, kind, "parado", stop=stop, listener=interrupt, **keys)
    assert [path.stem for path in (folder.root / "parado" / "rollouts").iterdir()] == ["000000"]
    resumed = run(folder, kind, "parado", **keys)
    assert resumed == whole
    for name in ("model/adapter_model.safetensors", "metrics.jsonl", "rollouts.jsonl", "held-out-after.jsonl"):
        assert (folder.root / "parado" / name).read_bytes() == (folder.root / "entero" / name).read_bytes()
    shown = read_metrics(folder.root / "entero" / "metrics.jsonl")[0]
    assert {"policy_loss", "clipped", "moved"} <= set(shown) and ("value_loss" in shown) == (kind == "ppo")


def test_ppo_mixes_pretraining_text_by_its_weight(folder: Folder) -> None:
    part = online(asked(folder), "ppo", text={"corpora": ["c"], "pieces": 3, "length": 8})
    mix = TextMix(corpora=["c"], weight=5.0, pieces=3, length=8)
    texts = TextPieces(
        ["El mar está en calma.", "Otro texto, más largo que el primero."], part.template.tokenizer, mix, 1
    )
    assert [e.id for e in texts(0)[0]] == [e.id for e in texts(0)[0]] and len(texts(4)[0]) == 3
    method = ppo(part.config, texts)  # type: ignore[arg-type]
    iterations, _ = plan(part, 0)
    batches = OnlineBatches(
        part.context.folder, part.prompts, iterations, explorer(part, method), micro_batch_tokens=2000, texts=texts,
        settings={},
    )  # fmt: skip
    step = batches[0]
    weight = sum(p.weight for p in step)
    (text,) = [p for p in step if isinstance(p, TextPart)]
    loss = OnlineLoss(part.roles, method, part.config)(text)
    mean = -part.roles.policy.log_probs(text.packed, 1.0).mean()  # at temperature 1, whatever is sampled at
    assert float(loss.detach()) / weight == pytest.approx(5.0 * float(mean.detach()), rel=1e-5)


def test_the_token_budget_counts_the_pretraining_text_too(folder: Folder) -> None:
    tight = {"max_train_tokens": 3000, "prompts_per_iteration": 2, "batch_size": 2, "epochs": 3}
    part = online(asked(folder), "ppo", text={"corpora": ["c"], "pieces": 3, "length": 8}, **tight)
    alone, beside = (plan(part, tokens)[0] for tokens in (0, 24))
    longest = [sum(len(part.prompts[i].tokens) + part.config.max_new_tokens for i in one.prompts) for one in alone]
    assert 0 < len(beside) < len(alone)
    steps = sum(len(one.steps) for one in beside)
    assert 2 * sum(longest[: len(beside)]) * part.config.passes + 24 * steps <= 3000


def test_full_training_saves_a_plain_model(folder: Folder) -> None:
    report = run(asked(folder), "ppo", "entero", method="full", lr=1e-3, epochs=0.5)
    assert report.facts["parameters"] < report.trainable_parameters  # the policy and its value model
    assert (folder.root / "entero" / "model" / "config.json").exists()
    assert report.facts["held_out"]["gustos"]["after"]["score"]["items"] > 0
    assert stage_kind("ppo").name == "ppo"


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("ppo", {"preferences": []}, "there are no prompts"),
        ("ppo", {"lora": {"dropout": 0.1}}, "must be 0 here"),
        ("ppo", {"beta": 0.0, "kl_target": 6.0}, "must then begin above 0"),
        ("grpo", {"completions_per_prompt": 1}, "greater than or equal to 2"),
        ("grpo", {"advantage": "rloo", "scale": False}, "`scale` goes with"),
        ("grpo", {"missing_end": None, "missing_end_subtracts": True}, "needs a `missing_end`"),
        ("grpo", {"rewards": {}}, "at least 1 item"),
        ("grpo", {"rewards": {"a": {"kind": "answer", "extract": "sin grupo"}}}, "exactly one group"),
        ("grpo", {"max_new_tokens": 256}, "lower max_new_tokens"),
    ],
)
def test_settings_that_cannot_work(folder: Folder, kind: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        online(folder, kind, **keys)


def test_what_rules_forbid_is_counted_before_and_after_with_intervals(folder: Folder) -> None:
    """A rule that forbids "no" at -2 and one that wants "sí" at 1: shares of completions, and paired changes."""
    rows = [
        [
            {"set": "s", "id": str(n), "group": str(n // 2), "prompt": "p", "completion": "c", "score": a + b,
             "rewards": {"r/no": a, "r/sí": b}}
            for n, (a, b) in enumerate(values)
        ]
        for values in (
            [(-2.0, 0.0), (-2.0, 0.0), (-2.0, 1.0), (0.0, 1.0)],
            [(0.0, 1.0), (0.0, 1.0), (-2.0, 1.0), (0.0, 0.0)],
        )
    ]  # fmt: skip
    found = changes(rows[0], rows[1], {"r/no": -2.0, "r/sí": 1.0, "r/otra": 1.0})["s"]
    assert {rule: [found["rules"][rule][when]["mean"] for when in ("before", "after", "change")]
            for rule in found["rules"]} == {"r/no": [0.75, 0.25, -0.5], "r/sí": [0.5, 0.75, 0.25]}  # fmt: skip
    change = found["rules"]["r/no"]["change"]
    assert (change["low"], change["high"], change["groups"]) == (-1.0, 0.0, 2)
    assert found["change"]["mean"] == pytest.approx(1.25) and found["reward_changes"]["r/no"]["mean"] == 1.0
    report = run(asked(folder), "grpo", "conreglas")
    held_out = report.facts["held_out"]["gustos"]
    assert held_out["rules"]["todo/todo"]["after"]["mean"] == 1.0 and held_out["change"]["mean"] == 0.0
    assert 0 <= held_out["after"]["gap"] < 1e-4  # what was kept from sampling is what the policy says again
    assert any("rule todo/todo is found in 100.0% of completions before" in note for note in folder.notes)


def test_progress_tells_how_the_completions_are(folder: Folder) -> None:
    heard: list[Progress] = []
    report = run(asked(folder), "grpo", "sano", listener=heard.append)
    last = read_jsonl(folder.root / "sano" / "rollouts.jsonl")[-1]
    training = report.facts["training"]
    steps = read_metrics(folder.root / "sano" / "metrics.jsonl")
    assert training["iterations"] == len(read_jsonl(folder.root / "sano" / "rollouts.jsonl")) > 1
    assert training["last"]["score"] == pytest.approx(last["score"], abs=1e-4)
    of_it = [step["clipped"] for step in steps if step["step"] > last["step"]]
    assert len(of_it) > 1 and training["last"]["clipped"] == pytest.approx(sum(of_it) / len(of_it), abs=1e-4)
    assert last["sample"]["prompt"] in SYLLABLES and isinstance(last["sample"]["completion"], str)
    assert heard[-1].health == health(last) and "reward -0.90, KL" in describe(heard[-1])


def test_completions_that_grow_are_told_of_once(folder: Folder) -> None:
    place = context(asked(folder), "grpo", "larga")
    logs = [
        {"iteration": n, "kl": 0.0, "ended": 1.0, "gap": None, "tokens": float(t)}
        for n, t in enumerate((9, 15, 19, 25))
    ]
    folder.notes.clear()
    for n, log in enumerate(logs):
        alarm(place, log, logs[:n])
    [said] = folder.notes
    assert "iteration 3: completions have grown from 9 to 19 tokens" in said
    for key, value, words in (("kl", 60.0, "being gamed"), ("ended", 0.2, "only 20%"), ("gap", 0.5, "by 0.50 nats")):
        folder.notes.clear()
        wrong = logs[0] | {key: value, "iteration": 1}
        alarm(place, wrong, logs[:1])
        alarm(place, wrong | {"iteration": 2}, [logs[0], wrong])
        [said] = folder.notes
        assert words in said


def test_a_reward_that_fails_midway_costs_nothing_that_was_learned(folder: Folder) -> None:
    """It raises in the second iteration; asked again, the stage goes on from its checkpoint to the same files."""
    asked(folder)
    calls: list[int] = []

    def judge(prompts: list[str], texts: list[str]) -> list[float]:
        calls.append(len(texts))
        if len(calls) == 3 and name == "con":  # before training, in an iteration, and now
            raise ConnectionError("the judge is away")
        return [float("a" in text) for text in texts]

    def trained() -> None:
        source = {"juez": {"kind": "function", "path": "juez.py:judge"}}
        place = context(folder, "grpo", name, rewards=source, checkpoint_steps=1)
        part = start(place, value=False, functions={"juez": judge})
        learn(part, grpo(part.config))  # type: ignore[arg-type]

    name = "sin"
    trained()
    calls.clear()
    name = "con"
    with pytest.raises(DataError, match="raised ConnectionError: the judge is away"):
        trained()
    assert len(read_jsonl(folder.root / "con" / "rollouts.jsonl")) == 1
    assert read_jsonl(folder.root / "con" / "bad-reward.jsonl")
    trained()
    for file in ("metrics.jsonl", "rollouts.jsonl", "held-out-after.jsonl", "model/adapter_model.safetensors"):
        assert (folder.root / "con" / file).read_bytes() == (folder.root / "sin" / file).read_bytes()
