"""Who may ask, and how it is said: names, origins, keys, certificates, ports, and the small print of HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading

import httpx
import pytest

from pangu_lab import cli
from pangu_lab.errors import InputError
from pangu_lab.serve import Limits, serve
from pangu_lab.serve.guard import FailedLogins, origin_of
from pangu_lab.serve.server import _listen
from tests.serve.running import ROOT, running, scripted

KEY = "schlüssel钥匙"
READABLE = ("/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/scripted")


@pytest.fixture(scope="module")
def open_to_all():
    with serve(scripted("abc"), port=0, page=False, quick=True) as server:
        yield server


@pytest.fixture(scope="module")
def named():
    """Behind a proxy, under a name, and open to the pages of one other site."""
    with serve(
        scripted("abc"),
        port=0,
        quick=True,
        token=KEY,
        names=["models.example"],
        proxies=["127.0.0.1"],
        origins=["https://Friend.example:443/"],
    ) as server:
        yield server


def asking(server, **headers) -> httpx.Client:
    return httpx.Client(
        base_url=server.url,
        timeout=30,
        trust_env=False,
        headers={name.replace("_", "-"): value.encode() for name, value in headers.items()},
    )


def said(server, request: bytes) -> bytes:
    """The answer to a request that is sent as it stands."""
    port = int(server.url.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# ---------------------------------------------------------------------------------------------------- small print


@pytest.mark.parametrize("path", READABLE)
def test_head_is_get_without_a_body(open_to_all, path):
    with asking(open_to_all) as http:
        head, get = http.head(path), http.get(path)
    assert head.status_code == get.status_code == 200 and not head.content
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # whose numbers change
        assert head.headers["content-length"] == get.headers["content-length"]


def test_http_1_0_without_a_name_may_ask_for_health_alone(open_to_all):
    assert said(open_to_all, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    for path in (b"/readyz", b"/metrics", b"/v1/models"):
        assert said(open_to_all, b"GET %s HTTP/1.0\r\n\r\n" % path).startswith(b"HTTP/1.1 403 ")
    assert said(open_to_all, b"GET /healthz HTTP/1.0\r\nHost: example.com\r\n\r\n").startswith(b"HTTP/1.1 403 ")


def test_the_list_of_models_is_the_same_with_a_slash(open_to_all):
    with asking(open_to_all) as http:
        listed = http.get("/v1/models/").json()
        assert listed == http.get("/v1/models").json() and listed["object"] == "list"
        assert http.get("/v1/models/scripted").json()["object"] == "model"
        assert http.get("/v1/models/gpt").status_code == 404


def test_a_chat_is_refused_with_the_way_to_completions(open_to_all):
    with asking(open_to_all) as http:
        answer = http.post("/v1/chat/completions", json={"messages": []})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"
    assert "use /v1/completions" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "origin", ["http://[", "http://", "://", "x", "http://127.0.0.1:9999999", "null", "http://\xff"]
)
def test_an_origin_that_is_none_is_refused_and_no_error_of_the_server(open_to_all, origin):
    with httpx.Client(base_url=open_to_all.url, trust_env=False) as http:
        assert http.get("/v1/models", headers={b"origin": origin.encode("latin-1")}).status_code == 403


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "host, origin, status",
    [
        ("models.example", "https://models.example:8443", 200),
        ("models.example", "https://models.example", 200),
        ("models.example:8443", "https://models.example:8443", 200),
        ("models.example:8443", "https://models.example", 403),
        ("models.example", "https://evil.example:8443", 403),
        ("evil.example", "https://models.example", 403),
        ("models.example", "https://models.example.evil.example", 403),
        ("127.0.0.1", "http://127.0.0.1:99", 403),
        ("evil.example", "https://evil.example", 403),
    ],
)
def test_a_proxy_may_leave_out_the_port_of_a_name_that_is_allowed(named, host, origin, status):
    with asking(named, authorization=f"Bearer {KEY}", host=host, origin=origin) as http:
        assert http.get("/v1/models").status_code == status


def test_pages_of_a_site_that_is_allowed_may_use_the_api_and_no_others(named):
    with asking(named, origin="https://friend.example") as http:
        asked = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-os",
        }
        before = http.options("/v1/completions", headers=asked)
        assert before.status_code == 204 and "POST" in before.headers["access-control-allow-methods"]
        assert before.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
        answer = http.post(
            "/v1/completions",
            json={"prompt": "ab", "max_tokens": 1, "store": True},
            headers={"authorization": f"Bearer {KEY}".encode()},
        )
        assert answer.status_code == 200 and "X-Ignored-Fields" in answer.headers["access-control-expose-headers"]
        refused = http.get("/v1/models")
        assert refused.status_code == 401
        for one in (before, answer, refused):  # a page can read what is refused too
            assert one.headers["access-control-allow-origin"] == "https://friend.example"
            assert one.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in one.headers
        assert http.get("/config").status_code == http.post("/login").status_code == 403  # the page is not the API
    for origin in ("https://other.example", "http://friend.example", "https://friend.example:444", "null"):
        with asking(named, origin=origin) as http:
            for answer in (http.options("/v1/completions", headers=asked), http.get("/v1/models")):
                assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_origins_proxies_and_certificates_that_are_none_are_said_in_one_line(debug_bundle, tmp_path, capsys):
    (tmp_path / "no.pem").write_text("no certificate")
    for option, value, words in (
        ("--allow-origin", "friend.example", "write scheme, name and port"),
        ("--allow-origin", "https://a/b", "write scheme"),
        ("--allow-origin", "*", "write scheme"),
        ("--allow-origin", "http://[", "write scheme"),
        ("--proxy", "10.0.0", "give the proxy's IP address"),
        ("--tls-cert", str(tmp_path / "nothing"), "give PEM files"),
        ("--tls-cert", str(tmp_path / "no.pem"), "give PEM files"),
        ("--tls-key", str(tmp_path / "no.pem"), "give --tls-cert too"),
    ):
        assert cli.main(["serve", "--bundle", str(debug_bundle), "--port", "0", option, value]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    assert origin_of("http://Example.com:80/") == "http://example.com"
    assert origin_of("http://[::1]:99") == "http://[::1]:99"


@pytest.mark.parametrize("path", ["/gradio_api/run/predict", "/gradio_api/queue/join", "/gradio_api/cancel"])
def test_half_a_surrogate_pair_does_not_reach_the_page(named, path):
    with asking(named, host="models.example") as http:
        answer = http.post(path, content=b'{"data": ["a\\ud83d", "b"], "fn_index": 4, "session_hash": "x"}')
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "data"


# ------------------------------------------------------------------------------------------------------------- keys


def test_a_key_of_any_letters_opens_as_clients_send_it(named):
    with httpx.Client(base_url=named.url, trust_env=False) as http:
        for kind, given in (("Bearer", KEY.encode()), ("Basic", base64.b64encode(f"pangu:{KEY}".encode()))):
            assert http.get("/v1/models", headers={b"authorization": kind.encode() + b" " + given}).status_code == 200
        for given in (KEY.encode()[:-1], KEY.encode("gb18030"), b"\xff"):
            assert http.get("/v1/models", headers={b"authorization": b"Bearer " + given}).status_code == 401
    with serve(scripted("abc"), port=0, page=False, quick=True, token="schlüssel") as server:
        with httpx.Client(base_url=server.url, trust_env=False) as http:
            for given in ("schlüssel".encode(), "schlüssel".encode("latin-1")):
                assert http.get("/v1/models", headers={b"authorization": b"Bearer " + given}).status_code == 200


def test_each_wrong_key_of_an_address_waits_longer_and_few_addresses_are_remembered():
    now = [0.0]
    failures = FailedLogins(lambda: now[0])
    pauses = [failures.pause("10.0.0.1") for _ in range(40)]
    assert pauses == sorted(pauses) and pauses[0] < 0.1 and pauses[-1] == FailedLogins.LONGEST
    assert failures.pause("10.0.0.2") == pauses[0]
    now[0] += FailedLogins.FORGOTTEN
    assert failures.pause("10.0.0.1") == pauses[0]
    assert failures.pause("2001:db8::1") == failures.pause("2001:db8:0:1::1") == pauses[0]
    assert failures.pause("2001:db8::2") == pauses[1]  # of the first one's network
    for number in range(10_000):
        failures.pause(f"10.1.{number // 256}.{number % 256}")
    assert len(failures._known) == FailedLogins.MOST


def test_wrong_keys_and_passwords_wait_and_right_ones_of_the_same_address_do_not(named, monkeypatch):
    waited, wrong = threading.Event(), []
    failures = named._runner.config.app.failures
    monkeypatch.setattr(failures, "pause", lambda client: waited.set() or wrong.append(client) or 3.0)
    with contextlib.ExitStack() as held:
        for send in (
            lambda http: http.get("/v1/models", headers={"authorization": "Bearer wrong"}),
            lambda http: http.post("/login", data={"username": "pangu", "password": "wrong"}),
        ):
            waited.clear()
            impatient = held.enter_context(httpx.Client(base_url=named.url, timeout=1, trust_env=False))
            with pytest.raises(httpx.ReadTimeout):
                send(impatient)
            assert waited.is_set()
            with asking(named, authorization=f"Bearer {KEY}") as http:
                assert http.get("/v1/models").status_code == 200
                assert http.post("/login", data={"username": "pangu", "password": KEY}).status_code == 200
            assert httpx.get(named.url + "v1/models", trust_env=False).status_code == 401  # nothing was guessed
    assert wrong == ["127.0.0.1"] * 2


def test_the_client_behind_a_proxy_is_the_one_it_names_and_nobody_else_may_name_one(named, open_to_all, monkeypatch):
    for server, expected in ((named, "10.1.2.3"), (open_to_all, "127.0.0.1")):
        seen = []
        guard = server._runner.config.app
        monkeypatch.setattr(guard, "_check_host", lambda path, headers: None)
        monkeypatch.setattr(guard, "app", _noting(guard.app, seen))
        with asking(server, x_forwarded_for="10.1.2.3") as http:
            http.get("/healthz")
        assert seen == [expected]


def _noting(app, seen):
    async def noting(scope, receive, send):
        seen.append(scope["client"][0])
        await app(scope, receive, send)

    return noting


# ------------------------------------------------------------------------------------------------ ports, certificates


def test_a_second_server_on_a_port_fails_before_it_loads_anything(tmp_path):
    first = _listen("127.0.0.1", 0)  # as a server has it that is still loading
    with contextlib.closing(first):
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot serve on 127.0.0.1:{port} .*give another host or port"):
            serve(tmp_path / "nothing is read from here", port=port)


def test_a_real_second_server_is_refused_in_one_line_while_the_first_one_loads(debug_bundle):
    command = [sys.executable, "-m", "pangu_lab.cli", "serve", "--bundle", str(debug_bundle), "--no-page", "--port"]
    with contextlib.closing(_listen("127.0.0.1", 0)) as loading:
        second = subprocess.run(
            [*command, str(loading.getsockname()[1])],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert second.returncode == 2 and second.stderr.startswith("pangu-lab serve: cannot serve on ")
    assert second.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    try:
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-keyout",
                folder / "key.pem",
                "-out",
                folder / "cert.pem",
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl to make a certificate with")
    return folder


def test_a_real_server_with_a_certificate_speaks_tls_and_nothing_else(debug_bundle, certificate):
    with running(
        debug_bundle,
        "--no-page",
        "--quick",
        "--tls-cert",
        str(certificate / "cert.pem"),
        "--tls-key",
        str(certificate / "key.pem"),
        "--limit",
        "header_seconds=1",
    ) as server:
        assert server.url.startswith("https://127.0.0.1:")
        port = int(server.url.rpartition(":")[2])
        trusting = ssl.create_default_context(cafile=certificate / "cert.pem")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:
            with httpx.Client(base_url=server.url, timeout=60, verify=trusting, trust_env=False) as http:
                answer = http.post("/v1/completions", json={"prompt": "春天", "max_tokens": 2})
                assert answer.status_code == 200 and len(answer.json()["choices"]) == 1
            with pytest.raises(httpx.TransportError):
                httpx.get(server.url.replace("https", "http") + "/healthz", trust_env=False)
            assert silent.recv(1) == b""  # nor does a handshake last longer than headers may
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as inner,
            trusting.wrap_socket(inner, server_hostname="127.0.0.1") as silent,
        ):
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                assert silent.recv(1) == b""
        server.signal()
        code, _, err = server.end()
        assert code == 0 and "Traceback" not in err, err


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(certificate):
    subprocess.run(
        [
            "openssl",
            "ec",
            "-in",
            certificate / "key.pem",
            "-aes128",
            "-passout",
            "pass:x",
            "-out",
            certificate / "locked.pem",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    with pytest.raises(InputError, match="the key without a passphrase"):
        serve(scripted("abc"), port=0, tls_cert=certificate / "cert.pem", tls_key=certificate / "locked.pem")


def test_one_session_is_enough_for_a_request():
    limits = Limits(sessions=1, sessions_per_address=1, keep_alive_seconds=0.1)
    with serve(scripted("abc"), port=0, page=False, quick=True, limits=limits) as server, asking(server) as http:
        answer = http.post("/v1/completions", json={"prompt": "ab", "max_tokens": 3, "temperature": 0})
        assert json.loads(answer.text)["choices"][0]["text"] == "abc"
