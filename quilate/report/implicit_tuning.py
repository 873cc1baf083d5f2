"""The page and the figure of `quilate icl analyse`: the paper's measures, those of the controls, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from quilate.evaluation.implicit_tuning import interval_of_mean
from quilate.files import write_text
from quilate.phases.icl_analysis import SeedAnalysis, Settings, Variant
from quilate.report.figures import INK, MUTED, SERIES, STYLE, standalone, svg_of

UNTRAINED = "untrained model"
NAMES = {
    "demonstrations": "the demonstrations",
    "random labels": "control: with random labels",
    "other order": "control: in another order",
    "random update": "control: as large a change, at random",
    UNTRAINED: "control: a model with random weights",
}
PANELS = {
    "sim_aou": "SimAOU: change of attention's output",
    "sim_aou_normalized": "the same, normalized first (as published)",
    "sim_am_change": "SimAM: change of the attention map",
}
COLUMNS = {
    "sim_aou": "SimAOU",
    "sim_aou_normalized": "normalized",
    "sim_am": "SimAM",
    "sim_am_change": "SimAM change",
    "kendall": "Kendall",
}
# Dai et al. 2022, tables 2 to 4, GPT 1.3B and 2.7B, averaged over their six tasks; SimAOU is normalized there.
PUBLISHED = {
    "recall": "0.86 / 0.89",
    "sim_aou_normalized": "0.19 / 0.23",
    "sim_am": "0.44 / 0.43",
    "kendall": "0.19 / 0.21",
}


def write_analysis(
    page: Path, found: Sequence[SeedAnalysis], settings: Settings, *, model: str, task: str
) -> list[Path]:
    """Write `page` and its figure beside it as `STEM-layers.svg`; returns both."""
    figure = page.with_name(f"{page.stem}-layers.svg")
    write_text(figure, standalone(by_layer(found)))
    write_text(page, _page(found, settings, figure.name, model=model, task=task))
    return [page, figure]


def variants_of(found: Sequence[SeedAnalysis]) -> dict[str, list[Variant]]:
    """Name -> that variant of every seed, the untrained model last."""
    names = {name: [seed.variants[name] for seed in found] for name in found[0].variants}
    return names | {UNTRAINED: [seed.untrained for seed in found]}


def by_layer(found: Sequence[SeedAnalysis]) -> str:
    """Three panels over the layers, a colour a variant; means over items and seeds."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 3.9), layout="constrained")
        for axes, (measure, title) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
            for index, (name, variants) in enumerate(variants_of(found).items()):
                values = np.mean([variant.by_layer[measure] for variant in variants], axis=0)
                axes.plot(range(1, len(values) + 1), values, color=SERIES[index], lw=1.6, label=NAMES[name])
            axes.axhline(0, color=MUTED, lw=0.8)
            axes.set_title(title, loc="left", fontsize=9, color=MUTED)
            axes.set_xlabel("layer")
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, labelcolor=INK
        )
        return svg_of(figure, "icl-layers", "Similarity of in-context learning and fine-tuning by layer")


def conclusion(found: Sequence[SeedAnalysis]) -> str:
    """What SimAOU, not normalized, allows to say: whether tuning on the demonstrations is more like in-context learning
    than every control on the same model is."""
    values = {name: _by_item(variants, "sim_aou") for name, variants in variants_of(found).items()}
    real = values.pop("demonstrations")
    nearest = max((n for n in values if n != UNTRAINED), key=lambda n: float(values[n].mean()))
    low, high = interval_of_mean(real - values[nearest])
    against = (
        f"{float(np.mean(real - values[nearest])):+.3f}, 95 % interval {low:+.3f} to {high:+.3f} over items, against "
        f"the nearest, {NAMES[nearest].removeprefix('control: ')}"
    )
    if low > 0:
        first = (
            "Fine-tuning on the demonstrations changes attention's output more like in-context learning than any "
            f"control on the same model does ({against})."
        )
    else:
        first = (
            "Fine-tuning on the demonstrations is not more like in-context learning than a control is "
            f"({against}): the similarity says "
            "nothing of what the demonstrations teach."
        )
    variants = variants_of(found)
    means = {
        measure: [float(_by_item(variants[name], measure).mean()) for name in (UNTRAINED, "demonstrations")]
        for measure in PANELS
    }
    reached = [f"{COLUMNS[m]} ({none:.3f} against {some:.3f})" for m, (none, some) in means.items() if none >= some]
    second = ""
    if reached:
        second = (
            " A model with random weights, which has learned nothing in context, reaches as much in "
            f"{', '.join(reached)}: such a height must not be read as evidence."
        )
    return first + second


def _page(found: Sequence[SeedAnalysis], settings: Settings, figure: str, *, model: str, task: str) -> str:
    rows = [_row(NAMES[name], variants) for name, variants in variants_of(found).items()]
    published = [
        "Dai et al. 2022, 1.3B / 2.7B", "", PUBLISHED["recall"], "", PUBLISHED["sim_aou_normalized"],
        PUBLISHED["sim_am"], "", PUBLISHED["kendall"],
    ]  # fmt: skip
    header = ["Fine-tuned on", "Accuracy", "Rec2FTP", *COLUMNS.values()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---", *["---:"] * 7], *rows, published])
    mean = {
        name: float(np.mean([getattr(seed, name) for seed in found]))
        for name in ("zero_shot", "in_context", "sim_am_before")
    }
    zero, shown, before = (f"{mean['zero_shot']:.1%}", f"{mean['in_context']:.1%}", f"{mean['sim_am_before']:.3f}")
    rates = ", ".join(f"{seed.rate:g} (seed {seed.seed})" for seed in found)
    return f"""# Is in-context learning implicit fine-tuning? {task}

{conclusion(found)}

Model {model}; {settings.shots} demonstrations, {len(found)} draws of them; accuracies over at most {settings.items}
test items, similarities over {settings.observed}. Zero-shot {zero}, in context {shown}. SimAM before tuning {before}.
Prompts have the default template. Learning rate, chosen on {settings.dev} development items: {rates}.
{_momentum(found)}
{table}

![Similarity by layer]({figure})

- **Rec2FTP**: of the items that fine-tuning gets right and the model alone wrong, the share that in-context learning
  gets right; in brackets the items.
- **SimAOU**: cosine between what the demonstrations and what fine-tuning change in attention's output; in brackets the
  95 % interval over items.
- **SimAM**: cosine of the attention maps; *change*: after taking off the zero-shot map.
- **Kendall**: the order in which both weight the demonstrations' tokens.
- Fine-tuning is the paper's: SGD, one demonstration a step, each once, keys' and values' projections only, loss on
  {"all tokens" if settings.loss == "all" else "the label alone"}.

## What may and may not be concluded

- Similarity is not mechanism: that both change the same thing alike does not show that one is done by the other. The
  equivalence "remains an open hypothesis" (Shen et al. 2023).
- Only differences from the controls count. Normalizing makes independent noise look alike (a cosine of exactly 1/4
  where its squared length is three times the output's), so the published SimAOU stands here beside its plain form.
- The paper chose seed and learning rate on the items it reports; here the choice and the score have items of their own.
"""


def _momentum(found: Sequence[SeedAnalysis]) -> str:
    """A paragraph on momentum attention, or nothing where it was not tried."""
    tried = [seed.momentum for seed in found if seed.momentum is not None]
    if not tried:
        return ""
    accuracy = float(np.mean([one.accuracy for one in tried]))
    plain = float(np.mean([seed.in_context for seed in found]))
    chosen = ", ".join(
        f"{one.rate:g} (of {', '.join(one.dev_accuracy)}; seed {s.seed})" for one, s in zip(tried, found, strict=True)
    )
    return f"""
Momentum attention (section 5), laid over the model while it reads the demonstrations: {accuracy:.1%} in context against
{plain:.1%} without. Rate chosen on the development items: {chosen}. The paper trained models with it; this one
never learned with it.
"""


def _row(name: str, variants: list[Variant]) -> list[str]:
    accuracy = float(np.mean([variant.accuracy for variant in variants]))
    gained, right = (sum(getattr(v.recall, part) for v in variants) for part in ("gained", "found"))
    recall = f"{right / gained:.2f} ({right} of {gained})" if gained else "nothing gained"
    cells = []
    for measure in COLUMNS:
        values = _by_item(variants, measure)
        low, high = interval_of_mean(values)
        interval = f" ({low:.3f} to {high:.3f})" if measure in ("sim_aou", "sim_am_change") else ""
        cells.append(f"{float(values.mean()):.3f}{interval}")
    return [name, f"{accuracy:.1%}", recall, *cells]


def _by_item(variants: list[Variant], measure: str) -> np.ndarray:
    """[N] means over seeds; the items are the same for all."""
    values: np.ndarray = np.mean([variant.by_item[measure] for variant in variants], axis=0)
    return values
