"""Time the page in headless Chromium, from a fresh start: prints one line for each figure.

    python scripts/bench_page.py [PHOTO NAME IN THE GALLERY]

The first result is counted from the choice of an example, made as soon as the gallery is there, so it
holds the rest of the model's loading.  A slider's move is counted from the key until the changed picture
is there; moves that leave the picture as it is are not counted.
"""

import shutil
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from urllib.request import urlopen

from playwright.sync_api import TimeoutError as NoChange, sync_playwright

ROOT = Path(__file__).parent.parent
SHOWN = '[...document.querySelectorAll(\'img[alt="photo with boxes"], img[alt="heat map"]\')]'
SOURCES = f"() => {SHOWN}.map(each => each.src).join()"
CHANGED = f"old => {SHOWN}.map(each => each.src).join() != old && {SHOWN}.every(each => each.complete)"


def measure(browser, address: str, example: str = "cat", moves: int = 10) -> dict[str, float | list[float]]:
    """Seconds of a new session's first gallery, first result and moves of the two sliders."""
    page, begun = browser.new_page(viewport={"width": 1280, "height": 900}), monotonic()
    page.set_default_timeout(120_000)
    page.goto(address)
    button = page.get_by_role("button", name=example, exact=True)
    button.wait_for()
    seconds = {"gallery": monotonic() - begun}
    begun = monotonic()
    button.click()
    page.get_by_text(f"{example}, ").wait_for()
    page.get_by_role("button", name="Find it!").click()  # waits until it is enabled
    page.get_by_alt_text("heat map").wait_for()
    seconds["first result"] = monotonic() - begun
    page.get_by_role("button", name="Boxes (JSON)").wait_for()
    page.get_by_text("More options").click()
    for name in ("Threshold", "Temperature"):
        page.get_by_role("slider", name=name).wait_for()
        page.get_by_role("slider", name=name).focus()
        keys = ["ArrowRight"] * (moves // 2) + ["ArrowLeft"] * (moves // 2)
        seconds[name] = [each for key in keys if (each := move(page, key)) is not None]
    page.close()
    return seconds


def move(page, key: str) -> float | None:
    """Seconds from a key to the changed picture; None where it does not change in two seconds."""
    page.wait_for_timeout(500)  # what came before is done
    before, begun = page.evaluate(SOURCES), monotonic()
    page.keyboard.press(key)
    try:
        page.wait_for_function(CHANGED, arg=before, timeout=2000, polling=10)
    except NoChange:
        return None
    return monotonic() - begun


def report(seconds: dict) -> str:
    """A line a figure."""
    lines = [f"{name}: {seconds[name]:.2f} s" for name in ("gallery", "first result")]
    for name in ("Threshold", "Temperature"):
        moves = seconds[name]
        middle = f"median {statistics.median(moves):.2f} s, longest {max(moves):.2f} s" if moves else "-"
        lines.append(f"{name}: {middle} of {len(moves)} moves")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if (chromium := shutil.which("chromium")) is None:
        print("there is no chromium here: apt-get install chromium", file=sys.stderr)
        return 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"{address}/_stcore/health", server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for session in ("first session", "second session"):
                print(f"{session}\n{report(measure(browser, address, *arguments[:1]))}", flush=True)
    finally:
        server.terminate()
        server.wait()
    return 0


def wait_for(address: str, server: subprocess.Popen) -> bytes:
    """What an address answers, once it does; the server may take a minute to start."""
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            return urlopen(address, timeout=5).read()
        except OSError:
            sleep(0.2)
    raise RuntimeError(f"no answer from {address}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
