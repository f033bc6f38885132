"""Two simulated NetScalers as an HA pair: one is active, the other stands by.

    with HaPair() as pair:
        pair.add_user("citrixagent", "secret")
        www = pair.add_virtual_server("vs_www", "load_balancing")
        pair.a.server.before = lambda request: pair.failover() if request.number == 7 else None

Each node has its management address (``pair.a.host``), files, sessions and configuration;
``pair.host`` is one that moves with the active node. What the active node is told to configure is
carried out on the standby node first, with the files that are there; files get there by ``sync HA
files`` and every minute (``minute_passes``). What the standby node is told stays on it. The
virtual servers are the pair's: their addresses present what the active node has bound.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterable, Sequence

from simulators.appliance import Partition, Variant
from simulators.certkeys import CertKey, Others
from simulators.listener import VirtualServer
from simulators.netscaler import NetScaler
from simulators.nitro import NitroError, Operation, Row, Values
from simulators.server import HttpsServer, Request, Response

WITH_SSL = {"ssl", "all", "all_plus_misc", "all_minus_misc"}


class Node(NetScaler):
    """One of the two; ``ha_state`` is its role."""

    def __init__(self, pair: HaPair, release: str, variant: Variant | None) -> None:
        super().__init__(release, variant)
        self.pair = pair

    @property
    def nodes(self) -> Sequence[Node]:
        return [self.pair.a, self.pair.b]

    def settle(self, others: Others) -> None:
        for node in self.nodes:
            super(Node, node).settle(others)

    def handle(self, request: Request) -> Response:
        with self.pair.lock:
            return super().handle(request)

    def carry_out(
        self, operation: Operation, partition: Partition, values: Values
    ) -> Iterable[Row] | None:
        spread = self.ha_state == "Primary" and operation.propagates
        reached = not spread or self.pair.propagate(operation, partition.name, values)
        rows = super().carry_out(operation, partition, values)
        if not reached:
            self.pair.out_of_sync.append(operation.command(values))
        if not reached and self.pair.peer_answer:
            partition.refresh()
            raise NitroError(self.pair.peer_answer)
        return rows

    def sync_files(self, modes: list[str]) -> None:
        self.pair.sync_files(modes)
        super().sync_files(modes)


class HaPair:
    """Serves between ``start`` and ``stop``, or as a context manager; ``a`` begins as active.

    ``out_of_sync`` has the commands that were not carried out on the standby node (see Variant).
    While the standby node is out of service (``peer_is_dead``) no command and no file gets there;
    ``peer_answer`` is the code with which the active node then answers what it did carry out: 349,
    457 or 458; None: it says nothing.
    """

    def __init__(self, release: str = "13.1", variant: Variant | None = None) -> None:
        self.lock = threading.RLock()
        self.a, self.b = Node(self, release, variant), Node(self, release, variant)
        self.a.ha_state, self.b.ha_state = "Primary", "Secondary"
        self.b.address, self.b.peer_address = self.a.peer_address, self.a.address
        self.b.virtual_servers = self.a.virtual_servers
        self.server = HttpsServer(self.handle)
        self.server.clock = self._time
        self.out_of_sync: list[str] = []
        self.sync_busy = 0  # so many syncs are refused because another one runs
        self.sync_fails = False
        self.peer_is_dead = False
        self.peer_answer: int | None = None

    def __enter__(self) -> HaPair:  # noqa: PYI034 - Self needs Python 3.11
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for each in (self.a, self.b, self.server):
            each.start()

    def stop(self) -> None:
        for each in (self.server, self.a, self.b):
            each.stop()

    def _time(self) -> dt.datetime:
        return self.primary.clock()

    @property
    def host(self) -> str:
        return self.server.host

    @property
    def primary(self) -> Node:
        return self.a if self.a.ha_state == "Primary" else self.b

    @property
    def secondary(self) -> Node:
        return self.b if self.a.ha_state == "Primary" else self.a

    def failover(self) -> None:
        """Swap the roles; nothing else changes on the nodes, their sessions neither."""
        with self.lock:
            old, new = self.primary, self.secondary
            old.ha_state, new.ha_state = "Secondary", "Primary"
            for partition in new.partitions.values():
                partition.refresh()

    # what an administrator does: on both nodes

    def add_user(self, name: str, password: str, policy: str | None = None) -> None:
        for node in (self.a, self.b):
            node.add_user(name, password, policy)

    def add_partition(self, name: str, ssl_directory: str) -> None:
        first, second = (node.add_partition(name, ssl_directory) for node in (self.a, self.b))
        second.virtual_servers = first.virtual_servers

    def add_virtual_server(
        self, name: str, kind: str, servicetype: str = "SSL", *, sni: bool = False
    ) -> VirtualServer:
        return self.primary.add_virtual_server(name, kind, servicetype, sni=sni)

    def install(
        self, name: str, cert_pem: str, key_pem: str | None = None, chain: Sequence[str] = ()
    ) -> CertKey:
        certkey = self.primary.install(name, cert_pem, key_pem, chain)
        self.synchronize()
        return certkey

    def bind(self, virtual_server: str, certkey: str, *, sni: bool = False) -> None:
        self.primary.bind(virtual_server, certkey, sni=sni)
        self.synchronize()

    def synchronize(self) -> None:
        """Give the standby node the files and the configuration of the active one."""
        with self.lock:
            self._copy_files()
            for name, partition in self.primary.partitions.items():
                copy = self.secondary.partitions[name]
                copy.running, copy.stored = partition.running.copy(), partition.stored.copy()
            self.out_of_sync.clear()

    # what the nodes do

    def handle(self, request: Request) -> Response:
        """Answer at the address that moves."""
        return self.primary.handle(request)

    def propagate(self, operation: Operation, partition: str, values: Values) -> bool:
        """Carry out a command on the standby node; tell whether it was possible."""
        if self.peer_is_dead:
            return False
        try:
            operation.work(self.secondary.partitions[partition], values)
        except NitroError:
            if self.primary.variant.propagation == "refuse":
                raise
            return False
        return True

    def sync_files(self, modes: list[str]) -> None:
        if self.sync_busy:
            self.sync_busy -= 1
            raise NitroError(3591)
        if self.sync_fails or self.peer_is_dead:
            raise NitroError(3592)
        if WITH_SSL & set(modes):
            self._copy_files()

    def minute_passes(self) -> None:
        """Let the cron job copy the files."""
        with self.lock:
            if not self.peer_is_dead:
                self._copy_files()

    def _copy_files(self) -> None:
        """Copy the SSL directories; what only the standby node has stays (see Variant)."""
        source, target = self.primary, self.secondary
        directories = {partition.ssl_directory for partition in source.partitions.values()}
        for path in source.files:
            if path.rpartition("/")[0] in directories:
                target.write(path, source.files[path])
        if source.variant.sync_deletes:
            for path in target.files.keys() - source.files.keys():
                if path.rpartition("/")[0] in directories:
                    del target.files[path]
