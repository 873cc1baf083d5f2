"""Cloning and ILQL from a reward-labelled data set, on a maze whose best path was rarely walked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from judged import Folder

from quilate.config import validate
from quilate.data.packing import pack
from quilate.data.preferences import read_preferences
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress, read_metrics
from quilate.errors import ConfigError, DataError, Interrupted, ModelError
from quilate.files import read_jsonl
from quilate.models.encoder import DocumentEncoder
from quilate.models.heads import divide
from quilate.models.load import load_causal
from quilate.models.token_values import GuidedHead, TokenValues, load_token_values
from quilate.objectives.ilql import ilql_losses
from quilate.phases.align.cloning import CloningConfig, best_of, clone, weights_of
from quilate.phases.align.ilql import IlqlConfig, IlqlLoss, learn_values
from quilate.phases.align.offline import start_offline
from quilate.phases.stage import StageContext, StageReport
from quilate.recipe.kinds import stage_kind

SETTINGS: dict[str, Any] = {
    "preferences": ["puntos"], "format": "text", "method": "full", "precision": "fp32", "lr": 1e-2, "decay": "constant",
    "warmup": 0.0, "batch_size": 20, "epochs": 1, "max_new_tokens": 4, "micro_batch_tokens": 2000,
}  # fmt: skip

# From p: two steps, then the end. "xb" and "ya" were walked and earned little; "xa" earns most and was walked rarely.
MAZE = [("p", "xb", 0.0)] * 10 + [("p", "ya", 0.0)] * 10 + [("p", "xa", 1.0)] * 2 + [("q", "ya", 0.0)] * 2


@pytest.fixture
def maze(folder: Folder) -> Folder:
    rows = [{"prompt": p, "completion": c, "reward": r} for p, c, r in MAZE]
    folder.judgements("puntos", rows, held_out=0.0)
    return folder


def context(folder: Folder, kind: str, name: str, **keys: Any) -> StageContext[Any]:
    place = folder.root / name
    place.mkdir(exist_ok=True)
    extra = {key: keys.pop(key) for key in ("stop", "listener") if key in keys}
    config = validate(stage_kind(kind).config, {"kind": kind} | SETTINGS | keys, source="t")
    inputs = {"model": folder.root / "base", "preferences:puntos": folder.root / "puntos"}
    stop, listener = extra.get("stop", StopRequest()), extra.get("listener", lambda _: None)
    return StageContext(config, inputs, place, 3, folder.root, listener, folder.notes.append, stop)


def run(folder: Folder, kind: str, name: str, **keys: Any) -> StageReport:
    return stage_kind(kind).run(context(folder, kind, name, **keys))


def arrives(prompts: list[str], texts: list[str]) -> list[float]:
    return [float(text == "xa") for text in texts]


def by_function(function: str = "arrives") -> dict[str, Any]:
    return {"rewards": {"llega": {"kind": "function", "path": f"maze.py:{function}"}}, "measure_training": 20}


def test_a_repeated_completion_counts_as_often(maze: Folder) -> None:
    offline = start_offline(context(maze, "cloning", "muestras"))
    assert Counter(sample.reward for sample in offline.samples) == {0.0: 22, 1.0: 2}
    example = offline.samples[0].example
    tokenizer = offline.template.tokenizer
    assert tokenizer.decode(example.tokens[~example.supervised]) == "p"
    learned = example.tokens[example.supervised]
    assert tokenizer.decode(learned[:-1]) == "xb" and learned[-1] == tokenizer.eos_token_id


def test_in_a_chat_the_end_of_the_turn_is_learned(maze: Folder) -> None:
    offline = start_offline(context(maze, "cloning", "charla", format="chat"))
    example = offline.samples[0].example
    text = offline.template.tokenizer.decode(example.tokens)
    assert text.endswith("xb<|im_end|>") and example.supervised[-1] and not example.supervised[0]


def test_what_cannot_be_used_is_counted(maze: Folder) -> None:
    rows = [{"prompt": "p", "completion": "xb" * 40, "reward": 1.0}, {"prompt": "p", "completion": "xa", "reward": 1.0}]
    maze.judgements("puntos", rows, held_out=0.0)
    assert start_offline(context(maze, "ilql", "largas", length=10)).counts == {"completions too long": 1}
    maze.judgements("puntos", [{"prompt": "p", "chosen": "xa", "rejected": "xb"}], held_out=0.0)
    with pytest.raises(DataError, match="2 completions without a reward"):
        start_offline(context(maze, "ilql", "ninguna"))
    with pytest.raises(ConfigError, match="needs `rewards`"):
        context(maze, "cloning", "nada", measure_training=1)


def test_weights_by_reward() -> None:
    rewards = np.array([0.0, 0.0, 0.0, 2.0])
    weights = weights_of(rewards, 1.0)
    z = (rewards - 0.5) / np.std(rewards)
    assert weights.tolist() == pytest.approx((np.exp(z) / np.exp(z).mean()).tolist())
    assert weights_of(rewards, None).tolist() == weights_of(np.ones(4), 1.0).tolist() == [1] * 4
    clipped = weights_of(rewards, 0.01)
    assert clipped[3] / 20 == pytest.approx(1 / 5) and clipped.mean() == pytest.approx(1)


def test_the_best_share_keeps_ties(maze: Folder) -> None:
    samples = start_offline(context(maze, "cloning", "mejores")).samples
    assert [s.reward for s in best_of(samples, 0.01)] == [1.0, 1.0]
    assert len(best_of(samples, 0.5)) == len(samples)


def test_cloning_the_best_walks_as_they_did(maze: Folder) -> None:
    place = context(maze, "cloning", "clon", best=0.05, epochs=30, **by_function())
    report = clone(start_offline(place, {"llega": arrives}))
    assert report.facts["before"]["puntos (training)"] < 0.1
    found = report.facts["held_out"]["puntos (training)"]["after"]["score"]
    assert found["items"] == 40 and found["groups"] == 2
    assert report.counts["completions not among the best"] == 22
    rows = read_jsonl(place.folder / "held-out-after.jsonl")
    assert {row["prompt"] for row in rows} == {"p", "q"}
    walked = [row for row in rows if row["prompt"] == "p"]
    assert sum(row["completion"] == "xa" for row in walked) > 0.9 * len(walked)


def test_without_rewards_to_measure_by_the_loss_is(maze: Folder) -> None:
    rows = [{"prompt": f"p{n}", "completion": "xa", "reward": 1.0} for n in range(10)]
    maze.judgements("puntos", rows, held_out=0.3)
    report = run(maze, "cloning", "pérdida", epochs=10)
    assert report.facts["measure"] == "nats per completion token"
    assert report.facts["after"]["puntos"] < 0.5 * report.facts["before"]["puntos"]


def test_the_values_find_the_best_walk_and_the_language_model_does_not(maze: Folder) -> None:
    place = context(maze, "ilql", "valores", epochs=40, tau=0.9, gamma=1.0, betas=[0.0, 4.0], awac=1.0, **by_function())
    report = learn_values(start_offline(place, {"llega": arrives}))
    plain, guided = (report.facts["after"][f"puntos (training), beta {beta}"] for beta in (0, 4))
    assert guided > 0.4 > 0.25 > plain  # one of two prompts leads there; a tenth of the walks that begin there went so
    assert {"q_loss", "value_loss", "cql_loss", "awac_loss"} <= set(read_metrics(place.folder / "metrics.jsonl")[0])
    model = load_causal(place.folder / "model", dtype=torch.float32)
    values = load_token_values(place.folder / "values")
    hidden = torch.randn(3, values.v[0].in_features)
    head = divide(model).head
    ours = GuidedHead(head, values, 4.0)(hidden).softmax(-1)
    low = torch.minimum(*values.qs(hidden))
    expected = (head(hidden).log_softmax(-1) + 4 * low).softmax(-1)  # V shifts a whole row
    torch.testing.assert_close(ours, expected)
    with pytest.raises(ModelError, match="no token values"):
        load_token_values(place.folder)


def test_the_loss_sees_each_completion_by_itself(maze: Folder) -> None:
    """Packed together, states, following states and returns are those of the completions alone."""
    offline = start_offline(context(maze, "ilql", "sola"))
    config = IlqlConfig(kind="ilql", preferences=["puntos"], tau=0.8, gamma=0.9, cql=0.3, awac=0.5)
    chosen = {s.example.id: s for s in offline.samples}
    values = TokenValues(divide(offline.model).head.weight.shape[1], divide(offline.model).head.weight.shape[0])
    returns = {id: float(n) - 1.5 for n, id in enumerate(chosen)}
    loss = IlqlLoss(offline.model, values, returns, config)
    together = loss(pack([s.example for s in chosen.values()]))
    encoder = DocumentEncoder(offline.model)
    total = torch.zeros(())
    for id, sample in chosen.items():
        batch = pack([sample.example])
        states = encoder(batch.input_ids, batch.position_ids, batch.lengths)[batch.source_positions]
        v = values.values(states)
        rewards = torch.tensor([0.0] * (len(v) - 1) + [returns[id]])
        parts = ilql_losses(
            encoder.divided.head(states), values.qs(states), values.target_qs(states), v,
            torch.cat([v[1:], v.new_zeros(1)]), batch.targets, rewards, gamma=0.9, tau=0.8,
        )  # fmt: skip
        total = total + parts.q + parts.value + 0.3 * parts.cql + 0.5 * parts.awac
    torch.testing.assert_close(together, total, rtol=1e-4, atol=1e-4)


def test_targets_follow_every_so_many_steps() -> None:
    values = TokenValues(3, 5)
    first = values.target_q[0][0].weight.clone()
    with torch.no_grad():
        values.q[0][0].weight.add_(1.0)
    values.follow(0.25)
    torch.testing.assert_close(values.target_q[0][0].weight, first + 0.25)


def test_a_stopped_ilql_run_ends_with_the_same_bits(maze: Folder) -> None:
    keys = {"epochs": 4, "batch_size": 6, "polyak_steps": 2}
    whole = run(maze, "ilql", "entero", **keys)
    stop = StopRequest()

    def interrupt(progress: Progress) -> None:
        stop.signal = "SIGTERM" if progress.done == 7 else None

    with pytest.raises(Interrupted):
        run(maze, "ilql", "parado", stop=stop, listener=interrupt, **keys)
    assert run(maze, "ilql", "parado", **keys) == whole
    for name in ("model/model.safetensors", "values/values.safetensors", "metrics.jsonl"):
        assert (maze.root / "parado" / name).read_bytes() == (maze.root / "entero" / name).read_bytes()


def test_lora_leaves_an_adapter(maze: Folder) -> None:
    report = run(maze, "ilql", "adaptador", method="lora", epochs=2)
    assert (maze.root / "adaptador" / "model" / "adapter_model.safetensors").exists()
    assert report.trainable_parameters < report.facts["parameters"]


def test_prompts_alone_are_read_and_other_columns_are_not_ignored() -> None:
    found = read_preferences([{"prompt": "¿Sí?"}, {"prompt": "¿Sí?"}, {"prompt": "¿No?"}], ["prompt"])
    assert [p.prompt[0]["content"] for p in found.prompts] == ["¿Sí?", "¿No?"] and found.format == "prompts"
    with pytest.raises(DataError, match="hold no judgements"):
        read_preferences([{"prompt": "a", "chosen": "b"}], ["prompt", "chosen"])


def test_config_refuses_what_means_nothing() -> None:
    for keys in ({"betas": [1.0, 1.0]}, {"betas": [-1.0]}):
        with pytest.raises(ConfigError, match="distinct and not negative"):
            validate(IlqlConfig, {"kind": "ilql", "preferences": ["x"]} | keys, source="t")
    with pytest.raises(ConfigError, match="go with `method: lora`"):
        validate(CloningConfig, {"kind": "cloning", "preferences": ["x"], "method": "full", "lora": {}}, source="t")
