"""`check` finds what a run would trip over, names what mends it, and changes nothing.

One lab serves all planted faults: each plants one, checks, does what the remedy says, and checks
again. A fault is a generator: before its ``yield`` it plants, after it it mends; what is sent to
it is the check's remedy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import time_machine
import yaml
from conftest import CLIENT_SECRET, PASSWORD, Lab
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from simulators import server as simulated
from simulators.ca import hierarchy, to_pem
from simulators.certkeys import Use
from simulators.netscaler import Binding, NetScaler, nitro_error
from simulators.pair import HaPair
from simulators.reissue import reissued
from simulators.scm import Scm
from simulators.server import HttpsServer
from test_discover import leaf, private_pem, serve
from test_others import NO_WAY_BACK, load
from test_told import Mailbox, mail, mail_server, ping_server

Document = dict[str, Any]
Planted = Generator[None, str, None]
Fault = Callable[[Lab], Planted]


@dataclasses.dataclass(frozen=True)
class Expected:
    """How a planted fault is told; ``target`` is a word, or the appliance's host for ``host``."""

    status: str
    target: str
    says: str
    remedy: str
    exit_code: int = 1


FAULTS: dict[str, tuple[Expected, Fault]] = {}


def planted(
    status: str, target: str, says: str, remedy: str = "", exit_code: int | None = None
) -> Callable[[Fault], Fault]:
    code = exit_code if exit_code is not None else int(status == "fail")

    def register(fault: Fault) -> Fault:
        FAULTS[fault.__name__] = (Expected(status, target, says, remedy, code), fault)
        return fault

    return register


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """An installation with nothing wrong: one certificate in service, in SCM's care."""
    with NetScaler() as appliance, Scm() as scm:
        scm.issue_after = 0
        appliance.add_virtual_server("vs_www", "load_balancing")
        lab = Lab(tmp_path_factory.mktemp("check"), appliance, scm)
        lab.accept()
        lab.write("ns_secret", PASSWORD)
        lab.write_yaml("appliances/ns1.yaml", citrix(lab))
        lab.write_profile(citrix="ns1")
        assert lab("run").exit_code == 0
        yield lab
        assert not appliance.private_keys_read
        assert not appliance.sessions


def citrix(lab: Lab, **changes: object) -> Document:
    return lab.citrix(password=None, password_file="../ns_secret", **changes)


def problems(lab: Lab, *arguments: str) -> tuple[int, list[Document]]:
    outcome = lab.json("check", *arguments)
    checks = outcome.document()["checks"]
    assert checks
    for check in checks:
        assert set(check) == {"target", "name", "status", "message", "remedy"}
        assert check["status"] in {"ok", "warn", "fail", "skip"}
    found = [each for each in checks if each["status"] in {"warn", "fail"}]
    return outcome.exit_code, [each for each in found if each["name"] != "schedule"]


def shell(remedy: str) -> None:
    subprocess.run(remedy, shell=True, check=True)


def writes_of(lab: Lab) -> list[str]:
    calls = [*lab.appliance.server.calls(), *lab.scm.server.calls()]
    harmless = re.compile("GET |POST [^?]*/(login|logout|nspartition|token)")
    return [call for call in calls if not harmless.match(call)]


def state_of(lab: Lab) -> dict[str, bytes]:
    files = [path for path in lab.home.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if "citrixagent.log" not in path.name}


def finish(steps: Planted, remedy: str) -> None:
    with contextlib.suppress(StopIteration):
        steps.send(remedy)


# ----- The planted faults ----------------------------------------------------------------------


def mode(path: pathlib.Path, bits: int) -> Planted:
    before = path.stat().st_mode & 0o7777
    path.chmod(before | bits)
    remedy = yield
    shell(remedy)
    assert path.stat().st_mode & bits == 0


@planted("warn", "machine", "can be changed by everybody", "chmod o-w")
def open_home(lab: Lab) -> Planted:
    yield from mode(lab.home, 0o002)


@planted("warn", "machine", "can be changed by everybody", "chmod o-w")
def open_profiles_folder(lab: Lab) -> Planted:
    yield from mode(lab.home / "profiles", 0o002)


@planted("warn", "machine", "can be changed by everybody", "chmod o-w")
def open_appliance_file(lab: Lab) -> Planted:
    yield from mode(lab.home / "appliances" / "ns1.yaml", 0o002)


@planted("warn", "www", "can be changed by everybody", "chmod o-w")
def open_profile(lab: Lab) -> Planted:
    yield from mode(lab.home / "profiles" / "www.yaml", 0o002)


@planted("warn", "www", "belongs to", "chown")
def profile_of_somebody_else(lab: Lab) -> Planted:
    if os.geteuid():
        pytest.skip("needs root")
    os.chown(lab.home / "profiles" / "www.yaml", 65534, -1)
    remedy = yield
    shell(remedy)


def replaced(path: pathlib.Path, text: str | None) -> Planted:
    """Have a file hold something else, or be away, until it is put back."""
    before = path.read_bytes()
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    yield
    path.write_bytes(before)
    path.chmod(0o600)


def scm(lab: Lab, **changes: object) -> Planted:
    path = lab.home / "scm.yaml"
    data = yaml.safe_load(path.read_text()) | changes
    kept = {key: value for key, value in data.items() if value is not None}
    yield from replaced(path, yaml.safe_dump(kept))


def appliance(lab: Lab, **changes: object) -> Planted:
    path = lab.home / "appliances" / "ns1.yaml"
    kept = {key: value for key, value in citrix(lab, **changes).items() if value is not None}
    yield from replaced(path, yaml.safe_dump(kept))


def profile(lab: Lab, **changes: object) -> Planted:
    path = lab.home / "profiles" / "www.yaml"
    data = yaml.safe_load(path.read_text()) | changes
    yield from replaced(path, yaml.safe_dump(data))


@planted("fail", "scm", "others can read this file", "chmod 600", exit_code=3)
def readable_secret_in_scm_yaml(lab: Lab) -> Planted:
    yield from mode(lab.home / "scm.yaml", 0o004)


@planted("fail", "scm", "is missing", exit_code=3)
def no_scm_yaml(lab: Lab) -> Planted:
    yield from replaced(lab.home / "scm.yaml", None)


@planted("fail", "scm", "", exit_code=3)
def scm_yaml_is_no_yaml(lab: Lab) -> Planted:
    yield from replaced(lab.home / "scm.yaml", "url: [\n")


@planted("fail", "scm", "unknown key", "did you mean", exit_code=3)
def scm_yaml_with_an_unknown_key(lab: Lab) -> Planted:
    yield from scm(lab, timeuot=3)


@planted("fail", "scm", "url", "must start with https://", exit_code=3)
def scm_without_tls(lab: Lab) -> Planted:
    yield from scm(lab, url="http://scm.example.com")


@planted("fail", "scm", "client_secret_file", "names a file that does not exist", exit_code=3)
def secret_file_is_missing(lab: Lab) -> Planted:
    yield from scm(lab, client_secret=None, client_secret_file="absent")


@planted("fail", "scm", "ca_bundle", "there is no file", exit_code=3)
def ca_bundle_is_missing(lab: Lab) -> Planted:
    yield from scm(lab, ca_bundle="absent.pem")


@planted("fail", "scm", "the login", "check client_id and client_secret")
def wrong_client_secret(lab: Lab) -> Planted:
    yield from scm(lab, client_secret="wrong-secret")


@planted("fail", "scm", "TLS certificate is not trusted", "ca_bundle")
def scm_untrusted(lab: Lab) -> Planted:
    (lab.home / "other.pem").write_text(to_pem([hierarchy()["USERTrust"].certificate]))
    yield from scm(lab, ca_bundle="other.pem")


@planted("fail", "scm", "", "check")
def scm_refuses_connections(lab: Lab) -> Planted:
    lab.scm.server.refuse()
    yield
    lab.scm.server.accept()


@planted("fail", "scm", "HTTP 404")
def scm_is_something_else(lab: Lab) -> Planted:
    yield from scm(lab, url=f"https://{lab.appliance.host}")


@planted("fail", "scm", "token")
def wrong_token_url(lab: Lab) -> Planted:
    yield from scm(lab, token_url=f"https://{lab.appliance.host}/token")


@planted("fail", "agent.yaml", "unknown key", "did you mean", exit_code=3)
def unknown_key_in_agent_yaml(lab: Lab) -> Planted:
    path = lab.write("agent.yaml", "max_order: 3\n")
    yield
    path.unlink()


@planted("fail", "agent.yaml", "notify")
def channel_that_is_wrong(lab: Lab) -> Planted:
    path = lab.write("agent.yaml", "notify: {when: sometimes}\n")
    yield
    path.unlink()


@planted("fail", "agent.yaml", "others can read this file", "chmod 600", exit_code=3)
def readable_secret_in_agent_yaml(lab: Lab) -> Planted:
    path = lab.write("agent.yaml", "ping_url: https://example.com/secret\n", mode=0o644)
    remedy = yield
    shell(remedy)
    assert path.stat().st_mode & 0o004 == 0
    path.unlink()


ADMIN: Document = {"api": "admin", "org_id": 1, "cert_type": 2, "term": 199}


@planted("fail", "scm", "cert_type", "SCM offers")
def type_that_is_not_offered(lab: Lab) -> Planted:
    lab.scm.admin.add_client("client", CLIENT_SECRET)
    yield from scm(lab, **ADMIN | {"cert_type": 9})
    lab.scm.add_client("client", CLIENT_SECRET)


@planted("fail", "scm", "term")
def term_that_is_not_offered(lab: Lab) -> Planted:
    lab.scm.admin.add_client("client", CLIENT_SECRET)
    yield from scm(lab, **ADMIN | {"term": 7})
    lab.scm.add_client("client", CLIENT_SECRET)


@planted("fail", "scm", "key_type")
def key_type_that_is_not_offered(lab: Lab) -> Planted:
    lab.scm.admin.add_client("client", CLIENT_SECRET)
    kinds = lab.scm.admin.types
    before = list(kinds)
    kinds[:] = [dataclasses.replace(each, keys=["RSA-2048"]) for each in kinds]
    yield from scm(lab, **ADMIN)
    kinds[:] = before
    lab.scm.add_client("client", CLIENT_SECRET)


@planted("fail", "scm", "the list of types")
def wrong_admin_login(lab: Lab) -> Planted:
    lab.scm.admin.add_login("acme", "robot", "right-password")
    login = {"customer_uri": "acme", "login": "robot", "password": "wrong-password"}
    oauth = dict.fromkeys(("client_id", "client_secret", "token_url"))
    yield from scm(lab, **ADMIN | login | oauth)


@planted("fail", "scm", "list of types")
def organization_that_is_not_ours(lab: Lab) -> Planted:
    lab.scm.admin.add_client("client", CLIENT_SECRET)
    yield from scm(lab, **ADMIN | {"org_id": 77})
    lab.scm.add_client("client", CLIENT_SECRET)


@planted("fail", "host", "cannot be reached", "check citrix.host")
def appliance_refuses_connections(lab: Lab) -> Planted:
    lab.appliance.server.refuse()
    yield
    lab.appliance.server.accept()


@planted("fail", "host", "login", "check username and password")
def wrong_appliance_password(lab: Lab) -> Planted:
    yield from replaced(lab.home / "ns_secret", "wrong-password\n")
    lab.appliance.password_failures.clear()


@planted("fail", "host", "its TLS certificate is not trusted", 'fingerprint: "')
def appliance_untrusted(lab: Lab) -> Planted:
    path = lab.home / "appliances" / "ns1.yaml"
    before = path.read_text()
    path.write_text(yaml.safe_dump({k: v for k, v in citrix(lab).items() if k != "ca_bundle"}))
    remedy = yield
    found = re.search(r'fingerprint: "[0-9A-F:]+"', remedy)
    assert found
    with path.open("a") as file:
        file.write(found[0] + "\n")
    assert problems(lab) == (0, [])
    path.write_text(before)


@planted("fail", "host", "its fingerprint is another one", 'fingerprint: "')
def appliance_with_another_fingerprint(lab: Lab) -> Planted:
    yield from appliance(lab, ca_bundle=None, fingerprint="00" * 32)


@planted("warn", "host", "citrix.verify is false", "set ca_bundle or fingerprint")
def appliance_is_not_verified(lab: Lab) -> Planted:
    yield from appliance(lab, ca_bundle=None, verify=False)


def management_certificate(lab: Lab, days: float) -> Planted:
    """Have the appliance present a certificate that ends in so many days, and pin it."""
    server = lab.appliance.server
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ns1")])
    own = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=400))
        .not_valid_after(now + dt.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    server.present_pair(to_pem([own]), private_pem(key))
    pin = own.fingerprint(hashes.SHA256()).hex()
    yield from appliance(lab, ca_bundle=None, fingerprint=pin)
    server.present_pair(*server.own)


@planted("fail", "host", "the management certificate of", "renew it on the appliance")
def management_certificate_has_expired(lab: Lab) -> Planted:
    yield from management_certificate(lab, -2)


@planted("warn", "host", "expires at", "renew it on the appliance")
def management_certificate_expires(lab: Lab) -> Planted:
    yield from management_certificate(lab, 29)


@planted("fail", "host", "standby", "both nodes, or a SNIP")
def standby_node(lab: Lab) -> Planted:
    lab.appliance.ha_state = "Secondary"
    yield
    lab.appliance.ha_state = None


@planted("warn", "host", "has release 12.1", "13.0 or newer")
def old_release(lab: Lab) -> Planted:
    lab.appliance.release = "12.1"
    yield
    lab.appliance.release = "13.1"


@planted("warn", "host", "changes that nobody saved", "save ns config")
def unsaved_changes(lab: Lab) -> Planted:
    lab.appliance.running.bindings.append(Binding("vs_www", "ghost", ca=True))
    yield
    lab.appliance.running.bindings.pop()
    lab.appliance.save()


@planted("fail", "host", "partition")
def partition_that_is_not_there(lab: Lab) -> Planted:
    yield from appliance(lab, partition="tenant", ssl_directory="/nsconfig/partitions/tenant/ssl")


@planted("fail", "host", "login", "end sessions that are not needed")
def no_session_left(lab: Lab) -> Planted:
    lab.appliance.session_limit = 0
    yield
    lab.appliance.session_limit = 20


def refused(command: str, status: str) -> None:
    """Plant: one look of the command policy is not allowed."""

    def plant(lab: Lab) -> Planted:
        lab.appliance.add_user("citrixagent", PASSWORD, policy=rf"^(?!{command})")
        remedy = yield
        found = re.search(r'add system cmdPolicy \S+ ALLOW "([^"]+)"', remedy)
        assert found
        policy = rf"(^(?!{command}))|({found[1]})"
        lab.appliance.add_user("citrixagent", PASSWORD, policy=policy)

    plant.__name__ = f"refused_{command.replace(' ', '_')}"
    planted(status, "host", f"{command}", "add system cmdPolicy")(plant)


for look, how in {
    "show ssl certKey": "fail",
    "show ssl vserver": "fail",
    "stat HA node": "fail",
    "show system file": "fail",
    "show lb vserver": "fail",
    "show cs vserver": "warn",
    "show vpn vserver": "warn",
    "show authentication vserver": "warn",
    "show ns version": "warn",
    "show ns config": "warn",
    "show vpn global": "warn",
}.items():
    refused(look, how)


@planted("fail", "www", "where it cannot be updated", "take it out there, or choose another")
def certkey_that_vpn_global_uses(lab: Lab) -> Planted:
    lab.appliance.running.uses.append(Use("vpn global", "", "www"))
    yield
    lab.appliance.running.uses.clear()


def clock(server: HttpsServer, **ahead: int) -> Planted:
    """Have a server say another time."""
    server.clock = lambda: dt.datetime.now(dt.timezone.utc) - dt.timedelta(**ahead)
    yield
    server.clock = None


@planted("warn", "scm", "this machine's clock is 10 minutes ahead of", "have both set by NTP")
def clock_that_differs_from_that_of_scm(lab: Lab) -> Planted:
    yield from clock(lab.scm.server, minutes=10)


@planted("fail", "scm", "nothing is ordered until it is set")
def clock_that_is_days_off(lab: Lab) -> Planted:
    yield from clock(lab.scm.server, days=3)


@planted("warn", "host", "this machine's clock is 10 minutes behind", "have both set by NTP")
def clock_that_differs_from_that_of_the_appliance(lab: Lab) -> Planted:
    yield from clock(lab.appliance.server, minutes=-10)


@planted("warn", "scm", "others can read", "chmod")
def secret_file_that_others_can_read(lab: Lab) -> Planted:
    path = lab.write("open_secret", CLIENT_SECRET, mode=0o644)
    steps = scm(lab, client_secret=None, client_secret_file="open_secret")
    next(steps)
    remedy = yield
    shell(remedy)
    assert path.stat().st_mode & 0o004 == 0
    assert problems(lab) == (0, [])
    finish(steps, "")
    path.unlink()


@planted("warn", "www", "others can read", "chmod")
def password_file_that_others_can_read(lab: Lab) -> Planted:
    yield from mode(lab.home / "ns_secret", 0o004)


def servers(lab: Lab, name: str, kind: str = "load_balancing", **more: object) -> Planted:
    entries = [
        {"name": "vs_www", "type": "load_balancing"},
        {"name": name, "type": kind, **more},
    ]
    yield from profile(lab, virtual_servers=entries)


@planted("fail", "www", 'no load balancing virtual server "vs_wwv"', 'did you mean "vs_www"')
def virtual_server_that_is_not_there(lab: Lab) -> Planted:
    yield from servers(lab, "vs_wwv")


@planted("fail", "www", 'virtual server "vs_gate"', "its type is gateway")
def virtual_server_of_another_kind(lab: Lab) -> Planted:
    add(lab, "vs_gate", "gateway")
    yield from servers(lab, "vs_gate")


def add(lab: Lab, name: str, kind: str = "load_balancing", *, sni: bool = False) -> None:
    if name not in lab.appliance.virtual_servers:
        lab.appliance.add_virtual_server(name, kind, sni=sni)


@planted("fail", "www", "of type HTTP, which holds no certificate", "name one of type SSL")
def virtual_server_without_tls(lab: Lab) -> Planted:
    if "vs_http" not in lab.appliance.virtual_servers:
        lab.appliance.add_virtual_server("vs_http", "load_balancing", "HTTP")
    yield from servers(lab, "vs_http")


@planted("fail", "www", "SNI is not enabled", "-SNIEnable ENABLED")
def virtual_server_without_sni(lab: Lab) -> Planted:
    add(lab, "vs_plain")
    before = (lab.home / "profiles" / "www.yaml").read_bytes()
    steps = servers(lab, "vs_plain", sni=True)
    next(steps)
    remedy = yield
    assert remedy == 'set ssl vserver "vs_plain" -SNIEnable ENABLED'
    lab.appliance.virtual_servers["vs_plain"].sni = True
    assert problems(lab) == (0, [])
    lab.appliance.virtual_servers["vs_plain"].sni = False
    (lab.home / "profiles" / "www.yaml").write_bytes(before)


@planted("fail", "www", 'holds the certkey "legacy" already', "name it as certificate.name")
def virtual_server_that_is_taken(lab: Lab) -> Planted:
    serve(lab.appliance, "legacy", "l.example.com", ["l.example.com"], on=[("vs_taken", False)])
    yield from servers(lab, "vs_taken")


def front(lab: Lab) -> Document:
    """Return an entry of virtual_servers that is reached through something else."""
    if "vs_front" not in lab.appliance.virtual_servers:
        names = ["front.example.com"]
        serve(lab.appliance, "front", names[0], names, on=[("vs_front", False)])
    host, port = lab.appliance.virtual_servers["vs_front"].address
    return {"name": "vs_www", "type": "load_balancing", "connect": f"{host}:{port}"}


@planted("warn", "www", "presents another certificate")
def another_server_in_front(lab: Lab) -> Planted:
    yield from profile(lab, virtual_servers=[front(lab)])


@planted("fail", "www", "presents another certificate")
def another_server_in_front_of_what_must_be_proved(lab: Lab) -> Planted:
    how = {"handshake": "required"}
    yield from profile(lab, virtual_servers=[front(lab)], verification=how)


@planted("warn", "www", "could not be verified", "")
def nobody_at_connect(lab: Lab) -> Planted:
    entry = {"name": "vs_www", "type": "load_balancing", "connect": "127.0.0.1:1"}
    yield from profile(lab, virtual_servers=[entry])


@planted("warn", "www", "the intermediate", "renew www")
def intermediate_that_ends(lab: Lab) -> Planted:
    key, end = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.timezone.utc)
    issuer = reissued(hierarchy()["CA DV R36"], end + dt.timedelta(days=9))
    names = ["ends.example.com"]
    certificate = leaf("ends.example.com", names, key=key)
    lab.appliance.install("ends", to_pem([certificate]), private_pem(key), [to_pem([issuer])])
    add(lab, "vs_ends")
    lab.appliance.bind("vs_ends", "ends")
    block = lab.certificate(name="ends", common_name="ends.example.com")
    del block["subject_alternative_names"]
    entry = {"name": "vs_ends", "type": "load_balancing"}
    verification = {"handshake": "off"}
    yield from profile(lab, certificate=block, virtual_servers=[entry], verification=verification)


@planted("warn", "www", "is not linked", "link it")
def certificate_without_its_issuer(lab: Lab) -> Planted:
    names = ["alone.example.com"]
    serve(lab.appliance, "alone", names[0], names, on=[("vs_alone", False)])
    block = lab.certificate(name="alone", common_name=names[0])
    del block["subject_alternative_names"]
    entry = {"name": "vs_alone", "type": "load_balancing"}
    yield from profile(lab, certificate=block, virtual_servers=[entry])


@planted("fail", "www", "enroll www")
def certificate_that_nobody_renews(lab: Lab) -> Planted:
    names = ["manual.example.com"]
    serve(lab.appliance, "manual", names[0], names, on=[("vs_manual", False)], days=(-100, 5))
    block = lab.certificate(name="manual", common_name=names[0])
    del block["subject_alternative_names"]
    entry = {"name": "vs_manual", "type": "load_balancing"}
    yield from profile(
        lab, certificate=block, virtual_servers=[entry], renewal={"auto_renew": False}
    )


@planted("fail", "www", "the profile asks for")
def profile_that_differs(lab: Lab) -> Planted:
    block = lab.certificate(subject_alternative_names=["more.example.com"])
    yield from profile(lab, certificate=block, renewal={"on_change": "report"})


@planted("fail", "www", "country", "two letters", exit_code=3)
def country_in_words(lab: Lab) -> Planted:
    yield from profile(lab, certificate=lab.certificate(country="England"))


@planted("fail", "www", "unknown key", "did you mean", exit_code=3)
def misspelt_key(lab: Lab) -> Planted:
    yield from profile(lab, verifycation={"handshake": "off"})


@planted("fail", "www", "there is no file", "", exit_code=3)
def appliance_that_no_file_describes(lab: Lab) -> Planted:
    yield from profile(lab, citrix="ns7")


@planted("fail", "two", "certificate.name", "")
def two_profiles_for_one_certkey(lab: Lab) -> Planted:
    both = {"citrix": "ns1", "certificate": lab.certificate(name="www")}
    lab.write_profile("two", **both)
    add(lab, "vs_three")
    entry = {"name": "vs_three", "type": "load_balancing"}
    third = {"citrix": "ns1", "virtual_servers": [entry]}
    lab.write_profile("three", **third, certificate=lab.certificate(name="three"))
    yield
    (lab.home / "profiles" / "two.yaml").unlink()
    (lab.home / "profiles" / "three.yaml").unlink()


@planted("fail", "www", "is damaged", "")
def damaged_record(lab: Lab) -> Planted:
    yield from replaced(lab.home / "state" / "profile-www.json", "{")


@planted("warn", "machine", "unknown key", "did you mean")
def broken_file_that_no_profile_uses(lab: Lab) -> Planted:
    path = lab.write_yaml("appliances/ns9.yaml", citrix(lab) | {"tiemout": 3})
    yield
    path.unlink()


# ----- What is promised of each ----------------------------------------------------------------


def configuration(lab: Lab) -> dict[pathlib.Path, bytes]:
    files = [*lab.home.glob("*.yaml"), *lab.home.glob("*/*.yaml"), lab.home / "ns_secret"]
    return {path: path.read_bytes() for path in files}


def put_back(lab: Lab, kept: dict[pathlib.Path, bytes]) -> None:
    """After a fault that was not mended the others shall still be tried."""
    for path, content in kept.items():
        path.write_bytes(content)
        path.chmod(0o600)
    for path in configuration(lab).keys() - kept.keys():
        path.unlink()


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.sample(5)
def test_a_planted_fault_is_found_and_mended_by_its_remedy(well: Lab, name: str) -> None:
    expected, fault = FAULTS[name]
    steps, kept = fault(well), configuration(well)
    next(steps)
    try:
        code, found = look_and_change_nothing(well)
        target = well.appliance.host if expected.target == "host" else expected.target
        told = [
            each
            for each in found
            if (each["status"], each["target"]) == (expected.status, target)
            and expected.says in f"{each['message']}: {each['remedy']}"
            and expected.remedy in each["remedy"]
        ]
        assert told, "\n".join(map(str, found))
        assert code == expected.exit_code, "\n".join(map(str, found))
        finish(steps, told[0]["remedy"])
        assert problems(well) == (0, [])
    finally:
        finish(steps, "")
        put_back(well, kept)


def look_and_change_nothing(lab: Lab) -> tuple[int, list[Document]]:
    """Check; the files, the appliance and SCM are as before, and were only read."""
    before, orders = state_of(lab), len(lab.scm.orders)
    running, writes = lab.appliance.running.copy(), writes_of(lab)
    found = problems(lab)
    assert state_of(lab) == before
    assert lab.appliance.running == running
    assert len(lab.scm.orders) == orders
    assert writes_of(lab) == writes
    return found


def test_the_list_is_long_enough() -> None:
    assert len(FAULTS) >= 40


# ----- The whole -------------------------------------------------------------------------------


def test_all_is_well(well: Lab) -> None:
    """What is well is a line for each target; -v shows each check, JSON all of them."""
    outcome = well("check")
    assert outcome.exit_code == 0
    lines = outcome.stdout.splitlines()
    host = well.appliance.host
    assert [line for line in lines if line.startswith(f"ok    {host}  ")]
    assert [line for line in lines if line.startswith("ok    scm  ")]
    assert [line for line in lines if line.startswith("ok    www  ")]
    assert re.fullmatch(r"\d+ checks: \d+ ok, 0 skip, [01] warn, 0 FAIL", lines[-1])
    every = well("-v", "check").stdout.splitlines()
    checks = well.json("check").document()["checks"]
    assert len(every) - 1 == len(checks) > len(lines)
    assert f'fingerprint: "{well.appliance.server.fingerprint}"' in "\n".join(every)


def test_problems_stand_last_and_say_what_mends_them(well: Lab) -> None:
    kept = configuration(well)
    well.write_yaml("appliances/ns1.yaml", citrix(well, verify=False, ca_bundle=None))
    (well.home / "scm.yaml").unlink()
    lines = well("check").stdout.splitlines()[:-1]
    put_back(well, kept)
    words = [line.split()[0] for line in lines]
    assert words == sorted(words, key=["ok", "skip", "warn", "FAIL"].index)
    assert lines[-1].startswith(
        f"FAIL  scm  {well.home}/scm.yaml: is missing: run citrixagent.py configure"
    )
    warning = f"warn  {well.appliance.host}  citrix.verify is false: nothing proves that "
    assert any(line.startswith(warning) for line in lines)


def test_everything_that_can_be_told_is_told(well: Lab) -> None:
    """One problem hides no other: SCM, appliance and profile each have theirs."""
    kept = configuration(well)
    well.write_scm(client_secret="wrong-secret")
    entries = [{"name": name, "type": "gateway"} for name in ("vs_a", "vs_b")]
    well.write_profile(citrix="ns1", virtual_servers=entries)
    well.write("profiles/broken.yaml", "citrix: ns1\n")
    well.appliance.running.bindings.append(Binding("vs_www", "ghost", ca=True))
    code, found = problems(well)
    well.appliance.running.bindings.pop()
    put_back(well, kept)
    assert code == 1
    targets = {each["target"] for each in found}
    assert targets == {"scm", "www", "broken", well.appliance.host}
    assert sum('virtual server "vs_' in each["message"] for each in found) == 2


def test_offline_only_files_are_looked_at(well: Lab) -> None:
    asked = len(well.appliance.server.requests), len(well.scm.server.requests)
    outcome = well.json("check", "--offline")
    assert outcome.exit_code == 0
    assert asked == (len(well.appliance.server.requests), len(well.scm.server.requests))
    skipped = [each for each in outcome.document()["checks"] if each["status"] == "skip"]
    assert len(skipped) == 1
    (well.home / "ns_secret").chmod(0o600)
    kept = configuration(well)
    (well.home / "ns_secret").unlink()
    assert problems(well, "--offline")[0] == 3
    put_back(well, kept)


def test_only_the_named_profiles_are_looked_at(well: Lab) -> None:
    kept = configuration(well)
    well.write("profiles/broken.yaml", "{}")
    well.write("appliances/ns9.yaml", "{}")
    assert problems(well, "www") == (0, [])
    assert problems(well)[0] == 1
    put_back(well, kept)
    assert well("check", "wwv").exit_code == 2


def test_without_a_profile_scm_and_the_appliances_are_looked_at(well: Lab) -> None:
    kept = configuration(well)
    (well.home / "profiles" / "www.yaml").unlink()
    outcome = well.json("check")
    put_back(well, kept)
    assert outcome.exit_code == 0
    checks = outcome.document()["checks"]
    assert {each["target"] for each in checks} == {"machine", "scm", well.appliance.host}
    (skipped,) = [each for each in checks if each["status"] == "skip"]
    assert "discover" in skipped["message"]


def test_a_package_that_is_too_old_is_named(well: Lab, tmp_path: pathlib.Path) -> None:
    """Packages of a distribution may be older than what the program was tested with."""
    folder = tmp_path / "click-8.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: click\nVersion: 8.0\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    outcome = well.fresh("check", "--offline", "--json", environment=environment)
    assert outcome.exit_code == 1
    (found,) = [each for each in outcome.document()["checks"] if each["status"] == "fail"]
    assert found["message"] == "click 8.0 is older than 8.1.6, which is needed"
    assert found["remedy"].endswith("-m pip install -U 'click>=8.1.6'")


def test_a_schedule_that_stopped_is_told(well: Lab) -> None:
    """A full run of the last 36 hours shows that something starts it."""
    (well.home / "state" / "last-run.json").unlink(missing_ok=True)

    def schedule() -> Document:
        checks = well.json("check", "--offline").document()["checks"]
        (found,) = [each for each in checks if each["name"] == "schedule"]
        assert isinstance(found, dict)
        return found

    assert schedule()["status"] == "warn"
    assert "cron or a timer" in schedule()["remedy"]
    assert well("run").exit_code == 0
    assert schedule()["status"] == "ok"
    with time_machine.travel(dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=37)):
        assert schedule()["status"] == "warn"


def test_what_could_not_be_put_back_is_told_before_it_is_due(lab: Lab) -> None:
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=None))
    for form, words in {**NO_WAY_BACK, "DER": "", "folder": ""}.items():
        load(lab, form, days=150)
        code, found = problems(lab)
        told = [each["message"] for each in found if each["name"] == "way back"]
        assert (code, [words in each for each in told]) == (0, [True] * bool(words))
        lab.appliance.running.bindings.clear()
        lab.appliance.running.certkeys.pop("www")
        lab.appliance.save()
    assert lab("run").exit_code == 0
    assert not [each for each in problems(lab)[1] if each["name"] == "way back"]


def _asks(path: str, request: simulated.Request) -> bool:
    return path in request.path


def test_a_look_that_is_not_known_is_told_and_stops_nothing(lab: Lab) -> None:
    """Refused, it is a warning with the right that lacks; not offered, it is not looked at."""
    load(lab, "folder", days=150)
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=None))
    looks = {"show vpn global": "vpnglobal", "places of www": "sslcertkey_binding/"}
    for what, path in looks.items():
        for code, status in ((2138, "warn"), (1090, "skip")):
            matches = functools.partial(_asks, path)
            fault = simulated.Fault("status", matches=matches, response=nitro_error(code), times=99)
            lab.appliance.server.faults[:] = [fault]
            outcome = lab.json("check")
            told = [each for each in outcome.document()["checks"] if each["name"] == what]
            assert (outcome.exit_code, {each["status"] for each in told}) == (0, {status})
            assert all("add system cmdPolicy" in each["remedy"] for each in told) == (code == 2138)
    lab.appliance.server.faults.clear()
    assert not {each["name"] for each in problems(lab)[1]} & set(looks)


def test_a_pair_with_one_node_down_is_told_and_the_rest_is_looked_at(lab: Lab) -> None:
    with HaPair() as pair:
        pair.add_user("citrixagent", PASSWORD)
        pair.add_virtual_server("vs_www", "load_balancing")
        lab.write_profile(citrix=lab.citrix(host=[pair.a.host, pair.b.host]))
        assert lab("run").exit_code == 0
        for down in (pair.b, pair.a):
            down.server.refuse()
            code, found = problems(lab)
            down.server.accept()
            (told, *more) = [each for each in found if down.host in each["message"]]
            assert (told["status"], code) == ("fail", 1), (told, more)
            assert "cannot be reached" in told["message"]
            assert "firewalls" in told["remedy"]
        assert problems(lab) == (0, [])


def test_what_stops_a_run_stops_it_beside_warnings(well: Lab) -> None:
    kept = configuration(well)
    steps = mode(well.home / "ns_secret", 0o004)
    next(steps)
    (well.home / "scm.yaml").unlink()
    code, found = problems(well)
    finish(steps, f"chmod 600 {well.home}/ns_secret")
    put_back(well, kept)
    assert code == 3
    assert {each["status"] for each in found} == {"warn", "fail"}


def test_mail_and_ping_are_tried_with_what_a_run_sends(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address itself is pinged, without a suffix; nothing is told that was not sent."""
    monkeypatch.setenv("SSL_CERT_FILE", str(lab.ca_file))
    lab.write_profile()
    box = Mailbox()
    with mail_server(box) as port, ping_server() as server:
        url = f"https://127.0.0.1:{server.port}/ping/abc?d=e"
        lab.write_yaml("agent.yaml", {"ping_url": url, "notify": mail(port)})
        outcome = lab.json("check", "--offline", "--notify")
        told = [each for each in outcome.document()["checks"] if "was sent" in each["message"]]
        assert (outcome.exit_code, [each["name"] for each in told]) == (0, ["mail", "ping_url"])
        assert [f"{r.method} {r.path}?{r.query}" for r in server.requests] == ["POST /ping/abc?d=e"]
        (letter,) = box.letters
        assert str(letter["Subject"]).startswith("citrixagent: ")
        assert "checks" in letter.get_content()
        box.answer = "550 no"
        outcome = lab.json("check", "--offline", "--notify")
        (failed,) = [each for each in outcome.document()["checks"] if each["status"] == "fail"]
        assert (outcome.exit_code, failed["name"]) == (1, "mail")


def test_a_test_goes_through_every_channel(well: Lab, tmp_path: pathlib.Path) -> None:
    """The program gets what a run gives it, with the command's name; what fails is told."""
    program = tmp_path / "tell"
    target = tmp_path / "told.json"
    program.write_text(f"#!/bin/sh\ncat > {target}\n")
    program.chmod(0o700)
    kept = configuration(well)
    well.write_yaml("agent.yaml", {"notify": {"command": str(program)}})
    outcome = well.json("check", "--offline", "--notify")
    assert outcome.exit_code == 0
    document = json.loads(target.read_text())
    assert (document["version"], document["command"]) == (1, "check")
    assert document["checks"]
    well.write_yaml("agent.yaml", {"ping_url": "http://127.0.0.1:1/x", "notify": {"command": "no"}})
    outcome = well.json("check", "--offline", "--notify")
    failed = {each["name"] for each in outcome.document()["checks"] if each["status"] == "fail"}
    assert (outcome.exit_code, failed) == (1, {"command", "ping_url"})
    (well.home / "agent.yaml").unlink()
    put_back(well, kept)
    skipped = well.json("check", "--offline", "--notify").document()["checks"]
    assert any("no channel is set" in each["message"] for each in skipped)


def test_a_dry_run_logs_in_to_scm(well: Lab) -> None:
    """What it says would be done can be done."""
    kept = configuration(well)
    well.write_scm(client_secret="wrong-secret")
    outcome = well.json("run", "--dry-run")
    assert outcome.exit_code == 1
    assert [error["kind"] for error in outcome.document()["errors"]] == ["auth"]
    put_back(well, kept)
    assert well("run", "--dry-run").exit_code == 0
    well.scm.admin.add_client("client", CLIENT_SECRET)
    well.write_scm(**ADMIN | {"org_id": 77})
    assert well("run", "--dry-run").exit_code == 1
    well.scm.add_client("client", CLIENT_SECRET)
    put_back(well, kept)
