"""The status page in Debian's chromium, against a running server of TP 2 x PP 2: it loads without complaints, shows every
rank with its layers, and answers a chat message, on a wide and on a narrow screen; with keys it asks for one; of a stall it
shows what each rank is at, and after a fault who it was. The log of all that is JSON without prompts.
usage: status_page_check.py PLUMBLINE [FOLDER]: screenshots go to FOLDER when it is given.
Exits with 77 (skipped) where chromium is not installed."""
import json
import pathlib
import re
import sys
import tempfile

import chromium
from server_process import ROOT, Server, kill

SIZES = {"wide": (1280, 900), "narrow": (375, 812)}
NUM_LAYERS = json.loads((ROOT / "deploy/demo_model/model/config.json").read_text())["num_hidden_layers"]
CELLS = "[...document.querySelectorAll('#ranks tbody tr')].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
SCROLLS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
LAST = "document.querySelector('#chat-log .message:last-child')"


def rows(browser: chromium.Browser) -> list[list[str]]:
    browser.wait("document.querySelector('#state').textContent === 'ready'")
    return browser.value(CELLS)


def check_ranks(browser: chromium.Browser) -> None:
    ranks = rows(browser)
    assert [row[0] for row in ranks] == ["0", "1", "2", "3"], ranks
    assert all(row[-1] == "ready" for row in ranks), ranks
    spans = [tuple(map(int, row[3].split("–"))) for row in ranks]
    # Both ranks of a stage hold its layers; the stages follow each other and hold them all.
    assert spans[0] == spans[1] and spans[2] == spans[3], spans
    assert spans[0][0] == 0 and spans[2][0] == spans[0][1] + 1 and spans[2][1] == NUM_LAYERS - 1, spans


def check_chat(browser: chromium.Browser) -> None:
    browser.value("document.querySelector('#chat-input').focus()")
    browser.type("What is <b>Plumbline</b>?")
    browser.press_enter()
    browser.wait(f"document.querySelector('#chat-send').textContent === 'Send' && {LAST}?.querySelector('.note').textContent")
    assert "tokens" in browser.value(f"{LAST}.querySelector('.note').textContent")
    assert browser.value(f"{LAST}.querySelector('.words').textContent.length") > 0
    assert browser.value("document.querySelectorAll('#chat-log b').length") == 0, "what a user writes became HTML"
    assert "<b>" in browser.value("document.querySelector('#chat-log .words').textContent")


def check_page(server: Server, folder: pathlib.Path) -> None:
    for name, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            with chromium.Browser() as browser:
                browser.open(server.http + "/", width, height, scheme)
                check_ranks(browser)
                check_chat(browser)
                browser.wait("/ m?s$/.test(document.querySelector('#plot-first b').textContent)")  # what the chat took is plotted
                assert not browser.value(SCROLLS), f"{width} px: the page is wider than the screen"
                browser.screenshot(folder / f"{name}-{scheme}.png")
                assert browser.complaints == [], browser.complaints


def check_stall(browser: chromium.Browser) -> None:
    """What the page says of a cluster that the server calls stalled; made up here, because a real one is over within seconds."""
    browser.value("""window.serverFetch = window.fetch; window.fetch = async (...call) => {
        const body = await (await window.serverFetch(...call)).json();
        body.cluster.stalled_ms = 2500;
        body.cluster.ranks.forEach((rank, index) => { rank.operation = `waiting in <b>all-gather</b> ${index} of step 1234567`; });
        return new Response(JSON.stringify(body));
    }; null""")
    for index in range(4):
        browser.wait(f"document.querySelectorAll('#ranks tbody tr')[{index}].lastChild.innerText.endsWith('<b>all-gather</b> {index} of step 1234567')")
    assert not browser.value(SCROLLS), "the operations make the page wider than the screen"
    browser.value("window.fetch = window.serverFetch; null")
    browser.wait("!document.querySelector('#ranks').innerText.includes('1234567')")


def check_fault(server: Server, folder: pathlib.Path) -> None:
    """A worker is killed: the page names it."""
    with chromium.Browser() as browser:
        browser.open(server.http + "/", *SIZES["narrow"])
        rows(browser)
        assert browser.value("document.querySelector('#last-fault').hidden"), "a fault is shown before there was one"
        check_stall(browser)
        pid = server.workers()[2]
        kill(pid)
        browser.wait("!document.querySelector('#last-fault').hidden")
        line = browser.value("document.querySelector('#last-fault').textContent")
        assert re.fullmatch(rf"Last of 1 fault, \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: rank 2 \(\S+ {pid}\) idle after step \d+", line), line
        check_ranks(browser)
        assert not browser.value(SCROLLS), "the fault makes the page wider than the screen"
        browser.screenshot(folder / "fault.png")
        assert browser.complaints == [], browser.complaints


def check_log(server: Server) -> None:
    """The requests of the page stand in the log, each on a line of its own, without what was said."""
    lines = [json.loads(line) for line in server.stderr().splitlines()]
    chats = [line for line in lines if line["event"] == "request" and line["endpoint"] == "/v1/chat/completions"]
    assert len(chats) == 4 and all(line["status"] == 200 and line["generated_tokens"] > 0 for line in chats), chats
    assert all(0 < line["first_token_ms"] <= line["total_ms"] for line in chats), chats
    assert sum(line["event"] == "worker_joined" for line in lines) == 5, lines
    assert [line["epoch"] for line in lines if line["event"] == "epoch_ready"] == [1, 2], lines
    assert [(line["rank"], line["epoch"]) for line in lines if line["event"] == "worker_lost"] == [(2, 1)], lines
    assert "What is" not in server.stderr(), "a prompt stands in the log"


def check_key(plumbline: str, folder: pathlib.Path) -> None:
    key = folder / "key"
    key.write_text("a-key\n")
    with Server(plumbline, "--api-key-file", str(key)) as server, chromium.Browser() as browser:
        browser.open(server.http + "/", *SIZES["wide"])
        browser.wait("!document.querySelector('#key-form').hidden")
        assert browser.value(CELLS) == [], "ranks are shown to somebody without a key"
        browser.type("a-key")
        browser.press_enter()
        assert len(rows(browser)) == 1
        check_chat(browser)
        assert browser.value("localStorage.length") == 0 and browser.value("document.cookie") == ""


def main() -> None:
    if chromium.find() is None:
        print("skipped: chromium is not installed")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else temporary)
        with Server(sys.argv[1], "--tp", "2", "--pp", "2", "--log-format", "json") as server:
            check_page(server, folder)
            check_fault(server, folder)
            check_log(server)
        check_key(sys.argv[1], pathlib.Path(temporary))
    print(f"the page works at {' and '.join(str(width) for width, _ in SIZES.values())} px, light and dark, with and without keys, in a stall and after a fault")


if __name__ == "__main__":
    main()
