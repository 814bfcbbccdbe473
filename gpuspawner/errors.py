"""Every error that this package raises on purpose. No I/O.

::

    GPUSpawnerError
    ├── ConfigError          the configuration is wrong: names the path; stops the Hub at start
    ├── LabelError           labels of a container that cannot be read as a lease
    ├── RecipeError          a folder of images/ cannot be read as an image
    ├── BuildError           an image could not be built
    ├── RecordError          what is remembered of the cards cannot be read or written
    ├── HubError             the Hub's REST API refused, or did not answer
    └── Refused              a sentence for a person, with a reason from a closed set
        ├── BadChoice        what was asked is not offered (400)
        ├── NoRoom           it is offered, but nothing fits now, or never will on this machine (409)
        │   └── QueueTimedOut    it was waited for, and nothing became free in time
        ├── OverLimit        it is offered, but this person or their group has had enough for now (403)
        ├── GpusUnknown      the cards cannot be counted: nothing is leased on unknown (503)
        ├── EngineError      the Docker engine refused or failed (503)
        │   ├── EngineDown       it does not answer at all
        │   ├── EngineTimeout    one call took longer than its limit
        │   ├── ImageMissing     the image was never built or pulled
        │   ├── ImageUnfit       the image cannot run a notebook server
        │   ├── DiskFull         no space left on the engine's disk
        │   └── DeviceFault      the engine could not attach the leased cards
        ├── GpuNotArrived    the container runs, but does not hold its cards (503)
        ├── ServerDied       the container ended before or instead of serving (500)
        └── StartTimedOut    the server did not answer in time (504)

What a person reads is `text`, in two languages, and holds neither another user's name nor a traceback; `detail` is for
the log. The reason words are metric labels of the Hub (`jupyterhub_server_spawn_duration_seconds{reason=...}`), hence
the closed set.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from gpuspawner.texts import Text


class Reason(str, Enum):
    """Why a start was refused or failed: the closed set of metric label values."""

    CHOICE = "choice"
    LIMIT = "limit"
    BUSY = "busy"
    RESERVED = "reserved"
    TOO_BIG = "too-big"
    GPU_UNKNOWN = "gpu-unknown"
    ENGINE = "engine"
    NO_IMAGE = "no-image"
    IMAGE_UNFIT = "image-unfit"
    DISK_FULL = "disk-full"
    GPU_FAULT = "gpu-fault"
    DIED = "died"
    OUT_OF_MEMORY = "out-of-memory"
    TIMEOUT = "timeout"
    QUEUE_TIMEOUT = "queue-timeout"
    REMOVED = "removed"


class GPUSpawnerError(Exception):
    """The root of the tree."""


class ConfigError(GPUSpawnerError):
    """A setting is wrong. The message names its path, what is accepted and what was given."""


class LabelError(GPUSpawnerError):
    """The labels of a container claim a lease that cannot be read."""


class RecipeError(GPUSpawnerError):
    """A Dockerfile, or what it stands on, is wrong. The message begins with its path and line."""


class BuildError(GPUSpawnerError):
    """An image cannot be built, checked or moved: a sentence for the admin with the reason and what to do now."""


class RecordError(GPUSpawnerError):
    """The file of drained and sick cards cannot be read or written: a sentence for the admin with what to do now."""


class HubError(GPUSpawnerError):
    """The Hub's REST API refused or did not answer: a sentence for the log of the program that asked."""


class Refused(GPUSpawnerError):
    """A sentence for the person who asked: what was asked, why not, what to do now."""

    reason: Reason
    status_code: ClassVar[int] = 500

    def __init__(self, text: Text, *, reason: Reason | None = None, detail: str = "") -> None:
        super().__init__(str(text))
        self.text = text
        self.detail = detail
        if reason is not None:
            self.reason = reason


class BadChoice(Refused):
    """What was asked for is not offered to this person."""

    reason = Reason.CHOICE
    status_code = 400


class NoRoom(Refused):
    """Nothing fits.

    BUSY when it would on an empty machine, RESERVED when the cards are kept for a class, GPU_FAULT when all cards had
    to be well, else TOO_BIG. `why` is the sentence without its advice, for a page that has better advice.
    """

    reason = Reason.BUSY
    status_code = 409

    def __init__(self, text: Text, *, reason: Reason | None = None, detail: str = "", why: Text | None = None) -> None:
        super().__init__(text, reason=reason, detail=detail)
        self.why = why or text


class QueueTimedOut(NoRoom):
    """Nothing became free within the time that a request may wait."""

    reason = Reason.QUEUE_TIMEOUT


class OverLimit(Refused):
    """A limit of the person or of their group is reached. It is a rule of the house, whatever is free."""

    reason = Reason.LIMIT
    status_code = 403


class GpusUnknown(Refused):
    """The cards or their leases cannot be counted, so none is given away."""

    reason = Reason.GPU_UNKNOWN
    status_code = 503


class EngineError(Refused):
    """The Docker engine refused or failed."""

    reason = Reason.ENGINE
    status_code = 503


class EngineDown(EngineError):
    """The engine does not answer."""


class EngineTimeout(EngineError):
    """One call to the engine took longer than its limit. It goes on in its thread and may still have its effect."""


class ImageMissing(EngineError):
    """The image of the profile is not there."""

    reason = Reason.NO_IMAGE


class ImageUnfit(EngineError):
    """The image is there, but its command cannot be run."""

    reason = Reason.IMAGE_UNFIT


class DiskFull(EngineError):
    """The engine's disk is full."""

    reason = Reason.DISK_FULL


class DeviceFault(EngineError):
    """The engine or NVIDIA's hook could not attach the leased cards."""

    reason = Reason.GPU_FAULT


class GpuNotArrived(Refused):
    """The container runs without what was leased for it, or with more."""

    reason = Reason.GPU_FAULT
    status_code = 503


class ServerDied(Refused):
    """The container ended; the text says why as far as it can be known."""

    reason = Reason.DIED
    status_code = 500


class StartTimedOut(Refused):
    """The notebook server did not answer in time."""

    reason = Reason.TIMEOUT
    status_code = 504
