"""The spawn form: what it says, what can be chosen on it, that no text becomes an element, and what comes back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from bs4 import BeautifulSoup, Tag
from hypothesis import given
from hypothesis import strategies as st

import gpuspawner
from gpuspawner import form as module
from gpuspawner.errors import BadChoice
from gpuspawner.form import Card, FormView, Offer, State, parse, render
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare
from gpuspawner.outlook import Line
from gpuspawner.placement import Availability, Occupancy, Policy, availability
from gpuspawner.profiles import Catalogue, Profile
from gpuspawner.texts import LANGUAGES, Language, Text
from gpuspawner.units import GIB

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=timezone(timedelta(hours=9)))
view = partial(module.view, now=NOW)
CSS = Path(gpuspawner.__file__).parent / "templates" / "form.css"
NOT_BUILT = Text("image not built", "이미지 없음")
TROUBLE = Text("The NVIDIA driver does not answer.", "NVIDIA 드라이버가 응답하지 않습니다.")


def profile(slug: str = "gpu", **keys: Any) -> Profile:
    return Profile.model_validate({"display_name": slug.upper(), "slug": slug, "image": "scipy", **keys})


CPU = profile("cpu")
ONE = profile("one", gpu={"count": 1})
TWO = profile("two", gpu={"count": 2})
SHARE = profile("share", gpu={"memory": "8G"})
BIG = profile("big", gpu={"count": 1, "model": "H100"})
ALL = (CPU, ONE, TWO, SHARE, BIG)


def machine(cards: int, **keys: Any) -> Inventory:
    gpus = (Gpu(GpuUuid(f"GPU-{n}"), n, "NVIDIA GeForce RTX 4090", 24 * GIB) for n in range(cards))
    return Inventory(tuple(gpus), **keys)


def whole(card: int) -> CardShare:
    return CardShare(GpuUuid(f"GPU-{card}"))


def share(card: int) -> CardShare:
    return CardShare(GpuUuid(f"GPU-{card}"), 8 * GIB)


def offer(
    profile: Profile, *held: CardShare, cards: int = 2, unavailable: Text | None = None, trouble: Text | None = None
) -> Offer:
    """One offer as the real rules of placement see it."""
    inventory = Inventory(trouble=trouble) if trouble else machine(cards)
    return Offer(profile, availability(profile.gpu, inventory, Occupancy(tuple(held)), Policy()), unavailable)


def offers(profiles: Sequence[Profile], *held: CardShare, **keys: Any) -> list[Offer]:
    return [offer(profile, *held, **keys) for profile in profiles]


def card(form: FormView, slug: str) -> Card:
    return next(card for card in form.cards if card.slug == slug)


def page(form: FormView, template_paths: Sequence[str] = ()) -> BeautifulSoup:
    return BeautifulSoup(render(form, template_paths), "html.parser")


def radio(soup: BeautifulSoup, slug: str) -> Tag:
    found = soup.find("input", attrs={"name": "profile", "value": slug})
    assert isinstance(found, Tag)
    return found


def words(soup: BeautifulSoup | Tag) -> str:
    """What a person reads: the text without the style sheet, with single spaces."""
    for style in soup.find_all("style"):
        style.extract()
    return " ".join(soup.get_text(" ").split())


def label_words(form: FormView, slug: str) -> str:
    soup = page(form)
    label = soup.find("label", attrs={"for": radio(soup, slug)["id"]})
    assert isinstance(label, Tag)
    return words(label)


SICK = Offer(
    ONE,
    availability(
        ONE.gpu,
        Inventory(tuple(replace(gpu, fault=Text("lost")) for gpu in machine(2).gpus)),
        Occupancy(),
        Policy(),
    ),
)

# What a card says


@pytest.mark.parametrize(
    ("given", "state", "english", "korean"),
    [
        pytest.param(offer(CPU), "free", "free now", "사용 가능", id="cpu-only"),
        pytest.param(offer(ONE, whole(0)), "free", "1 of 2 GPUs free now", "GPU 2장 중 1장 사용 가능", id="free"),
        pytest.param(offer(ONE, cards=1), "free", "1 of 1 GPU free now", "GPU 1장 중 1장 사용 가능", id="one-card"),
        pytest.param(offer(SHARE, share(0)), "free", "3 of 4 shares free now", "분할 4개 중 3개 사용 가능", id="share"),
        pytest.param(
            offer(ONE, whole(0), whole(1)), "taken", "taken 0 of 2 GPUs", "사용 중 GPU 2장 중 0장", id="taken"
        ),
        pytest.param(
            offer(SHARE, whole(0), whole(1)), "taken", "taken 0 of 4 shares", "사용 중 분할 4개 중 0개", id="no-share"
        ),
        pytest.param(
            offer(TWO, whole(0)), "taken", "too few free 1 of 2 GPUs", "남은 수 부족 GPU 2장 중 1장", id="too-few"
        ),
        pytest.param(offer(BIG), "off", "not on this server", "이 서버에 없음", id="no-such-card"),
        pytest.param(SICK, "off", "out of order", "점검 중", id="out-of-order"),
        pytest.param(offer(ONE, trouble=TROUBLE), "off", "cannot be counted", "확인할 수 없음", id="unknown"),
        pytest.param(offer(CPU, unavailable=NOT_BUILT), "off", "image not built", "이미지 없음", id="not-built"),
        pytest.param(
            offer(ONE, whole(0), whole(1), unavailable=NOT_BUILT),
            "off",
            "image not built",
            "이미지 없음",
            id="not-built-and-taken",
        ),
    ],
)
def test_each_state_is_said_in_words_and_closes_the_radio_unless_free(
    given: Offer, state: State, english: str, korean: str
) -> None:
    """A profile says how many are free, or in a short phrase why it cannot start, and only a free one can be chosen."""
    for language, expected in (("en", english), ("ko", korean)):
        form = view([given], language=language)
        assert form.cards[0].state == state
        assert expected in label_words(form, given.profile.slug)
        assert radio(page(form), given.profile.slug).has_attr("disabled") == (state != "free")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(offer(BIG), id="no-such-card"),
        pytest.param(offer(ONE, trouble=TROUBLE), id="unknown"),
        pytest.param(offer(ONE, unavailable=NOT_BUILT), id="not-built"),
        pytest.param(offer(CPU), id="cpu-only"),
    ],
)
def test_a_number_is_shown_only_where_it_means_something(given: Offer) -> None:
    """What cannot be known or never starts is not shown as zero of anything."""
    shown = view([given], language="en").cards[0]
    assert (shown.count, shown.pips) == ("", ())


def test_the_symbols_differ_between_states() -> None:
    """State is never said by colour alone: each state has its own drawing beside its words."""
    busy = (whole(0), whole(1))
    waited = replace(offer(SHARE, *busy), line=Line(0))
    form = view([offer(CPU), *offers((ONE, TWO), *busy), offer(BIG), waited], language="en", asked="one")
    assert {shown.state for shown in form.cards} == set(get_args(State))
    soup = page(form)
    drawings = {str(label.find("path")) for label in soup.find_all("label")}
    assert len(drawings) == 5


def test_pips_draw_the_count_and_stop_where_nobody_would_count_them() -> None:
    """Filled squares are free ones; a large machine shows the number alone."""
    assert view([offer(ONE, whole(0))], language="en").cards[0].pips == (True, False)
    large = view([offer(ONE, cards=9)], language="en").cards[0]
    assert (large.pips, large.count) == ((), "9 of 9 GPUs free now")


@pytest.mark.parametrize(
    ("keys", "english", "korean"),
    [
        pytest.param({}, "no GPU", "GPU 없음", id="no-gpu"),
        pytest.param({"gpu": {"count": 1}}, "GPU 1 whole card", "GPU 1장 전체", id="one-card"),
        pytest.param(
            {"gpu": {"count": 2, "model": "RTX 4090"}},
            "GPU 2 whole cards (RTX 4090)",
            "GPU 2장 전체 (RTX 4090)",
            id="two-cards",
        ),
        pytest.param({"gpu": {"memory": "8G"}}, "GPU 8 GiB of one card", "GPU 1장 중 8 GiB", id="share"),
        pytest.param({"mem_limit": "16G"}, "RAM 16 GiB", "RAM 16 GiB", id="ram"),
        pytest.param({}, "RAM no limit CPU no limit", "RAM 제한 없음 CPU 제한 없음", id="no-limits"),
        pytest.param({"cpu_limit": 1}, "CPU 1 core ", "CPU 1코어 ", id="one-core"),
        pytest.param({"cpu_limit": 2.5}, "CPU 2.5 cores", "CPU 2.5코어", id="cores"),
        pytest.param({}, "Image scipy", "이미지 scipy", id="image"),
        pytest.param({"time_limit": "90m"}, "Time limit up to 1 h 30 min", "시간 한도 최대 1시간 30분", id="time"),
        pytest.param({"idle_timeout": "30m"}, "Idle limit up to 30 min", "유휴 한도 최대 30분", id="idle"),
    ],
)
def test_what_comes_with_a_profile_is_said_in_words(keys: dict[str, Any], english: str, korean: str) -> None:
    """GPU, RAM, CPU, image and limits stand on the card; a limit that is not set is not hidden."""
    for language, expected in (("en", english), ("ko", korean)):
        text = label_words(view([offer(profile(**keys))], language=language), "gpu")
        assert expected in text


def test_limits_that_do_not_exist_are_not_promised() -> None:
    """Without a time limit or an idle timeout the card speaks of neither."""
    text = label_words(view([offer(ONE)], language="en"), "one")
    assert "Time limit" not in text
    assert "Idle limit" not in text


def test_texts_of_the_admin_are_shown_in_the_language_of_the_reader() -> None:
    """Name and description come in Korean for a Korean page, and in what there is where Korean is missing."""
    named = profile(
        display_name={"en": "Whole card", "ko": "한 장"}, description={"en": "For training", "ko": "학습용"}
    )
    assert "한 장" in label_words(view([offer(named)], language="ko"), "gpu")
    assert "학습용" in label_words(view([offer(named)], language="ko"), "gpu")
    english_only = profile(display_name="Whole card", description="For training")
    assert "For training" in label_words(view([offer(english_only)], language="ko"), "gpu")


# What is chosen beforehand

BUSY = (whole(0), whole(1))


@pytest.mark.parametrize(
    ("held", "keys", "selected"),
    [
        pytest.param((), {}, "cpu", id="first"),
        pytest.param((), {"default": "two"}, "two", id="default"),
        pytest.param((), {"default": "two", "chosen": "share"}, "share", id="last-choice-fits"),
        pytest.param(BUSY, {"default": "cpu", "chosen": "one"}, "cpu", id="last-choice-taken"),
        pytest.param((whole(0),), {"default": "two", "chosen": "two"}, "cpu", id="both-taken"),
        pytest.param((), {"default": "two", "chosen": "removed"}, "two", id="last-choice-removed"),
        pytest.param(BUSY, {"default": "cpu", "chosen": "cpu", "asked": "one"}, "one", id="just-refused"),
        pytest.param((), {"default": "cpu", "asked": "one"}, "one", id="refused-but-free-by-now"),
        pytest.param((), {"default": "two", "asked": "evil"}, "two", id="asked-for-what-is-not-offered"),
    ],
)
def test_preselection(held: tuple[CardShare, ...], keys: dict[str, str], selected: str) -> None:
    """First what was just asked, then the last choice, the default and the first, each only if it fits."""
    form = view(offers(ALL, *held), language="en", **keys)
    assert form.selected == selected
    checked = [tag["value"] for tag in page(form).find_all("input") if tag.has_attr("checked")]
    assert checked == [selected]


def test_the_first_that_fits_is_taken_when_neither_last_choice_nor_default_fits() -> None:
    """Order of the configuration decides, not order of what is free."""
    form = view(offers((ONE, SHARE, TWO), share(0)), language="en", chosen="two", default="two")
    assert form.selected == "one"


@pytest.mark.parametrize(("language", "badge"), [("en", "last time"), ("ko", "지난번 선택")])
@pytest.mark.parametrize("held", [pytest.param((), id="fits"), pytest.param(BUSY, id="taken")])
def test_the_last_choice_carries_a_badge(language: Language, badge: str, held: tuple[CardShare, ...]) -> None:
    """The last choice can be found again, also when it cannot be had now; nothing else carries the badge."""
    form = view(offers(ALL, *held), language=language, chosen="one", default="cpu")
    assert badge in label_words(form, "one")
    assert [shown.slug for shown in form.cards if shown.badge] == ["one"]


@pytest.mark.parametrize(("language", "mark"), [("en", "not free right now"), ("ko", "지금은 사용 중")])
def test_a_refused_choice_stays_checked_and_can_be_tried_again(language: Language, mark: str) -> None:
    """After a refusal one click tries the same profile again; the page says that it is not free and stays honest."""
    form = view(offers(ALL, *BUSY), language=language, chosen="cpu", asked="one", default="cpu")
    chosen = radio(page(form), "one")
    assert chosen.has_attr("checked")
    assert not chosen.has_attr("disabled")
    assert mark in label_words(form, "one")
    assert card(form, "one").hint
    assert card(form, "two").disabled


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", "2 people are waiting, and your turn should come at about 15:40. Press Start to join the line."),
        ("ko", "2명이 대기 중입니다. 예상 차례는 15:40경입니다. Start를 누르면 대기열에 들어갑니다."),
    ],
)
def test_what_is_taken_can_be_waited_for(language: Language, words: str) -> None:
    """It can be chosen, says who is there before and until when, and sends back that it was seen as taken."""
    line = Line(2, NOW.replace(hour=15, minute=40).astimezone(timezone.utc))
    form = view([offer(CPU), replace(offer(ONE, *BUSY), line=line), offer(TWO, *BUSY)], language=language)
    soup = page(form)
    assert not radio(soup, "one").has_attr("disabled")
    assert words in label_words(form, "one")
    assert [tag["value"] for tag in soup.select("input[name=wait-for]")] == ["one"]
    assert radio(soup, "two").has_attr("disabled")
    assert form.selected == "cpu"
    assert view([replace(offer(ONE, *BUSY), line=line)], language=language).selected == "one"


def test_what_is_free_is_not_waited_for() -> None:
    """Whoever picked it when it was free comes back to the form if it was taken meanwhile."""
    form = view([replace(offer(ONE), line=Line(0))], language="en")
    assert page(form).select("input[name=wait-for]") == []


@pytest.mark.parametrize(
    ("sent", "options"),
    [
        pytest.param({"profile": ["one"], "wait-for": ["one", "two"]}, {"profile": "one", "wait": True}, id="taken"),
        pytest.param({"profile": ["cpu"], "wait-for": ["one", "two"]}, {"profile": "cpu"}, id="another"),
        pytest.param({"profile": ["one"], "wait": ["1"]}, {"profile": "one", "wait": True}, id="a query"),
        pytest.param({"profile": ["one"], "wait": ["perhaps"]}, {"profile": "one", "wait": ["perhaps"]}, id="garbage"),
        pytest.param({"wait-for": ["one"]}, {}, id="nothing chosen"),
    ],
)
def test_who_picks_what_was_shown_as_taken_wants_to_wait(
    sent: dict[str, list[str]], options: dict[str, object]
) -> None:
    """Without a script on the page; what cannot be understood is kept, so that it is refused."""
    assert parse(sent) == options


def test_a_refused_choice_that_is_free_by_now_is_shown_as_free() -> None:
    """The mark is about now, not about the refusal."""
    shown = card(view(offers(ALL), language="en", asked="one"), "one")
    assert (shown.state, shown.hint) == ("free", "")


def test_a_refused_choice_without_an_image_says_so() -> None:
    """Trying again is allowed whatever the reason was, but the reason shown is the true one."""
    form = view([offer(CPU), offer(ONE, unavailable=NOT_BUILT)], language="en", asked="one")
    assert form.selected == "one"
    assert card(form, "one").status == "image not built"


@pytest.mark.parametrize(("language", "words"), [("en", "Build it with: <make>"), ("ko", "만드는 명령: <make>")])
@pytest.mark.parametrize("asked", [pytest.param(None, id="plain"), pytest.param("one", id="just refused")])
def test_what_helps_an_unavailable_profile_is_on_its_card(language: Language, words: str, asked: str | None) -> None:
    """Beside the reason and as text; pressing Start again would not help, so the card does not say that it does."""
    remedy = Text("Build it with: <make>", "만드는 명령: <make>")
    broken = replace(offer(ONE, unavailable=NOT_BUILT), remedy=remedy)
    form = view([offer(CPU), broken], language=language, asked=asked)
    shown = radio(page(form), "one").find_parent("label")
    assert isinstance(shown, Tag)
    assert words in shown.get_text()
    assert "Start" not in shown.get_text()
    assert card(form, "cpu").hint == ""


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("given", "keys", "english", "korean"),
    [
        pytest.param([], {}, "No profile is offered to you", "그룹 등록을 요청", id="nothing-offered"),
        pytest.param(offers((ONE, BIG), *BUSY), {}, "No profile is free", "반납한 뒤 새로고침", id="all-taken"),
        pytest.param(
            [offer(CPU, unavailable=NOT_BUILT), offer(BIG)],
            {},
            "No profile can be started",
            "관리자에게 알린 뒤",
            id="none-can",
        ),
        pytest.param(
            offers((ONE, TWO), *BUSY), {"asked": "one"}, "No other profile is free", "다른 프로필이", id="only-retry"
        ),
    ],
)
def test_when_nothing_can_be_chosen_the_page_says_what_to_do(
    given: list[Offer], keys: dict[str, str], english: str, korean: str, language: Language
) -> None:
    """A clear sentence and a link that loads the page again, without its query."""
    soup = page(view(given, language=language, **keys))
    alert = soup.find(attrs={"role": "alert"})
    assert isinstance(alert, Tag)
    assert {"en": english, "ko": korean}[language] in words(alert)
    link = alert.find("a")
    assert isinstance(link, Tag)
    assert link["href"] == "?"


def test_no_such_sentence_while_something_can_be_chosen() -> None:
    """One free profile is enough; the link to count again is there all the same."""
    form = view(offers(ALL, *BUSY), language="en")
    assert form.advice == ""
    assert [link["href"] for link in page(form).find_all("a")] == ["?"]


STATES = st.builds(
    Availability,
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([offer(ONE).availability.refusal, *(o.availability.refusal for o in offers((ONE, BIG), *BUSY))]),
)
SLUGS = st.none() | st.sampled_from([p.slug for p in ALL] + ["gone"])


@given(
    st.lists(st.tuples(STATES, st.none() | st.just(NOT_BUILT)), max_size=len(ALL)),
    SLUGS,
    SLUGS,
    SLUGS,
    st.sampled_from(LANGUAGES),
)
def test_the_browser_always_sends_something_when_anything_can_be_chosen(
    states: list[tuple[Availability, Text | None]],
    chosen: str | None,
    asked: str | None,
    default: str | None,
    language: Language,
) -> None:
    """Exactly one open radio is checked if there is an open one, none otherwise, and a closed one never is."""
    given = [Offer(p, state, reason) for p, (state, reason) in zip(ALL, states, strict=False)]
    form = view(given, language=language, chosen=chosen, asked=asked, default=default)
    radios = page(form).find_all("input")
    checked = [tag for tag in radios if tag.has_attr("checked")]
    assert len(checked) == (1 if any(not tag.has_attr("disabled") for tag in radios) else 0)
    assert not any(tag.has_attr("disabled") for tag in checked)
    assert bool(form.advice) == all(not o.fits for o in given)
    assert all(shown.status or shown.count for shown in form.cards)


# What stands above the cards


@pytest.mark.parametrize(
    ("language", "banner"),
    [pytest.param("en", "Simulated GPUs", id="en"), pytest.param("ko", "시뮬레이션 GPU", id="ko")],
)
def test_simulated_gpus_are_announced(language: Language, banner: str) -> None:
    """Nobody takes a simulated card for a real one; a real one carries no banner."""
    assert banner in words(page(view(offers(ALL), language=language, simulated=True)))
    assert banner not in words(page(view(offers(ALL), language=language)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_end_of_the_last_server_is_told(language: Language) -> None:
    """The sentence about the last server stands on the page as it was given."""
    notice = Text("Your last server ran out of memory.", "지난번 서버는 메모리가 부족했습니다.")
    assert notice.into(language) in words(page(view(offers(ALL), language=language, notice=notice)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_trouble_with_the_cards_is_told_and_leaves_the_rest_open(language: Language) -> None:
    """GPUs that cannot be counted are an alert with its reason; a profile without one can still be chosen."""
    form = view(offers(ALL, trouble=TROUBLE), language=language, chosen="one", trouble=TROUBLE)
    alert = page(form).find(attrs={"role": "alert"})
    assert isinstance(alert, Tag)
    assert TROUBLE.into(language) in words(alert)
    assert form.selected == "cpu"


# The HTML


FULL = view(
    [*offers(ALL, whole(0)), offer(profile("unbuilt"), unavailable=NOT_BUILT)],
    language="ko",
    chosen="two",
    asked="two",
    simulated=True,
    notice=TROUBLE,
    trouble=TROUBLE,
)


def test_the_fragment_fits_into_the_form_of_the_hub() -> None:
    """It brings no form, no button and no script of its own, and carries its language."""
    soup = page(FULL)
    assert soup.find(["form", "button", "script", "iframe", "object"]) is None
    assert soup.find("input", attrs={"type": "submit"}) is None
    assert not [key for tag in soup.find_all(True) for key in tag.attrs if key.startswith("on")]
    roots = soup.find_all(True, recursive=False)
    assert [root["class"] for root in roots] == [["gpuspawner-form"]]
    assert roots[0]["lang"] == "ko"


def test_every_radio_is_named_by_its_card_inside_a_fieldset() -> None:
    """Assistive technology hears a group with a legend, and for each radio its name, its state and the rest."""
    soup = page(FULL)
    fieldset = soup.find("fieldset")
    assert isinstance(fieldset, Tag)
    legend = fieldset.find("legend")
    assert isinstance(legend, Tag)
    assert words(legend) == "프로필 선택"
    radios = fieldset.find_all("input")
    assert len(radios) == len(FULL.cards)
    for tag in radios:
        assert (tag["type"], tag["name"]) == ("radio", "profile")
        parent = tag.find_parent("label")
        assert isinstance(parent, Tag)
        assert parent["for"] == tag["id"]
        named = [soup.find(id=name) for name in [*tag["aria-labelledby"].split(), *tag["aria-describedby"].split()]]
        assert all(isinstance(found, Tag) and words(found) for found in named)
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))


def test_a_browser_does_not_bring_back_an_old_choice() -> None:
    """Firefox restores checked radios after a reload, disabled ones too, and would then send nothing: the default."""
    assert {tag.get("autocomplete") for tag in page(FULL).find_all("input")} == {"off"}


def test_no_radio_is_required() -> None:
    """A required radio that is disabled or cannot be seen would stop the form without a word."""
    assert not [tag for tag in page(FULL).find_all("input") if tag.has_attr("required")]


MARKUP = """</span></label><script>alert(1)</script><img src=x onerror="alert(1)">'"><b x='"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_becomes_an_element(language: Language) -> None:
    """Markup in any text of a profile or a notice is shown as it was typed, and the page has the same elements."""

    def form(text: str) -> FormView:
        # model_construct: the validation of slugs and images is a second wall, and not the one that is tested here.
        nasty = Profile.model_construct(
            **{
                **dict(ONE),
                "display_name": Text(text, text),
                "description": Text(text, text),
                "image": text,
                "slug": text,
            }
        )
        free, closed = offer(nasty), offer(nasty, unavailable=Text(text, text))
        says = Text(text, text)
        return view([free, closed], language=language, chosen=text, notice=says, trouble=says)

    harmless, harmful = page(form("harmless")), page(form(MARKUP))
    assert [(tag.name, sorted(tag.attrs)) for tag in harmful.find_all(True)] == [
        (tag.name, sorted(tag.attrs)) for tag in harmless.find_all(True)
    ]
    assert {tag["value"] for tag in harmful.find_all("input")} == {MARKUP}
    for name in ("gs-name", "gs-description", "gs-status", "gs-notice"):
        found = harmful.find(class_=name)
        assert isinstance(found, Tag)
        assert MARKUP in found.get_text()
    assert MARKUP in [tag.get_text() for tag in harmful.find_all(class_="gs-value")]


def test_the_style_sheet_touches_nothing_outside_the_form() -> None:
    """Every selector begins with the class of the form, so that the rest of the Hub's page stays as it is."""
    plain = re.sub(r"/\*.*?\*/", "", CSS.read_text(encoding="utf-8"), flags=re.DOTALL)
    plain = re.sub(r"@media[^{]*\{", "", plain)
    selectors = [one.strip(" }\n") for rule in re.findall(r"([^{}]+)\{[^{}]*\}", plain) for one in rule.split(",")]
    assert len(selectors) > 20
    assert [one for one in selectors if one.split()[0].split(":")[0] != ".gpuspawner-form"] == []


def test_the_style_sheet_moves_nothing_for_those_who_asked_for_that() -> None:
    """Transitions stand inside the query for people who did not ask for less motion."""
    css = CSS.read_text(encoding="utf-8")
    moving = re.findall(r"(?:transition|animation)[^;]*;", css)
    allowed = re.findall(r"@media \(prefers-reduced-motion: no-preference\) \{.*?\n\}", css, flags=re.DOTALL)
    assert moving
    assert all(any(rule in block for block in allowed) for rule in moving)


# Templates of the admin


def test_a_template_of_the_admin_comes_first(tmp_path: Path) -> None:
    """A form.html in an admin's folder takes the place of the package's, with the same view."""
    (tmp_path / "form.html").write_text("<p>{{ view.cards | length }} {{ view.cards[0].name }}</p>", encoding="utf-8")
    assert render(view([offer(CPU)], language="en"), [str(tmp_path)]) == "<p>1 CPU</p>"


def test_a_template_of_the_admin_can_build_on_the_packages(tmp_path: Path) -> None:
    """One block is replaced, the rest stays; what the admin writes is escaped as well."""
    (tmp_path / "form.html").write_text(
        '{% extends "gpuspawner/form.html" %}'
        '{% block notices %}<p id="rules">{{ view.cards[0].name }}</p>{% endblock %}',
        encoding="utf-8",
    )
    soup = page(view([offer(profile(display_name="<b>bold</b>"))], language="en"), [str(tmp_path)])
    rules = soup.find(id="rules")
    assert isinstance(rules, Tag)
    assert rules.get_text() == "<b>bold</b>"
    assert len(soup.find_all("input")) == 1


def test_a_style_sheet_of_the_admin_is_enough(tmp_path: Path) -> None:
    """A form.css alone changes the looks and leaves the words."""
    (tmp_path / "form.css").write_text(".mine {}", encoding="utf-8")
    soup = page(view([offer(CPU)], language="en"), [str(tmp_path)])
    style = soup.find("style")
    assert isinstance(style, Tag)
    assert style.get_text().strip() == ".mine {}"
    assert len(soup.find_all("input")) == 1


# What comes back


@pytest.mark.parametrize(
    ("form_data", "options"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"profile": ["cpu"]}, {"profile": "cpu"}, id="one"),
        pytest.param({"profile": []}, {}, id="no-value"),
        pytest.param({"profile": [""]}, {}, id="empty"),
        pytest.param({"_xsrf": ["2|abc"], "profile": ["cpu"]}, {"profile": "cpu"}, id="the-hubs-token"),
        pytest.param({"profile": ["cpu", "one"]}, {"profile": ["cpu", "one"]}, id="two"),
        pytest.param({"profile": ["", "one"]}, {"profile": ["", "one"]}, id="empty-and-one"),
        pytest.param({"image": ["evil"]}, {"image": ["evil"]}, id="unknown"),
        pytest.param(
            {"profile": ["cpu"], "gpu": ["99"]}, {"profile": "cpu", "gpu": ["99"]}, id="unknown-beside-a-profile"
        ),
        pytest.param({"profile": [" cpu"]}, {"profile": " cpu"}, id="not-trimmed"),
    ],
)
def test_parse(form_data: dict[str, list[str]], options: dict[str, Any]) -> None:
    """One profile is unpacked, nothing means the default, and whatever is not understood is kept to be refused."""
    before = {key: list(values) for key, values in form_data.items()}
    assert parse(form_data) == options
    assert form_data == before


@given(st.dictionaries(st.text() | st.sampled_from(["profile", "_xsrf", "image"]), st.lists(st.text(), max_size=3)))
def test_parse_never_raises_and_hides_nothing(form_data: dict[str, list[str]]) -> None:
    """Whatever a browser or a script sends: nothing unknown is lost, and what comes out is chosen or refused."""
    options = parse(form_data)
    unknown = set(form_data) - {"profile", "_xsrf"}
    assert set(options) - {"profile"} == unknown
    assert all(options[key] == form_data[key] for key in unknown)
    slugs = form_data.get("profile", [])
    try:
        choice = Catalogue(ALL).choose(options, groups=())
    except BadChoice:
        assert unknown or slugs not in ([], [""])
    else:
        assert not unknown
        assert slugs in ([], [""], [choice.profile.slug])


def test_what_the_page_offers_is_understood_when_it_comes_back() -> None:
    """Each radio that can be chosen leads to its own profile."""
    for tag in page(view(offers(ALL), language="en")).find_all("input"):
        if not tag.has_attr("disabled"):
            sent = {tag["name"]: [tag["value"]]}
            assert Catalogue(ALL).choose(parse(sent), groups=()).profile.slug == tag["value"]
