"""Requests to an OpenAI-compatible endpoint: several at a time, tried again when it is busy, paid for once.

Every answer is kept in a private file as soon as it is there, so a run that is cut off pays for nothing twice. No
redirect is followed: it would carry the texts, and the key, to a host that nobody named.
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from quilate.errors import ConfigError, GateError, MachineError, QuilateError, UsageError
from quilate.files import digest, folder_lock, write_text
from quilate.inference.api_answers import text_of

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
LONGEST_WAIT = 60.0  # seconds; guess: an endpoint that wants more is down
TEMPLATE_TOKENS = 64  # guess: what a chat template adds to a conversation, and as much for every message
LIMITS = ("max_tokens", "max_completion_tokens")  # of an answer; endpoints want one or the other
MAX_ANSWER_BYTES = 16_000_000  # guess: far above any answer of a few tokens with its log-probabilities


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens read and written, and the most that may be spent in all (None: nothing is paid)."""

    read: float = 0.0
    written: float = 0.0
    most: float | None = None

    def of(self, read: int, written: int) -> float:
        return (read * self.read + written * self.written) / 1e6


@dataclass(frozen=True)
class Request:
    """`path` under the base URL ("/chat/completions") and the body."""

    path: str
    body: dict[str, Any]

    def most_tokens(self) -> tuple[int, int]:
        """Tokens that this can read and write at the most: no token is shorter than a byte."""
        content = self.body["prompt"] if "prompt" in self.body else self.body["messages"]
        parts = [content] if isinstance(content, str) else [message["content"] for message in content]
        read = sum(len(part.encode()) + TEMPLATE_TOKENS for part in parts) + TEMPLATE_TOKENS
        return read, max(int(self.body.get(key) or 0) for key in LIMITS)


@dataclass(frozen=True)
class Response:
    """An endpoint's answer; `read` and `written` tokens, `cost` in money, and whether it was there already."""

    value: dict[str, Any]
    read: int
    written: int
    cost: float
    cached: bool


@dataclass(frozen=True)
class Endpoint:
    """Where to send requests, and how patiently.

    Attributes:
        url: the base URL, ending in `/v1` as a rule.
        key_env: name of the environment variable that holds the key; None sends none.
    """

    url: str
    key_env: str | None = None
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 6

    def key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UsageError(
                f"the environment variable {self.key_env}, which should hold the endpoint's key, is not set",
                hint=f"export {self.key_env}=...; the key is never written to a file",
            )
        return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _Retriable(Exception):
    """Worth another try; `wait` as the server asks, and whether it may have been charged for."""

    def __init__(self, what: str, *, wait: float | None = None, charged: bool = False) -> None:
        super().__init__(what)
        self.what, self.wait, self.charged = what, wait, charged


class ApiClient:
    """Sends requests and keeps the answers.

    Args:
        folder: where answers are kept (private; it holds text).
        sleep: waits so many seconds; tests replace it.
    """

    def __init__(
        self, endpoint: Endpoint, prices: Prices, folder: Path, *, sleep: Callable[[float], object] | None = None
    ) -> None:
        self.endpoint, self.prices, self._folder = endpoint, prices, folder
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait  # a stopped client does not sleep on
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if is_loopback(endpoint.url):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        self._kept: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._reserved = 0.0
        self._flying = 0
        self.spent = 0.0
        """Money spent so far, earlier runs with the same folder included."""
        with folder_lock(self._folder):
            self._read_kept()

    def send(
        self, requests: Sequence[Request], on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Response]:
        """The answers, in order; equal requests are sent once.

        Raises:
            MachineError: the endpoint is down, or refuses; what was answered is kept. Or another process is asking on
                the same account.
            GateError: the next request might exceed the spending cap.
            UsageError: there is no key, or it is not accepted.
        """
        with folder_lock(self._folder):
            self._read_kept()
            return self._send(requests, on_progress)

    def _send(self, requests: Sequence[Request], on_progress: Callable[[int, int], None]) -> list[Response]:
        keys = [digest([self.endpoint.url, request.path, request.body]) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._kept}
        self._stopped.clear()
        times = Counter(keys)
        secret = self.endpoint.key() if missing else None
        done = sum(key not in missing for key in keys)
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            jobs = {pool.submit(self._fetch_or_stop, key, request, secret): key for key, request in missing.items()}
            try:
                if done:
                    on_progress(done, len(keys))
                for job in as_completed(jobs):
                    job.result()
                    done += times[jobs[job]]
                    on_progress(done, len(keys))
            except BaseException:
                self._stopped.set()  # those under way finish and are kept; no other starts
                with self._changed:
                    self._changed.notify_all()
                pool.shutdown(cancel_futures=True)
                raise
        return [self._response(key, cached=key not in missing) for key in keys]

    def _response(self, key: str, *, cached: bool) -> Response:
        line = self._kept[key]
        return Response(line["response"], line["read"], line["written"], line["cost"], cached)

    def _fetch_or_stop(self, key: str, request: Request, secret: str | None) -> None:
        """What fails for one request would fail for the next: none is begun after it."""
        try:
            self._fetch(key, request, secret)
        except BaseException:
            self._stopped.set()
            raise

    def _fetch(self, key: str, request: Request, secret: str | None) -> None:
        bound = self.prices.of(*request.most_tokens())
        seen = ""
        for attempt in range(self.endpoint.retries + 1):
            if self._stopped.is_set() or not self._reserve(bound):
                return
            try:
                value = self._post(request, secret)
                self._keep(key, request, value)
                return
            except _Retriable as again:
                seen = again.what
                if again.charged:  # nobody knows what it cost; the most it can have
                    self._keep(f"{key}-lost-{time.time_ns()}", request, {})
                wait = again.wait if again.wait is not None else 2.0**attempt * (0.5 + Random(key).random())  # noqa: S311
            finally:
                with self._changed:
                    self._reserved -= bound
                    self._flying -= 1
                    self._changed.notify_all()
            if attempt < self.endpoint.retries and not self._stopped.is_set():
                self._sleep(min(wait, LONGEST_WAIT))
        raise MachineError(
            f"{self._host()} did not answer after {self.endpoint.retries + 1} tries: {seen}",
            hint="its answers so far are kept: run the same command again to continue without paying twice",
        )

    def _reserve(self, bound: float) -> bool:
        """Set money aside, waiting for requests under way if it does not suffice; False if the client was stopped."""
        most = self.prices.most
        with self._changed:
            while most is not None and self.spent + self._reserved + bound > most and self._flying:
                self._changed.wait()
                if self._stopped.is_set():
                    return False
            if most is not None and self.spent + bound > most:
                raise GateError(
                    f"the spending cap of {most:g} is reached: {self.spent:.4g} is spent, and the next request may "
                    f"cost up to {bound:.2g}",
                    hint="raise max_cost and run the same command again; what was answered is kept",
                )
            self._reserved += bound
            self._flying += 1
            return True

    def _post(self, request: Request, secret: str | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "User-Agent": "quilate"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        url = self.endpoint.url.rstrip("/") + request.path
        message = urllib.request.Request(url, json.dumps(request.body).encode(), headers, method="POST")  # noqa: S310
        try:
            with self._opener.open(message, timeout=self.endpoint.timeout) as answer:
                content = answer.read(MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.headers, _words(error)) from error
        except urllib.error.URLError as error:  # it could not be sent: refused, no such host
            raise _Retriable(f"{type(error.reason).__name__}: {error.reason}") from error
        except (OSError, HTTPException) as error:  # it was sent, and no whole answer came: timed out, reset, cut off
            raise _Retriable(f"{type(error).__name__}: {error}", charged=True) from error
        try:
            value = json.loads(content)
            text_of(value)
        except ValueError as error:
            raise _Retriable("an answer that is not what the protocol says", charged=True) from error
        return dict(value)

    def _refusal(self, status: int, headers: Message, content: bytes) -> Exception:
        """What an HTTP error means. The server's words may repeat the texts: they go to a private file, not to logs."""
        if status in RETRIED:
            return _Retriable(f"HTTP {status}", wait=_seconds(headers.get("Retry-After")))
        write_text(self._folder / "refusal.txt", f"HTTP {status}\n{content.decode('utf-8', 'replace')}\n")
        where = f"its words are in {self._folder / 'refusal.txt'}"
        if status in (401, 403):
            return UsageError(f"{self._host()} does not accept the key (HTTP {status})", hint=f"check key_env; {where}")
        if 300 <= status < 400:
            return UsageError(f"{self._host()} redirects elsewhere (HTTP {status})", hint="name the final address")
        return MachineError(
            f"{self._host()} refuses the request (HTTP {status})", hint=f"check url, model and endpoint; {where}"
        )

    def _host(self) -> str:
        return urlsplit(self.endpoint.url).netloc

    def _keep(self, key: str, request: Request, value: dict[str, Any]) -> None:
        read, written = _usage(value) or request.most_tokens()
        line: dict[str, Any] = {
            "key": key,
            "response": value,
            "read": read,
            "written": written,
            "cost": self.prices.of(read, written),
        }
        text = json.dumps(line) + "\n"  # escaped: an answer may hold half of a surrogate pair, which UTF-8 cannot
        with self._changed:
            descriptor = os.open(self._path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            self._kept[key] = line
            self.spent += line["cost"]

    def _path(self) -> Path:
        return self._folder / "responses.jsonl"

    def _read_kept(self) -> None:
        """Another process may have asked, and paid, since this one last looked."""
        self._kept, self.spent = {}, 0.0
        if not self._path().exists():
            return
        content = self._path().read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a line that was being written when the process was killed
            with self._path().open("r+b") as file:
                file.truncate(len(whole))
        for number, text in enumerate(whole.decode().split("\n")[:-1], start=1):
            try:
                line = json.loads(text)
                self._kept[line["key"]] = line
                self.spent += float(line["cost"])
            except (ValueError, KeyError, TypeError) as error:
                raise QuilateError(
                    f"{self._path()}, line {number} is damaged", hint="remove that line and run again"
                ) from error


def _words(error: urllib.error.HTTPError) -> bytes:
    """What a refusal says; nothing if it does not come."""
    try:
        return error.read(MAX_ANSWER_BYTES)
    except (OSError, HTTPException):
        return b""


def _usage(value: dict[str, Any]) -> tuple[int, int] | None:
    """Tokens read and written, as the server counts them; None if it does not say."""
    usage = value.get("usage")
    try:
        read, written = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)  # type: ignore[index,union-attr]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    return (read, written) if read >= 0 and written >= 0 else None


def _seconds(header: str | None) -> float | None:
    """A Retry-After header in seconds; its other form, a date, is not used by model servers."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None


def check_address(url: str) -> None:
    """Refuse what is no address of an endpoint.

    Raises:
        ConfigError: it is not http or https, or names no host, or carries a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{url}' is no address", hint="for example http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ConfigError("the address must not hold a password or a query", hint="put the key into key_env")
