"""How a run stands, in words, and when it is finished."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.cli.commands.demo import DEMO
from deploy.config.run import load
from deploy.local.standing import Standing, ask, finished, states_in_words


def test_finished_is_what_the_dispatcher_says() -> None:
    assert finished({"dispatcher": {"gauges": {"finished": 1}}})
    assert not finished({"dispatcher": {"gauges": {"finished": 0}}})
    assert not finished({"dispatcher": None, "producer": {"gauges": {"finished": 1}}})


def test_states_in_words() -> None:
    assert states_in_words({"groups": "ready", "batches": "ready"}, {"groups": 0}) == "2 ready"
    said = states_in_words({"groups": "ready", "producer": "starting", "rewards": "not running"}, {"rewards": 3})
    assert said == "1 ready, producer starting, rewards not running; restarts: rewards 3"


def test_a_process_that_served_and_stands_still_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    standing = Standing(load(DEMO, directory=tmp_path), dict, said.append)
    standing._note_stalls({"groups": "starting", "producer": "does not answer"}, 0.0)
    standing._note_stalls({"groups": "ready", "producer": "does not answer"}, 100.0)
    assert said == [], "what has never been ready is starting"
    for now_s in (200.0, 229.0, 231.0, 260.0):
        standing._note_stalls({"groups": "silent"}, now_s)
    assert said == ["groups runs and no longer reads"]
    standing._note_stalls({"groups": "ready"}, 300.0)
    for now_s in (301.0, 340.0):
        standing._note_stalls({"groups": "not running"}, now_s)
    assert said[1:] == ["groups is not running"]


def test_a_proxy_of_the_environment_is_not_asked_for_this_machines_own_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"ready": true}')

        def log_message(self, *_: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with HTTPServer(("127.0.0.1", 0), Status) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        health = tmp_path / "groups.json"
        health.write_text(json.dumps({"port": server.server_port, "pid": 1}))
        assert ask(health) == {"ready": True}
