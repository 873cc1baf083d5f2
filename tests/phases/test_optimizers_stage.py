"""Pretraining by each optimizer that a recipe can name: its rate, its own cost, what it is told, and resuming it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import SENTENCES

from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress
from quilate.errors import ConfigError, Interrupted
from quilate.optim.choice import DEFAULTS
from quilate.phases.corpus import CORPUS, CorpusConfig, CorpusStageConfig
from quilate.phases.pretrain import PRETRAIN, PretrainConfig
from quilate.phases.stage import StageContext, StageReport
from quilate.recipe.schema import Recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "notas.txt").write_text("\n".join(f"{s} {i}" for i, s in enumerate(SENTENCES * 3)), encoding="utf-8")
    config = CorpusConfig(path="notas.txt", documents="line", held_out=0.1)
    stop = StopRequest()
    CORPUS.run(
        StageContext(CorpusStageConfig(corpus=config), {}, folder, 0, folder, lambda _: None, lambda _: None, stop)
    )
    return folder


def pretrain(
    folder: Path, corpus: Path, optimizer: str, *, stop_after: int | None = None, **keys: object
) -> StageReport:
    settings = {"size": "tiny", "vocabulary": 300, "tokens": 1500, "batch_tokens": 250, "length": 32, "context": 32}
    config = PretrainConfig(
        kind="pretrain",
        corpora={"notas": 1.0},
        optimizer=optimizer,
        **(settings | keys),  # type: ignore[arg-type]
    )
    stop = StopRequest()

    def listen(progress: Progress) -> None:
        if progress.done == stop_after:
            stop.signal = "SIGTERM"

    folder.mkdir(exist_ok=True)
    inputs = {"corpus:notas": corpus}
    return PRETRAIN.run(StageContext(config, inputs, folder, 0, folder, listen, lambda _: None, stop))


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("optimizer", list(DEFAULTS))
def test_each_trains_a_model_and_resumes_it_to_the_same_bytes(tmp_path: Path, corpus: Path, optimizer: str) -> None:
    report = pretrain(tmp_path / "whole", corpus, optimizer, floor=1.0, warmup=0.0)
    steps = rows(tmp_path / "whole")
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[0]["learning_rate"] == DEFAULTS[optimizer].learning_rate  # type: ignore[index]
    cost = {"adamw": 0, "muon": 0, "sophia_g": 1, "sophia_h": 3}[optimizer]
    assert report.facts["curvature_tokens"] == (steps[0]["tokens"] if cost else 0)
    tokens = report.train_tokens + cost * report.facts["curvature_tokens"]
    assert report.flops == 6 * report.facts["parameters"] * tokens
    assert report.counts == {"refused updates": 0, "refused estimates of curvature": 0}
    assert ("unclipped" in steps[0]) == bool(cost)

    with pytest.raises(Interrupted):
        pretrain(tmp_path / "part", corpus, optimizer, floor=1.0, warmup=0.0, stop_after=3)
    again = pretrain(tmp_path / "part", corpus, optimizer, floor=1.0, warmup=0.0)
    assert again == report
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sophias_gamma_reaches_it(tmp_path: Path, corpus: Path) -> None:
    """So large that nothing is clipped, where the default clips nearly everything at first."""
    pretrain(tmp_path / "usual", corpus, "sophia_g", tokens=500)
    pretrain(tmp_path / "large", corpus, "sophia_g", tokens=500, sophia_gamma=1e9)
    usual, large = (rows(tmp_path / name)[0]["unclipped"] for name in ("usual", "large"))
    assert usual < 0.5 < large


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sophia_gamma": 0.1}, "`sophia_gamma` goes with `optimizer: sophia_g` or `sophia_h`"),
        ({"optimizer": "lion"}, "Input should be 'adamw', 'sophia_g', 'sophia_h' or 'muon'"),
    ],
)
def test_what_no_optimizer_understands_is_refused(keys: dict[str, object], message: str) -> None:
    from quilate.config import validate

    stage = {"kind": "pretrain", "corpora": {"notas": 1.0}} | keys
    value = {"recipe": "nuevo", "corpora": {"notas": {"path": "n.txt"}}, "stages": {"new": stage}}
    with pytest.raises(ConfigError, match=message):
        validate(Recipe, value, source="r.yaml")
