"""What alignment was worth, as a page of its own, as a part of the evidence's, and in Markdown."""

from __future__ import annotations

import math
import re
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from quilate.evaluation.schema import Alignment, Policy
from quilate.files import write_text
from quilate.report.figures import INK, MUTED, SERIES, STYLE, Width, axes_of, standalone, svg_of
from quilate.report.language import Language


def render_alignment(found: Alignment, lang: str = "en") -> str:
    """One self-contained HTML page.

    Raises:
        UsageError: there is no such language.
    """
    t = Language(lang)
    environment = Environment(
        loader=PackageLoader("quilate.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style = Markup(environment.get_template("style.css").render())  # noqa: S704 - our own file
    template = environment.get_template("alignment.html.jinja")
    return template.render(a=found, t=t, lang=lang, style=style, frontier=frontiers(found, t))


def frontiers(found: Alignment | None, t: Language) -> dict[str, Markup | None]:
    """The frontier in two widths, of which CSS shows one."""
    if found is None:
        return {"wide": None, "narrow": None}
    drawn = {"wide": frontier(found, t, "wide"), "narrow": frontier(found, t, "narrow")}
    return {name: None if svg is None else Markup(svg) for name, svg in drawn.items()}  # noqa: S704 - escaped by matplotlib


def write_alignment_markdown(found: Alignment, page: Path, lang: str = "en") -> list[Path]:
    """Write `page` and, where there is one, its figure beside it as `STEM-frontier.svg`; returns the files written."""
    from quilate.report.markdown import cell

    t = Language(lang)
    environment = Environment(  # noqa: S701 - Markdown, not HTML; cells are escaped by `cell`
        loader=PackageLoader("quilate.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    drawn = frontier(found, t, "wide")
    written = [page]
    if drawn is not None:
        written.append(page.with_name(f"{page.stem}-frontier.svg"))
        write_text(written[-1], standalone(drawn))
    figure = None if drawn is None else written[-1].name
    text = environment.get_template("alignment.md.jinja").render(a=found, t=t, figure=figure)
    write_text(page, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    return written


def frontier(found: Alignment, t: Language, width: Width) -> str | None:
    """Mean score by the first judge against KL: how much is gained by moving how far (Gao et al. 2023, "Scaling laws
    for reward model overoptimization"; Rafailov et al. 2023, figure 2). None if nothing was aligned and judged."""
    if not found.judges or not any(policy.kl is not None for policy in found.policies):
        return None
    judge = found.judges[0]
    with mpl.rc_context(STYLE):
        figure, axes = axes_of(width, (10.6, 4.0), (4.0, 4.0))
        for index, (name, line) in enumerate(families(found.policies).items()):
            colour = INK if name is None else SERIES[index % len(SERIES)]
            ordered = sorted(line, key=lambda policy: policy.kl or 0.0)
            if name is not None and len(ordered) > 1:
                axes.plot(
                    [p.kl or 0.0 for p in ordered], [p.rewards[judge].estimate for p in ordered], color=colour, lw=1
                )
            for policy in ordered:
                _draw(axes, policy, judge, colour, t)
        axes.set_xlabel(t("axis.kl"))
        farthest = max(policy.kl or 0.0 for policy in found.policies) or 1.0
        axes.set_xlim(-0.06 * farthest, 1.3 * farthest)  # names stand right of their points
        decimals = max(2, 1 - math.floor(math.log10(farthest)))
        axes.set_title(t("axis.reward", judge=judge), loc="left", fontsize=10, color=MUTED).set_parse_math(False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: t.decimal(value, decimals)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: t.decimal(value, 2)))
        return svg_of(figure, f"frontier-{width}", t("frontier"))


def families(policies: list[Policy]) -> dict[str | None, list[Policy]]:
    """Policies that differ in beta alone, together; those that share with no other under None."""
    found: dict[str | None, list[Policy]] = {}
    for policy in policies:
        kin = [p for p in policies if p.family is not None and p.family == policy.family]
        found.setdefault(policy.family if len(kin) > 1 else None, []).append(policy)
    return found


def _draw(axes: Axes, policy: Policy, judge: str, colour: str, t: Language) -> None:
    """A point with its interval and its name; no alignment stands at 0, hollow."""
    x, reward = policy.kl or 0.0, policy.rewards[judge]
    if reward.low is not None and reward.high is not None:
        axes.plot([x, x], [reward.low, reward.high], color=colour, lw=1.4, solid_capstyle="round")
    face = "none" if policy.start is None else colour
    axes.plot([x], [reward.estimate], ls="", marker="o", ms=7, mfc=face, mec=colour, mew=1.6)
    beta = "" if policy.beta is None else f", β = {policy.beta:g}"
    label = policy.name + (beta.replace(".", ",") if t.lang == "es" else beta)
    axes.annotate(
        label, (x, reward.estimate), xytext=(8, 4), textcoords="offset points", color=INK, parse_math=False
    ).set_in_layout(False)
