"""One POST of JSON by httpx, with its failures distinguished as the ledger of paid replies needs them."""

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

LONGEST_REPLY = 4 << 20  # bytes
NOT_SENT = (
    httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.PoolTimeout, httpx.InvalidURL,
    httpx.LocalProtocolError,
)  # fmt: skip


class Failure(Exception):
    """A request without a usable answer.

    Args:
        status: of HTTP; None if no answer came.
        wait: seconds that the service asks to wait.
        sent: whether the service may have done the work, and charge for it.
    """

    def __init__(self, message: str, status: int | None = None, wait: float | None = None, sent: bool = False) -> None:
        super().__init__(message)
        self.status, self.wait, self.sent = status, wait, sent


def post(client: httpx.Client, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Any:
    """The JSON of the answer, or None if it is not JSON. Raises Failure, whose message contains no header.

    httpx follows no redirect by default; one would send the key to another host.
    """
    try:
        with client.stream("POST", url, json=dict(body), headers=dict(headers)) as response:
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > LONGEST_REPLY:
                    break
    except NOT_SENT as error:
        raise Failure(f"cannot be reached ({error})") from None
    except httpx.HTTPError as error:
        raise Failure(f"no answer ({type(error).__name__})", sent=True) from None
    if not response.is_success:
        message = " ".join(content[:2000].decode("utf-8", "replace").split())[:300]
        raise Failure(message, response.status_code, _seconds(response.headers.get("retry-after")))
    try:
        return json.loads(content)
    except ValueError:
        return None  # a paid answer that is not JSON


def _seconds(header: str | None) -> float | None:
    """Retry-After: seconds, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
