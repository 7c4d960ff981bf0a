"""Requests, answers and costs in one SQLite file, so that no answer is paid for twice, however the process ends.

A request is entered before it is sent, at its highest possible cost; its answer replaces that entry in one transaction.
A request whose answer never came (a kill, a timeout) keeps its entry and counts as paid.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from nla.data.teachers.protocol import Reply
from nla.errors import BudgetError, TeacherError

TABLES = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, text TEXT, stop TEXT, input_tokens INTEGER, output_tokens INTEGER, usd REAL);
CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, tokens INTEGER, usd REAL);
"""


def request_key(identity: Mapping[str, Any], text: str) -> str:
    """A hash of everything an answer depends on: model, prompt, parameters, text. It includes no secret."""
    content = json.dumps([identity, text], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Ledger:
    """Answers and costs. Thread-safe; one process at a time.

    Args:
        usd, tokens: budget for the ledger's whole life; None: no limit.
    """

    def __init__(self, path: Path, usd: float | None, tokens: int | None) -> None:
        self.path, self.usd, self.tokens = path, usd, tokens
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.executescript(TABLES)
        except sqlite3.DatabaseError as error:
            raise TeacherError(
                f"{path}: is not a ledger of paid replies ({error}); restore it, or name another"
            ) from error

    def find(self, key: str) -> Reply | None:
        with self._lock:
            row = self._base.execute(
                "SELECT text, stop, input_tokens, output_tokens FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Reply(*row)

    def spent(self) -> tuple[float, int]:
        """USD and tokens, including those of unanswered requests."""
        with self._lock:
            return self._spent()

    def enter(self, key: str, tokens: int, usd: float) -> int:
        """Enter a request before sending it, at its highest possible cost. Raises BudgetError if that is too much."""
        with self._lock:
            paid, used = self._spent()
            if self.usd is not None and paid + usd > self.usd:
                raise BudgetError(f"{paid:.4f} of teacher.usd={self.usd} are spent; raise it to continue")
            if self.tokens is not None and used + tokens > self.tokens:
                raise BudgetError(f"{used} of teacher.tokens={self.tokens} are spent; raise it to continue")
            entered = self._base.execute("INSERT INTO requests (key, tokens, usd) VALUES (?, ?, ?)", (key, tokens, usd))
            return int(entered.lastrowid or 0)

    def settle(self, request: int, key: str, reply: Reply, usd: float) -> None:
        """Replace the request by its answer."""
        row = (key, reply.text, reply.stop, reply.input_tokens, reply.output_tokens, usd)
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.execute("DELETE FROM requests WHERE id = ?", (request,))
            self._base.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)", row)
            self._base.execute("COMMIT")

    def cancel(self, request: int) -> None:
        """Remove a request that the service has refused and does not charge for."""
        with self._lock:
            self._base.execute("DELETE FROM requests WHERE id = ?", (request,))

    def close(self) -> None:
        self._base.close()

    def _spent(self) -> tuple[float, int]:
        replies = self._base.execute(
            "SELECT COALESCE(SUM(usd), 0), COALESCE(SUM(input_tokens + output_tokens), 0) FROM replies"
        ).fetchone()
        open_ = self._base.execute("SELECT COALESCE(SUM(usd), 0), COALESCE(SUM(tokens), 0) FROM requests").fetchone()
        return float(replies[0] + open_[0]), int(replies[1] + open_[1])
