"""The crash matrix: every request of a run goes wrong once, in every way; then it must converge.

Requests are learned from a clean run, so none can be forgotten. After each fault the operator does
what anybody would: runs again, or resolves an order whose outcome is unknown. Whatever happened,
there is one order, the old certificate was served until the new one was, and nothing is left over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import itertools
import pathlib
import re
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from conftest import Document, Lab, Outcome
from simulators.netscaler import NetScaler, Variant
from simulators.scm import Order, Scm
from simulators.server import Fault, HttpsServer, Request, Response
from test_run import is_write

SERVERS = {"vs_www": "load_balancing", "vs_gw": "gateway"}
NAMES = ("example.com", "192.0.2.10")


@contextlib.contextmanager
def laboratory(folder: pathlib.Path, variant: Variant | None = None) -> Iterator[Lab]:
    """A lab of its own: a test of the matrix needs many."""
    with NetScaler(variant=variant) as appliance, Scm() as scm:
        for name, kind in SERVERS.items():
            appliance.add_virtual_server(name, kind)
        folder.mkdir()
        lab = Lab(folder, appliance, scm)
        lab.accept()
        yield lab
        lab.check()


def write_profile(lab: Lab, names: Sequence[str] = NAMES, timeout: int = 20) -> None:
    lab.write_profile(
        citrix=lab.citrix(timeout=timeout),
        virtual_servers=[{"name": name, "type": kind} for name, kind in SERVERS.items()],
        certificate=lab.certificate(subject_alternative_names=list(names)),
    )
    lab.write_scm(timeout=timeout)


def servers_of(lab: Lab) -> dict[str, HttpsServer]:
    return {"appliance": lab.appliance.server, "SCM": lab.scm.server}


# What is presented, and how it may change


@dataclasses.dataclass(frozen=True)
class Presented:
    """What a virtual server would present; ``whole``: with its intermediates, each by the next."""

    serial: str
    whole: bool


def presented(lab: Lab, server: str) -> Presented | None:
    bound = lab.appliance.running.bound(server)
    if not bound:
        return None
    (certkey,) = bound
    chain = lab.appliance.running.chain(certkey)
    fits = all(below.issued_by(above) for below, above in itertools.pairwise(chain))
    return Presented(certkey.serial, whole=fits and len(chain) == 3)


class Watch:
    """Notes what every virtual server would present, before and after every request."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.history = {server: [presented(lab, server)] for server in SERVERS}
        for server in servers_of(lab).values():
            server.before = server.after = self.look

    def look(self, _: Request) -> None:
        for server, history in self.history.items():
            if (now := presented(self._lab, server)) != history[-1]:
                history.append(now)


Stage = tuple[str, bool]
"""``old`` or ``new``, and whether the chain is whole."""


def follows(stages: Sequence[Stage], history: Sequence[Stage]) -> bool:
    """Tell whether a history leaves out some stages at most, neither the first nor the last."""
    ahead = iter(stages)
    ends = (history[0], history[-1]) == (stages[0], stages[-1])
    return ends and all(stage in ahead for stage in history)


# Scenarios


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A run: what was there before, and what may be presented from then on."""

    prepare: Callable[[Lab], None]
    stages: Sequence[Stage]
    variant: Variant = dataclasses.field(default_factory=Variant)


def enrollment(lab: Lab) -> None:
    """Nothing is there, not even the intermediates."""
    write_profile(lab)


def renewal(lab: Lab) -> None:
    """A certificate of this program is due, and its successor has another issuer."""
    write_profile(lab)
    lab.scm.now = lambda: dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=150)
    assert lab("run").exit_code == 0
    lab.scm.now = lambda: dt.datetime.now(dt.timezone.utc)
    lab.scm.authority.generation = 37


def replacement(lab: Lab) -> None:
    """The names have changed since a renewal: there is a generation whose files must go."""
    renewal(lab)
    assert lab("run").exit_code == 0
    write_profile(lab, ["new.example.com"])


def revocation(lab: Lab) -> None:
    """A certificate of this program was revoked at SCM, by somebody else."""
    write_profile(lab)
    assert lab("run").exit_code == 0
    (order,) = lab.scm.orders
    lab.scm.revoke(order, 4, "superseded")


# The product drops a link to an issuer that is none any more: until the next request, the new
# certificate is alone. Where it keeps the link, that points to the wrong issuer as long. Where it
# refuses, the old certificate has to be unlinked first.
SCENARIOS = {
    "enrollment": Scenario(enrollment, [("", False), ("new", True)]),
    "renewal": Scenario(renewal, [("old", True), ("new", False), ("new", True)]),
    "replacement": Scenario(replacement, [("old", True), ("new", True)]),
    "revocation": Scenario(revocation, [("old", True), ("new", True)]),
    "renewal, link stays": Scenario(
        renewal, [("old", True), ("new", False), ("new", True)], Variant(update_link="keep")
    ),
    "renewal, link refused": Scenario(
        renewal,
        [
            ("old", True),
            ("old", False),
            ("old", True),
            ("old", False),
            ("new", False),
            ("new", True),
        ],
        Variant(update_link="refuse"),
    ),
}
USUAL = ("enrollment", "renewal", "replacement")


@dataclasses.dataclass(frozen=True)
class Point:
    """A request of a run: where it goes, its number there, and what it is."""

    where: str
    number: int
    call: str

    @property
    def is_order(self) -> bool:
        return self.where == "SCM" and self.call.startswith("POST /api/")


def plain(call: str) -> str:
    """Return a request without what differs from run to run: times and ids."""
    return re.sub(r"/1\d{6}\b", "/ID", re.sub(r"-\d{14}\.", "-TIME.", call))


def points_since(lab: Lab, before: dict[str, int]) -> list[Point]:
    return [
        Point(where, number, plain(call))
        for where, server in servers_of(lab).items()
        for number, call in enumerate(server.calls(before[where]), 1)
    ]


def count_requests(lab: Lab) -> dict[str, int]:
    return {where: len(server.requests) for where, server in servers_of(lab).items()}


class Ground:
    """A lab before a run, to which it returns for every case: cheaper than a new one."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._running = lab.appliance.running.copy()
        self._files = dict(lab.appliance.files)
        self._orders = {order: order.status for order in lab.scm.orders}
        self._state = lab.home / "before"
        shutil.copytree(lab.home / "state", self._state)

    def restore(self) -> None:
        """Bring everything back but the orders of earlier cases, which no case looks at."""
        appliance, state = self.lab.appliance, self.lab.home / "state"
        appliance.running = self._running.copy()
        appliance.files = dict(self._files)
        appliance.save()
        appliance.sessions.clear()
        for order, status in self._orders.items():
            order.status = status
        shutil.rmtree(state)
        shutil.copytree(self._state, state)
        set_timeouts(self.lab, 20)


def set_timeouts(lab: Lab, seconds: int) -> None:
    """Change the time limits of the program; the rest of the profile stays."""
    path = lab.home / "profiles" / "www.yaml"
    path.write_text(re.sub(r"timeout: \d+", f"timeout: {seconds}", path.read_text()))
    lab.write_scm(timeout=seconds)


@contextlib.contextmanager
def prepared(scenario: Scenario, folder: pathlib.Path) -> Iterator[Ground]:
    with laboratory(folder / "home", scenario.variant) as lab:
        scenario.prepare(lab)
        yield Ground(lab)


def learn(ground: Ground, scenario: Scenario, command: Sequence[str] = ("run",)) -> list[Point]:
    """Return the requests of a clean run."""
    trial = Trial(ground.lab, scenario)
    before = count_requests(ground.lab)
    assert ground.lab(*command).exit_code == 0
    points = points_since(ground.lab, before)
    trial.check()
    return points


# A trial: a fault, the operator, the assertions


def is_unknown(error: Document | None) -> bool:
    return error is not None and error["kind"] == "unknown_outcome"


class Trial:
    """One run that something happens to, and what must be true in the end."""

    def __init__(self, lab: Lab, scenario: Scenario, *, restarts: bool = False) -> None:
        self.lab = lab
        self._stages = scenario.stages
        self._restarts = restarts  # what was not saved is gone then
        self._orders = len(lab.scm.orders)
        self._had_record = (lab.home / "state" / "profile-www.json").exists()
        self._asked = count_requests(lab)
        self._old = {p.serial for p in (presented(lab, server) for server in SERVERS) if p}
        self._watch = Watch(lab)

    def number_of(self, point: Point) -> int:
        """Return the number that a request of this run has at its server."""
        return self._asked[point.where] + point.number

    def server_of(self, point: Point) -> HttpsServer:
        return servers_of(self.lab)[point.where]

    @property
    def placed(self) -> list[Order]:
        return self.lab.scm.orders[self._orders :]

    def recover(self, error: Document | None, *, unclear: bool) -> None:
        """Do as an operator does; ``unclear``: whether the order's outcome may be unknown."""
        outcome = self.lab.json(*self._remedy(error))
        if outcome.exit_code and not is_unknown(error):
            error = outcome.profile()["error"]
            assert is_unknown(error), outcome.text
            outcome = self.lab.json(*self._remedy(error))
        assert outcome.exit_code == 0, outcome.text
        assert outcome.profile()["warnings"] == []
        assert unclear or not is_unknown(error)

    def _remedy(self, error: Document | None) -> list[str]:
        if not is_unknown(error):
            return ["run"]
        placed = [order.cert_id for order in self.placed]
        return ["enroll", *(["--cert-id", placed[0]] if placed else ["--force"]), "www"]

    def check(self) -> None:
        self._check_silence()
        self._check_order()
        self._check_history()
        self._check_saved()
        self._check_files()

    def _check_silence(self) -> None:
        asked = count_requests(self.lab)
        outcome = self.lab("run")
        assert (outcome.exit_code, outcome.text) == (0, "")
        calls = [point.call for point in points_since(self.lab, asked)]
        assert not [call for call in calls if is_write(call) and not call.endswith("/token")]

    def _check_order(self) -> None:
        assert [order.status for order in self.placed] == ["Issued"]
        (order,) = self.placed
        assert order.leaf
        serial = order.leaf.serial_number
        for server in SERVERS:
            shown = presented(self.lab, server)
            assert shown
            assert (int(shown.serial, 16), shown.whole) == (serial, True)

    def _check_history(self) -> None:
        for history in self._watch.history.values():
            stages = [self._stage(each) for each in history]
            if self._restarts:
                assert set(stages) <= set(self._stages), stages
                assert stages[-1] == self._stages[-1], stages
            else:
                assert follows(self._stages, stages), stages

    def _stage(self, shown: Presented | None) -> Stage:
        if shown is None:
            return "", False
        return "old" if shown.serial in self._old else "new", shown.whole

    def _check_saved(self) -> None:
        assert self.lab.appliance.saved
        before = [presented(self.lab, server) for server in SERVERS]
        self.lab.appliance.reboot()
        assert [presented(self.lab, server) for server in SERVERS] == before

    def _check_files(self) -> None:
        """Nothing is left on the appliance or in the state folder that has no use."""
        record = self.lab.record()
        known = [record["installed"], *([record["previous"]] if record["previous"] else [])]
        wanted = {each[key] for each in known for key in ("key_file", "cert_file")}
        names = {pathlib.PurePath(path).name for path in self.lab.appliance.files}
        assert {name for name in names if not re.fullmatch(r"ca_\w+\.crt", name)} == wanted
        assert len(known) == (2 if self._had_record else 1)
        state = {path.name for path in (self.lab.home / "state").iterdir()}
        assert state - {"told.json"} == {  # there once something was warned about
            "citrixagent.log",
            "eula.json",
            "last-run.json",
            "lock",
            "profile-www.json",
        }


# Faults


def answer(code: int, **headers: str) -> Response:
    return Response(code, b"", {name.replace("_", "-"): value for name, value in headers.items()})


def refuse(server: HttpsServer, number: int) -> None:
    """Refuse connections from before a request on, until ``accept``."""
    if number == len(server.requests) + 1:
        server.refuse()
    else:
        server.refuse_after = number - 1


def refuse_briefly(server: HttpsServer, number: int) -> None:
    """Refuse connections for a moment: the next attempt gets through."""
    first = number == len(server.requests) + 1
    look = server.after

    def soon(request: Request) -> None:
        if look:
            look(request)
        if request.number == number - 1:
            threading.Timer(0.3, server.accept).start()

    server.after = soon
    refuse(server, number)
    if first:
        threading.Timer(0.3, server.accept).start()


def stall(server: HttpsServer, number: int) -> None:
    """Do the work and answer too late."""
    look = server.after

    def late(request: Request) -> None:
        if look:
            look(request)
        if request.number == number:
            server.wait(1.5)

    server.after = late


def once(kind: str, response: Response | None = None) -> Callable[[HttpsServer, int], None]:
    def arm(server: HttpsServer, number: int) -> None:
        answer = response or Response(500)
        server.faults.append(Fault(kind, number=number, response=answer, seconds=1.5))

    return arm


KINDS: dict[str, Callable[[HttpsServer, int], None]] = {
    "down": refuse,
    "stalled": stall,
    "hang": once("hang"),
    "refused": refuse_briefly,
    "500": once("status"),
    "503": once("status", answer(503, Retry_After="1")),
    "reset": once("reset"),
    "lost": once("lost"),
    "garbage": once("garbage"),
    "garbled": once("garbled"),
}
SLOW = ("hang", "stalled")  # these wait for the program's own limit, so that is made a short one


def failure_of(outcome: Outcome) -> Document | None:
    """Return the error of the faulty run; it must be one of those that are expected."""
    assert outcome.exit_code in {0, 1, 5}, outcome.text
    assert "Traceback" not in outcome.text
    error: Document | None = outcome.profile()["error"]
    assert (error is not None) == (outcome.exit_code == 1)
    assert not (error and "unexpected" in error["message"]), error
    return error


def try_fault(trial: Trial, point: Point, kind: str) -> None:
    """Run with one fault, recover, and check everything."""
    lab, server, number = trial.lab, trial.server_of(point), trial.number_of(point)
    set_timeouts(lab, 1 if kind in SLOW else 20)
    KINDS[kind](server, number)
    error = failure_of(lab.json("run"))
    sessions = len(lab.appliance.sessions)
    set_timeouts(lab, 20)
    server.accept()
    comes_again = kind != "refused" or not point.call.endswith("/logout")  # that is tried once
    if kind != "down" and comes_again:
        assert plain(str(server.requests[number - 1])) == point.call
        assert sessions == 0 or point.call.endswith(("/login", "/logout"))
    assert not any(fault.times for fault in server.faults)
    trial.recover(error, unclear=point.is_order)
    assert len(lab.appliance.sessions) == sessions
    trial.check()


@contextlib.contextmanager
def case(*names: object) -> Iterator[None]:
    """Say in a failure which case of the matrix it is about."""
    try:
        yield
    except BaseException as error:
        text = ", ".join(map(str, names))
        raise AssertionError(f"{text}: {type(error).__name__}: {error}") from error


def spread(points: Sequence[Point], number: int, offset: int) -> list[Point]:
    """Return some of the points, evenly spread; another offset gives others."""
    step = len(points) / number
    return [points[int(index * step + offset) % len(points)] for index in range(number)]


Try = Callable[[Trial, Point, str], None]
Choice = Callable[[Sequence[Point], str], Sequence[Point]]


def everywhere(points: Sequence[Point], _: str) -> Sequence[Point]:
    return points


def afterwards(points: Sequence[Point], moment: str) -> Sequence[Point]:
    """Return all for after the work of a request, and half of them for other moments."""
    return points if moment == "after" else points[::2]


def run_matrix(
    name: str,
    kinds: Sequence[str],
    try_one: Try,
    folder: pathlib.Path,
    choose: Choice = everywhere,
    *,
    restarts: bool = False,
) -> None:
    """Try kinds of faults with the chosen requests of a scenario's clean run."""
    scenario, cases = SCENARIOS[name], 0
    with prepared(scenario, folder) as ground:
        points = learn(ground, scenario)
        for kind in kinds:
            for point in choose(points, kind):
                with case(name, kind, point):
                    ground.restore()
                    try_one(Trial(ground.lab, scenario, restarts=restarts), point, kind)
                cases += 1
    print(f"\n{name}, {', '.join(kinds)}: {cases} cases of {len(points)} requests")


SAMPLED = [kind for kind in KINDS if kind not in {"down", "stalled"}]


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_sample_of_requests_goes_wrong(kind: str, tmp_path: pathlib.Path) -> None:
    """Each kind with some requests of one run; together they go through all of each run."""
    index = SAMPLED.index(kind)

    def choose(points: Sequence[Point], _: str) -> Sequence[Point]:
        return spread(points, 2, index // len(USUAL) * 4)

    run_matrix(USUAL[index % len(USUAL)], [kind], try_fault, tmp_path, choose)


# Some need not go everywhere: a server that stays down costs 4 s, and as much for the logout, work
# that is done too late differs from none only where something is written, and what was not done is
# told by a reset wherever it is by another answer. A connection that is refused comes to the same
# as one that is reset, and an answer that is garbled to one that is lost: of each two the latter
# goes everywhere, the former to every other request, and to the order.
def worthwhile(points: Sequence[Point], kind: str) -> Sequence[Point]:
    if kind == "stalled":
        return [point for point in points if is_write(point.call)]
    if kind == "down":
        return points[::6]
    if kind in {"refused", "garbled"}:
        rest = points[kind == "garbled" :: 2]
        return [point for point in points if point.is_order or point in rest]
    alternating = ("hang", "500", "503", "garbage")
    return points[alternating.index(kind) % 3 :: 3] if kind in alternating else points


@pytest.mark.long
@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("kind", KINDS)
def test_every_request_goes_wrong_in_every_way(
    name: str, kind: str, tmp_path: pathlib.Path
) -> None:
    run_matrix(name, [kind], try_fault, tmp_path, worthwhile)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in USUAL])
def test_every_request_of_a_rarer_run_goes_wrong(name: str, tmp_path: pathlib.Path) -> None:
    run_matrix(name, ["lost"], try_fault, tmp_path)


# A process that dies


@contextlib.contextmanager
def at_request(
    server: HttpsServer, number: int, moment: str, act: Callable[[], None]
) -> Iterator[None]:
    """Do something ``before`` or ``after`` the work of a request."""
    look = getattr(server, moment)

    def hook(request: Request) -> None:
        if look:
            look(request)
        if request.number == number:
            act()

    setattr(server, moment, hook)
    yield
    setattr(server, moment, look)


def try_kill(trial: Trial, point: Point, moment: str) -> None:
    """Kill the process around the work of a request, recover, and check everything."""
    server, number = trial.server_of(point), trial.number_of(point)
    process = trial.lab.start("run", "--json", environment={})

    def kill() -> None:
        process.kill()
        process.wait()
        raise ConnectionAbortedError

    with at_request(server, number, moment, kill):
        assert trial.lab.ended(process).exit_code == -signal.SIGKILL
    assert plain(str(server.requests[number - 1])) == point.call
    trial.recover(None, unclear=point.is_order)
    trial.check()


def test_killed_at_a_sample_of_requests(tmp_path: pathlib.Path) -> None:
    """With the order's answer on its way, with its id just received, and elsewhere."""

    def choose(points: Sequence[Point], moment: str) -> Sequence[Point]:
        order = [point.is_order for point in points].index(True)
        return [points[14], points[order if moment == "after" else order + 1]]

    run_matrix("renewal", ["before", "after"], try_kill, tmp_path, choose)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", USUAL)
def test_killed_at_every_request(name: str, moment: str, tmp_path: pathlib.Path) -> None:
    run_matrix(name, [moment], try_kill, tmp_path, afterwards)


# A disk that is full


def check_full(trial: Trial, outcome: Outcome) -> Document | None:
    """Return the error: a clear one, and no order is lost with it."""
    assert "Traceback" not in outcome.text, outcome.text
    assert outcome.stderr == ""
    document = outcome.document()
    errors = [*document["errors"], *(each["error"] for each in document["profiles"])]
    found: list[Document] = [error for error in errors if error]
    assert bool(found) == bool(outcome.exit_code)
    assert {error["kind"] for error in found} <= {"state"}, found
    for order in trial.placed:
        told = any(order.cert_id in error["message"] for error in found)
        assert told or order.cert_id in str(trial.lab.record())
    return found[0] if found else None


def recover_from_full(trial: Trial, outcome: Outcome) -> None:
    """Make room and go on: only an order that could not be recorded may be unknown."""
    error = check_full(trial, outcome)
    lost = error is not None and "could not be recorded" in error["message"]
    trial.recover(error, unclear=lost)
    trial.check()


def try_full_disk(trial: Trial, point: Point, _: str) -> None:
    """From before a request on, nothing can be written any more."""
    process = trial.lab.start("run", "--json", environment={})

    def fill() -> None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))

    with at_request(trial.server_of(point), trial.number_of(point), "before", fill):
        outcome = trial.lab.ended(process)
    recover_from_full(trial, outcome)


def test_a_disk_that_is_full_at_a_sample_of_requests(tmp_path: pathlib.Path) -> None:
    def choose(points: Sequence[Point], _: str) -> Sequence[Point]:
        return spread(points, 2, 5)

    run_matrix("renewal", ["full"], try_full_disk, tmp_path, choose)


@pytest.mark.long
@pytest.mark.parametrize("name", USUAL)
def test_a_disk_that_is_full_at_every_request(name: str, tmp_path: pathlib.Path) -> None:
    run_matrix(name, ["full"], try_full_disk, tmp_path, lambda points, _: points[::2])


def learn_sizes(lab: Lab) -> list[int]:
    """Return the sizes that the record has on its way through a clean run."""
    record, sizes = lab.home / "state" / "profile-www.json", set[int]()

    def note(_: Request) -> None:
        sizes.add(record.stat().st_size if record.exists() else 0)

    for server in servers_of(lab).values():
        server.before = note
    assert lab("run").exit_code == 0
    return sorted(sizes | {record.stat().st_size})


def try_small_disk(trial: Trial, limit: int) -> None:
    process = trial.lab.start("run", "--json", environment={}, file_size=limit)
    recover_from_full(trial, trial.lab.ended(process))


def run_sizes(name: str, folder: pathlib.Path) -> None:
    """Make each size that the record grows to one byte too many once."""
    scenario = SCENARIOS[name]
    with prepared(scenario, folder) as ground:
        limits = sorted({0, 10, *(size - 1 for size in learn_sizes(ground.lab) if size)})
        for limit in limits:
            with case(name, "limit", limit):
                ground.restore()
                try_small_disk(Trial(ground.lab, scenario), limit)
    print(f"\n{name}, small disk: {len(limits)} cases")


@pytest.mark.long
@pytest.mark.parametrize("name", USUAL)
def test_a_disk_with_room_for_any_part_of_the_record(name: str, tmp_path: pathlib.Path) -> None:
    run_sizes(name, tmp_path)


# An appliance that restarts: what was not saved is gone, and so is the session


def restart_at(trial: Trial, point: Point, moment: str) -> contextlib.AbstractContextManager[None]:
    """Restart the appliance around the work of a request; with a pause it is away for a moment."""
    appliance = trial.lab.appliance

    def restart() -> None:
        appliance.reboot()
        if "pause" in moment:
            threading.Timer(0.2, appliance.server.accept).start()
            appliance.server.refuse()

    when = "before" if moment.startswith("before") else "after"
    return at_request(trial.server_of(point), trial.number_of(point), when, restart)


def try_restart(trial: Trial, point: Point, moment: str) -> None:
    with restart_at(trial, point, moment):
        error = failure_of(trial.lab.json("run"))
    trial.lab.appliance.server.accept()
    trial.recover(error, unclear=point.is_order)
    trial.check()


MOMENTS = ("before", "after", "after, with a pause")


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.sample(3)
def test_the_appliance_restarts_at_a_sample_of_requests(name: str, tmp_path: pathlib.Path) -> None:
    """Around the last writes, where a record could be closed against what is gone."""

    def choose(points: Sequence[Point], moment: str) -> Sequence[Point]:
        save = next(n for n, point in enumerate(points) if "action=save" in point.call)
        return [points[save - 1], points[save]][MOMENTS.index(moment) :][:1]

    run_matrix(name, MOMENTS[:2], try_restart, tmp_path, choose, restarts=True)


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", USUAL)
def test_the_appliance_restarts_at_every_request(
    name: str, moment: str, tmp_path: pathlib.Path
) -> None:
    run_matrix(name, [moment], try_restart, tmp_path, afterwards, restarts=True)


# The operator's command again, after it was cut off

AGAIN = Scenario(revocation, [("old", True), ("new", True)])
COMMANDS = {
    "renew": ("renew", "www"),
    "replace": ("replace", "www"),
    "enroll": ("enroll", "--force", "www"),
}


def installed_anew(lab: Lab) -> None:
    """A certificate of this program is installed, and nothing is due."""
    write_profile(lab)
    assert lab("run").exit_code == 0


def is_done(lab: Lab, order: Order | None) -> bool:
    """Tell whether all of a command was done, so that it would be a new wish."""
    record, leaf = lab.record(), order.leaf if order else None
    finished = record["change"] is None and record["finishing"] is None
    return (
        finished
        and leaf is not None
        and int(record["installed"]["serial"], 16) == (leaf.serial_number)
    )


def try_again(trial: Trial, point: Point, command: Sequence[str], moment: str) -> None:
    """Kill the command around the work of a request, and give it again as it was."""
    lab = trial.lab
    process = lab.start(*command, "--json", environment={})

    def kill() -> None:
        process.kill()
        process.wait()
        raise ConnectionAbortedError

    with at_request(trial.server_of(point), trial.number_of(point), moment, kill):
        lab.ended(process)
    if not is_done(lab, trial.placed[-1] if trial.placed else None):
        outcome = lab.json(*command)
        error = outcome.profile()["error"]
        if is_unknown(error) and command[0] != "enroll":
            trial.recover(error, unclear=point.is_order)
        else:
            assert outcome.exit_code == 0, outcome.text
    if is_lost_order(trial, command):
        return
    trial.check()


def is_lost_order(trial: Trial, command: Sequence[str]) -> bool:
    """Tell whether --force gave up an order whose outcome was unknown, as it says it does."""
    return command[0] == "enroll" and len(trial.placed) == 2


def run_again(name: str, moments: Sequence[str], folder: pathlib.Path, choose: Choice) -> None:
    scenario = dataclasses.replace(AGAIN, prepare=installed_anew)
    command, cases = COMMANDS[name], 0
    with prepared(scenario, folder) as ground:
        points = learn(ground, scenario, command)
        for moment in moments:
            for point in choose(points, moment):
                with case(name, moment, point):
                    ground.restore()
                    try_again(Trial(ground.lab, scenario), point, command, moment)
                cases += 1
    print(f"\n{name} again: {cases} cases of {len(points)} requests")


def test_a_command_that_was_killed_is_given_again(tmp_path: pathlib.Path) -> None:
    """After the save, where it was paid for, installed, and not finished."""

    def choose(points: Sequence[Point], _: str) -> Sequence[Point]:
        save = next(n for n, point in enumerate(points) if "action=save" in point.call)
        return [points[save + 2]]

    run_again("renew", ["after"], tmp_path, choose)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_was_killed_anywhere_is_given_again(
    name: str, moment: str, tmp_path: pathlib.Path
) -> None:
    run_again(name, [moment], tmp_path, afterwards)
