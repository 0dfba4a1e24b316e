"""The `cra` program."""

from cra.services.cli import interrupts


def main() -> None:
    """Run `cra`. Ctrl-C has its answer before the heavy imports, which take most of a second."""
    interrupts.end_quietly()
    from cra.services.cli.group import cra  # noqa: PLC0415  see above

    cra()


if __name__ == "__main__":
    main()
