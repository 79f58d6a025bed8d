"""What `evaluate` tells: one HTML file that needs nothing else, and the same for programs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from pathlib import PurePath
from typing import Any

from search_service.calibration.plot import INK, OWN, STRANGER
from search_service.evaluation.metrics import ENOUGH, Asked, Basis, Estimate, Rate, Verdict
from search_service.evaluation.mistakes import Mistake, Shot
from search_service.evaluation.plots import WRONG, det_picture, histogram_picture
from search_service.evaluation.protocol import Evaluation, Probed

MAIN = 0.01
"""The FPIR of the summary."""

BASES = {
    Basis.MEASURED: "",
    Basis.FEW: f"fewer than {ENOUGH} strangers: an indication",
    Basis.UNSUPPORTED: "cannot be told from so few strangers",
}
VERDICTS = {
    Verdict.AS_ASKED: "as asked",
    Verdict.LESS: "fewer than half of what was asked for",
    Verdict.MORE: "more than double",
    Verdict.TOO_FEW: "too few strangers to tell",
}
DECISIONS = {
    "match": "match, the right person",
    "review": "review, the right person",
    "wrong_match": "match, somebody else",
    "wrong_review": "review, somebody else",
    "no_match": "no match",
    "not_searched": "could not be searched",
}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def wanted(fpir: float) -> str:
    return f"{100 * fpir:g} %"


def interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.2f} to {100 * estimate.high:.2f} %"


def who_are_strangers(told: Evaluation) -> str:
    if not told.others:
        return f"the {told.stranger_people:,} people with one photo, who are not enrolled"
    alone = told.strangers.people
    return (
        f"only {alone:,} {'person has' if alone == 1 else 'people have'} one photo, too few to tell anything, so the "
        f"{told.mated.people:,} people who are searched are strangers to the others as well: their own identity is "
        "passed over then"
    )


def evaluation_object(told: Evaluation, seconds: float) -> dict[str, Any]:
    """For programs. Without pictures."""
    numbers, mistakes = told.numbers, told.mistakes
    return {
        "model": told.model,
        "fingerprint": told.fingerprint,
        "photos_per_person": told.protocol.photos,
        "pick": {"enrolling": told.protocol.enrolling, "searching": told.protocol.searching},
        "bootstrap": {"draws": told.protocol.draws, "seed": told.protocol.seed, "interval": [0.025, 0.975]},
        "settings": dict(told.settings),
        "fpir_of_decisions": told.fpir,
        "rows_without_identity": told.nobody,
        "copies_left_out": told.copies,
        "enrolment": asdict(told.enrolment),
        "mated": asdict(told.mated),
        "strangers": asdict(told.strangers),
        "strangers_are": "one_photo_and_others" if told.others else "one_photo",
        "non_mated_people": told.stranger_people,
        "non_mated_searches": told.stranger_searches,
        "rank_1": asdict(numbers.rank_1),
        "fnir": [asdict(rate) for rate in numbers.rates],
        "calibration": [asdict(one) for one in numbers.asked],
        "det": [{"fpir": fpir, "fnir": fnir} for fpir, fnir in numbers.det],
        "histogram": asdict(numbers.histogram),
        "mistakes": {
            "threshold": mistakes.threshold,
            "strangers_let_in": [_mistake_object(one) for one in mistakes.strangers_let_in],
            "confused": [_mistake_object(one) for one in mistakes.confused],
            "missed": [_mistake_object(one) for one in mistakes.missed],
            "not_enrolled": [_refused_object(shot, why) for shot, why in mistakes.not_enrolled],
            "not_searched": [_refused_object(shot, why) for shot, why in mistakes.not_searched],
        },
        "computed": told.described,
        "from_cache": told.from_cache,
        "seconds": round(seconds, 3),
    }


def _mistake_object(one: Mistake) -> dict[str, Any]:
    return {
        "image": one.probe.image,
        "external_id": one.probe.external_id,
        "candidate": one.other and one.other.external_id,
        "candidate_image": one.other and one.other.image,
        "candidate_score": one.other_score,
        "own_image": one.own and one.own.image,
        "own_score": one.own_score,
    }


def _refused_object(shot: Shot, why: str) -> dict[str, Any]:
    return {"image": shot.image, "external_id": shot.external_id, "reason": why}


# The page


def page(told: Evaluation, title: str, at: datetime) -> str:
    """One HTML file with everything in it; it asks nothing of any network, and says so to the browser."""
    parts = [
        f"<header><h1>{escape(title)}</h1><p class=sub>{escape(_subtitle(told, at))}</p></header>",
        _cards(told),
        _section("How many are missed", _rates(told)),
        _section("Thresholds that calibration gives", _asked(told)),
        f"<div class=two>{_det(told)}{_histogram(told)}</div>",
        _section("What the service decides", _decisions(told)),
        _section("Photos that could not be used", _failures(told)),
        _section("The worst mistakes", _mistakes(told)),
        _section("How this was measured", _method(told)),
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: #f3f4f6; color: {INK};
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }}
h1 {{ font-size: 26px; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 18px; margin: 0 0 4px; }}
h3 {{ font-size: 15px; margin: 28px 0 4px; }}
p {{ margin: 4px 0 12px; max-width: 92ch; }}
.sub, .note {{ color: #4b5563; }}
section {{ background: white; border-radius: 10px; padding: 20px 24px; margin-top: 18px;
  box-shadow: 0 1px 2px rgb(0 0 0 / 8%); overflow-x: auto; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 18px; margin-top: 18px; }}
.card {{ background: white; border-radius: 10px; padding: 16px 20px; box-shadow: 0 1px 2px rgb(0 0 0 / 8%); }}
.card b {{ display: block; font-size: 28px; line-height: 1.2; font-variant-numeric: tabular-nums; }}
.card span {{ color: #4b5563; font-size: 13px; display: block; }}
.two {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 18px; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-weight: 600; color: #4b5563; font-size: 13px; vertical-align: bottom; }}
th, td {{ padding: 6px 28px 6px 0; border-bottom: 1px solid #e5e7eb; }}
td:last-child {{ min-width: 150px; }}
.n {{ text-align: right; white-space: nowrap; }}
.good {{ color: #15803d; }} .bad {{ color: #b91c1c; }} .unsure {{ color: #6b7280; }}
.key {{ display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 0; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 12px; }}
.pairs {{ grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }}
.pairs .mistake {{ grid-template-columns: 1fr 1fr; }}
.small {{ grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
.mistake {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; border: 1px solid #e5e7eb;
  border-radius: 8px; padding: 10px; }}
figure img, figure .none {{ width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; display: block; }}
figure .none {{ background: #f3f4f6; color: #6b7280; font-size: 12px; display: grid; place-items: center;
  text-align: center; padding: 8px; }}
.other img {{ outline: 3px solid {STRANGER}; outline-offset: -3px; }}
.own img {{ outline: 3px solid {OWN}; outline-offset: -3px; }}
figcaption {{ font-size: 12px; line-height: 1.35; margin-top: 5px; overflow-wrap: anywhere; }}
figcaption b {{ display: block; font-weight: 600; }}
figcaption i {{ display: block; color: #6b7280; font-style: normal; }}
.empty {{ color: #15803d; }}
@media print {{ body {{ background: white; }} section, .card, .mistake {{ break-inside: avoid; }} }}
"""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _subtitle(told: Evaluation, at: datetime) -> str:
    photos = told.protocol.photos
    return (
        f"{told.mated.photos:,} photos of {told.mated.people:,} people, searched in a gallery of "
        f"{told.enrolment.people - len(told.enrolment.nobody):,} with {photos} photo{'s' * (photos > 1)} each; "
        f"{told.stranger_people:,} strangers. Model pack {told.model}, {at.day} {at:%B %Y}."
    )


def _cards(told: Evaluation) -> str:
    numbers, enrolment = told.numbers, told.enrolment
    rate = next(one for one in numbers.rates if one.fpir == MAIN)
    asked = next(one for one in numbers.asked if one.fpir == MAIN)
    fnir = (
        ("unknown", "too few strangers to tell")
        if rate.fnir is None
        else (percent(rate.fnir.value), interval(rate.fnir))
    )
    failed = enrolment.photos - enrolment.enrolled
    return (
        "<div class=cards>"
        + "".join(
            f"<div class=card><span>{name}</span><b>{value}</b><span>{more}</span></div>"
            for name, value, more in (
                ("Right person on top (rank-1)", percent(numbers.rank_1.value), interval(numbers.rank_1)),
                (f"Missed, at FPIR {wanted(MAIN)} (FNIR)", *fnir),
                (
                    f"Strangers let in, asked for {wanted(MAIN)}",
                    percent(asked.observed.value),
                    f"{interval(asked.observed)}; {VERDICTS[asked.verdict]}",
                ),
                (
                    "Photos that failed to enrol",
                    percent(failed / enrolment.photos),
                    f"{failed:,} of {enrolment.photos:,}",
                ),
            )
        )
        + "</div>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: int) -> str:
    """`numeric` columns from the first on are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        return (
            "<tr>"
            + "".join(f"<{tag}{' class=n' if i < numeric else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
            + "</tr>"
        )

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def _rates(told: Evaluation) -> str:
    return (
        "<p class=note>A photo is missed unless its own person is the top candidate and above the threshold. The "
        "threshold is set where that share of the strangers is above it.</p>"
        + _table(
            ("FPIR", "FNIR", "95 % interval", "threshold", "strangers above", ""),
            (_rate_cells(rate) for rate in told.numbers.rates),
            5,
        )
    )


def _rate_cells(rate: Rate) -> tuple[str, ...]:
    note = f"<span class=unsure>{BASES[rate.basis]}</span>"
    if rate.fnir is None or rate.threshold is None:
        return wanted(rate.fpir), "-", "-", "-", "less than 1", note
    above = f"{int(rate.expected + 1e-9):,}"
    return (
        wanted(rate.fpir),
        f"<b>{percent(rate.fnir.value)}</b>",
        interval(rate.fnir),
        f"{rate.threshold:.3f}",
        above,
        note,
    )


def _asked(told: Evaluation) -> str:
    return (
        "<p class=note>What a search with <code>--fpir</code> takes as its threshold in this gallery, which knows "
        "nothing of the strangers, and what came of it.</p>"
        + _table(
            ("asked for", "threshold", "observed", "95 % interval", "let in", "FNIR", "95 % interval", ""),
            (_asked_cells(one) for one in told.numbers.asked),
            7,
        )
    )


def _asked_cells(one: Asked) -> tuple[str, ...]:
    style = {Verdict.AS_ASKED: "good", Verdict.MORE: "bad"}.get(one.verdict, "unsure")
    return (
        wanted(one.fpir),
        f"{one.threshold:.3f}",
        f"<b>{percent(one.observed.value)}</b>",
        interval(one.observed),
        f"{one.false_positives:,}",
        percent(one.fnir.value),
        interval(one.fnir),
        f"<span class={style}>{VERDICTS[one.verdict]}</span>",
    )


def _det(told: Evaluation) -> str:
    return _section(
        "What each threshold costs",
        "<p class=note>DET curve: to the left fewer strangers are let in, lower down fewer people are missed. Hollow "
        f"points hang on fewer than {ENOUGH} strangers.</p>" + det_picture(told.numbers),
    )


def _histogram(told: Evaluation) -> str:
    keys = ((STRANGER, "strangers"), (OWN, "the right person on top"), (WRONG, "somebody else on top"))
    legend = " &nbsp; ".join(f'<i class=key style="background:{color}"></i>{name}' for color, name in keys)
    return _section(
        "How scores are spread",
        f"<p class=note>{legend}<br>Dashed: the service's thresholds for an FPIR.</p>"
        + histogram_picture(told.numbers.histogram, told.numbers.asked),
    )


def _decisions(told: Evaluation) -> str:
    def cell(kind: Probed, word: str) -> str:
        count = kind.decisions.get(word, 0)
        return f"{count:,} <span class=unsure>({percent(count / kind.photos)})</span>" if count else "0"

    kinds = [(f"photos of {told.mated.people:,} enrolled people", told.mated)]
    if told.strangers.photos:
        people = told.strangers.people
        kinds.append((f"photos of {people:,} stranger{'s' * (people > 1)}", told.strangers))
    rows = [(name, *(cell(kind, word) for _, kind in kinds)) for word, name in DECISIONS.items()]
    return (
        f"<p class=note>At the FPIR of the settings, {wanted(told.fpir)}. An answer goes to review when the runner-up "
        "is close or the photo is poor: it opens no door by itself.</p>"
        + _table(("decision", *(name for name, _ in kinds)), rows, 0)
    )


def _failures(told: Evaluation) -> str:
    enrolment, mistakes = told.enrolment, told.mistakes
    kinds = [
        ("to be enrolled", enrolment.photos, enrolment.reasons),
        ("searched, of enrolled people", told.mated.photos, told.mated.reasons),
        ("searched, of strangers", told.strangers.photos, told.strangers.reasons),
    ]
    content = _table(("photos", "of", "could not be used", "why"), (_failure_cells(*kind) for kind in kinds), 0)
    if enrolment.nobody:
        names = ", ".join(escape(name) for name in enrolment.nobody[:20])
        more = f" and {len(enrolment.nobody) - 20:,} more" if len(enrolment.nobody) > 20 else ""
        content += (
            f"<p class=note>Of {len(enrolment.nobody):,} of {enrolment.people:,} people no photo could be enrolled; "
            f"their others count as missed: {names}{more}.</p>"
        )
    for title, shots in (("Not enrolled", mistakes.not_enrolled), ("Not searched", mistakes.not_searched)):
        if shots:
            figures = "".join(_figure(shot, f"<i>{escape(why.replace('_', ' '))}</i>") for shot, why in shots)
            content += f'<h3>{title}</h3><div class="grid small">{figures}</div>'
    return content


def _failure_cells(name: str, photos: int, reasons: Mapping[Any, int]) -> tuple[str, ...]:
    failed = sum(reasons.values())
    why = ", ".join(f"{escape(str(reason).replace('_', ' '))} {count:,}" for reason, count in reasons.items())
    return name, f"{photos:,}", f"{failed:,} <span class=unsure>({percent(failed / max(photos, 1))})</span>", why


def _mistakes(told: Evaluation) -> str:
    mistakes = told.mistakes
    kinds = (
        (
            "Strangers most like somebody",
            "Those who score highest with somebody who is enrolled. Look for one person under two names here.",
            mistakes.strangers_let_in,
        ),
        (
            "Taken for somebody else",
            "The top candidate is not whom the photo is said to show. Wrong labels stand out by a high score.",
            mistakes.confused,
        ),
        (
            "Not recognised",
            f"The right person on top, below the service's {mistakes.threshold:.3f} for FPIR {wanted(MAIN)}.",
            mistakes.missed,
        ),
    )
    return (
        "<p class=note>The worst first. Each shows the photo that was searched, the enrolled photo of somebody else "
        f'that is most like it (<span style="color:{STRANGER}">orange</span>), and the enrolled one of its own person '
        f'(<span style="color:{OWN}">blue</span>), with their scores.</p>'
        + "".join(
            f"<h3>{title}</h3><p class=note>{about}</p>" + (_grid(some) if some else "<p class=empty>None.</p>")
            for title, about, some in kinds
        )
    )


def _grid(some: Sequence[Mistake]) -> str:
    pairs = all(one.own is None for one in some)
    cards = "".join(_card(one, 2 if pairs else 3) for one in some)
    return f'<div class="grid{" pairs" if pairs else ""}">{cards}</div>'


def _card(one: Mistake, pictures: int) -> str:
    own = "not among the first" if one.own_score is None else f"{one.own_score:.3f}"
    figures = (
        _figure(one.probe, "<i>searched</i>"),
        _empty("nobody else")
        if one.other is None or one.other_score is None
        else _figure(one.other, f"<i>{one.other_score:.3f}</i>", "other"),
        _empty("not enrolled") if one.own is None else _figure(one.own, f"<i>{own}</i>", "own"),
    )
    return f"<div class=mistake>{''.join(figures[:pictures])}</div>"


def _figure(shot: Shot, more: str, style: str = "") -> str:
    named = escape(shot.image, quote=True)
    picture = "<div class=none>cannot be shown</div>"
    if shot.picture is not None:
        data = base64.b64encode(shot.picture).decode()
        picture = f'<img alt="{named}" src="data:image/jpeg;base64,{data}">'
    file = _breakable(_short(shot))
    return (
        f'<figure class="{style}" title="{named}">{picture}'
        f"<figcaption><b>{_breakable(shot.external_id)}</b>{more}<i>{file}</i></figcaption></figure>"
    )


def _breakable(name: str) -> str:
    return escape(name).replace("_", "_<wbr>")


def _short(shot: Shot) -> str:
    """The file's name, without the person's where it begins with that."""
    name = PurePath(shot.image).name
    rest = name.removeprefix(shot.external_id)
    return f"\u2026{rest}" if rest != name and len(rest) > 1 else name


def _empty(why: str) -> str:
    return f"<figure><div class=none>{why}</div></figure>"


def _method(told: Evaluation) -> str:
    protocol, photos = told.protocol, told.protocol.photos
    first = "the first photo" if photos == 1 else f"the first {photos} photos, or all but one where there are fewer,"
    settings = ", ".join(f"{name} {value}" for name, value in told.settings.items())
    copies = f"{told.copies:,} photos are the same file as another one of their person, and were left out."
    nobody = f"{told.nobody:,} rows do not say whom they show, and were left out."
    facts = f"""
        Of everyone with two photos or more {first} by name was enrolled into a gallery of its own, through the quality
        gate, and {told.mated.photos:,} others of {told.mated.people:,} people were searched as the service does.
        {copies if told.copies else ""} {nobody if told.nobody else ""}

        Strangers: {who_are_strangers(told)}.

        A photo of an enrolled person that could not be searched counts as missed, and so does each of a person of whom
        no photo could be enrolled. A stranger's photo that could not be searched counts as one that was not let in.

        Intervals: what comes out for {protocol.draws:,} draws of as many people with replacement, each with all of
        their photos (bootstrap, seed {protocol.seed}); 2.5 of 100 draws are below and 2.5 above. Where no mistake was
        seen, the upper end is the rate at which so many people show none with a probability of 2.5 %.

        An FPIR is told from {ENOUGH} strangers above the threshold on; with one to four it is marked, with less than
        one there is no number.

        Thresholds that calibration gives are the service's own, made from the enrolled people alone.

        Faces of several: {protocol.enrolling} when enrolling, {protocol.searching} when searching. Settings:
        {settings}. Pack {told.model}, fingerprint {told.fingerprint}.
    """
    told_one_by_one = facts.strip().split("\n\n")
    return "<ul>" + "".join(f"<li>{escape(' '.join(fact.split()))}</li>" for fact in told_one_by_one) + "</ul>"
