"""The `cra` program."""

import sys

from cra.services.cli import interrupts


def main() -> None:
    """Run `cra`. Ctrl-C has its answer before the heavy imports, which take most of a second."""
    interrupts.end_quietly()
    try:
        from cra.services.cli.group import cra  # noqa: PLC0415  see above
    except ModuleNotFoundError as error:  # the package alone is a client's
        if (error.name or "").startswith("cra."):
            raise  # a fault of ours
        sys.exit(f"`cra` needs more than is installed ({error}): pip install 'cra[cli]'")
    cra()


if __name__ == "__main__":
    main()
