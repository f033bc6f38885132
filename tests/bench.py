#!/usr/bin/env python3
"""Measure the program: request counts and wall times of real runs, and how both grow.

The program runs as a process of its own, as cron starts it. So does every simulated appliance, and
SCM: none waits for another's interpreter. All of them share this machine's processors, so what the
simulators use of those is shown beside each time. Of several runs the fastest counts.

Needs what tests/requirements.txt names; takes some minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import functools
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Concatenate, Generic, ParamSpec, TypeVar

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import NameOID  # noqa: E402
from simulators import ca, server  # noqa: E402
from simulators.certkeys import key_pem  # noqa: E402
from simulators.netscaler import NetScaler  # noqa: E402
from simulators.pair import HaPair  # noqa: E402
from simulators.scm import Order, Scm, Wish  # noqa: E402

import citrixagent as agent  # noqa: E402

LATENCY = 0.02  # seconds that every request takes
KEY_TIME = 0.5  # seconds that making a key takes besides
ISSUANCE = 20.0  # seconds from an order to its certificate
FLEETS = ((1, 1), (1, 50), (20, 1), (20, 50))  # appliances, profiles on each
ENROLLMENTS = (1, 10, 100)
RENEWALS = 10  # on a pair
WAITS = ((20, ISSUANCE, 2.0), (5, 90.0, 9.0))  # orders, seconds to issue, the goal of the lateness
UNREACHABLE = 100
ESTATE = (200, 50)  # appliances, profiles on each
SCM_LATENCY = 0.08  # seconds, where SCM is far away
SLOW = ((20, 0.02), (100, 0.02), (20, 1.5), (100, 1.5))  # orders, seconds that SCM takes to answer
PROFILES = 1000
REPEATS = 5
PASSWORD = "password-of-the-appliance"
SECRET = "secret-of-the-client"

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def names_of(name: str) -> list[str]:
    return [f"{name}.example.com", f"www.{name}.example.com"]


def kind_of(number: int) -> str:
    return agent.VIRTUAL_SERVER_KINDS[number % len(agent.VIRTUAL_SERVER_KINDS)]


# ----- Simulators, each in a process of its own ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a simulator did since it was asked before."""

    requests: int
    seconds: float  # the sum over the requests, each from its arrival to its answer
    cpu: float


class Meter:
    """Gives a server its latencies and measures it, in the server's own process."""

    def __init__(self, measured: server.HttpsServer) -> None:
        self._server = measured
        self._arrived: dict[int, float] = {}
        self._counted, self._seconds, self._cpu = 0, 0.0, 0.0
        measured.latency = LATENCY
        measured.before, measured.after = self._begin, self._end

    def _begin(self, request: server.Request) -> None:
        self._arrived[request.number] = time.perf_counter()
        is_key = request.path.endswith(("/sslrsakey", "/sslecdsakey"))
        time.sleep(KEY_TIME if is_key else 0)

    def _end(self, request: server.Request) -> None:
        self._seconds += time.perf_counter() - self._arrived.pop(request.number)

    def answer_after(self, seconds: float) -> None:
        """From now on, answer with another latency."""
        self._server.latency = seconds

    def usage(self) -> Usage:
        cpu, requests = time.process_time(), len(self._server.requests)
        used = Usage(requests - self._counted, self._seconds, cpu - self._cpu)
        self._counted, self._seconds, self._cpu = requests, 0.0, cpu
        return used


class Appliance(Meter):
    """An appliance with a virtual server for each of its profiles."""

    def __init__(self, names: Sequence[str]) -> None:
        self._appliance = NetScaler()
        super().__init__(self._appliance.server)
        self._appliance.add_user("citrixagent", PASSWORD)
        self._virtual_servers = [
            self._appliance.add_virtual_server(f"vs_{name}", kind_of(number))
            for number, name in enumerate(names)
        ]
        self._names = names
        self._appliance.start()

    def host(self) -> str:
        return self._appliance.host

    def install(self) -> list[agent.Generation]:
        """Have every profile's certificate there, bound; return what the program remembers."""
        for each in self._virtual_servers:
            each.stop()  # nobody looks at what they present: listening would only cost time,
        usual, self._appliance.ha_state = self._appliance.ha_state, "Secondary"
        installed = [self._install(name) for name in self._names]
        self._appliance.ha_state = usual  # and so would telling them all, each time
        return installed

    def _install(self, name: str) -> agent.Generation:
        authority, now = ca.Authority(), agent.utc_now()
        key, names = ec.generate_private_key(ec.SECP256R1()), names_of(name)
        end = now + dt.timedelta(days=198)
        leaf = authority.certify(key.public_key(), names, now - dt.timedelta(days=1), end)
        path = authority.path(leaf, ca.ChainStyle(root=False))
        pem, *chain = [ca.to_pem([each]) for each in path]
        row = self._appliance.install(name, pem, key_pem(key).decode(), chain)
        self._appliance.bind(f"vs_{name}", name)
        return agent.Generation(
            f"{name}-20260101000000.key",  # such names as the program gives: no others are read
            f"{name}-20260101000000.crt",
            tuple(names),
            "ECDSA-P256",
            serial=agent.normal_serial(row.serial),
            pem="".join((pem, *chain)),
            cert_id="1000001",
        )


class Pair(Meter):
    """An HA pair with a virtual server for each profile; the active node is measured."""

    def __init__(self, names: Sequence[str]) -> None:
        self._pair = HaPair()
        super().__init__(self._pair.a.server)
        self._pair.add_user("citrixagent", PASSWORD)
        for number, name in enumerate(names):
            self._pair.add_virtual_server(f"vs_{name}", kind_of(number))
        self._pair.start()

    def host(self) -> str:
        return f"[{self._pair.a.host}, {self._pair.b.host}]"

    def calls(self, since: int) -> list[str]:
        """Return what the active node was asked, but for its first requests."""
        return self._pair.a.server.calls(since)


@dataclasses.dataclass(frozen=True)
class Waited:
    """How an order was waited for: how long after its issue it was asked for, and how often."""

    late: float
    questions: int


class Manager(Meter):
    """SCM, which takes its time to issue."""

    def __init__(self) -> None:
        self._scm = Scm()
        super().__init__(self._scm.server)
        self._account = self._scm.add_client("client", SECRET)
        self._scm.issue_delay = ISSUANCE
        self._scm.server.start()
        self._asked: list[tuple[float, str]] = []

    def addresses(self) -> tuple[str, str]:
        return self._scm.url, self._scm.token_url

    def take(self, seconds: float) -> None:
        """From now on, issue after so many seconds."""
        self._scm.issue_delay = seconds

    def _begin(self, request: server.Request) -> None:
        super()._begin(request)
        if request.method == "GET":
            self._asked.append((time.time(), request.path))

    def waited(self) -> list[Waited]:
        """Return how each order was waited for."""
        return [self._waited(order) for order in self._scm.orders]

    def _waited(self, order: Order) -> Waited:
        asked = [at for at, path in self._asked if f"/{order.cert_id}" in path]
        issued = order.placed.timestamp() + order.issue_delay
        return Waited(min(at for at in asked if at >= issued) - issued, len(asked))

    def order(self, number: int) -> list[str]:
        """Place so many orders, which are issued at once; return their ids."""
        self._scm.issue_delay = 0.0
        key, name = ec.generate_private_key(ec.SECP256R1()), names_of("any")[0]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject)
        wish = Wish(csr=csr.sign(key, hashes.SHA256()))
        return [self._scm.enroll(self._account, wish).cert_id for _ in range(number)]


class Remote(Generic[T]):
    """An object in a process of its own."""

    def __init__(self, make: Callable[[], T]) -> None:
        fork = multiprocessing.get_context("fork")  # all share one throw-away authority
        self._pipe, end = fork.Pipe()
        self._process = fork.Process(target=_serve, args=(make, end), daemon=True)
        self._process.start()

    def ask(
        self, do: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], R]:
        """Have something done over there; what is returned waits for its result."""
        self._pipe.send((do, args, kwargs))
        return self._pipe.recv

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()


@contextlib.contextmanager
def stopping(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Iterator[Remote[T]]:
    """Have an object in a process of its own for a while."""
    remote = Remote(functools.partial(make, *args, **kwargs))
    try:
        yield remote
    finally:
        remote.stop()


def _serve(make: Callable[[], object], pipe: Connection) -> None:
    served = make()
    while True:
        do, args, kwargs = pipe.recv()
        pipe.send(do(served, *args, **kwargs))


# ----- A home folder, and the program run in it ---------------------------------------------------

SCM_FILE = """\
url: {url}
token_url: {token_url}
client_id: client
client_secret: {secret}
ca_bundle: ca.pem
check_revocation: {revocation}
"""
APPLIANCE = """\
  host: {host}
  username: citrixagent
  password: {password}
  ca_bundle: ../ca.pem
"""
PROFILE = """\
citrix:{citrix}
virtual_servers:
  - name: vs_{name}
    type: {kind}{connect}
certificate:
  common_name: {names[0]}
  subject_alternative_names:
    - {names[1]}
  organization: Example Ltd
  locality: London
  state: England
  country: GB
  key_type: ECDSA-P256
"""


class Folder:
    """A home folder of the program's."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        for name in ("profiles", "appliances", "state"):
            (path / name).mkdir()
        self._write("ca.pem", server.authority_pem())

    def scm(self, url: str, token_url: str, *, revocation: bool = False) -> None:
        known = {"url": url, "token_url": token_url, "revocation": str(revocation).lower()}
        self._write("scm.yaml", SCM_FILE.format(secret=SECRET, **known))

    def appliance(self, name: str, host: str) -> None:
        self._write(f"appliances/{name}.yaml", "citrix:\n" + appliance_block(host))

    def profiles(self, names: Sequence[str], citrix: str, places: Sequence[str] = ()) -> None:
        """Write profiles, whose virtual servers are looked at in these places, if any are given."""
        for number, name in enumerate(names):
            known = {"name": name, "names": names_of(name), "kind": kind_of(number)}
            known["connect"] = f"\n    connect: {places[number]}" if places else ""
            self._write(f"profiles/{name}.yaml", PROFILE.format(citrix=citrix, **known))

    def remember(
        self,
        names: Sequence[str],
        installed: Sequence[agent.Generation],
        *,
        unverified: bool = False,
    ) -> None:
        store = agent.Store(self.path)
        for name, generation in zip(names, installed, strict=True):
            store.save(agent.Record(name, installed=generation, unverified=unverified))

    def _write(self, name: str, text: str) -> None:
        file = self.path / name
        file.touch(0o600)
        file.write_text(text)


def appliance_block(host: str) -> str:
    return APPLIANCE.format(host=host, password=PASSWORD)


@contextlib.contextmanager
def folder() -> Iterator[Folder]:
    with tempfile.TemporaryDirectory(prefix="citrixagent-bench-") as path:
        yield Folder(pathlib.Path(path))


@dataclasses.dataclass(frozen=True)
class Spent:
    """What one run of the program took: seconds, seconds of a processor, MB, and at most so many
    requests to one appliance; ``own`` is the time of the busiest appliance alone."""

    wall: float
    cpu: float
    memory: float
    output: str
    nitro: int = 0
    scm: int = 0
    own: float = 0.0
    simulators: float = 0.0


def run_program(home: pathlib.Path, *asked: str) -> Spent:
    """Run the program as cron does, or as an operator; it must succeed."""
    command = [sys.executable, str(ROOT / "citrixagent.py"), "--home", str(home)]
    command += asked or ("run",)
    environment = {"PATH": os.defpath, "CITRIXAGENT_ACCEPT_EULA": "yes"}
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        told = output.read()
    if process.returncode:
        sys.exit(f"the program ended with {process.returncode}:\n{told}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    memory = used.ru_maxrss * unit / 1e6
    return Spent(wall, used.ru_utime + used.ru_stime, memory, told)


class Fleet:
    """So many appliances with so many profiles each, an SCM, and the folder that names them."""

    def __init__(self, home: Folder, appliances: int, profiles: int) -> None:
        self.home = home
        self.names = {
            f"ns{a:02}": [f"ns{a:02}-{number:03}" for number in range(profiles)]
            for a in range(appliances)
        }
        self._installed: list[list[agent.Generation]] = []
        self._scm = Remote(Manager)
        self._appliances = [
            Remote(functools.partial(Appliance, names)) for names in self.names.values()
        ]
        home.scm(*self._scm.ask(Manager.addresses)())
        for (name, members), remote in zip(self.names.items(), self._appliances, strict=True):
            home.appliance(name, remote.ask(Appliance.host)())
            home.profiles(members, f" {name}")

    def install(self) -> None:
        """Put everything in place: nothing is due then."""
        waiting = [remote.ask(Appliance.install) for remote in self._appliances]
        for names, installed in zip(self.names.values(), waiting, strict=True):
            self._installed.append(installed())
            self.home.remember(names, self._installed[-1])

    def unprove(self, places: Sequence[str]) -> None:
        """Have the profiles of the one appliance look in these places at what is presented."""
        ((name, members),) = self.names.items()
        self.home.profiles(members, f" {name}", places)
        self.home.remember(members, self._installed[0], unverified=True)

    def ask_for_revocation(self, latency: float) -> None:
        """Have SCM asked for each certificate of the one appliance; that takes it so long."""
        ((_, members),) = self.names.items()
        ids = self._scm.ask(Manager.order, len(members))()
        known = zip(self._installed[0], ids, strict=True)
        renamed = [dataclasses.replace(made, cert_id=cert_id) for made, cert_id in known]
        self.home.remember(members, renamed)
        self.home.scm(*self._scm.ask(Manager.addresses)(), revocation=True)
        self.answer_after(latency)

    def answer_after(self, latency: float) -> None:
        """Have SCM take so long for an answer."""
        self._scm.ask(Manager.answer_after, latency)()

    def hurry(self) -> None:
        for remote in self._appliances:
            remote.ask(Appliance.answer_after, 0.0)()

    def take(self, seconds: float) -> None:
        self._scm.ask(Manager.take, seconds)()

    def waited(self) -> list[Waited]:
        return self._scm.ask(Manager.waited)()

    def run(self) -> Spent:
        self._usage()
        spent = run_program(self.home.path)
        scm, *appliances = self._usage()
        return dataclasses.replace(
            spent,
            nitro=max(used.requests for used in appliances),
            scm=scm.requests,
            own=max(used.seconds for used in appliances),
            simulators=sum(used.cpu for used in (scm, *appliances)),
        )

    def _usage(self) -> list[Usage]:
        scm = self._scm.ask(Manager.usage)()
        return [scm, *(remote.ask(Appliance.usage)() for remote in self._appliances)]

    def stop(self) -> None:
        self._scm.stop()
        for remote in self._appliances:
            remote.stop()


@contextlib.contextmanager
def fleet(appliances: int, profiles: int) -> Iterator[Fleet]:
    with folder() as home:
        made = Fleet(home, appliances, profiles)
        try:
            yield made
        finally:
            made.stop()


# ----- What is measured ---------------------------------------------------------------------------


def told(what: str, figure: str, goal: str, *, met: bool) -> None:
    print(f"  {what:<50} {figure:>8}  goal {goal:<7} {'met' if met else 'MISSED'}", flush=True)


def idle() -> None:
    """Run where nothing is due, and no revocation is looked for."""
    print(f"\nNothing due, {LATENCY * 1000:.0f} ms per request; the fastest of {REPEATS} runs")
    print("  appliances  profiles each  NITRO each     time  ratio  CPU (simulators')  memory")
    runs = idle_runs()
    found = {size: min(spents, key=lambda spent: spent.wall) for size, spents in runs.items()}
    unit = found[FLEETS[0]].wall
    for (appliances, profiles), spent in found.items():
        print(
            f"  {appliances:10}  {profiles:13}  {spent.nitro:10}  {spent.wall:5.2f} s  "
            f"{spent.wall / unit:5.2f}  {spent.cpu:5.2f} s  ({spent.simulators:.2f} s)  "
            f"{spent.memory:3.0f} MB",
            flush=True,
        )
    most, last = max(spent.nitro for spent in found.values()), found[FLEETS[-1]]
    asked, ratio = max(spent.scm for spent in found.values()), last.wall / unit
    told("NITRO requests to an appliance", str(most), "7", met=most <= 7)
    told("requests to SCM", str(asked), "0", met=not asked)
    told("time, as a multiple of that of 1 x 1", f"{ratio:.2f}", "3", met=ratio <= 3)
    told("memory", f"{last.memory:.0f} MB", "300 MB", met=last.memory < 300)


def idle_runs() -> dict[tuple[int, int], list[Spent]]:
    """Run in all fleets in turn, so that what else this machine does meets all of them."""
    found: dict[tuple[int, int], list[Spent]] = {size: [] for size in FLEETS}
    with contextlib.ExitStack() as stack:
        fleets = {size: stack.enter_context(fleet(*size)) for size in FLEETS}
        for made in fleets.values():
            made.install()
        for size, made in REPEATS * list(fleets.items()):
            spent = made.run()
            found[size].append(spent)
            if spent.output:
                sys.exit(f"something was to be told:\n{spent.output}")
    return found


def enroll() -> None:
    """Enroll everything at once on one appliance."""
    print(
        f"\nEnrollments on one appliance, {LATENCY * 1000:.0f} ms per request, {KEY_TIME} s per "
        f"key, issued after {ISSUANCE:.0f} s"
    )
    print("  profiles  NITRO each  SCM each     time  appliance's own  ratio  CPU (simulators')")
    ratios: dict[int, float] = {}
    for number in ENROLLMENTS:
        with fleet(1, number) as made:
            spent = made.run()
        ratios[number] = spent.wall / (spent.own + ISSUANCE)
        print(
            f"  {number:8}  {spent.nitro / number:10.1f}  {spent.scm / number:8.1f}  "
            f"{spent.wall:5.1f} s  {spent.own:13.1f} s  {ratios[number]:5.2f}  "
            f"{spent.cpu:5.1f} s  ({spent.simulators:.1f} s)",
            flush=True,
        )
    ratio = ratios[ENROLLMENTS[-1]]
    what = f"{ENROLLMENTS[-1]} profiles, time to own time + issuance"
    told(what, f"{ratio:.2f}", "1.15", met=ratio <= 1.15)


def slow() -> None:
    """Enroll where SCM issues at once, but takes its time to answer.

    No schedule that keeps the appliance's requests in a row is shorter than those, after the login.
    """
    print(f"\nSCM slow: orders on one appliance, {KEY_TIME} s per key, issued at once")
    for number, latency in SLOW:
        with fleet(1, number) as made:
            made.take(0.0)
            made.answer_after(latency)
            spent = made.run()
        best = spent.own + latency
        print(
            f"  {number:4} orders, {latency:4} s: {spent.wall:6.1f} s, best {best:6.1f} s, CPU "
            f"{spent.cpu:5.1f} s ({spent.simulators:.1f} s)",
            flush=True,
        )
        what, ratio = f"{number} orders, SCM takes {latency} s, time to the best", spent.wall / best
        told(what, f"{ratio:.2f}", "1.15", met=ratio <= 1.15)


def unreachable() -> None:
    """Look at virtual servers behind a firewall that drops."""
    print(f"\n{UNREACHABLE} virtual servers that do not answer, after an installation")
    with fleet(1, UNREACHABLE) as made, contextlib.ExitStack() as stack:
        made.install()
        usual = made.run()
        places = [stack.enter_context(server.BareListener("full")) for _ in range(UNREACHABLE)]
        made.unprove([each.host for each in places])
        spent = made.run()
    if spent.output.count("could not be verified") != UNREACHABLE:
        sys.exit(f"not all were looked at:\n{spent.output}")
    more = spent.wall - usual.wall
    told("time on top of a run without", f"{more:.1f} s", "20 s", met=more <= 20)


def revocation() -> None:
    """Ask SCM whether certificates were revoked, where nothing is due."""
    print(
        f"\nrevocation on: {PROFILES} profiles on one appliance, SCM at {SCM_LATENCY * 1000:.0f} ms"
    )
    with fleet(1, PROFILES) as made:
        made.install()
        usual = made.run()
        made.ask_for_revocation(SCM_LATENCY)
        spent = made.run()
    print(f"  {usual.wall:.2f} s without; with it {spent.scm} requests to SCM")
    cpu = f"CPU {spent.cpu:.2f} s, simulators' {spent.simulators:.2f} s"
    told(f"time ({cpu})", f"{spent.wall:.2f} s", "12 s", met=spent.wall <= 12)


def estate() -> None:
    """Run a large fleet once, with nothing due."""
    appliances, profiles = ESTATE
    print(f"\n{appliances * profiles} profiles on {appliances} appliances, nothing due, one run")
    with fleet(appliances, profiles) as made:
        made.install()
        spent = made.run()
    cpu = f"CPU {spent.cpu:.2f} s, simulators' {spent.simulators:.2f} s"
    told(f"time ({cpu})", f"{spent.wall:.2f} s", "15 s", met=spent.wall <= 15)
    told("memory", f"{spent.memory:.0f} MB", "300 MB", met=spent.memory <= 300)


@dataclasses.dataclass
class Timer:
    """The time of a block of this process: on the clock, and of a processor."""

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Timer:  # noqa: PYI034 - Self needs Python 3.11
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu

    def tell(self, what: str, goal: float) -> None:
        figure = f"{self.wall:.2f} s"
        told(f"{what} (CPU {self.cpu:.2f} s)", figure, f"{goal} s", met=self.wall <= goal)


def load(home: pathlib.Path) -> Timer:
    """Read the profiles, all of which must be usable."""
    with Timer() as timer:
        reader = agent.Home(home, agent.Redactor())
        loaded = reader.load_profiles(reader.profile_files([]))
    if len(loaded.profiles) != PROFILES:
        sys.exit(f"not every profile was usable: {loaded.broken}")
    return timer


def reading(citrix: Callable[[Folder], str]) -> Timer:
    """Return the fastest of some readings of profiles, each with such a ``citrix``."""
    names = [f"profile-{number:04}" for number in range(PROFILES)]
    with folder() as home:
        home.profiles(names, citrix(home))
        return min((load(home.path) for _ in range(REPEATS)), key=lambda timer: timer.wall)


def own_block(_: Folder) -> str:
    return "\n" + appliance_block("192.0.2.1")


def shared_file(home: Folder) -> str:
    home.appliance("ns", "192.0.2.1")
    return " ns"


def planner(home: pathlib.Path) -> tuple[list[agent.View], list[agent.Work]]:
    """Return what plans every profile of a home folder, the appliances already read."""
    session = agent.Session(agent.App(home, 0), "run", as_json=False)
    config, profiles = session.load([])
    scm = agent.connect_to_scm(config, agent.Tokens(config, session.redactor), session.context)
    run = agent.Run(
        intent=agent.Intent(),
        dry_run=False,
        wait=None,
        config=config,
        store=session.store,
        context=session.context,
        scm=scm,
        revocations=agent.RevocationCheck(scm),
        max_orders=None,
        progress=lambda _, __=None: None,
        owner=lambda *_: "",
        warn=lambda *_: None,
    )
    views, works = [], []
    for appliance, members in agent.by_appliance(profiles).items():
        view = agent.View(appliance, session.context)
        view.open()
        views.append(view)
        works += [agent.Work(profile, view, run) for profile in members]
    return views, works


def planning() -> Timer:
    """Observe and decide for every profile, once, with the appliances' answers there."""
    with fleet(*FLEETS[-1]) as made:
        made.install()
        made.hurry()
        views, works = planner(made.home.path)
        with Timer() as timer:
            for work in works:
                work.recall()
                work.observe()
                work.plan()
        for view in views:
            view.close()
    return timer


def lateness() -> None:
    """Tell how long what was issued waits until it is asked for, and how often that is asked."""
    print(f"\nOrders on one appliance, {KEY_TIME} s per key")
    for number, seconds, goal in WAITS:
        with fleet(1, number) as made:
            made.take(seconds)
            made.run()
            waited = made.waited()
        late = sum(each.late for each in waited) / number
        most = max(each.late for each in waited)
        asked = sum(each.questions for each in waited) / number
        print(
            f"  {number} of {seconds:.0f} s: {most:.1f} s late at most, {asked:.1f} questions each"
        )
        told("lateness, on average", f"{late:.1f} s", f"{goal} s", met=late <= goal)
        every = sum(each.late + seconds for each in waited) / number / asked
        told("a question for an order, every", f"{every:.1f} s", "5 s", met=every >= 5)


def pair() -> None:
    """Renew everything at once on an HA pair."""
    names = [f"pair-{number}" for number in range(RENEWALS)]
    with folder() as home, stopping(Manager) as scm, stopping(Pair, names) as both:
        scm.ask(Manager.take, 0.0)()
        home.scm(*scm.ask(Manager.addresses)())
        home.appliance("pair", both.ask(Pair.host)())
        home.profiles(names, " pair")
        run_program(home.path)
        before = len(both.ask(Pair.calls, 0)())
        spent = run_program(home.path, "renew", *names)
        calls = both.ask(Pair.calls, before)()
    roles, syncs = (sum(part in call for call in calls) for part in ("stat/hanode", "hafiles"))
    print(
        f"\n{RENEWALS} renewals on an HA pair: {roles} looks at the role, {syncs} synchronizations"
    )
    print(f"  {spent.wall:.1f} s")
    told("NITRO requests", str(len(calls)), "130", met=len(calls) <= 130)


def config() -> None:
    """Read and plan in this process, with the program's own functions."""
    print(f"\n{PROFILES} profiles, in one process")
    reading(own_block).tell("read, each with its own citrix block", 2)
    reading(shared_file).tell("read, all with one file in appliances/", 2)
    planning().tell("planned, once", 0.5)


PARTS: dict[str, Callable[[], None]] = {
    "idle": idle,
    "enroll": enroll,
    "slow": slow,
    "unreachable": unreachable,
    "revocation": revocation,
    "estate": estate,
    "lateness": lateness,
    "pair": pair,
    "config": config,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none")
    parts = parser.parse_args(arguments).parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}")
    server.authority_pem()  # made here, so that all simulators have the same
    ca.hierarchy()
    for part in parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
