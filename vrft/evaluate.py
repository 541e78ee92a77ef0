"""`python -m vrft evaluate`: the benchmark's table of a results file, ours or anyone's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vrft.errors import ConfigurationError

DESCRIPTION = """\
Scores a file of boxes, [{"image_id": 1, "category_id": 3, "bbox": [x, y, width, height], "score": 0.9}, ...], as COCO
or LVIS do. Numbers are in 0..1, and -1 where there is no true box to find.
"""

COCO_LINES = (
    ("AP", "Average Precision", "0.50:0.95", "all", "100"),
    ("AP50", "Average Precision", "0.50", "all", "100"),
    ("AP75", "Average Precision", "0.75", "all", "100"),
    ("APs", "Average Precision", "0.50:0.95", "small", "100"),
    ("APm", "Average Precision", "0.50:0.95", "medium", "100"),
    ("APl", "Average Precision", "0.50:0.95", "large", "100"),
    ("AR1", "Average Recall", "0.50:0.95", "all", "1"),
    ("AR10", "Average Recall", "0.50:0.95", "all", "10"),
    ("AR100", "Average Recall", "0.50:0.95", "all", "100"),
    ("ARs", "Average Recall", "0.50:0.95", "small", "100"),
    ("ARm", "Average Recall", "0.50:0.95", "medium", "100"),
    ("ARl", "Average Recall", "0.50:0.95", "large", "100"),
)
LVIS_LINES = (
    ("AP", "Average Precision", "0.50:0.95", "all", "300"),
    ("AP50", "Average Precision", "0.50", "all", "300"),
    ("AP75", "Average Precision", "0.75", "all", "300"),
    ("APs", "Average Precision", "0.50:0.95", "small", "300"),
    ("APm", "Average Precision", "0.50:0.95", "medium", "300"),
    ("APl", "Average Precision", "0.50:0.95", "large", "300"),
    ("APr", "Average Precision", "0.50:0.95", "rare", "300"),
    ("APc", "Average Precision", "0.50:0.95", "common", "300"),
    ("APf", "Average Precision", "0.50:0.95", "frequent", "300"),
    ("AR", "Average Recall", "0.50:0.95", "all", "300"),
    ("ARs", "Average Recall", "0.50:0.95", "small", "300"),
    ("ARm", "Average Recall", "0.50:0.95", "medium", "300"),
    ("ARl", "Average Recall", "0.50:0.95", "large", "300"),
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> Any:
        raise ConfigurationError(f"evaluate: {message}")


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        "python -m vrft evaluate", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, type=Path, metavar="GT.json", help="the truth")
    parser.add_argument("--results", required=True, type=Path, metavar="DT.json", help="the boxes")
    parser.add_argument("--format", required=True, choices=("coco", "lvis"), help="whose rules")
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="average over these, or a list of the paper; default: all"
    )
    parser.add_argument("--backend", default="hotcoco", choices=("hotcoco", "pycocotools"), help="what computes it")
    parser.add_argument(
        "--convention",
        default="standard",
        choices=("standard", "visual_rft"),
        help="visual_rft: LVIS's AP as the paper averages it, over all ranges of area",
    )
    parser.add_argument("--json", action="store_true", help="one object, at full precision")
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command."""
    arguments = build_parser().parse_args(args)
    from vrft.data.splits import NAMED
    from vrft.evaluators.average_precision import Truth, read_results

    truth = Truth(arguments.annotations)
    results = read_results(arguments.results, truth)
    names = arguments.categories
    if names is not None:
        names = [name for given in names for name in NAMED.get(given, (given,))]
        truth.check_names(names, "categories")
    curves = truth.evaluate(results, arguments.format, arguments.backend)
    curves = curves if names is None else curves.select(names)
    numbers = curves.numbers(arguments.format, arguments.convention)
    if arguments.json:
        print(json.dumps(numbers, allow_nan=False))
    else:
        for line in table(numbers, arguments.format, names, arguments.convention):
            print(line)
    return 0


def table(numbers: dict[str, float], format: str, names: Sequence[str] | None, convention: str) -> Iterator[str]:
    """The numbers as the benchmarks print them."""
    yield f"{format}, {convention}, {'all categories' if names is None else f'mean of {len(names)} categories'}"
    for key, title, iou, area, most in COCO_LINES if format == "coco" else LVIS_LINES:
        short = "AP" if title.endswith("Precision") else "AR"
        yield f" {title:<18} ({short}) @[ IoU={iou:<9} | area={area:>6} | maxDets={most:>3} ] = {numbers[key]:.3f}"
