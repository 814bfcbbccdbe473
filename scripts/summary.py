"""Sum up a run of scripts/test: what was skipped and why, what failed, and one line with the totals.

    summary.py JUNIT-FOLDER [STEP-THAT-FAILED...]

The last line reads `N passed, N failed, N skipped`. An error in set-up or tear-down counts as failed, and so does a
step that failed without a test of its own to show for it (a linter, an image build, a pytest that crashed).
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def summarise(files: list[Path], failed_steps: list[str]) -> list[str]:
    """The lines to print for these JUnit files, named `<tier>[-<part>].xml`, and these steps."""
    skipped: Counter[tuple[str, str]] = Counter()
    failed: list[str] = []
    passed = 0
    for file in files:
        tier = file.stem.partition("-")[0]
        failed_here = []
        for case in ElementTree.parse(file).iter("testcase"):  # noqa: S314 - written by our own pytest a moment ago
            outcomes = {child.tag: child for child in case}
            if "failure" in outcomes or "error" in outcomes:
                failed_here.append(f"{tier}: {case.get('classname')}::{case.get('name')}")
            elif "skipped" in outcomes:
                skipped[tier, outcomes["skipped"].get("message") or "no reason given"] += 1
            else:
                passed += 1
        if failed_here:
            failed += failed_here
            failed_steps = [step for step in failed_steps if step != tier]
    failed += failed_steps
    lines = [f"  skipped   {tier}: {count} x {reason}" for (tier, reason), count in sorted(skipped.items())]
    lines += [f"  FAILED    {name}" for name in failed]
    return [*lines, f"{passed} passed, {len(failed)} failed, {skipped.total()} skipped"]


if __name__ == "__main__":
    print("\n".join(summarise(sorted(Path(sys.argv[1]).glob("*.xml")), sys.argv[2:])))
