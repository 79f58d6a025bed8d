"""`whosthere doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from indexer.cli.common import FAILED, examples, json_option, print_json, show, table
from search_service.cli.common import with_context
from search_service.doctor import examine
from search_service.service_context import ServiceContext


@click.command(epilog=examples("whosthere doctor"))
@json_option
@with_context
def doctor(context: ServiceContext, as_json: bool) -> None:
    """Check models, database, indexes and disk, and advise what to do. Exit code 0 when nothing is wrong."""
    findings = examine(context)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = table("", "checked", "found")
        for f in findings:
            rows.add_row("ok" if f.ok else "WRONG", f.check, f.found if f.ok else f"{f.found}\n-> {f.advice}")
        show(rows)
    if not all(finding.ok for finding in findings):
        sys.exit(FAILED)
