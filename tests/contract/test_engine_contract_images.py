"""Images: named, moved, removed, in use, and made of a tar.

As in ``test_engine_contract``, each case runs against the stand-in and against a real engine.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuspawner.dockerd.images import Images
from tests.contract.engines import IMAGE, LABEL, Engine, refusal
from tests.contract.shelf import Shelf, packed

pytestmark = pytest.mark.contract

ID = re.compile("sha256:[0-9a-f]{64}")


@pytest.fixture
def shelf(engine: Engine) -> Iterator[Shelf]:
    """No image yet."""
    one = Shelf(engine)
    yield one
    one.clear()


def short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]


class TestNames:
    """Given, moved, taken away."""

    def test_what_inspect_says(self, shelf: Shelf) -> None:
        """Id, names, size, labels, and when it was named."""
        shelf.make(changes=('LABEL a="b c"',))
        image = shelf.inspect()
        assert ID.fullmatch(image["Id"])
        assert (image["RepoTags"], image["RepoDigests"]) == ([shelf.ref()], [])
        assert image["Config"]["Labels"] == {LABEL: shelf.engine.prefix, "a": "b c"}
        assert image["Size"] == 1
        assert image["Metadata"]["LastTagTime"] > "2020"
        assert image["Parent"] == ""

    def test_a_second_name(self, shelf: Shelf) -> None:
        """Both are listed in order, by whatever key; the moment of naming moves on."""
        made = shelf.make()
        before = shelf.inspect()["Metadata"]["LastTagTime"]
        assert shelf.client.tag(shelf.ref(), shelf.ref("b"), "2")
        assert shelf.names("b:2") == shelf.names(made) == ["a:1", "b:2"]
        assert shelf.client.inspect_image(short(made))["Id"] == made
        assert shelf.inspect()["Metadata"]["LastTagTime"] > before

    def test_a_name_moves(self, shelf: Shelf) -> None:
        """Whoever had it keeps its others, or lives on without a name."""
        one, other = shelf.make("a:1", "x"), shelf.make("b:1", "y")
        assert shelf.client.tag(shelf.ref("b:1"), shelf.ref("a"), "1")
        assert (shelf.names(one), shelf.names(other)) == ([], ["a:1", "b:1"])

    def test_the_last_name_takes_the_image_with_it(self, shelf: Shelf) -> None:
        """The first of two does not."""
        made = shelf.make()
        shelf.client.tag(made, shelf.ref("a"), "2")
        assert shelf.client.remove_image(shelf.ref("a:1")) == [{"Untagged": shelf.ref("a:1")}]
        gone = shelf.client.remove_image(shelf.ref("a:2"))
        assert gone[:2] == [{"Untagged": shelf.ref("a:2")}, {"Deleted": made}]
        assert refusal(shelf.client.inspect_image, made) == (404, f"no such image: {made}: No such image: {made}")

    def test_what_is_not_there(self, shelf: Shelf) -> None:
        """404, in nearly the same words."""
        ref = shelf.ref("nope:1")
        answer = (404, f"No such image: {ref}")
        assert refusal(shelf.client.remove_image, ref) == answer
        assert refusal(shelf.client.tag, ref, shelf.ref("b"), "1") == answer
        assert refusal(shelf.client.history, ref) == answer
        assert refusal(shelf.client.inspect_image, ref) == (404, f"no such image: {ref}: No such image: {ref}")
        assert refusal(shelf.client.remove_image, ref.removesuffix(":1"))[1].endswith("/nope:latest")

    def test_a_name_in_capitals(self, shelf: Shelf) -> None:
        """Refused."""
        made = shelf.make()
        text = "invalid reference format: repository name must be lowercase"
        assert refusal(shelf.client.tag, made, shelf.ref("B"), "1") == (500, text)

    def test_labels_choose(self, shelf: Shelf) -> None:
        """By key or by key and value; an image without a name is found as well."""
        one, other = shelf.make("a:1", "x", ("LABEL k=1",)), shelf.make("b:1", "y", ("LABEL k=2",))
        shelf.make("a:1", "z", ("LABEL j=1",))
        own = f"{LABEL}={shelf.engine.prefix}"

        def found(*labels: str) -> set[str]:
            return {each["Id"] for each in shelf.client.images(filters={"label": [own, *labels]})}

        assert found("k") == {one, other}
        assert found("k=2") == {other}
        assert found("k=3") == set()
        listed = {each["Id"]: each for each in shelf.client.images(filters={"label": [own]})}
        assert listed[one]["RepoTags"] == ["<none>:<none>"]
        assert listed[other]["RepoTags"] == [shelf.ref("b:1")]
        assert listed[other]["Labels"]["k"] == "2"


class TestUsed:
    """What a container was made from stays."""

    def test_the_last_name_of_a_used_image(self, shelf: Shelf) -> None:
        """It cannot be taken away, even if the container never ran; one of two can, and it can move."""
        made = shelf.make()
        shelf.engine.create("sleep", "60", image=made)
        container = shelf.client.inspect_container(shelf.engine.name())["Id"]
        assert refusal(shelf.client.remove_image, shelf.ref()) == (
            409,
            f'conflict: unable to remove repository reference "{shelf.ref()}" (must force) - container '
            f"{container[:12]} is using its referenced image {short(made)}",
        )
        shelf.client.tag(made, shelf.ref("b"), "1")
        shelf.client.remove_image(shelf.ref("b:1"))
        shelf.make("a:1", "other")
        assert shelf.names(made) == []
        assert shelf.client.containers(all=True, filters={"label": f"{LABEL}={shelf.engine.prefix}"})[0][
            "ImageID"
        ] == made  # fmt: skip

    def test_a_used_image_by_its_id(self, shelf: Shelf) -> None:
        """Refused for a stopped container, and with more names for another reason."""
        made = shelf.make()
        shelf.engine.create("sleep", "60", image=made)
        container = shelf.client.inspect_container(shelf.engine.name())["Id"]
        begin = f"conflict: unable to delete {short(made)} (must be forced) - image is "
        stopped = (409, f"{begin}being used by stopped container {container[:12]}")
        assert refusal(shelf.client.remove_image, made) == stopped
        shelf.client.tag(made, shelf.ref("b"), "1")
        assert refusal(shelf.client.remove_image, made) == (409, f"{begin}referenced in multiple repositories")
        shelf.client.remove_image(shelf.ref("b:1"))
        shelf.client.remove_container(shelf.engine.name())
        assert {"Deleted": made} in shelf.client.remove_image(made)

    def test_an_image_that_runs(self, shelf: Shelf) -> None:
        """Not even by force; but its name goes by force, and the image stays."""
        shelf.build("run:1", f"FROM {IMAGE}\nENV x=1\n")
        made = shelf.id("run:1")
        shelf.engine.run("sleep", "60", image=made)
        container = shelf.client.inspect_container(shelf.engine.name())["Id"]
        text = f"image is being used by running container {container[:12]}"
        assert refusal(shelf.client.remove_image, made, force=True) == (
            409,
            f"conflict: unable to delete {short(made)} (cannot be forced) - {text}",
        )
        assert shelf.client.remove_image(shelf.ref("run:1"), force=True) == [{"Untagged": shelf.ref("run:1")}]
        assert shelf.names(made) == []

    def test_what_another_image_stands_on(self, shelf: Shelf) -> None:
        """It loses its name, is in no list, and goes with the last that stands on it."""
        shelf.build("below:1", f"FROM {IMAGE}\nENV x=1\n")
        below = shelf.id("below:1")
        shelf.build("above:1", f"FROM {shelf.ref('below:1')}\nENV y=1\n")
        assert shelf.client.remove_image(shelf.ref("below:1")) == [{"Untagged": shelf.ref("below:1")}]
        assert below not in {each["Id"] for each in shelf.client.images()}
        assert refusal(shelf.client.remove_image, below) == (
            409,
            f"conflict: unable to delete {short(below)} (cannot be forced) - image has dependent child images",
        )
        shelf.client.remove_image(shelf.ref("above:1"))
        assert refusal(shelf.client.inspect_image, below)[0] == 404


class TestImport:
    """Images made of a tar."""

    def test_an_empty_one(self, shelf: Shelf) -> None:
        """Nothing but a name with labels: 0 bytes."""
        Images({"DOCKER_HOST": shelf.address}).mark(shelf.ref("mark:1"), {LABEL: shelf.engine.prefix, "h": "12ab"})
        image = shelf.inspect("mark:1")
        assert (image["Size"], image["Config"]["Labels"]["h"]) == (0, "12ab")
        assert image["Config"]["Cmd"] == ["bash"]

    def test_one_of_a_pipe(self, shelf: Shelf, tmp_path: Path) -> None:
        """A file system as tar prints it; one layer of its size."""
        (tmp_path / "hello").write_text("x" * 1000)
        with subprocess.Popen(["tar", "-C", str(tmp_path), "-c", "hello"], stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            label = {LABEL: shelf.engine.prefix}
            Images({"DOCKER_HOST": shelf.address}).load(tar.stdout, shelf.ref("tree:1"), labels=label)
        assert shelf.inspect("tree:1")["Size"] == 1000
        (layer,) = shelf.client.history(shelf.ref("tree:1"))
        assert (layer["Size"], layer["CreatedBy"], layer["Tags"]) == (1000, "", [shelf.ref("tree:1")])

    @pytest.mark.parametrize(
        ("data", "changes", "answer"),
        [
            pytest.param(
                b"x" * 600,
                [],
                (500, "Error processing tar file(exit status 1): archive/tar: invalid tar header"),
                id="no tar",
            ),
            pytest.param(packed(), ["RUN x"], (400, "run is not a valid change command"), id="another instruction"),
            pytest.param(packed(), ["LABEL x"], (400, "LABEL must have two arguments"), id="half a label"),
        ],
    )
    def test_what_is_refused(self, shelf: Shelf, data: bytes, changes: list[str], answer: tuple[int, str]) -> None:
        """With a status, not in the stream."""
        repository = shelf.ref("bad")
        call = shelf.client.import_image_from_data
        assert refusal(call, data, repository=repository, tag="1", changes=changes) == answer


def test_an_engine_has_a_name_of_its_own(engine: Engine) -> None:
    """By which it is told from all others, in every answer the same."""
    assert engine.client.info()["ID"] == engine.client.info()["ID"] != ""
