"""One POST of JSON, with every way it can fail told apart. The standard library's client: no SDK, no dependency."""

import http.client
import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

LONGEST_REPLY = 4 << 20  # bytes


class Failure(Exception):
    """A request without a usable answer.

    Args:
        status: of HTTP; None where no answer came.
        wait: seconds that the service asks to wait.
        sent: whether the service may have done the work, and take money for it.
    """

    def __init__(self, message: str, status: int | None = None, wait: float | None = None, sent: bool = False) -> None:
        super().__init__(message)
        self.status, self.wait, self.sent = status, wait, sent


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def post(url: str, headers: Mapping[str, str], body: Mapping[str, Any], timeout: float) -> Any:
    """The JSON of the answer. Raises Failure; its message holds nothing of the request's headers."""
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json", **headers}, method="POST")
    try:
        with build_opener(_NoRedirect()).open(request, timeout=timeout) as answer:
            content = answer.read(LONGEST_REPLY)
    except HTTPError as error:
        said = error.read(2000).decode("utf-8", "replace")
        raise Failure(" ".join(said.split())[:300], error.code, _seconds(error.headers.get("retry-after"))) from None
    except (TimeoutError, http.client.HTTPException, ConnectionResetError) as error:
        raise Failure(f"no answer ({type(error).__name__})", sent=True) from None
    except URLError as error:
        timed_out = isinstance(error.reason, TimeoutError)
        raise Failure(f"cannot be reached ({error.reason})", sent=timed_out) from None
    except OSError as error:
        raise Failure(f"no answer ({type(error).__name__})", sent=True) from None
    try:
        return json.loads(content)
    except ValueError:
        return None  # an answer, paid for, that is not JSON


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
