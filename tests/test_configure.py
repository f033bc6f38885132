"""`configure` on a terminal: from nothing to a bound certificate, with wrong turns on the way."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator

import pexpect
import pytest
import yaml
from conftest import CLIENT_SECRET, PASSWORD, PROGRAM, Lab
from simulators.netscaler import NetScaler
from simulators.pair import HaPair
from simulators.scm import Scm

A_MINUTE = 240  # characters that a person types, with Enter


class Terminal:
    """The program on a terminal of 80 columns."""

    def __init__(self, home: pathlib.Path, *arguments: str) -> None:
        command = [str(PROGRAM), "--home", str(home), *arguments]
        environment = {"TERM": "xterm", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        self.child = pexpect.spawn(
            sys.executable,
            command,
            env=environment,
            dimensions=(24, 80),
            timeout=40,
            encoding="utf-8",
        )
        self.shown = ""
        self.typed = 0

    def see(self, text: str) -> None:
        self.child.expect_exact(text)
        self._note()

    def number_of(self, name: str) -> str:
        """Return the number that a list has for a virtual server."""
        self.child.expect(rf"(\d+)  {name} ")
        found = self.child.match
        assert isinstance(found, re.Match)
        return str(found[1])

    def _note(self) -> None:
        self.shown += str(self.child.before)

    def answer(self, question: str, answer: str) -> None:
        self.see(question)
        self.child.sendline(answer)
        self.typed += len(answer) + 1

    def end(self) -> int:
        self.child.expect(pexpect.EOF)
        self._note()
        self.child.close()
        assert self.child.exitstatus is not None
        return self.child.exitstatus

    def interrupt(self) -> int:
        time.sleep(0.5)  # a signal just before the read is seen only after it
        self.child.sendintr()
        return self.end()


@pytest.fixture
def new(tmp_path: pathlib.Path) -> Iterator[Lab]:
    """An appliance and an SCM, and a folder with what no question asks for."""
    with NetScaler() as appliance, Scm() as scm:
        scm.issue_after = 0
        appliance.add_virtual_server("vs_www", "load_balancing")
        appliance.add_virtual_server("vs_api", "content_switching")
        lab = Lab(tmp_path, appliance, scm)
        (lab.home / "profiles").rmdir()
        lab.write_yaml("scm.yaml", {"token_url": scm.token_url, "ca_bundle": "ca.pem"})
        yield lab
        lab.check_secrets()
        assert not appliance.sessions


def accept(terminal: Terminal) -> None:
    terminal.answer("Accept? (yes, no)", "yes")


def answer_scm(terminal: Terminal, lab: Lab) -> None:
    terminal.answer("API (enrollment, admin) [enrollment]: ", "")
    terminal.answer("URL [such as https://", lab.scm.url)
    terminal.answer("Client ID [", "client")
    terminal.answer("Client secret [hidden]: ", CLIENT_SECRET)


def answer_appliance(terminal: Terminal, lab: Lab) -> None:
    terminal.answer("Name [ns1]: ", "")
    terminal.answer("Host [such as ", lab.appliance.host)
    terminal.see(lab.appliance.server.fingerprint)
    terminal.answer("Trust this certificate? (yes, no): ", "yes")
    terminal.answer("User name [such as citrixagent]: ", "citrixagent")
    terminal.answer("Password [hidden]: ", PASSWORD)


def answer_profile(terminal: Terminal) -> None:
    first, second = terminal.number_of("vs_www"), terminal.number_of("vs_api")
    terminal.answer("Virtual servers [1]: ", f"{first},{second}")
    terminal.answer("Common name [such as www.example.com]: ", "www.example.com")
    terminal.answer("Other names [", "example.com, 192.0.2.10")
    terminal.answer("Organization [", "Example Ltd")
    terminal.answer("State [", "England")
    terminal.answer("Country [", "GB")
    terminal.answer("Key type [RSA-2048]: ", "ECDSA-P256")
    terminal.answer("Profile name [www.example.com]: ", "www")


def write(terminal: Terminal, *files: str) -> None:
    for file in files:
        terminal.answer(f"{file}? (yes, no): ", "yes")


def test_from_nothing_to_the_first_bound_certificate(new: Lab) -> None:
    terminal = Terminal(new.home, "configure")
    accept(terminal)
    answer_scm(terminal, new)
    answer_appliance(terminal, new)
    answer_profile(terminal)
    write(terminal, "scm.yaml", "appliances/ns1.yaml", "profiles/www.yaml")
    assert terminal.end() == 0
    assert terminal.typed < 2 * A_MINUTE
    assert CLIENT_SECRET not in terminal.shown
    assert PASSWORD not in terminal.shown
    assert "0 FAIL" in terminal.shown.splitlines()[-1]
    assert yaml.safe_load((new.home / "scm.yaml").read_text()) == {
        "token_url": new.scm.token_url,
        "ca_bundle": "ca.pem",
        "api": "enrollment",
        "url": new.scm.url,
        "client_id": "client",
        "client_secret_file": "client_secret",
    }
    assert yaml.safe_load((new.home / "appliances" / "ns1.yaml").read_text()) == {
        "host": new.appliance.host,
        "fingerprint": new.appliance.server.fingerprint,
        "username": "citrixagent",
        "password_file": "../ns1_password",
    }
    profile = yaml.safe_load((new.home / "profiles" / "www.yaml").read_text())
    assert profile["citrix"] == "ns1"
    assert [server["type"] for server in profile["virtual_servers"]] == [
        "load_balancing",
        "content_switching",
    ]
    for file in ("client_secret", "ns1_password", "scm.yaml", "profiles/www.yaml"):
        assert stat.S_IMODE((new.home / file).stat().st_mode) == 0o600
    assert (new.home / "client_secret").read_text() == f"{CLIENT_SECRET}\n"
    assert new.scm.orders == []
    assert new("run").exit_code == 0
    assert new.appliance.virtual_servers["vs_api"].handshake()
    assert new("check").exit_code == 0


def test_a_wrong_answer_is_asked_for_again(new: Lab) -> None:
    """Address, secret, certificate, password, country: each is told at once."""
    terminal = Terminal(new.home, "configure")
    terminal.answer("Accept? (yes, no)", "what")
    terminal.answer("Accept? (yes, no)", "yes")
    terminal.answer("API (enrollment, admin) [enrollment]: ", "enrolment")
    terminal.see("must be one of")
    terminal.answer("API (enrollment, admin) [enrollment]: ", "")
    terminal.answer("URL [", "http://scm.example.com")
    terminal.see("must start with https://")
    terminal.answer("URL [", "https://127.0.0.1:1")
    terminal.see("check its address")
    terminal.answer("URL [", new.scm.url)
    terminal.answer("Client ID [", "client")
    terminal.answer("Client secret [hidden]: ", "wrong-secret")
    terminal.see("SCM refused the login")
    terminal.answer("Client ID [client]: ", "")
    terminal.answer("Client secret [hidden]: ", CLIENT_SECRET)
    terminal.answer("Name [ns1]: ", "../x")
    terminal.answer("Name [ns1]: ", "")
    terminal.answer("Host [", "127.0.0.1:1")
    terminal.see("check its address")
    terminal.answer("Host [", new.appliance.host)
    terminal.answer("Trust this certificate? (yes, no): ", "no")
    terminal.answer("Host [", new.appliance.host)
    terminal.answer("Trust this certificate? (yes, no): ", "maybe")
    terminal.answer("Trust this certificate? (yes, no): ", "yes")
    terminal.answer("User name [", "citrixagent")
    terminal.answer("Password [hidden]: ", "wrong-password")
    terminal.see("login")
    terminal.answer("User name [citrixagent]: ", "")
    terminal.answer("Password [hidden]: ", PASSWORD)
    number = terminal.number_of("vs_www")
    terminal.answer("Virtual servers [1]: ", "99")
    terminal.see("from 1 to ")
    terminal.answer("Virtual servers [1]: ", number)
    terminal.answer("Common name [", "")
    terminal.see("must not be empty")
    terminal.answer("Common name [", "www example")
    terminal.answer("Common name [", "www.example.com")
    terminal.answer("Other names [", "a b")
    terminal.answer("Other names [", "")
    terminal.answer("Organization [", "Example Ltd")
    terminal.answer("State [", "England")
    terminal.answer("Country [", "England")
    terminal.see("two letters")
    terminal.answer("Country [", "GB")
    terminal.answer("Key type [RSA-2048]: ", "")
    terminal.answer("Profile name [www.example.com]: ", "")
    write(terminal, "scm.yaml", "appliances/ns1.yaml", "profiles/www.example.com.yaml")
    assert terminal.end() == 0
    assert new("check").exit_code == 0
    assert new.appliance.failed_logins == 1
    profile = yaml.safe_load((new.home / "profiles" / "www.example.com.yaml").read_text())
    assert "subject_alternative_names" not in profile["certificate"]


QUESTIONS = ["Accept?", "URL [", "Client secret", "Trust this", "Password", "Country", "scm.yaml?"]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.sample(4)
def test_an_interruption_leaves_no_half_written_file(new: Lab, question: str) -> None:
    before = {path: path.read_bytes() for path in new.home.glob("*.*")}
    terminal = Terminal(new.home, "configure")
    steps = {"Accept?": 0, "URL [": 1, "Client secret": 1, "Trust this": 2, "Password": 2}
    reached = steps.get(question, 3)
    if reached > 0:
        accept(terminal)
    if reached > 1:
        answer_scm(terminal, new)
    if reached > 2:
        answer_appliance(terminal, new)
    if question == "scm.yaml?":
        answer_profile(terminal)
    if question == "Country":
        for label, text in (("Virtual servers", ""), ("Common name", "www.example.com")):
            terminal.answer(f"{label} [", text)
        for label, text in (("Other names", ""), ("Organization", "O"), ("State", "S")):
            terminal.answer(f"{label} [", text)
    if question in {"URL [", "Client secret"}:
        terminal.answer("API (", "")
    if question == "Client secret":
        terminal.answer("URL [", new.scm.url)
        terminal.answer("Client ID [", "client")
    if question in {"Trust this", "Password"}:
        terminal.answer("Name [", "")
        terminal.answer("Host [", new.appliance.host)
    if question == "Password":
        terminal.answer("Trust this certificate? (yes, no): ", "yes")
        terminal.answer("User name [", "citrixagent")
    terminal.see(question)
    assert terminal.interrupt() == 130
    assert "Traceback" not in terminal.shown
    assert {path: path.read_bytes() for path in new.home.glob("*.*")} == before
    assert not (new.home / "appliances").exists()
    assert not (new.home / "profiles").exists()


def test_what_is_there_is_kept_unless_it_is_to_be_overwritten(new: Lab) -> None:
    new.accept()
    new.write_scm(timeout=7, check_revocation=False)
    before = (new.home / "scm.yaml").read_bytes()
    for word in ("no", "yes"):
        terminal = Terminal(new.home, "configure", "scm")
        terminal.answer("API (enrollment, admin) [enrollment]: ", "")
        terminal.answer(f"URL [{new.scm.url}]: ", "")
        terminal.answer("Client ID [client]: ", "")
        terminal.answer("Client secret [hidden]: ", CLIENT_SECRET)
        terminal.answer("scm.yaml? (yes, no): ", word)
        assert terminal.end() == 0
        assert ((new.home / "scm.yaml").read_bytes() == before) is (word == "no")
        assert (new.home / "client_secret").exists() is (word == "yes")
    written = yaml.safe_load((new.home / "scm.yaml").read_text())
    assert (written["timeout"], written["check_revocation"]) == (7, False)
    assert "client_secret" not in written


@pytest.mark.long
def test_what_no_question_asks_for_is_kept(new: Lab) -> None:
    """Also below a block; an appliance's file may have one around it all."""
    new.accept()
    new.write_scm()
    new.write_yaml("agent.yaml", {"defaults": {"certificate": {"key_type": "ECDSA-P384"}}})
    new.write("appliances/ns1.yaml", "citrix:\n  host: 127.0.0.1:1\n  ca_bundle: ../ca.pem\n")
    terminal = Terminal(new.home, "configure", "appliance")
    terminal.answer("Name [ns1]: ", "")
    terminal.answer("Host [127.0.0.1:1]: ", "")
    terminal.answer("Host [127.0.0.1:1]: ", new.appliance.host)
    terminal.answer("User name [", "citrixagent")
    terminal.answer("Password [hidden]: ", PASSWORD)
    write(terminal, "ns1.yaml")
    assert terminal.end() == 0
    assert yaml.safe_load((new.home / "appliances" / "ns1.yaml").read_text()) == {
        "host": new.appliance.host,
        "ca_bundle": "../ca.pem",
        "username": "citrixagent",
        "password_file": "../ns1_password",
    }
    new.write_profile(
        "www.example.com",
        virtual_servers=[{"name": "vs_www", "type": "gateway", "connect": "127.0.0.1:443"}],
        certificate={"name": "ours", "common_name": "old.example.com", "locality": "London"},
        renewal={"expiry_window": "20%"},
    )
    terminal = Terminal(new.home, "configure", "profile")
    terminal.answer("Virtual servers [1]: ", terminal.number_of("vs_www"))
    terminal.answer("Common name [", "www.example.com")
    for question in ("Other names [", "Organization [", "State [", "Country ["):
        terminal.answer(question, "GB" * (question == "Country ["))
        if question in {"Organization [", "State ["}:
            terminal.answer(question, "Example")
    terminal.answer("Key type [ECDSA-P384]: ", "")
    terminal.answer("Profile name [", "")
    write(terminal, "www.example.com.yaml")
    terminal.end()
    assert yaml.safe_load((new.home / "profiles" / "www.example.com.yaml").read_text()) == {
        "citrix": "ns1",
        "virtual_servers": [
            {"name": "vs_www", "type": "load_balancing", "connect": "127.0.0.1:443"}
        ],
        "certificate": {
            "common_name": "www.example.com",
            "organization": "Example",
            "state": "Example",
            "country": "GB",
            "key_type": "ECDSA-P384",
            "name": "ours",
            "locality": "London",
        },
        "renewal": {"expiry_window": "20%"},
        "enrollment": {"max_wait": 20},
    }


def test_what_is_wrong_and_not_asked_for_is_told_at_once(new: Lab) -> None:
    """It would end in a file that nobody can use."""
    new.accept()
    new.write_scm(ca_bundle="gone.pem")
    terminal = Terminal(new.home, "configure", "scm")
    terminal.answer("API (enrollment, admin) [enrollment]: ", "")
    assert terminal.end() == 3
    assert "scm.yaml: ca_bundle: there is no file" in terminal.shown


@pytest.mark.long
def test_a_pair(new: Lab) -> None:
    """One certificate can be pinned, and a standby node cannot be written to: it says what can."""
    new.accept()
    new.write_scm()
    with HaPair() as pair:
        pair.add_user("citrixagent", PASSWORD)
        pair.add_virtual_server("vs_www", "load_balancing")
        terminal = Terminal(new.home, "configure", "appliance")
        terminal.answer("Name [ns1]: ", "")
        terminal.answer("Host [", f"{pair.b.host}, {pair.a.host}")
        terminal.answer("Trust this certificate? (yes, no): ", "yes")
        terminal.see("give a SNIP with management access alone, or")
        terminal.answer("Host [", pair.b.host)
        terminal.answer("User name [", "citrixagent")
        terminal.answer("Password [hidden]: ", "mistyped")
        terminal.answer("User name [citrixagent]: ", "")
        terminal.answer("Password [hidden]: ", PASSWORD)
        terminal.see("is the standby node")
        terminal.see(f"Host [{pair.b.host}]: ")
        terminal.interrupt()
        new.write_yaml("appliances/ns1.yaml", {"ca_bundle": "../ca.pem"})
        terminal = Terminal(new.home, "configure", "appliance")
        terminal.answer("Name [ns1]: ", "")
        terminal.answer("Host [", f"{pair.b.host}, {pair.a.host}")
        terminal.answer("User name [", "citrixagent")
        terminal.answer("Password [hidden]: ", PASSWORD)
        write(terminal, "ns1.yaml")
        assert terminal.end() == 0
        written = yaml.safe_load((new.home / "appliances" / "ns1.yaml").read_text())
        assert written["host"] == [pair.b.host, pair.a.host]


def test_the_sample_is_overwritten_without_asking(new: Lab) -> None:
    new.accept()
    sample = (PROGRAM.parent / "scm.yaml").read_text()
    new.write("scm.yaml", f"{sample}\ntoken_url: {new.scm.token_url}\nca_bundle: ca.pem\n")
    terminal = Terminal(new.home, "configure", "scm")
    answer_scm(terminal, new)
    assert terminal.end() == 0
    written = yaml.safe_load((new.home / "scm.yaml").read_text())
    assert written["client_id"] == "client"
    assert written["client_secret_file"] == "client_secret"


def test_the_admin_api_offers_its_types_and_terms(new: Lab) -> None:
    new.accept()
    new.scm.admin.add_client("client", CLIENT_SECRET)
    terminal = Terminal(new.home, "configure", "scm")
    terminal.answer("API (enrollment, admin) [enrollment]: ", "admin")
    terminal.answer("URL [such as https://", new.scm.url)
    terminal.answer("Client ID [", "client")
    terminal.answer("Client secret [hidden]: ", CLIENT_SECRET)
    terminal.answer("Organization ID [such as 1234]: ", "77")
    terminal.answer("Organization ID [77]: ", "1")
    terminal.answer("Certificate type [2]: ", "9")
    terminal.answer("Certificate type [2]: ", "")
    terminal.answer("Term [199]: ", "99")
    terminal.answer("scm.yaml? (yes, no): ", "yes")
    assert terminal.end() == 0
    written = yaml.safe_load((new.home / "scm.yaml").read_text())
    assert (written["org_id"], written["cert_type"], written["term"]) == (1, 2, 99)
    new.scm.add_client("client", CLIENT_SECRET)


def test_a_second_appliance_and_a_profile_there(new: Lab) -> None:
    """Where there are several, the profile's is asked for; what others say is the default."""
    new.accept()
    new.write_scm()
    new.write_profile("one", citrix=new.citrix())
    new.write("ns1_password", PASSWORD)
    for name in ("ns1", "ns2"):
        block = new.citrix(password=None, password_file="../ns1_password")
        new.write_yaml(f"appliances/{name}.yaml", block | {"host": new.appliance.host})
        (new.home / "appliances" / f"{name}.yaml").chmod(0o600)
    with NetScaler() as second:
        second.add_user("citrixagent", PASSWORD)
        second.add_virtual_server("vs_two", "gateway")
        block = new.citrix(password=None, password_file="../ns1_password", host=second.host)
        new.write_yaml("appliances/ns2.yaml", block)
        terminal = Terminal(new.home, "configure", "profile")
        terminal.answer("Appliance [ns1]: ", "ns3")
        terminal.answer("Appliance [ns1]: ", "ns2")
        terminal.answer("Virtual servers [1]: ", terminal.number_of("vs_two"))
        terminal.answer("Common name [", "*.example.com")
        terminal.answer("Other names [", "")
        for question in ("Organization [Example Ltd]", "State [England]", "Country [GB]"):
            terminal.answer(question, "")
        terminal.answer("Key type [RSA-2048]: ", "")
        terminal.answer("Profile name [wildcard.example.com]: ", "")
        write(terminal, "profiles/wildcard.example.com.yaml")
        assert terminal.end() == 0
        assert not second.sessions


class Shell:
    """A shell on a terminal of 80 columns, in which README's lines are typed."""

    def __init__(self, folder: pathlib.Path, home: pathlib.Path, editor: str) -> None:
        self.places = {"/etc/citrixagent": str(home), "/opt/citrixagent": str(PROGRAM.parent)}
        for name, text in {
            "citrixagent.py": f'exec "{sys.executable}" "{PROGRAM}" "$@"',
            "editor": editor,
        }.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o700)
        environment = {
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
            "PS1": "ready> ",
            "PATH": f"{folder}:{os.environ['PATH']}",
            "EDITOR": "editor",
            "CITRIXAGENT_HOME": str(home),
        }
        self.child = pexpect.spawn(
            "/bin/sh", ["-i"], env=environment, dimensions=(24, 80), timeout=40, encoding="utf-8"
        )
        self.child.expect_exact("ready> ")
        self.typed = 0

    def type(self, line: str) -> None:
        self.typed += len(line) + 1
        for place, here in self.places.items():
            line = line.replace(place, here)
        self.child.sendline(line)

    def output(self) -> str:
        self.child.expect_exact("ready> ")
        return str(self.child.before)

    def paste(self, secret: str) -> None:
        """Type a secret for ``cat``: itself, Enter, Ctrl-D."""
        time.sleep(0.5)  # what is typed before the command reads is the shell's
        self.typed += len(secret) + 1
        self.child.sendline(secret)
        self.child.sendeof()


@pytest.mark.long
def test_by_hand_to_the_first_bound_certificate(new: Lab, tmp_path: pathlib.Path) -> None:
    """README's lines, with a wrong password, an untrusted certificate and Ctrl-C on the way."""
    readme = (PROGRAM.parent / "README.md").read_text()
    lines = readme.partition("### By hand\n")[2].partition("```sh\n")[2].partition("```")[0]
    *files, secrets, agreement, check = lines.splitlines()
    trusted = f"token_url: {new.scm.token_url}\\nca_bundle: ca.pem"
    editor = (
        f"sed -i 's#^url:.*#url: {new.scm.url}\\n{trusted}#;s#your-client-id#client#' \"$1\"\n"
        f"sed -i 's#^  host: .*#  host: {new.appliance.host}#' \"$2\""
    )
    folder = tmp_path / "bin"
    folder.mkdir()
    shell = Shell(folder, new.home, editor)
    for line in files:
        shell.type(line)
        assert "rror" not in shell.output()
    shell.type(secrets)
    shell.paste(CLIENT_SECRET)
    shell.paste("mistyped")
    shell.output()
    shell.type(agreement)
    shell.child.expect_exact("Accept? (yes, no)")
    shell.child.sendintr()
    shell.output()
    shell.type(agreement)
    shell.child.expect_exact("Accept? (yes, no)")
    shell.child.sendline("yes")
    shell.output()

    shell.type(check)
    found = re.search(r'fingerprint: "([0-9A-F:]{95})"', shell.output())
    assert found
    assert found[1] == new.appliance.server.fingerprint
    profile = new.home / "profiles" / "www.yaml"
    pinned = f'  fingerprint: "{found[1]}"\n  username:'
    profile.write_text(profile.read_text().replace("  username:", pinned, 1))
    shell.type(check)
    assert "password" in shell.output()
    shell.type("(umask" + secrets.rpartition("(umask")[2])
    shell.paste(PASSWORD)
    shell.output()
    shell.type(check)
    assert "0 FAIL" in shell.output()
    shell.type("citrixagent.py run")
    assert "www: enrolled" in shell.output()
    assert new.appliance.virtual_servers["vs_www"].handshake()
    edited = 2 * A_MINUTE  # for finding the lines in an editor, and typing what is one's own
    assert shell.typed + edited < 5 * A_MINUTE
    shell.type("exit")
    shell.child.expect(pexpect.EOF)
    shell.child.close()


@pytest.mark.long
def test_the_place_to_play(tmp_path: pathlib.Path) -> None:
    """`tests/demo --stay`: what its first words say to try works, and nothing stays running."""
    environment = {"TERM": "xterm", "PATH": os.environ["PATH"], "SHELL": "/bin/sh", "PS1": "$ "}
    environment["CITRIXAGENT_DEMO"] = str(tmp_path)
    child = pexpect.spawn(
        sys.executable,
        [str(PROGRAM.parent / "tests" / "demo"), "--stay"],
        env=environment,
        timeout=60,
        encoding="utf-8",
    )
    child.expect_exact("exit ends it all")
    for command, shown in {
        "citrixagent discover --write": "5 certificates without a profile; 0 left alone",
        "citrixagent run --dry-run": "5 profiles: ",
        "citrixagent renew api-v2": "api-v2: renewed",
        "citrixagent rollback api-v2": "api-v2: rolled back",
        "citrixagent list": "rolled back",
    }.items():
        child.sendline(command)
        child.expect_exact(shown)
    host = yaml.safe_load((tmp_path / "home" / "appliances" / "ns1.yaml").read_text())["host"]
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    address, port = host.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, int(port)))


def test_configure_needs_a_terminal(new: Lab) -> None:
    outcome = new("configure")
    assert outcome.exit_code == 2
    assert "needs a terminal" in outcome.stderr
