"""Years of a certificate: renew, replace, revoke, roll back, undo; at both APIs of SCM."""

from __future__ import annotations

import datetime as dt
import itertools
import pathlib
import signal

import pytest
import time_machine
import yaml
from conftest import CLIENT_SECRET, Document, Lab
from cryptography import x509
from simulators.ca import ChainStyle
from simulators.netscaler import NetScaler, Variant, nitro_error
from simulators.server import Fault, Response
from test_faults import failed, fault, wants
from test_run import common_names, install_own, own_files, serial_of

ADMIN_PASSWORD = "adm1n:pass word"


def leaf(lab: Lab, number: int = -1) -> x509.Certificate:
    found = lab.scm.orders[number].leaf
    assert found is not None
    return found


def served(lab: Lab, name: str = "vs_www") -> list[x509.Certificate]:
    return lab.appliance.virtual_servers[name].handshake()


def age(lab: Lab, days: int) -> None:
    """Let SCM issue as so many days ago, so that a certificate is that much nearer to its end."""
    lab.scm.now = lambda: utc_now() - dt.timedelta(days=days)


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


@pytest.fixture(
    params=[
        "enrollment",
        pytest.param("admin", marks=pytest.mark.long),
        pytest.param("admin by login", marks=pytest.mark.long),
    ]
)
def api(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    """A lab whose scm.yaml names one of the APIs and one of the ways to log in."""
    if request.param != "enrollment":
        use_admin(lab, by_login="login" in request.param)
    return lab


def use_admin(lab: Lab, *, by_login: bool) -> None:
    changes: Document = {"api": "admin", "org_id": 1, "cert_type": 2, "term": 199}
    lab.scm.admin.add_client("client", CLIENT_SECRET)
    lab.scm.admin.add_login("acme", "robot", ADMIN_PASSWORD)
    if by_login:
        changes |= {"client_id": None, "client_secret": None, "token_url": None}
        changes |= {"customer_uri": "acme", "login": "robot", "password": ADMIN_PASSWORD}
    data = {key: value for key, value in changes.items() if value is not None}
    lab.write_scm(**data)
    if by_login:
        path = lab.home / "scm.yaml"
        kept = yaml.safe_load(path.read_text())
        for key in ("client_id", "client_secret", "token_url"):
            del kept[key]
        lab.write_yaml("scm.yaml", kept)


@pytest.fixture
def due(api: Lab) -> Lab:
    """A lab with a managed certificate that is due."""
    age(api, 150)
    api.write_profile()
    assert api("run").exit_code == 0
    age(api, 0)
    return api


def test_a_due_certificate_is_renewed_with_a_new_key(due: Lab) -> None:
    old = served(due)[0]
    due.scm.authority.generation = 37
    outcome = due.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "renewed")
    assert outcome.profile()["reason"] == "48 days left, window is 66 days"
    assert outcome.profile()["warnings"] == []
    assert [order.action for order in due.scm.orders] == ["enroll", "renew"]
    due.appliance.reboot()
    assert common_names(served(due)) == ["www.example.com", "CA DV E37", "Root E46"]
    assert served(due)[0] == leaf(due)
    assert served(due)[0].public_key() != old.public_key()
    assert due("run").text == ""
    assert len(own_files(due)) == 4  # this generation and the one before


def test_files_of_the_generation_before_last_are_deleted(api: Lab) -> None:
    api.write_profile()
    api.appliance.write("/nsconfig/ssl/somebody-elses.key", b"x")
    assert api("run").exit_code == 0
    for _ in range(3):
        assert api("renew", "www").exit_code == 0
    files = own_files(api)
    assert len(files) == 5
    record = api.record()
    kept = {
        record[each][file]
        for each in ("installed", "previous")
        for file in ("key_file", "cert_file")
    }
    assert {pathlib.PurePath(path).name for path in files} == {*kept, "somebody-elses.key"}


def test_renew_does_so_whatever_the_window_says(api: Lab) -> None:
    api.write_profile()
    assert api.json("renew", "www").profile()["outcome"] == "enrolled"
    outcome = api.json("renew", "www")
    assert (outcome.profile()["outcome"], outcome.profile()["reason"]) == (
        "renewed",
        "asked for by the operator",
    )
    assert [order.action for order in api.scm.orders] == ["enroll", "renew"]


def test_replace_keeps_the_expiry(api: Lab) -> None:
    api.write_profile()
    outcome = api.json("replace", "www")
    assert outcome.profile()["error"] == {
        "kind": "state",
        "message": "there is no certificate to replace: use citrixagent.py enroll www",
    }
    assert api("run").exit_code == 0
    end = served(api)[0].not_valid_after_utc
    outcome = api.json("replace", "www", "--reason", "a better key")
    assert outcome.profile()["outcome"] == "replaced"
    assert served(api)[0].not_valid_after_utc == end
    assert served(api)[0] == leaf(api)
    assert api("run").text == ""


def test_a_replacement_that_still_gives_the_old_certificate_waits(lab: Lab) -> None:
    """The Admin API keeps the id: only a certificate for the new key will do."""
    use_admin(lab, by_login=False)
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.admin.replace_race = 1
    outcome = lab.json("replace", "www")
    assert outcome.profile()["outcome"] == "replaced"
    assert served(lab)[0] == leaf(lab)


def test_a_changed_profile_is_replaced(api: Lab) -> None:
    api.write_profile()
    assert api("run").exit_code == 0
    names = ["example.com", "new.example.com"]
    api.write_profile(certificate=api.certificate(subject_alternative_names=names))
    outcome = api.json("run")
    assert outcome.profile()["outcome"] == "replaced"
    assert outcome.profile()["reason"] == (
        "the certificate is for 192.0.2.10, example.com, www.example.com, the profile asks for "
        "example.com, new.example.com, www.example.com"
    )
    assert api("run").text == ""
    api.write_profile(certificate=api.certificate(key_type="RSA-2048"))
    assert api.json("run").profile()["outcome"] == "replaced"
    assert len(served(api)) == 3


@pytest.mark.parametrize(("command", "outcome"), [("renew", "renewed"), ("replace", "replaced")])
@pytest.mark.sample(2)
def test_what_scm_does_not_offer_is_enrolled_anew(lab: Lab, command: str, outcome: str) -> None:
    lab.scm.account.private = True
    lab.scm.account.may_renew = False
    lab.write_profile()
    assert lab("run").exit_code == 0
    told = lab.json(command, "www").profile()
    assert told["outcome"] == outcome
    noun = {"renew": "renewal", "replace": "replacement"}[command]
    assert told["warnings"][0].startswith(f"SCM refused the {noun}: ")
    assert told["warnings"][0].endswith(": enrolled anew instead")
    assert [order.action for order in lab.scm.orders] == ["enroll", "enroll"]


def test_on_change_report_orders_nothing(lab: Lab) -> None:
    lab.write_profile(renewal={"on_change": "report"})
    assert lab("run").exit_code == 0
    certificate = lab.certificate(key_type="RSA-2048")
    lab.write_profile(renewal={"on_change": "report"}, certificate=certificate)
    assert failed(lab) == (
        "state",
        "the key is ECDSA-P256, the profile asks for RSA-2048 (renewal.on_change is report)",
    )


def test_without_auto_renew_a_due_certificate_is_warned_about(due: Lab) -> None:
    due.write_profile(renewal={"auto_renew": False})
    outcome = due("run")
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert outcome.stderr == (
        "www: warning: 48 days left, window is 66 days, and renewal.auto_renew is false\n"
    )


# Revoking


def test_revoke_asks_first_and_is_not_undone_by_cron(api: Lab) -> None:
    api.write_profile()
    assert failed(api, "revoke", "www", "--reason", "superseded", "--yes")[0] == "state"
    assert api("run").exit_code == 0
    assert api("revoke", "www", "--reason", "keyCompromise").exit_code == 2
    assert api("revoke", "www").exit_code == 2
    words = ["revoke", "www", "--reason", "keyCompromise"]
    for number in (signal.SIGINT, signal.SIGTERM):
        assert api.on_a_terminal(*words, sent=("for good?", number))[0] == 128 + number
    code, shown = api.on_a_terminal(*words, answer="n\n")
    assert code == 2
    assert "Revoke it for good?" in shown
    assert api.scm.orders[0].status == "Issued"
    outcome = api.json("revoke", "www", "--reason", "keyCompromise", "--yes", "--message", "lost")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "revoked")
    assert (api.scm.orders[0].revoked_reason, api.scm.orders[0].revoked_message) == (1, "lost")
    kind, message = failed(api)
    assert kind == "state"
    assert message == (
        "it was revoked by the operator and is still bound: run "
        "citrixagent.py enroll, renew or replace www"
    )
    assert api("revoke", "www", "--reason", "keyCompromise", "--yes").exit_code == 0
    assert len(api.scm.orders) == 1
    assert api("renew", "www").exit_code == 0
    assert len(api.scm.orders) == 2
    assert api("run").text == ""


def test_what_somebody_else_revoked_is_enrolled_again(api: Lab) -> None:
    api.write_profile()
    assert api("run").exit_code == 0
    api.scm.revoke(api.scm.orders[0], 4, "by hand")
    outcome = api.json("run")
    assert (outcome.profile()["outcome"], outcome.profile()["reason"]) == (
        "enrolled",
        "it was revoked at SCM",
    )
    assert served(api)[0] == leaf(api)


def test_an_scm_that_cannot_be_asked_is_a_warning_only(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.server.faults.append(fault("status", "GET", "/status", 500))
    outcome = lab("run")
    assert outcome.exit_code == 0
    assert "SCM could not be asked whether" in outcome.stderr
    lab.write_scm(check_revocation=False)
    asked = len(lab.scm.server.requests)
    assert lab("run").text == ""
    assert len(lab.scm.server.requests) == asked


# Rolling back


def test_rollback_puts_the_previous_certificate_back(due: Lab) -> None:
    old = served(due)
    assert failed(due, "rollback", "www")[0] == "state"
    due.scm.authority.generation = 37
    assert due("run").exit_code == 0
    new = served(due)
    outcome = due.json("rollback", "www")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "rolled_back")
    assert outcome.profile()["steps"] == ["install", "link", "bind", "save", "verify", "clean_up"]
    assert outcome.profile()["cert_id"] == due.scm.orders[0].cert_id
    due.appliance.reboot()
    assert served(due) == old
    outcome = due("run")
    assert outcome.exit_code == 0
    assert outcome.stderr == (
        "www: warning: rolled back by the operator (48 days left, window is 66 days): stays until "
        "citrixagent.py renew www, or 7 days before its end\n"
    )
    assert served(due) == old
    assert due.json("rollback", "www").profile()["outcome"] == "rolled_back"
    assert served(due) == new
    assert due.json("renew", "www").profile()["outcome"] == "renewed"
    assert due("run").text == ""


def test_a_rolled_back_certificate_does_not_lapse(lab: Lab) -> None:
    age(lab, 193)
    lab.write_profile()
    assert lab("run").exit_code == 0
    age(lab, 0)
    assert lab("renew", "www").exit_code == 0
    assert lab("rollback", "www").exit_code == 0
    outcome = lab.json("run")
    assert outcome.profile()["outcome"] == "renewed"


def test_an_adopted_certificate_can_be_put_back(lab: Lab) -> None:
    old = install_own(lab, days_left=20)
    chain = served(lab)
    assert lab.json("run").profile()["outcome"] == "renewed"
    outcome = lab.json("rollback", "www")
    assert (outcome.exit_code, outcome.profile()["cert_id"]) == (0, None)
    assert serial_of(lab) == old
    lab.appliance.reboot()
    assert served(lab) == chain


def test_a_rollback_that_was_cut_off_is_finished_by_the_next_run(due: Lab) -> None:
    old = served(due)
    assert due("run").exit_code == 0
    due.appliance.server.faults.append(Fault("reset", matches=wants("POST", "action=save")))
    failed(due, "rollback", "www")
    assert due.json("run").profile()["outcome"] == "rolled_back"
    due.appliance.reboot()
    assert served(due) == old
    assert len(due.scm.orders) == 2


def test_a_rollback_that_was_cut_off_is_no_open_order(due: Lab) -> None:
    assert due("run").exit_code == 0
    due.appliance.server.faults.append(Fault("reset", matches=wants("POST", "action=update")))
    failed(due, "rollback", "www")
    assert due.record()["change"]
    listed = due.json("list").document()["certificates"][0]
    assert listed["order"] is None
    assert due.json("run").profile()["outcome"] == "rolled_back"


# Proof and undo


@pytest.mark.parametrize("variant", ["break", "keep", "refuse"])
@pytest.mark.sample(3)
def test_what_is_not_presented_is_put_back(lab: Lab, variant: str) -> None:
    """Handshake required: the old certificate returns; what was paid for is installed later."""
    with NetScaler(variant=Variant(update_link=variant)) as appliance:  # type: ignore[arg-type]
        appliance.add_user("citrixagent", lab.citrix()["password"])
        appliance.add_virtual_server("vs_www", "load_balancing")
        lab.appliance = appliance
        other = appliance.add_virtual_server("vs_other", "gateway")
        host, port = other.address
        age(lab, 150)
        lab.write_profile()
        assert lab("run").exit_code == 0
        appliance.bind("vs_other", "www")
        old = served(lab)
        age(lab, 0)
        lab.scm.authority.generation = 37
        elsewhere = appliance.add_virtual_server("vs_else", "gateway")
        lab.write_profile("else", virtual_servers=[{"name": "vs_else", "type": "gateway"}])
        assert lab("run", "else").exit_code == 0
        host, port = elsewhere.address
        connect = {"name": "vs_www", "type": "load_balancing", "connect": f"{host}:{port}"}
        required = {"handshake": "required"}
        lab.write_profile(virtual_servers=[connect], verification=required)
        for _ in range(2):
            kind, message = failed(lab, "run", "www")
            assert kind == "verify"
            assert message.endswith(
                ": the previous certificate was put back; the next run tries again"
            )
            assert served(lab) == old
            assert appliance.saved
        assert [order.action for order in lab.scm.orders] == ["enroll", "enroll", "renew"]
        lab.write_profile(verification=required)
        outcome = lab.json("run", "www")
        assert outcome.profile()["outcome"] == "renewed"
        assert outcome.profile()["steps"][0] == "install"
        assert len(lab.scm.orders) == 3
        assert served(lab)[0] == leaf(lab)


def test_an_undo_that_fails_is_told_loudly(lab: Lab) -> None:
    install_own(lab, days_left=20)
    other = lab.appliance.add_virtual_server("vs_other", "gateway")
    lab.write_profile("other", virtual_servers=[{"name": "vs_other", "type": "gateway"}])
    assert lab("run", "other").exit_code == 0
    host, port = other.address
    connect = {"name": "vs_www", "type": "load_balancing", "connect": f"{host}:{port}"}
    lab.write_profile(virtual_servers=[connect], verification={"handshake": "required"})
    updates = 0

    def second(request: object) -> bool:
        nonlocal updates
        updates += "action=update" in str(request)
        return "action=update" in str(request) and updates == 2

    lab.appliance.server.faults.append(Fault("status", matches=second, response=nitro_error(1647)))
    kind, message = failed(lab, "run", "www")
    assert kind == "verify"
    assert "and putting the previous certificate back FAILED: " in message


def test_a_virtual_server_that_cannot_be_reached_is_no_reason_to_undo(lab: Lab) -> None:
    install_own(lab, days_left=20)
    connect = {"name": "vs_www", "type": "load_balancing", "connect": "127.0.0.1:1"}
    lab.write_profile(virtual_servers=[connect], verification={"handshake": "required"})
    kind, message = failed(lab)
    assert kind == "verify"
    assert message == (
        'the virtual server "vs_www" at 127.0.0.1:1 could not be verified: Connection refused'
    )
    assert served(lab)[0] == leaf(lab)
    lab.write_profile(verification={"handshake": "required"})
    assert lab.json("run").profile()["steps"] == ["verify", "clean_up"]
    assert len(lab.scm.orders) == 1


def test_a_due_certificate_is_renewed_though_the_last_was_never_proved(lab: Lab) -> None:
    age(lab, 150)
    connect = {"name": "vs_www", "type": "load_balancing", "connect": "127.0.0.1:1"}
    lab.write_profile(virtual_servers=[connect], verification={"handshake": "required"})
    failed(lab)
    age(lab, 0)
    failed(lab)
    assert [order.action for order in lab.scm.orders][1:] == ["enroll"]
    assert served(lab)[0] == leaf(lab)


# The Admin API alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cert_type": 9}, "scm.yaml: cert_type: SCM offers 2, not 9"),
        ({"term": 90}, "scm.yaml: term: type 2 is offered for 199, 99 days, not 90"),
    ],
)
def test_type_and_term_are_checked_before_ordering(
    lab: Lab, change: Document, message: str
) -> None:
    use_admin(lab, by_login=False)
    lab.write_profile()
    data = {"api": "admin", "org_id": 1, "cert_type": 2, "term": 199, **change}
    lab.write_scm(**data)
    assert failed(lab) == ("config", message)
    assert not lab.scm.orders


def test_a_term_that_became_too_long_is_the_longest_that_is_offered(lab: Lab) -> None:
    """Public certificates become shorter by decree; nothing must lapse for a number in scm.yaml."""
    use_admin(lab, by_login=False)
    lab.write_profile()
    lab.write_scm(api="admin", org_id=1, cert_type=2, term=365)
    told = lab.json("run").profile()
    assert told["outcome"] == "enrolled"
    text = "scm.yaml: term: type 2 is offered for 199, 99 days, not 365: 199 days are ordered"
    assert told["warnings"] == [text]
    assert lab.scm.orders[0].term == 199
    assert lab.json("renew", "www").profile()["warnings"] == [text]


def test_the_order_asks_for_what_the_profile_says(api: Lab) -> None:
    enrollment = {
        "comments": "ordered by citrixagent",
        "external_requester": "pki@example.com",
        "custom_fields": {"Owner": "NetOps"},
        "profile_id": 5001,
        "term": 199,
        "max_wait": 20,
    }
    certificate = api.certificate(
        organizational_unit="Web", locality="London", email="pki@example.com"
    )
    api.write_profile(enrollment=enrollment, certificate=certificate)
    assert api("run").exit_code == 0
    (order,) = api.scm.orders
    assert order.names == ("www.example.com", "example.com", "192.0.2.10")
    assert order.comments == "ordered by citrixagent"
    assert order.external_requester == "pki@example.com"
    assert order.custom_fields == {"Owner": "NetOps"}
    assert order.subject == {
        "C": "GB",
        "ST": "England",
        "L": "London",
        "O": "Example Ltd",
        "OU": "Web",
        "CN": "www.example.com",
        "1.2.840.113549.1.9.1": "pki@example.com",
    }


@pytest.mark.parametrize("order", ["leaf-first", "root-first", "shuffled"])
@pytest.mark.sample(2)
def test_admin_answers_in_any_order(lab: Lab, order: str) -> None:
    use_admin(lab, by_login=False)
    lab.scm.answer = ChainStyle(order=order)  # type: ignore[arg-type]
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert len(served(lab)) == 3


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        *itertools.product(["enroll", "renew"], ["lost", "reset", "status"]),
        ("replace", "lost"),
    ],
)
@pytest.mark.sample(3)
def test_a_lost_admin_order_is_looked_up(lab: Lab, kind: str, action: str) -> None:
    """By common name and key: found, it is installed; not there, it is ordered."""
    use_admin(lab, by_login=False)
    lab.write_profile()
    if action != "enroll":
        assert lab("run").exit_code == 0
    command = (action, "www") if action != "enroll" else ("run",)
    part = {"enroll": "/enroll", "renew": "/renewById", "replace": "/replace"}[action]
    lab.scm.server.faults.append(Fault(kind, matches=wants("POST", part), response=Response(502)))
    assert failed(lab, *command)[0] == "unknown_outcome"
    outcome = lab.json(*command)
    assert outcome.exit_code == 0
    assert [order.action for order in lab.scm.orders] == (
        ["enroll"] if action == "enroll" else ["enroll", action]
    )
    assert served(lab)[0] == leaf(lab)


@pytest.mark.parametrize("kind", ["lost", "reset"])
@pytest.mark.sample(2)
def test_a_lost_admin_replacement_stays_unknown_while_the_old_one_is_there(
    lab: Lab, kind: str
) -> None:
    """It keeps the id of the certificate that it replaces, which proves nothing until it is there.

    The operator looks: it may be waiting for approval.
    """
    use_admin(lab, by_login=False)
    lab.write_profile(enrollment={"max_wait": 0})
    assert lab("run").exit_code == 0
    lab.scm.approval = "manual"
    lab.scm.server.faults.append(Fault(kind, matches=wants("POST", "/replace")))
    for command in (["replace", "www"], ["replace", "www"], ["run"]):
        assert failed(lab, *command)[0] == "unknown_outcome"
    assert len(lab.scm.orders) == (2 if kind == "lost" else 1)
    if kind == "lost":
        cert_id = lab.scm.orders[0].cert_id
        assert lab.json("enroll", "--cert-id", cert_id, "www").exit_code == 5
        lab.scm.orders[1].approve()
        assert lab.json("run").profile()["outcome"] == "replaced"
        assert served(lab)[0] == leaf(lab)
    else:
        lab.scm.approval = "auto"
        assert lab("enroll", "--force", "www").exit_code == 0


def test_a_lost_admin_order_that_waits_stays_unknown(lab: Lab) -> None:
    """It shows no key yet, so it may be somebody else's."""
    use_admin(lab, by_login=False)
    lab.scm.approval = "manual"
    lab.write_profile()
    lab.scm.server.faults.append(Fault("lost", matches=wants("POST", "/enroll")))
    assert failed(lab)[0] == "unknown_outcome"
    assert failed(lab)[0] == "unknown_outcome"
    lab.scm.orders[0].approve()
    lab.scm.orders  # noqa: B018 - time passes at SCM
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def test_a_refused_admin_login(lab: Lab) -> None:
    use_admin(lab, by_login=True)
    lab.scm.admin.add_login("acme", "robot", "changed")
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "auth"
    assert message == (
        "SCM refused the list of types: Unknown user (code -16): check the credentials in scm.yaml"
    )


def test_an_admin_password_may_hold_any_character(lab: Lab) -> None:
    """It is sent as UTF-8; that it is wrong is for SCM to say."""
    use_admin(lab, by_login=True)
    path = lab.home / "scm.yaml"
    lab.write_yaml("scm.yaml", {**yaml.safe_load(path.read_text()), "password": "pass\u20acword"})
    lab.write_profile()
    assert failed(lab)[0] == "auth"
    assert lab.scm.server.requests


def test_what_is_in_service_is_revoked_though_it_was_never_proved(lab: Lab) -> None:
    """The appliance tells which of two certificates the certkey holds."""
    age(lab, 150)
    lab.write_profile()
    assert lab("run").exit_code == 0
    age(lab, 0)
    connect = {"name": "vs_www", "type": "load_balancing", "connect": "127.0.0.1:1"}
    lab.write_profile(virtual_servers=[connect], verification={"handshake": "required"})
    failed(lab)
    assert lab("revoke", "www", "--reason", "superseded", "--yes").exit_code == 0
    assert [order.status for order in lab.scm.orders] == ["Issued", "Revoked"]


def test_a_rollback_of_what_was_never_proved(lab: Lab) -> None:
    age(lab, 150)
    lab.write_profile()
    assert lab("run").exit_code == 0
    old = served(lab)
    age(lab, 0)
    connect = {"name": "vs_www", "type": "load_balancing", "connect": "127.0.0.1:1"}
    lab.write_profile(virtual_servers=[connect], verification={"handshake": "required"})
    failed(lab)
    failed(lab, "rollback", "www")
    assert served(lab) == old


def test_enroll_sees_that_a_certificate_was_revoked(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.revoke(lab.scm.orders[0], 4, "by hand")
    assert lab.json("enroll", "www").profile()["outcome"] == "enrolled"


def test_a_certkey_that_somebody_deleted_is_enrolled_again_and_leaves_no_files(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    for _ in range(2):
        del lab.appliance.certkeys["www"]
        lab.appliance.bindings.clear()
        lab.appliance.save()
        assert lab.json("run").profile()["outcome"] == "enrolled"
    record = lab.record()
    files = {pathlib.PurePath(path).name for path in own_files(lab)}
    assert files == {
        record[each][file]
        for each in ("installed", "previous")
        for file in ("key_file", "cert_file")
    }


# What must not end in a dead end


def test_a_rollback_that_the_appliance_refuses_is_forgotten(due: Lab) -> None:
    """The key from before is gone. Nothing changed, and the certificate is renewed as ever."""
    assert due("run").exit_code == 0
    new = served(due)
    record = due.record()
    del due.appliance.files[f"/nsconfig/ssl/{record['previous']['key_file']}"]
    kind, message = failed(due, "rollback", "www")
    assert kind == "appliance"
    assert "enroll --force" not in message
    assert served(due) == new
    assert due.record()["change"] is None
    assert due("run").exit_code == 0
    assert due("run").text == ""
    assert due.json("renew", "www").profile()["outcome"] == "renewed"


def test_what_has_expired_is_not_put_back(lab: Lab) -> None:
    age(lab, 190)
    lab.write_profile()
    assert lab("run").exit_code == 0
    age(lab, 0)
    assert lab("run").exit_code == 0
    new = served(lab)
    with time_machine.travel(utc_now() + dt.timedelta(days=30), tick=True):
        kind, message = failed(lab, "rollback", "www")
    assert kind == "state"
    assert "the previous certificate of www expired at" in message
    assert served(lab) == new


def test_what_was_revoked_is_not_put_back(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab("revoke", "www", "--reason", "keyCompromise", "--yes").exit_code == 0
    assert lab("enroll", "www").exit_code == 0
    assert failed(lab, "rollback", "www") == (
        "state",
        "the previous certificate of www was revoked by the operator",
    )
    assert served(lab)[0] == leaf(lab)


def test_an_order_that_waits_or_was_declined_and_a_rollback(due: Lab) -> None:
    """As the message says: declined in SCM and seen by a run, it stands in the way no more."""
    old = served(due)
    assert due("run").exit_code == 0
    due.scm.approval = "manual"
    assert due("renew", "www", "--wait", "0").exit_code == 5
    kind, message = failed(due, "rollback", "www")
    assert kind == "state"
    assert "or decline it in SCM and run that once; then roll back" in message
    due.scm.orders[-1].decline("no")
    assert failed(due)[0] == "declined"
    assert due("rollback", "www").exit_code == 0
    assert served(due) == old


@pytest.mark.parametrize("revoked", [False, True])
@pytest.mark.sample(2)
def test_a_wrong_id_for_an_order_of_unknown_outcome_changes_nothing(
    lab: Lab, revoked: bool
) -> None:
    """The id of the certificate that is installed: the first that SCM shows for the name."""
    age(lab, 150)
    lab.write_profile()
    assert lab("run").exit_code == 0
    age(lab, 0)
    lab.scm.server.faults.append(Fault("lost", matches=wants("POST", "/renew")))
    assert failed(lab)[0] == "unknown_outcome"
    before = lab.record()["change"]
    if revoked:
        lab.scm.revoke(lab.scm.orders[0], 4, "by hand")
    wrong, right = (order.cert_id for order in lab.scm.orders)
    failed(lab, "enroll", "--cert-id", wrong, "www")
    assert lab.record()["change"] == before
    assert failed(lab)[0] == "unknown_outcome"
    assert lab.json("enroll", "--cert-id", right, "www").profile()["outcome"] == "renewed"
    assert len(lab.scm.orders) == 2
    assert served(lab)[0] == leaf(lab)


def test_a_wrong_id_that_waits_is_found_out_later(lab: Lab) -> None:
    """Another profile's order, which shows no key as long as it waits."""
    lab.scm.approval = "manual"
    lab.write_profile("two", certificate=lab.certificate(name="two"), enrollment={"max_wait": 0})
    assert lab("run").exit_code == 5
    lab.write_profile(enrollment={"max_wait": 0})
    lab.scm.server.faults.append(Fault("lost", matches=wants("POST", "/api/v1/certificates")))
    assert failed(lab, "run", "www")[0] == "unknown_outcome"
    wrong, right = (order.cert_id for order in lab.scm.orders)
    assert lab("enroll", "--cert-id", wrong, "www").exit_code == 5
    for order in lab.scm.orders:
        order.approve()
    kind, message = failed(lab, "run", "www")
    assert kind == "state"
    assert f"{wrong} is a certificate for another key than www's" in message
    assert failed(lab, "run", "www")[0] == "unknown_outcome"
    assert lab("enroll", "--cert-id", right, "www").exit_code == 0
    assert len(lab.scm.orders) == 2


def test_another_common_name_of_the_same_names(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    names = ["www.example.com", "192.0.2.10"]
    certificate = lab.certificate(common_name="example.com", subject_alternative_names=names)
    lab.write_profile(certificate=certificate)
    profile = lab.json("run").profile()
    assert (profile["outcome"], profile["reason"]) == (
        "replaced",
        "the certificate is for www.example.com first, the profile asks for example.com first",
    )
    assert served(lab)[0] == leaf(lab)


def test_verification_that_is_switched_off_is_over(lab: Lab) -> None:
    connect = {"name": "vs_www", "type": "load_balancing", "connect": "127.0.0.1:1"}
    lab.write_profile(virtual_servers=[connect], verification={"handshake": "required"})
    assert failed(lab)[0] == "verify"
    lab.write_profile(virtual_servers=[connect], verification={"handshake": "off"})
    lab("run")
    assert lab("run").text == ""


def test_a_revocation_whose_answer_was_lost_is_not_undone_by_cron(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    words = ("revoke", "www", "--reason", "superseded", "--yes")
    lab.scm.server.faults.append(Fault("lost", matches=wants("DELETE", "/api/v1/certificates")))
    assert failed(lab, *words)[0] == "unreachable"
    assert failed(lab) == (
        "state",
        "it was revoked by the operator and is still bound: run citrixagent.py enroll, renew or "
        "replace www",
    )
    assert len(lab.scm.orders) == 1
    assert lab(*words).exit_code == 0


def test_a_revocation_that_scm_refused_leaves_no_trace(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.server.faults.append(fault("status", "DELETE", "/api/v1/certificates", 403))
    assert failed(lab, "revoke", "www", "--reason", "superseded", "--yes")[0] == "permission"
    assert lab("run").text == ""
