"""Runs with the students' Python inside the base image and every image built on it: python smoke_test.py"""

import importlib.metadata
import json
import os
import pathlib
import pwd
import subprocess


def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def a_student_owns_the_home_and_nothing_else():
    assert pwd.getpwuid(os.getuid()).pw_name == "jovyan", "the image must not run as root"
    assert (os.getuid(), os.getgid()) == (1000, 100)
    pathlib.Path.home().joinpath(".smoke").write_text("x")
    pathlib.Path.home().joinpath(".smoke").unlink()
    assert not os.access("/opt/jupyter", os.W_OK) and not os.access("/usr/local/lib", os.W_OK)


def the_server_is_complete():
    print("jupyterhub-singleuser", run("jupyterhub-singleuser", "--version"))
    print("jupyter lab", run("jupyter", "lab", "--version"))
    run("/opt/jupyter/bin/pip", "check")


def the_kernel_is_the_students_python():
    kernels = json.loads(run("jupyter", "kernelspec", "list", "--json"))["kernelspecs"]
    assert kernels["python3"]["spec"]["argv"][0] == "/usr/bin/python3"
    print("ipykernel", importlib.metadata.version("ipykernel"))
    run("pip", "check")


def no_gpu_is_asked_for():
    assert os.environ["NVIDIA_VISIBLE_DEVICES"] == "void" or pathlib.Path("/dev/nvidiactl").exists()


for check in (
    a_student_owns_the_home_and_nothing_else,
    the_server_is_complete,
    the_kernel_is_the_students_python,
    no_gpu_is_asked_for,
):
    check()
    print("ok:", check.__name__.replace("_", " "))
