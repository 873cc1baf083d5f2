"""`recipes/tiny.yaml` from the command line: every stage kind, reuse, and what a changed key runs again.

The base is a random two-layer Llama made from a seed (tests/support.py), so scores mean nothing here; that the same
recipe is run, judged, reused and partly run again does.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
ARMS = ["majority", "tfidf", "one-per-class", "nearest", "chosen", "full", "frozen", "adapter", "full-then-lora"]


def quilate(*arguments: str | Path, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it in `folder`; an unexpected exit code shows what it wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "quilate", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == code, done.stderr
    return done


def finished(run: Path) -> dict[str, int]:
    """Stage folders and when each was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (run / "stages").glob("*/manifest.json")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Path:
    """Where the recipe has been run once; the run is in `runs/tiny`."""
    place = tmp_path_factory.mktemp("tiny")
    quilate("run", RECIPE, "--set", f"base={llama_directory}", folder=place)
    return place


@pytest.fixture(scope="module")
def evidence(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "runs" / "tiny" / "evidence.json").read_text(encoding="utf-8"))
    return value


@pytest.mark.slow
def test_the_lineage_reads_from_the_files_to_the_models(evidence: dict[str, Any]) -> None:
    links = {link["id"]: link for link in evidence["lineage"]}
    names = {link["stage"]: link for link in evidence["lineage"]}
    found: set[str] = set()
    pending = [names["frozen-s0"]]
    while pending:
        link = pending.pop()
        found.add(link["stage"])
        pending += [links[source] for source in link["inputs"]]
    assert {"masked-s0", "corpus-pueblo", "curated-pueblo", "curated-pueblo file", "task", "all file"} <= found
    assert names["curated-pueblo file"]["path"].endswith("tiny.txt")
    assert names["conversations-ventanilla file"]["id"] in names["conversations-ventanilla"]["inputs"]
    assert names["conversations-ventanilla"]["id"] in names["chat-s0"]["inputs"]


@pytest.mark.slow
def test_the_report_as_a_page_with_every_cell(folder: Path, evidence: dict[str, Any]) -> None:
    page = folder / "estudio.md"
    quilate("report", "runs/tiny", "--markdown", page, folder=folder)
    cells = json.loads(page.with_name("estudio-cells.json").read_text(encoding="utf-8"))
    assert [cell["arm"] for cell in cells] == ARMS
    scores = {arm["name"]: arm["score"] for arm in evidence["arms"]}
    assert {cell["arm"]: cell["score"] for cell in cells} == pytest.approx(scores, abs=1e-6)
    text = page.read_text(encoding="utf-8")
    assert all(f"| {arm} |" in text for arm in ARMS)
    assert page.with_name("estudio-cost.svg").exists()


@pytest.mark.slow
def test_what_models_wrote_while_they_were_trained_from_rewards(folder: Path) -> None:
    """One completion an iteration, in a private file that is made only when texts are asked for."""
    quilate("report", "runs/tiny", folder=folder)
    samples = folder / "runs" / "tiny" / "samples"
    assert not samples.exists()
    quilate("report", "runs/tiny", "--with-text", folder=folder)
    assert sorted(path.name for path in samples.iterdir()) == ["exact-s0.csv", "pleasing-s0.csv"]
    for stage in ("exact", "pleasing"):
        (made,) = (folder / "runs" / "tiny" / "stages").glob(f"{stage}-s0-*/rollouts.jsonl")
        told = [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]
        content = (samples / f"{stage}-s0.csv").read_bytes().decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(content, newline="")))
        assert [int(row["iteration"]) for row in rows] == [row["iteration"] for row in told]
        assert [float(row["score"]) for row in rows] == pytest.approx([r["sample"]["score"] for r in told], abs=1e-4)
    assert samples.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_evidence_covers_every_arm_on_the_same_items(evidence: dict[str, Any]) -> None:
    assert [arm["name"] for arm in evidence["arms"]] == ARMS
    assert evidence["items"] == 18
    for arm in evidence["arms"]:
        low, high = arm["ci95"]
        assert 0 <= low <= arm["score"] <= high <= 1
        assert len(arm["scores_by_seed"]) == 1
        assert arm["cost"]["seconds"] > 0
    assert evidence["recommendation"]["verdict"] == "undecided"  # eighteen items decide nothing
    assert evidence["task"]["leak_check"] == "clean"


@pytest.mark.slow
def test_what_training_cost_follows_from_what_was_trained(folder: Path, evidence: dict[str, Any]) -> None:
    """An arm's cost includes the stages it stands on."""
    from transformers import AutoModelForCausalLM

    stages = folder / "runs" / "tiny" / "stages"
    trained = {p.parent.name.rsplit("-", 1)[0]: json.loads(p.read_text()) for p in stages.glob("*/manifest.json")}
    tokens = {name: manifest["cost"]["train_tokens"] for name, manifest in trained.items()}
    cost = {arm["name"]: arm["cost"] for arm in evidence["arms"]}
    weights = AutoModelForCausalLM.from_pretrained(next(stages.glob("full-s0-*/model"))).num_parameters()
    assert cost["full"]["trainable_parameters"] == weights
    assert 0 < cost["full-then-lora"]["trainable_parameters"] < weights
    assert cost["majority"]["train_tokens"] == 0
    assert cost["one-per-class"]["train_tokens"] == tokens["tapt-s0"] > 0
    assert cost["full"]["train_tokens"] == tokens["new-s0"] + tokens["full-s0"]
    assert cost["full-then-lora"]["train_tokens"] == cost["full"]["train_tokens"] + tokens["full-then-lora-s0"]
    assert 2 * tokens["full-then-lora-s0"] == tokens["full-s0"]  # one epoch and two over the same thirty items


@pytest.mark.slow
def test_every_made_model_is_measured_on_held_out_text(evidence: dict[str, Any]) -> None:
    rows = evidence["language_modelling"]
    assert {row["corpus"] for row in rows} == {"pueblo"}
    assert all(row["bits_per_byte"] > 0 for row in rows)
    assert len({row["model"] for row in rows}) >= 3  # the new model; the base before and after tapt


@pytest.mark.slow
def test_what_was_aligned_is_compared_with_no_alignment(folder: Path, evidence: dict[str, Any]) -> None:
    found = evidence["alignment"]
    chat, polite = found["policies"]
    assert (chat["name"], chat["start"], chat["kl"]) == ("chat", None, None)  # the recipe names `polite` alone
    assert (polite["name"], polite["start"]) == ("polite", "chat") and set(polite["win_rates"]) == {"judge", "manners"}
    assert found["derived"] == ["exam"]
    compared = {(row["stage"], row["by"], row["set"]) for row in found["pair_accuracy"]}
    assert {("judge-s0", "reward", "trato"), ("polite-s0", "log-probability", "exam")} <= compared
    assert {(row["policy"], row["of"]) for row in found["tax"]} == {("polite", "pueblo")}
    page = (folder / "runs" / "tiny" / "evidence.html").read_text(encoding="utf-8")
    assert "Qué valió el alineamiento" in page and "derivados, no juzgados" in page


@pytest.mark.slow
def test_report_is_private_and_holds_no_source_text(folder: Path) -> None:
    run = folder / "runs" / "tiny"
    page = (run / "evidence.html").read_text(encoding="utf-8")
    texts = [line.split('"')[1] for line in (RECIPE.parent / "tiny.csv").read_text(encoding="utf-8").splitlines()[1:]]
    assert len(texts) == 60
    assert [text for text in texts if text in page] == []
    assert "Asunto de un aviso vecinal" in page
    assert {path.stat().st_mode & 0o777 for path in (run / "stages").iterdir()} == {0o700}


@pytest.mark.slow
def test_second_run_reuses_everything_and_a_changed_rate_reruns_its_arm_only(
    folder: Path, llama_directory: Path
) -> None:
    run = folder / "runs" / "tiny"
    first = finished(run)
    evidence_before = (run / "evidence.json").read_bytes()
    base = f"base={llama_directory}"
    again = quilate("run", RECIPE, "--set", base, folder=folder)
    assert finished(run) == first
    assert (run / "evidence.json").read_bytes() == evidence_before
    assert again.stderr.count("reused") == len(first)

    quilate("run", RECIPE, "--set", base, "--set", "arms.full-then-lora.lr=5e-4", folder=folder)
    later = finished(run)
    assert {name: later[name] for name in first} == first
    new = sorted(name.rpartition("-")[0] for name in later.keys() - first.keys())
    assert new == ["full-then-lora-s0", "full-then-lora-s0-evaluate", "report"]


@pytest.mark.slow
def test_a_plan_counts_what_the_run_then_did(folder: Path) -> None:
    """Tokens of every trained stage, and those read for labels, without training anything."""
    shown = quilate("plan", "--against", "runs/tiny", "--no-probe", "--json", folder=folder).stdout
    rows = {row["planned"]["name"]: row for row in json.loads(shown[shown.index("[\n") :])}
    exact = ("chat-s0", "judge-s0", "polite-s0", "full-s0", "adapter-s0", "full-then-lora-s0")
    assert {name: rows[name]["planned"]["train_tokens"] for name in exact} == {
        name: rows[name]["train_tokens"] for name in exact
    }
    for name in ("new-s0", "masked-s0", "tapt-s0"):  # they end with the document that fills the budget
        assert rows[name]["planned"]["train_tokens"] == pytest.approx(rows[name]["train_tokens"], rel=0.05)
    scored = [name for name in rows if name.endswith("-evaluate") and not name.startswith("chosen")]
    assert len(scored) == 6
    for name in scored:  # the manifest has the 18 test items alone, the plan the 12 of dev too
        assert rows[name]["planned"]["read_tokens"] == pytest.approx(rows[name]["read_tokens"] * 30 / 18, rel=0.2)


@pytest.mark.slow
def test_a_gate_says_no_after_everything_is_written(folder: Path, llama_directory: Path) -> None:
    run = folder / "runs" / "tiny"
    before = finished(run)
    limits = ["--set", "stages.kept.limits={auc: 0.51, extracted: 1.0}"]
    done = quilate("run", RECIPE, "--set", f"base={llama_directory}", *limits, folder=folder, code=5)
    assert "kept-s0: auc may be as high as" in done.stderr
    assert "extracted may be" not in done.stderr
    new = sorted(name.rpartition("-")[0] for name in finished(run).keys() - before.keys())
    assert new == ["alignment", "kept-s0", "report"]
    evidence = json.loads((run / "evidence.json").read_text(encoding="utf-8"))
    (kept,) = evidence["privacy"]
    assert {gate["name"]: gate["passed"] for gate in kept["gates"]} == {"auc": False, "extracted": True}
    assert "kept_too_much" in {notice["code"] for notice in evidence["notices"]}
    assert evidence["domains"]["names"] == ["pueblo", "task"]
    page = (run / "evidence.html").read_text(encoding="utf-8")
    assert "Qué retuvieron los modelos de su texto" in page
    (secrets,) = (run / "stages").glob("corpus-pueblo-*/canaries.json")
    value = json.loads(secrets.read_text(encoding="utf-8"))
    shown = page + json.dumps(evidence) + done.stderr + done.stdout
    assert [row for row in value["inserted"] + value["controls"] if row[0] in shown or row[1] in shown] == []
