"""The record is not the truth: restarts, repeated commands, old backups, clocks, removed names."""

from __future__ import annotations

import datetime as dt
import json
import pathlib
import shutil

import pytest
import time_machine
from conftest import Lab
from cryptography.x509.oid import ExtendedKeyUsageOID
from simulators.server import Fault, Request
from test_faults import failed, wants
from test_lifecycle import age, leaf, served, use_admin, utc_now
from test_records import sealed

DAY = dt.timedelta(days=1)


def restart_before(lab: Lab, part: str) -> None:
    """Let the appliance restart, without what was not saved, before the first such request."""
    done: list[str] = []

    def before(request: Request) -> None:
        if part in str(request) and not done:
            done.append(str(request))
            lab.appliance.reboot()

    lab.appliance.server.before = before


# Restarts


@pytest.mark.parametrize("renewing", [False, True])
@pytest.mark.parametrize("part", ["action=link", "PUT /nitro", "action=save"])
@pytest.mark.sample(4)
def test_a_restart_before_the_save_doubles_nothing(lab: Lab, part: str, renewing: bool) -> None:
    """What was not saved is gone: the next run installs again what was ordered once."""
    if renewing:
        age(lab, 150)
        lab.write_profile()
        assert lab("run").exit_code == 0
        age(lab, 0)
        lab.scm.authority.generation = 37  # linked anew
    lab.write_profile()
    lab.appliance.add_virtual_server("vs_more", "load_balancing")
    lab.write_profile(
        virtual_servers=[{"name": name, "type": "load_balancing"} for name in ("vs_www", "vs_more")]
    )
    placed = len(lab.scm.orders)
    restart_before(lab, part)
    kind, message = failed(lab)
    assert kind == "unavailable"
    assert "the next run looks at what is there and goes on" in message
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == placed + 1
    assert served(lab)[0] == leaf(lab)
    assert lab.appliance.saved
    assert lab("run").text == ""


def test_a_restart_before_anything_was_changed_stops_nothing(lab: Lab) -> None:
    lab.write_profile()
    restart_before(lab, "sslcertreq")
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1


def test_a_restart_between_a_killed_run_and_its_save_is_seen(lab: Lab) -> None:
    """The next run finds the certkey, saves what is gone by then, and looks once more."""
    lab.write_profile()
    save = Fault("reset", matches=wants("POST", "action=save"), times=4)
    lab.appliance.server.faults.append(save)
    assert failed(lab)[0] == "unreachable"
    lab.appliance.server.faults.clear()
    restart_before(lab, "action=save")
    kind, message = failed(lab)
    assert kind == "appliance"
    assert "does not hold what was installed" in message
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 1
    assert served(lab)[0] == leaf(lab)


# The operator's command again


@pytest.mark.parametrize(
    ("command", "outcome"), [("renew", "renewed"), ("replace", "replaced"), ("enroll", "enrolled")]
)
@pytest.mark.sample(3)
def test_a_command_that_was_cut_off_at_the_end_is_finished(
    lab: Lab, command: str, outcome: str
) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    words = [command, "www", *(["--force"] if command == "enroll" else [])]
    record = lab.home / "state" / "profile-www.json"
    assert lab(*words).exit_code == 0
    # As if it had been killed after the save: what is remembered of it is what was then on disk.
    data = json.loads(record.read_text())
    data |= {"finishing": outcome, "unverified": True}
    record.write_text(sealed(data))
    told = lab.json(*words).profile()
    assert told["outcome"] == outcome
    assert told["steps"] == ["verify", "clean_up"]
    assert len(lab.scm.orders) == 2
    assert lab.json(*words).profile()["steps"][0] == "create_key"
    assert len(lab.scm.orders) == 3


# Backups


def backup(lab: Lab) -> pathlib.Path:
    kept = lab.home / "backup.json"
    shutil.copy(lab.home / "state" / "profile-www.json", kept)
    return kept


def put_back(lab: Lab, kept: pathlib.Path) -> None:
    shutil.copy(kept, lab.home / "state" / "profile-www.json")


def test_a_record_that_is_older_than_the_appliance_installs_nothing(lab: Lab) -> None:
    """Its order was installed long ago, and replaced since."""
    lab.scm.approval = "manual"
    lab.write_profile()
    assert lab("run", "--wait", "0").exit_code == 5
    kept = backup(lab)
    lab.scm.orders[0].approve()
    assert lab("run").exit_code == 0
    lab.scm.approval = "auto"
    with time_machine.travel(utc_now() + 150 * DAY, tick=True):
        assert lab.json("run").profile()["outcome"] == "renewed"
        newer = served(lab)
        put_back(lab, kept)
        for command in (("run",), ("enroll", "www"), ("renew", "www")):
            kind, message = failed(lab, *command)
            assert kind == "state"
            assert "the record is old" in message
            assert message.endswith("citrixagent.py enroll --force www")
        assert served(lab) == newer
        assert len(lab.scm.orders) == 2
        assert lab("enroll", "--force", "www").exit_code == 0
        assert lab("run").text == ""


@pytest.mark.parametrize("by_admin", [False, True])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.sample(3)
def test_a_record_from_before_an_order_that_waits_orders_nothing(
    lab: Lab, by_admin: bool, lost: bool
) -> None:
    if by_admin:
        use_admin(lab, by_login=False)
    lab.write_profile()
    if not lost:
        age(lab, 150)
        assert lab("run").exit_code == 0
        age(lab, 0)
    kept = None if lost else backup(lab)
    lab.scm.approval = "manual"
    assert lab("run", "--wait", "0").exit_code == 5
    placed = len(lab.scm.orders)
    (lab.home / "state" / "profile-www.json").unlink()
    if kept:
        put_back(lab, kept)
    for _ in range(2):
        kind, message = failed(lab)
        assert kind == "state"
        assert "the record is old or was lost" in message
        assert message.endswith("citrixagent.py enroll --force www")
    assert len(lab.scm.orders) == placed
    lab.scm.approval = "auto"
    assert lab("enroll", "--force", "www").exit_code == 0
    assert len(lab.scm.orders) == placed + 1
    assert lab("run").text == ""


def test_scm_knows_an_order_that_is_not_on_record(lab: Lab) -> None:
    """Admin API: also where the appliance has no key of it any more."""
    use_admin(lab, by_login=False)
    lab.write_profile()
    lab.scm.approval = "manual"
    assert lab("run", "--wait", "0").exit_code == 5
    (lab.home / "state" / "profile-www.json").unlink()
    lab.appliance.files.clear()
    kind, message = failed(lab)
    assert kind == "state"
    assert "SCM has orders for www.example.com that wait and are not on record: " in message
    assert len(lab.scm.orders) == 1
    lab.scm.orders[0].decline("not wanted")
    lab.scm.approval = "auto"
    assert lab("run").exit_code == 0


def test_a_lost_state_folder_with_nothing_newer_goes_on(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab("renew", "www").exit_code == 0
    (lab.home / "state" / "profile-www.json").unlink()
    assert lab("run").text == ""
    assert lab.json("renew", "www").profile()["outcome"] == "renewed"


def test_a_folder_that_cannot_be_listed_stops_nothing(lab: Lab) -> None:
    refused = Fault("status", matches=wants("GET", "systemfile?args=filelocation"), times=9)
    lab.appliance.server.faults.append(refused)
    lab.write_profile()
    assert lab("run").exit_code == 0


# Rollback


def test_a_rollback_that_was_carried_out_and_answered_with_garbage_is_not_forgotten(
    lab: Lab,
) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    old = served(lab)
    assert lab("renew", "www").exit_code == 0
    lab.appliance.server.faults.append(Fault("garbled", matches=wants("POST", "action=update")))
    assert lab("rollback", "www").exit_code == 1
    assert lab.json("rollback", "www").profile()["outcome"] == "rolled_back"
    assert served(lab) == old
    assert lab.record()["rolled_back"]
    assert lab.json("run").profile()["outcome"] == "unchanged"


# Logins


def test_a_refused_login_counts_for_address_and_account(lab: Lab) -> None:
    """Appliances lock accounts: what else the blocks say makes no difference."""
    blocks: list[dict[str, object]] = [{}, {"timeout": 21}, {"ssl_directory": "/nsconfig/ssl/"}]
    for number, changes in enumerate(blocks):
        lab.appliance.add_virtual_server(f"vs_{number}", "load_balancing")
        servers = [{"name": f"vs_{number}", "type": "load_balancing"}]
        citrix = lab.citrix(password="wrong", **changes)
        lab.write_profile(f"p{number}", citrix=citrix, virtual_servers=servers)
    document = lab.json("run").document()
    assert [each["error"]["kind"] for each in document["profiles"]] == ["auth"] * 3
    assert len(lab.appliance.server.calls()) == 1


# Names


@pytest.mark.parametrize("by_admin", [False, True])
@pytest.mark.sample(2)
def test_a_removed_name_that_stays_is_warned_about(lab: Lab, by_admin: bool) -> None:
    """The last alternative name is removed, and SCM adds it again."""
    if by_admin:
        use_admin(lab, by_login=False)
    names = ["api.example.com"]
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=names))
    assert lab("run").exit_code == 0
    lab.scm.authority.added_names = ("api.example.com",)
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=None))
    assert lab.json("run").profile()["outcome"] == "replaced"
    for _ in range(2):
        (warning,) = lab.json("run").profile()["warnings"]
        assert warning.startswith("the certificate still holds api.example.com, which was removed")
    lab.scm.authority.added_names = ()
    assert lab("enroll", "--force", "www").exit_code == 0
    assert lab.json("run").profile()["warnings"] == []


# Time


@pytest.mark.parametrize(("days", "verb"), [(-1, "ended"), (2, "ends"), (7, "ends")])
@pytest.mark.sample(3)
def test_an_order_that_waits_beside_an_end_is_a_failure(lab: Lab, days: int, verb: str) -> None:
    lab.write_profile()
    with time_machine.travel(utc_now() - (199 - days) * DAY, tick=True):
        assert lab("run").exit_code == 0
    lab.scm.approval = "manual"
    told = lab.json("run", "--wait", "0").profile()
    assert told["error"]["kind"] == "state"
    order = lab.scm.orders[-1]
    assert (
        f"order {order.cert_id} is still open, awaiting approval in SCM, since "
        in (told["error"]["message"])
    )
    assert f"what is installed {verb} at" in told["error"]["message"]
    order.approve()
    assert lab.json("run").profile()["outcome"] == "renewed"
    assert len(lab.scm.orders) == 2


@pytest.mark.parametrize("days", [190, 2, -2, -400])
@pytest.mark.parametrize("by_admin", [False, True])
@pytest.mark.sample(3)
def test_a_wrong_clock_orders_nothing(lab: Lab, days: int, by_admin: bool) -> None:
    if by_admin:
        use_admin(lab, by_login=True)
    lab.scm.server.clock = lambda: utc_now() - days * DAY
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "state"
    way = "ahead of" if days > 0 else "behind"
    assert message.startswith(f"SCM: this machine's clock is {abs(days)} days {way} its own")
    assert not lab.scm.orders
    assert not lab.appliance.files
    lab.scm.server.clock = lambda: utc_now() - dt.timedelta(hours=20)
    assert lab("run").exit_code == 0


def test_an_appliance_with_another_time_is_warned_about(lab: Lab) -> None:
    lab.appliance.server.clock = lambda: utc_now() + 40 * DAY
    lab.write_profile()
    document = lab.json("run").document()
    assert document["exit_code"] == 0
    (warning,) = document["warnings"]
    assert warning.startswith(f"{lab.appliance.host}: this machine's clock is ")
    assert warning.endswith("days behind its own: set the one that is wrong")


def test_a_replacement_keeps_the_window_of_what_it_replaced(lab: Lab) -> None:
    """It ends when that would have: a third of what is left would come too late."""
    lab.scm.account.term = 47
    lab.write_profile()
    assert lab("run").exit_code == 0
    with time_machine.travel(utc_now() + 30 * DAY, tick=True):
        assert lab.json("replace", "www").profile()["outcome"] == "replaced"
        assert lab.json("run").profile()["reason"] == "16 days left, window is 15 days"


def test_a_usage_that_is_lost_is_warned_about(lab: Lab) -> None:
    lab.scm.authority.usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    lab.write_profile()
    assert lab.json("run").profile()["warnings"] == []
    lab.scm.authority.usages.pop()
    (warning,) = lab.json("renew", "www").profile()["warnings"]
    assert warning.startswith("the new certificate is not for client authentication, which")
