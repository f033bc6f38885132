"""README, --help, the sample files and the code say the same."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import shutil
import subprocess
import sys
import typing

import click.testing
import pytest
import yaml
from conftest import PROGRAM, ROOT, Lab

import citrixagent

README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / "example_cert_config.yaml").read_text()
BLOCKS = re.findall(r"<!-- help: (\w+) -->\n```text\n(.*?)```\n<!-- /help -->", README, re.DOTALL)
GETTERS = {"get", "pairs", "secret", "section", "sections", "value", "given"}


def keys_of(*functions: str) -> set[str]:
    """Return the keys that parsing functions of the program ask for."""
    return {
        call.args[0].value
        for node in ast.parse(PROGRAM.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name in functions
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in GETTERS
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }


@functools.cache
def profile_keys() -> set[str]:
    return keys_of(
        "parse_profile",
        "parse_appliance",
        "_parse_citrix",
        "_parse_tls",
        "_parse_virtual_servers",
        "_parse_certificate",
        "_parse_certkey",
        "_parse_subject",
        "_parse_renewal",
        "_parse_enrollment",
        "_parse_verification",
    )


@pytest.mark.parametrize(("command", "text"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_the_help_in_the_readme_is_the_help(command: str, text: str) -> None:
    arguments = [] if command == "main" else [command]
    result = click.testing.CliRunner().invoke(
        citrixagent.main, [*arguments, "--help"], prog_name="citrixagent.py", terminal_width=78
    )
    assert text == result.output


def test_every_command_has_its_help_in_the_readme() -> None:
    assert {name for name, _ in BLOCKS} == {"main", *citrixagent.main.commands}


def test_the_example_names_every_key() -> None:
    named = set(re.findall(r"^[\s#-]*([a-z_]+):(?:\s|$)", EXAMPLE, re.MULTILINE))
    secrets = {"password_file", "password_env", "password_command"}
    assert named >= profile_keys() - {"password"}
    assert named & ({"password"} | secrets)


def test_the_example_is_a_profile_that_works(lab: Lab) -> None:
    """As shipped, but for where the appliance is."""
    data = yaml.safe_load(EXAMPLE)
    password = next(key for key in data["citrix"] if key.startswith("password"))
    del data["citrix"][password]
    trust = {"ca_bundle": None, "fingerprint": None, "verify": None}
    data["citrix"] = lab.citrix() | {
        key: value
        for key, value in data["citrix"].items()
        if key not in {"host", *trust, "username"}
    }
    for server in data["virtual_servers"]:
        if server["name"] not in lab.appliance.virtual_servers:
            lab.appliance.add_virtual_server(server["name"], server["type"])
        server.pop("connect", None)
    lab.write_yaml("profiles/www.yaml", data)
    outcome = lab("run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")


def test_the_example_as_shipped_only_lacks_its_password(lab: Lab) -> None:
    shutil.copy(ROOT / "example_cert_config.yaml", lab.home / "profiles" / "www.yaml")
    outcome = lab("run")
    assert outcome.exit_code == 3
    problems = outcome.stderr.splitlines()
    assert all(": citrix.password" in line or ": citrix.ca_bundle" in line for line in problems)


def test_the_scm_file_as_shipped_only_lacks_what_is_to_be_filled_in(lab: Lab) -> None:
    shutil.copy(ROOT / "scm.yaml", lab.home / "scm.yaml")
    lab.write_profile()
    outcome = lab("run")
    assert outcome.exit_code == 3
    assert outcome.stderr == (
        f"{lab.home}/scm.yaml: url: is still that of the sample: give your own\n"
        f"{lab.home}/scm.yaml: client_id: is still that of the sample: give your own\n"
        f"{lab.home}/scm.yaml: client_secret_file: names a file that does not exist; "
        f"a relative path starts from {lab.home}\n"
    )


def test_the_readme_explains_every_key() -> None:
    keys = profile_keys() | keys_of("parse_scm")
    told = re.compile(r"(?:`(?:[a-z_]+\.)?|^### )([a-z_]+)(?:[`:.]|$)", re.MULTILINE)
    missing = keys - set(told.findall(README))
    assert missing == set()


def test_the_readme_shows_every_key_of_agent_yaml() -> None:
    keys = keys_of("parse_settings", "_parse_notify", "_parse_mail", "_parse_ping")
    assert {"defaults", "when", "to"} < keys
    text = README[README.index("### agent.yaml") : README.index("## 5. Commands")]
    text += README[README.index("Being told") :]
    assert [key for key in keys if not re.search(rf"\b{key}(_file)?:|`{key}`", text)] == []


def test_the_readme_tells_every_exit_code_and_kind() -> None:
    for code in citrixagent.ExitCode:
        assert re.search(rf"^\| {code.value} \|", README, re.MULTILINE), code
    for kind in typing.get_args(citrixagent.Kind):
        assert f"`{kind}`" in README


def test_the_policy_in_the_readme_is_enough(lab: Lab) -> None:
    """The rights that the administrator copies are all that a run, a repair and a list need."""
    found = re.search(r'add system cmdPolicy citrixagent ALLOW "(.+)"', README)
    assert found
    lab.appliance.add_user("limited", "limited", found[1])
    lab.write_profile(citrix=lab.citrix(username="limited", password="limited"))
    assert lab("run").exit_code == 0
    lab.appliance.running.bindings.clear()
    assert lab("run").exit_code == 0
    assert lab("enroll", "--force", "www").exit_code == 0
    assert lab("renew", "www").exit_code == 0
    assert lab("rollback", "www").exit_code == 0
    assert lab("list", "--all").exit_code == 0


def test_the_policy_in_the_readme_is_the_one_that_advice_is_taken_from() -> None:
    assert f'ALLOW "{"|".join(citrixagent.COMMAND_POLICY)}"' in README


def test_the_readme_speaks_of_this_version() -> None:
    assert f"### {citrixagent.__version__}" in README


UNITS = re.findall(r"<!-- unit: (\S+) -->\n```ini\n(.*?)```", README, re.DOTALL)


def test_the_units_in_the_readme_are_those_of_systemd(tmp_path: pathlib.Path) -> None:
    """``systemd-analyze verify`` knows every line; no path but the program's has to exist."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    assert [name for name, _ in UNITS] == ["citrixagent.service", "citrixagent.timer"]
    for name, text in UNITS:
        own = text.replace("/opt/citrixagent/venv/bin/python", sys.executable)
        (tmp_path / name).write_text(own)
    files = [str(tmp_path / name) for name, _ in UNITS]
    done = subprocess.run([analyze, "verify", *files], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if "citrixagent" in line]
    assert (done.returncode, told) == (0, []), done.stderr


def test_the_readme_leads_to_what_it_names() -> None:
    """Each link inside leads to a heading."""
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", each.lower()).replace(" ", "-") for each in headings}
    assert {link for link in re.findall(r"\]\(#([^)]+)\)", README) if link not in anchors} == set()
