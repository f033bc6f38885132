"""The command line: agreement, lock, help, cron, JSON, logs, signals."""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shlex
import signal
import stat
import subprocess
import sys

import pytest
from conftest import PASSWORD, PROCESS, PROGRAM, Lab, wait_until
from cryptography.hazmat.primitives.asymmetric import ec
from simulators import server
from simulators.ca import Authority, to_pem
from simulators.certkeys import key_pem
from simulators.server import Fault, Response

import citrixagent


@pytest.fixture
def stranger(lab: Lab) -> Lab:
    """A lab whose agreement nobody has accepted yet, with a profile."""
    (lab.home / "state" / "eula.json").unlink()
    lab.write_profile()
    return lab


@pytest.mark.parametrize("command", [["run"], ["enroll", "www"], ["list"]])
def test_without_the_agreement_nothing_happens(stranger: Lab, command: list[str]) -> None:
    outcome = stranger(*command)
    assert outcome.exit_code == 6
    assert outcome.stderr == (
        "error: the licence agreement has not been accepted: read LICENSE.txt, then run "
        f"CITRIXAGENT_HOME={stranger.home} {PROGRAM} eula --accept\n"
    )
    assert stranger.json(*command).document()["errors"][0]["kind"] == "agreement"
    assert not stranger.appliance.server.requests


def test_the_agreement_is_accepted_once_with_hash_time_and_user(stranger: Lab) -> None:
    assert stranger("eula", "--accept").exit_code == 0
    recorded = json.loads((stranger.home / "state" / "eula.json").read_text())
    assert set(recorded) == {"sha256", "accepted", "user", "way"}
    assert stranger("run").exit_code == 0


def test_the_environment_accepts_for_unattended_installs(
    stranger: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITRIXAGENT_ACCEPT_EULA", "yes")
    assert stranger("run").exit_code == 0
    monkeypatch.delenv("CITRIXAGENT_ACCEPT_EULA")
    assert stranger("run").exit_code == 0


def test_a_changed_agreement_is_asked_for_again(stranger: Lab, tmp_path: pathlib.Path) -> None:
    """The program lies in a folder of its own here, with a licence that changes."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "citrixagent.py").write_bytes(PROGRAM.read_bytes())
    (folder / "LICENSE.txt").write_text("One")
    command = [sys.executable, str(folder / "citrixagent.py"), "--home", str(stranger.home)]

    def run(*arguments: str) -> int:
        done = subprocess.run([*command, *arguments], env={}, capture_output=True, check=False)
        return done.returncode

    assert run("eula", "--accept") == 0
    assert run("list") == 0
    (folder / "LICENSE.txt").write_text("Two")
    assert run("list") == 6
    (folder / "LICENSE.txt").unlink()
    assert run("list") == 6


def test_on_a_terminal_the_agreement_is_shown_and_asked_for(stranger: Lab) -> None:
    code, shown = stranger.on_a_terminal("run", answer="n\n")
    assert code == 6
    assert "END-USER LICENCE AGREEMENT" in shown
    code, shown = stranger.on_a_terminal("run", answer="y\n")
    assert code == 0
    assert "www: enrolled, valid until" in shown
    assert "1 profile: 1 enrolled" in shown
    code, shown = stranger.on_a_terminal("run")
    assert (code, shown.split("\r")[-2].strip()) == (0, "1 profile: 1 unchanged")


def test_progress_is_shown_while_waiting_on_a_terminal(lab: Lab) -> None:
    lab.scm.issue_after = 1
    lab.write_profile()
    _, shown = lab.on_a_terminal("run")
    assert "www: create_key" in shown
    assert "waiting for 1 certificate, " in shown


def test_eula_shows_and_asks(stranger: Lab) -> None:
    outcome = stranger("eula")
    assert outcome.exit_code == 6
    assert "END-USER LICENCE AGREEMENT" in outcome.stdout
    assert stranger.on_a_terminal("eula", answer="n\n")[0] == 6
    assert stranger.on_a_terminal("eula", answer="y\n")[0] == 0
    assert stranger("eula").exit_code == 0


def test_the_environment_accepts_for_eula_as_well(stranger: Lab) -> None:
    outcome = stranger.spawn("eula", environment={"CITRIXAGENT_ACCEPT_EULA": "yes"})
    assert (outcome.exit_code, outcome.stdout) == (0, "The licence agreement is accepted.\n")
    assert stranger("run").exit_code == 0


def test_eula_in_no_folder(lab: Lab) -> None:
    outcome = lab("--home", f"{lab.home}/no", "eula", "--accept")
    assert outcome.exit_code == 3
    assert f"there is no folder {lab.home}/no" in outcome.stderr


@pytest.mark.parametrize(("command", "code"), [("run", 3), ("check", 3), ("status", 1)])
def test_a_home_that_is_missing_is_told_and_nothing_else(lab: Lab, command: str, code: int) -> None:
    outcome = lab("--home", f"{lab.home}/no", command)
    told = outcome.stderr.removeprefix("error: ")
    assert told == f"there is no folder {lab.home}/no: name one with --home\n"
    assert (outcome.exit_code, outcome.stdout) == (code, "")


def test_the_agreement_is_recorded_as_it_stands_on_disk(lab: Lab, tmp_path: pathlib.Path) -> None:
    """Whatever its encoding and line ends: the hash is the one that sha256sum prints."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "citrixagent.py").write_bytes(PROGRAM.read_bytes())
    (folder / "LICENSE.txt").write_bytes(b"Caf\xe9\r\n")
    command = [sys.executable, str(folder / "citrixagent.py"), "--home", str(lab.home), "eula"]

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, *arguments],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    assert (run().returncode, run().stdout[:3]) == (6, b"Caf")
    assert run("--accept").returncode == 0
    recorded = json.loads((lab.home / "state" / "eula.json").read_text())
    assert recorded["sha256"] == hashlib.sha256(b"Caf\xe9\r\n").hexdigest()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", [["run"], ["eula"]])
@pytest.mark.sample(2)
def test_a_signal_ends_the_question(
    stranger: Lab, command: list[str], number: int, code: int
) -> None:
    question = "Accept? (yes, no)"
    assert stranger.on_a_terminal(*command, sent=(question, number))[0] == code
    assert stranger("list").exit_code == 6


# Cron


def test_from_cron(lab: Lab) -> None:
    """No environment, another folder, no terminal: works, and is silent when nothing changed."""
    lab.write_profile()
    first = lab.fresh("run")
    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout.startswith("www: enrolled, ")
    second = lab.fresh("run")
    assert (second.exit_code, second.text) == (0, "")


def test_home_is_where_the_program_is_also_through_a_symlink(
    lab: Lab, tmp_path: pathlib.Path
) -> None:
    for name in ("citrixagent.py", "LICENSE.txt"):
        (lab.home / name).write_bytes((PROGRAM.parent / name).read_bytes())
    link = tmp_path / "bin"
    link.symlink_to(lab.home / "citrixagent.py")
    lab.write_profile()
    done = subprocess.run(
        [sys.executable, str(link), "run"],
        env={"CITRIXAGENT_ACCEPT_EULA": "yes"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("www: enrolled, ")


def test_home_from_the_environment(lab: Lab) -> None:
    lab.write_profile()
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "run"],
        env={"CITRIXAGENT_HOME": str(lab.home)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("www: enrolled, ")


def test_proxies_and_bundles_of_the_environment_do_not_reach_the_appliance(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """~/.netrc and REQUESTS_CA_BUNDLE override nothing that was configured."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(lab.home / "nowhere.pem"))
    lab.write_profile()
    assert lab("run").exit_code == 0


def test_the_proxy_of_the_environment_is_used_for_scm(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    lab.write_profile()
    error = lab.json("run").profile()["error"]
    assert error == {
        "kind": "unreachable",
        "message": f"SCM ({lab.scm.server.host}): the proxy does not connect: Connection refused: "
        "check its address and the network between",
    }
    lab.write_scm(proxy="http://127.0.0.1:2")
    assert lab.json("run").profile()["error"]["kind"] == "unreachable"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    lab.write_scm()
    assert lab("run").exit_code == 0


def test_what_the_environment_says_to_trust_is_told_where_it_is_none(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with it, and without waiting for it: it may be a pipe."""
    key = key_pem(ec.generate_private_key(ec.SECP256R1()))
    damaged = server.authority_pem().replace("A", "B")
    files = {"empty": b"", "text": b"no PEM\n", "binary": b"\xff\x00", "key": key}
    for name, content in {**files, "damaged": damaged.encode()}.items():
        (lab.home / name).write_bytes(content)
    os.mkfifo(lab.home / "pipe")
    lab.write_profile()
    lab.write_scm(ca_bundle=None)
    for name in (*files, "damaged", "pipe", "profiles", "missing"):
        monkeypatch.setenv("SSL_CERT_FILE", str(lab.home / name))
        error = lab.json("run").profile()["error"]
        text = f"{lab.home / name} is not a PEM file of certificates: check SSL_CERT_FILE in the"
        assert error == {"kind": "config", "message": f"{text} environment"}
    assert not lab.scm.server.requests
    monkeypatch.setenv("SSL_CERT_FILE", str(lab.ca_file))
    assert lab("run").exit_code == 0


def test_nobody_learns_session_keys_from_the_environment(lab: Lab) -> None:
    lab.write_profile()
    for command, name in ((("run",), "keys"), (("list", "--served"), "not/there")):
        environment = {"SSLKEYLOGFILE": str(lab.home / name)}
        assert lab.spawn(*command, environment=environment).exit_code == 0
    assert not (lab.home / "keys").exists()


# Lock, state, log


def test_one_run_at_a_time(lab: Lab) -> None:
    lab.write_profile()
    with (lab.home / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 4711, run, since 2026-11-23T02:00:00Z\n")
        lock.flush()
        outcome = lab("run")
        assert outcome.exit_code == 4
        assert outcome.stderr == (
            "error: another run is active: process 4711, run, since 2026-11-23T02:00:00Z\n"
        )
        assert lab.json("run").document()["errors"][0]["kind"] == "locked"
        assert lab("list").exit_code == 0
    assert lab("run").exit_code == 0


def test_files_are_for_the_owner_alone(lab: Lab) -> None:
    lab.write_profile()
    old = os.umask(0)
    try:
        assert lab("run").exit_code == 0
    finally:
        os.umask(old)
    state = lab.home / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
    assert set(modes) == {
        "eula.json",
        "lock",
        "last-run.json",
        "profile-www.json",
        "citrixagent.log",
    }
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged and was left as it is"),
        ("[]", "is damaged and was left as it is"),
        ('{"version": 2}', "is damaged and was left as it is"),
        ('{"version": 1, "profile": "www"}', "is of version 1: no release wrote such"),
        (
            '{"version": 3, "profile": "www"}',
            "is of version 3: use the citrixagent.py that wrote it",
        ),
    ],
)
def test_a_record_that_cannot_be_relied_on_is_refused_and_kept(
    lab: Lab, text: str, words: str
) -> None:
    record = lab.write("state/profile-www.json", text)
    lab.write_profile()
    outcome = lab.json("run")
    assert outcome.exit_code == 1
    assert outcome.profile()["error"]["kind"] == "state"
    assert f"{record} {words}" in outcome.profile()["error"]["message"]
    assert record.read_text() == text
    assert not lab.scm.orders


def test_a_record_whose_certificate_cannot_be_read_is_refused_and_kept(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    record = lab.home / "state" / "profile-www.json"
    record.write_text(record.read_text().replace("-----BEGIN", "-----BEGONE"))
    text = record.read_text()
    error = lab.json("run").profile()["error"]
    assert error["kind"] == "state"
    assert f"{record} is damaged and was left as it is" in error["message"]
    assert record.read_text() == text
    assert len(lab.scm.orders) == 1


def test_the_log_tells_decisions_and_changes(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lines = (lab.home / "state" / "citrixagent.log").read_text().splitlines()
    texts = [line.split(" ", 2)[2] for line in lines]
    assert "www: decided: enrolled: no certificate is installed" in texts
    assert "www: bind done" in texts
    assert all(line[:20].endswith("Z") and line[4] == "-" for line in lines)


def test_a_long_log_is_put_aside_before_a_run(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    log, first = lab.home / "state" / "citrixagent.log", "x" * 1_000_001 + "\n"
    for number in range(7):
        log.write_text(f"{number}{first}")
        assert lab("run").exit_code == 0
        assert "www: unchanged, " in log.read_text()
        assert len(log.read_text()) < 10_000
    kept = sorted(log.parent.glob("citrixagent.log*"))
    assert [path.name for path in kept[1:]] == [f"citrixagent.log.{n}" for n in range(1, 6)]
    assert [path.read_text() for path in kept[1:]] == [f"{n}{first}" for n in (6, 5, 4, 3, 2)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    assert lab("run").exit_code == 0
    assert sorted(log.parent.glob("citrixagent.log*")) == kept


def test_verbosity_shows_the_log(lab: Lab) -> None:
    lab.write_profile()
    assert "create_key done" in lab("-v", "run").stderr
    assert "GET /nitro/v1/config/sslcertkey" in lab("-vv", "run").stderr


# JSON


@pytest.mark.parametrize("command", [["run"], ["run", "nobody"], ["enroll", "nobody"], ["list"]])
def test_exactly_one_json_object_whatever_happens(lab: Lab, command: list[str]) -> None:
    outcome = lab.json(*command)
    document = outcome.document()
    assert document["version"] == 1
    assert document["command"] == command[0]
    assert document["exit_code"] == outcome.exit_code in {2, 3}
    assert document["errors"][0]["kind"] == "config"


def test_list_tells_what_is_installed(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    document = lab.json("list").document()
    assert list(document)[:3] == ["version", "command", "certificates"]
    leaf = lab.scm.orders[0].leaf
    assert leaf is not None
    (told,) = document["certificates"]
    assert told == {
        "appliance": lab.appliance.host,
        "certkey": "www",
        "common_name": "www.example.com",
        "subject_alternative_names": ["www.example.com", "example.com", "192.0.2.10"],
        "issuer": leaf.issuer.rfc4514_string(),
        "serial": lab.appliance.certkeys["www"].serial,
        "key_type": "ECDSA-P256",
        "not_before": leaf.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "not_after": leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "days_left": 198,
        "virtual_servers": [{"name": "vs_www", "sni": False}],
        "profile": "www",
        "order": None,
        "managed": True,
        "state": "ok",
        "renews": told["renews"],
    }
    everything = lab.json("list", "--all").document()["certificates"]
    assert {each["certkey"]: each["managed"] for each in everything} == {
        "www": True,
        **{each.name: False for each in lab.appliance.everything() if each.name != "www"},
    }
    lines = lab("list").stdout.splitlines()
    head = "APPLIANCE CERTKEY NAMES ISSUER EXPIRES DAYS STATE RENEWS BOUND-TO PROFILE ORDER"
    assert lines[0].split() == head.split()
    end = leaf.not_valid_after_utc.strftime("%Y-%m-%d")
    assert re.split(" {2,}", lines[1]) == [
        lab.appliance.host,
        "www",
        "www.example.com, example.com, 192.0.2.10",
        "CA DV E36",
        end,
        "198",
        "ok",
        told["renews"][:10],
        "vs_www",
        "www",
        "-",
    ]


def test_list_has_its_shape_whatever_happens(stranger: Lab) -> None:
    document = stranger.json("list").document()
    assert (document["exit_code"], document["certificates"]) == (6, [])
    assert "profiles" not in document


def test_list_hides_nothing_because_of_one_record(lab: Lab) -> None:
    lab.write_profile()
    lab.write_profile("two", certificate=lab.certificate(key_type="RSA-2048"))
    record = lab.write("state/profile-two.json", "{")
    outcome = lab.json("list")
    assert outcome.exit_code == 1
    assert [each["certkey"] for each in outcome.document()["certificates"]] == ["two", "www"]
    (error,) = outcome.document()["errors"]
    assert f"{record} is damaged" in error["message"]


def test_list_names_every_certkey_once_and_its_owner(lab: Lab) -> None:
    """Whichever profiles are asked about, and however they reach the appliance."""
    lab.write_profile()
    certificate = lab.certificate(name="two", common_name="two.example.com")
    lab.appliance.add_virtual_server("vs_two", "load_balancing")
    lab.write_profile(
        "two",
        citrix=lab.citrix(timeout=7),
        certificate=certificate,
        virtual_servers=[{"name": "vs_two", "type": "load_balancing"}],
    )
    assert lab("run").exit_code == 0
    for names in ([], ["www"], ["two"]):
        rows = lab.json("list", "--all", *names).document()["certificates"]
        there = sorted(each.name for each in lab.appliance.everything())
        assert sorted(each["certkey"] for each in rows) == there
        owners = {each["certkey"]: each["profile"] for each in rows if each["managed"]}
        assert owners == {"www": "www", "two": "two"}


def test_list_shows_a_certificate_without_a_common_name(lab: Lab) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.timezone.utc)
    name = f"{'a' * 60}.example.com"  # too long for one
    leaf = Authority().certify(key.public_key(), [name], now, now + dt.timedelta(days=9))
    lab.appliance.install("www", to_pem([leaf]), key_pem(key).decode())
    lab.write_profile()
    assert f"www      {name}  " in lab("list").stdout


def test_list_names_an_appliance_that_cannot_be_asked(lab: Lab) -> None:
    lab.write_profile(citrix=lab.citrix(password="wrong"))
    outcome = lab.json("list")
    assert outcome.exit_code == 1
    assert outcome.document()["certificates"] == []
    assert outcome.document()["errors"][0]["kind"] == "auth"


# Enroll


def test_enroll_is_refused_while_a_valid_certificate_is_installed(lab: Lab) -> None:
    lab.write_profile()
    assert lab.json("enroll", "www").profile()["outcome"] == "enrolled"
    outcome = lab.json("enroll", "www")
    assert outcome.exit_code == 1
    assert outcome.profile()["error"] == {
        "kind": "state",
        "message": "a valid certificate is installed and not due (198 days left, window is 66 days)"
        ": use citrixagent.py enroll --force www to order another one all the same",
    }
    assert lab.json("enroll", "--force", "www").profile()["outcome"] == "enrolled"
    assert len(lab.scm.orders) == 2


def test_enroll_with_an_id_needs_the_order_that_it_answers(lab: Lab) -> None:
    lab.write_profile()
    lab.write_profile("two", certificate=lab.certificate(name="two"))
    outcome = lab.json("enroll", "--cert-id", "1", "www")
    assert outcome.profile()["error"] == {
        "kind": "state",
        "message": "www has no open order: its certificate 1 has no key here",
    }
    for wrong in (["1", "www", "two"], ["", "www"], [" ", "--force", "www"]):
        outcome = lab("enroll", "--cert-id", *wrong)
        assert outcome.exit_code == 2
        assert "--cert-id takes an id that SCM shows, and exactly one PROFILE" in outcome.stderr
        assert lab.json("enroll", "--cert-id", *wrong).document()["exit_code"] == 2
    assert not lab.scm.orders


def test_a_profile_by_path(lab: Lab, tmp_path: pathlib.Path) -> None:
    path = lab.write_profile()
    moved = tmp_path / "elsewhere.yml"
    path.rename(moved)
    outcome = lab.json("run", str(moved))
    assert outcome.profile("elsewhere")["outcome"] == "enrolled"


def test_a_link_to_the_home_is_another_way_to_the_same_profile(
    lab: Lab, tmp_path: pathlib.Path
) -> None:
    lab.write_profile()
    link = tmp_path / "link"
    link.symlink_to(lab.home)
    outcome = lab.json("run", str(link / "profiles" / "www.yaml"), "www")
    assert [each["outcome"] for each in outcome.document()["profiles"]] == ["enrolled"]


# Signals and start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.sample(2)
def test_a_signal_ends_the_run_in_order(lab: Lab, number: int, code: int) -> None:
    """It stops waiting, logs out, and the next run goes on."""
    lab.scm.approval = "manual"
    lab.write_profile(enrollment={"max_wait": 600})
    with lab.start("run", "--json") as process:
        wait_until(lambda: bool(lab.scm.orders), process)
        process.send_signal(number)
        outcome = lab.ended(process)
    assert (outcome.exit_code, outcome.stderr) == (code, "")
    assert outcome.document()["exit_code"] == code
    assert not lab.appliance.sessions
    lab.scm.orders[0].approve()
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def test_what_was_not_looked_at_when_a_signal_came_says_so(lab: Lab) -> None:
    lab.write_profile()
    with lab.start("run", "--json") as process:
        lab.appliance.server.before = lambda request: (
            process.send_signal(signal.SIGTERM) if request.number == 2 else None
        )
        profile = lab.ended(process).profile()
    text = "interrupted before it was looked at: the next run goes on from here"
    assert (profile["outcome"], profile["error"]["message"]) == ("failed", text)


FULL = "error: the output cannot be written: No space left on device\n"


def to_a_full_disk(lab: Lab, words: str) -> tuple[int, str]:
    command = shlex.join([*PROCESS, "--home", str(lab.home)])
    done = subprocess.run(
        ["/bin/sh", "-c", f"{command} {words} >/dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words",
    ["-h", "--version", "run -h", "eula", "status --json", "status", "list", "check --json"],
)
@pytest.mark.sample(3)
def test_what_cannot_be_printed_is_an_error_in_one_line(lab: Lab, words: str) -> None:
    lab.write_profile()
    assert to_a_full_disk(lab, words) == (1, FULL)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
@pytest.mark.sample(3)
def test_closed_standard_streams_are_no_reason_to_fail(lab: Lab, closed: str) -> None:
    lab.write_profile()
    command = shlex.join([*PROCESS, "--home", str(lab.home), "run"])
    done = subprocess.run(
        ["/bin/sh", "-c", f"{command} {closed}"], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(lab.scm.orders) == 1


def test_a_run_does_its_work_though_its_output_cannot_be_written(lab: Lab) -> None:
    lab.write_profile()
    assert to_a_full_disk(lab, "run") == (0, FULL)
    assert len(lab.scm.orders) == 1
    assert to_a_full_disk(lab, "run") == (0, "")


def test_words_of_others_stay_in_one_line(lab: Lab) -> None:
    answer = b'{"code": -9, "description": "not\\n\\u001b[31mso"}'
    refused = Fault(
        "status", matches=lambda r: r.path.endswith("/certificates"), response=Response(400, answer)
    )
    lab.scm.server.faults.append(refused)
    lab.write_profile()
    outcome = lab("run")
    assert outcome.stdout.count("\n") == 1
    assert "not \\x1b[31mso (code -9)" in outcome.stdout
    log_text = (lab.home / "state" / "citrixagent.log").read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:]+Z ", line) for line in log_text.splitlines())


@pytest.mark.parametrize("part", ["/lbvserver", "/sslcertkey", "sslvserver_sslcertkey_binding"])
@pytest.mark.sample(3)
def test_a_signal_while_the_appliance_is_looked_at_is_told(lab: Lab, part: str) -> None:
    """Not as a profile that is well."""
    lab.write_profile()
    with lab.start("run", "--json") as process:
        lab.appliance.server.before = lambda request: (
            process.send_signal(signal.SIGTERM)
            if request.method == "GET" and part in request.path
            else None
        )
        outcome = lab.ended(process)
    lab.appliance.server.before = None
    told = outcome.profile()
    assert (outcome.exit_code, told["outcome"]) == (143, "failed")
    assert told["error"]["kind"] == "state"
    assert told["error"]["message"].startswith("interrupted before ")
    assert lab("run").exit_code == 0


def test_a_signal_while_the_order_is_sent_loses_nothing(lab: Lab) -> None:
    lab.write_profile()
    with lab.start("run") as process:
        lab.scm.server.before = lambda request: (
            process.send_signal(signal.SIGTERM)
            if str(request) == "POST /api/v1/certificates"
            else None
        )
        lab.ended(process)
    lab.scm.server.before = None
    assert process.returncode == 143
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def test_help_is_fast() -> None:
    """Heavy imports stand where they are used."""
    command = [sys.executable, "-X", "importtime", str(PROGRAM), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", shown.stderr, re.MULTILINE))
    assert "click" in imported
    assert not imported & {"cryptography", "requests", "urllib3", "yaml"}


def test_an_unexpected_error_of_one_profile_is_nobody_elses(lab: Lab) -> None:
    """An answer that no release gives: its traceback goes to the log only."""
    lab.write_profile("www")
    lab.scm.server.faults.append(
        Fault("status", matches=lambda request: "openid" in request.path, times=1)
    )
    assert lab("run").exit_code in {0, 1}
    assert PASSWORD not in (lab.home / "state" / "citrixagent.log").read_text()


def test_eula_after_acceptance_says_when_and_by_whom_and_asks_nothing(lab: Lab) -> None:
    told = json.loads((lab.home / "state" / "eula.json").read_text())
    expected = f"was accepted at {told['accepted']} by {told['user']} (eula --accept)"
    for arguments in ((), ("--accept",)):
        outcome = lab("eula", *arguments)
        assert (outcome.exit_code, expected in outcome.stdout) == (0, True)
        assert len(outcome.stdout.splitlines()) == 1
    code, shown = lab.on_a_terminal("eula")
    assert (code, expected in shown, "Accept?" in shown) == (0, True, False)


def test_the_help_fits_a_screen(lab: Lab) -> None:
    """24 lines of 80 columns, and a line for the prompt."""
    for command in ([], *([name] for name in citrixagent.main.commands)):
        lines = lab(*command, "--help").stdout.splitlines()
        assert len(lines) < 24, command
        assert max(map(len, lines)) <= 80, command
