"""What NITRO requests do to an appliance as a system: its nodes, its partitions, its saving.

The form is that of ``resources``, which has the operations on files, certificates and bindings.
"""

from __future__ import annotations

from simulators.appliance import Partition
from simulators.nitro import Field, NitroError, Row, Values, operation

BUILDS = {"12.1": "65.25", "13.0": "92.31", "13.1": "59.19", "14.1": "43.50"}


@operation("nsversion", "list", "show ns version")
def show_version(ns: Partition, _: Values) -> list[Row]:
    release, date = ns.box.release, "Jul  7 2021, 10:31:36   (64-bit)"
    build = BUILDS.get(release, "1.1")
    return [{"version": f"NetScaler NS{release}: Build {build}.nc, Date: {date}", "mode": "1"}]


@operation("nshardware", "list", "show ns hardware")
def show_hardware(_: Partition, __: Values) -> list[Row]:
    return [{"hwdescription": "NetScaler Virtual Appliance", "sysid": "450000", "serialno": "SIM"}]


@operation("nsfeature", "list", "show ns feature")
def show_features(_: Partition, __: Values) -> list[Row]:
    return [{"feature": ["LB", "CS", "SSL", "SSLVPN", "AAA"], "ssl": True}]


@operation("sslparameter", "list", "show ssl parameter")
def show_ssl_parameters(_: Partition, __: Values) -> list[Row]:
    return [{"defaultprofile": "DISABLED", "denysslreneg": "ALL"}]


@operation("nsconfig", "list", "show ns config")
def show_configuration(ns: Partition, _: Values) -> list[Row]:
    box = ns.box
    times = {"lastconfigsavetime": f"{ns.saved_at:%c}", "currentsytemtime": f"{box.clock():%c}"}
    system = "Cluster" if box.cluster else "HA" if box.ha_state else "Stand-alone"
    primary = box.peer_address if box.ha_state == "Secondary" else box.address
    row = {"ipaddress": box.address, "netmask": "255.0.0.0", "systemtype": system}
    return [{**row, "primaryip": primary, "configchanged": not ns.saved, **times}]


@operation("nsconfig", "save", "save ns config", Field("all", "flag"))
def save_configuration(ns: Partition, values: Values) -> None:
    """Save the partition of the session; only ``all`` saves the others."""
    box = ns.box
    if box.save_busy:
        box.save_busy -= 1
        raise NitroError(1461 if box.save_busy % 2 else 293)
    for partition in box.partitions.values() if values.flag("all") else [ns]:
        partition.save()


@operation("hanode", "list", "show HA node")
@operation("hanode", "get", "show HA node", Field("id", required=True))
def show_nodes(ns: Partition, values: Values) -> list[Row]:
    box = ns.box
    rows = [_node_row(0, box.address, box.ha_state or "Primary")]
    if box.ha_state:
        other = "Secondary" if box.ha_state == "Primary" else "Primary"
        rows.append(_node_row(1, box.peer_address, other))
    found = [row for row in rows if values.get("id", row["id"]) == row["id"]]
    if not found:
        raise NitroError(258, "id", values["id"])
    return found


def _node_row(number: int, address: str, state: str) -> Row:
    row = {"id": str(number), "ipaddress": address, "state": state}
    return {**row, "hastatus": "ENABLED", "hasync": "ENABLED", "haprop": "ENABLED"}


@operation("stat/hanode", "list", "stat HA node")
def show_node_state(ns: Partition, _: Values) -> list[Row]:
    state = ns.box.ha_state
    row = {"hacurstatus": "YES" if state else "NO", "hacurstate": "UP"}
    counters = {"haerrproptimeout": "0", "haerrsyncfailure": "0", "hapktrxrate": 5}
    return [{**row, "hacurmasterstate": state or "Primary", **counters}]


MODES = (
    "all",
    "bookmarks",
    "ssl",
    "imports",
    "misc",
    "dns",
    "krb",
    "AAA",
    "app_catalog",
    "all_plus_misc",
    "all_minus_misc",
)
MODE = Field("mode", "list", choices=MODES)


@operation("hafiles", "sync", "sync HA files", MODE)
def sync_ha_files(ns: Partition, values: Values) -> None:
    if ns.box.ha_state is None:
        raise NitroError(257)
    ns.box.sync_files(_modes(values))


@operation("clusterfiles", "sync", "sync cluster files", MODE)
def sync_cluster_files(ns: Partition, values: Values) -> None:
    if ns.box.cluster is None:
        raise NitroError(257)
    ns.box.sync_files(_modes(values))


def _modes(values: Values) -> list[str]:
    modes = values.get("mode", ["all"])
    assert isinstance(modes, list)
    return modes


@operation("nspartition", "Switch", "switch ns partition", Field("partitionName", required=True))
def switch_partition(ns: Partition, values: Values) -> None:
    """Say whether it is there: which one a session is in is kept with the session."""
    if values.text("partitionname") not in ns.box.partitions:
        raise NitroError(2755, "partitionName", values.text("partitionname"))
