"""TLS of every gRPC hop: certificates from files, checked at the start.

A server reads its files again when they change, so a certificate is renewed by replacing them.
"""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from cra.shared.errors import FailedPreconditionError


@dataclass(frozen=True)
class ClientTls:
    """The PEM files of a client.

    Attributes:
        ca: authorities one of which the server's certificate must come from.
        cert: the client's own certificate and its chain, for servers that ask for one, or empty.
        key: its private key, or empty.
    """

    ca: str
    cert: str = ""
    key: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            FailedPreconditionError: one cannot be read or does not hold what it should.
        """
        ca = _read_authorities(self.ca)
        if not self.cert:
            return grpc.ssl_channel_credentials(ca)
        chain, key = _read_pair(self.cert, self.key)
        return grpc.ssl_channel_credentials(ca, key, chain)


@dataclass(frozen=True)
class ServerTls:
    """The PEM files of a server.

    Attributes:
        cert: its certificate and chain.
        key: its private key.
        client_ca: authorities one of which a client's certificate must come from (mutual TLS);
            empty: clients need none.
    """

    cert: str
    key: str
    client_ca: str = ""

    def credentials(self, complain: Callable[[str], None]) -> grpc.ServerCredentials:
        """Read the files, and again before a handshake if they have changed.

        Args:
            complain: is told what is wrong with changed files; until they are mended, the last
                good ones serve.

        Raises:
            FailedPreconditionError: one cannot be read or does not hold what it should.
        """
        tried = self._stamp()
        first = self._configuration()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal tried
            stamp = self._stamp()
            if stamp == tried:
                return None
            tried = stamp
            try:
                return self._configuration()
            except FailedPreconditionError as error:
                complain(error.message)
                return None

        return grpc.dynamic_ssl_server_credentials(
            first,
            renewed,  # type: ignore[arg-type]  # the stubs leave out that None means no change
            require_client_authentication=bool(self.client_ca),
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        chain, key = _read_pair(self.cert, self.key)
        ca = _read_authorities(self.client_ca) if self.client_ca else None
        return grpc.ssl_server_certificate_configuration([(key, chain)], ca)

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        return [file_stamp(file) for file in (self.cert, self.key, self.client_ca) if file]


def file_stamp(file: str | Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is replaced or written; None while it is not there."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read_pair(cert: str, key: str) -> tuple[bytes, bytes]:
    """Return the contents of a certificate's file and of its key's."""
    contents = _read(cert), _read(key)
    try:
        # gRPC would find out at the first connection, and tell nobody. No password: no prompt.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise FailedPreconditionError(
            f"{cert} and {key} are no PEM certificate and its unencrypted key: {_reason(error)}"
        ) from error
    return contents


def _read_authorities(ca: str) -> bytes:
    content = _read(ca)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        raise FailedPreconditionError(
            f"{ca} holds no PEM certificate of an authority: {_reason(error)}"
        ) from error
    return content


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{file} cannot be read: {error.strerror}") from error


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)
