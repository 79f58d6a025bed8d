"""`whosthere evaluate`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from indexer.cli.common import device_option, examples, json_option, print_json, progress_count, show, table
from indexer.clock import now
from indexer.enrollment.sources import rows_of
from indexer.files import write_atomically
from indexer.types import Pick
from search_service.cli.common import with_context
from search_service.evaluation.liveness import Share, evaluate_liveness
from search_service.evaluation.liveness_report import liveness_object, liveness_page
from search_service.evaluation.protocol import Protocol
from search_service.evaluation.report import (
    BASES,
    VERDICTS,
    describe_strangers,
    evaluation_object,
    interval,
    page,
    percent,
    short_percent,
)
from search_service.evaluation.run import Evaluation, evaluate
from search_service.service_context import ServiceContext


@click.command(
    "evaluate",
    epilog=examples(
        "whosthere evaluate photos/ --out report.html",
        "whosthere evaluate photos/ --photos 3 --pick center",
        "whosthere evaluate --manifest staff.csv --json",
        "whosthere evaluate --liveness door/ --bpcer 0.03 --out liveness.html",
    ),
)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="FOLDER...")
@click.option("--manifest", type=click.Path(path_type=Path), help="CSV: image, external_id, name, ...")
@click.option("--photos", type=int, default=1, show_default=True, help="Photos of each person to enroll.")
@click.option(
    "--pick",
    type=click.Choice([str(p) for p in Pick]),
    help="Which of several faces counts; default: `only` when enrolling, `largest` when searching.",
)
@click.option("--model", metavar="PACK", help="Model pack.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report to this HTML file, with pictures."
)
@click.option(
    "--liveness",
    "liveness_folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Measure liveness checks instead, on live/*.jpg and attack/SPECIES/*.jpg.",
)
@click.option(
    "--bpcer",
    type=click.FloatRange(0, 1, max_open=True),
    help="With --liveness: choose the threshold that refuses this share of live faces.",
)
@click.option("--draws", type=int, default=1000, show_default=True, help="Bootstrap draws for the intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap draws.")
@click.option("--cache/--no-cache", default=True, help="Cache what the networks computed in the home folder.")
@device_option
@json_option
@with_context
def evaluate_command(
    context: ServiceContext,
    paths: tuple[Path, ...],
    manifest: Path | None,
    photos: int,
    pick: str | None,
    model: str | None,
    out: Path | None,
    liveness_folder: Path | None,
    bpcer: float | None,
    draws: int,
    seed: int,
    cache: bool,
    as_json: bool,
) -> None:
    """Measure the recognition accuracy on your own labeled photos.

    Photos are named as for enroll: a folder for each person, loose files, a manifest or a ZIP file. Some photos of each
    person are enrolled into a temporary gallery and the others are searched in it; a person with a single photo is a
    stranger. Your galleries are not changed. Photos that were computed before are read from a cache.

    With --liveness, the share of attacks that are taken for live people (APCER), of each species and of the worst, and
    the share of live people that are refused (BPCER), as in ISO/IEC 30107-3. --model then names a liveness pack.
    """
    if out is not None and not out.parent.is_dir():
        raise click.UsageError(f"there is no folder {out.parent} for the report")
    if liveness_folder is not None:
        if paths or manifest is not None:
            raise click.UsageError("--liveness takes one folder and no other photos")
        _evaluate_liveness(context, liveness_folder, model, bpcer, out, as_json)
        return
    if bpcer is not None:
        raise click.UsageError("--bpcer needs --liveness")
    if not paths and manifest is None:
        raise click.UsageError("name folders, images, a ZIP, or a --manifest")
    protocol = Protocol(photos, Pick(pick) if pick else None, draws, seed)
    start = time.monotonic()
    rows = rows_of(paths, manifest)
    with progress_count("Evaluating", "photos") as progress:
        evaluation = evaluate(context, rows, protocol, model, cache, progress)
    seconds = time.monotonic() - start
    if evaluation.cache_problem is not None:
        click.echo(f"Warning: the results cannot be cached for the next time: {evaluation.cache_problem}", err=True)
    if out is not None:
        title = f"Evaluation of {', '.join(path.name or str(path) for path in paths or [manifest] if path)}"
        write_atomically(out, [page(evaluation, title, now()).encode()])
    if as_json:
        print_json(evaluation_object(evaluation, seconds))
    else:
        _print(evaluation, seconds, out)


def _evaluate_liveness(
    context: ServiceContext, folder: Path, name: str | None, bpcer: float | None, out: Path | None, as_json: bool
) -> None:
    pack = context.liveness_packs.find_installed(name) if name else context.liveness_pack
    with progress_count("Evaluating", "photos") as progress:
        evaluation = evaluate_liveness(context, pack, folder, bpcer, progress)
    if out is not None:
        page_text = liveness_page(evaluation, f"Liveness evaluation of {folder.name or folder}", now())
        write_atomically(out, [page_text.encode()])
    if as_json:
        print_json(liveness_object(evaluation))
        return
    rows = table("", "wrong", "photos", "share", "95 % interval")
    for species, share in evaluation.apcer.items():
        rows.add_row(f"attack {species} accepted (APCER)", *_share_cells(share))
    rows.add_row("live face refused (BPCER)", *_share_cells(evaluation.bpcer))
    click.echo(f"Liveness pack {evaluation.model}, threshold {evaluation.threshold:.3f}.\n")
    show(rows)
    worst = evaluation.apcer[evaluation.worst_species]
    click.echo(f"\nWorst species: {evaluation.worst_species}, APCER {percent(worst.value)}.")
    if out is not None:
        click.echo(f"The report, with the worst mistakes as pictures: {out}")


def _share_cells(share: Share) -> tuple[str, str, str, str]:
    return f"{share.errors:,}", f"{share.total:,}", percent(share.value), interval(share.estimate)


def _print(evaluation: Evaluation, seconds: float, out: Path | None) -> None:
    metrics, enrollment = evaluation.metrics, evaluation.enrollment
    click.echo(
        f"{enrollment.enrolled:,} of {enrollment.photos:,} photos enrolled, {evaluation.mated.photos:,} of "
        f"{evaluation.mated.people:,} people searched, {evaluation.stranger_searches:,} searches of "
        f"{evaluation.stranger_people:,} strangers; {evaluation.model}, {seconds:.1f} s."
    )
    click.echo(_computed(evaluation))
    if evaluation.are_mates_strangers:
        click.echo(f"Strangers: {describe_strangers(evaluation)}.")
    click.echo(f"\nRank-1 {percent(metrics.rank_1.value)} ({interval(metrics.rank_1)})\n")
    rates = table("FPIR", "FNIR", "95 % interval", "threshold", "")
    for rate in metrics.rates:
        fnir, threshold = rate.fnir, rate.threshold
        rates.add_row(
            short_percent(rate.fpir),
            "-" if fnir is None else percent(fnir.value),
            "-" if fnir is None else interval(fnir),
            "-" if threshold is None else f"{threshold:.4f}",
            BASES[rate.basis],
        )
    show(rates)
    rows = table("FPIR requested", "threshold", "observed", "95 % interval", "FNIR", "")
    for one in metrics.calibrated:
        rows.add_row(
            short_percent(one.fpir),
            f"{one.threshold:.4f}",
            percent(one.observed.value),
            interval(one.observed),
            percent(one.fnir.value),
            VERDICTS[one.verdict],
        )
    click.echo()
    show(rows)
    if out is not None:
        click.echo(f"\nThe report, with the worst mistakes as pictures: {out}")
    else:
        click.echo("\n--out report.html shows the worst mistakes as pictures.")


def _computed(evaluation: Evaluation) -> str:
    if not evaluation.computed:
        return f"All {evaluation.from_cache:,} photos were cached: no network computed anything."
    return f"The networks computed {evaluation.computed:,} photos; {evaluation.from_cache:,} were cached."
