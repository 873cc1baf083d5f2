"""The benchmarks still run, notice when two sides do not compute the same, and report what they measured.

No test looks at a time: on a busy machine that would fail for nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    alignment_memory,
    attention,
    contest,
    generation,
    harness,
    page,
    show,
    tokenization,
    trainers,
    workloads,
)
from benchmarks.harness import Disagreement, Measurement, Quantity, Side
from quilate.config import validate
from quilate.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
SPEED = Quantity("velocidad", "tokens/s", "higher")
OURS, PLAIN, PRELOADED = (
    Side("quilate", "m:f", ours=True, stage=True),
    Side("otro", "m:f"),
    Side("otro, mimalloc", "m:f", stage=True),
)


def measurement(side: Side, number: int, *values: float, case: str = "año", **facts: Any) -> Measurement:
    return Measurement(side, case, number, list(values), facts)


@pytest.fixture(scope="module")
def training_case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three steps of four rows on a tiny model whose weights are large enough for a leak of attention to show."""
    model = workloads.new_model(tmp_path_factory.mktemp("model") / "tiny", "tiny", vocabulary=400, context=64)
    steps = workloads.equal_rows(400, steps=3, rows=4, length=24)
    return {"name": "4 x 24", "model": str(model), "warmup": 1, "steps": steps}


def trained(function: Any, case: dict[str, Any], **settings: Any) -> dict[str, Any]:
    answer: dict[str, Any] = function(settings | {"cases": [case]})[case["name"]]
    return answer


def test_quilate_and_the_trainer_of_transformers_follow_each_other_in_fp32(training_case: dict[str, Any]) -> None:
    ours = trained(trainers.quilate, training_case, precision="fp32", lora=False)
    theirs = trained(trainers.transformers_trainer, training_case, weights="float32", autocast=False)
    assert ours["facts"]["losses"] == pytest.approx(theirs["facts"]["losses"], abs=1e-4)
    assert len(ours["values"]) == len(theirs["values"]) == 2


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed (extra bench)")
@pytest.mark.parametrize("padding_free", [False, True])
def test_trl_computes_the_same_on_documents_of_all_lengths(training_case: dict[str, Any], padding_free: bool) -> None:
    steps = [[row[: 24 - 5 * n] for n, row in enumerate(step)] for step in training_case["steps"]]
    case = training_case | {"steps": steps}
    ours = trained(trainers.quilate, case, precision="fp32", lora=False)
    theirs = trained(trainers.trl, case, weights="float32", autocast=False, lora=False, padding_free=padding_free)
    assert ours["facts"]["losses"] == pytest.approx(theirs["facts"]["losses"], abs=1e-4)


def test_another_computation_is_noticed(training_case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that see one another give another loss; so would another shift of the labels."""
    exact = Side("Trainer, fp32", "m:f")
    halves = [[half for row in step for half in (row[:12], row[12:])] for step in training_case["steps"]]
    theirs = trained(trainers.transformers_trainer, training_case, weights="float32", autocast=False)
    ours = trained(trainers.quilate, training_case | {"steps": halves}, precision="fp32", lora=False)
    monkeypatch.setattr(
        contest, "run_round", lambda *_: [Measurement(OURS, "4 x 24", 0, ours["values"], ours["facts"])]
    )
    with pytest.raises(Disagreement, match="in fp32 the losses differ"):
        contest.checked_trajectory([Measurement(exact, "4 x 24", 0, [], theirs["facts"])], [], lora=False)


def test_losses_that_differ_are_refused() -> None:
    same = [measurement(OURS, 0, 1.0, loss=3.10), measurement(PLAIN, 0, 1.0, loss=3.11)]
    assert "within 0.0100" in harness.require_close(same, "loss", 0.02)
    with pytest.raises(Disagreement, match="differs by"):
        harness.require_close([*same, measurement(PRELOADED, 0, 1.0, loss=3.2)], "loss", 0.02)
    with pytest.raises(Disagreement):
        harness.require_close([*same, measurement(PRELOADED, 0, 1.0, loss=float("nan"))], "loss", 0.02)


def test_medians_ratios_and_the_best_peer() -> None:
    measured = [
        measurement(OURS, 0, 90.0, 110.0), measurement(PLAIN, 0, 20.0, 20.0), measurement(PRELOADED, 0, 40.0, 60.0),
        measurement(OURS, 1, 100.0, 100.0), measurement(PLAIN, 1, 25.0, 25.0),
    ]  # fmt: skip
    rows = {row.side: row for row in harness.summarize(measured)}
    assert (rows["quilate"].median, rows["quilate"].low, rows["quilate"].high) == (100, 90, 110)
    assert (rows["quilate"].rounds, rows["otro, mimalloc"].rounds) == (2, 1)
    ratios = {r.against: r for r in harness.compare(measured, SPEED)}
    assert (ratios["otro"].ratio, ratios["otro"].low, ratios["otro"].high) == (100 / 22.5, 4, 5)
    assert ratios["otro, mimalloc"].ratio == 2
    seconds = Quantity("tiempo", "s", "lower")
    assert {r.against: r.ratio for r in harness.compare(measured, seconds)} == {"otro": 0.225, "otro, mimalloc": 0.5}
    slower = Side("lento", "m:f")
    assert harness.best_of([*measured, measurement(slower, 0, 1.0)], SPEED, "año") == [PLAIN, PRELOADED]
    assert harness.best_of([*measured, measurement(slower, 0, 1.0)], seconds, "año")[0] == slower


def test_every_other_round_is_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def call(side: Side, _: dict[str, Any]) -> dict[str, Any]:
        order.append(side.name)
        return {"año": {"values": [1.0], "facts": {}}}

    monkeypatch.setattr(harness, "call", call)
    for number in range(2):
        harness.run_round(number, [OURS, PLAIN], [{"name": "año"}])
    assert order == ["quilate", "otro", "otro", "quilate"]


def test_a_side_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"roto failed with exit code 1(.|\n)*KeyError: 'repetitions'"):
        harness.call(Side("roto", "benchmarks.harness:matmul_peak"), {})


@pytest.mark.parametrize("implementation", attention.IMPLEMENTATIONS.values())
def test_attentions_are_near_float64(implementation: str) -> None:
    settings = {"implementation": implementation, "dtype": "float32", "lengths": (9, 5, 1)}
    found = attention.errors(settings)
    assert set(found) == {"output", "gradient of query", "gradient of key", "gradient of value"}
    assert 0 < max(found.values()) < attention.TOLERANCE["float32"]


def test_documents_fill_a_row() -> None:
    assert attention.documents_in("one document", 700) == [700]
    assert attention.documents_in("packed documents", 700) == [412, 57, 230, 1]


def test_tokens_in_the_shard_are_the_tokenizers(training_case: dict[str, Any], tmp_path: Path) -> None:
    tokenization.write_corpus(tmp_path / "corpus.txt", 0.02)
    settings = {"model": training_case["model"], "cases": [{"name": "c", "corpus": str(tmp_path / "corpus.txt")}]}
    ours = tokenization.quilate(settings)["c"]["facts"]
    theirs = tokenization.raw_tokenizers(settings | {"method": "encode_batch"})["c"]["facts"]
    assert ours["tokens"] == theirs["tokens"] > 1000
    assert ours["tokens sha256"] == theirs["tokens sha256"]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts little elsewhere")
def test_the_limit_on_memory_limits(training_case: dict[str, Any], tmp_path: Path) -> None:
    """A file larger than the limit cannot be read whole; a shard of a small one is written under it."""
    large, small = tmp_path / "large.txt", tmp_path / "small.txt"
    with large.open("wb") as file:
        file.truncate(200_000_000)  # a hole: it takes no room on the disk
    tokenization.write_corpus(small, 0.02)
    side = Side("quilate", "benchmarks.tokenization:under_limit")
    settings = {"model": training_case["model"], "limit_mb": 100}
    assert not harness.call(side, settings | {"corpus": str(large), "whole": True})["finished"]
    assert harness.call(side, settings | {"corpus": str(small), "whole": False}, timeout=120)["tokens"] > 1000


def test_a_limit_that_does_not_limit_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "call", lambda *_, **__: {"finished": True})
    with pytest.raises(Disagreement, match="read whole"):
        tokenization.check_bounded(tmp_path, tmp_path, 0.01, 0.001)


NEEDS = {"training": "trl", "lora": "trl", "memory": "trl", "reinforcement": "trl", "curation": "datasets"}


def call_here(side: Side, settings: dict[str, Any], **_: Any) -> Any:
    """As `harness.call`, in this process: what it starts would spend its time on importing."""
    module, _, name = side.function.partition(":")
    return json.loads(json.dumps(getattr(importlib.import_module(module), name)(settings)))


# A run of seven stages, each in a process of its own, and minutes of a library that loads.
NOT_TRIED = ("tokenization", "in_context", "alignment_memory")


@pytest.mark.parametrize("name", [name for name in page.SECTIONS if name not in NOT_TRIED])
def test_a_script_from_start_to_end(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The last line is the JSON that others read; the checks have passed; the page and the figure can be made of it."""
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not there")
    script = importlib.import_module(f"benchmarks.{name}")
    for module in (harness, script):
        monkeypatch.setattr(module, "call", call_here, raising=False)
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--quick"])
    script.main()
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(answer)[:6] == ["name", "ours", "peer", "ratio", "unit", "versions"]
    assert answer["name"] == name and answer["command"] == f"python -m benchmarks.{name} --quick"
    assert answer["checks"]
    assert len({row["side"] for row in answer["rows"]}) >= 3
    show.write_result(answer, tmp_path)
    assert f"{name}.svg" in page.render(tmp_path)


def test_the_memory_of_alignment_is_that_of_stages_of_a_recipe(tmp_path: Path) -> None:
    recipe = validate(Recipe, alignment_memory.recipe(tmp_path, 64, 32), source="t")
    assert set(alignment_memory.SIDES) < set(recipe.stages)
    sides = alignment_memory.SIDES
    facts = {"steps": 2, "on one base": ["judge"]}
    sft, ppo = (Measurement(sides[name], "año", 0, [mb], facts) for name, mb in (("sft", 1000.0), ("ppo", 1400.0)))
    assert "1.40 times the memory of LoRA SFT, within the 1.5" in alignment_memory.check([sft, ppo])[0]
    with pytest.raises(Disagreement, match="not on one base"):
        alignment_memory.check([sft, measurement(sides["ppo"], 0, 1.0, **{"steps": 2, "on one base": []})])


def test_regret_is_zero_for_greedy_tokens_and_not_for_others(training_case: dict[str, Any]) -> None:
    prompts = [row[:8] for row in training_case["steps"][0]]
    case = generation._case("voraz", prompts, 4, 0.0)
    settings = {"model": training_case["model"], "dtype": "float32", "cases": [case]}
    written = generation.transformers(settings)["voraz"]["facts"]["written"]
    judged = {"model": training_case["model"], "prompts": prompts}
    assert generation.largest_regret(judged | {"written": written}) < 1e-4
    others = [[(token + 1) % 400 for token in row] for row in written]
    assert generation.largest_regret(judged | {"written": others}) > 0.1


def test_generation_writes_the_same_tokens(training_case: dict[str, Any]) -> None:
    case = generation._case("voraz", [row[:8] for row in training_case["steps"][0]], 4, 0.0)
    settings = {"model": training_case["model"], "dtype": "float32", "cases": [case]}
    ours, theirs = (f(settings)["voraz"]["facts"]["written"] for f in (generation.quilate, generation.transformers))
    assert ours == theirs


def result(**changes: Any) -> dict[str, Any]:
    measured = [measurement(OURS, 0, 90.0, 110.0), measurement(PLAIN, 0, 20.0, 20.0)]
    ratios = harness.compare(measured, SPEED)
    facts = {"share of the bf16 matmul peak": {"quilate, año": 0.42}, "not run": ["otro, 32768 tokens: needs 9 GB"]}
    found = harness.Result(
        "lora", SPEED, ratios[0], harness.summarize(measured), ratios, ["todo igual"], harness.machine([]), facts,
        "python -m benchmarks.lora",
    )  # fmt: skip
    return json.loads(json.dumps(found.json())) | changes  # type: ignore[no-any-return]


def test_page_says_what_was_measured_and_what_was_not_run(tmp_path: Path) -> None:
    empty = page.render(tmp_path)
    assert empty.count("Not run.") == len(page.SECTIONS)
    show.write_result(result(), tmp_path)
    text = page.render(tmp_path)
    assert text.count("\nNot run.\n") == len(page.SECTIONS) - 1
    for expected in ("**5.00 times better** than otro (año): 100 against 20 tokens/s; one round.",
                     "| año | otro | 20 | 20 to 20 |", "42% (quilate, año)", "todo igual", "needs 9 GB",
                     "lora.svg"):  # fmt: skip
        assert expected in text
    worse = result(headline={"case": "año", "against": "otro", "ratio": 0.5, "rounds": 2}, ours=10.0)
    assert "**2.00 times worse** than otro" in page.section(worse, tmp_path)


def test_figures_repeat_to_the_byte(tmp_path: Path) -> None:
    for name in ("una", "otra"):
        show.write_result(result(), tmp_path / name)
    assert (tmp_path / "una" / "lora.svg").read_bytes() == (tmp_path / "otra" / "lora.svg").read_bytes()


def test_page_is_what_the_results_give() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.render(harness.RESULTS), "docs/benchmarks.md differs from the results: run `make docs`"


def test_every_benchmark_has_a_section_and_a_line_in_the_readme() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "finish(" in path.read_text()}
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert scripts - {"harness"} == set(page.SECTIONS)
    assert all(f"| `{name}.py` |" in readme for name in page.SECTIONS)
