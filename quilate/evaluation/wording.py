"""The sentences that follow from the numbers, in English and Spanish.

A `Notice` carries a code and raw numbers; here it becomes a sentence. Templates format by meaning: `{x:percent}`,
`{x:points}`, `{x:money}`, `{x:items}`, `{x:seeds}`, `{x:groups}`, `{x:count}`, `{x:duration}`, `{x:names}`.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import Any

from quilate.errors import QuilateError
from quilate.evaluation.schema import Notice

LANGUAGES = ("en", "es")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400

_NOUNS = {
    "en": {"items": ("item", "items"), "seeds": ("seed", "seeds"), "groups": ("group", "groups"),
           "points": ("point", "points"), "labels": ("label", "labels")},
    "es": {"items": ("caso", "casos"), "seeds": ("semilla", "semillas"), "groups": ("grupo", "grupos"),
           "points": ("punto", "puntos"), "labels": ("etiqueta", "etiquetas")},
}  # fmt: skip


def number(value: float, decimals: int, lang: str) -> str:
    """Fixed decimals, thousands apart: 1,234.5 in English; in Spanish 1234,5 and 12 345,6 (RAE: a space from five "
    "digits)."""
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    text = text.replace("-", "\N{MINUS SIGN}")
    if lang == "en":
        return text
    whole, point, fraction = text.partition(".")
    whole = whole.replace(",", "\N{NARROW NO-BREAK SPACE}" if abs(value) >= 10_000 else "")
    return whole + ("," if point else "") + fraction


def percent(share: float, lang: str) -> str:
    """0.7134 -> 71.3% or, in Spanish, 71,3 %."""
    return number(100 * share, 1, lang) + ("%" if lang == "en" else "\N{NO-BREAK SPACE}%")


def points(difference: float, lang: str) -> str:
    """A difference of two shares in percentage points: 0.021 -> 2.1 points."""
    text = number(100 * difference, 1, lang)
    whole = text.removesuffix(".0").removesuffix(",0")
    return f"{whole}\N{NO-BREAK SPACE}{_NOUNS[lang]['points'][whole != '1']}"


def duration(seconds: float, lang: str) -> str:
    """Two units at most: 0.2 s, 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 0.001:
        return "< 1 ms".replace(" ", "\N{NO-BREAK SPACE}")
    if seconds < 1:
        text = f"{seconds * 1000:.0f} ms"
    elif seconds < 10:
        text = f"{number(seconds, 1, lang)} s"
    elif seconds < 2 * _MINUTE:
        text = f"{seconds:.0f} s"
    elif seconds < 2 * _HOUR:
        text = f"{seconds / _MINUTE:.0f} min"
    elif seconds < 2 * _DAY:
        text = f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"
    else:
        text = f"{seconds // _DAY:.0f} d {seconds % _DAY // _HOUR:.0f} h"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def names(items: list[str], lang: str) -> str:
    """a, b and c; quoted where a name holds a comma of its own."""
    if len(items) < 2:
        return "".join(items)
    last = "and" if lang == "en" else "e" if items[-1].lower().startswith(("i", "í")) else "y"
    if any("," in item for item in items):
        items = [f"“{item}”" if lang == "en" else f"«{item}»" for item in items]
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def runs(count: int, lang: str) -> str:
    """How many seeds stand behind a number; 0 is one run that no seed can change."""
    if count == 0:
        return "one deterministic run" if lang == "en" else "una ejecución determinista"
    return f"{count}\N{NO-BREAK SPACE}{_NOUNS[lang]['seeds'][count != 1]}"


class _Formatter(string.Formatter):
    def __init__(self, lang: str) -> None:
        self.lang = lang

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec in _NOUNS[self.lang] and format_spec != "points":
            return f"{number(value, 0, self.lang)}\N{NO-BREAK SPACE}{_NOUNS[self.lang][format_spec][value != 1]}"
        if format_spec == "count":
            return number(value, 0, self.lang)
        if format_spec == "decimal":
            return number(value, 1, self.lang)
        if format_spec == "money":
            return number(value, 2 if value >= 1 else 4, self.lang)
        if format_spec == "bare":
            return number(100 * value, 1, self.lang)
        if format_spec == "factor":
            return number(value, 0 if value >= 10 else 1, self.lang)
        by_meaning: dict[str, Callable[[Any, str], str]] = {
            "percent": percent,
            "points": points,
            "duration": duration,
            "names": names,
            "runs": runs,
        }
        return by_meaning[format_spec](value, self.lang) if format_spec in by_meaning else str(value)


def fill(template: str, values: Mapping[str, Any], lang: str) -> str:
    """Format a template of ours; `values` are data and are never read as templates."""
    return _Formatter(lang).vformat(template, (), values)


def say(notice: Notice, lang: str) -> str:
    """The sentence of a notice.

    Raises:
        QuilateError: its code has no wording.
    """
    if notice.code not in SENTENCES[lang]:
        raise QuilateError(f"no wording for notice '{notice.code}' in '{lang}'")
    return fill(SENTENCES[lang][notice.code], notice.values, lang)


ENGLISH = {
    "text": "{text}",
    # headlines
    "train": "Train: {arm} is worth its cost.",
    "dont_train": "Don't train: prompting is enough ({arm}).",
    "no_llm": "You need no language model: {arm} is enough.",
    "no_model": "Nothing here is worth more than always giving the commonest answer ({arm}).",
    "undecided": "Undecided: label about {more:count} more items.",
    "undecided_seeds": "Undecided: more labelled items would not help; run more seeds.",
    "undecided_budget": "Undecided: no method stayed within the budget.",
    # reasons
    "scored_accuracy": "{arm} gets {score:percent} of the answers right ({low:percent} to {high:percent}; "
    "{items:items}, {seeds:runs}).",
    "scored_macro_f1": "{arm} reaches a macro-F1 of {score:percent} ({low:percent} to {high:percent}; {items:items}, "
    "{seeds:runs}).",
    "scored_micro_f1": "{arm} reaches a micro-F1 of {score:percent} ({low:percent} to {high:percent}; {items:items}, "
    "{seeds:runs}).",
    "scored_exact_match": "{arm} answers {score:percent} exactly ({low:percent} to {high:percent}; {items:items}, "
    "{seeds:runs}).",
    "scored_token_f1": "{arm} reaches a token F1 of {score:percent} ({low:percent} to {high:percent}; {items:items}, "
    "{seeds:runs}).",
    "scored_span_f1": "{arm} reaches an entity F1 of {score:percent} ({low:percent} to {high:percent}; {items:items}, "
    "{seeds:runs}).",
    "scored_span_f1_partial": "{arm} reaches an entity F1, partial finds counting half, of {score:percent} "
    "({low:percent} to {high:percent}; {items:items}, {seeds:runs}).",
    "clearly_best": "Every other method is worse; the closest, {other}, by {difference:points} ({low:points} to "
    "{high:points}).",
    "within_margin": "No other method can be better by as much as {margin:points}, the margin you set: "
    "{other} comes closest, with {bound:points} at most.",
    "cheapest": "It is also the cheapest.",
    "cheaper_fails": "The best of the cheaper methods, {cheaper}, may be behind by up to {bound:points}.",
    "costs_less": "The highest score, {score:percent} by {best}, cost {factor:factor} times as much "
    "({best_seconds:duration} against {seconds:duration}).",
    "training_bought": "Training bought {difference:points} ({low:bare} to {high:bare}) over the best method "
    "without training, {other}, and cost {seconds:duration}.",
    "undecided_between": "On {items:items}, {arms:names} cannot be told apart to within {margin:points}.",
    "undecided_one": "{arm} leads, but on {items:items} the others cannot be ruled out.",
    "still_possible": "Closest to a decision is {arm}: {other} may still be better than it by up to {bound:points}.",
    "items_needed": "About {total:items} in all, {more:count} more than now, would decide with a chance of 80%, even "
    "if the leading methods are equally good.",
    "groups_needed": "That is about {groups:groups} more, as items of one group count together.",
    "seeds_needed": "The runs of one method differ too much between seeds for any number of items to decide.",
    "ruled_out": "Ruled out, as more than {margin:points} behind: {arms:names}.",
    "all_over_budget": "Every method cost more than the budget allows.",
    "holds_for": "This holds for the base model {base}, this task and this budget.",
    "holds_here": "This holds for this task and this budget; no language model was tried.",
    # warnings
    "leaked": "The training text of {arms:names} overlaps the test items. Their scores are too high to be trusted; "
    "the run went on because it was told to.",
    "over_seconds": "{arm} is over the budget ({spent:duration} against {budget:duration}); it is shown, but not "
    "eligible.",
    "over_tokens": "{arm} is over the budget ({spent:count} training tokens against {budget:count}); it is shown, but "
    "not eligible.",
    "items_only": "The intervals of {arms:names} are over items only: with fewer than 5 seeds, the spread between "
    "runs is not in them. Every run's score is shown.",
    "seed_spread": "The runs of {arm} differ by {spread:points} between seeds ({seeds:seeds}), more than the margin "
    "of {margin:points}.",
    "single_arm": "There is only one eligible method, so nothing was compared.",
    "absent_labels": "{count:labels} of {labels} have no test item, so nothing is known about them: {names:names}.",
    "rare_labels": "{count:labels} with fewer than {items} test items weigh as much in macro-F1 as the frequent ones; "
    "its intervals are then somewhat too narrow.",
    "few_groups": "There are only {groups:groups} in the test items; intervals over so few are rough.",
    "never_tested": "{count:labels} never tested, for want of a second example or group, or of room in the test rows: "
    "{names:names}.",
    "unseen_span_labels": "{count:count} entities of the {split} documents have labels that no training document has, "
    "and cannot be found: {names:names}.",
    "unseen_text_labels": "{count:count} labels of the {split} texts are ones that no training text has, and cannot be "
    "given: {names:names}.",
    "overlapping_spans": "{count:count} of the {of:count} entities of the {split} documents overlap a longer one. A "
    "tagger does not learn them and cannot find them; they count as missed all the same.",
    "splits_leak": "The splits share texts or groups (allow_leak): scores are too high by an unknown amount.",
    "fewer_rows": "{asked:count} {split} rows were asked for and {available:count} are there; all of them are used.",
    "other_language": "{share:percent} of the corpus {corpus} is not in the language it should be in ({language}).",
    "made_once": "{names:names}: made once for all seeds, so how much another seed would change it is in no interval.",
    "prompts_tried": "{arm}: {runs:count} prompts were tried on {items:items} of the development set, and scored "
    "{low:percent} to {high:percent} there. Each seed's best was used; the time of all counts.",
    "sent_away": "{arm}: the texts of {items:items} and of the examples in their prompts were sent to {host}.",
    "paid": "{arm} was paid for: {money:money} for dev and test items, {per_1000:money} for 1,000 predictions (in the "
    "currency of the prices stated).",
    "kept_too_much": "{stage}: {model} may have kept more of {corpus} than the recipe allows; see what it kept, below.",
    # alignment
    "policy_better": "{policy} beats {start}, no alignment, in {rate:percent} of {prompts:count} prompts ({low:bare} "
    "to {high:bare}), judged by {judge}: better.",
    "policy_worse": "{policy} beats {start}, no alignment, in only {rate:percent} of {prompts:count} prompts "
    "({low:bare} to {high:bare}), judged by {judge}: worse. Don't align this way.",
    "policy_undecided": "{policy} beats {start}, no alignment, in {rate:percent} of {prompts:count} prompts "
    "({low:bare} to {high:bare}), judged by {judge}: undecided.",
    "unaligned_added": "Added, so that no alignment is there to compare with: {names:names}.",
    "not_compared": "No win rates: the recipe does not say what to ask and who judges (`alignment`).",
    "judged_by_its_reward": "{policy} was trained against what judges it here ({names:names}): its scores are too high "
    "by an unknown amount.",
    "judge_no_better_than_length": "The judge {judge} is not shown to be better than preferring by length alone, on "
    "{pairs:count} held-out pairs of {set}: what it prefers says little.",
    "derived_sets": "{names:names}: pairs derived by a rule; nobody judged them, and agreement with them is no "
    "agreement with people.",
    "prompts_not_shared": "{count:count} prompts could not be asked of every model and are left out.",
    "leak_not_run": "The leak check did not run: nobody knows whether the training text contains the test items.",
    "busy_machine": "The machine was busy while times were taken (load {load:decimal} on {cores} cores); they may be "
    "too long.",
}

SPANISH = {
    "text": "{text}",
    "train": "Entrene: {arm} vale lo que cuesta.",
    "dont_train": "No entrene: basta con dar instrucciones al modelo ({arm}).",
    "no_llm": "No necesita un modelo de lenguaje: basta con {arm}.",
    "no_model": "Nada de lo probado vale más que dar siempre la respuesta más frecuente ({arm}).",
    "undecided": "Sin decidir: etiquete unos {more:count} casos más.",
    "undecided_seeds": "Sin decidir: más casos etiquetados no ayudarían; ejecute más semillas.",
    "undecided_budget": "Sin decidir: ningún método respetó el presupuesto.",
    "scored_accuracy": "{arm} acierta el {score:percent} de las respuestas (de {low:percent} a {high:percent}; "
    "{items:items}, {seeds:runs}).",
    "scored_macro_f1": "{arm} alcanza un macro-F1 del {score:percent} (de {low:percent} a {high:percent}; "
    "{items:items}, {seeds:runs}).",
    "scored_micro_f1": "{arm} alcanza un micro-F1 del {score:percent} (de {low:percent} a {high:percent}; "
    "{items:items}, {seeds:runs}).",
    "scored_exact_match": "{arm} responde exactamente el {score:percent} (de {low:percent} a {high:percent}; "
    "{items:items}, {seeds:runs}).",
    "scored_token_f1": "{arm} alcanza un F1 de palabras del {score:percent} (de {low:percent} a {high:percent}; "
    "{items:items}, {seeds:runs}).",
    "scored_span_f1": "{arm} alcanza un F1 de entidades del {score:percent} (de {low:percent} a {high:percent}; "
    "{items:items}, {seeds:runs}).",
    "scored_span_f1_partial": "{arm} alcanza un F1 de entidades, contando la mitad lo hallado en parte, del "
    "{score:percent} (de {low:percent} a {high:percent}; {items:items}, {seeds:runs}).",
    "clearly_best": "Todos los demás métodos son peores; el más cercano, {other}, por {difference:points} (de "
    "{low:points} a {high:points}).",
    "within_margin": "Ningún otro método puede superarlo en {margin:points}, el margen que usted fijó: "
    "el que más se acerca es {other}, con {bound:points} como mucho.",
    "cheapest": "Además es el más barato.",
    "cheaper_fails": "El mejor de los métodos más baratos, {cheaper}, puede quedar hasta {bound:points} por debajo.",
    "costs_less": "La puntuación más alta, {score:percent} con {best}, multiplicó el coste por {factor:factor} "
    "({best_seconds:duration} frente a {seconds:duration}).",
    "training_bought": "Entrenar aportó {difference:points} (de {low:bare} a {high:bare}) sobre el mejor método "
    "sin entrenamiento, {other}, y costó {seconds:duration}.",
    "undecided_between": "Con {items:items}, no es posible distinguir entre {arms:names} con un margen de "
    "{margin:points}.",
    "undecided_one": "{arm} va por delante, pero con {items:items} no es posible descartar los demás.",
    "still_possible": "El más cerca de decidirse es {arm}: {other} aún puede superarlo hasta en {bound:points}.",
    "items_needed": "Unos {total:items} en total, {more:count} más que ahora, decidirían con una probabilidad del "
    "80\N{NO-BREAK SPACE}%, aunque los mejores métodos fueran igual de buenos.",
    "groups_needed": "Eso equivale a unos {groups:groups} más, porque los casos de un mismo grupo cuentan juntos.",
    "seeds_needed": "Las ejecuciones de un mismo método difieren demasiado entre semillas para que más casos decidan.",
    "ruled_out": "Descartados, por quedar más de {margin:points} por debajo: {arms:names}.",
    "all_over_budget": "Todos los métodos costaron más de lo que permite el presupuesto.",
    "holds_for": "Esto vale para el modelo base {base}, esta tarea y este presupuesto.",
    "holds_here": "Esto vale para esta tarea y este presupuesto; no se probó ningún modelo de lenguaje.",
    "leaked": "El texto de entrenamiento de {arms:names} se solapa con los casos de prueba. Sus puntuaciones son "
    "demasiado altas para fiarse; la ejecución siguió porque así se pidió.",
    "over_seconds": "{arm} supera el presupuesto ({spent:duration} frente a {budget:duration}); se muestra, pero no es "
    "elegible.",
    "over_tokens": "{arm} supera el presupuesto ({spent:count} tokens de entrenamiento frente a {budget:count}); se "
    "muestra, pero no es elegible.",
    "items_only": "Los intervalos de {arms:names} solo abarcan los casos: con menos de 5 semillas, no incluyen la "
    "variación entre ejecuciones. Se muestra la puntuación de cada ejecución.",
    "seed_spread": "Las ejecuciones de {arm} difieren en {spread:points} entre semillas ({seeds:seeds}), más que el "
    "margen de {margin:points}.",
    "single_arm": "Solo hay un método elegible, así que no se comparó nada.",
    "absent_labels": "{count:labels} de {labels} no tienen ningún caso de prueba, así que nada se sabe de ellas: "
    "{names:names}.",
    "rare_labels": "{count:labels} con menos de {items} casos de prueba pesan en el macro-F1 tanto como las "
    "frecuentes; sus intervalos resultan entonces algo estrechos.",
    "few_groups": "Solo hay {groups:groups} en los casos de prueba; los intervalos sobre tan pocos son imprecisos.",
    "never_tested": "{count:labels} sin ningún caso de prueba, por falta de un segundo ejemplo o grupo, o de sitio "
    "entre las filas de prueba: {names:names}.",
    "unseen_span_labels": "{count:count} entidades de los documentos de {split} tienen etiquetas que ningún documento "
    "de entrenamiento tiene, y no pueden hallarse: {names:names}.",
    "unseen_text_labels": "{count:count} etiquetas de los textos de {split} son de las que ningún texto de "
    "entrenamiento tiene, y no pueden asignarse: {names:names}.",
    "overlapping_spans": "{count:count} de las {of:count} entidades de los documentos de {split} se solapan con otra "
    "más larga. Un etiquetador no las aprende ni puede hallarlas; aun así cuentan como falladas.",
    "splits_leak": "Las particiones comparten textos o grupos (allow_leak): las puntuaciones son demasiado altas, no "
    "se sabe cuánto.",
    "fewer_rows": "Se pidieron {asked:count} filas para {split} y hay {available:count}; se usan todas.",
    "other_language": "El {share:percent} del corpus {corpus} no está en el idioma en que debería ({language}).",
    "made_once": "{names:names}: hecho una sola vez para todas las semillas; ningún intervalo incluye cuánto lo "
    "cambiaría otra.",
    "prompts_tried": "{arm}: se probaron {runs:count} formas de preguntar con {items:items} de desarrollo, donde "
    "obtuvieron de {low:percent} a {high:percent}. Se usó la mejor de cada semilla; cuenta el tiempo de todas.",
    "sent_away": "{arm}: los textos de {items:items} y de los ejemplos de sus instrucciones se enviaron a {host}.",
    "paid": "{arm} se pagó: {money:money} por los casos de desarrollo y de prueba, {per_1000:money} por cada 1000 "
    "predicciones (en la moneda de los precios indicados).",
    "kept_too_much": "{stage}: {model} puede haber retenido de {corpus} más de lo que permite la receta; vea abajo qué "
    "retuvo.",
    "policy_better": "{policy} gana a {start}, sin alineamiento, en el {rate:percent} de {prompts:count} preguntas (de "
    "{low:bare} a {high:bare}) según {judge}: mejor.",
    "policy_worse": "{policy} gana a {start}, sin alineamiento, solo en el {rate:percent} de {prompts:count} preguntas "
    "(de {low:bare} a {high:bare}) según {judge}: peor. No alinee así.",
    "policy_undecided": "{policy} gana a {start}, sin alineamiento, en el {rate:percent} de {prompts:count} preguntas "
    "(de {low:bare} a {high:bare}) según {judge}: sin decidir.",
    "unaligned_added": "Añadido, para poder comparar con la ausencia de alineamiento: {names:names}.",
    "not_compared": "No hay comparación por pares: la receta no dice qué preguntar ni quién juzga (`alignment`).",
    "judged_by_its_reward": "{policy} se entrenó con lo mismo que aquí lo juzga ({names:names}): sus puntuaciones son "
    "demasiado altas, no se sabe cuánto.",
    "judge_no_better_than_length": "No está demostrado que el juez {judge} sea mejor que preferir solo por longitud, "
    "con {pairs:count} pares reservados de {set}: lo que prefiere dice poco.",
    "derived_sets": "{names:names}: pares derivados por una regla; nadie los juzgó, y coincidir con ellos no es "
    "coincidir con personas.",
    "prompts_not_shared": "{count:count} preguntas no pudieron hacerse a todos los modelos y quedan fuera.",
    "leak_not_run": "No se comprobó si hay fuga: no se sabe si el texto de entrenamiento contiene los casos de prueba.",
    "busy_machine": "La máquina estaba ocupada al medir los tiempos (carga {load:decimal} con {cores} núcleos); "
    "pueden ser excesivos.",
}

SENTENCES = {"en": ENGLISH, "es": SPANISH}
