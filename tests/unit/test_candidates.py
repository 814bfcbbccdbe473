"""The rules for a freshly built image: what keeps it from being used, and in which words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuspawner.candidates import (
    BOOT,
    COMMAND,
    CREDENTIALS,
    GPUS,
    HUB_VERSION,
    PACKAGES,
    SECRETS,
    SPECIAL,
    STARTS,
    USER,
    Boot,
    FileFacts,
    Finding,
    ImageConfig,
    ImportCost,
    PackageCheck,
    Verdict,
    best,
    is_credential,
    judge_boot,
    judge_config,
    judge_files,
    judge_hub_version,
    judge_packages,
    judge_smoke_test,
    judge_start,
    judge_user,
    most_expensive,
    over_budget,
    parse_imports,
    smoke_check,
)
from gpuspawner.units import MIB

GOOD = ImageConfig(
    id="sha256:1",
    user="jovyan",
    environment={"HOME": "/home/jovyan", "NVIDIA_VISIBLE_DEVICES": "void", "PIP_CERT": "/etc/ssl/certs/ca.crt"},
    command=("jupyterhub-singleuser",),
    history=(
        '/bin/sh -c #(nop)  CMD ["jupyterhub-singleuser"]',
        "|2 PIP_INDEX_URL=https://index.example/simple PIP_TRUSTED_HOST= /bin/sh -c pip install numpy",
        "RUN |1 PIP_INDEX_URL=https://index.example/simple /bin/sh -c apt-get update # buildkit",
        "RUN /bin/sh -c git clone https://git@code.example/tools.git # buildkit",
    ),
)
YARDSTICK = Boot(1.0, 0.8, 100 * MIB)


def checks(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.check for finding in findings]


def setting(name: str, value: str) -> ImageConfig:
    return replace(GOOD, environment={**GOOD.environment, name: value})


def test_a_good_image_has_no_finding() -> None:
    """What the images of the shelf say of themselves."""
    assert judge_config(GOOD) == ()


@pytest.mark.parametrize("user", ["", "root", "0", "root:users", "0:0"])
def test_root_is_found_in_each_spelling(user: str) -> None:
    """An image without a USER line runs as root as well."""
    assert checks(judge_config(replace(GOOD, user=user))) == [USER]


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        pytest.param("void", True, id="void"),
        pytest.param("none", True, id="none"),
        pytest.param("", True, id="empty"),
        pytest.param("VOID", True, id="capitals"),
        pytest.param("all", False, id="all"),
        pytest.param("0", False, id="index"),
        pytest.param("GPU-4ad1", False, id="uuid"),
        pytest.param("nvidia.com/gpu=all", False, id="cdi-name"),
    ],
)
def test_an_image_must_not_ask_for_gpus(value: str, fine: bool) -> None:
    """Anything but nothing is a request under a default nvidia runtime."""
    assert checks(judge_config(setting("NVIDIA_VISIBLE_DEVICES", value))) == ([] if fine else [GPUS])


def test_an_image_that_says_nothing_about_gpus_is_fine() -> None:
    """The Hub sets the variable for every container."""
    environment = {name: value for name, value in GOOD.environment.items() if name != "NVIDIA_VISIBLE_DEVICES"}
    assert judge_config(replace(GOOD, environment=environment)) == ()


def test_an_image_needs_a_command() -> None:
    """DockerSpawner reads the image's CMD, and fails on an image that has none."""
    assert checks(judge_config(replace(GOOD, command=()))) == [COMMAND]


@pytest.mark.parametrize(
    ("name", "value", "gives_away"),
    [
        ("HF_TOKEN", "hf_abc", True),
        ("DB_PASSWORD", "x", True),
        ("OPENAI_API_KEY", "sk-1", True),
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("AWS_ACCESS_KEY", "AKIA", True),
        ("apiKey", "x", True),
        ("wandb-api-key", "x", True),
        ("SSH_PRIVATE_KEY", "x", True),
        ("TOKEN", "", False),
        ("JUPYTER_TOKEN", "none", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("GPG_KEY", "A035C8C19219BA821ECEA86B64E628F8D684696D", False),
        ("DB_PASSWORD_FILE", "/run/secrets/db", False),
        ("REQUIRE_TOKEN_AUTH", "1", False),
        ("API_TOKEN", "$API_TOKEN", False),
        ("PASSWORD_REQUIRED", "strongly", False),
        ("SSL_CERT_FILE", "/etc/ssl/certs/ca.crt", False),
        ("KEYBOARD", "kr", False),
    ],
)
def test_a_credential_is_known_by_its_name_and_value(name: str, value: str, gives_away: bool) -> None:
    """By whole words of the name, where there is a value that could be one."""
    assert is_credential(name, value) is gives_away
    found = judge_config(setting(name, value))
    assert checks(found) == ([CREDENTIALS] if gives_away else [])
    assert not gives_away or (name in found[0].text and value not in found[0].text.replace(name, ""))


@pytest.mark.parametrize(
    ("step", "named"),
    [
        pytest.param("RUN |1 DEPLOY_TOKEN=abc /bin/sh -c make # buildkit", "DEPLOY_TOKEN", id="argument-buildkit"),
        pytest.param("|2 A=b DEPLOY_TOKEN=abc /bin/sh -c make", "DEPLOY_TOKEN", id="argument-classic"),
        pytest.param("|1 DEPLOY_TOKEN=abc /bin/bash -euo pipefail -c make", "DEPLOY_TOKEN", id="another-shell"),
        pytest.param("/bin/sh -c #(nop)  ENV DB_PASSWORD=abc", "DB_PASSWORD", id="env-classic"),
        pytest.param('ENV A=1 DB_PASSWORD="a b"', "DB_PASSWORD", id="env-buildkit"),
        pytest.param("/bin/sh -c pip -i https://kim:geheim@index.example/ x", "kim:…@index.example", id="url"),
        pytest.param("RUN |1 INDEX=https://a:geheim@i.example/ /bin/sh -c x", "a:…@i.example", id="url-argument"),
        pytest.param("/bin/sh -c git clone https://oauth2:geheim@code.example/x", "oauth2:…@code.example", id="clone"),
    ],
)  # fmt: skip
def test_what_build_steps_show_is_found(step: str, named: str) -> None:
    """docker history shows it to everyone; the finding does not repeat the secret itself."""
    found = judge_config(replace(GOOD, history=(*GOOD.history, step)))
    assert checks(found) == [CREDENTIALS]
    assert named in found[0].text
    assert "geheim" not in found[0].text


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("RUN |1 DEPLOY_TOKEN= /bin/sh -c make # buildkit", id="empty-argument"),
        pytest.param("/bin/sh -c git clone https://x:${TOKEN}@code.example/x", id="variable-in-url"),
        pytest.param("/bin/sh -c curl http://host.example:8080/a@b", id="port-and-at"),
        pytest.param("/bin/sh -c pip install torch@https://host.example/x", id="requirement-by-url"),
        pytest.param("/bin/sh -c echo 'c.Hub.token = get_token()' > config.py", id="word-in-a-command"),
    ],
)
def test_what_only_looks_like_a_credential_is_let_pass(step: str) -> None:
    """A false alarm would keep a good image from the students."""
    assert judge_config(replace(GOOD, history=(step,))) == ()


def test_a_secret_in_environment_and_history_is_named_once() -> None:
    """An ENV line is a build step too."""
    image = replace(setting("DB_PASSWORD", "abc"), history=("ENV DB_PASSWORD=abc",))
    assert len(judge_config(image)) == 1


@pytest.mark.parametrize(
    ("own", "parent", "expected"),
    [
        pytest.param(FileFacts({}, {}), FileFacts({}, {}), [], id="nothing"),
        pytest.param(FileFacts({"/bin/su": "setuid"}, {}), FileFacts({"/bin/su": "setuid"}, {}), [], id="inherited"),
        pytest.param(FileFacts({"/bin/su": "setuid"}, {}), FileFacts({}, {}), [SPECIAL], id="new"),
        pytest.param(FileFacts({"/x": "setuid"}, {}), FileFacts({"/x": "setgid"}, {}), [SPECIAL], id="more"),
        pytest.param(FileFacts({}, {}), FileFacts({"/bin/su": "setuid"}, {}), [], id="taken-off"),
        pytest.param(FileFacts({"/bin/su": "setuid"}, {}), None, [], id="nothing-to-compare-with"),
        pytest.param(FileFacts({}, {"/k": "a private key"}), None, [SECRETS], id="secret"),
        pytest.param(FileFacts({}, {"/k": "a key"}), FileFacts({}, {"/k": "a key"}), [SECRETS], id="inherited-secret"),
        pytest.param(FileFacts({"/x": "setuid"}, {"/k": "a key"}), FileFacts({}, {}), [SECRETS, SPECIAL], id="both"),
    ],
)  # fmt: skip
def test_files_are_judged_beside_the_parents(own: FileFacts, parent: FileFacts | None, expected: list[str]) -> None:
    """New rights are found; a secret stays one whoever brought it."""
    assert checks(judge_files(own, parent)) == expected


def test_many_files_are_named_up_to_ten() -> None:
    """A sentence, not a list of a thousand."""
    own = FileFacts({f"/bin/{number:02}": "setuid" for number in range(25)}, {})
    text = judge_files(own, FileFacts({}, {}), parent_name="gpuspawner/base")[0].text
    assert "/bin/09" in text
    assert "/bin/10" not in text
    assert "and 15 more, which gpuspawner/base does not have" in text


@pytest.mark.parametrize(("uid", "expected"), [(1000, []), (0, []), (1001, [USER]), (65534, [USER])])
def test_the_user_has_the_number_that_owns_the_homes(uid: int, expected: list[str]) -> None:
    """Root is found by the name of the user, and not twice."""
    assert checks(judge_user(uid)) == expected


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param("6.1.1\n", None, id="same"),
        pytest.param("6.0.0b1\n", None, id="same-major"),
        pytest.param("some warning\n6.2\n", None, id="after-a-warning"),
        pytest.param("5.4.4\n", ["version 5.4.4", "the Hub is 6.1.1", "jupyterhub==6.*"], id="older"),
        pytest.param("16.1.1\n", ["version 16.1.1"], id="newer"),
        pytest.param("", ["does not tell its version", "jupyterhub==6.*"], id="silent"),
        pytest.param("No such file: jupyterhub-singleuser", ["does not tell", "No such file"], id="missing"),
    ],
)
def test_the_server_has_the_hubs_major_version(answer: str, words: list[str] | None) -> None:
    """The finding names both versions and what to write where."""
    found = judge_hub_version("6.1.1", answer)
    assert checks(found) == ([] if words is None else [HUB_VERSION])
    assert [word for word in words or [] if word not in found[0].text] == []


def test_pip_check_is_judged_for_each_python() -> None:
    """Only the one whose packages do not fit is named, with pip's own lines."""
    line = "seaborn 0.13.2 requires matplotlib, which is not installed."
    found = judge_packages([PackageCheck("/usr/bin/python3", (line,)), PackageCheck("/opt/jupyter/bin/python3", ())])
    assert checks(found) == [PACKAGES]
    assert "/usr/bin/python3" in found[0].text
    assert line in found[0].text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        pytest.param(0, None, id="passes"),
        pytest.param(1, ["ended with status 1", "AssertionError: no glyphs"], id="fails"),
        pytest.param(137, ["ended with status 137"], id="killed"),
        pytest.param(None, ["did not end within 300 seconds"], id="hangs"),
    ],
)
def test_a_smoke_test_that_fails_is_told_with_its_last_lines(status: int | None, words: list[str] | None) -> None:
    """And with the path of the file, so that it can be opened."""
    lines = ["one", "", "AssertionError: no glyphs  "]
    found = judge_smoke_test("scipy", status, lines, limit_seconds=300)
    assert checks(found) == ([] if words is None else [smoke_check("scipy")])
    expected = [*words, "images/scipy/smoke_test.py"] if words else []
    assert [word for word in expected if word not in found[0].text] == []


def test_a_long_output_is_cut_to_its_end() -> None:
    """The last lines say what happened; a line without an end is cut as well."""
    lines = [f"line {number}" for number in range(100)] + ["x" * 5000]
    text = judge_start("ended by itself with exit code 1", lines)[0].text
    assert "line 99" in text
    assert "line 10\n" not in text
    assert len(text) < 1200


def test_a_server_that_printed_nothing_is_told_so() -> None:
    """No empty lines in the place of a log."""
    found = judge_start("ended by itself with exit code 1", ["", "  "])
    assert checks(found) == [STARTS]
    assert "It printed nothing." in found[0].text


@pytest.mark.parametrize(
    ("candidate", "over"),
    [
        pytest.param(YARDSTICK, 0, id="the-same"),
        pytest.param(Boot(0.5, 0.4, 50 * MIB), 0, id="less"),
        pytest.param(Boot(1.5, 1.2, 150 * MIB), 0, id="exactly-the-budget"),
        pytest.param(Boot(1.51, 0.8, 100 * MIB), 1, id="seconds"),
        pytest.param(Boot(1.0, 1.21, 100 * MIB), 1, id="cpu"),
        pytest.param(Boot(1.0, 0.8, 151 * MIB), 1, id="memory"),
        pytest.param(Boot(3.0, 2.4, 300 * MIB), 3, id="everything"),
    ],
)
def test_the_boot_budget_holds_for_each_figure(candidate: Boot, over: int) -> None:
    """Up to one and a half times the yardstick's, in seconds, CPU-seconds and memory."""
    assert len(over_budget(candidate, YARDSTICK)) == over
    assert checks(judge_boot(candidate, YARDSTICK, ())) == ([BOOT] if over else [])


def test_noise_is_left_out_by_taking_the_least() -> None:
    """A busy machine only ever adds: one quiet start of three is enough, figure by figure."""
    boots = [Boot(4.0, 0.8, 100 * MIB), Boot(1.1, 0.9, 101 * MIB), Boot(2.0, 2.0, 99 * MIB)]
    assert best(boots) == Boot(1.1, 0.8, 99 * MIB)
    assert over_budget(best(boots), YARDSTICK) == ()


def test_a_yardstick_of_nothing_excuses_everything() -> None:
    """A figure that the engine gives as zero says nothing."""
    assert over_budget(YARDSTICK, Boot(0.0, 0.0, 0)) == ()


def test_the_budget_is_told_with_figures_and_imports() -> None:
    """How much of what, how many times the yardstick, and which modules."""
    imports = (ImportCost("pandas", 0.41, 0.9), ImportCost("numpy", 0.2, 0.3))
    text = judge_boot(Boot(2.31, 0.8, 100 * MIB), YARDSTICK, imports)[0].text
    assert "2.31 s, 2.3 times 1.00 s" in text
    assert "CPU" not in text
    assert "pandas 0.41 s, numpy 0.20 s" in text


LOG = """\
import time: self [us] | cumulative | imported package
import time:       361 |        361 |   _distutils_hack
import time:      1232 |      30364 | site
import time:       239 |        239 |         _json
[I 2026-10-01 08:00:00.000 ServerApp] import time: is not what this line is about
import time:       545 |        784 |       json.scanner
import time:      1874 |       6688 | json.tool
"""


def test_import_times_are_read_from_a_log() -> None:
    """Python's own words, between lines of a server."""
    assert parse_imports(LOG.splitlines()) == (
        ImportCost("_distutils_hack", 0.000361, 0.000361),
        ImportCost("site", 0.001232, 0.030364),
        ImportCost("_json", 0.000239, 0.000239),
        ImportCost("json.scanner", 0.000545, 0.000784),
        ImportCost("json.tool", 0.001874, 0.006688),
    )


def test_the_ten_most_expensive_are_those_that_take_longest_themselves() -> None:
    """A package that only imports others is not to blame."""
    imports = [ImportCost(f"m{number}", number / 100, 9.0) for number in range(20)]
    named = most_expensive([ImportCost("outer", 0.0, 99.0), *imports])
    assert [cost.module for cost in named] == [f"m{number}" for number in range(19, 9, -1)]


def test_a_verdict_without_findings_is_good() -> None:
    """And one with a finding is not."""
    assert Verdict((), (USER,)).ok
    assert not Verdict((Finding(USER, "It runs as root."),), (USER,)).ok
