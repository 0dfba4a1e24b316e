"""What each user of the object store may do: `deploy/s3/ROLE.json`, in S3's words."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cra.shared.settings import Settings

POLICIES: Final = Path(__file__).parent
ROLES: Final = tuple(sorted(file.stem for file in POLICIES.glob("*.json")))

_ARN: Final = "arn:aws:s3:::"


def policy(role: str, settings: Settings) -> dict[str, Any]:
    """Return a role's policy, for the buckets that the settings name."""
    buckets = {"images": settings.buckets, "releases": (settings.releases_bucket,)}
    found: dict[str, Any] = json.loads((POLICIES / f"{role}.json").read_text())
    for statement in found["Statement"]:
        named = [resource.removeprefix(_ARN).partition("/") for resource in statement["Resource"]]
        statement["Resource"] = [
            f"{_ARN}{bucket}{slash}{keys}"
            for kind, slash, keys in named
            for bucket in buckets[kind]
        ]
    return found


def grants(role: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what a role may do as pairs of action, such as `s3:GetObject`, and bucket."""
    for statement in policy(role, settings)["Statement"]:
        for action in statement["Action"]:
            for resource in statement["Resource"]:
                yield action, resource.removeprefix(_ARN).partition("/")[0]
