"""The page of a report: a heading, and the sections that have something to show, each in its template."""

from __future__ import annotations

from datetime import UTC, datetime

from greenprune.report.extra import need
from greenprune.report.run import ReportedRun
from greenprune.report.sections import SECTIONS


def render(run: ReportedRun) -> str:
    """The HTML. What trials say is escaped; a name that a template uses and a section doesn't give is an error."""
    jinja2 = need("jinja2")
    from markupsafe import Markup

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("greenprune.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = []
    for section in SECTIONS.values():
        if (values := section.gather(run)) is not None:
            body = templates.get_template(f"sections/{section.template}").render(values)
            shown.append({"title": section.title, "body": Markup(body)})  # escaped by its own template
    return templates.get_template("page.html.j2").render(
        name=run.name,
        counts=run.trials["status"].value_counts().to_dict(),
        sections=shown,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
