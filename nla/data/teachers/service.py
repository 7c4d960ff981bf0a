"""Teachers behind an HTTP interface: Anthropic's, and OpenAI's, which many services and local servers offer."""

import json
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

import httpx

from nla.data.teachers.cached import CachedTeacher
from nla.data.teachers.http import Failure, post
from nla.data.teachers.prompt import SYSTEM
from nla.data.teachers.protocol import Passage, Reply
from nla.errors import BudgetError, ConfigError, TeacherError
from nla.redact import HIDDEN, redacted

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # temporary errors
ROW = (400, 413, 422)  # errors of one passage: too long, or refused by a filter
OVERHEAD = 64  # tokens of a message's format
LONGEST_WAIT = 600.0  # seconds; if a service asks for more, the same command continues later


class ServiceTeacher(CachedTeacher):
    """Several requests at a time, each retried on temporary errors; the budget is never exceeded.

    Args:
        base_url: of the service.
        api_key, api_key_file: the key, or a file that holds it; neither is written anywhere.
        price: USD per million tokens, `input` and `output`.
        concurrency: requests at a time.
        retries: of each request.
        timeout: seconds to wait for an answer.
        extra: further fields of the request.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        price: dict[str, float],
        concurrency: int,
        retries: int,
        timeout: float,
        api_key: str | None = None,
        api_key_file: str | None = None,
        extra: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if concurrency < 1 or set(price) != {"input", "output"} or min(price.values()) < 0:
            raise ConfigError(
                f"teacher: concurrency={concurrency} must be at least 1, price={price} must be USD of input and output"
            )
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"teacher.extra={extra}: must be values that JSON has ({error})") from None
        self.base_url, self.price, self.extra = base_url.rstrip("/"), price, extra or {}
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout
        self._key = _read_key(api_key, api_key_file)
        if self._key is not None and not self._key.isascii():
            raise ConfigError("teacher.api_key: contains a character that no key has (not ASCII); copy it again")
        self._stop = Event()

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "url": self.base_url, "extra": self.extra}

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.price["input"] + output_tokens * self.price["output"]) / 1e6

    def answers(self, passages: dict[str, Passage]) -> Iterator[tuple[str, Reply]]:
        """Ends early when the budget does. Raises TeacherError; answers already under way are still kept."""
        self._stop.clear()
        todo = iter(passages.items())
        running: dict[Future[Reply], str] = {}
        trouble: TeacherError | None = None
        limits = httpx.Limits(max_connections=self.concurrency)
        with httpx.Client(timeout=self.timeout, limits=limits) as client, ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while True:
                    while trouble is None and len(running) < self.concurrency and (item := next(todo, None)):
                        running[pool.submit(self._ask, client, *item)] = item[0]
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        key = running.pop(future)
                        error = future.exception()
                        if error is None:
                            yield key, future.result()
                        elif isinstance(error, TeacherError):
                            trouble = trouble if trouble and not isinstance(trouble, BudgetError) else error
                            if not isinstance(error, BudgetError):
                                self._stop.set()
                        else:
                            raise error
            finally:
                self._stop.set()
        if trouble is not None and not isinstance(trouble, BudgetError):
            raise trouble

    def _ask(self, client: httpx.Client, key: str, passage: Passage) -> Reply:
        url, headers, body = self.request(self.prompt(passage))
        # a token is at least one byte, so the request cannot use more
        most = len((SYSTEM + self.prompt(passage)).encode()) + OVERHEAD
        for attempt in range(self.retries + 1):
            if self._stop.is_set():
                raise TeacherError("stopped")
            entry = self.ledger.enter(key, most + self.max_tokens, self.cost(most, self.max_tokens))
            try:
                data = post(client, url, headers, {**body, **self.extra})
            except Failure as failure:
                if not failure.sent:
                    self.ledger.cancel(entry)
                if failure.status in ROW:
                    reply = Reply(self._hidden(str(failure)), "rejected", 0, 0)
                    self.ledger.settle(entry, key, reply, 0.0)
                    return reply
                self._wait(failure, attempt)
                continue
            reply = self._reply(data, most)
            self.ledger.settle(entry, key, reply, self.cost(reply.input_tokens, reply.output_tokens))
            return reply
        raise TeacherError("stopped")

    def _wait(self, failure: Failure, attempt: int) -> None:
        """Wait until the next try. Raises TeacherError if there is none."""
        message = self._hidden(str(failure))
        teacher = f"teacher {self.model} at {self.base_url}"
        if failure.status in (401, 403):
            raise TeacherError(
                f"{teacher}: the key is not accepted (HTTP {failure.status}: {message}); set teacher.api_key or "
                "teacher.api_key_file, the same command continues"
            )
        if failure.status is not None and failure.status not in AGAIN:
            raise TeacherError(
                f"{teacher}: HTTP {failure.status} ({message}); check teacher.model and teacher.base_url"
            )
        seconds = min(60.0, 2.0**attempt) * (0.5 + random.random() / 2) if failure.wait is None else failure.wait
        status = f"HTTP {failure.status}: " if failure.status else ""
        if attempt >= self.retries or seconds > LONGEST_WAIT:
            raise TeacherError(
                f"{teacher}: {status}{message}, tried {attempt + 1} times"
                + (f", asks to wait {seconds:.0f} s" if seconds > LONGEST_WAIT else "")
                + "; the same command continues later, paid replies are kept"
            )
        self._stop.wait(seconds)

    def _reply(self, data: Any, most: int) -> Reply:
        try:
            return self.read(data)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            return Reply(self._hidden(str(data)[:200]), "unreadable", most, self.max_tokens)

    def _hidden(self, text: str) -> str:
        """Without the key, which services quote when they refuse it."""
        return redacted(text.replace(self._key, HIDDEN) if self._key else text)

    @abstractmethod
    def request(self, prompt: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        """Address, headers and body."""

    @abstractmethod
    def read(self, data: Any) -> Reply:
        """The reply in an answer; any exception means that the answer is not what the interface promises."""


class AnthropicTeacher(ServiceTeacher):
    """Anthropic's Messages interface."""

    def request(self, prompt: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        body = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "system": SYSTEM,
            "messages": [{"role": "user", "content": prompt}],
        }
        headers = {"anthropic-version": "2023-06-01"} | ({"x-api-key": self._key} if self._key else {})
        return f"{self.base_url}/v1/messages", headers, body

    def read(self, data: Any) -> Reply:
        text = "".join(block["text"] for block in data["content"] if block["type"] == "text")
        stop = {"end_turn": "end", "stop_sequence": "end", "max_tokens": "cut", "refusal": "refused"}[
            data["stop_reason"]
        ]
        return Reply(text, stop, *_usage(data, "input_tokens", "output_tokens"))  # pyright: ignore[reportArgumentType]


class OpenAITeacher(ServiceTeacher):
    """Chat completions as OpenAI defined them. `length_key`: the service's name for the length cap of a reply."""

    def __init__(self, model: str, *, length_key: str = "max_tokens", **options: Any) -> None:
        super().__init__(model, **options)
        self.length_key = length_key

    def request(self, prompt: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        body = {
            "model": self.model,
            self.length_key: self.max_tokens,
            "temperature": self.temperature,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
            "stream": False,
        }
        return f"{self.base_url}/chat/completions", {"authorization": f"Bearer {self._key}"} if self._key else {}, body

    def read(self, data: Any) -> Reply:
        choice = data["choices"][0]
        stop = {"stop": "end", "length": "cut", "content_filter": "refused"}[choice["finish_reason"]]
        stop = "refused" if choice["message"].get("refusal") else stop
        text = choice["message"]["content"] or ""
        return Reply(text, stop, *_usage(data, "prompt_tokens", "completion_tokens"))  # pyright: ignore[reportArgumentType]


def _usage(data: Mapping[str, Any], given: str, written: str) -> tuple[int, int]:
    """Billed tokens. Raises if the service does not report them; the highest possible number is then counted."""
    usage = data["usage"]
    cached = sum(int(usage.get(name) or 0) for name in ("cache_creation_input_tokens", "cache_read_input_tokens"))
    return int(usage[given]) + cached, int(usage[written])


def _read_key(key: str | None, file: str | None) -> str | None:
    if file is None or key:
        return key
    try:
        content = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"teacher.api_key_file={file}: cannot be read ({type(error).__name__})") from None
    if not content or len(content.split()) != 1:
        raise ConfigError(f"teacher.api_key_file={file}: must contain the key and nothing else")
    return content
