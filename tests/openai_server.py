"""A small OpenAI-compatible server that runs a transformers model: what the API client is tested against.

It tokenizes, renders and computes with plain `transformers` and counts what it was asked. `faults` are statuses or
names of misbehaviours, one a request, taken in order before any real answer: 429, 500, "malformed", "no choices",
"cut", "slow", "no usage", "held" (answered once `release` is set).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelServer(ThreadingHTTPServer):
    """Attributes: `asked` bodies, `keys` Authorization headers, `read` and `written` tokens of the answers it gave."""

    daemon_threads = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, logprobs: bool = True, key: str = ""
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.tokenizer, self.logprobs, self.key = model, tokenizer, logprobs, key
        self.faults: list[int | str] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.read = self.written = self.flying = self.most_flying = 0
        self.lock = threading.Lock()
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @torch.no_grad()
    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        chat = path.endswith("/chat/completions")
        tokens = (
            self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
            if chat
            else self.tokenizer(body["prompt"]).input_ids
        )
        asked, steps = len(tokens), []
        for _ in range(body["max_tokens"]):
            logits = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
            steps.append(logits[-1])
            tokens = [*tokens, int(logits[-1].argmax())]
            if tokens[-1] == self.tokenizer.eos_token_id:
                break
        text = self.tokenizer.decode(tokens[asked:], skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if self.logprobs and chat and body.get("logprobs"):
            choice["logprobs"] = {"content": [self._listed(step, body["top_logprobs"]) for step in steps]}
        elif self.logprobs and body.get("echo"):
            choice["text"] = body["prompt"] + text
            choice["logprobs"] = self._echoed(tokens)
        elif self.logprobs and body.get("logprobs"):
            entries = [self._listed(step, body["logprobs"])["top_logprobs"] for step in steps]
            choice["logprobs"] = {"top_logprobs": [{e["token"]: e["logprob"] for e in one} for one in entries]}
        return {"choices": [choice], "usage": {"prompt_tokens": asked, "completion_tokens": len(tokens) - asked}}

    def _listed(self, step: torch.Tensor, count: int) -> dict[str, Any]:
        values, indices = step.topk(min(count, len(step)))
        listed = [
            {"token": self.tokenizer.decode([index]), "logprob": value}
            for index, value in zip(indices.tolist(), values.tolist(), strict=True)
        ]
        return {"token": listed[0]["token"], "logprob": listed[0]["logprob"], "top_logprobs": listed}

    def _echoed(self, tokens: list[int]) -> dict[str, Any]:
        logits = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
        logprobs = [None, *(float(logits[i, token]) for i, token in enumerate(tokens[1:]))]
        # A token may hold a part of a character; its text is what the whole text grows by.
        ends = [
            len(self.tokenizer.decode(tokens[: i + 1]).rstrip("\N{REPLACEMENT CHARACTER}")) for i in range(len(tokens))
        ]
        starts = [0, *ends[:-1]]
        return {
            "tokens": ["x" * (end - start) for start, end in zip(starts, ends, strict=True)],
            "token_logprobs": logprobs,
            "text_offset": starts,
        }


ODD: dict[str, Any] = {
    "kept back": {"choices": [{"finish_reason": "content_filter"}]},
    "half a pair": {"choices": [{"text": "\ud800"}]},
    "negative usage": {"usage": {"prompt_tokens": -5_000_000}},
}


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
            server.keys.append(self.headers.get("Authorization"))
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
        try:
            self._answer(body, fault)
        except BrokenPipeError:
            pass  # the client has stopped waiting
        finally:
            with server.lock:
                server.flying -= 1

    def _answer(self, body: dict[str, Any], fault: int | str | None) -> None:
        server = self.server
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return self._send(401, b'{"error": "secreto"}')
        if fault == "stalled refusal":
            self.send_response(503)
            self.send_header("Content-Length", "100")
            self.end_headers()
            time.sleep(2.5)
            return None
        if isinstance(fault, int):
            return self._send(fault, f'{{"error": {json.dumps(str(body))}}}'.encode())
        if fault == "slow":
            time.sleep(2.5)
        if fault == "held":
            self.server.release.wait(60.0)
        if fault == "malformed":
            return self._send(200, b'{"choices": [')
        if fault == "no choices":
            return self._send(200, b'{"object": "nothing"}')
        value = server.answer(self.path, body)
        value |= ODD.get(str(fault), {})
        if fault == "no usage":
            del value["usage"]
        elif fault != "negative usage":
            with server.lock:
                server.asked.append(body)
                server.read += value["usage"]["prompt_tokens"]
                server.written += value["usage"]["completion_tokens"]
        content = json.dumps(value).encode()
        if fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:10])
            return None
        return self._send(200, content)

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.5")
        if status == 307:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Iterator[ModelServer]:
    """A running server, on a free port of the loopback."""
    server = ModelServer(model, tokenizer, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
