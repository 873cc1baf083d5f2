"""A model behind an endpoint labels as the same model does at home: the local scorer is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openai_server import ModelServer, serving
from support import SENTENCES, tiny_llama, tiny_tokenizer

from quilate.inference.api_answers import label_named
from quilate.inference.api_client import Endpoint, Prices
from quilate.inference.api_model import TOP_TOKENS, ApiModel, Asking
from quilate.inference.api_scorer import ApiScorer
from quilate.inference.demonstrations import Pool
from quilate.inference.scorer import PromptScorer, load_scorer

VERBALIZERS = ["piel", "oído izquierdo", "Tórax"]
LABELS = ["L", "H", "J"]
TEMPLATE = "Diagnóstico: {{ text }}\nCapítulo:"
SHOWN = [("Otitis aguda", "oído izquierdo"), ("Eccema", "piel")]
TEXTS = SENTENCES[:4]


@pytest.fixture
def server() -> Any:
    with serving(tiny_llama(), tiny_tokenizer()) as running:
        yield running


def api_scorer(server: ModelServer, folder: Path, **keys: Any) -> ApiScorer:
    asking = {"model": "m", "endpoint": "completions", "answers": "likelihood", "normalization": "mean",
              "max_tokens": 4} | keys.pop("asking", {})  # fmt: skip
    endpoint, prices = Endpoint(server.url, retries=1, concurrency=2), Prices(1.0, 1.0, most=100.0)
    model = ApiModel(Asking(**asking), endpoint, prices, folder / "responses")
    keys = {"demonstrations": SHOWN} | keys
    return ApiScorer(LABELS, VERBALIZERS, template=TEMPLATE, instruction="Clasifica.", model=model, **keys)


def at_home(directory: Path, **keys: Any) -> PromptScorer:
    keys = {"demonstrations": SHOWN, "instruction": "Clasifica.", "precision": "fp32"} | keys
    return PromptScorer(directory, LABELS, VERBALIZERS, template=TEMPLATE, **keys)


@pytest.mark.parametrize("normalization", ["mean", "sum", "first"])
def test_likelihoods_are_the_local_models(
    normalization: Any, server: ModelServer, tmp_path: Path, llama_directory: Path
) -> None:
    found = api_scorer(server, tmp_path, asking={"normalization": normalization}).score(TEXTS)
    expected = at_home(llama_directory, normalization=normalization).score(TEXTS)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert found.counts == {
        "answers without log-probabilities": 0, "answers that name no label": 0, "answers from the cache": 0,
    }  # fmt: skip
    assert found.tokens == server.read + server.written
    assert found.cost == pytest.approx((server.read + server.written) / 1e6)


def test_every_item_with_its_own_examples(server: ModelServer, tmp_path: Path, llama_directory: Path) -> None:
    pool = Pool([(s, VERBALIZERS[n % 3]) for n, s in enumerate(SENTENCES[4:])], 2, "nearest_last", seed=0)
    found = api_scorer(server, tmp_path, demonstrations=(), pool=pool).score(TEXTS)
    expected = at_home(llama_directory, demonstrations=(), pool=pool).score(TEXTS)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)


def test_first_tokens_are_the_models(server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the whole vocabulary listed, a label's score is the probability of all tokens that begin it."""
    monkeypatch.setitem(TOP_TOKENS, "chat", 384)
    asking = {"endpoint": "chat", "answers": "first_token", "max_tokens": 1}
    found = api_scorer(server, tmp_path, asking=asking).score(TEXTS)
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    for row, text in enumerate(TEXTS):
        turns = [{"role": "system", "content": "Clasifica."}]
        for shown, answer in SHOWN:
            turns += [{"role": "user", "content": f"Diagnóstico: {shown}\nCapítulo:"}]
            turns += [{"role": "assistant", "content": answer}]
        turns += [{"role": "user", "content": f"Diagnóstico: {text}\nCapítulo:"}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            probabilities = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        for column, begins in enumerate(("p pi pie piel", "o oí", "t tó")):
            listed = [t for t in range(384) if tokenizer.decode([t]).strip().lower() in begins.split()]
            assert found.scores[row, column] == pytest.approx(float(probabilities[listed].sum().log()), abs=1e-4)
    assert found.counts["answers without log-probabilities"] == 0


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("answers", ["first_token", "text"])
def test_texts_name_the_label(endpoint: Any, answers: Any, server: ModelServer, tmp_path: Path) -> None:
    server.logprobs = False
    found = api_scorer(server, tmp_path, asking={"endpoint": endpoint, "answers": answers}).score(TEXTS)
    bodies = sorted(server.asked, key=str)
    named = 0
    for body in bodies:
        choice = server.answer("/chat/completions" if endpoint == "chat" else "/completions", body)["choices"][0]
        named += label_named(choice.get("text") or choice["message"]["content"], VERBALIZERS) is not None
    assert found.counts["answers that name no label"] == len(TEXTS) - named
    assert found.counts["answers without log-probabilities"] == (len(TEXTS) if answers == "first_token" else 0)


def test_a_server_that_cannot_echo_is_asked_for_words_after_one_item(server: ModelServer, tmp_path: Path) -> None:
    server.logprobs = False
    found = api_scorer(server, tmp_path).score(TEXTS)
    assert sum("echo" in body for body in server.asked) == len(VERBALIZERS)
    assert found.counts["answers without log-probabilities"] == len(TEXTS)


def test_log_probabilities_that_stop_halfway(server: ModelServer, tmp_path: Path, llama_directory: Path) -> None:
    answer = server.answer

    def forgetful(path: str, body: dict[str, Any]) -> dict[str, Any]:
        value = answer(path, body)
        if TEXTS[2] in body["prompt"] and body.get("echo"):
            del value["choices"][0]["logprobs"]
        return value

    server.answer = forgetful  # type: ignore[method-assign]
    found = api_scorer(server, tmp_path).score(TEXTS)
    assert found.counts["answers without log-probabilities"] == 1
    expected = at_home(llama_directory).score(TEXTS).scores
    np.testing.assert_allclose(found.scores[[0, 1, 3]], expected[[0, 1, 3]], rtol=0, atol=1e-4)


def test_it_comes_back_with_its_cache(server: ModelServer, tmp_path: Path) -> None:
    pool = Pool([(s, VERBALIZERS[n % 3]) for n, s in enumerate(SENTENCES[4:])], 2, "random", seed=3)
    for scorer in (api_scorer(server, tmp_path), api_scorer(server, tmp_path, demonstrations=(), pool=pool)):
        before = scorer.score(TEXTS)
        scorer.save(tmp_path / "scorer")
        asked = len(server.asked)
        loaded = load_scorer(tmp_path / "scorer")
        after = loaded.score(TEXTS)
        np.testing.assert_array_equal(after.scores, before.scores)
        assert len(server.asked) == asked
        assert after.counts["answers from the cache"] == len(TEXTS) * len(VERBALIZERS)
        assert loaded.score([]).scores.shape == (0, 3)


def test_a_request_as_its_endpoint_wants_it(server: ModelServer, tmp_path: Path) -> None:
    wanted = {"max_tokens": None, "max_completion_tokens": 3, "temperature": None, "top_logprobs": 5}
    chat = {"endpoint": "chat", "answers": "first_token", "request": wanted}
    scorer = api_scorer(server, tmp_path, asking=chat)
    asked = scorer.model.request(scorer.posed([], TEXTS[0]), listed=True)
    assert {key: value for key, value in asked.body.items() if key not in ("model", "messages")} == {
        "max_completion_tokens": 3, "logprobs": True, "top_logprobs": 5,
    }  # fmt: skip
    assert asked.most_tokens()[1] == 3
    echo = api_scorer(server, tmp_path, asking={"request": wanted}).model.echo("¿Qué?")
    assert echo.body["max_tokens"] == echo.most_tokens()[1] == 1 and "max_completion_tokens" not in echo.body
