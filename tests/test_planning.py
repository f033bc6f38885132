"""The one decision: the table of the README, boundaries to the second, the law of the pipeline."""

from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from conftest import PROGRAM, ROOT
from test_certificates import NAMES, NOW, profile

import citrixagent as agent
from citrixagent import Change, Intent, Observed, Order, Record, Step

DAY = dt.timedelta(days=1)
SECOND = dt.timedelta(seconds=1)
RUN = Intent()
ENROLL = Intent("enroll")
FORCE = Intent("enroll", force=True)
RENEW = Intent("renew")
REPLACE = Intent("replace")
ROLL_BACK = Intent("rollback")
ADOPT = Intent("enroll", cert_id="9")
NEW_KEY = Step.CREATE_KEY


def certificate(
    left: dt.timedelta = 100 * DAY, lifetime: dt.timedelta = 198 * DAY, serial: str = "A1"
) -> agent.Certificate:
    end = NOW + left
    return agent.Certificate(
        pem="",
        serial=serial,
        issuer="",
        common_name=NAMES[0],
        names=NAMES,
        key_type="ECDSA-P256",
        not_before=end - lifetime,
        not_after=end,
    )


def generation(serial: str = "A1", **changes: Any) -> agent.Generation:
    made = agent.Generation("a.key", "a.crt", NAMES, "ECDSA-P256", serial=serial, cert_id="1001")
    return dataclasses.replace(made, **changes)


def fields(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return those of some values that are fields of a class."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def change(**values: Any) -> Change:
    """Return a change that orders; the values are the change's, its order's or what is ordered."""
    new = agent.Generation("b.key", "b.crt", NAMES, "ECDSA-P256")
    order = Order("enroll", agent.wish_of(profile()), "b.csr")
    made = Change(
        outcome="enrolled",
        reason="because",
        started="2026-11-22T02:00:00Z",
        new=dataclasses.replace(new, **fields(agent.Generation, values)),
        order=dataclasses.replace(order, **fields(Order, values)),
    )
    return dataclasses.replace(made, **fields(Change, values))


def rollback(**values: Any) -> Change:
    return change(**{"order": None, "outcome": "rolled_back", "new": OLD, **values})


def seen(record: Record | None = None, **changes: Any) -> Observed:
    managed = Record("www", installed=generation())
    made = Observed(now=NOW, record=record or managed, certificate=certificate())
    return dataclasses.replace(made, **changes)


def record(**changes: Any) -> Record:
    return dataclasses.replace(Record("www", installed=generation()), **changes)


def with_order(**changes: Any) -> Record:
    return record(change=change(**changes))


def other(**changes: Any) -> agent.Profile:
    return dataclasses.replace(profile(), **changes)


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is seen and asked, and what is then planned."""

    outcome: str
    action: str | None = None
    first: Step | None = None
    found: Observed = dataclasses.field(default_factory=seen)
    intent: Intent = RUN
    wanted: agent.Profile = dataclasses.field(default_factory=profile)


@dataclasses.dataclass(frozen=True)
class Refused:
    """What is seen and asked, and the words with which it is refused."""

    kind: str
    words: str
    found: Observed = dataclasses.field(default_factory=seen)
    intent: Intent = RUN
    wanted: agent.Profile = dataclasses.field(default_factory=profile)


def ordered(before: dt.timedelta) -> Record:
    """Return a record of a certificate that was ordered so long before."""
    return record(installed=generation(ordered_at=agent.iso(NOW - before)))


HOUR = dt.timedelta(hours=1)
RENEW_ALL, REPLACE_ALL = Intent("renew", everything=True), Intent("replace", everything=True)
JUST_ORDERED = ordered(HOUR)
OTHER_NAMES = ("www.example.com", "new.example.com")
OTHER_SUBJECT = other(subject=dataclasses.replace(profile().subject, organization="Other"))
NOT_RENEWED = other(auto_renew=False)
NOTHING = seen(Record("www"), certificate=None)
NOT_OURS = Record("www")
ADOPTED = record(installed=generation(cert_id=None, ours=False))
CHANGED = record(installed=generation(names=("www.example.com",)))
CREATED = {"key_created": True, "csr": "CSR"}
PLACED = {**CREATED, "sent": "2026-11-22T02:00:00Z"}
UNSENT = with_order(**CREATED)
UNKNOWN = with_order(**PLACED)
WAITS = {**PLACED, "cert_id": "7"}
LONG_AGO = {**WAITS, "sent": "2026-06-01T02:00:00Z"}
PENDING = with_order(**WAITS)
REFUSED = with_order(**WAITS, refused="order 7 was declined in SCM")
FAILED = with_order(**WAITS, failed="a name is missing")
ISSUED = {**WAITS, "pem": "PEM", "serial": "B2"}
UPLOADED = {**ISSUED, "uploaded": True}
LOST = {**UPLOADED, "key_lost": True, "failed": "a file is missing"}
NEW = certificate(serial="B2")
OLD = generation("A0", pem="PEM")
BEFORE_IT = certificate(serial="A0")
WITH_PREVIOUS = record(previous=OLD)
RESTORING = record(previous=OLD, change=rollback())
ROLLED_BACK = record(rolled_back=True)
DUE = certificate(66 * DAY)
LAPSING = certificate(7 * DAY - SECOND)
NEWER = certificate(serial="C3", lifetime=100 * DAY)  # began when NOW was, after the order
NEWER_LAPSING = certificate(7 * DAY, serial="C3", lifetime=47 * DAY)
WILDCARD = dataclasses.replace(certificate(), names=("*.example.com", "example.com"))
ADOPTED_WILDCARD = record(installed=generation(cert_id=None, ours=False, names=WILDCARD.names))
NAMELESS = dataclasses.replace(certificate(), names=())
REORDERED = record(installed=generation(names=(*NAMES[1:], NAMES[0])))
NO_HANDSHAKE = other(handshake="off")
AFRESH = certificate(190 * DAY)
AS_TEXT = "192.0.2.10, example.com, www.example.com"
TAKEN: dict[str, Any] = {"unbound": ("vs",), "taken": (agent.Taken("vs", "theirs"),)}
BESIDE: dict[str, Any] = {"taken": (agent.Taken("vs", "theirs", beside=True),)}
TWO = other(
    virtual_servers=(
        agent.VirtualServer("vs", "gateway", None),
        agent.VirtualServer("vs2", "gateway", None),
    )
)
TAKE_OVER = Intent(take_over=True)
STRANGE = dataclasses.replace(certificate(), names=("shop.example.org",))
BROAD = dataclasses.replace(certificate(66 * DAY), names=("*.example.com", "example.com"))
SHARED: dict[str, Any] = {"certificate": BROAD, "elsewhere": ("sw",)}

# The first cells of the README's decision table, in its order; to each, one or more cases.
SITUATIONS: dict[str, dict[str, Planned | Refused]] = {
    "enroll --cert-id: no order is open": {
        "a rollback is": Refused("state", "has no open order", seen(RESTORING), ADOPT),
        "": Refused("state", "has no open order", intent=ADOPT),
        "no CSR": Refused(
            "state", "has no key here", seen(with_order(key_created=True)), intent=ADOPT
        ),
    },
    "enroll --cert-id: the order is issued already": {
        "": Refused("state", "order 7 of www is issued already", seen(with_order(**ISSUED)), ADOPT),
    },
    "enroll --cert-id": {
        "unknown": Planned("enrolled", None, Step.COLLECT, seen(UNKNOWN), ADOPT),
        "a renewal": Planned(
            "renewed",
            None,
            Step.COLLECT,
            seen(with_order(**PLACED, action="renew", outcome="renewed")),
            ADOPT,
        ),
        "a replacement, declined": Planned(
            "replaced",
            None,
            Step.COLLECT,
            seen(with_order(**WAITS, action="replace", outcome="replaced", refused="x")),
            ADOPT,
        ),
    },
    "rollback: an earlier one was cut off": {
        "": Planned("rolled_back", None, Step.INSTALL, seen(RESTORING), ROLL_BACK),
    },
    "rollback: an earlier one is installed and not finished": {
        "": Planned(
            "rolled_back",
            None,
            Step.VERIFY,
            seen(record(previous=OLD, finishing="rolled_back", unverified=True)),
            ROLL_BACK,
        ),
    },
    "rollback: an order is open at SCM": {
        "waits": Refused("state", "order 7 is open", seen(PENDING), ROLL_BACK),
        "unknown": Refused("state", "may or may not have been placed", seen(UNKNOWN), ROLL_BACK),
    },
    "rollback: there is nothing to put back": {
        "": Refused("state", "there is no previous certificate", intent=ROLL_BACK),
        "installed by others": Refused(
            "state",
            "there is no previous certificate",
            seen(WITH_PREVIOUS, certificate=NEW),
            ROLL_BACK,
        ),
        "not on the appliance": Refused(
            "state",
            "there is no previous certificate",
            seen(WITH_PREVIOUS, certificate=None),
            ROLL_BACK,
        ),
    },
    "rollback: what was there before was loaded in a way that cannot be repeated": {
        "": Refused(
            "state",
            "what www had before cannot be put back: its key is encrypted",
            seen(record(previous=generation("A0", no_way_back="its key is encrypted"))),
            ROLL_BACK,
        ),
    },
    "rollback: what was there before is not known": {
        "": Refused(
            "state",
            "is not known well enough",
            seen(record(previous=generation("A0"))),
            ROLL_BACK,
        ),
    },
    "rollback: the previous certificate has expired": {
        "to the second": Refused(
            "state",
            "the previous certificate of www expired at 2026-11-23T02:00:00Z",
            seen(WITH_PREVIOUS, previous=certificate(0 * DAY, serial="A0")),
            ROLL_BACK,
        ),
    },
    "rollback: the previous certificate was revoked by the operator": {
        "while it was not in service": Refused(
            "state",
            "the previous certificate of www was revoked by the operator",
            seen(record(previous=generation("A0", revoked=True)), previous=BEFORE_IT),
            ROLL_BACK,
        ),
        "": Refused(
            "state",
            "the previous certificate of www was revoked by the operator",
            seen(record(previous=OLD, revoked="A0"), previous=BEFORE_IT),
            ROLL_BACK,
        ),
    },
    "rollback": {
        name: Planned("rolled_back", None, Step.INSTALL, seen(found, previous=BEFORE_IT), ROLL_BACK)
        for name, found in {
            "": WITH_PREVIOUS,
            "an order was not sent": record(previous=OLD, change=change(**CREATED)),
            "an order was turned down": record(previous=OLD, change=REFUSED.change),
            "the newer one was revoked": record(previous=OLD, revoked="A1"),
        }.items()
    },
    "of a rollback that was cut off: enroll, renew or replace, or 7 days or less left "
    "(auto_renew: true)": {
        "a week left": Planned(
            "renewed",
            "enroll",
            NEW_KEY,
            seen(RESTORING, certificate=certificate(7 * DAY, serial="A0")),
        ),
        "forced": Planned("enrolled", "enroll", NEW_KEY, seen(RESTORING), FORCE),
        "renew": Planned("renewed", "renew", NEW_KEY, seen(RESTORING), RENEW),
    },
    "the certkey holds something newer that is not on record: enroll --force, or 7 days or less "
    "left (auto_renew: true)": {
        "forced": Planned("enrolled", "enroll", NEW_KEY, seen(PENDING, certificate=NEWER), FORCE),
        "a week left": Planned(
            "renewed", "enroll", NEW_KEY, seen(with_order(**LONG_AGO), certificate=NEWER_LAPSING)
        ),
    },
    "the certkey holds something newer that is not on record": {
        "waits": Refused("state", "enroll --force www", seen(PENDING, certificate=NEWER)),
        "issued": Refused("state", "order 7", seen(with_order(**ISSUED), certificate=NEWER)),
        "unknown": Refused("state", "the record is old", seen(UNKNOWN, certificate=NEWER)),
        "enroll": Refused("state", "serial C3", seen(PENDING, certificate=NEWER), ENROLL),
        "a rollback": Refused("state", "a rollback is open", seen(RESTORING, certificate=NEWER)),
        "a week left, not to be renewed": Refused(
            "state",
            "the record is old",
            seen(with_order(**LONG_AGO), certificate=NEWER_LAPSING),
            wanted=NOT_RENEWED,
        ),
    },
    "of a rollback that was cut off": {
        "to what others had installed": Planned(
            "rolled_back",
            None,
            Step.INSTALL,
            seen(record(change=rollback(new=generation("A0", cert_id=None, ours=False)))),
        ),
        "more than a week left": Planned(
            "rolled_back",
            None,
            Step.LINK,
            seen(RESTORING, certificate=certificate(7 * DAY + SECOND, serial="A0"), linked=False),
        ),
        "a week left, not to be renewed": Planned(
            "rolled_back",
            None,
            Step.INSTALL,
            seen(RESTORING, certificate=certificate(7 * DAY)),
            wanted=NOT_RENEWED,
        ),
        "": Planned("rolled_back", None, Step.INSTALL, seen(RESTORING)),
        "installed": Planned(
            "rolled_back",
            None,
            Step.SAVE,
            seen(
                record(previous=OLD, change=rollback(), unsaved=True),
                certificate=certificate(serial="A0"),
            ),
        ),
        "due": Planned(
            "rolled_back",
            None,
            Step.INSTALL,
            seen(RESTORING, issued=certificate(20 * DAY, serial="A0")),
        ),
    },
    "not sent yet": {
        "still needed": Planned("renewed", "renew", Step.ORDER, seen(UNSENT, certificate=DUE)),
        "no CSR": Planned(
            "renewed",
            "renew",
            Step.CREATE_CSR,
            seen(with_order(key_created=True), certificate=DUE),
        ),
        "no longer needed": Planned("unchanged", None, None, seen(UNSENT)),
        "for something else": Planned(
            "renewed", "renew", NEW_KEY, seen(with_order(**CREATED, wish="x"), certificate=DUE)
        ),
        "enroll": Refused("state", "enroll --force www", seen(UNSENT), ENROLL),
        "enroll, nothing installed": Planned(
            "enrolled",
            "enroll",
            Step.ORDER,
            seen(record(installed=None, change=change(**CREATED)), certificate=None),
            ENROLL,
        ),
        "renew": Planned("renewed", "renew", Step.ORDER, seen(UNSENT), RENEW),
    },
    "issued, never in service for good, and due by now (auto_renew: true)": {
        "the old one is installed": Planned(
            "renewed",
            "renew",
            NEW_KEY,
            seen(
                with_order(**UPLOADED), certificate=DUE, issued=certificate(66 * DAY, serial="B2")
            ),
        ),
        "installed": Planned(
            "renewed",
            "enroll",
            NEW_KEY,
            seen(
                with_order(**UPLOADED),
                certificate=certificate(66 * DAY, serial="B2"),
                issued=certificate(66 * DAY, serial="B2"),
            ),
        ),
        "nothing is installed": Planned(
            "enrolled",
            "enroll",
            NEW_KEY,
            seen(
                record(installed=None, change=change(**ISSUED)),
                certificate=None,
                issued=certificate(-DAY, serial="B2"),
            ),
        ),
    },
    "declined or rejected in SCM: run, and the profile was not edited": {
        "": Refused("declined", "order 7 was declined in SCM", seen(REFUSED)),
        "lapsing": Refused("declined", "order 7", seen(REFUSED, certificate=LAPSING)),
    },
    "declined or rejected in SCM": {
        "enroll": Planned("enrolled", "enroll", NEW_KEY, seen(REFUSED), ENROLL),
        "renew": Planned("renewed", "renew", NEW_KEY, seen(REFUSED), RENEW),
        "replace": Planned("replaced", "replace", NEW_KEY, seen(REFUSED), REPLACE),
        "edited": Planned("unchanged", None, None, seen(REFUSED), wanted=OTHER_SUBJECT),
        "edited, due": Planned(
            "renewed", "renew", NEW_KEY, seen(REFUSED, certificate=DUE), wanted=OTHER_SUBJECT
        ),
    },
    "sent, unknown whether it arrived: enroll --force, or 7 days or less left (auto_renew: true) "
    "and not sent in the last 20 hours": {
        "forced": Planned("enrolled", "enroll", NEW_KEY, seen(UNKNOWN), FORCE),
        "lapsing": Planned("renewed", "renew", NEW_KEY, seen(UNKNOWN, certificate=LAPSING)),
        "lapsing, sent while the clock was ahead": Planned(
            "renewed",
            "renew",
            NEW_KEY,
            seen(with_order(**CREATED, sent="2027-05-01T02:00:00Z"), certificate=LAPSING),
        ),
        "a week left": Planned(
            "renewed", "renew", NEW_KEY, seen(UNKNOWN, certificate=certificate(7 * DAY))
        ),
        "expired": Planned(
            "renewed", "renew", NEW_KEY, seen(UNKNOWN, certificate=certificate(-DAY))
        ),
    },
    "sent, unknown whether it arrived": {
        "": Refused("unknown_outcome", "enroll --cert-id ID www", seen(UNKNOWN)),
        "enroll": Refused("unknown_outcome", "enroll --force www", seen(UNKNOWN), ENROLL),
        "renew": Refused("unknown_outcome", "enroll --force www", seen(UNKNOWN), RENEW),
        "nothing is installed": Refused("unknown_outcome", "SCM", seen(UNKNOWN, certificate=None)),
        "a second more than a week left": Refused(
            "unknown_outcome", "SCM", seen(UNKNOWN, certificate=certificate(7 * DAY + SECOND))
        ),
        "lapsing, but not due": Refused(
            "unknown_outcome",
            "SCM",
            seen(UNKNOWN, certificate=LAPSING),
            wanted=other(window=agent.Window(days=3)),
        ),
        "lapsing, sent 20 hours ago": Refused(
            "unknown_outcome",
            "SCM",
            seen(with_order(**CREATED, sent="2026-11-22T06:00:00Z"), certificate=LAPSING),
        ),
        "lapsing, not to be renewed": Refused(
            "unknown_outcome", "SCM", seen(UNKNOWN, certificate=LAPSING), wanted=NOT_RENEWED
        ),
    },
    "placed, but it failed, or no longer covers the profile: enroll --force": {
        "edited": Planned(
            "enrolled", "enroll", NEW_KEY, seen(PENDING), FORCE, other(names=OTHER_NAMES)
        ),
        "failed": Planned("enrolled", "enroll", NEW_KEY, seen(FAILED), FORCE),
        "its key is lost": Planned(
            "enrolled", "enroll", NEW_KEY, seen(with_order(**LOST), issued=NEW), FORCE
        ),
    },
    "placed, but it no longer covers the profile": {
        "names": Refused(
            "state", "put the profile back", seen(PENDING), wanted=other(names=OTHER_NAMES)
        ),
        "key type": Refused(
            "state", "enroll --force www", seen(PENDING), ENROLL, other(key_type="RSA-2048")
        ),
        "issued": Refused(
            "state",
            "order 7 is open for",
            seen(with_order(**ISSUED), issued=NEW),
            wanted=other(names=OTHER_NAMES),
        ),
    },
    "placed, but its key is lost: 7 days or less left (auto_renew: true)": {
        "to the second": Planned(
            "renewed",
            "renew",
            NEW_KEY,
            seen(with_order(**LOST), issued=NEW, certificate=certificate(7 * DAY)),
        ),
    },
    "placed": {
        "installed, and issued after it was sent": Planned(
            "enrolled",
            None,
            Step.LINK,
            seen(
                with_order(**UPLOADED),
                certificate=dataclasses.replace(NEWER, serial="B2"),
                issued=dataclasses.replace(NEWER, serial="B2"),
                linked=False,
            ),
        ),
        "the certkey holds something older that is not on record": Planned(
            "enrolled", None, Step.COLLECT, seen(PENDING, certificate=certificate(serial="C3"))
        ),
        "waits, a week left": Planned(
            "enrolled", None, Step.COLLECT, seen(PENDING, certificate=certificate(7 * DAY))
        ),
        "waits": Planned("enrolled", None, Step.COLLECT, seen(PENDING)),
        "waits, enroll": Planned("enrolled", None, Step.COLLECT, seen(PENDING), ENROLL),
        "waits, forced": Planned("enrolled", None, Step.COLLECT, seen(PENDING), FORCE),
        "waits, renew": Planned("enrolled", None, Step.COLLECT, seen(PENDING), RENEW),
        "failed": Planned("enrolled", None, Step.COLLECT, seen(FAILED)),
        "its key is lost": Planned(
            "enrolled", None, Step.INSTALL, seen(with_order(**LOST), issued=NEW)
        ),
        "its key is lost, a second more than a week left": Planned(
            "enrolled",
            None,
            Step.INSTALL,
            seen(with_order(**LOST), issued=NEW, certificate=certificate(7 * DAY + SECOND)),
        ),
        "its key is lost, a week left, not to be renewed": Planned(
            "enrolled",
            None,
            Step.INSTALL,
            seen(with_order(**LOST), issued=NEW, certificate=LAPSING),
            wanted=NOT_RENEWED,
        ),
        "covers the edited profile": Planned(
            "enrolled", None, Step.COLLECT, seen(PENDING), wanted=other(names=NAMES[:2])
        ),
        "a renewal": Planned(
            "renewed", None, Step.COLLECT, seen(with_order(**WAITS, outcome="renewed"))
        ),
        "a replacement": Planned(
            "replaced", None, Step.COLLECT, seen(with_order(**WAITS, outcome="replaced"))
        ),
        "issued": Planned("enrolled", None, Step.UPLOAD, seen(with_order(**ISSUED), issued=NEW)),
        "issued, due in a second": Planned(
            "enrolled",
            None,
            Step.UPLOAD,
            seen(with_order(**ISSUED), issued=certificate(66 * DAY + SECOND, serial="B2")),
        ),
        "issued, due, but not to be renewed": Planned(
            "enrolled",
            None,
            Step.UPLOAD,
            seen(with_order(**ISSUED), issued=certificate(66 * DAY, serial="B2")),
            wanted=NOT_RENEWED,
        ),
        "put back": Planned(
            "enrolled", None, Step.INSTALL, seen(with_order(**UPLOADED), issued=NEW)
        ),
        "installed, not linked": Planned(
            "enrolled",
            None,
            Step.LINK,
            seen(with_order(**UPLOADED), certificate=NEW, issued=NEW, linked=False),
        ),
        "installed, not saved": Planned(
            "enrolled",
            None,
            Step.SAVE,
            seen(record(change=change(**UPLOADED), unsaved=True), certificate=NEW, issued=NEW),
        ),
        "installed, not proved": Planned(
            "enrolled",
            None,
            Step.VERIFY,
            seen(record(change=change(**UPLOADED), unverified=True), certificate=NEW, issued=NEW),
        ),
    },
    "replace: the certkey is not on the appliance": {
        "": Refused("state", "there is no certificate to replace", NOTHING, REPLACE),
    },
    "the certkey is not on the appliance": {
        "run": Planned("enrolled", "enroll", NEW_KEY, NOTHING),
        "enroll": Planned("enrolled", "enroll", NEW_KEY, NOTHING, ENROLL),
        "renew": Planned("enrolled", "enroll", NEW_KEY, NOTHING, RENEW),
        "it was there": Planned("enrolled", "enroll", NEW_KEY, seen(certificate=None)),
    },
    "renew --all, replace --all: ordered in the last 24 hours": {
        "this second": Planned("unchanged", None, None, seen(ordered(0 * DAY)), RENEW_ALL),
        "renew": Planned("unchanged", None, None, seen(JUST_ORDERED), RENEW_ALL),
        "replace": Planned("unchanged", None, None, seen(JUST_ORDERED), REPLACE_ALL),
        "to the second": Planned(
            "unchanged", None, None, seen(ordered(24 * HOUR - SECOND)), REPLACE_ALL
        ),
        "not bound": Planned(
            "repaired", None, Step.BIND, seen(JUST_ORDERED, unbound=("vs",)), REPLACE_ALL
        ),
        "not cleaned up": Planned(
            "replaced",
            None,
            Step.CLEAN_UP,
            seen(dataclasses.replace(JUST_ORDERED, finishing="replaced")),
            REPLACE_ALL,
        ),
        "a key that was made for another": Planned(
            "unchanged",
            None,
            None,
            seen(dataclasses.replace(JUST_ORDERED, change=change(**CREATED))),
            REPLACE_ALL,
        ),
    },
    "enroll, renew or replace: an earlier one is installed and not finished, and not due": {
        "renew, not verified": Planned(
            "renewed",
            None,
            Step.VERIFY,
            seen(record(unverified=True, finishing="renewed")),
            RENEW,
        ),
        "replace, not cleaned up": Planned(
            "replaced", None, Step.CLEAN_UP, seen(record(finishing="replaced")), REPLACE
        ),
        "enroll": Planned(
            "enrolled", None, Step.CLEAN_UP, seen(record(finishing="enrolled")), ENROLL
        ),
        "forced": Planned(
            "enrolled", None, Step.CLEAN_UP, seen(record(finishing="enrolled")), FORCE
        ),
        "rolled back, not saved": Planned(
            "rolled_back",
            None,
            Step.SAVE,
            seen(record(finishing="rolled_back", rolled_back=True, unsaved=True)),
            RENEW,
        ),
    },
    "renew": {
        "all, ordered nobody knows when": Planned("renewed", "renew", NEW_KEY, intent=RENEW_ALL),
        "ordered an hour ago": Planned("renewed", "renew", NEW_KEY, seen(JUST_ORDERED), RENEW),
        "all, ordered before that": Planned(
            "renewed", "renew", NEW_KEY, seen(ordered(24 * HOUR)), RENEW_ALL
        ),
        "all, and the clock was wrong": Planned(
            "renewed", "renew", NEW_KEY, seen(ordered(-SECOND)), RENEW_ALL
        ),
        "all, and another one is installed": Planned(
            "renewed",
            "enroll",
            NEW_KEY,
            seen(JUST_ORDERED, certificate=certificate(serial="C3")),
            RENEW_ALL,
        ),
        "": Planned("renewed", "renew", NEW_KEY, intent=RENEW),
        "not finished, and due": Planned(
            "renewed", "renew", NEW_KEY, seen(record(finishing="renewed"), certificate=DUE), RENEW
        ),
        "not finished, and revoked": Planned(
            "renewed", "renew", NEW_KEY, seen(record(finishing="renewed", revoked="A1")), RENEW
        ),
        "not finished, and replaced by others": Planned(
            "renewed", "enroll", NEW_KEY, seen(record(finishing="renewed"), certificate=NEW), RENEW
        ),
        "names differ": Planned("renewed", "enroll", NEW_KEY, seen(CHANGED), RENEW),
        "not ours": Planned("renewed", "enroll", NEW_KEY, seen(NOT_OURS), RENEW),
        "not to be renewed": Planned("renewed", "renew", NEW_KEY, seen(), RENEW, NOT_RENEWED),
        "revoked": Planned("renewed", "renew", NEW_KEY, seen(record(revoked="A1")), RENEW),
        "rolled back": Planned("renewed", "renew", NEW_KEY, seen(ROLLED_BACK), RENEW),
        "rolled back, not ours": Planned(
            "renewed",
            "enroll",
            NEW_KEY,
            seen(dataclasses.replace(ADOPTED, rolled_back=True)),
            RENEW,
        ),
    },
    "replace": {
        "": Planned("replaced", "replace", NEW_KEY, intent=REPLACE),
        "due": Planned("replaced", "replace", NEW_KEY, seen(certificate=DUE), REPLACE),
        "names differ": Planned("replaced", "replace", NEW_KEY, seen(CHANGED), REPLACE),
        "not ours": Planned("replaced", "enroll", NEW_KEY, seen(NOT_OURS), REPLACE),
        "revoked": Planned("replaced", "replace", NEW_KEY, seen(record(revoked="A1")), REPLACE),
    },
    "enroll, and it is due": {
        "": Planned("renewed", "enroll", NEW_KEY, seen(certificate=DUE), ENROLL),
        "forced": Planned("renewed", "enroll", NEW_KEY, seen(certificate=DUE), FORCE),
        "not to be renewed": Planned(
            "renewed", "enroll", NEW_KEY, seen(certificate=DUE), ENROLL, NOT_RENEWED
        ),
    },
    "enroll: not due, not revoked with revoke, without --force": {
        "": Refused("state", "enroll --force www", intent=ENROLL),
        "an older one was revoked": Refused(
            "state", "enroll --force www", seen(record(revoked="A0")), ENROLL
        ),
        "rolled back": Refused("state", "enroll --force www", seen(ROLLED_BACK), ENROLL),
    },
    "enroll": {
        "not finished, revoked at SCM": Planned(
            "enrolled", "enroll", NEW_KEY, seen(record(finishing="renewed"), revoked=True), ENROLL
        ),
        "not finished, an order given up": Planned(
            "enrolled",
            "enroll",
            NEW_KEY,
            seen(dataclasses.replace(UNKNOWN, finishing="renewed")),
            FORCE,
        ),
        "revoked at SCM": Planned("enrolled", "enroll", NEW_KEY, seen(revoked=True), ENROLL),
        "forced": Planned("enrolled", "enroll", NEW_KEY, intent=FORCE),
        "revoked": Planned("enrolled", "enroll", NEW_KEY, seen(record(revoked="A1")), ENROLL),
    },
    "revoked with revoke": {
        "": Refused("state", "enroll, renew or replace www", seen(record(revoked="A1"))),
        "SCM says so too": Refused(
            "state", "revoked by the operator", seen(record(revoked="A1"), revoked=True)
        ),
        "due": Refused(
            "state", "revoked by the operator", seen(record(revoked="A1"), certificate=DUE)
        ),
        "rolled back to": Refused(
            "state", "revoked by the operator", seen(record(revoked="A1", rolled_back=True))
        ),
    },
    "managed, and revoked in SCM (check_revocation)": {
        "": Planned("enrolled", "enroll", NEW_KEY, seen(revoked=True)),
        "due": Planned("enrolled", "enroll", NEW_KEY, seen(revoked=True, certificate=DUE)),
        "rolled back": Planned("enrolled", "enroll", NEW_KEY, seen(ROLLED_BACK, revoked=True)),
        "not to be renewed": Planned(
            "enrolled", "enroll", NEW_KEY, seen(revoked=True), wanted=NOT_RENEWED
        ),
    },
    "rolled back, more than 7 days left": {
        "": Planned("unchanged", None, None, seen(ROLLED_BACK)),
        "due": Planned("unchanged", None, None, seen(ROLLED_BACK, certificate=DUE)),
        "to the second": Planned(
            "unchanged", None, None, seen(ROLLED_BACK, certificate=certificate(7 * DAY + SECOND))
        ),
        "not bound": Planned(
            "repaired", None, Step.BIND, seen(ROLLED_BACK, certificate=DUE, unbound=("vs",))
        ),
        "not cleaned up": Planned(
            "rolled_back",
            None,
            Step.CLEAN_UP,
            seen(record(rolled_back=True, finishing="rolled_back")),
        ),
        "names differ": Planned(
            "unchanged", None, None, seen(ROLLED_BACK), wanted=other(names=OTHER_NAMES)
        ),
    },
    "due or expired (auto_renew: true)": {
        "rolled back, replaced by others": Planned(
            "renewed",
            "enroll",
            NEW_KEY,
            seen(ROLLED_BACK, certificate=certificate(30 * DAY, serial="B2")),
        ),
        "to the second": Planned("renewed", "renew", NEW_KEY, seen(certificate=DUE)),
        "in days": Planned(
            "renewed",
            "renew",
            NEW_KEY,
            seen(certificate=certificate(30 * DAY)),
            wanted=other(window=agent.Window(days=30)),
        ),
        "as a share": Planned(
            "renewed",
            "renew",
            NEW_KEY,
            seen(certificate=certificate(19.8 * DAY)),
            wanted=other(window=agent.Window(share=0.1)),
        ),
        "a window that is cut to two thirds": Planned(
            "renewed",
            "renew",
            NEW_KEY,
            seen(certificate=certificate(132 * DAY)),
            wanted=other(window=agent.Window(days=300)),
        ),
        "expired": Planned("renewed", "renew", NEW_KEY, seen(certificate=certificate(-DAY))),
        "not ours": Planned("renewed", "enroll", NEW_KEY, seen(NOT_OURS, certificate=DUE)),
        "adopted": Planned("renewed", "enroll", NEW_KEY, seen(ADOPTED, certificate=DUE)),
        "names differ": Planned("renewed", "enroll", NEW_KEY, seen(CHANGED, certificate=DUE)),
        "on_change is report": Planned(
            "renewed",
            "enroll",
            NEW_KEY,
            seen(CHANGED, certificate=DUE),
            wanted=other(on_change="report"),
        ),
        "rolled back, a week left": Planned(
            "renewed", "renew", NEW_KEY, seen(ROLLED_BACK, certificate=certificate(7 * DAY))
        ),
        "not linked": Planned("renewed", "renew", NEW_KEY, seen(certificate=DUE, linked=False)),
    },
    "names or key type differ, on_change: report": {
        "": Refused(
            "state",
            "(renewal.on_change is report)",
            seen(CHANGED),
            wanted=other(on_change="report"),
        ),
        "due, not to be renewed": Refused(
            "state",
            "(renewal.on_change is report)",
            seen(CHANGED, certificate=DUE),
            wanted=other(on_change="report", auto_renew=False),
        ),
    },
    "names or key type differ, on_change: replace, managed": {
        "not finished": Planned(
            "replaced",
            "replace",
            NEW_KEY,
            seen(dataclasses.replace(CHANGED, finishing="renewed", unverified=True)),
        ),
        "another common name": Planned("replaced", "replace", NEW_KEY, seen(REORDERED)),
        "names": Planned("replaced", "replace", NEW_KEY, seen(CHANGED)),
        "key type": Planned("replaced", "replace", NEW_KEY, wanted=other(key_type="RSA-2048")),
        "not linked": Planned("replaced", "replace", NEW_KEY, seen(CHANGED, linked=False)),
    },
    "names or key type differ": {
        "names not known, another common name": Planned(
            "enrolled",
            "enroll",
            NEW_KEY,
            seen(NOT_OURS, certificate=NAMELESS),
            wanted=other(subject=dataclasses.replace(profile().subject, common_name="x.example")),
        ),
        "on_change: enroll": Planned(
            "enrolled", "enroll", NEW_KEY, seen(CHANGED), wanted=other(on_change="enroll")
        ),
        "not ours": Planned(
            "enrolled", "enroll", NEW_KEY, seen(NOT_OURS), wanted=other(names=OTHER_NAMES)
        ),
        "adopted": Planned(
            "enrolled", "enroll", NEW_KEY, seen(ADOPTED), wanted=other(key_type="RSA-2048")
        ),
    },
    "due, auto_renew: false, 7 days or less left": {
        "to the second": Refused(
            "state",
            "renewal.auto_renew is false: run citrixagent.py enroll www",
            seen(certificate=certificate(7 * DAY)),
            wanted=NOT_RENEWED,
        ),
        "rolled back": Refused(
            "state",
            "renewal.auto_renew is false",
            seen(ROLLED_BACK, certificate=certificate(7 * DAY)),
            wanted=NOT_RENEWED,
        ),
    },
    "due, auto_renew: false": {
        "": Planned("unchanged", None, None, seen(certificate=DUE), wanted=NOT_RENEWED),
        "to the second": Planned(
            "unchanged",
            None,
            None,
            seen(certificate=certificate(7 * DAY + SECOND)),
            wanted=NOT_RENEWED,
        ),
        "not linked": Planned(
            "repaired", None, Step.LINK, seen(certificate=DUE, linked=False), wanted=NOT_RENEWED
        ),
    },
    "the chain is not linked": {
        "": Planned("repaired", None, Step.LINK, seen(linked=False)),
        "nor bound": Planned("repaired", None, Step.LINK, seen(linked=False, unbound=("vs",))),
    },
    "not bound to a virtual server of the profile": {
        "": Planned("repaired", None, Step.BIND, seen(unbound=("vs",))),
    },
    "changed by an earlier run, not saved": {
        "": Planned("repaired", None, Step.SAVE, seen(record(unsaved=True))),
    },
    "installed by an earlier run, not verified": {
        "an enrollment": Planned(
            "enrolled", None, Step.VERIFY, seen(record(unverified=True, finishing="enrolled"))
        ),
        "a renewal": Planned(
            "renewed", None, Step.VERIFY, seen(record(unverified=True, finishing="renewed"))
        ),
        "nor cleaned up": Planned(
            "replaced",
            None,
            Step.VERIFY,
            seen(record(unverified=True, finishing="replaced", litter=("x.csr",))),
        ),
    },
    "installed by an earlier run, not cleaned up": {
        "nor verified, without a handshake": Planned(
            "renewed",
            None,
            Step.CLEAN_UP,
            seen(record(unverified=True, finishing="renewed")),
            wanted=NO_HANDSHAKE,
        ),
        **{
            outcome: Planned(outcome, None, Step.CLEAN_UP, seen(record(finishing=outcome)))
            for outcome in ("enrolled", "renewed", "replaced")
        },
    },
    "files without a use are left": {
        "": Planned("unchanged", None, Step.CLEAN_UP, seen(record(litter=("x.csr",)))),
    },
    "none of these": {
        "not verified, without a handshake": Planned(
            "unchanged", None, None, seen(record(unverified=True)), wanted=NO_HANDSHAKE
        ),
        "on_change is report": Planned("unchanged", wanted=other(on_change="report")),
        "7 days left, but not due; not to be renewed": Planned(
            "unchanged",
            None,
            None,
            seen(certificate=LAPSING),
            wanted=other(auto_renew=False, window=agent.Window(days=3)),
        ),
        "not ours, with more names": Planned(
            "unchanged",
            None,
            None,
            seen(ADOPTED_WILDCARD, certificate=WILDCARD),
            wanted=other(names=("www.example.com",)),
        ),
        "other names were ordered, but replaced by others": Planned(
            "unchanged", None, None, seen(CHANGED, certificate=NEW)
        ),
        "names not known": Planned("unchanged", None, None, seen(NOT_OURS, certificate=NAMELESS)),
        "": Planned("unchanged"),
        "due in a second": Planned(
            "unchanged", None, None, seen(certificate=certificate(66 * DAY + SECOND))
        ),
        "due in a second, in days": Planned(
            "unchanged",
            None,
            None,
            seen(certificate=certificate(30 * DAY + SECOND)),
            wanted=other(window=agent.Window(days=30)),
        ),
        "due in a second, with a window that is cut to two thirds": Planned(
            "unchanged",
            None,
            None,
            seen(certificate=certificate(132 * DAY + SECOND)),
            wanted=other(window=agent.Window(days=300)),
        ),
        "an older one was revoked": Planned("unchanged", None, None, seen(record(revoked="A0"))),
        "not ours": Planned("unchanged", None, None, seen(NOT_OURS)),
        "rolled back, replaced by others": Planned(
            "unchanged", None, None, seen(ROLLED_BACK, certificate=NEW)
        ),
    },
    "--take-over, or an open order that was placed with it": {
        "nothing is installed": Planned(
            "enrolled", "enroll", NEW_KEY, seen(NOT_OURS, certificate=None, **TAKEN), TAKE_OVER
        ),
        "somebody else's": Planned(
            "enrolled", "enroll", NEW_KEY, seen(NOT_OURS, certificate=STRANGE), TAKE_OVER
        ),
        "a name is lost": Planned(
            "renewed", "enroll", NEW_KEY, seen(NOT_OURS, **SHARED), TAKE_OVER
        ),
        "all else is well": Planned("repaired", None, Step.BIND, seen(**TAKEN), TAKE_OVER),
        "an order that waits": Planned(
            "enrolled",
            None,
            Step.COLLECT,
            seen(with_order(**WAITS, take_over=True), certificate=None, **TAKEN),
        ),
    },
    "the certkey is to be updated, and holds somebody else's certificate that is not for the "
    "common name": {
        "": Refused("state", "name another one", seen(NOT_OURS, certificate=STRANGE)),
        "forced": Refused("state", "--take-over", seen(NOT_OURS, certificate=STRANGE), FORCE),
        "renew": Refused("state", "--take-over", seen(NOT_OURS, certificate=STRANGE), RENEW),
        "updated by hand": Refused(
            "state",
            "is not for www",
            seen(certificate=dataclasses.replace(STRANGE, serial="B3")),
        ),
        "only a common name is known": Refused(
            "state",
            "holds a certificate for shop.example.org, which is not for www.example.com",
            seen(
                NOT_OURS,
                certificate=dataclasses.replace(
                    certificate(), names=(), common_name="shop.example.org"
                ),
            ),
        ),
        "the common name is not among the names": Refused(
            "state",
            "is not for www.example.com",
            seen(NOT_OURS, certificate=dataclasses.replace(STRANGE, common_name="www.example.com")),
        ),
        "an order that waits": Refused(
            "state",
            "is not for www",
            seen(record(installed=None, change=change(**WAITS)), certificate=STRANGE),
        ),
    },
    "the certkey is to be updated, and is bound to a virtual server that the profile does not name "
    "and that would lose a name": {
        "": Refused(
            "state",
            "is also bound to sw, which would lose *.example.com: add that to the profile",
            seen(NOT_OURS, **SHARED),
        ),
        "forced": Refused("state", "--take-over", seen(NOT_OURS, **SHARED), FORCE),
        "ours, a name less": Refused(
            "state",
            "would lose old.example.com",
            seen(
                record(installed=generation(names=("old.example.com", *NAMES))),
                certificate=DUE,
                elsewhere=("sw",),
            ),
        ),
        "an order that waits": Refused(
            "state",
            "would lose",
            seen(record(installed=None, change=change(**WAITS)), **SHARED),
        ),
    },
    "taken, because the key type or a name changes": {
        "": Refused("state", "vs", seen(CHANGED, **BESIDE)),
        "though all is bound": Refused("state", "theirs", seen(CHANGED, **BESIDE), wanted=TWO),
    },
    "taken, and nothing else would be served": {
        "with consent to an order that was given up": Refused(
            "state",
            "--take-over",
            seen(with_order(**WAITS, refused="x", take_over=True), certificate=None, **TAKEN),
            wanted=OTHER_SUBJECT,
        ),
        "nothing is installed": Refused(
            "state",
            'the virtual server "vs" holds the certkey "theirs" already: name it as '
            "certificate.name, unbind it, or run citrixagent.py run www --take-over",
            seen(NOT_OURS, certificate=None, **TAKEN),
        ),
        "forced": Refused("state", "unbind", seen(NOT_OURS, certificate=None, **TAKEN), FORCE),
        "managed": Refused(
            "state",
            'the certkey "theirs" of the profile b already: unbind it, or run',
            seen(
                certificate=None, unbound=("vs",), taken=(agent.Taken("vs", "theirs", owner="b"),)
            ),
        ),
        "due, and bound nowhere": Refused("state", "unbind it", seen(certificate=DUE, **TAKEN)),
        "all else is well": Refused("state", "--take-over", seen(**TAKEN)),
        "all else is well, and bound": Refused("state", "--take-over", seen(**TAKEN), wanted=TWO),
        "an order that waits": Refused("state", "unbind", seen(PENDING, certificate=None, **TAKEN)),
    },
    "taken": {
        "due": Planned("renewed", "renew", NEW_KEY, seen(certificate=DUE, **TAKEN), wanted=TWO),
        "names differ": Planned("replaced", "replace", NEW_KEY, seen(CHANGED, **TAKEN), wanted=TWO),
        "revoked": Planned("enrolled", "enroll", NEW_KEY, seen(revoked=True, **TAKEN), wanted=TWO),
        "due, and bound elsewhere": Planned(
            "renewed", "renew", NEW_KEY, seen(certificate=DUE, elsewhere=("sw",), **TAKEN)
        ),
    },
}
CASES = [
    pytest.param(case, id=f"{row}; {detail}" if detail else row)
    for row, cases in SITUATIONS.items()
    for detail, case in cases.items()
]


def decided(
    wanted: agent.Profile, found: Observed, intent: Intent
) -> tuple[str, str | None, Step | None]:
    """Return outcome, action and first step; of a refusal the kind and nothing else."""
    try:
        plan = agent.decide(wanted, found, intent)
    except agent.AgentError as error:
        return error.kind, None, None
    assert plan.reason
    return plan.outcome, plan.action, plan.first


@pytest.mark.parametrize("case", CASES)
def test_what_is_decided(case: Planned | Refused) -> None:
    if isinstance(case, Planned):
        expected = (case.outcome, case.action, case.first)
        assert decided(case.wanted, case.found, case.intent) == expected
        return
    with pytest.raises(agent.AgentError) as caught:
        agent.decide(case.wanted, case.found, case.intent)
    assert caught.value.kind == case.kind
    assert case.words in caught.value.message


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the README's decision table."""

    situation: str
    done: str
    outcome: str

    @property
    def named(self) -> set[str]:
        return set(re.findall(r"`(\w+)`", self.outcome))


def rows() -> Iterator[Row]:
    """Yield the lines of the README's decision table; its first cells are plain text."""
    found = re.search(
        r"<!-- decisions -->(.*?)<!-- /decisions -->", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert found
    for line in re.findall(r"^\| (.+) \|$", found[1], re.MULTILINE):
        cells = line.split(" | ")
        if cells[0] != "situation":
            yield Row(cells[0].replace("`", ""), cells[1], cells[2])


TABLE = tuple(rows())


def test_the_table_in_the_readme_is_the_table_that_is_tested() -> None:
    assert [row.situation for row in TABLE] == list(SITUATIONS)


FUNCTIONS = ("_adopt", "_roll_back", "_go_on", "_start", "_finish", "_beside_others")
"""Those that decide, in the order of the table; the last line of one may lead to the next."""
Leaving = ast.Return | ast.Raise


def rows_of(function: ast.FunctionDef, lines: Sequence[str]) -> Iterator[str]:
    """Yield the comments of a function that decides; each has one statement that leaves."""
    ends = {
        (node.body[0] if isinstance(node, ast.If) else node).lineno
        for node in function.body
        if isinstance(node, Leaving)
        or (isinstance(node, ast.If) and isinstance(node.body[-1], Leaving))
    }
    words: list[str] = []
    for number in range(function.body[0].lineno, (function.end_lineno or 0) + 1):
        line = lines[number - 1].strip()
        if line.startswith("# "):
            words.append(line.removeprefix("# "))
        elif number in ends:
            assert words or number == function.body[-1].lineno, f"no row leads to {line}"
            if words:
                yield " ".join(words)
            words = []
    assert not words, f"nothing is done where {' '.join(words)}"


def test_the_table_in_the_readme_is_what_the_functions_say() -> None:
    """Row by row: none is missing on either side, and the first that fits is the same."""
    source = PROGRAM.read_text()
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    functions = {node.name: node for node in nodes}
    found = [row for name in FUNCTIONS for row in rows_of(functions[name], source.splitlines())]
    assert found == [row.situation for row in TABLE]


@pytest.mark.parametrize("row", TABLE, ids=[row.situation for row in TABLE])
def test_the_readme_names_what_comes_of_it(row: Row) -> None:
    """Each outcome that the table names is one of the cases', and the other way round."""
    given: set[str] = set()
    for case in SITUATIONS[row.situation].values():
        given |= {case.outcome} if isinstance(case, Planned) else {"failed", case.kind}
    assert row.named == given or row.outcome == "see below"


BELOW = [
    pytest.param(row, case, id=f"{row.situation}; {detail}")
    for row in TABLE
    if row.outcome == "see below"
    for detail, case in SITUATIONS[row.situation].items()
]


@pytest.mark.parametrize(("row", "case"), BELOW)
def test_see_below_means_as_if_there_were_no_order(row: Row, case: Planned | Refused) -> None:
    """After an order that was given up ``enroll`` needs no --force."""
    given_up = "gives it up" in row.done and case.intent.command == "enroll"
    intent = dataclasses.replace(case.intent, force=case.intent.force or given_up)
    without = dataclasses.replace(case.found.record, change=None)
    found = dataclasses.replace(case.found, record=without, issued=None)
    with_it = decided(case.wanted, case.found, case.intent)
    assert with_it[:2] == decided(case.wanted, found, intent)[:2]


@dataclasses.dataclass(frozen=True)
class Journey:
    """How a certificate comes about: what is asked of SCM, and what was there before."""

    outcome: agent.Outcome
    action: agent.Action
    before: agent.Certificate | None = None
    installed: agent.Generation | None = None
    restores: bool = False

    @property
    def first(self) -> int:
        return agent.PIPELINE.index(Step.INSTALL) if self.restores else 0


BEFORE = generation("A0", pem="PEM")
JOURNEYS = (
    Journey("enrolled", "enroll"),
    Journey("renewed", "renew", certificate(66 * DAY, serial="A0"), BEFORE),
    Journey("renewed", "enroll", certificate(66 * DAY, serial="A0")),
    Journey(
        "replaced",
        "replace",
        certificate(serial="A0"),
        dataclasses.replace(BEFORE, names=("www.example.com",)),
    ),
    Journey("rolled_back", "enroll", certificate(serial="A0"), BEFORE, restores=True),
)
STAGES = [
    pytest.param(journey, steps, id=f"{journey.outcome} by {journey.action}, {steps}")
    for journey in JOURNEYS
    for steps in range(journey.first, len(agent.PIPELINE) + 1)
]


def after(steps: int, journey: Journey) -> Observed:
    """Return what is seen after the first so many steps.

    One of the virtual servers was not bound before, so that each step has something to do.
    """
    done = set(agent.PIPELINE[:steps])
    new, is_new = generation(), Step.INSTALL in done
    is_issued, is_saved = Step.COLLECT in done, Step.SAVE in done
    opened = change(
        action=journey.action,
        outcome=journey.outcome,
        old=journey.installed,
        key_created=Step.CREATE_KEY in done,
        csr="CSR" if Step.CREATE_CSR in done else None,
        sent="2026-11-22T02:00:00Z" if Step.ORDER in done else None,
        cert_id="7" if Step.ORDER in done else None,
        pem="PEM" if is_issued else "",
        serial="A1" if is_issued else "",
        uploaded=Step.UPLOAD in done,
    )
    if journey.restores:
        opened = dataclasses.replace(rollback(), new=new)
    remembered = Record("www", journey.installed, change=opened, unsaved=is_new)
    if is_saved:
        remembered = Record(
            "www",
            new,
            previous=journey.installed,
            finishing=None if Step.CLEAN_UP in done else journey.outcome,
            unverified=Step.VERIFY not in done,
            rolled_back=journey.restores,
        )
    return Observed(
        now=NOW,
        record=remembered,
        certificate=certificate() if is_new else journey.before,
        linked=not is_new or Step.LINK in done,
        unbound=() if Step.BIND in done else ("vs",),
        issued=certificate() if is_issued and not journey.restores else None,
    )


@pytest.mark.parametrize(("journey", "steps"), STAGES)
def test_after_the_first_steps_the_rest_is_decided(journey: Journey, steps: int) -> None:
    """The law of the pipeline: an interrupted run is not a special case."""
    plan = agent.decide(profile(), after(steps, journey), RUN)
    assert plan.steps(profile()) == agent.PIPELINE[steps:]
    assert plan.outcome == (journey.outcome if steps < len(agent.PIPELINE) else "unchanged")


def test_the_digest_of_a_wish_outlasts_upgrades() -> None:
    """Another digest for the same profile would have every declined order placed again."""
    host = dataclasses.replace(profile().appliance, hosts=("ns1.example.com",))
    enrollment = agent.Enrollment(comments="hello", custom_fields=(("Owner", "NetOps"),))
    wanted = other(appliance=host, enrollment=enrollment)
    assert agent.wish_of(wanted) == (
        "e69e8b850b47a360d3d4a753c9b7e68fbbfa277262391118085d4f6ae5f71cfe"
    )
    waits = dataclasses.replace(enrollment, max_wait=7)
    assert agent.wish_of(other(appliance=host, enrollment=waits)) == agent.wish_of(wanted)
    assert agent.wish_of(other(appliance=host)) != agent.wish_of(wanted)


def test_without_a_handshake_nothing_is_verified() -> None:
    plan = agent.decide(NO_HANDSHAKE, after(0, JOURNEYS[0]), RUN)
    assert plan.steps(NO_HANDSHAKE) == tuple(s for s in agent.PIPELINE if s is not Step.VERIFY)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (seen(CHANGED), "the certificate is for www.example.com, the profile asks for " + AS_TEXT),
        (
            seen(NOT_OURS, certificate=dataclasses.replace(certificate(), names=NAMES[1:])),
            "the certificate is for 192.0.2.10, example.com, the profile asks for " + AS_TEXT,
        ),
        (
            seen(NOT_OURS, certificate=dataclasses.replace(NAMELESS, common_name="x.example")),
            "the certificate is for x.example, the profile asks for " + AS_TEXT,
        ),
        (
            seen(REORDERED),
            "the certificate is for example.com first, the profile asks for www.example.com first",
        ),
        (
            seen(certificate=dataclasses.replace(certificate(), key_type="RSA-2048")),
            "the key is RSA-2048, the profile asks for ECDSA-P256",
        ),
        (seen(certificate=DUE), "66 days left, window is 66 days"),
        (seen(certificate=certificate(SECOND)), "0 days left, window is 66 days"),
        (seen(certificate=certificate(0 * DAY)), "expired at 2026-11-23T02:00:00Z"),
        (seen(unbound=("vs_a", "vs_b")), "not bound to vs_a, vs_b"),
    ],
)
def test_the_reason_that_is_given(found: Observed, reason: str) -> None:
    assert agent.decide(profile(), found, TAKE_OVER).reason == reason


def test_what_an_order_goes_on_with_under_the_id_that_the_operator_names() -> None:
    plan = agent.decide(profile(), seen(UNKNOWN), ADOPT)
    assert plan.resumes
    assert plan.cert_id == "9"


def test_what_is_well_is_not_warned_about() -> None:
    for found in (seen(), seen(certificate=DUE), seen(NOT_OURS)):
        plan = agent.decide(profile(), found, RUN)
        assert (plan.warnings, plan.notices) == ((), ())
    assert agent.decide(NOT_RENEWED, seen(), RUN).warnings == ()


def test_what_is_warned_about() -> None:
    plan = agent.decide(NOT_RENEWED, seen(certificate=DUE), RUN)
    assert plan.warnings == ("66 days left, window is 66 days, and renewal.auto_renew is false",)
    plan = agent.decide(other(window=agent.Window(days=300)), seen(), RUN)
    words = "renewal.expiry_window is longer than two thirds of the certificate's lifetime"
    assert plan.notices == (f"{words}: 132 days are used",)
    plan = agent.decide(other(window=agent.Window(days=300)), seen(certificate=AFRESH), RUN)
    assert (plan.outcome, len(plan.notices)) == ("unchanged", 1)
    plan = agent.decide(profile(), seen(ROLLED_BACK), RUN)
    assert plan.warnings == (
        "rolled back by the operator (100 days left, window is 66 days): stays until "
        "citrixagent.py renew www, or 7 days before its end",
    )


SHORT = 47 * DAY
REPLACED = 16 * DAY  # was left of it


@pytest.mark.parametrize(
    ("window", "lifetime", "ordered", "days"),
    [
        pytest.param(agent.Window(), 198 * DAY, None, 66, id="a third"),
        pytest.param(agent.Window(), SHORT, None, 15, id="a third of a short one"),
        pytest.param(agent.Window(), 20 * DAY, None, 10, id="ten days at least"),
        pytest.param(agent.Window(), 12 * DAY, None, 8, id="two thirds at most"),
        pytest.param(agent.Window(), REPLACED, SHORT, 15, id="as the one it replaced"),
        pytest.param(agent.Window(share=0.5), REPLACED, SHORT, 23, id="a share, likewise"),
        pytest.param(agent.Window(days=5), REPLACED, SHORT, 5, id="days, whatever the lifetime"),
        pytest.param(agent.Window(days=40), REPLACED, SHORT, 31, id="days, two thirds at most"),
    ],
)
def test_the_window(
    window: agent.Window, lifetime: dt.timedelta, ordered: dt.timedelta | None, days: int
) -> None:
    seconds = int(ordered.total_seconds()) if ordered else None
    found = record(installed=generation(lifetime=seconds))
    held = certificate(6 * DAY, lifetime)
    plan = agent.decide(
        other(window=window, auto_renew=False), seen(found, certificate=held), RENEW
    )
    assert plan.outcome == "renewed"
    held = certificate(lifetime, lifetime)
    reason = agent.decide(other(window=window), seen(found, certificate=held), RUN).reason
    assert reason == f"{lifetime.days} days left, window is {days} days"


def test_names_that_the_certificate_keeps_are_warned_about() -> None:
    kept = record(installed=generation(unwanted=("api.example.com",)))
    text = "the certificate still holds api.example.com, which was removed: SCM or the CA keeps it"
    (warning,) = agent.decide(profile(), seen(kept), RUN).warnings
    assert warning.startswith(text)
    assert agent.decide(profile(), seen(kept, certificate=NEW), RUN).warnings == ()


def test_what_a_rollback_puts_back() -> None:
    plan = agent.decide(profile(), seen(WITH_PREVIOUS, previous=BEFORE_IT), ROLL_BACK)
    assert plan.restores == OLD


def test_which_orders_are_given_up() -> None:
    """Only what a plan resumes is kept."""
    assert not agent.decide(profile(), seen(UNKNOWN), FORCE).resumes
    assert not agent.decide(profile(), seen(FAILED), FORCE).resumes
    assert agent.decide(profile(), seen(PENDING), FORCE).resumes
    assert agent.decide(profile(), seen(UNSENT, certificate=DUE), RUN).resumes
    assert not agent.decide(profile(), seen(UNSENT), RUN).resumes
