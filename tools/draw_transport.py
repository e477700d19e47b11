"""Draws an example of optimal transport: 25 laptops in each of two warehouses, for two shops.

python tools/draw_transport.py --out docs/transport.png
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from matplotlib.figure import Figure

from keras_ssl.solvers.transport import sinkhorn

DISTANCE = np.array([[1.0, 3.0], [2.0, 1.0]])  # km from warehouses A and B to shops 1 and 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/transport.png")
    options = parser.parse_args()
    figure = Figure((9, 2.7), layout="constrained", dpi=110)
    for axes, lam in zip(figure.subplots(1, 3), (0.1, 1.0, 25.0), strict=True):
        plan = sinkhorn(-DISTANCE, rows=[25, 25], columns=[25, 25], lam=lam).plan()
        for i, warehouse in enumerate("AB"):
            axes.text(-0.08, 1 - i, f"{warehouse}\n25", ha="right", va="center", fontsize=11)
            axes.text(1.08, 1 - i, f"{i + 1}\n25", ha="left", va="center", fontsize=11)
            for j in range(2):
                if plan[i, j] < 0.05:
                    continue
                axes.plot([0, 1], [1 - i, 1 - j], color="C0", lw=plan[i, j] / 2.5, alpha=0.5)
                axes.text(
                    0.25,
                    1 - i + 0.25 * (i - j) + 0.09,
                    f"{plan[i, j]:.1f}",
                    ha="center",
                    fontsize=9,
                )
        kilometers = (plan * DISTANCE).sum()
        axes.set_title(f"$\\lambda$ = {lam:g}: {kilometers:.1f} laptop kilometers", fontsize=10)
        axes.set(xlim=(-0.3, 1.3), ylim=(-0.35, 1.35))
        axes.axis("off")
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
