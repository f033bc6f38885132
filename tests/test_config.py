"""scm.yaml, profiles and appliances/: what a wrong one is told, and what a right one may say."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import yaml
from conftest import CLIENT_SECRET, PASSWORD, Lab
from simulators.netscaler import NetScaler
from simulators.scm import Scm

import citrixagent

SECRET = "hunter2"  # stands where it should not, and must never be told
DIGITS = "01234567"  # a password that YAML takes for a number
WWW = "profiles/www.yaml"
SERVER = {"name": "vs_www", "type": "load_balancing"}
FINGERPRINT = ":".join(["AB"] * 32)

TEXT = "must be text: put it in quotes"
NOT_TEXT = "must be text, not a list or a mapping"
CONTROL = "must not hold control characters or line breaks"
FLAG = "must be true or false"
NUMBER = "must be a whole number in plain decimal notation"
SECTION = "must be a mapping of keys to values"
NAME = "is not a DNS name or IP address"
NAME_ALONE = "must be a name alone, without a scheme or a path"
ASCII_FORM = "must be written in its ASCII form:"
HOST = "must be host or host:port, without a scheme or a path"
PORT = "must have a port between 1 and 65535"
HOST_PORT = "must be host or host:port"
QUOTES = "put this value in quotes: its first character means something else in YAML"
COLON = (
    "a colon and a blank stand in a value: put it in quotes, or mend the indentation if a key "
    "begins here"
)
BRACKETS = "must have an IPv6 address in brackets: [2001:db8::1]:443"
ADDRESS = "must be an address such as https://cert-manager.example.com"
HTTPS = "must start with https://"
CREDENTIALS = "must not hold a user name or password"
PROXY = "must be an address such as http://proxy.example.com:3128"
CERTKEY = (
    "must begin with a letter, digit or _ and hold only letters, digits and _ # . : @ = - or spaces"
)
BUILT_IN = "names a certkey of the appliance's own: choose another name"
COUNTRY = "must be a country code of two letters, such as GB"
FINGERPRINT_FORM = "must be a SHA-256 fingerprint: 64 hex digits, colons allowed"
DIRECTORY = "must be an absolute path on the appliance"
SERVERS = "must be a list with at least one entry"
NO_FILE = "names a file that does not exist; a relative path starts from"
WINDOW = "must be a number of days (1 to 3650) or a share such as 33%"
KIND = "must be one of load_balancing, gateway, content_switching, authentication"
KEY_TYPE = "must be one of RSA-2048, RSA-3072, RSA-4096, ECDSA-P256, ECDSA-P384"
ADMIN = "belongs to api: admin"
EITHER = "is given beside a login: give either of them"
PING = "must be an https:// address, without a user name or a fragment"
MAIL = {"to": ["pki@example.com"], "from": "agent@example.com", "server": "smtp.example.com"}
NO_PASSWORD = (
    "password: is missing: give exactly one of password, password_file, password_env, "
    "password_command"
)
PASSWORDS = "give exactly one of password, password_file, password_env, password_command"
CLIENT_SECRETS = PASSWORDS.replace("password", "client_secret")
TOO_OPEN = "others can read this file, which holds a secret: chmod 600 {home}/"


# ----- Ways to write a configuration --------------------------------------------------------------


def scm(lab: Lab, **changes: object) -> None:
    lab.write_profile()
    lab.write_scm(**changes)


def profile(lab: Lab, **changes: object) -> None:
    lab.write_profile("www", **changes)


def citrix(lab: Lab, **changes: object) -> None:
    lab.write_profile(citrix=lab.citrix(**changes))


def password(lab: Lab, **ways: object) -> None:
    lab.write("profiles/blank", f"\n{SECRET}\n")
    citrix(lab, **{"password": None, **ways})


def server(lab: Lab, **changes: object) -> None:
    lab.write_profile(virtual_servers=[{**SERVER, **changes}])


def certificate(lab: Lab, **changes: object) -> None:
    lab.write_profile(certificate=lab.certificate(**changes))


def renewal(lab: Lab, **keys: object) -> None:
    lab.write_profile(renewal=keys)


def enrollment(lab: Lab, **keys: object) -> None:
    lab.write_profile(enrollment=keys)


def verification(lab: Lab, **keys: object) -> None:
    lab.write_profile(verification=keys)


def line(lab: Lab, **lines: str) -> None:
    """Write a profile where the lines of these keys read as given, whatever YAML makes of them."""
    file = lab.write_profile()
    text = file.read_text()
    for key, new in lines.items():
        old = re.search(rf"^ *({key}:.*)$", text, re.MULTILINE)
        assert old
        text = text.replace(old[1], new)
    file.write_text(text)


def whole(lab: Lab, content: str | bytes) -> None:
    """Write a profile that is this and nothing else."""
    data = content if isinstance(content, bytes) else content.encode()
    lab.write(WWW, "").write_bytes(data)


def appliance(lab: Lab, content: str) -> None:
    """Write a file in appliances/ and a profile that names it."""
    lab.write("appliances/ns-prod.yaml", content)
    lab.write_profile(citrix="ns-prod")


# ----- One thing wrong ----------------------------------------------------------------------------

# Every row: what it is about, the change, what is told.
Table = list[tuple[str, Mapping[str, object], str]]

SCM: Table = [
    ("no url", {"url": None}, "url: is missing"),
    ("no client", {"client_id": None}, "client_id: is missing"),
    ("no secret", {"client_secret": None}, f"client_secret: is missing: {CLIENT_SECRETS}"),
    ("empty", {"url": " "}, "url: must not be empty"),
    ("list for text", {"url": ["https://scm.example.com"]}, f"url: {NOT_TEXT}"),
    ("number for text", {"client_id": 7}, f"client_id: {TEXT}"),
    ("long", {"client_id": "x" * 1025}, "client_id: must not be longer than 1024 characters"),
    ("host for url", {"url": "scm.example.com"}, f"url: {ADDRESS}"),
    ("space in url", {"url": "https://scm example.com"}, f"url: {ADDRESS}"),
    ("open bracket", {"url": "https://[2001:db8::1"}, f"url: {ADDRESS}"),
    ("high port", {"url": "https://scm.example.com:65536"}, f"url: {PORT}"),
    ("port 0", {"token_url": "https://sso.example.com:0/token"}, f"token_url: {PORT}"),
    ("query", {"url": "https://scm.example.com/?x=y"}, "url: must not hold a query or a fragment"),
    ("host in url", {"url": "https://scm_1.example.com"}, f"url: {NAME}"),
    ("port of proxy", {"proxy": "http://proxy.example.com:99999"}, f"proxy: {PORT}"),
    ("bracket of proxy", {"proxy": "http://[::1"}, f"proxy: {PROXY}"),
    ("ftp", {"url": "ftp://scm.example.com"}, f"url: {ADDRESS}"),
    ("http", {"url": "http://scm.example.com"}, f"url: {HTTPS}"),
    ("http to a namesake", {"url": "http://127.0.0.1.example.com"}, f"url: {HTTPS}"),
    ("http token", {"token_url": "http://sso.example.com/token"}, f"token_url: {HTTPS}"),
    ("credentials", {"url": f"https://client:{SECRET}@scm.example.com"}, f"url: {CREDENTIALS}"),
    ("user", {"token_url": f"https://{SECRET}@sso.example.com"}, f"token_url: {CREDENTIALS}"),
    ("proxy", {"proxy": "proxy.example.com:3128"}, f"proxy: {PROXY}"),
    ("backslash", {"url": "https://evil.test\\.example.com"}, f"url: {ADDRESS}"),
    ("brace", {"token_url": "https://sso.example.com/{realm}"}, f"token_url: {ADDRESS}"),
    ("number for an IP address", {"url": "https://2130706433"}, f"url: {NAME}"),
    ("hexadecimal IP address", {"url": "https://127.0.0.0x1"}, f"url: {NAME}"),
    ("@ in a password", {"proxy": f"http://x:{SECRET}@@proxy.example.com"}, f"proxy: {PROXY}"),
    ("no bundle", {"ca_bundle": "no.pem"}, "ca_bundle: there is no file {home}/no.pem"),
    (
        "no bundle in a bundle",
        {"ca_bundle": "scm.yaml"},
        "ca_bundle: {home}/scm.yaml is not a PEM file of certificates",
    ),
    ("text for number", {"timeout": "30"}, f"timeout: {NUMBER}"),
    ("flag for number", {"timeout": True}, f"timeout: {NUMBER}"),
    ("fraction", {"timeout": 1.5}, f"timeout: {NUMBER}"),
    ("too few", {"timeout": 0}, "timeout: must be between 1 and 3600"),
    ("too many", {"timeout": 3601}, "timeout: must be between 1 and 3600"),
    ("text for flag", {"check_revocation": "yes"}, f"check_revocation: {FLAG}"),
    ("number for flag", {"check_revocation": 0}, f"check_revocation: {FLAG}"),
    ("secret of digits", {"client_secret": int(DIGITS)}, f"client_secret: {TEXT}"),
    ("secret in a list", {"client_secret": [SECRET]}, f"client_secret: {NOT_TEXT}"),
    ("secret of two lines", {"client_secret": f"{SECRET}\nx"}, f"client_secret: {CONTROL}"),
    (
        "secret twice",
        {"client_secret_env": "SCM_SECRET"},
        f"client_secret: is given more than once: {CLIENT_SECRETS}",
    ),
    ("misspelt", {"tokn_url": "x"}, 'tokn_url: unknown key: did you mean "token_url"?'),
    ("unknown", {"wibble": SECRET}, "wibble: unknown key"),
    ("no choice", {"api": "soap"}, "api: must be one of enrollment, admin"),
    (
        "near a choice",
        {"api": "enrolment"},
        'api: must be one of enrollment, admin: did you mean "enrollment"?',
    ),
    (
        "admin without its keys",
        {"api": "admin"},
        "org_id: is missing\ncert_type: is missing\nterm: is missing",
    ),
    (
        "admin with both logins",
        {"api": "admin", "org_id": 1, "cert_type": 2, "term": 199, "login": "admin"},
        f"client_id: {EITHER}\nclient_secret: {EITHER}\ncustomer_uri: is missing\n{NO_PASSWORD}",
    ),
    (
        "admin's keys",
        {"login": "admin", "password": SECRET, "org_id": 7},
        f"login: {ADMIN}\npassword: {ADMIN}\norg_id: {ADMIN}",
    ),
]

PROFILE: Table = [
    ("number for section", {"renewal": 5}, f"renewal: {SECTION}"),
    ("list for section", {"verification": ["off"]}, f"verification: {SECTION}"),
    ("number for block", {"citrix": 5}, f"citrix: {SECTION}"),
    ("no block", {"certificate": None}, "certificate: is missing"),
    ("text in list", {"virtual_servers": ["vs_www"]}, f"virtual_servers[0]: {SECTION}"),
    ("empty text", {"citrix": ""}, "citrix: must not be empty"),
    (
        "path",
        {"citrix": "../scm"},
        "citrix: must be the name of a file in {home}/appliances, without a path",
    ),
    ("control characters in a key", {"a\x1b[31m": 1}, "a?[31m: unknown key"),
    ("no servers", {"virtual_servers": None}, "virtual_servers: is missing"),
    ("empty list", {"virtual_servers": []}, f"virtual_servers: {SERVERS}"),
    ("mapping for list", {"virtual_servers": SERVER}, f"virtual_servers: {SERVERS}"),
    ("text for list", {"virtual_servers": "vs_www"}, f"virtual_servers: {SERVERS}"),
    (
        "server twice",
        {"virtual_servers": [SERVER, {**SERVER, "type": "gateway"}]},
        'virtual_servers[1].name: the virtual server "vs_www" stands twice',
    ),
    (
        "misspelt",
        {"virtual_server": [SERVER]},
        'virtual_server: unknown key: did you mean "virtual_servers"?',
    ),
    ("unknown", {"wibble": [SECRET]}, "wibble: unknown key"),
    (
        "no such appliance",
        {"citrix": "ns-prod"},
        "citrix: there is no file {home}/appliances/ns-prod.yaml",
    ),
]

CITRIX: Table = [
    ("no host", {"host": None}, "citrix.host: is missing"),
    ("no user", {"username": None}, "citrix.username: is missing"),
    ("no password", {"password": None}, f"citrix.password: is missing: {PASSWORDS}"),
    ("url", {"host": "https://ns1.example.com"}, f"citrix.host: {HOST}"),
    ("path", {"host": "ns1.example.com/nitro"}, f"citrix.host: {HOST}"),
    ("user in host", {"host": f"nsroot:{SECRET}@ns1.example.com"}, f"citrix.host: {HOST}"),
    ("space", {"host": "ns1 .example.com"}, f"citrix.host: {HOST}"),
    ("high port", {"host": "ns1.example.com:65536"}, f"citrix.host: {PORT}"),
    ("port in words", {"host": "ns1.example.com:https"}, f"citrix.host: {PORT}"),
    ("port 0", {"host": "ns1.example.com:0"}, f"citrix.host: {PORT}"),
    ("no port", {"host": "ns1.example.com:"}, f"citrix.host: {PORT}"),
    ("query", {"host": "ns1.example.com?x"}, f"citrix.host: {HOST}"),
    ("open bracket", {"host": "[2001:db8::1"}, f"citrix.host: {HOST_PORT}"),
    ("name in brackets", {"host": "[ns1]"}, f"citrix.host: {HOST_PORT}"),
    ("zone", {"host": "[fe80::1%eth0]"}, f"citrix.host: {HOST_PORT}"),
    ("wildcard", {"host": "*.example.com"}, f"citrix.host: {NAME}"),
    ("no brackets", {"host": "2001:db8::1"}, f"citrix.host: {BRACKETS}"),
    ("underscore", {"host": "ns_1.example.com"}, f"citrix.host: {NAME}"),
    ("not an address", {"host": "192.0.2.300"}, f"citrix.host: {NAME}"),
    (
        "one node in a list",
        {"host": ["ns1.example.com"]},
        "citrix.host: must be one address, or a list of both nodes of an HA pair",
    ),
    (
        "one node twice",
        {"host": ["ns1.example.com", "ns1.example.com"]},
        "citrix.host: must be one address, or a list of both nodes of an HA pair",
    ),
    (
        "a node with a scheme",
        {"host": ["ns1.example.com", "https://ns2.example.com"]},
        "citrix.host[1]: must be host or host:port, without a scheme or a path\n"
        "citrix.host: must be one address, or a list of both nodes of an HA pair",
    ),
    (
        "partition",
        {"partition": "tenant-a"},
        "citrix.ssl_directory: is missing: with citrix.partition it must be given, no default is "
        "right everywhere",
    ),
    (
        "long user",
        {"username": "x" * 128},
        "citrix.username: must not be longer than 127 characters",
    ),
    ("digits", {"password": int(DIGITS)}, f"citrix.password: {TEXT}"),
    ("empty password", {"password": ""}, "citrix.password: must not be empty"),
    (
        "no bundle",
        {"ca_bundle": "no.pem"},
        "citrix.ca_bundle: there is no file {home}/profiles/no.pem",
    ),
    (
        "fingerprint",
        {"ca_bundle": None, "fingerprint": FINGERPRINT[:-1]},
        f"citrix.fingerprint: {FINGERPRINT_FORM}",
    ),
    (
        "SHA-1 fingerprint",
        {"ca_bundle": None, "fingerprint": ":".join(["AB"] * 20)},
        f"citrix.fingerprint: {FINGERPRINT_FORM}",
    ),
    (
        "bundle and fingerprint",
        {"fingerprint": FINGERPRINT},
        "citrix: give at most one of ca_bundle, fingerprint",
    ),
    ("bundle, no check", {"verify": False}, "citrix: give at most one of ca_bundle, verify: false"),
    (
        "fingerprint, no check",
        {"ca_bundle": None, "fingerprint": FINGERPRINT, "verify": False},
        "citrix: give at most one of fingerprint, verify: false",
    ),
    ("verify", {"verify": "no"}, f"citrix.verify: {FLAG}"),
    ("timeout", {"timeout": 4000}, "citrix.timeout: must be between 1 and 3600"),
    ("relative folder", {"ssl_directory": "nsconfig/ssl"}, f"citrix.ssl_directory: {DIRECTORY}"),
    ("root folder", {"ssl_directory": "/"}, f"citrix.ssl_directory: {DIRECTORY}"),
    ("folder above", {"ssl_directory": "/nsconfig/../etc"}, f"citrix.ssl_directory: {DIRECTORY}"),
    (
        "long folder",
        {"ssl_directory": "/" + "x" * 60},
        "citrix.ssl_directory: is too long: the appliance takes paths of at most 63 characters",
    ),
    (
        "misspelt",
        {"usrname": "x", "verfy": False},
        (
            'citrix.usrname: unknown key: did you mean "username"?\n'
            'citrix.verfy: unknown key: did you mean "verify"?'
        ),
    ),
]

SECRETS: Table = [
    (
        "two ways",
        {"password_env": "NS", "password_file": SECRET},
        f"citrix.password: is given more than once: {PASSWORDS}",
    ),
    (
        "four ways",
        {"password": SECRET, "password_env": "A", "password_file": "b", "password_command": "c"},
        f"citrix.password: is given more than once: {PASSWORDS}",
    ),
    (
        "no file",
        {"password_file": "ns.secret"},
        f"citrix.password_file: {NO_FILE} {{home}}/profiles",
    ),
    ("blank file", {"password_file": "blank"}, "citrix.password_file: gives an empty secret"),
    (
        "long path",
        {"password_file": "x" * 300},
        f"citrix.password_file: {NO_FILE} {{home}}/profiles",
    ),
    (
        "control characters",
        {"password_command": f"printf '{SECRET}\\a'"},
        "citrix.password_command: gives a secret with control characters or line breaks",
    ),
    (
        "no variable",
        {"password_env": "NS_PASSWORD"},
        "citrix.password_env: names an environment variable NS_PASSWORD that is not set",
    ),
    ("number for variable", {"password_env": 7}, f"citrix.password_env: {TEXT}"),
    (
        "failing command",
        {"password_command": f"sh -c 'echo {SECRET}; echo {SECRET} >&2; exit 7'"},
        "citrix.password_command: names a command that ended with 7 (sh): <hidden>",
    ),
    (
        "no command",
        {"password_command": f"./no-such-command {SECRET}"},
        "citrix.password_command: names a command that cannot be run: No such file or directory",
    ),
    (
        "open quote",
        {"password_command": f"echo '{SECRET}"},
        "citrix.password_command: is not a command: check its quotes",
    ),
    ("silent", {"password_command": "true"}, "citrix.password_command: gives an empty secret"),
    (
        "empty first line",
        {"password_command": f"printf '\\n{SECRET}'"},
        "citrix.password_command: gives an empty secret",
    ),
]

SERVER_ROWS: Table = [
    ("no name", {"name": None}, "virtual_servers[0].name: is missing"),
    ("no type", {"type": None}, "virtual_servers[0].type: is missing"),
    ("number for name", {"name": 443}, f"virtual_servers[0].name: {TEXT}"),
    ("unknown type", {"type": "lb"}, f"virtual_servers[0].type: {KIND}"),
    (
        "near a type",
        {"type": "load_balancer"},
        f'virtual_servers[0].type: {KIND}: did you mean "load_balancing"?',
    ),
    ("list for type", {"type": ["gateway"]}, f"virtual_servers[0].type: {KIND}"),
    ("text for sni", {"sni": "true"}, f"virtual_servers[0].sni: {FLAG}"),
    (
        "no port",
        {"connect": "198.51.100.7"},
        "virtual_servers[0].connect: must have a port: host:port",
    ),
    ("high port", {"connect": "198.51.100.7:70000"}, f"virtual_servers[0].connect: {PORT}"),
    ("url", {"connect": "https://198.51.100.7:443"}, f"virtual_servers[0].connect: {HOST}"),
    ("no brackets", {"connect": "2001:db8::7:443"}, f"virtual_servers[0].connect: {BRACKETS}"),
    (
        "misspelt",
        {"conect": "x"},
        'virtual_servers[0].conect: unknown key: did you mean "connect"?',
    ),
]

CERTIFICATE: Table = [
    ("no common name", {"common_name": None}, "certificate.common_name: is missing"),
    ("no organization", {"organization": None}, "certificate.organization: is missing"),
    ("no state", {"state": None}, "certificate.state: is missing"),
    ("no country", {"country": None}, "certificate.country: is missing"),
    (
        "umlaut",
        {"common_name": "www.münchen.example"},
        "certificate.common_name: must be written in its ASCII form: www.xn--mnchen-3ya.example",
    ),
    (
        "sharp s",
        {"common_name": "*.straße.example.com"},
        "certificate.common_name: must be written in its ASCII form: *.xn--strae-oqa.example.com",
    ),
    (
        "Kelvin",
        {"common_name": "\u212a.example"},
        f"certificate.common_name: {ASCII_FORM} k.example",
    ),
    ("snowman", {"common_name": "\u2603.example"}, f"certificate.common_name: {NAME}"),
    ("two wildcards", {"common_name": "*.*.example.com"}, f"certificate.common_name: {NAME}"),
    ("inner wildcard", {"common_name": "www.*.example.com"}, f"certificate.common_name: {NAME}"),
    ("part wildcard", {"common_name": "www*.example.com"}, f"certificate.common_name: {NAME}"),
    ("wildcard alone", {"common_name": "*"}, f"certificate.common_name: {NAME}"),
    ("space", {"common_name": "www example.com"}, f"certificate.common_name: {NAME}"),
    (
        "two names",
        {"common_name": "a.example.com,b.example.com"},
        f"certificate.common_name: {NAME}",
    ),
    ("underscore", {"common_name": "www_1.example.com"}, f"certificate.common_name: {NAME}"),
    ("hyphen", {"common_name": "-www.example.com"}, f"certificate.common_name: {NAME}"),
    ("two dots", {"common_name": "www..example.com"}, f"certificate.common_name: {NAME}"),
    ("two last dots", {"common_name": "www.example.com.."}, f"certificate.common_name: {NAME}"),
    ("zone", {"common_name": "fe80::1%eth0"}, f"certificate.common_name: {NAME}"),
    ("port", {"common_name": "www.example.com:443"}, f"certificate.common_name: {NAME}"),
    ("trailing garbage", {"common_name": "www.example.com;"}, f"certificate.common_name: {NAME}"),
    ("not an address", {"common_name": "192.0.2.300"}, f"certificate.common_name: {NAME}"),
    ("url", {"common_name": "https://www.example.com"}, f"certificate.common_name: {NAME_ALONE}"),
    ("network", {"common_name": "192.0.2.0/24"}, f"certificate.common_name: {NAME_ALONE}"),
    (
        "65 characters",
        {"common_name": f"{'x' * 30}.{'y' * 30}.com"},
        "certificate.common_name: must not be longer than 64 characters",
    ),
    (
        "text for list",
        {"subject_alternative_names": "example.com"},
        "certificate.subject_alternative_names: must be a list",
    ),
    (
        "wrong names in a list",
        {"subject_alternative_names": ["example.com", "a b", 7, [], "é.example"]},
        (
            f"certificate.subject_alternative_names[1]: {NAME}\n"
            f"certificate.subject_alternative_names[2]: {TEXT}\n"
            f"certificate.subject_alternative_names[3]: {NOT_TEXT}\n"
            "certificate.subject_alternative_names[4]: must be written in its ASCII form: "
            "xn--9ca.example"
        ),
    ),
    (
        "long label",
        {"subject_alternative_names": [f"{'x' * 64}.example.com"]},
        f"certificate.subject_alternative_names[0]: {NAME}",
    ),
    (
        "long name",
        {"subject_alternative_names": ["x." * 126 + "com"]},
        "certificate.subject_alternative_names[0]: must not be longer than 253 characters",
    ),
    ("long certkey", {"name": "x" * 64}, "certificate.name: must not be longer than 63 characters"),
    ("slash in certkey", {"name": "www/2"}, f"certificate.name: {CERTKEY}"),
    ("space at the end of a certkey", {"name": "www "}, f"certificate.name: {CERTKEY}"),
    ("quote in certkey", {"name": "www'"}, f"certificate.name: {CERTKEY}"),
    ("certkey starts with -", {"name": "-www"}, f"certificate.name: {CERTKEY}"),
    ("management certkey", {"name": "ns-server-certificate"}, f"certificate.name: {BUILT_IN}"),
    ("certkey of trust", {"name": "ns-sftrust-certificate"}, f"certificate.name: {BUILT_IN}"),
    ("certkey of a release to come", {"name": "NS-x-certificate"}, f"certificate.name: {BUILT_IN}"),
    ("country", {"country": "GBR"}, f"certificate.country: {COUNTRY}"),
    ("country in digits", {"country": "44"}, f"certificate.country: {COUNTRY}"),
    ("e-mail", {"email": "pki.example.com"}, "certificate.email: must be an e-mail address"),
    (
        "long organization",
        {"organization": "x" * 65},
        "certificate.organization: must not be longer than 64 characters",
    ),
    ("line break", {"locality": "London\nEngland"}, f"certificate.locality: {CONTROL}"),
    ("small key", {"key_type": "RSA"}, f"certificate.key_type: {KEY_TYPE}"),
    (
        "lower case",
        {"key_type": "rsa-2048"},
        f'certificate.key_type: {KEY_TYPE}: did you mean "RSA-2048"?',
    ),
    (
        "misspelt",
        {"organisation": "Example Ltd", "san": []},
        (
            'certificate.organisation: unknown key: did you mean "organization"?\n'
            "certificate.san: unknown key"
        ),
    ),
]

RENEWAL: Table = [
    ("no share", {"expiry_window": "0%"}, f"renewal.expiry_window: {WINDOW}"),
    ("all of it", {"expiry_window": "100%"}, f"renewal.expiry_window: {WINDOW}"),
    ("no days", {"expiry_window": 0}, f"renewal.expiry_window: {WINDOW}"),
    ("ten years", {"expiry_window": 3651}, f"renewal.expiry_window: {WINDOW}"),
    ("in words", {"expiry_window": "30 days"}, f"renewal.expiry_window: {WINDOW}"),
    ("flag for window", {"expiry_window": True}, f"renewal.expiry_window: {WINDOW}"),
    ("text for flag", {"auto_renew": "false"}, f"renewal.auto_renew: {FLAG}"),
    (
        "near a choice",
        {"on_change": "enrol"},
        'renewal.on_change: must be one of replace, enroll, report: did you mean "enroll"?',
    ),
    (
        "off is no choice here",
        {"on_change": False},
        "renewal.on_change: must be one of replace, enroll, report",
    ),
    ("misspelt", {"window": 30}, 'renewal.window: unknown key: did you mean "expiry_window"?'),
]

ENROLLMENT: Table = [
    (
        "list for mapping",
        {"custom_fields": ["Owner"]},
        "enrollment.custom_fields: must be a mapping of names to texts",
    ),
    ("number in mapping", {"custom_fields": {"Room": 7}}, f"enrollment.custom_fields.Room: {TEXT}"),
    (
        "empty in mapping",
        {"custom_fields": {"Room": ""}},
        "enrollment.custom_fields.Room: must not be empty",
    ),
    (
        "no text for names",
        {"custom_fields": {7: "x", None: "x", True: SECRET}},
        "enrollment.custom_fields: a key is not text: put it in quotes",
    ),
    ("text for number", {"profile_id": "123"}, f"enrollment.profile_id: {NUMBER}"),
    ("negative", {"max_wait": -1}, "enrollment.max_wait: must be between 0 and 86400"),
    ("ten years", {"term": 3651}, "enrollment.term: must be between 1 and 3650"),
]

VERIFICATION: Table = [
    (
        "on is no choice",
        {"handshake": True},
        "verification.handshake: must be one of try, required, off",
    ),
    (
        "misspelt",
        {"handshakes": "try"},
        'verification.handshakes: unknown key: did you mean "handshake"?',
    ),
]

LAUGHS = "h: &h [x]" + "".join(
    f"\n{key}: &{key} [{', '.join([f'*{before}'] * 9)}]"
    for before, key in itertools.pairwise("hijklmno")
)
LINE: Table = [
    ("Norway", {"country": "country: NO"}, f"certificate.country: {TEXT}"),
    ("nothing", {"country": "country:"}, "certificate.country: is missing"),
    ("octal", {"timeout": "timeout: 012"}, f"citrix.timeout: {NUMBER}"),
    ("hexadecimal", {"timeout": "timeout: 0x1F"}, f"citrix.timeout: {NUMBER}"),
    ("underscore", {"timeout": "timeout: 1_000"}, f"citrix.timeout: {NUMBER}"),
    ("sexagesimal", {"timeout": "timeout: 12:30"}, f"citrix.timeout: {NUMBER}"),
    ("date for text", {"state": "state: 2026-11-23"}, f"certificate.state: {TEXT}"),
    ("time for text", {"state": "state: 12:30:45"}, f"certificate.state: {TEXT}"),
    ("password of digits", {"password": f"password: {DIGITS}"}, f"citrix.password: {TEXT}"),
    ("password in hex", {"password": "password: 0xBADC0FFEE"}, f"citrix.password: {TEXT}"),
    ("password yes", {"password": "password: yes"}, f"citrix.password: {TEXT}"),
    ("no such date", {"password": "password: 2026-13-45"}, f"citrix.password: {TEXT}"),
    ("large number", {"timeout": f"timeout: {'9' * 5000}"}, f"citrix.timeout: {NUMBER}"),
    (
        "password that starts with *",
        {"password": f"password: *{SECRET}"},
        f"line 13, column 13: {QUOTES}",
    ),
    (
        "wildcard without quotes",
        {"common_name": "common_name: *.example.com"},
        f"line 2, column 17: {QUOTES}",
    ),
    (
        "password that starts with !",
        {"password": f"password: !{SECRET}"},
        f"line 13, column 13: {QUOTES}",
    ),
    (
        "password with two !",
        {"password": f"password: !{SECRET}!x"},
        f"line 13, column 13: {QUOTES}",
    ),
    (
        "Python's tag",
        {"host": f"host: !!python/object/apply:os.system ['echo {SECRET}']"},
        f"line 12, column 9: {QUOTES}",
    ),
    (
        "indentation",
        {"timeout": " timeout: 20"},
        "line 14, column 4: the indentation does not fit the lines above",
    ),
    ("list for key", {"timeout": "[a, b]: 20"}, "line 14, column 3: found unhashable key"),
    (
        "password with a colon",
        {"password": f"password: {SECRET}: x"},
        f"line 13, column 20: {COLON}",
    ),
    (
        "password with an open quote",
        {"password": f"password: '{SECRET}"},
        "line 21, column 1: found unexpected end of stream",
    ),
    (
        "password that starts with @",
        {"password": f"password: @{SECRET}"},
        "line 13, column 13: found character '@' that cannot start any token",
    ),
    (
        "password with a backslash",
        {"password": f'password: "{SECRET}\\q"'},
        "line 13, column 22: found unknown escape character 'q'",
    ),
    (
        "password twice",
        {"password": f"password: {SECRET}\n  password: {SECRET}"},
        "citrix.password: stands twice, again in line 14",
    ),
    (
        "block twice",
        {"enrollment": "renewal: {}\nrenewal: {}\nenrollment:"},
        "renewal: stands twice, again in line 17",
    ),
    (
        "twice in one line",
        {"enrollment": "renewal: {auto_renew: true, auto_renew: false}\nenrollment:"},
        "renewal.auto_renew: stands twice, again in line 16",
    ),
    (
        "tab",
        {"timeout": "x: y\n\ttimeout: 20"},
        "line 15, column 1: a tab: indent with blanks, or use quotes",
    ),
    (
        "number for key",
        {"timeout": "443: x"},
        "citrix: a key is not text: put it in quotes",
    ),
    (
        "a billion laughs",
        {"enrollment": f"{LAUGHS}\nenrollment:"},
        "\n".join(f"{key}: unknown key" for key in "hijklmno"),
    ),
    ("itself", {"username": "username: &x [*x]"}, f"citrix.username: {NOT_TEXT}"),
]

WHOLE: Table = [
    ("nothing", {"content": "# later\n"}, "is empty"),
    ("list", {"content": "- citrix\n"}, SECTION),
    ("text", {"content": SECRET}, SECTION),
    ("zero byte", {"content": "citrix:\0"}, "holds characters that YAML does not allow"),
    ("wrong flag", {"content": f"citrix: !!bool {SECRET}"}, "holds a value that cannot be read"),
    (
        "two documents",
        {"content": "citrix: {}\n---\ncitrix: {}\n"},
        "line 2, column 1: a second document begins here: only one is allowed",
    ),
    ("Latin-1", {"content": "citrix: {host: München}".encode("latin-1")}, "is not UTF-8 text"),
    ("UTF-16", {"content": "citrix: {}".encode("utf-16")}, "is not UTF-8 text"),
    ("picture", {"content": b"\x89PNG\r\n\x1a\n\x00\x00"}, "is not UTF-8 text"),
    ("deep", {"content": "[" * 1000}, "holds a value that cannot be read"),
    (
        "no end",
        {"content": f"citrix: [{SECRET}"},
        f"line 1, column {len(SECRET) + 10}: expected ',' or ']', but got '<stream end>'",
    ),
]

NS = "appliances/ns-prod.yaml"
APPLIANCE: Table = [
    ("nothing", {"content": ""}, "is empty"),
    ("nothing below citrix", {"content": "citrix:\n"}, "citrix: is missing"),
    (
        "keys at the top",
        {"content": "host: ns1.example.com/nitro\nusername: citrixagent\npassword: 7\n"},
        f"host: {HOST}\npassword: {TEXT}",
    ),
    (
        "keys below citrix",
        {"content": "citrix: {host: 'ns1:0x', password_env: NS_PASSWORD, wibble: 1}"},
        (
            f"citrix.host: {PORT}\n"
            "citrix.username: is missing\n"
            "citrix.password_env: names an environment variable NS_PASSWORD that is not set\n"
            "citrix.wibble: unknown key"
        ),
    ),
    (
        "keys beside citrix",
        {"content": "citrix: {host: 'ns1', username: x, password: x}\nnote: x\n"},
        "note: unknown key",
    ),
    (
        "syntax",
        {"content": f"password: '{SECRET}"},
        f"line 1, column {len(SECRET) + 12}: found unexpected end of stream",
    ),
]


AGENT_FILE = "agent.yaml"
NO_DEFAULT = "has no default: give it in the profile"
AGENT: Table = [
    ("list", {"content": "- defaults\n"}, SECTION),
    (
        "syntax",
        {"content": f"ping_url: '{SECRET}"},
        "line 1, column 19: found unexpected end of stream",
    ),
    (
        "misspelt",
        {"content": "default: {}\n"},
        'default: unknown key: did you mean "defaults"?',
    ),
    (
        "twice",
        {"content": "max_orders: 1\nmax_orders: 2"},
        "max_orders: stands twice, again in line 2",
    ),
    ("no fuse", {"content": "max_orders: 0"}, f"max_orders: must be between 1 and {2**31 - 1}"),
    ("text for fuse", {"content": "max_orders: many"}, f"max_orders: {NUMBER}"),
    ("list for defaults", {"content": "defaults: []"}, f"defaults: {SECTION}"),
    (
        "no default for names",
        {
            "content": "defaults: {certificate: {name: x, common_name: x, "
            "subject_alternative_names: []}, virtual_servers: []}"
        },
        (
            f"defaults.certificate.name: {NO_DEFAULT}\n"
            f"defaults.certificate.common_name: {NO_DEFAULT}\n"
            f"defaults.certificate.subject_alternative_names: {NO_DEFAULT}\n"
            f"defaults.virtual_servers: {NO_DEFAULT}"
        ),
    ),
    (
        "unknown keys for defaults",
        {"content": "defaults: {certificate: {contry: GB}, renewal: {window: 1}, wibble: 1}"},
        (
            'defaults.certificate.contry: unknown key: did you mean "country"?\n'
            'defaults.renewal.window: unknown key: did you mean "expiry_window"?\n'
            "defaults.wibble: unknown key"
        ),
    ),
    (
        "fatal beside a channel",
        {"content": "max_orders: 0\nafter_change: [x]\n"},
        f"max_orders: must be between 1 and {2**31 - 1}\nafter_change: {NOT_TEXT}",
    ),
]
CHANNELS: Table = [
    ("metrics", {"metrics_file": 7}, f"metrics_file: {TEXT}"),
    ("open quote", {"after_change": "echo 'x"}, "after_change: is not a command: check its quotes"),
    ("blank", {"after_change": " "}, "after_change: must not be empty"),
    (
        "ping twice",
        {"ping_url": "https://hc.example.com/x", "ping_url_env": "X"},
        "ping_url: is given more than once: give exactly one of ping_url, ping_url_file, "
        "ping_url_env, ping_url_command",
    ),
    ("http ping", {"ping_url": f"http://hc.example.com/{SECRET}"}, f"ping_url: {PING}"),
    ("user in ping", {"ping_url": f"https://{SECRET}@hc.example.com/x"}, f"ping_url: {PING}"),
    (
        "no ping",
        {"ping_url_env": "PING"},
        "ping_url_env: names an environment variable PING that is not set",
    ),
    ("number for notify", {"notify": 5}, f"notify: {SECTION}"),
    (
        "when",
        {"notify": {"when": "troubles", "command": "true"}},
        'notify.when: must be one of trouble, change, always: did you mean "trouble"?',
    ),
    (
        "misspelt",
        {"notify": {"comand": "true"}},
        'notify.comand: unknown key: did you mean "command"?',
    ),
    ("list for command", {"notify": {"command": ["x"]}}, f"notify.command: {NOT_TEXT}"),
    (
        "mail without anything",
        {"notify": {"mail": {}}},
        (
            "notify.mail.to: must be a list with at least one address\n"
            "notify.mail.from: is missing\n"
            "notify.mail.server: is missing"
        ),
    ),
    (
        "wrong mail",
        {"notify": {"mail": {**MAIL, "to": ["pki"], "from": "x", "server": "a/b", "cc": ["x"]}}},
        (
            "notify.mail.to[0]: must be an e-mail address\n"
            "notify.mail.from: must be an e-mail address\n"
            f"notify.mail.server: {HOST}\n"
            "notify.mail.cc: unknown key"
        ),
    ),
    (
        "login in clear text",
        {"notify": {"mail": {**MAIL, "username": "x", "password": SECRET, "security": "none"}}},
        "notify.mail.security: must not be none with a username: its password would be sent in "
        "clear text",
    ),
    (
        "password alone",
        {"notify": {"mail": {**MAIL, "password_env": "X"}}},
        "notify.mail.password_env: needs username",
    ),
    (
        "user alone",
        {"notify": {"mail": {**MAIL, "username": "x"}}},
        f"notify.mail.{NO_PASSWORD}",
    ),
]
DEFAULTS: Table = [
    ("country", {"certificate": {"country": "GBR"}}, f"defaults.certificate.country: {COUNTRY}"),
    ("no mapping", {"renewal": 5}, f"defaults.renewal: {SECTION}"),
    ("window", {"renewal": {"expiry_window": "0%"}}, f"defaults.renewal.expiry_window: {WINDOW}"),
    (
        "custom field",
        {"enrollment": {"custom_fields": {"Room": 7}}},
        f"defaults.enrollment.custom_fields.Room: {TEXT}",
    ),
    (
        "handshake",
        {"verification": {"handshake": "on"}},
        "defaults.verification.handshake: must be one of try, required, off",
    ),
    ("block", {"citrix": {"host": "ns1"}}, f"defaults.citrix: {NOT_TEXT}"),
    (
        "no such appliance",
        {"citrix": "ns-prod"},
        "defaults.citrix: there is no file {home}/appliances/ns-prod.yaml",
    ),
]


def agent(lab: Lab, content: str) -> None:
    lab.write_profile()
    lab.write("agent.yaml", content)


def defaults(lab: Lab, **blocks: object) -> None:
    """Write defaults, and a profile that needs them."""
    lab.write_yaml("agent.yaml", {"defaults": blocks})
    certificate = {"common_name": "www.example.com", "organization": "X", "state": "Y"}
    if "certificate" not in blocks:
        certificate["country"] = "GB"
    block = {} if "citrix" in blocks else {"citrix": lab.citrix()}
    lab.write_yaml(WWW, {**block, "virtual_servers": [SERVER], "certificate": certificate})


def mode(lab: Lab, file: str, mode: int) -> None:
    """Write a configuration that works, and let others read one of its files."""
    lab.write_yaml("appliances/ns-prod.yaml", {"citrix": lab.citrix()})
    lab.write_profile(citrix="ns-prod" if file.startswith("appliances") else lab.citrix())
    (lab.home / file).chmod(mode)


def twins(lab: Lab, **hosts: str) -> None:
    """Write profiles with one name for all their certkeys."""
    for name, host in hosts.items():
        lab.write_profile(
            name, citrix=lab.citrix(host=host), certificate=lab.certificate(name="shared")
        )


def wrong_twins(lab: Lab) -> None:
    twins(lab, api="ns1.example.com", www="ns1.example.com.")
    lab.write_yaml(WWW, {**yaml.safe_load((lab.home / WWW).read_text()), "wibble": 1})


def open_proxy(lab: Lab) -> None:
    lab.write_profile()
    lab.write("scm.secret", CLIENT_SECRET)
    proxy = f"http://x:{SECRET}@proxy.example.com:3128"
    lab.write_scm(proxy=proxy, client_secret=None, client_secret_file="scm.secret")
    (lab.home / "scm.yaml").chmod(0o604)


def rival(
    lab: Lab,
    name: str,
    *,
    host: str = "ns1.example.com",
    partition: str | None = None,
    key_type: str = "RSA-2048",
    names: Sequence[str] = (),
    **servers: bool,
) -> None:
    """Write a profile with a certkey of its own; of a virtual server is told whether for SNI."""
    block = lab.citrix(host=host, partition=partition, ssl_directory="/nsconfig/ssl")
    wanted = {
        "common_name": f"{name}.example.com",
        "subject_alternative_names": list(names),
        "key_type": key_type,
    }
    lab.write_profile(
        name,
        citrix=block,
        virtual_servers=[
            {"name": server, "type": "load_balancing", "sni": sni}
            for server, sni in servers.items()
        ],
        certificate=lab.certificate(**wanted),
    )


def rivals(lab: Lab, **profiles: Mapping[str, Any]) -> None:
    for name, changes in profiles.items():
        rival(lab, name, **changes)


def endings(lab: Lab) -> None:
    lab.write_profile()
    lab.write_yaml("profiles/www.yml", lab.profile())


def folder(lab: Lab) -> None:
    (lab.home / WWW).mkdir()


def nothing(lab: Lab) -> None:
    """Leave the home without a profile but for what an editor left behind."""
    (lab.home / "profiles" / ".#www.yaml").symlink_to("nobody@nowhere")


def no_scm(lab: Lab) -> None:
    lab.write_profile()
    (lab.home / "scm.yaml").unlink()


def everywhere(lab: Lab) -> None:
    """Write something wrong into every file."""
    lab.write_scm(url="http://scm.example.com", timeout=0)
    lab.write("appliances/ns-prod.yaml", "host: ns_1\nusername: x\npassword: x\n", 0o604)
    lab.write_profile("api", citrix="ns-prod", virtual_servers=[{**SERVER, "type": "x"}, {}])
    lab.write_profile("mail", certificate=lab.certificate(state=None), renewal={"on_change": 1})
    lab.write("profiles/www.yml", "citrix: a: b")


@dataclasses.dataclass(frozen=True)
class Row:
    """A wrong configuration: how it is written, and the lines told, from below the home on."""

    name: str
    write: Callable[..., None]
    changes: Mapping[str, object]
    lines: list[str]


def _rows(write: Callable[..., None], file: str, table: Table) -> Iterator[Row]:
    for name, changes, problems in table:
        lines = [f"{file}: {problem}" for problem in problems.split("\n")]
        yield Row(f"{write.__name__}: {name}", write, changes, lines)


ROOM = (
    'the virtual server "vs_www" on ns1.example.com is also to have the {} certificate of {}: it '
    "has room for one: leave it out of all but one, or use sni: true"
)
ROOM_FOR_NAME = (
    'the virtual server "vs_www" on ns1.example.com is also to have the RSA certificate for '
    "a.example.com of {}: it has room for one: leave it, or the name, out of all but one"
)
SHARED = 'certificate.name: the certkey "shared" on ns1.example.com is also that of'
FILES = [
    Row(
        "no profile",
        nothing,
        {},
        [
            "profiles: holds no profile: run citrixagent.py configure or discover, or copy "
            "example_cert_config.yaml into it"
        ],
    ),
    Row(
        "no scm.yaml",
        no_scm,
        {},
        ["scm.yaml: is missing: run citrixagent.py configure, or copy the sample here"],
    ),
    Row("a folder for a file", folder, {}, [f"{WWW}: cannot be read: Is a directory"]),
    Row(
        "profile open to others",
        mode,
        {"file": WWW, "mode": 0o604},
        [f"{WWW}: citrix.password: {TOO_OPEN}{WWW}"],
    ),
    Row(
        "scm.yaml open to others",
        mode,
        {"file": "scm.yaml", "mode": 0o644},
        [f"scm.yaml: client_secret: {TOO_OPEN}scm.yaml"],
    ),
    Row(
        "a proxy's password open to others",
        open_proxy,
        {},
        [f"scm.yaml: proxy: {TOO_OPEN}scm.yaml"],
    ),
    Row(
        "appliance open to others",
        mode,
        {"file": NS, "mode": 0o644},
        [f"{NS}: citrix.password: {TOO_OPEN}{NS}"],
    ),
    Row(
        "one certkey of two profiles",
        twins,
        {"api": "ns1.example.com", "www": "NS1.example.com:443"},
        [f"profiles/api.yaml: {SHARED} www", f"profiles/www.yaml: {SHARED} api"],
    ),
    Row(
        "one certkey of two profiles, and something else",
        wrong_twins,
        {},
        [
            f"profiles/api.yaml: {SHARED} www",
            "profiles/www.yaml: wibble: unknown key",
            f"profiles/www.yaml: {SHARED} api",
        ],
    ),
    Row(
        "one default certificate of two profiles",
        rivals,
        {
            "api": {"vs_api": False, "vs_www": False},
            "www": {"host": "NS1.example.com:443", "vs_www": False, "key_type": "RSA-4096"},
        },
        [
            f"profiles/api.yaml: virtual_servers[1]: {ROOM.format('RSA', 'www')}",
            f"profiles/www.yaml: virtual_servers[0]: {ROOM.format('RSA', 'api')}",
        ],
    ),
    Row(
        "one default certificate of three profiles, one of them for a pair",
        rivals,
        {
            "api": {"vs_www": False, "key_type": "ECDSA-P256"},
            "ftp": {"vs_www": False, "key_type": "ECDSA-P384", "host": ["ns2", "ns1.example.com"]},
            "www": {"vs_www": False, "key_type": "ECDSA-P256"},
        },
        [
            f"profiles/api.yaml: virtual_servers[0]: {ROOM.format('ECDSA', 'ftp, www')}",
            f"profiles/ftp.yaml: virtual_servers[0]: {ROOM.format('ECDSA', 'api, www')}",
            f"profiles/www.yaml: virtual_servers[0]: {ROOM.format('ECDSA', 'api, ftp')}",
        ],
    ),
    Row(
        "one SNI certificate of two profiles",
        rivals,
        {
            "api": {"vs_www": True, "names": ["www.example.com", "a.example.com"]},
            "www": {"vs_www": True, "names": ["a.example.com"]},
        },
        [
            f"profiles/api.yaml: virtual_servers[0]: {ROOM_FOR_NAME.format('www')}",
            f"profiles/www.yaml: virtual_servers[0]: {ROOM_FOR_NAME.format('api')}",
        ],
    ),
    Row(
        "one name of two files",
        endings,
        {},
        [
            "profiles/www.yaml: another profile is named www as well: rename one",
            "profiles/www.yml: another profile is named www as well: rename one",
        ],
    ),
    Row(
        "something in every file",
        everywhere,
        {},
        [
            f"{NS}: host: {NAME}",
            f"{NS}: password: {TOO_OPEN}{NS}",
            f"profiles/api.yaml: virtual_servers[0].type: {KIND}",
            "profiles/api.yaml: virtual_servers[1].name: is missing",
            "profiles/api.yaml: virtual_servers[1].type: is missing",
            "profiles/mail.yaml: certificate.state: is missing",
            "profiles/mail.yaml: renewal.on_change: must be one of replace, enroll, report",
            f"profiles/www.yml: line 1, column 10: {COLON}",
            f"scm.yaml: url: {HTTPS}",
            "scm.yaml: timeout: must be between 1 and 3600",
        ],
    ),
]

WRONG = [
    *_rows(scm, "scm.yaml", SCM),
    *_rows(profile, WWW, PROFILE),
    *_rows(citrix, WWW, CITRIX),
    *_rows(password, WWW, SECRETS),
    *_rows(server, WWW, SERVER_ROWS),
    *_rows(certificate, WWW, CERTIFICATE),
    *_rows(renewal, WWW, RENEWAL),
    *_rows(enrollment, WWW, ENROLLMENT),
    *_rows(verification, WWW, VERIFICATION),
    *_rows(line, WWW, LINE),
    *_rows(whole, WWW, WHOLE),
    *_rows(appliance, NS, APPLIANCE),
    *_rows(agent, AGENT_FILE, AGENT),
    *_rows(defaults, AGENT_FILE, DEFAULTS),
    *FILES,
]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[NetScaler, Scm]]:
    with NetScaler() as appliance, Scm() as scm:
        appliance.add_virtual_server("vs_www", "load_balancing")
        yield appliance, scm


@pytest.fixture
def home(tmp_path: pathlib.Path, servers: tuple[NetScaler, Scm]) -> Lab:
    """A lab whose servers are shared: nobody is to change what they hold."""
    lab = Lab(tmp_path, *servers)
    lab.accept()
    return lab


def requests(lab: Lab) -> int:
    return len(lab.appliance.server.requests + lab.scm.server.requests)


def refusal(lab: Lab) -> list[str]:
    """Run as lines and as JSON: nothing is contacted, and both tell the same, which is returned."""
    before = requests(lab)
    plain, told = lab("run"), lab.json("run")
    assert requests(lab) == before
    document = told.document()
    errors = [each["error"] for each in document["profiles"]] + document["errors"]
    assert [plain.exit_code, told.exit_code, document["exit_code"]] == [3, 3, 3]
    assert {error["kind"] for error in errors} == {"config"}
    problems = [line for error in errors for line in error["message"].split("\n")]
    assert plain.stderr == "".join(f"{problem}\n" for problem in problems)
    text = plain.text + told.text
    assert not any(secret in text for secret in (SECRET, DIGITS.lstrip("0"), "0xBADC0FFEE"))
    return [problem.replace(str(lab.home), "{home}") for problem in problems]


@pytest.mark.parametrize("row", WRONG, ids=lambda row: row.name)
@pytest.mark.sample(3)
def test_what_is_wrong_is_told_and_nothing_is_contacted(home: Lab, row: Row) -> None:
    row.write(home, **row.changes)
    assert refusal(home) == [f"{{home}}/{line}" for line in row.lines]


CHANNEL_ROWS = list(_rows(agent, AGENT_FILE, CHANNELS))


@pytest.mark.parametrize("row", CHANNEL_ROWS, ids=lambda row: row.name)
@pytest.mark.sample(3)
def test_a_wrong_channel_turns_off_that_channel_alone(home: Lab, row: Row) -> None:
    home.write_profile()
    home.write_yaml(AGENT_FILE, row.changes)
    told = home.json("run", "--dry-run")
    assert (told.exit_code, told.profile()["outcome"]) == (1, "planned")
    (error,) = told.document()["errors"]
    lines = [line.removeprefix(f"{home.home}/") for line in error["message"].split("\n")]
    assert (error["kind"], lines) == ("config", row.lines)
    assert SECRET not in told.text


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("ping_url", {"ping_url": f"https://hc.example.com/{SECRET}"}),
        (
            "notify.mail.password",
            {"notify": {"mail": {**MAIL, "username": "x", "password": SECRET}}},
        ),
    ],
)
def test_a_secret_in_agent_yaml_that_others_can_read_stops_everything(
    home: Lab, key: str, content: Mapping[str, object]
) -> None:
    home.write_profile()
    home.write_yaml(AGENT_FILE, content, 0o644)
    assert refusal(home) == [f"{{home}}/agent.yaml: {key}: {TOO_OPEN}agent.yaml"]


def test_defaults_fill_what_a_profile_leaves_out(lab: Lab) -> None:
    lab.write_yaml("appliances/ns-prod.yaml", lab.citrix())
    lab.write_yaml(
        AGENT_FILE,
        {
            "defaults": {
                "citrix": "ns-prod",
                "certificate": {
                    "organization": "Default Ltd",
                    "locality": "London",
                    "state": "England",
                    "country": "GB",
                    "key_type": "RSA-2048",
                },
                "enrollment": {"custom_fields": {"Owner": "NetOps", "Room": "7"}, "term": 100},
            }
        },
    )
    lab.write_yaml(
        WWW,
        {
            "virtual_servers": [SERVER],
            "certificate": {
                "common_name": "www.example.com",
                "organization": "Own Ltd",
                "state": None,
                "key_type": "ECDSA-P256",
            },
            "enrollment": {"custom_fields": {"Room": "8", "Owner": None}, "max_wait": 20},
        },
    )
    assert lab("run").exit_code == 0
    (order,) = lab.scm.orders
    assert order.custom_fields == {"Owner": "NetOps", "Room": "8"}
    assert order.subject == {
        "CN": "www.example.com",
        "O": "Own Ltd",
        "L": "London",
        "ST": "England",
        "C": "GB",
    }
    assert lab.json("run").profile()["outcome"] == "unchanged"


def test_a_default_that_a_profile_does_not_take_breaks_nothing(home: Lab) -> None:
    home.write_yaml(AGENT_FILE, {"defaults": {"certificate": {"country": "GBR"}, "citrix": "no"}})
    home.write_profile()
    assert home.json("run", "--dry-run").exit_code == 0
    for name in ("api", "ftp"):
        server = {"name": f"vs_{name}", "type": "load_balancing"}
        home.write_profile(
            name, certificate=home.certificate(country=None), virtual_servers=[server]
        )
    plain = home("run", "--dry-run")
    assert plain.exit_code == 1
    file = f"{home.home}/agent.yaml"
    assert plain.stderr.splitlines() == [
        f"{file}: defaults.certificate.country: {COUNTRY}",
        f"warning: {file}: defaults.citrix: there is no file {home.home}/appliances/no.yaml",
    ]


@pytest.mark.parametrize("content", ["", "# max_orders: 100\n", "{}", "max_orders: 5\n"])
def test_agent_yaml_may_say_little(home: Lab, content: str) -> None:
    agent(home, content)
    assert home.json("run", "--dry-run").exit_code == 0


def test_what_is_wrong_with_an_appliance_is_told_once(home: Lab) -> None:
    appliance(home, "host: ns_1.example.com\nusername: x\npassword: x\n")
    home.write_profile("api", citrix="ns-prod")
    plain, told = home("run"), home.json("run")
    problem = f"{home.home}/{NS}: host: {NAME}"
    assert plain.stderr == f"{problem}\n"
    assert plain.stdout.count("failed: 1 problem in its configuration\n") == 2
    for name in ("api", "www"):
        assert told.profile(name)["error"] == {"kind": "config", "message": problem}


ODD: list[object] = [
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    float("nan"),
    "",
    " ",
    "x",
    "\u2603",
    "\x7f",
    "a\nb",
    "*",
]
ODD += ["x" * 5000, "1" * 400, "[", "'", "${x}", "../..", "%s", b"\xff", [], [[]], [None], [{}], {}]
ODD += [{"x": 1}, {1: 2}, {None: None}, [1, "x"], dt.date(2026, 1, 1), {"password": [{}]}, "\ud800"]
DOCUMENTS: dict[str, Mapping[str, Any]] = {
    "scm.yaml": {
        **dict.fromkeys(["api", "url", "client_id", "client_secret", "token_url", "ca_bundle"]),
        **dict.fromkeys(["proxy", "timeout", "check_revocation", "org_id", "term", "cert_type"]),
        **dict.fromkeys(["customer_uri", "login", "password", "password_file", "password_env"]),
    },
    "agent.yaml": {
        "defaults": {
            "citrix": None,
            "certificate": {"country": None, "key_type": None},
            "renewal": {"expiry_window": None, "auto_renew": None},
            "enrollment": {"custom_fields": {"Owner": None}},
            "verification": {"handshake": None},
        },
        **dict.fromkeys(["max_orders", "metrics_file", "ping_url", "after_change"]),
        "notify": {
            "when": None,
            "command": None,
            "mail": dict.fromkeys(["to", "from", "server", "username", "password", "security"]),
        },
    },
    "profiles/www.yaml": {
        "citrix": {
            **dict.fromkeys(["host", "username", "password", "password_command", "fingerprint"]),
            **dict.fromkeys(["ca_bundle", "verify", "timeout", "partition", "ssl_directory"]),
        },
        "virtual_servers": [dict.fromkeys(["name", "type", "sni", "connect"])],
        "certificate": dict.fromkeys(["name", "common_name", "subject_alternative_names", "email"]),
        "enrollment": {"custom_fields": {"Owner": None}, "profile_id": None, "max_wait": None},
    },
}


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, child in node.items() if isinstance(node, dict) else ():
        yield from places(child, (*path, key))
    for index, child in enumerate(node) if isinstance(node, list) else ():
        yield from places(child, (*path, index))


def planted(document: Mapping[str, Any], path: tuple[Any, ...], value: object) -> object:
    """Return a document with a value at a place; what else it holds is empty."""
    if not path:
        return value
    root: Any = copy.deepcopy(document)
    node = root
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return root


def check_places(lab: Lab, file: str, share: int) -> None:
    """Plant one value of so many in every place: it is a problem of that file, or it is right."""
    lab.write_profile()
    (lab.home / file).touch(0o600)
    for index, path in enumerate(places(DOCUMENTS[file])):
        for value in ODD[index % share :: share]:
            (lab.home / file).write_text(yaml.dump(planted(DOCUMENTS[file], path, value)))
            read = citrixagent.Home(lab.home, citrixagent.Redactor())
            loaded = [read.load_scm()[1], read.load_settings()[1]]
            loaded += read.load_profiles([lab.home / WWW]).broken.values()
            for problem in itertools.chain.from_iterable(loaded):
                assert problem.startswith(f"{lab.home}/"), (path, value)
                assert problem.isprintable(), (path, value)


@pytest.mark.parametrize("file", DOCUMENTS)
@pytest.mark.sample(2)
def test_a_value_in_a_wrong_place_is_no_more_than_a_problem(home: Lab, file: str) -> None:
    check_places(home, file, share=8)


@pytest.mark.long
@pytest.mark.parametrize("file", DOCUMENTS)
def test_no_value_in_any_place_is_more_than_a_problem(home: Lab, file: str) -> None:
    check_places(home, file, share=1)


# ----- Nothing wrong ------------------------------------------------------------------------------


def loopback(lab: Lab, url: str) -> None:
    scm(lab, url=url, token_url=f"{url}/token", proxy="http://proxy.example.com:3128")


def fingerprint(lab: Lab, form: Callable[[str], str]) -> None:
    citrix(lab, ca_bundle=None, fingerprint=form(lab.appliance.server.fingerprint))


def shared(lab: Lab, file: str, name: str, key: str = "") -> None:
    block = {**lab.citrix(), "ca_bundle": "../ca.pem"}
    lab.write_yaml(f"appliances/{file}", {key: block} if key else block)
    lab.write_profile(citrix=name)


def rewritten(lab: Lab, change: Callable[[str], str | bytes]) -> None:
    """Write a profile in another way that means the same."""
    whole(lab, change(lab.write_profile().read_text()))


def readable(lab: Lab) -> None:
    """Let everybody read files that hold no secret."""
    lab.write("profiles/ns.secret", PASSWORD)
    password(lab, password_file="ns.secret")
    (lab.home / WWW).chmod(0o644)


RIGHT: list[tuple[str, Callable[..., None], Mapping[str, object]]] = [
    ("http to 127.0.0.1", loopback, {"url": "http://127.0.0.1:9"}),
    ("http to ::1", loopback, {"url": "http://[::1]:9"}),
    ("http to localhost", loopback, {"url": "http://localhost:9"}),
    ("no revocation check", scm, {"check_revocation": False, "timeout": None}),
    ("enrollment by name", scm, {"api": "enrollment"}),
    ("pairs of digits", fingerprint, {"form": str}),
    ("digits", fingerprint, {"form": lambda text: text.replace(":", "").lower()}),
    ("as openssl prints it", fingerprint, {"form": lambda text: f"sha256 Fingerprint={text}"}),
    ("as it printed it once", fingerprint, {"form": lambda text: f"SHA256 Fingerprint={text}"}),
    ("verified by default", citrix, {"verify": True, "timeout": 3600}),
    ("appliance", shared, {"file": "ns.yaml", "name": "ns"}),
    ("appliance with its ending", shared, {"file": "ns.yml", "name": "ns.yml"}),
    ("appliance below citrix", shared, {"file": "ns.yml", "name": "ns", "key": "citrix"}),
    ("wildcard", certificate, {"common_name": "*.example.com"}),
    ("64 characters", certificate, {"common_name": f"{'x' * 30}.{'y' * 29}.com"}),
    ("addresses", certificate, {"subject_alternative_names": ["192.0.2.1", "2001:DB8::1"]}),
    ("31 characters", certificate, {"name": "x" * 31}),
    ("all signs of a certkey", certificate, {"name": "_a#b.c d:e@f=g-h"}),
    ("small country", certificate, {"country": "gb", "email": "pki@example.com"}),
    ("no names", certificate, {"subject_alternative_names": None, "key_type": None}),
    ("where to verify", server, {"connect": "[2001:db8::7]:443", "sni": False}),
    ("empty blocks", profile, {"renewal": {}, "enrollment": {}, "verification": {}}),
    ("blocks of nothing", rewritten, {"change": lambda text: f"{text}renewal:\nverification:\n"}),
    ("order", enrollment, {"profile_id": 7, "term": 199, "custom_fields": {"Owner": "NetOps"}}),
    ("off", rewritten, {"change": lambda text: f"{text}verification: {{handshake: off}}\n"}),
    ("CRLF", rewritten, {"change": lambda text: text.replace("\n", "\r\n")}),
    ("byte order mark", rewritten, {"change": lambda text: b"\xef\xbb\xbf" + text.encode()}),
    ("document marks", rewritten, {"change": lambda text: f"---\n{text}...\n"}),
    ("merge key", rewritten, {"change": lambda text: f"{text}renewal: {{<<: {{auto_renew: no}}}}"}),
    ("readable, without a secret", readable, {}),
]


@pytest.mark.parametrize(("name", "write", "changes"), RIGHT, ids=[row[0] for row in RIGHT])
@pytest.mark.sample(3)
def test_what_is_right_is_accepted(
    home: Lab, name: str, write: Callable[..., None], changes: Mapping[str, object]
) -> None:
    write(home, **changes)
    outcome = home.json("run", "--dry-run")
    reached = not name.startswith("http to ")  # nobody listens there
    expected = (0 if reached else 1, "planned")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == expected, name
    assert "config" not in {error["kind"] for error in outcome.document()["errors"]}


def test_a_broken_profile_fails_while_another_is_handled(lab: Lab) -> None:
    lab.write_profile()
    lab.write_profile("api", certificate=lab.certificate(country="GBR", key_type="RSA-2048"))
    told = lab.json("run")
    assert (told.exit_code, told.profile("www")["outcome"]) == (1, "enrolled")
    assert told.profile("api")["outcome"] == "failed"
    problem = f"{lab.home}/profiles/api.yaml: certificate.country: {COUNTRY}"
    assert told.profile("api")["error"] == {"kind": "config", "message": problem}
    plain = lab("run")
    assert plain.exit_code == 1
    assert plain.stdout == "api: failed: 1 problem in its configuration\n"
    assert plain.stderr == f"{problem}\n"


def test_only_named_profiles_and_their_appliances_are_read(lab: Lab) -> None:
    lab.write("appliances/ns-prod.yaml", "{")
    lab.write_profile()
    lab.write_profile("api", citrix="ns-prod")
    lab.write("profiles/mail.yaml", "[")
    outcome = lab.json("run", "www")
    assert outcome.exit_code == 0
    assert [each["profile"] for each in outcome.document()["profiles"]] == ["www"]


def test_one_virtual_server_has_room_for_certificates_that_differ(home: Lab) -> None:
    """By kind of key, for SNI or not, by their names, by appliance, by partition."""
    port, ecdsa = home.appliance.server.port, {"key_type": "ECDSA-P256"}
    here = {"host": f"127.0.0.1:{port}", "vs_www": False}
    rivals(
        home,
        rsa=here,
        ecdsa={**here, **ecdsa},
        named={**here, "vs_www": True, "names": ["a.example.com"]},
        other_name={**here, "vs_www": True, "names": ["b.example.com"]},
        other_kind={**here, **ecdsa, "vs_www": True, "names": ["a.example.com"]},
        elsewhere={**here, "host": f"localhost:{port}"},
        tenant={**here, "partition": "tenant-a"},
    )
    assert home("run", "--dry-run").exit_code != 3


@pytest.mark.parametrize("change", [{"key_type": "ECDSA-256"}, {"vs_www": "true"}])
def test_what_cannot_be_read_claims_no_place(home: Lab, change: Mapping[str, Any]) -> None:
    """A slip in one profile must not stop another one that has nothing to do with it."""
    here = {"host": home.appliance.host, "vs_www": False}
    rivals(home, api=here, www={**here, **change})
    outcome = home.json("run", "--dry-run")
    outcomes = {each["profile"]: each["outcome"] for each in outcome.document()["profiles"]}
    assert outcomes == {"api": "planned", "www": "failed"}
    assert outcome.exit_code == 1


def test_one_certkey_name_on_two_appliances_is_fine(home: Lab) -> None:
    port = home.appliance.server.port
    twins(home, api=f"127.0.0.1:{port}", www=f"localhost:{port}")
    assert home("run", "--dry-run").exit_code == 0


@pytest.mark.parametrize("ending", ["", "/", "/api", "/api/v1", "/api/v1/", "/api/v1/certificates"])
@pytest.mark.sample(3)
def test_the_address_of_scm_is_taken_as_it_is_shown_anywhere(lab: Lab, ending: str) -> None:
    lab.write_profile()
    lab.write_scm(url=lab.scm.url + ending)
    assert lab("run").exit_code == 0
    assert "POST /api/v1/certificates" in lab.scm.server.calls()


def test_paths_and_commands_start_from_the_folder_of_their_file(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = lab.write("bin/secret", '#!/bin/sh\ncat < "$1"\n', 0o700)
    lab.write("scm.secret", f"{CLIENT_SECRET}\nnext line\n")
    lab.write("appliances/ns.secret", f"{PASSWORD}\r\nnext line\r\n")
    lab.write_scm(client_secret=None, client_secret_command="bin/secret scm.secret")
    block = lab.citrix(password=None, password_file="ns.secret", ca_bundle="../ca.pem")
    lab.write_yaml("appliances/ns.yaml", block)
    lab.write_profile(citrix="ns")
    ways = {"password_command": "../bin/secret ../appliances/ns.secret", "ca_bundle": "../ca.pem"}
    lab.appliance.add_virtual_server("vs_api", "gateway")
    lab.write_profile(
        "api",
        citrix=lab.citrix(password=None, **ways),
        virtual_servers=[{"name": "vs_api", "type": "gateway"}],
    )
    monkeypatch.chdir(script.parent)
    assert lab("run").exit_code == 0
    assert len(lab.scm.orders) == 2


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("password_env", "NS_PASSWORD"),
        ("password_file", "ns.secret"),
        ("password_command", "printf '%s\\n' '$HOME; id' more"),
    ],
)
def test_a_secret_comes_from_elsewhere(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, way: str, value: str
) -> None:
    """The secret would mean something to a shell; of several lines the first one counts."""
    lab.appliance.add_user("other", "$HOME; id")
    monkeypatch.setenv("NS_PASSWORD", "$HOME; id")
    lab.write("profiles/ns.secret", "$HOME; id\nmore\n")
    password(lab, username="other", **{way: value})
    outcome = lab.json("run", "--dry-run")
    assert outcome.exit_code == 0
    assert "$HOME; id" not in outcome.text


def test_a_certkey_is_named_like_its_profile(home: Lab) -> None:
    """What is too long is cut and told apart by a hash; 31 characters are kept."""
    names = ["www", "x" * 31, f"{'x' * 31}-one", f"{'x' * 31}-two"]
    for name in names:
        server = {"name": f"vs_{name}", "type": "load_balancing"}
        home.write_profile(name, virtual_servers=[server])
    outcome = home.json("run", "--dry-run")
    certkeys = [outcome.profile(name)["certkey"] for name in names]
    assert certkeys[:2] == names[:2]
    assert len(set(certkeys)) == len(names)
    for certkey in certkeys[2:]:
        assert re.fullmatch(r"x{22}-[0-9a-f]{8}", certkey)


def test_the_common_name_is_added_and_names_stand_once(lab: Lab) -> None:
    names = ["Example.com", "example.com", "WWW.example.com", "2001:DB8::0:1", "2001:db8::1"]
    certificate(lab, common_name="www.Example.com", subject_alternative_names=names)
    assert lab("run").exit_code == 0
    (order,) = lab.scm.orders
    assert sorted(order.names) == ["2001:db8::1", "example.com", "www.example.com"]


def test_the_window_is_a_number_of_days_or_a_share(lab: Lab) -> None:
    """The simulators' certificates live for 199 days; two thirds of that is the longest window."""
    profile(lab)
    assert lab("run").exit_code == 0
    days = {None: 66, 30: 30, "33%": 65, "5 %": 9, 132: 132, 133: 132, "99%": 132}
    for window, expected in days.items():
        renewal(lab, expiry_window=window)
        told = lab.json("run").profile()
        assert told["reason"].endswith(f"window is {expected} days"), window
        assert bool(told["warnings"]) == (window in {133, "99%"}), window


@pytest.mark.parametrize("ending", ["yaml", "yml"])
@pytest.mark.sample(2)
def test_a_profile_is_named_or_pointed_at(
    home: Lab, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    file = home.write_yaml(f"profiles/api.{ending}", home.profile())
    monkeypatch.chdir(home.home)
    for way in ("api", file.name, str(file), f"profiles/{file.name}", "profiles/api"):
        outcome = home.json("run", "--dry-run", way)
        assert (outcome.exit_code, outcome.profile("api")["outcome"]) == (0, "planned"), way


def test_a_profile_may_lie_outside_of_the_home(
    home: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("elsewhere") / "api.yaml"
    file.write_bytes(home.write_profile().read_bytes())
    file.chmod(0o600)
    assert home.json("run", "--dry-run", str(file)).profile("api")["outcome"] == "planned"


def test_a_profile_elsewhere_must_not_share_the_records_of_one_at_home(
    home: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("elsewhere") / "www.yaml"
    file.write_bytes(home.write_profile().read_bytes())
    file.chmod(0o600)
    outcome = home("run", "--dry-run", str(file))
    assert outcome.exit_code == 3
    assert outcome.stderr == f"{file}: another profile is named www as well: rename one\n"


def test_a_profile_that_is_named_twice_is_handled_once(
    home: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home.write_profile()
    monkeypatch.chdir(home.home)
    outcome = home.json("run", "--dry-run", "www", str(file), "profiles/../profiles/www.yaml")
    assert [each["profile"] for each in outcome.document()["profiles"]] == ["www"]
    assert outcome.exit_code == 0


@pytest.mark.parametrize("secret", ["profile", "null", '"'])
def test_a_secret_that_is_a_word_of_the_json_leaves_the_json_whole(lab: Lab, secret: str) -> None:
    lab.appliance.add_user("other", secret)
    citrix(lab, username="other", password=secret)
    outcome = lab.json("run", "--dry-run")
    assert (outcome.exit_code, outcome.profile()["outcome"]) == (0, "planned")


def test_a_profile_or_appliance_that_is_misspelt_is_suggested(home: Lab) -> None:
    home.write_profile("mail-site1")
    home.write_yaml("appliances/ns-prod.yaml", home.citrix())
    assert home("run", "mail-site2").stderr.endswith(': did you mean "mail-site1"?\n')
    home.write_profile(citrix="ns-prd")
    problem = f"{home.home}/{WWW}: citrix: there is no file {home.home}/appliances/ns-prd.yaml"
    assert home("run", "www").stderr == f'{problem}: did you mean "ns-prod"?\n'


@pytest.mark.parametrize(
    "name", ["nope", "nope.yaml", "profiles/www.yaml", "/nope", "..", "", "x" * 300]
)
def test_a_profile_that_does_not_exist_is_wrong_use(home: Lab, name: str) -> None:
    """The working directory is not the home, so that profiles/www.yaml is nowhere."""
    profile(home)
    before = requests(home)
    plain, told = home("run", "www", name), home.json("run", "www", name)
    problem = f'there is no profile "{name}" in {home.home}/profiles'
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert plain.stderr.endswith(f"Error: {problem}\n")
    assert (told.exit_code, told.document()["exit_code"]) == (2, 2)
    assert told.document()["errors"] == [{"kind": "config", "message": problem}]
    assert requests(home) == before


def test_what_can_be_read_of_a_broken_profile_is_told(lab: Lab) -> None:
    lab.write_profile(certificate=lab.certificate(name="shop", country="GBR"))
    lab.write("profiles/text.yaml", "citrix: [")
    lab.write_yaml("profiles/bare.yaml", {"citrix": {"host": "ns1.example.com"}})
    told = lab.json("run")
    found = {each["profile"]: each for each in told.document()["profiles"]}
    assert (found["www"]["appliance"], found["www"]["certkey"]) == (lab.appliance.host, "shop")
    assert (found["text"]["appliance"], found["text"]["certkey"]) == ("", "")
    assert found["bare"]["appliance"] == "ns1.example.com"
    assert {each["error"]["kind"] for each in found.values()} == {"config"}


def test_wrong_defaults_that_no_profile_takes_are_a_warning(lab: Lab) -> None:
    """They break whichever profile comes to take them; what one takes is told of that alone."""
    lab.write_profile(verification={"handshake": "off"})
    blocks = {
        "citrix": "nowhere",
        "certificate": {"country": "GBR"},
        "renewal": {"expiry_window": "0%"},
        "verification": {"handshake": "on"},
    }
    lab.write_yaml("agent.yaml", {"defaults": blocks})
    told = lab.json("run")
    (problem,) = told.profile()["error"]["message"].splitlines()
    assert "defaults.renewal.expiry_window" in problem
    warnings = told.document()["warnings"]
    paths = ["citrix", "certificate.country", "verification.handshake"]
    assert [each.partition(": ")[2].partition(":")[0] for each in warnings] == [
        f"defaults.{path}" for path in paths
    ]
    lab.write_yaml("agent.yaml", {"defaults": {"certificate": {"country": "GBR"}}})
    assert lab.json("run").exit_code == 0
    checks = lab.json("check", "--offline").document()["checks"]
    (found,) = [each for each in checks if "defaults.certificate" in each["message"]]
    assert (found["target"], found["status"]) == ("agent.yaml", "warn")


@pytest.mark.long
def test_a_file_whose_name_is_no_text_costs_nothing_else(lab: Lab) -> None:
    """A Latin-1 name from an old archive: told, with its byte made visible.

    In processes of their own: no report of a test can hold such a name, as a log does.
    """
    lab.write_profile()
    (lab.home / os.fsdecode(b"profiles/b\xfcro.yaml")).write_text("citrix: [")
    told = lab.spawn("run", "--json")
    outcomes = {each["profile"]: each["outcome"] for each in told.document()["profiles"]}
    assert outcomes == {"b\udcfcro": "failed", "www": "enrolled"}
    for words in (("run",), ("list",), ("check", "--offline"), ("status",)):
        outcome = lab.spawn(*words)
        assert "b\\udcfcro" in outcome.text
        assert "unexpected" not in outcome.text
    for style in ("json", "html", "prometheus", "nagios"):
        assert "\udcfc" not in lab.spawn("status", "--format", style).stdout
