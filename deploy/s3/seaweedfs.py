"""SeaweedFS's configuration: `s3.json` of its users, and `notification.toml` of its events."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cra.shared.settings import Settings
from deploy.s3.policies import grants

ADMIN: Final = "admin"
"""The user who may do everything."""

_ACTIONS: Final = {
    "s3:GetObject": "Read",
    "s3:ListBucket": "List",
    "s3:PutObject": "Write",
    "s3:DeleteObject": "Write",
}
"""SeaweedFS's words for what the policies allow."""


def configure(
    folder: Path, settings: Settings, users: Mapping[str, tuple[str, str]], events: str
) -> None:
    """Write both files, which only their owner can read.

    Args:
        folder: where; it is there.
        settings: buckets, and the token of events.
        users: access and secret key by role, one of them ADMIN.
        events: URL of the receiver of events.
    """
    identities = [
        {
            "name": role,
            "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
            "actions": ["Admin"] if role == ADMIN else _actions(role, settings),
        }
        for role, (access_key, secret_key) in users.items()
    ]
    write(folder / "s3.json", json.dumps({"identities": identities}, indent=1))
    prefixes = [f"/buckets/{bucket}/" for bucket in settings.buckets]
    write(
        folder / "notification.toml",
        "[notification.webhook]\n"
        "enabled = true\n"
        f"endpoint = {json.dumps(events)}\n"
        f"bearer_token = {json.dumps(settings.event_token.get_secret_value())}\n"
        'event_types = ["create", "update", "delete", "rename"]\n'
        # As many as it takes; 4.48 was all the same seen trying none again, so that the local stack
        # holds the receiver's socket for it.
        "max_retries = 10\n"
        f"path_prefixes = {json.dumps(prefixes)}\n",
    )


def _actions(role: str, settings: Settings) -> list[str]:
    """Return a policy as SeaweedFS says it: `Read:BUCKET` and so on."""
    return sorted({f"{_ACTIONS[action]}:{bucket}" for action, bucket in grants(role, settings)})


def write(file: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    file.touch(mode=0o600)
    file.write_text(text)
