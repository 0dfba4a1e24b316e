"""The stack that end-to-end tests share."""

import secrets
from collections.abc import Iterator

import pytest

from cra.shared.api_keys import ApiKey, change_keys, digest_of, new_key
from tests.certificates import Authority
from tests.checkpoints import make_checkpoint
from tests.stack import Stack, local_stack

SECRETS = ("SERVICE_TOKEN", "EVENT_TOKEN", "PAGE_KEY", "WEB_KEY", "S3_SECRET_KEY")


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole local stack, on Milvus Lite, free ports and a small random model.

    Its services know each other by mutual TLS, the gateway asks for an API key, every secret is
    one that occurs nowhere else, the logs say all they can, and all is traced. Leases are short,
    so that what a killed worker held is soon back in line.
    """
    folder = tmp_path_factory.mktemp("stack")
    authority, key = Authority(folder), new_key()
    keys = folder / "keys.json"
    change_keys(keys, lambda _: [ApiKey(name="tests", sha256=digest_of(key))])
    changes = {
        "LOG_LEVEL": "DEBUG",
        "LEASE_SECONDS": "5",
        "RECONCILE_SECONDS": "10",
        "TRACE_FILE": str(folder / "traces.jsonl"),
        "API_KEYS_FILE": str(keys),
        "API_KEY": key,
        **{name: f"hush-{secrets.token_hex(8)}" for name in SECRETS},
        **{
            name.upper(): file
            for name, file in {**authority.server(), **authority.client()}.items()
        },
    }
    model = make_checkpoint(folder / "model")
    with local_stack(folder / "data", model, "lite", **changes) as stack:
        yield stack
