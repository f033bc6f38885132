"""What belongs to somebody else: certkeys, bindings, files, and how they were loaded.

The lab's appliance is full of it; here the profiles come close to it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import PASSWORD, Lab
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from simulators.brownfield import PHRASE, Someone, der, encrypted, pem, pfx
from simulators.ca import Authority, ChainStyle, hierarchy, to_pem
from simulators.certkeys import Use, key_pem
from simulators.listener import Presented, VirtualServer
from simulators.netscaler import CertKey, NetScaler, Variant, nitro_error
from simulators.reissue import reissued
from simulators.server import Fault, Request
from test_crashes import Ground, set_timeouts
from test_run import common_names, install_own, is_write

THEIRS = Someone("Another CA")
WWW = ("www.example.com", "example.com", "192.0.2.10")
VS = "load_balancing"


def on(*servers: str, sni: bool = False) -> list[dict[str, object]]:
    return [{"name": name, "type": VS, "sni": sni} for name in servers]


def own_certificate(names: Sequence[str] = WWW, days: float = 20) -> tuple[x509.Certificate, Any]:
    """Return a certificate that somebody ordered by hand, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    end = dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=days)
    start = end - dt.timedelta(days=199)
    return Authority().certify(key.public_key(), names, start, end), key


def put(
    lab: Lab,
    certkey: str,
    names: Sequence[str] = WWW,
    *on: str,
    days: float = 20,
    sni: bool = False,
) -> CertKey:
    """Have somebody else's certificate on the appliance, bound."""
    certificate, key = own_certificate(names, days)
    made = lab.appliance.install(certkey, pem(certificate).decode(), key_pem(key).decode())
    for server in on:
        if server not in lab.appliance.virtual_servers:
            lab.appliance.add_virtual_server(server, VS, sni=True)
        lab.appliance.bind(server, certkey, sni=sni)
    return made


def refused(lab: Lab, *command: str, profile: str = "www") -> tuple[str, str]:
    """Run what must fail; nothing was ordered, nothing written. Return kind and message."""
    written, orders = len(lab.appliance.server.requests), len(lab.scm.orders)
    outcome = lab.json(*(command or ("run",)))
    assert outcome.exit_code == 1
    error = outcome.profile(profile)["error"]
    assert len(lab.scm.orders) == orders
    assert not any(map(is_write, lab.appliance.server.calls(written)))
    return error["kind"], error["message"]


# ----- Certkeys -----------------------------------------------------------------------------------


def test_a_wildcard_that_others_use_is_not_narrowed(lab: Lab) -> None:
    """It would lose names at a virtual server that the profile does not name."""
    old = put(lab, "www", ["*.example.com", "example.com"], "vs_www", "vs_sw")
    lab.write_profile()
    for command in (["run"], ["run", "--dry-run"], ["renew", "www"], ["enroll", "--force", "www"]):
        kind, message = refused(lab, *command)
        assert kind == "state"
        assert 'the certkey "www" is also bound to vs_sw, which would lose *.example.com' in message
    assert lab.appliance.virtual_servers["vs_sw"].handshake()[0] == old.certificate
    outcome = lab.json("run", "www", "--take-over").profile()
    assert outcome["outcome"] == "renewed"
    (told, *_) = outcome["warnings"]
    assert told.startswith('the certkey "www" is bound to vs_sw too, for which the new certificate')
    assert lab.appliance.virtual_servers["vs_sw"].handshake()[0] == lab.scm.orders[0].leaf


def test_who_else_is_served_by_a_successor_is_told(lab: Lab) -> None:
    """It has all the names: it goes ahead, for SNI bindings as for default ones."""
    put(lab, "www", ["www.example.com"], "vs_www")
    put(lab, "www2", ["other.example.com"], "vs_sni", sni=True)
    lab.appliance.bind("vs_sni", "www", sni=True)
    lab.write_profile()
    outcome = lab.json("run").profile()
    assert outcome["outcome"] == "renewed"
    assert 'the certkey "www" is bound to vs_sni too' in outcome["warnings"][0]


def test_names_that_were_ordered_are_what_others_would_lose(lab: Lab) -> None:
    """A CA may add names; those of ours that were ordered count, and only they."""
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=["old.example.com"]))
    assert lab("run").exit_code == 0
    lab.write_profile()
    lab.appliance.add_virtual_server("vs_sw", VS)
    lab.appliance.bind("vs_sw", "www")
    kind, message = refused(lab)
    assert (kind, "would lose old.example.com:" in message) == ("state", True)
    lab.appliance.running.bindings.pop()
    assert lab.json("run").profile()["outcome"] == "replaced"


@pytest.mark.parametrize("names", [["shop.example.org"], ["*.www.example.com"], ["a.example.com"]])
@pytest.mark.sample(3)
def test_a_certkey_for_something_else_is_left_alone(lab: Lab, names: list[str]) -> None:
    old = put(lab, "www", names, "vs_www", days=100)
    lab.write_profile()
    for command in (["run"], ["renew", "www"], ["replace", "www"], ["enroll", "--force", "www"]):
        kind, message = refused(lab, *command)
        assert kind == "state"
        assert f'the certkey "www" holds a certificate for {names[0]}, which is not for' in message
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == old.certificate
    assert lab.json("run", "www", "--take-over").profile()["outcome"] == "enrolled"
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == lab.scm.orders[0].leaf


def test_a_certkey_for_something_else_is_not_overwritten_by_an_open_order(lab: Lab) -> None:
    """Somebody takes the name while the order waits."""
    lab.scm.approval = "manual"
    lab.write_profile()
    assert lab("run").exit_code == 5
    put(lab, "www", ["shop.example.org"], "vs_shop", days=100)
    lab.scm.orders[0].approve()
    assert refused(lab)[0] == "state"
    assert lab.json("run", "www", "--take-over").profile()["outcome"] == "enrolled"
    assert len(lab.scm.orders) == 1


def test_taking_over_needs_to_be_told_for_whom(lab: Lab) -> None:
    lab.write_profile()
    outcome = lab("run", "--take-over")
    assert outcome.exit_code == 2
    assert "--take-over needs the PROFILE" in outcome.stderr


# ----- Places -------------------------------------------------------------------------------------


def test_force_takes_nothing_from_anybody(lab: Lab) -> None:
    put(lab, "theirs", WWW, "vs_www", days=100)
    lab.write_profile()
    for command in (["run"], ["enroll", "--force", "www"], ["enroll", "www"], ["renew", "www"]):
        kind, message = refused(lab, *command)
        assert (kind, 'holds the certkey "theirs" already: name it as' in message) == (
            "state",
            True,
        )


def test_a_taken_place_does_not_keep_the_others_from_being_served(lab: Lab) -> None:
    lab.appliance.add_virtual_server("vs_two", VS)
    lab.write_profile(virtual_servers=on("vs_www", "vs_two"))
    assert lab("run").exit_code == 0
    put(lab, "theirs", WWW, "vs_two", days=100)
    outcome = lab.json("renew", "www")
    assert outcome.profile()["error"]["kind"] == "state"
    served = {
        name: lab.appliance.virtual_servers[name].handshake()[0] for name in ("vs_www", "vs_two")
    }
    assert served["vs_www"] == lab.scm.orders[-1].leaf
    assert served["vs_two"] != lab.scm.orders[-1].leaf
    orders = len(lab.scm.orders)
    assert lab.json("run", "www", "--take-over").profile()["error"] is None
    assert len(lab.scm.orders) == orders
    assert lab.appliance.virtual_servers["vs_two"].handshake()[0] == lab.scm.orders[-1].leaf


def test_whose_place_it_is_is_told(lab: Lab) -> None:
    """Another profile's certkey, bound by hand to a virtual server that only this one names."""
    lab.appliance.add_virtual_server("vs_b", VS)
    lab.write_profile("b", virtual_servers=on("vs_b"))
    assert lab("run").exit_code == 0
    lab.appliance.bind("vs_www", "b")
    lab.write_profile()
    kind, message = refused(lab, "run", "www")
    assert kind == "state"
    assert 'holds the certkey "b" of the profile b already: unbind it, or run' in message


@pytest.mark.parametrize("sni", [False, True])
@pytest.mark.sample(2)
def test_a_key_type_that_changes_is_looked_for_as_it_will_be(lab: Lab, sni: bool) -> None:
    """RSA becomes ECDSA, and another ECDSA certificate is bound beside."""
    lab.appliance.add_virtual_server("vs_both", VS, sni=True)
    rsa = lab.certificate(key_type="RSA-2048")
    lab.write_profile(certificate=rsa, virtual_servers=on("vs_both", sni=sni))
    assert lab("run").exit_code == 0
    theirs = put(lab, "theirs", WWW, "vs_both", days=100, sni=sni)
    assert lab("run").text == ""
    lab.write_profile(virtual_servers=on("vs_both", sni=sni))
    kind, message = refused(lab)
    assert (kind, 'the certkey "theirs" already' in message) == ("state", True)
    bound = {(each.certkey, each.sni) for each in lab.appliance.bindings}
    assert bound == {("www", sni), ("theirs", sni)}
    outcome = lab.json("run", "www", "--take-over")
    assert outcome.profile()["outcome"] == "replaced"
    assert [(each.certkey, each.sni) for each in lab.appliance.bindings] == [("www", sni)]
    assert lab.appliance.certkeys["theirs"] == theirs
    assert lab.record()["ended"] == []
    assert lab("run").text == ""


def test_room_is_given_back_where_the_update_is_refused(lab: Lab) -> None:
    lab.write_profile(certificate=lab.certificate(key_type="RSA-2048"))
    assert lab("run").exit_code == 0
    put(lab, "theirs", WWW, "vs_www", days=100)
    lab.write_profile()
    update = Fault("status", matches=is_update, response=nitro_error(1536))
    lab.appliance.server.faults.append(update)
    assert lab.json("run", "www", "--take-over").profile()["error"]["kind"] == "appliance"
    assert {each.certkey for each in lab.appliance.bindings} == {"www", "theirs"}
    assert lab.record()["ended"] == []
    assert lab.json("run").profile()["outcome"] == "replaced"  # the consent holds for the order
    assert len(lab.scm.orders) == 2


def is_update(request: Request) -> bool:
    return request.method == "POST" and request.query == "action=update"


# ----- SNI ----------------------------------------------------------------------------------------


@pytest.fixture
def hosting(lab: Lab) -> Lab:
    """A virtual server with somebody else's SNI certificate for the profile's name."""
    put(lab, "theirs", ["www.example.com"], "vs_sni", days=100, sni=True)
    lab.write_profile(virtual_servers=on("vs_sni", sni=True))
    return lab


def test_a_name_that_somebody_elses_sni_certificate_has(hosting: Lab) -> None:
    kind, message = refused(hosting)
    assert kind == "state"
    assert message.endswith(
        'the virtual server "vs_sni" holds the SNI certificate for www.example.com, the certkey '
        '"theirs" already: name it as certificate.name, unbind it, or run citrixagent.py run www '
        "--take-over"
    )


@pytest.mark.parametrize(
    "other",
    [{"names": ["*.example.com"]}, {"names": ["b.example.com"]}, {"names": ["example.org"]}],
)
def test_sni_certificates_for_other_names_are_no_obstacle(lab: Lab, other: dict[str, Any]) -> None:
    put(lab, "theirs", other["names"], "vs_sni", sni=True)
    certificate = lab.certificate(subject_alternative_names=None)
    lab.write_profile(virtual_servers=on("vs_sni", sni=True), certificate=certificate)
    assert lab("run").exit_code == 0


@pytest.mark.parametrize("sni", [False, True])
def test_a_dry_run_names_what_would_be_taken(lab: Lab, sni: bool) -> None:
    """Also with an open order that was placed with consent; without consent it is refused."""
    put(lab, "theirs", WWW, "vs_place", sni=sni)
    lab.write_profile(virtual_servers=on("vs_place", sni=sni))
    assert lab.json("run", "--dry-run").profile()["outcome"] == "failed"
    lab.scm.approval = "manual"
    for words in (("www", "--take-over", "--dry-run"), ("www", "--take-over"), ("--dry-run",)):
        outcome = lab.json("run", "--wait", "0", *words).profile()
        told = [each for each in outcome["warnings"] if each.endswith("it would be taken over")]
        assert ['the certkey "theirs" already' in each for each in told] == (
            [True] if "--dry-run" in words else []
        )
    assert [(each.certkey, each.sni) for each in lab.appliance.bindings] == [("theirs", sni)]


def test_an_sni_certificate_is_taken_over(hosting: Lab) -> None:
    outcome = hosting.json("run", "www", "--take-over").profile()
    assert outcome["outcome"] == "enrolled"
    assert outcome["warnings"] == [
        'the certkey "theirs" was replaced on the virtual server "vs_sni"'
    ]
    assert [(each.certkey, each.sni) for each in hosting.appliance.bindings] == [("www", True)]
    assert "theirs" in hosting.appliance.certkeys
    assert hosting.appliance.saved
    assert hosting("run").text == ""


def binds(certkey: str) -> Any:
    def matches(request: Request) -> bool:
        return request.method == "PUT" and certkey.encode() in request.body

    return matches


def test_the_old_sni_certificate_is_bound_again_where_the_new_one_is_refused(hosting: Lab) -> None:
    refusal = Fault("status", matches=binds('"www"'), response=nitro_error(1674), times=2)
    hosting.appliance.server.faults.append(refusal)
    for command in (["run", "www", "--take-over"], ["run"]):
        assert hosting.json(*command).profile()["error"]["kind"] == "appliance"
        assert [(e.certkey, e.sni) for e in hosting.appliance.bindings] == [("theirs", True)]
        assert hosting.record()["ended"] == []
    assert hosting.json("run").profile()["outcome"] == "enrolled"  # the consent holds for the order
    assert [(e.certkey, e.sni) for e in hosting.appliance.bindings] == [("www", True)]
    assert len(hosting.scm.orders) == 1


def test_a_right_that_is_missing_changes_nothing(hosting: Lab) -> None:
    """Without ``unbind ssl vserver`` the order stays open."""
    policy = r"^(?!unbind)"
    hosting.appliance.add_user("citrixagent", PASSWORD, policy)
    outcome = hosting.json("run", "www", "--take-over").profile()
    assert outcome["error"]["kind"] == "permission"
    assert [(e.certkey, e.sni) for e in hosting.appliance.bindings] == [("theirs", True)]
    record = hosting.record()
    assert record["ended"] == []
    assert record["change"]["order"]
    hosting.appliance.add_user("citrixagent", PASSWORD)
    assert hosting.json("run").profile()["outcome"] == "enrolled"
    assert len(hosting.scm.orders) == 1


@pytest.mark.parametrize("kind", ["lost", "reset"])
@pytest.mark.parametrize("at", ["DELETE", "PUT"])
@pytest.mark.parametrize("reboots", [False, True])
@pytest.mark.sample(3)
def test_taking_over_is_finished_after_it_was_cut_off(
    hosting: Lab, kind: str, at: str, reboots: bool
) -> None:
    """For a mere binding too, which has no order that remembers the consent."""
    hosting.appliance.running.bindings.clear()
    assert hosting("run").exit_code == 0
    hosting.appliance.running.bindings.clear()
    hosting.appliance.bind("vs_sni", "theirs", sni=True)
    cut = Fault(kind, matches=lambda request: request.method == at and "binding" in request.path)
    hosting.appliance.server.faults.append(cut)
    hosting("run", "www", "--take-over")
    if reboots:
        hosting.appliance.reboot()
    for _ in range(2):
        hosting("run")
    assert [(e.certkey, e.sni) for e in hosting.appliance.bindings] == [("www", True)]
    assert hosting.record()["ended"] == []
    assert hosting.appliance.saved
    assert len(hosting.scm.orders) == 1


def test_what_was_ended_for_nothing_is_bound_again(hosting: Lab) -> None:
    """Cut off, and then the profile names another virtual server."""
    cut = Fault("reset", matches=binds('"www"'), times=9)
    hosting.appliance.server.faults.append(cut)
    hosting("run", "www", "--take-over")
    hosting.appliance.server.faults.clear()
    if not hosting.record()["ended"]:
        pytest.skip("it was bound again at once")
    hosting.write_profile()
    assert hosting("run").exit_code == 0
    bound = {(each.virtual_server, each.certkey) for each in hosting.appliance.bindings}
    assert bound == {("vs_www", "www"), ("vs_sni", "theirs")}


# ----- Where a certkey cannot be updated, or bound ------------------------------------------------

PLACES = [Use("vpn global", "", "www"), Use("service", "backend", "www")]


@pytest.mark.parametrize("use", PLACES, ids=lambda use: use.kind)
def test_where_a_certkey_cannot_be_updated_is_told_before_the_order(lab: Lab, use: Use) -> None:
    install_own(lab, days_left=20)
    lab.appliance.use(use)
    for command in (["run"], ["renew", "www"], ["run", "www", "--take-over"]):
        kind, message = refused(lab, *command)
        assert kind == "state"
        place = "VPN global" if use.kind == "vpn global" else 'the service "backend"'
        assert f'the certkey "www" is used by {place} of ' in message
    assert lab("list").exit_code == 0


@pytest.mark.parametrize("kind", ["SAML", "AAA", "ADFS proxy"])
@pytest.mark.sample(2)
def test_where_the_appliance_does_not_tell_it_the_remedy_does(lab: Lab, kind: Any) -> None:
    install_own(lab, days_left=20)
    lab.appliance.use(Use(kind, "x", "www"))
    error = lab.json("run").profile()["error"]
    assert error["kind"] == "appliance"
    assert "choose another certificate.name" in error["message"]
    lab.appliance.running.uses.clear()
    assert lab.json("run").profile()["outcome"] == "renewed"
    assert len(lab.scm.orders) == 1


@pytest.mark.parametrize(
    "policy", [r"^(?!show vpn global)", r"^(?!show ssl certKey -?\S)", r"^(?!show ssl profile)"]
)
def test_a_look_that_is_refused_stops_nothing(lab: Lab, policy: str) -> None:
    install_own(lab, days_left=20)
    lab.appliance.add_user("citrixagent", PASSWORD, policy)
    outcome = lab.json("run")
    refusals = [each for each in lab.appliance.server.calls() if "binding/www" in each]
    assert refusals
    assert (outcome.exit_code, outcome.profile()["outcome"]) in {(0, "renewed"), (1, "failed")}
    assert len(lab.scm.orders) == 1


def modern(lab: Lab, variant: Variant | None = None) -> None:
    lab.appliance.release = "14.1"
    lab.appliance.variant = variant or Variant()


def test_a_virtual_server_that_holds_a_bundle_is_not_free(lab: Lab) -> None:
    modern(lab)
    lab.appliance.add_virtual_server("vs_bundle", VS, bundle="their_bundle")
    lab.write_profile(virtual_servers=on("vs_bundle"))
    for command in (["run"], ["run", "www", "--take-over"]):
        kind, message = refused(lab, *command)
        assert kind == "state"
        assert 'the virtual server "vs_bundle" of ' in message
        assert 'holds the bundle "their_bundle"' in message
    lab.appliance.virtual_servers["vs_bundle"].bundle = ""
    assert lab("run").exit_code == 0


def test_a_bundle_does_not_keep_what_is_served_from_being_renewed(lab: Lab) -> None:
    modern(lab)
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.appliance.add_virtual_server("vs_bundle", VS, bundle="their_bundle")
    lab.write_profile(virtual_servers=on("vs_www", "vs_bundle"))
    error = lab.json("renew", "www").profile()["error"]
    assert "NITRO 3777" in error["message"]
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == lab.scm.orders[1].leaf


@pytest.mark.parametrize("on_profile", [True, False])
def test_sni_may_be_a_matter_of_the_ssl_profile(lab: Lab, on_profile: bool) -> None:
    server = lab.appliance.add_virtual_server("vs_p", VS, sni=on_profile, profile="front")
    lab.write_profile(virtual_servers=on("vs_p", sni=True))
    if on_profile:
        assert lab("run").exit_code == 0
        return
    kind, message = refused(lab)
    assert kind == "appliance"
    assert message.endswith('set ssl profile "front" -SNIEnable ENABLED')
    server.sni = True
    assert lab("run").exit_code == 0


# ----- Paid before it could be known --------------------------------------------------------------

LONG = "w" * 32


def test_a_name_that_the_release_does_not_take(lab: Lab) -> None:
    lab.write_profile(certificate=lab.certificate(name=LONG))
    kind, message = refused(lab)
    assert kind == "config"
    assert message.startswith("certificate.name has 32 characters, and ")
    assert message.endswith("(release 13.1) takes 31: choose another")


@pytest.mark.parametrize("release", ["13.1", "14.1"])
@pytest.mark.sample(2)
def test_a_long_name_where_it_is_taken(lab: Lab, release: str) -> None:
    """By its release, or because a certkey with a name as long is there."""
    lab.appliance.release = release
    lab.appliance.variant = Variant(certkey_name_limit=63)
    if release == "13.1":
        put(lab, "x" * 40, ["x.example.org"])
    name = LONG if release == "13.1" else "w" * 63
    lab.write_profile(certificate=lab.certificate(name=name))
    assert lab("run").exit_code == 0
    assert lab("renew", "www").exit_code == 0
    assert name in lab.appliance.certkeys


@pytest.mark.parametrize(
    ("taken", "key_type", "code"),
    [("none", "ECDSA-P256", 1675), ("P-256", "ECDSA-P384", 1676)],
)
@pytest.mark.sample(2)
def test_a_platform_without_ecdsa_is_paid_for_once(
    lab: Lab, taken: Any, key_type: str, code: int
) -> None:
    lab.appliance.variant = Variant(ecdsa_certificates=taken)
    lab.write_profile(certificate=lab.certificate(key_type=key_type))
    assert f"NITRO {code}" in lab.json("run").profile()["error"]["message"]
    for name in ("a", "b"):
        lab.appliance.add_virtual_server(f"vs_{name}", VS)
    lab.write_profile(
        "a", certificate=lab.certificate(key_type=key_type), virtual_servers=on("vs_a")
    )
    lab.write_profile(
        "b", certificate=lab.certificate(key_type="RSA-2048"), virtual_servers=on("vs_b")
    )
    document = lab.json("run", "www").document()
    assert "set certificate.key_type to" in document["profiles"][0]["error"]["message"]
    outcome = lab.json("run")
    assert outcome.profile("b")["outcome"] == "enrolled"


def test_a_certificate_without_a_common_name_is_no_sni_certificate(lab: Lab) -> None:
    lab.scm.tamper = "no_common_name"
    lab.appliance.add_virtual_server("vs_sni", VS, sni=True)
    lab.write_profile(virtual_servers=on("vs_sni", sni=True))
    error = lab.json("run").profile()["error"]
    assert error["kind"] == "mismatch"
    assert (
        "no common name, which SNI needs: choose a certificate profile in SCM" in error["message"]
    )
    assert "www" not in lab.appliance.certkeys


# ----- How it was loaded --------------------------------------------------------------------------


def load(lab: Lab, form: str, days: float = 20) -> CertKey:
    """Have the profile's certificate on the appliance, loaded in one of many ways."""
    certificate, key = own_certificate(days=days)
    box = lab.appliance
    both = pem(certificate) + key_pem(key)
    made = {
        "DER": lambda: box.load_files(
            "www", ("www.der", der(certificate)), ("www.bin", der(key)), inform="DER"
        ),
        "PFX": lambda: box.load_files(
            "www", ("www.p12", pfx(certificate, key)), inform="PFX", passphrase=PHRASE
        ),
        "encrypted": lambda: box.load_files(
            "www", ("www.pem", pem(certificate)), ("www.k", encrypted(key)), passphrase=PHRASE
        ),
        "one file": lambda: box.load_files("www", ("www.pem", both)),
        "one file, named twice": lambda: box.load_files("www", ("w.pem", both), ("w.pem", both)),
        "folder": lambda: box.load_files(
            "www",
            ("/nsconfig/ssl/site/www.crt", pem(certificate)),
            ("/nsconfig/ssl/site/www.key", key_pem(key)),
        ),
        "relative": lambda: box.load_files(
            "www", ("site/www.crt", pem(certificate)), ("site/www.key", key_pem(key))
        ),
    }[form]()
    lab.appliance.bind("vs_www", "www")
    return made


NO_WAY_BACK = {
    "PFX": "its key is encrypted",
    "encrypted": "its key is encrypted",
    "one file": "its certkey names no key file",
}
FORMS = [*NO_WAY_BACK, "DER", "one file, named twice", "folder", "relative"]


@pytest.mark.parametrize("update_form", ["PEM", "keep"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.sample(3)
def test_however_it_was_loaded_it_is_renewed_and_put_back(
    lab: Lab, form: str, update_form: Any
) -> None:
    """A warning before says where there will be no way back, and rollback says why."""
    lab.appliance.variant = Variant(update_form=update_form)
    old = load(lab, form)
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=None))
    words = NO_WAY_BACK.get(form, "")
    for command, outcome in ((["run", "--dry-run"], "planned"), (["run"], "renewed")):
        told = lab.json(*command).profile()
        assert told["outcome"] == outcome
        warned = [each for each in told["warnings"] if "cannot be put back by a rollback" in each]
        assert [words in each for each in warned] == [True] * bool(words)
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == lab.scm.orders[0].leaf
    back = lab.json("rollback", "www").profile()
    if words:
        assert back["error"]["kind"] == "state"
        assert words in back["error"]["message"]
        return
    assert back["outcome"] == "rolled_back"
    held = lab.appliance.certkeys["www"]
    assert (held.certificate, held.inform) == (old.certificate, old.inform)
    assert (held.cert, held.key) == (old.cert, old.key)
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == old.certificate


@pytest.mark.parametrize("form", ["DER", "encrypted"])
@pytest.mark.sample(2)
def test_an_undo_puts_back_what_it_can(lab: Lab, form: str) -> None:
    old = load(lab, form)
    server = lab.appliance.virtual_servers["vs_www"]
    lab.write_profile(
        certificate=lab.certificate(subject_alternative_names=None),
        verification={"handshake": "required"},
        virtual_servers=[{**on("vs_www")[0], "connect": "{}:{}".format(*elsewhere(lab))}],
    )
    error = lab.json("run").profile()["error"]
    assert error["kind"] == "verify"
    if form == "DER":
        assert error["message"].endswith("was put back; the next run tries again")
        assert server.handshake()[0] == old.certificate
    else:
        assert "there is no way back (its key is encrypted" in error["message"]
        assert server.handshake()[0] == lab.scm.orders[0].leaf


def elsewhere(lab: Lab) -> tuple[str, int]:
    """Return the address of a virtual server that presents something else."""
    put(lab, "another", ["another.example.org"], "vs_another")
    return lab.appliance.virtual_servers["vs_another"].address


# ----- Files --------------------------------------------------------------------------------------

UNREADABLE = {
    "a key": ("www.KEY", "www.x"),
    "called a key": ("www_key.pem", "www.x"),
    "a PFX": ("www.Pfx", "www.x"),
    "outside": ("/etc/passwd", "www.x"),
    "above": ("../ns.conf", "www.x"),
    "above, in a roundabout way": ("/nsconfig/ssl/../ns.conf", "www.x"),
    "another certkey's key": ("shop.key", "www.x"),
    "its own key, by another path": ("w.pem", "/nsconfig/ssl/./w.pem"),
    "no key": ("both.pem", ""),
}


@pytest.mark.parametrize("form", ["PEM", "DER"])
@pytest.mark.parametrize("files", UNREADABLE.values(), ids=list(UNREADABLE))
@pytest.mark.sample(5)
def test_a_file_that_may_hold_a_key_is_never_read(
    lab: Lab, files: tuple[str, str], form: str
) -> None:
    """Whatever the appliance names as the certificate's file: its row must do."""
    install_own(lab, days_left=100)
    row = dataclasses.replace(lab.appliance.certkeys["www"], cert=files[0], key=files[1])
    lab.appliance.running.put(dataclasses.replace(row, inform=form))
    lab.appliance.save()
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=None))
    assert lab.json("run").profile()["outcome"] == "unchanged"
    assert lab("list", "--all").exit_code == 0
    assert not [path for path in lab.appliance.files_read if not path.startswith("/nsconfig/ssl/")]
    asked = [call for call in lab.appliance.server.calls() if "systemfile" in call]
    name = files[0].rpartition("/")[2]
    assert not any(f"filename:{name}," in call for call in asked)


@pytest.mark.parametrize("code", [2138, 3440, 3441, 1647, 257])
def test_where_a_file_cannot_be_had_the_row_does(lab: Lab, code: int) -> None:
    install_own(lab, days_left=100)
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=None))
    answer = nitro_error(code)
    fault = Fault("status", matches=lambda r: "systemfile" in r.path, response=answer, times=9)
    lab.appliance.server.faults.append(fault)
    outcome = lab.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "unchanged")


def test_the_whole_estate_is_listed(lab: Lab) -> None:
    """Certkeys in every form, none of their keys read, none left out."""
    lab.write_profile()
    rows = lab.json("list", "--all").document()["certificates"]
    assert {each["certkey"] for each in rows} >= {"their_gateway", "their_curve", "their one file"}
    assert all(each["not_after"] for each in rows if each["certkey"] != "www")


def test_a_second_appliance_is_as_full(lab: Lab) -> None:
    """What was looked at on one appliance says nothing of another."""
    with NetScaler() as second:
        second.add_user("citrixagent", PASSWORD)
        second.add_virtual_server("vs_www", VS)
        lab.write_profile("two", citrix=lab.citrix(host=second.host))
        lab.write_profile()
        assert lab("run").exit_code == 0
        assert len(lab.scm.orders) == 2


# ----- What is presented --------------------------------------------------------------------------

REQUIRED = {"handshake": "required"}


def chain_on(lab: Lab, *, linked_to: str = "") -> tuple[x509.Certificate, x509.Certificate]:
    """Have the issuing CA and its cross-signed root there, installed by somebody else."""
    leaf, _ = own_certificate()
    _, issuing, cross = Authority().path(leaf, ChainStyle(root=False))
    for name, certificate in (("their issuing", issuing), ("their cross", cross)):
        lab.appliance.install(name, to_pem([certificate]))
    if linked_to:
        row = lab.appliance.certkeys["their issuing"]
        lab.appliance.running.put(dataclasses.replace(row, link=linked_to))
        lab.appliance.save()
    return issuing, cross


def test_a_link_of_somebody_else_that_leads_elsewhere_is_told(lab: Lab) -> None:
    """The issuing CA is linked to the self-signed twin of the cross-signed root."""
    twin = hierarchy()["Root E46"].certificate
    lab.appliance.install("their root", to_pem([twin]))
    chain_on(lab, linked_to="their root")
    lab.write_profile(verification=REQUIRED)
    told = 'the certkey "their issuing" is linked to "their root", not to "their cross"'
    for _ in range(2):
        outcome = lab.json("run")
        assert outcome.exit_code == 0
        assert [told in each for each in outcome.profile()["warnings"]] == [True]
    assert lab.appliance.certkeys["their issuing"].link == "their root"


def test_a_link_of_ours_that_leads_elsewhere_is_mended(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    twin = hierarchy()["Root E46"].certificate
    lab.appliance.install("their root", to_pem([twin]))
    running = lab.appliance.running
    issuing = running.certkeys[str(running.certkeys["www"].link)]
    running.put(dataclasses.replace(issuing, link="their root"))
    lab.appliance.save()
    assert lab.json("run").profile()["outcome"] == "repaired"
    assert running.certkeys[issuing.name] == issuing
    assert lab("run").text == ""


def test_a_certificate_taken_over_without_a_link_is_linked(lab: Lab) -> None:
    put(lab, "www", WWW, "vs_www", days=100)
    lab.write_profile()
    (told,) = lab.json("run").profile()["warnings"]
    assert told.startswith(
        'the certkey "www" is not linked, and its issuer is not on the appliance'
    )
    chain_on(lab)
    assert lab.json("run").profile()["outcome"] == "repaired"
    assert lab.appliance.certkeys["www"].link == "their issuing"
    assert lab.json("run").profile()["warnings"] == []


def test_a_leaf_alone_does_not_satisfy_where_a_handshake_is_required(lab: Lab) -> None:
    """What is in front of the virtual server presents the right certificate and nothing else."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    certkey = lab.appliance.certkeys["www"]
    front = VirtualServer("front", VS, sni=False)
    key = certkey.private_key.decode()
    front.present([Presented(certkey.pem, key, certkey.serial, certkey.domains)], [])
    connect = "{}:{}".format(*front.address)
    lab.write_profile(
        virtual_servers=[{**on("vs_www")[0], "connect": connect}], verification=REQUIRED
    )
    lab.appliance.running.bindings.clear()
    error = lab.json("run").profile()["error"]
    front.stop()
    assert error["kind"] == "verify"
    assert "presents the certificate without CA DV E36, Root E46 of its chain" in error["message"]


def test_a_server_that_wants_a_client_certificate_is_verified_all_the_same(lab: Lab) -> None:
    server = lab.appliance.virtual_servers["vs_www"]
    server.demand_client_certificate(pem(THEIRS.certificate).decode())
    lab.write_profile(verification=REQUIRED)
    outcome = lab.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "enrolled")


@pytest.mark.parametrize(
    ("cross_years", "root_years", "presented"),
    [(10, 20, ["CA DV E36"]), (20, 10, ["CA DV E36", "Root E46"]), (0.1, 0.5, ["CA DV E36"])],
)
@pytest.mark.sample(2)
def test_of_two_ways_up_the_one_that_lasts_is_taken(
    lab: Lab, cross_years: float, root_years: float, presented: list[str]
) -> None:
    """A root and its cross-signed twin are both in the answer."""
    root, now = hierarchy()["Root E46"], dt.datetime.now(dt.timezone.utc)
    year = dt.timedelta(days=365)
    twin = reissued(root, now + root_years * year)
    assert root.cross
    usertrust = hierarchy()["USERTrust"]
    cross = reissued(
        dataclasses.replace(root, certificate=root.cross, issuer=usertrust),
        now + cross_years * year,
    )

    def both(_: object, answer: str) -> str:
        blocks = answer.split("-----END CERTIFICATE-----\n")
        return "-----END CERTIFICATE-----\n".join([*blocks[:2], ""]) + to_pem([cross, twin])

    lab.scm.tamper = both
    lab.write_profile()
    assert lab("run").exit_code == 0
    chain = lab.appliance.virtual_servers["vs_www"].handshake()
    assert common_names(chain)[1:] == presented


ALIKE = ["reset", "hang", "lost", "garbled"]  # nothing was done, nothing; all was, all


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize(
    "every", [pytest.param(2, marks=pytest.mark.long), pytest.param(9, id="sample")]
)
@pytest.mark.sample(2)
def test_taking_over_survives_a_fault_at_every_request(hosting: Lab, kind: str, every: int) -> None:
    """Once the order is placed its consent is on record: later runs need no option.

    Of two kinds that are alike, one goes to every even request, and one to every odd one.
    """
    server, command = hosting.appliance.server, ["run", "www", "--take-over"]
    hosting.write_profile(virtual_servers=on("vs_sni", sni=True), citrix=hosting.citrix(timeout=20))
    ground, first = Ground(hosting), len(server.requests)
    assert hosting(*command).exit_code == 0
    offset = ALIKE.index(kind) % every
    for index in range(offset, len(server.requests) - first, every):
        ground.restore()
        orders = len(hosting.scm.orders)
        server.faults.append(Fault(kind, len(server.requests) + 1 + index, seconds=1.5))
        set_timeouts(hosting, 1 if kind == "hang" else 20)
        hosting(*command)
        set_timeouts(hosting, 20)
        server.faults.clear()
        for _ in range(2):
            hosting(*(["run"] if len(hosting.scm.orders) > orders else command))
        assert hosting("run").text == ""
        assert [(e.certkey, e.sni) for e in hosting.appliance.bindings] == [("www", True)], index
        assert hosting.record()["ended"] == []
        assert len(hosting.scm.orders) == orders + 1
        hosting.appliance.sessions.clear()
