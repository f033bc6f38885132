"""Keys and certificates of a simulated NetScaler, and the configuration that they make up."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from simulators.nitro import NitroError

if TYPE_CHECKING:
    from simulators.listener import VirtualServer

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


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


@functools.lru_cache(100)  # to load an RSA key is to check it
def load_key(pem: bytes, code: int, passphrase: str = "") -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, passphrase.encode() or None)
    except (ValueError, TypeError):
        raise NitroError(code) from None
    if not isinstance(key, PrivateKey):
        raise NitroError(code)
    return key


def _pem_pair(cert: bytes, key: bytes, phrase: str) -> tuple[x509.Certificate, PrivateKey | None]:
    """Read PEM: the key from its file, or where none is named from beside the certificate."""
    beside = cert if b"PRIVATE KEY" in cert else b""
    certificate = x509.load_pem_x509_certificate(cert)
    return certificate, load_key(key or beside, 1537, phrase) if key or beside else None


def _der_pair(cert: bytes, key: bytes, _: str) -> tuple[x509.Certificate, PrivateKey | None]:
    loaded = serialization.load_der_private_key(key, None) if key else None
    assert loaded is None or isinstance(loaded, PrivateKey)
    return x509.load_der_x509_certificate(cert), loaded


def _pfx_pair(cert: bytes, _: bytes, phrase: str) -> tuple[x509.Certificate, PrivateKey | None]:
    key, certificate, _more = pkcs12.load_key_and_certificates(cert, phrase.encode() or None)
    assert certificate is not None
    assert isinstance(key, PrivateKey)
    return certificate, key


_READERS = {"PEM": _pem_pair, "DER": _der_pair, "PFX": _pfx_pair}


def read_pair(
    cert: bytes, key: bytes, inform: str, phrase: str
) -> tuple[x509.Certificate, PrivateKey | None]:
    """Read a certificate and its key from what their files hold, in a form that was named."""
    try:
        return _READERS[inform](cert, key, phrase)
    except (ValueError, TypeError):
        raise NitroError(1536) from None


@functools.lru_cache(1000)  # what is presented is looked at before and after every request
def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


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
    inform: str = "PEM"
    passphrase: str = dataclasses.field(default="", repr=False)
    builtin: bool = False  # the appliance's own: it serves the management

    @functools.cached_property
    def serial(self) -> str:
        number = self.certificate.serial_number
        return number.to_bytes((number.bit_length() + 7) // 8, "big").hex().upper()

    @functools.cached_property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @functools.cached_property
    def common_name(self) -> str | None:
        found = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(found[0].value) if found else None

    @functools.cached_property
    def alternatives(self) -> x509.SubjectAlternativeName:
        try:
            kind = x509.SubjectAlternativeName
            return self.certificate.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return x509.SubjectAlternativeName([])

    @functools.cached_property
    def dns_names(self) -> frozenset[str]:
        names = self.alternatives.get_values_for_type(x509.DNSName)
        return frozenset(name.lower() for name in names)

    @functools.cached_property
    def addresses(self) -> frozenset[str]:
        return frozenset(map(str, self.alternatives.get_values_for_type(x509.IPAddress)))

    @functools.cached_property
    def domains(self) -> frozenset[str]:
        common_name = {self.common_name.lower()} if self.common_name else set()
        return self.dns_names | self.addresses | common_name

    @functools.cached_property
    def key_type(self) -> str:
        return "RSA" if isinstance(public_key(self.certificate), rsa.RSAPublicKey) else "ECDSA"

    @functools.cached_property
    def is_ca(self) -> bool:
        try:
            kind = x509.BasicConstraints
            return self.certificate.extensions.get_extension_for_class(kind).value.ca
        except x509.ExtensionNotFound:
            return False

    def issued_by(self, issuer: CertKey) -> bool:
        return _is_issued_by(self.certificate, issuer.certificate) and issuer.is_ca


@dataclasses.dataclass(frozen=True)
class Binding:
    virtual_server: str
    certkey: str
    sni: bool = False
    ca: bool = False


@dataclasses.dataclass(frozen=True)
class Use:
    """A place other than a virtual server where a certkey is used: it cannot be updated there."""

    kind: Literal["vpn global", "service", "SAML", "AAA", "ADFS proxy"]
    name: str
    certkey: str


@dataclasses.dataclass(frozen=True)
class Others:
    """What other people have on an appliance: it lies under its configuration and never changes.

    What is done to it shows in the configuration above it (``touched``) and in the appliance's
    ``deleted`` files.
    """

    certkeys: Mapping[str, CertKey] = dataclasses.field(default_factory=dict)
    bindings: Sequence[Binding] = ()
    uses: Sequence[Use] = ()
    virtual_servers: Mapping[str, VirtualServer] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    secret_files: frozenset[str] = frozenset()  # those that hold a private key, in any form


NOBODY = Others()


@dataclasses.dataclass
class Configuration:
    """What ``save`` saves and a reboot restores, over what others have."""

    certkeys: dict[str, CertKey] = dataclasses.field(default_factory=dict)
    bindings: list[Binding] = dataclasses.field(default_factory=list)
    uses: list[Use] = dataclasses.field(default_factory=list)
    ended: list[Binding] = dataclasses.field(default_factory=list)  # bindings of others
    others: Others = NOBODY

    def copy(self) -> Configuration:
        lists = list(self.bindings), list(self.uses), list(self.ended)
        return Configuration(dict(self.certkeys), *lists, self.others)

    def put(self, certkey: CertKey) -> None:
        self.certkeys[certkey.name] = certkey

    def find(self, name: str) -> CertKey | None:
        return self.certkeys.get(name) or self.others.certkeys.get(name)

    def everything(self) -> list[CertKey]:
        """Return every certkey, those of others first."""
        return list({**self.others.certkeys, **self.certkeys}.values())

    def all_bindings(self) -> list[Binding]:
        kept = [binding for binding in self.others.bindings if binding not in self.ended]
        return [*kept, *self.bindings]

    def unbind(self, binding: Binding) -> None:
        if binding in self.bindings:
            self.bindings.remove(binding)
        else:
            self.ended.append(binding)

    def uses_of(self, name: str) -> list[Use]:
        return [use for use in (*self.others.uses, *self.uses) if use.certkey == name]

    def touched(self) -> list[str]:
        """Say what of others was changed."""
        changed = [f"certkey {name}" for name in self.certkeys if name in self.others.certkeys]
        theirs = self.others.virtual_servers
        added = [b for b in self.bindings if b.virtual_server in theirs]
        return changed + [f"{binding}" for binding in (*self.ended, *added)]

    def chain(self, certkey: CertKey) -> list[CertKey]:
        """Follow the links, from the leaf."""
        chain = [certkey]
        while issuer := self.find(chain[-1].link or ""):
            if issuer in chain:
                break
            chain.append(issuer)
        return chain

    def linked_to(self, name: str) -> list[CertKey]:
        return [certkey for certkey in self.everything() if certkey.link == name]

    def bound(self, server: str, *, sni: bool = False) -> list[CertKey]:
        """Return the server certificates of a virtual server: the default ones or those of SNI."""
        found = [
            self.find(binding.certkey)
            for binding in self.all_bindings()
            if binding.virtual_server == server and binding.sni == sni and not binding.ca
        ]
        return [certkey for certkey in found if certkey]

    def broken_links(self, changed: CertKey) -> list[CertKey]:
        """Return the links from and to a certificate that are wrong after its change."""
        issuer = self.find(changed.link or "")
        wrong = [changed] if issuer and not changed.issued_by(issuer) else []
        return wrong + [c for c in self.linked_to(changed.name) if not c.issued_by(changed)]
