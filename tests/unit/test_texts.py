"""Words in two languages, and the choice between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.strategies  # noqa: F401  the Hypothesis profile
from gpuspawner.texts import LANGUAGES, Text, language_of


@pytest.mark.parametrize(
    ("text", "english", "korean"),
    [
        pytest.param(Text("GPU", "그래픽"), "GPU", "그래픽", id="both"),
        pytest.param(Text("GPU"), "GPU", "GPU", id="english-only"),
        pytest.param(Text("", "그래픽"), "그래픽", "그래픽", id="korean-only"),
        pytest.param(Text(""), "", "", id="neither"),
    ],
)
def test_a_missing_language_falls_back_to_the_other(text: Text, english: str, korean: str) -> None:
    """Whoever writes one language only is read in both."""
    assert (text.into("en"), text.into("ko"), str(text)) == (english, korean, english)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        pytest.param(None, "en", id="no-header"),
        pytest.param("", "en", id="empty"),
        pytest.param("ko", "ko", id="korean"),
        pytest.param("ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7", "ko", id="korean-browser"),
        pytest.param("en-US,en;q=0.9,ko;q=0.8", "en", id="english-browser"),
        pytest.param("KO-kr", "ko", id="case-does-not-matter"),
        pytest.param("fr-FR, ko;q=0.3", "ko", id="unknown-language-first"),
        pytest.param("de;q=0.9, fr;q=0.8", "en", id="only-unknown"),
        pytest.param("*", "en", id="any"),
        pytest.param("ko;q=0, en;q=0.1", "en", id="korean-refused"),
        pytest.param("ko;q=0", "en", id="only-korean-and-refused"),
        pytest.param("en;q=0.2,ko;q=0.3", "ko", id="by-quality-not-by-order"),
        pytest.param("ko, en", "ko", id="first-of-equals"),
        pytest.param("ko ; q = 0.5 , en ; q=0.4", "ko", id="spaces"),
        pytest.param("kok", "en", id="konkani-is-not-korean"),
        pytest.param("ko;q=nan", "en", id="quality-nan"),
        pytest.param("ko;q=inf", "en", id="quality-infinite"),
        pytest.param("ko;q=seven", "en", id="quality-no-number"),
        pytest.param("ko;q=-1", "en", id="quality-negative"),
        pytest.param(";;;,,,=q;", "en", id="garbage"),
    ],
)
def test_the_language_follows_the_accept_language_header(header: str | None, language: str) -> None:
    """The header's best known language is used, and English for everything that cannot be read."""
    assert language_of(header) == language


@given(st.text(st.sampled_from("koen-,;q=0.19 *\x00é"), max_size=60) | st.text())
def test_no_header_is_too_odd(header: str) -> None:
    """A header comes from anybody: it always gives a language and never an error."""
    assert language_of(header) in LANGUAGES
