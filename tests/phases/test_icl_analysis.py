"""The analysis: it tunes as the paper says, leaves the model as it was, and its controls are what they claim."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from support import SENTENCES, tiny_llama

from quilate.cli.main import run_command_line
from quilate.config import validate
from quilate.errors import DataError, Interrupted
from quilate.models.load import load_causal, load_tokenizer
from quilate.phases import icl_analysis
from quilate.phases.icl_analysis import MEASURES, VARIANTS, SeedAnalysis, Settings, analyse
from quilate.report.implicit_tuning import conclusion, write_analysis
from quilate.tasks.classification import ClassificationConfig, ClassificationTask
from quilate.tasks.prepare import prepare

ROWS = [{"texto": f"{s[:30]} {n}", "etiqueta": "rd"[n % 2]} for n, s in enumerate(SENTENCES * 3)]
SETTINGS = Settings(shots=3, items=6, observed=3, dev=4, rates=(0.01, 0.1), momenta=(0.05,))


@pytest.fixture(scope="module")
def task() -> ClassificationTask:
    value = {
        "name": "t", "text": "texto", "label": "etiqueta", "labels": {"r": "respiratorio", "d": "digestivo"},
        "instruction": "Clasifica.", "split": {"train": 12, "dev": 6, "test": 8},
    }  # fmt: skip
    prepared = prepare(validate(ClassificationConfig, value, source="t"), {"all": ROWS}, {"all": {}})
    assert isinstance(prepared, ClassificationTask)
    return prepared


@pytest.fixture(scope="module")
def found(task: ClassificationTask, llama_directory: Path) -> list[SeedAnalysis]:
    return analyse(llama_directory, task, seeds=[0], settings=SETTINGS)


def test_tuning_is_one_step_of_sgd_a_demonstration_on_keys_and_values() -> None:
    model, oracle = tiny_llama(), tiny_llama()
    head, sequences = [3, 4], [([10, 11, 12, 13], 2), ([14, 15, 16], 1)]
    chosen = {name: p for name, p in oracle.named_parameters() if ".k_proj." in name or ".v_proj." in name}
    optimizer = torch.optim.SGD(chosen.values(), lr=0.1)
    for tokens, question in sequences:
        labels = torch.tensor([[-100] * (len(head) + question) + tokens[question:]])
        oracle(input_ids=torch.tensor([head + tokens]), labels=labels).loss.backward()
        optimizer.step()
        oracle.zero_grad()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with icl_analysis._tuned(model, head, sequences, 0.1, "label"):
        for name, parameter in oracle.named_parameters():
            torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)
        assert not torch.equal(model.get_parameter(next(iter(chosen))), before[next(iter(chosen))])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_random_update_is_as_large_and_goes_elsewhere() -> None:
    model = tiny_llama()
    sequences = [([10, 11, 12, 13], 2)]
    before = [w.detach().clone() for w in icl_analysis._key_value_weights(model)]

    def changes() -> list[torch.Tensor]:
        return [w.detach() - old for w, old in zip(icl_analysis._key_value_weights(model), before, strict=True)]

    with icl_analysis._tuned(model, [3], sequences, 0.1, "all"):
        real = changes()
    with icl_analysis._randomly_updated(model, [3], sequences, 0.1, "all", seed=0):
        drawn = changes()
    for a, b in zip(real, drawn, strict=True):
        assert float(a.norm()) == pytest.approx(float(b.norm()), rel=1e-3)
        assert abs(float(torch.nn.functional.cosine_similarity(a.view(1, -1), b.view(1, -1)))) < 0.3
    assert all(float(change.abs().max()) == 0 for change in changes())


def test_every_measure_of_every_variant_is_there(found: list[SeedAnalysis]) -> None:
    (seed,) = found
    assert tuple(seed.variants) == VARIANTS
    assert set(seed.dev_accuracy) == {"0.01", "0.1"}
    for variant in (*seed.variants.values(), seed.untrained):
        for measure in MEASURES:
            assert len(variant.by_layer[measure]) == 2
            assert len(variant.by_item[measure]) == SETTINGS.observed
            assert np.isfinite(variant.by_item[measure]).all()
            assert np.mean(variant.by_layer[measure]) == pytest.approx(np.mean(variant.by_item[measure]))
    assert seed.variants["random labels"].by_item["sim_aou"] != seed.variants["demonstrations"].by_item["sim_aou"]


def test_without_momentum_it_scores_as_everywhere(
    found: list[SeedAnalysis], task: ClassificationTask, llama_directory: Path
) -> None:
    momentum = found[0].momentum
    assert momentum is not None and set(momentum.dev_accuracy) == {"0.0", "0.05"}
    tried = analyse(llama_directory, task, seeds=[0], settings=replace(SETTINGS, momenta=()))
    assert tried == [replace(found[0], momentum=None)]
    asked = icl_analysis._Asked(
        load_causal(llama_directory, dtype=torch.float32), load_tokenizer(llama_directory), task
    )
    before = asked.head + asked.demonstration(task.train[0], task.train[0].label)[0]
    alone = icl_analysis._right_with_momentum(asked, task.test, before, 0.0)
    assert alone == asked.right(task.test, before).mean()


def test_the_same_seed_gives_the_same(
    found: list[SeedAnalysis], task: ClassificationTask, llama_directory: Path
) -> None:
    assert analyse(llama_directory, task, seeds=[0], settings=SETTINGS) == found


def test_demonstrations_that_do_not_fit_are_refused(task: ClassificationTask, llama_directory: Path) -> None:
    with pytest.raises(DataError, match="demonstrations leave"):
        analyse(llama_directory, task, seeds=[0], settings=Settings(shots=12))


def test_the_page_says_what_was_found(found: list[SeedAnalysis], tmp_path: Path) -> None:
    page, figure = write_analysis(tmp_path / "a.md", found, SETTINGS, model="m", task="Código")
    text = page.read_text(encoding="utf-8")
    assert conclusion(found) in text
    assert "control: a model with random weights" in text
    assert "Momentum attention" in text and "of 0.0, 0.05; seed 0" in text
    assert figure.read_text(encoding="utf-8").startswith("<svg")


def test_command_line(
    tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "notas.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    command = ["icl", "analyse", str(data), "--text", "texto", "--label", "etiqueta", "--base", str(llama_directory),
               "--labels.r", "respiratorio", "--labels.d", "digestivo",
               "--shots", "2", "--dev", "6", "--test", "8", "--observed", "2", "--json",
               "--out", str(tmp_path / "run")]  # fmt: skip
    assert run_command_line(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert all(Path(path).exists() for path in answer["files"])
    path = tmp_path / "run" / "analysis.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["seeds"][0]["variants"]["demonstrations"]["by_layer"]["sim_aou"]
    # Stopped in its second of three seeds and started again, it goes on: the first two are not made again.
    asked: list[list[int]] = []

    def stopped(*arguments: object, seeds: list[int], keep: Callable[[SeedAnalysis], None], **more: object) -> None:
        asked.append(list(seeds))
        for seed in seeds[: 1 if len(asked) == 1 else None]:
            keep(replace(first, seed=seed, zero_shot=0.5))
        if len(asked) == 1:
            raise Interrupted("a stop was requested")

    first = TypeAdapter(SeedAnalysis).validate_python(kept["seeds"][0])
    monkeypatch.setattr(icl_analysis, "analyse", stopped)
    assert run_command_line([*command, "--seeds", "3"]) == 75
    assert run_command_line([*command, "--seeds", "3"]) == 0
    assert asked == [[1, 2], [2]]
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert [seed["seed"] for seed in whole["seeds"]] == [0, 1, 2]
    assert whole["seeds"][0] == kept["seeds"][0]
    capsys.readouterr()
    assert run_command_line([*command, "--loss", "label"]) == 2
    assert "holds another analysis: its settings differ" in capsys.readouterr().out
    assert json.loads(path.read_text(encoding="utf-8")) == whole
