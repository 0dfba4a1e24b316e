"""The table of settings in README.md: `python -m tests.unit.settings_table` writes it anew."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from cra.shared.settings import Settings
from deploy.local.environment import LocalSettings

README = Path(__file__).resolve().parents[2] / "README.md"
BETWEEN = re.compile("(?<=<!-- settings -->\n).*(?=<!-- /settings -->)", re.DOTALL)


def table() -> str:
    """Return the table: every setting of the services, then those of the local stack."""
    rows = [f"| {' | '.join(row)} |" for row in _rows()]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def _rows() -> Iterator[tuple[str, str, str]]:
    for settings in (Settings, LocalSettings):
        for name, field in settings.model_fields.items():
            default = _text(field.default)
            yield f"`CRA_{name.upper()}`", f"`{default}`" if default else "", _meaning(field)


def _text(default: Any) -> str:
    """Return a default as the environment would give it."""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)


def _meaning(field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"a setting has no description: {field}")
    return field.description.replace("|", "\\|")


def written(readme: Path = README) -> str | None:
    """Return the table as it stands in README.md, or None if its place is not marked."""
    found = BETWEEN.search(readme.read_text(encoding="utf-8"))
    return found.group() if found else None


def main() -> None:
    """Write the table into README.md, between its two comments."""
    if written() is None:
        sys.exit("README.md has no place for it: <!-- settings --> and <!-- /settings -->")
    text = README.read_text(encoding="utf-8")
    README.write_text(BETWEEN.sub(lambda _: table(), text, count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
