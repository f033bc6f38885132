"""What goes wrong: one clear line with the remedy, the right kind and code, and nothing is lost."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable

import pytest
import time_machine
from conftest import PASSWORD, Lab
from simulators.netscaler import NetScaler, Variant, nitro_error
from simulators.scm import Account, PendingStyle
from simulators.server import BareListener, Fault, HttpsServer, Request, Response
from test_run import install_own, is_write, serial_of

POLICY = (
    r"^(show ns config|stat HA node|show (lb|vpn|cs|authentication) vserver|show ssl (certKey|"
    r"vserver)|create ssl (rsakey|ecdsakey|certReq)|(add|rm|show) system file|(add|update|link|"
    r"unlink) ssl certKey|bind ssl vserver|save ns config)"
)


TODAY = f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d}"


def failed(lab: Lab, *command: str) -> tuple[str, str]:
    """Run, expect a failure without a traceback, and return the error's kind and message."""
    outcome = lab.json(*(command or ("run",)))
    assert outcome.exit_code == 1
    assert "Traceback" not in outcome.text
    error = outcome.profile()["error"]
    assert outcome.profile()["outcome"] == "failed"
    return error["kind"], error["message"]


def wants(method: str, part: str) -> Callable[[Request], bool]:
    return lambda request: request.method == method and part in str(request)


def fault(kind: str, method: str, part: str, status: int = 500, **headers: str) -> Fault:
    response = Response(status, b"", {k.replace("_", "-"): v for k, v in headers.items()})
    return Fault(kind, matches=wants(method, part), times=99, response=response)


# The appliance says no


def test_a_wrong_password_is_tried_once(lab: Lab) -> None:
    """Appliances lock accounts."""
    lab.write_profile("www", citrix=lab.citrix(password="wrong"))
    lab.appliance.add_virtual_server("vs_two", "gateway")
    servers = [{"name": "vs_two", "type": "gateway"}]
    lab.write_profile("two", citrix=lab.citrix(password="wrong"), virtual_servers=servers)
    assert failed(lab) == (
        "auth",
        (
            f"{lab.appliance.host}: login: Invalid username or password (NITRO 354, HTTP 401): "
            "check username and password; it was tried once only, because appliances lock accounts"
        ),
    )
    assert lab.appliance.failed_logins == 1


def test_the_documented_rights_are_enough(lab: Lab) -> None:
    lab.appliance.add_user("limited", "limited", POLICY)
    lab.write_profile(citrix=lab.citrix(username="limited", password="limited"))
    assert lab("run").exit_code == 0


def test_an_unreachable_appliance_costs_only_its_own_profiles(lab: Lab) -> None:
    with NetScaler() as gone:
        host = gone.host
    lab.write_profile("gone", citrix=lab.citrix(host=host))
    lab.write_profile("www")
    outcome = lab.json("run")
    assert outcome.exit_code == 1
    assert outcome.profile("gone")["error"] == {
        "kind": "unreachable",
        "message": f"{host}: Connection refused: check its address and the network between",
    }
    assert outcome.profile("www")["outcome"] == "enrolled"


def test_a_silent_appliance_costs_one_time_out(lab: Lab) -> None:
    lab.appliance.server.faults.append(Fault("hang", times=99, seconds=20))
    for name in ("a", "b", "c"):
        server = {"name": f"vs_{name}", "type": "load_balancing"}
        lab.write_profile(name, citrix=lab.citrix(timeout=1), virtual_servers=[server])
    outcome = lab.json("run")
    assert {each["error"]["kind"] for each in outcome.document()["profiles"]} == {"unreachable"}
    assert len(lab.appliance.server.requests) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ca_bundle": None}, "unable to get local issuer certificate"),
        ({"ca_bundle": None, "fingerprint": "AB" * 32}, "its fingerprint is another one"),
    ],
)
def test_an_untrusted_appliance(lab: Lab, change: dict[str, object], words: str) -> None:
    lab.write_profile(citrix=lab.citrix(**change))
    kind, message = failed(lab)
    assert kind == "untrusted"
    assert message == (
        f"{lab.appliance.host}: its TLS certificate is not trusted ({words}): set ca_bundle to the "
        "PEM file of its CA, or, for an appliance, fingerprint "
        f'(it presents fingerprint: "{lab.appliance.server.fingerprint}")'
    )
    assert not lab.appliance.server.requests


def test_a_pinned_fingerprint(lab: Lab) -> None:
    fingerprint = lab.appliance.server.fingerprint
    lab.write_profile(citrix=lab.citrix(ca_bundle=None, fingerprint=fingerprint))
    assert lab("run").exit_code == 0


def test_verification_turned_off_is_warned_about(lab: Lab) -> None:
    lab.write_profile(citrix=lab.citrix(ca_bundle=None, verify=False))
    outcome = lab("run")
    assert outcome.exit_code == 0
    assert outcome.stderr == (
        "www: warning: citrix.verify is false: nothing proves that "
        f"{lab.appliance.host} is the appliance\n"
    )
    assert lab("run").text == ""
    assert len(lab.json("run").profile()["warnings"]) == 1


def test_a_standby_node_is_left_alone(lab: Lab) -> None:
    lab.appliance.ha_state = "Secondary"
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "standby"
    assert message.startswith(f"{lab.appliance.host} is the standby node of its HA pair")
    assert not lab.appliance.standby_writes
    assert lab("list").exit_code == 0


def test_a_full_appliance_is_tried_again_and_then_left(lab: Lab) -> None:
    lab.appliance.session_limit = 0
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "unavailable"
    assert message == (
        f"{lab.appliance.host}: login: Connection limit to CFE exceeded (NITRO 446, HTTP 503): end "
        "sessions that are not needed, or raise the limit"
    )
    assert len(lab.appliance.server.requests) == 4


@pytest.mark.parametrize(
    ("part", "code", "detail"),
    [
        ("sslcertreq", 1647, ()),
        ("sslcertkey", 1538, ()),
        ("action=link", 1548, ()),
    ],
)
@pytest.mark.sample(2)
def test_a_refusal_says_what_was_asked_and_why(
    lab: Lab, part: str, code: int, detail: tuple[str, ...]
) -> None:
    response = nitro_error(code, *detail)
    lab.appliance.server.faults.append(
        Fault("status", matches=wants("POST", part), response=response)
    )
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "appliance"
    assert f"(NITRO {code}, HTTP 599)" in message
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def test_a_virtual_server_that_ends_no_tls(lab: Lab) -> None:
    lab.appliance.add_virtual_server("vs_http", "load_balancing", "HTTP")
    lab.write_profile(virtual_servers=[{"name": "vs_http", "type": "load_balancing"}])
    assert failed(lab) == (
        "appliance",
        (
            f'the load balancing virtual server "vs_http" on {lab.appliance.host} is of type HTTP, '
            "which holds no certificate: name one of type SSL"
        ),
    )
    assert not lab.scm.orders


def test_ecdsa_on_a_release_without(lab: Lab) -> None:
    with NetScaler("13.0", Variant(ecdsa=False)) as old:
        old.add_user("citrixagent", lab.citrix()["password"])
        old.add_virtual_server("vs_www", "load_balancing")
        lab.write_profile(citrix=lab.citrix(host=old.host))
        assert failed(lab) == (
            "appliance",
            f"{old.host}: release 13.0 cannot create ECDSA keys: choose an RSA key_type",
        )


def test_a_session_that_was_killed_is_renewed_once(lab: Lab) -> None:
    def kill(request: Request) -> None:
        if "sslcertreq" in request.path:
            lab.appliance.kill_sessions()
            lab.appliance.server.before = None

    lab.appliance.server.before = kill
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab.appliance.logins == 2


def test_the_session_ends_also_after_a_failure(lab: Lab) -> None:
    lab.appliance.server.faults.append(fault("status", "POST", "sslcertreq"))
    lab.write_profile()
    failed(lab)
    assert lab.appliance.server.calls()[-1] == "POST /nitro/v1/config/logout"
    assert not lab.appliance.sessions


# SCM says no


def test_a_refused_login_at_scm(lab: Lab) -> None:
    lab.write_scm(client_secret="wrong")
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "auth"
    assert message.startswith("SCM refused the login: ")
    assert message.endswith(
        "check client_id and client_secret in scm.yaml, and that the REST account is active"
    )


def test_a_domain_that_is_not_validated(lab: Lab) -> None:
    """Nothing was ordered: the next run orders, with the key that is there."""
    lab.scm.account.validated_domains = ["other.example"]
    lab.write_profile()
    assert failed(lab) == (
        "dcv",
        (
            "SCM refused the enrollment: Domain Control Validation is either incomplete or expired "
            "for www.example.com. Please complete it before requesting a certificate. (code -107): "
            "validate the domain in SCM; the next run orders again"
        ),
    )
    lab.scm.account.validated_domains = None
    outcome = lab.json("run")
    assert outcome.profile()["steps"][0] == "order"
    assert len([call for call in lab.appliance.server.calls() if "ecdsakey" in call]) == 1


def test_a_declined_order_stays_declined(lab: Lab) -> None:
    """Cron never pays twice for a no; the operator may order anew."""
    lab.scm.approval = "manual"
    lab.write_profile(enrollment={"max_wait": 0})
    assert lab.json("run").profile()["reason"] == f"awaiting approval in SCM, since {TODAY}, 0 days"
    (order,) = lab.scm.orders
    order.decline("not ours")
    kind, message = failed(lab)
    assert kind == "declined"
    assert message.startswith(f"order {order.cert_id} was declined in SCM: ")
    assert "not ours" in message
    for _ in range(2):
        assert failed(lab)[0] == "declined"
    assert len(lab.scm.orders) == 1
    lab.scm.approval = "auto"
    assert lab("enroll", "www").exit_code == 0
    assert len(lab.scm.orders) == 2


def test_an_order_that_waits_is_pending_and_resumed(lab: Lab) -> None:
    lab.scm.approval = "manual"
    lab.write_profile()
    outcome = lab("run", "--wait", "0")
    assert outcome.exit_code == 5
    (order,) = lab.scm.orders
    reason = f"awaiting approval in SCM, since {TODAY}, 0 days"
    assert outcome.text == f"www: pending, {reason} (order {order.cert_id})\n"
    assert lab.json("run", "--dry-run").profile()["cert_id"] == order.cert_id
    listed = lab.json("list").document()["certificates"][0]["order"]
    assert (listed["cert_id"], listed["action"], listed["status"]) == (
        order.cert_id,
        "enroll",
        "pending",
    )
    order.approve()
    outcome = lab.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "enrolled")
    assert outcome.profile()["steps"][0] == "collect"
    assert len(lab.scm.orders) == 1


@pytest.mark.parametrize(
    "style",
    [
        *(PendingStyle(404, [code]) for code in (-103, -109)),
        *(PendingStyle(400, [code]) for code in (0, -1400, -183)),
    ],
    ids=str,
)
@pytest.mark.sample(2)
def test_every_documented_way_to_say_not_yet(lab: Lab, style: PendingStyle) -> None:
    lab.scm.pending_style = style
    lab.scm.issue_after = 1
    lab.write_profile()
    outcome = lab.json("run")
    assert outcome.profile()["outcome"] == "enrolled"


def test_a_broken_request_is_rejected_with_the_remedy(lab: Lab) -> None:
    lab.scm.account.mandatory_fields = ["Owner"]
    lab.write_profile()
    assert failed(lab) == (
        "rejected",
        (
            "SCM refused the enrollment: Mandatory custom field Owner is missing (code -62): give "
            "the field in the profile's enrollment.custom_fields"
        ),
    )


def test_an_expired_token_is_renewed_once(lab: Lab) -> None:
    lab.scm.server.after = lambda request: (
        lab.scm.revoke_tokens() if "openid" in request.path and request.number == 1 else None
    )
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab.scm.tokens_issued == 2
    assert len(lab.scm.orders) == 1


def test_a_token_endpoint_that_nobody_configured_never_gets_the_secret(lab: Lab) -> None:
    """Another host, another port of a host that is configured, without TLS, as somebody."""
    elsewhere = HttpsServer(lambda _: Response(200, b'{"access_token": "x"}'))
    elsewhere.start()
    lab.scm.server.before = lambda _: lab.scm.revoke_tokens()
    lab.write_profile()
    here, there = lab.scm.url.split("/")[2], f"127.0.0.1:{elsewhere.port}"
    told = {
        f"https://localhost:{elsewhere.port}/token": f"localhost:{elsewhere.port}",
        f"https://{there}/token": there,
        f"http://{there}/token": there,
        f"https://a:b@{here}/token": here,
        "https://127.0.0.1/token": "127.0.0.1",
        "https://sectigo.com.evil.test/token": "sectigo.com.evil.test",
        "http://auth.sectigo.com/token": "auth.sectigo.com:80",
        "ftp://auth.sectigo.com/token": "no host",
    }
    for uri, place in told.items():
        lab.scm.authorization_uri = uri
        kind, message = failed(lab)
        assert kind == "auth"
        assert message == (
            f"SCM names {place} as the source of tokens, which is neither configured nor in "
            "*.sectigo.com: set token_url in scm.yaml if you trust it"
        )
    elsewhere.stop()
    assert not elsewhere.requests


@pytest.mark.parametrize(
    "address",
    [
        "https://localhost:{port}\\.sectigo.com/token",
        "https://localhost:{port}\\@auth.sso.sectigo.com/token",
        "https://auth.sso.sectigo.com@localhost:{port}/token",
        "https://localhost:{port}#.sectigo.com",
        "https://localhost:{port}?.sectigo.com",
        "https://localhost:{port}/.sectigo.com",
        "https://localhost:{port}%2f.sectigo.com/token",
        "https:/localhost:{port}/token",
        "//localhost:{port}/token",
        "http://auth.sso.sectigo.com/token",
    ],
)
@pytest.mark.sample(3)
def test_an_address_that_two_parsers_take_differently_never_gets_the_secret(
    lab: Lab, address: str
) -> None:
    elsewhere = HttpsServer(lambda _: Response(200, b'{"access_token": "x"}'))
    elsewhere.start()
    lab.scm.authorization_uri = address.format(port=elsewhere.port)
    lab.scm.server.before = lambda _: lab.scm.revoke_tokens()
    lab.write_profile()
    kind, message = failed(lab)
    elsewhere.stop()
    assert (kind, message.startswith("SCM names ")) == ("auth", True)
    assert not elsewhere.requests
    assert not lab.scm.orders


def test_a_token_endpoint_on_a_configured_host_is_followed(lab: Lab) -> None:
    lab.write_scm(token_url=f"{lab.scm.url}/an/old/path")
    lab.scm.server.faults.append(
        Fault(
            "status",
            matches=wants("POST", "/an/old/path"),
            times=99,
            response=Response(200, b'{"access_token": "stale"}'),
        )
    )
    lab.write_profile()
    assert lab("run").exit_code == 0


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        ("other_key", "SCM issued a certificate for another key than the CSR's"),
        ("missing_name", "the issued certificate lacks the names 192.0.2.10"),
        ("expired", "the issued certificate is valid from "),
        (
            "no_chain",
            "SCM's answer does not hold the issuer of the certificate, or it does not fit",
        ),
        ("broken_chain", "SCM's answer does not hold the issuer of the certificate"),
    ],
)
@pytest.mark.sample(3)
def test_what_was_not_asked_is_not_installed(lab: Lab, tamper: str, words: str) -> None:
    old = install_own(lab, days_left=20)
    lab.scm.tamper = tamper
    kind, message = failed(lab)
    assert kind == "mismatch"
    assert message.startswith(words)
    assert serial_of(lab) == old
    lab.scm.tamper = None
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


# Orders whose outcome is unknown


@pytest.fixture(params=["lost", "reset", "garbled", "status"])
def unknown(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    """A lab whose first order left the program without a usable answer."""
    kind = str(request.param)
    lab.scm.server.faults.append(
        Fault(kind, matches=wants("POST", "/api/v1/certificates"), response=Response(502))
    )
    lab.write_profile()
    error, message = failed(lab)
    assert error == "unknown_outcome"
    assert "enroll --cert-id ID www" in message
    assert "enroll --force www" in message
    return lab


@pytest.mark.sample(2)
def test_an_unknown_outcome_is_never_ordered_again_by_cron(unknown: Lab) -> None:
    placed = len(unknown.scm.orders)
    for _ in range(3):
        assert failed(unknown)[0] == "unknown_outcome"
    assert failed(unknown, "enroll", "www")[0] == "unknown_outcome"
    assert len(unknown.scm.orders) == placed
    assert "order" in unknown.json("list").document()["certificates"][0]


@pytest.mark.sample(2)
def test_the_operator_resolves_an_unknown_outcome(unknown: Lab) -> None:
    orders = unknown.scm.orders
    answer = ["--cert-id", orders[0].cert_id] if orders else ["--force"]
    outcome = unknown.json("enroll", *answer, "www")
    assert outcome.profile()["outcome"] == "enrolled"
    assert len(unknown.scm.orders) == 1
    assert unknown("run").text == ""


def test_a_lapsing_certificate_is_ordered_again_all_the_same(lab: Lab) -> None:
    """Under 7 days left, waiting for the operator ends; an order a night at most."""
    install_own(lab, days_left=7)
    lab.scm.server.faults.append(Fault("reset", matches=wants("POST", "/api/v1/certificates")))
    assert failed(lab)[0] == "unknown_outcome"
    assert failed(lab)[0] == "unknown_outcome"
    certkey = lab.appliance.certkeys["www"]
    now = dt.datetime.now(dt.timezone.utc)
    assert certkey.certificate.not_valid_after_utc - now > dt.timedelta(days=7)
    lab.appliance.running.certkeys.clear()
    lab.appliance.running.bindings.clear()
    install_own(lab, days_left=6)
    assert failed(lab)[0] == "unknown_outcome"
    with time_machine.travel(now + dt.timedelta(hours=21), tick=True):
        outcome = lab.json("run")
    assert outcome.profile()["outcome"] == "renewed"
    assert len(lab.scm.orders) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_scm_is_asked_again_when_it_says(lab: Lab, status: int) -> None:
    """Not carried out for sure, so even an order may be sent again."""
    busy = fault("status", "POST", "/api/v1/certificates", status, Retry_After="1")
    busy.times = 2
    lab.scm.server.faults.append(busy)
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def test_a_busy_scm_that_stays_busy(lab: Lab) -> None:
    lab.scm.server.faults.append(
        fault("status", "POST", "/api/v1/certificates", 429, Retry_After="3600")
    )
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "unavailable"
    assert message == (
        "SCM refused the enrollment: no reason that could be read (HTTP 429 from "
        f"{lab.scm.url}/api/v1/certificates): the next run tries again"
    )
    lab.scm.server.faults.clear()
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


@pytest.mark.parametrize("command", ["renew", "replace", "enroll --force"])
@pytest.mark.sample(3)
def test_what_the_operator_asked_of_a_busy_scm_is_to_be_asked_again(lab: Lab, command: str) -> None:
    """No run does it by itself; the message says so, and following it works."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    busy = fault("status", "POST", "/api/v1/certificates", 503, Retry_After="3600")
    lab.scm.server.faults.append(busy)
    kind, message = failed(lab, *command.split(), "www")
    assert kind == "unavailable"
    assert message.endswith(f": run citrixagent.py {command} www again")
    lab.scm.server.faults.clear()
    assert lab("run").text == ""
    assert len(lab.scm.orders) == 1
    assert lab(*command.split(), "www").exit_code == 0
    assert len(lab.scm.orders) == 2
    assert lab("run").text == ""


def test_a_no_to_the_operator_is_not_asked_for_again(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.server.faults.append(fault("status", "POST", "/api/v1/certificates", 400))
    assert failed(lab, "renew", "www")[0] == "rejected"
    seen = len(lab.scm.server.requests)
    for _ in range(2):
        assert lab("run").text == ""
    assert not [call for call in lab.scm.server.calls(seen) if call.startswith("POST /api")]
    assert len([path for path in lab.appliance.files if path.endswith(".key")]) == 1


# A profile that is edited while its order is open


def test_an_edited_profile_does_not_lose_its_order_silently(lab: Lab) -> None:
    lab.scm.approval = "manual"
    lab.write_profile(enrollment={"max_wait": 0})
    assert lab("run").exit_code == 5
    lab.write_profile(certificate=lab.certificate(common_name="new.example.com"))
    kind, message = failed(lab)
    assert kind == "state"
    (order,) = lab.scm.orders
    assert message.startswith(f"order {order.cert_id} is open for 192.0.2.10, example.com, www.")
    assert message.endswith("give the order up with citrixagent.py enroll --force www")
    lab.scm.approval = "auto"
    assert lab("enroll", "--force", "www").exit_code == 0
    assert lab.scm.orders[-1].names[0] == "new.example.com"


def test_an_order_that_still_covers_the_profile_is_installed(lab: Lab) -> None:
    lab.scm.approval = "manual"
    lab.write_profile(enrollment={"max_wait": 0})
    assert lab("run").exit_code == 5
    lab.scm.orders[0].approve()
    certificate = lab.certificate(subject_alternative_names=["example.com"])
    lab.write_profile(certificate=certificate)
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


# What virtual servers present


def test_a_virtual_server_that_presents_something_else(lab: Lab) -> None:
    other = lab.appliance.add_virtual_server("vs_other", "gateway")
    install_own(lab, days_left=100)
    lab.appliance.bind("vs_other", "www")
    host, port = other.address
    for mode, code in (("try", 0), ("off", 0), ("required", 1)):
        name = f"new-{mode}"
        lab.appliance.add_virtual_server(name, "gateway")
        servers = [{"name": name, "type": "gateway", "connect": f"{host}:{port}"}]
        lab.write_profile(
            name,
            virtual_servers=servers,
            certificate=lab.certificate(name=name),
            verification={"handshake": mode},
        )
        outcome = lab.json("run", name)
        assert outcome.exit_code == code
        words = (
            f'the virtual server "{name}" at {host}:{port} presents another certificate '
            f"(serial {serial_of(lab)}, www.example.com)"
        )
        told = outcome.profile(name)
        assert told["warnings"] == ([words] if mode == "try" else [])
        stays = f"{words}: there is no valid certificate to put back, so the new one stays"
        assert told["error"] == ({"kind": "verify", "message": stays} if code else None)
        assert ("verify" in told["steps"]) == (mode == "try")


def test_a_virtual_server_that_is_slow_to_change(lab: Lab) -> None:
    """A few tries with back-off; nothing is said where a later one succeeds."""
    server = lab.appliance.virtual_servers["vs_www"]
    lab.write_profile(verification={"handshake": "required"})
    for command, lag in (("run", 2), ("renew", 1)):  # nothing, twice; then the one before
        server.lag = lag
        outcome = lab.json(command, "www")
        assert (outcome.exit_code, outcome.profile()["warnings"]) == (0, [])
        assert server.lag == 0
        assert server.handshake()[0] == lab.scm.orders[-1].leaf


def test_a_failed_save_is_made_up_for(lab: Lab) -> None:
    lab.appliance.server.faults.append(fault("status", "POST", "action=save", 500))
    lab.write_profile()
    kind, _ = failed(lab)
    assert kind == "unavailable"
    lab.appliance.server.faults.clear()
    outcome = lab.json("run")
    assert outcome.profile()["steps"] == ["save", "verify", "clean_up"]
    assert lab.appliance.saved
    assert len(lab.scm.orders) == 1


def test_a_reboot_before_the_save_is_made_up_for(lab: Lab) -> None:
    lab.appliance.server.faults.append(fault("reset", "POST", "action=save"))
    lab.write_profile()
    failed(lab)
    lab.appliance.reboot()
    lab.appliance.server.faults.clear()
    assert lab("run").exit_code == 0
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == lab.scm.orders[0].leaf
    assert len(lab.scm.orders) == 1


def test_nothing_was_written_before_a_refusal(lab: Lab) -> None:
    """A profile that cannot succeed costs reads only."""
    lab.write_profile(virtual_servers=[{"name": "nowhere", "type": "gateway"}])
    failed(lab)
    assert not any(map(is_write, lab.appliance.server.calls()))


def test_a_key_file_that_is_there_already_is_not_used(lab: Lab) -> None:
    """Somebody else's file of the very name that was chosen: another name is taken."""
    exists = nitro_error(1642)
    lab.appliance.server.faults.append(
        Fault("status", matches=wants("POST", "ecdsakey"), response=exists, times=3)
    )
    lab.write_profile()
    assert lab("run").exit_code == 0
    asked = [call.body for call in lab.appliance.server.requests if "ecdsakey" in call.path]
    assert len(set(asked)) == 4
    assert lab.record()["installed"]["key_file"].encode() in asked[-1]
    assert lab.record()["litter"] == []


def test_names_that_are_all_taken_are_told(lab: Lab) -> None:
    lab.appliance.server.faults.append(
        Fault("status", matches=wants("POST", "ecdsakey"), response=nitro_error(1642), times=99)
    )
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "appliance"
    assert "(NITRO 1642, HTTP 409)" in message
    assert lab.record()["change"] is None
    lab.appliance.server.faults.clear()
    assert lab("run").exit_code == 0


@pytest.mark.parametrize("backwards", [0, 3600])
@pytest.mark.sample(2)
def test_two_commands_within_one_second(lab: Lab, backwards: int) -> None:
    """Whatever the clock says: the names of files do not clash, the record lost or not."""
    lab.write_profile()
    moment = dt.datetime.now(dt.timezone.utc)
    with time_machine.travel(moment, tick=False):
        assert lab("run").exit_code == 0
    (lab.home / "state" / "profile-www.json").unlink()
    with time_machine.travel(moment - dt.timedelta(seconds=backwards), tick=False):
        assert lab("enroll", "--force", "www").exit_code == 0
        assert lab("enroll", "--force", "www").exit_code == 0
    assert len(lab.scm.orders) == 3
    assert lab("run").exit_code == 0


def test_accounts_of_scm_can_be_private(lab: Lab) -> None:
    lab.scm.add_client("private", "private", dataclasses.replace(Account(), private=True))
    lab.write_scm(client_id="private", client_secret="private")
    lab.write_profile()
    assert lab("run").exit_code == 0


def write_fleet(lab: Lab, size: int, **enrollment: object) -> list[str]:
    """Write so many profiles, each with a virtual server of its own; all on one appliance."""
    names = [f"p{number}" for number in range(size)]
    for name in names:
        lab.appliance.add_virtual_server(f"vs_{name}", "load_balancing")
        lab.write_profile(
            name,
            virtual_servers=[{"name": f"vs_{name}", "type": "load_balancing"}],
            certificate=lab.certificate(common_name=f"{name}.example.com"),
            enrollment={"max_wait": 20, **enrollment},
        )
    return names


def is_get(request: Request) -> bool:
    return request.method == "GET"


@pytest.mark.parametrize(
    ("trouble", "asked"),
    [
        (Fault("hang", matches=is_get, times=99, seconds=3), 1),
        (Fault("reset", matches=is_get, times=99), 4),
        (fault("status", "GET", "/status", 429, Retry_After="3600"), 1),
        (fault("status", "GET", "/status", 503), 4 + 2),  # it answers: once for each of the rest
        (fault("status", "POST", "/token", 401), 0),
        (fault("status", "POST", "/token", 503), 0),
    ],
    ids=["silent", "broken", "to be left alone", "busy", "login refused", "no token"],
)
@pytest.mark.sample(4)
def test_an_scm_that_is_down_costs_one_round_of_tries_and_one_warning(
    lab: Lab, trouble: Fault, asked: int
) -> None:
    """However many certificates it would be asked about."""
    write_fleet(lab, 3)
    assert lab("run").exit_code == 0
    lab.write_scm(timeout=2)
    before = len(lab.scm.server.requests)
    lab.scm.server.faults.append(dataclasses.replace(trouble))
    outcome = lab.json("run")
    assert outcome.exit_code == 0
    assert {each["outcome"] for each in outcome.document()["profiles"]} == {"unchanged"}
    (warning,) = outcome.document()["warnings"]
    assert warning.startswith("SCM could not be asked whether certificates were revoked: ")
    told = lab.scm.server.calls(before)
    assert len([call for call in told if call.startswith("GET")]) == asked
    assert len([call for call in told if call.startswith("POST")]) <= 4


def test_an_scm_that_refuses_connections_costs_one_round_of_tries(lab: Lab) -> None:
    write_fleet(lab, 3)
    assert lab("run").exit_code == 0
    lab.scm.server.refuse()
    outcome = lab("-vv", "run")
    assert outcome.exit_code == 0
    assert outcome.stderr.count("warning: SCM could not be asked whether certificates were") == 1
    assert outcome.stderr.count("SCM: trying again") == 3


@pytest.mark.long
def test_a_large_fleet_is_not_held_up_by_an_scm_that_is_down(lab: Lab) -> None:
    """The connections are counted: they break before anything is said."""
    lab.write_yaml("agent.yaml", {"max_orders": 1000})
    write_fleet(lab, 200, max_wait=120)
    assert lab("run").exit_code == 0
    with BareListener("reset") as broken:
        lab.write_scm(url=broken.url, token_url=f"{broken.url}/token", timeout=30)
        outcome = lab.spawn("run", "--json")
    assert outcome.exit_code == 0
    assert len(outcome.document()["warnings"]) == 1
    assert broken.connections == 4


def test_an_order_waits_for_an_scm_that_asks_to_be_left_alone(lab: Lab) -> None:
    """As long as the profile lets it; where that is not long enough, the next run goes on."""
    lab.write_profile()
    busy = fault("status", "GET", "/api/v1/certificates/", 503, Retry_After="300")
    lab.scm.server.faults.append(busy)
    before = len(lab.scm.server.requests)
    outcome = lab.json("run", "--wait", "299")
    kind, message = (outcome.profile()["error"][key] for key in ("kind", "message"))
    assert kind == "unavailable"
    assert message.startswith("SCM asks to be left alone until ")
    told = lab.scm.server.calls(before)
    assert [call.split()[0] for call in told] == ["POST", "POST", "GET"]
    lab.scm.server.faults.clear()
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def test_a_silent_token_endpoint_is_waited_for_once(lab: Lab) -> None:
    with NetScaler() as second:
        second.add_user("citrixagent", PASSWORD)
        second.add_virtual_server("vs_two", "load_balancing")
        lab.write_profile()
        lab.write_profile(
            "two",
            citrix=lab.citrix(host=second.host),
            virtual_servers=[{"name": "vs_two", "type": "load_balancing"}],
        )
        lab.write_scm(timeout=3)
        lab.scm.server.faults.append(
            Fault("hang", matches=lambda request: "token" in request.path, times=9, seconds=4)
        )
        results = lab.json("run").document()["profiles"]
    assert [each["error"]["kind"] for each in results] == ["unreachable", "unreachable"]
    assert len(lab.scm.server.requests) == 1
    assert not lab.scm.orders


def test_a_file_that_was_half_written_makes_room(lab: Lab) -> None:
    lab.scm.approval = "manual"
    lab.write_profile()
    assert lab("run", "--wait", "0").exit_code == 5
    lab.appliance.write(f"/nsconfig/ssl/{lab.record()['change']['new']['cert_file']}", b"-----BEG")
    lab.scm.orders[0].approve()
    assert lab("run").exit_code == 0
    assert int(serial_of(lab), 16) == int(lab.record()["installed"]["serial"], 16)


def test_a_virtual_server_that_two_profiles_want_stops_both_and_no_other(lab: Lab) -> None:
    lab.appliance.add_virtual_server("vs_api", "load_balancing")
    for name in ("a", "b"):
        lab.write_profile(name, certificate=lab.certificate(name=name))
    lab.write_profile("c", virtual_servers=[{"name": "vs_api", "type": "load_balancing"}])
    lab.write_profile("d", certificate=lab.certificate(key_type="RSA-2048"))
    outcome = lab.json("run")
    kinds = {name: (outcome.profile(name)["error"] or {}).get("kind") for name in "abcd"}
    assert kinds == {"a": "config", "b": "config", "c": None, "d": None}
    assert {order.names[0] for order in lab.scm.orders} == {"www.example.com"}
    assert len(lab.scm.orders) == 2


def test_a_key_that_takes_too_long_is_one_profiles_failure(lab: Lab) -> None:
    for name in ("a", "b"):
        lab.appliance.add_virtual_server(f"vs_{name}", "load_balancing")
        lab.write_profile(
            name,
            citrix=lab.citrix(timeout=2),
            virtual_servers=[{"name": f"vs_{name}", "type": "load_balancing"}],
            certificate=lab.certificate(common_name=f"{name}.example.com"),
        )
    lab.appliance.server.faults.append(
        Fault("hang", matches=wants("POST", "/sslecdsakey"), seconds=3)
    )
    outcome = lab.json("run")
    assert outcome.profile("a")["error"]["kind"] == "unreachable"
    assert outcome.profile("b")["outcome"] == "enrolled"
    assert lab("run").exit_code == 0


def test_a_certificate_that_cannot_be_read_is_not_installed(lab: Lab) -> None:
    lab.scm.tamper = lambda _order, pem: pem.replace("MII", "MIX")
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "mismatch"
    assert "SCM's answer holds a certificate that cannot be read" in message
    lab.scm.tamper = None
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1
