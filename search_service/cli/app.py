"""The `whosthere` command with its subcommands, each imported when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from indexer.errors import InvalidRequest, RejectedImage, WhosthereError

FAILED, WRONG_USAGE = 1, 2
"""Exit codes; 0 means success, and `indexer.cli.common.SOME_REJECTED` that some images were rejected."""

GALLERY_COMMANDS = {
    "calibrate": "search_service.cli.calibrate:gallery_calibrate",
    "create": "indexer.cli.galleries:gallery_create",
    "delete": "indexer.cli.galleries:gallery_delete",
    "duplicates": "indexer.cli.duplicates:gallery_duplicates",
    "export": "indexer.cli.parquet:gallery_export",
    "import": "indexer.cli.parquet:gallery_import",
    "list": "indexer.cli.galleries:gallery_list",
    "rebuild": "indexer.cli.galleries:gallery_rebuild",
    "reembed": "indexer.cli.reembed:gallery_reembed",
    "show": "indexer.cli.galleries:gallery_show",
}

COMMANDS = {
    "compare": "search_service.cli.search:compare",
    "demo": "search_service.cli.demo:demo",
    "doctor": "search_service.cli.doctor:doctor",
    "enroll": "indexer.cli.enroll:enroll",
    "evaluate": "search_service.cli.evaluate:evaluate_command",
    "events": "search_service.cli.events:events_group",
    "gallery": f"{__name__}:gallery",
    "identity": "indexer.cli.identities:identity_group",
    "keys": "search_service.cli.keys:keys_group",
    "models": "indexer.cli.models:models_group",
    "search": "search_service.cli.search:search",
    "serve": "search_service.cli.serve:serve",
    "webhooks": "search_service.cli.webhooks:webhooks_group",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed: `whosthere --version` loads no network or database.

    `locations` maps the name of each command to `MODULE:ATTRIBUTE`.
    """

    def __init__(self, *args: Any, locations: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.locations = locations

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.locations)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.locations:
            return None
        module, attribute = self.locations[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(
    cls=LazyGroup,
    locations=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--home", type=click.Path(path_type=Path), help="Data folder (WHOSTHERE_HOME).")
@click.version_option(package_name="whosthere")
def whosthere(home: Path | None) -> None:
    """Search faces: who is this, out of the people we enrolled?

    \b
    whosthere enroll photos/ --gallery staff      a folder for each person
    whosthere search probe.jpg --gallery staff    the top identities and a decision
    whosthere serve                               the same over HTTP
    """


@click.group(cls=LazyGroup, locations=GALLERY_COMMANDS)
def gallery() -> None:
    """Create, list, show and delete galleries; move them to another model pack or machine."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the `whosthere` command. An error becomes one line on standard error and an exit code."""
    try:
        whosthere.main(args=arguments, prog_name="whosthere", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Interrupted. Everything acknowledged is kept; run the same command again to continue.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except WhosthereError as error:
        usage = isinstance(error, InvalidRequest) and not isinstance(error, RejectedImage)
        usage |= error.code == "model_not_found"  # named by an option or a setting
        _fail(error.message, WRONG_USAGE if usage else FAILED)
    except OSError as error:  # a full disk or a read-only folder; click handles closed pipes
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", FAILED)


def _fail(message: str, code: int) -> NoReturn:
    """Prints the message in one line: those of databases have several."""
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)
