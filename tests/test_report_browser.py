"""The page in a real browser: headless Chromium, driven by Selenium."""

import os
import shutil

import pytest

from tests.test_report import data, runs, samples  # noqa: F401 - fixtures
from tools import report

selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium (requirements.txt)")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and not os.environ.get("CI"):
    pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)", allow_module_level=True)

WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def browser():
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("page") / "both.html"
    report.main([*map(str, runs), "--output", str(path)])
    return path


def show(browser, page, width: int = 1280, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def choose(browser, field: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", field)).select_by_value(value)


def shown(browser) -> list[str]:
    return [title.text for title in browser.find_elements("css selector", ".sheet h3")]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_and_nothing_overflows(browser, page, width, scheme):
    show(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter((e) => e.getClientRects().length && "
        "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert all(browser.execute_script("return [...document.images].map((i) => i.naturalWidth > 0)"))


def test_filters_work_by_mouse(browser, page):
    show(browser, page)
    every = shown(browser)
    assert len(every) == 12
    choose(browser, "sensor", "SAR")
    assert shown(browser) == [name for name in every if "_SAR" in name]
    choose(browser, "show", "miss")
    misses = shown(browser)
    choose(browser, "show", "hit")
    assert sorted(misses + shown(browser)) == sorted(name for name in every if "_SAR" in name)
    choose(browser, "sensor", "")
    choose(browser, "show", "")
    browser.find_element("id", "ship").send_keys("103")
    assert shown(browser)
    assert all(name.startswith("0103_") for name in shown(browser))
    browser.find_element("id", "ship").send_keys("9")
    assert shown(browser) == []
    assert "no query is left" in browser.find_element("id", "count").text
    assert browser.get_log("browser") == []


def test_won_and_lost_queries_of_two_runs_are_told(browser, page):
    show(browser, page)
    choose(browser, "show", "hit")
    first = set(shown(browser))
    browser.execute_script("document.getElementById('run').selectedIndex = 1")
    browser.execute_script("document.getElementById('run').dispatchEvent(new Event('change'))")
    second = set(shown(browser))
    browser.execute_script("document.getElementById('run').selectedIndex = 0")
    browser.execute_script("document.getElementById('run').dispatchEvent(new Event('change'))")
    other = browser.execute_script(
        "return [...document.getElementById('other').options].find((o) => o.text.startsWith('second, plain')).value"
    )
    choose(browser, "other", other)
    for word, expected in (("won", first - second), ("lost", second - first)):
        choose(browser, "show", word)
        assert set(shown(browser)) == expected


def test_everything_works_by_keyboard(browser, page):
    show(browser, page)
    keys = selenium.Keys
    reached = []
    for _ in range(12):
        browser.switch_to.active_element.send_keys(keys.TAB)
        reached.append(browser.execute_script("return document.activeElement.id"))
    assert [name for name in reached if name][:8] == ["run", "protocol", "kind", "sensor", "ship", "other", "show", "looked"]
    browser.find_element("id", "protocol").send_keys("O")
    assert browser.find_element("id", "protocol").get_attribute("value") == "O2S"
    assert all("_RGB" in name for name in shown(browser))
    browser.find_element("id", "looked").send_keys(keys.SPACE)
    canvas = browser.find_element("css selector", "#sheets canvas")
    assert canvas.is_displayed()


def test_pages_of_sheets_turn_by_arrow_keys(browser, page, tmp_path):
    path = tmp_path / "short.html"
    path.write_text(page.read_text(encoding="utf-8").replace("const SHOWN = 20", "const SHOWN = 5"), encoding="utf-8")
    show(browser, path)
    every = shown(browser)
    browser.find_element("css selector", "body").send_keys(selenium.Keys.ARROW_RIGHT)
    assert shown(browser) != every
    assert browser.find_element("id", "count").text == "6 to 10 of 12"
    browser.find_element("id", "after").click()
    assert browser.find_element("id", "count").text == "11 to 12 of 12"
    assert not browser.find_element("id", "after").is_enabled()
    for _ in range(2):
        browser.find_element("css selector", "body").send_keys(selenium.Keys.ARROW_LEFT)
    assert shown(browser) == every


def test_it_prints(browser, page):
    show(browser, page)
    assert len(browser.print_page()) > 10_000
