"""Certificates that are out of order: what old private CAs, other tools and accidents leave behind.

Each is made of a genuine certificate by changing its DER, so its signature does not fit any more.

    ODD["negative serial"](certificate)  # DER
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

BOOLEAN, INTEGER, BITS, OCTETS, OID, UTC_TIME, TIME = 0x01, 0x02, 0x03, 0x04, 0x06, 0x17, 0x18
SEQUENCE, VERSION, EXTENSIONS = 0x30, 0xA0, 0xA3

Part = tuple[int, bytes]
"""A tag, and what stands under it."""


def tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def parts(content: bytes) -> Iterator[Part]:
    """Take apart what stands in a sequence."""
    while content:
        tag, size, start = content[0], content[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(content[2:start], "big")
        yield tag, content[start : start + size]
        content = content[start + size :]


def joined(items: Sequence[Part]) -> bytes:
    return b"".join(tlv(*item) for item in items)


# The places in a certificate's signed part
VERSION_AT, SERIAL_AT, VALIDITY_AT, SUBJECT_AT, KEY_AT = 0, 1, 4, 5, 6


def changed(certificate: x509.Certificate, change: Callable[[list[Part]], None]) -> bytes:
    """Return a certificate whose signed part was changed."""
    ((_, whole),) = parts(certificate.public_bytes(Encoding.DER))
    signed, *rest = parts(whole)
    fields = list(parts(signed[1]))
    change(fields)
    return tlv(SEQUENCE, joined([(SEQUENCE, joined(fields)), *rest]))


def field(place: int, tag: int, content: bytes) -> Callable[[x509.Certificate], bytes]:
    def change(fields: list[Part]) -> None:
        fields[place] = (tag, content)

    return lambda certificate: changed(certificate, change)


def extension(oid: bytes, value: bytes) -> bytes:
    return tlv(SEQUENCE, tlv(OID, oid) + tlv(OCTETS, value))


def extensions(edit: Callable[[bytes], bytes]) -> Callable[[x509.Certificate], bytes]:
    """Change the list of extensions."""

    def change(fields: list[Part]) -> None:
        ((_, listed),) = parts(fields[-1][1])
        fields[-1] = (EXTENSIONS, tlv(SEQUENCE, edit(listed)))

    return lambda certificate: changed(certificate, change)


def key(algorithm: bytes, parameters: bytes = b"", bits: bytes = b"\0" * 66) -> bytes:
    identifier = tlv(SEQUENCE, tlv(OID, algorithm) + parameters)
    return identifier + tlv(BITS, b"\0" + bits)


def names(*general: bytes) -> bytes:
    """Return the extension of alternative names."""
    return extension(ALTERNATIVE_NAMES, tlv(SEQUENCE, b"".join(general)))


def instead_of_names(*general: bytes) -> Callable[[x509.Certificate], bytes]:
    def edit(listed: bytes) -> bytes:
        kept = [item for item in parts(listed) if ALTERNATIVE_NAMES not in item[1][:8]]
        return joined(kept) + names(*general)

    return extensions(edit)


ALTERNATIVE_NAMES, POLICIES = bytes.fromhex("551d11"), bytes.fromhex("551d20")
EC_KEY = bytes.fromhex("2a8648ce3d0201")
SM2 = tlv(OID, bytes.fromhex("2a811ccf5501822d"))
BRAINPOOL_T = tlv(OID, bytes.fromhex("2b2403030208010108"))
ML_DSA = bytes.fromhex("608648016503040312")

ODD: dict[str, Callable[[x509.Certificate], bytes]] = {
    "unknown kind of key": field(KEY_AT, SEQUENCE, key(ML_DSA)),
    "unknown curve": field(KEY_AT, SEQUENCE, key(EC_KEY, SM2)),
    "another unknown curve": field(KEY_AT, SEQUENCE, key(EC_KEY, BRAINPOOL_T)),
    "broken key": field(KEY_AT, SEQUENCE, key(EC_KEY, bits=b"")),
    "negative serial": field(SERIAL_AT, INTEGER, b"\x81\x02\x03"),
    "serial zero": field(SERIAL_AT, INTEGER, b"\0"),
    "huge serial": field(SERIAL_AT, INTEGER, b"\x11" * 40_000),
    "version five": field(VERSION_AT, VERSION, tlv(INTEGER, b"\x04")),
    "extension twice": extensions(lambda listed: listed * 2),
    "broken extension": extensions(lambda listed: listed + extension(POLICIES, b"\x30\x01")),
    "broken names": instead_of_names(b"\x82\x05ab"),
    "names of an unknown kind": instead_of_names(tlv(0x8C, b"a"), tlv(0x82, b"a.example")),
    "a name that is no text": instead_of_names(tlv(0x82, b"\xff\xfe.example")),
    "an address of three bytes": instead_of_names(tlv(0x87, b"\x01\x02\x03")),
    "ten thousand names": instead_of_names(*[tlv(0x82, b"%d.example" % i) for i in range(10_000)]),
    "a date that is none": field(
        VALIDITY_AT, SEQUENCE, tlv(UTC_TIME, b"990230000000Z") + tlv(UTC_TIME, b"991332000000Z")
    ),
    "a date with a zone": field(
        VALIDITY_AT,
        SEQUENCE,
        tlv(UTC_TIME, b"260101000000+0100") + tlv(TIME, b"20270101000000+0100"),
    ),
    "the year zero": field(
        VALIDITY_AT, SEQUENCE, tlv(TIME, b"00000101000000Z") + tlv(TIME, b"99991231235959Z")
    ),
    "an empty subject": field(SUBJECT_AT, SEQUENCE, b""),
    "a subject that is no text": field(
        SUBJECT_AT,
        SEQUENCE,
        tlv(0x31, tlv(SEQUENCE, tlv(OID, bytes.fromhex("550403")) + tlv(0x0C, b"\xff\xfe"))),
    ),
    "a common name of bits": field(
        SUBJECT_AT,
        SEQUENCE,
        tlv(0x31, tlv(SEQUENCE, tlv(OID, bytes.fromhex("550403")) + tlv(BITS, b"\0\x01"))),
    ),
}


def odd_pem(kind: str, certificate: x509.Certificate) -> str:
    """Return an odd certificate in PEM."""
    text = base64.encodebytes(ODD[kind](certificate)).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"
