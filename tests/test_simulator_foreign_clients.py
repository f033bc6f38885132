"""The simulated NetScaler, driven by clients that others wrote.

They keep the simulator from drifting towards our own client.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
import time
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from simulators import foreign
from simulators.netscaler import NetScaler, Variant, VirtualServer

pytestmark = pytest.mark.long  # their environment takes a while to install
REQUIREMENTS = ("check_netscaler==3.0.0", "netscaler-certbot-hook==3.0.0")


@pytest.fixture(scope="session")
def python() -> str:
    return foreign.python(REQUIREMENTS, oldest=12)


class Ca:
    """An intermediate of a throwaway authority."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        root_key = ec.generate_private_key(ec.SECP256R1())
        root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Root")])
        builder = self._builder(self.name, root, self.key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = builder.sign(root_key, hashes.SHA256())

    def issue(self, folder: pathlib.Path, name: str, days: int = 90) -> x509.Certificate:
        """Write cert.pem, privkey.pem and chain.pem, as certbot does."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = self._builder(subject, self.name, key, days).add_extension(names, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        folder.mkdir(exist_ok=True)
        (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "chain.pem").write_bytes(
            self.certificate.public_bytes(serialization.Encoding.PEM)
        )
        (folder / "privkey.pem").write_bytes(private)
        return certificate

    @staticmethod
    def _builder(
        subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 90
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=days, hours=1))
        )


@dataclasses.dataclass(frozen=True)
class Site:
    """An appliance with a virtual server, and the clients that manage it."""

    ns: NetScaler
    server: VirtualServer
    folder: pathlib.Path
    python: str

    def run(self, *arguments: str) -> foreign.Done:
        environment = {
            "NETSCALER_HOST": "127.0.0.1",
            "NETSCALER_USER": "admin",
            "NETSCALER_PASS": "secret",
            "NS_URL": f"https://{self.ns.host}",
            "NS_LOGIN": "admin",
            "NS_PASSWORD": "secret",
        }
        return foreign.run([self.python, "-m", *arguments], self.folder, environment)

    def check(self, *arguments: str) -> tuple[int, str]:
        """Run check_netscaler; over HTTPS it has no way to verify the appliance."""
        port = str(self.ns.server.port)
        done = self.run("check_netscaler", "--port", port, "--command", *arguments)
        return done.returncode, done.stdout + done.stderr

    def hook(self, *options: str) -> str:
        """Run netscaler-certbot-hook, which verifies the appliance."""
        files = [f"--{o}={self.folder / f}.pem" for o, f in FILES.items()]
        done = self.run("netscaler_certbot_hook", "--name", "www", *files, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


FILES = {"cert": "cert", "privkey": "privkey", "chain-cert": "chain"}
E1, E2 = Ca("E1"), Ca("E2")


@pytest.fixture
def site(tmp_path: pathlib.Path, python: str) -> Iterator[Site]:
    with NetScaler() as ns:
        ns.add_user("admin", "secret")
        server = ns.add_virtual_server("vs_www", "load_balancing")
        yield Site(ns, server, tmp_path, python)


def install(site: Site, days: int) -> None:
    E1.issue(site.folder, "www.example.com", days)
    texts = [(site.folder / f"{name}.pem").read_text() for name in FILES.values()]
    site.ns.install("www", texts[0], texts[1], chain=texts[2:])


@pytest.mark.parametrize(
    ("days", "code", "text"),
    [(90, 0, "2 certificate(s) OK"), (20, 1, "www expires in 20 days"), (5, 2, "in 5 days")],
)
def test_a_monitor_sees_when_certificates_expire(
    site: Site, days: int, code: int, text: str
) -> None:
    install(site, days)
    status, output = site.check("sslcert")
    assert status == code, output
    assert text in output
    assert (site.ns.logins, site.ns.sessions) == (1, {})


def test_a_monitor_sees_what_is_not_saved(site: Site) -> None:
    install(site, 90)
    assert site.check("nsconfig")[0] == 0
    del site.ns.certkeys["www"]
    status, output = site.check("nsconfig")
    assert (status, "Unsaved configuration changes" in output) == (1, True)
    site.ns.save()
    assert site.check("nsconfig")[0] == 0


def test_a_monitor_sees_the_state_of_a_pair(site: Site) -> None:
    assert "not configured for high availability" in site.check("hastatus")[1]
    site.ns.ha_state = "Primary"
    status, output = site.check("hastatus")
    assert (status, "hacurmasterstate Primary" in output) == (0, True)


def test_a_monitor_without_a_password(site: Site) -> None:
    site.ns.add_user("admin", "changed")
    assert "Authentication failed" in site.check("nsconfig")[1]
    assert site.ns.failed_logins == 1


def test_certbot_installs_renews_and_rests(site: Site) -> None:
    ns = site.ns
    old = E1.issue(site.folder, "www.example.com")
    site.hook()
    assert ns.certkeys["www"].certificate == old
    assert ns.certkeys["www"].link == "E1"
    assert ns.saved
    ns.bind("vs_www", "www")
    assert site.server.handshake() == [old, E1.certificate]

    assert "nothing to do" in site.hook()
    assert ns.certkeys["www"].certificate == old

    time.sleep(1)  # its file names are made of seconds
    new = E1.issue(site.folder, "www.example.com")
    site.hook()
    assert site.server.handshake() == [new, E1.certificate]
    assert ns.saved
    assert ns.header_logins == len(ns.server.requests)


def test_certbot_follows_another_issuer(site: Site) -> None:
    # It unlinks after the update, so it expects an appliance that keeps a wrong link.
    site.ns.variant = Variant(update_link="keep")
    E1.issue(site.folder, "www.example.com")
    site.hook()
    site.ns.bind("vs_www", "www")
    time.sleep(1)
    new = E2.issue(site.folder, "www.example.com")
    site.hook()
    assert site.server.handshake() == [new, E2.certificate]


def test_certbot_is_told_of_other_names(site: Site) -> None:
    E1.issue(site.folder, "www.example.com")
    site.hook()
    time.sleep(1)
    new = E1.issue(site.folder, "other.example.com")
    with pytest.raises(AssertionError, match="599"):
        site.hook()
    time.sleep(1)
    site.hook("--no-domain-check")
    assert site.ns.certkeys["www"].certificate == new
