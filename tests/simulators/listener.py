"""Virtual servers of a simulated NetScaler: real TLS listeners that present what is bound.

A listener chooses like the appliance: the SNI certificates whose name fits, a wildcard last, else
the default ones (one per key type, so that the client's signature algorithms decide), else the
handshake fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import socketserver
import ssl
import subprocess
from collections.abc import Callable, Iterable

from cryptography import x509

from simulators import HUNG
from simulators.server import PromptServer, tls_context

SSL_TYPES = ("SSL", "SSL_TCP")
KINDS = {
    "load_balancing": "lbvserver",
    "gateway": "vpnvserver",
    "content_switching": "csvserver",
    "authentication": "authenticationvserver",
}
PATIENCE = 5.0

# What a client says that only takes certificates of one key type.
SIGNATURES = {
    "RSA": "RSA-PSS+SHA256:RSA-PSS+SHA384:RSA+SHA256:RSA+SHA384",
    "ECDSA": "ECDSA+SHA256:ECDSA+SHA384",
}


@dataclasses.dataclass(frozen=True)
class Presented:
    """A certificate as clients get it: the chain (PEM, leaf first), its key, the leaf's names."""

    chain: str
    key: str
    serial: str
    names: frozenset[str]


class VirtualServer:
    """A virtual server; those of an SSL type listen on ``address`` until ``stop``.

    One whose ``address`` is given is only looked at: nobody listens there.
    ``served`` and ``served_by_name`` (SNI) are the serials of what was presented, in order. So many
    handshakes as ``lag`` says still get what was there before the last change; ``meet`` is called
    with each handshake.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        servicetype: str = "SSL",
        *,
        sni: bool,
        address: tuple[str, int] | None = None,
        profile: str = "",
        bundle: str = "",
    ) -> None:
        self.name = name
        self.kind = kind
        self.servicetype = servicetype
        self.sni = sni
        self.profile = profile  # the SSL profile that says so, if one does
        self.bundle = bundle  # the bundle that is bound to it, on releases that have them
        self.served: list[str] = []
        self.served_by_name: list[str] = []
        self.lag = 0
        self.meet: Callable[[], None] = lambda: None
        self._before: tuple[Presented, ...] = ()
        self.address = address or ("127.0.0.1", 80)
        self._default: tuple[Presented, ...] = ()
        self._by_name: tuple[Presented, ...] = ()
        self._contexts: dict[tuple[Presented, ...], ssl.SSLContext] = {}
        self._gate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._gate.sni_callback = self._choose
        self._listener: _Listener | None = None
        if self.has_tls and not address:
            self.listen()

    @property
    def has_tls(self) -> bool:
        return self.servicetype in SSL_TYPES

    @property
    def state(self) -> str:
        return "UP" if self._default or not self.has_tls else "DOWN"

    def present(self, default: list[Presented], by_name: list[Presented]) -> None:
        """From now on, serve these."""
        self.served += _new_serials(self._default, default)
        self.served_by_name += _new_serials(self._by_name, by_name)
        if tuple(default) != self._default:
            self._before = self._default
        self._default, self._by_name = tuple(default), tuple(by_name)

    def handshake(
        self, server_name: str | None = None, signatures: str | None = None
    ) -> list[x509.Certificate]:
        """Return what a client is sent: the leaf, then the intermediates."""
        return presented_chain(*self.address, server_name, signatures)

    def demand_client_certificate(self, authority_pem: str) -> None:
        """Let nobody in without a certificate: in TLS 1.2 that ends the handshake."""
        self._gate.maximum_version = ssl.TLSVersion.TLSv1_2
        self._gate.load_verify_locations(cadata=authority_pem)
        self._gate.verify_mode = ssl.CERT_REQUIRED

    def listen(self, port: int = 0) -> None:
        """Accept connections, on a free port unless one is given."""
        self._listener = _Listener(self._gate, port)
        self.address = ("127.0.0.1", self._listener.server_address[1])

    def stop(self) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None

    def _choose(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext
    ) -> int | None:
        self.meet()
        chosen = self._named(name.lower()) if name and self.sni else ()
        chosen = chosen or self._default
        if self.lag:
            self.lag, chosen = self.lag - 1, self._before
        if not chosen:
            return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
        if chosen not in self._contexts:
            self._contexts[chosen] = tls_context([(item.chain, item.key) for item in chosen])
        connection.context = self._contexts[chosen]
        return None

    def _named(self, name: str) -> tuple[Presented, ...]:
        exact = tuple(item for item in self._by_name if name in item.names)
        wildcard = f"*.{name.partition('.')[2]}"
        return exact or tuple(item for item in self._by_name if wildcard in item.names)


def _new_serials(old: Iterable[Presented], new: Iterable[Presented]) -> list[str]:
    before = {item.serial for item in old}
    return [item.serial for item in new if item.serial not in before]


class _Listener(PromptServer):
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self.context = context
        super().__init__(("127.0.0.1", port), _Handshake)
        self.listen()


class _Handshake(socketserver.BaseRequestHandler):
    """Shake hands, then wait for the client to go: nobody asks a virtual server for more."""

    server: _Listener

    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.settimeout(PATIENCE)
        with (
            contextlib.suppress(OSError),
            self.server.context.wrap_socket(connection, server_side=True) as tls,
        ):
            tls.recv(1)


def presented_chain(
    host: str, port: int, server_name: str | None = None, signatures: str | None = None
) -> list[x509.Certificate]:
    """Return the certificates that a TLS server presents, unverified, leaf first.

    ``signatures`` is ``RSA``, ``ECDSA`` or a list of signature algorithms as openssl takes it.
    Raises ssl.SSLError when there is no handshake.
    """
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-showcerts"]
    command += ["-servername", server_name] if server_name else ["-noservername"]
    if signatures:
        command += ["-sigalgs", SIGNATURES.get(signatures, signatures)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HUNG, check=False
    )
    pattern = rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n"
    found = re.findall(pattern, done.stdout, re.DOTALL)
    if not found:
        raise ssl.SSLError(done.stderr.decode(errors="replace").strip())
    return [x509.load_pem_x509_certificate(pem) for pem in found]
