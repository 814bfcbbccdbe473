"""The settings of `GPUSpawner`: traits with help, and their defaults. Nothing here acts on them."""

from __future__ import annotations

import os
from typing import Any

from jupyterhub.traitlets import ByteSpecification
from traitlets import Dict, Enum, Float, Instance, Integer, List, TraitError, Unicode, Union, default, validate

from gpuspawner.engine_spawner import EngineSpawner
from gpuspawner.gpus import GpuSource
from gpuspawner.nvml import Nvml
from gpuspawner.units import parse_duration


class Settings(EngineSpawner):
    """What an admin can set for profiles, cards and containers."""

    profile_list = List(
        help="""
        The profiles that students choose from: a list of dictionaries.

        Keys: `display_name` and `description` (a text, or `{"en": …, "ko": …}`), `slug`, `image` (a folder of
        `images/`, or any image reference with a tag), `gpu` (`{"count": 1}` whole cards, or `{"memory": "8G"}` a
        counted share of one card; `model` narrows it to cards of that name), `mem_limit`, `cpu_limit`, `shm_size`,
        `pids_limit`, `time_limit`, `idle_timeout`, `groups`, `volumes`, `default`. Sizes are powers of 1024.

        A mistake stops the Hub at start with its path, for example
        `profile_list[2].gpu.count must be at least 1, got 0` (when the configuration ends with
        `gpuspawner.check_config(c)`).

            c.GPUSpawner.profile_list = [
                {"display_name": "One RTX 4090", "image": "pytorch", "gpu": {"count": 1}, "mem_limit": "32G"},
            ]
        """,
    ).tag(config=True)

    gpus = Instance(
        GpuSource,
        help="""
        Where the cards come from. The default asks the NVIDIA driver through NVML.

        `gpuspawner.FakeGPUs("2x24GiB")` counts and leases cards that do not exist: for trying the Hub on a machine
        without a GPU. No device is attached then, and the form says so.
        """,
    ).tag(config=True)

    gpu_memory_reserve = ByteSpecification(
        "1G",
        help="""
        How much memory of each card is never given away in shares, in bytes or as "1G" (powers of 1024).

        The driver and the CUDA context of each process live in it. A share fits a card while the sum of the shares
        stays within the card's memory less this reserve. Whole cards are not affected.
        """,
    ).tag(config=True)

    state_path = Unicode(
        "",
        help="""
        The folder in which the Hub keeps, across restarts, what is no lease: `cards.json` says which cards are drained
        (`gpuspawner drain`), and on which the driver has told of an error that an admin has not cleared yet.

        The default is the environment's GPUSPAWNER_STATE; without it drained cards are in use again after a restart,
        and the command line cannot reach the Hub. While the file cannot be read, no GPU is given to anybody.
        """,
    ).tag(config=True)

    drain_grace = Float(
        30.0,
        min=0.0,
        help="""
        Seconds that programs and memory of a server may stay on its card after the server has ended (30 by default).

        Until they are gone nobody gets that card; beyond it the card is shown as out of order, until they are gone.
        """,
    ).tag(config=True)

    gpu_attach = Enum(
        ("auto", "nvidia", "cdi"),
        default_value="auto",
        help="""
        How the engine is asked for the leased cards.

        "nvidia" is a device request to NVIDIA's container toolkit; "cdi" names the cards by CDI (engine 25 or newer);
        "auto", the default, takes CDI where `docker info` lists the cards' UUIDs, else "nvidia". With the wrong one a
        start fails, and the student reads that the GPU could not be attached.
        """,
    ).tag(config=True)

    concurrent_boots = Integer(
        0,
        min=0,
        help="""
        How many servers may boot at once, from the creation of the container to its first answer.

        0, the default, is two for each processor. When a class clicks Start together, each waits for a turn and reads
        that other servers are just starting: the first is ready at once, and the last no later than if all had begun
        together. A boot of more than 3 seconds lets the next one begin.
        """,
    ).tag(config=True)

    default_shm_fraction = Float(
        0.25,
        min=0.01,
        max=1.0,
        help="""
        Shared memory (/dev/shm) of a profile without `shm_size`, as a part of its memory limit; without one, 1 GiB.

        PyTorch's DataLoader needs it; with too little a student reads "bus error". It counts against the RAM limit.
        """,
    ).tag(config=True)

    default_pids_limit = Integer(
        4096,
        min=64,
        help="""
        How many processes and threads a container of a profile without `pids_limit` may have.

        Beyond it a student reads "Resource temporarily unavailable"; other students notice nothing.
        """,
    ).tag(config=True)

    log_max_size = Unicode(
        "10m",
        help="""
        The size at which the log of a container is rotated, in Docker's notation; three files are kept. The default,
        10 MiB, keeps a chatty notebook from filling the engine's disk.
        """,
    ).tag(config=True)

    home_path_template = Unicode(
        "",
        help="""
        A folder of the host for each user's home, with `{username}` in it, such as "/srv/homes/{username}".

        The default, "", keeps each home in a Docker volume named `<prefix>-home-<user>`. `{username}` becomes the
        user's name where that is plain, else a safe form of it. A missing folder is made for uid 1000, which needs a
        Hub that runs as root on the engine's host; otherwise the student reads that the home could not be made.
        """,
    ).tag(config=True)

    queue_timeout = Integer(
        4 * 3600,
        min=0,
        help="""
        How long a student may wait in the line for a GPU, in seconds (4 hours by default); 0: nobody can wait.

        It comes on top of `start_timeout`, which counts only while the server is really being started. When it is over
        the student reads that no GPU became free, and may join again. Whoever waits counts as a pending spawn: set
        `c.JupyterHub.concurrent_spawn_limit` to 0 or above the number of your students, or the Hub turns others away.
        """,
    ).tag(config=True)

    max_overtakes = Integer(
        3,
        min=0,
        help="""
        How often somebody who waits may be passed by a smaller or shorter request that came later (3 by default).

        One that came later is served first only where that does not delay the one at the head, as far as the time
        limits of the running servers tell; 0 keeps the strict order of arrival, and cards idle more often.
        """,
    ).tag(config=True)

    limits = Dict(
        help="""
        How much one person, or a group together, may have at once, and in a rolling window: no limit by default.

        `{"user": {"gpus": 1, "gpu_memory": "16G", "waiting": 1, "gpu_hours": "20h/7d"}, "groups": {"thesis": {"gpus":
        2}}, "groups_total": {"students": {"gpus": 3}}}`. A group's entry takes the place of `user`, key by key, for its
        members; of several groups the most generous counts. Whoever has enough reads which limit it is, and when more
        comes. `docs/howto/limits-and-reservations.md` has all of it. Hours need `state_path`.
        """,
    ).tag(config=True)

    gpu_hours = Dict(
        help="""
        GPU time of each member of a group in a rolling window, as `{"students": "20h/7d"}`: the short form of
        `gpu_hours` in `limits`. None by default. What is left is shown on the form.
        """,
    ).tag(config=True)

    reservations = List(
        help="""
        When cards belong to a class: `[{"group": "ai-course", "gpus": 2, "weekly": "Mon 09:00-12:00", "timezone":
        "Asia/Seoul"}]`, or `from` and `until` for a single time. None by default.

        During it those cards go only to members of the group. Before it a server that would run into it gets less time,
        or with `"before": "refuse"` is not started, and its owner reads why.
        """,
    ).tag(config=True)

    max_extension = Union(
        [Integer(min=0), Unicode()],
        default_value=4 * 3600,
        help="""
        How much longer than its profile's `time_limit` a server may run, as "4h" (the default) or in seconds; 0: no
        longer.

        Its owner adds an hour at a time on the Hub's home page, as long as nobody waits for that kind of card and no
        class has reserved it. Needs `state_path`, and an authenticator that registers
        `gpuspawner.handlers.HANDLERS`, as `LabAuthenticator` does.
        """,
    ).tag(config=True)

    form_template_paths = List(
        Unicode(),
        help="""
        Folders that are searched for `form.html` before the package's own template. The default is none. A template
        that fails shows the student an error page, so try it before a class.
        """,
    ).tag(config=True)

    @validate("max_extension")
    def _max_extension_is_a_time(self, proposal: Any) -> int:
        value = proposal["value"]
        try:
            return 0 if value in (0, "0") else parse_duration(value)
        except ValueError as error:
            raise TraitError(f"GPUSpawner.max_extension {error}") from None

    @default("gpus")
    def _default_gpus(self) -> GpuSource:
        return Nvml()

    @default("state_path")
    def _default_state_path(self) -> str:
        return os.environ.get("GPUSPAWNER_STATE", "")

    @default("start_timeout")
    def _default_start_timeout(self) -> int:
        return 120
