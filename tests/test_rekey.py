"""New keys for a whole fleet: replace --all, renew --all, and what they leave behind revoked."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import signal
import threading
from collections.abc import Iterator, Sequence

import pytest
import time_machine
from conftest import PASSWORD, Document, Lab
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from forked import Program
from simulators import HUNG
from simulators.netscaler import NetScaler
from simulators.scm import scm_error
from simulators.server import Fault, Request, Response
from test_faults import failed, wants
from test_lifecycle import leaf, served, use_admin, utc_now
from test_run import serial_of

ALL = ["replace", "--all", "--yes"]
PREVIOUS = ["--previous", "--reason", "keyCompromise", "--yes"]


@pytest.fixture(params=["enrollment", pytest.param("admin", marks=pytest.mark.long)])
def api(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    if request.param == "admin":
        use_admin(lab, by_login=False)
    return lab


def populate(lab: Lab, appliances: Sequence[NetScaler], each: int) -> list[str]:
    """Write profiles for so many virtual servers of every appliance; return their names."""
    names = []
    for number, appliance in enumerate(appliances):
        for index in range(each):
            name = f"site{number}-{index}"
            appliance.add_virtual_server(f"vs_{name}", "load_balancing")
            lab.write_profile(
                name,
                citrix=lab.citrix(host=appliance.host),
                virtual_servers=[{"name": f"vs_{name}", "type": "load_balancing"}],
                certificate=lab.certificate(
                    common_name=f"{name}.example.com", subject_alternative_names=None
                ),
                verification={"handshake": "off"},
            )
            names.append(name)
    return names


def actions(lab: Lab) -> list[str]:
    return [order.action for order in lab.scm.orders]


def enroll_before(lab: Lab) -> None:
    """Have everything been ordered two days ago."""
    with time_machine.travel(utc_now() - dt.timedelta(days=2), tick=True):
        assert lab("run").exit_code == 0


def outcomes(document: Document) -> dict[str, str]:
    return {each["profile"]: each["outcome"] for each in document["profiles"]}


# The options


@pytest.mark.parametrize("command", ["renew", "replace"])
@pytest.mark.sample(2)
def test_all_or_names(lab: Lab, command: str) -> None:
    lab.write_profile()
    enroll_before(lab)
    for words in ([], ["--all", "www"], ["--all"], ["--all", "www", "--yes"]):
        outcome = lab(command, *words)
        assert outcome.exit_code == 2
    assert (
        "nothing was ordered: give --yes to place 1 order without being asked"
        in lab(command, "--all").stderr
    )
    assert actions(lab) == ["enroll"]


@pytest.mark.parametrize(("command", "outcome"), [("renew", "renewed"), ("replace", "replaced")])
@pytest.mark.sample(2)
def test_all_is_asked_for_with_the_number_of_orders(lab: Lab, command: str, outcome: str) -> None:
    populate(lab, [lab.appliance], 2)
    enroll_before(lab)
    code, shown = lab.on_a_terminal(command, "--all", answer="n\n")
    assert code == 2
    assert f"{command} 2 profiles: 2 orders at SCM" in shown
    assert shown.rstrip().endswith(": nothing was ordered")
    assert "Usage" not in shown
    assert actions(lab) == ["enroll"] * 2
    code, shown = lab.on_a_terminal(command, "--all", answer="y\n")
    assert (code, shown.count(f": {outcome}, valid until")) == (0, 2)
    assert "2 profiles: 0 orders at SCM" in lab.on_a_terminal(command, "--all", answer="n\n")[1]


@pytest.mark.parametrize("command", ["renew", "replace"])
@pytest.mark.sample(2)
def test_what_was_ordered_within_a_day_is_left_out(lab: Lab, command: str) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    told = lab.json(command, "--all", "--yes").profile()
    assert told["outcome"] == "unchanged"
    assert told["reason"].startswith("ordered at ")
    assert told["reason"].endswith(", within 24 hours")
    for hours, number in ((23, 1), (25, 2), (26, 2), (50, 3)):
        with time_machine.travel(utc_now() + dt.timedelta(hours=hours), tick=True):
            assert lab(command, "--all", "--yes").exit_code == 0
        assert len(lab.scm.orders) == number
    assert lab.json(command, "www").profile()["outcome"] == f"{command.rstrip('e')}ed"


def test_a_time_in_the_future_counts_as_long_ago(lab: Lab) -> None:
    lab.write_profile()
    with time_machine.travel(utc_now() + dt.timedelta(hours=30), tick=True):
        assert lab("run").exit_code == 0
    assert lab.json(*ALL).profile()["outcome"] == "replaced"


def test_an_order_that_waits_is_gone_on_with(lab: Lab) -> None:
    lab.write_profile(enrollment={"max_wait": 0})
    enroll_before(lab)
    lab.scm.approval = "manual"
    for _ in range(2):
        assert lab(*ALL).exit_code == 5
    lab.scm.orders[1].approve()
    assert lab.json(*ALL).profile()["outcome"] == "replaced"
    assert lab.json(*ALL).profile()["outcome"] == "unchanged"
    assert actions(lab) == ["enroll", "replace"]


def test_what_is_missing_around_it_is_done(lab: Lab) -> None:
    """A command that was cut off at its end is finished by the next one, without an order."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.appliance.running.bindings.clear()
    assert lab.json(*ALL).profile()["outcome"] == "repaired"
    assert actions(lab) == ["enroll"]


def test_one_passing_answer_costs_one_profile(lab: Lab) -> None:
    populate(lab, [lab.appliance], 3)
    enroll_before(lab)
    fault = Fault("status", matches=wants("POST", "/replace"), response=scm_error(-195), times=1)
    lab.scm.server.faults.append(fault)
    outcome = lab.json(*ALL)
    assert outcome.exit_code == 1
    assert sorted(outcomes(outcome.document()).values()) == ["failed", "replaced", "replaced"]
    assert sorted(outcomes(lab.json(*ALL).document()).values()) == [
        "replaced",
        "unchanged",
        "unchanged",
    ]
    assert actions(lab) == ["enroll"] * 3 + ["replace"] * 3


# Revoking what was left behind


def test_what_was_left_behind_is_revoked_and_nothing_else(api: Lab) -> None:
    api.write_profile()
    assert api("run").exit_code == 0
    assert failed(api, "revoke", "www", *PREVIOUS)[0] == "state"
    assert api("replace", "www").exit_code == 0
    old = leaf(api, 0)
    outcome = api.json("revoke", "www", *PREVIOUS)
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "revoked")
    assert int(outcome.profile()["serial"], 16) == old.serial_number
    assert [order.status for order in api.scm.orders] == ["Revoked", "Issued"]
    assert api.scm.orders[0].revoked_reason == 1
    assert served(api)[0] == leaf(api)
    assert api("run").text == ""
    assert failed(api, "rollback", "www") == (
        "state",
        "the previous certificate of www was revoked by the operator",
    )
    assert api("revoke", "www", *PREVIOUS).exit_code == 0
    assert api("run").text == ""


@pytest.mark.parametrize("command", ["renew", "replace"])
@pytest.mark.sample(2)
def test_what_a_second_one_left_behind_is_revoked(api: Lab, command: str) -> None:
    api.write_profile()
    for words in (["run"], ["replace", "www"], [command, "www"]):
        assert api(*words).exit_code == 0
    assert api("revoke", "www", *PREVIOUS).exit_code == 0
    statuses = [order.status for order in api.scm.orders]
    assert statuses[1:] == ["Revoked", "Issued"]
    assert api("run").text == ""


def test_an_answer_that_was_lost_leaves_no_way_back(api: Lab) -> None:
    api.write_profile()
    for words in (["run"], ["replace", "www"]):
        assert api(*words).exit_code == 0
    method = "POST" if "admin" in (api.home / "scm.yaml").read_text() else "DELETE"
    lost = Fault("lost", matches=lambda r: r.method == method and "token" not in r.path)
    api.scm.server.faults.append(lost)
    assert failed(api, "revoke", "www", *PREVIOUS)[0] == "unreachable"
    assert failed(api, "rollback", "www")[0] == "state"
    assert api("revoke", "www", *PREVIOUS).exit_code == 0
    assert [order.status for order in api.scm.orders] == ["Revoked", "Issued"]
    assert api("run").text == ""


def test_a_refused_revocation_changes_nothing(api: Lab) -> None:
    """Not issued is not revoked: SCM may revoke nothing that was replaced."""
    api.write_profile()
    for words in (["run"], ["replace", "www"]):
        assert api(*words).exit_code == 0
    method = "POST" if "admin" in (api.home / "scm.yaml").read_text() else "DELETE"
    refused = Fault(
        "status",
        matches=lambda r: r.method == method and "token" not in r.path,
        response=scm_error(-102),
        times=9,
    )
    api.scm.server.faults.append(refused)
    kind, message = failed(api, "revoke", "www", *PREVIOUS)
    assert kind == "rejected"
    assert "is not issued there (code -102): look at it in SCM" in message
    api.scm.server.faults.clear()
    assert api("rollback", "www").exit_code == 0


def test_what_is_in_service_is_never_revoked_as_the_previous(lab: Lab) -> None:
    """Somebody put the old one back by hand: it is renewed, as the message says, and revoked."""
    lab.write_profile()
    for words in (["run"], ["replace", "www"]):
        assert lab(*words).exit_code == 0
    put(lab, lab.record()["previous"])
    kind, message = failed(lab, "revoke", "www", *PREVIOUS)
    assert kind == "state"
    assert "still holds the previous certificate" in message
    assert message.endswith(": run citrixagent.py renew www first")
    assert lab("renew", "www").exit_code == 0
    assert lab("revoke", "www", *PREVIOUS).exit_code == 0
    assert [order.status for order in lab.scm.orders] == ["Revoked", "Issued", "Issued"]
    assert lab("run").text == ""


def test_an_id_that_is_also_in_service_is_never_revoked_as_the_previous(lab: Lab) -> None:
    """An Enrollment API that keeps the id of what is replaced: it has no other name for it."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    first = lab.scm.orders[0].cert_id

    def keep_id(request: Request, response: Response) -> Response:
        if request.path.endswith("/replace"):
            return dataclasses.replace(response, body=json.dumps({"certId": first}).encode())
        if request.method == "GET" and request.path.endswith(f"/{first}"):
            pem = lab.scm.collect(lab.scm.orders[-1])
            return Response(200, (pem or "").encode(), {"Content-Type": "application/x-pem-file"})
        return response

    lab.scm.server.rewrite = keep_id
    assert lab.json("replace", "www").profile()["outcome"] == "replaced"
    kind, message = failed(lab, "revoke", "www", *PREVIOUS)
    assert (kind, f"{first} is also the id of" in message) == ("state", True)
    assert [order.status for order in lab.scm.orders] == ["Replaced", "Issued"]
    lab.scm.server.rewrite = None
    assert lab("rollback", "www").exit_code == 0


def put(lab: Lab, generation: Document) -> None:
    files = lab.appliance.files
    certificate, key = (
        files[f"/nsconfig/ssl/{generation[name]}"] for name in ("cert_file", "key_file")
    )
    lab.appliance.running.put(
        dataclasses.replace(
            lab.appliance.certkeys["www"],
            certificate=x509.load_pem_x509_certificate(certificate),
            private_key=key,
        )
    )


def test_somebody_elses_certificate_in_service_is_told(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab("replace", "www").exit_code == 0
    put(lab, lab.record()["previous"])
    kind, message = failed(lab, "revoke", "www", "--reason", "superseded", "--yes")
    assert (kind, "holds another certificate" in message) == ("state", True)
    assert [order.status for order in lab.scm.orders] == ["Replaced", "Issued"]


@pytest.mark.parametrize("previous", [True, False])
@pytest.mark.sample(2)
def test_an_appliance_that_does_not_answer_stops_no_revocation(lab: Lab, *, previous: bool) -> None:
    lab.write_profile()
    for words in (["run"], ["replace", "www"]):
        assert lab(*words).exit_code == 0
    lab.appliance.server.refuse()
    words = PREVIOUS if previous else ["--reason", "keyCompromise", "--yes"]
    outcome = lab("revoke", "www", *words)
    assert outcome.exit_code == 0
    assert f"{lab.appliance.host} was not looked at" in outcome.stdout
    wanted = ["Revoked", "Issued"] if previous else ["Replaced", "Revoked"]
    assert [order.status for order in lab.scm.orders] == wanted
    lab.appliance.server.accept()


def test_several_are_shown_and_asked_about_once(lab: Lab) -> None:
    names = populate(lab, [lab.appliance], 3)
    assert lab("run", *names[:2]).exit_code == 0
    words = ["revoke", *names, "--reason", "superseded"]
    assert lab(*words).exit_code == 2
    code, shown = lab.on_a_terminal(*words, answer="n\n")
    assert code == 2
    assert "Revoke these 2 certificates for good?" in shown
    for name in names[:2]:
        serial = serial_of(lab, name)
        assert f"{name}: {name}.example.com; serial {serial}, valid until 20" in shown
        assert f"; vs_{name}" in shown
    assert f"{names[2]}: nothing to revoke" in shown
    outcome = lab.json(*words, "--yes")
    assert outcome.exit_code == 1
    assert outcomes(outcome.document()) == dict(
        zip(names, ["revoked", "revoked", "failed"], strict=True)
    )
    assert [order.status for order in lab.scm.orders] == ["Revoked", "Revoked"]


# A fleet, cut off again and again


class Killer:
    """Kills the program at every so many writes, wherever it is.

    Not while an order is on record that has not left: whether such was placed only SCM knows, and
    that has tests of its own.
    """

    def __init__(self, lab: Lab, every: int) -> None:
        self.process: Program | None = None
        self.kills = 0
        self._lab = lab
        self._every = every
        self._writes = 0
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> None:
        is_write = request.method != "GET" and "log" not in request.path
        with self._lock:
            self._writes += is_write and "token" not in request.path
            process = self.process
            if process and self._writes >= self._every and process.poll() is None:
                self._try_to_kill(process)

    def _try_to_kill(self, process: Program) -> None:
        process.pause()
        if set(self._unknown()) - set(self._placed()):
            process.send_signal(signal.SIGCONT)
            return
        process.kill()
        self.process, self._writes = None, 0
        self.kills += 1

    def _unknown(self) -> Iterator[bytes]:
        """Yield the keys of orders that may have been placed, as far as the records know."""
        for path in (self._lab.home / "state").glob("profile-*.json"):
            change = json.loads(path.read_text())["change"]
            if change and change["order"] and change["order"]["sent"]:
                yield key_of(x509.load_pem_x509_csr(change["order"]["csr"].encode()))

    def _placed(self) -> list[bytes]:
        return [key_of(order.csr) for order in self._lab.scm.orders]


def key_of(csr: x509.CertificateSigningRequest) -> bytes:
    return csr.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def answer_unknown(lab: Lab, document: Document) -> None:
    """Do what the message says: look for the order in SCM, and name its id."""
    for each in document["profiles"]:
        if each["error"]:
            assert each["error"]["kind"] == "unknown_outcome", each
            name = each["profile"]
            assert f"enroll --cert-id ID {name}" in each["error"]["message"]
            (placed,) = [
                order.cert_id
                for order in lab.scm.orders
                if order.action == "replace" and order.names[0] == f"{name}.example.com"
            ]
            assert lab("enroll", "--cert-id", placed, name).exit_code == 0


@pytest.mark.parametrize(
    ("admin", "appliances", "each", "every"),
    [
        (False, 2, 2, 9),
        pytest.param(True, 2, 2, 9, marks=pytest.mark.long),
        pytest.param(False, 10, 20, 60, marks=pytest.mark.long),
    ],
)
def test_a_fleet_gets_new_keys_though_the_command_is_killed_again_and_again(
    lab: Lab, admin: bool, appliances: int, each: int, every: int
) -> None:
    if admin:
        use_admin(lab, by_login=False)
    fleet = [NetScaler() for _ in range(appliances)]
    for appliance in fleet:
        appliance.start()
        appliance.add_user("citrixagent", PASSWORD)
    try:
        rekey(lab, fleet, each, every)
    finally:
        for appliance in fleet:
            appliance.stop()


def until_done(lab: Lab, killer: Killer) -> bool:
    """Run the command once; tell whether everything is done."""
    killer.process = process = lab.start(*ALL, "--json")
    printed, _ = process.communicate(timeout=HUNG)
    if process.returncode > 0:
        killer.process = None
        answer_unknown(lab, json.loads(printed))
    return process.returncode == 0


def rekey(lab: Lab, fleet: Sequence[NetScaler], each: int, every: int) -> None:
    names = populate(lab, fleet, each)
    lab.write_yaml("agent.yaml", {"max_orders": len(names)})
    enroll_before(lab)
    assert actions(lab) == ["enroll"] * len(names)
    killer = Killer(lab, every)
    for server in (lab.scm.server, *(appliance.server for appliance in fleet)):
        server.before = killer
    while not until_done(lab, killer):
        assert killer.kills < 20 * len(names)
        for appliance in fleet:
            appliance.kill_sessions()  # they would time out
    assert killer.kills >= len(names) * 5 // every
    for server in (lab.scm.server, *(appliance.server for appliance in fleet)):
        server.before = None
    assert sorted(actions(lab)) == ["enroll"] * len(names) + ["replace"] * len(names)
    check_served(lab, fleet)
    assert lab("revoke", *names, *PREVIOUS).exit_code == 0
    statuses = {(order.action, order.status) for order in lab.scm.orders}
    assert statuses == {("enroll", "Revoked"), ("replace", "Issued")}
    outcome = lab("run")
    assert (outcome.exit_code, outcome.text) == (0, "")
    check_served(lab, fleet)


def check_served(lab: Lab, fleet: Sequence[NetScaler]) -> None:
    """Every virtual server presents the replacement, under a key of its own, saved."""
    newest = {order.names[0]: order.leaf for order in lab.scm.orders if order.action == "replace"}
    keys = [leaf.public_key() for leaf in newest.values() if leaf]
    assert len({key.public_numbers() for key in keys}) == len(keys)  # type: ignore[union-attr]
    for appliance in fleet:
        assert appliance.saved
        assert not appliance.sessions
        for name, server in appliance.virtual_servers.items():
            shown = server.handshake()[0]
            assert shown == newest[f"{name.removeprefix('vs_')}.example.com"]
