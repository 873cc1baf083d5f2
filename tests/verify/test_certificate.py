"""`quilate verify`: a good run passes every check; a broken one fails the check that is about what is broken."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from certificates import alter, certificate, examined, failed, folder_of, made
from safetensors.torch import load_file, save_file
from support import SENTENCES

from quilate.cli.main import run_command_line
from quilate.config import validate
from quilate.files import read_json, read_jsonl, write_json, write_jsonl
from quilate.models.attention import DocumentLayout
from quilate.optim.adamw import AdamW
from quilate.recipe.manifest import read_manifest
from quilate.recipe.schema import Recipe
from quilate.rng import Streams
from quilate.verify.certify import CHECKS
from quilate.verify.killed import kill_and_resume
from quilate.verify.saved import merge_parity
from quilate.verify.trained_on import leaks, template_round_trip, token_counts

LABELS = ("sí", "no")
RECIPES = Path(__file__).parents[2] / "recipes"


def write_sources(folder: Path) -> None:
    rows = [{"texto": f"{s} Caso {n}.", "etiqueta": LABELS[n % 2]} for n, s in enumerate(SENTENCES * 3)]
    write_jsonl(folder / "notas.jsonl", rows)
    write_jsonl(folder / "train.jsonl", rows[:24])
    write_jsonl(folder / "test.jsonl", [*rows[24:34], rows[3]])  # the last one is a training row
    chats = [
        {"prompt": f"¿Qué anotó en el caso {n}, señora Núñez?", "completion": f"{s[:20]} Número {n}."}
        for n, s in enumerate(SENTENCES)
    ]
    write_jsonl(folder / "dudas.jsonl", chats)


def recipe(base: Path, **keys: Any) -> Recipe:
    common = {"precision": "fp32", "batch_size": 6, "epochs": 1, "lr": 1e-2}
    value = {
        "recipe": "verificada",
        "base": str(base),
        "data": {"all": {"path": "notas.jsonl"}},
        "task": {"name": "notas", "text": "texto", "label": "etiqueta", "split": {"train": 20, "dev": 6, "test": 10}},
        "conversations": {"dudas": {"path": "dudas.jsonl", "held_out": 0.3}},
        "stages": {"chat": {"kind": "sft", "conversations": ["dudas"], "merge": True, "length": 128, **common}},
        "arms": {
            "lora": {"kind": "finetune", "method": "lora", "lora": {"dropout": 0.2}, "max_item_tokens": 40, **common}
        },
        "seeds": [0],
        **keys,
    }
    return validate(Recipe, value, source="t")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Path:
    """A run whose stages are finished. Read only."""
    folder = tmp_path_factory.mktemp("verified")
    write_sources(folder)
    stages = ["task", "base", "conversations-dudas", "chat-s0", "lora-s0"]
    return made(folder, recipe(llama_directory), stages)


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    """A copy to break; a run directory may be moved as a whole."""
    return shutil.copytree(good, tmp_path / "otra")


def test_a_good_adapter_passes_every_check(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, value = certificate(run, "lora", capsys)
    assert failed(value) == []
    assert (code, value["passed"], value["state"], value["stage"]) == (0, True, "finished", "lora-s0")
    assert [check["name"] for check in value["checks"]] == list(CHECKS)
    assert all(check["outcome"] == "pass" and check["figure"] <= check["tolerance"] for check in value["checks"])
    checks = {check["name"]: check["figures"] for check in value["checks"]}
    assert checks["kill and resume"]["steps"] == 20
    assert checks["kill and resume"]["resumed from step"] == 7
    assert checks["packed = separate"]["if documents leaked"] > 0.01
    tokens = checks["token counts"]
    assert tokens["supervised tokens"] + tokens["masked tokens"] == tokens["tokens"]
    assert tokens["truncated tokens"] > 0 and tokens["prompts cut"] > 0 == tokens["dropped tokens"]
    folder = folder_of(run, "lora-s0")
    assert read_json(folder / "certificate.json") == value
    assert read_manifest(folder) is not None and not (folder / ".verify").exists()
    text = (folder / "certificate.json").read_text(encoding="utf-8")
    assert [s for s in SENTENCES if s[:20] in text] == []


def test_a_merged_model_of_conversations_and_the_same_altered_on_disk(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, value = certificate(run, "chat-s0", capsys)
    assert (code, failed(value)) == (0, [])
    outcomes = {check["name"]: check for check in value["checks"]}
    assert outcomes["merge"]["reason"] == "only the merged model was saved"
    weights = folder_of(run, "chat-s0") / "model" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name][0, 0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    code, value = certificate(run, "chat-s0", capsys)
    assert (code, failed(value)) == (5, ["files"])
    assert "model/model.safetensors was altered" in next(c["reason"] for c in value["checks"] if c["name"] == "files")


def test_attention_that_leaks_is_found(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From three documents on, so that the switch to packed attention, which tries two, does not see it."""
    real = DocumentLayout.of

    def leaking(lengths: Sequence[int], device: torch.device | str = "cpu", places: Any = None) -> DocumentLayout:
        return real(lengths if len(lengths) < 3 else [sum(lengths)], device, places)

    monkeypatch.setattr(DocumentLayout, "of", leaking)
    code, value = certificate(run, "lora-s0", capsys)
    assert code == 5
    assert (
        {"packed = separate", "export"} <= set(failed(value)) <= {"packed = separate", "export", "accumulation splits"}
    )


def test_a_leak_that_was_allowed_fails_a_planned_stage(
    tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sources(tmp_path)
    data = {name: {"path": f"{name}.jsonl"} for name in ("train", "test")}
    task = {"name": "notas", "text": "texto", "label": "etiqueta", "allow_leak": True}
    wanted = recipe(llama_directory, data=data, task=task | {"split": {"dev": 4}}, conversations={}, stages={})
    run = made(tmp_path, wanted, ["task", "base"])
    code, value = certificate(run, "lora", capsys)
    assert (code, failed(value), value["state"]) == (5, ["leaks"], "planned")
    outcomes = {check["name"]: check["outcome"] for check in value["checks"]}
    assert {name for name, outcome in outcomes.items() if outcome == "not applicable"} == {"files", "merge", "export"}


def test_a_stage_in_bf16_keeps_to_the_tolerance_of_bf16(tmp_path: Path, llama_directory: Path) -> None:
    write_sources(tmp_path)
    arm = {"kind": "finetune", "method": "full", "precision": "bf16", "batch_size": 6, "lr": 1e-3}
    wanted = recipe(llama_directory, conversations={}, stages={}, arms={"full": arm})
    run = made(tmp_path, wanted, ["task", "base", "full-s0"])
    stage = examined(run, "full-s0")
    limits = {"packed = separate": 0.02, "accumulation splits": 0.02, "kill and resume": 0, "export": 1e-4}
    for name, limit in limits.items():
        found = CHECKS[name](stage).as_check(name)
        assert (found.outcome, found.tolerance) == ("pass", limit), found


def test_rows_changed_after_training_do_not_add_up(run: Path) -> None:
    folder = folder_of(run, "task")
    rows = read_jsonl(folder / "task" / "train.jsonl")
    alter(folder / "task" / "train.jsonl", [{**rows[0], "text": "año"}, *rows[1:]], folder)
    found = token_counts(examined(run, "lora-s0")).as_check("token counts")
    assert found.outcome == "fail"
    assert "tokens over all steps" in found.reason


@pytest.mark.parametrize(
    ("owner", "method", "broken"),
    [(Streams, "restore", lambda self, states: None), (AdamW, "restore", lambda self, tensors: None)],
    ids=["streams", "optimizer"],
)
def test_a_resume_that_forgets_something_is_found(
    run: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, broken: Callable[..., None]
) -> None:
    monkeypatch.setattr(owner, method, broken)
    found = kill_and_resume(examined(run, "lora-s0")).as_check("kill and resume")
    assert found.outcome == "fail"
    assert "model/adapter_model.safetensors" in found.reason


def test_of_a_search_that_is_planned_the_first_trial_is_examined(
    tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sources(tmp_path)
    wanted = recipe(llama_directory, conversations={}, stages={}, arms={"few": FEW | {"search": {"lr": [1e-3, 1e-2]}}})
    run = made(tmp_path, wanted, ["task", "base"])
    _, value = certificate(run, "few", capsys)
    compared = {check["name"]: check["compared"] for check in value["checks"]}
    assert "the first of 2 trials (lr 0.001)" in compared["token counts"]


def test_an_accumulation_that_keeps_only_the_last_part_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = AdamW.accumulate

    def forgetful(self: AdamW) -> None:
        self._accumulated.clear()
        real(self)

    monkeypatch.setattr(AdamW, "accumulate", forgetful)
    stage = examined(run, "lora-s0")
    assert CHECKS["accumulation splits"](stage).as_check("accumulation splits").outcome == "fail"


def test_a_merge_that_changes_the_model_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import Linear

    real = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 1.5 * real(self, adapter))
    assert merge_parity(examined(run, "lora-s0")).as_check("merge").outcome == "fail"


def test_another_chat_template_in_the_saved_directory_is_found(run: Path) -> None:
    path = folder_of(run, "chat-s0") / "model" / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("\n", " "), encoding="utf-8")
    assert template_round_trip(examined(run, "chat-s0")).as_check("t").outcome == "fail"


def test_a_training_question_among_the_held_out_ones_is_found(run: Path) -> None:
    """They overlap; questions that are equal the stage itself leaves out."""
    folder = folder_of(run, "conversations-dudas")
    long = " ".join(f"n{n}" for n in range(16))
    for name, text in (("train", f"{long} año"), ("held_out", long)):
        rows = read_jsonl(folder / f"{name}.jsonl")
        turns = [{"role": "user", "content": text}, *rows[0]["messages"][1:]]
        alter(folder / f"{name}.jsonl", [{**rows[0], "messages": turns}, *rows[1:]], folder)
    assert leaks(examined(run, "chat-s0")).as_check("leaks").reason.startswith("leaked: 1 of")


def test_which_stage_and_how_it_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["verify", str(run)]) == 2
    assert "name one of chat-s0, lora-s0" in capsys.readouterr().err
    assert run_command_line(["verify", str(run), "nadie"]) == 2
    assert "there is no stage 'nadie'" in capsys.readouterr().err
    manifest = folder_of(run, "task") / "manifest.json"
    value = read_json(manifest)
    manifest.unlink()
    assert run_command_line(["verify", str(run), "lora"]) == 3
    assert "stands on what is not finished, or not whole: task-" in capsys.readouterr().err
    write_json(manifest, value)
    assert run_command_line(["verify", str(run), "lora", "--with-text"]) == 0
    shown = capsys.readouterr().out
    assert "kill and resume" in shown and "⟦" in shown and "Caso" in shown


def test_a_recipe_stands_for_the_run_of_its_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read_json(run / "run.json")["recipe"]
    (tmp_path / "receta.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run_command_line(["verify", "receta.yaml"]) == 2
    assert f"has not been run here: there is no runs/{recipe['recipe']}" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / recipe["recipe"]).symlink_to(run)
    assert run_command_line(["verify", "receta.yaml"]) == 2
    assert "name one of chat-s0, lora-s0" in capsys.readouterr().err


FEW = {"kind": "finetune", "method": "lora", "precision": "fp32", "batch_size": 6, "epochs": 1, "train_rows": 12}


@pytest.mark.parametrize(
    "arm",
    [
        FEW | {"search": {"lr": [1e-3, 1e-2], "epochs": [2]}},  # the cost is that of both
        FEW | {"method": "prompt", "virtual_tokens": 20, "max_item_tokens": 1000},  # learned tokens take up context
    ],
    ids=["search", "prompt"],
)
def test_an_arm_that_learns_from_some_rows_passes(
    arm: dict[str, Any], tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sources(tmp_path)
    rows = read_jsonl(tmp_path / "notas.jsonl")
    long = " ".join(row["texto"] for row in rows)  # longer than the model's context
    write_jsonl(tmp_path / "notas.jsonl", [row | {"texto": f"{n} {long}"} for n, row in enumerate(rows[:2])] + rows[2:])
    wanted = recipe(llama_directory, conversations={}, stages={}, arms={"few": arm})
    run = made(tmp_path, wanted, ["task", "base", "few-s0"])
    code, value = certificate(run, "few", capsys)
    assert (code, failed(value)) == (0, [])
    checks = {check["name"]: check for check in value["checks"]}
    tokens = checks["token counts"]["figures"]
    assert (tokens["rows"], tokens["steps"]) == (12, 4 if "search" in arm else 2)
    assert tokens["prompts cut"] > 0
    assert ("the chosen of 2 trials (lr 0.0" in checks["token counts"]["compared"]) == ("search" in arm)
    assert checks["kill and resume"]["figures"]["rows"] == 8
