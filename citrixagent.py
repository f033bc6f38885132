#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["click>=8.1.6", "cryptography>=42", "PyYAML>=6.0", "requests>=2.31"]
# ///
"""Certificates from Sectigo Certificate Manager (SCM) on Citrix NetScaler, kept valid for good.

Reads scm.yaml and one YAML profile per certificate, compares them with what the appliances and SCM
say, decides, and does what is missing. The appliance creates every key; no key ever leaves it.

The file reads bottom-up: a name is defined before it is used.

1. Errors              what can go wrong, as the user and the JSON see it
2. Configuration       scm.yaml, appliances and profiles as frozen values
3. YAML                one document, and a typed reader of it that collects every problem
4. Keys                from documents to configuration: what each key may be
5. Certificates        CSRs, leaves and chains, compared with what was asked
6. Model               what is remembered of a profile, and how that changes
7. Decision            the one decision, made from what is asked, remembered and seen
                       (up to here: no network, no clock, no file, no process)
8. HTTP                one request, the rule for repeating it, TLS; signals; hiding secrets
9. NetScaler           the appliance: one method per NITRO call
10. Sectigo            SCM: token, order, download, status
11. Store              state/: records, what the last commands saw, lock, agreement
12. Files on disk      YAML files, what they refer to, and the programs that they name
13. Appliance as seen  what an appliance holds, read once and kept in step; what it presents
14. Ordering           a key and a CSR; an order and its certificate: what may cost money
15. Installing         upload, install, link, bind, verify: what touches what is served
16. Work               one profile: recall, observe, decide, advance, report
17. Passes             the profiles of an appliance, SCM asked beside them; all appliances
18. Report             lines, JSON, exit code
19. Status             what the last commands saw: levels, table, page, metrics, a monitor's line
20. Notification       who is told what: program, mail, ping, metrics file
21. Session            one command, from its options to its exit code
22. Discovery          profiles for the certificates that appliances already have
23. Checks             what a run would trip over
24. Setup              questions, tried at once, that end in files
25. Commands           options and commands; what list shows and revoke does
"""

from __future__ import annotations

import abc
import base64
import collections
import concurrent.futures
import contextlib
import contextvars
import copy
import dataclasses
import datetime as dt
import difflib
import email.message
import email.utils
import enum
import errno
import functools
import hashlib
import html
import importlib.util
import io
import ipaddress
import itertools
import json
import logging
import math
import operator
import os
import pathlib
import posixpath
import pwd
import queue
import re
import resource
import secrets
import select
import selectors
import shlex
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import typing
import unicodedata
import urllib.parse
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar

_IS_OLD = (_VERSION := sys.version_info) < (3, 10)  # needs Python 3.10


def _end(sentence: str) -> NoReturn:
    sys.stderr.write(f"citrixagent {sentence}\n")
    sys.exit(2)


def _is_safe(python: pathlib.Path, program: pathlib.Path) -> bool:
    """Tell whether an interpreter is one of people who are trusted here anyway."""
    trusted = {0, os.geteuid(), program.stat().st_uid}
    places = [python.lstat(), python.stat(), python.parent.stat(), python.parent.parent.stat()]
    open_to_others = [
        each.st_mode & stat.S_IWOTH for each in places if not stat.S_ISLNK(each.st_mode)
    ]
    return all(each.st_uid in trusted for each in places) and not any(open_to_others)


def _find_packages() -> None:
    """Go on with the Python of the venv beside the program where this one will not do.

    Whatever it is started with, it ends with a sentence that says what to do, never a traceback.
    """
    program = pathlib.Path(__file__).resolve()
    venv, needs = program.parent / "venv", program.parent / "requirements.txt"
    python = venv / "bin" / "python"
    if importlib.util.find_spec("fcntl") is None:
        _end("needs Linux or another Unix: this system has no fcntl")
    packages = ("click", "cryptography", "requests", "yaml")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    came_from_there = os.environ.pop("_CITRIXAGENT_STARTED", "") or sys.executable == str(python)
    if not (missing or _IS_OLD):
        return
    with contextlib.suppress(OSError):
        if not came_from_there and _is_safe(python, program):
            os.environ["_CITRIXAGENT_STARTED"] = "yes"
            os.execv(python, [str(python), str(program), *sys.argv[1:]])  # noqa: S606
    if _IS_OLD:
        found = ".".join(map(str, _VERSION[:3]))
        _end(f"needs Python 3.10 or newer, and {sys.executable} is {found}: start it with another")
    make = f"{shlex.quote(str(venv / 'bin' / 'pip'))} install -r {shlex.quote(str(needs))}"
    if not python.exists():
        make = f"python3 -m venv {shlex.quote(str(venv))} && {make}"
    elif not came_from_there:
        make = (
            f"see to it that nobody but root and the program's owner can write to {venv}, or {make}"
        )
    _end(f"lacks Python packages ({', '.join(missing)}): {make}")


if __name__ == "__main__":
    _find_packages()

import fcntl  # noqa: E402 - not on every system

import click  # noqa: E402 - not in every Python

if TYPE_CHECKING:
    import smtplib

    import urllib3
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

__version__ = "1.0.0"

log = logging.getLogger("citrixagent")
log.addHandler(logging.NullHandler())  # else Python prints what nobody listens to

Document = dict[str, Any]
"""A YAML or JSON mapping."""
T = TypeVar("T")

# ----- 1. Errors ------------------------------------------------------------------------------

Kind = Literal[
    "config",
    "agreement",
    "locked",
    "auth",
    "permission",
    "untrusted",
    "unreachable",
    "unavailable",
    "appliance",
    "standby",
    "rejected",
    "dcv",
    "declined",
    "unknown_outcome",
    "mismatch",
    "verify",
    "state",
]


class ExitCode(enum.IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    LOCKED = 4
    PENDING = 5
    AGREEMENT = 6
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


_EXIT_CODES: Mapping[str, ExitCode] = {
    "config": ExitCode.CONFIG,
    "locked": ExitCode.LOCKED,
    "agreement": ExitCode.AGREEMENT,
}


class AgentError(click.ClickException):
    """A problem that is expected: shown as one message that names the remedy, never a traceback."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        vars(self)["exit_code"] = _EXIT_CODES.get(kind, ExitCode.FAILED)

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=True)


class TransportError(AgentError):
    """No usable answer came.

    ``sent``: whether the server may have carried the request out; ``again``: whether it may help to
    try at once.
    """

    def __init__(self, kind: Kind, message: str, *, sent: bool, again: bool = True) -> None:
        super().__init__(kind, message)
        self.sent = sent
        self.again = again


class NitroError(AgentError):
    """The appliance refused a call; ``code`` is NITRO's errorcode (0 where there was none)."""

    def __init__(self, kind: Kind, message: str, *, code: int, detail: str, status: int) -> None:
        super().__init__(kind, message)
        self.code = code
        self.detail = detail
        self.status = status


class ScmError(AgentError):
    """SCM refused a request; ``code`` is the one in its answer, ``status`` the HTTP status."""

    def __init__(self, kind: Kind, message: str, *, code: int | None, status: int) -> None:
        super().__init__(kind, message)
        self.code = code
        self.status = status


class Interrupted(BaseException):
    """SIGINT or SIGTERM came: leave at the next safe point."""


# ----- 2. Configuration -----------------------------------------------------------------------

LOGIN_URL = "https://auth.sso.sectigo.com/auth/realms/apiclients/protocol/openid-connect/token"
KEY_TYPES = ("RSA-2048", "RSA-3072", "RSA-4096", "ECDSA-P256", "ECDSA-P384")
VIRTUAL_SERVER_KINDS = ("load_balancing", "gateway", "content_switching", "authentication")
SSL_DIRECTORY = "/nsconfig/ssl"
_STAMP = "-20260101000000.key"  # what the name of every file of an order ends like
_PATH_LIMIT = 63
_CERTKEY_LIMIT = 31  # what every release takes; newer ones take 63
_COMMON_NAME_LIMIT = 64  # X.520, ub-common-name
# What the appliance itself is served by:
_BUILT_IN = re.compile(r"ns-.+-certificate", re.IGNORECASE)
_CERTKEY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_#. :@=-]*(?<! )")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^][:]+)(?::(.*))?")
_URL_SIGN = r"[A-Za-z0-9._~!$&'()*+,;=:%-]"
_URL = re.compile(  # of the authority no more than this: what parsers could take differently
    rf"(?P<scheme>https?)://(?:(?P<user>{_URL_SIGN}*)@)?"
    r"(?P<authority>\[[^][@/?#\\\s]*\](?::[^][@/?#\\\s:]*)?|[^][@/?#\\\s]+)"
    rf"(?P<path>(?:/{_URL_SIGN}*)*)(?:\?(?P<query>(?:{_URL_SIGN}|[/?])*))?(?P<fragment>#\S*)?",
    re.ASCII | re.IGNORECASE,
)
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
# Half characters as well, which no file can hold:
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_FINGERPRINT = re.compile(r"[0-9A-F]{64}")
_PERCENT = re.compile(r"([1-9][0-9]?)\s*%")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")


@dataclasses.dataclass(frozen=True)
class Secret:
    """A secret value that cannot be printed by accident."""

    value: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Tls:
    """How a server is verified: by a CA file, by its certificate's SHA-256, or not at all."""

    ca_bundle: str | None = None
    fingerprint: str | None = None
    verify: bool = True


@dataclasses.dataclass(frozen=True)
class ScmConfig:
    """The connection to SCM; a client id means OAuth, else a login is sent with every request."""

    api: str
    url: str
    client_id: str
    client_secret: Secret
    customer_uri: str
    login: str
    password: Secret
    org_id: int
    cert_type: int
    term: int
    token_url: str
    check_revocation: bool
    tls: Tls
    proxy: str | None
    timeout: int


def _ascii_form(name: str) -> str:
    """Return a name as registries and browsers write it (UTS 46); ValueError where it is none."""
    import idna

    start = "*." if name.startswith("*.") else ""
    try:
        return start + idna.encode(name.removeprefix("*."), uts46=True).decode()
    except UnicodeError:
        raise ValueError("is not a DNS name or IP address") from None


def check_name(text: str) -> str:
    """Return a DNS name (wildcards in the first label only) or IP address in its normal form."""
    if not text.isascii():
        raise ValueError(f"must be written in its ASCII form: {_ascii_form(text)}")
    name = text.lower().removesuffix(".")
    if "%" in name:
        raise ValueError("is not a DNS name or IP address")
    if ":" in name or name[-1:].isdigit():
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(name))
    labels = name.removeprefix("*.").split(".")
    if "/" in name or "://" in name:
        raise ValueError("must be a name alone, without a scheme or a path")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("is not a DNS name or IP address")
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):  # some take it for an IP address
        raise ValueError("is not a DNS name or IP address")
    return name


@functools.cache
def split_host_port(text: str, default_port: int | None) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port`` or ``[IPv6]:port``; ValueError otherwise."""
    if re.search(r"[/@?#\\\s]", text):
        raise ValueError("must be host or host:port, without a scheme or a path")
    if text.count(":") > 1 and not text.startswith("["):
        raise ValueError("must have an IPv6 address in brackets: [2001:db8::1]:443")
    match = _HOST_PORT.fullmatch(text)
    if not match:
        raise ValueError("must be host or host:port")
    port = str(default_port or "") if match[2] is None else match[2]
    if match[2] is None and not port:
        raise ValueError("must have a port: host:port")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("must have a port between 1 and 65535")
    host = check_name(match[1].strip("[]"))
    if host.startswith("*"):
        raise ValueError("is not a DNS name or IP address")
    return host, int(port)


def authority(host: str, port: int, default_port: int) -> str:
    """Return host and port as they stand in an address."""
    name = f"[{host}]" if ":" in host else host
    return name if port == default_port else f"{name}:{port}"


_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclasses.dataclass(frozen=True)
class Url:
    """An address that was taken apart and checked; as text it is made of these parts alone."""

    scheme: str
    user: str
    host: str
    port: int
    path: str
    query: str | None
    fragment: str | None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        query = "" if self.query is None else f"?{self.query}"
        place = authority(self.host, self.port, _DEFAULT_PORTS[self.scheme])
        return f"{self.scheme}://{user}{place}{self.path}{query}{self.fragment or ''}"

    @property
    def password(self) -> str:
        return self.user.partition(":")[2]


def parse_url(text: str, example: str = "https://cert-manager.example.com") -> Url:
    """Take an address apart; ValueError where two parsers could take it for two hosts.

    No address is used that did not go through here, and what is used is what was checked.
    """
    match = _URL.fullmatch(text)
    if not match:
        raise ValueError(f"must be an address such as {example}")
    scheme = match["scheme"].lower()
    host, port = split_host_port(match["authority"], _DEFAULT_PORTS[scheme])
    return Url(
        scheme, match["user"] or "", host, port, match["path"], match["query"], match["fragment"]
    )


@dataclasses.dataclass(frozen=True)
class Appliance:
    """How to reach an appliance: by one address, or by those of both nodes of an HA pair."""

    hosts: tuple[str, ...]
    username: str
    password: Secret
    tls: Tls
    timeout: int
    ssl_directory: str
    partition: str = ""
    notices: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @property
    def host(self) -> str:
        return self.hosts[0]

    @property
    def addresses(self) -> frozenset[tuple[str, int]]:
        """Where it is reached: the same for two spellings of one host."""
        return frozenset(split_host_port(host, 443) for host in self.hosts)

    def is_same_as(self, other: Appliance) -> bool:
        """Tell whether another one leads to the same place: an address is shared, and partition."""
        return self.partition == other.partition and bool(self.addresses & other.addresses)


NO_APPLIANCE = Appliance(("",), "", Secret(""), Tls(), 60, "")
"""Stands in where a file's appliance could not be read."""


@dataclasses.dataclass(frozen=True)
class VirtualServer:
    name: str
    kind: str
    connect: tuple[str, int] | None
    sni: bool = False


@dataclasses.dataclass(frozen=True)
class Subject:
    """The CSR's subject; empty texts are left out."""

    common_name: str
    organization: str
    state: str
    country: str
    organizational_unit: str = ""
    locality: str = ""
    email: str = ""


@dataclasses.dataclass(frozen=True)
class Window:
    """How long before its end a certificate is due: so many days, or a share of its lifetime.

    Without either it is a third, and ten days at least: nights are lost to approvals and outages.
    """

    days: int | None = None
    share: float | None = None

    def of(self, lifetime: dt.timedelta) -> tuple[dt.timedelta, bool]:
        """Return the window for a lifetime, and whether what was asked for had to be cut.

        Two thirds of the lifetime are the longest window: nothing is renewed every night.
        """
        longest = lifetime * 2 / 3
        if self.days is None and self.share is None:
            return min(max(lifetime / 3, dt.timedelta(days=10)), longest), False
        asked = dt.timedelta(days=self.days) if self.days else lifetime * (self.share or 0)
        return min(asked, longest), asked > longest


@dataclasses.dataclass(frozen=True)
class Enrollment:
    comments: str = ""
    external_requester: str = ""
    custom_fields: tuple[tuple[str, str], ...] = ()
    profile_id: int | None = None
    term: int | None = None
    max_wait: int = 600


@dataclasses.dataclass(frozen=True)
class Profile:
    """One certificate: what it should be, and where. ``names`` holds the common name as well."""

    name: str
    appliance: Appliance
    virtual_servers: tuple[VirtualServer, ...]
    certkey: str
    subject: Subject
    names: tuple[str, ...]
    key_type: str
    auto_renew: bool
    window: Window
    on_change: str
    enrollment: Enrollment
    handshake: str
    notices: tuple[str, ...] = ()

    @property
    def key_family(self) -> str:
        """RSA or ECDSA: a virtual server has a place for one certificate of each."""
        return self.key_type.partition("-")[0]


@dataclasses.dataclass(frozen=True)
class Mail:
    """To whom notifications are mailed, and through which server."""

    to: tuple[str, ...]
    sender: str
    host: str
    port: int
    username: str
    password: Secret
    security: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """agent.yaml: what holds for all profiles. What is empty is off.

    ``problems``: what is wrong with channels, which are off for that.
    """

    max_orders: int = 100
    metrics_file: str = ""
    ping_url: Secret = Secret("")
    notify_when: str = "trouble"
    mail: Mail | None = None
    notify_command: tuple[str, ...] = ()
    after_change: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


# ----- 3. YAML --------------------------------------------------------------------------------


class Source(Protocol):
    """Where a YAML document came from, and how to get at what it refers to."""

    file: str
    notices: list[str]  # what is dangerous, but not wrong

    def open_to_others(self) -> bool:
        """Tell whether users other than the owner and the group can read the document."""
        ...

    def resolve(self, path: str) -> str:
        """Return a path, seen from the document's folder."""
        ...

    def resolve_bundle(self, path: str) -> str:
        """Return the path of a PEM file, seen from the document's folder; or ValueError."""
        ...

    def fetch(self, way: str, value: str) -> str:
        """Return a secret by ``file``, ``env`` or ``command``; or ValueError, without its text."""
        ...


@dataclasses.dataclass(frozen=True)
class _NotPlain:
    """A date, or a number in a notation (012, 0x1F, 1_000, 12:30) that readers take differently."""


Reader = Callable[[object], T]
"""Returns what a value of a document means; ValueError says what is wrong, never the value."""

_IN_QUOTES = "put this value in quotes: its first character means something else in YAML"
_YAML_PROBLEMS = {  # what would quote the value, or puzzle
    "found undefined alias": _IN_QUOTES,
    "expected alphabetic or numeric character, but found": _IN_QUOTES,
    "mapping values are not allowed here": (
        "a colon and a blank stand in a value: put it in quotes, or mend the indentation if a key "
        "begins here"
    ),
    "found character '\\t' that cannot start any token": "a tab: indent with blanks, or use quotes",
    "could not determine a constructor": _IN_QUOTES,
    "found undefined tag handle": _IN_QUOTES,
    "expected <block end>": "the indentation does not fit the lines above",
    "but found another document": "a second document begins here: only one is allowed",
}


def _construct_int(loader: Any, node: Any) -> int | _NotPlain:  # noqa: ANN401 - yaml's own types are private
    return int(node.value) if _DECIMAL.fullmatch(loader.construct_scalar(node)) else _NotPlain()


class _Mapping(dict[Any, Any]):
    """A YAML mapping; ``twice`` has the keys that stand in it again, and in which line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}  # where each key stands first
        self.twice: list[tuple[str, int]] = []


def _construct_map(loader: Any, node: Any) -> Iterator[_Mapping]:  # noqa: ANN401
    import yaml

    data = _Mapping()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # construct_mapping refuses it, with its place
        if key.value in data.lines and key.tag != "tag:yaml.org,2002:merge":
            data.twice.append((key.value, key.start_mark.line + 1))
        data.lines.setdefault(key.value, key.start_mark.line + 1)
    yield data
    data.update(loader.construct_mapping(node))


def _load_yaml(loader: Any) -> object:  # noqa: ANN401 - yaml's loaders share no type
    import yaml

    vars(loader)["yaml_constructors"] = {
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:int": _construct_int,
        "tag:yaml.org,2002:timestamp": lambda _loader, _node: _NotPlain(),
        "tag:yaml.org,2002:map": _construct_map,
    }
    return loader.get_single_data()


def parse_yaml(text: str) -> object:
    """Read one YAML document; ValueError says what is wrong and where, never the text itself.

    The fast reader is tried first; what it refuses is read again by the one whose words are known.
    """
    import yaml

    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with contextlib.suppress(Exception):
        return _load_yaml(fast(text))
    try:
        return _load_yaml(yaml.SafeLoader(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "not YAML"
        clearer = (text for start, text in _YAML_PROBLEMS.items() if problem.startswith(start))
        raise ValueError(f"{place}{next(clearer, problem)}") from None
    except yaml.YAMLError:
        raise ValueError("holds characters that YAML does not allow") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("holds a value that cannot be read") from None


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f': did you mean "{near[0]}"?' if near else ""


class PlacesError(ValueError):
    """What is wrong at several places below one key."""

    def __init__(self, places: Mapping[str, str]) -> None:
        super().__init__("; ".join(places.values()))
        self.places = places


def _read_text(value: object, check: Callable[[str], str], limit: int) -> str:
    if isinstance(value, (list, dict)):
        raise ValueError("must be text, not a list or a mapping")  # noqa: TRY004 - told as a problem
    if not isinstance(value, str):
        raise ValueError("must be text: put it in quotes")  # noqa: TRY004
    if not value.strip():
        raise ValueError("must not be empty")
    if _CONTROL.search(value):
        raise ValueError("must not hold control characters or line breaks")
    if len(value) > limit:
        raise ValueError(f"must not be longer than {limit} characters")
    return check(value)


def as_text(check: Callable[[str], str] = str, limit: int = 1024) -> Reader[str]:
    """Return a reader of texts; ``check`` returns the normal form of one, or raises ValueError."""
    return functools.partial(_read_text, check=check, limit=limit)


def _read_list(value: object, read_item: Reader[T]) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list")  # noqa: TRY004
    found, wrong = list[T](), dict[str, str]()
    for index, item in enumerate(value):
        try:
            found.append(read_item(item))
        except ValueError as error:
            wrong[f"[{index}]"] = str(error)
    if wrong:
        raise PlacesError(wrong)
    return tuple(found)


def as_list(read_item: Reader[T]) -> Reader[tuple[T, ...]]:
    """Return a reader of lists that tells what is wrong with every item."""
    return functools.partial(_read_list, read_item=read_item)


def _read_choice(value: object, choices: Sequence[str]) -> str:
    if value is False and "off" in choices:
        return "off"  # YAML 1.1 reads a bare off as false
    if not isinstance(value, str) or value not in choices:
        hint = _did_you_mean(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"must be one of {', '.join(choices)}{hint}")
    return value


def as_choice(*choices: str) -> Reader[str]:
    return functools.partial(_read_choice, choices=choices)


def as_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004
    return value


def _read_number(value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number in plain decimal notation")  # noqa: TRY004
    if not least <= value <= most:
        raise ValueError(f"must be between {least} and {most}")
    return value


def as_number(least: int = 1, most: int = 2**31 - 1) -> Reader[int]:
    return functools.partial(_read_number, least=least, most=most)


def as_window(value: object) -> Window:
    if isinstance(value, str) and (percent := _PERCENT.fullmatch(value.strip())):
        return Window(share=int(percent[1]) / 100)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 3650:
        return Window(days=value)
    raise ValueError("must be a number of days (1 to 3650) or a share such as 33%")


def _read_entries(value: object) -> list[object]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list with at least one entry")
    return value


def as_command(value: object) -> tuple[str, ...]:
    """Read a command: the words into which a shell would split it."""
    text = as_text(limit=4096)(value)
    try:
        words = tuple(shlex.split(text))
    except ValueError:
        raise ValueError("is not a command: check its quotes") from None
    if not words:
        raise ValueError("must not be empty")
    return words


def secret_keys(name: str) -> tuple[str, str, str, str]:
    """Return the four ways to give a secret; exactly one of them is used."""
    return name, f"{name}_file", f"{name}_env", f"{name}_command"


def exposed_text(source: Source) -> str:
    return f"others can read this file, which holds a secret: chmod 600 {shlex.quote(source.file)}"


class Section:
    """One mapping of a document: returns values, collects problems, never echoes a value.

    Every key that is asked for counts as known; ``close`` reports the others. A value that is
    wrong is reported and stands as its default, so that one pass finds every problem. What is not
    given here is taken from the section ``below``, and what is wrong with it is told of that place.
    """

    def __init__(
        self,
        data: object,
        source: Source,
        problems: list[str],
        path: str = "",
        *,
        form: str = "must be a mapping of keys to values",
        below: Section | None = None,
    ) -> None:
        self.source = source
        self.known: list[str] = []
        self.wrong: set[str] = set()  # the keys whose values could not be read
        self._problems = problems
        self._path = path
        self._below = below
        self._data: dict[Any, Any] = data if isinstance(data, dict) else {}
        if data is None:
            self.problem("", "is empty" if not path else "is missing")
        elif not isinstance(data, dict):
            self.problem("", form)
        if not isinstance(data, dict):
            self._problems = []  # what is missing below it goes without saying
        for key, line in data.twice if isinstance(data, _Mapping) else ():
            self._tell_key(key, f"stands twice, again in line {line}")

    def problem(self, key: str, text: str) -> None:
        place = ".".join(part for part in (self._path, _CONTROL.sub("?", key)) if part)
        where = f"{self.source.file}: {place}" if place else self.source.file
        self._problems.append(f"{where}: {text}")

    def _tell_key(self, key: str, text: str) -> None:
        """Report a key, but by its line where it may hold a value, a secret for one."""
        if self._data.get(key) is not None and not re.search(r"[\s:=]", key):
            self.problem(key, text)
            return
        line = self._data.lines.get(key) if isinstance(self._data, _Mapping) else None
        hidden = "not shown, for it may hold a value: is a blank missing behind its colon?"
        self.problem(f"<line {line or '?'}>", f"{text}; {hidden}")

    def giver(self, key: str) -> Section:
        """Return the section whose value counts: this one, or the one below it."""
        if self._data.get(key) is None and self._below and self._below.given(key):
            return self._below
        return self

    def value(self, key: str) -> object:
        self.known.append(key)
        return self.giver(key)._data.get(key)  # noqa: SLF001 - one of its own kind

    def given(self, key: str) -> bool:
        return self.giver(key)._data.get(key) is not None  # noqa: SLF001

    def names(self) -> list[str]:
        """Return the keys that are given, here or below; all of them count as known."""
        below = self._below.names() if self._below else []
        self.known += [key for key in self._data if ":" not in str(key)]  # else a blank is missing
        own = [key for key in self._data if isinstance(key, str) and self.given(key)]
        return list(dict.fromkeys([*below, *own]))

    def apart(self, problems: list[str]) -> Section:
        """Return this section, telling what is wrong with it from now on elsewhere."""
        other = copy.copy(self)
        other._problems = problems  # noqa: SLF001
        return other

    def close(self) -> None:
        """Report the keys that nothing asked for."""
        for key in self._data:
            if not isinstance(key, str):
                self.problem("", "a key is not text: put it in quotes")
            elif key not in self.known:
                self._tell_key(key, f"unknown key{_did_you_mean(key, self.known)}")

    def get(self, key: str, read: Reader[T], default: T, *, required: bool = False) -> T:
        """Return what ``read`` makes of a value; the default where it is missing or wrong."""
        value, giver = self.value(key), self.giver(key)
        if value is None:
            if required:
                self.problem(key, "is missing")
            return default
        try:
            return read(value)
        except PlacesError as error:
            for place, text in error.places.items():
                giver.problem(f"{key}{place}", text)
        except ValueError as error:
            giver.problem(key, str(error))
        self.wrong.add(key)
        return default

    def forbid(self, keys: Iterable[str], text: str) -> None:
        for key in keys:
            self.known.append(key)
            if self.given(key):
                self.problem(key, text)

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        """Return a mapping of names to texts."""
        fields = self.section(key, form="must be a mapping of names to texts")
        found = []
        for name in fields.names():
            try:
                as_text(limit=256)(name)
            except ValueError as error:
                fields.problem(name, str(error))
            found.append((name, fields.get(name, as_text(limit=4096), "")))
        fields.close()
        return tuple(found)

    def secret(self, key: str) -> Secret:
        """Return a secret, given in one of its four ways."""
        ways = dict(zip(secret_keys(key), ("inline", "file", "env", "command"), strict=True))
        self.known.extend(ways)
        given = [name for name in ways if self.given(name)]
        if len(given) != 1:
            rule = f"give exactly one of {', '.join(ways)}"
            self.problem(
                key, f"is given more than once: {rule}" if given else f"is missing: {rule}"
            )
            return Secret("")
        fetch = functools.partial(self._fetch, ways[given[0]])
        return Secret(self.get(given[0], as_text(fetch, 4096), ""))

    def _fetch(self, way: str, value: str) -> str:
        if way != "inline":
            value = self.source.fetch(way, value)
        elif self.source.open_to_others():
            raise ValueError(exposed_text(self.source))
        if not value.strip():
            raise ValueError("gives an empty secret")
        if _CONTROL.search(value):
            raise ValueError("gives a secret with control characters or line breaks")
        return value

    def _path_to(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def section(
        self,
        key: str,
        *,
        required: bool = False,
        alone: bool = False,
        form: str = "must be a mapping of keys to values",
    ) -> Section:
        """Return the reader of a mapping; unless ``alone``, the one below gives what it lacks."""
        self.known.append(key)
        value, below = self._data.get(key), None
        if self._below and self._below.given(key) and not alone:
            below = self._below.section(key, form=form)
        if value is None and (below or not required):
            value = {}
        return Section(
            value, self.source, self._problems, self._path_to(key), form=form, below=below
        )

    def sections(self, key: str) -> list[Section]:
        """Return the readers of a list of mappings, which must hold at least one."""
        items = self.get(key, _read_entries, list[object](), required=True)
        return [
            Section(item, self.source, self._problems, f"{self._path_to(key)}[{index}]")
            for index, item in enumerate(items)
        ]


# ----- 4. Keys --------------------------------------------------------------------------------


def _with_hash(start: str, name: str) -> str:
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shorten(name: str, limit: int = _CERTKEY_LIMIT) -> str:
    """Return a name of at most ``limit`` characters, made unique by a hash where it was cut."""
    return name if len(name) <= limit else _with_hash(name[: limit - 9], name)


def file_base(certkey: str, limit: int) -> str:
    """Return the first part of the names of a certkey's files, one of its own for every certkey."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", certkey)
    return shorten(certkey, limit) if safe == certkey else _with_hash(safe[: limit - 9], certkey)


def base_limit(directory: str) -> int:
    """Return how long the first part of a file's name in an SSL directory may be.

    The appliance takes at most 63 characters for a file in a command, path included.
    """
    if directory == SSL_DIRECTORY:
        return _CERTKEY_LIMIT
    return min(_CERTKEY_LIMIT, _PATH_LIMIT - len(f"{directory}/{_STAMP}"))


def file_stem(certkey: str, directory: str, now: dt.datetime) -> str:
    """Return the name, without its ending, of the files of an order that begins now."""
    return f"{file_base(certkey, base_limit(directory))}-{now:%Y%m%d%H%M%S}"


def key_file_time(name: str, certkey: str, directory: str) -> str:
    """Return when an order of a certkey began that has this key file; empty for any other file."""
    base = re.escape(file_base(certkey, base_limit(directory)))
    found = re.fullmatch(base + r"-(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)\.key", name)
    return "{}-{}-{}T{}:{}:{}Z".format(*found.groups()) if found else ""


def _check_common_name(text: str) -> str:
    if len(text) > _COMMON_NAME_LIMIT:
        raise ValueError(f"must not be longer than {_COMMON_NAME_LIMIT} characters")
    return check_name(text)


def _check_host(text: str) -> str:
    split_host_port(text, 443)
    return text


def _check_connect(text: str) -> str:
    split_host_port(text, None)
    return text


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _check_address(text: str) -> Url:
    url = parse_url(text)
    if url.user:
        raise ValueError("must not hold a user name or password")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise ValueError("must start with https://")
    return url


def _check_url(text: str) -> str:
    url = _check_address(text)
    if url.query is not None or url.fragment is not None:
        raise ValueError("must not hold a query or a fragment")
    return str(url).rstrip("/")


def _check_ping(text: str) -> str:
    url = _check_address(text)
    if url.fragment is not None:
        raise ValueError("must not hold a fragment")
    return str(url)


def _check_own(text: str) -> str:
    if re.search(r"\byour-(customer-uri|client-id|login)\b", text):
        raise ValueError("is still that of the sample: give your own")
    return text


def _check_scm_url(text: str) -> str:
    _check_own(text)
    url = _check_url(text)
    for ending in ("/certificates", "/v1", "/api"):
        url = url.removesuffix(ending)
    return url.rstrip("/")


def _check_certkey(text: str) -> str:
    if len(text) > 63:
        raise ValueError("must not be longer than 63 characters")
    if not _CERTKEY_NAME.fullmatch(text):
        raise ValueError(
            "must begin with a letter, digit or _ and hold only letters, digits and _ # . : @ = - "
            "or spaces"
        )
    if _BUILT_IN.fullmatch(text):
        raise ValueError("names a certkey of the appliance's own: choose another name")
    return text


def _check_country(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2}", text):
        raise ValueError("must be a country code of two letters, such as GB")
    return text.upper()


def _check_email(text: str) -> str:
    if not _EMAIL.fullmatch(text):
        raise ValueError("must be an e-mail address")
    return text


def _check_fingerprint(text: str) -> str:
    # As openssl prints it, too.
    line = re.sub(r"^\s*sha256 fingerprint\s*=", "", text, flags=re.IGNORECASE)
    digits = line.replace(":", "").replace(" ", "").upper()
    if not _FINGERPRINT.fullmatch(digits):
        raise ValueError("must be a SHA-256 fingerprint: 64 hex digits, colons allowed")
    return digits


def _check_directory(text: str) -> str:
    directory = text.rstrip("/")
    if not directory.startswith("/") or ".." in text.split("/") or "," in text:
        raise ValueError("must be an absolute path on the appliance")
    if base_limit(directory) < 10:
        raise ValueError("is too long: the appliance takes paths of at most 63 characters")
    return directory


def _check_proxy(text: str) -> str:
    return str(parse_url(text, "http://proxy.example.com:3128"))


_ADMIN_KEYS = ("org_id", "cert_type", "term")
_LOGIN_KEYS = ("customer_uri", "login", *secret_keys("password"))
_OAUTH_KEYS = ("client_id", *secret_keys("client_secret"))


def _parse_proxy(section: Section) -> str | None:
    proxy = section.get("proxy", as_text(_check_proxy), None)
    if proxy and parse_url(proxy).password and section.source.open_to_others():
        section.problem("proxy", exposed_text(section.source))
    return proxy


def parse_scm(document: object, source: Source, problems: list[str]) -> ScmConfig:
    """Read scm.yaml; what is wrong is added to ``problems``."""
    section = Section(document, source, problems)
    api = section.get("api", as_choice("enrollment", "admin"), "enrollment")
    is_admin = api == "admin"
    by_login = is_admin and any(map(section.given, _LOGIN_KEYS))
    if not is_admin:
        section.forbid((*_LOGIN_KEYS, *_ADMIN_KEYS), "belongs to api: admin")
    if by_login:
        section.forbid(_OAUTH_KEYS, "is given beside a login: give either of them")
    config = ScmConfig(
        api=api,
        url=section.get("url", as_text(_check_scm_url), "", required=True),
        client_id=""
        if by_login
        else section.get("client_id", as_text(_check_own), "", required=True),
        client_secret=Secret("") if by_login else section.secret("client_secret"),
        customer_uri=section.get("customer_uri", as_text(_check_own), "", required=True)
        if by_login
        else "",
        login=section.get("login", as_text(_check_own), "", required=True) if by_login else "",
        password=section.secret("password") if by_login else Secret(""),
        org_id=section.get("org_id", as_number(), 0, required=True) if is_admin else 0,
        cert_type=section.get("cert_type", as_number(), 0, required=True) if is_admin else 0,
        term=section.get("term", as_number(), 0, required=True) if is_admin else 0,
        token_url=section.get("token_url", as_text(_check_url), LOGIN_URL),
        check_revocation=section.get("check_revocation", as_flag, default=True),
        tls=Tls(ca_bundle=section.get("ca_bundle", as_text(section.source.resolve_bundle), None)),
        proxy=_parse_proxy(section),
        timeout=section.get("timeout", as_number(1, 3600), 30),
    )
    section.close()
    return config


def _parse_tls(section: Section) -> Tls:
    verify = section.get("verify", as_flag, default=True)
    tls = Tls(
        ca_bundle=section.get("ca_bundle", as_text(section.source.resolve_bundle), None),
        fingerprint=section.get("fingerprint", as_text(_check_fingerprint), None),
        verify=verify,
    )
    given = [key for key in ("ca_bundle", "fingerprint") if section.given(key)]
    given += [] if verify else ["verify: false"]
    if len(given) > 1:
        section.problem("", f"give at most one of {', '.join(given)}")
    return tls


def parse_appliance(section: Section) -> Appliance:
    """Read a ``citrix:`` block."""
    if isinstance(section.value("host"), list):
        hosts = section.get("host", as_list(as_text(_check_host, 253)), tuple[str, ...]())
        if len(set(hosts)) != 2:
            section.problem("host", "must be one address, or a list of both nodes of an HA pair")
    else:
        hosts = (section.get("host", as_text(_check_host), "", required=True),)
    partition = section.get("partition", as_text(limit=31), "")
    if partition and not section.given("ssl_directory"):
        text = "is missing: with citrix.partition it must be given, no default is right everywhere"
        section.problem("ssl_directory", text)
    appliance = Appliance(
        hosts=hosts or ("",),
        username=section.get("username", as_text(limit=127), "", required=True),
        password=section.secret("password"),
        tls=_parse_tls(section),
        timeout=section.get("timeout", as_number(1, 3600), 60),
        ssl_directory=section.get("ssl_directory", as_text(_check_directory), SSL_DIRECTORY),
        partition=partition,
    )
    section.close()
    return dataclasses.replace(appliance, notices=tuple(section.source.notices))


def _notices(appliance: Appliance) -> tuple[str, ...]:
    if appliance.tls.verify:
        return appliance.notices
    return (
        *appliance.notices,
        f"citrix.verify is false: nothing proves that {appliance.host} is the appliance",
    )


def _parse_citrix(
    root: Section,
    appliance_named: Callable[[str, list[str]], Appliance],
    problems: list[str],
) -> Appliance:
    giver = root.giver("citrix")
    if giver is root and not isinstance(root.value("citrix"), str):
        return parse_appliance(root.section("citrix", required=True, alone=True))
    if not (name := root.get("citrix", as_text(), "")):
        return NO_APPLIANCE
    try:
        return appliance_named(name, problems)
    except ValueError as error:
        giver.problem("citrix", str(error))
        return NO_APPLIANCE


def _parse_virtual_servers(root: Section) -> tuple[VirtualServer, ...]:
    servers: list[VirtualServer] = []
    for section in root.sections("virtual_servers"):
        connect = section.get("connect", as_text(_check_connect), "")
        server = VirtualServer(
            name=section.get("name", as_text(limit=127), "", required=True),
            kind=section.get("type", as_choice(*VIRTUAL_SERVER_KINDS), "", required=True),
            connect=split_host_port(connect, None) if connect else None,
            sni=section.get("sni", as_flag, default=False),
        )
        if server.name and (server.name, server.sni) in [(each.name, each.sni) for each in servers]:
            section.problem("name", f'the virtual server "{server.name}" stands twice')
        # What cannot be read claims no place that another profile may have.
        servers.append(dataclasses.replace(server, name="") if section.wrong else server)
        section.close()
    return tuple(servers)


def _parse_certkey(certificate: Section, profile_name: str) -> str:
    if certificate.given("name"):
        return certificate.get("name", as_text(_check_certkey), "")
    certificate.value("name")
    default = shorten(profile_name)
    try:
        return _check_certkey(default)
    except ValueError:
        certificate.problem("name", "is missing, and the file's name cannot name a certkey")
        return default


def _parse_subject(certificate: Section, common_name: str) -> Subject:
    return Subject(
        common_name=common_name,
        organization=certificate.get("organization", as_text(limit=64), "", required=True),
        organizational_unit=certificate.get("organizational_unit", as_text(limit=64), ""),
        locality=certificate.get("locality", as_text(limit=128), ""),
        state=certificate.get("state", as_text(limit=128), "", required=True),
        country=certificate.get("country", as_text(_check_country), "", required=True),
        email=certificate.get("email", as_text(_check_email, 255), ""),
    )


def _parse_certificate(section: Section, name: str) -> tuple[str, Subject, tuple[str, ...], str]:
    """Return certkey, subject, all names and key type (empty where it is wrong)."""
    common_name = section.get("common_name", as_text(_check_common_name), "", required=True)
    others = section.get(
        "subject_alternative_names", as_list(as_text(check_name, 253)), tuple[str, ...]()
    )
    certkey = _parse_certkey(section, name)
    subject = _parse_subject(section, common_name)
    key_type = section.get("key_type", as_choice(*KEY_TYPES), "RSA-2048")
    section.close()
    names = tuple(dict.fromkeys((common_name, *others)))
    return certkey, subject, names, "" if "key_type" in section.wrong else key_type


def _parse_renewal(section: Section) -> tuple[bool, Window, str]:
    auto_renew = section.get("auto_renew", as_flag, default=True)
    window = section.get("expiry_window", as_window, Window())
    on_change = section.get("on_change", as_choice("replace", "enroll", "report"), "replace")
    section.close()
    return auto_renew, window, on_change


def _parse_enrollment(section: Section) -> Enrollment:
    enrollment = Enrollment(
        comments=section.get("comments", as_text(), ""),
        external_requester=section.get("external_requester", as_text(limit=512), ""),
        custom_fields=section.pairs("custom_fields"),
        profile_id=section.get("profile_id", as_number(), None),
        term=section.get("term", as_number(1, 3650), None),
        max_wait=section.get("max_wait", as_number(0, 86400), Enrollment.max_wait),
    )
    section.close()
    return enrollment


def _parse_verification(section: Section) -> str:
    handshake = section.get("handshake", as_choice("try", "required", "off"), "try")
    section.close()
    return handshake


def parse_profile(
    name: str,
    root: Section,
    appliance_named: Callable[[str, list[str]], Appliance],
    problems: list[str],
) -> Profile:
    """Read one certificate profile; what is wrong is added to ``problems``.

    ``appliance_named`` returns the appliance of a file in appliances/ and adds that file's
    problems; it raises ValueError where there is no such file.
    """
    appliance = _parse_citrix(root, appliance_named, problems)
    servers = _parse_virtual_servers(root)
    certkey, subject, names, key_type = _parse_certificate(
        root.section("certificate", required=True), name
    )
    auto_renew, window, on_change = _parse_renewal(root.section("renewal"))
    profile = Profile(
        name=name,
        appliance=appliance,
        virtual_servers=servers,
        certkey=certkey,
        subject=subject,
        names=names,
        key_type=key_type,
        auto_renew=auto_renew,
        window=window,
        on_change=on_change,
        enrollment=_parse_enrollment(root.section("enrollment")),
        handshake=_parse_verification(root.section("verification")),
        notices=_notices(appliance),
    )
    root.close()
    return profile


_NO_DEFAULTS = ("name", "common_name", "subject_alternative_names")


_DEFAULT_BLOCKS: Mapping[str, Callable[[Section], object]] = {
    "certificate": lambda section: _parse_certificate(section, ""),
    "renewal": _parse_renewal,
    "enrollment": _parse_enrollment,
    "verification": _parse_verification,
}


def _known_keys(parse: Callable[[Section], object], source: Source) -> list[str]:
    section = Section({}, source, [])
    parse(section)
    return section.known


def _check_defaults(defaults: Section) -> None:
    """Report the keys that no profile takes; what is wrong with values is told of the profiles."""
    for key, parse in _DEFAULT_BLOCKS.items():
        if isinstance(defaults.value(key), dict):
            block = defaults.section(key)
            block.known = _known_keys(parse, defaults.source)
            if key == "certificate":
                block.forbid(_NO_DEFAULTS, "has no default: give it in the profile")
            block.close()
    defaults.known += ["citrix"]
    defaults.forbid(["virtual_servers"], "has no default: give it in the profile")
    defaults.close()


def check_values(
    defaults: Section, appliance_named: Callable[[str, list[str]], Appliance]
) -> list[str]:
    """Return what is wrong with the values of defaults, whether or not a profile takes them."""
    found: list[str] = []
    if defaults.given("citrix"):
        below = defaults.apart(found)
        _parse_citrix(Section({}, defaults.source, found, below=below), appliance_named, found)
    for key, parse in _DEFAULT_BLOCKS.items():
        if isinstance(defaults.value(key), dict):
            missing: list[str] = []
            parse(Section({}, defaults.source, missing, f"defaults.{key}"))
            block: list[str] = []
            parse(defaults.section(key).apart(block))
            found += [text for text in block if text not in missing]
    return found


_MAIL_PORTS = {"starttls": 587, "tls": 465, "none": 25}


def _parse_mail(section: Section) -> Mail:
    security = section.get("security", as_choice(*_MAIL_PORTS), "starttls")
    recipients = section.get("to", as_list(as_text(_check_email, 255)), tuple[str, ...]())
    if not (recipients or "to" in section.wrong):
        section.problem("to", "must be a list with at least one address")
    sender = section.get("from", as_text(_check_email, 255), "", required=True)
    server = section.get("server", as_text(_check_host), "", required=True)
    username = section.get("username", as_text(), "")
    host, port = split_host_port(server, _MAIL_PORTS[security]) if server else ("", 0)
    if not username:
        section.forbid(secret_keys("password"), "needs username")
    elif security == "none" and not _is_loopback(host):
        section.problem(
            "security", "must not be none with a username: its password would be sent in clear text"
        )
    password = section.secret("password") if username else Secret("")
    section.close()
    return Mail(recipients, sender, host, port, username, password, security)


def _parse_notify(root: Section, problems: list[str]) -> tuple[str, Mail | None, tuple[str, ...]]:
    """Return when, mail and command; what is wrong with one of the last two is that one's alone."""
    own: list[str] = []
    notify = root.apart(own).section("notify")
    when = notify.get("when", as_choice("trouble", "change", "always"), "trouble")
    command = notify.apart(problems).get("command", as_command, tuple[str, ...]())
    wrong_mail: list[str] = []
    mail = None
    if notify.value("mail") is not None:
        mail = _parse_mail(notify.apart(wrong_mail).section("mail"))
    notify.close()
    problems += [*own, *wrong_mail]
    if own:
        return when, None, ()
    return when, None if wrong_mail else mail, command


def _parse_ping(root: Section, problems: list[str]) -> Secret:
    wrong: list[str] = []
    given = any(map(root.given, secret_keys("ping_url")))
    root.known += secret_keys("ping_url")
    url = root.apart(wrong).secret("ping_url").value if given else ""
    try:
        url = url and _check_ping(url)
    except ValueError:  # not told what is wrong: the address itself is the secret
        text = "must be an https:// address, without a user name or a fragment"
        root.apart(wrong).problem("ping_url", text)
    problems += wrong
    return Secret("" if wrong else url)


def parse_settings(document: object, source: Source, problems: list[str]) -> Settings:
    """Read agent.yaml; what must stop the program is added to ``problems``.

    What is wrong with a channel turns off that one: a night must not be lost for it.
    """
    root = Section(document, source, problems)
    off: list[str] = []
    if root.value("defaults") is not None:
        _check_defaults(root.section("defaults"))
    max_orders = root.get("max_orders", as_number(), Settings.max_orders)
    metrics_file = root.apart(off).get("metrics_file", as_text(source.resolve), "")
    ping_url = _parse_ping(root, off)
    when, mail, command = _parse_notify(root, off)
    after_change = root.apart(off).get("after_change", as_command, tuple[str, ...]())
    root.close()
    problems += [line for line in off if line.endswith(exposed_text(source))]
    return Settings(
        max_orders=max_orders,
        metrics_file=metrics_file,
        ping_url=ping_url,
        notify_when=when,
        mail=mail,
        notify_command=command,
        after_change=after_change,
        problems=tuple(off),
    )


@dataclasses.dataclass(frozen=True)
class _Claim:
    """What one profile alone may ask of an appliance: the key that does, and words for it."""

    thing: tuple[str, ...]
    key: str
    what: str
    others: str  # what the other profiles do with it, and the remedy; {} is where they are named


def _claims(profile: Profile) -> Iterator[_Claim]:
    if profile.certkey:
        what = f'the certkey "{profile.certkey}"'
        yield _Claim((profile.certkey,), "certificate.name", what, "is also that of {}")
    family = profile.key_family
    for index, server in enumerate(profile.virtual_servers if family else ()):
        key, what = f"virtual_servers[{index}]", f'the virtual server "{server.name}"'
        if server.name and not server.sni:
            others = (
                f"is also to have the {family} certificate of {{}}: it has room for one: leave "
            )
            others += "it out of all but one, or use sni: true"
            yield _Claim((server.name, family), key, what, others)
        for name in sorted(profile.names) if server.name and server.sni else ():
            others = (
                f"is also to have the {family} certificate for {name} of {{}}: it has room for "
            )
            others += "one: leave it, or the name, out of all but one"
            yield _Claim((server.name, family, name), key, what, others)


def _placed_claims(profile: Profile) -> Iterator[tuple[tuple[object, ...], str, _Claim]]:
    appliance = profile.appliance
    if appliance.host:  # else it is broken already
        for place, claim in itertools.product(appliance.addresses, _claims(profile)):
            yield (*place, appliance.partition, claim.thing), place[0], claim


def twins(profiles: Iterable[Profile]) -> dict[str, list[str]]:
    """Return, by profile, what is wrong where two ask for one certkey, or for one place to bind to.

    A virtual server has room for one default certificate of each kind of key, and for one SNI
    certificate of each for a name. Where the certkey is one, only that is told.
    """
    profiles = list(profiles)
    owners: dict[tuple[object, ...], dict[str, str]] = {}
    for profile in profiles:
        for where, _, _ in _placed_claims(profile):
            owners.setdefault(where, {})[profile.name] = profile.certkey
    found: dict[str, dict[str, str]] = {}
    for profile in profiles:
        for where, host, claim in _placed_claims(profile):
            others = {
                name
                for name, certkey in owners[where].items()
                if certkey != profile.certkey or claim.key == "certificate.name"
            }
            if others := others - {profile.name}:
                listed = claim.others.format(", ".join(sorted(others)))
                text = f"{claim.key}: {claim.what} on {host} {listed}"
                found.setdefault(profile.name, {}).setdefault(claim.key, text)
    return {name: list(texts.values()) for name, texts in found.items()}


# ----- 5. Certificates ------------------------------------------------------------------------

_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_MOST_ISSUERS = 6  # what is above a leaf in practice is one to three
_CURVES = {"secp256r1": "ECDSA-P256", "secp384r1": "ECDSA-P384"}
_SUBJECT_KEYS = {  # of a profile, by object identifier and by the appliance's word
    **dict.fromkeys(("2.5.4.10", "O"), "organization"),
    **dict.fromkeys(("2.5.4.11", "OU"), "organizational_unit"),
    **dict.fromkeys(("2.5.4.7", "L"), "locality"),
    **dict.fromkeys(("2.5.4.8", "ST", "S"), "state"),
    **dict.fromkeys(("2.5.4.6", "C"), "country"),
    **dict.fromkeys(("1.2.840.113549.1.9.1", "emailAddress"), "email"),
}
_SUBJECT_PART = re.compile(r"(?:^|[,/])\s*(?=(?:C|ST|S|L|O|OU|CN|emailAddress)\s*=)")


def _load(data: bytes) -> x509.Certificate:
    from cryptography import x509

    if block := _PEM_BLOCK.search(data):
        return x509.load_pem_x509_certificate(block[0])
    return x509.load_der_x509_certificate(data)


@contextlib.contextmanager
def _odd_is_unreadable() -> Iterator[None]:
    """Make a ValueError of whatever the library says of a certificate that is out of order.

    It has an exception of its own for every oddity, some come late (of a key, when that is asked
    for), and a certificate that somebody left on an appliance may have any of them.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the library's exceptions have no base of their own
        raise ValueError(f"cannot be read ({type(error).__name__})") from None


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A certificate that was read: what decisions and comparisons need of it.

    ``names`` holds DNS names and IP addresses in their normal form; ``serial`` is upper-case hex
    without leading zeros.
    """

    pem: str  # empty where only the appliance's words are known
    serial: str
    issuer: str
    common_name: str
    names: tuple[str, ...]
    key_type: str
    not_before: dt.datetime
    not_after: dt.datetime
    usages: tuple[str, ...] = ()  # extended key usages; none where they are not known

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of its DER form, in hex; ValueError where its PEM is not known."""
        from cryptography.hazmat.primitives import hashes

        return _load(self.pem.encode()).fingerprint(hashes.SHA256()).hex()


def normal_serial(text: str) -> str:
    """Return a serial number as upper-case hex without leading zeros, for comparing."""
    return text.upper().removeprefix("0X").replace(":", "").strip().lstrip("0") or "0"


def shown_serial(serial: str) -> str:
    """Return a serial number as whole bytes, the way appliances and browsers print it."""
    return serial.zfill(len(serial) + len(serial) % 2)


def key_type_of(key: PublicKeyTypes) -> str:
    """Return the name that a profile has for a key such as this one."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name, key.curve.name)
    return type(key).__name__


def _names_of(extensions: x509.Extensions) -> tuple[str, ...]:
    from cryptography import x509

    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    domains = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return (*domains, *(str(address) for address in names.get_values_for_type(x509.IPAddress)))


def _usages_of(extensions: x509.Extensions) -> tuple[str, ...]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    known = {
        ExtendedKeyUsageOID.SERVER_AUTH: "server authentication",
        ExtendedKeyUsageOID.CLIENT_AUTH: "client authentication",
    }
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(known.get(usage, usage.dotted_string) for usage in usages)


def _common_name_of(name: x509.Name) -> str:
    from cryptography.x509.oid import NameOID

    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else ""


def _describe(certificate: x509.Certificate) -> Certificate:
    from cryptography.hazmat.primitives import serialization

    return Certificate(
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        serial=normal_serial(f"{certificate.serial_number:X}"),
        issuer=certificate.issuer.rfc4514_string(),
        common_name=_common_name_of(certificate.subject),
        names=_names_of(certificate.extensions),
        key_type=key_type_of(certificate.public_key()),
        # not_valid_*_utc came with cryptography 42, which is the oldest that is asked for
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        usages=_usages_of(certificate.extensions),
    )


@functools.cache
def read_certificate(data: bytes) -> Certificate:
    """Read one certificate in PEM or DER; ValueError when it is none, or out of order."""
    with _odd_is_unreadable():
        return _describe(_load(data))


@functools.cache
def read_chain(pem: str) -> tuple[Certificate, ...]:
    """Read certificates in PEM, one after another; ValueError where there is none."""
    blocks = _PEM_BLOCK.findall(pem.encode())
    if not blocks:
        raise ValueError("no certificate")
    return tuple(map(read_certificate, blocks))


def subject_fields(certificate: Certificate, words: str) -> Document:
    """Return a subject under a profile's keys, of several values the first.

    ``words`` is the subject as the appliance tells it, for where the certificate is not at hand.
    """
    if certificate.pem:
        subject = _load(certificate.pem.encode()).subject
        pairs = [(part.oid.dotted_string, str(part.value)) for part in subject]
    else:
        parts = [part.partition("=") for part in _SUBJECT_PART.split(words)]
        pairs = [(key.strip(), value.strip()) for key, _, value in parts]
    known = [(_SUBJECT_KEYS[key], value) for key, value in pairs if key in _SUBJECT_KEYS]
    return dict(reversed(known))


def other_names(certificate: Certificate) -> int:
    """Return how many alternative names are neither DNS names nor IP addresses."""
    from cryptography import x509

    kinds = (x509.DNSName, x509.IPAddress)
    try:
        extensions = _load(certificate.pem.encode()).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return 0
    return sum(not isinstance(name, kinds) for name in names)


def covers(held: Iterable[str], wanted: Iterable[str]) -> bool:
    """Tell whether a certificate for the names ``held`` serves every name in ``wanted``."""
    names = set(held)
    return all(name in names or f"*.{name.partition('.')[2]}" in names for name in wanted)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _subject_wanted(subject: Subject) -> Mapping[str, str]:
    """Return, by object identifier, what the subject of a CSR is to hold."""
    from cryptography.x509.oid import NameOID

    wanted = {
        NameOID.COMMON_NAME: subject.common_name,
        NameOID.ORGANIZATION_NAME: subject.organization,
        NameOID.ORGANIZATIONAL_UNIT_NAME: subject.organizational_unit,
        NameOID.LOCALITY_NAME: subject.locality,
        NameOID.STATE_OR_PROVINCE_NAME: subject.state,
        NameOID.COUNTRY_NAME: subject.country,
        NameOID.EMAIL_ADDRESS: subject.email,
    }
    return {each.dotted_string: value for each, value in wanted.items() if value}


def _is_harmless(value: x509.ExtensionType) -> bool:
    """Tell whether an extension of a CSR asks for no more than a server's certificate.

    Whether a release puts such into its CSRs is not documented.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if isinstance(value, x509.BasicConstraints):
        return not value.ca
    if isinstance(value, x509.KeyUsage):
        return not (value.key_cert_sign or value.crl_sign)
    if isinstance(value, x509.ExtendedKeyUsage):
        return set(value) <= {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    return isinstance(value, x509.SubjectKeyIdentifier)


def _unasked(csr: x509.CertificateSigningRequest, subject: Subject) -> Iterator[str]:
    """Say what a CSR asks for, besides its names, that was not asked of the appliance."""
    from cryptography import x509

    wanted, found = _subject_wanted(subject), collections.defaultdict[str, list[str]](list)
    for attribute in csr.subject:
        found[attribute.oid.dotted_string].append(str(attribute.value))
    same = found.keys() == wanted.keys() and all(
        len(values) == 1 and values[0].lower() == wanted[oid].lower()
        for oid, values in found.items()
    )
    if not same:
        yield f"its subject is {csr.subject.rfc4514_string()}"
    for extension in csr.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            kinds = {type(name) for name in value} - {x509.DNSName, x509.IPAddress}
            yield from (f"it holds names of the kind {kind.__name__}" for kind in kinds)
        elif not _is_harmless(value):
            yield f"it asks for the extension {extension.oid.dotted_string}"


def check_csr(pem: bytes, profile: Profile) -> str:
    """Compare the CSR that the appliance made, whole, with the profile and return it in PEM.

    Raises AgentError (mismatch): what is ordered is what was asked, or nothing is.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        with _odd_is_unreadable():
            csr = x509.load_pem_x509_csr(pem)
            names, signed = set(_names_of(csr.extensions)), csr.is_signature_valid
            key_type, common_name = key_type_of(csr.public_key()), _common_name_of(csr.subject)
            unasked = list(_unasked(csr, profile.subject))
    except ValueError:
        raise AgentError("mismatch", "the CSR that the appliance made cannot be read") from None
    wrong = []
    if not signed:
        wrong.append("its signature is not valid")
    if key_type != profile.key_type:
        wrong.append(f"its key is {key_type}, not {profile.key_type}")
    if common_name.lower() != profile.subject.common_name:
        wrong.append(f"its common name is not {profile.subject.common_name}")
    if names != set(profile.names):
        wrong.append(f"its names are {_listed(names)}, not {_listed(profile.names)}")
    wrong += unasked
    if wrong:
        raise AgentError(
            "mismatch", f"the CSR that the appliance made is not what was asked: {'; '.join(wrong)}"
        )
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def _is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate may sign others."""
    from cryptography import x509

    with contextlib.suppress(x509.ExtensionNotFound):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        return constraints.value.ca
    return False


def _is_self_signed(certificate: x509.Certificate) -> bool:
    return certificate.issuer == certificate.subject


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        with _odd_is_unreadable():
            certificate.verify_directly_issued_by(issuer)
    except ValueError:
        return False
    return True


def _preference(way: Sequence[x509.Certificate]) -> tuple[dt.datetime, int]:
    """Return how good a way up is: until when it is valid, then how far up it is cross-signed."""
    ends = [each.not_valid_after_utc for each in way]
    crossed = sum(not _is_self_signed(each) for each in way)
    return min(ends, default=dt.datetime.max.replace(tzinfo=dt.timezone.utc)), crossed


def _identity(data: bytes) -> tuple[bytes, bytes]:
    """Return name and key of a certificate: what it has in common with its cross-signed twins."""
    from cryptography.hazmat.primitives import serialization

    try:
        found = _load(data)
        key = found.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return found.subject.public_bytes(), key
    except Exception as error:  # noqa: BLE001 - the library has many words for what it cannot read
        raise ValueError(str(error)) from None


_FORKS = 3  # issuers of one certificate that are followed: a root and its cross-signed twins


def _paths(
    current: x509.Certificate, pool: Sequence[x509.Certificate], passed: Sequence[x509.Certificate]
) -> Iterator[list[x509.Certificate]]:
    """Yield the ways up from a certificate, each as far as it leads."""
    above: list[x509.Certificate] = []
    if not _is_self_signed(current) and len(passed) <= _MOST_ISSUERS + 1:
        above = [each for each in pool if each not in passed and _signed(current, each)]
        above.sort(key=lambda each: each.not_valid_after_utc, reverse=True)
    if not above:
        yield []
    for issuer in above[:_FORKS]:
        for way in _paths(issuer, pool, (*passed, issuer)):
            yield [issuer, *way]


def _issuers(leaf: x509.Certificate, pool: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Return the intermediates above a leaf, nearest first.

    Of several ways up (to a root, and over its cross-signed twin to an older one) the one is taken
    that is valid longest where they differ, and none over a certificate that ends before the leaf
    if there is another. Of equals the cross-signed one: more clients know where it leads.
    """
    ways = list(_paths(leaf, pool, (leaf,)))
    end = leaf.not_valid_after_utc
    ways = [way for way in ways if all(c.not_valid_after_utc >= end for c in way)] or ways
    shared = [each for each in ways[0] if all(each in way for way in ways)]
    chain = max(ways, key=lambda way: _preference([each for each in way if each not in shared]))
    if not chain:
        raise AgentError(
            "mismatch",
            "SCM's answer does not hold the issuer of the certificate, or it does not fit",
        )
    return [certificate for certificate in chain if not _is_self_signed(certificate)]


def missing_of(chain: Sequence[Certificate], shown: Iterable[bytes]) -> list[str]:
    """Return the common names of the intermediates that are not presented, nor a twin of theirs."""
    there = set()
    for data in shown:
        with contextlib.suppress(ValueError):
            there.add(_identity(data))
    return [each.common_name for each in chain[1:] if _identity(each.pem.encode()) not in there]


def same_names(one: Certificate, other: Certificate) -> bool:
    """Tell whether two certificates are for the same names, with the same common name."""
    common = one.common_name.lower() == other.common_name.lower()
    return common and set(one.names) == set(other.names)


_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def iso(moment: dt.datetime) -> str:
    """Return a time as ISO 8601 in UTC, to the second."""
    return moment.astimezone(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_iso(text: str) -> dt.datetime:
    """Return the time that ``iso`` wrote; ValueError where it did not."""
    if not _ISO.fullmatch(text):
        raise ValueError("is not a time as this program writes it")
    return dt.datetime.fromisoformat(f"{text[:-1]}+00:00")  # ten times as fast as strptime


def _readable(answer: bytes) -> list[x509.Certificate]:
    """Return the certificates in an answer; what is out of order is left out."""
    found = []
    for block in _PEM_BLOCK.findall(answer):
        with contextlib.suppress(ValueError):
            read_certificate(block)
            found.append(_load(block))
    return found


def answers_csr(answer: bytes, csr_pem: str) -> bool:
    """Tell whether SCM's answer holds a certificate for a CSR's key."""
    from cryptography import x509

    wanted = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
    return any(certificate.public_key() == wanted for certificate in _readable(answer))


def check_issued(
    answer: bytes, csr_pem: str, names: Iterable[str], now: dt.datetime
) -> list[Certificate]:
    """Return leaf and intermediates of SCM's answer, leaf first, without the root.

    The leaf is the certificate for the CSR's key, wherever it stands; the chain is built by name
    and signature. Raises AgentError (mismatch) when leaf, names, dates or chain are wrong.
    """
    from cryptography import x509

    wanted = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
    pool = _readable(answer)
    leaves = [certificate for certificate in pool if certificate.public_key() == wanted]
    if not leaves and len(pool) < len(_PEM_BLOCK.findall(answer)):
        raise AgentError("mismatch", "SCM's answer holds a certificate that cannot be read")
    if not leaves:
        raise AgentError("mismatch", "SCM issued a certificate for another key than the CSR's")
    leaf = _describe(leaves[0])
    if _is_authority(leaves[0]):
        raise AgentError("mismatch", "the issued certificate is that of a certificate authority")
    if missing := set(names) - set(leaf.names):
        raise AgentError("mismatch", f"the issued certificate lacks the names {_listed(missing)}")
    if not leaf.not_before - dt.timedelta(days=1) <= now < leaf.not_after:
        raise AgentError(
            "mismatch",
            f"the issued certificate is valid from {iso(leaf.not_before)} to "
            f"{iso(leaf.not_after)}, not now",
        )
    issuers = _issuers(leaves[0], pool)
    if len(issuers) > _MOST_ISSUERS:
        raise AgentError(
            "mismatch", f"SCM's answer has more than {_MOST_ISSUERS} intermediates above the leaf"
        )
    return [leaf, *map(_describe, issuers)]


# ----- 6. Model -------------------------------------------------------------------------------

Action = Literal["enroll", "renew", "replace"]
"""What is asked of SCM."""
Command = Literal[
    "run",
    "enroll",
    "renew",
    "replace",
    "revoke",
    "rollback",
    "list",
    "check",
    "discover",
    "configure",
]
"""The commands that report what they did or saw."""
Outcome = Literal[
    "unchanged",
    "enrolled",
    "renewed",
    "replaced",
    "repaired",
    "revoked",
    "rolled_back",
    "pending",
    "planned",
    "failed",
]
"""What happened to a certificate; ``planned`` only in a dry run."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """A key and its certificate on the appliance; one that is not issued yet has no serial.

    The names are those that were ordered: a CA may add some.
    """

    key_file: str
    cert_file: str
    names: tuple[str, ...] = ()
    key_type: str = ""
    serial: str = ""
    pem: str = ""  # leaf and intermediates
    cert_id: str | None = None  # at SCM
    lifetime: int | None = None  # seconds, of what it replaced and whose end it has
    unwanted: tuple[str, ...] = ()  # names that it still holds, though they are ordered no more
    ours: bool = True  # made by this tool: its files may be deleted by this tool
    link: str = ""  # the issuer that the certkey was linked to, where the chain is not known
    form: str = "PEM"  # how its files are loaded: PEM, DER or PFX
    ordered_at: str | None = None  # where this tool did
    revoked: bool = False  # by the operator, while it was not in service any more
    not_after: str = ""  # where only the appliance's row is known of the certificate
    no_way_back: str = ""  # why it cannot be put back


@dataclasses.dataclass(frozen=True)
class Order:
    """What a change asks of SCM, and what SCM said."""

    action: Action
    wish: str  # digest of what the profile asked for
    csr_file: str
    before: str | None = None  # id at SCM of what is renewed or replaced
    note: str = ""  # what the operator gave as the reason, for SCM
    csr: str | None = None
    sent: str | None = None  # since then an order may exist at SCM
    refused: str | None = None  # SCM's words, after the order was placed
    failed: str | None = None  # why it could not be used, though it was placed
    key_lost: bool = False  # the key is not on the appliance that is primary now
    adopted: bool = False  # the operator named the id: whether it is this order shows its key


@dataclasses.dataclass(frozen=True)
class Change:
    """A certkey on its way from one generation to another, until that is installed and saved.

    A change without an order is a rollback: its new generation was there before.
    """

    outcome: Outcome
    reason: str
    started: str
    new: Generation
    old: Generation | None = None  # what the certkey held before
    order: Order | None = None
    take_over: bool = False  # the operator agreed to take what belongs to somebody else
    key_created: bool = False
    uploaded: bool = False

    @property
    def generations(self) -> tuple[Generation, ...]:
        return (self.new, self.old) if self.old else (self.new,)

    @property
    def made(self) -> tuple[str, ...]:
        """The files that were, or may have been, made for it."""
        files = (self.new.key_file, self.order.csr_file, self.new.cert_file) if self.order else ()
        return tuple(file for file in files if file)


@dataclasses.dataclass(frozen=True)
class Displaced:
    """A binding of somebody else that is ended, with the operator's consent, for one of ours."""

    virtual_server: str
    certkey: str
    sni: bool


@dataclasses.dataclass(frozen=True)
class Record:
    """What neither the appliance nor SCM can tell about a profile."""

    profile: str
    installed: Generation | None = None
    previous: Generation | None = None
    found: str | None = None  # PEM of a certificate that somebody else installed, as it was read
    change: Change | None = None
    finishing: Outcome | None = None  # of an installation whose last steps are not done
    unsaved: bool = False  # the appliance's configuration was changed and not saved yet
    unverified: bool = False  # what the virtual servers present was not compared yet
    rolled_back: bool = False  # the operator put the installed generation back
    revoked: str | None = None  # serial of a certificate that the operator revoked
    litter: tuple[str, ...] = ()  # files of ours without a use
    latest: str | None = None  # when its last order began: no key file of ours is newer
    ended: tuple[Displaced, ...] = ()  # until ours is bound instead, or they are bound again

    @property
    def generations(self) -> tuple[Generation, ...]:
        """What is installed, and what a rollback puts back."""
        return tuple(each for each in (self.installed, self.previous) if each)

    @property
    def ours(self) -> set[str]:
        """The serials of those that this tool ordered."""
        return {each.serial for each in self.generations if each.ours}

    @property
    def known(self) -> tuple[Generation, ...]:
        """Every generation that stands in it."""
        return (*self.generations, *(self.change.generations if self.change else ()))


def leaf_of(made: Generation) -> Certificate | None:
    """Return a generation's certificate: its PEM, or what the appliance's row told; else None."""
    if made.pem:
        return read_chain(made.pem)[0]
    if not made.not_after:
        return None
    end = parse_iso(made.not_after)
    name = made.names[0] if made.names else ""
    return Certificate("", made.serial, "", name, made.names, made.key_type, end, end)


def open_change(record: Record) -> Change:
    """Return the change that is open; there must be one."""
    if record.change is None:
        raise AssertionError("this step belongs to a change")
    return record.change


def ordered(change: Change) -> Order:
    """Return the order of a change; there must be one."""
    if change.order is None:
        raise AssertionError("this step belongs to an order")
    return change.order


def changing(record: Record, **values: Any) -> Record:  # noqa: ANN401 - fields of Change
    """Return a record whose open change has other values."""
    return dataclasses.replace(record, change=dataclasses.replace(open_change(record), **values))


def ordering(record: Record, **values: Any) -> Record:  # noqa: ANN401 - fields of Order
    """Return a record whose open order has other values."""
    order = ordered(open_change(record))
    return changing(record, order=dataclasses.replace(order, **values))


def give_up(record: Record, made: Iterable[str] | None = None) -> Record:
    """Forget the open change; its files (or those of them that were ``made``) have no use now."""
    if record.change is None:
        return record
    files = record.change.made if made is None else made
    return dataclasses.replace(record, change=None, litter=(*record.litter, *files))


def begin(record: Record, change: Change) -> Record:
    """Begin a change; one that was open is given up."""
    latest = change.started if change.order else record.latest
    return dataclasses.replace(give_up(record), change=change, latest=latest)


def place_order(record: Record, cert_id: str | None) -> Record:
    """Note under which id SCM has the open order; None where it turned out to have none."""
    changed = changing(record, new=dataclasses.replace(open_change(record).new, cert_id=cert_id))
    return changed if cert_id else ordering(changed, sent=None)


def adopt(record: Record, cert_id: str, sent: str) -> Record:
    """Note the id that the operator named for the open order, which SCM knows."""
    sent = ordered(open_change(record)).sent or sent
    return ordering(place_order(record, cert_id), sent=sent, refused=None, adopted=True)


def disown(record: Record) -> Record:
    """Take back an id that the operator named: what it stands for is another certificate."""
    new = dataclasses.replace(open_change(record).new, cert_id=None)
    return ordering(changing(record, new=new), adopted=False)


def lifetime_of(made: Generation | None, certificate: Certificate) -> int:
    """Return the lifetime that was ordered, in seconds: of a replacement, that of the first."""
    if made and made.lifetime and made.serial == certificate.serial:
        return made.lifetime
    return int((certificate.not_after - certificate.not_before).total_seconds())


def issue(record: Record, chain: Sequence[Certificate]) -> Record:
    """Keep what SCM issued: the leaf, and the intermediates above it.

    A replacement ends when what it replaces would have: it keeps the lifetime that was ordered.
    """
    change, before, leaf = open_change(record), record.installed, chain[0]
    is_replacement = ordered(change).action == "replace" and before is not None
    once = {*before.names, *before.unwanted} if before and before.ours else set()
    new = dataclasses.replace(
        change.new,
        serial=leaf.serial,
        pem="".join(certificate.pem for certificate in chain),
        lifetime=lifetime_of(before, read_chain(before.pem)[0])
        if before and is_replacement and before.pem
        else None,
        unwanted=tuple(sorted(once & set(leaf.names) - set(change.new.names))),
    )
    return changing(record, new=new)


def fail(record: Record, message: str, *, file_missing: bool, key_lost: bool) -> Record:
    """Note why an order that was placed cannot be used; a missing file is uploaded again."""
    uploaded = open_change(record).uploaded and not file_missing
    return ordering(changing(record, uploaded=uploaded), failed=message, key_lost=key_lost)


def promote(record: Record) -> Record:
    """Close the open change: what it replaced is what a rollback puts back.

    The files of generations that neither is nor can be put back are litter from now on.
    """
    change = open_change(record)
    previous = change.old or record.installed
    kept = {change.new.serial, previous.serial if previous else ""}
    dropped = [each for each in record.generations if each.ours and each.serial not in kept]
    files = [change.order.csr_file] if change.order else []
    files += [file for each in dropped for file in (each.key_file, each.cert_file)]
    sent = change.order.sent if change.order else change.new.ordered_at
    return dataclasses.replace(
        record,
        installed=dataclasses.replace(change.new, ordered_at=sent),
        previous=previous,
        found=None,
        change=None,
        finishing=change.outcome,
        rolled_back=change.order is None,
        litter=(*record.litter, *files),
    )


# ----- 7. Decision ----------------------------------------------------------------------------

LAPSE = dt.timedelta(days=7)
"""What is left when waiting for the operator ends: a certificate must not lapse over a question."""
_A_NIGHT, _A_DAY = dt.timedelta(hours=20), dt.timedelta(hours=24)


class Step(enum.Enum):
    """The one pipeline, in order; every plan is a suffix of it."""

    CREATE_KEY = "create_key"
    CREATE_CSR = "create_csr"
    ORDER = "order"
    COLLECT = "collect"
    UPLOAD = "upload"
    INSTALL = "install"
    LINK = "link"
    BIND = "bind"
    SAVE = "save"
    VERIFY = "verify"
    CLEAN_UP = "clean_up"


PIPELINE = tuple(Step)


@dataclasses.dataclass(frozen=True)
class Intent:
    """What the operator asked for."""

    command: Command = "run"
    force: bool = False  # of enroll
    take_over: bool = False  # also what belongs to somebody else
    cert_id: str | None = None
    reason: str = ""  # for SCM, of a replacement
    everything: bool = False  # renew or replace all, which may be repeated


@dataclasses.dataclass(frozen=True)
class Taken:
    """A place on a virtual server of the profile that belongs to the certkey of somebody else."""

    virtual_server: str
    certkey: str
    sni: bool = False
    names: tuple[str, ...] = ()  # that both are for, of an SNI certificate
    owner: str = ""  # the profile that manages that certkey
    beside: bool = False  # ours is bound there too: it is its successor that would not fit

    @property
    def text(self) -> str:
        what = f"the SNI certificate for {_listed(self.names)}, " if self.names else ""
        owner = f" of the profile {self.owner}" if self.owner else ""
        where = f'the virtual server "{self.virtual_server}" holds'
        return f'{where} {what}the certkey "{self.certkey}"{owner} already'


@dataclasses.dataclass(frozen=True)
class Observed:
    """What was found for one profile.

    ``certificate`` is what the certkey holds; ``elsewhere`` names the virtual servers that it is
    bound to and the profile does not name.
    """

    now: dt.datetime
    record: Record
    certificate: Certificate | None = None
    linked: bool = True
    unbound: tuple[str, ...] = ()
    taken: tuple[Taken, ...] = ()
    elsewhere: tuple[str, ...] = ()
    revoked: bool = False
    issued: Certificate | None = None  # for the open order, collected but not proved to be served
    previous: Certificate | None = None  # what a rollback would put back, where it is known


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be done, and why. Without a ``first`` step there is nothing to do.

    ``action`` is what is asked of SCM; ``resumes`` tells whether the open change is gone on with
    (one that is not is given up).
    """

    outcome: Outcome
    reason: str
    first: Step | None = None
    action: Action | None = None
    resumes: bool = False
    restores: Generation | None = None  # what a rollback puts back
    cert_id: str | None = None  # the operator's answer to an unknown outcome
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def steps(self, profile: Profile) -> tuple[Step, ...]:
        if self.first is None:
            return ()
        steps = PIPELINE[PIPELINE.index(self.first) :]
        return tuple(s for s in steps if s is not Step.VERIFY or profile.handshake != "off")


def _given(values: Subject | Enrollment) -> Document:
    """Return, by name, the values that are not at their default."""
    named = [(field, getattr(values, field.name)) for field in dataclasses.fields(values)]
    return {field.name: value for field, value in named if value != field.default}


def wish_of(profile: Profile) -> str:
    """Return a digest of all that an order is made of: it changes when the order would.

    A key with a default that a later release adds changes it for nobody who does not use that key:
    otherwise an upgrade would look like an edit, and orders that were declined be placed again.
    """
    enrollment = _given(dataclasses.replace(profile.enrollment, max_wait=Enrollment.max_wait))
    wish = {
        "host": profile.appliance.host,
        "subject": _given(profile.subject),
        "names": profile.names,
        "key_type": profile.key_type,
        "enrollment": enrollment,
    }
    return hashlib.sha256(json.dumps(wish, sort_keys=True).encode()).hexdigest()


def taken_text(name: str, taken: Sequence[Taken]) -> str:
    """Say what holds the places that a profile asks for, and the ways out."""
    unmanaged = "" if any(each.owner for each in taken) else "name it as certificate.name, "
    way = f"{unmanaged}unbind it, or run citrixagent.py run {shlex.quote(name)} --take-over"
    return f"{'; '.join(each.text for each in taken)}: {way}"


def unknown_outcome_text(name: str, change: Change) -> str:
    """Say what is unknown and what the operator can do about it."""
    return (
        f"the order sent at {ordered(change).sent} may or may not have been placed. Look for "
        f"{change.new.names[0]} in SCM: if it is there, run citrixagent.py enroll --cert-id ID "
        f"{shlex.quote(name)}; if it is not, run citrixagent.py enroll --force {shlex.quote(name)}"
    )


def _edited_text(profile: Profile, new: Generation) -> str:
    return (
        f"order {new.cert_id} is open for {_listed(new.names)} ({new.key_type}), but the "
        f"profile now asks for {_listed(profile.names)} ({profile.key_type}): put the profile "
        f"back, or give the order up with citrixagent.py enroll --force {shlex.quote(profile.name)}"
    )


def _overtaken_text(profile: Profile, seen: Observed, change: Change) -> str:
    held = seen.certificate
    what = f"order {change.new.cert_id or 'of unknown id'}" if change.order else "a rollback"
    holds = f"{shown_serial(held.serial)}, from {iso(held.not_before)}" if held else "another"
    return (
        f"{what} is open since {change.started}, but the certkey holds a newer certificate that is "
        f"not on record (serial {holds}): the record is old, perhaps from a backup. Put the newest "
        f"state/profile-{profile.name}.json back, or go on from what is installed with "
        f"citrixagent.py enroll --force {shlex.quote(profile.name)}"
    )


def lapses(certificate: Certificate, now: dt.datetime) -> bool:
    """Tell whether a certificate has 7 days or less left."""
    return certificate.not_after - now <= LAPSE


def window_of(
    profile: Profile, record: Record, certificate: Certificate
) -> tuple[dt.timedelta, bool]:
    """Return how long before its end a certificate is due, and whether that had to be cut."""
    made = next((each for each in record.known if each.serial == certificate.serial), None)
    return profile.window.of(dt.timedelta(seconds=lifetime_of(made, certificate)))


def is_due(profile: Profile, record: Record, certificate: Certificate, now: dt.datetime) -> bool:
    return certificate.not_after - now <= window_of(profile, record, certificate)[0]


def _time_left(profile: Profile, record: Record, certificate: Certificate, now: dt.datetime) -> str:
    """Return the numbers behind ``is_due``."""
    left = certificate.not_after - now
    if left <= dt.timedelta(0):
        return f"expired at {iso(certificate.not_after)}"
    window, _ = window_of(profile, record, certificate)
    return f"{left.days} days left, window is {window.days} days"


def _is_at_stake(profile: Profile, seen: Observed) -> bool:
    """Tell whether what is installed lapses for want of a renewal that this tool is to see to."""
    held, now = seen.certificate, seen.now
    if not (profile.auto_renew and held and lapses(held, now)):
        return False
    return is_due(profile, seen.record, held, now)


def _cut_window(profile: Profile, record: Record, certificate: Certificate) -> tuple[str, ...]:
    window, cut = window_of(profile, record, certificate)
    if not cut:
        return ()
    text = "renewal.expiry_window is longer than two thirds of the certificate's lifetime"
    return (f"{text}: {window.days} days are used",)


def _is_overtaken(seen: Observed, change: Change) -> bool:
    """Tell whether the certkey holds what began later than a change, and is not of this record.

    Then the record is older than the appliance: it was put back from a backup.
    """
    held, since = seen.certificate, change.order.sent if change.order else change.started
    if held is None or since is None or held.serial in {each.serial for each in seen.record.known}:
        return False
    return held.not_before > parse_iso(since)


def _is_installed(seen: Observed) -> bool:
    """Tell whether the certkey holds what the record says."""
    installed, certificate = seen.record.installed, seen.certificate
    return bool(installed and certificate and installed.serial == certificate.serial)


def _names_kept(seen: Observed) -> tuple[str, ...]:
    """Warn of names that the profile asks for no more and the certificate still holds."""
    installed = seen.record.installed
    if not (installed and installed.unwanted and _is_installed(seen)):
        return ()
    text = f"the certificate still holds {_listed(installed.unwanted)}, which was removed"
    return (f"{text}: SCM or the CA keeps it; enroll anew to be rid of it",)


def _is_managed(seen: Observed) -> bool:
    """Tell whether the certificate installed is one that this tool ordered."""
    installed = seen.record.installed
    return bool(installed and installed.cert_id and _is_installed(seen))


def just_ordered(record: Record, now: dt.datetime) -> str:
    """Return when what is installed was ordered, if in the last 24 hours; empty otherwise.

    A time in the future is that of a clock that was wrong.
    """
    sent = record.installed.ordered_at if record.installed else None
    return sent if sent and dt.timedelta(0) <= now - parse_iso(sent) < _A_DAY else ""


def _difference(profile: Profile, certificate: Certificate, installed: Generation | None) -> str:
    """Say how profile and certificate differ in names or key type; empty where they agree.

    What this tool ordered is compared with what was ordered (a CA may add names); what was there
    before need only cover the profile, and where its names are not known, its common name.
    """
    wanted = set(profile.names)
    if installed and installed.ours and installed.serial == certificate.serial:
        names = installed.names
        same = set(names) == wanted and names[0] == profile.names[0]
    elif names := certificate.names:
        same = covers(names, wanted)
    else:
        names = (certificate.common_name,)
        same = covers(names, [profile.subject.common_name])
    if not same:
        held, asked = _listed(names), _listed(wanted)
        if held == asked:
            held, asked = f"{names[0]} first", f"{profile.names[0]} first"
        return f"the certificate is for {held}, the profile asks for {asked}"
    if certificate.key_type != profile.key_type:
        return f"the key is {certificate.key_type}, the profile asks for {profile.key_type}"
    return ""


def _still_serves(profile: Profile, new: Generation) -> bool:
    """Tell whether what was ordered serves the profile as it is now."""
    return set(profile.names) <= set(new.names) and new.key_type == profile.key_type


def _next_step(change: Change, seen: Observed) -> Step:
    """Return the first step that an open change still needs.

    The save closes it, or where a handshake is required, that.
    """
    new, order = change.new, change.order
    installed = bool(seen.certificate and new.serial == seen.certificate.serial)
    done = {
        Step.CREATE_KEY: not order or change.key_created,
        Step.CREATE_CSR: not order or order.csr is not None,
        Step.ORDER: not order or new.cert_id is not None,
        Step.COLLECT: not order or bool(new.pem),
        Step.UPLOAD: not order or change.uploaded,
        Step.INSTALL: installed,
        Step.LINK: seen.linked,
        Step.BIND: not seen.unbound,
        Step.SAVE: not seen.record.unsaved,
    }
    return next((step for step, is_done in done.items() if not is_done), Step.VERIFY)


def _new(outcome: Outcome, reason: str, action: Action) -> Plan:
    return Plan(outcome, reason, Step.CREATE_KEY, action)


def _go_on_with(change: Change, seen: Observed) -> Plan:
    return Plan(change.outcome, change.reason, _next_step(change, seen), resumes=True)


def _adopt(profile: Profile, change: Change | None, cert_id: str) -> Plan:
    """Go on with the open order under the id that the operator names."""
    order = change.order if change else None
    # enroll --cert-id: no order is open
    if change is None or order is None or order.csr is None:
        text = f"{profile.name} has no open order: its certificate {cert_id} has no key here"
        raise AgentError("state", text)
    # enroll --cert-id: the order is issued already
    if change.new.pem:
        raise AgentError("state", f"order {change.new.cert_id} of {profile.name} is issued already")
    # enroll --cert-id
    return Plan(change.outcome, change.reason, Step.COLLECT, resumes=True, cert_id=cert_id)


def _open_text(profile: Profile, change: Change) -> str:
    if change.new.cert_id is None:
        return unknown_outcome_text(profile.name, change)
    return (
        f"order {change.new.cert_id} is open: have it finished by citrixagent.py run "
        f"{profile.name}, or decline it in SCM and run that once; then roll back"
    )


def _finish(  # noqa: PLR0911 - README's table, row by row
    profile: Profile, seen: Observed, reason: str
) -> Plan:
    """Do what is missing around an installed certificate, if only what a cut-off run left."""
    record = seen.record
    outcome: Outcome = record.finishing or "repaired"
    # the chain is not linked
    if not seen.linked:
        return Plan(outcome, "its chain is not linked", Step.LINK)
    # not bound to a virtual server of the profile
    if seen.unbound:
        return Plan(outcome, f"not bound to {', '.join(seen.unbound)}", Step.BIND)
    # changed by an earlier run, not saved
    if record.unsaved:
        return Plan(outcome, "the configuration was not saved", Step.SAVE)
    # installed by an earlier run, not verified
    if record.unverified and profile.handshake != "off":
        return Plan(outcome, "what is presented was not verified", Step.VERIFY)
    # installed by an earlier run, not cleaned up
    if record.finishing:
        return Plan(record.finishing, reason, Step.CLEAN_UP)
    # files without a use are left
    if record.litter:
        return Plan("unchanged", reason, Step.CLEAN_UP)
    # none of these
    return Plan("unchanged", reason)


def _roll_back(  # noqa: C901 - README's table, row by row
    profile: Profile, seen: Observed
) -> Plan:
    """Put the previous generation back; a change that may still be used is not given up."""
    record, name, previous = seen.record, profile.name, seen.previous
    change, order = record.change, record.change.order if record.change else None
    # rollback: an earlier one was cut off
    if change and not order:
        return _go_on_with(change, seen)
    # rollback: an earlier one is installed and not finished
    if record.finishing == "rolled_back" and _is_installed(seen):
        return _finish(profile, seen, "put back by the operator")
    # rollback: an order is open at SCM
    if change and order and order.sent and not order.refused:
        raise AgentError("state", _open_text(profile, change))
    # rollback: there is nothing to put back
    if not (record.previous and _is_installed(seen)):
        raise AgentError("state", f"there is no previous certificate of {name} to put back")
    # rollback: what was there before was loaded in a way that cannot be repeated
    if why := record.previous.no_way_back:
        raise AgentError("state", f"what {name} had before cannot be put back: {why}")
    # rollback: what was there before is not known
    if not previous:
        raise AgentError("state", f"what {name} had before is not known well enough")
    # rollback: the previous certificate has expired
    if previous.not_after <= seen.now:
        end = iso(previous.not_after)
        raise AgentError("state", f"the previous certificate of {name} expired at {end}")
    # rollback: the previous certificate was revoked by the operator
    if record.previous.revoked or record.revoked == record.previous.serial:
        raise AgentError("state", f"the previous certificate of {name} was revoked by the operator")
    # rollback
    reason = f"the operator put {record.previous.serial} back"
    return Plan("rolled_back", reason, Step.INSTALL, restores=record.previous)


def _start(  # noqa: C901, PLR0911, PLR0912, PLR0915 - README's table, row by row
    profile: Profile, seen: Observed, intent: Intent, *, anew: bool = False
) -> Plan:
    """Decide while no change is open; ``anew``: one was given up."""
    held, record, name, now = seen.certificate, seen.record, profile.name, seen.now
    asked = "asked for by the operator"
    # replace: the certkey is not on the appliance
    if held is None and intent.command == "replace":
        raise AgentError(
            "state",
            f"there is no certificate to replace: use citrixagent.py enroll {shlex.quote(name)}",
        )
    # the certkey is not on the appliance
    if held is None:
        return _new("enrolled", "no certificate is installed", "enroll")
    due, left = is_due(profile, record, held, now), _time_left(profile, record, held, now)
    difference, managed = _difference(profile, held, record.installed), _is_managed(seen)
    renewal: Action = "renew" if managed and not difference else "enroll"
    revoked = record.revoked == held.serial
    # renew --all, replace --all: ordered in the last 24 hours
    if intent.everything and _is_installed(seen) and (sent := just_ordered(record, now)):
        return _finish(profile, seen, f"ordered at {sent}, within 24 hours")
    unfinished = bool(record.finishing) and _is_installed(seen) and not (due or revoked)
    # enroll, renew or replace: an earlier one is installed and not finished, and not due
    if intent.command != "run" and unfinished and not (seen.revoked or anew):
        return _finish(profile, seen, left)
    # renew
    if intent.command == "renew":
        return _new("renewed", asked, renewal)
    # replace
    if intent.command == "replace":
        return _new("replaced", asked, "replace" if managed else "enroll")
    # enroll, and it is due
    if intent.command == "enroll" and due:
        return _new("renewed", left, "enroll")
    # enroll: not due, not revoked with revoke, without --force
    if intent.command == "enroll" and not (intent.force or anew or revoked or seen.revoked):
        text = f"a valid certificate is installed and not due ({left})"
        way = f"use citrixagent.py enroll --force {shlex.quote(name)}"
        way += " to order another one all the same"
        raise AgentError("state", f"{text}: {way}")
    # enroll
    if intent.command == "enroll":
        return _new("enrolled", asked, "enroll")
    # revoked with revoke
    if revoked:
        way = f"run citrixagent.py enroll, renew or replace {shlex.quote(name)}"
        raise AgentError("state", f"it was revoked by the operator and is still bound: {way}")
    # managed, and revoked in SCM (check_revocation)
    if seen.revoked:
        return _new("enrolled", "it was revoked at SCM", "enroll")
    # rolled back, more than 7 days left
    if record.rolled_back and _is_installed(seen) and not lapses(held, now):
        text = f"rolled back by the operator ({left}): stays until citrixagent.py renew "
        text += f"{shlex.quote(name)}, or {LAPSE.days} days before its end"
        warnings = (text, *_names_kept(seen))
        return dataclasses.replace(_finish(profile, seen, text), warnings=warnings)
    notices = _cut_window(profile, record, held)
    # due or expired (auto_renew: true)
    if due and profile.auto_renew:
        return dataclasses.replace(_new("renewed", left, renewal), notices=notices)
    # names or key type differ, on_change: report
    if difference and profile.on_change == "report":
        raise AgentError("state", f"{difference} (renewal.on_change is report)")
    # names or key type differ, on_change: replace, managed
    if difference and profile.on_change == "replace" and managed:
        return _new("replaced", difference, "replace")
    # names or key type differ
    if difference:
        return _new("enrolled", difference, "enroll")
    not_renewed = f"{left}, and renewal.auto_renew is false"
    # due, auto_renew: false, 7 days or less left
    if due and lapses(held, now):
        text = f"{not_renewed}: run citrixagent.py enroll {shlex.quote(name)}"
        raise AgentError("state", text)
    plan = dataclasses.replace(_finish(profile, seen, left), notices=notices)
    # due, auto_renew: false
    if due:
        return dataclasses.replace(plan, warnings=(not_renewed, *_names_kept(seen)))
    return dataclasses.replace(plan, warnings=_names_kept(seen))


def _unsent(profile: Profile, seen: Observed, change: Change, order: Order, intent: Intent) -> Plan:
    """Decide afresh; where an order is still needed, the key and CSR that are there will do."""
    plan = _start(profile, seen, intent)
    if not plan.action or order.wish != wish_of(profile):
        return plan
    return dataclasses.replace(plan, first=_next_step(change, seen), resumes=True)


def _go_on(  # noqa: C901, PLR0911, PLR0912 - README's table, row by row
    profile: Profile, seen: Observed, change: Change, intent: Intent
) -> Plan | None:
    """Decide while a change is open; None where it is given up."""
    order, new, name = change.order, change.new, profile.name
    at_stake = _is_at_stake(profile, seen)
    # of a rollback that was cut off: enroll, renew or replace, or 7 days or less left
    # (auto_renew: true)
    if order is None and (intent.command != "run" or at_stake):
        return None
    is_overtaken = _is_overtaken(seen, change)
    # the certkey holds something newer that is not on record: enroll --force, or 7 days or less
    # left (auto_renew: true)
    if is_overtaken and (intent.force or at_stake):
        return None
    # the certkey holds something newer that is not on record
    if is_overtaken:
        raise AgentError("state", _overtaken_text(profile, seen, change))
    # of a rollback that was cut off
    if order is None:
        return _go_on_with(change, seen)
    # not sent yet
    if order.sent is None:
        return _unsent(profile, seen, change, order, intent)
    # issued, never in service for good, and due by now (auto_renew: true)
    if seen.issued and profile.auto_renew and is_due(profile, seen.record, seen.issued, seen.now):
        return None
    # declined or rejected in SCM: run, and the profile was not edited
    if order.refused and intent.command == "run" and order.wish == wish_of(profile):
        way = f"is edited or you run citrixagent.py enroll {shlex.quote(name)}"
        raise AgentError(
            "declined", f"{order.refused}: nothing is ordered again until the profile {way}"
        )
    # declined or rejected in SCM
    if order.refused:
        return None
    age = seen.now - parse_iso(order.sent)
    is_old = age > _A_NIGHT or age < dt.timedelta(0)  # the clock was ahead
    # sent, unknown whether it arrived: enroll --force, or 7 days or less left (auto_renew: true)
    # and not sent in the last 20 hours
    if new.cert_id is None and (intent.force or (at_stake and is_old)):
        return None
    # sent, unknown whether it arrived
    if new.cert_id is None:
        raise AgentError("unknown_outcome", unknown_outcome_text(name, change))
    # placed, but it failed, or no longer covers the profile: enroll --force
    if intent.force and (order.failed or not _still_serves(profile, new)):
        return None
    # placed, but it no longer covers the profile
    if not _still_serves(profile, new):
        raise AgentError("state", _edited_text(profile, new))
    # placed, but its key is lost: 7 days or less left (auto_renew: true)
    if order.key_lost and at_stake:
        return None
    # placed
    return _go_on_with(change, seen)


def _decide(profile: Profile, seen: Observed, intent: Intent) -> Plan:
    change = seen.record.change
    if intent.cert_id:
        return _adopt(profile, change, intent.cert_id)
    if intent.command == "rollback":
        return _roll_back(profile, seen)
    if change is None:
        return _start(profile, seen, intent)
    return _go_on(profile, seen, change, intent) or _start(profile, seen, intent, anew=True)


def _ours(seen: Observed) -> Generation | None:
    """Return what is known of the installed certificate, where this tool ordered it."""
    held, known = seen.certificate, seen.record.known
    ours = (each for each in known if held and each.ours and each.serial == held.serial)
    return next(ours, None)


def _names_held(seen: Observed) -> tuple[str, ...]:
    """Return what the certkey's certificate is for: of ours what was ordered, else all of it."""
    if ours := _ours(seen):
        return ours.names
    held = seen.certificate
    return (held.names or (held.common_name,)) if held else ()


def _lost_names(profile: Profile, seen: Observed, plan: Plan) -> list[str]:
    """Return the names that the successor would lack, where others are served by them too."""
    if not seen.elsewhere or plan.restores:
        return []
    change = seen.record.change if plan.resumes else None
    wanted = change.new.names if change else profile.names
    return [name for name in _names_held(seen) if not covers(wanted, [name])]


def _serves_something(
    profile: Profile, seen: Observed, taken: Sequence[Taken], *, orders: bool
) -> bool:
    """Tell whether a plan gets anything served though the taken places stay as they are."""
    servers, unbound = {server.name for server in profile.virtual_servers}, set(seen.unbound)
    free = unbound - {each.virtual_server for each in taken}
    return bool(free or (orders and (servers - unbound or seen.elsewhere)))


def _stranger_text(profile: Profile, seen: Observed) -> str:
    text = f'the certkey "{profile.certkey}" holds a certificate for {_listed(_names_held(seen))}'
    way = f"run citrixagent.py run {shlex.quote(profile.name)} --take-over"
    text += f", which is not for {profile.names[0]}"
    return f"{text}: name another one as certificate.name, or {way}"


def _loss_text(profile: Profile, seen: Observed, lost: Iterable[str]) -> str:
    text = f'the certkey "{profile.certkey}" is also bound to {_listed(seen.elsewhere)}, which'
    way = f"unbind it, or run citrixagent.py run {shlex.quote(profile.name)} --take-over"
    return f"{text} would lose {_listed(lost)}: add that to the profile, {way}"


def _beside_others(profile: Profile, seen: Observed, plan: Plan, intent: Intent) -> Plan:
    """Decide about a plan that may take what belongs to somebody else."""
    change = seen.record.change if plan.resumes else None
    steps, held, names = plan.steps(profile), seen.certificate, _names_held(seen)
    updates = held is not None and Step.INSTALL in steps
    beside = [each for each in seen.taken if each.beside and updates]
    taken = [each for each in seen.taken if not each.beside and Step.BIND in steps]
    lost = _lost_names(profile, seen, plan) if updates else []
    # --take-over, or an open order that was placed with it
    if intent.take_over or (change and change.take_over):
        return plan
    # the certkey is to be updated, and holds somebody else's certificate that is not for the common
    # name
    if updates and not (_ours(seen) or covers(names, [profile.names[0]])):
        raise AgentError("state", _stranger_text(profile, seen))
    # the certkey is to be updated, and is bound to a virtual server that the profile does not name
    # and that would lose a name
    if lost:
        raise AgentError("state", _loss_text(profile, seen, lost))
    # taken, because the key type or a name changes
    if beside:
        raise AgentError("state", taken_text(profile.name, beside))
    # taken, and nothing else would be served
    if taken and not _serves_something(profile, seen, taken, orders=Step.INSTALL in steps):
        raise AgentError("state", taken_text(profile.name, taken))
    # taken
    if taken:
        return plan
    return plan


def _told_of_others(profile: Profile, seen: Observed, plan: Plan) -> Iterator[str]:
    """Say who else gets the successor of the installed certificate."""
    if seen.elsewhere and Step.INSTALL in plan.steps(profile):
        text = f'the certkey "{profile.certkey}" is bound to {_listed(seen.elsewhere)} too'
        if lost := _lost_names(profile, seen, plan):
            text += f", for which the new certificate lacks {_listed(lost)}"
        yield f"{text}: what is installed is served there as well"


def decide(profile: Profile, seen: Observed, intent: Intent) -> Plan:
    """Decide what a profile needs.

    Raises AgentError where the present situation forbids to go on: then nothing is done.
    """
    plan = _decide(profile, seen, intent)
    plan = _beside_others(profile, seen, plan, intent)
    told = tuple(_told_of_others(profile, seen, plan))
    return dataclasses.replace(plan, warnings=(*plan.warnings, *told))


_VERBS: Mapping[str, str] = {
    "enrolled": "enroll",
    "renewed": "renew",
    "replaced": "replace",
    "repaired": "repair",
    "rolled_back": "roll back",
}


def _differences(
    profile: Profile, certificate: Certificate | None, ordered: Iterable[str]
) -> list[str]:
    """Show how names or key type of a new certificate differ from those of the one installed."""
    if certificate is None:
        return []
    held = set(ordered) or set(certificate.names or [certificate.common_name])
    if held == set(profile.names) and certificate.key_type == profile.key_type:
        return []
    old = f"- {', '.join(sorted(held))} ({certificate.key_type})"
    return [old, f"+ {', '.join(sorted(profile.names))} ({profile.key_type})"]


def preview(
    profile: Profile, plan: Plan, certificate: Certificate | None, ordered: Iterable[str]
) -> list[str]:
    """Say what a plan would do: one line, and two more where names or key type would change.

    ``ordered``: the names that were asked for when the certificate that is installed was ordered.
    """
    steps = plan.steps(profile)
    if not steps:
        return []
    made = [f"new {profile.key_type} key"] * (Step.CREATE_KEY in steps)
    made += ["1 order"] * (Step.ORDER in steps)
    goes_on = plan.resumes and Step.ORDER not in steps
    verb = "finish" if goes_on else _VERBS.get(plan.outcome, "finish")
    what = ", ".join(made or [step.value for step in steps])
    servers = ", ".join(server.name for server in profile.virtual_servers)
    line = f"would {verb} ({plan.reason}): {what}; {servers}"
    return [line, *(_differences(profile, certificate, ordered) if plan.action else ())]


def taken_in_preview(profile: Profile, seen: Observed, plan: Plan, intent: Intent) -> list[str]:
    """Say what a plan would take from others, with the consent that it has."""
    change = seen.record.change if plan.resumes else None
    consents = intent.take_over or (change is not None and change.take_over)
    steps = plan.steps(profile)
    if not consents or Step.BIND not in steps:
        return []
    taken = [each for each in seen.taken if Step.INSTALL in steps or not each.beside]
    return [f"{each.text}: it would be taken over" for each in taken]


STATES = ("not installed", "revoked", "declined", "pending", "rolled back", "failed", "due")
"""What may be said of a profile in one word; the first that fits counts, else it is "ok"."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a profile stands: what list, status and metrics say of it.

    ``due``: when its window begins; ``renews``: when it is renewed by itself, if that will happen.
    """

    state: str
    not_before: str | None = None
    not_after: str | None = None
    due: str | None = None
    renews: str | None = None
    order: Document | None = None  # what waits at SCM


def standing(
    profile: Profile,
    record: Record,
    certificate: Certificate | None,
    order: Document | None,
    marks: Iterable[str],
    now: dt.datetime,
) -> Standing:
    """Judge a profile by its certificate, its open order, and what else is known (``STATES``)."""
    found = {*marks, *(["pending"] if order else ())}
    if certificate is None:
        found |= {"not installed"} if order is None else set()
        return Standing(next(state for state in STATES if state in found), order=order)
    window, _ = window_of(profile, record, certificate)
    due = certificate.not_after - (LAPSE if "rolled back" in found else window)
    found |= {"due"} if due <= now else set()
    renews = profile.auto_renew and not found & {"pending", "revoked"}
    return Standing(
        next((state for state in STATES if state in found), "ok"),
        not_before=iso(certificate.not_before),
        not_after=iso(certificate.not_after),
        due=iso(due),
        renews=iso(due) if renews else None,
        order=order,
    )


# ----- 8. HTTP --------------------------------------------------------------------------------

_RETRY_DELAYS = (0.5, 1.0, 2.0)  # seconds
_JITTER = secrets.SystemRandom()
_LONGEST_PEACE = 86400.0  # seconds for which a server may ask to be left alone
_LONGEST_PAUSE = 60.0  # seconds; a server that asks for more is left alone until the next run
_SHORT_PAUSE = 2.0  # seconds that anybody waits for a server that asks for no more
_KEPT = 1.0  # seconds of silence after which a connection is not trusted with a write
_GRACE = 0.7  # seconds that what is under way may go on after a signal
_GLANCE = 0.2  # seconds between two looks at the clock while the network is waited for
_FAREWELL = 5.0  # seconds for the last request of a session, which changes nothing any more
_PROBE = 5.0  # seconds for a handshake with a virtual server,
_KNOCK = 2.0  # and for the connection before it: a firewall that drops is not worth more
PROBES_AT_ONCE = 16
CONNECTIONS = 8  # to one server, at the same time
_LONGEST_ANSWER = 16 * 1024 * 1024  # bytes, unpacked
_CHUNK = 64 * 1024  # bytes
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_UNVERIFIED = Tls(verify=False)
_OTHER_NAME = frozenset({62, 64})  # OpenSSL's codes for another host name, another address
_WORDS_LIMIT = 500  # characters of somebody else's words in one message
_OWN_WORDS = {  # fields of the JSON that hold nobody else's words
    "action", "command", "finished", "kind", "key_type", "last_success", "level", "not_after",
    "not_before", "outcome", "renews", "seen", "serial", "since", "started", "state", "status",
    "steps", "type",
}  # fmt: skip
_INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


class Interrupt:
    """The wish of SIGINT, SIGTERM and SIGHUP, looked at before every request and while waiting."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._since = 0.0
        self.signal = 0
        self.at_once = False  # nothing is under way that would have to be brought to an end

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: object) -> None:
        self._since = self._since or time.monotonic()
        self.signal = number
        self._event.set()
        if self.at_once:
            raise Interrupted

    def check(self) -> None:
        if self._event.is_set():
            raise Interrupted

    def wait(self, seconds: float) -> None:
        self._event.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def cutting_off(self) -> Iterator[None]:
        """Let a signal cut off what is done now: there is nothing to bring to an end."""
        self.check()
        self.at_once = True
        try:
            yield
        finally:
            self.at_once = False

    def is_overdue(self) -> bool:
        """Tell whether what was under way when a signal came has had its time to end."""
        return self._event.is_set() and time.monotonic() - self._since > _GRACE


@dataclasses.dataclass
class Try:
    """One try at what may come right later; the bounds are for the pause after it, in seconds."""

    is_last: bool = False
    at_least: float = 0.0
    at_most: float = float("inf")


def tries(interrupt: Interrupt, delays: Iterable[float] = _RETRY_DELAYS) -> Iterator[Try]:
    """Yield one try after another, with a pause between that a signal ends.

    Where the delays are used up, there is a last one. Pauses differ a little: not everybody who was
    turned away together comes back together.
    """
    for delay in delays:
        this = Try()
        yield this
        pause = max(delay * _JITTER.uniform(1, 1.2), this.at_least)
        interrupt.wait(min(pause, this.at_most))
    yield Try(is_last=True)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def visible(text: str) -> str:
    """Return a text as one line in which nothing acts on a terminal, a log, a mail or a page.

    Controls, line breaks, marks of direction, what has no width, and halves of characters are
    shown as what they are: an escape character as ``x1b`` behind a backslash.
    """
    return _INVISIBLE.sub(_escaped, text)


def _folded(text: str) -> str:
    return visible(re.sub(r"[ \t\r\n]+", " ", text).strip())


def one_line(text: str) -> str:
    """Return what somebody else said, fit for a line: not too long, blanks for line breaks."""
    line = _folded(text)
    return line if len(line) <= _WORDS_LIMIT else line[:_WORDS_LIMIT] + "..."


def _spellings(secret: str) -> set[str]:
    """Return how a secret may be written by whoever repeats it, and what becomes of that here."""
    written = {secret, html.escape(secret), urllib.parse.quote_plus(secret)}
    written |= {urllib.parse.quote(secret, safe=safe) for safe in ("", "/")}
    written |= {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    shown = {show(each) for each in written for show in (visible, _folded)}
    return {each for each in written | shown if len(each) >= 4}


def _is_own(key: str, value: object) -> bool:
    """Tell whether a field of the JSON holds the program's own word, a time or a number.

    Certificates have a state as well: a part of their country.
    """
    return key in _OWN_WORDS and (key != "state" or value in {*STATES, "unmanaged"})


class Redactor:
    """Replaces every secret that the program has come to know, wherever text leaves it.

    Texts of less than four characters are left alone: they stand in every other word.
    """

    def __init__(self) -> None:
        self._secrets: tuple[str, ...] = ()  # the longest first: one may be a part of another
        self._starts: set[str] = set()
        self.variables: set[str] = set()  # of the environment, that hold secrets

    def add(self, secret: str) -> None:
        if len(secret) >= 4 and secret not in self._secrets:
            known = {*self._secrets, *_spellings(secret)}
            self._secrets = tuple(sorted(known, key=len, reverse=True))
            self._starts = {each[:4] for each in known}

    def hide_in(self, data: Any) -> Any:  # noqa: ANN401 - JSON
        """Return JSON data with the secrets hidden in its texts; its own words are left alone."""
        if isinstance(data, str):
            return self.hide(data)
        if isinstance(data, dict):
            return {
                key: value if _is_own(key, value) else self.hide_in(value)
                for key, value in data.items()
            }
        return [self.hide_in(item) for item in data] if isinstance(data, list) else data

    def hide(self, text: str) -> str:
        starts = {text[place : place + 4] for place in range(len(text) - 3)}
        if starts.isdisjoint(self._starts):  # there may be thousands of secrets
            return text
        for secret in self._secrets:
            text = text.replace(secret, "<hidden>")
        for secret in self._secrets if "..." in text else ():
            if secret[:4] in starts:
                text = self._hide_cut(secret, text)
        return text

    @staticmethod
    def _hide_cut(secret: str, text: str) -> str:
        """Hide what is left of a secret where the words that held it were cut."""
        for length in range(len(secret) - 1, 3, -1):
            text = text.replace(f"{secret[:length]}...", "<hidden>...")
        return text


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


class Exchange:
    """One request and its answer: how long they may take, and how far they came.

    Connecting (name resolution apart) has ``timeout`` seconds, and so has all that follows,
    whatever the server does meanwhile. A signal ends both, unless there is no ``interrupt``.
    """

    def __init__(
        self,
        timeout: float,
        interrupt: Interrupt | None,
        *,
        tls: bool = True,
        may_break: bool = True,
    ) -> None:
        self.may_break = may_break  # that would leave nothing unknown
        self.sent = False  # the server may carry it out
        self.is_cut_off = False  # by a signal
        self.tls = tls  # what goes over the bare connection is not the request
        self._timeout = timeout
        self._interrupt = interrupt
        self._deadline = time.monotonic() + timeout

    def start(self) -> None:
        """Begin to count the time."""
        self._deadline = time.monotonic() + self._timeout

    def send(self) -> None:
        """Take note that the request begins to leave."""
        if not self.sent:
            self.sent = True
            self.start()

    def left(self) -> float:
        """Return the seconds that are left; TimeoutError where none are."""
        if self._interrupt and self._interrupt.is_overdue():
            self.is_cut_off = True
            raise TimeoutError("interrupted")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def wait(self, connection: socket.socket, do: Callable[[], T]) -> T:
        """Do what waits for the network, as long as there is time."""
        while True:
            connection.settimeout(min(self.left(), _GLANCE))
            with contextlib.suppress(TimeoutError):
                return do()


_exchange: contextvars.ContextVar[Exchange] = contextvars.ContextVar("exchange")
"""What this thread is at: connections are kept from one exchange to the next."""


@contextlib.contextmanager
def exchanging(exchange: Exchange) -> Iterator[None]:
    token = _exchange.set(exchange)
    try:
        yield
    finally:
        _exchange.reset(token)


class _BareSocket(socket.socket):
    """A connection without TLS, or before it: each wait ends with the exchange."""

    def recv_into(self, *arguments: Any) -> int:  # noqa: ANN401 - buffer, size, flags
        return _exchange.get().wait(self, functools.partial(super().recv_into, *arguments))

    def recv(self, *arguments: Any) -> bytes:  # noqa: ANN401 - size, flags
        return _exchange.get().wait(self, functools.partial(super().recv, *arguments))

    def send(self, data: Any, *flags: int) -> int:  # noqa: ANN401 - any buffer
        exchange = _exchange.get()
        if not exchange.tls:
            exchange.send()
        return exchange.wait(self, functools.partial(super().send, data, *flags))

    def sendall(self, data: Any, *flags: int) -> None:  # noqa: ANN401 - any buffer
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self.send(rest, *flags) :]


class _TlsSocket(ssl.SSLSocket):
    """A connection with TLS: each wait ends with the exchange; all others come down to these."""

    def getpeername(self) -> Any:  # noqa: ANN401 - as it is inherited
        """Close what is not connected any more, which Python's own constructor leaves open."""
        try:
            return super().getpeername()
        except OSError:
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from None

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT002 - as it is inherited
        _exchange.get().wait(self, functools.partial(super().do_handshake, block))

    def read(self, *arguments: Any) -> Any:  # noqa: ANN401 - size, buffer; bytes or their number
        return _exchange.get().wait(self, functools.partial(super().read, *arguments))

    def send(self, data: Any, *flags: int) -> int:  # noqa: ANN401 - any buffer
        exchange = _exchange.get()
        exchange.send()
        return exchange.wait(self, functools.partial(super().send, data, *flags))


def _await_connection(connection: socket.socket, address: Any, seconds: float) -> None:  # noqa: ANN401
    """Connect within so many seconds of those that the exchange has left."""
    exchange, until = _exchange.get(), time.monotonic() + seconds
    connection.setblocking(False)
    code = connection.connect_ex(address)
    waiter = select.poll()
    waiter.register(connection, select.POLLOUT)
    while code == errno.EINPROGRESS:
        left = min(exchange.left(), until - time.monotonic(), _GLANCE)
        if left <= 0:
            raise TimeoutError("timed out")
        if waiter.poll(left * 1000):
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    connection.settimeout(_GLANCE)


def _dial(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that takes the connection; each has a fair share."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    exchange = _exchange.get()
    exchange.start()
    failure = OSError(errno.EADDRNOTAVAIL, "no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        connection = None
        try:
            connection = _BareSocket(family, kind, protocol)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _await_connection(connection, address, exchange.left() / (len(found) - number))
        except OSError as error:
            failure = error
            if connection:
                connection.close()
        else:
            return connection
    raise failure


def is_header_value(text: str) -> bool:
    """Tell whether what a server gave can be sent back to it in a header."""
    return bool(re.fullmatch("[!-~]+", text))


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]
    address: str = ""  # that was asked, where a message may have to name it

    def json(self) -> Document | None:
        """Return the JSON object in the body; None where there is none."""
        data = self._data()
        return data if isinstance(data, dict) else None

    def json_list(self) -> list[Document] | None:
        """Return the JSON objects of the list in the body; None where there is no list."""
        data = self._data()
        return [each for each in data if isinstance(each, dict)] if isinstance(data, list) else None

    def _data(self) -> Any:  # noqa: ANN401 - JSON
        """Return what the body holds; an odd byte or control character costs itself alone."""
        try:
            return json.loads(self.body.decode("utf-8-sig", errors="replace"), strict=False)
        except (ValueError, RecursionError):
            return None

    def retry_after(self) -> float | None:
        """Return the seconds that the server asks to be left alone; None where it does not say."""
        value = self.headers.get("Retry-After", "").strip()
        if not value:
            return None
        with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):
            if re.fullmatch("[0-9]+", value):
                return min(float(value), _LONGEST_PEACE)
            moment = email.utils.parsedate_to_datetime(value)
            return min(max((moment - utc_now()).total_seconds(), 0.0), _LONGEST_PEACE)
        return 0.0


class Silence:
    """What nobody needs to ask again for a while, because all would hear the same."""

    def __init__(self) -> None:
        self.until = 0.0  # by the monotonic clock
        self._kind: Kind = "unreachable"
        self._message = ""

    def begin(self, seconds: float, failure: AgentError) -> None:
        self._kind, self._message = failure.kind, failure.message
        self.until = time.monotonic() + seconds

    @property
    def lasts(self) -> bool:
        return time.monotonic() < self.until

    def check(self) -> None:
        """Raise TransportError while it lasts."""
        if self.lasts:
            raise TransportError(self._kind, self._message, sent=False, again=False)


def ahead_text(ahead: dt.timedelta, unit: dt.timedelta, name: str) -> str:
    """Say by how many units this machine's clock is ahead of (or behind) another."""
    way = "ahead of" if ahead > dt.timedelta(0) else "behind"
    return f"this machine's clock is {_count(round(abs(ahead) / unit), name)} {way}"


_patience = contextvars.ContextVar("patience", default=_LONGEST_PAUSE)
"""How long this thread waits before it tries again what a server had no time for."""


@contextlib.contextmanager
def coming_again() -> Iterator[None]:
    """Wait no longer than for a moment inside, where it is asked again later anyway."""
    token = _patience.set(_SHORT_PAUSE)
    try:
        yield
    finally:
        _patience.reset(token)


class Server:
    """What all connections to one server know of it."""

    def __init__(self) -> None:
        self.silence = Silence()
        self.rest = Silence()  # for those who ask again later anyway
        self.places = threading.BoundedSemaphore(CONNECTIONS)
        self.ahead: dt.timedelta | None = None  # this machine's clock, of the server's; not known
        self._impatient_until = 0.0

    def is_tried_once(self) -> bool:
        """Tell whether it was troubled through a whole round of tries just before."""
        return time.monotonic() < self._impatient_until

    def was_troubled(self, seconds: float) -> None:
        self._impatient_until = time.monotonic() + seconds

    def is_well(self) -> None:
        self._impatient_until = 0.0

    def heed_clock(self, answer: Answer) -> None:
        """Compare this machine's clock with the Date of an answer, where it has one."""
        with contextlib.suppress(ValueError, TypeError):
            told = email.utils.parsedate_to_datetime(answer.headers.get("Date", ""))
            self.ahead = utc_now() - told.astimezone(dt.timezone.utc)

    def clock_text(self) -> str:
        """Say that this machine's clock differs by more than a day; empty where it does not."""
        if self.ahead is None or abs(self.ahead) <= dt.timedelta(days=1):
            return ""
        return f"{ahead_text(self.ahead, dt.timedelta(days=1), 'day')} its own"


class Context:
    """What every connection of the program shares."""

    def __init__(self, interrupt: Interrupt, redactor: Redactor) -> None:
        self.interrupt = interrupt
        self.redactor = redactor
        self.refused_logins: dict[tuple[str, str], AgentError] = {}  # by host and account
        self.unanswered: dict[tuple[str, int], str] = {}  # addresses, and what came of them
        self.probes = threading.BoundedSemaphore(PROBES_AT_ONCE)
        self._servers: dict[str, Server] = {}

    def server(self, url: str) -> Server:
        """Return what is known of the server of an address."""
        return self._servers.setdefault(urllib.parse.urlsplit(url).netloc.lower(), Server())


def _is_passing(answer: Answer, *, repeatable: bool) -> bool:
    """Tell whether the request may be sent again, and whether another answer is to be hoped for."""
    busy = answer.status == 503 and answer.retry_after() is not None
    carried_out = answer.status != 429 and not busy
    return answer.status in _TRANSIENT and (repeatable or not carried_out)


def _system_trust() -> tuple[str | None, str | None]:
    """Return file and folder of what this system trusts."""
    import certifi

    if named := os.environ.get("SSL_CERT_FILE"):
        return named, None
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return paths.cafile, None
    if paths.capath and os.listdir(paths.capath):  # noqa: PTH208
        return None, paths.capath
    return certifi.where(), None


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return how a server is verified; AgentError (config) where there is nothing to verify by."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # heeds no SSLKEYLOGFILE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TlsSocket
    if tls.fingerprint or not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    file, folder = (tls.ca_bundle, None) if tls.ca_bundle else _system_trust()
    try:
        if file and not pathlib.Path(file).is_file():  # it may be a pipe, and be waited for
            raise ssl.SSLError
        context.load_verify_locations(file, folder)
    except OSError as error:
        is_none = isinstance(error, ssl.SSLError)
        what = (
            "is not a PEM file of certificates" if is_none else f"cannot be read: {error.strerror}"
        )
        variable = "" if tls.ca_bundle else ": check SSL_CERT_FILE in the environment"
        raise AgentError("config", f"{file or folder} {what}{variable}") from None
    return context


def _connected(connection: urllib3.connection.HTTPConnection) -> socket.socket:
    """Connect for urllib3: the method of its connections that does so is replaced by this."""
    return _dial(connection.host, connection.port or connection.default_port)


class _Shelf(queue.LifoQueue[Any]):
    """Where urllib3 keeps the connections to a server.

    One that was silent is not trusted with a write: where it breaks, the outcome is unknown.
    """

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ANN401, FBT002 - as it is inherited
        if item:
            item.kept_since = time.monotonic()
        super().put(item, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ANN401, FBT002 - as it is inherited
        item, exchange = super().get(block, timeout), _exchange.get(None)
        is_write = exchange is not None and not exchange.may_break
        if item and is_write and time.monotonic() - item.kept_since > _KEPT:
            item.close()  # it is opened again
        return item


@functools.cache
def _pool_classes() -> dict[str, Any]:
    """Return urllib3's pools by scheme, of connections whose waits end with the exchange."""
    from urllib3 import connection, connectionpool

    found = {}
    for scheme, dialer, pool in (
        ("http", connection.HTTPConnection, connectionpool.HTTPConnectionPool),
        ("https", connection.HTTPSConnection, connectionpool.HTTPSConnectionPool),
    ):
        own = type(dialer.__name__, (dialer,), {"_new_conn": _connected})
        found[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": own, "QueueCls": _Shelf})
    return found


def proxy_to(url: str, configured: str | None) -> str:
    """Return the proxy to an address: as configured, or by the environment; empty where none."""
    from requests import utils

    found = configured or utils.select_proxy(url, utils.get_environ_proxies(url))
    return f"http://{found}" if found and "://" not in found else found or ""


def _proxy_headers(proxy: str) -> dict[str, str]:
    import requests

    account = ":".join(requests.utils.get_auth_from_url(proxy))
    if account == ":":
        return {}
    return {"Proxy-Authorization": f"Basic {base64.b64encode(account.encode()).decode()}"}


def make_pools(tls: Tls, proxy: str) -> urllib3.PoolManager:
    """Return what keeps connections: to servers, or through a proxy where one is given."""
    import urllib3

    if not tls.verify:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    context = tls_context(tls)
    options: dict[str, Any] = {"num_pools": 2, "maxsize": 32, "ssl_context": context}
    if tls.fingerprint:
        options["assert_fingerprint"] = tls.fingerprint
    if proxy:
        options |= {"proxy_headers": _proxy_headers(proxy), "proxy_ssl_context": context}
    manager = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = _pool_classes()
    return manager


def _words(reason: BaseException) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return reason.verify_message
    if "ingerprint" in str(reason):
        return "its fingerprint is another one"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return f"the connection broke ({type(reason).__name__})"


@dataclasses.dataclass(frozen=True)
class Presented:
    """What a TLS server presents, in DER: its certificate, and all that it sends.

    What it sends is not known (empty) where the TLS library does not tell.
    """

    certificate: bytes
    chain: tuple[bytes, ...]

    @property
    def chain_length(self) -> int | None:
        return len(self.chain) or None


def _chain_of(tls: ssl.SSLSocket) -> tuple[bytes, ...]:
    """Return what was sent, leaf first; Python has a public way to that only since 3.13."""
    for source in (tls, getattr(tls, "_sslobj", None)):
        if read := getattr(source, "get_unverified_chain", None):
            found = read() or ()
            return tuple(
                each if isinstance(each, bytes) else ssl.PEM_cert_to_DER_cert(each.public_bytes())
                for each in found
            )
    return ()


class NoAnswerError(OSError):
    """No connection came about, or nothing came over it: to ask again at once is of no use."""

    def __init__(self, words: str) -> None:
        super().__init__(errno.ETIMEDOUT, words)
        self.words = words


def _dial_once(address: tuple[str, int], interrupt: Interrupt) -> socket.socket:
    with exchanging(Exchange(_KNOCK, interrupt)):
        try:
            return _dial(*address)
        except OSError as error:
            raise NoAnswerError(_words(error)) from None


def _shown(
    context: ssl.SSLContext, address: tuple[str, int], name: str | None, interrupt: Interrupt
) -> Presented:
    """Shake hands; what was presented counts, however that ends.

    A server that wants a certificate of its clients ends it, after it has presented its own. A name
    that cannot be asked for is a ValueError, before there is a connection that would be left open.
    """
    (name or "").encode("idna")
    wrap = functools.partial(
        context.wrap_socket, server_hostname=name, do_handshake_on_connect=False
    )
    connection = _dial_once(address, interrupt)
    with exchanging(Exchange(_PROBE, interrupt)), connection, wrap(connection) as tls:
        try:
            tls.do_handshake()
        except ssl.SSLError:
            if not (chain := _chain_of(tls)):
                raise
            return Presented(chain[0], chain)
        return Presented(tls.getpeercert(binary_form=True) or b"", _chain_of(tls))


class _TooLongError(Exception):
    """An answer exceeds what any answer needs."""


def _body_of(response: urllib3.BaseHTTPResponse) -> bytes:
    """Return a body, unpacked; it is read no further than any answer needs."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip"}:
        raise ValueError("an encoding that was not asked for")
    unpacker = zlib.decompressobj(wbits=31) if "gzip" in encoding else None
    body = bytearray()
    while chunk := response.read(_CHUNK, decode_content=False):
        room = _LONGEST_ANSWER + 1 - len(body)
        body += unpacker.decompress(chunk, room) if unpacker else chunk
        if len(body) > _LONGEST_ANSWER:
            raise _TooLongError
    if unpacker and not unpacker.eof:
        raise ValueError("an answer that is cut off")
    return bytes(body)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and those below it, down to the system's or TLS's own."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        inner = [value for value in current.args if isinstance(value, BaseException)]
        reason = getattr(current, "reason", None)
        below = reason if isinstance(reason, BaseException) else None
        current = (
            below or (inner[-1] if inner else None) or current.__cause__ or current.__context__
        )
    return found


def _is_distrust(error: BaseException) -> bool:
    mismatch = "ingerprints did not match" in str(error)
    return mismatch or isinstance(error, ssl.SSLCertVerificationError)


class Transport:
    """Sends requests to one server: TLS, limits of time and size, one rule for repeating them.

    Any thread may send.
    """

    def __init__(
        self,
        label: str,
        tls: Tls,
        timeout: int,
        context: Context,
        proxy: Callable[[str], str] | None = None,
        *,
        slow_writes: bool = False,
    ) -> None:
        self._label = label
        self._tls = tls
        self._timeout = timeout
        self._context = context
        # To look through the environment for it is as much work as the request itself.
        self._proxy = functools.cache(proxy) if proxy else None
        self._slow_writes = slow_writes  # one that takes too long says nothing about other requests
        self._pools: dict[str, urllib3.PoolManager] = {}  # by proxy
        self._pools_lock = threading.Lock()
        self.is_ending = False  # a last request is sent also after an interruption

    def close(self) -> None:
        for pools in self._pools.values():
            pools.clear()

    def send(
        self,
        method: str,
        url: str,
        *,
        repeatable: bool,
        headers: Mapping[str, str | bytes],
        body: bytes | None = None,
    ) -> Answer:
        """Send a request and return the answer, whatever its status.

        A ``repeatable`` one is sent again after a broken connection or a passing status; any other
        only where it cannot have been carried out: no connection, 429, 503 with Retry-After. A
        time-out is never tried again. A server that is down costs one round of tries: afterwards
        nothing is sent for as long as one request may take, by anybody; nor before the time that a
        server asks for. Raises TransportError.
        """
        server = self._context.server(url)
        once = functools.partial(self._send_once, method, url, headers, body, repeatable=repeatable)
        for this in tries(self._context.interrupt, self._delays(server)):
            try:
                answer = self._in_turn(server, once)
            except TransportError as error:
                if this.is_last or not error.again or (error.sent and not repeatable):
                    self._heed(server, this, error, is_write=method != "GET")
                    raise
            else:
                server.heed_clock(answer)
                if self._stands(server, this, answer, repeatable=repeatable):
                    return answer
            log.debug("%s: trying again", self._label)
        raise AssertionError("the last try returns or raises")

    def _in_turn(self, server: Server, once: Callable[[], Answer]) -> Answer:
        """Send when there is a place, unless by then a signal came or nothing is to be sent."""
        with server.places:
            if not self.is_ending:
                self._context.interrupt.check()
                server.silence.check()
            if _patience.get() < _LONGEST_PAUSE:
                server.rest.check()
            return once()

    def _delays(self, server: Server) -> Sequence[float]:
        return () if self.is_ending or server.is_tried_once() else _RETRY_DELAYS

    def _stands(self, server: Server, this: Try, answer: Answer, *, repeatable: bool) -> bool:
        """Tell whether an answer is the one to go on with, and note what it says of the server."""
        if not _is_passing(answer, repeatable=repeatable):
            server.is_well()
            return True
        this.at_least = answer.retry_after() or 0.0
        if this.is_last or this.at_least > _LONGEST_PAUSE:
            self._leave_alone(server, this.at_least)
            return True
        if this.at_least > _patience.get():
            server.rest.begin(this.at_least, self._left_alone(this.at_least))
            return True
        return False

    def _heed(self, server: Server, this: Try, error: TransportError, *, is_write: bool) -> None:
        """Remember a server that does not answer; a slow write says nothing about other requests.

        A connection that broke once, where nothing may be sent again, says nothing either.
        """
        is_slow = self._slow_writes and is_write and error.sent
        if (this.is_last or not error.again) and not is_slow and not server.silence.lasts:
            server.silence.begin(self._timeout, error)

    def _leave_alone(self, server: Server, asked: float) -> None:
        """Remember a server that has trouble: with tries, or for as long as it asks for."""
        server.was_troubled(self._timeout)
        if asked > _LONGEST_PAUSE:
            server.silence.begin(asked, self._left_alone(asked))

    def _left_alone(self, seconds: float) -> AgentError:
        until = iso(utc_now() + dt.timedelta(seconds=seconds))
        text = f"{self._label} asks to be left alone until {until}: the next run goes on"
        return AgentError("unavailable", text)

    def _send_once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str | bytes],
        body: bytes | None,
        *,
        repeatable: bool,
    ) -> Answer:
        import urllib3

        interrupt = None if self.is_ending else self._context.interrupt
        timeout = min(self._timeout, _FAREWELL) if self.is_ending else self._timeout
        is_tls = url.startswith("https:")
        may_break = repeatable or self.is_ending
        exchange = Exchange(timeout, interrupt, tls=is_tls, may_break=may_break)
        call = f"{method} {urllib.parse.urlsplit(url).path}"
        start = time.monotonic()
        try:
            with exchanging(exchange):
                answer = self._exchange(method, url, headers, body)
        except (
            urllib3.exceptions.HTTPError,
            _TooLongError,
            OSError,
            ValueError,
            zlib.error,
        ) as error:
            log.debug("%s: %s: %s", self._label, call, type(error).__name__)
            if exchange.is_cut_off and (repeatable or not exchange.sent):
                raise Interrupted from None
            raise self._explain(error, exchange, url) from None
        took = (time.monotonic() - start) * 1000
        log.debug("%s: %s: %s (%.0f ms)", self._label, call, answer.status, took)
        return answer

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str | bytes], body: bytes | None
    ) -> Answer:
        place = urllib.parse.urlsplit(url)
        proxy = self._proxy(f"{place.scheme}://{place.netloc}") if self._proxy else ""
        with self._pools_lock:
            if proxy not in self._pools:
                self._pools[proxy] = make_pools(self._tls, proxy)
        more: Any = {"User-Agent": f"citrixagent/{__version__}", "Accept-Encoding": "gzip"}
        response = self._pools[proxy].urlopen(
            method,
            url,
            body=body,
            headers={**more, **headers},
            redirect=False,
            retries=False,
            timeout=self._timeout,
            preload_content=False,
            decode_content=False,
        )
        try:
            return Answer(response.status, _body_of(response), response.headers)
        except BaseException:
            response.close()  # what was not read to its end must not be read by the next request
            raise

    def _explain(self, error: Exception, exchange: Exchange, url: str) -> TransportError:
        import urllib3

        causes = _causes(error)
        if distrust := next(filter(_is_distrust, causes), None):
            text = (
                f"its TLS certificate is not trusted ({_words(distrust)}): set "
                "ca_bundle to the PEM file of its CA, or, for an appliance, fingerprint"
            )
            if getattr(distrust, "verify_code", 0) in _OTHER_NAME and not self._proxy:
                text = self._misnamed(urllib.parse.urlsplit(url))
            message = f"{self._place(url)}: {text}"
            return TransportError("untrusted", message, sent=False, again=False)
        sent = exchange.sent and not any("Tunnel connection failed" in str(each) for each in causes)
        if isinstance(error, _TooLongError):
            text = f"its answer exceeds {_LONGEST_ANSWER // 1024**2} MB"
            message = f"{self._place(url)}: {text}"
            return TransportError("unavailable", message, sent=sent, again=False)
        if exchange.is_cut_off:
            text = "a signal came before its answer"
            return self._unreachable(url, text, sent=sent, again=False)
        if any(isinstance(each, TimeoutError) for each in causes):
            text = f"no {'answer' if sent else 'connection'} within {self._timeout} s"
            return self._unreachable(url, text, sent=sent, again=False)
        words = _words(causes[-1])
        if isinstance(error, urllib3.exceptions.ProxyError) and not sent:
            words = f"the proxy does not connect: {words}"
        return self._unreachable(url, words, sent=sent)

    def _place(self, url: str) -> str:
        """Return the label, with the host behind it where it does not say that."""
        host = urllib.parse.urlsplit(url).netloc
        return self._label if host in self._label else f"{self._label} ({host})"

    def _misnamed(self, address: urllib.parse.SplitResult) -> str:
        """Say for which names an appliance's certificate is, if not for the one it is asked by."""
        host, names = address.hostname or "", "other names"
        with contextlib.suppress(OSError, ValueError):
            place, interrupt = (host, address.port or 443), self._context.interrupt
            shown = _shown(tls_context(_UNVERIFIED), place, host, interrupt)
            found = read_certificate(shown.certificate)
            names = _listed({found.common_name, *found.names} - {""})
        return (
            f"its TLS certificate is for {names}, not for {host}: set citrix.host to one of its "
            "names, or pin it with citrix.fingerprint"
        )

    def _unreachable(
        self, url: str, text: str, *, sent: bool, again: bool = True
    ) -> TransportError:
        return TransportError(
            "unreachable",
            f"{self._place(url)}: {text}: check its address and the network between",
            sent=sent,
            again=again,
        )


def presented(
    address: tuple[str, int], server_name: str | None, key_type: str, interrupt: Interrupt
) -> Presented:
    """Return what a TLS server presents; OSError where that is nothing.

    Where a server holds certificates of both key types, the one of ``key_type`` is asked for (any,
    where that is empty): only TLS 1.2 lets a client choose, so a server without it is asked once
    more, without a choice. Nothing is verified: the certificate is compared with the one that was
    installed.
    """
    try:
        if key_type:
            context = tls_context(_UNVERIFIED)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("aRSA" if key_type.startswith("RSA") else "aECDSA")
            with contextlib.suppress(ssl.SSLError):
                return _shown(context, address, server_name, interrupt)
        return _shown(tls_context(_UNVERIFIED), address, server_name, interrupt)
    except (NoAnswerError, TimeoutError) as error:
        interrupt.check()
        raise NoAnswerError(_words(error)) from None


def probe(
    address: tuple[str, int], server_name: str | None, key_type: str, context: Context
) -> Presented:
    """Return what a virtual server presents, as ``presented`` does, from any thread.

    There are only so many at a time. An address that does not answer is asked once: behind a
    firewall that drops, everything else would wait for it again and again.
    """
    with context.probes:
        context.interrupt.check()
        if words := context.unanswered.get(address):
            raise NoAnswerError(words)
        try:
            return presented(address, server_name, key_type, context.interrupt)
        except NoAnswerError as error:
            context.unanswered[address] = error.words
            raise


def management_certificate(host: str, interrupt: Interrupt) -> bytes:
    """Return the DER certificate that an appliance itself presents; OSError where there is none."""
    return presented(split_host_port(host, 443), None, "", interrupt).certificate


def fingerprint_in_words(certificate: bytes) -> str:
    """Return a DER certificate's SHA-256 as citrix.fingerprint takes it."""
    digest = hashlib.sha256(certificate).hexdigest().upper()
    return ":".join(digest[index : index + 2] for index in range(0, len(digest), 2))


# ----- 9. NetScaler ---------------------------------------------------------------------------

_RESOURCES = {
    "load_balancing": "lbvserver",
    "gateway": "vpnvserver",
    "content_switching": "csvserver",
    "authentication": "authenticationvserver",
}
_SHOW = {
    "load_balancing": "show lb vserver",
    "gateway": "show vpn vserver",
    "content_switching": "show cs vserver",
    "authentication": "show authentication vserver",
}
_LOGIN_REFUSED = frozenset({354, 355, 384, 1025, 1045, 1046, 1047, 1244})
_FORBIDDEN = frozenset({371, 2138})
_SESSION_LOST = frozenset({444, 1027})
_CONFIGURATION = frozenset({"sslcertkey", "sslvserver_sslcertkey_binding"})
_CROWDED = frozenset({445, 446})
_BUSY = frozenset({293, 1461, 3591})
_CLUSTER_NODE = frozenset({1044, 1065, 1203})
_FILE_MISSING = frozenset({1632, 1639, 1647})
_CERTIFICATE_REFUSED = frozenset({1536, 1537, 1538, 1547, 3628, 3827})
_PAGE, _ROUND = 1000, 25  # rows
_PAGES, _ROWS = 1000, 100_000  # of one list
_ROLE_HOLDS = 2.0  # seconds for which a node of a pair is trusted to be what it was
_LIST_PATIENCE = 10  # requests that take all of their time, for one list
_EXISTS = 273
_NO_CERTKEY = 1540
_NO_BINDING = 1542
_NO_LINK = 1545
_ISSUER_MISMATCH = 1548
_FILE_EXISTS = 1642
_NO_FILE = frozenset({258, 1155, 3441})
_KEY_FILE = re.compile(r"[.](key|pfx|p12|pvk|pk8|p8)$", re.IGNORECASE)
_UNKNOWN_OBJECT = frozenset({278, 1088, 1090, 1232})
_NO_PAGES = frozenset({278, 1090, 1232, 1239, 1240})
_DONE_HERE = frozenset({349, 457, 458})  # carried out, but not on another node
NOT_OFFERED = _UNKNOWN_OBJECT | {257, 258, 461, 1239, 1240, 1544, 2760, 2761}
_NO_ECDSA = frozenset({1675, 1676})
_REMEDIES: Mapping[int, str] = {
    278: "this release does not take an argument that is needed",
    354: "check username and password; it was tried once only, because appliances lock accounts",
    355: "check username and password; it was tried once only, because appliances lock accounts",
    368: "name the primary node as host",
    445: "end sessions that are not needed, or raise the limit",
    446: "end sessions that are not needed, or raise the limit",
    1045: "log in to the appliance once and accept its agreement",
    1046: "log in to the appliance once and change the password",
    1047: "log in to the appliance once and change the password",
    1067: "enable the SSL feature: enable ns feature SSL",
    1203: "name the cluster IP address (CLIP) as host",
    1536: "the appliance cannot read the certificate file, in the form that it was named in",
    1537: "its key is encrypted, and the pass phrase is not known to this tool",
    1541: "it is used where none can be updated (VPN global, a service, SAML, AAA, a monitor): "
    "take it out there, or choose another certificate.name",
    1544: "a virtual server must be of a type that ends TLS, such as SSL",
    1548: "the intermediate is not the issuer of the certificate",
    1642: "a file of that name is there already: the next run takes another name",
    1647: "a file is missing on the appliance or on the other node of its HA pair",
    1674: "another SNI certificate there holds one of the names: unbind it first",
    1675: "this platform takes no ECDSA certificates: set certificate.key_type to RSA-2048",
    1676: "this platform does not take this curve: set certificate.key_type to ECDSA-P256 or "
    "RSA-2048",
    1677: "the links of the intermediates lead back to where they began: unlink one of them",
    2755: "check citrix.partition",
    3591: "another synchronization is running: the next run tries again",
    3592: "look at the connection of the two nodes; the next run tries again",
    3374: "AAA encrypts user data with it: choose another certificate.name",
    3375: "an ADFS proxy profile uses it: choose another certificate.name",
    3627: "enable it: set ssl vserver NAME -SNIEnable ENABLED, or in its SSL profile",
    3628: "SNI needs a common name: choose a certificate profile in SCM that keeps it",
    3629: "another SNI certificate there holds one of the names: unbind it first",
    3722: "it is the appliance's own certificate: choose another certificate.name",
    3777: "a certificate bundle is bound there: unbind it first",
    3585: "the certkey holds a certificate for another domain",
}


@functools.cache
def _appliance_time(text: str) -> dt.datetime | None:
    """Read a time such as ``Aug  5 07:21:16 2021 GMT``; None where it is none."""
    words = " ".join(text.replace("GMT", "+0000").split())
    try:
        return dt.datetime.strptime(words, "%b %d %H:%M:%S %Y %z")
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True)
class CertKey:
    """A row of sslcertkey; ``valid_from`` and ``valid_to`` are the appliance's own words."""

    name: str
    cert_file: str
    key_file: str
    link: str
    serial: str
    issuer: str
    valid_from: str
    valid_to: str
    key_type: str
    common_name: str
    names: tuple[str, ...]  # empty before 14.1, which does not tell them
    form: str  # PEM, DER or PFX
    subject: str  # a distinguished name in the appliance's words
    has_phrase: bool  # its key is encrypted

    @property
    def key_family(self) -> str:
        return self.key_type.partition("-")[0]

    @property
    def not_before(self) -> dt.datetime | None:
        """When it begins to be valid; None where the appliance does not tell."""
        return _appliance_time(self.valid_from)

    @property
    def not_after(self) -> dt.datetime | None:
        return _appliance_time(self.valid_to)


@dataclasses.dataclass(frozen=True)
class Binding:
    virtual_server: str
    certkey: str
    sni: bool
    ca: bool


@dataclasses.dataclass(frozen=True)
class VirtualServerRow:
    """A row of lbvserver, vpnvserver, csvserver or authenticationvserver."""

    name: str
    service_type: str
    address: str
    port: int

    def ends_tls(self) -> bool:
        kind = self.service_type.upper()
        return kind != "SSL_BRIDGE" and (kind.startswith(("SSL", "DTLS")) or kind == "HTTP_QUIC")


def _rows(data: Document, resource: str) -> list[Document]:
    """Return the rows under a resource's name: a list, an object or nothing, as releases differ."""
    value = data.get(resource)
    rows = value if isinstance(value, list) else [value]
    return [row for row in rows if isinstance(row, dict)]


def _is_true(value: object) -> bool:
    return str(value).lower() in {"true", "yes", "1", "enabled"}


def _row_key_type(row: Document) -> str:
    public_key, size = str(row.get("publickey") or "").lower(), row.get("publickeysize")
    if "ec" in public_key and "rsa" not in public_key:
        return f"ECDSA-P{size}"
    return f"RSA-{size}"


def _row_names(row: Document) -> tuple[str, ...]:
    words = re.split(r"[\s,]+", f"{row.get('sandns') or ''} {row.get('sanipadd') or ''}")
    names = [re.sub(r"^(DNS|IP|IP Address):", "", word).lower() for word in words]
    return tuple(name for name in names if name)


def common_name_in(name: str) -> str:
    """Return the common name in a distinguished name; empty where it has none."""
    found = re.search(r"(?:^|,|/)\s*CN\s*=\s*([^,/]+)", name)
    return found[1].strip() if found else ""


def _certkey(row: Document) -> CertKey:
    return CertKey(
        name=str(row.get("certkey") or ""),
        cert_file=str(row.get("cert") or ""),
        key_file=str(row.get("key") or ""),
        link=str(row.get("linkcertkeyname") or ""),
        serial=normal_serial(str(row.get("serial") or "")),
        issuer=str(row.get("issuer") or "").strip(),
        valid_from=str(row.get("clientcertnotbefore") or ""),
        valid_to=str(row.get("clientcertnotafter") or ""),
        key_type=_row_key_type(row),
        common_name=common_name_in(str(row.get("subject") or "")).lower(),
        names=_row_names(row),
        form=str(row.get("inform") or "PEM").upper(),
        has_phrase=bool(row.get("passcrypt")),
        subject=str(row.get("subject") or "").strip(),
    )


def _port(value: object) -> int:
    return int(str(value)) if re.fullmatch("[0-9]{1,5}", str(value)) else 0


def _twice(name: str) -> str:
    """Encode an object's name for a path, where NITRO decodes it twice."""
    return urllib.parse.quote(urllib.parse.quote(name, safe=""), safe="")


def _arguments(values: Mapping[str, str]) -> str:
    return "args=" + ",".join(
        f"{key}:{urllib.parse.quote(value, safe='')}" for key, value in values.items()
    )


def _code(data: Document | None, key: str) -> int | None:
    try:
        return int(str((data or {})[key]))
    except (KeyError, ValueError):
        return None


def _nitro_kind(code: int, status: int) -> Kind:
    if code in _FORBIDDEN or (status == 403 and not code):
        return "permission"
    if code in _LOGIN_REFUSED or code in _SESSION_LOST or status == 401:
        return "auth"
    if code in _CROWDED or status in {429, 500, 502, 503, 504}:
        return "unavailable"
    return "standby" if code == 368 else "appliance"


_IN_SSL_DIRECTORY = r"-fileLocation .?/nsconfig/ssl/?([^a-z0-9._/-]|$)"
COMMAND_POLICY = (
    r"(^(show ns (version|config)|stat HA node|save ns config)( |$))",
    r"(^switch ns partition )",
    r"(^sync (HA|cluster) files( |$))",
    r"(^show (lb|vpn|cs|authentication) vserver( |$))",
    r"(^show vpn global( |$))",
    r"(^show ssl (certKey|vserver|profile)( |$))",
    r"(^create ssl (rsakey|ecdsakey|certReq) )",
    r"(^(add|update|link|unlink) ssl certKey )",
    r"(^(bind|unbind) ssl vserver )",
    rf"(^(add|rm) system file .*{_IN_SSL_DIRECTORY})",
    rf"(^show system file (?!.*[.]key([^a-z0-9._-]|$)).*{_IN_SSL_DIRECTORY})",
)
"""The rules of README's command policy; no advice goes further."""


def _policy(refused: str, appliance: Appliance) -> str:
    """Return how to allow a command: by the one rule of README's policy that does."""
    for number, rule in enumerate(COMMAND_POLICY):
        pattern = rule.replace(SSL_DIRECTORY, appliance.ssl_directory)
        if re.search(pattern, refused, re.IGNORECASE):
            name = "citrixagent_" + "_".join(refused.split()[:3])
            return (
                f'allow it with: add system cmdPolicy {name} ALLOW "{pattern}" and: bind system '
                f'user "{appliance.username}" {name} {110 + number}'
            )
    return "give the account the command policy of README, Rights and secrets"


_ARGUMENT_KEYS: Mapping[str, str] = {  # in lower case, as releases differ
    "certkeyname": "certificate.name",
    "linkcertkeyname": "certificate.name",
    "commonname": "certificate.common_name",
    "organizationname": "certificate.organization",
    "organizationunitname": "certificate.organizational_unit",
    "localityname": "certificate.locality",
    "statename": "certificate.state",
    "countryname": "certificate.country",
    "emailaddress": "certificate.email",
    "subjectaltname": "certificate.subject_alternative_names",
    "partitionname": "citrix.partition",
    "filelocation": "citrix.ssl_directory",
    **dict.fromkeys(("filename", "keyfile", "reqfile", "cert", "key"), "citrix.ssl_directory"),
}
_ARGUMENT_ADVICE: Mapping[int, str] = {1075: "another", 1095: "a", 1097: "another", 1106: "shorter"}


def _argument_remedy(code: int, detail: str) -> str:
    """Return what to do about an argument: which one it is stands in the message's brackets."""
    found = re.search(r"\[(\w+)", detail)
    key = _ARGUMENT_KEYS.get(found[1].lower(), "") if found else ""
    if not key or code not in _ARGUMENT_ADVICE:
        return ""
    if code == 1106 and key.endswith("alternative_names"):
        return f"divide {key} among several profiles"
    article = "a " if code == 1106 else ""
    return f"choose {article}{_ARGUMENT_ADVICE[code]} {key}"


def content_of(detail: str) -> str:
    """Return the name under which a certificate is here already, of a 273; empty where not told."""
    found = re.search(r"\[certkeyName Contents,\s*(.*?)\]", detail)
    return found[1] if found else ""


def _alternative_name(name: str) -> str:
    with contextlib.suppress(ValueError):
        return f"IP:{ipaddress.ip_address(name)}"
    return f"DNS:{name}"


class NetScaler:
    """One NITRO session with one appliance.

    Every method is one call, made of the NITRO reference's resource of that name; each raises
    AgentError with what was asked (as the command line would say it), the appliance's code and
    message, and what to do about it.
    """

    def __init__(self, appliance: Appliance, host: str, context: Context) -> None:
        self.host = host
        self._base = f"https://{authority(*split_host_port(host, 443), 443)}"
        self._appliance = appliance
        self._context = context
        tls, timeout = appliance.tls, appliance.timeout
        self._transport = Transport(host, tls, timeout, context, slow_writes=True)
        self._session = ""
        self.warnings: list[str] = []  # what was done, but not everywhere
        self._is_watched = False  # a node of an HA pair: its role is looked at before it is written
        self._primary_since = -math.inf  # when its role was looked at
        self._is_trusted = False  # to have that role still, by the next request
        self._is_changed = False  # its configuration was written and not saved since the login
        self._is_lost = False  # it may have restarted, without what was not saved

    # Session

    def login(self) -> None:
        """Begin a session; a login that was refused is not tried again, whoever asks for it.

        Appliances lock accounts after a few wrong passwords.
        """
        self._session = ""
        who = (self._base, self._appliance.username)
        if refused := self._context.refused_logins.get(who):
            raise refused
        account = {"username": self._appliance.username}
        account["password"] = self._appliance.password.value
        try:
            data = self._patiently(
                lambda: self._request("POST", "login", "login", body={"login": account}), _CROWDED
            )
        except TransportError as error:
            raise self._with_fingerprint(error) from None
        except NitroError as error:
            if error.kind == "auth":
                self._context.refused_logins[who] = error
            raise
        session = str(data.get("sessionid") or "")
        if not is_header_value(session):
            raise self._error(0, "the login gave no session", 200, "login", "auth")
        self._session = session
        self._context.redactor.add(self._session)
        if self._appliance.partition:
            name = self._appliance.partition
            body = {"nspartition": {"partitionname": name}}
            asked = f"switch ns partition {name}"
            self._request("POST", "nspartition", asked, query="action=Switch", body=body)

    def _with_fingerprint(self, error: TransportError) -> TransportError:
        """Add to a refusal of TLS what the appliance presents, ready to paste."""
        if error.kind == "untrusted":
            with contextlib.suppress(OSError):
                presented = management_certificate(self.host, self._context.interrupt)
                seen = fingerprint_in_words(presented)
                text = f'{error.message} (it presents fingerprint: "{seen}")'
                return TransportError("untrusted", text, sent=False, again=False)
        return error

    def logout(self) -> None:
        """End the session; whatever comes of it changes nothing any more."""
        if self._session:
            self._transport.is_ending = True
            with contextlib.suppress(AgentError):
                self._request("POST", "logout", "logout", body={"logout": {}})
        self._session = ""
        self._transport.close()

    def clock_text(self) -> str:
        """Say that this machine's clock differs from the appliance's; empty where it does not."""
        return self._context.server(self._base).clock_text()

    def read_release(self) -> str:
        """Return the release, such as ``13.1``; empty where it cannot be read from the answer."""
        rows = _rows(self._get("nsversion", "show ns version"), "nsversion")
        found = re.search(r"NS(\d+\.\d+)", str(rows[0].get("version"))) if rows else None
        return found[1] if found else ""

    def is_standby(self) -> bool:
        """Tell whether this is a standby node; the role of one in a pair is watched from now on."""
        data = self._get("hanode", "stat HA node", root="stat")
        rows = _rows(data, "hanode")
        if not rows or str(rows[0].get("hacurstatus", "YES")).upper() == "NO":
            return False
        self._is_watched = True
        return str(rows[0].get("hacurmasterstate", "Primary")).lower() == "secondary"

    def trust_role(self, *, again: bool) -> None:
        """Have the role that was looked at do for one write more, where it is not old, or not.

        Before any other write it is looked at anew. Where many profiles take the same step one look
        does for several: what a node is told that has come to stand by is noticed by the next.
        """
        self._is_trusted = again

    def is_cluster(self) -> bool:
        rows = _rows(self._get("nsconfig", "show ns config"), "nsconfig")
        return bool(rows) and str(rows[0].get("systemtype")).lower() == "cluster"

    def has_unsaved_changes(self) -> bool:
        rows = _rows(self._get("nsconfig", "show ns config"), "nsconfig")
        return bool(rows) and _is_true(rows[0].get("configchanged"))

    @property
    def is_pair(self) -> bool:
        return self._is_watched

    def sync_files(self, *, cluster: bool = False) -> None:
        """Copy the SSL files to the other nodes, which read them when the configuration changes."""
        resource = "clusterfiles" if cluster else "hafiles"
        asked = "sync cluster files ssl" if cluster else "sync HA files ssl"
        body = {"mode": ["ssl"]}
        self._patiently(lambda: self._write(resource, asked, body, action="sync"), _BUSY)

    def sni_setting(self, virtual_server: str) -> tuple[bool, str]:
        """Tell whether a virtual server takes no SNI, and the SSL profile that says so, if any."""
        asked = f"show ssl vserver {virtual_server}"
        rows = _rows(self._get("sslvserver", asked, name=virtual_server), "sslvserver")
        profile = str(rows[0].get("sslprofile") or "") if rows else ""
        if profile:
            asked = f"show ssl profile {profile}"
            rows = _rows(self._get("sslprofile", asked, name=profile), "sslprofile")
        told = str(rows[0].get("snienable", "")).upper() if rows else ""
        return told == "DISABLED", profile

    def other_places(self, certkey: str) -> list[str]:
        """Return where a certkey is used besides virtual servers, as far as its row tells."""
        resource, asked = "sslcertkey_binding", f"show ssl certKey {certkey}"
        rows = _rows(self._get(resource, asked, name=certkey), resource)
        told = rows[0] if rows else {}
        services = _rows(told, "sslcertkey_service_binding")
        named = [str(row.get("servicename") or row.get("servicegroupname")) for row in services]
        profiles = [
            str(row.get("sslprofile")) for row in _rows(told, "sslcertkey_sslprofile_binding")
        ]
        return [
            *(f'the service "{name}"' for name in named),
            *(f'the SSL profile "{name}"' for name in profiles),
        ]

    def vpn_global_certkeys(self) -> set[str]:
        resource = "vpnglobal_sslcertkey_binding"
        rows = _rows(self._get(resource, "show vpn global"), resource)
        return {str(row.get("certkeyname")) for row in rows}

    def bundle_bindings(self) -> dict[str, str]:
        """Return, by virtual server, the certificate bundle that is bound there (since 14.1)."""
        resource = "sslvserver_sslcertkeybundle_binding"
        rows = _rows(self._get(resource, "show ssl vserver", query="bulkbindings=yes"), resource)
        return {str(row.get("vservername")): str(row.get("certkeybundlename")) for row in rows}

    # Reading

    def certkeys(self) -> dict[str, CertKey]:
        rows = self._pages("sslcertkey", "show ssl certKey")
        return {row.name: row for row in map(_certkey, rows)}

    def certkey(self, name: str) -> CertKey | None:
        try:
            data = self._get("sslcertkey", f"show ssl certKey {name}", name=name)
        except NitroError as error:
            if error.code == _NO_CERTKEY:
                return None
            raise
        rows = _rows(data, "sslcertkey")
        return _certkey(rows[0]) if rows else None

    def bindings(self, virtual_server: str = "") -> list[Binding]:
        """Return the certificate bindings of one virtual server, or of all."""
        resource = "sslvserver_sslcertkey_binding"
        asked = f"show ssl vserver {virtual_server}".strip()
        if virtual_server:
            rows = _rows(self._get(resource, asked, name=virtual_server), resource)
        else:
            rows = self._all_bindings(resource, asked)
        return [
            Binding(
                virtual_server=str(row.get("vservername") or virtual_server),
                certkey=str(row.get("certkeyname") or ""),
                sni=_is_true(row.get("snicert")),
                ca=_is_true(row.get("ca")),
            )
            for row in rows
        ]

    def _all_bindings(self, resource: str, asked: str) -> list[Document]:
        """Read the bindings of all virtual servers; who takes no pages here is asked without."""
        bulk = "bulkbindings=yes"
        try:
            return self._pages(resource, asked, f"{bulk}&")
        except NitroError as error:
            if error.code not in _NO_PAGES and error.status != 400:
                raise
        return _rows(self._get(resource, asked, query=bulk), resource)

    def virtual_servers(self, kind: str) -> dict[str, VirtualServerRow]:
        resource = _RESOURCES[kind]
        rows = self._pages(resource, _SHOW[kind])
        found = [
            VirtualServerRow(
                name=str(row.get("name") or ""),
                service_type=str(row.get("servicetype") or "SSL"),
                address=str(row.get("ipv46") or ""),
                port=_port(row.get("port")),
            )
            for row in rows
        ]
        return {row.name: row for row in found}

    def may_read(self, path: str) -> bool:
        """Tell whether a file is in the SSL directory and not named like a private key."""
        inside = self.absolute(path).startswith(f"{self._appliance.ssl_directory}/")
        return inside and not _KEY_FILE.search(path)

    def read_file(self, path: str) -> bytes | None:
        """Return a file of the SSL directory, or of a folder below it; None where there is none.

        This is the only way to a file, and it leads to nothing that ``may_read`` refuses.
        """
        if not self.may_read(path):
            raise AssertionError("private keys stay on the appliance")
        location, _, name = self.absolute(path).rpartition("/")
        arguments = _arguments({"filename": name, "filelocation": location})
        asked = f"show system file {name}"
        try:
            data = self._get("systemfile", asked, query=arguments)
        except NitroError as error:
            if error.code in _NO_FILE:
                return None
            raise
        rows = [row for row in _rows(data, "systemfile") if row.get("filecontent")]
        try:
            return base64.b64decode(str(rows[0]["filecontent"])) if rows else None
        except ValueError:
            text = f"{self.host}: {asked}: the answer holds no content that can be read"
            raise AgentError("appliance", text) from None

    def absolute(self, path: str) -> str:
        """Return a path as the appliance understands it: from its SSL directory, without ``..``."""
        return posixpath.normpath(posixpath.join(self._appliance.ssl_directory, path))

    def file_names(self) -> list[str]:
        """Return the names of the files in the SSL directory."""
        arguments = _arguments({"filelocation": self._appliance.ssl_directory})
        rows = _rows(self._get("systemfile", "show system file", query=arguments), "systemfile")
        return [str(row.get("filename") or "") for row in rows]

    # Writing

    def create_key(self, name: str, key_type: str) -> None:
        family, _, size = key_type.partition("-")
        if family == "RSA":
            body: Document = {"bits": int(size), "exponent": "F4"}
        else:
            body = {"curve": size.replace("P", "P_")}
        resource = "sslrsakey" if family == "RSA" else "sslecdsakey"
        asked = f"create ssl {resource.removeprefix('ssl')} {name}"
        body = {"keyfile": self._path(name), **body, "keyform": "PEM"}
        try:
            self._write(resource, asked, body, action="create")
        except NitroError as error:
            if family == "ECDSA" and error.code in _UNKNOWN_OBJECT:
                release = f"{self.host}: release {self.read_release() or '?'}"
                text = f"{release} cannot create ECDSA keys: choose an RSA key_type"
                raise AgentError("appliance", text) from None
            raise

    def create_csr(self, name: str, key_name: str, profile: Profile) -> None:
        subject = profile.subject
        body = {
            "reqfile": self._path(name),
            "keyfile": self._path(key_name),
            "countryname": subject.country,
            "statename": subject.state,
            "organizationname": subject.organization,
            "organizationunitname": subject.organizational_unit,
            "localityname": subject.locality,
            "commonname": subject.common_name,
            "emailaddress": subject.email,
            "subjectaltname": " ".join(map(_alternative_name, profile.names)),
            "digestmethod": "SHA256",
        }
        body = {key: value for key, value in body.items() if value}
        self._write("sslcertreq", f"create ssl certReq {name}", body, action="create")

    def upload(self, name: str, content: bytes) -> None:
        """Put a file into the SSL directory; one of that name and content may be there already."""
        body = {
            "filename": name,
            "filelocation": self._appliance.ssl_directory,
            "filecontent": base64.b64encode(content).decode(),
            "fileencoding": "BASE64",
        }
        try:
            self._write("systemfile", f"add system file {name}", body)
        except NitroError as error:
            if error.code != _FILE_EXISTS or self.read_file(name) != content:
                raise

    def delete_file(self, name: str) -> None:
        arguments = _arguments({"filelocation": self._appliance.ssl_directory})
        asked = f"rm system file {name}"
        try:
            self._request("DELETE", "systemfile", asked, name=name, query=arguments)
        except NitroError as error:
            if error.code not in _NO_FILE:
                raise

    def add_certkey(self, name: str, cert_file: str, key_file: str = "") -> None:
        """Add a certkey; NitroError 273 where the name or the certificate is there already."""
        body = {"certkey": name, "cert": self._path(cert_file), "inform": "PEM"}
        if key_file:
            body["key"] = self._path(key_file)
        self._write("sslcertkey", f"add ssl certKey {name}", body)

    def update_certkey(
        self, name: str, files: Sequence[str], *, form: str = "PEM", other_names: bool = False
    ) -> None:
        """Give a certkey a new certificate and key; bindings stay.

        ``files`` are those of the certificate and of the key; ``form``, how they are encoded, is
        always said: whether an appliance takes PEM or what it has had is not known.
        ``other_names``: the names are meant to change, so the appliance must not compare them.
        """
        cert_file, key_file = files
        body: Document = {"certkey": name, "cert": self._path(cert_file), "inform": form}
        if key_file and form != "PFX":
            body["key"] = self._path(key_file)
        if other_names:
            body["nodomaincheck"] = True
        self._write("sslcertkey", f"update ssl certKey {name}", body, action="update")

    def link(self, name: str, issuer: str) -> None:
        body = {"certkey": name, "linkcertkeyname": issuer}
        self._write("sslcertkey", f"link ssl certKey {name} {issuer}", body, action="link")

    def unlink(self, name: str) -> None:
        try:
            self._write(
                "sslcertkey", f"unlink ssl certKey {name}", {"certkey": name}, action="unlink"
            )
        except NitroError as error:
            if error.code != _NO_LINK:
                raise

    def bind(self, virtual_server: str, certkey: str, *, sni: bool) -> None:
        """Bind a certkey, for SNI or as the default of its key type; already bound is fine."""
        resource = "sslvserver_sslcertkey_binding"
        body: Document = {"vservername": virtual_server, "certkeyname": certkey}
        if sni:
            body["snicert"] = True
        asked = f"bind ssl vserver {virtual_server} -certkeyName {certkey}"
        try:
            self._request("PUT", resource, asked, body={resource: body})
        except NitroError as error:
            if error.code != _EXISTS:
                raise

    def unbind(self, virtual_server: str, certkey: str, *, sni: bool) -> None:
        """End a binding; that there is none is fine."""
        resource = "sslvserver_sslcertkey_binding"
        arguments = _arguments({"certkeyname": certkey}) + ",snicert:true" * sni
        asked = f"unbind ssl vserver {virtual_server} -certkeyName {certkey}"
        try:
            self._request("DELETE", resource, asked, name=virtual_server, query=arguments)
        except NitroError as error:
            if error.code != _NO_BINDING:
                raise

    def save(self) -> None:
        self._patiently(lambda: self._write("nsconfig", "save ns config", {}, action="save"), _BUSY)
        self._is_changed = False

    # Wire

    def _path(self, name: str) -> str:
        """Return how a file is named in a command: bare in the appliance's own SSL directory."""
        directory = self._appliance.ssl_directory
        return name if name.startswith("/") or directory == SSL_DIRECTORY else f"{directory}/{name}"

    def _pages(self, resource: str, asked: str, query: str = "") -> list[Document]:
        """Read a list, page by page, as long as one may be.

        How long a page may be is not documented, so one of a round length is followed by the next,
        whatever was asked for. A server that gives the whole list, whatever is asked, is fine.
        """
        rows: list[Document] = []
        before: list[Document] = []
        until = time.monotonic() + _LIST_PATIENCE * self._appliance.timeout
        for number in range(1, _PAGES + 1):
            page_query = f"{query}pagesize={_PAGE}&pageno={number}"
            page = _rows(self._get(resource, asked, query=page_query), resource)
            if not page or page == before:
                return rows
            rows += page
            if len(page) % _ROUND:
                return rows
            if len(rows) > _ROWS or time.monotonic() > until:
                break
            before = page
        raise AgentError("unavailable", f"{self.host}: {asked}: the list does not end")

    def _get(
        self, resource: str, asked: str, *, root: str = "config", name: str = "", query: str = ""
    ) -> Document:
        return self._request("GET", resource, asked, root=root, name=name, query=query)

    def _write(self, resource: str, asked: str, body: Document, *, action: str = "") -> Document:
        query = f"action={action}" if action else ""
        return self._request("POST", resource, asked, query=query, body={resource: body})

    def _patiently(self, call: Callable[[], Document], codes: frozenset[int]) -> Document:
        """Repeat a call that the appliance was too busy for."""
        for this in tries(self._context.interrupt):
            try:
                return call()
            except NitroError as error:
                if this.is_last or error.code not in codes:
                    raise
        raise AssertionError("the last try returns or raises")

    def _request(  # noqa: PLR0913 - the parts of one URL
        self,
        method: str,
        resource: str,
        asked: str,
        *,
        root: str = "config",
        name: str = "",
        query: str = "",
        body: Document | None = None,
    ) -> Document:
        if resource not in {"login", "logout"}:
            self._prepare(method, resource)
        url = f"{self._base}/nitro/v1/{root}/{resource}"
        url += f"/{_twice(name)}" if name else ""
        url += f"?{query}" if query else ""
        try:
            return self._send(method, url, asked, body)
        except NitroError as error:
            if error.code not in _SESSION_LOST or resource in {"login", "logout"}:
                raise
        # The session ended before the call was looked at: nothing was done yet.
        self._is_lost = self._is_changed
        self._check_session()
        self.login()
        return self._send(method, url, asked, body)

    def _prepare(self, method: str, resource: str) -> None:
        self._check_session()
        is_fresh = time.monotonic() - self._primary_since < _ROLE_HOLDS
        if method != "GET" and self._is_watched and not (self._is_trusted and is_fresh):
            self.check_role()
        self._is_trusted = False
        if method != "GET" and resource in _CONFIGURATION:
            self._is_changed = True

    def _check_session(self) -> None:
        """Raise AgentError once the session was lost after the configuration was changed.

        What was read may be gone then, as after a restart: all has to be looked at anew.
        """
        if self._is_lost:
            text = f"{self.host}: the session ended before the configuration was saved"
            way = "perhaps the appliance restarted; the next run looks at what is there and goes on"
            raise AgentError("unavailable", f"{text}: {way}")

    def check_role(self) -> None:
        """Raise AgentError (standby) where this node of a pair is no longer the primary."""
        start, self._primary_since = time.monotonic(), -math.inf
        if self.is_standby():
            text = f"{self.host} has become the standby node during this run"
            raise AgentError("standby", f"{text}: the next run goes on at the other node")
        self._primary_since, self._is_trusted = start, True

    def _send(self, method: str, url: str, asked: str, body: Document | None) -> Document:
        headers = {"Accept": "application/json"}
        if self._session:
            headers["Cookie"] = f"NITRO_AUTH_TOKEN={self._session}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = None if body is None else json.dumps(body).encode()
        answer = self._transport.send(
            method, url, repeatable=method == "GET", headers=headers, body=content
        )
        return self._judge(answer, asked, may_be_empty=method != "GET")

    def _judge(self, answer: Answer, asked: str, *, may_be_empty: bool) -> Document:
        """Return what a successful answer holds; the body is read before the status is judged.

        Writes are often answered with an empty body; what is read never is.
        """
        data = answer.json()
        code = _code(data, "errorcode") or 0
        ok = answer.status in {200, 201, 209}
        warned = data is not None and str(data.get("severity")).upper() in {"NONE", "WARNING"}
        readable = bool(data) or (may_be_empty and not answer.body.strip())
        if ok and (code == 0 or warned) and readable:
            return data or {}
        message = one_line(str((data or {}).get("message") or "no answer that NITRO would give"))
        if code in _DONE_HERE and may_be_empty:
            text = f"{self.host}: {asked}: {message} (NITRO {code}): done here, but not on"
            self.warnings.append(f"{text} {self.peer}: look at that node")
            return data or {}
        raise self._error(code, message, answer.status, asked)

    def take_warnings(self) -> list[str]:
        """Return what is to be told of the writes since the last time."""
        taken, self.warnings = self.warnings, []
        return taken

    @property
    def peer(self) -> str:
        """The other node, as far as its name is known."""
        others = [host for host in self._appliance.hosts if host != self.host]
        return others[0] if others else "the other node"

    def _error(
        self, code: int, message: str, status: int, asked: str, kind: Kind | None = None
    ) -> NitroError:
        remedy = self._remedy(code, message, asked)
        number = f"NITRO {code}, HTTP {status}" if code else f"HTTP {status}"
        text = f"{self.host}: {asked}: {message} ({number})"
        text += f": {remedy}" if remedy else ""
        kind = kind or _nitro_kind(code, status)
        return NitroError(kind, text, code=code, detail=message, status=status)

    def _remedy(self, code: int, message: str, asked: str) -> str:
        """Return what to do about a refusal: what the message is about counts as well."""
        if code in _FORBIDDEN:
            told = re.search(r"\[(.+)\]", message)
            return _policy(told[1] if told else asked, self._appliance)
        if code == _EXISTS and asked.startswith("update") and (other := content_of(message)):
            return f'this certificate is there as "{other}": set certificate.name to it'
        return _argument_remedy(code, message) or _REMEDIES.get(code, "")


# ----- 10. Sectigo ----------------------------------------------------------------------------

_PENDING_CODES = frozenset({0, -103, -109, -183, -1400})
_PASSING_WORDS = frozenset({"temporarily_unavailable", "server_error"})  # RFC 6749
_PASSING_CODES = frozenset({-1, -2, -14, -65, -129, -140, -195, -196})
_DCV_CODES = frozenset({-107, -715, -724, -727, -737, -1010, -1137})
_AUTH_CODES = frozenset({-16, -970})
_FORBIDDEN_CODES = frozenset({-3, -25, -37, -738})
_NOT_RENEWABLE_CODES = frozenset({-105, -110, -123, -124, -159, -180, -5101})
_REVOKED_CODES = frozenset({-110, -159})
_NOT_ISSUED = -102
_WAITING = ("Requested", "Approved", "Applied")  # as a list is asked for them
_TURNED_DOWN = frozenset({"DECLINED", "REJECTED", "INVALID", "REVOKED", "EXPIRED", "REPLACED"})
_TRUSTED_DOMAIN = ".sectigo.com"
_ACCEPT_PEM = "application/x-pem-file, */*;q=0.8"
_WRONG_TERM, _WRONG_PROFILE = frozenset({-36, -39}), frozenset({-111, -1001, -1021, -1023})
_WRONG_CSR = frozenset({-9, -10, -11, -13, -138, -141, -170, -194})
_WRONG_REQUEST = (
    _WRONG_TERM
    | _WRONG_PROFILE
    | _WRONG_CSR
    | frozenset({-7, -62, -126, -639, -843, -1002, -1112, -1140, -1450})
)
_LARGEST_PAGE, _MOST_PAGES = 200, 1000
_ORDERS = {"enroll": "enrollment", "renew": "renewal", "replace": "replacement"}
_SCM_REMEDIES: Mapping[int, str] = {
    -7: "give what is missing in the profile's enrollment block",
    -62: "give the field in the profile's enrollment.custom_fields",
    -141: "choose a larger key_type",
    -170: "choose an RSA key_type",
    -194: "choose an RSA key_type",
    -843: "have the organization validated in SCM",
}
_GIVE_PROFILE = (
    "give enrollment.profile_id in the profile, the number of the certificate profile in SCM"
)
_SCM_ARGUMENTS: Mapping[str, str] = {  # as SCM's words name what is missing
    "profileId": _GIVE_PROFILE,
    "customFields": "give enrollment.custom_fields in the profile",
    "externalRequester": "give enrollment.external_requester in the profile",
    "comments": "give enrollment.comments in the profile",
}


class Sectigo(Protocol):
    """What the program needs of SCM, whichever of its APIs is behind it."""

    replaces_in_place: bool  # a replacement keeps its id, which gives the old one for a while

    def log_in(self) -> None:
        """Show that the account is taken."""
        ...

    def prepare(self, profile: Profile) -> Sequence[str]:
        """Do all that can be done before an order: log in, check what can be checked.

        Returns what the operator is to be warned about. Whatever goes wrong here, nothing was
        ordered.
        """
        ...

    def waiting(self, profile: Profile, known: Sequence[str]) -> Sequence[str]:
        """Return the ids of orders for the common name that wait, but for those that are known."""
        ...

    def order(self, profile: Profile, change: Change) -> str:
        """Place the order of a change and return its id.

        Raises UnknownOutcomeError where it may have been placed all the same; after any other
        AgentError nothing was ordered.
        """
        ...

    def download(self, cert_id: str) -> bytes | None:
        """Return what was issued for an order (PEM, in any order); None while it is pending."""
        ...

    def status(self, cert_id: str) -> str:
        """Return SCM's word for the state of a certificate, upper-case and without spaces."""
        ...

    def left_alone_until(self, cert_id: str) -> float:
        """Return before when SCM is not asked for an order, by the monotonic clock."""
        ...

    def listed_revoked(self, at_most: int) -> set[str] | None:
        """Return the ids of what a list gives as revoked; None where it takes more requests."""
        ...

    def revoke(self, cert_id: str, reason: int, message: str) -> None:
        """Revoke a certificate; one that is revoked already is fine."""
        ...

    def revoke_previous(self, made: Generation, reason: int, message: str) -> None:
        """Revoke a certificate that was renewed or replaced, and no other that has its id."""
        ...

    def find(self, profile: Profile, change: Change, known: Sequence[str]) -> str | None:
        """Look for an order whose reply was lost; None where SCM has no such.

        ``known`` are the ids of other orders. Raises UnknownOutcomeError where it cannot be told.
        """
        ...


class UnknownOutcomeError(AgentError):
    """An order may or may not have been placed."""

    def __init__(self, reason: str) -> None:
        super().__init__("unknown_outcome", reason)


class NotOfferedError(AgentError):
    """SCM cannot renew or replace this certificate; a new enrollment is the way."""


def _words_of(value: object) -> str:
    """Return somebody's reason as a text; it may stand in an object of its own."""
    if isinstance(value, dict):
        value = value.get("message") or value.get("description")
    return one_line(value) if isinstance(value, str) else ""


def _reason_in(answer: Answer) -> str:
    """Return the reason in an answer: SCM's own, or that of whatever answered in its place."""
    data = answer.json() or {}
    if description := _words_of(data.get("description")):
        return description
    keys = ("title", "error", "message", "error_description", "detail")
    words = [_words_of(data.get(key)) for key in keys]
    return ": ".join(dict.fromkeys(filter(None, words))) or "no reason that could be read"


class Tokens:
    """The OAuth 2.0 access token of one REST account, shared by all threads."""

    def __init__(self, config: ScmConfig, redactor: Redactor) -> None:
        self._config = config
        self._redactor = redactor
        self._lock = threading.Lock()
        self._url = config.token_url
        self._current = ""
        self._fresh_until = 0.0
        self._silence = Silence()

    def get(self, transport: Transport) -> str:
        """Return a token that is good for a while; fetches one where needed.

        All threads wait for one fetch, and what it ends with is told to all.
        """
        with self._lock:
            self._silence.check()
            if not self._current or time.monotonic() >= self._fresh_until:
                self._fetch(transport)
            return self._current

    def refused(self, token: str, challenge: str) -> None:
        """Forget a token that SCM did not take, and heed where it says tokens come from.

        Raises AgentError (auth) where that is a host that the secret must not be sent to.
        """
        with self._lock:
            if token == self._current:
                self._current = ""
            found = re.search(r'authorization_uri="?([^",\s]+)', challenge)
            if found and found[1] != self._url:
                self._url = self._check_endpoint(found[1])

    def _check_endpoint(self, url: str) -> str:
        configured = map(parse_url, (self._config.url, self._config.token_url))
        known = {(each.host, each.port) for each in configured}
        place = "no host"
        with contextlib.suppress(ValueError):
            found = parse_url(url)
            place = authority(found.host, found.port, 443)
            is_known = (found.host, found.port) in known
            secure = found.scheme == "https" or (_is_loopback(found.host) and is_known)
            if secure and not found.user and (is_known or found.host.endswith(_TRUSTED_DOMAIN)):
                return str(found)
        raise AgentError(
            "auth",
            f"SCM names {place} as the source of tokens, which is neither configured "
            f"nor in *{_TRUSTED_DOMAIN}: set token_url in scm.yaml if you trust it",
        )

    def _fetch(self, transport: Transport) -> None:
        try:
            data = self._ask(transport)
        except AgentError as error:
            # Not the request that the token is for: that one was not sent.
            failure = AgentError(error.kind, error.message)
            self._silence.begin(self._config.timeout, failure)
            raise failure from None
        self._current = str(data["access_token"])
        self._redactor.add(self._current)
        told = str(data.get("expires_in"))
        lifetime = float(told) if re.fullmatch("[0-9]{1,9}", told) else 300.0
        self._fresh_until = time.monotonic() + lifetime - min(60.0, lifetime / 5)

    def _ask(self, transport: Transport) -> Document:
        """Return an answer that holds a token."""
        form = {
            "grant_type": "client_credentials",
            "client_id": self._config.client_id,
            "client_secret": self._config.client_secret.value,
        }
        content_type = "application/x-www-form-urlencoded"
        answer = transport.send(
            "POST",
            self._url,
            repeatable=True,
            headers={"Content-Type": content_type, "Accept": "application/json"},
            body=urllib.parse.urlencode(form).encode(),
        )
        data = answer.json()
        place = f"HTTP {answer.status} from {self._url}"
        is_page = answer.status < 400 and data is None
        data = data or {}
        if is_page or answer.status in _TRANSIENT or data.get("error") in _PASSING_WORDS:
            text = f"SCM's token endpoint gives no token now ({place}): the next run tries again"
            raise AgentError("unavailable", text)
        token = data.get("access_token")
        if answer.status == 200 and isinstance(token, str) and is_header_value(token):
            return data
        reason = one_line(str(data.get("error_description") or _reason_in(answer)))
        if answer.status in {404, 405}:
            text = f"SCM refused the login: {reason} ({place}): check token_url in scm.yaml"
            raise AgentError("auth", text)
        raise AgentError(
            "auth",
            f"SCM refused the login: {reason} (HTTP {answer.status}): check "
            "client_id and client_secret in scm.yaml, and that the REST account is active",
        )


def _names_to_send(profile: Profile) -> list[str]:
    """Return the alternative names for an order: never none, which SCM may take for "as before"."""
    common_name = profile.subject.common_name
    return [name for name in profile.names if name != common_name] or [common_name]


def _order_body(profile: Profile, order: Order) -> Document:
    enrollment, action = profile.enrollment, order.action
    lines = [line for line in (order.csr or "").splitlines() if not line.startswith("-----")]
    body: Document = {
        "csr": "".join(lines),
        "subjAltNames": _names_to_send(profile),
        "comments": order.note or enrollment.comments,
    }
    if action != "replace":
        body["externalRequester"] = enrollment.external_requester
        body["customFields"] = dict(enrollment.custom_fields)
    if action == "renew":
        body["profileId"] = enrollment.profile_id
        body["term"] = enrollment.term
    return {key: value for key, value in body.items() if value}


def _scm_kind(code: int | None, status: int) -> Kind:
    by_code: list[tuple[frozenset[int], Kind]] = [
        (_DCV_CODES, "dcv"),
        (_AUTH_CODES, "auth"),
        (_FORBIDDEN_CODES, "permission"),
        (_PASSING_CODES | _PENDING_CODES, "unavailable"),
    ]
    for codes, kind in by_code:
        if code in codes:
            return kind
    by_status: dict[int, Kind] = {401: "auth", 403: "permission"}
    passing = status < 300 or status in {302, 303, 307, 408, 425, 429} or status >= 500
    return by_status.get(status, "unavailable" if passing else "rejected")


def _not_offered(error: ScmError, action: Action) -> NotOfferedError | None:
    """Tell a certificate that cannot be renewed or replaced from a request that is wrong.

    Only SCM's own word counts, which has a code: a page in its place says nothing of a certificate.
    """
    if error.kind != "rejected" or error.code is None:
        return None
    gone = error.status == 404 or error.code in _NOT_RENEWABLE_CODES
    final = gone if action == "renew" else error.code not in _WRONG_REQUEST
    return NotOfferedError("rejected", error.message) if final and action != "enroll" else None


class ScmClient:
    """Authenticated requests to SCM: with a token, renewed once where it is refused, or a login.

    ``paths`` are those under which the API may be found, the likeliest first; ``proof`` is what is
    there in any case, and tells which of them it is.
    """

    def __init__(
        self,
        config: ScmConfig,
        paths: Sequence[str],
        proof: str,
        tokens: Tokens,
        context: Context,
    ) -> None:
        self._config = config
        self._paths = paths
        self._path = paths[0]
        self._proof = proof
        self._is_found = len(paths) == 1
        self._tokens = tokens
        self._context = context
        proxy = functools.partial(proxy_to, configured=config.proxy)
        self._lock = threading.Lock()  # held while it is looked for the path
        self._first = threading.Lock()  # held by who asks before SCM is known to answer
        self._answers = False
        self._transport = Transport("SCM", config.tls, config.timeout, context, proxy)

    def log_in(self) -> None:
        if self._config.client_id:
            self._tokens.get(self._transport)

    def check_clock(self) -> None:
        """Raise AgentError (state) where this machine's clock differs from SCM's by over a day."""
        for url in (self._config.url, self._config.token_url):
            if text := self._context.server(url).clock_text():
                raise AgentError("state", f"SCM: {text}: nothing is ordered until it is set")

    def silent_until(self) -> float:
        """Return before when nothing is asked that can wait, by the monotonic clock."""
        servers = [self._context.server(url) for url in (self._config.url, self._config.token_url)]
        return max(max(server.silence.until, server.rest.until) for server in servers)

    def get(self, path: str, accept: str = "application/json") -> Answer:
        return self._send("GET", path, {"Accept": accept}, None)

    def write(self, method: str, path: str, data: Document) -> Answer:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        return self._send(method, path, headers, json.dumps(data).encode())

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        tried = self._path
        with self._first_alone():
            answer = self._authorized(method, tried + path, headers, body)
        nowhere = answer.status == 404 and _code(answer.json(), "code") is None
        if nowhere and self._has_moved(tried):
            return self._authorized(method, self._path + path, headers, body)
        return answer

    @contextlib.contextmanager
    def _first_alone(self) -> Iterator[None]:
        """Let one thread ask alone until SCM has answered: one that is down costs one round."""
        if not self._answers:
            with self._first:
                if not self._answers:
                    yield
                    self._answers = True
                    return
        yield

    def _has_moved(self, tried: str) -> bool:
        """Look, once, under which path the API is; tell whether it is another one."""
        with self._lock:
            if not self._is_found:
                self._is_found = True
                proofs = ((path, path + self._proof) for path in self._paths)
                there = (path for path, proof in proofs if self._is_there(proof))
                self._path = next(there, self._path)
            return self._path != tried

    def _is_there(self, path: str) -> bool:
        return self._authorized("GET", path, {}, None).status != 404

    def _authorized(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        answer, token = self._send_once(method, path, headers, body)
        if answer.status != 401 or not token:
            return answer
        self._tokens.refused(token, answer.headers.get("WWW-Authenticate", ""))
        return self._send_once(method, path, headers, body)[0]

    def _send_once(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[Answer, str]:
        config, token = self._config, ""
        login: dict[str, str | bytes]
        if config.client_id:
            token = self._tokens.get(self._transport)
            login = {"Authorization": f"Bearer {token}"}
        else:  # bytes: a text would have to be Latin-1
            login = {"login": config.login.encode(), "password": config.password.value.encode()}
            login["customerUri"] = config.customer_uri.encode()
        address = f"{config.url}{path}"
        answer = self._transport.send(
            method,
            address,
            repeatable=method == "GET",
            headers={**headers, **login},
            body=body,
        )
        return dataclasses.replace(answer, address=address.partition("?")[0]), token


def _part(cert_id: str) -> str:
    return urllib.parse.quote(cert_id, safe="")


def _order_id(data: Document, key: str) -> str:
    found = data.get(key)
    if isinstance(found, bool) or not isinstance(found, (str, int)) or not str(found):
        raise UnknownOutcomeError(f"SCM's answer holds no {key}")
    return str(found)


def _is_plain(answer: Answer) -> bool:
    """Tell whether a good answer is one of SCM's: empty or data, no page and no error."""
    data = answer.json()
    return not answer.body.strip() if data is None else _code(data, "code") is None


def _not_revocable(what: str) -> ScmError:
    text = f"SCM refused the revocation: {what} is not issued there (code {_NOT_ISSUED})"
    text += ": look at it in SCM, and revoke it there"
    return ScmError("rejected", text, code=_NOT_ISSUED, status=400)


class RestApi(abc.ABC):
    """What both APIs of SCM have in common: what their answers mean."""

    def __init__(self, client: ScmClient) -> None:
        self._client = client
        self._not_before: dict[str, float] = {}  # when to ask for a certificate again, by its id

    def _remedies(self, _action: str) -> Mapping[int, str]:
        """Return remedies by SCM's code, for what is asked for."""
        return _SCM_REMEDIES

    def _refusal(self, answer: Answer, asked: str) -> ScmError:
        code, reason = _code(answer.json(), "code"), _reason_in(answer)
        kind = _scm_kind(code, answer.status)
        remedy = {
            "dcv": "validate the domain in SCM; the next run orders again",
            "auth": "check the credentials in scm.yaml",
            "permission": "give the REST account the right in SCM",
        }.get(kind) or self._remedy(code, reason, asked, answer.status)
        number = f"HTTP {answer.status} from {answer.address}" if code is None else f"code {code}"
        text = f"SCM refused the {_ORDERS.get(asked, asked)}: {reason} ({number})"
        text += f": {remedy}" if remedy else ""
        return ScmError(kind, text, code=code, status=answer.status)

    def _remedy(self, code: int | None, reason: str, asked: str, status: int) -> str:
        """Return what to do about a no; what is missing or wrong stands in SCM's words."""
        if code is None:
            elsewhere = "check url and api in scm.yaml: it may be the address of another API"
            return elsewhere if status in {301, 308, 404, 405} else ""
        if code in {-7, -1001}:
            for argument, remedy in _SCM_ARGUMENTS.items():
                if argument in reason:
                    return remedy
        return self._remedies(asked).get(code, "")

    def _place(self, path: str, data: Document, action: Action) -> Document:
        """Send what orders a certificate; the answer decides what is known about it.

        Raises UnknownOutcomeError where the order may have been placed all the same.
        """
        try:
            answer = self._client.write("POST", path, data)
        except TransportError as error:
            if error.sent:
                raise UnknownOutcomeError(error.message) from None
            raise
        busy = answer.status == 503 and answer.retry_after() is not None
        if busy or answer.status in {301, 307, 308} or 400 <= answer.status < 500:
            refusal = self._refusal(answer, action)
            raise _not_offered(refusal, action) or refusal
        if not 200 <= answer.status < 300:
            raise UnknownOutcomeError(f"SCM answered HTTP {answer.status}")
        if not _is_plain(answer):
            raise UnknownOutcomeError(f"SCM answered HTTP {answer.status} and what cannot be read")
        return answer.json() or {}

    def _download(self, cert_id: str, path: str, accept: str) -> bytes | None:
        """Return the certificates of an order; None while SCM has none, or is not to be asked."""
        if time.monotonic() < self._not_before.get(cert_id, 0.0):
            return None
        answer = self._client.get(path, accept)
        if answer.status == 200 and _PEM_BLOCK.search(answer.body):
            return answer.body
        pending = _code(answer.json(), "code") in _PENDING_CODES
        if answer.status in {400, 404} and pending:
            self._not_before[cert_id] = time.monotonic() + (answer.retry_after() or 0.0)
            return None
        raise self._refusal(answer, "download")

    def left_alone_until(self, cert_id: str) -> float:
        return max(self._not_before.get(cert_id, 0.0), self._client.silent_until())

    @abc.abstractmethod
    def status(self, cert_id: str) -> str:
        """Return SCM's word for the state of a certificate."""

    def _status(self, path: str) -> str:
        answer = self._client.get(path)
        status = (answer.json() or {}).get("status")
        if answer.status != 200 or not isinstance(status, str):
            raise self._refusal(answer, "status")
        return re.sub(r"[\s_\x00-\x1f\x7f]", "", status).upper()

    def _end(self, method: str, path: str, data: Document) -> bool:
        """Revoke; what is revoked already is fine. False: it is not issued, for whatever reason."""
        answer = self._client.write(method, path, data)
        code = _code(answer.json(), "code")
        if (200 <= answer.status < 300 and _is_plain(answer)) or code in _REVOKED_CODES:
            return True
        if code == _NOT_ISSUED:
            return False
        raise self._refusal(answer, "revocation")

    def _end_known(self, method: str, path: str, data: Document, cert_id: str) -> None:
        """Revoke what can be asked for; why it is not issued tells its status."""
        if not self._end(method, path, data) and self.status(cert_id) != "REVOKED":
            raise _not_revocable(cert_id)


class EnrollmentApi(RestApi):
    """The SSL Certificates REST API (version 25.11), as far as it is used; a Sectigo."""

    replaces_in_place = False

    def __init__(self, config: ScmConfig, tokens: Tokens, context: Context) -> None:
        super().__init__(ScmClient(config, ["/api/v1/certificates"], "", tokens, context))

    def log_in(self) -> None:
        self._client.log_in()

    def prepare(self, _profile: Profile) -> Sequence[str]:
        self.log_in()
        self._client.check_clock()
        return ()

    def waiting(self, _profile: Profile, _known: Sequence[str]) -> Sequence[str]:
        """Return none: this API has neither a list nor a search."""
        return ()

    def order(self, profile: Profile, change: Change) -> str:
        order = ordered(change)
        path = "" if order.action == "enroll" else f"/{_part(order.before or '')}/{order.action}"
        data = self._place(path, _order_body(profile, order), order.action)
        return _order_id(data, "certId")

    def download(self, cert_id: str) -> bytes | None:
        return self._download(cert_id, f"/{_part(cert_id)}", _ACCEPT_PEM)

    def status(self, cert_id: str) -> str:
        return self._status(f"/{_part(cert_id)}/status")

    def listed_revoked(self, _at_most: int) -> set[str] | None:
        """Return None: this API has no list."""
        return None

    def revoke(self, cert_id: str, reason: int, message: str) -> None:
        data = {"reasonCode": reason, "message": message}
        self._end_known("DELETE", f"/{_part(cert_id)}", data, cert_id)

    def revoke_previous(self, made: Generation, reason: int, message: str) -> None:
        self.revoke(made.cert_id or "", reason, message)

    def find(self, profile: Profile, change: Change, _known: Sequence[str]) -> str | None:
        """Give up: this API has neither a list nor a search."""
        raise UnknownOutcomeError(unknown_outcome_text(profile.name, change))

    def _remedies(self, action: str) -> Mapping[int, str]:
        """Return them: the account fixes profile and term, but a renewal may have to name them."""
        if action == "renew":
            term, profile = "choose an enrollment.term that the SCM profile has", _GIVE_PROFILE
        else:
            term = "choose another term for the REST account in SCM"
            profile = "choose another certificate profile for the REST account in SCM"
        missing = {-7: _GIVE_PROFILE} if action == "renew" else {}
        by_code = dict.fromkeys(_WRONG_TERM, term) | dict.fromkeys(_WRONG_PROFILE, profile)
        return {**_SCM_REMEDIES, **by_code, **missing}


def _by_age(cert_id: str) -> int:
    return int(cert_id) if re.fullmatch("[0-9]{1,30}", cert_id) else 0


def _offers_key(offered: Document, key_type: str) -> bool:
    """Tell whether a certificate type takes a kind of key; one that does not say takes all."""
    kinds = offered.get("keyTypes")
    if not isinstance(kinds, dict) or not kinds:
        return True
    family, _, size = key_type.partition("-")
    name, wanted = ("RSA", size) if family == "RSA" else ("EC", size.replace("P", "P-"))
    return wanted in [str(each) for each in kinds.get(name) or ()]


def _number(value: object) -> int | None:
    return int(str(value)) if str(value).isascii() and str(value).isdigit() else None


def _admin_enrollment(config: ScmConfig, term: int, profile: Profile, order: Order) -> Document:
    enrollment = profile.enrollment
    fields = [{"name": name, "value": value} for name, value in enrollment.custom_fields]
    body: Document = {
        "orgId": config.org_id,
        "csr": order.csr,
        "certType": config.cert_type,
        "term": term,
        "subjAltNames": ",".join(_names_to_send(profile)),
        "comments": enrollment.comments,
        "externalRequester": enrollment.external_requester,
        "customFields": fields,
    }
    return {key: value for key, value in body.items() if value}


class AdminApi(RestApi):
    """The SCM Admin API for SSL certificates (version 25.9), as far as it is used; a Sectigo.

    Release 26.7 has the same operations under v2 only.
    """

    replaces_in_place = True

    def __init__(self, config: ScmConfig, tokens: Tokens, context: Context) -> None:
        self._config = config
        self._type_list = f"/types?organizationId={config.org_id}"
        paths = ["/api/ssl/v1", "/api/ssl/v2"]
        super().__init__(ScmClient(config, paths, self._type_list, tokens, context))
        self._types: list[Document] = []
        self._types_lock = threading.Lock()
        self._term = config.term

    def log_in(self) -> None:
        """Log in, and read what SCM offers: without that right nothing can be ordered."""
        self._client.log_in()
        with self._types_lock:
            self._types = self._types or self._list(self._type_list, "list of types")[0]

    @property
    def offered(self) -> Sequence[Document]:
        """The certificate types that SCM offers, once logged in."""
        return self._types

    def prepare(self, profile: Profile) -> Sequence[str]:
        """Log in, and check certificate type, term and key type against what SCM offers.

        Public certificates become shorter by decree: of a term that is too long for SCM now the
        longest that it offers is taken.
        """
        self.log_in()
        wanted = str(self._config.cert_type)
        offered = next((each for each in self._types if str(each.get("id")) == wanted), None)
        if offered is None:
            ids = ", ".join(str(each.get("id")) for each in self._types) or "none"
            raise AgentError("config", f"scm.yaml: cert_type: SCM offers {ids}, not {wanted}")
        self._client.check_clock()
        if not _offers_key(offered, profile.key_type):
            text = f"the certificate type {wanted} of SCM does not take it"
            raise AgentError("config", f"{profile.name}: certificate.key_type: {text}")
        return self._choose_term(offered)

    def _choose_term(self, offered: Document) -> Sequence[str]:
        """Take the term in scm.yaml, or the longest where that is too long; return a warning."""
        terms = [term for term in map(_number, offered.get("terms") or ()) if term]
        wanted, longest = self._config.term, max(terms, default=0)
        if wanted in terms:
            self._term = wanted
            return ()
        told = ", ".join(map(str, terms)) or "no"
        text = f"type {self._config.cert_type} is offered for {told} days, not {wanted}"
        if not longest or wanted < longest:
            raise AgentError("config", f"scm.yaml: term: {text}")
        self._term = longest
        return (f"scm.yaml: term: {text}: {longest} days are ordered",)

    def order(self, profile: Profile, change: Change) -> str:
        order = ordered(change)
        if order.action == "enroll":
            body = _admin_enrollment(self._config, self._term, profile, order)
            return _order_id(self._place("/enroll", body, "enroll"), "sslId")
        before = _part(order.before or "")
        if order.action == "renew":
            data = self._place(f"/renewById/{before}", {"csr": order.csr}, "renew")
            return _order_id(data, "sslId")
        body = {
            "csr": order.csr,
            "reason": order.note or change.reason[:512],
            "commonName": profile.subject.common_name,
            "subjectAlternativeNames": _names_to_send(profile),
        }
        self._place(f"/replace/{before}", body, "replace")
        return order.before or ""

    def download(self, cert_id: str) -> bytes | None:
        accept = "application/octet-stream, */*;q=0.8"
        return self._download(cert_id, f"/collect/{_part(cert_id)}?format=x509", accept)

    def status(self, cert_id: str) -> str:
        return self._status(f"/{_part(cert_id)}")

    def revoke(self, cert_id: str, reason: int, message: str) -> None:
        body = {"reasonCode": str(reason), "reason": message}  # text since 25.9
        self._end_known("POST", f"/revoke/{_part(cert_id)}", body, cert_id)

    def revoke_previous(self, made: Generation, reason: int, message: str) -> None:
        """Name it by its serial number: a replacement has the id of what it replaced."""
        pairs = re.findall("..", shown_serial(made.serial))
        body = {"reasonCode": str(reason), "reason": message}
        if not self._end("POST", f"/revoke/serial/{_part(':'.join(pairs))}", body):
            raise _not_revocable(f"the certificate with the serial number {''.join(pairs)}")

    def find(self, profile: Profile, change: Change, known: Sequence[str]) -> str | None:
        """Look by common name for a certificate with the CSR's key; newest first.

        A replacement is looked for under the id that it keeps. One that is not issued shows no key:
        then it cannot be told whose order it is.
        """
        waiting, order = [], ordered(change)
        replaced = [order.before or ""] if order.action == "replace" else []
        for cert_id in replaced or self._named(profile, known):
            try:
                answer = self.download(cert_id)
            except ScmError as error:
                if error.kind != "rejected" or error.code is None:
                    raise  # not SCM's word that this id has no certificate
                continue
            if answer is not None and answers_csr(answer, order.csr or ""):
                return cert_id
            if answer is None or replaced:  # the old certificate stays until the new one is issued
                waiting.append(cert_id)
        if waiting:
            text = (
                f"SCM has orders for {profile.subject.common_name} that wait: {', '.join(waiting)}"
            )
            raise UnknownOutcomeError(f"{text}. {unknown_outcome_text(profile.name, change)}")
        return None

    def waiting(self, profile: Profile, known: Sequence[str]) -> Sequence[str]:
        found = [self._named(profile, known, status) for status in _WAITING]
        return list(itertools.chain.from_iterable(found))

    def listed_revoked(self, at_most: int) -> set[str] | None:
        found: set[str] = set()
        try:
            for ids, total in itertools.islice(self._pages({"status": "Revoked"}), at_most):
                found |= set(ids)
                if total is None or total > at_most * _LARGEST_PAGE:
                    return None
                if len(found) >= total:
                    return found
        except ScmError as error:
            if error.kind not in {"rejected", "permission"}:
                raise
        return None

    def _named(self, profile: Profile, known: Sequence[str], status: str = "") -> list[str]:
        """Return the ids of certificates for a common name, of all or in a state, newest first."""
        query = {"commonName": profile.subject.common_name}
        query |= {"status": status} if status else {}
        pages = itertools.islice(self._pages(query), _MOST_PAGES)
        ids = dict.fromkeys(itertools.chain.from_iterable(found for found, _ in pages))
        return sorted((each for each in ids if each not in known), key=_by_age, reverse=True)

    def _pages(self, query: Mapping[str, str]) -> Iterator[tuple[list[str], int | None]]:
        """Yield a list of certificates, page by page: their ids, and how long it is as a whole."""
        ids: set[str] = set()
        while True:
            page = urllib.parse.urlencode({**query, "size": _LARGEST_PAGE, "position": len(ids)})
            rows, total = self._list(f"?{page}", "list")
            found = [str(row["sslId"]) for row in rows if row.get("sslId")]
            yield found, total
            if set(found) <= ids:  # also of a server that gives the same page again
                return
            ids |= set(found)
            if len(ids) >= (total or 0) > 0:
                return

    def _list(self, path: str, name: str) -> tuple[list[Document], int | None]:
        """Return a page of a list, and how long the list is, where SCM tells."""
        answer = self._client.get(path)
        rows = answer.json_list()
        if answer.status != 200 or rows is None:
            raise self._refusal(answer, name)
        total = answer.headers.get("X-Total-Count", "")
        return rows, int(total) if total.isascii() and total.isdigit() else None

    def _remedies(self, _action: str) -> Mapping[int, str]:
        """Return them: type, term and organization stand in scm.yaml."""
        term = "choose a term in scm.yaml that SCM offers for cert_type"
        profile = "choose a cert_type in scm.yaml that SCM offers to org_id"
        by_code = dict.fromkeys(_WRONG_TERM, term) | dict.fromkeys(_WRONG_PROFILE, profile)
        return {**_SCM_REMEDIES, **by_code, -639: "check org_id in scm.yaml"}


def connect_to_scm(config: ScmConfig, tokens: Tokens, context: Context) -> Sectigo:
    """Return the client of the API that scm.yaml names."""
    backend = AdminApi if config.api == "admin" else EnrollmentApi
    return backend(config, tokens, context)


class RevocationCheck:
    """Asks SCM, for a whole run and from any thread, which certificates were revoked.

    Where a list takes fewer requests, only what it names is asked for; it may name more than it was
    asked for.
    """

    def __init__(self, scm: Sectigo) -> None:
        self.expected = 0  # that are asked for, at most
        self._scm = scm
        self._lock = threading.Lock()
        self._has_begun = False
        self._listed: set[str] | None = None

    def is_revoked(self, cert_id: str) -> bool:
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                # One page after another is no slower then than so many questions at a time.
                self._listed = self._scm.listed_revoked(self.expected // CONNECTIONS)
        is_named = self._listed is None or cert_id in self._listed
        return is_named and self._scm.status(cert_id) == "REVOKED"


# ----- 11. Store ------------------------------------------------------------------------------

_RECORD_VERSION = 2
_HEARD = 65536  # bytes of what a program writes that are kept
_PROGRAM = pathlib.Path(__file__).resolve()
_OWN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*-\d{14}\.(?:key|csr|crt)")  # see file_stem
_SERIAL = re.compile(r"[0-9A-F]*")
_VARIABLE = re.compile(r"\w_env[\"']?\s*:\s*[\"']?([A-Za-z_]\w*)")
_LARGEST_FILE = 1_000_000  # bytes
_LARGEST_ACCOUNT = 100_000_000  # bytes of what is told of all profiles in one file
_TEMPORARY = ".new-"  # what the names of files that are being written begin with


def read_file(path: pathlib.Path, *, follow: bool = True, largest: int = _LARGEST_FILE) -> bytes:
    """Return what a file holds, if it is a regular and small one; else OSError, without waiting.

    A FIFO has no end, a device may do anything when it is opened, a large file fills the memory.
    ``follow``: whether it may be a symbolic link.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    if not stat.S_ISREG(mode := path.stat(follow_symlinks=follow).st_mode):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if code == errno.EISDIR else "not a regular file")
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"larger than {largest // 1_000_000} MB")
    return data


def open_own(path: pathlib.Path, flags: int) -> int:
    """Open a file in state/, made where it is missing: a regular one, no link; else OSError."""
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file")
    os.fchmod(descriptor, 0o600)  # whatever the umask
    return descriptor


def write_private(path: pathlib.Path, text: str) -> None:
    """Replace a file in one step that survives a power cut; only the owner can read it."""
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}")
    try:
        descriptor = open_own(temporary, os.O_WRONLY | os.O_EXCL)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise AgentError("state", f"{path} cannot be written: {error.strerror}") from None


def _is_alive(process: str) -> bool:
    """Tell whether a process with such an id runs; what is no id is of nobody."""
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(process) != os.getpid()


def user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _user() -> str:
    return user_name(os.geteuid())


def load_packages() -> None:
    """Load what is loaded late otherwise: another user may not be able to read it."""
    import importlib.metadata

    import certifi
    import urllib3.connection
    import yaml
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from requests import utils

    importlib.metadata.version("requests")  # loads more, from Python 3.13 on
    loaded = (certifi, urllib3, yaml, x509, serialization, ec, rsa, utils)
    log.debug("%d packages", len(loaded))
    dt.datetime.strptime("2026 +0000", "%Y %z")
    b"a".decode("utf-8-sig").encode("idna")


def is_folder(path: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):  # a name that no folder can have
        return path.is_dir()
    return False


def become_owner(folder: pathlib.Path) -> str:
    """Give up root's rights where the state belongs to somebody else; say who that is then.

    A link is not followed: whoever can make one could choose a victim.
    """
    if os.geteuid() or not is_folder(folder) or folder.is_symlink():
        return ""
    made = folder.stat()
    if not made.st_uid:
        return ""
    load_packages()
    name, group = user_name(made.st_uid), made.st_gid
    with contextlib.suppress(KeyError):
        entry = pwd.getpwuid(made.st_uid)
        group = entry.pw_gid
        os.environ["HOME"] = entry.pw_dir
    os.initgroups(name, group)
    os.setgid(group)
    os.setuid(made.st_uid)
    os.environ["USER"] = os.environ["LOGNAME"] = name
    return name


@functools.cache
def _types_of(kind: Callable[..., Any]) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _read_as(kind: Any, data: object) -> Any:  # noqa: ANN401 - a type, and a value of it
    """Return JSON data as a value of the type of a record's field; ValueError where it is none."""
    if type(data) is kind:
        return data
    options = typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _types_of(kind)
        if not isinstance(data, dict) or data.keys() != hints.keys():
            raise ValueError("other fields")
        return kind(**{name: _read_as(hint, data[name]) for name, hint in hints.items()})
    if type(None) in options:
        return None if data is None else _read_as(options[0], data)
    if typing.get_origin(kind) is tuple and isinstance(data, list):
        return tuple(_read_as(options[0], each) for each in data)
    if data in options:
        return data
    raise ValueError("a value of another type")


def _check_files(files: Iterable[str]) -> None:
    """Raise ValueError where this tool cannot have made a file: it would delete somebody else's."""
    if not all(map(_OWN_FILE.fullmatch, files)):
        raise ValueError("a file that is not this tool's")


def _check_generation(made: Generation, *, is_read: bool) -> None:
    """Raise ValueError where a generation contradicts itself, or names files that cannot be."""
    files = (made.key_file, made.cert_file)
    if made.ours:
        _check_files(files)
    if any(_CONTROL.search(file) for file in files) or not _SERIAL.fullmatch(made.serial):
        raise ValueError("text that no file or serial number has")
    if made.ours and not (made.names and made.key_type and bool(made.serial) == bool(made.pem)):
        raise ValueError("something of ours that is not known")
    if made.ordered_at is not None:
        parse_iso(made.ordered_at)
    if is_read and made.pem and read_chain(made.pem)[0].serial != made.serial:
        raise ValueError("another certificate than the serial number says")


def _check_change(change: Change) -> None:
    """Raise ValueError where a change contradicts itself."""
    new, order = change.new, change.order
    parse_iso(change.started)
    if order is None and not new.pem:
        raise ValueError("a rollback to nothing")
    if order is None:
        return
    if order.sent is not None:
        parse_iso(order.sent)
    steps = (order.csr, order.sent, new.cert_id, new.pem)
    if any(after and not before for before, after in itertools.pairwise(steps)):
        raise ValueError("a step without the one before it")
    if order.csr and answers_csr(new.pem.encode(), order.csr) != bool(new.pem):
        raise ValueError("a certificate for another key")


def _check_record(record: Record) -> None:
    """Raise ValueError where a record contradicts itself.

    Of the previous generation the certificate is left unread: only a rollback needs it.
    """
    change = record.change
    for made in record.known:
        _check_generation(made, is_read=made is not record.previous)
    _check_files((*record.litter, *(change.made if change else ())))
    if change:
        _check_change(change)


def _digest_of(data: Document) -> str:
    return _sha256(json.dumps(data, sort_keys=True).encode())


def _read_record(text: bytes) -> Record | int:
    """Return a record, or the version of one that has another form.

    Raises ValueError where it is not what this tool wrote: a single character may be what keeps an
    order from being placed again, so nothing is guessed.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or type(version := data.pop("version", None)) is not int:
        raise ValueError("no record")
    if version != _RECORD_VERSION:
        return version
    if data.pop("sha256", None) != _digest_of(data):
        raise ValueError("not as it was written")
    record: Record = _read_as(Record, data)
    _check_record(record)
    return record


def _check_last_run(data: Document) -> None:
    """Raise what reading it would raise, where last-run.json is not as this program writes it."""
    for entry in data["profiles"].values():
        for key in ("seen", "not_before", "not_after", "due", "renews"):
            parse_iso(entry[key] or "1970-01-01T00:00:00Z")
        for printed in entry["printed"].values():
            parse_iso(printed)
        if order := entry["order"]:
            parse_iso(order["since"] + 0 * order["cert_id"])
        if error := entry["error"]:
            "".join((error["kind"], error["message"]))
    if run := data["run"]:
        parse_iso(run["finished"])
        parse_iso(run["last_success"] or run["started"])
        operator.index(run["exit_code"])


def _check_told(data: Document) -> None:
    """Raise what reading it would raise, where told.json is not as this program writes it."""
    for printed in data["warnings"].values():
        parse_iso(printed)
    for channel in data["channels"].values():
        for each in channel["told"].values():
            parse_iso(each["at"] + 0 * each["level"])


def no_home_text(home: pathlib.Path) -> str:
    return f"there is no folder {home}: name one with --home"


class Store:
    """The state folder: one record per profile, the agreement, the lock."""

    def __init__(self, home: pathlib.Path) -> None:
        self.folder = home / "state"

    def prepare(self) -> None:
        """Make the folder, for the owner alone, or see that it is his."""
        if not is_folder(self.folder.parent):
            raise AgentError("config", no_home_text(self.folder.parent))
        try:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(mode=0o700)
                self.folder.chmod(0o700)  # whatever the umask
            self._check(self.folder.stat())
        except OSError as error:
            me, home = _user(), self.folder.parent
            text = f"{self.folder} cannot be made or used as {me}: {error.strerror}"
            raise AgentError("state", f"{text}: let {me} write in {home}") from None

    def _check(self, made: os.stat_result) -> None:
        """Refuse a folder of somebody else, or one that others can write; close it to others."""
        place, me = shlex.quote(str(self.folder)), _user()
        if not stat.S_ISDIR(made.st_mode):
            raise AgentError("state", f"{self.folder} is not a folder: move it away")
        if made.st_uid != os.geteuid():
            owner = user_name(made.st_uid)
            text = f"{self.folder} belongs to {owner}, and this is {me}: run this as {owner}"
            raise AgentError("state", f"{text}, or give it to {me}: chown -R {me} {place}")
        if made.st_mode & 0o022:
            text = f"others can write in {self.folder}, and so decide what is done"
            raise AgentError("state", f"{text}: look at what is in it, then chmod 700 {place}")
        if made.st_mode & 0o077:
            self.folder.chmod(0o700)

    def _tidy(self) -> None:
        """Remove what killed runs were about to write."""
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            if not _is_alive(path.name.removeprefix(_TEMPORARY).partition("-")[0]):
                with contextlib.suppress(OSError):
                    path.unlink()

    # Records

    def load(self, profile: str) -> Record:
        """Return a profile's record; AgentError (state) where it cannot be relied on."""
        path = self._path(profile)
        try:
            record = _read_record(read_file(path, follow=False))
        except FileNotFoundError:
            return Record(profile)
        except OSError as error:
            raise AgentError("state", f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise AgentError(
                "state",
                f"{path} is damaged and was left as it is: put it back from a backup, or move it "
                f"away and, if an order is open in SCM, revoke or decline it there",
            ) from None
        if isinstance(record, int):
            way = "use the citrixagent.py that wrote it, or a newer"
            if record == 1:
                way = "no release wrote such: move it away and, if an order is open in SCM, "
                way += "decline it"
            raise AgentError("state", f"{path} is of version {record}: {way}")
        if record.profile != profile:
            owner = self._path(record.profile).name
            raise AgentError(
                "state",
                f"{path} is the record of the profile {record.profile} and was left as it is: "
                f"give it back its name, {owner}, or move it away",
            )
        return record

    def save(self, record: Record) -> None:
        data = dataclasses.asdict(record)
        head = {"version": _RECORD_VERSION, "sha256": _digest_of(data)}
        text = json.dumps({**head, **data}, indent=1)
        write_private(self._path(record.profile), text + "\n")

    def _path(self, profile: str) -> pathlib.Path:
        return self.folder / f"profile-{profile}.json"

    # What the last commands saw, and what was told of it

    def read_last_run(self) -> Document:
        return self._read("last-run.json", _check_last_run)

    def write_last_run(self, document: Document) -> None:
        self._write("last-run.json", document)

    def read_told(self) -> Document:
        return self._read("told.json", _check_told)

    def write_told(self, document: Document) -> None:
        self._write("told.json", document)

    def _read(self, name: str, check: Callable[[Document], None]) -> Document:
        """Return a file's JSON object; an empty one where there is no such file."""
        path = self.folder / name
        try:
            data: Document = json.loads(read_file(path, follow=False, largest=_LARGEST_ACCOUNT))
            if data["version"] == 1:
                check(data)
                return data
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise AgentError("state", f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            text = f"{path} is damaged: the next run writes it anew"
            raise AgentError("state", text) from None
        text = f"{path} is of version {data['version']}: use the citrixagent.py that wrote it"
        raise AgentError("state", text)

    def _write(self, name: str, document: Document) -> None:
        write_private(self.folder / name, json.dumps({"version": 1, **document}, indent=1) + "\n")

    # Lock

    @contextlib.contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """Keep other runs out; the kernel opens the lock when this process ends, in any way."""
        descriptor = self._locked()
        try:
            self._tidy()
            with contextlib.suppress(OSError):  # the lock holds on a full disk as well
                os.ftruncate(descriptor, 0)
                holder = f"process {os.getpid()}, {command}, since {iso(utc_now())}\n"
                os.pwrite(descriptor, holder.encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _locked(self) -> int:
        """Return the lock's descriptor; AgentError where it is held, or cannot be."""
        path = self.folder / "lock"
        try:
            descriptor = open_own(path, os.O_RDWR)
        except OSError as error:
            raise AgentError("state", f"{path} cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise AgentError("locked", f"another run is active: {holder}") from None
            text = f"{path} cannot be locked ({error.strerror})"
            remedy = "have state/ on a file system with locks, such as a local disk"
            raise AgentError("state", f"{text}: {remedy}") from None
        return descriptor

    # Agreement

    def acceptance(self, agreement: bytes) -> str:
        """Say when, by whom and how this text was accepted; empty where it was not."""
        path = self.folder / "eula.json"
        try:
            data = json.loads(read_file(path, follow=False))
            if data["sha256"] != _sha256(agreement):
                return ""
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return ""
        except OSError as error:
            raise AgentError("state", f"{path} cannot be read: {error.strerror}") from None
        with contextlib.suppress(KeyError):
            return f"accepted at {data['accepted']} by {data['user']} ({data['way']})"
        return "accepted"

    def accept(self, agreement: bytes, way: str) -> None:
        """Record who accepted which text, when, and in which way."""
        data = {
            "sha256": _sha256(agreement),
            "accepted": iso(utc_now()),
            "user": _user(),
            "way": way,
        }
        write_private(self.folder / "eula.json", json.dumps(data, indent=1) + "\n")


# ----- 12. Files on disk ----------------------------------------------------------------------


def read_agreement() -> bytes:
    try:
        return read_file(_PROGRAM.parent / "LICENSE.txt")
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is {error.strerror}"
        raise AgentError(
            "agreement",
            f"{_PROGRAM.parent / 'LICENSE.txt'} {what}: put it back beside the program",
        ) from None


def _first_line(text: str) -> str:
    """Return text up to its first line break, and no other sign that some take for one."""
    return text.partition("\n")[0].removesuffix("\r")


def _is_file(path: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):  # a name that no file can have
        return path.is_file()
    return False


@functools.cache
def _is_bundle(path: str) -> bool:
    """Tell whether a file holds certificates to trust; asked once per run, for it takes a while."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of a program; without a code it was killed: too slow, or it wrote too much."""

    code: int | None
    output: bytes
    errors: bytes

    @property
    def wrote_too_much(self) -> bool:
        return max(len(self.output), len(self.errors)) > _HEARD

    @property
    def words(self) -> str:
        """What it complained of: the first line of its errors."""
        return one_line(_first_line(self.errors.decode(errors="replace").lstrip()))


def _hear(
    process: subprocess.Popen[bytes], end: float, pause: Callable[[float], None], *, bounded: bool
) -> tuple[bytes, bytes]:
    """Return the beginning of what a process writes, until it ends or its time does."""
    heard: dict[Any, bytes] = {process.stdout: b"", process.stderr: b""}
    with selectors.DefaultSelector() as selector:
        for pipe in heard:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < end:
            pause(0)
            ready = selector.select(0.1)
            for key, _ in ready:
                part = os.read(key.fd, _HEARD)
                heard[key.fileobj] = (heard[key.fileobj] + part)[: _HEARD + 1]
                if not part:
                    selector.unregister(key.fileobj)
            left_others = not ready and process.poll() is not None  # they hold the pipes
            if left_others or (bounded and max(map(len, heard.values())) > _HEARD):
                break
    return heard[process.stdout], heard[process.stderr]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_program(  # noqa: PLR0913 - what a process is made of
    words: Sequence[str],
    folder: pathlib.Path,
    environment: Mapping[str, str],
    *,
    data: bytes = b"",
    seconds: float = 60,
    pause: Callable[[float], None] = time.sleep,
    bounded: bool = True,
) -> Ended:
    """Run a program without a shell, ``data`` on its standard input; OSError where there is none.

    It need not read and may leave others behind. It is killed, with what it started, when its time
    is over, when ``pause`` raises, or, where it is ``bounded``, when it writes without end.
    """
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    end = time.monotonic() + seconds
    with process:
        try:
            ended = Ended(None, *_hear(process, end, pause, bounded=bounded))
            too_much = bounded and ended.wrote_too_much
            while process.poll() is None and time.monotonic() < end and not too_much:
                pause(0.02)
            return dataclasses.replace(ended, code=process.poll())
        finally:
            if process.poll() is None:
                _kill(process)


_CREDENTIALS = re.compile(r"\$(?:CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})(?=/|$)")


def secret_variables(texts: Iterable[bytes]) -> set[str]:
    """Return the environment variables that hold secrets, as documents name them.

    They are looked for in the text, for what is wrong elsewhere in it must not give them away.
    """
    found = (name for text in texts for name in _VARIABLE.findall(text.decode(errors="replace")))
    return {*found, "CREDENTIALS_DIRECTORY"}


class DiskSource:
    """A YAML file on disk; a Source.

    ``secret_variables`` returns what no command gets to see of the environment.
    """

    def __init__(
        self,
        path: pathlib.Path,
        redactor: Redactor,
        secret_variables: Callable[[], Iterable[str]] = frozenset,
    ) -> None:
        self.file = str(path)
        self.notices: list[str] = []
        self._path = path
        self._redactor = redactor
        self._secret_variables = secret_variables

    def document(self) -> object:
        """Return what the file holds; ValueError says why it cannot be read."""
        try:
            text = read_file(self._path).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8 text") from None
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        return parse_yaml(text)

    def open_to_others(self) -> bool:
        return bool(self._path.stat().st_mode & stat.S_IROTH)

    def resolve(self, path: str) -> str:
        return str(self._path.parent / path)

    def resolve_bundle(self, path: str) -> str:
        found = self._path.parent / path
        try:
            read_file(found)
        except FileNotFoundError:
            raise ValueError(f"there is no file {found}") from None
        except OSError as error:
            raise ValueError(f"{found} cannot be read: {error.strerror}") from None
        if not _is_bundle(str(found)):
            raise ValueError(f"{found} is not a PEM file of certificates")
        return str(found)

    def fetch(self, way: str, value: str) -> str:
        ways = {
            "file": self._from_file,
            "env": self._from_environment,
            "command": self._from_command,
        }
        secret = ways[way](value)
        if way == "env":
            self._redactor.variables.add(value)
        self._redactor.add(secret)
        return secret

    def _secret_path(self, value: str) -> pathlib.Path:
        match = _CREDENTIALS.match(value)
        if not match:
            return self._path.parent / value
        if not (folder := os.environ.get("CREDENTIALS_DIRECTORY")):
            raise ValueError(
                "begins with $CREDENTIALS_DIRECTORY, which is not set: a systemd unit sets it with "
                "LoadCredential="
            )
        return pathlib.Path(folder + value[match.end() :])

    def _from_file(self, value: str) -> str:
        path = self._secret_path(value)
        try:
            text = read_file(path).decode("utf-8-sig")
            mode = path.stat().st_mode
        except UnicodeDecodeError:
            raise ValueError("names a file that is not UTF-8 text") from None
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
                # Not told where: what is no path may be the secret itself.
                folder = self._path.parent
                text = f"names a file that does not exist; a relative path starts from {folder}"
                raise ValueError(text) from None
            raise ValueError(f"names a file that cannot be read: {error.strerror}") from None
        if mode & stat.S_IROTH:
            remedy = f"chmod 600 {shlex.quote(str(path))}"
            self.notices.append(f"others can read {path}, which holds a secret: {remedy}")
        return _first_line(text)

    @staticmethod
    def _from_environment(value: str) -> str:
        if value not in os.environ:
            # What looks like no such name may be the secret itself.
            name = f" {value}" if re.fullmatch(r"[A-Z_][A-Z0-9_]*", value) else ""
            raise ValueError(f"names an environment variable{name} that is not set")
        return os.environ[value]

    def _from_command(self, value: str) -> str:
        words = as_command(value)
        hidden = self._secret_variables()
        environment = {key: text for key, text in os.environ.items() if key not in hidden}
        try:
            ended = run_program(words, self._path.parent, environment)
        except (OSError, ValueError) as error:  # its name is not told: it may be the secret itself
            reason = getattr(error, "strerror", None) or "it holds a zero byte"
            raise ValueError(f"names a command that cannot be run: {reason}") from None
        if ended.wrote_too_much:
            raise ValueError(f"names a command ({words[0]}) that prints more than 64 kB")
        if ended.code is None:
            raise ValueError(f"names a command ({words[0]}) that did not end within 60 s")
        if ended.code:
            words_of_it = self._without_secrets(ended)
            text = f"names a command that ended with {ended.code} ({words[0]})"
            raise ValueError(f"{text}: {words_of_it}" if words_of_it else text)
        try:
            return _first_line(ended.output.decode())
        except UnicodeDecodeError:
            text = f"names a command ({words[0]}) whose output is not UTF-8 text"
            raise ValueError(text) from None

    def _without_secrets(self, ended: Ended) -> str:
        """Return the first line of a command's errors, without anything that it printed besides."""
        printed = Redactor()
        for line in ended.output.decode(errors="replace").splitlines():
            printed.add(line.strip())
        line = _first_line(ended.errors.decode(errors="replace").lstrip())
        return one_line(printed.hide(self._redactor.hide(line)))[:500]


class OutlineSource(DiskSource):
    """A YAML file that is read for what it is about: nothing that it refers to is looked at."""

    def open_to_others(self) -> bool:
        return False

    def resolve_bundle(self, path: str) -> str:
        return path

    def fetch(self, way: str, value: str) -> str:
        return f"{way} {value}"


def _yaml_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return a folder's YAML files: none where it is missing, AgentError where nobody can tell."""
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        text = f"{folder}: cannot be read as {_user()}: {error.strerror}"
        raise AgentError("config", text) from None
    found = [path for path in found if path.suffix in {".yaml", ".yml"}]
    return sorted(path for path in found if not path.name.startswith("."))


def _without_ending(name: str) -> str:
    return name.removesuffix(".yaml").removesuffix(".yml")


class Programs:
    """Runs what the operator configured, without a shell, from one folder.

    No program gets to see the environment variables that hold secrets.
    """

    def __init__(
        self, folder: pathlib.Path, hidden: Iterable[str], interrupt: Interrupt, limit: float = 60
    ) -> None:
        self._folder = folder
        self._hidden = {*hidden, "CREDENTIALS_DIRECTORY"}
        self._interrupt = interrupt
        self._limit = limit

    def run(self, words: Sequence[str], data: bytes, extra: Mapping[str, str]) -> Ended:
        """Run a program with ``data`` on its standard input and wait for its end.

        It need not read, may write without end, may leave others behind; one that takes too long is
        killed. Raises AgentError (config) where it cannot be started.
        """
        inherited = {k: v for k, v in os.environ.items() if k not in self._hidden}
        try:
            return run_program(
                words,
                self._folder,
                {**inherited, **extra},
                data=data,
                seconds=self._limit,
                pause=self._interrupt.wait,
                bounded=False,
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "its name or environment holds a zero byte"
            raise AgentError("config", f"{words[0]} cannot be run: {reason}") from None


@dataclasses.dataclass
class Loaded:
    """What the configuration files gave: usable profiles, and problems by profile.

    ``read``: what could be read of broken ones. ``untold``: what is wrong with defaults, and stops
    no profile, because none takes it.
    """

    profiles: list[Profile] = dataclasses.field(default_factory=list)
    broken: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    read: dict[str, Profile] = dataclasses.field(default_factory=dict)
    untold: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Site:
    """An appliance of the configuration, and how a profile names it.

    ``citrix`` is the name of a file in appliances/, or a block without its password.
    """

    name: str
    appliance: Appliance
    citrix: str | Document


def _each_once(sites: Iterable[Site]) -> list[Site]:
    """Leave out the sites that lead to an appliance and partition that another one leads to."""
    found: list[Site] = []
    for site in sites:
        if not any(site.appliance.is_same_as(other.appliance) for other in found):
            found.append(site)
    return found


class Home:
    """The folder with scm.yaml, agent.yaml, profiles/ and appliances/."""

    def __init__(
        self, path: pathlib.Path, redactor: Redactor, kind: type[DiskSource] = DiskSource
    ) -> None:
        self.path = path
        self._folder = path / "profiles"
        self._kind = kind
        self._redactor = redactor
        self._appliances: dict[str, tuple[Appliance, list[str]]] = {}
        self._agent: tuple[Document, DiskSource] | None = None  # the defaults in agent.yaml
        self._elsewhere: list[pathlib.Path] = []  # profiles that do not lie in the folder
        self.warnings: list[str] = []  # that belong to no profile

    @functools.cached_property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables that hold secrets, and are nobody else's business."""
        files = [self.path / "scm.yaml", self.path / "agent.yaml", *self._elsewhere]
        for folder in (self._folder, self.path / "appliances"):
            with contextlib.suppress(AgentError):
                files += _yaml_files(folder)
        texts = []
        for file in files:
            with contextlib.suppress(OSError):
                texts.append(read_file(file))
        return frozenset(secret_variables(texts))

    def outlines(self, files: Iterable[pathlib.Path]) -> list[Profile]:
        """Read profiles for what they name, as far as they can be read: without their secrets."""
        blind = Home(self.path, Redactor(), OutlineSource)
        blind.load_settings()
        found = (blind._load_profile(path, []) for path in files)
        return [profile for profile in found if profile]

    def _read(self, path: pathlib.Path, problems: list[str]) -> tuple[object, DiskSource]:
        """Return a file's document and where it is from; why it cannot be read is a problem."""
        source = self._kind(path, self._redactor, lambda: self.secret_variables)
        try:
            return source.document(), source
        except ValueError as error:
            problems.append(f"{path}: {error}")
            return None, source

    def load_scm(self) -> tuple[ScmConfig | None, list[str]]:
        path, problems = self.path / "scm.yaml", list[str]()
        if not os.path.lexists(path):
            return None, [
                f"{path}: is missing: run citrixagent.py configure, or copy the sample here"
            ]
        document, source = self._read(path, problems)
        if problems:
            return None, problems
        config = parse_scm(document, source, problems)
        self.warnings += source.notices
        self._redactor.add(config.client_secret.value)
        self._redactor.add(config.password.value)
        password = parse_url(config.proxy).password if config.proxy else ""
        for each in (password, urllib.parse.unquote(password)):
            self._redactor.add(each)
        return (None if problems else config), problems

    def load_settings(self) -> tuple[Settings, list[str]]:
        """Return what agent.yaml says, which may be missing, and what must stop the program."""
        path, problems = self.path / "agent.yaml", list[str]()
        if not os.path.lexists(path):
            return Settings(), []
        document, source = self._read(path, problems)
        if document is None:  # also where all of it is commented out
            return Settings(), problems
        settings = parse_settings(document, source, problems)
        self.warnings += source.notices
        self._redactor.add(settings.ping_url.value)
        self._redactor.add(settings.mail.password.value if settings.mail else "")
        defaults = document.get("defaults") if isinstance(document, dict) else None
        if isinstance(defaults, dict):
            self._agent = defaults, source
        return settings, problems

    def defaults(self, problems: list[str]) -> Section | None:
        """Return what profiles take from agent.yaml, if it was read and gives anything."""
        if self._agent is None:
            return None
        defaults, source = self._agent
        return Section(defaults, source, problems, "defaults")

    def profile_files(self, wanted: Sequence[str]) -> list[pathlib.Path]:
        """Return the files of the named profiles, or of all; UsageError where there is no such."""
        if wanted:
            files = list(dict.fromkeys(self._find(name) for name in wanted))
            self._elsewhere = [path for path in files if path.parent != self._folder]
            return files
        return _yaml_files(self._folder)

    def _find(self, name: str) -> pathlib.Path:
        folder = self._folder
        places = [folder / name] if os.sep not in name else []
        for place in (*places, pathlib.Path(name)):
            for path in (place, pathlib.Path(f"{place}.yaml"), pathlib.Path(f"{place}.yml")):
                if _is_file(path):
                    # A link to the folder is another way to it, one to a file is another profile.
                    is_own = path.parent.resolve() == folder.resolve()
                    return folder / path.name if is_own else path.parent.resolve() / path.name
        hint = _did_you_mean(name, [path.stem for path in _yaml_files(folder)])
        raise click.UsageError(f'there is no profile "{name}" in {folder}{hint}')

    def load_profiles(self, files: Sequence[pathlib.Path]) -> Loaded:
        """Read profiles; the problems of all files are found in one go."""
        problems: dict[pathlib.Path, list[str]] = {path: [] for path in files}
        read = {path: self._load_profile(path, problems[path]) for path in files}
        stems = collections.Counter(path.stem for path in files)
        for path in files:
            if stems[path.stem] > 1 or self._has_namesake(path):
                text = f"{path}: another profile is named {path.stem} as well: rename one"
                problems[path].append(text)
        shared = twins(profile for profile in read.values() if profile)
        loaded = Loaded()
        for path, profile in read.items():
            problems[path] += [f"{path}: {text}" for text in shared.get(path.stem, ())]
            if profile and not problems[path]:
                loaded.profiles.append(profile)
            else:
                loaded.broken.setdefault(path.stem, []).extend(problems[path])
                loaded.read |= {path.stem: profile} if profile else {}
        told = {text for texts in problems.values() for text in texts}
        loaded.untold = [text for text in self._wrong_defaults() if text not in told]
        return loaded

    def _wrong_defaults(self) -> list[str]:
        problems: list[str] = []
        defaults = self.defaults(problems)
        return check_values(defaults, self._appliance) if defaults else []

    def _has_namesake(self, path: pathlib.Path) -> bool:
        """Tell whether a profile from elsewhere would share the records of one in profiles/."""
        endings = () if path.parent == self._folder else (".yaml", ".yml")
        return any((self._folder / f"{path.stem}{ending}").is_file() for ending in endings)

    def _load_profile(self, path: pathlib.Path, problems: list[str]) -> Profile | None:
        document, source = self._read(path, problems)
        if problems:
            return None
        root = Section(document, source, problems, below=self.defaults(problems))
        profile = parse_profile(path.stem, root, self._appliance, problems)
        self._redactor.add(profile.appliance.password.value)
        return profile

    def _appliance(self, name: str, problems: list[str]) -> Appliance:
        """Return the appliance of a file in appliances/; ValueError where there is no such file."""
        if name not in self._appliances:
            self._appliances[name] = self._load_appliance(name)
        appliance, found = self._appliances[name]
        problems.extend(found)
        return appliance

    def sites(self, wanted: Sequence[str]) -> tuple[list[Site], list[str]]:
        """Return the named files in appliances/, or all and the appliances of the profiles.

        Each appliance stands once. What is wrong with files in appliances/ is returned as well;
        UsageError where a named one does not exist.
        """
        files = _yaml_files(self.path / "appliances")
        stems = [path.stem for path in files]
        names = [_without_ending(name) for name in wanted]
        if missing := [name for name in names if name not in stems]:
            hint = _did_you_mean(missing[0], stems)
            folder = self.path / "appliances"
            raise click.UsageError(f'there is no appliance "{missing[0]}" in {folder}{hint}')
        found, problems = list[Site](), list[str]()
        for name in dict.fromkeys(names or stems):
            appliance, wrong = self._load_appliance(name)
            self._redactor.add(appliance.password.value)
            problems += wrong
            found += [] if wrong else [Site(name, appliance, name)]
        for path in [] if wanted else self.profile_files([]):
            found += self._own_site(path)
        return _each_once(found), problems

    def _own_site(self, path: pathlib.Path) -> list[Site]:
        """Return the appliance of a profile's own block; none where that is broken."""
        problems = list[str]()
        document, source = self._read(path, problems)
        block = document.get("citrix") if isinstance(document, dict) else None
        if not isinstance(block, dict):
            return []
        appliance = parse_appliance(Section(block, source, problems))
        self._redactor.add(appliance.password.value)
        told = {key: value for key, value in block.items() if key != "password"}
        return [] if problems else [Site(appliance.host, appliance, told)]

    def _load_appliance(self, name: str) -> tuple[Appliance, list[str]]:
        folder = self.path / "appliances"
        paths = [folder / f"{name}{ending}" for ending in ("", ".yaml", ".yml")]
        path = next((each for each in paths if _is_file(each)), None)
        if "/" in name:
            raise ValueError(f"must be the name of a file in {folder}, without a path")
        if path is None:
            hint = _did_you_mean(name, [each.stem for each in _yaml_files(folder)])
            raise ValueError(f"there is no file {folder / name}.yaml{hint}")
        problems = list[str]()
        document, source = self._read(path, problems)
        if problems:
            return NO_APPLIANCE, problems
        root = Section(document, source, problems)
        if not isinstance(document, dict) or "citrix" not in document:
            return parse_appliance(root), problems
        appliance = parse_appliance(root.section("citrix", required=True))
        root.close()
        return appliance, problems


# ----- 13. Appliance as seen ------------------------------------------------------------------

_INTERMEDIATE_PREFIX = "ca_"
_SOON = dt.timedelta(days=30)  # before an intermediate ends


def intermediate_name(certificate: Certificate) -> str:
    return _INTERMEDIATE_PREFIX + certificate.fingerprint[: _CERTKEY_LIMIT - 3]


def _holds(row: CertKey, certificate: Certificate) -> bool:
    return row.serial == certificate.serial and row.not_after in {None, certificate.not_after}


_LONG_NAMES = (14, 1)  # the release since which certkeys may have names of 63 characters


class View:
    """What one appliance says, read once and kept in step with what this run writes."""

    def __init__(self, appliance: Appliance, context: Context) -> None:
        self.appliance = appliance
        self.client = NetScaler(appliance, appliance.host, context)
        self.certkeys: dict[str, CertKey] = {}
        self.was_read = False
        self._context = context
        self._bindings: dict[str, list[Binding]] = {}
        self._virtual_servers: dict[str, dict[str, VirtualServerRow]] = {}
        self._files: list[str] | None = None
        self._is_cluster: bool | None = None
        self._is_synced = False
        self._not_synced: NitroError | None = None  # why, until the files change again
        self.lacks_files = False  # something was gone on with that another node did not get
        self._looks: dict[str, object] = {}  # what was looked at before an order, once for all
        self.unknown: dict[str, NitroError] = {}  # those looks that were refused or not offered
        self.refused_keys: dict[str, str] = {}  # kinds of key that the platform refused, and how

    def open(self, *, standby: bool = False) -> None:
        """Log in to the primary and read what all profiles need; ``standby``: any node will do.

        Of two nodes the first that is the primary is used.
        """
        failures: list[AgentError] = []
        for host in self.appliance.hosts:
            self.client = NetScaler(self.appliance, host, self._context)
            try:
                self._connect(standby=standby)
            except AgentError as error:
                self.close()
                failures.append(error)
            else:
                break
        else:
            raise next((each for each in failures if each.kind != "standby"), failures[0])
        self.certkeys = self.client.certkeys()
        self.was_read = True
        for binding in self.client.bindings():
            self._bindings.setdefault(binding.virtual_server, []).append(binding)

    def _connect(self, *, standby: bool) -> None:
        self.client.login()
        if not standby and self.client.is_standby():
            raise AgentError(
                "standby",
                f"{self.client.host} is the standby node of its HA pair: nothing was changed; name "
                "the primary, both nodes, or a SNIP with management access, as citrix.host",
            )
        log.info("%s: logged in", self.client.host)

    def close(self) -> None:
        self.client.logout()

    def files_changed(self) -> None:
        self._is_synced, self._not_synced = False, None

    def sync(self) -> None:
        """Have the other nodes of a pair or cluster get the files, where they may lack one.

        Once for the files of all profiles; so is what went wrong told to all.
        """
        if self._is_synced:
            return
        if self._not_synced:
            raise self._not_synced
        try:
            self._sync()
        except NitroError as error:
            self._not_synced = error
            raise
        self._is_synced = True

    def _sync(self) -> None:
        if self.client.is_pair:
            self.client.sync_files()
            self.client.check_role()  # what a standby node was told to copy is not copied
        elif self._in_cluster():
            self.client.sync_files(cluster=True)

    def save(self) -> None:
        self.client.save()
        if self.client.is_pair:
            self.client.check_role()  # what a standby node was told to save is not saved

    def _in_cluster(self) -> bool:
        if self._is_cluster is None:
            self._is_cluster = self.client.is_cluster()
        return self._is_cluster

    def refresh(self, certkey: str) -> CertKey | None:
        """Read one certkey again, after it was written."""
        row = self.client.certkey(certkey)
        self.certkeys.pop(certkey, None)
        if row:
            self.certkeys[certkey] = row
        return row

    def find(self, certificate: Certificate) -> CertKey | None:
        """Return the certkey that holds an intermediate, whatever its name."""
        own = self.certkeys.get(intermediate_name(certificate))
        candidates = [own] if own else list(self.certkeys.values())
        return next((row for row in candidates if _holds(row, certificate)), None)

    def issuer_of(self, row: CertKey) -> CertKey | None:
        """Return the certkey that holds the issuer of another's certificate, by its name.

        Of several the one is taken that is valid longest; the appliance compares the signature.
        """
        found = [
            each
            for each in self.certkeys.values()
            if each.subject == row.issuer != each.issuer and each.name != row.name
        ]
        return max(found, key=lambda each: str(each.not_after), default=None)

    def is_bound(self, server: VirtualServer, certkey: str) -> bool:
        return any(
            binding.certkey == certkey and binding.sni == server.sni and not binding.ca
            for binding in self._bindings.get(server.name, ())
        )

    def has_sni(self, server: VirtualServer) -> bool:
        """Tell whether a virtual server chooses by name, so that a name may get another one."""
        return any(binding.sni for binding in self._bindings.get(server.name, ()))

    def bindings_of(self, certkey: str) -> list[Binding]:
        rows = [binding for found in self._bindings.values() for binding in found]
        return [binding for binding in rows if binding.certkey == certkey]

    def refresh_bindings(self, virtual_server: str) -> None:
        """Read the bindings of one virtual server again, after they were written."""
        self._bindings[virtual_server] = self.client.bindings(virtual_server)

    def holds_key_of(self, binding: Binding, family: str) -> bool:
        """Tell whether a binding is of a server certificate with a key of this kind."""
        row = self.certkeys.get(binding.certkey)
        return not binding.ca and row is not None and row.key_family == family

    def taken(self, profile: Profile, held: Certificate | None) -> Iterator[Taken]:
        """Yield the places of the profile's virtual servers that other certkeys hold.

        They are looked for with the key type and the names that will be. Where the profile's own
        certkey is bound, only what changes can be in the way.
        """
        same_key = bool(held and held.key_type.partition("-")[0] == profile.key_family)
        for server in profile.virtual_servers:
            is_bound = self.is_bound(server, profile.certkey)
            if is_bound and same_key and not server.sni:
                continue
            kept = set(held.names) if held and is_bound and same_key else set()
            wanted = set(profile.names) - kept
            for each in self._rivals(server, profile):
                row = self.certkeys[each.certkey]
                names = wanted & {row.common_name, *row.names} if server.sni else set()
                if names or not server.sni:
                    shared = tuple(sorted(names))
                    yield Taken(server.name, each.certkey, server.sni, shared, beside=is_bound)

    def _rivals(self, server: VirtualServer, profile: Profile) -> list[Binding]:
        return [
            each
            for each in self._bindings.get(server.name, ())
            if each.certkey != profile.certkey
            and each.sni == server.sni
            and self.holds_key_of(each, profile.key_family)
        ]

    def elsewhere(self, profile: Profile) -> tuple[str, ...]:
        """Name the virtual servers that the certkey is bound to and the profile does not name."""
        named = {server.name for server in profile.virtual_servers}
        found = [each for each in self.bindings_of(profile.certkey) if not each.ca]
        return tuple(sorted({each.virtual_server for each in found} - named))

    def virtual_server(self, server: VirtualServer) -> VirtualServerRow:
        """Return a virtual server's row; AgentError where it is missing or ends no TLS."""
        if server.kind not in self._virtual_servers:
            self._virtual_servers[server.kind] = self.client.virtual_servers(server.kind)
        row = self._virtual_servers[server.kind].get(server.name)
        kind = server.kind.replace("_", " ")
        if row is None:
            text = f'{self.client.host} has no {kind} virtual server "{server.name}"'
            raise AgentError("appliance", f"{text}: {self._meant(server)}")
        if not row.ends_tls():
            raise AgentError(
                "appliance",
                f'the {kind} virtual server "{server.name}" on {self.client.host} is of type '
                f"{row.service_type}, which holds no certificate: name one of type SSL",
            )
        return row

    def _meant(self, server: VirtualServer) -> str:
        """Say what a virtual server that is not there may be: of another kind, or misspelt."""
        kinds: dict[str, str] = {}
        for kind in VIRTUAL_SERVER_KINDS:
            with contextlib.suppress(NitroError):  # what may not be looked at is no hint
                kinds |= dict.fromkeys(self.client.virtual_servers(kind), kind)
        if server.name in kinds:
            return f"its type is {kinds[server.name]}, under virtual_servers"
        near = difflib.get_close_matches(server.name, kinds, n=1, cutoff=0.6)
        if near:
            return f'did you mean "{near[0]}" ({kinds[near[0]]})?'
        return "check name and type under virtual_servers"

    def _look(self, what: str, look: Callable[[], T], unknown: T) -> T:
        """Look at something once; what is refused or not offered is not known and stops nothing."""
        if what not in self._looks:
            try:
                self._looks[what] = look()
            except NitroError as error:
                if error.kind != "permission" and error.code not in NOT_OFFERED:
                    raise
                log.info("%s is not known: %s", what, error.message)
                self.unknown[what] = error
                self._looks[what] = unknown
        return typing.cast("T", self._looks[what])

    def check_free(self, server: VirtualServer) -> None:
        """Refuse a virtual server that would refuse the binding, before anything is ordered."""
        name, host = server.name, self.client.host
        bundles = self._look("bundles", self.client.bundle_bindings, dict[str, str]())
        if name in bundles:
            text = (
                f'the virtual server "{name}" of {host} holds the bundle "{bundles[name]}", beside'
            )
            raise AgentError("state", f"{text} which no certkey can be bound: unbind it first")
        if not server.sni:
            return
        off, profile = self._look(
            f"SNI of {name}", lambda: self.client.sni_setting(name), (False, "")
        )
        if off:
            what = f'profile "{profile}"' if profile else f'vserver "{name}"'
            text = f'SNI is not enabled on the virtual server "{name}" of {host}'
            raise AgentError("appliance", f"{text}: set ssl {what} -SNIEnable ENABLED")

    def check_updatable(self, certkey: str, *, is_ours: bool) -> None:
        """Refuse a certkey that is used where none can be updated, before anything is ordered.

        One of ours was updated here or made here: only VPN global, which costs one look for all
        certkeys, is looked at again.
        """
        places = list[str]()
        if not is_ours:
            places = self._look(
                f"places of {certkey}", lambda: self.client.other_places(certkey), places
            )
        if certkey in self._look("VPN global", self.client.vpn_global_certkeys, set[str]()):
            places = [*places, "VPN global"]
        if places:
            text = (
                f'the certkey "{certkey}" is used by {_listed(places)} of {self.client.host}, where'
            )
            way = "take it out there, or choose another certificate.name"
            raise AgentError("state", f"{text} it cannot be updated: {way}")

    def check_name(self, certkey: str) -> None:
        """Refuse a name that the release does not take, before a certificate is ordered.

        Where a certkey with a name as long is there already, it does take it.
        """
        longest = max((len(name) for name in self.certkeys), default=0)
        if len(certkey) <= _CERTKEY_LIMIT or longest > _CERTKEY_LIMIT:
            return
        release = self._look("the release", self.client.read_release, "")
        if release and tuple(map(int, release.split("."))) < _LONG_NAMES:
            text = (
                f"certificate.name has {len(certkey)} characters, and {self.client.host} (release"
            )
            raise AgentError("config", f"{text} {release}) takes {_CERTKEY_LIMIT}: choose another")

    def note_refused(self, error: NitroError, key_type: str) -> None:
        """Remember that the platform refuses a kind of key: no later profile need pay for that."""
        if error.code in _NO_ECDSA:
            refused = ("ECDSA-P256", "ECDSA-P384") if error.code == 1675 else (key_type,)
            self.refused_keys |= dict.fromkeys(refused, error.message)

    def expiring(self, certkey: str, now: dt.datetime) -> Iterator[str]:
        """Say which intermediates above a certkey have expired or soon will."""
        passed: list[str] = []
        row = self.certkeys.get(certkey)
        while row and row.link and row.link not in passed:
            passed.append(row.link)
            row = self.certkeys.get(row.link)
            if row and row.not_after and row.not_after - now <= _SOON:
                done = "expired" if row.not_after <= now else "expires"
                yield f"the intermediate {row.name} {done} at {iso(row.not_after)}"

    def file_names(self) -> Sequence[str]:
        """Return the files in the SSL directory at the first look; none where they are not told."""
        if self._files is None:
            self._files = []
            with contextlib.suppress(NitroError):
                self._files = self.client.file_names()
        return self._files

    def files_in_use(self) -> set[str]:
        files = [file for row in self.certkeys.values() for file in (row.cert_file, row.key_file)]
        return {file.rpartition("/")[2] for file in files}


def from_row(row: CertKey) -> Certificate | None:
    """Return what a row of sslcertkey tells about a certificate; None where it has no dates."""
    if not (row.not_before and row.not_after):
        return None
    return Certificate(
        pem="",
        serial=row.serial,
        issuer=row.issuer,
        common_name=row.common_name,
        names=row.names,
        key_type=row.key_type,
        not_before=row.not_before,
        not_after=row.not_after,
    )


def known_certificate(record: Record, row: CertKey) -> Certificate | None:
    """Return a certkey's certificate from a record, where that knows it."""
    known = (record.change and record.change.new.pem, record.installed and record.installed.pem)
    for pem in (*known, record.found):
        if pem and (leaf := read_chain(pem)[0]).serial == row.serial:
            return leaf
    return None


def held_certificate(record: Record, row: CertKey | None) -> Certificate | None:
    """Return what a certkey holds, as far as that is known without asking."""
    return (known_certificate(record, row) or from_row(row)) if row else None


_LIKE_A_KEY = re.compile(r"(^|[^a-z0-9])(priv(ate)?)?key([^a-z0-9]|$)", re.IGNORECASE)


def _holds_no_key(view: View, row: CertKey) -> bool:
    """Tell whether the certificate file of a certkey is sure to hold no private key.

    PFX does; a file that some certkey names as its key does; a certkey that names no key may have
    it in the file of its certificate; and what is called a key may be one.
    """
    path = view.client.absolute(row.cert_file)
    keys = {view.client.absolute(each.key_file) for each in view.certkeys.values() if each.key_file}
    told = row.form in {"PEM", "DER"} and row.key_file and path not in keys
    return bool(told and not _LIKE_A_KEY.search(path.rpartition("/")[2]))


def _read_certificate_of(view: View, row: CertKey) -> Certificate | None:
    """Read a certkey's file; None where it must not be read, cannot be had or is something else."""
    if not (view.client.may_read(row.cert_file) and _holds_no_key(view, row)):
        return None
    try:
        found = read_certificate(view.client.read_file(row.cert_file) or b"")
    except (NitroError, ValueError) as error:
        log.info("%s: %s", row.name, error)
        return None
    return found if found.serial == row.serial else None


def read_installed(view: View, row: CertKey) -> Certificate:
    """Read the certificate of a certkey that this tool did not install; never a private key.

    Where its file is not to be had, the row of sslcertkey must do.
    """
    if found := _read_certificate_of(view, row) or from_row(row):
        return found
    host = view.client.host
    raise AgentError("appliance", f"{host}: the certificate of {row.name} cannot be read")


def _order_status(change: Change, order: Order) -> str:
    if order.refused:
        return order.refused
    if change.new.cert_id:
        return "issued" if change.new.pem else "pending"
    return "unknown outcome" if order.sent else "not sent"


def order_document(change: Change | None) -> Document | None:
    """Return what is told of an open order; None where there is none."""
    if change is None or change.order is None:
        return None
    return {
        "cert_id": change.new.cert_id,
        "action": change.order.action,
        "since": change.order.sent or change.started,
        "status": _order_status(change, change.order),
    }


def _open_order(record: Record) -> Document | None:
    """Return what waits at SCM: an order that it has and has not turned down."""
    order = order_document(record.change)
    return order if order and order["status"] in {"pending", "issued"} else None


def profile_standing(
    profile: Profile,
    record: Record,
    certificate: Certificate | None,
    *,
    failed: bool,
    revoked: str | None = None,
) -> Standing:
    """Return how a profile stands by its record and what its certkey holds.

    ``revoked``: the serial of a certificate of which SCM says so.
    """
    order, installed = record.change.order if record.change else None, record.installed
    held = certificate.serial if certificate else ""
    facts = {
        "failed": failed,
        "revoked": bool(held) and held in {record.revoked, revoked},
        "declined": bool(order and order.refused),
        "rolled back": record.rolled_back and installed is not None and installed.serial == held,
    }
    marks = [mark for mark, holds in facts.items() if holds]
    return standing(profile, record, certificate, _open_order(record), marks, utc_now())


def is_addressable(host: str, port: int) -> bool:
    """Tell whether a virtual server has an address of its own: others are reached through those."""
    with contextlib.suppress(ValueError):
        return port > 0 and not ipaddress.ip_address(host).is_unspecified
    return port > 0 and bool(host)


class Prover:
    """Compares what the virtual servers of a profile present with what was installed."""

    def __init__(self, profile: Profile, view: View, context: Context) -> None:
        self._profile = profile
        self._view = view
        self._context = context

    def look_at(
        self, server: VirtualServer, chain: Sequence[Certificate]
    ) -> Callable[[], tuple[str, bool]]:
        """Return what says what is wrong there (empty: nothing), and whether it presented that.

        Whoever calls that, in any thread, asks nothing of the appliance.
        """
        host, port = server.connect or self._address_of(server)
        return functools.partial(self._wrong_at, server, (host, port), chain)

    def _wrong_at(
        self, server: VirtualServer, address: tuple[str, int], chain: Sequence[Certificate]
    ) -> tuple[str, bool]:
        """Say what is wrong; it is looked at a few times: an appliance takes a moment."""
        host, port = address
        if not is_addressable(host, port):
            text = (
                f'the virtual server "{server.name}" has no address of its own, so what it presents'
            )
            return f"{text} was not verified: set connect in the profile", False
        found = ("", False)
        for _ in tries(self._context.interrupt):
            try:
                found = self._compare(server, address, chain)
            except NoAnswerError as error:
                place = f'the virtual server "{server.name}" at {host}:{port}'
                return f"{place} could not be verified: {error.words}", False
            if not found[0]:
                break
        return found

    def _address_of(self, server: VirtualServer) -> tuple[str, int]:
        row = self._view.virtual_server(server)
        return row.address, row.port

    def _server_name(self) -> str:
        """Return a name that the certificate serves and nothing bound beside a wildcard does."""
        return self._profile.subject.common_name.replace("*", "citrixagent", 1)

    def _compare(
        self, server: VirtualServer, address: tuple[str, int], chain: Sequence[Certificate]
    ) -> tuple[str, bool]:
        """Say what is wrong; NoAnswerError where to look again would be of no use."""
        wanted = chain[0]
        name = None if not server.sni and self._view.has_sni(server) else self._server_name()
        place = f'the virtual server "{server.name}" at {address[0]}:{address[1]}'
        try:
            shown = probe(address, name, wanted.key_type, self._context)
            found = read_certificate(shown.certificate)
        except NoAnswerError:
            raise
        except OSError as error:
            return f"{place} could not be verified: {_words(error)}", False
        except ValueError:
            return f"{place} could not be verified: it presents no certificate", False
        if found.serial != wanted.serial or wanted.pem not in {"", found.pem}:
            what = f"serial {shown_serial(found.serial)}, {one_line(found.common_name)}"
            return f"{place} presents another certificate ({what})", True
        missing = missing_of(chain, shown.chain) if shown.chain else []
        text = f"{place} presents the certificate without {', '.join(missing)} of its chain"
        return text * bool(missing), True


# ----- 14. Ordering ---------------------------------------------------------------------------

_OF_THE_SERVER = frozenset({"unreachable", "untrusted", "unavailable", "auth"})  # for all alike
_STATUS_FIRST, _STATUS_EVERY = 3, 5  # questions; the status tells what an order waits for
_ASK_AGAIN, _ASK_OFTEN, _ASK_SELDOM = 2.0, 6.25, 30.0  # seconds between two questions for one order
_STATUS_TEXTS = {
    "REQUESTED": "awaiting approval in SCM",
    "APPROVED": "approved, being issued by the CA",
    "SAAPPROVED": "approved, being issued by the CA",
    "APPLIED": "being issued by the CA",
}


@dataclasses.dataclass
class Result:
    """What happened to one profile, for the report: written as it happens, never read back."""

    profile: str
    appliance: str = ""
    certkey: str = ""
    outcome: Outcome = "unchanged"
    reason: str = ""
    steps: list[str] = dataclasses.field(default_factory=list)
    not_after: str | None = None
    serial: str | None = None
    cert_id: str | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    note: str = ""  # at the end of the line, of a revocation
    error: AgentError | None = None
    preview: list[str] = dataclasses.field(default_factory=list)  # a dry run's lines
    standing: Standing | None = None  # as far as it was looked at

    def fail(self, error: AgentError) -> None:
        self.outcome = "failed"
        self.error = error

    def show(self, certificate: Certificate) -> None:
        self.not_after = iso(certificate.not_after)
        self.serial = shown_serial(certificate.serial)


class Pace:
    """At which ages orders are asked for, in seconds: seldom, but soon after they are issued.

    How long that takes is learned from the orders of a run. What was too early for one is too early
    for the next. Once one has arrived the others are asked for at its age, and before that is known
    to a second, at ages between it and the last one that was too early.
    """

    def __init__(self) -> None:
        self._issued = math.inf  # the lowest age at which an order was there
        self._too_early = 0.0  # the highest, below that, at which one was not there

    def heard(self, before: float, age: float, *, is_there: bool) -> None:
        """Learn from an order that was asked for at an age, and in vain at the one before."""
        if is_there and age < self._issued:
            known = self._too_early if self._too_early < age else 0.0
            self._issued, self._too_early = age, max(before, known)
        elif self._too_early < age < self._issued:
            self._too_early = age

    def first(self, haste: float) -> float:
        """Return the age for the first question: at once, unless that was too early for another."""
        return self.next(0.0, haste) if self._too_early else 0.0

    def next(self, age: float, haste: float) -> float:
        """Return the age at which to ask for an order again that was not there at this one.

        ``haste`` shortens the pauses, for each order a little otherwise: together they look often.
        """
        pause = haste * min(max(_ASK_AGAIN, 2 * age), max(_ASK_OFTEN, age / 10), _ASK_SELDOM)
        is_known = self._issued - self._too_early < 1
        likely = self._issued if is_known else (self._issued + self._too_early) / 2
        if likely <= age:
            likely = self._issued
        if age < likely < age + 2 * pause:
            return likely
        return max(age + pause, haste * min(self._too_early, age + 2 * _ASK_OFTEN))


class Inquiry:
    """The questions of a run for one order: how many there were, and when the next is due."""

    def __init__(self, pace: Pace) -> None:
        self.number = 0
        self._pace = pace
        self._haste = _JITTER.uniform(0.8, 1)
        self._is_new = False  # what SCM takes for it is not known otherwise
        self.since = self._before = self._age = 0.0

    def begin(self, *, is_new: bool) -> None:
        """Count its age from now on; ``is_new``: it was placed just now."""
        self.since, self._is_new = time.monotonic(), is_new

    def ask(self) -> None:
        self.number += 1
        self._before, self._age = self._age, time.monotonic() - self.since

    def answered(self, *, is_there: bool) -> None:
        if self._is_new:
            self._pace.heard(self._before, self._age, is_there=is_there)

    def next_at(self) -> float:
        """Return when the next one is due, by the monotonic clock."""
        if self.number:
            return self.since + self._pace.next(self._age, self._haste)
        return self.since + (self._pace.first(self._haste) if self._is_new else 0.0)


class Progress(Protocol):
    """Says what is awaited, and how many seconds at most; an empty text: nothing is."""

    def __call__(self, text: str, limit: float | None = None) -> None: ...


@dataclasses.dataclass
class Run:
    """What one run is asked to do, and what all of its parts share."""

    intent: Intent
    dry_run: bool
    wait: int | None
    config: ScmConfig
    store: Store
    context: Context
    scm: Sectigo
    revocations: RevocationCheck
    max_orders: int | None  # a run of all profiles that would place more places none
    progress: Progress
    owner: Callable[[Appliance, str], str]  # the profile that manages a certkey, or nothing
    warn: Callable[[str, str], None]  # of what belongs to no profile: what is wrong, and why
    pace: Pace = dataclasses.field(default_factory=Pace)
    turns: threading.Semaphore = dataclasses.field(
        default_factory=functools.partial(threading.Semaphore, CONNECTIONS)
    )

    def in_turn(self, errand: Callable[[], T]) -> T:
        """Ask SCM when there is a place: of what waits for one nothing is on record as sent."""
        with self.turns:
            self.context.interrupt.check()
            return errand()


class Memory:
    """The record of one profile, on disk before anything else happens; a dry run writes nothing."""

    def __init__(self, profile: str, run: Run) -> None:
        self.record = self._on_disk = Record(profile)
        self._store = run.store
        self._is_read_only = run.dry_run

    @property
    def change(self) -> Change:
        """The open change; there must be one."""
        return open_change(self.record)

    @property
    def order(self) -> Order:
        """The order of the open change; there must be one."""
        return ordered(self.change)

    def recall(self) -> None:
        self.record = self._on_disk = self._store.load(self.record.profile)

    def keep(self, record: Record) -> None:
        """Replace the record; what could not be written is written with the next one.

        Nothing is written where the disk has it.
        """
        self.record = record
        if record != self._on_disk and not self._is_read_only:
            self._store.save(record)
            self._on_disk = record

    def try_to_keep(self, record: Record) -> None:
        """Replace the record after a failure, which is told also where the disk is full."""
        with contextlib.suppress(AgentError):
            self.keep(record)

    def touch(self) -> None:
        """Remember, before the configuration changes, that it will have to be saved."""
        self.keep(dataclasses.replace(self.record, unsaved=True))


@dataclasses.dataclass(frozen=True)
class Job:
    """One profile at work: what it asks for, where, and what is remembered and told of it."""

    profile: Profile
    view: View
    memory: Memory
    result: Result
    run: Run

    @property
    def client(self) -> NetScaler:
        return self.view.client

    def sync(self) -> None:
        """Have the other nodes get the files; where time is short, none of them stops anything."""
        try:
            self.view.sync()
        except AgentError as error:
            row = self.view.certkeys.get(self.profile.certkey)
            held = held_certificate(self.memory.record, row)
            if error.kind == "standby" or not (held and lapses(held, utc_now())):
                raise
            self.view.lacks_files = True
            why = f"{error.detail}, NITRO {error.code}" if isinstance(error, NitroError) else error
            text = (
                f"{self.client.peer} did not get the files ({why}); it was gone on without it, "
                f"because what is installed ends at {iso(held.not_after)}: look at that node"
            )
            if text not in self.result.warnings:
                self.result.warnings.append(text)

    def delete_litter(self, *, finishes: bool = False) -> None:
        """Delete the files of ours that neither this nor the last generation needs.

        ``finishes``: that was all that was left to do of a change.
        """
        record = self.memory.record
        kept = {file for each in record.generations for file in (each.key_file, each.cert_file)}
        kept |= self.view.files_in_use()
        left = []
        for file in record.litter:
            try:
                if file not in kept:
                    self.client.delete_file(file)
            except AgentError as error:
                self.result.warnings.append(f"{file} was not deleted: {error.message}")
                left.append(file)
        finishing = None if finishes else record.finishing
        self.memory.keep(dataclasses.replace(record, litter=tuple(left), finishing=finishing))


_MOST_NAMES = 5  # that are tried for a key file, where others are taken


def _may_end_differently(error: AgentError, *, key_lost: bool) -> bool:
    """Tell whether another certificate might fare better than the one that was ordered."""
    if isinstance(error, NitroError):
        return key_lost or error.code in _CERTIFICATE_REFUSED
    if isinstance(error, ScmError):
        return error.code is not None
    return error.kind == "mismatch"


def _remembered_files(record: Record, view: View) -> list[str]:
    keys = [each.key_file for each in record.generations]
    return [*record.litter, *keys, *view.files_in_use()]


def _newer_key(record: Record, profile: Profile, view: View) -> str:
    """Return a key file of a certkey that is newer than its key and than all on record."""
    certkey, directory = profile.certkey, profile.appliance.ssl_directory
    row = view.certkeys.get(certkey)
    used = row.key_file.rpartition("/")[2] if row else ""
    times = {name: key_file_time(name, certkey, directory) for name in view.file_names()}
    known = max(record.latest or "", key_file_time(used, certkey, directory))
    return next((name for name, made in sorted(times.items()) if made > known), "")


def _check_sni_name(profile: Profile, leaf: Certificate) -> None:
    """Raise AgentError (mismatch) where SNI needs a common name that was not issued."""
    if any(server.sni for server in profile.virtual_servers) and not leaf.common_name:
        text = "the issued certificate has no common name, which SNI needs"
        way = "choose a certificate profile in SCM that keeps it"
        raise AgentError("mismatch", f"{text}: {way}")


def _ways_on(name: str) -> str:
    """Say what to do about a profile's record that is older than what it has ordered."""
    force = f"citrixagent.py enroll --force {shlex.quote(name)}"
    return f"put the newest state/profile-{name}.json back, or order all the same with {force}"


class KeyMaker:
    """From nothing to a CSR: what an order needs of the appliance, made under nobody else's names.

    A step can be done again at any time: it looks at what is there before it acts.
    """

    def __init__(self, job: Job) -> None:
        self._profile = job.profile
        self._job = job
        self._view = job.view
        self._memory = job.memory
        self.resumes = False  # the change was begun by an earlier run

    @property
    def _record(self) -> Record:
        return self._memory.record

    def new_change(self, plan: Plan, action: Action) -> Change:
        """Return a change that orders, with file names that nothing remembered uses."""
        profile, intent = self._profile, self._job.run.intent
        stem, began = self._name_files()
        return Change(
            outcome=plan.outcome,
            reason=plan.reason,
            started=iso(began),  # no key file is newer than what is on record
            new=Generation(f"{stem}.key", f"{stem}.crt", profile.names, profile.key_type),
            order=Order(
                action,
                wish_of(profile),
                f"{stem}.csr",
                before=self._before(),
                note=intent.reason,
            ),
            take_over=intent.take_over,
        )

    def _name_files(self, *tried: str) -> tuple[str, dt.datetime]:
        """Return how the names of a change's files begin, and the time in them.

        Whatever the clock says, the names are new.
        """
        profile, now = self._profile, utc_now()
        used = " ".join([*_remembered_files(self._record, self._view), *tried])
        while (stem := file_stem(profile.certkey, profile.appliance.ssl_directory, now)) in used:
            now += dt.timedelta(seconds=1)
        return stem, now

    def _before(self) -> str | None:
        """Return the id at SCM of what a new order renews or replaces."""
        return self._record.installed.cert_id if self._record.installed else None

    def take_up(self, plan: Plan, action: Action) -> Change:
        """Return the change that was begun and not sent, for what is asked of SCM now."""
        change, intent = self._memory.change, self._job.run.intent
        note = intent.reason or self._memory.order.note
        order = dataclasses.replace(
            self._memory.order, action=action, before=self._before(), note=note
        )
        return dataclasses.replace(change, outcome=plan.outcome, reason=plan.reason, order=order)

    def check_appliance(self, plan: Plan) -> None:
        """Look, before anything is made for an order, at what would double it or waste it."""
        if plan.resumes:
            self._check_key()
        elif not self._job.run.intent.force:
            self._check_keys()

    def _check_key(self) -> None:
        """Give up a change that was not sent where its key is not on this node; AgentError then.

        After a failover it may be on the other node only, and would be paid for in vain.
        """
        new, names = self._memory.change.new, self._view.file_names()
        if self._memory.change.key_created and names and new.key_file not in names:
            self._memory.keep(give_up(self._record))
            text = f"{self._view.client.host}: the key {new.key_file} is not there"
            raise AgentError("appliance", f"{text}: the next run makes a new one")

    def _check_keys(self) -> None:
        """Refuse to order from a record that is older than what it has ordered; AgentError (state).

        It was put back from a backup, or lost, if a key of this certkey is newer than all that it
        knows.
        """
        if key_file := _newer_key(self._record, self._profile, self._view):
            text = f"{key_file} on {self._view.client.host} was made for an order that is not on"
            why = "the record is old or was lost"
            raise AgentError("state", f"{text} record: {why}: {_ways_on(self._profile.name)}")

    def create_key(self) -> None:
        """Have a key made; a file of that name that somebody else has is left alone."""
        tried: list[str] = []
        while not self._made_key(is_last=len(tried) == _MOST_NAMES):
            tried.append(self._memory.change.new.key_file)
            self._rename(*self._name_files(*tried))
        self._view.files_changed()
        self._memory.keep(changing(self._record, key_created=True))

    def _made_key(self, *, is_last: bool) -> bool:
        """Have a key made under the name that is on record; False where that name is taken."""
        new = self._memory.change.new
        try:
            self._job.client.create_key(new.key_file, new.key_type)
        except NitroError as error:
            if error.code == _FILE_EXISTS and not (self.resumes or is_last):
                return False
            self._check_own(error)
        return True

    def _rename(self, stem: str, began: dt.datetime) -> None:
        """Give the files of the open change, none of which is there yet, other names."""
        new = dataclasses.replace(
            self._memory.change.new, key_file=f"{stem}.key", cert_file=f"{stem}.crt"
        )
        renamed = changing(self._record, new=new, started=iso(began))
        renamed = dataclasses.replace(renamed, latest=iso(began))
        self._memory.keep(ordering(renamed, csr_file=f"{stem}.csr"))

    def create_csr(self) -> None:
        key_file, csr_file = self._memory.change.new.key_file, self._memory.order.csr_file
        client = self._job.client
        try:
            client.create_csr(csr_file, key_file, self._profile)
        except NitroError as error:
            if error.code in _FILE_MISSING:
                # The key is on another node: the next run makes a new one.
                self._memory.keep(give_up(self._record, [key_file]))
            self._check_own(error, key_file)
        pem = client.read_file(csr_file)
        if pem is None:
            raise AgentError("appliance", f"{client.host}: the CSR {csr_file} is not there")
        try:
            csr = check_csr(pem, self._profile)
        except AgentError:
            self._memory.keep(give_up(self._record, [key_file, csr_file]))
            self._job.delete_litter()
            raise
        self._memory.keep(ordering(self._record, csr=csr))

    def _check_own(self, error: NitroError, *made: str) -> None:
        """Go on where a file is there already because an earlier run was cut off; else raise.

        A file that this change did not make is never used: the next run takes other names. ``made``
        are the files that it did make.
        """
        if error.code == _FILE_EXISTS and self.resumes:
            return
        if error.code == _FILE_EXISTS:
            self._memory.keep(give_up(self._record, made))
        raise error

    def share_key(self) -> None:
        """Have the other node of a pair get the key: what is paid for must not be on one only."""
        if self._job.client.is_pair:
            self._job.sync()


class Ordering:
    """From a CSR to an issued certificate: what may cost money, and is asked for once.

    A step can be done again at any time: what a next run must know is on record before SCM is asked
    for what cannot be undone. Nothing here touches the appliance, or what was seen of it: it may be
    done in another thread than what does.
    """

    def __init__(self, job: Job) -> None:
        self._profile = job.profile
        self._run = job.run
        self._memory = job.memory
        self._result = job.result
        self._scm = job.run.scm
        self._inquiry = Inquiry(job.run.pace)
        self._waits_for = "being issued by the CA"
        self.named: str | None = None  # the id that the operator says the order has
        self.is_last = False  # the question that is asked, of this run

    @property
    def _record(self) -> Record:
        return self._memory.record

    def look_for_order(self) -> None:
        """Learn what became of an order whose reply was lost, where SCM can be asked."""
        change = self._record.change
        if not (change and change.order and change.order.sent) or change.new.cert_id:
            return
        known = [each.cert_id for each in self._record.generations if each.cert_id]
        with contextlib.suppress(UnknownOutcomeError):
            found = self._scm.find(self._profile, change, known)
            self._memory.keep(place_order(self._record, found))

    def check_scm(self, plan: Plan) -> None:
        """Ask, before anything is made for an order, for what would stop or double it."""
        self._prepare_scm()
        if not (plan.resumes or self._run.intent.force):
            self._check_waiting()

    def _prepare_scm(self) -> None:
        for warning in self._scm.prepare(self._profile):
            if warning not in self._result.warnings:
                self._result.warnings.append(warning)

    def _check_waiting(self) -> None:
        """Refuse to order from a record that lacks an order that waits for the name at SCM."""
        known = [each.cert_id for each in self._record.known if each.cert_id]
        if waiting := self._scm.waiting(self._profile, known):
            name, ids = self._profile.subject.common_name, ", ".join(waiting)
            text = f"SCM has orders for {name} that wait and are not on record: {ids}"
            way = f"decline them in SCM, or {_ways_on(self._profile.name)}"
            raise AgentError("state", f"{text}: {way}")

    def order(self) -> None:
        """Place the order; what SCM cannot renew or replace is enrolled."""
        try:
            cert_id = self._send()
        except NotOfferedError as error:
            log.warning("%s: %s: enrolling instead", self._profile.name, error.message)
            self._result.warnings.append(f"{error.message}: enrolled anew instead")
            self._memory.keep(ordering(self._record, action="enroll"))
            cert_id = self._send()
        self._result.cert_id = cert_id
        self._inquiry.begin(is_new=True)
        try:
            self._memory.keep(place_order(self._record, cert_id))
        except AgentError as error:
            text = (
                f"order {cert_id} was placed but could not be recorded ({error.message}): make room"
            )
            quoted = shlex.quote(self._profile.name)
            text += f", then run citrixagent.py enroll --cert-id {cert_id} {quoted}"
            raise AgentError("state", text) from None

    def _send(self) -> str:
        """Send the order; what is on disk before and after tells the next run what may exist."""
        self._prepare_scm()
        self._memory.keep(ordering(self._record, sent=iso(utc_now())))
        try:
            return self._scm.order(self._profile, self._memory.change)
        except UnknownOutcomeError as error:
            raise AgentError("unknown_outcome", f"{error.message}: {self._unknown()}") from None
        except (AgentError, Interrupted):
            self._memory.keep(ordering(self._record, sent=None))
            raise

    def _unknown(self) -> str:
        return unknown_outcome_text(self._profile.name, self._memory.change)

    def wait(self) -> None:
        """Begin to wait for the certificate of an order that an earlier run placed."""
        self._inquiry.begin(is_new=False)

    def waits_until(self) -> float:
        """Return when this run gives up, by the monotonic clock."""
        wait = self._profile.enrollment.max_wait if self._run.wait is None else self._run.wait
        return self._inquiry.since + wait

    def asks_at(self) -> float:
        """Return when to ask for the certificate next, by the monotonic clock.

        For the last time, before it gives up, that is at once.
        """
        if self._gives_up():
            return 0.0
        return min(max(self._inquiry.next_at(), self._left_alone_until), self.waits_until())

    def _gives_up(self) -> bool:
        """Tell whether it waited long enough, or may not ask again before it would have."""
        return max(time.monotonic(), self._left_alone_until) >= self.waits_until()

    @property
    def _left_alone_until(self) -> float:
        return self._scm.left_alone_until(self.cert_id)

    def collect(self) -> bool:
        """Ask once for the certificate, and keep it; for the last time, ask at least why not."""
        self.is_last = self._gives_up()
        self._inquiry.ask()
        with coming_again():
            answer = self._ask()
        self._inquiry.answered(is_there=answer is not None)
        if answer is None:
            if self.is_last:
                self._learn_why()
            return False
        chain = check_issued(answer, self._memory.order.csr or "", self._profile.names, utc_now())
        _check_sni_name(self._profile, chain[0])
        self._memory.keep(issue(self._record, chain))
        return True

    def _ask(self) -> bytes | None:
        """Return what was issued; at times only the status is asked for, if that says enough."""
        self._result.cert_id = cert_id = self.cert_id
        if self._inquiry.number % _STATUS_EVERY == _STATUS_FIRST and self._is_under_way(cert_id):
            return None
        answer = self._download(cert_id)
        if self._memory.change.new.cert_id != cert_id:  # the operator's, and SCM knows it
            self._memory.keep(adopt(self._record, cert_id, iso(utc_now())))
        return answer

    def _learn_why(self) -> None:
        """Learn what the order waits for, where this run did not ask for that."""
        if self._inquiry.number < _STATUS_FIRST and self._left_alone_until <= time.monotonic():
            with coming_again():
                self._is_under_way(self.cert_id)

    @property
    def cert_id(self) -> str:
        """The id of the open order, or the one that the operator says it has."""
        return self.named or self._memory.change.new.cert_id or ""

    def wait_text(self) -> str:
        """Say what an order waits for, and since when."""
        since = parse_iso(self._memory.order.sent or self._memory.change.started)
        days = max(0, (utc_now() - since).days)
        return f"{self._waits_for}, since {since:%Y-%m-%d}, {_count(days, 'day')}"

    def _download(self, cert_id: str) -> bytes | None:
        """Return what SCM issued for an order; None while it has nothing, or the old one, yet."""
        order, own_id = self._memory.order, self._memory.change.new.cert_id
        try:
            answer = self._scm.download(cert_id)
        except ScmError as error:
            if error.kind == "rejected" and cert_id == own_id:
                self._check_turned_down(cert_id, error.message)
            raise
        if answer is None or answers_csr(answer, order.csr or ""):
            return answer
        if self._keeps_id(order, cert_id):
            return None
        if order.adopted or cert_id != own_id:
            self._disown(cert_id)
        return answer

    def _keeps_id(self, order: Order, cert_id: str) -> bool:
        """Tell whether the id of an order is that of the certificate that it renews or replaces."""
        in_place = order.action == "replace" and self._scm.replaces_in_place
        known = cert_id == self._memory.change.new.cert_id and not order.adopted
        return cert_id == order.before and (in_place or known)

    def _disown(self, cert_id: str) -> NoReturn:
        """Refuse an id that the operator named: what it stands for has another key."""
        if self._memory.order.adopted:
            self._memory.keep(disown(self._record))
        name, change = self._profile.name, self._memory.change
        is_unknown = self._memory.order.sent and not change.new.cert_id
        way = self._unknown() if is_unknown else "name another"
        raise AgentError(
            "state", f"{cert_id} is a certificate for another key than {name}'s: {way}"
        )

    def _is_under_way(self, cert_id: str) -> bool:
        """Ask what an order waits for; a status that cannot be had changes nothing."""
        try:
            return self._check_turned_down(cert_id) in _STATUS_TEXTS
        except AgentError as error:
            if error.kind == "declined":
                raise
            log.info("%s: %s", self._profile.name, error.message)
            return False

    def _check_turned_down(self, cert_id: str, words: str = "") -> str:
        """Return an order's status; AgentError (declined), kept, where it was turned down."""
        status = self._scm.status(cert_id)
        self._waits_for = _STATUS_TEXTS.get(status, f"SCM says {status.lower()}")
        if status in _TURNED_DOWN:
            text = f"order {cert_id} was {status.lower()} in SCM" + (f": {words}" if words else "")
            refused = self._run.context.redactor.hide(text)
            self._memory.keep(ordering(self._record, refused=refused))
            remedy = (
                f"once it can succeed, run citrixagent.py enroll {shlex.quote(self._profile.name)}"
            )
            raise AgentError("declined", f"{text}: {remedy}")
        return status

    def fail(self, error: AgentError, *, file_missing: bool, key_lost: bool) -> AgentError:
        """Take note of why an order cannot be used; return the error as the operator is told it."""
        new = self._memory.change.new
        is_own = (self.named or new.cert_id) == new.cert_id is not None
        if not is_own or error.kind not in {"mismatch", "rejected", "appliance"}:
            return error
        message = self._run.context.redactor.hide(error.message)
        failed = fail(self._record, message, file_missing=file_missing, key_lost=key_lost)
        self._memory.try_to_keep(failed)
        if not _may_end_differently(error, key_lost=key_lost):
            return error
        way = f"citrixagent.py enroll --force {shlex.quote(self._profile.name)}"
        text = f"{error.message}: if it stays so, give order {new.cert_id} up with {way}"
        return AgentError(error.kind, text)


# ----- 15. Installing -------------------------------------------------------------------------


def why_no_way_back(row: CertKey) -> str:
    """Say why what a certkey holds could not be put back once it was replaced; else nothing."""
    if row.has_phrase:
        return "its key is encrypted, and the pass phrase is not known to this tool"
    if not row.key_file and row.form != "PFX":
        return "its certkey names no key file: the key is in the certificate's file, or kept apart"
    if not row.not_after:
        return "the appliance does not tell what it is"
    return ""


def no_way_back_text(row: CertKey) -> str:
    return f'what the certkey "{row.name}" holds now cannot be put back by a rollback'


def chain_of(record: Record, held: Certificate | None) -> tuple[Certificate, ...]:
    """Return leaf and intermediates that a certkey is to hold; ``held`` is what it holds now.

    Of what this tool did not order only the leaf is known.
    """
    change, installed = record.change, record.installed
    if change and change.new.pem:
        return read_chain(change.new.pem)
    if change and not change.order and (leaf := leaf_of(change.new)):
        return (leaf,)
    if held and installed and installed.pem and installed.serial == held.serial:
        return read_chain(installed.pem)
    return (held,) if held else ()


class Binder:
    """What binds the certkey, and with the operator's consent ends what is bound in its place."""

    def __init__(self, job: Job) -> None:
        self._profile = job.profile
        self._view = job.view
        self._memory = job.memory
        self._result = job.result
        self.may_take_over = False  # the operator agreed to take what belongs to somebody else

    @property
    def _client(self) -> NetScaler:
        return self._view.client

    @property
    def _ended(self) -> tuple[Displaced, ...]:
        return self._memory.record.ended

    def unbound(self) -> list[VirtualServer]:
        certkey, servers = self._profile.certkey, self._profile.virtual_servers
        return [server for server in servers if not self._view.is_bound(server, certkey)]

    def settled(self, record: Record) -> Record:
        """Forget what was ended for bindings that are there; an open change may still need it."""
        is_done = record.ended and not (record.change or self.unbound() or self.left())
        return dataclasses.replace(record, ended=()) if is_done else record

    def left(self) -> list[Displaced]:
        """Return the bindings of others that were ended for nothing: ours is not wanted there."""
        named = {(server.name, server.sni) for server in self._profile.virtual_servers}
        return [each for each in self._ended if (each.virtual_server, each.sni) not in named]

    def taken(self, held: Certificate | None) -> list[Taken]:
        """Return what others hold of the profile's places, and nobody has agreed yet to take."""
        agreed = {(each.virtual_server, each.certkey) for each in self._ended}
        found = self._view.taken(self._profile, held)
        return [each for each in found if (each.virtual_server, each.certkey) not in agreed]

    def bind(self) -> None:
        """Bind where it is missing; where another certkey would be pushed out, only if agreed."""
        for each in self.left():
            self._bind_again(each)
        missing = self.unbound()
        refused = [] if self.may_take_over else self.taken(None)
        left = {(each.virtual_server, each.sni) for each in refused}
        for server in missing:
            if (server.name, server.sni) not in left:
                self._take(server)
        self._memory.keep(dataclasses.replace(self._memory.record, ended=()))
        if refused:
            raise AgentError("state", taken_text(self._profile.name, refused))

    def _take(self, server: VirtualServer) -> None:
        """Bind at one virtual server; what is bound there again if it is refused was ended here."""
        for each in list(self._view.taken(self._profile, None)):
            if (each.virtual_server, each.sni) == (server.name, server.sni):
                text = f'the certkey "{each.certkey}" was replaced on the virtual server'
                self._result.warnings.append(f'{text} "{server.name}"')
                if server.sni:
                    self._end(Displaced(server.name, each.certkey, sni=True))
        try:
            self._bind_to(server)
        except NitroError as error:
            self._view.note_refused(error, self._profile.key_type)
            for ended in [each for each in self._ended if each.virtual_server == server.name]:
                self._bind_again(ended)
            raise

    def make_room(self, held: Certificate | None) -> None:
        """End what the certkey's successor would not fit beside; what is bound stays served."""
        for each in list(self._view.taken(self._profile, held)):
            if each.beside and self.may_take_over:
                self._end(Displaced(each.virtual_server, each.certkey, sni=each.sni))

    def give_room_back(self) -> None:
        """Bind again what was ended for a successor that the appliance refused."""
        for each in self._ended:
            self._bind_again(each)

    def _end(self, ended: Displaced) -> None:
        """End somebody else's binding; that it is meant to is on record before."""
        record = self._memory.record
        others = tuple(each for each in record.ended if each != ended)
        self._memory.keep(dataclasses.replace(record, ended=(*others, ended), unsaved=True))
        try:
            self._client.unbind(ended.virtual_server, ended.certkey, sni=ended.sni)
        except NitroError:
            self._memory.keep(dataclasses.replace(self._memory.record, ended=others))
            raise
        self._view.refresh_bindings(ended.virtual_server)

    def _bind_again(self, ended: Displaced) -> None:
        self._memory.touch()
        self._client.bind(ended.virtual_server, ended.certkey, sni=ended.sni)
        self._view.refresh_bindings(ended.virtual_server)
        record = self._memory.record
        others = tuple(each for each in record.ended if each != ended)
        self._memory.keep(dataclasses.replace(record, ended=others))

    def _bind_to(self, server: VirtualServer) -> None:
        certkey = self._profile.certkey
        self._view.virtual_server(server)
        self._memory.touch()
        self._client.bind(server.name, certkey, sni=server.sni)
        self._view.refresh_bindings(server.name)
        if not self._view.is_bound(server, certkey):
            host = self._client.host
            text = f"{host}: {server.name} does not list the certkey {certkey} after the binding"
            raise AgentError("appliance", text)


def _is_to_link(lower: CertKey, upper: CertKey) -> bool:
    """Tell whether an intermediate is to be linked to the next one.

    A wrong link is mended where this tool made the certkey and somebody else made the link.
    """
    own = lower.name.startswith(_INTERMEDIATE_PREFIX)
    is_theirs = own and not lower.link.startswith(_INTERMEDIATE_PREFIX)
    return lower.link != upper.name and (not lower.link or is_theirs)


class Installer:
    """From an issued certificate to one that is served: what touches what is in service.

    A step can be done again at any time: it looks at what is there before it acts.
    """

    def __init__(self, job: Job) -> None:
        self._profile = job.profile
        self._job = job
        self._view = job.view
        self._memory = job.memory
        self._result = job.result
        self._prover = Prover(job.profile, job.view, job.run.context)
        self._found: dict[VirtualServer, tuple[str, bool]] = {}  # what is wrong, as for the prover
        self.binder = Binder(job)

    @property
    def _record(self) -> Record:
        return self._memory.record

    @property
    def _client(self) -> NetScaler:
        return self._view.client

    @property
    def _row(self) -> CertKey | None:
        return self._view.certkeys.get(self._profile.certkey)

    def held(self) -> Certificate | None:
        return held_certificate(self._record, self._row)

    def chain(self) -> tuple[Certificate, ...]:
        return chain_of(self._record, self.held())

    def is_linked(self) -> bool:
        """Tell whether the certkey's chain is complete, and whether it leads where it should.

        Of a certificate that this tool did not order only its issuer is looked for. A wrong link
        between certkeys that somebody else made is left as it is.
        """
        row, chain = self._row, self.chain()
        if row is None or row.serial != chain[0].serial:
            return True
        if len(chain) < 2:
            return bool(row.link) or self._view.issuer_of(row) is None
        issuers = [self._view.find(certificate) for certificate in chain[1:]]
        first = issuers[0]
        if not (first and all(issuers) and row.link == first.name):
            return False
        found = [issuer for issuer in issuers if issuer]
        return not any(_is_to_link(*pair) for pair in itertools.pairwise(found))

    def told_of_links(self) -> Iterator[str]:
        """Say which links lead elsewhere and are not this tool's to mend, or cannot be made."""
        row, chain = self._row, self.chain()
        if row is None:
            return
        issuers = [issuer for issuer in map(self._view.find, chain[1:]) if issuer]
        for lower, upper in itertools.pairwise(issuers):
            if lower.link not in {"", upper.name}:
                text = f'the certkey "{lower.name}" is linked to "{lower.link}", not to'
                yield f'{text} "{upper.name}", which is next in the chain of {row.name}'
        is_root = row.issuer == row.subject
        if len(chain) < 2 and not (row.link or is_root or self._view.issuer_of(row)):
            text = f'the certkey "{row.name}" is not linked, and its issuer is not on the appliance'
            yield f"{text}: clients are presented the certificate alone"

    # Upload

    def upload(self) -> None:
        chain = self.chain()
        self._upload_file(self._memory.change.new.cert_file, chain[0])
        self._ensure_issuers(chain)
        self._memory.keep(changing(self._record, uploaded=True))

    def _upload_file(self, name: str, certificate: Certificate) -> None:
        """Upload a certificate; what an earlier attempt left half done makes room for it."""
        content = certificate.pem.encode()
        try:
            self._client.upload(name, content)
        except NitroError as error:
            if error.code != _FILE_EXISTS or name in self._view.files_in_use():
                raise
            self._client.delete_file(name)
            self._client.upload(name, content)
        self._view.files_changed()

    def _ensure_issuers(self, chain: Sequence[Certificate]) -> list[CertKey]:
        """Have every intermediate there, linked to the next; return them, nearest first."""
        rows: list[CertKey] = []
        for certificate in chain[1:]:
            if not self._view.find(certificate):
                self._upload_file(self._intermediate_file(certificate), certificate)
        for certificate in reversed(chain[1:]):
            row = self._view.find(certificate) or self._add_intermediate(certificate)
            if rows and _is_to_link(row, rows[0]):
                self._memory.touch()
                if row.link:
                    self._client.unlink(row.name)
                self._client.link(row.name, rows[0].name)
                row = self._read_back(row.name, certificate, rows[0].name)
            rows.insert(0, row)
        return rows

    def _add_intermediate(self, certificate: Certificate) -> CertKey:
        name = intermediate_name(certificate)
        self._job.sync()
        self._memory.touch()
        try:
            self._client.add_certkey(name, self._intermediate_file(certificate))
        except NitroError as error:
            if error.code != _EXISTS:
                raise
            name = content_of(error.detail) or name
        return self._read_back(name, certificate)

    def _intermediate_file(self, certificate: Certificate) -> str:
        limit = base_limit(self._profile.appliance.ssl_directory)
        return f"{shorten(intermediate_name(certificate), limit)}.crt"

    def _read_back(self, name: str, certificate: Certificate, link: str = "") -> CertKey:
        """Return a certkey as the appliance has it now, if that is what was written."""
        row = self._view.refresh(name)
        if row is None or row.serial != certificate.serial:
            found = f"the serial {row.serial}" if row else "nothing"
            wrong = f"{found} instead of {certificate.serial}"
        elif link and row.link != link:
            wrong = f"the link {row.link or 'nothing'} instead of {link}"
        else:
            return row
        host = self._client.host
        raise AgentError("appliance", f"{host}: the certkey {name}, read back, holds {wrong}")

    # Install

    def install(self) -> None:
        """Give the certkey the new generation: a new certkey, or an update of the one there."""
        row = self._row
        is_to_prove = self._profile.handshake != "off"
        self._job.sync()
        record = dataclasses.replace(self._record, unverified=is_to_prove, unsaved=True)
        old = open_change(record).old
        if row and (old is None or old.serial != row.serial):
            record = changing(record, old=self._generation_of(row))
        self._memory.keep(record)
        if row is None:
            self._add()
        else:
            self._replace(row)

    def _replace(self, row: CertKey) -> None:
        """Update the certkey, with room made for it where it has to be and may be."""
        new = self._memory.change.new
        self.binder.make_room(leaf_of(new) and self.held())
        try:
            self._update(row, new)
        except NitroError as error:
            self._view.note_refused(error, new.key_type)
            self.binder.give_room_back()
            raise

    def _add(self) -> None:
        new, chain, certkey = self._memory.change.new, self.chain(), self._profile.certkey
        try:
            self._client.add_certkey(certkey, new.cert_file, new.key_file)
        except NitroError as error:
            self._view.note_refused(error, new.key_type)
            if error.code != _EXISTS:
                raise
            if other := content_of(error.detail):
                text = f'{error.message}: this certificate is there as "{other}"'
                raise AgentError("appliance", f"{text}: set certificate.name to it") from None
            self._read_back(certkey, chain[0])
        if len(chain) == 1:  # otherwise read back after the link
            self._read_back(certkey, chain[0])

    def _generation_of(self, row: CertKey) -> Generation:
        """Return what is in service now, as what a rollback would put back."""
        held = self.held()
        for known in self._record.generations:  # also what somebody put back by hand
            if known.serial == row.serial:
                return known
        return Generation(
            key_file=row.key_file,
            cert_file=row.cert_file,
            names=(held.names or (held.common_name,)) if held else (),
            key_type=held.key_type if held else row.key_type,
            serial=row.serial,
            pem=held.pem if held else "",
            ours=False,
            link=row.link,
            form=row.form,
            not_after=iso(held.not_after) if held else "",
            no_way_back=why_no_way_back(row),
        )

    def _update(self, row: CertKey, new: Generation) -> None:
        """Give the certkey another generation: for installation, rollback and undo."""
        leaf, held = leaf_of(new), self.held()
        if leaf is None:
            raise AgentError("state", f"what {self._profile.name} had before is not known")
        other_names = held is None or not leaf.pem or not same_names(held, leaf)
        try:
            self._client.update_certkey(
                row.name, (new.cert_file, new.key_file), form=new.form, other_names=other_names
            )
        except NitroError as error:
            if error.code != _ISSUER_MISMATCH:
                raise
            self._update_unlinked(row, new, other_names=other_names)
        self._read_back(row.name, leaf)

    def _update_unlinked(self, row: CertKey, new: Generation, *, other_names: bool) -> None:
        """Update where the link forbids another issuer; meanwhile the leaf is served alone."""
        self._client.unlink(row.name)
        try:
            self._client.update_certkey(
                row.name, (new.cert_file, new.key_file), form=new.form, other_names=other_names
            )
        except AgentError:
            if row.link:
                with contextlib.suppress(AgentError):  # what went wrong first is told
                    self._client.link(row.name, row.link)
            raise

    def link(self) -> None:
        change = self._record.change
        self._relink(self.chain(), change.new.link if change else "")

    def _relink(self, chain: Sequence[Certificate], otherwise: str) -> None:
        """Link the certkey to its chain, or to ``otherwise`` where the chain is not known."""
        issuers = self._ensure_issuers(chain)
        row = self._row
        other = self._view.issuer_of(row) if row and not otherwise and len(chain) < 2 else None
        issuer = issuers[0].name if issuers else otherwise or (other.name if other else "")
        if not issuer or issuer not in self._view.certkeys or (row and row.link == issuer):
            return
        self._memory.touch()
        if row and row.link:
            self._client.unlink(row.name)
        self._client.link(self._profile.certkey, issuer)
        self._read_back(self._profile.certkey, chain[0], issuer)

    # Prove

    def saved(self) -> None:
        """Take note that the appliance saved its configuration; look once more at what it saved."""
        if self._record.change:
            self._view.refresh(self._profile.certkey)
        self._memory.keep(self.closed(dataclasses.replace(self._record, unsaved=False)))

    def check_kept(self) -> None:
        """Raise AgentError where the certkey does not hold any more what was installed."""
        change, row = self._record.change, self._row
        if change and (row is None or row.serial != change.new.serial):
            text = f"{self._client.host}: {self._profile.certkey} does not hold what was installed"
            way = "perhaps the appliance restarted; the next run installs it again"
            raise AgentError("appliance", f"{text}: {way}")

    def closed(self, record: Record) -> Record:
        """Close a change whose certificate is installed, saved and, where required, proved."""
        row, change = self._row, record.change
        if not (change and change.new.serial and row and row.serial == change.new.serial):
            return record
        if change.take_over and self.binder.unbound():
            return record  # what it was placed for is not done
        is_rollback = self._job.run.intent.command == "rollback"
        is_required = self._profile.handshake == "required" and not is_rollback
        is_open = record.unsaved or (record.unverified and is_required)
        return record if is_open else promote(record)

    def looks(self) -> list[Callable[[], None]]:
        """Return what looks, in any thread, at what each virtual server presents."""
        chain, servers = self.chain(), self._profile.virtual_servers
        looks = {server: self._prover.look_at(server, chain) for server in servers}
        return [functools.partial(self._take_look, *each) for each in looks.items()]

    def _take_look(self, server: VirtualServer, look: Callable[[], tuple[str, bool]]) -> None:
        self._found[server] = look()

    def verify(self) -> None:
        """Judge what every virtual server presents, which was looked at before."""
        required = self._profile.handshake == "required"
        for server in self._profile.virtual_servers:
            wrong, presented = self._found[server]
            if wrong and required:
                raise AgentError("verify", wrong + (self._undo() if presented else ""))
            if wrong:
                self._result.warnings.append(wrong)
        self._memory.keep(self.closed(dataclasses.replace(self._record, unverified=False)))

    def _undo(self) -> str:
        """Put back what the certkey held before, as a rollback does, and say so.

        The change stays open: what was paid for is installed again by the next run.
        """
        change, row = self._record.change, self._row
        old = change.old if change and change.order else None
        if old and old.no_way_back:
            return f": there is no way back ({old.no_way_back}), so the new one stays"
        leaf = leaf_of(old) if old else None
        if not (old and leaf and row) or leaf.not_after <= utc_now():
            return ": there is no valid certificate to put back, so the new one stays"
        try:
            self._put_back(old, row)
        except AgentError as error:
            return f": and putting the previous certificate back FAILED: {error.message}"
        return ": the previous certificate was put back; the next run tries again"

    def _put_back(self, old: Generation, row: CertKey) -> None:
        """Install an earlier generation, link it as it was, and save."""
        chain = chain_of(Record("", old), leaf_of(old))
        self._memory.touch()
        self._update(row, old)
        self._relink(chain, old.link)
        self._view.save()
        self._memory.keep(dataclasses.replace(self._record, unsaved=False, unverified=False))
        self._result.show(chain[0])
        self._result.cert_id = old.cert_id

    def clean_up(self) -> None:
        """Delete the files that neither this nor the last generation needs."""
        self._job.delete_litter(finishes=True)

    def fail_rollback(self, error: AgentError) -> None:
        """Forget a rollback that the appliance refused: it must not stand in a renewal's way.

        Only its own no counts, and only where it was not carried out all the same.
        """
        if not (isinstance(error, NitroError) and error.code):
            return
        with contextlib.suppress(AgentError):
            row = self._view.refresh(self._profile.certkey)
            if row is None or row.serial != self._memory.change.new.serial:
                self._memory.keep(give_up(self._record))


# ----- 16. Work -------------------------------------------------------------------------------


class Lookout:
    """What would stop an installation, looked at before it costs anything."""

    def __init__(self, job: Job) -> None:
        self._profile = job.profile
        self._view = job.view
        self._memory = job.memory
        self._result = job.result

    def look(self, seen: Observed, steps: Sequence[Step], *, is_rollback: bool) -> None:
        """Raise AgentError for what cannot go well; warn of what cannot be undone."""
        profile, view = self._profile, self._view
        # What is served is renewed all the same: one place that is not free is refused at the end.
        is_served = len(seen.unbound) < len(profile.virtual_servers) and Step.INSTALL in steps
        for server in profile.virtual_servers if seen.unbound else ():
            view.virtual_server(server)
            if not (view.is_bound(server, profile.certkey) or is_served):
                view.check_free(server)
        if Step.ORDER in steps:
            self._look_before_order()
        row = view.certkeys.get(profile.certkey)
        if row and Step.INSTALL in steps and not is_rollback:
            self._warn_of_no_way_back(row)

    def _look_before_order(self) -> None:
        profile, view = self._profile, self._view
        if refused := view.refused_keys.get(profile.key_type):
            raise AgentError("appliance", refused)
        row = view.certkeys.get(profile.certkey)
        if row:
            is_ours = row.serial in self._memory.record.ours
            view.check_updatable(profile.certkey, is_ours=is_ours)
        else:
            view.check_name(profile.certkey)

    def _warn_of_no_way_back(self, row: CertKey) -> None:
        """Say it before somebody else's certificate is replaced for good."""
        if row.serial not in self._memory.record.ours and (why := why_no_way_back(row)):
            self._result.warnings.append(f"{no_way_back_text(row)}: {why}")


def _lost_usages(held: Certificate | None, leaf: Certificate) -> Iterator[str]:
    """Warn of key usages of the certificate in service that its successor does not have."""
    lost = set(held.usages if held else ()) - set(leaf.usages)
    if lost and leaf.usages:
        text = f"the new certificate is not for {_listed(lost)}, which the one in service is for"
        yield f"{text}: see SCM's certificate profile where it is needed"


def _told_revoked(is_revoked: Callable[[], bool], cert_id: str, run: Run, result: Result) -> bool:
    """Return SCM's answer; that there is none is a warning, one for all where it is so for all."""
    try:
        return is_revoked()
    except AgentError as error:
        if error.kind in _OF_THE_SERVER:
            run.warn("SCM could not be asked whether certificates were revoked", error.message)
        else:
            text = f"SCM could not be asked whether {cert_id} was revoked"
            result.warnings.append(f"{text}: {error.message}")
        return False


def managed_id(record: Record, certificate: Certificate | None) -> str | None:
    """Return the id at SCM of a certificate, where it is what was installed last."""
    installed = record.installed
    if installed and certificate and installed.serial == certificate.serial:
        return installed.cert_id
    return None


class Observer:
    """How a profile stands: what the decision is made from."""

    def __init__(self, job: Job, installer: Installer) -> None:
        self._profile = job.profile
        self._view = job.view
        self._memory = job.memory
        self._run = job.run
        self._installer = installer

    def observe(self) -> Observed:
        certificate = self._installed_certificate()
        record, binder = self._memory.record, self._installer.binder
        unbound = [*(s.name for s in binder.unbound()), *(e.virtual_server for e in binder.left())]
        change = record.change
        is_issued = change is not None and change.order is not None and bool(change.new.pem)
        return Observed(
            now=utc_now(),
            record=record,
            certificate=certificate,
            linked=self._installer.is_linked(),
            unbound=tuple(unbound),
            taken=tuple(self._owned(each) for each in binder.taken(certificate)),
            elsewhere=self._view.elsewhere(self._profile),
            issued=self._installer.chain()[0] if is_issued else None,
            previous=self._previous_certificate(),
        )

    def _installed_certificate(self) -> Certificate | None:
        """Return what the certkey holds: from the records where they know it, else read once."""
        row = self._view.certkeys.get(self._profile.certkey)
        if row is None:
            return None
        if known := known_certificate(self._memory.record, row):
            return known
        certificate = read_installed(self._view, row)
        if certificate.pem:
            self._memory.keep(dataclasses.replace(self._memory.record, found=certificate.pem))
        return certificate

    def _previous_certificate(self) -> Certificate | None:
        previous = self._memory.record.previous
        if previous and self._run.intent.command == "rollback":
            with contextlib.suppress(ValueError):
                return leaf_of(previous)
        return None

    def _owned(self, taken: Taken) -> Taken:
        """Say which profile manages the certkey that holds a place, if one does."""
        owner = self._run.owner(self._profile.appliance, taken.certkey)
        return dataclasses.replace(taken, owner=owner)


def _who_tries_again(profile: str, record: Record, intent: Intent) -> str:
    """Say how it goes on after a failure that passes: a run asks for what is due, no more."""
    change = record.change
    is_sent = change and change.order and change.order.sent
    if intent.command == "run" or is_sent:
        return "the next run tries again"
    force = " --force" if intent.force else ""
    return f"run citrixagent.py {intent.command}{force} {profile} again"


class Work:
    """One profile on its way through the pipeline: recall, observe, decide, advance, report."""

    def __init__(self, profile: Profile, view: View, run: Run) -> None:
        self.profile = profile
        self.result = Result(
            profile.name, profile.appliance.host, profile.certkey, warnings=list(profile.notices)
        )
        self.has_failed = False
        self._view = view
        self._run = run
        self._memory = Memory(profile.name, run)
        self._job = Job(profile, view, self._memory, self.result, run)
        self._key_maker = KeyMaker(self._job)
        self.ordering = Ordering(self._job)
        self._installer = Installer(self._job)
        self._observer = Observer(self._job, self._installer)
        self._seen: Observed | None = None
        self._plan: Plan | None = None
        self._is_begun = False
        self._preview: list[str] = []
        self._held: Certificate | None = None
        self._revoked: str | None = None  # the serial of what SCM says was revoked
        self._todo: list[Step] = []
        self._done: list[Step] = []

    @property
    def _record(self) -> Record:
        return self._memory.record

    # Planning

    def recall(self) -> None:
        """Read the record, before anything else is done."""
        self._memory.recall()
        installed = self._record.installed
        self._run.revocations.expected += bool(installed and installed.cert_id)

    def observe(self) -> None:
        """See how the profile stands."""
        self.result.appliance = self._view.client.host
        self._close_change()
        self.ordering.look_for_order()
        self._seen = self._observer.observe()
        self._held, change = self._seen.certificate, self._record.change
        managed = managed_id(self._record, self._held)
        self.result.cert_id = (change.new.cert_id if change else None) or managed
        if self._held:
            self.result.show(self._held)

    @property
    def in_question(self) -> str:
        """The id of what was installed, where SCM is to be asked whether it was revoked."""
        order = self._record.change.order if self._record.change else None
        asks = self._run.config.check_revocation and self._run.intent.command in {"run", "enroll"}
        installed = None if order and order.sent else self._record.installed
        return installed.cert_id or "" if installed and asks else ""

    def learn(self, cert_id: str, is_revoked: Callable[[], bool]) -> None:
        """Heed what SCM says of a certificate, where that is what is installed."""
        if self._seen and cert_id == managed_id(self._record, self._held):
            revoked = _told_revoked(is_revoked, cert_id, self._run, self.result)
            self._seen = dataclasses.replace(self._seen, revoked=revoked)

    def plan(self) -> None:
        """Decide, from what was seen; what is left to do is kept."""
        seen, self._seen = self._seen, None
        if seen is None:
            return
        plan = decide(self.profile, seen, self._run.intent)
        steps = plan.steps(self.profile)
        self.result.reason = plan.reason
        self.result.warnings += (*plan.warnings, *plan.notices)
        level = logging.INFO if steps else logging.DEBUG
        log.log(level, "%s: decided: %s: %s", self.profile.name, plan.outcome, plan.reason)
        if steps:
            is_rollback = self._run.intent.command == "rollback"
            Lookout(self._job).look(seen, steps, is_rollback=is_rollback)
        if seen.revoked and seen.certificate:
            self._revoked = seen.certificate.serial
        held = self._record.installed if _is_installed(seen) else None
        names = held.names if held else ()
        self._preview = preview(self.profile, plan, seen.certificate, names)
        if self._run.dry_run:
            self.result.warnings += taken_in_preview(self.profile, seen, plan, self._run.intent)
        self._plan = plan

    @property
    def would_order(self) -> bool:
        return self._plan is not None and Step.ORDER in self._plan.steps(self.profile)

    def blow(self, fuse: str) -> None:
        """Order nothing, because too much would be ordered; but let nothing lapse for that."""
        if self._held is None or not lapses(self._held, utc_now()):
            self.fail(AgentError("state", fuse))

    def prepare(self) -> None:
        """Look at what would double an order; what needs nothing of SCM first is taken up."""
        plan = self._plan
        if plan is None:
            return
        if plan.action:
            self._key_maker.check_appliance(plan)
        if plan.action is None or self._run.dry_run:
            self._begin(plan)

    def _begin(self, plan: Plan) -> None:
        """Begin what was decided; a dry run tells it."""
        steps = plan.steps(self.profile)
        self._is_begun = True
        if not self._run.dry_run:
            self._put_on_record(plan)
            self._todo = list(steps)
            if self.waits:
                self.ordering.wait()
        elif steps:
            self.result.outcome = "planned"
            self.result.steps = [step.value for step in steps]
            self.result.preview = self._preview

    def _close_change(self) -> None:
        """Close what an earlier run had finished but for the note of it."""
        closed = self._installer.binder.settled(self._installer.closed(self._record))
        if closed != self._record:
            self._memory.keep(closed)

    def _put_on_record(self, plan: Plan) -> None:
        """Put the plan on record: a change that is gone on with, a new one, or one given up."""
        record = self._record
        if record.change and plan.resumes:
            self._resume(record, record.change, plan)
        elif plan.action:
            # At once: the new change may be all that is known of the old one.
            self._memory.keep(begin(record, self._key_maker.new_change(plan, plan.action)))
            self._job.delete_litter()
        elif plan.restores:
            rollback = Change(plan.outcome, plan.reason, iso(utc_now()), plan.restores)
            self._memory.keep(begin(record, rollback))
        elif record.change:
            self._memory.keep(give_up(record))
        change = self._record.change
        agreed = change is not None and change.take_over
        self._installer.binder.may_take_over = agreed or self._run.intent.take_over

    def _resume(self, record: Record, change: Change, plan: Plan) -> None:
        """Go on with the open change; consent that the operator gives now is kept."""
        self._key_maker.resumes, self.ordering.named = True, plan.cert_id
        if plan.action:
            change = self._key_maker.take_up(plan, plan.action)
        change = dataclasses.replace(
            change, take_over=change.take_over or self._run.intent.take_over
        )
        if change != record.change:
            self._memory.keep(dataclasses.replace(record, change=change))

    # Doing

    @property
    def step(self) -> Step | None:
        """The next step; None before it is begun, and where none is left or one failed."""
        return self._todo[0] if self._todo and not self.has_failed else None

    @property
    def acts(self) -> bool:
        """Whether the next step before the save is one at the appliance."""
        return self.step not in {None, Step.ORDER, Step.COLLECT, Step.SAVE, Step.VERIFY}

    @property
    def waits(self) -> bool:
        """Whether an order is placed and its certificate not there yet."""
        return self.step is Step.COLLECT

    @property
    def _is_planned(self) -> bool:
        """Whether it is decided what to do, and not begun."""
        return self._plan is not None and not (self._is_begun or self.has_failed)

    @property
    def is_open(self) -> bool:
        """Whether something is left before the save."""
        return self._is_planned or self.step not in {None, Step.SAVE, Step.VERIFY}

    @property
    def asks(self) -> bool:
        """Whether SCM is to be asked for something now."""
        if self.waits:
            return self.ordering.asks_at() <= time.monotonic()
        return self._is_planned or self.step is Step.ORDER

    def errand(self) -> Callable[[], bool | None]:
        """Return what asks SCM, in any thread; what comes of it is for ``hear``."""
        if self.waits:
            return self.ordering.collect
        doing = self.step.value if self.step else "check"
        self._run.progress(f"SCM: {self.profile.name}: {doing}", self._run.config.timeout)
        if self._plan and self._is_planned:
            return functools.partial(self.ordering.check_scm, self._plan)
        self._key_maker.share_key()
        return self.ordering.order

    def hear(self, answer: Callable[[], bool | None]) -> None:
        """Go on with what an errand returned or raised, which ``answer`` does."""
        if self.waits:
            self._hear_of_certificate(answer)
            return
        answer()
        if self._is_begun:
            self._did(Step.ORDER)
        elif self._plan:
            self._begin(self._plan)

    def _hear_of_certificate(self, answer: Callable[[], bool | None]) -> None:
        try:
            is_there = answer()
        except AgentError as error:
            if error.kind not in {"unreachable", "unavailable"} or self.ordering.is_last:
                raise
            return  # it may pass while there is time to wait
        if is_there:
            self._did(Step.COLLECT)
            self.result.warnings += _lost_usages(self._held, self._installer.chain()[0])
        elif self.ordering.is_last:
            self.leave_pending()

    @property
    def needs_save(self) -> bool:
        """Whether the appliance's configuration was changed; never in a dry run."""
        is_next = self._todo[:1] == [Step.SAVE]
        return (self._record.unsaved or is_next) and not self._run.dry_run

    def advance(self, *until: Step) -> None:
        """Do the steps that are left, up to one of ``until`` (not included)."""
        while self._todo and self._todo[0] not in until:
            self._perform(self._todo[0])

    def _perform(self, step: Step) -> None:
        steps: Mapping[Step, Callable[[], None]] = {
            Step.CREATE_KEY: self._key_maker.create_key,
            Step.CREATE_CSR: self._key_maker.create_csr,
            Step.UPLOAD: self._installer.upload,
            Step.INSTALL: self._installer.install,
            Step.LINK: self._installer.link,
            Step.BIND: self._installer.binder.bind,
            Step.VERIFY: self._installer.verify,
            Step.CLEAN_UP: self._installer.clean_up,
        }
        doing = f"{self._view.client.host}: {self.profile.name}: {step.value}"
        self._run.progress(doing, self.profile.appliance.timeout)
        steps[step]()
        self._did(step)

    def _did(self, step: Step) -> None:
        order = _open_order(self._record) if step in {Step.ORDER, Step.COLLECT} else None
        which = f", order {order['cert_id']}" if order else ""
        log.info("%s: %s done%s", self.profile.name, step.value, which)
        self.result.warnings += self._view.client.take_warnings()
        self._todo.remove(step)
        self._done.append(step)
        self.result.steps.append(step.value)

    def looks(self) -> list[Callable[[], None]]:
        """Return what is to be looked at before the verification, where that is next."""
        return self._installer.looks() if self._todo[:1] == [Step.VERIFY] else []

    def saved(self) -> None:
        """Take note that the appliance saved its configuration."""
        self._installer.saved()
        if self._todo[:1] == [Step.SAVE]:
            self._installer.check_kept()
            self._did(Step.SAVE)

    # Reporting

    def fail(self, error: AgentError) -> None:
        """Take note of a failure; what fails before the first step says nothing about a change."""
        change = self._record.change if self._todo else None
        if change and change.order:
            error = self._fail_order(error)
        elif change:
            self._installer.fail_rollback(error)
        if isinstance(error, ScmError) and error.kind == "unavailable":
            who = _who_tries_again(self.profile.name, self._record, self._run.intent)
            error = AgentError("unavailable", f"{error.message}: {who}")
        self.has_failed = True
        self.result.warnings += self._view.client.take_warnings()
        self.result.fail(error)

    def _fail_order(self, error: AgentError) -> AgentError:
        """Note a failure on record; of a file that is missing after the upload, it is the key."""
        missing = isinstance(error, NitroError) and error.code in _FILE_MISSING
        is_lost = missing and Step.UPLOAD in self._done and not self._view.lacks_files
        return self.ordering.fail(error, file_missing=missing, key_lost=is_lost)

    def interrupt(self) -> None:
        """Report what was not finished when the run was interrupted."""
        planned = self._plan.steps(self.profile) if self._plan and not self._is_begun else ()
        steps = self._todo or planned
        if self.waits:
            self.leave_pending()
        elif not self.has_failed and (steps or not self._plan):
            what = steps[0].value if steps else "it was looked at"
            text = f"interrupted before {what}: the next run goes on from here"
            self.has_failed = True
            self.result.fail(AgentError("state", text))

    def leave_pending(self) -> None:
        """End the waiting of this run; beside a certificate that ends, that is a failure."""
        self._todo = []
        self.result.outcome, self.result.reason = "pending", self.ordering.wait_text()
        if self._held and lapses(self._held, utc_now()):
            text = f"order {self.ordering.cert_id} is still open, {self.result.reason}"
            verb = "ended" if self._held.not_after <= utc_now() else "ends"
            text += f", and what is installed {verb} at {iso(self._held.not_after)}"
            self.has_failed = True
            self.result.fail(AgentError("state", f"{text}: have the order approved or issued"))

    def take_stock(self) -> None:
        """Note how the profile stands now, as far as it was looked at, for status and metrics."""
        if not self._view.was_read:
            return
        self.result.standing = profile_standing(
            self.profile,
            self._record,
            self._installer.held(),
            failed=self.has_failed,
            revoked=self._revoked,
        )

    def finish(self) -> None:
        """Complete the result once every step is done."""
        self.result.warnings += self._view.expiring(self.profile.certkey, utc_now())
        self.result.warnings += self._installer.told_of_links()
        plan = self._plan
        if plan and plan.first and tuple(self._done) == plan.steps(self.profile):
            (leaf, *_) = self._installer.chain()
            self.result.outcome = plan.outcome
            self.result.show(leaf)
            self.result.cert_id = managed_id(self._record, leaf)


# ----- 17. Passes -----------------------------------------------------------------------------

_JOBS = 32  # appliances handled at the same time
_OWN_DESCRIPTORS, _DESCRIPTORS_EACH = 64, 6  # open files: of the process and for SCM, of a thread
_RANKS = {step: rank for rank, step in enumerate(PIPELINE)}
# Before these, the profiles of a pair wait for each other.
_TOGETHER = (Step.CREATE_CSR, Step.ORDER, Step.UPLOAD, Step.INSTALL)


def some_of(names: Sequence[str]) -> str:
    """Return the first names of a list that may be long."""
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _waiting_text(waiting: Sequence[Work]) -> str:
    names = some_of([work.profile.name for work in waiting])
    return f"{names}: waiting for {_count(len(waiting), 'certificate')}"


_Waiting: typing.TypeAlias = collections.deque[tuple[concurrent.futures.Future[T], Callable[[], T]]]


def _work_off(waiting: _Waiting[T]) -> None:
    while waiting:
        try:
            future, task = waiting.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            future.set_result(task())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)


def _affordable(threads: int) -> int:
    """Return how many threads there may be: each needs a few of this process's descriptors."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return threads
    return max(1, min(threads, (descriptors - _OWN_DESCRIPTORS) // _DESCRIPTORS_EACH))


def _start_threads(number: int, waiting: _Waiting[T]) -> list[threading.Thread]:
    """Have so many threads work off what waits; fewer, where the system gives no more."""
    threads: list[threading.Thread] = []
    try:
        for _ in range(number):
            thread = threading.Thread(target=_work_off, args=[waiting])
            thread.start()
            threads.append(thread)
    except RuntimeError:
        log.warning("this system gives no more than %d threads for this", len(threads))
    return threads


def in_threads(
    tasks: Sequence[Callable[[], T]], at_most: int
) -> list[concurrent.futures.Future[T]]:
    """Do tasks, so many at a time, and return what came of each; this thread does its share."""
    futures = [concurrent.futures.Future[T]() for _ in tasks]
    waiting = collections.deque(zip(futures, tasks, strict=True))
    threads = _start_threads(_affordable(min(at_most, len(tasks))) - 1, waiting)
    _work_off(waiting)
    for thread in threads:
        thread.join()
    return futures


@contextlib.contextmanager
def meanwhile(
    tasks: Sequence[Callable[[], T]], at_most: int
) -> Iterator[list[concurrent.futures.Future[T]]]:
    """Do tasks, so many at a time, while something else is done inside; all are done at its end.

    Where that fails, what was not begun is not done.
    """
    futures = [concurrent.futures.Future[T]() for _ in tasks]
    waiting = collections.deque(zip(futures, tasks, strict=True))
    threads = _start_threads(_affordable(min(at_most, len(tasks))), waiting)
    try:
        yield futures
        if not threads:
            _work_off(waiting)
    except BaseException:
        waiting.clear()
        raise
    finally:
        for thread in threads:
            thread.join()


def _together(tasks: Sequence[Callable[[], None]], at_most: int) -> None:
    """Do tasks at the same time; what one of them raises is raised when all have come to an end."""
    for done in in_threads(tasks, at_most):
        done.result()


def _beside(task: Callable[[], T]) -> concurrent.futures.Future[T]:
    """Do a task in a thread of its own, or here, where the system gives no more threads."""
    future = concurrent.futures.Future[T]()
    waiting = collections.deque([(future, task)])
    if not _start_threads(1, waiting):
        _work_off(waiting)
    return future


def _rank(work: Work) -> int:
    """Return how far a profile is along the pipeline; what is not begun is at its start."""
    return _RANKS[work.step] if work.step else 0


class Crew:
    """The profiles of one appliance: one session, whose requests follow each other, one save.

    Beside them runs what SCM is asked for. Of a profile it is always one thread that has it in
    hand: while it is on an errand nobody else touches it.
    """

    def __init__(self, appliance: Appliance, profiles: Sequence[Profile], run: Run) -> None:
        self.addresses = appliance.addresses
        self._run = run
        self._has_looked = False
        self._is_over = False  # it was interrupted
        self._view = View(appliance, run.context)
        self._works = [Work(profile, self._view, run) for profile in profiles]
        self._errands: dict[Work, concurrent.futures.Future[bool | None]] = {}
        self.results = [work.result for work in self._works]

    def recall(self) -> None:
        """Read the profiles' records: many small files, for which threads would only queue up."""
        self._each(self._works, Work.recall)

    def look(self) -> None:
        """Observe and decide: nothing is changed, but what an earlier run left is noted."""
        self._has_looked = True
        self._attempt(self._look)

    def run(self) -> None:
        """Bring every profile as far as it gets; what goes wrong stands in the results."""
        try:
            if not self._has_looked:
                self.look()
            if self._view.was_read and not self._is_over:
                self._attempt(self._act)
        finally:
            for work in self._works:
                work.take_stock()
            self._view.close()
            self._run.progress("")

    def orders(self) -> list[Work]:
        """Return the profiles for which something would be ordered."""
        return [work for work in self._works if work.would_order and not work.has_failed]

    def _attempt(self, do: Callable[[], None]) -> None:
        try:
            self._guarded(self._works, do)
        except Interrupted:
            self._is_over = True
            for work in self._works:
                work.interrupt()
        self._run.progress("")

    def _look(self) -> None:
        self._run.progress(f"{self._view.client.host}: reading", self._view.appliance.timeout)
        able = (work for work in self._works if not work.has_failed)
        asked = {work: cert_id for work in able if (cert_id := work.in_question)}
        is_revoked = self._run.revocations.is_revoked
        tasks = [functools.partial(is_revoked, cert_id) for cert_id in asked.values()]
        with meanwhile(tasks, CONNECTIONS) as answers:
            self._view.open()
            if text := self._view.client.clock_text():
                self._run.warn(f"{self._view.client.host}: {text}", "set the one that is wrong")
            self._each(self._works, Work.observe)
            if asked:
                self._run.progress(f"SCM: asking for {_count(len(asked), 'certificate')}")
        told = dict(zip(asked, answers, strict=True))
        self._each(told, lambda work: work.learn(asked[work], told[work].result))
        self._each(self._works, Work.plan)

    def _act(self) -> None:
        self._each(self._works, Work.prepare)
        try:
            self._make()
        finally:
            concurrent.futures.wait(self._errands.values())
            self._hear()
        self._save()
        self._look_at_servers()
        self._each(self._works, Work.advance)
        self._each(self._works, Work.finish)

    def _make(self) -> None:
        """Take profiles up to the save: keys, orders, certificates, installation.

        Keys come before what is installed, so that SCM has its orders early. On a pair all have
        their files made before any is synchronized; elsewhere no order waits for others' keys.
        """
        left = self._works
        while left := [work for work in left if work.is_open]:
            moving = self._moving(left)
            self._send(moving)
            acting = sorted((work for work in moving if work.acts), key=_rank)
            if acting:
                self._each(acting if self._view.client.is_pair else acting[:1], self._advance)
            else:
                self._pause(left)
            self._hear()

    def _moving(self, works: Sequence[Work]) -> list[Work]:
        """Return who can go on now: on a pair nobody who is ahead of others that can."""
        moving = [each for each in works if each in self._errands or each.acts or each.asks]
        phases = [sum(_RANKS[stop] <= _rank(work) for stop in self._stops) for work in moving]
        first = min(phases, default=0)
        return [work for work, phase in zip(moving, phases, strict=True) if phase == first]

    @property
    def _stops(self) -> Sequence[Step]:
        return _TOGETHER if self._view.client.is_pair else ()

    def _advance(self, work: Work) -> None:
        """Take a profile up to where it needs SCM, waits for others, or all are saved for."""
        ahead = (stop for stop in self._stops if _RANKS[stop] > _rank(work))
        work.advance(*ahead, Step.ORDER, Step.COLLECT, Step.SAVE, Step.VERIFY)

    def _send(self, works: Sequence[Work]) -> None:
        """Have SCM asked beside what is done here."""
        for work in works:
            has_room = len(self._errands) < CONNECTIONS
            if has_room and work not in self._errands and work.asks:
                self._guarded([work], functools.partial(self._send_one, work))

    def _send_one(self, work: Work) -> None:
        errand = work.errand()
        self._errands[work] = _beside(functools.partial(self._run.in_turn, errand))

    def _hear(self) -> None:
        """Go on with those whose errands have ended."""
        for work in [work for work, asked in self._errands.items() if asked.done()]:
            hear = functools.partial(work.hear, self._errands.pop(work).result)
            with contextlib.suppress(Interrupted):  # that ends the run elsewhere
                self._guarded([work], hear)

    def _pause(self, works: Sequence[Work]) -> None:
        """Wait until an errand has ended, or the next one is due."""
        waiting, now = [work for work in works if work.waits], time.monotonic()
        if waiting:
            longest = max(work.ordering.waits_until() for work in waiting) - now
            self._run.progress(_waiting_text(waiting), longest)
        due = [work.ordering.asks_at() for work in waiting if work not in self._errands]
        later = [at - now for at in due if at > now]
        if self._errands:
            first = concurrent.futures.FIRST_COMPLETED
            concurrent.futures.wait(self._errands.values(), min(later, default=None), first)
            self._run.context.interrupt.check()
        else:
            self._run.context.interrupt.wait(min(later, default=0.0))

    def _each(self, works: Iterable[Work], do: Callable[[Work], None]) -> None:
        """Do the same with every profile that has not failed; one's failure is nobody else's."""
        for number, work in enumerate(works):
            self._view.client.trust_role(again=number > 0)
            if not work.has_failed:
                self._guarded([work], functools.partial(do, work))

    @staticmethod
    def _guarded(works: Sequence[Work], do: Callable[[], None]) -> None:
        """Do something; what goes wrong is the failure of those profiles that have none yet."""
        try:
            do()
        except AgentError as error:
            failure = error
        except Exception as error:
            log.exception("unexpected")
            name = type(error).__name__
            failure = AgentError("state", f"unexpected {name}: the log in state/ tells more")
        else:
            return
        for work in works:
            if not work.has_failed:
                work.fail(failure)

    def _save(self) -> None:
        """Save once for all, also what a profile that failed has changed."""
        touched = [work for work in self._works if work.needs_save]
        if touched:
            self._guarded(touched, functools.partial(self._save_for, touched))

    def _save_for(self, works: Sequence[Work]) -> None:
        self._view.save()
        for work in works:
            self._guarded([work], work.saved)

    def _look_at_servers(self) -> None:
        """Look at what all virtual servers present, at the same time; it is judged one by one."""
        looks: list[Callable[[], None]] = []
        self._each(self._works, lambda work: looks.extend(self._looks_of(work)))
        if looks:
            text = f"looking at {_count(len(looks), 'virtual server')}"
            self._run.progress(f"{self._view.client.host}: {text}")
        _together(looks, PROBES_AT_ONCE)

    def _looks_of(self, work: Work) -> list[Callable[[], None]]:
        return [functools.partial(self._guarded, [work], look) for look in work.looks()]


def _by_address(crews: Iterable[Crew]) -> list[list[Crew]]:
    """Group the crews that share an address: they reach one appliance in different ways."""
    groups: list[list[Crew]] = []
    for crew in crews:
        shared = [group for group in groups if any(crew.addresses & o.addresses for o in group)]
        groups = [group for group in groups if group not in shared]
        groups.append([*(member for group in shared for member in group), crew])
    return groups


def _run_in_turn(crews: Iterable[Crew]) -> None:
    """Run the crews of one appliance one after another: its writes are never in parallel."""
    for crew in crews:
        crew.run()


def by_appliance(profiles: Iterable[Profile]) -> dict[Appliance, list[Profile]]:
    groups: dict[Appliance, list[Profile]] = {}
    for profile in profiles:
        groups.setdefault(profile.appliance, []).append(profile)
    return groups


def _look_in_turn(crews: Iterable[Crew]) -> None:
    for crew in crews:
        crew.look()


def _mind_the_fuse(crews: Iterable[Crew], limit: int) -> None:
    """Let nothing be ordered but what cannot wait, where too much would be ordered.

    An edit of the defaults, a wrong clock or a lost folder must not buy a fleet anew in a night.
    """
    works = [work for crew in crews for work in crew.orders()]
    if len(works) <= limit:
        return
    fuse = (  # a run of all would say no more of them in a dry run
        f"{len(works)} orders would be placed, max_orders is {limit}: nothing was ordered that can "
        f"wait; see what for with citrixagent.py run --dry-run {works[0].profile.name}, then raise "
        "max_orders in agent.yaml, or run the profiles by name"
    )
    for work in works:
        work.blow(fuse)


def run_all(profiles: Sequence[Profile], run: Run, jobs: int) -> list[Result]:
    """Handle all profiles, appliances in parallel; results stand in the order of their names.

    An interruption ends it early: what was not finished says so in its result.
    """
    crews = [Crew(appliance, members, run) for appliance, members in by_appliance(profiles).items()]
    for crew in crews:
        crew.recall()
    groups = _by_address(crews)
    if run.max_orders is not None and len(profiles) > run.max_orders:
        looks = [functools.partial(_look_in_turn, group) for group in groups]
        for done in in_threads(looks, jobs):
            done.result()
        _mind_the_fuse(crews, run.max_orders)
    for done in in_threads([functools.partial(_run_in_turn, group) for group in groups], jobs):
        done.result()
    results = [result for crew in crews for result in crew.results]
    return sorted(results, key=lambda result: result.profile)


# ----- 18. Report -----------------------------------------------------------------------------

_LEAST_WIDTH = 10  # of a column that gives room to others
_MANY = 3  # equal failures of one appliance that are one line
_COLOURS = {"failed": "red", "pending": "yellow", "planned": "cyan"}  # what was done is green
_PRINTED_FOR = dt.timedelta(days=7, hours=-1)  # a nightly run is not always at the same second


def is_terminal(stream: IO[str] | None) -> bool:
    """Tell whether somebody sits at a standard stream; one that was closed is None."""
    return stream is not None and stream.isatty()


def wants_colour() -> bool:
    """Tell whether colour and progress are welcome (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _cells(character: str) -> int:
    """Return how many columns of a terminal a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def text_width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_cells, text))


def clipped(text: str, width: int) -> str:
    """Return as much of a text as has room in so many columns; two dots stand for the rest."""
    if text_width(text) <= width:
        return text
    while text and text_width(text) > max(0, width - 2):
        text = text[:-1]
    return text + ".."[:width]


def terminal_width(stream: IO[str] | None) -> int | None:
    """Return the width of the terminal behind a stream; None where there is none."""
    if stream is None or not is_terminal(stream):
        return None
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def _narrowed(widths: Sequence[int], room: int, elastic: Sequence[int]) -> list[int]:
    """Take from the widest of the ``elastic`` columns until all have room, if they can."""
    found = list(widths)
    while sum(found) + 2 * (len(found) - 1) > room:
        widest = max(elastic, key=lambda column: found[column], default=None)
        if widest is None or found[widest] <= _LEAST_WIDTH:
            break
        found[widest] -= 1
    return found


def _padded(cell: str, width: int) -> str:
    shown = clipped(cell, width)
    return shown + " " * (width - text_width(shown))


def table(rows: Sequence[Sequence[str]], room: int | None, elastic: Sequence[str]) -> list[str]:
    """Return the lines of a table; the first row is its head.

    Where there is only so much ``room``, the columns named in ``elastic`` become narrower, and then
    they go, the first of them first; what is still too wide is cut.
    """
    shown = [[visible(cell) for cell in row] for row in rows]
    head = shown[0]
    widths = [max(map(text_width, column)) for column in zip(*shown, strict=True)]
    if room is not None:
        narrowed = _narrowed(widths, room, [head.index(name) for name in elastic])
        if elastic and sum(narrowed) + 2 * (len(head) - 1) > room:
            gone = head.index(elastic[0])
            rest = [[c for n, c in enumerate(row) if n != gone] for row in rows]
            return table(rest, room, elastic[1:])
        widths = narrowed
    lines = ["  ".join(map(_padded, row, widths)).rstrip() for row in shown]
    return lines if room is None else [clipped(line, room) for line in lines]


@dataclasses.dataclass(frozen=True)
class Awaited:
    """What a thread waits for, since when (a monotonic clock), and for how long at most."""

    text: str
    since: float
    limit: float | None

    def line(self, now: float) -> str:
        limit = f" of at most {self.limit:.0f}" if self.limit else ""
        return f"{self.text}, {now - self.since:.0f}{limit} s; Ctrl-C is safe"


def no_room_for_output(error: Exception) -> str:
    """Say why a stream cannot be written; empty where that is not what happened.

    Files have names, and who writes them tells of them.
    """
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
    if isinstance(error, OSError) and error.errno in full and error.filename is None:
        return f"the output cannot be written: {error.strerror}"
    return ""


class Console:
    """Where text leaves the program: one line at a time, without secrets and controls.

    On a terminal it says, in a line that ticks, what is awaited; of several things that which is
    awaited longest.
    """

    def __init__(self, redactor: Redactor, *, quiet: bool) -> None:
        self._redactor = redactor
        self._quiet = quiet  # --json: stdout holds the one object and nothing else
        self._lock = threading.Lock()
        self._awaited: dict[int, Awaited] = {}
        self._drawn = 0  # columns of the line of progress
        self.is_cut = False  # there was no room for what was printed
        self._closed = threading.Event()
        self._clock: threading.Thread | None = None
        self._ticks = is_terminal(sys.stderr) and wants_colour()
        self._paints = is_terminal(sys.stdout) and wants_colour()
        self.is_terminal = is_terminal(sys.stdout) and not quiet
        self.is_watched = is_terminal(sys.stderr)

    def say(self, line: str, colour: str = "") -> None:
        if not self._quiet:
            self._echo(line, colour if self._paints else "")

    def show(self, text: str) -> None:
        """Print a text of the program's own, which may have several lines."""
        for line in text.split("\n"):
            self.say(line)

    def complain(self, text: str) -> None:
        self._echo(text, err=True)

    def emit(self, data: Document) -> None:
        """Write the one JSON object."""
        with self._lock:
            self._clear()
            self._write(json.dumps(self._redactor.hide_in(data)))

    def progress(self, text: str, limit: float | None = None) -> None:
        """Say what this thread waits for from now on, and how long at most; nothing: it is done."""
        if not self._ticks:
            return
        with self._lock:
            me = threading.get_ident()
            self._awaited.pop(me, None)
            if text:
                self._awaited[me] = Awaited(text, time.monotonic(), limit)
            self._draw()
            if self._clock is None:
                self._clock = threading.Thread(target=self._tick, daemon=True)
                self._clock.start()

    def close(self) -> None:
        """Take the line of progress away for good."""
        self._closed.set()
        with self._lock:
            self._awaited.clear()
            self._clear()

    def _tick(self) -> None:
        while not self._closed.wait(1):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        self._clear()
        if not self._awaited:
            return
        longest = min(self._awaited.values(), key=lambda each: each.since)
        line = visible(self._redactor.hide(longest.line(time.monotonic())))
        room = (terminal_width(sys.stderr) or 80) - 1
        shown = clipped(line, room)
        click.echo(shown, nl=False, err=True)
        self._drawn = text_width(shown)

    def _clear(self) -> None:
        if self._drawn:
            click.echo("\r" + " " * self._drawn + "\r", nl=False, err=True)
            self._drawn = 0

    def _echo(self, text: str, colour: str = "", *, err: bool = False) -> None:
        line = visible(self._redactor.hide(text))
        with self._lock:
            self._clear()
            self._write(click.style(line, fg=colour) if colour else line, err=err)

    def _write(self, line: str, *, err: bool = False) -> None:
        """Print a line; a full disk, or a pipe that nobody reads, must not stop the rest."""
        try:
            click.echo(line, err=err)
        except OSError as error:
            if not err and (text := no_room_for_output(error)):
                self.is_cut = True
                self._write(f"error: {text}", err=True)
            stream = sys.stderr if err else sys.stdout
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _error_text(error: AgentError) -> str:
    return error.message if error.kind == "config" else f"error: {error.message}"


def _warning_text(profile: str, warning: str) -> str:
    """Return a warning as it is printed; ``profile`` is empty where it belongs to none."""
    return f"{profile}: warning: {warning}" if profile else f"warning: {warning}"


def _error_document(error: AgentError) -> Document:
    return {"kind": error.kind, "message": error.message}


def result_document(result: Result) -> Document:
    return {
        "profile": result.profile,
        "appliance": result.appliance,
        "certkey": result.certkey,
        "outcome": result.outcome,
        "reason": result.reason,
        "steps": result.steps,
        "not_after": result.not_after,
        "serial": result.serial,
        "cert_id": result.cert_id,
        "warnings": result.warnings,
        "error": _error_document(result.error) if result.error else None,
    }


def _line(result: Result) -> str:
    """Return the line about a profile; empty where there is nothing to tell."""
    name = result.profile
    if result.error and result.error.kind == "config":
        number = result.error.message.count("\n") + 1
        return f"{name}: failed: {_count(number, 'problem')} in its configuration"
    if result.error:
        return f"{name}: failed: {result.error.message}"
    valid = (result.not_after or "").partition("T")[0]
    done = result.outcome.replace("_", " ")
    lines = {
        "unchanged": "",
        "pending": f"{name}: pending, {result.reason} (order {result.cert_id})",
        "planned": f"{name}: {result.preview[0] if result.preview else result.reason}",
        "revoked": f"{name}: revoked (serial {result.serial}){result.note}",
    }
    otherwise = f"{name}: {done}, valid until {valid} (serial {result.serial})"
    return lines.get(result.outcome, otherwise)


def _failure_lines(results: Iterable[Result]) -> list[str]:
    """Return the lines about failures; many equal ones of one appliance are one."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        if result.error:
            place = result.appliance or result.profile  # a broken profile has no appliance
            key = (place, result.error.kind, result.error.message)
            groups.setdefault(key, []).append(result)
    lines = []
    for (place, _, message), members in groups.items():
        if len(members) < _MANY:
            lines += [_line(each) for each in members]
            continue
        names = some_of([each.profile for each in members])
        lines.append(f"{place} ({len(members)} profiles: {names}): failed: {message}")
    return lines


def _gist(warning: str) -> str:
    """Return what two warnings have in common that differ in the time that has passed."""
    return re.sub(r"\d+ (?=days?\b|hours?\b|s\b)", "", warning)


@dataclasses.dataclass
class Printed:
    """When each warning was last printed, by the profile that it is about ("": none)."""

    before: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    since: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    def is_new(self, profile: str, warning: str) -> bool:
        """Tell whether the last run did not give a warning, or it was printed a week ago."""
        now, gist = utc_now(), _gist(warning)
        last = self.before.get(profile, {}).get(gist)
        is_new = last is None or now - parse_iso(last) >= _PRINTED_FOR
        self.since.setdefault(profile, {})[gist] = iso(now) if is_new or not last else last
        return is_new


@dataclasses.dataclass
class Report:
    """Collects what happened and tells it: as lines, or as one JSON object."""

    command: Command
    console: Console
    as_json: bool
    dry_run: bool = False
    verbose: bool = False
    nothing_usable: bool = False  # no profile could be read
    started: str = dataclasses.field(default_factory=lambda: iso(utc_now()))
    finished: str = ""
    results: list[Result] = dataclasses.field(default_factory=list)
    own: Document | None = None  # what a command's JSON object has in place of results
    found: ExitCode | None = None  # what a command that only looks has come to
    warnings: list[str] = dataclasses.field(default_factory=list)  # that belong to no profile
    errors: list[AgentError] = dataclasses.field(default_factory=list)  # that stopped everything
    failures: list[AgentError] = dataclasses.field(default_factory=list)  # of parts of a list
    printed: Printed = dataclasses.field(default_factory=Printed)
    _warned: set[str] = dataclasses.field(default_factory=set)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def warn(self, text: str, reason: str) -> None:
        """Take a warning that belongs to no profile, from any thread; once, with its first reason.

        A server that is down is told in several ways: refused, then left alone.
        """
        with self._lock:
            if text not in self._warned:
                self._warned.add(text)
                self.warnings.append(f"{text}: {reason}")

    def exit_code(self) -> int:
        """Return the exit code: what stopped everything, else failures, else what is pending.

        A wrong configuration stops everything only where nothing usable is left.
        """
        if self.errors:
            return self.errors[0].exit_code
        if self.found is not None:
            return self.found
        failed = [result.error for result in self.results if result.error]
        if failed and self.nothing_usable:
            return ExitCode.CONFIG
        if failed or self.failures:
            return ExitCode.FAILED
        pending = any(result.outcome == "pending" for result in self.results)
        return ExitCode.PENDING if pending else ExitCode.OK

    def warn_late(self, text: str, profile: str = "") -> None:
        """Take note of a warning that comes after the results were told, and tell it."""
        about = next((each for each in self.results if profile and each.profile == profile), None)
        (about.warnings if about else self.warnings).append(text)
        log.warning("%s", f"{profile}: {text}" if profile else text)
        self._tell_warning(profile, text)

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines about profiles, each with its colour; failures stand last."""
        done = [result for result in self.results if not result.error]
        lines = []
        for result in done:
            if text := _line(result):
                lines.append((visible(text), _COLOURS.get(result.outcome, "green")))
            lines += [(f"  {visible(text)}", "") for text in result.preview[1:]]
        lines += [(visible(text), _COLOURS["failed"]) for text in _failure_lines(self.results)]
        if self.dry_run and any(result.preview for result in done):
            orders = sum("order" in result.steps for result in done)
            lines.append((f"{_count(orders, 'order')} would be placed", ""))
        return lines

    def problems(self) -> list[str]:
        """Return what is wrong with profiles' files, and what belongs to no profile."""
        files = [each.error for each in self.results if each.error and each.error.kind == "config"]
        found = [line for error in files for line in error.message.split("\n")]
        for error in self.errors + self.failures:
            found += _error_text(error).split("\n")
        return list(dict.fromkeys(found))  # a file that profiles share is told once

    def text(self) -> list[str]:
        """Return all that was told, for those who were not there."""
        warnings = [(result.profile, text) for result in self.results for text in result.warnings]
        warnings += [("", text) for text in self.warnings]
        told = [text for text, _ in self.lines()] + self.problems()
        told += [_warning_text(*each) for each in warnings]
        return [*told, self.summary()] if self.results else told

    def tell(self) -> None:
        """Print lines, problems, warnings; and on a terminal a summary."""
        self.finished = self.finished or iso(utc_now())
        if not self.as_json:
            for text, colour in self.lines():
                self.console.say(text, colour)
            for problem in self.problems():
                self.console.complain(problem)
        for result in self.results:
            for warning in result.warnings:
                self._tell_warning(result.profile, warning)
        for warning in self.warnings:
            self._tell_warning("", warning)
        if self.console.is_terminal and self.results:
            self.console.say(self.summary())

    def _tell_warning(self, profile: str, warning: str) -> None:
        """Print a warning; where nobody watches, such as in cron's mail, only what is new."""
        is_new = self.printed.is_new(profile, warning)
        if not self.as_json and (is_new or self.verbose or self.console.is_watched):
            self.console.complain(_warning_text(profile, warning))

    def summary(self) -> str:
        counts: dict[str, int] = {}
        for result in self.results:
            counts[result.outcome] = counts.get(result.outcome, 0) + 1
        parts = [f"{number} {outcome.replace('_', ' ')}" for outcome, number in counts.items()]
        told = f"{_count(len(self.results), 'profile')}: {', '.join(parts)}"
        return f"{told}; citrixagent.py check tells more" if "failed" in counts else told

    def emit(self, code: int) -> None:
        """Print the JSON object, if that was asked for."""
        if self.as_json:
            self.console.emit(self.document(code))

    def document(self, code: int) -> Document:
        """Return the JSON object of this command."""
        body: Document = {"version": 1, "command": self.command}
        body |= {"dry_run": self.dry_run} if self.own is None else self.own
        finished = self.finished or iso(utc_now())
        body |= {"started": self.started, "finished": finished, "exit_code": int(code)}
        errors = self.errors + self.failures
        if self.own is None:
            body["profiles"] = [result_document(result) for result in self.results]
        else:
            errors += [result.error for result in self.results if result.error]
        body["warnings"] = self.warnings
        body["errors"] = [_error_document(error) for error in errors]
        return body


# ----- 19. Status -----------------------------------------------------------------------------

LEVELS = ("critical", "warning", "unknown", "ok")
"""How bad it is, the worst first."""
_STALE = dt.timedelta(hours=36)  # a nightly run that is older than this did not take place
_LONG_OPEN = dt.timedelta(days=3)


@dataclasses.dataclass(frozen=True)
class Limits:
    """From how many days left on a certificate is a warning, and critical."""

    warn: int = 14
    critical: int = 7


@dataclasses.dataclass(frozen=True)
class Item:
    """One profile as its last command saw it (``entry``; empty: none did), judged now."""

    profile: str
    entry: Document
    days_left: int | None
    level: str
    remark: str  # what is the matter with it

    def text(self, key: str) -> str:
        return str(self.entry.get(key) or "")

    def moment(self, key: str) -> dt.datetime | None:
        return parse_iso(self.entry[key]) if self.entry.get(key) else None


@dataclasses.dataclass(frozen=True)
class Overview:
    """All that status tells, whatever the format; the worst items first."""

    now: dt.datetime
    limits: Limits
    items: tuple[Item, ...]
    run: Document | None
    level: str
    message: str

    def count(self, level: str) -> int:
        return sum(item.level == level for item in self.items)


def _days(number: int) -> str:
    return _count(number, "day")


def _left_text(days: int) -> str:
    return f"expired {_days(-days)} ago" if days < 0 else f"{_days(days)} left"


def _judge_failed(entry: Document, days: int | None, limits: Limits) -> tuple[str, str]:
    """Judge a profile that failed; without a certificate there is nothing that could last."""
    error = entry["error"]
    lines = error["message"].split("\n")
    text = f"{error['kind']}: {lines[0]}" + f" (and {len(lines) - 1} more)" * (len(lines) > 1)
    level = "critical" if days is None or days <= limits.warn else "warning"
    return level, f"failed, {text}"


def _days_left(entry: Document, now: dt.datetime) -> int | None:
    end = entry.get("not_after")
    return (parse_iso(end) - now).days if end else None


def judge(entry: Document, now: dt.datetime, limits: Limits) -> tuple[str, str]:
    """Return a profile's level, and what is the matter with it."""
    order, state, days = entry.get("order"), entry.get("state"), _days_left(entry, now)
    due = entry.get("due") or entry.get("renews")
    is_due = state == "due" or bool(due and parse_iso(due) <= now)
    found = []
    if days is not None and days <= limits.critical:
        found.append(("critical", _left_text(days)))
    if state in {"revoked", "not installed"}:
        found.append(("critical", state))
    if entry.get("error"):
        found.append(_judge_failed(entry, days, limits))
    if days is not None and limits.critical < days <= limits.warn and is_due:
        found.append(("warning", _left_text(days)))
    if order and now - parse_iso(order["since"]) >= _LONG_OPEN:
        waiting = _days((now - parse_iso(order["since"])).days)
        found.append(("warning", f"order {order['cert_id']} pending for {waiting}"))
    if state == "rolled back":
        found.append(("warning", state))
    level = min((level for level, _ in found), key=LEVELS.index, default="ok")
    return level, ", ".join(text for _, text in found)


def _item(profile: str, entry: Document | None, now: dt.datetime, limits: Limits) -> Item:
    if entry is None:
        return Item(profile, {}, None, "unknown", "no command has handled it yet")
    level, remark = judge(entry, now, limits)
    return Item(profile, entry, _days_left(entry, now), level, remark)


def _by_badness(item: Item) -> tuple[int, float, str]:
    days = math.inf if item.days_left is None else item.days_left
    return LEVELS.index(item.level), days, item.profile


def _next_renewal(items: Iterable[Item], now: dt.datetime) -> tuple[str, str]:
    """Return when the next profile becomes due, and which; two empty texts where none does."""
    coming = [(item.text("renews"), item.profile) for item in items]
    return min((each for each in coming if each[0] >= iso(now)), default=("", ""))


def _all_well(items: Sequence[Item], now: dt.datetime) -> str:
    date, profile = _next_renewal(items, now)
    text = _count(len(items), "profile")
    return f"{text}, next renewal {profile} on {date.partition('T')[0]}" if date else text


def _stale_text(run: Document | None, now: dt.datetime) -> str:
    """Say that the last full run is too long ago; empty where it is not."""
    if run is None or (age := now - parse_iso(run["finished"])) <= _STALE:
        return ""
    hours = int(age.total_seconds()) // 3600
    return f"the last full run ended {hours} hours ago, at {run['finished']}"


def overview(
    names: Iterable[str], last_run: Document, now: dt.datetime, limits: Limits
) -> Overview:
    """Judge what the last commands saw: ``names`` of profiles and the content of last-run.json."""
    entries, run = last_run.get("profiles", {}), last_run.get("run")
    items = sorted((_item(name, entries.get(name), now, limits) for name in names), key=_by_badness)
    stale = _stale_text(run, now)
    levels = [item.level for item in items] + ["critical"] * bool(stale)
    level = min(levels, key=LEVELS.index, default="unknown")
    remarks = [stale] * bool(stale)
    remarks += [f"{item.profile}: {item.remark}" for item in items if item.level != "ok"]
    more = f"and {len(remarks) - 10} more"
    shown = remarks if len(remarks) <= 10 else [*remarks[:10], more]
    message = "; ".join(shown) or (_all_well(items, now) if items else "there are no profiles")
    return Overview(now, limits, tuple(items), run, level, message)


# Formats


def run_text(run: Document | None, clock: Callable[[str], str]) -> str:
    """Return the line on the last full run, for people; ``clock`` writes a time."""
    if run is None:
        return "there was no full run yet"
    text = f"the last full run ended {clock(run['finished'])} with exit code {run['exit_code']}"
    success = run.get("last_success")
    if success == run["finished"]:
        return text
    return f"{text}, the last success {clock(success) if success else 'never'}"


def status_document(seen: Overview) -> Document:
    """Return what ``status --json`` prints."""
    keys = ("appliance", "certkey", "outcome", "state", "not_after", "renews")
    return {
        "version": 1,
        "command": "status",
        "level": seen.level,
        "message": seen.message,
        "last_run": seen.run,
        "profiles": [
            {
                "profile": item.profile,
                **{key: item.entry.get(key) for key in keys},
                "days_left": item.days_left,
                "order": item.entry.get("order"),
                "error": item.entry.get("error"),
                "seen": item.entry.get("seen"),
                "level": item.level,
            }
            for item in seen.items
        ],
        "warnings": [],
        "errors": [],
    }


_LEVEL_COLOURS = {"critical": "red", "warning": "yellow", "unknown": "magenta", "ok": "green"}
_BAR = 20  # characters
STATUS_HEAD = (
    "LEVEL",
    "PROFILE",
    "APPLIANCE",
    "STATE",
    "LIFETIME",
    "DAYS",
    "ENDS",
    "RENEWS",
    "REMARK",
)


def _life_bar(item: Item, now: dt.datetime) -> str:
    """Draw a lifetime: what has passed, the due date, what is left."""
    begin, due, end = (item.moment(key) for key in ("not_before", "due", "not_after"))
    if not (begin and end) or end <= begin:
        return ""
    bar = list("." * _BAR)
    passed = min(_BAR, max(0, int(_BAR * ((now - begin) / (end - begin)))))
    bar[:passed] = "=" * passed
    if due:
        bar[min(_BAR - 1, max(0, int(_BAR * ((due - begin) / (end - begin)))))] = "|"
    return f"[{''.join(bar)}]"


def _status_row(item: Item, now: dt.datetime) -> tuple[str, ...]:
    return (
        item.level,
        item.profile,
        item.text("appliance") or "-",
        item.text("state") or "-",
        _life_bar(item, now),
        "-" if item.days_left is None else str(item.days_left),
        item.text("not_after")[:10] or "-",
        item.text("renews")[:10] or "-",
        item.remark,
    )


def status_lines(seen: Overview, room: int | None) -> list[tuple[str, str]]:
    """Return a table of the profiles and a line on the last full run, each with its colour."""
    rows = [STATUS_HEAD, *(_status_row(item, seen.now) for item in seen.items)]
    lines = table(rows, room, ["LIFETIME", "APPLIANCE", "RENEWS", "REMARK", "PROFILE"])
    colours = ["", *(_LEVEL_COLOURS[item.level] for item in seen.items)]
    stale = _stale_text(seen.run, seen.now)
    last = visible(stale or run_text(seen.run, str))
    told = list(zip(lines, colours, strict=True)) if seen.items else [("there are no profiles", "")]
    return [*told, (last[0].upper() + last[1:], "red" if stale else "")]


NAGIOS_CODES: Mapping[str, int] = {"ok": 0, "warning": 1, "critical": 2, "unknown": 3}
_BREAKS_LINE = re.compile(r"[|\r\n]")


def _nagios_label(profile: str) -> str:
    name = f"profile_{profile}" if profile in {"failed", "pending"} else profile
    name = _BREAKS_LINE.sub("/", name)
    quoted = name.replace("'", "''")
    return visible(f"'{quoted}'" if re.search(r"[\s=']", name) else name)


def nagios_text(level: str, message: str) -> str:
    """Return a monitor's line without its figures; what would end it becomes a slash."""
    return f"CITRIXAGENT {level.upper()} - " + visible(_BREAKS_LINE.sub("/", message))


def nagios_line(seen: Overview) -> str:
    """Return the line that Nagios, Icinga and their kin expect of a check."""
    limits = f";{seen.limits.warn}:;{seen.limits.critical}:;0"
    figures = [
        f"{_nagios_label(item.profile)}={item.days_left}{limits}"
        for item in sorted(seen.items, key=lambda item: item.profile)
        if item.days_left is not None
    ]
    figures.append(f"failed={sum(bool(item.entry.get('error')) for item in seen.items)}")
    figures.append(f"pending={sum(item.text('outcome') == 'pending' for item in seen.items)}")
    return f"{nagios_text(seen.level, seen.message)} | {' '.join(figures)}"


def _label(value: str) -> str:
    for character, escaped in (("\\", r"\\"), ('"', r"\""), ("\n", r"\n")):
        value = value.replace(character, escaped)
    return value


Sample = tuple[int, dict[str, str]]
"""A value of a metric, and its labels."""


def _sample_line(name: str, sample: Sample) -> str:
    value, labels = sample
    inside = ",".join(f'{key}="{_label(visible(text))}"' for key, text in labels.items())
    return f"citrixagent_{name}{{{inside}}} {value}" if inside else f"citrixagent_{name} {value}"


def _seconds(time: str) -> int:
    return int(parse_iso(time).timestamp())


def _certificate_samples(items: Iterable[Item], key: str) -> list[Sample]:
    return [
        (
            _seconds(item.entry[key]),
            {
                "profile": item.profile,
                "appliance": item.text("appliance"),
                "certkey": item.text("certkey"),
            },
        )
        for item in items
        if item.entry.get(key)
    ]


def _failure_sample(item: Item) -> Sample:
    error = item.entry.get("error") or {}
    return int(bool(error)), {"profile": item.profile, "kind": error.get("kind", "")}


def _order_samples(items: Iterable[Item]) -> list[Sample]:
    orders = {item.profile: item.entry.get("order") for item in items}
    return [(_seconds(order["since"]), {"profile": n}) for n, order in orders.items() if order]


def _run_samples(run: Document | None, key: str) -> list[Sample]:
    if not run or run.get(key) is None:
        return []
    return [(run[key] if key == "exit_code" else _seconds(run[key]), {})]


def metrics(seen: Overview) -> str:
    """Return the text for Prometheus' node exporter."""
    items = sorted((i for i in seen.items if i.entry), key=lambda item: item.profile)
    families: dict[str, tuple[str, list[Sample]]] = {
        "certificate_not_after_timestamp_seconds": (
            "When the installed certificate ends.",
            _certificate_samples(items, "not_after"),
        ),
        "certificate_renewal_timestamp_seconds": (
            "When the installed certificate becomes due.",
            _certificate_samples(items, "renews"),
        ),
        "profile_failed": (
            "Whether the last command for the profile failed, and the kind of error.",
            [_failure_sample(item) for item in items],
        ),
        "order_open_since_timestamp_seconds": (
            "Since when an order waits at SCM.",
            _order_samples(items),
        ),
        "last_run_timestamp_seconds": (
            "When the last full run ended.",
            _run_samples(seen.run, "finished"),
        ),
        "last_success_timestamp_seconds": (
            "When the last full run ended that had exit code 0 or 5.",
            _run_samples(seen.run, "last_success"),
        ),
        "last_run_exit_code": (
            "The exit code of the last full run.",
            _run_samples(seen.run, "exit_code"),
        ),
        "build_info": ("The program's version.", [(1, {"version": __version__})]),
    }
    lines = []
    for name, (text, samples) in families.items():
        if samples:
            lines += [f"# HELP citrixagent_{name} {text}", f"# TYPE citrixagent_{name} gauge"]
            lines += [_sample_line(name, sample) for sample in samples]
    return "\n".join(lines) + "\n"


# The page

_STYLE = """
:root{color-scheme:light dark;
--paper:#f6f7f9;--card:#fff;--ink:#16202c;--soft:#5a6675;--line:#dfe4ea;
--track:#e4e9ef;--ok:#1a7f4b;--warning:#a85b00;--critical:#c3262e;--unknown:#65717f;--today:#16202c}
@media (prefers-color-scheme:dark){:root{
--paper:#10151b;--card:#182029;--ink:#e6ebf0;--soft:#9aa7b4;
--line:#2a3541;--track:#2a3541;--ok:#4cc38a;--warning:#f0a13c;--critical:#ff7b7b;--unknown:#98a4b1;
--today:#e6ebf0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.45 system-ui,sans-serif;
overflow-wrap:anywhere}
main{max-width:1100px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:1.55rem;line-height:1.25;margin:0}
h2{font-size:1.05rem;margin:0}
p{margin:0}
.soft{color:var(--soft);font-size:.87rem}
.ok{--tone:var(--ok)}.warning{--tone:var(--warning)}.critical{--tone:var(--critical)}
.unknown{--tone:var(--unknown)}
.verdict{border-left:6px solid var(--tone);padding-left:16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px;margin:22px 0}
.tile,section{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:12px 16px}
.tile b{font-size:1.35rem;line-height:1.35;font-variant-numeric:tabular-nums}
.tile b,.tile .soft{display:block;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.tile.some b{color:var(--tone)}
section{margin:0 0 18px;padding:16px 18px 8px}
.head{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:baseline;justify-content:space-between}
.row,.axis{display:grid;grid-template-columns:minmax(0,15rem) minmax(0,1fr) 6rem 6rem 6.5rem;
gap:0 16px;align-items:center}
.row{border-top:1px solid var(--line);break-inside:avoid;font-variant-numeric:tabular-nums}
.row>:not(svg){padding:7px 0}
.axis{color:var(--soft);font-size:.74rem;padding-top:8px}
.name{font-weight:600}
.badge{display:inline-block;border:1px solid var(--tone);color:var(--tone);border-radius:99px;
padding:0 8px;font-size:.74rem;line-height:1.5;white-space:nowrap}
.left{color:var(--tone);font-weight:600;text-align:right}.axis .left{color:inherit;font-weight:400}
.day i{display:none}
.trouble{list-style:none;margin:10px 0 8px;padding:0}
.trouble li{border-top:1px solid var(--line);padding:7px 0;break-inside:avoid}
.trouble .remark{color:var(--tone)}
svg{display:block;width:100%;height:40px;overflow:hidden}
.axis svg{height:18px}
.base{fill:var(--card)}.track{fill:var(--track)}.past{fill:var(--tone);opacity:.36}.rest{fill:var(--tone)}
.mid{transform:translateY(-5px)}
.due{stroke:var(--ink);stroke-width:2}
.today{stroke:var(--today);stroke-width:1.5;stroke-dasharray:3 2}
.axis text{fill:var(--soft);font-size:11px}.axis .now{fill:var(--ink);font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0 0 14px}
.legend svg{display:inline-block;width:30px;height:14px;vertical-align:-2px;margin-right:6px}
footer{margin-top:24px}
@media (max-width:720px){
main{padding:18px 12px 32px}section{padding:14px 12px 6px}
.tile{padding:10px 12px}.tile b{font-size:1.15rem}
.row{grid-template-columns:auto auto minmax(0,1fr)}
.row>:not(svg){padding:3px 0}.row>:first-child{grid-column:1/-1;padding-top:8px!important}
.row svg{grid-column:1/-1;height:26px}
.row .day{color:var(--soft);font-size:.87rem;padding-bottom:8px}.row .left{padding-bottom:8px}
.day i{display:inline;font-style:normal}
.axis{display:block}.axis>span{display:none}
}
@media print{
:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--track:#e2e2e2;--ok:#1a7f4b;
--warning:#a85b00;--critical:#c3262e;--unknown:#555;--today:#000;color-scheme:light}
.row,.axis{grid-template-columns:minmax(0,9rem) minmax(0,1fr) 5.2rem 5.2rem 4.6rem;gap:0 10px}
.tile{padding:6px 10px}.tile b{font-size:1.1rem}svg{height:32px}
body{font-size:9.5pt}main{max-width:none;padding:0}section{border:0;padding:8px 0}
.head{break-after:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
""".strip()
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclasses.dataclass(frozen=True)
class Scale:
    """The stretch of time that every line of a page shows."""

    start: dt.datetime
    end: dt.datetime
    now: dt.datetime

    def at(self, moment: dt.datetime) -> float:
        """Return where a moment lies, in per cent; what is outside lies at the edge."""
        share = (moment - self.start) / (self.end - self.start)
        return round(100 * min(1.0, max(0.0, share)), 2)

    def months(self) -> list[dt.datetime]:
        """Return the firsts of months to label, so few that the labels have room."""
        first = self.start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        count = (self.end.year - first.year) * 12 + self.end.month - first.month + 1
        step = next(step for step in (1, 2, 3, 6, 12, 60, 600) if count <= 9 * step or step == 600)
        months = (first.month - 1 + number for number in range(count))
        found = (first.replace(year=first.year + m // 12, month=m % 12 + 1) for m in months)
        return [m for m in found if (m.month - 1) % min(step, 12) == 0 and m > self.start]


def _scale(items: Iterable[Item], now: dt.datetime) -> Scale:
    """Return a scale that holds every certificate; of very long lives only the part near today."""
    moments = [item.moment(key) for item in items for key in ("not_before", "not_after")]
    known = [moment for moment in moments if moment]
    start = max(min([*known, now - dt.timedelta(days=14)]), now - dt.timedelta(days=200))
    end = min(max([*known, now + dt.timedelta(days=30)]), now + dt.timedelta(days=420))
    return Scale(start, end + dt.timedelta(days=4), now)


def _escape(text: str) -> str:
    return html.escape(visible(text))


def _bar(kind: str, left: float, right: float) -> str:
    width = max(0.0, round(right - left, 2))
    return f'<rect class="{kind} mid" x="{left}%" y="50%" width="{width}%" height="10"/>'


def _mark(kind: str, at: float, top: str = "0", bottom: str = "100%") -> str:
    return f'<line class="{kind}" x1="{at}%" x2="{at}%" y1="{top}" y2="{bottom}"/>'


def _life_text(item: Item) -> str:
    """Say in words what the line of time shows."""
    dates = {"from": "not_before", "due": "due", "until": "not_after"}
    parts = [f"{word} {item.text(key)[:10]}" for word, key in dates.items() if item.text(key)]
    return ", ".join(parts) or "no certificate"


def _timeline(item: Item, scale: Scale) -> str:
    """Draw one certificate's life: what has passed, what is left, the due date and today."""
    begin, due, end = (item.moment(key) for key in ("not_before", "due", "not_after"))
    today = scale.at(scale.now)
    parts = [f"<title>{_escape(_life_text(item))}</title>"]
    parts += ['<rect class="track" x="0" y="50%" width="100%" height="1"/>']
    if end:
        first, last = scale.at(begin or min(scale.now, end)), scale.at(end)
        middle = min(max(today, first), last)
        parts += [_bar("base", first, last), _bar("past", first, middle)]
        parts += [_bar("rest", middle, last)]
    if due:
        parts.append(_mark("due", scale.at(due), "22%", "78%"))
    parts.append(_mark("today", today))
    return f'<svg role="img">{"".join(parts)}</svg>'


def _axis(scale: Scale) -> str:
    today = scale.at(scale.now)
    labels = []
    for month in scale.months():
        at = scale.at(month)
        text = _MONTHS[month.month - 1] + (f" {month.year}" if month.month == 1 else "")
        if abs(at - today) > (14 if month.month == 1 else 9) and at < 95:
            labels.append(f'<text x="{at}%" y="13" text-anchor="middle">{text}</text>')
    anchor = "start" if today < 4 else "middle"
    labels.append(f'<text class="now" x="{today}%" y="13" text-anchor="{anchor}">today</text>')
    axis = f'<svg aria-hidden="true">{"".join(labels)}</svg>'
    heads = '<span>renews</span><span>ends</span><span class="left">left</span>'
    return f'<div class="axis"><span></span>{axis}{heads}</div>'


def _day_html(label: str, time: str) -> str:
    day = time.partition("T")[0]
    return f'<div class="day"><i>{label} </i>{_escape(day)}</div>' if day else "<div></div>"


def _item_html(item: Item, scale: Scale) -> str:
    certkey = item.text("certkey")
    second = f'<br><span class="soft">{_escape(certkey)}</span>' if certkey != item.profile else ""
    left = "no certificate" if item.days_left is None else _left_text(item.days_left)
    return (
        f'<div class="row {item.level}"><div><span class="name">{_escape(item.profile)}</span> '
        f'<span class="badge">{_escape(item.text("state") or "unknown")}</span>{second}</div>'
        f"{_timeline(item, scale)}{_day_html('renews', item.text('renews'))}"
        f"{_day_html('ends', item.text('not_after'))}"
        f'<div class="left">{_escape(left.removesuffix(" left"))}</div></div>'
    )


def _section_html(appliance: str, items: Sequence[Item], scale: Scale) -> str:
    counts = [(level, sum(item.level == level for item in items)) for level in LEVELS]
    told = ", ".join(f"{number} {level}" for level, number in counts if number)
    rows = "".join(_item_html(item, scale) for item in items)
    title = _escape(appliance) if appliance else "appliance not known"
    return (
        f'<section><div class="head"><h2>{title}</h2><span class="soft">'
        f"{_count(len(items), 'certificate')}: {told}</span></div>{_axis(scale)}{rows}</section>"
    )


def _trouble_row(level: str, appliance: str, remark: str, names: Sequence[str]) -> str:
    who = names[0] if len(names) == 1 else f"{len(names)} profiles: {some_of(names)}"
    return (
        f'<li class="{level}"><span class="badge">{level}</span> '
        f'<span class="name">{_escape(who)}</span> <span class="soft">{_escape(appliance)}</span> '
        f'<span class="remark">{_escape(remark)}</span></li>'
    )


def _trouble_html(items: Iterable[Item]) -> str:
    """List what needs a look, wherever it is, the same trouble once; empty where nothing does."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for item in items:
        if item.level != "ok":
            key = (item.level, item.text("appliance"), item.remark)
            groups.setdefault(key, []).append(item.profile)
    rows = "".join(_trouble_row(*key, names) for key, names in groups.items())
    title = '<div class="head"><h2>What needs a look</h2></div>'
    return f'<section>{title}<ul class="trouble">{rows}</ul></section>' if rows else ""


def _tile(level: str, number: str, text: str, *, some: bool) -> str:
    return (
        f'<div class="tile {level}{" some" * some}"><b>{_escape(number)}</b>'
        f'<span class="soft">{_escape(text)}</span></div>'
    )


def _tiles(seen: Overview) -> str:
    tiles = [
        _tile(level, str(seen.count(level)), level, some=bool(seen.count(level)))
        for level in LEVELS
    ]
    date, profile = _next_renewal(seen.items, seen.now)
    if date:
        tiles.append(_tile("ok", date[:10], f"next renewal: {profile}", some=False))
    return f'<div class="tiles">{"".join(tiles)}</div>'


_LEGEND = (
    '<p class="legend soft"><span><svg class="ok"><rect class="past" y="2" width="14" height="10"/>'
    '<rect class="rest" x="14" y="2" width="16" height="10"/></svg>lifetime: passed, left</span>'
    '<span><svg><line class="due" x1="15" x2="15" y1="0" y2="14"/></svg>becomes due</span>'
    '<span><svg><line class="today" x1="15" x2="15" y1="0" y2="14"/></svg>today</span></p>'
)


def _verdict(seen: Overview) -> str:
    troubled, number = sum(item.level != "ok" for item in seen.items), len(seen.items)
    if stale := _stale_text(seen.run, seen.now):
        return stale[0].upper() + stale[1:]
    if not number:
        return "There are no profiles"
    if not troubled:
        return "All is well"
    return f"{troubled} of {_count(number, 'certificate')} need{'s' * (troubled == 1)} a look"


def _time_html(time: str) -> str:
    return (
        f'<time datetime="{_escape(time)}">{_escape(time[:10])} {_escape(time[11:16])} UTC</time>'
    )


def status_page(seen: Overview) -> str:
    """Return one HTML page that needs nothing else: no script, no font, no address outside."""
    groups: dict[str, list[Item]] = {}
    for item in seen.items:  # the worst first: so the group of the worst comes first as well
        groups.setdefault(item.text("appliance"), []).append(item)
    scale = _scale(seen.items, seen.now)
    sections = "".join(_section_html(name, members, scale) for name, members in groups.items())
    made = f"Made {_time_html(iso(seen.now))}; {run_text(seen.run, _time_html)}."
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Certificates: {_escape(seen.level)}</title><style>\n{_STYLE}\n</style></head>"
        f'<body><main><header class="verdict {seen.level}"><h1>{_escape(_verdict(seen))}</h1>'
        f'<p class="soft">{made}</p></header>{_tiles(seen)}{_trouble_html(seen.items)}'
        f"{_LEGEND if seen.items else ''}{sections}"
        f'<footer class="soft">citrixagent {__version__}</footer></main></body></html>\n'
    )


# Remembering what was seen

_CARRIED = ("appliance", "certkey", "not_after", "serial", "cert_id")
_CARRIED_STANDING = ("state", "not_before", "due", "renews", "order")


def _last_entry(result: Result, before: Document, report: Report) -> Document:
    """Return what is kept of one profile's result; what was not looked at is known from before."""
    entry = result_document(result) | {"seen": report.finished}
    if result.standing:
        entry |= dataclasses.asdict(result.standing)
    else:
        entry |= {key: entry[key] or before.get(key) for key in _CARRIED}
        entry |= {key: before.get(key) for key in _CARRIED_STANDING}
        told = STATES.index("failed")
        if result.error and before.get("state") not in STATES[:told]:
            entry["state"] = "failed"
    return entry | {"printed": report.printed.since.get(result.profile, {})}


def _last_full_run(before: Document | None, report: Report, code: int) -> Document:
    success = report.finished if code in {ExitCode.OK, ExitCode.PENDING} else None
    return {
        "started": report.started,
        "finished": report.finished,
        "exit_code": int(code),
        "last_success": success or (before or {}).get("last_success"),
    }


def last_run_after(before: Document, report: Report, code: int, *, is_full: bool) -> Document:
    """Return what last-run.json holds after a command; a full run drops profiles that are gone."""
    old = before.get("profiles", {})
    seen = {
        result.profile: _last_entry(result, old.get(result.profile, {}), report)
        for result in report.results
    }
    run = before.get("run")
    return {
        "run": _last_full_run(run, report, code) if is_full else run,
        "profiles": seen if is_full and seen else {**old, **seen},
    }


# ----- 20. Notification -----------------------------------------------------------------------

_CHANGES = frozenset({"enrolled", "renewed", "replaced", "repaired", "revoked", "rolled_back"})
_HOOKED = frozenset({"enrolled", "renewed", "replaced", "rolled_back"})
_MAIL_LIMIT = 30.0  # seconds for all of a mail
_PING_LIMIT = 10.0  # for one attempt
_PING_BODY = 10_000  # bytes
_HOOKS_AT_ONCE, _HOOKS_OVERDUE = 8, 2


@dataclasses.dataclass(frozen=True)
class Story:
    """What a command has to tell: levels by the profiles that it handled.

    The profile without a name stands for what went wrong and belongs to none.
    """

    levels: Mapping[str, str]
    failed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    kind: str = ""  # of what belongs to no profile

    @property
    def trouble(self) -> dict[str, str]:
        return {n: level for n, level in self.levels.items() if level in {"warning", "critical"}}


def _told_of(story: Story, told: Mapping[str, Document]) -> dict[str, str]:
    """Return what was told last of the profiles that this command handled."""
    return {name: told[name]["level"] for name in told if name in story.levels}


def is_worth_telling(
    when: str, story: Story, told: Mapping[str, Document], now: dt.datetime
) -> bool:
    """Tell whether somebody wants to hear a story, by what they were told before.

    ``told``: level and time for each profile in trouble.
    """
    trouble = story.trouble
    if when == "always" or _told_of(story, told) != trouble:
        return True
    if any(now - parse_iso(told[name]["at"]) >= _PRINTED_FOR for name in trouble):
        return True
    return when == "change" and bool(story.changed)


def told_after(story: Story, told: Mapping[str, Document], now: dt.datetime) -> dict[str, Document]:
    """Return what a channel has been told once it was told a story."""
    others = {name: each for name, each in told.items() if name not in story.levels}
    return others | {n: {"level": level, "at": iso(now)} for n, level in story.trouble.items()}


def _names_in_brackets(names: Sequence[str], kind: str) -> str:
    shown = [name or kind for name in names[:10]]
    more = [f"and {len(names) - 10} more"] if len(names) > 10 else []
    return f"({', '.join([*shown, *more])})"


def subject_of(story: Story, told: Mapping[str, Document]) -> str:
    """Return the subject of a mail."""
    number, trouble = len(story.levels), list(story.trouble)
    shown = functools.partial(_names_in_brackets, kind=story.kind)
    if story.failed:
        text = f"{len(story.failed)} of {number} failed {shown(story.failed)}"
    elif trouble:
        text = f"{len(trouble)} of {number} need a look {shown(trouble)}"
    elif _told_of(story, told):
        text = f"all {number} well again"
    elif story.changed:
        text = f"{len(story.changed)} of {number} changed {shown(story.changed)}"
    else:
        text = f"{number} unchanged"
    return f"citrixagent: {text}"


def story_of(report: Report, last_run: Document, now: dt.datetime) -> Story:
    """Return what a report has to tell, with the levels that status would give."""
    entries, limits = last_run.get("profiles", {}), Limits()
    levels = {r.profile: judge(entries[r.profile], now, limits)[0] for r in report.results}
    errors = report.errors + report.failures
    if errors:
        levels[""] = "warning"
    failed = [result.profile for result in report.results if result.error]
    return Story(
        levels,
        failed=(*failed, *([""] if errors else [])),
        changed=tuple(r.profile for r in report.results if r.outcome in _CHANGES),
        kind=errors[0].kind if errors else "",
    )


def within(seconds: float, do: Callable[[], str], interrupt: Interrupt) -> str:
    """Return what a call returns: what went wrong, or nothing; also that it took too long.

    It is left alone then: a thread that hangs in a name server ends with the process.
    """
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(do()), daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < end:
        thread.join(0.05)
        interrupt.check()
    if answers:
        return answers[0]
    return f"no answer within {seconds:.0f} s" if thread.is_alive() else "unexpected error"


def _letter(mail: Mail, subject: str, body: str) -> email.message.EmailMessage:
    letter = email.message.EmailMessage()
    letter["Subject"], letter["From"], letter["To"] = subject, mail.sender, ", ".join(mail.to)
    letter["Date"] = email.utils.format_datetime(utc_now())
    letter["Message-ID"] = email.utils.make_msgid(domain=mail.sender.rpartition("@")[2])
    letter["Auto-Submitted"] = "auto-generated"
    letter.set_content(body)
    return letter


def _hand_over(mail: Mail, letter: email.message.EmailMessage) -> None:
    """Give a letter to the mail server; without the TLS that was asked for nothing is sent."""
    import smtplib

    host, port = mail.host, mail.port
    trust, name = tls_context(Tls()), socket.gethostname()
    if mail.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, name, timeout=10, context=trust)
    else:
        server = smtplib.SMTP(host, port, name, timeout=10)
    with server:
        if mail.security == "starttls":
            server.starttls(context=trust)
        if mail.username:
            server.login(mail.username, mail.password.value)
        server.send_message(letter)


def _mail_words(error: smtplib.SMTPException) -> str:
    import smtplib

    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"the login was refused ({error.smtp_code})"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "it does not offer what notify.mail.security or username asks for"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"it takes no mail for {', '.join(error.recipients)}"
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        return f"{error.smtp_code} {one_line(text)}"
    return one_line(str(error)) or "the connection broke"


def send_mail(mail: Mail, subject: str, body: str) -> str:
    """Send a mail; say what went wrong, or nothing."""
    import smtplib

    host = f"{mail.host}:{mail.port}"
    try:
        with exchanging(Exchange(_MAIL_LIMIT, None)):
            _hand_over(mail, _letter(mail, subject, body))
    except smtplib.SMTPException as error:
        return f"{host}: {_mail_words(error)}"
    except AgentError as error:
        return error.message
    except (OSError, ValueError) as error:
        return f"{host}: {_words(error)}"
    return ""


def with_suffix(url: str, suffix: str) -> str:
    """Return a URL with something after its path, before what it asks for."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(path=parts.path.rstrip("/") + suffix).geturl()


def send_ping(url: str, body: bytes, proxy: str | None) -> str:
    """Send a ping; say what went wrong, or nothing."""
    import urllib3

    try:
        pools = make_pools(Tls(), proxy_to(url, proxy))
    except AgentError as error:
        return error.message
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    try:
        with exchanging(Exchange(_PING_LIMIT, None, tls=url.startswith("https:"))):
            answer = pools.urlopen(
                "POST",
                url,
                body=body,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
            )
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        return _words(_causes(error)[-1])
    finally:
        pools.clear()
    return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}"


class Channels:
    """The ways in which others are told of a command: a program, mail, a ping.

    What fails is a warning, changes no exit code, and is tried again by the next run.
    """

    def __init__(
        self,
        settings: Settings,
        programs: Programs,
        proxy: str | None,
        report: Report,
        context: Context,
    ) -> None:
        self._settings = settings
        self._programs = programs
        self._proxy = proxy
        self._report = report
        self._context = context

    # Hooks

    def after_change(self) -> None:
        """Run the program for each profile that has another certificate now."""
        words = self._settings.after_change
        changed = [each for each in self._report.results if each.outcome in _HOOKED]
        if not words or not changed:
            return
        overdue: list[str] = []
        hook = functools.partial(self._run_hook, words, overdue)
        hooks = [functools.partial(hook, result) for result in changed]
        for done in in_threads(hooks, _HOOKS_AT_ONCE):
            done.result()

    def _run_hook(self, words: Sequence[str], overdue: list[str], result: Result) -> None:
        name = result.profile
        if len(overdue) >= _HOOKS_OVERDUE:
            text = f"after_change was skipped: it ran out of time for {', '.join(overdue[:2])}"
            self._report.warn_late(text, name)
            return
        document = self._context.redactor.hide_in(result_document(result))
        problem = self._run(words, document, {"CITRIXAGENT_PROFILE": name}, overdue, name)
        if problem:
            self._report.warn_late(f"after_change: {problem}", name)

    def _run(
        self,
        words: Sequence[str],
        document: Document,
        extra: Mapping[str, str],
        overdue: list[str],
        name: str,
    ) -> str:
        """Run a program; say what went wrong, or nothing."""
        data = json.dumps(document).encode()
        try:
            ended = self._programs.run(words, data, extra)
        except AgentError as error:
            return error.message
        if ended.code is None:
            overdue.append(name)
            return f"{words[0]} did not end in time and was stopped"
        said = f": {ended.words}" if ended.words else ""
        return f"{words[0]} ended with {ended.code}{said}" if ended.code else ""

    # Notification

    def notify(self, story: Story, code: int, told: Document) -> Document:
        """Tell program and mail what they want to hear; return what each has been told then."""
        settings, now = self._settings, utc_now()
        ways: dict[str, Callable[[Document], str]] = {}
        if words := settings.notify_command:
            ways["command"] = functools.partial(self._tell_program, words, story, code)
        if settings.mail:
            ways["mail"] = functools.partial(self._tell_by_mail, settings.mail, story)
        after = dict(told)
        for name, tell in ways.items():
            channel = told.get(name, {"told": {}})
            if channel.get("owed") or is_worth_telling(
                settings.notify_when, story, channel["told"], now
            ):
                problem = tell(channel)
                if problem:
                    self._report.warn_late(f"notify.{name}: {problem}; the next run tries again")
                    after[name] = channel | {"owed": True}
                else:
                    log.info("notify.%s: told", name)
                    after[name] = {"told": told_after(story, channel["told"], now)}
        return after

    def _tell_program(
        self, words: Sequence[str], story: Story, code: int, _channel: Document
    ) -> str:
        document = self._context.redactor.hide_in(self._report.document(code))
        extra = {
            "CITRIXAGENT_EXIT_CODE": str(int(code)),
            "CITRIXAGENT_FAILED": "\n".join(name for name in story.failed if name),
            "CITRIXAGENT_CHANGED": "\n".join(story.changed),
        }
        return self._run(words, document, extra, [], "")

    def _tell_by_mail(self, mail: Mail, story: Story, channel: Document) -> str:
        subject = self._clean(subject_of(story, channel["told"]))
        body = "\n".join(map(self._clean, self._report.text())) + "\n"
        do = functools.partial(send_mail, mail, subject, body)
        return within(_MAIL_LIMIT, do, self._context.interrupt)

    def _clean(self, line: str) -> str:
        return visible(self._context.redactor.hide(line))

    def test(self, lines: Sequence[str], code: int) -> dict[str, str]:
        """Send a test through each way that is on; say by way what went wrong, or nothing."""
        settings, ended = self._settings, dict[str, str]()
        if settings.notify_command:
            ended["command"] = self._tell_program(settings.notify_command, Story({}), code, {})
        if settings.mail:
            body = "\n".join(map(self._clean, lines)) + "\n"
            do = functools.partial(send_mail, settings.mail, "citrixagent: check --notify", body)
            ended["mail"] = within(_MAIL_LIMIT, do, self._context.interrupt)
        if url := settings.ping_url.value:
            do = functools.partial(send_ping, url, b"", self._proxy)
            ended["ping_url"] = within(_PING_LIMIT, do, self._context.interrupt)
        return ended

    # Ping

    def ping_start(self) -> None:
        self._ping("/start", b"")

    def ping_end(self, code: int) -> None:
        """Tell how the run ended; an order that waits is no failure."""
        lines = "\n".join(map(self._clean, self._report.text())).encode(errors="replace")
        self._ping(
            f"/{0 if code == ExitCode.PENDING else int(code)}",
            lines[:_PING_BODY].decode(errors="ignore").encode(),
        )

    def _ping(self, suffix: str, body: bytes) -> None:
        if not self._settings.ping_url.value:
            return
        url = with_suffix(self._settings.ping_url.value, suffix)
        do = functools.partial(send_ping, url, body, self._proxy)
        problems = []
        for _ in range(2):
            if not (problem := within(_PING_LIMIT, do, self._context.interrupt)):
                return
            problems.append(problem)
        self._report.warn_late(f"ping_url: {problems[-1]}")


# The file for the node exporter


def write_metrics(path: pathlib.Path, text: str) -> None:
    """Replace the metrics file in one step; a link in its place is replaced, not followed."""
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(temporary, flags, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o644)
            file.write(text)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise AgentError("config", f"{path} cannot be written: {error.strerror}") from None


# ----- 21. Session ----------------------------------------------------------------------------

_LOG_SIZE, _LOG_FILES = 1_000_000, 5
_TELLING = frozenset({"run", "enroll", "renew", "replace", "revoke", "rollback"})
_NO_PROFILE = "run citrixagent.py configure or discover, or copy example_cert_config.yaml into it"


@dataclasses.dataclass
class App:
    """What the options before the command say."""

    home: pathlib.Path
    verbosity: int
    became: str = ""  # whom root became


class _UtcFormatter(logging.Formatter):
    """One line per record in UTC, without secrets."""

    converter = staticmethod(time.gmtime)

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        lines = self._redactor.hide(super().format(record)).split("\n")
        return "\n".join(map(visible, lines)) if record.exc_info else visible("\n".join(lines))


class _ConsoleHandler(logging.Handler):
    """Shows the log on stderr, between what else is printed there."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).split("\n"):
            self._console.complain(line)


class _LogHandler(logging.FileHandler):
    """Appends to a file in state/, which is no link."""

    def _open(self) -> io.TextIOWrapper:
        descriptor = open_own(pathlib.Path(self.baseFilename), os.O_WRONLY | os.O_APPEND)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def _log_to(file: pathlib.Path) -> logging.Handler:
    """Open the log; one that has grown long is put aside first, so a run's lines stay together."""
    size = 0
    with contextlib.suppress(FileNotFoundError):
        size = file.lstat().st_size
    for number in range(_LOG_FILES, 0, -1) if size > _LOG_SIZE else ():
        older = file.with_name(f"{file.name}.{number - 1}") if number > 1 else file
        with contextlib.suppress(FileNotFoundError):
            older.replace(file.with_name(f"{file.name}.{number}"))
    return _LogHandler(file)


@contextlib.contextmanager
def _logging(
    level: int, redactor: Redactor, console: Console, log_file: pathlib.Path
) -> Iterator[None]:
    """Send the log to stderr, as far as asked for, and to a file that is rotated.

    A log that cannot be written stops nothing.
    """
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = []
    if level:
        handlers.append(_ConsoleHandler(console))
        handlers[0].setLevel(logging.DEBUG if level > 1 else logging.INFO)
    try:
        handlers.append(_log_to(log_file))
    except OSError as error:
        console.complain(f"warning: {log_file} cannot be written: {error.strerror}")
    log.setLevel(logging.DEBUG if level > 1 else logging.INFO)
    log.propagate = False
    for handler in handlers:
        handler.setFormatter(_UtcFormatter(redactor))
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()


def _log_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    log.info("%s: %s", category.__name__, one_line(str(message)))


@contextlib.contextmanager
def _warnings_to_log() -> Iterator[None]:
    """Send to the log what libraries warn about: cron would mail it every night."""
    before = warnings.showwarning
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        warnings.showwarning = before


def accepts_by_environment() -> bool:
    return os.environ.get("CITRIXAGENT_ACCEPT_EULA", "").lower() == "yes"


def ask(question: str, interrupt: Interrupt) -> bool:
    """Ask on the terminal; no answer is a no. Raises Interrupted at once where a signal comes."""
    try:
        with interrupt.cutting_off():
            return click.confirm(question)
    except click.Abort:
        return False


def ask_for_agreement(agreement: bytes, interrupt: Interrupt) -> bool:
    click.echo(agreement.decode(errors="replace"))
    kind = click.Choice(["yes", "no", "y", "n"], case_sensitive=False)
    try:
        with interrupt.cutting_off():
            answer = click.prompt("Accept? (yes, no)", type=kind, show_choices=False)
    except click.Abort:
        return False
    return str(answer).startswith("y")


def not_accepted_text(home: pathlib.Path) -> str:
    where = "" if home == _PROGRAM.parent else f"CITRIXAGENT_HOME={shlex.quote(str(home))} "
    return (
        "the licence agreement has not been accepted: read LICENSE.txt, then run "
        f"{where}{shlex.quote(str(_PROGRAM))} eula --accept"
    )


def refused_login(run: Run) -> list[AgentError]:
    """Log in to SCM: a dry run that asks SCM nothing would promise what a run cannot do."""
    try:
        run.scm.log_in()
    except AgentError as error:
        return [error]
    return []


class DeclinedError(click.UsageError):
    """Somebody was asked and did not agree: no use of the command line that is to be explained."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=True)


class Session:
    """One command from its options to its exit code."""

    def __init__(
        self,
        app: App,
        command: Command,
        *,
        as_json: bool,
        dry_run: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self.app = app
        self.redactor = Redactor()
        self.context = Context(Interrupt(), self.redactor)
        self.store = Store(app.home)
        self.home = Home(app.home, self.redactor)
        self.settings: Settings | None = None
        self.proxy: str | None = None
        self.is_locked = False
        self._has_state = False  # the state folder is there, and is this user's
        self._names = names
        self._tells = command in _TELLING and not dry_run
        self._is_fleet = command == "run" and not names
        self._is_full = self._tells and self._is_fleet
        self._held = contextlib.ExitStack()  # the lock
        self._logs = contextlib.ExitStack()
        self._last_run: Document = {}
        console = Console(self.redactor, quiet=as_json)
        self.report = Report(command, console, as_json, dry_run=dry_run, verbose=app.verbosity > 0)

    def run(self, body: Callable[[Session], None]) -> NoReturn:
        """Run a command's body and end the process with what came of it."""
        with self._logs, self._held:
            code = self._carry_out(body)
            try:
                code = self._come_to_an_end(code)
            except Exception as error:
                log.exception("unexpected")
                code = self._was_surprised(error)
                self.report.emit(code)
            self._log_end(code)
        sys.exit(code)

    def _carry_out(self, body: Callable[[Session], None]) -> int:
        report = self.report
        try:
            self.context.interrupt.listen()
            self.require_agreement()
            self._log_start()
            with _warnings_to_log():
                body(self)
        except AgentError as error:
            report.errors.append(error)
        except click.UsageError as error:
            if not report.as_json:
                raise
            report.errors.append(AgentError("config", error.message))
            self._tells = False
            return ExitCode.USAGE
        except Interrupted:
            log.info("interrupted")
        except Exception as error:
            log.exception("unexpected")
            self._was_surprised(error)
        stopped = self.context.interrupt.signal
        return 128 + stopped if stopped else report.exit_code()

    def _was_surprised(self, error: Exception) -> int:
        """Take an error that nobody expected for one that is told like any other."""
        reason = error.strerror if isinstance(error, OSError) else None
        what = ": ".join(filter(None, (type(error).__name__, reason)))
        text = f"unexpected {what}: the log in state/ tells more"
        if text not in [each.message for each in self.report.errors]:
            self.report.errors.append(AgentError("state", text))
        return ExitCode.FAILED

    def _log_start(self) -> None:
        sudo = f" (sudo by {os.environ['SUDO_USER']})" if "SUDO_USER" in os.environ else ""
        names = " ".join(["", *self._names]) + " --dry-run" * self.report.dry_run
        sudo += " (was root)" if self.app.became else ""
        who = f"user {_user()}{sudo}, version {__version__}, pid {os.getpid()}"
        log.info("%s%s: started, %s", self.report.command, names, who)

    def _log_end(self, code: int) -> None:
        took = utc_now() - parse_iso(self.report.started)
        seconds = took.total_seconds()
        log.info("%s: ended with exit code %d after %.0f s", self.report.command, code, seconds)

    def _come_to_an_end(self, code: int) -> int:
        """Tell the results, write them down, let the next run in, tell others, print the JSON."""
        report = self.report
        self._last_run = self._known(self.store.read_last_run)
        told = self._known(self.store.read_told) if self._tells else {}
        before = {
            name: each["printed"] for name, each in self._last_run.get("profiles", {}).items()
        }
        report.printed = Printed({**before, "": told.get("warnings", {})})
        report.tell()
        self._log_results()
        if self._tells and self._has_state and code != ExitCode.LOCKED:
            self._write_down(code)
        self._held.close()
        if self._tells and not self.context.interrupt.signal:
            self._tell_others(code, told)
        report.console.close()
        if stopped := self.context.interrupt.signal:
            code = 128 + stopped
        report.emit(code)
        is_lost = report.console.is_cut and not self._tells  # who only reads has nothing else
        return code or ExitCode.FAILED * is_lost

    def _log_results(self) -> None:
        for result in self.report.results:
            level = logging.ERROR if result.error else logging.INFO
            text = _line(result) or f"{result.profile}: {result.outcome}, {result.reason}"
            log.log(level, "%s", text)
            for warning in result.warnings:
                log.warning("%s: %s", result.profile, warning)
        for problem in self.report.problems():
            log.error("%s", problem)
        for warning in self.report.warnings:
            log.warning("%s", warning)

    @staticmethod
    def _known(read: Callable[[], Document]) -> Document:
        """Return what earlier commands left; a file that cannot be used stops no command."""
        try:
            return read()
        except AgentError as error:
            log.warning("%s", error.message)
            return {}

    def _write_down(self, code: int) -> None:
        """Write last-run.json and the metrics under the lock; nothing where another run has it."""
        report = self.report
        try:
            if not self.is_locked:  # the command ended before it took the lock
                self.lock()
            last_run = last_run_after(self._last_run, report, code, is_full=self._is_full)
            self._last_run = self.redactor.hide_in(last_run)
            self.store.write_last_run(self._last_run)
            if target := self._known_settings().metrics_file:
                names = [path.stem for path in self.home.profile_files([])]
                seen = overview(names, self._last_run, utc_now(), Limits())
                write_metrics(pathlib.Path(target), metrics(seen))
        except AgentError as error:
            if error.kind != "locked":
                report.warn_late(error.message)

    def _tell_others(self, code: int, told: Document) -> None:
        """Run hooks and tell who is to be told; an interruption ends that."""
        report, channels = self.report, self.channels()
        entries = self._last_run.get("profiles", {})
        known = {result.profile for result in report.results} <= entries.keys()
        last_run = self._last_run if known else last_run_after({}, report, code, is_full=False)
        try:
            channels.after_change()
            story = story_of(report, last_run, utc_now())
            after = channels.notify(story, code, told.get("channels", {}))
            if self._is_full:
                channels.ping_end(code)
        except Interrupted:
            log.info("interrupted")
            return
        warnings = report.printed.since.get("", {})
        known_as_told = (told.get("channels", {}), told.get("warnings", {}))
        if self._has_state and (after, warnings) != known_as_told:
            try:
                self.store.write_told({"channels": after, "warnings": warnings})
            except AgentError as error:
                report.warn_late(error.message)

    def channels(self) -> Channels:
        hidden = self.redactor.variables | self.home.secret_variables
        programs = Programs(self.app.home, hidden, self.context.interrupt)
        settings = self._known_settings()
        return Channels(settings, programs, self.proxy, self.report, self.context)

    def _known_settings(self) -> Settings:
        """Return what agent.yaml says, also where the command ended before it was read."""
        if self.settings is None:
            self.settings, _ = self.home.load_settings()
            config, _ = self.home.load_scm()
            self.proxy = config.proxy if config else None
        return self.settings

    def require_agreement(self) -> None:
        """Have the agreement accepted: earlier, by the environment, or now on a terminal."""
        self.store.prepare()
        self._has_state = True
        agreement = read_agreement()
        self.log_to_file()
        if self.store.acceptance(agreement):
            return
        if accepts_by_environment():
            self.store.accept(agreement, "CITRIXAGENT_ACCEPT_EULA")
            return
        if not (self.can_ask and ask_for_agreement(agreement, self.context.interrupt)):
            raise AgentError("agreement", not_accepted_text(self.app.home))
        self.store.accept(agreement, "asked")

    def load(self, names: Sequence[str]) -> tuple[ScmConfig, list[Profile]]:
        """Read all configuration; AgentError (config) where nothing can be done with it."""
        with self.context.interrupt.cutting_off():  # commands that give secrets take time
            return self._load(names)

    def _load(self, names: Sequence[str]) -> tuple[ScmConfig, list[Profile]]:
        files = self.home.profile_files(names)
        config, problems = self.home.load_scm()
        self.proxy = config.proxy if config else None
        profiles = self.load_profiles(files, problems)
        if not files:
            folder = self.app.home / "profiles"
            problems.append(f"{folder}: holds no profile: {_NO_PROFILE}")
        if problems or config is None:
            raise AgentError("config", "\n".join(problems))
        self.report.nothing_usable = not profiles
        return config, profiles

    def load_profiles(self, files: Sequence[pathlib.Path], problems: list[str]) -> list[Profile]:
        """Return the usable profiles; what is wrong with the others stands in the report.

        What must stop the program, whatever the profiles say, is added to ``problems``.
        """
        self.settings, found = self.home.load_settings()
        if found:  # else what is wrong with channels stops nothing
            problems += dict.fromkeys((*found, *self.settings.problems))
        loaded = self.home.load_profiles(files)
        for name, wrong in loaded.broken.items():
            result = Result(name)
            if profile := loaded.read.get(name):
                result.appliance, result.certkey = profile.appliance.host, profile.certkey
            result.fail(AgentError("config", "\n".join(dict.fromkeys(wrong))))
            self.report.results.append(result)
        untold = [text for text in loaded.untold if text not in problems]
        self.report.warnings += dict.fromkeys((*self.home.warnings, *untold))
        return loaded.profiles

    def lock(self) -> None:
        """Keep other runs out until the results are written down."""
        self._held.enter_context(self.store.lock(self.report.command))
        self.is_locked = True

    def log_to_file(self) -> None:
        log_file = self.store.folder / "citrixagent.log"
        console = self.report.console
        self._logs.enter_context(_logging(self.app.verbosity, self.redactor, console, log_file))

    @property
    def can_ask(self) -> bool:
        return is_terminal(sys.stdin) and self.report.console.is_terminal

    def confirm(self, question: str) -> bool:
        """Ask on a terminal; elsewhere the answer is no."""
        return self.can_ask and ask(question, self.context.interrupt)

    def owner(self, appliance: Appliance, certkey: str) -> str:
        """Return the profile that manages a certkey of an appliance, whichever were named."""
        everybody = self.home.outlines(self.home.profile_files([]))
        found = (
            each.name
            for each in everybody
            if each.certkey == certkey and each.appliance.is_same_as(appliance)
        )
        return next(found, "")

    def new_run(
        self, config: ScmConfig, intent: Intent, *, dry_run: bool, wait: int | None = None
    ) -> Run:
        scm = connect_to_scm(config, Tokens(config, self.redactor), self.context)
        return Run(
            intent=intent,
            dry_run=dry_run,
            wait=wait,
            config=config,
            store=self.store,
            context=self.context,
            scm=scm,
            revocations=RevocationCheck(scm),
            max_orders=self._known_settings().max_orders if self._is_fleet else None,
            progress=self.report.console.progress,
            owner=self.owner,
            warn=self.report.warn,
        )

    def _confirm_orders(self, intent: Intent, profiles: Sequence[Profile]) -> None:
        """Have the operator agree to as many orders as it takes for all; UsageError otherwise."""
        number = sum(not self._was_just_ordered(profile) for profile in profiles)
        orders = _count(number, "order")
        cost = "renewals cost money" if intent.command == "renew" else "replacements are free"
        question = (
            f"{intent.command} {_count(len(profiles), 'profile')}: {orders} at SCM ({cost}; what "
            "SCM does not offer for a certificate is enrolled anew, which costs money). Go on?"
        )
        if not self.confirm(question):
            if self.can_ask:
                raise DeclinedError("nothing was ordered")
            text = f"nothing was ordered: give --yes to place {orders} without being asked"
            raise click.UsageError(text)

    def _was_just_ordered(self, profile: Profile) -> bool:
        try:
            return bool(just_ordered(self.store.load(profile.name), utc_now()))
        except AgentError:
            return True  # it will fail without an order

    def execute(
        self,
        names: Sequence[str],
        intent: Intent,
        wait: int | None,
        jobs: int,
        *,
        sure: bool = True,
    ) -> None:
        """Load, lock, run, and take the results into the report; who is not ``sure`` is asked."""
        config, profiles = self.load(names)
        if self.settings and self.settings.problems:
            text = "\n".join(self.settings.problems)
            self.report.failures.append(AgentError("config", text))
        if not profiles:
            return
        if not sure:
            self._confirm_orders(intent, profiles)
        self.lock()
        if self._is_full:
            self.channels().ping_start()
        run = self.new_run(config, intent, dry_run=self.report.dry_run, wait=wait)
        refused = refused_login(run) if run.dry_run else []
        self.report.results += run_all(profiles, run, jobs)
        told = {result.error.message for result in self.report.results if result.error}
        self.report.failures += [error for error in refused if error.message not in told]
        self.report.results.sort(key=lambda result: result.profile)


# ----- 22. Discovery --------------------------------------------------------------------------

_SOON_DUE = dt.timedelta(days=30)
_HEADER = (
    "# Written by citrixagent discover: see citrixagent.py run --dry-run before the first run\n"
)
_CA_BINDING = "CA binding"


@dataclasses.dataclass
class Found:
    """A certificate in service that no profile names, and the profile that describes it.

    ``missing`` and ``refused`` are paths of keys: what somebody has to fill in, and what the
    appliance calls in a way that no profile can.
    """

    site: Site
    certkey: str
    document: Document
    missing: list[str]
    refused: list[str]
    issuer: str
    due: dt.datetime
    notes: list[str] = dataclasses.field(default_factory=list)
    file: str = ""
    written: bool = False

    @property
    def complete(self) -> bool:
        return not (self.missing or self.refused)


@dataclasses.dataclass
class Survey:
    """What one appliance holds: what profiles can describe, what was left alone, and why."""

    found: list[Found] = dataclasses.field(default_factory=list)
    left_alone: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    issuers: list[str] = dataclasses.field(default_factory=list)  # of what profiles name
    warnings: list[str] = dataclasses.field(default_factory=list)


def _yaml(data: object) -> str:
    """Write YAML that any terminal can show: what does not print is escaped."""
    import yaml

    plain = json.dumps(data, ensure_ascii=False).isprintable()
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=plain, width=10_000))


def _profile_text(found: Found) -> str:
    """Return the profile as YAML; what has to be filled in stands as a comment in its block."""
    text = _HEADER
    for key, value in found.document.items():
        text += _yaml({key: value})
        below = [path.partition(".")[2] for path in found.missing if path.startswith(f"{key}.")]
        text += "".join(f"  # {name}:   # required\n" for name in below)
    return text


def _names_for_profile(certificate: Certificate) -> tuple[str, list[str], int]:
    """Return common name, other names, and how many names a profile cannot hold."""
    told = list(dict.fromkeys(certificate.names))
    usable: list[str] = []
    for name in told:
        with contextlib.suppress(ValueError):
            usable.append(check_name(name))
    common_name = next((name for name in usable if len(name) <= _COMMON_NAME_LIMIT), "")
    with contextlib.suppress(ValueError):
        common_name = _check_common_name(certificate.common_name)
    others = [name for name in usable if name != common_name]
    return common_name, others, len(told) - len(usable) + other_names(certificate)


def _issuer_words(certificate: Certificate) -> str:
    """Return who issued a certificate: the organization, where it is told."""
    found = re.search(r"(?:^|,)\s*O\s*=\s*((?:[^,\\]|\\.)+)", certificate.issuer)
    return one_line(found[1] if found else certificate.issuer)


def _reason_to_leave(row: CertKey, certificates: Sequence[Certificate]) -> str:
    """Say why no profile can describe a certkey; empty where one can."""
    if _BUILT_IN.fullmatch(row.name):
        return "the appliance's own"
    if row.subject and row.subject == row.issuer:
        return "self-signed"
    if not certificates:
        return "unreadable"
    if not _names_for_profile(certificates[0])[0]:
        return "no name"
    return "" if certificates[0].key_type in KEY_TYPES else "key type that profiles do not know"


def _note_names(found: Found, certificate: Certificate, unusable: int) -> None:
    common_name = found.document["certificate"]["common_name"]
    if common_name != certificate.common_name.lower().removesuffix("."):
        found.notes.append("it has no common name that is a DNS name: its first name stands for it")
    if unusable:
        text = f"{_count(unusable, 'name')} of other kinds cannot stand in a profile"
        found.notes.append(f"{text}: a renewal will not have them")
    if not certificate.names and not certificate.pem:
        found.missing.append("certificate.subject_alternative_names")
        text = (
            "its certificate file cannot be read, and the appliance does not tell its other names"
        )
        found.notes.append(f"{text}: fill them in")
    elif not covers(certificate.names, [common_name]):
        text = "its common name is not among its alternative names, so clients do not accept it"
        found.notes.append(f"{text}: run leaves it alone until run NAME --take-over")


def _note_end(found: Found, certificate: Certificate) -> None:
    now = utc_now()
    if found.due > now:
        return
    found.document["renewal"] = {"auto_renew": False}
    state = "has expired" if certificate.not_after <= now else "is due for renewal already"
    text = f"it {state}: auto_renew is false, so that the first run does not order it"
    found.notes.append(f"{text}; remove that line when you want it renewed")


def _note_gaps(found: Found) -> None:
    if found.refused:
        text = "what the appliance or agent.yaml says there cannot stand in a profile"
        found.notes.append(f"{_listed(found.refused)}: {text}")
    block = found.document["citrix"]
    if isinstance(block, dict) and not any(key in block for key in secret_keys("password")):
        found.missing.append("citrix.password_file")
        text = "the password is not copied from another profile"
        found.notes.append(f"{text}: move that citrix block into appliances/, and name it in both")


class Discovery:
    """Describes the certificates of one appliance that no profile names."""

    def __init__(
        self, site: Site, profiles: Iterable[Profile], home: Home, context: Context
    ) -> None:
        self._site = site
        self._home = home
        self._view = View(site.appliance, context)
        self._survey = Survey()
        self._named = {each.certkey for each in profiles if self._may_be_here(each)}

    def _may_be_here(self, profile: Profile) -> bool:
        """Tell whether a profile is for this appliance; one that is broken there may be."""
        if not profile.appliance.host:
            return bool(profile.subject.common_name) or profile.certkey != shorten(profile.name)
        return profile.appliance.is_same_as(self._site.appliance)

    def survey(self) -> Survey:
        """Read the appliance, on any node; AgentError where it cannot be read."""
        try:
            self._view.open(standby=True)
            kinds = self._kinds()
            for _, row in sorted(self._view.certkeys.items()):
                self._look_at(row, kinds)
        finally:
            self._view.close()
        return self._survey

    def _kinds(self) -> dict[str, str]:
        """Return the kind of each virtual server that ends TLS; a look that is refused is told."""
        found: dict[str, str] = {}
        for kind in VIRTUAL_SERVER_KINDS:
            try:
                rows = self._view.client.virtual_servers(kind)
            except NitroError as error:
                self._survey.warnings.append(error.message)
                continue
            found |= {name: kind for name, row in rows.items() if row.ends_tls()}
        return found

    def _look_at(self, row: CertKey, kinds: Mapping[str, str]) -> None:
        bindings = self._view.bindings_of(row.name)
        bound = [binding for binding in bindings if binding.virtual_server in kinds]
        servers = [
            {"name": each.virtual_server, "type": kinds[each.virtual_server], "sni": each.sni}
            for each in bound
            if not each.ca
        ]
        if row.name in self._named:
            self._survey.issuers += [_issuer_words(each) for each in self._read(row)]
        elif servers:
            self._take(row, servers)
        elif bound:
            self._survey.left_alone[_CA_BINDING] += 1

    def _take(self, row: CertKey, servers: list[Document]) -> None:
        certificates = self._read(row)
        reason = _reason_to_leave(row, certificates)
        if reason:
            self._survey.left_alone[reason] += 1
            return
        self._survey.found.append(self._describe(row, servers, certificates[0]))

    def _read(self, row: CertKey) -> list[Certificate]:
        try:
            return [read_installed(self._view, row)]
        except NitroError as error:
            known = from_row(row)
            log.info("%s", error.message)
        except AgentError as error:
            if isinstance(error, TransportError):
                raise
            known = None
        return [known] if known else []

    def _describe(self, row: CertKey, servers: list[Document], certificate: Certificate) -> Found:
        common_name, others, unusable = _names_for_profile(certificate)
        fields = subject_fields(certificate, row.subject)
        block: Document = {"name": row.name, "common_name": common_name}
        block |= {"subject_alternative_names": others} if others else {}
        block |= {**fields, "key_type": certificate.key_type}
        document = {"citrix": self._site.citrix, "virtual_servers": servers, "certificate": block}
        problems = self._parse(document)[1]
        for key in [key for key in fields if f"certificate.{key}" in problems]:
            del block[key]  # a value that no profile may have: as if it were not told
        profile, problems = self._parse(document)
        window = profile.window.of(certificate.not_after - certificate.not_before)[0]
        found = Found(
            site=self._site,
            certkey=row.name,
            document=document,
            missing=[path for path, text in problems.items() if text == "is missing"],
            refused=[path for path, text in problems.items() if text != "is missing"],
            issuer=_issuer_words(certificate),
            due=certificate.not_after - window,
        )
        _note_names(found, certificate, unusable)
        _note_end(found, certificate)
        _note_gaps(found)
        return found

    def _parse(self, document: Document) -> tuple[Profile, dict[str, str]]:
        """Read a document as a profile; what is wrong with it stands by its path."""
        told: list[str] = []
        source = DiskSource(pathlib.Path("profile"), Redactor())
        named = {**document, "citrix": self._site.name}
        site = self._site.appliance
        root = Section(named, source, told, below=self._home.defaults(told))
        profile = parse_profile("", root, lambda _name, _problems: site, told)
        parts = [problem.split(": ", 2) for problem in told]
        return profile, {path: text for _, path, text in parts}


def _note_issuers(surveys: Sequence[Survey]) -> None:
    """Name the issuers that are not those of other profiles, or else that of most certificates."""
    found = [each for survey in surveys for each in survey.found]
    usual = {issuer for survey in surveys for issuer in survey.issuers}
    most = collections.Counter(each.issuer for each in found).most_common(1)
    usual = usual or {issuer for issuer, _ in most}
    for each in found:
        if each.issuer not in usual:
            text = f"it was issued by {each.issuer}, not by {_listed(usual)}"
            each.notes.append(f"{text}: its renewal comes from SCM's authority")


def _file_name(text: str) -> str:
    """Return text as a file's stem: ASCII letters, digits and three marks, nothing else."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    return re.sub(r"^[.-]", "_", safe)


def _name_files(found: Sequence[Found]) -> None:
    stems = collections.Counter(_file_name(each.certkey) for each in found)
    for each in found:
        stem = _file_name(each.certkey)
        if stems[stem] > 1:
            stem = _file_name(f"{each.site.name}_{each.certkey}")
        each.file = f"{stem}.yaml"


def write_new(path: pathlib.Path, text: str) -> None:
    """Write a file that must not be there yet, for the owner alone; FileExistsError where it is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise


def _write(found: Found, folder: pathlib.Path) -> None:
    """Write a profile where there is none of its name; AgentError where it cannot be written."""
    path = folder / found.file
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if os.path.lexists(path.with_suffix(".yml")):  # two files of one name are both refused
            raise FileExistsError  # noqa: TRY301
        write_new(path, _profile_text(found))
        found.written = True
    except FileExistsError:
        found.notes.append("a profile of this name exists: it was not written")
    except OSError as error:
        raise AgentError("config", f"{path} cannot be written: {error.strerror}") from None


def _found_document(found: Found) -> Document:
    return {
        "appliance": found.site.appliance.host,
        "certkey": found.certkey,
        "file": f"profiles/{found.file}",
        "written": found.written,
        "complete": found.complete,
        "profile": found.document,
        "notes": found.notes,
    }


def _tell_found(found: Found, console: Console, *, written: bool) -> None:
    name = f"profiles/{found.file}"
    if not written:
        console.show(f"# {name}\n{_profile_text(found)}")
    elif found.written:
        rest = "" if found.complete else f", fill in {_listed(found.missing + found.refused)}"
        console.say(f"{name}: written{rest}")
    for note in found.notes:
        console.complain(f"{name}: note: {note}")


def _survey_text(found: Sequence[Found], left_alone: Mapping[str, int], due: int) -> str:
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(left_alone.items()))
    left = f"{sum(left_alone.values())} left alone" + (f" ({reasons})" if reasons else "")
    total = f"{_count(len(found), 'certificate')} without a profile"
    return f"{total}; {left}; {due} due within {_SOON_DUE.days} days"


def _survey_all(session: Session, sites: Sequence[Site]) -> list[Survey]:
    """Read all appliances in parallel; one that cannot be read is a failure of its own."""
    home, surveys = session.home, list[Survey]()
    profiles = home.outlines(home.profile_files([]))
    tasks = [Discovery(site, profiles, home, session.context).survey for site in sites]
    for done in in_threads(tasks, _JOBS):
        try:
            surveys.append(done.result())
        except AgentError as error:
            session.report.failures.append(error)
    return surveys


def discover(session: Session, names: Sequence[str], *, write: bool) -> None:
    """Describe what the appliances serve without a profile; AgentError where there are none."""
    report, home = session.report, session.home
    report.own = {"profiles": []}
    _, wrong = home.load_settings()
    if wrong:
        raise AgentError("config", "\n".join(wrong))
    sites, problems = home.sites(names)
    report.failures += [AgentError("config", problem) for problem in problems]
    if not (sites or problems):
        text = (
            "run citrixagent.py configure appliance, or describe one in appliances/NAME.yaml: "
            "host, username and password_file"
        )
        raise AgentError("config", f"{home.path / 'appliances'}: holds no appliance: {text}")
    surveys = _survey_all(session, sites)
    _note_issuers(surveys)
    found = [each for survey in surveys for each in survey.found]
    _name_files(found)
    for each in found:
        try:
            if write:
                _write(each, home.path / "profiles")
        except AgentError as error:
            report.failures.append(error)
        if not report.as_json:
            _tell_found(each, report.console, written=write)
    left_alone = sum((each.left_alone for each in surveys), collections.Counter[str]())
    due = sum(each.due <= utc_now() + _SOON_DUE for each in found)
    report.warnings += [warning for survey in surveys for warning in survey.warnings]
    report.own = {
        "profiles": [_found_document(each) for each in found],
        "left_alone": dict(left_alone),
        "due_soon": due,
    }
    report.console.show(_survey_text(found, left_alone, due))


# ----- 23. Checks -----------------------------------------------------------------------------

CheckStatus = Literal["ok", "warn", "fail", "skip"]
_SHOWN: Mapping[CheckStatus, str] = {"ok": "ok", "skip": "skip", "warn": "warn", "fail": "FAIL"}
PACKAGES = {"click": (8, 1, 6), "cryptography": (42,), "PyYAML": (6, 0), "requests": (2, 31)}
_OLDEST_RELEASE = (13, 0)
_MACHINE, _SCM, _SETTINGS = "machine", "scm", "agent.yaml"
_CLOCK = dt.timedelta(minutes=5)  # by which two clocks may differ
_NEEDED_LOOKS = {"stat HA node", "show ssl certKey", "show ssl vserver", "show system file"}
_REMEDY = re.compile(r"(.+): (?=[a-z/]|SCM offers)(.+)", re.DOTALL)  # how a problem's text ends
_RIGHT = re.compile(r"(.+): (allow it with: .+)", re.DOTALL)  # two commands, with a colon each
_ABSENT_FILE = "citrixagent-check.pem"  # asked for to see whether files may be read


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    target: str
    name: str
    status: CheckStatus
    message: str
    remedy: str = ""

    @property
    def line(self) -> str:
        text = f"{self.message}: {self.remedy}" if self.remedy else self.message
        return f"{_SHOWN[self.status]:<4}  {self.target}  {text}"


class Checks:
    """Collects what was looked at; of one target a sentence is told once."""

    def __init__(self) -> None:
        self.all: list[Check] = []
        self.stopping = False  # run would end with exit code 3

    def add(self, status: CheckStatus, target: str, name: str, text: str) -> None:
        """Take note of something; a problem's text ends with its remedy, after a colon."""
        is_problem = status in {"warn", "fail"}
        parts = (_RIGHT.fullmatch(text) or _REMEDY.fullmatch(text)) if is_problem else None
        check = Check(target, name, status, *(parts.groups() if parts else (text, "")))
        same = [each for each in self.all if each.target == target and each.line == check.line]
        if not (is_problem and same):
            self.all.append(check)

    @contextlib.contextmanager
    def trying(self, target: str, name: str, done: str) -> Iterator[None]:
        """Take note of ``done``, or of the AgentError that comes instead."""
        try:
            yield
        except AgentError as error:
            self.add("fail", target, name, error.message)
        else:
            self.add("ok", target, name, done)

    def count(self, status: CheckStatus) -> int:
        return sum(check.status == status for check in self.all)

    def failed(self, target: str) -> bool:
        return any(check.target == target and check.status == "fail" for check in self.all)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def _check_packages(checks: Checks) -> None:
    import importlib.metadata

    checks.add("ok", _MACHINE, "python", f"Python {sys.version.split()[0]}, {sys.executable}")
    for package, oldest in PACKAGES.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # root could read it, before
            checks.add("skip", _MACHINE, "packages", f"{package}: its version cannot be read")
            continue
        wanted = ".".join(map(str, oldest))
        if _version(found) >= oldest:
            checks.add("ok", _MACHINE, "packages", f"{package} {found}")
            continue
        remedy = f"{shlex.quote(sys.executable)} -m pip install -U '{package}>={wanted}'"
        text = f"{package} {found} is older than {wanted}, which is needed"
        checks.add("fail", _MACHINE, "packages", f"{text}: {remedy}")


def _check_path(path: pathlib.Path, home: pathlib.Path, target: str, checks: Checks) -> None:
    """Look at who may change a file or folder: that may run commands as this user."""
    try:
        found, trusted = path.stat(), {0, os.geteuid(), home.stat().st_uid}
    except OSError as error:
        checks.add("warn", target, "files", f"{path} cannot be looked at ({error.strerror})")
        return
    if found.st_mode & stat.S_IWOTH:
        remedy = f"chmod o-w {shlex.quote(str(path))}"
        checks.add("warn", target, "files", f"{path} can be changed by everybody: {remedy}")
    elif found.st_uid not in trusted:
        remedy = f"chown {_user()} {shlex.quote(str(path))}"
        text = f"{path} belongs to {user_name(found.st_uid)}, who can change it"
        checks.add("warn", target, "files", f"{text}: {remedy}")
    else:
        checks.add("ok", target, "files", f"{path}: mode {stat.S_IMODE(found.st_mode):04o}")


def _check_schedule(store: Store, checks: Checks) -> None:
    remedy = "have cron or a timer run it every night (README, Quickstart)"
    with checks.trying(_MACHINE, "last-run.json", "state/last-run.json"):
        run = store.read_last_run().get("run")
        if not run:
            checks.add("warn", _MACHINE, "schedule", f"no full run is on record: {remedy}")
        elif utc_now() - parse_iso(run["finished"]) > _STALE:
            text = f"the last full run ended at {run['finished']}, over 36 hours ago"
            checks.add("warn", _MACHINE, "schedule", f"{text}: {remedy}")
        else:
            text = f"the last full run ended at {run['finished']}"
            checks.add("ok", _MACHINE, "schedule", text)


def _check_clock(context: Context, url: str, target: str, checks: Checks) -> None:
    """Compare this machine's clock with the Date of a server's answers."""
    ahead = context.server(url).ahead
    if ahead is None or abs(ahead) <= _CLOCK:
        return
    text = ahead_text(ahead, dt.timedelta(minutes=1), "minute")
    text += f" that of {urllib.parse.urlsplit(url).netloc}"
    checks.add("warn", target, "clock", f"{text}: have both set by NTP")


def _end_of(certificate: bytes) -> dt.datetime | None:
    with contextlib.suppress(ValueError):
        return read_certificate(certificate).not_after
    return None


def _place_of(appliance: Appliance) -> object:
    account = (appliance.username, appliance.password.value)
    return appliance.addresses, appliance.partition, account


class ProfileLook:
    """Looks at what a profile finds on its appliance."""

    def __init__(
        self, profile: Profile, view: View, store: Store, context: Context, checks: Checks
    ) -> None:
        self._profile = profile
        self._view = view
        self._store = store
        self._prover = Prover(profile, view, context)
        self._checks = checks

    def run(self) -> None:
        for server in self._profile.virtual_servers:
            self._look_at_server(server)
        row = self._view.certkeys.get(self._profile.certkey)
        if row is None:
            text = f"the certkey {self._profile.certkey} is not there yet: run orders it"
            self._checks.add("ok", self._profile.name, "certkey", text)
            return
        with contextlib.suppress(AgentError):  # no profile fails for want of this reading
            self._look_at_certificate(row)

    def _look_at_server(self, server: VirtualServer) -> None:
        profile, name = self._profile, self._profile.name
        text = f'the virtual server "{server.name}"'
        with self._checks.trying(name, "virtual server", f"{text} ends TLS"):
            self._view.virtual_server(server)
            if not self._view.is_bound(server, profile.certkey):
                self._view.check_free(server)
        for taken in self._view.taken(profile, None):
            if (taken.virtual_server, taken.sni) == (server.name, server.sni):
                self._checks.add("fail", name, "virtual server", taken_text(name, [taken]))

    def _look_at_certificate(self, row: CertKey) -> None:
        profile, name, now = self._profile, self._profile.name, utc_now()
        record = self._store.load(name)
        certificate = known_certificate(record, row) or read_installed(self._view, row)
        self._checks.add(
            "ok", name, "certkey", f"{row.name}, valid until {iso(certificate.not_after)}"
        )
        for text in self._view.expiring(row.name, now):
            remedy = f"renew {name}, and have SCM give a chain that lasts"
            self._checks.add("warn", name, "chain", f"{text}: {remedy}")
        self._look_at_renewal(row, record)
        if not row.link and row.subject != row.issuer:
            text = (
                f"the certkey {row.name} is not linked, so that clients get it without its issuer"
            )
            self._checks.add(
                "warn", name, "chain", f"{text}: add the issuer's certkey, and link it"
            )
        for server in profile.virtual_servers if profile.handshake != "off" else ():
            if self._view.is_bound(server, profile.certkey):
                self._shake_hands(server, certificate)

    def _look_at_renewal(self, row: CertKey, record: Record) -> None:
        """Look at what a run looks at before an order, though the certificate may not be due."""
        name, is_ours = self._profile.name, row.serial in record.ours
        with self._checks.trying(name, "certkey", f"the certkey {row.name} can be updated"):
            self._view.check_updatable(row.name, is_ours=is_ours)
        if not is_ours and (why := why_no_way_back(row)):
            text = f"{no_way_back_text(row)}: {why}"
            remedy = "copy its files before it is due, should you need them again"
            self._checks.add("warn", name, "way back", f"{text}: {remedy}")

    def _shake_hands(self, server: VirtualServer, certificate: Certificate) -> None:
        try:
            wrong, _ = self._prover.look_at(server, [certificate])()
        except AgentError as error:
            wrong = error.message
        status: CheckStatus = "fail" if self._profile.handshake == "required" else "warn"
        remedy = "look at its bindings and at what stands between, or set connect"
        if wrong:
            text = wrong if ": " in wrong else f"{wrong}: {remedy}"
            self._checks.add(status, self._profile.name, "handshake", text)
        else:
            text = f'"{server.name}" presents the certificate'
            self._checks.add("ok", self._profile.name, "handshake", text)


class ApplianceLook:
    """Looks at one appliance, as its account sees it, and at the profiles there."""

    def __init__(
        self, appliance: Appliance, profiles: list[Profile], session: Session, checks: Checks
    ) -> None:
        self.profiles = profiles
        self.is_open = False  # a run can begin there
        self._appliance = appliance
        self._context = session.context
        self._store = session.store
        self._checks = checks

    def run(self) -> None:
        hosts = [host for host in self._appliance.hosts if self._look_at_tls(host)]
        roles = [role for role in map(self._look_from_inside, hosts) if role]
        if not roles:
            return
        if "primary" not in roles:
            text = f"{hosts[0]} is the standby node of its HA pair, which is not written to"
            remedy = (
                "name the primary, both nodes, or a SNIP with management access, as citrix.host"
            )
            self._checks.add("fail", self._target, "role", f"{text}: {remedy}")
        view = View(self._appliance, self._context)
        try:
            view.open(standby=True)
            self.is_open = "primary" in roles
            for profile in self.profiles:
                ProfileLook(profile, view, self._store, self._context, self._checks).run()
            for what, error in view.unknown.items():
                self._tell_unknown(what, error)
        except AgentError as error:
            self._checks.add("fail", self._target, "reading", error.message)
        finally:
            view.close()

    @property
    def _target(self) -> str:
        return self._appliance.host

    def _look_at_tls(self, host: str) -> bool:
        """Look at the management certificate, whether it is trusted or not."""
        for notice in _notices(self._appliance):
            remedy = "set ca_bundle or fingerprint instead"
            self._checks.add("warn", self._target, "tls", f"{notice}: {remedy}")
        try:
            presented = management_certificate(host, self._context.interrupt)
        except OSError as error:
            text = f"{host} cannot be reached ({_words(error)})"
            remedy = "check citrix.host, the network and its firewalls"
            self._checks.add("fail", self._target, "tls", f"{text}: {remedy}")
            return False
        text = f'{host} presents fingerprint: "{fingerprint_in_words(presented)}"'
        self._checks.add("ok", self._target, "tls", text)
        end = _end_of(presented)
        if end is None or end - utc_now() > _SOON:
            return True
        over = end <= utc_now()
        text = (
            f"the management certificate of {host} {'expired' if over else 'expires'} at {iso(end)}"
        )
        remedy = "renew it on the appliance; where it is pinned, pin the new one"
        self._checks.add("fail" if over else "warn", self._target, "tls", f"{text}: {remedy}")
        return True

    def _look_from_inside(self, host: str) -> str:
        """Log in, and see what the account may read; return the node's role, empty without one."""
        client = NetScaler(self._appliance, host, self._context)
        try:
            with self._checks.trying(self._target, "login", f"{host} takes the login"):
                client.login()
            return "" if self._checks.failed(self._target) else self._look_around(client)
        finally:
            client.logout()

    def _look_around(self, client: NetScaler) -> str:
        standby = self._may(client, "stat HA node", client.is_standby)
        release = self._may(client, "show ns version", client.read_release)
        unsaved = self._may(client, "show ns config", client.has_unsaved_changes)
        self._may(client, "show ssl certKey", client.certkeys)
        self._may(client, "show ssl vserver", client.bindings)
        self._may(client, "show vpn global", client.vpn_global_certkeys)
        self._may(client, "show system file", lambda: client.read_file(_ABSENT_FILE))
        for kind, asked in _SHOW.items():
            self._may(client, asked, functools.partial(client.virtual_servers, kind))
        if release and _version(release) < _OLDEST_RELEASE:
            text = f"{client.host} has release {release}, which is not supported"
            self._checks.add("warn", self._target, "release", f"{text}: upgrade to 13.0 or newer")
        _check_clock(self._context, f"https://{client.host}", self._target, self._checks)
        if unsaved:
            text = f"{client.host} has changes that nobody saved, which a run saves with its own"
            self._checks.add("warn", self._target, "saved", f"{text}: save ns config")
        return "standby" if standby else "primary"

    def _may(self, client: NetScaler, asked: str, look: Callable[[], T]) -> T | None:
        """Try a look; what is refused fails a run only where it needs that."""
        try:
            seen = look()
        except AgentError as error:
            kinds = {server.kind for each in self.profiles for server in each.virtual_servers}
            if asked in _NEEDED_LOOKS or asked in {_SHOW[kind] for kind in kinds}:
                self._checks.add("fail", self._target, asked, error.message)
            else:
                self._tell_unknown(asked, error)
            return None
        self._checks.add("ok", self._target, asked, f"{client.host}: {asked} is allowed")
        return seen

    def _tell_unknown(self, what: str, error: AgentError) -> None:
        """Tell what could not be looked at; a run does without."""
        if isinstance(error, NitroError) and error.code in NOT_OFFERED:
            text = f"this release tells nothing of {what}"
            self._checks.add("skip", self._target, what, text)
        else:
            self._checks.add("warn", self._target, what, error.message)


def _check_lines(checks: Checks, *, verbose: bool) -> list[str]:
    """Return the lines to show: what is well first, in one line for each target, problems last."""
    order: tuple[CheckStatus, ...] = ("ok", "skip", "warn", "fail")
    lines: list[str] = []
    for status in order:
        found = [each for each in checks.all if each.status == status]
        if verbose or status in {"warn", "fail"}:
            lines += [each.line for each in found]
            continue
        for target, number in collections.Counter(each.target for each in found).items():
            only = next(each.message for each in found if each.target == target)
            text = only if number == 1 else _count(number, "check")
            lines.append(f"{_SHOWN[status]:<4}  {target}  {text}")
    counts = [f"{checks.count(status)} {_SHOWN[status]}" for status in order]
    return [*lines, f"{_count(len(checks.all), 'check')}: {', '.join(counts)}"]


def _try_address(scm: Sectigo) -> None:
    """Ask for a certificate that nobody has: any reasoned no shows that this is SCM's API."""
    try:
        scm.status("0")
    except ScmError as error:
        if error.code is None or error.kind in {"auth", "permission"}:
            raise


class Examination:
    """Looks at everything that a run would trip over, and changes nothing."""

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        self.checks = Checks()
        self._session = session
        self._home = session.home
        self._names = names
        self._profiles: list[Profile] = []
        self._config: ScmConfig | None = None

    def files(self) -> None:
        """Look at this machine and at all files."""
        home, checks = self._home, self.checks
        _check_packages(checks)
        files = home.profile_files(self._names)
        folders = [home.path, home.path / "profiles", home.path / "appliances"]
        scm, agent = home.path / "scm.yaml", home.path / "agent.yaml"
        targets = {scm: _SCM, agent: _SETTINGS}
        appliances = [] if self._names else _yaml_files(home.path / "appliances")
        for path in [folder for folder in folders if folder.is_dir()]:
            _check_path(path, home.path, _MACHINE, checks)
        for path in [each for each in (scm, agent, *appliances) if each.is_file()]:
            _check_path(path, home.path, targets.get(path, _MACHINE), checks)
        for path in files:
            _check_path(path, home.path, path.stem, checks)
        _check_schedule(self._session.store, checks)
        self._read_scm()
        self._read_settings()
        self._read_profiles(files)

    def _read_settings(self) -> None:
        known = len(self._home.warnings)
        settings, problems = self._home.load_settings()
        for warning in self._home.warnings[known:]:
            self.checks.add("warn", _SETTINGS, "secrets", warning)
        self.checks.stopping |= bool(problems)
        for problem in dict.fromkeys((*problems, *settings.problems)):
            self.checks.add("fail", _SETTINGS, "configuration", problem)
        if os.path.lexists(self._home.path / _SETTINGS) and not self.checks.failed(_SETTINGS):
            self.checks.add("ok", _SETTINGS, "configuration", "agent.yaml")

    def _read_scm(self) -> None:
        self._config, problems = self._home.load_scm()
        for warning in dict.fromkeys(self._home.warnings):
            self.checks.add("warn", _SCM, "secrets", warning)
        for problem in problems:
            self.checks.add("fail", _SCM, "configuration", problem)
        self.checks.stopping |= bool(problems)
        if not problems:
            self.checks.add("ok", _SCM, "configuration", "scm.yaml")

    def _read_profiles(self, files: Sequence[pathlib.Path]) -> None:
        loaded = self._home.load_profiles(files)
        self._profiles = loaded.profiles
        for problem in loaded.untold:
            self.checks.add("warn", _SETTINGS, "configuration", problem)
        for name, problems in loaded.broken.items():
            for problem in problems:
                self.checks.add("fail", name, "configuration", problem)
        self.checks.stopping |= bool(files) and not loaded.profiles
        for profile in loaded.profiles:
            self.checks.add("ok", profile.name, "configuration", f"profile {profile.name}")
            for notice in profile.notices:
                self.checks.add("warn", profile.name, "configuration", notice)
            with self.checks.trying(profile.name, "record", "its record in state/"):
                self._session.store.load(profile.name)
        if not files:
            text = "no profile: see citrixagent.py discover and configure"
            self.checks.add("skip", _MACHINE, "profiles", text)

    def network(self) -> None:
        """Look at SCM, at the appliances, and at what a run would do there."""
        config = self._config
        reached = self._look_at_scm(config) if config else False
        looks = self._looks()
        for done in in_threads([look.run for look in looks], _JOBS):
            done.result()
        if config and reached:
            well = [profile for look in looks if look.is_open for profile in look.profiles]
            self._rehearse(config, well)

    def _looks(self) -> list[ApplianceLook]:
        """Return one look for each appliance and account, whatever else differs."""
        places: dict[object, tuple[Appliance, list[Profile]]] = {}
        for profile in self._profiles:
            place = _place_of(profile.appliance)
            places.setdefault(place, (profile.appliance, []))[1].append(profile)
        sites, problems = ([], []) if self._names else self._home.sites([])
        for problem in problems:
            self.checks.add("warn", _MACHINE, "configuration", problem)
        for site in sites:
            places.setdefault(_place_of(site.appliance), (site.appliance, []))
        return [ApplianceLook(*each, self._session, self.checks) for each in places.values()]

    def _look_at_scm(self, config: ScmConfig) -> bool:
        """Log in to SCM, and compare what it offers with the profiles."""
        session = self._session
        scm = connect_to_scm(config, Tokens(config, session.redactor), session.context)
        host = urllib.parse.urlsplit(config.url).netloc
        with self.checks.trying(_SCM, "login", f"{host} takes the login"):
            scm.log_in()
            _try_address(scm)
        for url in (config.url, config.token_url):
            _check_clock(session.context, url, _SCM, self.checks)
        if self.checks.failed(_SCM):
            return False
        for profile in self._profiles:
            with self.checks.trying(_SCM, "offer", f"what {profile.name} asks for is offered"):
                scm.prepare(profile)
        return True

    def _rehearse(self, config: ScmConfig, profiles: Sequence[Profile]) -> None:
        """Have a dry run say what it would trip over."""
        run = self._session.new_run(config, Intent(), dry_run=True)
        for result in run_all(profiles, run, _JOBS):
            if result.error:
                self.checks.add("fail", result.profile, "run", result.error.message)
            else:
                text = f"{result.outcome}: {result.reason}" if result.reason else result.outcome
                self.checks.add("ok", result.profile, "run", f"run --dry-run: {text}")
            for warning in result.warnings:
                self.checks.add("warn", result.profile, "run", warning)


def _test_channels(session: Session, checks: Checks) -> None:
    """Send what was found through every channel of agent.yaml."""
    config, _ = session.home.load_scm()
    session.proxy = config.proxy if config else None
    session.settings, _ = session.home.load_settings()
    found = ExitCode.FAILED if checks.count("fail") else ExitCode.OK
    ended = session.channels().test(_check_lines(checks, verbose=False), found)
    for name, problem in ended.items():
        if problem:
            checks.add("fail", _SETTINGS, name, f"{name}: {problem}")
        else:
            checks.add("ok", _SETTINGS, name, f"{name}: a test was sent")
    if not ended:
        checks.add("skip", _SETTINGS, "notify", "no channel is set: notify, ping_url")


def examine(session: Session, names: Sequence[str], *, offline: bool, notify: bool = False) -> None:
    """Tell what a run would trip over; everything that can be told is told."""
    report, examination = session.report, Examination(session, names)
    checks = examination.checks
    report.own = {"checks": []}
    examination.files()
    if offline:
        checks.add("skip", _MACHINE, "network", "SCM and the appliances: --offline")
    else:
        examination.network()
    report.own = {"checks": [dataclasses.asdict(each) for each in checks.all]}
    if notify:
        _test_channels(session, checks)
        report.own = {"checks": [dataclasses.asdict(each) for each in checks.all]}
    report.found = ExitCode.FAILED if checks.count("fail") else ExitCode.OK
    report.found = ExitCode.CONFIG if checks.stopping else report.found
    for line in _check_lines(checks, verbose=session.app.verbosity > 0):
        report.console.say(line)


# ----- 24. Setup ------------------------------------------------------------------------------

SETUP_PARTS = ("scm", "appliance", "profile")


def _check_yes_or_no(answer: str) -> str:
    if answer.lower() not in {"yes", "no"}:
        raise ValueError("please type yes or no")
    return answer.lower()


class Questions:
    """Asks on the terminal; a signal, and the end of what is typed, end the program at once."""

    def __init__(self, interrupt: Interrupt, console: Console) -> None:
        self._interrupt = interrupt
        self._console = console

    def ask(
        self, question: str, check: Callable[[str], str], *, default: str = "", example: str = ""
    ) -> str:
        """Ask until ``check`` takes the answer, telling what it says (ValueError); return that.

        Enter takes the default.
        """
        shown = default or (f"such as {example}" if example else "")
        prompt = f"{question} [{shown}]: " if shown else f"{question}: "
        while True:
            answer = self._read(prompt).strip() or default
            try:
                return check(answer)
            except ValueError as error:
                self._console.show(f"  {error}")

    def hidden(self, question: str) -> str:
        while not (answer := self._read(f"{question} [hidden]: ", hide=True)):
            self._console.say("  must not be empty")
        return answer

    def agrees(self, question: str) -> bool:
        """Ask for a yes or a no, in full: neither is the default."""
        return self.ask(f"{question} (yes, no)", _check_yes_or_no) == "yes"

    def _read(self, prompt: str, *, hide: bool = False) -> str:
        prompted = functools.partial(click.prompt, default="", show_default=False, prompt_suffix="")
        try:
            with self._interrupt.cutting_off():
                return str(prompted(prompt, hide_input=hide))
        except click.Abort:
            self._interrupt.signal = self._interrupt.signal or signal.SIGINT
            raise Interrupted from None


def _plain(data: object) -> object:
    """Return a document's data as it can be written: without what its reader notes of it."""
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(item) for item in data] if isinstance(data, list) else data


def _block(value: object) -> Document:
    return dict(value) if isinstance(value, dict) else {}


class Draft(DiskSource):
    """A YAML file that is going to be written, with the secrets that it names.

    It begins with what is there, so that keys which nobody asks for are kept; not with what is
    still the sample's.
    """

    def __init__(self, path: pathlib.Path, redactor: Redactor) -> None:
        super().__init__(path, redactor)
        self.path = path
        self.secrets: dict[str, str] = {}  # by their path, seen from the file's folder
        self.data: Document = {}
        with contextlib.suppress(ValueError):
            self.data = _block(_plain(self.document()) if path.exists() else {})
        sample = [key for key, value in self.data.items() if "your-" in str(value)]
        self.is_sample = bool(sample)
        self.forget(sample)

    def open_to_others(self) -> bool:
        return False

    def fetch(self, way: str, value: str) -> str:
        secret = self.secrets.get(value) if way == "file" else None
        return super().fetch(way, value) if secret is None else secret

    def known(self, key: str) -> str:
        """Return what a key holds already, as it would be typed; empty where that is nothing."""
        value = self.data.get(key, "")
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.data.pop(key, None)

    def put(self, place: str, value: object) -> None:
        """Set a key, or remove it (None); a dot leads into a block."""
        block, _, key = place.rpartition(".")
        holder = self.data.setdefault(block, {}) if block else self.data
        holder[key] = value
        if value is None:
            del holder[key]

    def keep_secret(self, name: str, file: str, secret: str) -> None:
        """Have a secret go to a file of its own, whatever way it was given in before."""
        self.forget(secret_keys(name))
        self.data[f"{name}_file"] = file
        self.secrets[file] = secret
        self._redactor.add(secret)

    def text(self) -> str:
        return _yaml(self.data)

    def write(self) -> None:
        """Write the secrets, then the file: each in one step, for the owner alone."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        for file, secret in self.secrets.items():
            write_private(self.path.parent / file, f"{secret}\n")
        write_private(self.path, self.text())


Parse = Callable[[Draft, list[str]], object]
"""Reads a draft as the program would; what is wrong is added to the list."""


def _parse_scm_draft(draft: Draft, problems: list[str]) -> ScmConfig:
    return parse_scm(draft.data, draft, problems)


def _parse_appliance_draft(draft: Draft, problems: list[str]) -> Appliance:
    return parse_appliance(Section(draft.data, draft, problems))


def _check_kept(draft: Draft, parse: Parse, asked: Collection[str]) -> None:
    """Raise AgentError (config) for what is wrong with a file and no question would mend."""
    problems: list[str] = []
    parse(draft, problems)
    kept = tuple(f"{draft.file}: {key}: " for key in draft.data if key not in asked)
    if wrong := [problem for problem in problems if problem.startswith(kept)]:
        raise AgentError("config", "\n".join(wrong))


def _take(draft: Draft, parse: Parse, place: str, value: object) -> None:
    """Put a value into a draft; ValueError says what is wrong with it there."""
    draft.put(place, value)
    problems: list[str] = []
    parse(draft, problems)
    start = f"{draft.file}: {place}"
    for problem in problems:
        if problem.startswith(start):
            raise ValueError(problem.removeprefix(f"{draft.file}: "))


def _take_answer(
    draft: Draft, parse: Parse, place: str, convert: Callable[[str], object], answer: str
) -> str:
    if not answer:
        raise ValueError("must not be empty")
    _take(draft, parse, place, convert(answer))
    return answer


def _taker(
    draft: Draft, parse: Parse, place: str, convert: Callable[[str], object] = str
) -> Callable[[str], str]:
    """Return a check that puts an answer into a draft."""
    return functools.partial(_take_answer, draft, parse, place, convert)


def _as_number(answer: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", answer):
        raise ValueError("must be a whole number")
    return int(answer)


def _as_list(answer: str) -> list[str]:
    return [part.strip() for part in answer.split(",") if part.strip()]


def _as_hosts(answer: str) -> object:
    hosts = _as_list(answer)
    return hosts if len(hosts) > 1 else answer


def _check_stem(answer: str) -> str:
    if not answer or _file_name(answer) != answer:
        raise ValueError("must begin with a letter or digit, and hold only those and . _ -")
    return answer


def _check_choice(choices: Sequence[str], answer: str) -> str:
    if answer not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    return answer


_ASKED_OF_SCM = ("url", *_OAUTH_KEYS, *_ADMIN_KEYS)
_ASKED_OF_APPLIANCES = ("host", "username", *secret_keys("password"))
_ASKED_OF_CERTIFICATES = (
    *("common_name", "subject_alternative_names", "key_type"),
    *("organization", "state", "country"),
)


def _with_kept(asked: Document, before: Document) -> Document:
    """Return a profile as it was asked for, with what it had before that no question asks for."""
    servers = before.get("virtual_servers")
    rows = map(_block, servers if isinstance(servers, list) else ())
    known = {str(row.get("name")): row for row in rows}
    certificate = _block(before.get("certificate"))
    kept = {key: certificate[key] for key in certificate if key not in _ASKED_OF_CERTIFICATES}
    return {
        **asked,
        "virtual_servers": [
            {**known.get(each["name"], {}), **each} for each in asked["virtual_servers"]
        ],
        "certificate": asked["certificate"] | kept,
        **{key: before[key] for key in before if key not in asked},
    }


def _check_numbers(most: int, answer: str) -> str:
    numbers = _as_list(answer)
    if not numbers or not all(each.isascii() and each.isdigit() for each in numbers):
        raise ValueError("must be numbers from the list, separated by commas")
    if not all(1 <= int(each) <= most for each in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"must be different numbers from 1 to {most}")
    return answer


class Setup:
    """Asks for what an installation needs, tries each answer, and writes it down at the end."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._console = session.report.console
        self._home = session.home
        self._ask = Questions(session.context.interrupt, self._console)
        self._drafts: list[Draft] = []
        self._appliances: dict[str, Appliance] = {}
        self.profiles: list[str] = []

    def missing(self) -> list[str]:
        """Return which parts an installation lacks."""
        config, _ = self._home.load_scm()
        has_appliance = bool(self._home.sites([])[0])
        has_profile = bool(self._home.profile_files([]))
        found = {"scm": config is not None, "appliance": has_appliance, "profile": has_profile}
        return [part for part, is_there in found.items() if not is_there]

    def fill_in(self, part: str) -> None:
        parts = {"scm": self._scm, "appliance": self._appliance, "profile": self._profile}
        parts[part]()

    # SCM

    def _scm(self) -> None:
        draft = self._draft("scm.yaml")
        take = _taker(draft, _parse_scm_draft, "api")
        self._ask.ask("API (enrollment, admin)", take, default=draft.known("api") or "enrollment")
        is_admin = draft.data["api"] == "admin"
        draft.forget(_LOGIN_KEYS)  # beside which there is no client
        draft.forget(() if is_admin else _ADMIN_KEYS)
        _check_kept(draft, _parse_scm_draft, _ASKED_OF_SCM)
        example = "https://admin.enterprise.sectigo.com" if is_admin else "https://cert-manager.com"
        check = functools.partial(self._try_scm_address, draft)
        self._ask.ask("URL", check, default=draft.known("url"), example=example)
        while not self._try_scm_login(draft):
            pass
        if is_admin:
            self._offer(draft)

    def _try_scm_address(self, draft: Draft, answer: str) -> str:
        """Take the address of SCM where somebody answers there who is trusted."""
        _take_answer(draft, _parse_scm_draft, "url", str, answer)
        config = _parse_scm_draft(draft, [])
        proxy = functools.partial(proxy_to, configured=config.proxy)
        transport = Transport("SCM", config.tls, config.timeout, self._context(), proxy)
        try:
            transport.send("GET", config.url, repeatable=False, headers={})
        except AgentError as error:
            raise ValueError(error.message) from None
        finally:
            transport.close()
        return answer

    def _try_scm_login(self, draft: Draft) -> bool:
        take, known = _taker(draft, _parse_scm_draft, "client_id"), draft.known("client_id")
        self._ask.ask("Client ID", take, default=known, example="the ID that SCM shows")
        draft.keep_secret("client_secret", "client_secret", self._ask.hidden("Client secret"))
        config = dataclasses.replace(_parse_scm_draft(draft, []), api="enrollment")  # token only
        return self._is_well(lambda: self._connect(config).log_in())

    def _offer(self, draft: Draft) -> None:
        """Ask for what the Admin API orders by; type and term are chosen from what it offers."""
        take = _taker(draft, _parse_scm_draft, "org_id", _as_number)
        types: list[Document] = []
        while not types:
            self._ask.ask("Organization ID", take, default=draft.known("org_id"), example="1234")
            config = _parse_scm_draft(draft, [])
            scm = AdminApi(config, Tokens(config, self._session.redactor), self._context())
            if self._is_well(scm.log_in):
                types = list(scm.offered)
        terms = {str(each.get("id")): list(map(str, each.get("terms") or ())) for each in types}
        for each in types:
            number = str(each.get("id"))
            self._console.say(f"  {number}  {each.get('name')} ({', '.join(terms[number])} days)")
        number = self._choose("Certificate type", list(terms), draft.known("cert_type"))
        term = self._choose("Term", terms[number], draft.known("term"))
        draft.data |= {"cert_type": int(number), "term": int(term)}

    def _choose(self, question: str, choices: Sequence[str], known: str = "") -> str:
        """Ask for one of several; the default is what is known, or the first."""
        default = known if known in choices else next(iter(choices), "")
        check = functools.partial(_check_choice, choices)
        return self._ask.ask(question, check, default=default)

    def _connect(self, config: ScmConfig) -> Sectigo:
        return connect_to_scm(config, Tokens(config, self._session.redactor), self._context())

    # An appliance

    def _appliance(self) -> None:
        name = self._ask.ask("Name", _check_stem, default="ns1")
        draft = self._draft(f"appliances/{name}.yaml")
        draft.data = _block(draft.data.get("citrix")) or draft.data  # either form is read
        _check_kept(draft, _parse_appliance_draft, _ASKED_OF_APPLIANCES)
        check = functools.partial(self._try_hosts, draft)
        while True:
            self._ask.ask("Host", check, default=draft.known("host"), example="ns1.example.com")
            if self._try_account(name, draft):
                break
        self._appliances[name] = _parse_appliance_draft(draft, [])

    def _try_hosts(self, draft: Draft, answer: str) -> str:
        _take_answer(draft, _parse_appliance_draft, "host", _as_hosts, answer)
        pinned = False
        for host in _parse_appliance_draft(draft, []).hosts:
            if error := self._distrust(draft, host):
                if pinned:
                    text = f"{host} presents another certificate, and only one can be pinned: give"
                    way = (
                        f"write ca_bundle, the PEM file of the CA of both, into {draft.path} first"
                    )
                    raise ValueError(f"{text} a SNIP with management access alone, or {way}")
                self._pin(draft, host, error)
                pinned = True
        return answer

    def _distrust(self, draft: Draft, host: str) -> TransportError | None:
        """Reach an appliance; return why it is not trusted, or nothing. ValueError: unreachable."""
        tls = _parse_appliance_draft(draft, []).tls
        transport = Transport(host, tls, 30, self._context())
        try:
            url = f"https://{host}/nitro/v1/config/nsversion"
            transport.send("GET", url, repeatable=False, headers={})
        except TransportError as error:
            if error.kind != "untrusted":
                raise ValueError(error.message) from None
            return error
        finally:
            transport.close()
        return None

    def _pin(self, draft: Draft, host: str, error: TransportError) -> None:
        """Show what an appliance presents, and pin it where that is wished, as ssh does."""
        try:
            presented = management_certificate(host, self._session.context.interrupt)
        except OSError:
            raise ValueError(error.message) from None
        words = fingerprint_in_words(presented)
        self._console.say(f"  {host} presents a certificate that is not trusted. Its SHA-256 is")
        self._console.say(f"  {words}")
        if not self._ask.agrees("Trust this certificate?"):
            raise ValueError("give another host, or have ca_bundle name the PEM file of its CA")
        draft.forget(("ca_bundle", "verify"))
        draft.data["fingerprint"] = words

    def _try_account(self, name: str, draft: Draft) -> bool:
        """Log in; ask again where that is refused. Return whether a run could begin there."""
        while True:
            take, known = _taker(draft, _parse_appliance_draft, "username"), draft.known("username")
            self._ask.ask("User name", take, default=known, example="citrixagent")
            draft.keep_secret("password", f"../{name}_password", self._ask.hidden("Password"))
            try:
                self._look(_parse_appliance_draft(draft, []))
            except AgentError as error:
                self._console.show(f"  {error.message}")
                if error.kind != "auth":
                    return False
            else:
                return True

    def _look(self, appliance: Appliance) -> list[tuple[VirtualServerRow, str, str]]:
        """Log in as a run would; return the virtual servers that end TLS, and what they hold."""
        view = View(appliance, self._context())
        found: list[tuple[VirtualServerRow, str, str]] = []
        try:
            view.open()
            bound = [each for name in view.certkeys for each in view.bindings_of(name)]
            for kind in VIRTUAL_SERVER_KINDS:
                with contextlib.suppress(NitroError):  # what may not be looked at is not offered
                    for name, row in view.client.virtual_servers(kind).items():
                        held = [each.certkey for each in bound if each.virtual_server == name]
                        found += [(row, kind, _listed(held))] if row.ends_tls() else []
        finally:
            view.close()
        return found

    # A profile

    def _profile(self) -> None:
        for site in self._home.sites([])[0]:
            if isinstance(site.citrix, str):
                self._appliances.setdefault(site.name, site.appliance)
        if not self._appliances:
            text = "no appliance is described: run citrixagent.py configure appliance"
            raise AgentError("config", text)
        name = next(iter(self._appliances))
        if len(self._appliances) > 1:
            self._console.say(f"  {', '.join(self._appliances)}")
            name = self._choose("Appliance", list(self._appliances))
        draft = Draft(self._home.path / "profiles" / "new.yaml", self._session.redactor)
        draft.data = {"citrix": name, "virtual_servers": self._choose_servers(name)}
        self._describe(draft)
        stem = _file_name(str(draft.data["certificate"]["common_name"]).replace("*", "wildcard"))
        stem = self._ask.ask("Profile name", _check_stem, default=stem)
        written = self._draft(f"profiles/{stem}.yaml")
        written.data = _with_kept(draft.data, written.data)
        problems: list[str] = []
        self._parse_profile(written, problems)
        if problems:  # with what was kept: the answers are right
            raise AgentError("config", "\n".join(problems))
        self.profiles.append(stem)

    def _choose_servers(self, name: str) -> list[Document]:
        rows = self._look(self._appliances[name])
        if not rows:
            text = f"{name} has no virtual server that ends TLS: add one there, of type SSL"
            raise AgentError("appliance", text)
        for number, (row, kind, held) in enumerate(rows, 1):
            text = f"{row.name}  {kind}  {row.address}:{row.port}  certkeys: {held}"
            self._console.say(f"  {number}  {text}")
        check = functools.partial(_check_numbers, len(rows))
        answer = self._ask.ask("Virtual servers", check, default="1")
        chosen = [rows[int(number) - 1] for number in _as_list(answer)]
        return [{"name": row.name, "type": kind} for row, kind, _ in chosen]

    def _describe(self, draft: Draft) -> None:
        take = functools.partial(_taker, draft, self._parse_profile)
        self._ask.ask("Common name", take("certificate.common_name"), example="www.example.com")
        others = functools.partial(self._take_others, draft)
        self._ask.ask("Other names", others, example="example.com, 192.0.2.10; Enter for none")
        usual, key_type = self._usual(draft), self._parse_profile(draft, []).key_type
        examples = {"organization": "Example Ltd", "state": "England", "country": "GB"}
        for key, example in examples.items():
            known = str(getattr(usual, key))
            check = take(f"certificate.{key}")
            self._ask.ask(key.capitalize(), check, default=known, example=example)
        self._console.say(f"  {', '.join(KEY_TYPES)}")
        self._ask.ask("Key type", take("certificate.key_type"), default=key_type or KEY_TYPES[0])

    def _take_others(self, draft: Draft, answer: str) -> str:
        place = "certificate.subject_alternative_names"
        _take(draft, self._parse_profile, place, _as_list(answer))
        if not answer:
            draft.put(place, None)
        return answer

    def _usual(self, draft: Draft) -> Subject:
        """Return the subject that agent.yaml gives, or else that of another profile."""
        own = self._parse_profile(draft, []).subject
        others = self._home.load_profiles(self._home.profile_files([])).profiles
        return own if own.organization or not others else others[0].subject

    def _parse_profile(self, draft: Draft, problems: list[str]) -> Profile:
        root = Section(draft.data, draft, problems, below=self._home.defaults(problems))
        return parse_profile("new", root, lambda name, _problems: self._appliances[name], problems)

    # Both ends

    def write(self) -> bool:
        """Show each file and write it where that is wished; return whether any was written."""
        written = False
        for draft in self._drafts:
            self._console.show(f"\n{draft.path}:\n{draft.text()}")
            for file in draft.secrets:
                self._console.say(f"The secret goes to {(draft.path.parent / file).resolve()}")
            if draft.is_sample or self._ask.agrees(f"Write {draft.path}?"):
                draft.write()
                written = True
        return written

    def _draft(self, path: str) -> Draft:
        draft = Draft(self._home.path / path, self._session.redactor)
        self._drafts.append(draft)
        return draft

    def _context(self) -> Context:
        """Return what a single try needs: a server that was down a minute ago is tried again."""
        return Context(self._session.context.interrupt, self._session.redactor)

    def _is_well(self, do: Callable[[], None]) -> bool:
        try:
            do()
        except AgentError as error:
            self._console.show(f"  {error.message}")
            return False
        return True


def configure(session: Session, part: str | None) -> None:
    """Ask for a part, or for all that is missing; then check what was written."""
    _, problems = session.home.load_settings()
    if problems:
        raise AgentError("config", "\n".join(problems))
    setup = Setup(session)
    parts = [part] if part else setup.missing()
    if not parts:
        session.report.console.say("Nothing is missing: configure scm, appliance or profile.")
    for each in parts:
        setup.fill_in(each)
    written = setup.write()
    session.home = Home(session.app.home, session.redactor)  # what is on disk now
    if written:
        names = [path.stem for path in session.home.profile_files([])]
        examine(session, [name for name in setup.profiles if name in names], offline=False)


# ----- 25. Commands ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Revocation:
    """What of each profile is revoked, and why: a name of REVOCATION_REASONS, words for SCM."""

    reason: str
    message: str
    previous: bool  # what the last renewal or replacement left behind


REVOCATION_REASONS: Mapping[str, int] = {  # RFC 5280's numbers, as far as SCM takes them
    "unspecified": 0,
    "keyCompromise": 1,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
}
_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of lines."
)
_wait_option = click.option(
    "--wait",
    type=click.IntRange(0, 86400),
    metavar="SECONDS",
    help="Wait so long for issuance, whatever the profiles say; 0: ask once.",
)
_take_over_option = click.option(
    "--take-over",
    is_flag=True,
    help="Take what belongs to somebody else: a certkey of that name, places on virtual servers.",
)


def _complete(folder: str, context: click.Context, word: str) -> list[str]:
    """Return the names of the files in a folder of the home that begin like a word."""
    home = context.find_root().params.get("home") or _PROGRAM.parent
    with contextlib.suppress(AgentError):
        return [path.stem for path in _yaml_files(home / folder) if path.stem.startswith(word)]
    return []


def complete_profiles(context: click.Context, _argument: click.Parameter, word: str) -> list[str]:
    return _complete("profiles", context, word)


def complete_appliances(context: click.Context, _argument: click.Parameter, word: str) -> list[str]:
    return _complete("appliances", context, word)


def _be_verbose(context: click.Context, _parameter: click.Parameter, count: int) -> None:
    if count and not context.resilient_parsing:
        context.ensure_object(App).verbosity += count


class VerboseCommand(click.Command):
    """A command that takes -v as well: it is behind the command that people add it."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401 - click's
        super().__init__(*arguments, **keywords)
        self.params.append(
            click.Option(["-v"], count=True, hidden=True, expose_value=False, callback=_be_verbose)
        )


class Commands(click.Group):
    """The commands, and the last guard around each: what nobody expected is told in one line."""

    command_class = VerboseCommand

    def main(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as it is inherited
        try:
            return super().main(*arguments, **keywords)
        except OSError as error:  # help and version are printed before a command is known
            if not (text := no_room_for_output(error)):
                raise
            click.echo(f"error: {text}", err=True)
            sys.exit(ExitCode.FAILED)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as it is inherited
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if no_room_for_output(error):
                raise
            log.exception("unexpected")
            raise AgentError("state", f"unexpected {type(error).__name__}: {error}") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    envvar="CITRIXAGENT_HOME",
    help="Holds scm.yaml, profiles/, state/; default: the program's.",
)
@click.option("-v", "verbosity", count=True, help="Show the log on stderr; -vv: every request.")
@click.version_option(__version__, prog_name="citrixagent")
@click.pass_context
def main(context: click.Context, home: pathlib.Path | None, verbosity: int) -> None:
    """Keep certificates from Sectigo on Citrix NetScaler virtual servers valid."""
    os.umask(0o077)
    place = (home or _PROGRAM.parent).absolute()
    context.obj = App(place, verbosity, became=become_owner(place / "state"))


def run_profiles(
    session: Session, names: Sequence[str], intent: Intent, wait: int | None, jobs: int
) -> None:
    if intent.take_over and not names:
        raise click.UsageError("--take-over needs the PROFILE that may take what is not its own")
    session.execute(names, intent, wait, jobs)


@main.command("run")
@click.argument("profiles", shell_complete=complete_profiles, nargs=-1, metavar="[PROFILE]...")
@click.option("--dry-run", is_flag=True, help="Read and plan only; change and order nothing.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=_JOBS,
    show_default=True,
    metavar="N",
    help="Appliances handled at the same time.",
)
@_take_over_option
@_wait_option
@_json_option
@click.pass_obj
def run_command(  # noqa: PLR0913 - click gives each option by its name
    app: App,
    *,
    profiles: tuple[str, ...],
    dry_run: bool,
    jobs: int,
    take_over: bool,
    wait: int | None,
    as_json: bool,
) -> None:
    """Bring every profile, or the named ones, to where it should be.

    Resumes open orders, enrolls what is missing, renews what is due, repairs bindings and links,
    saves. Says nothing where there is nothing to do: this is the command for cron.
    """
    session = Session(app, "run", as_json=as_json, dry_run=dry_run, names=profiles)
    session.run(lambda s: run_profiles(s, profiles, Intent(take_over=take_over), wait, jobs))


def enroll(session: Session, names: Sequence[str], intent: Intent, wait: int | None) -> None:
    if intent.cert_id is not None and not (intent.cert_id.strip() and len(names) == 1):
        raise click.UsageError("--cert-id takes an id that SCM shows, and exactly one PROFILE")
    session.execute(names, intent, wait, jobs=1)


@main.command("enroll")
@click.argument(
    "profiles", shell_complete=complete_profiles, nargs=-1, required=True, metavar="PROFILE..."
)
@click.option(
    "--force",
    is_flag=True,
    help="Order even though a valid certificate is installed or an order's outcome is unknown; "
    "give up an order that failed or no longer fits.",
)
@click.option(
    "--cert-id", metavar="ID", help="Go on with an order that SCM has, instead of placing one."
)
@_take_over_option
@_wait_option
@_json_option
@click.pass_obj
def enroll_command(  # noqa: PLR0913 - click gives each option by its name
    app: App,
    *,
    profiles: tuple[str, ...],
    force: bool,
    cert_id: str | None,
    take_over: bool,
    wait: int | None,
    as_json: bool,
) -> None:
    """Order a certificate and install it.

    An open order is resumed, not doubled.
    """
    session = Session(app, "enroll", as_json=as_json, names=profiles)
    intent = Intent("enroll", force=force, take_over=take_over, cert_id=cert_id)
    session.run(lambda s: enroll(s, profiles, intent, wait))


# What list shows


def _listed_certificate(view: View, row: CertKey, record: Record) -> Certificate | None:
    if known := known_certificate(record, row):
        return known
    try:
        return from_row(row) if row.names else read_installed(view, row)
    except AgentError as error:
        log.info("%s", error.message)
        return None


def _certificate_fields(certificate: Certificate | None) -> Document:
    if certificate is None:
        keys = ("common_name", "subject_alternative_names", "issuer", "serial", "key_type")
        return dict.fromkeys((*keys, "not_before", "not_after", "days_left"))
    return {
        "common_name": certificate.common_name,
        "subject_alternative_names": list(certificate.names),
        "issuer": certificate.issuer,
        "serial": shown_serial(certificate.serial),
        "key_type": certificate.key_type,
        "not_before": iso(certificate.not_before),
        "not_after": iso(certificate.not_after),
        "days_left": (certificate.not_after - utc_now()).days,
    }


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a list is asked for: every certkey, and what is presented and said of them."""

    all: bool = False
    served: bool = False


@dataclasses.dataclass
class Place:
    """An appliance to list, its profiles to show, and others that may own some of its certkeys."""

    appliance: Appliance
    profiles: list[Profile]
    others: list[Profile]


class Listing:
    """Reads what one appliance holds, and what stands for it in records and files."""

    def __init__(
        self, session: Session, place: Place, wanted: Wanted, failed: set[str], scm: Sectigo | None
    ) -> None:
        self._session = session
        self._place = place
        self._wanted = wanted
        self._failed = failed  # profiles whose last command failed
        self._scm = scm
        self._view = View(place.appliance, session.context)

    def read(self) -> list[Document]:
        """Return the certkeys of the profiles, or all."""
        owners = {each.certkey: each for each in (*self._place.others, *self._place.profiles)}
        progress = self._session.report.console.progress
        progress(f"{self._place.appliance.host}: reading", self._place.appliance.timeout)
        try:
            self._view.open(standby=True)
            names = dict.fromkeys(profile.certkey for profile in self._place.profiles)
            names |= dict.fromkeys(self._view.certkeys if self._wanted.all else ())
            return [self._describe(name, owners.get(name)) for name in names]
        finally:
            self._view.close()
            progress("")

    def _describe(self, certkey: str, profile: Profile | None) -> Document:
        row = self._view.certkeys.get(certkey)
        record = self._record(profile) if profile else Record("")
        certificate = _listed_certificate(self._view, row, record) if row else None
        bound = self._view.bindings_of(certkey)
        document = {
            "appliance": self._view.client.host,
            "certkey": certkey,
            **_certificate_fields(certificate),
            "virtual_servers": [{"name": each.virtual_server, "sni": each.sni} for each in bound],
            "profile": profile.name if profile else None,
            "order": order_document(record.change),
            "managed": profile is not None,
            "state": "unmanaged",
            "renews": None,
        }
        said = self._status(record, certificate)  # None where SCM is not asked
        if profile:
            revoked = certificate.serial if certificate and said == "REVOKED" else None
            failed = profile.name in self._failed
            stands = profile_standing(profile, record, certificate, failed=failed, revoked=revoked)
            document |= {"state": stands.state, "renews": stands.renews}
        if self._wanted.served:
            document["served"] = [self._served(each, certificate, profile) for each in bound]
            document["scm_status"] = said
        return document

    def _record(self, profile: Profile) -> Record:
        """Return a profile's record; one that cannot be read hides nothing else."""
        try:
            return self._session.store.load(profile.name)
        except AgentError as error:
            self._session.report.failures.append(error)
            return Record(profile.name)

    def _status(self, record: Record, certificate: Certificate | None) -> str | None:
        """Return what SCM says of a certificate that this tool ordered."""
        installed = record.installed
        if not (self._scm and installed and installed.cert_id and certificate):
            return None
        if installed.serial != certificate.serial:
            return None
        try:
            return self._scm.status(installed.cert_id)
        except AgentError as error:
            self._session.report.failures.append(error)
            return None

    # What virtual servers present

    def _served(
        self, binding: Binding, certificate: Certificate | None, profile: Profile | None
    ) -> Document:
        found: Document = {"virtual_server": binding.virtual_server}
        found |= dict.fromkeys(("host", "port", "serial", "issuer", "chain_length"))
        try:
            found["host"], found["port"] = self._address_of(binding.virtual_server, profile)
            name = self._server_name(binding, certificate)
            address = (found["host"], found["port"])
            key_type = certificate.key_type if certificate else ""
            shown = probe(address, name, key_type, self._session.context)
            leaf = read_certificate(shown.certificate)
        except AgentError as error:
            return found | {"ok": False, "message": error.message}
        except OSError as error:
            return found | {"ok": False, "message": _words(error)}
        except ValueError:
            return found | {"ok": False, "message": "it presents no certificate"}
        found |= {"serial": shown_serial(leaf.serial), "issuer": leaf.issuer}
        is_it = certificate is not None and leaf.serial == certificate.serial
        text = "" if is_it else f"it presents another certificate ({one_line(leaf.common_name)})"
        return found | {"chain_length": shown.chain_length, "ok": is_it, "message": text}

    def _address_of(self, name: str, profile: Profile | None) -> tuple[str, int]:
        """Return where a virtual server is reached; AgentError where that is not known."""
        servers = profile.virtual_servers if profile else ()
        named = next((each for each in servers if each.name == name), None)
        if named and named.connect:
            return named.connect
        kinds = [named.kind] if named else list(VIRTUAL_SERVER_KINDS)
        for kind in kinds:
            with contextlib.suppress(AgentError):
                row = self._view.virtual_server(VirtualServer(name, kind, None))
                if is_addressable(row.address, row.port):
                    return row.address, row.port
        raise AgentError("appliance", "it has no address of its own, or none that is known")

    def _server_name(self, binding: Binding, certificate: Certificate | None) -> str | None:
        """Return the name to ask for; none where an SNI certificate would answer in its place."""
        server = VirtualServer(binding.virtual_server, "load_balancing", None, binding.sni)
        if certificate is None or (not binding.sni and self._view.has_sni(server)):
            return None
        return certificate.common_name.replace("*", "citrixagent", 1) or None


def _key_of(appliance: Appliance) -> object:
    """Return what an appliance is known by, however it is reached."""
    return appliance.addresses, appliance.partition


def _listed_place(places: dict[object, Place], appliance: Appliance) -> Place:
    return places.setdefault(_key_of(appliance), Place(appliance, [], []))


def _places(session: Session, names: Sequence[str], wanted: Wanted) -> list[Place]:
    """Return the appliances to list; with ``--all`` also those that no profile names."""
    home, problems = session.home, list[str]()
    files = home.profile_files(names)
    profiles = session.load_profiles(files, problems)
    if not (files or wanted.all):
        text = "holds no profile: copy example_cert_config.yaml into it, or list --all"
        problems.append(f"{home.path / 'profiles'}: {text}")
    if problems:
        raise AgentError("config", "\n".join(problems))
    session.report.nothing_usable = bool(files) and not (profiles or wanted.all)
    everybody = home.outlines(home.profile_files([])) if wanted.all and names else []
    places: dict[object, Place] = {}
    for profile in profiles:
        _listed_place(places, profile.appliance).profiles.append(profile)
    sites, wrong = home.sites([]) if wanted.all and not names else ([], [])
    session.report.failures += [AgentError("config", problem) for problem in wrong]
    for site in sites:
        _listed_place(places, site.appliance)
    for profile in everybody:
        if _key_of(profile.appliance) in places:
            _listed_place(places, profile.appliance).others.append(profile)
    return list(places.values())


def _scm_for_list(session: Session) -> Sectigo | None:
    """Return the connection to SCM; without a usable scm.yaml only that is missing."""
    config, problems = session.home.load_scm()
    if config is None:
        session.report.failures.append(AgentError("config", "\n".join(problems)))
        return None
    return connect_to_scm(config, Tokens(config, session.redactor), session.context)


def _last_failed(session: Session) -> set[str]:
    """Return the profiles whose last command failed, as far as that is on record."""
    try:
        entries = session.store.read_last_run().get("profiles", {})
    except AgentError:
        return set()
    return {name for name, entry in entries.items() if entry["error"]}


def _read_places(session: Session, places: Sequence[Place], wanted: Wanted) -> list[Document]:
    """Read all appliances in parallel; one that cannot be read is a failure of its own."""
    scm = _scm_for_list(session) if wanted.served else None
    failed, found = _last_failed(session), list[Document]()
    listings = [Listing(session, place, wanted, failed, scm) for place in places]
    for done in in_threads([listing.read for listing in listings], _JOBS):
        try:
            found += done.result()
        except AgentError as error:
            session.report.failures.append(error)
    return found


def _shown_names(each: Document) -> str:
    """Return the names of a certificate in a list, the common name first; not all of very many."""
    if each["serial"] is None:
        return "not installed"
    names = [each["common_name"], *each["subject_alternative_names"]]
    names = list(dict.fromkeys(name for name in names if name))
    more = f", +{len(names) - 3}" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more or "-"


def _shown_server(server: Document, served: Iterable[Document]) -> str:
    """Return a virtual server's name, and what is wrong with what it presents."""
    wrong = [each["message"] for each in served if each["virtual_server"] == server["name"]]
    sni = " (SNI)" if server["sni"] else ""
    return f"{server['name']}{sni}" + (f" ({wrong[0]})" if wrong and wrong[0] else "")


def _shown_order(order: Document) -> str:
    """Return an order's id and state; what SCM said of one that it turned down names the id."""
    number = order["cert_id"] or "?"
    return f"{number} {order['status'].removeprefix(f'order {number} was ')}"


_LIST_COLUMNS: Mapping[str, Callable[[Document], str]] = {
    "APPLIANCE": lambda each: each["appliance"],
    "CERTKEY": lambda each: each["certkey"],
    "NAMES": _shown_names,
    "ISSUER": lambda each: str(common_name_in(each["issuer"] or "-") or each["issuer"] or "-"),
    "EXPIRES": lambda each: (each["not_after"] or "-").partition("T")[0],
    "DAYS": lambda each: "-" if each["days_left"] is None else str(each["days_left"]),
    "STATE": lambda each: each["state"],
    "RENEWS": lambda each: (each["renews"] or "-").partition("T")[0],
    "BOUND-TO": lambda each: (
        ", ".join(
            _shown_server(server, each.get("served", ())) for server in each["virtual_servers"]
        )
        or "-"
    ),
    "PROFILE": lambda each: each["profile"] or "-",
    "ORDER": lambda each: _shown_order(each["order"]) if each["order"] else "-",
}
_SERVED_COLUMNS: Mapping[str, Callable[[Document], str]] = {
    **_LIST_COLUMNS,
    "SCM": lambda each: each["scm_status"] or "-",
}
_NARROWER = ("ISSUER", "NAMES", "BOUND-TO", "ORDER", "APPLIANCE", "CERTKEY", "PROFILE")


def list_certificates(session: Session, names: Sequence[str], wanted: Wanted) -> None:
    """Read every appliance of the profiles and tell what it holds, what ends first at the top."""
    report = session.report
    with session.context.interrupt.cutting_off():
        places = _places(session, names, wanted)
    found = _read_places(session, places, wanted)
    found.sort(key=lambda each: -math.inf if each["days_left"] is None else each["days_left"])
    report.own = {"certificates": found}
    if not report.as_json and found:
        columns = _SERVED_COLUMNS if wanted.served else _LIST_COLUMNS
        rows = [[column(each) for column in columns.values()] for each in found]
        room = terminal_width(sys.stdout)
        for line in table([list(columns), *rows], room, _NARROWER):
            report.console.say(line)


# What renew and replace do


def order_again(
    session: Session,
    names: Sequence[str],
    intent: Intent,
    wait: int | None,
    *,
    everything: bool,
    sure: bool,
) -> None:
    """Renew or replace what is named, or all: then with consent, and what is done is left out."""
    if everything == bool(names):
        raise click.UsageError("name profiles, or give --all")
    if everything and intent.take_over:
        raise click.UsageError("--take-over needs the PROFILE that may take what is not its own")
    if everything:
        intent = dataclasses.replace(intent, everything=True)
        session.execute([], intent, wait, _JOBS, sure=sure)
    else:
        session.execute(names, intent, wait, jobs=1)


_all_option = click.option(
    "--all", "everything", is_flag=True, help="Every profile, but what was ordered within 24 hours."
)
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@main.command("renew")
@click.argument("profiles", shell_complete=complete_profiles, nargs=-1, metavar="[PROFILE]...")
@_all_option
@_yes_option
@_take_over_option
@_wait_option
@_json_option
@click.pass_obj
def renew_command(  # noqa: PLR0913 - one for each option
    app: App,
    *,
    profiles: tuple[str, ...],
    everything: bool,
    yes: bool,
    take_over: bool,
    wait: int | None,
    as_json: bool,
) -> None:
    """Renew now: a new key, a new validity period.

    Whatever the window says. --all tells how many orders that is, and asks.
    """
    session = Session(app, "renew", as_json=as_json, names=profiles)
    intent = Intent("renew", take_over=take_over)
    session.run(lambda s: order_again(s, profiles, intent, wait, everything=everything, sure=yes))


@main.command("replace")
@click.argument("profiles", shell_complete=complete_profiles, nargs=-1, metavar="[PROFILE]...")
@_all_option
@click.option("--reason", default="", metavar="TEXT", help="Told to SCM.")
@_yes_option
@_take_over_option
@_wait_option
@_json_option
@click.pass_obj
def replace_command(  # noqa: PLR0913 - one for each option
    app: App,
    *,
    profiles: tuple[str, ...],
    everything: bool,
    reason: str,
    yes: bool,
    take_over: bool,
    wait: int | None,
    as_json: bool,
) -> None:
    """Replace now: a new key, the same expiry.

    What SCM cannot replace, such as a private certificate, is enrolled anew. --all tells how many
    orders that is, and asks.
    """
    session = Session(app, "replace", as_json=as_json, names=profiles)
    intent = Intent("replace", take_over=take_over, reason=reason[:512])
    session.run(lambda s: order_again(s, profiles, intent, wait, everything=everything, sure=yes))


# What revoke does


def _revocable(record: Record) -> list[Generation]:
    """Return what this tool ordered and may have in service."""
    new = record.change.new if record.change and record.change.order else None
    return [each for each in (record.installed, new) if each and each.cert_id and each.pem]


@dataclasses.dataclass
class Target:
    """A certificate that is to be revoked, or why there is none."""

    profile: Profile
    held: Generation | None = None
    note: str = ""
    error: AgentError | None = None


def _left_behind(profile: Profile, record: Record) -> Generation:
    """Return what the last renewal or replacement left behind, if this tool had ordered it."""
    before = record.previous
    if before and before.cert_id and before.serial and before.pem:
        return before
    text = f"the last renewal or replacement of {profile.name} left nothing behind"
    raise AgentError("state", f"{text} that was ordered with this tool")


def _check_in_service(
    profile: Profile, held: Generation, row: CertKey | None, *, is_new: bool
) -> None:
    """Raise AgentError (state) where the appliance and the record are of two minds."""
    if row is None or (row.serial == held.serial) == is_new:
        return
    serial, found = shown_serial(held.serial), shown_serial(row.serial)
    if is_new:
        text = f"holds another certificate (serial {found}) than this tool installed ({serial})"
        text += ": revoke the one that is meant in SCM, by its serial number"
    else:
        text = f"still holds the previous certificate (serial {serial})"
        text += f": run citrixagent.py renew {shlex.quote(profile.name)} first"
    raise AgentError("state", f"the certkey {profile.certkey} {text}")


def _find_target(session: Session, target: Target, view: View | None, wish: Revocation) -> None:
    """Find what of a profile is to be revoked; of several the appliance knows which it is."""
    profile = target.profile
    row = view.certkeys.get(profile.certkey) if view else None
    record = session.store.load(profile.name)
    held = [_left_behind(profile, record)] if wish.previous else _revocable(record)
    if len(held) > 1 and view is None:  # one installed but not proved
        text = f"which of two certificates is in service only {profile.appliance.host} knows"
        raise AgentError("state", f"{text}, and it does not answer")
    if len(held) > 1:
        held = [each for each in held if row and each.serial == row.serial]
    if not held:
        text = f"{profile.name} has no certificate that was ordered with this tool"
        raise AgentError("state", f"{text}: revoke it in SCM")
    _check_in_service(profile, held[0], row, is_new=not wish.previous)
    target.held = held[0]


def _find_targets(session: Session, profiles: Sequence[Profile], wish: Revocation) -> list[Target]:
    """Find what is to be revoked; an appliance that does not answer is told, and stops nothing."""
    targets = [Target(profile) for profile in profiles]
    for appliance, members in by_appliance(profiles).items():
        view, note = View(appliance, session.context), ""
        try:
            view.open(standby=True)
        except AgentError as error:
            log.info("%s", error.message)
            note = f"; {appliance.host} was not looked at, it does not answer"
        looked, names = None if note else view, {profile.name for profile in members}
        for target in (each for each in targets if each.profile.name in names):
            target.note = note
            try:
                _find_target(session, target, looked, wish)
            except AgentError as error:
                target.error = error
        view.close()
    return targets


def _target_line(target: Target) -> str:
    held = target.held
    if held is None:
        return f"{target.profile.name}: nothing to revoke"
    leaf = read_chain(held.pem)[0]
    servers = ", ".join(server.name for server in target.profile.virtual_servers)
    return (
        f"{target.profile.name}: {', '.join(leaf.names)}; serial {shown_serial(held.serial)}, "
        f"valid until {iso(leaf.not_after).partition('T')[0]}; {servers}{target.note}"
    )


def _revoke_previous(
    scm: Sectigo, held: Generation, record: Record, reason: int, message: str
) -> None:
    installed = record.installed
    shared = installed and installed.cert_id == held.cert_id and not scm.replaces_in_place
    if shared or (installed and installed.serial == held.serial):
        text = f"{held.cert_id} is also the id of the certificate in service"
        raise AgentError("state", f"{text}: revoke the other one in SCM, by its serial number")
    scm.revoke_previous(held, reason, message)


def _revoke_target(
    session: Session, scm: Sectigo, target: Target, wish: Revocation, result: Result
) -> None:
    held, record = target.held, session.store.load(target.profile.name)
    if held is None or held not in (*record.generations, *_revocable(record)):
        raise target.error or AgentError("state", "it was changed meanwhile: look again")
    # Before it is asked for: where the answer is lost, cron must not buy it again.
    if wish.previous:
        marked = dataclasses.replace(record, previous=dataclasses.replace(held, revoked=True))
    else:
        marked = dataclasses.replace(record, revoked=held.serial)
    session.store.save(marked)
    reason, message = REVOCATION_REASONS[wish.reason], wish.message or f"revoked: {wish.reason}"
    try:
        if wish.previous:
            _revoke_previous(scm, held, record, reason, message)
        else:
            scm.revoke(held.cert_id or "", reason, message)
    except Exception as error:
        if not (isinstance(error, TransportError) and error.sent):
            session.store.save(record)
        raise
    result.cert_id, result.note = held.cert_id, target.note
    result.show(read_chain(held.pem)[0])
    result.outcome, result.reason = "revoked", wish.reason
    in_service = marked.installed if wish.previous else held
    leaf = read_chain(in_service.pem)[0] if in_service and in_service.pem else None
    if leaf:  # what is left in service is what matters from now on
        result.not_after = iso(leaf.not_after)
    result.standing = profile_standing(target.profile, marked, leaf, failed=False)


def _revoked(session: Session, scm: Sectigo, target: Target, wish: Revocation) -> Result:
    """Revoke one certificate; its failure is nobody else's."""
    profile = target.profile
    result = Result(profile.name, profile.appliance.host, profile.certkey)
    try:
        _revoke_target(session, scm, target, wish, result)
    except AgentError as error:
        result.fail(error)
    return result


def revoke(session: Session, names: Sequence[str], wish: Revocation, *, sure: bool) -> None:
    """Revoke what profiles have installed, or had before, once it was shown and agreed to."""
    if not (sure or session.can_ask):
        unsure = "nothing was revoked: give --yes to revoke without being asked"
        raise click.UsageError(unsure)
    config, profiles = session.load(names)
    targets = _find_targets(session, profiles, wish)
    found = [target for target in targets if target.held]
    if found and not sure:
        for target in targets:
            session.report.console.say(_target_line(target))
        what = "it" if len(found) == 1 else f"these {_count(len(found), 'certificate')}"
        if not session.confirm(f"Revoke {what} for good?"):
            raise DeclinedError("nothing was revoked")
    session.lock()
    scm = connect_to_scm(config, Tokens(config, session.redactor), session.context)
    for target in targets:
        session.report.results.append(_revoked(session, scm, target, wish))


@main.command("revoke")
@click.argument(
    "profiles", shell_complete=complete_profiles, nargs=-1, required=True, metavar="PROFILE..."
)
@click.option(
    "--reason",
    type=click.Choice(list(REVOCATION_REASONS)),
    required=True,
    metavar="NAME",
    help="Why, which SCM and the CA record: " + ", ".join(REVOCATION_REASONS) + ".",
)
@click.option("--message", default="", metavar="TEXT", help="Told to SCM.")
@click.option(
    "--previous",
    is_flag=True,
    help="What the last renewal or replacement left behind, instead of what is in service.",
)
@_yes_option
@_json_option
@click.pass_obj
def revoke_command(  # noqa: PLR0913 - one for each option
    app: App,
    *,
    profiles: tuple[str, ...],
    reason: str,
    message: str,
    previous: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Revoke the installed certificate at SCM, for good.

    It stays bound; run fails the profile until enroll, renew or replace. With --previous nothing
    changes in service, but what was revoked cannot be rolled back to.
    """
    session = Session(app, "revoke", as_json=as_json, names=profiles)
    wish = Revocation(reason, message[:512], previous)
    session.run(lambda s: revoke(s, profiles, wish, sure=yes))


@main.command("rollback")
@click.argument("profile", shell_complete=complete_profiles)
@_json_option
@click.pass_obj
def rollback_command(app: App, profile: str, as_json: bool) -> None:
    """Put the previous certificate and key back on the appliance.

    run leaves it there until renew, or until 7 days before its end.
    """
    session = Session(app, "rollback", as_json=as_json, names=[profile])
    session.run(lambda s: s.execute([profile], Intent("rollback"), None, jobs=1))


@main.command("list")
@click.argument("profiles", shell_complete=complete_profiles, nargs=-1, metavar="[PROFILE]...")
@click.option("--all", "show_all", is_flag=True, help="Every certkey on the appliances.")
@click.option(
    "--served", is_flag=True, help="Also what virtual servers present, and what SCM says."
)
@_json_option
@click.pass_obj
def list_command(
    app: App, profiles: tuple[str, ...], show_all: bool, served: bool, as_json: bool
) -> None:
    """Show what is installed, until when, and where it is bound.

    Changes nothing.
    """
    session = Session(app, "list", as_json=as_json, names=profiles)
    session.report.own = {"certificates": []}
    session.run(lambda s: list_certificates(s, profiles, Wanted(show_all, served)))


@main.command("discover")
@click.argument(
    "appliances", shell_complete=complete_appliances, nargs=-1, metavar="[APPLIANCE]..."
)
@click.option("--write", is_flag=True, help="Write the profiles; no file is overwritten.")
@_json_option
@click.pass_obj
def discover_command(app: App, appliances: tuple[str, ...], write: bool, as_json: bool) -> None:
    """Describe the certificates in service that have no profile yet.

    APPLIANCE is a file in appliances/; without one all are read. Reads only.
    """
    session = Session(app, "discover", as_json=as_json)
    session.run(lambda s: discover(s, appliances, write=write))


@main.command("configure")
@click.argument("part", required=False, type=click.Choice(SETUP_PARTS), metavar="[PART]")
@click.pass_obj
def configure_command(app: App, part: str | None) -> None:
    """Ask for what is needed, try it, write it down, check it.

    PART is scm, appliance or profile; without it, what is missing is asked for.
    """
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise click.UsageError("configure asks questions: it needs a terminal")
    with contextlib.suppress(OSError):  # told when the folder is needed
        app.home.mkdir(mode=0o700, exist_ok=True)
    session = Session(app, "configure", as_json=False)
    session.run(lambda s: configure(s, part))


@main.command("check")
@click.argument("profiles", shell_complete=complete_profiles, nargs=-1, metavar="[PROFILE]...")
@click.option("--offline", is_flag=True, help="Look at this machine and its files only.")
@click.option("--notify", is_flag=True, help="Send a test through every channel of agent.yaml.")
@_json_option
@click.pass_obj
def check_command(
    app: App, profiles: tuple[str, ...], offline: bool, notify: bool, as_json: bool
) -> None:
    """Tell what a run would trip over, and what mends it.

    Changes nothing. -v shows what is well, too.
    """
    session = Session(app, "check", as_json=as_json)
    session.run(lambda s: examine(s, profiles, offline=offline, notify=notify))


# What status shows

STATUS_FORMATS: Mapping[str, Callable[[Overview], str]] = {
    "json": lambda seen: json.dumps(status_document(seen)) + "\n",
    "nagios": lambda seen: nagios_line(seen) + "\n",
    "prometheus": metrics,
    "html": status_page,
}


def check_status_options(limits: Limits, style: str | None, *, as_json: bool) -> None:
    """Raise UsageError where the options contradict each other."""
    if as_json and style not in {None, "json"}:
        raise click.UsageError(f"--json and --format {style} exclude each other")
    if limits.warn < limits.critical:
        raise click.UsageError("--warn must not be below --critical")


def show_status(home: pathlib.Path, names: Sequence[str], limits: Limits, style: str) -> int:
    """Print what the last commands saw, from state/ alone; return the exit code."""
    redactor = Redactor()
    if not is_folder(home):
        raise AgentError("state", no_home_text(home))
    last_run = Store(home).read_last_run()
    try:
        stems = dict.fromkeys(path.stem for path in Home(home, redactor).profile_files(names))
    except AgentError as error:
        raise AgentError("state", error.message) from None
    seen = overview(stems, last_run, utc_now(), limits)
    if style in STATUS_FORMATS:
        click.echo(STATUS_FORMATS[style](seen), nl=False)
        return NAGIOS_CODES[seen.level] if style == "nagios" else ExitCode.OK
    console = Console(redactor, quiet=False)
    for line, colour in status_lines(seen, terminal_width(sys.stdout)):
        console.say(line, colour)
    return ExitCode.FAILED if console.is_cut else ExitCode.OK


def show_no_status(error: AgentError, style: str) -> int:
    """Say in the format that was asked for why there is no status; return the exit code."""
    nothing = overview((), {}, utc_now(), Limits())
    if style == "json":
        document = status_document(nothing) | {
            "message": error.message,
            "errors": [_error_document(error)],
        }
        click.echo(json.dumps(document))
    elif style == "nagios":
        click.echo(nagios_text("unknown", error.message))
        return NAGIOS_CODES["unknown"]
    else:
        error.show()
    return ExitCode.USAGE if error.kind == "config" else ExitCode.FAILED


@main.command("status")
@click.argument("profiles", shell_complete=complete_profiles, nargs=-1, metavar="[PROFILE]...")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", *STATUS_FORMATS]),
    help="How: a table, JSON, a monitor's line, metrics, a page.  [default: text]",
)
@click.option(
    "--warn",
    type=click.IntRange(0),
    default=Limits.warn,
    show_default=True,
    metavar="DAYS",
    help="From so many days left on, what is due is a warning.",
)
@click.option(
    "--critical",
    type=click.IntRange(0),
    default=Limits.critical,
    show_default=True,
    metavar="DAYS",
    help="From so many days left on, it is critical.",
)
@_json_option
@click.pass_obj
def status_command(
    app: App,
    profiles: tuple[str, ...],
    style: str | None,
    warn: int,
    critical: int,
    as_json: bool,
) -> None:
    """Show what the last run saw; asks nobody, changes nothing.

    For people, for monitoring (--format nagios, prometheus), and as a page (--format html).
    """
    chosen = "json" if as_json else style or "text"
    try:
        check_status_options(Limits(warn, critical), style, as_json=as_json)
        code = show_status(app.home, profiles, Limits(warn, critical), chosen)
    except click.UsageError as error:
        if chosen != "json":
            raise
        code = show_no_status(AgentError("config", error.message), chosen)
    except AgentError as error:
        code = show_no_status(error, chosen)
    sys.exit(code)


def show_agreement(home: pathlib.Path, interrupt: Interrupt, *, accept: bool) -> None:
    """Show the agreement and have it accepted, unless it is or ``accept`` says so."""
    agreement = read_agreement()
    store = Store(home)
    store.prepare()
    if known := store.acceptance(agreement):
        click.echo(f"The licence agreement (LICENSE.txt) was {one_line(known)}.")
    elif accept or accepts_by_environment():
        store.accept(agreement, "eula --accept" if accept else "CITRIXAGENT_ACCEPT_EULA")
        click.echo("The licence agreement is accepted.")
    elif is_terminal(sys.stdin):
        if not ask_for_agreement(agreement, interrupt):
            raise AgentError("agreement", not_accepted_text(home))
        store.accept(agreement, "asked")
    else:
        click.echo(agreement.decode(errors="replace"))
        raise AgentError("agreement", not_accepted_text(home))


@main.command("eula")
@click.option("--accept", is_flag=True, help="Record that you accept it, without asking.")
@click.pass_obj
def eula_command(app: App, accept: bool) -> None:
    """Show the licence agreement and ask for its acceptance."""
    interrupt = Interrupt()
    interrupt.listen()
    try:
        show_agreement(app.home, interrupt, accept=accept)
    except Interrupted:
        sys.exit(128 + interrupt.signal)


if __name__ == "__main__":
    main(prog_name="citrixagent.py")
