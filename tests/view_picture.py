"""The picture of docs/viewer.md: `python tests/view_picture.py RUN 'ID of an episode' FILE.png [ID beside it]`.

An episode's id stands in the page's address. That of the page is made by (some twelve minutes on a core)

    envrl train household-demo --run runs/picture --objective.estimator gigpo --warm_start.demonstrations 700 \\
        --warm_start.epochs 6 --train.updates 10 --train.trajectories_every 5 --eval.final 60 --eval.every 0
    python tests/view_picture.py runs/picture trajectories/eval-000000-valid_seen.jsonl@17979 \\
        docs/pictures/viewer.png trajectories/eval-000010-valid_seen.jsonl@22541
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import sync_playwright

from envrl.report.server import ViewServer
from test_view_browser import CHROMIUM

run, shown, file, *beside = sys.argv[1:]
address = f"#/0/episode/{quote(shown, safe='')}"
if beside:
    address += f"?beside={quote(f'0:{beside[0]}', safe='')}"
with ViewServer([Path(run)], 0) as server, sync_playwright() as driver:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1080, "height": 980})
    page.goto(server.url + address)
    page.wait_for_selector(".turn")
    page.get_by_label("Figures below").check()
    page.wait_for_selector(".number")
    page.screenshot(path=file)
    browser.close()
    server.shutdown()
