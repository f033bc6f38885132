"""What a run that did not get to its end leaves on record, so that the next one does right."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from conftest import Lab
from simulators.netscaler import nitro_error
from simulators.server import Fault, Request
from test_faults import wants
from test_run import install_own, own_files


def test_an_order_that_failed_is_given_up_with_force(lab: Lab) -> None:
    """An order that merely waits is not: that it failed stands on record."""
    lab.write_profile()
    lab.scm.tamper = "other_key"
    assert lab("run").exit_code == 1
    lab.scm.tamper = None
    assert lab("enroll", "--force", "www").exit_code == 0
    assert [order.action for order in lab.scm.orders] == ["enroll", "enroll"]
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == lab.scm.orders[1].leaf


def test_what_stands_on_record_is_not_written_again(lab: Lab) -> None:
    """Each write waits for the disk: whoever looks never finds the same text in another file."""
    written: defaultdict[str, set[int]] = defaultdict(set)
    record = lab.home / "state" / "profile-www.json"

    def look(_: Request) -> None:
        if record.exists():
            written[record.read_text()].add(record.stat().st_mtime_ns)

    for server in (lab.appliance.server, lab.scm.server):
        server.before = server.after = look
    lab.write_profile()
    for command in ("run", "renew"):
        assert lab(command, "www").exit_code == 0
        assert {len(times) for times in written.values()} == {1}
    assert len(written) > 15


def test_consent_to_replace_a_default_certificate_is_kept_while_the_order_waits(lab: Lab) -> None:
    install_own(lab, days_left=100)
    lab.write_profile(certificate=lab.certificate(name="new"), enrollment={"max_wait": 0})
    lab.scm.approval = "manual"
    assert lab("enroll", "--take-over", "www").exit_code == 5
    assert lab("run").exit_code == 5
    (order,) = lab.scm.orders
    order.approve()
    assert lab("run").exit_code == 0
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == order.leaf


def test_without_a_handshake_nothing_is_left_to_verify(lab: Lab) -> None:
    lab.write_profile(verification={"handshake": "off"})
    assert lab("run").exit_code == 0
    lab.write_profile(verification={"handshake": "required"})
    outcome = lab("run")
    assert (outcome.exit_code, outcome.text) == (0, "")


def test_a_file_that_could_not_be_deleted_is_deleted_by_the_next_run(lab: Lab) -> None:
    lab.write_profile()
    refusal = Fault("status", matches=wants("DELETE", "/systemfile"), response=nitro_error(1647))
    lab.appliance.server.faults.append(refusal)
    result = lab.json("run").profile()
    (csr,) = [path for path in own_files(lab) if path.endswith(".csr")]
    assert any("was not deleted" in warning for warning in result["warnings"])
    assert lab("run").exit_code == 0
    assert csr not in own_files(lab)


def test_a_file_that_somebody_elses_certkey_uses_by_now_stays(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    running = lab.appliance.running
    first = running.certkeys["www"]
    assert lab("renew", "www").exit_code == 0
    running.put(dataclasses.replace(first, name="copy"))
    lab.appliance.save()
    assert lab("renew", "www").exit_code == 0
    there = {path.rpartition("/")[2] for path in lab.appliance.files}
    assert {first.cert, first.key} <= there


def test_why_a_certificate_is_replaced_is_told_though_the_run_began_anew(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    refusal = Fault("status", matches=wants("POST", "/sslcertreq"), response=nitro_error(1645))
    lab.appliance.server.faults.append(refusal)
    assert lab("replace", "www", "--reason", "the key was shown").exit_code == 1
    assert lab("replace", "www").exit_code == 0
    bodies = [request.body for request in lab.scm.server.requests if "replace" in request.path]
    assert any(b"the key was shown" in body for body in bodies)


def test_a_rollback_that_was_carried_out_and_refused_is_on_record(lab: Lab) -> None:
    """As on a pair whose other node says no: it stays rolled back, and nothing is renewed."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    before = lab.appliance.certkeys["www"].serial
    assert lab("renew", "www").exit_code == 0
    refusal = Fault("told", matches=wants("POST", "action=update"), response=nitro_error(1645))
    lab.appliance.server.faults.append(refusal)
    assert lab("rollback", "www").exit_code == 1
    assert lab("run").exit_code == 0
    assert lab.appliance.certkeys["www"].serial == before
    assert lab.record()["rolled_back"]
    assert lab.appliance.saved
