"""CSRs, leaves and chains, compared with what was asked: the pure functions alone."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from simulators.ca import Authority, ChainStyle

import citrixagent as agent

NAMES = ("www.example.com", "example.com", "192.0.2.10")
DAY = dt.timedelta(days=1)
NOW = dt.datetime(2026, 11, 23, 2, 0, tzinfo=dt.timezone.utc)


def profile(names: tuple[str, ...] = NAMES, key_type: str = "ECDSA-P256") -> agent.Profile:
    return agent.Profile(
        name="www",
        appliance=agent.Appliance(
            ("ns1",), "u", agent.Secret("p"), agent.Tls(), 60, "/nsconfig/ssl"
        ),
        virtual_servers=(agent.VirtualServer("vs", "gateway", None),),
        certkey="www",
        subject=agent.Subject(names[0], "Example Ltd", "England", "GB"),
        names=names,
        key_type=key_type,
        auto_renew=True,
        window=agent.Window(),
        on_change="replace",
        enrollment=agent.Enrollment(),
        handshake="try",
    )


def general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


SUBJECT = {
    NameOID.COUNTRY_NAME: "GB",
    NameOID.STATE_OR_PROVINCE_NAME: "England",
    NameOID.ORGANIZATION_NAME: "Example Ltd",
}


def csr(
    names: tuple[str, ...] = NAMES,
    common_name: str = "",
    curve: ec.EllipticCurve | None = None,
    subject: Sequence[tuple[x509.ObjectIdentifier, str]] = (),
    more: Sequence[x509.ExtensionType] = (),
    odd: Sequence[x509.GeneralName] = (),
) -> bytes:
    """Return the PEM of a CSR; ``subject`` stands in for parts of it, or comes on top."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    given = [oid for oid, _ in subject if oid != NameOID.COMMON_NAME]
    parts = [(oid, value) for oid, value in SUBJECT.items() if oid not in given]
    parts += [(NameOID.COMMON_NAME, common_name or names[0]), *subject]
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts if value])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    alternatives = x509.SubjectAlternativeName([*map(general, names), *odd])
    for extension in (alternatives, *more):
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def test_a_csr_that_is_what_was_asked() -> None:
    assert "BEGIN CERTIFICATE REQUEST" in agent.check_csr(csr(), profile())


def usage(**values: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    more = ("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: values.get(name, False) for name in (*names, *more)})


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=False, path_length=None),
        usage(digital_signature=True, key_encipherment=True),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_csr_may_say_that_it_is_for_a_server(extension: x509.ExtensionType) -> None:
    assert agent.check_csr(csr(more=[extension]), profile())


def test_a_csr_may_be_written_in_other_letters() -> None:
    assert agent.check_csr(csr(subject=[(NameOID.COUNTRY_NAME, "gb")]), profile())


@pytest.mark.parametrize(
    ("pem", "words"),
    [
        (csr(subject=[(NameOID.ORGANIZATION_NAME, "Other")]), "its subject is "),
        (csr(subject=[(NameOID.ORGANIZATION_NAME, "")]), "its subject is "),
        (csr(subject=[(NameOID.COUNTRY_NAME, "FR")]), "C=FR"),
        (csr(subject=[(NameOID.STATE_OR_PROVINCE_NAME, "Wales")]), "ST=Wales"),
        (csr(subject=[(NameOID.LOCALITY_NAME, "London")]), "L=London"),
        (csr(subject=[(NameOID.EMAIL_ADDRESS, "a@example.com")]), "its subject is "),
        (csr(subject=[(NameOID.COMMON_NAME, "other.example.com")]), "CN=other.example.com"),
        (csr(subject=[(NameOID.SURNAME, "Smith")]), "its subject is "),
        (csr(odd=[x509.RFC822Name("a@example.com")]), "it holds names of the kind RFC822Name"),
        (
            csr(odd=[x509.UniformResourceIdentifier("https://example.com")]),
            "it holds names of the kind UniformResourceIdentifier",
        ),
        (
            csr(more=[x509.BasicConstraints(ca=True, path_length=None)]),
            "it asks for the extension 2.5.29.19",
        ),
        (csr(more=[usage(key_cert_sign=True)]), "it asks for the extension 2.5.29.15"),
        (
            csr(more=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])]),
            "it asks for the extension 2.5.29.37",
        ),
        (csr(more=[x509.OCSPNoCheck()]), "it asks for the extension 1.3.6.1.5.5.7.48.1.5"),
        (
            csr(NAMES[:2]),
            "its names are example.com, www.example.com, not 192.0.2.10, example.com, www",
        ),
        (csr((*NAMES, "more.example.com")), "its names are 192.0.2.10, example.com, more."),
        (csr(common_name="other.example.com"), "its common name is not www.example.com"),
        (csr(curve=ec.SECP384R1()), "its key is ECDSA-P384, not ECDSA-P256"),
        (b"junk", "the CSR that the appliance made cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_csr_that_is_not(pem: bytes, words: str) -> None:
    with pytest.raises(agent.AgentError) as caught:
        agent.check_csr(pem, profile())
    assert caught.value.kind == "mismatch"
    assert words in caught.value.message


def issued(days: int = 199, start: dt.datetime = NOW) -> tuple[str, bytes]:
    """Return a CSR and SCM's answer to it."""
    pem = csr()
    authority = Authority()
    request = x509.load_pem_x509_csr(pem)
    leaf = authority.issue(request, NAMES, start, days)
    return pem.decode(), authority.chain(leaf, ChainStyle(order="shuffled")).encode()


def test_leaf_and_chain_are_sorted_and_the_root_dropped() -> None:
    request, answer = issued()
    chain = agent.check_issued(answer, request, NAMES, NOW)
    assert [each.common_name for each in chain] == ["www.example.com", "CA DV E36", "Root E46"]


@pytest.mark.parametrize(
    ("moved", "valid"),
    [
        (dt.timedelta(days=-1), True),
        (dt.timedelta(days=-1, seconds=-1), False),
        (dt.timedelta(days=199, seconds=-2), True),
        (dt.timedelta(days=199), False),
    ],
)
def test_the_dates_to_the_second(moved: dt.timedelta, valid: bool) -> None:
    """A day's grace before, for clocks that differ; none after."""
    request, answer = issued()
    if valid:
        assert agent.check_issued(answer, request, NAMES, NOW + moved)
        return
    with pytest.raises(agent.AgentError, match="not now"):
        agent.check_issued(answer, request, NAMES, NOW + moved)


@pytest.mark.parametrize(
    ("held", "wanted", "covered"),
    [
        (["www.example.com"], ["www.example.com"], True),
        (["*.example.com"], ["www.example.com"], True),
        (["*.example.com"], ["example.com"], False),
        (["*.example.com"], ["a.b.example.com"], False),
        (["*.example.com"], ["*.example.com"], True),
        (["a.example.com", "b.example.com"], ["a.example.com"], True),
        (["192.0.2.10"], ["192.0.2.10"], True),
        ([], ["a.example.com"], False),
    ],
)
def test_which_names_serve_which(held: list[str], wanted: list[str], covered: bool) -> None:
    assert agent.covers(held, wanted) is covered


@pytest.mark.parametrize(
    ("text", "normal"),
    [("0A:3f", "A3F"), ("0x00ff", "FF"), ("00", "0"), ("a3f", "A3F")],
)
def test_serials_in_every_spelling(text: str, normal: str) -> None:
    assert agent.normal_serial(text) == normal


@given(st.integers(1, 2**160))
def test_a_serial_is_shown_in_whole_bytes(number: int) -> None:
    shown = agent.shown_serial(agent.normal_serial(f"{number:x}"))
    assert len(shown) % 2 == 0
    assert int(shown, 16) == number


@given(st.text("abc-_.#: @=é", min_size=1, max_size=80), st.integers(10, 31))
def test_names_of_files_fit_and_are_safe(name: str, limit: int) -> None:
    base = agent.file_base(name, limit)
    assert len(base) <= limit
    assert set(base) <= set("abcdef0123456789-_.")


@given(st.sets(st.text("ab# :", min_size=1, max_size=60), min_size=2, max_size=2))
def test_two_names_never_become_one(names: set[str]) -> None:
    one, two = names
    assert agent.file_base(one, 31) != agent.file_base(two, 31)
    assert agent.shorten(one) != agent.shorten(two)


def signed(
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    *,
    leaf: bool = False,
) -> x509.Certificate:
    """Return a certificate that is made by hand."""
    builder = x509.CertificateBuilder(
        issuer, subject, public_key, x509.random_serial_number(), NOW, NOW + 100 * DAY
    ).add_extension(x509.BasicConstraints(ca=not leaf, path_length=None), critical=True)
    if leaf:
        alternatives = x509.SubjectAlternativeName(list(map(general, NAMES)))
        builder = builder.add_extension(alternatives, critical=True)
    return builder.sign(key, hashes.SHA256())


def grown(length: int, *, leaf_is_authority: bool = False) -> tuple[str, bytes]:
    """Return a CSR and an answer whose leaf has so many intermediates above it, and no root."""
    request = csr()
    wanted = x509.load_pem_x509_csr(request).public_key()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(length + 1)]
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {n}")]) for n in range(length + 2)
    ]
    made = []
    for number in range(length + 1):
        subject = names[number - 1] if number else x509.Name([])
        key = keys[number - 1].public_key() if number else wanted
        is_authority = bool(number) or leaf_is_authority
        made.append(signed(names[number], keys[number], subject, key, leaf=not is_authority))
    return request.decode(), b"".join(
        each.public_bytes(serialization.Encoding.PEM) for each in made
    )


def test_a_chain_may_have_six_intermediates_and_no_more() -> None:
    request, answer = grown(6)
    assert len(agent.check_issued(answer, request, NAMES, NOW)) == 7
    request, answer = grown(7)
    with pytest.raises(agent.AgentError, match="more than 6 intermediates") as caught:
        agent.check_issued(answer, request, NAMES, NOW)
    assert caught.value.kind == "mismatch"


def test_what_else_is_in_an_answer_makes_no_chain() -> None:
    """Hundreds of strangers, the same ones again, a leaf above itself, issuers in a circle."""
    request, answer = grown(2)
    chain = agent.check_issued(answer, request, NAMES, NOW)
    others = [grown(1)[1] for _ in range(20)]
    assert agent.check_issued(b"".join(others) * 20 + answer, request, NAMES, NOW) == chain
    assert agent.check_issued(answer * 50, request, NAMES, NOW) == chain
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Circle {n}")]) for n in range(2)]
    wanted = x509.load_pem_x509_csr(request.encode()).public_key()
    circle = [(0, names[0], keys[0].public_key()), (1, names[1], keys[1].public_key())]
    made = [signed(names[1 - n], keys[1 - n], subject, key) for n, subject, key in circle]
    made.append(signed(names[0], keys[0], x509.Name([]), wanted, leaf=True))
    answer = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in made)
    assert len(agent.check_issued(answer, request, NAMES, NOW)) <= 3


def test_a_leaf_that_may_sign_others_is_refused() -> None:
    request, answer = grown(1, leaf_is_authority=True)
    with pytest.raises(agent.AgentError, match="that of a certificate authority") as caught:
        agent.check_issued(answer, request, NAMES, NOW)
    assert caught.value.kind == "mismatch"
