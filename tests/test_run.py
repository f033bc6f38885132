"""The main job, end to end: from a profile to a certificate that is bound, served and saved."""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
from collections.abc import Iterator

import pytest
from conftest import Lab
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from simulators.brownfield import others
from simulators.ca import Authority, ChainStyle, awkward_serials, to_pem
from simulators.netscaler import NetScaler, Variant

KEY_TYPES = ("RSA-2048", "RSA-3072", "RSA-4096", "ECDSA-P256", "ECDSA-P384")
KINDS = ("load_balancing", "gateway", "content_switching", "authentication")
ALL_STEPS = [
    "create_key",
    "create_csr",
    "order",
    "collect",
    "upload",
    "install",
    "link",
    "bind",
    "save",
    "verify",
    "clean_up",
]


def key_type(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return f"ECDSA-P{key.key_size}"


def common_names(chain: list[x509.Certificate]) -> list[str]:
    return [
        str(each.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value) for each in chain
    ]


def serial_of(lab: Lab, certkey: str = "www") -> str:
    return lab.appliance.certkeys[certkey].serial


def is_write(call: str) -> bool:
    method, _, target = call.partition(" ")
    return method != "GET" and not target.endswith(("/login", "/logout"))


@pytest.mark.parametrize("wanted", KEY_TYPES)
@pytest.mark.sample(2)
def test_every_key_type_on_every_kind_of_virtual_server(lab: Lab, wanted: str) -> None:
    """After one run each listener presents leaf and intermediates; a reboot changes nothing."""
    servers = [lab.appliance.add_virtual_server(f"vs_{kind}", kind) for kind in KINDS]
    lab.write_profile(
        virtual_servers=[{"name": f"vs_{kind}", "type": kind} for kind in KINDS],
        certificate=lab.certificate(key_type=wanted),
    )
    outcome = lab("run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    (order,) = lab.scm.orders
    assert order.leaf is not None
    serial = f"{order.leaf.serial_number:X}".zfill(len(serial_of(lab)))
    end = order.leaf.not_valid_after_utc.date()
    assert outcome.stdout == f"www: enrolled, valid until {end} (serial {serial})\n"
    lab.appliance.reboot()
    assert serial_of(lab) == serial
    assert key_type(order.leaf) == wanted
    family = "R" if wanted.startswith("RSA") else "E"
    for server in servers:
        leaf, *issuers = server.handshake()
        assert leaf == order.leaf
        assert common_names(issuers) == [f"CA DV {family}36", f"Root {family}46"]
        assert all(each.issuer != each.subject for each in issuers)
    assert not lab.appliance.private_keys_read


def test_a_second_run_does_nothing_and_says_nothing(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    asked = len(lab.appliance.server.requests)
    outcome = lab("run")
    assert (outcome.exit_code, outcome.text) == (0, "")
    assert not any(map(is_write, lab.appliance.server.calls(asked)))
    assert len(lab.scm.orders) == 1


def test_the_json_document_of_a_run(lab: Lab) -> None:
    lab.write_profile()
    outcome = lab.json("run")
    document = outcome.document()
    assert list(document) == [
        "version",
        "command",
        "dry_run",
        "started",
        "finished",
        "exit_code",
        "profiles",
        "warnings",
        "errors",
    ]
    (order,) = lab.scm.orders
    assert order.leaf is not None
    assert document["profiles"] == [
        {
            "profile": "www",
            "appliance": lab.appliance.host,
            "certkey": "www",
            "outcome": "enrolled",
            "reason": "no certificate is installed",
            "steps": ALL_STEPS,
            "not_after": order.leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "serial": serial_of(lab),
            "cert_id": order.cert_id,
            "warnings": [],
            "error": None,
        }
    ]
    again = lab.json("run")
    assert (again.profile()["outcome"], again.profile()["steps"]) == ("unchanged", [])
    assert again.profile()["cert_id"] == order.cert_id


def test_one_profile_with_three_virtual_servers(lab: Lab) -> None:
    """One key, one order, three bindings."""
    names = {"vs_a": "load_balancing", "vs_b": "gateway", "vs_c": "content_switching"}
    servers = [lab.appliance.add_virtual_server(name, kind) for name, kind in names.items()]
    lab.write_profile(
        virtual_servers=[{"name": name, "type": kind} for name, kind in names.items()]
    )
    assert lab("run").exit_code == 0
    (order,) = lab.scm.orders
    assert [server.handshake()[0] for server in servers] == [order.leaf] * 3
    calls = lab.appliance.server.calls()
    assert len([call for call in calls if "key?action=create" in call]) == 1
    assert len([call for call in calls if call.startswith("PUT")]) == 3


def test_the_second_profile_is_handled_after_the_first_failed(lab: Lab) -> None:
    lab.write_profile("a", virtual_servers=[{"name": "vs_missing", "type": "gateway"}])
    lab.write_profile("b")
    outcome = lab("run")
    assert outcome.exit_code == 1
    host = lab.appliance.host
    assert outcome.stdout.splitlines()[1] == (
        f'a: failed: {host} has no gateway virtual server "vs_missing": check name and type under '
        "virtual_servers"
    )
    assert outcome.stdout.splitlines()[0].startswith("b: enrolled, ")
    assert len(lab.scm.orders) == 1


def test_a_dry_run_reads_and_plans_and_changes_nothing(lab: Lab) -> None:
    lab.write_profile()
    outcome = lab.json("run", "--dry-run")
    assert outcome.exit_code == 0
    assert outcome.document()["dry_run"] is True
    assert (outcome.profile()["outcome"], outcome.profile()["steps"]) == ("planned", ALL_STEPS)
    assert not any(map(is_write, lab.appliance.server.calls()))
    assert not lab.scm.orders
    assert lab("run", "--dry-run").stdout == (
        "www: would enroll (no certificate is installed): new ECDSA-P256 key, 1 order; vs_www\n"
        "1 order would be placed\n"
    )


def test_a_dry_run_fails_where_a_read_fails(lab: Lab) -> None:
    lab.write_profile(virtual_servers=[{"name": "vs_missing", "type": "gateway"}])
    assert lab("run", "--dry-run").exit_code == 1


@pytest.fixture
def served(lab: Lab) -> Lab:
    """A lab after a first run."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    return lab


def test_a_missing_binding_is_repaired(served: Lab) -> None:
    served.appliance.running.bindings.clear()
    served.appliance.save()
    outcome = served.json("run")
    assert outcome.profile()["outcome"] == "repaired"
    assert outcome.profile()["reason"] == "not bound to vs_www"
    assert outcome.profile()["steps"] == ["bind", "save", "verify", "clean_up"]
    served.appliance.reboot()
    server = served.appliance.virtual_servers["vs_www"]
    assert server.handshake()[0] == served.scm.orders[0].leaf
    assert len(served.scm.orders) == 1


def test_a_missing_link_is_repaired(served: Lab) -> None:
    certkey = served.appliance.certkeys["www"]
    served.appliance.running.put(dataclasses.replace(certkey, link=None))
    served.appliance.save()
    outcome = served.json("run")
    assert outcome.profile()["reason"] == "its chain is not linked"
    assert outcome.profile()["steps"] == ["link", "bind", "save", "verify", "clean_up"]
    served.appliance.reboot()
    assert len(served.appliance.virtual_servers["vs_www"].handshake()) == 3


def test_intermediates_that_were_deleted_are_put_back(served: Lab) -> None:
    running = served.appliance.running
    running.put(dataclasses.replace(running.certkeys["www"], link=None))
    for name in [name for name in running.certkeys if name != "www"]:
        del running.certkeys[name]
    served.appliance.save()
    outcome = served.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "repaired")
    assert len(served.appliance.virtual_servers["vs_www"].handshake()) == 3


def test_intermediates_are_found_by_content_under_any_name(lab: Lab) -> None:
    """What an administrator put there under other names is used, not uploaded again."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    now = lab.scm.now()
    leaf = lab.scm.authority.certify(key, ["a.example.com"], now, now + dt.timedelta(days=9))
    _, issuing, cross = lab.scm.authority.path(leaf, ChainStyle(root=False))
    for name, certificate in {"my-issuing-ca": issuing, "another name": cross}.items():
        lab.appliance.install(name, to_pem([certificate]))
    certkey = lab.appliance.certkeys["my-issuing-ca"]
    lab.appliance.running.put(dataclasses.replace(certkey, link="another name"))
    lab.appliance.save()
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert set(lab.appliance.certkeys) == {"www", "my-issuing-ca", "another name"}
    assert lab.appliance.certkeys["www"].link == "my-issuing-ca"


def test_requests_of_one_enrollment_with_the_chain_present(lab: Lab) -> None:
    lab.write_profile("first", virtual_servers=[{"name": "vs_www", "type": "load_balancing"}])
    assert lab("run").exit_code == 0
    lab.appliance.add_virtual_server("vs_two", "load_balancing")
    lab.write_profile("second", virtual_servers=[{"name": "vs_two", "type": "load_balancing"}])
    asked, ordered = len(lab.appliance.server.requests), len(lab.scm.server.requests)
    assert lab("run", "second").exit_code == 0
    assert len(lab.appliance.server.calls(asked)) <= 22
    assert [call.partition("?")[0] for call in lab.scm.server.calls(ordered)] == [
        "POST /auth/realms/apiclients/protocol/openid-connect/token",
        "POST /api/v1/certificates",
        "GET /api/v1/certificates/1000002",
    ]


def test_a_certificate_from_before_is_adopted_and_left_alone(lab: Lab) -> None:
    install_own(lab, days_left=100)
    outcome = lab.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "unchanged")
    assert outcome.profile()["cert_id"] is None
    assert not lab.scm.orders
    assert not any(map(is_write, lab.appliance.server.calls()))


def test_a_certificate_from_before_is_renewed_by_enrolling(lab: Lab) -> None:
    old = install_own(lab, days_left=20)
    outcome = lab.json("run")
    assert outcome.profile()["outcome"] == "renewed"
    assert outcome.profile()["reason"] == "20 days left, window is 66 days"
    (order,) = lab.scm.orders
    assert order.action == "enroll"
    server = lab.appliance.virtual_servers["vs_www"]
    assert server.handshake()[0] == order.leaf
    assert server.served == [old, serial_of(lab)]
    lab.appliance.reboot()
    assert len(server.handshake()) == 3


def install_own(lab: Lab, days_left: int) -> str:
    """Put a bound certificate for the profile on the appliance, as an administrator would have."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = lab.scm.now()
    end = now + dt.timedelta(days=days_left, hours=1)
    authority = Authority()
    names = ["www.example.com", "example.com", "192.0.2.10"]
    start = end - dt.timedelta(days=199)
    leaf = authority.certify(key.public_key(), names, start, end)
    chain = authority.path(leaf, ChainStyle(root=False))[1:]
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()
    lab.appliance.install("www", to_pem([leaf]), private, [to_pem([each]) for each in chain])
    lab.appliance.bind("vs_www", "www")
    lab.write_profile()
    return serial_of(lab)


def test_the_key_file_of_an_adopted_certificate_is_never_read(lab: Lab) -> None:
    """Certificate and key in one file: what sslcertkey tells must do."""
    install_own(lab, days_left=100)
    certkey = lab.appliance.certkeys["www"]
    folder = "/nsconfig/ssl/"
    both = lab.appliance.files[folder + "www.crt"] + lab.appliance.files[folder + "www.key"]
    lab.appliance.write(folder + "www.pem", both)
    lab.appliance.running.put(dataclasses.replace(certkey, cert="www.pem", key="www.pem"))
    certificate = lab.certificate(subject_alternative_names=None)
    lab.write_profile(certificate=certificate)
    outcome = lab.json("run")
    assert outcome.profile()["outcome"] == "unchanged"
    assert not lab.appliance.private_keys_read


@pytest.mark.parametrize(
    "style",
    [
        ChainStyle(order=order, root=root, cross=cross, crlf=crlf)
        for order in ("leaf-first", "root-first", "shuffled")
        for root in (True, False)
        for cross, crlf in ((True, False), (False, True))
    ],
    ids=str,
)
@pytest.mark.sample(5)
def test_answers_of_every_style_give_a_chain_without_root(lab: Lab, style: ChainStyle) -> None:
    lab.scm.answer = style
    lab.write_profile()
    assert lab("run").exit_code == 0
    leaf, *issuers = lab.appliance.virtual_servers["vs_www"].handshake()
    assert leaf == lab.scm.orders[0].leaf
    assert common_names(issuers)[0] == "CA DV E36"
    assert all(each.issuer != each.subject for each in issuers)


VARIANTS = {
    "13.0": ("13.0", Variant()),
    "14.1": ("14.1", Variant(sandns=True)),
    "lists": ("13.1", Variant(single_objects=False)),
    "bodies": ("13.1", Variant(write_bodies=True)),
    "strings": ("13.1", Variant(numbers_as_strings=True)),
    "omitted": ("13.1", Variant(omit_false=True)),
    "200": ("13.1", Variant(created=200)),
    "no file by name": ("13.1", Variant(download="args")),
    "form kept": ("13.1", Variant(update_form="keep")),
    "no paging of bindings": ("13.1", Variant(bulk_paging=False)),
    "bundles": ("13.1", Variant(bundles=True)),
    "no bundles": ("14.1", Variant(bundles=False)),
    "1155": ("13.1", Variant(missing_file=1155)),
    "258": ("13.1", Variant(missing_file=258)),
    "no file key": ("13.1", Variant(missing_file=None)),
    "1540 is 404": ("13.1", Variant(missing_certkey=404)),
    "link stays": ("13.1", Variant(update_link="keep")),
    "link refused": ("13.1", Variant(update_link="refuse")),
    "long names": ("14.1", Variant(certkey_name_limit=63)),
}


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def varied(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Lab]:
    """A lab whose appliance answers in one of the documented ways."""
    release, variant = request.param
    with NetScaler(release, variant) as appliance:
        appliance.add_virtual_server("vs_www", "load_balancing")
        appliance.add_user("citrixagent", lab.citrix()["password"])
        appliance.settle(others())
        lab.appliance = appliance
        yield lab
        assert not appliance.sessions


@pytest.mark.sample(3)
def test_documented_variants_give_the_same_result(varied: Lab) -> None:
    """Adopted, renewed with another issuer, then nothing to do: whatever the answers look like."""
    install_own(varied, days_left=20)
    varied.scm.authority.generation = 37
    outcome = varied.json("run")
    assert outcome.profile()["outcome"] == "renewed"
    assert outcome.profile()["warnings"] == []
    leaf, *issuers = varied.appliance.virtual_servers["vs_www"].handshake()
    assert leaf == varied.scm.orders[0].leaf
    assert common_names(issuers) == ["CA DV E37", "Root E46"]
    assert varied.appliance.saved
    assert varied("run").text == ""


def test_serials_with_leading_zeros_are_the_same_serial(lab: Lab) -> None:
    lab.scm.authority.serials = awkward_serials()
    for number in range(4):
        lab.appliance.add_virtual_server(f"vs_{number}", "gateway")
        servers = [{"name": f"vs_{number}", "type": "gateway"}]
        lab.write_profile(f"p{number}", virtual_servers=servers)
    assert lab("run").exit_code == 0
    outcome = lab("run")
    assert (outcome.exit_code, outcome.text) == (0, "")


def test_another_default_certificate_is_not_replaced_silently(lab: Lab) -> None:
    """Before anything is ordered the operator is told; --take-over replaces it and says so."""
    install_own(lab, days_left=100)
    lab.write_profile(certificate=lab.certificate(name="new"))
    outcome = lab.json("run")
    assert outcome.exit_code == 1
    assert outcome.profile()["error"] == {
        "kind": "state",
        "message": 'the virtual server "vs_www" holds the certkey "www" already: name it as '
        "certificate.name, unbind it, or run citrixagent.py run www --take-over",
    }
    assert not lab.scm.orders
    assert not any(map(is_write, lab.appliance.server.calls()))
    outcome = lab.json("run", "www", "--take-over")
    assert outcome.profile()["outcome"] == "enrolled"
    assert outcome.profile()["warnings"] == [
        'the certkey "www" was replaced on the virtual server "vs_www"'
    ]
    assert lab.appliance.virtual_servers["vs_www"].handshake()[0] == lab.scm.orders[0].leaf


def test_a_certificate_of_the_other_key_type_stays_bound(lab: Lab) -> None:
    install_own(lab, days_left=100)
    lab.write_profile(certificate=lab.certificate(name="rsa", key_type="RSA-2048"))
    assert lab("run").exit_code == 0
    server = lab.appliance.virtual_servers["vs_www"]
    assert key_type(server.handshake(signatures="ECDSA")[0]) == "ECDSA-P256"
    assert server.handshake(signatures="RSA")[0] == lab.scm.orders[0].leaf


def test_awkward_names_reach_the_appliance_whole(lab: Lab) -> None:
    name = "vs /?#%:@,& ü'"
    server = lab.appliance.add_virtual_server(name, "gateway")
    lab.write_profile(
        virtual_servers=[{"name": name, "type": "gateway"}],
        certificate=lab.certificate(name="a b#c:d@e=f.g-h"),
    )
    assert lab("run").exit_code == 0
    assert server.handshake()[0] == lab.scm.orders[0].leaf
    assert lab("run").text == ""


def test_long_profile_names_do_not_collide(lab: Lab) -> None:
    for end in ("one", "two"):
        lab.appliance.add_virtual_server(f"vs_{end}", "gateway")
        servers = [{"name": f"vs_{end}", "type": "gateway"}]
        lab.write_profile(f"a-profile-with-a-name-as-long-as-{end}", virtual_servers=servers)
    assert lab("run").exit_code == 0
    leaves = [name for name in lab.appliance.certkeys if not name.startswith("ca_")]
    assert len(set(leaves)) == 2
    assert {len(name) for name in leaves} == {31}
    assert lab("run").text == ""


def test_another_ssl_directory(lab: Lab) -> None:
    """Files are named with their path where the directory is not the appliance's own."""
    lab.write_profile(citrix=lab.citrix(ssl_directory="/nsconfig/ssl/"))
    assert lab("run").exit_code == 0
    assert all(path.startswith("/nsconfig/ssl/www-") for path in own_files(lab))


def own_files(lab: Lab) -> list[str]:
    return sorted(path for path in lab.appliance.files if "/ca_" not in path)


def test_files_left_on_the_appliance(served: Lab) -> None:
    """Key and certificate stay, the CSR goes."""
    assert [pathlib.PurePath(path).suffix for path in own_files(served)] == [".crt", ".key"]
