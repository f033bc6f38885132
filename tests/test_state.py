"""The state folder: whose it is, what may be in it, what killed runs leave; users and limits."""

from __future__ import annotations

import datetime as dt
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest
import time_machine
from conftest import PROGRAM, ROOT, Lab, Outcome, wait_until

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
LIMITED = f"""
import os, resource, sys
sys.path.insert(0, {str(ROOT)!r})
import citrixagent
citrixagent.load_packages()
os.setgroups([])
os.setgid({NOBODY})
LIMITS
os.setuid({NOBODY})
citrixagent.main(sys.argv[1:], prog_name="citrixagent.py")
"""
"""The program as another user, who need not be able to read it."""


def run_limited(lab: Lab, *command: str, limits: str = "") -> Outcome:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.replace("LIMITS", limits), "--home", lab.home, *command],
        env={},  # what measures the tests could not write as another user
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def public(lab: Lab) -> Iterator[Lab]:
    """A lab whose home everybody can reach."""
    before, lab.home = lab.home, pathlib.Path(tempfile.mkdtemp())
    lab.home.chmod(0o755)
    shutil.copytree(before, lab.home, dirs_exist_ok=True)
    lab.ca_file = lab.home / "ca.pem"
    lab.ca_file.chmod(0o644)
    lab.write_profile()
    yield lab
    shutil.rmtree(lab.home)
    lab.home = before


def give_away(lab: Lab) -> None:
    for path in [lab.home, *lab.home.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)


def modes(lab: Lab) -> dict[str, int]:
    state = lab.home / "state"
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
    return {"state": stat.S_IMODE(state.stat().st_mode), **found}


# Whose it is


@as_root
def test_root_becomes_who_the_state_belongs_to(public: Lab) -> None:
    give_away(public)
    outcome = public.spawn("run", environment={"SUDO_USER": "ann"})
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    state = public.home / "state"
    assert {path.stat().st_uid for path in state.iterdir()} == {NOBODY}
    log = (state / "citrixagent.log").read_text()
    assert "started, user nobody (sudo by ann) (was root), version " in log
    assert "started, user root" not in log


@as_root
def test_root_does_not_become_who_a_link_names(public: Lab) -> None:
    """Whoever can make a link in a home could choose a victim."""
    (public.home / "state").rename(public.home / "other")
    os.chown(public.home / "other", NOBODY, NOBODY)
    (public.home / "state").symlink_to("other")
    outcome = public.json("run")
    assert outcome.exit_code == 1
    assert outcome.document()["errors"][0]["kind"] == "state"
    assert not public.scm.orders


@as_root
@pytest.mark.parametrize(
    "command", [("run",), ("list",), ("revoke", "www", "--reason", "superseded", "--yes")]
)
@pytest.mark.sample(3)
def test_another_user_is_told_whose_it_is(public: Lab, command: tuple[str, ...]) -> None:
    public.home.chmod(0o777)
    os.chown(public.home / "state", 1, 1)
    (public.home / "state").chmod(0o755)
    outcome = run_limited(public, *command, "--json")
    assert outcome.exit_code == 1, outcome
    state = public.home / "state"
    assert outcome.document()["errors"] == [
        {
            "kind": "state",
            "message": f"{state} belongs to daemon, and this is nobody: run this as daemon, or "
            f"give it to nobody: chown -R nobody {state}",
        }
    ]
    assert not public.appliance.server.requests
    os.chown(state, 0, 0)


@as_root
def test_a_home_that_cannot_be_written_is_told_once(public: Lab) -> None:
    public.home.chmod(0o755)
    shutil.rmtree(public.home / "state")
    outcome = run_limited(public, "run")
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert outcome.stderr == (
        f"error: {public.home}/state cannot be made or used as nobody: Permission denied: "
        f"let nobody write in {public.home}\n"
    )
    assert not public.appliance.server.requests


@as_root
def test_packages_that_only_root_can_read_are_told_as_that(public: Lab) -> None:
    give_away(public)
    gone = "sys.path[:] = [each for each in sys.path if 'site-packages' not in each]"
    outcome = run_limited(public, "check", "--offline", "--json", limits=gone)
    told = [each for each in outcome.document()["checks"] if each["name"] == "packages"]
    assert {(each["status"], each["message"].split(": ")[-1]) for each in told} == {
        ("skip", "its version cannot be read")
    }


@as_root
def test_profiles_that_cannot_be_listed_are_not_none(public: Lab) -> None:
    """Neither is there nothing to do, nor is everything on the appliance unmanaged."""
    give_away(public)
    folder = public.home / "profiles"
    os.chown(folder, 0, 0)
    folder.chmod(0o700)
    text = f"{folder}: cannot be read as nobody: Permission denied"
    for command, code in (("run", 3), ("list", 3), ("check", 3), ("status", 1)):
        outcome = run_limited(public, command)
        assert (outcome.exit_code, text in outcome.stderr) == (code, True), outcome
    outcome = run_limited(public, "status", "--format", "nagios")
    assert (outcome.exit_code, text in outcome.stdout) == (3, True)
    assert not public.appliance.server.requests


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
@pytest.mark.sample(2)
def test_a_folder_that_others_can_write_is_refused(lab: Lab, mode: int) -> None:
    state = lab.home / "state"
    state.chmod(mode)
    lab.write_profile()
    outcome = lab.json("run")
    assert outcome.exit_code == 1
    (error,) = outcome.document()["errors"]
    assert error["kind"] == "state"
    assert error["message"].endswith(f"then chmod 700 {state}")
    assert not lab.appliance.server.requests
    state.chmod(0o700)
    assert lab("run").exit_code == 0


@pytest.mark.parametrize("umask", [0o777, 0o000, 0o022])
@pytest.mark.sample(3)
def test_modes_are_set_whatever_the_umask(lab: Lab, umask: int) -> None:
    lab.write_profile()
    shutil.rmtree(lab.home / "state")
    for command in (["eula", "--accept"], ["run"]):
        words = [sys.executable, str(PROGRAM), "--home", str(lab.home), *command]
        assert subprocess.run(words, umask=umask, capture_output=True, check=False).returncode == 0
    found = modes(lab)
    assert found.pop("state") == 0o700
    assert set(found.values()) == {0o600}
    assert len(found) == 5


# What may be in it


def test_a_link_in_the_place_of_the_lock_or_the_log_is_not_followed(
    lab: Lab, tmp_path: pathlib.Path
) -> None:
    victim = tmp_path / "victim"
    lab.write_profile()
    for name, code in (("lock", 1), ("citrixagent.log", 0)):
        victim.write_text("precious\n")
        victim.chmod(0o644)
        path = lab.home / "state" / name
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
        outcome = lab("run")
        assert outcome.exit_code == code
        assert f"{path} cannot be " in outcome.stderr
        assert "is a symbolic link" in outcome.stderr
        assert victim.read_text() == "precious\n"
        assert stat.S_IMODE(victim.stat().st_mode) == 0o644
        path.unlink()


ODD_FILES: dict[str, Callable[[pathlib.Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": os.mkdir,
    "a link": lambda path: path.symlink_to("/dev/null"),
    "too large": lambda path: path.write_bytes(b" " * 1_000_001),
}


@pytest.mark.parametrize("odd", ODD_FILES)
@pytest.mark.parametrize("name", ["profile-www.json", "eula.json", "lock"])
@pytest.mark.sample(3)
def test_what_is_no_file_of_ours_is_told_as_that(lab: Lab, name: str, odd: str) -> None:
    lab.write_profile()
    path = lab.home / "state" / name
    path.unlink(missing_ok=True)
    ODD_FILES[odd](path)
    outcome = lab.json("run")
    if (name, odd) == ("lock", "too large"):
        assert outcome.exit_code == 0
        return
    assert outcome.exit_code == 1
    document = outcome.document()
    errors = document["errors"] + [each["error"] for each in document["profiles"]]
    assert [error["kind"] for error in errors] == ["state"]
    assert f"{path} cannot be " in errors[0]["message"]
    assert "damaged" not in errors[0]["message"]
    assert not lab.scm.orders


# What killed runs leave


def test_what_a_killed_run_was_about_to_write_is_removed(lab: Lab) -> None:
    """What a living process writes is not."""
    lab.write_profile()
    state = lab.home / "state"
    (state / ".new-999999999-1").write_text("{")
    (state / f".new-{os.getppid()}-1").write_text("{")
    assert lab("run").exit_code == 0
    assert [path.name for path in state.glob(".*")] == [f".new-{os.getppid()}-1"]


def test_a_profile_may_have_a_long_name(lab: Lab) -> None:
    name = "n" * 240
    lab.write_profile(name)
    assert lab("run").exit_code == 0
    assert lab("run").text == ""
    assert len(lab.scm.orders) == 1


# Signals, limits, surprises


def test_a_closed_terminal_ends_a_run_in_order(lab: Lab) -> None:
    lab.scm.approval = "manual"
    lab.write_profile(enrollment={"max_wait": 600})
    with lab.start("run", "--json") as process:
        wait_until(lambda: bool(lab.scm.orders), process)
        process.send_signal(signal.SIGHUP)
        outcome = lab.ended(process)
    assert (outcome.exit_code, outcome.document()["exit_code"]) == (129, 129)
    assert not lab.appliance.sessions


def test_a_closed_terminal_is_nothing_to_what_runs_under_nohup(lab: Lab) -> None:
    lab.write_profile()
    words = ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, str(PROGRAM)]
    with subprocess.Popen([*words, "--home", str(lab.home), "run"]) as process:
        lab.appliance.server.before = lambda request: (
            process.send_signal(signal.SIGHUP) if request.number == 2 else None
        )
        assert process.wait(60) == 0
    assert len(lab.scm.orders) == 1


@as_root
@pytest.mark.parametrize(
    "limits",
    [
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
    ],
    ids=["threads", "descriptors"],
)
@pytest.mark.sample(2)
def test_with_few_threads_or_files_one_appliance_follows_another(public: Lab, limits: str) -> None:
    for number, name in enumerate("abcd"):
        public.appliance.add_virtual_server(f"vs_{name}", "load_balancing")
        public.write_profile(
            name,
            citrix=public.citrix(timeout=20 + number),
            virtual_servers=[{"name": f"vs_{name}", "type": "load_balancing"}],
            certificate=public.certificate(common_name=f"{name}.example.com"),
        )
    give_away(public)
    outcome = run_limited(public, "run", limits=limits)
    assert outcome.exit_code == 0, outcome
    assert len(public.scm.orders) == 5


@pytest.mark.parametrize("home", ["x" * 300, "y/" * 3000, "z\udcff"], ids=["name", "path", "byte"])
@pytest.mark.sample(3)
def test_a_home_that_can_be_none_is_told_like_one_that_is_missing(lab: Lab, home: str) -> None:
    for command in ("run", "list", "check", "status", "eula"):
        words = [sys.executable, str(PROGRAM), "--home", f"/{home}", command]
        done = subprocess.run(words, capture_output=True, check=False)
        assert done.returncode in {1, 3}
        assert b"there is no folder /" in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert not done.stdout


@as_root
def test_very_few_files_are_told_as_that(public: Lab) -> None:
    give_away(public)
    for most in (4, 5, 6, 7):
        limits = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))"
        outcome = run_limited(public, "run", "--json", limits=limits)
        assert (outcome.exit_code, outcome.stderr) == (1, "")
        assert "Too many open files" in json.dumps(outcome.document())
    assert run_limited(public, "run").exit_code == 0
    assert len(public.scm.orders) == 1


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.SystemTimeWarning")
def test_a_clock_that_was_never_set_orders_nothing_and_warns_of_nothing_else(lab: Lab) -> None:
    lab.write_profile()
    now = dt.datetime.now(dt.timezone.utc)
    lab.scm.server.clock = lambda: now
    for year in (1970, 2001, 2024, 2099):
        with time_machine.travel(dt.datetime(year, 1, 2, tzinfo=dt.timezone.utc), tick=True):
            outcome = lab.json("run")
        error = outcome.profile()["error"]
        assert (outcome.exit_code, error["kind"], outcome.stderr) == (1, "state", "")
        assert "clock" in error["message"]
    assert not lab.scm.orders
    assert lab("run").exit_code == 0


SURPRISED = [
    ("run",),
    ("list",),
    ("check",),
    ("discover",),
    ("enroll", "www"),
    ("revoke", "www", "--reason", "superseded", "--yes"),
    ("rollback", "www"),
]


@pytest.mark.parametrize("command", SURPRISED, ids=lambda words: words[0])
@pytest.mark.sample(4)
def test_what_nobody_expected_is_told_like_any_other_error(
    lab: Lab, tmp_path: pathlib.Path, command: tuple[str, ...]
) -> None:
    """A package that fails in an odd way: one JSON object, no traceback but in the log."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    record = lab.record()
    broken = tmp_path / "packages" / "yaml"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('a surprise')\n")
    environment = {"PYTHONPATH": str(broken.parent)}
    outcome = lab.fresh(*command, "--json", environment=environment)
    assert (outcome.exit_code, outcome.stderr) == (1, "")
    (error,) = outcome.document()["errors"]
    assert error["kind"] == "state"
    assert error["message"].startswith("unexpected RuntimeError")
    log = (lab.home / "state" / "citrixagent.log").read_text()
    assert "RuntimeError: a surprise" in log
    assert lab.record() == record
