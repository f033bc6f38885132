"""Sectigo Certificate Manager: order book, token endpoint and SSL Enrollment API.

The order book (``Orders``) knows accounts, orders and certificates, and nothing of HTTP. ``Scm`` is
an order book with an HTTPS server, the token endpoint and *fronts*: functions from Request to
Response under a path, which are ``EnrollmentApi`` and, as ``Scm.admin``, that of ``scm_admin``. It
is stricter than the product: whatever the documentation does not allow is refused. A test changes
attributes of ``Scm``, of ``Account`` and of ``Order`` at any time, lets the client act, and looks
at ``orders`` and ``server.requests``.

    with Scm() as scm:
        scm.add_client("id", "secret")
        scm.issue_after = 2  # two polls are answered "not yet"
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import ipaddress
import json
import re
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from simulators.ca import FULL, Authority, ChainStyle, render
from simulators.server import HttpsServer, Request, Response

TOKEN_PATH = "/auth/realms/apiclients/protocol/openid-connect/token"
CERTIFICATES_PATH = "/api/v1/certificates"
JSON = "application/json"
PEM = "application/x-pem-file"
FORM = "application/x-www-form-urlencoded"

# The words are those of SCM's user interface.
TURNED_DOWN = ("Declined", "Rejected", "Invalid")

KEY_SIZES = ("RSA-2048", "RSA-3072", "RSA-4096", "P-256", "P-384")
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
REASON_CODES = (0, 1, 3, 4, 5)

ERRORS = {
    0: "Being processed by Sectigo",
    -1: "Unknown error",
    -2: "Internal error",
    -3: "You are not authorized to perform this operation",
    -7: "{} is required but missing",
    -9: "The CSR is not valid Base-64 data",
    -10: "The CSR cannot be decoded",
    -11: "The CSR uses an unsupported algorithm",
    -13: "The CSR uses an unsupported key size: {}",
    -14: "Unknown error while processing the request",
    -16: "Unknown user",
    -36: "The term {} is not valid for the profile",
    -62: "Mandatory custom field {} is missing",
    -65: "Internal error. Please contact administrator",
    -102: "Only issued certificates could be revoked",
    -103: "The certificate has not been collected yet",
    -105: "Error while renewing, Status={}",
    -107: "Domain Control Validation is either incomplete or expired for {}. "
    "Please complete it before requesting a certificate.",
    -109: "The certificate is not available now, please try again later",
    -110: "The certificate is revoked and cannot be downloaded",
    -111: "The profile is not valid for the request",
    -129: "Connection error while applying for the certificate",
    -130: "The state of the certificate is not ISSUED",
    -138: "The CSR is not valid: {}",
    -140: "CSR decoding is not available now. Please try again later",
    -141: "The key of the CSR is too small: {}",
    -159: "The certificate is already revoked",
    -169: "The certificate is not available, please contact administrator: {}",
    -170: "ECC keys are not allowed",
    -180: "The profile does not allow renew",
    -183: "The certificate is not collectable",
    -195: "The CA is not available now. Please try again later",
    -196: "Connection error while getting the list of validations",
    -639: "The organization {} is unknown",
    -1001: "Parameter {} is null",
    -1002: "Cannot parse message body: {}",
    -1021: "The profile {} is unknown",
    -1023: "The profile {} is not available for the organization",
    -1112: "The request cannot be approved or declined, Status={}",
    -1148: "Replace is forbidden for this certificate",
    -1400: "The request is being processed by Sectigo",
    -1450: "Unknown certificate format {}",
    -5101: "Certificate not found",
}


class ScmError(Exception):
    """A refusal: one of SCM's codes with its text, and the HTTP status to go with them."""

    def __init__(self, code: int, *arguments: object, status: int = 400) -> None:
        self.code = code
        self.description = ERRORS[code].format(*arguments)
        self.status = 404 if code == -5101 else status
        super().__init__(f"{code} {self.description}")


# "Try later", whatever the HTTP status says.
PASSING = (-1, -2, -14, -65, -129, -140, -195, -196)


# ----- Order book ---------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Account:
    """A REST account: what SCM fixes for its holder and no request can choose."""

    profile: int = 5001
    term: int = 199
    private: bool = False
    keys: Sequence[str] = KEY_SIZES
    auto_approve: bool = True
    mandatory_fields: Sequence[str] = ()
    validated_domains: Sequence[str] | None = None  # None: every domain is validated
    may_renew: bool = True
    may_renew_revoked: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for; None stands for what the order before had."""

    csr: x509.CertificateSigningRequest | None = None
    names: Sequence[str] | None = None
    comments: str = ""
    external_requester: str | None = None
    custom_fields: Mapping[str, str] | None = None
    term: int | None = None  # days; None: what the account says

    def completed_by(self, before: Order) -> Wish:
        requester, fields = self.external_requester, self.custom_fields
        return Wish(
            csr=self.csr or before.csr,
            names=before.names if self.names is None else self.names,
            comments=self.comments,
            external_requester=before.external_requester if requester is None else requester,
            custom_fields=before.custom_fields if fields is None else fields,
            term=self.term,
        )


@dataclasses.dataclass(eq=False, kw_only=True)
class Order:
    """One order; ``leaf`` and ``chain`` (its intermediates) are there once it is issued."""

    cert_id: str
    account: Account = dataclasses.field(repr=False)
    action: str
    previous: str | None
    csr: x509.CertificateSigningRequest
    names: tuple[str, ...]
    comments: str
    external_requester: str
    custom_fields: Mapping[str, str]
    term: int
    placed: dt.datetime
    issue_after: int
    issue_delay: float
    polls: int = 0
    status: str = "Requested"
    why: str = ""
    leaf: x509.Certificate | None = None
    chain: tuple[x509.Certificate, ...] = ()
    revoked_reason: int | None = None
    revoked_message: str = ""
    dcv_rechecks: int = 0

    @property
    def subject(self) -> dict[str, str | bytes]:
        """What the CSR asks for, by the short names of RFC 4514 or the numbers of others."""
        return {each.rfc4514_attribute_name: each.value for each in self.csr.subject}

    def approve(self) -> None:
        """Let the CA begin; polls are counted from here."""
        self.status, self.polls = "Approved", 0

    def decline(self, why: str) -> None:
        """An administrator says no."""
        self.status, self.why = "Declined", why

    def reject(self, why: str) -> None:
        """The CA says no."""
        self.status, self.why = "Rejected", why


HOST_NAME = re.compile(
    r"(?=.{1,253}$)(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
    re.IGNORECASE,
)


def is_name(name: str) -> bool:
    """Tell whether a certificate can hold the name: a host name, a wildcard or an address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return HOST_NAME.fullmatch(name) is not None
    return True


def read_csr(text: str, *, armour: bool) -> x509.CertificateSigningRequest:
    """Return a CSR from base64; ``armour`` allows PEM and line breaks."""
    if armour:
        text = "".join(line for line in text.splitlines() if not line.startswith("-----"))
    try:
        der = base64.b64decode(text, validate=True)
    except ValueError:
        raise ScmError(-9) from None
    try:
        csr = x509.load_der_x509_csr(der)
        signed = csr.is_signature_valid
    except UnsupportedAlgorithm:
        raise ScmError(-11) from None
    except ValueError:
        raise ScmError(-10) from None
    if not signed:
        raise ScmError(-138, "its signature is wrong")
    return csr


def key_size(csr: x509.CertificateSigningRequest) -> str:
    """Return the kind of the CSR's key, such as RSA-2048 or P-256."""
    key = csr.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return CURVES.get(key.curve.name, key.curve.name)
    raise ScmError(-11)


def check_key(csr: x509.CertificateSigningRequest, allowed: Sequence[str]) -> None:
    size = key_size(csr)
    if size in allowed:
        return
    kind, _, bits = size.partition("-")
    if kind == "RSA":
        raise ScmError(-141 if int(bits) < 2048 else -13, size)
    if not any(other.startswith("P-") for other in allowed):
        raise ScmError(-170)
    raise ScmError(-13, size)


def csr_names(csr: x509.CertificateSigningRequest) -> tuple[list[str], list[str]]:
    """Return the common names and the alternative names of a CSR."""
    attributes = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    except ValueError:
        raise ScmError(-138, "its extensions cannot be read") from None
    if not all(isinstance(name, x509.DNSName | x509.IPAddress) for name in names):
        raise ScmError(-138, "an alternative name is neither a host name nor an address")
    return [str(item.value) for item in attributes], [str(name.value) for name in names]


def wanted_names(csr: x509.CertificateSigningRequest, listed: Sequence[str]) -> tuple[str, ...]:
    """Return the names to certify; the CSR may hold no name that is not listed but its CN."""
    common, alternative = csr_names(csr)
    known = {name.lower() for name in [*common, *listed]}
    if stray := [name for name in alternative if name.lower() not in known]:
        raise ScmError(-138, f"{stray[0]} is not among the names asked for")
    names: dict[str, str] = {}
    for name in [*common, *listed]:
        names.setdefault(name.lower(), name)
    if wrong := [name for name in names.values() if not is_name(name)]:
        raise ScmError(-138, f"{wrong[0]} is neither a host name nor an address")
    if not names:
        raise ScmError(-138, "it holds no name")
    return tuple(names.values())


def check_domains(names: Sequence[str], validated: Sequence[str]) -> None:
    for name in names:
        bare = name.lower().removeprefix("*.")
        if not any(bare == domain or bare.endswith(f".{domain}") for domain in validated):
            raise ScmError(-107, name)


def check_fields(fields: Mapping[str, str], mandatory: Sequence[str]) -> None:
    if missing := [field for field in mandatory if not fields.get(field, "").strip()]:
        raise ScmError(-62, missing[0])


def wrong_leaf(
    authority: Authority, order: Order, leaf: x509.Certificate, what: str
) -> x509.Certificate:
    """Return a genuine certificate that does not fit the order."""
    key, names = leaf.public_key(), order.names
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    day, term = dt.timedelta(days=1), dt.timedelta(days=order.term)
    other_key = ec.generate_private_key(ec.SECP256R1()).public_key()
    wrong: dict[str, tuple[CertificatePublicKeyTypes, Sequence[str], dt.datetime, dt.datetime]] = {
        "other_key": (other_key, names, start, end),
        "missing_name": (key, names[:-1] or ("another.invalid",), start, end),
        "expired": (key, names, start - day - term, start - day),
        "no_common_name": (
            key,
            [f"{'x' * 60}.example.com", *names],
            start,
            end,
        ),  # too long for one
    }
    return authority.certify(*wrong[what], private=order.account.private)


class Orders:
    """The order book: places orders, has them issued, and says no.

    ``issue_after`` is the number of polls that find nothing, ``issue_delay`` the seconds that must
    pass; both are copied to each new order. ``tamper`` spoils what is handed out: a function, or
    ``other_key``, ``missing_name``, ``expired``, ``no_common_name``, ``no_chain`` or
    ``broken_chain``.
    """

    def __init__(self) -> None:
        self.authority = Authority()
        self.now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.timezone.utc)
        self.approval = "auto"
        self.issue_after = 0
        self.issue_delay = 0.0
        self.answer = FULL
        self.tamper: Callable[[Order, str], str] | str | None = None
        self._book: dict[str, Order] = {}
        self._settling = threading.RLock()  # a test looks while the server works

    @property
    def orders(self) -> list[Order]:
        """All orders, the oldest first."""
        return [self.order(cert_id) for cert_id in list(self._book)]

    def order(self, cert_id: str) -> Order:
        """Return an order as time has left it."""
        if cert_id not in self._book:
            raise ScmError(-5101)
        order = self._book[cert_id]
        with self._settling:
            self._settle(order)
        return order

    def enroll(self, account: Account, wish: Wish) -> Order:
        return self._place(account, "enroll", wish)

    def renew(self, previous: Order, wish: Wish) -> Order:
        """Order a successor with a validity period of its own."""
        account = previous.account
        if not account.may_renew:
            raise ScmError(-180)
        renewable = {"Issued", "Expired"} | ({"Revoked"} if account.may_renew_revoked else set())
        if previous.status not in renewable:
            raise ScmError(-105, previous.status)
        return self._place(account, "renew", wish, previous)

    def replace(self, previous: Order, wish: Wish) -> Order:
        """Order a successor that ends when the certificate it replaces would have ended."""
        if previous.account.private:
            raise ScmError(-1148)
        if previous.status != "Issued":
            raise ScmError(-130)
        return self._place(previous.account, "replace", wish, previous)

    def collect(self, order: Order) -> str | None:
        """Return the certificate with its chain, None as long as it is not there."""
        path = self.poll(order)
        return None if path is None else self.spoil(order, render(path, self.answer))

    def poll(self, order: Order) -> list[x509.Certificate] | None:
        """Return the certificate, its issuers after it; None as long as it is not there."""
        if order.status in TURNED_DOWN:
            raise ScmError(-169, order.why or order.status)
        if order.status == "Revoked":
            raise ScmError(-110)
        if order.leaf is None:
            order.polls += 1
            order.status = "Applied" if order.status == "Approved" else order.status
            return None
        return self._path(order, order.leaf)

    def spoil(self, order: Order, pem: str) -> str:
        """Return what the test's own function makes of a certificate that is handed out."""
        return self.tamper(order, pem) if callable(self.tamper) else pem

    def revoke(self, order: Order, reason: int, message: str) -> None:
        if order.status == "Revoked":
            raise ScmError(-159)
        if order.status not in {"Issued", "Replaced"}:
            raise ScmError(-102)
        order.status, order.revoked_reason, order.revoked_message = "Revoked", reason, message

    def _place(
        self, account: Account, action: str, wish: Wish, previous: Order | None = None
    ) -> Order:
        wish = wish.completed_by(previous) if previous else wish
        assert wish.csr, "only a successor does without a CSR"
        names, fields = wanted_names(wish.csr, wish.names or ()), wish.custom_fields or {}
        check_key(wish.csr, account.keys)
        if account.validated_domains is not None:
            check_domains(names, account.validated_domains)
        check_fields(fields, account.mandatory_fields)
        order = Order(
            cert_id=str(1_000_001 + len(self._book)),
            account=account,
            action=action,
            previous=previous.cert_id if previous else None,
            csr=wish.csr,
            names=names,
            comments=wish.comments,
            external_requester=wish.external_requester or "",
            custom_fields=fields,
            term=wish.term or account.term,
            placed=self.now(),
            issue_after=self.issue_after,
            issue_delay=self.issue_delay,
        )
        self._book[order.cert_id] = order
        if self.approval == "auto" and account.auto_approve:
            order.approve()
        return self.order(order.cert_id)

    def _settle(self, order: Order) -> None:
        """Do what time and polls have made due."""
        age = (self.now() - order.placed).total_seconds()
        ready = order.polls >= order.issue_after and age >= order.issue_delay
        if order.status in {"Approved", "Applied"} and ready:
            self._issue(order)
        if order.status == "Issued" and order.leaf and order.leaf.not_valid_after_utc < self.now():
            order.status = "Expired"

    def _issue(self, order: Order) -> None:
        private, now = order.account.private, self.now()
        replaced = self._book[order.previous or ""] if order.action == "replace" else None
        if replaced is None or replaced.leaf is None:
            leaf = self.authority.issue(order.csr, order.names, now, order.term, private=private)
        elif replaced.leaf.not_valid_after_utc <= now:
            order.reject("the certificate to replace is expired")
            return
        else:
            key, end = order.csr.public_key(), replaced.leaf.not_valid_after_utc
            leaf = self.authority.certify(key, order.names, now, end, private=private)
            replaced.status = "Revoked" if replaced.status == "Revoked" else "Replaced"
        order.status, order.leaf = "Issued", leaf
        bare = ChainStyle(root=False, cross=False)
        order.chain = tuple(self.authority.path(leaf, bare)[1:])

    def _path(self, order: Order, leaf: x509.Certificate) -> list[x509.Certificate]:
        if self.tamper == "no_chain":
            return [leaf]
        if self.tamper == "broken_chain":
            return self.authority.broken_path(leaf, self.answer)
        if isinstance(self.tamper, str):
            leaf = wrong_leaf(self.authority, order, leaf, self.tamper)
        return self.authority.path(leaf, self.answer)


# ----- Wire ---------------------------------------------------------------------------------------


def answer(status: int, value: object = None, **headers: str) -> Response:
    """Return a JSON response, an empty one without a value."""
    if value is None:
        return Response(status, headers=headers)
    return Response(status, json.dumps(value).encode(), {"Content-Type": JSON, **headers})


def scm_error(code: int, *arguments: object, status: int = 400) -> Response:
    """Return the answer with which SCM refuses, for faults in tests."""
    return refusal(ScmError(code, *arguments, status=status))


def no_such_path(path: str) -> Response:
    """Return what the server before the APIs says of a path that none of them has."""
    return answer(404, {"status": 404, "error": "Not Found", "path": path})


def refusal(error: ScmError) -> Response:
    return answer(error.status, {"code": error.code, "description": error.description})


def accepts(request: Request, media_type: str) -> bool:
    """Tell whether the client takes a media type."""
    kind = media_type.partition("/")[0]
    ranges = request.headers.get("accept", "*/*").split(",")
    wanted = {entry.partition(";")[0].strip().lower() for entry in ranges}
    return bool(wanted & {"*/*", f"{kind}/*", media_type})


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


Check = Callable[[object], bool]


def text(shortest: int, longest: int) -> Check:
    return lambda value: isinstance(value, str) and shortest <= len(value) <= longest


def one_of(*values: object) -> Check:
    # The type is compared as well because True == 1 and 1.0 == 1.
    return lambda value: any(value == other and type(value) is type(other) for other in values)


def is_integer(value: object) -> bool:
    return type(value) is int


def is_name_list(value: object) -> bool:
    """Tell whether a value is a list of strings none of which occurs twice."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return False
    return len({name.lower() for name in value}) == len(value)


def is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


CSR = text(1, 32767)
COMMENTS = text(0, 1024)
REQUESTER = text(0, 512)
ENROLL: dict[str, Check] = {
    "csr": CSR,
    "subjAltNames": is_name_list,
    "comments": COMMENTS,
    "externalRequester": REQUESTER,
    "customFields": is_text_map,
}
RENEW: dict[str, Check] = {
    **ENROLL,
    "profileId": is_integer,
    "term": is_integer,
    "email": text(1, 255),
    "dcvMode": one_of("EMAIL", "CNAME", "HTTP", "HTTPS"),
    "dcvEmail": text(1, 255),
}
REPLACE: dict[str, Check] = {"csr": CSR, "subjAltNames": is_name_list, "comments": COMMENTS}
REVOKE: dict[str, Check] = {"message": text(1, 512), "reasonCode": one_of(*REASON_CODES)}


def read_body(
    request: Request, schema: Mapping[str, Check], required: Sequence[str]
) -> dict[str, Any]:
    """Return the body's object if it has what is required, nothing unknown and nothing odd."""
    if content_type(request) != JSON:
        raise ScmError(-1002, "Content-Type must be application/json", status=415)
    try:
        body = json.loads(request.body)
    except ValueError:
        raise ScmError(-1002, "no JSON") from None
    if not isinstance(body, dict):
        raise ScmError(-1002, "no object")
    for key in required:
        if key not in body:
            raise ScmError(-7, key)
    for key, value in body.items():
        if key not in schema or not schema[key](value):
            raise ScmError(-1002, key)
    return body


@dataclasses.dataclass(frozen=True)
class PendingStyle:
    """How a certificate that is not there yet is announced; the codes take turns.

    The Enrollment API documents 404 with -103 and -109; 400 with 0, -183 or -1400 has been seen.
    """

    status: int = 404
    codes: Sequence[int] = (-103, -109)


@dataclasses.dataclass(frozen=True)
class Call:
    """A request by a known account, with the id in its path."""

    request: Request
    account: Account
    cert_id: str


@dataclasses.dataclass(frozen=True)
class Operation:
    run: Callable[[Call], Response]
    takes_body: bool = True
    gives: str = JSON


class EnrollmentApi:
    """The SSL Enrollment API; there is neither a list nor a search."""

    PATH = re.compile(CERTIFICATES_PATH + "(?:/([^/]+)(/[a-z-]+)?)?")

    def __init__(self, scm: Scm) -> None:
        self.scm = scm
        self.routes = {
            "": {"POST": Operation(self.enroll)},
            "/ID": {
                "GET": Operation(self.download, takes_body=False, gives=PEM),
                "DELETE": Operation(self.revoke),
            },
            "/ID/status": {"GET": Operation(self.status, takes_body=False)},
            "/ID/dcv-recheck": {"POST": Operation(self.dcv_recheck, takes_body=False)},
            "/ID/renew": {"POST": Operation(self.renew)},
            "/ID/replace": {"POST": Operation(self.replace)},
        }

    def handle(self, request: Request) -> Response:
        account = self.scm.authenticate(request, Account)
        if account is None:
            return self.scm.unauthorized()
        path = self.PATH.fullmatch(request.path)
        route = f"{'/ID' if path[1] else ''}{path[2] or ''}" if path else "none"
        operations = self.routes.get(route)
        if path is None or operations is None:
            raise ScmError(-1002, "no such path", status=404)
        if request.method not in operations:
            error = {"code": -1002, "description": f"Method {request.method} is not supported"}
            return answer(405, error, Allow=", ".join(operations))
        operation = operations[request.method]
        if not accepts(request, operation.gives):
            raise ScmError(-1002, f"Accept must allow {operation.gives}", status=406)
        if request.query or (request.body and not operation.takes_body):
            raise ScmError(-1002, "neither a query nor a body is expected")
        return operation.run(Call(request, account, urllib.parse.unquote(path[1] or "")))

    def enroll(self, call: Call) -> Response:
        body = read_body(call.request, ENROLL, ["csr"])
        return self._placed(self.scm.enroll(call.account, self._wish(body)))

    def download(self, call: Call) -> Response:
        order = self._order(call)
        polls = order.polls
        pem = self.scm.collect(order)
        if pem is None:
            style = self.scm.pending_style
            raise ScmError(style.codes[polls % len(style.codes)], status=style.status)
        return Response(200, pem.encode(), {"Content-Type": PEM})

    def status(self, call: Call) -> Response:
        return answer(200, {"status": self.scm.shown_status(self._order(call)), "dcvInfo": {}})

    def dcv_recheck(self, call: Call) -> Response:
        self._order(call).dcv_rechecks += 1
        return answer(202)

    def renew(self, call: Call) -> Response:
        previous = self._order(call)
        body = self._renewal(call.request)
        if body.get("profileId", call.account.profile) != call.account.profile:
            raise ScmError(-1021, body["profileId"])
        if body.get("term", call.account.term) != call.account.term:
            raise ScmError(-36, body["term"])
        return self._placed(self.scm.renew(previous, self._wish(body)))

    def replace(self, call: Call) -> Response:
        previous = self._order(call)
        body = read_body(call.request, REPLACE, ["csr"])
        return self._placed(self.scm.replace(previous, self._wish(body)))

    def revoke(self, call: Call) -> Response:
        order = self._order(call)
        body = read_body(call.request, REVOKE, ["message"])
        self.scm.revoke(order, body.get("reasonCode", 0), body["message"])
        return answer(200)

    def _renewal(self, request: Request) -> dict[str, Any]:
        """Return the body of a renewal; only the strict dialect insists on one."""
        if self.scm.strict:
            return read_body(request, RENEW, ["profileId", "customFields"])
        return read_body(request, RENEW, []) if request.body else {}

    def _order(self, call: Call) -> Order:
        """Return the order in the path; those of other accounts are not to be seen."""
        order = self.scm.order(call.cert_id)
        if order.account is not call.account:
            raise ScmError(-5101)
        return order

    def _wish(self, body: Mapping[str, Any]) -> Wish:
        return Wish(
            csr=read_csr(body["csr"], armour=not self.scm.strict) if "csr" in body else None,
            names=body.get("subjAltNames"),
            comments=body.get("comments", ""),
            external_requester=body.get("externalRequester"),
            custom_fields=body.get("customFields"),
        )

    def _placed(self, order: Order) -> Response:
        cert_id = int(order.cert_id) if self.scm.numeric_ids else order.cert_id
        return answer(200, {"certId": cert_id})


Holder = TypeVar("Holder")


@dataclasses.dataclass(frozen=True)
class Token:
    holder: object
    ends: dt.datetime


class TokenError(Exception):
    """A refusal of the token endpoint, in the words of OAuth 2.0."""

    def __init__(self, status: int, error: str, description: str) -> None:
        self.response = answer(status, {"error": error, "error_description": description})
        super().__init__(description)


class Scm(Orders):
    """The order book behind HTTPS, with accounts, the token endpoint and the fronts.

    ``strict`` refuses PEM armour around a CSR and renewals without profileId and customFields;
    ``numeric_ids`` gives certId as a JSON number; ``status_ahead`` lets the status say Issued while
    the download is still pending; ``authorization_uri`` is the token endpoint that a 401 names, if
    not the real one.
    """

    def __init__(self) -> None:
        from simulators.scm_admin import ADMIN_PATH, AdminApi  # which builds on this module

        super().__init__()
        self.account = Account()
        self.strict = False
        self.numeric_ids = False
        self.status_ahead = False
        self.pending_style = PendingStyle()
        self.token_lifetime = 300
        self.tokens_issued = 0
        self.token_failures = 0
        self._clients: dict[str, tuple[str, object]] = {}
        self._tokens: dict[str, Token] = {}
        self.server = HttpsServer(self.handle)
        # Not ``now``: a test may let SCM issue as so many days ago, while the clocks agree.
        self.server.clock = lambda: dt.datetime.now(dt.timezone.utc)
        self.authorization_uri: str | None = None
        self.admin = AdminApi(self)
        self.fronts: dict[str, Callable[[Request], Response]] = {
            TOKEN_PATH: self.token,
            CERTIFICATES_PATH: EnrollmentApi(self).handle,
            ADMIN_PATH: self.admin.handle,
        }

    def __enter__(self) -> Scm:  # noqa: PYI034 - Self needs Python 3.11
        self.server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.stop()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def token_url(self) -> str:
        return self.server.url + TOKEN_PATH

    def add_client(self, client_id: str, secret: str, account: Account | None = None) -> Account:
        """Let a client in, or change its secret; without an account it uses the default one."""
        owner = account or self.account
        self.register(client_id, secret, owner)
        return owner

    def register(self, client_id: str, secret: str, holder: object) -> None:
        """Let a client get tokens, which are good for the front that knows the holder's kind."""
        self._clients[client_id] = (secret, holder)

    def revoke_tokens(self) -> None:
        self._tokens.clear()

    def handle(self, request: Request) -> Response:
        for path, front in self.fronts.items():
            if request.path == path or request.path.startswith(f"{path}/"):
                try:
                    return front(request)
                except ScmError as error:
                    return refusal(error)
        return no_such_path(request.path)

    def shown_status(self, order: Order) -> str:
        """Return the status that the APIs tell."""
        ahead = self.status_ahead and order.status in {"Approved", "Applied"}
        return "Issued" if ahead else order.status

    def authenticate(self, request: Request, kind: type[Holder]) -> Holder | None:
        """Return the holder of a request's bearer token if that is valid now, and of a kind."""
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        token = self._tokens.get(value)
        if scheme != "Bearer" or token is None or token.ends <= self.now():
            return None
        return token.holder if isinstance(token.holder, kind) else None

    def unauthorized(self) -> Response:
        challenge = f'Bearer authorization_uri="{self.authorization_uri or self.token_url}"'
        error = {"code": -16, "description": ERRORS[-16]}
        return answer(401, error, **{"WWW-Authenticate": challenge})

    def token(self, request: Request) -> Response:
        """The token endpoint: OAuth 2.0 client credentials, as Keycloak has it."""
        try:
            holder = self._client_of(request)
        except TokenError as error:
            self.token_failures += 1
            return error.response
        self.tokens_issued += 1
        value = f"eyJhbGciOiJSUzI1NiJ9.{secrets.token_urlsafe(48)}.{secrets.token_urlsafe(64)}"
        self._tokens[value] = Token(holder, self.now() + dt.timedelta(seconds=self.token_lifetime))
        grant = {
            "access_token": value,
            "expires_in": self.token_lifetime,
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": "profile email",
        }
        return answer(200, grant)

    def _client_of(self, request: Request) -> object:
        """Return the holder of the token that a client asks for."""
        if request.method != "POST":
            raise TokenError(405, "invalid_request", "POST is expected")
        if content_type(request) != FORM or not accepts(request, JSON) or request.query:
            raise TokenError(400, "invalid_request", "a form is expected and JSON given")
        form = urllib.parse.parse_qs(request.body.decode(errors="replace"), keep_blank_values=True)
        if any(len(form.get(key, ())) != 1 for key in ("grant_type", "client_id", "client_secret")):
            raise TokenError(400, "invalid_request", "a parameter is missing or occurs twice")
        if form["grant_type"] != ["client_credentials"]:
            raise TokenError(400, "unsupported_grant_type", "Unsupported grant_type")
        secret, holder = self._clients.get(form["client_id"][0], (None, None))
        if form["client_secret"] != [secret]:
            raise TokenError(401, "invalid_client", "Invalid client or Invalid client credentials")
        return holder
