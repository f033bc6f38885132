"""What other people have on an appliance: certkeys in every form, bound in every way.

    ns.settle(others())

It is made once per process and shared by every appliance: nothing may change it, and what is tried
shows in ``ns.touched()``. The virtual servers are only looked at, nobody listens there.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from simulators.certkeys import Binding, CertKey, Others, PrivateKey, Use, key_pem, pooled_rsa_key
from simulators.listener import VirtualServer

SSL = "/nsconfig/ssl"
PHRASE = "their phrase"
ADDRESS = ("203.0.113.7", 443)
_P256, _UNKNOWN_CURVE = bytes.fromhex("2A8648CE3D030107"), bytes.fromhex("2A8648CE3D030105")


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Someone:
    """An authority of theirs."""

    def __init__(self, name: str, issuer: Someone | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name(name)
        self.certificate = (issuer or self).certify(name, self.key, ca=True)

    def certify(
        self, common_name: str, key: PrivateKey, names: Sequence[str] = (), *, ca: bool = False
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1000))
            .not_valid_after(now + dt.timedelta(days=3000))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            alternatives = [x509.DNSName(name) for name in names or [common_name]]
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def encrypted(key: PrivateKey, phrase: str = PHRASE) -> bytes:
    """Return a key in PEM under a pass phrase."""
    lock = serialization.BestAvailableEncryption(phrase.encode())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, lock
    )


def pfx(certificate: x509.Certificate, key: PrivateKey, phrase: str = PHRASE) -> bytes:
    form = serialization.PrivateFormat.PKCS12.encryption_builder().kdf_rounds(1)
    lock = form.build(phrase.encode())
    return pkcs12.serialize_key_and_certificates(None, key, certificate, None, lock)


def der(thing: x509.Certificate | PrivateKey) -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.DER)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return thing.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption())


class _Site:
    """Collects what they have."""

    def __init__(self) -> None:
        self.certkeys: dict[str, CertKey] = {}
        self.bindings: list[Binding] = []
        self.uses: list[Use] = []
        self.servers: dict[str, VirtualServer] = {}
        self.files: dict[str, bytes] = {}
        self.secret: set[str] = set()

    def add(
        self,
        name: str,
        certificate: x509.Certificate,
        cert: tuple[str, bytes],
        key: tuple[str, bytes] | None = None,
        *,
        link: str = "",
        inform: str = "PEM",
    ) -> str:
        for file in filter(None, (cert, key)):
            self.files[self._path(file[0])] = file[1]
        key_name = key[0] if key else ""
        self.certkeys[name] = CertKey(
            name, cert[0], key_name, certificate, b"-", link or None, inform=inform
        )
        return name

    @staticmethod
    def _path(name: str) -> str:
        return name if name.startswith("/") else f"{SSL}/{name}"

    def hide(self, *names: str) -> None:
        self.secret |= {self._path(name) for name in names}

    def serve(self, name: str, kind: str, *, sni: bool = False, **more: str) -> str:
        self.servers[name] = VirtualServer(name, kind, sni=sni, address=ADDRESS, **more)
        return name

    def bind(self, server: str, certkey: str, *, sni: bool = False) -> None:
        self.bindings.append(Binding(server, certkey, sni))


def _authorities(site: _Site) -> Someone:
    """Have a chain whose issuing authority is linked to the self-signed twin of its root."""
    old, root = Someone("Their Old Root"), Someone("Their Root")
    cross = old.certify("Their Root", root.key, ca=True)
    issuer = Someone("Their CA", root)
    site.add("their_old_root", old.certificate, ("their_old_root.crt", pem(old.certificate)))
    site.add("their_root", root.certificate, ("their_root.crt", pem(root.certificate)))
    site.add("their_cross", cross, ("their_cross.crt", pem(cross)), link="their_old_root")
    own = issuer.certificate
    site.add("their_ca", own, ("their_ca.crt", pem(own)), link="their_root")
    return issuer


def _in_every_form(site: _Site, ca: Someone) -> None:
    rsa, key = pooled_rsa_key(2048), ec.generate_private_key(ec.SECP256R1())
    shop = ca.certify("shop.example.org", rsa)
    files = ("shop.crt", pem(shop)), ("shop.key", key_pem(rsa))
    site.bind("their_shop", site.add("their_shop", shop, *files, link="their_ca"))

    text = ca.certify("text.example.org", key)
    file = ("text.cer", b"Bag Attributes\n  none\n" + pem(text))  # as openssl pkcs12 writes it
    site.bind("their_text", site.add("their_text", text, file, ("text.pvk", key_pem(key))))

    binary = ca.certify("der.example.org", key)
    files = ("der.cer", der(binary)), ("der.bin", der(key))
    site.bind("their_portal", site.add("their_binary", binary, *files, inform="DER"))

    gateway = ca.certify("gateway.example.org", key)
    both = ("gateway.pfx", pfx(gateway, key))
    site.bind("their_gateway", site.add("their_gateway", gateway, both, both, inform="PFX"))
    site.uses.append(Use("vpn global", "", "their_gateway"))

    locked = ca.certify("*.example.org", key)
    files = ("wild.pem", pem(locked)), ("wild.priv", encrypted(key))
    site.bind("their_shop", site.add("their_wild", locked, *files), sni=True)

    both = ("both.pem", pem(one := ca.certify("one.example.org", key)) + key_pem(key))
    site.bind("their_login", site.add("their one file", one, both))
    site.hide("shop.key", "text.pvk", "der.bin", "gateway.pfx", "wild.priv", "both.pem")

    for name, folder in (("sub", "site/"), ("deep", f"{SSL}/site/"), ("far", "/var/certs/")):
        leaf = ca.certify(f"{name}.example.org", key)
        files = (f"{folder}{name}.crt", pem(leaf)), (f"{folder}{name}.key", key_pem(key))
        site.bind("their_shop", site.add(f"their_{name}", leaf, *files), sni=True)
        site.hide(f"{folder}{name}.key")


def _unreadable(site: _Site, ca: Someone) -> None:
    """Have what the appliance serves and the library does not read."""
    key = ec.generate_private_key(ec.SECP256R1())
    curve = ca.certify("curve.example.org", key)
    file = der(curve).replace(_P256, _UNKNOWN_CURVE)
    site.add("their_curve", curve, ("curve.crt", file), inform="DER")
    torn = ca.certify("torn.example.org", key)
    site.add("their_torn", torn, ("torn.crt", pem(torn).replace(b"M", b"?")))


def _elsewhere(site: _Site, ca: Someone) -> None:
    """Have certkeys at places that are no virtual servers, and the appliance's own."""
    key = ec.generate_private_key(ec.SECP256R1())
    for name, use in (("backend", "service"), ("idp", "SAML")):
        leaf = ca.certify(f"{name}.example.org", key)
        files = (f"{name}.crt", pem(leaf)), (f"{name}.key", key_pem(key))
        site.uses.append(Use(use, f"their_{name}", site.add(f"their_{name}", leaf, *files)))  # type: ignore[arg-type]
        site.hide(f"{name}.key")
    for name in ("ns-server-certificate", "ns-sftrust-certificate"):
        own = Someone(name).certify(name, key)
        files = (f"{name}.cert", pem(own)), (f"{name}.key", key_pem(key))
        site.add(name, own, *files)
        site.hide(f"{name}.key")
    built = {n: row for n, row in site.certkeys.items() if n.startswith("ns-")}
    for name, row in built.items():
        site.certkeys[name] = _builtin(row)


def _builtin(row: CertKey) -> CertKey:
    return CertKey(row.name, row.cert, row.key, row.certificate, row.private_key, builtin=True)


@functools.cache
def others() -> Others:
    site = _Site()
    site.serve("their_shop", "load_balancing", sni=True)
    site.serve("their_text", "load_balancing")
    site.serve("their_portal", "content_switching")
    site.serve("their_gateway", "gateway")
    site.serve("their_login", "authentication")
    site.serve("their_profile", "load_balancing", sni=True, profile="their_tls")
    site.serve("their_bundle", "load_balancing", bundle="their_certificates")
    ca = _authorities(site)
    _in_every_form(site, ca)
    _unreadable(site, ca)
    _elsewhere(site, ca)
    return Others(
        certkeys=site.certkeys,
        bindings=site.bindings,
        uses=site.uses,
        virtual_servers=site.servers,
        files=site.files,
        secret_files=frozenset(site.secret),
    )
