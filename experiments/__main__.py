"""`python -m experiments run FILE`: run a grid, or go on with it, and write its record."""

import sys
import time

import click

from experiments.config import Experiment
from nlft_ray.cli.arguments import load_config, write_help
from nlft_ray.errors import UserError


class _WithSettings(click.Command):
    """A command whose help ends with the settings of an experiment's file."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help(ctx, formatter)
        write_help(Experiment, formatter)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Compare methods of fine-tuning over numbers of examples and seeds."""


@app.command(cls=_WithSettings)
@click.argument("file")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE…]")
def run(file: str, words: tuple[str, ...]) -> None:
    """Run the grid that FILE describes, or go on with it, and write the record into its folder."""
    from experiments.grid import run as run_grid
    from experiments.record import write_record
    from experiments.results import tables_of

    began = time.monotonic()
    experiment = load_config(Experiment, file, words)
    results = run_grid(experiment)
    command = ["python", "-m", "experiments", "run", file, *words]
    click.echo(write_record(experiment, tables_of(results), command, time.monotonic() - began))


def main() -> None:
    """Run the command line. A user's mistake is one message and exit code 2."""
    try:
        app.main(prog_name="python -m experiments")
    except UserError as error:
        click.echo(f"experiments: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
