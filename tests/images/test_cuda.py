"""What a CUDA course needs of its image: compiling from a notebook, from a terminal and with CMake."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.images.conftest import Box
from tests.images.test_base import run_cell

FAMILY = "cuda"
pytestmark = pytest.mark.images

Open = Callable[..., Box]

HELLO = r"""
#include <cstdio>
#include <curand.h>
#include <thrust/host_vector.h>
#include <thrust/reduce.h>

__global__ void nothing() {}

int main() {
    thrust::host_vector<int> numbers(4, 10);
    int version = 0;
    curandGetVersion(&version);
    std::printf("%d %d\n", thrust::reduce(numbers.begin(), numbers.end()), version > 0);
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(hello LANGUAGES CXX CUDA)
find_package(CUDAToolkit REQUIRED)
add_executable(hello hello.cu)
set_target_properties(hello PROPERTIES CUDA_ARCHITECTURES 89 CUDA_RUNTIME_LIBRARY Shared)
target_link_libraries(hello CUDA::curand)
"""


def test_a_notebook_compiles_and_runs_a_program(open_box: Open, home: dict[str, dict[str, str]]) -> None:
    """`!nvcc`, as the image's README shows it."""
    box = open_box(volumes=home)
    box.put("hello.cu", HELLO.encode())
    assert run_cell(box, "!nvcc /tmp/hello.cu -lcurand -o hello && ./hello").strip() == "40 1"


def test_a_terminal_compiles_and_runs_a_program(open_box: Open) -> None:
    """A login shell, as JupyterLab starts it, knows nvcc, its libraries and where its programs find them."""
    box = open_box()
    box.put("hello.cu", HELLO.encode())
    command = "cd && nvcc -arch=sm_89 --cudart=shared /tmp/hello.cu -lcurand -o hello && ./hello"
    assert box.run("bash", "-lc", command).output.splitlines()[-1] == "40 1"


def test_cmake_finds_the_toolkit(open_box: Open) -> None:
    """A project in the language CUDA is configured, built and run without a hint."""
    box = open_box()
    box.put("hello.cu", HELLO.encode())
    box.put("CMakeLists.txt", PROJECT.encode())
    box.run("sh", "-c", "mkdir ~/project && cp /tmp/hello.cu /tmp/CMakeLists.txt ~/project")
    box.run("bash", "-lc", "cd ~/project && cmake -B build && cmake --build build")
    assert box.run("/home/jovyan/project/build/hello").output.strip() == "40 1"


@pytest.mark.parametrize("program", ["make", "g++", "gdb", "ptxas", "nvlink", "compute-sanitizer"])
def test_the_tools_of_a_course_start(open_box: Open, program: str) -> None:
    """Each says its version."""
    assert open_box().run("bash", "-lc", f"{program} --version").output
