"""The page in a real Chromium: what it does."""

import dataclasses
import re
from typing import Any

import pytest
from synthetic_page import HOSTILE, PAPER_SUITE, Page, colour, colours, digits_score, open_at
from synthetic_runs import DIGITS, RANDOM, SUITE
from synthetic_text import MINI_SUITE

from icl_bench.leaderboard.page import page_html

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

pytest_plugins = ["page_browser"]
pytestmark = pytest.mark.browser


def titles(page: Page) -> list[str]:
    """Methods of the rows that are shown, from top to bottom."""
    return page.locator("#rows tbody tr:visible bdi").all_inner_texts()


def ranks(page: Page, column: int) -> list[int]:
    cells = page.locator(f"#rows tbody tr:visible td:nth-child({column}) .rank").all_inner_texts()
    return [int(cell) for cell in cells]


def head(page: Page, name: str) -> Any:
    return page.locator("#rows thead th").filter(has_text=re.compile(f"^{re.escape(name)}$"))


# --- the table


def test_first_the_board_as_it_is(page, site):
    open_at(page, site)
    expect(page).to_have_title(f"{SUITE}: icl_bench leaderboards")
    assert titles(page)[:3] == ["Good", "Twin", "1-NN"]
    expect(head(page, "Mean rank")).to_have_attribute("aria-sort", "ascending")
    assert page.locator("[aria-sort]").count() == 1
    expect(page.locator("#state")).to_contain_text("6 of 6 rows, by mean rank")
    expect(page.locator("#not-ranked li")).to_contain_text("Old <i> (old): scorer version 7")


@pytest.mark.parametrize(
    ("suite", "files"),
    [
        (SUITE, ["board.csv", "board.json", "curves.csv"]),
        (PAPER_SUITE, ["board.csv", "board.json", "curves.csv", "papers.csv"]),
        (MINI_SUITE, ["board.csv", "board.json"]),
    ],
)
def test_all_files_of_a_board_are_linked(page, site, suite, files):
    open_at(page, site, f"#/{suite}")
    links = page.locator("#files a")
    assert links.all_inner_texts() == files
    assert [link.get_attribute("href") for link in links.all()] == [f"{suite}/{f}" for f in files]


def test_rows_of_one_rank_stay_in_the_order_of_the_alphabet(page, site):
    open_at(page, site, name="many.html")
    names = titles(page)
    assert len(names) == 200
    for direction, sign in (("ascending", 1), ("descending", -1)):
        head(page, "Digits").get_by_role("button").click()
        expect(head(page, "Digits")).to_have_attribute("aria-sort", direction)
        found = ranks(page, 3)
        assert found == sorted(found, key=lambda rank: sign * rank)
        assert len(set(found)) == 20
        sorted_names = titles(page)
        for i in range(0, 200, 10):
            assert sorted_names[i : i + 10] == sorted(sorted_names[i : i + 10])
    expect(page.locator("#state")).to_contain_text("Rows of one rank stand in the order")
    head(page, "Mean rank").get_by_role("button").click()
    assert titles(page) == names


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_every_column_sorts_by_keyboard(page, site, key):
    open_at(page, site)
    heads = page.locator("#rows thead th")
    for i in range(heads.count()):
        button = heads.nth(i).get_by_role("button")
        button.focus()
        before = heads.nth(i).get_attribute("aria-sort")
        page.keyboard.press(key)
        wanted = "descending" if before == "ascending" else "ascending"
        expect(heads.nth(i)).to_have_attribute("aria-sort", wanted)
        expect(button).to_be_focused()
        assert page.locator("[aria-sort]").count() == 1


def test_numbers_are_sorted_as_numbers_and_unknown_ones_come_last(page, site):
    open_at(page, site)
    head(page, "Parameters").get_by_role("button").click()
    assert titles(page)[0] == "Half (constructor)"  # 9 before 1,234
    assert titles(page)[-1] == "Half (half)"  # none stated
    head(page, "Parameters").get_by_role("button").click()
    assert titles(page)[-2:] == ["Half (constructor)", "Half (half)"]


def test_filters(page, site):
    open_at(page, site)
    page.get_by_role("searchbox", name="Filter").fill("half")
    expect(page.locator("#state")).to_contain_text("2 of 6 rows")
    assert titles(page) == ["Half (constructor)", "Half (half)"]
    page.locator("#query").fill("half external")
    assert titles(page) == ["Half (constructor)"]
    page.locator("#query").fill("")
    page.get_by_label("references").uncheck()
    assert "1-NN" not in titles(page)
    page.get_by_label("methods").uncheck()
    assert titles(page) == []
    page.get_by_label("references").check()
    assert titles(page) == ["1-NN"]
    page.get_by_label("methods").check()
    page.get_by_label("replayed only").check()
    assert titles(page) == ["Good"]
    expect(page).to_have_url(re.compile("replayed=true"))


def test_rows_of_papers_are_asked_for_last_and_without_ranks(page, site):
    open_at(page, site, f"#/{PAPER_SUITE}")
    assert titles(page) == ["VSML"]
    page.get_by_label("reported").check()
    assert len(titles(page)) == 6
    reported = page.locator('#rows tr[data-kind="reported"]')
    assert reported.count() == 5
    assert reported.locator(".rank").count() == reported.get_by_role("checkbox").count() == 0
    for name in ("MNIST", "MNIST", "Method"):
        head(page, name).get_by_role("button").click()
        assert titles(page) == ["VSML", "SGD", "MAML", "VSML", "LSTM", "GPICL Transformer"]


# --- learning curves


def test_two_curves_are_compared(page, site):
    open_at(page, site, f"#/{SUITE}?show=")
    expect(page.locator("#plot")).to_contain_text("Choose methods")
    page.get_by_label("Compare Good").check()
    page.get_by_label("Compare 1-NN").check()
    expect(page).to_have_url(re.compile("show=good,knn"))
    assert [colour(page, slot) in colours(page) for slot in range(3)] == [True, True, False]
    drawn = page.evaluate(
        """() => {
          const { u } = plots.get(document.getElementById("plot"));
          return [u.series.length, u.bands.length, u.data.map((values) => values.length)];
        }"""
    )
    assert drawn == [8, 2, [100] * 8]  # steps, two bounds and a mean for each method, chance
    rows = page.locator("#plot .readout tr")
    assert rows.count() == 2
    final = page.locator("#rows tr:visible").filter(has_text="Good").locator(".value").first
    expect(rows.first).to_contain_text(f"Good\t{final.inner_text()} (", use_inner_text=True)
    page.get_by_label("Environment").select_option(RANDOM)
    expect(page.locator("#plot .canvas")).to_have_attribute("aria-label", re.compile(RANDOM))
    page.get_by_label("Compare Good").uncheck()
    assert [colour(page, slot) in colours(page) for slot in range(2)] == [False, True]
    expect(page).to_have_url(re.compile("show=,knn"))
    page.reload()
    expect(page.get_by_label("Compare 1-NN")).to_be_checked()
    expect(page.locator("#env")).to_have_value(RANDOM)
    assert [colour(page, slot) in colours(page) for slot in range(2)] == [False, True]


def test_values_are_read_out_by_keyboard_and_by_pointer(page, site):
    open_at(page, site)
    slider = page.get_by_label("Step")
    expect(page.locator("#plot .live")).to_have_attribute("aria-live", "polite")
    caption = page.locator("#plot caption").first
    expect(caption).to_contain_text("at step 99")
    slider.focus()
    page.keyboard.press("Home")
    expect(caption).to_contain_text("at step 0: 0 labelled")
    page.keyboard.press("ArrowRight")
    expect(caption).to_contain_text("at step 1: 1 labelled")
    curve = page.evaluate("() => suites.get(data.suites[0].name).entries[0].cells")
    expect(page.locator("#plot .readout tr").first).to_contain_text(
        f"{curve[DIGITS]['curve'][1] / 10:.1f} ("
    )
    over = page.locator("#plot .u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    expect(caption).to_contain_text(re.compile("at step (49|50)"))
    expect(slider).to_have_value(re.compile("49|50"))


def test_all_values_stand_in_a_table(page, site):
    open_at(page, site)
    page.get_by_text("All values as a table").click()
    table = page.locator("#plot .values table")
    expect(table.locator("tbody tr")).to_have_count(100)
    last = table.locator("tbody tr").last.locator("td").first.inner_text()
    assert last == page.locator("#plot .readout td").first.inner_text()


def test_at_most_eight_methods(page, site):
    open_at(page, site, name="many.html")
    boxes = page.locator("#rows tbody").get_by_role("checkbox")
    for i in range(8):
        boxes.nth(i).check()
    expect(boxes.nth(8)).to_be_disabled()
    shown = {tuple(colour(page, slot)) for slot in range(8)}
    assert len(shown) == 8
    assert page.locator("#plot .readout tr").count() == 8
    boxes.nth(2).uncheck()
    expect(boxes.nth(8)).to_be_enabled()
    page.get_by_role("button", name="Choose none").click()
    assert page.locator("#rows input:checked").count() == 0


# --- entries, addresses


def test_a_row_opens_its_entry_and_back_comes_the_board(page, site):
    open_at(page, site)
    page.locator("#query").fill("o")
    head(page, "Digits").get_by_role("button").click()
    before = titles(page)
    expect(page).to_have_url(re.compile(r"q=o"))
    page.get_by_role("link", name="Good").first.click()
    expect(page).to_have_url(re.compile(f"#/{SUITE}/good$"))
    entry = page.locator("#entry")
    expect(entry.get_by_role("heading", level=2)).to_have_text("Good")
    expect(entry.get_by_role("heading", level=2)).to_be_focused()
    expect(page.locator("#board")).to_be_hidden()
    for text in (
        f"python -m baselines.replay leaderboards/{SUITE}/good",
        "gave the handed-in predictions",
        "Taxonomy on Digits-Proj8-v0",
        "Ada, Bob",
        "num_tasks = ",
    ):
        expect(entry).to_contain_text(text)
    assert entry.locator("canvas").count() == 1
    assert re.search("[0-9a-f]{64}", entry.inner_text())
    link = entry.get_by_role("link", name=f"{SUITE}/good/entry.toml")
    expect(link).to_have_attribute("href", f"{SUITE}/good/entry.toml")
    page.go_back()
    expect(page.locator("#board")).to_be_visible()
    assert titles(page) == before
    expect(page.locator("#query")).to_have_value("o")
    expect(page.get_by_role("link", name="Good").first).to_be_focused()
    page.go_forward()
    entry.get_by_role("link", name=f"← {SUITE}").click()
    expect(page.locator("#query")).to_have_value("o")


def test_permanent_links(page, site):
    open_at(page, site, f"#/{SUITE}/hostile")
    heading = page.get_by_role("heading", level=2)
    expect(heading).to_have_text(HOSTILE)
    expect(page.locator("#entry .note")).to_contain_text(f"Needs a replay: {HOSTILE}")
    assert page.locator("img, #entry b, #rows b").count() == 0
    open_at(page, site, f"#/{SUITE}?env={RANDOM}&show=twin,half&sort=-parameters&kinds=method")
    expect(page.locator("#env")).to_have_value(RANDOM)
    expect(head(page, "Parameters")).to_have_attribute("aria-sort", "descending")
    assert page.locator("#rows input:checked").count() == 2
    expect(page.get_by_label("references")).not_to_be_checked()


def test_names_that_objects_have_are_names_like_others(page, site):
    open_at(page, site, f"#/{SUITE}/constructor")
    expect(page.get_by_role("heading", level=2)).to_have_text("Half (constructor)")
    open_at(page, site, f"#/{SUITE}?show=constructor")
    expect(page.get_by_label("Compare Half (constructor)")).to_be_checked()


def test_columns_that_no_row_has_are_left_out(page, site):
    score = digits_score()
    half = tuple(e for e in score.entries if e.entry.name == "half")
    text = page_html([dataclasses.replace(score, entries=half)])
    (site / "half.html").write_text(text, encoding="utf-8")
    open_at(page, site, f"#/{SUITE}?sort=-{RANDOM}", name="half.html")
    assert head(page, "Random").count() == 0
    expect(head(page, "Mean rank")).to_have_attribute("aria-sort", "ascending")
    assert page.locator("#env option").count() == 1


@pytest.mark.parametrize(
    "address",
    [
        "#/nothing-v0",
        f"#/{SUITE}/nobody",
        "#/%E0%A4%A/%",
        "#/__proto__/constructor",
        f"#/{SUITE}?show=toString,__proto__&env=constructor&sort=-toString&kinds=x&domain=all",
        "#/<img src=x onerror=alert(1)>",
    ],
)
def test_bad_addresses_lead_to_a_board(page, site, address):
    open_at(page, site, address)
    expect(page.locator("#board")).to_be_visible()
    told = page.locator("#message")
    if "?" in address:
        expect(told).to_be_hidden()
    else:
        expect(told).to_contain_text("There is no ")
    assert page.locator("img").count() == 0


def test_the_skip_link_keeps_the_address(page, site):
    open_at(page, site, f"#/{PAPER_SUITE}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the board")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    expect(page).to_have_url(re.compile(f"#/{PAPER_SUITE}$"))


# --- suites of text


def test_a_suite_of_text(page, site):
    open_at(page, site)
    page.get_by_role("link", name=MINI_SUITE).click()
    assert titles(page) == ["STRONG", "WEAK", "PART"]
    assert page.locator("#rows .partial").count() == 1
    expect(page.locator("#rows tbody tr").first).to_contain_text("direct")
    assert [colour(page, slot) in colours(page) for slot in range(3)] == [True, True, False]
    page.get_by_label("Compare PART").check()
    assert colour(page, 2) in colours(page)
    expect(page.locator("#plot .readout tr").last).to_contain_text("partial")
    expect(page.locator("#env")).to_be_hidden()
    page.get_by_role("combobox", name="Tasks").select_option("new")
    expect(page).to_have_url(re.compile("domain=new"))
    page.get_by_role("link", name="STRONG").first.click()
    expect(page.locator("#entry")).to_contain_text("Scores on unseen-domain tasks")


def test_addresses_of_entries_are_followed_without_traces(page, site):
    score = digits_score()
    first = score.entries[0]
    entry = dataclasses.replace(first.entry, url="https://example.org/method?a=1")
    changed = dataclasses.replace(first, entry=entry)
    text = page_html([dataclasses.replace(score, entries=(changed,))])
    (site / "url.html").write_text(text, encoding="utf-8")
    open_at(page, site, f"#/{SUITE}/good", name="url.html")
    link = page.get_by_role("link", name="https://example.org/method?a=1")
    expect(link).to_have_attribute("rel", "noopener noreferrer")
