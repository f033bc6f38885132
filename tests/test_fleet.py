"""What estates are made of: pairs, clusters, partitions, SNI, changing chains, many profiles."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import itertools
import json
import pathlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import pytest
import time_machine
from conftest import PASSWORD, Document, Lab, wait_until
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from simulators.ca import Authority, ChainStyle, hierarchy, to_pem
from simulators.netscaler import NetScaler, Variant, VirtualServer
from simulators.pair import HaPair
from simulators.reissue import reissued
from simulators.scm import Scm, scm_error
from simulators.server import BareListener, Fault, Request, Response
from test_faults import failed
from test_lifecycle import age, leaf, served, use_admin
from test_run import KINDS, common_names, is_write, key_type

from citrixagent import utc_now

TENANT = "/nsconfig/partitions/tenant-a/ssl"
NITRO = "/nitro/v1/config/"
Servers = list[dict[str, object]]


def on(name: str, kind: str = "load_balancing", **more: object) -> Servers:
    return [{"name": name, "type": kind, **more}]


def plain(call: str) -> str:
    """Return a request without what differs from run to run."""
    call = re.sub(r"-\d{14}\.", "-TIME.", call.replace(NITRO, ""))
    call = call.replace("&pageno=1", "").replace("pagesize=1000", "PAGE")
    return re.sub(r"\?args=\S+", "", re.sub(r"ca_\w+", "ca_X", call))


def calls(appliance: NetScaler, since: int = 0) -> list[str]:
    return [plain(call) for call in appliance.server.calls(since)]


def converged(lab: Lab, runs: int, between: Callable[[], None] = lambda: None) -> None:
    """Run until all is done, at most so often; then nothing is left to do or say."""
    outcomes = []
    for _ in range(runs):
        between()
        outcomes.append(lab("run"))
        if outcomes[-1].exit_code == 0:
            break
    assert outcomes[-1].exit_code == 0, [each.text for each in outcomes]
    silent = lab("run")
    assert (silent.exit_code, silent.text) == (0, "")


# ----- HA pairs -----------------------------------------------------------------------------------


@dataclasses.dataclass
class PairLab:
    """A lab whose appliance is a pair; the profile www names both nodes, ``a`` first."""

    lab: Lab
    pair: HaPair

    def __post_init__(self) -> None:
        self.pair.add_user("citrixagent", PASSWORD)
        self.write_profile()

    def write_profile(self, host: object = None) -> None:
        hosts = host or [self.pair.a.host, self.pair.b.host]
        self.lab.write_profile(citrix=self.lab.citrix(host=hosts))

    def configure_standby(self) -> None:
        """Let the standby node take over the configuration, as it does once it is one; no files."""
        for name, partition in self.pair.primary.partitions.items():
            copy = self.pair.secondary.partitions[name]
            copy.running, copy.stored = partition.running.copy(), partition.stored.copy()
        self.pair.out_of_sync.clear()

    def served(self) -> list[x509.Certificate]:
        return self.pair.primary.virtual_servers["vs_www"].handshake()


@contextlib.contextmanager
def paired(folder: pathlib.Path, variant: Variant | None = None) -> Iterator[PairLab]:
    with HaPair(variant=variant) as pair, Scm() as scm:
        pair.add_virtual_server("vs_www", "load_balancing")
        folder.mkdir(exist_ok=True)
        made = PairLab(Lab(folder, pair.a, scm), pair)
        made.lab.accept()
        yield made
        made.lab.check()
        for node in (pair.a, pair.b):
            assert not node.sessions


@pytest.fixture
def ha(tmp_path: pathlib.Path) -> Iterator[PairLab]:
    with paired(tmp_path) as made:
        yield made


def missing_files(ha: PairLab) -> list[str]:
    """Return the files that a saved configuration names and a node does not have."""
    nodes = (ha.pair.a, ha.pair.b)
    named = [
        file for each in ha.pair.primary.stored.certkeys.values() for file in (each.cert, each.key)
    ]
    return [file for node in nodes for file in named if file and node.path(file) not in node.files]


def check_pair(ha: PairLab, standby_writes: int = 0) -> None:
    """Both nodes can serve the last certificate, also after they were started again."""
    last = ha.lab.scm.orders[-1].leaf
    assert ha.served()[0] == last
    assert missing_files(ha) == []
    assert ha.pair.primary.saved
    for node in (ha.pair.a, ha.pair.b):
        assert len(node.standby_writes) <= standby_writes, node.standby_writes
    ha.pair.primary.reboot()
    assert len(ha.served()) == 3
    if not standby_writes:
        ha.pair.failover()
        ha.pair.primary.reboot()
        assert ha.served()[0] == last


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.sample(2)
def test_of_two_nodes_the_primary_is_used(ha: PairLab, swapped: bool) -> None:
    if swapped:
        ha.pair.failover()
    outcome = ha.lab.json("run")
    assert outcome.exit_code == 0
    assert outcome.profile()["appliance"] == ha.pair.primary.host
    assert calls(ha.pair.secondary) == (
        ["POST login", "GET /nitro/v1/stat/hanode", "POST logout"] if swapped else []
    )
    check_pair(ha)


def test_the_role_is_looked_at_before_every_write(ha: PairLab) -> None:
    assert ha.lab("run").exit_code == 0
    told = calls(ha.pair.a)
    for before, call in itertools.pairwise(told):
        assert before.endswith("stat/hanode") or not is_write(call) or "log" in call, call
    syncs = [number for number, call in enumerate(told) if call == "POST hafiles?action=sync"]
    assert len(syncs) == 2
    csr = told.index("POST sslcertreq?action=create")
    assert csr < syncs[0] < told.index("POST systemfile") < syncs[1] < told.index("POST sslcertkey")


def test_a_node_that_is_down_is_passed_over(ha: PairLab) -> None:
    ha.pair.failover()
    ha.pair.a.server.refuse()
    assert ha.lab("run").exit_code == 0
    check_pair(ha)


def test_where_only_the_standby_node_answers_nothing_is_done(ha: PairLab) -> None:
    """What is in the way is the node that is down, and that is told."""
    ha.pair.a.server.refuse()
    kind, message = failed(ha.lab)
    assert kind == "unreachable"
    assert message.startswith(ha.pair.a.host)
    assert not any(map(is_write, ha.pair.b.server.calls()))


@pytest.mark.parametrize("both", [False, True])
def test_standby_nodes_are_refused(ha: PairLab, both: bool) -> None:
    ha.pair.a.ha_state = ha.pair.b.ha_state = "Secondary"
    ha.write_profile(None if both else ha.pair.b.host)
    kind, message = failed(ha.lab)
    host = ha.pair.a.host if both else ha.pair.b.host
    assert (kind, message) == (
        "standby",
        f"{host} is the standby node of its HA pair: nothing was changed; name the primary, both "
        "nodes, or a SNIP with management access, as citrix.host",
    )
    assert not ha.lab.scm.orders
    for node in (ha.pair.a, ha.pair.b):
        assert not any(map(is_write, node.server.calls()))


def test_an_address_that_moves_with_the_primary(ha: PairLab) -> None:
    ha.write_profile(ha.pair.host)
    assert ha.lab("run").exit_code == 0
    ha.pair.failover()
    assert ha.lab("renew", "www").exit_code == 0
    check_pair(ha)


def test_list_asks_any_node(ha: PairLab) -> None:
    assert ha.lab("run").exit_code == 0
    ha.write_profile(ha.pair.b.host)
    (row,) = ha.lab.json("list").document()["certificates"]
    assert (row["certkey"], row["appliance"]) == ("www", ha.pair.b.host)


def test_a_synchronization_that_is_busy_is_waited_for(ha: PairLab) -> None:
    ha.pair.sync_busy = 2
    assert ha.lab("run").exit_code == 0
    check_pair(ha)


@pytest.mark.parametrize(("busy", "code"), [(99, 3591), (0, 3592)])
@pytest.mark.sample(2)
def test_a_synchronization_that_fails(ha: PairLab, busy: int, code: int) -> None:
    """Nothing is ordered for a key that one node alone has; later the same key is used."""
    ha.pair.sync_busy, ha.pair.sync_fails = busy, True
    kind, message = failed(ha.lab)
    assert kind == "appliance"
    assert "sync HA files ssl: " in message
    assert f"(NITRO {code}, " in message
    assert not ha.lab.scm.orders
    ha.pair.sync_busy, ha.pair.sync_fails = 0, False
    converged(ha.lab, 1)
    assert len(ha.lab.scm.orders) == 1
    created = [call for call in calls(ha.pair.a) if "key?action=create" in call]
    assert len(created) == 1
    check_pair(ha)


@pytest.fixture
def lost(ha: PairLab) -> PairLab:
    """A pair with a certificate; the key of a renewal that waits is not on the new primary."""
    ha.lab.scm.issue_after = 1
    assert ha.lab("run").exit_code == 0
    assert ha.lab("renew", "www", "--wait", "0").exit_code == 5
    ha.pair.failover()
    del ha.pair.b.files[f"/nsconfig/ssl/{ha.lab.record()['change']['new']['key_file']}"]
    return ha


def test_a_key_that_is_lost_is_told_and_nothing_is_ordered(lost: PairLab) -> None:
    before = lost.served()
    for _ in range(3):
        kind, message = failed(lost.lab)
        assert kind == "appliance"
        assert message.endswith("up with citrixagent.py enroll --force www")
    assert lost.served() == before
    assert [order.action for order in lost.lab.scm.orders] == ["enroll", "renew"]
    assert lost.lab("enroll", "--force", "www").exit_code == 0
    assert [order.action for order in lost.lab.scm.orders] == ["enroll", "renew", "enroll"]
    converged(lost.lab, 1, lost.configure_standby)


def test_the_key_is_back_with_the_node_that_has_it(lost: PairLab) -> None:
    assert failed(lost.lab)[0] == "appliance"
    lost.pair.failover()
    converged(lost.lab, 1, lost.configure_standby)
    assert [order.action for order in lost.lab.scm.orders] == ["enroll", "renew"]
    assert lost.served()[0] == lost.lab.scm.orders[-1].leaf


def test_a_key_that_is_lost_lapses_nothing(lost: PairLab) -> None:
    """In the last seven days the order is given up; the next one's key is on both nodes."""
    assert lost.lab("run").exit_code == 1
    with time_machine.travel(utc_now() + dt.timedelta(days=193), tick=True):
        lost.lab.scm.issue_after = 0
        assert lost.lab.json("run").profile()["outcome"] == "renewed"
        assert lost.lab("run").text == ""
    assert [order.action for order in lost.lab.scm.orders] == ["enroll", "renew", "renew"]


def test_a_rollback_after_a_failover(ha: PairLab) -> None:
    """The previous generation's files are on both nodes."""
    assert ha.lab("run").exit_code == 0
    old = ha.served()
    assert ha.lab("renew", "www").exit_code == 0
    ha.pair.failover()
    assert ha.lab("rollback", "www").exit_code == 0
    assert ha.served() == old
    assert missing_files(ha) == []


def prepare_enrollment(_: PairLab) -> None:
    """Nothing is there."""


def prepare_renewal(ha: PairLab) -> None:
    """The successor has another issuer."""
    age(ha.lab, 150)
    assert ha.lab("run").exit_code == 0
    age(ha.lab, 0)
    ha.lab.scm.authority.generation = 37


PREPARATIONS = {"enrollment": prepare_enrollment, "renewal": prepare_renewal}


def learn(name: str, folder: pathlib.Path) -> list[str]:
    """Return the requests of a clean run."""
    with paired(folder) as ha:
        PREPARATIONS[name](ha)
        asked = len(ha.pair.a.server.requests)
        assert ha.lab("run").exit_code == 0
        return calls(ha.pair.a, asked)


def try_failover(name: str, number: int, folder: pathlib.Path, variant: Variant) -> None:
    """Fail over after a request; a write just after the look at the role cannot be held back."""
    with paired(folder, variant) as ha:
        PREPARATIONS[name](ha)
        placed, at = len(ha.lab.scm.orders), len(ha.pair.a.server.requests) + number

        def after(request: Request) -> None:
            if request.number == at:
                ha.pair.failover()

        ha.pair.a.server.after = after
        ha.lab("run")
        ha.pair.a.server.after = None
        assert ha.pair.primary is ha.pair.b
        converged(ha.lab, 2, ha.configure_standby)
        actions = [order.action for order in ha.lab.scm.orders[placed:]]
        assert actions == ["renew" if placed else "enroll"]
        looked = str(ha.pair.a.server.requests[at - 1]).endswith("stat/hanode")
        check_pair(ha, standby_writes=int(looked))


def every_failover(
    name: str,
    folder: pathlib.Path,
    numbers: slice = slice(None),
    variant: Variant | None = None,
) -> None:
    clean = learn(name, folder / "clean")
    for number in range(1, len(clean) + 1)[numbers]:
        try:
            try_failover(name, number, folder / str(number), variant or Variant())
        except AssertionError as error:
            raise AssertionError(f"{name}: after {number}, {clean[number - 1]}") from error


@pytest.mark.parametrize("name", PREPARATIONS)
@pytest.mark.sample(2)
def test_a_failover_at_some_requests(name: str, tmp_path: pathlib.Path) -> None:
    every_failover(name, tmp_path, slice(5, None, 12))


@pytest.mark.long
@pytest.mark.parametrize("propagation", ["refuse", "silent"])
@pytest.mark.parametrize("name", PREPARATIONS)
def test_a_failover_at_every_request(
    name: str, propagation: Literal["refuse", "silent"], tmp_path: pathlib.Path
) -> None:
    """At every other of them for each of two guesses at what the product does, in turn."""
    numbers = slice(int(propagation == "silent"), None, 2)
    every_failover(name, tmp_path, numbers, Variant(propagation=propagation))


def with_many(ha: PairLab, number: int) -> list[str]:
    """Give a pair so many profiles, all enrolled."""
    (ha.lab.home / "profiles" / "www.yaml").unlink()
    names = [f"p{index}" for index in range(number)]
    for name in names:
        ha.pair.add_virtual_server(name, "gateway")
        hosts = [ha.pair.a.host, ha.pair.b.host]
        ha.lab.write_profile(
            name, citrix=ha.lab.citrix(host=hosts), virtual_servers=on(name, "gateway")
        )
    assert ha.lab("run").exit_code == 0
    ha.pair.synchronize()
    return names


ROLE = "GET /nitro/v1/stat/hanode"
SYNC = "POST hafiles?action=sync"


def test_the_steps_of_many_on_a_pair(ha: PairLab) -> None:
    """Their keys are synchronized once, their files too; a look at the role does for several."""
    names = with_many(ha, 10)
    asked = len(ha.pair.a.server.requests)
    assert ha.lab("renew", *names).exit_code == 0
    told = calls(ha.pair.a, asked)
    assert len(told) <= 130
    steps = [
        ["POST sslecdsakey?action=create"] * 10,
        ["POST sslcertreq?action=create", "GET systemfile"] * 10,
        [SYNC],
        ["POST systemfile"] * 10,
        [SYNC],
        [each for n in names for each in ("POST sslcertkey?action=update", f"GET sslcertkey/{n}")],
        ["POST nsconfig?action=save"],
        [f"GET sslcertkey/{n}" for n in names],
        [CLOSING[0].replace("www", n) for n in names],
        [CLOSING[1]],
    ]
    first = told.index("POST sslecdsakey?action=create")
    without = [call for call in told[first:] if call not in {ROLE, "GET vpnvserver?PAGE"}]
    assert without == list(itertools.chain.from_iterable(steps))
    for step in steps:
        if is_write(step[0]) and step != steps[-1]:
            assert told[told.index(step[0], first) - 1] == ROLE
    for sync in [number for number, call in enumerate(told) if call == SYNC]:
        assert told[sync - 1] == told[sync + 1] == ROLE


@pytest.mark.parametrize(
    "write", ["ecdsakey?action=create", "/systemfile", "sslcertkey?action=update", "action=save"]
)
@pytest.mark.sample(4)
def test_a_failover_among_the_writes_of_many(ha: PairLab, write: str) -> None:
    """What the node is told until its role is looked at again is done anew at the other."""
    names = with_many(ha, 4)

    def after(request: Request) -> None:
        if request.method == "POST" and write in str(request) and ha.pair.primary is ha.pair.a:
            ha.pair.failover()

    ha.pair.a.server.after = after
    outcome = ha.lab.json("renew", *names)
    ha.pair.a.server.after = None
    errors = [each["error"] for each in outcome.document()["profiles"]]
    assert {error["kind"] for error in errors} == {"standby"}
    assert len(ha.pair.a.standby_writes) < len(names)
    assert len(ha.lab.scm.orders) == (4 if "key?action=create" in write else 8)
    converged(ha.lab, 2, ha.configure_standby)
    if len(ha.lab.scm.orders) == 4:
        assert ha.lab("renew", *names).exit_code == 0
    leaves = {order.leaf for order in ha.lab.scm.orders[4:]}
    assert {ha.pair.b.virtual_servers[name].handshake()[0] for name in names} == leaves
    assert missing_files(ha) == []
    assert not ha.pair.b.standby_writes


@pytest.mark.long
def test_a_role_is_looked_at_again_after_two_seconds(ha: PairLab) -> None:
    names = with_many(ha, 3)
    ha.pair.a.server.before = lambda request: time.sleep(2.1 * ("ecdsakey" in request.path))
    asked = len(ha.pair.a.server.requests)
    assert ha.lab("renew", *names).exit_code == 0
    told = calls(ha.pair.a, asked)
    first = told.index("POST sslecdsakey?action=create")
    assert told[first - 1 : first + 5] == [ROLE, told[first]] * 3


# ----- Clusters -----------------------------------------------------------------------------------


def test_a_cluster_gets_its_files_before_they_are_named(lab: Lab) -> None:
    lab.appliance.cluster = "CLIP"
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab.appliance.file_syncs == [["ssl"]]
    told = calls(lab.appliance)
    assert told.index("POST clusterfiles?action=sync") < told.index("POST sslcertkey")
    assert lab("renew", "www").exit_code == 0
    assert lab.appliance.file_syncs == [["ssl"]] * 2
    assert served(lab)[0] == leaf(lab)
    assert lab("run").text == ""


def test_a_node_of_a_cluster_is_refused(lab: Lab) -> None:
    lab.appliance.cluster = "NODE"
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "appliance"
    assert message.startswith(f"{lab.appliance.host}: create ssl ecdsakey www-")
    assert message.endswith("(NITRO 1203, HTTP 599): name the cluster IP address (CLIP) as host")
    assert not lab.scm.orders
    assert not lab.appliance.files
    lab.appliance.cluster = "CLIP"
    converged(lab, 1)


# ----- Partitions ---------------------------------------------------------------------------------


@pytest.fixture
def tenant(lab: Lab) -> Lab:
    """A lab whose profile www is of a partition, which has a vs_www as well."""
    partition = lab.appliance.add_partition("tenant-a", ssl_directory=TENANT)
    partition.add_virtual_server("vs_www", "load_balancing")
    lab.write_profile(citrix=in_partition(lab))
    return lab


def in_partition(lab: Lab, **changes: object) -> Document:
    return lab.citrix(**{"partition": "tenant-a", "ssl_directory": TENANT, **changes})


def tenant_served(lab: Lab) -> list[x509.Certificate]:
    return lab.appliance.partition("tenant-a").virtual_servers["vs_www"].handshake()


def test_a_partition_is_served_saved_and_renewed(tenant: Lab) -> None:
    own = tenant.appliance.partition("tenant-a")
    assert tenant("run").exit_code == 0
    assert calls(tenant.appliance)[1] == "POST nspartition?action=Switch"
    for expected in ("enroll", "renew"):
        assert tenant.scm.orders[-1].action == expected
        assert {path.rpartition("/")[0] for path in tenant.appliance.files} == {TENANT}
        assert own.saved
        assert not tenant.appliance.certkeys
        tenant.appliance.reboot()
        assert tenant_served(tenant)[0] == leaf(tenant)
        assert len(tenant_served(tenant)) == 3
        assert tenant("run").text == ""
        assert tenant("renew", "www").exit_code == 0


def test_one_certkey_name_in_two_partitions(tenant: Lab) -> None:
    """They are two certkeys; and one appliance is never written to by two."""
    tenant.write_profile("default", certificate=tenant.certificate(name="www"))
    crowd = Crowd(tenant.appliance)
    outcome = tenant("run")
    assert outcome.exit_code == 0
    assert crowd.most == 1
    assert len(tenant.scm.orders) == 2
    assert {tenant_served(tenant)[0], served(tenant)[0]} == {leaf(tenant, 0), leaf(tenant, 1)}
    assert tenant.appliance.saved
    assert tenant.appliance.partition("tenant-a").saved
    assert tenant("run").text == ""


def test_an_unknown_partition(tenant: Lab) -> None:
    tenant.write_profile(citrix=in_partition(tenant, partition="tenant-b"))
    kind, message = failed(tenant)
    assert kind == "appliance"
    assert message.startswith(f"{tenant.appliance.host}: switch ns partition tenant-b: ")
    assert message.endswith("(NITRO 2755, HTTP 599): check citrix.partition")


@pytest.mark.parametrize("part", ["sslcertreq", "action=link", "action=save"])
@pytest.mark.sample(2)
def test_a_new_session_is_of_the_partition_too(tenant: Lab, part: str) -> None:
    killed: list[str] = []

    def before(request: Request) -> None:
        if part in str(request) and not killed:
            killed.append(str(request))
            tenant.appliance.kill_sessions()

    tenant.appliance.server.before = before
    # Where the configuration was changed before, a restart may have undone that: a later run looks.
    is_changed = part != "sslcertreq"
    assert tenant("run").exit_code == int(is_changed)
    assert calls(tenant.appliance).count("POST nspartition?action=Switch") == 2 - int(is_changed)
    assert tenant("run").exit_code == 0
    assert killed
    assert not tenant.appliance.certkeys
    assert tenant.appliance.partition("tenant-a").saved
    assert tenant_served(tenant)[0] == leaf(tenant)


def test_a_partition_needs_its_directory(tenant: Lab) -> None:
    path = tenant.write_profile(citrix=in_partition(tenant, ssl_directory=None))
    outcome = tenant.json("run")
    assert outcome.exit_code == 3
    assert outcome.profile()["error"] == {
        "kind": "config",
        "message": f"{path}: citrix.ssl_directory: is missing: with citrix.partition it must be "
        "given, no default is right everywhere",
    }
    assert not tenant.appliance.server.requests


def test_a_partition_of_a_pair(ha: PairLab) -> None:
    ha.pair.add_partition("tenant-a", TENANT)
    own = ha.pair.a.partition("tenant-a")
    own.add_virtual_server("vs_www", "load_balancing")
    hosts = [ha.pair.a.host, ha.pair.b.host]
    ha.lab.write_profile(citrix=in_partition(ha.lab, host=hosts))
    assert ha.lab("run").exit_code == 0
    ha.pair.failover()
    assert ha.pair.b.partition("tenant-a").saved
    assert tenant_served(ha.lab)[0] == leaf(ha.lab)
    assert ha.lab("renew", "www").exit_code == 0
    assert tenant_served(ha.lab)[0] == leaf(ha.lab)


# ----- SNI ----------------------------------------------------------------------------------------


def host_name(lab: Lab, name: str, kind: str = "ECDSA-P256", **changes: object) -> None:
    """Write a profile of one host name, which is an SNI certificate of vs_sni."""
    block = lab.certificate(
        common_name=f"{name}.example.com", subject_alternative_names=None, key_type=kind
    )
    stem = name.replace("*", "any")
    changes = {"virtual_servers": on("vs_sni", sni=True), **changes}
    lab.write_profile(f"{stem}-{kind[0].lower()}", certificate=block, **changes)


@pytest.fixture
def hosting(lab: Lab) -> VirtualServer:
    """An empty virtual server that takes SNI."""
    return lab.appliance.add_virtual_server("vs_sni", "load_balancing", sni=True)


def due_and_renewed(lab: Lab) -> None:
    """Let what is there be renewed by a run."""
    age(lab, 150)
    assert lab("run").exit_code == 0
    age(lab, 0)
    outcome = lab.json("run")
    assert outcome.exit_code == 0
    assert {each["outcome"] for each in outcome.document()["profiles"]} == {"renewed"}
    assert not any(each["warnings"] for each in outcome.document()["profiles"])
    assert lab("run").text == ""


def issued_for(lab: Lab, name: str, kind: str = "E") -> list[x509.Certificate]:
    """Return what was issued for a name with RSA (R) or ECDSA (E) keys, the newest first."""
    leaves = [order.leaf for order in reversed(lab.scm.orders) if order.names[0] == name]
    return [each for each in leaves if each and key_type(each).startswith(kind)]


def test_several_names_on_one_virtual_server(lab: Lab, hosting: VirtualServer) -> None:
    """Each is presented to who asks for it, after a renewal and a reboot too."""
    for name in ("a", "b", "*", "www"):
        host_name(lab, name)
    due_and_renewed(lab)
    lab.appliance.reboot()
    wanted = {"a": "a", "b": "b", "other": "*", "www": "www"}
    for asked, held in wanted.items():
        chain = hosting.handshake(f"{asked}.example.com")
        assert chain[0] == issued_for(lab, f"{held}.example.com")[0]
        assert len(chain) == 3
    assert [binding.sni for binding in lab.appliance.bindings] == [True] * 4


def test_default_and_sni_certificate_in_one(lab: Lab, hosting: VirtualServer) -> None:
    host_name(lab, "a", virtual_servers=[*on("vs_sni"), *on("vs_sni", sni=True)])
    due_and_renewed(lab)
    bound = [(binding.certkey, binding.sni) for binding in lab.appliance.bindings]
    assert sorted(bound) == [("a-e", False), ("a-e", True)]
    (newest, _) = issued_for(lab, "a.example.com")
    assert hosting.handshake()[0] == hosting.handshake("a.example.com")[0] == newest
    assert len(lab.scm.orders) == 2


@pytest.mark.parametrize("sni", [False, True])
@pytest.mark.sample(2)
def test_both_key_types_side_by_side(lab: Lab, hosting: VirtualServer, sni: bool) -> None:
    """From two profiles; the renewal of one leaves the other alone."""
    kinds = {"RSA": "RSA-2048", "ECDSA": "ECDSA-P256"}
    for kind in kinds.values():
        host_name(lab, "a", kind, virtual_servers=on("vs_sni", sni=sni))
    assert lab("run").exit_code == 0

    def presented(signatures: str) -> x509.Certificate:
        return hosting.handshake("a.example.com", signatures)[0]

    for turn, (signatures, kind) in enumerate(kinds.items(), 1):
        (other,) = {*kinds} - {signatures}
        kept = presented(other)
        outcome = lab.json("renew", f"a-{kind[0].lower()}")
        (profile,) = outcome.document()["profiles"]
        assert (profile["outcome"], profile["warnings"]) == ("renewed", [])
        assert key_type(presented(signatures)) == kind
        assert presented(signatures) == leaf(lab)
        assert presented(other) == kept
        assert len(lab.scm.orders) == 2 + turn
    assert lab("run").text == ""


def test_sni_that_is_not_enabled_is_told_before_ordering(lab: Lab) -> None:
    host_name(lab, "a", virtual_servers=on("vs_www", sni=True))
    outcome = lab.json("run")
    assert outcome.exit_code == 1
    assert outcome.profile("a-e")["error"] == {
        "kind": "appliance",
        "message": f'SNI is not enabled on the virtual server "vs_www" of {lab.appliance.host}: '
        'set ssl vserver "vs_www" -SNIEnable ENABLED',
    }
    assert not any(map(is_write, lab.appliance.server.calls()))
    assert not lab.scm.orders


@pytest.mark.parametrize("names", [["a.example.com"], ["new.example.com", "a.example.com"]])
@pytest.mark.sample(2)
def test_a_name_that_another_certificate_has(
    lab: Lab, hosting: VirtualServer, names: list[str]
) -> None:
    """It is told before the order, with the profile that it belongs to, and the way out works."""
    host_name(lab, "a")
    assert lab("run").exit_code == 0
    (lab.home / "profiles" / "a-e.yaml").rename(lab.home / "a-e.yaml")
    block = lab.certificate(common_name=names[0], subject_alternative_names=names[1:])
    lab.write_profile("twin", certificate=block, virtual_servers=on("vs_sni", sni=True))
    error = lab.json("run", "twin").profile("twin")["error"]
    place = 'the virtual server "vs_sni" holds the SNI certificate for a.example.com'
    assert error["kind"] == "state"
    assert error["message"].startswith(f'{place}, the certkey "a-e" already: ')
    assert len(lab.scm.orders) == 1
    assert hosting.handshake("a.example.com")[0] == issued_for(lab, "a.example.com")[-1]
    lab.appliance.running.bindings.clear()
    assert lab("run", "twin").exit_code == 0
    assert len(lab.scm.orders) == 2


def test_a_default_certificate_is_proved_beside_sni_certificates(
    lab: Lab, hosting: VirtualServer
) -> None:
    """Who asks for its name gets the SNI certificate of another profile: no reason to undo."""
    host_name(lab, "*")
    required = {"handshake": "required"}
    host_name(lab, "a", virtual_servers=on("vs_sni"), verification=required)
    for command in (["run"], ["renew", "a-e"]):
        outcome = lab.json(*command)
        assert outcome.profile("a-e")["error"] is None
    assert hosting.handshake()[0] == issued_for(lab, "a.example.com")[0]


# ----- Chains -------------------------------------------------------------------------------------

CROSSED = ChainStyle(cross=True)
UNCROSSED = ChainStyle(cross=False)
LINKS: tuple[Literal["break", "keep", "refuse"], ...] = ("break", "keep", "refuse")


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(
    ("before", "after", "generation", "presented"),
    [
        (CROSSED, CROSSED, 37, ["CA DV E37", "Root E46"]),
        (CROSSED, UNCROSSED, 37, ["CA DV E37"]),
        (UNCROSSED, CROSSED, 37, ["CA DV E37", "Root E46"]),
        (UNCROSSED, CROSSED, 36, ["CA DV E36", "Root E46"]),
        (CROSSED, UNCROSSED, 36, ["CA DV E36", "Root E46"]),
    ],
    ids=["other issuer", "shorter", "longer", "cross-signed since", "cross-signed no more"],
)
@pytest.mark.sample(4)
def test_a_chain_that_changes_at_renewal(
    lab: Lab,
    before: ChainStyle,
    after: ChainStyle,
    generation: int,
    presented: list[str],
    link: Literal["break", "keep", "refuse"],
) -> None:
    lab.appliance.variant = Variant(update_link=link)
    lab.write_profile()
    lab.scm.answer = before
    age(lab, 150)
    assert lab("run").exit_code == 0
    lab.scm.answer, lab.scm.authority.generation = after, generation
    age(lab, 0)
    intermediates = {name for name in lab.appliance.certkeys if name != "www"}
    outcome = lab.json("run").profile()
    assert (outcome["outcome"], outcome["warnings"]) == ("renewed", [])
    lab.appliance.reboot()
    assert served(lab)[0] == leaf(lab)
    assert common_names(served(lab)) == ["www.example.com", *presented]
    assert intermediates <= set(lab.appliance.certkeys)
    assert lab("run").text == ""
    listed = lab.json("list", "--all").document()["certificates"]
    there = {each.name for each in lab.appliance.everything()}
    assert {each["certkey"] for each in listed} == there
    assert {each["certkey"] for each in listed if each["managed"]} == {"www"}


def test_an_issuer_that_is_shared_stays_linked(lab: Lab) -> None:
    """The renewal of one profile does not touch the chain of the other."""
    other = lab.appliance.add_virtual_server("vs_two", "gateway")
    lab.write_profile("one")
    lab.write_profile("two", virtual_servers=on("vs_two", "gateway"))
    assert lab("run").exit_code == 0
    kept = other.handshake()
    lab.scm.authority.generation = 37
    assert lab("renew", "one").exit_code == 0
    assert other.handshake() == kept
    assert common_names(served(lab))[1:] == ["CA DV E37", "Root E46"]


@pytest.mark.parametrize(("days", "told"), [(-1, "expired"), (29, "expires"), (31, "")], ids=str)
@pytest.mark.sample(2)
def test_an_intermediate_that_ends_soon_is_warned_about(lab: Lab, days: int, told: str) -> None:
    now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
    key, end = ec.generate_private_key(ec.SECP256R1()), now + dt.timedelta(days=days, hours=1)
    names = ["www.example.com", "example.com", "192.0.2.10"]
    own = Authority().certify(key.public_key(), names, now, now + dt.timedelta(days=90))
    ending = reissued(hierarchy()["CA DV E36"], end)
    lab.appliance.install("www", to_pem([own]), private_pem(key), [to_pem([ending])])
    lab.appliance.bind("vs_www", "www")
    lab.write_profile()
    issuer = lab.appliance.certkeys["www"].link
    warnings = [f"the intermediate {issuer} {told} at {end:%Y-%m-%dT%H:%M:%SZ}"] if told else []
    outcome = lab.json("run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "unchanged")
    assert outcome.profile()["warnings"] == warnings
    assert lab("renew", "www").exit_code == 0
    assert lab("run").text == ""
    assert ending not in served(lab)


# ----- Many profiles ------------------------------------------------------------------------------


class Crowd:
    """Notes how many sessions an appliance has at most, and which it gets when."""

    def __init__(self, appliance: NetScaler) -> None:
        self.most = 0
        self._appliance = appliance
        appliance.server.after = self.look

    def look(self, _: Request) -> None:
        self.most = max(self.most, len(self._appliance.sessions))


def write_many(lab: Lab, number: int) -> list[str]:
    """Write so many profiles, each for a virtual server of its own, of all kinds in turn."""
    names = [f"p{index}" for index in range(number)]
    for name, kind in zip(names, itertools.cycle(KINDS), strict=False):
        lab.appliance.add_virtual_server(name, kind)
        lab.write_profile(name, virtual_servers=on(name, kind))
    return names


def adopt_many(lab: Lab, number: int) -> None:
    """Write so many profiles whose certificates are there already: that is the quick way."""
    for name in write_many(lab, number):
        key = ec.generate_private_key(ec.SECP256R1())
        now = lab.scm.now()
        block = lab.certificate()
        names = [block["common_name"], *block["subject_alternative_names"]]
        own = Authority().certify(key.public_key(), names, now, now + dt.timedelta(days=90))
        chain = [to_pem([each]) for each in Authority().path(own, ChainStyle(root=False))[1:]]
        lab.appliance.install(name, to_pem([own]), private_pem(key), chain)
        lab.appliance.bind(name, name)


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


OPENING = [
    "POST login",
    "GET /nitro/v1/stat/hanode",
    "GET sslcertkey?PAGE",
    "GET sslvserver_sslcertkey_binding?bulkbindings=yes&PAGE",
]
NEW_KEY = [
    "POST sslecdsakey?action=create",
    "POST sslcertreq?action=create",
    "GET systemfile",
    "POST systemfile",
    "GET nsconfig",
]
CLOSING = ["DELETE systemfile/www-TIME.csr", "POST logout"]


@pytest.mark.parametrize("number", [1, 10, 40])
@pytest.mark.sample(3)
def test_requests_where_nothing_is_due(lab: Lab, number: int) -> None:
    adopt_many(lab, number - 1)
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.write_scm(check_revocation=False)
    asked, ordered = len(lab.appliance.server.requests), len(lab.scm.server.requests)
    assert lab("run").text == ""
    assert calls(lab.appliance, asked) == [*OPENING, "POST logout"]
    assert len(lab.scm.server.requests) == ordered


def with_chain(lab: Lab) -> Lab:
    """Put the chain on the appliance with the certificate of another profile."""
    lab.appliance.add_virtual_server("vs_other", "gateway")
    lab.write_profile("other", virtual_servers=on("vs_other", "gateway"))
    assert lab("run", "other").exit_code == 0
    lab.write_profile()
    return lab


def test_requests_of_one_enrollment(lab: Lab) -> None:
    with_chain(lab)
    lab.scm.issue_after = 1
    asked, ordered = len(lab.appliance.server.requests), len(lab.scm.server.requests)
    assert lab("run", "www").exit_code == 0
    assert calls(lab.appliance, asked) == [
        *OPENING,
        "GET lbvserver?PAGE",
        "GET sslvserver_sslcertkeybundle_binding?bulkbindings=yes",
        "GET systemfile",
        *NEW_KEY,
        "POST sslcertkey",
        "POST sslcertkey?action=link",
        "GET sslcertkey/www",
        "PUT sslvserver_sslcertkey_binding",
        "GET sslvserver_sslcertkey_binding/vs_www",
        "POST nsconfig?action=save",
        "GET sslcertkey/www",
        *CLOSING,
    ]
    assert len(calls(lab.appliance, asked)) <= 22
    assert [
        call.partition("?")[0].rpartition("/")[2] for call in lab.scm.server.calls(ordered)
    ] == [
        "token",
        "certificates",
        "1000002",
        "1000002",
    ]


def test_requests_of_one_renewal(lab: Lab) -> None:
    """The third generation's has two more: the files of the first are deleted."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    expected = [
        *OPENING,
        "GET vpnglobal_sslcertkey_binding",
        "GET systemfile",
        *NEW_KEY,
        "POST sslcertkey?action=update",
        "GET sslcertkey/www",
        "POST nsconfig?action=save",
        "GET sslcertkey/www",
        "GET lbvserver?PAGE",
    ]
    old = ["DELETE systemfile/www-TIME.key", "DELETE systemfile/www-TIME.crt"]
    for deleted in ([], old, old):
        asked = len(lab.appliance.server.requests)
        assert lab("renew", "www").exit_code == 0
        told = calls(lab.appliance, asked)
        assert told == [*expected, CLOSING[0], *deleted, CLOSING[1]]
        assert len(told) <= 18 + len(deleted)


def test_one_session_and_one_save_for_several_profiles(lab: Lab) -> None:
    """All keys are made before anything is installed, and certificates are waited for together."""
    write_many(lab, 5)
    lab.scm.issue_delay = 1.5
    assert lab("run").exit_code == 0
    told = calls(lab.appliance)
    for once in ("POST login", "POST logout", "POST nsconfig?action=save", "GET nsconfig"):
        assert told.count(once) == 1
    keys = [number for number, call in enumerate(told) if "sslecdsakey" in call]
    uploads = [number for number, call in enumerate(told) if call == "POST systemfile"]
    assert len(keys) == 5
    assert max(keys) < min(uploads)
    assert sum(call.startswith("POST") for call in lab.scm.server.calls()) == 6
    assert sum(call.endswith("/token") for call in lab.scm.server.calls()) == 1


@dataclasses.dataclass
class Estate:
    """Two appliances; the profiles are a and b."""

    lab: Lab
    appliances: Sequence[NetScaler]

    def order_of_requests(self) -> list[str]:
        """Let both note what they are asked from now on."""
        noted: list[str] = []
        for name, appliance in zip("ab", self.appliances, strict=True):
            appliance.server.before = functools.partial(_note, noted, name)
        return noted


def _note(noted: list[str], name: str, _: Request) -> None:
    noted.append(name)


@pytest.fixture
def estate(lab: Lab) -> Iterator[Estate]:
    with NetScaler() as second:
        second.add_user("citrixagent", PASSWORD)
        second.add_virtual_server("vs_www", "load_balancing")
        for name, appliance in (("a", lab.appliance), ("b", second)):
            lab.write_profile(name, citrix=lab.citrix(host=appliance.host))
        yield Estate(lab, (lab.appliance, second))
        assert not second.sessions


def test_appliances_are_handled_in_parallel(estate: Estate) -> None:
    """Each waits with its first answer until the other is asked too."""
    meeting = threading.Barrier(2, timeout=10)

    def before(request: Request) -> None:
        if request.number == 1:
            meeting.wait()

    for appliance in estate.appliances:
        appliance.server.before = before
    assert estate.lab("run").exit_code == 0
    assert len(estate.lab.scm.orders) == 2


class Meeting:
    """Has everybody wait until so many are there; notes how many were there at most."""

    def __init__(self, size: int) -> None:
        self.most = self.came = 0
        self._there = 0
        self._lock = threading.Lock()
        self._all = threading.Barrier(size, timeout=60)

    def wait(self) -> None:
        with self._lock:
            self.came, self._there = self.came + 1, self._there + 1
            self.most = max(self.most, self._there)
        self._all.wait()
        with self._lock:
            self._there -= 1


def test_virtual_servers_are_looked_at_together(estate: Estate) -> None:
    """Of all appliances, sixteen at a time: each waits until so many are there."""
    meeting = Meeting(16)
    names = [f"vs_{number}" for number in range(16)]
    for profile, appliance in zip("ab", estate.appliances, strict=True):
        for name in names:
            appliance.add_virtual_server(name, "load_balancing").meet = meeting.wait
        servers = [server for name in names for server in on(name)]
        citrix = estate.lab.citrix(host=appliance.host)
        estate.lab.write_profile(profile, citrix=citrix, virtual_servers=servers)
    outcome = estate.lab.json("run")
    assert outcome.exit_code == 0
    assert [each["warnings"] for each in outcome.document()["profiles"]] == [[], []]
    assert (meeting.came, meeting.most) == (32, 16)


def is_question(request: Request) -> bool:
    return request.path.endswith("/status")


def test_scm_is_asked_for_many_certificates_at_the_same_time(lab: Lab) -> None:
    """The first question is asked alone, then eight at a time; each answer is heeded."""
    write_many(lab, 9)
    assert lab("run").exit_code == 0
    meeting, asked = Meeting(8), len(lab.scm.server.requests)
    lab.scm.revoke(lab.scm.orders[-1], 1, "lost")

    def before(request: Request) -> None:
        if is_question(request) and any(map(is_question, lab.scm.server.requests[asked:-1])):
            meeting.wait()

    lab.scm.server.before = before
    outcomes = [each["outcome"] for each in lab.json("run").document()["profiles"]]
    assert sorted(outcomes) == ["enrolled"] + ["unchanged"] * 8
    assert (meeting.came, meeting.most) == (8, 8)


def is_order(request: Request) -> bool:
    return request.method == "POST" and request.path.startswith("/api/")


def test_orders_run_beside_each_other_and_beside_the_keys_of_others(lab: Lab) -> None:
    """The first is sent alone, then eight wait until so many are there: no key waited for them."""
    write_many(lab, 12)
    meeting = Meeting(8)

    def before(request: Request) -> None:
        if is_order(request) and 1 < sum(map(is_order, lab.scm.server.requests)) <= 9:
            meeting.wait()

    lab.scm.server.before = before
    assert lab("run").exit_code == 0
    assert (meeting.came, meeting.most) == (8, 8)
    assert len({order.leaf for order in lab.scm.orders}) == 12


def test_certificates_are_asked_for_together_and_beside_an_installation(lab: Lab) -> None:
    """The first is installed while eight wait until so many are there and that has begun."""
    names = write_many(lab, 9)
    meeting, installs = Meeting(9), threading.Event()
    lab.scm.approval = "manual"
    assert lab("run", "--wait", "0").exit_code == 5
    for order in lab.scm.orders:
        order.approve()
    asked = len(lab.scm.server.requests)

    def waits(request: Request) -> None:
        if request.method == "GET" and any(
            "GET" in call for call in lab.scm.server.calls(asked)[:-1]
        ):
            meeting.wait()

    def installs_one(request: Request) -> None:
        if (
            request.method == "POST"
            and request.path.endswith("/sslcertkey")
            and not installs.is_set()
        ):
            installs.set()
            meeting.wait()

    lab.scm.server.before, lab.appliance.server.before = waits, installs_one
    assert lab("run").exit_code == 0
    assert (meeting.came, meeting.most) == (9, 9)
    assert lab.appliance.saved
    assert all(lab.appliance.virtual_servers[name].handshake()[0] for name in names)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_eight_orders_that_are_cut_off_are_all_on_record(lab: Lab, number: int) -> None:
    """What may have been placed is asked for by nobody again."""
    lab.write_scm(timeout=600)
    names = write_many(lab, 10)
    fault = Fault("stall", stage="body", seconds=600, matches=is_later_order(lab), times=99)
    lab.scm.server.faults.append(fault)
    with lab.start("run") as process:
        wait_until(lambda: fault.times == 99 - 8, process)
        process.send_signal(number)
        lab.ended(process)
    lab.appliance.sessions.clear()  # who is killed does not log out
    assert fault.times == 99 - 8
    changes = [lab.record(name)["change"] or {} for name in names]
    orders = [change.get("order") or {} for change in changes]
    assert sum(bool(order.get("sent")) for order in orders) == 9
    lab.scm.server.faults.clear()
    outcome = lab.json("run")
    kinds = [(each["error"] or {}).get("kind") for each in outcome.document()["profiles"]]
    assert sorted(map(str, kinds)) == ["None"] * 2 + ["unknown_outcome"] * 8
    assert len(lab.scm.orders) == 2


@pytest.mark.parametrize("by_login", [False, True])
def test_an_scm_that_breaks_connections_costs_all_orders_one_round_of_tries(
    lab: Lab, *, by_login: bool
) -> None:
    """Though orders are sent beside each other; the connections are counted."""
    write_many(lab, 9)
    if by_login:
        use_admin(lab, by_login=True)
    path = lab.home / "scm.yaml"
    with BareListener("reset") as broken:
        lab.write("scm.yaml", path.read_text().replace(lab.scm.url, broken.url))
        outcome = lab.json("run")
    assert [each["error"]["kind"] for each in outcome.document()["profiles"]] == ["unreachable"] * 9
    assert broken.connections == 4
    assert not any(map(is_write, calls(lab.appliance)[1:-1]))  # but for the login and the logout


def is_later_order(lab: Lab) -> Callable[[Request], bool]:
    """Return what tells whether a request is an order, and not the first."""
    return lambda request: is_order(request) and sum(map(is_order, lab.scm.server.requests)) > 1


def test_a_list_of_scm_answers_for_many_certificates(lab: Lab) -> None:
    """Where that is fewer requests; what it names is asked for, and nothing is taken from it."""
    use_admin(lab, by_login=True)
    write_many(lab, 8)
    assert lab("run").exit_code == 0
    server, path = lab.scm.server, "/api/ssl/v1"

    def asked() -> list[str]:
        since = len(server.requests)
        assert lab("run").text == ""
        return [call.removeprefix(f"GET {path}") for call in server.calls(since)]

    page = "?status=Revoked&size=200&position=0"
    each = sorted(f"/{order.cert_id}" for order in lab.scm.orders)
    assert asked() == [page]
    for much in (
        lambda _, told: dataclasses.replace(told, headers={"X-Total-Count": "201"}),
        lambda _, told: dataclasses.replace(told, headers={}),
        lambda request, told: scm_error(-1002, "status") if request.query else told,
        # of a filter that is not heeded
        lambda request, told: everything(lab, told) if request.query else told,
    ):
        server.rewrite = much
        assert sorted(asked()) == [*each, page]
    server.rewrite = None
    lab.scm.revoke(lab.scm.orders[-1], 1, "lost")
    outcomes = [each["outcome"] for each in lab.json("run").document()["profiles"]]
    assert sorted(outcomes) == ["enrolled"] + ["unchanged"] * 7


def everything(lab: Lab, told: Response) -> Response:
    rows = [{"sslId": int(order.cert_id)} for order in lab.scm.orders]
    return dataclasses.replace(told, body=json.dumps(rows).encode(), headers={"X-Total-Count": "8"})


def test_one_job_is_one_appliance_after_another(estate: Estate) -> None:
    noted = estate.order_of_requests()
    assert estate.lab("run", "--jobs", "1").exit_code == 0
    assert [name for name, _ in itertools.groupby(noted)] in (["a", "b"], ["b", "a"])


def test_an_appliance_that_is_silent_costs_its_own_profiles_only(estate: Estate) -> None:
    gone = estate.appliances[0]
    gone.server.faults.append(Fault("hang", times=99, seconds=20))
    for name in ("c", "d"):
        block = estate.lab.citrix(host=gone.host, timeout=2)
        server = {"name": f"vs_{name}", "type": "load_balancing"}
        estate.lab.write_profile(name, citrix=block, virtual_servers=[server])
    estate.lab.write_profile("a", citrix=estate.lab.citrix(host=gone.host, timeout=2))
    outcome = estate.lab.json("run")
    assert outcome.exit_code == 1
    outcomes = {each["profile"]: each["outcome"] for each in outcome.document()["profiles"]}
    assert outcomes == {"a": "failed", "b": "enrolled", "c": "failed", "d": "failed"}
    assert len(gone.server.requests) == 1


def test_one_appliance_in_two_ways_is_handled_in_turn(lab: Lab) -> None:
    """The blocks differ, the address does not: never two sessions, never two writes at once."""
    lab.appliance.add_virtual_server("vs_two", "gateway")
    lab.write_profile("one")
    lab.write_profile("two", citrix=lab.citrix(timeout=21), virtual_servers=on("vs_two", "gateway"))
    lab.appliance.server.latency = 0.02
    crowd = Crowd(lab.appliance)
    assert lab("run").exit_code == 0
    assert (lab.appliance.logins, crowd.most) == (2, 1)


def test_one_pair_in_two_ways_is_handled_in_turn(ha: PairLab) -> None:
    ha.pair.add_virtual_server("vs_two", "gateway")
    ha.lab.write_profile("two", citrix=ha.lab.citrix(), virtual_servers=on("vs_two", "gateway"))
    ha.pair.a.server.latency = 0.01
    crowd = Crowd(ha.pair.a)
    assert ha.lab("run").exit_code == 0
    assert (ha.pair.a.logins, crowd.most) == (2, 1)


@pytest.mark.parametrize("number", [1000, 1001])
@pytest.mark.sample(2)
def test_long_lists_are_read_in_pages(lab: Lab, number: int) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    for index in range(number - 1):  # vs_www is one
        lab.appliance.virtual_servers[f"vs_{index}"] = plain_server(f"vs_{index}")
    last = lab.appliance.add_virtual_server("vs_last", "gateway")
    lab.appliance.virtual_servers["vs_www"] = lab.appliance.virtual_servers.pop("vs_www")
    lab.appliance.running.bindings.clear()
    asked = len(lab.appliance.server.requests)
    assert lab.json("run").profile()["outcome"] == "repaired"
    assert last.kind == "gateway"
    pages = [call for call in lab.appliance.server.calls(asked) if "/lbvserver?" in call]
    assert [call.rpartition("=")[2] for call in pages] == [
        str(page) for page in range(1, number // 1000 + 2)
    ]
    assert served(lab)[0] == leaf(lab)


def plain_server(name: str) -> VirtualServer:
    """Return a virtual server that costs nothing: it ends no TLS, so it does not listen."""
    return VirtualServer(name, "load_balancing", "HTTP", sni=False)
