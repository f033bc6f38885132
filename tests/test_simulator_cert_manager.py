"""The Admin API of the simulated SCM, driven by Broad's client ``cert-manager``.

It keeps the simulator from drifting towards our own client. It sends what older clients send, so
the simulator has to be lenient for most of it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID
from simulators import foreign
from simulators.scm import Scm

pytestmark = pytest.mark.long  # its environment takes a while to install
REQUIREMENTS = ("cert-manager==4.0.0",)
SCRIPT = """
import json, sys
import cert_manager

login, arguments = json.loads(sys.argv[1]), json.loads(sys.argv[3])
certificates = cert_manager.SSL(client=cert_manager.Client(**login))
found = getattr(certificates, sys.argv[2])
print(json.dumps(found(**arguments) if callable(found) else found, default=list))
"""
SECRET = "secret]with=odd,chars!&+ %"
PENDING = "cert_manager._helpers.PendingError: certificate {} still in 'pending' state"
BAD_REQUEST = "requests.exceptions.HTTPError: 400 Client Error"


@pytest.fixture(scope="session")
def python() -> str:
    return foreign.python(REQUIREMENTS, oldest=11)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr_of(key: ec.EllipticCurvePrivateKey) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.example")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


@dataclasses.dataclass
class Client:
    """cert-manager in a process of its own for each call."""

    python: str
    scm: Scm
    folder: pathlib.Path
    login: dict[str, str]

    def __call__(self, name: str, **arguments: object) -> Any:
        done = self._run(name, arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def failure(self, name: str, **arguments: object) -> str:
        """Return the last line of a traceback."""
        done = self._run(name, arguments)
        assert done.returncode == 1, done.stdout
        return done.stderr.splitlines()[-1]

    def enrollment(self, **changes: object) -> dict[str, object]:
        return {
            "cert_type_name": "SSL",
            "csr": csr_of(new_key()),
            "term": 199,
            "org_id": 1,
            "subject_alt_names": ["a.example", "b.example"],
            **changes,
        }

    def key(self, cert_id: int) -> object:
        pem = self("collect", cert_id=cert_id, cert_format="x509CO")
        return x509.load_pem_x509_certificate(pem.encode()).public_key()

    def _run(self, name: str, arguments: dict[str, object]) -> foreign.Done:
        login = {"base_url": f"{self.scm.url}/api", **self.login}
        command = [self.python, "-c", SCRIPT, json.dumps(login), name, json.dumps(arguments)]
        return foreign.run(command, self.folder, {})


@pytest.fixture
def scm() -> Iterator[Scm]:
    with Scm() as simulator:
        simulator.admin.lenient = True
        yield simulator


@pytest.fixture
def client(scm: Scm, tmp_path: pathlib.Path, python: str) -> Client:
    scm.admin.add_login("acme", "admin", SECRET)
    login = {"login_uri": "acme", "username": "admin", "password": SECRET}
    return Client(python, scm, tmp_path, login)


@pytest.fixture
def token_client(scm: Scm, tmp_path: pathlib.Path, python: str) -> Client:
    scm.admin.add_client("id", SECRET)
    login = {"auth_url": scm.token_url, "client_id": "id", "client_secret": SECRET}
    return Client(python, scm, tmp_path, login)


def test_types(scm: Scm, client: Client, token_client: Client) -> None:
    scm.admin.lenient = False
    types = {"SSL": {"id": 2, "terms": [199, 99]}}
    assert client("types") == token_client("types") == types
    assert scm.tokens_issued == 1


def test_wrong_password(client: Client) -> None:
    client.login["password"] = "changed"
    assert client.failure("types").startswith("requests.exceptions.HTTPError: 401 Client Error")


def test_a_certificate_from_order_to_end(scm: Scm, client: Client) -> None:
    scm.issue_after = 1
    first_key, second_key = new_key(), new_key()
    ordered = client("enroll", **client.enrollment(csr=csr_of(first_key)))
    cert_id = ordered["sslId"]
    assert client("get", cert_id=cert_id)["status"] == "Approved"
    pending = client.failure("collect", cert_id=cert_id, cert_format="pem")
    assert pending == PENDING.format(cert_id)
    assert client.key(cert_id) == first_key.public_key()
    assert client("get", cert_id=cert_id)["status"] == "Issued"

    renewed = client("renew", cert_id=cert_id)["sslId"]
    assert [row["sslId"] for row in client("list", commonName="a.example")] == [cert_id, renewed]
    assert client("count", status="Issued") == 1

    scm.issue_after, scm.admin.replace_race = 0, 1
    changes = {"csr": csr_of(second_key), "common_name": "a.example", "reason": "new key"}
    names = {"subject_alt_names": "a.example,c.example"}
    assert client("replace", cert_id=cert_id, **changes, **names) == {}
    assert client.key(cert_id) == first_key.public_key()
    assert client.key(cert_id) == second_key.public_key()
    replaced = client("get", cert_id=cert_id)["subjectAlternativeNames"]
    assert replaced == ["a.example", "c.example"]

    assert client("revoke", cert_id=cert_id, reason="moved") == {}
    assert client("get", cert_id=cert_id)["status"] == "Revoked"
    assert [order.status for order in scm.orders] == ["Replaced", "Approved", "Revoked"]


def test_chain(client: Client) -> None:
    cert_id = client("enroll", **client.enrollment())["sslId"]
    leaf, *issuers = (
        certificate
        for form in ("pemco", "x509IOR")
        for certificate in x509.load_pem_x509_certificates(
            client("collect", cert_id=cert_id, cert_format=form).encode()
        )
    )
    leaf.verify_directly_issued_by(issuers[0])
    packed = client("collect", cert_id=cert_id, cert_format="base64")
    assert set(pkcs7.load_pem_pkcs7_certificates(packed.encode())) == {leaf, *issuers}


def test_paging(scm: Scm, client: Client) -> None:
    for _ in range(3):
        client("enroll", **client.enrollment())
    listed = [row["sslId"] for row in client("list", size=2)]
    assert listed == [int(order.cert_id) for order in scm.orders]
    assert [request.query for request in scm.server.requests[-2:]] == [
        "size=2&position=0",
        "size=2&position=2",
    ]


def test_mandatory_field(scm: Scm, client: Client) -> None:
    scm.admin.types[0].mandatory_fields = ["Owner"]
    assert client.failure("enroll", **client.enrollment()).startswith(
        "cert_manager._helpers.CustomFieldsError"
    )
    fields = [{"name": "Owner", "value": "NetOps"}]
    assert client("enroll", **client.enrollment(custom_fields=fields))
    assert scm.orders[0].custom_fields == {"Owner": "NetOps"}


def test_what_is_refused_without_leniency(scm: Scm, token_client: Client) -> None:
    client = token_client
    cert_id = client("enroll", **client.enrollment())["sslId"]
    scm.admin.lenient = False
    for name, arguments in {
        "enroll": client.enrollment(),
        "renew": {"cert_id": cert_id},
        "revoke": {"cert_id": cert_id, "reason": "moved"},
    }.items():
        assert client.failure(name, **arguments).startswith(BAD_REQUEST), name
    assert [order.status for order in scm.orders] == ["Issued"]
