"""The state of a NetScaler appliance: configuration, files, keys, virtual servers, users.

The running configuration is one object (Configuration), saved and restored as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import threading
from collections.abc import Callable, Iterator
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from simulators.listener import Presented, VirtualServer
from simulators.nitro import NitroError

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
SSL_FOLDER = "/nsconfig/ssl"


@dataclasses.dataclass(frozen=True)
class Variant:
    """Behaviour that differs between appliances; a client has to cope with every value."""

    single_objects: bool = True  # False: also nsversion and its like answer with a list
    write_bodies: bool = False  # True: writes answer with a body
    numbers_as_strings: bool = False
    omit_false: bool = False  # True: attributes that are false are left out
    created: Literal[200, 201] = 201
    download: Literal["both", "args", "name"] = "both"  # form of the URL that reads a file
    missing_file: Literal[3441, 1155, 258] | None = 3441  # None: 200 without rows
    missing_certkey: Literal[599, 404] = 599
    update_link: Literal["break", "keep", "refuse"] = "break"  # the new issuer is another one
    certkey_name_limit: Literal[31, 63] = 31
    sandns: bool | None = None  # rows of sslcertkey tell the alternative names; None: since 14.1
    ecdsa: bool = True


def _rsa_keys(bits: int) -> Iterator[rsa.RSAPrivateKey]:
    """Make keys cheaply: each pair out of a growing set of primes is a key of its own.

    No two are the same; that they share primes makes them worthless outside of tests.
    """
    primes: list[int] = []
    while True:
        made = rsa.generate_private_key(65537, bits).private_numbers()
        for q in (made.p, made.q):
            for p in primes:
                yield _rsa_key(p, q)
            primes.append(q)


def _rsa_key(p: int, q: int) -> rsa.RSAPrivateKey:
    d = pow(65537, -1, (p - 1) * (q - 1))
    crt = (rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q))
    numbers = rsa.RSAPrivateNumbers(p, q, d, *crt, rsa.RSAPublicNumbers(65537, p * q))
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


_pool: dict[int, Iterator[rsa.RSAPrivateKey]] = {}
_pool_lock = threading.Lock()


def pooled_rsa_key(bits: int) -> rsa.RSAPrivateKey:
    with _pool_lock:
        return next(_pool.setdefault(bits, _rsa_keys(bits)))


def key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def public_key(holder: PrivateKey | x509.Certificate) -> PublicKey:
    key = holder.public_key()
    if not isinstance(key, PublicKey):
        raise NitroError(1536)
    return key


def load_key(pem: bytes, code: int) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise NitroError(code) from None
    if not isinstance(key, PrivateKey):
        raise NitroError(code)
    return key


@dataclasses.dataclass(frozen=True)
class CertKey:
    """A certificate in the configuration; ``cert`` and ``key`` are the file names as given."""

    name: str
    cert: str
    key: str
    certificate: x509.Certificate
    private_key: bytes = dataclasses.field(default=b"", repr=False)
    link: str | None = None
    expirymonitor: str = "ENABLED"
    notificationperiod: int = 30

    @property
    def serial(self) -> str:
        number = self.certificate.serial_number
        return number.to_bytes((number.bit_length() + 7) // 8, "big").hex().upper()

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def common_name(self) -> str | None:
        found = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(found[0].value) if found else None

    @property
    def alternatives(self) -> x509.SubjectAlternativeName:
        try:
            kind = x509.SubjectAlternativeName
            return self.certificate.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return x509.SubjectAlternativeName([])

    @property
    def dns_names(self) -> frozenset[str]:
        names = self.alternatives.get_values_for_type(x509.DNSName)
        return frozenset(name.lower() for name in names)

    @property
    def addresses(self) -> frozenset[str]:
        return frozenset(map(str, self.alternatives.get_values_for_type(x509.IPAddress)))

    @property
    def domains(self) -> frozenset[str]:
        common_name = {self.common_name.lower()} if self.common_name else set()
        return self.dns_names | self.addresses | common_name

    @property
    def key_type(self) -> str:
        return "RSA" if isinstance(public_key(self.certificate), rsa.RSAPublicKey) else "ECDSA"

    @property
    def is_ca(self) -> bool:
        try:
            kind = x509.BasicConstraints
            return self.certificate.extensions.get_extension_for_class(kind).value.ca
        except x509.ExtensionNotFound:
            return False

    def issued_by(self, issuer: CertKey) -> bool:
        try:
            self.certificate.verify_directly_issued_by(issuer.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return issuer.is_ca


@dataclasses.dataclass(frozen=True)
class Binding:
    virtual_server: str
    certkey: str
    sni: bool = False
    ca: bool = False


@dataclasses.dataclass
class Configuration:
    """What ``save`` saves and a reboot restores."""

    certkeys: dict[str, CertKey] = dataclasses.field(default_factory=dict)
    bindings: list[Binding] = dataclasses.field(default_factory=list)

    def copy(self) -> Configuration:
        return Configuration(dict(self.certkeys), list(self.bindings))

    def put(self, certkey: CertKey) -> None:
        self.certkeys[certkey.name] = certkey

    def chain(self, certkey: CertKey) -> list[CertKey]:
        """Follow the links, from the leaf."""
        chain = [certkey]
        while chain[-1].link and (issuer := self.certkeys[chain[-1].link]) not in chain:
            chain.append(issuer)
        return chain

    def linked_to(self, name: str) -> list[CertKey]:
        return [certkey for certkey in self.certkeys.values() if certkey.link == name]

    def bound(self, server: str, *, sni: bool = False) -> list[CertKey]:
        """Return the server certificates of a virtual server: the default ones or those of SNI."""
        return [
            self.certkeys[binding.certkey]
            for binding in self.bindings
            if binding.virtual_server == server and binding.sni == sni and not binding.ca
        ]

    def broken_links(self, changed: CertKey) -> list[CertKey]:
        """Return the links from and to a certificate that are wrong after its change."""
        issuer = self.certkeys[changed.link] if changed.link else None
        wrong = [changed] if issuer and not changed.issued_by(issuer) else []
        return wrong + [c for c in self.linked_to(changed.name) if not c.issued_by(changed)]


class Appliance:
    """The state of one appliance and what operations need to look at it and to change it."""

    def __init__(self, release: str, variant: Variant) -> None:
        self.release = release
        self.variant = variant
        self.clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.timezone.utc)
        self.running = Configuration()
        self.files: dict[str, bytes] = {}
        self.virtual_servers: dict[str, VirtualServer] = {}
        self.ha_state: Literal["Primary", "Secondary"] | None = None
        self.file_syncs: list[list[str]] = []
        self.private_keys_read: list[str] = []
        self.key_pool = True
        self.saved_at = self.clock()
        self.written_at: dict[str, dt.datetime] = {}
        self._saved = Configuration()

    @property
    def certkeys(self) -> dict[str, CertKey]:
        return self.running.certkeys

    @property
    def bindings(self) -> list[Binding]:
        return self.running.bindings

    @property
    def saved(self) -> bool:
        return self.running == self._saved

    @property
    def tells_alternatives(self) -> bool:
        modern = tuple(map(int, self.release.split("."))) >= (14, 1)
        return modern if self.variant.sandns is None else self.variant.sandns

    def save(self) -> None:
        self._saved = self.running.copy()
        self.saved_at = self.clock()
        self.refresh()

    def restore(self) -> None:
        """Return to the saved configuration; what its files no longer give is lost."""
        self.running = Configuration()
        for certkey in self._saved.certkeys.values():
            with contextlib.suppress(NitroError):
                certificate, key = self.load(certkey.cert, certkey.key)
                new = dataclasses.replace(certkey, certificate=certificate, private_key=key)
                self.running.put(new)
        for certkey in list(self.certkeys.values()):
            if certkey.link not in self.certkeys:
                self.running.put(dataclasses.replace(certkey, link=None))
        self.running.bindings = [b for b in self._saved.bindings if b.certkey in self.certkeys]
        self.refresh()

    def refresh(self) -> None:
        """Let the virtual servers present what is bound now."""
        for name, server in self.virtual_servers.items():
            default = [self._presented(certkey) for certkey in self.running.bound(name)]
            by_name = [self._presented(certkey) for certkey in self.running.bound(name, sni=True)]
            server.present(default, by_name)

    def _presented(self, certkey: CertKey) -> Presented:
        chain = "".join(item.pem for item in self.running.chain(certkey))
        names = certkey.dns_names or certkey.domains
        return Presented(chain, certkey.private_key.decode(), certkey.serial, names)

    # files

    def path(self, name: str) -> str:
        return name if "/" in name else f"{SSL_FOLDER}/{name}"

    def write(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.written_at[path] = self.clock()

    def create(self, name: str, content: bytes) -> None:
        """Write a new file in the SSL directory."""
        path = self.path(name)
        if path.rpartition("/")[0] != SSL_FOLDER:
            raise NitroError(1645)
        if path in self.files:
            raise NitroError(1642)
        self.write(path, content)

    def read(self, name: str) -> bytes:
        if self.path(name) not in self.files:
            raise NitroError(1647)
        return self.files[self.path(name)]

    def load(self, cert: str, key: str, kept: bytes = b"") -> tuple[x509.Certificate, bytes]:
        """Read a certificate and its key from their files; no key file: the key is ``kept``."""
        pem, private_key = self.read(cert), self.read(key) if key else kept
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise NitroError(1536) from None
        public = public_key(certificate)
        if private_key and public_key(load_key(private_key, 1537)) != public:
            raise NitroError(1538)
        if isinstance(public, ec.EllipticCurvePublicKey) and not self.variant.ecdsa:
            raise NitroError(1675)
        return certificate, private_key

    # look-ups that refuse what is not there, or there already

    def certkey(self, name: str) -> CertKey:
        if name not in self.certkeys:
            raise NitroError(1540, status=self.variant.missing_certkey)
        return self.certkeys[name]

    def tls_server(self, name: str) -> VirtualServer:
        if name not in self.virtual_servers:
            raise NitroError(461)
        if not self.virtual_servers[name].has_tls:
            raise NitroError(1544)
        return self.virtual_servers[name]

    def check_unique(self, certificate: x509.Certificate, name: str) -> None:
        for other in self.certkeys.values():
            if other.certificate == certificate and other.name != name:
                raise NitroError(273, "certkeyName Contents", other.name)
