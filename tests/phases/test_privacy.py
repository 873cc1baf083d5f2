"""What a trained model kept: a model that read canaries often is told from one that never did, and the gates hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import SENTENCES, save_directory, tiny_llama

from quilate import config
from quilate.engine.interrupts import StopRequest
from quilate.errors import ConfigError, DataError
from quilate.files import read_json
from quilate.phases.corpus import CORPUS, CanariesConfig, CorpusConfig, CorpusStageConfig, canaries_of
from quilate.phases.language_modelling import CorpusMixture
from quilate.phases.pretrain import PRETRAIN, PretrainConfig
from quilate.phases.privacy import PRIVACY, PrivacyConfig, PrivacyLimits
from quilate.phases.stage import StageContext, StageReport, write_model_note
from quilate.recipe.schema import Recipe

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


def context(settings: Any, folder: Path, notes: list[str] | None = None, **inputs: Path) -> StageContext[Any]:
    folder.mkdir(exist_ok=True)
    said = (lambda _: None) if notes is None else notes.append
    roles = {role.replace("corpus_", "corpus:"): path for role, path in inputs.items()}
    return StageContext(settings, roles, folder, 0, folder.parent, lambda _: None, said, StopRequest())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of notes that nobody could guess, with canaries; a model that read it often; one that never did."""
    folder = tmp_path_factory.mktemp("privacy")
    rng = np.random.default_rng(3)
    notes = [" ".join(rng.choice(WORDS, 14)) for _ in range(120)]
    (folder / "notas.txt").write_text("\n".join(notes), encoding="utf-8")
    corpus = CorpusConfig(
        path="notas.txt", documents="line", language=None, held_out=0.4,
        canaries=CanariesConfig(repeats=[1, 30], each=3, controls=60),
    )  # fmt: skip
    CORPUS.run(context(CorpusStageConfig(corpus=corpus), folder / "corpus"))
    settings = PretrainConfig(
        kind="pretrain", corpora={"notas": 1.0}, size="tiny", vocabulary=400, tokens=120_000, batch_tokens=1000,
        length=64, context=96, lr=1e-2, precision="fp32",
    )  # fmt: skip
    PRETRAIN.run(context(settings, folder / "trained", corpus_notas=folder / "corpus"))
    (folder / "never").mkdir()
    save_directory(tiny_llama(), folder / "never" / "model")
    write_model_note(folder / "never", folder / "never" / "model")
    return folder


def examine(place: Path, name: str, notes: list[str] | None = None, **keys: Any) -> StageReport:
    asked: dict[str, Any] = {"length": 64, "prefix": 8, "extract": 8} | keys
    settings = PrivacyConfig(kind="privacy", on="trained", corpus="notas", precision="fp32", **asked)
    inputs = {"model": place / "trained", "reference": place / "never", "corpus": place / "corpus"}
    return PRIVACY.run(context(settings, place / name, notes, **inputs))


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    return examine(place, "examined").facts


def test_canaries_seen_often_are_exposed_and_others_are_not(found: dict[str, Any]) -> None:
    rows = {row["repeats"]: row for row in found["exposure"]}
    assert list(rows) == [0, 1, 30]
    most = np.log2(61)
    assert rows[30]["bits"]["value"] == pytest.approx(most, abs=0.35)  # ahead of nearly all that it never saw
    assert rows[0]["bits"]["low"] < 1 / np.log(2) < rows[0]["bits"]["high"]
    assert rows[30]["written"] == 3
    assert rows[0]["written"] == rows[30]["written_reference"] == 0
    assert rows[30]["bits_reference"]["value"] < most - 1


def test_members_are_told_from_others_and_one_token_is_easier_than_eight(place: Path, found: dict[str, Any]) -> None:
    assert {attack["name"] for attack in found["attacks"]} == {"loss", "reference", "zlib", "min_k"}
    for attack in found["attacks"]:
        assert attack["auc"]["low"] > 0.6
    extraction = found["extraction"]
    assert extraction["asked"] == found["members"] > 40
    assert extraction["reference"] == extraction["held_out"] == 0
    assert extraction["alone"] == extraction["model"]
    one_token = examine(place, "one", extract=1, documents=40).facts["extraction"]
    assert one_token["reference"] < one_token["model"] < one_token["asked"]
    assert 0 < one_token["held_out"] < one_token["held_out_asked"]


def test_limits_hold_for_the_upper_end_and_nothing_secret_is_said(place: Path, found: dict[str, Any]) -> None:
    notes: list[str] = []
    limits = PrivacyLimits(exposure=20.0, extracted=1.0, auc=0.55, true_positives=1.0)
    again = examine(place, "limited", notes, limits=limits).facts
    assert {key: again[key] for key in ("exposure", "attacks", "extraction")} == {
        key: found[key] for key in ("exposure", "attacks", "extraction")
    }
    gates = {gate["name"]: gate for gate in again["gates"]}
    assert {name: gate["passed"] for name, gate in gates.items()} == {
        "exposure": True, "extracted": True, "auc": False, "true_positives": True,
    }  # fmt: skip
    assert gates["auc"]["seen"] == max(attack["auc"]["high"] for attack in again["attacks"])
    canaries = canaries_of(place / "corpus")
    assert canaries is not None
    said = "\n".join(notes) + str(again)
    assert [c for c in [*canaries.inserted, *canaries.controls] if c.secret in said or c.prefix in said] == []
    assert [line for line in (place / "notas.txt").read_text().splitlines() if line in said] == []


def test_canaries_are_trained_on_but_shape_no_tokenizer(place: Path) -> None:
    mixture = CorpusMixture.of({"corpus:notas": place / "corpus"}, {"notas": 1.0})
    assert len(mixture.inserted["notas"]) == 3 * 31
    assert not set(mixture.inserted["notas"]) & set(mixture.sample(10**9))
    shard = read_json(place / "trained" / "shards" / "notas" / "manifest.json")
    assert shard["documents"] == len(mixture.train["notas"]) + 93


def test_a_model_that_did_not_read_all_of_it_is_refused(place: Path, tmp_path: Path) -> None:
    write_model_note(tmp_path, place / "trained" / "model", epochs={"notas": 0.5})
    settings = PrivacyConfig(kind="privacy", on="trained", corpus="notas")
    inputs = {"model": tmp_path, "reference": place / "never", "corpus": place / "corpus"}
    with pytest.raises(DataError, match="trained read 50% of notas"):
        PRIVACY.run(context(settings, tmp_path / "out", **inputs))
    long = PrivacyConfig(kind="privacy", on="trained", corpus="notas", length=64, prefix=64, extract=64)
    with pytest.raises(DataError, match=r"ask for 128 tokens; the model in .* reads 95"):
        PRIVACY.run(context(long, place / "long", **(inputs | {"model": place / "trained"})))


RECIPE: dict[str, Any] = {
    "recipe": "r",
    "corpora": {"a": {"path": "a.txt", "canaries": {}}, "b": {"path": "b.txt"}},
    "stages": {
        "new": {"kind": "pretrain", "corpora": {"a": 1.0}},
        "other": {"kind": "pretrain", "corpora": {"b": 1.0}},
        "twice": {"kind": "adapt", "on": "new", "corpora": {"b": 1.0}},
        "kept": {"kind": "privacy", "on": "new", "corpus": "a", "reference": "other"},
    },
}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"on": "other"}, "examines 'other', which does not itself train on 'a'"),
        ({"reference": "twice"}, "compares with 'new', which was trained on 'a' too"),
        ({"reference": "base"}, "give the recipe a `base`"),
        ({"reference": "kept"}, "'kept' stands on 'kept', which makes no model"),
        ({"on": "other", "corpus": "b", "limits": {"exposure": 3.0}}, "limits exposure, but 'b' has no `canaries`"),
    ],
)
def test_examinations_that_say_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    config.validate(Recipe, RECIPE, source="r")
    stages = RECIPE["stages"] | {"kept": RECIPE["stages"]["kept"] | keys}
    with pytest.raises(ConfigError, match=message):
        config.validate(Recipe, RECIPE | {"stages": stages}, source="r")


def test_a_canary_pattern_ends_in_its_secret() -> None:
    for pattern in ("{owner} {secret}.", "{secret}", "{owner}{secret}"):
        with pytest.raises(ValueError, match=r"needs \{owner\} once"):
            CanariesConfig(pattern=pattern)
