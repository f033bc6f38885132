"""Addresses: what is accepted reaches the host that was checked, whoever takes it apart."""

from __future__ import annotations

import ipaddress
import random
import urllib.parse
from collections.abc import Iterator

import pytest
import requests
import urllib3

import citrixagent as agent

# What parsers are known to disagree about, and what is right.
SCHEMES = [
    "https://",
    "http://",
    "HTTPS://",
    "https:/",
    "https:///",
    "https:\\\\",
    "ftp://",
    "//",
    "",
]
USERS = ["", "", "", "a@", "a:b@", "a@b@", "a%40b@", "a:b:c@", "@", "good.example\\@", "a/b@", "[@"]
HOSTS = [
    "good.example", "good.example", "evil.example", "GOOD.example", "good.example.",
    "good_.example",
    "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.0.0.1.",
    "[::1]", "[::ffff:127.0.0.1]", "[fe80::1%25eth0]", "[::1", "::1", "[]", "[good.example]", "",
    "good.example\\.evil.example", "good.example%2eevil.example", "good.example%00.evil.example",
    "evil.example#@good.example", "evil.example?@good.example", "evil.example/@good.example",
    "good.example;evil.example", "good.example,evil.example", "good.example&evil.example",
    "xn--mnchen-3ya.example", "münchen.example", "good。example", "\uff47ood.example",
    "\u212aood.example",
    "good\u00ad.example", "good\u200b.example", "good.example\uff0fevil.example", "ⅷ.example",
    "localhost", "good.example.0x1", "good.example.1", "-good.example", "good..example",
    "*.example",
]  # fmt: skip
PORTS = ["", "", "", ":443", ":80", ":8443", ":0443", ":", ":0", ":65536", ":99999999999", ":x",
         ":+1", ":1:2", ":²", ":443@evil.example", ":443\\@evil.example", ":-1"]  # fmt: skip
PATHS = ["", "/", "/a/b", "/a;b=c", "/..//evil.example", "//evil.example", "/\\evil.example",
         "\\evil.example", "/@evil.example", "/%2e%2e", "/ü", "/a b", "/[x]", "/a:b@c"]  # fmt: skip
ENDS = ["", "", "?", "?a=b", "?@evil.example", "#", "#@evil.example", "?a#b", "?\\", ";", "?a/b?c"]
MARKS = [*' \t\n\r\0\x0b\x1f\x7f\x85\xa0\u2028\\@/?#[]%:.<>"^`{|}', "", "%0d%0a", "\u3000"]


def addresses(number: int) -> Iterator[str]:
    """Return so many addresses, the same ones every time; every third has a mark somewhere."""
    choose = random.Random(1)
    for index in range(number):
        parts = [choose.choice(each) for each in (SCHEMES[:3] if index % 2 else SCHEMES, USERS)]
        text = "".join([*parts, *(choose.choice(each) for each in (HOSTS, PORTS, PATHS, ENDS))])
        if index % 3 == 0:
            place = choose.randint(0, len(text))
            text = text[:place] + choose.choice(MARKS) + text[place:]
        yield text


def normal(host: str | None) -> str:
    name = (host or "").strip("[]").lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def reached(text: str) -> set[tuple[str, int | None]]:
    """Return where three parsers would go: Python's, urllib3's, and what requests makes of it."""
    ports = {"https": 443, "http": 80}
    split, other = urllib.parse.urlsplit(text), urllib3.util.parse_url(text)
    prepared = urllib.parse.urlsplit(requests.Request("GET", text).prepare().url or "")
    return {
        (normal(split.hostname), split.port or ports.get(split.scheme)),
        (normal(other.host), other.port or ports.get(other.scheme or "")),
        (normal(prepared.hostname), prepared.port or ports.get(prepared.scheme)),
    }


def check(number: int) -> None:
    accepted = 0
    for text in addresses(number):
        try:
            url = agent.parse_url(text)
        except ValueError:
            continue
        accepted += 1
        assert reached(text) == reached(str(url)) == {(url.host, url.port)}, text
        assert agent.parse_url(str(url)) == url
    assert accepted > number / 50


def test_an_address_that_is_accepted_reaches_no_other_host() -> None:
    check(2000)


@pytest.mark.long
def test_many_addresses_that_are_accepted_reach_no_other_host() -> None:
    check(100_000)
