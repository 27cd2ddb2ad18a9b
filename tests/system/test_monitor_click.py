"""A click on the monitor's page starts a run of the platform, which is seen in both."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, Queue
from nightbeam.contimg.site import Site
from nightbeam.monitor.files import read_address, token_path

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

#: A night that no other test has.
GROUP = "2031-07-01T02:03:04"
ME = Owner("tests.system.test_monitor_click")


@pytest.fixture
def failed(running_platform, until):
    """A group whose files are all recorded and gone, and that failed; afterwards it is failed again and left alone."""
    site = Site.from_settings(running_platform.settings)
    queue = site.queue()
    files = [FileFact(n, Path(f"/nowhere/{GROUP}_sb{n:02d}.hdf5"), 1) for n in range(site.ingest.expected_subbands)]
    queue.record(GroupFact(GROUP, 63411.0), files, expected_subbands=len(files))
    queue.claim(GROUP, ME)
    queue.fail(GROUP, ME, "the disk was full", final=True)
    yield queue
    until(lambda: _given_up(queue), 60.0)


def _given_up(queue: Queue) -> bool:
    """Take the group from whoever waits for it, and say whether it is failed."""
    if queue.group(GROUP).state == "pending":
        queue.claim(GROUP, ME)
        queue.fail(GROUP, ME, "the test is over", final=True)
    return queue.group(GROUP).state == "failed"


def test_a_click_on_reprocess_starts_a_run_that_is_seen_in_prefect_and_on_the_page(
    running_platform, failed, browser, until
):
    api, state = running_platform.api, running_platform.settings.state_dir
    url = until(lambda: read_address(state), 60.0)
    token = token_path(state, None).read_text().strip()
    browser.open(f"{url}/groups/{GROUP}", shows="the disk was full")
    browser.run("[...document.querySelectorAll('main a')].find(a => a.innerText == 'Log in').click()")
    until(lambda: "nightbeam monitor token" in browser.text(), 30.0)
    browser.run(f"document.querySelector('input[name=token]').value = {token!r}; 0")
    browser.run("document.querySelector('form[action=\"/login\"] button').click()")
    until(lambda: "You are logged in" in browser.text(), 30.0)
    assert browser.run("document.cookie") == "", "no script can read it"

    browser.run("document.querySelector('form[action$=reprocess] button').click()")
    until(lambda: "a run was started" in browser.text(), 60.0)
    link = str(
        browser.run("[...document.querySelectorAll('main a')].find(a => a.innerText == 'See it in Prefect').href")
    )
    assert link.startswith(api.url.removesuffix("/api"))
    run = api.flow_run(link.rpartition("/")[2])
    assert (run["name"], run["parameters"]["group"]) == (GROUP, GROUP)

    # Its files are gone, so the run fails; the group's page says so by itself, and leads to the run.
    until(lambda: api.flow_run(run["id"])["state_type"] in ("FAILED", "CRASHED", "COMPLETED"), 120.0)
    until(lambda: failed.attempts(GROUP)[-1].outcome == "failed", 30.0)
    browser.open(f"{url}/groups/{GROUP}", shows="Prefect run")
    assert run["id"] in browser.run("[...document.querySelectorAll('#fresh a')].map(a => a.href).join(' ')")
    assert browser.complaints == []
    assert browser.outside() == set()

    browser.open(f"{url}/", shows="Tonight")
    prefect = browser.run("document.querySelector('.aside a').href")
    word = base64.b64encode(running_platform.settings.platform.auth_string.encode()).decode()
    browser.open(f"{prefect}", shows="Login")
    browser.run(f"localStorage.setItem('prefect-password', {word!r})")
    browser.open(link, shows=GROUP)
