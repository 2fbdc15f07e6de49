from __future__ import annotations

from tests.serve.running import Running


def test_whole(server: Running) -> None:
    answer = server.chat()
    print(answer.text, answer.headers)
    print(server.stream(stream_options={"include_usage": True}))
    assert answer.status_code == 200, answer.text
