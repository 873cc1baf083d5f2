"""The report's fixed strings on the texts that models were trained on: which share words, and what was kept of them."""

from __future__ import annotations

TEXT: dict[str, tuple[str, str]] = {
    # domains
    "domains": ("Which texts use the same words", "Qué textos usan las mismas palabras"),
    "domains.note": (
        "Of the 10,000 most frequent words of each text, function words left out, the share that both have, in per "
        "cent (of fewer words, where one text has fewer). A domain far from the task seldom helps it.",
        "De las 10\N{NARROW NO-BREAK SPACE}000 palabras más frecuentes de cada texto, sin las gramaticales, la "
        "proporción que ambos tienen, en tanto por ciento (de menos palabras, si un texto tiene menos). Un dominio "
        "lejano a la tarea rara vez la ayuda.",
    ),
    "domains.words": ("{words:count} words", "{words:count} palabras"),
    # privacy
    "privacy": ("What the models kept of their text", "Qué retuvieron los modelos de su texto"),
    "privacy.note": (
        "No text is shown here. Limits of the recipe hold for the upper end of an interval: what is not shown to be "
        "below does not pass.",
        "Aquí no se muestra ningún texto. Los límites de la receta valen para el extremo superior de cada intervalo: "
        "lo que no se demuestra por debajo no pasa.",
    ),
    "privacy.one": ("{model}, trained on {corpus}", "{model}, entrenado con {corpus}"),
    "privacy.setting": (
        "It read the text {epochs} times. Judged on {members:count} of its documents and {others:count} held out of "
        "it, against {reference}, which never saw either.",
        "Leyó el texto {epochs} veces. Se examinó con {members:count} de sus documentos y {others:count} reservados, "
        "frente a {reference}, que no vio ninguno.",
    ),
    "gate": ("Limit on", "Límite de"),
    "gate.seen": ("May be as high as", "Puede llegar a"),
    "gate.limit": ("Limit", "Límite"),
    "gate.passed": ("passed", "superado"),
    "gate.refused": ("not passed", "no superado"),
    "gate.exposure": ("exposure of the rarest canaries (bits)", "exposición de los canarios menos repetidos (bits)"),
    "gate.extracted": (
        "share of documents continued word for word",
        "proporción de documentos continuados al pie de la letra",
    ),
    "gate.auc": ("AUC of the strongest attack", "AUC del ataque más fuerte"),
    "gate.true_positives": (
        "true positives of the strongest attack, at 1% false ones",
        "verdaderos positivos del ataque más fuerte, con 1\N{NO-BREAK SPACE}% de falsos",
    ),
    "exposure.note": (
        "Canaries are made-up secrets that were put into the text. Exposure (Carlini et al. 2019) says how far ahead "
        "of {controls:count} others, never put in, the model ranks them: on average 1.44 bits if it never saw one.",
        "Los canarios son secretos inventados que se añadieron al texto. La exposición (Carlini et al. 2019) dice "
        "cuánto los antepone el modelo a otros {controls:count} que no se añadieron: 1,44 bits de media si no vio "
        "ninguno.",
    ),
    "repeats": ("Times in the text", "Veces en el texto"),
    "canaries": ("Canaries", "Canarios"),
    "exposure": ("Mean exposure (bits)", "Exposición media (bits)"),
    "exposure.reference": ("Of the reference", "De la referencia"),
    "written": ("Secrets written when asked (reference)", "Secretos escritos al preguntar (referencia)"),
    "written.of": ("{model:count} ({reference:count})", "{model:count} ({reference:count})"),
    "attacks.note": (
        "Can it be told whether a document was trained on? AUC 0.5 is chance. The rate is of the {members:count} "
        "members found when 1% of the {others:count} others are accused wrongly; 1% is chance.",
        "¿Se puede saber si un documento se usó para entrenar? Un AUC de 0,5 es azar. La tasa es la de los "
        "{members:count} documentos usados que se reconocen cuando se acusa en falso al 1\N{NO-BREAK SPACE}% de los "
        "{others:count} reservados; 1\N{NO-BREAK SPACE}% es azar.",
    ),
    "attack": ("Attack", "Ataque"),
    "attack.rate": ("True positives at 1% false", "Verdaderos positivos con 1\N{NO-BREAK SPACE}% de falsos"),
    "attack.loss": ("loss", "pérdida"),
    "attack.reference": ("loss against the reference's", "pérdida frente a la de la referencia"),
    "attack.zlib": ("loss against compressed size", "pérdida frente al tamaño comprimido"),
    "attack.min_k": ("least likely fifth of the tokens (Min-K%)", "quinta parte menos probable de los tokens (Min-K%)"),
    "extraction": (
        "Given the beginning of {asked:count} training documents, the model goes on word for word in {model:count}, "
        "the reference in {reference:count}; the model alone in {alone:count} (95% interval of the share: "
        "{low:percent} to {high:percent}). Of {held_out_asked:count} documents held out: {held_out:count}.",
        "Dado el comienzo de {asked:count} documentos de entrenamiento, el modelo sigue al pie de la letra en "
        "{model:count} y la referencia en {reference:count}; solo el modelo, en {alone:count} (intervalo del "
        "95\N{NO-BREAK SPACE}% de la proporción: de {low:percent} a {high:percent}). De {held_out_asked:count} "
        "documentos reservados: {held_out:count}.",
    ),
    "extraction.none": (
        "No training document was long enough to ask for its continuation.",
        "Ningún documento de entrenamiento era bastante largo para pedir su continuación.",
    ),
    "axis.repeats": ("Times in the text (logarithmic)", "Veces en el texto (logarítmico)"),
    "axis.exposure": ("Exposure (bits)", "Exposición (bits)"),
    "figure.exposure": ("Exposure of canaries against repeats", "Exposición de los canarios según sus repeticiones"),
    "figure.exposure.note": (
        "Mean exposure and its interval, by how often a canary stood in the text; dashed: the reference.",
        "Exposición media y su intervalo, según las veces que un canario estaba en el texto; a trazos, la referencia.",
    ),
}
