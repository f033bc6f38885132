"""Clients that others wrote, in virtual environments of their own under ``.venv``.

They need a newer Python than this project, so they run as processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import pytest

from simulators import HUNG
from simulators.server import authority_pem

FOLDER = pathlib.Path(__file__).parents[2] / ".venv"
Done = subprocess.CompletedProcess[str]


def interpreters(oldest: int) -> Iterator[str]:
    yield sys.executable
    for minor in range(oldest, 15):
        yield from filter(None, [shutil.which(f"python3.{minor}")])
    versions = pathlib.Path.home() / ".pyenv" / "versions"
    yield from map(str, sorted(versions.glob("3.1[0-9]*/bin/python3")))


def is_new_enough(interpreter: str, oldest: int) -> bool:
    """Run it: what is on PATH may be a stub that only says what is missing."""
    code = f"import sys, venv; sys.exit(sys.version_info < (3, {oldest}))"
    return (
        subprocess.run([interpreter, "-c", code], capture_output=True, check=False).returncode == 0
    )


def python(requirements: Sequence[str], oldest: int) -> str:
    """Return the Python of an environment with the clients; it is made once and kept.

    ``oldest`` is the minor version of Python 3 that they need; without it the test is skipped.
    """
    name = "foreign-" + hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:12]
    environment, ready = FOLDER / name, FOLDER / name / "ready"
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            candidates = interpreters(oldest)
            interpreter = next((c for c in candidates if is_new_enough(c, oldest)), None)
            if interpreter is None:
                pytest.skip(f"the clients need Python 3.{oldest} or newer, and there is none here")
            subprocess.run([interpreter, "-m", "venv", "--clear", environment], check=True)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, *requirements], check=True)
            ready.touch()
    return str(environment / "bin" / "python")


def run(command: Sequence[str], folder: pathlib.Path, environment: Mapping[str, str]) -> Done:
    """Run a client that trusts the simulators' authority; ``folder`` is for its certificate."""
    ca_file = folder / "management.pem"
    ca_file.write_text(authority_pem())
    known = {"REQUESTS_CA_BUNDLE": str(ca_file), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        command,
        env={**os.environ, **known, **environment},
        text=True,
        capture_output=True,
        timeout=HUNG,
        check=False,
    )
