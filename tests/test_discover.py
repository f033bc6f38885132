"""The first day: profiles for the certificates that an appliance already has."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
import json
import stat
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import time_machine
import yaml
from conftest import PASSWORD, PROGRAM, Lab
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from simulators.appliance import pooled_rsa_key
from simulators.ca import general_name, hierarchy, to_pem
from simulators.certkeys import NOBODY
from simulators.netscaler import Binding, CertKey, NetScaler

Document = dict[str, Any]
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

SUBJECT = {
    NameOID.COUNTRY_NAME: "GB",
    NameOID.STATE_OR_PROVINCE_NAME: "England",
    NameOID.LOCALITY_NAME: "London",
    NameOID.ORGANIZATION_NAME: "Example Ltd",
}
OU, MAIL = NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.EMAIL_ADDRESS
COUNTRY, STATE, LOCALITY, ORGANIZATION = SUBJECT


def private_pem(key: Key) -> str:
    form = serialization.PrivateFormat.PKCS8
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def leaf(
    common_name: str | None,
    names: Sequence[str | x509.GeneralName] = (),
    *,
    key: Key,
    subject: dict[x509.ObjectIdentifier, str] | None = None,
    days: tuple[int, int] = (-10, 190),
    own: bool = False,
) -> x509.Certificate:
    """Return a certificate for a server: by an authority, or by itself."""
    signer = hierarchy()["CA DV R36"]
    parts = [x509.NameAttribute(oid, text) for oid, text in (subject or {}).items()]
    parts += [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(parts))
        .issuer_name(x509.Name(parts) if own else signer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
    )
    if names:
        general = [general_name(name) if isinstance(name, str) else name for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    return builder.sign(key if own else signer.key, hashes.SHA256())


def serve(
    box: NetScaler,
    certkey: str,
    common_name: str | None,
    names: Sequence[str | x509.GeneralName] = (),
    *,
    on: Sequence[tuple[str, bool]] = (),
    kind: str = "load_balancing",
    key: Key | None = None,
    **how: Any,
) -> None:
    """Install a certificate and bind it to virtual servers, which are made where they lack."""
    key = key or ec_key()
    certificate = leaf(common_name, names, key=key, **how)
    box.install(certkey, to_pem([certificate]), private_pem(key))
    for server, sni in on or [(f"vs {certkey}"[:60], False)]:
        if server not in box.virtual_servers:
            box.add_virtual_server(server, kind, sni=sni or bool(on))
        box.bind(server, certkey, sni=sni)


@pytest.fixture
def site(lab: Lab) -> Lab:
    """A lab whose appliance is described by a file of its own, and that has no profile.

    These tests bring what others have themselves, so that they can count it.
    """
    lab.appliance.settle(NOBODY)
    lab.write("ns_secret", PASSWORD)
    lab.write_yaml("appliances/ns1.yaml", lab.citrix(password=None, password_file="../ns_secret"))
    (lab.home / "scm.yaml").rename(lab.home / "scm.elsewhere")
    return lab


def found(document: Document, certkey: str) -> Document:
    (one,) = [each for each in document["profiles"] if each["certkey"] == certkey]
    assert isinstance(one, dict)
    return one


NASTY = [  # what an appliance may say, and YAML would take for something else
    "yes",
    "012",
    "12:30",
    "- x",
    "a: b",
    "# c",
    "*anchor",
    "!!python/object/apply:os.system [id]",
    "'\"",
    "{a: 1}",
    "null",
    "Müller \u202e gmbh",
]


def brownfield(box: NetScaler) -> None:
    """Give an appliance more than thirty certkeys of all forms."""
    box.variant = dataclasses.replace(box.variant, certkey_name_limit=63)
    kinds = ["load_balancing", "gateway", "content_switching", "authentication"]
    for number, kind in enumerate(kinds):
        name = f"{kind}-1"
        serve(
            box,
            name,
            f"{number}.example.com",
            [f"{number}.example.com"],
            kind=kind,
            subject=SUBJECT,
        )
    for size in (2048, 3072):
        rsa_key = pooled_rsa_key(size)
        names = ["rsa.example.com"]
        serve(box, f"rsa{size}", names[0], names, key=rsa_key, subject=SUBJECT)
    serve(
        box, "p384", "p.example.com", ["p.example.com"], key=ec_key(ec.SECP384R1()), subject=SUBJECT
    )
    serve(box, "p521", "p.example.com", ["p.example.com"], key=ec_key(ec.SECP521R1()))
    serve(box, "old-rsa", "o.example.com", ["o.example.com"], key=pooled_rsa_key(1024))
    serve(box, "dv", "dv.example.com", ["dv.example.com", "www.dv.example.com"])
    serve(box, "wild card", "*.example.com", ["*.example.com", "example.com"], subject=SUBJECT)
    serve(box, "address", "192.0.2.7", ["192.0.2.7", "2001:db8::7"], subject=SUBJECT)
    serve(box, "no-cn", None, ["first.example.com", "second.example.com"], subject=SUBJECT)
    serve(box, "text-cn", "The Shop", ["shop.example.com"], subject=SUBJECT)
    serve(box, "no-san", "nosan.example.com", subject=SUBJECT)
    serve(box, "no-name", "Just Words", subject=SUBJECT)
    other = [x509.RFC822Name("x@example.com"), x509.UniformResourceIdentifier("https://x/")]
    serve(box, "mixed", "mixed.example.com", ["mixed.example.com", *other], subject=SUBJECT)
    serve(box, "underscore", "u.example.com", ["u.example.com", "_a.example.com"], subject=SUBJECT)
    serve(box, "expired", "e.example.com", ["e.example.com"], days=(-200, -3), subject=SUBJECT)
    serve(box, "due", "d.example.com", ["d.example.com"], days=(-180, 20), subject=SUBJECT)
    serve(box, "soon", "s.example.com", ["s.example.com"], days=(-110, 80), subject=SUBJECT)
    serve(box, "own-1", "self.example.com", ["self.example.com"], own=True)
    serve(box, "ns-server-certificate", "default XYZ", own=True, on=[("vs own", False)])
    everything = SUBJECT | {OU: "Web", MAIL: "pki@example.com"}
    serve(box, "all-fields", "all.example.com", ["all.example.com"], subject=everything)
    for number, text in enumerate(NASTY):
        subject = SUBJECT | {ORGANIZATION: text, STATE: text, LOCALITY: text, OU: text}
        serve(box, f"nasty{number}", "n.example.com", ["n.example.com"], subject=subject)
    long = "l" * 63
    serve(box, long, "long.example.com", ["long.example.com"], subject=SUBJECT)
    serve(box, "a:b", "ab.example.com", ["ab.example.com"], subject=SUBJECT)
    serve(box, "a@b", "ab.example.com", ["ab.example.com"], subject=SUBJECT)
    both = [("vs both", False), ("vs both", True), ("vs second", True)]
    serve(box, "both", "both.example.com", ["both.example.com"], on=both, subject=SUBJECT)
    serve(
        box, "sni", "sni.example.com", ["sni.example.com"], on=[("vs both", True)], subject=SUBJECT
    )
    issuer = to_pem([hierarchy()["CA DV R36"].certificate])
    box.install("clients", issuer)
    box.running.bindings.append(Binding("vs both", "clients", ca=True))
    key = ec_key()
    unbound = leaf("unbound.example.com", ["unbound.example.com"], key=key)
    box.install("unbound", to_pem([unbound]), private_pem(key))
    for file in ("elsewhere.key", "combined.pem"):  # what may hold a private key is never read
        key = ec_key()
        text = to_pem([leaf("k.example.com", ["k.example.com"], key=key, subject=SUBJECT)])
        box.write(box.path(file), (text + private_pem(key)).encode())
        certkey = CertKey(file[:4], file, file, *box.load(file, file))
        box.running.put(certkey)
        box.bind(box.add_virtual_server(f"vs {file}", "load_balancing").name, file[:4])
    box.save()


LEFT_ALONE = {
    "CA binding": 1,
    "key type that profiles do not know": 2,
    "no name": 1,
    "self-signed": 1,
    "the appliance's own": 1,
}


def test_a_brownfield_appliance_is_described(site: Lab) -> None:
    """Right, complete or honestly not; afterwards a dry run finds nothing to order."""
    brownfield(site.appliance)
    assert len(site.appliance.certkeys) > 40
    before, saved = site.appliance.running.copy(), site.appliance.saved
    outcome = site.json("discover", "--write")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    document = outcome.document()
    assert (document["version"], document["command"], document["errors"]) == (1, "discover", [])
    assert document["left_alone"] == LEFT_ALONE
    assert site.appliance.running == before
    assert site.appliance.saved == saved
    assert [each["certkey"] for each in document["profiles"] if not each["written"]] == ["a@b"]
    incomplete = {each["certkey"] for each in document["profiles"] if not each["complete"]}
    # no organization; keys in their files; a file that is another's by now; a name too long to read
    assert incomplete == {"dv", "else", "comb", "a:b", "l" * 63}
    (site.home / "scm.elsewhere").rename(site.home / "scm.yaml")
    for each in [each for each in document["profiles"] if each["written"]]:
        file = site.home / each["file"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert yaml.safe_load(file.read_text()) == each["profile"]
        if not each["complete"]:
            file.unlink()
    run = site.json("run", "--dry-run").document()
    assert run["errors"] == []
    linked = [each for each in run["profiles"] if each["steps"][:1] == ["link"]]
    assert {each["reason"] for each in linked} == {"its chain is not linked"}
    outcomes = {each["certkey"]: each["outcome"] for each in run["profiles"]}
    outcomes |= {each["certkey"]: "unchanged" for each in linked}
    complete = {each["certkey"] for each in document["profiles"] if each["complete"]}
    assert outcomes.keys() == complete - {"a@b"}
    assert len(outcomes) > 30
    refused = {"expired", "no-san", "no-cn", "text-cn"}
    assert {name for name, what in outcomes.items() if what != "unchanged"} <= refused
    assert site.scm.orders == []


@pytest.fixture
def one(site: Lab) -> Lab:
    """A single certificate with all fields."""
    subject = SUBJECT | {OU: "Web", MAIL: "pki@example.com"}
    names = ["www.example.com", "example.com", "192.0.2.1"]
    on = [("vs_www", False), ("vs_sni", True)]
    site.appliance.add_virtual_server("vs_sni", "gateway", sni=True)
    serve(site.appliance, "shop", "WWW.example.com", names, on=on, subject=subject)
    return site


def test_a_profile_says_what_the_certificate_says(one: Lab) -> None:
    (profile,) = one.json("discover").document()["profiles"]
    assert profile["file"] == "profiles/shop.yaml"
    assert (profile["written"], profile["complete"], profile["notes"]) == (False, True, [])
    assert profile["profile"] == {
        "citrix": "ns1",
        "virtual_servers": [
            {"name": "vs_www", "type": "load_balancing", "sni": False},
            {"name": "vs_sni", "type": "gateway", "sni": True},
        ],
        "certificate": {
            "name": "shop",
            "common_name": "www.example.com",
            "subject_alternative_names": ["example.com", "192.0.2.1"],
            "organization": "Example Ltd",
            "organizational_unit": "Web",
            "locality": "London",
            "state": "England",
            "country": "GB",
            "email": "pki@example.com",
            "key_type": "ECDSA-P256",
        },
    }
    assert not (one.home / "profiles" / "shop.yaml").exists()
    assert one.appliance.server.requests
    assert all(each.method == "GET" or "log" in each.path for each in one.appliance.server.requests)


def test_without_write_the_profile_is_printed_as_it_would_be_written(one: Lab) -> None:
    outcome = one("discover", "ns1.yaml")
    assert outcome.exit_code == 0
    text, closing = outcome.stdout.rstrip("\n").rsplit("\n", 1)
    assert text.startswith("# profiles/shop.yaml\n")
    assert closing == "1 certificate without a profile; 0 left alone; 0 due within 30 days"
    assert one("discover", "--write").stdout.startswith("profiles/shop.yaml: written\n")
    assert (one.home / "profiles" / "shop.yaml").read_text() in outcome.stdout


def test_what_a_profile_names_is_not_described_again(one: Lab) -> None:
    assert one("discover", "--write").exit_code == 0
    assert one.json("discover").document()["profiles"] == []
    broken = one.home / "profiles" / "shop.yaml"
    broken.write_text(broken.read_text().replace("country: GB", "country: England"))
    assert one.json("discover").document()["profiles"] == []
    broken.write_text(broken.read_text().replace("citrix: ns1", "citrix: ns9"))
    assert one.json("discover").document()["profiles"] == []


@pytest.mark.parametrize("name", ["shop.yaml", "shop.yml"])
def test_nothing_is_overwritten(one: Lab, name: str) -> None:
    one.write(f"profiles/{name}", "# mine\n")
    (profile,) = one.json("discover", "--write").document()["profiles"]
    assert profile["written"] is False
    assert profile["notes"] == ["a profile of this name exists: it was not written"]
    assert [path.name for path in (one.home / "profiles").iterdir()] == [name]
    assert (one.home / "profiles" / name).read_text() == "# mine\n"


def test_a_link_at_the_place_of_a_profile_is_not_followed(one: Lab) -> None:
    (one.home / "profiles" / "shop.yaml").symlink_to(one.home / "elsewhere")
    assert not found(one.json("discover", "--write").document(), "shop")["written"]
    assert not (one.home / "elsewhere").exists()


def test_what_cannot_be_learned_is_a_comment_to_fill_in(site: Lab) -> None:
    serve(site.appliance, "dv", "dv.example.com", ["dv.example.com"])
    (profile,) = site.json("discover", "--write").document()["profiles"]
    assert profile["complete"] is False
    text = (site.home / "profiles" / "dv.yaml").read_text()
    lines = [
        "  # organization:   # required",
        "  # state:   # required",
        "  # country:   # required",
    ]
    assert "\n".join(lines) in text
    for line in lines:
        key = line.split()[1]
        text = text.replace(line, f"  {key} GB")
    (site.home / "profiles" / "dv.yaml").write_text(text)
    (site.home / "scm.elsewhere").rename(site.home / "scm.yaml")
    assert site.json("run", "--dry-run").profile("dv")["outcome"] == "unchanged"


def test_names_that_no_file_can_have(site: Lab) -> None:
    for certkey in ("a:b", "a b", "_.x", "plain"):
        serve(site.appliance, certkey, "x.example.com", ["x.example.com"], subject=SUBJECT)
    document = site.json("discover", "--write").document()
    files = {each["certkey"]: each["file"] for each in document["profiles"]}
    assert files == {
        "a:b": "profiles/ns1_a_b.yaml",
        "a b": "profiles/ns1_a_b.yaml",
        "_.x": "profiles/_.x.yaml",
        "plain": "profiles/plain.yaml",
    }
    assert sum(each["written"] for each in document["profiles"]) == 3


def test_one_certkey_on_two_appliances_gives_two_files(one: Lab) -> None:
    with NetScaler() as second:
        second.add_user("citrixagent", PASSWORD)
        serve(second, "shop", "two.example.com", ["two.example.com"], subject=SUBJECT)
        block = one.citrix(host=second.host, password=None, password_file="../ns_secret")
        one.write_yaml("appliances/ns2.yaml", block)
        document = one.json("discover", "--write").document()
        assert {each["file"] for each in document["profiles"]} == {
            "profiles/ns1_shop.yaml",
            "profiles/ns2_shop.yaml",
        }
        second.server.refuse()
        for file in (one.home / "profiles").iterdir():
            file.unlink()
        outcome = one.json("discover")
        assert outcome.exit_code == 1
        assert [error["kind"] for error in outcome.document()["errors"]] == ["unreachable"]
        assert [each["file"] for each in outcome.document()["profiles"]] == ["profiles/shop.yaml"]
        assert [each["certkey"] for each in one.json("discover", "ns1").document()["profiles"]]


def test_an_appliance_with_a_port_gives_a_name_that_a_file_can_have(one: Lab) -> None:
    """Two appliances that only profiles know, by their addresses."""
    (one.home / "appliances" / "ns1.yaml").unlink()
    with NetScaler() as second:
        second.add_user("citrixagent", PASSWORD)
        second.add_virtual_server("vs_www", "load_balancing")
        serve(second, "shop", "two.example.com", ["two.example.com"], subject=SUBJECT)
        one.write_profile("first")
        one.write_profile("second", citrix=one.citrix(host=second.host))
        files = {each["file"] for each in one.json("discover").document()["profiles"]}
        hosts = (one.appliance.host, second.host)
        assert files == {f"profiles/{host.replace(':', '_')}_shop.yaml" for host in hosts}


def test_a_full_disk_leaves_no_half_a_profile(one: Lab) -> None:
    words = [sys.executable, str(PROGRAM), "--home", str(one.home), "discover", "--write", "--json"]
    code = "import os, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); os.execv"
    command = [sys.executable, "-c", f"{code}({words[0]!r}, {words!r})"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    (error,) = document["errors"]
    file = one.home / "profiles" / "shop.yaml"
    assert error == {"kind": "config", "message": f"{file} cannot be written: File too large"}
    assert (done.returncode, found(document, "shop")["written"]) == (1, False)
    assert list((one.home / "profiles").iterdir()) == []
    assert found(one.json("discover", "--write").document(), "shop")["written"]


def test_thirty_days_to_the_second(site: Lab) -> None:
    """What falls due in thirty days is counted, a second later it is not."""
    serve(site.appliance, "www", "w.example.com", ["w.example.com"], days=(0, 90), subject=SUBJECT)
    held = site.appliance.certkeys["www"].certificate
    due = held.not_valid_before_utc + (held.not_valid_after_utc - held.not_valid_before_utc) * 2 / 3
    for early, counted in ((0, 1), (1, 0)):
        moment = due - dt.timedelta(days=30, seconds=early)
        with time_machine.travel(moment, tick=False):
            assert site.json("discover").document()["due_soon"] == counted


def test_an_unknown_appliance_is_wrong_use(one: Lab) -> None:
    outcome = one("discover", "ns2")
    assert outcome.exit_code == 2
    assert 'did you mean "ns1"?' in outcome.stderr


def test_without_an_appliance_there_is_nothing_to_look_at(lab: Lab) -> None:
    outcome = lab("discover")
    assert outcome.exit_code == 3
    assert "appliances/NAME.yaml" in outcome.stderr


def test_a_broken_appliance_file_hides_no_other(one: Lab) -> None:
    one.write("appliances/ns9.yaml", "hots: x\n")
    outcome = one.json("discover")
    assert outcome.exit_code == 1
    assert {error["kind"] for error in outcome.document()["errors"]} == {"config"}
    assert found(outcome.document(), "shop")


def test_an_appliance_that_only_a_profile_knows(one: Lab) -> None:
    """Its block is told without the password, which is copied nowhere."""
    (one.home / "appliances" / "ns1.yaml").unlink()
    one.write_profile("other")
    profile = found(one.json("discover", "--write").document(), "shop")
    assert (profile["written"], profile["complete"]) == (True, False)
    assert "password" not in profile["profile"]["citrix"]
    text = (one.home / profile["file"]).read_text()
    assert "  # password_file:   # required\n" in text
    assert PASSWORD not in text


def test_what_is_due_or_has_expired_is_not_renewed_by_the_first_run(site: Lab) -> None:
    serve(
        site.appliance, "due", "d.example.com", ["d.example.com"], days=(-180, 20), subject=SUBJECT
    )
    serve(
        site.appliance, "soon", "s.example.com", ["s.example.com"], days=(-110, 80), subject=SUBJECT
    )
    serve(
        site.appliance, "over", "o.example.com", ["o.example.com"], days=(-99, -1), subject=SUBJECT
    )
    serve(site.appliance, "new", "n.example.com", ["n.example.com"], subject=SUBJECT)
    document = site.json("discover").document()
    for certkey, word in (("due", "is due"), ("over", "has expired")):
        profile = found(document, certkey)
        assert profile["profile"]["renewal"] == {"auto_renew": False}
        assert word in profile["notes"][0]
    assert "renewal" not in found(document, "soon")["profile"]
    assert document["due_soon"] == 3


def test_another_issuer_is_named(site: Lab) -> None:
    serve(site.appliance, "www", "w.example.com", ["w.example.com"], subject=SUBJECT)
    key = ec_key()
    foreign = (
        x509.CertificateBuilder()
        .subject_name(leaf("x.example.com", key=key, subject=SUBJECT).subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Other\x1b[31m CA")]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=1))
        .not_valid_after(dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=300))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("x.example.com")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    site.appliance.install("foreign", to_pem([foreign]), private_pem(key))
    site.appliance.bind("vs_www", "foreign")
    site.write_profile(certificate=site.certificate(name="www"))
    notes = found(site.json("discover").document(), "foreign")["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("it was issued by Other")
    assert "not by Simulated Sectigo" in notes[0]
    outcome = site("discover", "--write")
    assert "\x1b" not in outcome.text
    assert "Other" not in (site.home / "profiles" / "foreign.yaml").read_text()


def test_what_the_appliance_says_never_becomes_yaml(site: Lab) -> None:
    """Each value comes back from the file as the text that it was."""
    for number, text in enumerate(NASTY):
        subject = SUBJECT | {ORGANIZATION: text}
        serve(site.appliance, f"n{number}", "n.example.com", ["n.example.com"], subject=subject)
    document = site.json("discover", "--write").document()
    for number, text in enumerate(NASTY):
        profile = found(document, f"n{number}")
        assert profile["complete"]
        written = (site.home / profile["file"]).read_text()
        assert yaml.safe_load(written)["certificate"]["organization"] == text
        assert "\u202e" not in written
    assert json.dumps(document)


def test_a_country_that_is_none_is_left_to_be_filled_in(site: Lab) -> None:
    subject = SUBJECT | {ORGANIZATION: "O" * 64, STATE: "line\nbreak"}
    serve(site.appliance, "odd", "o.example.com", ["o.example.com"], subject=subject)
    profile = found(site.json("discover", "--write").document(), "odd")
    assert "state" not in profile["profile"]["certificate"]
    assert not profile["complete"]
    assert "  # state:   # required\n" in (site.home / profile["file"]).read_text()


def test_a_look_that_is_refused_is_told_and_stops_nothing(one: Lab) -> None:
    one.appliance.add_user("few", PASSWORD, policy=r"^(?!show vpn )")
    one.write_yaml(
        "appliances/ns1.yaml",
        one.citrix(username="few", password=None, password_file="../ns_secret"),
    )
    outcome = one.json("discover")
    assert outcome.exit_code == 0
    document = outcome.document()
    assert "show vpn vserver" in document["warnings"][0]
    servers = found(document, "shop")["profile"]["virtual_servers"]
    assert [server["name"] for server in servers] == ["vs_www"]


def test_an_address_is_an_ip_address(site: Lab) -> None:
    address = str(ipaddress.ip_address("192.0.2.7"))
    serve(site.appliance, "ip", address, [address], subject=SUBJECT)
    certificate = found(site.json("discover").document(), "ip")["profile"]["certificate"]
    assert certificate["common_name"] == address


def test_defaults_give_what_a_certificate_does_not_tell(site: Lab) -> None:
    serve(site.appliance, "dv", "dv.example.com", ["dv.example.com"])
    serve(site.appliance, "full", "f.example.com", ["f.example.com"], subject=SUBJECT)
    subject = {"organization": "Default Ltd", "state": "Kent", "country": "GB"}
    site.write_yaml("agent.yaml", {"defaults": {"certificate": subject}})
    document = site.json("discover", "--write").document()
    assert all(each["complete"] for each in document["profiles"])
    assert "organization" not in found(document, "dv")["profile"]["certificate"]
    assert found(document, "full")["profile"]["certificate"]["organization"] == "Example Ltd"
    (site.home / "scm.elsewhere").rename(site.home / "scm.yaml")
    assert site.json("run", "--dry-run").profile("dv")["outcome"] == "unchanged"
    site.write("agent.yaml", "defaults: 3\n")
    assert site("discover").exit_code == 3
