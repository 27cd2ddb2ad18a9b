"""Sessions, words and time of clients; the clients' own tests have the rest."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from time import monotonic, sleep

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import ConfigError, InputError, MissingError
from nightbeam.core.http import (
    Cutter,
    TransientError,
    content_length,
    is_loopback,
    open_session,
    printable,
    read_body,
    reason,
    service_address,
    transport_errors,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b; Path=/\r\n\r\nok"


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            with connection, suppress(OSError):
                serve(connection)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def get(url: str, *, seconds: float = 5, verify: str | bool = True) -> bytes:
    with (
        transport_errors("the place"),
        Cutter(seconds),
        open_session(url) as session,
        session.get(url, stream=True, timeout=5, verify=verify, auth=lambda r: r) as response,
    ):
        return bytes(read_body(response, "the place", most_bytes=100))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_that_nobody_vouches_for_is_a_matter_of_settings(certificate: Path, tls: ssl.SSLContext):
    def serve(connection: socket.socket) -> None:
        with tls.wrap_socket(connection, server_side=True) as secure:
            secure.recv(65536)
            secure.sendall(OK)
            secure.recv(1)

    with server(serve) as port:
        with pytest.raises(ConfigError, match="cannot prove who it is") as caught:
            get(f"https://127.0.0.1:{port}/")
        assert "REQUESTS_CA_BUNDLE" in caught.value.fix
        assert get(f"https://127.0.0.1:{port}/", verify=str(certificate)) == b"ok"


def test_an_answer_that_trickles_through_tls_is_cut_off(certificate: Path, tls: ssl.SSLContext):
    def serve(connection: socket.socket) -> None:
        with tls.wrap_socket(connection, server_side=True) as secure:
            secure.recv(65536)
            for byte in OK * 100:
                secure.sendall(bytes((byte,)))
                sleep(0.05)

    begin = monotonic()
    with server(serve) as port, pytest.raises(TransientError, match="deadline"):
        get(f"https://127.0.0.1:{port}/", seconds=0.5, verify=str(certificate))
    assert monotonic() - begin < 60  # all of it takes longer


def test_a_handshake_that_trickles_is_cut_off():
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        for byte in b"\x16\x03\x03\x40\x00" + bytes(4000):
            connection.sendall(bytes((byte,)))
            sleep(0.05)

    begin = monotonic()
    with server(serve) as port, pytest.raises(TransientError, match="deadline"):
        get(f"https://127.0.0.1:{port}/", seconds=0.4)
    assert monotonic() - begin < 60  # all of it takes longer


def test_no_cookie_is_kept():
    asked = []

    def serve(connection: socket.socket) -> None:
        while text := connection.recv(65536):
            asked.append(text)
            connection.sendall(OK)

    with server(serve) as port, open_session(f"http://127.0.0.1:{port}") as session:
        for _ in range(2):
            session.get(f"http://127.0.0.1:{port}/", timeout=5)
        assert len(session.cookies) == 0
    assert len(asked) == 2
    assert b"Cookie" not in asked[1]


def test_a_cut_takes_nothing_that_is_not_its_own():
    with pytest.raises(TransientError), Cutter(0.01):
        sleep(0.1)
    with pytest.raises(KeyboardInterrupt), Cutter(0.01):  # noqa: PT012
        sleep(0.1)
        raise KeyboardInterrupt
    with pytest.raises(MissingError), Cutter(60):
        raise MissingError("gone")
    for words, kind in (
        (OSError("x"), TransientError),
        (ValueError("x"), InputError),
        (MissingError("x"), MissingError),
    ):
        with pytest.raises(kind), transport_errors("the place"):
            raise words


@given(st.text() | st.binary(), st.integers(5, 300))
def test_whatever_somebody_said_can_be_shown(said: str | bytes, most: int):
    shown = printable(said, most)
    assert shown.isprintable()
    assert len(shown) <= most


def test_what_is_shown_is_what_was_said():
    assert printable("<h1>Forbidden</h1>") == "Forbidden"
    assert printable("a\x1b[2J\nb\ud83d 1 < 2") == r"a\x1b[2J b\ud83d 1 < 2"
    assert printable("x" * 300, 10) == "x" * 9 + "…"
    error = requests.ConnectionError(OSError("inner"))
    assert reason(error) == "OSError: inner"


@pytest.mark.parametrize(
    ("text", "length"), [("5", 5), ("", None), ("-1", None), ("٣", None), ("9" * 5000, 10**18 - 1)]
)
def test_a_length_is_a_number(text: str, length: int | None):
    response = requests.Response()
    response.headers["Content-Length"] = text
    assert content_length(response) == length


def test_addresses():
    assert service_address(" https://host:8443/site/ ") == "https://host:8443/site"
    assert is_loopback("http://localhost:80")
    assert is_loopback("http://[::1]")
    assert not is_loopback("http://localhost.example.org")
    with pytest.raises(ConfigError) as caught:
        service_address("https://me:s3cret@host")
    assert "s3cret" not in str(caught.value)
