"""Runs with the students' Python inside the scipy image: python smoke_test.py"""

import io
import tempfile
import warnings

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import openpyxl
import pandas as pd
import scipy.optimize
import seaborn as sns
from sklearn.linear_model import LinearRegression


def numbers_come_out_right():
    x = np.linspace(0, 10, 50)
    slope = LinearRegression().fit(x[:, None], 3 * x + 1).coef_[0]
    assert abs(slope - 3) < 1e-9
    assert abs(scipy.optimize.brentq(lambda v: v**2 - 2, 0, 2) - 2**0.5) < 1e-9


def excel_files_can_be_read():
    with tempfile.NamedTemporaryFile(suffix=".xlsx") as file:
        pd.DataFrame({"이름": ["가", "나"]}).to_excel(file.name, index=False)
        assert list(pd.read_excel(file.name)["이름"]) == ["가", "나"]
    assert openpyxl.__version__


def korean_plots_have_no_empty_boxes():
    # matplotlib warns for every glyph that no font has.
    for prepare in (lambda: None, sns.set_theme, lambda: sns.set_style("whitegrid")):
        matplotlib.rcdefaults()
        matplotlib.rc_file(matplotlib.matplotlib_fname())
        prepare()
        figure, axes = plt.subplots()
        axes.plot([-1, 0, 1], [-2, 0, 2])
        axes.set_title("한글 제목 −1 µ α")
        figure.savefig(io.BytesIO())
        plt.close(figure)


warnings.simplefilter("error", UserWarning)
for check in (numbers_come_out_right, excel_files_can_be_read, korean_plots_have_no_empty_boxes):
    check()
    print("ok:", check.__name__.replace("_", " "))
