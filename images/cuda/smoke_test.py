"""Runs with the students' Python inside the cuda image, with or without a GPU: python smoke_test.py"""

import os
import pathlib
import subprocess
import tempfile

ADD = r"""
#include <cstdio>
#include <vector>

#define CHECK(call) do { cudaError_t e = (call); if (e != cudaSuccess) { \
    std::printf("%s: %s\n", #call, cudaGetErrorString(e)); return 1; } } while (0)

__global__ void add(int n, const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += x[i];
}

int main() {
    const int n = 1 << 20;
    std::vector<float> x(n, 1.0f), y(n, 2.0f);
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
        std::puts("host part only: no GPU is attached");
        return 0;
    }
    cudaDeviceProp card;
    CHECK(cudaGetDeviceProperties(&card, 0));
    float *dx, *dy;
    CHECK(cudaMalloc(&dx, n * sizeof(float)));
    CHECK(cudaMalloc(&dy, n * sizeof(float)));
    CHECK(cudaMemcpy(dx, x.data(), n * sizeof(float), cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(dy, y.data(), n * sizeof(float), cudaMemcpyHostToDevice));
    add<<<(n + 255) / 256, 256>>>(n, dx, dy);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(y.data(), dy, n * sizeof(float), cudaMemcpyDeviceToHost));
    for (float value : y) if (value != 3.0f) { std::printf("wrong sum: %f\n", value); return 1; }
    std::printf("kernel ran on %s\n", card.name);
    return 0;
}
"""


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def a_program_runs(*options):
    pathlib.Path("add.cu").write_text(ADD)
    run("nvcc", *options, "add.cu", "-o", "add")
    said = run("./add")
    assert said.startswith("kernel ran on") == os.path.exists("/dev/nvidiactl"), said
    return said


def nvcc_compiles_for_an_rtx_4090():
    # Machine code for that card alone. On another one only the next check can run.
    run("nvcc", "--version")
    pathlib.Path("add.cu").write_text(ADD)
    run("nvcc", "-arch=sm_89", "-cubin", "add.cu", "-o", "add.cubin")
    assert pathlib.Path("add.cubin").read_bytes()[:4] == b"\x7fELF"


def what_nvcc_makes_without_options_runs():
    print(a_program_runs())


def what_is_made_for_the_card_that_is_there_runs():
    print(a_program_runs("-arch=native" if os.path.exists("/dev/nvidiactl") else "-arch=sm_89"))


print(run("nvcc", "--version").splitlines()[-2])
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    for check in (
        nvcc_compiles_for_an_rtx_4090,
        what_nvcc_makes_without_options_runs,
        what_is_made_for_the_card_that_is_there_runs,
    ):
        check()
        print("ok:", check.__name__.replace("_", " "))
    os.chdir("/")
