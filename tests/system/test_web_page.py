"""The platform's page in a real browser: whatever it shows, it asks nobody but its own server."""

from __future__ import annotations

import base64

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

#: What the test itself asks for from within the page, to know that a request to the outside would be seen.
CONTROL = "outside.invalid"


def test_the_page_asks_nobody_but_its_own_server_whatever_it_shows(running_platform, browser, until):
    api, base = running_platform.api, running_platform.api.url.removesuffix("/api")
    run = api.run_deployment("flight-check/default")
    until(lambda: api.flow_run(run["id"])["state_type"] == "COMPLETED", 60.0)

    browser.open(f"{base}/dashboard", shows="Login")
    word = base64.b64encode(running_platform.settings.platform.auth_string.encode()).decode()
    browser.run(f"localStorage.setItem('prefect-password', {word!r})")
    browser.open(f"{base}/dashboard", shows="Flow Runs")
    browser.open(f"{base}/runs", shows=run["name"])
    browser.open(f"{base}/runs/flow-run/{run['id']}", shows="flight-check")
    browser.open(f"{base}/deployments", shows="ingest-subbands")
    assert any(a.startswith(f"{base}/api/flow_runs/") for a in browser.asked), "it works: it has read runs"
    assert browser.outside() == set()
    assert browser.hosts_asked(CONTROL) == {"127.0.0.1", CONTROL}
