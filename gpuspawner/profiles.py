"""Nouns: what an admin offers (`Profile`, `Catalogue`) and what a student picked (`Choice`). No I/O.

The raw dictionaries of the configuration and of the request end here: everything behind this module is frozen and
validated. Words are KubeSpawner's where it has them (`display_name`, `slug`, `description`, `default`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from gpuspawner.errors import BadChoice, ConfigError
from gpuspawner.schemas import Bytes, Frozen, Seconds, mistake, shorten
from gpuspawner.texts import LANGUAGES, Text

SHELF = "gpuspawner"

_SHELF_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


def _text(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, str) and value.strip():
        return Text(value.strip())
    if (
        isinstance(value, Mapping)
        and value
        and set(value) <= set(LANGUAGES)
        and all(isinstance(words, str) and words.strip() for words in value.values())
    ):
        return Text(value.get("en", ""), value.get("ko", ""))
    raise ValueError(f"must be a text, or texts by language such as {{'en': …, 'ko': …}}, got {value!r}")


Words = Annotated[Text, BeforeValidator(_text)]


class GpuRequest(Frozen):
    """What a profile asks of the cards: `count` whole ones, or a share of `memory_bytes` of a single one.

    `model` narrows it to cards whose name holds these words.
    """

    count: int | None = Field(default=None, ge=1, strict=True)
    memory_bytes: Bytes | None = Field(default=None, alias="memory")
    model: str | None = Field(default=None, pattern=r"\S")

    @model_validator(mode="after")
    def _one_of_two(self) -> GpuRequest:
        if (self.count is None) == (self.memory_bytes is None):
            raise ValueError("must have either 'count' (whole cards) or 'memory' (a share of one card)")
        return self


class Volume(Frozen):
    """One extra mount. Words are DockerSpawner's: `bind` is the path inside, `mode` is "ro" (the default) or "rw"."""

    bind: str = Field(pattern=r"^/")
    mode: str = Field(default="ro", pattern=r"^(ro|rw)$")


class Profile(Frozen):
    """One entry of `profile_list`: an image with its limits and what it gets of the cards."""

    display_name: Words
    slug: str
    description: Words | None = None
    image: str = Field(min_length=1, pattern=r"^\S+$")
    gpu: GpuRequest | None = None
    mem_limit_bytes: Bytes | None = Field(default=None, alias="mem_limit")
    cpu_limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    shm_size_bytes: Bytes | None = Field(default=None, alias="shm_size")
    pids_limit: int | None = Field(default=None, ge=64, strict=True)
    time_limit_seconds: Seconds | None = Field(default=None, alias="time_limit")
    idle_timeout_seconds: Seconds | None = Field(default=None, alias="idle_timeout")
    groups: frozenset[str] | None = None
    volumes: Mapping[str, Volume] = Field(default_factory=dict)
    default: bool = Field(default=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _slug_from_name(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "slug" not in data and data.get("display_name"):
            name = data["display_name"]
            if isinstance(name, Mapping):
                name = name.get("en") or next(iter(name.values()), "")
            words = name if isinstance(name, str) else ""
            return {**data, "slug": "-".join(re.findall(r"[a-z0-9]+", words.lower()))}
        return data

    @field_validator("slug")
    @classmethod
    def _slug_is_plain(cls, slug: str) -> str:
        if not _SLUG.fullmatch(slug) or len(slug) > 63:
            raise ValueError(
                "must be lower-case letters, digits and single hyphens (up to 63); give one where the name has none, "
                f"got {slug!r}"
            )
        return slug

    @field_validator("groups", mode="before")
    @classmethod
    def _groups_are_names(cls, groups: object) -> object:
        if isinstance(groups, str) or (isinstance(groups, Collection) and not groups):
            raise ValueError(f"must be a list of at least one group name, got {groups!r}")
        return groups

    @field_validator("volumes", mode="before")
    @classmethod
    def _short_form(cls, volumes: object) -> object:
        if not isinstance(volumes, Mapping):
            return volumes
        return {source: {"bind": v} if isinstance(v, str) else v for source, v in volumes.items()}

    @model_validator(mode="after")
    def _shm_within_memory(self) -> Profile:
        if self.shm_size_bytes and self.mem_limit_bytes and self.shm_size_bytes > self.mem_limit_bytes:
            raise ValueError("has a shm_size above its mem_limit: shared memory counts against RAM")
        return self

    @model_validator(mode="after")
    def _one_volume_a_place(self) -> Profile:
        places = [volume.bind.rstrip("/") for volume in self.volumes.values()]
        if twice := sorted({place for place in places if places.count(place) > 1}):
            raise ValueError(f"has two volumes at {twice[0]}: Docker mounts one at a place")
        return self

    @property
    def image_reference(self) -> str:
        """What Docker is asked for: a bare name is an image of the shelf, everything else is taken as it is."""
        return f"{SHELF}/{self.image}:latest" if self.shelf_image else self.image

    @property
    def shelf_image(self) -> str | None:
        """The folder of `images/` that this profile's image is built from, or None for a foreign image."""
        return self.image if _SHELF_NAME.fullmatch(self.image) else None

    def open_to(self, groups: Collection[str]) -> bool:
        """Whether a member of `groups` may see and start it."""
        return self.groups is None or not self.groups.isdisjoint(groups)


@dataclass(frozen=True)
class Choice:
    """A profile that this person may start, picked by them or for them; `wait`: in the line, where nothing is free."""

    profile: Profile
    wait: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The form in which JupyterHub takes it as `user_options`."""
        return {**self.lasting, "wait": True} if self.wait else self.lasting

    @property
    def lasting(self) -> dict[str, Any]:
        """What of it is saved, shown in the admin panel, and meant by the next start without options."""
        return {"profile": self.profile.slug}


@dataclass(frozen=True)
class Catalogue:
    """All profiles, in the order of the configuration."""

    profiles: tuple[Profile, ...]

    @classmethod
    def parse(cls, raw: object, path: str = "profile_list") -> Catalogue:
        """Read a configuration.

        Raises:
            ConfigError: one line for each mistake, with its path, what is accepted and what was given.
        """
        if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
            raise ConfigError(f"{path} must be a list of profiles, got {type(raw).__name__}")
        if not raw:
            raise ConfigError(f"{path} is empty: give at least one profile, or nobody can start a server")
        mistakes: list[str] = []
        profiles: list[Profile] = []
        for index, entry in enumerate(raw):
            here = f"{path}[{index}]"
            try:
                profiles.append(Profile.model_validate(entry))
            except ValidationError as error:
                mistakes += [mistake(here, item, _KEYS) for item in _own(error.errors(), entry)]
        mistakes += _clashes(path, profiles) if not mistakes else []
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return cls(tuple(profiles))

    def offered_to(self, groups: Collection[str]) -> tuple[Profile, ...]:
        """The profiles that a member of `groups` sees."""
        return tuple(profile for profile in self.profiles if profile.open_to(groups))

    def default_for(self, groups: Collection[str]) -> Profile | None:
        """The profile that `{}` means: the one marked `default`, else the first that is offered, else None."""
        offered = self.offered_to(groups)
        return next((profile for profile in offered if profile.default), offered[0] if offered else None)

    def choose(self, options: object, groups: Collection[str]) -> Choice:
        """Turn what came in by form, REST, query or memory into a choice.

        `{}` is always legal where anything is offered.

        Raises:
            BadChoice: with a sentence for the person who asked.
        """
        if not isinstance(options, Mapping):
            raise BadChoice(
                Text(
                    f'The options must be an object such as {{"profile": "…"}}, not {shorten(options)}.',
                    f'옵션은 {{"profile": "…"}} 형식이어야 합니다. 받은 값: {shorten(options)}',
                )
            )
        if unknown := [key for key in options if key not in ("profile", "wait")]:
            raise BadChoice(
                Text(
                    f"Only a profile can be chosen here, not {shorten(unknown[0])}. "
                    "Pick one of the profiles on the form; image, GPU and limits come with it.",
                    f"여기서는 프로필만 선택할 수 있으며 {shorten(unknown[0])} 항목은 선택할 수 없습니다. "
                    "목록에서 프로필을 고르면 이미지, GPU, 한도가 함께 정해집니다.",
                )
            )
        wait = options.get("wait", False)
        if not isinstance(wait, bool):
            raise BadChoice(
                Text(
                    f'"wait" must be true (wait in the line if nothing is free) or false, not {shorten(wait)}.',
                    f'"wait"는 true(남은 GPU가 없으면 대기) 또는 false여야 합니다. 받은 값: {shorten(wait)}',
                )
            )
        if "profile" not in options:
            return replace(self._choose_default(groups), wait=wait)
        slug = options["profile"]
        profile = next((p for p in self.profiles if p.slug == slug), None) if isinstance(slug, str) else None
        # One sentence for both, so that nobody learns the names of profiles they may not see.
        if profile is None or not profile.open_to(groups):
            raise BadChoice(
                Text(
                    f"There is no profile {shorten(slug)} for you: it may have been renamed or removed, or it "
                    "belongs to another group. Choose one of the profiles on the form.",
                    f"사용할 수 있는 프로필 중에 {shorten(slug)} 프로필이 없습니다. 이름이 바뀌었거나 삭제되었거나 "
                    "다른 그룹의 프로필일 수 있습니다. 목록에서 다른 프로필을 선택하세요.",
                )
            )
        return Choice(profile, wait)

    def _choose_default(self, groups: Collection[str]) -> Choice:
        profile = self.default_for(groups)
        if profile is None:
            raise BadChoice(
                Text(
                    "No profile is offered to you: each belongs to a group that you are not in. "
                    "Ask the admin of this server to add you to a group.",
                    "사용할 수 있는 프로필이 없습니다. 모든 프로필이 다른 그룹에 속해 있습니다. "
                    "서버 관리자에게 그룹 등록을 요청하세요.",
                )
            )
        return Choice(profile)


def _clashes(path: str, profiles: Iterable[Profile]) -> list[str]:
    mistakes = []
    seen: dict[str, int] = {}
    defaults: list[int] = []
    for index, profile in enumerate(profiles):
        if profile.slug in seen:
            mistakes.append(
                f"{path}[{index}].slug must be unique: {profile.slug!r} is also {path}[{seen[profile.slug]}]'s"
            )
        seen.setdefault(profile.slug, index)
        if profile.default:
            defaults.append(index)
    if len(defaults) > 1:
        mistakes.append(
            f"{path}[{defaults[1]}].default must be given once: {path}[{defaults[0]}] is the default already"
        )
    return mistakes


def _own(errors: Sequence[Mapping[str, Any]], entry: object) -> list[Mapping[str, Any]]:
    """Without what is wrong with a slug only because the name that it would be made from is wrong."""
    made = not (isinstance(entry, Mapping) and "slug" in entry)
    nameless = any(error["loc"][:1] == ("display_name",) for error in errors)
    return [error for error in errors if not (made and nameless and error["loc"] == ("slug",))]


_KEYS = tuple(
    field.alias or name for model in (Profile, GpuRequest, Volume) for name, field in model.model_fields.items()
)
