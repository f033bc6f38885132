"""A NetScaler appliance as its NITRO API shows it: stateful, with real keys and TLS, and strict.

    with NetScaler(release="13.1") as ns:
        ns.add_user("citrixagent", "secret", policy=r"^(show|stat) ")
        www = ns.add_virtual_server("vs_www", "load_balancing")
        ns.install("www", certificate, key, chain=[intermediate])
        ns.bind("vs_www", "www")
        www.handshake()

Stricter than the product: what it would let pass or guess at is refused here. Where the product is
known to differ between releases, or is not known for certain, Variant has a switch.

An appliance can have partitions (``add_partition``) and be a node or the address of a cluster
(``cluster``); two of them make an HA pair (``pair``).

Not simulated: FIPS and HSM, CRL and OCSP, bulk requests, the other nodes of a cluster; of SSL
profiles and bundles no more than is needed to look at them.

``settle`` puts what other people have under its configuration (``brownfield``).

This module is the front: sessions, rights, requests and answers. ``nitro`` has the wire format,
``appliance`` and ``certkeys`` the state, ``resources`` and ``system`` what requests do,
``listener`` the virtual servers.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import re
import secrets
import urllib.parse
from collections.abc import Iterable, Mapping

from simulators import resources, system  # noqa: F401 - they register the operations
from simulators.appliance import Appliance, Partition, Variant
from simulators.certkeys import Binding, CertKey
from simulators.listener import VirtualServer, presented_chain
from simulators.nitro import (
    OPERATIONS,
    Field,
    NitroError,
    Operation,
    Row,
    Values,
    answer,
    body_of,
    checked,
    decoded,
    done,
    nitro_error,
    operations_of,
    pairs,
    query_options,
)
from simulators.server import HttpsServer, Request, Response

__all__ = [
    "Binding",
    "CertKey",
    "NetScaler",
    "Variant",
    "VirtualServer",
    "nitro_error",
    "presented_chain",
]

LOGIN = (
    Field("username", required=True),
    Field("password", required=True),
    Field("timeout", "number", low=300, high=86400),
)
# Resources whose answer is an object, not a list of rows.
OBJECTS = {"nsversion", "nsconfig", "nsfeature", "nshardware", "sslparameter", "stat/hanode"}


@dataclasses.dataclass(frozen=True)
class User:
    password: str = dataclasses.field(repr=False)
    policy: str | None = None


@dataclasses.dataclass
class Session:
    user: str
    partition: str = "default"


class NetScaler(Appliance):
    """One appliance; serves between ``start`` and ``stop``, or as a context manager."""

    def __init__(self, release: str = "13.1", variant: Variant | None = None) -> None:
        super().__init__(release, variant or Variant())
        self.server = HttpsServer(self.handle)
        self.server.clock = self._time
        self.users: dict[str, User] = {}
        self.sessions: dict[str, Session] = {}
        self.session_limit = 20
        self.busy = 0  # so many logins are refused, as if the limit was reached
        self.logins = 0
        self.header_logins = 0
        self.failed_logins = 0
        self.lockout_after = 5
        self.password_failures: collections.Counter[str] = collections.Counter()
        self.standby_writes: list[str] = []
        self._killed: set[str] = set()

    def __enter__(self) -> NetScaler:  # noqa: PYI034 - Self needs Python 3.11
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _time(self) -> dt.datetime:
        return self.clock()

    @property
    def host(self) -> str:
        return self.server.host

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()
        for partition in self.partitions.values():
            for server in partition.virtual_servers.values():
                server.stop()

    # what an administrator does

    def add_user(self, name: str, password: str, policy: str | None = None) -> None:
        """Add an administrator; ``policy`` is searched for in a command before it is executed."""
        self.users[name] = User(password, policy)

    def reboot(self) -> None:
        """Restore the saved configuration; files stay, sessions end."""
        self.kill_sessions()
        for partition in self.partitions.values():
            partition.restore()

    def kill_sessions(self) -> None:
        self._killed |= set(self.sessions)
        self.sessions.clear()

    # requests

    def handle(self, request: Request) -> Response:
        try:
            return self._answer(request)
        except NitroError as error:
            return error.response()

    def _answer(self, request: Request) -> Response:
        target = re.fullmatch(r"/nitro/v1/(config|stat)/(\w+)(?:/([^/]+))?", request.path)
        if not target:
            return Response(404, b"<html><h1>Not Found</h1></html>", {"Server": "Apache"})
        resource = target[2] if target[1] == "config" else f"stat/{target[2]}"
        call = f"{request.method} {resource}"
        if call == "POST login":
            return self._login(request)
        session = self._authenticate(request)
        if call == "POST logout":
            return self._logout(request)
        return self._execute(session, request, resource, target[3])

    def _execute(
        self, session: Session, request: Request, resource: str, name: str | None
    ) -> Response:
        options = query_options(request)
        operation = self._operation(request.method, resource, name, options)
        values = operation.check(_arguments(request, operation, name, options))
        command = operation.command(values)
        if not re.search(self.users[session.user].policy or "", command):
            raise NitroError(2138, command)
        if self.cluster == "NODE" and operation.writes:
            raise NitroError(1203)
        partition = self.partitions[session.partition]
        rows = self.carry_out(operation, partition, values)
        if rows is not None:
            return self._tell(resource, list(rows), options)
        if operation.resource == "nspartition":
            session.partition = values.text("partitionname")
        partition.refresh()
        if self.ha_state == "Secondary" and operation.writes:
            self.standby_writes.append(command)
        return self._written(created=operation.creates)

    def carry_out(
        self, operation: Operation, partition: Partition, values: Values
    ) -> Iterable[Row] | None:
        return operation.work(partition, values)

    def _operation(
        self, method: str, resource: str, name: str | None, options: Mapping[str, str]
    ) -> Operation:
        missing = resource == "sslecdsakey" and not self.variant.ecdsa
        if missing or not operations_of(resource):
            raise NitroError(1232, resource)
        reads = "list" if name is None else "get"
        verbs = {"GET": reads, "POST": options.get("action", "add"), "PUT": "set"}
        verb = verbs.get(method, "delete")
        if (resource, verb) not in OPERATIONS:
            raise NitroError(1240, verb)
        operation = OPERATIONS[resource, verb]
        if verb == "list" and resource.endswith("_binding") and operation.fields:
            self._check_bulk(operation, options)
        return operation

    def _check_bulk(self, operation: Operation, options: Mapping[str, str]) -> None:
        if "bulkbindings" not in options:
            raise NitroError(1095, operation.fields[0].cli)
        if "pagesize" in options and not self.variant.bulk_paging:
            raise NitroError(278, "pagesize")

    def _written(self, *, created: bool, extra: Mapping[str, str] | None = None) -> Response:
        body = done({}) if self.variant.write_bodies else None
        return answer(self.variant.created if created else 200, body, extra)

    def _tell(self, resource: str, rows: list[Row], options: Mapping[str, str]) -> Response:
        """Answer a read: filter, count, page and shape the rows."""
        for key, pattern in pairs(options.get("filter", "")).items():
            if rows and not any(key in row for row in rows):
                raise NitroError(1090, key)
            rows = [row for row in rows if re.search(pattern, str(row.get(key, "")))]
        if "count" in options:
            rows = [{"__count": len(rows)}]
        if "pagesize" in options:
            size, page = int(options["pagesize"]), int(options.get("pageno", 1))
            rows = rows[size * (page - 1) : size * page]
        wanted = options["attrs"].split(",") if "attrs" in options else None
        shaped = [self._shaped(row, wanted) for row in rows]
        single = resource in OBJECTS and self.variant.single_objects and "count" not in options
        told: object = shaped[0] if single else shaped
        return answer(200, done({resource.rpartition("/")[2]: told} if shaped else {}))

    def _shaped(self, row: Row, wanted: list[str] | None) -> Row:
        kept = {key: value for key, value in row.items() if wanted is None or key in wanted}
        if self.variant.omit_false:
            kept = {key: value for key, value in kept.items() if value is not False}
        if self.variant.numbers_as_strings:
            kept = {key: str(v) if type(v) is int else v for key, v in kept.items()}
        return kept

    # sessions

    def _login(self, request: Request) -> Response:
        values = checked(LOGIN, body_of(request, "login"))
        self._check_password(values.text("username"), values.text("password"))
        session = "##" + secrets.token_hex(32).upper()
        self.sessions[session] = Session(values.text("username"))
        self.logins += 1
        cookie = f"sessionid={urllib.parse.quote(session)}; path=/nitro/v1"
        return answer(self.variant.created, done({"sessionid": session}), {"Set-Cookie": cookie})

    def _logout(self, request: Request) -> Response:
        checked((), body_of(request, "logout"))
        self.sessions.pop(_session(request), None)
        cookie = "sessionid=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/nitro/v1"
        return self._written(created=True, extra={"Set-Cookie": cookie})

    def _authenticate(self, request: Request) -> Session:
        """Return the session of a request; credentials in headers are one, for this request."""
        session, user = _session(request), request.headers.get("x-nitro-user")
        if user is not None:
            if session:
                raise NitroError(1238, "sessionid", "X-NITRO-USER")
            self._check_password(user, request.headers.get("x-nitro-pass", ""))
            self.header_logins += 1
            return Session(user)
        if session not in self.sessions:
            raise NitroError(444 if session in self._killed else 1027)
        return self.sessions[session]

    def _check_password(self, name: str, password: str) -> None:
        if self.busy:
            self.busy -= 1
            raise NitroError(446)
        user = self.users.get(name)
        locked = self.password_failures[name] >= self.lockout_after
        if locked or user is None or user.password != password:
            self.password_failures[name] += 1
            self.failed_logins += 1
            raise NitroError(354)
        if len(self.sessions) >= self.session_limit:
            raise NitroError(446)
        del self.password_failures[name]


def _session(request: Request) -> str:
    parts = [part.strip().partition("=") for part in request.headers.get("cookie", "").split(";")]
    cookies = {name: value for name, _, value in parts}
    return urllib.parse.unquote(cookies.get("NITRO_AUTH_TOKEN") or cookies.get("sessionid") or "")


def _arguments(
    request: Request, operation: Operation, name: str | None, options: Mapping[str, str]
) -> dict[str, object]:
    """Return what a request gives an operation: its body, or its path and ``args``."""
    if request.method in {"POST", "PUT"}:
        if name is not None:
            raise NitroError(1238, name)
        return body_of(request, operation.resource)
    switches = {"true": True, "false": False}
    args = pairs(options.get("args", ""))
    given: dict[str, object] = {key: switches.get(text, text) for key, text in args.items()}
    if name is not None:
        given[operation.fields[0].attribute] = decoded(name, 2)
    return given
