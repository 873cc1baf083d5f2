"""What a model kept of the text it was trained on: canaries, verbatim text, membership; and a gate on all of it.

Members are documents of the corpus that the model was trained on, others those held out of it by the digest of their
text: both come from one distribution. Where they do not, an attack tells topics or years apart and not membership (Duan
et al. 2024, Meeus et al. 2024). No text is printed or written to a report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.config import Config
from quilate.data.canaries import Canaries, Canary
from quilate.data.packing import Example
from quilate.errors import DataError
from quilate.files import read_json
from quilate.models.precision import Precision
from quilate.phases.corpus import canaries_of, corpus_documents
from quilate.phases.language_modelling import document_tokens
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of, once
from quilate.rng import numpy_stream

MIN_DOCUMENTS = 5  # of members and of others; with so few, intervals say almost nothing, and are as wide (guess)


class PrivacyLimits(Config):
    """The most that may be found. A limit holds for the upper end of the 95 % interval: what is not shown to be below
    it does not pass. Without a limit nothing is judged."""

    exposure: float | None = Field(default=None, gt=0)
    """Mean exposure, in bits, of the canaries with the fewest repeats; about 1.44 is what one never seen has."""
    extracted: float | None = Field(default=None, ge=0, le=1)
    """Share of the training documents that the model continues word for word, and the reference does not."""
    auc: float | None = Field(default=None, ge=0.5, le=1)
    """AUC of the strongest membership attack; 0.5 is chance."""
    true_positives: float | None = Field(default=None, ge=0, le=1)
    """True positives of the strongest membership attack at 1 % false positives; 0.01 is chance."""


class PrivacyConfig(Config):
    kind: Literal["privacy"]
    """What a model kept of the text it was trained on."""
    on: str
    """The `pretrain` or `adapt` stage whose model is examined."""
    corpus: str
    """The corpus to look for, one that the stage trains on."""
    reference: str = "base"
    """A model that was never trained on it: `base`, or a stage trained on other text."""
    documents: int = Field(default=300, ge=5)
    """Most training documents, and most documents held out, to judge; drawn at random."""
    length: int = Field(default=512, ge=8)
    """Most tokens of a document that are judged: its beginning, as the model was trained on it. Give the stage's."""
    prefix: int = Field(default=50, ge=1)
    """Tokens of a training document that the model is given, to see whether it goes on with the next `extract`."""
    extract: int = Field(default=50, ge=1)
    """Tokens that must be the document's own (Carlini et al. 2023 take 50 after 50)."""
    limits: PrivacyLimits = PrivacyLimits()
    """What `quilate run` ends with exit code 5 above of, after everything else is done."""
    precision: Precision = "auto"
    """Precision in which both models are run."""


@dataclass(frozen=True)
class _Subject:
    """One of the two models, with its tokenizer; loaded when it is first asked, and one at a time."""

    context: StageContext[PrivacyConfig]
    folder: Path

    @cached_property
    def model(self) -> PreTrainedModel:
        from quilate.models.load import load_causal
        from quilate.models.precision import compute_dtype

        return load_causal(self.folder, dtype=compute_dtype(self.context.config.precision))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from quilate.models.load import load_tokenizer

        return load_tokenizer(self.folder)

    @cached_property
    def room(self) -> int:
        """Tokens that the model can read."""
        from quilate.models.load import context_length

        return context_length(self.model)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's first piece, as it was trained on."""
        longest = min(self.context.config.length, self.room)
        return [tokens[:longest] for tokens in document_tokens(self.tokenizer, texts)]

    def log_probs(self, texts: Sequence[str]) -> list[np.ndarray]:
        """log p of each text's tokens, but the first."""
        examples = [
            Example(str(i), np.array(tokens, dtype=np.int64), np.ones(len(tokens), dtype=bool))
            for i, tokens in enumerate(self.tokens(texts))
        ]
        return self._judged(examples)

    def secret_losses(self, canaries: Sequence[Canary]) -> np.ndarray:
        """-log p of each secret after its sentence, in nats."""
        examples = []
        for index, (tokens, asked) in enumerate(zip(*self._canary_tokens(canaries), strict=True)):
            supervised = np.arange(len(tokens)) >= asked
            examples.append(Example(str(index), np.array(tokens, dtype=np.int64), supervised))
        return np.array([-values.sum() for values in self._judged(examples)])

    def secrets_written(self, canaries: Sequence[Canary]) -> list[bool]:
        """Whether the model, given the sentence, writes the secret."""
        pairs = list(zip(*self._canary_tokens(canaries), strict=True))
        return self._continued([tokens[:asked] for tokens, asked in pairs], [tokens[asked:] for tokens, asked in pairs])

    def continued(self, texts: Sequence[str]) -> list[bool | None]:
        """Whether the model goes on with each text word for word; None for one that is too short to ask.

        Raises:
            DataError: the model cannot read so much.
        """
        config = self.context.config
        whole = config.prefix + config.extract
        if whole >= self.room:
            raise DataError(
                f"prefix and extract ask for {whole} tokens; the model in {self.folder} reads {self.room - 1} "
                "after its opening",
                hint="lower them",
            )
        rows = [tokens[: 1 + whole] for tokens in document_tokens(self.tokenizer, texts)]
        long = [i for i, tokens in enumerate(rows) if len(tokens) == 1 + whole]
        asked = 1 + config.prefix  # the opening stands before the text
        hits = self._continued([rows[i][:asked] for i in long], [rows[i][asked:] for i in long])
        found: list[bool | None] = [None] * len(texts)
        for index, hit in zip(long, hits, strict=True):
            found[index] = hit
        return found

    def _canary_tokens(self, canaries: Sequence[Canary]) -> tuple[list[list[int]], list[int]]:
        """Each canary's tokens without its end, and how many of them stand before the secret."""
        rows = [tokens[:-1] for tokens in document_tokens(self.tokenizer, [c.text for c in canaries])]
        prefixes = [tokens[:-1] for tokens in document_tokens(self.tokenizer, [c.prefix.rstrip() for c in canaries])]
        asked = []
        for row, prefix in zip(rows, prefixes, strict=True):
            pairs = zip(row, prefix, strict=False)
            asked.append(next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(row), len(prefix))))
        return rows, asked

    def _judged(self, examples: list[Example]) -> list[np.ndarray]:
        from quilate.evaluation.memorization import token_log_probs

        found = token_log_probs(self.model, examples, self.context.stop.raise_if_set)
        return [found[example.id] for example in examples]

    def _continued(self, prompts: list[list[int]], answers: list[list[int]]) -> list[bool]:
        """Whether the greedy continuation of each prompt is its answer."""
        from quilate.inference.generation import Generator

        if not prompts:
            return []
        written = Generator(self.model, stop=()).generate(prompts, max_new_tokens=max(map(len, answers)))
        return [tokens[: len(answer)] == answer for tokens, answer in zip(written, answers, strict=True)]


def _run(context: StageContext[PrivacyConfig]) -> StageReport:
    config = context.config
    epochs = _epochs(context)
    members, others = (_sample(context, part) for part in ("train", "held_out"))
    canaries = canaries_of(context.inputs["corpus"])
    judged = {}
    for role in ("model", "reference"):
        subject = _Subject(context, model_of(context.inputs[role]))
        context.note(f"asking the {role} for {len(members)} documents of {config.corpus} and {len(others)} held out")
        judged[role] = once(context.folder / f"{role}.json", partial(_judge, subject, members, others, canaries))
    attacks = _attacks(judged, members, others)
    exposure = [] if canaries is None else _exposure(judged, canaries)
    extraction = _extraction(judged, len(members))
    findings: dict[str, Any] = {
        "corpus": config.corpus,
        "epochs": epochs,
        "members": len(members),
        "others": len(others),
        "controls": 0 if canaries is None else len(canaries.controls),
        "exposure": exposure,
        "attacks": attacks,
        "extraction": extraction,
    }
    findings["gates"] = _gates(config.limits, findings)
    for gate in findings["gates"]:
        context.note(f"{gate['name']}: up to {gate['seen']:.3f}, limit {gate['limit']:g}: " + _verdict(gate["passed"]))
    short = len(members) - extraction["asked"]
    counts = {"training documents too short to be asked for": short} if short else {}
    return StageReport(counts=counts, facts=findings)


def _verdict(passed: bool) -> str:
    return "passed" if passed else "NOT PASSED"


def _epochs(context: StageContext[PrivacyConfig]) -> float:
    """How often the model read the corpus.

    Raises:
        DataError: not even once, so that it is unknown which documents it read.
    """
    config = context.config
    epochs = float(read_json(context.inputs["model"] / "model.json").get("epochs", {}).get(config.corpus, 0.0))
    if epochs < 1:
        raise DataError(
            f"{config.on} read {epochs:.0%} of {config.corpus}: which of its documents are members is not known",
            hint=f"raise its `tokens`, or its share of {config.corpus}, to one epoch at least",
        )
    return epochs


def _sample(context: StageContext[PrivacyConfig], part: str) -> list[str]:
    """Documents of the corpus, in their order; never canaries.

    Raises:
        DataError: there are too few.
    """
    documents = corpus_documents(context.inputs["corpus"], part)
    if len(documents) < MIN_DOCUMENTS:
        raise DataError(
            f"the corpus {context.config.corpus} has {len(documents)} documents in its part {part}; "
            f"{MIN_DOCUMENTS} are needed",
            hint="give more text, smaller documents, or raise its held_out and held_out_bytes",
        )
    drawn = numpy_stream(0, "privacy", part).permutation(len(documents))[: context.config.documents]
    return [documents[index] for index in sorted(drawn.tolist())]


def _judge(subject: _Subject, members: list[str], others: list[str], canaries: Canaries | None) -> dict[str, Any]:
    """All that one model is asked, as JSON: log-probabilities of tokens, losses of secrets, what it wrote."""
    answers: dict[str, Any] = {
        "log_probs": {
            "members": [values.tolist() for values in subject.log_probs(members)],
            "others": [values.tolist() for values in subject.log_probs(others)],
        },
        "continued": {"members": subject.continued(members), "others": subject.continued(others)},
    }
    if canaries is not None:
        answers["inserted"] = subject.secret_losses(canaries.inserted).tolist()
        answers["controls"] = subject.secret_losses(canaries.controls).tolist()
        answers["written"] = subject.secrets_written(canaries.inserted)
    return answers


def _attacks(judged: dict[str, Any], members: list[str], others: list[str]) -> list[dict[str, Any]]:
    from quilate.evaluation.memorization import attack_power, attack_scores

    scores = {}
    for part, texts in (("members", members), ("others", others)):
        own, reference = ([np.array(v) for v in judged[role]["log_probs"][part]] for role in ("model", "reference"))
        scores[part] = attack_scores(own, reference, texts)
    return [
        {"name": name} | asdict(attack_power(scores["members"][name], scores["others"][name]))
        for name in scores["members"]
    ]


def _exposure(judged: dict[str, Any], canaries: Canaries) -> list[dict[str, Any]]:
    """For every number of repeats: the exposure of its canaries, and how many were written out."""
    from quilate.evaluation.memorization import exposures, mean_of

    repeats = np.array([canary.repeats for canary in canaries.inserted])
    bits = {role: exposures(np.array(a["inserted"]), np.array(a["controls"])) for role, a in judged.items()}
    rows = []
    for number in sorted(set(repeats.tolist())):
        at = repeats == number
        rows.append(
            {
                "repeats": number,
                "canaries": int(at.sum()),
                "bits": asdict(mean_of(bits["model"][at])),
                "bits_reference": asdict(mean_of(bits["reference"][at])),
                "written": int(np.array(judged["model"]["written"])[at].sum()),
                "written_reference": int(np.array(judged["reference"]["written"])[at].sum()),
            }
        )
    return rows


def _extraction(judged: dict[str, Any], members: int) -> dict[str, Any]:
    """Documents continued word for word: by the model, by the reference, by the model alone."""
    from quilate.evaluation.memorization import share_of

    own, reference = (judged[role]["continued"]["members"] for role in ("model", "reference"))
    asked = [i for i in range(members) if own[i] is not None]
    alone = sum(bool(own[i]) and not reference[i] for i in asked)
    held_out = [hit for hit in judged["model"]["continued"]["others"] if hit is not None]
    return {
        "asked": len(asked),
        "model": sum(bool(own[i]) for i in asked),
        "reference": sum(bool(reference[i]) for i in asked),
        "alone": alone,
        "share": asdict(share_of(alone, len(asked))) if asked else None,
        "held_out_asked": len(held_out),
        "held_out": sum(held_out),
    }


def _gates(limits: PrivacyLimits, findings: dict[str, Any]) -> list[dict[str, Any]]:
    """Each limit that was set, against the upper end of what was found."""
    inserted = [row for row in findings["exposure"] if row["repeats"]]
    share = findings["extraction"]["share"]
    seen: dict[str, Callable[[], float]] = {
        "exposure": lambda: inserted[0]["bits"]["high"],  # a limit on it was refused where there are no canaries
        "extracted": lambda: 1.0 if share is None else share["high"],
        "auc": lambda: max(attack["auc"]["high"] for attack in findings["attacks"]),
        "true_positives": lambda: max(attack["true_positives"]["high"] for attack in findings["attacks"]),
    }
    gates = []
    for name, highest in seen.items():
        limit = getattr(limits, name)
        if limit is not None:
            gates.append({"name": name, "limit": limit, "seen": highest(), "passed": highest() <= limit})
    return gates


PRIVACY = StageKind("privacy", 1, PrivacyConfig, _run)
