"""``list``: states, dates, order, width, appliances in parallel, and what is served."""

from __future__ import annotations

import datetime as dt
import threading

import pytest
import time_machine
from conftest import Document, Lab
from simulators.netscaler import NetScaler
from simulators.server import Fault, Request

import citrixagent


def listed(lab: Lab, *arguments: str, name: str = "www") -> Document:
    data = lab.json("list", *arguments).document()
    (found,) = [each for each in data["certificates"] if each["certkey"] == name]
    assert isinstance(found, dict)
    return found


def state(lab: Lab) -> tuple[str, str | None]:
    each = listed(lab)
    return each["state"], each["renews"] and each["renews"][:10]


def days_before_end(each: Document) -> int:
    """Return how many whole days before its end something is renewed."""
    return (citrixagent.parse_iso(each["not_after"]) - citrixagent.parse_iso(each["renews"])).days


def test_the_life_of_a_profile_in_states(lab: Lab) -> None:
    lab.write_profile()
    assert state(lab) == ("not installed", None)
    lab.scm.approval = "manual"
    assert lab("run", "--wait", "0").exit_code == 5
    assert state(lab) == ("pending", None)
    lab.scm.orders[-1].decline("no")
    assert lab("run").exit_code == 1
    assert state(lab) == ("not installed", None)
    lab.scm.approval = "auto"
    assert lab("enroll", "www").exit_code == 0
    each = listed(lab)
    assert (each["state"], days_before_end(each)) == ("ok", 66)
    lab.scm.approval = "manual"
    assert lab("renew", "www", "--wait", "0").exit_code == 5
    assert state(lab) == ("pending", None)
    lab.scm.orders[-1].decline("no")
    assert lab("run").exit_code == 1
    assert state(lab)[0] == "declined"
    lab.scm.approval = "auto"
    assert lab("renew", "www").exit_code == 0
    assert lab("rollback", "www").exit_code == 0
    each = listed(lab)
    assert (each["state"], days_before_end(each)) == ("rolled back", 7)
    assert lab("revoke", "www", "--reason", "superseded", "--yes").exit_code == 0
    assert state(lab) == ("revoked", None)


def test_what_failed_last_and_what_is_due(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.appliance.server.refuse()
    assert lab("run").exit_code == 1
    lab.appliance.server.accept()
    assert state(lab)[0] == "failed"
    assert lab("run").exit_code == 0
    assert state(lab)[0] == "ok"
    with time_machine.travel(dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=150), tick=True):
        assert state(lab)[0] == "due"


def test_what_is_not_renewed_by_itself_has_no_date(lab: Lab) -> None:
    lab.write_profile(renewal={"auto_renew": False})
    assert lab("run").exit_code == 0
    assert state(lab) == ("ok", None)


def test_without_scm_and_without_profiles(lab: Lab) -> None:
    (lab.home / "scm.yaml").unlink()
    lab.write_yaml("appliances/ns1.yaml", lab.citrix())
    outcome = lab.json("list", "--all")
    assert outcome.exit_code == 0
    shown = outcome.document()["certificates"]
    assert {each["certkey"] for each in shown} == {each.name for each in lab.appliance.everything()}
    assert {(each["state"], each["renews"], each["managed"]) for each in shown} == {
        ("unmanaged", None, False)
    }
    assert lab("list").exit_code == 3


def test_what_ends_first_stands_first(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.write_profile("new", virtual_servers=[{"name": "vs_www", "type": "gateway", "sni": True}])
    days = [each["days_left"] for each in lab.json("list", "--all").document()["certificates"]]
    assert days[0] is None
    known = [each for each in days if each is not None]
    assert known == sorted(known)


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
@pytest.mark.sample(4)
def test_the_list_is_fitted_to_the_terminal(lab: Lab, columns: int) -> None:
    lab.write_profile("a-profile-whose-name-is-rather-long-for-a-column")
    assert lab("run").exit_code == 0
    assert lab("list", "--all").exit_code == 0
    _, shown = lab.on_a_terminal("list", "--all", columns=columns, environment={"NO_COLOR": "1"})
    lines = shown.splitlines()
    assert max(map(citrixagent.text_width, lines)) <= columns
    assert "DAYS" in lines[0] or columns < 60
    assert ("ISSUER" in lines[0]) == (columns > 100)


def test_appliances_are_read_in_parallel(lab: Lab) -> None:
    """Each of two waits for the other's first request."""
    both = threading.Barrier(2, timeout=30)

    def meet(request: Request) -> None:
        if request.number == 1:
            both.wait()

    with NetScaler() as other:
        other.add_user("citrixagent", lab.citrix()["password"])
        lab.write_yaml("appliances/ns1.yaml", lab.citrix())
        lab.write_yaml("appliances/ns2.yaml", lab.citrix(host=other.host))
        for appliance in (lab.appliance, other):
            appliance.server.requests.clear()
            appliance.server.before = meet
        outcome = lab.json("list", "--all")
        assert outcome.exit_code == 0
        assert not both.broken
        lab.appliance.server.before = None


def test_what_is_served_and_what_scm_says(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    each = listed(lab, "--served")
    (served,) = each["served"]
    assert set(served) == {
        "virtual_server", "host", "port", "serial", "issuer", "chain_length", "ok", "message",
    }  # fmt: skip
    assert (served["virtual_server"], served["ok"], served["message"]) == ("vs_www", True, "")
    assert (served["serial"], served["issuer"]) == (each["serial"], each["issuer"])
    assert served["chain_length"] == len(lab.appliance.virtual_servers["vs_www"].handshake())
    assert each["scm_status"] == "ISSUED"
    assert "served" not in listed(lab)
    heads, row = lab("list", "--served").stdout.splitlines()
    assert heads.endswith(" SCM")
    assert row.endswith(" ISSUED")


def test_what_scm_says_was_revoked_is_shown_as_revoked(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.revoke(lab.scm.orders[0], 4, "by hand")
    found = listed(lab, "--served")
    assert (found["scm_status"], found["state"], found["renews"]) == ("REVOKED", "revoked", None)


def test_an_order_that_was_turned_down_is_named_once(lab: Lab) -> None:
    lab.scm.approval = "manual"
    lab.write_profile()
    assert lab("run", "--wait", "0").exit_code == 5
    lab.scm.orders[0].decline("no budget")
    assert lab("run").exit_code == 1
    shown = lab("list").stdout
    assert shown.count(lab.record()["change"]["new"]["cert_id"]) == 1
    assert "declined in SCM" in shown


def test_what_is_served_to_strangers_certkeys_is_looked_at_too(lab: Lab) -> None:
    lab.write_yaml("appliances/ns1.yaml", lab.citrix())
    data = lab.json("list", "--all", "--served").document()
    for each in data["certificates"]:
        assert len(each["served"]) == len(each["virtual_servers"])
        assert each["scm_status"] is None


def test_scm_that_cannot_be_asked_is_told_and_hides_nothing(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.server.faults.append(Fault("reset", times=99))
    outcome = lab.json("list", "--served")
    assert outcome.exit_code == 1
    data = outcome.document()
    assert data["certificates"][0]["scm_status"] is None
    assert data["certificates"][0]["served"][0]["ok"] is True
    assert data["errors"][0]["kind"] == "unreachable"


def test_a_virtual_server_that_presents_something_else_is_told(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.write_profile(
        virtual_servers=[
            {
                "name": "vs_www",
                "type": "load_balancing",
                "connect": f"127.0.0.1:{lab.appliance.server.port}",
            }
        ]
    )
    (served,) = listed(lab, "--served")["served"]
    assert served["ok"] is False
    assert served["message"].startswith("it presents another certificate (")
    assert "(it presents another" in lab("list", "--served").stdout
