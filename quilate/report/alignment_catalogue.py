"""The strings of the report's part on alignment: key -> English, Spanish."""

from __future__ import annotations

ALIGNMENT: dict[str, tuple[str, str]] = {
    "alignment": ("What alignment was worth", "Qué valió el alineamiento"),
    "alignment.title": ("Alignment: {recipe}", "Alineamiento: {recipe}"),
    "alignment.note": (
        "Every model answered the same {prompts:count} held-out prompts ({groups:groups}; from {sets}). A model beats "
        "another on a prompt if the judge scores its answer higher; equal scores are half a win for each. The model "
        "that nothing was aligned in stands for “no alignment”.",
        "Todos los modelos respondieron a las mismas {prompts:count} preguntas reservadas ({groups:groups}; de "
        "{sets}). Un modelo gana a otro en una pregunta si el juez puntúa mejor su respuesta; con igual puntuación, "
        "media victoria para cada uno. El modelo en que no se alineó nada representa «sin alineamiento».",
    ),
    "alignment.kl.note": (
        "KL: how far a model has moved from the one it was aligned from, in nats an answer of its own. Strength: "
        "log-odds to beat {first} under the Bradley-Terry model. Intervals: whole groups of prompts drawn again, "
        "{resamples:count} times; they hold no spread between seeds, whose scores stand below the mean.",
        "KL: cuánto se ha alejado un modelo de aquel del que partió, en nats por respuesta propia. Fuerza: logaritmo "
        "de la ventaja de ganar a {first} según el modelo de Bradley-Terry. Intervalos: grupos enteros de preguntas "
        "sorteados de nuevo, {resamples:count} veces; no incluyen la variación entre semillas, cuyas puntuaciones van "
        "bajo la media.",
    ),
    "policy": ("Model", "Modelo"),
    "policy.no_alignment": ("no alignment", "sin alineamiento"),
    "policy.from": ("from {start}", "a partir de {start}"),
    "judge": ("Judge", "Juez"),
    "win_rate": ("Beats no alignment", "Gana a sin alineamiento"),
    "strength": ("Strength", "Fuerza"),
    "kl": ("KL", "KL"),
    "answer_tokens": ("Tokens an answer", "Tokens por respuesta"),
    "answers_ended": ("Answers that end", "Respuestas que acaban"),
    "contests": ("Each pair of models", "Cada par de modelos"),
    "contests.note": (
        "How often the first beats the second on the same {prompts:count} prompts.",
        "Cuántas veces gana el primero al segundo en las mismas {prompts:count} preguntas.",
    ),
    "contests.ties": ("Ties", "Empates"),
    "first": ("First", "Primero"),
    "second": ("Second", "Segundo"),
    "frontier": ("Score against distance", "Puntuación frente a distancia"),
    "frontier.note": (
        "Further up, the judge ({judge}) likes the answers better; further right, the model has moved further from "
        "where it started. Bars are intervals over {prompts:count} prompts. Lines join models that differ in β alone, "
        "written beside them.",
        "Más arriba, las respuestas gustan más al juez ({judge}); más a la derecha, el modelo se ha alejado más de su "
        "punto de partida. Las barras son intervalos sobre {prompts:count} preguntas. Las líneas unen modelos que solo "
        "difieren en β, que va escrita al lado.",
    ),
    "axis.kl": ("KL from no alignment (nats an answer)", "KL desde sin alineamiento (nats por respuesta)"),
    "axis.reward": ("Mean score by {judge}", "Puntuación media según {judge}"),
    "pairs": ("Agreement with judgements held out", "Acuerdo con juicios reservados"),
    "pairs.note": (
        "How often the preferred answer of a held-out pair gets the higher score. Chance is 50%; “by length alone” "
        "prefers longer (or shorter) answers and reads nothing.",
        "Cuántas veces la respuesta preferida de un par reservado recibe la puntuación más alta. Al azar, el "
        "50\u00a0%; «solo por longitud» prefiere las respuestas más largas (o más cortas) sin leer nada.",
    ),
    "pairs.set": ("Judgements", "Juicios"),
    "pairs.count": ("Pairs (groups)", "Pares (grupos)"),
    "pairs.accuracy": ("Right", "Aciertos"),
    "pairs.length": ("By length alone", "Solo por longitud"),
    "pairs.difference": ("Difference", "Diferencia"),
    "pairs.derived": ("derived, not judged", "derivados, no juzgados"),
    "pairs.longer": ("longer preferred", "prefiere las largas"),
    "pairs.shorter": ("shorter preferred", "prefiere las cortas"),
    "by.reward": ("reward model", "modelo de recompensa"),
    "by.implied reward": ("reward that the policy implies", "recompensa implícita de la política"),
    "by.log-probability": ("log-probability a token", "probabilidad logarítmica por token"),
    "training": ("How training from rewards went", "Cómo fue el entrenamiento con recompensas"),
    "training.note": (
        "First iteration → last. Reward: mean score of what was written. KL: nats an answer from the reference. "
        "Entropy: nats a token; near 0 it always writes the same. No spread: prompts whose answers all got one score, "
        "from which nothing is learned. Explained: how much of the returns the value model foresees (1 all, 0 "
        "nothing). Clipped: tokens whose gradient was stopped.",
        "Primera iteración → última. Recompensa: puntuación media de lo escrito. KL: nats por respuesta desde la "
        "referencia. Entropía: nats por token; cerca de 0 escribe siempre lo mismo. Sin diferencias: preguntas cuyas "
        "respuestas recibieron todas la misma puntuación, de las que nada se aprende. Previsto: cuánto de lo que "
        "vendrá prevé el modelo de valor (1 todo, 0 nada). Recortado: tokens cuyo gradiente se detuvo.",
    ),
    "training.iterations": ("Iterations", "Iteraciones"),
    "training.score": ("Reward", "Recompensa"),
    "training.entropy": ("Entropy", "Entropía"),
    "training.without_spread": ("No spread", "Sin diferencias"),
    "training.explained_variance": ("Explained", "Previsto"),
    "training.clipped": ("Clipped", "Recortado"),
    "rules": ("What rules found", "Qué hallaron las reglas"),
    "rules.note": (
        "The share of held-out completions in which a rule is found, before and after; the change is of the same "
        "prompts.",
        "Proporción de respuestas reservadas en que se halla una regla, antes y después; el cambio es en las mismas "
        "preguntas.",
    ),
    "rules.rule": ("Rule", "Regla"),
    "rules.before": ("Before", "Antes"),
    "rules.after": ("After", "Después"),
    "tax": ("What it cost in other abilities", "Qué costó en otras capacidades"),
    "tax.note": (
        "The alignment tax: each measure without alignment and with it. Bits per byte are of one whole text and have "
        "no interval; lower is better. Task scores are of arms that differ in the model alone; higher is better.",
        "El impuesto del alineamiento: cada medida sin alineamiento y con él. Los bits por byte son de un texto entero "
        "y no tienen intervalo; menos es mejor. Las puntuaciones en la tarea son de métodos que solo difieren en el "
        "modelo; más es mejor.",
    ),
    "tax.measure": ("Measure", "Medida"),
    "tax.of": ("Of", "De"),
    "tax.before": ("Without", "Sin"),
    "tax.after": ("With", "Con"),
}
