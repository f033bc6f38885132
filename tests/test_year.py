"""A year in the life of 8 certificates: short terms, a run every night, one request in 20 fails.

In another year, of 20 certificates, somebody makes a mistake a month: gives a command twice, puts
an old record back, has an appliance restart in the middle of a night, sets a clock wrong. And so it
is in 60 nights of 3 certificates, for those who cannot wait.

Every fourth week is without faults, the others have more: so there are nights with nothing to do.

The clock of program and simulators is moved; TLS is checked by OpenSSL against the real time, so
everything with a management certificate is made before the clock moves.
"""

from __future__ import annotations

import collections
import datetime as dt
import gc
import itertools
import pathlib
import random
import re
import threading
from collections.abc import Callable, Iterator

import pytest
import time_machine
from conftest import PASSWORD, Document, Lab, Outcome
from simulators.netscaler import NetScaler
from simulators.scm import Order
from simulators.server import Fault, HttpsServer, Request, Response

TERM = 46  # days
WINDOW = dt.timedelta(days=TERM) / 3
SHORTEST = TERM - WINDOW.days - 2  # nights from one renewal to the next
RATE = 0.05 * 4 / 3  # of the requests in the three weeks that have faults
SEED = 20261123
NEVER_LEFT = dt.timedelta(days=6)

# Kinds and how often they are chosen; what costs the time of a whole limit is rare.
FAULTS = {
    "reset": 20,
    "lost": 20,
    "garbage": 20,
    "garbled": 20,
    "500": 20,
    "503": 10,
    "refused": 10,
    "hang": 2,
    "down": 1,
}
ANSWERS = {"500": Response(500), "503": Response(503, b"", {"Retry-After": "1"})}


class Weather:
    """Lets a share of the requests to a server go wrong."""

    def __init__(self, server: HttpsServer, seed: int) -> None:
        self.server = server
        self.fair = False
        self.fired: collections.Counter[str] = collections.Counter()
        self.restart: tuple[int, Callable[[], None]] | None = None  # after so many requests
        self._chance = random.Random(seed)
        self._opener = threading.Timer(0, server.accept)
        server.before = self._maybe

    def _maybe(self, request: Request) -> None:
        if self.restart and request.number >= self.restart[0]:
            self.restart[1]()
            self.restart = None
        if self.fair or self._chance.random() >= RATE:
            return
        (kind,) = self._chance.choices(list(FAULTS), list(FAULTS.values()))
        self.fired[kind] += 1
        if kind in {"refused", "down"}:
            self.server.refuse_after = request.number
            if kind == "refused":
                self._opener = threading.Timer(0.3, self.server.accept)
                self._opener.start()
            return
        response = ANSWERS.get(kind, Response(500))
        name = "status" if kind in ANSWERS else kind
        self.server.faults = [Fault(name, request.number, response=response, seconds=5.5)]

    def clear(self) -> None:
        if self._opener.ident:
            self._opener.join()
        self.server.accept()
        self.server.faults.clear()


class Year:
    """The appliances, the nights and the operator."""

    def __init__(self, lab: Lab, appliances: list[NetScaler], seed: int) -> None:
        self.lab = lab
        self.appliances = appliances
        servers = [lab.scm.server, *(appliance.server for appliance in appliances)]
        self.weather = [Weather(server, seed + index) for index, server in enumerate(servers)]
        self.chance = random.Random(seed)
        self.nights = self.quiet_nights = self.resolved = 0
        self.unknown: set[str] = set()
        self.told: dict[str, str] = {}  # what the last failure of a profile says
        self.mistakes: collections.Counter[str] = collections.Counter()
        self.spoilt: dict[str, int] = {}  # profiles with mistakes, and how many orders these cost
        self._records: dict[str, list[str]] = {}  # of each night
        self._open = True

    @property
    def names(self) -> list[str]:
        return sorted(path.stem for path in (self.lab.home / "profiles").glob("*.yaml"))

    def add_profile(self, number: int) -> None:
        appliance = self.appliances[number % len(self.appliances)]
        name = f"p{number:02}"
        appliance.add_virtual_server(f"vs_{name}", "load_balancing")
        self.lab.write_profile(
            name,
            citrix=self.lab.citrix(host=appliance.host, timeout=5),
            virtual_servers=[{"name": f"vs_{name}", "type": "load_balancing"}],
            certificate=self.lab.certificate(
                common_name=f"{name}.example.com", subject_alternative_names=None
            ),
            enrollment={"max_wait": 0},
        )

    def night(self, *, fair: bool = False) -> None:
        """Let cron run, then look at everything."""
        self.lab.scm.issue_after = self.chance.choice((0, 0, 1, 2))
        for weather in self.weather:
            weather.fair = fair
        if self._open or self.unknown or self._due():
            self._work("run")
        else:
            self._quiet_night()
        self.nights += 1
        self.check_expiry()
        self.check_files()

    def _quiet_night(self) -> None:
        """Let cron run where there is nothing to do: without faults, it says nothing."""
        before = self._fired()
        outcome = self._command("run")
        self._open = outcome.text != ""
        if self._fired() == before:
            assert (outcome.exit_code, outcome.text) == (0, ""), outcome.text
            self.quiet_nights += 1

    def mistake(self) -> None:
        """Let somebody do what should not be done."""
        kind = self.chance.choice(("twice", "record", "restart", "clock"))
        name = self.chance.choice(sorted(self._records))
        self.mistakes[kind] += 1
        if kind == "twice":
            self._spoil(name, 2)
            for _ in range(2):
                self._work("renew", name)
        if kind == "record":
            self._spoil(name, 1)
            self._path(name).write_text(self.chance.choice(self._records[name]))
        if kind == "restart":
            weather, appliance = self.chance.choice(
                list(zip(self.weather[1:], self.appliances, strict=True))
            )
            number = len(appliance.server.requests) + self.chance.randrange(1, 40)
            weather.restart = (number, appliance.reboot)
        if kind == "clock":
            ahead = dt.timedelta(days=self.chance.choice((-400, -3, 3, 190)))
            self.lab.scm.server.clock = lambda: dt.datetime.now(dt.timezone.utc) - ahead
        self._open = True

    def mend_the_clock(self) -> None:
        self.lab.scm.server.clock = lambda: dt.datetime.now(dt.timezone.utc)

    def _spoil(self, name: str, orders: int) -> None:
        self.spoilt[name] = self.spoilt.get(name, 0) + orders

    def keep_records(self) -> None:
        for name in self.names:
            if self._has_record(name):
                self._records.setdefault(name, []).append(self._path(name).read_text())

    def morning(self) -> None:
        """Let the operator resolve what is unknown since the night, and do what messages say."""
        for name, text in sorted(self.told.items()):
            if text.endswith(f"citrixagent.py enroll --force {name}") and name in self.spoilt:
                self._spoil(name, 1)
                self._work("enroll", "--force", name)
        self.unknown -= {name for name in self.unknown if not self._sent(name)}
        for name in sorted(self.unknown):
            found = self._placed(name)
            answer = ["--cert-id", found[-1].cert_id] if found else ["--force"]
            self._work("enroll", *answer, name)
            self.resolved += name not in self.unknown

    def _sent(self, name: str) -> str | None:
        """Return when the order was sent that is not done with.

        There is none where it was resolved, and its successor then failed in another way.
        """
        change = self.lab.record(name)["change"]
        sent: str | None = change["order"]["sent"] if change and change["order"] else None
        return sent

    def _placed(self, name: str) -> list[Order]:
        """Return the orders that SCM has since the one whose outcome is unknown."""
        sent = self._sent(name)
        return [
            order
            for order in self.orders(name)
            if f"{order.placed:%Y-%m-%dT%H:%M:%SZ}" >= str(sent)
        ]

    def orders(self, name: str) -> list[Order]:
        return [o for o in self.lab.scm.orders if o.names[0] == f"{name}.example.com"]

    def _command(self, *command: str) -> Outcome:
        outcome = self.lab(*command)
        for weather in self.weather:
            weather.clear()
        assert outcome.exit_code in {0, 1, 5}, outcome.text
        assert "unexpected" not in outcome.text, outcome.text
        return outcome

    def _work(self, *command: str) -> None:
        """Run a command; note whose order is unknown, and whether anything was done or is open."""
        results: list[Document] = self._command(*command, "--json").document()["profiles"]
        kinds = {each["profile"]: (each["error"] or {}).get("kind") for each in results}
        for each in results:
            self.told.pop(each["profile"], None)
            if each["error"] and each["error"]["kind"] == "state":
                self.told[each["profile"]] = each["error"]["message"]
        self.unknown -= {name for name, kind in kinds.items() if kind is None}
        self.unknown |= {name for name, kind in kinds.items() if kind == "unknown_outcome"}
        calm = all(each["outcome"] == "unchanged" and not each["warnings"] for each in results)
        self._open = command != ("run",) or not calm

    def _fired(self) -> int:
        return sum(weather.fired.total() for weather in self.weather)

    def leaves(self) -> Iterator[tuple[NetScaler, str, dt.datetime]]:
        """Yield every bound certificate's end."""
        for appliance in self.appliances:
            for binding in list(appliance.bindings):
                certkey = appliance.certkeys[binding.certkey]
                yield appliance, certkey.name, certkey.certificate.not_valid_after_utc

    def _due(self) -> bool:
        now = dt.datetime.now(dt.timezone.utc)
        bound = {name: end for _, name, end in self.leaves()}
        soon = now + WINDOW + dt.timedelta(minutes=10)
        return any(name not in bound or bound[name] < soon for name in self.names)

    def check_expiry(self) -> None:
        now = dt.datetime.now(dt.timezone.utc)
        late = [(name, end) for _, name, end in self.leaves() if end - now < NEVER_LEFT]
        assert not late, (self.nights, late)

    def check_files(self) -> None:
        """Every file on an appliance is one that some record knows: none is forgotten."""
        unknown = self.own_files() - self.known_files()
        assert not unknown, (self.nights, unknown)

    def own_files(self) -> set[str]:
        there = {pathlib.PurePath(path).name for each in self.appliances for path in each.files}
        spoilt = tuple(f"{name}-" for name in self.spoilt)  # a record that is put back knows less
        own = {name for name in there if not re.fullmatch(r"ca_\w+\.crt", name)}
        return {name for name in own if not name.startswith(spoilt)}

    def known_files(self) -> set[str]:
        records = [
            self.lab.record(name)
            for name in self.names
            if self._has_record(name) and name not in self.spoilt
        ]
        return {file for record in records for file in files_of(record)}

    def _path(self, name: str) -> pathlib.Path:
        return self.lab.home / "state" / f"profile-{name}.json"

    def _has_record(self, name: str) -> bool:
        return self._path(name).exists()


def files_of(record: Document) -> set[str]:
    change = record["change"] or {"new": None, "order": None}
    parts = [record["installed"], record["previous"], change["new"], change["order"]]
    keys = ("key_file", "cert_file", "csr_file")
    named = {part[key] for part in parts if part for key in keys if key in part}
    return named | set(record["litter"])


@pytest.fixture
def year(lab: Lab) -> Iterator[Year]:
    with NetScaler() as second:
        second.add_user("citrixagent", PASSWORD)
        lab.write_scm(timeout=5)
        lab.scm.account.term = TERM
        made = Year(lab, [lab.appliance, second], SEED)
        yield made
        assert not second.private_keys_read
        for appliance in made.appliances:
            appliance.sessions.clear()  # lost log-ins and log-outs leave some
        gc.collect()


# Where the program gives a connection up between TCP and TLS, Python may leave the simulator's
# socket open.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize(
    ("nights", "profiles", "every"),
    [
        pytest.param(180, 8, None, marks=pytest.mark.long),
        (60, 3, 6),
        pytest.param(365, 20, 30, marks=pytest.mark.long),
    ],
)
def test_short_lived_certificates_are_kept_valid(
    year: Year, nights: int, profiles: int, every: int | None
) -> None:
    """``every``: how many nights pass from one mistake to the next."""
    with time_machine.travel(dt.datetime.now(dt.timezone.utc), tick=True) as clock:
        for number in range(nights):
            if number % 2 == 0 and number // 2 < profiles:
                year.add_profile(number // 2)
            if every and number % every == every - 1:
                year.mistake()
            year.night(fair=number // 7 % 4 == 3)
            year.mend_the_clock()
            year.keep_records()
            for appliance in year.appliances:
                appliance.sessions.clear()  # they end by themselves
            clock.shift(dt.timedelta(hours=8))
            year.morning()
            year.check_expiry()
            clock.shift(dt.timedelta(hours=16))
            year.check_expiry()
        for _ in range(4):
            year.night(fair=True)
            year.morning()
            clock.shift(dt.timedelta(days=1))
        check_end(year)
    fired = sum((weather.fired for weather in year.weather), collections.Counter[str]())
    asked = sum(len(weather.server.requests) for weather in year.weather)
    print(
        f"\n{year.nights} nights, {asked} requests, {fired.total()} faults {dict(fired)}, "
        f"{len(year.lab.scm.orders)} orders, {year.resolved} resolved by the operator, "
        f"{year.quiet_nights} nights without work and faults, mistakes: {dict(year.mistakes)}"
    )
    assert year.quiet_nights > 5
    if nights == 365:  # long enough for everything to have happened
        assert fired.keys() == FAULTS.keys()
        assert year.resolved


def check_end(year: Year) -> None:
    assert not year.unknown
    assert [year.lab("run").exit_code for _ in range(3)][-1] == 0
    assert year.lab("run").text == ""
    assert year.own_files() == year.known_files()
    assert all(appliance.saved for appliance in year.appliances)
    for name in year.names:
        check_orders(year, name)
    check_state_folder(year)


def check_orders(year: Year, name: str) -> None:
    """One order per window, and every one was used."""
    orders = year.orders(name)
    appliance = next(each for each in year.appliances if f"vs_{name}" in each.virtual_servers)
    served = [int(serial, 16) for serial in appliance.virtual_servers[f"vs_{name}"].served]
    issued = [order.leaf.serial_number for order in orders if order.leaf]
    if name in year.spoilt:
        assert len(orders) <= year.nights // SHORTEST + 1 + year.spoilt[name]
        return
    assert served == issued
    assert len(orders) - len(issued) <= 1
    for before, after in itertools.pairwise(orders):
        assert before.leaf
        left = before.leaf.not_valid_after_utc - after.placed
        assert NEVER_LEFT < left <= WINDOW, (name, left)


def check_state_folder(year: Year) -> None:
    sizes = {path.name: path.stat().st_size for path in (year.lab.home / "state").iterdir()}
    records = {name for name in sizes if name.startswith("profile-")}
    assert records == {f"profile-{name}.json" for name in year.names}
    assert all(sizes[name] < 40_000 for name in records)
    rest = {name for name in sizes.keys() - records if not name.startswith("citrixagent.log")}
    assert rest - {"told.json"} == {"eula.json", "last-run.json", "lock"}
    assert sum(sizes.values()) < 7_000_000
