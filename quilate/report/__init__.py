"""The evidence for human eyes: one self-contained HTML file, one terminal table, one CSV of errors."""

from quilate.report.html import render_html
from quilate.report.mistakes import errors_csv
from quilate.report.table import print_table

__all__ = ["errors_csv", "print_table", "render_html"]
