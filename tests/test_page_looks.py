"""The page in a real Chromium: how it looks, and whom it serves."""

import pytest
from synthetic_page import PAPER_SUITE, colour, colours, open_at
from synthetic_runs import SUITE
from synthetic_text import MINI_SUITE

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

pytest_plugins = ["page_browser"]
pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844}


CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
      if (c[3] > 0) throw new Error("a ground that lets others through");
    }
    throw new Error("no ground");
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!words || !e.checkVisibility() || e.closest("noscript, script")) continue;
    found.push([contrast(rgb(getComputedStyle(e).color), ground(e)), e.outerHTML.slice(0, 80)]);
  }
  const hex = (h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16));
  const surface = rgb(getComputedStyle(document.querySelector(".canvas")).backgroundColor);
  const lines = [0, 1, 2, 3, 4, 5, 6, 7].map((slot) => contrast(hex(colour(slot)), surface));
  return [found, lines];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["", f"#/{SUITE}/hostile", f"#/{MINI_SUITE}"])
def test_contrast(page, site, scheme, address):
    page.emulate_media(color_scheme=scheme)
    open_at(page, site, address)
    for details in page.locator("summary:visible").all():
        details.click()
    if not address:
        page.get_by_label("reported").check()
    if address.endswith("hostile"):
        page.evaluate("() => document.querySelector('#entry .canvas').scrollIntoView()")
    texts, lines = page.evaluate(CONTRASTS)
    assert len(texts) > 30
    assert [row for row in texts if row[0] < 4.5] == []
    assert min(lines) >= 3


def test_the_theme_is_the_systems_until_it_is_chosen(page, site):
    def ground() -> str:
        return page.evaluate("() => getComputedStyle(document.body).backgroundColor")

    open_at(page, site)
    light = ground()
    line = colour(page, 0)
    page.emulate_media(color_scheme="dark")
    expect(page.get_by_role("button", name="Light theme")).to_be_visible()
    dark = ground()
    assert dark != light
    assert colour(page, 0) != line
    assert colour(page, 0) in colours(page)  # the canvas follows
    page.locator("#query").fill("good")
    page.get_by_role("button", name="Light theme").click()
    assert ground() == light
    assert line in colours(page)
    assert page.locator("#rows tbody tr:visible").count() == 1
    page.reload()
    assert ground() == light
    page.get_by_role("button", name="Dark theme").click()
    assert ground() == dark


def test_without_storage_the_theme_lasts_as_long_as_the_page(page, site):
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('refused'); } })"
    )
    open_at(page, site)
    page.get_by_role("button", name="Dark theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


@pytest.mark.parametrize(
    "address", ["", f"#/{SUITE}/good", f"#/{SUITE}/hostile", f"#/{MINI_SUITE}", f"#/{PAPER_SUITE}"]
)
def test_a_phone_scrolls_tables_and_never_the_page(page, site, address):
    page.set_viewport_size(PHONE)
    open_at(page, site, address)
    for details in page.locator("summary:visible").all():
        details.click()
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width == PHONE["width"]
    if address != "":
        return
    box, first = page.locator(".table-box").first, page.locator("#rows tbody th").first
    left = first.bounding_box()["x"]
    assert box.evaluate("(e) => e.scrollWidth > e.clientWidth + 100")
    box.evaluate("(e) => { e.scrollLeft = 200; }")
    assert first.bounding_box()["x"] == left
    assert page.locator("#plot canvas").bounding_box()["width"] <= PHONE["width"]


def test_print_and_motion(page, site):
    page.emulate_media(media="print", reduced_motion="reduce")
    open_at(page, site)
    for name in ("#filters", "#theme", "nav", ".slider"):
        expect(page.locator(name).first).to_be_hidden()
    expect(page.locator("#rows")).to_be_visible()
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter(
          (e) => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"""
    )
    assert moving == 0


# --- for everybody

UNNAMED = """() => {
  const problems = [];
  const text = (e) => (e ? e.textContent.trim() : "");
  const named = "a, button, input, select, [role=region], [role=img]";
  for (const e of document.querySelectorAll(named)) {
    const by = (e.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
    const name = e.getAttribute("aria-label")
      || by.map((id) => text(document.getElementById(id))).join("")
      || (e.labels ? [...e.labels].map(text).join("") : "") || text(e);
    if (!name && e.checkVisibility()) problems.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  }
  for (const e of document.querySelectorAll("[tabindex]"))
    if (Number(e.getAttribute("tabindex")) > 0) problems.push("an order of tabs of its own");
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) problems.push("an id twice");
  for (const e of document.querySelectorAll("th"))
    if (!["row", "col"].includes(e.getAttribute("scope"))) problems.push("a th without scope");
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")]
    .filter((e) => e.checkVisibility()).map((e) => Number(e.tagName[1]));
  if (levels.filter((l) => l === 1).length !== 1) problems.push("not one h1");
  levels.forEach((l, i) => { if (i && l > levels[i - 1] + 1) problems.push("a level left out"); });
  for (const e of document.querySelectorAll(".table-box"))
    if (e.tabIndex !== 0) problems.push("a box that no keyboard scrolls");
  return problems;
}"""


@pytest.mark.parametrize(
    "address", ["", f"#/{SUITE}/good", f"#/{MINI_SUITE}", f"#/{MINI_SUITE}/part"]
)
def test_names_roles_and_headings(page, site, address):
    open_at(page, site, address)
    assert page.evaluate(UNNAMED) == []
    assert page.locator("html").get_attribute("lang") == "en"
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1


def test_the_focus_is_seen_and_goes_everywhere(page, site):
    open_at(page, site)
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => {
              const e = document.activeElement;
              return [e.id || e.className || e.tagName, getComputedStyle(e).outlineStyle];
            }"""
        )
        assert name == "BODY" or outline != "none", name
        seen.add(name)
    assert {"theme", "query", "show-reported", "table-box", "env", "clear"} <= seen


def test_the_browser_refuses_markup_and_code_made_of_texts(browser, site):
    """The content security policy works: a slip of ours would fail instead of running."""
    opened = browser.new_context().new_page()
    open_at(opened, site)
    refused = opened.evaluate(
        """() => {
          const tries = [
            () => { document.getElementById("message").innerHTML = "<b>x</b>"; },
            () => { document.createElement("script").textContent = "1"; },
          ];
          return tries.map((attempt) => {
            try { attempt(); return false; } catch { return true; }
          });
        }"""
    )
    assert refused == [True, True]
    opened.evaluate(
        """() => setTimeout(() => {
          try { new Function("document.title = 'ran'")(); } catch { document.title = "refused"; }
        })"""
    )
    expect(opened).to_have_title("refused")
    opened.evaluate(
        """() => {
          addEventListener("securitypolicyviolation", (e) => { document.title = e.blockedURI; });
          document.body.append(Object.assign(new Image(), { src: "https://a.org/x.png" }));
        }"""
    )
    expect(opened).to_have_title("https://a.org/x.png")
    opened.context.close()
