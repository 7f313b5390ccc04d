"""Certificates: self-signed ones for those without an authority, and the TLS of a server that asks for them."""

import hashlib
import ipaddress
import os
import ssl
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dpcomp.core.checks import whole_number


def make_certificate(
    certificate: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    name: str,
    hosts: Sequence[str] = (),
    days: int = 365,
) -> None:
    """Make a private key (NIST P-256) and a self-signed certificate, which those trust that are given it.

    Each end makes its own and gives the certificate to the other end; the key stays where it was made. A federation
    that has a certificate authority needs none of this.

    Args:
        certificate: The PEM file of the certificate; it may be shown to anybody.
        key: The PEM file of the key, which only its owner can read.
        name: What the certificate is called, such as `"client 7"`.
        hosts: The host names and addresses of a server; none for a client.
        days: How long the certificate is valid.

    Raises:
        OSError: A file is there already, or cannot be written.
        TypeError, ValueError: `days` is no number from 1 on.
    """
    days = whole_number(days, "make_certificate(days)", least=1)
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(subject, subject, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(private.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(_names(hosts))), critical=False)
    signed = builder.sign(private, hashes.SHA256())
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, content, mode in (
        (key, secret, 0o600),
        (certificate, signed.public_bytes(serialization.Encoding.PEM), 0o644),
    ):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def fingerprint(certificate: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the first certificate of a PEM file (of its DER form), in hexadecimal.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no certificate.
    """
    loaded = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    return hashlib.sha256(loaded.public_bytes(serialization.Encoding.DER)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Says how a server shows who it is, and which certificates of clients it verifies. TLS is of version 1.3.

    Args:
        certificate: The PEM file of the server's certificate, with those between it and its authority.
        key: The PEM file of its private key.
        clients: PEM files of the authorities that have signed the clients' certificates, or of these certificates
            themselves if they are self-signed. None are asked for if there are none.
    """

    certificate: str | os.PathLike[str]
    key: str | os.PathLike[str]
    clients: Collection[str | os.PathLike[str]] = ()

    def context(self) -> ssl.SSLContext:
        """Return the context of the server's connections.

        Raises:
            OSError: A file cannot be read, holds no certificate or key, or key and certificate are of two pairs.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        if self.clients:
            # Who shows no certificate gets the same answer as who shows an unknown token, instead of a broken line.
            context.verify_mode = ssl.CERT_OPTIONAL
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
            for path in self.clients:
                context.load_verify_locations(path)
        return context


def _names(hosts: Iterable[str]) -> Iterable[x509.GeneralName]:
    for host in hosts:
        try:
            yield x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            yield x509.DNSName(host)
