"""Servers that never come to an end: drip, flood, stall, at every stage of every request."""

from __future__ import annotations

import faulthandler
import itertools
import json
import pathlib
import re
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pytest
import yaml
from conftest import Lab, wait_until
from simulators import HUNG
from simulators.netscaler import NetScaler
from simulators.server import BareListener, Fault, HttpsServer, Request, Response
from test_fleet import plain, write_many
from test_lifecycle import use_admin

from citrixagent import Tls, tls_context

T = TypeVar("T")
TIMEOUT = 2  # seconds for one request
STAGES = [
    *(("stall", stage) for stage in ("status", "headers", "body")),
    *(("drip", stage) for stage in ("status", "headers", "body")),
    *(("flood", stage) for stage in ("status", "headers", "continue", "body", "bomb")),
]
ENDPOINTS = {
    "appliance": [
        "POST login",
        "GET /nitro/v1/stat/hanode",
        "GET sslcertkey?PAGE",
        "GET sslvserver_sslcertkey_binding?bulkbindings=yes&PAGE",
        "GET sslvserver_sslcertkeybundle_binding?bulkbindings=yes",
        "GET lbvserver?PAGE",
        "POST sslecdsakey?action=create",
        "POST sslcertreq?action=create",
        "GET systemfile",
        "GET nsconfig",
        "POST systemfile",
        "POST sslcertkey",
        "GET sslcertkey/www",
        "GET sslcertkey/ca_X",
        "POST sslcertkey?action=link",
        "PUT sslvserver_sslcertkey_binding",
        "GET sslvserver_sslcertkey_binding/vs_www",
        "POST nsconfig?action=save",
        "DELETE systemfile",
        "POST logout",
    ],
    "enrollment": [
        "POST /auth/realms/apiclients/protocol/openid-connect/token",
        "POST /api/v1/certificates",
        "GET /api/v1/certificates/ID",
    ],
    "admin": [
        "GET /api/ssl/v1/types",
        "GET /api/ssl/v1",
        "POST /api/ssl/v1/enroll",
        "GET /api/ssl/v1/collect/ID",
    ],
}
PLACES = [(system, call) for system, calls in ENDPOINTS.items() for call in calls]
Place = tuple[str, str]


def mixed(what: Sequence[T]) -> list[tuple[Place, T]]:
    """Pair every place with a third of them, so that each comes to a third of the places."""
    pairs = itertools.product(enumerate(PLACES), enumerate(what))
    return [(place, each) for (row, place), (column, each) in pairs if (row + column) % 3 == 0]


HARMLESS = {"DELETE systemfile", "POST logout"}
"""What is not needed for a certificate to be in service."""


def plainly(request: Request) -> str:
    """Return a request without what differs from run to run."""
    words = re.split(r"\?(?:organizationId|format|commonName)", plain(str(request)))[0]
    head, _, last = words.rpartition("/")
    if words.startswith("DELETE systemfile/"):
        return "DELETE systemfile"
    return f"{head}/ID" if last.isdigit() else words


def limited(lab: Lab, system: str, timeout: int = TIMEOUT) -> HttpsServer:
    """Set both time limits, and return the server behind a system."""
    lab.write_profile(citrix=lab.citrix(timeout=timeout), enrollment={"max_wait": 3})
    lab.write_scm(timeout=timeout)
    if system == "admin":
        use_admin(lab, by_login=True)
        changed = {**yaml.safe_load((lab.home / "scm.yaml").read_text()), "timeout": timeout}
        lab.write_yaml("scm.yaml", changed)
    return lab.appliance.server if system == "appliance" else lab.scm.server


def ended(lab: Lab, *command: str) -> tuple[int, str]:
    """Run the program, which must come to an end: if it hangs, the process of this test does."""
    faulthandler.dump_traceback_later(HUNG, exit=True)
    try:
        outcome = lab.json(*command)
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert not outcome.stderr
    return outcome.exit_code, outcome.stdout


@pytest.mark.sample(8)
@pytest.mark.parametrize(("place", "stage"), mixed(STAGES), ids="-".join)
def test_a_request_ends_whatever_the_server_does(
    lab: Lab, place: Place, stage: tuple[str, str]
) -> None:
    """The lock is free, the session ended, and the next run goes on."""
    system, call = place
    server = limited(lab, system)
    matches: Callable[[Request], bool] = lambda request: plainly(request) == call  # noqa: E731
    server.faults.append(Fault(stage[0], stage=stage[1], matches=matches, times=99))
    code, told = ended(lab, "run")
    assert any(map(matches, server.requests)), [plainly(each) for each in server.requests]
    (profile,) = json.loads(told)["profiles"]
    assert code == (0 if call in HARMLESS else 1), profile
    if code:
        assert profile["error"]["kind"] in {"unreachable", "unavailable", "unknown_outcome"}
    if call == "POST logout":
        lab.appliance.kill_sessions()
    assert not lab.appliance.sessions
    server.faults.clear()
    unknown = bool(code) and profile["error"]["kind"] == "unknown_outcome"
    assert lab(*(("enroll", "--force", "www") if unknown else ("run",))).exit_code == 0
    assert len(lab.scm.orders) == 1


@pytest.mark.parametrize("system", ENDPOINTS)
@pytest.mark.sample(2)
def test_the_endpoints_are_those_that_a_run_asks(lab: Lab, system: str) -> None:
    """Whoever lets a run ask something else adds it to the list."""
    server = limited(lab, system, 20)
    assert lab("run").exit_code == 0
    told = dict.fromkeys(map(plainly, server.requests))
    assert sorted(told) == sorted(ENDPOINTS[system])


@pytest.mark.parametrize("behaviour", ["stall", "drip", "full"])
@pytest.mark.parametrize("system", ["appliance", "scm"])
@pytest.mark.sample(4)
def test_a_connection_that_does_not_come_about_ends(lab: Lab, system: str, behaviour: str) -> None:
    """It is tried once: waiting longer is of no use."""
    with BareListener(behaviour) as listener:
        lab.write_profile(citrix=lab.citrix(timeout=1))
        if system == "appliance":
            lab.write_profile(citrix=lab.citrix(host=listener.host, timeout=1))
        else:
            lab.write_scm(url=listener.url, token_url=f"{listener.url}/token", timeout=1)
        code, told = ended(lab, "run")
        assert listener.connections <= 1
    (profile,) = json.loads(told)["profiles"]
    name = listener.host if system == "appliance" else f"SCM ({listener.host})"
    text = f"{name}: no connection within 1 s: check its address and the network between"
    assert (code, profile["error"]) == (1, {"kind": "unreachable", "message": text})
    assert not lab.appliance.sessions


@pytest.mark.parametrize("behaviour", ["stall", "drip", "full"])
@pytest.mark.sample(3)
def test_a_virtual_server_that_does_not_come_to_an_end(lab: Lab, behaviour: str) -> None:
    """Its address is remembered: who has not begun to look by then does not look at it."""
    names = [f"vs_{number}" for number in range(20)]
    for name in names:
        lab.appliance.add_virtual_server(name, "load_balancing")
    with BareListener(behaviour) as listener:
        servers = [{"type": "load_balancing", "connect": listener.host, "name": n} for n in names]
        lab.write_profile(virtual_servers=servers)
        code, told = ended(lab, "run")
        assert listener.connections == (0 if behaviour == "full" else 16)
    (profile,) = json.loads(told)["profiles"]
    assert (code, profile["outcome"]) == (0, "enrolled")
    assert [each.partition(" could not be ")[2] for each in profile["warnings"]] == [
        "verified: no answer in time"
    ] * len(names)


def test_a_stalled_body_is_waited_for_once(lab: Lab) -> None:
    limited(lab, "appliance")
    matches: Callable[[Request], bool] = lambda request: "hanode" in str(request)  # noqa: E731
    lab.appliance.server.faults.append(Fault("stall", stage="body", matches=matches, times=99))
    code, told = ended(lab, "run")
    (profile,) = json.loads(told)["profiles"]
    assert code == 1
    assert f"no answer within {TIMEOUT} s" in profile["error"]["message"]
    assert len([each for each in lab.appliance.server.requests if matches(each)]) == 1


@pytest.mark.parametrize("stage", ["body", "bomb"])
def test_an_answer_that_is_too_long_is_not_read_to_its_end(lab: Lab, stage: str) -> None:
    limited(lab, "appliance", 30)
    matches: Callable[[Request], bool] = lambda request: "hanode" in str(request)  # noqa: E731
    lab.appliance.server.faults.append(Fault("flood", stage=stage, matches=matches, times=99))
    code, told = ended(lab, "run")
    (profile,) = json.loads(told)["profiles"]
    text = f"{lab.appliance.host}: its answer exceeds 16 MB"
    assert (code, profile["error"]) == (1, {"kind": "unavailable", "message": text})
    assert len([each for each in lab.appliance.server.requests if matches(each)]) == 1


def test_a_list_whose_pages_never_end(lab: Lab) -> None:
    lab.write_profile()
    numbers = itertools.count()

    def page(request: Request) -> Response:
        rows = [{"certkey": f"c{next(numbers)}"} for _ in range(1000)]
        return Response(200, json.dumps({"errorcode": 0, "sslcertkey": rows}).encode())

    handle = lab.appliance.server.handle
    lab.appliance.server.handle = lambda request: (
        page(request) if "/sslcertkey?" in str(request) else handle(request)
    )
    code, told = ended(lab, "run")
    (profile,) = json.loads(told)["profiles"]
    assert (code, profile["error"]["kind"]) == (1, "unavailable")
    assert "show ssl certKey: the list does not end" in profile["error"]["message"]
    assert not lab.appliance.sessions


@pytest.fixture
def three(lab: Lab) -> Iterator[list[NetScaler]]:
    """Three appliances with a profile each."""
    with NetScaler() as second, NetScaler() as third:
        for number, appliance in enumerate((lab.appliance, second, third)):
            if appliance is not lab.appliance:
                appliance.add_user("citrixagent", str(lab.citrix()["password"]))
                appliance.add_virtual_server("vs_www", "load_balancing")
            lab.write_profile(f"p{number}", citrix=lab.citrix(host=appliance.host, timeout=600))
        yield [lab.appliance, second, third]


@pytest.mark.parametrize(("kind", "stage"), [("drip", "body"), ("stall", "status")])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.sample(3)
def test_a_signal_ends_all_requests_that_are_under_way(
    lab: Lab, three: list[NetScaler], kind: str, stage: str, number: int, code: int
) -> None:
    for appliance in three:
        matches: Callable[[Request], bool] = lambda each: "sslcertkey?" in str(each)  # noqa: E731
        appliance.server.faults.append(Fault(kind, stage=stage, seconds=600, matches=matches))
    with lab.start("run", "--json") as process:
        wait_until(lambda: not any(each.server.faults[0].times for each in three), process)
        process.send_signal(number)
        outcome = lab.ended(process)
    assert outcome.exit_code == code
    assert {each["outcome"] for each in outcome.document()["profiles"]} == {"failed"}
    assert not any(each.sessions for each in three)


def test_a_signal_ends_eight_questions_for_certificates(lab: Lab) -> None:
    names = write_many(lab, 10)
    assert lab("run").exit_code == 0
    lab.write_scm(timeout=600)
    asked = len(lab.scm.server.requests)

    def is_later(request: Request) -> bool:
        before = lab.scm.server.calls(asked)[:-1]
        return "/status" in str(request) and any("/status" in call for call in before)

    fault = Fault("stall", stage="body", seconds=600, matches=is_later, times=99)
    lab.scm.server.faults.append(fault)
    code, told = stopped(lab, lambda: fault.times == 99 - 8)
    assert code == 143
    assert fault.times == 99 - 8
    texts = {each["error"]["message"] for each in json.loads(told)["profiles"]}
    assert texts == {"interrupted before it was looked at: the next run goes on from here"}
    assert len(json.loads(told)["profiles"]) == len(names)
    assert not lab.appliance.sessions


def stopped(lab: Lab, is_time: Callable[[], bool]) -> tuple[int, str]:
    """Run the program as a process, end it with a signal, and return its code and its output."""
    with lab.start("run", "--json") as process:
        wait_until(is_time, process)
        process.terminate()
        outcome = lab.ended(process)
    return outcome.exit_code, outcome.stdout


def test_a_signal_while_an_order_drips_leaves_its_outcome_unknown(lab: Lab) -> None:
    """It is not taken for one that was not sent."""
    limited(lab, "enrollment", 600)
    lab.scm.server.faults.append(
        Fault(
            "drip", stage="body", matches=lambda each: plainly(each) == "POST /api/v1/certificates"
        )
    )
    code, told = stopped(lab, lambda: not lab.scm.server.faults[0].times)
    assert code == 143
    assert json.loads(told)["profiles"][0]["error"]["kind"] == "unknown_outcome"
    outcome = lab.json("run")
    assert outcome.profile()["error"]["kind"] == "unknown_outcome"
    assert not lab.scm.orders


ODD = {
    "deep JSON": Response(200, b"[" * 200_000),
    "deep JSON in an object": Response(200, b'{"a":' * 100_000),
    "a digit that is no number": Response(503, b"", {"Retry-After": "\u00b2"}),
    "endless digits": Response(503, b"", {"Retry-After": "9" * 400}),
    "no date": Response(503, b"", {"Retry-After": "Mon, 99 Foo 99999 99:99:99 -0000"}),
    "a bad location": Response(302, b"", {"Location": "https://[::1"}),
    "a bad challenge": Response(
        401, b"", {"WWW-Authenticate": 'Bearer authorization_uri="https://['}
    ),
    "a challenge with a bad port": Response(
        401, b"", {"WWW-Authenticate": 'Bearer authorization_uri="https://h:999999/"'}
    ),
    "not Latin": Response(500, b"", {"X-Odd": "\u00e9\u00ff", "Content-Type": "text/html; \u00e9"}),
    "no text": Response(200, b"\xff\xfe\x00\xd8"),
    "a number in words": Response(200, b'{"errorcode": "\\u00b2", "certId": NaN, "sslId": 1e999}'),
    "an unasked encoding": Response(200, b"x", {"Content-Encoding": "br"}),
    "a broken encoding": Response(200, b"x", {"Content-Encoding": "gzip"}),
    "a list": Response(200, b'[{"errorcode": 0}, 1, null]'),
}


@pytest.mark.sample(8)
@pytest.mark.parametrize(("place", "odd"), mixed(list(ODD)))
def test_an_odd_answer_is_no_surprise(lab: Lab, place: Place, odd: str) -> None:
    """Four times, which is as often as a request is sent; the next run goes on."""
    system, call = place
    server = limited(lab, system, 20)
    server.faults.append(
        Fault("status", matches=lambda each: plainly(each) == call, times=4, response=ODD[odd])
    )
    outcome = lab.json("run")
    assert any(plainly(each) == call for each in server.requests)
    assert outcome.exit_code in {0, 1}
    (profile,) = outcome.document()["profiles"]
    assert "unexpected" not in str(profile["error"]), profile
    server.faults.clear()
    lab.appliance.kill_sessions()
    unknown = profile["error"] and profile["error"]["kind"] == "unknown_outcome"
    assert lab(*(("enroll", "--force", "www") if unknown else ("run",))).exit_code == 0
    assert len(lab.scm.orders) == 1


def test_a_connection_that_is_reset_before_its_handshake_is_closed() -> None:
    """Python's own sockets are left open then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        select.select([plain], [], [])
        number = plain.fileno()
        with pytest.raises(ConnectionResetError):
            tls_context(Tls(verify=False)).wrap_socket(plain)
    assert not pathlib.Path(f"/proc/self/fd/{number}").exists()
