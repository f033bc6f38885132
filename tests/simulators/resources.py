"""What NITRO requests do to an appliance, resource by resource.

    @operation("sslcertkey", "unlink", "unlink ssl certKey", CERTKEY)

is ``POST /sslcertkey?action=unlink``, the command ``unlink ssl certKey NAME``, its arguments, and
above all the function that carries it out or refuses.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import functools
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from simulators.appliance import Partition
from simulators.certkeys import Binding, CertKey, key_pem, load_key, pooled_rsa_key, public_key
from simulators.listener import KINDS, VirtualServer
from simulators.nitro import Field, NitroError, Row, Values, operation

FILE_TYPES = ("txt", "cert", "crt", "cer", "pem", "req", "csr", "xml", "lic", "key")
FILE_LIMIT = 2 * 1024 * 1024
SHORT_NAMES = {
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COMMON_NAME: "CN",
    NameOID.EMAIL_ADDRESS: "emailAddress",
}
SIGNATURE_NAMES = {
    SignatureAlgorithmOID.RSA_WITH_SHA256: "sha256WithRSAEncryption",
    SignatureAlgorithmOID.RSA_WITH_SHA384: "sha384WithRSAEncryption",
    SignatureAlgorithmOID.RSA_WITH_SHA512: "sha512WithRSAEncryption",
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: "ecdsa-with-SHA256",
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: "ecdsa-with-SHA384",
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: "ecdsa-with-SHA512",
}

NAME = "[A-Za-z0-9_][A-Za-z0-9_#. :@=-]*"
FORM = Field("inform", choices=("PEM", "DER", "PFX"))
PHRASE = Field("passplain", high=31)
CERTKEY = Field("certkeyName", required=True, high=63, pattern=NAME, key="certkey")
CERT = Field("cert", "path", high=63)
KEY = Field("key", "path", high=63)
MONITOR = Field("expiryMonitor", choices=("ENABLED", "DISABLED"))
PERIOD = Field("notificationPeriod", "number", low=10, high=100)
LINK = Field("linkCertKeyName", pattern=NAME)
SERVER_NAME = Field("vServerName", required=True, high=127)
KEY_FORM = Field("keyform", choices=("PEM",))


# files

FILE_NAME = Field("fileName", required=True, high=63)
FILE_LOCATION = Field("fileLocation", required=True, high=127)


@operation(
    "systemfile",
    "add",
    "add system file",
    FILE_NAME,
    FILE_LOCATION,
    Field("fileContent", "content", required=True, high=FILE_LIMIT * 4 // 3 + 4),
    Field("fileEncoding"),
)
def upload_file(ns: Partition, values: Values) -> None:
    path = _file_path(ns, values, 1645)
    if values.text("filename").rpartition(".")[2] not in FILE_TYPES:
        raise NitroError(3442)
    if values.get("fileencoding", "BASE64") != "BASE64":
        raise NitroError(3444)
    if ns.box.content(path) is not None:
        raise NitroError(1642)
    try:
        content = base64.b64decode(values.text("filecontent"), validate=True)
    except binascii.Error:
        raise NitroError(3443) from None
    ns.box.write(path, content)


def _file_path(ns: Partition, values: Values, elsewhere: Literal[1645, 1647]) -> str:
    """Return the path of a file; ``elsewhere`` refuses what other partitions have."""
    location, name = values.text("filelocation"), values.text("filename")
    if location not in ns.folders:
        raise NitroError(elsewhere if location in ns.box.folders else 3440)
    if "/" in name:
        raise NitroError(1097, "fileName", name)
    return f"{location}/{name}"


def _file_row(ns: Partition, path: str) -> Row:
    location, _, name = path.rpartition("/")
    time = f"{ns.box.written_at.get(path, ns.saved_at):%c}"
    return {
        "filename": name,
        "filelocation": location,
        "fileaccesstime": time,
        "filemodifiedtime": time,
        "filesize": str(len(ns.box.content(path) or b"")),
    }


@operation(
    "systemfile",
    "list",
    "show system file",
    dataclasses.replace(FILE_NAME, required=False),
    FILE_LOCATION,
)
def show_files(ns: Partition, values: Values) -> list[Row]:
    if "filename" in values:
        return _download(ns, values)
    folder = _file_path(ns, values, 1647).removesuffix("/")
    theirs = set(ns.running.others.files) - set(ns.box.deleted)
    found = sorted({*ns.box.files, *theirs})
    paths = [path for path in found if path.rpartition("/")[0] == folder]
    return [_file_row(ns, path) for path in paths]


@operation("systemfile", "get", "show system file", FILE_NAME, FILE_LOCATION)
def show_file(ns: Partition, values: Values) -> list[Row]:
    if ns.box.variant.download == "args":
        raise NitroError(1240, "get")
    return _download(ns, values)


def _download(ns: Partition, values: Values) -> list[Row]:
    path = _file_path(ns, values, 1647)
    content = ns.box.content(path)
    if content is None:
        if ns.box.variant.missing_file is None:
            return []
        raise NitroError(ns.box.variant.missing_file)
    ns.box.files_read.append(path)
    if b"PRIVATE KEY" in content or path in ns.running.others.secret_files:
        ns.box.private_keys_read.append(values.text("filename"))
    encoded = base64.b64encode(content).decode()
    return [_file_row(ns, path) | {"filecontent": encoded, "fileencoding": "BASE64"}]


@operation("systemfile", "delete", "rm system file", FILE_NAME, FILE_LOCATION)
def delete_file(ns: Partition, values: Values) -> None:
    path = _file_path(ns, values, 1647)
    if ns.box.content(path) is None:
        raise NitroError(ns.box.variant.missing_file or 3441)
    if not ns.box.files.pop(path, b""):
        ns.box.deleted.append(path)


# keys and requests

KEY_FILE = Field("keyFile", "path", required=True, high=63)


@operation(
    "sslrsakey",
    "create",
    "create ssl rsakey",
    KEY_FILE,
    Field("bits", "number", required=True, low=1024, high=4096),
    Field("exponent", choices=("F4",)),
    KEY_FORM,
)
def create_rsa_key(ns: Partition, values: Values) -> None:
    bits = values.number("bits", 0)
    key = pooled_rsa_key(bits) if ns.box.key_pool else rsa.generate_private_key(65537, bits)
    ns.create(values.text("keyfile"), key_pem(key))


CURVES = {"P_256": ec.SECP256R1(), "P_384": ec.SECP384R1()}


@operation(
    "sslecdsakey",
    "create",
    "create ssl ecdsakey",
    KEY_FILE,
    Field("curve", required=True, choices=tuple(CURVES)),
    KEY_FORM,
)
def create_ecdsa_key(ns: Partition, values: Values) -> None:
    curve = CURVES[values.text("curve")]
    ns.create(values.text("keyfile"), key_pem(ec.generate_private_key(curve)))


SUBJECT = {
    "countryname": NameOID.COUNTRY_NAME,
    "statename": NameOID.STATE_OR_PROVINCE_NAME,
    "localityname": NameOID.LOCALITY_NAME,
    "organizationname": NameOID.ORGANIZATION_NAME,
    "organizationunitname": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "commonname": NameOID.COMMON_NAME,
    "emailaddress": NameOID.EMAIL_ADDRESS,
}


@operation(
    "sslcertreq",
    "create",
    "create ssl certReq",
    Field("reqFile", "path", required=True, high=63),
    KEY_FILE,
    Field("countryName", required=True, low=2, high=2),
    Field("stateName", required=True),
    Field("organizationName", required=True),
    Field("organizationUnitName"),
    Field("localityName"),
    Field("commonName"),
    Field("emailAddress"),
    Field("subjectAltName", high=65535),
    Field("digestMethod", choices=("SHA256",)),
    KEY_FORM,
)
def create_request(ns: Partition, values: Values) -> None:
    key = load_key(ns.read(values.text("keyfile")), 1639)
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(values))
    if names := _alternatives(values.text("subjectaltname")):
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    request = builder.sign(key, hashes.SHA256())
    ns.create(values.text("reqfile"), request.public_bytes(serialization.Encoding.PEM))


def _subject(values: Values) -> x509.Name:
    try:
        return x509.Name(
            x509.NameAttribute(oid, values.text(key))
            for key, oid in SUBJECT.items()
            if key in values
        )
    except ValueError:
        raise NitroError(1684) from None


NAME_KINDS: dict[str, Callable[[str], x509.GeneralName]] = {
    "DNS": x509.DNSName,
    "IP": lambda text: x509.IPAddress(ipaddress.ip_address(text)),
    "email": x509.RFC822Name,
    "URI": x509.UniformResourceIdentifier,
}


def _alternatives(text: str) -> list[x509.GeneralName]:
    """Parse ``DNS:a IP:b``: entries with a kind each, between blanks or commas."""
    return [_alternative(entry) for entry in re.findall(r"[^ ,]+", text)]


def _alternative(entry: str) -> x509.GeneralName:
    kind, _, value = entry.partition(":")
    if kind not in NAME_KINDS or not value:
        raise NitroError(1097, "subjectAltName", entry)
    try:
        return NAME_KINDS[kind](value)
    except ValueError:
        raise NitroError(1097, "subjectAltName", entry) from None


# certificates


def _check_name_length(ns: Partition, name: str) -> None:
    if len(name) > ns.box.variant.certkey_name_limit:
        raise NitroError(1106, CERTKEY.cli, ns.box.variant.certkey_name_limit)


@operation(
    "sslcertkey",
    "add",
    "add ssl certKey",
    CERTKEY,
    dataclasses.replace(CERT, required=True),
    KEY,
    FORM,
    PHRASE,
    MONITOR,
    PERIOD,
    LINK,
)
def add_certkey(ns: Partition, values: Values) -> None:
    """Add a certificate; a link that is given here is ignored, like by the product."""
    name, cert, key = values.text("certkey"), values.text("cert"), values.text("key")
    _check_name_length(ns, name)
    if ns.running.find(name):
        raise NitroError(273, "certkeyName", name)
    inform, phrase = values.text("inform") or "PEM", values.text("passplain")
    certificate, private_key = ns.load(cert, key, inform=inform, passphrase=phrase)
    ns.check_unique(certificate, name)
    monitor = values.text("expirymonitor") or "ENABLED"
    period = values.number("notificationperiod", 30)
    new = CertKey(name, cert, key, certificate, private_key, None, monitor, period, inform, phrase)
    ns.running.put(new)


@operation(
    "sslcertkey",
    "update",
    "update ssl certKey",
    CERTKEY,
    CERT,
    KEY,
    FORM,
    PHRASE,
    Field("noDomainCheck", "flag"),
)
def update_certkey(ns: Partition, values: Values) -> None:
    old = ns.certkey(values.text("certkey"))
    if not values.keys() & {"cert", "key"}:
        raise NitroError(1094)
    cert, key = values.text("cert") or old.cert, values.text("key")
    kept = old.inform if ns.box.variant.update_form == "keep" else "PEM"
    inform, phrase = values.text("inform") or kept, values.text("passplain")
    for use in ns.running.uses_of(old.name):
        raise NitroError({"AAA": 3374, "ADFS proxy": 3375}.get(use.kind, 1541))
    certificate, private_key = ns.load(cert, key, old.private_key, inform=inform, passphrase=phrase)
    ns.check_unique(certificate, old.name)
    new = dataclasses.replace(
        old,
        cert=cert,
        key=key or old.key,
        certificate=certificate,
        private_key=private_key,
        inform=inform,
        passphrase=phrase,
    )
    same = (new.common_name, new.domains) == (old.common_name, old.domains)
    if not (same or values.flag("nodomaincheck")):
        raise NitroError(3585)
    broken = ns.running.broken_links(new)
    if broken and ns.box.variant.update_link == "refuse":
        raise NitroError(1548)
    ns.running.put(new)
    _drop_misnamed(ns, new)
    if ns.box.variant.update_link == "break":
        for certkey in broken:
            ns.running.put(dataclasses.replace(certkey, link=None))


@operation("sslcertkey", "set", "set ssl certKey", CERTKEY, MONITOR, PERIOD)
def set_certkey(ns: Partition, values: Values) -> None:
    old = ns.certkey(values.text("certkey"))
    monitor = values.text("expirymonitor") or old.expirymonitor
    period = values.number("notificationperiod", old.notificationperiod)
    ns.running.put(dataclasses.replace(old, expirymonitor=monitor, notificationperiod=period))


@operation(
    "sslcertkey", "link", "link ssl certKey", CERTKEY, dataclasses.replace(LINK, required=True)
)
def link_certkey(ns: Partition, values: Values) -> None:
    certkey, issuer = ns.certkey(values.text("certkey")), ns.certkey(values.text("linkcertkeyname"))
    if certkey.link:
        raise NitroError(273, "certkeyName", certkey.name)
    if certkey == issuer:
        raise NitroError(1543)
    if certkey in ns.running.chain(issuer):
        raise NitroError(1677)
    if not certkey.issued_by(issuer):
        raise NitroError(1548)
    ns.running.put(dataclasses.replace(certkey, link=issuer.name))


@operation("sslcertkey", "unlink", "unlink ssl certKey", CERTKEY)
def unlink_certkey(ns: Partition, values: Values) -> None:
    certkey = ns.certkey(values.text("certkey"))
    if not certkey.link:
        raise NitroError(1545)
    ns.running.put(dataclasses.replace(certkey, link=None))


@operation("sslcertkey", "delete", "rm ssl certKey", CERTKEY)
def delete_certkey(ns: Partition, values: Values) -> None:
    certkey = ns.certkey(values.text("certkey"))
    if certkey.builtin:
        raise NitroError(3719)
    bound = any(binding.certkey == certkey.name for binding in ns.running.all_bindings())
    if (
        bound
        or certkey.name not in ns.certkeys
        or ns.running.uses_of(certkey.name)
        or ns.running.linked_to(certkey.name)
    ):
        raise NitroError(1541)
    del ns.certkeys[certkey.name]


@functools.cache
def _certificate_part(certificate: x509.Certificate) -> Row:
    """Return what a row of sslcertkey tells of the certificate alone: the same every time."""
    key = public_key(certificate)
    return {
        "signaturealg": SIGNATURE_NAMES.get(certificate.signature_algorithm_oid, "unknown"),
        "issuer": _distinguished(certificate.issuer),
        "clientcertnotbefore": _certificate_time(certificate.not_valid_before_utc),
        "clientcertnotafter": _certificate_time(certificate.not_valid_after_utc),
        "subject": _distinguished(certificate.subject),
        "publickey": "rsaEncryption" if isinstance(key, rsa.RSAPublicKey) else "id-ecPublicKey",
        "publickeysize": key.key_size,
        "version": 3,
    }


def _certkey_row(ns: Partition, certkey: CertKey) -> Row:
    certificate = certkey.certificate
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = ns.box.clock()
    row: Row = {
        **_certificate_part(certificate),
        "certkey": certkey.name,
        "cert": certkey.cert,
        **({"key": certkey.key} if certkey.key else {}),
        "inform": certkey.inform,
        "certificatetype": ["INTM_CERT"] if certkey.is_ca else ["CLNT_CERT", "SRVR_CERT"],
        "serial": certkey.serial,
        "daystoexpiration": (end - now).days,
        "priority": "0",
        "status": "Not yet valid" if now < start else "Expired" if now > end else "Valid",
        "passcrypt": "c2VjcmV0" if certkey.passphrase else "",
        "data": "0",
        "servername": "",
        "servicename": "",
        "expirymonitor": certkey.expirymonitor,
        "notificationperiod": str(certkey.notificationperiod),
        "ocspresponsestatus": "NONE",
    }
    if certkey.link:
        row["linkcertkeyname"] = certkey.link
    if ns.box.tells_alternatives:
        row["sandns"] = " ".join(sorted(certkey.dns_names))
        row["sanipadd"] = " ".join(sorted(certkey.addresses))
    return row


def _distinguished(name: x509.Name) -> str:
    parts = [f"{SHORT_NAMES.get(a.oid, a.oid.dotted_string)}={a.value!s}" for a in name]
    return " " + ",".join(parts)


def _certificate_time(time: dt.datetime) -> str:
    return f"{time:%b} {time.day:2d} {time:%H:%M:%S %Y} GMT"


@operation("sslcertkey", "get", "show ssl certKey", CERTKEY)
def show_certkey(ns: Partition, values: Values) -> list[Row]:
    return [_certkey_row(ns, ns.certkey(values.text("certkey")))]


@operation("sslcertkey", "list", "show ssl certKey")
def show_certkeys(ns: Partition, _: Values) -> list[Row]:
    return [_certkey_row(ns, certkey) for certkey in ns.running.everything()]


@operation("sslcertlink", "list", "show ssl certLink")
def show_links(ns: Partition, _: Values) -> list[Row]:
    linked = [certkey for certkey in ns.running.everything() if certkey.link]
    return [{"certkeyname": certkey.name, "linkcertkeyname": certkey.link} for certkey in linked]


@operation("sslcertkey_sslvserver_binding", ["get", "list"], "show ssl certKey", CERTKEY)
def show_virtual_servers(ns: Partition, values: Values) -> list[Row]:
    name = ns.certkey(values.text("certkey")).name
    return [
        {"certkey": name, "servername": b.virtual_server, "ca": b.ca, "version": 3, "data": "0"}
        for b in ns.running.all_bindings()
        if b.certkey == name
    ]


@operation("sslcertkey_service_binding", ["get", "list"], "show ssl certKey", CERTKEY)
def show_services(ns: Partition, values: Values) -> list[Row]:
    name = ns.certkey(values.text("certkey")).name
    uses = [use for use in ns.running.uses_of(name) if use.kind == "service"]
    return [{"certkey": name, "servicename": use.name, "ca": False} for use in uses]


@operation("sslcertkey_binding", ["get", "list"], "show ssl certKey", CERTKEY)
def show_certkey_bindings(ns: Partition, values: Values) -> list[Row]:
    parts = {
        "sslcertkey_sslvserver_binding": show_virtual_servers(ns, values),
        "sslcertkey_service_binding": show_services(ns, values),
    }
    told = {name: rows for name, rows in parts.items() if rows}
    return [{"certkey": values.text("certkey"), **told}]


@operation("vpnglobal_sslcertkey_binding", "list", "show vpn global")
def show_vpn_global(ns: Partition, _: Values) -> list[Row]:
    uses = [*ns.running.others.uses, *ns.running.uses]
    return [{"certkeyname": use.certkey} for use in uses if use.kind == "vpn global"]


# virtual servers


def _server_row(server: VirtualServer) -> Row:
    host, port = server.address
    row = {"name": server.name, "ipv46": host, "port": port, "servicetype": server.servicetype}
    return {**row, "curstate": server.state}


def _register_virtual_servers(kind: str, resource: str) -> None:
    verb = f"show {resource.removesuffix('vserver')} vserver"

    @operation(resource, "list", verb)
    def show_all(ns: Partition, _: Values) -> list[Row]:
        return [_server_row(s) for s in ns.servers().values() if s.kind == kind]

    @operation(resource, "get", verb, Field("name", required=True, high=127))
    def show_one(ns: Partition, values: Values) -> list[Row]:
        server = ns.servers().get(values.text("name"))
        if server is None or server.kind != kind:
            raise NitroError(258, "name", values.text("name"))
        return [_server_row(server)]


for _kind, _resource in KINDS.items():
    _register_virtual_servers(_kind, _resource)


def _tls_row(server: VirtualServer) -> Row:
    sni = server.sni and not server.profile  # with a profile, the virtual server's own is not used
    row = {"vservername": server.name, "snienable": "ENABLED" if sni else "DISABLED"}
    row |= {"sslprofile": server.profile} if server.profile else {}
    return {**row, "ssl3": "DISABLED", "tls12": "ENABLED", "tls13": "ENABLED"}


@operation("sslvserver", "get", "show ssl vserver", SERVER_NAME)
def show_tls_server(ns: Partition, values: Values) -> list[Row]:
    return [_tls_row(ns.tls_server(values.text("vservername")))]


@operation("sslvserver", "list", "show ssl vserver")
def show_tls_servers(ns: Partition, _: Values) -> list[Row]:
    return [_tls_row(server) for server in ns.servers().values() if server.has_tls]


@operation("sslprofile", "get", "show ssl profile", Field("name", required=True, high=127))
def show_profile(ns: Partition, values: Values) -> list[Row]:
    name = values.text("name")
    served = [server for server in ns.servers().values() if server.profile == name]
    if not served:
        raise NitroError(258, "name", name)
    return [{"name": name, "snienable": "ENABLED" if served[0].sni else "DISABLED"}]


BUNDLE_BINDING = "sslvserver_sslcertkeybundle_binding"


@operation(BUNDLE_BINDING, "get", "show ssl vserver", SERVER_NAME)
def show_bundles(ns: Partition, values: Values) -> list[Row]:
    server = ns.tls_server(values.text("vservername"))
    return _bundle_rows(ns, [server])


def _bundle_rows(ns: Partition, servers: Iterable[VirtualServer]) -> list[Row]:
    if not ns.box.has_bundles:
        raise NitroError(1232, BUNDLE_BINDING)
    return [
        {"vservername": server.name, "certkeybundlename": server.bundle, "snicertkeybundle": False}
        for server in servers
        if server.bundle
    ]


@operation(
    BUNDLE_BINDING, "list", "show ssl vserver", dataclasses.replace(SERVER_NAME, required=False)
)
def show_all_bundles(ns: Partition, _: Values) -> list[Row]:
    return _bundle_rows(ns, ns.servers().values())


BINDING = "sslvserver_sslcertkey_binding"
BOUND_CERTKEY = Field("certkeyName", required=True, high=63)
SNI, CA = Field("SNICert", "flag"), Field("CA", "flag")
REVOCATION = (
    Field("crlCheck", choices=("Mandatory", "Optional")),
    Field("ocspCheck", choices=("Mandatory", "Optional")),
    Field("skipCAName", "flag"),
)


@operation(
    BINDING, ["set", "add"], "bind ssl vserver", SERVER_NAME, BOUND_CERTKEY, SNI, CA, *REVOCATION
)
def bind_certificate(ns: Partition, values: Values) -> None:
    """Bind a certificate; a default one takes the place of another of its key type."""
    server = ns.tls_server(values.text("vservername"))
    certkey = ns.certkey(values.text("certkeyname"))
    for field in REVOCATION:
        if field.attribute in values and not values.flag("ca"):
            raise NitroError(1093, field.cli, "CA")
    new = Binding(server.name, certkey.name, values.flag("snicert"), values.flag("ca"))
    if new in ns.running.all_bindings():
        raise NitroError(273, "certkeyName", certkey.name)
    if certkey.builtin:
        raise NitroError(3722)
    if server.bundle and ns.box.has_bundles:
        raise NitroError(3777)
    if new.ca:
        _check_ca(certkey)
    else:
        _check_server_certificate(certkey)
    if new.sni and not server.sni:
        raise NitroError(3627)
    if new.sni:
        _check_names(ns, server.name, certkey)
    if not new.ca and not new.sni:
        _drop_default(ns, server, certkey.key_type)
    ns.bindings.append(new)


def _check_ca(certkey: CertKey) -> None:
    if not certkey.is_ca:
        raise NitroError(3605)


def _check_server_certificate(certkey: CertKey) -> None:
    if certkey.is_ca:
        raise NitroError(1547)
    if not certkey.private_key:
        raise NitroError(3827)


def _check_names(ns: Partition, server: str, certkey: CertKey) -> None:
    """Refuse names that an SNI certificate cannot have beside the others of a virtual server."""
    if not certkey.common_name:
        raise NitroError(3628)
    for other in ns.running.bound(server, sni=True):
        rival = other.key_type == certkey.key_type or not ns.box.variant.sni_per_key_type
        if not rival or other.name == certkey.name:
            continue
        if str(other.common_name).lower() == certkey.common_name.lower():
            raise NitroError(3629)
        if other.dns_names & certkey.dns_names:
            raise NitroError(1674)


def _drop_misnamed(ns: Partition, certkey: CertKey) -> None:
    """End the SNI bindings of an updated certificate whose names do not allow them any more."""
    bound = [b for b in ns.running.all_bindings() if b.certkey == certkey.name and b.sni]
    for binding in bound:
        try:
            _check_names(ns, binding.virtual_server, certkey)
        except NitroError:
            ns.running.unbind(binding)


def _drop_default(ns: Partition, server: VirtualServer, key_type: str) -> None:
    for old in ns.running.bound(server.name):
        if old.key_type == key_type:
            ns.running.unbind(Binding(server.name, old.name))


def _binding_row(binding: Binding) -> Row:
    names = {"vservername": binding.virtual_server, "certkeyname": binding.certkey}
    flags = {"ca": binding.ca, "snicert": binding.sni, "skipcaname": False}
    return {
        **names,
        **flags,
        "cleartextport": "0",
        **({"ocspcheck": "Optional"} if binding.ca else {}),
    }


@operation(BINDING, "get", "show ssl vserver", SERVER_NAME)
def show_bindings(ns: Partition, values: Values) -> list[Row]:
    name = ns.tls_server(values.text("vservername")).name
    found = [b for b in ns.running.all_bindings() if b.virtual_server == name]
    return [_binding_row(binding) for binding in found]


@operation(BINDING, "list", "show ssl vserver", dataclasses.replace(SERVER_NAME, required=False))
def show_all_bindings(ns: Partition, _: Values) -> list[Row]:
    return [_binding_row(binding) for binding in ns.running.all_bindings()]


@operation(BINDING, "delete", "unbind ssl vserver", SERVER_NAME, BOUND_CERTKEY, SNI, CA)
def unbind_certificate(ns: Partition, values: Values) -> None:
    server = ns.tls_server(values.text("vservername"))
    name = ns.certkey(values.text("certkeyname")).name
    binding = Binding(server.name, name, values.flag("snicert"), values.flag("ca"))
    if binding not in ns.running.all_bindings():
        raise NitroError(1542)
    ns.running.unbind(binding)
