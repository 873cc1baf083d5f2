"""The client against a real server on the loopback: busy, broken, slow, gone; paid once, and never beyond the cap."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from openai_server import ModelServer, serving
from support import SENTENCES, tiny_llama, tiny_tokenizer

from quilate.errors import ConfigError, GateError, Interrupted, MachineError, QuilateError, UsageError
from quilate.inference.api_client import ApiClient, Endpoint, Prices, Request, check_address, is_loopback


@pytest.fixture(scope="module")
def server() -> Any:
    with serving(tiny_llama(), tiny_tokenizer()) as running:
        yield running


@pytest.fixture(autouse=True)
def _fresh(server: ModelServer) -> None:
    while server.flying:  # a request that a test before this one gave up waiting for
        time.sleep(0.01)
    server.faults, server.asked, server.keys, server.key = [], [], [], ""
    server.read = server.written = server.most_flying = 0


def requests(count: int = 6) -> list[Request]:
    return [
        Request("/completions", {"model": "m", "prompt": f"{SENTENCES[n]} ñ", "max_tokens": 2, "temperature": 0})
        for n in range(count)
    ]


class Client(ApiClient):
    def __init__(self, server: ModelServer | str, folder: Path, prices: Prices | None = None, **keys: Any) -> None:
        self.slept: list[float] = []
        url = server if isinstance(server, str) else server.url
        endpoint = Endpoint(url, **{"concurrency": 1, "timeout": 60.0, "retries": 2} | keys)
        super().__init__(endpoint, prices or Prices(), folder, sleep=self.slept.append)


def test_answers_come_in_order_and_are_paid_once(server: ModelServer, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    client = Client(server, tmp_path / "r", Prices(2.0, 3.0, most=1.0), concurrency=3)
    first = client.send([*requests(), requests()[0]], lambda *n: progress.append(n))
    assert [r.value for r in first] == [server.answer("/v1/completions", r.body) for r in [*requests(), requests()[0]]]
    assert len(server.asked) == 6 and progress[-1] == (7, 7)
    assert 1 < server.most_flying <= 3
    assert client.spent == pytest.approx((2 * server.read + 3 * server.written) / 1e6)
    again = Client(server, tmp_path / "r", Prices(2.0, 3.0, most=1.0))
    assert again.spent == pytest.approx(client.spent)
    second = again.send(requests())
    assert [r.value for r in second] == [r.value for r in first[:6]] and all(r.cached for r in second)
    assert len(server.asked) == 6
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "r" / "responses.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize("fault", [429, 500, 503, "malformed", "no choices", "cut", "slow", "stalled refusal"])
def test_a_passing_fault_is_tried_again(fault: int | str, server: ModelServer, tmp_path: Path) -> None:
    server.faults = [fault, fault]
    client = Client(server, tmp_path, timeout=2.0 if fault in ("slow", "stalled refusal") else 60.0)
    [answer] = client.send(requests(1))
    assert answer.value["choices"]
    assert len(client.slept) == 2
    if fault == 429:
        assert client.slept == [0.5, 0.5]  # as the server asks
    else:
        assert 0.5 <= client.slept[0] <= 1.5 and 1.0 <= client.slept[1] <= 3.0


def test_a_lasting_fault_stops_and_what_was_answered_is_kept(server: ModelServer, tmp_path: Path) -> None:
    server.faults = ["no fault", "no fault", 503, 503, 503]
    with pytest.raises(MachineError, match=r"did not answer after 3 tries: HTTP 503") as caught:
        Client(server, tmp_path).send(requests())
    assert "without paying twice" in (caught.value.hint or "")
    assert len(server.asked) == 2
    Client(server, tmp_path).send(requests())
    assert len(server.asked) == 6


@pytest.mark.parametrize("fault", ["kept back", "half a pair"])
def test_an_odd_answer_is_one_and_is_kept(fault: str, server: ModelServer, tmp_path: Path) -> None:
    """Filtered by the provider, or with half of a surrogate pair: paid for, so read again from the file."""
    server.faults = [fault]
    [first] = Client(server, tmp_path).send(requests(1))
    [second] = Client(server, tmp_path).send(requests(1))
    assert second.cached and second.value == first.value and len(server.asked) == 1


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"127\.0\.0\.1:9 did not answer after 3 tries: ConnectionRefused"):
        Client("http://127.0.0.1:9/v1", tmp_path).send(requests(1))


def test_a_stop_keeps_what_is_there(server: ModelServer, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Interrupted("basta")

    client = Client(server, tmp_path, concurrency=2)
    server.faults = ["no fault"] * 3 + ["held"] * 3
    server.release = client._stopped  # else a fast server has answered all six before the third is heard of here
    with pytest.raises(Interrupted):
        client.send(requests(), stop)
    kept = len((tmp_path / "responses.jsonl").read_text().splitlines())
    assert 3 <= kept == len(server.asked) <= 5
    Client(server, tmp_path).send(requests())
    assert len(server.asked) == 6


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_cap_is_never_exceeded(concurrency: int, server: ModelServer, tmp_path: Path) -> None:
    prices = Prices(1000.0, 2000.0)
    costs = [prices.of(*r.most_tokens()) for r in requests()]
    cap = 1.5 * max(costs)  # room for one at a time, and for several in turn, as they cost less than they might
    client = Client(server, tmp_path, Prices(1000.0, 2000.0, most=cap), concurrency=concurrency)
    with pytest.raises(GateError, match="spending cap") as caught:
        client.send([*requests(), *(Request("/completions", r.body | {"max_tokens": 3}) for r in requests())])
    assert caught.value.exit_code == 5
    spent = (1000 * server.read + 2000 * server.written) / 1e6
    assert 0 < spent <= cap
    assert client.slept == []
    assert client.spent == pytest.approx(spent)
    before = len(server.asked)
    with pytest.raises(GateError):  # of earlier runs too
        Client(server, tmp_path, Prices(1000.0, 2000.0, most=cap)).send(
            [Request("/completions", r.body | {"max_tokens": 4}) for r in requests()]
        )
    assert (1000 * server.read + 2000 * server.written) / 1e6 <= cap
    assert len(server.asked) >= before


def test_what_may_have_been_charged_counts_at_its_most(server: ModelServer, tmp_path: Path) -> None:
    prices = Prices(10.0, 10.0, most=1.0)
    for fault in ("malformed", "no usage", "negative usage"):
        server.faults = [fault]
        client = Client(server, tmp_path / fault, prices)
        [request] = requests(1)
        client.send([request])
        most = prices.of(*request.most_tokens())
        answered = prices.of(server.read, server.written)
        assert client.spent == pytest.approx(most + answered if fault == "malformed" else most)
        assert Client(server, tmp_path / fault, prices).spent == pytest.approx(client.spent)
        server.read = server.written = 0


def test_tokens_are_never_more_than_the_most(server: ModelServer) -> None:
    for request in requests(12):
        usage = server.answer("/v1/completions", request.body)["usage"]
        assert usage["prompt_tokens"] <= request.most_tokens()[0]
        chat = Request("/chat/completions", {"messages": [{"role": "user", "content": "ñ"}] * 3, "max_tokens": 1})
        usage = server.answer("/v1/chat/completions", chat.body)["usage"]
        assert usage["prompt_tokens"] <= chat.most_tokens()[0]


def test_a_key_is_sent_and_written_nowhere(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-ñ-secreta".encode("ascii", "ignore").decode()
    with pytest.raises(UsageError, match="CLAVE, which should hold the endpoint's key, is not set"):
        Client(server, tmp_path, key_env="CLAVE").send(requests(1))
    monkeypatch.setenv("CLAVE", server.key)
    Client(server, tmp_path, key_env="CLAVE").send(requests(1))
    assert server.keys == [f"Bearer {server.key}"]
    monkeypatch.setenv("CLAVE", "otra")
    with pytest.raises(UsageError, match=r"does not accept the key \(HTTP 401\)"):
        Client(server, tmp_path, key_env="CLAVE").send(requests(2))
    for path in tmp_path.rglob("*"):
        assert server.key not in path.read_text() and "otra" not in path.read_text()


def test_a_refusals_words_stay_in_the_folder(server: ModelServer, tmp_path: Path) -> None:
    server.faults = [400]
    with pytest.raises(MachineError, match="HTTP 400") as caught:
        Client(server, tmp_path).send(requests(1))
    assert "La paciente refiere" not in str(caught.value)
    assert "La paciente refiere" in (tmp_path / "refusal.txt").read_text()


def test_no_redirect_is_followed(server: ModelServer, tmp_path: Path) -> None:
    server.faults = [307]
    with pytest.raises(UsageError, match="redirects elsewhere"):
        Client(server, tmp_path).send(requests(1))


def test_a_torn_last_line_is_forgotten_and_a_damaged_one_said(server: ModelServer, tmp_path: Path) -> None:
    Client(server, tmp_path).send(requests(3))
    path = tmp_path / "responses.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    Client(server, tmp_path).send(requests(3))
    assert len(server.asked) == 4
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()]
    path.write_bytes(b"{\n" + whole)
    with pytest.raises(QuilateError, match="line 1 is damaged"):
        Client(server, tmp_path)


def test_addresses() -> None:
    assert all(map(is_loopback, ("http://localhost:1/v1", "http://127.8.0.1/v1", "http://[::1]:80/v1")))
    assert not any(map(is_loopback, ("http://localhost.example.org", "http://127.0.0.1.nip.io", "http://10.0.0.1")))
    for url in ("ftp://x/v1", "localhost:8000", "http://", "http://u:p@x/v1", "http://x/v1?key=1"):
        with pytest.raises(ConfigError):
            check_address(url)
