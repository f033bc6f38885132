"""README, --help, the sample files and the code say the same."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import shlex
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


def table(head: str) -> dict[str, str]:
    """Return the rows of a table of README by their first cell; its head begins like this."""
    lines = README[README.index(head) :].partition("\n\n")[0].splitlines()[2:]
    return {first: rest for first, _, rest in (line[2:-2].partition(" | ") for line in lines)}


COMMANDS = {
    usage.strip("`").split()[0]: row for usage, row in table("| command | what it does").items()
}
SHARED = table("| option | of | meaning |")


def readme_options(command: str) -> set[str]:
    """Return the options that README gives a command, in its own row or for several."""
    told = set(re.findall(r"`(--[a-z-]+)(?: [A-Z]+)?`", COMMANDS[command]))
    for options, row in SHARED.items():
        whose = row.partition(" | ")[0]
        if whose == "all" or f"`{command}`" in whose:
            told |= set(re.findall(r"`(--?[a-z-]+)", options))
    return told


def options_of(command: click.Command) -> set[str]:
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {name for option in options for name in option.opts} | {"-h", "--help"}


def test_the_readme_has_every_command_and_no_other() -> None:
    assert set(COMMANDS) == set(citrixagent.main.commands)


@pytest.mark.parametrize("name", citrixagent.main.commands)
def test_the_readme_has_every_option_of_a_command_and_no_other(name: str) -> None:
    assert readme_options(name) - {"-vv"} == options_of(citrixagent.main.commands[name])


def test_the_readme_has_every_option_of_the_program() -> None:
    told = set(re.findall(r"`(--?[a-z-]+)", " ".join(SHARED)))
    assert options_of(citrixagent.main) - told == set()


@pytest.mark.parametrize("name", citrixagent.main.commands)
def test_the_readme_tells_the_defaults_and_the_choices_of_options(name: str) -> None:
    command = citrixagent.main.commands[name]
    for option in command.params:
        if isinstance(option.type, click.Choice):
            assert [each for each in option.type.choices if f"`{each}`" not in COMMANDS[name]] == []
        elif isinstance(option.default, int) and option.default > 1:
            assert f"default {option.default}" in COMMANDS[name], option.name


def test_the_help_of_every_command_is_shown() -> None:
    for name in citrixagent.main.commands:
        result = click.testing.CliRunner().invoke(citrixagent.main, [name, "--help"])
        assert (result.exit_code, result.output[:6]) == (0, "Usage:")


def command_lines() -> set[str]:
    """Return what stands behind the program's name, in blocks and in sentences."""
    text = re.sub(r"\$\([^)]*\)", "NAME", README)
    found = re.findall(r"citrixagent\.py ([a-z-][^`\n>|;']*)", text)
    return {line.strip() for line in found}


@pytest.mark.parametrize("line", sorted(command_lines()))
def test_a_command_line_in_the_readme_is_understood(line: str) -> None:
    """It is taken apart like one that is typed; nothing is done."""
    context = click.Context(citrixagent.main)
    _, (name, *rest), _ = citrixagent.main.make_parser(context).parse_args(shlex.split(line))
    citrixagent.main.commands[name].make_context(name, rest, parent=context)


def test_every_command_has_an_example_that_is_understood() -> None:
    for name, row in COMMANDS.items():
        example = row.rpartition(" | ")[2]
        assert re.fullmatch(rf"`citrixagent\.py (-v )?{name}( .+)?`", example)
        assert example.strip("`").removeprefix("citrixagent.py ") in command_lines()


def test_what_is_told_of_a_command_has_options_of_it() -> None:
    """Where a sentence names a command with an option, the command has it."""
    names = "|".join(citrixagent.main.commands)
    for name, words in re.findall(rf"`({names})( [^`]+)`", README):
        options = set(re.findall(r"(?<= )--?[a-z-]+", words))
        assert options <= options_of(citrixagent.main.commands[name]), (name, words)


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
    told = {part for key in re.findall(r"`([a-z_.]+)`", README) for part in key.split(".")}
    assert keys - told == set()


def test_the_readme_shows_every_key_of_agent_yaml() -> None:
    keys = keys_of("parse_settings", "_parse_notify", "_parse_mail", "_parse_ping")
    assert {"defaults", "when", "to"} < keys
    text = README[README.index("### agent.yaml") :].partition("\n## ")[0]
    assert [key for key in keys if not re.search(rf"`([a-z]+\.)*{key}[`.]", text)] == []


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


def test_the_readme_fits() -> None:
    """It is short enough to be read, and no line of text is wider than 120 characters."""
    lines = README.splitlines()
    assert len(lines) <= 750
    code = re.sub(r"^ *```.*?^ *```", "", README, flags=re.DOTALL | re.MULTILINE)
    text = [line for line in code.splitlines() if not line.startswith("|")]
    assert [line for line in text if len(line) > 120] == []


def test_every_row_of_a_table_in_the_readme_has_a_cell_for_each_column() -> None:
    for rows in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE):
        head, *others = [re.split(r"(?<!\\)\|", row) for row in rows.splitlines()]
        assert [row for row in others if len(row) != len(head)] == []


def test_the_readme_leads_to_what_it_names() -> None:
    """Each link inside leads to a heading, each to a file leads to one that is there."""
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).is_file(), link
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", each.lower()).replace(" ", "-") for each in headings}
    assert {link for link in re.findall(r"\]\(#([^)]+)\)", README) if link not in anchors} == set()
