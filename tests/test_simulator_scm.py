"""The simulator of SCM keeps the contract of the Enrollment API, and refuses what it refuses."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from simulators.ca import Authority, ChainStyle, awkward_serials, general_name, hierarchy
from simulators.scm import Account, Order, PendingStyle, Scm
from simulators.server import authority_pem

SECRET = "secret]with=odd,chars!&+ %"
HOUR = dt.timedelta(hours=1)
P256 = bytes.fromhex("2a8648ce3d030107")  # the object identifier of the curve, in DER
UNKNOWN_CURVE = P256[:-1] + b"\x09"
MAIL_NAME = x509.SubjectAlternativeName([x509.RFC822Name("a@b.example")])
BROKEN_NAMES = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"junk")
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
KEYS: dict[str, Callable[[], Key]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA-1024": lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024),
    "RSA-2048": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "RSA-2304": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2304),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@functools.cache
def key_of(kind: str) -> Key:
    return KEYS[kind]()


def der_of(
    *names: str,
    kind: str = "P-256",
    common: str = "a.example",
    extension: x509.ExtensionType | None = None,
) -> bytes:
    """Return a CSR in DER with a common name and alternative names."""
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if names:
        extension = x509.SubjectAlternativeName([general_name(name) for name in names])
    if extension:
        builder = builder.add_extension(extension, critical=False)
    key = key_of(kind)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        csr = builder.sign(key, None)
    else:
        csr = builder.sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.DER)


def csr_of(*names: str, kind: str = "P-256", common: str = "a.example") -> str:
    return base64.b64encode(der_of(*names, kind=kind, common=common)).decode()


def armoured(csr: str) -> str:
    loaded = x509.load_der_x509_csr(base64.b64decode(csr))
    return loaded.public_bytes(serialization.Encoding.PEM).decode()


def forged(csr: str) -> str:
    der = bytearray(base64.b64decode(csr))
    der[-1] ^= 1
    return base64.b64encode(der).decode()


def certificates(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def names_in(leaf: x509.Certificate) -> list[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def common_names(chain: Sequence[x509.Certificate]) -> list[str]:
    attributes = [c.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0] for c in chain]
    return [str(attribute.value) for attribute in attributes]


def public_bytes(holder: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return holder.public_key().public_bytes(serialization.Encoding.DER, form)


@dataclasses.dataclass
class Client:
    """Plain requests with a bearer token; every call returns the raw response."""

    scm: Scm
    session: requests.Session
    ca: str
    token: str = ""

    def ask_token(self, **form: str) -> requests.Response:
        known = {"grant_type": "client_credentials", "client_id": "id", "client_secret": SECRET}
        response = self.send("POST", self.scm.token_url, data=known | form)
        if response.ok:
            self.token = response.json()["access_token"]
        return response

    def call(
        self, method: str, path: str = "", body: object = None, **headers: str
    ) -> requests.Response:
        sent = {"Authorization": f"Bearer {self.token}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        payload = {"data" if isinstance(body, bytes) else "json": body}
        url = f"{self.scm.url}/api/v1/certificates{path}"
        return self.send(method, url, headers=sent, **payload)

    def send(self, method: str, url: str, **arguments: Any) -> requests.Response:
        return self.session.request(method, url, verify=self.ca, timeout=5, **arguments)

    def enroll(self, **body: object) -> str:
        response = self.call("POST", body={"csr": csr_of(), **body})
        assert response.status_code == 200, response.text
        return str(response.json()["certId"])

    def download(self, cert_id: str) -> list[x509.Certificate]:
        response = self.call("GET", f"/{cert_id}")
        assert response.status_code == 200, response.text
        return certificates(response.text)

    def status(self, cert_id: str) -> str:
        return str(self.call("GET", f"/{cert_id}/status").json()["status"])


def code_of(response: requests.Response) -> tuple[int, int]:
    body = response.json()
    assert set(body) == {"code", "description"}
    assert body["description"]
    return response.status_code, body["code"]


@pytest.fixture
def scm() -> Iterator[Scm]:
    with Scm() as simulator:
        simulator.add_client("id", SECRET)
        yield simulator


@pytest.fixture
def client(scm: Scm, tmp_path: pathlib.Path) -> Iterator[Client]:
    bundle = tmp_path / "ca.pem"
    bundle.write_text(authority_pem())
    with requests.Session() as session:
        session.trust_env = False  # neither a proxy nor ~/.netrc
        made = Client(scm, session, str(bundle))
        made.ask_token()
        yield made


# ----- Token --------------------------------------------------------------------------------------


def test_token(scm: Scm, client: Client) -> None:
    scm.token_lifetime = 77
    grant = client.ask_token().json()
    assert (grant["token_type"], grant["expires_in"]) == ("Bearer", 77)
    assert scm.tokens_issued == 2
    assert client.call("GET", "/1").status_code == 404


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "nobody"}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
    ],
)
def test_token_refused(
    scm: Scm, client: Client, form: dict[str, str], status: int, error: str
) -> None:
    response = client.ask_token(**form)
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert scm.token_failures == 1


@pytest.mark.parametrize(
    ("method", "form", "headers", "status"),
    [
        ("GET", None, {}, 405),
        ("POST", {"grant_type": "client_credentials"}, {}, 400),
        ("POST", {"grant_type": "client_credentials"}, {"Content-Type": "text/plain"}, 400),
        ("POST", {"grant_type": "client_credentials"}, {"Accept": "text/html"}, 400),
    ],
)
def test_token_request_malformed(
    scm: Scm,
    client: Client,
    method: str,
    form: dict[str, str] | None,
    headers: dict[str, str],
    status: int,
) -> None:
    response = client.send(method, scm.token_url, data=form, headers=headers)
    assert (response.status_code, response.json()["error"]) == (status, "invalid_request")


def test_unauthorized_names_the_token_endpoint(scm: Scm, client: Client) -> None:
    client.token = "stale"
    response = client.call("GET", "/1")
    assert code_of(response) == (401, -16)
    assert response.headers["WWW-Authenticate"] == f'Bearer authorization_uri="{scm.token_url}"'
    scm.authorization_uri = "https://elsewhere.example/token"
    challenge = client.call("GET", "/1").headers["WWW-Authenticate"]
    assert challenge == 'Bearer authorization_uri="https://elsewhere.example/token"'


@pytest.mark.parametrize("scheme", ["Basic", "bearer", ""])
def test_only_bearer_is_taken(client: Client, scheme: str) -> None:
    response = client.call("GET", "/1", Authorization=f"{scheme} {client.token}".strip())
    assert response.status_code == 401


def test_tokens_end(scm: Scm, client: Client) -> None:
    start = dt.datetime.now(dt.timezone.utc)
    scm.now = lambda: start + dt.timedelta(seconds=301)
    assert client.call("GET", "/1").status_code == 401
    client.ask_token()
    assert client.call("GET", "/1").status_code == 404
    scm.revoke_tokens()
    assert client.call("GET", "/1").status_code == 401


# ----- Orders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["P-256", "RSA-2048"])
@pytest.mark.sample(3)
def test_enroll_and_download(scm: Scm, client: Client, kind: str, strict: bool) -> None:
    scm.strict = strict
    now = dt.datetime(2027, 3, 1, 12, tzinfo=dt.timezone.utc)
    scm.now = lambda: now
    client.ask_token()
    cert_id = client.enroll(
        csr=csr_of("a.example", "b.example", kind=kind),
        subjAltNames=["b.example", "*.c.example", "192.0.2.1", "2001:db8::1"],
        comments="by test",
        externalRequester="x@y.example",
        customFields={"Owner": "NetOps"},
    )
    assert isinstance(cert_id, str)
    leaf, *above = client.download(cert_id)
    order = scm.order(cert_id)
    assert names_in(leaf) == [
        "a.example",
        "b.example",
        "*.c.example",
        "192.0.2.1",
        "2001:db8::1",
    ]
    assert public_bytes(leaf) == public_bytes(order.csr)
    assert leaf.not_valid_before_utc == now
    assert leaf.not_valid_after_utc == now + dt.timedelta(days=199, seconds=-1)
    assert common_names(above)[0] == ("CA DV R36" if kind == "RSA-2048" else "CA DV E36")
    assert (order.leaf, list(order.chain)) == (leaf, above[:1])
    assert (order.comments, order.external_requester) == ("by test", "x@y.example")
    assert (order.action, order.status, order.custom_fields) == (
        "enroll",
        "Issued",
        {"Owner": "NetOps"},
    )


def test_each_enrollment_is_an_order(scm: Scm, client: Client) -> None:
    assert client.enroll() != client.enroll()
    assert [order.action for order in scm.orders] == ["enroll", "enroll"]


def test_cert_id_as_number(scm: Scm, client: Client) -> None:
    scm.numeric_ids = True
    response = client.call("POST", body={"csr": csr_of()})
    assert response.json() == {"certId": int(scm.orders[0].cert_id)}


def test_armour_is_refused_by_the_strict_dialect(scm: Scm, client: Client) -> None:
    body = {"csr": armoured(csr_of())}
    assert client.call("POST", body=body).status_code == 200
    scm.strict = True
    assert code_of(client.call("POST", body=body)) == (400, -9)


@pytest.mark.parametrize(
    ("csr", "code"),
    [
        (lambda: "no base64!", -9),
        (lambda: base64.b64encode(b"no CSR").decode(), -10),
        (lambda: forged(csr_of()), -138),
        (lambda: csr_of(kind="Ed25519"), -11),
        (lambda: csr_of(kind="RSA-1024"), -141),
        (lambda: csr_of(kind="RSA-2304"), -13),
        (lambda: csr_of(kind="P-521"), -13),
        (lambda: csr_of("stray.example"), -138),
        (lambda: csr_of(common="My Server"), -138),
        (lambda: csr_of(common=""), -138),
        (lambda: base64.b64encode(der_of(extension=MAIL_NAME)).decode(), -138),
        (lambda: base64.b64encode(der_of(extension=BROKEN_NAMES)).decode(), -138),
        (lambda: base64.b64encode(der_of().replace(P256, UNKNOWN_CURVE)).decode(), -11),
        (lambda: "A" * 32768, -1002),
    ],
)
@pytest.mark.sample(3)
def test_csr_refused(scm: Scm, client: Client, csr: Callable[[], str], code: int) -> None:
    assert code_of(client.call("POST", body={"csr": csr()})) == (400, code)
    assert not scm.orders


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -1002),
        (b"\xff", -1002),
        (b'"csr"', -1002),
        ({}, -7),
        ({"csr": 1}, -1002),
        ({"csr": None}, -1002),
        ({"orgId": 1}, -1002),
        ({"subjAltNames": "a.example,b.example"}, -1002),
        ({"subjAltNames": [1]}, -1002),
        ({"subjAltNames": ["b.example", "B.example"]}, -1002),
        ({"subjAltNames": ["not a name"]}, -138),
        ({"subjAltNames": ["a.*.example"]}, -138),
        ({"comments": "x" * 1025}, -1002),
        ({"externalRequester": "x" * 513}, -1002),
        ({"customFields": [{"name": "Owner", "value": "NetOps"}]}, -1002),
        ({"customFields": {"Owner": 1}}, -1002),
    ],
)
@pytest.mark.sample(3)
def test_body_refused(scm: Scm, client: Client, body: object, code: int) -> None:
    whole = {"csr": csr_of(), **body} if isinstance(body, dict) and body else body
    response = client.call("POST", body=whole, Content_Type="application/json")
    assert code_of(response) == (400, code)
    assert not scm.orders


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "", None, {}, 405),
        ("PUT", "/1", {}, {}, 405),
        ("GET", "/1/renew", None, {}, 405),
        ("GET", "/1/unknown", None, {}, 404),
        ("GET", "/", None, {}, 404),
        ("POST", "", b"{}", {"Content_Type": "text/plain"}, 415),
        ("POST", "", {}, {"Accept": "text/html"}, 406),
        ("GET", "/1", None, {"Accept": "application/json"}, 406),
        ("GET", "/1?format=pem", None, {}, 400),
        ("POST", "/1/dcv-recheck", {}, {}, 400),
    ],
)
def test_request_refused(
    client: Client, method: str, path: str, body: object, headers: dict[str, str], status: int
) -> None:
    assert code_of(client.call(method, path, body, **headers)) == (status, -1002)


@pytest.mark.parametrize(
    ("settings", "code", "text"),
    [
        (
            {"validated_domains": ["b.example"]},
            -107,
            (
                "Domain Control Validation is either incomplete or expired for a.example. "
                "Please complete it before requesting a certificate."
            ),
        ),
        ({"mandatory_fields": ["Owner"]}, -62, "Mandatory custom field Owner is missing"),
        ({"keys": ["RSA-2048"]}, -170, "ECC keys are not allowed"),
    ],
)
def test_account_refuses(
    scm: Scm, client: Client, settings: dict[str, Any], code: int, text: str
) -> None:
    vars(scm.account).update(settings)
    response = client.call("POST", body={"csr": csr_of()})
    assert response.json() == {"code": code, "description": text}


def test_subdomains_and_wildcards_of_a_validated_domain(scm: Scm, client: Client) -> None:
    scm.account.validated_domains = ["example"]
    assert client.enroll(subjAltNames=["*.b.example", "c.example"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/77", None),
        ("GET", "/77/status", None),
        ("POST", "/77/dcv-recheck", None),
        ("POST", "/77/renew", None),
        ("POST", "/77/replace", {"csr": ""}),
        ("DELETE", "/77", {"message": "x"}),
    ],
)
def test_unknown_id(client: Client, method: str, path: str, body: object) -> None:
    assert code_of(client.call(method, path, body)) == (404, -5101)


def test_unknown_path(scm: Scm, client: Client) -> None:
    """It gets as far as no API: what answers has errors of its own kind."""
    response = client.send("GET", f"{scm.url}/api/v2/certificates")
    told = {"status": 404, "error": "Not Found", "path": "/api/v2/certificates"}
    assert (response.status_code, response.json()) == (404, told)


def test_orders_of_another_account_are_not_to_be_seen(scm: Scm, client: Client) -> None:
    cert_id = client.enroll()
    scm.add_client("other", SECRET, Account(term=46))
    client.ask_token(client_id="other")
    assert code_of(client.call("GET", f"/{cert_id}")) == (404, -5101)
    leaf = client.download(client.enroll())[0]
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 45


# ----- Waiting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "answers"),
    [
        (PendingStyle(), [(404, -103), (404, -109), (404, -103)]),
        (PendingStyle(400, [0]), [(400, 0)] * 3),
        (PendingStyle(400, [-1400, -183]), [(400, -1400), (400, -183), (400, -1400)]),
    ],
)
def test_pending(
    scm: Scm, client: Client, style: PendingStyle, answers: list[tuple[int, int]]
) -> None:
    scm.issue_after, scm.pending_style = 3, style
    cert_id = client.enroll()
    assert client.status(cert_id) == "Approved"
    assert [code_of(client.call("GET", f"/{cert_id}")) for _ in answers[:2]] == answers[:2]
    assert client.status(cert_id) == "Applied"
    assert code_of(client.call("GET", f"/{cert_id}")) == answers[2]
    assert client.download(cert_id)
    assert client.status(cert_id) == "Issued"


def test_issue_delay(scm: Scm, client: Client) -> None:
    scm.issue_delay = 60
    cert_id = client.enroll()
    start = dt.datetime.now(dt.timezone.utc)
    assert client.call("GET", f"/{cert_id}").status_code == 404
    scm.now = lambda: start + dt.timedelta(seconds=61)
    assert client.download(cert_id)


def test_one_order_can_take_longer(scm: Scm, client: Client) -> None:
    scm.issue_after = 1
    slow, fast = client.enroll(), client.enroll()
    scm.order(slow).issue_after = 2
    polls = [client.call("GET", f"/{cert_id}").status_code for cert_id in (slow, fast) * 2]
    assert polls == [404, 404, 404, 200]


def test_status_may_be_ahead_of_the_download(scm: Scm, client: Client) -> None:
    scm.status_ahead, scm.issue_after = True, 1
    cert_id = client.enroll()
    assert client.status(cert_id) == "Issued"
    assert client.call("GET", f"/{cert_id}").status_code == 404


def test_approval(scm: Scm, client: Client) -> None:
    scm.approval = "manual"
    cert_id = client.enroll()
    assert code_of(client.call("GET", f"/{cert_id}")) == (404, -103)
    assert client.status(cert_id) == "Requested"
    scm.order(cert_id).approve()
    assert client.download(cert_id)


def test_account_without_automatic_approval(scm: Scm, client: Client) -> None:
    scm.account.auto_approve = False
    assert client.status(client.enroll()) == "Requested"


@pytest.mark.parametrize(
    ("turn_down", "status"), [(Order.decline, "Declined"), (Order.reject, "Rejected")]
)
def test_turned_down(
    scm: Scm, client: Client, turn_down: Callable[[Order, str], None], status: str
) -> None:
    scm.approval = "manual"
    cert_id = client.enroll()
    turn_down(scm.order(cert_id), "not ours")
    assert client.status(cert_id) == status
    response = client.call("GET", f"/{cert_id}")
    assert code_of(response) == (400, -169)
    assert response.json()["description"].endswith("not ours")


def test_dcv_recheck(scm: Scm, client: Client) -> None:
    cert_id = client.enroll()
    assert client.call("POST", f"/{cert_id}/dcv-recheck").status_code == 202
    assert scm.order(cert_id).dcv_rechecks == 1


# ----- Successors ---------------------------------------------------------------------------------


@pytest.fixture
def later(scm: Scm, client: Client) -> Callable[[int], None]:
    """Return a function that moves SCM's clock and gets a token that is valid then."""
    start = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)

    def move(days: int) -> None:
        scm.now = lambda: start + dt.timedelta(days=days)
        client.ask_token()

    move(0)
    return move


@pytest.mark.parametrize(("action", "keeps_end"), [("renew", False), ("replace", True)])
def test_successor(
    scm: Scm, client: Client, later: Callable[[int], None], action: str, keeps_end: bool
) -> None:
    first = client.enroll(subjAltNames=["b.example"])
    old = client.download(first)[0]
    later(100)
    body = {"csr": csr_of(kind="RSA-2048"), "subjAltNames": ["c.example"], "comments": "again"}
    second = client.call("POST", f"/{first}/{action}", body).json()["certId"]
    new = client.download(second)[0]
    order = scm.order(second)
    assert (order.action, order.previous, order.comments) == (action, first, "again")
    assert names_in(new) == ["a.example", "c.example"]
    assert new.not_valid_before_utc == scm.now()
    assert (new.not_valid_after_utc == old.not_valid_after_utc) is keeps_end
    assert client.status(first) == ("Replaced" if keeps_end else "Issued")


def test_renewal_without_body_repeats_the_order(scm: Scm, client: Client) -> None:
    first = client.enroll(subjAltNames=["b.example"], externalRequester="x@y.example")
    second = client.call("POST", f"/{first}/renew").json()["certId"]
    one, two = scm.orders
    assert two.cert_id == second
    assert (two.csr, two.names, two.external_requester) == (
        one.csr,
        one.names,
        one.external_requester,
    )


@pytest.mark.parametrize(
    ("strict", "body", "code"),
    [
        (True, None, -1002),
        (True, {"csr": "", "customFields": {}}, -7),
        (True, {"csr": "", "profileId": 5001}, -7),
        (False, "", -1002),
        (False, {"profileId": 1}, -1021),
        (False, {"profileId": True}, -1002),
        (False, {"term": 365}, -36),
        (False, {"dcvMode": "FAX"}, -1002),
        (False, {"customFields": {}}, -62),
        (False, {"email": ""}, -1002),
    ],
)
def test_renewal_refused(scm: Scm, client: Client, strict: bool, body: object, code: int) -> None:
    cert_id = client.enroll(customFields={"Owner": "NetOps"})
    scm.strict, scm.account.mandatory_fields = strict, ["Owner"]
    response = client.call("POST", f"/{cert_id}/renew", body)
    assert response.status_code == (415 if strict and body is None else 400)
    assert response.json()["code"] == code


def test_renewal_that_satisfies_the_strict_dialect(scm: Scm, client: Client) -> None:
    scm.strict = True
    cert_id = client.enroll()
    body = {"profileId": 5001, "term": 199, "customFields": {}, "dcvMode": "CNAME"}
    assert client.call("POST", f"/{cert_id}/renew", body).status_code == 200


def test_renewal_depends_on_status_and_profile(scm: Scm, client: Client) -> None:
    scm.issue_after = 1
    cert_id = client.enroll()
    assert code_of(client.call("POST", f"/{cert_id}/renew")) == (400, -105)
    scm.order(cert_id).status = "Revoked"
    assert code_of(client.call("POST", f"/{cert_id}/renew")) == (400, -105)
    scm.account.may_renew_revoked = True
    assert client.call("POST", f"/{cert_id}/renew").status_code == 200
    scm.account.may_renew = False
    assert code_of(client.call("POST", f"/{cert_id}/renew")) == (400, -180)


def test_expired_can_be_renewed_but_not_replaced(
    client: Client, later: Callable[[int], None]
) -> None:
    cert_id = client.enroll()
    later(200)
    assert client.status(cert_id) == "Expired"
    replaced = client.call("POST", f"/{cert_id}/replace", {"csr": csr_of()})
    assert code_of(replaced) == (400, -130)
    assert client.call("POST", f"/{cert_id}/renew").status_code == 200


def test_replacement_that_comes_too_late_is_rejected(
    scm: Scm, client: Client, later: Callable[[int], None]
) -> None:
    first = client.enroll()
    scm.approval = "manual"
    body = {"csr": csr_of()}
    second = client.call("POST", f"/{first}/replace", body).json()["certId"]
    later(200)
    scm.order(second).approve()
    assert client.status(second) == "Rejected"


@pytest.mark.parametrize(
    ("body", "code"), [({}, -7), ({"csr": "", "profileId": 5001}, -1002), ({"csr": "!"}, -9)]
)
def test_replacement_refused(client: Client, body: object, code: int) -> None:
    cert_id = client.enroll()
    assert code_of(client.call("POST", f"/{cert_id}/replace", body)) == (400, code)


def test_private_certificates(scm: Scm, client: Client) -> None:
    scm.account.private = True
    cert_id = client.enroll()
    chain = client.download(cert_id)
    assert common_names(chain) == ["a.example", "Private CA", "Private Root"]
    replaced = client.call("POST", f"/{cert_id}/replace", {"csr": csr_of()})
    assert code_of(replaced) == (400, -1148)


# ----- Revocation ---------------------------------------------------------------------------------


def test_revoke(scm: Scm, client: Client) -> None:
    cert_id = client.enroll()
    body = {"message": "moved", "reasonCode": 4}
    response = client.call("DELETE", f"/{cert_id}", body)
    assert (response.status_code, response.content) == (200, b"")
    order = scm.order(cert_id)
    assert (order.revoked_reason, order.revoked_message) == (4, "moved")
    assert client.status(cert_id) == "Revoked"
    assert code_of(client.call("GET", f"/{cert_id}")) == (400, -110)
    assert code_of(client.call("DELETE", f"/{cert_id}", body)) == (400, -159)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"message": "x"}, 400, -102),
        ({"reasonCode": 4}, 400, -7),
        ({"message": ""}, 400, -1002),
        ({"message": "x" * 513}, 400, -1002),
        ({"message": "x", "reasonCode": 2}, 400, -1002),
        ({"message": "x", "reasonCode": True}, 400, -1002),
        ({"message": "x", "reasonCode": "4"}, 400, -1002),
        (None, 415, -1002),
    ],
)
def test_revocation_refused(scm: Scm, client: Client, body: object, status: int, code: int) -> None:
    scm.issue_after = 1
    cert_id = client.enroll()
    assert code_of(client.call("DELETE", f"/{cert_id}", body)) == (status, code)


# ----- Chains -------------------------------------------------------------------------------------

USERTRUST = ["a.example", "CA DV E36", "Root E46", "USERTrust"]


@pytest.mark.parametrize(
    ("style", "names"),
    [
        (ChainStyle(), USERTRUST),
        (ChainStyle(root=False), USERTRUST[:3]),
        (ChainStyle(cross=False), USERTRUST[:3]),
        (ChainStyle(root=False, cross=False), USERTRUST[:2]),
        (ChainStyle(order="root-first"), USERTRUST[::-1]),
        (ChainStyle(order="shuffled"), ["CA DV E36", "USERTrust", "a.example", "Root E46"]),
    ],
)
@pytest.mark.parametrize("crlf", [False, True])
def test_chain_styles(
    scm: Scm, client: Client, style: ChainStyle, names: list[str], crlf: bool
) -> None:
    scm.answer = dataclasses.replace(style, crlf=crlf)
    response = client.call("GET", f"/{client.enroll()}")
    assert response.headers["Content-Type"] == "application/x-pem-file"
    assert (b"\r\n" in response.content) is crlf
    chain = certificates(response.text)
    assert common_names(chain) == names
    ordered = {"leaf-first": chain, "root-first": chain[::-1]}.get(style.order, [])
    for issued, issuer in itertools.pairwise(ordered):
        issued.verify_directly_issued_by(issuer)
    roots = [certificate for certificate in chain if certificate.issuer == certificate.subject]
    assert len(roots) == style.root


def test_second_generation(scm: Scm, client: Client) -> None:
    first = client.enroll()
    scm.authority.generation = 37
    second = client.enroll(csr=csr_of(kind="RSA-2048"))
    assert common_names(client.download(first))[1] == "CA DV E36"
    assert common_names(client.download(second))[1] == "CA DV R37"


def test_leaf_is_a_server_certificate(client: Client) -> None:
    leaf, intermediate, *_ = client.download(client.enroll(csr=csr_of(kind="RSA-2048")))
    extensions = leaf.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_encipherment, usage.key_cert_sign) == (
        True,
        True,
        False,
    )
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    issuer_id = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = intermediate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert issuer_id.key_identifier == own.digest


@pytest.mark.parametrize(
    "name", [name for name, signer in hierarchy().items() if signer.issuer or signer.cross]
)
def test_hierarchy_is_signed(name: str) -> None:
    signer = hierarchy()[name]
    if signer.issuer:
        signer.certificate.verify_directly_issued_by(signer.issuer.certificate)
    if signer.cross:
        signer.cross.verify_directly_issued_by(hierarchy()["USERTrust"].certificate)
        assert signer.cross.subject == signer.certificate.subject
        assert public_bytes(signer.cross) == public_bytes(signer.certificate)


def test_awkward_serials() -> None:
    authority = Authority()
    authority.serials = awkward_serials()
    csr = x509.load_der_x509_csr(der_of())
    now = dt.datetime.now(dt.timezone.utc)
    first, second = (authority.issue(csr, ["a.example"], now, 46).serial_number for _ in range(2))
    assert len(f"{first:x}") == 31
    assert second.bit_length() == 128


# ----- Wrong answers ------------------------------------------------------------------------------


def tampered(scm: Scm, client: Client, how: str) -> list[x509.Certificate]:
    scm.tamper = how
    return client.download(client.enroll(subjAltNames=["b.example"]))


def test_other_key(scm: Scm, client: Client) -> None:
    leaf = tampered(scm, client, "other_key")[0]
    assert public_bytes(leaf) != public_bytes(scm.orders[0].csr)
    assert names_in(leaf) == ["a.example", "b.example"]


def test_missing_name(scm: Scm, client: Client) -> None:
    assert names_in(tampered(scm, client, "missing_name")[0]) == ["a.example"]
    assert names_in(client.download(client.enroll())[0]) == ["another.invalid"]


def test_expired(scm: Scm, client: Client) -> None:
    leaf, issuer, *_ = tampered(scm, client, "expired")
    assert leaf.not_valid_after_utc < scm.now() - 23 * HOUR
    leaf.verify_directly_issued_by(issuer)


def test_no_chain(scm: Scm, client: Client) -> None:
    assert common_names(tampered(scm, client, "no_chain")) == ["a.example"]


def test_broken_chain(scm: Scm, client: Client) -> None:
    leaf, impostor, *above = tampered(scm, client, "broken_chain")
    assert leaf.issuer == impostor.subject
    with pytest.raises(InvalidSignature):
        leaf.verify_directly_issued_by(impostor)
    impostor.verify_directly_issued_by(above[0])


def test_own_tampering(scm: Scm, client: Client) -> None:
    scm.tamper = lambda order, pem: f"order {order.cert_id}\n{pem}"
    cert_id = client.enroll()
    assert client.call("GET", f"/{cert_id}").text.startswith(f"order {cert_id}\n-----BEGIN")
