"""Answers that nobody would think of: some value of some answer is another, or its bytes are.

Whatever a server says, a run ends with one JSON object and without a traceback, orders once, asks
nobody who is not configured, and lets nothing out that acts on a terminal or is secret.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis
import pytest
from conftest import Document
from hypothesis import strategies as st
from simulators.server import HttpsServer, Request, Response
from test_crashes import SCENARIOS, USUAL, Ground, count_requests, prepared, servers_of

ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
FORGED = "\x1b]0;x\x07\u202e\r\nwww: enrolled, valid until 2099-01-01\x9b31m"
DEEP = json.loads("[" * 200 + "]" * 200)
ODD: Sequence[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "",
    " ",
    "null",
    "0",
    FORGED,
    "\ud800",
    "\u00b2",
    "../../etc/passwd",
    "/etc/passwd",
    "x.KEY",
    "x" * 5000,
    [],
    {},
    [None],
    [[]],
    [{}],
    {"a": {"b": []}},
    DEEP,
]
HEADERS: Sequence[tuple[str, str]] = [
    ("Retry-After", "\u00b2"),
    ("Retry-After", "-1"),
    ("Retry-After", "99999999999999999999"),
    ("Retry-After", "Mon, 99 Foo 2026 99:99:99 GMT"),
    ("Date", "yesterday"),
    ("Date", "Mon, 01 Jan 0001 00:00:00 +9999"),
    ("X-Total-Count", "99999999999999999999"),
    ("Content-Type", "text/html; charset=nonsense"),
    ("Set-Cookie", "NITRO_AUTH_TOKEN=evil"),
]
STATUSES = (203, 204, 206, 300, 304, 400, 401, 403, 404, 409, 418, 451, 500, 501, 511, 599)


@dataclasses.dataclass(frozen=True)
class Twist:
    """What becomes of the answer to a request, by its number on one of the servers."""

    where: str
    number: int
    how: str
    place: int  # which of the values, bytes or headers
    value: Any

    def rewrite(self, response: Response, evil: str) -> Response:
        if self.how == "status":
            status = STATUSES[self.place % len(STATUSES)]
            return dataclasses.replace(response, status=status)
        if self.how == "header":
            name, value = HEADERS[self.place % len(HEADERS)]
            return dataclasses.replace(response, headers={**response.headers, name: value})
        if self.how == "redirect":
            headers = {"Location": f"{evil}/x"}
            return Response(301 + self.place % 8, b"", headers)
        if self.how == "challenge":
            told = f'Bearer realm="x", authorization_uri="{evil}/t"'
            return Response(401, b"{}", {"WWW-Authenticate": told})
        body = self._of_json(response.body) if self.how == "value" else self._of_bytes(response)
        return dataclasses.replace(response, body=body)

    def _of_json(self, body: bytes) -> bytes:
        """Put another value in some place, or leave that out."""
        try:
            document = json.loads(body)
        except ValueError:
            return body[: self.place % (len(body) + 1)]
        places = list(_places(document))
        if not places:
            return json.dumps(self.value).encode()
        holder, key = places[self.place % len(places)]
        if self.place % 7 == 0:
            del holder[key]
        else:
            holder[key] = self.value
        return json.dumps(document).encode()

    def _of_bytes(self, response: Response) -> bytes:
        """Change a byte, also of the file or certificate that is in the answer."""
        with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
            document = json.loads(response.body)
            row = document["systemfile"][0]
            content = _flipped(base64.b64decode(row["filecontent"]), self.place)
            row["filecontent"] = base64.b64encode(content).decode()
            return json.dumps(document).encode()
        return _flipped(response.body, self.place)


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a document: what holds it, and its key or index there."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(pairs):
        yield data, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _flipped(body: bytes, place: int) -> bytes:
    if not body:
        return b"\xff\xfe"
    at = place % len(body)
    return body[:at] + bytes([body[at] ^ (1 << place % 8)]) + body[at + 1 :]


twists = st.builds(
    Twist,
    where=st.sampled_from(["appliance", "appliance", "SCM"]),
    number=st.integers(1, 22),
    how=st.sampled_from(["value", "value", "value", "bytes", "status", "header", "redirect"])
    | st.just("challenge"),
    place=st.integers(0, 10_000),
    value=st.sampled_from(ODD),
)


class Field:
    """A lab before a run, to which it returns for every twist."""

    def __init__(self, ground: Ground, evil: HttpsServer) -> None:
        self.ground = ground
        self.lab = ground.lab
        self.evil = evil

    def rewriting(self, twist: Twist) -> Callable[[Request, Response], Response]:
        first = count_requests(self.lab)[twist.where]
        evil = f"https://localhost:{self.evil.port}"

        def rewrite(request: Request, response: Response) -> Response:
            hit = request.number == first + twist.number
            return twist.rewrite(response, evil) if hit else response

        return rewrite

    def try_twist(self, twist: Twist) -> None:
        self.ground.restore()
        before = len(self.lab.scm.orders)
        server = servers_of(self.lab)[twist.where]
        server.rewrite = self.rewriting(twist)
        asked = len(server.requests)
        first = self.run()
        server.rewrite = None
        hit = server.requests[asked:][twist.number - 1 : twist.number]
        second = self.run()
        # A no to an order that was placed all the same is what a server must not say.
        is_lie = any(r.method == "POST" and "/certificates" in r.path for r in hit)
        placed = len(self.lab.scm.orders) - before
        assert placed <= 1 + (is_lie and twist.how in {"status", "challenge"}), (first, second)
        assert not self.evil.requests

    def run(self) -> Document:
        outcome = self.lab.json("run", "--wait", "0")
        assert outcome.exit_code in {0, 1, 5}, outcome.text
        assert not ACTS.search(outcome.stderr + outcome.stdout.rstrip("\n"))
        log = (self.lab.home / "state" / "citrixagent.log").read_text()
        assert "Traceback" not in log, log[log.index("Traceback") :]
        assert not ACTS.search(log)
        assert not outcome.stderr
        return outcome.document()


@contextlib.contextmanager
def field(name: str) -> Iterator[Field]:
    evil = HttpsServer(lambda _: Response(200))
    evil.start()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            prepared(SCENARIOS[name], pathlib.Path(folder)) as ground,
        ):
            yield Field(ground, evil)
    finally:
        evil.stop()


def explore(name: str, examples: int) -> None:
    with field(name) as ground:
        hypothesis.settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(hypothesis.given(twists)(ground.try_twist))()


@pytest.mark.parametrize("name", USUAL)
def test_some_answer_is_another(name: str) -> None:
    explore(name, 5)


@pytest.mark.long
@pytest.mark.parametrize("name", USUAL)
def test_many_answers_are_others(name: str) -> None:
    explore(name, 60)
