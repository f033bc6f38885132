"""The other node of a pair is out of service, or did not follow: what ends soon is renewed."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable

import pytest
from simulators.netscaler import Variant, nitro_error
from simulators.pair import HaPair
from simulators.server import Fault
from test_faults import failed, wants
from test_fleet import PairLab, ha, missing_files, paired
from test_lifecycle import age, utc_now

__all__ = ["ha"]
UTC = dt.timezone.utc


@pytest.fixture(params=[6, 9])
def ending(request: pytest.FixtureRequest, ha: PairLab) -> tuple[PairLab, bool]:
    """A pair whose certificate ends in so many days; whether that is soon."""
    days = int(request.param)
    age(ha.lab, 199 - days)
    assert ha.lab("run").exit_code == 0
    age(ha.lab, 0)
    return ha, days <= 7


def dead(pair: HaPair) -> None:
    pair.peer_is_dead = True


def refused(code: int) -> Callable[[HaPair], None]:
    def refuse(pair: HaPair) -> None:
        fault = Fault("status", matches=wants("POST", "/hafiles"), times=99)
        fault.response = nitro_error(code)
        for node in (pair.a, pair.b):
            node.server.faults.append(fault)
        pair.peer_is_dead = True

    return refuse


@pytest.mark.parametrize(
    "trouble",
    [dead, refused(3592), refused(3591), refused(257)],
    ids=["dead", "3592", "3591", "257"],
)
@pytest.mark.sample(3)
def test_a_node_that_gets_no_files_stops_only_what_can_wait(
    ending: tuple[PairLab, bool], trouble: Callable[[HaPair], None]
) -> None:
    ha, is_soon = ending
    trouble(ha.pair)
    outcome = ha.lab.json("run")
    if not is_soon:
        assert outcome.profile()["error"]["kind"] == "appliance"
        assert len(ha.lab.scm.orders) == 1
        return
    told = outcome.profile()
    assert (outcome.exit_code, told["outcome"]) == (0, "renewed")
    (warning,) = told["warnings"]
    assert warning.startswith(f"{ha.pair.b.host} did not get the files (")
    assert "it was gone on without it, because what is installed ends at " in warning
    assert ha.served()[0] == ha.lab.scm.orders[1].leaf
    assert ha.pair.primary.saved


def test_beside_what_cannot_wait_the_others_wait(ha: PairLab) -> None:
    """One synchronization that failed tells all of them, and the key of each is its own."""
    ha.pair.add_virtual_server("vs_other", "gateway")
    hosts = [ha.pair.a.host, ha.pair.b.host]
    servers = [{"name": "vs_other", "type": "gateway"}]
    ha.lab.write_profile("later", citrix=ha.lab.citrix(host=hosts), virtual_servers=servers)
    assert ha.lab("run", "later").exit_code == 0
    age(ha.lab, 195)
    assert ha.lab("run", "www").exit_code == 0
    age(ha.lab, 0)
    dead(ha.pair)
    asked = len(ha.pair.a.server.requests)
    outcome = ha.lab.json("renew", "later", "www")
    later, www = outcome.document()["profiles"]
    assert (later["error"]["kind"], www["outcome"]) == ("appliance", "renewed")
    assert [order.action for order in ha.lab.scm.orders] == ["enroll", "enroll", "renew"]
    syncs = [call for call in ha.pair.a.server.calls(asked) if "hafiles" in call]
    assert len(syncs) == 2


def test_a_node_that_answers_and_lacks_the_files_is_waited_for(ha: PairLab) -> None:
    """What is ordered is installed once it has them; another order would fare no better."""
    age(ha.lab, 195)
    assert ha.lab("run").exit_code == 0
    age(ha.lab, 0)
    refused(3592)(ha.pair)
    ha.pair.peer_is_dead = False
    kind, message = failed(ha.lab)
    assert kind == "appliance"
    assert message.endswith(
        "a file is missing on the appliance or on the other node of its HA pair"
    )
    ha.pair.minute_passes()
    assert ha.lab.json("run").profile()["outcome"] == "renewed"
    assert len(ha.lab.scm.orders) == 2


def test_it_is_made_good_once_the_node_is_back(ha: PairLab) -> None:
    """By the product: it synchronizes a node that comes back."""
    age(ha.lab, 195)
    assert ha.lab("run").exit_code == 0
    age(ha.lab, 0)
    ha.pair.peer_is_dead = True
    assert ha.lab("run").exit_code == 0
    ha.pair.peer_is_dead = False
    ha.pair.synchronize()
    assert missing_files(ha) == []
    ha.pair.failover()
    assert ha.lab("run").text == ""
    assert ha.served()[0] == ha.lab.scm.orders[1].leaf


@pytest.mark.parametrize("code", [349, 457, 458])
@pytest.mark.sample(2)
def test_what_the_other_node_did_not_do_is_a_warning(ha: PairLab, code: int) -> None:
    ha.pair.peer_answer = code
    for node in (ha.pair.a, ha.pair.b):
        node.server.before = lambda request: setattr(
            ha.pair, "peer_is_dead", "hafiles" not in request.path
        )
    outcome = ha.lab.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "enrolled")
    warnings = outcome.profile()["warnings"]
    assert warnings
    for warning in warnings:
        assert (
            f"(NITRO {code}): done here, but not on {ha.pair.b.host}: look at that node" in warning
        )
    assert any("bind ssl vserver" in warning for warning in warnings)
    assert any("save ns config" in warning for warning in warnings)
    assert ha.served()[0] == ha.lab.scm.orders[0].leaf


def test_the_other_node_behind_one_address_has_no_name(ha: PairLab) -> None:
    ha.write_profile(ha.pair.host)
    age(ha.lab, 195)
    assert ha.lab("run").exit_code == 0
    age(ha.lab, 0)
    ha.pair.peer_is_dead = True
    (warning,) = ha.lab.json("run").profile()["warnings"]
    assert warning.startswith("the other node did not get the files (")


def test_nothing_installed_waits_for_the_other_node(ha: PairLab) -> None:
    ha.pair.peer_is_dead = True
    kind, message = failed(ha.lab)
    assert kind == "appliance"
    assert "(NITRO 3592, HTTP 599): look at the connection of the two nodes" in message
    assert not ha.lab.scm.orders
    ha.pair.peer_is_dead = False
    assert ha.lab("run").exit_code == 0


@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.sample(2)
def test_files_that_were_deleted_here(
    tmp_path_factory: pytest.TempPathFactory, deletes: bool
) -> None:
    """Whether they go from the standby node as well depends on the product; nothing else does."""
    with paired(tmp_path_factory.mktemp("pair"), Variant(sync_deletes=deletes)) as made:
        assert made.lab("run").exit_code == 0
        for _ in range(3):
            assert made.lab("renew", "www").exit_code == 0
        made.pair.minute_passes()
        keys = [
            {path for path in node.files if path.startswith("/nsconfig/ssl/www-")}
            for node in (made.pair.primary, made.pair.secondary)
        ]
        assert keys[0] <= keys[1]
        assert (keys[0] == keys[1]) == deletes
        made.pair.failover()
        assert made.lab("run").text == ""
        assert made.served()[0] == made.lab.scm.orders[-1].leaf


def test_seven_days_are_counted_to_the_second(ha: PairLab) -> None:
    start = dt.datetime.now(UTC) - dt.timedelta(days=199)
    for left, kind in ((7 * 86400 + 600, "appliance"), (7 * 86400 - 600, None)):
        issued = start + dt.timedelta(seconds=left)
        ha.lab.scm.now = functools.partial(dt.datetime.fromtimestamp, issued.timestamp(), UTC)
        ha.lab.scm.server.clock = utc_now
        ha.pair.peer_is_dead = False
        assert ha.lab("enroll", "--force", "www").exit_code == 0
        age(ha.lab, 0)
        ha.pair.peer_is_dead = True
        error = ha.lab.json("renew", "www").profile()["error"]
        assert (error and error["kind"]) == kind
