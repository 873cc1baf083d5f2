"""The report's fixed strings: key -> English, Spanish."""

from __future__ import annotations

from quilate.report.alignment_catalogue import ALIGNMENT
from quilate.report.catalogue_text import TEXT

_BOTH: dict[str, tuple[str, str]] = {
    "title": ("Evidence: {task}", "Evidencia: {task}"),
    "standing": (
        "{metric} on the same {items:items} for every method. Base model: {base}.",
        "{metric} sobre los mismos {items:items} para todos los métodos. Modelo base: {base}.",
    ),
    "standing.groups": ("The items come from {groups:groups}.", "Los casos proceden de {groups:groups}."),
    "metric.accuracy": ("Share of right answers (accuracy)", "Proporción de aciertos (exactitud)"),
    "metric.macro_f1": ("Macro-F1", "Macro-F1"),
    "metric.micro_f1": ("Micro-F1 over all labels of all texts", "Micro-F1 sobre todas las etiquetas de los textos"),
    "metric.exact_match": ("Share of exactly right answers", "Proporción de respuestas exactas"),
    "metric.token_f1": (
        "F1 of the answer's words, mean over the questions",
        "F1 de las palabras de la respuesta, media de las preguntas",
    ),
    "metric.span_f1": (
        "Micro-F1 of entities, start, end and label all right",
        "Micro-F1 de entidades, con inicio, fin y etiqueta correctos",
    ),
    "metric.span_f1_partial": (
        "Micro-F1 of entities, one found in part counting half",
        "Micro-F1 de entidades; la hallada en parte cuenta la mitad",
    ),
    "short.accuracy": ("Right answers", "Aciertos"),
    "short.macro_f1": ("Macro-F1", "Macro-F1"),
    "short.micro_f1": ("Micro-F1", "Micro-F1"),
    "short.exact_match": ("Exact", "Exactas"),
    "short.token_f1": ("Word F1", "F1 de palabras"),
    "short.span_f1": ("Entity F1", "F1 de entidades"),
    "short.span_f1_partial": ("Entity F1, partial", "F1 de entidades, parcial"),
    "warnings": ("Before you rely on this", "Antes de fiarse de esto"),
    # arms
    "arms": ("The methods compared", "Los métodos comparados"),
    "arm": ("Method", "Método"),
    "phase": ("Phase", "Fase"),
    "interval": ("{confidence}% interval", "Intervalo del {confidence}\N{NO-BREAK SPACE}%"),
    "range": ("{low} to {high}", "de {low} a {high}"),
    "interval_over.items": ("over items", "sobre los casos"),
    "interval_over.items and seeds": ("over items and seeds", "sobre casos y semillas"),
    "seeds": ("Runs", "Ejecuciones"),
    "cost": ("Cost", "Coste"),
    "cost_1000": ("Per 1,000 predictions", "Por 1000 predicciones"),
    "train_rows": ("Labelled rows", "Filas etiquetadas"),
    "train_tokens": ("Training tokens", "Tokens de entrenamiento"),
    "flops": ("Training compute", "Cómputo de entrenamiento"),
    "memory": ("Peak memory", "Memoria máxima"),
    "parameters": ("Trained parameters", "Parámetros entrenados"),
    "verdict": ("Verdict", "Veredicto"),
    "badge.recommended": ("recommended", "recomendado"),
    "badge.contender": ("not ruled out", "no descartado"),
    "badge.ruled_out": ("ruled out", "descartado"),
    "badge.over_budget": ("over budget", "fuera de presupuesto"),
    "badge.leaked": ("leaked", "con fuga"),
    "phase.baseline": ("Baseline", "Referencia"),
    "phase.in-context": ("Prompting", "Instrucciones"),
    "phase.pretraining": ("Pretraining", "Preentrenamiento"),
    "phase.adaptation": ("Adaptation", "Adaptación"),
    "phase.fine-tuning": ("Fine-tuning", "Ajuste fino"),
    "phase.alignment": ("Alignment", "Alineamiento"),
    "costs.note": (
        "Cost of one run, everything it stands on included; the mean over seeds.",
        "Coste de una ejecución, con todo aquello en lo que se apoya; media sobre las semillas.",
    ),
    # figures
    "figure.cost": ("Score against cost", "Puntuación frente a coste"),
    "figure.cost.note": (
        "Higher is better, further left is cheaper. Bars are intervals. The line joins the methods that no other beats "
        "in both score and cost (the Pareto front). {items:items}; seeds as in the table.",
        "Más arriba es mejor, más a la izquierda es más barato. Las barras son intervalos. La línea une los métodos a "
        "los que ningún otro supera a la vez en puntuación y coste (frente de Pareto). {items:items}; semillas, las de "
        "la tabla.",
    ),
    "axis.cost": ("Cost of one run (logarithmic)", "Coste de una ejecución (logarítmico)"),
    "curves": ("Learning curves", "Curvas de aprendizaje"),
    "curves.note": (
        "Training loss, one line for each run, lightly smoothed; the faint line is the raw loss.",
        "Pérdida de entrenamiento, una línea por ejecución, ligeramente suavizada; la línea tenue es la pérdida bruta.",
    ),
    "shots": ("Solved examples and score", "Ejemplos resueltos y puntuación"),
    "shots.note": (
        "On {items:items} of the development set, where the prompt is chosen, not on the test items. A point is the "
        "mean over the prompts tried (seeds, templates, orders), the line its interval, the pale bar the lowest and "
        "highest of them.",
        "Con {items:items} de desarrollo, donde se elige cómo preguntar, no con los de prueba. Cada punto es la media "
        "de "
        "las formas probadas (semillas, plantillas, órdenes); la línea, su intervalo; la barra pálida, la menor y la "
        "mayor.",
    ),
    "axis.shots": ("Solved examples in the prompt", "Ejemplos resueltos en la instrucción"),
    "shots.fit": ("all that fit", "los que caben"),
    "tasks": ("What each model knows of each task", "Lo que sabe cada modelo de cada tarea"),
    "tasks.note": (
        "Score on the test items of each task. Below it, in points, what the last step of training gained or lost.",
        "Puntuación en los casos de prueba de cada tarea. Debajo, en puntos, lo que ganó o perdió el último paso del "
        "entrenamiento.",
    ),
    "tasks.trained_on": ("Last trained on", "Último entrenamiento"),
    "tasks.step": ("{step} on {against}", "{step} sobre {against}"),
    "tasks.transfer": (
        "{task}: {model}, which learned another task first, against {against}, trained on it directly: {difference} "
        "points ({low} to {high}; {items:items}).",
        "{task}: {model}, que aprendió antes otra tarea, frente a {against}, entrenado directamente: {difference} "
        "puntos (de {low} a {high}; {items:items}).",
    ),
    "tasks.interference": (
        "{task}: {model}, which learned several tasks together, against {against}, which learned it alone: "
        "{difference} points ({low} to {high}; {items:items}).",
        "{task}: {model}, que aprendió varias tareas a la vez, frente a {against}, que aprendió solo esta: "
        "{difference} puntos (de {low} a {high}; {items:items}).",
    ),
    "search": ("Settings tried and score", "Ajustes probados y puntuación"),
    "search.rank": ("How low-dimensional is the task?", "¿De qué dimensión es la tarea?"),
    "search.note": (
        "On {items:items} of the development set, where settings are chosen, not on the test items. A point is the "
        "mean over seeds, the line its interval, the pale bar the lowest and highest of them.",
        "Con {items:items} de desarrollo, donde se eligen los ajustes, no con los de prueba. Cada punto es la media "
        "sobre las semillas; la línea, su intervalo; la barra pálida, la menor y la mayor.",
    ),
    "search.enough": (
        "{arm}: from {value} on, more cannot be worth {margin:points}.",
        "{arm}: a partir de {value}, más no puede valer {margin:points}.",
    ),
    "axis.search.lora.rank": ("Rank of the low-rank update", "Rango de la actualización de rango bajo"),
    "axis.search.lr": ("Peak learning rate", "Tasa de aprendizaje máxima"),
    "axis.search.adapter.size": ("Width of the bottleneck", "Anchura del cuello de botella"),
    "axis.search.epochs": ("Passes over the training rows", "Pasadas por las filas de entrenamiento"),
    "axis.search.head.regularization": ("Inverse strength of the penalty", "Inverso de la fuerza de la penalización"),
    "axis.step": ("Training step", "Paso de entrenamiento"),
    "axis.loss": ("Loss (nats per token)", "Pérdida (nats por token)"),
    "swipe": ("Swipe sideways to see all of it.", "Deslice hacia un lado para verlo entero."),
    "confusion": ("What is taken for what", "Qué se confunde con qué"),
    "confusion.note": (
        "{arm}: each row is a true label, each column the label it was given; a cell is the share of the row, in per "
        "cent. {items:items}, {seeds:runs}.",
        "{arm}: cada fila es una etiqueta verdadera y cada columna la etiqueta asignada; cada celda es la proporción "
        "de "
        "la fila, en tanto por ciento. {items:items}, {seeds:runs}.",
    ),
    "axis.given": ("Label given (number as on the left)", "Etiqueta asignada (número como a la izquierda)"),
    "calibration": ("Do the probabilities mean what they say?", "¿Significan las probabilidades lo que dicen?"),
    "calibration.note": (
        "{arm}: items are sorted by confidence into bins of equal size. On the diagonal, of the items answered with "
        "70% "
        "confidence 70% are right; below it the method is overconfident. {items:items}, {seeds:runs}.",
        "{arm}: los casos se ordenan por confianza en tramos de igual tamaño. En la diagonal, de los casos respondidos "
        "con un 70 % de confianza acierta el 70 %; por debajo, el método se fía demasiado. {items:items}, "
        "{seeds:runs}.",
    ),
    "axis.confidence": ("Confidence", "Confianza"),
    "axis.right": ("Share right", "Proporción de aciertos"),
    "ece": ("Calibration error (ECE)", "Error de calibración (ECE)"),
    "brier": ("Brier score (0 to 2)", "Puntuación de Brier (0 a 2)"),
    "log_loss": ("Log loss (nats)", "Pérdida logarítmica (nats)"),
    "lower_better": ("In all three, lower is better.", "En las tres, menos es mejor."),
    # comparisons
    "comparisons": ("Each pair compared", "Cada par comparado"),
    "comparisons.note": (
        "Differences in percentage points on the same {items:items}. “Adjusted p” allows for the {pairs:count} "
        "comparisons made (Holm); below 0.05 the difference is hardly chance.",
        "Diferencias en puntos porcentuales sobre los mismos {items:items}. «p ajustada» tiene en cuenta las "
        "{pairs:count} comparaciones hechas (Holm); por debajo de 0,05 la diferencia difícilmente es azar.",
    ),
    "better": ("Better", "Mejor"),
    "worse": ("Worse", "Peor"),
    "difference": ("Difference", "Diferencia"),
    "p": ("p", "p"),
    "p_holm": ("adjusted p", "p ajustada"),
    "test": ("Test", "Prueba"),
    "test.bootstrap": ("bootstrap", "bootstrap"),
    "test.McNemar exact": ("McNemar, exact", "McNemar, exacta"),
    "test.McNemar chi-square": ("McNemar, chi-square", "McNemar, ji cuadrado"),
    # per class
    "classes": ("Label by label", "Etiqueta por etiqueta"),
    "classes.note.classification": (
        "F1 in per cent for every method, mean over its runs (100 is perfect). “Items” is how many test items have the "
        "label: with few, the number says little.",
        "F1 en tanto por ciento para cada método, media de sus ejecuciones (100 es perfecto). «Casos» es cuántos casos "
        "de prueba tienen la etiqueta: si son pocos, la cifra dice poco.",
    ),
    "classes.note.multiple_choice": (
        "F1 in per cent for every method, by the place of the right option, mean over its runs (100 is perfect): a "
        "method that prefers a place shows here. “Items” is how many test items have the right one there.",
        "F1 en tanto por ciento para cada método, según el lugar de la opción correcta, media de sus ejecuciones (100 "
        "es perfecto): aquí se ve si un método prefiere un lugar. «Casos» es cuántos casos de prueba tienen ahí la "
        "correcta.",
    ),
    "classes.note.multi_label": (
        "F1 in per cent for every method, mean over its runs (100 is perfect). “Texts” is how many test texts have "
        "each label: with few, the number says little.",
        "F1 en tanto por ciento para cada método, media de sus ejecuciones (100 es perfecto). «Textos» es cuántos "
        "textos de prueba tienen cada etiqueta: si son pocos, la cifra dice poco.",
    ),
    "classes.note.extraction": (
        "F1 in per cent for every method, start, end and label all right, mean over its runs (100 is perfect). "
        "“Entities” is how many the test documents have of each label: with few, the number says little.",
        "F1 en tanto por ciento para cada método, con inicio, fin y etiqueta correctos, media de sus ejecuciones (100 "
        "es perfecto). «Entidades» es cuántas de cada etiqueta tienen los documentos de prueba: si son pocas, la cifra "
        "dice poco.",
    ),
    "gold.classification": ("Items", "Casos"),
    "gold.multiple_choice": ("Items", "Casos"),
    "gold.multi_label": ("Texts", "Textos"),
    "gold.extraction": ("Entities", "Entidades"),
    "label": ("Label", "Etiqueta"),
    # language modelling
    "modelling": ("Language modelling", "Modelado del lenguaje"),
    "modelling.note": (
        "Bits needed per byte of held-out text; lower is better.",
        "Bits necesarios por byte de texto reservado; menos es mejor.",
    ),
    "models": ("The models made from text", "Los modelos hechos a partir de texto"),
    "models.note": (
        "How well each predicts text held out of every corpus, before and after; lower is better. Only values of one "
        "measure compare.",
        "Cómo predice cada uno el texto reservado de cada corpus, antes y después; menos es mejor. Solo se comparan "
        "valores de una misma medida.",
    ),
    "measure": ("Measure", "Medida"),
    "measure.bits per byte": ("bits per byte", "bits por byte"),
    "measure.nats per masked token": ("nats per masked token", "nats por token oculto"),
    "parameters.all": ("Parameters", "Parámetros"),
    "model": ("Model", "Modelo"),
    # lineage
    "lineage": ("Where it comes from", "De dónde procede"),
    "lineage.note": (
        "Every step from the source files to the results. The code is the fingerprint of all that went into a step: "
        "the same code is the same result.",
        "Cada paso desde los archivos de origen hasta los resultados. El código es la huella de todo lo que entró en "
        "un "
        "paso: el mismo código es el mismo resultado.",
    ),
    "stage": ("Step", "Paso"),
    "kind": ("Kind", "Tipo"),
    "fingerprint": ("Code", "Código"),
    "from": ("From", "A partir de"),
    "time": ("Time", "Tiempo"),
    "reused": ("reused", "reutilizado"),
    # a study that is not finished
    "cells.note": (
        "Not finished: {done:count} of {all:count} cells were run, so nothing is recommended. Scores are on the same "
        "{items:items}; times are those of the method's own stage and its evaluation.",
        "Sin terminar: se ejecutaron {done:count} de {all:count} celdas, así que no se recomienda nada. Las "
        "puntuaciones "
        "son sobre los mismos {items:items}; los tiempos, los de la etapa del propio método y su evaluación.",
    ),
    "cells.not_run": ("not run", "sin ejecutar"),
    "seed": ("Seed", "Semilla"),
    "score": ("Score", "Puntuación"),
    # data
    "data": ("The data, and what was left out", "Los datos, y lo que quedó fuera"),
    "data.rows": ("Rows", "Filas"),
    "data.train": ("Training", "Entrenamiento"),
    "data.dev": ("Development", "Desarrollo"),
    "data.test": ("Test", "Prueba"),
    "data.labels": ("Labels", "Etiquetas"),
    "data.language": ("Language", "Idioma"),
    "data.group": ("Kept together by", "Agrupados por"),
    "data.groups_in_test": ("Groups in the test rows", "Grupos en las filas de prueba"),
    "data.dropped": ("Dropped: {reason}", "Descartadas: {reason}"),
    "data.nothing_dropped": ("No row was dropped.", "No se descartó ninguna fila."),
    "data.quarantined": ("Quarantined (unreadable)", "En cuarentena (ilegibles)"),
    "data.truncated": ("Truncated (too long)", "Truncadas (demasiado largas)"),
    "data.leak": ("Is the test text in the training text?", "¿Está el texto de prueba en el de entrenamiento?"),
    "leak.clean": ("No", "No"),
    "leak.leaked, allowed": ("Yes; the run was told to go on", "Sí; se pidió seguir adelante"),
    "leak.items": ("{items:items} occur in two splits", "{items:items} en dos particiones"),
    "leak.not run": ("Not checked", "No se comprobó"),
    "count.filtered": ("not chosen by the recipe's filter", "no elegidas por el filtro de la receta"),
    "count.empty_text": ("empty text", "texto vacío"),
    "count.missing_label": ("no label", "sin etiqueta"),
    "count.unusable_options": (
        "fewer than two options, an empty one, or two alike",
        "menos de dos opciones, alguna vacía o dos iguales",
    ),
    "count.unusable_answer": ("right answer not among the options", "respuesta correcta ausente de las opciones"),
    "count.unseen_label": ("label not seen in training", "etiqueta ausente del entrenamiento"),
    "count.dropped_leaks": ("also in a later split", "también en otra partición"),
    "count.unused": ("not needed for the sizes asked for", "no necesarias para los tamaños pedidos"),
    "count.prompts cut": ("training texts cut to fit", "textos de entrenamiento recortados"),
    "count.dev prompts cut": ("development texts cut to fit", "textos de desarrollo recortados"),
    "count.test prompts cut": ("test texts cut to fit", "textos de prueba recortados"),
    "count.demonstrations that did not fit": (
        "solved examples that did not fit into the prompt",
        "ejemplos resueltos que no cupieron en la instrucción",
    ),
    "count.test prompts with fewer demonstrations": (
        "test prompts with fewer solved examples than asked for",
        "casos de prueba con menos ejemplos resueltos de los pedidos",
    ),
    "count.test answers without log-probabilities": (
        "test answers read from the text, for want of log-probabilities",
        "respuestas de prueba leídas del texto, por falta de probabilidades",
    ),
    "count.test answers that name no label": (
        "test answers that name no label (all labels then score the same)",
        "respuestas de prueba que no nombran ninguna etiqueta (todas puntúan entonces igual)",
    ),
    "count.test answers from the cache": (
        "test answers that were there from an earlier run",
        "respuestas de prueba que ya estaban de una ejecución anterior",
    ),
    "count.texts in several windows": (
        "training texts read in several windows",
        "textos de entrenamiento leídos en varias ventanas",
    ),
    "count.test texts in several windows": (
        "test texts read in several windows",
        "textos de prueba leídos en varias ventanas",
    ),
    "count.texts without a token": ("training texts without a token", "textos de entrenamiento sin ningún token"),
    "count.documents in several windows": (
        "training documents read in several windows",
        "documentos de entrenamiento leídos en varias ventanas",
    ),
    "count.dev documents in several windows": (
        "development documents read in several windows",
        "documentos de desarrollo leídos en varias ventanas",
    ),
    "count.test documents in several windows": (
        "test documents read in several windows",
        "documentos de prueba leídos en varias ventanas",
    ),
    "count.spans inside longer ones": (
        "training entities left out, inside longer ones",
        "entidades de entrenamiento omitidas por estar dentro de otras",
    ),
    "count.spans that end inside a token": (
        "training entities whose ends no token has",
        "entidades de entrenamiento cuyos extremos caen dentro de un token",
    ),
    "count.spans that no window shows whole": (
        "training entities that no window shows whole",
        "entidades de entrenamiento que ninguna ventana muestra enteras",
    ),
    "count.spans that their record does not find": (
        "training entities that a search for their text does not find again",
        "entidades de entrenamiento que la búsqueda de su texto no vuelve a hallar",
    ),
    "count.windows with too long an answer": (
        "windows left out of training for too long an answer",
        "ventanas omitidas del entrenamiento por respuesta demasiado larga",
    ),
    "count.test answers that did not end": (
        "test answers that did not end by themselves",
        "respuestas de prueba que no terminaron por sí mismas",
    ),
    "count.test answers cut short": ("test answers cut short", "respuestas de prueba cortadas"),
    "count.test answers that are no records": (
        "test answers that are no list of records",
        "respuestas de prueba que no son una lista de registros",
    ),
    "count.test records that stand nowhere": (
        "records of test answers that stand nowhere in the text",
        "registros de respuestas de prueba que no están en el texto",
    ),
    "count.refused updates": ("updates refused (not finite)", "actualizaciones rechazadas (no finitas)"),
    "count.loss spikes": ("steps whose loss was a spike", "pasos con un pico de la pérdida"),
    "count.rewinds after a loss spike": (
        "times training went back to earlier parameters after a spike",
        "veces que el entrenamiento volvió a parámetros anteriores tras un pico",
    ),
    "count.times micro-batches were halved": (
        "times micro-batches were halved for lack of memory",
        "veces que los microlotes se dividieron por falta de memoria",
    ),
    "count.refused estimates of curvature": (
        "estimates of curvature refused (not finite)",
        "estimaciones de curvatura rechazadas (no finitas)",
    ),
    "count.visits over the token budget": (
        "visits to examples left out by the token budget",
        "visitas a ejemplos omitidas por el presupuesto de tokens",
    ),
    # machine
    "machine": ("Where the times were taken", "Dónde se midieron los tiempos"),
    "machine.cpu": ("Processor", "Procesador"),
    "machine.cores": ("Cores", "Núcleos"),
    "machine.memory": ("Memory", "Memoria"),
    "machine.gpu": ("Accelerator", "Acelerador"),
    "machine.gpu.none": ("none", "ninguno"),
    "machine.load": ("Load while timing", "Carga durante la medición"),
    "machine.load.value": ("{load:decimal} on {cores:count} cores", "{load:decimal} con {cores:count} núcleos"),
    "machine.load.unknown": ("not measured", "no se midió"),
    "machine.torch": ("PyTorch", "PyTorch"),
    "machine.dtype": ("Number format", "Formato numérico"),
    "machine.platform": ("System", "Sistema"),
    # method
    "method": ("How this was computed", "Cómo se calculó"),
    "method.items": (
        "Every method answered the same {items:items} of the test set, which none of them saw in training.",
        "Todos los métodos respondieron a los mismos {items:items} de prueba, que ninguno vio al entrenar.",
    ),
    "method.interval": (
        "Intervals: the test items are drawn again at random, with repetition, {resamples:count} times, and every "
        "method "
        "is scored on each draw. The middle {confidence}% of the scores is the interval; two methods are always "
        "compared "
        "on the same draw. It is never narrower than what so few items could hide.",
        "Intervalos: los casos de prueba se vuelven a sortear, con repetición, {resamples:count} veces, y cada "
        "método se "
        "puntúa en cada sorteo. El {confidence} % central de las puntuaciones es el intervalo; dos métodos se comparan "
        "siempre en el mismo sorteo. Nunca es más estrecho que lo que tan pocos casos podrían ocultar.",
    ),
    "method.groups": (
        "Items of one group are drawn together, as they are not independent of one another.",
        "Los casos de un mismo grupo se sortean juntos, porque no son independientes entre sí.",
    ),
    "method.seeds": (
        "A seed is one training run with its own random start and order. With at least 5 seeds the runs are drawn too; "
        "with fewer, the interval is over items only, and says so. A deterministic method needs one run.",
        "Una semilla es una ejecución del entrenamiento con su propio inicio y orden al azar. Con al menos 5 semillas "
        "también se sortean las ejecuciones; con menos, el intervalo abarca solo los casos, y así se indica. A un "
        "método "
        "determinista le basta una ejecución.",
    ),
    "method.rule": (
        "Recommendation: the cheapest method over which no other can have an advantage of {margin:points} or more, "
        "judging by the upper end of the interval of the difference. If no method meets this, the answer is "
        "“undecided”, with the number of items that would decide.",
        "Recomendación: el método más barato sobre el que ningún otro puede tener una ventaja de {margin:points} o "
        "más, "
        "según el extremo superior del intervalo de la diferencia. Si ninguno lo cumple, la respuesta es «sin "
        "decidir», "
        "con el número de casos que decidirían.",
    ),
    "method.budget": ("Budget for each method: {budget}.", "Presupuesto para cada método: {budget}."),
    "method.budget.none": ("No budget was set.", "No se fijó presupuesto."),
    "method.budget.tokens": ("{tokens:count} training tokens", "{tokens:count} tokens de entrenamiento"),
    "footer": (
        "Recipe {recipe} · quilate {version} · base model {base} ({parameters} parameters, {sha})",
        "Receta {recipe} · quilate {version} · modelo base {base} ({parameters} parámetros, {sha})",
    ),
}

STRINGS: dict[str, dict[str, str]] = {
    "en": {key: english for key, (english, _) in (_BOTH | ALIGNMENT | TEXT).items()},
    "es": {key: spanish for key, (_, spanish) in (_BOTH | ALIGNMENT | TEXT).items()},
}
