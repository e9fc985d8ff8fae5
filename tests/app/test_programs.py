"""What programs and assistants may do where the page is started with --api or --mcp."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from app.backend import Backend
from app.bench.load import API
from app.bench.server import ROOT, SECONDS, Server, running
from app.programs import bytes_of
from app.sections.programs import Call, ask_case, check, retrieve_evidence
from app.waiting import PLACES, Room, RoomFullError
from mrrag.api import MRRAG
from mrrag.errors import ImageError, MRRAGError, SettingsError
from mrrag.pipeline import Pipeline

SAMPLE = ROOT / "sample_cases" / "case-1.dcm"
QUESTION = "Is there evidence of pulmonary edema?"
LOGIN = ("reader", "a long secret")
BASIC = {"Authorization": "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("mcp")
    folder = tmp_path_factory.mktemp("served") / "files"
    login = {"MRRAG_USER": LOGIN[0], "MRRAG_PASSWORD": LOGIN[1]}
    with running(folder, "--mcp", **login) as server:
        server.wait_for()
        yield server
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    client = Client(server.address, auth=LOGIN, verbose=False, analytics_enabled=False)
    yield client
    client.close()


def without_seconds(case: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({n: v for n, v in case.items() if n != "seconds"}))


def test_a_program_gets_what_the_command_line_prints(pipeline: Pipeline, backend: Backend) -> None:
    printed = MRRAG(pipeline).ask(SAMPLE, QUESTION, k=3).to_json()
    got = ask_case([backend], Call(SAMPLE.read_bytes(), QUESTION, {"k": 3}), Room(), "")
    assert without_seconds(got) == without_seconds(printed)


def test_a_program_is_told_when_to_come_back(backend: Backend) -> None:
    room, call = Room(), Call(SAMPLE.read_bytes(), QUESTION)
    with ExitStack() as stack:
        for who in range(PLACES):
            stack.enter_context(room.turn(who))
        for action in (ask_case, retrieve_evidence):
            with pytest.raises(RoomFullError, match="Ask again in a minute"):
                action([backend], call, room, "")


def test_what_is_retrieved_is_what_an_answer_reads(backend: Backend) -> None:
    call = Call(SAMPLE.read_bytes(), QUESTION, {"k": 4, "weights": [0.2, 0.3, 0.5]})
    case = ask_case([backend], call, Room(), "")
    evidence = retrieve_evidence([backend], call, Room(), "")
    assert len(evidence["retrieved"]) == 4
    for part in ("question", "input", "retrieved", "votes"):
        assert evidence[part] == case[part]
    assert evidence["weights"] == {"alpha": 0.2, "beta": 0.3, "gamma": 0.5}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"question": " "}, "The question is empty"),
        ({"question": None}, "The question is empty"),
        ({"question": "x" * 1001}, "1000 are allowed"),
        ({"picture": b""}, "No file was received"),
        ({"picture": b"no picture"}, "unsupported type"),
        ({"settings": [1]}, "no object"),
        ({"settings": {"K": 3}}, "no setting K. The settings are k,"),
        ({"settings": {"k": 17}}, "from 1 to 16"),
        ({"settings": {"k": "<script>"}}, "from 1 to 16"),
        ({"settings": {"layers": 3}}, "not a list"),
        ({"settings": {"form": "worse"}}, "does not exist"),
        ({"settings": {"noise": 9}}, "from 0 to 8"),
        ({"settings": {"weights": {"alpha": 1}}}, "a list of three numbers"),
        ({"settings": {"weights": [0.1, 0.2, 9e9]}}, "γ must be a number"),
        ({"knowledge_base": "elsewhere"}, "Choose one of: bundled"),
        ({"knowledge_base": {}}, "Choose one of: bundled"),
        ({"frame": -1}, "The frame must be a number from 0"),
        ({"frame": 1}, "The file has 1 frame"),
    ],
)
def test_bad_input_is_refused_in_the_sentences_of_the_page(
    backend: Backend, changed: dict[str, Any], sentence: str
) -> None:
    call = Call(SAMPLE.read_bytes(), QUESTION)._replace(**changed)
    with pytest.raises(MRRAGError) as refused:
        check([backend], call)
    assert isinstance(refused.value, SettingsError | ImageError)
    assert sentence in str(refused.value)


def test_a_picture_is_base64_or_an_upload_and_no_other_file(tmp_path: Path) -> None:
    data = SAMPLE.read_bytes()
    text = base64.b64encode(data).decode()
    assert bytes_of(text) == bytes_of(f"data:application/dicom;base64,{text}") == data
    secret = tmp_path / "secret.png"
    secret.write_bytes(data)
    for address in (f"http://127.0.0.1/{API}/file={secret}", f"/{API}/file=%2Fetc%2Fpasswd"):
        assert bytes_of(address) == b""
    assert bytes_of({"path": str(secret)}) == bytes_of(3) == bytes_of({}) == b""
    assert secret.exists()
    for elsewhere in ("https://example.org/a.png", "file:///etc/passwd", "/etc/passwd"):
        with pytest.raises(ImageError, match="neither base64 nor"):
            bytes_of(elsewhere)


def test_only_ask_and_retrieve_are_public(client: Client, server: Server) -> None:
    described: Any = client.view_api(return_format="dict", print_info=False)
    assert set(described["named_endpoints"]) == {"/ask", "/retrieve"}
    assert described["unnamed_endpoints"] == {}
    public = [d for d in client.config["dependencies"] if d["api_visibility"] != "private"]
    assert {d["api_name"] for d in public} == {"ask", "retrieve"}
    assert len(public) == 2
    for path in ("/docs", "/openapi.json", "/monitoring/summary"):
        assert httpx.get(server.address + path).status_code >= 400


def test_an_upload_of_a_program_is_answered_and_deleted(client: Client, server: Server) -> None:
    case = client.predict(handle_file(SAMPLE), QUESTION, {"k": 2}, api_name="/ask")
    assert len(case["retrieved"]) == 2
    assert server.uploads() == []
    with pytest.raises(AppError, match="The question is empty"):
        client.predict(handle_file(SAMPLE), "", api_name="/ask")
    assert server.uploads() == []
    for secret in ({"path": "/etc/passwd"}, 3, None):
        with pytest.raises(AppError, match="No file was received"):
            client.predict(secret, QUESTION, api_name="/retrieve")
    for word in ("enlarged", "Traceback", "question", SAMPLE.name):
        assert word not in server.log.read_text()


def test_a_program_without_a_library_asks_in_two_requests(server: Server) -> None:
    call = {"picture": base64.b64encode(SAMPLE.read_bytes()).decode(), "question": QUESTION}
    with httpx.Client(base_url=server.address, timeout=SECONDS) as http:
        assert http.post(f"/{API}/call/v2/retrieve", json=call).status_code == 401
        http.post("/login", data={"username": LOGIN[0], "password": LOGIN[1]})
        event = http.post(f"/{API}/call/v2/retrieve", json=call).raise_for_status().json()
        answer = http.get(f"/{API}/call/retrieve/{event['event_id']}").text
        # What waits in the queue is held in memory, so that large files must be uploaded.
        large = call | {"picture": "A" * 2**24}
        assert http.post(f"/{API}/call/v2/retrieve", json=large).status_code == 413
    kind, data = answer.strip().splitlines()[-2:]
    assert kind == "event: complete"
    (found,) = json.loads(data.removeprefix("data: "))
    assert found["question"] == QUESTION


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("ask", {"query": "zebedee"}),
        ("ask", {"question": "zebedee"}),
        ("zebedee", {"question": "a", "picture": "b"}),
    ],
)
def test_a_call_that_is_none_is_refused_and_not_logged(
    server: Server, name: str, call: dict[str, str]
) -> None:
    with httpx.Client(base_url=server.address, timeout=SECONDS) as http:
        http.post("/login", data={"username": LOGIN[0], "password": LOGIN[1]})
        answer = http.post(f"/{API}/call/v2/{name}", json=call)
    assert answer.status_code == 400
    assert "the endpoints are ask and retrieve" in answer.json()["detail"]
    assert "zebedee" not in server.log.read_text()


async def use_tools(address: str, calls: list[dict[str, Any]]) -> tuple[set[str], list[Any]]:
    """Call ``ask`` as an assistant does; return the names of the tools, and the results."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with (
        httpx.AsyncClient(headers=BASIC, timeout=SECONDS) as http,
        streamable_http_client(f"{address}/{API}/mcp/", http_client=http) as (reads, writes, _),
        ClientSession(reads, writes) as session,
    ):
        await session.initialize()
        listed = await session.list_tools()
        assert all("Not a medical device" in (tool.description or "") for tool in listed.tools)
        return {t.name for t in listed.tools}, [await session.call_tool("ask", c) for c in calls]


def test_an_assistant_asks_with_the_login_and_is_refused_in_a_sentence(server: Server) -> None:
    picture = base64.b64encode(SAMPLE.read_bytes()).decode()
    good = {"picture": picture, "question": QUESTION, "settings": {"k": 2}}
    names, (answered, refused) = asyncio.run(
        use_tools(server.address, [good, good | {"question": ""}])
    )
    assert names == {"ask", "retrieve"}
    assert not answered.isError
    assert "Yes, moderate pulmonary edema." in answered.content[0].text
    assert refused.isError
    assert refused.content[0].text == "The question is empty. Type a question about the picture."
    assert server.uploads() == []


@pytest.mark.parametrize("path", ["mcp", "mcp/", "mcp/schema", "mcp/sse", "mcp/messages/"])
def test_the_tools_are_closed_to_who_is_not_logged_in(server: Server, path: str) -> None:
    wrong = {"Authorization": "Basic " + base64.b64encode(b"reader:guess").decode()}
    for headers in ({}, wrong):
        url = f"{server.address}/{API}/{path}"
        assert httpx.get(url, headers=headers).status_code == 401
        assert httpx.post(url, headers=headers, json={}).status_code == 401
