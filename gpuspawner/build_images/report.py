"""What came of a run, for programs: JSON for the journal, a file for Prometheus's textfile collector."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gpuspawner.build_images.plan import Step
from gpuspawner.build_images.refresh import BROKEN, Outcome
from gpuspawner.candidates import Boot
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from gpuspawner.recipes import CREATED_LABEL, PREFIX
from gpuspawner.recipes.versions import LATEST, Cost

LAST_SUCCESS = "gpuspawner_images_last_success_timestamp_seconds"


def of_a_run(
    outcomes: Iterable[Outcome], pushed: Mapping[str, tuple[str, ...]] | None = None, refused: str = ""
) -> dict[str, Any]:
    """Everything that a run did. `ok` is False where an image failed or was not reached, or a registry refused one."""
    outcomes = tuple(outcomes)
    found: dict[str, Any] = {
        "ok": not refused and not any(outcome.result in BROKEN for outcome in outcomes),
        "images": [_of_an_outcome(outcome, (pushed or {}).get(outcome.name, ())) for outcome in outcomes],
    }
    return {**found, "refused": refused} if refused else found


def _of_an_outcome(outcome: Outcome, pushed: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": outcome.name,
        "result": outcome.result,
        "why": outcome.why,
        "seconds": round(outcome.seconds, 1),
        "size_bytes": outcome.size_bytes,
    }
    if outcome.log:
        found["log"] = str(outcome.log)
    if pushed:
        found["pushed"] = list(pushed)
    if verdict := outcome.verdict:
        found["checks"] = list(verdict.checks)
        found["findings"] = [{"check": finding.check, "text": finding.text} for finding in verdict.findings]
        found["boot"] = _of_a_boot(verdict.boot)
        found["yardstick"] = _of_a_boot(verdict.yardstick)
    return found


def _of_a_boot(boot: Boot | None) -> dict[str, float] | None:
    if boot is None:
        return None
    return {
        "seconds": round(boot.seconds, 3),
        "cpu_seconds": round(boot.cpu_seconds, 3),
        "resident_bytes": boot.resident_bytes,
    }


def of_a_step(step: Step, cost: Cost | None = None) -> dict[str, Any]:
    """One image as it stands, and what would be done with it."""
    image = step.existing
    found: dict[str, Any] = {
        "name": step.name,
        "stands_on": step.recipe.parent.reference,
        "state": state_of(step),
        "reasons": list(step.reasons),
        "tag": image.as_version_of(step.name).digest[:12] if image else None,
        "built": image.labels.get(CREATED_LABEL) if image else None,
        "size_bytes": image.size_bytes if image else None,
    }
    if cost:
        found["shared_bytes"] = cost.shared_bytes
        found["own_bytes"] = cost.own_bytes
    return found


def state_of(step: Step) -> str:
    """One word for how an image stands: missing, held, stale or current."""
    if step.existing is None:
        return "missing"
    return "held" if step.held else "stale" if step.reasons else "current"


def write_metrics(path: Path | None, outcomes: Iterable[Outcome], images: Images) -> None:
    """Write the state of the images for Prometheus, in one step; nothing where no file is named.

    Raises:
        BuildError: the file cannot be written.
    """
    if path is None:
        return
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    outcomes = tuple(outcomes)
    registry = CollectorRegistry()
    now = time.time()
    is_well = not any(outcome.result in BROKEN for outcome in outcomes)
    Gauge("gpuspawner_images_last_run_timestamp_seconds", "When the last refresh ended.", registry=registry).set(now)
    success = now if is_well else _before(path)
    if success:
        Gauge(LAST_SUCCESS, "When all images were refreshed without a failure last.", registry=registry).set(success)
    built = Gauge(
        "gpuspawner_image_built_timestamp_seconds", "When what servers start from was built.", ["image"],
        registry=registry,
    )  # fmt: skip
    stale = Gauge(
        "gpuspawner_image_stale", "1 where what servers start from is not what its folder says.", ["image"],
        registry=registry,
    )  # fmt: skip
    for outcome in outcomes:
        stale.labels(outcome.name).set(outcome.result in (*BROKEN, "held"))
        image = images.get(f"{PREFIX}{outcome.name}:{LATEST}")
        if image and (created := image.labels.get(CREATED_LABEL)):
            built.labels(outcome.name).set(datetime.fromisoformat(created).timestamp())
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise BuildError(f"The file for Prometheus, {path}, cannot be written: {error.strerror}.") from error


def _before(path: Path) -> float | None:
    """The last success that the file of an earlier run knows."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{LAST_SUCCESS} "))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
