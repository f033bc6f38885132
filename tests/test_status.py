"""What the last commands saw: last-run.json, levels, and the five formats of ``status``."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import html5lib
import pytest
from conftest import PROGRAM, Document, Lab
from prometheus_client.parser import text_string_to_metric_families
from simulators.server import Fault, Response

import citrixagent
from citrixagent import Limits, iso, judge, metrics, nagios_line, overview, status_page

NOW = dt.datetime(2026, 11, 26, 2, 17, tzinfo=dt.timezone.utc)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]></style><h1>owned</h1>",
    "a'b&amp;\u202egpj.exe",
    "line\nbreak\x1b[31m",
    "x" * 240,
)


def ago(**span: float) -> str:
    return iso(NOW - dt.timedelta(**span))


def ahead(**span: float) -> str:
    return iso(NOW + dt.timedelta(**span))


def entry(days: float | None = 150, *, window: int = 66, **changes: Any) -> Document:
    """Return what last-run.json keeps of a profile that has so many days left of 199."""
    end = None if days is None else NOW + dt.timedelta(days=days, hours=1)
    known = end is not None
    return {
        "profile": "www",
        "appliance": "ns1.example.com",
        "certkey": "www_key",
        "outcome": "unchanged",
        "reason": "",
        "steps": [],
        "not_after": iso(end) if end else None,
        "not_before": iso(end - dt.timedelta(days=199)) if end else None,
        "due": iso(end - dt.timedelta(days=window)) if end else None,
        "renews": iso(end - dt.timedelta(days=window)) if end else None,
        "serial": "0A" if known else None,
        "cert_id": "1",
        "warnings": [],
        "error": None,
        "seen": ago(hours=2),
        "state": "ok" if known else "not installed",
        "order": None,
        "printed": {},
        **changes,
    }


def failure(kind: str = "unreachable", message: str = "no answer within 60 s") -> Document:
    return {"outcome": "failed", "error": {"kind": kind, "message": message}, "state": "failed"}


def order(days: float) -> Document:
    waiting = {"cert_id": "1000042", "action": "renew", "since": ago(days=days)}
    return {"order": {**waiting, "status": "pending"}, "state": "pending", "renews": None}


def run_of(hours: float = 2, code: int = 0) -> Document:
    ended = ago(hours=hours)
    return {"started": ended, "finished": ended, "exit_code": code, "last_success": ended}


def seen(
    profiles: Mapping[str, Document | None],
    run: Document | None = None,
    limits: Limits | None = None,
) -> citrixagent.Overview:
    entries = {name: {**each, "profile": name} for name, each in profiles.items() if each}
    document = {"version": 1, "run": run or run_of(), "profiles": entries}
    return overview(profiles, document, NOW, limits or Limits())


@pytest.mark.parametrize(
    ("what", "level", "remark"),
    [
        pytest.param(entry(), "ok", "", id="well"),
        pytest.param(entry(30), "ok", "", id="due, and renewed tonight"),
        pytest.param(entry(-1.5), "critical", "expired 2 days ago", id="expired"),
        pytest.param(entry(7), "critical", "7 days left", id="seven days"),
        pytest.param(entry(8), "warning", "8 days left", id="eight days and due"),
        pytest.param(entry(14), "warning", "14 days left", id="fourteen days and due"),
        pytest.param(entry(15), "ok", "", id="fifteen days"),
        pytest.param(entry(14, window=10), "ok", "", id="fourteen days and not due"),
        pytest.param(entry(7, window=5), "critical", "7 days left", id="seven days and not due"),
        pytest.param(entry(150, state="revoked"), "critical", "revoked", id="revoked"),
        pytest.param(entry(None), "critical", "not installed", id="not installed"),
        pytest.param(
            entry(150, **failure()),
            "warning",
            "failed, unreachable: no answer within 60 s",
            id="failed",
        ),
        pytest.param(
            entry(14, window=10, **failure()),
            "critical",
            "failed, unreachable: no answer within 60 s",
            id="failed with little left",
        ),
        pytest.param(
            entry(None, **failure("config", "a: b\nc: d")),
            "critical",
            "failed, config: a: b (and 1 more)",
            id="failed, nothing known of a certificate",
        ),
        pytest.param(entry(60, **order(2.9)), "ok", "", id="an order of today"),
        pytest.param(
            entry(60, **order(3)), "warning", "order 1000042 pending for 3 days", id="an old order"
        ),
        pytest.param(
            entry(None, **order(0.1)), "ok", "", id="the first order waits, nothing installed"
        ),
        pytest.param(
            entry(10, **order(0.1)),
            "warning",
            "10 days left",
            id="was due, and waits for its order",
        ),
        pytest.param(entry(150, state="rolled back"), "warning", "rolled back", id="rolled back"),
    ],
)
def test_the_level_of_a_profile(what: Document, level: str, remark: str) -> None:
    assert judge(what, NOW, Limits()) == (level, remark)


def test_days_left_are_whole_days_rounded_down() -> None:
    almost = entry(not_after=ahead(days=8, seconds=-1))
    assert seen({"www": almost}).items[0].days_left == 7
    assert judge(almost, NOW, Limits())[0] == "critical"
    assert seen({"www": entry(not_after=ago(seconds=1))}).items[0].days_left == -1


def test_the_limits_are_the_operators() -> None:
    assert judge(entry(30), NOW, Limits(warn=30, critical=20))[0] == "warning"
    assert judge(entry(30), NOW, Limits(warn=40, critical=30))[0] == "critical"
    assert judge(entry(30, **failure()), NOW, Limits(warn=30))[0] == "critical"


@pytest.mark.parametrize(
    ("profiles", "run", "level"),
    [
        ({}, run_of(), "unknown"),
        ({"www": None}, run_of(), "unknown"),
        ({"www": entry(), "new": None}, run_of(), "unknown"),
        ({"www": entry(9), "new": None}, run_of(), "warning"),
        ({"www": entry(9), "shop": entry(2)}, run_of(), "critical"),
        ({"www": entry()}, run_of(36), "ok"),
        ({"www": entry()}, run_of(36.1), "critical"),
        ({}, run_of(37), "critical"),
    ],
)
def test_the_level_of_the_whole(
    profiles: dict[str, Document | None], run: Document, level: str
) -> None:
    assert seen(profiles, run).level == level


def test_the_monitors_line() -> None:
    found = seen(
        {
            "www": entry(198),
            "portal": entry(9),
            "shop": {**entry(80, **order(3)), "outcome": "pending"},
        }
    )
    assert nagios_line(found) == (
        "CITRIXAGENT WARNING - portal: 9 days left; shop: order 1000042 pending for 3 days"
        " | portal=9;14:;7:;0 shop=80;14:;7:;0 www=198;14:;7:;0 failed=0 pending=1"
    )


def test_the_monitors_line_where_all_is_well() -> None:
    found = seen({"www": entry(150), "shop": entry(160)})
    assert nagios_line(found).startswith(
        "CITRIXAGENT OK - 2 profiles, next renewal www on 2027-02-18 | "
    )
    assert " - 1 profile | " in nagios_line(seen({"www": entry(150, renews=None)}))


def test_the_monitors_line_tells_ten_and_counts_the_rest() -> None:
    line = nagios_line(seen({f"p{n:02}": entry(2) for n in range(13)}))
    text, _, figures = line.partition(" | ")
    assert text.count(": 2 days left") == 10
    assert text.endswith("; and 3 more")
    assert figures.count(";14:;7:;0") == 13


def test_names_cannot_break_the_monitors_line() -> None:
    """Its published form: text, one bar, then 'label'=value;warn;crit;min, separated by blanks."""
    names = ["a b", "it's", "a=b", "failed", "pending", "bar|bar", "line\nbreak", *HOSTILE]
    line = nagios_line(seen({name: entry(3) for name in names}))
    assert "\n" not in line
    assert line.count("|") == 1
    label = r"(?:'(?:[^'|]|'')+'|[^\s'=|]+)"
    item = rf"{label}=-?\d+(?:;14:;7:;0)?"
    figures = line.partition(" | ")[2]
    assert re.fullmatch(rf"{item}(?: {item})*", figures)
    for shown in ("'it''s'=3", "'a b'=3", "'a=b'=3", "profile_failed=3", "profile_pending=3"):
        assert shown in figures
    assert " failed=0 pending=0" in figures


def test_a_profile_without_a_certificate_has_no_figure() -> None:
    line = nagios_line(seen({"www": entry(), "new": entry(None)}))
    assert "new: not installed" in line
    assert "new=" not in line


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type == "gauge"
        for sample in family.samples:
            assert sample.timestamp is None
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_metrics_are_what_prometheus_reads() -> None:
    waiting = entry(60, **order(3))
    failed = entry(150, **failure("dcv", "no"))
    found = samples(metrics(seen({"www": entry(), "shop": waiting, "api": failed, "new": None})))
    place = {"appliance": "ns1.example.com", "certkey": "www_key"}
    seconds = dt.datetime.fromisoformat(str(entry()["not_after"]).replace("Z", "+00:00"))
    ends = found["citrixagent_certificate_not_after_timestamp_seconds"]
    assert ({"profile": "www", **place}, seconds.timestamp()) in ends
    assert {labels["profile"] for labels, _ in ends} == {"www", "shop", "api"}
    renewals = found["citrixagent_certificate_renewal_timestamp_seconds"]
    assert {labels["profile"] for labels, _ in renewals} == {"www", "api"}
    assert found["citrixagent_profile_failed"] == [
        ({"profile": "api", "kind": "dcv"}, 1),
        ({"profile": "shop", "kind": ""}, 0),
        ({"profile": "www", "kind": ""}, 0),
    ]
    since = NOW - dt.timedelta(days=3)
    assert found["citrixagent_order_open_since_timestamp_seconds"] == [
        ({"profile": "shop"}, since.timestamp())
    ]
    ended = (NOW - dt.timedelta(hours=2)).timestamp()
    assert found["citrixagent_last_run_timestamp_seconds"] == [({}, ended)]
    assert found["citrixagent_last_success_timestamp_seconds"] == [({}, ended)]
    assert found["citrixagent_last_run_exit_code"] == [({}, 0)]
    version = citrixagent.__version__
    assert found["citrixagent_build_info"] == [({"version": version}, 1)]


def test_metrics_of_what_is_not_known_are_absent() -> None:
    run = {**run_of(code=3), "last_success": None}
    found = samples(metrics(seen({"new": entry(None)}, run)))
    assert found["citrixagent_last_run_exit_code"] == [({}, 3)]
    assert set(found) == {
        "citrixagent_profile_failed",
        "citrixagent_last_run_timestamp_seconds",
        "citrixagent_last_run_exit_code",
        "citrixagent_build_info",
    }
    nothing = overview([], {}, NOW, Limits())
    assert set(samples(metrics(nothing))) == {"citrixagent_build_info"}


def test_label_values_are_escaped() -> None:
    names = ['quote"d', "back\\slash", *HOSTILE]
    found = samples(metrics(seen({name: entry(certkey=name) for name in names})))
    labels = [each for each, _ in found["citrixagent_profile_failed"]]
    shown = {citrixagent.visible(name) for name in names}
    assert {each["profile"] for each in labels} == shown


PAGES = [
    pytest.param({}, id="none"),
    pytest.param({"www": entry(), "shop": entry(9), "new": None}, id="3"),
    pytest.param({f"p{n}": entry(n - 3, appliance=f"ns{n % 4}") for n in range(30)}, id="30"),
    pytest.param({f"p{n}": entry(n, appliance=f"ns{n % 12}") for n in range(300)}, id="300"),
    pytest.param(
        {
            name: entry(9, appliance=name, certkey=name, **failure("state", name + "w" * 300))
            for name in HOSTILE
        },
        id="hostile",
    ),
    pytest.param(
        {
            "old": entry(not_before="1999-01-01T00:00:00Z", not_after="2003-01-01T00:00:00Z"),
            "long": entry(not_before=ago(days=1), not_after="9999-12-31T23:59:59Z", due=None),
            "odd": entry(not_before=None),
        },
        id="dates",
    ),
]


@pytest.mark.parametrize("profiles", PAGES)
@pytest.mark.sample(3)
def test_the_page_is_valid_html_that_needs_nothing_else(profiles: dict[str, Document]) -> None:
    text = status_page(seen(profiles))
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    tree = parser.parse(text)  # a parse error raises
    elements = [each for each in tree.iter() if isinstance(each.tag, str)]
    tags = {each.tag for each in elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"}
    attributes = {str(name).lower() for each in elements for name in each.attrib}
    assert not attributes & {"href", "src", "srcset", "action", "xlink:href", "background"}
    assert not [name for name in attributes if name.startswith("on")]
    (style,) = [each for each in elements if each.tag == "style"]
    assert not re.search(r"url\(|@import|@font-face|//", style.text or "")
    assert len([each for each in elements if each.tag == "h1"]) == 1


@pytest.mark.parametrize("profiles", PAGES)
def test_every_line_of_time_stays_within_its_page(profiles: dict[str, Document]) -> None:
    text = status_page(seen(profiles))
    places = [float(number) for number in re.findall(r'="(-?[\d.]+)%"', text)]
    assert all(math.isfinite(place) and 0 <= place <= 100 for place in places)
    assert text.count('class="today"') == len(profiles) + (1 if profiles else 0)  # and the legend


def test_the_page_shows_words_of_others_as_words() -> None:
    profiles: dict[str, Document | None] = {
        name: entry(9, appliance=name, certkey=name, **failure("state", name)) for name in HOSTILE
    }
    text = status_page(seen(profiles))
    for raw in ("<script>alert", "<img", "<h1>owned", "\u202e", "\x1b", "break\x1b"):
        assert raw not in text
    for shown in (
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "\\u202egpj.exe",
        "line\\nbreak\\x1b[31m",
    ):
        assert shown in text


def test_the_page_says_what_matters() -> None:
    text = status_page(seen({"www": entry(150), "shop": entry(9, appliance="ns2.example.com")}))
    assert "1 of 2 certificates needs a look" in text
    assert "2026-11-26 02:17 UTC" in text  # when it was made
    assert "2026-11-26 00:17 UTC" in text  # when the last full run ended
    assert text.index("ns2.example.com</h2>") < text.index("ns1.example.com</h2>")
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text
    assert "width=device-width" in text
    late = status_page(seen({"www": entry(150)}, run_of(50)))
    assert "The last full run ended 50 hours ago" in late


def test_the_table_fits_the_terminal() -> None:
    profiles: dict[str, Document | None] = {
        "www": entry(150),
        "a-profile-with-a-very-long-name-" * 3: entry(9, **failure()),
        "日本語": entry(60, **order(4)),
    }
    found = seen(profiles)
    for room in (20, 60, 80, 100, 140):
        for line, _ in citrixagent.status_lines(found, room)[:-1]:
            assert citrixagent.text_width(line) <= room
    wide = [line for line, _ in citrixagent.status_lines(found, None)]
    assert wide[0].split() == list(citrixagent.STATUS_HEAD)
    assert re.search(r"ok +www +ns1.example.com +ok +\[====\.+\|\.+\] +150 ", wide[-2])
    assert wide[-1] == f"The last full run ended {ago(hours=2)} with exit code 0"


# From a run to what status tells


def last_run(lab: Lab) -> Document:
    data = json.loads((lab.home / "state" / "last-run.json").read_text())
    assert isinstance(data, dict)
    return data


def status(lab: Lab, *arguments: str) -> Document:
    return lab("status", "--json", *arguments).document()


def test_a_run_writes_down_what_it_saw(lab: Lab) -> None:
    lab.write_profile()
    done = lab.json("run").document()
    kept = last_run(lab)
    assert (kept["version"], set(kept)) == (1, {"version", "run", "profiles"})
    assert kept["run"] == {
        "started": done["started"],
        "finished": done["finished"],
        "exit_code": 0,
        "last_success": done["finished"],
    }
    (profile,) = done["profiles"]
    www = kept["profiles"]["www"]
    assert profile.items() <= www.items()
    assert (www["seen"], www["state"], www["order"]) == (done["finished"], "ok", None)
    assert www["not_before"] < www["renews"] == www["due"] < www["not_after"]


def test_status_json_has_its_shape(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    data = status(lab)
    assert list(data) == [
        "version", "command", "level", "message", "last_run", "profiles", "warnings", "errors"
    ]  # fmt: skip
    assert (data["version"], data["command"], data["level"]) == (1, "status", "ok")
    assert data["message"].startswith("1 profile, next renewal www on ")
    assert data["last_run"] == last_run(lab)["run"]
    (www,) = data["profiles"]
    assert set(www) == {
        "profile", "appliance", "certkey", "outcome", "state", "not_after", "renews", "days_left",
        "order", "error", "seen", "level",
    }  # fmt: skip
    assert www["days_left"] == 198
    assert lab("status", "--format", "json").document() == data


def test_status_needs_nobody_and_nothing(lab: Lab) -> None:
    """No agreement, no lock, no appliance, no SCM; no profile is opened, nothing is written."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.write("profiles/www.yaml", "{broken: [", mode=0o000)
    (lab.home / "state" / "eula.json").unlink()
    lab.appliance.server.refuse()
    lab.scm.server.refuse()
    before = {path: path.stat().st_mtime_ns for path in (lab.home / "state").iterdir()}
    with (lab.home / "state" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for style in ("text", "json", "nagios", "prometheus", "html"):
            assert lab("status", "--format", style).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (lab.home / "state").iterdir()} == before
    lab.appliance.server.accept()
    lab.scm.server.accept()


def test_status_loads_neither_network_nor_cryptography(lab: Lab) -> None:
    """With a thousand profiles: what takes time is what is loaded and read, and that is little."""
    profiles = {f"p{n}": {**entry(n - 5), "profile": f"p{n}"} for n in range(1000)}
    for name in profiles:
        (lab.home / "profiles" / f"{name}.yaml").touch()
    document = {"version": 1, "run": run_of(), "profiles": profiles}
    lab.write("state/last-run.json", json.dumps(document))
    code = (
        "import sys, citrixagent\n"
        "try:\n"
        "    citrixagent.main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        "loaded = {'requests', 'urllib3', 'cryptography', 'yaml', 'ssl'} & set(sys.modules)\n"
        "print(sorted(loaded), file=sys.stderr)\n"
    )
    for style in ("text", "json", "nagios", "prometheus", "html"):
        done = subprocess.run(
            [sys.executable, "-c", code, "--home", str(lab.home), "status", "--format", style],
            cwd=PROGRAM.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == "['ssl']\n"
        assert "p999" in done.stdout


def test_only_profiles_with_a_file_are_told(lab: Lab) -> None:
    lab.write_profile()
    lab.write_profile("shop", certificate=lab.certificate(common_name="shop.example.com"),
                      virtual_servers=[{"name": "vs_shop", "type": "load_balancing"}])  # fmt: skip
    lab.appliance.add_virtual_server("vs_shop", "load_balancing")
    assert lab("run").exit_code == 0
    (lab.home / "profiles" / "shop.yaml").rename(lab.home / "profiles" / "new.yaml")
    data = status(lab)
    assert {each["profile"]: each["level"] for each in data["profiles"]} == {
        "www": "ok",
        "new": "unknown",
    }
    assert data["level"] == "unknown"
    assert data["message"] == "new: no command has handled it yet"
    assert [each["profile"] for each in status(lab, "www")["profiles"]] == ["www"]
    assert lab("status", "shop").exit_code == 2


def test_nothing_handled_yet_is_unknown(lab: Lab) -> None:
    assert status(lab)["level"] == "unknown"
    outcome = lab("status", "--format", "nagios")
    assert (outcome.exit_code, outcome.stdout) == (
        3,
        "CITRIXAGENT UNKNOWN - there are no profiles | failed=0 pending=0\n",
    )


def test_what_cannot_be_reached_keeps_what_was_known(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    before = last_run(lab)
    lab.appliance.server.refuse()
    assert lab("run").exit_code == 1
    www = last_run(lab)["profiles"]["www"]
    for key in ("not_after", "not_before", "serial", "certkey", "due", "renews"):
        assert www[key] == before["profiles"]["www"][key]
    assert (www["state"], www["error"]["kind"]) == ("failed", "unreachable")
    run = last_run(lab)["run"]
    assert (run["exit_code"], run["last_success"]) == (1, before["run"]["last_success"])
    (told,) = status(lab)["profiles"]
    assert (told["level"], told["days_left"]) == ("warning", 198)
    outcome = lab("status", "--format", "nagios")
    assert outcome.exit_code == 1
    assert "www: failed, unreachable: " in outcome.stdout
    lab.appliance.server.accept()


def test_an_order_that_waits_is_told(lab: Lab) -> None:
    lab.scm.approval = "manual"
    lab.write_profile(enrollment={"max_wait": 0})
    assert lab("run").exit_code == 5
    kept = last_run(lab)
    www = kept["profiles"]["www"]
    assert (www["state"], www["renews"], www["order"]["status"]) == ("pending", None, "pending")
    assert www["order"]["cert_id"] == www["cert_id"]
    assert kept["run"]["last_success"] == kept["run"]["finished"]
    assert samples(lab("status", "--format", "prometheus").stdout)[
        "citrixagent_order_open_since_timestamp_seconds"
    ]


def test_an_order_that_was_turned_down_is_not_open(lab: Lab) -> None:
    lab.write_profile(enrollment={"max_wait": 0})
    assert lab("run").exit_code == 0
    lab.scm.approval = "manual"
    assert lab("renew", "www").exit_code == 5
    lab.scm.orders[-1].decline("no")
    assert lab("run").exit_code == 1
    www = last_run(lab)["profiles"]["www"]
    assert (www["state"], www["order"]) == ("declined", None)
    assert (status(lab)["profiles"][0]["error"]["kind"]) == "declined"


def test_a_rollback_is_told_until_it_is_renewed(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab("renew", "www").exit_code == 0
    assert lab("rollback", "www").exit_code == 0
    www = last_run(lab)["profiles"]["www"]
    end = dt.datetime.fromisoformat(www["not_after"].replace("Z", "+00:00"))
    assert (www["state"], www["renews"]) == ("rolled back", iso(end - dt.timedelta(days=7)))
    assert status(lab)["level"] == "warning"


def test_a_revocation_is_critical_until_there_is_another_certificate(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab("revoke", "www", "--reason", "superseded", "--yes").exit_code == 0
    (www,) = status(lab)["profiles"]
    assert (www["state"], www["renews"], www["level"]) == ("revoked", None, "critical")
    assert lab("run").exit_code == 1
    assert status(lab)["profiles"][0]["state"] == "revoked"
    assert lab("enroll", "www").exit_code == 0
    assert status(lab)["level"] == "ok"


def test_what_scm_says_was_revoked_stays_critical_while_it_cannot_be_replaced(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.orders[0].status = "Revoked"
    lab.scm.server.faults.append(
        Fault(
            "status",
            matches=lambda r: r.method == "POST" and r.path.endswith("/certificates"),
            response=Response(400, b'{"code": -107, "description": "no validation"}'),
        )
    )
    assert lab("run").exit_code == 1
    assert (status(lab)["profiles"][0]["state"], status(lab)["level"]) == ("revoked", "critical")
    lab.scm.server.faults.clear()
    assert lab("run").exit_code == 0
    assert status(lab)["level"] == "ok"


def test_a_certificate_that_is_not_renewed_by_itself_has_no_renewal(lab: Lab) -> None:
    lab.write_profile(renewal={"auto_renew": False})
    assert lab("run").exit_code == 0
    www = last_run(lab)["profiles"]["www"]
    assert (www["state"], www["renews"]) == ("ok", None)


def test_only_full_runs_count_as_the_last_run(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run", "www").exit_code == 0
    assert last_run(lab)["run"] is None
    assert status(lab)["last_run"] is None
    assert lab("run").exit_code == 0
    full = last_run(lab)["run"]
    assert lab("renew", "www").exit_code == 0
    assert last_run(lab)["run"] == full
    assert last_run(lab)["profiles"]["www"]["outcome"] == "renewed"


def test_a_dry_run_writes_nothing_down(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run", "--dry-run").exit_code == 0
    assert not (lab.home / "state" / "last-run.json").exists()


def test_a_run_that_could_not_begin_is_on_record(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    before = last_run(lab)
    lab.write("scm.yaml", "{}")
    assert lab("run").exit_code == 3
    after = last_run(lab)
    assert after["run"]["exit_code"] == 3
    assert after["run"]["last_success"] == before["run"]["last_success"]
    assert after["profiles"] == before["profiles"]
    lab.write_scm()
    (lab.home / "state" / "eula.json").unlink()
    assert lab("run").exit_code == 6
    assert last_run(lab)["run"]["exit_code"] == 6


def test_a_run_that_found_another_one_active_writes_nothing(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    before = last_run(lab)
    with (lab.home / "state" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert lab("run").exit_code == 4
        lab.write("scm.yaml", "{}")
        assert lab("run").exit_code == 3  # found before the lock was asked for
    assert last_run(lab) == before


DAMAGED = (
    "",
    "[]",
    "{}",
    '{"version": 1}',
    '{"version": 1, "run": null, "profiles": []}',
    '{"version": 1, "run": {"finished": 3}, "profiles": {}}',
    json.dumps({"version": 1, "run": None, "profiles": {"www": {**entry(), "not_after": "soon"}}}),
    json.dumps({"version": 1, "run": None, "profiles": {"www": {**entry(), "error": "no"}}}),
    json.dumps(
        {"version": 1, "run": None, "profiles": {"www": {**entry(), "order": {"since": 1}}}}
    ),
)


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.sample(4)
def test_a_damaged_file_is_told_and_the_next_run_mends_it(lab: Lab, text: str) -> None:
    lab.write_profile()
    lab.write("state/last-run.json", text)
    outcome = lab("status")
    assert outcome.exit_code == 1
    assert "last-run.json is damaged: the next run writes it anew" in outcome.stderr
    data = lab.json("status")
    assert (data.exit_code, data.document()["errors"][0]["kind"]) == (1, "state")
    monitor = lab("status", "--format", "nagios")
    assert monitor.exit_code == 3
    assert monitor.stdout.startswith("CITRIXAGENT UNKNOWN - ")
    assert lab("run").exit_code == 0
    assert status(lab)["level"] == "ok"


def test_a_file_of_a_newer_version_is_told(lab: Lab) -> None:
    lab.write("state/last-run.json", '{"version": 2}')
    assert "last-run.json is of version 2" in lab("status").stderr


@pytest.mark.parametrize(
    "arguments",
    [("--json", "--format", "html"), ("--warn", "3"), ("--format", "xml"), ("nobody",)],
)
def test_wrong_use_of_status(lab: Lab, arguments: tuple[str, ...]) -> None:
    assert lab("status", *arguments).exit_code == 2


def test_what_scm_said_reaches_no_page_raw(lab: Lab) -> None:
    words = b'{"code": -9, "description": "<b>no</b>\\u202e\\u001b[31m"}'
    lab.scm.server.faults.append(
        Fault(
            "status",
            matches=lambda r: r.path.endswith("/certificates"),
            response=Response(400, words),
        )
    )
    lab.write_profile()
    assert lab("run").exit_code == 1
    text = lab("status", "--format", "html").stdout
    assert "&lt;b&gt;no&lt;/b&gt;\\u202e\\x1b[31m" in text
    for style in ("text", "nagios", "prometheus", "html"):
        shown = lab("status", "--format", style).stdout
        assert "\u202e" not in shown
        assert "\x1b" not in shown
