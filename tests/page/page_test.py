"""The page in headless Chromium, driven as a person would: a key, a chat turn, a cancel, a task that waits, a drained
pool, a server that goes and comes back; by mouse and by keyboard, on a phone's screen, dark and light.

Needs Debian's chromium and chromium-driver. Screenshots go to the folder named on the command line.
"""

import json
import os
import pathlib
import sys
import urllib.request

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "clients"))
sys.path.insert(0, str(pathlib.Path(__file__).parent))
from proxy import Proxy
from server import KEY, Server

SHOTS = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "page-screenshots")
LONG = "Tell me a very long story about a fox, a bear and a lighthouse."


def browser():
    options = webdriver.ChromeOptions()
    for flag in ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"]:
        options.add_argument(flag)
    options.binary_location = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(os.environ.get("CHROMEDRIVER", "/usr/bin/chromedriver"))
    return webdriver.Chrome(options=options, service=service)


class Page:
    def __init__(self, driver, proxy):
        self.driver, self.proxy = driver, proxy

    def at(self, id):
        return self.driver.find_element(By.ID, id)

    def text(self, id):
        return self.at(id).text

    def until(self, what, holds):
        WebDriverWait(self.driver, 40).until(lambda _: holds(), f"waited in vain for {what}")

    def say(self, text, *keys):
        self.at("said").send_keys(text, *keys)

    def turns(self, who):
        return [p.text for p in self.driver.find_elements(By.CSS_SELECTOR, f"#talk .{who}")]

    def told(self, part):
        self.until(part, lambda: part in self.text("told"))

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))


def post(server, path, body):
    request = urllib.request.Request(f"{server.main}{path}", body.encode(), {"X-API-Key": KEY})
    return urllib.request.urlopen(request).status


def emulate(driver, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def a_key_is_asked_for_and_a_wrong_one_is_asked_again(page):
    page.until("the dialog", lambda: page.at("ask").is_displayed())
    page.at("key").send_keys("wrong", Keys.ENTER)
    page.until("the dialog again", lambda: page.at("ask").is_displayed() and "needs a key" in page.text("state"))
    page.at("key").clear()
    page.at("key").send_keys(KEY, Keys.ENTER)
    page.until("the pool", lambda: page.text("state") == "ready")
    assert page.text("model").startswith("wren"), page.text("model")


def a_turn_is_answered_and_its_task_is_listed(page):
    page.say("Hello! Who are you?", Keys.ENTER)
    page.told("first token after")
    assert page.turns("user") == ["Hello! Who are you?"] and page.turns("assistant")[0]
    page.until("the task", lambda: "stop" in page.text("tasks"))
    page.shot("light")
    emulate(page.driver, "dark")
    page.shot("dark")
    emulate(page.driver, "light")


def escape_cancels_an_answer_and_frees_its_slot(page, server):
    page.driver.execute_script("document.getElementById('clear').click()")
    page.proxy.stall(b"POST /v1/responses ", after=9000)
    page.say(LONG, Keys.ENTER)
    page.until("an answer", lambda: page.turns("assistant"))
    page.at("said").send_keys(Keys.ESCAPE)
    page.told("canceled")
    server.wait_until("the slot to be free", lambda: server.metric("sequences_running") == 0)


def a_waiting_task_is_shown_and_canceled_by_keyboard(page, server):
    occupied = page.driver.execute_script(
        """const c = new AbortController(); window.occupied = c;
           fetch('/v1/chat/completions', {method: 'POST', signal: c.signal, headers: {Authorization: 'Bearer %s'},
             body: JSON.stringify({model: 'wren', messages: [{role: 'user', content: 'x'}], max_tokens: 1900,
             ignore_eos: true, n: 6, stream: true})}).catch(() => {});""" % KEY
    )
    assert occupied is None
    server.wait_until("the slot to be taken", lambda: server.metric("sequences_running") == 1)
    page.say("Hello?", Keys.ENTER)
    # Six answers keep the slot for some seconds on the fastest machine; how many of them are left nobody knows.
    page.told("waiting at position")
    page.until("the waiting task", lambda: "waiting" in page.text("tasks"))
    buttons = page.driver.find_elements(By.CSS_SELECTOR, "#tasks button")
    assert len(buttons) >= 2 and all("Cancel task" in b.get_attribute("aria-label") for b in buttons)
    # The newest task is the first row: the one that waits.
    page.driver.execute_script("document.querySelector('#tasks button').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.told("canceled")
    page.driver.execute_script("window.occupied.abort()")
    server.wait_until("the slot to be free", lambda: server.metric("sequences_running") == 0)


def a_lost_connection_is_resumed_where_it_was(page, server):
    page.driver.execute_script("document.getElementById('clear').click()")
    page.proxy.lose(b"POST /v1/responses ", after=9000)
    page.say(LONG, Keys.ENTER)
    page.told("first token after")
    assert page.proxy.cut_count == 1, "the answer was too short to be cut"
    tasks = f"{server.gateway}/api/status"
    request = urllib.request.Request(tasks, headers={"Authorization": f"Bearer {KEY}"})
    task = json.load(urllib.request.urlopen(request))["tasks"][0]["id"]
    request = urllib.request.Request(f"{server.main}/v1/tasks/{task}/stream", headers={"X-API-Key": KEY})
    events = urllib.request.urlopen(request).read().decode().split("\n\n")
    tokens = [json.loads(e.split("data: ")[1])["t"] for e in events if "event: token" in e]
    assert page.turns("assistant")[0].strip() == "".join(tokens).strip(), "nothing is missing and nothing twice"


def a_phone_can_read_it(page):
    page.driver.set_window_size(500, 900)
    size = {"width": 375, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.until("no sideways scrolling", lambda: page.driver.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"))
    page.shot("phone")
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def a_drained_pool_says_so_and_refuses_with_the_reason(page, server):
    assert post(server, "/v1/pools/default/drain", '{"deadline_ms": 1000}') == 202
    page.until("draining", lambda: page.text("state") == "draining")
    page.say("Anybody there?", Keys.ENTER)
    page.told("draining")
    assert post(server, "/v1/pools/default/reload", '{"new_model_ref": "wren"}') == 200
    page.until("ready again", lambda: page.text("state") == "ready")


def a_server_that_is_gone_is_said_to_be(page, server):
    server.process.kill()
    page.until("the loss", lambda: "does not answer" in page.text("state"))


def nothing_else_was_asked_for(page):
    entries = page.driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert entries and all(name.startswith(page.proxy.url) for name in entries), entries
    severe = [e for e in page.driver.get_log("browser") if "Content Security Policy" in e["message"]]
    assert not severe, severe


with Server(slots_max=1, queue_capacity=8) as server:
    driver = browser()
    try:
        proxy = Proxy(server.gateway)
        driver.get(proxy.url + "/")
        page = Page(driver, proxy)
        for test in [a_key_is_asked_for_and_a_wrong_one_is_asked_again, a_turn_is_answered_and_its_task_is_listed,
                     escape_cancels_an_answer_and_frees_its_slot, a_waiting_task_is_shown_and_canceled_by_keyboard,
                     a_lost_connection_is_resumed_where_it_was,
                     a_phone_can_read_it, a_drained_pool_says_so_and_refuses_with_the_reason,
                     nothing_else_was_asked_for, a_server_that_is_gone_is_said_to_be]:
            print("page:", test.__name__.replace("_", " "), flush=True)
            test(*[page, server][: test.__code__.co_argcount])
        print("page: all passed in", driver.capabilities["browserName"], driver.capabilities["browserVersion"])
    finally:
        driver.quit()
