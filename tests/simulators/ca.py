"""A certificate authority shaped like Sectigo's, with real keys and real signatures.

Self-signed are USERTrust (the legacy root), Root R46 and Root E46; R46 and E46 exist as
certificates issued by USERTrust too. Leaves come from CA DV R36 (RSA keys, under R46) and CA DV
E36 (ECDSA keys, under E46), from R37 and E37 after ``authority.generation = 37``, and from Private
CA when asked for. The hierarchy is made once per process and shared by every Authority.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import ipaddress
import itertools
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclasses.dataclass(frozen=True)
class ChainStyle:
    """What a chain in PEM looks like.

    ``cross`` ends the chain with the new root's certificate by USERTrust instead of the new root's
    own; ``root`` adds the self-signed certificate at the end, be it USERTrust's or the new root's.
    """

    order: Literal["leaf-first", "root-first", "shuffled"] = "leaf-first"
    root: bool = True
    cross: bool = True
    crlf: bool = False


FULL = ChainStyle()


@dataclasses.dataclass(frozen=True)
class Signer:
    """A key of the authority with its certificate; ``issuer`` is None for a self-signed one."""

    key: PrivateKey
    certificate: x509.Certificate
    issuer: Signer | None = None
    cross: x509.Certificate | None = None


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "GB"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated Sectigo"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key(kind: str) -> PrivateKey:
    if kind == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP384R1())


def _hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA384() if isinstance(key, ec.EllipticCurvePrivateKey) else hashes.SHA256()


def key_usage(*, authority: bool = False, encipherment: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=encipherment,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value


def _authority_certificate(
    subject: str,
    key: PrivateKey,
    issuer: Signer | None = None,
    key_id: x509.SubjectKeyIdentifier | None = None,
) -> x509.Certificate:
    """Return a certificate for an authority's key, by ``issuer`` or self-signed."""
    # Real time on purpose: tests move the clocks of the program and of SCM by years.
    today = dt.datetime.now(dt.timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    own_id = key_id or x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_id = _key_id(issuer.certificate) if issuer else own_id
    signs_leaves = "CA" in subject.split()
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer.certificate.subject if issuer else _name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=5 * 365))
        .not_valid_after(today + dt.timedelta(days=25 * 365))
        .add_extension(
            x509.BasicConstraints(ca=True, path_length=0 if signs_leaves else None), critical=True
        )
        .add_extension(key_usage(authority=True), critical=True)
        .add_extension(own_id, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id),
            critical=False,
        )
        .sign(issuer.key if issuer else key, _hash(issuer.key if issuer else key))
    )


# name: kind of key, issuer, issuer of the cross-signed certificate
_SHAPE: dict[str, tuple[str, str | None, str | None]] = {
    "USERTrust": ("RSA", None, None),
    "Root R46": ("RSA", None, "USERTrust"),
    "Root E46": ("EC", None, "USERTrust"),
    "CA DV R36": ("RSA", "Root R46", None),
    "CA DV E36": ("EC", "Root E46", None),
    "CA DV R37": ("RSA", "Root R46", None),
    "CA DV E37": ("EC", "Root E46", None),
    "Private Root": ("EC", None, None),
    "Private CA": ("EC", "Private Root", None),
}


@functools.cache
def hierarchy() -> dict[str, Signer]:
    """Return the authority's keys and certificates by common name."""
    signers: dict[str, Signer] = {}
    for name, (kind, issuer_name, cross_name) in _SHAPE.items():
        key = _key(kind)
        issuer = signers[issuer_name] if issuer_name else None
        signers[name] = Signer(
            key=key,
            certificate=_authority_certificate(name, key, issuer),
            issuer=issuer,
            cross=_authority_certificate(name, key, signers[cross_name]) if cross_name else None,
        )
    return signers


def random_serials() -> Iterator[int]:
    while True:
        yield x509.random_serial_number()


def awkward_serials() -> Iterator[int]:
    """Yield serials that printing tools disagree on: a leading zero nibble, then a high bit.

    The first kind has an odd number of hex digits, the second a zero byte before it in DER.
    """
    for top_byte in itertools.cycle([0x0A, 0xF3]):
        yield (top_byte << 120) | secrets.randbits(120)


def general_name(name: str) -> x509.GeneralName:
    """Return an address as IPAddress and anything else as DNSName."""
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def to_pem(certificates: Iterable[x509.Certificate]) -> str:
    encoding = serialization.Encoding.PEM
    return "".join(certificate.public_bytes(encoding).decode() for certificate in certificates)


def render(path: Sequence[x509.Certificate], style: ChainStyle = FULL) -> str:
    """Return a path, which starts with the leaf, as PEM in the order and line ends of a style."""
    arranged = {
        "leaf-first": path,
        "root-first": path[::-1],
        # Every second block first: the same each time, and the leaf is never the first.
        "shuffled": [*path[1::2], *path[::2]],
    }
    pem = to_pem(arranged[style.order])
    return pem.replace("\n", "\r\n") if style.crlf else pem


class Authority:
    """Issues leaves; ``generation`` picks the intermediates, ``serials`` the serial numbers."""

    def __init__(self) -> None:
        self.generation = 36
        self.usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        self.added_names: Sequence[str] = ()  # put into every leaf, whatever was ordered
        self.serials = random_serials()
        self._signers = hierarchy()

    def issue(
        self,
        csr: x509.CertificateSigningRequest,
        names: Sequence[str],
        not_before: dt.datetime,
        days: int,
        *,
        private: bool = False,
    ) -> x509.Certificate:
        """Return a leaf that is valid for ``days``, both its first and its last second counted."""
        not_after = not_before + dt.timedelta(days=days, seconds=-1)
        return self.certify(csr.public_key(), names, not_before, not_after, private=private)

    def certify(
        self,
        key: CertificatePublicKeyTypes,
        names: Sequence[str],
        not_before: dt.datetime,
        not_after: dt.datetime,
        *,
        private: bool = False,
    ) -> x509.Certificate:
        """Return a leaf for a key; the kind of the key picks the hierarchy, names[0] is its CN."""
        is_rsa = isinstance(key, rsa.RSAPublicKey)
        kind = "R" if is_rsa else "E"
        signer = self._signers["Private CA" if private else f"CA DV {kind}{self.generation}"]
        signer_id = _key_id(signer.certificate)
        common_name = [name for name in names[:1] if len(name) <= 64]  # the limit of X.520
        all_names = dict.fromkeys((*names, *self.added_names))
        return (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_name])
            )
            .issuer_name(signer.certificate.subject)
            .public_key(key)
            .serial_number(next(self.serials))
            .not_valid_before(not_before.replace(microsecond=0))
            .not_valid_after(not_after.replace(microsecond=0))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer_id),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(key_usage(encipherment=is_rsa), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(self.usages), critical=False)
            .add_extension(
                x509.SubjectAlternativeName(list(map(general_name, all_names))), critical=False
            )
            .sign(signer.key, _hash(signer.key))
        )

    def path(self, leaf: x509.Certificate, style: ChainStyle = FULL) -> list[x509.Certificate]:
        """Return the leaf and its issuers in their order, as far up as the style wants."""
        signer = self._issuer_of(leaf)
        path = [leaf]
        while signer.issuer:
            path.append(signer.certificate)
            signer = signer.issuer
        if style.cross and signer.cross:
            path.append(signer.cross)
            signer = self._signers["USERTrust"]
        return [*path, signer.certificate] if style.root else path

    def chain(self, leaf: x509.Certificate, style: ChainStyle = FULL) -> str:
        """Return the PEM of a leaf with its issuers."""
        return render(self.path(leaf, style), style)

    def broken_path(
        self, leaf: x509.Certificate, style: ChainStyle = FULL
    ) -> list[x509.Certificate]:
        """Return a path whose intermediate has the right names and ids, but the wrong key."""
        genuine = self._issuer_of(leaf)
        name = genuine.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        impostor = _authority_certificate(
            str(name), _key("EC"), genuine.issuer, _key_id(genuine.certificate)
        )
        return [leaf, impostor, *self.path(leaf, style)[2:]]

    def _issuer_of(self, leaf: x509.Certificate) -> Signer:
        return next(s for s in self._signers.values() if s.certificate.subject == leaf.issuer)
