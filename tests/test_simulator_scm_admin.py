"""The simulator of SCM keeps the contract of the Admin API, and refuses what it refuses."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID
from simulators.ca import ChainStyle, general_name
from simulators.scm import Check, Scm
from simulators.scm_admin import OLD_REVOKE, REVOKE, CertType, leaf_only, serial_number, whole
from simulators.server import Fault, authority_pem

START = dt.datetime(2027, 3, 1, 12, 30, 15, tzinfo=dt.timezone.utc)
SECRET = "secret]with=odd,chars!&+ %"
LOGIN = {"customerUri": "acme", "login": "admin", "password": "pass word"}
JSON_HEADER = {"Content-Type": "application/json"}
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@functools.cache
def key_of(kind: str) -> Key:
    """Return the key of a kind; what follows a blank makes another key of the same kind."""
    if kind.startswith("RSA"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(kind[4:8]))
    return ec.generate_private_key(ec.SECP256R1())


def csr_of(*names: str, kind: str = "P-256", common: str = "a.example") -> str:
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if names:
        general = x509.SubjectAlternativeName([general_name(name) for name in names])
        builder = builder.add_extension(general, critical=False)
    csr = builder.sign(key_of(kind), hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def bare(csr: str) -> str:
    return "".join(csr.splitlines()[1:-1])


def certificates(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def common_names(chain: Sequence[x509.Certificate]) -> list[str]:
    attributes = [c.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0] for c in chain]
    return [str(attribute.value) for attribute in attributes]


def names_in(leaf: x509.Certificate) -> list[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def code_of(response: requests.Response) -> tuple[int, int]:
    body = response.json()
    assert set(body) == {"code", "description"}
    assert body["description"]
    return response.status_code, body["code"]


@dataclasses.dataclass
class Client:
    """Plain requests with login headers; ``call`` returns the raw response."""

    scm: Scm
    session: requests.Session
    ca: str
    login: dict[str, str] = dataclasses.field(default_factory=lambda: dict(LOGIN))

    def call(
        self, method: str, path: str = "", body: object = None, **headers: str
    ) -> requests.Response:
        payload = {"data" if isinstance(body, bytes) else "json": body}
        url = f"{self.scm.url}/api/ssl/v1{path}"
        return self.send(method, url, headers=self.login | headers, **payload)

    def send(self, method: str, url: str, **arguments: Any) -> requests.Response:
        return self.session.request(method, url, verify=self.ca, timeout=5, **arguments)

    def token(self, client_id: str = "id") -> str:
        form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": SECRET}
        grant = self.send("POST", self.scm.token_url, data=form).json()
        return str(grant["access_token"])

    def good(
        self, method: str, path: str, body: object = None, status: int = 200
    ) -> requests.Response:
        response = self.call(method, path, body)
        assert response.status_code == status, response.text
        assert (response.content == b"") is (status == 204)
        return response

    def order(self, **body: object) -> requests.Response:
        known = {"orgId": 1, "csr": csr_of(), "certType": 2, "term": 199}
        wanted = {key: value for key, value in {**known, **body}.items() if value is not Ellipsis}
        return self.call("POST", "/enroll", wanted)

    def enroll(self, **body: object) -> int:
        response = self.order(**body)
        assert response.status_code == 200, response.text
        ssl_id = response.json()["sslId"]
        assert isinstance(ssl_id, int)
        return ssl_id

    def details(self, ssl_id: int) -> dict[str, Any]:
        return dict(self.good("GET", f"/{ssl_id}").json())

    def collect(self, ssl_id: int, form: str = "x509R") -> list[x509.Certificate]:
        return certificates(self.good("GET", f"/collect/{ssl_id}?format={form}").text)

    def rows(self, query: str = "") -> list[dict[str, Any]]:
        return list(self.good("GET", query and f"?{query}").json())

    def ids(self, query: str = "") -> list[int]:
        return [row["sslId"] for row in self.rows(query)]


@pytest.fixture
def scm() -> Iterator[Scm]:
    with Scm() as simulator:
        simulator.now = lambda: START
        simulator.admin.add_login(*LOGIN.values())
        simulator.admin.add_client("id", SECRET)
        yield simulator


@pytest.fixture
def client(scm: Scm, tmp_path: pathlib.Path) -> Iterator[Client]:
    bundle = tmp_path / "ca.pem"
    bundle.write_text(authority_pem())
    with requests.Session() as session:
        session.trust_env = False  # neither a proxy nor ~/.netrc
        yield Client(scm, session, str(bundle))


# ----- Logging in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [*LOGIN, None])
@pytest.mark.parametrize("value", ["other", None])
def test_all_login_headers_count(
    scm: Scm, client: Client, changed: str | None, value: str | None
) -> None:
    if changed:
        client.login = {key: item for key, item in LOGIN.items() if key != changed}
        client.login |= {changed: value} if value else {}
    response = client.call("GET", "/types")
    if changed is None:
        assert response.status_code == 200
        return
    assert response.status_code == 401
    assert response.json() == {"code": -16, "description": "Unknown user"}
    assert response.headers["WWW-Authenticate"] == f'Bearer authorization_uri="{scm.token_url}"'


def test_token_of_an_administrator(scm: Scm, client: Client) -> None:
    client.login = {"Authorization": f"Bearer {client.token()}"}
    client.enroll()
    scm.revoke_tokens()
    assert code_of(client.call("GET", "/types")) == (401, -16)


def test_a_token_counts_before_login_headers(client: Client) -> None:
    assert code_of(client.call("GET", "/types", Authorization="Bearer stale")) == (401, -16)


def test_credentials_of_one_api_are_none_of_the_other(scm: Scm, client: Client) -> None:
    scm.add_client("rest", SECRET)
    client.login = {"Authorization": f"Bearer {client.token('rest')}"}
    assert code_of(client.call("GET", "/types")) == (401, -16)
    for headers in ({"Authorization": f"Bearer {client.token('id')}"}, LOGIN):
        url = f"{scm.url}/api/v1/certificates"
        assert code_of(client.send("POST", url, json={}, headers=headers)) == (401, -16)


# ----- Requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("PUT", "", {}, {}, 405),
        ("POST", "/1", {}, {}, 405),
        ("GET", "/enroll", None, {}, 405),
        ("POST", "/enroll", b"{}", {"Content-Type": "text/plain"}, 415),
        ("POST", "/enroll", {}, {"Accept": "text/html"}, 406),
        ("GET", "/collect/1", None, {"Accept": "application/json"}, 406),
        ("GET", "/types", {}, {}, 400),
        ("GET", "/types?size=1", None, {}, 400),
        ("GET", "/types?organizationId=x", None, {}, 400),
        ("GET", "/collect/1/pem?format=pem", None, {}, 400),
        ("GET", "?size=1&size=2", None, {}, 400),
        ("GET", "?size=201", None, {}, 400),
        ("GET", "?size=-1", None, {}, 400),
        ("GET", "?position=x", None, {}, 400),
        ("GET", "?status=issued", None, {}, 400),
        ("GET", "?name=a.example", None, {}, 400),
    ],
)
def test_request_refused(
    client: Client, method: str, path: str, body: object, headers: dict[str, str], status: int
) -> None:
    assert code_of(client.call(method, path, body, **headers)) == (status, -1002)


@pytest.mark.parametrize("path", ["/unknown", "/collect/x", "/"])
def test_unknown_path(client: Client, path: str) -> None:
    """It gets as far as no API: what answers has errors of its own kind."""
    response = client.call("GET", path)
    told = {"status": 404, "error": "Not Found", "path": f"/api/ssl/v1{path}"}
    assert (response.status_code, response.json()) == (404, told)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/77", None),
        ("DELETE", "/77", None),
        ("GET", "/collect/77", None),
        ("POST", "/renewById/77", {}),
        ("POST", "/renew/77", {}),
        ("POST", "/replace/77", {}),
        ("POST", "/revoke/77", {}),
        ("POST", "/revoke/serial/77", {}),
        ("POST", "/approve/77", {}),
        ("POST", "/decline/77", {}),
    ],
)
@pytest.mark.sample(3)
def test_unknown_id(client: Client, method: str, path: str, body: object) -> None:
    assert code_of(client.call(method, path, body)) == (404, -5101)


def test_orders_of_rest_accounts_are_not_to_be_seen(scm: Scm, client: Client) -> None:
    scm.add_client("rest", SECRET)
    headers = {"Authorization": f"Bearer {client.token('rest')}"}
    url = f"{scm.url}/api/v1/certificates"
    placed = client.send("POST", url, json={"csr": bare(csr_of())}, headers=headers).json()
    assert code_of(client.call("GET", f"/{placed['certId']}")) == (404, -5101)
    other = client.send("GET", f"{url}/{client.enroll()}", headers=headers)
    assert code_of(other) == (404, -5101)


# ----- Types --------------------------------------------------------------------------------------


def test_types(client: Client) -> None:
    assert client.good("GET", "/types").json() == [
        {
            "id": 2,
            "name": "SSL",
            "description": "A server certificate",
            "terms": [199, 99],
            "keyTypes": {"RSA": ["2048", "3072", "4096"], "EC": ["P-256", "P-384"]},
            "useSecondaryOrgName": False,
        }
    ]


def test_types_of_an_organization(scm: Scm, client: Client) -> None:
    scm.admin.organizations = [1, 5]
    scm.admin.types.append(CertType(profile=3, name="EV", keys=["RSA-2048"], organizations=[5]))
    for query, ids in (("", [2, 3]), ("?organizationId=1", [2]), ("?organizationId=5", [2, 3])):
        assert [kind["id"] for kind in client.good("GET", f"/types{query}").json()] == ids
    assert code_of(client.call("GET", "/types?organizationId=6")) == (400, -639)
    assert client.order(certType=3).json()["code"] == -1023
    assert client.order(certType=3, orgId=5).json()["code"] == -170
    assert client.enroll(certType=3, orgId=5, csr=csr_of(kind="RSA-2048"))


def test_custom_fields(scm: Scm, client: Client) -> None:
    assert client.good("GET", "/customFields").json() == []
    scm.admin.types[0].mandatory_fields = ["Owner"]
    fields = [{"id": 1, "name": "Owner", "mandatory": True}]
    assert client.good("GET", "/customFields").json() == fields
    assert client.order().json()["code"] == -62
    assert client.enroll(customFields=[{"name": "Owner", "value": "NetOps"}])


# ----- Enrollment ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, bare])
def test_enroll(scm: Scm, client: Client, form: Callable[[str], str]) -> None:
    response = client.order(
        csr=form(csr_of("a.example", "b.example")),
        term=99,
        subjAltNames="a.example,b.example,192.0.2.1",
        comments="by test",
        externalRequester="x@y.example",
        customFields=[{"name": "Owner", "value": "NetOps"}],
        dcvMode="CNAME",
        dcvEmail="x@y.example",
    )
    (order,) = scm.orders
    answered = response.json()
    assert answered["sslId"] == int(order.cert_id)
    assert len(answered["renewId"]) == 20
    assert (order.action, order.comments) == ("enroll", "by test")
    leaf = client.collect(answered["sslId"])[0]
    assert names_in(leaf) == ["a.example", "b.example", "192.0.2.1"]
    assert leaf.public_key() == key_of("P-256").public_key()
    assert leaf.not_valid_after_utc == START + dt.timedelta(days=99, seconds=-1)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"csr": ...}, -7),
        ({"orgId": ...}, -7),
        ({"certType": ...}, -7),
        ({"term": ...}, -7),
        ({"orgId": "1"}, -1002),
        ({"orgId": 7}, -639),
        ({"certType": 7}, -1021),
        ({"term": 365}, -36),
        ({"term": 199.0}, -1002),
        ({"csr": "no base64!"}, -9),
        ({"subjAltNames": ["b.example"]}, -1002),
        ({"subjAltNames": None}, -1002),
        ({"subjAltNames": ""}, -138),
        ({"subjAltNames": "b.example, c.example"}, -138),
        ({"subjAltNames": "b.example,b.example"}, -1002),
        ({"comments": "x" * 1025}, -1002),
        ({"externalRequester": None}, -1002),
        ({"customFields": {"Owner": "NetOps"}}, -1002),
        ({"customFields": [{"name": "Owner"}]}, -1002),
        ({"customFields": [{"name": "Owner", "value": "a"}] * 2}, -1002),
        ({"dcvMode": "FAX"}, -1002),
        ({"numberServers": 1}, -1002),
        ({"certId": "1"}, -1002),
    ],
)
@pytest.mark.sample(3)
def test_enrollment_refused(scm: Scm, client: Client, body: dict[str, object], code: int) -> None:
    assert code_of(client.order(**body)) == (400, code)
    assert not scm.orders


def test_domains_must_be_validated(scm: Scm, client: Client) -> None:
    scm.admin.types[0].validated_domains = ["b.example"]
    assert code_of(client.order()) == (400, -107)


def test_lenient_dialect(scm: Scm, client: Client) -> None:
    scm.admin.lenient = True
    old = {"numberServers": 1, "serverType": -1, "subjAltNames": None, "externalRequester": None}
    ssl_id = client.enroll(**old)
    assert client.call("GET", f"/collect/{ssl_id}", Accept="application/json").status_code == 200
    assert client.order(csr=None).json()["code"] == -7
    assert client.order(unknown=1).json()["code"] == -1002
    assert client.good("POST", f"/renewById/{ssl_id}", b'""').json()["sslId"] == ssl_id + 1
    client.good("POST", f"/revoke/{ssl_id}", {"reason": "old"}, status=204)
    assert scm.orders[0].revoked_reason == 0


# ----- Details and list ---------------------------------------------------------------------------


def test_details(scm: Scm, client: Client) -> None:
    scm.issue_after = 1
    ssl_id = client.enroll(
        csr=csr_of(kind="RSA-2048"),
        subjAltNames="b.example",
        comments="by test",
        externalRequester="x@y.example",
        customFields=[{"name": "Owner", "value": "NetOps"}],
    )
    asked = {
        "id": ssl_id,
        "sslId": ssl_id,
        "commonName": "a.example",
        "subjectAlternativeNames": ["a.example", "b.example"],
        "orgId": 1,
        "status": "Approved",
        "vendor": "Sectigo",
        "certType": client.good("GET", "/types").json()[0],
        "term": 199,
        "requested": "03/01/2027",
        "renewed": False,
        "keyType": "RSA - 2048",
        "comments": "by test",
        "externalRequester": "x@y.example",
        "customFields": [{"name": "Owner", "value": "NetOps"}],
    }
    assert client.details(ssl_id) == asked
    client.call("GET", f"/collect/{ssl_id}")
    leaf = client.collect(ssl_id)[0]
    assert client.details(ssl_id) == asked | {
        "status": "Issued",
        "issued": "03/01/2027",
        "expires": "09/16/2027",
        "serialNumber": serial_number(leaf),
    }


def test_details_without_a_csr(client: Client) -> None:
    assert "CERTIFICATE REQUEST" not in client.good("GET", f"/{client.enroll()}").text


def test_date_format(client: Client) -> None:
    ssl_id = client.enroll()
    details = client.good("GET", f"/{ssl_id}?dateFormat=ISO_HMS").json()
    assert details["requested"] == "2027-03-01 12:30:15"
    assert code_of(client.call("GET", f"/{ssl_id}?dateFormat=HMS")) == (400, -1002)


def test_list(scm: Scm, client: Client) -> None:
    scm.approval = "manual"
    first = client.enroll(subjAltNames="b.example", externalRequester="x@y.example")
    second = client.enroll(csr=csr_of(common="other.example"), term=99)
    scm.order(str(first)).approve()
    one, two = client.rows()
    assert two == {
        "sslId": second,
        "commonName": "other.example",
        "subjectAlternativeNames": ["other.example"],
    }
    serial = one.pop("serialNumber")
    assert one == {
        "sslId": first,
        "commonName": "a.example",
        "subjectAlternativeNames": ["a.example", "b.example"],
    }
    assert serial == serial_number(client.collect(first)[0])
    for query, ids in {
        "commonName=A.example": [first],
        "commonName=example": [first, second],
        "commonName=b.example": [],
        "subjectAlternativeName=b.example": [first],
        f"serialNumber={serial}": [first],
        "serialNumber=00": [],
        "status=Issued": [first],
        "status=Requested": [second],
        "status=SA+Approved": [],
        "orgId=1&sslTypeId=2": [first, second],
        "orgId=2": [],
        "sslTypeId=3": [],
        "externalRequester=x@y.example": [first],
        "commonName=example&status=Requested": [second],
    }.items():
        assert client.ids(query) == ids, query


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1, 2]),
        ("?size=2", [0, 1]),
        ("?size=2&position=2", [2]),
        ("?size=200&position=3", []),
        ("?size=0", []),
    ],
)
def test_pages(client: Client, query: str, expected: list[int]) -> None:
    ids = [client.enroll() for _ in range(3)]
    response = client.good("GET", query)
    assert [ids.index(row["sslId"]) for row in response.json()] == expected
    assert response.headers["X-Total-Count"] == "3"


def test_pages_may_be_shorter_than_asked_for(scm: Scm, client: Client) -> None:
    ids = [client.enroll() for _ in range(3)]
    scm.admin.page = 2
    response = client.good("GET", "?size=200")
    assert response.headers["X-Total-Count"] == "3"
    assert [row["sslId"] for row in response.json()] == ids[:2]
    assert client.ids("size=200&position=2") == ids[2:]


def test_versions(scm: Scm, client: Client) -> None:
    """Both have the same operations; a release may have only one of them."""
    url = f"{scm.url}/api/ssl/v2/types"
    first = client.call("GET", "/types")
    assert client.send("GET", url, headers=LOGIN).json() == first.json()
    scm.admin.versions = ("v2",)
    assert client.send("GET", url, headers=LOGIN).status_code == 200
    gone = client.call("GET", "/types")
    told = {"status": 404, "error": "Not Found", "path": "/api/ssl/v1/types"}
    assert (gone.status_code, gone.json()) == (404, told)


def test_count(client: Client) -> None:
    client.enroll()
    response = client.call("HEAD", "?commonName=a.example")
    assert (response.headers["X-Total-Count"], response.content) == ("1", b"")


def test_a_lost_order_is_found_by_its_key(scm: Scm, client: Client) -> None:
    client.enroll()
    scm.server.faults.append(Fault("lost", matches=lambda r: r.path.endswith("/enroll")))
    with pytest.raises(requests.ConnectionError):
        client.enroll(csr=csr_of(kind="P-256 lost"))
    keys = {i: client.collect(i)[0].public_key() for i in client.ids("commonName=a.example")}
    lost = key_of("P-256 lost").public_key()
    assert [i for i, key in keys.items() if key == lost] == [int(scm.orders[1].cert_id)]


# ----- Waiting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [[0, -1400, -183], [0], [-183]])
def test_pending(scm: Scm, client: Client, codes: list[int]) -> None:
    scm.issue_after, scm.admin.pending_codes = 3, codes
    ssl_id = client.enroll()
    answers = [code_of(client.call("GET", f"/collect/{ssl_id}")) for _ in range(3)]
    assert answers == [(400, code) for code in (codes * 3)[:3]]
    assert client.details(ssl_id)["status"] == "Issued"
    assert client.collect(ssl_id)


def test_status_may_be_ahead_of_the_certificate(scm: Scm, client: Client) -> None:
    scm.status_ahead, scm.issue_after = True, 1
    ssl_id = client.enroll()
    assert client.ids("status=Issued") == [ssl_id]
    assert "serialNumber" not in client.details(ssl_id)
    assert code_of(client.call("GET", f"/collect/{ssl_id}")) == (400, 0)


def test_approve(scm: Scm, client: Client) -> None:
    scm.admin.types[0].auto_approve = False
    ssl_id = client.enroll()
    assert client.details(ssl_id)["status"] == "Requested"
    scm.order(str(ssl_id)).status = "SA Approved"
    assert client.details(ssl_id)["status"] == "SA Approved"
    assert client.ids("status=SA%20Approved") == [ssl_id]
    assert code_of(client.call("GET", f"/collect/{ssl_id}")) == (400, 0)
    assert code_of(client.call("POST", f"/approve/{ssl_id}", {})) == (400, -7)
    client.good("POST", f"/approve/{ssl_id}", {"message": "fine"}, status=204)
    assert client.details(ssl_id)["status"] == "Issued"
    for decision in ("approve", "decline"):
        response = client.call("POST", f"/{decision}/{ssl_id}", {"message": "x"})
        assert code_of(response) == (400, -1112)


def test_decline(scm: Scm, client: Client) -> None:
    scm.approval = "manual"
    ssl_id = client.enroll()
    client.good("POST", f"/decline/{ssl_id}", {"message": "not ours"}, status=204)
    assert client.details(ssl_id)["status"] == "Declined"
    response = client.call("GET", f"/collect/{ssl_id}")
    assert code_of(response) == (400, -169)
    assert response.json()["description"].endswith("not ours")


# ----- Formats ------------------------------------------------------------------------------------

CHAIN = ["a.example", "CA DV E36", "Root E46", "USERTrust"]


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("x509", CHAIN[::-1]),
        ("x509R", CHAIN),
        ("x509CO", CHAIN[:1]),
        ("x509IO", CHAIN[:0:-1]),
        ("x509IOR", CHAIN[1:]),
        ("pem", CHAIN[::-1]),
        ("pemco", CHAIN[:1]),
        ("pemia", CHAIN),
    ],
)
def test_formats(client: Client, form: str, names: list[str]) -> None:
    ssl_id = client.enroll()
    response = client.good("GET", f"/collect/{ssl_id}?format={form}")
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{ssl_id}.{form}"'
    assert common_names(certificates(response.text)) == names
    assert client.good("GET", f"/collect/{ssl_id}/{form}").content == response.content


@pytest.mark.parametrize(
    ("query", "load"),
    [
        ("", pkcs7.load_pem_pkcs7_certificates),
        ("?format=base64", pkcs7.load_pem_pkcs7_certificates),
        ("/bin", pkcs7.load_der_pkcs7_certificates),
    ],
)
def test_pkcs7(client: Client, query: str, load: Callable[[bytes], list[x509.Certificate]]) -> None:
    response = client.good("GET", f"/collect/{client.enroll()}{query}")
    assert sorted(common_names(load(response.content))) == sorted(CHAIN)


@pytest.mark.parametrize("path", ["/{}/pkcs12", "/{}?format=X509", "/{}?format="])
def test_unknown_format(client: Client, path: str) -> None:
    response = client.call("GET", "/collect" + path.format(client.enroll()))
    assert code_of(response) == (400, -1450)


def test_what_the_chain_holds(scm: Scm, client: Client) -> None:
    ssl_id = client.enroll()
    scm.answer = ChainStyle(root=False, cross=False, crlf=True)
    assert common_names(client.collect(ssl_id, "x509")) == CHAIN[1::-1]
    assert b"\r\n" in client.good("GET", f"/collect/{ssl_id}/x509").content
    scm.admin.formats["pem"] = whole
    assert common_names(client.collect(ssl_id, "pem")) == CHAIN[:2]
    scm.admin.formats["x509R"] = leaf_only
    assert common_names(client.collect(ssl_id)) == CHAIN[:1]


def test_tampering(scm: Scm, client: Client) -> None:
    ssl_id = client.enroll()
    scm.tamper = "other_key"
    assert client.collect(ssl_id)[0].public_key() != key_of("P-256").public_key()
    scm.tamper = "no_chain"
    assert common_names(client.collect(ssl_id)) == CHAIN[:1]
    assert client.call("GET", f"/collect/{ssl_id}/x509IOR").content == b""
    scm.tamper = lambda order, pem: f"order {order.cert_id}\n{pem}"
    assert client.good("GET", f"/collect/{ssl_id}/x509").text.startswith(f"order {ssl_id}\n---")


# ----- Renewal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{}, {"csr": csr_of(kind="P-256 new"), "dcvMode": "AUTO"}])
def test_renew_by_id(scm: Scm, client: Client, body: dict[str, str]) -> None:
    first = client.enroll(subjAltNames="b.example", term=99)
    scm.now = lambda: START + dt.timedelta(days=80)
    second = client.good("POST", f"/renewById/{first}", body).json()["sslId"]
    assert isinstance(second, int)
    assert second != first
    assert (client.details(first)["renewed"], client.details(second)["renewed"]) == (True, False)
    leaf = client.collect(second)[0]
    assert leaf.public_key() == key_of("P-256 new" if body else "P-256").public_key()
    assert names_in(leaf) == ["a.example", "b.example"]
    assert leaf.not_valid_after_utc == scm.now() + dt.timedelta(days=199, seconds=-1)
    assert client.ids() == [first, second]


def test_renew_by_renew_id(client: Client) -> None:
    other, answered = client.enroll(), client.order().json()
    client.good("POST", f"/renew/{answered['renewId']}", {}, status=204)
    assert client.ids() == [other, answered["sslId"], answered["sslId"] + 1]
    assert client.details(answered["sslId"])["renewed"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -1002),
        (b'""', -1002),
        ({"csr": ""}, -1002),
        ({"term": 199}, -1002),
        ({"subjAltNames": "b.example"}, -1002),
        ({"csr": csr_of("c.example")}, -138),
    ],
)
def test_renewal_refused(scm: Scm, client: Client, body: object, code: int) -> None:
    ssl_id = client.enroll()
    response = client.call("POST", f"/renewById/{ssl_id}", body, **JSON_HEADER)
    assert code_of(response) == (400, code)
    assert len(scm.orders) == 1
    assert not client.details(ssl_id)["renewed"]


def test_renewal_depends_on_status_and_type(scm: Scm, client: Client) -> None:
    ssl_id = client.enroll()
    scm.admin.types[0].may_renew = False
    assert code_of(client.call("POST", f"/renewById/{ssl_id}", {})) == (400, -180)
    scm.admin.types[0].may_renew = True
    scm.order(str(ssl_id)).status = "Revoked"
    assert code_of(client.call("POST", f"/renewById/{ssl_id}", {})) == (400, -105)


# ----- Replacement --------------------------------------------------------------------------------

NEW = csr_of(kind="P-256 new")


@pytest.mark.parametrize("race", [0, 2])
def test_replace(scm: Scm, client: Client, race: int) -> None:
    scm.admin.replace_race = race
    ssl_id = client.enroll(subjAltNames="b.example")
    old = client.collect(ssl_id)[0]
    scm.now = lambda: START + dt.timedelta(days=80)
    body = {"csr": NEW, "reason": "moved", "commonName": "a.example"}
    names = {"subjectAlternativeNames": ["a.example", "c.example"]}
    client.good("POST", f"/replace/{ssl_id}", body | names, status=204)
    for _ in range(race):
        assert client.details(ssl_id)["serialNumber"] == serial_number(old)
        assert client.details(ssl_id)["status"] == "Issued"
        assert client.collect(ssl_id)[0] == old
    new = client.collect(ssl_id)[0]
    assert new.public_key() == key_of("P-256 new").public_key()
    assert names_in(new) == ["a.example", "c.example"]
    assert new.not_valid_after_utc == old.not_valid_after_utc
    assert client.details(ssl_id)["serialNumber"] == serial_number(new)
    assert client.details(ssl_id)["term"] == 199
    assert client.ids("status=Issued") == client.ids() == [ssl_id]
    replaced, order = scm.orders
    assert (replaced.status, order.previous, order.comments) == ("Replaced", str(ssl_id), "moved")
    assert code_of(client.call("GET", f"/{order.cert_id}")) == (404, -5101)


def test_replacement_keeps_names_and_may_be_pending(scm: Scm, client: Client) -> None:
    ssl_id = client.enroll(subjAltNames="b.example")
    scm.issue_after = 1
    client.good("POST", f"/replace/{ssl_id}", {"csr": NEW, "reason": "x"}, status=204)
    assert client.details(ssl_id)["status"] == "Approved"
    again = client.call("POST", f"/replace/{ssl_id}", {"csr": NEW, "reason": "x"})
    assert code_of(again) == (400, -130)
    assert code_of(client.call("GET", f"/collect/{ssl_id}")) == (400, 0)
    assert names_in(client.collect(ssl_id)[0]) == ["a.example", "b.example"]


def test_replacement_with_a_common_name_that_only_the_body_has(client: Client) -> None:
    ssl_id = client.enroll()
    body = {"csr": csr_of(common=""), "reason": "x", "commonName": "a.example"}
    names = {"subjectAlternativeNames": ["b.example"]}
    client.good("POST", f"/replace/{ssl_id}", body | names, status=204)
    assert names_in(client.collect(ssl_id)[0]) == ["a.example", "b.example"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, -7),
        ({"csr": NEW}, -7),
        ({"csr": NEW, "reason": ""}, -1002),
        ({"csr": NEW, "reason": "x" * 513}, -1002),
        ({"csr": NEW, "reason": "x", "subjectAlternativeNames": "a.example"}, -1002),
        ({"csr": NEW, "reason": "x", "commonName": "b.example"}, -138),
        ({"csr": NEW, "reason": "x", "term": 199}, -1002),
        ({"csr": "!", "reason": "x"}, -9),
    ],
)
def test_replacement_refused(scm: Scm, client: Client, body: object, code: int) -> None:
    ssl_id = client.enroll()
    assert code_of(client.call("POST", f"/replace/{ssl_id}", body)) == (400, code)
    assert len(scm.orders) == 1


def test_private_certificates_are_not_replaced(scm: Scm, client: Client) -> None:
    scm.admin.types = [CertType(private=True)]
    ssl_id = client.enroll()
    assert common_names(client.collect(ssl_id)) == ["a.example", "Private CA", "Private Root"]
    response = client.call("POST", f"/replace/{ssl_id}", {"csr": NEW, "reason": "x"})
    assert code_of(response) == (400, -1148)


# ----- Revocation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "good", "wrong"), [(REVOKE, "4", 4), (OLD_REVOKE, 4, "4")], ids=["new", "old"]
)
@pytest.mark.parametrize("again", [-159, -102])
def test_revoke(
    scm: Scm, client: Client, schema: dict[str, Check], good: object, wrong: object, again: int
) -> None:
    scm.admin.already_revoked, scm.admin.revocation = again, schema
    ssl_id = client.enroll()
    body = {"reasonCode": wrong, "reason": "moved"}
    assert code_of(client.call("POST", f"/revoke/{ssl_id}", body)) == (400, -1002)
    body["reasonCode"] = good
    client.good("POST", f"/revoke/{ssl_id}", body, status=204)
    (order,) = scm.orders
    assert (order.revoked_reason, order.revoked_message) == (4, "moved")
    assert client.details(ssl_id)["status"] == "Revoked"
    assert code_of(client.call("GET", f"/collect/{ssl_id}")) == (400, -110)
    assert code_of(client.call("POST", f"/revoke/{ssl_id}", body)) == (400, again)


@pytest.mark.parametrize("change", [str, str.lower, lambda serial: serial.replace(":", "%3A")])
def test_revoke_by_serial_number(scm: Scm, client: Client, change: Callable[[str], str]) -> None:
    ssl_id = client.enroll()
    client.good("POST", f"/replace/{ssl_id}", {"csr": NEW, "reason": "x"}, status=204)
    replaced, order = scm.orders
    assert replaced.leaf
    body = {"reasonCode": "4", "reason": "moved"}
    serial = change(serial_number(replaced.leaf))
    client.good("POST", f"/revoke/serial/{serial}", body, status=204)
    assert [order.status for order in scm.orders] == ["Revoked", "Issued"]
    client.good("POST", f"/revoke/{ssl_id}", body, status=204)
    assert order.status == "Revoked"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"reasonCode": "4", "reason": "x"}, -102),
        ({"reason": "x"}, -7),
        ({"reasonCode": "4"}, -7),
        ({"reasonCode": "4", "reason": ""}, -1002),
        ({"reasonCode": "2", "reason": "x"}, -1002),
        ({"reasonCode": True, "reason": "x"}, -1002),
        ({"reasonCode": "4", "reason": "x" * 513}, -1002),
    ],
)
def test_revocation_refused(scm: Scm, client: Client, body: object, code: int) -> None:
    scm.issue_after = 1
    ssl_id = client.enroll()
    assert code_of(client.call("POST", f"/revoke/{ssl_id}", body)) == (400, code)


def test_delete_is_refused(client: Client) -> None:
    assert code_of(client.call("DELETE", f"/{client.enroll()}")) == (400, -3)
