"""Checks of `cra doctor` that need no other part: settings, secrets, certificates, disk, clock."""

import datetime
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import urllib3
from cryptography import x509

from cra.services.cli.findings import Facts, Finding, State, is_local
from cra.shared import rpc
from cra.shared.settings import Settings

SOON: Final = datetime.timedelta(days=14)
"""A certificate that ends within this is told of."""
WRONG_CLOCK: Final = 300.0
"""Seconds. S3 refuses requests whose time is off by 15 minutes."""
ODD_CLOCK: Final = 5.0
"""Seconds."""
LEAST_DISK: Final = 10**9
"""Bytes free, below which the disk is as good as full."""
LITTLE_DISK: Final = 10**10
"""Bytes free, below which it is told of."""
BEATS: Final = 20.0
"""Seconds within which a worker and beat touch their files."""
WITHIN: Final = 5.0
"""Seconds for one connection."""


def secrets(settings: Settings, _facts: Facts) -> Iterator[Finding]:
    """Credentials that are missing, and what goes over a network unprotected."""
    part = "secrets"
    if not (settings.s3_access_key and settings.s3_secret_key.get_secret_value()):
        yield Finding(
            part,
            State.WRONG,
            "CRA_S3_ACCESS_KEY or CRA_S3_SECRET_KEY is empty: the object store will deny",
            "set CRA_ENV_FILE to the file with the credentials; the local stack's is "
            ".data/run/stack.env",
        )
    if not settings.service_token.get_secret_value():
        yield Finding(
            part,
            State.WARNING,
            "CRA_SERVICE_TOKEN is empty: calls that need it are refused, or nobody asks for it",
            "set the services' own, the same on all of them",
        )
    targets = {
        "CRA_GATEWAY_TARGET": settings.gateway_target,
        "CRA_EMBEDDING_TARGET": settings.embedding_target,
        "CRA_OTHER_EMBEDDING_TARGET": settings.other_embedding_target,
        "CRA_INGEST_TARGET": settings.ingest_target,
    }
    afar = [name for name, target in targets.items() if target and not is_local(target)]
    if afar and settings.client_tls is None:
        yield Finding(
            part,
            State.WARNING,
            f"{', '.join(afar)} {'is' if len(afar) == 1 else 'are'} not on this machine, and calls "
            "go there in plaintext, tokens included",
            "set CRA_TLS_CA here and CRA_TLS_CERT and CRA_TLS_KEY there: SECURITY.md",
        )
    if not is_local(settings.s3_endpoint) and not settings.s3_secure:
        yield Finding(
            part,
            State.WARNING,
            "the object store is not on this machine and is spoken to in plaintext",
            "set CRA_S3_SECURE=true once it speaks TLS",
        )
    yield Finding(part, State.OK, "what is set was looked at")


def certificates(settings: Settings, _facts: Facts) -> Iterator[Finding]:
    """When the certificates of the settings end, and those that the servers show."""
    part = "certificates"
    named = {
        f"CRA_{name.upper()}": getattr(settings, name)
        for name in ("tls_cert", "tls_client_ca", "tls_ca", "tls_client_cert")
    }
    files = {name: file for name, file in named.items() if file}
    if not files:
        yield Finding(part, State.SKIPPED, "no certificate is set: gRPC is plaintext")
        return
    for name, file in files.items():
        try:
            ends = min(
                one.not_valid_after_utc
                for one in x509.load_pem_x509_certificates(Path(file).read_bytes())
            )
        except (ValueError, OSError) as error:
            yield Finding(
                part, State.WRONG, f"{name}: {file}: {error}", "put a PEM certificate there"
            )
            continue
        yield _expiry(part, f"{name} ({file})", ends)
    if settings.tls_ca:
        for name, target in {
            "gateway": settings.gateway_target,
            "embedding": settings.embedding_target,
            "the other embedding": settings.other_embedding_target,
            "ingest": settings.ingest_target,
        }.items():
            if target:
                yield _served(part, name, target, settings)


def _expiry(part: str, what: str, ends: datetime.datetime) -> Finding:
    left = ends - datetime.datetime.now(datetime.UTC)
    mend = "renew it and replace the file: SECURITY.md, Certificates"
    day = f"{ends:%Y-%m-%d %H:%M} UTC"
    if left < datetime.timedelta():
        return Finding(part, State.WRONG, f"{what} has expired on {day}", mend)
    if left < SOON:
        return Finding(part, State.WARNING, f"{what} ends on {day}", mend)
    return Finding(part, State.OK, f"{what} is good until {day}")


def _served(part: str, name: str, target: str, settings: Settings) -> Finding:
    """Shake hands with a server as its clients do."""
    host, _, port = rpc.authority_of(target).rpartition(":")
    if not port.isdigit():
        return Finding(part, State.SKIPPED, f"{name}: {target} names no host")
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        context.set_alpn_protocols(["h2"])
        if settings.tls_client_cert:
            context.load_cert_chain(settings.tls_client_cert, settings.tls_client_key)
        with (
            socket.create_connection((host, int(port)), WITHIN) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        return Finding(
            part,
            State.WRONG,
            f"what {name} at {host}:{port} shows is not accepted: {error.verify_message}",
            "its CRA_TLS_CERT has to be in force, name that host and come from CRA_TLS_CA",
        )
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        return Finding(
            part,
            State.WRONG,
            f"no TLS with {name} at {host}:{port}: {error}",
            "start it, or give it CRA_TLS_CERT and CRA_TLS_KEY",
        )
    if shown is None:
        return Finding(part, State.WRONG, f"{name} shows no certificate", "set its CRA_TLS_CERT")
    ends = x509.load_der_x509_certificate(shown).not_valid_after_utc
    return _expiry(part, f"what {name} at {host}:{port} shows", ends)


def disk(
    settings: Settings,
    folders: list[Path],
    least: int = LEAST_DISK,
    little: int = LITTLE_DISK,
) -> Iterator[Finding]:
    """Room on the disks of these folders and of the converted models.

    Args:
        settings: name the folder of converted models.
        folders: of the local stack's data, where there is one.
        least: bytes free below which something is wrong.
        little: bytes free below which there is a warning.
    """
    converted = settings.converted_models or "~/.cache/cra/converted"
    seen = set()
    for folder in [*folders, Path(converted).expanduser()]:
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        if there.stat().st_dev in seen:
            continue
        seen.add(there.stat().st_dev)
        usage = shutil.disk_usage(there)
        said = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} are free below {there}"
        mend = "make room: stores stop writing on a full disk, and what is written may be torn"
        if usage.free < least:
            yield Finding("disk", State.WRONG, said, mend)
        elif usage.free < little:
            yield Finding("disk", State.WARNING, said, mend)
        else:
            yield Finding("disk", State.OK, said)


def clock(settings: Settings, _facts: Facts) -> Iterator[Finding]:
    """How far this machine's clock is from the object store's."""
    scheme = "https" if settings.s3_secure else "http"
    http = urllib3.PoolManager(timeout=WITHIN, retries=False)
    try:
        answer = http.request("GET", f"{scheme}://{settings.s3_endpoint}/")
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except urllib3.exceptions.HTTPError:
        yield Finding("clock", State.SKIPPED, "the object store, whose clock counts, is silent")
        return
    except (KeyError, ValueError):
        yield Finding("clock", State.SKIPPED, "the object store does not say what time it is")
        return
    off = time.time() - theirs
    said = f"this clock and the object store's are {abs(off):.0f} s apart"
    mend = "set both by NTP: signatures, signed URLs and certificates go by the time"
    if abs(off) > WRONG_CLOCK:
        yield Finding("clock", State.WRONG, said, mend)
    elif abs(off) > ODD_CLOCK:
        yield Finding("clock", State.WARNING, said, mend)
    else:
        yield Finding("clock", State.OK, said)


def workers(settings: Settings, _facts: Facts) -> Iterator[Finding]:
    """Whether the worker and beat of this machine touch their files."""
    folder = Path(settings.heartbeat_folder) if settings.heartbeat_folder else None
    if folder is None or not folder.is_dir():
        yield Finding("workers", State.SKIPPED, "they are not on this machine, or touch no file")
        return
    for name in ("worker", "beat"):
        file = folder / name
        if not file.exists():
            yield Finding(
                "workers", State.WRONG, f"{file} is not there: {name} never ran", f"start {name}"
            )
            continue
        age = time.time() - file.stat().st_mtime
        if age > BEATS:
            yield Finding(
                "workers",
                State.WRONG,
                f"{name} has not worked for {age:.0f} s",
                f"look at its log and start {name} again",
            )
        else:
            yield Finding("workers", State.OK, f"{name} works")
