"""The report in a browser: drawing, mouse and keyboard, small screens and dark mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.browser import CHROMIUM, DRIVER, Browser, browser
from tests.helpers.run_folders import FILE, HOSTILE, completion, write_lines, write_run
from vrft.report import write_report
from vrft.types import Sample
from vrft.utils.thumbnails import save_thumbnails

REQUIRED = os.environ.get("VRFT_BROWSER") == "required"
pytestmark = pytest.mark.skipif(
    not REQUIRED and (CHROMIUM is None or DRIVER is None),
    reason="no chromium and chromedriver; `make browser` installs them",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "run", groups=80))


def texts(page: Browser, selector: str) -> list[str]:
    return page.run("[...document.querySelectorAll(arguments[0])].map((found) => found.textContent)", selector)


def status(page: Browser) -> str:
    return texts(page, ".browser [role=status]")[0]


def put(page: Browser, control: str, value: str | bool) -> None:
    """Set a filter and send its events."""
    page.run(
        "((box, value) => { box.type === 'checkbox' ? box.checked = value : box.value = value;"
        " box.dispatchEvent(new Event('input', { bubbles: true })); })"
        "(document.getElementById(arguments[0]), arguments[1])",
        control,
        value,
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_is_drawn_without_errors_and_horizontal_scrolling(
    page: Browser, report: Path, width: int, dark: bool
) -> None:
    page.open(report, width=width, dark=dark)
    assert page.console() == []
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    for selector in (
        "#curves path.line",
        ".card img",
        ".pair svg rect",
        "#categories tr",
        "#calibration circle",
        "#scaling path.line",
        "#warnings li",
    ):
        assert page.run("document.querySelector(arguments[0]).getBoundingClientRect().width > 0", selector), selector
    drawn = [f"val-{step}: calibration error {error} on 10 boxes" for step, error in ((0, "0.300"), (40, "0.260"))]
    assert texts(page, "#calibration strong") == drawn
    assert texts(page, "#scaling strong")[0] == "pass: 0.300 with 1 answer, 0.450 with 8"
    page.run("document.querySelector('.card').click()")
    assert page.run("document.getElementById('group').scrollWidth <= document.getElementById('group').clientWidth")
    assert page.console() == []


CONTRAST = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll('main *, nav *, dialog *')) {
    if (element instanceof SVGElement || !element.getClientRects().length || element.disabled) continue;
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const pair = [parse(getComputedStyle(element).color), ground(element)].map(luminance).sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) found.push(element.tagName + '.' + element.className + ' ' + ratio.toFixed(2));
  }
  return [...new Set(found)];
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_requires(page: Browser, report: Path, dark: bool) -> None:
    page.open(report, dark=dark)
    page.run("document.querySelector('.card').click()")
    assert page.run(CONTRAST) == []


def test_hostile_text_is_shown_and_does_nothing(page: Browser, report: Path) -> None:
    page.open(report)
    page.run("document.querySelector('.card').click()")
    assert HOSTILE in texts(page, ".answer pre")[0]
    assert HOSTILE in texts(page, "#warnings li")[0]
    assert page.run("window.acted === undefined")
    assert page.run("[...document.images].every((image) => image.src.startsWith('data:image/jpeg;base64,'))")


def test_the_content_security_policy_blocks_injected_code(page: Browser, report: Path) -> None:
    """Test the second line of defence, after the escaping of texts."""
    page.open(report)
    page.run(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.acted = 1';"
        " const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/x.png';"
        " image.setAttribute('onerror', 'window.acted = 1'); document.body.append(script, image); })()"
    )
    page.wait_for("true")
    complaints = " ".join(page.console())
    assert "script-src" in complaints
    assert "img-src" in complaints
    assert page.run("window.acted === undefined")


def test_groups_are_filtered_by_rollout_category_task_reward_and_text(page: Browser, report: Path) -> None:
    page.open(report)
    assert status(page) == "80 groups of answers"
    put(page, "from", "11")
    put(page, "to", "20")
    assert status(page) == "20 of 80 groups"
    assert all(11 <= int(text.split()[1]) <= 20 for text in texts(page, ".card-line span"))
    page.run("document.querySelector('.filters [type=reset]').click()")
    page.wait_for("document.querySelector('.browser [role=status]').textContent === '80 groups of answers'")
    shown = texts(page, "#category option")
    assert any(text.startswith("category 1 (") for text in shown)
    put(page, "category", str(next(i for i, text in enumerate(shown) if text.startswith("category 1 (")) - 1))
    assert {*texts(page, ".card-title")} == {"category 1"}
    put(page, "category", "")
    put(page, "task", "1")
    assert texts(page, ".card-title") == [HOSTILE]
    put(page, "task", "")
    put(page, "lowest", "1.2")
    means = [float(text) for text in texts(page, ".card-line b")]
    assert means
    assert min(means) >= 1.2
    put(page, "lowest", "")
    put(page, "unreadable", True)
    assert status(page) == "1 of 80 groups"
    put(page, "unreadable", False)
    put(page, "words", "ONERROR")
    assert status(page) == "3 of 80 groups"  # matches in a completion, a target and the label of a box
    put(page, "words", "nobody said this")
    assert texts(page, ".groups") == ["Nothing matches these filters."]


def test_groups_are_sorted_and_paginated(page: Browser, report: Path) -> None:
    page.open(report)
    put(page, "order", "best")
    means = [float(text) for text in texts(page, ".card-line b")]
    assert means == sorted(means, reverse=True)
    assert texts(page, ".pager span") == ["page 1 of 3"]
    page.run("document.querySelectorAll('.pager button')[1].click()")
    assert texts(page, ".pager span") == ["page 2 of 3"]
    assert float(texts(page, ".card-line b")[0]) <= means[-1]


def test_a_group_opens_from_the_keyboard_and_shows_its_answers(page: Browser, report: Path) -> None:
    page.open(report)
    page.run("document.querySelectorAll('.card')[1].focus()")
    page.press("Enter")
    page.wait_for("document.getElementById('group').open")
    first = texts(page, "#group header p")[0]
    assert len(texts(page, ".answer")) == 4
    assert texts(page, ".answer .parts dt")[:2] == ["iou", "format"]
    assert page.run("document.querySelectorAll('.answer .truth rect').length > 0")
    page.run("document.querySelector('#group .toggles input').click()")
    assert page.run("getComputedStyle(document.querySelector('.answer .truth')).display") == "none"
    page.press("ArrowRight")
    assert texts(page, "#group header p")[0] != first
    page.press("ArrowLeft")
    assert texts(page, "#group header p")[0] == first
    page.press("Escape")
    page.wait_for("!document.getElementById('group').open")
    assert page.run("document.activeElement === document.querySelectorAll('.card')[1]")


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_a_click_copies_the_path_of_an_image(page: Browser, report: Path, has_clipboard: bool) -> None:
    page.open(report)
    page.run("navigator.clipboard.writeText = (text) => arguments[0] ? (window.copied = text) : fail", has_clipboard)
    page.run("document.execCommand = () => (window.copied = document.activeElement.value)")
    for selector in (".group .copy", "#group .copy"):
        page.run("delete window.copied")
        assert texts(page, selector)[:1] == ["\u202eb a.png"]
        page.run("document.querySelector(arguments[0]).click()", selector)
        page.wait_for("window.copied !== undefined")
        assert page.run("window.copied") == FILE
        page.wait_for(
            "document.querySelector(arguments[0]).textContent === 'copied'".replace("arguments[0]", f"'{selector}'")
        )
        page.run("document.querySelector('.card').click()")
    assert texts(page, "#group .copy")[1:] == ["image 0", "sample 0"]


def test_a_group_shows_its_prompt_and_why_answers_are_not_valid(page: Browser, report: Path) -> None:
    page.open(report)
    page.run("document.querySelector('.card').click()")
    assert texts(page, "#group .prompt pre") == [HOSTILE, f"<|im_start|>{HOSTILE}"]
    assert texts(page, ".answer .bad") == [f"can't be read: {HOSTILE}"]
    assert texts(page, ".reasons li") == [f"1 × {HOSTILE}"]


def test_fewer_than_eight_questions_are_not_compared(page: Browser, tmp_path: Path) -> None:
    for questions in (7, 8):
        run = tmp_path / str(questions)
        run.mkdir()
        write_lines(run / "transcripts.jsonl", [completion(r, s, 0) for r in (1, 9) for s in range(questions)])
        page.open(write_report(run))
        assert ("First against last" in texts(page, "nav a")) == (questions == 8)
        assert any("7 training questions came up" in text for text in texts(page, "#rollouts p")) == (questions == 7)


def test_charts_show_their_values_at_a_rollout(page: Browser, report: Path) -> None:
    page.open(report)
    page.run("document.querySelector('.chart svg').focus()")
    for _ in range(3):
        page.press("ArrowLeft")
    values = texts(page, ".chart:first-child .value")
    assert texts(page, ".chart .when")[0] == "rollout 37"
    assert values[0] == "1.80"  # the value at rollout 37
    assert {*texts(page, ".chart .when")} == {"rollout 37"}  # all charts show the same rollout


def test_held_out_images_can_be_switched(page: Browser, report: Path) -> None:
    page.open(report)
    assert texts(page, "#held-out .pair:first-child .side-title b") == ["0.380", "0.830"]  # sample 19 improved most
    page.run("document.querySelectorAll('#held-out .switcher button')[2].click()")
    assert texts(page, "#held-out .switcher [aria-pressed=true]") == ["worst now"]
    assert texts(page, "#held-out .pair:first-child .side-title b") == ["0.000", "−0.500"]


def test_boxes_are_on_one_of_several_images_even_if_these_are_equal(page: Browser, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    one, other = Image.new("RGB", (64, 48)), Image.new("RGB", (64, 48), "white")
    lines = []
    for i, (images, place) in enumerate([((one, one, other), 0), ((one, one, other), 1), ((other, one, one), None)]):
        shown = save_thumbnails(Sample(i, images, i, "x", (), image_index=place), run / "pictures")
        lines.append(completion(1, i, 0, size=[64, 48], **shown))
    write_lines(run / "transcripts.jsonl", lines)
    page.open(write_report(run))
    drawn = "[...card.querySelectorAll('.picture')].map((picture) => picture.querySelector('rect') != null)"
    assert sorted(page.run(f"[...document.querySelectorAll('.card')].map((card) => {drawn})")) == [
        [False, False, True],
        [False, True, False],
        [True, False, False],
    ]
    assert page.console() == []


@pytest.mark.parametrize(
    ("kept", "sections"),
    [
        pytest.param(["config.yaml"], ["Warnings", "Config"], id="just-begun"),
        pytest.param(
            ["config.yaml", "logs", "evaluation"],
            ["Curves", "Held-out images", "AP per category", "Calibration", "Sampled answers", "Warnings", "Config"],
            id="supervised",
        ),
        pytest.param(["transcripts.jsonl"], ["Rollouts", "First against last", "Warnings"], id="transcripts-alone"),
    ],
)
def test_a_run_has_only_the_sections_that_it_has_data_for(
    page: Browser, tmp_path: Path, kept: list[str], sections: list[str]
) -> None:
    whole, run = write_run(tmp_path / "whole"), tmp_path / "run"
    run.mkdir()
    for name in kept:
        (whole / name).rename(run / name)
    page.open(write_report(run))
    assert texts(page, "nav div a") == sections
    assert page.console() == []


def test_five_thousand_completions_stay_usable(page: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    images = sorted(path.name for path in (run / "pictures").iterdir())
    text = "There is something at the left, and something else. " * 10
    lines = [
        completion(1 + n, n, g, image=images[n % 6], completion=text, reasoning=text)
        for n in range(625)
        for g in range(8)
    ]
    write_lines(run / "transcripts.jsonl", lines)
    report = write_report(run)
    assert report.stat().st_size < 10e6  # each of the six images is embedded once
    page.open(report)
    assert status(page) == "625 groups of answers"
    assert page.run("document.querySelectorAll('*').length") < 5000
    assert page.run("document.images.length") < 150
