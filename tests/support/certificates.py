"""Makes an authority, a server's certificate for two names and clients' certificates in the folder that is named first.

    certificates.py FOLDER SERVER_NAME CLIENT ...

Files: ca.pem, server.pem, server.key, and CLIENT.pem, CLIENT.key for each client.
"""

import datetime
import pathlib
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

folder, server, *clients = pathlib.Path(sys.argv[1]), *sys.argv[2:]
now = datetime.datetime.now(datetime.timezone.utc)


def named(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(name, key, issuer, signer, extensions):
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write(name, text):
    path = folder / name
    path.touch(mode=0o600)
    path.write_bytes(text)


def pem(key):
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


authority = ec.generate_private_key(ec.SECP256R1())
root = [(x509.BasicConstraints(ca=True, path_length=None), True)]
write("ca.pem", certificate("authority", authority, "authority", authority, root))
for name, file, usage in [
    (server, "server", ExtendedKeyUsageOID.SERVER_AUTH),
    *[(client, client, ExtendedKeyUsageOID.CLIENT_AUTH) for client in clients],
]:
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([usage]), False),
        (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
    ]
    write(f"{file}.pem", certificate(name, key, "authority", authority, extensions))
    write(f"{file}.key", pem(key))
