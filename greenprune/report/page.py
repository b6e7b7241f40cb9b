"""The page of a report: a heading, and the sections that have something to show, each in its template.

Without JavaScript it is pictures and tables. With it, script/ brings the sections to life: plain files in one scope, in
the order of SCRIPTS, which work on what payload.py takes from the run. Nothing is fetched; what trials say is only ever
text.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from greenprune.report.extra import need
from greenprune.report.payload import as_json, payload
from greenprune.report.run import ReportedRun
from greenprune.report.sections import SECTIONS, PagePart

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

HERE = Path(__file__).parent
SCRIPTS = (
    *("dom", "data", "comparable", "chart"),
    *("front", "budgets", "compare", "tasks", "layers", "curves", "energy", "trials"),
    "main",
)


def render(run: ReportedRun) -> str:
    """The whole page as HTML."""
    from markupsafe import Markup

    bodies = {name: section_html(section, run) for name, section in SECTIONS.items()}
    shown = [
        {"name": name, "title": SECTIONS[name].title, "body": body} for name, body in bodies.items() if body is not None
    ]
    template = _templates().get_template("page.html.j2")
    return template.render(
        name=run.name,
        counts=run.trials["status"].value_counts().to_dict(),
        sections=shown,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        data=Markup(as_json(payload(run))),
        script=Markup("\n".join((HERE / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)),
    )


def section_html(section: PagePart, run: ReportedRun) -> Markup | None:
    """What a section shows of this run, as HTML; None where that is nothing."""
    from markupsafe import Markup

    values = section.gather(run)
    if values is None:
        return None
    return Markup(_templates().get_template(f"sections/{section.template}").render(values))  # escaped by its template


@functools.cache
def _templates() -> Environment:
    """What trials say is escaped; a name that a template uses and a section doesn't give is an error."""
    jinja2 = need("jinja2")
    loader = jinja2.PackageLoader("greenprune.report", ".")
    found: Environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return found
