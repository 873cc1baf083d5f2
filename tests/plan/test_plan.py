"""A plan's counts against what the same recipe then did; a probe; what the command line says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny_llama

from quilate.files import read_json
from quilate.plan.models import Model
from quilate.plan.probe import ProbeSpec, Rate, measured
from quilate.recipe.executors.subprocess import stage_environment


def test_dimensions_are_those_of_the_loaded_model(llama_directory: Path) -> None:
    model = tiny_llama()
    dimensions, trainable = Model(llama_directory).dimensions(None)
    assert dimensions.parameters == trainable == sum(p.numel() for p in model.parameters())
    assert (dimensions.hidden, dimensions.layers, dimensions.vocabulary) == (32, 2, 384)
    with_lora, of_lora = Model(llama_directory).dimensions({"method": "lora", "lora": {"rank": 4}})
    linear = [m for m in model.model.layers.modules() if isinstance(m, type(model.lm_head))]
    assert of_lora == sum(4 * (m.in_features + m.out_features) for m in linear)
    assert with_lora.parameters == dimensions.parameters + of_lora


def test_a_probe_is_run_once(llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it comes from the cache, also for another directory of the same shape; not for other sizes."""
    monkeypatch.setenv("QUILATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QUILATE_KERNELS", "off")  # they would be compiled again, for the new cache
    spec = ProbeSpec(
        str(llama_directory), "train", "fp32", [[[(12, 3), (9, 2)], [(7, 1)]], [[(12, 3)]]], {"method": "full"}
    )
    said: list[str] = []
    rate = measured(spec, stage_environment(offline=True), note=said.append)
    assert min(rate.token.seconds, rate.token.cpu_seconds) > 0 and rate.peak_bytes > 50e6
    assert rate.trainable == rate.parameters == sum(p.numel() for p in tiny_llama().parameters())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((llama_directory / "config.json").read_bytes())
    assert measured(replace(spec, model=str(other)), {}, note=said.append) == rate
    assert len(said) == 1
    kept = list((tmp_path / "cache" / "probes").iterdir())
    assert [Rate.from_json(read_json(path)) for path in kept] == [rate]
    assert replace(spec, activity="loss").key() != spec.key()
