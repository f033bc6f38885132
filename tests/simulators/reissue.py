"""Certificates of authorities whose end is near, as they stand on appliances for years."""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from simulators.ca import Signer


def reissued(signer: Signer, not_after: dt.datetime) -> x509.Certificate:
    """Return another certificate of an authority, for the same name and key, with this end."""
    old, issuer = signer.certificate, signer.issuer or signer
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(not_after.replace(microsecond=0))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(issuer.key, hashes.SHA256())
