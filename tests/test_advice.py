"""Advice helps and does no harm: what a message names is done here, and mends it."""

from __future__ import annotations

import re

import pytest
from conftest import PASSWORD, Lab
from cryptography import x509
from simulators.netscaler import Variant
from simulators.nitro import NitroError
from simulators.scm import scm_error
from simulators.server import Fault, Request, Response
from test_faults import failed, wants
from test_run import serial_of

import citrixagent as agent

KEY_FILE = 'show system file www-20260101000000.key -fileLocation "/nsconfig/ssl"'


def refused(lab: Lab, method: str, part: str, code: int, *details: object) -> Fault:
    """Have the appliance refuse a kind of request."""
    fault = Fault(
        "status",
        matches=wants(method, part),
        times=99,
        response=NitroError(code, *details).response(),
    )
    lab.appliance.server.faults.append(fault)
    return fault


# Rights


@pytest.mark.parametrize(
    "denied",
    [
        "show ns config",
        "stat HA node",
        "show ssl certKey",
        "show ssl vserver",
        "show lb vserver",
        "create ssl ecdsakey",
        "create ssl certReq",
        "show system file",
        "add system file",
        "add ssl certKey",
        "link ssl certKey",
        "bind ssl vserver",
        "save ns config",
    ],
)
@pytest.mark.sample(4)
def test_a_missing_right_is_named_with_what_gives_it(lab: Lab, denied: str) -> None:
    """A rule of README's policy, in quotes: with it all goes on, and no key can be read."""
    policy = f"^(?!{denied})"
    lab.appliance.add_user("limited", PASSWORD, policy)
    lab.write_profile(citrix=lab.citrix(username="limited"))
    kind, message = failed(lab)
    assert kind == "permission"
    assert message.startswith(f"{lab.appliance.host}: {denied}")
    name = f"citrixagent_{denied.replace(' ', '_')}"
    advice = re.search(
        rf'allow it with: add system cmdPolicy {name} ALLOW "(.+)" and: '
        rf'bind system user "limited" {name} \d+$',
        message,
    )
    assert advice
    assert advice[1] in agent.COMMAND_POLICY
    assert not re.search(advice[1], KEY_FILE)
    lab.appliance.add_user("limited", PASSWORD, f"{policy}|{advice[1]}")
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (2138, [KEY_FILE]),
        (2138, ['show system file passwd -fileLocation "/etc"']),
        (2138, ["rm ssl certKey www"]),
        (2138, ["shell"]),
    ],
)
def test_no_advice_goes_further_than_the_readme(lab: Lab, code: int, details: list[str]) -> None:
    refused(lab, "GET", "/sslcertkey", code, *details)
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "permission"
    assert message.endswith(": give the account the command policy of README, Rights and secrets")


def test_the_advice_names_the_folder_of_the_profile(lab: Lab) -> None:
    folder = "/nsconfig/partitions/a/ssl"
    refused(lab, "GET", "/sslcertkey", 2138, f'add system file a.crt -fileLocation "{folder}"')
    lab.write_profile(citrix=lab.citrix(ssl_directory=folder))
    assert f"-fileLocation .?{folder}/?(" in failed(lab)[1]


# What a message is about stands in its brackets


@pytest.mark.parametrize(
    ("code", "argument", "advice"),
    [
        (1106, "subjectAltName", "divide certificate.subject_alternative_names among several prof"),
        (1106, "organizationName", "choose a shorter certificate.organization"),
        (1106, "localityName", "choose a shorter certificate.locality"),
        (1106, "keyFile", "choose a shorter citrix.ssl_directory"),
        (1097, "countryName", "choose another certificate.country"),
        (1106, "digestMethod", ""),
    ],
)
@pytest.mark.sample(3)
def test_the_argument_decides_about_the_remedy(
    lab: Lab, code: int, argument: str, advice: str
) -> None:
    refused(lab, "POST", "/sslcertreq", code, argument, 40)
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "appliance"
    assert f"[{argument}, 40] (NITRO {code}, HTTP 400)" in message
    assert message.partition("HTTP 400)")[2].removeprefix(": ").startswith(advice)
    assert bool(advice) or message.endswith("HTTP 400)")
    assert "certificate.name" not in message


def test_fewer_names_are_the_remedy_for_too_many(lab: Lab) -> None:
    fault = refused(lab, "POST", "/sslcertreq", 1106, "subjectAltName", 40)
    fault.matches = lambda request: b"IP:192.0.2.10" in request.body
    lab.write_profile()
    assert "divide certificate.subject_alternative_names" in failed(lab)[1]
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=["example.com"]))
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def test_a_certificate_that_another_certkey_holds_already(lab: Lab) -> None:
    """Told by an update as by the first installation; nothing is bought again."""
    lab.write_profile()
    assert lab("run").exit_code == 0

    def keep_as_other(request: Request) -> None:
        if "action=update" in request.query and "other" not in lab.appliance.certkeys:
            order = lab.record()["change"]["new"] if "change" in lab.record() else None
            names = order or lab.record()["order"]
            files = lab.appliance.files
            certificate = files[f"/nsconfig/ssl/{names['cert_file']}"].decode()
            key = files[f"/nsconfig/ssl/{names['key_file']}"].decode()
            lab.appliance.install("other", certificate, key)

    lab.appliance.server.before = keep_as_other
    kind, message = failed(lab, "renew", "www")
    assert kind == "appliance"
    assert 'this certificate is there as "other": set certificate.name to it' in message
    lab.appliance.running.bindings.clear()
    lab.write_profile(certificate=lab.certificate(name="other"))
    assert lab.json("run").exit_code == 0
    assert len(lab.scm.orders) == 2
    leaf = lab.scm.orders[1].leaf
    assert leaf
    assert int(serial_of(lab, "other"), 16) == leaf.serial_number


# The management certificate


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["ns1.example.com"], "ns1.example.com"),
        (["ns1", "ns2.example.com"], "ns1, ns2.example.com"),
    ],
)
def test_a_management_certificate_for_another_name(lab: Lab, names: list[str], told: str) -> None:
    lab.appliance.server.present(*names)
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "untrusted"
    assert message.startswith(
        f"{lab.appliance.host}: its TLS certificate is for {told}, not for 127.0.0.1: set "
        "citrix.host to one of its names, or pin it with citrix.fingerprint "
        f'(it presents fingerprint: "{lab.appliance.server.fingerprint}")'
    )
    assert not lab.appliance.server.requests
    fingerprint = lab.appliance.server.fingerprint
    lab.write_profile(citrix=lab.citrix(ca_bundle=None, fingerprint=fingerprint))
    assert lab("run").exit_code == 0


def test_the_name_in_the_management_certificate_is_the_remedy(lab: Lab) -> None:
    lab.appliance.server.present("localhost")
    lab.write_profile()
    assert "is for localhost, not for 127.0.0.1" in failed(lab)[1]
    lab.write_profile(citrix=lab.citrix(host=f"localhost:{lab.appliance.server.port}"))
    assert lab("run").exit_code == 0


# Lists of bindings


@pytest.mark.parametrize("code", [278, 1090, 1097, 1232, 1240])
@pytest.mark.sample(3)
def test_an_appliance_that_gives_no_pages_of_bindings(lab: Lab, code: int) -> None:
    fault = refused(lab, "GET", "bulkbindings=yes&pagesize", code, "pagesize")
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert fault.times < 99
    lab.appliance.running.bindings.clear()
    assert lab.json("run").profile()["outcome"] == "repaired"
    assert lab("run").text == ""


def test_an_appliance_that_refuses_bindings_altogether(lab: Lab) -> None:
    refused(lab, "GET", "bulkbindings=yes", 2138, "show ssl vserver")
    lab.write_profile()
    assert failed(lab)[0] == "permission"
    asked = [call for call in lab.appliance.server.calls() if "bulkbindings" in call]
    assert len(asked) == 1


# Done here, but not there


@pytest.mark.parametrize("code", [349, 457, 458])
@pytest.mark.parametrize("part", ["action=update", "action=link", "action=save", "/sslcertkey"])
@pytest.mark.sample(5)
def test_what_is_done_here_but_not_there_goes_on(lab: Lab, part: str, code: int) -> None:
    if part == "action=update":
        lab.write_profile()
        assert lab("run").exit_code == 0
    answer = NitroError(code).response()
    lab.appliance.server.faults.append(Fault("told", matches=wants("POST", part), response=answer))
    lab.write_profile()
    command = ["renew", "www"] if part == "action=update" else ["run"]
    outcome = lab.json(*command)
    assert outcome.exit_code == 0
    served: list[x509.Certificate] = lab.appliance.virtual_servers["vs_www"].handshake()
    assert served[0] == lab.scm.orders[-1].leaf
    assert lab.appliance.saved
    assert lab("run").text == ""


def test_a_read_that_says_so_is_refused(lab: Lab) -> None:
    """There is nothing that it could have done."""
    response = Response(599, NitroError(457).response().body)
    fault = Fault("status", matches=wants("GET", "/sslcertkey"), response=response, times=9)
    lab.appliance.server.faults.append(fault)
    lab.write_profile()
    assert failed(lab)[0] == "appliance"


# Giving an order up


GIVE_UP = "give order 1000001 up with citrixagent.py enroll --force www"


@pytest.mark.parametrize("code", [1536, 1538, 1547])
@pytest.mark.sample(3)
def test_a_certificate_that_the_appliance_refuses_is_given_up(lab: Lab, code: int) -> None:
    fault = refused(lab, "POST", "/sslcertkey", code)
    lab.write_profile()
    kind, message = failed(lab)
    assert (kind, message.endswith(GIVE_UP)) == ("appliance", True)
    fault.times = 0
    assert lab("enroll", "--force", "www").exit_code == 0
    assert len(lab.scm.orders) == 2
    assert lab("run").text == ""


@pytest.mark.parametrize("code", [1540, 1541, 3374, 3375, 257, 1645])
@pytest.mark.sample(3)
def test_no_order_is_given_up_where_another_would_fare_no_better(lab: Lab, code: int) -> None:
    fault = refused(lab, "POST", "/sslcertkey", code)
    lab.write_profile()
    kind, message = failed(lab)
    assert (kind, "--force" in message) == ("appliance", False)
    fault.times = 0
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


@pytest.mark.parametrize("tamper", ["other_key", "missing_name", "expired", "no_chain"])
@pytest.mark.sample(4)
def test_what_is_not_what_was_ordered_is_given_up(lab: Lab, tamper: str) -> None:
    lab.scm.tamper = tamper
    lab.write_profile()
    kind, message = failed(lab)
    assert (kind, message.endswith(GIVE_UP)) == ("mismatch", True)
    lab.scm.tamper = None
    assert lab("enroll", "--force", "www").exit_code == 0
    assert len(lab.scm.orders) == 2


def test_an_order_that_scm_does_not_give_out_is_given_up(lab: Lab) -> None:
    """For as long as it says so with a code of its own; what else answers says nothing of it."""
    lab.scm.approval = "manual"
    lab.write_profile(enrollment={"max_wait": 0})
    assert lab("run").exit_code == 5
    download = wants("GET", "/api/v1/certificates/1000001")
    answers = [scm_error(-169, "why"), Response(404, b"<html>"), scm_error(-195)]
    ways = []
    for answer in answers:
        lab.scm.server.faults[:] = [Fault("status", matches=download, response=answer, times=99)]
        ways.append(failed(lab)[1].endswith(GIVE_UP))
    assert ways == [True, False, False]
    lab.scm.server.faults[:] = [
        Fault("status", matches=download, response=scm_error(-169, "why"), times=99)
    ]
    assert GIVE_UP in failed(lab)[1]
    lab.scm.approval = "auto"
    lab.scm.server.faults.clear()
    assert lab("enroll", "--force", "www").exit_code == 0
    assert [order.status for order in lab.scm.orders] == ["Requested", "Issued"]


# What went wrong first


@pytest.mark.parametrize("kind", ["lost", "reset"])
@pytest.mark.sample(2)
def test_what_goes_wrong_afterwards_hides_nothing(lab: Lab, kind: str) -> None:
    """The update behind an unlink breaks, and so does putting the link back."""
    lab.appliance.variant = Variant(update_link="refuse")
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.authority.generation = 37
    updates: list[Request] = []

    def is_second_update(request: Request) -> bool:
        if "action=update" in request.query:
            updates.append(request)
        return "action=update" in request.query and len(updates) == 2

    refused(lab, "POST", "action=link", 1548).matches = lambda request: (
        "action=link" in request.query and b'"www"' in request.body
    )
    lab.appliance.server.faults.append(Fault(kind, matches=is_second_update))
    error, message = failed(lab, "renew", "www")
    assert error == "unreachable"
    assert "action=link" not in message
    assert "1548" not in message
    lab.appliance.server.faults.clear()
    assert lab("run").exit_code == 0
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == lab.scm.orders[1].leaf
    assert len(lab.scm.orders) == 2
