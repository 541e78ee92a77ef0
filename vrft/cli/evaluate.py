"""`python -m vrft evaluate`: print a benchmark's table for a results file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vrft.cli.parser import Parser
from vrft.utils.display import counted, visible

DESCRIPTION = """\
Scores a file of boxes, [{"image_id": 1, "category_id": 3, "bbox": [x, y, width, height], "score": 0.9}, ...], by the
rules of COCO or LVIS. Numbers are in 0..1, or -1 if there is no annotated box to find. Boxes of categories that the
annotations lack are left out, as in pycocotools, and counted; a box in an image that they lack is an error, also as in
pycocotools. Ids are whole numbers or texts; categories with one name are one category.
"""

AREAS = {"s": "small", "m": "medium", "l": "large", "r": "rare", "c": "common", "f": "frequent"}
"""Ranges of area by the last letter of a number's name. LVIS's frequencies are in the same column of the table."""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("evaluate", DESCRIPTION)
    parser.add_argument("--annotations", required=True, type=Path, metavar="GT.json", help="annotations")
    parser.add_argument("--results", required=True, type=Path, metavar="DT.json", help="boxes to score")
    parser.add_argument("--format", required=True, choices=("coco", "lvis"), help="rules to apply")
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="names to average over, or a list of the paper; default: all"
    )
    parser.add_argument("--backend", default="hotcoco", choices=("hotcoco", "pycocotools"), help="library to use")
    parser.add_argument(
        "--convention",
        default="standard",
        choices=("standard", "visual_rft"),
        help="visual_rft: LVIS's AP as the paper averages it, over all ranges of area",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at full precision")
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(args)

    from vrft.data.splits import NAMED
    from vrft.evaluators.results import read_results
    from vrft.evaluators.truth import Truth

    truth = Truth.read(arguments.annotations)
    results, messages = read_results(arguments.results, truth)
    for message in [*truth.warnings, *messages]:
        print(f"vrft: {visible(message)}", file=sys.stderr)
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
            print(visible(line))
    return 0


def table(numbers: dict[str, float], format: str, names: Sequence[str] | None, convention: str) -> Iterator[str]:
    """Yield the lines of the table, in the format of pycocotools."""
    about = "all categories" if names is None else f"mean of {counted(len(names), 'category')}"
    yield f"{format}, {convention}, {about}"
    for key, value in numbers.items():
        title = "Average Precision" if key.startswith("AP") else "Average Recall"
        iou = {"AP50": "0.50", "AP75": "0.75"}.get(key, "0.50:0.95")
        most = {"AR1": "1", "AR10": "10"}.get(key, "100" if format == "coco" else "300")
        area = AREAS.get(key[-1], "all")
        yield f" {title:<18} ({key[:2]}) @[ IoU={iou:<9} | area={area:>6} | maxDets={most:>3} ] = {value:.3f}"
