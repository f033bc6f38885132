"""Virtual servers of a simulated NetScaler: real TLS listeners that present what is bound.

A listener chooses like the appliance: the SNI certificate whose name fits, else the default ones
(one per key type, so that the client's signature algorithms decide), else the handshake fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import socketserver
import ssl
import subprocess
import threading

from cryptography import x509

from simulators.server import tls_context

SSL_TYPES = ("SSL", "SSL_TCP")
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

    def fits(self, server_name: str) -> bool:
        _, _, domain = server_name.lower().partition(".")
        return bool(self.names & {server_name.lower(), f"*.{domain}"})


class VirtualServer:
    """A virtual server; those of an SSL type listen on ``address`` until ``stop``."""

    def __init__(self, name: str, kind: str, servicetype: str = "SSL", *, sni: bool) -> None:
        self.name = name
        self.kind = kind
        self.servicetype = servicetype
        self.sni = sni
        self.served: list[str] = []
        self.address = ("127.0.0.1", 80)
        self._default: tuple[Presented, ...] = ()
        self._by_name: tuple[Presented, ...] = ()
        self._contexts: dict[tuple[Presented, ...], ssl.SSLContext] = {}
        self._gate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._gate.sni_callback = self._choose
        self._listener: _Listener | None = None
        if self.has_tls:
            self.listen()

    @property
    def has_tls(self) -> bool:
        return self.servicetype in SSL_TYPES

    @property
    def state(self) -> str:
        return "UP" if self._default or not self.has_tls else "DOWN"

    def present(self, default: list[Presented], by_name: list[Presented]) -> None:
        """From now on, serve these; ``served`` grows by the serials that were not served before."""
        before = {presented.serial for presented in self._default}
        self.served += [item.serial for item in default if item.serial not in before]
        self._default, self._by_name = tuple(default), tuple(by_name)

    def handshake(
        self, server_name: str | None = None, signatures: str | None = None
    ) -> list[x509.Certificate]:
        """Return what a client is sent: the leaf, then the intermediates."""
        return presented_chain(*self.address, server_name, signatures)

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
        by_name = [item for item in self._by_name if name and item.fits(name)]
        chosen = tuple(by_name[:1]) or self._default
        if not chosen:
            return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
        if chosen not in self._contexts:
            self._contexts[chosen] = tls_context([(item.chain, item.key) for item in chosen])
        connection.context = self._contexts[chosen]
        return None


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self.context = context
        super().__init__(("127.0.0.1", port), _Handshake)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


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
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    pattern = rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n"
    found = re.findall(pattern, done.stdout, re.DOTALL)
    if not found:
        raise ssl.SSLError(done.stderr.decode(errors="replace").strip())
    return [x509.load_pem_x509_certificate(pem) for pem in found]
