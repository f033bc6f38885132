"""An HTTPS server for simulators: one handler function, a request log, and faults on demand.

A simulator is a function from Request to Response. Around it this server offers what a test needs:

- ``requests``: every request that arrived, in order, whatever became of it;
- ``faults``: a list of Fault; the first one whose number or matcher fits a request is applied;
- ``refuse`` and ``accept``: close the port and open it again; ``refuse_after``: close it by itself
  once so many requests were answered;
- ``before`` and ``after``: hooks called around the work of each request; ``rewrite``: makes of an
  answer what is sent instead;
- ``clock``: what the header ``Date`` says; none is sent without one;
- ``latency``: seconds added to each request.

All TLS is real. The certificate is made once per process by a throwaway authority, whose PEM is
``authority_pem()``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import email.utils
import functools
import http.client
import http.server
import ipaddress
import itertools
import pathlib
import socket
import socketserver
import ssl
import struct
import tempfile
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from simulators.ca import key_usage


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as it arrived; ``path`` and ``query`` are raw, header names are lower case."""

    number: int
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}" + (f"?{self.query}" if self.query else "")

    def arguments(self) -> dict[str, str]:
        """Return the query's parameters, decoded once."""
        return dict(urllib.parse.parse_qsl(self.query, keep_blank_values=True))


@dataclasses.dataclass(frozen=True)
class Response:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reason: str | None = None


@dataclasses.dataclass
class Fault:
    """What goes wrong, with which request, how often.

    ``kind``: ``status`` (answer ``response`` and do no work), ``reset`` (connection reset before
    the work), ``lost`` (the work is done, then the connection is reset), ``hang`` (no answer for
    ``seconds``, no work), ``garbage`` (an answer that is no JSON, no work), ``garbled`` (the work
    is done, the answer is no JSON), ``told`` (the work is done, the answer is ``response``). No
    work is done, and the answer never ends, with ``stall`` (nothing more comes), ``drip`` (a byte
    now and then) and ``flood`` (as much as the client takes); ``stage`` is where: in the ``status``
    line, the ``headers`` or the ``body``; a flood also of ``continue`` (100 Continue) or as a
    ``bomb`` (a packed body).
    ``number`` counts all requests from 1; ``matches`` looks at the request; both must fit when both
    are given.
    """

    kind: str
    number: int | None = None
    matches: Callable[[Request], bool] | None = None
    times: int = 1
    response: Response = dataclasses.field(default_factory=lambda: Response(500))
    seconds: float = 30.0
    stage: str = "body"

    def fits(self, request: Request) -> bool:
        return (
            self.times > 0
            and (self.number is None or self.number == request.number)
            and (self.matches is None or self.matches(request))
        )


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _bomb() -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
_BEGINNINGS = {
    "status": b"HTT",
    "headers": b"HTTP/1.1 200 OK\r\nX-Long: ",
    "continue": b"",
    "body": _HEAD + b"\r\n" + _chunk(b'{"'),
    "bomb": _HEAD + b"Content-Encoding: gzip\r\n\r\n" + _chunk(_bomb()),
}
_DROPS = {"status": b"P", "headers": b"x", "body": _chunk(b" ")}
_FLOODS = {
    "status": b"P" * 4096,
    "headers": b"x\r\nX-More: y" * 400,
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
    "body": _chunk(b" " * 65536),
    "bomb": _chunk(_bomb()[10:]),  # without the header of a second one
}


def maintenance_page(status: int = 200) -> Response:
    """Return the page that something in front of a server shows instead of its answers."""
    page = b"<!DOCTYPE html><html><title>Scheduled maintenance</title><p>We are back soon.</html>"
    return Response(status, page, {"Content-Type": "text/html; charset=utf-8"})


@functools.cache
def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Simulators' management authority")])
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    # Real time on purpose: tests move the clock of the program forward by years.
    start = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=3650))
    )


def authority_pem() -> str:
    """Return the PEM certificate of the authority behind every simulator's management TLS."""
    return _authority()[1].public_bytes(serialization.Encoding.PEM).decode()


def server_certificate(*hosts: str) -> tuple[str, str]:
    """Return certificate and key (PEM), signed by the authority; for localhost if for nothing else.

    The common name is the first of ``hosts``.
    """
    authority_key, authority = _authority()
    key = ec.generate_private_key(ec.SECP256R1())
    common_name = hosts[0] if hosts else "localhost"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    local = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    names = [x509.DNSName(host) for host in hosts] or local
    certificate = (
        _builder(name, authority.subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def tls_context(chains: list[tuple[str, str]]) -> ssl.SSLContext:
    """Return a server context that presents the given (certificate chain PEM, key PEM) pairs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for chain, key in chains:
        with tempfile.TemporaryDirectory() as folder:
            chain_file, key_file = pathlib.Path(folder, "chain"), pathlib.Path(folder, "key")
            chain_file.write_text(chain)
            key_file.write_text(key)
            context.load_cert_chain(chain_file, key_file)
    return context


# Thousands of servers are made in a run of the tests; those of one lab have pairs of their own.
@functools.cache
def _own_pair(_: int) -> tuple[str, str]:
    return server_certificate()


@functools.cache
def _context_for(chain: str, key: str) -> ssl.SSLContext:
    return tls_context([(chain, key)])


class HttpsServer:
    """Serves ``handle`` over HTTPS on a free port of 127.0.0.1 between ``start`` and ``stop``."""

    _made = itertools.count()

    def __init__(self, handle: Callable[[Request], Response]) -> None:
        self.handle = handle
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.before: Callable[[Request], None] | None = None
        self.after: Callable[[Request], None] | None = None
        self.rewrite: Callable[[Request, Response], Response] | None = None
        self.clock: Callable[[], dt.datetime] | None = None
        self.latency = 0.0
        self.refuse_after: int | None = None
        self.own = _own_pair(next(self._made) % 16)
        self.present_pair(*self.own)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.connections = 0  # with TLS, that came about
        self._connections: set[socket.socket] = set()
        self._server: _Listener | None = None
        self._place: socket.socket | None = None  # keeps the port while nobody listens there
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"https://{self.host}"

    @property
    def fingerprint(self) -> str:
        """The SHA-256 fingerprint of the management certificate: hex pairs with colons."""
        certificate = x509.load_pem_x509_certificate(self.certificate.encode())
        return certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    def present(self, *hosts: str) -> None:
        """Present, from now on, a management certificate for these names."""
        self.present_pair(*server_certificate(*hosts))

    def present_pair(self, chain: str, key: str) -> None:
        """Present another certificate (PEM, with its key) from the next connection on."""
        self.certificate = chain
        self._context = _context_for(chain, key)

    def start(self) -> None:
        self._stopping.clear()
        self.accept()

    def stop(self) -> None:
        self._stopping.set()
        self.refuse()
        place, self._place = self._place, None
        if place:
            place.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        """Listen: on a free port the first time, on the same one afterwards."""
        self.refuse_after = None
        if self._place is None:
            self._place = socket.socket()
            self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._place.bind(("127.0.0.1", self.port))
            self.port = self._place.getsockname()[1]
        if self._server is None:
            self._server = _Listener(self)
            self._server.listen()

    def refuse(self) -> None:
        """Stop listening: new connections are refused until ``accept``."""
        server, self._server = self._server, None
        if server:
            server.close()

    def calls(self, since: int = 0) -> list[str]:
        """Return the requests after number ``since`` as ``METHOD path?query``."""
        return [str(request) for request in self.requests[since:]]

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        connection.getpeername()  # fails for a peer that is gone, where ssl would leak the socket
        tls = self._context.wrap_socket(connection, server_side=True)
        self._connections.add(tls)
        self.connections += 1
        return tls

    def forget(self, connection: socket.socket) -> None:
        self._connections.discard(connection)

    def receive(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Request:
        path, _, query = target.partition("?")
        lowered = {name.lower(): value for name, value in headers.items()}
        with self._lock:
            request = Request(len(self.requests) + 1, method, path, query, lowered, body)
            self.requests.append(request)
        return request

    def work(self, request: Request) -> Response:
        """Let the simulator do its work for one request; requests are worked on one at a time."""
        with self._lock:
            return self.handle(request)

    def fault_for(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.fits(request):
                    fault.times -= 1
                    return fault
        return None

    def wait(self, seconds: float) -> bool:
        """Wait, and tell whether the server is to stop."""
        return self._stopping.wait(seconds)


class PromptServer(socketserver.ThreadingTCPServer):
    """A server that sleeps until somebody connects, and yet stops at once."""

    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def listen(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections
        self.shutdown()
        self.server_close()


class _Listener(PromptServer, http.server.HTTPServer):
    request_queue_size = 128

    def __init__(self, owner: HttpsServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", owner.port), _Handler)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        assert isinstance(request, socket.socket)
        try:
            tls = self.owner.wrap(request)
        except (OSError, ssl.SSLError):
            request.close()
            return
        try:
            super().process_request_thread(tls, client_address)
        finally:
            self.owner.forget(tls)

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: clients that go away are part of the tests."""


def reset(connection: socket.socket) -> None:
    """Close a connection so that its peer sees a TCP reset."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


class BareListener:
    """A free port of 127.0.0.1 behind which nobody speaks TLS; counts its ``connections``.

    What becomes of a connection: ``reset``, ``stall`` (nothing more), ``drip`` (a byte now and
    then, as if a TLS record came), or ``full`` (it is never taken; others wait before it).
    """

    def __init__(self, behaviour: str) -> None:
        self.connections = 0
        self._behaviour = behaviour
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=0 if self._full else 128)
        self.address = ("127.0.0.1", int(self._socket.getsockname()[1]))
        self._held: list[socket.socket] = []
        self._stopping = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.address[1]}"

    @property
    def url(self) -> str:
        return f"https://{self.host}"

    @property
    def _full(self) -> bool:
        return self._behaviour == "full"

    def __enter__(self) -> BareListener:  # noqa: PYI034 - Self needs Python 3.11
        if self._full:
            for _ in range(4):  # more than the queue takes
                waiting = socket.socket()
                waiting.setblocking(False)
                waiting.connect_ex(self.address)
                self._held.append(waiting)
        else:
            threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._held:
            connection.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                if self._behaviour == "reset":
                    reset(connection)
                    continue
                self._held.append(connection)
                if self._behaviour == "drip":
                    threading.Thread(target=self._drip, args=[connection], daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for byte in b"\x16\x03\x03\x3f\xff" + bytes(16383):
                connection.send(bytes([byte]))
                if self._stopping.wait(0.1):
                    break


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def handle_one_request(self) -> None:
        try:
            self._receive_and_serve()
        except (OSError, ValueError):  # the client went away
            self.close_connection = True

    def _receive_and_serve(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = dict(self.headers.items())
        self._serve(self.server.owner.receive(self.command, self.path, headers, body))

    def _serve(self, request: Request) -> None:
        owner = self.server.owner
        if owner.before:
            owner.before(request)
        if owner.latency:
            time.sleep(owner.latency)
        fault = owner.fault_for(request)
        kind = fault.kind if fault else "none"
        if fault and kind in {"stall", "drip", "flood"}:
            self._never_end(fault)
            return
        if fault and kind == "hang":
            owner.wait(fault.seconds)
        if kind in {"reset", "hang"}:
            self._drop()
            return
        if fault and kind == "status":
            response = fault.response
        elif kind == "garbage":
            response = Response(200, b"<html>garbage")
        else:
            response = owner.work(request)
        if owner.after:
            owner.after(request)
        if kind == "lost":
            self._drop()
            return
        if owner.refuse_after is not None and request.number >= owner.refuse_after:
            owner.refuse()
            self.close_connection = True
        if owner.rewrite:
            response = owner.rewrite(request, response)
        self._send(self._told(fault, response))

    @staticmethod
    def _told(fault: Fault | None, response: Response) -> Response:
        """Return what is answered after the work was done."""
        if fault and fault.kind == "garbled":
            return Response(response.status, b"<html>garbage")
        return fault.response if fault and fault.kind == "told" else response

    def _never_end(self, fault: Fault) -> None:
        """Begin to answer, and go on as the fault says until the client goes."""
        self.close_connection = True
        self.wfile.write(_BEGINNINGS[fault.stage])
        piece = (_FLOODS if fault.kind == "flood" else _DROPS).get(fault.stage, b"")
        pause = 0.1 if fault.kind == "drip" else 0.0
        while fault.kind != "stall" and not self.server.owner.wait(pause):
            self.wfile.write(piece)
        self.server.owner.wait(fault.seconds)

    def _drop(self) -> None:
        self.close_connection = True
        reset(self.connection)

    def _send(self, response: Response) -> None:
        reason = response.reason or http.client.responses.get(response.status, "Unknown")
        self.send_response_only(response.status, reason)
        if (clock := self.server.owner.clock) and "Date" not in response.headers:
            self.send_header("Date", email.utils.format_datetime(clock(), usegmt=True))
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
        self.wfile.flush()
