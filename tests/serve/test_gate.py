"""The page's gate: no route of Gradio that nobody looked at, no file taken or given, however it is spelt."""

from __future__ import annotations

import http.client
import json
import re
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from fastapi.routing import iter_route_contexts

from pangu_lab.serve import serve
from pangu_lab.serve.gate import ALLOWED, Gate, holds_file
from pangu_lab.serve.guard import Guard
from pangu_lab.serve.limits import Limits
from tests.serve.running import scripted


@pytest.fixture(scope="module")
def page():
    with serve(scripted("abc"), port=0) as served:
        yield served


@pytest.fixture
def client(page):
    with httpx.Client(base_url=page.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("nobody may read this")
    return path


def gate_of(page) -> Gate:
    return page._runner.config.app.app.router.routes[-1].app


def routes_of(page) -> set[tuple[str, str]]:
    """(method, path) of every route that Gradio's application has."""
    found = {
        (method, context.path)
        for context in iter_route_contexts(gate_of(page).app.routes)
        for method in context.methods or ()
    }
    assert len(found) > 60, "the router is read wrongly"
    return found


def status_of(page, method: str, path: str) -> tuple[int, bytes]:
    """The answer to a path that is sent as it stands; httpx would tidy it up."""
    address = urlsplit(page.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# ----------------------------------------------------------------------------------------------------- the routes


def test_every_route_of_gradio_is_on_the_list_or_refused(page):
    for method, path in sorted(routes_of(page) - set(ALLOWED)):
        status, body = status_of(page, method, re.sub(r"{[^}]*}", "1", path))
        assert status == 404, f"{method} {path}: look at it, then put it into ALLOWED or leave it refused"
        assert method == "HEAD" or json.loads(body)["error"]["code"] == "unknown_url", (method, path)


def test_the_list_names_only_routes_that_there_are(page):
    assert set(ALLOWED) <= routes_of(page)


def test_the_routes_that_read_store_and_fetch_files_are_there_to_be_refused(page):
    assert {
        ("GET", "/gradio_api/file={path_or_url:path}"),
        ("GET", "/gradio_api/file/{path:path}"),
        ("GET", "/gradio_api/proxy={url_path:path}"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/component_server"),
        ("GET", "/gradio_api/deep_link"),
    } <= routes_of(page) - set(ALLOWED)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get"])
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={}",
        "/gradio_api/file%3D{}",
        "/gradio_api/%66ile={}",
        "/gradio_api%2Ffile={}",
        "/gradio_api/file{}",
        "/gradio_api/file/{}",
        "//gradio_api/file={}",
        "/gradio_api//file={}",
        "/./gradio_api/file={}",
        "/assets/../gradio_api/file={}",
        "/assets/%2e%2e/gradio_api/file={}",
        "/static/..%2fgradio_api/file={}",
        "/gradio_api/run/../file={}",
        "/gradio_api/heartbeat/..%2ffile={}",
        "/GRADIO_API/FILE={}",
        "/gradio_api/file=file://{}",
        "/gradio_api/proxy=file://{}",
        "/gradio_api/proxy=http://127.0.0.1{}",
        "/assets/{}",
        "/assets/%2f{}",
        "/assets//{}",
        "/static/{}",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{}",
        "/svelte/{}",
        "/assets/..%5c..%5c{}",
        "/theme.css/{}",
        "/favicon.ico/..{}",
        "/theme.css%00{}",
        "/gradio_api/stream/x{}",
        "/gradio_api/call/complete{}",
        "/healthz/..%2fgradio_api/file={}",
        "/gradio_api/custom_component/x/client/y{}",
    ],
)
def test_no_spelling_of_a_path_gives_a_file(page, secret, path, method):
    status, body = status_of(page, method, path.format(secret))
    assert status in (400, 403, 404, 405) and b"nobody may read this" not in body


@pytest.mark.parametrize("root", ["/assets", "/proxy/7860", "/gradio_api/heartbeat"])
def test_a_root_path_opens_no_way_around_the_list(secret, root):
    with serve(scripted("abc"), port=0, root_path=root) as served:
        for path in (
            f"/gradio_api/file={secret}",
            f"{root}/gradio_api/file={secret}",
            f"{root}{root}/gradio_api/upload",
        ):
            assert status_of(served, "GET", path)[0] == 404
        assert status_of(served, "GET", "/")[0] == status_of(served, "GET", f"{root}/config")[0] == 200


def test_a_route_that_is_new_is_refused():
    reached = []

    async def gradio(scope, receive, send) -> None:
        reached.append(scope["path"])

    gradio.root_path = ""
    with pytest.raises(Exception, match="GET /gradio_api/new is not an address of this page"):
        anyio.run(Gate(gradio), {"type": "http", "method": "GET", "path": "/gradio_api/new"}, None, None)
    anyio.run(Gate(gradio), {"type": "http", "method": "GET", "path": "/config"}, None, None)
    assert reached == ["/config"]


def test_a_websocket_is_closed_before_anything_sees_it():
    sent = []

    async def send(message) -> None:
        sent.append(message)

    anyio.run(Guard(None, Limits()), {"type": "websocket", "path": "/gradio_api/queue/join", "headers": []}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


# ----------------------------------------------------------------------------------------------------- the bodies


def file_of(path) -> dict:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def bodies(path) -> list[bytes]:
    """Bodies that hold a file, in every way that Gradio would find."""
    call = {"fn_index": 4, "session_hash": "x", "trigger_id": None, "event_data": None}
    held = [
        {**call, "data": [file_of(path), ""]},
        {**call, "data": [[{"a": [file_of(path)]}], ""]},
        {**call, "data": ["", ""], "event_data": {"value": file_of(path)}},
        {"data": {"b": file_of(path)}, **call},
        {**call, "data": [{"path": f"http://127.0.0.1{path}", "meta": {"_type": "gradio.FileData"}, "url": "x"}]},
    ]
    written = [json.dumps(one).encode() for one in held]
    escaped = json.dumps(held[0]).replace("gradio.", r"\u0067radio.").replace('"path"', r'"\u0070ath"')
    return [
        *written,
        escaped.encode(),
        json.dumps(held[0]).encode("utf-16"),
        json.dumps(held[0]).encode("utf-8-sig"),
        written[0].replace(b'"meta"', b'"meta": {}, "meta"'),
    ]


@pytest.mark.parametrize(
    "route",
    [
        path.format(api_name=name)
        for method, path in ALLOWED
        for name in ("predict", "complete")
        if method == "POST" and path != "/login"
    ],
)
def test_a_file_in_a_body_is_refused_however_it_is_written(client, secret, route):
    for body in bodies(secret):
        answer = client.post(route, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "no_files", body
        assert secret.name not in answer.text
    answer = client.post(route, files={"files": ("x.txt", b"x")})
    assert answer.status_code == 400 and "not JSON" in answer.json()["error"]["message"]


def test_no_route_of_the_api_takes_a_file(client, secret):
    for values in (
        {"prompt": file_of(secret)},
        {"prompt": [file_of(secret)]},
        {"prompt": "ab", **file_of(secret)},
        {"prompt": "ab", "stop": [file_of(secret)]},
        {"prompt": "ab", "logit_bias": file_of(secret)},
    ):
        assert client.post("v1/completions", json=values).status_code in (400, 422), values
    for instance in ({"input_sentence": file_of(secret)}, file_of(secret)):
        assert client.post("model/pangu/version/0:predict", json={"instances": [instance]}).status_code in (400, 422)


def test_texts_that_only_speak_of_files_are_no_files(client):
    words = '{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}'
    assert not holds_file({"data": [words, "gradio.FileData", "path", ["meta"], 3, None]})
    numbers = [
        one["id"]
        for one in client.get("config").json()["dependencies"]
        if len(one["inputs"]) == 1 == len(one["outputs"])
    ]
    body = {"data": [words], "fn_index": numbers[0], "session_hash": "x"}  # counts the tokens of a prompt
    answer = client.post("gradio_api/run/predict", json=body)
    assert answer.status_code == 200 and "tokens" in answer.json()["data"][0]


def test_a_very_deep_body_is_refused_and_not_an_error_of_the_server(client):
    assert client.post("gradio_api/run/predict", content=b"[" * 100_000).status_code == 400
    assert client.post("gradio_api/run/predict", content=b'{"a":' * 100_000).status_code == 400


def test_the_news_of_a_session_that_nobody_has_end_without_a_traceback(client, caplog):
    answer = client.get("gradio_api/queue/data", params={"session_hash": "nobody"})
    assert answer.status_code == 200 and '"session_not_found":true' in answer.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_gradios_own_check_of_paths_works_behind_the_gate(page, secret):
    """The second lock: were the gate open, a file that nobody uploaded would not be copied all the same."""
    gradio = gate_of(page).app
    body = {"data": [file_of(secret), ""], "fn_index": 4, "session_hash": "x"}

    async def ask() -> str:
        transport = httpx.ASGITransport(app=gradio)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answers = [
                await client.post("/gradio_api/run/predict", json={**body, "fn_index": number})
                for number in gradio.get_blocks().fns
            ]
        return "".join(answer.text for answer in answers)

    assert secret.name not in anyio.run(ask)
