"""Coverage and counts of failures as text, for `status --coverage` and `failures list --summary`."""

from __future__ import annotations

from collections.abc import Iterator

from kinetics_fs.cli.origins import origin_lines
from kinetics_fs.store.coverage import Coverage, FailureCounts
from kinetics_fs.util.text import count

_REASONS_SHOWN = 5


def coverage_lines(coverage: Coverage) -> Iterator[str]:
    """Yield a table of classes, the reasons why clips are unavailable, and the totals."""
    width = max((len(one.label) for one in coverage.classes), default=0)
    yield f"{'split':<10}  {'class':<{width}}  {'clips':>8}  {'cached':>8}  {'':6}  {'short':>8}  {'unavailable':>11}"
    for one in coverage.classes:
        yield (
            f"{one.split:<10}  {one.label:<{width}}  {one.clips:>8,}  {one.cached:>8,}"
            f"  {one.cached / one.clips:>6.1%}  {one.short:>8,}  {one.unavailable:>11,}"
        )
    yield ""
    if coverage.unavailable:
        yield from failure_lines(coverage.failures)
        yield ""
    yield f"Kinetics-{coverage.release}, {count(coverage.clips, 'clip')}:"
    short = f"; {coverage.short:,} of them are short" if coverage.short else ""
    yield f"{coverage.cached:>10,}  cached{short}"
    if coverage.evicted:
        yield f"{coverage.evicted:>10,}  evicted"
    yield f"{coverage.untried:>10,}  untried"
    due = f"; {coverage.due:,} of them are retried at the next open" if coverage.due else ""
    yield f"{coverage.unavailable:>10,}  unavailable{due}"
    yield ""
    yield from origin_lines(coverage.release, coverage.origins)


def failure_lines(counts: FailureCounts) -> Iterator[str]:
    """Yield the kinds of failures and the most frequent reasons of each, with their numbers."""
    for kind, reasons in counts.kinds.items():
        yield f"{sum(reasons.values()):>10,}  {kind}"
        for reason, clips in list(reasons.items())[:_REASONS_SHOWN]:
            yield f"{clips:>14,}  {reason}"
        if len(reasons) > _REASONS_SHOWN:
            yield f"{'':14}  … and {len(reasons) - _REASONS_SHOWN:,} more reasons"
