"""The page of answers in a real browser: it fits, keys and buttons decide, and what it saves is understood."""

import csv
import io

import pytest

from tests.test_identify import ask, world  # noqa: F401 - a fixture
from tests.test_report_browser import WIDTHS, browser, selenium, show  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def answers(world, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("answers")
    ask(world, folder, "--false-alarms", "0.3")
    return folder / "answers.html"


def press(browser, keys: str) -> None:  # noqa: F811
    for key in keys:
        browser.find_element("css selector", "body").send_keys(key)


def saved(browser) -> list[dict[str, str]]:  # noqa: F811
    return list(csv.DictReader(io.StringIO(browser.execute_script("return table()"))))


def current(browser) -> int:  # noqa: F811
    return browser.execute_script("return answers.findIndex((answer) => answer.classList.contains('current'))")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_and_fits(browser, answers, width, scheme):  # noqa: F811
    show(browser, answers, width, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter((e) => e.getClientRects().length && "
        "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert all(browser.execute_script("return [...document.images].map((i) => i.naturalWidth > 0)"))
    heights = browser.execute_script("return [...document.images].map((i) => i.getBoundingClientRect().height)")
    assert min(heights) > 100


def test_keys_decide_and_move_on(browser, answers):  # noqa: F811
    show(browser, answers)
    count = browser.find_element("id", "count")
    assert count.text == "0 of 14 decided" and current(browser) == 0
    press(browser, "aru")
    assert [row["decision"] for row in saved(browser)] == ["accept", "reject", "unsure"] and current(browser) == 3
    press(browser, "jjk")
    assert current(browser) == 4 and count.text == "3 of 14 decided"
    press(browser, "kkkk")
    press(browser, "r")
    assert [row["decision"] for row in saved(browser)] == ["reject", "reject", "unsure"] and current(browser) == 1
    top = browser.execute_script("return answers[current].getBoundingClientRect().top")
    assert 0 <= top < 900
    assert browser.get_log("browser") == []


def test_buttons_decide_and_show_it(browser, answers):  # noqa: F811
    show(browser, answers)
    button = browser.find_elements("css selector", "[data-decide=accept]")[4]
    browser.execute_script("arguments[0].click()", button)
    assert [row["decision"] for row in saved(browser)] == ["accept"] and current(browser) == 5
    assert button.get_attribute("aria-pressed") == "true"


def test_what_is_none_of_the_known_is_accepted_as_that_or_gets_a_name(browser, answers, world, tmp_path):  # noqa: F811
    show(browser, answers)
    titles = [title.text for title in browser.find_elements("css selector", ".answer h3")]
    assert titles[:2] == ["not among the known"] * 2 and titles[2].startswith("ship 10")
    press(browser, "a")
    field = browser.find_elements("css selector", "[data-ship]")[1]
    field.send_keys("juna ra", selenium.Keys.ENTER)  # letters that are keys, too
    assert current(browser) == 1
    press(browser, "aa")
    rows = saved(browser)
    assert [row["ship"] for row in rows] == ["", "juna ra", titles[2]]
    (tmp_path / "confirmed.csv").write_text(browser.execute_script("return table()"))
    again = {row["query"]: row for row in ask(world, tmp_path / "again", "--confirmed", tmp_path / "confirmed.csv")}
    assert {row["ship"] for row in again.values()} <= {f"ship {number}" for number in range(101, 107)} | {"juna ra"}
    told = (tmp_path / "again" / "answers.html").read_text()
    assert "of 7 known ships" in told
