"""Secrets and files: where a secret may come from, who sees it, and what no file may be."""

from __future__ import annotations

import html
import json
import os
import pathlib
import random
import re
import shutil
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator

import pytest
from conftest import CLIENT_SECRET, PASSWORD, ROOT, Lab
from simulators.server import Response

import citrixagent as agent

SECRET = "hunter2"
HIDDEN = "not shown, for it may hold a value: is a blank missing behind its colon?"


def problems(lab: Lab, *arguments: str) -> list[str]:
    """Run, which fails for the configuration alone; return what is told, in text and JSON alike."""
    before = len(lab.appliance.server.requests + lab.scm.server.requests)
    plain, told = lab("run", *arguments), lab.json("run", *arguments)
    assert len(lab.appliance.server.requests + lab.scm.server.requests) == before
    document = told.document()
    errors = [each["error"] for each in document["profiles"]] + document["errors"]
    assert {error["kind"] for error in errors} == {"config"}
    assert SECRET not in plain.text + told.text
    lines = [line for error in errors for line in error["message"].split("\n")]
    assert plain.stderr.splitlines() == lines
    return [line.replace(f"{lab.home}/", "") for line in lines]


def works(lab: Lab) -> None:
    outcome = lab.json("run", "--dry-run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "planned")


def password(lab: Lab, **ways: object) -> None:
    lab.write_profile(citrix=lab.citrix(**{"password": None, **ways}))


# ----- Where secrets come from --------------------------------------------------------------------


@pytest.mark.parametrize("start", ["$CREDENTIALS_DIRECTORY", "${CREDENTIALS_DIRECTORY}"])
def test_credentials_that_systemd_hands_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    folder = lab.home / "credentials"
    folder.mkdir()
    (folder / "ns").write_text(PASSWORD)
    (folder / "scm").write_text(CLIENT_SECRET)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    password(lab, password_file=f"{start}/ns")
    lab.write_scm(client_secret=None, client_secret_file=f"{start}/scm")
    works(lab)


def test_credentials_without_systemd(lab: Lab) -> None:
    password(lab, password_file="$CREDENTIALS_DIRECTORY/ns")
    assert problems(lab) == [
        "profiles/www.yaml: citrix.password_file: begins with $CREDENTIALS_DIRECTORY, which is not "
        "set: a systemd unit sets it with LoadCredential="
    ]


@pytest.mark.parametrize("path", ["x/$CREDENTIALS_DIRECTORY/ns", "$CREDENTIALS_DIRECTORY_2/ns"])
def test_no_other_variable_and_no_other_place_is_expanded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(lab.home))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY_2", str(lab.home))
    lab.write("ns", PASSWORD)
    password(lab, password_file=path)
    (problem,) = problems(lab)
    assert "names a file that does not exist" in problem


@pytest.mark.parametrize(
    "secret", ["a\u2028b", "a\u0085b", "a\u2029b", "  blanks  ", "\u00a0no break", "tail\u2028"]
)
@pytest.mark.parametrize("ending", ["", "\n", "\r\nmore", "\nmore\n"])
@pytest.mark.sample(5)
def test_only_a_line_break_ends_a_secret(lab: Lab, secret: str, ending: str) -> None:
    lab.appliance.add_user("other", secret)
    (lab.home / "ns.secret").write_bytes((secret + ending).encode())
    (lab.home / "ns.secret").chmod(0o600)
    password(lab, username="other", password_file="../ns.secret")
    works(lab)
    password(lab, username="other", password_command="cat ../ns.secret")
    works(lab)


@pytest.mark.parametrize("sign", ["\v", "\f", "\x1c", "\x1e", "\r", "\0"])
def test_a_secret_with_a_control_character_is_refused_not_cut(lab: Lab, sign: str) -> None:
    lab.write("ns.secret", f"{SECRET}{sign}x\n")
    password(lab, password_file="../ns.secret")
    (problem,) = problems(lab)
    assert problem.endswith("gives a secret with control characters or line breaks")


def test_a_secret_that_is_no_text(lab: Lab) -> None:
    (lab.home / "ns.secret").write_bytes(b"\xff\xfe")
    password(lab, password_file="../ns.secret")
    assert problems(lab)[0].endswith("names a file that is not UTF-8 text")
    password(lab, password_command="cat ../ns.secret")
    assert problems(lab)[0].endswith("names a command (cat) whose output is not UTF-8 text")


def test_a_secret_file_that_others_can_read_is_a_warning(lab: Lab) -> None:
    lab.write("my secrets", PASSWORD, 0o604)
    lab.write("scm secret", CLIENT_SECRET, 0o644)
    block = lab.citrix(password=None, password_file="../my secrets")
    lab.write_yaml("appliances/ns.yaml", block)
    lab.write_profile(citrix="ns")
    lab.write_scm(client_secret=None, client_secret_file="scm secret")
    told = lab.json("run")
    assert told.exit_code == 0
    path = f"{lab.home}/appliances/../my secrets"
    warning = f"others can read {path}, which holds a secret: chmod 600 '{path}'"
    assert told.profile()["warnings"] == [warning]
    path = f"{lab.home}/scm secret"
    warning = f"others can read {path}, which holds a secret: chmod 600 '{path}'"
    assert told.document()["warnings"] == [warning]
    for name in ("my secrets", "scm secret"):
        (lab.home / name).chmod(0o640)
    told = lab.json("run")
    assert told.profile()["warnings"] == told.document()["warnings"] == []


# ----- Commands -----------------------------------------------------------------------------------


def test_why_a_command_failed_is_told_without_what_it_printed(lab: Lab) -> None:
    script = f"echo {SECRET}; echo 'gpg: {SECRET}: no \033[31mkey' >&2; echo more >&2; exit 2"
    lab.write("bin/ask", f"#!/bin/sh\n{script}\n", 0o700)
    password(lab, password_command="../bin/ask it")
    (problem,) = problems(lab)
    text = "names a command that ended with 2 (../bin/ask): gpg: <hidden>: no "
    assert problem.startswith(f"profiles/www.yaml: citrix.password_command: {text}")
    assert "more" not in problem
    assert "\033" not in problem


def test_a_command_that_is_not_there_may_be_the_secret_itself(lab: Lab) -> None:
    password(lab, password_command=SECRET)
    assert problems(lab) == [
        "profiles/www.yaml: citrix.password_command: names a command that cannot be run: "
        "No such file or directory"
    ]


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_command_that_writes_without_end(lab: Lab, stream: str) -> None:
    password(lab, password_command=f"sh -c 'yes {SECRET} >&{stream}'")
    (problem,) = problems(lab)
    assert problem.endswith("names a command (sh) that prints more than 64 kB")


def test_a_command_ends_when_its_time_is_over_with_what_it_started(tmp_path: pathlib.Path) -> None:
    script = "sleep 300 & echo $! > child; echo begun; wait"
    ended = agent.run_program(["sh", "-c", script], tmp_path, os.environ, seconds=0.5)
    assert (ended.code, ended.output) == (None, b"begun\n")
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = pathlib.Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("what the command started is still there")


def test_a_command_may_leave_others_behind(tmp_path: pathlib.Path) -> None:
    ended = agent.run_program(["sh", "-c", "sleep 300 & echo $!"], tmp_path, os.environ)
    os.kill(int(ended.output), 9)
    assert ended.code == 0


def test_a_command_does_not_see_the_other_secrets(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file names them, broken ones and those of profiles that are not handled too."""
    names = ["SCM_SECRET", "NS_PASSWORD", "OTHER_PASSWORD", "BROKEN_PASSWORD", "PING_URL"]
    for name in (*names, "CREDENTIALS_DIRECTORY", "KEPT"):
        monkeypatch.setenv(name, CLIENT_SECRET)
    lab.write_scm(client_secret=None, client_secret_env="SCM_SECRET")
    lab.write_yaml("appliances/ns.yml", lab.citrix(password=None, password_env="NS_PASSWORD"))
    lab.write("agent.yaml", "max_orders: 5\nping_url_env: 'PING_URL'\n")
    lab.write("profiles/broken.yaml", "citrix: {password_env: BROKEN_PASSWORD, [")
    server = {"name": "vs_other", "type": "load_balancing"}
    other = lab.citrix(password=None, password_env="OTHER_PASSWORD")
    lab.write_profile("other", citrix=other, virtual_servers=[server])
    script = f"import os; open('seen', 'w').write(chr(10).join(os.environ)); print({PASSWORD!r})"
    (lab.home / "ask.py").write_text(script)
    password(lab, password_command=f"{sys.executable} ../ask.py")
    outcome = lab.json("run", "--dry-run", "www")
    assert outcome.profile()["outcome"] == "planned"
    seen = (lab.home / "profiles" / "seen").read_text().split("\n")
    assert "KEPT" in seen
    assert not {*names, "CREDENTIALS_DIRECTORY"} & {*seen}


def test_what_is_only_looked_up_fetches_no_secret(lab: Lab) -> None:
    """Whose a certkey is stands in files; for that, no other profile's command is run."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.write("agent.yaml", "defaults: {certificate: {country: GB}}\n")
    command = "sh -c 'touch fetched; echo x'"
    block = lab.citrix(password=None, password_command=command, ca_bundle="no.pem")
    lab.write_profile("other", citrix=block, certificate={"name": "theirs", "wibble": SECRET})
    lab.appliance.install("theirs", lab.ca_file.read_text())
    rows = lab.json("list", "--all", "www").document()["certificates"]
    owners = {row["certkey"]: row["profile"] for row in rows}
    assert (owners["www"], owners["theirs"]) == ("www", "other")
    lab.write_yaml("appliances/ns.yaml", lab.citrix())
    found = lab.json("discover", "ns").document()["profiles"]
    assert "theirs" not in {each["certkey"] for each in found}
    assert not (lab.home / "profiles" / "fetched").exists()


# ----- What leaves the program --------------------------------------------------------------------


def echo(lab: Lab, words: str) -> str:
    """Have SCM refuse an order with such words; return all that is told of it."""
    body = json.dumps({"code": -9, "description": words}).encode()
    lab.scm.server.rewrite = lambda request, answer: (
        Response(400, body) if request.path.endswith("/certificates") else answer
    )
    told = lab("-v", "run").text + lab.json("run").text
    state = lab.home / "state"
    told += "".join((state / name).read_text() for name in ("citrixagent.log", "last-run.json"))
    page = lab("status", "--format", "html").stdout
    return told + page


def test_a_secret_is_hidden_in_every_spelling_that_becomes_of_it(lab: Lab) -> None:
    """As it is, as others write it, with blanks folded, made visible, and cut off."""
    lab.write_profile()
    for secret in ("pa  ss\t word ", " a\u00a0b\u202e\x85c ", "q\"u\\o'te&<d>", "a+b c/d%?ü"):
        shown = secret.replace("\t", " ")
        lab.scm.add_client("other", shown)
        lab.write_scm(client_id="other", client_secret=shown)
        quoted = [urllib.parse.quote(shown, safe=""), urllib.parse.quote_plus(shown)]
        written = [shown, json.dumps(shown)[1:-1], html.escape(shown), *quoted]
        told = echo(lab, " ".join(f"<<{each}>>" for each in written))
        assert told.count("<<<hidden>>>") >= 2 * len(written), told
        for each in (*written, " ".join(shown.split()), agent.visible(shown)):
            assert each not in told
    long = "correct-horse-battery-staple"
    lab.scm.add_client("other", long)
    lab.write_scm(client_id="other", client_secret=long)
    told = echo(lab, "x" * 480 + long)
    assert "x<hidden>..." in told
    assert "corr" not in told


def test_a_proxys_password_is_hidden_as_it_is_written_and_as_it_is_meant(lab: Lab) -> None:
    for written, meant in (("p%40ss%23w%20rd", "p@ss#w rd"), ("plain-word", "plain-word")):
        lab.write_scm(proxy=f"http://someone:{written}@127.0.0.1:1")
        redactor = agent.Redactor()
        agent.Home(lab.home, redactor).load_scm()
        for spelling in (written, meant, urllib.parse.quote_plus(meant), json.dumps(meant)[1:-1]):
            assert redactor.hide(f"<{spelling}>") == "<<hidden>>"


def test_a_secret_may_be_a_word_of_the_json(lab: Lab) -> None:
    """What is read by programs stays what it is."""
    for secret in ("failed", "warn", "auth", "create_key", "profiles", "enrolled", "2026", "error"):
        lab.appliance.add_user("other", secret)
        password(lab, username="other", password=secret)
        told = lab.json("run", "--dry-run")
        plan = told.profile()
        assert (plan["outcome"], plan["steps"][0]) == ("planned", "create_key")
        agent.parse_iso(told.document()["started"])
        assert {each["status"] for each in lab.json("check").document()["checks"]} >= {"ok"}
    lab.appliance.add_user("other", "failed")
    password(lab, username="other", password="failed")
    lab.scm.server.refuse()
    assert lab.json("run").profile()["outcome"] == "failed"
    assert lab.json("status").document()["profiles"][0]["outcome"] == "failed"
    assert lab.json("list").document()["certificates"][0]["state"] == "not installed"
    lab.scm.server.accept()


# ----- What may hold a value is never told --------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"{{password:{SECRET}}}", "<line 1>: unknown key"),
        (f"{{username, {SECRET}}}", "<line 1>: unknown key"),
        (f"{{'password={SECRET}': x}}", "<line 1>: unknown key"),
        (f"{{? 'password {SECRET}' : x}}", "<line 1>: unknown key"),
        (
            f"{{password:{SECRET}, password:{SECRET}}}",
            "<line 1>: stands twice, again in line 1",
        ),
        (f"{{password_env: {SECRET}}}", "password_env: names an environment variable that is not"),
        (f"{{password_file: {SECRET}}}", "password_file: names a file that does not exist"),
        (f"{{password: [{SECRET}]}}", "password: must be text, not a list"),
        (f"{{password: {{{SECRET}: x}}}}", "password: must be text, not a list"),
    ],
)
def test_a_key_that_may_hold_a_value_is_told_by_its_line(lab: Lab, line: str, told: str) -> None:
    lab.write("profiles/www.yaml", f"citrix: {line}\n")
    (problem,) = [problem for problem in problems(lab) if told in problem]
    assert problem.endswith(HIDDEN) == ("<line 1>" in told)


def test_a_field_that_may_hold_its_value_is_told_by_its_line(lab: Lab) -> None:
    file = lab.write_profile()
    text = file.read_text().replace("max_wait: 20", f"custom_fields: {{Owner:{SECRET}}}")
    file.write_text(text)
    (problem,) = problems(lab)
    assert problem.endswith(f": unknown key; {HIDDEN}")


PROFILE = f"""\
citrix:
  host: ns1.example.com
  username: citrixagent
  password: {SECRET}
virtual_servers:
  - {{name: vs_www, type: load_balancing}}
certificate: {{common_name: www.example.com, organization: X, state: Y, country: GB}}
enrollment:
  custom_fields: {{Owner: {SECRET}}}
"""
MARKS = [
    *"{}[]&*!|>%@`'\"#,?:-=~\\\t\n\0\x85\ufeff",
    "- ",
    "? ",
    ": ",
    " :",
    "<<: ",
    "---\n",
    "...\n",
]
MARKS += [
    "!!int ",
    "!!bool ",
    "!!binary ",
    "!!timestamp ",
    "!!set ",
    "&a ",
    "*a",
    "0x",
    "%YAML 9.9\n",
]
KEYS = ["password", "password_file", "password_env", "password_command"]
KEYS += ["fingerprint", "timeout", "verify", "partition", "ssl_directory", "pass word", "<<"]


def spoilt(number: int) -> Iterator[str]:
    """Return so many profiles in which something went wrong around a secret, always the same."""
    choose = random.Random(2)
    for _ in range(number):
        text = PROFILE.replace("password:", f"{choose.choice(KEYS)}:", choose.randint(0, 1))
        for _ in range(choose.randint(1, 4)):
            secret = choose.choice([m.start() for m in re.finditer(SECRET, text)] or [0])
            place = max(0, secret + choose.randint(-14, 12))
            if secret < place < secret + len(SECRET):
                place = secret
            cut = choose.randint(0, 2) if place + 2 < secret else 0
            text = text[:place] + choose.choice(MARKS) * choose.randint(0, 1) + text[place + cut :]
        yield text


def check_spoilt(folder: pathlib.Path, number: int) -> None:
    (folder / "profiles").mkdir()
    file = folder / "profiles" / "www.yaml"
    file.touch(0o600)
    broken = 0
    for text in spoilt(number):
        file.write_text(text)
        loaded = agent.Home(folder, agent.Redactor()).load_profiles([file])
        told = "\n".join(loaded.broken.get("www", ()))
        broken += bool(told)
        assert SECRET not in told, (text, told)
    assert broken > number / 2


def test_a_secret_in_a_spoilt_profile_is_never_told(tmp_path: pathlib.Path) -> None:
    check_spoilt(tmp_path, 300)


@pytest.mark.long
def test_a_secret_in_many_spoilt_profiles_is_never_told(tmp_path: pathlib.Path) -> None:
    check_spoilt(tmp_path, 5_000)


def test_the_sample_of_scm_yaml_is_refused_as_it_is(lab: Lab) -> None:
    lab.write_profile()
    shutil.copy(ROOT / "scm.yaml", lab.home / "scm.yaml")
    lab.write("client_secret", CLIENT_SECRET)
    assert problems(lab) == [
        "scm.yaml: url: is still that of the sample: give your own",
        "scm.yaml: client_id: is still that of the sample: give your own",
    ]
    sample = (ROOT / "scm.yaml").read_text()
    (lab.home / "scm.yaml").write_text(sample.replace("your-client-id", "mine"))
    assert problems(lab) == ["scm.yaml: url: is still that of the sample: give your own"]


# ----- What no file may be ------------------------------------------------------------------------


def fifo(path: pathlib.Path) -> None:
    os.mkfifo(path, 0o600)


def device(path: pathlib.Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: pathlib.Path) -> None:
    path.touch(0o600)
    os.truncate(path, 2**21)


def folder(path: pathlib.Path) -> None:
    path.mkdir()


KINDS = {fifo: "not a regular file", device: "not a regular file", large: "larger than 1 MB"}
KINDS[folder] = "Is a directory"
UNFIT = pytest.mark.parametrize(("make", "words"), KINDS.items(), ids=[f.__name__ for f in KINDS])


@UNFIT
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("scm.yaml", ""),
        ("agent.yaml", ""),
        ("profiles/www.yaml", ""),
        ("appliances/ns.yaml", ""),
        ("ns.secret", "profiles/www.yaml: citrix.password_file: "),
        ("bundle.pem", "profiles/www.yaml: citrix.ca_bundle: "),
    ],
)
@pytest.mark.sample(3)
def test_only_regular_and_small_files_are_read(
    lab: Lab, file: str, key: str, make: Callable[[pathlib.Path], None], words: str
) -> None:
    lab.write("ns.secret", PASSWORD)
    lab.write("bundle.pem", lab.ca_file.read_text())
    lab.write_yaml("appliances/ns.yaml", lab.citrix())
    lab.write("agent.yaml", "")
    password(lab, password_file="../ns.secret", ca_bundle="../bundle.pem")
    if file.startswith("appliances"):
        lab.write_profile(citrix="ns")
    (lab.home / file).unlink()
    make(lab.home / file)
    if file.startswith("appliances") and make is not large:
        assert problems(lab)[0].startswith("profiles/www.yaml: citrix: there is no file ")
        return
    (problem,) = problems(lab)
    assert problem.startswith(key or f"{file}: ")
    assert problem.endswith(f"cannot be read: {words}")


@UNFIT
@pytest.mark.parametrize("name", ["profile-www.json", "eula.json"])
@pytest.mark.sample(3)
def test_a_record_that_is_no_file_is_not_read(
    lab: Lab, name: str, make: Callable[[pathlib.Path], None], words: str
) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    orders = len(lab.scm.orders)
    (lab.home / "state" / name).unlink()
    make(lab.home / "state" / name)
    assert lab("run").exit_code in {1, 6}
    assert len(lab.scm.orders) == orders
    path = lab.home / "state" / name
    path.rmdir() if make is folder else path.unlink()


def test_a_path_with_a_blank_can_be_pasted(tmp_path: pathlib.Path, lab: Lab) -> None:
    lab.write_profile()
    home = tmp_path / "my home"
    shutil.copytree(lab.home, home, ignore=shutil.ignore_patterns("my home"))
    (home / "scm.yaml").chmod(0o644)
    lab.home = home
    lab.accept()
    text = "client_secret: others can read this file, which holds a secret: chmod 600"
    assert lab("run").stderr == f"{home}/scm.yaml: {text} '{home}/scm.yaml'\n"


def test_a_command_with_a_name_that_has_a_blank_can_be_pasted(lab: Lab) -> None:
    lab.write_profile("my site", certificate=lab.certificate(name="www"))
    assert lab("run").exit_code == 0
    message = lab.json("enroll", "my site").profile("my site")["error"]["message"]
    assert "citrixagent.py enroll --force 'my site'" in message
