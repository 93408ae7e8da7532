"""`nlft-ray STAGE --config FILE key=value …`. A stage is imported only when it is called."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from nlft_ray._version import __version__
from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.stages import STAGES, Stage

CHAIN = {
    "run": Stage("the whole chain from one file, skipping what is complete", "nlft_ray.chain:run", "RunConfig"),
    "quickstart": Stage("the whole chain on the embedded sandbox", "nlft_ray.chain:run", "RunConfig"),
    "plan": Stage(
        "a model and a cluster → memory needed, what fits, settings to use",
        "nlft_ray.planning.plan:plan",
        "PlanConfig",
        positional="model.path",
        examples="""\b
Examples
  nlft-ray plan sandbox                          on this machine
  nlft-ray plan my-org/my-8b cluster.gpus_per_node=8 cluster.gpu_memory_gib=80
  nlft-ray plan my-org/my-8b train.lora=null --config cluster.yaml output=plan
      cluster.yaml: cluster: {nodes: 2, gpus_per_node: 8, gpu_memory_gib: 80}
  nlft-ray train --config plan/train.yaml input=runs/my/scored output=runs/my/trained
Memory is that of the longest texts: see lengths below. What you set under score and train is kept; the rest is chosen.
""",
    ),
}

EPILOG = """\b
Settings come from --config FILE (a first word that ends in .yaml is one), then from words: key=value, a.b=value or
--a.b value.
  nlft-ray score --help                         every setting of a stage, with its default
  nlft-ray score --config my.yaml --print-config   what would run
  nlft-ray quickstart                           try it: five minutes, no data, no GPU
  nlft-ray init --model M --data FILE           your own: writes a commented run.yaml
  eval "$(nlft-ray completion bash)"            commands and settings by the Tab key (zsh and fish too)
"""
_CONFIG_FILES = (".yaml", ".yml")
_PROGRAM, _COMPLETE = "nlft-ray", "_NLFT_RAY_COMPLETE"
"""The command, and the variable by which click is asked what could come next."""


class _StageCommand(click.Command):
    """A command whose help ends with the settings of its stage."""

    stage: Stage

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help(ctx, formatter)
        from nlft_ray.cli.arguments import write_help

        write_help(self.stage.load_config(), formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The options, and every setting as one."""
        return super().shell_complete(ctx, incomplete) + _settings(self.stage, incomplete, "--{}")


def _settings(stage: Stage, incomplete: str, form: str) -> list[CompletionItem]:
    """The settings of a stage whose names, written in this form, begin as the word does."""
    from nlft_ray.cli.arguments import all_settings

    named = {form.format(name): text for name, text in all_settings(stage.load_config()).items()}
    return [CompletionItem(name, help=text) for name, text in named.items() if name.startswith(incomplete)]


def _command(name: str, stage: Stage) -> click.Command:
    def call(config_file: str | None, print_config: bool, words: tuple[str, ...]) -> None:
        _call(name, stage, config_file, print_config, words)

    command = _StageCommand(
        name,
        callback=call,
        help=f"{stage.summary[0].upper()}{stage.summary[1:]}.",
        short_help=stage.summary,
        epilog=stage.examples,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
        params=[
            click.Option(
                ["--config", "config_file"], metavar="FILE", type=click.Path(), help="YAML file with settings."
            ),
            click.Option(["--print-config"], is_flag=True, help="Show the resolved configuration and stop."),
            click.Argument(
                ["words"],
                nargs=-1,
                type=click.UNPROCESSED,
                metavar="[KEY=VALUE]...",
                shell_complete=lambda ctx, param, incomplete: _settings(stage, incomplete, "{}="),
            ),
        ],
    )
    command.stage = stage
    return command


def _call(name: str, stage: Stage, config_file: str | None, print_config: bool, words: Sequence[str]) -> None:
    from nlft_ray.cli.arguments import load_config, to_yaml

    if name == "quickstart" and config_file is None:
        from nlft_ray.sandbox import QUICKSTART

        config_file = str(QUICKSTART)
    first = words[0] if words and "=" not in words[0] and not words[0].startswith("-") else None
    if first is not None and first.endswith(_CONFIG_FILES) and config_file is None:
        config_file, words = first, words[1:]
    elif first is not None and stage.positional:
        words = (f"{stage.positional}={first}", *words[1:])
    config: Any = load_config(stage.load_config(), config_file, words)
    if print_config:
        click.echo(to_yaml(config), nl=False)
        return
    _quiet()
    with process.starting():
        function = stage.load_function()
        from nlft_ray.cli.summary import show
    show(function(config))


def _quiet() -> None:
    """Silence bars and warnings of other libraries. Settings of the user's environment win."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of transformers and the hub, which fill log files
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


class _InOrder(click.Group):
    """A group that lists the commands in the order of the chain."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def app() -> None:
    """Natural Language Fine-Tuning on Ray: a model learns from its own answers, judged in words.

    \b
    questions → sample → judge → score → train → export → evaluate
    """


@app.command(short_help="a commented configuration of a run, from your model and your file")
@click.option("--model", required=True, metavar="PATH", help="Folder, URI or hub name of the model.")
@click.option("--data", required=True, type=click.Path(), metavar="FILE", help="Questions, or examples, to learn from.")
@click.option("--test", type=click.Path(), metavar="FILE", help="Questions to measure accuracy on; unset, none.")
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="A column that cannot be guessed.")
@click.option("--output", default="run.yaml", show_default=True, type=click.Path(), help="File to write.")
def init(model: str, data: str, test: str | None, columns: tuple[str, ...], output: str) -> None:
    """Look at a model and a file, and write the configuration that `nlft-ray run` takes, with comments."""
    from nlft_ray.cli.init import init as write_run

    _quiet()
    write_run(model, data, test, columns, output)


for _name, _stage in {**CHAIN, **STAGES}.items():
    app.add_command(_command(_name, _stage))


@app.command(short_help="a scored folder in figures, or one example of it")
@click.argument("folder")
@click.option("--id", "row_id", metavar="ID", help="Show this example token by token, instead of figures.")
@click.option("--examples", metavar="FOLDER", help="The folder that was scored  [examples, beside FOLDER]")
@click.option("--policy", default="nlft", show_default=True, help="Policy of the weights that are shown.")
def inspect(folder: str, row_id: str | None, examples: str | None, policy: str) -> None:
    """Summarise a scored folder: rows, tokens, verdicts, saliency by policy, weights, rejects."""
    from nlft_ray.cli.inspect import inspect as show_folder

    show_folder(folder, row_id, examples, policy)


@app.command(short_help="what is installed, what will be used, what is missing; for bug reports")
def doctor() -> None:
    """Print versions, devices, Ray, free disk and what is missing, which makes the exit code 1. Nothing is started."""
    from nlft_ray.cli.doctor import doctor as examine

    if not examine():
        sys.exit(1)


@app.command(short_help="what a shell needs to complete commands and settings")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script for a shell's start-up file, such as: eval "$(nlft-ray completion bash)"."""
    shell_class = get_completion_class(shell)
    assert shell_class is not None
    click.echo(shell_class(app, {}, _PROGRAM, _COMPLETE).source())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A user's mistake is one message and exit code 2."""
    try:
        app.main(args=None if arguments is None else list(arguments), prog_name=_PROGRAM, standalone_mode=False)
    except UserError as error:
        click.echo(f"nlft-ray: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _leave(signal.SIGINT)
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:
            raise
        _leave(signal.SIGTERM)  # what Ray makes of the signal, which `ray job stop` sends


def _leave(by: signal.Signals) -> None:
    click.echo("nlft-ray: stopped. The same command continues where this left off.", err=True)
    sys.exit(128 + by)
