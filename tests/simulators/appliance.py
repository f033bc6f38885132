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
    Others,
    Use,
    key_pem,
    load_key,
    pooled_rsa_key,
    public_key,
    read_pair,
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
    download: Literal["both", "args"] = "both"  # form of the URL that reads a file
    missing_file: Literal[3441, 1155, 258] | None = 3441  # None: 200 without rows
    missing_certkey: Literal[599, 404] = 599
    update_link: Literal["break", "keep", "refuse"] = "break"  # the new issuer is another one
    certkey_name_limit: Literal[31, 63] = 31
    sandns: bool | None = None  # rows of sslcertkey tell the alternative names; None: since 14.1
    ecdsa: bool = True  # False: this release makes no such keys
    ecdsa_certificates: Literal["all", "P-256", "none"] = "all"  # others: 1676, 1675
    update_form: Literal["PEM", "keep"] = "PEM"  # an update that names no ``inform``
    bulk_paging: bool = True  # False: bulkbindings and pagesize together are refused
    bundles: bool | None = None  # sslcertkeybundle is offered; None: since 14.1
    sni_per_key_type: bool = True  # False: not even RSA and ECDSA share a name; 3629 and 1674
    propagation: Literal["refuse", "silent"] = "refuse"  # a command fails on the standby node
    sync_deletes: bool = False  # True: a file that only the standby node has is deleted there


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

    def everything(self) -> list[CertKey]:
        """Return every certkey, those of others too."""
        return self.running.everything()

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
        self.running = Configuration(others=self.stored.others)
        for certkey in self.stored.certkeys.values():
            with contextlib.suppress(NitroError):
                certificate, key = self.load(
                    certkey.cert,
                    certkey.key,
                    inform=certkey.inform,
                    passphrase=certkey.passphrase,
                )
                new = dataclasses.replace(certkey, certificate=certificate, private_key=key)
                self.running.put(new)
        for certkey in list(self.certkeys.values()):
            if not self.running.find(certkey.link or ""):
                self.running.put(dataclasses.replace(certkey, link=None))
        self.running.bindings = [b for b in self.stored.bindings if self.running.find(b.certkey)]
        self.running.uses = list(self.stored.uses)
        self.running.ended = list(self.stored.ended)
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
        self,
        name: str,
        kind: str,
        servicetype: str = "SSL",
        *,
        sni: bool = False,
        profile: str = "",
        bundle: str = "",
    ) -> VirtualServer:
        if kind not in KINDS or name in self.virtual_servers:
            raise ValueError(f"{kind} {name}")
        server = VirtualServer(name, kind, servicetype, sni=sni, profile=profile, bundle=bundle)
        self.virtual_servers[name] = server
        return server

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

    def load_files(
        self,
        name: str,
        cert: tuple[str, bytes],
        key: tuple[str, bytes] | None = None,
        *,
        inform: str = "PEM",
        passphrase: str = "",
    ) -> CertKey:
        """Put files on the appliance and make a certkey of them: saved, not bound, not linked."""
        for path, content in filter(None, (cert, key)):
            self.box.write(self.path(path), content)
        names = cert[0], key[0] if key else ""
        loaded = self.load(*names, inform=inform, passphrase=passphrase)
        certkey = CertKey(name, *names, *loaded, inform=inform, passphrase=passphrase)
        self.running.put(certkey)
        self.save()
        return certkey

    def use(self, use: Use) -> None:
        """Use a certkey at a place that is no virtual server, and save."""
        self.running.uses.append(use)
        self.save()

    def settle(self, others: Others) -> None:
        """Let others have been here before: what they have lies under the configuration."""
        self.running.others = self.stored.others = others

    def bind(self, virtual_server: str, certkey: str, *, sni: bool = False) -> None:
        """Bind a certificate and save."""
        names = {"vservername": virtual_server, "certkeyname": certkey}
        bind = OPERATIONS["sslvserver_sslcertkey_binding", "set"]
        bind.work(self, Values(names, snicert=sni))
        self.save()

    def _install_issuer(self, pem: str, link: str | None) -> str:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        for certkey in self.everything():
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
        return name if name.startswith("/") else f"{self.ssl_directory}/{name}"

    def create(self, name: str, content: bytes) -> None:
        """Write a new file in the SSL directory."""
        path = self.path(name)
        if path.rpartition("/")[0] != self.ssl_directory:
            raise NitroError(1645)
        if self.box.content(path) is not None:
            raise NitroError(1642)
        self.box.write(path, content)

    def read(self, name: str) -> bytes:
        path = self.path(name)
        content, folder = self.box.content(path), path.rpartition("/")[0]
        inside = any(folder == each or folder.startswith(f"{each}/") for each in self.folders)
        if content is None or not inside:
            raise NitroError(1647)
        return content

    def load(
        self, cert: str, key: str, kept: bytes = b"", *, inform: str = "PEM", passphrase: str = ""
    ) -> tuple[x509.Certificate, bytes]:
        """Read a certificate and its key from their files; no key there: the key is ``kept``.

        The key is returned as PEM without a pass phrase, whatever it was loaded from.
        """
        key_file = self.read(key) if key and inform != "PFX" else b""
        certificate, private_key = read_pair(self.read(cert), key_file, inform, passphrase)
        public, pem = public_key(certificate), key_pem(private_key) if private_key else kept
        if pem and public_key(load_key(pem, 1537)) != public:
            raise NitroError(1538)
        if isinstance(public, ec.EllipticCurvePublicKey):
            self._check_curve(public)
        return certificate, pem

    def _check_curve(self, key: ec.EllipticCurvePublicKey) -> None:
        taken = self.box.variant.ecdsa_certificates
        if taken == "none" or not self.box.variant.ecdsa:
            raise NitroError(1675)
        if taken == "P-256" and key.curve.name != "secp256r1":
            raise NitroError(1676)

    # look-ups that refuse what is not there, or there already

    def certkey(self, name: str) -> CertKey:
        found = self.running.find(name)
        if not found:
            raise NitroError(1540, status=self.box.variant.missing_certkey)
        return found

    def servers(self) -> dict[str, VirtualServer]:
        """Return every virtual server, those of others first."""
        return {**self.running.others.virtual_servers, **self.virtual_servers}

    def tls_server(self, name: str) -> VirtualServer:
        server = self.servers().get(name)
        if server is None:
            raise NitroError(1544 if self.box.cluster else 461)
        if not server.has_tls:
            raise NitroError(1544)
        return server

    def check_unique(self, certificate: x509.Certificate, name: str) -> None:
        for other in self.everything():
            if other.certificate == certificate and other.name != name:
                raise NitroError(273, "certkeyName Contents", other.name)


class Appliance(Partition):
    """One appliance: its default partition, and what all partitions share."""

    def __init__(self, release: str, variant: Variant) -> None:
        self.release = release
        self.variant = variant
        self.clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.timezone.utc)
        self.files: dict[str, bytes] = {}
        self.deleted: list[str] = []  # files of others
        self.written_at: dict[str, dt.datetime] = {}
        self.address, self.peer_address = "127.0.0.1", "127.0.0.2"
        self.ha_state: Literal["Primary", "Secondary"] | None = None
        self.cluster: Literal["CLIP", "NODE"] | None = None
        self.file_syncs: list[list[str]] = []
        self.files_read: list[str] = []
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
    def nodes(self) -> Sequence[Appliance]:
        """Return the appliance, or both nodes of its pair."""
        return [self]

    @property
    def is_modern(self) -> bool:
        return tuple(map(int, self.release.split("."))) >= (14, 1)

    @property
    def tells_alternatives(self) -> bool:
        return self.is_modern if self.variant.sandns is None else self.variant.sandns

    @property
    def has_bundles(self) -> bool:
        return self.is_modern if self.variant.bundles is None else self.variant.bundles

    def add_partition(self, name: str, ssl_directory: str) -> Partition:
        if name in self.partitions:
            raise ValueError(name)
        self.partitions[name] = Partition(self, name, ssl_directory)
        return self.partitions[name]

    def partition(self, name: str) -> Partition:
        return self.partitions[name]

    def content(self, path: str) -> bytes | None:
        """Return what a file holds, whosever it is; None where there is none."""
        if path in self.files:
            return self.files[path]
        return None if path in self.deleted else self.running.others.files.get(path)

    def touched(self) -> list[str]:
        """Say what of others was changed: in the configuration, the saved one, the files."""
        found = {*self.running.touched(), *self.stored.touched()}
        return sorted(found | {f"file {path}" for path in self.deleted})

    def write(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.written_at[path] = self.clock()

    def sync_files(self, modes: list[str]) -> None:
        """Copy files to the other nodes: here there are none."""
        self.file_syncs.append(modes)
