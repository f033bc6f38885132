"""The one decision: a table of situations, boundaries to the second, the law of the pipeline."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
from test_certificates import NAMES, NOW, profile

import citrixagent as agent
from citrixagent import Intent, Observed, Order, Record, Step

DAY = dt.timedelta(days=1)
SECOND = dt.timedelta(seconds=1)
ENROLL = Intent("enroll")
FORCE = Intent("enroll", force=True)


def certificate(
    left: dt.timedelta = 100 * DAY, lifetime: dt.timedelta = 198 * DAY
) -> agent.Certificate:
    end = NOW + left
    return agent.Certificate(
        pem="",
        fingerprint="",
        serial="A1",
        subject="",
        issuer="",
        common_name=NAMES[0],
        names=NAMES,
        key_type="ECDSA-P256",
        not_before=end - lifetime,
        not_after=end,
    )


def generation(serial: str = "A1", **changes: Any) -> agent.Generation:
    made = agent.Generation(serial, "a.key", "a.crt", list(NAMES), "ECDSA-P256", "", "1001")
    return dataclasses.replace(made, **changes)


def order(**changes: Any) -> Order:
    made = Order(
        action="enroll",
        outcome="enrolled",
        reason="because",
        wish=agent.wish_of(profile()),
        names=list(NAMES),
        key_type="ECDSA-P256",
        started="2026-11-22T02:00:00Z",
        key_file="b.key",
        csr_file="b.csr",
        cert_file="b.crt",
    )
    return dataclasses.replace(made, **changes)


PLACED = {"key_created": True, "csr": "CSR", "sent": "2026-11-22T02:00:00Z"}


def seen(record: Record | None = None, **changes: Any) -> Observed:
    managed = Record("www", installed=generation())
    made = Observed(now=NOW, record=record or managed, certificate=certificate())
    return dataclasses.replace(made, **changes)


def with_order(**changes: Any) -> Record:
    return Record("www", installed=generation(), order=order(**changes))


def other(**changes: Any) -> agent.Profile:
    return dataclasses.replace(profile(), **changes)


OTHER_NAMES = ("www.example.com", "new.example.com")
CHANGED = Record("www", installed=generation(names=["www.example.com"]))
UNKNOWN = with_order(**PLACED)
REFUSED = with_order(**PLACED, cert_id="7", refused="order 7 was declined in SCM")
PENDING = with_order(**PLACED, cert_id="7")
DUE = certificate(66 * DAY)
LAPSING = certificate(7 * DAY - SECOND)

# situation: (profile, what is seen, what is asked) -> outcome, action, first step
PLANS: dict[str, tuple[agent.Profile, Observed, Intent, str, str | None, Step | None]] = {
    "nothing installed": (
        profile(),
        seen(Record("www"), certificate=None),
        Intent(),
        "enrolled",
        "enroll",
        Step.CREATE_KEY,
    ),
    "all is well": (profile(), seen(), Intent(), "unchanged", None, None),
    "revoked by somebody": (
        profile(),
        seen(revoked=True),
        Intent(),
        "enrolled",
        "enroll",
        Step.CREATE_KEY,
    ),
    "names differ": (profile(), seen(CHANGED), Intent(), "replaced", "replace", Step.CREATE_KEY),
    "names differ, enroll": (
        other(on_change="enroll"),
        seen(CHANGED),
        Intent(),
        "enrolled",
        "enroll",
        Step.CREATE_KEY,
    ),
    "names differ, not ours": (
        other(names=OTHER_NAMES),
        seen(Record("www")),
        Intent(),
        "enrolled",
        "enroll",
        Step.CREATE_KEY,
    ),
    "key type differs": (
        other(key_type="RSA-2048"),
        seen(),
        Intent(),
        "replaced",
        "replace",
        Step.CREATE_KEY,
    ),
    "due to the second": (
        profile(),
        seen(certificate=DUE),
        Intent(),
        "renewed",
        "renew",
        Step.CREATE_KEY,
    ),
    "due in a second": (
        profile(),
        seen(certificate=certificate(66 * DAY + SECOND)),
        Intent(),
        "unchanged",
        None,
        None,
    ),
    "due, in days": (
        other(window=agent.Window(days=30)),
        seen(certificate=certificate(30 * DAY)),
        Intent(),
        "renewed",
        "renew",
        Step.CREATE_KEY,
    ),
    "due in a second, in days": (
        other(window=agent.Window(days=30)),
        seen(certificate=certificate(30 * DAY + SECOND)),
        Intent(),
        "unchanged",
        None,
        None,
    ),
    "due, as a share": (
        other(window=agent.Window(share=0.1)),
        seen(certificate=certificate(19.8 * DAY)),
        Intent(),
        "renewed",
        "renew",
        Step.CREATE_KEY,
    ),
    "a window that is cut to two thirds": (
        other(window=agent.Window(days=300)),
        seen(certificate=certificate(132 * DAY + SECOND)),
        Intent(),
        "unchanged",
        None,
        None,
    ),
    "expired": (
        profile(),
        seen(certificate=certificate(-DAY)),
        Intent(),
        "renewed",
        "renew",
        Step.CREATE_KEY,
    ),
    "due, not ours": (
        profile(),
        seen(Record("www"), certificate=DUE),
        Intent(),
        "renewed",
        "enroll",
        Step.CREATE_KEY,
    ),
    "due, and names differ": (
        profile(),
        seen(CHANGED, certificate=DUE),
        Intent(),
        "renewed",
        "enroll",
        Step.CREATE_KEY,
    ),
    "due, and on_change is report": (
        other(on_change="report"),
        seen(CHANGED, certificate=DUE),
        Intent(),
        "renewed",
        "enroll",
        Step.CREATE_KEY,
    ),
    "due, but not to be renewed": (
        other(auto_renew=False),
        seen(certificate=DUE),
        Intent(),
        "unchanged",
        None,
        None,
    ),
    "due, not to be renewed, a week left": (
        other(auto_renew=False),
        seen(certificate=certificate(7 * DAY + SECOND)),
        Intent(),
        "unchanged",
        None,
        None,
    ),
    "not linked": (profile(), seen(linked=False), Intent(), "repaired", None, Step.LINK),
    "not bound": (profile(), seen(unbound=("vs",)), Intent(), "repaired", None, Step.BIND),
    "not saved": (
        profile(),
        seen(Record("www", installed=generation(), unsaved=True)),
        Intent(),
        "repaired",
        None,
        Step.SAVE,
    ),
    "not verified": (
        profile(),
        seen(Record("www", installed=generation(), unverified=True, finishing="renewed")),
        Intent(),
        "renewed",
        None,
        Step.VERIFY,
    ),
    "not cleaned up": (
        profile(),
        seen(Record("www", installed=generation(), finishing="renewed")),
        Intent(),
        "renewed",
        None,
        Step.CLEAN_UP,
    ),
    "files without a use": (
        profile(),
        seen(Record("www", installed=generation(), litter=["x.csr"])),
        Intent(),
        "unchanged",
        None,
        Step.CLEAN_UP,
    ),
    "an order that was not sent": (
        profile(),
        seen(with_order(key_created=True, csr="CSR"), certificate=DUE),
        Intent(),
        "renewed",
        "renew",
        Step.ORDER,
    ),
    "an order that was not sent, no longer needed": (
        profile(),
        seen(with_order(key_created=True, csr="CSR")),
        Intent(),
        "unchanged",
        None,
        None,
    ),
    "an order that was not sent, for something else": (
        profile(),
        seen(with_order(key_created=True, csr="CSR", wish="x"), certificate=DUE),
        Intent(),
        "renewed",
        "renew",
        Step.CREATE_KEY,
    ),
    "an order that waits": (profile(), seen(PENDING), Intent(), "enrolled", None, Step.COLLECT),
    "an order that waits, forced": (
        profile(),
        seen(PENDING),
        FORCE,
        "enrolled",
        None,
        Step.COLLECT,
    ),
    "an order that failed, forced": (
        profile(),
        seen(with_order(**PLACED, cert_id="7", failed="x")),
        FORCE,
        "enrolled",
        "enroll",
        Step.CREATE_KEY,
    ),
    "an order that covers the edited profile": (
        other(names=NAMES[:2]),
        seen(PENDING),
        Intent(),
        "enrolled",
        None,
        Step.COLLECT,
    ),
    "an edited profile, forced": (
        other(names=OTHER_NAMES),
        seen(PENDING),
        FORCE,
        "enrolled",
        "enroll",
        Step.CREATE_KEY,
    ),
    "declined, and asked again": (
        profile(),
        seen(REFUSED),
        ENROLL,
        "enrolled",
        "enroll",
        Step.CREATE_KEY,
    ),
    "declined, and the profile is edited": (
        other(subject=dataclasses.replace(profile().subject, organization="Other")),
        seen(REFUSED),
        Intent(),
        "unchanged",
        None,
        None,
    ),
    "unknown, forced": (profile(), seen(UNKNOWN), FORCE, "enrolled", "enroll", Step.CREATE_KEY),
    "unknown, and about to lapse": (
        profile(),
        seen(UNKNOWN, certificate=LAPSING),
        Intent(),
        "renewed",
        "renew",
        Step.CREATE_KEY,
    ),
    "unknown, and SCM has it": (
        profile(),
        seen(UNKNOWN),
        Intent("enroll", cert_id="9"),
        "enrolled",
        None,
        Step.COLLECT,
    ),
    "enroll, nothing installed": (
        profile(),
        seen(Record("www"), certificate=None),
        ENROLL,
        "enrolled",
        "enroll",
        Step.CREATE_KEY,
    ),
    "enroll, due": (profile(), seen(certificate=DUE), ENROLL, "renewed", "enroll", Step.CREATE_KEY),
    "enroll, forced": (profile(), seen(), FORCE, "enrolled", "enroll", Step.CREATE_KEY),
    "due, and another virtual server is taken": (
        profile(),
        seen(certificate=DUE, unbound=("vs",), conflicts=("taken",)),
        Intent(),
        "renewed",
        "renew",
        Step.CREATE_KEY,
    ),
}


@pytest.mark.parametrize(
    ("wanted", "found", "intent", "outcome", "action", "first"), PLANS.values(), ids=list(PLANS)
)
def test_what_is_decided(
    wanted: agent.Profile,
    found: Observed,
    intent: Intent,
    outcome: str,
    action: str | None,
    first: Step | None,
) -> None:
    plan = agent.decide(wanted, found, intent)
    assert (plan.outcome, plan.action, plan.first) == (outcome, action, first)
    assert plan.reason


# situation: (profile, what is seen, what is asked) -> kind, words
REFUSALS: dict[str, tuple[agent.Profile, Observed, Intent, str, str]] = {
    "names differ, report": (
        other(on_change="report"),
        seen(CHANGED),
        Intent(),
        "state",
        "(renewal.on_change is report)",
    ),
    "not to be renewed, under a week left": (
        other(auto_renew=False),
        seen(certificate=certificate(7 * DAY)),
        Intent(),
        "state",
        "renewal.auto_renew is false: run citrixagent.py enroll www before it expires",
    ),
    "declined": (profile(), seen(REFUSED), Intent(), "declined", "order 7 was declined in SCM"),
    "unknown": (profile(), seen(UNKNOWN), Intent(), "unknown_outcome", "enroll --cert-id ID www"),
    "unknown, enroll": (profile(), seen(UNKNOWN), ENROLL, "unknown_outcome", "enroll --force www"),
    "unknown, a week left": (
        profile(),
        seen(UNKNOWN, certificate=certificate(7 * DAY)),
        Intent(),
        "unknown_outcome",
        "SCM",
    ),
    "unknown, lapsing, not to be renewed": (
        other(auto_renew=False),
        seen(UNKNOWN, certificate=LAPSING),
        Intent(),
        "unknown_outcome",
        "SCM",
    ),
    "an edited profile": (
        other(names=OTHER_NAMES),
        seen(PENDING),
        Intent(),
        "state",
        "put the profile back",
    ),
    "enroll, valid": (profile(), seen(), ENROLL, "state", "enroll --force www"),
    "an id without an order": (
        profile(),
        seen(),
        Intent("enroll", cert_id="9"),
        "state",
        "has no open order",
    ),
    "an id for an order that is issued": (
        profile(),
        seen(with_order(**PLACED, cert_id="7", pem="PEM")),
        Intent("enroll", cert_id="9"),
        "state",
        "order 7 of www is issued already",
    ),
    "another certkey is bound": (
        profile(),
        seen(Record("www"), certificate=None, unbound=("vs",), conflicts=("vs is taken",)),
        Intent(),
        "state",
        "vs is taken: unbind it",
    ),
}


@pytest.mark.parametrize(
    ("wanted", "found", "intent", "kind", "words"), REFUSALS.values(), ids=list(REFUSALS)
)
def test_what_is_refused(
    wanted: agent.Profile, found: Observed, intent: Intent, kind: str, words: str
) -> None:
    with pytest.raises(agent.AgentError) as caught:
        agent.decide(wanted, found, intent)
    assert caught.value.kind == kind
    assert words in caught.value.message


def after(steps: int) -> Observed:
    """Return what is seen after the first so many steps of an enrollment."""
    done = set(agent.PIPELINE[:steps])
    record = Record("www", order=order(), unsaved=Step.INSTALL in done and Step.SAVE not in done)
    opened = record.order
    assert opened
    opened.key_created = Step.CREATE_KEY in done
    opened.csr = "CSR" if Step.CREATE_CSR in done else None
    opened.cert_id = opened.sent = "7" if Step.ORDER in done else None
    opened.pem = "PEM" if Step.COLLECT in done else None
    opened.serial = "A1" if Step.COLLECT in done else None
    opened.uploaded = Step.UPLOAD in done
    if Step.SAVE in done:
        record = Record("www", installed=generation())
        record.finishing = None if Step.CLEAN_UP in done else "enrolled"
        record.unverified = Step.VERIFY not in done
    return Observed(
        now=NOW,
        record=record,
        certificate=certificate() if Step.INSTALL in done else None,
        linked=Step.LINK in done,
        unbound=() if Step.BIND in done else ("vs",),
    )


@pytest.mark.parametrize("steps", range(len(agent.PIPELINE) + 1))
def test_after_the_first_steps_the_rest_is_decided(steps: int) -> None:
    """The law of the pipeline: an interrupted run is not a special case."""
    plan = agent.decide(profile(), after(steps), Intent())
    assert plan.steps(profile()) == agent.PIPELINE[steps:]
    assert plan.outcome == ("enrolled" if steps < len(agent.PIPELINE) else "unchanged")


def test_without_a_handshake_nothing_is_verified() -> None:
    plan = agent.decide(other(handshake="off"), after(0), Intent())
    assert Step.VERIFY not in plan.steps(other(handshake="off"))


def test_what_is_warned_about() -> None:
    plan = agent.decide(other(auto_renew=False), seen(certificate=DUE), Intent())
    assert plan.warnings == ("66 days left, window is 66 days, and renewal.auto_renew is false",)
    plan = agent.decide(other(window=agent.Window(days=300)), seen(), Intent())
    words = "renewal.expiry_window is longer than two thirds of the certificate's lifetime"
    assert plan.notices == (f"{words}: 132 days are used",)
