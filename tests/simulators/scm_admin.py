"""Sectigo Certificate Manager: the SSL part of the SCM Admin API, on the order book of ``scm``.

An sslId is the number of the first order. It stays when the certificate is replaced, and changes
when it is renewed. Orders of REST accounts are not to be seen here.

    with Scm() as scm:
        scm.admin.add_login("customer", "login", "password")
        scm.admin.add_client("id", "secret")  # for the token endpoint
        scm.admin.replace_race = 2  # two collects still give the replaced certificate
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import secrets
import string
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from simulators.ca import render
from simulators.scm import (
    COMMENTS,
    CSR,
    JSON,
    REASON_CODES,
    REQUESTER,
    Account,
    Check,
    Order,
    ScmError,
    Wish,
    accepts,
    answer,
    csr_names,
    is_integer,
    is_name_list,
    is_text_map,
    key_size,
    no_such_path,
    one_of,
    read_body,
    read_csr,
    text,
)
from simulators.server import Request, Response

if TYPE_CHECKING:
    from simulators.scm import Scm

ADMIN_PATH = "/api/ssl"
OCTETS = "application/octet-stream"
LARGEST_PAGE = 200
DATE_FORMATS = {"": "%m/%d/%Y", "ISO_HMS": "%Y-%m-%d %H:%M:%S"}
STATUSES = (
    "Init",
    "Requested",
    "SA Approved",
    "Approved",
    "Applied",
    "Issued",
    "Replaced",
    "Expired",
    "Revoked",
    "Declined",
    "Rejected",
    "Invalid",
)


class Administrator:
    """The holder of a token for this API; a REST account's token is not good for it."""


@dataclasses.dataclass(eq=False)
class CertType(Account):
    """A certificate profile: an account whose term is chosen with each order.

    ``organizations`` may use it; None stands for all of them.
    """

    profile: int = 2
    name: str = "SSL"
    description: str = "A server certificate"
    terms: Sequence[int] = (199, 99)
    organizations: Sequence[int] | None = None


def random_renew_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(20))


@dataclasses.dataclass(eq=False)
class Entry:
    """What has an sslId: an order, followed by those that replaced it.

    ``stale_collects`` is how often the one before the last is still given.
    """

    kind: CertType
    org_id: int
    cert_ids: list[str]
    renew_id: str = dataclasses.field(default_factory=random_renew_id)
    renewed: bool = False
    stale_collects: int = 0

    @property
    def ssl_id(self) -> int:
        return int(self.cert_ids[0])

    @property
    def seen(self) -> str:
        """The cert_id of the order that the API shows."""
        return self.cert_ids[-2 if self.stale_collects else -1]


# ----- What is given ------------------------------------------------------------------------------

Path = list[x509.Certificate]


def whole(path: Path) -> Path:
    return path


def root_first(path: Path) -> Path:
    return path[::-1]


def leaf_only(path: Path) -> Path:
    return path[:1]


FORMATS: dict[str, Callable[[Path], Path]] = {
    "x509": root_first,
    "x509R": whole,
    "x509CO": leaf_only,
    "x509IO": lambda path: path[:0:-1],
    "x509IOR": lambda path: path[1:],
    "pem": root_first,
    "pemco": leaf_only,
    "pemia": whole,
    "base64": whole,
    "bin": whole,
}
PKCS7 = {"base64": Encoding.PEM, "bin": Encoding.DER}


def serial_number(certificate: x509.Certificate) -> str:
    """Return a serial number as SCM writes it: hex pairs with colons."""
    number = certificate.serial_number
    return number.to_bytes((number.bit_length() + 7) // 8, "big").hex(":").upper()


def key_type(order: Order) -> str:
    """Return the kind of an order's key: RSA - 2048 or EC - P-256."""
    size = key_size(order.csr)
    return size.replace("-", " - ") if size.startswith("RSA") else f"EC - {size}"


def type_row(kind: CertType) -> dict[str, object]:
    return {
        "id": kind.profile,
        "name": kind.name,
        "description": kind.description,
        "terms": list(kind.terms),
        "keyTypes": {
            "RSA": [key.removeprefix("RSA-") for key in kind.keys if key.startswith("RSA")],
            "EC": [key for key in kind.keys if key.startswith("P-")],
        },
        "useSecondaryOrgName": False,
    }


def row(entry: Entry, order: Order) -> dict[str, object]:
    """Return what the list tells of a certificate; the serial number is there once it is issued."""
    known: dict[str, object] = {
        "sslId": entry.ssl_id,
        "commonName": order.names[0],
        "subjectAlternativeNames": list(order.names),
    }
    return known | ({"serialNumber": serial_number(order.leaf)} if order.leaf else {})


def dates(order: Order, style: str) -> dict[str, str]:
    """Return the dates of an order; those of its certificate are there once it is issued."""
    known: dict[str, dt.datetime] = {"requested": order.placed}
    if order.leaf:
        known["issued"] = order.leaf.not_valid_before_utc
        known["expires"] = order.leaf.not_valid_after_utc
    return {name: date.strftime(DATE_FORMATS[style]) for name, date in known.items()}


# ----- What is taken ------------------------------------------------------------------------------


def is_names_string(value: object) -> bool:
    return isinstance(value, str) and is_name_list(value.split(","))


def is_field_list(value: object) -> bool:
    """Tell whether a value is a list of names with values, no name occurring twice."""
    if not isinstance(value, list) or not all(is_text_map(item) for item in value):
        return False
    named = all(set(item) == {"name", "value"} for item in value)
    return named and is_name_list([item["name"] for item in value])


DCV: dict[str, Check] = {
    "dcvMode": one_of("EMAIL", "CNAME", "HTTP", "HTTPS", "TXT", "AUTO"),
    "dcvEmail": text(1, 255),
}
ENROLL: dict[str, Check] = {
    **DCV,
    "orgId": is_integer,
    "csr": CSR,
    "certType": is_integer,
    "term": is_integer,
    "subjAltNames": is_names_string,
    "comments": COMMENTS,
    "externalRequester": REQUESTER,
    "customFields": is_field_list,
}
RENEW: dict[str, Check] = {**DCV, "csr": CSR}
REPLACE: dict[str, Check] = {
    **DCV,
    "csr": CSR,
    "reason": text(1, 512),
    "commonName": text(1, 255),
    "subjectAlternativeNames": is_name_list,
}
REVOKE: dict[str, Check] = {
    "reasonCode": one_of(*map(str, REASON_CODES)),  # since 25.9
    "reason": text(1, 512),
}
EITHER_CODE = one_of(*REASON_CODES, *map(str, REASON_CODES))
OLD_REVOKE = {**REVOKE, "reasonCode": one_of(*REASON_CODES)}  # up to 25.5
DECIDE: dict[str, Check] = {"message": text(1, 512)}

# Older clients send these fields, which are gone.
GONE: dict[str, Check] = {"numberServers": is_integer, "serverType": is_integer}


def or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def read_lenient_body(request: Request, schema: Mapping[str, Check]) -> dict[str, Any]:
    """Return a body as older clients send it: "" for nothing, null, and fields that are gone."""
    if request.body == b'""':
        return {}
    wider = {key: or_null(check) for key, check in {**schema, **GONE}.items()}
    body = read_body(request, wider, [])
    return {key: body[key] for key in schema if body.get(key) is not None}


def read_query(request: Request, known: Collection[str]) -> dict[str, str]:
    """Return the parameters of the query if each of them is known and occurs once."""
    pairs = urllib.parse.parse_qsl(request.query, keep_blank_values=True)
    given = dict(pairs)
    if stray := sorted(set(given) - set(known)):
        raise ScmError(-1002, stray[0])
    if len(given) != len(pairs):
        raise ScmError(-1002, "a parameter occurs twice")
    return given


def number(query: Mapping[str, str], key: str, default: int, largest: int = 2**31 - 1) -> int:
    """Return a parameter that is a whole number."""
    value = query.get(key, str(default))
    if not re.fullmatch("[0-9]{1,10}", value) or int(value) > largest:
        raise ScmError(-1002, key)
    return int(value)


def names_of(body: Mapping[str, Any], csr: x509.CertificateSigningRequest) -> list[str] | None:
    """Return the names that a replacement asks for, None for those it had."""
    wanted = [body["commonName"]] if "commonName" in body else []
    common = csr_names(csr)[0]
    if wanted and common and wanted[0] not in common:
        raise ScmError(-138, f"its common name is not {wanted[0]}")
    listed = body.get("subjectAlternativeNames")
    return None if listed is None else [*wanted, *listed]


# The product's matching of texts is not documented; a client must cope with more than it asked for.
TEXT_FILTERS = ("commonName", "subjectAlternativeName", "externalRequester")
FILTERS = (*TEXT_FILTERS, "serialNumber", "orgId", "sslTypeId", "status")


def matches(key: str, wanted: str, held: Sequence[str]) -> bool:
    """Tell whether a filter of the list fits one of the values that it looks at."""
    if key in TEXT_FILTERS:
        return any(wanted.lower() in value.lower() for value in held)
    return wanted in held


# ----- Operations ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Call:
    """An administrator's request with what its path and its query say."""

    request: Request
    parts: Mapping[str, str]
    query: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Operation:
    run: Callable[[Call], Response]
    query: Collection[str] = ()
    gives: str = JSON


def pattern(template: str) -> re.Pattern[str]:
    """Return what matches a path with {names} in it; an {id} is a number."""
    digits = template.replace("{id}", "(?P<id>[0-9]+)")
    return re.compile(
        f"{ADMIN_PATH}/(?P<version>v[12])" + re.sub(r"\{([a-z]+)\}", r"(?P<\1>[^/]+)", digits)
    )


class AdminApi:
    """The SSL operations of the Admin API.

    - ``versions``: those under which the operations are found; 26.7 has v2 only;
    - ``revocation``: what a revocation takes; up to 25.5 the reasonCode was a number;
    - ``page``: no page of the list is longer, whatever ``size`` says;
    - ``organizations``: their ids; ``types``: what can be ordered for them;
    - ``pending_codes``: how a certificate that is not there yet is announced; they take turns;
    - ``already_revoked``: the code for a second revocation, -159 or -102;
    - ``replace_race``: that many collects after a replacement still give the old certificate;
    - ``formats``: what a format holds, and in which order; accounts of ``pem`` differ;
    - ``lenient``: take what older clients send: the body "" for nothing, null, fields that are
      gone, a revocation without reasonCode, and an Accept that does not fit.
    """

    def __init__(self, scm: Scm) -> None:
        self.scm = scm
        self.versions: Sequence[str] = ("v1", "v2")
        self.revocation = dict(REVOKE)
        self.page = LARGEST_PAGE
        self.organizations = [1]
        self.types = [CertType()]
        self.pending_codes: Sequence[int] = (0, -1400, -183)
        self.already_revoked = -159
        self.replace_race = 0
        self.formats = dict(FORMATS)
        self.lenient = False
        self._administrator = Administrator()
        self._logins: dict[tuple[str | None, str | None], str] = {}
        self._entries: dict[str, Entry] = {}
        listing = Operation(self.listed, ["size", "position", *FILTERS])
        self.routes = {
            pattern(template): operations
            for template, operations in {
                "": {"GET": listing, "HEAD": listing},
                "/types": {"GET": Operation(self.cert_types, ["organizationId"])},
                "/customFields": {"GET": Operation(self.custom_fields)},
                "/enroll": {"POST": Operation(self.enroll)},
                "/{id}": {
                    "GET": Operation(self.details, ["dateFormat"]),
                    "DELETE": Operation(self.delete),
                },
                "/collect/{id}": {"GET": Operation(self.collect, ["format"], OCTETS)},
                "/collect/{id}/{format}": {"GET": Operation(self.collect, [], OCTETS)},
                "/renewById/{id}": {"POST": Operation(self.renew_by_id)},
                "/renew/{renew}": {"POST": Operation(self.renew)},
                "/replace/{id}": {"POST": Operation(self.replace)},
                "/revoke/{id}": {"POST": Operation(self.revoke)},
                "/revoke/serial/{serial}": {"POST": Operation(self.revoke_serial)},
                "/approve/{id}": {"POST": Operation(self.approve)},
                "/decline/{id}": {"POST": Operation(self.decline)},
            }.items()
        }

    def add_login(self, customer_uri: str, login: str, password: str) -> None:
        """Let an administrator in by headers, or change the password."""
        self._logins[customer_uri, login] = password

    def add_client(self, client_id: str, secret: str) -> None:
        """Let an administrator's client get tokens, or change its secret."""
        self.scm.register(client_id, secret, self._administrator)

    def handle(self, request: Request) -> Response:
        if not self._knows(request):
            return self.scm.unauthorized()
        route = self._route(request.path)
        if route is None:
            return no_such_path(request.path)
        path, operations = route
        if request.method not in operations:
            error = {"code": -1002, "description": f"Method {request.method} is not supported"}
            return answer(405, error, Allow=", ".join(operations))
        operation = operations[request.method]
        if not self.lenient and not accepts(request, operation.gives):
            raise ScmError(-1002, f"Accept must allow {operation.gives}", status=406)
        if request.body and request.method != "POST":
            raise ScmError(-1002, "no body is expected")
        parts = {name: urllib.parse.unquote(part) for name, part in path.groupdict().items()}
        return operation.run(Call(request, parts, read_query(request, operation.query)))

    # Reading

    def cert_types(self, call: Call) -> Response:
        kinds: Sequence[CertType] = self.types
        if "organizationId" in call.query:
            kinds = self._types_of(number(call.query, "organizationId", 0))
        return answer(200, [type_row(kind) for kind in kinds])

    def custom_fields(self, _: Call) -> Response:
        names = dict.fromkeys(name for kind in self.types for name in kind.mandatory_fields)
        fields = enumerate(names, start=1)
        return answer(200, [{"id": i, "name": name, "mandatory": True} for i, name in fields])

    def listed(self, call: Call) -> Response:
        size = number(call.query, "size", LARGEST_PAGE, LARGEST_PAGE)
        position = number(call.query, "position", 0)
        if call.query.get("status", "Issued") not in STATUSES:
            raise ScmError(-1002, "status")
        found = [entry for entry in self._entries.values() if self._fits(entry, call.query)]
        page = found[position : position + min(size, self.page)]
        rows = [row(entry, self._seen(entry)) for entry in page]
        return answer(200, rows, **{"X-Total-Count": str(len(found))})

    def details(self, call: Call) -> Response:
        style = call.query.get("dateFormat", "")
        if style not in DATE_FORMATS:
            raise ScmError(-1002, "dateFormat")
        entry = self._entry(call)
        order = self._seen(entry)
        known = {
            "id": entry.ssl_id,
            **row(entry, order),
            **dates(order, style),
            "orgId": entry.org_id,
            "status": self._status(entry),
            "vendor": "Sectigo",
            "certType": type_row(entry.kind),
            "term": order.term,
            "renewed": entry.renewed,
            "keyType": key_type(order),
            "comments": order.comments,
            "externalRequester": order.external_requester,
            "customFields": [
                {"name": name, "value": value} for name, value in order.custom_fields.items()
            ],
        }
        return answer(200, known)

    def collect(self, call: Call) -> Response:
        form = call.parts.get("format", call.query.get("format", "base64"))
        if form not in self.formats:
            raise ScmError(-1450, form)
        entry = self._entry(call)
        order = self._seen(entry)
        polls = order.polls
        path = self.scm.poll(order)
        if path is None:
            raise ScmError(self.pending_codes[polls % len(self.pending_codes)])
        entry.stale_collects = max(0, entry.stale_collects - 1)
        disposition = f'attachment; filename="{entry.ssl_id}.{form}"'
        headers = {"Content-Type": OCTETS, "Content-Disposition": disposition}
        return Response(200, self._rendered(order, path, form), headers)

    # Ordering

    def enroll(self, call: Call) -> Response:
        body = self._body(call, ENROLL, ["orgId", "csr", "certType", "term"])
        kind = self._type_of(body["certType"], body["orgId"])
        if body["term"] not in kind.terms:
            raise ScmError(-36, body["term"])
        wish = Wish(
            csr=read_csr(body["csr"], armour=True),
            names=body["subjAltNames"].split(",") if "subjAltNames" in body else (),
            comments=body.get("comments", ""),
            external_requester=body.get("externalRequester"),
            custom_fields={item["name"]: item["value"] for item in body.get("customFields", ())},
            term=body["term"],
        )
        entry = self._enter(self.scm.enroll(kind, wish), kind, body["orgId"])
        return answer(200, {"sslId": entry.ssl_id, "renewId": entry.renew_id})

    def renew_by_id(self, call: Call) -> Response:
        return answer(200, {"sslId": self._renewed(call, self._entry(call)).ssl_id})

    def renew(self, call: Call) -> Response:
        """Renew by renewId; what the new certificate's id is, the answer does not say."""
        for entry in list(self._entries.values()):
            if entry.renew_id == call.parts["renew"]:
                self._renewed(call, entry)
                return answer(204)
        raise ScmError(-5101)

    def replace(self, call: Call) -> Response:
        entry = self._entry(call)
        previous = self._latest(entry)
        body = self._body(call, REPLACE, ["csr", "reason"])
        csr = read_csr(body["csr"], armour=True)
        names, term = names_of(body, csr), previous.term
        wish = Wish(csr=csr, names=names, comments=body["reason"], term=term)
        entry.cert_ids.append(self.scm.replace(previous, wish).cert_id)
        entry.stale_collects = self.replace_race
        return answer(204)

    # Deciding and ending

    def approve(self, call: Call) -> Response:
        order = self._undecided(call)
        self._body(call, DECIDE, ["message"])
        order.approve()
        return answer(204)

    def decline(self, call: Call) -> Response:
        order = self._undecided(call)
        order.decline(self._body(call, DECIDE, ["message"])["message"])
        return answer(204)

    def revoke(self, call: Call) -> Response:
        return self._revoked(call, self._latest(self._entry(call)))

    def revoke_serial(self, call: Call) -> Response:
        wanted = call.parts["serial"].upper()
        for cert_id in [cert_id for entry in self._entries.values() for cert_id in entry.cert_ids]:
            order = self.scm.order(cert_id)
            if order.leaf and serial_number(order.leaf) == wanted:
                return self._revoked(call, order)
        raise ScmError(-5101)

    def delete(self, call: Call) -> Response:
        """Only what was imported or discovered can be deleted, and there is none of it."""
        self._entry(call)
        raise ScmError(-3)

    # Common parts

    def _knows(self, request: Request) -> bool:
        """Tell whether an administrator asks; a token counts before login headers."""
        headers = request.headers
        if "authorization" in headers:
            return self.scm.authenticate(request, Administrator) is not None
        password = self._logins.get((headers.get("customeruri"), headers.get("login")))
        return password is not None and headers.get("password") == password

    def _route(self, path: str) -> tuple[re.Match[str], Mapping[str, Operation]] | None:
        for route, operations in self.routes.items():
            found = route.fullmatch(path)
            if found and found["version"] in self.versions:
                return found, operations
        return None

    def _body(
        self, call: Call, schema: Mapping[str, Check], required: Sequence[str]
    ) -> dict[str, Any]:
        if not self.lenient:
            return read_body(call.request, schema, required)
        body = read_lenient_body(call.request, schema)
        if missing := [key for key in required if key not in body]:
            raise ScmError(-7, missing[0])
        return body

    def _types_of(self, org_id: int) -> Sequence[CertType]:
        """Return the types that an organization may use."""
        if org_id not in self.organizations:
            raise ScmError(-639, org_id)
        return [
            kind
            for kind in self.types
            if kind.organizations is None or org_id in kind.organizations
        ]

    def _type_of(self, profile: int, org_id: int) -> CertType:
        usable = {kind.profile: kind for kind in self._types_of(org_id)}
        if profile in usable:
            return usable[profile]
        known = profile in {kind.profile for kind in self.types}
        raise ScmError(-1023 if known else -1021, profile)

    def _enter(self, order: Order, kind: CertType, org_id: int) -> Entry:
        entry = Entry(kind, org_id, [order.cert_id])
        self._entries[order.cert_id] = entry
        return entry

    def _entry(self, call: Call) -> Entry:
        """Return what the path names."""
        if call.parts["id"] not in self._entries:
            raise ScmError(-5101)
        return self._entries[call.parts["id"]]

    def _seen(self, entry: Entry) -> Order:
        return self.scm.order(entry.seen)

    def _latest(self, entry: Entry) -> Order:
        return self.scm.order(entry.cert_ids[-1])

    def _undecided(self, call: Call) -> Order:
        order = self._latest(self._entry(call))
        if order.status not in {"Requested", "SA Approved"}:
            raise ScmError(-1112, order.status)
        return order

    def _status(self, entry: Entry) -> str:
        """Return the status; it is not yet Replaced while the certificate is still given."""
        status = self.scm.shown_status(self._seen(entry))
        return "Issued" if status == "Replaced" else status

    def _fits(self, entry: Entry, query: Mapping[str, str]) -> bool:
        order = self._seen(entry)
        held: dict[str, Sequence[str]] = {
            "commonName": order.names[:1],
            "subjectAlternativeName": order.names,
            "externalRequester": [order.external_requester],
            "serialNumber": [serial_number(order.leaf)] if order.leaf else [],
            "orgId": [str(entry.org_id)],
            "sslTypeId": [str(entry.kind.profile)],
            "status": [self._status(entry)],
        }
        return all(matches(key, query[key], held[key]) for key in query if key in held)

    def _renewed(self, call: Call, entry: Entry) -> Entry:
        """Order a renewal, which gets the longest term of its type."""
        body = self._body(call, RENEW, [])
        previous = self._latest(entry)
        wish = Wish(
            csr=read_csr(body["csr"], armour=True) if "csr" in body else None,
            comments=previous.comments,
            term=max(entry.kind.terms),
        )
        order = self.scm.renew(previous, wish)
        entry.renewed = True
        return self._enter(order, entry.kind, entry.org_id)

    def _revoked(self, call: Call, order: Order) -> Response:
        schema = {**REVOKE, "reasonCode": EITHER_CODE} if self.lenient else self.revocation
        body = self._body(call, schema, ["reason"] if self.lenient else ["reasonCode", "reason"])
        if order.status == "Revoked":
            raise ScmError(self.already_revoked)
        self.scm.revoke(order, int(body.get("reasonCode", 0)), body["reason"])
        return answer(204)

    def _rendered(self, order: Order, path: Path, form: str) -> bytes:
        """Return a path in a format; as PEM it is what the test's tampering makes of it."""
        certificates = self.formats[form](path)
        if form in PKCS7:
            return pkcs7.serialize_certificates(certificates, PKCS7[form])
        style = dataclasses.replace(self.scm.answer, order="leaf-first")  # as it is arranged
        return self.scm.spoil(order, render(certificates, style)).encode()
