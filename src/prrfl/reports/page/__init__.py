"""The page of a run or a comparison: HTML that needs no network connection and no other file."""

from prrfl.reports.page.comparison import ComparisonResults, comparison_page
from prrfl.reports.page.model import Heading, Picture, Sample, Section, Sheet, SiteImages
from prrfl.reports.page.run import RunResults, run_page
from prrfl.reports.page.subgroups import subgroup_section

__all__ = [
    "ComparisonResults", "Heading", "Picture", "RunResults", "Sample", "Section", "Sheet", "SiteImages",
    "comparison_page", "run_page", "subgroup_section",
]  # fmt: skip
