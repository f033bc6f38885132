"""The record: what each transition of it changes, and that it changes nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from test_certificates import NAMES, NOW, issued
from test_planning import certificate

import citrixagent as agent
from citrixagent import Change, Generation, Order, Record


def generation(serial: str, **changes: Any) -> Generation:
    """Return a generation of which no field is at its default."""
    made = Generation(
        key_file=f"{serial}.key",
        cert_file=f"{serial}.crt",
        names=NAMES,
        key_type="ECDSA-P256",
        serial=serial,
        pem=f"PEM of {serial}",
        cert_id=f"id of {serial}",
        link="ca_1",
        form="DER",
        ordered_at=f"2026-11-0{serial[1]}T02:00:00Z",
        revoked=True,
    )
    return dataclasses.replace(made, **changes)


FIRST, SECOND = generation("A1"), generation("B2")
THIRD = generation("C3", ordered_at=None)
FOREIGN = generation("F4", ours=False, cert_id=None, ordered_at=None)
ORDER = Order(
    action="renew",
    wish="digest",
    csr_file="C3.csr",
    before="id of B2",
    note="why",
    csr="CSR",
    sent="2026-11-22T02:00:00Z",
    refused="no",
    failed="a name is missing",
    key_lost=True,
    adopted=True,
)
CHANGE = Change(
    outcome="renewed",
    reason="because",
    started="2026-11-22T01:00:00Z",
    new=THIRD,
    old=SECOND,
    order=ORDER,
    take_over=True,
    key_created=True,
    uploaded=True,
)
RECORD = Record(
    profile="www",
    installed=SECOND,
    previous=FIRST,
    found="PEM of another",
    change=CHANGE,
    finishing="enrolled",
    unsaved=True,
    unverified=True,
    rolled_back=True,
    revoked="D4",
    litter=("x.csr",),
)


def with_order(**values: Any) -> Record:
    return with_change(order=dataclasses.replace(ORDER, **values))


def with_change(**values: Any) -> Record:
    return dataclasses.replace(RECORD, change=dataclasses.replace(CHANGE, **values))


def having(record: Record, **values: Any) -> Record:
    return dataclasses.replace(record, **values)


NO_ID = with_change(
    new=dataclasses.replace(THIRD, cert_id=None), order=dataclasses.replace(ORDER, adopted=False)
)
NOT_ISSUED = with_change(new=dataclasses.replace(THIRD, serial="", pem=""))
ROLLBACK = Change("rolled_back", "asked for", "2026-11-22T01:00:00Z", new=FIRST, old=SECOND)
RESTORING = having(RECORD, change=ROLLBACK)
ANOTHER = dataclasses.replace(CHANGE, new=generation("E5"), take_over=False)
MADE = ("C3.key", "C3.csr", "C3.crt")
CHAIN = [dataclasses.replace(certificate(serial=serial), pem=serial) for serial in ("C9", "CA")]

WITH_NAMES = [dataclasses.replace(CHAIN[0], names=(*NAMES, "a.b")), CHAIN[1]]
WAS_ISSUED = {"change.new.serial": "C9", "change.new.pem": "C9CA"}
LIFETIME = "change.new.lifetime"


def replacing(**values: Any) -> Record:
    """Return a record whose open order replaces a certificate that is known."""
    request, answer = issued()
    leaf = agent.check_issued(answer, request, NAMES, NOW)[0]
    held = dataclasses.replace(SECOND, **{"pem": leaf.pem, "serial": leaf.serial, **values})
    order = dataclasses.replace(ORDER, action="replace")
    new = dataclasses.replace(THIRD, serial="", pem="")
    return having(with_change(order=order, new=new), installed=held)


def with_values(record: Any, changes: Mapping[str, Any]) -> Any:
    """Return a record with other values of fields, which are named by their paths."""
    for path, value in changes.items():
        field, _, rest = path.partition(".")
        inner = with_values(getattr(record, field), {rest: value}) if rest else value
        record = dataclasses.replace(record, **{field: inner})
    return record


@dataclasses.dataclass(frozen=True)
class Case:
    """A transition of a record, and all that it changes."""

    before: Record
    do: Callable[[Record], Record]
    changes: dict[str, Any]


def failed(record: Record, *, file_missing: bool, key_lost: bool) -> Record:
    return agent.fail(record, "why", file_missing=file_missing, key_lost=key_lost)


FIRST_CHANGE = dataclasses.replace(CHANGE, old=None)
PROMOTED = {
    "installed": dataclasses.replace(THIRD, ordered_at="2026-11-22T02:00:00Z"),
    "previous": SECOND,
    "found": None,
    "change": None,
    "finishing": "renewed",
    "rolled_back": False,
}

CASES = {
    "one value of the change": Case(
        RECORD, lambda r: agent.changing(r, uploaded=False), {"change.uploaded": False}
    ),
    "one value of the order": Case(
        RECORD, lambda r: agent.ordering(r, csr=None), {"change.order.csr": None}
    ),
    "an order that SCM has": Case(
        NO_ID, lambda r: agent.place_order(r, "7"), {"change.new.cert_id": "7"}
    ),
    "an order that SCM does not have": Case(
        NO_ID, lambda r: agent.place_order(r, None), {"change.order.sent": None}
    ),
    "an id that the operator names": Case(
        NO_ID,
        lambda r: agent.adopt(r, "9", "2026-11-23T02:00:00Z"),
        {
            "change.new.cert_id": "9",
            "change.order.refused": None,
            "change.order.adopted": True,
        },
    ),
    "an id that the operator names, for what was not sent": Case(
        with_order(sent=None, adopted=False),
        lambda r: agent.adopt(r, "9", "2026-11-23T02:00:00Z"),
        {
            "change.new.cert_id": "9",
            "change.order.sent": "2026-11-23T02:00:00Z",
            "change.order.refused": None,
            "change.order.adopted": True,
        },
    ),
    "an id that turned out wrong": Case(
        RECORD, agent.disown, {"change.new.cert_id": None, "change.order.adopted": False}
    ),
    "what was issued": Case(
        NOT_ISSUED,
        lambda r: agent.issue(r, CHAIN),
        WAS_ISSUED,
    ),
    "a replacement keeps the lifetime that was ordered": Case(
        replacing(lifetime=5), lambda r: agent.issue(r, CHAIN), {**WAS_ISSUED, LIFETIME: 5}
    ),
    "a replacement of one that was no replacement": Case(
        replacing(), lambda r: agent.issue(r, CHAIN), {**WAS_ISSUED, LIFETIME: 199 * 86400 - 1}
    ),
    "a replacement of what is not known": Case(
        replacing(pem="", lifetime=5), lambda r: agent.issue(r, CHAIN), WAS_ISSUED
    ),
    "a replacement of nothing": Case(
        having(replacing(), installed=None), lambda r: agent.issue(r, CHAIN), WAS_ISSUED
    ),
    "a renewal has a lifetime of its own": Case(
        having(replacing(lifetime=5), change=NOT_ISSUED.change),
        lambda r: agent.issue(r, CHAIN),
        WAS_ISSUED,
    ),
    "a name that was removed and came back": Case(
        having(NOT_ISSUED, installed=dataclasses.replace(SECOND, names=("a.b", "c.d"))),
        lambda r: agent.issue(r, WITH_NAMES),
        {**WAS_ISSUED, "change.new.unwanted": ("a.b",)},
    ),
    "a name that was removed before and came back": Case(
        having(NOT_ISSUED, installed=dataclasses.replace(SECOND, unwanted=("a.b",))),
        lambda r: agent.issue(r, WITH_NAMES),
        {**WAS_ISSUED, "change.new.unwanted": ("a.b",)},
    ),
    "a name of what others had installed": Case(
        having(NOT_ISSUED, installed=dataclasses.replace(FOREIGN, names=("a.b",))),
        lambda r: agent.issue(r, WITH_NAMES),
        WAS_ISSUED,
    ),
    "a name, where nothing was installed": Case(
        having(NOT_ISSUED, installed=None), lambda r: agent.issue(r, WITH_NAMES), WAS_ISSUED
    ),
    "a failure": Case(
        with_order(failed=None, key_lost=False),
        lambda r: failed(r, file_missing=False, key_lost=False),
        {"change.order.failed": "why"},
    ),
    "a failure for want of a file": Case(
        with_order(failed=None, key_lost=False),
        lambda r: failed(r, file_missing=True, key_lost=False),
        {"change.order.failed": "why", "change.uploaded": False},
    ),
    "a failure before the upload": Case(
        having(with_order(failed=None), change=dataclasses.replace(CHANGE, uploaded=False)),
        lambda r: failed(r, file_missing=False, key_lost=True),
        {"change.order.failed": "why"},
    ),
    "a failure for want of the key": Case(
        with_order(failed=None, key_lost=False),
        lambda r: failed(r, file_missing=True, key_lost=True),
        {"change.order.failed": "why", "change.order.key_lost": True, "change.uploaded": False},
    ),
    "another failure, with the key back": Case(
        RECORD,
        lambda r: failed(r, file_missing=False, key_lost=False),
        {"change.order.failed": "why", "change.order.key_lost": False},
    ),
    "an order given up": Case(RECORD, agent.give_up, {"change": None, "litter": ("x.csr", *MADE)}),
    "an order given up, of which one file was made": Case(
        RECORD,
        lambda r: agent.give_up(r, ["C3.key"]),
        {"change": None, "litter": ("x.csr", "C3.key")},
    ),
    "an order given up, of which nothing was made": Case(
        RECORD, lambda r: agent.give_up(r, []), {"change": None}
    ),
    "a rollback given up: its files are those of a generation": Case(
        RESTORING, agent.give_up, {"change": None}
    ),
    "nothing given up": Case(having(RECORD, change=None), agent.give_up, {}),
    "nothing given up, with files": Case(
        having(RECORD, change=None), lambda r: agent.give_up(r, ["C3.key"]), {}
    ),
    "a change begun": Case(
        having(RECORD, change=None),
        lambda r: agent.begin(r, ANOTHER),
        {"change": ANOTHER, "latest": ANOTHER.started},
    ),
    "a rollback begun": Case(
        having(RECORD, change=None), lambda r: agent.begin(r, ROLLBACK), {"change": ROLLBACK}
    ),
    "a rollback begun, which gives an order up": Case(
        RECORD,
        lambda r: agent.begin(r, ROLLBACK),
        {"change": ROLLBACK, "litter": ("x.csr", *MADE)},
    ),
    "a change begun, which gives a rollback up": Case(
        RESTORING,
        lambda r: agent.begin(r, CHANGE),
        {"change": CHANGE, "latest": CHANGE.started},
    ),
    "a renewal installed": Case(
        RECORD, agent.promote, {**PROMOTED, "litter": ("x.csr", "C3.csr", "A1.key", "A1.crt")}
    ),
    "the first certificate installed": Case(
        having(RECORD, installed=None, previous=None, change=FIRST_CHANGE),
        agent.promote,
        {**PROMOTED, "previous": None, "litter": ("x.csr", "C3.csr")},
    ),
    "installed where the certkey was gone": Case(
        having(RECORD, change=FIRST_CHANGE),
        agent.promote,
        {**PROMOTED, "litter": ("x.csr", "C3.csr", "A1.key", "A1.crt")},
    ),
    "installed where nothing was before it": Case(
        having(RECORD, previous=None), agent.promote, {**PROMOTED, "litter": ("x.csr", "C3.csr")}
    ),
    "installed over somebody else's, which is kept, as its files are": Case(
        having(RECORD, previous=None, change=dataclasses.replace(CHANGE, old=FOREIGN)),
        agent.promote,
        {**PROMOTED, "previous": FOREIGN, "litter": ("x.csr", "C3.csr", "B2.key", "B2.crt")},
    ),
    "installed where somebody else's was before the last": Case(
        having(RECORD, previous=FOREIGN), agent.promote, {**PROMOTED, "litter": ("x.csr", "C3.csr")}
    ),
    "rolled back": Case(
        having(RESTORING, rolled_back=False),
        agent.promote,
        {
            "installed": FIRST,
            "previous": SECOND,
            "found": None,
            "change": None,
            "finishing": "rolled_back",
            "rolled_back": True,
        },
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_a_transition_changes(case: Case) -> None:
    assert case.do(case.before) == with_values(case.before, case.changes)


def test_what_a_rollback_restores_is_what_a_second_one_takes_back() -> None:
    """Back and forth any number of times: no file becomes litter."""
    back = agent.promote(agent.begin(having(RECORD, change=None), ROLLBACK))
    again = dataclasses.replace(ROLLBACK, new=SECOND, old=FIRST)
    forth = agent.promote(agent.begin(back, again))
    assert (forth.installed, forth.previous) == (SECOND, FIRST)
    assert forth.litter == RECORD.litter


def test_the_lifetime_of_another_certificate_says_nothing() -> None:
    held = certificate()
    made = generation(held.serial, lifetime=5)
    assert agent.lifetime_of(made, held) == 5
    for other in (generation("B2", lifetime=5), generation(held.serial), None):
        assert agent.lifetime_of(other, held) == 198 * 86400


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (CHANGE, MADE),
        (ROLLBACK, ()),
        (dataclasses.replace(CHANGE, new=dataclasses.replace(THIRD, cert_file="")), MADE[:2]),
    ],
    ids=["order", "rollback", "without a certificate's file"],
)
def test_which_files_were_made_for_a_change(change: Change, made: tuple[str, ...]) -> None:
    assert change.made == made


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (RECORD, (SECOND, FIRST)),
        (having(RECORD, previous=None), (SECOND,)),
        (having(RECORD, installed=None), (FIRST,)),
        (Record("www"), ()),
    ],
    ids=["both", "installed", "previous", "none"],
)
def test_the_generations_of_a_record(record: Record, found: tuple[Generation, ...]) -> None:
    assert record.generations == found
    assert having(record, change=None).known == found
    assert having(record, change=CHANGE).known == (*found, THIRD, SECOND)
    assert CHANGE.generations == (THIRD, SECOND)
    assert FIRST_CHANGE.generations == (THIRD,)


@pytest.mark.parametrize(
    "do",
    [
        agent.promote,
        agent.disown,
        lambda record: agent.changing(record, uploaded=True),
        lambda record: agent.place_order(record, "7"),
    ],
)
def test_what_belongs_to_a_change_needs_one(do: Callable[[Record], Record]) -> None:
    with pytest.raises(AssertionError, match="this step belongs to a change"):
        do(having(RECORD, change=None))


@pytest.mark.parametrize(
    "do",
    [
        lambda record: agent.ordering(record, csr=None),
        lambda record: agent.adopt(record, "9", "2026-11-23T02:00:00Z"),
        agent.disown,
        lambda record: failed(record, file_missing=False, key_lost=False),
    ],
)
def test_what_belongs_to_an_order_needs_one(do: Callable[[Record], Record]) -> None:
    with pytest.raises(AssertionError, match="this step belongs to an order"):
        do(RESTORING)
