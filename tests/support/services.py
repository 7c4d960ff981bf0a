"""A teacher's service on loopback: both protocols over real HTTP, with troubles on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = "The text is a plain story about the people of a small town and its harbour, told in a calm voice. "
GOOD = f"<explanation>{WORDS}\n{WORDS}It ends in the middle of a phrase, so a noun must follow.</explanation>"


class Service:
    """`say(prompt)` is the model. Entries of `script` come first: a status with headers, a body as it is, or a wait."""

    def __init__(self, say: Callable[[str], str]) -> None:
        self.say, self.script, self.seen = say, list[dict[str, Any]](), list[dict[str, Any]]()
        self.stop, self.together, self.most = "end", 0, 0
        self.pause = 0.0
        self.lock = threading.Lock()

    @property
    def prompts(self) -> list[str]:
        return [request["body"]["messages"][-1]["content"] for request in self.seen]

    def reply(self, path: str, prompt: str) -> dict[str, Any]:
        text = self.say(prompt)
        if path.endswith("/messages"):
            stop = {"end": "end_turn", "cut": "max_tokens", "refused": "refusal"}[self.stop]
            usage = {"input_tokens": 100, "output_tokens": 50}
            return {"content": [{"type": "text", "text": text}], "stop_reason": stop, "usage": usage}
        stop = {"end": "stop", "cut": "length", "refused": "content_filter"}[self.stop]
        usage = {"prompt_tokens": 100, "completion_tokens": 50}
        return {"choices": [{"message": {"content": text}, "finish_reason": stop}], "usage": usage}


@contextmanager
def serving(say: Callable[[str], str] = lambda prompt: GOOD) -> Iterator[tuple[Service, str]]:
    """The service and its address."""
    service = Service(say)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")
            with service.lock:
                service.seen.append({"path": self.path, "headers": dict(self.headers), "body": body})
                trouble = service.script.pop(0) if service.script else {}
                service.together += 1
                service.most = max(service.most, service.together)
            try:
                time.sleep(trouble.get("sleep", service.pause))
                status = trouble.get("status", 200)
                content = trouble.get("body")
                if content is None:
                    content = json.dumps(service.reply(self.path, body["messages"][-1]["content"]))
                self.send_response(status)
                for name, value in trouble.get("headers", {}).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content.encode()) + trouble.get("missing", 0)))
                self.end_headers()
                self.wfile.write(content.encode())
            except OSError:
                pass  # the client has gone
            finally:
                with service.lock:
                    service.together -= 1

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
