"""How the program starts: whatever Python it is started with, and what the shell completes."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

import pytest
from conftest import PROGRAM, ROOT, Lab
from simulators import HUNG

WITHOUT = [sys.executable, "-S"]  # the same Python, without its packages


@pytest.fixture
def program(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the program in a folder of its own, whose name has a blank."""
    folder = tmp_path / "my agent"
    folder.mkdir()
    for name in ("LICENSE.txt", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    return pathlib.Path(shutil.copy(PROGRAM, folder))


def start(
    words: list[str], *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*words, *arguments],
        capture_output=True,
        text=True,
        timeout=HUNG,
        check=False,
        cwd="/",
        env=dict(environment or {}),
    )


def make_venv(program: pathlib.Path, script: str = f'exec {sys.executable} "$@"') -> pathlib.Path:
    """Put a Python that has the packages beside the program."""
    python = program.parent / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho x >> "{program.parent}/starts"\n{script}\n')
    python.chmod(0o755)
    return python


def starts(program: pathlib.Path) -> int:
    file = program.parent / "starts"
    return len(file.read_text().split()) if file.exists() else 0


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.strip()


def test_without_packages_one_sentence_says_what_to_run(program: pathlib.Path) -> None:
    venv = f"'{program.parent}/venv'"
    assert sentence(start(WITHOUT, str(program), "run")) == (
        "citrixagent lacks Python packages (click, cryptography, requests, yaml): "
        f"python3 -m venv {venv} && '{program.parent}/venv/bin/pip' install -r "
        f"'{program.parent}/requirements.txt'"
    )


def test_the_venv_beside_the_program_is_found(program: pathlib.Path) -> None:
    """Through a link as well, with all arguments, and nothing of it is left in the environment."""
    make_venv(program)
    link = program.parent.parent / "agent"
    link.symlink_to(program)
    done = start(WITHOUT, str(link), "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert starts(program) == 1
    done = start(WITHOUT, str(link), "--home", "/no such folder", "run", "x y")
    assert "there is no folder /no such folder" in done.stderr
    done = start([sys.executable], str(program), "--version")
    assert (done.returncode, starts(program)) == (0, 2)


@pytest.mark.parametrize(
    "script", [f'exec {sys.executable} -S "$@"', f'unset x; {sys.executable} -S "$@"']
)
@pytest.mark.sample(2)
def test_a_venv_that_lacks_the_packages_too_is_tried_once(
    program: pathlib.Path, script: str
) -> None:
    make_venv(program, script)
    told = sentence(start(WITHOUT, str(program), "run"))
    assert told.endswith(
        f"'{program.parent}/venv/bin/pip' install -r '{program.parent}/requirements.txt'"
    )
    assert "python3 -m venv" not in told
    assert starts(program) == 1


@pytest.mark.parametrize("place", ["venv", "venv/bin", "venv/bin/python"])
@pytest.mark.sample(3)
def test_a_venv_that_others_can_write_is_not_used(program: pathlib.Path, place: str) -> None:
    make_venv(program)
    (program.parent / place).chmod(0o777)
    assert "nobody but root and the program's owner can write" in sentence(
        start(WITHOUT, str(program), "run")
    )
    assert starts(program) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("place", ["venv", "venv/bin", "venv/bin/python"])
@pytest.mark.sample(3)
def test_a_venv_of_somebody_else_is_not_used(program: pathlib.Path, place: str) -> None:
    make_venv(program)
    os.chown(program.parent / place, 12345, 12345)
    sentence(start(WITHOUT, str(program), "run"))
    assert starts(program) == 0
    os.chown(program, 12345, 12345)  # unless it is the program's owner
    assert start(WITHOUT, str(program), "--version").returncode == 0


def test_a_system_without_fcntl() -> None:
    code = (
        "import runpy, sys; sys.modules['fcntl'] = None; sys.argv[1:] = ['run']; "
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    )
    told = sentence(start([sys.executable, "-c", code]))
    assert told == "citrixagent needs Linux or another Unix: this system has no fcntl"


def _python(version: str) -> str:
    """Return an interpreter that works, also one of pyenv's; skip where there is none."""
    others = pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for path in (shutil.which(f"python{version}"), *map(str, others)):
        if (
            path
            and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return path
    pytest.skip(f"there is no Python {version}")


@pytest.mark.parametrize("version", ["3.8", "3.9"])
@pytest.mark.sample(2)
def test_an_old_python_is_told_in_a_sentence(program: pathlib.Path, version: str) -> None:
    words = [_python(version), str(program), "run"]
    told = sentence(start(words))
    assert told.startswith("citrixagent needs Python 3.10 or newer, and ")
    make_venv(program)
    assert start([*words[:2], "--version"]).returncode == 0


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7"])
@pytest.mark.sample(2)
def test_a_very_old_python_shows_a_line_that_says_why(version: str) -> None:
    done = start([_python(version), str(PROGRAM), "run"])
    assert done.returncode == 1
    assert "# needs Python 3.10\n" in done.stderr


def test_v_is_taken_behind_the_command_as_well(lab: Lab) -> None:
    lab.write_profile()
    for arguments in (["-v", "run", "--dry-run"], ["run", "-v", "--dry-run"], ["run", "-vv"]):
        assert "logged in" in lab(*arguments).stderr
    assert lab("run").stderr == ""
    more = lab("-v", "list", "-v").stderr
    assert " DEBUG " in more


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.sample(3)
def test_commands_and_profile_names_are_completed(lab: Lab, shell: str) -> None:
    for name in ("www", "web", "mail"):
        lab.write_profile(name)
    lab.write_yaml("appliances/ns-prod.yaml", lab.citrix())
    words = {
        ("list", "w"): {"web", "www"},
        ("revoke", "m"): {"mail"},
        ("discover", "n"): {"ns-prod"},
        ("re",): {"renew", "replace", "revoke"},
    }
    source = [sys.executable, str(PROGRAM)]
    variable = "_CITRIXAGENT_PY_COMPLETE"
    script = start(source, environment={variable: f"{shell}_source", "PATH": os.environ["PATH"]})
    assert (script.returncode, "citrixagent.py" in script.stdout) == (0, True)
    for typed, expected in words.items():
        environment = {variable: f"{shell}_complete", "CITRIXAGENT_HOME": str(lab.home)}
        environment |= {"COMP_WORDS": " ".join(["citrixagent.py", *typed])}
        environment |= {"COMP_CWORD": typed[-1] if shell == "fish" else str(len(typed))}
        done = start(source, environment=environment)
        found = {word for line in done.stdout.splitlines() for word in re.split("[,\t]", line)}
        assert found >= expected, done.stderr
        assert not {"www", "mail", "ns-prod"} & found - expected
