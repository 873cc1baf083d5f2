"""Several adapters on one base: each answers as if it alone had been loaded, whichever came before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import save_directory, tiny_llama
from trained import logits_of, trained
from transformers import PreTrainedModel

from quilate.errors import ModelError, UsageError
from quilate.inference.adapters import SharedBaseScorers
from quilate.inference.scorer import PromptScorer
from quilate.models.adapters import AdapterSet
from quilate.models.create import create, shape_config
from quilate.models.load import load_language_model, load_tokenizer, save_model
from quilate.models.tuning.bottleneck import BottleneckConfig, add_bottlenecks
from quilate.models.tuning.lora import LoraConfig, add_lora

Add = Callable[[PreTrainedModel, Path], PreTrainedModel]
HOUSES: dict[str, dict[str, Add]] = {
    "lora": {
        "uno": lambda model, base: add_lora(model, LoraConfig(rank=2), base=base),
        "dos": lambda model, base: add_lora(model, LoraConfig(rank=4, alpha=4), base=base),
    },
    "bottlenecks": {
        "uno": lambda model, base: add_bottlenecks(model, BottleneckConfig(size=4), base=base),
        "dos": lambda model, base: add_bottlenecks(model, BottleneckConfig(size=6, placement="pfeiffer"), base=base),
        "tres": lambda model, base: add_bottlenecks(model, BottleneckConfig(size=4, norms=False), base=base),
    },
}


@pytest.fixture(scope="module", params=["causal", "masked"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_llama()
    if request.param == "masked":
        torch.manual_seed(0)
        model = create(shape_config("roberta", "tiny", vocabulary=384, context=64, end=0, pad=1), masked=True)
    return save_directory(model, tmp_path_factory.mktemp(request.param) / "base")


def saved_adapters(base: Path, folder: Path, house: str) -> dict[str, Path]:
    for steps, (name, add) in enumerate(HOUSES[house].items(), start=2):
        model = trained(add(load_language_model(base, dtype=torch.float32), base), steps)
        save_model(model, load_tokenizer(base), folder / name)
    return {name: folder / name for name in HOUSES[house]}


@pytest.mark.parametrize("house", HOUSES)
def test_each_adapter_answers_as_if_alone(base: Path, tmp_path: Path, house: str) -> None:
    directories = saved_adapters(base, tmp_path, house)
    alone = {name: logits_of(load_language_model(d, dtype=torch.float32)) for name, d in directories.items()}
    plain = logits_of(load_language_model(base, dtype=torch.float32))
    adapters = AdapterSet.load(directories, dtype=torch.float32)
    assert adapters.names == tuple(directories) and adapters.base == base
    for name in [*directories, *reversed(directories), None, "uno"]:
        with adapters.using(name) as model:
            assert torch.equal(logits_of(model), plain if name is None else alone[name]), name
    different = [*alone.values(), plain]
    assert not any(torch.allclose(a, b, atol=1e-4) for i, a in enumerate(different) for b in different[:i])


def test_scorers_of_several_tasks_share_a_base(tmp_path: Path) -> None:
    base = save_directory(tiny_llama(), tmp_path / "base")
    folders = {}
    labels = {"uno": ["piel", "hueso"], "dos": ["sí", "no", "quizá"]}
    for name, directory in saved_adapters(base, tmp_path, "lora").items():
        scorer = PromptScorer(directory, labels[name], labels[name], template="{{ text }}:", precision="fp32")
        folders[name] = tmp_path / f"{name}-scorer"
        scorer.save(folders[name])
    together = SharedBaseScorers.load(folders, precision="fp32")
    assert together.labels == labels
    texts = ["Le pica el brazo.", "Se cayó de la señal."]
    for name in ("dos", "uno", "dos"):
        alone = PromptScorer(tmp_path / name, labels[name], labels[name], template="{{ text }}:", precision="fp32")
        assert (together.score(name, texts).scores == alone.score(texts).scores).all()
    with pytest.raises(UsageError, match="no scorer 'tres'"):
        together.score("tres", texts)


def test_what_cannot_share_a_base_is_refused(tmp_path: Path) -> None:
    bases = [save_directory(tiny_llama(seed), tmp_path / f"base-{seed}") for seed in (0, 1)]
    directories = {}
    for name, base, house in (("a", bases[0], "lora"), ("b", bases[1], "lora"), ("c", bases[0], "bottlenecks")):
        model = HOUSES[house]["uno"](load_language_model(base, dtype=torch.float32), base)
        save_model(model, load_tokenizer(base), tmp_path / name)
        directories[name] = tmp_path / name
    for names, reason in (
        (("a", "b"), "'b' is an adapter for .*base-1"),
        (("a", "c"), "'c' is of the method BOTTLENECK"),
    ):
        with pytest.raises(ModelError, match=reason):
            AdapterSet.load({name: directories[name] for name in names}, dtype=torch.float32)
    with pytest.raises(ModelError, match="is a whole model"):
        AdapterSet.load({"todo": bases[0]}, dtype=torch.float32)
    with pytest.raises(ModelError, match="has a dot"):
        AdapterSet.load({"a.1": directories["a"]}, dtype=torch.float32)
    with AdapterSet.load({"a": directories["a"]}, dtype=torch.float32).using(None), pytest.raises(ModelError):
        AdapterSet.load({}, dtype=torch.float32)
