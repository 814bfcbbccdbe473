"""Rules: the page on which a person picks a profile. Pure: no await, no clock; the only files read are its templates.

`view` turns what is offered and what is free into ready words in one language, `render` puts those words into HTML
(autoescape is on: no text of a profile can become an element), `parse` reads what the browser sends back. None of them
decides what may start: `profiles.Catalogue.choose` and `placement.place` do, again, when the form comes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, PrefixLoader, StrictUndefined

from gpuspawner.errors import NoRoom, Reason
from gpuspawner.outlook import Line, before_joining
from gpuspawner.placement import Availability
from gpuspawner.profiles import GpuRequest, Profile
from gpuspawner.texts import Language, Text
from gpuspawner.units import format_bytes, format_duration

State = Literal["free", "line", "retry", "taken", "off"]
Kind = Literal["info", "warning", "danger"]

# More squares than this are not grasped at a glance; the number in words is always there.
_MAX_PIPS = 8

# Names of the profiles that the page showed as taken: whoever picks one of them wants to wait for it.
WAIT_FOR = "wait-for"

# What others have now and may give back.
_LATER = (Reason.BUSY, Reason.RESERVED)

# JupyterHub's XSRF token travels in the form where a Hub template puts it there.
_HUB_FIELDS = frozenset({"_xsrf"})

_LEGEND = Text("Choose a profile", "프로필 선택")
_FRESHNESS = Text("What is free was counted when this page opened.", "사용 가능 수는 이 페이지를 연 시점 기준입니다.")
_RELOAD = Text("Reload", "새로고침")
_LAST_TIME = Text("last time", "지난번 선택")
_NO_LIMIT = Text("no limit", "제한 없음")
_NO_GPU = Text("no GPU", "GPU 없음")

_FREE = Text("free now", "사용 가능")
_TAKEN = Text("taken", "사용 중")
_TOO_FEW = Text("too few free", "남은 수 부족")
_NOT_NOW = Text("not free right now", "지금은 사용 중")
_NOT_HERE = Text("not on this server", "이 서버에 없음")
_OUT_OF_ORDER = Text("out of order", "점검 중")
_UNKNOWN = Text("cannot be counted", "확인할 수 없음")
_STATUS = {
    Reason.TOO_BIG: _NOT_HERE,
    Reason.GPU_FAULT: _OUT_OF_ORDER,
    Reason.LIMIT: Text("limit reached", "한도 도달"),
    Reason.RESERVED: Text("kept for a class", "수업 예약"),
}
_RETRY = Text("Start tries it again.", "Start를 누르면 다시 시도합니다.")

_SIMULATED = Text("Simulated GPUs:", "시뮬레이션 GPU:")
_SIMULATED_MEANS = Text(
    "they are counted like real ones, but no GPU is attached to a notebook.",
    "실제처럼 할당되지만 노트북에 GPU가 연결되지는 않습니다.",
)
_TROUBLE = Text("No profile with a GPU can start right now.", "지금은 GPU 프로필을 시작할 수 없습니다.")

_NOTHING_OFFERED = Text(
    "No profile is offered to you. Ask the admin of this server to add you to a group, then reload this page.",
    "사용할 수 있는 프로필이 없습니다. 서버 관리자에게 그룹 등록을 요청한 뒤 새로고침하세요.",
)
_NOTHING_FREE = Text(
    "No profile is free right now. Wait until somebody stops a server, then reload this page.",
    "지금 사용 가능한 프로필이 없습니다. 다른 사용자가 반납한 뒤 새로고침하세요.",
)
_NOTHING_STARTS = Text(
    "No profile can be started right now; each one says why. Tell the admin of this server, then reload this page.",
    "지금 시작할 수 있는 프로필이 없습니다. 이유는 각 프로필에 표시되어 있습니다. "
    "서버 관리자에게 알린 뒤 새로고침하세요.",
)
_ONLY_RETRY = Text(
    "No other profile is free right now. Press Start to try the selected one again, or reload this page.",
    "지금 사용 가능한 다른 프로필이 없습니다. Start를 눌러 선택한 프로필을 다시 시도하거나 새로고침하세요.",
)


@dataclass(frozen=True)
class Offer:
    """One profile as it stands right now.

    `unavailable` is a short phrase for another reason why it cannot start, such as "image not built", and `remedy` the
    sentence that says what to do about that. `line` is what one who waits for it would find, None where nobody may.
    `note` is what to know before starting it.
    """

    profile: Profile
    availability: Availability
    unavailable: Text | None = None
    remedy: Text | None = None
    line: Line | None = None
    note: Text | None = None

    @property
    def waits(self) -> bool:
        """Whether it cannot start now, but can be waited for."""
        return self.line is not None and self.reason in _LATER

    @property
    def fits(self) -> bool:
        """Whether it could start now, as far as can be known."""
        return self.unavailable is None and self.availability.fits

    @property
    def reason(self) -> Reason | None:
        """Why the cards refuse it; None where they do not, or where something else stands before them."""
        refusal = self.availability.refusal
        return refusal.reason if refusal is not None and self.unavailable is None else None


@dataclass(frozen=True)
class Fact:
    """One line of a card, in words: "RAM" and "16 GiB". The label is "" where the value says it all: "no GPU"."""

    label: str
    value: str


@dataclass(frozen=True)
class Card:
    """One profile in words.

    `state` picks the symbol: "free", "line" (taken, and can be waited for), "retry" (just refused, may be tried again),
    "taken" (by others) or "off" (cannot start whatever others do). `status` is the state in words and `count` the
    number behind it; either may be "", never both. `pips` draws the count: True is a free one.
    """

    slug: str
    name: str
    description: str
    state: State
    status: str
    count: str
    pips: tuple[bool, ...]
    hint: str
    badge: str
    facts: tuple[Fact, ...]
    selected: bool

    @property
    def disabled(self) -> bool:
        """Whether it cannot be chosen on this page."""
        return self.state in ("taken", "off")


@dataclass(frozen=True)
class Notice:
    """A sentence above the cards; `lead` is its first words, set in bold, or ""."""

    kind: Kind
    text: str
    lead: str = ""


@dataclass(frozen=True)
class FormView:
    """Everything that the template shows, in one language.

    `advice` says what to do when nothing, or nothing but the profile just refused, can be chosen; else it is "".
    """

    language: Language
    simulated: bool
    legend: str
    freshness: str
    reload: str
    notices: tuple[Notice, ...]
    advice: str
    cards: tuple[Card, ...]

    @property
    def selected(self) -> str | None:
        """The slug of the profile that is checked, or None when none can be chosen."""
        return next((card.slug for card in self.cards if card.selected), None)


def view(
    offers: Sequence[Offer],
    *,
    language: Language,
    chosen: str | None = None,
    asked: str | None = None,
    default: str | None = None,
    simulated: bool = False,
    notice: Text | None = None,
    trouble: Text | None = None,
    infos: Sequence[Text] = (),
    now: datetime,
) -> FormView:
    """The form for a person to whom `offers` are open.

    `chosen` is the slug of the last choice, `asked` the one refused on this very page, `default` the one that `{}`
    means; each may name a profile that is not offered any more. `notice` says how the last server ended, `trouble` why
    the cards cannot be counted, `infos` what else to know (time left of servers, GPU-hours); `now` is local time, by
    which people read the clock. Whenever any card can be chosen, exactly one is selected.
    """
    selected = _selected(offers, chosen, asked, default)
    notices = []
    if simulated:
        notices.append(Notice("info", _SIMULATED_MEANS.into(language), _SIMULATED.into(language)))
    notices += [Notice("info", info.into(language)) for info in infos]
    if trouble is not None:
        notices.append(Notice("danger", trouble.into(language), _TROUBLE.into(language)))
    if notice is not None:
        notices.append(Notice("warning", notice.into(language)))
    return FormView(
        language=language,
        simulated=simulated,
        legend=_LEGEND.into(language),
        freshness=_FRESHNESS.into(language),
        reload=_RELOAD.into(language),
        notices=tuple(notices),
        advice=_advice(offers, asked).into(language),
        cards=tuple(
            _card(
                offer,
                language,
                selected=offer.profile.slug == selected,
                last=offer.profile.slug == chosen,
                asked=offer.profile.slug == asked,
                now=now,
            )
            for offer in offers
        ),
    )


def render(view: FormView, template_paths: Sequence[str] = ()) -> str:
    """The HTML for JupyterHub's spawn page: no `<form>`, no submit button, no script.

    A `form.html` or `form.css` in one of the folders `template_paths` takes the place of the package's; it can build on
    that one with `{% extends "gpuspawner/form.html" %}`.
    """
    return _environment(tuple(template_paths)).get_template("form.html").render(view=view)


def parse(form_data: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The options that a form or a query means; never raises.

    `{"profile": ["slug"]}` becomes `{"profile": "slug"}`, and no or an empty profile becomes `{}`. A profile that the
    page showed as taken, or `wait=1` in a query, becomes `"wait": True`. Everything that is
    not understood is kept as it came, so that `Catalogue.choose` refuses it with its sentence; dropping it would start
    something else than was asked for.
    """
    options: dict[str, Any] = {key: list(values) for key, values in form_data.items() if key not in _HUB_FIELDS}
    given = options.get("profile")
    if given in ([], [""]):
        del options["profile"]
    elif given is not None and len(given) == 1:
        options["profile"] = given[0]
    taken = options.pop(WAIT_FOR, [])
    if options.get("wait") in (["1"], ["true"]) or options.get("profile") in taken:
        options["wait"] = True
    return options


@lru_cache(maxsize=8)
def _environment(template_paths: tuple[str, ...]) -> Environment:
    ours = PackageLoader("gpuspawner")
    return Environment(
        loader=ChoiceLoader([FileSystemLoader(template_paths), ours, PrefixLoader({"gpuspawner": ours})]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _selected(offers: Sequence[Offer], chosen: str | None, asked: str | None, default: str | None) -> str | None:
    """The slug to check: what was just asked, else the last choice, the default or the first, if it fits."""
    if any(offer.profile.slug == asked for offer in offers):
        return asked
    # Where nothing is free, whoever presses Start at once gets into a line.
    fitting = [offer.profile.slug for offer in offers if offer.fits]
    fitting = fitting or [offer.profile.slug for offer in offers if offer.waits]
    return next((slug for slug in (chosen, default) if slug in fitting), fitting[0] if fitting else None)


def _advice(offers: Sequence[Offer], asked: str | None) -> Text:
    if not offers:
        return _NOTHING_OFFERED
    if any(offer.fits or offer.waits for offer in offers):
        return Text("")
    if any(offer.profile.slug == asked for offer in offers):
        return _ONLY_RETRY
    return _NOTHING_FREE if any(offer.reason is Reason.BUSY for offer in offers) else _NOTHING_STARTS


def _card(offer: Offer, language: Language, *, selected: bool, last: bool, asked: bool, now: datetime) -> Card:
    profile, availability = offer.profile, offer.availability
    state = _state(offer, asked)
    counted = profile.gpu is not None and offer.unavailable is None and offer.reason in (None, Reason.BUSY)
    few = counted and 0 < availability.total <= _MAX_PIPS
    return Card(
        slug=profile.slug,
        name=profile.display_name.into(language),
        description=profile.description.into(language) if profile.description else "",
        state=state,
        status=_status(offer, state).into(language),
        count=_count(profile.gpu, availability).into(language) if profile.gpu and counted else "",
        pips=tuple(index < availability.free for index in range(availability.total)) if few else (),
        hint=_hint(offer, state, now).into(language),
        badge=_LAST_TIME.into(language) if last else "",
        facts=tuple(Fact(label.into(language), value.into(language)) for label, value in _facts(profile)),
        selected=selected,
    )


def _state(offer: Offer, asked: bool) -> State:
    if offer.fits:
        return "free"
    if offer.waits:
        return "line"
    if asked:
        return "retry"
    return "taken" if offer.reason in _LATER else "off"


def _status(offer: Offer, state: State) -> Text:
    """The state in a short phrase; nothing where the count already says that some are free."""
    if offer.unavailable is not None:
        return offer.unavailable
    if offer.reason is None:
        return _FREE if offer.profile.gpu is None else Text("")
    if offer.reason is Reason.BUSY:
        if state == "retry":
            return _NOT_NOW
        return _TOO_FEW if offer.availability.free else _TAKEN
    return _STATUS.get(offer.reason, _UNKNOWN)


def _hint(offer: Offer, state: State, now: datetime) -> Text:
    """What to do about the state: of a profile that was just refused, pressing Start again helps at most."""
    refusal = offer.availability.refusal
    if state == "line" and offer.line is not None:
        how = before_joining(offer.line, now)
        if isinstance(refusal, NoRoom) and refusal.reason is Reason.RESERVED:
            return Text(f"{refusal.why.en} {how.en}", f"{refusal.why.ko} {how.ko}")
        return how
    if refusal is not None and offer.reason in (Reason.LIMIT, Reason.RESERVED):
        return refusal.text
    if offer.note is not None:
        return offer.note
    if offer.unavailable is not None and offer.remedy is not None:
        return offer.remedy
    return _RETRY if state == "retry" else Text("")


def _count(request: GpuRequest, availability: Availability) -> Text:
    free, total = availability.free, availability.total
    if request.memory_bytes is not None:
        return Text(
            f"{free} of {total} share{'s' if total != 1 else ''} free now", f"분할 {total}개 중 {free}개 사용 가능"
        )
    return Text(f"{free} of {total} GPU{'s' if total != 1 else ''} free now", f"GPU {total}장 중 {free}장 사용 가능")


def _facts(profile: Profile) -> list[tuple[Text, Text]]:
    memory, cpu = profile.mem_limit_bytes, profile.cpu_limit
    facts = [
        (Text("GPU" if profile.gpu else ""), _gpu(profile.gpu)),
        (Text("RAM"), Text(format_bytes(memory)) if memory is not None else _NO_LIMIT),
        (Text("CPU"), _cores(cpu) if cpu is not None else _NO_LIMIT),
        (Text("Image", "이미지"), Text(profile.image)),
    ]
    if profile.time_limit_seconds is not None:
        facts.append((Text("Time limit", "시간 한도"), _up_to(profile.time_limit_seconds)))
    if profile.idle_timeout_seconds is not None:
        facts.append((Text("Idle limit", "유휴 한도"), _up_to(profile.idle_timeout_seconds)))
    return facts


def _gpu(request: GpuRequest | None) -> Text:
    if request is None:
        return _NO_GPU
    model = f" ({request.model})" if request.model else ""
    if request.memory_bytes is not None:
        size = format_bytes(request.memory_bytes)
        return Text(f"{size} of one card{model}", f"1장 중 {size}{model}")
    count = request.count or 1
    return Text(f"{count} whole card{'s' if count != 1 else ''}{model}", f"{count}장 전체{model}")


def _cores(limit: float) -> Text:
    number = f"{limit:g}"
    return Text(f"{number} core{'s' if limit != 1 else ''}", f"{number}코어")


def _up_to(seconds: int) -> Text:
    words = format_duration(seconds)
    return Text(f"up to {words.en}", f"최대 {words.ko}")
