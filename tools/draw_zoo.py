"""Writes docs/zoo.md and its pictures from the cards of the models that tools/build_zoo.py exported.

python tools/draw_zoo.py --data cifar10/
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from budget import random_subset
from build_zoo import TASKS, VIEWS, new_encoder, selected
from matplotlib.figure import Figure

import keras_ssl as kssl
from keras_ssl import plotting, zoo

ROOT = Path(__file__).parent.parent
STAGES = ("stage1", "stage2", "stage3", "stage4")
NEIGHBORS, SEARCHED, QUERY = 9, 10_000, 7_032
MAPPED = ("untrained", "simclr", "supcon")  # models whose features are drawn as a map

TEXT = """# The zoo

Each task trains the same encoder, `resnet((32, 32, 3), width=16)`, on the images of CIFAR-10, without their
labels (except `supcon`). A task that needs another architecture trains it with the same number of features.
All tasks have the same budget: {views:,} views of 32x32 pixels that pass forward and backward. Each rotation
of an image counts as a view, and a tile counts by its pixels. A forward pass alone, of a relabeling or of a
momentum encoder, counts as a third of a view.{shorter}
Accuracies are in percent on the 10,000 test images; chance is 10. The data are a JPEG copy of CIFAR-10,
whose accuracies differ slightly from those of the original pixels.

`keras-ssl zoo` lists the models, and `kssl.load("rotation_cifar10")` loads an encoder by name.
`tools/build_zoo.py` trains the models, and `tools/draw_zoo.py` writes this page and draws its figures from
their cards.

![accuracy of the linear probe by task, versus the untrained encoder](zoo.png)

{accuracies}

- **linear**: multinomial logistic regression on the standardized features of a stage, averaged over the
  image, with 10,000 labels. The regularization and the stage in bold are chosen on a fifth of these labels.
- **gain**: the accuracy of the stage in bold minus that of the untrained encoder of the same architecture
  (mean of the seeds), whose best stage is chosen in the same way.{others}
- **kNN**: kNN on the stage in bold, with 20 neighbors weighted by exp(cosine / 0.07), and 10,000 labels (Wu
  et al., CVPR 2018).
- **fine-tuned**: the whole encoder and a linear head, trained on 10 % of the labels, 500 per class.
- **untrained**: {seeds}.

{details}

- **pretext**: the task's own metric on the test images, with the task's augmentation.
- **rank**: the effective rank of the 128 features.
- **alignment**: the mean squared distance between the features of an image and of its mirror image;
  **uniformity**: the logarithm of the mean Gaussian potential. Both are computed for features of unit length,
  and smaller is better for both (Wang & Isola, ICML 2020).
- **views/s** and **minutes**: the speed and duration of the training steps (partly with other programs
  running) on {machines}.

{absent}The figure shows the nearest neighbors among the test images, by the cosine of the features. The first
image of each row is the query:

![nearest neighbors of the same image in the features of each task](zoo_neighbors.png)
"""


def cards(folder):
    """Returns the cards of the zoo's models, a dict by task in the order of the task table."""
    found = {}
    for row in kssl.tasks.TASKS:
        if version := zoo.newest(Path(folder, f"{row.name}_cifar10")):
            found[row.name] = json.loads((version / zoo.CARD).read_text())
    return found


def percent(value):
    return f"{100 * value:.1f}"


def markdown(rows):
    """Formats rows of text as a Markdown table, the header first."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def accuracies(task, results, base):
    name, best = selected(results["stages"])
    shown = [percent(results["stages"][stage]["linear"]) for stage in STAGES]
    place = STAGES.index(name) if name in STAGES else -1  # the features are the last stage
    shown[place] = f"**{shown[place]}**"
    gain = "" if base is None else f"{100 * (best['linear'] - base):+.1f}"
    return [task, *shown, gain, percent(best["knn"]), percent(results["fine_tuned_10"])]


def pretext(card):
    found = card["pretext"]
    if "accuracy" in found:
        return f"accuracy {percent(found['accuracy'])}"
    if "psnr" in found:
        return f"{found['psnr']:.1f} dB, baseline {found['baseline_psnr']:.1f}"
    return ""


def page(found, untrained):
    """Returns the text of docs/zoo.md.

    Args:
        found: dict of cards by task.
        untrained: list of results of untrained encoders, one for each seed.
    """
    best = [selected(results["stages"])[1]["linear"] for results in untrained]
    base = float(np.mean(best))
    head = ("task", "linear 1", "2", "3", "4", "gain", "kNN", "fine-tuned 10 %")
    first = [head]
    for task, card in found.items():
        first.append(accuracies(f"`{task}`", card["results"], own_base(card) or base))
    first += [accuracies(f"untrained, seed {i}", r, None) for i, r in enumerate(untrained)]
    second = [("task", "pretext", "rank", "alignment", "uniformity", "views/s", "minutes")]
    for task, card in found.items():
        speed = f"{card['views_per_second']:,}", f"{card['minutes']:.0f}"
        second.append((f"`{task}`", pretext(card), *geometry(card["results"]), *speed))
    second += [(f"untrained, seed {i}", "", *geometry(r), "", "") for i, r in enumerate(untrained)]
    missing = [f"`{name}`" for name in TASKS if name not in found]
    return TEXT.format(
        views=VIEWS,
        accuracies=markdown(first),
        details=markdown(second),
        seeds=f"{len(best)} seeds, whose best stages have {' and '.join(map(percent, best))}",
        others=others(found),
        shorter=shorter(found),
        machines=" and ".join(sorted({card["machine"] for card in found.values()})),
        absent=f"Not trained yet: {', '.join(missing)}.\n\n" if missing else "",
    )


def others(found):
    """Returns a list in Markdown of the tasks that train another architecture, or an empty text."""
    lines = ""
    for task, card in found.items():
        if own := own_base(card):
            lines += f"\n  - `{task}`: {card['encoder']}, untrained {percent(own)}."
    return f" These tasks train another architecture:{lines}" if lines else ""


def shorter(found):
    """Names the tasks that had less than four fifths of the budget, or returns an empty text."""
    less = [
        f"`{task}` ({card['views']:,} views)"
        for task, card in found.items()
        if card["views"] < 0.8 * VIEWS
    ]
    return f" Less was spent on {', '.join(less)}." if less else ""


def own_base(card):
    """Returns the linear probe of the untrained encoder of a model, or None if it is the zoo's usual one."""
    return float(np.mean(card["untrained"])) if "untrained" in card else None


def geometry(results):
    return tuple(
        f"{results[name]:.{digits}f}"
        for name, digits in (("effective_rank", 1), ("alignment", 3), ("uniformity", 2))
    )


def chart(found, untrained):
    """Draws the linear probe of each task versus the range of the untrained encoders."""
    figure = Figure((8, 0.3 * len(found) + 1.3), layout="constrained", dpi=110)
    axes = figure.subplots()
    names = list(found)[::-1]
    values = [100 * selected(found[name]["results"]["stages"])[1]["linear"] for name in names]
    bars = axes.barh(names, values, color="tab:blue")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    best = [100 * selected(results["stages"])[1]["linear"] for results in untrained]
    axes.axvspan(min(best), max(best), color="tab:orange", alpha=0.4)
    axes.axvline(
        np.mean(best),
        color="tab:orange",
        label="untrained encoder, best stage (short: of the same architecture)",
    )
    for place, name in enumerate(names):
        if own := own_base(found[name]):
            axes.plot(
                [100 * own, 100 * own], [place - 0.4, place + 0.4], color="tab:orange", linewidth=3
            )
    axes.set_xlim(0, max(values) + 6)
    axes.set_xlabel("linear probe, selected stage (%)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def neighbors(found, folder, test):
    """Draws the nearest neighbors of the same image in the features of each task."""
    part = kssl.data.subset(test, np.arange(SEARCHED))
    pixels = kssl.data.to_arrays(part)["image"]
    rows = []
    for name in found:
        encoder = kssl.load(Path(folder, f"{name}_cifar10"))
        features = kssl.evaluation.extract(encoder, part)[0]["features"]
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        nearest = np.argsort(-(features @ features[QUERY]))[: NEIGHBORS + 1]
        rows.append([(pixels[i], name if k == 0 else "") for k, i in enumerate(nearest)])
    return plotting.grid(rows)


def maps(folder, test):
    """Draws the features of test images in two dimensions by t-SNE, colored by class."""
    from sklearn.manifold import TSNE

    part = random_subset(test, 2_000)
    labels = kssl.data.to_arrays(part)["label"]
    figure = Figure((4 * len(MAPPED), 4.7), layout="constrained", dpi=90)
    for name, axes in zip(MAPPED, figure.subplots(1, len(MAPPED)), strict=True):
        exported = Path(folder, f"{name}_cifar10")
        encoder = new_encoder() if name == "untrained" else kssl.load(exported)
        features = kssl.evaluation.extract(encoder, part)[0]["features"]
        places = TSNE(metric="cosine", init="pca", random_state=0).fit_transform(features)
        for label, of_class in enumerate(test.class_names):
            axes.scatter(*places[labels == label].T, s=4, color=f"C{label}", label=of_class)
        axes.set(title=name, xticks=[], yticks=[])
    shown = axes.get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=10, markerscale=4)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with train/ and test/; downloaded without it")
    parser.add_argument("--models", default=ROOT / "saved_models")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    found = cards(options.models)
    untrained = list(json.loads(Path(options.models, "untrained.json").read_text()).values())
    (options.out / "zoo.md").write_text(page(found, untrained))
    chart(found, untrained).savefig(options.out / "zoo.png")
    test = kssl.data.cifar10(options.data, "test")
    neighbors(found, options.models, test).savefig(options.out / "zoo_neighbors.png")
    maps(options.models, test).savefig(options.out / "contrastive_map.png")


if __name__ == "__main__":
    main()
