"""`cra completion`: the script that lets a shell complete `cra`'s commands and options."""

from typing import Final

import click
from click.shell_completion import get_completion_class

from cra.shared.console import examples

SHELLS: Final = ("bash", "zsh", "fish")


@click.command(
    epilog=examples(
        "echo 'eval \"$(cra completion bash)\"' >> ~/.bashrc",
        "echo 'eval \"$(cra completion zsh)\"' >> ~/.zshrc",
        "cra completion fish > ~/.config/fish/completions/cra.fish",
    )
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete `cra`; bash needs 4.4 or newer."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"click knows no completion for {shell}")
    click.echo(kind(context.find_root().command, {}, "cra", "_CRA_COMPLETE").source())
