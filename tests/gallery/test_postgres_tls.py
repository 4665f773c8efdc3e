"""Encrypted connections: the server's certificate is checked as the gallery's URL says, before any password.

The test servers are built without TLS, so what takes it off for them is between.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, person_vectors, templates
from postgres_helpers import OWNER, PASSWORD, PostgresServer

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery

_ASKS_FOR_TLS = bytes.fromhex("0000000804d2162f")
"""PostgreSQL's SSLRequest, the first message of a client that wants TLS; `S` grants it."""
_HOST = "127.0.0.1"


def make_certificate(folder: Path) -> Path:
    """Make a self-signed certificate of `_HOST` and its key, in one file each; returns the certificate's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test server")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(_HOST))]), False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "certificate.pem"


@dataclass
class Terminator:
    """Takes TLS off connections to a server.

    Attributes:
        port: That it listens on.
        handshakes: How many connections were encrypted.
        plain: How many clients spoke without asking for it, and were refused.
    """

    port: int
    handshakes: int = 0
    plain: int = 0


@contextmanager
def tls_in_front_of(server: PostgresServer, certificate: Path) -> Iterator[Terminator]:
    """Listen for clients with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server((_HOST, 0)))
        terminator = Terminator(listener.getsockname()[1])

        def serve(client: socket.socket) -> None:
            with client, suppress(OSError):
                if client.recv(8, socket.MSG_WAITALL) != _ASKS_FOR_TLS:
                    terminator.plain += 1
                    return
                client.sendall(b"S")
                with (
                    context.wrap_socket(client, server_side=True) as encrypted,
                    socket.create_connection((_HOST, server.port)) as behind,
                ):
                    terminator.handshakes += 1
                    answers = threading.Thread(target=_relay, args=(behind, encrypted), daemon=True)
                    answers.start()
                    _relay(encrypted, behind)
                    answers.join()

        def accept() -> None:
            with suppress(OSError):  # The listener was shut down.
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        yield terminator
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography", reason="needs the [encryption] extra")
    return make_certificate(tmp_path / "server")


def test_a_gallery_is_used_over_tls_whose_certificate_is_checked(
    postgres_server: PostgresServer, postgres_url: str, certificate: Path, tmp_path: Path
) -> None:
    database = postgres_url.partition("?")[0].rpartition("/")[2]
    with tls_in_front_of(postgres_server, certificate) as terminator:

        def url(host: str, root: Path) -> str:
            plain = postgres_server.url(database, OWNER, password=PASSWORD)
            here = plain.replace(f"{_HOST}:{postgres_server.port}", f"{host}:{terminator.port}")
            return f"{here}?sslmode=verify-full&sslrootcert={root}"

        with Gallery.open(url(_HOST, certificate), ENCODER, create=True) as gallery:
            gallery.add("Ada", templates(person_vectors(1, 2)))
            for _ in range(2):  # From the second answer on it listens, on a connection of its own.
                assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
        assert terminator.handshakes >= 1

        before = terminator.handshakes
        other = make_certificate(tmp_path / "other")
        for refused, why in [
            (url(_HOST, other), "certificate verify failed"),
            (url("localhost", certificate), "localhost"),
            (url(_HOST, tmp_path / "missing.pem"), "missing.pem"),
        ]:
            with pytest.raises(GalleryError, match=why) as caught:
                Gallery.open(refused)
            assert "\n" not in str(caught.value)
            assert PASSWORD not in str(caught.value)
        assert terminator.plain == 0
        assert before <= terminator.handshakes <= before + 2  # Refused by the client, after the handshake.
