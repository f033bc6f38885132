"""When orders are asked for: soon after they are issued, and seldom. No clock runs here."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from statistics import mean

import pytest
from conftest import Lab

from citrixagent import Pace


@dataclasses.dataclass
class Waiting:
    """An order: when it was placed, how long SCM takes, and the ages at which it was asked for."""

    placed: float
    takes: float
    haste: float
    asked: list[float] = dataclasses.field(default_factory=list)

    @property
    def late(self) -> float:
        return self.asked[-1] - self.takes

    def due(self, pace: Pace) -> float:
        if not self.asked:
            return self.placed + pace.first(self.haste)
        return self.placed + pace.next(self.asked[-1], self.haste)


def wait_for(orders: Sequence[Waiting]) -> None:
    """Ask for orders as a run does: each when its time has come, one after another."""
    pace, now = Pace(), 0.0
    waiting = list(orders)
    while waiting:
        order = min(waiting, key=lambda each: each.due(pace))
        now = max(now + 0.02, order.due(pace))
        before, age = (order.asked or [0.0])[-1], now - order.placed
        order.asked.append(age)
        pace.heard(before, age, is_there=age >= order.takes)
        if age >= order.takes:
            waiting.remove(order)


def placed(number: int, every: float, takes: float, seed: int) -> list[Waiting]:
    haste = random.Random(seed).uniform
    return [Waiting(index * every, takes, haste(0.8, 1)) for index in range(number)]


@pytest.mark.parametrize("every", [0.1, 0.3, 0.7])
def test_many_orders_are_asked_for_soon_after_they_are_issued(every: float) -> None:
    """What arrived first tells when the others will."""
    for seed, takes in enumerate((15.0, 17.5, 20.0, 22.5, 25.0) * 4):
        orders = placed(20, every, takes, seed)
        wait_for(orders)
        assert mean(order.late for order in orders) <= 2, (takes, seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("takes", [61.0, 90.0, 200.0, 599.0])
def test_beyond_a_minute_no_order_is_late_by_more_than_a_tenth(takes: float, seed: int) -> None:
    for number in (1, 5):
        orders = placed(number, 0.7, takes, seed)
        wait_for(orders)
        assert max(order.late for order in orders) <= takes / 10


@pytest.mark.parametrize("takes", [15.0, 20.0, 45.0])
def test_what_was_too_early_for_one_is_too_early_for_the_next(takes: float) -> None:
    """So most orders are asked for every five seconds at most, though they begin at once."""
    for seed in range(5):
        orders = placed(20, 0.7, takes, seed)
        wait_for(orders)
        assert takes / mean(len(order.asked) for order in orders) >= 5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [1, 20, 100])
def test_an_order_is_asked_for_every_five_seconds_at_most(number: int, seed: int) -> None:
    """On average over its first minutes, whatever arrives meanwhile."""
    chance = random.Random(seed)
    orders = placed(number, 0.7, 0.0, seed)
    for order in orders:
        order.takes = chance.choice([3.0, 20.0, 45.0, 121.0, 300.0])
    wait_for(orders)
    slow = [order for order in orders if order.takes > 120]
    for order in slow:
        assert len([age for age in order.asked if age <= 120]) <= 120 / 5
        pauses = [late - early for early, late in zip(order.asked, order.asked[1:], strict=False)]
        assert max(pauses) <= 30


def test_the_status_is_asked_for_in_place_of_a_download_that_would_be_too_early(lab: Lab) -> None:
    lab.write_profile()
    lab.scm.approval = "manual"
    assert lab("run", "--wait", "0").exit_code == 5
    assert questions(lab) == ["download", "status"]
    asked, connected = len(questions(lab)), lab.appliance.server.connections
    assert lab("run", "--wait", "1").exit_code == 5
    assert questions(lab)[asked:] == ["download", "download", "status"]
    assert lab.appliance.server.connections == connected + 1  # the logout needs none of its own


def questions(lab: Lab) -> list[str]:
    calls = [call for call in lab.scm.server.calls() if call.startswith("GET")]
    return ["status" if call.endswith("/status") else "download" for call in calls]
