"""A lab for tests: an appliance, an SCM and a home folder, and the program run against them.

Nothing in the program is patched: it is reached through its files, its options and its environment.
"""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import inspect
import json
import os
import pathlib
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click.testing
import pytest
import yaml
from forked import Program
from simulators import HUNG, server
from simulators.brownfield import others
from simulators.netscaler import NetScaler
from simulators.scm import Scm

import citrixagent

# Whoever starts the tests with nohup has it ignored, and so would the processes that they start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "citrixagent.py"
# The program as a process of its own; compiling it each time is half of what that costs.
PROCESS: tuple[str, ...] = (
    sys.executable,
    "-c",
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module('citrixagent', run_name='__main__', alter_sys=True)",
    str(ROOT),
)
# Before click 8.2 its runner mixes stdout and stderr, unless it is told not to.
_MIXES = "mix_stderr" in inspect.signature(click.testing.CliRunner).parameters
_APART: Any = {"mix_stderr": False} if _MIXES else {}
PASSWORD = "p@ss: #word\"'"  # what YAML, JSON and URLs could trip over
CLIENT_SECRET = "s3cr]e.t!,=x"

LONGEST_FIRST = (
    "test_rekey",
    "test_year",
    "test_transport",
    "test_configure",
    "test_told",
    "test_simulator_foreign_clients",
    "test_simulator_cert_manager",
    "test_property",
    "test_crashes",
    "test_fleet",
    "test_lifecycle",
    "test_faults",
    "test_run",
)

Document = dict[str, Any]


@dataclasses.dataclass
class Outcome:
    """What a run of the program gave."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr

    def document(self) -> Document:
        data = json.loads(self.stdout)
        assert isinstance(data, dict)
        return data

    def profile(self, name: str = "www") -> Document:
        (found,) = [each for each in self.document()["profiles"] if each["profile"] == name]
        assert isinstance(found, dict)
        return found


class Lab:
    """One home folder with an appliance and an SCM behind it."""

    def __init__(self, home: pathlib.Path, appliance: NetScaler, scm: Scm) -> None:
        self.home = home
        self.appliance = appliance
        self.scm = scm
        self._surveyed = False  # a command was run that looks at what others have
        appliance.settle(others())
        self.ca_file = home / "ca.pem"
        self.ca_file.write_text(server.authority_pem())
        appliance.add_user("citrixagent", PASSWORD)
        scm.add_client("client", CLIENT_SECRET)
        (home / "profiles").mkdir()
        self.write_scm()

    def write_scm(self, **changes: object) -> None:
        self.write_yaml(
            "scm.yaml",
            {
                "url": self.scm.url,
                "client_id": "client",
                "client_secret": CLIENT_SECRET,
                "token_url": self.scm.token_url,
                "ca_bundle": "ca.pem",
                "timeout": 30,
                **changes,
            },
        )

    def citrix(self, **changes: object) -> Document:
        block = {
            "host": self.appliance.host,
            "username": "citrixagent",
            "password": PASSWORD,
            "ca_bundle": str(self.ca_file),
            "timeout": 60,
        }
        return _changed(block, changes)

    def profile(self, **changes: object) -> Document:
        """Return a profile that works; ``changes`` replace whole blocks, None removes one."""
        return _changed(
            {
                "citrix": self.citrix(),
                "virtual_servers": [{"name": "vs_www", "type": "load_balancing"}],
                "certificate": self.certificate(),
                "enrollment": {"max_wait": 20},
            },
            changes,
        )

    @staticmethod
    def certificate(**changes: object) -> Document:
        block = {
            "common_name": "www.example.com",
            "subject_alternative_names": ["example.com", "192.0.2.10"],
            "organization": "Example Ltd",
            "state": "England",
            "country": "GB",
            "key_type": "ECDSA-P256",
        }
        return _changed(block, changes)

    def write_profile(self, name: str = "www", **changes: object) -> pathlib.Path:
        return self.write_yaml(f"profiles/{name}.yaml", self.profile(**changes))

    def write_yaml(self, path: str, data: object, mode: int = 0o600) -> pathlib.Path:
        return self.write(path, yaml.safe_dump(data), mode)

    def write(self, path: str, text: str, mode: int = 0o600) -> pathlib.Path:
        file = self.home / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def accept(self) -> None:
        assert self("eula", "--accept").exit_code == 0

    def __call__(self, *arguments: str) -> Outcome:
        """Run the program in this process, without a terminal."""
        options = ["--home", str(self.home), *arguments]
        self._surveyed |= "list" in arguments
        result = click.testing.CliRunner(**_APART).invoke(
            citrixagent.main, options, prog_name="citrixagent.py"
        )
        outcome = Outcome(result.exit_code, result.stdout, result.stderr)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.check_secrets(outcome.text)
        return outcome

    def spawn(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Outcome:
        """Run the program as a process of its own."""
        words = ["--home", str(self.home), *arguments]
        with Program(*words, environment=environment or {}, cwd="/") as process:
            return self.ended(process)

    def fresh(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Outcome:
        """Run it as a process of its own whose start is part of the test."""
        done = subprocess.run(
            [*PROCESS, "--home", str(self.home), *arguments],
            env=dict(environment or {}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HUNG,
            check=False,
        )
        self.check_secrets(done.stdout + done.stderr)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(
        self,
        *arguments: str,
        environment: Mapping[str, str] = os.environ,
        file_size: int | None = None,
    ) -> Program:
        """Start the program as a process of its own, and do not wait for its end."""
        words = ["--home", str(self.home), *arguments]
        return Program(*words, environment=environment, file_size=file_size)

    def ended(self, process: Program) -> Outcome:
        """Wait for the end of a process that was started."""
        stdout, stderr = process.communicate(timeout=HUNG)
        self.check_secrets(stdout + stderr)
        return Outcome(process.returncode, stdout, stderr)

    def on_a_terminal(
        self,
        *arguments: str,
        answer: str = "",
        columns: int = 80,
        environment: Mapping[str, str] | None = None,
        sent: tuple[str, int] | None = None,
    ) -> tuple[int, str]:
        """Run the program on a terminal, type an answer; return exit code and what is shown.

        ``sent``: a signal for the program, and the text after which it gets it.
        """
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        with subprocess.Popen(
            [*PROCESS, "--home", str(self.home), *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env={"TERM": "xterm", **(environment or {})},
        ) as process:
            os.close(child)
            os.write(parent, answer.encode())
            shown = b""
            while True:
                try:
                    shown += os.read(parent, 65536)
                except OSError:
                    break
                if sent and sent[0] in shown.decode():
                    time.sleep(0.5)  # a signal just before the read is seen only after it
                    process.send_signal(sent[1])
                    sent = None
            code = process.wait(HUNG)
        os.close(parent)
        return code, shown.decode()

    def json(self, *arguments: str) -> Outcome:
        return self(*arguments, "--json")

    def record(self, name: str = "www") -> Document:
        data = json.loads((self.home / "state" / f"profile-{name}.json").read_text())
        assert isinstance(data, dict)
        return data

    def check(self) -> None:
        """Fail where a secret got out, or where what belongs to others was changed or read."""
        self.check_secrets()
        for node in self.appliance.nodes:
            assert node.touched() == []
            assert not node.private_keys_read
            theirs = node.running.others.files.keys() & set(node.files_read)
            assert self._surveyed or not theirs

    def check_secrets(self, text: str = "") -> None:
        """Fail where a secret stands in an output, a log or a state file."""
        state = [path for path in (self.home / "state").glob("*") if path.is_file()]
        texts = [text, *(path.read_text() for path in state)]
        secrets = [PASSWORD, CLIENT_SECRET, "PRIVATE KEY"]
        for secret in secrets:
            assert not any(secret in each for each in texts)


def wait_until(is_time: Callable[[], bool], process: Program) -> None:
    """Wait until it is time to do something to a process that runs."""
    while not is_time():
        assert process.poll() is None
        time.sleep(0.05)


def _changed(block: Document, changes: Mapping[str, object]) -> Document:
    merged = {**block, **changes}
    return {key: value for key, value in merged.items() if value is not None}


@pytest.fixture
def lab(tmp_path: pathlib.Path) -> Iterator[Lab]:
    """An accepted agreement, an appliance with vs_www, an SCM that issues at once."""
    with NetScaler() as appliance, Scm() as scm:
        scm.issue_after = 0
        appliance.add_virtual_server("vs_www", "load_balancing")
        made = Lab(tmp_path, appliance, scm)
        made.accept()
        yield made
        made.check()
        assert not appliance.sessions


def leave_to_the_long_run(items: list[pytest.Item]) -> None:
    """Of a test with the mark ``sample`` the short run takes every so many-th variant."""
    seen: collections.Counter[str] = collections.Counter()
    for item in items:
        mark, test = item.get_closest_marker("sample"), item.nodeid.partition("[")[0]
        if mark and seen[test] % mark.args[0]:
            item.add_marker("long")
        seen[test] += 1


@pytest.hookimpl(tryfirst=True)  # what is long is left out by whoever comes after this
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the long run what need not be in each, and let what takes longest start first."""
    leave_to_the_long_run(items)
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(
        key=lambda item: (
            item.get_closest_marker("long") is None,
            rank.get(item.path.stem, len(rank)),
        )
    )


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the environment of whoever runs the tests out of them."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith("CITRIXAGENT_"):
            monkeypatch.delenv(name)
