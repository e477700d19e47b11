"""The plan of tools/plan_scale.py: sums by hand, what is out of bounds, and the tables of docs/scale.md."""

import json
import re
import sys
from pathlib import Path

import plan_scale
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


@pytest.fixture
def plan(monkeypatch, capsys):
    """`plan(arguments)`: what the command prints."""

    def run(arguments):
        monkeypatch.setattr(sys, "argv", ["plan_scale.py", "plan", *map(str, arguments)])
        plan_scale.main()
        return capsys.readouterr().out

    return run


def table(text, first):
    """Returns the rows of the table whose header begins with `first`: lists by their first cells."""
    part = text[text.index(f"| {first} |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in part.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def test_sums_by_hand(plan, tmp_path):
    costs = dict.fromkeys(plan_scale.COSTS, 1e-12)
    costs |= {
        "decode": 3.6,
        "views": 0.4,
        "step": 3.2,
        "forward": 0.36,
        "kmeans": 1e-3,
        "index": 3.6,
    }
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    common = ["--images", 4e6, "--costs", tmp_path / "costs.json", "--epochs", 5, "--cores", 10]
    text = plan([
        *common, "--days", 100, "--relabelings", 2, "--clusters", 90, "--relabel-by", "kmeans",
        "--dimensions", 256,
    ])  # fmt: skip
    stages = table(text, "stage")
    # 4e6 images, 7.2 s each, five times; twice 3.96 s, half of the views, and 90 clusters in 20 iterations
    # with twice as many dimensions as in the measurement.
    assert stages["train"][0] == "40,000"
    assert stages["relabel"][0] == "17,200"
    assert stages["extract"] == ["4,400", "147"]  # on three machines
    assert "3 x 10 cores train 5 epochs in 100 days" in text
    limits = table(text, "what grows")
    # Twice as long for each of the rows as at a million; 4/3 of the gradients.
    assert limits["index built on one machine"][:2] == ["800 hours", "2,400"]
    assert "Each machine sends 58.7 MB in a step." in text
    assert limits["features while relabeling"][0] == "2.54 GiB"
    assert "labels of all heads, on each machine" not in table(plan(common), "what grows")

    # Accelerators take longer than the cores; then they are faster, and wait for them.
    for rate, hours in ((0.1, "556,000"), (1000, "22,200")):
        stages = table(plan([*common, "--step-rate", rate]), "stage")
        assert stages["train"][0] == hours


def test_what_is_out_of_bounds(plan):
    few, many = (table(plan(["--images", n]), "what grows") for n in (1e5, 1e10))
    assert {row[2] for row in few.values()} == {""}
    assert many["list of files, on each machine"][2] == "TFRecord shards"
    numbers = [
        [float(cell.split()[0].replace(",", "")) for cell in row[:2]] for row in many.values()
    ]
    ratios = [needs / limit for needs, limit in numbers]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "0"], "--images must be positive, got 0"),
        (["--images", "nan"], "--images must be positive, got nan"),
        (["--images", "5", "--step-rate", "-1"], "--step-rate must be positive, got -1"),
        (["--images", "5", "--costs", "nowhere"], "--costs: 'nowhere' is not what measure writes"),
        (["--images", "5", "--costs", "costs.json"], "--costs: ['speed'] are unknown, known are"),
        (["--images", "5", "--costs", "list.json"], "'list.json' must hold positive numbers"),
        (["--images", "5", "--costs", "zero.json"], "'zero.json' must hold positive numbers"),
    ],
)
def test_wrong_input(plan, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "costs.json").write_text('{"speed": 1}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "zero.json").write_text('{"decode": 0}')
    with pytest.raises(SystemExit):
        plan(arguments)
    assert message in capsys.readouterr().err


def test_the_tables_of_the_page(plan):
    """The page shows what the command prints."""
    text = PAGE.read_text()
    pages = re.findall(
        r"```sh\npython tools/plan_scale.py plan (.*)\n```\n\n((?:.*\n)*?)(?=#|\Z)", text
    )
    assert len(pages) == 3
    for arguments, shown in pages:
        assert shown.strip() == plan(arguments.split()).strip()
