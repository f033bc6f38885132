"""The state of a NetScaler appliance: its partitions, each with a configuration, and its files.

A running configuration is one object (Configuration), saved and restored as a whole. Operations
work on a Partition; what the partitions share is the appliance's: ``partition.box``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import re
from collections.abc import Callable, Sequence
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from simulators.certkeys import (
    Binding,
    CertKey,
    Configuration,
    load_key,
    pooled_rsa_key,
    public_key,
)
from simulators.listener import KINDS, Presented, VirtualServer
from simulators.nitro import OPERATIONS, NitroError, Values

__all__ = ["SSL_FOLDER", "Appliance", "Partition", "Variant", "pooled_rsa_key"]

SSL_FOLDER = "/nsconfig/ssl"
FOLDERS = (SSL_FOLDER, "/nsconfig", "/nsconfig/license", "/var/tmp")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Behaviour that differs between appliances; a client has to cope with every value."""

    single_objects: bool = True  # False: also nsversion and its like answer with a list
    write_bodies: bool = False  # True: writes answer with a body
    numbers_as_strings: bool = False
    omit_false: bool = False  # True: attributes that are false are left out
    created: Literal[200, 201] = 201
    download: Literal["both", "args", "name"] = "both"  # form of the URL that reads a file
    missing_file: Literal[3441, 1155, 258] | None = 3441  # None: 200 without rows
    missing_certkey: Literal[599, 404] = 599
    update_link: Literal["break", "keep", "refuse"] = "break"  # the new issuer is another one
    certkey_name_limit: Literal[31, 63] = 31
    sandns: bool | None = None  # rows of sslcertkey tell the alternative names; None: since 14.1
    ecdsa: bool = True
    sni_per_key_type: bool = True  # False: not even RSA and ECDSA share a name; 3629 and 1674
    propagation: Literal["refuse", "silent"] = "refuse"  # a command fails on the standby node


class Partition:
    """A configuration of its own on an appliance, with the SSL directory that belongs to it."""

    def __init__(self, box: Appliance, name: str, ssl_directory: str) -> None:
        self.box = box
        self.name = name
        self.ssl_directory = ssl_directory
        self.running = Configuration()
        self.stored = Configuration()
        self.saved_at = box.clock()
        self.virtual_servers: dict[str, VirtualServer] = {}

    @property
    def certkeys(self) -> dict[str, CertKey]:
        return self.running.certkeys

    @property
    def bindings(self) -> list[Binding]:
        return self.running.bindings

    @property
    def saved(self) -> bool:
        return self.running == self.stored

    def save(self) -> None:
        self.stored = self.running.copy()
        self.saved_at = self.box.clock()
        self.refresh()

    def restore(self) -> None:
        """Return to the saved configuration; what its files no longer give is lost."""
        self.running = Configuration()
        for certkey in self.stored.certkeys.values():
            with contextlib.suppress(NitroError):
                certificate, key = self.load(certkey.cert, certkey.key)
                new = dataclasses.replace(certkey, certificate=certificate, private_key=key)
                self.running.put(new)
        for certkey in list(self.certkeys.values()):
            if certkey.link not in self.certkeys:
                self.running.put(dataclasses.replace(certkey, link=None))
        self.running.bindings = [b for b in self.stored.bindings if b.certkey in self.certkeys]
        self.refresh()

    def refresh(self) -> None:
        """Let the virtual servers present what is bound now: they are with the active node."""
        if self.box.ha_state == "Secondary":
            return
        for name, server in self.virtual_servers.items():
            default = [self._presented(certkey) for certkey in self.running.bound(name)]
            by_name = [self._presented(certkey) for certkey in self.running.bound(name, sni=True)]
            server.present(default, by_name)

    def _presented(self, certkey: CertKey) -> Presented:
        chain = "".join(item.pem for item in self.running.chain(certkey))
        key = certkey.private_key.decode()
        return Presented(chain, key, certkey.serial, certkey.domains)

    # what an administrator does

    def add_virtual_server(
        self, name: str, kind: str, servicetype: str = "SSL", *, sni: bool = False
    ) -> VirtualServer:
        if kind not in KINDS or name in self.virtual_servers:
            raise ValueError(f"{kind} {name}")
        self.virtual_servers[name] = VirtualServer(name, kind, servicetype, sni=sni)
        return self.virtual_servers[name]

    def install(
        self, name: str, cert_pem: str, key_pem: str | None = None, chain: Sequence[str] = ()
    ) -> CertKey:
        """Put a certificate and its intermediates on the appliance: linked, saved, not bound."""
        link = None
        for pem in reversed(chain):
            link = self._install_issuer(pem, link)
        certkey = self._install(name, cert_pem, key_pem, link)
        self.save()
        return certkey

    def bind(self, virtual_server: str, certkey: str, *, sni: bool = False) -> None:
        """Bind a certificate and save."""
        names = {"vservername": virtual_server, "certkeyname": certkey}
        bind = OPERATIONS["sslvserver_sslcertkey_binding", "set"]
        bind.work(self, Values(names, snicert=sni))
        self.save()

    def _install_issuer(self, pem: str, link: str | None) -> str:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        for certkey in self.certkeys.values():
            if certkey.certificate == certificate:
                return certkey.name
        return self._install(f"ca-{certificate.serial_number:X}"[:31], pem, None, link).name

    def _install(self, name: str, pem: str, key_pem: str | None, link: str | None) -> CertKey:
        stem = re.sub(r"[^\w.-]", "_", name)
        cert, key = f"{stem}.crt", f"{stem}.key" if key_pem else ""
        self.box.write(self.path(cert), pem.encode())
        if key_pem:
            self.box.write(self.path(key), key_pem.encode())
        certkey = CertKey(name, cert, key, *self.load(cert, key), link)
        self.running.put(certkey)
        return certkey

    # files

    @property
    def folders(self) -> Sequence[str]:
        """The folders that it may use."""
        return [self.ssl_directory]

    def path(self, name: str) -> str:
        return name if "/" in name else f"{self.ssl_directory}/{name}"

    def create(self, name: str, content: bytes) -> None:
        """Write a new file in the SSL directory."""
        path = self.path(name)
        if path.rpartition("/")[0] != self.ssl_directory:
            raise NitroError(1645)
        if path in self.box.files:
            raise NitroError(1642)
        self.box.write(path, content)

    def read(self, name: str) -> bytes:
        path = self.path(name)
        if path not in self.box.files or path.rpartition("/")[0] not in self.folders:
            raise NitroError(1647)
        return self.box.files[path]

    def load(self, cert: str, key: str, kept: bytes = b"") -> tuple[x509.Certificate, bytes]:
        """Read a certificate and its key from their files; no key file: the key is ``kept``."""
        pem, private_key = self.read(cert), self.read(key) if key else kept
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise NitroError(1536) from None
        public = public_key(certificate)
        if private_key and public_key(load_key(private_key, 1537)) != public:
            raise NitroError(1538)
        if isinstance(public, ec.EllipticCurvePublicKey) and not self.box.variant.ecdsa:
            raise NitroError(1675)
        return certificate, private_key

    # look-ups that refuse what is not there, or there already

    def certkey(self, name: str) -> CertKey:
        if name not in self.certkeys:
            raise NitroError(1540, status=self.box.variant.missing_certkey)
        return self.certkeys[name]

    def tls_server(self, name: str) -> VirtualServer:
        if name not in self.virtual_servers:
            raise NitroError(1544 if self.box.cluster else 461)
        if not self.virtual_servers[name].has_tls:
            raise NitroError(1544)
        return self.virtual_servers[name]

    def check_unique(self, certificate: x509.Certificate, name: str) -> None:
        for other in self.certkeys.values():
            if other.certificate == certificate and other.name != name:
                raise NitroError(273, "certkeyName Contents", other.name)


class Appliance(Partition):
    """One appliance: its default partition, and what all partitions share."""

    def __init__(self, release: str, variant: Variant) -> None:
        self.release = release
        self.variant = variant
        self.clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.timezone.utc)
        self.files: dict[str, bytes] = {}
        self.written_at: dict[str, dt.datetime] = {}
        self.address, self.peer_address = "127.0.0.1", "127.0.0.2"
        self.ha_state: Literal["Primary", "Secondary"] | None = None
        self.cluster: Literal["CLIP", "NODE"] | None = None
        self.file_syncs: list[list[str]] = []
        self.private_keys_read: list[str] = []
        self.key_pool = True
        self.save_busy = 0  # so many saves are refused: by 1461 and 293 in turn, last by 293
        super().__init__(self, "default", SSL_FOLDER)
        self.partitions: dict[str, Partition] = {self.name: self}

    @property
    def folders(self) -> Sequence[str]:
        own = [partition.ssl_directory for partition in self.partitions.values()]
        return [*FOLDERS, *own]

    @property
    def tells_alternatives(self) -> bool:
        modern = tuple(map(int, self.release.split("."))) >= (14, 1)
        return modern if self.variant.sandns is None else self.variant.sandns

    def add_partition(self, name: str, ssl_directory: str) -> Partition:
        if name in self.partitions:
            raise ValueError(name)
        self.partitions[name] = Partition(self, name, ssl_directory)
        return self.partitions[name]

    def partition(self, name: str) -> Partition:
        return self.partitions[name]

    def write(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.written_at[path] = self.clock()

    def sync_files(self, modes: list[str]) -> None:
        """Copy files to the other nodes: here there are none."""
        self.file_syncs.append(modes)
