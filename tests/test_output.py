"""What people read: lines, their order, dry runs, progress, colour, width, and the log."""

from __future__ import annotations

import json
import re

import pytest
from conftest import Lab
from simulators.server import Fault, Response

from citrixagent import Awaited, clipped, one_line, table, text_width, visible


def second(lab: Lab, name: str, **changes: object) -> None:
    """Add a profile with a virtual server and a name of its own."""
    if f"vs_{name}" not in lab.appliance.virtual_servers:
        lab.appliance.add_virtual_server(f"vs_{name}", "load_balancing")
    block = {
        "certificate": lab.certificate(common_name=f"{name}.example.com"),
        "virtual_servers": [{"name": f"vs_{name}", "type": "load_balancing"}],
        **changes,
    }
    lab.write_profile(name, **block)


# Words of others


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain text", "plain text"),
        ("Grüße, 日本語", "Grüße, 日本語"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("txt\u202egpj.exe", "txt\\u202egpj.exe"),
        ("\u2066\u2069\u200f\u061c", "\\u2066\\u2069\\u200f\\u061c"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("half \udc80", "half \\udc80"),
        ("\U000e0041", "\\U000e0041"),
        ("line\nbreak\r\tand", "line\\nbreak\\r\\tand"),
    ],
)
def test_what_acts_is_shown_as_what_it_is(said: str, shown: str) -> None:
    assert visible(said) == shown
    assert visible(shown) == shown


def test_words_of_others_are_one_line_that_is_not_too_long() -> None:
    assert one_line("  not\n\r\n so\t\x1b[0m ") == "not so \\x1b[0m"
    assert one_line("x" * 501) == "x" * 500 + "..."


def test_no_forged_line_reaches_output_or_log(lab: Lab) -> None:
    words = "no\r\n2026-01-01T00:00:00Z INFO www: renewed\u202e\x1b[2J"
    answer = json.dumps({"code": -9, "description": words}).encode()
    lab.scm.server.faults.append(
        Fault(
            "status",
            matches=lambda request: request.path.endswith("/certificates"),
            response=Response(400, answer),
        )
    )
    lab.write_profile()
    outcome = lab("-v", "run")
    text = (lab.home / "state" / "citrixagent.log").read_text()
    for shown in (outcome.stdout, outcome.stderr, text):
        assert "\\u202e\\x1b[2J" in shown
        assert not re.search("[\x1b\u202e\r]", shown)
        assert not [line for line in shown.splitlines() if line.startswith("2026-01-01")]


# Width


def test_text_is_cut_by_the_columns_that_it_takes() -> None:
    assert (text_width("abc"), text_width("日本"), text_width("e\u0301")) == (3, 4, 1)
    assert clipped("abcdef", 6) == "abcdef"
    assert clipped("abcdefg", 6) == "abcd.."
    assert text_width(clipped("日本語日本語", 7)) <= 7
    assert clipped("abc", 1) == "."


def test_a_table_gives_up_columns_before_it_breaks() -> None:
    rows = [("NAME", "LONG", "END"), ("a" * 20, "b" * 40, "2027-01-01")]
    assert table(rows, None, ["LONG"])[1] == f"{'a' * 20}  {'b' * 40}  2027-01-01"
    narrow = table(rows, 50, ["LONG"])
    assert max(map(len, narrow)) <= 50
    assert "2027-01-01" in narrow[1]
    assert table(rows, 40, ["LONG"])[0].split() == ["NAME", "END"]
    assert max(map(len, table(rows, 20, ["LONG"]))) <= 20


# Lines


def test_failures_stand_last_and_equal_ones_are_one_line(lab: Lab) -> None:
    for name in ("api", "ftp", "mail", "shop"):
        lab.write_profile(
            name,
            certificate=lab.certificate(
                common_name=f"{name}.example.com", subject_alternative_names=None
            ),
            virtual_servers=[{"name": "vs_gone", "type": "gateway", "sni": True}],
        )
    second(lab, "www")
    outcome = lab("run")
    first, last = outcome.stdout.splitlines()
    assert first.startswith("www: enrolled, ")
    host = lab.appliance.host
    assert last.startswith(f"{host} (4 profiles: api, ftp, mail, ...): failed: {host} has no ")
    assert len(lab.json("run").document()["profiles"]) == 5


def test_two_equal_failures_are_two_lines(lab: Lab) -> None:
    lab.appliance.server.refuse()
    second(lab, "api")
    second(lab, "www")
    lines = lab("run").stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["api", "www"]
    lab.appliance.server.accept()


def test_a_dry_run_shows_what_would_change(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    names = ["example.com", "api.example.com"]
    lab.write_profile(
        certificate=lab.certificate(subject_alternative_names=names, key_type="RSA-2048")
    )
    second(lab, "new")
    lines = lab("run", "--dry-run").stdout.splitlines()
    assert lines[0] == (
        "new: would enroll (no certificate is installed): new ECDSA-P256 key, 1 order; vs_new"
    )
    assert lines[1].startswith("www: would replace (the certificate is for ")
    assert lines[1].endswith("): new RSA-2048 key, 1 order; vs_www")
    assert lines[2:] == [
        "  - 192.0.2.10, example.com, www.example.com (ECDSA-P256)",
        "  + api.example.com, example.com, www.example.com (RSA-2048)",
        "2 orders would be placed",
    ]


def test_a_dry_run_tells_repairs_and_what_would_be_finished(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.appliance.running.bindings.clear()
    assert lab("run", "--dry-run").stdout == (
        "www: would repair (not bound to vs_www): bind, save, verify, clean_up; vs_www\n"
        "0 orders would be placed\n"
    )
    assert lab("run").exit_code == 0
    lab.scm.approval = "manual"
    assert lab("renew", "www", "--wait", "0").exit_code == 5
    assert lab("run", "--dry-run").stdout.startswith(
        "www: would finish (asked for by the operator): collect, upload, install, "
    )


def test_a_dry_run_tells_once_that_scm_refuses_the_login(lab: Lab) -> None:
    """Whether a profile trips over it, or none has anything to ask."""
    lab.write_profile()
    lab.write_scm(client_secret="wrong")
    lines = lab("run", "--dry-run").text.splitlines()
    assert [line.count("SCM") > 0 for line in lines].count(True) == 1, lines
    lab.write_scm()
    assert lab("run").exit_code == 0
    lab.write_scm(client_secret="wrong")
    outcome = lab.json("run", "--dry-run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (1, "unchanged")
    assert [each["kind"] for each in outcome.document()["errors"]] == ["auth"]


def test_a_dry_run_with_nothing_to_do_says_nothing(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab("run", "--dry-run").text == ""


# On a terminal


def test_progress_names_what_is_awaited_how_long_and_the_limit(lab: Lab) -> None:
    lab.scm.issue_after = 1
    lab.write_profile()
    _, shown = lab.on_a_terminal("run", columns=120)
    assert re.search(r"www: waiting for 1 certificate, \d+ of at most \d+ s; Ctrl-C is safe", shown)
    step = rf"{lab.appliance.host}: www: create_key, \d+ of at most \d+ s; Ctrl-C is safe"
    assert re.search(step, shown)


def test_progress_ticks_while_nothing_happens() -> None:
    waiting = Awaited("waiting for 2 certificates", 100.0, 600)
    assert waiting.line(100) == "waiting for 2 certificates, 0 of at most 600 s; Ctrl-C is safe"
    assert waiting.line(161.2).startswith("waiting for 2 certificates, 61 of at most 600 s;")


def test_progress_goes_on_by_itself_during_a_slow_request(lab: Lab) -> None:
    lab.appliance.server.faults.append(
        Fault("hang", matches=lambda request: request.method == "GET", seconds=2.5)
    )
    lab.write_profile(citrix=lab.citrix(timeout=20))
    _, shown = lab.on_a_terminal("run", columns=120)
    assert re.search(r"reading, [1-9]\d* of at most \d+ s", shown)


def test_progress_is_cut_to_the_width_and_cleared_before_other_text(lab: Lab) -> None:
    lab.write_profile()
    _, shown = lab.on_a_terminal("run", columns=40)
    assert not [part for part in re.split(r"[\r\n]", shown) if "Ctrl" in part and len(part) > 39]
    before, _, after = shown.partition("www: enrolled")
    assert before.endswith("\r\x1b[32m")
    assert "of at most" not in after


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.sample(2)
def test_who_wants_no_colour_gets_neither_colour_nor_progress(
    lab: Lab, environment: dict[str, str]
) -> None:
    lab.write_profile()
    code, shown = lab.on_a_terminal("run", environment=environment)
    assert code == 0
    assert "\x1b" not in shown
    assert "of at most" not in shown
    assert "1 profile: 1 enrolled" in shown


def test_colour_says_what_became_of_a_profile(lab: Lab) -> None:
    lab.write_profile()
    assert "\x1b[32mwww: enrolled" in lab.on_a_terminal("run")[1]
    assert "\x1b[32mok " in lab.on_a_terminal("status", columns=120)[1]
    lab.appliance.server.refuse()
    assert "\x1b[31mwww: failed" in lab.on_a_terminal("run")[1]
    lab.appliance.server.accept()


def test_json_on_a_terminal_is_still_one_object(lab: Lab) -> None:
    lab.write_profile()
    _, shown = lab.on_a_terminal("run", "--json", environment={"NO_COLOR": "1"})
    assert json.loads(shown)["exit_code"] == 0


# The log


def log_of(lab: Lab) -> str:
    return (lab.home / "state" / "citrixagent.log").read_text()


def test_the_log_has_a_first_and_a_last_line_for_every_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "anna")
    lab.write_profile()
    assert lab("run", "www", "--dry-run").exit_code == 0
    lines = [line.split(" ", 2)[2] for line in log_of(lab).splitlines()]
    assert re.fullmatch(
        r"run www --dry-run: started, user \w+ \(sudo by anna\), version [\d.]+, pid \d+", lines[0]
    )
    assert re.fullmatch(r"run: ended with exit code 0 after \d+ s", lines[-1])
    lab.write("scm.yaml", "{}")
    assert lab("run").exit_code == 3
    text = log_of(lab)
    assert "ERROR" in text
    assert "run: ended with exit code 3 after" in text.splitlines()[-1]


def test_decisions_stand_in_the_log_before_they_are_done_and_orders_by_id(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    text = log_of(lab)
    (order,) = lab.scm.orders
    decided = text.index("www: decided: enrolled: no certificate is installed")
    assert decided < text.index("www: create_key done")
    assert f"www: order done, order {order.cert_id}" in text


def test_failures_stand_in_the_log_as_errors(lab: Lab) -> None:
    lab.write_profile()
    lab.appliance.server.refuse()
    assert lab("run").exit_code == 1
    assert re.search(r"Z ERROR www: failed: ", log_of(lab))
    lab.appliance.server.accept()
