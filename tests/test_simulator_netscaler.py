"""The simulated NetScaler, driven with plain HTTP requests and TLS handshakes."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import pathlib
import re
import ssl
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from simulators.appliance import pooled_rsa_key
from simulators.netscaler import NetScaler, Variant, VirtualServer, nitro_error, presented_chain
from simulators.server import Fault, authority_pem, maintenance_page

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def pem(thing: x509.Certificate | PrivateKey) -> str:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM).decode()
    return thing.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


class Ca:
    """A throwaway authority; without an issuer it is a root."""

    def __init__(self, name: str, issuer: Ca | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (issuer or self).sign(self.name, self.key.public_key(), ca=True)
        self.pem = pem(self.certificate)

    def sign(
        self, subject: x509.Name, public_key: PublicKey, names: tuple[str, ...] = (), *, ca: bool
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(
        self, *names: str, key: PrivateKey | None = None, common_name: bool = True
    ) -> tuple[str, str]:
        key = key or ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if common_name else []
        certificate = self.sign(x509.Name(attributes), key.public_key(), names, ca=False)
        return pem(certificate), pem(key)

    def certify(self, csr: bytes) -> x509.Certificate:
        request = x509.load_pem_x509_csr(csr)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        public_key = request.public_key()
        assert isinstance(public_key, PublicKey)
        dns = tuple(names.get_values_for_type(x509.DNSName))
        return self.sign(request.subject, public_key, dns, ca=False)


ROOT = Ca("Root")
R1, R2 = Ca("Issuer 1", ROOT), Ca("Issuer 2", ROOT)


class Client:
    """A session on one appliance."""

    def __init__(self, ns: NetScaler, ca_file: pathlib.Path) -> None:
        self.url = f"https://{ns.host}/nitro/v1"
        self.ca_file = str(ca_file)
        self.cookie = ""

    def send(
        self, method: str, target: str, body: object = None, **headers: str
    ) -> requests.Response:
        base = self.url if target.startswith("/stat/") else f"{self.url}/config"
        if self.cookie:
            headers.setdefault("Cookie", self.cookie)
        options: dict[str, Any] = {} if body is None else {"json": body}
        return requests.request(
            method, base + target, headers=headers, verify=self.ca_file, timeout=10, **options
        )

    def login(self, user: str = "admin", password: str = "secret") -> requests.Response:
        response = self.send("POST", "/login", {"login": {"username": user, "password": password}})
        if response.ok:
            self.cookie = f"NITRO_AUTH_TOKEN={response.json()['sessionid']}"
        return response

    def get(self, target: str) -> Any:
        response = self.send("GET", target)
        assert response.status_code == 200, response.text
        name = re.split(r"[/?]", target.removeprefix("/stat").removeprefix("/"))[0]
        return response.json().get(name)

    def do(self, method: str, target: str, **attributes: object) -> requests.Response:
        resource = re.split(r"[/?]", target)[1]
        body = {resource: attributes} if method in {"POST", "PUT"} else None
        response = self.send(method, target, body)
        assert response.status_code in {200, 201}, response.text
        return response

    def upload(self, name: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.do(
            "POST",
            "/systemfile",
            filename=name,
            filelocation="/nsconfig/ssl",
            filecontent=base64.b64encode(data).decode(),
            fileencoding="BASE64",
        )


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("management") / "ca.pem"
    path.write_text(authority_pem())
    return path


@pytest.fixture
def ns() -> Iterator[NetScaler]:
    with NetScaler() as appliance:
        appliance.add_user("admin", "secret")
        yield appliance


@pytest.fixture
def client(ns: NetScaler, ca_file: pathlib.Path) -> Client:
    made = Client(ns, ca_file)
    assert made.login().status_code == 201
    return made


def told(response: requests.Response) -> tuple[int, int]:
    return response.status_code, response.json()["errorcode"]


# sessions and rights


def test_a_session_works_in_every_form_of_the_cookie_until_logout(
    ns: NetScaler, ca_file: pathlib.Path
) -> None:
    client = Client(ns, ca_file)
    response = client.login()
    (session,) = ns.sessions
    quoted = session.replace("#", "%23")
    assert response.headers["Set-Cookie"] == f"sessionid={quoted}; path=/nitro/v1"
    for name in ("NITRO_AUTH_TOKEN", "sessionid"):
        for value in (session, quoted):
            read = client.send("GET", "/nsversion", Cookie=f"{name}={value}")
            assert read.status_code == 200
    assert client.send("POST", "/logout", {"logout": {}}).status_code == 201
    assert told(client.send("GET", "/nsversion")) == (401, 1027)
    assert (ns.logins, ns.failed_logins, ns.header_logins, ns.sessions) == (1, 0, 0, {})


def test_credentials_in_headers_open_no_session(ns: NetScaler, ca_file: pathlib.Path) -> None:
    headers = {"X-NITRO-USER": "admin", "X-NITRO-PASS": "secret"}
    client = Client(ns, ca_file)
    assert client.send("GET", "/nsversion", **headers).status_code == 200
    assert told(client.send("GET", "/nsversion", **headers, Cookie="sessionid=x")) == (400, 1238)
    assert (ns.header_logins, ns.sessions) == (1, {})


def test_wrong_passwords_lock_the_user_out(ns: NetScaler, ca_file: pathlib.Path) -> None:
    client = Client(ns, ca_file)
    for _ in range(5):
        assert told(client.login(password="wrong")) == (401, 354)
    assert told(client.login()) == (401, 354)
    assert ns.failed_logins == 6


def test_sessions_are_limited_and_can_be_killed(ns: NetScaler, client: Client) -> None:
    ns.session_limit = 1
    other = Client(ns, pathlib.Path(client.ca_file))
    assert told(other.login()) == (503, 446)
    ns.kill_sessions()
    assert told(client.send("GET", "/nsversion")) == (401, 444)
    assert other.login().status_code == 201


def test_a_policy_decides_by_the_command(ns: NetScaler, ca_file: pathlib.Path) -> None:
    ns.add_user("reader", "secret", policy=r"^show (?!system)")
    client = Client(ns, ca_file)
    client.login("reader")
    client.get("/nsversion")
    refused = client.send("GET", "/systemfile?args=filelocation:%2Fnsconfig%2Fssl")
    assert told(refused) == (403, 2138)
    command = r"[show system file -fileLocation \"\/nsconfig\/ssl\"]"
    assert f"Not authorized to execute this command {command}" in refused.text


@pytest.mark.parametrize(
    ("method", "target", "body", "command"),
    [
        ("POST", "/sslrsakey?action=create", {"keyfile": "k.key", "bits": 2048},
         "create ssl rsakey k.key -bits 2048"),
        ("POST", "/nsconfig?action=save", {}, "save ns config"),
        ("GET", "/stat/hanode", None, "stat HA node"),
        ("GET", "/lbvserver/x", None, "show lb vserver x"),
        ("PUT", "/sslvserver_sslcertkey_binding",
         {"vservername": "v", "certkeyname": "c", "snicert": True},
         "bind ssl vserver v -certkeyName c -SNICert"),
        ("DELETE", "/sslvserver_sslcertkey_binding/v?args=certkeyname:c,snicert:true", None,
         "unbind ssl vserver v -certkeyName c -SNICert"),
    ],
)  # fmt: skip
def test_commands_as_policies_see_them(
    ns: NetScaler, ca_file: pathlib.Path, method: str, target: str, body: object, command: str
) -> None:
    ns.add_user("nobody", "secret", policy="^$")
    client = Client(ns, ca_file)
    client.login("nobody")
    resource = re.split(r"[/?]", target)[1]
    response = client.send(method, target, body if body is None else {resource: body})
    assert told(response) == (403, 2138)
    assert response.json()["message"].endswith(f"[{command}]")


# refusals


@pytest.fixture(scope="module")
def prepared(ca_file: pathlib.Path) -> Iterator[tuple[NetScaler, Client]]:
    """An appliance with something of everything, for requests that must change nothing."""
    with NetScaler() as ns:
        ns.add_user("admin", "secret")
        ns.add_virtual_server("vs", "load_balancing")
        ns.add_virtual_server("vpn", "gateway")
        ns.add_virtual_server("cs", "content_switching", sni=True)
        ns.add_virtual_server("bridge", "load_balancing", "SSL_BRIDGE")
        www = R1.issue("www.example.com")
        ns.install("www", *www, chain=[R1.pem])
        ns.install("www-again", *R1.issue("www.example.com"))
        ns.install("alt", *R1.issue("alt.example.com", "www.example.com"))
        ns.install("nameless", *R1.issue("nameless.example.com", common_name=False))
        ns.install("keyless", R1.issue("keyless.example.com")[0])
        ns.install("issuer2", R2.pem)
        ns.install("root", ROOT.pem)
        ns.bind("vs", "www")
        ns.bind("cs", "www", sni=True)
        new, other = R1.issue("www.example.com"), R2.issue("other.example.com")
        files = {"www-copy.crt": www[0], "junk.crt": "junk", "junk.key": "junk"}
        files |= {"new.crt": new[0], "new.key": new[1]}
        files |= {"other.crt": other[0], "other.key": other[1]}
        for name, content in files.items():
            ns.write(f"/nsconfig/ssl/{name}", content.encode())
        client = Client(ns, ca_file)
        client.login()
        yield ns, client


CSR = {"reqfile": "n.csr", "keyfile": "www.key", "countryname": "GB"} | {
    "statename": "Kent",
    "organizationname": "Example",
}
FILE = {"filename": "n.crt", "filelocation": "/nsconfig/ssl", "filecontent": "eA=="}
BIND = {"vservername": "vpn", "certkeyname": "www"}
CREATE_RSA = "/sslrsakey?action=create"
CREATE_CSR = "/sslcertreq?action=create"
UPDATE = "/sslcertkey?action=update"
LINK = "/sslcertkey?action=link"
BINDING = "/sslvserver_sslcertkey_binding"

REFUSALS: list[tuple[str, str, object, int, int]] = [
    # malformed
    ("GET", "/nonsense", None, 400, 1232),
    ("GET", "/sslcertreq", None, 400, 1240),
    ("POST", "/sslcertkey?action=paint", {"certkey": "www"}, 400, 1240),
    ("GET", "/nsversion?colour=red", None, 400, 1090),
    ("GET", "/sslcertkey?count=maybe", None, 400, 1097),
    ("GET", "/sslcertkey?filter=colour:red", None, 400, 1090),
    ("GET", "/sslcertkey/a%20b", None, 400, 1238),
    ("GET", "/systemfile?args=filelocation:/nsconfig/ssl", None, 400, 1238),
    ("GET", "/systemfile?args=filelocation:%252Fnsconfig%252Fssl", None, 599, 3440),
    ("GET", "/systemfile?args=filelocation", None, 400, 1238),
    ("POST", "/sslcertkey/www", {"certkey": "www"}, 400, 1238),
    ("PUT", "/sslcertkey", [{"certkey": "www"}], 400, 1234),
    # keys
    ("POST", CREATE_RSA, {"keyfile": "n.key"}, 400, 1095),
    ("POST", CREATE_RSA, {"bits": 2048}, 400, 1095),
    ("POST", CREATE_RSA, {"keyfile": "n.key", "bits": True}, 400, 1234),
    ("POST", CREATE_RSA, {"keyfile": 7, "bits": 2048}, 400, 1234),
    ("POST", CREATE_RSA, {"keyfile": "n.key", "bits": 512}, 400, 1109),
    ("POST", CREATE_RSA, {"keyfile": "n.key", "bits": 8192}, 400, 1108),
    ("POST", CREATE_RSA, {"keyfile": "n.key", "bits": 2048, "size": 1}, 400, 1090),
    ("POST", CREATE_RSA, {"keyfile": "n.key", "bits": 2048, "keyform": "JWK"}, 400, 1097),
    ("POST", CREATE_RSA, {"keyfile": "n" * 60 + ".key", "bits": 2048}, 400, 1106),
    ("POST", CREATE_RSA, {"keyfile": "/var/tmp/n.key", "bits": 2048}, 599, 1645),
    ("POST", CREATE_RSA, {"keyfile": "www.key", "bits": 2048}, 409, 1642),
    ("POST", "/sslecdsakey?action=create", {"keyfile": "n.key", "curve": "P_521"}, 400, 1097),
    # requests
    *(("POST", CREATE_CSR, {k: v for k, v in CSR.items() if k != key}, 400, 1095) for key in CSR),
    ("POST", CREATE_CSR, CSR | {"countryname": "GBR"}, 400, 1106),
    ("POST", CREATE_CSR, CSR | {"countryname": "G"}, 400, 1107),
    ("POST", CREATE_CSR, CSR | {"commonname": "x" * 70}, 599, 1684),
    ("POST", CREATE_CSR, CSR | {"keyfile": "missing.key"}, 599, 1647),
    ("POST", CREATE_CSR, CSR | {"keyfile": "junk.key"}, 599, 1639),
    ("POST", CREATE_CSR, CSR | {"reqfile": "www.crt"}, 409, 1642),
    ("POST", CREATE_CSR, CSR | {"subjectaltname": "www.example.com"}, 400, 1097),
    ("POST", CREATE_CSR, CSR | {"subjectaltname": "DNS:a IP:example"}, 400, 1097),
    # files
    ("POST", "/systemfile", FILE | {"filename": "n" * 60 + ".crt"}, 400, 1106),
    ("POST", "/systemfile", FILE | {"filename": "n.exe"}, 599, 3442),
    ("POST", "/systemfile", FILE | {"filename": "www.crt"}, 409, 1642),
    ("POST", "/systemfile", FILE | {"filename": "a/n.crt"}, 400, 1097),
    ("POST", "/systemfile", FILE | {"filelocation": "/nsconfig/tls"}, 599, 3440),
    ("POST", "/systemfile", FILE | {"filecontent": "no base64"}, 599, 3443),
    ("POST", "/systemfile", FILE | {"fileencoding": "HEX"}, 599, 3444),
    ("POST", "/systemfile", FILE | {"filecontent": "A" * 3_000_000}, 400, 1106),
    ("GET", "/systemfile", None, 400, 1095),
    ("GET", "/systemfile?args=filename:n.csr,filelocation:%2Fnsconfig%2Fssl", None, 404, 3441),
    ("DELETE", "/systemfile/n.csr?args=filelocation:%2Fnsconfig%2Fssl", None, 404, 3441),
    ("DELETE", "/systemfile/www.crt", None, 400, 1095),
    # certificates
    ("POST", "/sslcertkey", {"certkey": "n"}, 400, 1095),
    ("POST", "/sslcertkey", {"certkey": "n!", "cert": "new.crt"}, 400, 1075),
    ("POST", "/sslcertkey", {"certkey": "n" * 32, "cert": "new.crt"}, 400, 1106),
    ("POST", "/sslcertkey", {"certkey": "n", "cert": "new.crt", "colour": "red"}, 400, 1090),
    ("POST", "/sslcertkey", {"certkey": "n", "cert": "missing.crt"}, 599, 1647),
    ("POST", "/sslcertkey", {"certkey": "n", "cert": "new.crt", "key": "missing.key"}, 599, 1647),
    ("POST", "/sslcertkey", {"certkey": "n", "cert": "junk.crt"}, 599, 1536),
    ("POST", "/sslcertkey", {"certkey": "n", "cert": "new.crt", "key": "junk.key"}, 599, 1537),
    ("POST", "/sslcertkey", {"certkey": "n", "cert": "new.crt", "key": "www.key"}, 599, 1538),
    ("POST", "/sslcertkey", {"certkey": "www", "cert": "new.crt"}, 409, 273),
    ("POST", "/sslcertkey", {"certkey": "n", "cert": "www-copy.crt"}, 409, 273),
    ("POST", "/sslcertkey", {"certkey": "n", "cert": "new.crt", "notificationperiod": 5},
     400, 1109),
    ("PUT", "/sslcertkey", {"certkey": "www", "cert": "new.crt"}, 599, 278),
    ("PUT", "/sslcertkey", {"certkey": "n", "notificationperiod": 10}, 599, 1540),
    ("GET", "/sslcertkey/n", None, 599, 1540),
    ("GET", "/sslcertkey_binding/n", None, 599, 1540),
    ("GET", "/sslcertkey_sslvserver_binding/n", None, 599, 1540),
    ("DELETE", "/sslcertkey/n", None, 599, 1540),
    ("DELETE", "/sslcertkey/www", None, 599, 1541),
    ("POST", UPDATE, {"certkey": "n", "cert": "new.crt"}, 599, 1540),
    ("POST", UPDATE, {"certkey": "www"}, 400, 1094),
    ("POST", UPDATE, {"certkey": "www", "cert": "new.crt"}, 599, 1538),
    ("POST", UPDATE, {"certkey": "www", "cert": "other.crt", "key": "other.key"}, 599, 3585),
    ("POST", UPDATE, {"certkey": "alt", "cert": "www.crt", "key": "www.key"}, 409, 273),
    ("POST", LINK, {"certkey": "www-again"}, 400, 1095),
    ("POST", LINK, {"certkey": "n", "linkcertkeyname": "issuer2"}, 599, 1540),
    ("POST", LINK, {"certkey": "www-again", "linkcertkeyname": "n"}, 599, 1540),
    ("POST", LINK, {"certkey": "root", "linkcertkeyname": "root"}, 599, 1543),
    ("POST", LINK, {"certkey": "www-again", "linkcertkeyname": "issuer2"}, 599, 1548),
    ("POST", LINK, {"certkey": "www-again", "linkcertkeyname": "alt"}, 599, 1548),
    ("POST", LINK, {"certkey": "www", "linkcertkeyname": "issuer2"}, 409, 273),
    ("POST", "/sslcertkey?action=unlink", {"certkey": "alt"}, 599, 1545),
    # virtual servers
    ("GET", "/lbvserver/n", None, 404, 258),
    ("GET", "/lbvserver/vpn", None, 404, 258),
    ("GET", "/sslvserver/n", None, 404, 461),
    ("GET", BINDING, None, 400, 1095),
    ("GET", f"{BINDING}/n", None, 404, 461),
    ("GET", f"{BINDING}/bridge", None, 599, 1544),
    ("PUT", BINDING, BIND | {"vservername": "n"}, 404, 461),
    ("PUT", BINDING, BIND | {"vservername": "bridge"}, 599, 1544),
    ("PUT", BINDING, BIND | {"certkeyname": "n"}, 599, 1540),
    ("PUT", BINDING, BIND | {"vservername": "vs"}, 409, 273),
    ("PUT", BINDING, BIND | {"certkeyname": "issuer2"}, 599, 1547),
    ("PUT", BINDING, BIND | {"certkeyname": "keyless"}, 599, 3827),
    ("PUT", BINDING, BIND | {"ca": True}, 599, 3605),
    ("PUT", BINDING, BIND | {"ocspcheck": "Optional"}, 400, 1093),
    ("PUT", BINDING, BIND | {"snicert": "true"}, 400, 1234),
    ("PUT", BINDING, BIND | {"snicert": True}, 599, 3627),
    ("PUT", BINDING, {"vservername": "cs", "certkeyname": "nameless", "snicert": True}, 599, 3628),
    ("PUT", BINDING, {"vservername": "cs", "certkeyname": "www-again", "snicert": True}, 599, 3629),
    ("PUT", BINDING, {"vservername": "cs", "certkeyname": "alt", "snicert": True}, 599, 1674),
    ("DELETE", f"{BINDING}/cs?args=certkeyname:www", None, 599, 1542),
    ("DELETE", f"{BINDING}/vs", None, 400, 1095),
    # the rest
    ("GET", "/hanode/7", None, 404, 258),
    ("POST", "/hafiles?action=sync", {"mode": ["ssl"]}, 599, 257),
    ("POST", "/nspartition?action=Switch", {"partitionname": "p"}, 599, 2755),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "body", "status", "code"), REFUSALS)
@pytest.mark.sample(3)
def test_refusals_change_nothing(
    prepared: tuple[NetScaler, Client],
    method: str,
    target: str,
    body: object,
    status: int,
    code: int,
) -> None:
    ns, client = prepared
    before = ns.running.copy(), dict(ns.files)
    resource = re.split(r"[/?]", target)[1]
    response = client.send(method, target, body if body is None else {resource: body})
    assert told(response) == (status, code)
    assert response.json()["severity"] == "ERROR"
    assert (ns.running, ns.files) == before


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        ("{", "application/json", 1233),
        ("[]", "application/json", 1233),
        ('{"nsconfig": {}, "sslcertkey": {}}', "application/json", 1233),
        ('{"nsconfig": 1}', "application/json", 1234),
        ('{"nsconfig": {}}', "text/plain", 1233),
    ],
)
@pytest.mark.sample(3)
def test_malformed_bodies(client: Client, body: str, content_type: str, code: int) -> None:
    headers = {"Content-Type": content_type, "Cookie": client.cookie}
    url = f"{client.url}/config/nsconfig?action=save"
    response = requests.post(url, body, headers=headers, verify=client.ca_file, timeout=10)
    assert told(response) == (400, code)


def test_the_wire_looks_like_the_product(prepared: tuple[NetScaler, Client]) -> None:
    _, client = prepared
    response = client.send("GET", "/sslcertkey/n")
    assert response.raw.version == 11
    assert response.reason == "Netscaler specific error"
    assert response.headers["Server"] == "Apache"
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    expected = '{ "errorcode": 1540, "message": "Certificate does not exist", "severity": "ERROR" }'
    assert response.text == expected
    name = "Resource already exists [certkeyName Contents, www]"
    copy = {"sslcertkey": {"certkey": "n", "cert": "www-copy.crt"}}
    assert client.send("POST", "/sslcertkey", copy).json()["message"] == name
    assert (
        r'"filelocation": "\/nsconfig\/ssl"'
        in client.send("GET", "/systemfile?args=filelocation:%2Fnsconfig%2Fssl").text
    )
    assert requests.get(client.url, verify=client.ca_file, timeout=10).status_code == 404


def test_links_can_not_go_in_circles(ns: NetScaler, client: Client) -> None:
    one, two = Ca("Circle 1"), Ca("Circle 2")
    crossed = one.sign(two.name, two.key.public_key(), ca=True)
    crossed_back = two.sign(one.name, one.key.public_key(), ca=True)
    ns.install("two", pem(crossed))
    ns.install("one", pem(crossed_back))
    client.do("POST", LINK, certkey="two", linkcertkeyname="one")
    back = {"sslcertkey": {"certkey": "one", "linkcertkeyname": "two"}}
    assert told(client.send("POST", LINK, back)) == (599, 1677)


# reads


def test_rows_of_certificates(prepared: tuple[NetScaler, Client]) -> None:
    ns, client = prepared
    (row,) = client.get("/sslcertkey/www")
    certificate = ns.certkeys["www"].certificate
    expected: dict[str, object] = {
        "certkey": "www",
        "cert": "www.crt",
        "key": "www.key",
        "status": "Valid",
    }
    expected |= {"issuer": " CN=Issuer 1", "subject": " CN=www.example.com"}
    expected |= {"notificationperiod": "30", "daystoexpiration": 89, "publickeysize": 256}
    assert expected.items() <= row.items()
    assert int(row["serial"], 16) == certificate.serial_number
    end = certificate.not_valid_after_utc.timestamp()
    assert ssl.cert_time_to_seconds(row["clientcertnotafter"]) == end
    assert row["linkcertkeyname"] == ns.certkeys["www"].link
    assert "linkcertkeyname" not in client.get("/sslcertkey/alt")[0]
    assert "key" not in client.get("/sslcertkey/root")[0]


def test_queries(prepared: tuple[NetScaler, Client]) -> None:
    ns, client = prepared
    total = len(ns.certkeys)
    assert client.get("/sslcertkey?count=yes") == [{"__count": total}]
    pages = [client.get(f"/sslcertkey?pagesize=3&pageno={n}&attrs=certkey") for n in range(1, 4)]
    assert [row["certkey"] for page in pages for row in page or []] == list(ns.certkeys)
    serial = ns.certkeys["alt"].serial
    assert [r["certkey"] for r in client.get(f"/sslcertkey?filter=serial:{serial}")] == ["alt"]
    assert client.get("/sslcertkey?filter=certkey:nothing") is None
    assert client.get("/sslcertkey?view=summary&attrs=certkey,status")[0].keys() == {
        "certkey",
        "status",
    }
    www, issuer = ns.certkeys["www"].name, ns.certkeys["www"].link
    assert client.get("/sslcertlink") == [{"certkeyname": www, "linkcertkeyname": issuer}]


def test_bindings_from_both_sides(prepared: tuple[NetScaler, Client]) -> None:
    _, client = prepared
    rows = client.get(f"{BINDING}?bulkbindings=yes")
    assert [(row["vservername"], row["certkeyname"], row["snicert"]) for row in rows] == [
        ("vs", "www", False),
        ("cs", "www", True),
    ]
    assert client.get(f"{BINDING}/cs") == rows[1:]
    assert client.get(f"{BINDING}/vpn") is None
    rows = client.get("/sslcertkey_sslvserver_binding/www")
    assert [row["servername"] for row in rows] == ["vs", "cs"]
    assert client.get("/sslcertkey_sslvserver_binding/alt") is None
    assert client.get("/sslcertkey_binding/www") == [
        {"certkey": "www", "sslcertkey_sslvserver_binding": rows}
    ]


def test_virtual_servers(prepared: tuple[NetScaler, Client]) -> None:
    ns, client = prepared
    (row,) = client.get("/lbvserver/vs")
    host, port = ns.virtual_servers["vs"].address
    assert row == {
        "name": "vs",
        "ipv46": host,
        "port": port,
        "servicetype": "SSL",
        "curstate": "UP",
    }
    assert [row["name"] for row in client.get("/lbvserver")] == ["vs", "bridge"]
    assert client.get("/vpnvserver/vpn")[0]["curstate"] == "DOWN"
    assert client.get("/authenticationvserver") is None
    assert client.get("/sslvserver/cs")[0]["snienable"] == "ENABLED"
    assert len(client.get("/sslvserver")) == 3


def test_the_system(ns: NetScaler, client: Client) -> None:
    assert client.get("/nsversion")["version"].startswith("NetScaler NS13.1: Build 59.19.nc")
    assert client.get("/nsconfig")["systemtype"] == "Stand-alone"
    assert client.get("/stat/hanode")["hacurstatus"] == "NO"
    for resource in ("nshardware", "nsfeature", "sslparameter"):
        assert isinstance(client.get(f"/{resource}"), dict)
    client.do("POST", "/nspartition?action=Switch", partitionname="default")
    assert [node["id"] for node in client.get("/hanode")] == ["0"]


def test_a_standby_node_takes_writes_and_remembers_them(ns: NetScaler, client: Client) -> None:
    ns.ha_state = "Secondary"
    assert client.get("/stat/hanode")["hacurmasterstate"] == "Secondary"
    assert [node["state"] for node in client.get("/hanode")] == ["Secondary", "Primary"]
    assert client.get("/hanode/0")[0]["state"] == "Secondary"
    client.do("POST", "/hafiles?action=sync", mode=["ssl"])
    client.do("POST", "/nsconfig?action=save")
    assert ns.standby_writes == ["sync HA files ssl", "save ns config"]
    assert ns.file_syncs == [["ssl"]]


# from key to handshake


@pytest.mark.parametrize(
    ("resource", "attributes", "key_class"),
    [
        ("sslrsakey", {"bits": 2048, "exponent": "F4", "keyform": "PEM"}, rsa.RSAPublicKey),
        ("sslecdsakey", {"curve": "P_256", "keyform": "PEM"}, ec.EllipticCurvePublicKey),
    ],
)
@pytest.mark.sample(2)
def test_from_key_to_handshake_and_back(
    ns: NetScaler,
    client: Client,
    resource: str,
    attributes: dict[str, object],
    key_class: type[object],
) -> None:
    server = ns.add_virtual_server("vs", "gateway")
    with pytest.raises(ssl.SSLError):
        server.handshake()

    client.do("POST", f"/{resource}?action=create", keyfile="w.key", **attributes)
    names = "DNS:www.example.com DNS:*.example.org,IP:192.0.2.1 email:pki@example.com"
    wanted = CSR | {"reqfile": "w.csr", "keyfile": "w.key", "commonname": "www.example.com"}
    client.do("POST", CREATE_CSR, **wanted, subjectaltname=names, digestmethod="SHA256")
    (row,) = client.get("/systemfile?args=filename:w.csr,filelocation:%2Fnsconfig%2Fssl")
    csr = base64.b64decode(row["filecontent"])
    request = x509.load_pem_x509_csr(csr)
    assert request.is_signature_valid
    assert isinstance(request.public_key(), key_class)
    assert request.subject.rfc4514_string() == "CN=www.example.com,O=Example,ST=Kent,C=GB"
    alternatives = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [type(name) for name in alternatives] == [
        x509.DNSName,
        x509.DNSName,
        x509.IPAddress,
        x509.RFC822Name,
    ]

    leaf = R1.certify(csr)
    client.upload("w.crt", pem(leaf))
    client.upload("r1.crt", R1.pem)
    client.do("POST", "/sslcertkey", certkey="r1", cert="r1.crt")
    added = {"certkey": "a b", "cert": "w.crt", "key": "w.key", "linkcertkeyname": "r1"}
    client.do("POST", "/sslcertkey", **added)
    assert "linkcertkeyname" not in client.get("/sslcertkey/a%2520b")[0]
    client.do("PUT", BINDING, vservername="vs", certkeyname="a b")
    assert server.handshake() == [leaf]
    client.do("POST", LINK, certkey="a b", linkcertkeyname="r1")
    assert server.handshake() == [leaf, R1.certificate]
    assert server.served == [ns.certkeys["a b"].serial]
    assert client.get("/nsconfig")["configchanged"]
    client.do("POST", "/nsconfig?action=save")
    assert ns.saved
    assert not client.get("/nsconfig")["configchanged"]
    assert not ns.private_keys_read

    client.do("DELETE", f"{BINDING}/vs?args=certkeyname:a%20b")
    with pytest.raises(ssl.SSLError):
        server.handshake()
    client.do("DELETE", "/sslcertkey/a%2520b")
    client.do("DELETE", "/systemfile/w.csr?args=filelocation:%2Fnsconfig%2Fssl")
    assert "/nsconfig/ssl/w.csr" not in ns.files


def test_no_two_keys_are_the_same() -> None:
    keys = [pooled_rsa_key(1024) for _ in range(30)]
    assert len({key.public_key().public_numbers().n for key in keys}) == 30
    assert {key.key_size for key in keys} == {1024}


def test_keys_without_the_pool(ns: NetScaler, client: Client) -> None:
    ns.key_pool = False
    client.do("POST", CREATE_RSA, keyfile="w.key", bits="1024")
    assert ns.files["/nsconfig/ssl/w.key"].startswith(b"-----BEGIN RSA PRIVATE KEY-----")


def test_private_keys_that_are_read_are_told(ns: NetScaler, client: Client) -> None:
    ns.install("www", *R1.issue("www.example.com"))
    for target in ("/www.key?args=", "?args=filename:www.key,"):
        (row,) = client.get(f"/systemfile{target}filelocation:%2Fnsconfig%2Fssl")
        assert base64.b64decode(row["filecontent"]) == ns.files["/nsconfig/ssl/www.key"]
    assert ns.private_keys_read == ["www.key", "www.key"]


# updates


@pytest.fixture
def bound(ns: NetScaler) -> VirtualServer:
    """A virtual server with a certificate that is linked, and files of the next ones."""
    server = ns.add_virtual_server("vs", "load_balancing")
    old = R1.issue("www.example.com")
    ns.install("www", *old, chain=[R1.pem])
    ns.install("r2", R2.pem)
    ns.bind("vs", "www")
    for name, made in {
        "same": R1.issue("www.example.com"),
        "moved": R2.issue("www.example.com"),
        "wider": R1.issue("www.example.com", "example.com"),
    }.items():
        ns.write(f"/nsconfig/ssl/{name}.crt", made[0].encode())
        ns.write(f"/nsconfig/ssl/{name}.key", made[1].encode())
    return server


def test_an_update_keeps_name_binding_and_link(
    ns: NetScaler, client: Client, bound: VirtualServer
) -> None:
    old = ns.certkeys["www"]
    client.do("POST", UPDATE, certkey="www", cert="same.crt", key="same.key")
    new = ns.certkeys["www"]
    assert new.link == old.link
    assert new.certificate != old.certificate
    assert bound.served == [old.serial, new.serial]
    assert bound.handshake() == [new.certificate, R1.certificate]
    client.do("POST", UPDATE, certkey="www", cert="same.crt", key="same.key")
    assert ns.certkeys["www"] == new


def test_an_update_with_the_same_key_needs_no_key_file(ns: NetScaler, client: Client) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    ns.install("www", *R1.issue("www.example.com", key=key))
    client.upload("next.crt", R1.issue("www.example.com", key=key)[0])
    client.do("POST", UPDATE, certkey="www", cert="next.crt")
    assert (ns.certkeys["www"].cert, ns.certkeys["www"].key) == ("next.crt", "www.key")


def test_other_names_need_the_option(ns: NetScaler, client: Client, bound: VirtualServer) -> None:
    wider = {"certkey": "www", "cert": "wider.crt", "key": "wider.key"}
    assert told(client.send("POST", UPDATE, {"sslcertkey": wider})) == (599, 3585)
    client.do("POST", UPDATE, **wider, nodomaincheck=True)
    assert ns.certkeys["www"].dns_names == {"www.example.com", "example.com"}


@pytest.mark.parametrize("way", ["break", "keep", "refuse"])
def test_an_update_from_another_issuer(
    ns: NetScaler,
    client: Client,
    bound: VirtualServer,
    way: Literal["break", "keep", "refuse"],
) -> None:
    ns.variant = Variant(update_link=way)
    old = ns.certkeys["www"]
    moved = {"certkey": "www", "cert": "moved.crt", "key": "moved.key"}
    response = client.send("POST", UPDATE, {"sslcertkey": moved})
    new = ns.certkeys["www"]
    if way == "refuse":
        assert told(response) == (599, 1548)
        assert new == old
    else:
        assert response.status_code == 200
        assert new.link == (old.link if way == "keep" else None)
        assert bound.handshake()[1:] == ([R1.certificate] if way == "keep" else [])


def test_an_update_of_the_issuer_breaks_the_links_to_it(
    ns: NetScaler, client: Client, bound: VirtualServer
) -> None:
    issuer = str(ns.certkeys["www"].link)
    client.upload("rekeyed.crt", Ca("Issuer 1", ROOT).pem)
    client.do("POST", UPDATE, certkey=issuer, cert="rekeyed.crt")
    assert ns.certkeys["www"].link is None


def test_unlink_and_link_again(ns: NetScaler, client: Client, bound: VirtualServer) -> None:
    client.do("POST", "/sslcertkey?action=unlink", certkey="www")
    client.do("POST", UPDATE, certkey="www", cert="moved.crt", key="moved.key")
    client.do("POST", LINK, certkey="www", linkcertkeyname="r2")
    assert bound.handshake() == [ns.certkeys["www"].certificate, R2.certificate]
    client.do("POST", "/sslcertkey?action=unlink", certkey="www")
    client.do("PUT", "/sslcertkey", certkey="www", expirymonitor="DISABLED", notificationperiod=10)
    assert client.get("/sslcertkey/www?attrs=expirymonitor,notificationperiod") == [
        {"expirymonitor": "DISABLED", "notificationperiod": "10"}
    ]


# reboots


def test_a_reboot_forgets_what_was_not_saved(
    ns: NetScaler, client: Client, bound: VirtualServer
) -> None:
    old = ns.certkeys["www"]
    client.do("POST", UPDATE, certkey="www", cert="same.crt", key="same.key")
    new = ns.certkeys["www"]
    ns.reboot()
    assert ns.certkeys["www"] == old
    assert ns.saved
    assert "/nsconfig/ssl/same.crt" in ns.files
    assert bound.served == [old.serial, new.serial, old.serial]
    assert told(client.send("GET", "/nsversion")) == (401, 444)


def test_a_reboot_loses_what_has_no_files(
    ns: NetScaler, client: Client, bound: VirtualServer
) -> None:
    client.do("POST", UPDATE, certkey="www", cert="same.crt", key="same.key")
    client.do("DELETE", "/systemfile/www.key?args=filelocation:%2Fnsconfig%2Fssl")
    assert bound.handshake()
    ns.reboot()
    assert "www" not in ns.certkeys
    assert ns.bindings == []
    assert not ns.saved
    with pytest.raises(ssl.SSLError):
        bound.handshake()


def test_a_reboot_loses_links_to_what_has_no_files(ns: NetScaler, bound: VirtualServer) -> None:
    issuer = ns.certkeys[str(ns.certkeys["www"].link)]
    del ns.files[f"/nsconfig/ssl/{issuer.cert}"]
    ns.reboot()
    assert ns.certkeys["www"].link is None
    assert len(bound.handshake()) == 1


# listeners


def test_one_default_certificate_per_key_type(ns: NetScaler, client: Client) -> None:
    server = ns.add_virtual_server("vs", "authentication")
    keys: dict[str, PrivateKey] = {
        "rsa": pooled_rsa_key(2048),
        "rsa-2": pooled_rsa_key(2048),
        "ecdsa": ec.generate_private_key(ec.SECP256R1()),
    }
    for name, key in keys.items():
        ns.install(name, *R1.issue("www.example.com", key=key), chain=[R1.pem])
    for name in ("rsa", "ecdsa", "rsa-2"):
        client.do("POST", BINDING, vservername="vs", certkeyname=name)
    assert [binding.certkey for binding in ns.bindings] == ["ecdsa", "rsa-2"]
    assert server.served == [ns.certkeys[name].serial for name in ("rsa", "ecdsa", "rsa-2")]
    for kind, name in (("RSA", "rsa-2"), ("ECDSA", "ecdsa")):
        chain = presented_chain(*server.address, signatures=kind)
        assert chain == [ns.certkeys[name].certificate, R1.certificate]


def test_certificates_by_server_name(ns: NetScaler, client: Client) -> None:
    server = ns.add_virtual_server("vs", "content_switching", sni=True)
    for name in ("a.example.com", "*.example.org"):
        ns.install(name.replace("*", "w"), *R1.issue(name))
    client.do("PUT", BINDING, vservername="vs", certkeyname="a.example.com", snicert=True)
    client.do("PUT", BINDING, vservername="vs", certkeyname="w.example.org", snicert=True)
    with pytest.raises(ssl.SSLError):
        server.handshake()
    ns.install("default", *R1.issue("default.example.com"))
    client.do("PUT", BINDING, vservername="vs", certkeyname="default")

    def served(name: str | None) -> str:
        (leaf,) = server.handshake(name)
        return leaf.subject.rfc4514_string()

    assert served("a.example.com") == "CN=a.example.com"
    assert served("x.example.org") == "CN=*.example.org"
    assert served("x.y.example.org") == served(None) == "CN=default.example.com"


def test_only_what_is_linked_is_presented(ns: NetScaler) -> None:
    server = ns.add_virtual_server("vs", "load_balancing", "SSL_TCP")
    ns.install("www", *R1.issue("www.example.com"), chain=[R1.pem, ROOT.pem])
    ns.bind("vs", "www")
    assert server.handshake()[1:] == [R1.certificate, ROOT.certificate]


def test_ca_certificates_are_bound_beside(ns: NetScaler, client: Client) -> None:
    server = ns.add_virtual_server("vs", "load_balancing")
    ns.install("r1", R1.pem)
    client.do("PUT", BINDING, vservername="vs", certkeyname="r1", ca=True, ocspcheck="Optional")
    assert client.get(f"{BINDING}/vs")[0]["ca"]
    assert server.state == "DOWN"
    client.do("DELETE", f"{BINDING}/vs?args=certkeyname:r1,ca:true")
    assert ns.bindings == []


# variants and faults


def test_variants(ns: NetScaler, client: Client) -> None:
    ns.install("www", *R1.issue("www.example.com"))
    assert client.do("POST", "/nsconfig?action=save").content == b""
    assert "sandns" not in client.get("/sslcertkey/www")[0]
    ns.variant = Variant(
        single_objects=False,
        write_bodies=True,
        numbers_as_strings=True,
        omit_false=True,
        created=200,
        missing_certkey=404,
        certkey_name_limit=63,
        sandns=True,
        ecdsa=False,
    )
    done = '{ "errorcode": 0, "message": "Done", "severity": "NONE" }'
    assert client.do("POST", "/nsconfig?action=save").text == done
    (version,) = client.get("/nsversion")
    assert "13.1" in version["version"]
    assert "configchanged" not in client.get("/nsconfig")[0]
    (row,) = client.get("/sslcertkey/www")
    assert (row["publickeysize"], row["sandns"]) == ("256", "www.example.com")
    assert told(client.send("GET", "/sslcertkey/n")) == (404, 1540)
    assert told(client.send("POST", "/sslecdsakey?action=create", {})) == (400, 1232)
    client.upload("n.crt", R1.issue("n.example.com")[0])
    added = {"sslcertkey": {"certkey": "n" * 40, "cert": "n.crt"}}
    assert told(client.send("POST", "/sslcertkey", added)) == (599, 1675)
    client.upload("rsa.crt", R1.issue("n.example.com", key=pooled_rsa_key(2048))[0])
    assert client.do("POST", "/sslcertkey", certkey="n" * 40, cert="rsa.crt").status_code == 200


def test_newer_releases_tell_the_alternative_names(ca_file: pathlib.Path) -> None:
    with NetScaler(release="14.1") as ns:
        ns.add_user("admin", "secret")
        ns.install("www", *R1.issue("www.example.com"))
        client = Client(ns, ca_file)
        client.login()
        assert client.get("/sslcertkey/www")[0]["sandns"] == "www.example.com"
        assert "NS14.1: Build" in client.get("/nsversion")["version"]


@pytest.mark.parametrize(("form", "by_args", "by_name"), [("args", 200, 400), ("both", 200, 200)])
def test_forms_of_a_download(
    ns: NetScaler,
    client: Client,
    form: Literal["args", "both"],
    by_args: int,
    by_name: int,
) -> None:
    ns.variant = Variant(download=form)
    client.upload("a.txt", "a")
    location = "filelocation:%2Fnsconfig%2Fssl"
    first = client.send("GET", f"/systemfile?args=filename:a.txt,{location}")
    second = client.send("GET", f"/systemfile/a.txt?args={location}")
    assert (first.status_code, second.status_code) == (by_args, by_name)


@pytest.mark.parametrize(("code", "status"), [(3441, 404), (258, 404), (1155, 599), (None, 200)])
def test_missing_files(
    ns: NetScaler, client: Client, code: Literal[3441, 258, 1155] | None, status: int
) -> None:
    ns.variant = Variant(missing_file=code)
    target = "/systemfile?args=filename:n.csr,filelocation:%2Fnsconfig%2Fssl"
    response = client.send("GET", target)
    assert told(response) == (status, code or 0)
    assert "systemfile" not in response.json()


def test_work_that_is_done_though_the_answer_says_otherwise(ns: NetScaler, client: Client) -> None:
    told_fault = Fault("told", matches=lambda r: "save" in r.query, response=nitro_error(458))
    ns.server.faults.append(told_fault)
    ns.running.put(dataclasses.replace(ns.install("www", *R1.issue("a.example")), cert="b.crt"))
    assert not ns.saved
    assert told(client.send("POST", "/nsconfig?action=save", {"nsconfig": {}})) == (599, 458)
    assert ns.saved


def test_answers_have_a_date_and_can_be_rewritten(ns: NetScaler, client: Client) -> None:
    ns.clock = lambda: dt.datetime(2027, 3, 1, 12, 30, tzinfo=dt.timezone.utc)
    answered = client.send("GET", "/nsversion")
    assert answered.headers["Date"] == "Mon, 01 Mar 2027 12:30:00 GMT"
    ns.server.rewrite = lambda _, response: dataclasses.replace(response, body=b"\xff")
    assert client.send("GET", "/nsversion").content == b"\xff"
    ns.server.rewrite = lambda _, __: maintenance_page()
    assert client.send("GET", "/nsversion").text.startswith("<!DOCTYPE html>")
    ns.server.clock = None
    assert "Date" not in client.send("GET", "/nsversion").headers


def test_faults_and_the_log_of_requests(ns: NetScaler, client: Client) -> None:
    busy = Fault("status", matches=lambda r: "save" in r.query, response=nitro_error(293))
    ns.server.faults.append(busy)
    assert told(client.send("POST", "/nsconfig?action=save", {"nsconfig": {}})) == (599, 293)
    client.do("POST", "/nsconfig?action=save")
    save = "POST /nitro/v1/config/nsconfig?action=save"
    assert ns.server.calls() == ["POST /nitro/v1/config/login", save, save]


@pytest.mark.parametrize(
    ("days", "status"), [(0, "Valid"), (-7, "Not yet valid"), (100, "Expired")]
)
def test_the_clock_can_be_moved(ns: NetScaler, client: Client, days: int, status: str) -> None:
    ns.install("www", *R1.issue("www.example.com"))
    now = dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=days)
    ns.clock = lambda: now
    (row,) = client.get("/sslcertkey/www")
    assert row["status"] == status
    assert (row["daystoexpiration"] < 0) == (status == "Expired")
