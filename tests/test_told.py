"""Who is told what at the end of a run: program, mail, ping, metrics file, hooks, warnings."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import email
import email.policy
import fcntl
import json
import pathlib
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import time_machine
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from aiosmtpd.smtp import Session as SmtpSession
from conftest import PROCESS, Document, Lab, wait_until
from prometheus_client.parser import text_string_to_metric_families
from simulators import HUNG
from simulators.server import (
    Fault,
    HttpsServer,
    Request,
    Response,
    server_certificate,
    tls_context,
)

from citrixagent import (
    Channels,
    Console,
    Context,
    Interrupt,
    Programs,
    Redactor,
    Report,
    Result,
    Settings,
    Story,
    is_worth_telling,
    subject_of,
    told_after,
    with_suffix,
    within,
)

NOW = dt.datetime(2026, 11, 26, 2, 17, tzinfo=dt.timezone.utc)
MAIL_PASSWORD = 'm4il: "secret"'
VARIABLE = "PASSWORD_OF_NETSCALER"


# What is worth telling


def story(levels: dict[str, str], changed: tuple[str, ...] = ()) -> Story:
    """Return a story in which every profile in trouble has failed."""
    failed = tuple(name for name, level in levels.items() if level in {"warning", "critical"})
    return Story(levels, failed, changed, "locked" if "" in levels else "")


OK = {"www": "ok", "shop": "ok"}
WARN = {"www": "warning", "shop": "ok"}
BAD = {"www": "critical", "shop": "ok"}
BOTH = {"www": "critical", "shop": "warning"}
NIGHTS: list[tuple[dict[str, str], tuple[str, ...], str, bool, bool]] = [
    # levels, changed, subject where it is told, trouble, change
    (OK, (), "", False, False),
    (OK, ("shop",), "1 of 2 changed (shop)", False, True),
    (WARN, (), "1 of 2 failed (www)", True, True),
    (WARN, (), "", False, False),
    (BAD, (), "1 of 2 failed (www)", True, True),
    (BOTH, (), "2 of 2 failed (www, shop)", True, True),
    (BOTH, (), "", False, False),
    (BAD, (), "1 of 2 failed (www)", True, True),
    (OK, ("www",), "all 2 well again", True, True),
    (OK, (), "", False, False),
]


@pytest.mark.parametrize("when", ["trouble", "change", "always"])
def test_ten_nights(when: str) -> None:
    """Trouble is told when it begins, changes and ends, not every night."""
    told: dict[str, Document] = {}
    for number, (levels, changed, subject, in_trouble, in_change) in enumerate(NIGHTS):
        now = NOW + dt.timedelta(days=number)
        what = story(levels, changed)
        expected = {"trouble": in_trouble, "change": in_change, "always": True}[when]
        assert is_worth_telling(when, what, told, now) == expected, number
        if expected:
            if subject:
                assert subject_of(what, told) == f"citrixagent: {subject}"
            told = told_after(what, told, now)


def test_trouble_that_lasts_is_told_every_seventh_day() -> None:
    told: dict[str, Document] = {}
    days = []
    for number in range(22):
        now = NOW + dt.timedelta(days=number, minutes=number % 3)
        if is_worth_telling("trouble", story(BAD), told, now):
            days.append(number)
            told = told_after(story(BAD), told, now)
    assert days == [0, 7, 14, 21]


def test_only_what_a_command_handled_is_compared() -> None:
    told = told_after(story(BOTH), {}, NOW)
    alone = story({"shop": "warning"})
    assert not is_worth_telling("trouble", alone, told, NOW)
    mended = story({"shop": "ok"}, ("shop",))
    assert is_worth_telling("trouble", mended, told, NOW)
    assert subject_of(mended, told) == "citrixagent: all 1 well again"
    after = told_after(mended, told, NOW)
    assert set(after) == {"www"}
    assert not is_worth_telling("trouble", story(BAD), after, NOW)


def test_what_belongs_to_no_profile_is_a_profile_without_a_name() -> None:
    locked = story({"": "warning"})
    assert is_worth_telling("trouble", locked, {}, NOW)
    assert subject_of(locked, {}) == "citrixagent: 1 of 1 failed (locked)"
    told = told_after(locked, {}, NOW)
    assert is_worth_telling("trouble", story({**OK, "": "ok"}), told, NOW)


def test_subjects() -> None:
    look = Story({"www": "warning", "shop": "ok"})
    assert subject_of(look, {}) == "citrixagent: 1 of 2 need a look (www)"
    assert subject_of(Story(OK), {}) == "citrixagent: 2 unchanged"
    many = story({f"p{n:02}": "critical" for n in range(12)})
    names = ", ".join(f"p{n:02}" for n in range(10))
    assert subject_of(many, {}) == f"citrixagent: 12 of 12 failed ({names}, and 2 more)"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://hc.example.com/ping/uuid", "https://hc.example.com/ping/uuid/start"),
        ("https://hc.example.com/ping/uuid/", "https://hc.example.com/ping/uuid/start"),
        ("https://hc.example.com/p?key=a/b", "https://hc.example.com/p/start?key=a/b"),
        ("https://hc.example.com", "https://hc.example.com/start"),
    ],
)
def test_the_suffix_of_a_ping(url: str, expected: str) -> None:
    assert with_suffix(url, "/start") == expected


# Real servers


@dataclasses.dataclass
class Mailbox:
    """A mail server that keeps what it gets."""

    letters: list[email.message.EmailMessage] = dataclasses.field(default_factory=list)
    logins: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    answer: str = "250 OK"
    pause: float = 0

    async def handle_DATA(self, _server: SMTP, _session: SmtpSession, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        if self.answer.startswith("250"):
            letter = email.message_from_bytes(content, policy=email.policy.default)
            assert isinstance(letter, email.message.EmailMessage)
            self.letters.append(letter)
        return self.answer

    def authenticate(
        self, _server: SMTP, _session: SmtpSession, _envelope: Envelope, _how: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=data.password.decode() == MAIL_PASSWORD, handled=False)

    @property
    def subjects(self) -> list[str]:
        return [str(letter["Subject"]) for letter in self.letters]


@contextlib.contextmanager
def mail_server(box: Mailbox, security: str = "none", *hosts: str) -> Iterator[int]:
    context = tls_context([server_certificate(*hosts)])
    options: Document = {"authenticator": box.authenticate}
    if security == "starttls":
        options |= {"tls_context": context, "require_starttls": True, "auth_required": True}
    elif security == "none":
        options |= {"auth_require_tls": False}
    else:
        options |= {"auth_require_tls": False}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=port,
        ssl_context=context if security == "tls" else None,
        ready_timeout=20,
        **options,
    )
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


@contextlib.contextmanager
def ping_server() -> Iterator[HttpsServer]:
    server = HttpsServer(lambda _request: Response(200, b"OK"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab with one profile, whose machine trusts the tests' authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(lab.ca_file))
    lab.write_profile()
    return lab


def settings(lab: Lab, **blocks: object) -> None:
    lab.write_yaml("agent.yaml", blocks)


def mail(port: int, **changes: object) -> Document:
    block = {
        "to": ["pki@example.com", "ops@example.com"],
        "from": "citrixagent@example.com",
        "server": f"127.0.0.1:{port}",
        "security": "none",
        **changes,
    }
    return {"when": "always", "mail": block}


def program(lab: Lab, code: str) -> str:
    """Write a program that is run as a hook, and return the command for it."""
    path = lab.write("hook.py", f"#!{sys.executable}\n{code}", mode=0o700)
    return str(path)


RECORD = """
import json, os, pathlib, sys
data = json.load(sys.stdin)
keep = {k: v for k, v in os.environ.items() if k.startswith(("CITRIXAGENT_", "PASSWORD", "CRED"))}
with open("told.jsonl", "a") as file:
    json.dump({"data": data, "env": keep, "cwd": os.getcwd(), "argv": sys.argv[1:]}, file)
    file.write("\\n")
"""


def recorded(lab: Lab) -> list[Document]:
    file = lab.home / "told.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def warnings_of(lab: Lab, *arguments: str) -> list[str]:
    found = lab.json(*arguments).document()["warnings"]
    assert isinstance(found, list)
    return found


# Mail


def test_a_mail_tells_what_the_run_printed(told: Lab) -> None:
    box = Mailbox()
    with mail_server(box) as port:
        settings(told, notify=mail(port))
        outcome = told("run")
    assert outcome.exit_code == 0
    (letter,) = box.letters
    assert letter["Subject"] == "citrixagent: 1 of 1 changed (www)"
    assert letter["From"] == "citrixagent@example.com"
    assert letter["To"] == "pki@example.com, ops@example.com"
    assert letter["Date"]
    assert str(letter["Message-ID"]).endswith("@example.com>")
    body = letter.get_content()
    assert outcome.stdout.strip() in body
    assert "1 profile: 1 enrolled" in body


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.sample(2)
def test_mail_with_a_login_over_tls(told: Lab, security: str) -> None:
    box = Mailbox()
    told.write("smtp_password", MAIL_PASSWORD)
    login = {"username": "u", "password_file": "smtp_password", "security": security}
    with mail_server(box, security) as port:
        settings(told, notify=mail(port, **login))
        outcome = told("run")
        assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert box.subjects == ["citrixagent: 1 of 1 changed (www)"]
    assert box.logins == [("u", MAIL_PASSWORD)]


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.sample(2)
def test_a_mail_server_with_a_certificate_for_another_name_gets_nothing(
    told: Lab, security: str
) -> None:
    box = Mailbox()
    told.write("smtp_password", MAIL_PASSWORD)
    login = {"username": "u", "password_file": "smtp_password", "security": security}
    with mail_server(box, security, "mail.example.com") as port:
        settings(told, notify=mail(port, **login))
        outcome = told.json("run")
    assert outcome.exit_code == 0
    (warning,) = outcome.document()["warnings"]
    assert warning.startswith(f"notify.mail: 127.0.0.1:{port}: ")
    assert "certificate" in warning or "mismatch" in warning
    assert (box.letters, box.logins) == ([], [])


def test_without_the_tls_that_was_asked_for_nothing_is_sent(told: Lab) -> None:
    box = Mailbox()
    with mail_server(box) as port:
        settings(told, notify=mail(port, security="starttls"))
        (warning,) = warnings_of(told, "run")
    assert "does not offer what notify.mail.security" in warning
    assert box.letters == []


def test_a_mail_that_failed_is_sent_by_the_next_run(told: Lab) -> None:
    box = Mailbox(answer="451 try again later")
    with mail_server(box) as port:
        settings(told, notify={**mail(port), "when": "change"})
        outcome = told("run")
        assert outcome.exit_code == 0
        assert "notify.mail: 127.0.0.1" in outcome.stderr
        assert "451 try again later; the next run tries again" in outcome.stderr
        box.answer = "250 OK"
        assert told("run").exit_code == 0
        assert told("run").exit_code == 0
    assert box.subjects == ["citrixagent: 1 unchanged"]


def test_a_refused_login_is_told_without_the_password(told: Lab) -> None:
    box = Mailbox()
    told.write("smtp_password", "wrong-" + MAIL_PASSWORD)
    login = {"username": "u", "password_file": "smtp_password"}
    with mail_server(box) as port:
        settings(told, notify=mail(port, **login))
        (warning,) = warnings_of(told, "run")
    assert (
        warning
        == f"notify.mail: 127.0.0.1:{port}: the login was refused (535); the next run tries again"
    )


def test_a_mail_server_that_is_down_holds_nothing_up(told: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings(told, notify=mail(port))
    (warning,) = warnings_of(told, "run")
    assert "Connection refused" in warning


def test_a_server_that_never_answers_is_left_alone() -> None:
    """What hangs, at whatever point, is given up after its time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def ask() -> str:
            with socket.create_connection(silent.getsockname()) as connection:
                connection.recv(1)
            return ""

        assert within(0.3, ask, Interrupt()) == "no answer within 0 s"
        accepted, _ = silent.accept()
        accepted.close()


# Program


def test_the_program_gets_the_runs_object(told: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    monkeypatch.setenv(VARIABLE, "not for programs")
    told.write_profile("zzz", citrix=told.citrix(password=None, password_env=VARIABLE))
    command = f"{program(told, RECORD)} --room 'p k i' '$HOME;ls'"
    settings(told, notify={"when": "always", "command": command})
    told("run", "www")
    (seen,) = recorded(told)
    assert seen["data"]["command"] == "run"
    assert seen["data"]["profiles"][0]["outcome"] == "enrolled"
    assert seen["argv"] == ["--room", "p k i", "$HOME;ls"]
    assert seen["cwd"] == str(told.home)
    assert seen["env"] == {
        "CITRIXAGENT_EXIT_CODE": "0",
        "CITRIXAGENT_FAILED": "",
        "CITRIXAGENT_CHANGED": "www",
    }


def test_failures_are_named_to_the_program(told: Lab) -> None:
    told.write_profile("broken", citrix=None)
    settings(told, notify={"command": program(told, RECORD)})
    assert told("run").exit_code == 1
    (seen,) = recorded(told)
    assert (seen["env"]["CITRIXAGENT_EXIT_CODE"], seen["env"]["CITRIXAGENT_FAILED"]) == (
        "1",
        "broken",
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no\\x1b[31m room')", "ended with 1: no\\x1b[31m room"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
        (
            "import os; [os.write(2, b'x' * 65536) for _ in range(50)]; raise SystemExit(3)",
            "ended with 3: x",
        ),
    ],
)
@pytest.mark.sample(2)
def test_a_program_that_fails_changes_no_exit_code(told: Lab, code: str, words: str) -> None:
    settings(told, notify={"when": "always", "command": program(told, code)})
    outcome = told.json("run")
    assert outcome.exit_code == 0
    (warning,) = outcome.document()["warnings"]
    assert words in warning
    assert "the next run tries again" in warning


def test_a_program_that_is_missing_is_told(told: Lab) -> None:
    settings(told, notify={"when": "always", "command": "/no/such/program --room pki"})
    (warning,) = warnings_of(told, "run")
    assert "/no/such/program cannot be run: No such file or directory" in warning


def test_a_program_need_not_read_and_may_leave_others_behind(told: Lab) -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '20'])"
    settings(told, notify={"when": "always", "command": program(told, code)})
    outcome = told("run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")


def test_a_signal_ends_a_program_that_hangs_and_its_children(told: Lab) -> None:
    """Sixty seconds are its limit; who waits may end that at once."""
    code = (
        "import subprocess, pathlib\n"
        "pathlib.Path('runs').touch()\n"
        "subprocess.run(['sleep', '77.7'])\n"
    )
    settings(told, notify={"when": "always", "command": program(told, code)})
    with told.start("run", "--json") as process:
        wait_until((told.home / "runs").exists, process)
        with (told.home / "state" / "lock").open("r+") as lock:  # given back before
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HUNG) == 143
        assert json.loads(process.stdout.read())["profiles"][0]["outcome"] == "enrolled"
    left = subprocess.run(["pgrep", "-f", "sleep 77.7"], capture_output=True, check=False)
    assert left.stdout == b""


def test_nobody_is_told_of_a_dry_run(told: Lab) -> None:
    with ping_server() as server:
        settings(
            told,
            notify={"when": "always", "command": program(told, RECORD)},
            after_change=program(told, RECORD),
            ping_url=f"{server.url}/ping",
            metrics_file=str(told.home / "m.prom"),
        )
        assert told("run", "--dry-run").exit_code == 0
        assert server.requests == []
    assert recorded(told) == []
    assert not (told.home / "m.prom").exists()
    assert not (told.home / "state" / "told.json").exists()


def test_a_run_of_ten_nights_tells_what_is_new(told: Lab) -> None:
    """End to end, with the clock: trouble begins, lasts, is recalled after a week, and is over."""
    settings(told, notify={"command": program(told, RECORD)})
    told("run")
    assert recorded(told) == []
    told.appliance.server.refuse()
    start = dt.datetime.now(dt.timezone.utc)
    counts = []
    with time_machine.travel(start, tick=True) as clock:
        for night in range(1, 11):
            clock.move_to(start + dt.timedelta(days=night))
            if night == 10:
                told.appliance.server.accept()
            told("run")
            counts.append(len(recorded(told)))
    assert counts == [1, 1, 1, 1, 1, 1, 1, 2, 2, 3]
    codes = [each["env"]["CITRIXAGENT_EXIT_CODE"] for each in recorded(told)]
    assert codes == ["1", "1", "0"]


# Ping


def pings(server: HttpsServer) -> list[str]:
    return [str(request) for request in server.requests]


def test_a_run_is_announced_and_its_end_told(told: Lab) -> None:
    with ping_server() as server:
        settings(told, ping_url=f"{server.url}/ping/uuid?key=1")
        outcome = told("run")
        assert pings(server) == ["POST /ping/uuid/start?key=1", "POST /ping/uuid/0?key=1"]
        assert server.requests[0].body == b""
        assert outcome.stdout.strip() in server.requests[1].body.decode()
        told("run", "www")
        told("renew", "www")
        assert len(server.requests) == 2


def test_an_order_that_waits_is_told_as_well(told: Lab) -> None:
    told.scm.approval = "manual"
    with ping_server() as server:
        settings(told, ping_url=f"{server.url}/ping")
        assert told("run", "--wait", "0").exit_code == 5
        assert pings(server)[-1] == "POST /ping/0"


def test_what_kept_a_run_from_beginning_is_told_without_a_start(told: Lab) -> None:
    told("run")
    with ping_server() as server:
        settings(told, ping_url=f"{server.url}/ping")
        with (told.home / "state" / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert told("run").exit_code == 4
        (told.home / "profiles" / "www.yaml").rename(told.home / "www.yaml")
        assert told("run").exit_code == 3
        (told.home / "state" / "eula.json").unlink()
        assert told("run").exit_code == 6
        assert pings(server) == ["POST /ping/4", "POST /ping/3", "POST /ping/6"]
        assert told("run", "nobody").exit_code == 6
        assert len(server.requests) == 3


def test_a_ping_that_fails_is_tried_once_more(told: Lab) -> None:
    told("run")
    with ping_server() as server:
        settings(told, ping_url=f"{server.url}/ping")
        server.faults.append(Fault("status", 1, response=Response(503)))
        assert warnings_of(told, "run") == []
        assert len(server.requests) == 3
        server.faults.append(
            Fault("status", times=99, response=Response(302, b"", {"Location": "/x"}))
        )
        assert warnings_of(told, "run") == ["ping_url: HTTP 302", "ping_url: HTTP 302"]
        assert len(server.requests) == 7


def test_the_address_of_a_ping_is_told_to_nobody(told: Lab) -> None:
    with ping_server() as server:
        settings(told, ping_url=f"{server.url}/5ecr3t-uuid")
        server.refuse()
        outcome = told("-vv", "run")
        assert outcome.exit_code == 0
        assert "ping_url: Connection refused" in outcome.stderr
        assert "5ecr3t" not in outcome.text
        assert "5ecr3t" not in (told.home / "state" / "citrixagent.log").read_text()


def test_a_ping_goes_only_to_whom_the_system_trusts(
    told: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ping_server() as server:
        server.present("other.example.com")
        settings(told, ping_url=f"{server.url}/ping")
        found = warnings_of(told, "run")
        assert len(found) == 2
        assert server.requests == []


def test_the_body_of_a_ping_is_cut(told: Lab) -> None:
    for number in range(150):
        told.write_yaml(f"profiles/p{number:03}.yaml", {"citrix": {"host": "ü" * 40}})
    with ping_server() as server:
        settings(told, ping_url=f"{server.url}/ping")
        assert told("run").exit_code == 1
        body = server.requests[-1].body
        assert 9_000 < len(body) <= 10_000
        assert body.decode()


# Hooks


def test_a_hook_runs_for_each_profile_that_changed(told: Lab) -> None:
    settings(told, after_change=program(told, RECORD))
    told("run")
    (seen,) = recorded(told)
    assert seen["data"]["profile"] == "www"
    assert seen["data"]["outcome"] == "enrolled"
    assert seen["env"] == {"CITRIXAGENT_PROFILE": "www"}
    told("run")
    assert len(recorded(told)) == 1
    told.appliance.running.bindings.clear()
    assert told.json("run").profile()["outcome"] == "repaired"
    assert len(recorded(told)) == 1
    for command in (("renew", "www"), ("replace", "www"), ("rollback", "www")):
        assert told(*command).exit_code == 0
    outcomes = [each["data"]["outcome"] for each in recorded(told)]
    assert outcomes == ["enrolled", "renewed", "replaced", "rolled_back"]


def test_a_hook_that_failed_is_a_warning_of_its_profile_and_not_repeated(told: Lab) -> None:
    settings(told, after_change=program(told, "raise SystemExit('no')"))
    outcome = told.json("run")
    assert outcome.exit_code == 0
    (warning,) = outcome.profile()["warnings"]
    assert warning == f"after_change: {told.home}/hook.py ended with 1: no"
    assert told.json("run").profile()["warnings"] == []


def channels(lab: Lab, names: list[str], code: str, limit: float) -> tuple[Channels, Report]:
    """Return the channels of a run that renewed these profiles, with a short limit."""
    context = Context(Interrupt(), Redactor())
    report = Report("run", Console(context.redactor, quiet=True), as_json=True)
    report.results = [Result(name, outcome="renewed") for name in names]
    programs = Programs(lab.home, (), context.interrupt, limit)
    words = (program(lab, code),)
    return Channels(Settings(after_change=words), programs, None, report, context), report


def test_after_two_hooks_that_ran_out_of_time_the_rest_are_skipped(lab: Lab) -> None:
    names = [f"p{number:02}" for number in range(20)]
    code = "import time, pathlib; time.sleep(60); pathlib.Path('ended').touch()"
    hooks, report = channels(lab, names, code, 1.0)
    hooks.after_change()
    told = [warning for result in report.results for warning in result.warnings]
    stopped = [text for text in told if text.endswith("did not end in time and was stopped")]
    skipped = [text for text in told if text.startswith("after_change was skipped: it ran out of")]
    assert len(stopped) + len(skipped) == 20
    assert 2 <= len(stopped) <= 9  # of the eight that had begun, and one more at most
    assert not (lab.home / "ended").exists()


def test_at_most_eight_hooks_run_at_once(lab: Lab) -> None:
    code = (
        "import os, time\n"
        "def note(text):\n"
        "    file = os.open('order', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "    os.write(file, text)\n"
        "note(b'+')\n"
        "time.sleep(0.3)\n"
        "note(b'-')\n"
    )
    hooks, report = channels(lab, [f"p{number}" for number in range(20)], code, 60)
    hooks.after_change()
    running, most = 0, 0
    for mark in (lab.home / "order").read_text():
        running += 1 if mark == "+" else -1
        most = max(most, running)
    assert 1 < most <= 8
    assert not [result for result in report.results if result.warnings]


# The end of a run


def test_output_that_cannot_be_printed_keeps_nobody_from_being_told(told: Lab) -> None:
    settings(told, notify={"when": "always", "command": program(told, RECORD)})
    with pathlib.Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROCESS, "--home", str(told.home), "run"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 0
    assert done.stderr.decode().startswith("error: the output cannot be written: ")
    assert len(recorded(told)) == 1
    assert (told.home / "state" / "last-run.json").exists()


def test_the_order_at_the_end_of_a_run(told: Lab) -> None:
    """Results printed, written down, lock released, hook, program, ping; the JSON object last."""
    code = (
        "import fcntl, json, os, sys, urllib.request\n"
        "sys.stdin.read()\n"
        "name = 'hook' if 'CITRIXAGENT_PROFILE' in os.environ else 'program'\n"
        "with open('state/lock', 'r+') as lock:\n"
        "    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "run = json.load(open('state/last-run.json'))['run']['exit_code']\n"
        "metrics = 'citrixagent_last_run_exit_code 0' in open('m.prom').read()\n"
        "with open('order', 'a') as file:\n"
        "    file.write(f'{name} {run} {metrics}\\n')\n"
    )
    order = told.home / "order"

    def noted(request: Request) -> None:
        if not request.path.endswith("start"):
            order.write_text(order.read_text() + "ping\n")

    with ping_server() as server:
        server.before = noted
        command = program(told, code)
        settings(
            told,
            metrics_file="m.prom",
            after_change=command,
            notify={"when": "always", "command": command},
            ping_url=f"{server.url}/ping",
        )
        assert told("run").exit_code == 0
    assert order.read_text().splitlines() == ["hook 0 True", "program 0 True", "ping"]


def test_a_run_that_is_stopped_tells_nobody(told: Lab) -> None:
    told.scm.approval = "manual"
    with ping_server() as server:
        settings(
            told,
            notify={"when": "always", "command": program(told, RECORD)},
            ping_url=f"{server.url}/ping",
        )
        with told.start("run") as process:
            wait_until(lambda: bool(told.scm.orders), process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HUNG) == 143
        assert pings(server) == ["POST /ping/start"]
    assert recorded(told) == []
    last = json.loads((told.home / "state" / "last-run.json").read_text())
    assert last["run"]["exit_code"] == 143


def test_what_is_wrong_with_one_channel_is_told_by_the_others(told: Lab) -> None:
    settings(
        told,
        notify={"command": program(told, RECORD), "mail": {"to": "nobody"}},
        metrics_file=str(told.home / "m.prom"),
    )
    outcome = told.json("run")
    assert outcome.exit_code == 1
    assert outcome.profile()["outcome"] == "enrolled"
    assert {error["kind"] for error in outcome.document()["errors"]} == {"config"}
    (seen,) = recorded(told)
    assert "notify.mail" in seen["data"]["errors"][0]["message"]
    assert (told.home / "m.prom").exists()


# The metrics file


def test_the_metrics_file_is_what_status_prints(told: Lab) -> None:
    file = told.home / "m.prom"
    settings(told, metrics_file="m.prom")
    assert told("run").exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(text_string_to_metric_families(file.read_text()))
    assert file.read_text() == told("status", "--format", "prometheus").stdout
    assert told("renew", "www").exit_code == 0
    assert file.read_text() == told("status", "--format", "prometheus").stdout


def test_a_link_at_the_metrics_file_is_replaced(told: Lab, tmp_path: pathlib.Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (told.home / "m.prom").symlink_to(victim)
    settings(told, metrics_file="m.prom")
    assert told("run").exit_code == 0
    assert victim.read_text() == "precious"
    assert not (told.home / "m.prom").is_symlink()


def test_a_metrics_file_that_cannot_be_written_is_a_warning(told: Lab) -> None:
    settings(told, metrics_file="/no/such/folder/m.prom")
    outcome = told("run")
    assert outcome.exit_code == 0
    assert "warning: /no/such/folder/m.prom cannot be written: No such file" in outcome.stderr
    assert told("run").stderr == ""  # it was printed; the next time in a week
    assert len(warnings_of(told, "run")) == 1


# Warnings


def test_warnings_are_printed_when_they_are_new(told: Lab) -> None:
    told.write_profile(citrix=told.citrix(ca_bundle=None, verify=False))
    start = dt.datetime.now(dt.timezone.utc)
    shown = []
    with time_machine.travel(start, tick=True) as clock:
        for night in range(15):
            clock.move_to(start + dt.timedelta(days=night))
            shown.append(told("run").stderr.count("warning: "))
            assert told.json("run", "www").profile()["warnings"]
    assert [night for night, count in enumerate(shown) if count] == [0, 7, 14]


def test_a_warning_that_comes_back_is_new(told: Lab) -> None:
    told("run")
    told.write_profile(citrix=told.citrix(ca_bundle=None, verify=False))
    assert "warning: " in told("run").stderr
    assert told("run").stderr == ""
    told.write_profile()
    assert told("run").stderr == ""
    told.write_profile(citrix=told.citrix(ca_bundle=None, verify=False))
    assert "warning: " in told("run").stderr


def test_a_week_passes_though_the_warning_counts_days(told: Lab) -> None:
    told("run")
    told("renew", "www")
    told("rollback", "www")
    start = dt.datetime.now(dt.timezone.utc)
    shown = []
    with time_machine.travel(start, tick=True) as clock:
        for night in range(1, 9):
            clock.move_to(start + dt.timedelta(days=night))
            shown.append(told("run").stderr.count("rolled back by the operator"))
    assert shown == [1, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 1, "channels": 3}'])
@pytest.mark.sample(3)
def test_a_damaged_told_file_tells_once_more(told: Lab, text: str) -> None:
    settings(told, notify={"command": program(told, RECORD)})
    told.appliance.server.refuse()
    told("run")
    told.write("state/told.json", text)
    told("run")
    assert len(recorded(told)) == 2
    told("run")
    assert len(recorded(told)) == 2
    told.appliance.server.accept()


# The fuse


def fleet(lab: Lab, *names: str) -> None:
    for name in names:
        lab.appliance.add_virtual_server(f"vs_{name}", "load_balancing")
        lab.write_profile(
            name,
            certificate=lab.certificate(
                common_name=f"{name}.example.com", subject_alternative_names=None
            ),
            virtual_servers=[{"name": f"vs_{name}", "type": "load_balancing"}],
        )


def test_a_run_that_would_order_too_much_orders_nothing(lab: Lab) -> None:
    fleet(lab, "a", "b", "c")
    settings(lab, max_orders=2)
    outcome = lab.json("run")
    assert outcome.exit_code == 1
    for name in "abc":
        error = outcome.profile(name)["error"]
        assert error["kind"] == "state"
        assert error["message"].startswith("3 orders would be placed, max_orders is 2: ")
        assert outcome.profile(name)["steps"] == []
    assert lab.scm.orders == []
    assert not [call for call in lab.appliance.server.calls() if "action=create" in call]
    assert not list((lab.home / "state").glob("profile-*.json"))
    dry = lab("run", "--dry-run")
    assert dry.exit_code == 1
    assert "(3 profiles: a, b, c): failed: 3 orders would be placed" in dry.stdout
    assert "see what for with citrixagent.py run --dry-run a," in dry.stdout
    assert "a: would enroll" in lab("run", "--dry-run", "a").stdout
    assert lab("run", "a", "b", "c").exit_code == 0
    assert len(lab.scm.orders) == 3


def test_as_many_orders_as_are_allowed_are_placed(lab: Lab) -> None:
    fleet(lab, "a", "b", "c")
    settings(lab, max_orders=2)
    assert lab("run", "a").exit_code == 0
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 3


def test_the_fuse_lets_nothing_lapse(lab: Lab) -> None:
    """What ends in 7 days or less is renewed; what can wait is not."""
    fleet(lab, "a", "b", "c")
    assert lab("run").exit_code == 0
    settings(lab, max_orders=1)
    start = dt.datetime.now(dt.timezone.utc)
    with time_machine.travel(start + dt.timedelta(days=150), tick=True):
        assert lab("renew", "c").exit_code == 0
    with time_machine.travel(start + dt.timedelta(days=193), tick=True):
        outcome = lab.json("run")
        assert [outcome.profile(name)["outcome"] for name in "abc"] == [
            "renewed",
            "renewed",
            "unchanged",
        ]
    fleet(lab, "d", "e")
    with time_machine.travel(start + dt.timedelta(days=194), tick=True):
        outcome = lab.json("run")
        assert [outcome.profile(name)["outcome"] for name in "abcde"] == [
            "unchanged",
            "unchanged",
            "unchanged",
            "failed",
            "failed",
        ]
