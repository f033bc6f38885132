"""Odd certificates are odd in the one way that their name says, and appliances can have them."""

from __future__ import annotations

import datetime as dt
import warnings

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from simulators.ca import Authority
from simulators.odd import ODD, changed, odd_pem

REFUSALS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
)


@pytest.fixture(scope="module")
def leaf() -> x509.Certificate:
    now = dt.datetime.now(dt.timezone.utc)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return Authority().certify(key, ["a.example"], now, now + dt.timedelta(days=9))


def everything(certificate: x509.Certificate) -> list[object]:
    name = certificate.subject.rfc4514_string()
    dates = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return [name, dates, certificate.public_key(), list(certificate.extensions)]


def test_nothing_changed_is_the_certificate_itself(leaf: x509.Certificate) -> None:
    assert changed(leaf, lambda _: None) == leaf.public_bytes(Encoding.DER)


@pytest.mark.parametrize("kind", ODD)
def test_the_library_refuses_it_or_tells_what_is_odd(kind: str, leaf: x509.Certificate) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read = x509.load_pem_x509_certificate(odd_pem(kind, leaf).encode())
            odd = everything(read) != everything(leaf) or read.serial_number != leaf.serial_number
        except REFUSALS:
            odd = True
    assert odd
