"""The benchmark itself: it is run by hand, so that it still starts is looked at here."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT


def test_the_benchmark_starts() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bench.py"), "--help"],
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    parts = "idle, enroll, slow, unreachable, revocation, estate, lateness, pair, config"
    assert parts in " ".join(done.stdout.split())
    assert not done.stderr
