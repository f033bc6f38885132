"""One odd certificate or byte costs one reading: never a traceback, never the whole appliance."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import re
import socket
import threading
import warnings
from collections.abc import Iterator

import pytest
from conftest import Lab
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from simulators.ca import Authority, hierarchy, to_pem
from simulators.odd import ODD, odd_pem
from simulators.server import Request, Response, tls_context
from test_faults import failed
from test_fuzz import ACTS
from test_run import install_own, serial_of

import citrixagent as agent

KEY = ec.generate_private_key(ec.SECP256R1())
KEY_PEM = KEY.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
).decode()


def a_leaf(name: str = "other.example.com") -> x509.Certificate:
    now = dt.datetime.now(dt.timezone.utc)
    end = now + dt.timedelta(days=90)
    return Authority().certify(KEY.public_key(), [name], now, end)


@pytest.fixture(params=ODD)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield str(request.param)


def test_it_is_read_or_it_is_a_value_error(kind: str) -> None:
    pem = odd_pem(kind, a_leaf())
    try:
        read = agent.read_certificate(pem.encode())
    except ValueError:
        return
    assert read.serial
    assert read.not_after > read.not_before


def somebody_elses(lab: Lab, kind: str) -> str:
    """Put somebody else's odd certificate on the appliance, bound to a virtual server."""
    leaf = a_leaf()
    lab.appliance.install("other", to_pem([leaf]), KEY_PEM)
    lab.appliance.add_virtual_server("vs_other", "gateway")
    lab.appliance.bind("vs_other", "other")
    lab.appliance.write("/nsconfig/ssl/other.crt", odd_pem(kind, leaf).encode())
    return f"{leaf.serial_number:X}"


@pytest.mark.sample(5)
def test_somebody_elses_certificate_that_is_odd(lab: Lab, kind: str) -> None:
    serial = somebody_elses(lab, kind)
    install_own(lab, days_left=150)
    assert lab("run").exit_code == 0
    listed = lab.json("list", "--all")
    assert listed.exit_code == 0
    assert "Traceback" not in listed.text
    (row,) = [each for each in listed.document()["certificates"] if each["certkey"] == "other"]
    assert int(row["serial"], 16) == int(serial, 16)


@pytest.mark.sample(7)
def test_an_odd_certificate_keeps_no_command_from_the_others(lab: Lab, kind: str) -> None:
    somebody_elses(lab, kind)
    install_own(lab, days_left=150)
    for words in (["check"], ["discover"], ["list", "--served"], ["list", "--all", "--served"]):
        outcome = lab.json(*words)
        assert "unexpected" not in outcome.text
        assert not [each for each in outcome.document()["errors"] if each["kind"] == "state"]
    assert lab.json("discover").exit_code == 0


@pytest.mark.parametrize("kind", ["unknown curve", "extension twice", "version five"])
@pytest.mark.sample(2)
def test_an_odd_certificate_that_is_taken_over_is_judged_by_its_row(lab: Lab, kind: str) -> None:
    install_own(lab, days_left=20)
    certificate = lab.appliance.certkeys["www"].certificate
    lab.appliance.write("/nsconfig/ssl/www.crt", odd_pem(kind, certificate).encode())
    told = lab.json("run").profile()
    assert told["outcome"] == "renewed"
    assert len(lab.scm.orders) == 1


@pytest.mark.sample(5)
def test_an_odd_certificate_beside_the_one_that_was_ordered(lab: Lab, kind: str) -> None:
    odd = odd_pem(kind, hierarchy()["CA DV R37"].certificate)
    lab.scm.tamper = lambda _order, pem: odd + pem
    lab.write_profile()
    assert lab.json("run").profile()["outcome"] == "enrolled"
    assert serial_of(lab)


@pytest.mark.parametrize("kind", ["unknown kind of key", "extension twice", "broken names"])
@pytest.mark.sample(2)
def test_an_odd_certificate_instead_of_the_one_that_was_ordered(lab: Lab, kind: str) -> None:
    def tamper(order: object, _pem: str) -> str:
        return odd_pem(kind, order.leaf)  # type: ignore[attr-defined]

    lab.scm.tamper = tamper
    lab.write_profile()
    error, message = failed(lab)
    assert error == "mismatch"
    assert message.startswith("SCM's answer holds a certificate that cannot be read")
    assert "www" not in lab.appliance.certkeys
    lab.scm.tamper = None
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


@pytest.mark.parametrize("kind", ["negative serial", "serial zero", "the year zero"])
@pytest.mark.sample(2)
def test_a_virtual_server_that_presents_an_odd_certificate(lab: Lab, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = tls_context([(odd_pem(kind, a_leaf()), KEY_PEM)])
        threading.Thread(target=accept, args=(listener, context), daemon=True).start()
        port = listener.getsockname()[1]
        servers = [{"name": "vs_www", "type": "load_balancing", "connect": f"127.0.0.1:{port}"}]
        lab.write_profile(virtual_servers=servers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = lab.json("run").profile()
    assert told["outcome"] == "enrolled"
    assert told["warnings"]


FORGED = "\x1b]0;x\x07\u202e\x9b31m\u200b\u2028\x85\r\nwww: enrolled"


def forged_leaf() -> x509.Certificate:
    """Return a certificate whose names act on a terminal, and forge a line."""
    kinds = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.LOCALITY_NAME)
    name = x509.Name([x509.NameAttribute(kind, f"x{FORGED}") for kind in kinds])
    now = dt.datetime.now(dt.timezone.utc)
    builder = x509.CertificateBuilder(
        name, name, KEY.public_key(), 77, now, now + dt.timedelta(days=90)
    )
    names = x509.SubjectAlternativeName([x509.DNSName("other.example.com")])
    return builder.add_extension(names, critical=False).sign(KEY, hashes.SHA256())


@pytest.mark.long
def test_names_that_act_on_a_terminal_are_shown_as_what_they_are(lab: Lab) -> None:
    """Of certificates, certkeys and virtual servers, and of what an unverified peer presents."""
    leaf = to_pem([forged_leaf()])
    lab.appliance.install(f"theirs{FORGED}", leaf, KEY_PEM)
    lab.appliance.add_virtual_server(f"vs{FORGED}", "gateway")
    lab.appliance.bind(f"vs{FORGED}", f"theirs{FORGED}")
    install_own(lab, days_left=150)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = tls_context([(leaf, KEY_PEM)])
        threading.Thread(target=accept, args=(listener, context), daemon=True).start()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        servers = [{"name": "vs_www", "type": "load_balancing", "connect": place}]
        lab.write_profile(virtual_servers=servers)
        commands = (("run",), ("list", "--all", "--served"), ("check", "-v"), ("discover",))
        told = [lab(*command) for command in (*commands, ("renew", "www"), ("status",))]
    log = (lab.home / "state" / "citrixagent.log").read_text()
    for text in (*(outcome.text for outcome in told), log):
        assert not ACTS.search(text.replace("\n", ""))
        assert not [line for line in text.splitlines() if line.startswith("www: enrolled")]
    assert "\\x1b]0;x\\x07" in told[1].stdout
    assert "\\x1b]0;x\\x07" in told[2].stdout


def accept(listener: socket.socket, context: object) -> None:
    while True:
        try:
            connection, _ = listener.accept()
            context.wrap_socket(connection, server_side=True).close()  # type: ignore[attr-defined]
        except (OSError, ValueError):
            if listener.fileno() < 0:
                return


def test_what_libraries_warn_about_is_in_the_log_alone(lab: Lab) -> None:
    odd = odd_pem("negative serial", hierarchy()["CA DV R37"].certificate)
    lab.scm.tamper = lambda _order, pem: odd + pem
    lab.write_profile()
    outcome = lab.spawn("run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "CryptographyDeprecationWarning: " in (lab.home / "state/citrixagent.log").read_text()


ODD_TEXTS = {
    "Latin-1": b"M\xfcnchen",
    "cut off": b"M\xe2\x82nchen",
    "overlong": b"M\xc0\xafnchen",
    "surrogate": b"M\xed\xa0\x80nchen",
    "control character": b"M\x01nchen",
    "line break": b"M\nnchen",
}


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.sample(3)
def test_an_odd_byte_in_a_row_costs_nothing_else(lab: Lab, text: str) -> None:
    somebody_elses(lab, "negative serial")
    install_own(lab, days_left=150)

    def rewrite(request: Request, response: Response) -> Response:
        if not request.path.endswith("/sslcertkey"):
            return response
        odd = response.body.replace(b"CN=other", b"L=" + ODD_TEXTS[text] + b",CN=other")
        assert odd != response.body
        return dataclasses.replace(response, body=odd)

    lab.appliance.server.rewrite = rewrite
    outcome = lab.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "unchanged")
    assert lab.json("list", "--all").exit_code == 0


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.sample(3)
def test_an_odd_byte_in_a_refusal_of_scm(lab: Lab, text: str) -> None:
    body = b'{"code": -62, "description": "Field ' + ODD_TEXTS[text] + b' is missing"}'
    lab.scm.server.rewrite = lambda request, response: (
        Response(400, body)
        if request.method == "POST" and "token" not in request.path
        else response
    )
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "rejected"
    assert message.startswith("SCM refused the enrollment: Field M")
    assert "(code -62)" in message


def test_a_file_whose_content_is_no_base64(lab: Lab) -> None:
    def rewrite(request: Request, response: Response) -> Response:
        if not (request.method == "GET" and ".csr" in request.query):
            return response
        content = base64.b64encode(lab.appliance.files[f"/nsconfig/ssl/{csr_of(lab)}"])
        return dataclasses.replace(response, body=response.body.replace(content, b"abcde"))

    lab.appliance.server.rewrite = rewrite
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "appliance"
    assert message.endswith(": the answer holds no content that can be read")
    lab.appliance.server.rewrite = None
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def csr_of(lab: Lab) -> str:
    (name,) = [path for path in lab.appliance.files if re.search("/www-.*[.]csr$", path)]
    return name.rpartition("/")[2]
