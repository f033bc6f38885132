"""HA pairs, clusters, partitions, SNI and busy appliances: what estates are made of."""

from __future__ import annotations

import base64
import datetime as dt
import pathlib
import ssl
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from simulators.appliance import SSL_FOLDER, pooled_rsa_key
from simulators.ca import Authority, hierarchy
from simulators.listener import VirtualServer
from simulators.netscaler import NetScaler, Variant, presented_chain
from simulators.pair import HaPair
from simulators.reissue import reissued
from simulators.server import Request, authority_pem
from test_simulator_netscaler import (
    BINDING,
    CREATE_RSA,
    LINK,
    R1,
    R2,
    UPDATE,
    Client,
    pem,
    told,
)

SYNC = "/hafiles?action=sync"
SAVE = "/nsconfig?action=save"
SWITCH = "/nspartition?action=Switch"
TENANT = "/nsconfig/partitions/tenant-a/ssl"

Login = Callable[[NetScaler | HaPair], Client]


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Login:
    """Log in as the administrator, who is made up on the way."""
    ca_file = tmp_path_factory.mktemp("management") / "ca.pem"
    ca_file.write_text(authority_pem())

    def enter(ns: NetScaler | HaPair) -> Client:
        ns.add_user("admin", "secret")
        client = Client(ns.primary if isinstance(ns, HaPair) else ns, ca_file)
        client.url = f"https://{ns.host}/nitro/v1"
        assert client.login().status_code == 201
        return client

    return enter


@pytest.fixture
def ns() -> Iterator[NetScaler]:
    with NetScaler() as appliance:
        yield appliance


@pytest.fixture
def pair() -> Iterator[HaPair]:
    """A pair with a virtual server that serves a certificate, which is known and saved on both."""
    with HaPair() as made:
        made.add_virtual_server("vs", "gateway")
        made.install("www", *R1.issue("www.example.com"), chain=[R1.pem])
        made.bind("vs", "www")
        yield made


def served(address: NetScaler | HaPair) -> x509.Certificate:
    node = address.primary if isinstance(address, HaPair) else address
    return node.virtual_servers["vs"].handshake()[0]


def post(client: Client, target: str, **attributes: object) -> requests.Response:
    return client.send("POST", target, {target[1:].partition("?")[0]: attributes})


def prepare(client: Client, name: str = "new") -> dict[str, object]:
    """Upload the next certificate; return the arguments that install it."""
    certificate, key = R1.issue("www.example.com")
    client.upload(f"{name}.crt", certificate)
    client.upload(f"{name}.key", key)
    return {"certkey": "www", "cert": f"{name}.crt", "key": f"{name}.key"}


# HA pairs


def test_each_node_tells_its_role(pair: HaPair, login: Login) -> None:
    a, b = login(pair.a), login(pair.b)
    assert pair.a.host != pair.b.host
    for swapped in (False, True):
        for client, active in ((a, not swapped), (b, swapped)):
            states = ["Primary", "Secondary"] if active else ["Secondary", "Primary"]
            assert [node["state"] for node in client.get("/hanode")] == states
            state = client.get("/stat/hanode")
            assert (state["hacurstatus"], state["hacurmasterstate"]) == ("YES", states[0])
        assert a.get("/hanode/0")[0]["ipaddress"] == b.get("/hanode/1")[0]["ipaddress"]
        system = a.get("/nsconfig"), b.get("/nsconfig")
        assert {row["systemtype"] for row in system} == {"HA"}
        assert system[0]["primaryip"] == system[1]["primaryip"]
        pair.failover()


def test_a_renewal_needs_its_files_on_both_nodes(pair: HaPair, login: Login) -> None:
    client = login(pair)
    new = prepare(client)
    client.do("POST", CREATE_RSA, keyfile="made.key", bits=1024)
    before = pair.a.running.copy()
    assert told(post(client, UPDATE, **new)) == (599, 1647)
    assert pair.a.running == pair.b.running == before
    assert f"{SSL_FOLDER}/made.key" not in pair.b.files

    client.do("POST", SYNC, mode=["ssl"])
    assert pair.a.files == pair.b.files
    client.do("POST", UPDATE, **new)
    assert pair.a.running == pair.b.running != before
    assert [node.saved for node in (pair.a, pair.b)] == [False, False]
    client.do("POST", SAVE)
    assert [node.saved for node in (pair.a, pair.b)] == [True, True]
    assert (pair.out_of_sync, pair.b.standby_writes) == ([], [])


def test_the_same_addresses_serve_after_a_failover(pair: HaPair, login: Login) -> None:
    server, old = pair.b.virtual_servers["vs"], served(pair)
    address = server.address
    assert login(pair.b).get("/vpnvserver/vs") == login(pair.a).get("/vpnvserver/vs")
    pair.b.install("stray", *R1.issue("stray.example.com"))
    pair.b.bind("vs", "stray")
    assert served(pair) == old
    pair.failover()
    assert (pair.primary, server.address) == (pair.b, address)
    assert served(pair) == pair.b.certkeys["stray"].certificate
    pair.failover()
    assert served(pair) == old
    pair.synchronize()
    assert pair.a.running == pair.b.running


def test_syncs_can_be_busy_fail_or_copy_something_else(pair: HaPair, login: Login) -> None:
    client = login(pair)
    prepare(client)
    pair.sync_busy, pair.sync_fails = 2, True
    codes = [told(post(client, SYNC, mode=["ssl"])) for _ in range(3)]
    assert codes == [(599, 3591), (599, 3591), (599, 3592)]
    pair.sync_fails = False
    client.do("POST", SYNC, mode=["dns", "misc"])
    assert f"{SSL_FOLDER}/new.key" not in pair.b.files
    assert pair.a.file_syncs == [["dns", "misc"]]
    pair.minute_passes()
    assert f"{SSL_FOLDER}/new.key" in pair.b.files


def test_files_that_only_the_standby_node_has_stay(pair: HaPair, login: Login) -> None:
    client = login(pair)
    client.do("POST", CREATE_RSA, keyfile="made.key", bits=1024)
    pair.failover()
    login(pair).do("POST", SYNC)
    assert f"{SSL_FOLDER}/made.key" in pair.a.files
    assert f"{SSL_FOLDER}/made.key" not in pair.b.files


def test_what_the_standby_node_is_told_stays_there(pair: HaPair, login: Login) -> None:
    client = login(pair.b)
    old = served(pair)
    new = prepare(client)
    client.do("POST", UPDATE, **new)
    client.do("POST", SWITCH, partitionname="default")
    assert pair.b.standby_writes == [
        'add system file new.crt -fileLocation "/nsconfig/ssl" -fileEncoding BASE64',
        'add system file new.key -fileLocation "/nsconfig/ssl" -fileEncoding BASE64',
        "update ssl certKey www -cert new.crt -key new.key",
    ]
    assert f"{SSL_FOLDER}/new.key" not in pair.a.files
    assert served(pair) == pair.a.certkeys["www"].certificate == old
    assert pair.b.certkeys["www"].certificate != old


def test_propagation_can_fail_silently(login: Login) -> None:
    with HaPair(variant=Variant(propagation="silent")) as pair:
        pair.add_virtual_server("vs", "gateway")
        client = login(pair)
        new = prepare(client)
        client.do("POST", "/sslcertkey", **new)
        client.do("PUT", BINDING, vservername="vs", certkeyname="www")
        refused = {"certkey": "unknown", "cert": "new.crt"}
        assert told(post(client, UPDATE, **refused)) == (599, 1540)
        assert (list(pair.a.certkeys), list(pair.b.certkeys)) == (["www"], [])
        assert pair.out_of_sync == [
            "add ssl certKey www -cert new.crt -key new.key",
            "bind ssl vserver vs -certkeyName www",
        ]
        pair.failover()
        with pytest.raises(ssl.SSLError):
            served(pair)
        pair.failover()
        pair.synchronize()
        assert pair.a.running == pair.b.running
        assert pair.out_of_sync == []


@pytest.mark.parametrize("code", [None, 349, 457, 458])
@pytest.mark.sample(3)
def test_a_standby_node_that_is_out_of_service(
    pair: HaPair, login: Login, code: int | None
) -> None:
    """What it is told is carried out here, whatever the answer says."""
    client = login(pair)
    new = prepare(client)
    pair.peer_is_dead, pair.peer_answer = True, code
    assert told(post(client, SYNC, mode=["ssl"])) == (599, 3592)
    answer = post(client, UPDATE, **new)
    assert answer.status_code == (599 if code else 200)
    assert served(pair) == pair.a.certkeys["www"].certificate
    assert pair.a.certkeys["www"].cert == "new.crt"
    assert pair.b.certkeys["www"].cert == "www.crt"
    assert pair.out_of_sync == ["update ssl certKey www -cert new.crt -key new.key"]
    pair.minute_passes()
    assert f"{SSL_FOLDER}/new.key" not in pair.b.files


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failover_at_a_request(pair: HaPair, login: Login, moment: str) -> None:
    client = login(pair.a)
    new = prepare(client)
    pair.minute_passes()

    def at_the_update(request: Request) -> None:
        if "action=update" in request.query:
            pair.failover()

    setattr(pair.a.server, moment, at_the_update)
    client.do("POST", UPDATE, **new)  # its session goes on
    wrote_on_standby = moment == "before"
    assert len(pair.a.standby_writes) == wrote_on_standby
    assert (pair.a.running == pair.b.running) != wrote_on_standby
    assert client.get("/stat/hanode")["hacurmasterstate"] == "Secondary"


def test_an_address_moves_with_the_active_node_but_no_session_does(
    pair: HaPair, login: Login
) -> None:
    client = login(pair)
    client.get("/nsversion")
    pair.failover()
    assert told(client.send("GET", "/nsversion")) == (401, 1027)
    client.login()
    assert client.get("/hanode/0")[0]["state"] == "Primary"
    assert (pair.a.logins, pair.b.logins) == (1, 1)


# clusters


def test_a_cluster_is_configured_at_its_address(ns: NetScaler, login: Login) -> None:
    client = login(ns)
    assert told(post(client, "/clusterfiles?action=sync")) == (599, 257)
    ns.cluster = "CLIP"
    assert client.get("/nsconfig")["systemtype"] == "Cluster"
    client.do("POST", "/sslcertkey", **prepare(client))
    client.do("POST", "/clusterfiles?action=sync", mode=["ssl"])
    assert ns.file_syncs == [["ssl"]]
    assert told(client.send("GET", f"{BINDING}/vs")) == (599, 1544)


def test_a_node_of_a_cluster_is_read_only(ns: NetScaler, login: Login) -> None:
    ns.cluster = "NODE"
    client = login(ns)
    assert client.get("/nsconfig")["systemtype"] == "Cluster"
    client.do("POST", SWITCH, partitionname="default")
    writes: list[tuple[str, dict[str, object]]] = [
        (CREATE_RSA, {"keyfile": "k.key", "bits": 1024}),
        ("/clusterfiles?action=sync", {"mode": ["ssl"]}),
        (SAVE, {}),
    ]
    for target, attributes in writes:
        assert told(post(client, target, **attributes)) == (599, 1203)
    assert ns.files == {}


# partitions


@pytest.fixture
def tenant(ns: NetScaler, login: Login) -> Client:
    """A session in a partition that has a virtual server of a name that the default one has too."""
    ns.add_virtual_server("vs", "load_balancing")
    ns.add_partition("tenant-a", ssl_directory=TENANT).add_virtual_server("vs", "gateway")
    client = login(ns)
    client.do("POST", SWITCH, partitionname="tenant-a")
    return client


def upload(client: Client, name: str, content: str, location: str) -> requests.Response:
    encoded = base64.b64encode(content.encode()).decode()
    return post(client, "/systemfile", filename=name, filelocation=location, filecontent=encoded)


def test_a_partition_has_a_configuration_of_its_own(
    ns: NetScaler, login: Login, tenant: Client
) -> None:
    own, default = ns.partition("tenant-a"), login(ns)
    certificate, key = R1.issue("www.example.com")
    for name, content in (("www.crt", certificate), ("www.key", key)):
        assert upload(tenant, name, content, TENANT).status_code == 201
    tenant.do("POST", "/sslcertkey", certkey="www", cert="www.crt", key=f"{TENANT}/www.key")
    tenant.do("PUT", BINDING, vservername="vs", certkeyname="www")
    assert own.virtual_servers["vs"].handshake() == [own.certkeys["www"].certificate]
    assert tenant.get("/vpnvserver/vs")[0]["name"] == "vs"
    assert told(tenant.send("GET", "/lbvserver/vs")) == (404, 258)
    assert default.get("/sslcertkey") is None
    assert default.get(f"{BINDING}/vs") is None

    ns.install("www", *R2.issue("www.example.com"))  # the same name and certificate elsewhere
    ns.bind("vs", "www")
    assert served(ns) == ns.certkeys["www"].certificate != own.certkeys["www"].certificate
    assert [binding.virtual_server for binding in own.bindings] == ["vs"]


def test_a_partition_uses_only_the_files_of_its_directory(ns: NetScaler, tenant: Client) -> None:
    ns.install("other", *R1.issue("other.example.com"))
    certificate, _ = R1.issue("www.example.com")
    listing = "/systemfile?args=filelocation:%2Fnsconfig%2Fssl"
    assert told(upload(tenant, "a.crt", certificate, SSL_FOLDER)) == (599, 1645)
    assert told(upload(tenant, "a.crt", certificate, "/nsconfig/tls")) == (599, 3440)
    assert told(tenant.send("GET", listing)) == (599, 1647)
    outside: list[tuple[str, dict[str, object], int]] = [
        (CREATE_RSA, {"keyfile": f"{SSL_FOLDER}/k.key", "bits": 1024}, 1645),
        ("/sslcertkey", {"certkey": "n", "cert": f"{SSL_FOLDER}/other.crt"}, 1647),
        ("/sslcertkey", {"certkey": "n", "cert": "other.crt"}, 1647),
    ]
    for target, attributes, code in outside:
        assert told(post(tenant, target, **attributes)) == (599, code)
    tenant.do("POST", CREATE_RSA, keyfile="k.key", bits=1024)
    assert f"{TENANT}/k.key" in ns.files


def test_a_switch_is_of_one_session(ns: NetScaler, tenant: Client) -> None:
    assert told(post(tenant, SWITCH, partitionname="tenant-b")) == (599, 2755)
    assert tenant.get("/vpnvserver")[0]["name"] == "vs"
    stateless = Client(ns, pathlib.Path(tenant.ca_file))
    headers = {"X-NITRO-USER": "admin", "X-NITRO-PASS": "secret"}
    body = {"nspartition": {"partitionname": "tenant-a"}}
    assert stateless.send("POST", SWITCH, body, **headers).status_code == 200
    assert told(stateless.send("GET", "/vpnvserver/vs", **headers)) == (404, 258)
    tenant.login()
    assert tenant.get("/vpnvserver") is None


def test_each_partition_is_saved_and_restored(ns: NetScaler, tenant: Client) -> None:
    own = ns.partition("tenant-a")
    own.install("www", *R1.issue("www.example.com"), chain=[R1.pem])
    assert f"{TENANT}/www.key" in ns.files
    own.bind("vs", "www")
    ns.install("www", *R2.issue("www.example.com"))
    change: dict[str, object] = {"certkey": "www", "notificationperiod": 10}
    other = Client(ns, pathlib.Path(tenant.ca_file))
    other.login()
    for client in (tenant, other):
        client.do("PUT", "/sslcertkey", **change)
    tenant.do("POST", SAVE)
    assert tenant.get("/nsconfig")["configchanged"] is False
    assert (own.saved, ns.saved) == (True, False)
    ns.reboot()
    assert own.certkeys["www"].notificationperiod == 10
    assert ns.certkeys["www"].notificationperiod == 30
    assert len(own.virtual_servers["vs"].handshake()) == 2

    other.login()
    other.do("PUT", "/sslcertkey", **change)
    tenant.login()
    tenant.do("POST", SWITCH, partitionname="tenant-a")
    tenant.do("POST", SAVE, all=True)
    assert ns.saved


def test_partitions_of_a_pair(pair: HaPair, login: Login) -> None:
    pair.add_partition("tenant-a", TENANT)
    pair.a.partition("tenant-a").add_virtual_server("vs", "gateway")
    client = login(pair)
    client.do("POST", SWITCH, partitionname="tenant-a")
    certificate, key = R1.issue("www.example.com")
    for name, content in (("www.crt", certificate), ("www.key", key)):
        assert upload(client, name, content, TENANT).status_code == 201
    client.do("POST", SYNC, mode=["ssl"])
    client.do("POST", "/sslcertkey", certkey="www", cert="www.crt", key="www.key")
    client.do("PUT", BINDING, vservername="vs", certkeyname="www")
    pair.failover()
    (leaf,) = pair.b.partition("tenant-a").virtual_servers["vs"].handshake()
    assert pem(leaf) == certificate


# SNI


@pytest.fixture
def hosting(ns: NetScaler) -> VirtualServer:
    """A virtual server with certificates by name: RSA and ECDSA for a, ECDSA for the others."""
    server = ns.add_virtual_server("vs", "load_balancing", sni=True)
    ns.install("default", *R1.issue("default.example.com"))
    ns.bind("vs", "default")
    ns.install("a-rsa", *R1.issue("a.example.com", key=pooled_rsa_key(2048)))
    for name in ("a.example.com", "b.example.com", "*.example.com"):
        ns.install(name.partition(".")[0].replace("*", "any"), *R1.issue(name))
    for name in ("any", "a", "a-rsa", "b", "default"):
        ns.bind("vs", name, sni=True)
    return server


def test_certificates_are_chosen_by_name_and_key_type(
    ns: NetScaler, hosting: VirtualServer
) -> None:
    def chosen(name: str | None, kind: str) -> str:
        leaf = presented_chain(*hosting.address, name, kind)[0]
        return next(c.name for c in ns.certkeys.values() if c.certificate == leaf)

    assert chosen("a.example.com", "RSA") == "a-rsa"
    assert chosen("A.EXAMPLE.com", "ECDSA") == "a"
    assert chosen("b.example.com", "ECDSA") == "b"
    assert chosen("c.example.com", "ECDSA") == "any"
    assert chosen("example.com", "ECDSA") == chosen(None, "ECDSA") == "default"
    assert hosting.served == [ns.certkeys["default"].serial]
    assert len(hosting.served_by_name) == 5
    hosting.sni = False
    assert chosen("b.example.com", "ECDSA") == "default"


def test_a_certificate_is_bound_as_default_and_by_name(
    ns: NetScaler, login: Login, hosting: VirtualServer
) -> None:
    client = login(ns)
    assert client.get("/sslvserver/vs")[0]["snienable"] == "ENABLED"
    rows = [row for row in client.get(f"{BINDING}/vs") if row["certkeyname"] == "default"]
    assert [row["snicert"] for row in rows] == [False, True]
    client.do("DELETE", f"{BINDING}/vs?args=certkeyname:default")
    client.do("DELETE", f"{BINDING}/vs?args=certkeyname:default,snicert:true")
    with pytest.raises(ssl.SSLError):
        hosting.handshake()
    assert hosting.handshake("a.example.com")


@pytest.mark.parametrize(
    ("key_type", "names", "code"),
    [
        ("ECDSA", ("A.example.com",), 3629),
        ("ECDSA", ("new.example.com", "b.example.com"), 1674),
        ("RSA", ("a.example.com",), 3629),
        ("RSA", ("new.example.com", "b.example.com"), None),
        ("ECDSA", (), 3628),
    ],
)
@pytest.mark.sample(3)
def test_names_are_not_bound_twice(
    ns: NetScaler,
    login: Login,
    hosting: VirtualServer,
    key_type: Literal["RSA", "ECDSA"],
    names: tuple[str, ...],
    code: int | None,
) -> None:
    key = pooled_rsa_key(2048) if key_type == "RSA" else ec.generate_private_key(ec.SECP256R1())
    issued = names or ("nameless.example.com",)
    ns.install("new", *R1.issue(*issued, key=key, common_name=bool(names)))
    bind = {BINDING[1:]: {"vservername": "vs", "certkeyname": "new", "snicert": True}}
    client = login(ns)
    ns.add_virtual_server("plain", "load_balancing")
    plain = {BINDING[1:]: {**bind[BINDING[1:]], "vservername": "plain"}}
    assert told(client.send("PUT", BINDING, plain)) == (599, 3627)
    response = client.send("PUT", BINDING, bind)
    assert response.status_code == 201 if code is None else told(response) == (599, code)


def test_key_types_may_have_to_share_names(ns: NetScaler, login: Login) -> None:
    ns.variant = Variant(sni_per_key_type=False)
    ns.add_virtual_server("vs", "load_balancing", sni=True)
    ns.install("rsa", *R1.issue("a.example.com", key=pooled_rsa_key(2048)))
    ns.install("ecdsa", *R1.issue("a.example.com"))
    ns.bind("vs", "rsa", sni=True)
    bind = {BINDING[1:]: {"vservername": "vs", "certkeyname": "ecdsa", "snicert": True}}
    assert told(login(ns).send("PUT", BINDING, bind)) == (599, 3629)


@pytest.mark.parametrize(
    ("names", "kept"), [(("b.example.com",), True), (("a.example.com",), False), ((), False)]
)
@pytest.mark.sample(2)
def test_an_update_keeps_the_binding_if_the_names_allow_it(
    ns: NetScaler,
    login: Login,
    hosting: VirtualServer,
    names: tuple[str, ...],
    kept: bool,
) -> None:
    certificate, key = R1.issue(*(names or ("b.example.com",)), common_name=bool(names))
    client = login(ns)
    client.upload("next.crt", certificate)
    client.upload("next.key", key)
    files: dict[str, object] = {"cert": "next.crt", "key": "next.key"}
    client.do("POST", UPDATE, certkey="b", **files, nodomaincheck=True)
    assert ("b" in {binding.certkey for binding in ns.bindings}) == kept
    assert (pem(hosting.handshake("b.example.com")[0]) == certificate) == kept


# limits


def test_logins_are_refused_while_the_appliance_is_busy(ns: NetScaler, login: Login) -> None:
    client = login(ns)
    ns.busy = 2
    assert [told(client.login()) for _ in range(2)] == [(503, 446)] * 2
    assert client.get("/nsversion")
    assert client.login().status_code == 201


def test_saves_are_refused_while_others_run(ns: NetScaler, login: Login) -> None:
    client = login(ns)
    ns.install("www", *R1.issue("www.example.com"))
    client.do("PUT", "/sslcertkey", certkey="www", notificationperiod=10)
    ns.save_busy = 2
    assert [told(post(client, SAVE)) for _ in range(2)] == [(599, 1461), (599, 293)]
    assert not ns.saved
    client.do("POST", SAVE)
    assert ns.saved


# intermediates


def test_an_intermediate_that_ends_soon(ns: NetScaler, login: Login) -> None:
    """It stays linked to what it issued, tells its end, and is renewed in place."""
    server = ns.add_virtual_server("vs", "gateway")
    signer, key = hierarchy()["CA DV E36"], ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
    leaf = Authority().certify(
        key.public_key(), ["www.example.com"], now, now + dt.timedelta(days=90)
    )
    ending = reissued(signer, now + dt.timedelta(days=5))
    ns.install("www", pem(leaf), pem(key), chain=[pem(ending)])
    ns.bind("vs", "www")
    assert server.handshake() == [leaf, ending]

    client, issuer = login(ns), str(ns.certkeys["www"].link)
    (row,) = client.get(f"/sslcertkey/{issuer}")
    end = dt.datetime.fromtimestamp(
        ssl.cert_time_to_seconds(row["clientcertnotafter"]), dt.timezone.utc
    )
    assert end == now + dt.timedelta(days=5)
    assert row["certificatetype"] == ["INTM_CERT"]
    client.upload("renewed.crt", pem(signer.certificate))
    client.do("POST", UPDATE, certkey=issuer, cert="renewed.crt")
    assert ns.certkeys["www"].link == issuer
    assert server.handshake() == [leaf, signer.certificate]


def test_the_issuer_changes_on_a_pair(pair: HaPair, login: Login) -> None:
    client = login(pair)
    certificate, key = R2.issue("www.example.com")
    for name, content in (("r2.crt", R2.pem), ("next.crt", certificate), ("next.key", key)):
        client.upload(name, content)
    client.do("POST", SYNC, mode=["ssl"])
    client.do("POST", "/sslcertkey", certkey="r2", cert="r2.crt")
    client.do("POST", UPDATE, certkey="www", cert="next.crt", key="next.key")
    assert pair.a.certkeys["www"].link is None
    client.do("POST", LINK, certkey="www", linkcertkeyname="r2")
    pair.failover()
    chain = pair.b.virtual_servers["vs"].handshake()
    assert [pem(each) for each in chain] == [certificate, R2.pem]
