"""NITRO on the wire: errors, the style of its answers, the encoding of its URLs, arguments.

What a request may do is declared at the function that does it: ``@operation`` names the resource,
the operation, the command line it stands for and its arguments. ``OPERATIONS`` holds them all.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from simulators.server import Request, Response

if TYPE_CHECKING:
    from simulators.appliance import Partition

Row = dict[str, object]

MESSAGES = {
    257: "Operation not permitted",
    258: "No such resource",
    273: "Resource already exists",
    278: "Invalid argument",
    293: "Operation already in progress",
    349: "Command failed on secondary node, but succeeded on primary node. Configuration will be "
    "synchronized to ensure secondary and primary have same configuration.",
    354: "Invalid username or password",
    355: "Invalid username or password",
    368: "Operation permitted only on primary node.",
    371: "No command policy defined, permission denied",
    444: "Session expired or killed. Please login again",
    445: "Session limit exceeded",
    446: "Connection limit to CFE exceeded",
    457: "Unable to establish connection with the secondary. Command propagation failed",
    458: "There is no response from the secondary. Propagation timed out",
    461: "No such Vserver",
    1027: "Not logged in or connection timed out",
    1028: "You are connected to a secondary node; configuration changes made in this "
    "session will "
    "not be propagated to, or saved on, other nodes",
    1044: "You are connected to NSIP of a cluster node; configuration changes made in this session "
    "will not be propagated to, or saved on, other cluster nodes",
    1075: "Invalid name; names must begin with an alphanumeric character or underscore and must "
    "contain only alphanumerics, '_', '#', '.', ' ', ':', '@', '=' or '-'",
    1090: "No such argument",
    1093: "Argument pre-requisite missing",
    1094: "Too few arguments",
    1095: "Required argument missing",
    1097: "Invalid argument value",
    1106: "String length exceeds maximum",
    1107: "String too short",
    1108: "Integer value exceeds maximum",
    1109: "Integer value below minimum",
    1155: "No such file",
    1203: "Session is read-only; connect to the Cluster IP address to modify the configuration",
    1232: "Invalid object name",
    1233: "Invalid JSON input",
    1234: "Invalid JSON data type",
    1238: "NITRO parse error",
    1240: "Invalid nitro action or operation",
    1244: "Authentication Failed: Use of Basic Authentication is Disabled.",
    1461: "Maximum number of concurrent save configs are in progress. Try again later.",
    1536: "Invalid certificate",
    1537: "Invalid private key, or PEM pass phrase required for this private key",
    1538: "Certificate and private key do not match",
    1540: "Certificate does not exist",
    1541: "Certificate is referenced by a CRL, OCSP responder, vserver, service, monitor, SSL "
    "profile, CA Cert Group, another certificate, or a policy expression using XML_ENCRYPT() or "
    "XML_DECRYPT()",
    1542: "Certificate binding does not exist",
    1543: "Certificate can't be linked to the same certificate",
    1544: "Object's protocol type is not SSL",
    1545: "Certificate does not have any CA link",
    1547: "Certificate is not a server/client certificate",
    1548: "Issuer certificate mismatch",
    1639: "Private key loading failed",
    1642: "Cannot create output file. File already exists",
    1645: "Output filepath should be under the partition's default SSL directory",
    1647: "Input file(s) not present or not accessible in current partition",
    1674: "Duplicate domain cert cannot be added.",
    1675: "ECDSA certificates are not supported for this entity/platform.",
    1676: "The EC curve in the ECDSA certificate is not supported.",
    1677: "Certificate can't be linked. This is creating a loop.",
    1684: "Failed to encode X509_NAME into DER format",
    2138: "Not authorized to execute this command",
    2755: "Partition does not exist",
    3374: "SSL certificate is used for encrypting user data and can not be updated",
    3375: "SSL certificate is bound to a adfsproxy profile and cannot be updated",
    3440: "Directory does not exist.",
    3441: "File does not exist.",
    3442: "Unsupported file format. only txt/cert/req/xml/key type of files are allowed.",
    3443: "Unsupported file content. file content should be base64 encoded.",
    3444: "Unsupported encoding type. only BASE64 encoding is allowed.",
    3585: "Certificate is registered to a different domain; use the 'no domain check' option to "
    "force the operation",
    3591: "Another synchronization is already in process, please try again later",
    3592: "Synchronization failed, please try again",
    3605: "Not a CA certificate",
    3627: "SNI feature not enabled on the vserver/service",
    3628: "CommonName not present in certificate, it is must for a certificate to use for SNI",
    3629: "Trying to bind SNI certificate with duplicate CommonName, operation failed",
    3719: "Cannot delete internal default certificate.",
    3722: "Cannot bind internal default certificate.",
    3740: "Operation not permitted. To do this Disable default ssl profile by setting 'set ssl "
    "parameter -defaultProfile D'",
    3777: "Certificate-key bundle is bound to the vserver.",  # the product's words are not known
    3827: "Private Key is not present.",
}
# Where it is neither 599 nor, for malformed requests, 400.
STATUSES = {
    **dict.fromkeys((354, 355, 444, 1027, 1244), 401),
    **dict.fromkeys((371, 2138), 403),
    **dict.fromkeys((258, 461, 3441), 404),
    **dict.fromkeys((273, 1642), 409),
    **dict.fromkeys((445, 446), 503),
    **dict.fromkeys((1155, 1203), 599),
}
REASONS = {599: "Netscaler specific error"}
HEADERS = {
    "Server": "Apache",
    "Cache-Control": "no-store, no-cache, must-revalidate",
    "X-Content-Type-Options": "nosniff",
    "Content-Type": "application/json; charset=utf-8",
}


class NitroError(Exception):
    """A refusal: ``message [detail, detail]`` under its code."""

    def __init__(self, code: int, *details: object, status: int | None = None) -> None:
        appended = f" [{', '.join(map(str, details))}]" if details else ""
        self.code = code
        self.message = MESSAGES[code] + appended
        malformed = 400 if 1075 <= code <= 1266 else 599
        self.status = status or STATUSES.get(code, malformed)
        super().__init__(self.message)

    def response(self) -> Response:
        told = {"errorcode": self.code, "message": self.message, "severity": "ERROR"}
        return answer(self.status, told)


def nitro_error(code: int, *details: object, status: int | None = None) -> Response:
    """Return the answer with which an appliance refuses, for faults in tests."""
    return NitroError(code, *details, status=status).response()


def done(told: Row) -> Row:
    return {"errorcode": 0, "message": "Done", "severity": "NONE", **told}


def answer(status: int, body: object, extra: Mapping[str, str] | None = None) -> Response:
    text = render(body).encode() if body is not None else b""
    return Response(status, text, {**HEADERS, **(extra or {})}, REASONS.get(status))


def render(value: object) -> str:
    """Write JSON in the appliance's own style: blanks inside braces, slashes escaped."""
    if isinstance(value, dict):
        pairs = [f"{render(name)}: {render(item)}" for name, item in value.items()]
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[ {', '.join(map(render, value))} ]"
    return _render_scalar(value)


@functools.lru_cache(10_000, typed=True)  # most of a list's texts are the same in every row
def _render_scalar(value: object) -> str:
    return json.dumps(value).replace("/", "\\/")


def decoded(raw: str, times: int) -> str:
    """Decode a part of a URL; refuse one that was not encoded exactly so many times."""
    text = raw
    for _ in range(times):
        text = urllib.parse.unquote(text)
    encoded = text
    for _ in range(times):
        encoded = urllib.parse.quote(encoded, safe="")
    if encoded != raw:
        raise NitroError(1238, raw)
    return text


def pairs(raw: str) -> dict[str, str]:
    """Parse ``name:value,name:value``, the form of args and filter."""
    parts = [item.partition(":") for item in raw.split(",") if raw]
    if not all(colon for _, colon, _ in parts):
        raise NitroError(1238, raw)
    return {name: decoded(value, 1) for name, _, value in parts}


OPTIONS = {
    "GET": {"args", "filter", "attrs", "view", "count", "pagesize", "pageno", "bulkbindings"},
    "POST": {"action"},
    "PUT": set[str](),
    "DELETE": {"args"},
}
OPTION_VALUES = {
    "view": r"summary",
    "count": r"yes",
    "bulkbindings": r"yes",
    "pagesize": r"[1-9]\d*",
    "pageno": r"[1-9]\d*",
    "action": r"\w+",
}


def query_options(request: Request) -> dict[str, str]:
    if request.method not in OPTIONS:
        raise NitroError(1240, request.method)
    options = dict(item.partition("=")[::2] for item in request.query.split("&") if item)
    for name, value in options.items():
        if name not in OPTIONS[request.method]:
            raise NitroError(1090, name)
        if not re.fullmatch(OPTION_VALUES.get(name, ".+"), value):
            raise NitroError(1097, name, value)
    return options


def body_of(request: Request, resource: str) -> dict[str, object]:
    """Return the attributes in ``{"<resource>": {...}}``; nothing else is understood."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise NitroError(1233, "Content-Type")
    try:
        body = json.loads(request.body)
    except ValueError:
        raise NitroError(1233) from None
    if not isinstance(body, dict) or list(body) != [resource]:
        raise NitroError(1233, resource)
    if not isinstance(body[resource], dict):
        raise NitroError(1234, resource)
    return dict(body[resource])


class Values(dict[str, object]):
    """The checked arguments of a request."""

    def text(self, key: str) -> str:
        return str(self.get(key, ""))

    def number(self, key: str, default: int) -> int:
        return int(str(self.get(key, default)))

    def flag(self, key: str) -> bool:
        return bool(self.get(key))


@dataclasses.dataclass(frozen=True)
class Field:
    """An argument as the command line spells it; attributes are lower case unless ``key`` is set.

    ``low`` and ``high`` bound the length of a text (of a path: of its last part) or a number.
    """

    cli: str
    kind: Literal["text", "path", "content", "number", "flag", "list"] = "text"
    required: bool = False
    low: int = 1
    high: int = 255
    choices: tuple[str, ...] = ()
    pattern: str = ""
    key: str = ""

    @property
    def attribute(self) -> str:
        return self.key or self.cli.lower()

    def check(self, value: object) -> object:
        checked = CHECKS[self.kind](self, value)
        items = checked if isinstance(checked, list) else [checked]
        if self.choices and not all(item in self.choices for item in items):
            raise NitroError(1097, self.cli, value)
        return checked

    def check_text(self, value: object) -> str:
        if not isinstance(value, str):
            raise NitroError(1234, self.cli)
        measured = value.rpartition("/")[2] if self.kind == "path" else value
        if len(measured) > self.high:
            raise NitroError(1106, self.cli, self.high)
        if len(measured) < self.low:
            raise NitroError(1107, self.cli, self.low)
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise NitroError(1075, self.cli, value)
        return value

    def check_number(self, value: object) -> int:
        """Take digits in quotes too: so does the product."""
        if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)):
            raise NitroError(1234, self.cli)
        number = int(str(value))
        if number > self.high:
            raise NitroError(1108, self.cli, self.high)
        if number < self.low:
            raise NitroError(1109, self.cli, self.low)
        return number

    def check_flag(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise NitroError(1234, self.cli)
        return value

    def check_list(self, value: object) -> list[object]:
        if not isinstance(value, list) or not value:
            raise NitroError(1234, self.cli)
        return value

    def words(self, value: object) -> list[str]:
        """Return the argument as words of a command."""
        if self.kind == "content" or value is False:
            return []
        if self.kind == "flag":
            return [f"-{self.cli}"]
        texts = [str(item) for item in (value if isinstance(value, list) else [value])]
        quoted = [t if re.fullmatch(r"[\w.:-]+", t) else f'"{t}"' for t in texts]
        return [f"-{self.cli}", *quoted]


CHECKS: dict[str, Callable[[Field, object], object]] = {
    "text": Field.check_text,
    "path": Field.check_text,
    "content": Field.check_text,
    "number": Field.check_number,
    "flag": Field.check_flag,
    "list": Field.check_list,
}


def checked(
    fields: Sequence[Field], given: Mapping[str, object], known: Collection[str] = ()
) -> Values:
    """Check arguments; ``known`` are those that other operations of the resource take."""
    by_key = {field.attribute: field for field in fields}
    for key in given:
        if key not in by_key:
            raise NitroError(278 if key in known else 1090, key)
    for key, field in by_key.items():
        if field.required and key not in given:
            raise NitroError(1095, field.cli)
    return Values({key: by_key[key].check(value) for key, value in given.items()})


@dataclasses.dataclass(frozen=True)
class Operation:
    resource: str
    verb: str
    fields: tuple[Field, ...]
    work: Work

    def check(self, given: Mapping[str, object]) -> Values:
        known = {
            field.attribute for other in operations_of(self.resource) for field in other.fields
        }
        return checked(self.fields, given, known)

    @property
    def creates(self) -> bool:
        return self.verb.startswith(("add ", "bind "))

    @property
    def writes(self) -> bool:
        """Tell whether it changes the appliance: not only the session, as a switch does."""
        return not self.verb.startswith(("show ", "stat ", "switch "))

    @property
    def propagates(self) -> bool:
        """Tell whether an HA pair executes it on both nodes: files are each node's own."""
        of_files = re.match(r"create |sync |(add|rm) system file", self.verb)
        return self.writes and not of_files

    def command(self, values: Values) -> str:
        """Return the command line that policies are matched with; the first argument is bare."""
        words = [self.verb]
        for field in self.fields:
            if field.attribute in values:
                argument = field.words(values[field.attribute])
                words += argument[1:] if field is self.fields[0] else argument
        return " ".join(words)


Work = Callable[["Partition", Values], "Iterable[Row] | None"]
OPERATIONS: dict[tuple[str, str], Operation] = {}


def operations_of(resource: str) -> list[Operation]:
    return [operation for (name, _), operation in OPERATIONS.items() if name == resource]


def operation(
    resource: str, names: str | Sequence[str], verb: str, *fields: Field
) -> Callable[[Work], Work]:
    """Register what carries out an operation: it returns rows when it reads, None when it writes.

    Operations are ``add`` (POST), ``set`` (PUT), ``delete``, ``get`` (by name), ``list`` and the
    actions. The name in the path is the first argument.
    """

    def register(work: Work) -> Work:
        for name in [names] if isinstance(names, str) else names:
            OPERATIONS[resource, name] = Operation(resource, verb, fields, work)
        return work

    return register
