"""The `cra` command."""
