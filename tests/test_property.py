"""What must hold whatever happens, in whatever order: profiles are edited, requests fail, orders
wait or are declined, people meddle with the appliance, it reboots, time passes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import ipaddress
import pathlib
import re
import tempfile
from collections.abc import Sequence

import hypothesis
import pytest
import time_machine
from conftest import PASSWORD, Document, Lab
from cryptography import x509
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from simulators.netscaler import NetScaler
from simulators.pair import HaPair
from simulators.scm import TURNED_DOWN, Order, Scm
from simulators.server import Fault, Request, Response
from test_crashes import SERVERS, laboratory, presented
from test_run import key_type
from test_year import files_of

TERM = 46  # days
WINDOW = dt.timedelta(days=TERM) / 3
LAPSE = dt.timedelta(days=7)
NAMES = ("example.com", "a.example.com", "192.0.2.10")
FAULTS = {
    "reset": None,
    "lost": None,
    "garbage": None,
    "garbled": None,
    "500": Response(500),
    "403": Response(403),
    "503": Response(503, b"", {"Retry-After": "1"}),
}


def now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


def names_of(leaf: x509.Certificate) -> set[str]:
    extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in extension}


def serial_of(order: Order) -> int | None:
    return order.leaf.serial_number if order.leaf else None


Wish = tuple[str, frozenset[str], str]


class World(RuleBasedStateMachine):
    """An appliance, an SCM, a profile, and everything that may happen to them.

    No rule has a precondition: which request meets a fault may differ from run to run, and what is
    drawn must not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        folder = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.lab = self._make(folder / "home")
        self.scm = self.lab.scm
        self.scm.account.term = TERM
        self.clock = self._stack.enter_context(time_machine.travel(now(), tick=True))
        self.wish: Wish = ("www.example.com", frozenset(NAMES), "ECDSA-P256")
        self.wishes: dict[str, Wish] = {}  # by order
        self.given_up: set[str] = set()
        self.error: Document | None = None
        self.done = False
        self.backups: list[str] = []  # the records that there were, the oldest first
        self.is_put_back = False  # the record may know less than the appliance since then
        self._write()

    def _make(self, folder: pathlib.Path) -> Lab:
        return self._stack.enter_context(laboratory(folder))

    @property
    def nodes(self) -> Sequence[NetScaler]:
        return [self.lab.appliance]

    @property
    def appliance(self) -> NetScaler:
        return self.lab.appliance

    # What happens

    @rule(
        common_name=st.sampled_from(["www.example.com", "web.example.com"]),
        names=st.frozensets(st.sampled_from(NAMES)),
        kind=st.sampled_from(["ECDSA-P256", "ECDSA-P384", "RSA-2048"]),
    )
    def somebody_edits_the_profile(
        self, common_name: str, names: frozenset[str], kind: str
    ) -> None:
        self.wish = (common_name, names, kind)
        self._write()

    @rule(days=st.sampled_from([0.2, 1, 5, 16, 26, 32, 50]))
    def time_passes(self, days: float) -> None:
        self.clock.shift(dt.timedelta(days=days))

    @rule(
        where=st.sampled_from(["appliance", "SCM"]),
        kind=st.sampled_from(sorted(FAULTS)),
        skip=st.integers(0, 20),
        times=st.integers(1, 2),
    )
    def requests_will_fail(self, where: str, kind: str, skip: int, times: int) -> None:
        server = self.scm.server if where == "SCM" else self.appliance.server
        response = FAULTS[kind]
        first = len(server.requests) + 1 + (skip if where == "appliance" else skip // 4)
        server.faults += [
            Fault("status" if response else kind, first + index, response=response or Response(500))
            for index in range(times)
        ]

    @rule(manual=st.booleans(), polls=st.integers(0, 2), generation=st.sampled_from([36, 37]))
    def scm_changes_its_ways(self, manual: bool, polls: int, generation: int) -> None:
        self.scm.approval = "manual" if manual else "auto"
        self.scm.issue_after = polls
        self.scm.authority.generation = generation

    @rule(verdict=st.sampled_from(["approve", "approve", "decline"]))
    def somebody_decides_about_orders(self, verdict: str) -> None:
        for order in self._waiting():
            if verdict == "approve":
                order.approve()
            else:
                order.decline("not ours")

    @rule()
    def somebody_revokes_the_newest_certificate(self) -> None:
        for order in self._issued()[-1:]:
            self.scm.revoke(order, 4, "superseded")

    @rule(
        what=st.sampled_from(["unbind", "unlink", "delete", "delete issuers"]),
        saved=st.booleans(),
    )
    def somebody_meddles_with_the_appliance(self, what: str, saved: bool) -> None:
        running = self.appliance.running
        if what in {"unbind", "delete"}:
            running.bindings.clear()
        if what == "delete":
            running.certkeys.pop("www", None)
        if what == "unlink":
            self._unlink("www")
        if what == "delete issuers":
            self._unlink("www")
            running.certkeys = {n: row for n, row in running.certkeys.items() if n == "www"}
        self.appliance.refresh()
        if saved:
            self.appliance.save()

    @rule()
    def the_appliance_reboots(self) -> None:
        self.appliance.reboot()

    @rule(skip=st.integers(0, 20), after=st.booleans())
    def the_appliance_will_restart(self, skip: int, after: bool) -> None:
        """It does so around a request; what was not saved is gone."""
        server, node = self.appliance.server, self.appliance
        at, moment = len(server.requests) + 1 + skip, "after" if after else "before"

        def restart(request: Request) -> None:
            if request.number == at:
                node.reboot()

        setattr(server, moment, restart)

    @rule(which=st.integers(0, 30))
    def the_record_is_put_back_from_a_backup(self, which: int) -> None:
        if self.backups:
            self._record_path.write_text(self.backups[which % len(self.backups)])
            self.is_put_back = True
            self.error = None  # what was said of another record helps nobody

    @rule(command=st.sampled_from(["renew", "replace"]))
    def the_operator_wants_another_certificate(self, command: str) -> None:
        """And gives the command again if it fails: one order comes of it."""
        if not self.done:
            return
        open_orders = self._open()
        placed = self._command(command, "www")
        if self.error and self.error["kind"] in {"unreachable", "unavailable", "appliance"}:
            placed += self._command(command, "www")
        assert len(placed) <= 1
        assert not (placed and open_orders), "a second one"

    @rule()
    def cron_runs(self) -> None:
        reasons, open_orders, settled = self._reasons(), self._open(), self._settled()
        placed = self._command("run")
        if placed:
            assert reasons, "an order without a reason"
            assert not open_orders or "lapsing" in reasons, "a second one"
            assert not settled, "ordered again after a no"

    @rule()
    def the_operator_does_as_told(self) -> None:
        if self.error:
            self._command(*self._remedy())

    # What must hold

    def _command(self, *command: str) -> list[Order]:
        """Run a command, check what must hold afterwards, and return the orders it placed."""
        before = len(self.scm.orders)
        served = self._valid()
        outcome = self.lab.json(*command)
        result = outcome.profile()
        self.error, self.done = result["error"], outcome.exit_code == 0
        assert outcome.exit_code in {0, 1, 5}
        assert "unexpected" not in outcome.text
        assert outcome.exit_code != 1 or (self.error and self.error["message"])
        assert outcome.exit_code != 5 or (result["outcome"] == "pending" and result["reason"])
        if self.done:
            alone = self.is_put_back and "the certificate alone" in str(result["warnings"])
            self._check_all_is_well(settled=result["outcome"] == "unchanged", alone=alone)
        warned = result["warnings"] or outcome.document()["warnings"]
        if result["outcome"] == "unchanged" and not (warned or self.is_put_back):
            leaf = self.appliance.certkeys["www"].certificate
            assert self._order_of(leaf).status != "Revoked"
        assert served <= self._valid(), "a valid certificate was taken away"
        self._check_files()
        placed = self.scm.orders[before:]
        self.wishes |= {order.cert_id: self.wish for order in placed}
        assert len(placed) <= 1
        if self._record_path.exists() and self._record_path.read_text() not in self.backups:
            self.backups.append(self._record_path.read_text())
        return placed

    @property
    def _record_path(self) -> pathlib.Path:
        return self.lab.home / "state" / "profile-www.json"

    def _check_all_is_well(self, *, settled: bool, alone: bool) -> None:
        """What was collected long after its issue may be due again: the next run renews it.

        ``alone``: the chain of what the record that was put back does not know is gone, as is told.
        """
        common_name, names, kind = self.wish
        assert self._valid() == set(SERVERS)
        assert self.appliance.saved
        certkey = self.appliance.certkeys["www"]
        leaf = certkey.certificate
        assert {common_name, *names} <= names_of(leaf)
        assert key_type(leaf) == kind
        left = leaf.not_valid_after_utc - now()
        assert not settled or left > WINDOW - dt.timedelta(minutes=1)
        for server in SERVERS:
            shown = presented(self.lab, server)
            assert shown
            assert shown.serial == certkey.serial
            assert shown.whole or alone

    def _check_files(self) -> None:
        """Every file on the appliance is known to the record."""
        there = {pathlib.PurePath(path).name for path in self.appliance.files}
        own = {name for name in there if not re.fullmatch(r"ca_\w+\.crt", name)}
        known = files_of(self.lab.record()) if self._record_path.exists() else set()
        assert own <= known or self.is_put_back

    def teardown(self) -> None:
        """In the end, with a patient operator and without faults, all is well."""
        try:
            self._settle()
            self.lab.check()
        finally:
            self._stack.close()

    def _settle(self) -> None:
        self.scm.approval, self.scm.issue_after = "auto", 0
        for server in (self.scm.server, *(node.server for node in self.nodes)):
            server.faults.clear()
            server.before = server.after = None
            server.accept()
        for order in self._waiting():
            order.approve()
        while_open = (self._command(*(self._remedy() if self.error else ["run"])) for _ in range(8))
        assert any(self.done for _ in while_open), self.error
        self._command("run")
        asked = len(self.appliance.server.requests)
        outcome = self.lab("run")
        assert (outcome.exit_code, outcome.text) == (0, "")
        assert all(
            call.startswith("GET") or call.endswith(("/login", "/logout"))
            for call in self.appliance.server.calls(asked)
        )
        for node in self.nodes:
            node.sessions.clear()  # lost log-ins and log-outs leave some; they end by themselves

    # What the assertions look at

    def _write(self) -> None:
        common_name, names, kind = self.wish
        certificate = self.lab.certificate(
            common_name=common_name,
            subject_alternative_names=sorted(names, key=_sorting),
            key_type=kind,
        )
        hosts = [node.host for node in self.nodes]
        self.lab.write_profile(
            citrix=self.lab.citrix(host=hosts if len(hosts) > 1 else hosts[0]),
            virtual_servers=[{"name": name, "type": each} for name, each in SERVERS.items()],
            certificate=certificate,
            enrollment={"max_wait": 0},
        )

    def _unlink(self, name: str) -> None:
        running = self.appliance.running
        if name in running.certkeys:
            running.put(dataclasses.replace(running.certkeys[name], link=None))

    def _waiting(self) -> list[Order]:
        return [order for order in self.scm.orders if order.status == "Requested"]

    def _issued(self) -> list[Order]:
        return [order for order in self.scm.orders if order.status == "Issued"]

    def _order_of(self, leaf: x509.Certificate) -> Order:
        return next(o for o in self.scm.orders if serial_of(o) == leaf.serial_number)

    def _served(self) -> set[int]:
        """Return the serials of all certificates that were ever presented."""
        servers = self.appliance.virtual_servers.values()
        return {int(serial, 16) for server in servers for serial in server.served}

    def _valid(self) -> set[str]:
        """Return the virtual servers that hold a certificate which is valid now."""
        return {
            server
            for server in SERVERS
            for certkey in self.appliance.running.bound(server)
            if certkey.certificate.not_valid_after_utc > now()
        }

    def _open(self) -> list[Order]:
        """Return the orders that may still come to use: neither served, refused nor given up."""
        return [
            order
            for order in self.scm.orders
            if order.status not in {*TURNED_DOWN, "Revoked", "Expired"}
            and order.cert_id not in self.given_up
            and serial_of(order) not in self._served()
        ]

    def _settled(self) -> bool:
        """Tell whether the last order, for the same wish, was turned down."""
        last = self.scm.orders[-1:]
        return any(o.status in TURNED_DOWN and self.wishes[o.cert_id] == self.wish for o in last)

    def _reasons(self) -> set[str]:
        """Say why a certificate may be ordered now."""
        certkey = self.appliance.certkeys.get("www")
        if certkey is None:
            return {"missing"}
        leaf, (common_name, names, kind) = certkey.certificate, self.wish
        left = leaf.not_valid_after_utc - now()
        reasons = {
            "due": left <= WINDOW,
            "lapsing": left < LAPSE,
            "names": names_of(leaf) != {common_name, *names},
            "common name": self._order_of(leaf).names[0] != common_name,
            "key": key_type(leaf) != kind,
            "revoked": self._order_of(leaf).status == "Revoked",
        }
        return {name for name, holds in reasons.items() if holds}

    def _remedy(self) -> list[str]:
        """Return the command that the last error's message names, as an operator would choose."""
        assert self.error
        told = r"citrixagent\.py (enroll .*?www|run www --take-over)\b"
        commands = re.findall(told, self.error["message"])
        if self.error["kind"] != "unknown_outcome":
            self._give_up()
            return str(commands[-1]).split() if commands else ["run"]
        sent = str(self.lab.record()["change"]["order"]["sent"])
        found = [o for o in self._open() if f"{o.placed:%Y-%m-%dT%H:%M:%SZ}" >= sent]
        adopt, anew = map(str, commands)
        if found:
            return adopt.replace("ID", found[-1].cert_id).split()
        self._give_up()
        return anew.split()

    def _give_up(self) -> None:
        self.given_up |= {order.cert_id for order in self.scm.orders}


class PairWorld(World):
    """The same, where the appliance is an HA pair whose nodes fail."""

    def _make(self, folder: pathlib.Path) -> Lab:
        self.pair = self._stack.enter_context(HaPair())
        self.swaps = 0
        for name, kind in SERVERS.items():
            self.pair.add_virtual_server(name, kind)
        folder.mkdir()
        lab = Lab(folder, self.pair.a, self._stack.enter_context(Scm()))
        self.pair.add_user("citrixagent", PASSWORD)
        lab.accept()
        return lab

    @property
    def nodes(self) -> Sequence[NetScaler]:
        return [self.pair.a, self.pair.b]

    @property
    def appliance(self) -> NetScaler:
        return self.pair.primary

    @rule()
    def the_other_node_takes_over(self) -> None:
        self.pair.failover()

    @rule(skip=st.integers(1, 30))
    def the_other_node_will_take_over(self, skip: int) -> None:
        """It does so after a request."""
        node = self.pair.primary
        at = len(node.server.requests) + skip

        def after(request: Request) -> None:
            if request.number == at and self.pair.primary is node:
                self.pair.failover()
                self.swaps += 1

        node.server.after = after

    @rule(up=st.booleans())
    def the_standby_node_cannot_be_managed(self, up: bool) -> None:
        if up:
            self.pair.secondary.server.accept()
        else:
            self.pair.secondary.server.refuse()

    @rule()
    def a_minute_passes(self) -> None:
        self.pair.minute_passes()

    def _command(self, *command: str) -> list[Order]:
        self._configure_standby()
        return super()._command(*command)

    def _configure_standby(self) -> None:
        """Let the standby node take over the configuration, as it does all the time."""
        for name, partition in self.pair.primary.partitions.items():
            copy = self.pair.secondary.partitions[name]
            copy.running, copy.stored = partition.running.copy(), partition.stored.copy()

    def _check_all_is_well(self, *, settled: bool, alone: bool) -> None:
        """Both nodes can serve: they have every file that the configuration names."""
        super()._check_all_is_well(settled=settled, alone=alone)
        for node in self.nodes:
            for each in self.appliance.stored.certkeys.values():
                assert {node.path(file) for file in (each.cert, each.key) if file} <= set(
                    node.files
                )
            assert len(node.standby_writes) <= self.swaps

    def _check_files(self) -> None:
        """What was deleted on one node may be on the other, where nobody is told to delete it."""


def _sorting(name: str) -> tuple[bool, str]:
    with contextlib.suppress(ValueError):
        return True, str(ipaddress.ip_address(name))
    return False, name


def explore(world: type[World], examples: int, steps: int) -> None:
    settings = hypothesis.settings(
        max_examples=examples,
        derandomize=True,  # what lands never depends on luck; change this line to explore further
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        database=None,
        print_blob=True,
    )
    run_state_machine_as_test(world, settings=settings)


@pytest.mark.parametrize("world", [World, PairWorld])
def test_what_must_hold_whatever_happens(world: type[World]) -> None:
    explore(world, examples=4, steps=12)


@pytest.mark.long
@pytest.mark.parametrize(("world", "examples"), [(World, 60), (PairWorld, 30)])
def test_what_must_hold_whatever_happens_for_long(world: type[World], examples: int) -> None:
    explore(world, examples, steps=25)
