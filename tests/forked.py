"""The program as a process of its own, without what its start costs.

To start Python and to import the program takes longer than most runs do. So one process per worker
does both once, with nothing in its environment, and forks whenever a test wants the program as a
process. Such a process is as a fresh one: the environment, folder, pipes and signals are its own,
it ends as Python ends, and a signal hits it alone. What a test wants to know of the start itself,
of a terminal, or of what Python reads from the environment, it asks ``conftest.PROCESS``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import pathlib
import resource
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import IO, Any, final

MESSAGE = 1 << 17  # bytes: more than arguments and an environment of tests take


# In the tests


@functools.cache
def server() -> socket.socket:
    """Start the process that forks, which ends with this one, and return where it listens."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, str(there.fileno())],
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[there.fileno()],
    )
    there.close()

    def stop() -> None:
        here.close()
        process.wait()

    atexit.register(stop)
    return here


@final
class Program:
    """A process of the program; what it has in common with ``subprocess.Popen`` is as there."""

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        cwd: str | None = None,
        file_size: int | None = None,
    ) -> None:
        """Start it; ``file_size``: no file of it can grow beyond."""
        wanted = {
            "arguments": arguments,
            "environment": dict(environment),
            "cwd": cwd or str(pathlib.Path.cwd()),
            "file_size": file_size,
        }
        (out, its_out), (err, its_err), (report, its_report) = os.pipe(), os.pipe(), os.pipe()
        theirs = [its_out, its_err, its_report]
        socket.send_fds(server(), [json.dumps(wanted).encode()], theirs)
        close(theirs)
        self.args = arguments
        self.stdout: IO[str] = os.fdopen(out, encoding="utf-8")
        self.stderr: IO[str] = os.fdopen(err, encoding="utf-8")
        self.returncode: int | Any = None
        self._report = os.fdopen(report, "rb", buffering=0)
        self._lock = threading.Lock()
        self.pid = int(self._report.readline())

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self.stdout.close()
        self.stderr.close()

    def poll(self) -> int | None:
        with self._lock:
            return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        with self._lock:
            if (code := self._ended(timeout)) is None:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], timeout)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._report.readline()))
            self._report.close()
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        shown = {self.stdout: b"", self.stderr: b""}
        with selectors.DefaultSelector() as still_open:
            for file in shown:
                still_open.register(file, selectors.EVENT_READ, file)
            while still_open.get_map():
                if not (ready := still_open.select(timeout)):
                    raise subprocess.TimeoutExpired(self.args, timeout)
                for key, _ in ready:
                    part = os.read(key.fd, MESSAGE)
                    shown[key.data] += part
                    if not part:
                        still_open.unregister(key.fileobj)
        self.wait(timeout)
        for file in shown:
            file.close()
        stdout, stderr = (each.decode().replace("\r\n", "\n") for each in shown.values())
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def pause(self) -> None:
        """Stop all its threads where they are, until it is killed or told to continue."""
        self.send_signal(signal.SIGSTOP)
        threads = pathlib.Path(f"/proc/{self.pid}/task")
        while self.poll() is None and not all(map(_rests, threads.glob("*/stat"))):
            time.sleep(0.001)


def _rests(thread: pathlib.Path) -> bool:
    try:
        return thread.read_text().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True  # it has ended


# In the process that forks


def serve(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request; return in every new process, with what that is to do and to use.

    What is reported of it is its id, and, when it has ended, how.
    """
    reports: dict[int, int] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        while control.fileno() not in select.select([control.fileno(), woken], [], [])[0]:
            os.read(woken, MESSAGE)
            report_ended(reports)
        message, descriptors, *_ = socket.recv_fds(control, MESSAGE, 3)
        if not message:
            os._exit(0)
        *standard, report = descriptors
        if (pid := os.fork()) == 0:
            break
        os.write(report, f"{pid}\n".encode())
        reports[pid] = report
        close(standard)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    close([control.detach(), woken, wake, report, *reports.values()])
    return json.loads(message), standard


def report_ended(reports: dict[int, int]) -> None:
    for pid in list(reports):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            report = reports.pop(pid)
            os.write(report, f"{status}\n".encode())
            os.close(report)


def close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def become(wanted: dict[str, Any], standard: list[int]) -> None:
    """Be what ``exec`` would have made of this process."""
    for number, descriptor in enumerate(standard, 1):
        os.dup2(descriptor, number)
    close(standard)
    os.chdir(wanted["cwd"])
    os.environ.update(wanted["environment"])
    time.tzset()
    if wanted["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["file_size"],) * 2)
    sys.argv[1:] = wanted["arguments"]


if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)
    import citrixagent

    citrixagent.load_packages()
    gc.freeze()
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
    citrixagent.main(prog_name="citrixagent.py")
