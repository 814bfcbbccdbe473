"""`GPUSpawner`: what JupyterHub sees. A few overrides and wiring; its settings are in `settings`.

No rule, no HTML and no Docker call of its own: rules are in the pure modules, a start is a `launch.Launch`, and how a
container is polled and stopped is in `engine_spawner`. `_apply` is the only writer of inherited traits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any

from jupyterhub import orm
from jupyterhub.spawner import SpawnException
from traitlets import default

from gpuspawner import form
from gpuspawner.container import ContainerSpec, Defaults, check_create_kwargs, check_host_config, literal, object_name
from gpuspawner.dockerd import Engine, image_missing
from gpuspawner.errors import BadChoice, NoRoom, Refused
from gpuspawner.guard import Extending
from gpuspawner.house import House
from gpuspawner.launch import Launch, Order, persist
from gpuspawner.leases import Owner
from gpuspawner.merging import copied, merging
from gpuspawner.outlook import (
    WAITING_PAGE,
    HomeTime,
    before_joining,
    home_time,
    hours_left,
    time_left,
    while_waiting,
)
from gpuspawner.placement import Policy
from gpuspawner.profiles import Catalogue, Choice
from gpuspawner.settings import Settings
from gpuspawner.status import HomeNotice, home_notice
from gpuspawner.terms import Rules
from gpuspawner.texts import Language, Text, language_of

# The inherited traits that `_apply` writes, and nothing else does.
APPLIED = ("image", "mem_limit", "cpu_limit", "volumes", "extra_create_kwargs", "extra_host_config")


class GPUSpawner(Settings):
    """Starts each server in a Docker container that holds exactly the cards its profile promises."""

    # Attributes that JupyterHub sets on every spawner.
    start_timeout: Any
    user_options: Any
    server: Any

    @default("options_form")
    def _default_options_form(self) -> Any:
        return self._render_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Any:
        return self._options_from_form

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        # `start` validates them, where the Hub logs no traceback for a refusal; without a hook it would warn here.
        return lambda spawner, options: None

    @default("object_name")
    def _object_name_default(self) -> str:
        return object_name(self._owner)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._configured = self._applied_traits()
        self._base = self._configured
        self._good_options = dict(self.user_options or {})
        self._launch: Launch | None = None
        self._choice: Any = {}
        self._start_timeout = self._patience = self.start_timeout

    # --- wiring -------------------------------------------------------------------------------------------------------

    @property
    def house(self) -> House:
        """What this Hub's spawners share; made by the first that asks."""
        settings = self.user.settings
        if "gpuspawner_house" not in settings:
            settings["gpuspawner_house"] = House(
                hub=self.prefix,
                catalogue=Catalogue.parse(self.profile_list),
                engine=Engine(
                    self.client_kwargs, threads=self.engine_threads, call_timeout_seconds=self.engine_timeout
                ),
                gpus=self.gpus,
                policy=Policy(self.gpu_memory_reserve),
                queue_timeout=self.queue_timeout,
                max_overtakes=self.max_overtakes,
                state=Path(self.state_path) if self.state_path else None,
                drain_grace_seconds=self.drain_grace,
                rules=Rules.parse(self.limits, self.gpu_hours, self.reservations, _here()),
                extending=Extending(max_seconds=self.max_extension),
                concurrent_boots=self.concurrent_boots,
                groups_of=self._groups_of,
            )
        house: House = settings["gpuspawner_house"]
        return house

    @property
    def engine(self) -> Engine:
        """The engine that all spawners of this Hub share."""
        return self.house.engine

    @property
    def being_undone(self) -> bool:
        """Whether an earlier start of this server is still being cleared away."""
        return self._owner in self.house.undoing

    def remove_later(self, container_id: str) -> None:
        """Remove a container for as long as it takes; the next start of this server waits for it."""
        going = persist(lambda: self.engine.remove(container_id), self._log_name)
        self.house.keep_undoing(self._owner, asyncio.ensure_future(going))

    def died(self, death: Refused) -> None:
        """Keep what the student should read about a server that ended by itself."""
        self.house.last_words[self._owner] = death.text

    @property
    def _owner(self) -> Owner:
        return Owner(self.user.name, self.name, self.prefix)

    @property
    def _groups(self) -> frozenset[str]:
        return frozenset(group.name for group in self.user.groups)

    @property
    def _language(self) -> Language:
        if self.handler is not None:
            return language_of(self.handler.request.headers.get("Accept-Language"))
        return self.house.languages.get(self.user.name, "en")

    def _groups_of(self, users: Collection[str]) -> dict[str, frozenset[str]]:
        """The groups that users are in now, from the Hub's database."""
        # Names only: loading each user with all that belongs to it takes some ten times as long.
        rows = self.user.db.query(orm.User.name, orm.Group.name).outerjoin(orm.User.groups)
        found: dict[str, set[str]] = {}
        for user, group in rows.filter(orm.User.name.in_(users)):
            found.setdefault(user, set()).update(() if group is None else (group,))
        return {user: frozenset(groups) for user, groups in found.items()}

    def _for_the_hub(self, error: Refused) -> SpawnException:
        """A refusal as JupyterHub shows it cleanly everywhere: form, pending page, REST (docs: SpawnException)."""
        words = error.text.into(self._language)
        exception = SpawnException(
            words, reason=error.reason.value, log_message=words.replace("%", "%%"), status_code=error.status_code
        )
        exception.jupyterhub_message = words
        return exception

    # --- choosing -----------------------------------------------------------------------------------------------------

    async def _render_form(self, spawner: Any = None) -> str:
        house = self.house
        await house.ready()
        language = house.languages[self.user.name] = self._language
        name, now = self.user.name, datetime.now().astimezone()
        offers, standing, trouble = await house.offers(self._groups, user=name, admin=bool(self.user.admin))
        infos = [time_left(server, ends, now) for server, ends in house.ends_of(name, standing)]
        if hours := house.hours_left(name, self._groups, standing):
            infos.append(hours_left(hours))
        fallback = house.catalogue.default_for(self._groups)
        chosen = (self.user_options or {}).get("profile")
        return form.render(
            form.view(
                offers,
                language=language,
                chosen=chosen if isinstance(chosen, str) else None,
                asked=house.asked.pop(self.user.name, None),
                default=fallback.slug if fallback else None,
                simulated=standing.inventory.simulated,
                notice=house.why_it_ended(self._owner),
                trouble=trouble,
                infos=infos,
                now=now,
            ),
            self.form_template_paths,
        )

    async def _options_from_form(self, form_data: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Refuse here what cannot start now: nothing is saved or counted yet, and the form comes back."""
        house = self.house
        await house.ready()
        try:
            choice = house.catalogue.choose(form.parse(form_data), self._groups)
            offers, _, _ = await house.offers(self._groups, user=self.user.name)
            offer = next(offer for offer in offers if offer.profile is choice.profile)
            if not offer.fits and not (choice.wait and offer.waits):
                house.asked[self.user.name] = choice.profile.slug
                raise self._refusal(offer)
        except Refused as error:
            raise self._for_the_hub(error) from None
        return choice.options

    async def options_from_query(self, query_data: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """As the form, but a query that names no profile shows the form.

        The Hub puts its own parameters into the address of a refused form; Enter there must not start anything.
        """
        if not form.parse(query_data):
            raise self._for_the_hub(BadChoice(Text("Choose a profile.", "프로필을 선택하세요.")))
        return await self._options_from_form(query_data)

    def _refusal(self, offer: form.Offer) -> Refused:
        refusal = offer.availability.refusal or image_missing(offer.profile.image_reference)
        if offer.unavailable is None and offer.line is not None and isinstance(refusal, NoRoom):
            how = before_joining(offer.line, datetime.now().astimezone())
            words = Text(f"{refusal.why.en} {how.en}", f"{refusal.why.ko} {how.ko}")
            return NoRoom(words, reason=refusal.reason)
        return refusal

    def _forget_options(self) -> None:
        """A choice that was refused does not become the default of the next start, nor does one that is gone by now."""
        try:
            good = self.house.catalogue.choose(self._good_options, self._groups).lasting if self._good_options else {}
        except Refused:
            good = {}
        self.user_options = good
        self.orm_spawner.user_options = dict(good)
        self.user.db.commit()

    # --- the home page ------------------------------------------------------------------------------------------------

    async def newer_environment(self, static_url: Any = None) -> HomeNotice | None:
        """For `templates/home.html`: the words about running servers of this user that a restart would renew.

        The Hub gives its templates no request; but `static_url`, which every page has, is a method of the handler.
        """
        language = self._language_of_page(static_url)
        spawners = {n: each for n, each in sorted(self.user.spawners.items()) if isinstance(each, GPUSpawner)}
        running = {name: each.running for name, each in spawners.items() if each.ready}
        names = [spawners[name].display_name or name for name in await self.house.renewable(running)]
        return home_notice(names, language)

    async def times(self, static_url: Any = None) -> list[HomeTime]:
        """For `templates/home.html`: how long this user's servers may run, and the way to more time."""
        language, now = self._language_of_page(static_url), datetime.now().astimezone()
        shown = [home_time(each, now, language) for each in await self.house.times.of(self.user.name)]
        if told := self.house.told.pop(self.user.name, None):
            shown.insert(0, HomeTime(told.into(language), language, urgent=True))
        return shown

    async def extend(self) -> None:
        """Ask for more time for this server; the home page says what has become of it."""
        more = await self.house.times.extend(self._owner)
        if isinstance(more, Text):
            self.house.told[self.user.name] = more

    def _language_of_page(self, static_url: Any) -> Language:
        request = getattr(getattr(static_url, "__self__", None), "request", None)
        if request is not None:
            return language_of(request.headers.get("Accept-Language"))
        return self.house.languages.get(self.user.name, "en")

    # --- starting -----------------------------------------------------------------------------------------------------

    def run_pre_spawn_hook(self) -> Any:
        """The Hub's last call before `start`: from here it takes how long that may last, with the time in the line.

        That somebody is willing to wait is said for one start, and is nothing to be saved.
        """
        self._choice, self._patience = self.user_options, self.start_timeout
        if isinstance(self.user_options, dict) and "wait" in self.user_options:
            self.user_options = {key: value for key, value in self.user_options.items() if key != "wait"}
            self.orm_spawner.user_options = dict(self.user_options)
            if self._choice["wait"] is True:
                self.start_timeout += self.queue_timeout
        return super().run_pre_spawn_hook()

    async def start(self) -> str:
        """Start the server and wait until it answers. Raises SpawnException with a sentence for the student."""
        house, owner = self.house, self._owner
        launch = None
        # The Hub has read it.
        self.start_timeout = self._patience
        try:
            await house.ready()
            choice = house.catalogue.choose(self._choice, self._groups)
            launch = self._launch = Launch(
                self._order(choice),
                house.engine,
                house.ledger,
                house.gpus.inventory,
                self._boot,
                house.boots,
                house.undoing.get(owner),
            )
            url = await launch.run()
        except asyncio.CancelledError:
            # Until the Hub has called stop, its event stream would say "ready" and send the tabs to a dead server.
            self.server = None
            # Another request that ends before the next commit would take it back.
            self.user.db.commit()
            raise
        except Refused as error:
            if isinstance(error, (BadChoice, NoRoom)):
                self._forget_options()
            else:
                self.log.warning("%s could not start: %s %s", self._log_name, error, error.detail)
            raise self._for_the_hub(error) from None
        finally:
            if launch and launch.undoing and not launch.undoing.done():
                house.keep_undoing(owner, launch.undoing)
        self._good_options = dict(self.user_options or {})
        house.has_started(owner)
        house.meanings.forget(choice.profile.image_reference)
        return url

    def _order(self, choice: Choice) -> Order:
        return Order(
            owner=self._owner,
            choice=choice,
            defaults=Defaults(
                # Both traits are 0 where nobody has set them.
                mem_limit_bytes=self._base["mem_limit"] or None,
                cpu_limit=self._base["cpu_limit"] or None,
                shm_fraction=self.default_shm_fraction,
                pids_limit=self.default_pids_limit,
                log_max_size=self.log_max_size,
                home_path_template=self.home_path_template,
            ),
            gpu_attach=self.gpu_attach,
            # A little less than the Hub's own limit, whose failure has no words.
            time_limit_seconds=max(1.0, self.start_timeout - 3.0),
            api_path=self.server.base_url + "api",
            https=self.internal_ssl,
            may_pull=self.pull_policy not in ("never", "skip"),
            groups=self._groups,
            wait_seconds=self.queue_timeout if choice.wait and self.queue_timeout else None,
        )

    async def poll(self) -> int | None:
        """As `EngineSpawner` does. A Hub that starts anew asks this first: it follows the engine from then on."""
        self.house.open()
        return await super().poll()

    async def stop(self, now: bool = False) -> None:
        """Stop the container. Its cards are free when this returns; it is removed in the background.

        When the engine does not do it now, the Hub takes the server for stopped all the same: then its container goes
        as soon as the engine can, and the next start waits for that.
        """
        try:
            await super().stop(now)
        except Refused as error:
            self.log.warning("%s could not be stopped yet: %s", self._log_name, error.detail or error)
            if self.being_undone:
                # A start has just failed: its undoing removes what there is, and nobody would read the words.
                return
            if self.object_id:
                self.remove_later(self.object_id)
            raise self._for_the_hub(error) from None

    async def _boot(self, spec: ContainerSpec) -> tuple[str, int]:
        self._apply(spec)
        ip, port = await super().start()
        return ip, port

    async def apply_group_overrides(self) -> None:
        """The Hub sets traits for groups here, before each start: always upon what the admin configured."""
        self._launch = None
        self.start_timeout = self._start_timeout
        for name, value in self._configured.items():
            setattr(self, name, copied(value))
        await super().apply_group_overrides()
        self._base = self._applied_traits()

    def _applied_traits(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in APPLIED}

    def _apply(self, spec: ContainerSpec) -> None:
        """Write `spec` into the inherited traits, upon the configured values: nothing of an earlier profile stays."""
        base = self._base
        self.object_name = spec.name
        self.image = spec.image
        self.mem_limit = spec.mem_limit_bytes
        self.cpu_limit = spec.cpu_limit
        self.volumes = {**base["volumes"], **literal({source: dict(bind) for source, bind in spec.binds.items()})}
        ours = {"labels": dict(spec.labels), "environment": dict(spec.environment)}
        self.extra_create_kwargs = merging(base["extra_create_kwargs"], ours, check_create_kwargs)
        self.extra_host_config = merging(base["extra_host_config"], dict(spec.host_config), check_host_config)

    @property
    def waiting_words(self) -> str:
        """For `templates/spawn_pending.html`: what this page is for while the server waits in the line; else ""."""
        if self._launch is None or self._launch.place is None:
            return ""
        return WAITING_PAGE.into(self._language)

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """The steps of the start, for the Hub's pending page."""
        shown = None
        while self._start_pending:
            launch = self._launch
            if launch is None:
                await asyncio.sleep(0.05)
                continue
            changed, progress, words = launch.stage_changed, launch.stage.progress, launch.stage.text
            if notice := launch.notice:
                words = Text(f"{words.en}. {notice.en}", f"{words.ko}. {notice.ko}")
            if place := launch.place:
                changed = place.moved
                words = while_waiting(place.forecast, place.trouble, datetime.now().astimezone())
            message = words.into(self._language)
            if (progress, message) != shown:
                shown = progress, message
                yield {"progress": progress, "message": message}
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), 1)


def _here() -> tzinfo:
    """Where the clock hangs that people here read."""
    return datetime.now().astimezone().tzinfo or timezone.utc
