"""Certificates for tests, made on the fly by an authority of their own."""

import datetime
from pathlib import Path

import trustme

YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


class Authority:
    """Issues certificates into files of a folder.

    Attributes:
        ca: file of its own certificate.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self._name = name
        self.ca = str(folder / f"{name}.pem")
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(
        self,
        name: str,
        *hosts: str,
        expired: bool = False,
        into: str = "",
        ends: datetime.datetime | None = None,
    ) -> tuple[str, str]:
        """Return the files of a new certificate and its key.

        Args:
            name: of the files.
            hosts: that the certificate names; 127.0.0.1 if there is none.
            expired: since yesterday.
            into: a name whose files are to be replaced.
            ends: when; trustme's own choice if None.
        """
        found = self._ca.issue_cert(
            *(hosts or ("127.0.0.1",)), not_after=YESTERDAY if expired else ends
        )
        files = [self._folder / f"{into or f'{self._name}-{name}'}.{end}" for end in ("crt", "key")]
        # In one step each, as who renews a certificate would.
        for file, pem in zip(
            files,
            (b"".join(one.bytes() for one in found.cert_chain_pems), found.private_key_pem.bytes()),
            strict=True,
        ):
            new = file.with_suffix(".new")
            new.write_bytes(pem)
            new.replace(file)
        return str(files[0]), str(files[1])

    def server(self, *hosts: str, mutual: bool = True, expired: bool = False) -> dict[str, str]:
        """Return settings of a server; it asks for certificates of this authority if `mutual`."""
        cert, key = self.issue("server", *hosts, expired=expired)
        return {"tls_cert": cert, "tls_key": key, "tls_client_ca": self.ca if mutual else ""}

    def client(self, *, expired: bool = False) -> dict[str, str]:
        """Return settings of a client that trusts this authority and has its certificate."""
        cert, key = self.issue("client", "client.test", expired=expired)
        return {"tls_ca": self.ca, "tls_client_cert": cert, "tls_client_key": key}
